//! How publishing, subscribing and the rest fail: every failure says what became of it.

use super::store::AppendError;
use crate::proto::status::{Code, Status};

/// Why chunks were not stored, at the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// They are not stored.
    Refused(Status),
    /// Whether they are stored shows later: whoever published them asks again.
    Uncertain,
}

impl Fault {
    /// What peers are told of a disk that does not do.
    pub fn of(error: &AppendError) -> Self {
        match error {
            AppendError::Full(_) => {
                Self::Refused(Status::new(Code::ResourceExhausted, "the disk of the wire's host is full; nothing was stored"))
            }
            AppendError::Failed(_) => {
                Self::Refused(Status::new(Code::Unavailable, "the wire's disk has failed; nothing was stored"))
            }
            AppendError::Damaged(_) => {
                Self::Refused(Status::new(Code::DataLoss, "what is stored of this wire is damaged: its host knows more"))
            }
            AppendError::Uncertain(_) => Self::Uncertain,
        }
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// Why a wire cannot be named, made or listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A name that no wire can have.
    #[error("{0}")]
    Name(&'static str),
    /// A wire cannot be like this.
    #[error("{0}")]
    Options(&'static str),
    /// What is to be matched is no pattern.
    #[error("{0}")]
    Pattern(String),
    /// The host says no.
    #[error("{0}")]
    Refused(Status),
    /// Nothing was asked: there is no session, and will be none.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was asked, and there was no answer.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// The host's answer makes no sense.
    #[error("the host broke the protocol: {0}")]
    Nonsense(String),
}

/// What became of a chunk that was not, or not surely, stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The host did not store it, and says why.
    #[error("not stored: {0}")]
    Refused(Status),
    /// It was never sent: the node has stopped, or the chunk cannot be one.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was sent, and may be stored or not: the log it was sent to is no more, or nobody waits for the answer any longer.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
}

/// Why a subscription ended, or did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The host says no, or no more: policy, no such wire, or this subscriber was too slow for it.
    #[error("{0}")]
    Refused(Status),
    /// There is no session, and will be none.
    #[error("{0}")]
    Closed(String),
    /// The session did not come up [in time](super::Wire::within).
    #[error("{0}")]
    Late(String),
    /// The host broke off, or broke the protocol.
    #[error("the host broke off: {0}")]
    Broken(String),
}
