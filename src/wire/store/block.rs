//! Blocks: chunks as they are kept, many together, with a checksum. It also covers the number under which a block is kept, so a block
//! that damage puts in another's place is none.

use crate::state::wire::Segment;

/// Blocks are joined up to this size. With what redb adds such a block is just under 64 KiB: redb gives it pages of a power of two, so a
/// little more would take twice the room.
pub(super) const BLOCK_BYTES: usize = 64 * 1024 - 64;
/// Before a block's frames: checksum, times of its oldest and its newest chunk, count.
const HEAD_BYTES: usize = 4 + 8 + 8 + 4;

/// Chunks as they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block<'a> {
    /// Chunks in it, at least one.
    pub count: u32,
    /// When its oldest chunk was stored, in milliseconds.
    pub since_ms: u64,
    /// When its newest chunk was stored.
    pub until_ms: u64,
    /// Their frames.
    pub frames: &'a [u8],
}

/// A block that is being made.
#[derive(Debug, Default)]
pub(super) struct Draft {
    count: u32,
    since_ms: u64,
    until_ms: u64,
    frames: Vec<u8>,
}

impl<'a> Block<'a> {
    /// The block that is kept under this number; `None` if it is damaged.
    pub fn read(first: u64, bytes: &'a [u8]) -> Option<Self> {
        let (head, frames) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (checksum, rest) = head.split_first_chunk::<4>()?;
        let (since, rest) = rest.split_first_chunk::<8>()?;
        let (until, rest) = rest.split_first_chunk::<8>()?;
        let (count, _) = rest.split_first_chunk::<4>()?;
        let block = Self {
            count: u32::from_le_bytes(*count),
            since_ms: u64::from_le_bytes(*since),
            until_ms: u64::from_le_bytes(*until),
            frames,
        };
        let whole = u32::from_le_bytes(*checksum) == check(first, &bytes[4..]);
        // Not so many that numbers would run out: who looks for the next one adds without care.
        (whole && block.count > 0 && first.checked_add(block.count.into()).is_some()).then_some(block)
    }

    /// Its size as it is kept.
    pub fn bytes(&self) -> usize {
        HEAD_BYTES + self.frames.len()
    }
}

impl Draft {
    /// With these chunks, stored now.
    pub fn of(segment: &Segment, now_ms: u64) -> Self {
        let mut draft = Self { since_ms: now_ms, until_ms: now_ms, ..Self::default() };
        draft.add(segment);
        draft
    }

    /// Its size as it will be kept.
    pub fn bytes(&self) -> usize {
        HEAD_BYTES + self.frames.len()
    }

    /// Chunks in it.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether it stays within a block's size with so much more.
    pub fn has_room_for(&self, frames: usize) -> bool {
        self.bytes() + frames <= BLOCK_BYTES
    }

    /// Appends chunks.
    pub fn add(&mut self, segment: &Segment) {
        self.count = self.count.saturating_add(u32::try_from(segment.count).unwrap_or(u32::MAX));
        self.frames.extend_from_slice(&segment.frames);
    }

    /// Puts the block before it in front.
    pub fn join(&mut self, before: &Block<'_>) {
        self.count = self.count.saturating_add(before.count);
        self.since_ms = self.since_ms.min(before.since_ms);
        self.frames.splice(..0, before.frames.iter().copied());
    }

    /// As it is kept under this number.
    pub fn write(&self, first: u64) -> Vec<u8> {
        let mut block = Vec::with_capacity(self.bytes());
        block.extend_from_slice(&[0; 4]);
        block.extend_from_slice(&self.since_ms.to_le_bytes());
        block.extend_from_slice(&self.until_ms.to_le_bytes());
        block.extend_from_slice(&self.count.to_le_bytes());
        block.extend_from_slice(&self.frames);
        let checksum = check(first, &block[4..]);
        block[..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// The checksum of what is kept under this number.
fn check(first: u64, rest: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&first.to_le_bytes());
    checksum.update(rest);
    checksum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_what_was_written_and_only_where_it_was_written() {
        let segment = Segment { frames: b"\x02hi".as_slice().into(), count: 1 };
        let mut draft = Draft::of(&segment, 9);
        draft.join(&Block { count: 2, since_ms: 4, until_ms: 5, frames: b"\x01a\x01b" });
        let bytes = draft.write(7);
        let block = Block { count: 3, since_ms: 4, until_ms: 9, frames: b"\x01a\x01b\x02hi" };
        assert_eq!(Block::read(7, &bytes), Some(block));
        assert_eq!((block.bytes(), draft.bytes()), (bytes.len(), bytes.len()));
        assert_eq!(Block::read(8, &bytes), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(Block::read(7, &damaged), None, "byte {at}");
            assert_eq!(Block::read(7, &bytes[..at]), None, "{at} bytes");
        }
    }
}
