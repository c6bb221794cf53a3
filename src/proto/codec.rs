//! Our own messages as bytes, and the only place that knows what bincode does to them. Each value has exactly one encoding:
//! whatever else would decode to it is refused. Users' payloads are [`body`](super::body)'s, streams are
//! [`frame`](super::frame)'s.
//!
//! A message is a type with bincode's derives and a [`Message`] impl: integers of variable length, little endian; a struct is
//! its fields in order; an enum its variant's number, then its fields; text, bytes and lists a length and their items. It has
//! no maps, no recursion and no lists of empty items, so that decoding is bounded by what arrived.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bincode::de::read::SliceReader;
use bincode::de::{Decoder, DecoderImpl};
use bincode::enc::EncoderImpl;
use bincode::enc::write::{SizeWriter, Writer};
use bincode::error::{DecodeError as Refusal, EncodeError};
pub use bincode::{BorrowDecode, Decode, Encode};
use thiserror::Error;

/// A message of ours.
///
/// Derive `Encode` and `Decode` (or `BorrowDecode`, if it borrows from the bytes).
///
/// ```
/// use bincode::{Decode, Encode};
/// use voltmesh::proto::codec::{self, Message};
///
/// #[derive(Debug, PartialEq, Encode, Decode)]
/// struct Ping { number: u64 }
///
/// impl Message for Ping {
///     const NAME: &str = "ping";
///     const LIMIT: usize = 16;
/// }
///
/// assert_eq!(codec::encode(&Ping { number: 7 }), [7]);
/// assert_eq!(codec::decode::<Ping>(&[7])?, Ping { number: 7 });
/// assert!(codec::decode::<Ping>(&[7, 0]).is_err());       // a byte too many
/// assert!(codec::decode::<Ping>(&[251, 7, 0]).is_err());  // 7, written longer than it need be
/// # Ok::<(), codec::DecodeError>(())
/// ```
pub trait Message: Encode {
    /// What errors call it.
    const NAME: &str;
    /// Its longest encoding, in bytes; longer ones are refused unread.
    const LIMIT: usize;

    /// What must hold beyond the types of the fields: counts, orders, lengths of names. A decoded message for which it does
    /// not is refused with this text.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Most memory that decoding may set aside for each byte it was given: the largest item of a list that one byte can stand for.
pub const MEMORY_PER_BYTE: usize = 32;
/// What it may set aside besides, so that small messages need no counting.
const MEMORY_BASE: usize = 64;

/// Bytes that are not a message. Says which message, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("bad {message}: {reason}")]
pub struct DecodeError {
    /// [`Message::NAME`].
    pub message: &'static str,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with the bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Reason {
    /// Longer than [`Message::LIMIT`].
    #[error("{bytes} bytes where {limit} is the most")]
    TooLong {
        /// What was given, in bytes.
        bytes: usize,
        /// The most that is accepted, in bytes.
        limit: usize,
    },
    /// It ends too early.
    #[error("it ends too early")]
    Truncated,
    /// Bytes are left after the message.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A list is longer than the bytes that are there can hold.
    #[error("a list longer than the message")]
    ListTooLong,
    /// The value has another encoding, and that is the one to send.
    #[error("not the one encoding of its value")]
    NotCanonical,
    /// The bytes stand for no value of the type.
    #[error("{0}")]
    Invalid(&'static str),
}

/// The bytes of `message`. Does not check [`Message::LIMIT`]: whoever fills a message with others' data checks it there.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    encode_into(message, &mut out);
    out
}

/// Appends the bytes of `message`.
pub fn encode_into<M: Message>(message: &M, out: &mut Vec<u8>) {
    write(message, Append(out)).expect("a message has no field that can fail to encode");
}

/// How many bytes [`encode`] makes of `message`, without making them.
pub fn encoded_len<M: Message>(message: &M) -> usize {
    write(message, SizeWriter::default()).expect("a message has no field that can fail to encode").bytes_written
}

/// The message these bytes are, all of them.
///
/// # Errors
/// [`DecodeError`] if they are not the one encoding of a message of this type.
pub fn decode<M: Message + Decode<()>>(bytes: &[u8]) -> Result<M, DecodeError> {
    read(bytes, |decoder| M::decode(decoder))
}

/// The same, for a message that borrows its text and bytes from `bytes`: nothing is copied.
///
/// # Errors
/// [`DecodeError`] if they are not the one encoding of a message of this type.
pub fn decode_borrowed<'a, M: Message + BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<M, DecodeError> {
    read(bytes, |decoder| M::borrow_decode(decoder))
}

/// bincode's limit is part of a type and counts from the start of a message; ours depends on the bytes at hand. So the limit
/// is one no message reaches, and what it is above ours is claimed before decoding starts.
const CEILING: usize = isize::MAX as usize;
type Config = Configuration<LittleEndian, Varint, Limit<CEILING>>;
const CONFIG: Config = config::standard().with_limit::<CEILING>();
type MessageDecoder<'a> = DecoderImpl<SliceReader<'a>, Config, ()>;

fn read<'a, M: Message>(
    bytes: &'a [u8],
    decode: impl FnOnce(&mut MessageDecoder<'a>) -> Result<M, Refusal>,
) -> Result<M, DecodeError> {
    let refused = |reason| DecodeError { message: M::NAME, reason };
    if bytes.len() > M::LIMIT {
        return Err(refused(Reason::TooLong { bytes: bytes.len(), limit: M::LIMIT }));
    }
    let memory = MEMORY_BASE + MEMORY_PER_BYTE * bytes.len();
    let mut decoder = DecoderImpl::new(SliceReader::new(bytes), CONFIG, ());
    decoder.claim_bytes_read(CEILING - memory).expect("the ceiling is above the memory of any message");
    let message = decode(&mut decoder).map_err(|refusal| refused(refusal.into()))?;
    match write(&message, Expect(bytes)) {
        Ok(Expect([])) => {}
        Ok(Expect(rest)) => return Err(refused(Reason::Trailing(rest.len()))),
        Err(_) => return Err(refused(Reason::NotCanonical)),
    }
    message.check().map_err(|why| refused(Reason::Invalid(why)))?;
    Ok(message)
}

fn write<M: Message, W: Writer>(message: &M, writer: W) -> Result<W, EncodeError> {
    let mut encoder = EncoderImpl::new(writer, CONFIG);
    message.encode(&mut encoder)?;
    Ok(encoder.into_writer())
}

/// Writes to the end of a vector.
struct Append<'a>(&'a mut Vec<u8>);

impl Writer for Append<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Compares what is written with what was read: an encoding is checked without making it again.
struct Expect<'a>(&'a [u8]);

impl Writer for Expect<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0 = self.0.strip_prefix(bytes).ok_or(EncodeError::UnexpectedEnd)?;
        Ok(())
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnexpectedEnd { .. } => Self::Truncated,
            Refusal::LimitExceeded | Refusal::OutsideUsizeRange(_) => Self::ListTooLong,
            Refusal::UnexpectedVariant { .. } => Self::Invalid("a variant this version does not know"),
            Refusal::Utf8 { .. } | Refusal::InvalidCharEncoding(_) => Self::Invalid("its text is not UTF-8"),
            Refusal::InvalidBooleanValue(_) => Self::Invalid("neither true nor false"),
            Refusal::InvalidIntegerType { .. } => Self::Invalid("an integer that is out of range"),
            Refusal::NonZeroTypeIsZero { .. } => Self::Invalid("zero where it must not be"),
            Refusal::Other(why) => Self::Invalid(why),
            _ => Self::Invalid("a value out of range"),
        }
    }
}
