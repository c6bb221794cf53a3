//! What a handler learns of the call it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::id::NodeId;
use crate::proto::body::ContentType;

/// What a handler learns of the call it serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: NodeId,
    method: Arc<str>,
    content: ContentType,
    deadline: Option<Instant>,
    idempotency_key: Option<Bytes>,
    traceparent: Option<String>,
    metadata: Vec<(String, Bytes)>,
    cancelled: AtomicBool,
}

/// What a context is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub peer: NodeId,
    pub method: Arc<str>,
    pub content: ContentType,
    pub deadline: Option<Instant>,
    pub idempotency_key: Option<Bytes>,
    pub traceparent: Option<String>,
    pub metadata: Vec<(String, Bytes)>,
}

impl Context {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { peer, method, content, deadline, idempotency_key, traceparent, metadata } = parts;
        let cancelled = AtomicBool::new(false);
        Self(Arc::new(Inner { peer, method, content, deadline, idempotency_key, traceparent, metadata, cancelled }))
    }

    /// Who calls: the key the caller has proved to hold.
    pub fn peer(&self) -> NodeId {
        self.0.peer
    }

    /// `service/method`.
    pub fn method(&self) -> &str {
        &self.0.method
    }

    /// How the caller writes its messages; answers are written the same way.
    pub fn content_type(&self) -> ContentType {
        self.0.content
    }

    /// How long the caller still waits; `None` if for ever. When it has passed the handler's future is dropped.
    pub fn time_left(&self) -> Option<Duration> {
        self.0.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The caller's key, if it gave one: a call with a key seen before is that call, made again.
    pub fn idempotency_key(&self) -> Option<&[u8]> {
        self.0.idempotency_key.as_deref()
    }

    /// The W3C Trace Context `traceparent` of the caller.
    pub fn traceparent(&self) -> Option<&str> {
        self.0.traceparent.as_deref()
    }

    /// All metadata, in the caller's order. Names may occur again.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.metadata.iter().map(|(name, value)| (name.as_str(), &value[..]))
    }

    /// The first metadata value of this name.
    pub fn metadata_value(&self, name: &str) -> Option<&[u8]> {
        self.metadata().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// Whether the caller gave up, or its deadline passed. A handler's future is dropped then; only a
    /// [blocking](super::Service::blocking) one, which nothing can drop, needs to ask.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed) || self.time_left() == Some(Duration::ZERO)
    }

    pub(super) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }
}
