//! What can be told of peers and their sessions.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::event::PathKind;
use super::peer::{Peer, Unreached};
use crate::id::NodeId;
use crate::proto::control::SessionId;

/// A peer, as its node sees it.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its key.
    pub id: NodeId,
    /// The name this node's owner gave it.
    pub name: Option<String>,
    /// What it calls itself: for display, escaped.
    pub own_name: Option<String>,
    /// Whether this node keeps a session with it.
    pub wanted: bool,
    /// Where it may be dialled.
    pub addresses: Vec<SocketAddr>,
    /// When it was last connected.
    pub last_seen: Option<SystemTime>,
    /// Its session, while it is up.
    pub session: Option<SessionInfo>,
    /// Why it is not connected, if an attempt has failed.
    pub unreached: Option<Unreached>,
    /// Whether it is a short-lived command, not a running node.
    pub visitor: bool,
}

/// A session that is up.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its name.
    pub id: SessionId,
    /// What carries it.
    pub path: PathKind,
    /// Where the other end is.
    pub remote: SocketAddr,
    /// The round trip as QUIC measures it.
    pub rtt: Duration,
    /// How long it is up.
    pub age: Duration,
    /// Streams open now.
    pub streams: usize,
    /// Calls of the peer being handled.
    pub handling: usize,
}

impl Peer {
    /// What can be told of it. The name its owner gave it is not known here.
    pub fn info(&self) -> PeerInfo {
        let attached = self.attached();
        PeerInfo {
            id: self.id(),
            name: None,
            own_name: attached.as_ref().map(|attached| attached.hello().name.clone()),
            wanted: self.is_wanted(),
            addresses: self.addresses(),
            last_seen: self.last_seen(),
            session: attached.map(|attached| SessionInfo {
                id: attached.session(),
                path: PathKind::of(attached.link()),
                remote: attached.link().remote(),
                rtt: attached.link().rtt(),
                age: attached.age(),
                streams: attached.core().streams(),
                handling: attached.core().handling(),
            }),
            unreached: self.unreached(),
            visitor: self.is_visitor(),
        }
    }
}
