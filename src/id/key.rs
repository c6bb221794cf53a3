//! The secret key of a node. It signs; it never shows itself: not in `Debug`, not in an error, not through serde.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use super::NodeId;

/// PKCS#8 v1 of an Ed25519 key up to its seed (RFC 8410, section 7); `openssl genpkey -algorithm ed25519` writes the same.
const PKCS8_HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// The secret key of a node: an Ed25519 seed (RFC 8032), wiped from memory when its last clone goes.
///
/// Clones share one copy of the seed. `Debug` shows the id only.
///
/// ```
/// # use voltmesh::id::SecretKey;
/// let key = SecretKey::generate();
/// let signature = key.sign(b"hello");
/// assert!(key.id().verify(b"hello", &signature));
/// ```
#[derive(Clone)]
pub struct SecretKey {
    seed: Arc<Zeroizing<[u8; 32]>>,
    id: NodeId,
}

/// Why bytes are not a secret key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not the PKCS#8 form of an Ed25519 key.
    #[error("this is no Ed25519 key in PKCS#8 form (RFC 8410); `openssl genpkey -algorithm ed25519` makes such a key")]
    NotPkcs8,
}

impl SecretKey {
    /// A new key from the system's randomness.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: no key made then could be safe.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rand::fill(seed.as_mut()).expect("the operating system gives random bytes");
        Self::from_seed(&seed)
    }

    /// The key of this seed (RFC 8032, 5.1.5). Wipe your own copy of it.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let id = NodeId::from_bytes(public_key(&pair(seed)));
        let mut own = Arc::new(Zeroizing::new([0; 32]));
        // Filled in place: no copy of the seed is left on the stack.
        Arc::get_mut(&mut own).expect("it was just made, nobody shares it").copy_from_slice(seed);
        Self { seed: own, id }
    }

    /// The id that this key proves.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The Ed25519 signature of `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = pair(&self.seed).sign(message);
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    /// The key as PKCS#8 v1 DER (RFC 8410), 48 bytes, wiped when dropped.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(PKCS8_HEAD.len() + 32));
        der.extend_from_slice(&PKCS8_HEAD);
        der.extend_from_slice(self.seed.as_slice());
        der
    }

    /// Reads [`to_pkcs8_der`](Self::to_pkcs8_der)'s form, and that form only.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let seed = der.strip_prefix(&PKCS8_HEAD).and_then(|seed| seed.try_into().ok());
        seed.map(Self::from_seed).ok_or(KeyError::NotPkcs8)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {}, redacted)", self.id.short())
    }
}

fn pair(seed: &[u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are an Ed25519 seed")
}

fn public_key(pair: &Ed25519KeyPair) -> [u8; 32] {
    pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes")
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// Seed, public key, message and signature: RFC 8032, section 7.1, tests 1 to 3.
    const RFC_8032: [[&str; 4]; 3] = [
        [
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ],
        [
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ],
        [
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ],
    ];

    fn hex(text: &str) -> Vec<u8> {
        HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_and_signatures_are_those_of_rfc_8032() {
        for [seed, public, message, signature] in RFC_8032.map(|vector| vector.map(hex)) {
            let key = SecretKey::from_seed(&seed.try_into().unwrap());
            assert_eq!(key.id().as_bytes().as_slice(), public);
            assert_eq!(key.sign(&message).as_slice(), signature);
            assert!(key.id().verify(&message, &signature));
            for bit in 0..signature.len() * 8 {
                let mut changed = signature.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!key.id().verify(&message, &changed), "bit {bit}");
            }
            assert!(!key.id().verify(b"another message", &signature));
            assert!(!key.id().verify(&message, &signature[..63]));
            assert!(!SecretKey::from_seed(&[1; 32]).id().verify(&message, &signature));
        }
    }

    #[test]
    fn pkcs8_keeps_the_key_and_is_read_strictly() {
        let key = SecretKey::generate();
        let der = key.to_pkcs8_der();
        assert_eq!(SecretKey::from_pkcs8_der(&der).unwrap().id(), key.id());
        for end in 0..der.len() {
            assert_eq!(SecretKey::from_pkcs8_der(&der[..end]).unwrap_err(), KeyError::NotPkcs8);
        }
        assert!(SecretKey::from_pkcs8_der(&[der.as_slice(), &[0]].concat()).is_err());
        assert!(Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).is_ok(), "others read it too");
    }

    #[test]
    fn debug_never_shows_the_seed() {
        let seed = [0xab; 32];
        let key = SecretKey::from_seed(&seed);
        for shown in [format!("{key:?}"), format!("{key:#?}"), format!("{:?}", Some(key.clone()))] {
            assert!(shown.contains(&key.id().short()));
            for secret in ["171", "ab, ab", "abab", "0xab", "q6ur"] {
                assert!(!shown.to_lowercase().contains(secret), "{shown}");
            }
        }
    }

    #[test]
    fn new_keys_differ() {
        assert_ne!(SecretKey::generate().id(), SecretKey::generate().id());
    }
}
