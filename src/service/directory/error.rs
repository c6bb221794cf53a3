//! Why a service could not be registered with a peer, or not be looked for there.

use crate::policy::PatternError;
use crate::proto::status::Status;
use crate::service::ServiceError;
use crate::session::WaitError;

/// Why a service is not registered. Nothing is kept then: it can be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// This node cannot serve it.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// It was to be announced by its name, and this node serves nothing of that name.
    #[error("this node serves no service {0:?}: register the service itself, or serve it first")]
    NotServed(String),
    /// What is said of it is more than a directory takes.
    #[error("it cannot be announced like this: {0}")]
    Invalid(&'static str),
    /// The peer could not be asked in time.
    #[error("the peer could not be asked: {0}")]
    NotConnected(#[from] WaitError),
    /// The peer did not answer in time, or the session ended before it did.
    #[error("the peer gave no answer")]
    NoAnswer,
    /// The peer does not list it.
    #[error("the peer refused: {0}")]
    Refused(Status),
}

/// Why nothing could be learned from a directory. It can be asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// What was looked for is no pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The peer could not be asked in time.
    #[error("the peer could not be asked: {0}")]
    NotConnected(#[from] WaitError),
    /// The peer did not answer in time, or the session ended before it did.
    #[error("the peer gave no answer")]
    NoAnswer,
    /// The peer tells nothing.
    #[error("the peer refused: {0}")]
    Refused(Status),
    /// The peer told what makes no sense, or more than is taken.
    #[error("the peer's answer cannot be used: {0}")]
    Answer(String),
}
