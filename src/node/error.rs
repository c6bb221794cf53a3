//! Why a node could not be started, or could not do what was asked.

use std::time::Duration;

use super::config::ConfigError;
use super::home::HomeError;
use super::store::StoreError;
use crate::id::NodeId;
use crate::id::keyfile::KeyFileError;
use crate::policy::PolicyError;
use crate::proto::limits;
use crate::service::ServiceError;
use crate::session::WaitError;

/// Why a node could not be started. Nothing runs then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The key cannot be read or made.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory of persistent wires cannot be used.
    #[error(transparent)]
    Wires(#[from] crate::wire::WireFileError),
    /// The journal cannot be kept.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The rules make no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A service cannot be offered.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// What is to be exposed cannot be.
    #[error(transparent)]
    Expose(#[from] crate::tunnel::ExposeError),
    /// What is to be forwarded cannot be.
    #[error(transparent)]
    Forward(#[from] crate::tunnel::ForwardError),
    /// The network cannot be used.
    #[error(transparent)]
    Network(#[from] crate::net::BindError),
    /// A peer to connect to is named, and nobody has that name.
    #[error("no peer is named {0:?}: give the name with `volt connect TICKET --as {0}` first, or use a ticket")]
    UnknownName(String),
    /// The system failed in another way.
    #[error("the system failed: {0}")]
    System(String),
}

/// Why a session did not come up in the time allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer does not want us.
    #[error("the peer refused us: its owner has to allow this identity to connect")]
    Refused,
    /// It is this node itself.
    #[error("that is this node itself; use the ticket of another one")]
    Own,
    /// Nobody answered in time, or not who was dialled. The node goes on trying.
    #[error("{0}")]
    Unreached(WaitError),
}

/// Why a rule could not be added or removed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The rules would make no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a request was not decided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecideError {
    /// No stranger of that id waits.
    #[error("{0} does not wait for an answer: `volt requests` lists who does; `volt policy` makes rules about anybody")]
    NotWaiting(NodeId),
    /// The rules cannot be kept.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

/// Why an invitation was not issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InviteError {
    /// It would let in nobody, or too many.
    #[error("an invitation lets in 1 to {most} nodes, not {0}", most = limits::INVITATION_USES)]
    Uses(u32),
    /// It would be good for no time, or too long.
    #[error("an invitation is good for a second to a year, not {0:?}")]
    Life(Duration),
    /// It would give leave for too much.
    #[error("an invitation gives leave for at most {most} things, this one for {0}: let wildcards stand for many", most = limits::INVITATION_RULES)]
    Rules(usize),
    /// There is nowhere to remember it.
    #[error("an invitation has to be remembered: give the node a home")]
    NoHome,
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}
