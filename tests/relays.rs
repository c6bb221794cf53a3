//! Nodes that reach each other through relays: real UDP, real nodes, and relays that know who talks to whom and nothing else.

mod support;

use std::time::Duration;

use support::{SOON, closed, connected, echo, open_node, soon};
use voltmesh::Node;
use voltmesh::id::Ticket;
use voltmesh::node::Located;
use voltmesh::node::config::{Config, Limits, RelayMode};
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
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
async fn a_way_through_up_to_four_relays_in_a_row_is_named_and_kept_to() {
    let relays = [relay().await, relay().await, relay().await, relay().await];
    for pair in relays.windows(2) {
        let on = soon(pair[0].connect(pair[1].ticket())).await.unwrap();
        soon(on.connected(SOON)).await.unwrap();
    }
    for hops in 1..=relays.len() {
        let way = &relays[..hops];
        let there = behind(&[&way[hops - 1]]).await;
        let here = open_node(echo()).await;
        let named: Vec<Ticket> = way.iter().map(Node::ticket).collect();
        let session = soon(here.connect_via(&named, there.id(), Duration::from_secs(10))).await.unwrap();
        assert_eq!(session.path(), Some(PathKind::Relayed(way[0].id())));
        let far: String = soon(session.call("echo/one", "far")).await.unwrap();
        assert_eq!(far, "far", "over {hops}");
        let carried = relays.iter().map(|relay| relay.relay_counts().circuits_ever).collect::<Vec<_>>();
        let expected: Vec<u64> = (0..relays.len()).map(|at| hops.saturating_sub(at) as u64).collect();
        assert_eq!(carried, expected, "each relay of the way carries one circuit more");
        tokio::join!(here.shutdown(), there.shutdown());
    }
    for relay in relays {
        relay.shutdown().await;
    }
}

/// A relay with these limits.
async fn relay_with(limits: Limits, mode: RelayMode) -> Node {
    let config = Config { listen: vec![support::loopback()], open: true, relay: Some(mode), limits, ..Config::default() };
    Node::builder().config(config).bind().await.unwrap()
}

#[tokio::test]
async fn a_guest_is_carried_no_faster_than_guests_are() {
    let relay = relay_with(Limits { relay_guest_bytes_per_second: 500_000, ..Limits::default() }, RelayMode::Open).await;
    let there = behind(&[&relay]).await;
    let here = closed().bind().await.unwrap();
    let session = soon(here.connect_via(&[relay.ticket()], there.id(), SOON)).await.unwrap();
    let body = "g".repeat(500_000);
    let begun = std::time::Instant::now();
    assert_eq!(soon(session.call::<_, String>("echo/one", &body)).await.unwrap(), body);
    // A million bytes both ways, of which a tenth of a second's may go at once.
    assert!(begun.elapsed() >= Duration::from_millis(1_850), "{:?}", begun.elapsed());
    tokio::join!(here.shutdown(), there.shutdown(), relay.shutdown());
}

#[tokio::test]
async fn a_closed_relay_carries_between_nodes_it_knows_and_for_as_long_as_it_knows_them() {
    let relay = relay_with(Limits::default(), RelayMode::Closed).await;
    let there = behind(&[&relay]).await;
    let here = closed().bind().await.unwrap();
    let via = [relay.ticket()];
    let within = Duration::from_secs(1);
    assert!(here.connect_via(&via, there.id(), within).await.is_err(), "it knows neither of them");
    let know = |id| Rule::new(Effect::Permit, Subject::Node(id), Action::Connect, "*".parse().unwrap(), Source::Store).unwrap();
    relay.add_rule(know(there.id())).await.unwrap();
    assert!(here.connect_via(&via, there.id(), within).await.is_err(), "it does not know who asks");
    let who_asks = know(here.id());
    relay.add_rule(who_asks.clone()).await.unwrap();
    let session = soon(here.connect_via(&via, there.id(), SOON)).await.unwrap();
    assert_eq!(soon(session.call::<_, String>("echo/one", "known")).await.unwrap(), "known");
    relay.remove_rule(who_asks.id()).await.unwrap();
    support::until(|| relay.relay_counts().circuits == 0).await;
    assert!(relay.relay_counts().refused_by_policy >= 2);
    tokio::join!(here.shutdown(), there.shutdown(), relay.shutdown());
}

#[tokio::test]
async fn who_may_discover_a_node_is_told_where_it_is_and_others_are_told_nothing() {
    let relay = relay().await;
    let there = behind(&[&relay]).await;
    let here = closed().bind().await.unwrap();
    let to_relay = soon(here.connect(relay.ticket())).await.unwrap();
    let find = async |id| soon(to_relay.call::<_, Located>("volt/find", &id)).await;
    let listed = async || soon(to_relay.call::<_, Vec<Located>>("volt/attached", &())).await.unwrap();
    let nobody = here.id();
    assert_eq!(find(there.id()).await.unwrap_err().to_string(), find(nobody).await.unwrap_err().to_string());
    assert_eq!(listed().await, []);
    let discover = Rule::new(Effect::Permit, Subject::Node(here.id()), Action::Discover, "*".parse().unwrap(), Source::Store);
    relay.add_rule(discover.unwrap()).await.unwrap();
    let found = find(there.id()).await.unwrap();
    assert!(found.attached && found.id == there.id() && found.addresses == there.ticket().addresses);
    assert_eq!(found.relays.first().map(|by| by.id), Some(relay.id()));
    assert_eq!(listed().await, [found]);
    tokio::join!(here.shutdown(), there.shutdown(), relay.shutdown());
}

/// Neither has the other's relay; theirs are neighbours, and one of them is asked.
#[tokio::test]
async fn a_node_is_found_by_its_id_through_what_ones_own_relay_knows_of_it() {
    let (ours, theirs) = (relay().await, relay().await);
    let there = behind(&[&theirs]).await;
    // Our relay has met it: it told where it is, and by which relay it is reached.
    soon(there.connect(ours.ticket())).await.unwrap();
    until_attached(&ours, &there).await;
    let here = behind(&[&ours]).await;
    let discover = Rule::new(Effect::Permit, Subject::Anyone, Action::Discover, "*".parse().unwrap(), Source::Store);
    ours.add_rule(discover.unwrap()).await.unwrap();
    let session = soon(here.connect_to(there.id(), &[], SOON)).await.unwrap();
    assert_eq!(soon(session.call::<_, String>("echo/one", "found")).await.unwrap(), "found");
    // Asked, the relay said where it can be dialled, so the session is not relayed for long.
    support::until(|| session.path() == Some(PathKind::Direct)).await;
    tokio::join!(here.shutdown(), there.shutdown(), ours.shutdown(), theirs.shutdown());
}
