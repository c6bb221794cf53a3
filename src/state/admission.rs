//! Who may start a handshake: a bound on how many are under way, and a rate for each address, so that strangers cost little.
//! Knows no sockets and no clock: the time of each question comes with it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::prefix::Prefix;
use crate::proto::limits::Limits;

/// What to do with a newcomer's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Go on with the handshake.
    Accept,
    /// Have it prove its address first (QUIC Retry).
    Retry,
    /// Say nothing: too many are under way, or too many came from there.
    Ignore,
}

/// Addresses remembered at once. One beyond takes the place of a full bucket, or is counted with the others.
const ADDRESSES: usize = 4_096;
/// Full buckets are forgotten at most this often: a flood must not make us search the map for every packet.
const PRUNE: Duration = Duration::from_secs(1);

/// How many handshakes are under way, and how fast each address may begin new ones.
#[derive(Debug)]
pub struct Gate {
    pending: usize,
    pending_max: usize,
    retry_above: usize,
    refused: u64,
    per_second: f64,
    burst: f64,
    exempt: Vec<Prefix>,
    buckets: HashMap<IpAddr, Bucket>,
    /// Shared by all addresses there was no room to remember.
    others: Option<Bucket>,
    pruned: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(&Limits::default(), Prefix::LOOPBACK.to_vec())
    }
}

impl Gate {
    /// A gate with these limits. Addresses in the exempt ranges have no rate.
    pub fn new(limits: &Limits, exempt: Vec<Prefix>) -> Self {
        Self {
            pending: 0,
            pending_max: limits.pending_handshakes,
            retry_above: limits.retry_above,
            refused: 0,
            per_second: limits.handshakes_per_second.into(),
            burst: limits.handshake_burst.into(),
            exempt,
            buckets: HashMap::new(),
            others: None,
            pruned: None,
        }
    }

    /// Decides on a newcomer. `proved`: it has shown that it receives at its address. After `Accept`, [`Gate::ended`] is due
    /// once, however the handshake ends.
    pub fn ask(&mut self, address: IpAddr, proved: bool, now: Instant) -> Admission {
        if self.pending >= self.pending_max {
            self.refused += 1;
            return Admission::Ignore;
        }
        if self.pending >= self.retry_above && !proved {
            return Admission::Retry;
        }
        let rated = !self.exempt.iter().any(|prefix| prefix.contains(address));
        if rated && !self.take(scope(address), now) {
            self.refused += 1;
            return Admission::Ignore;
        }
        self.pending += 1;
        Admission::Accept
    }

    /// A handshake that was accepted has ended.
    pub fn ended(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Handshakes under way.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Newcomers turned away so far.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        let (rate, burst) = (self.per_second, self.burst);
        if self.buckets.len() >= ADDRESSES && self.pruned.is_none_or(|at| now.saturating_duration_since(at) >= PRUNE) {
            self.pruned = Some(now);
            self.buckets.retain(|_, bucket| bucket.level(now, rate, burst) < burst);
        }
        let full = Bucket { tokens: burst, at: now };
        let bucket = if self.buckets.len() < ADDRESSES || self.buckets.contains_key(&address) {
            self.buckets.entry(address).or_insert(full)
        } else {
            self.others.get_or_insert(full)
        };
        bucket.tokens = bucket.level(now, rate, burst);
        bucket.at = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

impl Bucket {
    fn level(&self, now: Instant, rate: f64, burst: f64) -> f64 {
        (self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(burst)
    }
}

/// What counts as one address: an IPv4 address, or the /64 of an IPv6 one.
pub fn scope(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::proto::limits;

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn an_address_gets_its_burst_and_then_its_rate() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        let admitted = |gate: &mut Gate, now| {
            let accepted = (0..100).take_while(|_| gate.ask(v4(1), true, now) == Admission::Accept).count();
            (0..accepted).for_each(|_| gate.ended());
            accepted
        };
        assert_eq!(admitted(&mut gate, now), limits::HANDSHAKE_BURST as usize);
        assert_eq!(gate.ask(v4(2), true, now), Admission::Accept, "another address is not affected");
        assert_eq!(admitted(&mut gate, now + Duration::from_secs(1)), limits::HANDSHAKES_PER_SECOND as usize);
    }

    #[test]
    fn many_under_way_means_proving_the_address_and_too_many_means_silence() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for _ in 0..limits::RETRY_ABOVE {
            assert_eq!(gate.ask(loopback, false, now), Admission::Accept);
        }
        assert_eq!(gate.ask(loopback, false, now), Admission::Retry);
        for _ in limits::RETRY_ABOVE..limits::PENDING_HANDSHAKES {
            assert_eq!(gate.ask(loopback, true, now), Admission::Accept);
        }
        assert_eq!(gate.ask(loopback, true, now), Admission::Ignore);
        gate.ended();
        assert_eq!(gate.ask(loopback, true, now), Admission::Accept);
    }

    #[test]
    fn the_whole_of_an_ipv6_64_is_one_address() {
        let at = |last: u128| IpAddr::V6(Ipv6Addr::from((0x2001_0db8_u128 << 96) + last));
        assert_eq!(scope(at(1)), scope(at(77)));
        assert_ne!(scope(at(1)), scope(at(1 << 64)));
    }

    #[test]
    fn memory_stays_bounded_and_unknown_addresses_share_one_bucket() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        let mut accepted_beyond = 0;
        for host in 0..(ADDRESSES as u32 + 1_000) {
            if gate.ask(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + host)), true, now) == Admission::Accept {
                gate.ended();
                accepted_beyond += usize::from(host >= ADDRESSES as u32);
            }
        }
        assert_eq!(gate.buckets.len(), ADDRESSES);
        assert_eq!(accepted_beyond, limits::HANDSHAKE_BURST as usize);
    }
}
