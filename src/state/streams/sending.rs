//! The bytes of one stream that were sent and are not acknowledged: kept, so that another path can carry them once more. They
//! are shared with whoever sends them, never copied.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::proto::limits;
use crate::state::budget::Budget;

/// What a kept piece costs beside its bytes: many small ones must not cost more than they seem.
const PIECE_BYTES: usize = 64;

/// What is kept of one direction.
#[derive(Debug)]
pub(super) struct Sending {
    /// The offset of the first byte kept.
    base: u64,
    /// The offset after the last byte ever pushed.
    end: u64,
    front: Bytes,
    rest: VecDeque<Bytes>,
    /// What the pieces cost.
    held: usize,
    cap: usize,
    /// Where `base` was when the cap grew last.
    grew_at: u64,
}

impl Default for Sending {
    fn default() -> Self {
        Self { base: 0, end: 0, front: Bytes::new(), rest: VecDeque::new(), held: 0, cap: limits::STREAM_KEPT_BYTES, grew_at: 0 }
    }
}

impl Sending {
    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Counts bytes that are sent and not kept.
    pub fn pass(&mut self, bytes: usize) {
        self.end += bytes as u64;
        self.base = self.end;
    }

    /// Keeps as many of these bytes as there is room for, and says how many.
    pub fn push(&mut self, bytes: &Bytes, budget: &Budget) -> usize {
        if self.held + PIECE_BYTES + bytes.len() > self.cap {
            self.grow(self.held + PIECE_BYTES + bytes.len(), budget);
        }
        let room = self.cap.saturating_sub(self.held + PIECE_BYTES).min(bytes.len());
        if room > 0 {
            let piece = bytes.slice(..room);
            if self.front.is_empty() {
                self.front = piece;
            } else {
                self.rest.push_back(piece);
            }
            self.held += room + PIECE_BYTES;
            self.end += room as u64;
        }
        room
    }

    /// Forgets what lies before this offset, which is not past the end.
    pub fn forget(&mut self, up_to: u64, budget: &Budget) {
        while self.base < up_to && !self.front.is_empty() {
            let step = usize::try_from(up_to - self.base).unwrap_or(usize::MAX).min(self.front.len());
            self.front.advance(step);
            self.base += step as u64;
            self.held -= step;
            budget.earn(step);
            if self.front.is_empty() {
                self.held -= PIECE_BYTES;
                self.front = self.rest.pop_front().unwrap_or_default();
            }
        }
        if self.front.is_empty() {
            self.shrink(budget);
        }
    }

    /// Forgets everything: nobody will ask for it.
    pub fn clear(&mut self, budget: &Budget) {
        self.forget(self.end, budget);
    }

    /// The piece at this offset, from there on.
    pub fn piece(&self, at: u64) -> Option<Bytes> {
        let mut skip = usize::try_from(at.checked_sub(self.base)?).ok()?;
        for piece in std::iter::once(&self.front).chain(&self.rest) {
            if skip < piece.len() {
                return Some(piece.slice(skip..));
            }
            skip -= piece.len();
        }
        None
    }

    /// What holds at any time; and what was taken out of the budget.
    #[cfg(test)]
    pub fn check(&self) -> usize {
        let pieces = || std::iter::once(&self.front).chain(&self.rest).filter(|piece| !piece.is_empty());
        let bytes: usize = pieces().map(Bytes::len).sum();
        assert!(self.rest.is_empty() || !self.front.is_empty(), "the front is kept first");
        assert_eq!(self.end - self.base, bytes as u64, "what is not acknowledged is kept");
        assert_eq!(self.held, bytes + PIECE_BYTES * pieces().count(), "what is kept is counted");
        assert!(self.held <= self.cap && self.cap <= limits::STREAM_KEPT_MAX_BYTES, "{} held of {}", self.held, self.cap);
        self.cap - limits::STREAM_KEPT_BYTES
    }

    /// More room: up to a point as much as is wanted, and beyond it for a stream that has shown that it uses what it has.
    fn grow(&mut self, wanted: usize, budget: &Budget) {
        let used = self.base - self.grew_at >= self.cap as u64;
        let most = if used { limits::STREAM_KEPT_MAX_BYTES } else { limits::STREAM_KEPT_NEXT_BYTES };
        let cap = wanted.next_power_of_two().max(2 * self.cap).min(most);
        if cap > self.cap && budget.take(cap - self.cap) {
            self.cap = cap;
            self.grew_at = self.base;
        }
    }

    fn shrink(&mut self, budget: &Budget) {
        if self.cap > limits::STREAM_KEPT_BYTES {
            budget.give_back(self.cap - limits::STREAM_KEPT_BYTES);
            self.cap = limits::STREAM_KEPT_BYTES;
            self.grew_at = self.base;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: usize = 2 << 20;

    fn bytes(from: u64, count: usize) -> Bytes {
        (from..from + count as u64).map(|at| (at ^ (at >> 8)) as u8).collect()
    }

    #[test]
    fn room_grows_with_use_to_the_cap_and_is_given_back_once_all_is_acknowledged() {
        let budget = Budget::new(2 * limits::STREAM_KEPT_MAX_BYTES);
        let mut sending = Sending::default();
        let fill = |sending: &mut Sending| while sending.push(&bytes(sending.end, 64 << 10), &budget) > 0 {};
        fill(&mut sending);
        assert_eq!(sending.cap, limits::STREAM_KEPT_NEXT_BYTES);
        while sending.cap < limits::STREAM_KEPT_MAX_BYTES {
            let before = sending.cap;
            sending.forget(sending.end - 1, &budget);
            fill(&mut sending);
            assert!(sending.cap > before || sending.base - sending.grew_at < before as u64);
        }
        fill(&mut sending);
        assert_eq!(budget.left(), 2 * limits::STREAM_KEPT_MAX_BYTES - sending.check());
        sending.forget(sending.end, &budget);
        assert_eq!((sending.check(), budget.left()), (0, 2 * limits::STREAM_KEPT_MAX_BYTES));
    }

    #[test]
    fn without_a_budget_a_stream_has_what_each_has() {
        // Less than the least it grows by.
        let budget = Budget::new(limits::STREAM_KEPT_BYTES - 1);
        let mut sending = Sending::default();
        let room = limits::STREAM_KEPT_BYTES - PIECE_BYTES;
        assert_eq!(sending.push(&bytes(0, 1 << 20), &budget), room);
        assert_eq!((sending.push(&bytes(0, 1), &budget), budget.refused()), (0, 2));
        sending.forget(100, &budget);
        assert_eq!(sending.push(&bytes(0, 1 << 20), &budget), 100 - PIECE_BYTES);
        assert_eq!((sending.check(), budget.left()), (0, limits::STREAM_KEPT_BYTES - 1));
    }

    #[test]
    fn many_small_pieces_cost_more_than_their_bytes() {
        let budget = Budget::new(0);
        let mut sending = Sending::default();
        let taken = std::iter::repeat_with(|| sending.push(&bytes(0, 1), &budget)).take_while(|taken| *taken > 0).count();
        assert_eq!(taken, limits::STREAM_KEPT_BYTES / (PIECE_BYTES + 1));
    }

    proptest! {
        #[test]
        fn what_is_not_forgotten_is_there_from_any_offset(
            steps in proptest::collection::vec((0..3u8, prop_oneof![0..50usize, 0..90_000usize]), 1..60),
        ) {
            let budget = Budget::new(BUDGET);
            let mut sending = Sending::default();
            for (what, size) in steps {
                let at = sending.base + size as u64 % (sending.end - sending.base + 2);
                match what {
                    0 => drop(sending.push(&bytes(sending.end, size), &budget)),
                    1 => sending.forget(at.min(sending.end), &budget),
                    _ => match sending.piece(at) {
                        Some(piece) => {
                            prop_assert!(!piece.is_empty());
                            prop_assert_eq!(&piece, &bytes(at, piece.len()));
                        }
                        None => prop_assert!(at >= sending.end),
                    },
                }
                prop_assert_eq!(sending.check() + budget.left(), BUDGET);
                prop_assert_eq!(sending.base.checked_sub(1).and_then(|before| sending.piece(before)), None);
            }
            sending.clear(&budget);
            prop_assert_eq!((sending.check(), sending.held, budget.left()), (0, 0, BUDGET));
        }
    }
}
