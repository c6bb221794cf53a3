//! A number of bytes that many share: whoever wants some asks, and gives back what it got. Decides nothing about who deserves
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of windows, and of what is kept for resumption, that a node grants beyond what each idle session and each stream has.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
    refused: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes), refused: AtomicUsize::new(0) })
    }

    /// Takes so many, or none and false.
    #[must_use = "what was taken has to be given back"]
    pub fn take(&self, bytes: usize) -> bool {
        let taken = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok();
        if !taken {
            self.refused.fetch_add(1, Relaxed);
        }
        taken
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Relaxed);
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
