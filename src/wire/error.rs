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
