//! How calls end: a code with gRPC's names and numbers, a message for people, details for programs.
//! Source of the codes: the gRPC core documentation, "Status codes and their use in gRPC".

use std::fmt;

use bincode::{Decode, Encode};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:tt $text:literal,)*) => {
        /// A status code, with gRPC's names and numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
        #[repr(u8)]
        pub enum Code { $($(#[$doc])* $name = $number,)* }

        impl Code {
            /// Every code, in order of its number.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The name gRPC gives it: `NOT_FOUND`.
            pub fn name(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// Done.
    Ok = 0 "OK",
    /// The caller gave up.
    Cancelled = 1 "CANCELLED",
    /// Something failed and nothing better is known.
    Unknown = 2 "UNKNOWN",
    /// The request is wrong, whatever the state of the system.
    InvalidArgument = 3 "INVALID_ARGUMENT",
    /// The time allowed has passed.
    DeadlineExceeded = 4 "DEADLINE_EXCEEDED",
    /// No such service, method or thing.
    NotFound = 5 "NOT_FOUND",
    /// It is there already.
    AlreadyExists = 6 "ALREADY_EXISTS",
    /// Policy does not let this identity do that.
    PermissionDenied = 7 "PERMISSION_DENIED",
    /// A limit was reached: size, number, rate or budget.
    ResourceExhausted = 8 "RESOURCE_EXHAUSTED",
    /// The system is not in the state the request needs.
    FailedPrecondition = 9 "FAILED_PRECONDITION",
    /// It was begun and given up.
    Aborted = 10 "ABORTED",
    /// Past the end of what there is.
    OutOfRange = 11 "OUT_OF_RANGE",
    /// The service is known, the method or the shape of the call is not.
    Unimplemented = 12 "UNIMPLEMENTED",
    /// A bug: an invariant of the callee broke, or its handler panicked.
    Internal = 13 "INTERNAL",
    /// Not reachable now; later it may be.
    Unavailable = 14 "UNAVAILABLE",
    /// Data was lost beyond repair.
    DataLoss = 15 "DATA_LOSS",
    /// Who asks is not known well enough.
    Unauthenticated = 16 "UNAUTHENTICATED",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    /// What happened, for programs.
    pub code: Code,
    /// What happened, for people. Written by the far side: escape it before it reaches a terminal.
    pub message: String,
    /// More, in a form the service and its callers agree on.
    pub details: Vec<u8>,
}

impl Status {
    /// A status of this code, with a message for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// Done.
    pub fn ok() -> Self {
        Self::new(Code::Ok, "")
    }

    /// Whether the call succeeded.
    pub fn is_ok(&self) -> bool {
        self.code == Code::Ok
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { write!(f, "{}", self.code) } else { write!(f, "{}: {}", self.code, self.message) }
    }
}

impl std::error::Error for Status {}
