//! What a node exposes: by name, each as long as its handle is kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tokio::io::DuplexStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};

use super::error::ExposeError;
use super::events::{self, Served};
use super::target::{Target, To, check_target};
use crate::net::Network;
use crate::proto::limits;
use crate::proto::tunnel::check_name;

/// What a node exposes. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Targets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    targets: Mutex<BTreeMap<String, Arc<Target>>>,
    room: Arc<Semaphore>,
    numbers: AtomicU64,
    network: Network,
}

impl Targets {
    /// Nothing yet; at most so many tunnels.
    pub fn new(network: Network, tunnels: usize) -> Self {
        let room = Arc::new(Semaphore::new(tunnels));
        Self(Arc::new(Inner { targets: Mutex::default(), room, numbers: AtomicU64::new(1), network }))
    }

    /// Where connections are carried.
    pub(super) fn network(&self) -> &Network {
        &self.0.network
    }

    /// Exposes a target until the handle is dropped.
    pub fn expose(&self, name: &str, target: &str) -> Result<Exposed, ExposeError> {
        check_target(target).map_err(ExposeError::Target)?;
        self.add(name, To::Tcp(target.to_owned()))
    }

    /// Exposes what takes these connections, instead of TCP.
    pub fn expose_memory(&self, name: &str, taken: mpsc::Sender<DuplexStream>) -> Result<Exposed, ExposeError> {
        self.add(name, To::Memory(taken))
    }

    fn add(&self, name: &str, to: To) -> Result<Exposed, ExposeError> {
        check_name(name).map_err(ExposeError::Name)?;
        let mut targets = self.0.lock();
        if targets.contains_key(name) {
            return Err(ExposeError::Taken(name.to_owned()));
        }
        if targets.len() >= limits::TARGETS {
            return Err(ExposeError::TooMany);
        }
        let (target, on) = Target::new(to);
        let events = target.events.subscribe();
        targets.insert(name.to_owned(), target);
        Ok(Exposed { name: name.to_owned(), targets: Arc::downgrade(&self.0), events, _on: on })
    }

    /// What is exposed under that name.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Target>> {
        self.0.lock().get(name).cloned()
    }

    /// Leave to serve one more tunnel, at once or not at all.
    pub(super) fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.0.room.clone().try_acquire_owned().ok()
    }

    /// A number that no other connection has.
    pub(super) fn number(&self) -> u64 {
        self.0.numbers.fetch_add(1, Relaxed)
    }

    /// The node ends: nothing is exposed any more, and nobody waits for what happens to it.
    pub fn close(&self) {
        self.0.lock().clear();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Target>>> {
        self.targets.lock().expect("nothing panics while it is held")
    }
}

/// Something is exposed as long as this is kept. Dropped, its connections end.
pub struct Exposed {
    name: String,
    targets: Weak<Inner>,
    events: broadcast::Receiver<Served>,
    _on: watch::Sender<()>,
}

impl Exposed {
    /// Under which name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What happens next to connections that peers make to it; `None` when the node has ended. Whoever does not ask misses what is more
    /// than [256](limits::TUNNEL_EVENTS) events ago, and holds up nobody. Cancel-safe.
    pub async fn next(&mut self) -> Option<Served> {
        events::next(&mut self.events, Served::Missed).await
    }
}

impl fmt::Debug for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposed").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        if let Some(targets) = self.targets.upgrade() {
            targets.lock().remove(&self.name);
        }
    }
}
