//! A call on its stream. From the caller: the purpose byte, a frame with the [`Header`], then items, then the end of the
//! stream. From the callee: items, the last of which is a status, then the end of the stream.
//!
//! An item is a frame that begins with a [`Tag`]: a message's body, or a status (nothing more for OK without words). The
//! caller sends no status; what it has to say about the call's end it says by ending or resetting the stream.

use bincode::{BorrowDecode, Decode, Encode};

use super::body::ContentType;
use super::codec::Message;
use super::limits;
use super::status::Status;

/// How many messages go each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One there, one back.
    Unary,
    /// Many there, one back.
    ClientStream,
    /// One there, many back.
    ServerStream,
    /// Many each way.
    Bidi,
}

impl Shape {
    /// Whether the caller sends any number of messages.
    pub fn streams_requests(self) -> bool {
        matches!(self, Shape::ClientStream | Shape::Bidi)
    }

    /// Whether the callee sends any number of messages.
    pub fn streams_replies(self) -> bool {
        matches!(self, Shape::ServerStream | Shape::Bidi)
    }

    /// The name used in descriptions: `server-stream`.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Unary => "unary",
            Shape::ClientStream => "client-stream",
            Shape::ServerStream => "server-stream",
            Shape::Bidi => "bidi",
        }
    }
}

/// What a call begins with. Borrows from the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Header<'a> {
    /// `service/method`.
    pub method: &'a str,
    /// How many messages go each way.
    pub shape: Shape,
    /// How the messages are written, both ways.
    pub content: ContentType,
    /// Microseconds left when this was sent; none for a call that may take for ever.
    pub deadline_us: Option<u64>,
    /// Unary calls with the same caller, method and key are one call.
    pub idempotency_key: Option<&'a [u8]>,
    /// The W3C Trace Context `traceparent`, as is.
    pub traceparent: Option<&'a str>,
    /// Names and values for the handler; a name may occur again.
    pub metadata: Vec<(&'a str, &'a [u8])>,
}

impl Message for Header<'_> {
    const NAME: &'static str = "call header";
    const LIMIT: usize = limits::CALL_HEADER_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        if self.method.len() > 2 * limits::NAME_BYTES + 1 {
            return Err("the method's name is too long");
        }
        if self.idempotency_key.is_some_and(|key| key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES) {
            return Err("the idempotency key is empty or too long");
        }
        if self.traceparent.is_some_and(|text| text.len() > limits::NAME_BYTES) {
            return Err("the traceparent is too long");
        }
        if self.metadata.len() > limits::METADATA_ENTRIES {
            return Err("too many metadata entries");
        }
        if self.metadata.iter().any(|(name, value)| name.len() + value.len() > limits::METADATA_ENTRY_BYTES) {
            return Err("a metadata entry is too large");
        }
        Ok(())
    }
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// A message of the call.
    Message = 0,
    /// How the call ended; the last thing said.
    Status = 1,
}

impl Tag {
    /// What this byte announces, if anything.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Tag::Message),
            1 => Some(Tag::Status),
            _ => None,
        }
    }
}

impl Message for Status {
    const NAME: &'static str = "status";
    const LIMIT: usize = limits::STATUS_BYTES;
}
