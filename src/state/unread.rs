//! How much of what many streams send may lie unread at the peer. There it fills a window that all streams of the session share, so those
//! that nobody reads must leave room for the others: each may have a part of what is left, the less the more others hold, and a little in any case.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Of what others leave, one may have this part. Alone it has a fifth; and however many come, there is something left for the next.
const PART: usize = 5;

/// What all have together.
#[derive(Debug)]
pub struct Unread {
    room: usize,
    least: usize,
    held: AtomicUsize,
}

/// What one of them has. Given back when it is dropped.
#[derive(Debug)]
pub struct Part {
    of: Arc<Unread>,
    held: usize,
}

impl Unread {
    /// So many bytes for all, and so many for each whatever the others have.
    pub fn new(room: usize, least: usize) -> Arc<Self> {
        Arc::new(Self { room, least, held: AtomicUsize::new(0) })
    }

    /// One more takes part.
    pub fn part(self: &Arc<Self>) -> Part {
        Part { of: self.clone(), held: 0 }
    }
}

impl Part {
    /// So many bytes of it are unread now: how many more it may send.
    pub fn more(&mut self, unread: usize) -> usize {
        self.hold(unread.saturating_sub(self.of.least));
        let others = self.of.held.load(Relaxed).saturating_sub(self.held);
        (self.of.least + self.of.room.saturating_sub(others) / PART).saturating_sub(unread)
    }

    fn hold(&mut self, held: usize) {
        let before = std::mem::replace(&mut self.held, held);
        if held >= before {
            self.of.held.fetch_add(held - before, Relaxed);
        } else {
            self.of.held.fetch_sub(before - held, Relaxed);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_alone_has_a_fifth_and_the_next_one_a_fifth_of_the_rest() {
        let all = Unread::new(1_000, 10);
        let (mut one, mut two) = (all.part(), all.part());
        assert_eq!(one.more(0), 210);
        assert_eq!((one.more(210), two.more(0)), (0, 170));
        assert_eq!(one.more(5), 205, "what was read makes room");
        assert_eq!(two.more(0), 210, "for others too");
        one.more(210);
        drop(one);
        assert_eq!(two.more(0), 210);
    }

    proptest! {
        #[test]
        fn however_many_are_not_read_there_is_something_for_each_and_never_too_much(steps in prop::collection::vec((0..64usize, 0..5_000usize), 1..400)) {
            let all = Unread::new(10_000, 10);
            let mut parts: Vec<(Part, usize)> = (0..64).map(|_| (all.part(), 0)).collect();
            for (who, sent) in steps {
                let (part, unread) = &mut parts[who];
                let more = part.more(*unread);
                prop_assert!(*unread > 0 || more >= 10);
                *unread += sent.min(more);
                part.more(*unread);
                let total: usize = parts.iter().map(|(_, unread)| unread).sum();
                prop_assert!(total <= 10_000 + 64 * 10, "{total}");
            }
            drop(parts);
            prop_assert_eq!(all.held.load(Relaxed), 0);
        }
    }
}
