//! Joins a connection with a stream of the session: bytes, ends and resets, both ways at once. Each direction waits for its own reader
//! only, and holds what it has just read, no more.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;

use super::error::TunnelBroken;
use super::events::Counts;
use crate::proto::close::StreamCode;
use crate::session::{StreamError, StreamRecv, StreamSend};
use crate::state::unread::Part;

/// What is read of a connection at a time that has much to say…
const BUFFER_BYTES: usize = 64 * 1024;
/// … and of one that has not: many of them are idle.
const SMALL_BUFFER_BYTES: usize = 8 * 1024;
/// With less room than this there is no reading.
const LEAST_BYTES: usize = 2 * 1024;

/// A connection at this end of a tunnel.
pub(super) enum Local {
    Tcp(Connection),
    Memory(DuplexStream),
}

/// A TCP connection that ends with a reset, unless it is [left to end by itself](Self::release): nobody is to take a part for the whole.
pub(super) struct Connection {
    stream: TcpStream,
    resets: bool,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        // Without it small messages wait for each other. It fails for a connection that is gone, which shows by itself.
        let _ = stream.set_nodelay(true);
        Self { stream, resets: true }
    }

    fn release(mut self) {
        self.resets = false;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.resets {
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// A stream of the session, and which end of it this is.
pub(super) struct Far<'a> {
    pub send: &'a mut StreamSend,
    pub recv: &'a mut StreamRecv,
    /// What has come already.
    pub first: Bytes,
    /// Whether the stream was opened here: who opened it says when it is over.
    pub opened_here: bool,
}

impl Local {
    /// Carries bytes until both directions have ended, or something breaks: then the stream is given up and the connection reset. Dropped,
    /// it leaves the stream to whoever owns it.
    pub async fn splice(self, far: Far<'_>, counts: &Counts) -> Result<(), TunnelBroken> {
        match self {
            Self::Tcp(mut connection) => {
                let (mut read, mut write) = connection.stream.split();
                Halves { read: &mut read, write: &mut write }.splice(far, counts).await?;
                connection.release();
                Ok(())
            }
            Self::Memory(stream) => {
                let (mut read, mut write) = tokio::io::split(stream);
                Halves { read: &mut read, write: &mut write }.splice(far, counts).await
            }
        }
    }
}

struct Halves<'a, R, W> {
    read: &'a mut R,
    write: &'a mut W,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Halves<'_, R, W> {
    async fn splice(self, far: Far<'_>, counts: &Counts) -> Result<(), TunnelBroken> {
        let Far { send, recv, first, opened_here } = far;
        let out = async {
            let mut part = send.core().unread().part();
            out(self.read, send, &mut part, &counts.sent).await?;
            // What lies unread there counts until it is read.
            match send.read_through().await {
                // The opener needs no more of it.
                Err(StreamError::Closed) if !opened_here => Ok(()),
                read => read.or_else(stopped),
            }
        };
        let done = tokio::try_join!(out, into(recv, self.write, first, &counts.received)).map(drop);
        if done.is_err() {
            send.reset(StreamCode::Cancelled);
            recv.stop(StreamCode::Cancelled);
        }
        done
    }
}

/// What is read here goes out, to its end, or until nobody there wants more of it.
async fn out<R: AsyncRead + Unpin>(
    from: &mut R,
    send: &mut StreamSend,
    part: &mut Part,
    count: &AtomicU64,
) -> Result<(), TunnelBroken> {
    let (mut buf, mut size) = (BytesMut::new(), SMALL_BUFFER_BYTES);
    let mut unwanted = std::pin::pin!(send.unwanted());
    loop {
        if buf.capacity() < LEAST_BYTES {
            buf.reserve(size);
        }
        let room = match may_send(send, part).await {
            Ok(more) => more.min(buf.capacity()),
            Err(error) => return stopped(error),
        };
        let mut limited = (&mut buf).limit(room);
        let read = tokio::select! {
            biased;
            error = &mut unwanted => return stopped(error),
            read = from.read_buf(&mut limited) => read,
        };
        match read {
            Ok(0) => return send.finish().or_else(stopped),
            Ok(length) => {
                size = if length == room { BUFFER_BYTES } else { SMALL_BUFFER_BYTES };
                if let Err(error) = send.write(buf.split().freeze()).await {
                    return stopped(error);
                }
                count.fetch_add(length as u64, Relaxed);
            }
            Err(error) => return Err(broken(&error)),
        }
        // A connection that always has more to say must not keep the others from having their turn.
        tokio::task::coop::consume_budget().await;
    }
}

/// Waits until more may be sent, which it may when what was sent is read; how much.
async fn may_send(send: &StreamSend, part: &mut Part) -> Result<usize, StreamError> {
    let mut unread = send.unread_below(usize::MAX).await?;
    loop {
        let more = part.more(unread);
        if more >= LEAST_BYTES {
            return Ok(more);
        }
        unread = send.unread_below(unread).await?;
    }
}

/// That the other end reads no more says nothing about what it has still to say.
fn stopped(error: StreamError) -> Result<(), TunnelBroken> {
    match error {
        StreamError::Stopped(code) if code != StreamCode::Kind as u64 => Ok(()),
        error => Err(error.into()),
    }
}

/// What comes goes on to the connection, to its end, or until nobody here wants more of it.
async fn into<W: AsyncWrite + Unpin>(
    recv: &mut StreamRecv,
    to: &mut W,
    first: Bytes,
    count: &AtomicU64,
) -> Result<(), TunnelBroken> {
    let mut next = (!first.is_empty()).then_some(first);
    loop {
        let bytes = match next.take() {
            Some(bytes) => bytes,
            None => match recv.read().await? {
                Some(bytes) => bytes,
                None => {
                    // Fails for a connection that is gone, whose reading half says so.
                    let _ = to.shutdown().await;
                    return Ok(());
                }
            },
        };
        if to.write_all(&bytes).await.is_err() {
            recv.stop(StreamCode::Cancelled);
            return Ok(());
        }
        count.fetch_add(bytes.len() as u64, Relaxed);
    }
}

/// Whatever the system calls it: the connection is of no more use.
fn broken(error: &io::Error) -> TunnelBroken {
    tracing::debug!(%error, "a connection of a tunnel broke");
    TunnelBroken::Here
}
