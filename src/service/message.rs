//! Streams of typed messages, as handlers see them: [`Receiver`] for what the caller sends, [`Sender`] for the answer.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::item::{Charge, Item, Items};
use super::reply::Reply;
use crate::proto::body::{self, ContentType};
use crate::proto::limits;
use crate::proto::status::{Code, Status};

/// The messages a caller sends, in a handler.
#[derive(Debug)]
pub struct Receiver<T> {
    items: Box<Items>,
    content: ContentType,
    ended: bool,
    message: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Receiver<T> {
    pub(super) fn new(items: Box<Items>, content: ContentType) -> Self {
        Self { items, content, ended: false, message: PhantomData }
    }

    /// The next message; `None` when the caller has sent all. Cancel-safe.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a body that is not a `T`, `RESOURCE_EXHAUSTED` for one above 4 MiB, `CANCELLED` if the caller is
    /// gone: the status to end the call with (`?` does).
    pub async fn next(&mut self) -> Result<Option<T>, Status> {
        if self.ended {
            return Ok(None);
        }
        Ok(self.next_charged().await?.map(|(message, _)| message))
    }

    /// The next message with the room its body holds in the session's share.
    pub(super) async fn next_charged(&mut self) -> Result<Option<(T, Charge)>, Status> {
        match self.items.next().await {
            Ok(Item::Message(bytes, charge)) => {
                let message =
                    body::decode(self.content, &bytes).map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))?;
                Ok(Some((message, charge)))
            }
            Ok(Item::End) => {
                self.ended = true;
                Ok(None)
            }
            Ok(Item::Status(_)) => Err(Status::new(Code::InvalidArgument, "a caller sends no status")),
            Err(error) => Err(error.status()),
        }
    }
}

impl Receiver<Bytes> {
    /// The next message as the bytes that came, whatever the content type; `None` when the caller has sent all. Cancel-safe.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` for a body above 4 MiB, `CANCELLED` if the caller is gone, `INVALID_ARGUMENT` for nonsense.
    pub async fn next_raw(&mut self) -> Result<Option<Bytes>, Status> {
        if self.ended {
            return Ok(None);
        }
        match self.items.next().await {
            Ok(Item::Message(bytes, _charge)) => Ok(Some(bytes)),
            Ok(Item::End) => {
                self.ended = true;
                Ok(None)
            }
            Ok(Item::Status(_)) => Err(Status::new(Code::InvalidArgument, "a caller sends no status")),
            Err(error) => Err(error.status()),
        }
    }
}

/// The messages of an answer, in a handler. The call ends when the handler has returned and its sender is dropped.
#[derive(Debug)]
pub struct Sender<T> {
    send: Option<Reply>,
    back: Option<oneshot::Sender<Reply>>,
    content: ContentType,
    message: PhantomData<fn(T)>,
}

impl<T: Serialize> Sender<T> {
    /// A sender, and the reply it gives back when it is dropped.
    pub(super) fn new(send: Reply, content: ContentType) -> (Self, oneshot::Receiver<Reply>) {
        let (back, given_back) = oneshot::channel();
        (Self { send: Some(send), back: Some(back), content, message: PhantomData }, given_back)
    }

    /// Sends a message; waits while the caller takes no more. Not cancel-safe: dropped half-way the call cannot go on.
    ///
    /// # Errors
    /// `INTERNAL` if the content type cannot carry a `T`, `RESOURCE_EXHAUSTED` for a body above 4 MiB, `CANCELLED` if the
    /// caller is gone: the status to end the call with (`?` does).
    pub async fn send(&mut self, message: &T) -> Result<(), Status> {
        let body = encode_answer(self.content, message)?;
        self.write(body).await
    }

    async fn write(&mut self, body: Vec<u8>) -> Result<(), Status> {
        // Taken out meanwhile: a message cut off half-way must not be followed by a status that says all is well.
        let mut send = self.send.take().ok_or_else(|| Status::new(Code::Aborted, "an earlier message was cut off"))?;
        send.message(body).await?;
        self.send = Some(send);
        Ok(())
    }
}

impl Sender<Bytes> {
    /// Sends these bytes as they are, whatever the content type: the caller reads them as that. Waits while the caller takes no
    /// more. Not cancel-safe, like [`Sender::send`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn send_raw(&mut self, body: Vec<u8>) -> Result<(), Status> {
        self.write(bounded(body)?).await
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let (Some(send), Some(back)) = (self.send.take(), self.back.take()) {
            let _ = back.send(send);
        }
    }
}

/// A message of an answer as a body.
pub(super) fn encode_answer<T: Serialize + ?Sized>(content: ContentType, message: &T) -> Result<Vec<u8>, Status> {
    let body = body::encode(content, message).map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    bounded(body)
}

fn bounded(body: Vec<u8>) -> Result<Vec<u8>, Status> {
    if body.len() > limits::BODY_BYTES {
        let text = format!("the answer has {} bytes; at most {} are sent", body.len(), limits::BODY_BYTES);
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    Ok(body)
}
