//! When to try to do better than the circuit a session is on: at once, then ever more rarely, and at once again when something has changed.

use rand::{Rng, RngExt};
use tokio::time::Instant;

use crate::net::Link;
use crate::proto::limits;

/// When to try.
#[derive(Debug, Default)]
pub(super) struct Upgrade(Option<Waits>);

#[derive(Debug)]
struct Waits {
    at: Instant,
    doublings: u32,
}

impl Upgrade {
    /// Beside this link: a circuit is to be left as soon as can be, a link of its own is as good as it gets.
    pub fn beside(link: &Link) -> Self {
        Self(link.is_relayed().then(|| Waits { at: Instant::now(), doublings: 0 }))
    }

    /// The time of the next attempt.
    pub fn at(&self) -> Option<Instant> {
        self.0.as_ref().map(|waits| waits.at)
    }

    pub fn is_due(&self) -> bool {
        self.at().is_some_and(|at| Instant::now() >= at)
    }

    /// One was begun: the next one is due after a time that doubles, and is drawn so that two ends do not keep step.
    pub fn tried(&mut self, random: &mut impl Rng) {
        let Some(waits) = &mut self.0 else { return };
        let (first, most) = limits::UPGRADE_BACKOFF;
        let longest = first.saturating_mul(1 << waits.doublings.min(16)).min(most);
        waits.doublings += 1;
        waits.at = Instant::now() + random.random_range(longest / 2..=longest);
    }

    /// Something has changed: what failed before may not now.
    pub fn now(&mut self) {
        if let Some(waits) = &mut self.0 {
            *waits = Waits { at: Instant::now(), doublings: 0 };
        }
    }
}
