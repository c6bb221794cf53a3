//! A session on a path: what callers and handlers need to use it, shared by all of them. It lives from one attach to the loss
//! of the path; the session goes on.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::core::{Core, SessionEnd};
use super::slot::Slot;
use super::stream::{StreamError, StreamRecv, StreamSend};
use super::window::Window;
use crate::net::{Link, PathRecv, PathSend};
use crate::proto::close::CloseCode;
use crate::proto::control::{Hello, SessionId};
use crate::proto::stream::Head;
use crate::state::budget::Budget;
use crate::state::ids::{Accepted, IdError};
use crate::state::liveness::Pulse;
use crate::state::streams::Violation;

/// A session while a path carries it.
#[derive(Debug)]
pub struct Attached {
    core: Arc<Core>,
    link: Link,
    attach: u64,
    hello: Hello,
    since: Instant,
    window: Window,
    pulse: Pulse,
    wake: Notify,
    /// Whether the owner looks at the path often, as it does while streams are open.
    watched: AtomicBool,
    /// How the peer broke the protocol on a path stream: why the link was closed here.
    violation: OnceLock<Violation>,
}

impl Attached {
    pub(super) fn new(core: Arc<Core>, link: Link, attach: u64, hello: Hello, budget: (Arc<Budget>, u32)) -> Arc<Self> {
        Arc::new(Self {
            core,
            window: Window::new(link.clone(), budget),
            pulse: Pulse::default(),
            wake: Notify::new(),
            watched: AtomicBool::new(false),
            violation: OnceLock::new(),
            attach,
            hello,
            since: Instant::now(),
            link,
        })
    }

    /// The session.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The session's name.
    pub fn session(&self) -> SessionId {
        self.core.id()
    }

    /// What the other end said of itself on this path.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The number of this attachment.
    pub fn attach(&self) -> u64 {
        self.attach
    }

    /// How long the path carries it.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The path.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Opens a stream of the session. Waits while the peer grants no more. Cancel-safe.
    ///
    /// # Errors
    /// The path is lost, or carries the session no longer: nothing was sent.
    pub async fn open(self: &Arc<Self>) -> Result<(StreamSend, StreamRecv), StreamError> {
        let lost = |reason: &dyn std::fmt::Display| StreamError::Path(reason.to_string());
        let (send, recv) = self.link.open().await.map_err(|error| lost(&error))?;
        let id = {
            let mut table = self.core.table();
            if let Some(end) = &table.ended {
                return Err(end.clone().into());
            }
            // On a path that was left meanwhile nobody would carry it on.
            if table.streams.attach() != self.attach {
                return Err(lost(&"another path carries the session"));
            }
            table.streams.open()
        };
        self.opened();
        Ok((StreamSend::opened(send, self.clone(), id), StreamRecv::new(recv, self.clone(), id, None)))
    }

    /// Takes in a new stream of the peer's, whose head and first byte were read; `first` came with them.
    ///
    /// # Errors
    /// The id: with [`IdError::TooManyLive`] it can be tried again later, else it is refused.
    pub(super) fn admit(self: &Arc<Self>, id: u64) -> Result<(), IdError> {
        {
            let mut table = self.core.table();
            if table.ended.is_some() || table.streams.attach() != self.attach {
                return Err(IdError::Closed);
            }
            if table.streams.accept(id)? != Accepted::Fresh {
                return Err(IdError::Closed);
            }
            // What the stream is for was read already.
            if let Ok(due) = table.streams.received(id, 1) {
                self.core.due(due);
            }
        }
        self.opened();
        Ok(())
    }

    /// The halves of a stream that was let in.
    pub(super) fn halves(self: &Arc<Self>, id: u64, first: Bytes, send: PathSend, recv: PathRecv) -> (StreamSend, StreamRecv) {
        let first = (!first.is_empty()).then_some(first);
        (StreamSend::accepted(send, self.clone(), id), StreamRecv::new(recv, self.clone(), id, first))
    }

    /// A stream of the peer's that is live goes on here.
    pub(super) fn carried_on(self: &Arc<Self>, head: Head, first: Bytes, send: PathSend, recv: PathRecv) -> CarriedOn {
        let Head::CarriedOn { stream, offset, received } = head else { return CarriedOn::Closed(send, recv) };
        let mut table = self.core.table();
        if table.ended.is_some() || table.streams.attach() != self.attach {
            return CarriedOn::Closed(send, recv);
        }
        if table.streams.slot(stream).is_none() {
            let unseen = (offset, received) == (0, 0);
            return if unseen { CarriedOn::Unseen(send, recv, first) } else { CarriedOn::Closed(send, recv) };
        }
        match table.streams.carried(stream, offset, received) {
            Ok((skip, slot)) => {
                slot.arrived(recv, first, skip, self.clone());
                CarriedOn::Here(send, received)
            }
            Err(violation) => CarriedOn::Violation(violation),
        }
    }

    /// The peer said on a path stream what cannot be: closes the link; the owner asks [`Attached::violation`] why.
    pub(super) fn violated(&self, violation: Violation) {
        let _ = self.violation.set(violation);
        self.link.close(CloseCode::Protocol);
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.get().copied()
    }

    /// A stream of the peer ended before its head was here. Its id will never be seen.
    pub(super) fn ended_unheard(&self) {
        self.core.table().streams.ended_unheard();
    }

    fn opened(&self) {
        self.core.count_opened();
        if !self.watched.load(SeqCst) && !self.watched.swap(true, SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Bytes go out: the peer should let us know that it has them.
    pub(super) fn sent(&self, bytes: usize) {
        if self.pulse.sent(bytes as u64) {
            self.wake.notify_one();
        }
    }

    /// Whether the owner has to look at the path often: streams are open, or were since `before` of them had been opened.
    pub(super) fn is_busy(&self, before: u64) -> bool {
        let busy = || self.core.streams() > 1 || self.core.streams_ever() != before;
        let was = busy();
        self.watched.store(was, SeqCst);
        // A stream opened in between did not see that nobody watches.
        was || (busy() && !self.watched.swap(true, SeqCst))
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Waits until something is sent after a time of quiet. Cancel-safe.
    pub(super) async fn stirs(&self) {
        self.wake.notified().await;
    }

    /// Bytes that came over this path were read, be they the session's or a circuit's: the path's window grows with that.
    pub(crate) fn received(&self, bytes: usize) {
        self.window.received(bytes, self.core.inbound());
    }

    /// Lets more in if a stream that nobody reads holds up the others.
    pub(super) fn relieve(&self) {
        self.window.relieve(self.core.inbound());
    }

    /// Gives back what the window has grown by if nothing came since this was last asked.
    pub(super) fn rest(&self) {
        self.window.rest();
    }
}

/// What becomes of a path stream that carries on one of the session's.
pub(super) enum CarriedOn {
    /// It does; what we still send on it goes from this offset on.
    Here(PathSend, u64),
    /// It is the first we see of the stream.
    Unseen(PathSend, PathRecv, Bytes),
    /// The stream is over.
    Closed(PathSend, PathRecv),
    /// The peer broke the protocol.
    Violation(Violation),
}

impl From<SessionEnd> for StreamError {
    fn from(end: SessionEnd) -> Self {
        StreamError::Session(end)
    }
}

/// Puts a stream on this path for the first time since the session was attached to it, and sends what the peer may lack.
pub(super) async fn carry_on(attached: Arc<Attached>, id: u64) {
    let Ok((mut send, recv)) = attached.link().open().await else { return };
    let mut buf = Vec::with_capacity(crate::proto::stream::HEAD_BYTES_MAX);
    let at = {
        let mut table = attached.core.table();
        if table.streams.attach() != attached.attach {
            return;
        }
        let Some((head, slot)) = table.streams.carry(id) else { return };
        head.put(&mut buf);
        slot.arrived(recv, Bytes::new(), 0, attached.clone());
        let Head::CarriedOn { offset, .. } = head else { return };
        offset
    };
    if send.write(buf.into()).await.is_ok() {
        send_on(attached, id, send, at).await;
    }
}

/// Sends what is kept of a stream from this offset on; then whoever writes to the stream goes on.
pub(super) async fn send_on(attached: Arc<Attached>, id: u64, send: PathSend, mut at: u64) {
    let mut send = Some(send);
    while let Some(bytes) = Slot::next(&attached, id, at, &mut send) {
        at += bytes.len() as u64;
        attached.sent(bytes.len());
        let Some(path) = &mut send else { return };
        if let Err(error) = path.write(bytes).await {
            return Slot::failed(&attached, id, &error);
        }
    }
}
