//! What a handler learns of the call it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    call: Parts,
    cancelled: AtomicBool,
    /// Microseconds beyond the call's deadline for which others wait that made the same call.
    longer_us: AtomicU64,
}

/// What a context is made of.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub peer: NodeId,
    pub method: Arc<str>,
    pub content: ContentType,
    pub deadline: Option<Instant>,
    pub idempotency_key: Option<Bytes>,
    pub traceparent: Option<String>,
    /// Names, which are text, and values: parts of the header.
    pub metadata: Vec<(Bytes, Bytes)>,
}

impl Context {
    pub(super) fn new(call: Parts) -> Self {
        Self(Arc::new(Inner { call, cancelled: AtomicBool::new(false), longer_us: AtomicU64::new(0) }))
    }

    /// The same call, with a deadline and an end of its own.
    pub(super) fn fork(&self) -> Self {
        Self::new(self.0.call.clone())
    }

    /// Who calls: the key the caller has proved to hold.
    pub fn peer(&self) -> NodeId {
        self.0.call.peer
    }

    /// `service/method`.
    pub fn method(&self) -> &str {
        &self.0.call.method
    }

    /// How the caller writes its messages; answers are written the same way.
    pub fn content_type(&self) -> ContentType {
        self.0.call.content
    }

    /// How long the caller still waits; `None` if for ever. When it has passed the handler's future is dropped.
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The caller's key, if it gave one: a call with a key seen before is that call, made again. The node knows this of unary calls
    /// and does not execute them twice, for as long as it remembers: ten minutes, and not over a restart. A handler for which
    /// that is not enough keeps the key with what it did.
    pub fn idempotency_key(&self) -> Option<&[u8]> {
        self.0.call.idempotency_key.as_deref()
    }

    /// The W3C Trace Context `traceparent` of the caller.
    pub fn traceparent(&self) -> Option<&str> {
        self.0.call.traceparent.as_deref()
    }

    /// All metadata, in the caller's order. Names may occur again.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.call.metadata.iter().map(|(name, value)| (str::from_utf8(name).unwrap_or_default(), &value[..]))
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

    /// Whether the handler was not let come to its end.
    pub(super) fn was_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let longer = Duration::from_micros(self.0.longer_us.load(Ordering::Relaxed));
        self.0.call.deadline.map(|deadline| deadline + longer)
    }

    /// Somebody waits for the same call until then.
    pub(super) fn extend(&self, until: Option<Instant>) {
        let longer = until.zip(self.0.call.deadline).map(|(until, deadline)| until.saturating_duration_since(deadline));
        let longer_us = longer.map_or(0, |longer| u64::try_from(longer.as_micros()).unwrap_or(u64::MAX));
        self.0.longer_us.fetch_max(longer_us, Ordering::Relaxed);
    }

    pub(super) fn path(&self) -> &Arc<str> {
        &self.0.call.method
    }
}
