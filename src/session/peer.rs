//! One peer: its owner task, and the handle others have on it. The owner joins paths to the session: it dials while the peer
//! is wanted, takes over links that were greeted, watches the path it has, and tells what happens. Nobody else does.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::attached::Attached;
use super::control::ControlError;
use super::event::{DisconnectReason, Event, PathKind};
use super::greet::{GreetError, Greeted};
use super::hub::Hub;
use super::path::{self, Path, PathEvent};
use crate::id::NodeId;
use crate::net::{DialError, Link};
use crate::policy::Action;
use crate::proto::close::CloseCode;
use crate::proto::control::{BootId, Goodbye};
use crate::proto::limits;
use crate::state::backoff::{AttemptId, Backoff, Dial, Input};

/// What others ask of a peer's owner.
pub(super) enum Command {
    /// Keep a session with the peer, dialling if need be.
    Want(Vec<SocketAddr>),
    /// Keep it no longer, and close it.
    Release,
    /// A link was greeted: the session goes on there.
    Attach(Box<Greeted>),
    /// The peer dials us: it can be reached, and wants us.
    PeerDialled,
    /// Measure a round trip.
    Ping(oneshot::Sender<Duration>),
    /// The network changed: try at once.
    NetworkChanged,
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
    state: watch::Sender<State>,
    commands: mpsc::UnboundedSender<Command>,
    /// Leave to have calls in flight.
    calls: Arc<Semaphore>,
    /// Whether one of the two nodes goes down, and somebody waits for our calls to end.
    ending: AtomicBool,
    call_ended: tokio::sync::Notify,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    wanted: bool,
    addresses: VecDeque<SocketAddr>,
    /// What the peer said last.
    announced: Vec<SocketAddr>,
    seen: Option<SystemTime>,
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
    pub(super) fn want(&self, addresses: &[SocketAddr]) {
        self.known().wanted = true;
        self.command(Command::Want(addresses.to_vec()));
    }

    /// Keeps a session with it no longer.
    pub fn release(&self) {
        self.known().wanted = false;
        // From now on nobody finds the session that is about to be closed.
        self.state.send_modify(|state| state.attached = None);
        self.command(Command::Release);
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
    fn learn(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let mut known = self.known();
        for address in addresses {
            known.addresses.retain(|other| *other != address);
            known.addresses.push_front(address);
        }
        known.addresses.truncate(limits::ADDRESSES);
    }

    /// The addresses it says it can be dialled at, and the one it is seen at: in place of those before.
    fn announced(&self, addresses: Vec<SocketAddr>, seen: Option<SocketAddr>) {
        let announced = seen.into_iter().chain(addresses).take(limits::ADDRESSES).collect();
        self.known().announced = announced;
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while it is held")
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).field("visitor", &self.visitor).finish_non_exhaustive()
    }
}

type Attempt = (AttemptId, SocketAddr, Result<Greeted, AttemptError>);

enum AttemptError {
    Overdue,
    Dial(DialError),
    Greet(GreetError),
}

/// The task that owns a peer.
pub(super) struct Owner {
    hub: Hub,
    peer: Arc<Peer>,
    commands: mpsc::UnboundedReceiver<Command>,
    path: Option<Path>,
    backoff: Backoff,
    random: StdRng,
    /// When the supervisor wants to be asked again.
    wake: Option<Instant>,
    attempts: JoinSet<Attempt>,
    running: HashMap<AttemptId, AbortHandle>,
    turn: usize,
    draining: Option<(Instant, oneshot::Sender<()>)>,
    /// A peer that is not wanted and whose path broke off is waited for until then: whoever holds the session goes on with it.
    expected_until: Option<Instant>,
}

impl Owner {
    pub(super) fn new(hub: Hub, id: NodeId, visitor: Option<BootId>) -> (Arc<Peer>, Self) {
        let (commands, received) = mpsc::unbounded_channel();
        let peer = Arc::new(Peer {
            id,
            visitor,
            state: watch::Sender::new(State::default()),
            commands,
            calls: Arc::new(Semaphore::new(hub.own().limits.calls_in_flight)),
            ending: false.into(),
            call_ended: tokio::sync::Notify::new(),
            known: Mutex::default(),
        });
        let owner = Self {
            backoff: Backoff::with_limits(hub.own().profile, &hub.own().limits),
            random: StdRng::seed_from_u64(hub.own().seed ^ u64::from_le_bytes(first_eight(&id))),
            wake: None,
            running: HashMap::new(),
            hub,
            peer: peer.clone(),
            commands: received,
            path: None,
            attempts: JoinSet::new(),
            turn: 0,
            draining: None,
            expected_until: None,
        };
        (peer, owner)
    }

    /// Lives as long as the peer is wanted or here.
    pub(super) async fn run(mut self) {
        let mut policy = self.hub.policy().watch();
        loop {
            if self.may_end() {
                break;
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => break,
                },
                Some(attempt) = self.attempts.join_next() => self.attempted(attempt).await,
                _ = policy.changed() => self.policy_changed().await,
                () = self.peer.call_ended.notified() => self.call_ended().await,
                () = sleep_until(wake) => self.tick().await,
                // Last: a peer that never stops talking must put off neither the policy nor the clock.
                input = path_input(&mut self.path) => self.path_input(input).await,
            }
        }
    }

    /// Nothing wanted, nobody here, nothing asked: the hub may forget the peer.
    fn may_end(&mut self) -> bool {
        if self.path.is_some() || !self.attempts.is_empty() || (self.wanted() && self.draining.is_none()) {
            return false;
        }
        if self.draining.is_none() && self.expected_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        let (peer, commands, draining) = (&self.peer, &self.commands, self.draining.is_some());
        self.hub.retire(peer, || commands.is_empty() && (draining || !peer.is_wanted()))
    }

    fn wanted(&self) -> bool {
        self.peer.is_wanted() && self.draining.is_none() && !self.hub.is_draining()
    }

    /// When to look at the time again.
    fn wake(&self) -> Instant {
        let path = self.path.as_ref().map(Path::wake);
        let draining = self.draining.as_ref().map(|(deadline, _)| *deadline);
        let dialling = self.wake.filter(|_| self.path.is_none() && self.wanted());
        let expected = self.expected_until.filter(|_| self.path.is_none() && !self.wanted());
        [path, draining, dialling, expected].into_iter().flatten().min().unwrap_or_else(far)
    }

    /// Tells the supervisor what happened, and does what it says.
    fn supervise(&mut self, input: Input) {
        let mut input = Some(input);
        while let Some(next) = input.take() {
            let todo = self.backoff.handle(next, Instant::now().into_std(), &mut self.random);
            todo.abandon.iter().for_each(|attempt| self.abandon(*attempt));
            self.wake = todo.wake.map(Instant::from_std);
            match todo.dial {
                Some(dial) if self.wanted() && self.path.is_none() => input = self.dial(dial),
                Some(dial) => input = Some(Input::Failed(dial.attempt)),
                None => {}
            }
        }
    }

    fn abandon(&mut self, attempt: AttemptId) {
        if let Some(running) = self.running.remove(&attempt) {
            running.abort();
        }
    }

    /// Starts an attempt at the address whose turn it is. Without one it has failed already.
    fn dial(&mut self, dial: Dial) -> Option<Input> {
        if !self.is_permitted() {
            self.failed(Unreached::Denied);
            return Some(Input::Refused(dial.attempt));
        }
        let usable = self.usable();
        let Some(address) = usable.get(self.turn % usable.len().max(1)).copied() else {
            // Others at all its addresses: that is what there is to say until one of them is tried again.
            let others = self.peer.unreached().filter(|last| matches!(last, Unreached::WrongKey(_)));
            self.failed(others.unwrap_or(Unreached::NoAddress));
            return Some(Input::Failed(dial.attempt));
        };
        self.turn = self.turn.wrapping_add(1);
        let (hub, id) = (self.hub.clone(), self.peer.id);
        let running = self.attempts.spawn(async move {
            let greeted = async {
                let link = hub.endpoint().dial(address, id).await.map_err(AttemptError::Dial)?;
                hub.greet_dialled(link).await.map_err(AttemptError::Greet)
            };
            let greeted = tokio::time::timeout(dial.within, greeted).await;
            (dial.attempt, address, greeted.unwrap_or(Err(AttemptError::Overdue)))
        });
        self.running.insert(dial.attempt, running);
        None
    }

    /// The addresses at which nobody else answered lately.
    fn usable(&self) -> Vec<SocketAddr> {
        let now = Instant::now().into_std();
        let mut usable = self.peer.addresses();
        usable.retain(|address| !self.backoff.is_set_aside(*address, now));
        usable
    }

    fn is_permitted(&self) -> bool {
        self.hub.policy().decide(&self.peer.id, Action::Connect, "").is_permit()
    }

    async fn attempted(&mut self, ended: Result<Attempt, tokio::task::JoinError>) {
        // An attempt that was given up says nothing; one that panicked is overdue to the supervisor soon.
        let Ok((attempt, address, outcome)) = ended else { return };
        self.running.remove(&attempt);
        let error = match outcome {
            Ok(greeted) => {
                self.peer.learn([address]);
                self.attach(greeted).await;
                // Lost at once, or not needed: the supervisor must not wait for it. Else it has heard of better.
                if self.path.is_none() {
                    self.supervise(Input::Failed(attempt));
                }
                return;
            }
            Err(error) => error,
        };
        let unreached = match &error {
            AttemptError::Dial(DialError::WrongKey { .. }) => {
                self.supervise(Input::WrongKey(address));
                let others_everywhere = self.usable().is_empty();
                let text = error.to_string();
                Some(if others_everywhere { Unreached::WrongKey(text) } else { Unreached::Failed(text) })
            }
            AttemptError::Greet(GreetError::Refused) => Some(Unreached::Refused),
            // Another link goes first, or our next attempt has the right number: nothing went wrong.
            AttemptError::Greet(GreetError::Unneeded | GreetError::Stale) => None,
            _ => Some(Unreached::Failed(error.to_string())),
        };
        let refused = unreached == Some(Unreached::Refused);
        self.supervise(if refused { Input::Refused(attempt) } else { Input::Failed(attempt) });
        unreached.into_iter().for_each(|unreached| self.failed(unreached));
    }

    fn failed(&self, unreached: Unreached) {
        tracing::debug!(peer = %self.peer.id.short(), %unreached, "an attempt failed");
        self.peer.state.send_modify(|state| {
            state.failures += 1;
            state.unreached = Some(unreached);
        });
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Want(addresses) => {
                self.peer.learn(addresses.into_iter().rev());
                self.turn = 0;
                if self.path.is_none() {
                    self.supervise(Input::NetworkChanged);
                }
            }
            Command::Release => {
                self.attempts.abort_all();
                self.running.clear();
                self.goodbye(Goodbye::Disconnect, DisconnectReason::Here).await;
                self.expected_until = None;
                // Whoever wants the peer again starts afresh.
                self.backoff = Backoff::with_limits(self.hub.own().profile, &self.hub.own().limits);
            }
            Command::PeerDialled => self.supervise(Input::PeerDialled),
            Command::Attach(greeted) => self.attach(*greeted).await,
            Command::Ping(answer) => {
                if let Some(path) = &mut self.path {
                    path.ping(answer);
                }
            }
            Command::NetworkChanged => {
                self.supervise(Input::NetworkChanged);
                if let Some(path) = &mut self.path {
                    path.probe();
                    self.tick().await;
                }
            }
            Command::Drain(done) => self.drain(done).await,
        }
    }

    /// Puts the session on a link that was greeted, unless the one it is on is newer.
    async fn attach(&mut self, greeted: Greeted) {
        let link = greeted.agreement.link.clone();
        // Between the greeting and now both may have changed: whether it is permitted, and whether we still want it.
        if !self.is_permitted() {
            self.hub.count_refused();
            return self.give_up(&link, CloseCode::Refused);
        }
        if self.draining.is_some() || (link.dialled() && !self.wanted()) {
            return self.give_up(&link, CloseCode::Goodbye);
        }
        if let Some(path) = &self.path {
            let old = &path.attached;
            if old.hello().boot == greeted.agreement.hello.boot && old.attach() > greeted.agreement.attach {
                return self.give_up(&link, CloseCode::Superseded);
            }
            self.lost(DisconnectReason::Superseded, CloseCode::Superseded);
        }
        let seen = (!link.dialled()).then(|| link.remote());
        self.peer.announced(greeted.agreement.hello.addresses.clone(), seen);
        let path = match Path::start(&self.hub, greeted).await {
            Ok(path) => path,
            Err(error) => {
                tracing::debug!(peer = %self.peer.id.short(), %error, "the path was lost at once");
                return self.give_up(&link, CloseCode::Protocol);
            }
        };
        let attached = path.attached.clone();
        self.path = Some(path);
        self.peer.known().seen = Some(SystemTime::now());
        // Next time the likeliest address goes first again.
        self.turn = 0;
        self.supervise(Input::Connected);
        let (peer, session) = (self.peer.id, attached.session());
        // First the fact, then the news of it: whoever hears it may use the session at once.
        self.peer.state.send_replace(State { attached: Some(attached), ..State::default() });
        self.tell(Event::Connected { peer, session, resumed: false, path: PathKind::Direct });
    }

    /// Tells what happened. A visitor shares the key of a node, and is nobody's presence: of it nothing is told.
    fn tell(&self, event: Event) {
        if self.peer.visitor.is_none() {
            self.hub.emit(event);
        }
    }

    fn give_up(&self, link: &Link, code: CloseCode) {
        link.close(code);
        self.hub.ended(self.peer.id, link.number());
    }

    /// The path is gone: tells everybody, and lets the supervisor begin.
    fn lost(&mut self, reason: DisconnectReason, code: CloseCode) {
        let Some(path) = self.path.take() else { return };
        path.attached.link().close(code);
        self.hub.ended(self.peer.id, path.attached.link().number());
        self.peer.known().seen = Some(SystemTime::now());
        self.peer.state.send_modify(|state| state.attached = None);
        self.supervise(Input::Lost);
        let broke_off = self.peer.visitor.is_none() && !reason.is_deliberate();
        self.expected_until = broke_off.then(|| Instant::now() + self.hub.own().limits.resume_window);
        self.tell(Event::Disconnected { peer: self.peer.id, reason });
    }

    fn broken(&mut self, error: &ControlError) {
        tracing::warn!(peer = %self.peer.id.short(), %error, "the path is closed");
        self.lost(DisconnectReason::Path(error.to_string()), CloseCode::Protocol);
    }

    async fn goodbye(&mut self, goodbye: Goodbye, reason: DisconnectReason) {
        let code = if goodbye == Goodbye::Refused { CloseCode::Refused } else { CloseCode::Goodbye };
        if let Some(path) = &mut self.path {
            path.goodbye(goodbye).await;
        }
        self.lost(reason, code);
    }

    async fn path_input(&mut self, input: path::Input) {
        if let Some(path) = &mut self.path {
            let event = path.handle(input).await;
            self.path_event(event).await;
        }
    }

    async fn path_event(&mut self, event: PathEvent) {
        match event {
            PathEvent::Lost(reason) => self.lost(reason.into(), CloseCode::Protocol),
            PathEvent::Broken(error) => self.broken(&error),
            PathEvent::NoAnswer => self.lost(DisconnectReason::NoAnswer, CloseCode::Timeout),
            PathEvent::Goodbye(Goodbye::Disconnect) => self.lost(DisconnectReason::ByPeer, CloseCode::Goodbye),
            PathEvent::Goodbye(Goodbye::Down) => self.lost(DisconnectReason::PeerDown, CloseCode::Goodbye),
            PathEvent::Goodbye(Goodbye::Refused) => {
                self.lost(DisconnectReason::Refused, CloseCode::Goodbye);
                self.failed(Unreached::Refused);
            }
            PathEvent::Addresses(addresses) => self.peer.announced(addresses, None),
            PathEvent::Draining => {
                self.peer.ending.store(true, SeqCst);
                // Whoever waits for the session waits for the next one from here on.
                self.peer.state.send_modify(|state| state.attached = None);
                self.call_ended().await;
            }
            PathEvent::Drained | PathEvent::Nothing => {}
        }
        self.end_drain_if_done().await;
    }

    async fn policy_changed(&mut self) {
        if self.path.is_some() && !self.is_permitted() {
            self.goodbye(Goodbye::Refused, DisconnectReason::RefusedHere).await;
        } else if self.peer.unreached() == Some(Unreached::Denied) && self.is_permitted() {
            self.supervise(Input::NetworkChanged);
        }
    }

    async fn tick(&mut self) {
        self.expected_until = self.expected_until.filter(|until| Instant::now() < *until);
        match &mut self.path {
            Some(path) => {
                if let Some(event) = path.tick() {
                    self.path_event(event).await;
                }
            }
            None => {
                if self.wanted() {
                    self.supervise(Input::Tick);
                }
            }
        }
        self.end_drain_if_done().await;
    }

    async fn drain(&mut self, done: oneshot::Sender<()>) {
        self.draining = Some((Instant::now() + self.hub.own().limits.drain, done));
        self.peer.ending.store(true, SeqCst);
        self.attempts.abort_all();
        if let Some(path) = &mut self.path {
            path.drain().await;
        }
        self.call_ended().await;
    }

    /// A call of ours ended while one of the two nodes goes down.
    async fn call_ended(&mut self) {
        // Calls that wait for the next session have leave too, and are none of this one's.
        if let Some(path) = &mut self.path
            && path.attached.is_draining()
            && path.attached.calling() == 0
        {
            path.calls_answered().await;
        }
        self.end_drain_if_done().await;
    }

    async fn end_drain_if_done(&mut self) {
        let Some((deadline, _)) = &self.draining else { return };
        let answered = self.path.as_ref().is_none_or(Path::both_answered);
        if answered || Instant::now() >= *deadline {
            self.goodbye(Goodbye::Down, DisconnectReason::Here).await;
        }
    }
}

impl Drop for Owner {
    /// However it ends, nobody waits for it any more.
    fn drop(&mut self) {
        self.peer.state.send_modify(|state| *state = State { gone: true, attached: None, ..state.clone() });
        if let Some((_, done)) = self.draining.take() {
            let _ = done.send(());
        }
    }
}

async fn path_input(path: &mut Option<Path>) -> path::Input {
    match path {
        Some(path) => path.input().await,
        None => std::future::pending().await,
    }
}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttemptError::Overdue => f.write_str("no answer in time"),
            AttemptError::Dial(error) => error.fmt(f),
            AttemptError::Greet(error) => error.fmt(f),
        }
    }
}

fn first_eight(id: &NodeId) -> [u8; 8] {
    std::array::from_fn(|at| id.as_bytes()[at])
}

/// A time nobody waits for.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(24 * 3_600)
}
