//! The items of a call on its stream, as both sides write and read them: frames that begin with a tag.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::consume_budget;

use crate::proto::call::Tag;
use crate::proto::codec::{self, DecodeError};
use crate::proto::frame::{FrameError, Frames};
use crate::proto::status::{Code, Status};
use crate::proto::{limits, varint};
use crate::session::{Core, Limit, SMALL_BODY_BYTES, Share, StreamError, StreamRecv, StreamSend};

/// What is read of a call.
#[derive(Debug)]
pub enum Item {
    /// A message's body. The charge for its bytes goes with it.
    Message(Bytes, Charge),
    /// How the call ended.
    Status(Status),
    /// The end of the stream.
    End,
}

/// Room set aside in the session's share for a body; none for a small one. Given back when dropped.
pub type Charge = Option<OwnedSemaphorePermit>;

/// Why no item could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ItemError {
    /// The stream was cut off.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What came is no frame, or one that is too long.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came is no status.
    #[error(transparent)]
    Status(#[from] DecodeError),
    /// What came is no item.
    #[error("an item of no known kind")]
    Tag,
}

/// Longest item: a body of the longest kind, and its tag.
const ITEM_BYTES: usize = limits::BODY_BYTES + 1;

/// Appends a message.
pub fn put_message(buf: &mut Vec<u8>, body: &[u8]) {
    put_message_head(buf, body.len());
    buf.extend_from_slice(body);
}

/// Appends what goes before a message's body.
pub fn put_message_head(buf: &mut Vec<u8>, body_len: usize) {
    varint::put(buf, body_len as u64 + 1);
    buf.push(Tag::Message as u8);
}

/// Appends a status; one that says too much is cut to the bound.
pub fn put_status(buf: &mut Vec<u8>, status: &Status) {
    if status.is_ok() && status.message.is_empty() && status.details.is_empty() {
        varint::put(buf, 1);
        buf.push(Tag::Status as u8);
        return;
    }
    let encoded = codec::encode(&bounded(status));
    varint::put(buf, encoded.len() as u64 + 1);
    buf.push(Tag::Status as u8);
    buf.extend_from_slice(&encoded);
}

/// What is sent of a status.
pub fn bounded(status: &Status) -> Status {
    const MESSAGE: usize = 4 * 1024;
    const DETAILS: usize = 8 * 1024;
    let mut status = status.clone();
    if status.message.len() > MESSAGE {
        let end = (0..=MESSAGE).rev().find(|at| status.message.is_char_boundary(*at)).unwrap_or(0);
        status.message.truncate(end);
    }
    if status.details.len() > DETAILS {
        // A part of them could mean anything.
        status.details.clear();
    }
    status
}

/// Where items come from.
#[derive(Debug)]
enum Source {
    Stream(StreamRecv),
    /// One message that was read before.
    Read(Arc<Core>, Option<(Bytes, Charge)>),
}

/// Reads the items of a call.
#[derive(Debug)]
pub struct Items {
    source: Source,
    frames: Frames,
    share: Share,
    charge: Charge,
    ended: bool,
}

impl Items {
    /// Reads what follows on this stream, from `frames` on. Room for bodies is taken from this share.
    pub fn new(recv: StreamRecv, mut frames: Frames, share: Share) -> Self {
        frames.set_limit(ITEM_BYTES);
        Self { source: Source::Stream(recv), frames, share, charge: None, ended: false }
    }

    /// One message that was read from this session before, and the end.
    pub fn read_before(core: Arc<Core>, body: Bytes, charge: Charge) -> Self {
        let source = Source::Read(core, Some((body, charge)));
        Self { source, frames: Frames::new(0), share: Share::Requests, charge: None, ended: false }
    }

    /// The session read from.
    pub fn core(&self) -> &Arc<Core> {
        match &self.source {
            Source::Stream(recv) => recv.core(),
            Source::Read(core, _) => core,
        }
    }

    /// The next item. Room for a body that is not small is set aside before it is read. After some of them others have their turn: a
    /// window may be full of items of a few bytes, and their reader would not wait once. Cancel-safe.
    pub async fn next(&mut self) -> Result<Item, ItemError> {
        consume_budget().await;
        loop {
            let recv = match &mut self.source {
                Source::Stream(recv) => recv,
                Source::Read(_, only) => return Ok(only.take().map_or(Item::End, |(body, charge)| Item::Message(body, charge))),
            };
            let next = self.frames.next_frame().inspect_err(|_| {
                if let Share::Requests = self.share {
                    recv.core().limited(Limit::Messages);
                }
            });
            if let Some(frame) = next? {
                return self.item(frame);
            }
            if self.ended {
                return Ok(Item::End);
            }
            if let Some(length) = self.frames.announced()
                && length > SMALL_BODY_BYTES
                && self.charge.is_none()
            {
                self.charge = recv.core().reserve(self.share, length).await;
            }
            match recv.read().await? {
                Some(bytes) => self.frames.push(bytes),
                None => {
                    self.frames.end()?;
                    self.ended = true;
                }
            }
        }
    }

    fn item(&mut self, mut frame: Bytes) -> Result<Item, ItemError> {
        let charge = self.charge.take();
        let tag = frame.split_to(1.min(frame.len()));
        match tag.first().copied().and_then(Tag::from_byte) {
            Some(Tag::Message) => Ok(Item::Message(frame, charge)),
            Some(Tag::Status) if frame.is_empty() => Ok(Item::Status(Status::ok())),
            Some(Tag::Status) => match codec::decode(&frame)? {
                // It has one encoding, the short one.
                status if status == Status::ok() => Err(ItemError::Tag),
                status => Ok(Item::Status(status)),
            },
            None => Err(ItemError::Tag),
        }
    }
}

/// Writes messages to a call's stream, in one piece if they are small.
pub async fn write_message(send: &mut StreamSend, mut buf: Vec<u8>, body: Vec<u8>) -> Result<(), StreamError> {
    if body.len() <= SMALL_BODY_BYTES {
        put_message(&mut buf, &body);
        return send.write(buf.into()).await;
    }
    put_message_head(&mut buf, body.len());
    send.write(buf.into()).await?;
    send.write(body.into()).await
}

impl ItemError {
    /// What a callee answers to a caller whose item could not be read.
    pub fn status(&self) -> Status {
        match self {
            ItemError::Frame(FrameError::TooLong { length, .. }) => Status::new(
                Code::ResourceExhausted,
                format!("a body of {} bytes; at most {} are read", length.saturating_sub(1), limits::BODY_BYTES),
            ),
            ItemError::Stream(_) => Status::new(Code::Cancelled, "the caller is gone"),
            error => Status::new(Code::InvalidArgument, error.to_string()),
        }
    }
}
