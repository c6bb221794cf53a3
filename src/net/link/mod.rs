//! A link: what a session sees of a path. Either a QUIC connection of its own, or a circuit that others carry. Nothing above this folder
//! knows which.

mod circuit;
mod direct;
mod halves;
mod lane;
mod lanes;
mod sealed;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;

pub use self::circuit::{Circuit, CircuitError, Leg, LegStreams, Surroundings};
pub(super) use self::direct::Counted;
pub use self::direct::OneMore;
pub(crate) use self::direct::canonical;
use self::direct::{Direct, PlainRecv, PlainSend};
use self::halves::{CircuitRecv, CircuitSend};
use super::turns::Account;
use crate::id::NodeId;
use crate::proto::close::{CloseCode, StreamCode};

/// Why a path stream can carry no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The path itself is gone.
    #[error("the path was lost: {0}")]
    Lost(LostReason),
    /// The far side gave up sending on this stream.
    #[error("the stream was reset by the peer (code {0})")]
    Reset(u64),
    /// The far side reads this stream no longer.
    #[error("the stream was stopped by the peer (code {0})")]
    Stopped(u64),
    /// This half was finished, reset or stopped here.
    #[error("the stream is closed")]
    Closed,
}

/// How a link ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// The peer closed it with a code we know.
    #[error("closed by the peer: {}", code_text(*.0))]
    Closed(CloseCode),
    /// The peer closed it with a code we do not know.
    #[error("closed by the peer with the unknown code {0}")]
    ClosedUnknown(u64),
    /// We closed it.
    #[error("closed here")]
    Here,
    /// Nothing came for too long.
    #[error("no answer for too long")]
    TimedOut,
    /// The peer's process does not know the link: it was restarted.
    #[error("the peer no longer knows the link: it was restarted")]
    Restarted,
    /// The handshake was refused or QUIC itself broke.
    #[error("{0}")]
    Transport(String),
}

fn code_text(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Goodbye => "goodbye",
        CloseCode::Refused => "refused",
        CloseCode::Superseded => "a newer link took over",
        CloseCode::Crossed => "two dials crossed and the other one won",
        CloseCode::Stale => "the link came too late",
        CloseCode::Protocol => "it says we broke the protocol",
        CloseCode::Timeout => "it says we were too slow",
        CloseCode::Version => "no protocol version in common",
        CloseCode::WrongKey => "it dialled another key",
        CloseCode::Lost => "it has lost the way here",
        CloseCode::Asked => "its owner is asked",
        CloseCode::Replaced => "another process with our key took our place",
    }
}

/// A path to a node that has proved its key. Clones share it.
#[derive(Clone, Debug)]
pub struct Link(Carrier);

#[derive(Clone, Debug)]
enum Carrier {
    Direct(Direct),
    Circuit(Arc<Circuit>),
}

use Carrier::{Circuit as Relayed, Direct as Own};

// What waits on a circuit is boxed: else every call on a link of its own would be moved about with room for it.

impl Link {
    pub(super) fn new(connection: quinn::Connection, peer: NodeId, dialled: bool, counted: Counted, account: Account) -> Self {
        Self(Own(Direct::new(connection, peer, dialled, counted, account)))
    }

    /// A circuit, as a link to whoever is at its other end.
    pub fn relayed(circuit: Arc<Circuit>) -> Self {
        Self(Relayed(circuit))
    }

    /// The work that this link makes is that of whoever is at its other end. Of a circuit this is what is done here; the relay's link pays
    /// for itself.
    pub fn paid_by(&self, account: &Account) {
        match &self.0 {
            Own(link) => link.account().paid_by(account),
            Relayed(circuit) => circuit.account().paid_by(account),
        }
    }

    /// Whether others carry it.
    pub fn is_relayed(&self) -> bool {
        matches!(self.0, Relayed(_))
    }

    /// The key the other end has proved to hold.
    pub fn peer(&self) -> NodeId {
        match &self.0 {
            Own(link) => link.peer(),
            Relayed(circuit) => circuit.peer(),
        }
    }

    /// Whether this end dialled.
    pub fn dialled(&self) -> bool {
        match &self.0 {
            Own(link) => link.dialled(),
            Relayed(circuit) => circuit.began(),
        }
    }

    /// A number no other link of this process has while this one lives.
    pub fn number(&self) -> usize {
        match &self.0 {
            Own(link) => link.number(),
            // Where it is in memory, which is odd for none that quinn has.
            Relayed(circuit) => Arc::as_ptr(circuit).addr() | 1,
        }
    }

    /// Where the other end is reached now: of a circuit, where its first relay is. IPv4 addresses are given as such, also on a dual-stack socket.
    pub fn remote(&self) -> SocketAddr {
        match &self.0 {
            Own(link) => link.remote(),
            Relayed(circuit) => circuit.leg().remote(),
        }
    }

    /// The smoothed round trip time QUIC has measured: of a circuit, to its first relay.
    pub fn rtt(&self) -> Duration {
        match &self.0 {
            Own(link) => link.rtt(),
            Relayed(circuit) => circuit.leg().rtt(),
        }
    }

    /// How often the peer said that it has more for us than the window lets in (DATA_BLOCKED, RFC 9000 section 19.12). A circuit has no window
    /// of its own.
    pub fn times_stopped(&self) -> u64 {
        match &self.0 {
            Own(link) => link.times_stopped(),
            Relayed(_) => 0,
        }
    }

    /// Opens a stream; waits while the peer grants no more. Cancel-safe.
    pub async fn open(&self) -> Result<(PathSend, PathRecv), PathError> {
        match &self.0 {
            Own(link) => link.open().await.map(|(send, recv)| (PathSend::Plain(send), PathRecv::Plain(recv))),
            Relayed(circuit) => circuit.open().await,
        }
    }

    /// The next stream the peer opened. Cancel-safe.
    pub async fn accept(&self) -> Result<(PathSend, PathRecv), PathError> {
        match &self.0 {
            Own(link) => link.accept().await.map(|(send, recv)| (PathSend::Plain(send), PathRecv::Plain(recv))),
            Relayed(circuit) => circuit.accept().await,
        }
    }

    /// Sends a datagram (RFC 9221): it may be lost, and no window holds it up. One that cannot be sent is lost too, as all are on a circuit.
    pub fn send_datagram(&self, bytes: Bytes) {
        if let Own(link) = &self.0 {
            link.send_datagram(bytes);
        }
    }

    /// The next datagram. Cancel-safe.
    pub async fn read_datagram(&self) -> Result<Bytes, PathError> {
        match &self.0 {
            Own(link) => link.read_datagram().await,
            Relayed(circuit) => Err(PathError::Lost(Box::pin(circuit.closed()).await)),
        }
    }

    /// Lifts the bounds of a stranger: the peer may open as many streams as a permitted one.
    pub fn permit(&self) {
        match &self.0 {
            Own(link) => link.permit(),
            Relayed(circuit) => circuit.permit(),
        }
    }

    /// One more circuit goes over this link, until what is returned is dropped: the peer may open streams for that too. `None` for a
    /// circuit, over which none can go.
    pub fn carries(&self) -> Option<OneMore> {
        match &self.0 {
            Own(link) => Some(link.carries()),
            Relayed(_) => None,
        }
    }

    /// The neighbour by way of whom the other end is reached, if it is none itself.
    pub fn via(&self) -> Option<NodeId> {
        match &self.0 {
            Own(_) => None,
            Relayed(circuit) => Some(circuit.leg().peer()),
        }
    }

    /// Sets how many bytes the peer may have in flight to us in all; of a circuit that is for its legs to say.
    pub fn set_window(&self, bytes: u32) {
        if let Own(link) = &self.0 {
            link.set_window(bytes);
        }
    }

    /// Ends the link for the peer to see at once. What is in flight is lost.
    pub fn close(&self, code: CloseCode) {
        match &self.0 {
            Own(link) => link.close(code),
            Relayed(circuit) => circuit.close(code),
        }
    }

    /// Waits until the link has ended, and says how. Cancel-safe.
    pub async fn closed(&self) -> LostReason {
        match &self.0 {
            Own(link) => link.closed().await,
            Relayed(circuit) => Box::pin(circuit.closed()).await,
        }
    }

    /// How the link ended, if it has.
    pub fn lost(&self) -> Option<LostReason> {
        match &self.0 {
            Own(link) => link.lost(),
            Relayed(circuit) => circuit.lost(),
        }
    }
}

/// The sending half of a path stream. Dropped unfinished it is reset: what was cut off never looks complete.
#[derive(Debug)]
pub enum PathSend {
    /// Of a link of its own.
    Plain(PlainSend),
    /// Of a circuit.
    Sealed(Box<CircuitSend>),
}

impl PathSend {
    /// Hands bytes to QUIC; waits while there is no room. Not cancel-safe: a dropped write may have sent a part.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), PathError> {
        self.write_all(&mut bytes, false).await
    }

    /// The same, and takes them off their front. `last`: no more bytes follow; that the peer stopped reading meanwhile is no error then.
    pub async fn write_all(&mut self, bytes: &mut Bytes, last: bool) -> Result<(), PathError> {
        match self {
            PathSend::Plain(send) => {
                send.write_all(bytes).await?;
                if last {
                    let _ = send.finish();
                }
                Ok(())
            }
            PathSend::Sealed(send) => send.write_all(bytes, last).await,
        }
    }

    /// Hands over as much of these bytes as there is room for, and takes that off their front; waits for room for the first.
    /// Cancel-safe: what it has taken when it is dropped is off their front.
    pub async fn write_some(&mut self, bytes: &mut Bytes) -> Result<(), PathError> {
        match self {
            PathSend::Plain(send) => send.write_some(bytes).await,
            PathSend::Sealed(send) => send.write_some(bytes).await,
        }
    }

    /// Sends what is written here before what other streams have: for control streams, whose answers say that a path lives.
    pub fn urgent(&mut self) {
        match self {
            PathSend::Plain(send) => send.urgent(),
            PathSend::Sealed(send) => send.urgent(),
        }
    }

    /// No more bytes follow. Does not wait.
    pub fn finish(&mut self) -> Result<(), PathError> {
        match self {
            PathSend::Plain(send) => send.finish(),
            PathSend::Sealed(send) => send.finish(),
        }
    }

    /// Gives up: the peer sees this code instead of the rest.
    pub fn reset(&mut self, code: StreamCode) {
        match self {
            PathSend::Plain(send) => send.reset(code),
            PathSend::Sealed(send) => send.reset(code),
        }
    }

    /// The same with any code, for whoever passes on what it was told.
    pub fn reset_as(&mut self, code: u64) {
        match self {
            PathSend::Plain(send) => send.reset_as(code),
            PathSend::Sealed(send) => send.reset(StreamCode::from_number(code).unwrap_or(StreamCode::Cancelled)),
        }
    }

    /// Ends when the peer stops reading (`Err`), or has acknowledged everything up to the end (`Ok`): of a circuit, when its first relay has, or,
    /// for what goes over a lane, when all of it was handed to QUIC.
    /// Cancel-safe, and independent of this half's life.
    pub fn stopped(&self) -> impl Future<Output = Result<(), PathError>> + Send + 'static {
        match self {
            PathSend::Plain(send) => Either::Left(send.stopped()),
            PathSend::Sealed(send) => Either::Right(send.stopped()),
        }
    }
}

/// The receiving half of a path stream. Dropped before its end, the peer is told to stop.
#[derive(Debug)]
pub enum PathRecv {
    /// Of a link of its own.
    Plain(PlainRecv),
    /// Of a circuit.
    Sealed(Box<CircuitRecv>),
}

impl PathRecv {
    /// The next bytes in order; `None` at the end. Cancel-safe.
    pub async fn read(&mut self) -> Result<Option<Bytes>, PathError> {
        match self {
            PathRecv::Plain(recv) => recv.read().await,
            PathRecv::Sealed(recv) => recv.read().await,
        }
    }

    /// The same, at most so many bytes. Cancel-safe.
    pub async fn read_up_to(&mut self, most: usize) -> Result<Option<Bytes>, PathError> {
        match self {
            PathRecv::Plain(recv) => recv.read_up_to(most).await,
            PathRecv::Sealed(recv) => recv.read().await,
        }
    }

    /// Reads no more, and tells the peer why.
    pub fn stop(&mut self, code: StreamCode) {
        match self {
            PathRecv::Plain(recv) => recv.stop(code),
            PathRecv::Sealed(recv) => recv.stop(code),
        }
    }

    /// The same with any code, for whoever passes on what it was told.
    pub fn stop_as(&mut self, code: u64) {
        match self {
            PathRecv::Plain(recv) => recv.stop_as(code),
            PathRecv::Sealed(recv) => recv.stop(StreamCode::from_number(code).unwrap_or(StreamCode::Cancelled)),
        }
    }
}

#[cfg(test)]
mod tests;
