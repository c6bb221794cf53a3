//! Stores what is published to a persistent wire: whatever has come while the disk was busy goes into the next commit, together. Only
//! what is on disk is acknowledged, and seen.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore, oneshot};

use super::error::Fault;
use super::log::{Log, Stored};
use super::store::{AppendError, Batch, Held, Store, StoreError};
use crate::net::Network;
use crate::proto::status::{Code, Status};
use crate::proto::wire::PublisherId;
use crate::state::wire::{Read, Segment};

/// Bytes that wait for the disk; whoever brings more waits too.
const WAITING_BYTES: usize = 4 * 1024 * 1024;
/// Readers of one wire that read from the disk at once.
const READS: usize = 4;

/// The disk's side of a wire.
#[derive(Debug)]
pub(super) struct Committer {
    store: Arc<Store>,
    network: Network,
    /// The oldest chunk that is on disk, and how many bytes there are. The store itself is not to be asked here: it waits for the
    /// disk.
    kept: Mutex<(u64, u64)>,
    queue: Mutex<Queue>,
    room: Notify,
    /// Readers that wait for the disk at once: not all threads there are for waiting.
    reads: Semaphore,
    broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    running: bool,
}

/// Chunks of one publisher, and who wants to know what became of them.
#[derive(Debug)]
struct Waiting {
    publisher: PublisherId,
    segments: Vec<Segment>,
    bytes: usize,
    done: oneshot::Sender<Result<Vec<Stored>, Fault>>,
}

impl Committer {
    pub fn new(store: Store, network: Network) -> Self {
        let held = store.held();
        let kept = Mutex::new((held.first, held.bytes));
        let (queue, room, reads) = (Mutex::default(), Notify::new(), Semaphore::new(READS));
        Self { store: Arc::new(store), network, kept, queue, room, reads, broken: AtomicBool::new(false) }
    }

    /// Which incarnation of the log is stored.
    pub fn epoch(&self) -> u64 {
        self.store.epoch()
    }

    /// The number of the next chunk.
    pub fn next(&self) -> u64 {
        self.store.held().next
    }

    /// How far each publisher has got.
    pub fn publishers(&self) -> Vec<(PublisherId, u64)> {
        self.store.held().publishers.into_iter().collect()
    }

    /// The oldest chunk that is kept, and how many bytes there are.
    pub fn kept(&self) -> (u64, u64) {
        *self.kept.lock().expect("nothing panics while it is held")
    }

    /// Whether damage was found in what is stored.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Waits until everything that came before is on disk or has failed, and until the disk is known to hold what this node thinks it
    /// holds. Cancel-safe.
    pub async fn settled(&self, log: &Arc<Log>, id: PublisherId) -> Result<(), Status> {
        self.commit(log, id, Vec::new(), || Ok(())).await.map(drop).map_err(|fault| match fault {
            Fault::Refused(status) => status,
            Fault::Uncertain => Status::new(Code::Unavailable, "the wire's disk does not answer now"),
        })
    }

    /// Stores chunks, if they still may be when there is room for them. Dropped before its end, they may be stored.
    pub async fn commit(
        &self,
        log: &Arc<Log>,
        publisher: PublisherId,
        segments: Vec<Segment>,
        may: impl Fn() -> Result<(), Status>,
    ) -> Result<Vec<Stored>, Fault> {
        let bytes = segments.iter().map(|segment| segment.frames.len()).sum();
        let (done, stored) = oneshot::channel();
        let mut waiting = Some(Waiting { publisher, segments, bytes, done });
        loop {
            let room = self.room.notified();
            if self.enter(log, &mut waiting, &may)? {
                break;
            }
            room.await;
        }
        stored.await.unwrap_or(Err(Fault::Uncertain))
    }

    /// Closes the file, when what is being stored is stored. Waits for the disk.
    pub fn close(&self) {
        self.store.close();
    }

    /// What is stored from this number on.
    pub async fn read(&self, at: u64, bytes_max: usize) -> Result<Read, Status> {
        let store = self.store.clone();
        let _one_of_few = self.reads.acquire().await;
        let read = tokio::task::spawn_blocking(move || store.read(at, bytes_max)).await;
        match read {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(self.unread(&error)),
            Err(_) => Err(Status::new(Code::Internal, "reading the wire's disk has failed")),
        }
    }

    /// What peers may know of an error: not where this node keeps its files.
    fn unread(&self, error: &StoreError) -> Status {
        tracing::error!(%error, "a persistent wire cannot be read");
        match error {
            error if error.is_damage() => {
                self.broken.store(true, Relaxed);
                Status::new(Code::DataLoss, "what is stored of this wire cannot be read: its host knows more")
            }
            _ => Status::new(Code::Unavailable, "the wire's disk does not answer now"),
        }
    }

    /// Has chunks wait for the disk, if there is room for them. Asked with the queue in hand, `may` is true of it: a stream that comes
    /// later finds in it what this one has brought, and nothing comes after that.
    fn enter(&self, log: &Arc<Log>, chunks: &mut Option<Waiting>, may: &impl Fn() -> Result<(), Status>) -> Result<bool, Status> {
        let mut queue = self.queue();
        may()?;
        let Some(waiting) = chunks.take_if(|waiting| queue.bytes == 0 || queue.bytes + waiting.bytes <= WAITING_BYTES) else {
            return Ok(false);
        };
        queue.bytes += waiting.bytes;
        queue.waiting.push_back(waiting);
        if !std::mem::replace(&mut queue.running, true) {
            self.network.spawn(run(log.clone()));
        }
        Ok(true)
    }

    /// All that waits; `None` if nothing does, and then nobody runs.
    fn take(&self) -> Option<VecDeque<Waiting>> {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.running = false;
            return None;
        }
        queue.bytes = 0;
        let taken = std::mem::take(&mut queue.waiting);
        drop(queue);
        self.room.notify_waiters();
        Some(taken)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics while it is held")
    }
}

/// Commits until nothing waits any more.
async fn run(log: Arc<Log>) {
    let Some(committer) = log.committer() else { return };
    while let Some(taken) = committer.take() {
        commit(&log, committer, taken).await;
    }
}

async fn commit(log: &Arc<Log>, committer: &Committer, taken: VecDeque<Waiting>) {
    let store = committer.store.clone();
    let of = |waiting: &Waiting| {
        let publisher = waiting.publisher;
        waiting.segments.iter().map(move |segment| Batch { publisher, segment: segment.clone() }).collect::<Vec<_>>()
    };
    let batches: Vec<Batch> = taken.iter().flat_map(of).collect();
    let expected = log.next();
    let appended = tokio::task::spawn_blocking(move || {
        let appended = match batches.is_empty() {
            true => store.recover().map(|held| held.next),
            false => store.append(&batches, now_ms()),
        };
        (appended, batches, store.held())
    });
    let (appended, batches, held) = match appended.await {
        Ok(done) => done,
        Err(_) => (Err(AppendError::Uncertain("storing has failed".into())), Vec::new(), Held::default()),
    };
    if appended.is_ok() {
        *committer.kept.lock().expect("nothing panics while it is held") = (held.first, held.bytes);
    }
    match appended {
        Ok(first) if first == expected => {
            let stored = batches.into_iter().map(|batch| (batch.publisher, batch.segment)).collect();
            log.committed(stored, &held.publishers);
            tell(taken, first);
        }
        // Something is there of which it was not known whether it would be.
        Ok(first) => {
            log.is_beyond(held.next, held.publishers);
            tell(taken, first);
        }
        Err(error) => {
            tracing::warn!(wire = log.name(), %error, "a persistent wire could not store what was published");
            if let AppendError::Damaged(_) = error {
                committer.broken.store(true, Relaxed);
            }
            let fault = Fault::of(&error);
            taken.into_iter().for_each(|waiting| drop(waiting.done.send(Err(fault.clone()))));
        }
    }
}

/// Tells everybody the numbers of what was stored, from this one on.
fn tell(taken: VecDeque<Waiting>, mut first: u64) {
    for waiting in taken {
        let number = |segment: &Segment| {
            let stored = Stored { first, count: segment.count };
            first += segment.count;
            stored
        };
        let stored = waiting.segments.iter().map(number).collect();
        let _ = waiting.done.send(Ok(stored));
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
