//! JSON Lines on a stream of bytes: cut from what comes, with a bound, and made for what goes. It knows no HTTP and no meaning
//! of a line, except for the messages of calls, which both directions of many routes have in common.

use std::fmt::Display;

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::failure::{Cause, Failure};
use crate::proto::limits;
use crate::proto::status::{Code, Status};

/// Longest line, in bytes: the largest body in base64, and what stands around it.
pub const LINE_BYTES: usize = limits::BODY_BYTES / 3 * 4 + 64 * 1024;

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub struct Lines<S> {
    stream: S,
    buffer: BytesMut,
    /// Bytes of the buffer known to hold no line end.
    searched: usize,
    ended: bool,
}

impl<S, E: Display> Lines<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// The lines of this stream.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next line that is not empty, without its end; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// [`Failure`]: the stream broke, or a line is longer than [`LINE_BYTES`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(line) = self.cut() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > LINE_BYTES {
                return Err(Failure::usage(format!("a line has at most {LINE_BYTES} bytes")));
            }
            match self.stream.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    return Err(Failure::new(Cause::Local, Code::Unavailable, format!("the stream broke: {error}")));
                }
                None => self.ended = true,
            }
        }
    }

    /// The next line as a value; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// As [`Lines::next`], and for a line that is not such a value.
    pub async fn parse<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        self.next().await?.map(|line| parse(&line)).transpose()
    }

    fn cut(&mut self) -> Option<Bytes> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| at + self.searched);
        match end {
            Some(end) => {
                self.searched = 0;
                let mut line = self.buffer.split_to(end + 1);
                line.truncate(end);
                Some(line.freeze())
            }
            None if self.ended && !self.buffer.is_empty() => {
                self.searched = 0;
                Some(self.buffer.split().freeze())
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }
}

/// Reads a value of ours from JSON.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`], which says where it is wrong.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| Failure::usage(format!("this is not the JSON expected here: {error}")))
}

/// A value as a line, with its end.
pub fn line<T: Serialize>(value: &T) -> Bytes {
    let mut json = serde_json::to_vec(value).expect("our own values are text, numbers, lists and JSON");
    json.push(b'\n');
    json.into()
}

/// A line of a call, in either direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallLine {
    /// A message that is JSON.
    Message(Box<RawValue>),
    /// A message that is not, in base64 (RFC 4648, section 4).
    Raw(String),
    /// How a call ended, from the callee. `OK` comes after the last message.
    Status(StatusLine),
    /// Why there is nothing more, from this node.
    Error(Failure),
    /// The caller has sent all its messages, and still waits.
    End(bool),
    /// The caller gave up, or its deadline passed.
    Cancelled(bool),
}

/// A status as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusLine {
    /// gRPC's name of the code: `OK`, `NOT_FOUND`, ….
    pub code: String,
    /// What happened, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl CallLine {
    /// A message: as JSON if it is that, on one line; else in base64.
    pub fn message(body: &[u8]) -> Self {
        match json(body) {
            Some(json) => Self::Message(json),
            None => Self::raw(body),
        }
    }

    /// A message of bytes that nobody looks into.
    pub fn raw(body: &[u8]) -> Self {
        Self::Raw(BASE64.encode(body))
    }

    /// The end of a call that went well.
    pub fn ok() -> Self {
        Self::Status(Status::ok().into())
    }

    /// The body of a message.
    ///
    /// # Errors
    /// [`Failure`]: another line, or no base64.
    pub fn into_body(self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Message(json) => Ok(Box::<str>::from(json).into_boxed_bytes().into_vec()),
            Self::Raw(text) => {
                BASE64.decode(text.as_bytes()).map_err(|error| Failure::usage(format!("raw is base64 with padding: {error}")))
            }
            _ => Err(Failure::usage("a message is expected here: {\"message\":…} or {\"raw\":\"base64\"}")),
        }
    }
}

/// The JSON a body holds, on one line: no line end can be inside a string, so each is a space as good.
pub fn json(body: &[u8]) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let text = if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ") } else { text.to_owned() };
    RawValue::from_string(text).ok()
}

impl From<Status> for StatusLine {
    fn from(status: Status) -> Self {
        Self { code: status.code.name().to_owned(), message: status.message }
    }
}

impl TryFrom<StatusLine> for Status {
    type Error = Failure;

    fn try_from(line: StatusLine) -> Result<Self, Failure> {
        let known = Code::ALL.iter().find(|code| code.name() == line.code);
        let code = known.ok_or_else(|| Failure::usage(format!("{:?} is no status code; they are gRPC's names", line.code)))?;
        Ok(Status::new(*code, line.message))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    async fn lines(pieces: &[&'static str]) -> Vec<String> {
        let pieces: Vec<Result<Bytes, Failure>> = pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        let mut lines = Lines::new(stream::iter(pieces));
        let mut cut = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            cut.push(String::from_utf8(line.to_vec()).unwrap());
        }
        cut
    }

    #[tokio::test]
    async fn lines_are_cut_wherever_the_pieces_end() {
        assert_eq!(lines(&["ab\ncd", "ef\n", "\n \n", "g"]).await, ["ab", "cdef", "g"]);
        assert_eq!(lines(&["a", "b", "\n"]).await, ["ab"]);
        assert!(lines(&[]).await.is_empty());
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let mut lines = Lines::new(stream::repeat_with(|| Ok::<_, Failure>(piece.clone())));
        assert_eq!(lines.next().await.unwrap_err().cause, Cause::Usage);
    }

    #[test]
    fn json_over_several_lines_becomes_one_line_and_keeps_its_digits() {
        let CallLine::Message(json) = CallLine::message(b"{\n \"a\": 1.10,\r\n \"b\": 123456789012345678901234567890 }\n") else {
            panic!("it is JSON")
        };
        assert_eq!(json.get(), "{  \"a\": 1.10,   \"b\": 123456789012345678901234567890 }");
    }

    #[test]
    fn bytes_that_are_no_json_come_back_as_they_were() {
        for body in [&b"\xff\x00"[..], b"", b"not json", b"1 2"] {
            let json = serde_json::to_string(&CallLine::message(body)).unwrap();
            let line: CallLine = serde_json::from_str(&json).unwrap();
            assert_eq!(line.into_body().unwrap(), body, "{json}");
        }
        assert!(CallLine::Raw("!".into()).into_body().is_err());
        assert!(CallLine::ok().into_body().is_err());
    }

    #[test]
    fn statuses_are_written_with_grpcs_names() {
        for code in Code::ALL {
            let status = Status::new(*code, "why");
            assert_eq!(Status::try_from(StatusLine::from(status.clone())).unwrap(), status);
        }
        assert!(Status::try_from(StatusLine { code: "FINE".into(), message: String::new() }).is_err());
    }
}
