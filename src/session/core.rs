//! A session, whatever path carries it: its streams, the shares of its peer, the handlers that run for it. It lives from the first
//! attach until it is ended; paths come and go meanwhile. It decides nothing about paths.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{AbortHandle, Abortable};
use slab::Slab;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::consume_budget;

use super::event::DisconnectReason;
use super::ledger::{Ledger, Limit};
use super::slot::Slot;
use super::tally::Tally;
use crate::id::NodeId;
use crate::net::{Account, InTurn};
use crate::policy::{Action, PolicyHandle};
use crate::proto::control::{BootId, Hello, Progress, Role, SessionId};
use crate::proto::limits::{self, Limits};
use crate::proto::stream::Purpose;
use crate::state::budget::Budget;
use crate::state::ids::Side;
use crate::state::streams::{self, Due, Streams, Violation};
use crate::state::unread::Unread;

/// Bodies up to this many bytes need no share of their own: the number of calls at once bounds them.
pub const SMALL_BODY_BYTES: usize = 4 * 1024;
/// So many bytes of answers wait for room: before any further call is begun some of them have to find it.
const LATE_BYTES: usize = limits::BODY_BYTES;

/// So many streams are ended in one step.
const AT_ONCE: usize = 64;

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
    serving: Arc<Mutex<Serving>>,
    share_bytes: usize,
    shares: [Arc<Semaphore>; 5],
    /// Bytes of answers to the peer that wait for room.
    late: AtomicUsize,
    on_time: Notify,
    tally: Tally,
    account: Account,
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

impl Share {
    const ALL: [Share; 5] = [Share::Calls, Share::Headers, Share::Requests, Share::Answers, Share::Replies];

    /// How much it is, where bodies have so much: headers are small, and each is bounded.
    fn of(self, bodies: usize) -> usize {
        if let Share::Headers = self { bodies / 4 } else { bodies }
    }
}

/// An answer to the peer of so many bytes, which waits for room.
#[derive(Debug)]
pub struct LateAnswer(Arc<Core>, usize);

impl Drop for LateAnswer {
    fn drop(&mut self) {
        let before = self.0.late.fetch_sub(self.1, SeqCst);
        if before >= LATE_BYTES && before - self.1 < LATE_BYTES {
            self.0.on_time.notify_waiters();
        }
    }
}

/// What is served for the peer now.
type Serving = Slab<AbortHandle>;

/// One of these, until it is dropped.
struct One {
    all: Arc<Mutex<Serving>>,
    key: usize,
}

impl Drop for One {
    fn drop(&mut self) {
        // Not there any more if the session has ended.
        lock(&self.all).try_remove(self.key);
    }
}

/// What is left of a session that is over: whoever waits for a stream is to look, and what is served ends. However this ends, they are told.
struct Left {
    streams: streams::Left<Slot>,
    serving: slab::IntoIter<AbortHandle>,
}

impl Left {
    /// Tells one of them.
    fn tell(&mut self) -> Option<()> {
        match self.streams.next() {
            Some(mut slot) => slot.wake(),
            None => self.serving.next()?.1.abort(),
        }
        Some(())
    }

    async fn go(mut self) {
        while self.tell().is_some() {
            consume_budget().await;
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        while self.tell().is_some() {}
    }
}

fn lock(serving: &Mutex<Serving>) -> MutexGuard<'_, Serving> {
    serving.lock().expect("nothing panics while it is held")
}

/// What a session needs of its node.
pub(super) struct Surroundings<'a> {
    pub limits: &'a Limits,
    pub policy: &'a PolicyHandle,
    pub budget: &'a Arc<Budget>,
    pub ledger: &'a Arc<Ledger>,
    pub account: &'a Account,
}

impl Core {
    /// A session that begins with this hello of the peer's. `initiator`: whether this side dialled.
    pub(super) fn new(id: SessionId, peer: NodeId, hello: &Hello, initiator: bool, of: &Surroundings<'_>) -> Arc<Self> {
        let side = if initiator { Side::Initiator } else { Side::Acceptor };
        let (limits, policy) = (of.limits, of.policy);
        let kept = Budget::growing_part(of.budget, limits::SESSION_KEPT_FIRST_BYTES, limits::SESSION_KEPT_BYTES);
        let window = limits.resume_window.min(Duration::from_millis(hello.resume_window_ms.into()));
        Arc::new(Self {
            id,
            side,
            peer,
            boot: hello.boot,
            role: hello.role,
            window,
            table: Mutex::new(Table { streams: Streams::new(side, !window.is_zero(), kept), ended: None }),
            opened: AtomicU64::new(0),
            news: Notify::new(),
            urgent: AtomicBool::new(false),
            room: Notify::new(),
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            calling: AtomicUsize::new(0),
            handlers: Arc::new(Semaphore::new(limits.calls_in_flight)),
            feeds: Arc::new(Semaphore::new(limits.feeds)),
            tunnels: Arc::new(Semaphore::new(limits.tunnels)),
            unread: Unread::new(limits::TUNNELS_UNREAD_BYTES, limits::TUNNEL_UNREAD_BYTES),
            handlers_max: limits.calls_in_flight,
            serving: Arc::default(),
            share_bytes: limits.session_body_bytes,
            late: AtomicUsize::new(0),
            on_time: Notify::new(),
            shares: Share::ALL.map(|share| Arc::new(Semaphore::new(share.of(limits.session_body_bytes)))),
            tally: Tally::new(peer, policy.clone(), of.ledger.clone()),
            account: of.account.clone(),
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
        let streams = {
            let mut table = self.table();
            table.ended.get_or_insert(end);
            table.streams.end()
        };
        let left = Left { streams, serving: std::mem::take(&mut *lock(&self.serving)).into_iter() };
        // There may be so many that others would wait for it.
        if let Ok(runtime) = Handle::try_current()
            && left.streams.len() + left.serving.len() > AT_ONCE
        {
            runtime.spawn(self.in_turn(left.go()));
        }
        self.room.notify_waiters();
        self.write_counts();
    }

    /// Runs this until it is done or the session ends.
    pub(super) fn serve(&self, serving: impl Future<Output = ()> + Send + 'static) {
        let (handle, registration) = AbortHandle::new_pair();
        let one = {
            let mut all = lock(&self.serving);
            // Looked at under this lock: whoever ends the session ends this one too.
            if self.table().ended.is_some() {
                return;
            }
            One { all: self.serving.clone(), key: all.insert(handle) }
        };
        tokio::spawn(self.in_turn(async move {
            let _one = one;
            let served = AssertUnwindSafe(Abortable::new(serving, registration)).catch_unwind().await;
            super::hub::report_panic(served);
        }));
    }

    /// The same future, which has its turns on the network's thread by what was done for this peer of late.
    pub(super) fn in_turn<F: Future>(&self, future: F) -> InTurn<F> {
        self.account.in_turn(future)
    }

    /// By which the peer's tasks have their turns.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// Leave to run one more handler; waits while too many run. The permit is held until the handler has ended.
    pub(super) fn handler_permit(self: &Arc<Self>) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let core = self.clone();
        async move {
            let permit = core.handlers.clone().acquire_owned().await.expect("this semaphore is never closed");
            loop {
                let mut on_time = std::pin::pin!(core.on_time.notified());
                on_time.as_mut().enable();
                if core.late.load(SeqCst) < LATE_BYTES {
                    return permit;
                }
                on_time.await;
            }
        }
    }

    /// Leave to begin one more call of the peer's, at once or not at all.
    pub(super) fn try_begin_permit(&self) -> Option<OwnedSemaphorePermit> {
        if self.late.load(SeqCst) >= LATE_BYTES { None } else { self.try_handler_permit() }
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
        let bytes = bytes.min(share.of(self.share_bytes)) as u32;
        let room = self.shares[share as usize].clone().acquire_many_owned(bytes);
        // Boxed, so that the state of small calls has no room for it.
        Some(Box::pin(room).await.expect("this semaphore is never closed"))
    }

    /// Bytes that are set aside for what has come from the peer and was not dealt with yet.
    pub(super) fn inbound(&self) -> usize {
        let held = |share: Share| share.of(self.share_bytes) - self.shares[share as usize].available_permits();
        [Share::Headers, Share::Requests, Share::Answers].into_iter().map(held).sum()
    }

    /// An answer to the peer of so many bytes is ready, and waits for room until this is dropped. While as many bytes wait as one body
    /// may have, no further call is begun: each could end with one more.
    pub fn answer_waits(self: &Arc<Self>, bytes: usize) -> LateAnswer {
        self.late.fetch_add(bytes, SeqCst);
        LateAnswer(self.clone(), bytes)
    }

    /// Whether the peer may call this method, by the policy in force now.
    pub fn may_call(&self, method: &str) -> bool {
        self.tally.may_call(method)
    }

    /// The same, of a call that the peer makes: it is counted, and goes into the journal.
    pub fn calls(&self, method: &str) -> bool {
        self.tally.call(method)
    }

    /// A call of the peer's was answered with an error.
    pub fn call_failed(&self, method: &str) {
        self.tally.failed(method);
    }

    /// A call of the peer's that policy permits was turned away by a rate.
    pub fn call_rated(&self, method: &str) {
        self.tally.rated(method);
    }

    /// Whether the peer may do that, by the policy in force now. Not remembered: for what is asked once in a while.
    pub fn may(&self, action: Action, resource: &str) -> bool {
        self.policy().decide(&self.peer, action, resource).is_permit()
    }

    /// The same, of something that the peer asks for: it goes into the journal.
    pub fn uses(&self, action: Action, resource: &str) -> bool {
        self.tally.uses(action, resource)
    }

    /// A limit turned something of the peer's away: it is counted, and goes into the journal.
    pub fn limited(&self, limit: Limit) {
        self.tally.limited(limit);
    }

    /// Writes into the journal what was counted since that was done last.
    pub(super) fn write_counts(&self) {
        self.tally.write();
    }

    /// The policy in force.
    pub fn policy(&self) -> &PolicyHandle {
        self.tally.policy()
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
