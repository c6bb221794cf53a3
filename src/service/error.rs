//! How a call fails, as its caller sees it. Every failure says whether the callee may have acted on it.

use crate::proto::body::BodyError;
use crate::proto::status::{Code, Status};
use crate::session::{DisconnectReason, SessionEnd, StreamError, Unreached, WaitError};

/// What became of a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The callee answered: the status says what it did.
    Answered,
    /// Nothing of the call left this node: it can safely be made again.
    NotSent,
    /// It was sent and no answer came: the callee may have acted on it, or not.
    Unknown,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The callee answered with an error status.
    #[error("{0}")]
    Status(Status),
    /// The deadline passed here before an answer came.
    #[error("the deadline passed: {}", if *sent { "the call was sent and not answered" } else { "the call was not sent" })]
    DeadlineExceeded {
        /// Whether anything of the call had left this node.
        sent: bool,
    },
    /// There is no session to call over, and the call was not to wait (longer) for one. Nothing was sent.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The path was lost, or the callee broke off, after the call was sent and before it was answered. Whether to make it again is
    /// the caller's decision, unless the call was marked with [`Call::idempotent`](super::Call::idempotent).
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
    /// The callee's owner let this node in no more, or not at all: policy there refuses it. What became of a call that was sent before is
    /// not known.
    #[error("refused by policy: the peer does not let this node in{}", if *sent { "; the call was sent before, and not answered" } else { "" })]
    Refused {
        /// Whether anything of the call had left this node.
        sent: bool,
    },
    /// The request cannot be written as a body of this content type, or is too large. Nothing was sent.
    #[error("the request cannot be sent: {0}")]
    Request(String),
    /// The callee answered, but not with what the caller expects.
    #[error("the answer cannot be read: {0}")]
    Reply(BodyError),
}

impl CallError {
    /// Whether the callee may have acted on the call.
    pub fn outcome(&self) -> Outcome {
        match self {
            CallError::Status(_) | CallError::Reply(_) => Outcome::Answered,
            CallError::NotSent(_) | CallError::Request(_) => Outcome::NotSent,
            CallError::DeadlineExceeded { sent: false } | CallError::Refused { sent: false } => Outcome::NotSent,
            CallError::DeadlineExceeded { sent: true } | CallError::Refused { sent: true } => Outcome::Unknown,
            CallError::OutcomeUnknown(_) => Outcome::Unknown,
        }
    }

    /// The status, if the callee answered with one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            CallError::Status(status) => Some(status),
            _ => None,
        }
    }

    /// The status code that says it best.
    pub fn code(&self) -> Code {
        match self {
            CallError::Status(status) => status.code,
            CallError::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            CallError::NotSent(_) | CallError::OutcomeUnknown(_) => Code::Unavailable,
            CallError::Refused { .. } => Code::PermissionDenied,
            CallError::Request(_) => Code::InvalidArgument,
            CallError::Reply(_) => Code::Internal,
        }
    }
}

impl From<StreamError> for CallError {
    /// For a call that was sent: its stream is over, and there is no answer.
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Session(SessionEnd::Closed(DisconnectReason::Refused)) => CallError::Refused { sent: true },
            other => CallError::OutcomeUnknown(other.to_string()),
        }
    }
}

impl From<WaitError> for CallError {
    /// For a call that was not sent: there is no session for it.
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut(None) => CallError::DeadlineExceeded { sent: false },
            WaitError::TimedOut(Some(Unreached::Refused)) | WaitError::Unreached(Unreached::Refused) => {
                CallError::Refused { sent: false }
            }
            other => CallError::NotSent(other.to_string()),
        }
    }
}

impl From<CallError> for Status {
    /// For a handler that calls on: the same code and text, so that `?` passes a failure to its own caller.
    fn from(error: CallError) -> Self {
        match error {
            CallError::Status(status) => status,
            other => Status::new(other.code(), other.to_string()),
        }
    }
}
