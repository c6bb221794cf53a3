//! What became of every datagram: a bounded list, counters that never forget, and a digest that two runs can compare.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const EVENTS_KEPT: usize = 262_144;

pub(super) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// How a datagram ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    /// It is in the receiver's socket.
    Delivered,
    /// The link lost it.
    Lost,
    /// A partition took it.
    Cut,
    /// Too much waited for the link's line.
    Overflow,
    /// It was above the link's MTU.
    TooLarge,
    /// The receiver had read too little.
    InboxFull,
    /// Nobody was at that address.
    NoSocket,
    /// The sending socket had crashed.
    Unplugged,
}

/// One datagram and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// When it ended, from the start of the network.
    pub at: Duration,
    /// The sender's address as it was sent.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: SocketAddr,
    /// Length of the UDP payload.
    pub bytes: usize,
    /// How it ended.
    pub fate: Fate,
}

/// Datagrams by fate. Copies count as datagrams of their own at their end, so the fates together are `sent + duplicated`
/// less those still in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed to a socket.
    pub sent: u64,
    /// Copies the links made.
    pub duplicated: u64,
    /// Held back so that others overtook them.
    pub reordered: u64,
    /// See [`Fate::Delivered`]; the others likewise.
    pub delivered: u64,
    /// See [`Fate::Lost`].
    pub lost: u64,
    /// See [`Fate::Cut`].
    pub cut: u64,
    /// See [`Fate::Overflow`].
    pub overflowed: u64,
    /// See [`Fate::TooLarge`].
    pub too_large: u64,
    /// See [`Fate::InboxFull`].
    pub inbox_full: u64,
    /// See [`Fate::NoSocket`].
    pub no_socket: u64,
    /// See [`Fate::Unplugged`].
    pub unplugged: u64,
}

#[derive(Debug)]
pub(super) struct Log {
    events: VecDeque<Event>,
    digest: u64,
    counters: Counters,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { events: VecDeque::new(), digest: FNV_OFFSET, counters: Counters::default() }
    }

    pub(super) fn sent(&mut self) {
        self.counters.sent += 1;
    }

    pub(super) fn passed(&mut self, duplicated: bool, reordered: bool) {
        self.counters.duplicated += u64::from(duplicated);
        self.counters.reordered += u64::from(reordered);
    }

    pub(super) fn ended(&mut self, event: Event) {
        *self.counter(event.fate) += 1;
        self.digest = fold(self.digest, &event);
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.events.iter().copied().collect()
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    fn counter(&mut self, fate: Fate) -> &mut u64 {
        let counters = &mut self.counters;
        match fate {
            Fate::Delivered => &mut counters.delivered,
            Fate::Lost => &mut counters.lost,
            Fate::Cut => &mut counters.cut,
            Fate::Overflow => &mut counters.overflowed,
            Fate::TooLarge => &mut counters.too_large,
            Fate::InboxFull => &mut counters.inbox_full,
            Fate::NoSocket => &mut counters.no_socket,
            Fate::Unplugged => &mut counters.unplugged,
        }
    }
}

pub(super) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The address's bytes, in a form that is the same on every machine.
pub(super) fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn fold(hash: u64, event: &Event) -> u64 {
    let mut hash = fnv1a(hash, &event.at.as_nanos().to_le_bytes());
    for addr in [event.from, event.to] {
        hash = fnv1a(hash, &octets(addr.ip()));
        hash = fnv1a(hash, &addr.port().to_le_bytes());
    }
    hash = fnv1a(hash, &(event.bytes as u64).to_le_bytes());
    fnv1a(hash, &[event.fate as u8])
}
