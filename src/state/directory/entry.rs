//! One entry of a directory: what is listed, and on what that hangs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{ENTRY_BYTES, Kind};
use crate::id::NodeId;
use crate::proto::control::SessionId;
use crate::proto::directory::Listing;

/// What an entry is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The service.
    pub name: String,
    /// Who provides it.
    pub provider: NodeId,
    /// The node whose directory it is mirrored from.
    pub at: Option<NodeId>,
}

/// A service that is listed, as it was at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What its provider says of it.
    pub listing: Arc<Listing>,
    /// Where its provider may be dialled.
    pub addresses: Arc<[SocketAddr]>,
    /// Whether it can be called.
    pub online: bool,
    /// Grows each time it comes online; 0 if it never was since it is listed.
    pub epoch: u64,
    /// Another one for another listing.
    pub version: u64,
    /// The number of the change that made it so.
    pub changed: u64,
    pub(super) held: Held,
}

/// What keeps an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// This node itself.
    Here,
    /// A session.
    By(Hung),
}

/// How an entry hangs on a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hung {
    /// The peer.
    pub on: NodeId,
    pub session: SessionId,
    /// Whether that peer says that it can be called.
    pub claimed: bool,
    /// By which it is withdrawn.
    pub number: u64,
    /// Offline since then.
    pub since: Option<Instant>,
}

/// What is said of an entry.
pub(super) struct Said {
    pub listing: Arc<Listing>,
    pub addresses: Arc<[SocketAddr]>,
    pub online: bool,
    pub held: Held,
}

impl Said {
    /// The entry as it is then, after what it was before, and whether a reader would see a difference. Takes its numbers from these, and is the
    /// change of that number if it is one.
    pub fn after(self, before: Option<&Arc<Entry>>, numbers: &mut u64, change: u64) -> (Arc<Entry>, bool) {
        let Said { listing, addresses, online, held } = self;
        let mut number = || {
            *numbers += 1;
            *numbers
        };
        let epoch = match before {
            Some(before) if before.online == online || !online => before.epoch,
            None if !online => 0,
            _ => number(),
        };
        // The same words again are no news.
        let (listing, version) = match before.filter(|before| before.listing == listing) {
            Some(before) => (before.listing.clone(), before.version),
            None => (listing, number()),
        };
        let mut entry = Entry { listing, addresses, online, epoch, version, changed: change, held };
        let news = before.is_none_or(|before| !before.looks_like(&entry));
        if let (false, Some(before)) = (news, before) {
            entry.changed = before.changed;
        }
        (Arc::new(entry), news)
    }
}

impl Key {
    pub(super) fn kind(&self) -> Kind {
        if self.at.is_some() { Kind::Mirrored } else { Kind::Its }
    }
}

impl Entry {
    /// What it counts for, in bytes.
    pub fn weight(&self) -> usize {
        self.listing.weight() + ENTRY_BYTES
    }

    pub(super) fn hangs_on(&self, session: SessionId) -> bool {
        matches!(&self.held, Held::By(hung) if hung.session == session)
    }

    pub(super) fn number(&self) -> u64 {
        if let Held::By(hung) = &self.held { hung.number } else { 0 }
    }

    pub(super) fn since(&self) -> Option<Instant> {
        if let Held::By(hung) = &self.held { hung.since } else { None }
    }

    pub(super) fn offline_since(&self, now: Instant) -> Instant {
        self.since().unwrap_or(now)
    }

    /// Whether a reader would see no difference.
    pub(super) fn looks_like(&self, other: &Entry) -> bool {
        let same = (self.online, self.epoch, self.version) == (other.online, other.epoch, other.version);
        same && self.addresses == other.addresses
    }
}
