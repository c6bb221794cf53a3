//! Reading a journal, beside the node that writes it or without one: the last lines, and those that are added. It changes nothing.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file::{FILES_MAX, path};

/// Reads a journal from some line on.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    /// The file that is written, as far as it was read.
    file: Option<BufReader<File>>,
    /// A line of which the end is not there yet.
    begun: Vec<u8>,
}

impl Reader {
    /// The last lines, at most so many, and what reads on behind them. Without a journal there are none.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn last(directory: &Path, most: usize) -> io::Result<(Vec<String>, Self)> {
        let mut reader = Self { directory: directory.to_owned(), file: None, begun: Vec::new() };
        let mut lines = reader.more()?;
        for number in 1..=FILES_MAX {
            if lines.len() >= most {
                break;
            }
            let text = match fs::read(path(directory, number)) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let before = String::from_utf8_lossy(&text);
            lines = before.lines().map(str::to_owned).chain(lines).collect();
        }
        lines.drain(..lines.len().saturating_sub(most));
        Ok((lines, reader))
    }

    /// Whole lines that were added since; empty if there are none.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn more(&mut self) -> io::Result<Vec<String>> {
        let mut lines = self.rest()?;
        // Once the file was renamed nothing is added to it.
        if self.is_renamed()? {
            lines.extend(self.rest()?);
            self.file = match File::open(path(&self.directory, 0)) {
                Ok(file) => Some(BufReader::new(file)),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            lines.extend(self.rest()?);
        }
        Ok(lines)
    }

    fn rest(&mut self) -> io::Result<Vec<String>> {
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        let mut lines = Vec::new();
        while file.by_ref().read_until(b'\n', &mut self.begun)? > 0 && self.begun.ends_with(b"\n") {
            self.begun.pop();
            lines.push(String::from_utf8_lossy(&self.begun).into_owned());
            self.begun.clear();
        }
        Ok(lines)
    }

    /// Whether another file is written now than the one that is read.
    fn is_renamed(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        match fs::metadata(path(&self.directory, 0)) {
            Ok(now) => Ok(now.ino() != file.get_ref().metadata()?.ino()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn add(directory: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path(directory, 0)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_last_lines_come_from_as_many_files_as_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Reader::last(dir.path(), 5).unwrap().0.is_empty());
        fs::write(path(dir.path(), 2), "1\n2\n").unwrap();
        fs::write(path(dir.path(), 1), "3\n4\n").unwrap();
        add(dir.path(), "5\n6\n");
        let last = |most| Reader::last(dir.path(), most).unwrap().0.concat();
        assert_eq!((last(1), last(2), last(3), last(100)), ("6".into(), "56".into(), "456".into(), "123456".into()));
    }

    #[test]
    fn what_is_added_is_read_once_and_in_whole_lines_over_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "1\n");
        let (_, mut reader) = Reader::last(dir.path(), 10).unwrap();
        assert!(reader.more().unwrap().is_empty());
        add(dir.path(), "2\n3");
        assert_eq!(reader.more().unwrap(), ["2"]);
        add(dir.path(), "3\n4\n");
        fs::rename(path(dir.path(), 0), path(dir.path(), 1)).unwrap();
        assert_eq!(reader.more().unwrap(), ["33", "4"]);
        add(dir.path(), "5\n");
        assert_eq!(reader.more().unwrap(), ["5"]);
        assert!(reader.more().unwrap().is_empty());
    }
}
