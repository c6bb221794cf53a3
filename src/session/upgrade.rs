//! When to try to do better than the circuit a session is on: as soon as the peer has it there too, then ever more rarely, and at once again
//! when something has changed.

use rand::{Rng, RngExt};
use tokio::time::Instant;

use crate::net::Link;
use crate::proto::limits;

/// When to try.
#[derive(Debug, Default)]
pub(super) enum Upgrade {
    /// Not at all: there is no path, or it is a link.
    #[default]
    Never,
    /// The peer has not answered on the circuit. A link is often the faster way: on it we would ask for a session that the peer does not have yet,
    /// and get another one.
    Unanswered,
    /// At this time, after so many others.
    At(Instant, u32),
}

impl Upgrade {
    /// Beside this link: a circuit is to be left as soon as can be, a link of its own is as good as it gets.
    pub fn beside(link: &Link) -> Self {
        if link.is_relayed() { Self::Unanswered } else { Self::Never }
    }

    /// The peer has answered on the circuit.
    pub fn answered(&mut self) {
        if let Self::Unanswered = self {
            *self = Self::At(Instant::now(), 0);
        }
    }

    /// The time of the next attempt.
    pub fn at(&self) -> Option<Instant> {
        match self {
            Self::At(at, _) => Some(*at),
            Self::Never | Self::Unanswered => None,
        }
    }

    pub fn is_due(&self) -> bool {
        self.at().is_some_and(|at| Instant::now() >= at)
    }

    /// One was begun: the next one is due after a time that doubles, and is drawn so that two ends do not keep step.
    pub fn tried(&mut self, random: &mut impl Rng) {
        let Self::At(at, doublings) = self else { return };
        let (first, most) = limits::UPGRADE_BACKOFF;
        let longest = first.saturating_mul(1 << (*doublings).min(16)).min(most);
        *doublings += 1;
        *at = Instant::now() + random.random_range(longest / 2..=longest);
    }

    /// Something has changed: what failed before may not now.
    pub fn now(&mut self) {
        if let Self::At(..) = self {
            *self = Self::At(Instant::now(), 0);
        }
    }
}
