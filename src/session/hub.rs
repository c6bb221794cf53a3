//! All sessions of a node: who is wanted, who is here, and the tasks that see to it. One owner task per peer; this file starts
//! them, hands them links, and joins them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::accept::Acceptor;
use super::detached::Detached;
use super::event::Event;
use super::greet::Greeted;
use super::hearing::{Hearing, Leave};
use super::ledger::Ledger;
use super::owner::Owner;
use super::peer::{Command, Peer};
use super::porter::Porter;
use super::room::{Arriving, Place};
use super::via::Where;
use crate::id::{NodeId, Relay};
use crate::journal::{By, Entry, Journal};
use crate::net::{Endpoint, Link};
use crate::policy::{Action, PolicyHandle};
use crate::proto::close::CloseCode;
use crate::proto::control::{BootId, Profile, Role};
use crate::proto::limits::{self, Limits};
use crate::state::budget::Budget;
use crate::state::roster::{LinkNumber, Parked, Roster};

/// Events kept for a reader that is slow; beyond them it is told how many it missed.
const EVENTS: usize = 1_024;

/// What was counted is in the journal after so long.
const WRITE_COUNTS: Duration = Duration::from_secs(60);
/// When the journal is looked at again that had no room for them.
const HAS_ROOM: Duration = Duration::from_millis(10);

/// What this node says of itself.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its key's id.
    pub id: NodeId,
    /// This process.
    pub boot: BootId,
    /// A running node, or a visitor.
    pub role: Role,
    /// Its name, for display.
    pub name: String,
    /// How eagerly it watches idle paths.
    pub profile: Profile,
    /// What the times of its attempts are drawn from.
    pub seed: u64,
    /// The limits its operator may have changed.
    pub limits: Limits,
}

/// All sessions of a node. Clones share them.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    own: Own,
    addresses: Mutex<Vec<SocketAddr>>,
    /// Relays that this node keeps sessions with, in the order of preference.
    relays: Mutex<Vec<Relay>>,
    endpoint: Endpoint,
    policy: PolicyHandle,
    budget: Arc<Budget>,
    acceptor: Arc<dyn Acceptor>,
    roster: Mutex<Roster>,
    parked: Mutex<HashMap<LinkNumber, oneshot::Sender<Parked>>>,
    arriving: Arriving,
    /// In order, so that what is done to all of them is done in the same order in every simulation.
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    visitors: Mutex<BTreeMap<(NodeId, BootId), Arc<Peer>>>,
    /// Gone once the tasks have been told to end: then every reader is told that there is no more.
    events: Mutex<Option<broadcast::Sender<Event>>>,
    owners: mpsc::UnboundedSender<Owner>,
    detached: Arc<Detached>,
    draining: AtomicBool,
    suspended: AtomicBool,
    stop: watch::Sender<bool>,
    porter: Arc<dyn Porter>,
    hearing: Hearing,
    ledger: Arc<Ledger>,
}

/// A hub that may be gone.
#[derive(Clone)]
pub struct WeakHub(Weak<Inner>);

impl WeakHub {
    /// The hub, while it is there.
    pub fn upgrade(&self) -> Option<Hub> {
        self.0.upgrade().map(Hub)
    }
}

/// The tasks of a hub, to be run by whoever owns the node.
pub struct HubTasks {
    hub: Hub,
    owners: mpsc::UnboundedReceiver<Owner>,
}

impl Hub {
    /// Sets up the sessions of a node; nothing happens until the tasks are run.
    pub fn new(
        own: Own,
        endpoint: Endpoint,
        policy: PolicyHandle,
        acceptor: Arc<dyn Acceptor>,
        (porter, ledger): (Arc<dyn Porter>, Arc<Ledger>),
    ) -> (Self, HubTasks) {
        let (owners, new_owners) = mpsc::unbounded_channel();
        let hub = Self(Arc::new(Inner {
            roster: Mutex::new(Roster::new(own.id, own.limits.visitors)),
            budget: Budget::new(own.limits.node_buffer_bytes),
            own,
            addresses: Mutex::default(),
            relays: Mutex::default(),
            endpoint,
            policy,
            acceptor,
            parked: Mutex::default(),
            arriving: Arriving::default(),
            peers: Mutex::default(),
            visitors: Mutex::default(),
            events: Mutex::new(Some(broadcast::channel(EVENTS).0)),
            owners,
            detached: Arc::default(),
            draining: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            stop: watch::Sender::new(false),
            porter,
            hearing: Hearing::default(),
            ledger,
        }));
        (hub.clone(), HubTasks { hub, owners: new_owners })
    }

    /// What this node says of itself.
    pub fn own(&self) -> &Own {
        &self.0.own
    }

    /// The port it listens and dials on.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    /// The policy in force.
    pub fn policy(&self) -> &PolicyHandle {
        &self.0.policy
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    /// The sessions without a path.
    pub(super) fn detached(&self) -> &Arc<Detached> {
        &self.0.detached
    }

    pub(super) fn porter(&self) -> &Arc<dyn Porter> {
        &self.0.porter
    }

    /// Leave to hear a stranger out; `None`: too many are being heard, or too many from there.
    pub(super) fn hear(&self, link: &Link) -> Option<Leave> {
        self.0.hearing.enter((link.remote().ip(), link.is_relayed()))
    }

    pub(super) fn acceptor(&self) -> &Arc<dyn Acceptor> {
        &self.0.acceptor
    }

    /// Where this node tells its peers it can be dialled.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        lock(&self.0.addresses).clone()
    }

    /// Sets where this node tells its peers it can be dialled.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *lock(&self.0.addresses) = addresses;
    }

    /// The relays this node keeps sessions with, and where they are as far as is known.
    pub fn relays(&self) -> Vec<Relay> {
        let mut relays = lock(&self.0.relays).clone();
        for relay in &mut relays {
            for address in self.known_peer(relay.id).map(|peer| peer.addresses()).unwrap_or_default() {
                if relay.addresses.len() < limits::ADDRESSES && !relay.addresses.contains(&address) {
                    relay.addresses.push(address);
                }
            }
        }
        relays
    }

    /// Sets the relays that this node keeps sessions with: it is reached through them, and reaches others through them.
    pub fn set_relays(&self, relays: Vec<Relay>) {
        *lock(&self.0.relays) = relays;
    }

    /// The same hub, for whoever must not keep it alive.
    pub fn downgrade(&self) -> WeakHub {
        WeakHub(Arc::downgrade(&self.0))
    }

    /// Events from now on. They end when the hub is stopped.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        let subscribed = lock(&self.0.events).as_ref().map(broadcast::Sender::subscribe);
        subscribed.unwrap_or_else(|| broadcast::channel(1).1)
    }

    /// Tells what happens, for whoever must not keep the hub alive.
    pub fn teller(&self) -> impl Fn(Event) + Send + Sync + 'static + use<> {
        let hub = Arc::downgrade(&self.0);
        move |event| hub.upgrade().into_iter().for_each(|hub| Hub(hub).emit(event.clone()))
    }

    pub fn emit(&self, event: Event) {
        tracing::info!(?event);
        if let Some(events) = &*lock(&self.0.events) {
            let _ = events.send(event);
        }
    }

    pub(super) fn roster(&self) -> MutexGuard<'_, Roster> {
        lock(&self.0.roster)
    }

    pub(super) fn arriving(&self) -> &Arriving {
        &self.0.arriving
    }

    pub(super) fn parked(&self) -> MutexGuard<'_, HashMap<LinkNumber, oneshot::Sender<Parked>>> {
        lock(&self.0.parked)
    }

    /// A link has ended, whatever it was. Of a node that has no owner nothing is remembered then: strangers who come and go
    /// with a new key each time must leave nothing behind.
    pub(super) fn ended(&self, peer: NodeId, link: LinkNumber) {
        let known = self.known_peer(peer).is_some();
        let parked = {
            let mut roster = self.roster();
            let parked = roster.ended(peer, link);
            if !known {
                roster.forget(peer);
            }
            parked
        };
        self.tell_parked(parked);
    }

    /// Keeps a session with this peer from now on. What is told of where it is, is added to what is known.
    pub fn want(&self, id: NodeId, at: &Where) -> Arc<Peer> {
        self.ask(id, |peer| peer.want(at))
    }

    /// Asks something of a peer's owner, which is started if it does not run. Under one lock with [`Hub::retire`], so that an
    /// owner about to end either sees what is asked or has ended before.
    fn ask(&self, id: NodeId, ask: impl FnOnce(&Peer)) -> Arc<Peer> {
        let mut peers = lock(&self.0.peers);
        let peer = peers.entry(id).or_insert_with(|| self.start_owner(id, None));
        ask(peer);
        peer.clone()
    }

    /// The peer of this id, if it is wanted or here.
    pub fn known_peer(&self, id: NodeId) -> Option<Arc<Peer>> {
        lock(&self.0.peers).get(&id).cloned()
    }

    /// Whether a path carries the session with this node, and answers as far as is known.
    pub(super) fn is_answering(&self, id: NodeId) -> bool {
        self.known_peer(id).is_some_and(|peer| peer.attached().is_some()) && !self.roster().is_suspect(id)
    }

    /// The peer of this id in this role: of visitors, the one with this process.
    pub(super) fn peer_of(&self, id: NodeId, role: Role, boot: BootId) -> Option<Arc<Peer>> {
        match role {
            Role::Node => self.known_peer(id),
            Role::Visitor => lock(&self.0.visitors).get(&(id, boot)).cloned(),
        }
    }

    /// All peers wanted or here.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        let mut peers: Vec<_> = lock(&self.0.peers).values().cloned().collect();
        peers.extend(lock(&self.0.visitors).values().cloned());
        peers
    }

    /// An owner has nothing more to do for this peer; unless something came in meanwhile it is forgotten. Says whether.
    pub(super) fn retire(&self, peer: &Arc<Peer>, idle: impl FnOnce() -> bool) -> bool {
        let mut peers = lock(&self.0.peers);
        let mut visitors = lock(&self.0.visitors);
        if !idle() {
            return false;
        }
        match peer.visitor {
            Some(boot) => drop(visitors.remove(&(peer.id, boot))),
            None => {
                peers.remove(&peer.id);
                self.roster().forget(peer.id);
            }
        }
        true
    }

    fn start_owner(&self, id: NodeId, visitor: Option<BootId>) -> Arc<Peer> {
        let (peer, owner) = Owner::new(self.clone(), id, visitor);
        // Fails only when the node has stopped; then the peer stays unconnected, and says so.
        let _ = self.0.owners.send(owner);
        peer
    }

    /// Hands a greeted link to the owner of its peer, with the place it has until the session is on it.
    pub(super) fn deliver(&self, greeted: Greeted, place: Place) {
        let id = greeted.agreement.link.peer();
        let (role, boot) = (greeted.agreement.hello.role, greeted.agreement.hello.boot);
        let link = greeted.agreement.link.clone();
        let attach = Command::Attach(Box::new(greeted), place);
        // Looked at under the lock: whoever is listed before the drain begins is drained, and nobody is listed after.
        match role {
            Role::Node => {
                let mut peers = lock(&self.0.peers);
                if self.is_draining() {
                    drop(peers);
                    return self.too_late(&link);
                }
                peers.entry(id).or_insert_with(|| self.start_owner(id, None)).command(attach);
            }
            Role::Visitor => {
                let mut visitors = lock(&self.0.visitors);
                if self.is_draining() {
                    drop(visitors);
                    return self.too_late(&link);
                }
                visitors.entry((id, boot)).or_insert_with(|| self.start_owner(id, Some(boot))).command(attach);
            }
        }
    }

    /// The application is about to stop running, or has stopped.
    pub(super) fn is_suspended(&self) -> bool {
        self.0.suspended.load(SeqCst)
    }

    /// This node goes down.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(SeqCst)
    }

    fn too_late(&self, link: &Link) {
        link.close(CloseCode::Goodbye);
        self.ended(link.peer(), link.number());
    }

    /// Greets whoever has dialled this link, and puts a session on it.
    pub async fn take_in(self, link: Link) {
        if self.is_draining() {
            return link.close(CloseCode::Goodbye);
        }
        let place = match self.has_room_for(&link) {
            Ok(place) => place,
            Err(why) => {
                tracing::debug!(peer = %link.peer().short(), why, "no room for a link");
                self.refused_here(&link, &why);
                return link.close(CloseCode::Refused);
            }
        };
        if let Some(peer) = self.known_peer(link.peer()) {
            peer.command(Command::PeerDialled);
        }
        if let Ok(greeted) = self.greet_accepted(link).await {
            self.deliver(greeted, place);
        }
    }

    /// Ends everything in good order: each peer is told, calls in flight are finished within the time the limits grant. Waits for it.
    pub async fn drain(&self) {
        self.0.draining.store(true, SeqCst);
        let drained: Vec<_> = self.peers().into_iter().map(|peer| peer.drain()).collect();
        // Each has its own bound, which is shorter; whatever goes wrong, going down ends.
        let _ = timeout(2 * self.own().limits.drain + limits::ANSWER_BOUND, futures_util::future::join_all(drained)).await;
        self.stop();
    }

    /// Addresses or routes changed: whoever waits to dial, dials.
    pub fn network_changed(&self) {
        self.peers().iter().for_each(|peer| peer.command(Command::NetworkChanged));
    }

    /// The application is about to stop running: until it is resumed nothing is pinged, dialled or given up.
    pub fn suspend(&self) {
        self.0.suspended.store(true, SeqCst);
        self.peers().iter().for_each(|peer| peer.command(Command::Suspend));
    }

    /// It runs again: paths have to prove themselves, and whoever wants to dial, dials.
    pub fn resume(&self) {
        self.0.suspended.store(false, SeqCst);
        self.peers().iter().for_each(|peer| peer.command(Command::Resume));
    }

    /// What was turned away, and the journal.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.0.ledger
    }

    /// Where it is written who was let in or refused.
    pub(super) fn journal(&self) -> &Journal {
        self.ledger().journal()
    }

    /// A peer is turned away by policy or a limit: counts it, and writes it down.
    pub(super) fn refused_here(&self, link: &Link, why: &dyn std::fmt::Display) {
        self.ledger().count_refused();
        if !self.journal().is_kept() {
            return;
        }
        let decision = self.policy().decide(&link.peer(), Action::Connect, "");
        // A rule that denies is the reason, whatever else there was; where no rule is about it, there may have been another one.
        let by = By::of(&decision).filter(|_| !decision.is_permit());
        let reason = if by.is_some() { "policy".into() } else { why.to_string().as_str().into() };
        let from = (!link.is_relayed()).then(|| link.remote());
        self.journal().note(Entry::Refused { peer: link.peer(), reason, by, from });
    }

    /// Writes into the journal what sessions have counted: each minute in which they did, until the hub is stopped.
    pub async fn write_counts(self) {
        let mut stop = self.0.stop.subscribe();
        let mut each_minute = std::pin::pin!(async {
            loop {
                self.ledger().due().await;
                tokio::time::sleep(WRITE_COUNTS).await;
                self.ledger().write_commands();
                for core in self.peers().iter().filter_map(|peer| peer.core()) {
                    // Many sessions have many lines: what happens meanwhile must find room, and calls their turn.
                    while !self.journal().has_room() {
                        tokio::time::sleep(HAS_ROOM).await;
                    }
                    core.write_counts();
                    tokio::task::yield_now().await;
                }
            }
        });
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => {}
            () = &mut each_minute => {}
        }
    }

    /// Ends the tasks now, and the events.
    pub fn stop(&self) {
        self.0.stop.send_replace(true);
        lock(&self.0.events).take();
    }
}

impl HubTasks {
    /// Takes in links and runs the owners of peers until the hub is stopped. Owns all of them: dropping this drops them.
    pub async fn run(mut self) {
        let (to_links, mut links) = mpsc::channel(self.hub.own().limits.pending_handshakes);
        let endpoint = self.hub.endpoint().clone();
        let mut stop = self.hub.0.stop.subscribe();
        let (mut tasks, mut greetings) = (JoinSet::new(), JoinSet::new());
        // Links beyond wait where they are still counted as handshakes under way.
        let greetings_max = self.hub.own().limits.pending_handshakes;
        tasks.spawn(async move { endpoint.accept(to_links).await });
        tasks.spawn(self.hub.clone().write_counts());
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                Some(owner) = self.owners.recv() => drop(tasks.spawn(owner.run())),
                Some(link) = links.recv(), if greetings.len() < greetings_max => drop(greetings.spawn(self.hub.clone().take_in(link))),
                Some(ended) = tasks.join_next() => report(ended),
                Some(ended) = greetings.join_next() => report(ended),
            }
        }
    }
}

/// A panic of a task is a bug of ours, and never goes unsaid.
pub(super) fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task of the node panicked; this is a bug");
    }
}

/// The same, of what was not a task of its own.
pub(super) fn report_panic<T>(ended: std::thread::Result<T>) -> Option<T> {
    if ended.is_err() {
        tracing::error!("serving a stream panicked; this is a bug");
    }
    ended.ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is held")
}
