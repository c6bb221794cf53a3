//! The directory a node keeps its things in: who may read it, what the files are called, and that one node at a time runs on
//! it. It never reads keys, rules or peers; those who own such a file read it themselves.

pub(super) mod private;
mod socket;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

/// The name of the directory inside the platform's data directory.
const DIRECTORY: &str = "voltmesh";

/// The names of the files in a home, all of them.
pub mod files {
    /// The secret key, PKCS#8 in PEM.
    pub const IDENTITY: &str = "identity.pem";
    /// The key that lets a restarted node reset the connections it had (quinn's `reset_key`).
    pub const RESET_KEY: &str = "reset.key";
    /// The key that connection ids are made with, kept for the same reason.
    pub const CONNECTION_ID_KEY: &str = "connection-id.key";
    /// The configuration, written by people.
    pub const CONFIG: &str = "volt.toml";
    /// The store: peers and rules.
    pub const STORE: &str = "volt.redb";
    /// The directory of persistent wires, a file each.
    pub const WIRES: &str = "wires";
    /// The journal: what was decided. Older ones are beside it, `journal.1.jsonl` and so on.
    pub const JOURNAL: &str = "journal.jsonl";
    /// The socket of the local API; a link to it where its path would be too long.
    pub const SOCKET: &str = "volt.sock";
    /// Held by the running node; contains its process id.
    pub const LOCK: &str = "volt.lock";
    /// The UDP port the node chose once and keeps.
    pub const PORT: &str = "volt.port";
    /// With whom the node has sessions, to be told if it is killed and started again.
    pub const SESSIONS: &str = "volt.sessions";
}

/// The home of a node: a directory that belongs to this user and that nobody else can enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    path: PathBuf,
}

/// The right to run on a home, held until dropped, also if the process is killed.
#[derive(Debug)]
#[must_use = "the home is free again as soon as this is dropped"]
pub struct Lock {
    file: File,
}

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// The platform does not say where data belongs.
    #[error("cannot tell where this user's data belongs: set VOLT_HOME, or give --home DIR")]
    NoDefault,
    /// Nothing there.
    #[error("there is no node in {}: `volt init` makes one", .0.display())]
    Missing(PathBuf),
    /// Something else is there.
    #[error("{} is not a directory: move it away, or give another --home", .0.display())]
    NotADirectory(PathBuf),
    /// A link is where a file of the node's own should be.
    #[error("{} is a link, and the node would write to what it leads to: remove it", .0.display())]
    Link(PathBuf),
    /// It belongs to another user.
    #[error("{} belongs to user {owner}, and this is user {us}: run as its owner, or use another --home", path.display())]
    OtherOwner {
        /// What belongs to another.
        path: PathBuf,
        /// To whom.
        owner: u32,
        /// Who this process runs as.
        us: u32,
    },
    /// Others could read or change it.
    #[error("{} is open to other users (mode {mode:04o}): `chmod go-rwx` it, and if they are not trusted, make new keys", path.display())]
    TooOpen {
        /// What is open.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another node runs on it.
    #[error("a node runs on {} already ({}): `volt down` stops it, or give another --home", path.display(), holder(*.pid))]
    Held {
        /// The home.
        path: PathBuf,
        /// The process that holds it, if it could be read.
        pid: Option<u32>,
    },
    /// The remembered port is no port.
    #[error("{} should contain a port, 1 to 65535: write the port the node had there, or remove the file to choose anew (old tickets then fail)", .0.display())]
    Port(PathBuf),
    /// The system failed us.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where a node's home is unless told otherwise: `voltmesh` in the platform's data directory, that is
/// `~/.local/share/voltmesh` (`XDG_DATA_HOME`) on Linux and `~/Library/Application Support/voltmesh` on macOS.
pub fn default_home() -> Result<PathBuf, HomeError> {
    let strategy = etcetera::base_strategy::choose_native_strategy().map_err(|_| HomeError::NoDefault)?;
    Ok(strategy.data_dir().join(DIRECTORY))
}

impl Home {
    /// Opens a home, making the directory (mode 0700) if there is none. Refuses one that others own or can enter; but an empty
    /// one of ours that others could only look into has kept no secret yet, so it is closed to them and used.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, HomeError> {
        let path = path.as_ref();
        DirBuilder::new().recursive(true).mode(0o700).create(path).or_else(|source| {
            // Something that is no directory is there: the check below says so better.
            if source.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(io("make the directory", path)(source)) }
        })?;
        private::close_if_empty(path).map_err(io("look into", path))?;
        Self::existing(path)
    }

    /// Opens a home that is there. Writes nothing.
    pub fn existing(path: impl AsRef<Path>) -> Result<Self, HomeError> {
        let path = path.as_ref();
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(HomeError::Missing(path.to_owned())),
            Err(error) => return Err(io("open", path)(error)),
        };
        private::check_directory(&path)?;
        Ok(Self { path })
    }

    /// The directory: absolute, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file of this name (one of [`files`]) is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes the home for one running node. Fails at once with [`HomeError::Held`] if another process has it.
    pub fn lock(&self) -> Result<Lock, HomeError> {
        let path = self.file(files::LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(private::NO_LINK);
        let mut file = options.open(&path).map_err(|source| match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => HomeError::Link(path.clone()),
            _ => io("open", &path)(source),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(HomeError::Held { path: self.path.clone(), pid: read_pid(&mut file) }),
            Err(TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
        }
        write_pid(&mut file).map_err(io("write", &path))?;
        Ok(Lock { file })
    }

    /// The UDP port this node chose earlier, if it did.
    pub fn port(&self) -> Result<Option<u16>, HomeError> {
        let path = self.file(files::PORT);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let port = str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()).filter(|port| *port != 0);
        port.map(Some).ok_or(HomeError::Port(path))
    }

    /// Keeps the port for later runs: tickets, quick resets and hole punching need the same one.
    pub fn remember_port(&self, port: u16) -> Result<(), HomeError> {
        let path = self.file(files::PORT);
        private::replace(&path, format!("{port}\n").as_bytes()).map_err(io("write", &path))
    }

    /// Where the socket of the local API is: here, or, if that path is too long for a socket, where the node that runs put it.
    pub fn socket_path(&self) -> Result<PathBuf, HomeError> {
        socket::find(&self.path)
    }

    /// Clears the way for the socket of the node that holds the lock, and says where to bind it (mode 0600 is up to the binder).
    pub fn prepare_socket(&self, _held: &Lock) -> Result<PathBuf, HomeError> {
        socket::prepare(&self.path)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file stays: removing it could remove the one the next node has just locked.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

fn io<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> HomeError + 'a {
    move |source| HomeError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use tempfile::TempDir;

    use super::*;

    fn home() -> (TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path().join("a/b")).unwrap();
        (dir, home)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_new_home_is_closed_to_others() {
        let (_dir, home) = home();
        assert_eq!(home.path().metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(Home::existing(home.path()).unwrap(), home);
    }

    #[test]
    fn a_home_open_to_others_is_refused_with_its_mode() {
        let (_dir, home) = home();
        for mode in [0o777, 0o1777, 0o770, 0o750, 0o705, 0o701] {
            if mode & 0o022 == 0 {
                fs::write(home.file(files::CONFIG), "").unwrap();
            }
            chmod(home.path(), mode);
            let error = Home::open(home.path()).unwrap_err();
            assert!(error.to_string().contains(&format!("(mode {mode:04o}): `chmod go-rwx`")), "{error}");
        }
    }

    #[test]
    fn an_empty_directory_is_closed_to_others_and_used() {
        let (_dir, home) = home();
        chmod(home.path(), 0o755);
        assert_eq!(Home::open(home.path()).unwrap(), home);
        assert_eq!(home.path().metadata().unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_home_of_somebody_else_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return; // Only root can give a directory away.
        }
        let (_dir, home) = home();
        chown(home.path(), Some(12_345), None).unwrap();
        assert!(matches!(Home::open(home.path()), Err(HomeError::OtherOwner { owner: 12_345, us: 0, .. })));
    }

    #[test]
    fn what_is_no_directory_or_not_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(matches!(Home::existing(&path), Err(HomeError::Missing(_))));
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(matches!(Home::open(&path), Err(HomeError::NotADirectory(_))));
        assert!(matches!(Home::open(path.join("y")), Err(HomeError::Io { .. })));
    }

    #[test]
    fn a_linked_home_is_the_one_it_leads_to() {
        let (dir, home) = home();
        symlink(home.path(), dir.path().join("link")).unwrap();
        assert_eq!(Home::open(dir.path().join("link")).unwrap(), home);
    }

    #[test]
    fn a_second_holder_is_told_who_has_the_lock() {
        let (_dir, home) = home();
        let lock = home.lock().unwrap();
        let error = home.lock().unwrap_err();
        assert!(matches!(error, HomeError::Held { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())));
        drop(lock);
        drop(home.lock().unwrap());
    }

    #[test]
    fn what_a_killed_holder_left_in_the_lock_does_not_matter() {
        let (_dir, home) = home();
        fs::write(home.file(files::LOCK), "4194304\n and more\n").unwrap();
        let lock = home.lock().unwrap();
        assert_eq!(fs::read_to_string(home.file(files::LOCK)).unwrap(), format!("{}\n", std::process::id()));
        // A holder that has not yet said who it is.
        lock.file.set_len(0).unwrap();
        assert!(matches!(home.lock(), Err(HomeError::Held { pid: None, .. })));
    }

    #[test]
    fn a_lock_is_not_written_to_where_a_link_leads() {
        let (dir, home) = home();
        let outside = dir.path().join("outside");
        symlink(&outside, home.file(files::LOCK)).unwrap();
        assert!(matches!(home.lock(), Err(HomeError::Link(_))));
        assert!(!outside.exists());
        fs::write(&outside, "mine").unwrap();
        assert!(matches!(home.lock(), Err(HomeError::Link(_))));
        assert_eq!(fs::read_to_string(&outside).unwrap(), "mine");
    }

    #[test]
    fn the_port_is_kept() {
        let (_dir, home) = home();
        assert_eq!(home.port().unwrap(), None);
        for port in [8_659, 40_000] {
            home.remember_port(port).unwrap();
            assert_eq!(home.port().unwrap(), Some(port));
        }
        assert_eq!(home.file(files::PORT).metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_port_file_that_holds_no_port_is_refused_by_name() {
        let (_dir, home) = home();
        for bad in [&b""[..], b"0", b"65536", b"port", b"\xff"] {
            fs::write(home.file(files::PORT), bad).unwrap();
            let error = home.port().unwrap_err().to_string();
            assert!(error.contains("volt.port should contain a port"), "{error}");
        }
    }
}
