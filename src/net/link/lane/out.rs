//! What waits to be sent on a lane: frames, one after the other, in as few pieces as records can hold. All that is written before the lane
//! has its turn leaves in one record, and that is where its speed comes from.

use std::collections::VecDeque;
use std::task::Waker;

use super::frame::{End, Frame};
use crate::proto::limits;
use crate::seal::PLAIN_BYTES;

/// Frames that wait, and who waits for them to be gone.
#[derive(Debug, Default)]
pub struct Out {
    /// Each becomes one record, so frames are whole in records.
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of all frames there were, and of those that QUIC has.
    put: u64,
    handed: u64,
    /// The last frame, while it can be added to: its stream, and where it begins in the last piece.
    last: Option<(u64, usize)>,
    /// Whoever sends.
    sender: Option<Waker>,
    /// Whoever waits for QUIC to have more of it.
    waiting: Vec<Waker>,
}

impl Out {
    /// Adds a frame. Returns who is to be woken.
    pub fn put(&mut self, frame: &Frame<'_>) -> Option<Waker> {
        if let (Some((stream, at)), Frame { bytes: [], end: Some(End::Finished), stop: None, .. }) = (self.last, frame)
            && stream == frame.stream
            && let Some(piece) = self.pieces.back_mut()
        {
            Frame::finish(&mut piece[at..]);
            self.last = None;
            return None;
        }
        let most = Frame::HEAD_BYTES + frame.bytes.len();
        if self.pieces.back().is_none_or(|piece| piece.len() + most > PLAIN_BYTES) {
            self.pieces.push_back(Vec::with_capacity(most.max(512)));
        }
        let piece = self.pieces.back_mut()?;
        let at = piece.len();
        frame.put(piece);
        self.put += (piece.len() - at) as u64;
        self.last = frame.end.is_none().then_some((frame.stream, at));
        self.sender.take()
    }

    /// The next record's bytes.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        self.last = None;
        self.pieces.pop_front()
    }

    /// Whoever sends is woken by the next frame.
    pub fn wake_sender(&mut self, waker: &Waker) {
        self.sender = Some(waker.clone());
    }

    /// Whoever sends is to look again.
    pub fn sender(&mut self) -> Option<Waker> {
        self.sender.take()
    }

    /// QUIC has so many more bytes. Returns who is to be woken.
    pub fn handed(&mut self, bytes: usize) -> Vec<Waker> {
        self.handed += bytes as u64;
        std::mem::take(&mut self.waiting)
    }

    /// Whoever has this is woken when QUIC has more.
    pub fn wait(&mut self, waker: &Waker) {
        register(&mut self.waiting, waker);
    }

    /// Whoever waits for that.
    pub fn waiting(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether bytes of streams have to wait.
    pub fn is_full(&self) -> bool {
        self.put - self.handed > limits::LANE_QUEUE_BYTES as u64
    }

    /// After the last frame.
    pub fn end(&self) -> u64 {
        self.put
    }

    /// Whether QUIC has everything up to there.
    pub fn has_left(&self, end: u64) -> bool {
        self.handed >= end
    }
}

/// Adds a waker to those that wait, unless it does already.
pub fn register(waiting: &mut Vec<Waker>, waker: &Waker) {
    if !waiting.iter().any(|other| other.will_wake(waker)) {
        waiting.push(waker.clone());
    }
}
