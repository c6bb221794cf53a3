//! How much a directory holds, and what goes when there is no room: what sessions that have ended left behind, the oldest first.

use std::sync::Arc;
use std::time::Duration;

use super::Directory;
use super::entry::{Entry, Key};
use crate::id::NodeId;
use crate::proto::control::SessionId;
use crate::proto::limits;

/// How much a directory holds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Services of one peer's present session.
    pub registrations: usize,
    /// Bytes of all that one peer has registered.
    pub provider_bytes: usize,
    /// Services mirrored from one node.
    pub mirrored: usize,
    /// Bytes of all that is mirrored from one node.
    pub mirrored_bytes: usize,
    /// Bytes of everything.
    pub bytes: usize,
    /// Entries whose session has ended.
    pub offline: usize,
    /// How long such an entry stays.
    pub offline_for: Duration,
    /// Changes kept for slow readers.
    pub changes: usize,
    /// Bytes of listings kept with them.
    pub changes_bytes: usize,
}

/// Why something is not listed. Then nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The session is not the present one of that peer, or not known yet.
    #[error("the session is not the peer's present one")]
    NotPresent,
    /// Its peer has as many as it may.
    #[error("{0} services are listed already, and that is the most")]
    TooMany(usize),
    /// Its peer's listings, or those of all, have as many bytes as they may.
    #[error("there is no room: listings may have {0} bytes together")]
    TooLarge(usize),
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            registrations: limits::REGISTRATIONS,
            provider_bytes: limits::PROVIDER_LISTING_BYTES,
            mirrored: limits::MIRRORED,
            mirrored_bytes: limits::MIRRORED_BYTES,
            bytes: limits::DIRECTORY_BYTES,
            offline: limits::OFFLINE_LISTED,
            offline_for: limits::OFFLINE_LISTED_FOR,
            changes: limits::DIRECTORY_CHANGES,
            changes_bytes: limits::DIRECTORY_CHANGES_BYTES,
        }
    }
}

impl Directory {
    /// Makes sure that a listing of this weight can hang there: what its peer, and then others, left behind goes for it.
    pub(super) fn make_room(&mut self, key: &Key, on: NodeId, session: SessionId, weight: usize) -> Result<(), Refusal> {
        let Bounds { registrations, provider_bytes, mirrored, mirrored_bytes, bytes, .. } = self.bounds;
        let (most, most_bytes) = if key.at.is_some() { (mirrored, mirrored_bytes) } else { (registrations, provider_bytes) };
        let load = self.loads.get(&on).map_or((0, 0), |load| (load.keys.len(), load.bytes));
        // Nearly always there is room for more than this.
        if load.0 < most && load.1 + weight <= most_bytes && self.bytes + weight <= bytes {
            return Ok(());
        }
        let is_other = |other: &Key| other != key && other.at.is_some() == key.at.is_some();
        let others = self.hanging_on(on).into_iter().filter(|(other, _)| is_other(other));
        let (present, behind): (Vec<_>, Vec<_>) = others.partition(|(_, entry)| entry.hangs_on(session));
        let held = present.iter().map(|(_, entry)| entry.weight()).sum::<usize>();
        if present.len() >= most {
            return Err(Refusal::TooMany(most));
        }
        if held + weight > most_bytes {
            return Err(Refusal::TooLarge(most_bytes));
        }
        let before = self.entries.get(key).map_or(0, |entry| entry.weight());
        let left: usize = self.left.iter().filter(|(_, left)| **left != *key).map(|(_, left)| self.entries[left].weight()).sum();
        if self.bytes - left - before + weight > bytes {
            return Err(Refusal::TooLarge(bytes));
        }
        self.forget_behind(behind, most - present.len() - 1, most_bytes - held - weight);
        while self.bytes - before + weight > bytes {
            let Some((_, oldest)) = self.left.iter().find(|(_, left)| **left != *key).cloned() else { break };
            self.remove(&oldest);
        }
        Ok(())
    }

    /// Of what a peer left behind, only so many of the youngest stay, with so many bytes together.
    fn forget_behind(&mut self, mut behind: Vec<(Arc<Key>, Arc<Entry>)>, most: usize, most_bytes: usize) {
        behind.sort_by_key(|(key, entry)| (entry.since(), key.clone()));
        let (mut count, mut bytes) = behind.iter().fold((0, 0), |(count, bytes), (_, entry)| (count + 1, bytes + entry.weight()));
        for (key, entry) in behind {
            if count <= most && bytes <= most_bytes {
                return;
            }
            (count, bytes) = (count - 1, bytes - entry.weight());
            self.remove(&key);
        }
    }
}
