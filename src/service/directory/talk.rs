//! Messages on a stream of the directory, as both halves write and read them.

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::proto::codec::{self, Decode, Message};
use crate::proto::frame::{Frames, put_message};
use crate::session::{Share, StreamError, StreamRecv, StreamSend};

/// Reads messages.
pub(super) struct Talk {
    recv: StreamRecv,
    frames: Frames,
    charge: Option<OwnedSemaphorePermit>,
    share: Share,
}

/// No more messages can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TalkEnd {
    /// The other end said that this was all, or gave up.
    There,
    /// It said what makes no sense.
    Nonsense(String),
    /// The session is over.
    Session,
}

impl Talk {
    /// Reads messages of at most so many bytes. Room for those that are not small is taken from this share of the session's while
    /// they are read.
    pub fn new(recv: StreamRecv, limit: usize, share: Share) -> Self {
        Self { recv, frames: Frames::new(limit), charge: None, share }
    }

    /// The next message. Cancel-safe.
    pub async fn next<M: Message + Decode<()>>(&mut self) -> Result<M, TalkEnd> {
        let frame = self.frame().await?;
        let message = codec::decode(&frame).map_err(|error| TalkEnd::Nonsense(error.to_string()));
        self.charge = None;
        message
    }

    async fn frame(&mut self) -> Result<Bytes, TalkEnd> {
        // There may be very many of them, and others are to have their turn.
        tokio::task::coop::consume_budget().await;
        loop {
            match self.frames.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(TalkEnd::Nonsense(error.to_string())),
            }
            if let (Some(length), None) = (self.frames.announced(), &self.charge) {
                self.charge = self.recv.core().clone().reserve(self.share, length).await;
            }
            match self.recv.read().await {
                Ok(Some(bytes)) => self.frames.push(bytes),
                Ok(None) => return Err(TalkEnd::There),
                Err(StreamError::Session(_)) => return Err(TalkEnd::Session),
                Err(_) => return Err(TalkEnd::There),
            }
        }
    }

    /// Reads no more.
    pub fn into_recv(self) -> StreamRecv {
        self.recv
    }
}

/// Writes a message. Not cancel-safe.
pub(super) async fn write<M: Message>(send: &mut StreamSend, message: &M) -> Result<(), StreamError> {
    let mut buf = Vec::with_capacity(64);
    put_message(&mut buf, message);
    send.write(buf.into()).await
}

/// Writes a last message. Not cancel-safe.
pub(super) async fn write_last<M: Message>(send: &mut StreamSend, message: &M) -> Result<(), StreamError> {
    let mut buf = Vec::with_capacity(64);
    put_message(&mut buf, message);
    send.write_last(buf.into()).await
}
