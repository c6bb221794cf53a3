//! Peers with a valid key that lie about what they have, what is over, and which session is theirs, on raw quinn over real UDP:
//! the node refuses what cannot be, holds no more than it may, and goes on serving others.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use support::raw::{RawPeer, RawSession, RawStreams, attach, close_code, header, hello, message, rest, stands};
use support::{Alive, echo, long, node, open_node, soon, until};
use voltmesh::proto::body::ContentType;
use voltmesh::proto::call::Shape;
use voltmesh::proto::close::{CloseCode, StreamCode};
use voltmesh::proto::control::{Attach, BootId, Control, Hello, LiveStream, Progress, Run, SessionId};
use voltmesh::proto::limits;
use voltmesh::proto::status::Status;
use voltmesh::session::SessionInfo;
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

/// Echoes, and a method that never answers.
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

/// What a stream carries whose call is never answered.
fn stuck_call(session: &RawStreams, stream: u64) -> Vec<u8> {
    let mut bytes = session.call(stream, &header("echo/stuck", Shape::Unary, ContentType::Bincode));
    bytes.extend(message(&[]));
    bytes
}

/// A call on this stream that echoes "hi".
fn echo_call(session: &RawStreams, stream: u64) -> Vec<u8> {
    let mut bytes = session.call(stream, &header("echo/one", Shape::Unary, ContentType::Raw));
    bytes.extend(message(b"hi"));
    bytes
}

/// What answers it: a message of 2 bytes, and OK.
const ECHOED: [u8; 6] = [3, 0, b'h', b'i', 1, 1];

async fn say(session: &RawStreams, bytes: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, recv) = session.open(bytes).await;
    let _ = send.finish();
    (send, recv)
}

/// A call on this stream, answered; nobody says that the answer has come.
async fn answered(session: &RawStreams, stream: u64) {
    let (_send, mut recv) = say(session, &echo_call(session, stream)).await;
    assert_eq!(&rest(&mut recv).await.unwrap()[..], ECHOED);
}

/// The node's session with this raw peer, if it is up.
async fn session_of(node: &Node, raw: &RawPeer) -> Option<SessionInfo> {
    node.peers().await.unwrap().into_iter().find(|peer| peer.id == raw.id)?.session
}

fn told(over: &[(u64, u64)], live: Vec<LiveStream>) -> Control {
    let over = over.iter().map(|&(first, count)| Run { first, count }).collect();
    Control::Progress(Progress { over, live })
}

#[tokio::test]
async fn a_session_that_is_not_the_peers_own_is_not_resumed() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let (victim, thief) = (RawPeer::plain(), RawPeer::plain());
    let theirs = victim.greet(&node).await.answering();
    let _running = say(&theirs, &stuck_call(&theirs, 2)).await;
    until(|| alive.now() == 1).await;
    for wanted in [theirs.session, SessionId::random()] {
        // Another one is agreed on, whatever the list says.
        let hello = Hello { session: Some(wanted), attach: theirs.attach + 1, ..hello() };
        let (raw, list) = thief.attach_as(&node, hello.clone(), 100, vec![stands(2, 0), stands(8, 0)]).await;
        assert_ne!(raw.session, wanted);
        assert_eq!(list, [Attach { next_id: 1, ..attach(raw.session, raw.attach) }]);
        // Who attaches the one it wanted is closed.
        let hello = Hello { attach: raw.attach + 1, boot: BootId::random(), ..hello };
        let (connection, mut control, agreed) = thief.hello_as(&node, &hello).await;
        assert_ne!(agreed.session, Some(wanted));
        control.send(&Control::Attach(attach(wanted, agreed.attach))).await;
        assert_eq!(close_code(&connection).await, CloseCode::Protocol);
    }
    assert_eq!(alive.now(), 1);
    answered(&theirs, 4).await;
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn another_process_does_not_resume_and_ends_what_was_in_flight() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let raw = RawPeer::plain();
    let before = raw.greet(&node).await.answering();
    let _running = say(&before, &stuck_call(&before, 2)).await;
    until(|| alive.now() == 1).await;
    let hello =
        Hello { boot: BootId::random(), session: Some(before.session), attach: before.attach + 1, ..before.hello.clone() };
    let (after, list) = raw.attach_as(&node, hello, 4, vec![stands(2, 0)]).await;
    assert_ne!(after.session, before.session);
    assert!(list.iter().all(|part| part.live.is_empty()));
    assert_eq!(close_code(&before.connection).await, CloseCode::Replaced);
    until(|| alive.now() == 0).await;
    answered(&after, 4).await;
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn a_session_goes_on_where_it_stopped_and_its_call_runs_once() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let raw = RawPeer::plain();
    let before = raw.greet(&node).await.answering();
    let _running = say(&before, &stuck_call(&before, 2)).await;
    answered(&before, 4).await;
    until(|| alive.now() == 1).await;
    before.lose().await;
    // All but two bytes of the answer were read; stream 6 was opened and has not come.
    let (after, list) = raw.go_on(&node, &before, 8, vec![stands(2, 0), stands(4, 4), stands(6, 0)]).await;
    assert_eq!(after.session, before.session);
    let own = echo_call(&before, 4).len() as u64 - before.head(4).len() as u64;
    let live = &list[0].live;
    assert_eq!(live.iter().map(|stream| stream.stream).collect::<Vec<_>>(), [2, 4]);
    // It read the one message there can be, and no further.
    assert_eq!((live[1].received, live[1].stop), (own, Some(0)));
    let (_send, mut rest_of) = say(&after, &after.carried(4, own, 4)).await;
    assert_eq!(&rest(&mut rest_of).await.unwrap()[..], &ECHOED[4..]);
    // What is here already comes again, and changes nothing.
    let again = [after.carried(2, 0, 0), stuck_call(&after, 2).split_off(after.head(2).len())].concat();
    let (_send, _silent) = say(&after, &again).await;
    let unseen = [after.carried(6, 0, 0), echo_call(&after, 6).split_off(after.head(6).len())].concat();
    let (_send, mut fresh) = say(&after, &unseen).await;
    assert_eq!(&rest(&mut fresh).await.unwrap()[..], ECHOED);
    assert_eq!((alive.now(), alive.ever()), (1, 1));
    soon(node.shutdown()).await;
}

/// The node closed the link and the session, with everything in flight: it knows neither any more.
async fn session_is_gone(node: &Node, raw: &RawPeer, session: &RawStreams, alive: &Alive, why: &str) {
    assert_eq!(close_code(&session.connection).await, CloseCode::Protocol, "{why}");
    until(|| alive.now() == 0).await;
    let (after, _) = raw.go_on(node, session, 0, Vec::new()).await;
    assert_ne!(after.session, session.session, "{why}");
    answered(&after, 2).await;
}

#[tokio::test]
async fn who_acknowledges_more_than_was_sent_loses_the_session() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let (peer, friend) = honest(&node).await;
    let raw = RawPeer::plain();
    let begun = async |stream| {
        let mut session = raw.greet(&node).await;
        let running = say(&session, &stuck_call(&session, stream)).await;
        until(|| alive.now() == 1).await;
        // The first pings are answered by what the test does next.
        session.control.send(&told(&[], vec![stands(stream, 0)])).await;
        (session, running)
    };
    for received in [1, 1 << 32, u64::MAX] {
        let (mut session, _running) = begun(2).await;
        session.control.send(&told(&[], vec![stands(2, received)])).await;
        session_is_gone(&node, &raw, &session, &alive, "a progress").await;
        let (session, _running) = begun(2).await;
        let (after, _) = raw.go_on(&node, &session, 4, vec![stands(2, received)]).await;
        assert_eq!(after.session, session.session);
        session_is_gone(&node, &raw, &after, &alive, "an attach").await;
    }
    served(&friend).await;
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

#[tokio::test]
async fn runs_that_are_not_the_peers_to_end_lose_the_session() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let raw = RawPeer::plain();
    for over in [&[(1, 1)][..], &[(4, 1), (7, 1 << 60)], &[(u64::MAX - 2, 1)]] {
        let mut session = raw.greet(&node).await;
        let _running = say(&session, &stuck_call(&session, 2)).await;
        until(|| alive.now() == 1).await;
        session.control.send(&told(over, Vec::new())).await;
        session_is_gone(&node, &raw, &session, &alive, "runs").await;
    }
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn a_head_that_carries_on_what_cannot_be_ends_the_session() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let raw = RawPeer::plain();
    // Bytes left out, by one and by many; more than was sent.
    for (past, received) in [(1, 0), (1 << 61, 0), (0, 1), (0, 1 << 61)] {
        let before = raw.greet(&node).await.answering();
        let _running = say(&before, &stuck_call(&before, 2)).await;
        until(|| alive.now() == 1).await;
        let (after, list) = raw.go_on(&node, &before, 4, vec![stands(2, 0)]).await;
        assert_eq!(after.session, before.session);
        let _stream = say(&after, &after.carried(2, list[0].live[0].received + past, received)).await;
        session_is_gone(&node, &raw, &after, &alive, &format!("{past} {received}")).await;
    }
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn who_asks_for_what_it_has_acknowledged_loses_the_link() {
    let node = node().await;
    let raw = RawPeer::plain();
    let mut session = raw.greet(&node).await;
    answered(&session, 2).await;
    session.control.send(&told(&[], vec![stands(2, ECHOED.len() as u64)])).await;
    // Once its answer is in, the acknowledgement is too.
    session.control.send(&Control::Ping { seq: 0 }).await;
    while session.control.next().await != (Control::Pong { seq: 0 }) {}
    let (after, list) = raw.go_on(&node, &session, 4, vec![stands(2, 0)]).await;
    let _stream = say(&after, &after.carried(2, list[0].live[0].received, 0)).await;
    assert_eq!(close_code(&after.connection).await, CloseCode::Protocol);
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn a_stream_that_is_over_or_was_never_seen_is_not_carried_on() {
    let node = node().await;
    let raw = RawPeer::plain();
    let mut before = raw.greet(&node).await;
    answered(&before, 2).await;
    answered(&before, 4).await;
    before.control.send(&told(&[(2, 1)], Vec::new())).await;
    before.control.send(&Control::Ping { seq: 0 }).await;
    while before.control.next().await != (Control::Pong { seq: 0 }) {}
    // 2 is over by its progress, 4 by not being listed; 6 and 8 never came.
    let (after, list) = raw.go_on(&node, &before, 10, vec![stands(6, 0)]).await;
    assert_eq!(list[0].live.iter().map(|stream| stream.stream).collect::<Vec<_>>(), [4]);
    let call = echo_call(&after, 2).split_off(after.head(2).len());
    for (stream, offset, received) in
        [(2, 0, 0), (2, 9, 3), (4, 0, 0), (4, 1, 6), (6, 1, 0), (6, 0, 1), (8, 0, 0), (11, 0, 0), (1 << 61, 0, 0)]
    {
        let (_send, mut recv) = say(&after, &[after.carried(stream, offset, received), call.clone()].concat()).await;
        let code = rest(&mut recv).await.unwrap_err().into_inner();
        assert_eq!(code, StreamCode::Closed as u64, "{stream} {offset} {received}");
    }
    answered(&after, 10).await;
    assert_eq!(node.counts().panics, 0);
    soon(node.shutdown()).await;
}

#[tokio::test]
async fn huge_runs_end_what_there_is_and_cost_no_more_than_that() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let mut session = RawPeer::plain().greet(&node).await;
    let mut running = Vec::new();
    for call in 1..=20 {
        running.push(say(&session, &stuck_call(&session, 2 * call)).await);
    }
    until(|| alive.now() == 20).await;
    session.control.send(&told(&[(2, 2), (22, 1 << 60)], Vec::new())).await;
    until(|| alive.now() == 8).await;
    // What is over stays over; what comes after the run, past all that was seen, is new.
    let (_send, mut recv) = say(&session, &stuck_call(&session, 2)).await;
    assert_eq!(rest(&mut recv).await.unwrap_err().into_inner(), StreamCode::Closed as u64);
    assert_eq!(alive.ever(), 20);
    soon(node.shutdown()).await;
}

/// The most entries and runs there may be, for streams that are here and for ones that are not.
fn flood() -> [Control; 3] {
    let most = limits::PROGRESS_ENTRIES as u64;
    let live: Vec<_> = (0..most).map(|stream| stands(2 * stream, 0)).collect();
    let sparse: Vec<_> = (0..most).map(|run| (2_000 + 4 * run, 1)).collect();
    let wide: Vec<_> = (0..most).map(|run| (2_000 + (run << 12), 1 << 11)).collect();
    let endless: Vec<_> = (0..most).map(|run| ((1 << 20) + (run << 50), 1 << 48)).collect();
    [sparse, wide, endless].map(|over| told(&over, live.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_without_end_keeps_nobody_from_being_served() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let (peer, friend) = honest(&node).await;
    let session = RawPeer::plain().greet(&node).await.answering();
    let mut running = Vec::new();
    for call in 1..=500 {
        running.push(say(&session, &stuck_call(&session, 2 * call)).await);
    }
    until(|| alive.now() == 500).await;
    let rounds = if long() { 1_000 } else { 50 };
    let begun = Instant::now();
    for message in (0..rounds).flat_map(|_| flood()) {
        session.tell(message);
    }
    session.tell(told(&[(2, 500)], Vec::new()));
    let mut slowest = Duration::ZERO;
    while alive.now() > 0 {
        let asked = Instant::now();
        served(&friend).await;
        slowest = slowest.max(asked.elapsed());
    }
    println!("{} messages of progress in {:?}; meanwhile a call took {slowest:?} at most", 3 * rounds, begun.elapsed());
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert_eq!((session.connection.close_reason(), node.counts().panics), (None, 0));
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

/// A call whose answer has so many bytes.
fn large_call(session: &RawStreams, stream: u64, bytes: usize) -> Vec<u8> {
    let mut call = session.call(stream, &header("large/answer", Shape::Unary, ContentType::Bincode));
    call.extend(message(&voltmesh::proto::body::encode(ContentType::Bincode, &bytes).unwrap()));
    call
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_acknowledges_pile_up_within_bounds_and_hold_up_nobody_else() {
    let answer = |_cx, bytes: usize| async move { Ok(vec![7u8; bytes]) };
    let node = support::closed().open(true).service(echo()).service(Service::new("large").unary("answer", answer));
    let node = node.bind().await.unwrap();
    let (peer, friend) = honest(&node).await;
    let raw = RawPeer::plain();
    let session = raw.greet(&node).await.answering();
    let most = limits::LIVE_STREAMS as u64;
    // Answered and read, each; nobody says so.
    for call in 1..=most - 1 {
        answered(&session, 2 * call).await;
    }
    assert_eq!(session_of(&node, &raw).await.unwrap().streams as u64, most - 1);
    // The last there is room for, and two that have to wait.
    let mut waiting = Vec::new();
    for call in [most, most + 1, most + 2] {
        waiting.push(say(&session, &echo_call(&session, 2 * call)).await);
    }
    let mut last = waiting.remove(0);
    assert_eq!(&rest(&mut last.1).await.unwrap()[..], ECHOED);
    let info = session_of(&node, &raw).await.unwrap();
    assert_eq!((info.streams as u64, info.handling), (most, 0));
    served(&friend).await;
    // Room for one, and it is served; for all, and so is the other.
    session.tell(told(&[(2, 1)], Vec::new()));
    session.tell(told(&[(4, most - 1)], Vec::new()));
    for (_, recv) in &mut waiting {
        assert_eq!(&rest(recv).await.unwrap()[..], ECHOED);
    }
    served(&friend).await;
    // Large ones stop where what is kept of a stream ends; and no more of them are made than the share has room for.
    let (calls, came) = (8, Arc::new(AtomicUsize::new(0)));
    for call in 0..calls {
        let (_send, mut recv) = say(&session, &large_call(&session, 2 * (most + 10 + call), 3 << 20)).await;
        let came = came.clone();
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
                came.fetch_add(chunk.bytes.len(), Ordering::SeqCst);
            }
        });
    }
    until(|| came.load(Ordering::SeqCst) > limits::STREAM_KEPT_NEXT_BYTES).await;
    served(&friend).await;
    let answer = friend.call::<_, Vec<u8>>("large/answer", &(3usize << 20));
    assert_eq!(soon(answer).await.unwrap().len(), 3 << 20);
    let came = came.load(Ordering::SeqCst);
    println!("{} KiB of {calls} answers of 3 MiB came", came >> 10);
    assert!(came <= limits::SESSION_BODY_BYTES / (3 << 20) * limits::STREAM_KEPT_NEXT_BYTES, "{came}");
    session.connection.close(0u32.into(), b"");
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}

/// Puts all live streams of the session on this link, as the node has them.
async fn carry_all(session: &RawSession, list: &[Attach]) -> Vec<(SendStream, RecvStream)> {
    let mut carried = Vec::new();
    for stream in list.iter().flat_map(|part| &part.live) {
        carried.push(session.open(&session.carried(stream.stream, stream.received, 0)).await);
    }
    carried
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_leaves_and_comes_back_without_end_leaves_nothing_behind() {
    let (alive, _ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let (peer, friend) = honest(&node).await;
    let raw = RawPeer::plain();
    let mut session = raw.greet(&node).await;
    let mut held = Vec::new();
    for call in 1..=50 {
        held.push(say(&session, &stuck_call(&session, 2 * call)).await);
    }
    until(|| alive.now() == 50).await;
    let (mut next, mut left) = (102, Vec::new());
    for round in 0..if long() { 5_000 } else { 500 } {
        // With the old link still up, and after its loss; some streams are carried on, some calls are new, some over.
        if round % 2 == 0 {
            session.lose().await;
        }
        let live = (1..=50).map(|call| stands(2 * call, 0)).collect();
        let (after, list) = raw.go_on(&node, &session, next, live).await;
        assert_eq!(after.session, session.session, "round {round}");
        // And what was new before that, if it came.
        let listed = list.iter().map(|part| part.live.len()).sum::<usize>();
        assert!((50..=52).contains(&listed), "round {round}: {listed}");
        held = if round % 3 == 0 { carry_all(&after, &list).await } else { Vec::new() };
        if round % 5 == 0 {
            answered(&after, next).await;
            held.push(say(&after, &stuck_call(&after, next + 2)).await);
            next += 4;
        }
        // Dropped, a link that is still up would say goodbye.
        left.push(std::mem::replace(&mut session, after));
    }
    let live = (1..=50).map(|call| stands(2 * call, 0)).collect();
    let (mut session, list) = raw.go_on(&node, &session, next, live).await;
    held.extend(carry_all(&session, &list).await);
    until(|| alive.now() == 50).await;
    let info = session_of(&node, &raw).await.unwrap();
    assert_eq!((info.streams, info.handling), (50, 50));
    session.control.send(&told(&[(2, 50)], Vec::new())).await;
    until(|| alive.now() == 0).await;
    soon(async {
        while session_of(&node, &raw).await.is_none_or(|info| (info.streams, info.handling) != (0, 0)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    // As many handlers as ever find room.
    drop(held);
    let mut kept = Vec::new();
    for call in 0..limits::CALLS_IN_FLIGHT as u64 {
        // Most of these wait for leave of QUIC's, which counts streams until both halves have ended.
        kept.push(session.open(&stuck_call(&session, next + 2 * call)).await);
    }
    until(|| alive.now() == limits::CALLS_IN_FLIGHT).await;
    assert!(alive.most() <= limits::CALLS_IN_FLIGHT);
    served(&friend).await;
    assert_eq!(node.counts().panics, 0);
    session.connection.close(0u32.into(), b"");
    soon(async { tokio::join!(peer.shutdown(), node.shutdown()) }).await;
}
