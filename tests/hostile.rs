//! Peers with a valid key and bad manners, on raw quinn over real UDP: whatever they say, the node closes what it must, keeps
//! within its bounds, and goes on serving others.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use quinn::{RecvStream, SendStream};
use support::raw::{RawControl, RawPeer, RawStreams, attach, close_code, header, hello, hello_bytes, message, rest};
use support::{Alive, SOON, echo, long, node, open_node, soon, until};
use voltmesh::proto::body::ContentType;
use voltmesh::proto::call::Shape;
use voltmesh::proto::close::{CloseCode, StreamCode};
use voltmesh::proto::control::{BootId, Control, Goodbye, Hello, Progress, Run, SessionId};
use voltmesh::proto::frame::put_message;
use voltmesh::proto::limits;
use voltmesh::proto::status::{Code, Status};
use voltmesh::proto::stream::{Kind, Purpose};
use voltmesh::proto::varint;
use voltmesh::{Node, Service, Session};

/// Somebody honest with a session, and proof that calls go through.
async fn honest(node: &Node) -> (Node, Session) {
    let honest = Node::builder().listen(support::loopback()).bind().await.unwrap();
    let session = soon(honest.connect(node.ticket())).await.unwrap();
    served(&session).await;
    (honest, session)
}

async fn served(session: &Session) {
    assert_eq!(soon(session.call::<_, String>("echo/one", "honest")).await.unwrap(), "honest");
}

/// A stream opened with these bytes and finished.
async fn say(connection: &quinn::Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, recv) = soon(connection.open_bi()).await.unwrap();
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    (send, recv)
}

#[tokio::test]
async fn who_says_nothing_or_not_enough_is_closed_in_time() {
    let node = node().await;
    let raw = RawPeer::plain();
    let bytes = hello_bytes(&hello());
    let begun = Instant::now();
    // Nothing; a stream's first byte; half a hello; a hello and no attach.
    let silent = [&[][..], &bytes[..1], &bytes[..bytes.len() / 2], &bytes[..]].map(|bytes| {
        let (raw, node) = (&raw, &node);
        async move {
            let connection = raw.connect(node).await;
            let stream = if bytes.is_empty() { None } else { Some(connection.open_bi().await.unwrap()) };
            let stream = match stream {
                Some((mut send, recv)) => {
                    send.write_all(bytes).await.unwrap();
                    Some((send, recv))
                }
                None => None,
            };
            let code = close_code(&connection).await;
            drop(stream);
            code
        }
    });
    let (codes, (peer, session)) = tokio::join!(join_all(silent), honest(&node));
    println!("closed after {:?}", begun.elapsed());
    assert_eq!(codes, [CloseCode::Timeout; 4]);
    assert!(begun.elapsed() >= limits::HELLO);
    served(&session).await;
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test]
async fn a_first_stream_that_is_no_control_stream_closes_the_link() {
    let node = node().await;
    let raw = RawPeer::plain();
    for first in [0, 2, 3, 4, 5, 255] {
        let mut bytes = hello_bytes(&hello());
        bytes[0] = first;
        let connection = raw.connect(&node).await;
        let _stream = say(&connection, &bytes).await;
        assert_eq!(close_code(&connection).await, CloseCode::Protocol, "first byte {first}");
    }
    // A frame longer than any control message, one whose length is written too long, and a message that is not a hello.
    let mut long = vec![Kind::Control as u8];
    varint::put(&mut long, limits::CONTROL_MESSAGE_BYTES as u64 + 1);
    let wasteful = vec![Kind::Control as u8, 0x40, 5, 0, 0, 0, 0, 0];
    let mut order = vec![Kind::Control as u8];
    put_message(&mut order, &Control::Ping { seq: 0 });
    for bytes in [long, wasteful, order] {
        let connection = raw.connect(&node).await;
        let (mut send, _recv) = soon(connection.open_bi()).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        assert_eq!(close_code(&connection).await, CloseCode::Protocol, "{bytes:?}");
    }
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn before_it_is_permitted_a_peer_has_three_streams() {
    let node = node().await;
    let connection = RawPeer::plain().connect(&node).await;
    for _ in 0..limits::STRANGER_STREAMS {
        connection.open_bi().now_or_never().expect("there is credit").unwrap();
    }
    assert!(connection.open_bi().now_or_never().is_none());
    assert!(connection.open_uni().now_or_never().is_none(), "nobody needs these");
    soon(node.shutdown()).await;
}

/// What came of a control stream with these first bytes, which then ended.
async fn greeted_with(raw: &RawPeer, node: &Node, bytes: &[u8]) -> String {
    let connection = raw.connect(node).await;
    let (_send, recv) = say(&connection, bytes).await;
    let mut answer = RawControl::receiving(recv);
    tokio::select! {
        biased;
        answer = answer.first() => match answer {
            Some(Control::Hello(Hello { session: Some(_), .. })) => "accepted".into(),
            Some(Control::Hello(Hello { session: None, .. })) => "stale".into(),
            Some(other) => panic!("answered {other:?}"),
            None => format!("{:?}", close_code(&connection).await),
        },
        code = close_code(&connection) => format!("{code:?}"),
    }
}

async fn outcomes(node: &Node, raw: &RawPeer, cases: impl Iterator<Item = Vec<u8>>) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    let mut said = stream::iter(cases).map(async |bytes| greeted_with(raw, node, &bytes).await).buffer_unordered(16);
    while let Some(outcome) = said.next().await {
        *outcomes.entry(outcome).or_default() += 1;
    }
    outcomes
}

#[tokio::test]
async fn a_hello_cut_off_at_any_byte_closes_the_link() {
    let node = node().await;
    let raw = RawPeer::plain();
    let bytes = hello_bytes(&hello());
    let cut = outcomes(&node, &raw, (0..bytes.len()).map(|len| bytes[..len].to_vec())).await;
    assert_eq!(cut, BTreeMap::from([("Protocol".into(), bytes.len())]));
    let (peer, _session) = honest(&node).await;
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test]
async fn a_hello_with_any_one_bit_flipped_is_refused_or_means_something_else() {
    let node = node().await;
    let raw = RawPeer::plain();
    let bytes = hello_bytes(&hello());
    let flipped = (0..bytes.len() * 8).map(|bit| {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    let outcomes = outcomes(&node, &raw, flipped).await;
    println!("{outcomes:?}");
    assert!(outcomes.keys().all(|outcome| ["Protocol", "Version", "accepted", "stale"].contains(&outcome.as_str())));
    let (peer, _session) = honest(&node).await;
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test]
async fn a_control_stream_out_of_order_closes_the_session() {
    let node = node().await;
    let raw = RawPeer::plain();
    let again = [Control::Hello(hello()), Control::Attach(attach(SessionId::random(), 1))];
    for message in again {
        let mut session = raw.greet(&node).await;
        session.control.send(&message).await;
        assert_eq!(close_code(&session.connection).await, CloseCode::Protocol);
    }
    let garbage: [&[u8]; 3] = [&[3, 255, 255, 255], &[0], &[0xff; 8]];
    for bytes in garbage {
        let mut session = raw.greet(&node).await;
        session.control.send.write_all(bytes).await.unwrap();
        assert_eq!(close_code(&session.connection).await, CloseCode::Protocol, "{bytes:?}");
    }
    // Ended or reset, it leaves a path nobody can steer.
    let mut session = raw.greet(&node).await;
    session.control.send.finish().unwrap();
    assert_eq!(close_code(&session.connection).await, CloseCode::Protocol);
    let mut session = raw.greet(&node).await;
    session.control.send.reset(0u32.into()).unwrap();
    assert_eq!(close_code(&session.connection).await, CloseCode::Protocol);
    // An attach to something else than was agreed.
    let connection = raw.connect(&node).await;
    let mut bytes = hello_bytes(&hello());
    put_message(&mut bytes, &Control::Attach(attach(SessionId::random(), 1)));
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&bytes).await.unwrap();
    assert_eq!(close_code(&connection).await, CloseCode::Protocol);
    // Goodbye is in order.
    let mut session = raw.greet(&node).await;
    session.control.send(&Control::Goodbye(Goodbye::Disconnect)).await;
    assert_eq!(close_code(&session.connection).await, CloseCode::Goodbye);
    soon(node.shutdown()).await;
}

/// A good call on this stream, answered.
async fn answered(session: &RawStreams, stream: u64) {
    let mut bytes = session.call(stream, &header("echo/one", Shape::Unary, ContentType::Raw));
    bytes.extend(message(b"hi"));
    let (_send, mut recv) = say(&session.connection, &bytes).await;
    // A message of 2 bytes, and OK.
    assert_eq!(&rest(&mut recv).await.unwrap()[..], [3, 0, b'h', b'i', 1, 1]);
}

#[tokio::test]
async fn a_stream_with_a_wrong_head_is_refused_and_the_session_lives() {
    let node = node().await;
    let raw = RawPeer::plain();
    let session = raw.greet(&node).await.answering();
    answered(&session, 2).await;
    let head = |stream| {
        let mut buf = session.head(stream);
        buf.push(Purpose::Call as u8);
        buf
    };
    let wrong_kind = |kind: u8| {
        let mut bytes = head(4);
        bytes[0] = kind;
        bytes
    };
    let mut purpose = head(6);
    *purpose.last_mut().unwrap() = 9;
    let mut notices = head(8);
    *notices.last_mut().unwrap() = Purpose::Session as u8;
    let refused = [
        (wrong_kind(0), StreamCode::Kind),
        (wrong_kind(1), StreamCode::Kind),
        // A circuit's opening that is none, and a stream of a circuit that is not there.
        (wrong_kind(3), StreamCode::Protocol),
        (wrong_kind(4), StreamCode::PathLeft),
        (wrong_kind(255), StreamCode::Kind),
        (purpose, StreamCode::Kind),
        (notices, StreamCode::Kind),
        // Its length is written in two bytes where one would do.
        (vec![Kind::Session as u8, 0x40, 4, 1], StreamCode::Kind),
        (vec![Kind::CarriedOn as u8, 4, 0x40, 0, 0, 1], StreamCode::Kind),
        (Vec::new(), StreamCode::Kind),
        (head(11), StreamCode::Closed),
        (head(2), StreamCode::Closed),
        (head(2 * 1_000_000), StreamCode::Closed),
    ];
    for (bytes, code) in refused {
        let (_send, mut recv) = say(&session.connection, &bytes).await;
        assert_eq!(rest(&mut recv).await.unwrap_err().into_inner(), code as u64, "{bytes:?}");
    }
    // A head cut off anywhere.
    let whole = head(12);
    for len in 0..whole.len() {
        let (_send, mut recv) = say(&session.connection, &whole[..len]).await;
        assert_eq!(rest(&mut recv).await.unwrap_err().into_inner(), StreamCode::Kind as u64, "{len} bytes");
    }
    answered(&session, 14).await;
    assert_eq!(node.counts().panics, 0);
    soon(node.shutdown()).await;
}

/// The status a call with these bytes ended with, or `None` if its stream was reset.
async fn status_of(session: &RawStreams, bytes: &[u8]) -> Option<u8> {
    let (_send, mut recv) = say(&session.connection, bytes).await;
    status(&mut recv).await
}

async fn status(recv: &mut RecvStream) -> Option<u8> {
    let answer = rest(recv).await.ok()?;
    // Perhaps a message; then a status, which is OK if it says no more.
    let mut at = &answer[..];
    loop {
        let (length, taken) = varint::get(at).unwrap().expect("a whole frame");
        let (frame, after) = at[taken..].split_at(length as usize);
        if frame[0] == 1 {
            return Some(frame.get(1).copied().unwrap_or(0));
        }
        at = after;
    }
}

fn tally(statuses: impl IntoIterator<Item = Option<u8>>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for status in statuses {
        let name = status.map_or("reset", |code| Code::ALL.iter().find(|known| **known as u8 == code).unwrap().name());
        *tally.entry(name.to_owned()).or_default() += 1;
    }
    tally
}

#[tokio::test]
async fn a_call_cut_off_at_any_byte_or_with_any_bit_flipped_gets_a_status_and_harms_nobody() {
    let node = node().await;
    let session = RawPeer::plain().greet(&node).await.answering();
    let key = *b"key";
    let header = voltmesh::proto::call::Header {
        idempotency_key: Some(&key),
        traceparent: Some("00-x"),
        metadata: vec![("name", &b"value"[..]), ("other", &b""[..])],
        ..header("echo/one", Shape::Unary, ContentType::Bincode)
    };
    let mut next = 0;
    let mut call = || {
        next += 2;
        let mut bytes = session.call(next, &header);
        let head = session.head(next).len() + 1;
        bytes.extend(message(&[2, b'h', b'i']));
        (bytes, head)
    };
    let (bytes, head) = call();
    let whole = bytes.len();
    assert_eq!(status_of(&session, &bytes).await, Some(0));
    let mut cut = Vec::new();
    for len in head..whole {
        cut.push(status_of(&session, &call().0[..len]).await);
    }
    let cut = tally(cut);
    println!("cut off: {cut:?}");
    assert_eq!(cut, BTreeMap::from([("INVALID_ARGUMENT".into(), whole - head)]));
    let mut flipped = Vec::new();
    for bit in head * 8..whole * 8 {
        let (mut bytes, now) = call();
        // The head of a later stream may be longer.
        let at = bit / 8 - head + now;
        bytes[at] ^= 1 << (bit % 8);
        flipped.push(status_of(&session, &bytes).await);
    }
    let flipped = tally(flipped);
    println!("flipped: {flipped:?}");
    assert!(!flipped.contains_key("reset") && !flipped.contains_key("INTERNAL"));
    assert_eq!(node.counts().panics, 0);
    answered(&session, next + 2).await;
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn a_body_too_large_is_resource_exhausted_and_read_no_further() {
    let node = node().await;
    let session = RawPeer::plain().greet(&node).await.answering();
    for (stream, length) in [(2, limits::BODY_BYTES as u64 + 2), (4, 1 << 40), (6, varint::MAX)] {
        let mut bytes = session.call(stream, &header("echo/one", Shape::Unary, ContentType::Raw));
        varint::put(&mut bytes, length);
        let (_send, mut recv) = session.open(&bytes).await;
        assert_eq!(status(&mut recv).await, Some(Code::ResourceExhausted as u8), "{length}");
    }
    // A header too long is none.
    let mut bytes = session.head(8);
    bytes.push(Purpose::Call as u8);
    varint::put(&mut bytes, limits::CALL_HEADER_BYTES as u64 + 1);
    let (_send, mut recv) = session.open(&bytes).await;
    assert_eq!(status(&mut recv).await, Some(Code::InvalidArgument as u8));
    answered(&session, 10).await;
    soon(node.shutdown()).await;
}

fn stuck(alive: &Alive) -> Service {
    let alive = alive.clone();
    echo().unary("stuck", move |_cx, ()| {
        let life = alive.begin();
        async move {
            let _life = life;
            std::future::pending::<Result<(), Status>>().await
        }
    })
}

/// So many streams, from this one on, are done with.
fn over(nth: u64, count: u64) -> Control {
    Control::Progress(Progress { over: vec![Run { first: 2 * nth, count }], live: Vec::new() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_reset_as_fast_as_they_are_opened_never_make_more_handlers_than_allowed() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let (peer, friend) = honest(&node).await;
    let session = RawPeer::plain().greet(&node).await.answering();
    let rounds = if long() { 100_000 } else { 10_000 };
    let begun = Instant::now();
    let (mut open, mut arrived) = (VecDeque::new(), 0);
    for stream in 1..=rounds {
        let mut bytes = session.call(2 * stream, &header("echo/stuck", Shape::Unary, ContentType::Bincode));
        bytes.extend(message(&[]));
        open.push_back(session.open(&bytes).await);
        // Most are reset before they have left, and of the others most before they are seen.
        if open.len() > 256
            && let Some((mut send, mut recv)) = open.pop_front()
        {
            let _ = send.reset(0u32.into());
            let _ = recv.stop(0u32.into());
        }
        if stream % 16 == 0 {
            tokio::task::yield_now().await;
        }
        // Or it would have as many live as it may.
        if stream > 512 && stream % 128 == 0 {
            session.tell(over(stream - 512, 128));
        }
        if stream % (rounds / 10) == 0 {
            served(&friend).await;
            // However few of the others arrived, those that are open do.
            arrived += open.len();
            until(|| alive.ever() >= arrived).await;
        }
    }
    drop(open);
    session.tell(over(1, rounds));
    println!("{rounds} streams in {:?}: {} handlers ran, at most {} at once", begun.elapsed(), alive.ever(), alive.most());
    assert!(alive.most() <= limits::CALLS_IN_FLIGHT);
    until(|| alive.now() == 0).await;
    // And as many as allowed, kept.
    let mut kept = Vec::new();
    for stream in rounds + 1..=rounds + limits::CALLS_IN_FLIGHT as u64 + 50 {
        let mut bytes = session.call(2 * stream, &header("echo/stuck", Shape::Unary, ContentType::Bincode));
        bytes.extend(message(&[]));
        kept.push(session.open(&bytes).await);
    }
    until(|| alive.now() == limits::CALLS_IN_FLIGHT).await;
    served(&friend).await;
    assert!(alive.most() <= limits::CALLS_IN_FLIGHT);
    drop(kept);
    until(|| alive.now() == 0).await;
    session.connection.close(0u32.into(), b"");
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

/// Begins so many calls, writes to each for as long as the node takes it, and gives how much it took in all.
async fn pinned(session: &RawStreams, calls: u64, begin: impl Fn(u64) -> Vec<u8>, each: usize) -> u64 {
    let taken = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for call in 1..=calls {
        let (session, bytes, taken) = (session.clone(), begin(2 * call), taken.clone());
        writers.push(tokio::spawn(async move {
            let Ok((mut send, recv)) = session.connection.open_bi().await else { return };
            let filler = [0; 8 * 1024];
            let mut left = each;
            let _ = send.write_all(&bytes).await;
            while left > 0 {
                let Ok(written) = send.write(&filler[..left.min(filler.len())]).await else { break };
                taken.fetch_add(written as u64, Ordering::SeqCst);
                left -= written;
            }
            std::future::pending::<()>().await;
            drop((send, recv));
        }));
    }
    // Until nothing moves any more.
    soon(async {
        let mut before = u64::MAX;
        while taken.load(Ordering::SeqCst) != before {
            before = taken.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    })
    .await;
    writers.iter().for_each(|writer| writer.abort());
    taken.load(Ordering::SeqCst)
}

const MIB: u64 = 1024 * 1024;
/// What the node may hold unread of one peer, and what the raw peer itself has under way.
const UNREAD: u64 = limits::WINDOW_MAX_BYTES as u64 + MIB;

fn greedy() -> RawPeer {
    RawPeer::new(|transport| {
        transport.send_window(MIB / 2);
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_announced_and_never_finished_hold_no_more_than_the_sessions_share() {
    let node = node().await;
    let (peer, friend) = honest(&node).await;
    let session = greedy().greet(&node).await.answering();
    let begin = |stream| {
        let mut bytes = session.call(stream, &header("echo/one", Shape::Unary, ContentType::Raw));
        varint::put(&mut bytes, limits::BODY_BYTES as u64 + 1);
        bytes
    };
    let taken = pinned(&session, 100, begin, limits::BODY_BYTES - 1).await;
    println!("took {} MiB of 400", taken / MIB);
    assert!(taken <= limits::SESSION_BODY_BYTES as u64 + UNREAD, "{taken} bytes");
    served(&friend).await;
    session.connection.close(0u32.into(), b"");
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_never_finished_hold_no_more_than_the_sessions_share() {
    let node = node().await;
    let (peer, friend) = honest(&node).await;
    let session = greedy().greet(&node).await.answering();
    let begin = |stream| {
        let mut bytes = session.head(stream);
        bytes.push(Purpose::Call as u8);
        varint::put(&mut bytes, limits::CALL_HEADER_BYTES as u64);
        bytes
    };
    let taken = pinned(&session, 1_000, begin, limits::CALL_HEADER_BYTES - 1).await;
    println!("took {} MiB of 160", taken / MIB);
    assert!(taken <= limits::SESSION_BODY_BYTES as u64 + UNREAD, "{taken} bytes");
    served(&friend).await;
    session.connection.close(0u32.into(), b"");
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test]
async fn pings_without_end_whose_pongs_nobody_reads_cost_their_sender_the_session() {
    let node = node().await;
    let (peer, friend) = honest(&node).await;
    let raw = RawPeer::new(|transport| {
        transport.stream_receive_window(1_000u32.into());
    });
    let mut session = raw.greet(&node).await;
    let mut flood = Vec::new();
    (0..1_000).for_each(|seq| put_message(&mut flood, &Control::Ping { seq }));
    let connection = session.connection.clone();
    let flooding = async {
        while session.control.send.write_all(&flood).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let (code, ()) = tokio::join!(close_code(&connection), flooding);
    assert_eq!(code, CloseCode::Protocol);
    served(&friend).await;
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test]
async fn many_links_of_one_silent_peer_keep_nobody_else_out() {
    let node = node().await;
    let raw = RawPeer::plain();
    let links = join_all((0..150).map(|_| raw.connect(&node))).await;
    let begun = Instant::now();
    let (peer, session) = honest(&node).await;
    println!("beside {} silent links a session came up in {:?}", links.len(), begun.elapsed());
    served(&session).await;
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test]
async fn who_dials_a_liar_closes_the_link_and_dials_again() {
    let node = node().await;
    let other = hello();
    let session = Some(SessionId::random());
    let lies: Vec<Vec<Control>> = vec![
        vec![Control::Ping { seq: 0 }],
        vec![Control::Hello(Hello { session, attach: 99, ..hello() })],
        vec![Control::Hello(Hello { session, role: voltmesh::proto::control::Role::Visitor, ..hello() })],
        vec![Control::Hello(Hello { session, versions: (7, 9), ..hello() })],
        vec![Control::Hello(Hello { session, boot: other.boot, ..hello() }), Control::Hello(other.clone())],
        vec![
            Control::Hello(Hello { session, boot: BootId([7; 16]), ..hello() }),
            Control::Attach(attach(SessionId::random(), 1)),
        ],
    ];
    let mut codes = Vec::new();
    for lie in lies {
        let raw = RawPeer::plain();
        let to_raw = node.hold(raw.id, &[raw.endpoint.local_addr().unwrap()]);
        let connection = soon(raw.answer_with(&lie)).await;
        codes.push(close_code(&connection).await);
        assert!(to_raw.id().is_none(), "{lie:?}");
    }
    use CloseCode::{Protocol, Version};
    assert_eq!(codes, [Protocol, Protocol, Protocol, Version, Protocol, Protocol]);
    // One that tells the truth in the end is dialled again, and all is well.
    let raw = RawPeer::plain();
    let to_raw = node.hold(raw.id, &[raw.endpoint.local_addr().unwrap()]);
    soon(raw.answer_with(&[Control::Ping { seq: 0 }])).await;
    let session = soon(raw.answer()).await;
    soon(to_raw.connected(SOON)).await.unwrap();
    drop(session);
    soon(node.shutdown()).await;
}
