//! The log of a persistent wire: one redb database in a file of its own. What it says is stored is on disk; what it cannot read it
//! says so of, and names the file. It waits for the disk, so it is not for asynchronous threads, and knows nobody who reads or
//! publishes.
//!
//! Chunks are kept in blocks, keyed by the number of their first, each with a checksum (CRC-32) over all of it. One transaction stores a
//! batch: its blocks, how far its publishers have got, and what goes because it is too old or too much. redb commits by writing new
//! pages, then one root with a checksum over what it leads to, then waiting for the disk: after a cut either root is whole.

mod error;
mod file;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

pub use self::error::{AppendError, StoreError};
use self::file::Place;
pub use self::file::{file_name, remove};
use crate::proto::codec::{self, Message};
use crate::proto::limits;
use crate::proto::wire::{Options, PublisherId};
use crate::state::wire::{Read, Segment, skip_frames};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const BLOCKS: TableDefinition<u64, &[u8]> = TableDefinition::new("blocks");
/// How far each publisher has got, and when, in commits.
const PUBLISHERS: TableDefinition<[u8; 16], (u64, u64)> = TableDefinition::new("publishers");

/// The key under which what the wire is is found.
const WIRE: &str = "wire";
/// Segments are joined into blocks of about this size.
const BLOCK_BYTES: usize = 64 * 1024;
/// Before a block's frames: checksum, time, count.
const HEAD_BYTES: usize = 4 + 8 + 4;
/// Most blocks that go in one commit.
const GO_AT_ONCE: usize = 256;
/// A database that failed is opened again after this, not sooner.
const REOPEN: Duration = Duration::from_millis(500);

/// What a wire is, in its file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Meta {
    format: u32,
    name: String,
    options: Options,
    epoch: u64,
}

impl Message for Meta {
    const NAME: &'static str = "description of a wire";
    const LIMIT: usize = 1_024;
}

/// This version's format.
const FORMAT: u32 = 1;

/// Chunks of one publisher that are to be stored.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who published them.
    pub publisher: PublisherId,
    /// They follow what is stored of this publisher.
    pub segment: Segment,
}

/// The log of a wire, on disk.
#[derive(Debug)]
pub struct Store {
    place: Place,
    meta: Meta,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    database: Option<Database>,
    failed: Option<Instant>,
    closed: bool,
    /// Set for good: what is in the file cannot be trusted.
    damaged: Option<String>,
    held: Held,
}

/// What the database holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The oldest chunk; `next` if there is none.
    pub first: u64,
    /// The number of the next chunk.
    pub next: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// How far each publisher has got.
    pub publishers: HashMap<PublisherId, u64>,
    /// Commits so far: what is used last has the highest.
    commits: u64,
}

impl Store {
    /// Makes a wire's file in this directory. Its name there is made from the wire's.
    ///
    /// # Errors
    /// [`StoreError`]; then there is no file.
    pub fn create(directory: &Path, name: &str, options: Options, epoch: u64) -> Result<Self, StoreError> {
        let meta = Meta { format: FORMAT, name: name.to_owned(), options, epoch };
        let path = directory.join(file_name(name));
        file::make(&path, |database| fill(&path, database, &meta))?;
        Self::open(&path)
    }

    /// Opens a wire's file.
    ///
    /// # Errors
    /// [`StoreError`]: it names the file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::at(Place::File(path.to_owned()))
    }

    fn at(place: Place) -> Result<Self, StoreError> {
        let opened = guarded(place.path(), || {
            let database = place.open()?;
            let meta = meta(place.path(), &database)?;
            let held = held(place.path(), &database)?;
            Ok((database, meta, held))
        });
        let (database, meta, held) = opened?;
        let state = State { database: Some(database), failed: None, closed: false, damaged: None, held };
        Ok(Self { place, meta, state: Mutex::new(state) })
    }

    /// The wire's name.
    pub fn name(&self) -> &str {
        &self.meta.name
    }

    /// How the wire was made.
    pub fn options(&self) -> Options {
        self.meta.options
    }

    /// Which incarnation of the log this is: the same as long as the file lives.
    pub fn epoch(&self) -> u64 {
        self.meta.epoch
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// What is stored.
    pub fn held(&self) -> Held {
        self.state().held.clone()
    }

    /// Stores chunks, in this order: they are on disk when this returns. Says the number of the first.
    ///
    /// # Errors
    /// [`AppendError`]: nothing of them is stored, unless it says that this is not known.
    pub fn append(&self, batches: &[Batch], now_ms: u64) -> Result<u64, AppendError> {
        let mut state = self.state();
        self.place.has_room()?;
        self.opened(&mut state)?;
        let before = state.held.clone();
        let State { database: Some(database), .. } = &*state else { return Err(AppendError::Uncertain("not open".into())) };
        let appended = guarded(self.path(), || store(self.path(), database, &before, &self.meta.options, batches, now_ms));
        match appended {
            Ok(held) => {
                state.held = held;
                Ok(before.next)
            }
            Err(error) => self.failed(&mut state, before.next, batches, error),
        }
    }

    /// An append has failed: the database is opened anew, which tells whether it has.
    fn failed(&self, state: &mut State, next: u64, batches: &[Batch], error: StoreError) -> Result<u64, AppendError> {
        tracing::warn!(%error, "a wire's store has failed");
        state.database = None;
        state.failed = None;
        if let StoreError::Damaged { .. } = error {
            state.damaged = Some(error.to_string());
            return Err(AppendError::Damaged(error.to_string()));
        }
        if self.opened(state).is_err() {
            return Err(AppendError::Uncertain(error.to_string()));
        }
        let count: u64 = batches.iter().map(|batch| batch.segment.count).sum();
        match state.held.next - next {
            0 if error.is_full() => Err(AppendError::Full(error.to_string())),
            0 => Err(AppendError::Failed(error.to_string())),
            stored if stored == count => Ok(next),
            _ => {
                let text = format!("{}: a part of one commit is there", self.path().display());
                state.damaged = Some(text.clone());
                Err(AppendError::Damaged(text))
            }
        }
    }

    /// What is stored from this number on, about so many bytes, at least one block.
    ///
    /// # Errors
    /// [`StoreError`]: it names the file.
    pub fn read(&self, at: u64, bytes_max: usize) -> Result<Read, StoreError> {
        let mut state = self.state();
        self.opened(&mut state).map_err(|error| StoreError::unusable(self.path(), error.to_string()))?;
        if at >= state.held.next {
            return Ok(Read::Nothing);
        }
        if at < state.held.first {
            return Ok(Read::Behind(state.held.first));
        }
        let Some(database) = &state.database else { return Ok(Read::Nothing) };
        let transaction = database.begin_read().map_err(|error| StoreError::of(self.path(), error.into()));
        // Reading needs the transaction only: commits go on beside it.
        drop(state);
        guarded(self.path(), || blocks(self.path(), &transaction?, at, bytes_max)).inspect_err(|error| {
            if let StoreError::Damaged { .. } = error {
                tracing::error!(%error, "a wire's store is damaged");
                self.state().damaged = Some(error.to_string());
            }
        })
    }

    /// Opens what has failed again, unless that was tried just now.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn recover(&self) -> Result<Held, AppendError> {
        let mut state = self.state();
        self.opened(&mut state)?;
        Ok(state.held.clone())
    }

    /// Closes the file for good.
    pub fn close(&self) {
        let mut state = self.state();
        state.database = None;
        state.closed = true;
    }

    fn opened(&self, state: &mut State) -> Result<(), AppendError> {
        if let Some(why) = &state.damaged {
            return Err(AppendError::Damaged(why.clone()));
        }
        if state.database.is_some() {
            return Ok(());
        }
        if state.closed {
            return Err(AppendError::Failed(format!("{} is closed: its node has gone down", self.path().display())));
        }
        if state.failed.is_some_and(|failed| failed.elapsed() < REOPEN) {
            return Err(AppendError::Uncertain(format!("{} has failed just now", self.path().display())));
        }
        let opened = guarded(self.path(), || {
            let database = self.place.open()?;
            let held = held(self.path(), &database)?;
            Ok((database, held))
        });
        match opened {
            Ok((database, held)) => {
                (state.database, state.held, state.failed) = (Some(database), held, None);
                Ok(())
            }
            Err(error @ StoreError::Damaged { .. }) => {
                state.damaged = Some(error.to_string());
                Err(AppendError::Damaged(error.to_string()))
            }
            Err(error) => {
                state.failed = Some(Instant::now());
                Err(AppendError::Uncertain(error.to_string()))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }
}

/// A file, and the wire in it, or why there is none.
pub type Opened = (PathBuf, Result<Store, StoreError>);

/// Opens all wires in this directory. Those that cannot be opened are there with the reason.
///
/// # Errors
/// The directory cannot be made or read.
pub fn open_all(directory: &Path) -> Result<Vec<Opened>, StoreError> {
    let paths = file::all(directory)?;
    Ok(paths.into_iter().map(|path| (path.clone(), Store::open(&path))).collect())
}

/// redb answers some damage with a panic: here it is an error like any other. The database is not used again.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let worked = catch_unwind(AssertUnwindSafe(work));
    worked.unwrap_or_else(|_| Err(StoreError::damaged(path, "reading it failed in a way that only damage explains")))
}

fn fill(path: &Path, database: &Database, meta: &Meta) -> Result<(), StoreError> {
    let filled = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert(WIRE, &codec::encode(meta)[..])?;
        transaction.open_table(BLOCKS)?;
        transaction.open_table(PUBLISHERS)?;
        Ok(transaction.commit()?)
    };
    filled().map_err(|error| StoreError::of(path, error))
}

fn meta(path: &Path, database: &Database) -> Result<Meta, StoreError> {
    let read = || -> Result<Option<Vec<u8>>, redb::Error> {
        let transaction = database.begin_read()?;
        let table = transaction.open_table(META)?;
        Ok(table.get(WIRE)?.map(|value| value.value().to_vec()))
    };
    let bytes = read().map_err(|error| StoreError::of(path, error))?;
    let bytes = bytes.ok_or_else(|| StoreError::damaged(path, "it does not say which wire it is"))?;
    let meta: Meta = codec::decode(&bytes).map_err(|error| StoreError::damaged(path, error))?;
    match meta.format {
        FORMAT => Ok(meta),
        format => Err(StoreError::Format { path: path.to_owned(), format }),
    }
}

fn held(path: &Path, database: &Database) -> Result<Held, StoreError> {
    let transaction = database.begin_read().map_err(|error| StoreError::of(path, error.into()))?;
    let read = || -> Result<Result<Held, StoreError>, redb::Error> {
        let table = transaction.open_table(BLOCKS)?;
        let mut held = Held { first: 1, next: 1, ..Held::default() };
        if let Some((first, _)) = table.first()? {
            held.first = first.value();
        }
        if let Some((last, block)) = table.last()? {
            match Block::read(block.value()) {
                Some(block) => held.next = last.value() + u64::from(block.count),
                None => {
                    return Ok(Err(StoreError::damaged(path, format_args!("the block of chunk {} is damaged", last.value()))));
                }
            }
        }
        held.bytes = table.stats()?.stored_bytes();
        for entry in transaction.open_table(PUBLISHERS)?.iter()? {
            let (id, known) = entry?;
            let (last, used) = known.value();
            held.publishers.insert(PublisherId(id.value()), last);
            held.commits = held.commits.max(used);
        }
        Ok(Ok(held))
    };
    read().map_err(|error| StoreError::of(path, error))?
}

/// Stores a batch in one transaction. Says what is held then.
fn store(
    path: &Path,
    database: &Database,
    before: &Held,
    options: &Options,
    batches: &[Batch],
    now_ms: u64,
) -> Result<Held, StoreError> {
    let mut held = before.clone();
    let mut stored = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        held.commits += 1;
        put_blocks(&transaction, &mut held, batches, now_ms)?;
        put_publishers(&transaction, &mut held, batches)?;
        let_go(&transaction, &mut held, options, now_ms)?;
        Ok(transaction.commit()?)
    };
    stored().map_err(|error| StoreError::of(path, error))?;
    Ok(held)
}

fn put_blocks(transaction: &WriteTransaction, held: &mut Held, batches: &[Batch], now_ms: u64) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(BLOCKS)?;
    let mut segments = batches.iter().map(|batch| &batch.segment).peekable();
    while let Some(segment) = segments.next() {
        let mut joined = vec![segment];
        let mut bytes = segment.frames.len();
        while let Some(next) = segments.next_if(|next| bytes + next.frames.len() <= BLOCK_BYTES) {
            bytes += next.frames.len();
            joined.push(next);
        }
        let block = Block::write(&joined, bytes, now_ms);
        table.insert(held.next, &block[..])?;
        held.next += joined.iter().map(|segment| segment.count).sum::<u64>();
        held.bytes += block.len() as u64;
    }
    Ok(())
}

fn put_publishers(transaction: &WriteTransaction, held: &mut Held, batches: &[Batch]) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(PUBLISHERS)?;
    for batch in batches {
        let last = held.publishers.entry(batch.publisher).or_default();
        *last = last.saturating_add(batch.segment.count);
        table.insert(batch.publisher.0, (*last, held.commits))?;
    }
    if held.publishers.len() <= limits::WIRE_PUBLISHERS {
        return Ok(());
    }
    // Rare: an eighth of them at once, those that were silent for longest.
    let mut by_use = Vec::with_capacity(held.publishers.len());
    for entry in table.iter()? {
        let (id, known) = entry?;
        by_use.push((known.value().1, id.value()));
    }
    by_use.sort_unstable();
    let too_many = by_use.len() - limits::WIRE_PUBLISHERS * 7 / 8;
    for (_, id) in by_use.into_iter().take(too_many) {
        table.remove(id)?;
        held.publishers.remove(&PublisherId(id));
    }
    Ok(())
}

/// What is too old, or too much, goes: whole blocks, never the newest.
fn let_go(transaction: &WriteTransaction, held: &mut Held, options: &Options, now_ms: u64) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(BLOCKS)?;
    for _ in 0..GO_AT_ONCE {
        let (first, bytes, count, time_ms) = match table.first()? {
            Some((first, block)) => {
                let read = Block::head(block.value());
                (first.value(), block.value().len() as u64, read.count, read.time_ms)
            }
            None => break,
        };
        let old = now_ms.saturating_sub(time_ms) > options.retain_ms;
        let end = first + u64::from(count);
        if end >= held.next || !(old || held.bytes > options.retain_bytes) {
            break;
        }
        table.pop_first()?;
        held.bytes = held.bytes.saturating_sub(bytes);
        held.first = end;
    }
    Ok(())
}

/// Reads blocks from the one that holds this number on.
fn blocks(path: &Path, transaction: &redb::ReadTransaction, at: u64, bytes_max: usize) -> Result<Read, StoreError> {
    let of = |error: redb::Error| StoreError::of(path, error);
    let table = transaction.open_table(BLOCKS).map_err(|error| of(error.into()))?;
    let (mut pieces, mut total, mut bytes) = (Vec::new(), 0, 0);
    let first = table.range(..=at).map_err(|error| of(error.into()))?.next_back();
    let Some(first) = first else { return Err(StoreError::damaged(path, format_args!("chunk {at} is not there"))) };
    let mut key = first.map_err(|error| of(error.into()))?.0.value();
    let mut next = at;
    while bytes == 0 || bytes < bytes_max {
        let Some(value) = table.get(key).map_err(|error| of(error.into()))? else { break };
        let block = Block::read(value.value())
            .ok_or_else(|| StoreError::damaged(path, format_args!("the block that begins with chunk {key} is damaged")))?;
        let end = key + u64::from(block.count);
        let skipped = next - key;
        let frames = skip_frames(&Bytes::copy_from_slice(block.frames), skipped);
        let missing =
            || StoreError::damaged(path, format_args!("the block that begins with chunk {key} does not hold chunk {next}"));
        let frames = frames.filter(|_| next < end).ok_or_else(missing)?;
        bytes += frames.len();
        total += end - next;
        pieces.push(frames);
        (key, next) = (end, end);
    }
    Ok(Read::Chunks(pieces, total))
}

/// Chunks as they are kept.
struct Block<'a> {
    count: u32,
    time_ms: u64,
    frames: &'a [u8],
}

impl<'a> Block<'a> {
    fn write(segments: &[&Segment], bytes: usize, now_ms: u64) -> Vec<u8> {
        let count: u64 = segments.iter().map(|segment| segment.count).sum();
        let mut block = Vec::with_capacity(HEAD_BYTES + bytes);
        block.extend_from_slice(&[0; 4]);
        block.extend_from_slice(&now_ms.to_le_bytes());
        block.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        segments.iter().for_each(|segment| block.extend_from_slice(&segment.frames));
        let checksum = crc32fast::hash(&block[4..]);
        block[..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// What is before the frames, unchecked.
    fn head(bytes: &'a [u8]) -> Self {
        let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
        let mut time_ms = [0; 8];
        let mut count = [0; 4];
        time_ms.iter_mut().zip(part(4, 12)).for_each(|(to, from)| *to = *from);
        count.iter_mut().zip(part(12, HEAD_BYTES)).for_each(|(to, from)| *to = *from);
        let frames = bytes.get(HEAD_BYTES..).unwrap_or_default();
        Self { count: u32::from_le_bytes(count), time_ms: u64::from_le_bytes(time_ms), frames }
    }

    /// `None` if it is damaged.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (checksum, rest) = bytes.split_first_chunk::<4>()?;
        let whole = crc32fast::hash(rest) == u32::from_le_bytes(*checksum) && bytes.len() >= HEAD_BYTES;
        whole.then(|| Self::head(bytes)).filter(|block| block.count > 0)
    }
}
