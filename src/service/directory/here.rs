//! Which peers have a session with this node now, for what depends on one: registrations and watches at a peer, which are
//! opened again on each new session before anybody is told of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tokio::sync::watch;

use crate::id::NodeId;
use crate::proto::control::SessionId;
use crate::session::{Attached, Core, Serving};

/// The peers of a node, as far as something depends on them.
#[derive(Default)]
pub(in crate::service) struct Peers(Arc<Table>);

#[derive(Default)]
struct Table(Mutex<HashMap<NodeId, Peer>>);

#[derive(Default)]
struct Peer {
    here: watch::Sender<Option<Here>>,
    dependents: Vec<Weak<Settled>>,
}

/// A session that is up. It must not be kept alive by this.
#[derive(Clone, Debug)]
struct Here {
    session: SessionId,
    attached: Weak<Attached>,
}

/// The last session on which a dependent has done what it could.
type Settled = watch::Sender<Option<SessionId>>;

/// Something that depends on a peer.
pub(super) struct Dependent {
    table: Weak<Table>,
    peer: NodeId,
    here: watch::Receiver<Option<Here>>,
    settled: Arc<Settled>,
}

impl Peers {
    /// A path carries this session. Of a new one, the future ends when all that depends on it is back.
    pub fn attached(&self, attached: &Arc<Attached>, resumed: bool) -> Option<Serving> {
        let mut table = self.0.lock();
        let peer = table.entry(attached.core().peer()).or_default();
        let session = attached.session();
        peer.here.send_replace(Some(Here { session, attached: Arc::downgrade(attached) }));
        if resumed {
            return None;
        }
        let settled: Vec<_> = peer.dependents.iter().filter_map(Weak::upgrade).map(|settled| settled.subscribe()).collect();
        drop(table);
        (!settled.is_empty()).then(|| Box::pin(all_settled(settled, session)) as Serving)
    }

    /// No path carries this session.
    pub fn detached(&self, core: &Core) {
        let mut table = self.0.lock();
        let Some(peer) = table.get_mut(&core.peer()) else { return };
        peer.here.send_if_modified(|here| here.take_if(|here| here.session == core.id()).is_some());
        if peer.is_unused() {
            table.remove(&core.peer());
        }
    }

    /// Something that depends on this peer from now on.
    pub(super) fn depend(&self, on: NodeId) -> Dependent {
        let settled = Arc::new(Settled::new(None));
        let mut table = self.0.lock();
        let peer = table.entry(on).or_default();
        peer.dependents.retain(|other| other.strong_count() > 0);
        peer.dependents.push(Arc::downgrade(&settled));
        Dependent { table: Arc::downgrade(&self.0), peer: on, here: peer.here.subscribe(), settled }
    }
}

impl Dependent {
    /// The session that is up, once it is another one than this; `None` when the node has ended. Cancel-safe.
    pub async fn session_other_than(&mut self, not: Option<SessionId>) -> Option<Arc<Attached>> {
        loop {
            let here = self.here.borrow_and_update().clone().filter(|here| Some(here.session) != not);
            if let Some(attached) = here.and_then(|here| here.attached.upgrade()) {
                return Some(attached);
            }
            self.here.changed().await.ok()?;
        }
    }

    /// Waits until the peer comes or goes. `None` when the node has ended. Cancel-safe.
    pub async fn changed(&mut self) -> Option<()> {
        self.here.changed().await.ok()
    }

    /// Whether this session is up.
    pub fn is_here(&self, session: SessionId) -> bool {
        self.here.borrow().as_ref().is_some_and(|here| here.session == session)
    }

    /// All is done on this session that was to be done before anybody is told of it.
    pub fn settle(&self, session: SessionId) {
        self.settled.send_if_modified(|settled| settled.replace(session) != Some(session));
    }
}

impl Drop for Dependent {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut table = table.lock();
        if let Some(peer) = table.get_mut(&self.peer) {
            peer.dependents.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(&self.settled)));
            if peer.is_unused() {
                table.remove(&self.peer);
            }
        }
    }
}

impl Peer {
    fn is_unused(&self) -> bool {
        self.here.borrow().is_none() && self.dependents.is_empty()
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

/// Waits for each of them, or its end.
async fn all_settled(settled: Vec<watch::Receiver<Option<SessionId>>>, session: SessionId) {
    for mut settled in settled {
        let _ = settled.wait_for(|settled| *settled == Some(session)).await;
    }
}
