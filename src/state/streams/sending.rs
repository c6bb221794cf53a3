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
            self.grow(budget);
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

    /// More room for a stream that has shown that it uses what it has.
    fn grow(&mut self, budget: &Budget) {
        let first = self.cap == limits::STREAM_KEPT_BYTES;
        let used = self.base - self.grew_at >= self.cap as u64;
        if !first && !used {
            return;
        }
        let cap = if first { limits::STREAM_KEPT_NEXT_BYTES } else { (2 * self.cap).min(limits::STREAM_KEPT_MAX_BYTES) };
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
