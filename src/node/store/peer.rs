//! A peer as the store keeps it, and the names an owner may give. Both directions of its JSON.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{NodeId, Relay};
use crate::proto::limits::{ADDRESSES, NAME_BYTES, RELAYS};
use crate::session::Where;

/// A peer this node's owner wants or named.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Who it is.
    pub id: NodeId,
    /// What this node's owner calls it; no two peers have the same name.
    pub name: Option<PeerName>,
    /// Where it could be dialled, best first. The store keeps the first [`ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// Relays it keeps sessions with, best first. The store keeps the first [`RELAYS`], each with as many addresses.
    pub relays: Vec<Relay>,
    /// When it was last connected, in milliseconds since 1970 (UTC).
    pub last_seen_unix_ms: Option<u64>,
    /// Whether to hold a session with it.
    pub wanted: bool,
    /// What a later version wrote and this one does not know. Leave it as it is.
    pub other: Map<String, Value>,
}

impl Peer {
    /// A peer nothing else is known of, and not wanted.
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            name: None,
            addresses: Vec::new(),
            relays: Vec::new(),
            last_seen_unix_ms: None,
            wanted: false,
            other: Map::new(),
        }
    }

    /// Where it may be reached.
    pub fn at(&self) -> Where {
        Where { addresses: self.addresses.clone(), relays: self.relays.clone(), ..Where::default() }
    }

    pub(super) fn to_json(&self) -> String {
        let relay = |relay: &Relay| Place { id: relay.id, addresses: first(&relay.addresses, ADDRESSES) };
        let record = Record {
            name: self.name.clone(),
            addresses: first(&self.addresses, ADDRESSES),
            relays: self.relays.iter().take(RELAYS).map(relay).collect(),
            last_seen_unix_ms: self.last_seen_unix_ms,
            wanted: self.wanted,
            other: self.other.clone(),
        };
        serde_json::to_string(&record).expect("its fields are text, numbers and lists")
    }

    pub(super) fn from_json(id: NodeId, json: &str) -> Result<Self, serde_json::Error> {
        let Record { name, addresses, relays, last_seen_unix_ms, wanted, other } = serde_json::from_str(json)?;
        let relays = relays.into_iter().map(|place| Relay { id: place.id, addresses: place.addresses }).collect();
        Ok(Self { id, name, addresses, relays, last_seen_unix_ms, wanted, other })
    }
}

/// The value of a row; the key is the id.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(default)]
    name: Option<PeerName>,
    #[serde(default)]
    addresses: Vec<SocketAddr>,
    #[serde(default)]
    relays: Vec<Place>,
    #[serde(default)]
    last_seen_unix_ms: Option<u64>,
    #[serde(default)]
    wanted: bool,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    id: NodeId,
    addresses: Vec<SocketAddr>,
}

fn first(addresses: &[SocketAddr], most: usize) -> Vec<SocketAddr> {
    addresses.iter().take(most).copied().collect()
}

/// A name this node's owner gave a peer: 1 to 255 bytes that cannot be taken for an id, a ticket, a pattern or an option.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(String);

/// Why a text cannot be the name of a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerNameError {
    /// Nothing, or more than [`NAME_BYTES`].
    #[error("a peer's name has 1 to {NAME_BYTES} bytes, this has {0}")]
    Length(usize),
    /// A character with a meaning elsewhere, or none that can be seen.
    #[error("a peer's name has no {0:?}: letters, digits, spaces inside, `-`, `_` and `.` are fine")]
    Character(char),
    /// A space at an end, or `-` in front.
    #[error("a peer's name neither starts nor ends with a space, nor starts with `-`")]
    Edge,
    /// Like an id or a ticket.
    #[error("a peer's name does not start with `{0}`: it would be taken for an id or a ticket")]
    Reserved(&'static str),
}

/// Starts of tickets, and of ids whose `did:key:` was left out.
const RESERVED: [&str; 2] = ["volt1", "z6Mk"];

impl PeerName {
    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerName {
    type Err = PeerNameError;

    fn from_str(text: &str) -> Result<Self, PeerNameError> {
        if !(1..=NAME_BYTES).contains(&text.len()) {
            return Err(PeerNameError::Length(text.len()));
        }
        if let Some(bad) = text.chars().find(|c| c.is_control() || "/@:*".contains(*c)) {
            return Err(PeerNameError::Character(bad));
        }
        if text.trim() != text || text.starts_with('-') {
            return Err(PeerNameError::Edge);
        }
        let like = |start: &&&str| text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start));
        match RESERVED.iter().find(like) {
            Some(start) => Err(PeerNameError::Reserved(start)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for PeerName {
    type Error = PeerNameError;

    fn try_from(text: String) -> Result<Self, PeerNameError> {
        text.parse()
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_taken_for_something_else_is_refused() {
        let id = NodeId::from_bytes([7; 32]).to_string();
        for bad in
            ["", "a/b", "a@b", "service:x", "*", "a\nb", "a\u{7f}", " a", "a ", "-a", "volt1abc", "VOLT1abc", &id, &id[8..]]
        {
            assert!(bad.parse::<PeerName>().is_err(), "{bad:?}");
        }
        for good in ["bob", "Bob's phone", "küche", "volt", "my-volt1", "10.0.0.7", "ж"] {
            assert_eq!(good.parse::<PeerName>().unwrap().as_str(), good);
        }
        assert!("x".repeat(NAME_BYTES).parse::<PeerName>().is_ok());
        assert!("x".repeat(NAME_BYTES + 1).parse::<PeerName>().is_err());
    }

    #[test]
    fn what_a_later_version_wrote_is_kept() {
        let id = NodeId::from_bytes([7; 32]);
        let json = r#"{"name":"bob","wanted":true,"colour":{"of":"door"}}"#;
        let peer = Peer::from_json(id, json).unwrap();
        let again: Value = serde_json::from_str(&peer.to_json()).unwrap();
        assert_eq!((again["colour"]["of"].as_str(), again["name"].as_str()), (Some("door"), Some("bob")));
        assert_eq!(Peer::from_json(id, &peer.to_json()).unwrap(), peer);
    }

    #[test]
    fn more_addresses_than_the_bound_are_not_kept() {
        let addresses: Vec<SocketAddr> = (1..100).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect();
        let id = NodeId::from_bytes([7; 32]);
        let relays = vec![Relay { id, addresses: addresses.clone() }; 20];
        let peer = Peer { addresses, relays, ..Peer::new(id) };
        let kept = Peer::from_json(id, &peer.to_json()).unwrap();
        assert_eq!((kept.addresses.len(), kept.relays.len(), kept.relays[0].addresses.len()), (ADDRESSES, RELAYS, ADDRESSES));
    }
}
