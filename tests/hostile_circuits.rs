//! Neighbours with a valid key and bad manners, at a relay: whatever they open, it keeps within its bounds, says why, and carries on for
//! others.

mod support;

use std::time::Duration;

use quinn::RecvStream;
use support::raw::{RawPeer, RawStreams, rest};
use support::{SOON, closed, echo, long, open_node, soon, until};
use voltmesh::Node;
use voltmesh::id::NodeId;
use voltmesh::node::config::{Limits, RelayMode};
use voltmesh::proto::circuit::{Answer, Open, Refusal, Refused, StreamHead};
use voltmesh::proto::close::StreamCode;
use voltmesh::proto::codec;
use voltmesh::proto::frame::{Frames, put_message};
use voltmesh::proto::stream::Kind;

/// A relay that carries for anyone, and a node attached to it.
async fn carried() -> (Node, Node) {
    let relay = closed().open(true).relay(RelayMode::Open).bind().await.unwrap();
    let there = closed().open(true).service(echo()).home_relay(relay.ticket()).bind().await.unwrap();
    soon(there.session(relay.id()).unwrap().connected(SOON)).await.unwrap();
    until(|| relay.session(there.id()).is_some_and(|session| session.id().is_some())).await;
    (relay, there)
}

/// That others are carried.
async fn others_are_carried(there: &Node) {
    let honest = closed().bind().await.unwrap();
    let ticket = voltmesh::id::Ticket { addresses: Vec::new(), ..there.ticket() };
    let session = soon(honest.connect(&ticket)).await.unwrap();
    assert_eq!(soon(session.call::<_, String>("echo/one", "honest")).await.unwrap(), "honest");
    honest.shutdown().await;
}

fn opening(leg: u64, route: &[NodeId]) -> Vec<u8> {
    let mut bytes = vec![Kind::CircuitControl as u8];
    put_message(&mut bytes, &Open { leg, circuit: [7; 16], route: route.to_vec() });
    bytes
}

/// What the relay says to an opening that it does not carry on.
async fn refusal(raw: &RawStreams, opening: &[u8]) -> Result<Refused, StreamCode> {
    let (_send, mut recv) = raw.open(opening).await;
    refused(&mut recv).await
}

async fn refused(recv: &mut RecvStream) -> Result<Refused, StreamCode> {
    let bytes = rest(recv).await.map_err(|code| StreamCode::from_number(code.into_inner()).expect("one of our codes"))?;
    assert_eq!(bytes.first().copied(), Some(Answer::Refused as u8), "{bytes:?}");
    let mut frames = Frames::new(64);
    frames.push(bytes.slice(1..));
    Ok(codec::decode(&frames.next_frame().unwrap().unwrap()).unwrap())
}

#[tokio::test]
async fn an_opening_that_cannot_be_is_refused_with_its_reason() {
    let (relay, there) = carried().await;
    let peer = RawPeer::plain();
    let raw = peer.greet(&relay).await.answering();
    let nobody = NodeId::from_bytes([0x66; 32]);
    let many: Vec<NodeId> = (1..=5).map(|byte| NodeId::from_bytes([byte; 32])).collect();
    let why = |why| Ok(Refused { by: relay.id(), why });
    for (what, opening, expected) in [
        ("to nobody", opening(0, &[nobody]), why(Refusal::NotHere)),
        ("through the relay twice", opening(2, &[there.id(), relay.id()]), why(Refusal::Route)),
        ("back where it came from", opening(4, &[there.id(), peer.id]), why(Refusal::Route)),
        ("a number of the other side's", opening(5, &[there.id()]), Err(StreamCode::Protocol)),
        ("too long a route", opening(6, &many), Err(StreamCode::Protocol)),
        ("no message", vec![Kind::CircuitControl as u8, 3, 1, 2, 3], Err(StreamCode::Protocol)),
        ("too long a message", vec![Kind::CircuitControl as u8, 0x50, 0], Err(StreamCode::Protocol)),
        ("a stream of no circuit", stream(77, 0), Err(StreamCode::PathLeft)),
        ("a stream without a whole head", vec![Kind::CircuitStream as u8, 0x40, 1], Err(StreamCode::Protocol)),
    ] {
        assert_eq!(refusal(&raw, &opening).await, expected, "{what}");
    }
    others_are_carried(&there).await;
    tokio::join!(relay.shutdown(), there.shutdown());
}

fn stream(leg: u64, stream: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    StreamHead { leg, stream }.put(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_number_that_is_taken_opens_nothing_and_harms_nothing() {
    let (relay, there) = carried().await;
    let raw = RawPeer::plain().greet(&relay).await.answering();
    let (_send, mut first) = raw.open(&opening(0, &[there.id()])).await;
    until(|| relay.relay_counts().circuits == 1).await;
    assert_eq!(refusal(&raw, &opening(0, &[there.id()])).await, Ok(Refused { by: relay.id(), why: Refusal::Route }));
    // The first one waits for the far end, which waits for TLS.
    assert_eq!(relay.relay_counts().circuits, 1);
    raw.lose().await;
    assert!(soon(first.read_to_end(1 << 20)).await.is_err());
    until(|| relay.relay_counts().circuits == 0).await;
    tokio::join!(relay.shutdown(), there.shutdown());
}

#[tokio::test]
async fn a_neighbour_has_so_many_circuits_and_no_more_and_gets_them_back() {
    let limits = Limits { relay_circuits_per_identity: 3, ..Limits::default() };
    let config = voltmesh::node::config::Config {
        listen: vec![support::loopback()],
        open: true,
        relay: Some(RelayMode::Open),
        limits,
        ..Default::default()
    };
    let relay = Node::builder().config(config).bind().await.unwrap();
    let there = closed().open(true).service(echo()).home_relay(relay.ticket()).bind().await.unwrap();
    until(|| relay.session(there.id()).is_some_and(|session| session.id().is_some())).await;
    let raw = RawPeer::plain().greet(&relay).await.answering();
    let mut open = Vec::new();
    for number in 0..3 {
        open.push(raw.open(&opening(2 * number, &[there.id()])).await);
    }
    until(|| relay.relay_counts().circuits == 3).await;
    let too_many = Ok(Refused { by: relay.id(), why: Refusal::TooMany });
    assert_eq!(refusal(&raw, &opening(10, &[there.id()])).await, too_many);
    others_are_carried(&there).await;
    let (mut send, mut recv) = open.pop().unwrap();
    let _ = send.reset(0u32.into());
    // Reset, or refused after all: it is over.
    let _ = soon(recv.read_to_end(1 << 20)).await;
    until(|| relay.relay_counts().circuits == 2).await;
    let (_send, _recv) = raw.open(&opening(12, &[there.id()])).await;
    until(|| relay.relay_counts().circuits == 3).await;
    assert!(relay.relay_counts().refused_by_quota >= 1);
    tokio::join!(relay.shutdown(), there.shutdown());
}

#[tokio::test]
async fn who_may_not_is_not_carried() {
    let relay = closed().open(true).relay(RelayMode::Closed).bind().await.unwrap();
    let raw = RawPeer::plain().greet(&relay).await.answering();
    let not_allowed = Ok(Refused { by: relay.id(), why: Refusal::NotAllowed });
    // Said of those who are there and of those who are not.
    assert_eq!(refusal(&raw, &opening(0, &[NodeId::from_bytes([1; 32])])).await, not_allowed);
    let there = closed().open(true).service(echo()).home_relay(relay.ticket()).bind().await.unwrap();
    until(|| relay.session(there.id()).is_some_and(|session| session.id().is_some())).await;
    assert_eq!(refusal(&raw, &opening(2, &[there.id()])).await, not_allowed);
    assert_eq!(relay.relay_counts().refused_by_policy, 2);
    tokio::join!(relay.shutdown(), there.shutdown());
}

/// Opens circuits and says nothing on them, again and again: what is half open is bounded, and nothing of it stays.
#[tokio::test]
async fn half_open_circuits_are_bounded_and_leave_nothing() {
    let (relay, there) = carried().await;
    let raw = RawPeer::plain().greet(&relay).await.answering();
    let attempts = if long() { 10_000u64 } else { 300 };
    let before = resident_kib();
    for number in 0..attempts {
        let (mut send, _recv) = raw.open(&opening(2 * number, &[there.id()])).await;
        // Most are given up, some are left.
        if number % 4 != 0 {
            let _ = send.reset(0u32.into());
        } else {
            send.finish().unwrap();
        }
    }
    assert!(relay.relay_counts().circuits <= 16);
    until(|| relay.relay_counts().circuits == 0).await;
    let after = resident_kib();
    println!("{attempts} half-open circuits: {:?}; resident before {before} KiB, after {after} KiB", relay.relay_counts());
    others_are_carried(&there).await;
    tokio::join!(relay.shutdown(), there.shutdown());
}

/// Silent ones, which nobody gives up: the relay or the far end does, in time.
#[tokio::test]
async fn a_circuit_whose_opener_says_nothing_is_given_up() {
    let (relay, there) = carried().await;
    let raw = RawPeer::plain().greet(&relay).await.answering();
    let mut streams = Vec::new();
    for number in 0..16 {
        streams.push(raw.open(&opening(2 * number, &[there.id()])).await);
    }
    until(|| relay.relay_counts().circuits == 16).await;
    let begun = std::time::Instant::now();
    until(|| relay.relay_counts().circuits == 0).await;
    println!("given up after {:?}: {:?}", begun.elapsed(), relay.relay_counts());
    others_are_carried(&there).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), async { tokio::join!(relay.shutdown(), there.shutdown()) }).await;
}

/// What this process has in memory.
fn resident_kib() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_node_that_serves_is_no_relay_unless_it_is_told() {
    let node = open_node(echo()).await;
    let raw = RawPeer::plain().greet(&node).await.answering();
    let refused = refusal(&raw, &opening(0, &[NodeId::from_bytes([1; 32])])).await;
    assert_eq!(refused, Ok(Refused { by: node.id(), why: Refusal::NotAllowed }));
    node.shutdown().await;
}
