//! One running node: the handle a program has on it, how it is built, and what it keeps between runs. The only room that joins
//! all others; it decides nothing that one of them can.

mod addresses;
mod builder;
pub mod config;
mod dialler;
mod doors;
mod error;
mod finding;
pub mod home;
mod invitations;
mod reload;
mod restart;
mod rules;
pub mod store;
mod strangers;

use std::borrow::Borrow;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::DuplexStream;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

pub use addresses::reachable;
pub use builder::Builder;
pub use error::{BindError, ConnectError, DecideError, InviteError, RuleError};
pub use finding::{Located, LocatedRelay};
pub use reload::{ReloadError, Reloaded, Reloads};
pub use strangers::{Invited, Listening, Request, new_invitation, withdraw};

use self::config::PeerRef;
use self::dialler::Borrowed;
use self::home::{Home, Lock, files};
use self::reload::Reloader;
use self::restart::{List, Listed, Untold};
use self::rules::Rules;
use self::store::{PeerName, Store};
use self::strangers::Strangers;
use crate::id::{NodeId, Relay, Ticket};
pub use crate::journal::JournalCounts;
use crate::journal::{Change, Entry};
use crate::net::{Network, Watch};
use crate::policy::{PolicyHandle, Rule};
use crate::proto::close::CloseCode;
pub use crate::relay::RelayCounts;
use crate::relay::Relays;
use crate::service::{DiscoverError, Mirror, Providers, Registration, Registry, Server, Service, ServiceError};
pub use crate::session::Limit;
use crate::session::{Dialler, Event, Hub, HubTasks, Ledger, PeerInfo, Session, Via, WaitError, Where};
use crate::tunnel::{ExposeError, Exposed, Forward, Targets};
use crate::wire::{Wire, WireError, WireFileError, WireInfo, Wires};

/// A running node. Clones share it; the node ends with [`Node::shutdown`], or when the last clone is dropped.
///
/// ```no_run
/// use voltmesh::{Node, Service};
///
/// # async fn example(ticket: voltmesh::id::Ticket) -> Result<(), Box<dyn std::error::Error>> {
/// let greeter = Service::new("greeter").unary("hello", |_cx, name: String| async move { Ok(format!("hello {name}")) });
/// let node = Node::builder().home("/var/lib/volt").service(greeter).bind().await?;
/// let session = node.connect(ticket).await?;
/// let greeting: String = session.call("greeter/hello", &"world").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    hub: Hub,
    rules: Rules,
    strangers: Strangers,
    /// Of a node that reads a file.
    reloader: Option<Reloader>,
    registry: Registry,
    server: Arc<Server>,
    wires: Arc<Wires>,
    targets: Arc<Targets>,
    relays: Relays,
    network: Network,
    borrowed: Borrowed,
    /// The same, for circuits, which do not keep it.
    _holder: Arc<dyn Dialler>,
    /// Mirrors of others' directories, as the configuration says.
    mirrors: Mutex<Vec<Mirror>>,
    /// What is exposed and forwarded as the configuration says.
    tunnels: Mutex<(Vec<Exposed>, Vec<Forward>)>,
    /// Where services are looked up by their names alone.
    homes: Vec<NodeId>,
    home: Option<Home>,
    store: Option<Arc<Store>>,
    lock: Mutex<Option<Lock>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What a node is made of.
struct Parts {
    hub: Hub,
    rules: Rules,
    strangers: Strangers,
    reloader: Option<Reloader>,
    registry: Registry,
    server: Arc<Server>,
    wires: Arc<Wires>,
    targets: Arc<Targets>,
    relays: Relays,
    network: Network,
    home: Option<Home>,
    store: Option<Arc<Store>>,
    lock: Option<Lock>,
    watch_network: bool,
    before: Before,
}

/// Peers that the configuration names.
struct Wanted {
    connect: Vec<PeerRef>,
    mirror: Vec<PeerRef>,
    homes: Vec<PeerRef>,
    expose: Vec<config::Expose>,
    forward: Vec<config::Forward>,
    relays: Vec<PeerRef>,
}

/// What the home remembers of the processes before.
struct Before {
    peers: Vec<store::Peer>,
    /// Whom the last one had sessions with when it was killed.
    sessions: Vec<Listed>,
}

/// What a node counted since it was started.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that came in.
    pub calls: u64,
    /// Polls of handlers that held up the network for more than a millisecond.
    pub slow_polls: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Calls with an idempotency key that were made again, and not executed again.
    pub repeated_calls: u64,
    /// Calls with an idempotency key that were refused: the key was used for another request, or there was no room.
    pub refused_keys: u64,
    /// Calls with an idempotency key that were forgotten before their time, or whose answers were too large to keep.
    pub forgotten_calls: u64,
    /// Newcomers turned away before their handshake.
    pub refused_handshakes: u64,
    /// Newcomers whose handshake failed, or took too long.
    pub failed_handshakes: u64,
    /// Sessions refused by policy or a limit.
    pub refused_sessions: u64,
    /// Strangers whose request found no room.
    pub refused_requests: u64,
    /// Invitations that were no good, or not looked at because too many before were none.
    pub refused_invitations: u64,
    /// Calls that policy denied.
    pub denied_calls: u64,
    /// Calls beyond a rate.
    pub rated_calls: u64,
    /// What peers asked for and policy denied, other than sessions and calls: registrations, wires, tunnels, circuits.
    pub denied_requests: u64,
    /// Dials begun.
    pub dials: u64,
    /// Links there are now.
    pub links: usize,
}

impl Node {
    /// Begins a node.
    pub fn builder() -> Builder {
        Builder::default()
    }

    async fn start(parts: Parts, tasks: HubTasks, wanted: Wanted) -> Result<Self, BindError> {
        let Parts {
            hub,
            rules,
            strangers,
            reloader,
            registry,
            server,
            wires,
            targets: exposed,
            relays,
            network,
            home,
            store,
            lock,
            watch_network,
            before,
        } = parts;
        let stored = before.peers;
        let forwarded = wanted.forward.iter().map(|forward| forward.peer.clone()).collect();
        let named = [wanted.connect, wanted.mirror, wanted.homes, wanted.relays, forwarded].map(|peers| targets(peers, &stored));
        let [connect, mirror, homes, home_relays, forward_peers] = named;
        let (connect, mirror, homes) = (connect?, mirror?, homes?);
        let (home_relays, forward_peers) = (home_relays?, forward_peers?);
        hub.set_addresses(addresses::reachable(hub.endpoint().local()));
        let running = network.spawn(tasks.run());
        let (lock, tasks) = (Mutex::new(lock), Mutex::new(vec![running]));
        let borrowed = Borrowed::new(hub.clone(), rules.clone(), network.clone());
        let holder: Arc<dyn Dialler> = Arc::new(borrowed.clone());
        relays.join(&hub, Arc::downgrade(&holder));
        registry.add_own(finding::service(hub.downgrade()))?;
        hub.set_relays(home_relays.iter().map(|(id, at)| Relay { id: *id, addresses: at.addresses.clone() }).collect());
        let (mirrors, home_volts) = (Mutex::default(), homes.iter().map(|(id, _)| *id).collect());
        strangers.join(hub.downgrade());
        let node = Self(Arc::new(Inner {
            hub,
            rules,
            strangers,
            reloader,
            registry,
            server,
            wires,
            targets: exposed,
            relays,
            network,
            borrowed,
            _holder: holder,
            mirrors,
            tunnels: Mutex::default(),
            homes: home_volts,
            home,
            store,
            lock,
            tasks,
        }));
        node.remember_who_is_seen();
        if watch_network {
            node.watch_network();
        }
        node.watch_config();
        for (id, at) in &home_relays {
            node.hold_at(*id, &Where { hop: true, ..at.clone() });
        }
        for (id, at) in connect.iter().chain(&homes) {
            node.hold_at(*id, at);
        }
        for (id, at) in &mirror {
            // Cannot fail while the node is here.
            node.0.mirrors.lock().expect("nothing panics while it is held").extend(Mirror::of(&node.hold_at(*id, at)).ok());
        }
        for peer in stored.iter().filter(|peer| peer.wanted) {
            node.hold_at(peer.id, &peer.at());
        }
        node.tell_of_the_restart(before.sessions);
        node.begin_tunnels(&wanted.expose, wanted.forward.iter().zip(forward_peers)).await?;
        Ok(node)
    }

    /// Who this node is.
    pub fn id(&self) -> NodeId {
        self.0.hub.own().id
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.0.hub.own().name
    }

    /// The addresses it listens at, with the ports the system chose.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.0.hub.endpoint().local().to_vec()
    }

    /// How to reach this node, for others: its addresses, and the relays it keeps sessions with.
    pub fn ticket(&self) -> Ticket {
        let ticket = self.0.hub.addresses().into_iter().fold(Ticket::new(self.id()), Ticket::with_address);
        Ticket { relays: self.0.hub.relays(), ..ticket }
    }

    /// Where it keeps things, if it does.
    pub fn home(&self) -> Option<&Home> {
        self.0.home.as_ref()
    }

    /// Clears the way for the socket of the local API, and says where to bind it (mode 0600 is up to the binder). `None` for a
    /// node that owns no home.
    ///
    /// # Errors
    /// [`HomeError`](home::HomeError) if what is in the way cannot be removed.
    pub fn local_socket(&self) -> Result<Option<PathBuf>, home::HomeError> {
        let lock = self.0.lock.lock().expect("nothing panics while it is held");
        match (&self.0.home, &*lock) {
            (Some(home), Some(lock)) => home.prepare_socket(lock).map(Some),
            _ => Ok(None),
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> &PolicyHandle {
        self.0.rules.handle()
    }

    /// Events from now on.
    pub fn events(&self) -> Events {
        Events(self.0.hub.events())
    }

    /// Keeps a session with a peer from now on, and waits at most 30 s for it to come up the first time. The first attempt is
    /// retried like any other. Not remembered across restarts: see [`Node::remember`]. Cancel-safe: a dropped wait leaves the
    /// session wanted.
    ///
    /// # Errors
    /// [`ConnectError`]: the peer refused us (then it is no longer wanted, unless it was before), another key answered, or
    /// nobody did in time (the node goes on trying).
    pub async fn connect(&self, ticket: impl Borrow<Ticket>) -> Result<Session, ConnectError> {
        let ticket = ticket.borrow();
        self.connect_at(ticket.id, &Where::from(ticket), Duration::from_secs(30)).await
    }

    /// As [`Node::connect`], for an id whose addresses are given or known, and with a time to wait.
    ///
    /// # Errors
    /// As [`Node::connect`].
    pub async fn connect_to(&self, id: NodeId, addresses: &[SocketAddr], within: Duration) -> Result<Session, ConnectError> {
        self.connect_at(id, &Where::at(addresses), within).await
    }

    /// The same by way of these relays, one after the other, and in no other way: the first is dialled, each of the others is a neighbour of
    /// the one before it. The peer is not told where this node is.
    ///
    /// # Errors
    /// As [`Node::connect`]. Names of relays that can be no route are as good as nobody there.
    pub async fn connect_via(&self, relays: &[Ticket], id: NodeId, within: Duration) -> Result<Session, ConnectError> {
        let hop = |ticket: &Ticket| Relay { id: ticket.id, addresses: ticket.addresses.clone() };
        let only = Some(Via::new(relays.iter().map(hop).collect()));
        self.connect_at(id, &Where { only, ..Where::default() }, within).await
    }

    /// As [`Node::connect_to`], for a peer of which more is known than addresses.
    ///
    /// # Errors
    /// As [`Node::connect`].
    pub async fn connect_at(&self, id: NodeId, at: &Where, within: Duration) -> Result<Session, ConnectError> {
        if id == self.id() {
            return Err(ConnectError::Own);
        }
        let before = self.0.hub.known_peer(id).is_some_and(|peer| peer.is_wanted());
        let session = self.hold_at(id, at);
        match session.first_connected(within).await {
            Ok(()) => Ok(session),
            Err(WaitError::Unreached(crate::session::Unreached::Refused)) => {
                if !before {
                    self.release(id);
                }
                Err(ConnectError::Refused)
            }
            Err(error) => Err(ConnectError::Unreached(error)),
        }
    }

    /// Keeps a session with a peer from now on, without waiting for it.
    pub fn hold(&self, id: NodeId, addresses: &[SocketAddr]) -> Session {
        self.hold_at(id, &Where::at(addresses))
    }

    /// The same, for a peer of which more is known than addresses.
    pub fn hold_at(&self, id: NodeId, at: &Where) -> Session {
        self.0.borrowed.is_the_owners(id);
        self.0.rules.dial(id);
        let session = Session::new(self.0.hub.clone(), self.0.hub.want(id, at));
        // Of whom nothing is known the relays may know something.
        if *at == Where::default() && !self.0.hub.relays().is_empty() {
            self.run(finding::ask_relays(self.0.hub.clone(), id));
        }
        session
    }

    /// Keeps no session with the peer any more, and closes the one there is.
    pub fn release(&self, id: NodeId) {
        self.0.borrowed.is_the_owners(id);
        if let Some(peer) = self.0.hub.known_peer(id) {
            peer.release();
        }
        self.0.rules.release(id);
    }

    /// Keeps no session with the peer any more, unless the peer does.
    #[cfg(feature = "cli")]
    pub(crate) fn let_go(&self, id: NodeId) {
        self.0.borrowed.is_the_owners(id);
        if let Some(peer) = self.0.hub.known_peer(id) {
            peer.let_go();
        }
        self.0.rules.release(id);
    }

    /// The session with a peer that is wanted or connected.
    pub fn session(&self, id: NodeId) -> Option<Session> {
        self.0.hub.known_peer(id).map(|peer| Session::new(self.0.hub.clone(), peer))
    }

    /// Offers a service until the registration is dropped.
    ///
    /// # Errors
    /// [`ServiceError`]: a name that cannot be one, or is taken.
    pub fn serve(&self, service: Service) -> Result<Registration, ServiceError> {
        self.0.registry.add(service)
    }

    /// Adds methods to the node's own service, `volt`. They decide themselves whom they answer.
    #[cfg(feature = "cli")]
    pub(crate) fn serve_own(&self, service: Service) -> Result<(), ServiceError> {
        self.0.registry.add_own(service)
    }

    /// What this node serves, by name.
    pub fn services(&self) -> Vec<crate::service::ServiceDescription> {
        self.0.registry.describe(|_| true)
    }

    /// Calls to a service as a peer's directory lists it, whoever provides it: sessions with its providers are held as long as this
    /// is kept, and calls go to one that is there. Does not wait for the peer.
    ///
    /// ```no_run
    /// # async fn example(node: voltmesh::Node, volt: voltmesh::Session) -> Result<(), Box<dyn std::error::Error>> {
    /// let cameras = node.providers("camera", &volt)?;
    /// let picture: Vec<u8> = cameras.call("snap", &"front door").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`DiscoverError`]: the name is none.
    pub fn providers(&self, service: &str, at: &Session) -> Result<Providers, DiscoverError> {
        let source = at.query(service).offline(true).begin_watch()?.into_source();
        Ok(Providers::new(service.to_owned(), vec![source], Arc::new(self.0.borrowed.clone())))
    }

    /// The same, for a service known by its name alone: it is looked up in this node's own directory, and, if nobody is online there, in
    /// those of its home Volts ([`Builder::home_volt`]), in their order. Never in others.
    ///
    /// # Errors
    /// As [`Node::providers`].
    pub fn providers_of(&self, service: &str) -> Result<Providers, DiscoverError> {
        let mut sources = vec![self.directory().query(service).offline(true).begin_watch()?.into_source()];
        for home in &self.0.homes {
            let session = Session::new(self.0.hub.clone(), self.0.hub.want(*home, &Where::default()));
            sources.push(session.query(service).offline(true).begin_watch()?.into_source());
        }
        Ok(Providers::new(service.to_owned(), sources, Arc::new(self.0.borrowed.clone())))
    }

    /// A wire of this node: publishing and subscribing here needs no leave. It need not be there yet.
    ///
    /// # Errors
    /// [`WireError::Name`].
    pub fn wire(&self, name: &str) -> Result<Wire, WireError> {
        Wire::here(Wires::clone(&self.0.wires), name)
    }

    /// The wires of this node; those in memory that are still used, and those on disk. One that cannot be opened is in
    /// [`Node::broken_wires`].
    pub fn wires(&self) -> Vec<WireInfo> {
        self.0.wires.list(|_| true)
    }

    /// Files of wires that could not be opened when the node started, and why. Their wires refuse everything.
    pub fn broken_wires(&self) -> Vec<(PathBuf, String)> {
        self.0.wires.broken().to_vec()
    }

    /// Removes a wire and what is kept of it. Says whether it was there.
    ///
    /// # Errors
    /// Its file cannot be removed. It is not there any more until the next start.
    pub async fn remove_wire(&self, name: &str) -> Result<bool, WireFileError> {
        self.0.wires.remove(name).await
    }

    /// Lets peers reach a TCP target, `HOST:PORT`, under this name, until the handle is dropped: those whom policy permits to
    /// [`forward`](crate::policy::Action::Forward) it, by default nobody. The target is looked up and connected to from here, each time.
    ///
    /// ```no_run
    /// # async fn example(node: voltmesh::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut exposed = node.expose("ssh", "127.0.0.1:22")?;
    /// while let Some(happened) = exposed.next().await {
    ///     println!("{happened:?}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ExposeError`]: a name or a target that cannot be one, a name that is taken, or too many.
    pub fn expose(&self, name: &str, target: &str) -> Result<Exposed, ExposeError> {
        self.0.targets.expose(name, target)
    }

    /// The same, for connections in memory.
    ///
    /// # Errors
    /// As [`Node::expose`].
    #[doc(hidden)]
    pub fn expose_memory(&self, name: &str, taken: mpsc::Sender<DuplexStream>) -> Result<Exposed, ExposeError> {
        self.0.targets.expose_memory(name, taken)
    }

    /// What is listed at this node: its own services, and those its peers have registered here. For its owner, who sees everything.
    pub fn directory(&self) -> crate::service::Directory {
        self.0.server.directory().clone()
    }

    /// All peers this node wants, knows by name, or has a session with.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, store::StoreError> {
        let stored = self.with_store(|store| store.peers()).await?.unwrap_or_default();
        let mut infos: Vec<PeerInfo> = self.0.hub.peers().iter().map(|peer| peer.info()).collect();
        for peer in stored {
            match infos.iter_mut().find(|info| info.id == peer.id && !info.visitor) {
                Some(info) => info.name = peer.name.map(|name| name.to_string()),
                None => infos.push(PeerInfo {
                    id: peer.id,
                    name: peer.name.map(|name| name.to_string()),
                    own_name: None,
                    wanted: peer.wanted,
                    addresses: peer.addresses,
                    last_seen: peer.last_seen_unix_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
                    session: None,
                    unreached: None,
                    visitor: false,
                }),
            }
        }
        Ok(infos)
    }

    /// Remembers across restarts that a session with this peer is wanted, and under which name. Without a home nothing is
    /// remembered, and that is no error.
    ///
    /// # Errors
    /// If the store cannot be written, or the name belongs to another peer.
    pub async fn remember(&self, id: NodeId, at: Where, name: Option<PeerName>) -> Result<(), store::StoreError> {
        let write = move |store: &Store| {
            store.change_peer(&id, |peer| {
                peer.wanted = true;
                peer.name = name.or(peer.name.take());
                if !at.addresses.is_empty() {
                    peer.addresses = at.addresses;
                }
                if !at.relays.is_empty() {
                    peer.relays = at.relays;
                }
            })
        };
        self.with_store(write).await.map(drop)
    }

    /// Remembers that no session with this peer is wanted. Its name is kept.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn forget(&self, id: NodeId) -> Result<(), store::StoreError> {
        self.with_store(move |store| match store.peer(&id)? {
            Some(_) => store.change_peer(&id, |peer| peer.wanted = false).map(drop),
            None => Ok(()),
        })
        .await
        .map(drop)
    }

    /// Forgets a peer and its name, as if it had never been remembered. Says whether it was.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn forget_all(&self, id: NodeId) -> Result<bool, store::StoreError> {
        Ok(self.with_store(move |store| store.remove_peer(&id)).await?.flatten().is_some())
    }

    /// The peer this node's owner gave that name.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn named(&self, name: &str) -> Result<Option<store::Peer>, store::StoreError> {
        let name = name.to_owned();
        Ok(self.with_store(move |store| store.by_name(&name)).await?.flatten())
    }

    /// The peers this node remembers: wanted, or named.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn stored_peers(&self) -> Result<Vec<store::Peer>, store::StoreError> {
        Ok(self.with_store(|store| store.peers()).await?.unwrap_or_default())
    }

    /// Adds a rule, in force at once and, with a home, for good. Says whether it is new. Once begun it is done as a whole, also when this
    /// is dropped.
    ///
    /// # Errors
    /// If the rule cannot be in force, or not be kept. Then nothing has changed.
    pub async fn add_rule(&self, rule: Rule) -> Result<bool, RuleError> {
        self.change_rules(move |rules, store, ledger| {
            let new = rules.add(rule.clone())?;
            if let Some(Err(error)) = store.map(|store| store.add_rule(&rule)) {
                if new {
                    rules.remove(rule.id());
                }
                return Err(error.into());
            }
            if new {
                ledger.note(Entry::rule(Change::Added, &rule));
            }
            Ok(new)
        })
        .await
    }

    /// Removes a rule that was added by command. Says whether it was there. Once begun it is done as a whole, also when this is dropped.
    ///
    /// # Errors
    /// If the store cannot be written. Then the rule stays in force.
    pub async fn remove_rule(&self, id: &str) -> Result<bool, RuleError> {
        let id = id.to_owned();
        self.change_rules(move |rules, store, ledger| {
            let stored = store.map(|store| store.remove_rule(&id)).transpose()?;
            let before = rules.handle().current().rules().find(|rule| rule.id() == id).cloned();
            let removed = rules.remove(&id) || stored == Some(true);
            if removed {
                let unknown = Entry::Policy { change: Change::Removed, rule: id.as_str().into(), says: "".into() };
                ledger.note(before.map_or(unknown, |rule| Entry::rule(Change::Removed, &rule)));
            }
            Ok(removed)
        })
        .await
    }

    /// Changes rules where they are in force, in the store and in the journal, one change after the other. Whoever asks may go away in
    /// between: what was begun on its own thread is finished there.
    async fn change_rules<T, F>(&self, change: F) -> Result<T, RuleError>
    where
        T: Send + 'static,
        F: FnOnce(&Rules, Option<&Store>, &Ledger) -> Result<T, RuleError> + Send + 'static,
    {
        let turn = self.0.rules.turn().lock_owned().await;
        let (rules, store, ledger) = (self.0.rules.clone(), self.0.store.clone(), self.0.hub.ledger().clone());
        let changed = tokio::task::spawn_blocking(move || {
            let changed = change(&rules, store.as_deref(), &ledger);
            drop(turn);
            changed
        });
        changed.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// A peer had a command done here, or tried to; none: it may do nothing here, and was not asked what it wants.
    #[cfg(feature = "cli")]
    pub(crate) fn note_administered(&self, peer: NodeId, command: Option<&'static str>, decision: &crate::policy::Decision) {
        self.0.hub.ledger().administered(peer, command, decision);
    }

    /// A peer asked for more commands at once than it may.
    #[cfg(feature = "cli")]
    pub(crate) fn note_too_many_commands(&self, peer: NodeId) {
        self.0.hub.ledger().over_administered(peer);
    }

    /// What this node carried for others since the start.
    pub fn relay_counts(&self) -> RelayCounts {
        self.0.relays.counts()
    }

    /// What was counted since the start.
    pub fn counts(&self) -> Counts {
        let served = self.0.server.counts();
        let (refused_requests, refused_invitations) = self.0.strangers.refused();
        Counts {
            calls: served.calls,
            slow_polls: served.slow_polls,
            panics: served.panics,
            repeated_calls: served.replay.joined + served.replay.repeated,
            refused_keys: served.replay.conflicts + served.replay.refused,
            forgotten_calls: served.replay.evicted + served.replay.not_kept,
            refused_handshakes: self.0.hub.endpoint().refused(),
            refused_requests,
            refused_invitations,
            failed_handshakes: self.0.hub.endpoint().failed(),
            refused_sessions: self.0.hub.ledger().refused(),
            denied_calls: served.denied,
            rated_calls: served.rated,
            denied_requests: self.0.hub.ledger().denied(),
            dials: self.0.hub.endpoint().dials(),
            links: self.0.hub.endpoint().links(),
        }
    }

    /// How often each limit turned something of a peer's away, or ended it, since the start.
    pub fn limits_hit(&self) -> impl Iterator<Item = (Limit, u64)> {
        self.0.hub.ledger().limits()
    }

    /// What became of entries of the journal since the start. All zero for a node that keeps none: without a home, or a visitor.
    pub fn journal_counts(&self) -> JournalCounts {
        self.0.hub.ledger().journal().counts()
    }

    /// Runs a task on the network's thread. What calls a lot is fastest there; it must not block.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.0.network.spawn(future)
    }

    /// Tells the node that addresses or routes of this machine have changed: paths have to prove themselves, and it tries again
    /// at once what it was waiting for. A node that [watches the network](Builder::watch_network) finds out by itself, except on
    /// phones, where the application is told by the system and passes it on. Too often does no harm.
    pub fn network_changed(&self) {
        network_changed(&self.0.hub);
    }

    /// The application is about to be stopped for a while, as phones do with those in the background. Until [`resume`](Self::resume)
    /// the node pings nobody, dials nobody and gives no path up, so nothing wakes the device, and no session counts as lost only
    /// because nobody was there to look. It still answers whoever reaches it, and calls go on as far as the system lets it run. Its
    /// peers are told nothing: for them it is gone when it does not answer, and within the resume window it comes back to the same
    /// sessions. Twice is the same as once.
    pub fn suspend(&self) {
        self.0.hub.suspend();
    }

    /// It runs again: looks at its addresses anew, has every path prove itself, and dials at once beside those that do not answer
    /// yet. Without a [`suspend`](Self::suspend) before it is the same as [`network_changed`](Self::network_changed).
    pub fn resume(&self) {
        self.0.hub.resume();
        self.network_changed();
    }

    /// Ends the node in good order: takes no new calls, lets those in flight end (at most 10 s), says goodbye, gives the home
    /// back. Calls made afterwards fail. Cancel-safe in that a second call goes on where the first one stopped.
    pub async fn shutdown(&self) {
        let hub = self.0.hub.clone();
        let drained = self.0.network.spawn(async move {
            hub.drain().await;
            hub.endpoint().close(CloseCode::Goodbye).await;
        });
        let _ = drained.await;
        let tasks = std::mem::take(&mut *self.0.tasks.lock().expect("nothing panics while it is held"));
        for task in tasks {
            let _ = task.await;
        }
        let (exposed, forwards) = std::mem::take(&mut *self.0.tunnels.lock().expect("nothing panics while it is held"));
        drop(exposed);
        for forward in forwards {
            forward.close().await;
        }
        self.0.targets.close();
        let wires = self.0.wires.clone();
        let ledger = self.0.hub.ledger().clone();
        let last = self.owns_home();
        // A rule that is being changed is written down first.
        let turn = self.0.rules.turn().lock_owned().await;
        let closed = tokio::task::spawn_blocking(move || {
            wires.close();
            if last {
                ledger.write_commands();
                ledger.note(Entry::Stopped);
                ledger.journal().close();
            }
            drop(turn);
        });
        let _ = closed.await;
        drop(self.0.lock.lock().expect("nothing panics while it is held").take());
    }

    /// Exposes and forwards what the configuration says.
    async fn begin_tunnels(
        &self,
        expose: &[config::Expose],
        forward: impl Iterator<Item = (&config::Forward, (NodeId, Where))>,
    ) -> Result<(), BindError> {
        let exposed: Result<Vec<_>, _> = expose.iter().map(|expose| self.expose(&expose.name, &expose.target)).collect();
        let (exposed, mut forwards) = (exposed?, Vec::new());
        for (forward, (id, at)) in forward {
            forwards.push(self.hold_at(id, &at).forward(forward.listen, &forward.name).await?);
        }
        *self.0.tunnels.lock().expect("nothing panics while it is held") = (exposed, forwards);
        Ok(())
    }

    /// Keeps the store's memory of when peers were seen, and where.
    fn remember_who_is_seen(&self) {
        let Some(store) = self.0.store.clone() else { return };
        if !self.owns_home() {
            return;
        }
        let (hub, mut events) = (self.0.hub.clone(), self.0.hub.events());
        self.run(async move {
            while let Some(event) = next(&mut events).await {
                let Event::Connected { peer, .. } = event else { continue };
                let addresses = hub.known_peer(peer).map(|peer| peer.addresses()).unwrap_or_default();
                let store = store.clone();
                let seen = tokio::task::spawn_blocking(move || store.set_seen(&peer, unix_ms(), &addresses));
                if let Ok(Err(error)) = seen.await {
                    tracing::warn!(%error, "could not note that a peer was seen");
                }
            }
        });
    }

    /// Tells those that were left without a word, and keeps the list of those that would be next time.
    fn tell_of_the_restart(&self, before: Vec<Listed>) {
        let Some(home) = self.0.home.as_ref().filter(|_| self.owns_home()) else { return };
        let (hub, untold) = (self.0.hub.clone(), Untold::new(before));
        let keep = restart::keep(List::new(home.file(files::SESSIONS)), hub.clone(), untold.clone(), hub.events());
        self.run(keep);
        self.run(untold.tell(hub));
    }

    /// Whether this is the node of its home, not a visitor beside it.
    fn owns_home(&self) -> bool {
        self.0.lock.lock().expect("nothing panics while it is held").is_some()
    }

    /// Runs a part of the node, which ends when the events do.
    fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.0.network.spawn(task);
        let mut tasks = self.0.tasks.lock().expect("nothing panics while it is held");
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Until the node stops, which ends its events.
    fn watch_network(&self) {
        let (hub, mut events) = (self.0.hub.clone(), self.0.hub.events());
        self.run(async move {
            let mut watch = Watch::start();
            loop {
                tokio::select! {
                    biased;
                    event = next(&mut events) => if event.is_none() {
                        return;
                    },
                    change = watch.changed() => {
                        tracing::info!(?change, "this machine has changed");
                        network_changed(&hub);
                    }
                }
            }
        });
    }

    async fn with_store<T, F>(&self, work: F) -> Result<Option<T>, store::StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Store) -> Result<T, store::StoreError> + Send + 'static,
    {
        let Some(store) = self.0.store.clone() else { return Ok(None) };
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done.map(Some),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).field("listening", &self.listening()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.hub.stop();
        // Sessions that others still hold keep the endpoint, but not its links.
        self.hub.endpoint().end(CloseCode::Goodbye);
        for task in self.tasks.get_mut().map(std::mem::take).unwrap_or_default() {
            task.abort();
        }
    }
}

/// Who is meant, and where they are.
fn targets(peers: Vec<PeerRef>, stored: &[store::Peer]) -> Result<Vec<(NodeId, Where)>, BindError> {
    let named = |name: &PeerName| stored.iter().find(|peer| peer.name.as_ref() == Some(name));
    let target = |peer: PeerRef| match &peer {
        PeerRef::Id(id) => Ok((*id, Where::default())),
        PeerRef::Ticket(ticket) => Ok((ticket.id, Where::from(&**ticket))),
        PeerRef::Name(name) => match named(name) {
            Some(peer) => Ok((peer.id, peer.at())),
            None => Err(BindError::UnknownName(name.to_string())),
        },
    };
    peers.into_iter().map(target).collect()
}

/// The events of a node, from when they were asked for.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` when the node has ended. A reader that is more than 1,024 events behind is told so by
    /// [`Event::Missed`]. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        next(&mut self.0).await
    }
}

async fn next(events: &mut broadcast::Receiver<Event>) -> Option<Event> {
    match events.recv().await {
        Ok(event) => Some(event),
        Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
        Err(broadcast::error::RecvError::Closed) => None,
    }
}

/// What the endpoint does comes first: what the hub has sent then leaves from where it should.
fn network_changed(hub: &Hub) {
    hub.set_addresses(addresses::reachable(hub.endpoint().local()));
    hub.endpoint().network_changed();
    hub.network_changed();
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
