//! What an invitation proves, and to whom. Its secret makes a key pair: who has the secret vouches with it for one node, and sends the
//! public half and the signature, never the secret. Who issued it kept a hash of the public half, which opens nothing.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

use super::{InviteSecret, NodeId, SecretKey};

/// Who reads a signature knows what was meant by it.
const LABEL: &[u8; 20] = b"voltmesh invitation\0";

/// An invitation, as whoever issued it remembers it: by a hash, from which neither the secret nor the key can be had.
#[derive(Clone, Copy)]
pub struct InviteHash([u8; 32]);

/// The word of who has an invitation that a certain node is to be let in by a certain other one. It is of no use to anybody else, nor
/// elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouch {
    /// The public half of the invitation's key.
    pub key: [u8; 32],
    /// Its signature over both ids.
    pub signature: [u8; 64],
}

impl InviteSecret {
    /// Vouches for `joiner` towards `issuer`.
    pub fn vouch(&self, joiner: &NodeId, issuer: &NodeId) -> Vouch {
        let key = self.key();
        Vouch { key: *key.id().as_bytes(), signature: key.sign(&message(joiner, issuer)) }
    }

    /// What its issuer keeps.
    pub fn hash(&self) -> InviteHash {
        InviteHash::of(self.key().id().as_bytes())
    }

    /// The key pair of this secret: its seed is derived by HKDF with SHA-256 (RFC 5869) from the 16 bytes.
    fn key(&self) -> SecretKey {
        struct Seed;
        impl KeyType for Seed {
            fn len(&self) -> usize {
                32
            }
        }
        let derived = Salt::new(HKDF_SHA256, &[]).extract(self.as_bytes());
        let mut seed = Zeroizing::new([0; 32]);
        derived
            .expand(&[LABEL], Seed)
            .and_then(|expanded| expanded.fill(seed.as_mut()))
            .expect("32 bytes are no more than HKDF gives");
        SecretKey::from_seed(&seed)
    }
}

impl Vouch {
    /// Which invitation speaks, if it speaks for `joiner` towards `issuer`.
    pub fn verify(&self, joiner: &NodeId, issuer: &NodeId) -> Option<InviteHash> {
        let key = NodeId::from_bytes(self.key);
        (!key.is_weak() && key.verify(&message(joiner, issuer), &self.signature)).then(|| InviteHash::of(&self.key))
    }
}

impl InviteHash {
    fn of(key: &[u8; 32]) -> Self {
        Self(digest(&SHA256, key).as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The hash with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A short name for it, for its owner's eyes.
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..5])
    }
}

impl PartialEq for InviteHash {
    /// In constant time: how long it takes says nothing about how much of it fits.
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for InviteHash {}

impl fmt::Debug for InviteHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteHash({})", self.short())
    }
}

fn message(joiner: &NodeId, issuer: &NodeId) -> [u8; 84] {
    let mut message = [0; 84];
    message[..20].copy_from_slice(LABEL);
    message[20..52].copy_from_slice(joiner.as_bytes());
    message[52..].copy_from_slice(issuer.as_bytes());
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes() -> [NodeId; 3] {
        [1u8, 2, 3].map(|seed| SecretKey::from_seed(&[seed; 32]).id())
    }

    #[test]
    fn an_invitation_vouches_for_one_node_towards_one_other() {
        let [joiner, issuer, other] = nodes();
        let secret = InviteSecret::from_bytes([7; 16]);
        let vouch = secret.vouch(&joiner, &issuer);
        assert_eq!(vouch.verify(&joiner, &issuer), Some(secret.hash()));
        for (joiner, issuer) in [(other, issuer), (joiner, other), (issuer, joiner)] {
            assert_eq!(vouch.verify(&joiner, &issuer), None);
        }
        assert_ne!(InviteSecret::from_bytes([8; 16]).hash(), secret.hash());
    }

    /// Held still: an invitation that was printed must be good after an update.
    #[test]
    fn the_key_of_a_secret_never_changes() {
        let hash = InviteSecret::from_bytes(*b"sixteen bytes it").hash();
        assert_eq!(hash.short(), "8c3594bdb6");
    }

    proptest! {
        #[test]
        fn a_changed_vouch_is_nobodys(at in 0usize..96, bit in 0u8..8) {
            let [joiner, issuer, _] = nodes();
            let mut vouch = InviteSecret::from_bytes([7; 16]).vouch(&joiner, &issuer);
            match at.checked_sub(32) {
                None => vouch.key[at] ^= 1 << bit,
                Some(at) => vouch.signature[at] ^= 1 << bit,
            }
            prop_assert_eq!(vouch.verify(&joiner, &issuer), None);
        }
    }
}
