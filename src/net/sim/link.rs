//! What one direction of a link does to a datagram: pure arithmetic on a time, a length and seeded random numbers.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How a link treats datagrams. Probabilities are per datagram, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkProfile {
    /// Time from end to end, one way. Default 10 ms.
    pub delay: Duration,
    /// Up to this much is added, evenly spread. Jitter alone never reorders: a later datagram waits for the one before.
    pub jitter: Duration,
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that a second copy arrives, with its own jitter.
    pub duplicate: f64,
    /// Probability that a datagram is held back for half the delay, the jitter and 2 ms, while later ones overtake it.
    pub reorder: f64,
    /// Bits per second of UDP payload; `None` is no limit.
    pub rate_bps: Option<u64>,
    /// With a rate: bytes that may wait for the line, further datagrams are dropped. Default 256 KiB.
    pub backlog_bytes: usize,
    /// Largest UDP payload, in bytes; larger ones vanish, as on a path that drops what it would have to fragment.
    /// Default 1,472.
    pub mtu: usize,
}

impl Default for LinkProfile {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            rate_bps: None,
            backlog_bytes: 256 * 1024,
            mtu: 1_472,
        }
    }
}

impl LinkProfile {
    /// A flawless link with this delay, one way.
    pub fn perfect(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// A bad phone connection: 60 ms and up to 40 ms more each way, 2 % lost, 1 % overtaken, 0.5 % doubled, 8 Mbit/s.
    pub fn mobile() -> Self {
        Self {
            delay: Duration::from_millis(60),
            jitter: Duration::from_millis(40),
            loss: 0.02,
            duplicate: 0.005,
            reorder: 0.01,
            rate_bps: Some(8_000_000),
            ..Self::default()
        }
    }
}

/// When a datagram arrives, or why it does not. Times count from the start of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    Arrives { at: Duration, copy_at: Option<Duration>, overtaken: bool },
    Lost,
    Overflow,
    TooLarge,
}

/// One direction between two addresses, with random numbers of its own: what other links carry changes nothing here.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) profile: LinkProfile,
    rng: StdRng,
    line_free_at: Duration,
    last_arrival: Duration,
}

impl Direction {
    pub(super) fn new(profile: LinkProfile, seed: u64) -> Self {
        Self { profile, rng: StdRng::seed_from_u64(seed), line_free_at: Duration::ZERO, last_arrival: Duration::ZERO }
    }

    /// Draws the same count of random numbers whatever happens, so that changing one setting shifts no other draw.
    pub(super) fn carry(&mut self, now: Duration, bytes: usize) -> Passage {
        let profile = self.profile;
        let [lost, doubled, held, late, copy_late] = std::array::from_fn(|_| self.rng.random::<f64>());
        if bytes > profile.mtu {
            return Passage::TooLarge;
        }
        let Some(sent) = self.line(now, bytes) else { return Passage::Overflow };
        if lost < profile.loss {
            return Passage::Lost;
        }
        let base = sent + profile.delay;
        let overtaken = held < profile.reorder;
        let at = if overtaken {
            base + profile.jitter + profile.delay / 2 + Duration::from_millis(2)
        } else {
            self.last_arrival = self.last_arrival.max(base + profile.jitter.mul_f64(late));
            self.last_arrival
        };
        let copy_at = (doubled < profile.duplicate).then(|| at + profile.jitter.mul_f64(copy_late));
        Passage::Arrives { at, copy_at, overtaken }
    }

    /// When the line has sent these bytes; `None` when too many wait already.
    fn line(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let Some(rate_bps) = self.profile.rate_bps else { return Some(now) };
        let waiting = self.line_free_at.saturating_sub(now);
        if waiting.as_secs_f64() * rate_bps as f64 / 8.0 > self.profile.backlog_bytes as f64 {
            return None;
        }
        self.line_free_at = now + waiting + Duration::from_secs_f64(bytes as f64 * 8.0 / rate_bps as f64);
        Some(self.line_free_at)
    }
}

/// A seed for a purpose: FNV-1a over the network's seed and what names the purpose, then a finisher that spreads the bits.
pub(super) fn derive_seed(seed: u64, name: &[&[u8]]) -> u64 {
    let hash = super::log::fnv1a(super::log::FNV_OFFSET, &seed.to_le_bytes());
    let hash = name.iter().fold(hash, |hash, part| super::log::fnv1a(hash, part));
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}
