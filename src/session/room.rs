//! Whether there is room for one more session: in all, and from one address for peers that no rule names. Whoever is on the way to a
//! session has a place already: else all who dial at once would find the same room.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Mutex;

use super::hub::{Hub, WeakHub};
use crate::id::NodeId;
use crate::net::Link;
use crate::policy::{Action, Subject};
use crate::proto::limits;
use crate::state::admission::scope;

/// Who is on the way to a session, and from where, in the order in which they came.
#[derive(Default)]
pub(super) struct Arriving(Mutex<Places>);

#[derive(Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, (NodeId, IpAddr)>,
}

/// The place of one of them, until it is dropped: when its session has one, or there will be none.
pub(super) struct Place {
    hub: WeakHub,
    number: u64,
}

impl Hub {
    /// A place for a session on this link, if the limits on sessions leave one; else why not.
    pub(super) fn has_room_for(&self, link: &Link) -> Result<Place, &'static str> {
        let (place, before) = self.arriving().enter(self, link);
        let own: Vec<_> = before.iter().filter(|(id, _)| *id == link.peer()).map(|(_, address)| scope(*address)).collect();
        // Who has its key elsewhere must not keep it out.
        let from_there = own.iter().filter(|from| **from == scope(link.remote().ip())).count();
        if own.len() >= limits::LINKS_ARRIVING || from_there >= limits::LINKS_ARRIVING_PER_ADDRESS {
            return Err("too many links of one peer");
        }
        // Its own session goes on from one link to another, and needs no second place.
        let mut others = self.peers();
        others.retain(|peer| peer.id != link.peer() || peer.visitor.is_some());
        let there: Vec<_> = others.iter().filter_map(|peer| Some((peer.id, peer.attached()?.link().remote().ip()))).collect();
        let ids: HashSet<_> = there.iter().map(|(id, _)| *id).collect();
        // Looked at before those who are there: who has got from here to there meanwhile is counted, and counted once.
        let arriving: HashMap<_, _> = before.into_iter().filter(|(id, _)| *id != link.peer() && !ids.contains(id)).collect();
        if there.len() + arriving.len() >= self.own().limits.sessions {
            return Err("too many sessions");
        }
        let from = link.remote().ip();
        if from.is_loopback() || self.is_named(link.peer()) {
            return Ok(place);
        }
        let from_there = there.into_iter().chain(arriving).filter(|(_, address)| scope(*address) == scope(from));
        if from_there.filter(|(id, _)| !self.is_named(*id)).count() >= self.own().limits.sessions_per_address {
            return Err("too many sessions from this address");
        }
        Ok(place)
    }

    /// Whether this node's owner knows the peer: dials it, or has a rule about it and not about everyone.
    fn is_named(&self, peer: NodeId) -> bool {
        let decision = self.policy().decide(&peer, Action::Connect, "");
        decision.rule.is_some_and(|rule| *rule.subject() != Subject::Anyone)
    }
}

impl Arriving {
    /// A place for this link's peer, and who came before.
    fn enter(&self, hub: &Hub, link: &Link) -> (Place, Vec<(NodeId, IpAddr)>) {
        let mut places = self.0.lock().expect("nothing panics while it is held");
        let (number, before) = (places.next, places.taken.values().copied().collect());
        places.next += 1;
        places.taken.insert(number, (link.peer(), link.remote().ip()));
        (Place { hub: hub.downgrade(), number }, before)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.arriving().0.lock().expect("nothing panics while it is held").taken.remove(&self.number);
        }
    }
}
