//! The ways to write which peer is meant. Looking a name up is not done here.

use std::fmt;
use std::str::FromStr;

use crate::id::{NodeId, NodeIdError, Ticket, TicketError};
use crate::node::store::{PeerName, PeerNameError};

/// Which peer is meant: `did:key:…`, a ticket, or a name this node's owner gave.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerRef {
    /// By its id.
    Id(NodeId),
    /// By a ticket, which also says where it is.
    Ticket(Box<Ticket>),
    /// By a name, to be looked up in the store.
    Name(PeerName),
}

/// Why a text names no peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefError {
    /// It starts like an id.
    #[error(transparent)]
    Id(#[from] NodeIdError),
    /// It starts like a ticket.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It could only be a name.
    #[error("a peer is a `did:key:…`, a ticket (`volt1…`) or a name you gave it; as a name: {0}")]
    Name(#[from] PeerNameError),
}

impl FromStr for PeerRef {
    type Err = PeerRefError;

    fn from_str(text: &str) -> Result<Self, PeerRefError> {
        // A name starts with neither: `PeerName` refuses such names.
        if text.starts_with("did:") {
            Ok(Self::Id(text.parse()?))
        } else if text.starts_with("volt1") {
            Ok(Self::Ticket(Box::new(text.parse()?)))
        } else {
            Ok(Self::Name(text.parse()?))
        }
    }
}

impl fmt::Display for PeerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Ticket(ticket) => ticket.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_write_a_peer_is_read_as_itself() {
        let id = NodeId::from_bytes([7; 32]);
        for peer in [PeerRef::Id(id), PeerRef::Ticket(Box::new(Ticket::new(id))), PeerRef::Name("bob".parse().unwrap())] {
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
    }

    #[test]
    fn a_mistyped_peer_is_told_what_is_wrong_with_it() {
        assert!(matches!("did:key:z6Mkx".parse::<PeerRef>(), Err(PeerRefError::Id(_))));
        assert!(matches!("volt1x".parse::<PeerRef>(), Err(PeerRefError::Ticket(_))));
        assert!(matches!("a/b".parse::<PeerRef>(), Err(PeerRefError::Name(_))));
    }
}
