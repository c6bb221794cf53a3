//! What a link does to the packets of one direction: delay, jitter, loss in bursts, duplication, reordering, a rate with a bounded
//! queue, a black hole. Decides from a seed and from the time it is told; it has no clock and moves no packet.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// How one direction of a link is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// How long every packet takes.
    pub delay: Duration,
    /// At most this much more, evenly spread. It does not change the order.
    pub jitter: Duration,
    pub loss: Loss,
    /// The share of packets that arrive twice.
    pub duplicated: f64,
    /// The share of packets that are held back, so that later ones overtake them.
    pub reordered: f64,
    /// For how long those are held back.
    pub held_back: Duration,
    /// Bytes a second; none: any number.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate; a packet that finds more is dropped.
    pub queue_bytes: u64,
    /// Nothing arrives, not even what is under way.
    pub black_hole: bool,
}

/// Loss by Gilbert and Elliott (E. O. Elliott, "Estimates of error rates for codes on burst-noise channels", 1963): two states, each
/// with its share of lost packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// The chance per packet that the good state ends.
    pub to_bad: f64,
    /// The chance per packet that the bad state ends.
    pub to_good: f64,
    /// The share lost in the good state.
    pub in_good: f64,
    /// The share lost in the bad state.
    pub in_bad: f64,
}

impl Conditions {
    /// Everything is passed on at once.
    pub const NONE: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: Loss { to_bad: 0.0, to_good: 0.0, in_good: 0.0, in_bad: 0.0 },
        duplicated: 0.0,
        reordered: 0.0,
        held_back: Duration::ZERO,
        rate: None,
        queue_bytes: 0,
        black_hole: false,
    };
}

impl Loss {
    /// Each packet for itself.
    pub fn even(share: f64) -> Self {
        Self { in_good: share, in_bad: share, ..Self::default() }
    }

    /// In bursts of this many packets on average, `share` of all packets together.
    pub fn in_bursts(share: f64, packets: f64) -> Self {
        let to_good = 1.0 / packets;
        Self { to_bad: to_good * share / (1.0 - share), to_good, in_good: 0.0, in_bad: 1.0 }
    }
}

/// What became of packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Came in.
    pub seen: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Found the queue full.
    pub overflowed: u64,
    /// Went into the black hole.
    pub swallowed: u64,
    /// Arrive twice.
    pub duplicated: u64,
    /// Were held back.
    pub reordered: u64,
}

/// When a packet arrives: never, once, or twice.
pub type Arrivals = [Option<Duration>; 2];

/// One direction of a link.
#[derive(Debug)]
pub struct Direction {
    conditions: Conditions,
    counts: Counts,
    is_bad: bool,
    /// When everything that waits for the rate has been sent.
    free_at: Duration,
    /// When the last packet that was not held back arrives.
    last: Duration,
    chance: StdRng,
}

impl Direction {
    pub fn new(seed: u64) -> Self {
        Self {
            conditions: Conditions::NONE,
            counts: Counts::default(),
            is_bad: false,
            free_at: Duration::ZERO,
            last: Duration::ZERO,
            chance: StdRng::seed_from_u64(seed),
        }
    }

    /// How it is from now on. What is under way keeps its time of arrival.
    pub fn set(&mut self, conditions: Conditions) {
        self.conditions = conditions;
        self.is_bad = false;
        self.free_at = Duration::ZERO;
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A packet comes in now.
    pub fn admit(&mut self, now: Duration, bytes: usize) -> Arrivals {
        self.counts.seen += 1;
        if self.swallows() {
            return [None; 2];
        }
        if self.loses() {
            self.counts.lost += 1;
            return [None; 2];
        }
        let Some(sent) = self.sent(now, bytes) else {
            self.counts.overflowed += 1;
            return [None; 2];
        };
        let arrival = self.arrival(sent);
        let twice = self.chance.random_bool(self.conditions.duplicated);
        self.counts.duplicated += u64::from(twice);
        [Some(arrival), twice.then_some(arrival)]
    }

    /// Whether a packet that is under way goes into the black hole now, and counts it.
    pub fn swallows(&mut self) -> bool {
        self.counts.swallowed += u64::from(self.conditions.black_hole);
        self.conditions.black_hole
    }

    fn loses(&mut self) -> bool {
        let Loss { to_bad, to_good, in_good, in_bad } = self.conditions.loss;
        if self.chance.random_bool(if self.is_bad { to_good } else { to_bad }) {
            self.is_bad = !self.is_bad;
        }
        self.chance.random_bool(if self.is_bad { in_bad } else { in_good })
    }

    /// When the last of its bytes has left; `None` if the queue is full.
    fn sent(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let Some(rate) = self.conditions.rate else { return Some(now) };
        let waits = self.free_at.saturating_sub(now);
        if waits.as_secs_f64() * rate as f64 > self.conditions.queue_bytes as f64 {
            return None;
        }
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        Some(self.free_at)
    }

    fn arrival(&mut self, sent: Duration) -> Duration {
        let Conditions { delay, jitter, reordered, held_back, .. } = self.conditions;
        let due = sent + delay + jitter.mul_f64(self.chance.random::<f64>());
        if self.chance.random_bool(reordered) {
            self.counts.reordered += 1;
            return due + held_back;
        }
        self.last = self.last.max(due);
        self.last
    }
}
