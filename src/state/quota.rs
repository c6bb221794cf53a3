//! How many circuits a relay carries, and for whom: counts, with a bound for each neighbour, for the guests of an address, and for all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;

use crate::id::NodeId;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// For one neighbour.
    pub per_identity: usize,
    /// For all guests of one address.
    pub per_address: usize,
    /// In all.
    pub all: usize,
}

/// For whom a circuit is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payer {
    /// The neighbour that opened it.
    pub id: NodeId,
    /// If it is a guest: the address (IPv6: /64) it comes from.
    pub guest_from: Option<IpAddr>,
}

/// The counts.
#[derive(Clone, Debug)]
pub struct Quota {
    most: Most,
    all: usize,
    identities: HashMap<NodeId, usize>,
    addresses: HashMap<IpAddr, usize>,
}

impl Quota {
    /// Nobody has anything yet.
    pub fn new(most: Most) -> Self {
        Self { most, all: 0, identities: HashMap::new(), addresses: HashMap::new() }
    }

    /// One more circuit for this payer, if it may have one. Each one is to be [ended](Self::end).
    #[must_use = "a circuit that may not begin must not"]
    pub fn begin(&mut self, payer: &Payer) -> bool {
        let own = self.identities.get(&payer.id).copied().unwrap_or(0);
        let beside = payer.guest_from.and_then(|from| self.addresses.get(&from).copied()).unwrap_or(0);
        if self.all >= self.most.all || own >= self.most.per_identity || beside >= self.most.per_address {
            return false;
        }
        self.all += 1;
        *self.identities.entry(payer.id).or_default() += 1;
        payer.guest_from.into_iter().for_each(|from| *self.addresses.entry(from).or_default() += 1);
        true
    }

    /// One circuit less. Of whom nothing is left nothing is remembered. Says whether it was this neighbour's last.
    pub fn end(&mut self, payer: &Payer) -> bool {
        self.all = self.all.saturating_sub(1);
        if let Some(from) = payer.guest_from {
            less(&mut self.addresses, from);
        }
        less(&mut self.identities, payer.id)
    }

    /// How many there are.
    pub fn all(&self) -> usize {
        self.all
    }
}

/// One less; says whether it was the last.
fn less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) -> bool {
    let Entry::Occupied(mut count) = counts.entry(key) else { return true };
    *count.get_mut() -= 1;
    let last = *count.get() == 0;
    if last {
        count.remove();
    }
    last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Most = Most { per_identity: 3, per_address: 4, all: 7 };

    proptest! {
        #[test]
        fn nobody_has_more_than_may_be_and_what_ended_leaves_nothing(
            steps in prop::collection::vec((any::<bool>(), 0u8..5, prop::option::of(0u8..3), any::<prop::sample::Index>()), 0..200),
        ) {
            let mut quota = Quota::new(MOST);
            let mut there: Vec<Payer> = Vec::new();
            for (begins, id, from, which) in steps {
                if begins {
                    let guest_from = from.map(|from| IpAddr::from([10, 0, 0, from]));
                    let payer = Payer { id: NodeId::from_bytes([id; 32]), guest_from };
                    let own = there.iter().filter(|other| other.id == payer.id).count();
                    let beside = there.iter().filter(|other| guest_from.is_some() && other.guest_from == guest_from).count();
                    let may = own < MOST.per_identity && beside < MOST.per_address && there.len() < MOST.all;
                    prop_assert_eq!(quota.begin(&payer), may);
                    if may {
                        there.push(payer);
                    }
                } else if !there.is_empty() {
                    let payer = there.swap_remove(which.index(there.len()));
                    let last = there.iter().all(|other| other.id != payer.id);
                    prop_assert_eq!(quota.end(&payer), last);
                }
                prop_assert_eq!(quota.all(), there.len());
            }
            for payer in there {
                quota.end(&payer);
            }
            prop_assert!(quota.identities.is_empty() && quota.addresses.is_empty() && quota.all() == 0);
        }
    }
}
