//! How often an address is asked to prove itself. A dialler that has given up answers each Retry (RFC 9000, section 8.1.2) with a
//! close, which looks like another beginning and would be answered with another Retry: a thousand of them keep each other busy
//! until they forget. Whoever means it needs one Retry for each dial, and asks again when that got lost.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Retries for one address and port within [`SPAN`]: one for the newest of the dials that a node has under way, and one for another.
const RETRIES: u8 = 2;
const SPAN: Duration = Duration::from_secs(1);
/// Addresses remembered at once. Beyond, which takes a flood of forged ones, every Retry is sent, as it always costs nothing.
const ADDRESSES: usize = 4_096;

/// The Retries of the last moment.
#[derive(Debug, Default)]
pub struct Retries {
    since: Option<Instant>,
    sent: HashMap<SocketAddr, u8>,
}

impl Retries {
    /// Whether to send this address one more.
    pub fn allow(&mut self, address: SocketAddr, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= SPAN) {
            self.since = Some(now);
            self.sent.clear();
        }
        if self.sent.len() >= ADDRESSES && !self.sent.contains_key(&address) {
            return true;
        }
        let sent = self.sent.entry(address).or_default();
        *sent = sent.saturating_add(1);
        *sent <= RETRIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_a_few_retries_a_second_and_no_others_pay_for_it() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
        assert_eq!((0..10).filter(|_| retries.allow(one, now)).count(), usize::from(RETRIES));
        assert!(retries.allow(other, now));
        assert!(!retries.allow(one, now + SPAN / 2) && retries.allow(one, now + SPAN));
    }

    #[test]
    fn more_addresses_than_are_remembered_are_all_answered() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        for port in 0..=u16::MAX {
            assert!(retries.allow(([192, 0, 2, 1], port).into(), now));
        }
        assert_eq!(retries.sent.len(), ADDRESSES);
    }
}
