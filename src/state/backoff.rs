//! When to dial a wanted peer: the timing of its supervisor. Decides how many attempts run and when the next starts; knows no
//! sockets, opens nothing and picks no address, except that it remembers which ones answered with another key.
//!
//! - **Quick**, for the resume window after a session was lost (`Active` only): an attempt starts every 0.1 to 1 s, beside those
//!   still running, at most 3 alive. One of them may take as long as a handshake may; the others are given up after 3 s, so that
//!   a path that comes back is tried afresh, and a slow one has its chance.
//! - **Steady**, before the first session, after the window and on battery: one attempt at a time, full-jitter exponential
//!   backoff (the start of the next is drawn evenly from zero to a ceiling that doubles from 100 ms to 30 s; "Exponential
//!   Backoff And Jitter", AWS Architecture Blog, 2015). The time counts from the start of an attempt, so that an attempt into
//!   silence is part of the wait.
//! - **Refused**: as steady, with a ceiling of 5 min, until an attempt ends otherwise or the timing is reset.
//!
//! - **Asked**: the peer's owner decides whether to let this node in. It comes again every 2 to 5 s (15 to 60 s on battery), one attempt at a time.
//!
//! - **Beside**, while the session is up but its path is suspect: as quick, on battery too, for as long as the suspicion lasts. So a
//!   new path may be there before the old one is given up, and if the old one answers the attempts are abandoned.
//!
//! A network change, a sleep of this machine and the peer dialling us start all over: see [`Input`]. A session that did not
//! last 3 s starts nothing over, nor does the peer dialling after it: two nodes that keep closing each other's links slow down.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use crate::proto::control::Profile;
use crate::proto::limits;

/// Most attempts alive at once.
pub const ATTEMPTS: usize = 3;
/// Shortest and longest time between the starts of two quick attempts.
pub const QUICK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The first attempt after a session was lost starts within this: a restarted node meets its peers one after the other.
pub const FIRST_AFTER_LOSS: Duration = Duration::from_millis(500);
/// A wake-up this much late means that the machine slept.
pub const SLEPT: Duration = Duration::from_secs(2);
/// Resets in a row dial at most this often: an interface coming up is several changes.
pub const RESET_SPACING: Duration = Duration::from_secs(1);
/// A session that lasted this long has worked; one that did not is a failed attempt.
pub const STABLE: Duration = limits::ANSWER_BOUND;
/// On battery: the first ceiling, and the largest once there is no session left to resume.
pub const BATTERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// While the peer's owner decides, it is asked again after this time, and on battery after the other.
pub const ASKED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
/// See [`ASKED`].
pub const ASKED_ON_BATTERY: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(60));
/// Most addresses set aside; one more takes the place of the oldest.
pub const SET_ASIDE: usize = 2 * limits::ADDRESSES;

/// One attempt to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(u64);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The time came that [`Todo::wake`] named. Too early is harmless; more than [`SLEPT`] late counts as [`Slept`](Self::Slept).
    Tick,
    /// An attempt ended without an answer from the peer, or had no address to dial.
    Failed(AttemptId),
    /// The peer itself refused an attempt.
    Refused(AttemptId),
    /// The peer's owner is asked whether to let this node in.
    Asked(AttemptId),
    /// An address answered with another key. The attempt that found it goes on, or fails by a `Failed` of its own.
    WrongKey(SocketAddr),
    /// The session is up, by an attempt of ours or of the peer's; or it is on a new path, beside which no other is needed.
    Connected,
    /// The session has no path any more. Attempts made beside it go on.
    Lost,
    /// The session is up, but its path does not answer. Attempts run beside it, the first within [`FIRST_AFTER_LOSS`]. Saying it
    /// again changes nothing, nor does saying it of a peer that is not connected.
    Suspect,
    /// The path answered: attempts beside it are abandoned.
    Answered,
    /// The peer's link reached us, so it can be reached, and wants us. If its link comes to nothing, ours follows within 1 s,
    /// unless one is running.
    PeerDialled,
    /// Somebody asks for the peer again, and nothing new is known of it. Dials at once, like a network change, but never in the place of the
    /// one attempt that may take long: else who asks all the time would never reach a peer that is far away.
    Wanted,
    /// Addresses or routes of this machine changed. Dials at once, beside a session that is up too; addresses set aside may
    /// lead elsewhere now.
    NetworkChanged,
    /// This machine slept. For callers whose clock stands still meanwhile, as Linux's monotonic clock does. Dials at once, as after a network change.
    Slept,
    /// The application is about to stop running. Attempts are abandoned, and none starts until it is resumed; there is no wake-up.
    Suspended,
    /// It runs again, or does so anyway. Dials at once, as after a network change.
    Resumed,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Todo {
    /// Give these attempts up. Whatever they still report is ignored.
    pub abandon: Vec<AttemptId>,
    /// Start this attempt.
    pub dial: Option<Dial>,
    /// Come back with a [`Input::Tick`] then; until then only other inputs matter.
    pub wake: Option<Instant>,
}

/// An attempt to start. It is alive until it is reported or abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Names it in what is reported of it.
    pub attempt: AttemptId,
    /// Time to an attached session. Past it the attempt is abandoned, whether or not it reports.
    pub within: Duration,
}

/// The timing of one wanted peer's supervisor. Feed it every event, do what it returns; it cannot get stuck: while there is
/// no session there is always a next wake-up, unless suspended, even when attempts are never reported.
///
/// ```
/// use std::time::{Duration, Instant};
/// use voltmesh::proto::control::Profile;
/// use voltmesh::state::backoff::{Backoff, Input};
///
/// let (mut backoff, mut rng, now) = (Backoff::new(Profile::Active), rand::rng(), Instant::now());
/// let dial = backoff.handle(Input::Tick, now, &mut rng).dial.expect("the first attempt starts at once");
/// let todo = backoff.handle(Input::Failed(dial.attempt), now, &mut rng);
/// assert!(todo.wake.unwrap() <= now + Duration::from_millis(100));
/// ```
#[derive(Debug)]
pub struct Backoff {
    profile: Profile,
    resume_window: Duration,
    ceiling_first: Duration,
    ceiling_max: Duration,
    up_since: Option<Instant>,
    /// The path of the session that is up does not answer.
    suspect: bool,
    suspended: bool,
    /// What there is to resume can be resumed until then.
    resume_until: Option<Instant>,
    alive: Vec<Attempt>,
    attempts: u64,
    /// Steady attempts since the last reset: the exponent of the ceiling.
    doublings: u32,
    refused: bool,
    /// The last session was lost before it had worked.
    unstable: bool,
    /// When the next attempt is due, if there is room for it; `None` is at once.
    next: Option<Instant>,
    /// What the time to it was drawn from.
    ceiling: Duration,
    /// When a reset's own attempt is due. It finds room by taking the oldest one's.
    urgent: Option<Instant>,
    /// It is not to take the place of the one that may take long.
    gentle: bool,
    last_urgent: Option<Instant>,
    /// The wake-up last asked for.
    planned: Option<Instant>,
    set_aside: Vec<(SocketAddr, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    id: AttemptId,
    ends: Instant,
    patient: bool,
}

impl Backoff {
    /// For a peer that was never connected. The first [`Input::Tick`] dials.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            resume_window: limits::RESUME_WINDOW,
            ceiling_first: limits::BACKOFF_FIRST,
            ceiling_max: limits::BACKOFF_MAX,
            up_since: None,
            suspect: false,
            suspended: false,
            resume_until: None,
            alive: Vec::with_capacity(ATTEMPTS),
            attempts: 0,
            doublings: 0,
            refused: false,
            unstable: false,
            next: None,
            ceiling: Duration::ZERO,
            urgent: None,
            gentle: false,
            last_urgent: None,
            planned: None,
            set_aside: Vec::new(),
        }
    }

    /// The same with what an operator may change: how long a session can be resumed, and the largest ceiling of the wait between
    /// two attempts. The larger ceilings after a refusal, and on battery, stay as they are.
    pub fn with_limits(profile: Profile, limits: &limits::Limits) -> Self {
        let limits::Limits { resume_window, backoff_first, backoff_max, .. } = *limits;
        Self { resume_window, ceiling_first: backoff_first, ceiling_max: backoff_max, ..Self::new(profile) }
    }

    /// Takes one event and says what to do. Times must not go back.
    pub fn handle(&mut self, input: Input, now: Instant, rng: &mut impl Rng) -> Todo {
        let slept = self.planned.is_some_and(|planned| now > planned + SLEPT);
        if slept {
            self.reset(now);
        }
        let mut todo = Todo::default();
        match input {
            Input::Tick => {}
            Input::Failed(attempt) => self.failed(attempt, now, rng),
            Input::Refused(attempt) => self.refused(attempt, now, rng),
            Input::Asked(attempt) => self.asked(attempt, now, rng),
            Input::WrongKey(addr) => self.put_aside(addr, now),
            Input::Connected => self.connected(now, &mut todo),
            Input::Lost => self.lost(now, rng),
            Input::Suspect => self.suspect(now, rng),
            Input::Answered => self.answered(&mut todo),
            Input::PeerDialled => self.peer_dialled(now, rng),
            Input::NetworkChanged => {
                self.set_aside.clear();
                self.reset(now);
            }
            Input::Wanted => self.wanted(now),
            Input::Slept => self.reset(now),
            Input::Suspended => self.suspend(&mut todo),
            Input::Resumed => {
                self.suspended = false;
                self.reset(now);
            }
        }
        if !self.suspended {
            self.proceed(now, rng, &mut todo);
        }
        self.planned = todo.wake;
        todo
    }

    /// The longest the next attempt was to be waited for, from the start of the one before. A path that comes up is in use
    /// after at most this and the time of two handshakes: one into the silence before, and its own.
    pub fn ceiling(&self) -> Duration {
        self.ceiling
    }

    /// How many attempts are alive.
    pub fn alive(&self) -> usize {
        self.alive.len()
    }

    /// Whether this address answered with another key within the last 5 min: try others.
    pub fn is_set_aside(&self, addr: SocketAddr, now: Instant) -> bool {
        self.set_aside.iter().any(|(other, until)| *other == addr && now < *until)
    }

    fn connected(&mut self, now: Instant, todo: &mut Todo) {
        self.up_since.get_or_insert(now);
        self.answered(todo);
    }

    fn suspect(&mut self, now: Instant, rng: &mut impl Rng) {
        if self.up_since.is_none() || std::mem::replace(&mut self.suspect, true) {
            return;
        }
        // One that runs already, after a network change, has said when the next is due.
        if self.alive.is_empty() {
            self.plan(now, Duration::ZERO, FIRST_AFTER_LOSS, rng);
        }
    }

    /// A word from the path of a session that was lost meanwhile changes nothing.
    fn answered(&mut self, todo: &mut Todo) {
        if self.up_since.is_some() {
            self.suspect = false;
            self.abandon_all(todo);
        }
    }

    fn suspend(&mut self, todo: &mut Todo) {
        self.suspended = true;
        self.abandon_all(todo);
    }

    fn abandon_all(&mut self, todo: &mut Todo) {
        todo.abandon.extend(self.alive.drain(..).map(|attempt| attempt.id));
        self.urgent = None;
    }

    fn lost(&mut self, now: Instant, rng: &mut impl Rng) {
        let Some(since) = self.up_since.take() else { return };
        self.suspect = false;
        self.unstable = now.saturating_duration_since(since) < STABLE;
        if !self.unstable {
            self.resume_until = Some(now + self.resume_window);
            self.start_over();
        }
        let longest = if self.is_quick(now) { FIRST_AFTER_LOSS } else { self.steady_ceiling(now).max(FIRST_AFTER_LOSS) };
        self.plan(now, Duration::ZERO, longest, rng);
    }

    /// A peer that refused and now is silent may be another one by the time it answers: the long wait is over.
    fn failed(&mut self, attempt: AttemptId, now: Instant, rng: &mut impl Rng) {
        let refused = self.refused;
        if self.end(attempt, false) && refused {
            self.plan(now, Duration::ZERO, self.steady_ceiling(now), rng);
        }
    }

    fn refused(&mut self, attempt: AttemptId, now: Instant, rng: &mut impl Rng) {
        if self.end(attempt, true) {
            self.resume_until = None;
            self.plan(now, Duration::ZERO, self.steady_ceiling(now), rng);
        }
    }

    /// Whoever decides is a person: neither the long wait of a refusal nor the short one of a loss.
    fn asked(&mut self, attempt: AttemptId, now: Instant, rng: &mut impl Rng) {
        if self.end(attempt, false) {
            self.resume_until = None;
            self.start_over();
            let (shortest, longest) = if self.profile == Profile::Battery { ASKED_ON_BATTERY } else { ASKED };
            self.plan(now, shortest, longest, rng);
        }
    }

    /// Ours does not start at once: theirs is on its way, and two would only cross.
    fn peer_dialled(&mut self, now: Instant, rng: &mut impl Rng) {
        if self.up_since.is_some() || self.unstable {
            return;
        }
        self.start_over();
        let due = self.next.unwrap_or(now);
        if due > now + QUICK.1 {
            self.plan(now, QUICK.0, QUICK.1, rng);
        }
    }

    fn wanted(&mut self, now: Instant) {
        let gentle = self.urgent.is_none() || self.gentle;
        self.set_aside.clear();
        self.reset(now);
        self.gentle = gentle;
    }

    /// Dials now, or once [`RESET_SPACING`] has passed since the last time.
    fn reset(&mut self, now: Instant) {
        self.gentle = false;
        if !self.suspended {
            self.urgent = Some(self.last_urgent.map_or(now, |last| now.max(last + RESET_SPACING)));
        }
    }

    fn start_over(&mut self) {
        self.doublings = 0;
        self.refused = false;
    }

    fn put_aside(&mut self, addr: SocketAddr, now: Instant) {
        self.set_aside.retain(|(other, until)| *other != addr && now < *until);
        if self.set_aside.len() == SET_ASIDE {
            self.set_aside.remove(0);
        }
        self.set_aside.push((addr, now + limits::REFUSED_BACKOFF_MAX));
    }

    /// False when the attempt was not alive: its report changes nothing.
    fn end(&mut self, attempt: AttemptId, refused: bool) -> bool {
        let before = self.alive.len();
        self.alive.retain(|alive| alive.id != attempt);
        let ended = self.alive.len() < before;
        if ended {
            self.refused = refused;
        }
        ended
    }

    fn proceed(&mut self, now: Instant, rng: &mut impl Rng, todo: &mut Todo) {
        self.give_up_overdue(now, rng, todo);
        if self.urgent.is_some_and(|due| due <= now) {
            self.urgent = None;
            self.last_urgent = Some(now);
            self.unstable = false;
            self.start_over();
            if self.alive.len() >= ATTEMPTS {
                let spared = |attempt: &Attempt| self.gentle && attempt.patient;
                let oldest = self.alive.iter().position(|attempt| !spared(attempt)).unwrap_or(0);
                todo.abandon.push(self.alive.remove(oldest).id);
            }
            todo.dial = Some(self.dial(now, rng));
        } else if self.has_room(now) && self.next.is_none_or(|due| due <= now) {
            todo.dial = Some(self.dial(now, rng));
        }
        let next = self.next.filter(|_| self.has_room(now));
        todo.wake = next.into_iter().chain(self.urgent).chain(self.alive.iter().map(|attempt| attempt.ends)).min();
    }

    fn give_up_overdue(&mut self, now: Instant, rng: &mut impl Rng, todo: &mut Todo) {
        while let Some(overdue) = self.alive.iter().find(|attempt| attempt.ends <= now).map(|attempt| attempt.id) {
            self.failed(overdue, now, rng);
            todo.abandon.push(overdue);
        }
    }

    fn has_room(&self, now: Instant) -> bool {
        let needed = self.up_since.is_none() || self.suspect;
        needed && self.alive.len() < if self.is_quick(now) { ATTEMPTS } else { 1 }
    }

    fn dial(&mut self, now: Instant, rng: &mut impl Rng) -> Dial {
        let quick = self.is_quick(now);
        let patient = !quick || !self.alive.iter().any(|attempt| attempt.patient);
        let within = if patient { limits::HANDSHAKE } else { limits::ANSWER_BOUND };
        let attempt = AttemptId(self.attempts);
        self.attempts += 1;
        self.alive.push(Attempt { id: attempt, ends: now + within, patient });
        if quick {
            self.plan(now, QUICK.0, QUICK.1, rng);
        } else {
            self.plan(now, Duration::ZERO, self.steady_ceiling(now), rng);
            self.doublings += 1;
        }
        Dial { attempt, within }
    }

    fn plan(&mut self, now: Instant, shortest: Duration, longest: Duration, rng: &mut impl Rng) {
        self.next = Some(now + even(rng, shortest, longest));
        self.ceiling = longest;
    }

    fn is_quick(&self, now: Instant) -> bool {
        let lost = self.profile == Profile::Active && self.is_resumable(now);
        (lost || self.up_since.is_some()) && !self.refused
    }

    fn is_resumable(&self, now: Instant) -> bool {
        self.resume_until.is_some_and(|until| now < until)
    }

    fn steady_ceiling(&self, now: Instant) -> Duration {
        let battery = self.profile == Profile::Battery;
        let first = if battery { BATTERY.0 } else { self.ceiling_first };
        let max = match self.refused {
            true => limits::REFUSED_BACKOFF_MAX,
            false if battery && !self.is_resumable(now) => BATTERY.1,
            false => self.ceiling_max,
        };
        first.saturating_mul(1 << self.doublings.min(20)).min(max)
    }
}

/// Evenly drawn from `low` to `high`, both included.
fn even(rng: &mut impl Rng, low: Duration, high: Duration) -> Duration {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.random_range(nanos(low)..=nanos(high)))
}

#[cfg(test)]
mod tests;
