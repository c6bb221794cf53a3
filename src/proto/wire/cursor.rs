//! Where a reader of a wire has got to, as text and as a message.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Where a reader of a wire has got to: the number of the last chunk it has, 0 if none, and the epoch that number belongs to. As
/// text `0123456789abcdef:42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cursor {
    /// Which incarnation of the wire's log.
    pub epoch: u64,
    /// The last chunk.
    pub seq: u64,
}

/// Not a cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no cursor: one is 16 hexadecimal digits, a colon and a number")]
pub struct CursorError(String);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.epoch, self.seq)
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let parse = || {
            let (epoch, seq) = text.split_once(':')?;
            let hex = epoch.len() == 16 && epoch.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            let digits = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
            let epoch = u64::from_str_radix(epoch, 16).ok().filter(|_| hex)?;
            Some(Self { epoch, seq: seq.parse().ok().filter(|_| digits)? })
        };
        parse().ok_or_else(|| CursorError(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for Cursor {
    type Error = CursorError;

    fn try_from(text: String) -> Result<Self, CursorError> {
        text.parse()
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.to_string()
    }
}
