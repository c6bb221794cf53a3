//! Why the store refuses, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::{FORMAT, PeerName};
use crate::id::NodeId;
use crate::node::home::HomeError;

/// Why the store did not do it. What it kept before is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open for writing.
    #[error("{} is in use by another process: ask the node that runs there, or try again when it is down", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read. It is never replaced: rules that deny may be in it.
    #[error(
        "{0} is damaged ({detail}): put a good copy in its place; or, to start without the peers and rules it kept, also those \
         that deny, move it away: `mv {0} {0}.damaged`", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Written by a version with another layout.
    #[error("{} has format {format}, this version reads format {FORMAT}: use the version that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
    /// A rule has parts this version does not know, so it cannot be applied.
    #[error("rule {id} in {} was written by a newer version ({detail}): use that version, or `volt policy rm {id}`", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// The rule.
        id: String,
        /// What is not known.
        detail: String,
    },
    /// Another peer has the name.
    #[error("{name} is the name of {holder} already: choose another name, or give that peer another one first")]
    NameTaken {
        /// The name.
        name: PeerName,
        /// Who has it.
        holder: NodeId,
    },
    /// Two rules with one id, by a chance of one in 2^50.
    #[error("the rule has the id of another, {0}: word it differently, for example with a wildcard")]
    RuleClash(String),
    /// Over [`PEERS`](super::PEERS) or [`RULES`](super::RULES).
    #[error("the store keeps at most {most} {what}: remove some")]
    Full {
        /// Peers or rules.
        what: &'static str,
        /// How many there may be.
        most: u64,
    },
    /// Opened with [`Store::open_read_only`](super::Store::open_read_only).
    #[error("{} was opened to be read only", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// It belongs to others, or they can read it.
    #[error(transparent)]
    Access(#[from] HomeError),
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

pub(super) fn damaged(path: &Path, detail: String) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), detail }
}
