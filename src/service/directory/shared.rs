//! The directory of a node, shared by all who feed and read it. A lock around the machine, and word for those who wait that there
//! is something new.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::error::DiscoverError;
use super::found::Found;
use super::own;
use super::search::Search;
use super::watch::Watch;
use crate::id::NodeId;
use crate::proto::control::SessionId;
use crate::proto::directory::Listing;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::service::Registry;
use crate::session::{Attached, Core, Event, Limit};
use crate::state::directory::{self, Behind, Bounds, Change, Entry, Key, Refusal};

/// The directory of a node, for its owner, who sees everything. Clones share it.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    own: NodeId,
    registry: Registry,
    /// The runtime of the network.
    runtime: Handle,
    machine: Mutex<directory::Directory>,
    /// The number of the next change.
    position: watch::Sender<u64>,
    /// Told whenever a session is attached.
    arrived: watch::Sender<u64>,
    tell: OnceLock<Box<dyn Fn(Event) + Send + Sync>>,
    watches: Mutex<HashMap<(NodeId, SessionId), usize>>,
    watched: AtomicUsize,
}

/// One watch of a session, until it is dropped.
pub(super) struct WatchPermit(Directory, (NodeId, SessionId));

/// Entries that a watcher was told of. They count until this is dropped.
pub(super) struct Watched(Directory, usize);

impl Directory {
    pub(in crate::service) fn new(own: NodeId, registry: Registry, runtime: Handle, registrations: usize) -> Self {
        // Above whatever the process before has given, whatever it did: a number for each microsecond is more than it can give.
        let first = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let machine = directory::Directory::new(own, first, Bounds { registrations, ..Bounds::default() });
        let directory = Self(Arc::new(Inner {
            own,
            registry: registry.clone(),
            runtime,
            machine: Mutex::new(machine),
            position: watch::Sender::new(0),
            arrived: watch::Sender::new(0),
            tell: OnceLock::new(),
            watches: Mutex::default(),
            watched: AtomicUsize::new(0),
        }));
        let weak = Arc::downgrade(&directory.0);
        registry.observe(move |name, now| {
            let Some(directory) = weak.upgrade().map(Self) else { return };
            match now {
                Some(description) => directory.change(|machine, _| machine.served(Arc::new(own::listing(description)))),
                None => directory.change(|machine, _| machine.unserved(name)),
            }
        });
        directory
    }

    /// Looks for services by their names, `*` standing for any text: what is online, unless more is asked for.
    pub fn query(&self, pattern: &str) -> Search {
        Search::here(self.clone(), pattern)
    }

    /// What is online here, by name.
    ///
    /// # Errors
    /// [`DiscoverError::Pattern`](super::DiscoverError::Pattern).
    pub async fn discover(&self, pattern: &str) -> Result<Vec<Found>, DiscoverError> {
        self.query(pattern).discover().await
    }

    /// Watches what is here; see [`Watch`].
    ///
    /// # Errors
    /// [`DiscoverError::Pattern`](super::DiscoverError::Pattern).
    pub async fn watch(&self, pattern: &str) -> Result<Watch, DiscoverError> {
        self.query(pattern).watch().await
    }

    /// Where the events go that tell of services.
    pub(crate) fn tell_to(&self, tell: impl Fn(Event) + Send + Sync + 'static) {
        let _ = self.0.tell.set(Box::new(tell));
    }

    pub(in crate::service) fn attached(&self, attached: &Attached) {
        let (core, link) = (attached.core(), attached.link());
        let seen = (!link.dialled()).then(|| link.remote());
        let known = seen.into_iter().chain(attached.hello().addresses.iter().copied()).filter(|address| address.port() != 0);
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in known {
            if !addresses.contains(&address) && addresses.len() < limits::ADDRESSES {
                addresses.push(address);
            }
        }
        self.change(|machine, now| machine.attached(core.peer(), core.id(), addresses.into(), now));
        self.0.arrived.send_modify(|count| *count += 1);
    }

    pub(in crate::service) fn detached(&self, core: &Core) {
        self.change(|machine, now| machine.detached(core.peer(), core.id(), now));
    }

    pub(in crate::service) fn ended(&self, core: &Core) {
        self.change(|machine, now| machine.ended(core.peer(), core.id(), now));
    }

    /// Lists what a peer registers, as soon as it is known that its session is up; gives the number to withdraw it by. Cancel-safe.
    pub(super) async fn register(&self, core: &Core, listing: &Arc<Listing>) -> Result<u64, Status> {
        let mut arrived = self.0.arrived.subscribe();
        loop {
            arrived.mark_unchanged();
            let registered = self.change(|machine, now| machine.register(core.peer(), core.id(), listing.clone(), now));
            match registered {
                Err(Refusal::NotPresent) if core.has_ended() => {
                    return Err(Status::new(Code::Unavailable, "the session is over"));
                }
                // Its stream was faster than the word that the session is there.
                Err(Refusal::NotPresent) => drop(arrived.changed().await),
                Err(refusal) => {
                    core.limited(Limit::Registrations);
                    return Err(Status::new(Code::ResourceExhausted, refusal.to_string()));
                }
                Ok(number) => return Ok(number),
            }
        }
    }

    pub(super) fn withdraw(&self, core: &Core, name: &str, number: u64) {
        self.change(|machine, _| machine.withdraw(core.peer(), core.id(), name, number));
    }

    /// Changes something, and tells whoever wants to know.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut directory::Directory, Instant) -> T) -> T {
        let now = tokio::time::Instant::now().into_std();
        let mut machine = self.machine();
        machine.expire(now);
        let done = change(&mut machine, now);
        for (key, online) in machine.take_turns() {
            if let Some(tell) = self.0.tell.get() {
                tell(Event::Service { name: key.name.as_str().into(), provider: key.provider, online });
            }
        }
        // Under the lock, so that it only grows.
        let position = machine.position();
        self.0.position.send_if_modified(|known| std::mem::replace(known, position) != position);
        done
    }

    /// The number of the next change, and word of each.
    pub(super) fn position(&self) -> watch::Receiver<u64> {
        self.0.position.subscribe()
    }

    /// Some entries in the order of their keys, after this one.
    pub(super) fn page(&self, after: Option<&Key>, most: usize) -> Vec<(Arc<Key>, Arc<Entry>)> {
        self.machine().after(after).take(most).map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// Some changes from this one on.
    pub(super) fn changes(&self, from: u64, most: usize) -> Result<Vec<Change>, Behind> {
        Ok(self.machine().changes(from)?.take(most).cloned().collect())
    }

    pub(super) fn own(&self) -> NodeId {
        self.0.own
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Leave for one more watch of this session.
    pub(super) fn watch_permit(&self, core: &Core) -> Option<WatchPermit> {
        let of = (core.peer(), core.id());
        let mut watches = self.watches();
        let count = watches.entry(of).or_insert(0);
        (*count < limits::WATCHES).then(|| {
            *count += 1;
            WatchPermit(self.clone(), of)
        })
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<(NodeId, SessionId), usize>> {
        self.0.watches.lock().expect("nothing panics while it is held")
    }

    fn machine(&self) -> MutexGuard<'_, directory::Directory> {
        self.0.machine.lock().expect("nothing panics while it is held")
    }
}

impl Watched {
    pub fn none(of: &Directory) -> Self {
        Self(of.clone(), 0)
    }

    /// So many are counted now. Says whether there is room for them.
    pub fn count(&mut self, now: usize) -> bool {
        let all = self.0.0.watched.fetch_add(now, SeqCst) + now;
        self.0.0.watched.fetch_sub(self.1, SeqCst);
        let fits = all - self.1 <= limits::WATCHED_ENTRIES || now <= self.1;
        self.1 = now;
        fits
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.0.watched.fetch_sub(self.1, SeqCst);
    }
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        let mut watches = self.0.watches();
        if let Some(count) = watches.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                watches.remove(&self.1);
            }
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("entries", &self.machine().len()).finish_non_exhaustive()
    }
}
