//! Sessions that the node holds for those that call services, and lets go when the last of them needs it no more, unless the
//! owner wanted it anyway.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::task::JoinHandle;

use super::rules::Rules;
use crate::id::NodeId;
use crate::net::Network;
use crate::proto::limits::Limits;
use crate::session::{Dialler, Hub, Session, Where};

/// Sessions held for others. Clones share it.
#[derive(Clone)]
pub(super) struct Borrowed {
    hub: Hub,
    rules: Rules,
    network: Network,
    held: Arc<Mutex<HashMap<NodeId, Held>>>,
}

struct Held {
    times: usize,
    /// Whether it goes when nobody holds it any more.
    only_here: bool,
}

impl Borrowed {
    pub fn new(hub: Hub, rules: Rules, network: Network) -> Self {
        Self { hub, rules, network, held: Arc::default() }
    }

    /// The owner wants this session, or wants it no longer: who borrows it leaves it so.
    pub fn is_the_owners(&self, id: NodeId) {
        if let Some(held) = self.lock().get_mut(&id) {
            held.only_here = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Held>> {
        self.held.lock().expect("nothing panics while it is held")
    }
}

impl Borrowed {
    fn hold_at(&self, id: NodeId, at: &Where) -> Option<Session> {
        if id == self.hub.own().id {
            return None;
        }
        let mut sessions = self.lock();
        let wanted = self.hub.known_peer(id).is_some_and(|peer| peer.is_wanted());
        let held = sessions.entry(id).or_insert(Held { times: 0, only_here: !wanted });
        held.times += 1;
        self.rules.dial(id);
        Some(Session::new(self.hub.clone(), self.hub.want(id, at)))
    }
}

impl Dialler for Borrowed {
    fn hold(&self, id: NodeId, addresses: &[SocketAddr]) -> Option<Session> {
        self.hold_at(id, &Where::at(addresses))
    }

    fn hold_hop(&self, id: NodeId, addresses: &[SocketAddr]) -> Option<Session> {
        self.hold_at(id, &Where { hop: true, ..Where::at(addresses) })
    }

    fn found(&self, id: NodeId, addresses: &[SocketAddr]) {
        if self.lock().contains_key(&id) {
            self.hub.want(id, &Where::at(addresses));
        }
    }

    fn release(&self, id: NodeId) {
        let mut sessions = self.lock();
        let Some(held) = sessions.get_mut(&id) else { return };
        held.times -= 1;
        if held.times > 0 {
            return;
        }
        let only_here = held.only_here;
        sessions.remove(&id);
        if only_here {
            self.hub.known_peer(id).into_iter().for_each(|peer| peer.let_go());
            self.rules.release(id);
        }
    }

    fn limits(&self) -> &Limits {
        &self.hub.own().limits
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) -> JoinHandle<()> {
        self.network.spawn(task)
    }
}
