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
use serde::Serialize;
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
///     const NAME: &'static str = "ping";
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
    const NAME: &'static str;
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

/// Appends a user's value as bincode writes it. Reading such bytes back is [`body`](super::body)'s.
pub(super) fn encode_with_serde<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), String> {
    bincode::serde::encode_into_writer(value, Append(out), CONFIG).map_err(|error| match error {
        EncodeError::Serde(_) => "it writes the length of a list or map first, and this type does not know it; use json".into(),
        EncodeError::OtherString(why) => why,
        other => other.to_string(),
    })
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

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    /// A message with one of each thing messages are made of.
    #[derive(Clone, Debug, PartialEq, Encode, Decode)]
    struct Sample {
        id: [u8; 4],
        number: u64,
        name: String,
        entries: Vec<(u16, Vec<u8>)>,
        kind: Kind,
    }

    #[derive(Clone, Debug, PartialEq, Encode, Decode)]
    enum Kind {
        Plain,
        Sized(u32),
        Named { offset: Option<i16>, last: bool },
    }

    impl Message for Sample {
        const NAME: &'static str = "sample";
        const LIMIT: usize = 4096;

        fn check(&self) -> Result<(), &'static str> {
            if self.name == "forbidden" { Err("the name is forbidden") } else { Ok(()) }
        }
    }

    #[derive(Debug, PartialEq, Encode, BorrowDecode)]
    struct Borrowed<'a> {
        name: &'a str,
        bytes: &'a [u8],
    }

    impl Message for Borrowed<'_> {
        const NAME: &'static str = "borrowed";
        const LIMIT: usize = 64;
    }

    fn sample() -> Sample {
        Sample {
            id: [1, 2, 3, 4],
            number: 251,
            name: "é".into(),
            entries: vec![(300, vec![9]), (0, vec![])],
            kind: Kind::Named { offset: Some(-2), last: true },
        }
    }

    #[rustfmt::skip]
    const GOLDEN: &[u8] = &[
        1, 2, 3, 4,                // an array has no length
        251, 251, 0,               // 251 as a u16: the first that does not fit one byte
        2, 0xc3, 0xa9,             // text: its length in bytes, UTF-8
        2, 251, 44, 1, 1, 9, 0, 0, // a list: its length, then the items
        2, 1, 3, 1,                // the variant, Some, zigzag of -2, true
    ];

    fn reason<M: Message + Decode<()> + Debug>(bytes: &[u8]) -> Reason {
        decode::<M>(bytes).unwrap_err().reason
    }

    #[test]
    fn a_message_has_these_bytes_and_no_others() {
        assert_eq!(encode(&sample()), GOLDEN);
        assert_eq!(encoded_len(&sample()), GOLDEN.len());
        assert_eq!(decode::<Sample>(GOLDEN), Ok(sample()));
    }

    #[test]
    fn a_borrowed_message_points_into_the_bytes() {
        let bytes = [2, b'h', b'i', 1, 7];
        let message: Borrowed<'_> = decode_borrowed(&bytes).unwrap();
        assert_eq!(message, Borrowed { name: "hi", bytes: &[7] });
        assert!(std::ptr::eq(message.bytes, &bytes[4..]));
        assert_eq!(encode(&message), bytes);
        assert_eq!(decode_borrowed::<Borrowed<'_>>(&bytes[..4]).unwrap_err().to_string(), "bad borrowed: it ends too early");
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(reason::<Sample>(&[0; 4097]), Reason::TooLong { bytes: 4097, limit: 4096 });
        assert_eq!(reason::<Sample>(&[GOLDEN, &[0, 0]].concat()), Reason::Trailing(2));
        assert_eq!(reason::<Sample>(&GOLDEN[..9]), Reason::Truncated);
        assert_eq!(reason::<Sample>(&[1, 2, 3, 4, 251, 250, 0, 0, 0, 0]), Reason::NotCanonical);
        assert_eq!(reason::<Sample>(&[1, 2, 3, 4, 0, 0, 0, 3]), Reason::Invalid("a variant this version does not know"));
        assert_eq!(reason::<Sample>(&[1, 2, 3, 4, 0, 1, 0xff, 0, 0]), Reason::Invalid("its text is not UTF-8"));
        assert_eq!(reason::<Sample>(&[1, 2, 3, 4, 0, 0, 0, 2, 0, 2]), Reason::Invalid("neither true nor false"));
        let forbidden = encode(&Sample { name: "forbidden".into(), ..sample() });
        assert_eq!(decode::<Sample>(&forbidden).unwrap_err().to_string(), "bad sample: the name is forbidden");
    }

    #[test]
    fn a_list_longer_than_the_message_is_refused() {
        for length in [
            &[251, 255, 255][..],
            &[252, 0, 0, 0, 1],
            &[253, 0, 0, 0, 0, 0, 1, 0, 0],
            &[253, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            for before in [&[1, 2, 3, 4, 0][..], &[1, 2, 3, 4, 0, 0], &[1, 2, 3, 4, 0, 0, 1, 0]] {
                assert_eq!(reason::<Sample>(&[before, length].concat()), Reason::ListTooLong);
            }
        }
    }

    #[test]
    fn a_message_cut_short_is_refused_wherever_it_is_cut() {
        for cut in 0..GOLDEN.len() {
            assert!(decode::<Sample>(&GOLDEN[..cut]).is_err(), "cut after {cut}");
        }
    }

    #[test]
    fn a_message_with_one_bit_flipped_is_refused_or_another_message() {
        for bit in 0..GOLDEN.len() * 8 {
            let mut bytes = GOLDEN.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(message) = decode::<Sample>(&bytes) {
                assert_eq!(encode(&message), bytes);
                assert_ne!(message, sample());
            }
        }
    }

    fn samples() -> impl Strategy<Value = Sample> {
        let kind = prop_oneof![
            Just(Kind::Plain),
            any::<u32>().prop_map(Kind::Sized),
            any::<(Option<i16>, bool)>().prop_map(|(offset, last)| Kind::Named { offset, last }),
        ];
        let entries = prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..4)), 0..300);
        (any::<([u8; 4], u64)>(), 0u32..64, ".{0,40}", entries, kind)
            .prop_map(|((id, number), shift, name, entries, kind)| Sample { id, number: number >> shift, name, entries, kind })
    }

    proptest! {
        #[test]
        fn every_message_is_read_back(message in samples()) {
            let bytes = encode(&message);
            prop_assert_eq!(bytes.len(), encoded_len(&message));
            prop_assert_eq!(decode::<Sample>(&bytes), Ok(message));
        }

        #[test]
        fn any_bytes_are_one_message_or_refused(bytes in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..64)) {
            if let Ok(message) = decode::<Sample>(&bytes) {
                prop_assert_eq!(encode(&message), bytes);
            }
        }
    }
}
