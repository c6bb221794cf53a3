//! The file that says with whom the node has sessions: one line of JSON each. It is there while the node runs and has sessions; a
//! node that went down in good order has told everybody, and leaves none behind.
//!
//! It is written without waiting for the disk: it outlives the process, and not always the machine, whose restart takes longer than
//! peers take to notice by themselves. All functions block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::session::TOLD_AT;

/// Most peers in the list.
pub const LISTED: usize = 1_024;
/// Largest list that is read, in bytes. A full one has less than half of it.
const BYTES: u64 = 1 << 20;

/// A peer there was a session with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::node) struct Listed {
    pub peer: NodeId,
    /// Where it could be dialled, the likeliest first; at most [`TOLD_AT`].
    pub addresses: Vec<SocketAddr>,
}

/// The list in a home, of the node that holds its lock.
#[derive(Debug)]
pub(in crate::node) struct List {
    path: PathBuf,
    /// What is there now; `None` if that is not known.
    written: Option<Vec<Listed>>,
    /// That it cannot be written has been said.
    failed: bool,
}

impl List {
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: None, failed: false }
    }

    /// Whom the process before, if it was killed, had sessions with. A list that cannot be read is as good as none.
    pub fn read(&self) -> Vec<Listed> {
        self.parse().unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "cannot tell whom this node had sessions with; they will notice later that it was restarted");
            Vec::new()
        })
    }

    fn parse(&self) -> io::Result<Vec<Listed>> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        let mut text = String::new();
        file.take(BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > BYTES {
            return Err(io::Error::other(format!("it is larger than {BYTES} bytes")));
        }
        let listed = text.lines().take(LISTED).map(|line| {
            let mut listed: Listed = serde_json::from_str(line)?;
            listed.addresses.truncate(TOLD_AT);
            Ok(listed)
        });
        listed.collect()
    }

    /// Puts this list in place of the one before: after a kill one of the two is there, whole. Without anybody on it there is no file.
    pub fn put(&mut self, listed: Vec<Listed>) {
        let written = self.write(listed);
        if let Err(error) = &written
            && !self.failed
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot keep the list of sessions: if this node is killed, peers will notice later");
        }
        self.failed = written.is_err();
    }

    fn write(&mut self, listed: Vec<Listed>) -> io::Result<()> {
        if self.written.as_ref() == Some(&listed) {
            return Ok(());
        }
        self.written = None;
        if listed.is_empty() {
            self.remove()?
        } else {
            self.replace(&listed)?
        }
        self.written = Some(listed);
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn replace(&self, listed: &[Listed]) -> io::Result<()> {
        let mut text = Vec::new();
        for listed in listed {
            serde_json::to_writer(&mut text, listed)?;
            text.push(b'\n');
        }
        // Always under the same name: a node that is killed over and over leaves one behind, not many.
        let draft = self.path.with_extension("sessions-draft");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&text)?;
        fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::id::SecretKey;

    fn listed(addresses: u16) -> Listed {
        let address = |port| SocketAddr::from(([0x2001, 0xdb8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff], 60_000 + port));
        Listed { peer: SecretKey::generate().id(), addresses: (0..addresses).map(address).collect() }
    }

    fn list() -> (tempfile::TempDir, List) {
        let dir = tempfile::tempdir().unwrap();
        let list = List::new(dir.path().join("volt.sessions"));
        (dir, list)
    }

    #[test]
    fn a_full_list_is_read_as_it_was_written_and_only_its_owner_reads_it() {
        let (dir, mut list) = list();
        assert_eq!(list.read(), []);
        let full: Vec<_> = (0..LISTED).map(|_| listed(TOLD_AT as u16)).collect();
        list.write(full.clone()).unwrap();
        assert!(list.read() == full);
        let metadata = list.path.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(metadata.len() <= BYTES / 2, "{} bytes", metadata.len());
        list.write(Vec::new()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of it");
        assert_eq!(list.read(), []);
    }

    #[test]
    fn what_has_not_changed_is_not_written_again() {
        let (_dir, mut list) = list();
        let inode = |list: &List| list.path.metadata().unwrap().ino();
        let one = listed(1);
        list.write(vec![one.clone()]).unwrap();
        let before = inode(&list);
        list.write(vec![one]).unwrap();
        assert_eq!(inode(&list), before);
        list.write(vec![listed(1)]).unwrap();
        assert_ne!(inode(&list), before);
    }

    #[test]
    fn a_list_that_is_none_is_as_good_as_none() {
        let (_dir, list) = list();
        let good = serde_json::to_string(&listed(1)).unwrap();
        for bad in ["\0\0\0\0", "{}\n", "\n", &good[..good.len() - 1], &format!("{good}\nx\n"), &" ".repeat(BYTES as usize + 1)] {
            fs::write(&list.path, bad).unwrap();
            assert_eq!(list.read(), [], "{}", &bad[..bad.len().min(200)]);
        }
        fs::write(&list.path, [0xff; 100]).unwrap();
        assert_eq!(list.read(), []);
        fs::remove_file(&list.path).unwrap();
        fs::create_dir(&list.path).unwrap();
        assert_eq!(list.read(), []);
    }

    #[test]
    fn beyond_the_bounds_nothing_is_read_of_it() {
        let (_dir, mut list) = list();
        list.write((0..LISTED + 100).map(|_| listed(1)).collect()).unwrap();
        assert_eq!(list.read().len(), LISTED);
        list.write(vec![listed(100)]).unwrap();
        assert_eq!(list.read()[0].addresses.len(), TOLD_AT);
    }
}
