//! The name of a node: its Ed25519 public key, written as a `did:key`.
//!
//! Source: W3C CCG, "The did:key Method v0.7": `did:key:` + multibase base58btc (`z`) of the multicodec prefix 0xed 0x01 and
//! the 32 bytes of the key. Only this one form is read; a DID URL with a path, query or fragment is refused.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What comes before the base58 text; `z` is multibase's sign for base58btc.
const DID_PREFIX: &str = "did:key:z";
/// Multicodec `ed25519-pub` (0xed) as an unsigned varint.
const MULTICODEC: [u8; 2] = [0xed, 0x01];
/// Every Ed25519 `did:key` has this many characters: 34 bytes that start with 0xed fill 47 base58 digits.
const DID_CHARS: usize = DID_PREFIX.len() + 47;

/// The identity of a node: its 32-byte Ed25519 public key (RFC 8032).
///
/// As text it is a `did:key:z6Mk…` of 56 characters, in serde as well; in bincode it is the 32 bytes, without a length.
/// Equal keys are equal ids; the order is that of the bytes.
///
/// ```
/// # use voltmesh::id::NodeId;
/// let id: NodeId = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK".parse()?;
/// assert_eq!(id.short(), "z6MkhaXgBZ");
/// # Ok::<(), voltmesh::id::NodeIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The id with these bytes. Any 32 bytes are an id; that somebody holds its secret key shows only a signature.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first ten characters of the key's text, for logs. Not unique: never compare by it.
    pub fn short(&self) -> String {
        self.multibase()[..10].to_owned()
    }

    /// Whether `signature` (64 bytes) is this key's Ed25519 signature of `message` (RFC 8032, 5.1.7).
    ///
    /// Always false for the few [weak](Self::is_weak) keys: signatures that fit those can be made without a secret.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        !self.is_weak() && UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }

    /// Whether the key is a point of small order, which nobody can hold alone: one signature fits many messages.
    pub fn is_weak(&self) -> bool {
        let mut key = self.0;
        key[31] &= 0x7f;
        SMALL_ORDER.contains(&key)
    }

    fn multibase(&self) -> String {
        let mut bytes = [0; 34];
        bytes[..2].copy_from_slice(&MULTICODEC);
        bytes[2..].copy_from_slice(&self.0);
        format!("z{}", bs58::encode(bytes).into_string())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("did:key:{}", self.multibase()))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

/// Why a text is not the id of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeIdError {
    /// It does not start as a `did:key` in base58.
    #[error("a node id starts with `{DID_PREFIX}`; give the whole text, as `volt id` prints it")]
    Prefix,
    /// It has the wrong length.
    #[error("a node id has {DID_CHARS} characters, this one has {chars}; copy the whole text, without spaces")]
    Length {
        /// How many characters it has.
        chars: usize,
    },
    /// A character is no base58 digit.
    #[error("a node id holds no `{character}` (base58 has no 0, O, I or l); copy the text again")]
    Character {
        /// The first one.
        character: char,
    },
    /// It is a `did:key` of something other than an Ed25519 key.
    #[error("this did:key is not of an Ed25519 key, so it names no node; a node's id starts with `did:key:z6Mk`")]
    NotEd25519,
    /// The key is a point of small order, for which anybody can sign.
    #[error("anybody can sign as this id (its key is weak); ask for the right id")]
    Weak,
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let digits = text.strip_prefix(DID_PREFIX).ok_or(NodeIdError::Prefix)?;
        let chars = text.chars().count();
        if chars > DID_CHARS {
            return Err(NodeIdError::Length { chars });
        }
        if let Some(character) = digits.chars().find(|c| !is_base58(*c)) {
            return Err(NodeIdError::Character { character });
        }
        let bytes = bs58::decode(digits).into_vec().map_err(|_| NodeIdError::Length { chars })?;
        // Another kind of key may well have another length: name the kind first.
        let key = match bytes.strip_prefix(&MULTICODEC) {
            Some(key) => key,
            None if chars == DID_CHARS => return Err(NodeIdError::NotEd25519),
            None => return Err(NodeIdError::Length { chars }),
        };
        let id = Self(key.try_into().map_err(|_| NodeIdError::Length { chars })?);
        if id.is_weak() { Err(NodeIdError::Weak) } else { Ok(id) }
    }
}

fn is_base58(c: char) -> bool {
    c.is_ascii_alphanumeric() && !matches!(c, '0' | 'O' | 'I' | 'l')
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = NodeId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node id, `did:key:z6Mk…`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<NodeId, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The encodings of the points of order 1, 2, 4 and 8, without the sign bit; the last two are not reduced modulo p.
/// Source: Cremers, Jackson, "Prime, Order Please!" (2019), appendix; libsodium's `ge25519_has_small_order` has the same.
const SMALL_ORDER: [[u8; 32]; 7] = [
    last(&[0x00], 0x00, 0x00),
    last(&[0x01], 0x00, 0x00),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05,
        0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa,
        0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    last(&[0xec], 0xff, 0x7f),
    last(&[0xed], 0xff, 0x7f),
    last(&[0xee], 0xff, 0x7f),
];

/// 32 bytes: `first`, then `fill`, and at the end `end`.
const fn last(first: &[u8; 1], fill: u8, end: u8) -> [u8; 32] {
    let mut bytes = [fill; 32];
    bytes[0] = first[0];
    bytes[31] = end;
    bytes
}
