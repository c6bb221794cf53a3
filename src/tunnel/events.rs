//! What is told of tunnels to whoever exposes or forwards: each connection's beginning and end. Telling waits for nobody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::broadcast::{self, error::RecvError};

use super::error::{TunnelBroken, TunnelError};
use crate::id::NodeId;
use crate::proto::status::Status;

/// What happens to connections that peers make to something this node exposes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// The target has taken a connection.
    Began {
        /// Which one: each has another number.
        connection: u64,
        /// Whose it is.
        peer: NodeId,
    },
    /// It is over.
    Ended {
        /// Which one.
        connection: u64,
        /// Whose it was.
        peer: NodeId,
        /// Bytes of the target's to the peer.
        sent: u64,
        /// Bytes of the peer's to the target.
        received: u64,
        /// Whether both had said everything, or what came in between.
        end: Result<(), TunnelBroken>,
    },
    /// A peer that may was turned away.
    Failed {
        /// Which peer.
        peer: NodeId,
        /// What it was told.
        status: Status,
        /// What only the owner is told, if there is more.
        why: Option<String>,
    },
    /// Whoever listens was too slow: so many events are lost to it.
    Missed(u64),
}

/// What happens to connections that come to a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Carried {
    /// The far side has taken a connection.
    Began {
        /// Which one: each has another number.
        connection: u64,
        /// Where it comes from.
        from: SocketAddr,
    },
    /// It is over.
    Ended {
        /// Which one.
        connection: u64,
        /// Where it came from.
        from: SocketAddr,
        /// Bytes to the far side.
        sent: u64,
        /// Bytes from there.
        received: u64,
        /// Whether both sides had said everything, or what came in between.
        end: Result<(), TunnelBroken>,
    },
    /// The far side did not take it, and it was reset. The forward goes on.
    Refused {
        /// Which one.
        connection: u64,
        /// Where it came from.
        from: SocketAddr,
        /// Why.
        error: TunnelError,
    },
    /// Whoever listens was too slow: so many events are lost to it.
    Missed(u64),
}

/// The next of these events; `None` when there will be none. Cancel-safe.
pub(super) async fn next<E: Clone>(events: &mut broadcast::Receiver<E>, missed: impl Fn(u64) -> E) -> Option<E> {
    match events.recv().await {
        Ok(event) => Some(event),
        Err(RecvError::Lagged(count)) => Some(missed(count)),
        Err(RecvError::Closed) => None,
    }
}

/// Bytes that went through a tunnel, as this node sees it.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

/// Tells how a tunnel ended, also if whoever carries it is dropped.
pub(super) struct Report<F: FnMut(u64, u64, Result<(), TunnelBroken>)> {
    counts: Arc<Counts>,
    end: Result<(), TunnelBroken>,
    tell: F,
}

impl<F: FnMut(u64, u64, Result<(), TunnelBroken>)> Report<F> {
    /// `dropped`: why it ends if nobody says why.
    pub fn new(counts: &Arc<Counts>, dropped: TunnelBroken, tell: F) -> Self {
        Self { counts: counts.clone(), end: Err(dropped), tell }
    }

    pub fn ended(mut self, end: Result<(), TunnelBroken>) {
        self.end = end;
    }
}

impl<F: FnMut(u64, u64, Result<(), TunnelBroken>)> Drop for Report<F> {
    fn drop(&mut self) {
        let end = std::mem::replace(&mut self.end, Ok(()));
        (self.tell)(self.counts.sent.load(Relaxed), self.counts.received.load(Relaxed), end);
    }
}
