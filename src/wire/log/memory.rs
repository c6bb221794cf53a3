//! What the rings of all wires of a node hold together: at most so much, and the largest give.

use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::Log;
use crate::proto::limits;

/// What the rings of a node hold together, at most so much.
#[derive(Debug)]
pub(crate) struct Memory {
    max: usize,
    held: AtomicUsize,
    logs: Mutex<Vec<Weak<Log>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(limits::WIRES_BYTES)
    }
}

impl Memory {
    /// Nothing is held yet.
    pub fn new(max: usize) -> Self {
        Self { max, held: AtomicUsize::new(0), logs: Mutex::default() }
    }

    /// A ring holds that much now.
    pub(super) fn changed(&self, before: usize, after: usize) {
        match after.checked_sub(before) {
            Some(more) => self.held.fetch_add(more, Relaxed),
            None => self.held.fetch_sub(before - after, Relaxed),
        };
    }

    /// Where all rings together hold too much the largest let their oldest go, whoever has appended: a wire that is seldom used is not
    /// emptied by one that is used much. Not to be called with a log's state in hand.
    pub(super) fn relieve(&self) {
        if self.held.load(Relaxed) <= self.max {
            return;
        }
        // A little more than needed, so that this is not done for each chunk.
        let enough = self.max - self.max / 16;
        let mut logs = self.logs();
        logs.retain(|log| log.strong_count() > 0);
        let logs: Vec<Arc<Log>> = logs.iter().filter_map(Weak::upgrade).collect();
        let mut by_size: BinaryHeap<(usize, usize)> = logs.iter().map(|log| log.state().ring.bytes()).zip(0..).collect();
        while self.held.load(Relaxed) > enough
            && let Some((bytes, at)) = by_size.pop()
        {
            match logs[at].shed() {
                0 => {}
                shed => by_size.push((bytes.saturating_sub(shed), at)),
            }
        }
    }

    pub(super) fn join(&self, log: &Arc<Log>) {
        let mut logs = self.logs();
        if logs.len() >= 2 * limits::WIRES {
            logs.retain(|log| log.strong_count() > 0);
        }
        logs.push(Arc::downgrade(log));
    }

    fn logs(&self) -> MutexGuard<'_, Vec<Weak<Log>>> {
        self.logs.lock().expect("nothing panics while it is held")
    }
}
