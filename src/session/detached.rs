//! The sessions of a node that have no path, by how long: when the node's budget is short, the one that has waited longest gives
//! way to those that are up.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::state::budget::Budget;

/// How often a session without a path looks whether it has to give way.
const LOOK: Duration = Duration::from_secs(1);

/// The sessions without a path.
#[derive(Debug, Default)]
pub(super) struct Detached(Mutex<Line>);

#[derive(Debug, Default)]
struct Line {
    waiting: BTreeSet<(Instant, u64)>,
    number: u64,
}

/// The place of one of them in the line, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Detached>,
    place: (Instant, u64),
    /// How often somebody had got nothing when it was last looked.
    refused: usize,
    look_at: Instant,
}

impl Detached {
    /// A session has lost its path.
    pub fn enter(self: &Arc<Self>, budget: &Budget) -> Place {
        let now = Instant::now();
        let mut line = self.line();
        line.number += 1;
        let place = (now, line.number);
        line.waiting.insert(place);
        Place { line: self.clone(), place, refused: budget.refused(), look_at: now + LOOK }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

impl Place {
    /// When to ask [`Place::gives_way`].
    pub fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Whether somebody got nothing since this was last asked, and this is the session that has waited longest.
    pub fn gives_way(&mut self, budget: &Budget) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK;
        let short = budget.refused() != std::mem::replace(&mut self.refused, budget.refused());
        short && self.line.line().waiting.first() == Some(&self.place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.line().waiting.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_one_that_waited_longest_gives_way_when_there_is_too_little_and_only_then() {
        let (line, budget) = (Arc::new(Detached::default()), Budget::new(10));
        let mut first = line.enter(&budget);
        tokio::time::advance(Duration::from_millis(1)).await;
        let mut second = line.enter(&budget);
        tokio::time::advance(LOOK).await;
        assert!(!first.gives_way(&budget) && !second.gives_way(&budget), "nothing is short");
        assert!(!budget.take(11));
        tokio::time::advance(LOOK).await;
        assert!(!second.gives_way(&budget) && first.gives_way(&budget));
        drop(first);
        assert!(!budget.take(11));
        tokio::time::advance(LOOK).await;
        assert!(second.gives_way(&budget));
    }
}
