//! Where the socket of the local API is. A socket's path has room for about a hundred bytes (108 on Linux, 104 on macOS), a
//! home's path may be longer: then the socket is in the user's runtime directory, and a link in the home leads to it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use super::{HomeError, files, io as failed, private};

/// Longest path of a socket we bind, in bytes.
const SOCKET_PATH_BYTES: usize = 100;

pub(super) fn find(home: &Path) -> Result<PathBuf, HomeError> {
    let direct = home.join(files::SOCKET);
    if fits(&direct) {
        return Ok(direct);
    }
    // The node may have been started with another environment than ours: it left a link.
    match fs::read_link(&direct) {
        Ok(there) if there.parent().is_some_and(|parent| private::check_directory(parent).is_ok()) => Ok(there),
        _ => elsewhere(home, &Places::from_environment()),
    }
}

pub(super) fn prepare(home: &Path) -> Result<PathBuf, HomeError> {
    prepare_at(home, &Places::from_environment())
}

fn prepare_at(home: &Path, places: &Places) -> Result<PathBuf, HomeError> {
    let direct = home.join(files::SOCKET);
    remove(&direct)?;
    if fits(&direct) {
        return Ok(direct);
    }
    let there = elsewhere(home, places)?;
    remove(&there)?;
    symlink(&there, &direct).map_err(failed("link", &direct))?;
    Ok(there)
}

/// Directories for short-lived files of a user.
struct Places {
    /// `XDG_RUNTIME_DIR`, where there is one.
    runtime: Option<PathBuf>,
    /// Ours to make, where there is none.
    fallback: PathBuf,
}

impl Places {
    fn from_environment() -> Self {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        // Not TMPDIR: on macOS that is long as well.
        Self { runtime, fallback: PathBuf::from(format!("/tmp/volt-{}", rustix::process::geteuid().as_raw())) }
    }
}

fn elsewhere(home: &Path, places: &Places) -> Result<PathBuf, HomeError> {
    let hash = HEXLOWER.encode(&digest(&SHA256, home.as_os_str().as_bytes()).as_ref()[..8]);
    let name = format!("volt-{hash}.sock");
    if let Some(runtime) = &places.runtime
        && fits(&runtime.join(&name))
        && private::check_directory(runtime).is_ok()
    {
        return Ok(runtime.join(name));
    }
    match DirBuilder::new().mode(0o700).create(&places.fallback) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make the directory", &places.fallback)(error));
        }
        _ => {}
    }
    // Anybody may write to /tmp: what is there must be ours, and no link.
    private::check_directory(&places.fallback)?;
    Ok(places.fallback.join(name))
}

fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= SOCKET_PATH_BYTES
}

fn remove(path: &Path) -> Result<(), HomeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove the old socket", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::node::home::Home;

    fn places(dir: &Path) -> Places {
        Places { runtime: None, fallback: dir.join("t") }
    }

    fn long_home(dir: &Path) -> Home {
        Home::open(dir.join("a".repeat(60)).join("b".repeat(60))).unwrap()
    }

    #[test]
    fn the_socket_is_in_the_home_if_its_path_fits() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let lock = home.lock().unwrap();
        let path = home.prepare_socket(&lock).unwrap();
        assert_eq!(path, home.file(files::SOCKET));
        let _left_by_a_killed_node = UnixListener::bind(&path).unwrap();
        let _listener = UnixListener::bind(home.prepare_socket(&lock).unwrap()).unwrap();
        UnixStream::connect(home.socket_path().unwrap()).unwrap();
    }

    #[test]
    fn a_home_with_a_long_path_has_its_socket_elsewhere_and_a_link_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = long_home(dir.path());
        let path = prepare_at(home.path(), &places(dir.path())).unwrap();
        assert!(fits(&path) && path.starts_with(dir.path().join("t")), "{path:?}");
        let _listener = UnixListener::bind(&path).unwrap();
        // Found by the link, whatever this process takes for the runtime directory.
        assert_eq!(home.socket_path().unwrap(), path);
        UnixStream::connect(home.socket_path().unwrap()).unwrap();
        assert_eq!(prepare_at(home.path(), &places(dir.path())).unwrap(), path);
        assert!(!path.exists());
    }

    #[test]
    fn two_homes_have_two_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("1"), dir.path().join("2"));
        assert_ne!(elsewhere(&one, &places(dir.path())).unwrap(), elsewhere(&other, &places(dir.path())).unwrap());
    }

    #[test]
    fn the_runtime_directory_is_used_only_if_it_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("run");
        DirBuilder::new().mode(0o700).create(&runtime).unwrap();
        let places = Places { runtime: Some(runtime.clone()), ..places(dir.path()) };
        assert!(elsewhere(dir.path(), &places).unwrap().starts_with(&runtime));
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(elsewhere(dir.path(), &places).unwrap().starts_with(&places.fallback));
    }

    #[test]
    fn a_directory_that_somebody_put_there_first_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        symlink(dir.path(), &places.fallback).unwrap();
        assert!(matches!(elsewhere(dir.path(), &places), Err(HomeError::NotADirectory(_))));
        fs::remove_file(&places.fallback).unwrap();
        fs::create_dir(&places.fallback).unwrap();
        fs::set_permissions(&places.fallback, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(elsewhere(dir.path(), &places), Err(HomeError::TooOpen { mode: 0o777, .. })));
    }
}
