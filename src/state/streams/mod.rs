//! The streams of a session, as they outlive its paths: which are live, how much of each has come and gone, what is kept until
//! the other side has it, and what both sides tell each other when another path takes over. Moves no bytes itself, and knows
//! neither paths nor readers: whoever does keeps what it needs with each stream, in a slot.
//!
//! - Offsets count bytes *handed to the reader*: what a path has acknowledged may be lost with it.
//! - What was sent is kept until the other side says in an attach or a [`Progress`] that it has it.
//! - The end of a direction, a reset and a stop are states, said again to each path until they are known.
//! - The *opener* decides when a stream is over, and says so; until then the accepter keeps its answer. A stream that the opener
//!   does not list in an attach is over. What comes for a stream that is over is refused, never executed.
//!
//! Without resumption (`keeps` is false) nothing is kept or acknowledged, and a stream is over with its two halves.

use std::collections::hash_map::IntoValues;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use super::budget::Budget;
use super::id_map::IdMap;
use super::ids::{Accepted, Accepter, Allocator, IdError, Side};
use crate::proto::control::{LiveStream, Progress, Run};
use crate::proto::limits;
use crate::proto::stream::Head;

mod sending;

use sending::Sending;

/// The peer said something of a stream that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// It has more than was sent.
    #[error("it acknowledges more than was sent")]
    NeverSent,
    /// It would leave bytes out.
    #[error("it goes on past what has arrived")]
    LeavesOut,
    /// It asks for what it has acknowledged.
    #[error("it asks for bytes that it had acknowledged")]
    TakesBack,
    /// An id that cannot be.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// Why a half of a stream can do no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The stream is over, or this half was ended here.
    Closed,
    /// The peer reads no more.
    Stopped(u64),
    /// The peer gave up sending.
    Reset(u64),
}

/// When [`Streams::progress`] is to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "somebody has to ask for progress in time"]
pub enum Due {
    /// It need not be, or somebody was told already.
    Nothing,
    /// Within [`limits::PROGRESS_WITHIN`].
    Soon,
    /// Now.
    Now,
}

/// What a path that carries a stream on sends next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// These bytes.
    Bytes(Bytes),
    /// The end.
    Finish,
    /// Nothing for now: whoever writes to the stream goes on from here. Nor if it was given up: then the peer is told so beside the
    /// path stream, where a reset could overtake the head that says which stream it is.
    Nothing,
    /// The stream is over.
    Over,
}

/// The streams of one session. `S` is what its user keeps with each.
#[derive(Debug)]
pub struct Streams<S> {
    side: Side,
    keeps: bool,
    budget: Arc<Budget>,
    /// The number of the attachment that sends.
    attach: u64,
    allocator: Allocator,
    accepter: Accepter,
    live: IdMap<Stream<S>>,
    /// Resets and stops of streams of the peer's that have not come yet: what is said beside a path stream may overtake it.
    early: IdMap<LiveStream>,
    /// Streams of ours that are over, and the peer does not know.
    over: Vec<u64>,
    /// Streams of which more has come than the peer knows.
    news: Vec<u64>,
    /// Bytes that came since the peer was told.
    untold: usize,
    asked: Due,
}

#[derive(Debug)]
struct Stream<S> {
    sending: Sending,
    state: Sends,
    /// What the peer said it has.
    acked: u64,
    /// How far a path that carries this on has got: not to be forgotten before it is there.
    carried: u64,
    received: u64,
    ended: bool,
    /// The peer has read to the end.
    read: bool,
    stop: Option<u8>,
    reset: Option<u64>,
    news: bool,
    halves: u8,
    slot: S,
}

/// What is left of a session that is over: what was kept with each stream, one after the other. With each the bytes of that stream are given
/// back, and those of the others when this is dropped.
#[derive(Debug)]
pub struct Left<S> {
    live: IntoValues<u64, Stream<S>>,
    budget: Arc<Budget>,
}

impl<S> Iterator for Left<S> {
    type Item = S;

    fn next(&mut self) -> Option<S> {
        let mut stream = self.live.next()?;
        stream.sending.clear(&self.budget);
        Some(stream.slot)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.live.size_hint()
    }
}

impl<S> ExactSizeIterator for Left<S> {}

impl<S> Drop for Left<S> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    Open,
    Finished,
    Reset(u8),
    Stopped(u64),
}

/// The number an attach list has for "from here on nothing holds back what is acknowledged".
const FREE: u64 = u64::MAX;

impl<S: Default> Streams<S> {
    /// No streams yet. `keeps`: whether they are to outlive a path. What is kept beyond a little of each comes out of the budget.
    pub fn new(side: Side, keeps: bool, budget: Arc<Budget>) -> Self {
        Self {
            side,
            keeps,
            budget,
            attach: 0,
            allocator: Allocator::new(side),
            accepter: Accepter::new(side.peer()),
            live: IdMap::default(),
            early: IdMap::default(),
            over: Vec::new(),
            news: Vec::new(),
            untold: 0,
            asked: Due::Nothing,
        }
    }

    /// Whether streams outlive a path.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// The number of the attachment that sends; 0 before the first.
    pub fn attach(&self) -> u64 {
        self.attach
    }

    /// How many streams are live, of both sides.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// How many of the peer's streams are live.
    pub fn accepted(&self) -> usize {
        self.accepter.live()
    }

    /// What is kept with a stream, while it is live.
    pub fn slot(&mut self, id: u64) -> Option<&mut S> {
        self.live.get_mut(&id).map(|stream| &mut stream.slot)
    }

    /// Opens a stream: its id.
    pub fn open(&mut self) -> u64 {
        let id = self.allocator.take();
        self.live.insert(id, Stream::new());
        id
    }

    /// A stream of the peer's arrived under this id.
    ///
    /// # Errors
    /// See [`IdError`]: it is not to be executed.
    pub fn accept(&mut self, id: u64) -> Result<Accepted, IdError> {
        let accepted = self.accepter.accept(id)?;
        if accepted == Accepted::Fresh {
            let mut stream = Stream::new();
            if let Some(early) = self.early.remove(&id) {
                stream.ends(&early, &self.budget);
            }
            self.live.insert(id, stream);
        }
        Ok(accepted)
    }

    /// Whether a stream of the peer's that has not come yet was given up already: nothing of it may come any more.
    pub fn is_given_up(&self, id: u64) -> bool {
        self.early.get(&id).is_some_and(|early| early.reset.is_some())
    }

    /// A stream of the peer's ended before its id was here.
    pub fn ended_unheard(&mut self) {
        self.accepter.unheard();
    }

    /// Bytes to send, and whether they are the last: how many are taken, and may be sent. The others, and the end, have to wait
    /// until the peer acknowledges some.
    ///
    /// # Errors
    /// [`Ended`]: nothing more can be sent.
    pub fn push(&mut self, id: u64, bytes: &Bytes, last: bool) -> Result<usize, Ended> {
        let stream = self.live.get_mut(&id).ok_or(Ended::Closed)?;
        match stream.state {
            Sends::Open => {}
            Sends::Stopped(code) => return Err(Ended::Stopped(code)),
            Sends::Finished | Sends::Reset(_) => return Err(Ended::Closed),
        }
        let taken = if self.keeps {
            stream.sending.push(bytes, &self.budget)
        } else {
            stream.sending.pass(bytes.len());
            bytes.len()
        };
        if last && taken == bytes.len() {
            stream.state = Sends::Finished;
        }
        Ok(taken)
    }

    /// Gives up sending, unless all is sent. The peer is told.
    pub fn reset(&mut self, id: u64, code: u8) -> Due {
        let Some(stream) = self.live.get_mut(&id).filter(|stream| stream.state == Sends::Open) else { return Due::Nothing };
        stream.state = Sends::Reset(code);
        stream.sending.clear(&self.budget);
        self.is_news(id)
    }

    /// The path says that the peer reads no more.
    pub fn stopped(&mut self, id: u64, code: u64) {
        if let Some(stream) = self.live.get_mut(&id) {
            stream.stopped(code, &self.budget);
        }
    }

    /// What the sending half came to.
    ///
    /// # Errors
    /// [`Ended`]: nothing more can be sent.
    pub fn sends(&self, id: u64) -> Result<(), Ended> {
        match self.live.get(&id).map(|stream| stream.state) {
            Some(Sends::Stopped(code)) => Err(Ended::Stopped(code)),
            Some(Sends::Open | Sends::Finished) => Ok(()),
            Some(Sends::Reset(_)) | None => Err(Ended::Closed),
        }
    }

    /// Whether the peer has read all that was sent, to its end. Without resumption nobody says so, and nobody has to keep anything for it.
    ///
    /// # Errors
    /// [`Ended`]: it will not.
    pub fn is_read(&self, id: u64) -> Result<bool, Ended> {
        self.sends(id)?;
        let read = |stream: &Stream<S>| stream.state == Sends::Finished && (stream.read || !self.keeps);
        Ok(self.live.get(&id).is_some_and(read))
    }

    /// How many bytes the peer has not read of what was sent, as far as it has said. Without resumption it does not: then none.
    ///
    /// # Errors
    /// [`Ended`]: it will read no more of it.
    pub fn unread(&self, id: u64) -> Result<usize, Ended> {
        self.sends(id)?;
        let of = |stream: &Stream<S>| usize::try_from(stream.sending.end() - stream.acked).unwrap_or(usize::MAX);
        Ok(self.live.get(&id).filter(|_| self.keeps).map_or(0, of))
    }

    /// Bytes were handed to the reader.
    ///
    /// # Errors
    /// [`Ended::Closed`] if the stream is over.
    pub fn received(&mut self, id: u64, bytes: usize) -> Result<Due, Ended> {
        let stream = self.live.get_mut(&id).ok_or(Ended::Closed)?;
        stream.received += bytes as u64;
        if !self.keeps {
            return Ok(Due::Nothing);
        }
        self.untold += bytes;
        Ok(self.is_news(id))
    }

    /// The reader has seen the end: the last byte, or a reset.
    pub fn ended(&mut self, id: u64) -> Due {
        match self.live.get_mut(&id) {
            Some(stream) if self.keeps => {
                stream.ended = true;
                self.is_news(id)
            }
            _ => Due::Nothing,
        }
    }

    /// Whether the peer has said that it gives up sending.
    ///
    /// # Errors
    /// [`Ended`]: nothing more comes.
    pub fn receives(&self, id: u64) -> Result<(), Ended> {
        match self.live.get(&id) {
            None => Err(Ended::Closed),
            Some(Stream { reset: Some(code), .. }) => Err(Ended::Reset(*code)),
            Some(_) => Ok(()),
        }
    }

    /// Reads no more. The peer is told.
    pub fn stop(&mut self, id: u64, code: u8) -> Due {
        match self.live.get_mut(&id) {
            Some(stream) if self.keeps && !stream.ended && stream.stop.is_none() => {
                stream.stop = Some(code);
                self.is_news(id)
            }
            _ => Due::Nothing,
        }
    }

    /// A half of a stream is needed no more. Without resumption the stream is over with the second.
    pub fn dropped(&mut self, id: u64) {
        let Some(stream) = self.live.get_mut(&id) else { return };
        stream.halves = stream.halves.saturating_sub(1);
        if stream.halves == 0 && !self.keeps {
            self.remove(id, &mut |_| {});
        }
    }

    /// A stream of ours is over: nothing that was sent, or may still come, matters any more. The peer is told.
    pub fn over(&mut self, id: u64) -> Due {
        if !self.remove(id, &mut |_| {}) || !self.keeps {
            return Due::Nothing;
        }
        self.over.push(id);
        self.ask(self.over.len() >= limits::PROGRESS_STREAMS)
    }

    /// What the peer is to be told, if there is something.
    pub fn progress(&mut self) -> Option<Progress> {
        self.asked = Due::Nothing;
        self.untold = 0;
        if self.over.is_empty() && self.news.is_empty() {
            return None;
        }
        self.over.sort_unstable();
        self.over.dedup();
        let mut over: Vec<Run> = Vec::new();
        let mut taken = 0;
        for id in &self.over {
            let runs = over.len();
            match over.last_mut() {
                Some(run) if run.first + 2 * run.count == *id => run.count += 1,
                _ if runs == limits::PROGRESS_ENTRIES => break,
                _ => over.push(Run { first: *id, count: 1 }),
            }
            taken += 1;
        }
        self.over.drain(..taken);
        // Of those that are over meanwhile there is nothing to say, nor may they stand for those of which there is.
        self.news.retain(|id| self.live.contains_key(id));
        let from = self.news.len().saturating_sub(limits::PROGRESS_ENTRIES);
        let mut news = self.news.split_off(from);
        news.sort_unstable();
        let mut live = Vec::new();
        for id in news {
            if let Some(stream) = self.live.get_mut(&id) {
                stream.news = false;
                live.push(stream.standing(id));
            }
        }
        (!over.is_empty() || !live.is_empty()).then_some(Progress { over, live })
    }

    /// Whether there is more to tell than one progress takes.
    pub fn has_news(&self) -> bool {
        !self.over.is_empty() || !self.news.is_empty()
    }

    /// The peer's word on its streams and ours. `wake` is called for each slot whose stream may have changed.
    ///
    /// # Errors
    /// [`Violation`]: the peer broke the protocol.
    pub fn told(&mut self, progress: &Progress, wake: &mut impl FnMut(&mut S)) -> Result<(), Violation> {
        for run in &progress.over {
            if !self.side.peer().opens(run.first) {
                return Err(IdError::WrongParity.into());
            }
            // A peer may name as many as it likes: those that are here bound the work.
            for id in self.accepter.over(run.first, run.count) {
                self.remove(id, wake);
            }
        }
        if !self.early.is_empty() {
            self.early.retain(|id, _| self.accepter.may_come(*id));
        }
        for standing in &progress.live {
            if let Some(stream) = self.live.get_mut(&standing.stream) {
                stream.heard(standing, &self.budget)?;
                wake(&mut stream.slot);
            } else {
                self.heard_early(standing);
            }
        }
        Ok(())
    }

    fn heard_early(&mut self, standing: &LiveStream) {
        let ends = standing.reset.is_some() || standing.stop.is_some();
        if ends && self.accepter.may_come(standing.stream) && self.early.len() < limits::LIVE_STREAMS {
            self.early.insert(standing.stream, standing.clone());
        }
    }

    /// Where all streams stand, for an attach: the lowest id not opened yet, and the live ones by rising id. What was said is to
    /// be kept for [`Streams::attached`].
    pub fn standing(&self) -> (u64, Vec<LiveStream>) {
        let mut live: Vec<LiveStream> = self.live.iter().map(|(id, stream)| stream.standing(*id)).collect();
        live.sort_unstable_by_key(|stream| stream.stream);
        (self.allocator.next_id(), live)
    }

    /// Another path takes over, under this number. Each side has told where its streams stand, we `said` it some time ago: what
    /// was told since then may have been lost with the path before, and is told again. Gives the streams of ours that are to be
    /// carried on. `wake` is called for each slot whose stream may have changed.
    ///
    /// # Errors
    /// [`Violation`]: the peer broke the protocol; the session cannot go on.
    pub fn attached(
        &mut self,
        attach: u64,
        said: (u64, &[LiveStream]),
        (next_id, theirs): (u64, &[LiveStream]),
        wake: &mut impl FnMut(&mut S),
    ) -> Result<Vec<u64>, Violation> {
        self.attach = attach;
        let opened = theirs.iter().map(|standing| standing.stream).filter(|id| self.side.peer().opens(*id));
        for id in self.accepter.attached(next_id, opened)? {
            self.remove(id, wake);
        }
        for standing in theirs {
            if let Some(stream) = self.live.get_mut(&standing.stream) {
                stream.heard(standing, &self.budget)?;
            } else {
                self.heard_early(standing);
            }
        }
        self.early.retain(|id, _| self.accepter.may_come(*id));
        self.tell_again(said);
        let mut ours: Vec<u64> = self.live.keys().copied().filter(|id| self.side.opens(*id)).collect();
        ours.sort_unstable();
        self.live.values_mut().for_each(|stream| wake(&mut stream.slot));
        Ok(ours)
    }

    /// What has changed since this was said: also of streams that were opened since. What was over before is not in it, and said
    /// again it changes nothing.
    fn tell_again(&mut self, (next_id, said): (u64, &[LiveStream])) {
        if !self.keeps {
            return;
        }
        let since = (next_id..self.allocator.next_id()).step_by(2);
        let ours = said.iter().map(|standing| standing.stream).filter(|id| self.side.opens(*id)).chain(since);
        self.over.extend(ours.filter(|id| !self.live.contains_key(id)));
        let known = |id: u64| said.binary_search_by_key(&id, |standing| standing.stream).ok().map(|at| &said[at]);
        for (id, stream) in &mut self.live {
            let now = stream.standing(*id);
            let changed = known(*id).map_or_else(|| Stream::<S>::new().standing(*id) != now, |said| *said != now);
            if changed && !std::mem::replace(&mut stream.news, true) {
                self.news.push(*id);
            }
        }
    }

    /// A stream of ours goes on, on another path: how that begins, and with its slot.
    pub fn carry(&mut self, id: u64) -> Option<(Head, &mut S)> {
        let stream = self.live.get_mut(&id)?;
        // What was given up is kept no more; the peer need not have all of it.
        let offset = stream.sending.base().min(stream.acked);
        stream.carried = offset;
        Some((Head::CarriedOn { stream: id, offset, received: stream.received }, &mut stream.slot))
    }

    /// A live stream of the peer's goes on, on another path: how many bytes at its beginning are here already, and its slot.
    ///
    /// # Errors
    /// [`Violation`]: it cannot go on there. `Closed` is an id that is over.
    pub fn carried(&mut self, id: u64, offset: u64, received: u64) -> Result<(u64, &mut S), Violation> {
        if !self.side.peer().opens(id) {
            return Err(IdError::WrongParity.into());
        }
        let budget = &self.budget;
        let stream = self.live.get_mut(&id).ok_or(IdError::Closed)?;
        if received > stream.sending.end() {
            return Err(Violation::NeverSent);
        }
        if received < stream.sending.base() && !matches!(stream.state, Sends::Reset(_) | Sends::Stopped(_)) {
            return Err(Violation::TakesBack);
        }
        let skip = stream.received.checked_sub(offset).ok_or(Violation::LeavesOut)?;
        stream.acked = stream.acked.max(received);
        stream.carried = received;
        stream.sending.forget(received, budget);
        Ok((skip, &mut stream.slot))
    }

    /// What the path that carries a stream on sends at this offset. Asked for the next one, it has sent what comes before.
    pub fn next(&mut self, id: u64, at: u64) -> Next {
        let Some(stream) = self.live.get_mut(&id) else { return Next::Over };
        stream.carried = at;
        let next = match (stream.state, stream.sending.piece(at)) {
            (Sends::Reset(_), _) => Next::Nothing,
            (Sends::Stopped(_), _) => Next::Finish,
            (_, Some(bytes)) => Next::Bytes(bytes),
            (Sends::Finished, None) => Next::Finish,
            (Sends::Open, None) => Next::Nothing,
        };
        if !matches!(next, Next::Bytes(_)) {
            stream.carried = FREE;
        }
        stream.sending.forget(stream.acked.min(stream.carried), &self.budget);
        next
    }

    /// The session is over. Gives what is left of it.
    pub fn end(&mut self) -> Left<S> {
        self.over.clear();
        self.news.clear();
        self.early.clear();
        Left { live: std::mem::take(&mut self.live).into_values(), budget: self.budget.clone() }
    }

    fn remove(&mut self, id: u64, wake: &mut impl FnMut(&mut S)) -> bool {
        let Some(mut stream) = self.live.remove(&id) else { return false };
        stream.sending.clear(&self.budget);
        if self.side.peer().opens(id) {
            self.accepter.finished(id);
        }
        wake(&mut stream.slot);
        true
    }

    fn is_news(&mut self, id: u64) -> Due {
        if !self.keeps {
            return Due::Nothing;
        }
        if let Some(stream) = self.live.get_mut(&id)
            && !std::mem::replace(&mut stream.news, true)
        {
            self.news.push(id);
            // A peer that never lets itself be told must not have us remember all that is over.
            if self.news.len() > 2 * self.live.len() + limits::PROGRESS_ENTRIES {
                self.news.retain(|id| self.live.contains_key(id));
            }
        }
        self.ask(self.untold >= limits::PROGRESS_BYTES)
    }

    fn ask(&mut self, now: bool) -> Due {
        let due = match (self.asked, now) {
            (Due::Nothing, false) => Due::Soon,
            (Due::Nothing | Due::Soon, true) => Due::Now,
            _ => return Due::Nothing,
        };
        self.asked = due;
        due
    }
}

impl<S: Default> Stream<S> {
    fn new() -> Self {
        Self {
            sending: Sending::default(),
            state: Sends::Open,
            acked: 0,
            carried: FREE,
            received: 0,
            ended: false,
            read: false,
            stop: None,
            reset: None,
            news: false,
            halves: 2,
            slot: S::default(),
        }
    }
}

impl<S> Stream<S> {
    fn standing(&self, id: u64) -> LiveStream {
        let reset = if let Sends::Reset(code) = self.state { Some(code) } else { None };
        LiveStream { stream: id, received: self.received, ended: self.ended, reset, stop: self.stop }
    }

    /// What the peer says of this stream: also old news, or said before.
    fn heard(&mut self, standing: &LiveStream, budget: &Budget) -> Result<(), Violation> {
        if standing.received > self.sending.end() {
            return Err(Violation::NeverSent);
        }
        self.acked = self.acked.max(standing.received);
        self.sending.forget(self.acked.min(self.carried), budget);
        self.ends(standing, budget);
        Ok(())
    }

    /// What the peer says of the ends of this stream.
    fn ends(&mut self, standing: &LiveStream, budget: &Budget) {
        self.read |= standing.ended;
        if let Some(code) = standing.stop {
            self.stopped(code.into(), budget);
        }
        if let Some(code) = standing.reset
            && !self.ended
        {
            self.reset = Some(code.into());
        }
    }

    fn stopped(&mut self, code: u64, budget: &Budget) {
        if self.state == Sends::Open || self.state == Sends::Finished {
            self.state = Sends::Stopped(code);
            self.sending.clear(budget);
        }
    }
}

#[cfg(test)]
mod tests;
