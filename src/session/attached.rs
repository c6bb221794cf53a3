//! A session on a path: what callers and handlers need to use it, shared by all of them. It lives from one attach to the loss
//! of the path; it opens and accepts streams and keeps the shares of this peer. It decides nothing about paths.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::stream::{StreamRecv, StreamSend};
use super::window::{Budget, Window};
use crate::id::NodeId;
use crate::net::{Link, PathError, PathRecv, PathSend};
use crate::policy::{Action, PolicyHandle};
use crate::proto::close::StreamCode;
use crate::proto::control::{Hello, Role, SessionId};
use crate::proto::limits::Limits;
use crate::proto::stream::Head;
use crate::state::ids::{Accepted, Accepter, Allocator, Side};
use crate::state::liveness::Pulse;

/// Bodies up to this many bytes need no share of their own: the number of calls at once bounds them.
pub const SMALL_BODY_BYTES: usize = 4 * 1024;

/// Decisions remembered per session. Only methods that exist are asked for often, and there are fewer of those.
const GRANTS: usize = 1_024;

/// A session while a path carries it.
#[derive(Debug)]
pub struct Attached {
    link: Link,
    session: SessionId,
    attach: u64,
    hello: Hello,
    since: Instant,
    allocator: Mutex<Allocator>,
    accepted: Mutex<Accepter>,
    open: AtomicUsize,
    opened: AtomicU64,
    draining: AtomicBool,
    /// The peer goes down and takes no new calls.
    closing: AtomicBool,
    /// Calls of ours in flight here.
    calling: AtomicUsize,
    handlers: Arc<Semaphore>,
    handlers_max: usize,
    share_bytes: usize,
    shares: [Arc<Semaphore>; 5],
    window: Window,
    pulse: Pulse,
    wake: Notify,
    /// Whether the owner looks at the path often, as it does while streams are open.
    watched: AtomicBool,
    policy: PolicyHandle,
    grants: Mutex<Grants>,
}

#[derive(Debug, Default)]
struct Grants {
    generation: u64,
    calls: HashMap<Box<str>, bool>,
}

/// What room is set aside for. Each has a share of its own: were there one for all, two nodes that wait for each other's answers
/// could fill it with what they have to say, and have no room left to listen.
#[derive(Clone, Copy, Debug)]
pub enum Share {
    /// Bodies of our calls, until they are answered; one message of a stream, until QUIC has it. The peer then has room for what
    /// we send, by its own share of [`Share::Requests`]: more would wait there unread, and fill the window that the rest needs
    /// to arrive.
    Calls,
    /// Headers of the peer's calls that are not small, until their handlers have ended.
    Headers,
    /// Bodies of the peer's calls, until their handlers have ended.
    Requests,
    /// Answers to our calls, until they are read.
    Answers,
    /// Answers to the peer's calls, until QUIC has them.
    Replies,
}

/// What came of a hello both ways: enough to attach a session.
#[derive(Debug)]
pub struct Agreement {
    /// The link.
    pub link: Link,
    /// The peer's hello.
    pub hello: Hello,
    /// The session.
    pub session: SessionId,
    /// The number of this attachment.
    pub attach: u64,
}

impl Attached {
    pub(super) fn new(agreement: Agreement, limits: &Limits, policy: PolicyHandle, budget: Arc<Budget>) -> Arc<Self> {
        let Agreement { link, hello, session, attach } = agreement;
        let side = if link.dialled() { Side::Initiator } else { Side::Acceptor };
        Arc::new(Self {
            window: Window::new(link.clone(), budget),
            pulse: Pulse::default(),
            wake: Notify::new(),
            watched: AtomicBool::new(false),
            session,
            attach,
            hello,
            since: Instant::now(),
            allocator: Mutex::new(Allocator::new(side)),
            accepted: Mutex::new(Accepter::new(side.peer())),
            open: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            calling: AtomicUsize::new(0),
            handlers: Arc::new(Semaphore::new(limits.calls_in_flight)),
            handlers_max: limits.calls_in_flight,
            share_bytes: limits.session_body_bytes,
            shares: std::array::from_fn(|_| Arc::new(Semaphore::new(limits.session_body_bytes))),
            grants: Mutex::new(Grants { generation: policy.generation(), calls: HashMap::new() }),
            policy,
            link,
        })
    }

    /// The key of the other end.
    pub fn peer(&self) -> NodeId {
        self.link.peer()
    }

    /// What the other end is.
    pub fn role(&self) -> Role {
        self.hello.role
    }

    /// What the other end said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The session's name.
    pub fn session(&self) -> SessionId {
        self.session
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

    /// Streams open now, of both ends.
    pub fn streams(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Streams opened so far, by both ends.
    pub fn streams_ever(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Opens a stream of the session. Waits while the peer grants no more. Cancel-safe.
    pub async fn open(self: &Arc<Self>) -> Result<(StreamSend, StreamRecv), PathError> {
        let (send, recv) = self.link.open().await?;
        let head = Head { stream: self.next_id(), attach: self.attach, offset: 0 };
        Ok((StreamSend::opened(send, self.clone(), head), StreamRecv::opened(recv, Opened::new(self.clone()))))
    }

    /// Takes in a stream of the peer whose head was read; `first` came with it. An id that was used before, or a head of
    /// another attachment, is refused on the stream and gives `None`.
    pub(super) fn admit(
        self: &Arc<Self>,
        head: Head,
        first: Bytes,
        mut send: PathSend,
        mut recv: PathRecv,
    ) -> Option<(StreamSend, StreamRecv)> {
        let fresh = head.attach == self.attach && head.offset == 0 && self.accepted().accept(head.stream) == Ok(Accepted::Fresh);
        if !fresh {
            send.reset(StreamCode::Closed);
            recv.stop(StreamCode::Closed);
            return None;
        }
        let opened = Opened { attached: self.clone(), accepted: Some(head.stream) };
        opened.count();
        let first = (!first.is_empty()).then_some(first);
        Some((StreamSend::accepted(send, opened), StreamRecv::accepted(recv, self.clone(), first)))
    }

    /// A stream of the peer ended before its head was here. Its id will never be seen.
    pub(super) fn ended_unheard(&self) {
        self.accepted().unheard();
    }

    /// Leave to run one more handler; waits while too many run. The permit is held until the handler has ended.
    pub(super) async fn handler_permit(&self) -> OwnedSemaphorePermit {
        self.handlers.clone().acquire_owned().await.expect("this semaphore is never closed")
    }

    /// The same, at once or not at all: for what goes on after its call has ended.
    pub fn try_handler_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.handlers.clone().try_acquire_owned().ok()
    }

    /// Calls of the peer that are being handled.
    pub fn handling(&self) -> usize {
        // One more permit is always held for the stream that comes next.
        (self.handlers_max - self.handlers.available_permits()).saturating_sub(1)
    }

    /// Sets aside room for a body of so many bytes, first come first served; one body always fits. Small bodies need none: the
    /// number of calls at once bounds them. Cancel-safe.
    pub async fn reserve(&self, share: Share, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= SMALL_BODY_BYTES {
            return None;
        }
        let bytes = bytes.min(self.share_bytes) as u32;
        let share = self.shares[share as usize].clone();
        Some(share.acquire_many_owned(bytes).await.expect("this semaphore is never closed"))
    }

    /// Whether the peer may call this method, by the policy in force now.
    pub fn may_call(&self, method: &str) -> bool {
        let generation = self.policy.generation();
        let mut grants = self.grants.lock().expect("nothing panics while it is held");
        if grants.generation != generation {
            *grants = Grants { generation, calls: HashMap::new() };
        }
        if let Some(known) = grants.calls.get(method) {
            return *known;
        }
        let permitted = self.policy.decide(&self.peer(), Action::Call, method).is_permit();
        if grants.calls.len() < GRANTS {
            grants.calls.insert(method.into(), permitted);
        }
        permitted
    }

    /// Either end goes down: no new calls, please.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The peer takes no new calls.
    pub(super) fn close_to_calls(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.drain();
    }

    /// Begins a call of ours, which ends when this is dropped. `None`: the peer takes no new ones here. Counted before it is
    /// asked, so that whoever closes first and counts then misses none.
    pub fn begin_call(self: &Arc<Self>) -> Option<Calling> {
        self.calling.fetch_add(1, Ordering::SeqCst);
        let calling = Calling(self.clone());
        (!self.closing.load(Ordering::SeqCst)).then_some(calling)
    }

    /// Calls of ours in flight here.
    pub(super) fn calling(&self) -> usize {
        self.calling.load(Ordering::SeqCst)
    }

    /// Bytes go out: the peer should let us know that it has them.
    pub(super) fn sent(&self, bytes: usize) {
        if self.pulse.sent(bytes as u64) {
            self.wake.notify_one();
        }
    }

    /// Whether the owner has to look at the path often: streams are open, or were since `before` of them had been opened.
    pub(super) fn is_busy(&self, before: u64) -> bool {
        let busy = || self.streams() > 1 || self.streams_ever() != before;
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

    pub(super) fn received(&self, bytes: usize) {
        self.window.received(bytes);
    }

    /// Lets more in if a stream that nobody reads holds up the others.
    pub(super) fn relieve(&self) {
        self.window.relieve();
    }

    /// Gives back what the window has grown by if nothing came since this was last asked.
    pub(super) fn rest(&self) {
        self.window.rest();
    }

    fn next_id(&self) -> u64 {
        self.allocator.lock().expect("nothing panics while it is held").take()
    }

    fn accepted(&self) -> std::sync::MutexGuard<'_, Accepter> {
        self.accepted.lock().expect("nothing panics while it is held")
    }
}

/// A call of ours in flight.
#[derive(Debug)]
pub struct Calling(Arc<Attached>);

impl Drop for Calling {
    fn drop(&mut self) {
        self.0.calling.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Keeps count of a stream, from its opening until its answer is read here or written here.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) attached: Arc<Attached>,
    /// Its id, if the peer opened it: finished when this is dropped, and never accepted again.
    accepted: Option<u64>,
}

impl Opened {
    fn new(attached: Arc<Attached>) -> Self {
        let opened = Self { attached, accepted: None };
        opened.count();
        opened
    }

    fn count(&self) {
        let attached = &self.attached;
        attached.open.fetch_add(1, Ordering::Relaxed);
        attached.opened.fetch_add(1, Ordering::Relaxed);
        if !attached.watched.load(SeqCst) && !attached.watched.swap(true, SeqCst) {
            attached.wake.notify_one();
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.attached.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(id) = self.accepted {
            self.attached.accepted().finished(id);
        }
    }
}
