//! A file that remembers where a subscription has got to: read when it begins, written when what came before is written out.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use voltmesh::local::Failure;
use voltmesh::wire::Cursor;

/// Written at most so often while chunks come.
const EVERY: Duration = Duration::from_millis(200);

/// Where a subscription begins, and where that is kept, if anywhere.
#[derive(Debug)]
pub struct CursorFile {
    path: PathBuf,
    written: Option<Cursor>,
    at: Option<Instant>,
}

impl CursorFile {
    /// Reads the file, if it is there.
    pub fn open(path: PathBuf) -> Result<(Self, Option<Cursor>), Failure> {
        let cursor = match fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().parse().map_err(|error| {
                Failure::usage(format!("{}: {error}", path.display()))
                    .hint("remove the file to begin with the oldest that is kept")
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::local(format!("cannot read {}: {error}", path.display()))),
        };
        let file = Self { path, written: cursor, at: None };
        // That it cannot be written is to be known now, not when it matters.
        if let Some(cursor) = cursor {
            file.write(cursor)?;
        }
        Ok((file, cursor))
    }

    /// Everything up to here is written out.
    pub fn reached(&mut self, cursor: Cursor) -> Result<(), Failure> {
        let due = self.at.is_none_or(|at| at.elapsed() >= EVERY);
        if due { self.keep(cursor) } else { Ok(()) }
    }

    /// The same, and nothing more comes for now.
    pub fn keep(&mut self, cursor: Cursor) -> Result<(), Failure> {
        if self.written != Some(cursor) {
            self.write(cursor)?;
            (self.written, self.at) = (Some(cursor), Some(Instant::now()));
        }
        Ok(())
    }

    /// After a crash the old content is there or the new one.
    fn write(&self, cursor: Cursor) -> Result<(), Failure> {
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        let written = fs::write(&draft, format!("{cursor}\n")).and_then(|()| fs::rename(&draft, &self.path));
        written.map_err(|error| Failure::local(format!("cannot write {}: {error}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_found_again_and_nonsense_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("at");
        let (mut file, none) = CursorFile::open(path.clone()).unwrap();
        assert_eq!(none, None);
        let cursor = Cursor { epoch: 3, seq: 9 };
        file.keep(cursor).unwrap();
        assert_eq!(CursorFile::open(path.clone()).unwrap().1, Some(cursor));
        fs::write(&path, "here").unwrap();
        assert!(CursorFile::open(path).unwrap_err().message.contains("at: "));
    }
}
