//! Ways to a peer that go through relays, and who holds sessions with those.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::handle::Session;
use crate::id::{InviteSecret, NodeId, Relay, Ticket};
use crate::proto::limits::Limits;

/// A way through one relay or several in a row: the first one is our neighbour, the last one the peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via(Arc<[Relay]>);

impl Via {
    /// Through these, in this order. Only the first one's addresses matter.
    pub fn new(hops: Vec<Relay>) -> Self {
        Self(hops.into())
    }

    /// The relays.
    pub fn hops(&self) -> &[Relay] {
        &self.0
    }

    /// The first relay, unless there is none.
    pub fn first(&self) -> Option<NodeId> {
        self.0.first().map(|relay| relay.id)
    }

    /// Whether it goes through this node.
    pub fn goes_through(&self, id: NodeId) -> bool {
        self.0.iter().any(|relay| relay.id == id)
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hops = self.0.iter();
        hops.next().into_iter().try_for_each(|hop| write!(f, "{}", hop.id))?;
        hops.try_for_each(|hop| write!(f, ", {}", hop.id))
    }
}

/// What is told of where a peer may be reached, in addition to what is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// Addresses, the likeliest first.
    pub addresses: Vec<SocketAddr>,
    /// Relays that it keeps sessions with.
    pub relays: Vec<Relay>,
    /// It is to be reached this way and no other, and is told no addresses of this node.
    pub only: Option<Via>,
    /// Others are reached through it: it is to be reached by a link, through no relay.
    pub hop: bool,
    /// Lets this node in there.
    pub invitation: Option<InviteSecret>,
}

impl From<&Ticket> for Where {
    fn from(ticket: &Ticket) -> Self {
        let (addresses, relays) = (ticket.addresses.clone(), ticket.relays.clone());
        Self { addresses, relays, invitation: ticket.secret.clone(), ..Self::default() }
    }
}

impl Where {
    /// At these addresses.
    pub fn at(addresses: &[SocketAddr]) -> Self {
        Self { addresses: addresses.to_vec(), ..Self::default() }
    }
}

/// Holds sessions for those that need them: for calls, or to go through them. Whoever is held twice is let go twice.
pub(crate) trait Dialler: Send + Sync {
    /// A session with this node, from now on; `None` if it is this node itself.
    fn hold(&self, id: NodeId, addresses: &[SocketAddr]) -> Option<Session>;
    /// The same with a relay that others are to be reached through: by a link, and through no other relay.
    fn hold_hop(&self, id: NodeId, addresses: &[SocketAddr]) -> Option<Session>;
    /// A node that is held is to be found there now, too.
    fn found(&self, id: NodeId, addresses: &[SocketAddr]);
    /// It is not needed for this any more.
    fn release(&self, id: NodeId);
    /// The limits of the node.
    fn limits(&self) -> &Limits;
    /// Runs this on the network's thread.
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) -> JoinHandle<()>;
}
