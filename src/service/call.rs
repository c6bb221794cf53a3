//! The caller's half: one call, of any shape, from its options to its outcome.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::error::{CallError, Outcome};
use super::item::{Charge, Item, ItemError, Items, put_message, put_message_head, write_message};
use crate::proto::body::{self, ContentType};
use crate::proto::call::{Header, Shape};
use crate::proto::codec::Message;
use crate::proto::frame::{self, Frames};
use crate::proto::limits;
use crate::proto::stream::Purpose;
use crate::session::{
    Attached, Calling, Core, Peer, SMALL_BODY_BYTES, Session, Share, StreamError, StreamRecv, StreamSend, WaitError,
};

/// A call that is about to be made. Methods that end it ([`Call::unary`] and the like) make it.
#[derive(Clone, Debug)]
#[must_use = "a call does nothing until it is made"]
pub struct Call<'a> {
    session: &'a Session,
    method: &'a str,
    content: ContentType,
    timeout: Option<Duration>,
    fail_fast: bool,
    idempotency_key: Option<Vec<u8>>,
    traceparent: Option<&'a str>,
    metadata: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Call<'a> {
    pub(super) fn new(session: &'a Session, method: &'a str) -> Self {
        Self {
            session,
            method,
            content: ContentType::default(),
            timeout: None,
            fail_fast: false,
            idempotency_key: None,
            traceparent: None,
            metadata: Vec::new(),
        }
    }

    /// How messages are written, both ways: bincode unless chosen otherwise.
    pub fn content_type(mut self, content: ContentType) -> Self {
        self.content = content;
        self
    }

    /// How long the whole call may take, waiting for the session included: 30 s for unary calls (at most 1 h), for ever for the
    /// others, unless chosen otherwise. The callee learns what is left of it.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Does not wait for a session that is down: fails with [`CallError::NotSent`].
    pub fn fail_fast(mut self) -> Self {
        self.fail_fast = true;
        self
    }

    /// Marks the call as one that may be sent more than once and is to be executed once, with a random key: if the session ends
    /// before it is answered, it is sent again over the next one, with the same key and within its deadline. See
    /// [`Call::idempotency_key`] for what the callee does, and does not. A clone has the same key, so it is the same call.
    ///
    /// ```no_run
    /// # async fn example(session: voltmesh::Session) -> Result<(), voltmesh::CallError> {
    /// let receipt: String = session.request("bank/pay").idempotent().unary(&("alice", 100)).await?;
    /// # Ok(()) }
    /// ```
    pub fn idempotent(self) -> Self {
        if self.idempotency_key.is_some() {
            return self;
        }
        self.idempotency_key(rand::random::<[u8; 16]>())
    }

    /// A key of 1 to 64 bytes that a call made again has in common with the first, by this process or another one of the same
    /// identity. Marks the call as [`Call::idempotent`] does.
    ///
    /// The callee executes a unary call with a key once: made again while it runs it waits for that, and afterwards it gets the
    /// same answer or status; `ALREADY_EXISTS` if the answer was too large to keep (64 KiB), `FAILED_PRECONDITION` if the key
    /// was used for another request. It remembers so for ten minutes, or until the deadline if that is later, in memory:
    /// shorter if the caller has made very many such calls since (32,000 at least are remembered while there is room), and not
    /// over a restart of the callee. A handler that must not run twice even then has to keep the key itself. One that was
    /// cancelled before its end, because nobody waited any more, counts as not executed.
    ///
    /// Sent again is only what was not answered. A status is an answer, whatever its code: also `UNAVAILABLE`, which is the
    /// handler's own word. With [`Call::fail_fast`] the next session has to be there already. On calls that stream the key is
    /// handed to the handler and has no effect otherwise.
    pub fn idempotency_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// The W3C Trace Context `traceparent` to pass on.
    pub fn traceparent(mut self, traceparent: &'a str) -> Self {
        self.traceparent = Some(traceparent);
        self
    }

    /// Adds a metadata entry for the handler: at most 32, of 4 KiB each.
    pub fn metadata(mut self, name: &'a str, value: &'a [u8]) -> Self {
        self.metadata.push((name, value));
        self
    }

    /// One message there, one back. Dropping the future cancels the call.
    ///
    /// # Errors
    /// [`CallError`], which says whether the callee may have acted on the call.
    pub async fn unary<Req, Res>(self, request: &Req) -> Result<Res, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        let content = self.content;
        let body = encode(content, request)?;
        let (answer, _charge) = self.unary_charged(body).await?;
        body::decode(content, &answer).map_err(CallError::Reply)
    }

    /// The same with bodies as bytes, for callers that do not know the types.
    ///
    /// # Errors
    /// [`CallError`], which says whether the callee may have acted on the call.
    pub async fn unary_raw(self, body: Vec<u8>) -> Result<Bytes, CallError> {
        check_size(&body)?;
        self.unary_charged(body).await.map(|(answer, _)| answer)
    }

    async fn unary_charged(self, body: Vec<u8>) -> Result<(Bytes, Charge), CallError> {
        check_size(&body)?;
        let progress = Progress::default();
        let bounds = self.session.limits();
        let deadline = Instant::now() + self.timeout.unwrap_or(bounds.call_deadline).min(bounds.call_deadline_max);
        let whole = async {
            match &self.idempotency_key {
                Some(_) => Box::pin(self.repeated(body.into(), deadline, &progress)).await,
                None => self.attempt(body, deadline, &progress).await,
            }
        };
        match timeout_at(deadline, whole).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::DeadlineExceeded { sent: progress.sent.load(Relaxed) }),
        }
    }

    /// Sends a call until it is answered, on one session after the other.
    async fn repeated(&self, body: Bytes, deadline: Instant, progress: &Progress) -> Result<(Bytes, Charge), CallError> {
        let mut before = None;
        loop {
            let error = match self.attempt(body.clone(), deadline, progress).await {
                Err(error) if error.outcome() != Outcome::Answered => error,
                answered => return answered,
            };
            // That this attempt was not sent says nothing of those before.
            let error = if error.outcome() == Outcome::NotSent { before.take().unwrap_or(error) } else { error };
            if !progress.session_ended.swap(false, Relaxed) {
                return Err(error);
            }
            before = (error.outcome() == Outcome::Unknown).then_some(error);
        }
    }

    /// Sends a unary call once.
    async fn attempt(
        &self,
        body: impl AsRef<[u8]> + Into<Bytes>,
        deadline: Instant,
        progress: &Progress,
    ) -> Result<(Bytes, Charge), CallError> {
        let (opened, recv) = self.begin(Shape::Unary, Some(body), Some(deadline), progress).await?;
        let Opened { send: _send, guard: _guard } = opened;
        let mut items = Items::new(recv, Frames::new(0), Share::Answers);
        let answer = only_answer(&mut items).await;
        if answer.is_err() {
            progress.failed_on(items.core());
        }
        answer
    }

    /// One message there, any number back.
    ///
    /// # Errors
    /// [`CallError`]; once it has begun, the receiver's.
    pub async fn server_stream<Req, Res>(self, request: &Req) -> Result<CallReceiver<Res>, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        let body = encode(self.content, request)?;
        check_size(&body)?;
        let (content, deadline) = (self.content, self.deadline());
        let (Opened { guard, .. }, recv) = self.start(Shape::ServerStream, Some(body), deadline).await?;
        Ok(CallReceiver::new(recv, content, deadline, guard))
    }

    /// The same with bodies as bytes, read with [`CallReceiver::next_raw`].
    ///
    /// # Errors
    /// As [`Call::server_stream`].
    pub async fn server_stream_raw(self, body: Vec<u8>) -> Result<CallReceiver<Bytes>, CallError> {
        check_size(&body)?;
        let (content, deadline) = (self.content, self.deadline());
        let (Opened { guard, .. }, recv) = self.start(Shape::ServerStream, Some(body), deadline).await?;
        Ok(CallReceiver::new(recv, content, deadline, guard))
    }

    /// Any number of messages there, one back: send them all, then ask for the answer with [`CallReceiver::only`].
    ///
    /// # Errors
    /// [`CallError`]; once it has begun, the sender's and the receiver's.
    pub async fn client_stream<Req, Res>(self) -> Result<(CallSender<Req>, CallReceiver<Res>), CallError>
    where
        Req: Serialize,
        Res: DeserializeOwned,
    {
        self.streams(Shape::ClientStream).await
    }

    /// Any number of messages each way, at the same time.
    ///
    /// # Errors
    /// [`CallError`]; once it has begun, the sender's and the receiver's.
    pub async fn bidi<Req, Res>(self) -> Result<(CallSender<Req>, CallReceiver<Res>), CallError>
    where
        Req: Serialize,
        Res: DeserializeOwned,
    {
        self.streams(Shape::Bidi).await
    }

    async fn streams<Req, Res>(self, shape: Shape) -> Result<(CallSender<Req>, CallReceiver<Res>), CallError> {
        let (content, deadline) = (self.content, self.deadline());
        let (Opened { send, guard }, recv) = self.start(shape, None, deadline).await?;
        let sender = CallSender { send: Some(send), content, deadline, message: PhantomData };
        Ok((sender, CallReceiver::new(recv, content, deadline, guard)))
    }

    fn deadline(&self) -> Option<Instant> {
        self.timeout.and_then(|timeout| Instant::now().checked_add(timeout))
    }

    /// Begins a call that streams, within its deadline.
    async fn start(
        self,
        shape: Shape,
        body: Option<Vec<u8>>,
        deadline: Option<Instant>,
    ) -> Result<(Opened, StreamRecv), CallError> {
        let progress = Progress::default();
        let begun = within(deadline, false, self.begin(shape, body, deadline, &progress)).await;
        begun.unwrap_or_else(|_| Err(CallError::DeadlineExceeded { sent: progress.sent.load(Relaxed) }))
    }

    /// Waits for leave and for the session, opens a stream and writes the header, and the body of a call with one message. As
    /// long as nothing was sent, the loss of a path only means to wait for the next one.
    async fn begin(
        &self,
        shape: Shape,
        mut body: Option<impl AsRef<[u8]> + Into<Bytes>>,
        deadline: Option<Instant>,
        progress: &Progress,
    ) -> Result<(Opened, StreamRecv), CallError> {
        self.check()?;
        let mut guard = InFlight::new(self.session.owner()).await?;
        let mut lost: Option<Arc<Attached>> = None;
        loop {
            let attached = self.attached(deadline, lost.as_ref()).await?;
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
                Err(why) if self.fail_fast => return Err(CallError::NotSent(why)),
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
                    return Err(CallError::OutcomeUnknown(error.to_string()));
                }
            }
        }
    }

    async fn attached(&self, deadline: Option<Instant>, lost: Option<&Arc<Attached>>) -> Result<Arc<Attached>, CallError> {
        let now = self.fail_fast && self.session.owner().attached().is_none();
        if now {
            return Err(CallError::NotSent("the peer is not connected".into()));
        }
        self.session.attached_by(deadline, lost, self.fail_fast).await.map_err(|error| match error {
            WaitError::TimedOut(None) => CallError::DeadlineExceeded { sent: false },
            error => CallError::NotSent(error.to_string()),
        })
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
            method: self.method,
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

/// What is known of a call while it is made.
#[derive(Debug, Default)]
struct Progress {
    /// Something of it has left this node.
    sent: AtomicBool,
    /// The last attempt failed because its session ended: another one may do.
    session_ended: AtomicBool,
}

impl Progress {
    /// An attempt failed that was made here.
    fn failed_on(&self, core: &Core) {
        self.session_ended.store(core.has_ended(), Relaxed);
    }
}

struct Opened {
    send: StreamSend,
    guard: InFlight,
}

/// Leave to have one more call in flight with a peer.
#[derive(Debug)]
struct InFlight {
    peer: Arc<Peer>,
    permit: Option<OwnedSemaphorePermit>,
    calling: Option<Calling>,
    /// Room for the request's body.
    charge: Charge,
}

impl InFlight {
    /// Waits while too many calls are in flight.
    async fn new(peer: &Arc<Peer>) -> Result<Self, CallError> {
        let permit = peer.calls().clone().acquire_owned().await;
        let permit = permit.map_err(|_| CallError::NotSent("the node has stopped".into()))?;
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

/// The messages of a call's caller. Dropped without [`CallSender::finish`], the call is cancelled.
#[derive(Debug)]
pub struct CallSender<T> {
    send: Option<StreamSend>,
    content: ContentType,
    deadline: Option<Instant>,
    message: PhantomData<fn(T)>,
}

impl<T: Serialize> CallSender<T> {
    /// Sends a message; waits while the callee takes no more. Not cancel-safe: dropped half-way, the call is cancelled.
    ///
    /// # Errors
    /// [`CallError::Request`] if the message cannot be sent: the call goes on without it. Else [`CallError::OutcomeUnknown`]:
    /// the callee reads no more, and the receiver may know why.
    pub async fn send(&mut self, message: &T) -> Result<(), CallError> {
        self.send_raw(encode(self.content, message)?).await
    }

    /// The same with the body as bytes.
    ///
    /// # Errors
    /// As [`CallSender::send`].
    pub async fn send_raw(&mut self, body: Vec<u8>) -> Result<(), CallError> {
        check_size(&body)?;
        let ended = || CallError::OutcomeUnknown("the call has ended".into());
        let mut send = self.send.take().ok_or_else(ended)?;
        let write = async {
            let _charge = send.core().clone().reserve(Share::Calls, body.len()).await;
            write_message(&mut send, Vec::new(), body).await
        };
        let written = within(self.deadline, true, write).await?;
        written.map_err(|error| CallError::OutcomeUnknown(error.to_string()))?;
        self.send = Some(send);
        Ok(())
    }

    /// All is sent. The answer is the receiver's.
    ///
    /// # Errors
    /// [`CallError::OutcomeUnknown`] if the call has ended before.
    pub fn finish(mut self) -> Result<(), CallError> {
        let ended = || CallError::OutcomeUnknown("the call has ended".into());
        self.send.take().ok_or_else(ended)?.finish().map_err(|_| ended())
    }
}

/// The messages of the answer, at the caller. Dropped before its end, the call is cancelled.
#[derive(Debug)]
pub struct CallReceiver<T> {
    items: Items,
    content: ContentType,
    deadline: Option<Instant>,
    ended: bool,
    guard: Option<InFlight>,
    message: PhantomData<fn() -> T>,
}

impl<T> CallReceiver<T> {
    fn new(recv: StreamRecv, content: ContentType, deadline: Option<Instant>, guard: InFlight) -> Self {
        let items = Items::new(recv, Frames::new(0), Share::Answers);
        Self { items, content, deadline, ended: false, guard: Some(guard), message: PhantomData }
    }

    /// The next message as bytes; `None` when the call ended well. Cancel-safe.
    ///
    /// # Errors
    /// [`CallError`]: how the call ended otherwise.
    pub async fn next_raw(&mut self) -> Result<Option<Bytes>, CallError> {
        if self.ended {
            return Ok(None);
        }
        let next = within(self.deadline, true, next_message(&mut self.items)).await.and_then(|next| next);
        if !matches!(next, Ok(Some(_))) {
            self.ended = true;
            self.guard = None;
        }
        Ok(next?.map(|(body, _)| body))
    }
}

impl<T: DeserializeOwned> CallReceiver<T> {
    /// The next message; `None` when the call ended well. Cancel-safe.
    ///
    /// # Errors
    /// [`CallError`]: how the call ended otherwise.
    pub async fn next(&mut self) -> Result<Option<T>, CallError> {
        match self.next_raw().await? {
            Some(body) => Ok(Some(body::decode(self.content, &body).map_err(CallError::Reply)?)),
            None => Ok(None),
        }
    }

    /// The one answer of a call that has one.
    ///
    /// # Errors
    /// [`CallError`]: how the call ended otherwise.
    pub async fn only(mut self) -> Result<T, CallError> {
        let (deadline, content) = (self.deadline, self.content);
        let (body, _charge) = within(deadline, true, only_answer(&mut self.items)).await??;
        body::decode(content, &body).map_err(CallError::Reply)
    }
}

/// The next message of an answer, `None` at an OK status.
async fn next_message(items: &mut Items) -> Result<Option<(Bytes, Charge)>, CallError> {
    match items.next().await {
        Ok(Item::Message(body, charge)) => Ok(Some((body, charge))),
        Ok(Item::Status(status)) => {
            // Read to the very end if that is here, so that QUIC needs not tell the callee to stop. One that does not end is no
            // reason to wait: the call has its status.
            let _ = items.next().now_or_never();
            if status.is_ok() { Ok(None) } else { Err(CallError::Status(status)) }
        }
        Ok(Item::End) => Err(CallError::OutcomeUnknown("the callee broke off".into())),
        Err(ItemError::Stream(StreamError::Reset(_))) => Err(CallError::OutcomeUnknown("the callee broke off".into())),
        Err(error) => Err(CallError::OutcomeUnknown(error.to_string())),
    }
}

/// One message and an OK status, or the status that says why there is none.
async fn only_answer(items: &mut Items) -> Result<(Bytes, Charge), CallError> {
    let unexpected = |why| CallError::OutcomeUnknown(format!("the callee broke the protocol: {why}"));
    let answer = next_message(items).await?.ok_or_else(|| unexpected("OK without an answer"))?;
    match next_message(items).await? {
        None => Ok(answer),
        Some(_) => Err(unexpected("two answers")),
    }
}

fn encode<T: Serialize + ?Sized>(content: ContentType, message: &T) -> Result<Vec<u8>, CallError> {
    body::encode(content, message).map_err(|error| CallError::Request(error.to_string()))
}

fn check_size(body: &[u8]) -> Result<(), CallError> {
    let max = limits::BODY_BYTES;
    if body.len() <= max { Ok(()) } else { Err(CallError::Request(format!("{} bytes; a body has at most {max}", body.len()))) }
}

async fn within<F: Future>(deadline: Option<Instant>, sent: bool, future: F) -> Result<F::Output, CallError> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.map_err(|_| CallError::DeadlineExceeded { sent }),
        None => Ok(future.await),
    }
}
