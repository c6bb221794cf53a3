//! TLS as nodes speak it: 1.3 only, both sides prove their key, and nothing is resumed, since resumption skips the verifiers.
//! It says who the peer is. What the peer may do is never decided here.

use std::fmt;
use std::sync::{Arc, LazyLock};

use data_encoding::HEXLOWER;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group, sign};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme};

pub(crate) use super::certificate::{CertificateError, peer_id};
use super::certificate::{accepted_id, make};
use crate::id::{NodeId, SecretKey};
use crate::proto::codec;

/// The protocol that links speak (RFC 7301).
pub(crate) const ALPN: &[u8] = b"volt/1";

/// Why TLS could not be set up with a key. A fault of this program or its libraries, never of a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// rustls does not take the configuration.
    #[error("cannot configure TLS: {0}")]
    Config(#[from] rustls::Error),
    /// quinn does not take the configuration.
    #[error("cannot configure QUIC: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// How a node answers: presents `key`, demands the peer's.
pub(crate) fn server_config(key: &SecretKey, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier { wanted: None }))
        .with_cert_resolver(Arc::new(identity(key)?));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// How a node dials: presents `key`, takes any node's. The caller compares [`peer_id`] with whom it wants, or asks for
/// [`wanting`] at once. The server name it dials is of no meaning; give a fixed one, so that it says nothing on the network.
pub(crate) fn client_config(key: &SecretKey, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { wanted: None }))
        .with_client_cert_resolver(Arc::new(identity(key)?));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The same, but the handshake itself fails with [`CertificateError::WrongKey`] when another node than `id` answers. That
/// node then never learns who dialled: the client shows its certificate only after it accepted the server's.
pub(crate) fn wanting(config: &ClientConfig, id: NodeId) -> ClientConfig {
    let mut config = config.clone();
    config.dangerous().set_certificate_verifier(Arc::new(Verifier { wanted: Some(id) }));
    config
}

/// [`server_config`] for quinn.
pub(crate) fn quinn_server_crypto(key: &SecretKey, alpn: &[u8]) -> Result<Arc<QuicServerConfig>, TlsError> {
    Ok(Arc::new(QuicServerConfig::try_from(server_config(key, alpn)?)?))
}

/// [`wanting`] for quinn.
pub(crate) fn quinn_wanting(config: &ClientConfig, id: NodeId) -> Result<Arc<QuicClientConfig>, TlsError> {
    Ok(Arc::new(QuicClientConfig::try_from(wanting(config, id))?))
}

/// Why *we* refused the peer's certificate, if that is how the connection failed. `None` when the peer refused ours: of that
/// we learn no more than an alert.
pub(crate) fn certificate_error(error: &quinn::ConnectionError) -> Option<CertificateError> {
    match error {
        // Found here, not told by the peer: that would be `ConnectionClosed`.
        quinn::ConnectionError::TransportError(error) => Refused::find(&error.reason),
        _ => None,
    }
}

/// The same, of a handshake without quinn.
pub(crate) fn certificate_error_of_tls(error: &rustls::Error) -> Option<CertificateError> {
    Refused::find(&error.to_string())
}

/// Ciphers, the fastest first; key exchange, hybrid post-quantum first.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        // Ours verifies signatures; rustls has nothing left to verify.
        signature_verification_algorithms: WebPkiSupportedAlgorithms { all: &[], mapping: &[] },
        ..default_provider()
    })
});

fn identity(key: &SecretKey) -> Result<SingleCertAndKey, TlsError> {
    let der = key.to_pkcs8_der();
    let signing = sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()))?;
    Ok(CertifiedKey::new(vec![make(key)?], signing).into())
}

/// Judges the certificate and the handshake signature of a peer, on either side.
#[derive(Debug)]
struct Verifier {
    /// The only node to accept, if it matters.
    wanted: Option<NodeId>,
}

impl Verifier {
    fn judge(&self, first: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let found = match more.len() {
            0 => peer_id(std::slice::from_ref(first)).map_err(refuse)?,
            more => return Err(refuse(CertificateError::Chain { count: 1 + more })),
        };
        match self.wanted {
            Some(wanted) if wanted != found => Err(refuse(CertificateError::WrongKey { found })),
            _ => Ok(()),
        }
    }
}

/// The peer signed this handshake with the key of its certificate (RFC 8446, 4.4.3), which rustls had us judge before.
fn judge_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let id = accepted_id(certificate).map_err(refuse)?;
    if signed.scheme == SignatureScheme::ED25519 && id.verify(message, signed.signature()) {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(refuse(CertificateError::BadHandshakeSignature))
    }
}

fn never_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        first: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(first, more).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        judge_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        first: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(first, more).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        judge_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Our error on its way through rustls and quinn. quinn keeps only the text of a TLS error and sends it to the peer as well, so
/// the text is a code, from which [`find`](Self::find) makes the error again.
struct Refused(CertificateError);

impl Refused {
    const MARK: &'static str = "volt certificate ";

    fn find(text: &str) -> Option<CertificateError> {
        // rustls itself notices that there is none, and has its own error for it.
        if text.ends_with(&rustls::Error::NoCertificatesPresented.to_string()) {
            return Some(CertificateError::NoCertificate);
        }
        let (_, code) = text.split_once(Self::MARK)?;
        let end = code.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(code.len());
        codec::decode(&HEXLOWER.decode(&code.as_bytes()[..end]).ok()?).ok()
    }
}

fn refuse(error: CertificateError) -> rustls::Error {
    rustls::Error::InvalidCertificate(rustls::CertificateError::Other(OtherError(Arc::new(Refused(error)))))
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::MARK, HEXLOWER.encode(&codec::encode(&self.0)))
    }
}

impl fmt::Debug for Refused {
    /// The same: rustls shows foreign errors by their `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests;
