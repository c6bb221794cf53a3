//! The file of the store: making it, opening it for the one process that writes, and reading it beside that process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Builder, Database, DatabaseError, StorageBackend, StorageError};

use super::error::{StoreError, damaged};
use crate::node::home::private;

/// What redb may keep in memory, in bytes: the whole store of most nodes.
const CACHE_BYTES: usize = 4 << 20;
/// Largest store that is copied to be read, in bytes. 10,000 peers need less than a tenth of it.
const COPY_BYTES: u64 = 256 << 20;
/// How often a copy is made anew when the node wrote while it was being made.
const COPIES: usize = 8;

/// Opens the store for writing, making it with `fill` if there is none. One process can.
pub(super) fn open(path: &Path, fill: impl FnOnce(&Database) -> Result<(), StoreError>) -> Result<Database, StoreError> {
    if !exists(path)? {
        make(path, fill)?;
    }
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open", path))?;
    check(path, &file)?;
    let backend = FileBackend::new(file).map_err(|error| refused(path, error))?;
    builder().create_with_backend(backend).map_err(|error| refused(path, error))
}

/// Reads the store as it was at one moment, without a lock and without writing a byte: from a copy in memory, which redb
/// repairs if the process that wrote was killed, and whose checksums show if that process wrote meanwhile.
pub(super) fn snapshot(path: &Path, fill: impl FnOnce(&Database) -> Result<(), StoreError>) -> Result<Database, StoreError> {
    if !exists(path)? {
        let empty = builder().create_with_backend(InMemoryBackend::new()).map_err(|error| refused(path, error))?;
        fill(&empty)?;
        return Ok(empty);
    }
    let mut tries = COPIES;
    loop {
        tries -= 1;
        match builder().create_with_backend(copy(path)?).map_err(|error| refused(path, error)) {
            Err(StoreError::Damaged { .. }) if tries > 0 => {}
            result => return result,
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    // Without the check redb trusts a file that was closed properly, and may panic if something else has changed it since.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// A new store appears whole or not at all: it is filled under another name.
fn make(path: &Path, fill: impl FnOnce(&Database) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &draft)(error)),
        _ => {}
    }
    let result = fill_draft(&draft, fill).and_then(|()| put(&draft, path).map_err(failed("make", path)));
    let _ = fs::remove_file(&draft);
    result
}

fn fill_draft(draft: &Path, fill: impl FnOnce(&Database) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(draft).map_err(failed("make", draft))?;
    let backend = FileBackend::new(file).map_err(|error| refused(draft, error))?;
    let database = builder().create_with_backend(backend).map_err(|error| refused(draft, error))?;
    fill(&database)
}

/// Gives the draft its name, unless another process was first: then that one's store is the store.
fn put(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Not every file system has links.
        Err(_) => fs::rename(draft, path),
        Ok(()) => Ok(()),
    }?;
    private::sync_parent(path)
}

fn copy(path: &Path) -> Result<InMemoryBackend, StoreError> {
    let mut file = File::open(path).map_err(failed("open", path))?;
    check(path, &file)?;
    let mut bytes = Vec::new();
    file.by_ref().take(COPY_BYTES + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > COPY_BYTES {
        return Err(damaged(path, format!("it is larger than {COPY_BYTES} bytes")));
    }
    let backend = InMemoryBackend::new();
    let filled = backend.set_len(bytes.len() as u64).and_then(|()| backend.write(0, &bytes));
    filled.map_err(|error| damaged(path, format!("{error:?}")))?;
    Ok(backend)
}

/// Refuses what others can read or write, and an empty file, in which redb would start anew.
fn check(path: &Path, file: &File) -> Result<(), StoreError> {
    let metadata = file.metadata().map_err(failed("look at", path))?;
    private::check_owner(path, &metadata)?;
    if !metadata.is_file() || metadata.len() == 0 { Err(damaged(path, "it is empty".to_owned())) } else { Ok(()) }
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(failed("look at", path))
}

fn refused(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => StoreError::Busy { path: path.to_owned() },
        DatabaseError::UpgradeRequired(format) => StoreError::Format { path: path.to_owned(), format: u64::from(format) },
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => damaged(path, error.to_string()),
            _ => failed("use", path)(error),
        },
        other => damaged(path, other.to_string()),
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}
