//! The two halves of a call that streams, at the caller.

use std::marker::PhantomData;

use bytes::Bytes;
use futures_util::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::attempt::InFlight;
use super::{check_size, encode, within};
use crate::proto::body::{self, ContentType};
use crate::proto::frame::Frames;
use crate::service::error::CallError;
use crate::service::item::{Charge, Item, ItemError, Items, write_message};
use crate::session::{Share, StreamError, StreamRecv, StreamSend};

/// The messages of a call's caller. Dropped without [`CallSender::finish`], the call is cancelled.
#[derive(Debug)]
pub struct CallSender<T> {
    send: Option<StreamSend>,
    content: ContentType,
    deadline: Option<Instant>,
    message: PhantomData<fn(T)>,
}

impl<T> CallSender<T> {
    pub(super) fn new(send: StreamSend, content: ContentType, deadline: Option<Instant>) -> Self {
        Self { send: Some(send), content, deadline, message: PhantomData }
    }
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
        written?;
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
    pub(super) fn new(recv: StreamRecv, content: ContentType, deadline: Option<Instant>, guard: InFlight) -> Self {
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
        Err(ItemError::Stream(error)) => Err(error.into()),
        Err(error) => Err(CallError::OutcomeUnknown(error.to_string())),
    }
}

/// One message and an OK status, or the status that says why there is none.
pub(super) async fn only_answer(items: &mut Items) -> Result<(Bytes, Charge), CallError> {
    let unexpected = |why| CallError::OutcomeUnknown(format!("the callee broke the protocol: {why}"));
    let answer = next_message(items).await?.ok_or_else(|| unexpected("OK without an answer"))?;
    match next_message(items).await? {
        None => Ok(answer),
        Some(_) => Err(unexpected("two answers")),
    }
}
