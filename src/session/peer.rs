//! What others have of a peer: where it is, whether it is wanted, the session while a path carries it. Everything is done by its
//! [owner](super::owner).

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::attached::Attached;
use super::core::Core;
use super::greet::Greeted;
use super::room::Place;
use super::via::{Via, Where};
use crate::id::{InviteSecret, NodeId, Relay, Vouch};
use crate::proto::control::BootId;
use crate::proto::limits;
use crate::state::ids::Side;

/// What others ask of a peer's owner.
pub(super) enum Command {
    /// Keep a session with the peer, dialling if need be; says whether this is news, of the wish or of where the peer is.
    Want { news: bool },
    /// Keep it no longer, and close it.
    Release,
    /// Keep it no longer: it is the peer that does.
    LetGo,
    /// A link was greeted: the session goes on there. Until it does it has the place of one that arrives.
    Attach(Box<Greeted>, Place),
    /// The peer dials us: it can be reached, and wants us.
    PeerDialled,
    /// Measure a round trip.
    Ping(oneshot::Sender<Duration>),
    /// The network changed: try at once.
    NetworkChanged,
    /// The application is about to stop running.
    Suspend,
    /// It runs again.
    Resume,
    /// The node goes down: finish what is in flight, say goodbye, end.
    Drain(oneshot::Sender<()>),
}

/// Why a peer that is wanted is not connected: the last attempt's outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreached {
    /// It let us know that it does not want us.
    #[error("the peer refused us: its owner has to allow this identity to connect")]
    Refused,
    /// Other nodes answered at its addresses.
    #[error("{0}")]
    WrongKey(String),
    /// Its owner was asked whether to let us in, and has not decided.
    #[error("the peer's owner is asked whether to let this node in, and has not decided: it is asked again every few seconds")]
    Asked,
    /// Another process with this node's key, that came later, has taken its place there.
    #[error("another process with this node's key has taken its place at the peer: give each node a key of its own")]
    Replaced,
    /// This node's own policy keeps it out.
    #[error("this node's own policy denies the peer: remove the rule that says so")]
    Denied,
    /// No address is known.
    #[error("no address is known for the peer: use a ticket, which carries addresses")]
    NoAddress,
    /// Nobody answered, or the handshake failed.
    #[error("{0}")]
    Failed(String),
}

/// What the handles on a peer share with its owner.
pub struct Peer {
    pub(super) id: NodeId,
    pub(super) visitor: Option<BootId>,
    pub(super) state: watch::Sender<State>,
    commands: mpsc::UnboundedSender<Command>,
    /// Leave to have calls in flight.
    calls: Arc<Semaphore>,
    /// Whether one of the two nodes goes down, and somebody waits for our calls to end.
    pub(super) ending: AtomicBool,
    pub(super) call_ended: tokio::sync::Notify,
    /// The session, with or without a path.
    core: Mutex<Option<Arc<Core>>>,
    known: Mutex<Known>,
}

#[derive(Default)]
pub(super) struct Known {
    wanted: bool,
    addresses: VecDeque<SocketAddr>,
    /// What the peer said last.
    announced: Vec<SocketAddr>,
    /// Relays that it keeps sessions with, as its owner's ticket said, and as it said itself.
    relays: Vec<Relay>,
    announced_relays: Vec<Relay>,
    /// The only way to it that is to be used.
    only: Option<Via>,
    /// Lets this node in there, once.
    invitation: Option<InviteSecret>,
    /// Others are reached through it.
    hop: bool,
    pub seen: Option<SystemTime>,
}

/// Where the session stands.
#[derive(Clone, Default)]
pub(super) struct State {
    pub attached: Option<Arc<Attached>>,
    /// Attempts that ended without a session, since the peer was wanted or last connected; and how the last one ended.
    pub failures: u64,
    pub unreached: Option<Unreached>,
    /// The owner has ended: this handle will never be connected again.
    pub gone: bool,
}

impl Peer {
    pub(super) fn new(id: NodeId, visitor: Option<BootId>, calls: usize) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (commands, received) = mpsc::unbounded_channel();
        let peer = Arc::new(Self {
            id,
            visitor,
            state: watch::Sender::new(State::default()),
            commands,
            calls: Arc::new(Semaphore::new(calls)),
            ending: false.into(),
            call_ended: tokio::sync::Notify::new(),
            core: Mutex::default(),
            known: Mutex::default(),
        });
        (peer, received)
    }

    /// The peer's key.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Whether it is a short-lived command that shares a node's key.
    pub fn is_visitor(&self) -> bool {
        self.visitor.is_some()
    }

    /// The session, while a path carries it.
    pub fn attached(&self) -> Option<Arc<Attached>> {
        self.state.borrow().attached.clone()
    }

    /// The session, whether or not a path carries it now.
    pub(super) fn core(&self) -> Option<Arc<Core>> {
        self.core.lock().expect("nothing panics while it is held").clone()
    }

    /// Whether there is a session, on a path or kept until there is one.
    pub fn has_session(&self) -> bool {
        self.core().is_some()
    }

    pub(super) fn set_core(&self, core: Option<Arc<Core>>) {
        *self.core.lock().expect("nothing panics while it is held") = core;
    }

    /// Whether this node keeps a session with it.
    pub fn is_wanted(&self) -> bool {
        self.known().wanted
    }

    /// Where it may be dialled, the likeliest first.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        // Half of our own come before what the peer says, so that it can move but not push them out.
        let known = self.known();
        let (first, rest) = known.addresses.as_slices();
        let ours: Vec<_> = first.iter().chain(rest).copied().collect();
        let (best, others) = ours.split_at(ours.len().min(limits::ADDRESSES / 2));
        let mut all: Vec<SocketAddr> = Vec::new();
        for address in best.iter().chain(&known.announced).chain(others) {
            if !all.contains(address) {
                all.push(*address);
            }
        }
        all
    }

    /// The ways to it that go through relays: its own first, then those of this node; each through one, unless a way was named.
    pub(super) fn ways(&self, ours: &[Relay]) -> Vec<Via> {
        let known = self.known();
        if let Some(only) = &known.only {
            return vec![only.clone()];
        }
        if known.hop || ours.iter().any(|relay| relay.id == self.id) {
            return Vec::new();
        }
        let relays = merged([&known.relays[..], &known.announced_relays, ours]);
        relays.into_iter().filter(|relay| relay.id != self.id).map(|relay| Via::new(vec![relay])).collect()
    }

    /// What proves to it that we were invited, if we were and it has not let us in since.
    pub(super) fn vouch(&self, own: &NodeId) -> Option<Vouch> {
        self.known().invitation.as_ref().map(|invitation| invitation.vouch(own, &self.id))
    }

    /// It has let us in: no invitation is needed any more.
    pub(super) fn has_let_us_in(&self) {
        self.known().invitation = None;
    }

    /// Whether it is to be reached in one way only, which is named.
    pub(super) fn is_only_via(&self) -> bool {
        self.known().only.is_some()
    }

    /// Relays that it keeps sessions with.
    pub fn relays(&self) -> Vec<Relay> {
        let known = self.known();
        merged([&known.relays[..], &known.announced_relays])
    }

    /// When it was last connected.
    pub fn last_seen(&self) -> Option<SystemTime> {
        self.known().seen
    }

    /// A call of ours has ended, and is counted nowhere any more.
    pub(crate) fn call_has_ended(&self) {
        if self.ending.load(SeqCst) {
            self.call_ended.notify_one();
        }
    }

    pub(crate) fn calls(&self) -> &Arc<Semaphore> {
        &self.calls
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Keeps a session with it from now on. Asked through the hub only, which knows whether the owner still runs.
    pub(super) fn want(&self, at: &Where) {
        let news = {
            let mut known = self.known();
            let before = std::mem::replace(&mut known.wanted, true);
            known.hop |= at.hop;
            let invited = at.invitation.is_some() && known.invitation != at.invitation;
            if invited {
                known.invitation = at.invitation.clone();
            }
            let way = at.only.is_some() && known.only != at.only;
            if way {
                known.only = at.only.clone();
            }
            // What is named last is the likeliest.
            let relays = std::mem::take(&mut known.relays);
            known.relays = merged([&at.relays[..], &relays]);
            let address = at.addresses.iter().any(|address| !known.addresses.contains(address));
            !before || way || invited || address || !known.relays.iter().all(|relay| is_known(relay, &relays))
        };
        self.learn(at.addresses.iter().rev().copied());
        self.command(Command::Want { news });
    }

    /// Keeps a session with it no longer.
    pub fn release(&self) {
        self.known().wanted = false;
        // From now on nobody finds the session that is about to be closed.
        self.state.send_modify(|state| state.attached = None);
        self.command(Command::Release);
    }

    /// Keeps a session with it no longer. One that the peer began goes on, with a path or without: the peer keeps that.
    pub fn let_go(&self) {
        let theirs = |core: Arc<Core>| core.side() == Side::Acceptor && !core.has_ended();
        if !self.core().is_some_and(theirs) {
            return self.release();
        }
        self.known().wanted = false;
        self.command(Command::LetGo);
    }

    pub(super) async fn drain(self: Arc<Self>) {
        let (done, drained) = oneshot::channel();
        self.command(Command::Drain(done));
        let _ = drained.await;
    }

    /// Why it is not connected, if an attempt has failed since it was.
    pub fn unreached(&self) -> Option<Unreached> {
        self.state.borrow().unreached.clone()
    }

    /// Addresses its owner named, or that led to it: the likeliest first.
    pub(super) fn learn(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let mut known = self.known();
        for address in addresses {
            known.addresses.retain(|other| *other != address);
            known.addresses.push_front(address);
        }
        known.addresses.truncate(limits::ADDRESSES);
    }

    /// The addresses it says it can be dialled at, and the one it is seen at: in place of those before.
    pub(super) fn announced(&self, addresses: Vec<SocketAddr>, seen: Option<SocketAddr>) {
        let announced = seen.into_iter().chain(addresses).take(limits::ADDRESSES).collect();
        self.known().announced = announced;
    }

    /// The relays it says it keeps sessions with, in place of those before.
    pub(super) fn announced_relays(&self, relays: Vec<Relay>) {
        self.known().announced_relays = relays;
    }

    pub(super) fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while it is held")
    }
}

/// Whether one of these is it, and is to be found wherever it is.
fn is_known(relay: &Relay, among: &[Relay]) -> bool {
    let known = among.iter().find(|known| known.id == relay.id);
    known.is_some_and(|known| relay.addresses.iter().all(|address| known.addresses.contains(address)))
}

/// Each relay once, with all addresses named of it; as many as a ticket names.
fn merged<const N: usize>(lists: [&[Relay]; N]) -> Vec<Relay> {
    let mut merged: Vec<Relay> = Vec::new();
    for relay in lists.into_iter().flatten() {
        let Some(at) = merged.iter().position(|known| known.id == relay.id) else {
            if merged.len() < limits::RELAYS {
                merged.push(relay.clone());
            }
            continue;
        };
        for address in &relay.addresses {
            let known = &mut merged[at].addresses;
            if known.len() < limits::ADDRESSES && !known.contains(address) {
                known.push(*address);
            }
        }
    }
    merged
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).field("visitor", &self.visitor).finish_non_exhaustive()
    }
}
