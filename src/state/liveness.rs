//! Whether a path is alive: it is while something that *answers us* arrives. Packets of the peer's own say nothing about the way
//! from us to it, so only pongs, and acknowledgements that are certain, count, and a black hole in one direction is seen from both ends. Sends
//! nothing itself and looks at no message.
//!
//! | when | a path is dead |
//! |---|---|
//! | something outstanding | 3 s after the last answer or the first unanswered send, whichever is later |
//! | idle, `active` | when a ping, sent 5 s after the last answer, is unanswered for 3 s |
//! | idle, `battery` on either side | when a ping, sent 30 s after the last answer, is unanswered for 10 s |
//!
//! Of two idle ends one pings, and the other sends its own ping together with the pong; its timer then runs one [`TICK`] longer.
//!
//! A path is *suspect* before it is dead: something was asked, and nothing answered for a second. Then another path is tried beside
//! it, so that little is lost if it is dead and nothing if it is not. Asked to [prove itself](Liveness::probe), as after a change of
//! the network, it is suspect until it has. Any answer clears it. That a suspicion is early costs a handshake, so it may be.
//!
//! Outstanding is what was sent, is not acknowledged, and has seen no pong of a later ping: after that it waits for the peer's
//! application, not for the path, and a call that takes an hour costs no more pings than an idle path.
//!
//! The way of every message touches only [`Pulse`], three counters. The machine reads them on its timer: each 500 ms while
//! there is traffic, else at the next ping. So a verdict can be that much late, and is never early.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::proto::control::Profile;
use crate::proto::limits;

/// How often the counters are read while there is traffic: the most a verdict is late.
pub const TICK: Duration = Duration::from_millis(500);
/// Something is outstanding and nothing answered for this long: a ping asks, in case the acknowledgement is merely slow.
pub const ASK_AFTER: Duration = Duration::from_secs(1);
/// A ping is unanswered for this long, or for two usual round trips up to twice this: the path is suspect.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// A tick this much late means that we did not run, not that the peer was silent.
pub const SLEPT: Duration = Duration::from_secs(2);
/// While suspended nothing is due; a timer that needs a time anyway rests this long.
const REST: Duration = Duration::from_secs(86_400);

/// What the way of messages leaves for the timer: how much was sent on one path, and how much acknowledged, in bytes or in
/// whatever unit the caller counts by. Shared by reference; every method is a few nanoseconds and never blocks.
#[derive(Debug, Default)]
pub struct Pulse {
    sent: AtomicU64,
    settled: AtomicU64,
    acked: AtomicU64,
    dozing: AtomicBool,
}

impl Pulse {
    /// Something went out that the peer is to acknowledge. True when the timer sleeps for longer than [`TICK`]: wake it and have it
    /// tick now. That is so at most once between two ticks.
    #[must_use = "true means that the timer must be woken"]
    pub fn sent(&self, count: u64) -> bool {
        self.sent.fetch_add(count, Ordering::SeqCst);
        self.dozing.load(Ordering::SeqCst) && self.dozing.swap(false, Ordering::SeqCst)
    }

    /// The peer acknowledged so much: for the first time, and on this path.
    pub fn acked(&self, count: u64) {
        self.acked.fetch_add(count, Ordering::SeqCst);
        self.forgotten(count);
    }

    /// So much of what was sent is not waited for any more, without a word from the peer.
    pub fn forgotten(&self, count: u64) {
        self.settled.fetch_add(count, Ordering::SeqCst);
    }

    /// How much was sent so far.
    pub fn sent_so_far(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// The peer acknowledged everything that was sent when [`sent_so_far`](Self::sent_so_far) said this.
    pub fn acked_up_to(&self, sent: u64) {
        let before = self.settled.fetch_max(sent, Ordering::SeqCst);
        self.acked.fetch_add(sent.saturating_sub(before), Ordering::SeqCst);
    }

    fn read(&self) -> Seen {
        let (acked, settled) = (self.acked.load(Ordering::SeqCst), self.settled.load(Ordering::SeqCst));
        Seen { acked, settled, sent: self.sent.load(Ordering::SeqCst) }
    }

    /// Asks the next sender to wake us. False when there was one already.
    fn doze(&self, seen: Seen) -> bool {
        self.dozing.store(true, Ordering::SeqCst);
        let undisturbed = self.sent.load(Ordering::SeqCst) == seen.sent;
        self.dozing.store(undisturbed, Ordering::SeqCst);
        undisturbed
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    acked: u64,
    settled: u64,
    sent: u64,
}

/// Why a path is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dead {
    /// What was sent is not acknowledged, and nothing else answered.
    Unacknowledged,
    /// A ping found no answer.
    Unanswered,
}

/// What to do after a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Send a ping with this number.
    pub ping: Option<u64>,
    /// The path is dead: leave it. Later ticks say the same.
    pub dead: Option<Dead>,
    /// The path does not answer and may be dead soon: try another beside it. Never true of one that is dead.
    pub suspect: bool,
    /// Tick again then, or when [`Pulse::sent`] says so; `None` once dead, and while suspended.
    pub wake: Option<Instant>,
}

/// The judge of one path.
///
/// ```
/// use std::time::{Duration, Instant};
/// use voltmesh::proto::control::Profile;
/// use voltmesh::state::liveness::{Liveness, Pulse};
///
/// let (pulse, start) = (Pulse::default(), Instant::now());
/// let mut liveness = Liveness::new(Profile::Active, Profile::Active, start);
/// let wake = liveness.tick(start, &pulse).wake.unwrap();
/// assert_eq!(wake, start + Duration::from_secs(5));
/// let seq = liveness.tick(wake, &pulse).ping.expect("the path was idle for 5 s");
/// liveness.pong(seq, wake + Duration::from_millis(20));
/// assert_eq!(liveness.rtt(), Some(Duration::from_millis(20)));
/// ```
#[derive(Debug)]
pub struct Liveness {
    idle: Duration,
    grace: Duration,
    acked: u64,
    sent: u64,
    /// A pong came for a ping that was sent after so much.
    proven: u64,
    ticked: Instant,
    /// The last answer came then or later.
    last_answer: Instant,
    /// Something is outstanding, and nothing answered since.
    waiting: Option<Waiting>,
    /// The newest ping, until its pong.
    ping: Option<Ping>,
    /// The path is dead then, unless something answers.
    ping_deadline: Option<Instant>,
    /// The first ping since the last answer was sent then.
    asked_since: Option<Instant>,
    /// The path is to prove itself: suspect until a pong with this number, or a later one.
    doubted: Option<u64>,
    suspended: bool,
    next_seq: u64,
    /// Pongs below this came already, or need not come any more.
    answered_below: u64,
    probe: bool,
    /// The peer's pings set the pace: ours waits this much longer, for the peer's to come first.
    follows: Duration,
    rtt: Option<Duration>,
    planned: Option<Instant>,
    dead: Option<Dead>,
}

/// Since when nothing answered. Exactly that is known of a pong only, not of what the counters say.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    earliest: Instant,
    latest: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    seq: u64,
    at: Instant,
    /// What had been sent before it.
    after: u64,
}

impl Liveness {
    /// For a path on which hellos were exchanged just now. The rarer of the two sides' idle intervals holds for both.
    pub fn new(mine: Profile, theirs: Profile, now: Instant) -> Self {
        let (idle, grace) = if [mine, theirs].contains(&Profile::Battery) {
            (Duration::from_secs(30), Duration::from_secs(10))
        } else {
            (Duration::from_secs(5), limits::ANSWER_BOUND)
        };
        Self {
            idle,
            grace,
            acked: 0,
            sent: 0,
            proven: 0,
            ticked: now,
            last_answer: now,
            waiting: None,
            ping: None,
            ping_deadline: None,
            asked_since: None,
            doubted: None,
            suspended: false,
            next_seq: 0,
            answered_below: 0,
            probe: false,
            follows: Duration::ZERO,
            rtt: None,
            planned: None,
            dead: None,
        }
    }

    /// Judges the path at its timer, or when [`Pulse::sent`] asked for it. `pulse` is always this path's.
    pub fn tick(&mut self, now: Instant, pulse: &Pulse) -> Step {
        if self.suspended {
            self.ticked = now;
            return Step { dead: self.dead, ..Step::default() };
        }
        let seen = pulse.read();
        let busy = self.look(now, seen);
        self.dead = self.dead.or_else(|| self.verdict(now));
        if self.dead.is_some() {
            return Step { dead: self.dead, ..Step::default() };
        }
        let ping = self.is_ping_due(now).then(|| {
            self.follows = Duration::ZERO;
            self.send_ping(now)
        });
        let mut wake = self.next_wake(now);
        if busy || (wake > now + TICK && !pulse.doze(seen)) {
            wake = wake.min(now + TICK);
        }
        self.planned = Some(wake);
        Step { ping, dead: None, suspect: self.is_suspect(now), wake: Some(wake) }
    }

    /// Sends a ping beside the timer's own, as for a person who asks how far the peer is: its number. It must be answered like any, so the
    /// next tick may be due [sooner](Self::wake) than the last one said.
    pub fn ping(&mut self, now: Instant) -> u64 {
        let seq = self.send_ping(now);
        let wake = self.next_wake(now);
        self.planned = self.planned.map(|planned| planned.min(wake));
        seq
    }

    /// The peer's ping arrived. True when ours is due soon: sent together with the pong it costs no packet of its own, and an
    /// idle pair wakes its radios once per interval instead of twice.
    pub fn pinged(&mut self, now: Instant) -> bool {
        let judging = self.dead.is_none() && !self.suspended;
        let soon = judging && self.ping_deadline.is_none() && self.next_ping() <= now + self.idle / 2;
        if soon {
            self.follows = TICK;
        }
        soon
    }

    /// When the next tick is due: as the last one said, or sooner for a [`ping`](Self::ping) since; far off while suspended.
    pub fn wake(&self) -> Instant {
        if self.suspended {
            return self.ticked + REST;
        }
        self.planned.unwrap_or(self.last_answer)
    }

    /// A pong arrived. One that answers no ping of ours is ignored.
    pub fn pong(&mut self, seq: u64, now: Instant) {
        if !(self.answered_below..self.next_seq).contains(&seq) {
            return;
        }
        self.answered_below = seq + 1;
        if let Some(ping) = self.ping.take_if(|newest| newest.seq == seq) {
            self.proven = ping.after;
            self.sample(now.saturating_duration_since(ping.at));
        }
        self.doubted.take_if(|from| seq >= *from);
        self.last_answer = now;
        self.answered();
        self.waiting = self.waiting.map(|_| Waiting { earliest: now, latest: now });
    }

    /// Have the path prove itself: the next tick, which should be now, sends a ping that must be answered within 3 s, on battery
    /// too. Until it is, the path is suspect. For a network change, and a wake-up from sleep.
    pub fn probe(&mut self) {
        self.probe = true;
        self.doubted = Some(self.next_seq);
    }

    /// Whether the path is suspect now, as a tick would say; so the owner need not wait for one when a pong has cleared it.
    pub fn is_suspect(&self, now: Instant) -> bool {
        let judging = self.dead.is_none() && !self.suspended;
        judging && (self.doubted.is_some() || self.suspect_at().is_some_and(|at| at <= now))
    }

    /// The machine, or the application on it, is about to stop running. Until [`resume`](Self::resume) no ping is due and no
    /// verdict falls, however long that takes and whatever is outstanding. Twice is the same as once.
    pub fn suspend(&mut self) {
        self.suspended = true;
        self.ping = None;
    }

    /// It runs again: what went unanswered meanwhile counts for nothing, and the path is to [prove itself](Self::probe). The next
    /// tick is due at once. Nothing happens unless it was suspended.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.suspended) {
            self.ask_again();
            self.planned = None;
        }
    }

    /// Smoothed time from ping to pong (RFC 9002, section 5.3); `None` before the first pong.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Takes in what the counters say. True while there is traffic.
    fn look(&mut self, now: Instant, seen: Seen) -> bool {
        let before = std::mem::replace(&mut self.ticked, now);
        let answered = seen.acked != std::mem::replace(&mut self.acked, seen.acked);
        let outstanding = seen.sent != seen.settled && seen.sent != self.proven;
        self.sent = seen.sent;
        if answered {
            // When it came is not known. For the next ping the earliest time counts, for a verdict the latest.
            self.last_answer = self.last_answer.max(before);
            self.answered();
            self.waiting = Some(Waiting { earliest: self.last_answer, latest: now });
        } else if self.planned.is_some_and(|planned| now > planned + SLEPT) {
            // Answers may lie unread in the socket.
            self.ask_again();
        }
        self.waiting = outstanding.then(|| self.waiting.unwrap_or(Waiting { earliest: now, latest: now }));
        answered || outstanding
    }

    fn answered(&mut self) {
        self.ping_deadline = None;
        self.asked_since = None;
    }

    /// We did not run: the time that passed says nothing, and a ping asks before anything is judged.
    fn ask_again(&mut self) {
        // A pong for it may still come, but it would not say how far the peer is.
        self.ping = None;
        self.waiting = None;
        self.ping_deadline = None;
        self.asked_since = None;
        self.probe();
    }

    /// When the ping that is unanswered makes the path suspect.
    fn suspect_at(&self) -> Option<Instant> {
        let patience = self.rtt.map_or(SUSPECT_AFTER, |rtt| (2 * rtt).clamp(SUSPECT_AFTER, 2 * SUSPECT_AFTER));
        self.asked_since.map(|since| since + patience)
    }

    fn verdict(&self, now: Instant) -> Option<Dead> {
        if self.waiting.is_some_and(|since| since.latest + limits::ANSWER_BOUND <= now) {
            return Some(Dead::Unacknowledged);
        }
        self.ping_deadline.is_some_and(|deadline| deadline <= now).then_some(Dead::Unanswered)
    }

    fn is_ping_due(&self, now: Instant) -> bool {
        self.probe || (self.ping_deadline.is_none() && self.next_ping() <= now)
    }

    fn next_ping(&self) -> Instant {
        let idle = self.last_answer + self.idle + self.follows;
        self.waiting.map_or(idle, |since| idle.min(since.earliest + ASK_AFTER))
    }

    fn send_ping(&mut self, now: Instant) -> u64 {
        let grace = if std::mem::take(&mut self.probe) { limits::ANSWER_BOUND } else { self.grace };
        let seq = self.next_seq;
        self.next_seq += 1;
        self.ping = Some(Ping { seq, at: now, after: self.sent });
        self.asked_since.get_or_insert(now);
        self.ping_deadline = Some(self.ping_deadline.map_or(now + grace, |deadline| deadline.min(now + grace)));
        seq
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let ping = self.ping_deadline.unwrap_or_else(|| self.next_ping());
        let suspect = self.suspect_at().filter(|at| now < *at);
        let dead = self.waiting.map(|since| since.latest + limits::ANSWER_BOUND);
        [suspect, dead].into_iter().flatten().fold(ping, Instant::min)
    }

    fn sample(&mut self, rtt: Duration) {
        self.rtt = Some(self.rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
    }
}

#[cfg(test)]
mod tests;
