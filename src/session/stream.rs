//! The streams of a session: two halves with an id and byte offsets, whatever carries them. Today every stream is carried by a
//! path stream of its own; what a half knows (id, attach number, offset) is what it takes to carry it on elsewhere.

use std::sync::Arc;

use bytes::Bytes;

use super::attached::{Attached, Opened};
use crate::net::{PathError, PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::proto::stream::{HEAD_BYTES_MAX, Head};

/// The sending half of a session's stream. Dropped unfinished it is reset.
#[derive(Debug)]
pub struct StreamSend {
    path: PathSend,
    attached: Arc<Attached>,
    /// Keeps count of a stream the peer opened: this half lives until it is answered.
    _accepted: Option<Opened>,
    /// The head that has still to go before the first byte, on the side that opened the stream.
    head: Option<Head>,
    /// What a begun buffer holds before the stream's own bytes.
    uncounted: usize,
    offset: u64,
}

impl StreamSend {
    pub(super) fn opened(path: PathSend, attached: Arc<Attached>, head: Head) -> Self {
        Self { path, attached, _accepted: None, head: Some(head), uncounted: 0, offset: 0 }
    }

    pub(super) fn accepted(path: PathSend, opened: Opened) -> Self {
        let attached = opened.attached.clone();
        Self { path, attached, _accepted: Some(opened), head: None, uncounted: 0, offset: 0 }
    }

    /// Begins the (empty) buffer of the first write: what has to go before the stream's own bytes is put into it, so that both
    /// leave in one piece. Later buffers stay empty.
    pub fn begin(&mut self, buf: &mut Vec<u8>) {
        if let Some(head) = self.head.take() {
            head.put(buf);
            self.uncounted = buf.len();
        }
    }

    /// Sends bytes; waits while there is no room. Not cancel-safe: a dropped write may have sent a part.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), PathError> {
        if self.head.is_some() {
            let mut buf = Vec::with_capacity(HEAD_BYTES_MAX);
            self.begin(&mut buf);
            self.uncounted = 0;
            self.path.write(buf.into()).await?;
        }
        self.attached.sent(bytes.len());
        self.offset += (bytes.len() - std::mem::take(&mut self.uncounted)) as u64;
        self.path.write(bytes).await
    }

    /// What carries the session now.
    pub fn attached(&self) -> &Arc<Attached> {
        &self.attached
    }

    /// Bytes of the stream sent so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// No more bytes follow.
    pub fn finish(&mut self) -> Result<(), PathError> {
        self.path.finish()
    }

    /// Gives up: the peer sees this code instead of the rest.
    pub fn reset(&mut self, code: StreamCode) {
        self.path.reset(code);
    }

    /// Ends when the peer reads no longer (`Err`) or has everything (`Ok`). Cancel-safe.
    pub fn stopped(&self) -> impl Future<Output = Result<(), PathError>> + Send + 'static {
        self.path.stopped()
    }
}

/// The receiving half of a session's stream. Dropped before its end, the peer is told to stop.
#[derive(Debug)]
pub struct StreamRecv {
    path: PathRecv,
    attached: Arc<Attached>,
    /// Keeps count of a stream we opened: this half lives until the answer is read.
    _opened: Option<Opened>,
    /// Bytes that came together with the head.
    first: Option<Bytes>,
    offset: u64,
}

impl StreamRecv {
    pub(super) fn opened(path: PathRecv, opened: Opened) -> Self {
        Self { path, attached: opened.attached.clone(), _opened: Some(opened), first: None, offset: 0 }
    }

    pub(super) fn accepted(path: PathRecv, attached: Arc<Attached>, first: Option<Bytes>) -> Self {
        Self { path, attached, _opened: None, first, offset: 0 }
    }

    /// The next bytes in order; `None` at the end. Cancel-safe.
    pub async fn read(&mut self) -> Result<Option<Bytes>, PathError> {
        let bytes = match self.first.take() {
            Some(first) => first,
            None => match self.path.read().await? {
                Some(bytes) => {
                    self.attached.received(bytes.len());
                    bytes
                }
                None => return Ok(None),
            },
        };
        self.offset += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// What came together with the head, if it was not read yet. Saves a future where a call begins.
    pub fn take_first(&mut self) -> Option<Bytes> {
        let first = self.first.take();
        self.offset += first.as_ref().map_or(0, |first| first.len() as u64);
        first
    }

    /// Bytes handed out so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads no more, and tells the peer why.
    pub fn stop(&mut self, code: StreamCode) {
        self.path.stop(code);
    }

    /// What carries the session now.
    pub fn attached(&self) -> &Arc<Attached> {
        &self.attached
    }
}
