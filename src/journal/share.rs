//! How much of the journal is about whom: a peer that comes and goes, or asks for ever new things, must not push out what is about
//! others. It counts lines and has no clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::entry::Payer;
use crate::id::NodeId;

/// Lines about one peer at once, all whom no rule names, and all who are refused; and how long one more takes after that.
const PEER: (u32, Duration) = (1_024, Duration::from_millis(200));
const GUESTS: (u32, Duration) = (1_024, Duration::from_secs(1));
const STRANGERS: (u32, Duration) = (512, Duration::from_secs(5));
/// Peers remembered. Those beyond them share what the refused have.
const PEERS: usize = 4_096;

/// Who has had how much.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Payer, Share>);

#[derive(Debug)]
struct Share {
    /// When all lines so far have had their time.
    paid: Instant,
    omitted: u64,
}

impl Shares {
    /// Whether one more line about this payer may be written now; if not, it is counted.
    pub fn take(&mut self, payer: Payer, now: Instant) -> bool {
        if self.0.len() >= PEERS && !self.0.contains_key(&payer) {
            self.0.retain(|_, share| share.omitted > 0 || share.paid > now);
        }
        let payer = if self.0.len() >= PEERS && !self.0.contains_key(&payer) { Payer::Strangers } else { payer };
        let (at_once, each) = match payer {
            Payer::Peer(_) => PEER,
            Payer::Guests => GUESTS,
            Payer::Strangers => STRANGERS,
        };
        let share = self.0.entry(payer).or_insert(Share { paid: now, omitted: 0 });
        let paid = share.paid.max(now);
        if paid.duration_since(now) > each * (at_once - 1) {
            share.omitted += 1;
            return false;
        }
        share.paid = paid + each;
        true
    }

    /// What was left out, and about whom, none: about those who share; it is not told again.
    pub fn omitted(&mut self) -> Vec<(Option<NodeId>, u64)> {
        let omitted = self.0.iter_mut().filter(|(_, share)| share.omitted > 0);
        omitted.map(|(payer, share)| (payer.peer(), std::mem::take(&mut share.omitted))).collect()
    }

    /// Whether something was left out and not told yet.
    pub fn has_omitted(&self) -> bool {
        self.0.values().any(|share| share.omitted > 0)
    }
}

impl Payer {
    fn peer(self) -> Option<NodeId> {
        match self {
            Self::Peer(peer) => Some(peer),
            Self::Guests | Self::Strangers => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> Payer {
        let mut id = [7; 32];
        id[..2].copy_from_slice(&n.to_le_bytes());
        Payer::Peer(NodeId::from_bytes(id))
    }

    #[test]
    fn one_peer_uses_up_its_own_share_and_nobody_elses() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let written = (0..5_000).filter(|_| shares.take(peer(1), now)).count();
        assert_eq!(written, PEER.0 as usize);
        assert!(shares.take(peer(2), now));
        assert_eq!(shares.omitted(), [(peer(1).peer(), 5_000 - u64::from(PEER.0))]);
        assert!(!shares.has_omitted());
        assert!(shares.take(peer(1), now + PEER.1));
        assert!(!shares.take(peer(1), now + PEER.1));
    }

    #[test]
    fn those_beyond_the_bound_share_what_strangers_have() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let written = (0..10_000).filter(|n| shares.take(peer(*n), now)).count();
        assert!(written <= PEERS + STRANGERS.0 as usize, "{written}");
        assert!(shares.0.len() <= PEERS + 1);
        assert_eq!(shares.omitted().iter().map(|(_, count)| count).sum::<u64>(), 10_000 - written as u64);
        // Those who were quiet are forgotten, and others have room.
        assert!(shares.take(peer(20_000), now + PEER.1 * 2));
        assert!(shares.0.len() < PEERS);
    }
}
