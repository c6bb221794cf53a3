//! Why something could not be done, in one form for the local API, for scripts and for people: a code, a message, what to do,
//! and whose cause it was. Both directions of its JSON.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::node::{ConnectError, DecideError, InviteError, ReloadError, RuleError, home, store};
use crate::proto::status::{Code, Status};
use crate::service::{CallError, DiscoverError, Outcome, RegisterError, ServiceError};
use crate::session::{Unreached, WaitError};

/// Why something could not be done. As JSON it is the value of `"error"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What happened, for programs: a status code in lower case (`unavailable`, `not_found`, …).
    pub code: String,
    /// What happened, for people. May hold text of the far side: escape it before it reaches a terminal.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Of a call: `not_sent` or `outcome_unknown`. None if the far side answered, or there was no call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Whose cause it was; decides the exit code.
    pub cause: Cause,
}

/// Whose cause a failure was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cause {
    /// Something failed on this side.
    Local,
    /// The request was wrong.
    Usage,
    /// The far side answered with an error.
    Answered,
    /// No path, no answer in time.
    Unreached,
    /// Refused by identity or policy.
    Refused,
}

impl Cause {
    /// What a command exits with.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Local => 1,
            Self::Usage => 2,
            Self::Answered => 3,
            Self::Unreached => 4,
            Self::Refused => 5,
        }
    }
}

impl Failure {
    /// A failure of this cause and code.
    pub fn new(cause: Cause, code: Code, message: impl Display) -> Self {
        Self { code: code.name().to_lowercase(), message: message.to_string(), hint: None, outcome: None, cause }
    }

    /// Something failed on this side.
    pub fn local(message: impl Display) -> Self {
        Self::new(Cause::Local, Code::Internal, message)
    }

    /// The request was wrong.
    pub fn usage(message: impl Display) -> Self {
        Self::new(Cause::Usage, Code::InvalidArgument, message)
    }

    /// The same, with what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Nothing was sent.
    pub(super) fn not_sent(self) -> Self {
        self.outcome(Outcome::NotSent)
    }

    /// What became of it is not known.
    pub(super) fn outcome_unknown(self) -> Self {
        self.outcome(Outcome::Unknown)
    }

    fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = match outcome {
            Outcome::Answered => None,
            Outcome::NotSent => Some("not_sent".to_owned()),
            Outcome::Unknown => Some("outcome_unknown".to_owned()),
        };
        self
    }

    fn refused() -> Self {
        Self::new(Cause::Refused, Code::PermissionDenied, "the peer refused this identity")
            .hint("ask its owner to allow it there: `volt policy allow` with the id that `volt id` prints")
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = if status.message.is_empty() { "the far side gave no reason".to_owned() } else { status.message };
        match status.code {
            Code::PermissionDenied | Code::Unauthenticated => Self::new(Cause::Refused, status.code, message)
                .hint("ask the peer's owner to allow it there: `volt policy allow` with the id that `volt id` prints"),
            Code::DeadlineExceeded => Self::new(Cause::Unreached, status.code, message).outcome(Outcome::Unknown),
            code => Self::new(Cause::Answered, code, message),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let outcome = error.outcome();
        match error {
            CallError::Status(status) => status.into(),
            CallError::Request(why) => Self::usage(format!("the request cannot be sent: {why}")),
            CallError::Reply(why) => Self::new(Cause::Answered, Code::Internal, format!("the answer cannot be read: {why}")),
            CallError::Refused { .. } => {
                Self { hint: Self::refused().hint, ..Self::new(Cause::Refused, error.code(), &error) }.outcome(outcome)
            }
            CallError::NotSent(_) => Self::new(Cause::Unreached, Code::Unavailable, &error)
                .hint("nothing was sent: it is safe to try again; `volt peers` says why there is no session")
                .outcome(outcome),
            other => {
                let code = other.code();
                let hint = match outcome {
                    Outcome::NotSent => "nothing was sent: it is safe to try again, perhaps with a longer --timeout",
                    _ => "the far side may have acted on it: try again only if that does no harm, or with --idempotency-key",
                };
                Self::new(Cause::Unreached, code, other).hint(hint).outcome(outcome)
            }
        }
    }
}

impl From<Unreached> for Failure {
    fn from(unreached: Unreached) -> Self {
        match unreached {
            Unreached::Refused => Self::refused(),
            Unreached::Replaced => Self::new(Cause::Refused, Code::FailedPrecondition, Unreached::Replaced)
                .hint("two processes have this node's key: stop one, or make another identity for it with `volt init`"),
            Unreached::Asked => Self::new(Cause::Unreached, Code::Unavailable, Unreached::Asked)
                .hint("its owner answers with `volt requests approve` and the id that `volt id` prints here")
                .outcome(Outcome::NotSent),
            Unreached::WrongKey(why) => Self::new(Cause::Refused, Code::Unauthenticated, why)
                .hint("another node is at that address: ask the peer for a new ticket"),
            Unreached::NoAddress => Self::new(Cause::Unreached, Code::Unavailable, Unreached::NoAddress)
                .hint("a ticket carries addresses: `volt id` prints it at the peer")
                .outcome(Outcome::NotSent),
            other => Self::new(Cause::Unreached, Code::Unavailable, format!("the peer cannot be reached: {other}"))
                .hint("is the peer up, and is its ticket still right? `volt id` prints it there")
                .outcome(Outcome::NotSent),
        }
    }
}

impl From<WaitError> for Failure {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut(Some(last)) | WaitError::Unreached(last) => last.into(),
            WaitError::TimedOut(None) => Self::new(Cause::Unreached, Code::DeadlineExceeded, "no answer in time")
                .hint("is the peer up? try again with a longer --timeout")
                .outcome(Outcome::NotSent),
            other => Self::new(Cause::Unreached, Code::Unavailable, other).outcome(Outcome::NotSent),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused => Self::refused(),
            ConnectError::Own => Self::usage(ConnectError::Own),
            ConnectError::Unreached(error) => error.into(),
        }
    }
}

impl From<store::StoreError> for Failure {
    fn from(error: store::StoreError) -> Self {
        match error {
            store::StoreError::NameTaken { .. } => Self::new(Cause::Usage, Code::AlreadyExists, error),
            store::StoreError::Full { .. } => Self::new(Cause::Local, Code::ResourceExhausted, error),
            other => Self::local(other),
        }
    }
}

impl From<home::HomeError> for Failure {
    fn from(error: home::HomeError) -> Self {
        match error {
            home::HomeError::Held { .. } => Self::new(Cause::Local, Code::FailedPrecondition, error),
            other => Self::local(other),
        }
    }
}

impl From<RuleError> for Failure {
    fn from(error: RuleError) -> Self {
        match error {
            RuleError::Policy(error) => Self::usage(error),
            RuleError::Store(error) => error.into(),
        }
    }
}

impl From<DecideError> for Failure {
    fn from(error: DecideError) -> Self {
        match error {
            DecideError::NotWaiting(_) => Self::new(Cause::Usage, Code::NotFound, error),
            DecideError::Rule(error) => error.into(),
        }
    }
}

impl From<InviteError> for Failure {
    fn from(error: InviteError) -> Self {
        match error {
            InviteError::Store(error) => error.into(),
            InviteError::NoHome => Self::local(error),
            other => Self::usage(other),
        }
    }
}

impl From<ReloadError> for Failure {
    fn from(error: ReloadError) -> Self {
        let failure = Self::new(Cause::Local, Code::FailedPrecondition, &error);
        match error {
            ReloadError::Config(_) | ReloadError::Policy(_) | ReloadError::Blank => {
                failure.hint("what was in force before stays; correct the file, and the node reads it again by itself")
            }
            _ => failure,
        }
    }
}

impl From<DiscoverError> for Failure {
    fn from(error: DiscoverError) -> Self {
        match error {
            DiscoverError::Refused(status) => status.into(),
            DiscoverError::NotConnected(error) => error.into(),
            DiscoverError::Pattern(error) => Self::usage(error),
            other => Self::new(Cause::Unreached, Code::Unavailable, other),
        }
    }
}

impl From<RegisterError> for Failure {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Refused(status) => status.into(),
            RegisterError::NotConnected(error) => error.into(),
            RegisterError::Service(error) => error.into(),
            RegisterError::NoAnswer => Self::new(Cause::Unreached, Code::Unavailable, error),
            other => Self::usage(other),
        }
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Taken(_) => Self::new(Cause::Local, Code::AlreadyExists, error),
            ServiceError::TooMany => Self::new(Cause::Local, Code::ResourceExhausted, error),
            other => Self::usage(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_a_call_fails_has_its_exit_code_and_outcome() {
        let status = |code| CallError::Status(Status::new(code, "why"));
        let cases = [
            (status(Code::NotFound), 3, None),
            (status(Code::Aborted), 3, None),
            (status(Code::PermissionDenied), 5, None),
            (status(Code::Unauthenticated), 5, None),
            (status(Code::DeadlineExceeded), 4, Some("outcome_unknown")),
            (CallError::DeadlineExceeded { sent: true }, 4, Some("outcome_unknown")),
            (CallError::DeadlineExceeded { sent: false }, 4, Some("not_sent")),
            (CallError::NotSent("down".into()), 4, Some("not_sent")),
            (CallError::OutcomeUnknown("lost".into()), 4, Some("outcome_unknown")),
            (CallError::Request("too large".into()), 2, None),
            (CallError::Refused { sent: true }, 5, Some("outcome_unknown")),
            (CallError::Refused { sent: false }, 5, Some("not_sent")),
        ];
        for (error, exit, outcome) in cases {
            let failure = Failure::from(error.clone());
            assert_eq!((failure.cause.exit_code(), failure.outcome.as_deref()), (exit, outcome), "{error:?}");
        }
    }

    #[test]
    fn who_does_not_let_us_in_is_told_from_who_is_not_there() {
        let exit = |unreached| Failure::from(ConnectError::Unreached(WaitError::TimedOut(unreached))).cause.exit_code();
        assert_eq!(Failure::from(ConnectError::Refused).cause.exit_code(), 5);
        assert_eq!(exit(Some(Unreached::Refused)), 5);
        assert_eq!(exit(Some(Unreached::WrongKey("other".into()))), 5);
        assert_eq!(exit(Some(Unreached::Failed("nobody".into()))), 4);
        assert_eq!(exit(None), 4);
    }

    #[test]
    fn json_carries_a_failure_there_and_back() {
        let failure = Failure::from(CallError::NotSent("down".into()));
        let json = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&json).unwrap(), failure, "{json}");
    }
}
