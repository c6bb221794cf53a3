use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::sync::Barrier;

use super::KeyFileProblem::*;
use super::*;

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o700)).unwrap();
    home
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_key_survives_in_its_file_which_only_its_owner_may_read() {
    let home = home();
    let path = home.path().join("deep/er/identity.pem");
    let key = SecretKey::from_seed(&[7; 32]);
    create(&path, &key, None).unwrap();
    assert_eq!(load(&path, None).unwrap().id(), key.id());
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(names(path.parent().unwrap()), ["identity.pem"], "nothing else is left behind");
}

#[test]
fn a_sealed_key_opens_with_its_passphrase_only() {
    let home = home();
    let path = home.path().join("identity.pem");
    let key = SecretKey::from_seed(&[7; 32]);
    create(&path, &key, Some("correct horse")).unwrap();
    assert_eq!(load(&path, Some("correct horse")).unwrap().id(), key.id());
    assert!(matches!(load(&path, Some("wrong horse")).unwrap_err().problem, WrongPassphrase));
    assert!(matches!(load(&path, None).unwrap_err().problem, NeedsPassphrase));
}

#[test]
fn a_file_is_never_overwritten() {
    let home = home();
    let path = home.path().join("identity.pem");
    create(&path, &SecretKey::from_seed(&[7; 32]), None).unwrap();
    let other = SecretKey::from_seed(&[8; 32]);
    assert!(matches!(create(&path, &other, None).unwrap_err().problem, Exists));
    assert_eq!(load(&path, None).unwrap().id(), SecretKey::from_seed(&[7; 32]).id());
    let dangling = home.path().join("dangling");
    symlink(home.path().join("nowhere"), &dangling).unwrap();
    assert!(matches!(create(&dangling, &other, None).unwrap_err().problem, Exists));
    assert_eq!(names(home.path()).len(), 2, "a failed call leaves nothing behind");
}

#[test]
fn an_empty_passphrase_makes_no_file() {
    let home = home();
    let path = home.path().join("identity.pem");
    assert!(matches!(create(&path, &SecretKey::generate(), Some("")).unwrap_err().problem, EmptyPassphrase));
    assert!(matches!(load(&path, None).unwrap_err().problem, Missing));
}

#[test]
fn a_file_that_others_may_reach_is_refused() {
    let home = home();
    let path = home.path().join("identity.pem");
    create(&path, &SecretKey::generate(), None).unwrap();
    for open in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601] {
        fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
        assert!(matches!(load(&path, None).unwrap_err().problem, TooOpen { mode } if mode == open));
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(load(&path, None).unwrap_err().problem, DirectoryTooOpen { mode: 0o755, .. }));
    let second = home.path().join("second.pem");
    assert!(matches!(create(&second, &SecretKey::generate(), None).unwrap_err().problem, DirectoryTooOpen { .. }));
    assert!(!second.exists());
}

#[test]
fn a_file_of_another_user_is_refused() {
    let home = home();
    let path = home.path().join("identity.pem");
    create(&path, &SecretKey::generate(), None).unwrap();
    if chown(&path, Some(12_345), None).is_err() {
        return; // Only root may give files away, so only root can try this.
    }
    assert!(matches!(load(&path, None).unwrap_err().problem, NotOurs { owner: 12_345 }));
}

#[test]
fn links_and_directories_are_not_key_files() {
    let home = home();
    let path = home.path().join("identity.pem");
    create(&path, &SecretKey::generate(), None).unwrap();
    let link = home.path().join("link.pem");
    symlink(&path, &link).unwrap();
    assert!(matches!(load(&link, None).unwrap_err().problem, Symlink));
    fs::create_dir(home.path().join("directory")).unwrap();
    assert!(matches!(load(&home.path().join("directory"), None).unwrap_err().problem, NotAFile));
    assert!(matches!(load(&home.path().join("none/identity.pem"), None).unwrap_err().problem, Missing));
}

#[test]
fn a_file_longer_than_any_key_is_not_read() {
    let home = home();
    let path = home.path().join("identity.pem");
    private_file::create(&path, &vec![b' '; FILE_BYTES_MAX + 1]).unwrap();
    assert!(matches!(load(&path, None).unwrap_err().problem, NotAKey));
}

#[test]
fn whoever_asks_at_once_gets_the_same_key() {
    let home = home();
    let (identity, reset) = (home.path().join("identity.pem"), home.path().join("reset.key"));
    let start = Barrier::new(8);
    let ask = || {
        start.wait();
        (load_or_create(&identity, None).unwrap().id(), read_or_create_secret(&reset, 64).unwrap())
    };
    let got: Vec<_> = std::thread::scope(|threads| {
        let threads: Vec<_> = (0..8).map(|_| threads.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(got.iter().all(|other| *other == got[0]));
    assert_eq!(names(home.path()).len(), 2);
}

#[test]
fn a_random_secret_is_made_once_and_its_length_is_checked() {
    let home = home();
    let path = home.path().join("reset.key");
    let secret = read_or_create_secret(&path, 32).unwrap();
    assert_eq!(secret, read_or_create_secret(&path, 32).unwrap());
    assert_eq!((secret.len(), mode(&path)), (32, 0o600));
    let problem = |bytes| read_or_create_secret(&path, bytes).unwrap_err().problem;
    assert!(matches!(problem(64), SecretLength { bytes: 32, expected: 64 }));
    assert!(matches!(problem(16), SecretLength { bytes: 17, expected: 16 }));
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let error = load(Path::new("/nowhere/at/all/identity.pem"), None).unwrap_err();
    assert_eq!(error.to_string(), "/nowhere/at/all/identity.pem: there is no key here; `volt init` makes one");
}
