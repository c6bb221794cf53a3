//! Tunnels with somebody at the other end who lies: each lie is an error to the one it was told, and harms nobody else.

mod support;

use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use support::raw::{RawPeer, RawStreams, rest};
use support::{SOON, loopback, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use voltmesh::node::config::Config;
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::proto::close::StreamCode;
use voltmesh::proto::codec;
use voltmesh::proto::frame::{Frames, put_frame, put_message};
use voltmesh::proto::limits::{self, Limits};
use voltmesh::proto::status::{Code, Status};
use voltmesh::proto::stream::Purpose;
use voltmesh::proto::tunnel::{Answer, Ask};
use voltmesh::proto::varint;
use voltmesh::tunnel::{Exposed, TunnelBroken, TunnelError};
use voltmesh::{Node, Session};

/// A node that exposes a pipe as `it` to everybody, and a raw peer with a session to it.
async fn host() -> (Node, Exposed, mpsc::Receiver<DuplexStream>, RawPeer, RawStreams) {
    let rule = Rule::new(Effect::Permit, Subject::Anyone, Action::Forward, "*".parse().unwrap(), Source::Config).unwrap();
    let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
    let host = Node::builder().config(Config { limits, ..Config::default() }).listen(loopback()).rule(rule);
    let host = host.bind().await.unwrap();
    let (give, taken) = mpsc::channel(limits::TUNNELS);
    let exposed = host.expose_memory("it", give).unwrap();
    let raw = RawPeer::plain();
    let streams = raw.greet(&host).await.answering();
    (host, exposed, taken, raw, streams)
}

/// The beginning of a tunnel on the stream with this number.
fn head(streams: &RawStreams, stream: u64) -> Vec<u8> {
    let mut bytes = streams.head(stream);
    bytes.push(Purpose::Tunnel as u8);
    bytes
}

fn open(streams: &RawStreams, stream: u64, name: &str) -> Vec<u8> {
    let mut bytes = head(streams, stream);
    put_message(&mut bytes, &Ask::Open { name: name.into() });
    bytes
}

async fn answer(recv: &mut RecvStream) -> Answer {
    let mut frames = Frames::new(limits::STATUS_BYTES + 1);
    loop {
        if let Some(frame) = frames.next_frame().unwrap() {
            return codec::decode(&frame).unwrap();
        }
        // One byte at a time: what follows is no frame.
        frames.push(soon(recv.read_chunk(1, true)).await.unwrap().expect("the stream goes on").bytes);
    }
}

#[tokio::test]
async fn what_is_no_question_is_given_up_and_the_session_goes_on() {
    let (host, _exposed, mut taken, _raw, streams) = host().await;
    let mut long = Vec::new();
    varint::put(&mut long, 1 << 30);
    let name = |name: &str| codec::encode(&Ask::Open { name: name.into() });
    let framed = |bytes: &[u8]| {
        let mut framed = Vec::new();
        put_frame(&mut framed, bytes);
        framed
    };
    let nonsense =
        [long, framed(&[]), framed(&[9]), framed(&name("a b")), framed(&[&name("it")[..], &[0]].concat()), framed(&name(""))];
    for (at, bytes) in nonsense.into_iter().enumerate() {
        let (_send, mut recv) = streams.open(&[head(&streams, 2 + 2 * at as u64), bytes].concat()).await;
        assert_eq!(rest(&mut recv).await, Err((StreamCode::Protocol as u32).into()), "{at}");
    }
    // One that says nothing, or half of it, is given up in time.
    let (_send, mut recv) = streams.open(&head(&streams, 100)).await;
    assert_eq!(rest(&mut recv).await, Err((StreamCode::Protocol as u32).into()));
    // What is asked rightly is answered; what comes with the question is the connection's already.
    let (_send, mut recv) = streams.open(&[open(&streams, 102, "it"), b"hello".to_vec()].concat()).await;
    assert_eq!(answer(&mut recv).await, Answer::Ready);
    let mut hello = [0; 5];
    soon(soon(taken.recv()).await.unwrap().read_exact(&mut hello)).await.unwrap();
    assert_eq!(&hello, b"hello");
    let mut probe = head(&streams, 104);
    put_message(&mut probe, &Ask::Probe { name: "nothing".into() });
    let (_send, mut recv) = streams.open(&probe).await;
    assert!(matches!(answer(&mut recv).await, Answer::Refused(status) if status.code == Code::NotFound));
    assert_eq!(rest(&mut recv).await, Ok(Bytes::new()));
    soon(host.shutdown()).await;
}

#[tokio::test]
async fn tunnels_that_are_opened_and_given_up_leave_nothing_behind() {
    let (host, _exposed, mut taken, _raw, streams) = host().await;
    // As many as may be at once, twice over: room is given back.
    for stream in 1..=2 * limits::TUNNELS as u64 {
        let (mut send, mut recv): (SendStream, RecvStream) = streams.open(&open(&streams, 2 * stream, "it")).await;
        assert_eq!(answer(&mut recv).await, Answer::Ready, "{stream}");
        send.reset((StreamCode::Cancelled as u32).into()).unwrap();
        recv.stop((StreamCode::Cancelled as u32).into()).unwrap();
        let mut pipe = soon(taken.recv()).await.unwrap();
        // It ends at the target, too.
        let _ = soon(pipe.read(&mut [0; 8])).await;
    }
    soon(host.shutdown()).await;
}

/// A session with a host that answers what is asked of it with these bytes, and then ends, resets or does nothing.
async fn lied_to(says: Vec<u8>, then: Option<Option<StreamCode>>) -> (Node, Session) {
    let raw = RawPeer::plain();
    let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
    let node = Node::builder().config(Config { limits, ..Config::default() }).listen(loopback()).bind().await.unwrap();
    let session = node.hold(raw.id, &[raw.endpoint.local_addr().unwrap()]);
    let streams = soon(raw.answer()).await.answering();
    tokio::spawn(async move {
        let (_raw, mut kept) = (raw, Vec::new());
        while let Ok((mut send, mut recv)) = streams.connection.accept_bi().await {
            let Ok(Some(first)) = recv.read_chunk(4_096, true).await else { continue };
            if first.bytes.get(2) == Some(&(Purpose::Tunnel as u8)) {
                let _ = send.write_all(&says).await;
                match then {
                    Some(None) => drop(send.finish()),
                    Some(Some(code)) => drop(send.reset((code as u32).into())),
                    None => {}
                }
            }
            kept.push((send, recv));
        }
    });
    soon(session.connected(SOON)).await.unwrap();
    (node, session)
}

fn said(answer: &Answer, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_message(&mut bytes, answer);
    bytes.extend_from_slice(rest);
    bytes
}

#[tokio::test]
async fn a_host_that_lies_is_found_out() {
    let mut long = Vec::new();
    varint::put(&mut long, 1 << 30);
    for nonsense in [vec![0], vec![1, 9], long, vec![2, 0, 0]] {
        let (node, session) = lied_to(nonsense.clone(), None).await;
        assert!(matches!(soon(session.tunnel("it")).await, Err(TunnelError::Nonsense(_))), "{nonsense:?}");
        node.shutdown().await;
    }
    let codes = [
        (StreamCode::Limit, Some(Code::ResourceExhausted)),
        (StreamCode::Kind, Some(Code::Unimplemented)),
        (StreamCode::Closed, None),
    ];
    for (code, refused) in codes {
        let (node, session) = lied_to(Vec::new(), Some(Some(code))).await;
        match (soon(session.may_tunnel("it")).await, refused) {
            (Err(TunnelError::Refused(status)), Some(refused)) => assert_eq!(status.code, refused),
            (Err(TunnelError::Unanswered(_)), None) => {}
            other => panic!("{other:?}"),
        }
        node.shutdown().await;
    }
    let (node, session) = lied_to(Vec::new(), Some(None)).await;
    assert!(matches!(soon(session.tunnel("it")).await, Err(TunnelError::Unanswered(_))));
    node.shutdown().await;
    let refused = Answer::Refused(Status::new(Code::NotFound, "no"));
    let (node, session) = lied_to(said(&refused, b"and more"), None).await;
    assert!(matches!(soon(session.tunnel("it")).await, Err(TunnelError::Refused(status)) if status.code == Code::NotFound));
    node.shutdown().await;
}

#[tokio::test]
async fn what_comes_with_the_answer_is_read_first_and_how_it_broke_off_is_told() {
    let (node, session) = lied_to(said(&Answer::Ready, b"hello"), Some(Some(StreamCode::Kind))).await;
    match soon(session.tunnel("it")).await {
        Ok(tunnel) => {
            let (_send, mut recv) = tunnel.split();
            let mut heard = Vec::new();
            let end = loop {
                match soon(recv.read()).await {
                    Ok(Some(bytes)) => heard.extend_from_slice(&bytes),
                    other => break other,
                }
            };
            assert_eq!((&heard[..], end), (&b"hello"[..], Err(TunnelBroken::Denied)));
        }
        // A reset may overtake what came before it.
        Err(error) => assert!(matches!(&error, TunnelError::Refused(status) if status.code == Code::Unimplemented), "{error}"),
    }
    node.shutdown().await;
    let (node, session) = lied_to(said(&Answer::Ready, b"hello"), Some(None)).await;
    let (_send, mut recv) = soon(session.tunnel("it")).await.unwrap().split();
    assert_eq!(soon(recv.read()).await.unwrap().unwrap(), "hello");
    assert_eq!(soon(recv.read()).await, Ok(None));
    node.shutdown().await;
}

#[tokio::test]
async fn a_pipe_of_a_peer_that_is_gone_ends() {
    let (host, _exposed, mut taken, raw, streams) = host().await;
    let (_send, mut recv) = streams.open(&open(&streams, 2, "it")).await;
    assert_eq!(answer(&mut recv).await, Answer::Ready);
    let mut pipe = soon(taken.recv()).await.unwrap();
    soon(pipe.write_all(b"x")).await.unwrap();
    raw.endpoint.close(0u32.into(), b"");
    let _ = soon(pipe.read_to_end(&mut Vec::new())).await;
    soon(host.shutdown()).await;
}
