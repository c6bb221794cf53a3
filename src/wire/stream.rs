//! The opener's side of a stream on which something is asked of wires.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::WireError;
use crate::proto::close::StreamCode;
use crate::proto::codec::{self, Message};
use crate::proto::frame::{Frames, put_message};
use crate::proto::status::{Code, Status};
use crate::proto::stream::Purpose;
use crate::proto::wire::{Answer, Ask};
use crate::session::{Attached, Session, StreamError, StreamRecv, StreamSend};

/// A host that broke off is asked again so often, after ever longer times, before it is given up.
pub(super) const TRIES: u32 = 6;

/// The time before the next try, after so many. Cancel-safe.
pub(super) async fn pause(tries: u32) {
    sleep(Duration::from_millis(50 << tries.min(6))).await;
}

/// A stream on which something was asked, and the first answer.
pub(super) struct Asked {
    pub send: StreamSend,
    pub answers: Answers,
    pub answer: Answer,
}

/// What comes from the host, as frames.
#[derive(Debug)]
pub(super) struct Answers {
    pub recv: StreamRecv,
    pub frames: Frames,
}

/// Why nothing more comes.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    /// The session is over, or had no path when the stream was to be opened: another one may do.
    Session,
    /// The host refuses.
    Refused(Status),
    /// The host broke off without a word.
    Off(String),
    /// The host said what cannot be.
    Nonsense(String),
}

/// Asks, over the session as soon as it is up.
pub(super) async fn ask(session: &Session, deadline: Option<Instant>, ask: &Ask) -> Result<Asked, WireError> {
    let mut lost = None;
    loop {
        let attached =
            session.attached_by(deadline, lost.as_ref(), false).await.map_err(|error| WireError::NotSent(error.to_string()))?;
        match ask_on(&attached, ask).await {
            Ok(asked) => return Ok(asked),
            Err(Broken::Session) => lost = Some(attached),
            Err(broken) => return Err(broken.into()),
        }
    }
}

/// Asks on this path, once.
pub(super) async fn ask_on(attached: &Arc<Attached>, ask: &Ask) -> Result<Asked, Broken> {
    let (mut send, recv) = attached.open().await?;
    let mut buf = Vec::with_capacity(256);
    send.begin(&mut buf);
    buf.push(Purpose::Wire as u8);
    put_message(&mut buf, ask);
    send.write(buf.into()).await?;
    let mut answers = Answers { recv, frames: Frames::new(Answer::LIMIT) };
    let answer = answers.next().await?;
    Ok(Asked { send, answers, answer })
}

impl Answers {
    /// The next answer. Cancel-safe.
    pub async fn next(&mut self) -> Result<Answer, Broken> {
        loop {
            let frame = self.frames.next_frame().map_err(|error| Broken::Nonsense(error.to_string()))?;
            if let Some(frame) = frame {
                return match codec::decode(&frame) {
                    Ok(Answer::Refused(status)) => Err(Broken::Refused(status)),
                    Ok(answer) => Ok(answer),
                    Err(error) => Err(Broken::Nonsense(error.to_string())),
                };
            }
            let bytes = self.recv.read().await?;
            self.frames.push(bytes.ok_or_else(|| Broken::Off("the host ended the stream".into()))?);
        }
    }
}

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Session(_) | StreamError::Path(_) => Broken::Session,
            StreamError::Reset(code) | StreamError::Stopped(code) if code == StreamCode::Limit as u64 => Broken::Refused(
                Status::new(Code::ResourceExhausted, "this session has too many streams of that kind at its host"),
            ),
            StreamError::Reset(code) | StreamError::Stopped(code) if code == StreamCode::Kind as u64 => {
                Broken::Refused(Status::new(Code::Unimplemented, "the peer hosts no wires"))
            }
            other => Broken::Off(other.to_string()),
        }
    }
}

impl From<Broken> for WireError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Session => WireError::NotSent("the session ended".into()),
            Broken::Refused(status) => WireError::Refused(status),
            Broken::Off(why) => WireError::Unanswered(why),
            Broken::Nonsense(why) => WireError::Nonsense(why),
        }
    }
}
