//! The chunks of a wire that are kept in memory: whole frames, in segments, each numbered by its first. Readers have a position and
//! nothing else; what they are given is shared with the ring, not copied.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::proto::frame::FrameError;
use crate::proto::varint;

/// A segment holds about so many bytes: what is let go is let go by whole segments.
const SEGMENT_BYTES: usize = 32 * 1024;

/// Whole frames, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The frames, with their lengths.
    pub frames: Bytes,
    /// How many.
    pub count: u64,
}

/// What a segment takes besides its frames, about.
const SEGMENT_BESIDES: usize = 128;

impl Segment {
    /// What it takes in memory, in bytes.
    fn held(&self) -> usize {
        self.frames.len() + SEGMENT_BESIDES
    }
}

/// What can be read at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// These frames, of so many chunks.
    Chunks(Vec<Bytes>, u64),
    /// Nothing yet.
    Nothing,
    /// That is kept no more: this is the oldest.
    Behind(u64),
}

/// Whether chunks can be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// They have this number and those after it.
    Done(u64),
    /// This reader, and perhaps others, would lose something.
    Overruns(u64),
}

/// What is kept in memory of a wire.
#[derive(Debug)]
pub struct Ring {
    chunks_max: u64,
    bytes_max: usize,
    segments: VecDeque<(u64, Segment)>,
    /// The oldest chunk that may be read.
    first: u64,
    next: u64,
    bytes: usize,
    /// The next chunk of each reader.
    readers: BTreeMap<u64, u64>,
    readers_ever: u64,
}

impl Ring {
    /// Keeps so many chunks and bytes at most, and one chunk whatever its size. `next`: the number of the first chunk to come.
    pub fn new(chunks_max: u32, bytes_max: u32, next: u64) -> Self {
        Self {
            chunks_max: chunks_max.into(),
            bytes_max: bytes_max as usize,
            segments: VecDeque::new(),
            first: next,
            next,
            bytes: 0,
            readers: BTreeMap::new(),
            readers_ever: 0,
        }
    }

    /// The oldest chunk that is kept; [`next`](Self::next) if none is.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number of the next chunk.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes that are held, with what it takes to hold them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Readers now.
    pub fn readers(&self) -> usize {
        self.readers.len()
    }

    /// Begins to read at this number. Says who that is.
    pub fn enter(&mut self, at: u64) -> u64 {
        self.readers_ever += 1;
        self.readers.insert(self.readers_ever, at);
        self.readers_ever
    }

    /// This reader goes on here.
    pub fn reached(&mut self, reader: u64, at: u64) {
        if let Some(position) = self.readers.get_mut(&reader) {
            *position = at;
        }
    }

    /// Reads no more.
    pub fn leave(&mut self, reader: u64) {
        self.readers.remove(&reader);
    }

    /// Whether this one still reads.
    pub fn has(&self, reader: u64) -> bool {
        self.readers.contains_key(&reader)
    }

    /// Appends, and lets the oldest go that is too much.
    pub fn append(&mut self, segment: Segment) -> u64 {
        let first = self.next;
        self.next += segment.count;
        self.bytes += segment.held();
        self.segments.push_back((first, segment));
        let (keep, _) = self.kept_after(0, 0);
        self.first = keep;
        while self.segments.front().is_some_and(|(first, segment)| first + segment.count <= keep) {
            let gone = self.segments.pop_front();
            self.bytes -= gone.map_or(0, |(_, segment)| segment.held());
        }
        first
    }

    /// Appends, unless a reader would lose something by it.
    pub fn append_for_all(&mut self, segment: Segment) -> Append {
        let (keep, next) = self.kept_after(segment.count, segment.held());
        let slowest = self.readers.iter().min_by_key(|(_, position)| **position);
        match slowest {
            // Who reads what is not there yet loses nothing.
            Some((reader, position)) if *position < keep.min(next) => Append::Overruns(*reader),
            _ => Append::Done(self.append(segment)),
        }
    }

    /// The oldest chunk that would be kept with so much more, and the number after that.
    fn kept_after(&self, count: u64, bytes: usize) -> (u64, u64) {
        let next = self.next + count;
        let mut keep = self.first.max(next.saturating_sub(self.chunks_max));
        let mut held = self.bytes + bytes;
        for (first, segment) in &self.segments {
            let end = first + segment.count;
            // The newest segment stays whatever its size.
            if end == next {
                break;
            }
            if held > self.bytes_max {
                keep = keep.max(end);
            }
            if end > keep {
                break;
            }
            held -= segment.held();
        }
        (keep, next)
    }

    /// What came after the newest that is here is elsewhere, up to this number: everything before it is kept no more.
    pub fn jump(&mut self, next: u64) {
        self.segments.clear();
        self.bytes = 0;
        (self.first, self.next) = (next, next);
    }

    /// Lets the oldest segment go, even if it is the only one: says how many bytes that were.
    pub fn shed(&mut self) -> usize {
        let Some((first, segment)) = self.segments.pop_front() else { return 0 };
        self.first = self.first.max(first + segment.count);
        self.bytes -= segment.held();
        segment.held()
    }

    /// What is there from this number on: at least one segment's rest, at most about so many bytes.
    pub fn read(&self, at: u64, bytes_max: usize) -> Read {
        if at >= self.next {
            return Read::Nothing;
        }
        if at < self.first {
            return Read::Behind(self.first);
        }
        let from = self.segments.partition_point(|(first, segment)| first + segment.count <= at);
        let (mut pieces, mut count, mut bytes) = (Vec::new(), 0, 0);
        for (first, segment) in self.segments.range(from..) {
            let skipped = at.saturating_sub(*first);
            let Some(frames) = skip_frames(&segment.frames, skipped) else { break };
            if bytes > 0 && bytes + frames.len() > bytes_max {
                break;
            }
            bytes += frames.len();
            count += segment.count - skipped;
            pieces.push(frames);
        }
        Read::Chunks(pieces, count)
    }
}

/// Whole frames without the first so many; `None` if there are not that many.
pub fn skip_frames(frames: &Bytes, skip: u64) -> Option<Bytes> {
    let mut at = 0usize;
    for _ in 0..skip {
        let (length, taken) = varint::get(frames.get(at..)?).ok()??;
        at = at.checked_add(taken)?.checked_add(usize::try_from(length).ok()?)?;
    }
    (at <= frames.len()).then(|| frames.slice(at..))
}

/// Cuts whole frames into segments of at most so many chunks, and of about 32 KiB, or one chunk. If there are several each is a copy:
/// a small part that is kept does not hold all the memory it came in.
///
/// # Errors
/// They are not whole frames.
pub fn segments(mut frames: Bytes, chunks_max: u64) -> Result<Vec<Segment>, FrameError> {
    let mut cut = Vec::new();
    let (mut at, mut count) = (0, 0);
    while at < frames.len() {
        let (length, taken) = varint::get(&frames[at..])?.ok_or(FrameError::Truncated)?;
        let whole = usize::try_from(length).ok().and_then(|length| length.checked_add(at + taken));
        let end = whole.filter(|end| *end <= frames.len()).ok_or(FrameError::Truncated)?;
        if count > 0 && (end > SEGMENT_BYTES || count >= chunks_max) {
            cut.push(Segment { frames: frames.split_to(at), count });
            (at, count) = (end - at, 1);
        } else {
            (at, count) = (end, count + 1);
        }
    }
    if count > 0 {
        cut.push(Segment { frames, count });
    }
    if cut.len() > 1 {
        cut.iter_mut().for_each(|segment| segment.frames = Bytes::copy_from_slice(&segment.frames));
    }
    Ok(cut)
}
