//! The key of one direction of one stream: taken from the handshake's exporter, for this place and no other.

use std::fmt;

use zeroize::Zeroizing;

use crate::id::NodeId;

/// The exporter's label (RFC 8446, section 7.5; RFC 5705).
const LABEL: &[u8] = b"EXPORTER-volt-circuit-stream";
/// The version of what is sealed, and how.
const VERSION: u8 = 1;
/// Of AES-256.
const KEY_BYTES: usize = 32;
/// What comes before the number of a record in its nonce.
pub(super) const PREFIX_BYTES: usize = 7;

/// Names a circuit: random bytes, chosen by who begins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CircuitId(pub [u8; 16]);

/// A circuit, as both of its ends know it. The exporter of TLS 1.3 does not cover the client's certificate (RFC 8446, section 7.1), so
/// both ids are named here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// Which one.
    pub id: CircuitId,
    /// Who began it.
    pub initiator: NodeId,
    /// Who accepted it.
    pub responder: NodeId,
}

/// Which way bytes go on a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From who began the circuit.
    FromInitiator = 0,
    /// To who began the circuit.
    FromResponder = 1,
}

/// Where a record belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The circuit.
    pub circuit: Circuit,
    /// The stream's number there, never used for another one.
    pub stream: u64,
    /// Which way it goes.
    pub direction: Direction,
}

/// What a finished handshake gives: secrets that only its two ends have.
pub trait Exporter {
    /// Fills `out` with what belongs to this label and context.
    ///
    /// # Errors
    /// [`ExportError`]: the handshake is not finished.
    fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), ExportError>;
}

/// There are no secrets to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the handshake gives no keys: {0}")]
pub struct ExportError(pub String);

/// The key of one direction of one stream. It is wiped when dropped, and made into a [`Sealer`](super::Sealer) or an
/// [`Opener`](super::Opener) once.
pub struct StreamKey {
    bytes: Zeroizing<[u8; KEY_BYTES + PREFIX_BYTES]>,
}

impl StreamKey {
    /// The key for this place.
    ///
    /// # Errors
    /// [`ExportError`]: the handshake gives none.
    pub fn derive(exporter: &impl Exporter, place: &Place) -> Result<Self, ExportError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES + PREFIX_BYTES]);
        exporter.export(LABEL, &place.context(), &mut bytes[..])?;
        Ok(Self { bytes })
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..KEY_BYTES]
    }

    pub(super) fn prefix(&self) -> [u8; PREFIX_BYTES] {
        std::array::from_fn(|at| self.bytes[KEY_BYTES + at])
    }
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamKey(…)")
    }
}

impl Place {
    /// The exporter's context. Every part has a fixed length, so no two places have the same.
    fn context(&self) -> Vec<u8> {
        let Circuit { id, initiator, responder } = &self.circuit;
        let mut context = vec![VERSION];
        context.extend_from_slice(initiator.as_bytes());
        context.extend_from_slice(responder.as_bytes());
        context.extend_from_slice(&id.0);
        context.extend_from_slice(&self.stream.to_be_bytes());
        context.push(self.direction as u8);
        context
    }
}
