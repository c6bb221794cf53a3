//! How much a peer may have in flight to us: little while idle, more the more it sends, out of one budget for the whole node; and less
//! while much of what it sent waits to be dealt with, so that both together have a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::net::Link;
use crate::proto::limits;
use crate::state::budget::Budget;

/// The connection window of one session. Doubles each time a whole window was used, shrinks back when nothing comes.
#[derive(Debug)]
pub struct Window {
    link: Link,
    budget: Arc<Budget>,
    most: u32,
    size: AtomicU32,
    /// Bytes received since the size last changed.
    since: AtomicU64,
    /// How often the peer had said that the window stops it, when it was last looked at.
    stopped: AtomicU64,
}

impl Window {
    /// Grows out of this budget, to so many bytes.
    pub(super) fn new(link: Link, (budget, most): (Arc<Budget>, u32)) -> Self {
        Self {
            link,
            budget,
            most,
            size: AtomicU32::new(limits::WINDOW_IDLE_BYTES),
            since: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
        }
    }

    /// Counts bytes handed to a reader. `held`: what of those before is set aside and not dealt with.
    pub(super) fn received(&self, bytes: usize, held: usize) {
        let since = self.since.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        let size = self.size.load(Relaxed);
        let most = self.most_beside(held);
        if size > most {
            self.shrink(size, most);
        } else if since >= size.into() {
            self.grow(size, (2 * size).min(most));
        }
    }

    /// Grows if the peer is stopped by the window although nothing is read: then what fills it is a stream nobody reads, which
    /// must not hold up the others. One such stream fills no more than its own window.
    pub(super) fn relieve(&self, held: usize) {
        let stopped = self.link.times_stopped();
        if self.stopped.swap(stopped, Relaxed) == stopped {
            return;
        }
        let size = self.size.load(Relaxed);
        let to = (2 * size).max(size + limits::STREAM_WINDOW_BYTES).min(self.most_beside(held));
        self.grow(size, to.max(size));
    }

    fn most_beside(&self, held: usize) -> u32 {
        self.most.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX)).max(limits::WINDOW_IDLE_BYTES)
    }

    fn grow(&self, from: u32, to: u32) {
        let to = to.min(self.most);
        let more = to - from;
        if more == 0 || !self.budget.take(more as usize) {
            return;
        }
        if self.size.compare_exchange(from, to, Relaxed, Relaxed).is_err() {
            return self.budget.give_back(more as usize);
        }
        self.since.store(0, Relaxed);
        self.link.set_window(to);
    }

    fn shrink(&self, from: u32, to: u32) {
        if self.size.compare_exchange(from, to, Relaxed, Relaxed).is_ok() {
            self.budget.give_back((from - to) as usize);
            self.since.store(0, Relaxed);
            self.link.set_window(to);
        }
    }

    /// Back to the idle size, if nothing came since the last time.
    pub(super) fn rest(&self) {
        if self.since.swap(0, Relaxed) > 0 {
            return;
        }
        let size = self.size.swap(limits::WINDOW_IDLE_BYTES, Relaxed);
        if size > limits::WINDOW_IDLE_BYTES {
            self.budget.give_back((size - limits::WINDOW_IDLE_BYTES) as usize);
            self.link.set_window(limits::WINDOW_IDLE_BYTES);
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.give_back((*self.size.get_mut() - limits::WINDOW_IDLE_BYTES) as usize);
    }
}
