//! Records: what carries the chunks of a wire, the same bytes from a publisher to the host and from there to a subscriber, so that
//! the host need not write them anew. Written by hand: they are what a wire spends its time on.

use bincode::{Decode, Encode};
use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::proto::codec::{self, DecodeError, Message};
use crate::proto::limits;
use crate::proto::status::Status;
use crate::proto::varint;

/// What the first byte of a record says.
#[repr(u8)]
enum Tag {
    Chunk = 0,
    ChunkWithMetadata = 1,
    Gap = 2,
    End = 3,
}

/// Longest frame of a record: a chunk with metadata.
pub const CHUNK_FRAME_BYTES: usize = 1 + varint::MAX_LEN + limits::CHUNK_METADATA_BYTES + limits::CHUNK_BYTES;

/// One piece of what a wire carries: bytes nobody looks into, and words about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// At most 1 MiB.
    pub body: Bytes,
    /// Names and values, at most 32 and 4 KiB in all; a name may occur again.
    pub metadata: Vec<(String, Bytes)>,
}

/// Metadata of a chunk, as a message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Metadata(pub Vec<(String, Vec<u8>)>);

impl Message for Metadata {
    const NAME: &'static str = "metadata of a chunk";
    const LIMIT: usize = limits::CHUNK_METADATA_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        match self.0.len() {
            0 => Err("no metadata is said by saying none"),
            n if n > limits::METADATA_ENTRIES => Err("too many metadata entries"),
            _ => Ok(()),
        }
    }
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The next chunk.
    Chunk(Chunk),
    /// These chunks are lost to this subscriber. From the host only.
    Gap {
        /// The first one: the one that would be next.
        from: u64,
        /// The last one.
        to: u64,
    },
    /// The subscription is over. From the host only; nothing follows.
    End(Status),
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It begins with no tag that is known, or not allowed here.
    #[error("a record of an unknown kind")]
    Tag,
    /// It ends too early, or goes on too long.
    #[error("a record of the wrong length")]
    Length,
    /// The chunk is too large.
    #[error("a chunk of {0} bytes; at most {max} are carried", max = limits::CHUNK_BYTES)]
    TooLarge(usize),
    /// The metadata or the status is none.
    #[error(transparent)]
    Message(#[from] DecodeError),
    /// A gap that is none.
    #[error("a gap from {0} to {1}")]
    Gap(u64, u64),
}

impl Record {
    /// What a frame holds. Bodies are slices of it.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn parse(mut frame: Bytes) -> Result<Self, RecordError> {
        let tag = frame.first().copied().ok_or(RecordError::Length)?;
        frame.advance(1);
        if tag == Tag::Chunk as u8 {
            return Ok(Record::Chunk(Chunk { body: bounded(frame)?, metadata: Vec::new() }));
        }
        if tag == Tag::ChunkWithMetadata as u8 {
            let metadata = take_metadata(&mut frame)?;
            let Metadata(entries) = codec::decode(&metadata)?;
            let metadata = entries.into_iter().map(|(name, value)| (name, value.into())).collect();
            return Ok(Record::Chunk(Chunk { body: bounded(frame)?, metadata }));
        }
        if tag == Tag::Gap as u8 {
            let (from, to) = (take_varint(&mut frame)?, take_varint(&mut frame)?);
            return match frame.is_empty() {
                true if from >= 1 && from <= to => Ok(Record::Gap { from, to }),
                true => Err(RecordError::Gap(from, to)),
                false => Err(RecordError::Length),
            };
        }
        if tag == Tag::End as u8 {
            return Ok(Record::End(codec::decode(&frame)?));
        }
        Err(RecordError::Tag)
    }
}

/// Whether the frame of a publisher holds a chunk. Says how many bytes its body has.
///
/// # Errors
/// [`RecordError`].
pub fn check_chunk(frame: &Bytes) -> Result<usize, RecordError> {
    match frame.first() {
        // By far the most of them: nothing else to look at.
        Some(0) if frame.len() <= limits::CHUNK_BYTES => Ok(frame.len() - 1),
        _ => match Record::parse(frame.clone())? {
            Record::Chunk(chunk) => Ok(chunk.body.len()),
            Record::Gap { .. } | Record::End(_) => Err(RecordError::Tag),
        },
    }
}

/// Appends a chunk as a frame.
///
/// # Errors
/// [`RecordError`]: it, or its metadata, is too large. Then nothing was appended.
pub fn put_chunk(out: &mut Vec<u8>, chunk: &Chunk) -> Result<(), RecordError> {
    put_chunk_head(out, chunk)?;
    out.extend_from_slice(&chunk.body);
    Ok(())
}

/// Appends what goes before a chunk's body in its frame.
///
/// # Errors
/// As [`put_chunk`].
pub fn put_chunk_head(out: &mut Vec<u8>, chunk: &Chunk) -> Result<(), RecordError> {
    let length = chunk.body.len();
    if length > limits::CHUNK_BYTES {
        return Err(RecordError::TooLarge(length));
    }
    if chunk.metadata.is_empty() {
        varint::put(out, length as u64 + 1);
        out.push(Tag::Chunk as u8);
        return Ok(());
    }
    let metadata = Metadata(chunk.metadata.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect());
    let encoded = codec::encode(&metadata);
    // What would be refused on the other side is refused here.
    codec::decode::<Metadata>(&encoded)?;
    let mut head = Vec::with_capacity(varint::MAX_LEN + encoded.len());
    varint::put(&mut head, encoded.len() as u64);
    head.extend_from_slice(&encoded);
    varint::put(out, (1 + head.len() + length) as u64);
    out.push(Tag::ChunkWithMetadata as u8);
    out.extend_from_slice(&head);
    Ok(())
}

/// Appends that these chunks are lost, as a frame.
pub fn put_gap(out: &mut Vec<u8>, from: u64, to: u64) {
    let mut body = vec![Tag::Gap as u8];
    varint::put(&mut body, from);
    varint::put(&mut body, to);
    varint::put(out, body.len() as u64);
    out.extend_from_slice(&body);
}

/// Appends that it is over, as a frame.
pub fn put_end(out: &mut Vec<u8>, status: &Status) {
    let encoded = codec::encode(status);
    varint::put(out, encoded.len() as u64 + 1);
    out.push(Tag::End as u8);
    out.extend_from_slice(&encoded);
}

fn bounded(body: Bytes) -> Result<Bytes, RecordError> {
    if body.len() > limits::CHUNK_BYTES { Err(RecordError::TooLarge(body.len())) } else { Ok(body) }
}

fn take_varint(frame: &mut Bytes) -> Result<u64, RecordError> {
    let (value, taken) = varint::get(frame).ok().flatten().ok_or(RecordError::Length)?;
    frame.advance(taken);
    Ok(value)
}

fn take_metadata(frame: &mut Bytes) -> Result<Bytes, RecordError> {
    let length = take_varint(frame)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= frame.len()).ok_or(RecordError::Length)?;
    Ok(frame.split_to(length))
}
