//! One wire of this node: its log, who publishes to it and who reads it. Readers have a position and no queue: what they are given
//! is the log's own memory, so one that stands still costs nothing here.

mod memory;
mod reader;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

pub(crate) use self::memory::Memory;
pub(crate) use self::reader::{Next, Reader};
use super::committer::Committer;
use super::error::Fault;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::proto::wire::{Cursor, From, Options, PublisherId, Slow, WireInfo};
use crate::state::wire::{Append, Publishers, Ring, Segment, segments};

/// A wire.
#[derive(Debug)]
pub(crate) struct Log {
    name: String,
    options: Options,
    epoch: u64,
    state: Mutex<State>,
    /// Something was appended, or it is over.
    news: Notify,
    /// A reader has got further, or is gone.
    room: Notify,
    memory: Arc<Memory>,
    committer: Option<Committer>,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    publishers: Publishers,
    publishing: u32,
    over: Option<Status>,
    /// Since when nobody publishes or reads.
    unused: Option<Instant>,
}

/// Chunks that one publisher has stored: so many, of which the first has this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub first: u64,
    pub count: u64,
}

impl Log {
    /// An empty log in memory.
    pub fn in_memory(name: String, options: Options, epoch: u64, memory: Arc<Memory>) -> Arc<Self> {
        Self::new(name, options, epoch, memory, 1, None)
    }

    /// A log that is on disk.
    pub(super) fn on_disk(name: String, options: Options, committer: Committer, memory: Arc<Memory>) -> Arc<Self> {
        let (epoch, next) = (committer.epoch(), committer.next());
        Self::new(name, options, epoch, memory, next, Some(committer))
    }

    fn new(
        name: String,
        options: Options,
        epoch: u64,
        memory: Arc<Memory>,
        next: u64,
        committer: Option<Committer>,
    ) -> Arc<Self> {
        let mut publishers = Publishers::new(limits::WIRE_PUBLISHERS);
        for (id, last) in committer.iter().flat_map(Committer::publishers) {
            publishers.restore(id, last);
        }
        let ring = Ring::new(options.ring_chunks, options.ring_bytes, next);
        let state = State { ring, publishers, publishing: 0, over: None, unused: Some(Instant::now()) };
        let (news, room) = (Notify::new(), Notify::new());
        let log = Arc::new(Self { name, options, epoch, state: Mutex::new(state), news, room, memory, committer });
        log.memory.join(&log);
        log
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it was made.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Which incarnation this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What can be told of it.
    pub fn info(&self) -> WireInfo {
        let state = self.state();
        let on_disk = self.committer.as_ref().map(Committer::kept);
        let (first, bytes) = on_disk.unwrap_or((state.ring.first(), state.ring.bytes() as u64));
        WireInfo {
            name: self.name.clone(),
            options: self.options,
            epoch: self.epoch,
            first,
            next: state.ring.next(),
            bytes,
            publishers: state.publishing,
            subscribers: u32::try_from(state.ring.readers()).unwrap_or(u32::MAX),
            broken: self.is_broken().then(|| damaged().message),
        }
    }

    /// Bytes that its ring holds.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.state().ring.bytes()
    }

    /// Ends it if nobody has published or read for so long; says whether that is so. Whoever found it before cannot use it any more: what
    /// is stored in a log that nobody finds is lost.
    pub fn end_if_unused(&self, long: Duration) -> bool {
        let mut state = self.state();
        let unused = state.unused.is_some_and(|since| since.elapsed() >= long);
        if unused {
            state.over.get_or_insert_with(|| Status::new(Code::Unavailable, "nobody has used the wire for long, and it is gone"));
        }
        unused
    }

    /// Ends it: whoever publishes or reads is told this.
    pub fn end(&self, why: Status) {
        self.state().over.get_or_insert(why);
        self.news.notify_waiters();
        self.room.notify_waiters();
    }

    /// Lets this one publish. Of two streams of one publisher only the newer one counts. Waits until what came before is stored.
    ///
    /// # Errors
    /// The wire is over, or its disk does not do.
    pub async fn publish(self: &Arc<Self>, id: PublisherId) -> Result<Publishing, Status> {
        let stream = {
            let mut state = self.state();
            if let Some(over) = &state.over {
                return Err(over.clone());
            }
            state.publishing += 1;
            state.unused = None;
            state.publishers.open(id)
        };
        let mut publishing = Publishing { log: self.clone(), id, stream: stream.1, known: stream.0 };
        if let Some(committer) = &self.committer {
            // What its streams before left in the queue counts too.
            committer.settled(self, id).await?;
            let last = self.state().publishers.get(&id).map(|known| known.last);
            publishing.known = publishing.known.and(last).or(last.filter(|last| *last > 0));
        }
        Ok(publishing)
    }

    /// Lets somebody read from here on.
    ///
    /// # Errors
    /// The wire is over; or there is no such place in it.
    pub fn read(self: &Arc<Self>, from: From) -> Result<Reader, Status> {
        let mut state = self.state();
        if let Some(over) = &state.over {
            return Err(over.clone());
        }
        if self.is_broken() {
            return Err(damaged());
        }
        let next = state.ring.next();
        let oldest = self.committer.as_ref().map_or(state.ring.first(), |committer| committer.kept().0);
        let at = match from {
            From::Live => next,
            From::Oldest => oldest,
            From::Seq(seq) => seq,
            From::After(Cursor { epoch, seq }) if epoch == self.epoch => seq.saturating_add(1),
            From::After(_) => oldest,
        };
        if at > next {
            return Err(Status::new(Code::OutOfRange, format!("chunk {at} is not there yet: the next one is {next}")));
        }
        state.unused = None;
        Ok(Reader { id: state.ring.enter(at), at, log: self.clone() })
    }

    /// Stores a segment in memory; waits for readers if it is that kind of wire.
    async fn keep(&self, publishing: &Publishing, segment: Segment) -> Result<Stored, Fault> {
        // One for this segment, however many readers stand still.
        let mut stall = None;
        loop {
            let room = self.room.notified();
            let slow = {
                let mut state = self.state();
                state.may_store(publishing)?;
                match self.append(&mut state, segment.clone()) {
                    Append::Done(first) => {
                        state.publishers.stored(publishing.id, segment.count);
                        drop(state);
                        self.appended();
                        return Ok(Stored { first, count: segment.count });
                    }
                    Append::Overruns(reader) => reader,
                }
            };
            let until = *stall.get_or_insert_with(|| Instant::now() + limits::WIRE_STALL);
            if timeout_at(until, room).await.is_err() {
                tracing::info!(wire = self.name, "a subscriber held up the publishers for too long: its subscription ends");
                self.state().ring.leave(slow);
                self.news.notify_waiters();
            }
        }
    }

    fn append(&self, state: &mut State, segment: Segment) -> Append {
        let before = state.ring.bytes();
        let appended = match self.options.slow {
            Slow::Block => state.ring.append_for_all(segment),
            Slow::DropOldest | Slow::Disconnect => Append::Done(state.ring.append(segment)),
        };
        self.memory.changed(before, state.ring.bytes());
        appended
    }

    /// Something was appended: readers are told, and where rings hold too much they let go.
    fn appended(&self) {
        self.news.notify_waiters();
        self.memory.relieve();
    }

    /// Lets the oldest segment of the ring go. Says how many bytes that were.
    fn shed(&self) -> usize {
        let shed = self.state().ring.shed();
        self.memory.changed(shed, 0);
        shed
    }

    /// Whether what is on disk cannot be trusted any more.
    fn is_broken(&self) -> bool {
        self.committer.as_ref().is_some_and(Committer::is_broken)
    }

    /// What keeps it on disk.
    pub(super) fn committer(&self) -> Option<&Committer> {
        self.committer.as_ref()
    }

    /// The number of the next chunk.
    pub(super) fn next(&self) -> u64 {
        self.state().ring.next()
    }

    /// More is on disk than was known here: readers get it from there.
    pub(super) fn is_beyond(&self, next: u64, publishers: impl IntoIterator<Item = (PublisherId, u64)>) {
        let mut state = self.state();
        publishers.into_iter().for_each(|(id, last)| state.publishers.restore(id, last));
        let before = state.ring.bytes();
        state.ring.jump(next);
        self.memory.changed(before, 0);
        drop(state);
        self.news.notify_waiters();
    }

    /// These were stored on disk, in this order; so far have publishers got there.
    pub(super) fn committed(&self, stored: Vec<(PublisherId, Segment)>, on_disk: &HashMap<PublisherId, u64>) {
        let mut state = self.state();
        // Who was forgotten here meanwhile is known there.
        let forgotten: HashSet<PublisherId> =
            stored.iter().map(|(id, _)| *id).filter(|id| state.publishers.get(id).is_none()).collect();
        for (id, segment) in stored {
            if !forgotten.contains(&id) {
                state.publishers.stored(id, segment.count);
            }
            let before = state.ring.bytes();
            state.ring.append(segment);
            self.memory.changed(before, state.ring.bytes());
        }
        for id in forgotten {
            if let Some(last) = on_disk.get(&id) {
                state.publishers.restore(id, *last);
            }
        }
        drop(state);
        self.appended();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    fn left(&self, leave: impl FnOnce(&mut State)) {
        let mut state = self.state();
        leave(&mut state);
        if state.publishing == 0 && state.ring.readers() == 0 {
            state.unused = Some(Instant::now());
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let held = self.state.get_mut().map_or(0, |state| state.ring.bytes());
        self.memory.changed(held, 0);
    }
}

impl State {
    fn may_store(&self, publishing: &Publishing) -> Result<(), Status> {
        match &self.over {
            Some(over) => Err(over.clone()),
            None if self.publishers.is_current(&publishing.id, publishing.stream) => Ok(()),
            None => Err(Status::new(Code::Aborted, "a newer stream of the same publisher has taken over")),
        }
    }
}

/// Somebody publishes, until this is dropped.
#[derive(Debug)]
pub(crate) struct Publishing {
    log: Arc<Log>,
    id: PublisherId,
    stream: u64,
    known: Option<u64>,
}

impl Publishing {
    /// The number of its last chunk that is stored, if it is known here.
    pub fn known(&self) -> Option<u64> {
        self.known
    }

    /// The wire.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Stores its next chunks: whole frames, checked before. What is stored is reported as it is; of what comes after an error
    /// nothing is stored. Not cancel-safe: dropped half-way, some may be stored.
    pub(super) async fn store(&self, mut frames: Vec<u8>, stored: &mut Vec<Stored>) -> Result<(), Fault> {
        let most = (u64::from(self.log.options.ring_chunks) / 4).max(1);
        // What was set aside and not used is not kept with it.
        frames.shrink_to_fit();
        let cut = segments(frames.into(), most).map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))?;
        match &self.log.committer {
            Some(committer) => {
                let may = || self.log.state().may_store(self);
                stored.extend(committer.commit(&self.log, self.id, cut, may).await?);
            }
            None => {
                for segment in cut {
                    stored.push(self.log.keep(self, segment).await?);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.log.left(|state| state.publishing -= 1);
    }
}

/// What is told of a wire whose file is damaged.
fn damaged() -> Status {
    Status::new(Code::DataLoss, "what is stored of this wire is damaged: its host knows more")
}
