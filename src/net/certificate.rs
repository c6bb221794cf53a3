//! The certificate of a node, made and judged. It carries the key and proves that whoever made it has the secret; names, dates
//! and extensions in it mean nothing here. That the peer of *this* connection has the secret, TLS shows ([`tls`](super::tls)).

use bincode::{Decode, Encode};
use rcgen::{CertificateParams, DistinguishedName, DnType, PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::nom::Parser;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::id::{NodeId, SecretKey};
use crate::proto::codec::Message;
use crate::proto::limits;

/// `id-Ed25519`, 1.3.101.112, the content of the OID (RFC 8410, section 3).
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
/// What follows the signed part of a certificate, up to the signature: `AlgorithmIdentifier` and the head of the `BIT STRING`.
const SIGNATURE_HEAD: [u8; 10] = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 65, 0];

/// The key of whoever presented these certificates: exactly one, self-signed, Ed25519 (RFC 5280 by form, RFC 8410 by key).
///
/// Dates are not judged: devices have wrong clocks, and a date that one gives oneself proves nothing.
pub(crate) fn peer_id(certificates: &[CertificateDer<'_>]) -> Result<NodeId, CertificateError> {
    match certificates {
        [] => Err(CertificateError::NoCertificate),
        [certificate] => judge(certificate),
        more => Err(CertificateError::Chain { count: more.len() }),
    }
}

/// The key in a certificate that [`peer_id`] has accepted already: its own signature is not verified again.
pub(crate) fn accepted_id(certificate: &CertificateDer<'_>) -> Result<NodeId, CertificateError> {
    key(&parse(certificate)?.tbs_certificate.subject_pki)
}

/// The certificate that a node presents. The same key always gives the same bytes, about 260 of them.
pub(crate) fn make(key: &SecretKey) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "volt");
    let id = key.id();
    Ok(params.self_signed(&Signer { key, id: *id.as_bytes() })?.der().clone())
}

/// Why a certificate is not that of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// None was presented.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// More than one was presented.
    #[error("the peer presented {count} certificates; a node has one, signed by itself")]
    Chain {
        /// How many.
        count: usize,
    },
    /// It is larger than [`limits::CERTIFICATE_BYTES`].
    #[error("the peer's certificate has {bytes} bytes, more than the {} allowed", limits::CERTIFICATE_BYTES)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is no X.509 certificate.
    #[error("the peer's certificate is not X.509")]
    NotX509,
    /// Something follows the certificate or its signature, or the unsigned parts are not in their one form (DER).
    #[error("the peer's certificate has bytes after its end, or is not DER")]
    TrailingBytes,
    /// Its key is of a kind that names no node.
    #[error("the peer's certificate has a key of kind {key}; a node's key is Ed25519")]
    Algorithm {
        /// The kind of its key.
        key: OtherKey,
    },
    /// Its key is of no kind known here.
    #[error("the peer's certificate has a key of an unknown kind; a node's key is Ed25519")]
    UnknownKey,
    /// It says Ed25519, but its key is none: wrong length, or parameters where there are none.
    #[error("the peer's certificate has a malformed Ed25519 key")]
    MalformedKey,
    /// Its key is one for which anybody can sign.
    #[error("the peer's certificate has a weak key, for which anybody can sign")]
    WeakKey,
    /// It was issued by somebody else, or signed with another algorithm.
    #[error("the peer's certificate is not signed by itself; a node needs no authority")]
    NotSelfSigned,
    /// Its signature does not fit its own key.
    #[error("the signature of the peer's certificate does not fit its key")]
    BadSelfSignature,
    /// The certificate is good, but the peer does not have its secret key.
    #[error("the peer does not hold the key of the certificate it presented")]
    BadHandshakeSignature,
    /// The peer is a node, but another than the one wanted.
    #[error("another node answered: {found}")]
    WrongKey {
        /// Who answered.
        found: NodeId,
    },
}

impl Message for CertificateError {
    const NAME: &'static str = "certificate error";
    const LIMIT: usize = 64;
}

/// A kind of key that a certificate may have, other than a node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum OtherKey {
    /// RSA of any size.
    Rsa,
    /// ECDSA on P-256.
    P256,
    /// Any other elliptic curve of the ECDSA kind.
    Ec,
    /// Ed448.
    Ed448,
}

impl std::fmt::Display for OtherKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rsa => "RSA",
            Self::P256 => "ECDSA P-256",
            Self::Ec => "ECDSA",
            Self::Ed448 => "Ed448",
        })
    }
}

fn judge(der: &[u8]) -> Result<NodeId, CertificateError> {
    let certificate = parse(der)?;
    let id = key(&certificate.tbs_certificate.subject_pki)?;
    check_self_signature(&certificate, der, &id)?;
    Ok(id)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > limits::CERTIFICATE_BYTES {
        return Err(CertificateError::TooLarge { bytes: der.len() });
    }
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let (rest, certificate) = parser.parse(der).map_err(|_| CertificateError::NotX509)?;
    if rest.is_empty() { Ok(certificate) } else { Err(CertificateError::TrailingBytes) }
}

fn key(info: &SubjectPublicKeyInfo<'_>) -> Result<NodeId, CertificateError> {
    if info.algorithm.algorithm.as_bytes() != ED25519 {
        return Err(other_key(&info.algorithm));
    }
    let key = &info.subject_public_key;
    let bytes = key.data.as_ref().try_into().map_err(|_| CertificateError::MalformedKey)?;
    if info.algorithm.parameters.is_some() || key.unused_bits != 0 {
        return Err(CertificateError::MalformedKey);
    }
    let id = NodeId::from_bytes(bytes);
    if id.is_weak() { Err(CertificateError::WeakKey) } else { Ok(id) }
}

fn other_key(algorithm: &AlgorithmIdentifier<'_>) -> CertificateError {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1]; // 1.2.840.113549.1.1.1, RFC 8017
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]; // 1.2.840.10045.2.1, RFC 5480
    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]; // 1.2.840.10045.3.1.7, RFC 5480
    const ED448: &[u8] = &[0x2b, 0x65, 0x71]; // 1.3.101.113, RFC 8410
    let curve = algorithm.parameters.as_ref().map(|parameters| parameters.data);
    let key = match algorithm.algorithm.as_bytes() {
        RSA => OtherKey::Rsa,
        EC if curve == Some(P256) => OtherKey::P256,
        EC => OtherKey::Ec,
        ED448 => OtherKey::Ed448,
        _ => return CertificateError::UnknownKey,
    };
    CertificateError::Algorithm { key }
}

fn check_self_signature(certificate: &X509Certificate<'_>, der: &[u8], id: &NodeId) -> Result<(), CertificateError> {
    let tbs = &certificate.tbs_certificate;
    let ed25519 = |algorithm: &AlgorithmIdentifier<'_>| algorithm.algorithm.as_bytes() == ED25519;
    if tbs.issuer.as_raw() != tbs.subject.as_raw() || !ed25519(&tbs.signature) || !ed25519(&certificate.signature_algorithm) {
        return Err(CertificateError::NotSelfSigned);
    }
    let signature = certificate.signature_value.data.as_ref();
    if signature.len() != 64 {
        return Err(CertificateError::BadSelfSignature);
    }
    // The signature covers the first part only. All else has one form; the parser would let more pass.
    let content = [tbs.as_ref(), &SIGNATURE_HEAD, signature].concat();
    if der.strip_suffix(content.as_slice()) != Some(&head(content.len())) {
        return Err(CertificateError::TrailingBytes);
    }
    if id.verify(tbs.as_ref(), signature) { Ok(()) } else { Err(CertificateError::BadSelfSignature) }
}

/// The head of a certificate whose content has this many bytes, at least 128 (X.690, 8.1.3.5 and 10.1).
fn head(content_bytes: usize) -> Vec<u8> {
    let [.., high, low] = content_bytes.to_be_bytes();
    if high == 0 { vec![0x30, 0x81, low] } else { vec![0x30, 0x82, high, low] }
}

/// Lets rcgen sign with our key without having it.
struct Signer<'a> {
    key: &'a SecretKey,
    id: [u8; 32],
}

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.id
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn judged(der: &[u8]) -> Result<NodeId, CertificateError> {
        peer_id(&[CertificateDer::from(der)])
    }

    #[test]
    fn a_node_makes_the_same_small_certificate_each_time_and_it_names_its_key() {
        let certificate = make(&key(1)).unwrap();
        assert_eq!(certificate, make(&key(1)).unwrap());
        assert_eq!(peer_id(std::slice::from_ref(&certificate)), Ok(key(1).id()));
        assert!(certificate.len() < 512, "{} bytes", certificate.len());
    }

    #[test]
    fn none_and_several_are_refused() {
        let certificate = make(&key(1)).unwrap();
        assert_eq!(peer_id(&[]), Err(CertificateError::NoCertificate));
        assert_eq!(peer_id(&[certificate.clone(), certificate]), Err(CertificateError::Chain { count: 2 }));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        for certificate in [make(&key(1)).unwrap().to_vec(), include_bytes!("../../certs/good.der").to_vec()] {
            for bit in 0..certificate.len() * 8 {
                let mut changed = certificate.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(judged(&changed).is_err(), "bit {bit}");
            }
            for end in 0..certificate.len() {
                assert!(judged(&certificate[..end]).is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn the_largest_certificate_allowed_is_judged_and_one_byte_more_is_not() {
        let bytes = limits::CERTIFICATE_BYTES;
        assert_eq!(judged(&vec![0x30; bytes]), Err(CertificateError::NotX509));
        assert_eq!(judged(&vec![0x30; bytes + 1]), Err(CertificateError::TooLarge { bytes: bytes + 1 }));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_certificate_by_chance(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert!(judged(&bytes).is_err());
        }

        #[test]
        fn a_damaged_certificate_never_names_another_key(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..6),
        ) {
            let mut der = make(&key(1)).unwrap().to_vec();
            for (at, byte, edit) in edits {
                let at = at.index(der.len());
                match edit {
                    0 => der[at] = byte,
                    1 => der.insert(at, byte),
                    _ => drop(der.remove(at)),
                }
            }
            if let Ok(id) = judged(&der) {
                prop_assert_eq!(id, key(1).id());
                prop_assert_eq!(der, make(&key(1)).unwrap().to_vec());
            }
        }

        #[test]
        fn pieces_of_two_certificates_never_name_a_key_that_did_not_sign(cut in any::<prop::sample::Index>(), shift in 0..4usize) {
            let (one, two) = (make(&key(1)).unwrap(), make(&key(2)).unwrap());
            let cut = cut.index(one.len().min(two.len()));
            let spliced = [&one[..cut], &two[cut.saturating_sub(shift)..]].concat();
            if let Ok(id) = judged(&spliced) {
                prop_assert!((id == key(1).id() && spliced == one.as_ref()) || (id == key(2).id() && spliced == two.as_ref()));
            }
        }
    }
}
