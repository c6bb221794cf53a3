//! Where a wire's file is: its name, making it, opening it for the one process that may.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use redb::backends::FileBackend;
use redb::{Builder, Database};

use super::error::{AppendError, StoreError};

/// What redb may keep in memory of one wire, in bytes. The newest chunks are in the ring; old ones are read in order.
const CACHE_BYTES: usize = 2 << 20;
const SUFFIX: &str = "wire.redb";

/// Where a database is.
#[derive(Debug)]
pub(super) enum Place {
    File(PathBuf),
    #[cfg(test)]
    Test(PathBuf, super::tests::Disk),
}

impl Place {
    pub fn path(&self) -> &Path {
        match self {
            Place::File(path) => path,
            #[cfg(test)]
            Place::Test(path, _) => path,
        }
    }

    pub fn open(&self) -> Result<Database, StoreError> {
        match self {
            Place::File(path) => open(path),
            #[cfg(test)]
            Place::Test(path, disk) => {
                let database = builder().create_with_backend(disk.plugged_in());
                database.map_err(|error| StoreError::of(path, error))
            }
        }
    }

    /// Whether the disk has room to spare.
    pub fn has_room(&self, least: u64) -> Result<(), AppendError> {
        #[cfg(test)]
        if let Place::Test(..) = self {
            return Ok(());
        }
        let path = self.path();
        let Ok(disk) = rustix::fs::statvfs(path) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= least {
            return Ok(());
        }
        let (free, least) = (free >> 20, least >> 20);
        Err(AppendError::Full(format!("{free} MiB are free beside {}, and {least} MiB are left to others", path.display())))
    }
}

/// The name of a wire's file: what can be kept of the wire's name, for people, and a hash, so that no two are the same on any file
/// system.
pub fn file_name(name: &str) -> String {
    let plain: String = name.chars().take(40).map(|c| if c == '/' || c == '.' { '_' } else { c.to_ascii_lowercase() }).collect();
    let hash = digest(&SHA256, name.as_bytes());
    let hash = data_encoding::HEXLOWER.encode(&hash.as_ref()[..8]);
    format!("{plain}-{hash}.{SUFFIX}")
}

/// The files of wires in this directory, which is made if there is none.
pub(super) fn all(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(StoreError::io("make", directory)(error)),
        _ => {}
    }
    is_no_link(directory)?;
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(StoreError::io("read", directory))? {
        let path = entry.map_err(StoreError::io("read", directory))?.path();
        if path.to_str().is_some_and(|path| path.ends_with(SUFFIX)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What is kept in the home stays there: whoever put a link there could have us write anywhere.
fn is_no_link(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            let why = "it is a link, and wires are kept in the home itself: remove it, or mount there what it leads to";
            Err(StoreError::io("use", path)(io::Error::other(why)))
        }
        _ => Ok(()),
    }
}

/// Removes a wire's file, if it is there.
///
/// # Errors
/// [`StoreError`].
pub fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A new file appears whole or not at all: it is filled under another name.
pub(super) fn make(path: &Path, fill: impl FnOnce(&Database) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let draft = path.with_extension("draft");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("remove", &draft)(error)),
        _ => {}
    }
    let made = fill_draft(&draft, fill).and_then(|()| put(&draft, path).map_err(StoreError::io("make", path)));
    if made.is_err() {
        let _ = fs::remove_file(&draft);
    }
    made
}

fn fill_draft(draft: &Path, fill: impl FnOnce(&Database) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(draft);
    let backend = FileBackend::new(file.map_err(StoreError::io("make", draft))?);
    let backend = backend.map_err(|error| StoreError::of(draft, error))?;
    let database = builder().create_with_backend(backend).map_err(|error| StoreError::of(draft, error))?;
    fill(&database)
}

fn put(draft: &Path, path: &Path) -> io::Result<()> {
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(draft, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    is_no_link(path)?;
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(StoreError::io("open", path))?;
    let length = file.metadata().map_err(StoreError::io("look at", path))?.len();
    // redb would begin anew in an empty one.
    if length == 0 {
        return Err(StoreError::damaged(path, "it is empty"));
    }
    let backend = FileBackend::new(file).map_err(|error| StoreError::of(path, error))?;
    builder().create_with_backend(backend).map_err(|error| StoreError::of(path, error))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}
