//! The path streams of one lane as one of its ends sees them: what the other end's frames say of each, how far each has come, and where it
//! goes on. A machine: frames and calls of the halves in, frames and wakers out.
//!
//! Streams are numbered by the end that opened the lane, from 0 on; a frame of one opens all before it, as in QUIC. Both ends count the same
//! streams as live: those of which not both directions have come to an end *on the lane*, which moving is too.
//!
//! What carries on a direction that has moved brings all of it from its first byte, so it never waits for what is on the lane: with one
//! window for both, that might wait for it.

use std::task::{Poll, Waker};

use bytes::{Buf, Bytes};

use super::Broken;
use super::frame::{End, Frame};
use super::out::{Out, register};
use crate::proto::limits;
use crate::state::id_map::IdMap;

/// The path streams of a lane. `P` is what carries the rest of a direction that has moved.
#[derive(Debug)]
pub struct Table<P> {
    /// Whether this end opens the streams.
    opens: bool,
    /// The number of the next stream.
    next: u64,
    live: usize,
    streams: IdMap<Stream<P>>,
    out: Out,
    /// Streams the peer has opened that wait to be accepted.
    opened: Vec<u64>,
    /// How many of those opened here are live no more.
    freed: usize,
    woken: Vec<Waker>,
    /// It takes no new streams, and those it has move.
    retired: bool,
    /// The peer says nothing more on it.
    ended: bool,
    /// The circuit is over.
    over: bool,
}

/// A path stream.
#[derive(Debug)]
struct Stream<P> {
    /// Bytes that wait for the reader, and how many have come on the lane.
    came: Vec<u8>,
    received: usize,
    coming: Option<End>,
    /// It was reset, with this code; perhaps after it had moved.
    reset: Option<u64>,
    /// What carries it from its first byte on; and whether that has come.
    part: Option<P>,
    parted: bool,
    /// How many bytes had come on the lane by then.
    skip: usize,
    /// The lane has opened it: until then it has only been heard of by what carries one direction, and its ends are not said. What the peer
    /// takes for over is so here as well.
    known: bool,
    due: Vec<End>,
    sent: usize,
    going: Option<End>,
    /// After its last frame.
    end: u64,
    /// The peer reads no more, for the reason with this code.
    stop: Option<u64>,
    /// This end has said that it reads no more.
    stopping: bool,
    /// This end's halves are here still.
    reading: bool,
    writing: bool,
    /// Its halves were handed out.
    accepted: bool,
    /// It was counted as live no more.
    over: bool,
    reader: Option<Waker>,
    watchers: Vec<Waker>,
}

/// Why a half can do no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// The circuit is over.
    Over,
    /// The peer reads no more.
    Stopped(u64),
    /// It was ended here.
    Closed,
}

/// What became of bytes that were to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// All of them were taken.
    All,
    /// They have to go on a stream of their own, after all that were written before.
    Moves,
    /// There is no room now.
    Waits,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Read<P> {
    /// Bytes.
    Bytes(Bytes),
    /// The end.
    End,
    /// The peer gave up, with this code.
    Reset(u64),
    /// All of it comes on this, also so many bytes that were read before.
    Part(P, usize),
    /// Nothing yet.
    Nothing,
}

impl<P> Table<P> {
    /// Of a lane that this end opens, or the other one.
    pub fn new(opens: bool) -> Self {
        Self {
            opens,
            next: 0,
            live: 0,
            streams: IdMap::default(),
            out: Out::default(),
            opened: Vec::new(),
            freed: 0,
            woken: Vec::new(),
            retired: false,
            ended: false,
            over: false,
        }
    }

    /// Streams the peer has opened, since this was asked last.
    pub fn opened(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.opened)
    }

    /// Who is to be woken, and how many streams opened here are live no more, since this was asked last.
    pub fn news(&mut self) -> (Vec<Waker>, usize) {
        (std::mem::take(&mut self.woken), std::mem::take(&mut self.freed))
    }

    /// Whether this end opens its streams.
    #[cfg(test)]
    pub fn opens(&self) -> bool {
        self.opens
    }

    /// Whether QUIC does not have all of it yet.
    #[cfg(test)]
    pub fn waits(&self) -> bool {
        !self.out.has_left(self.out.end())
    }

    /// How many streams are live.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Whether it takes new streams.
    pub fn is_retired(&self) -> bool {
        self.retired || self.over
    }

    /// It takes no new streams from now on, and what is written moves.
    pub fn retire(&mut self) {
        self.retired = true;
        self.woken.extend(self.out.sender());
    }

    /// Whether the peer has ended it, and nothing of it is here any more.
    pub fn is_gone(&self) -> bool {
        self.ended && self.streams.is_empty()
    }

    /// Whether the peer says nothing more on it.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The circuit is over: everybody is told.
    pub fn give_up(&mut self) {
        self.over = true;
        self.woken.extend(self.out.sender());
        self.woken.extend(self.out.waiting());
        for stream in self.streams.values_mut() {
            self.woken.extend(stream.reader.take());
            self.woken.append(&mut stream.watchers);
        }
    }

    // What this end's halves do.

    /// Opens a stream. Not more than [`limits::LANE_STREAMS`] are live then: whoever asks has looked.
    pub fn open(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.live += 1;
        self.streams.insert(number, Stream::new(true));
        number
    }

    /// The halves of a stream that the peer has opened are handed out. What it was told to stop meanwhile it answers now, and not before: else
    /// the peer could open any number of streams that wait to be accepted.
    pub fn accepted(&mut self, number: u64) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.accepted = true;
            self.answer(number);
        }
    }

    /// Writes bytes, all or none, and takes them off the front. `alone`: not on the lane. `waker` is woken when there may be room.
    ///
    /// # Errors
    /// [`Halted`].
    pub fn write(&mut self, number: u64, bytes: &mut Bytes, alone: bool, waker: &Waker) -> Result<Written, Halted> {
        let stream = self.sends(number)?;
        let first_is_large = stream.sent == 0 && bytes.len() > limits::LANE_FIRST_BYTES;
        if alone || first_is_large || stream.sent + bytes.len() > limits::LANE_STREAM_BYTES || self.retired {
            return Ok(Written::Moves);
        }
        if self.out.is_full() {
            self.out.wait(waker);
            // So that a stop is heard as well.
            self.watch(number, waker);
            return Ok(Written::Waits);
        }
        if !bytes.is_empty() {
            self.put(&Frame { stream: number, bytes, ..Frame::default() });
            self.sends(number)?.sent += bytes.len();
            bytes.advance(bytes.len());
        }
        Ok(Written::All)
    }

    /// What is written from now on goes another way, which this end has opened.
    ///
    /// # Errors
    /// [`Halted`].
    pub fn moved(&mut self, number: u64) -> Result<(), Halted> {
        self.sends(number)?;
        self.say_end(number, End::Moved);
        Ok(())
    }

    /// No more bytes follow.
    ///
    /// # Errors
    /// [`Halted`].
    pub fn finish(&mut self, number: u64) -> Result<(), Halted> {
        match self.sends(number) {
            // Harmless: whoever wants to know asks for it.
            Err(Halted::Stopped(_)) => return Ok(()),
            sends => sends?,
        };
        self.say_end(number, End::Finished);
        Ok(())
    }

    /// Gives up: on the lane, also if it has moved.
    pub fn reset(&mut self, number: u64, code: u64) {
        match self.streams.get(&number).and_then(|stream| stream.going) {
            None => self.say_end(number, End::Reset(code)),
            Some(End::Moved) => {
                self.say(number, End::Reset(code));
                if let Some(stream) = self.streams.get_mut(&number) {
                    stream.going = Some(End::Reset(code));
                    self.woken.append(&mut stream.watchers);
                }
            }
            Some(_) => {}
        }
    }

    /// Reads no more of it, and says so, unless there is nothing more to come.
    pub fn stop(&mut self, number: u64, code: u64) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        stream.came = Vec::new();
        let more = matches!(stream.coming, None | Some(End::Moved)) && stream.reset.is_none();
        if more && stream.reading && !std::mem::replace(&mut stream.stopping, true) {
            self.put(&Frame { stream: number, stop: Some(code), ..Frame::default() });
        }
    }

    /// The receiving half is gone. What carries its rest, if it was not taken, is for the caller to drop.
    pub fn read_no_more(&mut self, number: u64) -> Option<P> {
        let stream = self.streams.get_mut(&number)?;
        stream.reading = false;
        stream.came = Vec::new();
        let part = stream.part.take();
        self.settle(number);
        part
    }

    /// The sending half is gone; it was ended before.
    pub fn write_no_more(&mut self, number: u64) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.writing = false;
            self.settle(number);
        }
    }

    /// What there is to read. `waker` is woken when there is more.
    pub fn read(&mut self, number: u64, waker: &Waker) -> Result<Read<P>, Halted> {
        let stream = self.streams.get_mut(&number).ok_or(Halted::Closed)?;
        if let Some(code) = stream.reset {
            return Ok(Read::Reset(code));
        }
        if !stream.came.is_empty() {
            return Ok(Read::Bytes(std::mem::take(&mut stream.came).into()));
        }
        match (stream.coming, stream.part.take()) {
            (Some(End::Finished), _) => return Ok(Read::End),
            (_, Some(part)) => return Ok(Read::Part(part, stream.skip)),
            _ if self.over => return Err(Halted::Over),
            _ => {}
        }
        stream.reader = Some(waker.clone());
        Ok(Read::Nothing)
    }

    /// Whether all of it has come on the lane, and was read.
    pub fn has_read_all(&self, number: u64) -> bool {
        let all = |stream: &Stream<P>| stream.coming == Some(End::Finished) && stream.came.is_empty() && stream.reset.is_none();
        self.streams.get(&number).is_some_and(all)
    }

    /// Whether the peer gave up on a stream whose rest is being read. `waker` is woken when it does.
    pub fn was_reset(&mut self, number: u64, waker: &Waker) -> Option<u64> {
        let stream = self.streams.get_mut(&number)?;
        if stream.reset.is_none() {
            stream.reader = Some(waker.clone());
        }
        stream.reset
    }

    /// Whether the peer reads no more of it; `waker` is woken when it says so. `None`: neither that, nor has all left.
    pub fn stopped(&mut self, number: u64, waker: &Waker) -> Option<Result<(), Halted>> {
        if self.over {
            return Some(Err(Halted::Over));
        }
        // It is gone: so it has ended, and left.
        let Some(stream) = self.streams.get(&number) else { return Some(Ok(())) };
        match (stream.stop, stream.going) {
            (Some(code), _) => return Some(Err(Halted::Stopped(code))),
            (None, Some(End::Reset(_))) => return Some(Ok(())),
            (None, Some(End::Finished)) if self.out.has_left(stream.end) => return Some(Ok(())),
            (None, Some(End::Finished)) => self.out.wait(waker),
            (None, _) => {}
        }
        self.watch(number, waker);
        None
    }

    /// Why nothing more is to be sent where it moved to.
    pub fn told(&self, number: u64) -> Option<Halted> {
        let stop = self.streams.get(&number).and_then(|stream| stream.stop);
        if self.over { Some(Halted::Over) } else { stop.map(Halted::Stopped) }
    }

    /// How the peer itself says that it reads no more; `None` if the stream is no more. `waker` is woken when it says so.
    pub fn stop_said(&mut self, number: u64, waker: &Waker) -> Poll<Option<Halted>> {
        if let Some(told) = self.told(number) {
            return Poll::Ready(Some(told));
        }
        if !self.streams.contains_key(&number) {
            return Poll::Ready(None);
        }
        self.watch(number, waker);
        Poll::Pending
    }

    /// What has moved is finished where it went on.
    pub fn finished_there(&mut self, number: u64) {
        if let Some(stream) = self.streams.get_mut(&number)
            && stream.going == Some(End::Moved)
        {
            stream.going = Some(End::Finished);
            self.woken.append(&mut stream.watchers);
        }
    }

    // What the peer says.

    /// A record with frames.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn record(&mut self, mut record: &[u8]) -> Result<(), Broken> {
        while !record.is_empty() {
            let frame = Frame::take(&mut record)?;
            self.frame(&frame)?;
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<(), Broken> {
        let number = frame.stream;
        if number >= self.next {
            self.open_to(number)?;
        }
        let Some(stream) = self.streams.get_mut(&number) else {
            // That nobody wants the rest, and that there is none, may cross the end.
            let late = frame.bytes.is_empty() && matches!(frame.end, None | Some(End::Reset(_)));
            return if late { Ok(()) } else { Err(Broken::AfterEnd(number)) };
        };
        stream.take_in(frame)?;
        if !frame.bytes.is_empty() || frame.end.is_some() {
            self.woken.extend(stream.reader.take());
        }
        if let Some(code) = frame.stop {
            if stream.stop.replace(code).is_some() {
                return Err(Broken::Twice(number));
            }
            self.woken.append(&mut stream.watchers);
            self.answer(number);
        }
        self.settle(number);
        Ok(())
    }

    /// The peer has opened all streams up to this one.
    fn open_to(&mut self, number: u64) -> Result<(), Broken> {
        if self.opens {
            return Err(Broken::NeverOpened(number));
        }
        if number - self.next >= (limits::LANE_STREAMS - self.live) as u64 {
            return Err(Broken::TooMany);
        }
        for number in self.next..=number {
            self.live += 1;
            match self.streams.get_mut(&number) {
                Some(stream) => {
                    stream.known = true;
                    let due = std::mem::take(&mut stream.due);
                    due.into_iter().for_each(|end| self.say(number, end));
                    self.answer(number);
                }
                None => {
                    self.streams.insert(number, Stream::new(false));
                    self.opened.push(number);
                }
            }
        }
        self.next = number + 1;
        Ok(())
    }

    /// A stream comes on this from its first byte on. It is given back if nobody wants it.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn part(&mut self, number: u64, part: P) -> Result<Option<P>, Broken> {
        if number >= self.next && !self.streams.contains_key(&number) {
            // It has overtaken what opens the stream. The peer takes none for over that is not known here, so they are bounded as on the lane.
            if self.opens {
                return Err(Broken::NeverOpened(number));
            }
            if self.ended || number - self.next >= limits::LANE_STREAMS as u64 {
                return Err(Broken::TooMany);
            }
            let stream = Stream { part: Some(part), parted: true, known: false, ..Stream::new(false) };
            self.streams.insert(number, stream);
            self.opened.push(number);
            return Ok(None);
        }
        let Some(stream) = self.streams.get_mut(&number) else { return Ok(Some(part)) };
        if std::mem::replace(&mut stream.parted, true) {
            return Err(Broken::Twice(number));
        }
        match stream.coming {
            Some(End::Finished | End::Reset(_)) => return Err(Broken::Apart(number)),
            _ if stream.reset.is_some() || !stream.reading => return Ok(Some(part)),
            _ => (stream.part, stream.skip) = (Some(part), stream.received),
        }
        self.woken.extend(stream.reader.take());
        Ok(None)
    }

    /// The peer says nothing more on the lane.
    ///
    /// # Errors
    /// [`Broken`]: there was more to say.
    pub fn end(&mut self) -> Result<(), Broken> {
        // Of its own lane this end decides when it ends.
        let due = !self.opens || self.retired && self.streams.is_empty();
        if !due || self.live > 0 || self.streams.values().any(|stream| !stream.known) {
            return Err(Broken::CutOff);
        }
        self.ended = true;
        self.woken.extend(self.out.sender());
        Ok(())
    }

    // What whoever sends does.

    /// The next record's bytes: `Some(None)` if none will follow, `None` if there are none now; then `waker` is woken by the next.
    pub fn take(&mut self, waker: &Waker) -> Option<Option<Vec<u8>>> {
        let next = self.out.take();
        let done = self.over || if self.opens { self.retired && self.streams.is_empty() } else { self.ended };
        if next.is_none() && !done {
            self.out.wake_sender(waker);
            return None;
        }
        Some(next)
    }

    /// QUIC has so many bytes of what was taken.
    pub fn handed(&mut self, bytes: usize) {
        self.woken.append(&mut self.out.handed(bytes));
    }

    // What they have in common.

    fn sends(&mut self, number: u64) -> Result<&mut Stream<P>, Halted> {
        let stream = self.streams.get_mut(&number).ok_or(Halted::Closed)?;
        match (stream.stop, stream.going) {
            _ if self.over => Err(Halted::Over),
            (Some(code), _) => Err(Halted::Stopped(code)),
            (None, None) => Ok(stream),
            (None, Some(_)) => Err(Halted::Closed),
        }
    }

    fn watch(&mut self, number: u64, waker: &Waker) {
        if let Some(stream) = self.streams.get_mut(&number) {
            register(&mut stream.watchers, waker);
        }
    }

    fn put(&mut self, frame: &Frame<'_>) {
        // Once the peer has ended it, nobody there wants to know.
        if !self.over && !self.ended {
            self.woken.extend(self.out.put(frame));
        }
    }

    fn say_end(&mut self, number: u64, end: End) {
        self.say(number, end);
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.going = Some(end);
            self.woken.append(&mut stream.watchers);
        }
        self.settle(number);
    }

    /// Says of an end, once the lane has opened the stream.
    fn say(&mut self, number: u64, end: End) {
        if let Some(stream) = self.streams.get_mut(&number).filter(|stream| !stream.known) {
            stream.end = u64::MAX;
            return stream.due.push(end);
        }
        self.put(&Frame { stream: number, end: Some(end), ..Frame::default() });
        let after = self.out.end();
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.end = after;
        }
    }

    /// A stream that the peer stopped is given up, so that it counts no longer.
    fn answer(&mut self, number: u64) {
        if let Some(Stream { stop: Some(code), going: None, accepted: true, .. }) = self.streams.get(&number) {
            self.say_end(number, End::Reset(*code));
        }
    }

    /// Counts a stream as live no more once it has ended both ways, and forgets it once both halves are gone too.
    fn settle(&mut self, number: u64) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        if stream.coming.is_none() || stream.going.is_none() || !stream.known {
            return;
        }
        if !std::mem::replace(&mut stream.over, true) {
            self.live -= 1;
            self.freed += usize::from(self.opens);
        }
        if !stream.reading && !stream.writing {
            self.woken.append(&mut stream.watchers);
            self.streams.remove(&number);
            if self.retired && self.streams.is_empty() {
                self.woken.extend(self.out.sender());
            }
        }
    }
}

impl<P> Stream<P> {
    fn new(accepted: bool) -> Self {
        Self {
            came: Vec::new(),
            received: 0,
            coming: None,
            reset: None,
            part: None,
            parted: false,
            skip: 0,
            known: true,
            due: Vec::new(),
            sent: 0,
            going: None,
            end: 0,
            stop: None,
            stopping: false,
            reading: true,
            writing: true,
            accepted,
            over: false,
            reader: None,
            watchers: Vec::new(),
        }
    }

    /// What a frame says of what comes.
    fn take_in(&mut self, frame: &Frame<'_>) -> Result<(), Broken> {
        let number = frame.stream;
        if self.coming.is_some() && !frame.bytes.is_empty() {
            return Err(Broken::AfterEnd(number));
        }
        self.received += frame.bytes.len();
        if self.received > limits::LANE_STREAM_BYTES {
            return Err(Broken::NotMoved(number));
        }
        // What carries all of it brings this too.
        if self.reading && !self.stopping && !self.parted {
            match self.came.is_empty() {
                true => self.came = frame.bytes.to_vec(),
                false => self.came.extend_from_slice(frame.bytes),
            }
        }
        match (self.coming, frame.end) {
            (_, None) => {}
            (None, Some(End::Finished)) if self.parted => return Err(Broken::Apart(number)),
            (None, end) => self.coming = end,
            (Some(End::Moved), Some(End::Reset(_))) if self.reset.is_none() => {}
            (Some(_), Some(_)) => return Err(Broken::AfterEnd(number)),
        }
        if let Some(End::Reset(code)) = frame.end {
            self.reset = Some(code);
            self.came = Vec::new();
            self.part = None;
        }
        Ok(())
    }
}
