//! [`Subscription`]: the chunks of a wire as they come, through as many sessions as it takes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::error::SubscribeError;
use super::handle::{At, Wire};
use super::log::{Next, Reader};
use super::stream::{Answers, Asked, Broken, TRIES, ask_on, pause};
use crate::proto::frame::Frames;
use crate::proto::wire::{Answer, Ask, CHUNK_FRAME_BYTES, Chunk, Cursor, From, Record};
use crate::session::{Attached, Session, StreamSend, WaitError};

/// About how much is taken at a time from a wire of this node.
const BATCH_BYTES: usize = 64 * 1024;

/// A subscription to a wire. It goes on by itself after the loss of paths and of sessions: with the chunk after the last one it gave
/// out. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    wire: Wire,
    /// Where it goes on.
    from: From,
    /// The last chunk that was given out, or is reported as lost.
    reached: Cursor,
    /// The same, of what was given out already.
    cursor: Cursor,
    source: Source,
    /// Told before what comes next.
    gaps: VecDeque<Delivery>,
    frames: Frames,
    over: Option<SubscribeError>,
    /// How often the host broke off without a word, since it last gave something.
    tries: u32,
}

/// What a subscription gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// The next chunk.
    Chunk {
        /// Its number: one more than the last one's, unless a gap was told of in between.
        seq: u64,
        /// It.
        chunk: Chunk,
    },
    /// Chunks that this subscription will never get: the wire did not keep them.
    Gap {
        /// The epoch they belong to.
        epoch: u64,
        /// The first one.
        from: u64,
        /// The last one; none if nobody knows any more how many there were: that log is gone, and another one has begun.
        to: Option<u64>,
    },
}

#[derive(Debug)]
enum Source {
    None,
    Here { reader: Box<Reader>, pieces: VecDeque<Bytes>, read: u64 },
    There { _send: Box<StreamSend>, answers: Box<Answers> },
}

impl Subscription {
    pub(super) async fn begin(wire: Wire, from: From) -> Result<Self, SubscribeError> {
        // A cursor that was given is where it has got to.
        let cursor = match from {
            From::After(cursor) => cursor,
            _ => Cursor { epoch: 0, seq: 0 },
        };
        let (source, frames) = (Source::None, Frames::new(CHUNK_FRAME_BYTES));
        let mut subscription =
            Self { wire, from, reached: cursor, cursor, source, gaps: VecDeque::new(), frames, over: None, tries: 0 };
        while matches!(subscription.source, Source::None) {
            subscription.resume().await?;
        }
        if subscription.gaps.is_empty() {
            subscription.cursor = subscription.reached;
        }
        Ok(subscription)
    }

    /// The wire.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Where it has got to: subscribing [after](From::After) it goes on with the next chunk.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next chunk, or what is lost in its place; waits for it, and for the session if that is down. Cancel-safe.
    ///
    /// # Errors
    /// [`SubscribeError`]: it is over, and every further call says so. Only after [`SubscribeError::Late`] it can be asked again.
    pub async fn next(&mut self) -> Result<Delivery, SubscribeError> {
        loop {
            if let Some(delivery) = self.ready()? {
                return Ok(delivery);
            }
            self.fetch().await?;
        }
    }

    /// What can be given out without waiting.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub fn ready(&mut self) -> Result<Option<Delivery>, SubscribeError> {
        let delivery = self.take()?;
        match &delivery {
            Some(Delivery::Chunk { .. } | Delivery::Gap { to: Some(_), .. }) => self.cursor = self.reached,
            Some(Delivery::Gap { to: None, .. }) | None => {}
        }
        Ok(delivery)
    }

    fn take(&mut self) -> Result<Option<Delivery>, SubscribeError> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        if let Some(gap) = self.gaps.pop_front() {
            return Ok(Some(self.gap(gap)));
        }
        loop {
            match self.cut() {
                Ok(Some(frame)) => return self.record(frame).map(Some),
                Ok(None) => match &mut self.source {
                    Source::Here { pieces, .. } => match pieces.pop_front() {
                        Some(piece) => self.frames.push(piece),
                        None => return Ok(None),
                    },
                    _ => return Ok(None),
                },
                Err(why) => return Err(self.end(SubscribeError::Broken(why))),
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Bytes>, String> {
        let frames = match &mut self.source {
            Source::There { answers, .. } => &mut answers.frames,
            Source::Here { .. } => &mut self.frames,
            Source::None => return Ok(None),
        };
        frames.next_frame().map_err(|error| error.to_string())
    }

    fn record(&mut self, frame: Bytes) -> Result<Delivery, SubscribeError> {
        self.tries = 0;
        let Some(next) = self.reached.seq.checked_add(1) else {
            return Err(self.end(SubscribeError::Broken("a number beyond all numbers".into())));
        };
        match Record::parse(frame) {
            Ok(Record::Chunk(chunk)) => {
                self.reached.seq = next;
                Ok(Delivery::Chunk { seq: next, chunk })
            }
            Ok(Record::Gap { from, to }) if from == next && to < u64::MAX => {
                self.reached.seq = to;
                Ok(Delivery::Gap { epoch: self.reached.epoch, from, to: Some(to) })
            }
            Ok(Record::Gap { from, to }) => {
                Err(self.end(SubscribeError::Broken(format!("{from} to {to} are lost, where {next} is next"))))
            }
            Ok(Record::End(status)) => Err(self.end(SubscribeError::Refused(status))),
            Err(error) => Err(self.end(SubscribeError::Broken(error.to_string()))),
        }
    }

    /// A gap is told of: the cursor is behind it.
    fn gap(&mut self, gap: Delivery) -> Delivery {
        if let Delivery::Gap { epoch, to: Some(to), .. } = gap {
            self.reached = Cursor { epoch, seq: to };
        }
        gap
    }

    fn end(&mut self, why: SubscribeError) -> SubscribeError {
        self.source = Source::None;
        self.over = Some(why.clone());
        why
    }

    /// Gets more, from wherever it comes.
    async fn fetch(&mut self) -> Result<(), SubscribeError> {
        match &mut self.source {
            Source::None => self.resume().await,
            Source::Here { reader, pieces, read } => {
                reader.took(std::mem::take(read));
                match reader.next(BATCH_BYTES).await {
                    Next::Chunks(more, count) => {
                        *read = count;
                        pieces.extend(more);
                    }
                    Next::Gap { from, to } => {
                        let epoch = self.reached.epoch;
                        self.gaps.push_back(Delivery::Gap { epoch, from, to: Some(to) });
                    }
                    Next::Over(status) => return Err(self.end(SubscribeError::Refused(status))),
                }
                Ok(())
            }
            Source::There { answers, .. } => match answers.recv.read().await.map_err(Broken::from) {
                Ok(Some(bytes)) => {
                    answers.frames.push(bytes);
                    Ok(())
                }
                Ok(None) => self.broke_off("it ended without a word".into()),
                Err(Broken::Off(why)) => self.broke_off(why),
                Err(Broken::Session) => {
                    self.again();
                    Ok(())
                }
                Err(broken) => Err(self.end(broken.into())),
            },
        }
    }

    /// The stream is over, and the subscription is not.
    fn again(&mut self) {
        self.source = Source::None;
        // Until the host has begun it is asked what it was asked first.
        if self.reached.epoch != 0 {
            self.from = From::After(self.reached);
        }
    }

    /// A host that goes down may be heard to break off before the session is seen to end: it is asked again.
    fn broke_off(&mut self, why: String) -> Result<(), SubscribeError> {
        if self.tries >= TRIES {
            return Err(self.end(SubscribeError::Broken(why)));
        }
        self.tries += 1;
        self.again();
        Ok(())
    }

    /// Begins, or goes on over the next session.
    async fn resume(&mut self) -> Result<(), SubscribeError> {
        let begun = match self.wire.at().clone() {
            At::Here(wires) => {
                let log = wires.find_or_make(self.wire.name(), || true);
                log.and_then(|log| Ok((log.epoch(), log.read(self.from)?))).map_err(SubscribeError::Refused).map(
                    |(epoch, reader)| {
                        let next = reader.at();
                        (Source::Here { reader: Box::new(reader), pieces: VecDeque::new(), read: 0 }, epoch, next)
                    },
                )
            }
            At::There(session) => {
                if self.tries > 0 {
                    pause(self.tries).await;
                }
                match self.ask(&session).await {
                    Err(Unbegun::Off(why)) => return self.broke_off(why),
                    Err(Unbegun::Late(why)) => return Err(SubscribeError::Late(why)),
                    Err(Unbegun::Over(error)) => Err(error),
                    Ok(begun) => Ok(begun),
                }
            }
        };
        match begun {
            Ok((source, epoch, next)) => {
                self.source = source;
                self.begun(epoch, next)
            }
            Err(error) => Err(self.end(error)),
        }
    }

    async fn ask(&self, session: &Session) -> Result<(Source, u64, u64), Unbegun> {
        let ask = Ask::Subscribe { name: self.wire.name().to_owned(), from: self.from };
        let deadline = self.wire.deadline();
        let mut lost: Option<Arc<Attached>> = None;
        loop {
            let attached = session.attached_by(deadline, lost.as_ref(), false).await.map_err(|error| match error {
                WaitError::Closed => Unbegun::Over(SubscribeError::Closed(error.to_string())),
                error => Unbegun::Late(error.to_string()),
            })?;
            match ask_on(&attached, &ask).await {
                Ok(Asked { send, mut answers, answer: Answer::Begin { epoch, next } }) => {
                    answers.frames.set_limit(CHUNK_FRAME_BYTES);
                    return Ok((Source::There { _send: Box::new(send), answers: Box::new(answers) }, epoch, next));
                }
                Ok(Asked { answer, .. }) => {
                    return Err(Unbegun::Over(SubscribeError::Broken(format!("{answer:?} is no answer to this"))));
                }
                Err(Broken::Session) => lost = Some(attached),
                Err(Broken::Off(why)) => return Err(Unbegun::Off(why)),
                Err(broken) => return Err(Unbegun::Over(broken.into())),
            }
        }
    }

    /// The host begins here. What lies between that and where this has got to is lost.
    fn begun(&mut self, epoch: u64, next: u64) -> Result<(), SubscribeError> {
        match self.from {
            From::After(cursor) if cursor.epoch == epoch && next.checked_sub(1) != Some(cursor.seq) => {
                return Err(self.end(SubscribeError::Broken(format!("it goes on with {next}, after {}", cursor.seq))));
            }
            From::After(cursor) if cursor.epoch != epoch => {
                self.gaps.push_back(Delivery::Gap { epoch: cursor.epoch, from: cursor.seq.saturating_add(1), to: None });
                if next > 1 {
                    self.gaps.push_back(Delivery::Gap { epoch, from: 1, to: Some(next - 1) });
                }
            }
            From::Seq(seq) if seq != next => {
                return Err(self.end(SubscribeError::Broken(format!("it begins with {next}, asked for {seq}"))));
            }
            _ => {}
        }
        self.reached = Cursor { epoch, seq: next - 1 };
        Ok(())
    }
}

/// Why a subscription has not begun.
enum Unbegun {
    /// It never will.
    Over(SubscribeError),
    /// The host broke off.
    Off(String),
    /// The session did not come up in time.
    Late(String),
}

impl std::convert::From<Broken> for SubscribeError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused(status) => SubscribeError::Refused(status),
            Broken::Session => SubscribeError::Broken("the session ended".into()),
            Broken::Off(why) | Broken::Nonsense(why) => SubscribeError::Broken(why),
        }
    }
}
