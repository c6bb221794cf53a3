//! What was decided, written down: who was let in or turned away, by which rule, and what they called, in JSON, one entry a line. It
//! is bounded and rotated, holds nobody up, and has no room for what was said: no body, no header, no metadata.
//!
//! It writes what it is told and decides nothing. An entry is on its way when it was noted, and in the file a moment later; the disk is
//! made to keep it when a file is full and when the node ends in good order, so a cut of power may take the last moments.

mod entry;
mod file;
mod reader;
mod share;
mod time;
mod writer;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};

pub use entry::{By, Called, Change, Entry, Ruling, Text, Used};
use file::Files;
pub use file::{Bounds, FILES_MAX, JournalError, path};
pub use reader::Reader;
use serde::{Deserialize, Serialize};
use writer::Writer;

use crate::id::NodeId;

/// Entries that wait to be written; what is more is counted, and told of.
const QUEUE: usize = 8_192;

/// A node that ends waits so long for what is left to be written.
const CLOSE: Duration = Duration::from_secs(2);

/// A journal that is written, or none. Clones share it; what was noted is written also when the last one is dropped.
///
/// ```
/// use voltmesh::journal::{Bounds, Entry, Journal};
/// # let dir = tempfile::tempdir()?;
/// let journal = Journal::open(dir.path(), Bounds { bytes: 8 << 20, files: 4 })?;
/// journal.note(Entry::Started { version: "0.1.0", rules: 2 });
/// journal.close();
/// let written = std::fs::read_to_string(dir.path().join("journal.jsonl"))?;
/// assert!(written.ends_with("\"event\":\"started\",\"version\":\"0.1.0\",\"rules\":2}\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Journal(Option<Arc<Handle>>);

/// What was counted since the journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JournalCounts {
    /// Entries written.
    pub written: u64,
    /// Entries lost: the queue was full, or they could not be written.
    pub missed: u64,
    /// Entries left out because one peer, or those who share, had too many.
    pub omitted: u64,
    /// Attempts to write that failed.
    pub failures: u64,
}

/// Ends the writer when nobody can note anything any more.
#[derive(Debug)]
struct Handle(Arc<Queue>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Whom the node's owner knows.
type Knows = Box<dyn Fn(&NodeId) -> bool + Send + Sync>;

/// Between those who note and the thread that writes.
struct Queue {
    most: usize,
    waiting: Mutex<Waiting>,
    /// There is something to write, or the end.
    news: Condvar,
    /// The writer has ended.
    over: Condvar,
    counts: Counts,
    /// Once it is told; before, everybody is known.
    knows: OnceLock<Knows>,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: VecDeque<(SystemTime, Entry)>,
    missed: u64,
    closing: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    missed: AtomicU64,
    omitted: AtomicU64,
    failures: AtomicU64,
}

impl Journal {
    /// No journal: what is noted is forgotten.
    pub fn none() -> Self {
        Self(None)
    }

    /// Opens the journal in this directory, and starts the thread that writes it. Reads and makes files, so it is not for an asynchronous
    /// thread.
    ///
    /// # Errors
    /// [`JournalError`], which says what to do.
    pub fn open(directory: &Path, bounds: Bounds) -> Result<Self, JournalError> {
        let (journal, writer) = Self::of(Files::open(directory, bounds)?, QUEUE);
        // Its owner is the handle: it ends with the last one, or when that is closed.
        let started = std::thread::Builder::new().name("volt-journal".into()).spawn(move || writer.run());
        started.map_err(|source| JournalError::Io { path: path(directory, 0), source })?;
        Ok(journal)
    }

    fn of(files: Files, most: usize) -> (Self, Writer) {
        let queue = Arc::new(Queue {
            most,
            waiting: Mutex::default(),
            news: Condvar::new(),
            over: Condvar::new(),
            counts: Counts::default(),
            knows: OnceLock::new(),
        });
        (Self(Some(Arc::new(Handle(queue.clone())))), Writer::new(queue, files))
    }

    /// Writes this down. Never waits and never fails: what there is no room for is counted, and the count is written.
    pub fn note(&self, entry: Entry) {
        let Some(Handle(queue)) = self.0.as_deref() else { return };
        let mut waiting = queue.waiting();
        if waiting.entries.len() < queue.most && !waiting.closing {
            waiting.entries.push_back((SystemTime::now(), entry));
        } else {
            waiting.missed += 1;
            queue.counts.missed.fetch_add(1, Relaxed);
        }
        drop(waiting);
        queue.news.notify_one();
    }

    /// Tells whom the node's owner knows: each of those has room of its own in the journal. All others share some, since keys cost nothing.
    /// Asked for every line, on the thread that writes. The first word is the last.
    pub fn knows(&self, knows: impl Fn(&NodeId) -> bool + Send + Sync + 'static) {
        if let Some(Handle(queue)) = self.0.as_deref() {
            let _ = queue.knows.set(Box::new(knows));
        }
    }

    /// Whether less than half of those are waiting that have room: whoever has many to note, that can wait, waits until then.
    pub fn has_room(&self) -> bool {
        self.0.as_deref().is_none_or(|Handle(queue)| 2 * queue.waiting().entries.len() <= queue.most)
    }

    /// Whether anything is written. Whoever has to make an entry first can save that.
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// What was counted so far.
    pub fn counts(&self) -> JournalCounts {
        let Some(Handle(queue)) = self.0.as_deref() else { return JournalCounts::default() };
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let Counts { written, missed, omitted, failures } = &queue.counts;
        JournalCounts { written: read(written), missed: read(missed), omitted: read(omitted), failures: read(failures) }
    }

    /// Waits until what was noted is written, at most 2 s, and ends the writer; what is noted later is lost. Blocks.
    pub fn close(&self) {
        let Some(Handle(queue)) = self.0.as_deref() else { return };
        queue.end();
        let written = queue.over.wait_timeout_while(queue.waiting(), CLOSE, |waiting| !waiting.closed);
        if written.is_ok_and(|(_, late)| late.timed_out()) {
            tracing::warn!("the journal could not be written in time; its end is missing");
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("most", &self.most).field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics while it is held")
    }

    fn end(&self) {
        self.waiting().closing = true;
        self.news.notify_one();
    }
}

#[cfg(test)]
mod tests;
