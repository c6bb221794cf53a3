//! One attempt of a call, on the session with one peer: leave, stream, header, body. Whether there is another one, and with whom, is
//! not decided here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Call;
use super::halves::only_answer;
use crate::proto::call::{Header, Shape};
use crate::proto::codec::Message;
use crate::proto::frame::{self, Frames};
use crate::proto::stream::Purpose;
use crate::service::error::{CallError, Outcome};
use crate::service::item::{Charge, Items, put_message, put_message_head};
use crate::session::{Attached, Calling, Core, Peer, SMALL_BODY_BYTES, Session, Share, StreamError, StreamRecv, StreamSend};

impl Call<'_> {
    /// Sends a call until it is answered, on one session after the other.
    pub(super) async fn repeated(
        &self,
        session: &Session,
        body: Bytes,
        deadline: Instant,
        progress: &Progress,
    ) -> Result<(Bytes, Charge), CallError> {
        let mut before = None;
        loop {
            let error = match self.attempt(session, self.fail_fast, body.clone(), deadline, progress).await {
                Err(error) if error.outcome() != Outcome::Answered => error,
                answered => return answered,
            };
            // That this attempt was not sent says nothing of those before.
            let error = if error.outcome() == Outcome::NotSent { before.take().unwrap_or(error) } else { error };
            let refused = matches!(error, CallError::Refused { .. });
            if refused || !progress.session_ended.swap(false, Relaxed) {
                return Err(error);
            }
            before = (error.outcome() == Outcome::Unknown).then_some(error);
        }
    }

    /// Sends a unary call once.
    pub async fn attempt(
        &self,
        session: &Session,
        fail_fast: bool,
        body: impl AsRef<[u8]> + Into<Bytes>,
        deadline: Instant,
        progress: &Progress,
    ) -> Result<(Bytes, Charge), CallError> {
        let (opened, recv) = self.begin(session, fail_fast, Shape::Unary, Some(body), Some(deadline), progress).await?;
        let Opened { send: _send, guard: _guard } = opened;
        let mut items = Items::new(recv, Frames::new(0), Share::Answers);
        let answer = only_answer(&mut items).await;
        if answer.is_err() {
            progress.failed_on(items.core());
        }
        answer
    }

    /// Waits for leave and for the session, opens a stream and writes the header, and the body of a call with one message. As
    /// long as nothing was sent, the loss of a path only means to wait for the next one.
    pub async fn begin(
        &self,
        session: &Session,
        fail_fast: bool,
        shape: Shape,
        mut body: Option<impl AsRef<[u8]> + Into<Bytes>>,
        deadline: Option<Instant>,
        progress: &Progress,
    ) -> Result<(Opened, StreamRecv), CallError> {
        self.check()?;
        let mut guard = InFlight::new(session.owner()).await?;
        let mut lost: Option<Arc<Attached>> = None;
        loop {
            let attached = attached(session, fail_fast, deadline, lost.as_ref()).await?;
            guard.charge = match &body {
                Some(body) => attached.core().reserve(Share::Calls, body.as_ref().len()).await,
                None => None,
            };
            guard.calling = attached.core().begin_call();
            let opened = match &guard.calling {
                Some(_) => attached.open().await.map_err(|error| error.to_string()),
                None => Err("the peer goes down".to_owned()),
            };
            let (mut send, recv) = match opened {
                Ok(opened) => opened,
                Err(why) if fail_fast => return Err(CallError::NotSent(why)),
                Err(_) => {
                    guard.over();
                    lost = Some(attached);
                    continue;
                }
            };
            progress.sent.store(true, Relaxed);
            match self.write(&mut send, shape, body.take(), deadline).await {
                // A callee that reads no further has answered already.
                Ok(()) | Err(StreamError::Stopped(_)) => return Ok((Opened { send, guard }, recv)),
                Err(error) => {
                    progress.failed_on(attached.core());
                    return Err(error.into());
                }
            }
        }
    }

    /// The first write: everything up to the first body, and that too if it is small.
    async fn write(
        &self,
        send: &mut StreamSend,
        shape: Shape,
        body: Option<impl AsRef<[u8]> + Into<Bytes>>,
        deadline: Option<Instant>,
    ) -> Result<(), StreamError> {
        let length = body.as_ref().map_or(0, |body| body.as_ref().len());
        let mut buf = Vec::with_capacity(128 + length.min(SMALL_BODY_BYTES));
        send.begin(&mut buf);
        buf.push(Purpose::Call as u8);
        frame::put_message(&mut buf, &self.header(shape, deadline));
        let Some(body) = body else { return send.write(buf.into()).await };
        if length <= SMALL_BODY_BYTES {
            put_message(&mut buf, body.as_ref());
            return send.write_last(buf.into()).await;
        }
        put_message_head(&mut buf, length);
        send.write(buf.into()).await?;
        send.write_last(body.into()).await
    }

    fn header(&self, shape: Shape, deadline: Option<Instant>) -> Header<'_> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Header {
            method: &self.method,
            shape,
            content: self.content,
            deadline_us: left.map(|left| u64::try_from(left.as_micros()).unwrap_or(u64::MAX)),
            idempotency_key: self.idempotency_key.as_deref(),
            traceparent: self.traceparent,
            metadata: self.metadata.clone(),
        }
    }

    fn check(&self) -> Result<(), CallError> {
        self.header(Shape::Unary, None).check().map_err(|why| CallError::Request(why.to_owned()))
    }
}

/// The session on a path other than the one that was lost.
async fn attached(
    session: &Session,
    fail_fast: bool,
    deadline: Option<Instant>,
    lost: Option<&Arc<Attached>>,
) -> Result<Arc<Attached>, CallError> {
    if fail_fast && session.owner().attached().is_none() {
        return Err(CallError::NotSent("the peer is not connected".into()));
    }
    Ok(session.attached_by(deadline, lost, fail_fast).await?)
}

/// What is known of a call while it is made.
#[derive(Debug, Default)]
pub struct Progress {
    /// Something of it has left this node.
    pub sent: AtomicBool,
    /// The last attempt failed because its session ended: another one may do.
    session_ended: AtomicBool,
}

impl Progress {
    /// An attempt failed that was made here.
    fn failed_on(&self, core: &Core) {
        self.session_ended.store(core.has_ended(), Relaxed);
    }
}

pub struct Opened {
    pub send: StreamSend,
    pub guard: InFlight,
}

/// Leave to have one more call in flight with a peer.
#[derive(Debug)]
pub struct InFlight {
    peer: Arc<Peer>,
    permit: Option<OwnedSemaphorePermit>,
    calling: Option<Calling>,
    /// Room for the request's body.
    charge: Charge,
}

impl InFlight {
    /// Waits while too many calls are in flight.
    async fn new(peer: &Arc<Peer>) -> Result<Self, CallError> {
        let permit = match peer.calls().clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let permit = Box::pin(peer.calls().clone().acquire_owned()).await;
                permit.map_err(|_| CallError::NotSent("the node has stopped".into()))?
            }
        };
        Ok(Self { peer: peer.clone(), permit: Some(permit), calling: None, charge: None })
    }
}

impl InFlight {
    /// It is in flight on no path any more.
    fn over(&mut self) {
        self.calling = None;
        self.charge = None;
        self.peer.call_has_ended();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.permit = None;
        self.over();
    }
}
