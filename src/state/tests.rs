//! What the tests of several machines share.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Seeds to run: the one that `VOLT_SEED` asks for, or new ones; fifty times as many with `VOLT_LONG`. A test that fails prints its own.
pub(crate) fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let asked = std::env::var("VOLT_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = asked.unwrap_or_else(|| StdRng::seed_from_u64(rand::rng().next_u64()).random());
    let count = if std::env::var_os("VOLT_LONG").is_some() { 50 * count } else { count };
    (0..if asked.is_some() { 1 } else { count }).map(move |at| first.wrapping_add(at))
}
