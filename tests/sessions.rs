//! Sessions between nodes on real UDP: how they come up, go down and come back, and who is let in.

mod support;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use support::raw::RawPeer;
use support::{Alive, SOON, closed, connected, disconnected, echo, loopback, node, open_node, pair, soon, until};
use tokio::sync::Notify;
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::node::{ConnectError, Events};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::close::CloseCode;
use voltmesh::proto::status::{Code, Status};
use voltmesh::session::{DisconnectReason, SessionState, Unreached, WaitError, Where};
use voltmesh::{CallError, Event, Node, Service, Session};

/// Everything a node has told so far.
fn told(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.next().now_or_never().flatten()).collect()
}

/// The model: of each peer, first `Connected`, then in turns. Gives how many sessions of each peer there were, and who is up.
fn check(events: &[Event]) -> HashMap<NodeId, (usize, bool)> {
    let mut peers: HashMap<NodeId, (usize, bool)> = HashMap::new();
    for event in events {
        match event {
            Event::Connected { peer, .. } => {
                let (count, up) = peers.entry(*peer).or_default();
                assert!(!*up, "connected twice: {events:#?}");
                (*count, *up) = (*count + 1, true);
            }
            Event::Disconnected { peer, .. } => {
                let (_, up) = peers.entry(*peer).or_default();
                assert!(*up, "disconnected twice, or first: {events:#?}");
                *up = false;
            }
            other => panic!("{other:?}"),
        }
    }
    peers
}

fn rule(effect: Effect, who: NodeId, action: Action, resource: &str) -> Rule {
    let resource = if resource.is_empty() { Pattern::everything() } else { resource.parse().unwrap() };
    Rule::new(effect, Subject::Node(who), action, resource, Source::Store).unwrap()
}

fn code(result: Result<String, CallError>) -> Code {
    result.expect_err("it fails").code()
}

async fn echoes(session: &Session) {
    assert_eq!(soon(session.call::<_, String>("echo/one", "x")).await.unwrap(), "x");
}

#[tokio::test]
async fn events_alternate_over_drops_and_reconnects() {
    let (a, b) = (node().await, node().await);
    let (mut at_a, mut at_b) = (a.events(), b.events());
    let (mut log_a, mut log_b) = (a.events(), b.events());
    let to_b = soon(a.connect(b.ticket())).await.unwrap();
    connected(&mut at_a, b.id()).await;
    connected(&mut at_b, a.id()).await;
    // A session that is lost at once makes the next one wait longer, so few rounds have to do.
    for round in 0..4 {
        // The side that does not dial closes; the one that does comes back by itself.
        b.session(a.id()).expect("it is connected").close();
        let reason = disconnected(&mut at_a, b.id()).await;
        assert_eq!(reason, DisconnectReason::ByPeer, "round {round}");
        assert_eq!(disconnected(&mut at_b, a.id()).await, DisconnectReason::Here);
        connected(&mut at_a, b.id()).await;
        connected(&mut at_b, a.id()).await;
        echoes(&to_b).await;
    }
    a.release(b.id());
    assert_eq!(disconnected(&mut at_b, a.id()).await, DisconnectReason::ByPeer);
    assert_eq!(disconnected(&mut at_a, b.id()).await, DisconnectReason::Here);
    assert_eq!(check(&told(&mut log_a)), HashMap::from([(b.id(), (5, false))]));
    assert_eq!(check(&told(&mut log_b)), HashMap::from([(a.id(), (5, false))]));
    assert_eq!(soon(to_b.connected(SOON)).await, Err(WaitError::Closed));
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn released_while_it_connects_it_stays_released() {
    let b = node().await;
    for round in 0..20 {
        let a = node().await;
        let mut log = a.events();
        let to_b = a.hold(b.id(), &b.listening());
        for _ in 0..round * 3 {
            tokio::task::yield_now().await;
        }
        a.release(b.id());
        assert_eq!(soon(to_b.connected(SOON)).await, Err(WaitError::Closed), "round {round}");
        until(|| a.session(b.id()).is_none()).await;
        assert!(check(&told(&mut log)).values().all(|(_, up)| !up), "round {round}");
        soon(a.shutdown()).await;
    }
    soon(b.shutdown()).await;
}

#[tokio::test]
async fn a_wrong_key_at_the_right_address_fails_before_anything_is_said() {
    let (a, b) = (node().await, node().await);
    let mut at_b = b.events();
    let wrong = SecretKey::generate().id();
    let before = Instant::now();
    let error = soon(a.connect_to(wrong, &b.listening(), SOON)).await.unwrap_err();
    println!("wrong key found after {:?}", before.elapsed());
    assert!(matches!(&error, ConnectError::Unreached(WaitError::Unreached(Unreached::WrongKey(_)))), "{error:?}");
    assert!(error.to_string().contains(&b.id().to_string()), "it says who is there: {error}");
    // It goes on trying, and says the same for as long as it is so.
    let to_wrong = a.session(wrong).expect("it is wanted");
    assert_eq!(to_wrong.state(), SessionState::Connecting);
    let info = a.peers().await.unwrap().into_iter().find(|peer| peer.id == wrong).unwrap();
    assert!(matches!(info.unreached, Some(Unreached::WrongKey(_))), "{info:?}");
    // Whoever answered has seen no session, and turned nobody away: nothing was said.
    assert_eq!(told(&mut at_b), []);
    assert_eq!((b.counts().refused_sessions, b.counts().calls), (0, 0));
    // With a right address among the wrong ones it comes up.
    let addresses = [b.listening()[0], a.listening()[0]];
    let c = node().await;
    let to_a = soon(c.connect_to(a.id(), &addresses, SOON)).await.unwrap();
    echoes(&to_a).await;
    soon(async { tokio::join!(a.shutdown(), b.shutdown(), c.shutdown()) }).await;
}

#[tokio::test]
async fn a_wrong_key_sees_not_one_stream_of_the_dialler() {
    let raw = RawPeer::plain();
    let a = node().await;
    let wrong = SecretKey::generate().id();
    let to_wrong = a.hold(wrong, &[raw.endpoint.local_addr().unwrap()]);
    let incoming = soon(raw.endpoint.accept()).await.unwrap();
    // The handshake itself fails: there is no connection on which a stream could be.
    let refused = soon(incoming.accept().unwrap()).await.unwrap_err();
    assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{refused}");
    assert_eq!(to_wrong.state(), SessionState::Connecting);
    soon(a.shutdown()).await;
}

#[tokio::test]
async fn a_stranger_is_refused_without_reasons_and_counted() {
    let (a, b) = (node().await, closed().service(echo()).bind().await.unwrap());
    let mut at_b = b.events();
    assert_eq!(soon(a.connect(b.ticket())).await.unwrap_err(), ConnectError::Refused);
    assert_eq!(b.counts().refused_sessions, 1);
    // Who refused us is not dialled again.
    until(|| a.session(b.id()).is_none()).await;
    // On the wire: the code, and not a word.
    let stranger = RawPeer::plain().connect(&b).await;
    match soon(stranger.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), CloseCode::Refused as u64);
            assert!(close.reason.is_empty());
        }
        other => panic!("{other}"),
    }
    until(|| b.counts().refused_sessions == 2).await;
    assert_eq!(told(&mut at_b), []);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn dialling_someone_lets_their_link_in_and_grants_them_no_call() {
    let a = closed().service(echo()).bind().await.unwrap();
    let b = closed().service(echo()).bind().await.unwrap();
    // `b` does not let `a` in, so `a` cannot connect; but as soon as `b` dials `a` ...
    assert_eq!(soon(b.connect(a.ticket())).await.unwrap_err(), ConnectError::Refused);
    let mut at_a = a.events();
    a.hold(b.id(), &b.listening());
    // ... `a` lets `b` in. Both dial, so both do.
    let to_a = soon(b.connect(a.ticket())).await.unwrap();
    connected(&mut at_a, b.id()).await;
    assert_eq!(code(soon(to_a.call("echo/one", "x")).await), Code::PermissionDenied);
    let to_b = a.session(b.id()).unwrap();
    assert_eq!(code(soon(to_b.call("echo/one", "x")).await), Code::PermissionDenied);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn an_open_node_lets_anyone_connect_and_call_except_whom_a_rule_denies() {
    let (guest, banned) = (node().await, node().await);
    let deny = rule(Effect::Deny, banned.id(), Action::Connect, "").with_source(Source::Config);
    let open = closed().open(true).service(echo()).rule(deny).bind().await.unwrap();
    echoes(&soon(guest.connect(open.ticket())).await.unwrap()).await;
    assert_eq!(soon(banned.connect(open.ticket())).await.unwrap_err(), ConnectError::Refused);
    soon(async { tokio::join!(guest.shutdown(), banned.shutdown(), open.shutdown()) }).await;
}

#[tokio::test]
async fn rules_act_on_the_live_session_at_once() {
    let a = closed().bind().await.unwrap();
    let b = closed().service(echo()).rule(rule(Effect::Permit, a.id(), Action::Connect, "")).bind().await.unwrap();
    let mut at_a = a.events();
    let to_b = soon(a.connect(b.ticket())).await.unwrap();
    connected(&mut at_a, b.id()).await;
    assert_eq!(code(soon(to_b.call("echo/one", "x")).await), Code::PermissionDenied);
    let allow = rule(Effect::Permit, a.id(), Action::Call, "echo/*");
    assert!(b.add_rule(allow.clone()).await.unwrap());
    assert!(!b.add_rule(allow.clone()).await.unwrap(), "it is there already");
    echoes(&to_b).await;
    assert!(b.remove_rule(allow.id()).await.unwrap());
    assert!(!b.remove_rule(allow.id()).await.unwrap());
    assert_eq!(code(soon(to_b.call("echo/one", "x")).await), Code::PermissionDenied);
    // Denied `connect`, its session is closed, and it is refused until the rule is gone.
    let deny = rule(Effect::Deny, a.id(), Action::Connect, "");
    b.add_rule(deny.clone()).await.unwrap();
    assert_eq!(disconnected(&mut at_a, b.id()).await, DisconnectReason::Refused);
    until(|| b.counts().refused_sessions > 0).await;
    until(|| b.session(a.id()).is_none()).await;
    b.remove_rule(deny.id()).await.unwrap();
    a.network_changed();
    connected(&mut at_a, b.id()).await;
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn a_peer_denied_here_is_gone_even_if_this_node_dialled_it() {
    let (a, b) = (node().await, node().await);
    let mut at_a = a.events();
    let to_b = soon(a.connect(b.ticket())).await.unwrap();
    connected(&mut at_a, b.id()).await;
    let deny = rule(Effect::Deny, b.id(), Action::Connect, "");
    a.add_rule(deny.clone()).await.unwrap();
    assert_eq!(disconnected(&mut at_a, b.id()).await, DisconnectReason::RefusedHere);
    let mut log = a.events();
    assert!(soon(to_b.connected(Duration::from_millis(1_500))).await.is_err(), "{:?}", to_b.state());
    assert_eq!(told(&mut log), []);
    a.remove_rule(deny.id()).await.unwrap();
    connected(&mut at_a, b.id()).await;
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

/// A directory as a node wants its home: for nobody else.
fn home() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

async fn at_home(home: &tempfile::TempDir, listen: std::net::SocketAddr) -> Node {
    // The socket of a node that was dropped may be held for a moment yet.
    soon(async {
        loop {
            match Node::builder().home(home.path()).listen(listen).open(true).service(echo()).bind().await {
                Ok(node) => return node,
                Err(error) => {
                    println!("not yet: {error}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn what_is_wanted_named_and_ruled_survives_a_restart() {
    let dir = home();
    let b = node().await;
    let a = at_home(&dir, loopback()).await;
    let (id, name) = (a.id(), "friend".parse().unwrap());
    let mut at_a = a.events();
    soon(a.connect(b.ticket())).await.unwrap();
    connected(&mut at_a, b.id()).await;
    a.remember(b.id(), Where::from(&b.ticket()), Some(name)).await.unwrap();
    let deny = rule(Effect::Deny, b.id(), Action::Call, "echo/sum");
    assert!(a.add_rule(deny.clone()).await.unwrap());
    soon(a.shutdown()).await;
    drop((a, at_a));

    let mut at_b = b.events();
    let a = at_home(&dir, loopback()).await;
    assert_eq!(a.id(), id);
    connected(&mut at_b, id).await;
    assert_eq!(a.named("friend").await.unwrap().map(|peer| peer.id), Some(b.id()));
    let peers = a.peers().await.unwrap();
    assert!(peers.iter().any(|peer| peer.id == b.id() && peer.wanted && peer.name.as_deref() == Some("friend")), "{peers:?}");
    let to_a = b.session(id).unwrap();
    assert_eq!(soon(to_a.request("echo/sum").unary::<_, u64>(&0u64)).await.unwrap_err().code(), Code::PermissionDenied);
    echoes(&to_a).await;

    // Forgotten, it is not dialled any more; its name stays.
    a.forget(b.id()).await.unwrap();
    assert!(a.remove_rule(deny.id()).await.unwrap());
    soon(a.shutdown()).await;
    drop(a);
    let a = at_home(&dir, loopback()).await;
    assert!(a.session(b.id()).is_none());
    assert_eq!(a.named("friend").await.unwrap().map(|peer| peer.wanted), Some(false));
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn a_peer_that_restarts_in_good_order_is_back_by_itself() {
    let (dir, a) = (home(), node().await);
    let mut at_a = a.events();
    let mut log = a.events();
    let b = at_home(&dir, loopback()).await;
    let at = b.listening()[0];
    let mut at_b = b.events();
    let to_b = soon(a.connect(b.ticket())).await.unwrap();
    connected(&mut at_a, b.id()).await;
    connected(&mut at_b, a.id()).await;
    soon(b.shutdown()).await;
    drop(at_b);
    assert_eq!(disconnected(&mut at_a, b.id()).await, DisconnectReason::PeerDown);
    drop(b);
    let b = at_home(&dir, at).await;
    connected(&mut at_a, b.id()).await;
    echoes(&to_b).await;
    let log = told(&mut log);
    assert_eq!(check(&log), HashMap::from([(b.id(), (2, true))]), "{log:#?}");
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[test]
fn a_peer_that_dies_and_is_back_in_place_is_noticed_soon_and_calls_go_through_again() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (dir, ours, theirs) = (home(), runtime(), runtime());
    let a = ours.block_on(node());
    let (mut at_a, mut log) = (a.events(), a.events());
    let b = theirs.block_on(at_home(&dir, loopback()));
    let (id, at) = (b.id(), b.listening()[0]);
    let to_b = ours.block_on(soon(a.connect(b.ticket()))).unwrap();
    ours.block_on(connected(&mut at_a, id));
    // Not a word of goodbye: its threads are gone, and with them whatever it had to say.
    drop(b);
    theirs.shutdown_background();
    let before = Instant::now();
    let theirs = runtime();
    let b = theirs.block_on(at_home(&dir, at));
    println!("restarted after {:?}", before.elapsed());
    ours.block_on(async {
        println!("lost: {:?} after {:?}", disconnected(&mut at_a, id).await, before.elapsed());
        connected(&mut at_a, id).await;
        println!("back after {:?}", before.elapsed());
        echoes(&to_b).await;
        assert_eq!(check(&told(&mut log)), HashMap::from([(id, (2, true))]));
    });
    drop(b);
    drop(a);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_dropped_leaves_nobody_waiting() {
    let (alive, mut ends) = Alive::new();
    let forever = {
        let alive = alive.clone();
        Service::new("for").unary("ever", move |_cx, ()| {
            let life = alive.begin();
            async move {
                let _life = life;
                std::future::pending::<Result<(), Status>>().await
            }
        })
    };
    let pair = pair(echo(), forever).await;
    let (mut at_a, id) = (pair.a.events(), pair.b.id());
    let call = tokio::spawn({
        let to_b = pair.to_b.clone();
        async move { to_b.request("for/ever").timeout(Duration::from_secs(600)).unary::<_, ()>(&()).await }
    });
    until(|| alive.now() == 1).await;
    // Handles on its sessions are still there: they do not keep it alive.
    let to_a = pair.to_a;
    drop(pair.b);
    soon(ends.recv()).await.unwrap();
    println!("lost: {:?}", disconnected(&mut at_a, id).await);
    assert!(matches!(soon(call).await.unwrap(), Err(CallError::OutcomeUnknown(_))));
    assert_eq!(soon(to_a.connected(SOON)).await, Err(WaitError::Closed));
    assert!(matches!(soon(to_a.call::<_, String>("echo/one", "x")).await, Err(CallError::NotSent(_))));
    soon(pair.a.shutdown()).await;
}

/// A handler that waits until it is let go.
fn held(alive: &Alive, go: &Arc<Notify>) -> Service {
    let (alive, go) = (alive.clone(), go.clone());
    Service::new("held").unary("call", move |_cx, n: u64| {
        let (life, go) = (alive.begin(), go.clone());
        async move {
            let _life = life;
            go.notified().await;
            Ok(n)
        }
    })
}

#[tokio::test]
async fn a_call_in_flight_ends_well_while_the_callee_goes_down_and_new_ones_are_not_sent() {
    let ((alive, _ends), go) = (Alive::new(), Arc::new(Notify::new()));
    let pair = pair(echo(), held(&alive, &go)).await;
    let mut at_a = pair.a.events();
    let call = tokio::spawn({
        let to_b = pair.to_b.clone();
        async move { to_b.call::<_, u64>("held/call", &7u64).await }
    });
    until(|| alive.now() == 1).await;
    let down = tokio::spawn({
        let b = pair.b.clone();
        async move { b.shutdown().await }
    });
    // Told that `b` goes down, `a` calls it no more: calls wait for the next session.
    until(|| pair.to_b.id().is_none()).await;
    let fast = soon(pair.to_b.request("held/call").fail_fast().unary::<_, u64>(&8u64)).await.unwrap_err();
    assert!(matches!(fast, CallError::NotSent(_)), "{fast}");
    let waits = tokio::spawn({
        let to_b = pair.to_b.clone();
        async move { to_b.call::<_, u64>("held/call", &9u64).await }
    });
    let brief = pair.to_b.request("held/call").timeout(Duration::from_millis(500));
    let error = soon(brief.unary::<_, u64>(&10u64)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(!down.is_finished() && !call.is_finished());
    let before = Instant::now();
    go.notify_one();
    assert_eq!(soon(call).await.unwrap().unwrap(), 7);
    soon(down).await.unwrap();
    println!("down {:?} after the last answer", before.elapsed());
    // One that waits for the next session does not hold up the end of this one.
    assert!(before.elapsed() < Duration::from_secs(8), "it waited for its deadline");
    assert_eq!(disconnected(&mut at_a, pair.b.id()).await, DisconnectReason::PeerDown);
    assert_eq!(alive.ever(), 1);
    waits.abort();
    soon(pair.a.shutdown()).await;
}

#[tokio::test]
async fn a_call_in_flight_ends_well_while_its_caller_goes_down() {
    let ((alive, _ends), go) = (Alive::new(), Arc::new(Notify::new()));
    let pair = pair(echo(), held(&alive, &go)).await;
    let call = tokio::spawn({
        let to_b = pair.to_b.clone();
        async move { to_b.call::<_, u64>("held/call", &7u64).await }
    });
    until(|| alive.now() == 1).await;
    let down = tokio::spawn({
        let a = pair.a.clone();
        async move { a.shutdown().await }
    });
    until(|| pair.to_a.id().is_none()).await;
    go.notify_one();
    assert_eq!(soon(call).await.unwrap().unwrap(), 7);
    soon(down).await.unwrap();
    soon(pair.b.shutdown()).await;
}

#[tokio::test]
async fn idle_nodes_go_down_at_once_together_or_one_by_one() {
    for together in [true, false] {
        let pair = pair(echo(), echo()).await;
        let before = Instant::now();
        soon(async {
            if together {
                tokio::join!(pair.a.shutdown(), pair.b.shutdown());
            } else {
                pair.b.shutdown().await;
                pair.a.shutdown().await;
            }
        })
        .await;
        println!("together {together}: down after {:?}", before.elapsed());
        assert!(before.elapsed() < Duration::from_secs(8), "it waited for its deadline");
        // Once more does no harm.
        soon(pair.a.shutdown()).await;
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_holds_up_neither_release_nor_shutdown() {
    for streams in [1u32, 2] {
        // One stream for control and perhaps one for notices, and no room to write on.
        let raw = RawPeer::new(|transport| {
            transport.max_concurrent_bidi_streams(streams.into()).stream_receive_window(400u32.into());
        });
        let a = node().await;
        let to_raw = a.hold(raw.id, &[raw.endpoint.local_addr().unwrap()]);
        let session = soon(raw.answer()).await;
        let before = Instant::now();
        if streams == 2 {
            soon(to_raw.connected(SOON)).await.unwrap();
            to_raw.close();
            until(|| a.session(raw.id).is_none()).await;
        }
        soon(a.shutdown()).await;
        println!("with {streams} streams: down after {:?}", before.elapsed());
        drop(session);
    }
}

#[tokio::test]
async fn visitors_share_a_key_with_a_node_and_take_nobodys_place() {
    let dir = home();
    let b = node().await;
    let a = at_home(&dir, loopback()).await;
    let (mut at_b, mut log) = (b.events(), b.events());
    soon(a.connect(b.ticket())).await.unwrap();
    connected(&mut at_b, a.id()).await;
    let before = b.session(a.id()).unwrap().id().unwrap();
    let mut visitors = Vec::new();
    for _ in 0..8 {
        let visitor = Node::builder().home(dir.path()).visitor().bind().await.unwrap();
        assert_eq!(visitor.id(), a.id());
        let to_b = soon(visitor.connect(b.ticket())).await.unwrap();
        echoes(&to_b).await;
        visitors.push(visitor);
    }
    // The node's own session is the same as before, and its presence too.
    let to_a = b.session(a.id()).unwrap();
    assert_eq!(to_a.id(), Some(before));
    echoes(&to_a).await;
    let peers = b.peers().await.unwrap();
    assert_eq!(peers.iter().filter(|peer| peer.id == a.id() && peer.visitor).count(), 8);
    assert_eq!(peers.iter().filter(|peer| peer.id == a.id() && !peer.visitor).count(), 1);
    let ninth = Node::builder().home(dir.path()).visitor().bind().await.unwrap();
    assert_eq!(soon(ninth.connect(b.ticket())).await.unwrap_err(), ConnectError::Refused);
    soon(visitors.pop().unwrap().shutdown()).await;
    let tenth = soon(async {
        // Its place is free as soon as `b` has seen it leave.
        loop {
            if let Ok(session) = ninth.connect(b.ticket()).await {
                return session;
            }
        }
    });
    echoes(&tenth.await).await;
    for visitor in visitors {
        soon(visitor.shutdown()).await;
    }
    soon(ninth.shutdown()).await;
    assert_eq!(check(&told(&mut log)), HashMap::from([(a.id(), (1, true))]), "visitors are nobody's presence");
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

async fn crossed(round: usize) {
    let (a, b) = (node().await, node().await);
    let (mut log_a, mut log_b) = (a.events(), b.events());
    let (ticket_a, ticket_b) = (a.ticket(), b.ticket());
    let (to_b, to_a) = soon(async { tokio::join!(a.connect(&ticket_b), b.connect(&ticket_a)) }).await;
    let (to_b, to_a) = (to_b.unwrap(), to_a.unwrap());
    // The two agree on one session, sooner or later.
    until(|| to_a.id().is_some() && to_a.id() == to_b.id()).await;
    echoes(&to_a).await;
    echoes(&to_b).await;
    until(|| to_a.id().is_some() && to_a.id() == to_b.id()).await;
    let (at_a, at_b) = (check(&told(&mut log_a)), check(&told(&mut log_b)));
    assert!(at_a[&b.id()].1 && at_b[&a.id()].1, "round {round}");
    for node in [&a, &b] {
        let peers = node.peers().await.unwrap();
        assert_eq!(peers.iter().filter(|peer| peer.session.is_some()).count(), 1, "round {round}: {peers:?}");
    }
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn two_dials_that_cross_end_in_one_session() {
    for round in 0..20 {
        crossed(round).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_so_they_do_when_each_node_has_a_thread_of_its_own() {
    join_all((0..20).map(crossed)).await;
}

#[tokio::test]
async fn a_session_handle_says_where_it_stands() {
    let b = node().await;
    let a = node().await;
    let to_b = a.hold(b.id(), &b.listening());
    assert_eq!(to_b.peer(), b.id());
    soon(to_b.connected(SOON)).await.unwrap();
    assert_eq!(to_b.state(), SessionState::Connected);
    let round_trip = soon(to_b.ping(SOON)).await.unwrap();
    assert!(round_trip < SOON);
    soon(b.shutdown()).await;
    until(|| to_b.state() == SessionState::Connecting).await;
    assert!(matches!(soon(to_b.connected(Duration::from_millis(50))).await, Err(WaitError::TimedOut(_))));
    a.release(b.id());
    until(|| to_b.state() == SessionState::Idle).await;
    assert_eq!(a.connect(a.ticket()).await.unwrap_err(), ConnectError::Own);
    let nowhere = a.connect_to(SecretKey::generate().id(), &[], SOON).await.unwrap_err();
    assert!(matches!(nowhere, ConnectError::Unreached(WaitError::Unreached(Unreached::NoAddress))), "{nowhere:?}");
    soon(a.shutdown()).await;
}

#[tokio::test]
async fn calls_made_while_a_session_comes_and_goes_all_end_and_none_runs_twice() {
    let (alive, _ends) = Alive::new();
    let count = {
        let alive = alive.clone();
        Service::new("count").unary("me", move |_cx, n: u64| {
            let life = alive.begin();
            async move {
                let _life = life;
                tokio::task::yield_now().await;
                Ok(n)
            }
        })
    };
    let (a, b) = (node().await, open_node(count).await);
    let to_b = soon(a.connect(b.ticket())).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (to_b, over) = (to_b.clone(), over.clone());
            tokio::spawn(async move {
                let (mut good, mut unknown) = (0, 0);
                while !over.load(Ordering::SeqCst) {
                    match to_b.call::<_, u64>("count/me", &1u64).await {
                        Ok(_) => good += 1,
                        Err(CallError::OutcomeUnknown(_)) => unknown += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
                (good, unknown)
            })
        })
        .collect();
    let mut at_a = a.events();
    for _ in 0..4 {
        until(|| b.session(a.id()).is_some_and(|session| session.id().is_some())).await;
        let ran = alive.ever();
        until(|| alive.ever() > ran + 50).await;
        b.session(a.id()).unwrap().close();
        disconnected(&mut at_a, b.id()).await;
        connected(&mut at_a, b.id()).await;
    }
    over.store(true, Ordering::SeqCst);
    let (mut good, mut unknown) = (0, 0);
    for caller in soon(join_all(callers)).await {
        let (a, b) = caller.unwrap();
        (good, unknown) = (good + a, unknown + b);
    }
    println!("{good} calls answered, {unknown} of unknown outcome, {} ran", alive.ever());
    assert!((good..=good + unknown).contains(&alive.ever()));
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}
