//! One call whose types nobody here knows: messages come and go as bytes. The shape is the callee's: it is asked for when it
//! matters.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::failure::Failure;
use super::lines::CallLine;
use super::peers::{self, Guest, Guests, resolve_via};
use super::types::CallHead;
use crate::proto::body::ContentType;
use crate::proto::call::Shape;
use crate::proto::limits;
use crate::proto::status::Code;
use crate::service::{Call, Found, Providers, ServiceDescription};
use crate::{CallError, Node};

/// Messages of the caller, as they come. An error ends the call, which is cancelled then.
pub type Requests = mpsc::Receiver<Result<Vec<u8>, Failure>>;
/// Messages of the answer. Closed, it cancels the call.
pub type Replies = mpsc::Sender<CallLine>;

/// Makes a call. Without [`CallHead::stream`] it has one message; with it, a method that takes one message is called once for
/// each. Dropping the future cancels the call at the far side.
///
/// # Errors
/// [`Failure`]: how the call ended, if not well.
pub async fn call(
    node: &Node,
    guests: &Guests,
    head: &CallHead,
    mut requests: Requests,
    replies: &Replies,
) -> Result<(), Failure> {
    check(head)?;
    let asked = head.timeout_ms.map(Duration::from_millis);
    let until = Instant::now().checked_add(asked.unwrap_or(limits::CALL_DEADLINE));
    let within = asked.unwrap_or(limits::CALL_DEADLINE).min(limits::CALL_DEADLINE_MAX);
    let callee = callee(node, guests, head, within).await?;
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let calling = Calling { node, callee: &callee, head, asked: asked.and(left), unary: left, replies };
    tokio::select! {
        biased;
        ended = calling.run(&mut requests) => ended,
        () = replies.closed() => Ok(()),
    }
}

fn check(head: &CallHead) -> Result<(), Failure> {
    match head.method.split_once('/') {
        Some((service, method)) if !service.is_empty() && !method.is_empty() && !method.contains('/') => Ok(()),
        _ => Err(Failure::usage(format!("{:?} is no method: write SERVICE/METHOD", head.method))),
    }
}

/// Whom a call is made to.
enum Callee {
    /// This peer.
    Peer(Guest),
    /// Whoever provides this service, by the directory of that peer if one is named.
    Service(Providers, Option<Guest>),
}

async fn callee(node: &Node, guests: &Guests, head: &CallHead, within: Duration) -> Result<Callee, Failure> {
    let Some((name, at)) = peers::service(&head.peer) else {
        let target = resolve_via(node, &head.peer, &head.via).await?;
        return Ok(Callee::Peer(guests.session(node, &target, within, head.fail_fast).await?));
    };
    peers::check_callee(&head.peer)?;
    if head.method.split_once('/').is_none_or(|(service, _)| service != name) {
        return Err(Failure::usage(format!("{} is no method of the service {name:?}", head.method)));
    }
    let Some(peer) = at else { return Ok(Callee::Service(node.providers_of(name)?, None)) };
    let target = resolve_via(node, peer, &head.via).await?;
    let guest = guests.session(node, &target, within, head.fail_fast).await?;
    Ok(Callee::Service(node.providers(name, guest.session())?, Some(guest)))
}

struct Calling<'a> {
    node: &'a Node,
    callee: &'a Callee,
    head: &'a CallHead,
    /// What is left of the time the caller named.
    asked: Option<Duration>,
    /// The same, or the time a unary call has.
    unary: Option<Duration>,
    replies: &'a Replies,
}

impl Calling<'_> {
    async fn run(&self, requests: &mut Requests) -> Result<(), Failure> {
        if self.head.stream {
            return self.stream(requests).await;
        }
        let missing = || Failure::usage("the call has no message");
        let body = requests.recv().await.ok_or_else(missing)??;
        match self.one(Shape::Unary, body.clone()).await {
            // No unary method, and nothing was done: the callee says what it is.
            Err(Ended::Call(CallError::Status(status))) if status.code == Code::Unimplemented => match self.shape().await? {
                None | Some(Shape::Unary) => Err(status.into()),
                Some(Shape::ServerStream) => Ok(self.one(Shape::ServerStream, body).await?),
                Some(shape) => {
                    let (send, mut only) = mpsc::channel(1);
                    let _ = send.try_send(Ok(body));
                    drop(send);
                    self.many(shape, &mut only).await
                }
            },
            ended => Ok(ended?),
        }
    }

    async fn stream(&self, requests: &mut Requests) -> Result<(), Failure> {
        // A method that is not listed is refused whatever the shape, and the refusal says why. A node's own methods are listed nowhere.
        let shape = if self.head.method.starts_with("volt/") { None } else { self.shape().await? };
        match shape.unwrap_or(Shape::Bidi) {
            shape @ (Shape::Unary | Shape::ServerStream) => {
                while let Some(body) = requests.recv().await {
                    self.one(shape, body?).await?;
                }
                Ok(())
            }
            shape => self.many(shape, requests).await,
        }
    }

    /// What the callee says of the method; `None` if it does not list it for us.
    async fn shape(&self) -> Result<Option<Shape>, Failure> {
        let listing = self.listing();
        let listed = match self.unary {
            Some(left) => {
                tokio::time::timeout(left, listing).await.unwrap_or(Err(CallError::DeadlineExceeded { sent: false }.into()))?
            }
            None => listing.await?,
        };
        let (service, method) = self.head.method.split_once('/').unwrap_or_default();
        let service = listed.into_iter().find(|listed| listed.name == service);
        Ok(service
            .and_then(|service| service.methods.into_iter().find(|listed| listed.name == method))
            .map(|method| method.shape))
    }

    /// What the callee says it offers, or what is said of it where it is listed.
    async fn listing(&self) -> Result<Vec<ServiceDescription>, Failure> {
        match self.callee {
            Callee::Peer(guest) => Ok(guest.session().services().await?),
            Callee::Service(providers, Some(at)) => {
                let found = at.session().query(providers.name()).offline(true).discover().await?;
                Ok(found.iter().filter_map(Found::service).collect())
            }
            Callee::Service(providers, None) => {
                let somebody = providers.reachable().into_iter().find_map(|id| self.node.session(id));
                match somebody {
                    Some(session) => Ok(session.services().await?),
                    None => Ok(Vec::new()),
                }
            }
        }
    }

    fn request(&self, timeout: Option<Duration>) -> Call<'_> {
        let call = match self.callee {
            Callee::Peer(guest) => guest.session().request(&self.head.method),
            Callee::Service(providers, _) => providers.request(self.head.method.split_once('/').unwrap_or_default().1),
        };
        let mut call = call.content_type(if self.head.raw { ContentType::Raw } else { ContentType::Json });
        if let Some(timeout) = timeout {
            call = call.timeout(timeout);
        }
        if self.head.fail_fast {
            call = call.fail_fast();
        }
        if let Some(key) = &self.head.idempotency_key {
            call = call.idempotency_key(key.as_bytes());
        }
        self.head.metadata.iter().fold(call, |call, (name, value)| call.metadata(name, value.as_bytes()))
    }

    async fn one(&self, shape: Shape, body: Vec<u8>) -> Result<(), Ended> {
        if shape == Shape::Unary {
            let timeout = if self.head.stream { self.asked } else { self.unary };
            let reply = self.request(timeout).unary_raw(body).await?;
            self.reply(&reply).await;
            return Ok(());
        }
        let mut replies = self.request(self.asked).server_stream_raw(body).await?;
        while let Some(reply) = replies.next_raw().await? {
            self.reply(&reply).await;
        }
        Ok(())
    }

    async fn many(&self, shape: Shape, requests: &mut Requests) -> Result<(), Failure> {
        let (mut sender, mut receiver) = match shape {
            Shape::ClientStream => self.request(self.asked).client_stream::<Bytes, Bytes>().await?,
            _ => self.request(self.asked).bidi::<Bytes, Bytes>().await?,
        };
        let sending = async {
            while let Some(body) = requests.recv().await {
                sender.send_raw(body?).await.map_err(Ended::Call)?;
            }
            sender.finish().map_err(Ended::Call)
        };
        let receiving = async {
            while let Some(reply) = receiver.next_raw().await? {
                self.reply(&reply).await;
            }
            Ok::<_, Failure>(())
        };
        let (mut sending, mut receiving) = (std::pin::pin!(sending), std::pin::pin!(receiving));
        tokio::select! {
            biased;
            received = &mut receiving => return received,
            sent = &mut sending => match sent {
                Err(Ended::Here(failure)) => return Err(failure),
                // The callee reads no further: its answer says why.
                Ok(()) | Err(Ended::Call(_)) => {}
            },
        }
        receiving.await
    }

    async fn reply(&self, body: &[u8]) {
        // Fails when nobody listens any more: the call is cancelled then.
        let line = if self.head.raw { CallLine::raw(body) } else { CallLine::message(body) };
        let _ = self.replies.send(line).await;
    }
}

/// Why a call did not end well.
enum Ended {
    Call(CallError),
    Here(Failure),
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Here(failure)
    }
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Call(error) => error.into(),
            Ended::Here(failure) => failure,
        }
    }
}
