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
