//! A path's control stream: one frame, one message, in order. Opened by the dialler; never resumed.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::net::{Link, PathError, PathRecv, PathSend};
use crate::proto::codec;
use crate::proto::control::Control;
use crate::proto::frame::{FrameError, Frames, put_message};
use crate::proto::limits;
use crate::proto::stream::Kind;
use crate::proto::varint;
use crate::state::streams::Violation;

/// Why a control stream is of no more use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The path is gone.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The peer ended its side; a control stream lasts as long as its path.
    #[error("the peer ended the control stream")]
    Ended,
    /// What came is not one of our messages.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// What came is not one of our messages.
    #[error("the peer broke the protocol: {0}")]
    Message(#[from] codec::DecodeError),
    /// The first stream of a path is not a control stream.
    #[error("the peer broke the protocol: its first stream is no control stream")]
    Kind,
    /// The message is not due now.
    #[error("the peer broke the protocol: {0}")]
    Order(&'static str),
    /// What it says of the session's streams cannot be.
    #[error("the peer broke the protocol: {0}")]
    Streams(#[from] Violation),
    /// The peer took too long.
    #[error("the peer did not {0} in time")]
    TimedOut(&'static str),
}

/// The sending side.
#[derive(Debug)]
pub struct ControlSend {
    path: PathSend,
    /// What waits for the peer's window.
    pending: Bytes,
}

/// The receiving side.
#[derive(Debug)]
pub struct ControlRecv {
    path: PathRecv,
    frames: Frames,
}

/// Opens the control stream of a path we dialled. The peer learns of it with the first message.
pub async fn open(link: &Link) -> Result<(ControlSend, ControlRecv), ControlError> {
    let (mut send, recv) = link.open().await?;
    send.urgent();
    let pending = Bytes::from_static(&[Kind::Control as u8]);
    Ok((ControlSend { path: send, pending }, ControlRecv::new(recv)))
}

/// Takes the control stream of a path the peer dialled: the first stream it opens.
pub async fn accept(link: &Link) -> Result<(ControlSend, ControlRecv), ControlError> {
    let (mut send, recv) = link.accept().await?;
    send.urgent();
    let mut recv = ControlRecv::new(recv);
    let mut first = recv.path.read().await?.ok_or(ControlError::Ended)?;
    let kind = first.split_to(1.min(first.len()));
    if kind.first().copied().and_then(Kind::from_byte) != Some(Kind::Control) {
        return Err(ControlError::Kind);
    }
    recv.frames.push(first);
    Ok((ControlSend { path: send, pending: Bytes::new() }, recv))
}

impl ControlSend {
    /// Sends messages and waits until they are on their way: for the greeting, where nothing else is to be done. A peer that takes
    /// none for [`limits::ANSWER_BOUND`] is as good as gone.
    pub async fn send(&mut self, messages: &[Control]) -> Result<(), ControlError> {
        self.queue(messages)?;
        timeout(limits::ANSWER_BOUND, self.flush()).await.map_err(|_| ControlError::TimedOut("read"))?
    }

    /// Sends messages without waiting: what the peer's window has no room for goes with [`ControlSend::flush`]. A peer that lets
    /// more than one control message's bound pile up breaks the path.
    pub fn queue(&mut self, messages: &[Control]) -> Result<(), ControlError> {
        let mut buf = self.pending.to_vec();
        messages.iter().for_each(|message| put_message(&mut buf, message));
        if buf.len() > limits::CONTROL_MESSAGE_BYTES + varint::MAX_LEN {
            return Err(ControlError::TimedOut("read"));
        }
        self.pending = buf.into();
        self.flush().now_or_never().unwrap_or(Ok(()))
    }

    /// Whether something waits for the peer's window.
    pub fn is_stuck(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Waits until everything is on its way. Cancel-safe.
    pub async fn flush(&mut self) -> Result<(), ControlError> {
        while !self.pending.is_empty() {
            self.path.write_some(&mut self.pending).await?;
        }
        Ok(())
    }
}

impl ControlRecv {
    fn new(path: PathRecv) -> Self {
        Self { path, frames: Frames::new(limits::CONTROL_MESSAGE_BYTES) }
    }

    /// The next message. After some of them others have their turn: a window full of pings is a quarter of a million messages, and their
    /// reader would not wait once. Cancel-safe.
    pub async fn next(&mut self) -> Result<Control, ControlError> {
        tokio::task::coop::consume_budget().await;
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                return Ok(codec::decode(&frame)?);
            }
            let bytes = self.path.read().await?.ok_or(ControlError::Ended)?;
            self.frames.push(bytes);
        }
    }

    /// The next message, if it comes within this time. Cancel-safe.
    pub async fn next_within(&mut self, bound: Duration, what: &'static str) -> Result<Control, ControlError> {
        timeout(bound, self.next()).await.map_err(|_| ControlError::TimedOut(what))?
    }
}
