//! What a node knows of its invitations without asking the store: which are good for something, and from where wrong ones have come. A
//! wrong one is told from a good one in memory, so that it costs neither a transaction nor anybody else's patience.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::store::Invitation;
use crate::id::InviteHash;
use crate::proto::limits;
use crate::state::admission::scope;

/// Where wrong ones have come from in this second; those beyond share one count.
const FROM: usize = 1_024;

/// The invitations that are good for something, as far as is known here, and who was wrong.
#[derive(Debug)]
pub(super) struct Invitations {
    /// Each with when it expires, in milliseconds since 1970 (UTC). As many as the store keeps, which bounds them.
    good: Mutex<Vec<(InviteHash, u64)>>,
    wrong: Mutex<Wrong>,
}

/// Wrong ones of the second that began then, by where they came from.
#[derive(Debug)]
struct Wrong {
    began: Instant,
    from: HashMap<IpAddr, u32>,
    others: u32,
}

impl Invitations {
    /// These are good.
    pub fn new(good: &[Invitation], now: Instant) -> Self {
        let good = good.iter().map(|invitation| (invitation.hash, invitation.expires_unix_ms)).collect();
        Self { good: Mutex::new(good), wrong: Mutex::new(Wrong { began: now, from: HashMap::new(), others: 0 }) }
    }

    /// Whether there is one.
    pub fn any(&self, now_unix_ms: u64) -> bool {
        self.good().iter().any(|(_, expires)| now_unix_ms < *expires)
    }

    /// Whether this is one of them. All are looked at: how long it takes does not depend on which one fits, and how much of it.
    pub fn has(&self, hash: &InviteHash, now_unix_ms: u64) -> bool {
        self.good().iter().fold(false, |found, (good, expires)| found | ((good == hash) & (now_unix_ms < *expires)))
    }

    /// One more is good. Those that have expired are forgotten.
    pub fn add(&self, invitation: &Invitation) {
        let mut good = self.good();
        good.retain(|(_, expires)| invitation.made_unix_ms < *expires);
        good.push((invitation.hash, invitation.expires_unix_ms));
    }

    /// Those of which this is true are good no more.
    pub fn remove(&self, gone: impl Fn(&InviteHash) -> bool) {
        self.good().retain(|(hash, _)| !gone(hash));
    }

    /// Whether one that comes from there may be looked at although the last ones from there were wrong.
    pub fn is_patient(&self, from: IpAddr, now: Instant) -> bool {
        *self.wrong().count(from, now) < limits::WRONG_INVITATIONS_PER_SECOND
    }

    /// One from there was wrong.
    pub fn was_wrong(&self, from: IpAddr, now: Instant) {
        let mut wrong = self.wrong();
        let count = wrong.count(from, now);
        *count = count.saturating_add(1);
    }

    fn good(&self) -> MutexGuard<'_, Vec<(InviteHash, u64)>> {
        self.good.lock().expect("nothing panics while it is held")
    }

    fn wrong(&self) -> MutexGuard<'_, Wrong> {
        self.wrong.lock().expect("nothing panics while it is held")
    }
}

impl Wrong {
    /// How many came from there in this second. What was before is forgotten.
    fn count(&mut self, from: IpAddr, now: Instant) -> &mut u32 {
        if now.saturating_duration_since(self.began) >= Duration::from_secs(1) {
            *self = Self { began: now, from: HashMap::new(), others: 0 };
        }
        let from = scope(from);
        if self.from.len() >= FROM && !self.from.contains_key(&from) {
            return &mut self.others;
        }
        self.from.entry(from).or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::id::InviteSecret;

    fn invitation(seed: u8) -> Invitation {
        let hash = InviteSecret::from_bytes([seed; 16]).hash();
        Invitation { hash, uses: 1, used: Vec::new(), made_unix_ms: 10, expires_unix_ms: 20, may: Vec::new(), by: None }
    }

    fn at(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn only_those_that_are_good_and_not_expired_are_there() {
        let (one, other) = (invitation(1), invitation(2));
        let known = Invitations::new(std::slice::from_ref(&one), Instant::now());
        assert!(known.any(19) && known.has(&one.hash, 19) && !known.has(&other.hash, 19));
        assert!(!known.any(20) && !known.has(&one.hash, 20), "it has expired");
        known.add(&Invitation { made_unix_ms: 20, expires_unix_ms: 30, ..other.clone() });
        assert_eq!(known.good().len(), 1, "those that have expired are forgotten");
        known.remove(|hash| *hash == other.hash);
        assert!(!known.any(25));
    }

    #[test]
    fn who_is_wrong_costs_nobody_elsewhere_its_turn_and_is_forgotten_within_a_second() {
        let now = Instant::now();
        let known = Invitations::new(&[], now);
        (0..10).for_each(|_| known.was_wrong(at(0), now));
        assert!(!known.is_patient(at(0), now) && known.is_patient(at(1), now));
        assert!(known.is_patient(at(0), now + Duration::from_secs(1)));
        // However many places they come from, no more is remembered.
        let now = now + Duration::from_secs(2);
        (0..2 * FROM as u32).for_each(|number| known.was_wrong(at(number), now));
        assert_eq!(known.wrong().from.len(), FROM);
        assert!(known.is_patient(at(0), now) && !known.is_patient(at(5_000), now), "those beyond share one count");
    }
}
