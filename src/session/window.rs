//! How much a peer may have in flight to us: little while idle, more the more it sends, out of one budget for the whole node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::net::Link;
use crate::proto::limits;

/// Bytes of windows a node may grant beyond what each idle session has.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    /// Bytes not granted to anybody.
    pub fn left(&self) -> usize {
        self.left.load(Relaxed)
    }

    fn take(&self, bytes: u32) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes as usize)).is_ok()
    }

    fn give_back(&self, bytes: u32) {
        self.left.fetch_add(bytes as usize, Relaxed);
    }
}

/// The connection window of one session. Doubles each time a whole window was used, shrinks back when nothing comes.
#[derive(Debug)]
pub struct Window {
    link: Link,
    budget: Arc<Budget>,
    size: AtomicU32,
    /// Bytes received since the size last changed.
    since: AtomicU64,
}

impl Window {
    pub(super) fn new(link: Link, budget: Arc<Budget>) -> Self {
        Self { link, budget, size: AtomicU32::new(limits::WINDOW_IDLE_BYTES), since: AtomicU64::new(0) }
    }

    /// Counts bytes handed to a reader.
    pub(super) fn received(&self, bytes: usize) {
        let since = self.since.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        let size = self.size.load(Relaxed);
        if since < size.into() || size >= limits::WINDOW_MAX_BYTES || !self.budget.take(size) {
            return;
        }
        if self.size.compare_exchange(size, 2 * size, Relaxed, Relaxed).is_err() {
            self.budget.give_back(size);
            return;
        }
        self.since.store(0, Relaxed);
        self.link.set_window(2 * size);
    }

    /// Back to the idle size, if nothing came since the last time.
    pub(super) fn rest(&self) {
        if self.since.swap(0, Relaxed) > 0 {
            return;
        }
        let size = self.size.swap(limits::WINDOW_IDLE_BYTES, Relaxed);
        if size > limits::WINDOW_IDLE_BYTES {
            self.budget.give_back(size - limits::WINDOW_IDLE_BYTES);
            self.link.set_window(limits::WINDOW_IDLE_BYTES);
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.give_back(*self.size.get_mut() - limits::WINDOW_IDLE_BYTES);
    }
}
