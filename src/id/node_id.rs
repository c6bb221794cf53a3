//! The name of a node: its Ed25519 public key, written as a `did:key`.
//!
//! Source: W3C CCG, "The did:key Method v0.7": `did:key:` + multibase base58btc (`z`) of the multicodec prefix 0xed 0x01 and
//! the 32 bytes of the key. Only this one form is read; a DID URL with a path, query or fragment is refused.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bincode::{Decode, Encode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What comes before the base58 text; `z` is multibase's sign for base58btc.
const DID_PREFIX: &str = "did:key:z";
/// What the base58 text of every Ed25519 key starts with: MULTICODEC fixes these digits.
const ED25519_DIGITS: &str = "6Mk";
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
    #[error("a node id has {DID_CHARS} characters, this one has {chars}; copy the whole text")]
    Length {
        /// How many characters it has.
        chars: usize,
    },
    /// A character is no base58 digit.
    #[error("a node id holds no {character:?} (only digits and letters, and no 0, O, I or l); copy it again, without spaces")]
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
        if !digits.starts_with(ED25519_DIGITS) {
            return Err(NodeIdError::NotEd25519);
        }
        if let Some(character) = digits.chars().find(|c| !is_base58(*c)) {
            return Err(NodeIdError::Character { character });
        }
        // From here on all is ASCII.
        let wrong_length = NodeIdError::Length { chars: text.len() };
        if text.len() != DID_CHARS {
            return Err(wrong_length);
        }
        let bytes = bs58::decode(digits).into_vec().map_err(|_| wrong_length.clone())?;
        let key = bytes.strip_prefix(&MULTICODEC).ok_or(NodeIdError::NotEd25519)?;
        let id = Self(key.try_into().map_err(|_| wrong_length)?);
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

impl JsonSchema for NodeId {
    fn schema_name() -> Cow<'static, str> {
        "NodeId".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use proptest::prelude::*;

    use super::super::SecretKey;
    use super::*;

    /// W3C CCG did:key, test vectors `ed25519-x25519.json`: the seeds 0, 1, 2, 3, 4 as big-endian numbers.
    const W3C: [&str; 5] = [
        "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp",
        "did:key:z6MkjchhfUsD6mmvni8mCdXHw216Xrm9bQe2mBH1P5RDjVJG",
        "did:key:z6MknGc3ocHs3zdPiJbnaaqDi58NGb4pk1Sp9WxWufuXSdxf",
        "did:key:z6MkvqoYXQfDDJRv8L4wKzxYeuKyVZBfi9Qo6Ro8MiLH3kDQ",
        "did:key:z6MkwW6aqMnjgrhJXFUko3NnZPGzVpkNzhYK7yEhnsibmLwL",
    ];

    #[test]
    fn ids_are_written_as_in_the_published_vectors() {
        for (number, did) in W3C.iter().enumerate() {
            let mut seed = [0; 32];
            seed[31] = number as u8;
            let id = SecretKey::from_seed(&seed).id();
            assert_eq!(id.to_string(), *did);
            assert_eq!(did.parse(), Ok(id));
        }
    }

    #[test]
    fn the_example_of_the_did_key_specification_is_read() {
        let did = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
        let id: NodeId = did.parse().unwrap();
        let key = data_encoding::HEXLOWER.encode(id.as_bytes());
        assert_eq!(key, "2e6fcce36701dc791488e0d0b1745cc1e33a4c1c9fcc41c63bd343dbbe0970e6");
        assert_eq!((id.to_string().as_str(), id.short().as_str()), (did, "z6MkhaXgBZ"));
        assert_eq!(format!("{id:?}"), "NodeId(z6MkhaXgBZ)");
    }

    #[test]
    fn other_texts_are_refused_each_with_its_own_error() {
        use NodeIdError::*;
        let did = W3C[0];
        let cases = [
            ("", Prefix),
            ("z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp", Prefix),
            ("DID:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp", Prefix),
            ("did:web:example.com", Prefix),
            // Published did:key texts of X25519, secp256k1, P-256 and BLS keys.
            ("did:key:z6LSbysY2xFMRpGMhb7tFTLMpeuPRaqaWM1yECx2AtzE3KCc", NotEd25519),
            ("did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme", NotEd25519),
            ("did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169", NotEd25519),
            (&did[..55], Length { chars: 55 }),
            (&format!("{did}1"), Length { chars: 57 }),
            (&format!("{did} "), Character { character: ' ' }),
            (&format!("{did}#key"), Character { character: '#' }),
            (&did.replace("mu", "m0"), Character { character: '0' }),
            (&did.replace("mu", "mü"), Character { character: 'ü' }),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<NodeId>(), Err(error), "{text}");
        }
    }

    #[test]
    fn keys_for_which_anybody_can_sign_prove_nothing() {
        // With S = 0 the signature holds when R = -h A, and h A takes eight values at most: some R of small order fits.
        let points: Vec<[u8; 32]> = SMALL_ORDER.iter().flat_map(|p| [0, 0x80].map(|sign| flip(*p, sign))).collect();
        let mut forged = 0;
        for point in &points {
            let id = NodeId::from_bytes(*point);
            assert_eq!(id.to_string().parse::<NodeId>(), Err(NodeIdError::Weak));
            for r in &points {
                let signature = [*r, [0; 32]].concat();
                forged += usize::from(UnparsedPublicKey::new(&ED25519, point).verify(b"hello", &signature).is_ok());
                assert!(!id.verify(b"hello", &signature));
            }
        }
        assert!(forged >= 8, "the plain algorithm accepts them ({forged}), which is why they are refused here");
    }

    fn flip(mut point: [u8; 32], sign: u8) -> [u8; 32] {
        point[31] |= sign;
        point
    }

    proptest! {
        #[test]
        fn every_id_survives_text_json_and_bincode(bytes: [u8; 32]) {
            let id = NodeId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().len(), DID_CHARS);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(&json, &format!("\"{id}\""));
            prop_assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), id);
            let binary = bincode::encode_to_vec(id, bincode::config::standard()).unwrap();
            prop_assert_eq!(&binary[..], &bytes);
            prop_assert_eq!(bincode::decode_from_slice(&binary, bincode::config::standard()).unwrap(), (id, 32));
        }

        #[test]
        fn any_text_that_is_read_is_the_one_text_of_its_id(text in "did:key:z6Mk[1-9A-Za-z]{40,50}") {
            if let Ok(id) = text.parse::<NodeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
