//! A ticket: one line of text that says how to reach a node. Both directions are here, writing and reading.
//!
//! `volt1` + lower-case base32 (RFC 4648, no padding) of: version `1`, payload, CRC-32. The payload is the id (32 bytes), the
//! addresses, the relays (count `u8`, then id and addresses of each), and the invite secret (`0`, or `1` and 16 bytes).
//! Addresses are a count `u8`, then `4` + 4 bytes or `6` + 16 bytes, then the port, big-endian. The CRC (ISO-HDLC,
//! big-endian) runs over `volt1`, the version and the payload: it finds slips of the hand, it proves nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use zeroize::Zeroizing;

use super::NodeId;

/// Most addresses of a node, or of one relay, that a ticket names.
pub const MAX_ADDRESSES: usize = 16;
/// Most relays that a ticket names.
pub const MAX_RELAYS: usize = 8;

const PREFIX: &str = "volt1";
const VERSION: u8 = 1;
const SECRET_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const MAX_PLACE_BYTES: usize = 32 + 1 + MAX_ADDRESSES * (1 + 16 + 2);
const MAX_BYTES: usize = 1 + MAX_PLACE_BYTES + 1 + MAX_RELAYS * MAX_PLACE_BYTES + 1 + SECRET_BYTES + CRC_BYTES;
const MAX_CHARS: usize = PREFIX.len() + (MAX_BYTES * 8).div_ceil(5);

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 different symbols")
});

/// How to reach a node, and perhaps the secret that lets the bearer in.
///
/// The text form is [`Display`](fmt::Display) and [`FromStr`]. Writing takes the first [`MAX_ADDRESSES`] addresses of each
/// list and the first [`MAX_RELAYS`] relays (put the best first), and drops IPv6 scope and flow, which mean nothing
/// elsewhere. Reading refuses every text but the one that writing gives, so any slip of one character is found.
///
/// ```
/// # use voltmesh::id::{SecretKey, Ticket};
/// let ticket = Ticket::new(SecretKey::generate().id()).with_address("192.0.2.1:8658".parse()?);
/// assert_eq!(ticket.to_string().parse::<Ticket>()?, ticket);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Who it leads to.
    pub id: NodeId,
    /// Where that node can be dialled, best first.
    pub addresses: Vec<SocketAddr>,
    /// Relays that node keeps sessions with, best first.
    pub relays: Vec<Relay>,
    /// Lets the bearer in, if that node still honours it. Anybody who reads the ticket has it.
    pub secret: Option<InviteSecret>,
}

/// A relay as a ticket names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Who the relay is.
    pub id: NodeId,
    /// Where it can be dialled, best first.
    pub addresses: Vec<SocketAddr>,
}

/// The secret of an invitation: 16 random bytes, wiped when dropped, never in `Debug`.
#[derive(Clone)]
pub struct InviteSecret(Zeroizing<[u8; SECRET_BYTES]>);

impl InviteSecret {
    /// A new secret from the system's randomness.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        aws_lc_rs::rand::fill(bytes.as_mut()).expect("the operating system gives random bytes");
        Self(bytes)
    }

    /// The secret with these bytes.
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes of the secret. Do not log them.
    pub fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

impl PartialEq for InviteSecret {
    /// In constant time: how long it takes says nothing about the secret.
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.as_bytes(), other.as_bytes()).is_ok()
    }
}

impl Eq for InviteSecret {}

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InviteSecret(redacted)")
    }
}

impl Ticket {
    /// A ticket that names the node only.
    pub fn new(id: NodeId) -> Self {
        Self { id, addresses: Vec::new(), relays: Vec::new(), secret: None }
    }

    /// The same ticket with one more address, after those it has.
    pub fn with_address(mut self, address: SocketAddr) -> Self {
        self.addresses.push(address);
        self
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
        bytes.push(VERSION);
        write_place(&mut bytes, &self.id, &self.addresses);
        let relays = &self.relays[..self.relays.len().min(MAX_RELAYS)];
        bytes.push(relays.len() as u8);
        for relay in relays {
            write_place(&mut bytes, &relay.id, &relay.addresses);
        }
        bytes.push(u8::from(self.secret.is_some()));
        if let Some(secret) = &self.secret {
            bytes.extend_from_slice(secret.as_bytes());
        }
        let crc = checksum(&bytes);
        bytes.extend_from_slice(&crc);
        bytes
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", Zeroizing::new(BASE32.encode(&self.encode())).as_str())
    }
}

/// Why a text is not a ticket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It does not start as a ticket.
    #[error("a ticket starts with `{PREFIX}`; give the whole text, as it was printed, in lower case")]
    Prefix,
    /// It is longer than any ticket.
    #[error("a ticket has at most {MAX_CHARS} characters, this one has {chars}; copy the ticket alone")]
    TooLong {
        /// How many it has.
        chars: usize,
    },
    /// A character that no ticket has.
    #[error("a ticket holds no {character:?}, only a-z and 2-7; copy it again, without spaces or line breaks")]
    Character {
        /// The first one.
        character: char,
    },
    /// Characters are wrong or missing.
    #[error("the ticket was changed or cut on its way (its checksum does not fit); copy the whole text again")]
    Checksum,
    /// A newer kind of ticket.
    #[error("the ticket is of version {version}, this program reads version {VERSION}; update it, or ask for an older ticket")]
    Version {
        /// The version it names.
        version: u8,
    },
    /// The checksum fits, the content does not: whoever made it made it wrong.
    #[error("the ticket is damaged ({what}) though its checksum fits; ask for a new one")]
    Content {
        /// What is wrong.
        what: &'static str,
    },
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let digits = text.strip_prefix(PREFIX).ok_or(TicketError::Prefix)?;
        if text.len() > MAX_CHARS {
            return Err(TicketError::TooLong { chars: text.chars().count() });
        }
        if let Some(character) = digits.chars().find(|c| !matches!(c, 'a'..='z' | '2'..='7')) {
            return Err(TicketError::Character { character });
        }
        // Fails for a length that no bytes give, and for bits left over that are not zero.
        let bytes = Zeroizing::new(BASE32.decode(digits.as_bytes()).map_err(|_| TicketError::Checksum)?);
        let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(TicketError::Checksum)?;
        if checksum(body) != *crc {
            return Err(TicketError::Checksum);
        }
        let mut reader = Reader(body);
        match reader.byte()? {
            VERSION => reader.ticket(),
            version => Err(TicketError::Version { version }),
        }
    }
}

fn checksum(body: &[u8]) -> [u8; CRC_BYTES] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(PREFIX.as_bytes());
    crc.update(body);
    crc.finalize().to_be_bytes()
}

fn write_place(bytes: &mut Vec<u8>, id: &NodeId, addresses: &[SocketAddr]) {
    bytes.extend_from_slice(id.as_bytes());
    let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
    bytes.push(addresses.len() as u8);
    for address in addresses {
        match address.ip() {
            IpAddr::V4(ip) => {
                bytes.push(4);
                bytes.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                bytes.push(6);
                bytes.extend_from_slice(&ip.octets());
            }
        }
        bytes.extend_from_slice(&address.port().to_be_bytes());
    }
}

/// What is left to read of a ticket's body. Every count is checked before anything is allocated for it.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn ticket(mut self) -> Result<Ticket, TicketError> {
        let (id, addresses) = self.place()?;
        let count = self.count(MAX_RELAYS, "too many relays")?;
        let mut relays = Vec::with_capacity(count);
        for _ in 0..count {
            let (id, addresses) = self.place()?;
            relays.push(Relay { id, addresses });
        }
        let secret = match self.byte()? {
            0 => None,
            1 => Some(InviteSecret::from_bytes(self.take()?)),
            _ => return Err(content("an unknown kind of secret")),
        };
        if self.0.is_empty() { Ok(Ticket { id, addresses, relays, secret }) } else { Err(content("more after its end")) }
    }

    fn place(&mut self) -> Result<(NodeId, Vec<SocketAddr>), TicketError> {
        let id = NodeId::from_bytes(self.take()?);
        if id.is_weak() {
            return Err(content("an id anybody can sign for"));
        }
        let count = self.count(MAX_ADDRESSES, "too many addresses")?;
        let addresses = (0..count).map(|_| self.address()).collect::<Result<_, _>>()?;
        Ok((id, addresses))
    }

    fn address(&mut self) -> Result<SocketAddr, TicketError> {
        let ip = match self.byte()? {
            4 => IpAddr::from(self.take::<4>()?),
            6 => IpAddr::from(self.take::<16>()?),
            _ => return Err(content("an unknown kind of address")),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.take()?)))
    }

    fn count(&mut self, most: usize, what: &'static str) -> Result<usize, TicketError> {
        let count = usize::from(self.byte()?);
        if count > most { Err(content(what)) } else { Ok(count) }
    }

    fn byte(&mut self) -> Result<u8, TicketError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], TicketError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(content("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }
}

fn content(what: &'static str) -> TicketError {
    TicketError::Content { what }
}

#[cfg(test)]
mod tests;
