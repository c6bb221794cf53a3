//! Session stream 0: what concerns the session as a whole and, unlike the control stream, belongs to the session and not to
//! the path. The side that dialled opens it; both sides send frames with one [`Notice`] each.

use bincode::{Decode, Encode};
use tokio::time::timeout;

use super::stream::{StreamError, StreamRecv, StreamSend};
use crate::proto::codec::{self, Message};
use crate::proto::frame::{Frames, put_message};
use crate::proto::limits;
use crate::proto::stream::Purpose;

/// A message of session stream 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Notice {
    /// The sender goes down: no new calls, please; those in flight are finished.
    Draining,
    /// All calls the sender had in flight are answered: the receiver may go.
    Drained,
}

impl Message for Notice {
    const NAME: &str = "notice";
    const LIMIT: usize = 64;
}

/// Session stream 0.
#[derive(Debug)]
pub struct Notices {
    send: StreamSend,
    recv: StreamRecv,
    frames: Frames,
    purpose_due: bool,
}

impl Notices {
    /// On the side that opened the stream.
    pub fn opened((send, recv): (StreamSend, StreamRecv)) -> Self {
        Self { send, recv, frames: Frames::new(Notice::LIMIT), purpose_due: true }
    }

    /// On the other side. The purpose byte has been read.
    pub fn accepted((send, recv): (StreamSend, StreamRecv)) -> Self {
        Self { send, recv, frames: Frames::new(Notice::LIMIT), purpose_due: false }
    }

    /// Lets the peer see the stream. Due once, on the side that opened it.
    pub async fn start(&mut self) -> Result<(), StreamError> {
        let mut buf = Vec::with_capacity(32);
        self.begin(&mut buf);
        self.write(buf).await
    }

    /// Sends a notice. A peer that takes none for [`limits::ANSWER_BOUND`] is as good as gone.
    pub async fn send(&mut self, notice: Notice) -> Result<(), StreamError> {
        let mut buf = Vec::with_capacity(32);
        self.begin(&mut buf);
        put_message(&mut buf, &notice);
        self.write(buf).await
    }

    /// The next notice; `None` when the stream is of no more use. Cancel-safe.
    pub async fn next(&mut self) -> Option<Notice> {
        // There may be very many of them, and others are to have their turn.
        tokio::task::coop::consume_budget().await;
        loop {
            if let Some(frame) = self.frames.next_frame().ok()? {
                return codec::decode(&frame).ok();
            }
            self.frames.push(self.recv.read().await.ok()??);
        }
    }

    async fn write(&mut self, buf: Vec<u8>) -> Result<(), StreamError> {
        timeout(limits::ANSWER_BOUND, self.send.write(buf.into())).await.unwrap_or(Err(StreamError::Closed))
    }

    fn begin(&mut self, buf: &mut Vec<u8>) {
        self.send.begin(buf);
        if std::mem::take(&mut self.purpose_due) {
            buf.push(Purpose::Session as u8);
        }
    }
}
