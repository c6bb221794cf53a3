//! [`Builder`]: what a node is to be, checked and made real by [`Builder::bind`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::config::{self, Config, DEFAULT_LISTEN, Expose, Forward, Limits, PeerRef, RateRule, RelayMode};
use super::doors::Doors;
use super::home::{Home, Lock, files};
use super::reload::{FileRead, Reloader};
use super::restart::{List, Listed};
use super::rules::{Configured, Rules};
use super::store::{self, Store};
use super::strangers::Strangers;
use super::{Before, BindError, Node, Parts, Wanted};
use crate::id::{SecretKey, Ticket, keyfile};
use crate::journal::{Bounds, Entry, Journal};
use crate::net::ends::EndsConfig;
use crate::net::{self, Bounds as NetBounds, Endpoint, Network, RestartKeys, Transport};
use crate::policy::Rule;
use crate::proto::control::{BootId, Profile, Role};
use crate::relay::Relays;
use crate::service::{CallBounds, Rates, Registry, Server, Service};
use crate::session::{Hub, Ledger, Own, Porter};
use crate::tunnel::Targets;
use crate::wire::{WireBounds, Wires};

/// What a node is to be. Made by [`Node::builder`].
///
/// With a [home](Builder::home) the node keeps its key, its peers and its rules there; without one it is a new node each time.
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it binds"]
pub struct Builder {
    config: Config,
    /// Whether the configuration was given whole, and the home's is not to be read.
    whole: bool,
    passphrase: Option<Zeroizing<String>>,
    key: Option<SecretKey>,
    services: Vec<Service>,
    visitor: bool,
    transport: Option<Transport>,
    seed: Option<u64>,
    watch_network: Option<bool>,
}

impl Builder {
    /// The directory the node keeps everything in; made if it is not there. What `volt.toml` in it says is read too.
    pub fn home(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.home = Some(path.into());
        self
    }

    /// The whole configuration; its home replaces the one set before. What `volt.toml` in that home says is not read.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self.whole = true;
        self
    }

    /// The passphrase of the key in the home; also for making one.
    pub fn passphrase(mut self, passphrase: impl Into<String>) -> Self {
        self.passphrase = Some(Zeroizing::new(passphrase.into()));
        self
    }

    /// The node's key, instead of the one in the home.
    pub fn key(mut self, key: SecretKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Serves this service from the start. Who may call it is up to the policy: by default nobody.
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// Listens at this address too. Without any: `[::]:8658`, or another port if that is taken; without a home, any port.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.config.listen.push(address);
        self
    }

    /// What the node calls itself, for display.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
        self
    }

    /// How eagerly idle paths are watched.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.config.profile = profile;
        self
    }

    /// Anyone may connect and call everything this node serves, unless a rule denies it.
    pub fn open(mut self, open: bool) -> Self {
        self.config.open = open;
        self
    }

    /// What becomes of those who want to connect and of whom no rule says anything: see [`Node::listen`].
    pub fn strangers(mut self, strangers: config::Strangers) -> Self {
        self.config.strangers = strangers;
        self
    }

    /// Adds a rule, as if it stood in the configuration.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.config.rules.push(rule);
        self
    }

    /// Bounds how often callers may call, as if it stood in the configuration. For one method of one's own there is [`Service::rate`].
    pub fn rate(mut self, rate: RateRule) -> Self {
        self.config.rates.push(rate);
        self
    }

    /// Keeps a session with this peer from the start.
    pub fn connect(mut self, ticket: Ticket) -> Self {
        self.config.connect.push(PeerRef::Ticket(Box::new(ticket)));
        self
    }

    /// Keeps a session with this peer from the start, and mirrors in this node's directory what is registered with it for all.
    pub fn mirror(mut self, ticket: Ticket) -> Self {
        self.config.mirror.push(PeerRef::Ticket(Box::new(ticket)));
        self
    }

    /// Keeps a session with this peer from the start, and looks up services there that this node's own directory does not have, when
    /// only their names are given.
    pub fn home_volt(mut self, ticket: Ticket) -> Self {
        self.config.homes.push(PeerRef::Ticket(Box::new(ticket)));
        self
    }

    /// Keeps a session with this relay from the start: the node is reached through it where it cannot be dialled, and reaches others
    /// through it. Its tickets name it. Several may be given, the preferred one first.
    pub fn home_relay(self, ticket: Ticket) -> Self {
        self.home_relay_at(PeerRef::Ticket(Box::new(ticket)))
    }

    /// The same, with a relay that is known by its id, or by the name this node's owner gave it.
    pub fn home_relay_at(mut self, relay: PeerRef) -> Self {
        self.config.relays.push(relay);
        self
    }

    /// Carries circuits for others, who may not read what is on them.
    pub fn relay(mut self, mode: RelayMode) -> Self {
        self.config.relay = Some(mode);
        self
    }

    /// Lets peers reach this TCP target, `HOST:PORT`, under this name from the start, as far as rules permit them to.
    /// [`Node::expose`] does it later.
    pub fn expose(mut self, name: impl Into<String>, target: impl Into<String>) -> Self {
        self.config.expose.push(Expose { name: name.into(), target: target.into() });
        self
    }

    /// Keeps a session with this peer from the start, and brings what it exposes under this name to a local address.
    /// [`Session::forward`](crate::Session::forward) does it later.
    pub fn forward(mut self, listen: SocketAddr, ticket: Ticket, name: impl Into<String>) -> Self {
        self.config.forward.push(Forward { listen, peer: PeerRef::Ticket(Box::new(ticket)), name: name.into() });
        self
    }

    /// Whether the node watches this machine's interfaces, addresses and routes, and its sleep, and tries at once what they may
    /// have changed. It does, unless told otherwise; without it a change is noticed when paths stop answering, or when
    /// [`Node::network_changed`] says so.
    pub fn watch_network(mut self, watch: bool) -> Self {
        self.watch_network = Some(watch);
        self
    }

    /// A short-lived node beside the one that owns the home: the same key, another port, nothing written. It is nobody's
    /// presence and supersedes nobody.
    pub fn visitor(mut self) -> Self {
        self.visitor = true;
        self
    }

    /// Sends and receives through something other than UDP sockets.
    #[doc(hidden)]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Draws the times of attempts, and QUIC's own choices, from this seed.
    #[doc(hidden)]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Opens the home, binds the sockets and starts the node. On a current-thread runtime the node lives there; anywhere else
    /// its network gets a thread of its own.
    ///
    /// Not cancel-safe in this sense: dropped half-way, what was made in the home stays there.
    ///
    /// # Errors
    /// [`BindError`], which says what to do. Nothing runs then.
    pub async fn bind(self) -> Result<Node, BindError> {
        let kept = tokio::task::spawn_blocking({
            let (home, key, passphrase, visitor) = (self.config.home.clone(), self.key.clone(), self.passphrase, self.visitor);
            let read = !self.whole;
            move || Kept::open(home, key, passphrase.as_ref().map(|text| text.as_str()), visitor, read)
        });
        let mut kept = kept.await.map_err(|error| BindError::System(error.to_string()))??;
        let (read, asked) = (kept.config.take(), self.config);
        let mut config = overlay(read.as_ref().map(|read| read.config.clone()), asked.clone());
        config.check()?;
        let rules = Rules::new(Configured::take(&mut config), kept.stored_rules.iter().cloned())?;
        let registry = Registry::default();
        for service in self.services {
            registry.add(service)?.keep();
        }

        let network = Network::choose().map_err(net::BindError::System)?;
        let bounds = NetBounds { limits: config.limits.clone(), exempt: config.exempt.clone() };
        // Whoever sends through something else does not depend on this machine's network.
        let on_this_machine = !matches!(self.transport, Some(Transport::Abstract(..)));
        let watch_network = self.watch_network.unwrap_or(on_this_machine);
        let endpoint = match self.transport {
            Some(transport) => Endpoint::bind(&kept.key, &kept.restart, transport, &bounds, &network, self.seed)?,
            None => kept.bind(&config.listen, self.visitor, &bounds, &network)?,
        };
        let journal = kept.journal(&config.limits).await?;
        let policy = rules.handle().clone();
        journal.knows(move |peer| policy.current().is_trusted(peer));
        let reloader = read.zip(kept.home.clone()).filter(|_| !self.visitor).map(|(read, home)| {
            Reloader::new(home, (rules.clone(), journal.clone()), read, (asked, config.clone()), on_this_machine)
        });
        let own = Own {
            id: kept.key.id(),
            boot: BootId::random(),
            role: if self.visitor { Role::Visitor } else { Role::Node },
            name: config.name.clone().unwrap_or_default(),
            profile: config.profile,
            seed: self.seed.unwrap_or_else(rand::random),
            limits: config.limits.clone(),
        };
        let runtime = tokio::runtime::Handle::try_current().ok().filter(is_multi_thread);
        let server = {
            let (registry, network) = (registry.clone(), network.handle().clone());
            let policy = rules.handle().clone();
            let bounds = CallBounds {
                deadline_max: config.limits.call_deadline_max,
                rates: Rates::new(&config.rates),
                registrations: config.limits.registrations,
            };
            Arc::new(Server::new(own.id, registry, policy, (runtime, network), bounds))
        };
        let wires = Arc::new(kept.wires(&network, &config.limits).await?);
        let ends = EndsConfig::new(&kept.key).map_err(|error| BindError::System(error.to_string()))?;
        let relays = Relays::new(own.id, ends, &config.limits);
        let targets = Arc::new(Targets::new(network.clone(), config.limits.node_tunnels));
        let doors = Doors { server: server.clone(), wires: wires.clone(), targets: targets.clone(), relays: relays.clone() };
        let invitations = kept.store.as_ref().filter(|_| !self.visitor);
        let strangers = Strangers::new(own.id, rules.clone(), invitations, &kept.invites);
        journal.note(Entry::Started { version: env!("CARGO_PKG_VERSION"), rules: rules.handle().current().rules().count() });
        let trust: (Arc<dyn Porter>, _) = (Arc::new(strangers.clone()), Arc::new(Ledger::new(journal)));
        let (hub, tasks) = Hub::new(own, endpoint, rules.handle().clone(), Arc::new(doors), trust);
        server.directory().tell_to(hub.teller());
        let (home, store, lock) = (kept.home, kept.store, kept.lock);
        let before = Before { peers: kept.stored_peers, sessions: kept.sessions };
        let parts = Parts {
            hub,
            rules,
            strangers,
            reloader,
            registry,
            server,
            wires,
            targets,
            relays,
            network,
            home,
            store,
            lock,
            watch_network,
            before,
        };
        // A visitor is there for one command, beside the node that does all this.
        let (expose, forward) = if self.visitor { Default::default() } else { (config.expose, config.forward) };
        let Config { connect, mirror, homes, relays, .. } = config;
        let peers = Wanted { connect, mirror, homes, relays, expose, forward };
        Node::start(parts, tasks, peers).await
    }
}

fn is_multi_thread(handle: &tokio::runtime::Handle) -> bool {
    handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread
}

/// What the program asked for, on top of what the home's configuration says.
pub(super) fn overlay(file: Option<Config>, asked: Config) -> Config {
    let Some(file) = file else { return asked };
    Config {
        home: asked.home,
        listen: if asked.listen.is_empty() { file.listen } else { asked.listen },
        name: asked.name.or(file.name),
        profile: if asked.profile == Profile::default() { file.profile } else { asked.profile },
        connect: file.connect.into_iter().chain(asked.connect).collect(),
        mirror: file.mirror.into_iter().chain(asked.mirror).collect(),
        homes: file.homes.into_iter().chain(asked.homes).collect(),
        relays: asked.relays.into_iter().chain(file.relays).collect(),
        relay: asked.relay.or(file.relay),
        expose: file.expose.into_iter().chain(asked.expose).collect(),
        forward: file.forward.into_iter().chain(asked.forward).collect(),
        rules: file.rules.into_iter().chain(asked.rules).collect(),
        groups: file.groups,
        open: file.open || asked.open,
        strangers: if asked.strangers == config::Strangers::default() { file.strangers } else { asked.strangers },
        exempt: file.exempt,
        rates: file.rates.into_iter().chain(asked.rates).collect(),
        limits: file.limits,
    }
}

/// What a home holds for a node, or what stands in for it.
struct Kept {
    key: SecretKey,
    restart: RestartKeys,
    home: Option<Home>,
    store: Option<Arc<Store>>,
    lock: Option<Lock>,
    config: Option<FileRead>,
    stored_rules: Vec<Rule>,
    stored_peers: Vec<store::Peer>,
    /// Invitations that are good for something.
    invites: Vec<store::Invitation>,
    /// Left by a process that was killed.
    sessions: Vec<Listed>,
}

impl Kept {
    /// Reads files, so it is not for an asynchronous thread.
    fn open(
        home: Option<PathBuf>,
        key: Option<SecretKey>,
        passphrase: Option<&str>,
        visitor: bool,
        read: bool,
    ) -> Result<Self, BindError> {
        let Some(path) = home else {
            // A key that was given comes back with the next process, and so do the peers' dead links to this one.
            let restart = key.as_ref().filter(|_| !visitor).map_or_else(RestartKeys::random, RestartKeys::of);
            let key = key.unwrap_or_else(SecretKey::generate);
            let (stored_rules, stored_peers, sessions) = Default::default();
            let (home, store, lock, config, invites) = Default::default();
            return Ok(Self { key, restart, home, store, lock, config, stored_rules, stored_peers, invites, sessions });
        };
        let home = if visitor { Home::existing(&path)? } else { Home::open(&path)? };
        let config = read.then(|| FileRead::of(&home)).transpose()?;
        let identity = home.file(files::IDENTITY);
        let key = match (key, visitor) {
            (Some(key), _) => key,
            (None, true) => keyfile::load(&identity, passphrase)?,
            (None, false) => keyfile::load_or_create(&identity, passphrase)?,
        };
        let (lock, store, restart) = if visitor {
            (None, Store::open_read_only(home.file(files::STORE))?, RestartKeys::random())
        } else {
            (Some(home.lock()?), Store::open(home.file(files::STORE))?, restart_keys(&home)?)
        };
        let (stored_rules, stored_peers) = (store.rules()?, store.peers()?);
        let invites = if visitor { Vec::new() } else { store.invitations(super::unix_ms())? };
        let sessions = lock.as_ref().map(|_| List::new(home.file(files::SESSIONS)).read()).unwrap_or_default();
        let (home, store) = (Some(home), Some(Arc::new(store)));
        Ok(Self { key, restart, home, store, lock, config, stored_rules, stored_peers, invites, sessions })
    }

    /// The journal in the home. A visitor keeps none: it does what its owner says.
    async fn journal(&self, limits: &Limits) -> Result<Journal, BindError> {
        let Some(home) = self.home.as_ref().filter(|_| self.lock.is_some()) else { return Ok(Journal::none()) };
        let bounds = Bounds { bytes: limits.journal_bytes, files: limits.journal_files };
        let directory = home.path().to_owned();
        let opened = tokio::task::spawn_blocking(move || Journal::open(&directory, bounds)).await;
        Ok(opened.map_err(|error| BindError::System(error.to_string()))??)
    }

    /// The wires that are kept in the home. A visitor hosts none.
    async fn wires(&self, network: &Network, limits: &Limits) -> Result<Wires, BindError> {
        let bounds = WireBounds { wires: limits.wires, disk_free_bytes: limits.wire_disk_free_bytes };
        let home = self.home.as_ref().filter(|_| self.lock.is_some());
        let (directory, network) = (home.map(|home| home.file(files::WIRES)), network.clone());
        let opened = tokio::task::spawn_blocking(move || Wires::open(directory, network, bounds)).await;
        Ok(opened.map_err(|error| BindError::System(error.to_string()))??)
    }

    /// Binds where the configuration says; without a word from it, at the default port, the one chosen before, or a free one.
    fn bind(&self, listen: &[SocketAddr], visitor: bool, bounds: &NetBounds, network: &Network) -> Result<Endpoint, BindError> {
        let bind = |addresses: Vec<SocketAddr>| {
            Endpoint::bind(&self.key, &self.restart, Transport::Udp(addresses), bounds, network, None)
        };
        if !listen.is_empty() && !visitor {
            return Ok(bind(listen.to_vec())?);
        }
        let any = |port: u16| {
            let v4 = || bind(vec![(Ipv4Addr::UNSPECIFIED, port).into()]);
            bind(vec![(Ipv6Addr::UNSPECIFIED, port).into()]).or_else(|_| v4())
        };
        let Some(home) = self.home.as_ref().filter(|_| !visitor) else { return Ok(any(0)?) };
        let chosen = home.port()?;
        if let Ok(endpoint) = any(chosen.unwrap_or(DEFAULT_LISTEN.port())) {
            return Ok(endpoint);
        }
        let endpoint = any(0)?;
        if let Some(address) = endpoint.local().first() {
            tracing::warn!(port = address.port(), "the usual port is taken; this one is used, and kept for later");
            home.remember_port(address.port())?;
        }
        Ok(endpoint)
    }
}

fn restart_keys(home: &Home) -> Result<RestartKeys, BindError> {
    let mut restart = RestartKeys::random();
    restart.reset.copy_from_slice(&keyfile::read_or_create_secret(&home.file(files::RESET_KEY), 64)?);
    let connection_id = keyfile::read_or_create_secret(&home.file(files::CONNECTION_ID_KEY), 16)?;
    restart.connection_id = u64::from_le_bytes(std::array::from_fn(|at| connection_id[at]));
    Ok(restart)
}
