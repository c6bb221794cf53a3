//! Handshakes of an honest node with every kind of liar, in memory and over quinn, with the node on either side.

use std::net::{Ipv4Addr, SocketAddr};

use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConnection, Connection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};

use super::*;
use crate::net::certificate::OtherKey;

/// What a peer presents, and the key it signs the handshake with. It does not judge its own certificate.
struct Peer {
    chain: Vec<CertificateDer<'static>>,
    key: SecretKey,
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// The node under test.
fn node() -> SecretKey {
    key(9)
}

fn path(name: &str) -> String {
    format!("{}/certs/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn file(name: &str) -> Vec<CertificateDer<'static>> {
    if name.ends_with(".pem") {
        return CertificateDer::pem_file_iter(path(name)).unwrap().map(Result::unwrap).collect();
    }
    vec![CertificateDer::from(std::fs::read(path(name)).unwrap())]
}

/// Every liar, with the error it is refused with.
fn liars() -> Vec<(&'static str, Peer, CertificateError)> {
    use CertificateError::*;
    let files = [
        ("ca-signed.der", NotSelfSigned),
        ("chain-of-two.pem", Chain { count: 2 }),
        ("rsa.der", Algorithm { key: OtherKey::Rsa }),
        ("p256.der", Algorithm { key: OtherKey::P256 }),
        ("p384.der", Algorithm { key: OtherKey::Ec }),
        ("ed448.der", Algorithm { key: OtherKey::Ed448 }),
        ("unknown-key.der", UnknownKey),
        ("malformed-key.der", MalformedKey),
        ("key-with-parameters.der", MalformedKey),
        ("no-point.der", BadSelfSignature),
        ("weak-key.der", WeakKey),
        ("weak-key-otherwise.der", WeakKey),
        ("issued-by-another-name.der", NotSelfSigned),
        ("other-algorithm-outside.der", NotSelfSigned),
        ("other-algorithm-inside.der", NotSelfSigned),
        ("other-algorithm.der", NotSelfSigned),
        ("bad-self-signature.der", BadSelfSignature),
        ("signed-by-another-key.der", BadSelfSignature),
        ("malleable-signature.der", BadSelfSignature),
        ("short-signature.der", BadSelfSignature),
        ("long-signature.der", BadSelfSignature),
        ("empty-signature.der", BadSelfSignature),
        ("trailing.der", TrailingBytes),
        ("trailing-inside.der", TrailingBytes),
        ("too-large.der", TooLarge { bytes: file("too-large.der")[0].len() }),
        ("wasteful-length.der", TrailingBytes),
        ("without-length.der", NotX509),
        ("not-x509.der", NotX509),
        ("raw-key.der", NotX509),
        ("empty.der", NotX509),
    ];
    let mut liars: Vec<_> = files.map(|(name, error)| (name, Peer { chain: file(name), key: key(1) }, error)).into();
    let stolen = Peer { chain: file("good.der"), key: key(2) };
    liars.push(("a certificate without its key", stolen, BadHandshakeSignature));
    liars.push(("no certificate", Peer { chain: Vec::new(), key: key(1) }, NoCertificate));
    liars
}

impl Peer {
    fn certified(&self) -> Arc<SingleCertAndKey> {
        let der = self.key.to_pkcs8_der();
        let signing = sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice())).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), signing).into())
    }

    fn server(&self) -> ServerConfig {
        let mut config = server_config(&self.key, ALPN).unwrap();
        config.cert_resolver = self.certified();
        config
    }

    fn client(&self) -> ClientConfig {
        let mut config = client_config(&self.key, ALPN).unwrap();
        config.client_auth_cert_resolver = self.certified();
        config
    }
}

/// How a handshake in memory ended, for the client and for the server, and their connections.
struct Met {
    client: Result<ClientConnection, rustls::Error>,
    server: Result<ServerConnection, rustls::Error>,
}

fn meet(client: ClientConfig, server: ServerConfig) -> Met {
    let name = ServerName::try_from("volt").unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::new(client), name).unwrap());
    let mut server = Connection::from(ServerConnection::new(Arc::new(server)).unwrap());
    let (mut at_client, mut at_server) = (Ok(()), Ok(()));
    while client.wants_write() || server.wants_write() {
        at_server = at_server.and(pass(&mut client, &mut server));
        at_client = at_client.and(pass(&mut server, &mut client));
    }
    let (Connection::Client(client), Connection::Server(server)) = (client, server) else { unreachable!() };
    Met { client: at_client.map(|()| client), server: at_server.map(|()| server) }
}

fn pass(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut bytes = bytes.as_slice();
    while !bytes.is_empty() {
        to.read_tls(&mut bytes).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn refused<T: fmt::Debug>(result: Result<T, rustls::Error>) -> Option<CertificateError> {
    certificate_error_of_tls(&result.unwrap_err())
}

#[test]
fn two_nodes_learn_each_others_ids_and_agree_on_the_best_there_is() {
    let met = meet(client_config(&key(1), ALPN).unwrap(), server_config(&key(2), ALPN).unwrap());
    let (mut client, server) = (met.client.unwrap(), met.server.unwrap());
    assert_eq!(peer_id(client.peer_certificates().unwrap()), Ok(key(2).id()));
    assert_eq!(peer_id(server.peer_certificates().unwrap()), Ok(key(1).id()));
    assert_eq!(client.alpn_protocol(), Some(ALPN));
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.negotiated_cipher_suite(), Some(cipher_suite::TLS13_AES_128_GCM_SHA256));
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(client.tls13_tickets_received(), 0);
    assert!(client.early_data().is_none() && !client.is_handshaking() && !server.is_handshaking());
}

#[test]
fn no_handshake_is_ever_resumed() {
    let (client, server) = (client_config(&key(1), ALPN).unwrap(), server_config(&key(2), ALPN).unwrap());
    for _ in 0..3 {
        let met = meet(client.clone(), server.clone());
        assert_eq!(met.client.unwrap().handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(met.server.unwrap().handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn another_protocol_is_refused() {
    let met = meet(client_config(&key(1), b"h3").unwrap(), server_config(&key(2), ALPN).unwrap());
    assert_eq!(met.server.unwrap_err(), rustls::Error::NoApplicationProtocol);
    assert!(met.client.is_err());
}

#[test]
fn certificates_made_elsewhere_are_as_good_and_dates_are_not_judged() {
    for name in ["good.der", "expired.der"] {
        let peer = || Peer { chain: file(name), key: key(1) };
        let met = meet(client_config(&node(), ALPN).unwrap(), peer().server());
        assert_eq!(peer_id(met.client.unwrap().peer_certificates().unwrap()), Ok(key(1).id()), "{name}");
        let met = meet(peer().client(), server_config(&node(), ALPN).unwrap());
        assert_eq!(peer_id(met.server.unwrap().peer_certificates().unwrap()), Ok(key(1).id()), "{name}");
    }
}

#[test]
fn every_bad_certificate_of_a_server_is_refused_with_its_own_error() {
    for (name, liar, error) in liars() {
        let met = meet(client_config(&node(), ALPN).unwrap(), liar.server());
        assert_eq!(refused(met.client), Some(error), "{name}");
        // rustls does not even send an alert when there is no certificate: that handshake just never ends.
        let learned = match met.server {
            Ok(server) => server.is_handshaking(),
            Err(error) => matches!(error, rustls::Error::AlertReceived(_)),
        };
        assert!(learned, "{name}: the liar learns an alert at most");
    }
}

#[test]
fn every_bad_certificate_of_a_client_is_refused_with_its_own_error() {
    for (name, liar, error) in liars() {
        let met = meet(liar.client(), server_config(&node(), ALPN).unwrap());
        assert_eq!(refused(met.server), Some(error), "{name}");
        assert!(matches!(met.client, Err(rustls::Error::AlertReceived(_))), "{name}: the liar learns an alert at most");
    }
}

#[test]
fn whoever_wants_one_node_refuses_another_and_stays_unknown_to_it() {
    let client = client_config(&node(), ALPN).unwrap();
    let met = meet(wanting(&client, key(2).id()), server_config(&key(1), ALPN).unwrap());
    assert_eq!(refused(met.client), Some(CertificateError::WrongKey { found: key(1).id() }));
    assert!(met.server.is_err());
    let met = meet(wanting(&client, key(1).id()), server_config(&key(1), ALPN).unwrap());
    assert!(met.client.is_ok() && met.server.is_ok());
}

#[test]
fn every_error_survives_its_way_as_a_code_that_tells_the_peer_nothing_else() {
    let all = liars().into_iter().map(|(_, _, error)| error).chain([CertificateError::WrongKey { found: key(1).id() }]);
    for error in all {
        let text = refuse(error).to_string();
        assert_eq!(Refused::find(&text), Some(error), "{text}");
        assert!(text.len() < 160 && !text.contains(&error.to_string()), "{text}");
    }
    for text in ["", "volt certificate ", "volt certificate 0", "volt certificate ffff", "volt certificate \u{e9}", "timed out"] {
        assert_eq!(Refused::find(text), None, "{text}");
    }
}

/// A quinn endpoint on loopback with these configurations, and its address.
fn endpoint(server: ServerConfig) -> (quinn::Endpoint, SocketAddr) {
    let crypto = Arc::new(QuicServerConfig::try_from(server).unwrap());
    let endpoint = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(crypto), (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

type Ends = (Result<quinn::Connection, quinn::ConnectionError>, Result<quinn::Connection, quinn::ConnectionError>);

/// Dials, and returns what client and server have when both handshakes are over; a connection only if it still lives then.
async fn dial(client: ClientConfig, server: ServerConfig) -> (Ends, [quinn::Endpoint; 2]) {
    let (answering, address) = endpoint(server);
    let dialling = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    let connecting = dialling.connect_with(config, address, "volt").unwrap();
    let ends = tokio::join!(connecting, async { answering.accept().await.unwrap().await });
    (ends, [answering, dialling])
}

#[tokio::test]
async fn over_quic_every_liar_is_refused_with_its_own_error_and_hears_no_words() {
    for (name, liar, error) in liars() {
        let ((client, server), _endpoints) = dial(client_config(&node(), ALPN).unwrap(), liar.server()).await;
        assert_eq!(certificate_error(&client.unwrap_err()), Some(error), "{name} as server");
        hears_no_words(server.unwrap_err(), error);

        let ((client, server), _endpoints) = dial(liar.client(), server_config(&node(), ALPN).unwrap()).await;
        assert_eq!(certificate_error(&server.unwrap_err()), Some(error), "{name} as client");
        // In TLS 1.3 a client is done before the server judged its certificate; the refusal comes at once after.
        let heard = match client {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        hears_no_words(heard, error);
    }
}

fn hears_no_words(heard: quinn::ConnectionError, error: CertificateError) {
    assert_eq!(certificate_error(&heard), None, "what the peer says is not what we found");
    let quinn::ConnectionError::ConnectionClosed(close) = heard else { panic!("{heard:?}") };
    assert!(!String::from_utf8_lossy(&close.reason).contains(&error.to_string()));
}

#[tokio::test]
async fn over_quic_dialling_one_node_and_reaching_another_ends_before_one_application_byte() {
    let client = wanting(&client_config(&node(), ALPN).unwrap(), key(2).id());
    let ((client, server), _endpoints) = dial(client, server_config(&key(1), ALPN).unwrap()).await;
    let found = certificate_error(&client.unwrap_err());
    assert_eq!(found, Some(CertificateError::WrongKey { found: key(1).id() }));
    // The wrong node never had a connection: nothing to read from, and no certificate of ours.
    assert!(server.is_err());
}

#[tokio::test]
async fn over_quic_two_nodes_meet() {
    let ((client, server), _endpoints) = dial(client_config(&key(1), ALPN).unwrap(), server_config(&key(2), ALPN).unwrap()).await;
    for (connection, id) in [(client.unwrap(), key(2).id()), (server.unwrap(), key(1).id())] {
        let certificates = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
        assert_eq!(peer_id(&certificates), Ok(id));
        let data = connection.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
        assert_eq!(data.protocol.as_deref(), Some(ALPN));
    }
    let client = client_config(&key(1), ALPN).unwrap();
    assert!(quinn_wanting(&client, key(2).id()).is_ok() && quinn_server_crypto(&key(1), ALPN).is_ok());
}
