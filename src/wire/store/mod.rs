//! The log of a persistent wire: one redb database in a file of its own. What it says is stored is on disk; what it cannot read it
//! says so of, and names the file. It waits for the disk, so it is not for asynchronous threads, and knows nobody who reads or
//! publishes.
//!
//! Chunks are kept in blocks, keyed by the number of their first, each with a checksum (CRC-32) over all of it. One transaction stores a
//! batch: its blocks, how far its publishers have got, and what goes because it is too old or too much. When the disk has failed, the
//! file is opened again before it is used again: then it is known what became of the last commit.

mod block;
mod commit;
mod error;
mod file;
mod tables;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redb::{Database, ReadTransaction, ReadableDatabase};

use self::error::Failure;
pub use self::error::{AppendError, StoreError};
use self::file::Place;
pub use self::file::{file_name, remove};
pub use self::tables::Held;
use self::tables::{FORMAT, Meta};
use crate::proto::limits;
use crate::proto::wire::{Options, PublisherId};
use crate::state::wire::{Read, Segment};

/// A database that failed is opened again after this, not sooner.
const REOPEN: Duration = Duration::from_millis(500);

/// Chunks of one publisher that are to be stored.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who published them.
    pub publisher: PublisherId,
    /// They follow what is stored of this publisher.
    pub segment: Segment,
}

/// The log of a wire, on disk. It can be read while something is stored.
#[derive(Debug)]
pub struct Store {
    place: Place,
    meta: Meta,
    /// Held by whoever changes what is stored or opens the file. Taken before `slot`.
    writer: Mutex<Writer>,
    /// Held for a moment only, except by whoever stores, who shares it.
    slot: RwLock<Slot>,
    /// Nothing is stored when fewer bytes are free beside it.
    free_least: u64,
    /// Set for good: what is in the file cannot be trusted.
    damaged: OnceLock<String>,
}

#[derive(Debug)]
struct Writer {
    held: Held,
    /// When it could not be opened.
    failed: Option<Instant>,
    closed: bool,
}

#[derive(Debug)]
struct Slot {
    database: Option<Opened>,
    /// How often it was opened.
    number: u64,
}

impl Store {
    /// Makes a wire's file in this directory. Its name there is made from the wire's.
    ///
    /// # Errors
    /// [`StoreError`]; then there is no file, or it was there before.
    pub fn create(directory: &Path, name: &str, options: Options, epoch: u64) -> Result<Self, StoreError> {
        let meta = Meta { format: FORMAT, name: name.to_owned(), options, epoch };
        let path = directory.join(file_name(name));
        file::make(&path, |database| guarded(&path, || tables::fill(database, &meta)))?;
        Self::open(&path)
    }

    /// Opens a wire's file.
    ///
    /// # Errors
    /// [`StoreError`]: it names the file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self::at(Place::File(path.to_owned()))?;
        let expected = file_name(store.name());
        // Two files of one wire would be two logs of one name.
        match path.file_name().is_some_and(|name| *name == *expected) {
            true => Ok(store),
            false => Err(StoreError::Misnamed { path: path.to_owned(), wire: store.name().to_owned(), expected }),
        }
    }

    fn at(place: Place) -> Result<Self, StoreError> {
        let (opened, meta, held) = open(&place)?;
        let writer = Mutex::new(Writer { held, failed: None, closed: false });
        let slot = RwLock::new(Slot { database: Some(opened), number: 0 });
        Ok(Self { place, meta, writer, slot, free_least: limits::WIRE_DISK_FREE_BYTES, damaged: OnceLock::new() })
    }

    /// The same, that takes nothing when fewer bytes are free beside it.
    pub fn leaving(self, free_least: u64) -> Self {
        Self { free_least, ..self }
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

    /// What is stored. Waits for what is being stored.
    pub fn held(&self) -> Held {
        self.writer().held.clone()
    }

    /// Stores chunks, in this order: they are on disk when this returns. Says the number of the first.
    ///
    /// # Errors
    /// [`AppendError`]: nothing of them is stored, unless it says that this is not known.
    pub fn append(&self, batches: &[Batch], now_ms: u64) -> Result<u64, AppendError> {
        let mut writer = self.writer();
        self.ready(&mut writer)?;
        self.place.has_room(self.free_least)?;
        let committed = {
            let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
            let database = slot.database.as_ref().and_then(Opened::get);
            let Some(database) = database else { return Err(AppendError::Uncertain("not open".into())) };
            guarded(self.path(), || commit::commit(database, &writer.held, &self.meta.options, batches, now_ms))
        };
        match committed {
            Ok(change) => {
                let first = writer.held.next;
                writer.held.apply(change);
                Ok(first)
            }
            Err(error) => self.failed(&mut writer, error),
        }
    }

    /// An append has failed: the file is opened anew, which tells whether it has.
    fn failed(&self, writer: &mut Writer, error: StoreError) -> Result<u64, AppendError> {
        tracing::warn!(%error, "a wire's store has failed");
        self.shut();
        if error.is_damage() {
            return Err(self.condemn(&error));
        }
        let (next, commits) = (writer.held.next, writer.held.commits);
        writer.failed = None;
        self.ready(writer)?;
        match writer.held.commits.checked_sub(commits) {
            Some(0) if error.is_full() => Err(AppendError::Full(error.to_string())),
            Some(0) => Err(AppendError::Failed(error.to_string())),
            Some(1) => Ok(next),
            _ => Err(self.condemn(&StoreError::damaged(self.path(), "it is not what was written"))),
        }
    }

    /// What is stored from this number on, about so many bytes, at least one block. Does not wait for what is being stored.
    ///
    /// # Errors
    /// [`StoreError`]: it names the file, and the chunk.
    pub fn read(&self, at: u64, bytes_max: usize) -> Result<Read, StoreError> {
        let mut again = true;
        loop {
            let (number, begun) = self.begin_read()?;
            let read = guarded(self.path(), || tables::read(&begun?, at, bytes_max));
            match read {
                Err(error) if error.is_damage() => {
                    self.condemn(&error);
                    return Err(error);
                }
                // The disk failed, here or in an append beside this: the file is opened again.
                Err(_) if std::mem::take(&mut again) => self.give_up(number),
                read => return read,
            }
        }
    }

    /// Begins to read; says of which opening.
    fn begin_read(&self) -> Result<(u64, Result<ReadTransaction, StoreError>), StoreError> {
        for _ in 0..2 {
            if let Some(why) = self.damaged.get() {
                return Err(StoreError::damaged(self.path(), why));
            }
            let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(database) = slot.database.as_ref().and_then(Opened::get) {
                return Ok((slot.number, guarded(self.path(), || Ok(database.begin_read()?))));
            }
            drop(slot);
            self.ready(&mut self.writer()).map_err(|error| StoreError::unusable(self.path(), error.to_string()))?;
        }
        Err(StoreError::unusable(self.path(), "it fails again and again".into()))
    }

    /// Closes what this opening has opened, unless it is closed already.
    fn give_up(&self, number: u64) {
        let _alone = self.writer();
        let is_open = self.slot.read().unwrap_or_else(PoisonError::into_inner).number == number;
        if is_open {
            self.shut();
        }
    }

    /// Opens what has failed again, unless that was tried just now.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn recover(&self) -> Result<Held, AppendError> {
        let mut writer = self.writer();
        self.ready(&mut writer)?;
        Ok(writer.held.clone())
    }

    /// Closes the file for good. Waits for what is being stored.
    pub fn close(&self) {
        let mut writer = self.writer();
        writer.closed = true;
        self.shut();
    }

    /// Opens the file if it is not open.
    fn ready(&self, writer: &mut Writer) -> Result<(), AppendError> {
        if let Some(why) = self.damaged.get() {
            return Err(AppendError::Damaged(why.clone()));
        }
        if writer.closed {
            return Err(AppendError::Failed(format!("{} is closed: its node has gone down", self.path().display())));
        }
        if self.slot.read().unwrap_or_else(PoisonError::into_inner).database.is_some() {
            return Ok(());
        }
        if writer.failed.is_some_and(|failed| failed.elapsed() < REOPEN) {
            return Err(AppendError::Uncertain(format!("{} has failed just now", self.path().display())));
        }
        match open(&self.place) {
            Ok((_, meta, _)) if meta != self.meta => {
                Err(self.condemn(&StoreError::damaged(self.path(), "another wire is in its place")))
            }
            Ok((opened, _, held)) => {
                let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
                *slot = Slot { database: Some(opened), number: slot.number + 1 };
                (writer.held, writer.failed) = (held, None);
                Ok(())
            }
            Err(error) if error.is_damage() => Err(self.condemn(&error)),
            Err(error) => {
                writer.failed = Some(Instant::now());
                Err(AppendError::Uncertain(error.to_string()))
            }
        }
    }

    fn shut(&self) {
        let opened = self.slot.write().unwrap_or_else(PoisonError::into_inner).database.take();
        drop(opened);
    }

    /// It is not used any more until somebody has looked after it.
    fn condemn(&self, error: &StoreError) -> AppendError {
        let text = error.to_string();
        if self.damaged.set(text.clone()).is_ok() {
            tracing::error!(%error, "a wire's store is damaged");
        }
        AppendError::Damaged(text)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file, and the wire in it, or why there is none.
pub type Found = (PathBuf, Result<Store, StoreError>);

/// Opens all wires in this directory, which is made if there is none. Those that cannot be opened are there with the reason.
///
/// # Errors
/// The directory cannot be made or read.
pub fn open_all(directory: &Path) -> Result<Vec<Found>, StoreError> {
    let paths = file::all(directory)?;
    Ok(paths.into_iter().map(|path| (path.clone(), Store::open(&path))).collect())
}

/// An open database. redb writes when it is closed, and what it finds then may be damaged too.
#[derive(Debug)]
struct Opened(Option<Database>);

impl Opened {
    fn get(&self) -> Option<&Database> {
        self.0.as_ref()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let database = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::error!("closing a wire's store has failed in a way that only damage explains");
        }
    }
}

fn open(place: &Place) -> Result<(Opened, Meta, Held), StoreError> {
    guarded(place.path(), || {
        let opened = Opened(Some(place.open()?));
        let (meta, held) = opened.get().map(tables::look).transpose()?.ok_or_else(|| Failure::damaged("it is not open"))?;
        Ok((opened, meta, held))
    })
}

/// redb answers some damage with a panic: here it is an error like any other. The database is not used again.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(worked) => worked.map_err(|failure| StoreError::of(path, failure)),
        Err(_) => Err(StoreError::damaged(path, "using it failed in a way that only damage explains")),
    }
}
