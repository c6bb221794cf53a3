//! The directory: what is offered at a node, by itself and by its peers, and whether it is there. One half keeps it and tells those
//! who ask what they may see; the other registers, searches and watches at peers, again on each new session. What is listed and
//! what is online is decided in [`state::directory`](crate::state::directory), who may do what by the policy.

mod error;
mod follow;
mod found;
mod here;
mod host;
mod judge;
mod mirror;
mod own;
mod registered;
mod search;
mod shared;
mod talk;
mod tell;
mod watch;

pub use error::{DiscoverError, RegisterError};
pub use found::{Found, Presence};
pub(super) use here::Peers;
pub(super) use host::serve;
pub use mirror::Mirror;
pub use registered::{Announce, Listed, Registered};
pub use search::Search;
pub use shared::Directory;
pub use watch::Watch;

pub use crate::proto::directory::Mode;
