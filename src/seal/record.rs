//! Records: bytes of a stream, sealed with their number and whether they are the last. What does not verify is not released, and ends
//! the stream.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::{Buf, Bytes, BytesMut};

use super::key::{PREFIX_BYTES, StreamKey};

/// Before what is sealed: whether it is the last record (one byte, 0 or 1), and how many bytes are sealed (two, the higher first).
pub const HEAD_BYTES: usize = 3;
/// After what is sealed.
pub const TAG_BYTES: usize = 16;
/// Most bytes that one record seals: a record has at most 64 KiB.
pub const PLAIN_BYTES: usize = 64 * 1024 - HEAD_BYTES - TAG_BYTES;
/// Most records of one direction of a stream. With records of 64 KiB that is 2^36 blocks under one key, which leaves an advantage of about
/// 2^-56 to whoever wants to tell them from noise (RFC 8446, section 5.5, has the arithmetic).
pub const RECORDS: u32 = 1 << 24;

/// Nothing more can be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// There were as many records as one key may seal.
    #[error("the stream has had all of its {RECORDS} records")]
    Exhausted,
    /// The last record was sealed.
    #[error("the stream has ended")]
    Ended,
}

/// What came is not what the other end sealed. The circuit is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A head that no end writes.
    #[error("record {0} has a head that nobody writes")]
    Head(u32),
    /// It does not verify: it was changed, or belongs elsewhere.
    #[error("record {0} does not verify")]
    Forged(u32),
    /// Something came after the last record.
    #[error("there are bytes after the last record")]
    AfterLast,
    /// The stream ended before its last record.
    #[error("the stream was cut off after {0} records")]
    CutOff(u32),
    /// More records than one key may seal.
    #[error("the stream has more than {RECORDS} records")]
    Exhausted,
}

/// Seals one direction of one stream.
pub struct Sealer {
    key: Key,
    ended: bool,
}

/// Opens one direction of one stream.
pub struct Opener {
    key: Key,
    came: BytesMut,
    /// After the last record, or something that ended it.
    over: Option<Result<(), OpenError>>,
}

/// What a record held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The bytes.
    pub bytes: Bytes,
    /// Whether it was the last record.
    pub last: bool,
}

struct Key {
    key: LessSafeKey,
    prefix: [u8; PREFIX_BYTES],
    /// The number of the next record.
    next: u32,
}

impl Sealer {
    /// With this key, which nobody else seals with.
    pub fn new(key: StreamKey) -> Self {
        Self { key: Key::new(&key), ended: false }
    }

    /// How many records can still be sealed, the one that ends the stream among them. Who has few left goes on with another stream.
    pub fn left(&self) -> u32 {
        RECORDS - self.key.next
    }

    /// Appends these bytes to `out`, sealed: in as many records as it takes, at least one. With `last` the stream ends with them.
    ///
    /// # Errors
    /// [`SealError`]; then nothing is appended.
    pub fn seal(&mut self, bytes: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), SealError> {
        if self.ended {
            return Err(SealError::Ended);
        }
        let count = bytes.len().div_ceil(PLAIN_BYTES).max(1);
        // There is always one left to end the stream with: else one that is whole could only be cut off.
        if count + usize::from(!last) > self.left() as usize {
            return Err(SealError::Exhausted);
        }
        out.reserve(bytes.len() + count * (HEAD_BYTES + TAG_BYTES));
        for at in 0..count {
            let piece = &bytes[at * PLAIN_BYTES..bytes.len().min((at + 1) * PLAIN_BYTES)];
            self.record(piece, last && at + 1 == count, out);
        }
        self.ended = last;
        Ok(())
    }

    fn record(&mut self, bytes: &[u8], last: bool, out: &mut Vec<u8>) {
        let head = head(bytes.len(), last);
        out.extend_from_slice(&head);
        let sealed = out.len();
        out.extend_from_slice(bytes);
        let nonce = self.key.nonce(last);
        let tag = self.key.key.seal_in_place_separate_tag(nonce, Aad::from(head), &mut out[sealed..]);
        out.extend_from_slice(tag.expect("a record is far smaller than what AES-GCM may seal").as_ref());
        self.key.next += 1;
    }
}

impl Opener {
    /// With this key.
    pub fn new(key: StreamKey) -> Self {
        Self { key: Key::new(&key), came: BytesMut::new(), over: None }
    }

    /// Bytes that came, in any pieces. At most one record is held that is not whole; take what is there before more is pushed.
    pub fn push(&mut self, bytes: &[u8]) {
        self.came.extend_from_slice(bytes);
    }

    /// The next record, if it is here whole. Nothing of it is released before all of it has verified.
    ///
    /// # Errors
    /// [`OpenError`], now and for ever: what comes after is not looked at.
    pub fn next_record(&mut self) -> Result<Option<Opened>, OpenError> {
        match self.over {
            Some(Ok(())) if !self.came.is_empty() => self.fail(OpenError::AfterLast),
            Some(Ok(())) => Ok(None),
            Some(Err(error)) => Err(error),
            None => self.open(),
        }
    }

    /// The stream has ended, after all records were taken.
    ///
    /// # Errors
    /// [`OpenError`]: not where the other end has ended it.
    pub fn end(&mut self) -> Result<(), OpenError> {
        match self.over {
            Some(Ok(())) if !self.came.is_empty() => self.fail(OpenError::AfterLast),
            Some(over) => over,
            None => self.fail(OpenError::CutOff(self.key.next)),
        }
    }

    fn open(&mut self) -> Result<Option<Opened>, OpenError> {
        let Some(head) = self.came.first_chunk::<HEAD_BYTES>().copied() else { return Ok(None) };
        if self.key.next == RECORDS {
            return self.fail(OpenError::Exhausted);
        }
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        if head[0] > 1 || length > PLAIN_BYTES {
            return self.fail(OpenError::Head(self.key.next));
        }
        if self.came.len() < HEAD_BYTES + length + TAG_BYTES {
            return Ok(None);
        }
        let last = head[0] == 1;
        self.came.advance(HEAD_BYTES);
        let mut record = self.came.split_to(length + TAG_BYTES);
        let nonce = self.key.nonce(last);
        if self.key.key.open_in_place(nonce, Aad::from(head), &mut record).is_err() {
            return self.fail(OpenError::Forged(self.key.next));
        }
        self.key.next += 1;
        record.truncate(length);
        self.over = last.then_some(Ok(()));
        Ok(Some(Opened { bytes: record.freeze(), last }))
    }

    fn fail<T>(&mut self, error: OpenError) -> Result<T, OpenError> {
        self.over = Some(Err(error));
        self.came = BytesMut::new();
        Err(error)
    }
}

impl Key {
    fn new(key: &StreamKey) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM, key.key()).expect("the key has AES-256's length");
        Self { key: LessSafeKey::new(unbound), prefix: key.prefix(), next: 0 }
    }

    /// Of the next record: each is used once, since a number is.
    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..PREFIX_BYTES].copy_from_slice(&self.prefix);
        nonce[PREFIX_BYTES..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = u8::from(last);
        Nonce::assume_unique_for_key(nonce)
    }
}

fn head(length: usize, last: bool) -> [u8; HEAD_BYTES] {
    let [high, low] = u16::try_from(length).expect("a record is smaller than 64 KiB").to_be_bytes();
    [u8::from(last), high, low]
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("next", &self.key.next).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("next", &self.key.next).field("over", &self.over).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{ExportError, Exporter};

    struct Zeros;

    impl Exporter for Zeros {
        fn export(&self, _label: &[u8], _context: &[u8], out: &mut [u8]) -> Result<(), ExportError> {
            out.fill(0);
            Ok(())
        }
    }

    /// Both halves, after so many records.
    fn after(records: u32) -> (Sealer, Opener) {
        use crate::id::NodeId;
        use crate::seal::{Circuit, CircuitId, Direction, Place};
        let (initiator, responder) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let circuit = Circuit { id: CircuitId([0; 16]), initiator, responder };
        let key = || StreamKey::derive(&Zeros, &Place { circuit, stream: 0, direction: Direction::FromInitiator }).unwrap();
        let (mut sealer, mut opener) = (Sealer::new(key()), Opener::new(key()));
        (sealer.key.next, opener.key.next) = (records, records);
        (sealer, opener)
    }

    #[test]
    fn a_stream_that_has_had_all_but_one_of_its_records_can_be_ended_and_nothing_else() {
        let (mut sealer, mut opener) = after(RECORDS - 2);
        let mut bytes = Vec::new();
        assert_eq!(sealer.seal(&vec![0; PLAIN_BYTES + 1], false, &mut bytes), Err(SealError::Exhausted));
        sealer.seal(b"x", false, &mut bytes).unwrap();
        assert_eq!((sealer.seal(b"y", false, &mut bytes), sealer.left()), (Err(SealError::Exhausted), 1));
        sealer.seal(b"z", true, &mut bytes).unwrap();
        assert_eq!((sealer.seal(b"", true, &mut bytes), sealer.left()), (Err(SealError::Ended), 0));
        opener.push(&bytes);
        assert_eq!(opener.next_record().unwrap().unwrap().bytes, &b"x"[..]);
        assert_eq!(opener.next_record().unwrap().unwrap(), Opened { bytes: Bytes::from_static(b"z"), last: true });
        assert_eq!(opener.end(), Ok(()));
    }

    #[test]
    fn a_stream_with_more_records_than_there_can_be_is_not_read_on() {
        let (_, mut opener) = after(RECORDS);
        opener.push(&[0; 100]);
        assert_eq!(opener.next_record(), Err(OpenError::Exhausted));
        assert_eq!(opener.end(), Err(OpenError::Exhausted));
    }
}
