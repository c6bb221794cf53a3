//! What the kernel's messages say (rtnetlink(7), netlink(7)), and whether it is news. Many are not: an address whose lifetime a
//! router renews, an interface whose wireless signal changed, a route that is cached. Reads bytes only; whatever they are, it
//! does not panic.

use std::collections::{HashMap, HashSet};

pub(super) const GET_LINK: u16 = 18;
pub(super) const GET_ADDRESS: u16 = 22;

const DONE: u16 = 3;
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETED_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETED_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETED_RULE: u16 = 33;

/// Request, and all there is.
const DUMP: u16 = 0x301;
const HEADER_BYTES: usize = 16;

/// An interface is up, and has a carrier.
const UP: u32 = 0x1 | 0x40;
const LOOPBACK: u32 = 0x8;
/// An address that may not be used yet, or cannot: its uniqueness is being tested, or was disproved.
const UNUSABLE: u32 = 0x40 | 0x8;
/// From here on an address reaches no further than the next cable.
const SCOPE_LINK: u8 = 253;
const TABLE_LOCAL: u32 = 255;
/// Local, broadcast, anycast and multicast: they come with addresses.
const OF_ADDRESSES: std::ops::RangeInclusive<u8> = 2..=5;
const CACHED: u32 = 0x200;
const INET: [u8; 2] = [2, 10];

/// Interfaces and addresses, as last told.
#[derive(Debug, Default)]
pub(super) struct Table {
    links: HashMap<u32, Link>,
    /// Those in use, by interface.
    addresses: HashSet<(u32, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    up: bool,
    loopback: bool,
}

/// What a datagram brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Something relevant is not what it was.
    pub changed: bool,
    /// An answer is complete, or was refused.
    pub done: bool,
}

/// Asks for all of one kind.
pub(super) fn request(kind: u16) -> Vec<u8> {
    let body = [0; 16];
    let length = (HEADER_BYTES + body.len()) as u32;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &DUMP.to_ne_bytes(), &[0; 8], &body].concat()
}

impl Table {
    /// Takes in the messages of one datagram.
    pub fn take(&mut self, mut datagram: &[u8]) -> Heard {
        let mut heard = Heard::default();
        while let (Some(length), Some(kind)) = (u32_at(datagram, 0), u16_at(datagram, 4)) {
            let length = length as usize;
            let Some(body) = datagram.get(HEADER_BYTES..length) else { break };
            heard.done |= kind == DONE || kind == ERROR;
            heard.changed |= self.message(kind, body).unwrap_or(false);
            datagram = datagram.get(aligned(length)..).unwrap_or_default();
        }
        heard
    }

    /// Whether it is news; `None` if it makes no sense.
    fn message(&mut self, kind: u16, body: &[u8]) -> Option<bool> {
        match kind {
            NEW_LINK | DELETED_LINK => self.link(kind == NEW_LINK, body),
            NEW_ADDRESS | DELETED_ADDRESS => self.address(kind == NEW_ADDRESS, body),
            NEW_ROUTE | DELETED_ROUTE => self.route(body),
            NEW_RULE | DELETED_RULE => Some(true),
            _ => None,
        }
    }

    fn link(&mut self, there: bool, body: &[u8]) -> Option<bool> {
        let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
        // Bridges speak of their ports in the same messages, as of another family.
        if *body.first()? != 0 {
            return None;
        }
        let link = Link { up: there && flags & UP == UP, loopback: flags & LOOPBACK != 0 };
        let before = if there { self.links.insert(index, link) } else { self.links.remove(&index) };
        Some(!link.loopback && before.unwrap_or_default().up != link.up)
    }

    fn address(&mut self, there: bool, body: &[u8]) -> Option<bool> {
        let (scope, index) = (*body.get(3)?, u32_at(body, 4)?);
        let attributes = Attributes(body.get(8..)?);
        // Its own end of a link between two, where both are given.
        let address = attributes.find(2).or_else(|| attributes.find(1))?.to_vec();
        let flags = attributes.find(8).and_then(|flags| u32_at(flags, 0)).unwrap_or(u32::from(*body.get(2)?));
        if scope >= SCOPE_LINK || self.is_loopback(index) || address.len() > 16 {
            return Some(false);
        }
        let key = (index, address);
        Some(if there && flags & UNUSABLE == 0 { self.addresses.insert(key) } else { self.addresses.remove(&key) })
    }

    fn route(&self, body: &[u8]) -> Option<bool> {
        let attributes = Attributes(body.get(12..)?);
        let (family, kind, flags) = (*body.first()?, *body.get(7)?, u32_at(body, 8)?);
        let table = attributes.find(15).and_then(|table| u32_at(table, 0)).unwrap_or(u32::from(*body.get(4)?));
        let loopback = attributes.find(4).and_then(|index| u32_at(index, 0)).is_some_and(|index| self.is_loopback(index));
        let near = attributes.find(1).is_some_and(|to| reaches_one_cable(family, to));
        let relevant = INET.contains(&family) && table != TABLE_LOCAL && !OF_ADDRESSES.contains(&kind) && flags & CACHED == 0;
        Some(relevant && !loopback && !near)
    }

    fn is_loopback(&self, index: u32) -> bool {
        self.links.get(&index).is_some_and(|link| link.loopback)
    }
}

/// Link-local or multicast.
fn reaches_one_cable(family: u8, to: &[u8]) -> bool {
    match (family == INET[0], to) {
        (true, [169, 254, ..] | [224..=239, ..]) | (false, [0xff, ..]) => true,
        (false, [0xfe, second, ..]) => second & 0xc0 == 0x80,
        _ => false,
    }
}

/// The attributes after a message's head.
struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    fn find(&self, wanted: u16) -> Option<&'a [u8]> {
        let mut rest = self.0;
        loop {
            let (length, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)? & 0x3fff);
            let value = rest.get(4..length)?;
            if kind == wanted {
                return Some(value);
            }
            rest = rest.get(aligned(length)..)?;
        }
    }
}

fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
