//! Frames: a length (a [`varint`]) and as many bytes. A stream of ours that carries messages carries frames.
//! [`Frames`] cuts what arrives back into frames. It does no input or output and never looks inside a frame.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use super::codec::{self, Message};
use super::varint::{self, VarintError};

/// Why bytes cannot be cut into frames. The stream they came from is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is longer than this stream may carry. Nothing of it was kept.
    #[error("a frame of {length} bytes where {limit} is the most")]
    TooLong {
        /// The length that was announced, in bytes.
        length: u64,
        /// The most that is accepted, in bytes.
        limit: usize,
    },
    /// The length is not written in its shortest form.
    #[error("the length of a frame is {0}")]
    Length(#[from] VarintError),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
}

/// Appends `bytes` as one frame.
pub fn put_frame(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(varint::MAX_LEN + bytes.len());
    varint::put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends `message` as one frame, encoded in place.
pub fn put_message<M: Message>(out: &mut Vec<u8>, message: &M) {
    let length = codec::encoded_len(message);
    out.reserve(varint::MAX_LEN + length);
    varint::put(out, length as u64);
    codec::encode_into(message, out);
}

/// Cuts the bytes of one stream into frames.
///
/// Give it what arrives with [`push`](Self::push), then take frames with [`next_frame`](Self::next_frame) until there is none.
/// A frame that lies within one chunk is a slice of that chunk, not a copy; one that spans chunks is collected once.
/// Besides the chunk pushed last it holds at most one frame, and never more than twice what has arrived of it: an announced
/// length reserves nothing.
///
/// ```
/// use bytes::Bytes;
/// use voltmesh::proto::frame::{Frames, put_frame};
///
/// let mut stream = Vec::new();
/// put_frame(&mut stream, b"first");
/// put_frame(&mut stream, b"second");
/// let mut frames = Frames::new(64);
/// frames.push(Bytes::from(stream));
/// assert_eq!(frames.next_frame()?.as_deref(), Some(&b"first"[..]));
/// assert_eq!(frames.next_frame()?.as_deref(), Some(&b"second"[..]));
/// assert_eq!(frames.next_frame()?, None);
/// # Ok::<(), voltmesh::proto::frame::FrameError>(())
/// ```
#[derive(Debug)]
pub struct Frames {
    limit: usize,
    /// What has arrived and is not taken yet.
    rest: Bytes,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Between frames; `rest` may hold a part of a length.
    Length,
    /// Inside a frame of `length` bytes, of which `got` are here and `rest` is empty.
    Body { length: usize, got: BytesMut },
    /// Refused for good.
    Broken(FrameError),
}

impl Frames {
    /// Accepts frames of at most `limit` bytes, their length not counted.
    pub fn new(limit: usize) -> Self {
        Self { limit, rest: Bytes::new(), state: State::Length }
    }

    /// Changes the limit for the frames whose length has not been read yet.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The length of the frame that has begun to arrive and is not whole yet. Known after [`next_frame`](Self::next_frame) has
    /// returned `None`, so that room can be set aside before the rest is read.
    pub fn announced(&self) -> Option<usize> {
        match &self.state {
            State::Body { length, .. } => Some(*length),
            State::Length | State::Broken(_) => None,
        }
    }

    /// Takes in the next bytes of the stream. Pushed before [`next_frame`](Self::next_frame) has returned `None`, they are
    /// joined to what is left, which copies both.
    pub fn push(&mut self, chunk: Bytes) {
        if self.rest.is_empty() {
            self.rest = chunk;
        } else if !chunk.is_empty() {
            self.rest = [self.rest.as_ref(), chunk.as_ref()].concat().into();
        }
    }

    /// The next whole frame; `None` if more bytes are needed.
    ///
    /// # Errors
    /// See [`FrameError`]; after the first error every call returns the same one.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        match &self.state {
            State::Length => match self.length() {
                Ok(Some(length)) if length <= self.rest.len() => Ok(Some(self.rest.split_to(length))),
                Ok(Some(length)) => {
                    self.state = State::Body { length, got: BytesMut::new() };
                    Ok(self.collect())
                }
                Ok(None) => Ok(None),
                Err(error) => {
                    self.rest = Bytes::new();
                    self.state = State::Broken(error);
                    Err(error)
                }
            },
            State::Body { .. } => Ok(self.collect()),
            State::Broken(error) => Err(*error),
        }
    }

    /// The stream has ended: was that between two frames?
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if a frame was under way.
    pub fn end(&self) -> Result<(), FrameError> {
        match &self.state {
            State::Length if self.rest.is_empty() => Ok(()),
            State::Broken(error) => Err(*error),
            _ => Err(FrameError::Truncated),
        }
    }

    /// What has arrived and belongs to no frame yet, for a stream that carries something else after its frames.
    pub fn into_rest(self) -> Bytes {
        match self.state {
            State::Body { got, .. } => got.freeze(),
            _ => self.rest,
        }
    }

    /// Takes a length off the front of `rest`.
    fn length(&mut self) -> Result<Option<usize>, FrameError> {
        let Some((length, taken)) = varint::get(&self.rest)? else { return Ok(None) };
        let limit = self.limit;
        let bounded = usize::try_from(length).ok().filter(|&length| length <= limit);
        let length = bounded.ok_or(FrameError::TooLong { length, limit })?;
        self.rest.advance(taken);
        Ok(Some(length))
    }

    /// Moves what has arrived into the frame under way, and hands it out if that completes it.
    fn collect(&mut self) -> Option<Bytes> {
        let State::Body { length, got } = &mut self.state else { return None };
        let taken = self.rest.split_to(self.rest.len().min(*length - got.len()));
        got.extend_from_slice(&taken);
        if got.len() < *length {
            return None;
        }
        let frame = std::mem::take(got).freeze();
        self.state = State::Length;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(frames: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        frames.iter().for_each(|frame| put_frame(&mut out, frame));
        out
    }

    /// All frames of a stream that arrives in these chunks.
    fn cut<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Bytes>, FrameError> {
        let mut frames = Frames::new(limit);
        let mut all = Vec::new();
        for chunk in chunks {
            frames.push(Bytes::copy_from_slice(chunk));
            while let Some(frame) = frames.next_frame()? {
                all.push(frame);
            }
        }
        frames.end()?;
        Ok(all)
    }

    #[test]
    fn a_frame_is_its_length_and_its_bytes() {
        assert_eq!(stream(&[b"ab", b""]), [2, b'a', b'b', 0]);
        assert_eq!(stream(&[&[7; 64]])[..3], [0x40, 64, 7]);
    }

    #[test]
    fn a_message_is_framed_as_its_encoding_is() {
        #[derive(bincode::Encode, bincode::Decode)]
        struct Text(String);
        impl Message for Text {
            const NAME: &str = "text";
            const LIMIT: usize = 1024;
        }
        for length in [0, 62, 63, 64, 300] {
            let message = Text("x".repeat(length));
            let mut framed = Vec::new();
            put_message(&mut framed, &message);
            assert_eq!(framed, stream(&[&codec::encode(&message)]));
        }
    }

    #[test]
    fn a_frame_within_one_chunk_is_not_copied() {
        let chunk = Bytes::from(stream(&[b"first", b"second"]));
        let mut frames = Frames::new(64);
        frames.push(chunk.clone());
        for at in [1, 7] {
            let frame = frames.next_frame().unwrap().unwrap();
            assert!(std::ptr::eq(frame.as_ptr(), &chunk[at]));
        }
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_when_its_length_is_known() {
        let refused = Err(FrameError::TooLong { length: 65, limit: 64 });
        let mut frames = Frames::new(64);
        frames.push(Bytes::from_static(&[0x40]));
        assert_eq!(frames.next_frame(), Ok(None));
        frames.push(Bytes::from_static(&[65]));
        assert_eq!(frames.next_frame(), refused);
        frames.push(Bytes::from_static(&[0, 0, 0]));
        assert_eq!(frames.next_frame(), refused);
        assert_eq!(frames.end(), Err(FrameError::TooLong { length: 65, limit: 64 }));
        assert!(cut(64, [&stream(&[&[0; 64]])[..]]).is_ok());
    }

    #[test]
    fn a_length_not_in_its_shortest_form_is_refused() {
        assert!(matches!(cut(64, [&[0x40, 1, 7][..]]), Err(FrameError::Length(_))));
    }

    #[test]
    fn an_announced_length_sets_nothing_aside() {
        let mut frames = Frames::new(1 << 30);
        frames.push(Bytes::from_static(&[0xbf, 0, 0, 0, 1, 2, 3]));
        assert_eq!(frames.next_frame(), Ok(None));
        let State::Body { length: 0x3f00_0000, got } = &frames.state else { panic!("{frames:?}") };
        assert!(got.capacity() < 1024, "{}", got.capacity());
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_truncated_wherever_that_is() {
        let bytes = stream(&[&[1; 70]]);
        for end in 1..bytes.len() {
            assert_eq!(cut(100, [&bytes[..end]]), Err(FrameError::Truncated), "end at {end}");
        }
    }

    #[test]
    fn what_follows_the_frames_can_be_had() {
        let mut frames = Frames::new(8);
        frames.push(Bytes::from([&stream(&[b"head"])[..], b"body"].concat()));
        assert_eq!(frames.next_frame().unwrap().unwrap(), "head");
        assert_eq!(frames.into_rest(), "body");
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_chunked(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
            sizes in prop::collection::vec(1usize..90, 1..8),
        ) {
            let bytes = stream(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let mut sizes = sizes.iter().cycle();
            let mut rest = &bytes[..];
            let chunks = std::iter::from_fn(|| {
                let (chunk, after) = rest.split_at((*sizes.next()?).min(rest.len()));
                rest = after;
                (!chunk.is_empty()).then_some(chunk)
            });
            prop_assert_eq!(cut(200, chunks).unwrap(), frames);
        }

        #[test]
        fn pushing_ahead_changes_nothing(chunks in prop::collection::vec(prop::collection::vec(0u8..8, 0..20), 0..8)) {
            let mut ahead = Frames::new(200);
            chunks.iter().for_each(|chunk| ahead.push(Bytes::copy_from_slice(chunk)));
            let mut all = Vec::new();
            while let Some(frame) = ahead.next_frame()? {
                all.push(frame);
            }
            match cut(200, chunks.iter().map(Vec::as_slice)) {
                Ok(frames) => prop_assert_eq!(frames, all),
                Err(error) => prop_assert_eq!(ahead.end(), Err(error)),
            }
        }

        #[test]
        fn any_bytes_are_frames_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(frames) = cut(100, [&bytes[..]]) {
                prop_assert_eq!(stream(&frames.iter().map(Bytes::as_ref).collect::<Vec<_>>()), bytes);
            }
        }
    }
}
