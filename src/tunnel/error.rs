//! How exposing, forwarding and tunnels fail.

use std::io;
use std::net::SocketAddr;

use crate::proto::close::StreamCode;
use crate::proto::status::Status;
use crate::session::StreamError;

/// Why a target cannot be exposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExposeError {
    /// Nothing can be exposed under such a name.
    #[error("{0}")]
    Name(&'static str),
    /// That is no target.
    #[error("{0}")]
    Target(&'static str),
    /// Something else is exposed under that name.
    #[error("something is exposed as {0:?} already: end that first, or choose another name")]
    Taken(String),
    /// The node exposes too much.
    #[error("this node exposes {} targets already", crate::proto::limits::TARGETS)]
    TooMany,
}

/// Why a forward did not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// Nothing can be exposed under such a name.
    #[error("{0}")]
    Name(&'static str),
    /// No connections can be taken there.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The node of the session has ended.
    #[error("the node has ended")]
    Ended,
}

/// Why there is no tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// Nothing can be exposed under such a name.
    #[error("{0}")]
    Name(&'static str),
    /// The far side says no: `PERMISSION_DENIED` by its policy, `NOT_FOUND` for a name it does not expose, `UNAVAILABLE` when the target
    /// does not take connections, `RESOURCE_EXHAUSTED` when there are too many.
    #[error("{0}")]
    Refused(Status),
    /// Nothing was asked: there is no session, or none in time.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was asked, and there was no answer.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// The far side's answer makes no sense.
    #[error("the far side broke the protocol: {0}")]
    Nonsense(String),
}

/// Why a tunnel ended before both sides had said everything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelBroken {
    /// The connection at this end was reset.
    #[error("the connection was reset at this end")]
    Here,
    /// The connection at the other end was reset, or nobody reads there any more.
    #[error("the connection was reset at the far end")]
    There,
    /// The policy of whoever exposes it allows it no longer.
    #[error("policy no longer allows it")]
    Denied,
    /// What was exposed is exposed no longer, or the forward has ended.
    #[error("it was ended here")]
    Withdrawn,
    /// The session is over.
    #[error("{0}")]
    Session(String),
}

impl From<StreamError> for TunnelBroken {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Session(end) => Self::Session(end.to_string()),
            StreamError::Path(why) => Self::Session(why),
            StreamError::Reset(code) | StreamError::Stopped(code) if code == StreamCode::Kind as u64 => Self::Denied,
            _ => Self::There,
        }
    }
}
