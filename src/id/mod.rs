//! Who a node is: its key, the id made of it, the ticket that says where to find it, and the file that keeps it.
//!
//! The public key *is* the identity; there is no registry and no authority. This room does no networking and knows no
//! message: it imports no other room.

pub mod keyfile;

mod envelope;
mod invitation;
mod key;
mod node_id;
mod private_file;
mod ticket;

pub use invitation::{InviteHash, Vouch};
pub use key::{KeyError, SecretKey};
pub use node_id::{NodeId, NodeIdError};
pub use ticket::{InviteSecret, MAX_ADDRESSES, MAX_RELAYS, Relay, Ticket, TicketError};
