//! What "nobody else" means on disk: owned by this user, no bit for group or others. Files that replace others whole.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::HomeError;

/// For `custom_flags`: a link at the end of the path is not followed, and opening it fails.
pub(in crate::node) const NO_LINK: i32 = OFlags::NOFOLLOW.bits().cast_signed();

/// Refuses what is no directory, belongs to another user, or lets others in. Does not follow a link at the end of the path.
pub(in crate::node) fn check_directory(path: &Path) -> Result<(), HomeError> {
    let metadata = fs::symlink_metadata(path).map_err(super::io("look at", path))?;
    if metadata.is_dir() { check_owner(path, &metadata) } else { Err(HomeError::NotADirectory(path.to_owned())) }
}

/// Refuses what belongs to another user or lets others in.
pub(in crate::node) fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), HomeError> {
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return Err(HomeError::OtherOwner { path: path.to_owned(), owner: metadata.uid(), us });
    }
    match metadata.mode() & 0o7777 {
        mode if mode & 0o077 != 0 => Err(HomeError::TooOpen { path: path.to_owned(), mode }),
        _ => Ok(()),
    }
}

/// Closes a directory of ours to others if it is empty and they could not have put anything there.
pub(in crate::node) fn close_if_empty(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.mode() & 0o7777;
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    if ours && mode & 0o077 != 0 && mode & 0o022 == 0 && fs::read_dir(path)?.next().is_none() {
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Puts a file (mode 0600) with this content in place of the one that may be there: after a crash one of the two is there, whole.
pub(in crate::node) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let written = write_new(&draft, content).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written?;
    sync_parent(path)
}

/// Makes the names in the directory of `path` durable.
pub(in crate::node) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(NO_LINK).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
