//! A session, whatever path carries it: its streams, the shares of its peer, the handlers that run for it. It lives from the first
//! attach until it is ended; paths come and go meanwhile. It decides nothing about paths.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::event::DisconnectReason;
use super::slot::Slot;
use crate::id::NodeId;
use crate::policy::{Action, PolicyHandle};
use crate::proto::control::{BootId, Hello, Progress, Role, SessionId};
use crate::proto::limits::{self, Limits};
use crate::proto::stream::Purpose;
use crate::state::budget::Budget;
use crate::state::ids::Side;
use crate::state::streams::{Due, Streams, Violation};
use crate::state::unread::Unread;

/// Bodies up to this many bytes need no share of their own: the number of calls at once bounds them.
pub const SMALL_BODY_BYTES: usize = 4 * 1024;

/// Decisions remembered per session. Only methods that exist are asked for often, and there are fewer of those.
const GRANTS: usize = 1_024;

/// A session.
#[derive(Debug)]
pub struct Core {
    id: SessionId,
    side: Side,
    peer: NodeId,
    boot: BootId,
    role: Role,
    window: Duration,
    table: Mutex<Table>,
    opened: AtomicU64,
    /// Somebody has to tell the peer what has come.
    news: Notify,
    urgent: AtomicBool,
    /// A stream of the peer's may be over: there is room for another; or given up.
    room: Notify,
    draining: AtomicBool,
    /// The peer goes down and takes no new calls.
    closing: AtomicBool,
    /// Calls of ours in flight here.
    calling: AtomicUsize,
    handlers: Arc<Semaphore>,
    feeds: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    unread: Arc<Unread>,
    handlers_max: usize,
    serving: Mutex<JoinSet<()>>,
    share_bytes: usize,
    shares: [Arc<Semaphore>; 5],
    policy: PolicyHandle,
    grants: Mutex<Grants>,
}

/// The streams, and whether there will be any more.
#[derive(Debug)]
pub(super) struct Table {
    pub streams: Streams<Slot>,
    pub ended: Option<SessionEnd>,
}

/// How a session ended, for whoever had something in flight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// No path came back in time.
    #[error("the session ended: no path came back within {} s", .0.as_secs_f32())]
    Expired(Duration),
    /// The peer's process is another one, or it has forgotten the session.
    #[error("the session ended: the peer was restarted, or has forgotten it")]
    Replaced,
    /// It had no path, and the node needed what was kept for it.
    #[error("the session ended: it had no path, and the node is short of memory")]
    Evicted,
    /// One of the two ended it, or it was not to outlive its path.
    #[error("the session ended: {0}")]
    Closed(DisconnectReason),
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

/// What a session needs of its node.
pub(super) struct Surroundings<'a> {
    pub limits: &'a Limits,
    pub policy: &'a PolicyHandle,
    pub budget: &'a Arc<Budget>,
}

impl Core {
    /// A session that begins with this hello of the peer's. `initiator`: whether this side dialled.
    pub(super) fn new(id: SessionId, peer: NodeId, hello: &Hello, initiator: bool, of: &Surroundings<'_>) -> Arc<Self> {
        let side = if initiator { Side::Initiator } else { Side::Acceptor };
        let (limits, policy) = (of.limits, of.policy);
        let window = limits.resume_window.min(Duration::from_millis(hello.resume_window_ms.into()));
        Arc::new(Self {
            id,
            side,
            peer,
            boot: hello.boot,
            role: hello.role,
            window,
            table: Mutex::new(Table {
                streams: Streams::new(side, !window.is_zero(), Budget::part(of.budget, limits::SESSION_KEPT_BYTES)),
                ended: None,
            }),
            opened: AtomicU64::new(0),
            news: Notify::new(),
            urgent: AtomicBool::new(false),
            room: Notify::new(),
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            calling: AtomicUsize::new(0),
            handlers: Arc::new(Semaphore::new(limits.calls_in_flight)),
            feeds: Arc::new(Semaphore::new(limits::FEEDS)),
            tunnels: Arc::new(Semaphore::new(limits::TUNNELS)),
            unread: Unread::new(limits::TUNNELS_UNREAD_BYTES, limits::TUNNEL_UNREAD_BYTES),
            handlers_max: limits.calls_in_flight,
            serving: Mutex::default(),
            share_bytes: limits.session_body_bytes,
            shares: std::array::from_fn(|_| Arc::new(Semaphore::new(limits.session_body_bytes))),
            grants: Mutex::new(Grants { generation: policy.generation(), calls: HashMap::new() }),
            policy: policy.clone(),
        })
    }

    /// The session's name.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The key of the other end.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// The other end's process.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// What the other end is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Which end this is, on whatever path.
    pub(super) fn side(&self) -> Side {
        self.side
    }

    /// How long it is kept without a path: the shorter time of the two nodes. Zero: not at all.
    pub fn resume_window(&self) -> Duration {
        self.window
    }

    /// Whether another path can carry it on.
    pub(super) fn is_resumable(&self) -> bool {
        !self.window.is_zero() && self.table().ended.is_none()
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.table().ended.is_some()
    }

    /// Streams that are live now, of both ends; those whose answer the peer may still want among them.
    pub fn streams(&self) -> usize {
        self.table().streams.len()
    }

    /// Streams opened so far, by both ends.
    pub fn streams_ever(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    pub(super) fn count_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics while it is held")
    }

    /// Somebody has to tell the peer: wakes the owner.
    pub(super) fn due(&self, due: Due) {
        match due {
            Due::Nothing => {}
            Due::Soon => self.news.notify_one(),
            Due::Now => {
                self.urgent.store(true, Ordering::Relaxed);
                self.news.notify_one();
            }
        }
    }

    /// Waits until there is something to tell the peer; says whether at once. Cancel-safe.
    pub(super) async fn has_news(&self) -> bool {
        self.news.notified().await;
        self.urgent.swap(false, Ordering::Relaxed)
    }

    /// The peer's word on what it has, and what is over.
    pub(super) fn told(&self, progress: &Progress) -> Result<(), Violation> {
        let told = self.table().streams.told(progress, &mut Slot::wake);
        self.room.notify_waiters();
        told
    }

    /// Waits until the peer says that it gave up a stream of which nothing has come. Cancel-safe.
    pub(super) async fn given_up(&self, id: u64) {
        loop {
            let told = self.room.notified();
            if self.table().streams.is_given_up(id) {
                return;
            }
            told.await;
        }
    }

    /// A half of a stream is needed no more, of a session that is not to outlive its path.
    pub(super) fn dropped(&self, id: u64) {
        self.table().streams.dropped(id);
        self.room.notify_waiters();
    }

    /// Waits until fewer of the peer's streams are live than may be. Cancel-safe.
    pub(super) async fn has_room(&self) {
        loop {
            let freed = self.room.notified();
            if self.table().streams.accepted() < limits::LIVE_STREAMS {
                return;
            }
            freed.await;
        }
    }

    /// Ends the session, once: whoever waits for something of it learns how, and its handlers are dropped.
    pub(super) fn end(&self, end: SessionEnd) {
        {
            let mut table = self.table();
            table.ended.get_or_insert(end);
            table.streams.end(&mut Slot::wake);
        }
        self.room.notify_waiters();
        self.serving().abort_all();
    }

    /// Runs this until it is done or the session ends.
    pub(super) fn serve(&self, serving: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.serving();
        // Looked at under the lock of the tasks: whoever ends the session aborts this one too.
        if self.table().ended.is_none() {
            tasks.spawn(serving);
        }
    }

    /// Joins what has ended.
    pub(super) fn reap(&self) {
        let mut tasks = self.serving();
        while let Some(ended) = tasks.try_join_next() {
            super::hub::report(ended);
        }
    }

    fn serving(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.serving.lock().expect("nothing panics while it is held")
    }

    /// Leave to run one more handler; waits while too many run. The permit is held until the handler has ended.
    pub(super) fn handler_permit(&self) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let handlers = self.handlers.clone();
        async move { handlers.acquire_owned().await.expect("this semaphore is never closed") }
    }

    /// The same, at once or not at all: for what goes on after its call has ended.
    pub fn try_handler_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.handlers.clone().try_acquire_owned().ok()
    }

    /// Leave to serve one more stream that is no call, at once or not at all. Tunnels have a bound of their own: they crowd out nothing else.
    pub(super) fn try_feed_permit(&self, purpose: Purpose) -> Option<OwnedSemaphorePermit> {
        let of = if purpose == Purpose::Tunnel { &self.tunnels } else { &self.feeds };
        of.clone().try_acquire_owned().ok()
    }

    /// How much of all tunnels may lie unread at the peer.
    pub fn unread(&self) -> &Arc<Unread> {
        &self.unread
    }

    /// Calls of the peer that are being handled.
    pub fn handling(&self) -> usize {
        self.handlers_max - self.handlers.available_permits()
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
        let permitted = self.policy.decide(&self.peer, Action::Call, method).is_permit();
        if grants.calls.len() < GRANTS {
            grants.calls.insert(method.into(), permitted);
        }
        permitted
    }

    /// Whether the peer may do that, by the policy in force now. Not remembered: for what is asked once in a while.
    pub fn may(&self, action: Action, resource: &str) -> bool {
        self.policy.decide(&self.peer, action, resource).is_permit()
    }

    /// The policy in force.
    pub fn policy(&self) -> &PolicyHandle {
        &self.policy
    }

    /// Either end goes down: no new calls, please.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the peer takes no new calls.
    pub(super) fn is_closed_to_calls(&self) -> bool {
        self.closing.load(SeqCst)
    }

    /// Whether nothing is in flight: no stream but the first.
    pub(super) fn is_idle(&self) -> bool {
        self.streams() <= 1
    }

    /// The peer takes no new calls.
    pub(super) fn close_to_calls(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.drain();
    }

    /// Begins a call of ours, which ends when this is dropped. `None`: the peer takes no new ones here. Counted before it is
    /// asked, so that whoever closes first and counts then misses none.
    pub fn begin_call(self: &Arc<Self>) -> Option<Calling> {
        self.calling.fetch_add(1, SeqCst);
        let calling = Calling(self.clone());
        (!self.closing.load(SeqCst)).then_some(calling)
    }

    /// Calls of ours in flight here.
    pub(super) fn calling(&self) -> usize {
        self.calling.load(SeqCst)
    }
}

/// A call of ours in flight.
#[derive(Debug)]
pub struct Calling(Arc<Core>);

impl Drop for Calling {
    fn drop(&mut self) {
        self.0.calling.fetch_sub(1, SeqCst);
    }
}
