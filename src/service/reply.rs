//! Where what a handler says goes: to its caller's stream or, for a call with an idempotency key, to all who made it. Handlers do
//! not know which.

use std::future::pending;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::Either;
use futures_util::poll;
use tokio::sync::oneshot;

use super::item::{Charge, bounded, put_message, put_message_head, put_status, write_message};
use crate::proto::status::{Code, Status};
use crate::session::{Core, SMALL_BODY_BYTES, Share, StreamError, StreamSend};
use crate::state::replay::Answer;

/// Where what a handler says goes.
#[derive(Debug)]
pub enum Reply {
    /// To the caller, as it is said.
    Caller(StreamSend),
    /// One answer, in one piece, to whoever waits for it.
    Whole(Whole),
}

/// The answer so far.
#[derive(Debug)]
pub struct Whole {
    body: Option<Vec<u8>>,
    to: Option<oneshot::Sender<Answer>>,
}

impl Reply {
    /// To the caller.
    pub fn to(send: StreamSend) -> Self {
        Self::Caller(send)
    }

    /// In one piece, which comes when all is said; nothing comes of a handler that says nothing.
    pub fn whole() -> (Self, oneshot::Receiver<Answer>) {
        let (to, answer) = oneshot::channel();
        (Self::Whole(Whole { body: None, to: Some(to) }), answer)
    }

    /// The session of the caller, if there is one caller.
    pub fn core(&self) -> Option<&Core> {
        match self {
            Reply::Caller(send) => Some(send.core()),
            Reply::Whole(_) => None,
        }
    }

    /// Ends when the caller gave up. Cancel-safe.
    pub fn unwanted(&self) -> impl Future<Output = StreamError> + Send + 'static {
        match self {
            Reply::Caller(send) => Either::Left(send.unwanted()),
            Reply::Whole(_) => Either::Right(pending()),
        }
    }

    /// Says the one answer, and that this is all.
    pub async fn answer(&mut self, said: Result<Vec<u8>, Status>) {
        match self {
            Reply::Caller(send) => answer(send, said).await,
            // What is kept should take what it counts for.
            Reply::Whole(whole) => whole.say(said.map(|body| body.into_boxed_slice().into())),
        }
    }

    /// Says one message of the answer; waits while the caller takes no more.
    pub async fn message(&mut self, body: Vec<u8>) -> Result<(), Status> {
        match self {
            Reply::Caller(send) => {
                let _charge = room(send, body.len()).await;
                write_message(send, Vec::new(), body).await.map_err(|_| Status::new(Code::Cancelled, "the caller is gone"))
            }
            Reply::Whole(Whole { body: Some(_), .. }) => Err(Status::new(Code::Internal, "a unary call has one answer, not two")),
            Reply::Whole(whole) => {
                whole.body = Some(body);
                Ok(())
            }
        }
    }

    /// Says that this was all.
    pub async fn end(&mut self, with: &Status) {
        match self {
            Reply::Caller(send) => status(send, with).await,
            Reply::Whole(whole) => {
                let missing = || Status::new(Code::Internal, "the handler gave no answer");
                let body = whole.body.take();
                let answer = if with.is_ok() { body.ok_or_else(missing) } else { Err(with.clone()) };
                whole.say(answer.map(|body| body.into_boxed_slice().into()));
            }
        }
    }
}

impl Whole {
    fn say(&mut self, answer: Answer) {
        if let Some(to) = self.to.take() {
            let _ = to.send(answer.map_err(|status| bounded(&status)));
        }
    }
}

/// Ends a call with its one answer, in one write if it is small. A caller that is gone hears nothing, and needs nothing.
pub async fn answer(send: &mut StreamSend, answer: Result<impl AsRef<[u8]> + Into<Bytes>, Status>) {
    let body = match answer {
        Ok(body) => body,
        Err(said) => return status(send, &said).await,
    };
    let length = body.as_ref().len();
    let mut buf = Vec::with_capacity(64 + length.min(SMALL_BODY_BYTES));
    if length <= SMALL_BODY_BYTES {
        put_message(&mut buf, body.as_ref());
        put_status(&mut buf, &Status::ok());
    } else {
        let _charge = room(send, length).await;
        put_message_head(&mut buf, length);
        if send.write(buf.into()).await.is_err() || send.write(body.into()).await.is_err() {
            return;
        }
        buf = Vec::with_capacity(8);
        put_status(&mut buf, &Status::ok());
    }
    let _ = send.write_last(buf.into()).await;
}

/// Room for an answer of so many bytes. While many wait for it, the session begins no further call.
async fn room(send: &StreamSend, bytes: usize) -> Charge {
    let core = send.core().clone();
    let mut reserving = pin!(core.reserve(Share::Replies, bytes));
    if let Poll::Ready(charge) = poll!(reserving.as_mut()) {
        return charge;
    }
    let _late = core.answer_waits(bytes);
    reserving.await
}

/// Ends a call with a status.
pub async fn status(send: &mut StreamSend, status: &Status) {
    let mut buf = Vec::with_capacity(64);
    put_status(&mut buf, status);
    let _ = send.write_last(buf.into()).await;
}
