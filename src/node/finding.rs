//! Finding nodes through the relays that this one keeps sessions with, and answering those who ask it the same: how an id can be reached, and
//! who is attached. Whoever may `discover` an id is told of it; of others it is as if they were not there.

use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Service;
use crate::id::{NodeId, Relay};
use crate::policy::Action;
use crate::proto::status::{Code, Status};
use crate::session::{Hub, Peer, Session, WeakHub, Where};

/// The method that says how a node can be reached.
const FIND: &str = "volt/find";
/// How long a relay has to answer.
const WITHIN: Duration = Duration::from_secs(5);
/// Most nodes of one answer.
const ATTACHED: usize = 4_096;

/// How a node can be reached, as another one knows it: the answer of `volt/find`, and each item of `volt/attached`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Located {
    /// Which node.
    pub id: NodeId,
    /// What it calls itself, if it is attached: for display, escaped.
    pub name: Option<String>,
    /// Whether it is attached where this was asked: then it can be reached through there.
    pub attached: bool,
    /// Where it says it can be dialled.
    pub addresses: Vec<SocketAddr>,
    /// Relays that it says it keeps sessions with.
    pub relays: Vec<LocatedRelay>,
}

/// A relay, in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocatedRelay {
    /// Which node.
    pub id: NodeId,
    /// Where it can be dialled.
    pub addresses: Vec<SocketAddr>,
}

/// What every node answers about others: the methods that are its own, besides `volt/describe`.
pub(super) fn service(hub: WeakHub) -> Service {
    let (find, attached) = (hub.clone(), hub);
    Service::new("volt")
        .unary("find", move |cx, id: NodeId| {
            let found = find.upgrade().ok_or_else(down).and_then(|hub| locate(&hub, cx.peer(), id));
            async move { found }
        })
        .unary("attached", move |cx, ()| {
            let listed = attached.upgrade().ok_or_else(down).map(|hub| list(&hub, cx.peer()));
            async move { listed }
        })
}

fn down() -> Status {
    Status::new(Code::Unavailable, "the node goes down")
}

fn locate(hub: &Hub, asker: NodeId, id: NodeId) -> Result<Located, Status> {
    if !may(hub, asker, id) {
        return Err(Status::new(Code::PermissionDenied, "policy does not allow this: discover"));
    }
    let peer = hub.known_peer(id).filter(|peer| peer.attached().is_some());
    peer.map(|peer| located(&peer)).ok_or_else(|| Status::new(Code::NotFound, "no such node is attached here"))
}

fn list(hub: &Hub, asker: NodeId) -> Vec<Located> {
    let there = hub.peers().into_iter().filter(|peer| !peer.is_visitor() && peer.attached().is_some());
    there.filter(|peer| peer.id() != asker && may(hub, asker, peer.id())).take(ATTACHED).map(|peer| located(&peer)).collect()
}

fn may(hub: &Hub, asker: NodeId, id: NodeId) -> bool {
    hub.policy().decide(&asker, Action::Discover, &id.to_string()).is_permit()
}

fn located(peer: &Peer) -> Located {
    let attached = peer.attached();
    let relay = |relay: Relay| LocatedRelay { id: relay.id, addresses: relay.addresses };
    Located {
        id: peer.id(),
        name: attached.as_ref().map(|attached| attached.hello().name.clone()).filter(|name| !name.is_empty()),
        // Only who has a link of its own can be reached through here.
        attached: attached.as_ref().is_some_and(|attached| !attached.link().is_relayed()),
        addresses: attached.map(|attached| attached.hello().addresses.clone()).unwrap_or_default(),
        relays: peer.relays().into_iter().map(relay).collect(),
    }
}

/// Asks each of this node's relays where that node is, and lets the supervisor know.
pub(super) async fn ask_relays(hub: Hub, id: NodeId) {
    for relay in hub.relays() {
        let Some(peer) = hub.known_peer(relay.id) else { continue };
        let session = Session::new(hub.clone(), peer);
        let asked = session.request(FIND).timeout(WITHIN).fail_fast().unary::<_, Located>(&id).await;
        let Ok(found) = asked else { continue };
        let relays = found.relays.into_iter().map(|relay| Relay { id: relay.id, addresses: relay.addresses }).collect();
        // Nobody who gave it up meanwhile is to have it back.
        if hub.known_peer(id).is_some_and(|peer| peer.is_wanted()) {
            hub.want(id, &Where { addresses: found.addresses, relays, ..Where::default() });
        }
    }
}
