//! The streams of a session: two halves that live as long as the session does, whatever path carries them. What is written goes
//! into the session's keeping first and then to the path, so that another path can carry on; what is read is counted, so that the
//! other side knows from where.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bincode::Decode;
use bytes::{Buf, Bytes};

use super::attached::Attached;
use super::core::{Core, SessionEnd};
use super::slot::{Arrived, Sending, Slot};
use crate::net::{PathError, PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::proto::codec::{self, Message};
use crate::proto::frame::Frames;
use crate::proto::limits;
use crate::proto::stream::{HEAD_BYTES_MAX, Head};
use crate::state::streams::Ended;

/// Why a half of a stream can do no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The session is over.
    #[error(transparent)]
    Session(SessionEnd),
    /// No path took it: nothing was sent.
    #[error("the path was lost: {0}")]
    Path(String),
    /// The far side gave up sending on this stream.
    #[error("the stream was reset by the peer (code {0})")]
    Reset(u64),
    /// The far side reads this stream no longer.
    #[error("the stream was stopped by the peer (code {0})")]
    Stopped(u64),
    /// The stream is over, or this half was ended here.
    #[error("the stream is closed")]
    Closed,
}

impl From<Ended> for StreamError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Closed => StreamError::Closed,
            Ended::Stopped(code) => StreamError::Stopped(code),
            Ended::Reset(code) => StreamError::Reset(code),
        }
    }
}

/// The sending half of a session's stream. Dropped unfinished it is reset.
#[derive(Debug)]
pub struct StreamSend {
    attached: Arc<Attached>,
    id: u64,
    /// The path stream that this half itself writes to.
    path: Option<PathSend>,
    /// The head that has still to go before the first byte, on the side that opened the stream.
    head_due: bool,
    /// What a begun buffer holds before the stream's own bytes.
    uncounted: usize,
    /// A write was given up half-way: the path has an unknown part of it.
    torn: bool,
    ended: bool,
}

impl StreamSend {
    pub(super) fn opened(path: PathSend, attached: Arc<Attached>, id: u64) -> Self {
        Self { attached, id, path: Some(path), head_due: true, uncounted: 0, torn: false, ended: false }
    }

    pub(super) fn accepted(path: PathSend, attached: Arc<Attached>, id: u64) -> Self {
        Self { attached, id, path: Some(path), head_due: false, uncounted: 0, torn: false, ended: false }
    }

    /// Begins the (empty) buffer of the first write: what has to go before the stream's own bytes is put into it, so that both
    /// leave in one piece. Later buffers stay empty.
    pub fn begin(&mut self, buf: &mut Vec<u8>) {
        if std::mem::take(&mut self.head_due) {
            Head::Fresh { stream: self.id }.put(buf);
            self.uncounted = buf.len();
        }
    }

    /// Sends bytes: takes them into the session's keeping, and waits while there is no room, there or on the path. Not
    /// cancel-safe: after a write that was dropped the half can only be given up.
    ///
    /// # Errors
    /// [`StreamError`]. That the path is lost is none: another one carries the bytes on.
    pub fn write(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StreamError>> + Send {
        self.put(bytes, false)
    }

    /// The same, and no more bytes follow.
    ///
    /// # Errors
    /// As [`StreamSend::write`].
    pub fn write_last(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StreamError>> + Send {
        self.put(bytes, true)
    }

    async fn put(&mut self, mut bytes: Bytes, last: bool) -> Result<(), StreamError> {
        if self.torn || self.ended {
            return Err(StreamError::Closed);
        }
        if self.head_due {
            let mut buf = Vec::with_capacity(HEAD_BYTES_MAX);
            self.begin(&mut buf);
            self.uncounted = 0;
            self.hand(&mut buf.into(), false).await?;
        }
        let mut head = std::mem::take(&mut self.uncounted);
        loop {
            let (taken, moved) = poll_fn(|cx| self.keep(cx, &bytes.slice(head..), last)).await?;
            let whole = head + taken == bytes.len();
            let mut piece = if whole { std::mem::take(&mut bytes) } else { bytes.split_to(head + taken) };
            if moved {
                // Whoever carried the stream on has sent the head that this path wants.
                piece.advance(head);
            }
            self.hand(&mut piece, last && whole).await?;
            head = 0;
            if whole {
                break;
            }
        }
        self.ended |= last;
        Ok(())
    }

    /// The path stream ends, and is needed no more.
    fn finish_path(&mut self) {
        if let Some(mut path) = self.path.take() {
            let _ = path.finish();
        }
    }

    /// Takes bytes into the session's keeping, and learns who sends them: how many were taken, and whether this half goes on on
    /// another path from here.
    fn keep(&mut self, cx: &Context<'_>, bytes: &Bytes, last: bool) -> Poll<Result<(usize, bool), StreamError>> {
        let mut table = self.attached.core().table();
        if let Some(end) = &table.ended {
            return Poll::Ready(Err(end.clone().into()));
        }
        let taken = table.streams.push(self.id, bytes, last)?;
        let Some(slot) = table.streams.slot(self.id) else { return Poll::Ready(Err(StreamError::Closed)) };
        if taken == 0 && !bytes.is_empty() {
            slot.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let moved = matches!(slot.sending, Sending::Ready(_));
        match std::mem::take(&mut slot.sending) {
            Sending::Writer => {}
            Sending::Task => {
                slot.sending = Sending::Task;
                self.path = None;
            }
            Sending::Ready(ready) => {
                let attached;
                (self.path, attached) = (Some(ready.0), ready.1);
                drop(table);
                self.attached = attached;
            }
        }
        Poll::Ready(Ok((taken, moved)))
    }

    /// Hands bytes to the path, if this half is the one that does. With the last ones the path stream ends, and is needed no more.
    async fn hand(&mut self, bytes: &mut Bytes, last: bool) -> Result<(), StreamError> {
        let Some(path) = &mut self.path else { return Ok(()) };
        self.attached.sent(bytes.len());
        self.torn = true;
        let written = path.write_all(bytes, last).await;
        self.torn = false;
        let Err(error) = written else {
            if last {
                self.path = None;
            }
            return Ok(());
        };
        self.path = None;
        Slot::failed(&self.attached, self.id, &error);
        let table = self.attached.core().table();
        match (&table.ended, error) {
            (Some(end), _) => Err(end.clone().into()),
            (None, PathError::Lost(reason)) if !table.streams.keeps() => {
                Err(StreamError::Session(SessionEnd::Closed(reason.into())))
            }
            (None, _) => table.streams.sends(self.id).map_err(StreamError::from),
        }
    }

    /// The session.
    pub fn core(&self) -> &Arc<Core> {
        self.attached.core()
    }

    /// No more bytes follow. Does not wait.
    ///
    /// # Errors
    /// [`StreamError`]: the half was ended before.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if self.torn || self.ended {
            return Err(StreamError::Closed);
        }
        let kept = self.keep(&Context::from_waker(std::task::Waker::noop()), &Bytes::new(), true);
        self.ended = true;
        if let Poll::Ready(Err(error)) = kept {
            return Err(error);
        }
        self.finish_path();
        Ok(())
    }

    /// Waits until the peer has read everything, to the end: until then it may need what is kept here, so the stream must not be
    /// over. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`]: it will not.
    pub async fn read_through(&self) -> Result<(), StreamError> {
        poll_fn(|cx| {
            let mut table = self.core().table();
            if let Some(end) = &table.ended {
                return Poll::Ready(Err(end.clone().into()));
            }
            if table.streams.is_read(self.id)? {
                return Poll::Ready(Ok(()));
            }
            if let Some(slot) = table.streams.slot(self.id) {
                slot.watcher = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until the peer has read so much that fewer bytes than this are unread, and says how many are. What is said is a little late:
    /// the peer tells within [`PROGRESS_WITHIN`](crate::proto::limits::PROGRESS_WITHIN). Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`]: it will not.
    pub async fn unread_below(&self, bytes: usize) -> Result<usize, StreamError> {
        poll_fn(|cx| {
            let mut table = self.core().table();
            if let Some(end) = &table.ended {
                return Poll::Ready(Err(end.clone().into()));
            }
            let unread = table.streams.unread(self.id)?;
            if unread < bytes {
                return Poll::Ready(Ok(unread));
            }
            if let Some(slot) = table.streams.slot(self.id) {
                slot.writer = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Gives up: the peer sees this code instead of the rest.
    pub fn reset(&mut self, code: StreamCode) {
        if !std::mem::replace(&mut self.ended, true) {
            let due = self.core().table().streams.reset(self.id, code as u8);
            self.core().due(due);
            if let Some(path) = &mut self.path {
                path.reset(code);
            }
        }
    }

    /// Ends when nobody wants what this half sends: the peer reads no longer, the stream is over, or the session is. Cancel-safe,
    /// and independent of this half's life.
    pub fn unwanted(&self) -> impl Future<Output = StreamError> + Send + 'static {
        let on_path = self.path.as_ref().map(PathSend::stopped);
        let (attached, id) = (self.attached.clone(), self.id);
        async move {
            let told = poll_fn(|cx| unwanted(attached.core(), id, cx));
            let Some(on_path) = on_path else { return told.await };
            tokio::select! {
                biased;
                error = told => return error,
                // That all has arrived, or that the path is lost, is no reason.
                stopped = on_path => if let Err(error) = stopped { Slot::failed(&attached, id, &error) },
            }
            poll_fn(|cx| unwanted(attached.core(), id, cx)).await
        }
    }
}

fn unwanted(core: &Core, id: u64, cx: &Context<'_>) -> Poll<StreamError> {
    let mut table = core.table();
    if let Some(end) = &table.ended {
        return Poll::Ready(end.clone().into());
    }
    if let Err(ended) = table.streams.sends(id) {
        return Poll::Ready(ended.into());
    }
    if let Some(slot) = table.streams.slot(id) {
        slot.watcher = Some(cx.waker().clone());
    }
    Poll::Pending
}

impl Drop for StreamSend {
    fn drop(&mut self) {
        self.reset(StreamCode::Cancelled);
        if self.core().resume_window().is_zero() {
            self.core().dropped(self.id);
        }
    }
}

/// The receiving half of a session's stream. Dropped before its end, the peer is told to stop. On the side that opened the stream
/// it speaks for both halves: dropped, the stream is over.
#[derive(Debug)]
pub struct StreamRecv {
    attached: Arc<Attached>,
    id: u64,
    path: Option<PathRecv>,
    /// Bytes that came together with the head.
    first: Option<Bytes>,
    /// Bytes that come again, and are here already.
    skip: u64,
    /// It was on another path before: what becomes of it may be said beside the path stream.
    carried_on: bool,
    ended: bool,
    /// It speaks for itself only.
    apart: bool,
}

/// On the side that opened a stream: it is not over before this is dropped.
#[derive(Debug)]
pub struct StreamLife {
    core: Arc<Core>,
    id: u64,
}

impl Drop for StreamLife {
    fn drop(&mut self) {
        let due = self.core.table().streams.over(self.id);
        self.core.due(due);
    }
}

impl StreamRecv {
    pub(super) fn new(path: PathRecv, attached: Arc<Attached>, id: u64, first: Option<Bytes>) -> Self {
        Self { attached, id, path: Some(path), first, skip: 0, carried_on: false, ended: false, apart: false }
    }

    /// From now on this half speaks for itself only, on the side that opened the stream: the stream is over when what this returns is
    /// dropped. For those who may still have something to send when they have heard everything.
    pub fn set_apart(&mut self) -> StreamLife {
        self.apart = true;
        StreamLife { core: self.core().clone(), id: self.id }
    }

    /// The stream was on another path before anything of it came here.
    pub(super) fn was_carried_on(&mut self) {
        self.carried_on = true;
    }

    /// The message that this begins with, for whoever serves the stream, and the frames that have come with it. `None`: none came
    /// within [`limits::HELLO`], or that is none.
    pub async fn first_message<M: Message + Decode<()>>(&mut self) -> Option<(M, Frames)> {
        let mut frames = Frames::new(M::LIMIT);
        let asked = async {
            loop {
                if let Some(frame) = frames.next_frame().ok()? {
                    return codec::decode(&frame).ok();
                }
                frames.push(self.read().await.ok()??);
            }
        };
        let message = tokio::time::timeout(limits::HELLO, asked).await.ok()??;
        Some((message, frames))
    }

    /// The next bytes in order; `None` at the end. Waits for another path when there is none. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            let read = match (self.first.take(), &mut self.path) {
                (Some(first), _) => Ok(Some(first)),
                (None, Some(path)) if !self.carried_on => path.read().await,
                (None, Some(_)) => self.read_or_told().await?,
                (None, None) => {
                    poll_fn(|cx| self.arrived(cx)).await?;
                    continue;
                }
            };
            match read {
                Ok(Some(bytes)) => {
                    if let Some(bytes) = self.count(bytes)? {
                        return Ok(Some(bytes));
                    }
                }
                Ok(None) => {
                    if self.end()? {
                        return Ok(None);
                    }
                }
                Err(PathError::Reset(code)) if code != StreamCode::PathLeft as u64 => {
                    if self.end()? {
                        return Err(StreamError::Reset(code));
                    }
                }
                Err(PathError::Closed) => return Err(StreamError::Closed),
                Err(_) => {
                    self.path = None;
                    if self.core().resume_window().is_zero() {
                        let lost = self.attached.link().lost().map(Into::into);
                        let lost = lost.unwrap_or(super::event::DisconnectReason::NoAnswer);
                        return Err(StreamError::Session(SessionEnd::Closed(lost)));
                    }
                }
            }
        }
    }

    /// Reads from the path, unless what becomes of the stream is said beside it.
    async fn read_or_told(&mut self) -> Result<Result<Option<Bytes>, PathError>, StreamError> {
        let (core, id) = (self.attached.core().clone(), self.id);
        let Some(path) = &mut self.path else { return Ok(Ok(None)) };
        tokio::select! {
            biased;
            read = path.read() => Ok(read),
            told = poll_fn(|cx| told(&core, id, cx)) => match told {
                Some(error) => Err(error),
                // Another path: this one has nothing more to say.
                None => Ok(Err(PathError::Reset(StreamCode::PathLeft as u64))),
            },
        }
    }

    /// Waits for another path to carry this half on.
    fn arrived(&mut self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let core = self.attached.core().clone();
        match told(&core, self.id, cx) {
            Poll::Ready(None) => {
                let arrived = core.table().streams.slot(self.id).and_then(|slot| slot.arrived.take());
                if let Some(arrived) = arrived {
                    self.go_on(*arrived);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Some(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn go_on(&mut self, arrived: Arrived) {
        let Arrived { path, first, skip, attached } = arrived;
        (self.path, self.skip, self.attached) = (Some(path), skip, attached);
        self.first = (!first.is_empty()).then_some(first);
        self.carried_on = true;
    }

    /// What came is here, unless it comes again on another path, or came before.
    fn count(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, StreamError> {
        let again = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= again as u64;
        bytes = bytes.split_off(again);
        let due = {
            let mut table = self.attached.core().table();
            if let Some(end) = &table.ended {
                return Err(end.clone().into());
            }
            if table.streams.slot(self.id).is_some_and(|slot| slot.arrived.is_some()) {
                drop(table);
                self.path = None;
                self.first = None;
                return Ok(None);
            }
            table.streams.received(self.id, bytes.len())?
        };
        self.core().due(due);
        self.attached.received(bytes.len());
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// The end came; false if another path carries the stream on, and it counts for nothing.
    fn end(&mut self) -> Result<bool, StreamError> {
        let due = {
            let mut table = self.attached.core().table();
            if let Some(end) = &table.ended {
                return Err(end.clone().into());
            }
            if table.streams.slot(self.id).is_some_and(|slot| slot.arrived.is_some()) {
                drop(table);
                self.path = None;
                return Ok(false);
            }
            if self.carried_on {
                table.streams.receives(self.id)?;
            }
            table.streams.ended(self.id)
        };
        self.ended = true;
        self.core().due(due);
        Ok(true)
    }

    /// What came together with the head, if it was not read yet. Saves a future where a call begins.
    pub fn take_first(&mut self) -> Option<Bytes> {
        let first = self.first.take()?;
        self.count(first).ok().flatten()
    }

    /// Reads no more, and tells the peer why.
    pub fn stop(&mut self, code: StreamCode) {
        if !std::mem::replace(&mut self.ended, true) {
            let due = self.core().table().streams.stop(self.id, code as u8);
            self.core().due(due);
            if let Some(path) = &mut self.path {
                path.stop(code);
            }
        }
    }

    /// The session.
    pub fn core(&self) -> &Arc<Core> {
        self.attached.core()
    }
}

/// What is said of a stream beside its path stream: an error, or, `None`, that another path carries it on.
fn told(core: &Core, id: u64, cx: &Context<'_>) -> Poll<Option<StreamError>> {
    let mut table = core.table();
    if let Some(end) = &table.ended {
        return Poll::Ready(Some(end.clone().into()));
    }
    if let Err(ended) = table.streams.receives(id) {
        return Poll::Ready(Some(ended.into()));
    }
    let Some(slot) = table.streams.slot(id) else { return Poll::Ready(Some(StreamError::Closed)) };
    if slot.arrived.is_some() {
        return Poll::Ready(None);
    }
    slot.reader = Some(cx.waker().clone());
    Poll::Pending
}

impl Drop for StreamRecv {
    fn drop(&mut self) {
        let ours = self.core().side().opens(self.id);
        if ours && !self.apart {
            let due = self.core().table().streams.over(self.id);
            self.core().due(due);
            return;
        }
        self.stop(StreamCode::Cancelled);
        if self.core().resume_window().is_zero() {
            self.core().dropped(self.id);
        }
    }
}
