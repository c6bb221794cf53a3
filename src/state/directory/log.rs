//! The last changes of a directory, for readers that come from time to time. Each reader knows where it was; whoever is too far
//! behind is told so, and looks at everything anew.

use std::collections::VecDeque;
use std::sync::Arc;

use super::entry::{Entry, Key};

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which entry.
    pub key: Arc<Key>,
    /// Whether it was online before.
    pub was_online: bool,
    /// What it is now; none if it is gone.
    pub now: Option<Arc<Entry>>,
    /// Its number: one more than that of the change before.
    pub number: u64,
}

/// The changes a reader asked for are not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much has changed since")]
pub struct Behind;

#[derive(Debug)]
pub(super) struct Log {
    changes: VecDeque<Change>,
    bytes: usize,
    next: u64,
    most: usize,
    most_bytes: usize,
}

impl Log {
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { changes: VecDeque::new(), bytes: 0, next: 0, most, most_bytes }
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn push(&mut self, key: Arc<Key>, was_online: bool, now: Option<Arc<Entry>>) {
        let change = Change { key, was_online, now, number: self.next };
        self.next += 1;
        self.bytes += change.weight();
        self.changes.push_back(change);
        while self.changes.len() > self.most || self.bytes > self.most_bytes {
            let Some(oldest) = self.changes.pop_front() else { break };
            self.bytes -= oldest.weight();
        }
    }

    pub fn from(&self, number: u64) -> Result<impl Iterator<Item = &Change>, Behind> {
        let missing = self.next.checked_sub(number).ok_or(Behind)?;
        let skip = usize::try_from(missing).ok().and_then(|missing| self.changes.len().checked_sub(missing)).ok_or(Behind)?;
        Ok(self.changes.range(skip..))
    }
}

impl Change {
    /// A listing is kept as long as the change is, whether or not anything else keeps it.
    fn weight(&self) -> usize {
        self.now.as_ref().map_or(0, |entry| entry.weight())
    }
}
