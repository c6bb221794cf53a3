//! [`Publisher`]: chunks on their way to a wire, each until it is known what became of it.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use tokio::sync::{Notify, Semaphore, oneshot};

use super::courier::Courier;
use super::error::PublishError;
use super::handle::{At, Wire};
use super::wires::Wires;
use crate::proto::wire::{Chunk, PublisherId, RecordError, put_chunk};
use crate::state::wire::{Fate, Outbox};

/// Most bytes in flight.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// What a chunk counts for at least: so there are at most 65,536 in flight.
const LEAST_BYTES: usize = 64;

/// Publishes to a wire. Clones share it: their chunks keep the order in which they were handed over.
///
/// Each chunk is sent until it is known what became of it, through as many sessions as it takes, and is stored once. Where that cannot be known
/// (the wire's host was restarted and the wire was only in memory) it is not sent again, and fails with
/// [`PublishError::OutcomeUnknown`]. At most 4 MiB and 65,536 chunks are in flight; more wait. When the last clone is dropped what is in flight has
/// 10 s left.
#[derive(Clone)]
pub struct Publisher(Arc<Handle>);

struct Handle(Arc<Shared>);

/// A chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Its number; none if the acknowledgement was lost with a session, and only that it is stored could be learned afterwards.
    pub seq: Option<u64>,
}

/// A chunk that was handed over. Dropping this changes nothing for the chunk.
#[derive(Debug)]
#[must_use = "only this tells what became of the chunk"]
pub struct Pending(oneshot::Receiver<Result<Receipt, PublishError>>);

/// What handles share with the courier.
pub(super) struct Shared {
    pub wire: Wire,
    pub id: PublisherId,
    state: Mutex<State>,
    window: Semaphore,
    /// There is something to send, or nobody will bring anything any more.
    pub work: Notify,
    /// The last handle was dropped.
    pub closed: Notify,
}

#[derive(Default)]
struct State {
    outbox: Outbox<Slot>,
    running: bool,
    closing: bool,
    /// Nobody brings anything any more, and why.
    over: Option<&'static str>,
    pushed: u64,
    settled: u64,
    failed: Option<PublishError>,
    flushes: Vec<(u64, oneshot::Sender<()>)>,
}

/// A chunk in flight.
pub(super) struct Slot {
    bytes: usize,
    done: Option<oneshot::Sender<Result<Receipt, PublishError>>>,
}

impl Publisher {
    pub(super) fn new(wire: Wire, id: PublisherId) -> Self {
        let (state, window) = (Mutex::default(), Semaphore::new(WINDOW_BYTES));
        Self(Arc::new(Handle(Arc::new(Shared { wire, id, state, window, work: Notify::new(), closed: Notify::new() }))))
    }

    /// Who publishes.
    pub fn id(&self) -> PublisherId {
        self.0.0.id
    }

    /// The wire.
    pub fn wire(&self) -> &Wire {
        &self.0.0.wire
    }

    /// Publishes a chunk, and waits until it is stored: on disk, if the wire is persistent. Dropped, the chunk may be stored or not.
    ///
    /// # Errors
    /// [`PublishError`], which says what became of it.
    pub async fn publish(&self, chunk: impl Into<Chunk>) -> Result<Receipt, PublishError> {
        self.send(chunk).await?.await
    }

    /// Hands a chunk over to be published, and waits only while too much is in flight. Chunks are stored in this order.
    /// Cancel-safe: dropped before its end, nothing was handed over.
    ///
    /// # Errors
    /// [`PublishError::NotSent`]: it cannot be a chunk.
    pub async fn send(&self, chunk: impl Into<Chunk>) -> Result<Pending, PublishError> {
        let (done, pending) = oneshot::channel();
        self.hand_over(&chunk.into(), Some(done)).await?;
        Ok(Pending(pending))
    }

    /// The same, for those who do not want to know of each chunk: [`flush`](Self::flush) tells of all together, and costs less.
    ///
    /// # Errors
    /// As [`Publisher::send`].
    pub async fn push(&self, chunk: impl Into<Chunk>) -> Result<(), PublishError> {
        self.hand_over(&chunk.into(), None).await
    }

    /// Waits until it is known what became of everything handed over before. Cancel-safe.
    ///
    /// # Errors
    /// The first [`PublishError`] since the last time.
    pub async fn flush(&self) -> Result<(), PublishError> {
        let flushed = {
            let mut state = self.0.0.state();
            if state.settled == state.pushed {
                return state.failed.take().map_or(Ok(()), Err);
            }
            let (done, flushed) = oneshot::channel();
            let target = state.pushed;
            state.flushes.push((target, done));
            flushed
        };
        // Taken here and not sent along: were this dropped meanwhile, the next one would not be told.
        let _ = flushed.await;
        self.0.0.state().failed.take().map_or(Ok(()), Err)
    }

    async fn hand_over(
        &self,
        chunk: &Chunk,
        done: Option<oneshot::Sender<Result<Receipt, PublishError>>>,
    ) -> Result<(), PublishError> {
        let shared = &self.0.0;
        let said: usize = chunk.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = (chunk.body.len() + said).clamp(LEAST_BYTES, WINDOW_BYTES);
        // Never closed, and at most the whole window is asked for.
        if let Ok(permit) = shared.window.acquire_many(bytes as u32).await {
            permit.forget();
        }
        let mut state = shared.state();
        if let Some(why) = state.over {
            drop(state);
            shared.window.add_permits(bytes);
            return Err(PublishError::NotSent(why.into()));
        }
        let pushed = state.outbox.push(Slot { bytes, done }, |out| put_chunk(out, chunk));
        if let Err(error) = pushed {
            shared.window.add_permits(bytes);
            return Err(not_a_chunk(&error));
        }
        state.pushed += 1;
        let start = !std::mem::replace(&mut state.running, true);
        drop(state);
        if start {
            start_courier(shared);
        }
        shared.work.notify_one();
        Ok(())
    }
}

fn not_a_chunk(error: &RecordError) -> PublishError {
    PublishError::NotSent(error.to_string())
}

fn gone() -> PublishError {
    PublishError::OutcomeUnknown("the publisher is gone".into())
}

/// The courier lives where the node's network does.
fn start_courier(shared: &Arc<Shared>) {
    let wires = match shared.wire.at() {
        At::Here(wires) => Some(Arc::new(wires.clone())),
        At::There(session) => session.part::<Wires>(),
    };
    match wires {
        Some(wires) => drop(wires.network().spawn(Courier(shared.clone()).run())),
        None => shared.end("the session's node has no wires"),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    /// Does something with what is in flight. Whoever waits for chunks is told what became of them; `why` is said of those that were
    /// not stored, or perhaps not.
    pub fn outbox<R>(&self, why: &PublishError, act: impl FnOnce(&mut Outbox<Slot>, &mut dyn FnMut(Slot, Fate)) -> R) -> R {
        let mut state = self.state();
        let (mut settled, mut freed, mut failed) = (0, 0, None);
        let acted = act(&mut state.outbox, &mut |slot, fate| {
            settled += 1;
            freed += slot.bytes;
            let became = match (fate, why) {
                (Fate::Stored(seq), _) => Ok(Receipt { seq: Some(seq) }),
                (Fate::StoredBefore, _) => Ok(Receipt { seq: None }),
                (Fate::Unknown, PublishError::Refused(status)) => Err(PublishError::OutcomeUnknown(status.to_string())),
                (Fate::Unknown, PublishError::NotSent(why) | PublishError::OutcomeUnknown(why)) => {
                    Err(PublishError::OutcomeUnknown(why.clone()))
                }
                (Fate::Refused, PublishError::OutcomeUnknown(why)) => Err(PublishError::NotSent(why.clone())),
                (Fate::Refused, why) => Err(why.clone()),
            };
            if let Err(error) = &became {
                failed.get_or_insert_with(|| error.clone());
            }
            if let Some(done) = slot.done {
                let _ = done.send(became);
            }
        });
        state.settled += settled;
        if state.failed.is_none() {
            state.failed = failed;
        }
        state.flush();
        drop(state);
        self.window.add_permits(freed);
        acted
    }

    /// Nothing more is done for what is in flight.
    pub fn give_up(&self, why: &PublishError) {
        self.outbox(why, |outbox, mut told| outbox.abandoned(&mut told));
    }

    /// Nobody brings anything any more: what is in flight has failed, and what would come fails at once.
    pub fn end(&self, why: &'static str) {
        let why = *self.state().over.get_or_insert(why);
        self.give_up(&PublishError::OutcomeUnknown(why.into()));
    }

    /// Whether there is nothing to do, now or later.
    pub fn is_done(&self) -> bool {
        let state = self.state();
        state.closing && state.outbox.is_empty()
    }
}

impl State {
    fn flush(&mut self) {
        if self.flushes.first().is_none_or(|(target, _)| *target > self.settled) {
            return;
        }
        let due = self.flushes.partition_point(|(target, _)| *target <= self.settled);
        for (_, done) in self.flushes.drain(..due) {
            let _ = done.send(());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.state().closing = true;
        self.0.work.notify_one();
        self.0.closed.notify_one();
    }
}

impl Future for Pending {
    type Output = Result<Receipt, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|told| told.unwrap_or_else(|_| Err(gone())))
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("wire", self.wire()).field("id", &self.id()).finish_non_exhaustive()
    }
}
