//! What a publisher has in flight: chunks in order, those that were sent and not acknowledged among them, so that they can be sent
//! again, once, to the same log, and never to another.

use std::collections::VecDeque;

use bytes::Bytes;

use super::ring::skip_frames;

/// Chunks are sent in pieces of about this size.
const PIECE_BYTES: usize = 64 * 1024;

/// What became of chunks, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Stored, under this number.
    Stored(u64),
    /// Stored, and the host no longer says where.
    StoredBefore,
    /// Sent, and whether they are stored cannot be known: the log they were sent to is no more, or has forgotten this publisher.
    Unknown,
    /// Not stored.
    Refused,
}

/// The host said something that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host acknowledged what was not sent")]
pub struct Nonsense;

/// What a publisher has in flight. `T` is told of each chunk what became of it.
#[derive(Debug)]
pub struct Outbox<T> {
    /// The log that what was sent was sent to.
    epoch: Option<u64>,
    /// The number of the last chunk that is settled in that log.
    settled: u64,
    /// Sent, not acknowledged.
    sent: VecDeque<(Bytes, u64)>,
    /// So many chunks of the first piece are acknowledged.
    partly: u64,
    sent_count: u64,
    unsent: VecDeque<(Vec<u8>, u64)>,
    tokens: VecDeque<T>,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self {
            epoch: None,
            settled: 0,
            sent: VecDeque::new(),
            partly: 0,
            sent_count: 0,
            unsent: VecDeque::new(),
            tokens: VecDeque::new(),
        }
    }
}

impl<T> Outbox<T> {
    /// The log to which something was sent that is not settled.
    pub fn sent_to(&self) -> Option<u64> {
        self.epoch.filter(|_| self.sent_count > 0)
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether something is to be sent.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Takes in a chunk, which `write` appends as a frame.
    ///
    /// # Errors
    /// Those of `write`: then nothing was taken in.
    pub fn push<E>(&mut self, token: T, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        if self.unsent.back().is_none_or(|(buffer, _)| buffer.len() >= PIECE_BYTES) {
            self.unsent.push_back((Vec::new(), 0));
        }
        let Some((buffer, count)) = self.unsent.back_mut() else { return Ok(()) };
        let before = buffer.len();
        let written = write(buffer);
        match written {
            Ok(()) => {
                *count += 1;
                self.tokens.push_back(token);
            }
            Err(_) => {
                buffer.truncate(before);
                if *count == 0 {
                    self.unsent.pop_back();
                }
            }
        }
        written
    }

    /// The next piece to be sent.
    pub fn take(&mut self) -> Option<Bytes> {
        let (buffer, count) = self.unsent.pop_front()?;
        let frames = Bytes::from(buffer);
        self.sent.push_back((frames.clone(), count));
        self.sent_count += count;
        Some(frames)
    }

    /// A stream is open to this log, which holds this publisher's chunks up to `last`, if it knows it. Says what became of chunks; what
    /// was sent and is not there is to be sent again.
    pub fn opened(&mut self, epoch: u64, last: u64, known: bool, told: &mut impl FnMut(T, Fate)) {
        if let Some(before) = self.sent_to() {
            // That it holds less than it has acknowledged, or more than it was sent, says nothing of what was sent: somebody else
            // publishes under the same name, or the host does not know what it says.
            let covered = last.checked_sub(self.settled).filter(|covered| *covered <= self.sent_count);
            match covered.filter(|_| before == epoch && known) {
                Some(covered) => {
                    (0..covered).for_each(|_| self.tell(Fate::StoredBefore, told));
                    self.drop_sent(covered);
                }
                None => {
                    (0..self.sent_count).for_each(|_| self.tell(Fate::Unknown, told));
                    self.forget_sent();
                }
            }
        }
        (self.epoch, self.settled) = (Some(epoch), last);
        self.send_again();
    }

    /// The next `count` chunks are stored, the first of them under this number.
    ///
    /// # Errors
    /// There are not that many.
    pub fn acknowledged(&mut self, count: u64, first: u64, told: &mut impl FnMut(T, Fate)) -> Result<(), Nonsense> {
        if count > self.sent_count {
            return Err(Nonsense);
        }
        self.drop_sent(count);
        self.settled = self.settled.saturating_add(count);
        for number in first..first + count {
            self.tell(Fate::Stored(number), told);
        }
        Ok(())
    }

    /// Nothing more of what is in flight is stored, or will be.
    pub fn refused(&mut self, told: &mut impl FnMut(T, Fate)) {
        self.forget_sent();
        self.unsent.clear();
        while !self.tokens.is_empty() {
            self.tell(Fate::Refused, told);
        }
    }

    /// Nothing more will be heard of what was sent; what was not sent is given up.
    pub fn abandoned(&mut self, told: &mut impl FnMut(T, Fate)) {
        for _ in 0..self.sent_count {
            self.tell(Fate::Unknown, told);
        }
        self.refused(told);
    }

    fn tell(&mut self, fate: Fate, told: &mut impl FnMut(T, Fate)) {
        if let Some(token) = self.tokens.pop_front() {
            told(token, fate);
        }
    }

    fn forget_sent(&mut self) {
        self.sent.clear();
        (self.partly, self.sent_count) = (0, 0);
    }

    /// So many of what was sent need not be kept.
    fn drop_sent(&mut self, count: u64) {
        self.sent_count -= count;
        self.partly += count;
        while let Some((_, there)) = self.sent.front() {
            if self.partly < *there {
                break;
            }
            self.partly -= there;
            self.sent.pop_front();
        }
    }

    /// What was sent and is not acknowledged goes before everything else.
    fn send_again(&mut self) {
        let skip = std::mem::take(&mut self.partly);
        self.sent_count = 0;
        let again = std::mem::take(&mut self.sent).into_iter().enumerate().filter_map(|(at, (frames, count))| {
            let skip = if at == 0 { skip } else { 0 };
            Some((Vec::from(skip_frames(&frames, skip)?), count - skip))
        });
        let again: Vec<_> = again.collect();
        again.into_iter().rev().for_each(|piece| self.unsent.push_front(piece));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::frame::{Frames, put_frame};

    /// A host that stores what comes, forgets, is made anew, and loses what is on its way.
    #[derive(Default)]
    struct Host {
        epoch: u64,
        stored: Vec<u32>,
        gone: Vec<u32>,
        /// This publisher's chunks in this log, and whether it is known.
        last: u64,
        known: bool,
        acknowledged: u64,
        on_the_way: Vec<Bytes>,
    }

    impl Host {
        fn store(&mut self, pieces: usize) {
            for piece in self.on_the_way.drain(..pieces.min(self.on_the_way.len())) {
                let mut frames = Frames::new(1 << 20);
                frames.push(piece);
                while let Some(frame) = frames.next_frame().unwrap() {
                    self.stored.push(u32::from_be_bytes(std::array::from_fn(|at| frame[at])));
                    self.last += 1;
                    self.known = true;
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Send(u8),
        Store(usize),
        Acknowledge(u64),
        Again,
        NewLog,
        Forget,
        Refuse,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (1u8..30).prop_map(Step::Push),
            6 => (1u8..4).prop_map(Step::Send),
            6 => (1usize..4).prop_map(Step::Store),
            6 => (1u64..40).prop_map(Step::Acknowledge),
            3 => Just(Step::Again),
            1 => Just(Step::NewLog),
            1 => Just(Step::Forget),
            1 => Just(Step::Refuse),
        ];
        prop::collection::vec(step, 1..150)
    }

    proptest! {
        #[test]
        fn every_chunk_is_stored_once_and_in_order_or_its_fate_is_told(steps in steps()) {
            let mut host = Host { epoch: 1, ..Host::default() };
            let mut outbox: Outbox<u32> = Outbox::default();
            let mut fates: Vec<(u32, Fate)> = Vec::new();
            let mut next = 0;
            outbox.opened(1, 0, false, &mut |token, fate| fates.push((token, fate)));
            let mut steps = steps;
            // In the end everything gets through.
            steps.extend([Step::Again, Step::Send(255), Step::Store(usize::MAX), Step::Acknowledge(u64::MAX)]);
            for step in steps {
                let mut told = |token, fate| fates.push((token, fate));
                match step {
                    Step::Push(count) => for _ in 0..count {
                        let token: u32 = next;
                        next += 1;
                        let written: Result<(), ()> = outbox.push(token, |out| {
                            let mut body = token.to_be_bytes().to_vec();
                            body.resize(4 + (token as usize * 7_919) % 9_000, 0);
                            put_frame(out, &body);
                            Ok(())
                        });
                        prop_assert!(written.is_ok());
                        let unwritten = outbox.push(token, |out| {
                            out.push(1);
                            Err(())
                        });
                        prop_assert!(unwritten.is_err());
                    },
                    Step::Send(pieces) => for _ in 0..pieces {
                        host.on_the_way.extend(outbox.take());
                    },
                    Step::Store(pieces) => host.store(pieces),
                    Step::Acknowledge(count) => {
                        let count = count.min(host.last - host.acknowledged);
                        if count > 0 {
                            let first = host.stored.len() as u64 - (host.last - host.acknowledged) + 1;
                            prop_assert!(outbox.acknowledged(count, first, &mut told).is_ok());
                            host.acknowledged += count;
                        }
                    }
                    Step::Again | Step::NewLog | Step::Forget => {
                        host.on_the_way.clear();
                        if matches!(step, Step::NewLog) {
                            host.epoch += 1;
                            host.gone.append(&mut host.stored);
                        }
                        if !matches!(step, Step::Again) {
                            (host.last, host.known) = (0, false);
                        }
                        outbox.opened(host.epoch, host.last, host.known, &mut told);
                        host.acknowledged = host.last;
                    }
                    Step::Refuse => {
                        // What is refused is not stored; what was stored before was acknowledged before that.
                        let behind = host.last - host.acknowledged;
                        let first = host.stored.len() as u64 - behind + 1;
                        if behind > 0 {
                            prop_assert!(outbox.acknowledged(behind, first, &mut told).is_ok());
                        }
                        host.on_the_way.clear();
                        outbox.refused(&mut told);
                        outbox.opened(host.epoch, host.last, host.known, &mut told);
                        host.acknowledged = host.last;
                    }
                }
            }
            let mut everything = host.gone.clone();
            everything.extend(&host.stored);
            let mut sorted = everything.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(&sorted, &everything, "twice, or out of order");
            let told: Vec<u32> = fates.iter().map(|(token, _)| *token).collect();
            prop_assert_eq!(told, (0..next).collect::<Vec<_>>(), "each is told of once, in order");
            for (token, fate) in fates {
                match fate {
                    Fate::Stored(_) | Fate::StoredBefore => prop_assert!(everything.contains(&token)),
                    Fate::Refused => prop_assert!(!everything.contains(&token)),
                    Fate::Unknown => {}
                }
            }
            prop_assert!(outbox.is_empty() && !outbox.has_unsent());
            prop_assert_eq!(outbox.acknowledged(1, 1, &mut |_, _| {}), Err(Nonsense));
        }
    }
}
