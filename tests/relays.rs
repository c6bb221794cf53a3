//! Nodes that reach each other through relays: real UDP, real nodes, and relays that know who talks to whom and nothing else.

mod support;

use std::time::Duration;

use support::{SOON, closed, connected, echo, open_node, soon};
use voltmesh::Node;
use voltmesh::id::Ticket;
use voltmesh::node::config::RelayMode;
use voltmesh::session::PathKind;

/// A relay that carries for anyone.
async fn relay() -> Node {
    closed().open(true).relay(RelayMode::Open).bind().await.unwrap()
}

/// A node that serves [`echo`] to everyone, and is attached to these relays.
async fn behind(relays: &[&Node]) -> Node {
    let builder = closed().open(true).service(echo());
    let node = relays.iter().fold(builder, |builder, relay| builder.home_relay(relay.ticket())).bind().await.unwrap();
    for relay in relays {
        soon(node.session(relay.id()).unwrap().connected(SOON)).await.unwrap();
        until_attached(relay, &node).await;
    }
    node
}

/// Until the relay has the node's link.
async fn until_attached(relay: &Node, node: &Node) {
    support::until(|| relay.session(node.id()).is_some_and(|session| session.id().is_some())).await;
}

#[tokio::test]
async fn a_node_that_cannot_be_dialled_is_called_through_its_relay() {
    let relay = relay().await;
    let there = behind(&[&relay]).await;
    let here = open_node(echo()).await;
    // What its ticket says of addresses leads nowhere.
    let ticket = Ticket { addresses: Vec::new(), ..there.ticket() };
    assert_eq!(ticket.relays.len(), 1);
    let mut events = there.events();
    let session = soon(here.connect(&ticket)).await.unwrap();
    assert_eq!(session.path(), Some(PathKind::Relayed(relay.id())));
    let answer: String = soon(session.call("echo/one", "over there")).await.unwrap();
    assert_eq!(answer, "over there");
    connected(&mut events, here.id()).await;
    let back: String = soon(there.session(here.id()).unwrap().call("echo/one", "and back")).await.unwrap();
    assert_eq!(back, "and back");
    assert_eq!(relay.relay_counts().circuits_ever, 1);
    tokio::join!(here.shutdown(), there.shutdown(), relay.shutdown());
}

#[tokio::test]
async fn a_way_through_two_relays_in_a_row_is_named_and_kept_to() {
    let (first, second) = (relay().await, relay().await);
    let to_second = soon(first.connect(second.ticket())).await.unwrap();
    soon(to_second.connected(SOON)).await.unwrap();
    let there = behind(&[&second]).await;
    let here = open_node(echo()).await;
    let session = soon(here.connect_via(&[first.ticket(), second.ticket()], there.id(), Duration::from_secs(10))).await.unwrap();
    assert_eq!(session.path(), Some(PathKind::Relayed(first.id())));
    let answer: String = soon(session.call("echo/one", "far")).await.unwrap();
    assert_eq!(answer, "far");
    tokio::join!(here.shutdown(), there.shutdown(), first.shutdown(), second.shutdown());
}
