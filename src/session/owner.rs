//! The owner of a peer joins paths to the session: it dials while the peer is wanted, takes over links that were greeted, watches
//! the path it has, keeps the session while there is none, and tells what happens. Nobody else does.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::attached::Attached;
use super::control::ControlError;
use super::core::{Core, SessionEnd, Surroundings};
use super::detached::Place;
use super::event::{DisconnectReason, Event, PathKind};
use super::greet::{Agreement, GreetError, Greeted};
use super::held::Held;
use super::hub::Hub;
use super::ledger::Limit;
use super::notice::Notice;
use super::path::{self, Path, PathEvent};
use super::peer::{Command, Peer, State, Unreached};
use super::reach::{Reach, Tried, Unreachable};
use super::restoring::Restoring;
use super::slot::Slot;
use super::upgrade::Upgrade;
use super::via::Via;
use crate::id::NodeId;
use crate::journal::{By, Entry};
use crate::net::{Account, Link, LostReason};
use crate::policy::Action;
use crate::proto::close::CloseCode;
use crate::proto::control::{BootId, Goodbye};
use crate::proto::limits;
use crate::state::backoff::{AttemptId, Backoff, Dial, Input};

/// A new path is heard of within this after the old one was left for it.
const SUPERSEDED: Duration = Duration::from_millis(500);

/// One attempt that has ended: the supervisor's, or one to do better than a circuit.
struct Attempt {
    id: Option<AttemptId>,
    /// What came of dialling addresses.
    tried: Tried,
    outcome: Result<Greeted, AttemptError>,
}

enum AttemptError {
    Overdue,
    Reach(Unreachable),
    Greet(GreetError),
}

/// The task that owns a peer.
pub(super) struct Owner {
    hub: Hub,
    peer: Arc<Peer>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// By which all that is done for the peer has its turns.
    account: Account,
    session: Option<Held>,
    path: Option<Path>,
    /// The path, or the last one there was, is a circuit, and nothing has changed since.
    was_relayed: bool,
    backoff: Backoff,
    random: StdRng,
    /// When the supervisor wants to be asked again.
    wake: Option<Instant>,
    attempts: JoinSet<Attempt>,
    running: HashMap<AttemptId, AbortHandle>,
    turn: usize,
    /// When to try to do better than the circuit the session is on.
    upgrade: Upgrade,
    draining: Option<(Instant, oneshot::Sender<()>)>,
    /// The path does not answer: attempts run beside it.
    suspecting: bool,
    /// The peer has left the path for another one, which we know of by then; and since when it is gone.
    superseded: Option<Instant>,
    /// We may have moved: the peer does not know where to, so we dial, wanted or not.
    moved: bool,
    /// What has to be put back before anybody is told that the session is up.
    restoring: Option<Restoring>,
    /// `Connected` was told, and `Disconnected` is due.
    told: bool,
    /// The journal says that the session began, and is to say that it ended.
    noted: bool,
}

impl Owner {
    pub(super) fn new(hub: Hub, id: NodeId, visitor: Option<BootId>) -> (Arc<Peer>, Self) {
        let (peer, commands) = Peer::new(id, visitor, hub.own().limits.calls_in_flight);
        let owner = Self {
            backoff: Backoff::with_limits(hub.own().profile, &hub.own().limits),
            random: StdRng::seed_from_u64(hub.own().seed ^ u64::from_le_bytes(first_eight(&id))),
            wake: None,
            running: HashMap::new(),
            account: hub.endpoint().turns().account(),
            hub,
            peer: peer.clone(),
            commands,
            session: None,
            path: None,
            was_relayed: false,
            attempts: JoinSet::new(),
            turn: 0,
            upgrade: Upgrade::default(),
            draining: None,
            suspecting: false,
            superseded: None,
            moved: false,
            restoring: None,
            told: false,
            noted: false,
        };
        (peer, owner)
    }

    /// Lives as long as the peer is wanted or here.
    pub(super) fn run(self) -> impl Future<Output = ()> + Send {
        self.account.clone().in_turn(self.live())
    }

    async fn live(mut self) {
        let mut policy = self.hub.policy().watch();
        if self.hub.is_suspended() {
            self.supervise(Input::Suspended);
        }
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
                notice = notice(&mut self.session) => self.notice(notice).await,
                () = restored(&mut self.restoring) => self.restored(true),
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
        if self.draining.is_none() && self.session.is_some() {
            return false;
        }
        let (peer, commands, draining) = (&self.peer, &self.commands, self.draining.is_some());
        self.hub.retire(peer, || commands.is_empty() && (draining || !peer.is_wanted()))
    }

    fn wanted(&self) -> bool {
        self.peer.is_wanted() && self.draining.is_none() && !self.hub.is_draining()
    }

    /// Whether to dial: while the peer is wanted, or while we have moved and there is a session that it would look for elsewhere;
    /// as long as there is no path that answers.
    fn dials(&self) -> bool {
        let resumes = self.moved && self.peer.visitor.is_none() && self.session.is_some();
        let due = self.wanted() || (resumes && self.draining.is_none() && !self.hub.is_draining());
        due && (self.path.is_none() || self.suspecting)
    }

    /// Asks whether the path answers, and has another one tried beside it if not.
    fn judge(&mut self) {
        let suspect = self.path.as_ref().is_some_and(Path::is_suspect);
        if suspect == self.suspecting {
            return;
        }
        // The peer may be on the other path already: to give that up now would cost both.
        if !suspect && self.path.is_some() && self.hub.roster().is_greeting(self.peer.id) {
            return;
        }
        self.suspecting = suspect;
        self.hub.roster().suspect(self.peer.id, suspect);
        // The peer hears us here: it knows where we are.
        self.moved &= suspect;
        if self.path.is_some() {
            self.supervise(if suspect { Input::Suspect } else { Input::Answered });
        }
    }

    /// When to look at the time again.
    fn wake(&self) -> Instant {
        let path = self.path.as_ref().map(Path::wake);
        let draining = self.draining.as_ref().map(|(deadline, _)| *deadline);
        let dialling = self.wake.filter(|_| self.dials());
        let kept = self.session.as_ref().and_then(|session| session.until);
        let look = self.session.as_ref().and_then(|session| session.place.as_ref()).map(Place::look_at);
        let restoring = self.restoring.as_ref().and_then(Restoring::until);
        let upgrade = self.upgrade.at();
        [path, draining, dialling, kept, look, self.superseded, restoring, upgrade]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(far)
    }

    /// Tells the supervisor what happened, and does what it says.
    fn supervise(&mut self, input: Input) {
        let mut input = Some(input);
        while let Some(next) = input.take() {
            let todo = self.backoff.handle(next, Instant::now().into_std(), &mut self.random);
            todo.abandon.iter().for_each(|attempt| self.abandon(*attempt));
            self.wake = todo.wake.map(Instant::from_std);
            match todo.dial {
                Some(dial) if self.dials() => input = self.dial(dial),
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

    /// Starts an attempt, at the address and over the relay whose turn it is. Without either it has failed already.
    fn dial(&mut self, dial: Dial) -> Option<Input> {
        if !self.is_permitted() {
            self.failed(Unreached::Denied);
            return Some(Input::Refused(dial.attempt));
        }
        let (usable, ways) = (self.usable(), self.ways());
        let turn = |count: usize| self.turn.checked_rem(count);
        let (address, via) = (turn(usable.len()).map(|at| usable[at]), turn(ways.len()).map(|at| ways[at].clone()));
        if address.is_none() && via.is_none() {
            // Others at all its addresses: that is what there is to say until one of them is tried again.
            let others = self.peer.unreached().filter(|last| matches!(last, Unreached::WrongKey(_)));
            // While there is a session to go on with, the peer itself is expected to dial.
            if self.session.is_none() {
                self.failed(others.unwrap_or(Unreached::NoAddress));
            }
            return Some(Input::Failed(dial.attempt));
        }
        self.turn = self.turn.wrapping_add(1);
        // Where a circuit was the way, its addresses did not answer a moment ago, and the next circuit is not to wait for them.
        let via_after = if self.was_relayed { Duration::ZERO } else { limits::RELAY_AFTER };
        let reach = Reach { hub: self.hub.clone(), to: self.peer.id, addresses: address.into_iter().collect(), via, via_after };
        let running = self.attempts.spawn(attempt(Some(dial.attempt), reach, dial.within));
        self.running.insert(dial.attempt, running);
        None
    }

    /// Tries to do better than the circuit the session is on: a link to the peer, at whichever of its addresses; or, when the circuit is old, a
    /// fresh one.
    fn do_better(&mut self) {
        self.upgrade.tried(&mut self.random);
        let Some(path) = self.path.as_ref().filter(|path| path.attached.link().is_relayed()) else { return };
        if !self.is_permitted() || self.draining.is_some() || self.hub.is_draining() || self.hub.is_suspended() {
            return;
        }
        let old = path.attached.age() >= limits::CIRCUIT_LIFE;
        let addresses = self.usable();
        let via = self.ways().into_iter().next().filter(|_| old);
        if !addresses.is_empty() || via.is_some() {
            let via_after = limits::RELAY_AFTER;
            let reach = Reach { hub: self.hub.clone(), to: self.peer.id, addresses, via, via_after };
            self.attempts.spawn(attempt(None, reach, limits::HANDSHAKE));
        }
    }

    /// The ways through relays: first those that begin at one that is here and answers, as far as is known. The one that the session is on
    /// is the reason to look for others, unless there are none.
    fn ways(&self) -> Vec<Via> {
        let mut ways = self.peer.ways(&self.hub.relays());
        let now = self.path.as_ref().and_then(|path| path.attached.link().via());
        if ways.len() > 1 {
            ways.retain(|way| now.is_none() || way.first() != now);
        }
        ways.sort_by_key(|way| !way.first().is_some_and(|first| self.hub.is_answering(first)));
        ways
    }

    /// The addresses at which nobody else answered lately.
    fn usable(&self) -> Vec<SocketAddr> {
        // Not even where it says it is: a dial would tell it where this node is.
        if self.peer.is_only_via() {
            return Vec::new();
        }
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
        let Ok(Attempt { id, tried, outcome }) = ended else { return };
        id.iter().for_each(|id| drop(self.running.remove(id)));
        tried.others.iter().for_each(|address| self.supervise(Input::WrongKey(*address)));
        let error = match outcome {
            Ok(greeted) => {
                let link = greeted.agreement.link.clone();
                self.peer.learn(tried.reached);
                // Between the greeting and now it may have been released.
                match self.wanted() || greeted.agreement.resumed.is_some() {
                    true => self.attach(greeted).await,
                    false => self.give_up(&link, CloseCode::Goodbye),
                }
                // Lost at once, or not needed: the supervisor must not wait for it. Else it has heard of better.
                if self.path.as_ref().is_none_or(|path| path.attached.link().number() != link.number()) {
                    id.into_iter().for_each(|id| self.supervise(Input::Failed(id)));
                }
                return;
            }
            Err(error) => error,
        };
        // Nobody waits for one that was to do better than what there is.
        let Some(id) = id else { return };
        let unreached = match &error {
            AttemptError::Greet(GreetError::Refused) => Some(Unreached::Refused),
            AttemptError::Greet(GreetError::Asked) => Some(Unreached::Asked),
            AttemptError::Greet(GreetError::Replaced) => Some(Unreached::Replaced),
            // Another link goes first, or our next attempt has the right number: nothing went wrong.
            AttemptError::Greet(GreetError::Unneeded | GreetError::Stale) => None,
            _ if !tried.others.is_empty() && self.usable().is_empty() && self.ways().is_empty() => {
                Some(Unreached::WrongKey(error.to_string()))
            }
            _ => Some(Unreached::Failed(error.to_string())),
        };
        if unreached == Some(Unreached::Replaced) && self.peer.unreached() != Some(Unreached::Replaced) {
            self.say_replaced();
        }
        self.supervise(match unreached {
            Some(Unreached::Refused | Unreached::Replaced) => Input::Refused(id),
            Some(Unreached::Asked) => Input::Asked(id),
            _ => Input::Failed(id),
        });
        let waits = unreached == Some(Unreached::Asked) && self.peer.unreached() != Some(Unreached::Asked);
        unreached.into_iter().for_each(|unreached| self.failed(unreached));
        if waits && self.peer.unreached() == Some(Unreached::Asked) {
            tracing::info!(peer = %self.peer.id, "the peer's owner is asked whether to let this node in");
            self.tell(Event::Waiting { peer: self.peer.id });
        }
        self.judge();
    }

    fn say_replaced(&self) {
        tracing::error!(peer = %self.peer.id, "another process with this node's key took its place: give each node a key of its own");
    }

    fn failed(&self, unreached: Unreached) {
        // Beside a path that lives, or while there is a session to go on with, it is nobody's failure yet.
        if self.path.is_some() || (!self.wanted() && self.session.is_some()) {
            return;
        }
        tracing::debug!(peer = %self.peer.id.short(), %unreached, "an attempt failed");
        self.peer.state.send_modify(|state| {
            state.failures += 1;
            state.unreached = Some(unreached);
        });
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Want { news } => {
                // Who only asks again and again must neither begin with the same way each time nor cut short what is under way.
                if news {
                    self.turn = 0;
                    self.was_relayed = false;
                    self.upgrade.now();
                }
                if self.path.is_none() {
                    self.supervise(if news { Input::NetworkChanged } else { Input::Wanted });
                }
            }
            Command::Release => {
                self.attempts.abort_all();
                self.running.clear();
                self.goodbye(Goodbye::Disconnect, DisconnectReason::Here).await;
                // Whoever wants the peer again starts afresh.
                self.backoff = Backoff::with_limits(self.hub.own().profile, &self.hub.own().limits);
            }
            // Attempts that run may still bring back the path. Once around: the session may have ended since.
            Command::LetGo => {}
            Command::PeerDialled => self.supervise(Input::PeerDialled),
            Command::Attach(greeted, place) => {
                self.attach(*greeted).await;
                drop(place);
            }
            Command::Ping(answer) => {
                if let Some(path) = &mut self.path {
                    path.ping(answer);
                }
            }
            Command::NetworkChanged => self.network_changed().await,
            Command::Suspend => {
                self.supervise(Input::Suspended);
                self.path.as_mut().into_iter().for_each(Path::suspend);
            }
            Command::Resume => {
                self.path.as_mut().into_iter().for_each(Path::resume);
                self.supervise(Input::Resumed);
                self.network_changed().await;
            }
            Command::Drain(done) => self.drain(done).await,
        }
    }

    /// The path we have may lead nowhere any more: it has to prove itself, and another one is tried at once.
    async fn network_changed(&mut self) {
        self.moved = true;
        self.was_relayed = false;
        self.upgrade.now();
        if let Some(path) = &mut self.path {
            path.probe();
            self.tick().await;
        }
        self.supervise(Input::NetworkChanged);
    }

    /// Puts the session on a link that was greeted, unless the one it is on is newer.
    async fn attach(&mut self, greeted: Greeted) {
        let link = greeted.agreement.link.clone();
        // Between the greeting and now the policy may have changed.
        if !self.is_permitted() {
            self.hub.refused_here(&link, &"policy");
            return self.give_up(&link, CloseCode::Refused);
        }
        if self.draining.is_some() {
            return self.give_up(&link, CloseCode::Goodbye);
        }
        // And another process with its key may have taken its place.
        let (boot, there) = (greeted.agreement.hello.boot, self.session.as_ref().map(|session| session.core.boot()));
        if self.peer.visitor.is_none() && self.hub.is_replaced(self.peer.id, boot, there) {
            self.hub.replaced_here(&link, boot);
            return self.give_up(&link, CloseCode::Replaced);
        }
        if let Some(path) = &self.path {
            let old = &path.attached;
            if old.hello().boot == greeted.agreement.hello.boot && old.attach() > greeted.agreement.attach {
                return self.give_up(&link, CloseCode::Superseded);
            }
        }
        let resumed = greeted.agreement.resumed.is_some();
        let seamless = resumed && (self.path.is_some() || self.superseded.is_some());
        match self.put_on(greeted).await {
            Ok(attached) => self.connected(attached, resumed, seamless),
            Err(error) => {
                tracing::debug!(peer = %self.peer.id.short(), %error, "the path was lost at once");
                // What was left for it carries the session no more.
                self.lost(DisconnectReason::Superseded, CloseCode::Superseded);
                self.give_up(&link, CloseCode::Protocol);
            }
        }
    }

    /// Puts the session, or a new one, on a link.
    async fn put_on(&mut self, greeted: Greeted) -> Result<Arc<Attached>, ControlError> {
        let Greeted { agreement, send, recv } = greeted;
        let Agreement { link, hello, session, attach, resumed, said, theirs } = agreement;
        let core = match &resumed {
            // Between the greeting and now it may have ended.
            Some(core) if core.is_resumable() => core.clone(),
            Some(_) => return Err(ControlError::Order("the session it goes on with has ended")),
            None => {
                // Another process: if the one before lives after all, it has the same key, and is told that it came first.
                let (because, code) = match hello.boot == self.boot() {
                    true => (DisconnectReason::Superseded, CloseCode::Superseded),
                    false => (DisconnectReason::Restarted, CloseCode::Replaced),
                };
                self.lost(because, code);
                self.end(SessionEnd::Replaced);
                let own = self.hub.own();
                let of = Surroundings {
                    limits: &own.limits,
                    policy: self.hub.policy(),
                    budget: self.hub.budget(),
                    ledger: self.hub.ledger(),
                    account: &self.account,
                };
                Core::new(session, link.peer(), &hello, link.dialled(), &of)
            }
        };
        if let Some(old) = &self.path {
            self.leave(old);
        }
        let (said, theirs) = ((said.next_id, &said.live[..]), (theirs.next_id, &theirs.live[..]));
        let ours = core.table().streams.attached(attach, said, theirs, &mut Slot::wake);
        let ours = match ours {
            Ok(ours) => ours,
            // What it was on is lost with that; whoever asked for this says so.
            Err(violation) => {
                self.end(SessionEnd::Closed(DisconnectReason::Path(violation.to_string())));
                return Err(violation.into());
            }
        };
        // Where a circuit comes from is where a relay is.
        let seen = (!link.dialled() && !link.is_relayed()).then(|| link.remote());
        self.peer.announced(hello.addresses.clone(), seen);
        self.peer.announced_relays(hello.relays()?);
        let budget = (self.hub.budget().clone(), self.hub.own().limits.window_max_bytes);
        let attached = Attached::new(core.clone(), link, attach, hello, budget);
        let held = self.session.get_or_insert_with(|| Held::new(core.clone()));
        (held.until, held.place) = (None, None);
        if self.peer.visitor.is_none() {
            self.hub.roster().holds(self.peer.id, core.boot());
        }
        self.peer.set_core(Some(core));
        // The old one goes before the new one begins.
        self.path = None;
        self.path = Some(Path::start(&self.hub, attached.clone(), (send, recv), held.door(), ours));
        if resumed.is_none() && attached.link().dialled() {
            let begun = tokio::time::timeout(limits::ANSWER_BOUND, held.begin(&attached)).await;
            let begun = begun.map_err(|_| ControlError::TimedOut("take the session's stream"));
            if let Err(error) = begun.and_then(|begun| begun.map_err(|_| ControlError::Ended)) {
                self.take_back(&error);
                return Err(error);
            }
        }
        Ok(attached)
    }

    /// A session that nobody was told of has no stream 0, and never will: it goes as quietly as it came.
    fn take_back(&mut self, error: &ControlError) {
        if let Some(path) = self.path.take() {
            self.leave(&path);
        }
        self.end(SessionEnd::Closed(DisconnectReason::Path(error.to_string())));
    }

    /// The process of the peer that we know.
    fn boot(&self) -> BootId {
        self.session.as_ref().map_or(BootId([0; 16]), |session| session.core.boot())
    }

    /// The session is up, on this path.
    fn connected(&mut self, attached: Arc<Attached>, resumed: bool, seamless: bool) {
        self.peer.known().seen = Some(SystemTime::now());
        self.peer.has_let_us_in();
        // Next time the likeliest address goes first again.
        self.turn = 0;
        (self.suspecting, self.moved, self.superseded) = (false, false, None);
        self.upgrade = Upgrade::beside(attached.link());
        self.was_relayed = attached.link().is_relayed();
        if let Some(path) = self.path.as_mut().filter(|path| path.attached.link().is_relayed()) {
            path.ask();
        }
        self.supervise(Input::Connected);
        let work = match self.peer.visitor {
            None => self.hub.acceptor().attached(&attached, resumed),
            Some(_) => None,
        };
        match (work, &mut self.restoring) {
            (Some(work), _) => self.restoring = Some(Restoring::begin(work, attached, resumed)),
            // It had no path meanwhile, or has another one: what was begun goes on here.
            (None, Some(before)) => before.goes_on(attached),
            (None, None) => self.announce(attached, resumed, seamless),
        }
    }

    /// Everybody may use the session, and is told.
    fn announce(&mut self, attached: Arc<Attached>, resumed: bool, seamless: bool) {
        let (peer, session, path) = (self.peer.id, attached.session(), PathKind::of(attached.link()));
        if !std::mem::replace(&mut self.noted, true) {
            self.note_admitted(&attached);
        }
        // First the fact, then the news of it: whoever hears it may use the session at once.
        let attached = (!attached.core().is_closed_to_calls()).then_some(attached);
        self.peer.state.send_replace(State { attached, ..State::default() });
        self.tell(match seamless && self.told {
            true => Event::PathChanged { peer, path },
            false => Event::Connected { peer, session, resumed, path },
        });
        self.told = true;
    }

    /// Writes down that the session began, and the rule that permits it.
    fn note_admitted(&self, attached: &Attached) {
        if !self.hub.journal().is_kept() {
            return;
        }
        let (peer, link, name) = (self.peer.id, attached.link(), attached.hello().name.as_str());
        let by = By::of(&self.hub.policy().decide(&peer, Action::Connect, ""));
        let (from, visitor) = ((!link.is_relayed()).then(|| link.remote()), self.peer.visitor.is_some());
        let name = (!name.is_empty()).then(|| name.into());
        self.hub.journal().note(Entry::Admitted { peer, name, by, from, via: link.via(), visitor });
    }

    /// What had to be put back is there, or takes too long.
    fn restored(&mut self, done: bool) {
        if let Some((attached, resumed)) = self.restoring.take().and_then(|restoring| restoring.end(done)) {
            self.announce(attached, resumed, false);
        }
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

    /// The peer has left this path for another one, and what it said there is on its way to us: a session that goes on there has
    /// had no break worth telling.
    fn superseded(&mut self) {
        if !self.session.as_ref().is_some_and(|session| session.core.is_resumable()) {
            return self.lost(DisconnectReason::Superseded, CloseCode::Superseded);
        }
        let Some(path) = self.path.take() else { return };
        self.leave(&path);
        self.peer.state.send_modify(|state| state.attached = None);
        self.superseded = Some(Instant::now() + SUPERSEDED);
    }

    /// The path is gone: tells everybody, and lets the supervisor begin. The session is kept, unless somebody wanted its end.
    fn lost(&mut self, reason: DisconnectReason, code: CloseCode) {
        let superseded = self.superseded.take().is_some();
        match self.path.take() {
            Some(path) => {
                path.attached.link().close(code);
                self.leave(&path);
            }
            None if superseded => {}
            None => return,
        }
        self.peer.known().seen = Some(SystemTime::now());
        self.peer.state.send_modify(|state| state.attached = None);
        self.suspecting = false;
        self.upgrade = Upgrade::default();
        self.restoring.iter_mut().for_each(Restoring::lost);
        if let (Some(session), None) = (&self.session, self.peer.visitor) {
            self.hub.acceptor().detached(&session.core);
        }
        self.keep(&reason);
        self.supervise(Input::Lost);
        if std::mem::take(&mut self.told) {
            self.tell(Event::Disconnected { peer: self.peer.id, reason });
        }
    }

    /// A path carries the session no more.
    fn leave(&self, path: &Path) {
        path.attached.link().close(CloseCode::Superseded);
        self.hub.ended(self.peer.id, path.attached.link().number());
    }

    /// Without a path: keeps the session for as long as it can be resumed, or ends it.
    fn keep(&mut self, because: &DisconnectReason) {
        let Some(session) = &mut self.session else { return };
        let core = &session.core;
        // Of a visitor that has nothing in flight there is nothing to keep: most are gone for good.
        let idle = self.peer.visitor.is_some() && core.is_idle();
        if because.is_deliberate() || !core.is_resumable() || idle {
            return self.end(SessionEnd::Closed(because.clone()));
        }
        session.until = Some(Instant::now() + core.resume_window());
        session.place = Some(self.hub.detached().enter(self.hub.budget()));
    }

    /// The session is over: whatever is in flight ends, here and now.
    fn end(&mut self, end: SessionEnd) {
        if let Some(session) = self.session.take() {
            tracing::debug!(peer = %self.peer.id.short(), %end, "a session is over");
            self.peer.set_core(None);
            self.restoring = None;
            let reason = end.to_string();
            session.core.end(end);
            if std::mem::take(&mut self.noted) {
                self.hub.journal().note(Entry::Ended { peer: self.peer.id, reason: reason.into() });
            }
            if self.peer.visitor.is_none() {
                self.hub.acceptor().ended(&session.core);
            }
        }
    }

    fn broken(&mut self, error: &ControlError) {
        tracing::warn!(peer = %self.peer.id.short(), %error, "the path is closed");
        if let Some(session) = &self.session {
            session.core.limited(Limit::Protocol);
        }
        let reason = DisconnectReason::Path(error.to_string());
        self.lost(reason.clone(), CloseCode::Protocol);
        // What it says of the streams is wrong, and would be on another path.
        if matches!(error, ControlError::Streams(_)) {
            self.end(SessionEnd::Closed(reason));
        }
    }

    async fn goodbye(&mut self, goodbye: Goodbye, reason: DisconnectReason) {
        let code = if goodbye == Goodbye::Refused { CloseCode::Refused } else { CloseCode::Goodbye };
        if let Some(path) = &mut self.path {
            path.goodbye(goodbye).await;
        }
        let end = SessionEnd::Closed(reason.clone());
        self.lost(reason, code);
        self.end(end);
    }

    async fn path_input(&mut self, input: path::Input) {
        if let Some(path) = &mut self.path {
            let event = path.handle(input).await;
            self.path_event(event).await;
            if self.path.as_ref().is_some_and(Path::has_answered) {
                self.upgrade.answered();
            }
            self.judge();
        }
    }

    async fn path_event(&mut self, event: PathEvent) {
        match event {
            PathEvent::Lost(reason) => match self.path.as_ref().and_then(|path| path.attached.violation()) {
                Some(violation) => self.broken(&violation.into()),
                None if reason == LostReason::Closed(CloseCode::Superseded) => self.superseded(),
                None if reason == LostReason::Closed(CloseCode::Replaced) => {
                    self.say_replaced();
                    self.lost(reason.into(), CloseCode::Protocol);
                    self.failed(Unreached::Replaced);
                }
                None => self.lost(reason.into(), CloseCode::Protocol),
            },
            PathEvent::Broken(error) => self.broken(&error),
            PathEvent::NoAnswer => self.lost(DisconnectReason::NoAnswer, CloseCode::Timeout),
            PathEvent::Goodbye(Goodbye::Disconnect) => self.lost(DisconnectReason::ByPeer, CloseCode::Goodbye),
            PathEvent::Goodbye(Goodbye::Down) => self.lost(DisconnectReason::PeerDown, CloseCode::Goodbye),
            PathEvent::Goodbye(Goodbye::Refused) => {
                self.lost(DisconnectReason::Refused, CloseCode::Goodbye);
                self.failed(Unreached::Refused);
            }
            PathEvent::Addresses(addresses) => self.peer.announced(addresses, None),
            PathEvent::Nothing => {}
        }
        self.end_drain_if_done().await;
    }

    async fn notice(&mut self, notice: Notice) {
        let Some(session) = &mut self.session else { return };
        session.heard(notice);
        if notice == Notice::Draining {
            self.peer.ending.store(true, SeqCst);
            // Whoever waits for the session waits for the next one from here on.
            self.peer.state.send_modify(|state| state.attached = None);
            self.call_ended().await;
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
        if let Some(session) = &mut self.session {
            let window = session.core.resume_window();
            if session.until.is_some_and(|until| Instant::now() >= until) {
                self.end(SessionEnd::Expired(window));
            } else if session.place.as_mut().is_some_and(|place| place.gives_way(self.hub.budget())) {
                self.end(SessionEnd::Evicted);
            }
        }
        if self.superseded.is_some_and(|until| Instant::now() >= until) {
            self.lost(DisconnectReason::Superseded, CloseCode::Superseded);
        }
        if self.restoring.as_ref().and_then(Restoring::until).is_some_and(|until| Instant::now() >= until) {
            self.restored(false);
        }
        if let Some(path) = &mut self.path
            && let Some(event) = path.tick()
        {
            self.path_event(event).await;
        }
        self.judge();
        if self.upgrade.is_due() {
            self.do_better();
        }
        if self.dials() {
            self.supervise(Input::Tick);
        }
        self.end_drain_if_done().await;
    }

    async fn drain(&mut self, done: oneshot::Sender<()>) {
        self.draining = Some((Instant::now() + self.hub.own().limits.drain, done));
        self.peer.ending.store(true, SeqCst);
        self.attempts.abort_all();
        if let Some(session) = &mut self.session {
            session.drain().await;
        }
        self.call_ended().await;
    }

    /// A call of ours ended while one of the two nodes goes down.
    async fn call_ended(&mut self) {
        // Calls that wait for the next session have leave too, and are none of this one's.
        if let Some(session) = &mut self.session {
            session.calls_answered().await;
        }
        self.end_drain_if_done().await;
    }

    async fn end_drain_if_done(&mut self) {
        let Some((deadline, _)) = &self.draining else { return };
        let answered = self.path.is_none() || self.session.as_ref().is_none_or(Held::both_answered);
        if answered || Instant::now() >= *deadline {
            self.goodbye(Goodbye::Down, DisconnectReason::Here).await;
        }
    }
}

impl Drop for Owner {
    /// However it ends, nobody waits for it any more.
    fn drop(&mut self) {
        self.end(SessionEnd::Closed(DisconnectReason::Here));
        self.peer.state.send_modify(|state| *state = State { gone: true, attached: None, ..state.clone() });
        if let Some((_, done)) = self.draining.take() {
            let _ = done.send(());
        }
    }
}

/// Reaches the peer and greets it.
async fn attempt(id: Option<AttemptId>, reach: Reach, within: Duration) -> Attempt {
    let mut tried = Tried::default();
    let hub = reach.hub.clone();
    let greeted = async {
        let link = reach.link(&mut tried).await.map_err(AttemptError::Reach)?;
        hub.greet_dialled(link).await.map_err(AttemptError::Greet)
    };
    let outcome = tokio::time::timeout(within, greeted).await.unwrap_or(Err(AttemptError::Overdue));
    Attempt { id, tried, outcome }
}

async fn restored(restoring: &mut Option<Restoring>) {
    match restoring {
        Some(restoring) => restoring.done().await,
        None => std::future::pending().await,
    }
}

async fn notice(session: &mut Option<Held>) -> Notice {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
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
            AttemptError::Reach(error) => error.fmt(f),
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
