//! A host of wires that lies, to whoever publishes and subscribes there: each lie is an error to the one it was told, and harms
//! nobody else. Nothing panics, nothing waits for ever, nothing grows without bound.

mod support;

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use support::raw::{RawPeer, RawStreams};
use support::{SOON, loopback, soon, until};
use voltmesh::node::config::Config;
use voltmesh::proto::close::StreamCode;
use voltmesh::proto::codec;
use voltmesh::proto::frame::{Frames, put_frame, put_message};
use voltmesh::proto::limits::{self, Limits};
use voltmesh::proto::status::{Code, Status};
use voltmesh::proto::stream::{Head, Purpose};
use voltmesh::proto::wire::{Answer, Ask, put_chunk, put_end, put_gap};
use voltmesh::wire::{Chunk, Cursor, Delivery, From, Options, PublishError, SubscribeError, Subscription, WireError, WireInfo};
use voltmesh::{Node, Session};

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics from now on: those of tasks would go unseen.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.location().is_some_and(|at| at.file().starts_with("src/")) {
                PANICS.fetch_add(1, SeqCst);
            }
            before(info);
        }));
    });
}

fn no_panics() {
    assert_eq!(PANICS.load(SeqCst), 0, "the library panicked");
}

/// What a host says to an ask, and how it goes on.
enum Says {
    /// These bytes, and then nothing.
    Bytes(Vec<u8>),
    /// These bytes, and, when more has come, those.
    Then(Vec<u8>, Vec<u8>),
    /// These bytes, and then the end.
    AndEnds(Vec<u8>),
    /// These bytes, and then it gives the stream up.
    AndResets(Vec<u8>, StreamCode),
    /// These bytes again and again.
    Forever(Vec<u8>),
}

/// A node that does not wait, when it goes down, for a peer that says nothing.
async fn impatient() -> Node {
    let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
    Node::builder().config(Config { limits, ..Config::default() }).listen(loopback()).bind().await.unwrap()
}

/// A node with a session to a host that answers what it is asked about wires in this way. The asks are counted.
async fn lied_to(says: impl Fn(Ask) -> Says + Send + 'static) -> (Node, Session, Arc<AtomicUsize>) {
    count_panics();
    let (raw, node) = (RawPeer::plain(), impatient().await);
    let session = node.hold(raw.id, &[raw.endpoint.local_addr().unwrap()]);
    let streams = soon(raw.answer()).await.answering();
    let asked = Arc::<AtomicUsize>::default();
    let counted = asked.clone();
    tokio::spawn(async move {
        let _raw = raw;
        serve(streams, says, counted).await;
    });
    soon(session.connected(SOON)).await.unwrap();
    (node, session, asked)
}

async fn serve(streams: RawStreams, says: impl Fn(Ask) -> Says, asked: Arc<AtomicUsize>) {
    let mut open = Vec::new();
    while let Ok((mut send, mut recv)) = streams.connection.accept_bi().await {
        let Some(ask) = ask(&mut recv).await else {
            open.push((send, recv));
            continue;
        };
        asked.fetch_add(1, SeqCst);
        match says(ask) {
            Says::Bytes(bytes) => drop(send.write_all(&bytes).await),
            Says::Then(first, second) => {
                let _ = send.write_all(&first).await;
                let _ = recv.read_chunk(4_096, true).await;
                let _ = send.write_all(&second).await;
            }
            Says::AndEnds(bytes) => {
                let _ = send.write_all(&bytes).await;
                let _ = send.finish();
            }
            Says::AndResets(bytes, code) => {
                let _ = send.write_all(&bytes).await;
                let _ = send.reset((code as u32).into());
            }
            Says::Forever(bytes) => while send.write_all(&bytes).await.is_ok() {},
        }
        open.push((send, recv));
    }
}

/// What is asked on a stream about wires; `None` if it is about something else.
async fn ask(recv: &mut quinn::RecvStream) -> Option<Ask> {
    let mut bytes = Vec::new();
    loop {
        let chunk = recv.read_chunk(4_096, true).await.ok()??;
        bytes.extend_from_slice(&chunk.bytes);
        let Ok(Some((_, length))) = Head::get(false, &bytes[1..]) else { continue };
        let Some(purpose) = bytes.get(1 + length) else { continue };
        if Purpose::from_byte(*purpose) != Some(Purpose::Wire) {
            return None;
        }
        let mut frames = Frames::new(4_096);
        frames.push(Bytes::copy_from_slice(&bytes[2 + length..]));
        if let Some(frame) = frames.next_frame().unwrap() {
            return Some(codec::decode(&frame).unwrap());
        }
    }
}

fn answers(answers: &[Answer]) -> Vec<u8> {
    let mut out = Vec::new();
    answers.iter().for_each(|answer| put_message(&mut out, answer));
    out
}

fn begin(epoch: u64, next: u64) -> Vec<u8> {
    answers(&[Answer::Begin { epoch, next }])
}

fn with(mut bytes: Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    put(&mut bytes);
    bytes
}

fn chunk(out: &mut Vec<u8>) {
    put_chunk(out, &Chunk::new("x")).unwrap();
}

/// What a subscription gives before it fails, and how it fails.
async fn until_it_fails(subscribed: Result<Subscription, SubscribeError>) -> (usize, SubscribeError) {
    let mut given = 0;
    let mut subscription = match subscribed {
        Ok(subscription) => subscription,
        Err(error) => return (0, error),
    };
    loop {
        match soon(subscription.next()).await {
            Ok(_) => given += 1,
            Err(error) => {
                assert_eq!(soon(subscription.next()).await.unwrap_err(), error, "it says so again");
                return (given, error);
            }
        }
    }
}

#[tokio::test]
async fn a_subscriber_that_is_lied_to_is_told_so() {
    let info = |name: &str| WireInfo {
        name: name.into(),
        options: Options::default(),
        epoch: 1,
        first: 1,
        next: 1,
        bytes: 0,
        publishers: 0,
        subscribers: 0,
        broken: None,
    };
    let lies: Vec<(&str, Vec<u8>, From, usize)> = vec![
        ("an epoch that cannot be", begin(0, 1), From::Live, 0),
        ("no number", begin(7, 0), From::Live, 0),
        ("an answer to something else", answers(&[Answer::Created { epoch: 1, existed: true }]), From::Live, 0),
        ("another answer to something else", answers(&[Answer::Wire(info("w"))]), From::Live, 0),
        ("a publisher's answer", answers(&[Answer::Ready { epoch: 1, last: 0, known: true }]), From::Live, 0),
        ("another beginning than asked for", begin(7, 6), From::Seq(5), 0),
        ("what was there before the cursor", begin(7, 5), From::After(Cursor { epoch: 7, seq: 5 }), 0),
        ("less than is left", begin(7, 7), From::After(Cursor { epoch: 7, seq: 5 }), 0),
        ("past the last number", with(begin(7, u64::MAX), |out| (0..3).for_each(|_| chunk(out))), From::Live, 1),
        ("a cursor at the end of all numbers", begin(7, 1), From::After(Cursor { epoch: 7, seq: u64::MAX }), 0),
        ("a gap in what has come", with(with(begin(7, 5), chunk), |out| put_gap(out, 5, 5)), From::Live, 1),
        ("a gap that lies ahead", with(begin(7, 5), |out| put_gap(out, 6, 9)), From::Live, 0),
        ("a gap backwards", with(begin(7, 5), |out| put_frame(out, &[2, 5, 4])), From::Live, 0),
        ("a record of no kind", with(begin(7, 5), |out| put_frame(out, &[9])), From::Live, 0),
        ("an empty record", with(begin(7, 5), |out| put_frame(out, &[])), From::Live, 0),
        ("metadata that is none", with(begin(7, 5), |out| put_frame(out, &[1, 40, 1])), From::Live, 0),
        ("a length beyond all bounds", with(begin(7, 5), |out| out.extend([0xbf, 0xff, 0xff, 0xff])), From::Live, 0),
        ("a length longer than need be", with(begin(7, 5), |out| out.extend([0x40, 1, 0])), From::Live, 0),
        ("an answer that is too long", with(Vec::new(), |out| out.extend([0xbf, 0xff, 0xff, 0xff])), From::Live, 0),
    ];
    let told = lies.into_iter().map(async |(lie, bytes, from, before)| {
        let (node, session, _) = lied_to(move |_| Says::Bytes(bytes.clone())).await;
        let subscribed = soon(session.wire("w").unwrap().subscribe(from)).await;
        let (given, error) = until_it_fails(subscribed).await;
        assert!(matches!(error, SubscribeError::Broken(_)), "{lie}: {error:?}");
        assert_eq!(given, before, "{lie}");
        soon(node.shutdown()).await;
    });
    join_all(told).await;
    no_panics();
}

#[tokio::test]
async fn a_cursor_at_the_end_of_all_numbers_of_another_epoch_is_a_gap() {
    let (node, session, _) = lied_to(|_| Says::Bytes(with(begin(7, 3), chunk))).await;
    let cursor = Cursor { epoch: 6, seq: u64::MAX };
    let mut subscription = soon(session.wire("w").unwrap().subscribe(From::After(cursor))).await.unwrap();
    let first = soon(subscription.next()).await.unwrap();
    assert_eq!(first, Delivery::Gap { epoch: 6, from: u64::MAX, to: None });
    assert_eq!(soon(subscription.next()).await.unwrap(), Delivery::Gap { epoch: 7, from: 1, to: Some(2) });
    assert!(matches!(soon(subscription.next()).await.unwrap(), Delivery::Chunk { seq: 3, .. }));
    soon(node.shutdown()).await;
    no_panics();
}

#[tokio::test]
async fn a_host_that_breaks_off_is_asked_again_and_then_given_up() {
    for whole in [false, true] {
        let (node, session, asked) = lied_to(move |_| match whole {
            true => Says::AndEnds(begin(7, 5)),
            false => Says::AndResets(Vec::new(), StreamCode::Cancelled),
        })
        .await;
        let (given, error) = until_it_fails(soon(session.wire("w").unwrap().subscribe(From::Seq(5))).await).await;
        assert!(given == 0 && matches!(error, SubscribeError::Broken(_)), "{error:?}");
        assert_eq!(asked.load(SeqCst), 7);
        soon(node.shutdown()).await;
    }
    no_panics();
}

#[tokio::test]
async fn what_a_host_says_for_good_is_not_asked_again() {
    let (node, session, asked) = lied_to(|_| Says::AndResets(Vec::new(), StreamCode::Kind)).await;
    let wire = session.wire("w").unwrap();
    let refused = |status: &Status| assert_eq!(status.code, Code::Unimplemented);
    match soon(wire.subscribe(From::Live)).await {
        Err(SubscribeError::Refused(status)) => refused(&status),
        other => panic!("{other:?}"),
    }
    match soon(wire.create(Options::default())).await {
        Err(WireError::Refused(status)) => refused(&status),
        other => panic!("{other:?}"),
    }
    match soon(wire.publisher().publish("x")).await {
        Err(PublishError::Refused(status)) => refused(&status),
        other => panic!("{other:?}"),
    }
    assert_eq!(asked.load(SeqCst), 3);
    soon(node.shutdown()).await;
    // Nor is what it says at the end of a subscription.
    let status = Status::new(Code::ResourceExhausted, "too slow");
    let said = status.clone();
    let (node, session, asked) = lied_to(move |_| Says::AndEnds(with(with(begin(7, 5), chunk), |out| put_end(out, &said)))).await;
    let (given, error) = until_it_fails(soon(session.wire("w").unwrap().subscribe(From::Live)).await).await;
    assert_eq!((given, error, asked.load(SeqCst)), (1, SubscribeError::Refused(status), 1));
    soon(node.shutdown()).await;
    no_panics();
}

#[tokio::test]
async fn a_publisher_that_is_lied_to_says_that_nothing_is_known() {
    let ready = |last, known| Answer::Ready { epoch: 7, last, known };
    let lies = [
        ("more is acknowledged than was sent", answers(&[ready(0, false), Answer::Ack { count: 1_000, first: 1 }])),
        ("the same, where numbers end", answers(&[ready(u64::MAX, true), Answer::Ack { count: 9, first: u64::MAX - 9 }])),
        ("a subscriber's answer", answers(&[ready(0, true), Answer::Begin { epoch: 7, next: 1 }])),
        ("nothing that can be read", with(answers(&[ready(0, true)]), |out| put_frame(out, &[200]))),
        ("another answer than to publishing", begin(7, 1)),
        ("no epoch", answers(&[Answer::Ready { epoch: 0, last: 0, known: true }])),
        ("ready twice", answers(&[ready(0, true), ready(0, true)])),
    ];
    let told = lies.into_iter().map(async |(lie, bytes)| {
        let (node, session, _) = lied_to(move |_| Says::Bytes(bytes.clone())).await;
        let publisher = session.wire("w").unwrap().publisher();
        let error = soon(publisher.publish("x")).await.unwrap_err();
        assert!(matches!(error, PublishError::OutcomeUnknown(_) | PublishError::NotSent(_)), "{lie}: {error:?}");
        assert_eq!(soon(publisher.flush()).await.unwrap_err(), error, "{lie}");
        assert_eq!(soon(publisher.flush()).await, Ok(()), "{lie}");
        soon(node.shutdown()).await;
    });
    join_all(told).await;
    // The last number there is goes through; what may not be true harms only whoever believes it.
    let acknowledged = || answers(&[Answer::Ack { count: 1, first: u64::MAX - 1 }]);
    let (node, session, _) = lied_to(move |_| Says::Then(answers(&[ready(u64::MAX, true)]), acknowledged())).await;
    let receipt = soon(session.wire("w").unwrap().publisher().publish("x")).await.unwrap();
    assert_eq!(receipt.seq, Some(u64::MAX - 1));
    soon(node.shutdown()).await;
    no_panics();
}

#[tokio::test]
async fn a_list_without_end_is_given_up() {
    let info = WireInfo {
        name: "w".into(),
        options: Options::default(),
        epoch: 1,
        first: 1,
        next: 1,
        bytes: 0,
        publishers: 0,
        subscribers: 0,
        broken: Some("x".repeat(500)),
    };
    let (node, session, _) = lied_to(move |_| Says::Forever(answers(&[Answer::Wire(info.clone())]))).await;
    assert!(matches!(soon(session.wires("*")).await, Err(WireError::Nonsense(_))));
    soon(node.shutdown()).await;
    no_panics();
}

/// A host that was there, and is not.
async fn nobody() -> (Node, Session) {
    let (node, raw) = (impatient().await, RawPeer::plain());
    let session = node.hold(raw.id, &[raw.endpoint.local_addr().unwrap()]);
    drop(raw);
    (node, session)
}

#[tokio::test]
async fn nobody_is_waited_for_longer_than_was_asked() {
    let (node, session) = nobody().await;
    let wire = session.wire("w").unwrap().within(Duration::from_millis(50));
    assert!(matches!(soon(wire.subscribe(From::Live)).await, Err(SubscribeError::Late(_))));
    assert!(matches!(soon(wire.create(Options::default())).await, Err(WireError::NotSent(_))));
    let publisher = wire.publisher();
    for _ in 0..2 {
        assert!(matches!(soon(publisher.publish("x")).await, Err(PublishError::NotSent(_))));
    }
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn a_subscription_that_waited_in_vain_can_be_asked_again() {
    let (node, session, asked) = lied_to(|_| Says::Bytes(with(begin(7, 5), chunk))).await;
    let wire = session.wire("w").unwrap().within(Duration::from_millis(50));
    let mut subscription = soon(wire.subscribe(From::Live)).await.unwrap();
    soon(subscription.next()).await.unwrap();
    node.release(session.peer());
    until(|| session.id().is_none()).await;
    for _ in 0..2 {
        let error = soon(subscription.next()).await.unwrap_err();
        assert!(matches!(error, SubscribeError::Late(_) | SubscribeError::Closed(_)), "{error:?}");
    }
    assert_eq!((subscription.cursor(), asked.load(SeqCst)), (Cursor { epoch: 7, seq: 5 }, 1));
    soon(node.shutdown()).await;
}

/// Chunks handed over to a host that never answers are not waited for when the node is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ends_leaves_no_publisher_waiting() {
    for dropped in [false, true] {
        let (node, session, asked) = lied_to(|_| Says::Bytes(answers(&[Answer::Ready { epoch: 7, last: 0, known: true }]))).await;
        let publisher = session.wire("w").unwrap().publisher();
        let sent = soon(publisher.send("sent")).await.unwrap();
        until(|| asked.load(SeqCst) == 1).await;
        let full = tokio::spawn({
            let publisher = publisher.clone();
            async move {
                let chunk = vec![0; limits::CHUNK_BYTES];
                while publisher.push(chunk.clone()).await.is_ok() {}
            }
        });
        if !dropped {
            soon(node.shutdown()).await;
        }
        drop((node, session));
        assert!(soon(sent).await.is_err());
        assert!(soon(publisher.publish("later")).await.is_err());
        soon(full).await.unwrap();
        let _ = soon(publisher.flush()).await;
    }
    no_panics();
}
