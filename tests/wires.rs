//! Wires between nodes on real UDP: what is published arrives, once and in order, or is told to be lost; and who may.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use support::{closed, connected, loopback, soon};
use voltmesh::id::SecretKey;
use voltmesh::node::{BindError, Builder};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::status::Code;
use voltmesh::wire::{
    Chunk, Cursor, Delivery, From, Options, PublishError, PublisherId, Slow, SubscribeError, Subscription, Wire, WireError,
};
use voltmesh::{Node, Session};

fn rule(effect: Effect, action: Action, resource: &str) -> Rule {
    let resource = if resource == "*" { Pattern::everything() } else { resource.parse().unwrap() };
    Rule::new(effect, Subject::Anyone, action, resource, Source::Store).unwrap()
}

/// Everybody may do everything with its wires.
fn open_host() -> Builder {
    open_host_at(loopback())
}

fn open_host_at(at: SocketAddr) -> Builder {
    let allow = |builder: Builder, action| builder.rule(rule(Effect::Permit, action, "*"));
    [Action::Create, Action::Publish, Action::Subscribe].into_iter().fold(Node::builder().listen(at), allow)
}

async fn client(host: &Node) -> (Node, Session) {
    let node = closed().bind().await.unwrap();
    let session = support::reach(&node, host).await;
    (node, session)
}

/// The same with no relay between, for a host that is restarted, and is where it was.
async fn directly(host: &Node) -> (Node, Session) {
    let node = closed().bind().await.unwrap();
    let session = soon(node.connect(host.ticket())).await.unwrap();
    (node, session)
}

/// A host, and a node with a session to it.
async fn pair() -> (Node, Node, Session) {
    let host = open_host().bind().await.unwrap();
    let (node, session) = client(&host).await;
    (host, node, session)
}

async fn next(subscription: &mut Subscription) -> Delivery {
    soon(subscription.next()).await.unwrap()
}

/// The bodies of the next so many chunks, which follow one another.
async fn bodies(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        match next(subscription).await {
            Delivery::Chunk { chunk, .. } => bodies.push(String::from_utf8(chunk.body.to_vec()).unwrap()),
            gap => panic!("{gap:?} after {bodies:?}"),
        }
    }
    bodies
}

fn numbered(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn publish(wire: &Wire, range: std::ops::RangeInclusive<u64>) {
    let publisher = wire.publisher();
    for n in range {
        publisher.push(n.to_string()).await.unwrap();
    }
    soon(publisher.flush()).await.unwrap();
}

#[tokio::test]
async fn what_is_published_arrives_in_order_with_its_number_and_what_is_said_of_it() {
    let (host, node, session) = pair().await;
    let wire = session.wire("sensors/kitchen").unwrap();
    let mut here = host.wire("sensors/kitchen").unwrap().subscribe(From::Live).await.unwrap();
    let mut there = soon(wire.subscribe(From::Live)).await.unwrap();
    let publisher = wire.publisher();
    let receipt = soon(publisher.publish(Chunk::new("one").with("unit", "C"))).await.unwrap();
    assert_eq!(receipt.seq, Some(1));
    assert_eq!(soon(host.wire("sensors/kitchen").unwrap().publisher().publish("two")).await.unwrap().seq, Some(2));
    for subscription in [&mut here, &mut there] {
        let Delivery::Chunk { seq: 1, chunk } = next(subscription).await else { panic!("no chunk") };
        assert_eq!((&chunk.body[..], chunk.metadata("unit")), (&b"one"[..], Some(&b"C"[..])));
        assert_eq!(bodies(subscription, 1).await, ["two"]);
        assert_eq!(subscription.cursor().seq, 2);
    }
    // The largest, and one that is too large.
    let large = vec![7; 1024 * 1024];
    let (sent, got) = tokio::join!(soon(publisher.publish(large.clone())), next(&mut there));
    assert_eq!(sent.unwrap().seq, Some(3));
    assert!(matches!(got, Delivery::Chunk { seq: 3, chunk } if chunk.body == large));
    let too_large = publisher.publish(vec![7; 1024 * 1024 + 1]).await;
    assert!(matches!(too_large, Err(PublishError::NotSent(_))), "{too_large:?}");
    assert_eq!(soon(publisher.publish("")).await.unwrap().seq, Some(4), "an empty chunk is one");
    let listed = soon(session.wires("sensors/*")).await.unwrap();
    assert_eq!((listed.len(), &listed[0].name[..], listed[0].next, listed[0].subscribers), (1, "sensors/kitchen", 5, 2));
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn many_publish_and_many_subscribe_and_each_publisher_keeps_its_order() {
    let (host, first, session) = pair().await;
    let (second, other) = client(&host).await;
    let wire = session.wire("busy").unwrap();
    let mut readers = Vec::new();
    for from in [&session, &other, &session] {
        readers.push(soon(from.wire("busy").unwrap().subscribe(From::Live)).await.unwrap());
    }
    let wires = [wire.clone(), other.wire("busy").unwrap(), host.wire("busy").unwrap()];
    let publishing = wires.iter().enumerate().map(|(who, wire)| async move {
        let publisher = wire.publisher();
        let mut pending = Vec::new();
        for n in 0..1_000 {
            pending.push(publisher.send(format!("{who} {n}")).await.unwrap());
        }
        join_all(pending).await.into_iter().map(|receipt| receipt.unwrap().seq.unwrap()).collect::<Vec<_>>()
    });
    let seqs: Vec<u64> = soon(join_all(publishing)).await.into_iter().flatten().collect();
    let mut sorted = seqs.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=3_000).collect::<Vec<_>>());
    let mut all = Vec::new();
    for reader in &mut readers {
        all.push(bodies(reader, 3_000).await);
    }
    assert!(all.iter().all(|bodies| *bodies == all[0]), "all see the same");
    for who in 0..3 {
        let of_one: Vec<_> = all[0].iter().filter(|body| body.starts_with(&format!("{who} "))).collect();
        assert_eq!(of_one.len(), 1_000);
        assert!(of_one.iter().enumerate().all(|(n, body)| **body == format!("{who} {n}")));
    }
    for node in [first, second, host] {
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_late_joiner_begins_where_it_likes() {
    let (host, node, session) = pair().await;
    let wire = session.wire("late").unwrap();
    let options = Options { ring_chunks: 10, ..Options::default() };
    soon(wire.create(options)).await.unwrap();
    publish(&wire, 1..=25).await;
    let mut oldest = soon(wire.subscribe(From::Oldest)).await.unwrap();
    assert_eq!(bodies(&mut oldest, 10).await, numbered(16..=25));
    let mut kept = soon(wire.subscribe(From::Seq(20))).await.unwrap();
    assert_eq!(bodies(&mut kept, 6).await, numbered(20..=25));
    let mut gone = soon(wire.subscribe(From::Seq(3))).await.unwrap();
    let epoch = gone.cursor().epoch;
    assert_eq!(next(&mut gone).await, Delivery::Gap { epoch, from: 3, to: Some(15) });
    assert_eq!(bodies(&mut gone, 10).await, numbered(16..=25));
    let mut after = soon(wire.subscribe(From::After(Cursor { epoch, seq: 22 }))).await.unwrap();
    assert_eq!(bodies(&mut after, 3).await, numbered(23..=25));
    let mut other = soon(wire.subscribe(From::After(Cursor { epoch: epoch ^ 1, seq: 9 }))).await.unwrap();
    assert_eq!(next(&mut other).await, Delivery::Gap { epoch: epoch ^ 1, from: 10, to: None });
    assert_eq!(next(&mut other).await, Delivery::Gap { epoch, from: 1, to: Some(15) });
    assert_eq!(bodies(&mut other, 10).await, numbered(16..=25));
    let beyond = soon(wire.subscribe(From::Seq(27))).await.unwrap_err();
    assert!(matches!(&beyond, SubscribeError::Refused(status) if status.code == Code::OutOfRange), "{beyond}");
    let mut live = soon(wire.subscribe(From::Live)).await.unwrap();
    assert!(live.next().now_or_never().is_none());
    publish(&wire, 26..=26).await;
    for reader in [&mut live, &mut oldest, &mut after, &mut other] {
        assert_eq!(bodies(reader, 1).await, ["26"]);
    }
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn wires_are_made_once_and_in_one_way() {
    let (host, node, session) = pair().await;
    let wire = session.wire("a").unwrap();
    let made = soon(wire.create(Options::default())).await.unwrap();
    assert!(!made.existed);
    let again = soon(wire.create(Options::default())).await.unwrap();
    assert_eq!((again.existed, again.epoch), (true, made.epoch));
    let other = soon(wire.create(Options { slow: Slow::Block, ..Options::default() })).await.unwrap_err();
    assert!(matches!(&other, WireError::Refused(status) if status.code == Code::AlreadyExists), "{other}");
    let homeless = soon(session.wire("b").unwrap().create(Options { persist: true, ..Options::default() })).await.unwrap_err();
    assert!(matches!(&homeless, WireError::Refused(status) if status.code == Code::FailedPrecondition), "{homeless}");
    let bad = soon(wire.create(Options { ring_chunks: 0, ..Options::default() })).await.unwrap_err();
    assert!(matches!(bad, WireError::Options(_)), "{bad}");
    assert!(matches!(session.wire("a b"), Err(WireError::Name(_))));
    let mut reader = soon(wire.subscribe(From::Live)).await.unwrap();
    assert!(host.remove_wire("a").await.unwrap() && !host.remove_wire("a").await.unwrap());
    let over = soon(reader.next()).await.unwrap_err();
    assert!(matches!(&over, SubscribeError::Refused(status) if status.code == Code::NotFound), "{over}");
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn nothing_is_allowed_without_a_rule_and_what_is_revoked_ends() {
    let host = closed().rule(rule(Effect::Permit, Action::Connect, "*")).bind().await.unwrap();
    let (node, session) = client(&host).await;
    let wire = session.wire("secret").unwrap();
    let denied = |code: Code| assert_eq!(code, Code::PermissionDenied);
    let publisher = wire.publisher();
    match soon(publisher.publish("x")).await.unwrap_err() {
        PublishError::Refused(status) => denied(status.code),
        other => panic!("{other}"),
    }
    match soon(wire.subscribe(From::Live)).await.unwrap_err() {
        SubscribeError::Refused(status) => denied(status.code),
        other => panic!("{other}"),
    }
    match soon(wire.create(Options::default())).await.unwrap_err() {
        WireError::Refused(status) => denied(status.code),
        other => panic!("{other}"),
    }
    // Leave to use a wire is none to make it.
    let (may_publish, may_read) = (rule(Effect::Permit, Action::Publish, "*"), rule(Effect::Permit, Action::Subscribe, "*"));
    host.add_rule(may_publish.clone()).await.unwrap();
    host.add_rule(may_read.clone()).await.unwrap();
    match soon(publisher.publish("x")).await.unwrap_err() {
        PublishError::Refused(status) => assert_eq!(status.code, Code::NotFound),
        other => panic!("{other}"),
    }
    assert!(soon(session.wires("*")).await.unwrap().is_empty());
    host.wire("secret").unwrap().create(Options::default()).await.unwrap();
    let mut reader = soon(wire.subscribe(From::Live)).await.unwrap();
    soon(publisher.publish("1")).await.unwrap();
    assert_eq!(bodies(&mut reader, 1).await, ["1"]);
    host.remove_rule(may_read.id()).await.unwrap();
    soon(publisher.publish("2")).await.unwrap();
    match soon(reader.next()).await.unwrap_err() {
        SubscribeError::Refused(status) => denied(status.code),
        other => panic!("{other}"),
    }
    host.remove_rule(may_publish.id()).await.unwrap();
    match soon(publisher.publish("3")).await.unwrap_err() {
        PublishError::Refused(status) => denied(status.code),
        other => panic!("{other}"),
    }
    node.shutdown().await;
    host.shutdown().await;
}

/// Fills a wire while somebody subscribes and does not read: so much that it is overrun.
async fn overrun(wire: &Wire) -> u64 {
    let publisher = wire.publisher();
    let chunks = 300;
    for _ in 0..chunks {
        publisher.push(vec![0; 60_000]).await.unwrap();
    }
    soon(publisher.flush()).await.unwrap();
    chunks
}

#[tokio::test]
async fn a_slow_subscriber_loses_chunks_and_is_told_which() {
    let (host, node, session) = pair().await;
    let wire = session.wire("fast").unwrap();
    let mut slow = soon(wire.subscribe(From::Live)).await.unwrap();
    let chunks = overrun(&host.wire("fast").unwrap()).await;
    let (mut got, mut lost) = (0, 0);
    while got + lost < chunks {
        match next(&mut slow).await {
            Delivery::Chunk { seq, .. } => {
                got += 1;
                assert_eq!(seq, got + lost);
            }
            Delivery::Gap { from, to: Some(to), .. } => {
                assert_eq!(from, got + lost + 1);
                lost += to - from + 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0, "nothing was lost, so this shows nothing");
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_wire_may_end_slow_subscriptions_instead() {
    let (host, node, session) = pair().await;
    let wire = session.wire("strict").unwrap();
    soon(wire.create(Options { slow: Slow::Disconnect, ..Options::default() })).await.unwrap();
    let mut slow = soon(wire.subscribe(From::Live)).await.unwrap();
    overrun(&host.wire("strict").unwrap()).await;
    let mut last = 0;
    let over = loop {
        match soon(slow.next()).await {
            Ok(Delivery::Chunk { seq, .. }) => {
                assert_eq!(seq, last + 1);
                last = seq;
            }
            Ok(gap) => panic!("{gap:?}"),
            Err(over) => break over,
        }
    };
    assert!(matches!(&over, SubscribeError::Refused(status) if status.code == Code::ResourceExhausted), "{over}");
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_wire_that_blocks_loses_nothing_and_its_publisher_waits() {
    let (host, node, session) = pair().await;
    let wire = session.wire("patient").unwrap();
    soon(wire.create(Options { slow: Slow::Block, ring_bytes: 65_536, ..Options::default() })).await.unwrap();
    let mut slow = soon(wire.subscribe(From::Live)).await.unwrap();
    let here = host.wire("patient").unwrap();
    let publisher = here.publisher();
    let pushing = async {
        for n in 0u64..400 {
            let mut body = n.to_be_bytes().to_vec();
            body.resize(60_000, 0);
            publisher.push(body).await.unwrap();
        }
        publisher.flush().await.unwrap();
    };
    let mut pushing = std::pin::pin!(pushing);
    // The window of the subscriber, what is kept for it, the ring and what is in flight are full long before that.
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut pushing).await.is_err());
    let reading = async {
        for n in 0u64..400 {
            let Delivery::Chunk { seq, chunk } = next(&mut slow).await else { panic!("a gap") };
            assert_eq!((seq, &chunk.body[..8]), (n + 1, &n.to_be_bytes()[..]));
        }
    };
    soon(async { tokio::join!(pushing, reading) }).await;
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_subscription_and_a_publisher_go_on_when_the_session_is_made_anew() {
    let (host, node, session) = pair().await;
    let (wire, mut events) = (session.wire("again").unwrap(), node.events());
    let mut reader = soon(wire.subscribe(From::Live)).await.unwrap();
    let publisher = wire.publisher();
    let mut published = 0;
    for round in 0..4 {
        let mut pending = Vec::new();
        for _ in 0..500 {
            published += 1;
            pending.push(publisher.send(published.to_string()).await.unwrap());
        }
        // Ended by the host, in the middle: the next one is another session.
        host.session(node.id()).expect("it is connected").close();
        connected(&mut events, host.id()).await;
        for pending in pending {
            soon(pending).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    }
    assert_eq!(bodies(&mut reader, published as usize).await, numbered(1..=published));
    assert_eq!(host.wires()[0].next, published + 1, "each is there once");
    node.shutdown().await;
    host.shutdown().await;
}

/// A host with this key at this address, with this home. Another test may have the port for a moment: then it is waited for.
async fn host_again(key: &SecretKey, at: SocketAddr, home: Option<&Path>) -> Node {
    let start = || {
        let builder = open_host_at(at).key(key.clone());
        match home {
            Some(home) => builder.home(home).bind(),
            None => builder.bind(),
        }
    };
    soon(async {
        loop {
            match start().await {
                Ok(node) => return node,
                Err(BindError::Network(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_wire_in_memory_is_gone_with_its_host_and_everybody_is_told() {
    let key = SecretKey::generate();
    let host = host_again(&key, loopback(), None).await;
    let at = host.listening()[0];
    let (node, session) = directly(&host).await;
    let (wire, mut events) = (session.wire("lost").unwrap(), node.events());
    let mut reader = soon(wire.subscribe(From::Live)).await.unwrap();
    publish(&wire, 1..=10).await;
    assert_eq!(bodies(&mut reader, 10).await, numbered(1..=10));
    let epoch = reader.cursor().epoch;
    host.shutdown().await;
    drop(host);
    let host = host_again(&key, at, None).await;
    connected(&mut events, host.id()).await;
    publish(&wire, 1..=3).await;
    assert_eq!(next(&mut reader).await, Delivery::Gap { epoch, from: 11, to: None });
    assert_eq!(bodies(&mut reader, 3).await, numbered(1..=3));
    assert_ne!(reader.cursor().epoch, epoch);
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_persistent_wire_goes_on_where_it_was_when_its_host_is_restarted() {
    let (home, key) = (tempfile::tempdir().unwrap(), SecretKey::generate());
    let host = host_again(&key, loopback(), Some(home.path())).await;
    let at = host.listening()[0];
    let (node, session) = directly(&host).await;
    let (wire, mut events) = (session.wire("kept/for-ever").unwrap(), node.events());
    let options = Options { persist: true, ring_chunks: 5, ..Options::default() };
    soon(wire.create(options)).await.unwrap();
    let mut reader = soon(wire.subscribe(From::Live)).await.unwrap();
    let publisher = wire.publisher_named(PublisherId([5; 16]));
    for n in 1..=20 {
        publisher.push(n.to_string()).await.unwrap();
    }
    soon(publisher.flush()).await.unwrap();
    assert_eq!(bodies(&mut reader, 7).await, numbered(1..=7), "what is not in memory is read from disk");
    let mut pending = Vec::new();
    for n in 21..=120 {
        pending.push(publisher.send(n.to_string()).await.unwrap());
    }
    host.shutdown().await;
    drop(host);
    let host = host_again(&key, at, Some(home.path())).await;
    connected(&mut events, host.id()).await;
    for pending in pending {
        soon(pending).await.unwrap();
    }
    assert_eq!(bodies(&mut reader, 113).await, numbered(8..=120));
    let mut all = soon(wire.subscribe(From::Oldest)).await.unwrap();
    assert_eq!(bodies(&mut all, 120).await, numbered(1..=120));
    let listed = &host.wires()[0];
    assert_eq!((listed.first, listed.next, listed.options), (1, 121, options));
    assert!(host.broken_wires().is_empty());
    host.shutdown().await;
    drop(host);

    // Damaged, it is told which file, and everything else works.
    let file = std::fs::read_dir(home.path().join("wires")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, b"this is no store of chunks").unwrap();
    let host = host_again(&key, at, Some(home.path())).await;
    connected(&mut events, host.id()).await;
    let broken = host.broken_wires();
    assert!(broken[0].0 == file && broken[0].1.contains(file.to_str().unwrap()), "{broken:?}");
    match soon(wire.publisher().publish("x")).await.unwrap_err() {
        PublishError::Refused(status) => assert_eq!(status.code, Code::DataLoss),
        other => panic!("{other}"),
    }
    publish(&session.wire("other").unwrap(), 1..=3).await;
    node.shutdown().await;
    host.shutdown().await;
}
