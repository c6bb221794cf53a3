//! [`Session`]: what the rest of the program holds of a session. It outlives paths: the same handle is good again after every
//! reconnect.

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::attached::Attached;
use super::event::PathKind;
use super::hub::Hub;
use super::peer::{Command, Peer, Unreached};
use crate::id::NodeId;
use crate::proto::control::SessionId;
use crate::proto::limits::Limits;

/// A session with a peer. Clones share it; dropping them does not end it.
///
/// The handle stays good over the loss of paths: a call made while the peer is not connected waits for it, within its
/// deadline. It ends when the node releases the peer ([`Session::close`]) or goes down. On a node that does not itself keep the
/// session, but was dialled, it also ends when the peer goes in good order, or is away for more than
/// [120 s](crate::proto::limits::RESUME_WINDOW): ask [`Node::session`](crate::Node::session) for a new one then.
#[derive(Clone)]
pub struct Session {
    hub: Hub,
    peer: Arc<Peer>,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// A path carries it.
    Connected,
    /// No path carries it; this node dials.
    Connecting,
    /// No path carries it: the peer's owner is asked whether to let this node in, which asks again every few seconds.
    Waiting,
    /// No path carries it, and this node does not dial.
    Idle,
}

/// Why waiting for a session was in vain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The time allowed has passed; the last attempt's outcome, if one ended.
    #[error("not connected in time{}", .0.as_ref().map(|last| format!(": {last}")).unwrap_or_default())]
    TimedOut(Option<Unreached>),
    /// The node no longer keeps this session.
    #[error("the session was closed here")]
    Closed,
    /// The last attempt failed, and the wait was for one answer only.
    #[error("{0}")]
    Unreached(Unreached),
}

impl Session {
    pub(crate) fn new(hub: Hub, peer: Arc<Peer>) -> Self {
        Self { hub, peer }
    }

    /// A part of what its node serves with.
    pub(crate) fn part<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.hub.acceptor().part(TypeId::of::<T>())?.downcast().ok()
    }

    /// The limits of the node it belongs to.
    pub(crate) fn limits(&self) -> &Limits {
        &self.hub.own().limits
    }

    pub(crate) fn owner(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The other node.
    pub fn peer(&self) -> NodeId {
        self.peer.id()
    }

    /// Where the session stands now.
    pub fn state(&self) -> SessionState {
        match (self.peer.attached(), self.peer.is_wanted()) {
            (Some(_), _) => SessionState::Connected,
            (None, true) if self.peer.unreached() == Some(Unreached::Asked) => SessionState::Waiting,
            (None, true) => SessionState::Connecting,
            (None, false) => SessionState::Idle,
        }
    }

    /// Why it is not connected, if an attempt has failed since it was.
    pub fn unreached(&self) -> Option<Unreached> {
        self.peer.unreached()
    }

    /// Attempts that ended without a session, since the peer was wanted or last connected.
    #[cfg(feature = "cli")]
    pub(crate) fn failures(&self) -> u64 {
        self.peer.watch().borrow().failures
    }

    /// Its name, while a path carries it.
    pub fn id(&self) -> Option<SessionId> {
        self.peer.attached().map(|attached| attached.session())
    }

    /// What carries it now; `None` while nothing does.
    pub fn path(&self) -> Option<PathKind> {
        self.peer.attached().map(|attached| PathKind::of(attached.link()))
    }

    /// Waits until the session is up. Cancel-safe.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] after this time, [`WaitError::Closed`] if the node gives the session up.
    pub async fn connected(&self, within: Duration) -> Result<(), WaitError> {
        self.attached_by(Some(Instant::now() + within), None, false).await.map(drop)
    }

    /// Waits until the session is up, or the first attempt from now on has failed for a reason that waiting does not mend: the
    /// peer refuses us, or is denied here, or nothing is known of where it is, or others are at all its addresses.
    pub(crate) async fn first_connected(&self, within: Duration) -> Result<(), WaitError> {
        let deadline = Instant::now() + within;
        loop {
            match self.attached_by(Some(deadline), None, true).await {
                Ok(_) => return Ok(()),
                Err(WaitError::Unreached(Unreached::Failed(_) | Unreached::Asked)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Measures a round trip through the session's path, from this program and back. Cancel-safe.
    ///
    /// # Errors
    /// [`WaitError`] if the session is not up, or no answer comes, within this time.
    pub async fn ping(&self, within: Duration) -> Result<Duration, WaitError> {
        let deadline = Instant::now() + within;
        self.attached_by(Some(deadline), None, false).await?;
        let (answer, answered) = oneshot::channel();
        self.peer.command(Command::Ping(answer));
        match timeout_at(deadline, answered).await {
            Ok(Ok(round_trip)) => Ok(round_trip),
            Ok(Err(_)) | Err(_) => Err(WaitError::TimedOut(None)),
        }
    }

    /// Yields whenever something changes in where the session stands, from now on; ends when its node has given it up.
    pub(crate) fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        stream::unfold(self.peer.watch(), |mut watch| async {
            watch.changed().await.ok()?;
            let gone = watch.borrow_and_update().gone;
            (!gone).then_some(((), watch))
        })
    }

    /// Ends the session: says goodbye and dials no more. Calls in flight fail. Does not wait.
    pub fn close(&self) {
        self.peer.release();
    }

    /// The session on a path other than `not`, as soon as there is one. With `fail_fast` a failed attempt ends the wait.
    pub(crate) async fn attached_by(
        &self,
        deadline: Option<Instant>,
        not: Option<&Arc<Attached>>,
        fail_fast: bool,
    ) -> Result<Arc<Attached>, WaitError> {
        if let Some(attached) = self.peer.attached().filter(|attached| !is(attached, not)) {
            return Ok(attached);
        }
        // Boxed, so that the state of calls that need not wait has no room for it.
        Box::pin(self.wait_attached(deadline, not, fail_fast)).await
    }

    async fn wait_attached(
        &self,
        deadline: Option<Instant>,
        not: Option<&Arc<Attached>>,
        fail_fast: bool,
    ) -> Result<Arc<Attached>, WaitError> {
        let mut watch = self.peer.watch();
        let before = watch.borrow().failures;
        let wait = watch.wait_for(|state| {
            let failed = state.failures > before && fail_fast;
            state.gone || failed || state.attached.as_ref().is_some_and(|attached| !is(attached, not))
        });
        let waited = match deadline {
            Some(deadline) => timeout_at(deadline, wait).await.map(|waited| waited.map(|state| state.clone())),
            None => Ok(wait.await.map(|state| state.clone())),
        };
        match waited {
            Err(_) => Err(WaitError::TimedOut(self.peer.watch().borrow().unreached.clone())),
            Ok(Err(_)) => Err(WaitError::Closed),
            Ok(Ok(state)) => match (state.attached, state.gone, state.unreached) {
                (Some(attached), ..) if !is(&attached, not) => Ok(attached),
                (_, true, _) | (_, _, None) => Err(WaitError::Closed),
                (_, false, Some(unreached)) => Err(WaitError::Unreached(unreached)),
            },
        }
    }
}

fn is(attached: &Arc<Attached>, other: Option<&Arc<Attached>>) -> bool {
    other.is_some_and(|other| Arc::ptr_eq(attached, other))
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer.id()).field("state", &self.state()).finish_non_exhaustive()
    }
}
