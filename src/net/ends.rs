//! TLS 1.3 between the two ends of a circuit, over a stream that others carry. Bytes in, bytes out: it reads and writes nothing itself. Both
//! ends show a certificate and each judges the other's, as on a link; what they have then is each other's id, a channel for their own words, and
//! an exporter for the keys of sealed streams.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::certificate::CertificateError;
use super::tls::{TlsError, certificate_error_of_tls, client_config, peer_id, server_config, wanting};
use crate::id::{NodeId, SecretKey};
use crate::seal::{ExportError, Exporter};

/// What circuits speak (RFC 7301): no link can be taken for a circuit, and no circuit for a link.
const ALPN: &[u8] = b"volt-circuit/1";
/// The server name that is dialled: of no meaning, and the same everywhere.
const SERVER_NAME: &str = "volt";
/// Most bytes that wait to be taken, either way.
const BUFFER_BYTES: usize = 64 * 1024;

/// What a node shows and demands at the ends of circuits.
#[derive(Clone)]
pub struct EndsConfig {
    client: ClientConfig,
    server: Arc<ServerConfig>,
}

/// One end's half of a handshake, and what comes after it.
pub struct Ends {
    connection: Connection,
    /// Once the handshake is finished: its certificate is judged once, not with every key.
    peer: Option<NodeId>,
    failed: Option<EndsError>,
}

/// The other end is not who it should be, or somebody meddled with what was said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndsError {
    /// Its certificate is not accepted.
    #[error("the other end's certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// What came is not what an end says.
    #[error("the handshake failed: {0}")]
    Tls(String),
    /// The other end, or whoever carries the stream, ended it.
    #[error("it was cut off")]
    CutOff,
}

impl EndsConfig {
    /// For the node with this key.
    ///
    /// # Errors
    /// [`TlsError`]: a fault of this program.
    pub fn new(key: &SecretKey) -> Result<Self, TlsError> {
        Ok(Self { client: client_config(key, ALPN)?, server: Arc::new(server_config(key, ALPN)?) })
    }
}

impl Ends {
    /// The half of who began the circuit, and will have nobody but `wanted` at the other end.
    ///
    /// # Errors
    /// [`TlsError`]: a fault of this program.
    pub fn dial(config: &EndsConfig, wanted: NodeId) -> Result<Self, TlsError> {
        let config = Arc::new(self::wanting(&config.client, wanted));
        let name = ServerName::try_from(SERVER_NAME).expect("it is a name");
        Ok(Self::new(ClientConnection::new(config, name)?.into()))
    }

    /// The half of who accepted it.
    ///
    /// # Errors
    /// [`TlsError`]: a fault of this program.
    pub fn accept(config: &EndsConfig) -> Result<Self, TlsError> {
        Ok(Self::new(ServerConnection::new(config.server.clone())?.into()))
    }

    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(BUFFER_BYTES));
        Self { connection, peer: None, failed: None }
    }

    /// Takes in what came from the other end, and appends to `heard` what the other end has said with [`Ends::say`].
    ///
    /// # Errors
    /// [`EndsError`], now and for ever. What is to be sent then says why to the other end.
    pub fn push(&mut self, mut came: &[u8], heard: &mut Vec<u8>) -> Result<(), EndsError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        while !came.is_empty() {
            if let Err(error) = self.take(&mut came, heard) {
                self.failed = Some(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    fn take(&mut self, came: &mut &[u8], heard: &mut Vec<u8>) -> Result<(), EndsError> {
        let nonsense = |error: io::Error| EndsError::Tls(error.to_string());
        if self.connection.read_tls(came).map_err(nonsense)? == 0 {
            return Err(EndsError::CutOff);
        }
        let state = self.connection.process_new_packets().map_err(|error| match certificate_error_of_tls(&error) {
            Some(certificate) => EndsError::Certificate(certificate),
            None => EndsError::Tls(error.to_string()),
        })?;
        if self.peer.is_none() && !self.connection.is_handshaking() {
            self.peer = Some(peer_id(self.connection.peer_certificates().unwrap_or_default())?);
        }
        let said = heard.len();
        heard.resize(said + state.plaintext_bytes_to_read(), 0);
        self.connection.reader().read_exact(&mut heard[said..]).map_err(nonsense)?;
        match state.peer_has_closed() {
            true => Err(EndsError::CutOff),
            false => Ok(()),
        }
    }

    /// Appends what is to be sent to the other end.
    pub fn pull(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("a vector takes everything");
        }
    }

    /// Has the other end, and nobody else, be told this, after the handshake.
    ///
    /// # Errors
    /// [`EndsError`]: the handshake is not finished, too much waits to be [pulled](Ends::pull), or it has failed before.
    pub fn say(&mut self, bytes: &[u8]) -> Result<(), EndsError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.peer().is_none() => Err(EndsError::Tls("it is not finished".into())),
            None => self.connection.writer().write_all(bytes).map_err(|error| EndsError::Tls(error.to_string())),
        }
    }

    /// Who is at the other end, once it has shown that.
    pub fn peer(&self) -> Option<NodeId> {
        if self.failed.is_some() { None } else { self.peer }
    }
}

impl Exporter for Ends {
    fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), ExportError> {
        if self.peer().is_none() {
            return Err(ExportError("it is not finished".into()));
        }
        let exported = self.connection.export_keying_material(out, label, Some(context));
        exported.map(drop).map_err(|error| ExportError(error.to_string()))
    }
}

impl fmt::Debug for EndsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndsConfig(…)")
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").field("peer", &self.peer()).field("failed", &self.failed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::seal::{Circuit, CircuitId, Direction, Opener, Place, Sealer, StreamKey};

    fn config() -> (NodeId, EndsConfig) {
        let key = SecretKey::generate();
        (key.id(), EndsConfig::new(&key).unwrap())
    }

    /// Carries what two halves say, after `meddle`, until neither says more. Gives what each has heard, and how it ended.
    fn carry(one: &mut Ends, other: &mut Ends, mut meddle: impl FnMut(&mut Vec<u8>)) -> [Result<Vec<u8>, EndsError>; 2] {
        let (mut heard, mut ended) = ([Vec::new(), Vec::new()], [Ok(()), Ok(())]);
        loop {
            let (mut to_other, mut to_one) = (Vec::new(), Vec::new());
            one.pull(&mut to_other);
            other.pull(&mut to_one);
            if to_other.is_empty() && to_one.is_empty() {
                let [first, second] = heard;
                let [one_ended, other_ended] = ended;
                return [one_ended.map(|()| first), other_ended.map(|()| second)];
            }
            meddle(&mut to_other);
            meddle(&mut to_one);
            let first = one.push(&to_one, &mut heard[0]);
            let second = other.push(&to_other, &mut heard[1]);
            ended[0] = ended[0].clone().and(first);
            ended[1] = ended[1].clone().and(second);
        }
    }

    fn place(initiator: NodeId, responder: NodeId) -> Place {
        let circuit = Circuit { id: CircuitId([9; 16]), initiator, responder };
        Place { circuit, stream: 2, direction: Direction::FromInitiator }
    }

    /// What one end opens of what the other has sealed.
    fn passes(from: &Ends, to: &Ends, sealed_as: Place, opened_as: Place) -> bool {
        let mut bytes = Vec::new();
        Sealer::new(StreamKey::derive(from, &sealed_as).unwrap()).seal(b"x", true, &mut bytes).unwrap();
        let mut opener = Opener::new(StreamKey::derive(to, &opened_as).unwrap());
        opener.push(&bytes);
        opener.next_record().is_ok_and(|record| record.is_some())
    }

    #[test]
    fn the_ends_know_each_other_and_have_the_same_keys() {
        let ((a, a_config), (b, b_config)) = (config(), config());
        let (mut one, mut other) = (Ends::dial(&a_config, b).unwrap(), Ends::accept(&b_config).unwrap());
        assert!(StreamKey::derive(&one, &place(a, b)).is_err() && one.say(b"early").is_err());
        assert_eq!(carry(&mut one, &mut other, |_| {}), [Ok(Vec::new()), Ok(Vec::new())]);
        assert_eq!((one.peer(), other.peer()), (Some(b), Some(a)));
        one.say(b"hello").unwrap();
        other.say(b"welcome").unwrap();
        let heard = carry(&mut one, &mut other, |_| {});
        assert_eq!(heard, [Ok(b"welcome".to_vec()), Ok(b"hello".to_vec())]);
        let here = place(a, b);
        assert!(passes(&one, &other, here, here) && passes(&other, &one, here, here));
        assert!(!passes(&one, &other, here, place(b, a)));
    }

    #[test]
    fn nobody_else_is_taken_for_who_was_wanted_and_he_does_not_learn_who_dialled() {
        let ((_, a_config), (b, _), (c, c_config)) = (config(), config(), config());
        let (mut one, mut other) = (Ends::dial(&a_config, b).unwrap(), Ends::accept(&c_config).unwrap());
        let [ended, _] = carry(&mut one, &mut other, |_| {});
        assert_eq!(ended, Err(EndsError::Certificate(CertificateError::WrongKey { found: c })));
        assert_eq!((one.peer(), other.peer()), (None, None));
        assert!(one.push(b"more", &mut Vec::new()).is_err());
    }

    #[test]
    fn who_carries_a_handshake_is_taken_for_neither_end() {
        let ((a, a_config), (b, b_config), (m, m_config)) = (config(), config(), config());
        // Carried faithfully it is between the two, and a handshake of the carrier's own gives the carrier's id and other keys.
        let (mut one, mut other) = (Ends::dial(&a_config, b).unwrap(), Ends::accept(&b_config).unwrap());
        let _ = carry(&mut one, &mut other, |_| {});
        let (mut carrier, mut to_carrier) = (Ends::dial(&m_config, b).unwrap(), Ends::accept(&b_config).unwrap());
        let _ = carry(&mut carrier, &mut to_carrier, |_| {});
        assert_eq!((other.peer(), to_carrier.peer()), (Some(a), Some(m)));
        let here = place(a, b);
        assert!(!passes(&carrier, &other, here, here) && !passes(&one, &to_carrier, here, here));
    }

    #[test]
    fn a_handshake_that_was_meddled_with_does_not_come_about_or_makes_no_difference() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let ((a, a_config), (b, b_config)) = (config(), config());
        let (mut broken, mut whole) = (0, 0);
        for _ in 0..300 {
            let (mut one, mut other) = (Ends::dial(&a_config, b).unwrap(), Ends::accept(&b_config).unwrap());
            let mut left = random.random_range(0..7_000usize);
            let mut done = false;
            let ended = carry(&mut one, &mut other, |bytes| {
                if !done && left < bytes.len() {
                    bytes[left] ^= 1 << random.random_range(0..8);
                    done = true;
                }
                left = left.saturating_sub(bytes.len());
            });
            let shown = (one.peer(), other.peer());
            assert!(shown.0.is_none_or(|peer| peer == b) && shown.1.is_none_or(|peer| peer == a), "{shown:?}");
            // One of them sees it, or waits for bytes that do not come.
            if ended.iter().any(Result::is_err) || shown != (Some(b), Some(a)) {
                assert!(done, "{ended:?}");
                broken += 1;
                continue;
            }
            // Nothing was changed, or a version in a record's head, which nobody reads (RFC 8446, section 5.1).
            assert!(passes(&one, &other, place(a, b), place(a, b)));
            whole += 1;
        }
        assert!(broken > 50 && whole > 50, "{broken} broken, {whole} whole");
    }
}
