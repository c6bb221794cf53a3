//! The files that keep the keys of a node: `identity.pem`, and the small random secrets beside it.
//!
//! Each is 0600 in a 0700 directory, made exclusively and atomically, and refused when others could have read or changed it.
//! Nothing here ever replaces or repairs a file: a key that is lost is an identity that is lost, so the owner decides.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{SecretKey, envelope, private_file};

/// Larger files are not read: no key is that long.
const FILE_BYTES_MAX: usize = 4 * 1024;

/// Why a key file could not be made or read. The text says which file, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: KeyFileProblem,
}

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileProblem {
    /// There is no such file.
    #[error("there is no key here; `volt init` makes one")]
    Missing,
    /// A file is there already, and is never replaced.
    #[error("there is a file here already, and keys are never overwritten; move it away first, or choose another home")]
    Exists,
    /// Others may read or write the file.
    #[error("its mode {mode:04o} lets others at it; if nobody used that, `chmod 600` it, else make a new identity")]
    TooOpen {
        /// Its permission bits.
        mode: u32,
    },
    /// Others may enter the directory of the file.
    #[error("the mode {mode:04o} of `{}` lets others in; `chmod 700` that directory, or choose another home", directory.display())]
    DirectoryTooOpen {
        /// The directory.
        directory: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file, or its directory, belongs to somebody else.
    #[error("it, or its directory, belongs to user {owner}, not to the user running this; run as that user, or `chown` it")]
    NotOurs {
        /// The numeric id of that user.
        owner: u32,
    },
    /// The path is a symbolic link.
    #[error("it is a symbolic link, and keys are read from plain files only; put the file itself here")]
    Symlink,
    /// The path is a directory, a pipe or a device.
    #[error("it is not a plain file; name a file")]
    NotAFile,
    /// The file was cut short.
    #[error("it is cut short, so its key is lost; restore it from a copy, or remove it and make a new identity")]
    Truncated,
    /// The file holds something else.
    #[error(
        "it holds no Ed25519 key in PEM (`PRIVATE KEY` or `VOLT ENCRYPTED KEY`); name the right file, or restore it from a copy"
    )]
    NotAKey,
    /// The key is sealed and no passphrase was given.
    #[error("its key is sealed; give its passphrase")]
    NeedsPassphrase,
    /// The passphrase does not open the key.
    #[error("the passphrase is wrong, or the file was changed; try again, or restore the file from a copy")]
    WrongPassphrase,
    /// The passphrase has no characters.
    #[error("an empty passphrase protects nothing; give one with characters, or none")]
    EmptyPassphrase,
    /// The file was sealed by a newer program.
    #[error("it was sealed by a newer program (version {version}); update this one")]
    Newer {
        /// The version of its form.
        version: u8,
    },
    /// Opening the file would take more memory or time than any file of ours asks for.
    #[error(
        "opening it would take {memory_kib} KiB of memory, {passes} passes, {lanes} lanes: no file of ours; restore it from a copy"
    )]
    TooCostly {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over that memory.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// A random secret has the wrong length.
    #[error("it has {bytes} bytes where {expected} are needed; remove it, and a new one is made")]
    SecretLength {
        /// How many it has; one more than looked for stands for any larger number.
        bytes: usize,
        /// How many it should have.
        expected: usize,
    },
    /// The system refused.
    #[error("{0}; see to it and try again")]
    Io(io::Error),
}

/// Makes the key file, and its directory where there is none. Never replaces a file.
///
/// With a passphrase the key is sealed by AES-256-GCM under a key that argon2id makes of it, which takes 64 MiB of memory and
/// some tenths of a second: in async code call it where blocking is allowed.
///
/// # Errors
/// The file exists, the directory is open to others or not ours, the passphrase is empty, or the system refuses.
/// A failed call leaves no file.
pub fn create(path: &Path, key: &SecretKey, passphrase: Option<&str>) -> Result<(), KeyFileError> {
    let make = || private_file::create(path, envelope::write(key, passphrase)?.as_bytes());
    make().map_err(at(path))
}

/// Reads the key file. The passphrase is used if the key is sealed, and ignored if it is not. Blocks as [`create`] does.
///
/// # Errors
/// Every [`KeyFileProblem`] but `Exists`. The file is as it was.
pub fn load(path: &Path, passphrase: Option<&str>) -> Result<SecretKey, KeyFileError> {
    let read = || match private_file::read(path, FILE_BYTES_MAX)? {
        Some(text) => envelope::read(&text, passphrase),
        None => Err(KeyFileProblem::NotAKey),
    };
    read().map_err(at(path))
}

/// Reads the key file, or makes a new key and its file where there is none. Two processes that do this at once get one key.
///
/// # Errors
/// Those of [`create`] and [`load`].
///
/// ```
/// # use voltmesh::id::keyfile;
/// # use std::os::unix::fs::PermissionsExt;
/// # let home = tempfile::tempdir()?;
/// # std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700))?;
/// let path = home.path().join("identity.pem");
/// let key = keyfile::load_or_create(&path, None)?;
/// assert_eq!(keyfile::load(&path, None)?.id(), key.id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn load_or_create(path: &Path, passphrase: Option<&str>) -> Result<SecretKey, KeyFileError> {
    let load = || load(path, passphrase);
    load_or_else(load, || {
        let key = SecretKey::generate();
        create(path, &key, passphrase).map(|()| key)
    })
}

/// Reads a secret of `bytes` random bytes, or makes it where there is none; as well protected as the key file.
///
/// # Errors
/// Those of [`create`], those of opening a file, and `SecretLength`.
///
/// # Panics
/// When `bytes` is not 16 to 64: a secret of ours has a length in that range.
pub fn read_or_create_secret(path: &Path, bytes: usize) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    assert!((16..=64).contains(&bytes), "a secret has 16 to 64 bytes, not {bytes}");
    let load = || match private_file::read(path, bytes).map_err(at(path))? {
        Some(secret) if secret.len() == bytes => Ok(secret),
        other => Err(at(path)(KeyFileProblem::SecretLength { bytes: other.map_or(bytes + 1, |s| s.len()), expected: bytes })),
    };
    load_or_else(load, || {
        let mut secret = Zeroizing::new(vec![0; bytes]);
        aws_lc_rs::rand::fill(&mut secret).expect("the operating system gives random bytes");
        private_file::create(path, &secret).map_err(at(path)).map(|()| secret)
    })
}

/// `load`, else `create`, else `load` again: somebody may have made the file in between.
fn load_or_else<T>(
    load: impl Fn() -> Result<T, KeyFileError>,
    create: impl FnOnce() -> Result<T, KeyFileError>,
) -> Result<T, KeyFileError> {
    match load() {
        Err(KeyFileError { problem: KeyFileProblem::Missing, .. }) => {}
        other => return other,
    }
    match create() {
        Err(KeyFileError { problem: KeyFileProblem::Exists, .. }) => load(),
        other => other,
    }
}

fn at(path: &Path) -> impl Fn(KeyFileProblem) -> KeyFileError {
    move |problem| KeyFileError { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests;
