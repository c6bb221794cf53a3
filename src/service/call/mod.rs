//! The caller's half: one call, of any shape, from its options to its outcome.

mod attempt;
mod halves;

use std::borrow::Cow;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

pub(super) use self::attempt::{Opened, Progress};
pub use self::halves::{CallReceiver, CallSender};
use super::error::CallError;
use super::item::Charge;
use super::providers::Providers;
use crate::proto::body::{self, ContentType};
use crate::proto::call::Shape;
use crate::proto::limits::{self, Limits};
use crate::session::{Session, StreamRecv};

/// A call that is about to be made. Methods that end it ([`Call::unary`] and the like) make it.
#[derive(Clone, Debug)]
#[must_use = "a call does nothing until it is made"]
pub struct Call<'a> {
    to: Target<'a>,
    method: Cow<'a, str>,
    content: ContentType,
    timeout: Option<Duration>,
    fail_fast: bool,
    idempotency_key: Option<Vec<u8>>,
    traceparent: Option<&'a str>,
    metadata: Vec<(&'a str, &'a [u8])>,
    affinity: Option<&'a [u8]>,
}

/// Whom a call is made to.
#[derive(Clone, Copy, Debug)]
enum Target<'a> {
    Session(&'a Session),
    Providers(&'a Providers),
}

impl<'a> Call<'a> {
    pub(super) fn new(session: &'a Session, method: &'a str) -> Self {
        Self::to(Target::Session(session), method.into())
    }

    /// To whichever of these it is.
    pub(super) fn to_one_of(providers: &'a Providers, method: String) -> Self {
        Self::to(Target::Providers(providers), method.into())
    }

    fn to(to: Target<'a>, method: Cow<'a, str>) -> Self {
        Self {
            to,
            method,
            content: ContentType::default(),
            timeout: None,
            fail_fast: false,
            idempotency_key: None,
            traceparent: None,
            metadata: Vec::new(),
            affinity: None,
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

    /// What this call has in common with others that are to go to the same provider, among several that are
    /// [picked so](crate::service::Pick::Sticky): a user, a device. Means nothing to a call to one peer.
    pub fn affinity(mut self, key: &'a [u8]) -> Self {
        self.affinity = Some(key);
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
        let bounds = self.bounds();
        let deadline = Instant::now() + self.timeout.unwrap_or(bounds.call_deadline).min(bounds.call_deadline_max);
        // Pinned where it is: taken by value it would be moved, as large as it is.
        let whole = pin!(async {
            match (self.to, &self.idempotency_key) {
                (Target::Session(session), None) => self.attempt(session, self.fail_fast, body, deadline, &progress).await,
                (Target::Session(session), Some(_)) => Box::pin(self.repeated(session, body.into(), deadline, &progress)).await,
                (Target::Providers(providers), _) => Box::pin(providers.unary(&self, body.into(), deadline, &progress)).await,
            }
        });
        match timeout_at(deadline, whole).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::DeadlineExceeded { sent: progress.sent.load(Relaxed) }),
        }
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
        Ok((CallSender::new(send, content, deadline), CallReceiver::new(recv, content, deadline, guard)))
    }

    /// Whether it may be made again after it was sent.
    pub(super) fn is_idempotent(&self) -> bool {
        self.idempotency_key.is_some()
    }

    pub(super) fn fails_fast(&self) -> bool {
        self.fail_fast
    }

    pub(super) fn affinity_key(&self) -> Option<&[u8]> {
        self.affinity
    }

    fn bounds(&self) -> &Limits {
        match self.to {
            Target::Session(session) => session.limits(),
            Target::Providers(providers) => providers.limits(),
        }
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
        let begun = async {
            match self.to {
                Target::Session(session) => self.begin(session, self.fail_fast, shape, body, deadline, &progress).await,
                Target::Providers(providers) => {
                    Box::pin(providers.begin(&self, shape, body.map(Bytes::from), deadline, &progress)).await
                }
            }
        };
        let begun = within(deadline, false, begun).await;
        begun.unwrap_or_else(|_| Err(CallError::DeadlineExceeded { sent: progress.sent.load(Relaxed) }))
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
