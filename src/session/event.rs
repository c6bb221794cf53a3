//! What a node tells its owner about sessions. For each peer `Connected` and `Disconnected` strictly alternate.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::id::NodeId;
use crate::net::{Link, LostReason};
use crate::proto::control::SessionId;

/// Something happened to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A session is up: calls go through.
    Connected {
        /// The other node.
        peer: NodeId,
        /// The session's name.
        session: SessionId,
        /// Whether it is the session from before, with everything that was in flight.
        resumed: bool,
        /// What carries it.
        path: PathKind,
    },
    /// A session that is up goes on over another path, without a break.
    PathChanged {
        /// The other node.
        peer: NodeId,
        /// What carries it now.
        path: PathKind,
    },
    /// A session is down. Services registered over it are offline.
    Disconnected {
        /// The other node.
        peer: NodeId,
        /// Why.
        reason: DisconnectReason,
    },
    /// A stranger wants to connect: the owner is asked.
    Asked {
        /// Its key.
        peer: NodeId,
        /// What it calls itself: for display, escaped.
        name: String,
        /// Where it was seen: of one that came through a relay, where that is.
        from: IpAddr,
        /// Whether it came through a relay.
        relayed: bool,
    },
    /// A peer's owner is asked whether to let this node in: it waits.
    Waiting {
        /// The other node.
        peer: NodeId,
    },
    /// A service that is registered with this node came online or went offline.
    Service {
        /// Its name.
        name: Arc<str>,
        /// Who provides it.
        provider: NodeId,
        /// Whether it can be called.
        online: bool,
    },
    /// Whoever reads this was too slow: so many events before this one are lost to it.
    Missed(u64),
}

/// What carries a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathKind {
    /// A QUIC connection between the two nodes.
    Direct,
    /// A circuit, sealed from end to end, whose first relay on this side is this neighbour.
    Relayed(NodeId),
}

impl PathKind {
    /// What a link is.
    pub(super) fn of(link: &Link) -> Self {
        link.via().map_or(Self::Direct, Self::Relayed)
    }

    /// Whether others carry it.
    pub fn is_relayed(&self) -> bool {
        matches!(self, Self::Relayed(_))
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Relayed(by) => write!(f, "relayed by {by}"),
        }
    }
}

/// Why a session went down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// This node's owner closed it, or the node goes down.
    #[error("closed here")]
    Here,
    /// The peer's owner closed it.
    #[error("closed by the peer")]
    ByPeer,
    /// The peer goes down in good order.
    #[error("the peer goes down")]
    PeerDown,
    /// The peer's policy no longer allows us.
    #[error("refused by the peer")]
    Refused,
    /// Our policy no longer allows the peer.
    #[error("refused here")]
    RefusedHere,
    /// A newer link between the two nodes took over.
    #[error("a newer link took over")]
    Superseded,
    /// Another process with this node's key, that came later, took its place at the peer.
    #[error("another process with this node's key took its place: give each node a key of its own")]
    Replaced,
    /// Nothing answered for too long.
    #[error("no answer for too long")]
    NoAnswer,
    /// The peer's process is another one, or does not know us any more.
    #[error("the peer was restarted")]
    Restarted,
    /// The path failed in another way.
    #[error("{0}")]
    Path(String),
}

impl DisconnectReason {
    /// Whether one of the two nodes wanted it to end: then the peer is not expected back.
    pub(super) fn is_deliberate(&self) -> bool {
        matches!(self, Self::Here | Self::ByPeer | Self::PeerDown | Self::Refused | Self::RefusedHere | Self::Replaced)
    }
}

impl From<LostReason> for DisconnectReason {
    fn from(reason: LostReason) -> Self {
        use crate::proto::close::CloseCode;
        match reason {
            LostReason::Closed(CloseCode::Goodbye) => Self::ByPeer,
            LostReason::Closed(CloseCode::Refused) => Self::Refused,
            LostReason::Closed(CloseCode::Superseded | CloseCode::Crossed) => Self::Superseded,
            LostReason::Closed(CloseCode::Replaced) => Self::Replaced,
            LostReason::TimedOut => Self::NoAnswer,
            LostReason::Restarted => Self::Restarted,
            LostReason::Here => Self::Here,
            other => Self::Path(other.to_string()),
        }
    }
}
