//! How much a directory holds, and what goes when there is no room: what sessions that have ended left behind, the oldest first.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::Key;
use super::{Directory, Kind};
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
        let (most, most_bytes) = match key.kind() {
            Kind::Its => (registrations, provider_bytes),
            Kind::Mirrored => (mirrored, mirrored_bytes),
        };
        // What there is already under this key makes way for it.
        let before = self.entries.get(key).map_or(0, |entry| entry.weight());
        let is_left = before > 0 && !self.entries[key].hangs_on(session);
        let (present, held) = self.loads.get(&(on, key.kind())).map_or((0, 0), |load| (load.present, load.present_bytes));
        let (present, held) = if before > 0 && !is_left { (present - 1, held - before) } else { (present, held) };
        if present >= most {
            return Err(Refusal::TooMany(most));
        }
        if held + weight > most_bytes {
            return Err(Refusal::TooLarge(most_bytes));
        }
        // All that is left behind would go for it.
        let stays = self.bytes - self.left_bytes - if is_left { 0 } else { before };
        if stays + weight > bytes {
            return Err(Refusal::TooLarge(bytes));
        }
        while let Some(load) = self.loads.get(&(on, key.kind())) {
            let (count, used) = (load.keys.len() - usize::from(before > 0), load.bytes - before + weight);
            if count < most && used <= most_bytes {
                break;
            }
            let Some(oldest) = oldest_but(&load.behind, key) else { break };
            self.remove(&oldest);
        }
        while self.bytes - before + weight > bytes {
            let Some(oldest) = oldest_but(&self.left, key) else { break };
            self.remove(&oldest);
        }
        Ok(())
    }
}

fn oldest_but(left: &BTreeSet<(Instant, Arc<Key>)>, key: &Key) -> Option<Arc<Key>> {
    left.iter().map(|(_, left)| left).find(|left| ***left != *key).cloned()
}
