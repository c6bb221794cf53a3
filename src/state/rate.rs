//! How fast something may go: so many bytes per second, with a little ahead. Keeps no queue and no clock: it says how long to wait.

use std::time::{Duration, Instant};

/// So much may go at once after a time of quiet.
const AHEAD: Duration = Duration::from_millis(100);

/// A bound on bytes per second, shared by whoever takes from it; first come, first served. After the "virtual scheduling" form of the
/// generic cell rate algorithm (ITU-T I.371).
#[derive(Clone, Debug)]
pub struct Rate {
    bytes_per_second: u64,
    /// When all that was taken has had its time.
    paid: Option<Instant>,
}

impl Rate {
    /// So many bytes per second, at least one.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: None }
    }

    /// Takes so many bytes: they may go after this time.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let begun = self.paid.map_or(now, |paid| paid.max(now));
        let time = Duration::from_nanos((bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second)) as u64);
        let paid = begun + time;
        self.paid = Some(paid);
        (paid - now).saturating_sub(AHEAD)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_goes_than_may_and_hardly_less(
            pieces in prop::collection::vec((1usize..50_000, 0u64..20_000), 1..200),
            per_second in 10_000u64..10_000_000,
        ) {
            let start = Instant::now();
            let (mut rate, mut now, mut sent) = (Rate::new(per_second), start, 0u64);
            for (bytes, pause_us) in pieces {
                now += Duration::from_micros(pause_us);
                now += rate.take(bytes, now);
                sent += bytes as u64;
                let may = per_second as f64 * ((now - start) + AHEAD).as_secs_f64() + 1.0;
                prop_assert!(sent as f64 <= may, "{sent} of {may}");
            }
        }
    }

    #[test]
    fn who_goes_on_and_on_gets_the_rate() {
        let start = Instant::now();
        let (mut rate, mut now) = (Rate::new(1_000_000), start);
        for _ in 0..1_000 {
            now += rate.take(10_000, now);
        }
        let took = (now - start).as_secs_f64();
        assert!((9.8..=10.0).contains(&took), "{took}");
    }
}
