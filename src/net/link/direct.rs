//! A link of its own: an authenticated QUIC connection to a neighbour, and its streams. Nothing above the links sees quinn.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::{LostReason, PathError};
use crate::id::NodeId;
use crate::net::turns::Account;
use crate::proto::close::{CloseCode, StreamCode};
use crate::proto::limits;

impl From<ConnectionError> for LostReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => match CloseCode::from_number(close.error_code.into_inner()) {
                Some(code) => LostReason::Closed(code),
                None => LostReason::ClosedUnknown(close.error_code.into_inner()),
            },
            ConnectionError::LocallyClosed => LostReason::Here,
            ConnectionError::TimedOut => LostReason::TimedOut,
            ConnectionError::Reset => LostReason::Restarted,
            other => LostReason::Transport(other.to_string()),
        }
    }
}

/// An authenticated QUIC connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Direct {
    connection: quinn::Connection,
    peer: NodeId,
    dialled: bool,
    /// Given back with the first close, however long others hold on to what is left.
    counted: Arc<Mutex<Option<Counted>>>,
    /// Circuits that go over it, each with streams of its own.
    circuits: Arc<AtomicU32>,
    account: Account,
}

/// One of what a number counts, until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Direct {
    pub fn new(connection: quinn::Connection, peer: NodeId, dialled: bool, counted: Counted, account: Account) -> Self {
        Self { connection, peer, dialled, counted: Arc::new(Mutex::new(Some(counted))), circuits: Arc::default(), account }
    }

    /// By which QUIC's own work on it has its turns.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The key the other end has proved to hold.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// Whether this end dialled.
    pub fn dialled(&self) -> bool {
        self.dialled
    }

    /// A number no other link of this process has while this one lives.
    pub fn number(&self) -> usize {
        self.connection.stable_id()
    }

    /// Where the other end is reached now. IPv4 addresses are given as such, also on a dual-stack socket.
    pub fn remote(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// The smoothed round trip time QUIC has measured.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// How often the peer said that it has more for us than the window lets in (DATA_BLOCKED, RFC 9000 section 19.12).
    pub fn times_stopped(&self) -> u64 {
        self.connection.stats().frame_rx.data_blocked
    }

    /// Opens a stream; waits while the peer grants no more. Cancel-safe.
    pub async fn open(&self) -> Result<(PlainSend, PlainRecv), PathError> {
        let (send, recv) = self.connection.open_bi().await.map_err(lost)?;
        Ok((PlainSend::new(send), PlainRecv::new(recv)))
    }

    /// The next stream the peer opened. Cancel-safe.
    pub async fn accept(&self) -> Result<(PlainSend, PlainRecv), PathError> {
        let (send, recv) = self.connection.accept_bi().await.map_err(lost)?;
        Ok((PlainSend::new(send), PlainRecv::new(recv)))
    }

    /// Sends a datagram (RFC 9221): it may be lost, and no window holds it up. One that cannot be sent is lost too.
    pub fn send_datagram(&self, bytes: Bytes) {
        let _ = self.connection.send_datagram(bytes);
    }

    /// The next datagram. Cancel-safe.
    pub async fn read_datagram(&self) -> Result<Bytes, PathError> {
        self.connection.read_datagram().await.map_err(lost)
    }

    /// Lifts the bounds of a stranger: the peer may open as many streams as a permitted one.
    pub fn permit(&self) {
        self.grant_streams();
        self.set_window(limits::WINDOW_IDLE_BYTES);
    }

    /// One more circuit goes over it, until what is returned is dropped: the peer may open streams for that too.
    pub fn carries(&self) -> OneMore {
        self.circuits.fetch_add(1, Relaxed);
        self.grant_streams();
        OneMore(self.clone())
    }

    fn grant_streams(&self) {
        let more = self.circuits.load(Relaxed).saturating_mul(limits::CIRCUIT_STREAMS);
        self.connection.set_max_concurrent_bi_streams(VarInt::from_u32(limits::STREAMS.saturating_add(more)));
    }

    /// Sets how many bytes the peer may have in flight to us in all.
    pub fn set_window(&self, bytes: u32) {
        self.connection.set_receive_window(VarInt::from_u32(bytes));
    }

    /// Ends the link for the peer to see at once. What is in flight is lost.
    pub fn close(&self, code: CloseCode) {
        self.connection.close(VarInt::from_u32(code as u32), b"");
        self.counted.lock().expect("nothing panics while it is held").take();
    }

    /// Waits until the link has ended, and says how. Cancel-safe.
    pub async fn closed(&self) -> LostReason {
        self.connection.closed().await.into()
    }

    /// How the link ended, if it has.
    pub fn lost(&self) -> Option<LostReason> {
        self.connection.close_reason().map(LostReason::from)
    }
}

/// A circuit that goes over a link, as far as the link's credit is concerned.
#[derive(Debug)]
pub struct OneMore(Direct);

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.circuits.fetch_sub(1, Relaxed);
        self.0.grant_streams();
    }
}

/// An IPv4 address in IPv6 clothes is an IPv4 address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn lost(error: ConnectionError) -> PathError {
    PathError::Lost(error.into())
}

/// The sending half of a path stream. Dropped unfinished it is reset: what was cut off never looks complete.
#[derive(Debug)]
pub struct PlainSend {
    inner: quinn::SendStream,
    open: bool,
}

impl PlainSend {
    fn new(inner: quinn::SendStream) -> Self {
        Self { inner, open: true }
    }

    /// Hands bytes to QUIC without copying them; waits while there is no room. Not cancel-safe: a dropped write may have
    /// sent a part.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), PathError> {
        self.write_all(&mut bytes).await
    }

    /// The same, and takes them off their front.
    pub async fn write_all(&mut self, bytes: &mut Bytes) -> Result<(), PathError> {
        while !bytes.is_empty() {
            self.write_some(bytes).await?;
        }
        Ok(())
    }

    /// Hands over as much of these bytes as there is room for, and takes that off their front; waits for room for the first.
    /// Cancel-safe: dropped, it has taken nothing.
    pub async fn write_some(&mut self, bytes: &mut Bytes) -> Result<(), PathError> {
        self.inner.write_chunks(std::slice::from_mut(bytes)).await.map(drop).map_err(write_error)
    }

    /// Sends what is written here before what other streams have: for control streams, whose answers say that a path lives.
    pub fn urgent(&mut self) {
        let _ = self.inner.set_priority(1);
    }

    /// No more bytes follow. Does not wait.
    pub fn finish(&mut self) -> Result<(), PathError> {
        self.open = false;
        self.inner.finish().map_err(|_| PathError::Closed)
    }

    /// Gives up: the peer sees this code instead of the rest.
    pub fn reset(&mut self, code: StreamCode) {
        self.reset_as(code as u64);
    }

    /// The same with any code.
    pub fn reset_as(&mut self, code: u64) {
        if std::mem::take(&mut self.open) {
            let _ = self.inner.reset(VarInt::from_u64(code).unwrap_or_default());
        }
    }

    /// Ends when the peer stops reading (`Err`), or has acknowledged everything up to the end (`Ok`). Cancel-safe, and
    /// independent of this half's life.
    pub fn stopped(&self) -> impl Future<Output = Result<(), PathError>> + Send + 'static {
        let stopped = self.inner.stopped();
        async move {
            match stopped.await {
                Ok(None) => Ok(()),
                Ok(Some(code)) => Err(PathError::Stopped(code.into_inner())),
                Err(quinn::StoppedError::ConnectionLost(error)) => Err(lost(error)),
                Err(quinn::StoppedError::ZeroRttRejected) => Err(PathError::Closed),
            }
        }
    }
}

impl Drop for PlainSend {
    fn drop(&mut self) {
        self.reset(StreamCode::Cancelled);
    }
}

fn write_error(error: WriteError) -> PathError {
    match error {
        WriteError::Stopped(code) => PathError::Stopped(code.into_inner()),
        WriteError::ConnectionLost(error) => lost(error),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => PathError::Closed,
    }
}

/// The receiving half of a path stream. Dropped before its end, the peer is told to stop.
#[derive(Debug)]
pub struct PlainRecv {
    inner: quinn::RecvStream,
}

impl PlainRecv {
    fn new(inner: quinn::RecvStream) -> Self {
        Self { inner }
    }

    /// The next bytes in order; `None` at the end. Cancel-safe.
    pub async fn read(&mut self) -> Result<Option<Bytes>, PathError> {
        self.read_up_to(usize::MAX).await
    }

    /// The same, at most so many. Cancel-safe.
    pub async fn read_up_to(&mut self, most: usize) -> Result<Option<Bytes>, PathError> {
        match self.inner.read_chunk(most, true).await {
            Ok(Some(chunk)) => Ok(Some(chunk.bytes)),
            Ok(None) => Ok(None),
            Err(ReadError::Reset(code)) => Err(PathError::Reset(code.into_inner())),
            Err(ReadError::ConnectionLost(error)) => Err(lost(error)),
            Err(_) => Err(PathError::Closed),
        }
    }

    /// Reads no more, and tells the peer why.
    pub fn stop(&mut self, code: StreamCode) {
        self.stop_as(code as u64);
    }

    /// The same with any code.
    pub fn stop_as(&mut self, code: u64) {
        let _ = self.inner.stop(VarInt::from_u64(code).unwrap_or_default());
    }
}
