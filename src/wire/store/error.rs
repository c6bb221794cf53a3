//! What can go wrong with a wire's file.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// A wire's file cannot be used. Every one of these names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It, or its directory, cannot be used.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is in it is wrong.
    #[error("{} is damaged: {why}. Move it away to begin the wire anew, or put a copy in its place", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A later version wrote it.
    #[error("{} has format {format}, which this version does not know: use the one that wrote it, or a later one", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// It is another wire's file than its name says.
    #[error("{} holds the wire {wire:?}, whose file is {expected}: give it that name, or move it away", path.display())]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// The wire that is in it.
        wire: String,
        /// The name the file should have.
        expected: String,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// Why chunks were not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The disk is full, or nearly. Nothing was stored.
    #[error("the disk is full: {0}")]
    Full(String),
    /// The disk failed. Nothing was stored.
    #[error("{0}")]
    Failed(String),
    /// The disk failed, and whether the chunks are stored shows only when it works again.
    #[error("{0}")]
    Uncertain(String),
    /// What is in the file cannot be trusted any more. Nothing was stored.
    #[error("{0}")]
    Damaged(String),
}

impl StoreError {
    pub(super) fn damaged(path: &Path, why: impl Display) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.to_string() }
    }

    pub(super) fn io(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    pub(super) fn unusable(path: &Path, why: String) -> Self {
        Self::Io { doing: "use", path: path.to_owned(), source: io::Error::other(why) }
    }

    /// What is wrong, of this file. What redb calls corrupted is damage for good; what the disk says may pass.
    pub(super) fn of(path: &Path, failure: impl Into<Failure>) -> Self {
        let error = match failure.into() {
            Failure::Damaged(why) => return Self::damaged(path, why),
            Failure::Told(error) => return error,
            Failure::Redb(error) => error,
        };
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::Busy { path: path.to_owned() },
            redb::Error::UpgradeRequired(format) => Self::Format { path: path.to_owned(), format: format.into() },
            redb::Error::Io(error) => match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::damaged(path, error),
                _ => Self::io("use", path)(error),
            },
            redb::Error::PreviousIo => Self::unusable(path, "it has failed before".into()),
            redb::Error::DatabaseClosed => Self::unusable(path, "it was closed meanwhile".into()),
            redb::Error::Corrupted(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableIsNotMultimap(_) => Self::damaged(path, error),
            other => Self::unusable(path, other.to_string()),
        }
    }

    /// Whether what is in the file is wrong, and will stay so.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Format { .. } | Self::Misnamed { .. })
    }

    /// Whether there was no room.
    pub(super) fn is_full(&self) -> bool {
        let full = |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Io { source, .. } if full(source))
    }
}

/// What goes wrong inside a database, which does not know its file.
#[derive(Debug)]
pub(super) enum Failure {
    /// redb says so.
    Redb(redb::Error),
    /// What it holds is wrong.
    Damaged(String),
    /// Of a file, and told with its name.
    Told(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Told(error)
    }
}

impl Failure {
    pub fn damaged(why: impl Display) -> Self {
        Self::Damaged(why.to_string())
    }
}

macro_rules! failures {
    ($($of:ident)*) => { $(impl From<redb::$of> for Failure {
        fn from(error: redb::$of) -> Self {
            Self::Redb(error.into())
        }
    })* };
}

failures!(CommitError DatabaseError SetDurabilityError StorageError TableError TransactionError);
