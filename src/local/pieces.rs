//! Pieces on a stream of bytes: a head of JSON and bytes as they are, for what would be wasted on lines. A frame each, with the length of the
//! head before it; both directions.

use std::fmt::Display;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::failure::{Cause, Failure};
use super::lines::parse;
use crate::proto::frame::Frames;
use crate::proto::limits;
use crate::proto::status::Code;
use crate::proto::varint;

/// Largest piece, in bytes: a chunk, and what is said of it.
pub const PIECE_BYTES: usize = limits::CHUNK_BYTES + 64 * 1024;

/// Appends a piece.
pub fn put_piece<T: Serialize>(out: &mut Vec<u8>, head: &T, body: &[u8]) {
    let head = serde_json::to_vec(head).expect("our own values are text, numbers and lists");
    let mut length = Vec::with_capacity(varint::MAX_LEN);
    varint::put(&mut length, head.len() as u64);
    varint::put(out, (length.len() + head.len() + body.len()) as u64);
    [&length, &head, body].into_iter().for_each(|part| out.extend_from_slice(part));
}

/// Cuts a stream of bytes into pieces.
#[derive(Debug)]
pub struct Pieces<S> {
    stream: S,
    frames: Frames,
}

impl<S, E: Display> Pieces<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// The pieces of this stream.
    pub fn new(stream: S) -> Self {
        Self { stream, frames: Frames::new(PIECE_BYTES) }
    }

    /// The next piece; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// [`Failure`]: the stream broke, or this is no piece of that kind.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Bytes)>, Failure> {
        loop {
            if let Some(frame) = self.frames.next_frame().map_err(Failure::usage)? {
                return split(frame).map(Some);
            }
            match self.stream.next().await {
                Some(Ok(bytes)) => self.frames.push(bytes),
                Some(Err(error)) => {
                    return Err(Failure::new(Cause::Local, Code::Unavailable, format!("the stream broke: {error}")));
                }
                None => {
                    self.frames.end().map_err(Failure::usage)?;
                    return Ok(None);
                }
            }
        }
    }
}

fn split<T: DeserializeOwned>(mut frame: Bytes) -> Result<(T, Bytes), Failure> {
    let wrong = || Failure::usage("a piece is the length of its head, its head as JSON, and bytes");
    let (length, taken) = varint::get(&frame).ok().flatten().ok_or_else(wrong)?;
    frame.advance(taken);
    let length = usize::try_from(length).ok().filter(|length| *length <= frame.len()).ok_or_else(wrong)?;
    let head = parse(&frame.split_to(length))?;
    Ok((head, frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_read_as_they_were_put_however_they_arrive() {
        let mut all = Vec::new();
        put_piece(&mut all, &"one", b"\x00\xff\n");
        put_piece(&mut all, &"two", b"");
        for size in [1, 3, 100] {
            let parts: Vec<Result<Bytes, String>> = all.chunks(size).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
            let mut pieces = Pieces::new(futures_util::stream::iter(parts));
            assert_eq!(pieces.next().await.unwrap(), Some(("one".to_owned(), Bytes::from_static(b"\x00\xff\n"))));
            assert_eq!(pieces.next().await.unwrap(), Some(("two".to_owned(), Bytes::new())));
            assert_eq!(pieces.next::<String>().await.unwrap(), None);
        }
        for bad in [&b"\x02\x05x"[..], b"\x01", b"\x02\x01{"] {
            let mut pieces = Pieces::new(futures_util::stream::iter([Ok::<_, String>(Bytes::copy_from_slice(bad))]));
            assert!(pieces.next::<String>().await.is_err(), "{bad:?}");
        }
    }
}
