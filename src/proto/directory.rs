//! What is asked of a directory, and what it tells: every message of a stream with that purpose. Each is a frame of its own.
//!
//! The opener's first frame is an [`Ask`]. A registration lasts as long as its stream: the directory answers with an [`Answer`],
//! further frames of the opener are new [`Listing`]s of the same name, each answered. A search is answered with entries and
//! [`Told::Current`]; a watch goes on after that. This file decides nothing about who may see what.

use std::net::SocketAddr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::codec::Message;
use super::control::check_addresses;
use super::limits;
use super::status::Status;
use crate::id::NodeId;

/// What a stream with this purpose begins with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// List this service for as long as the stream is open.
    Register(Listing),
    /// Tell what is there now.
    Discover(Query),
    /// Tell what is there now, and then what changes.
    Watch(Query),
}

/// A service as its provider wants it listed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Listing {
    /// The service's name.
    pub name: String,
    /// Who may find it.
    pub mode: Mode,
    /// Names and values for whoever finds it; a name may occur again.
    pub metadata: Vec<(String, Vec<u8>)>,
    /// JSON of the service's description: its version, its methods and their schemas. Not looked into by the directory.
    pub description: Vec<u8>,
}

/// Who may find a service, of those whom the directory's policy lets discover it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All of them.
    #[default]
    Public,
    /// Those whom the directory's owner knows: a rule names them, or the node dials them.
    Trusted,
    /// These only.
    Private(Vec<NodeId>),
}

/// Which entries are meant.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Query {
    /// Names, with `*` for any text.
    pub pattern: String,
    /// Those that are offline, too.
    pub offline: bool,
    /// For whom.
    pub scope: Scope,
}

/// Which part of a directory is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Scope {
    /// Everything the asker may see.
    #[default]
    All,
    /// What may be shown elsewhere: public services that were registered here.
    Mirror,
}

/// What becomes of a registration.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// The service is listed like this now.
    Done,
    /// It is not listed, or not any more. Nothing follows.
    Refused(Status),
}

/// What a directory tells.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Told {
    /// This is there, and this is all of it.
    Entry(Found),
    /// What was told of came online, or went offline.
    Changed {
        /// The service.
        name: String,
        /// Who provides it.
        provider: NodeId,
        /// The node whose directory it is mirrored from.
        at: Option<NodeId>,
        /// Whether it can be called.
        online: bool,
        /// As in [`Found`].
        epoch: u64,
    },
    /// What was told of is not there any more, or not for the asker.
    Withdrawn {
        /// The service.
        name: String,
        /// Who provides it.
        provider: NodeId,
        /// The node whose directory it is mirrored from.
        at: Option<NodeId>,
    },
    /// Everything there is has been told.
    Current,
    /// Too much happened to be told one by one: everything is told anew. What is not told of again is not there.
    Again,
    /// Nothing is told. Nothing follows.
    Refused(Status),
}

/// A service that was found.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Who provides it.
    pub provider: NodeId,
    /// The node whose directory it is mirrored from; none if it is registered with the node that was asked.
    pub at: Option<NodeId>,
    /// Whether it can be called.
    pub online: bool,
    /// Grows each time it comes online: a reader that knew another number has missed that it was offline in between.
    pub epoch: u64,
    /// Who may find it. Told to its provider and to the directory's owner only.
    pub mode: Option<Mode>,
    /// Where its provider may be dialled.
    pub addresses: Vec<SocketAddr>,
    /// What its provider says of it: names and values.
    pub metadata: Vec<(String, Vec<u8>)>,
    /// JSON of the service's description, as far as the asker may see it. Empty if there is none.
    pub description: Vec<u8>,
}

impl Mode {
    fn weight(&self) -> usize {
        if let Mode::Private(ids) = self { ids.len() * size_of::<NodeId>() } else { 0 }
    }
}

impl Listing {
    /// About what it takes in memory, in bytes: more than its encoding has.
    pub fn weight(&self) -> usize {
        let said = weight_of(&self.metadata) + self.description.len();
        size_of::<Self>() + self.name.len() + self.mode.weight() + said
    }
}

impl Found {
    /// About what it takes in memory, in bytes: more than its encoding has.
    pub fn weight(&self) -> usize {
        let addresses = self.addresses.len() * size_of::<SocketAddr>();
        let said = weight_of(&self.metadata) + self.description.len();
        size_of::<Self>() + self.name.len() + self.mode.as_ref().map_or(0, Mode::weight) + addresses + said
    }
}

impl Message for Ask {
    const NAME: &'static str = "ask of the directory";
    const LIMIT: usize = limits::LISTING_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Ask::Register(listing) => listing.check(),
            Ask::Discover(query) | Ask::Watch(query) => query.check(),
        }
    }
}

impl Message for Listing {
    const NAME: &'static str = "listing";
    const LIMIT: usize = limits::LISTING_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        check_name(&self.name)?;
        check_mode(&self.mode)?;
        check_said(&self.metadata, &self.description)
    }
}

impl Query {
    fn check(&self) -> Result<(), &'static str> {
        if self.pattern.len() > 2 * limits::NAME_BYTES + 1 { Err("the pattern is too long") } else { Ok(()) }
    }
}

impl Message for Answer {
    const NAME: &'static str = "answer of the directory";
    const LIMIT: usize = limits::STATUS_BYTES;
}

impl Message for Told {
    const NAME: &'static str = "news of the directory";
    const LIMIT: usize = limits::LISTING_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Told::Entry(found) => found.check(),
            Told::Changed { name, .. } | Told::Withdrawn { name, .. } => check_name(name),
            Told::Current | Told::Again | Told::Refused(_) => Ok(()),
        }
    }
}

impl Found {
    fn check(&self) -> Result<(), &'static str> {
        check_name(&self.name)?;
        self.mode.as_ref().map_or(Ok(()), check_mode)?;
        check_addresses(&self.addresses)?;
        check_said(&self.metadata, &self.description)
    }
}

/// Whether this may be the name of a service: 1 to 255 letters, digits, `.`, `_` or `-`.
pub fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=limits::NAME_BYTES).contains(&name.len()) && name.bytes().all(fine)
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if is_name(name) { Ok(()) } else { Err("the name cannot be that of a service") }
}

fn check_mode(mode: &Mode) -> Result<(), &'static str> {
    match mode {
        Mode::Private(ids) if ids.len() > limits::PRIVATE_PEERS => Err("too many peers are named"),
        _ => Ok(()),
    }
}

fn check_said(metadata: &[(String, Vec<u8>)], description: &[u8]) -> Result<(), &'static str> {
    if metadata.len() > limits::METADATA_ENTRIES {
        return Err("too many metadata entries");
    }
    if metadata.iter().any(|(name, value)| name.len() + value.len() > limits::METADATA_ENTRY_BYTES) {
        return Err("a metadata entry is too large");
    }
    if description.len() > limits::DESCRIPTION_BYTES {
        return Err("the description is too long");
    }
    Ok(())
}

fn weight_of(metadata: &[(String, Vec<u8>)]) -> usize {
    metadata.iter().map(|(name, value)| size_of::<(String, Vec<u8>)>() + name.len() + value.len()).sum()
}

#[cfg(test)]
mod tests;
