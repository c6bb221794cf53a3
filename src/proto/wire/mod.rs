//! What is asked of wires, and the records that carry their chunks: every message of a stream with that purpose.
//!
//! The opener's first frame is an [`Ask`]. The host answers with frames that hold an [`Answer`] each. After [`Answer::Ready`] the opener
//! sends records and the host acknowledges them; after [`Answer::Begin`] the host sends [records](Record), and the opener nothing more.

mod cursor;
mod record;
#[cfg(test)]
mod tests;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

pub use self::cursor::{Cursor, CursorError};
pub use self::record::{
    CHUNK_FRAME_BYTES, Chunk, Metadata, Record, RecordError, check_chunk, put_chunk, put_chunk_head, put_end, put_gap,
};
use super::codec::Message;
use super::limits;
use super::status::Status;

/// What becomes of a subscriber for whom the wire no longer keeps what it would read next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slow {
    /// It is told which chunks are lost to it, and goes on with the oldest that is kept.
    #[default]
    DropOldest,
    /// Its subscription ends.
    Disconnect,
    /// It does not come to that: publishers wait for it, at most 30 s at a time; then its subscription ends.
    Block,
}

/// What a wire keeps, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Whether chunks are kept on disk: a chunk is acknowledged and seen only when it is there.
    pub persist: bool,
    /// What becomes of slow subscribers.
    pub slow: Slow,
    /// Most chunks kept in memory.
    pub ring_chunks: u32,
    /// Most bytes kept in memory; one chunk is kept whatever its size.
    pub ring_bytes: u32,
    /// Most bytes kept on disk.
    pub retain_bytes: u64,
    /// Chunks older than this are not kept on disk, in milliseconds.
    pub retain_ms: u64,
}

impl Default for Options {
    /// In memory: 4,096 chunks and 4 MiB. On disk, if [`persist`](Self::persist) is set: 1 GiB and 7 days.
    fn default() -> Self {
        Self {
            persist: false,
            slow: Slow::default(),
            ring_chunks: 4_096,
            ring_bytes: 4 * 1024 * 1024,
            retain_bytes: 1024 * 1024 * 1024,
            retain_ms: 7 * 24 * 3_600 * 1_000,
        }
    }
}

impl Options {
    /// Whether a wire can be like this.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(1..=limits::WIRE_RING_CHUNKS).contains(&self.ring_chunks) {
            return Err("a ring holds 1 to 1,048,576 chunks");
        }
        if !(limits::WIRE_RING_LEAST_BYTES..=limits::WIRE_RING_BYTES).contains(&self.ring_bytes) {
            return Err("a ring has 64 KiB to 64 MiB");
        }
        if self.retain_bytes < u64::from(self.ring_bytes) || self.retain_ms == 0 {
            return Err("less would be kept on disk than in memory");
        }
        Ok(())
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum From {
    /// With the next chunk that is published.
    #[default]
    Live,
    /// With the oldest one that is kept.
    Oldest,
    /// With the chunk of this number; with the next one that is kept if it is not, after a gap.
    Seq(u64),
    /// After the chunk of this cursor. If its epoch is over, with the oldest one that is kept.
    After(Cursor),
}

/// Who publishes, across sessions and restarts: chunks of one publisher are numbered, so that one sent twice is stored once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct PublisherId(pub [u8; 16]);

impl std::fmt::Debug for PublisherId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the opener of a stream asks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// Make a wire. One that is there already, and made like this, is fine.
    Create {
        /// Its name.
        name: String,
        /// What it keeps.
        options: Options,
    },
    /// Which wires are there.
    List {
        /// A pattern, as in rules.
        pattern: String,
    },
    /// Chunks follow.
    Publish {
        /// The wire's name.
        name: String,
        /// Who publishes.
        publisher: PublisherId,
        /// The epoch in which chunks were sent that are not acknowledged yet, if there are any.
        epoch: Option<u64>,
    },
    /// Send chunks.
    Subscribe {
        /// The wire's name.
        name: String,
        /// From where on.
        from: From,
    },
}

impl Message for Ask {
    const NAME: &'static str = "question about a wire";
    const LIMIT: usize = 1_024;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Ask::Create { name, options } => check_name(name).and_then(|()| options.check()),
            Ask::List { pattern } if pattern.len() > limits::WIRE_NAME_BYTES => Err("the pattern is too long"),
            Ask::List { .. } => Ok(()),
            Ask::Publish { name, .. } => check_name(name),
            Ask::Subscribe { from: From::Seq(0), .. } => Err("numbers begin at 1"),
            Ask::Subscribe { name, .. } => check_name(name),
        }
    }
}

/// What can be told of a wire.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct WireInfo {
    /// Its name.
    pub name: String,
    /// How it was made.
    pub options: Options,
    /// Which incarnation of its log this is.
    pub epoch: u64,
    /// The number of the oldest chunk that is kept; `next` if there is none.
    pub first: u64,
    /// The number of the next chunk.
    pub next: u64,
    /// Bytes that are kept, in memory or on disk.
    pub bytes: u64,
    /// Publishers now.
    pub publishers: u32,
    /// Subscribers now.
    pub subscribers: u32,
    /// Why it can be neither published nor subscribed to, if that is so.
    pub broken: Option<String>,
}

/// What the host of a wire answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// To [`Ask::Create`].
    Created {
        /// The wire's epoch.
        epoch: u64,
        /// Whether it was there before.
        existed: bool,
    },
    /// To [`Ask::List`], one for each wire.
    Wire(WireInfo),
    /// That was the last one.
    Last,
    /// To [`Ask::Publish`]: chunks may come. The first one has the number after `last`.
    Ready {
        /// The wire's epoch.
        epoch: u64,
        /// The highest number of this publisher that is stored; 0 if none is, or nothing is known of it.
        last: u64,
        /// Whether the publisher is known here. One that is not, and has sent chunks to this epoch, was forgotten.
        known: bool,
    },
    /// The next `count` chunks of this publisher are stored.
    Ack {
        /// How many, at least one.
        count: u64,
        /// The wire's number for the first of them; the others follow it.
        first: u64,
    },
    /// To [`Ask::Subscribe`]: records follow.
    Begin {
        /// The wire's epoch.
        epoch: u64,
        /// The number of the first chunk that follows, unless a gap comes before.
        next: u64,
    },
    /// No. To a publisher: nothing after the last acknowledgement is stored. Nothing follows.
    Refused(Status),
}

impl Message for Answer {
    const NAME: &'static str = "answer about a wire";
    const LIMIT: usize = limits::STATUS_BYTES + 1;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Answer::Wire(info) => {
                check_name(&info.name)?;
                info.options.check()?;
                if info.broken.as_ref().is_some_and(|why| why.len() > 1_024) {
                    return Err("too many words");
                }
                Ok(())
            }
            Answer::Ack { count: 0, .. } | Answer::Ack { first: 0, .. } => Err("an acknowledgement of nothing"),
            Answer::Ack { count, first } if first.checked_add(*count).is_none() => Err("a number beyond all numbers"),
            Answer::Ready { epoch: 0, .. } | Answer::Begin { epoch: 0, .. } | Answer::Created { epoch: 0, .. } => Err("no epoch"),
            Answer::Begin { next: 0, .. } => Err("numbers begin at 1"),
            _ => Ok(()),
        }
    }
}

/// Whether this may name a wire: segments of letters, digits, `.`, `_` and `-`, joined by `/`; 200 bytes at most.
///
/// # Errors
/// What is wrong.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > limits::WIRE_NAME_BYTES {
        return Err("a wire's name has 1 to 200 bytes");
    }
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.split('/').all(|segment| !segment.is_empty() && segment.bytes().all(fine)) {
        return Err("a wire's name is letters, digits, '.', '_' and '-', in segments joined by '/'");
    }
    Ok(())
}
