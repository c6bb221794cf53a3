//! A number of bytes that many share: whoever wants some asks, and gives back what it got. Decides nothing about who deserves
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of windows, and of what is kept for resumption, that a node grants beyond what each idle session and each stream has.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
    /// What is not there yet, and can be earned.
    more: AtomicUsize,
    refused: AtomicUsize,
    /// Where this one's bytes come from in turn.
    of: Option<Arc<Budget>>,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes), more: AtomicUsize::new(0), refused: AtomicUsize::new(0), of: None })
    }

    /// At most so many bytes of another budget, which are taken there as they are taken here.
    pub fn part(of: &Arc<Budget>, bytes: usize) -> Arc<Self> {
        Self::growing_part(of, bytes, bytes)
    }

    /// The same, of which only `first` is there before the rest was [earned](Self::earn).
    pub fn growing_part(of: &Arc<Budget>, first: usize, bytes: usize) -> Arc<Self> {
        let (left, more) = (AtomicUsize::new(first.min(bytes)), AtomicUsize::new(bytes.saturating_sub(first)));
        Arc::new(Self { left, more, refused: AtomicUsize::new(0), of: Some(of.clone()) })
    }

    /// Adds so many bytes, as long as there are some to be earned.
    pub fn earn(&self, bytes: usize) {
        if self.more.load(Relaxed) == 0 {
            return;
        }
        let before = self.more.fetch_update(Relaxed, Relaxed, |more| Some(more.saturating_sub(bytes)));
        self.left.fetch_add(before.map_or(0, |more| more.min(bytes)), Relaxed);
    }

    /// Takes so many, or none and false.
    #[must_use = "what was taken has to be given back"]
    pub fn take(&self, bytes: usize) -> bool {
        let taken = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok();
        if taken && self.of.as_ref().is_none_or(|of| of.take(bytes)) {
            return true;
        }
        if taken {
            self.left.fetch_add(bytes, Relaxed);
        }
        self.refused.fetch_add(1, Relaxed);
        false
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Relaxed);
        if let Some(of) = &self.of {
            of.give_back(bytes);
        }
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.left.load(Relaxed)
    }

    /// How often somebody got none.
    pub fn refused(&self) -> usize {
        self.refused.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_takes_no_more_than_its_own_and_no_more_than_there_is() {
        let whole = Budget::new(10);
        let (one, other) = (Budget::part(&whole, 8), Budget::part(&whole, 8));
        assert!(one.take(8) && !one.take(1) && !other.take(3) && other.take(2));
        assert_eq!((whole.left(), one.left(), other.left()), (0, 0, 6));
        one.give_back(8);
        other.give_back(2);
        assert_eq!((whole.left(), one.left(), other.left()), (10, 8, 8));
    }

    #[test]
    fn what_is_earned_is_added_up_to_the_whole() {
        let whole = Budget::new(100);
        let part = Budget::growing_part(&whole, 4, 10);
        assert!(part.take(4) && !part.take(1));
        part.earn(3);
        assert!(part.take(3) && !part.take(1));
        part.earn(100);
        assert!(part.take(3) && !part.take(1));
        part.give_back(10);
        part.earn(100);
        assert_eq!((part.left(), whole.left()), (10, 100));
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let budget = Budget::new(10);
        assert!(budget.take(7) && !budget.take(4) && budget.take(3));
        assert_eq!((budget.left(), budget.refused()), (0, 1));
        budget.give_back(7);
        assert!(budget.take(7));
    }

    #[test]
    fn many_at_once_never_take_more_than_there_is() {
        let budget = Budget::new(1_000);
        let take = || (0..1_000).filter(|_| budget.take(7)).count();
        let taken: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            takers.into_iter().map(|taker| taker.join().expect("it does not panic")).sum()
        });
        assert_eq!((taken, budget.left(), budget.refused()), (142, 6, 4_000 - 142));
    }
}
