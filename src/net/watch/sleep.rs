//! Whether this machine slept, told from two clocks: one that counts on meanwhile, and one that stands still. Reads no clock itself.

use std::time::Duration;

/// A sleep shorter than this is none: no path is lost by it, and two clocks are not read in the same instant.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);

/// Remembers how far the clocks were apart.
#[derive(Debug)]
pub(super) struct Sleep {
    apart: Duration,
}

impl Sleep {
    /// From the clock that counts on while the machine sleeps, and the one that does not.
    pub fn new(counting: Duration, standing: Duration) -> Self {
        Self { apart: counting.saturating_sub(standing) }
    }

    /// Whether the machine slept since the last time. A clock that was set back is no sleep.
    pub fn slept(&mut self, counting: Duration, standing: Duration) -> bool {
        let apart = counting.saturating_sub(standing);
        let before = std::mem::replace(&mut self.apart, apart);
        apart.saturating_sub(before) >= SHORTEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_clock_that_stood_still_tells_of_a_sleep_once() {
        let mut sleep = Sleep::new(100 * S, 90 * S);
        assert!(!sleep.slept(200 * S, 190 * S), "both ran on");
        assert!(sleep.slept(3_800 * S, 191 * S));
        assert!(!sleep.slept(3_801 * S, 192 * S));
        assert!(!sleep.slept(3_802 * S + S / 2, 193 * S), "too short");
    }

    #[test]
    fn a_clock_that_was_set_back_is_no_sleep() {
        let mut sleep = Sleep::new(5_000 * S, 90 * S);
        assert!(!sleep.slept(100 * S, 91 * S));
        assert!(sleep.slept(200 * S, 92 * S), "and the next one is seen");
        assert!(!sleep.slept(Duration::ZERO, 93 * S));
    }
}
