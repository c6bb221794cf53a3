//! Files that only their owner may read: made whole or not at all, never over another, and never trusted when others could
//! have read or changed them. It knows nothing of what they hold.
//!
//! A file is 0600 in a 0700 directory, both of the user who runs this. Who owns the directories above is not looked at.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use super::keyfile::KeyFileProblem::{self as Problem, Exists, Io, Missing, NotAFile, NotOurs, Symlink, TooOpen};

/// Makes the file with these bytes, and its directory where there is none. Never replaces a file.
///
/// A crash leaves either no file or the whole one: it is written and synced under another name, then linked.
pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<(), Problem> {
    let directory = directory(path);
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(Io)?;
    check_directory(directory)?;
    let temporary = Temporary::create(path)?;
    temporary.fill(bytes).map_err(Io)?;
    fs::hard_link(&temporary.0, path).map_err(|e| if e.kind() == ErrorKind::AlreadyExists { Exists } else { Io(e) })?;
    drop(temporary);
    File::open(directory).and_then(|d| d.sync_all()).map_err(Io)
}

/// Reads a file of at most `bytes_max` bytes, of which others can neither read nor write anything. `None`: it is longer.
pub(super) fn read(path: &Path, bytes_max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, Problem> {
    let named = fs::symlink_metadata(path).map_err(missing)?;
    // Before opening: opening a pipe would wait for its writer.
    check_file(&named)?;
    check_directory(directory(path))?;
    let mut file = File::open(path).map_err(missing)?;
    let opened = file.metadata().map_err(Io)?;
    check_file(&opened)?;
    if (opened.dev(), opened.ino()) != (named.dev(), named.ino()) {
        return Err(Io(io::Error::other("it was replaced while it was being opened; try again")));
    }
    read_at_most(&mut file, bytes_max).map_err(Io)
}

/// Reads without the buffer ever growing, so that no piece of the secret is left behind in freed memory.
fn read_at_most(file: &mut File, bytes_max: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(vec![0; bytes_max + 1]);
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok((filled <= bytes_max).then_some(bytes))
}

fn missing(error: io::Error) -> Problem {
    if error.kind() == ErrorKind::NotFound { Missing } else { Io(error) }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check_file(file: &Metadata) -> Result<(), Problem> {
    if file.is_symlink() {
        Err(Symlink)
    } else if !file.is_file() {
        Err(NotAFile)
    } else {
        check_owner_and_mode(file, |mode| TooOpen { mode })
    }
}

fn check_directory(directory: &Path) -> Result<(), Problem> {
    let metadata = fs::metadata(directory).map_err(Io)?;
    check_owner_and_mode(&metadata, |mode| Problem::DirectoryTooOpen { directory: directory.to_owned(), mode })
}

fn check_owner_and_mode(metadata: &Metadata, too_open: impl FnOnce(u32) -> Problem) -> Result<(), Problem> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != own_uid().map_err(Io)? {
        Err(NotOurs { owner })
    } else if mode & 0o077 != 0 {
        Err(too_open(mode))
    } else {
        Ok(())
    }
}

/// The user we act as. A pipe belongs to whoever makes it, which spares us a dependency for one system call.
fn own_uid() -> io::Result<u32> {
    let (reader, _writer) = io::pipe()?;
    Ok(File::from(OwnedFd::from(reader)).metadata()?.uid())
}

/// A file under a name of its own, removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn create(path: &Path) -> Result<Self, Problem> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
        let name = path.file_name().ok_or(NotAFile)?.to_string_lossy();
        let temporary = directory(path).join(format!(".{name}.{}", HEXLOWER.encode(&random)));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(Io)?;
        Ok(Self(temporary))
    }

    fn fill(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.0)?;
        file.write_all(bytes)?;
        file.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // If this fails the file stays: 0600 in a 0700 directory, and nothing reads it.
        let _ = fs::remove_file(&self.0);
    }
}
