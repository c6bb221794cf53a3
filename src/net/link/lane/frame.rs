//! What goes over a lane, byte by byte: frames, each of one path stream, whole in the record they come in; and what a relayed stream says of
//! itself first. Reads and writes bytes and nothing else.

use super::Broken;
use crate::proto::limits;
use crate::proto::varint;

const BYTES: u8 = 1;
const FINISHED: u8 = 2;
const RESET: u8 = 4;
const MOVED: u8 = 8;
const STOP: u8 = 16;

/// How one direction of a path stream ends on its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No more bytes follow.
    Finished,
    /// It was given up, with this code.
    Reset(u64),
    /// What follows is on a stream of its own.
    Moved,
}

/// Something about one path stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which one.
    pub stream: u64,
    /// More of its bytes.
    pub bytes: &'a [u8],
    /// It ends here, after those bytes.
    pub end: Option<End>,
    /// Whoever sends this reads no more of it, for the reason with this code.
    pub stop: Option<u64>,
}

impl<'a> Frame<'a> {
    /// Most bytes that a frame takes beside those of the stream: flags, and four integers.
    pub const HEAD_BYTES: usize = 1 + 4 * varint::MAX_LEN;

    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        let mut flags = u8::from(!self.bytes.is_empty()) * BYTES | u8::from(self.stop.is_some()) * STOP;
        flags |= match self.end {
            None => 0,
            Some(End::Finished) => FINISHED,
            Some(End::Reset(_)) => RESET,
            Some(End::Moved) => MOVED,
        };
        out.push(flags);
        varint::put(out, self.stream);
        if let Some(End::Reset(code)) = self.end {
            varint::put(out, code);
        }
        if let Some(code) = self.stop {
            varint::put(out, code);
        }
        if !self.bytes.is_empty() {
            varint::put(out, self.bytes.len() as u64);
            out.extend_from_slice(self.bytes);
        }
    }

    /// Takes the next one off the front of a record's bytes.
    ///
    /// # Errors
    /// [`Broken`]: nobody writes that.
    pub fn take(record: &mut &'a [u8]) -> Result<Self, Broken> {
        let flags = *record.split_off_first().ok_or(Broken::Cut)?;
        let ends = flags & (FINISHED | RESET | MOVED);
        if flags == 0 || flags >= 2 * STOP || ends.count_ones() > 1 {
            return Err(Broken::Flags(flags));
        }
        let stream = integer(record)?;
        let end = match ends {
            FINISHED => Some(End::Finished),
            RESET => Some(End::Reset(integer(record)?)),
            MOVED => Some(End::Moved),
            _ => None,
        };
        let stop = if flags & STOP != 0 { Some(integer(record)?) } else { None };
        let bytes = if flags & BYTES != 0 { run(record)? } else { &[] };
        Ok(Self { stream, bytes, end, stop })
    }

    /// Says in this frame, which is whole and has said of no end yet, that the stream is finished.
    pub fn finish(frame: &mut [u8]) {
        frame[0] |= FINISHED;
    }
}

/// What the first record of a relayed stream says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The lane of this number.
    Lane(u64),
    /// All of one direction of a path stream, which has moved off its lane.
    Part {
        /// The lane: twice its number, and one more if the end that accepted the circuit has opened it.
        lane: u64,
        /// The path stream.
        stream: u64,
    },
}

impl Head {
    /// The record's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match *self {
            Head::Lane(lane) => {
                out.push(0);
                varint::put(&mut out, lane);
            }
            Head::Part { lane, stream } => {
                out.push(1);
                [lane, stream].into_iter().for_each(|value| varint::put(&mut out, value));
            }
        }
        out
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`Broken`]: nobody writes that.
    pub fn read(mut record: &[u8]) -> Result<Self, Broken> {
        let record = &mut record;
        let head = match record.split_off_first() {
            Some(0) => Head::Lane(integer(record)?),
            Some(1) => Head::Part { lane: integer(record)?, stream: integer(record)? },
            Some(kind) => return Err(Broken::Kind(*kind)),
            None => return Err(Broken::Cut),
        };
        if record.is_empty() { Ok(head) } else { Err(Broken::Cut) }
    }
}

fn integer(record: &mut &[u8]) -> Result<u64, Broken> {
    let (value, length) = varint::get(record).ok().flatten().ok_or(Broken::Cut)?;
    *record = &record[length..];
    Ok(value)
}

fn run<'a>(record: &mut &'a [u8]) -> Result<&'a [u8], Broken> {
    let length = integer(record)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length == 0 || length > limits::LANE_STREAM_BYTES {
        return Err(Broken::Length(length));
    }
    record.split_off(..length).ok_or(Broken::Cut)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(frame: Frame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.put(&mut out);
        out
    }

    #[test]
    fn the_bytes_are_those_of_the_protocols_page() {
        let written = [
            put(Frame { stream: 3, bytes: b"hi", end: Some(End::Finished), stop: None }),
            put(Frame { stream: 300, end: Some(End::Reset(3)), stop: Some(0), ..Frame::default() }),
            put(Frame { stream: 4, end: Some(End::Moved), ..Frame::default() }),
            Head::Lane(2).bytes(),
            Head::Part { lane: 5, stream: 4 }.bytes(),
        ];
        let (_, section) = include_str!("../../../guide/protocol.md").split_once("\"hi\" and the end of path stream 3").unwrap();
        let block = section.split("```").nth(1).unwrap();
        let hex = |line: &str| line.split(' ').map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<u8>>();
        assert_eq!(block.lines().skip(1).map(hex).collect::<Vec<_>>(), written);
    }

    #[test]
    fn a_frame_that_was_written_can_still_say_that_the_stream_is_finished() {
        let mut frame = put(Frame { stream: 3, bytes: b"hi", ..Frame::default() });
        Frame::finish(&mut frame);
        assert_eq!(frame, b"\x03\x03\x02hi");
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        let take = |mut bytes: &[u8]| Frame::take(&mut bytes).map(|_| ());
        for flags in [0u8, 6, 10, 12, 14, 32, 64, 128, 255] {
            assert_eq!(take(&[flags, 1, 1, 1, 1, 1]), Err(Broken::Flags(flags)));
        }
        assert_eq!(take(&[BYTES, 1, 0]), Err(Broken::Length(0)));
        assert_eq!(take(&[BYTES, 1, 0x80, 0, 0x40, 1]), Err(Broken::Length(16_385)));
        assert_eq!(take(&[BYTES, 1, 0xff, 255, 255, 255, 255, 255, 255, 255]), Err(Broken::Length((1 << 62) - 1)));
        assert_eq!(take(&[BYTES, 1, 2, 1]), Err(Broken::Cut));
        assert_eq!(take(&[FINISHED, 0x40, 1]), Err(Broken::Cut), "longer than it need be");
        assert_eq!(Head::read(&[2]), Err(Broken::Kind(2)));
        assert_eq!(Head::read(&[0, 1, 1]), Err(Broken::Cut));
        assert_eq!(Head::read(&[]), Err(Broken::Cut));
    }

    fn ends() -> impl Strategy<Value = Option<End>> {
        let reset = (0..=varint::MAX).prop_map(|code| Some(End::Reset(code)));
        prop_oneof![Just(None), Just(Some(End::Finished)), Just(Some(End::Moved)), reset]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            stream in 0..=varint::MAX, bytes in prop::collection::vec(any::<u8>(), 0..50), end in ends(),
            stop in prop::option::of(0..=varint::MAX), more in prop::collection::vec(any::<u8>(), 0..5),
        ) {
            let frame = Frame { stream, bytes: &bytes, end, stop };
            prop_assume!(!bytes.is_empty() || end.is_some() || stop.is_some());
            let mut out = put(frame);
            let whole = out.len();
            prop_assert!(whole <= Frame::HEAD_BYTES + bytes.len());
            out.extend_from_slice(&more);
            let mut left = &out[..];
            prop_assert_eq!(Frame::take(&mut left).unwrap(), frame);
            prop_assert_eq!(left, &more[..]);
            for cut in 0..whole {
                prop_assert!(Frame::take(&mut &out[..cut]).is_err());
            }
        }

        #[test]
        fn noise_is_read_without_harm(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut left = &noise[..];
            while !left.is_empty() && Frame::take(&mut left).is_ok() {}
            let _ = Head::read(&noise);
        }
    }
}
