//! The files of a journal: one that is written, and some from before, each with a bound. It appends and renames, and reads nothing but
//! the last byte.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Most files a journal may be told to have.
pub const FILES_MAX: usize = 100;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of one file.
    pub bytes: u64,
    /// Files, the one that is written among them; at least 2.
    pub files: usize,
}

/// Why there can be no journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// What is there is not a file of this node's.
    #[error("the journal cannot be kept in {}, which {what}: move it away, and start again", path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The system failed us.
    #[error("the journal cannot be kept in {}: {source}; see to it that this user can write there, and start again", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The files.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    bounds: Bounds,
    /// None after a failure: opened again before it is written again.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

impl Files {
    /// Opens the file to be written, making it (mode 0600) if there is none. Follows no link. Files beyond the bound go.
    pub fn open(directory: &Path, bounds: Bounds) -> Result<Self, JournalError> {
        let open = Open::at(&path(directory, 0))?;
        for beyond in bounds.files..=FILES_MAX {
            // One that cannot be removed does no harm but to the bound.
            let _ = fs::remove_file(path(directory, beyond));
        }
        Ok(Self { directory: directory.to_owned(), bounds, open: Some(open) })
    }

    /// Adds whole lines; those that would make the file too large begin the next one. Says how many were written before it failed, if it
    /// did: of the others there is nothing.
    pub fn append(&mut self, lines: &[Vec<u8>]) -> (usize, Result<(), JournalError>) {
        let mut written = 0;
        while written < lines.len() {
            let most = self.bounds.bytes;
            let appended = self.current(lines[written].len()).and_then(|open| {
                let mut room = most.saturating_sub(open.bytes);
                let fits = |line: &&Vec<u8>| room.checked_sub(line.len() as u64).inspect(|left| room = *left).is_some();
                // One that is too large for any file is not there: entries are bounded far below that.
                let count = lines[written..].iter().take_while(fits).count().max(1);
                open.append(&lines[written..written + count].concat()).map(|()| count)
            });
            match appended {
                Ok(count) => written += count,
                Err(source) => {
                    self.open = None;
                    return (written, Err(source.at(&path(&self.directory, 0))));
                }
            }
        }
        (written, Ok(()))
    }

    /// Has the disk keep what was written.
    pub fn sync(&self) {
        // There is nowhere left to write that this failed.
        let _ = self.open.as_ref().map(|open| open.file.sync_data());
    }

    /// The file with room for so many bytes.
    fn current(&mut self, bytes: usize) -> Result<&mut Open, Failed> {
        // Somebody has removed it: what is written to it now nobody would find.
        if self.open.as_ref().is_some_and(|open| open.file.metadata().is_ok_and(|found| found.nlink() == 0)) {
            self.open = None;
        }
        if self.open.as_ref().is_some_and(|open| open.bytes > 0 && open.bytes + bytes as u64 > self.bounds.bytes) {
            self.sync();
            self.open = None;
            self.rotate()?;
        }
        if self.open.is_none() {
            let open = Open::at(&path(&self.directory, 0)).map_err(Failed::Told)?;
            let full = open.bytes > 0 && open.bytes + bytes as u64 > self.bounds.bytes;
            self.open = Some(open);
            if full {
                return self.current(bytes);
            }
        }
        self.open.as_mut().ok_or_else(|| Failed::Io(ErrorKind::NotFound.into()))
    }

    /// Each file takes the place of the one before it; the oldest goes.
    fn rotate(&self) -> Result<(), Failed> {
        for number in (1..self.bounds.files).rev() {
            match fs::rename(path(&self.directory, number - 1), path(&self.directory, number)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Failed::Io(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

enum Failed {
    Told(JournalError),
    Io(io::Error),
}

impl Failed {
    fn at(self, path: &Path) -> JournalError {
        match self {
            Self::Told(error) => error,
            Self::Io(source) => JournalError::Io { path: path.to_owned(), source },
        }
    }
}

impl Open {
    fn at(path: &Path) -> Result<Self, JournalError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => in_the_way(path, "is a link"),
            _ => JournalError::Io { path: path.to_owned(), source },
        };
        // Without waiting: a pipe would wait for its reader.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(flags.bits().cast_signed());
        let mut file = options.open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(in_the_way(path, "is no plain file"));
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(in_the_way(path, "belongs to another user"));
        }
        if found.mode() & 0o077 != 0 {
            return Err(in_the_way(path, "others can read or change"));
        }
        let mut bytes = found.len();
        if ends_within_a_line(&mut file, bytes).map_err(failed)? {
            file.write_all(b"\n").map_err(failed)?;
            bytes += 1;
        }
        Ok(Self { file, bytes })
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), Failed> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.bytes += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line is taken back; where that fails, it is ended when the file is opened again.
                let _ = self.file.set_len(self.bytes);
                Err(Failed::Io(error))
            }
        }
    }
}

/// Whether a process was killed while it wrote a line.
fn ends_within_a_line(file: &mut File, bytes: u64) -> io::Result<bool> {
    if bytes == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn in_the_way(path: &Path, what: &'static str) -> JournalError {
    JournalError::InTheWay { path: path.to_owned(), what }
}

/// Where a file of a journal is: number 0 is the one that is written, 1 the one before it, and so on.
pub fn path(directory: &Path, number: usize) -> PathBuf {
    directory.join(if number == 0 { "journal.jsonl".to_owned() } else { format!("journal.{number}.jsonl") })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1_000, files: 3 };

    fn lines(from: usize, count: usize) -> Vec<Vec<u8>> {
        (from..from + count).map(|n| format!("{{\"n\":{}}}\n", 10_000 + n).into_bytes()).collect()
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap() - 10_000)
            .collect()
    }

    #[test]
    fn so_many_bytes_are_kept_and_no_more_and_every_line_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path(), BOUNDS).unwrap();
        for n in 0..200 {
            let (written, done) = files.append(&lines(n * 10, 10));
            assert_eq!((written, done.is_ok()), (10, true));
        }
        let mut kept = Vec::new();
        for number in (0..BOUNDS.files).rev() {
            assert!(fs::metadata(path(dir.path(), number)).unwrap().len() <= BOUNDS.bytes);
            assert_eq!(fs::metadata(path(dir.path(), number)).unwrap().mode() & 0o777, 0o600);
            kept.extend(numbers(&path(dir.path(), number)));
        }
        let expected: Vec<u64> = (2_000 - kept.len() as u64..2_000).collect();
        assert_eq!(kept, expected, "the newest, in order, without a gap");
        assert!(!path(dir.path(), BOUNDS.files).exists());
        // Fewer are asked for: the oldest goes.
        drop(Files::open(dir.path(), Bounds { files: 2, ..BOUNDS }).unwrap());
        assert!(!path(dir.path(), 2).exists());
    }

    #[test]
    fn half_a_line_that_a_crash_left_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let now = path(dir.path(), 0);
        fs::write(&now, "{\"n\":1}\n{\"n\":").unwrap();
        fs::set_permissions(&now, fs::Permissions::from_mode(0o600)).unwrap();
        let mut files = Files::open(dir.path(), BOUNDS).unwrap();
        assert!(files.append(&lines(3, 1)).1.is_ok());
        assert_eq!(fs::read_to_string(&now).unwrap(), "{\"n\":1}\n{\"n\":\n{\"n\":10003}\n");
        // And what was whole stays as it is.
        drop(Files::open(dir.path(), BOUNDS).unwrap());
        assert_eq!(fs::read_to_string(&now).unwrap().lines().count(), 3);
    }

    #[test]
    fn a_file_that_was_removed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path(), BOUNDS).unwrap();
        assert!(files.append(&lines(0, 1)).1.is_ok());
        fs::remove_file(path(dir.path(), 0)).unwrap();
        assert!(files.append(&lines(1, 1)).1.is_ok());
        assert_eq!(numbers(&path(dir.path(), 0)), [1]);
    }

    #[test]
    fn what_is_in_the_way_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let (now, elsewhere) = (path(dir.path(), 0), dir.path().join("elsewhere"));
        let refused = || Files::open(dir.path(), BOUNDS).unwrap_err().to_string();
        symlink(&elsewhere, &now).unwrap();
        assert!(refused().contains("journal.jsonl, which is a link: move it away"), "{}", refused());
        fs::write(&elsewhere, "").unwrap();
        assert!(refused().contains("is a link"));
        assert_eq!(fs::read(&elsewhere).unwrap(), b"");
        fs::remove_file(&now).unwrap();
        fs::create_dir(&now).unwrap();
        assert!(refused().contains("the journal cannot be kept in"), "{}", refused());
        fs::remove_dir(&now).unwrap();
        fs::write(&now, "").unwrap();
        fs::set_permissions(&now, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refused().contains("others can read or change"));
        let missing = Files::open(&dir.path().join("no"), BOUNDS).unwrap_err();
        assert!(matches!(missing, JournalError::Io { .. }), "{missing}");
    }

    #[test]
    fn after_a_failure_it_goes_on_where_there_is_a_file_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path(), Bounds { files: 2, ..BOUNDS }).unwrap();
        assert!(files.append(&lines(0, 83)).1.is_ok());
        // What is in the way of the rotation: the file cannot be renamed.
        fs::create_dir_all(path(dir.path(), 1).join("full")).unwrap();
        let (written, failed) = files.append(&lines(83, 1));
        assert_eq!(written, 0);
        assert!(failed.is_err());
        assert!(fs::metadata(path(dir.path(), 0)).unwrap().len() <= BOUNDS.bytes);
        fs::remove_dir_all(path(dir.path(), 1)).unwrap();
        assert!(files.append(&lines(91, 1)).1.is_ok());
        assert_eq!(numbers(&path(dir.path(), 0)), [91]);
        assert_eq!(numbers(&path(dir.path(), 1)).len(), 83);
    }
}
