//! Stream ids: the opener's side hands each out once, in order; the accepter's side takes each once, in whatever order the
//! network brings them. So a call runs once, however often its stream is carried again. Holds no streams and no bytes.
//!
//! The accepter knows a watermark (all ids below it were seen or are gaps), the live ids, and the gaps: ids below the watermark
//! that have not come yet. An id below the watermark that is neither live nor a gap is over, and is never executed again.
//! Ids near the watermark are two bits in a short row of words, so the path of every call neither hashes nor allocates; the
//! few that stay behind move to ordered sets.

use std::collections::{BTreeSet, VecDeque};

use thiserror::Error;

use crate::proto::limits;

/// How many ids past the watermark one may be. An opener cannot be further ahead while its stream credit is below this, but for
/// streams that ended [unheard](Accepter::unheard).
pub const AHEAD: u64 = 4_096;
/// Most gaps remembered. One more closes the oldest: a stream reset before its head arrived leaves a gap that nothing fills.
pub const GAPS: usize = 4_096;

const WORD_BITS: u64 = u64::BITS as u64;
const RECENT_WORDS: usize = 64;

/// Which end of a session: it decides the parity of the ids a side opens, and stays the same on every path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Dialled the session's first path. Opens 0, 2, 4, …
    Initiator,
    /// Accepted it. Opens 1, 3, 5, …
    Acceptor,
}

impl Side {
    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Side::Initiator => Side::Acceptor,
            Side::Acceptor => Side::Initiator,
        }
    }

    /// Whether this side opened, or would open, the stream with this id.
    pub fn opens(self, id: u64) -> bool {
        id % 2 == self.parity()
    }

    fn parity(self) -> u64 {
        match self {
            Side::Initiator => 0,
            Side::Acceptor => 1,
        }
    }
}

/// The opener's record: which id is next.
#[derive(Debug)]
pub struct Allocator {
    next: u64,
}

impl Allocator {
    /// For the streams this side opens.
    pub fn new(side: Side) -> Self {
        Self { next: side.parity() }
    }

    /// An id that was never handed out before.
    pub fn take(&mut self) -> u64 {
        let id = self.next;
        self.next = id.checked_add(2).expect("2^63 ids outlast any process");
        id
    }

    /// The lowest id not handed out yet.
    pub fn next_id(&self) -> u64 {
        self.next
    }
}

/// What an acceptable id means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// First seen now, and live from now on: execute it.
    Fresh,
    /// Live already: another carriage of a stream the session has.
    Live,
}

/// Why an id is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdError {
    /// The stream is over. It must not be executed; nothing is wrong with the peer.
    #[error("the stream is over")]
    Closed,
    /// As many streams are live as may be. The id was not taken and can come again.
    #[error("too many live streams")]
    TooManyLive,
    /// The peer broke the protocol: further past the watermark than [`AHEAD`] and the streams that ended
    /// [unheard](Accepter::unheard), or listed beyond its own next id.
    #[error("the stream id is too far ahead")]
    TooFarAhead,
    /// The peer broke the protocol: an id that is not its side's to open.
    #[error("the stream id belongs to the other side")]
    WrongParity,
}

/// The accepter's record of the ids the peer opened. At most [`limits::LIVE_STREAMS`] live ids and [`GAPS`] gaps.
///
/// ```
/// use voltmesh::state::ids::{Accepted, Accepter, IdError, Side};
/// let mut ids = Accepter::new(Side::Initiator);
/// assert_eq!(ids.accept(2), Ok(Accepted::Fresh)); // 0 is late: a gap
/// assert_eq!(ids.accept(0), Ok(Accepted::Fresh));
/// assert_eq!(ids.accept(0), Ok(Accepted::Live));
/// ids.finished(0);
/// assert_eq!(ids.accept(0), Err(IdError::Closed));
/// ```
#[derive(Debug)]
pub struct Accepter {
    opener: Side,
    /// The watermark, as an index: the n-th id the opener's side may use is index n.
    next: u64,
    /// The words from `first_word` up to the watermark's, at least one.
    recent: VecDeque<Word>,
    first_word: u64,
    /// What is below `first_word`.
    old_live: BTreeSet<u64>,
    old_gaps: BTreeSet<u64>,
    live: usize,
    gaps: usize,
    gaps_closed: u64,
    /// Streams that ended before their head arrived, as far as no gap stands for them yet.
    unheard: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    live: u64,
    gaps: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unseen,
    Gap,
    Live,
    Over,
}

impl Accepter {
    /// For the streams that `opener`, the peer's side, opens.
    pub fn new(opener: Side) -> Self {
        Self {
            opener,
            next: 0,
            recent: VecDeque::from([Word::default()]),
            first_word: 0,
            old_live: BTreeSet::new(),
            old_gaps: BTreeSet::new(),
            live: 0,
            gaps: 0,
            gaps_closed: 0,
            unheard: 0,
        }
    }

    /// A stream of the opener ended before its head arrived: an id was handed out that will not be seen, so the next one may be
    /// that much further ahead. QUIC drops what it has not sent of a stream that is reset, its head too.
    pub fn unheard(&mut self) {
        self.unheard += 1;
    }

    /// Judges the id of a stream that arrived; a fresh one is live until [`finished`](Self::finished).
    ///
    /// # Errors
    /// See [`IdError`]; the record is unchanged then.
    pub fn accept(&mut self, id: u64) -> Result<Accepted, IdError> {
        let index = self.index(id)?;
        let state = self.state(index);
        match state {
            State::Live => return Ok(Accepted::Live),
            State::Over => return Err(IdError::Closed),
            State::Unseen if index - self.next > AHEAD + self.unheard => return Err(IdError::TooFarAhead),
            State::Unseen | State::Gap if self.live >= limits::LIVE_STREAMS => return Err(IdError::TooManyLive),
            State::Unseen => {
                self.unheard = self.unheard.saturating_sub(index - self.next);
                while self.next < index {
                    self.advance(State::Gap);
                }
                self.advance(State::Live);
                self.close_gaps(self.gaps.saturating_sub(GAPS));
            }
            State::Gap => {
                self.clear(index, State::Gap);
                self.set(index, State::Live);
            }
        }
        Ok(Accepted::Fresh)
    }

    /// The stream is over: whatever comes under its id from now on is answered [`IdError::Closed`]. True when it was live.
    pub fn finished(&mut self, id: u64) -> bool {
        let live = self.index(id).is_ok_and(|index| self.state(index) == State::Live);
        if live {
            self.clear(id / 2, State::Live);
        }
        live
    }

    /// The opener is done with `count` streams from `first` on, seen or not: they are over from now on. Returns the ids that were
    /// live, rising. What is too far past the watermark says nothing. Costs no more when a run is long or far ahead.
    pub fn over(&mut self, first: u64, count: u64) -> Vec<u64> {
        let mut ended = Vec::new();
        let Ok(index) = self.index(first) else { return ended };
        let farthest = self.next.saturating_add(AHEAD + self.unheard);
        let end = index.saturating_add(count).min(farthest + 1);
        self.clear_between(index, end.min(self.next), &mut ended);
        if index <= farthest && end > self.next {
            self.unheard = self.unheard.saturating_sub(end - self.next);
            if index > self.next {
                let gaps = (index - self.next) as usize;
                self.close_gaps((self.gaps + gaps).saturating_sub(GAPS));
                self.raise(index, true);
            }
            self.raise(end, false);
            self.close_gaps(self.gaps.saturating_sub(GAPS));
        }
        ended
    }

    /// Whether a stream that has not come yet may still come under this id.
    pub fn may_come(&self, id: u64) -> bool {
        let Ok(index) = self.index(id) else { return false };
        match self.state(index) {
            State::Gap => true,
            State::Unseen => index - self.next <= AHEAD + self.unheard,
            State::Live | State::Over => false,
        }
    }

    /// The opener's own list, from an attach: the ids it has live (those of its side only) below its next one. What it does not
    /// list there is over; what it lists and we have not seen may still come. It may have opened more since it made the list:
    /// of those it says nothing. Returns the ids that were live here and are over now, rising. Costs no more when ids were
    /// skipped in between.
    ///
    /// # Errors
    /// See [`IdError`]; the record is unchanged then.
    pub fn attached(&mut self, next_id: u64, listed: impl IntoIterator<Item = u64>) -> Result<Vec<u64>, IdError> {
        let below = self.index(next_id)?;
        let listed = self.indexes_below(below, listed)?;
        let stays = |index: &u64| *index >= below || listed.contains(index);
        let (live, over): (Vec<u64>, Vec<u64>) = self.live_indexes().into_iter().partition(stays);
        let mut gaps: BTreeSet<u64> = self.gap_indexes().into_iter().filter(|index| *index >= below).collect();
        gaps.extend(listed.iter().filter(|index| matches!(self.state(**index), State::Gap | State::Unseen)));
        let next = self.next.max(below);
        *self = Self { next, first_word: next / WORD_BITS, gaps_closed: self.gaps_closed, ..Self::new(self.opener) };
        live.into_iter().for_each(|index| self.set(index, State::Live));
        gaps.into_iter().for_each(|index| self.set(index, State::Gap));
        Ok(over.into_iter().map(|index| self.id(index)).collect())
    }

    /// The watermark: every id of the opener's side below it was seen, is a gap, or is over.
    pub fn next_id(&self) -> u64 {
        self.id(self.next)
    }

    /// How many streams are live.
    pub fn live(&self) -> usize {
        self.live
    }

    /// How many ids below the watermark have not come yet.
    pub fn gaps(&self) -> usize {
        self.gaps
    }

    /// How many gaps were closed because there were more than [`GAPS`].
    pub fn gaps_closed(&self) -> u64 {
        self.gaps_closed
    }

    /// The live ids, rising.
    pub fn live_ids(&self) -> Vec<u64> {
        self.live_indexes().into_iter().map(|index| self.id(index)).collect()
    }

    fn index(&self, id: u64) -> Result<u64, IdError> {
        if self.opener.opens(id) { Ok(id / 2) } else { Err(IdError::WrongParity) }
    }

    fn id(&self, index: u64) -> u64 {
        index * 2 + self.opener.parity()
    }

    fn indexes_below(&self, next: u64, ids: impl IntoIterator<Item = u64>) -> Result<BTreeSet<u64>, IdError> {
        let mut indexes = BTreeSet::new();
        for id in ids {
            let index = self.index(id)?;
            if index >= next {
                return Err(IdError::TooFarAhead);
            }
            indexes.insert(index);
            if indexes.len() > limits::LIVE_STREAMS {
                return Err(IdError::TooManyLive);
            }
        }
        Ok(indexes)
    }

    fn state(&self, index: u64) -> State {
        if index >= self.next {
            return State::Unseen;
        }
        let (live, gap) = match self.word_of(index) {
            Some(at) => {
                let (word, bit) = (self.recent[at], 1 << (index % WORD_BITS));
                (word.live & bit != 0, word.gaps & bit != 0)
            }
            None => (self.old_live.contains(&index), self.old_gaps.contains(&index)),
        };
        match (live, gap) {
            (true, _) => State::Live,
            (_, true) => State::Gap,
            _ => State::Over,
        }
    }

    fn word_of(&self, index: u64) -> Option<usize> {
        (index / WORD_BITS).checked_sub(self.first_word).map(|at| at as usize)
    }

    /// Raises the watermark by one id, which is live or a gap.
    fn advance(&mut self, state: State) {
        if self.word_of(self.next) == Some(self.recent.len()) {
            self.grow();
        }
        self.next += 1;
        self.set(self.next - 1, state);
    }

    fn grow(&mut self) {
        while let Some(word) = self.recent.front() {
            if word.live | word.gaps != 0 && self.recent.len() < RECENT_WORDS {
                break;
            }
            self.spill_front();
        }
        self.recent.push_back(Word::default());
    }

    fn spill_front(&mut self) {
        let Some(word) = self.recent.pop_front() else { return };
        let base = self.first_word * WORD_BITS;
        self.old_live.extend(bits(word.live).map(|bit| base + bit));
        self.old_gaps.extend(bits(word.gaps).map(|bit| base + bit));
        self.first_word += 1;
    }

    fn set(&mut self, index: u64, state: State) {
        let (word, bit) = (self.word_of(index), 1 << (index % WORD_BITS));
        match (state, word) {
            (State::Live, Some(at)) => self.recent[at].live |= bit,
            (State::Live, None) => drop(self.old_live.insert(index)),
            (_, Some(at)) => self.recent[at].gaps |= bit,
            (_, None) => drop(self.old_gaps.insert(index)),
        }
        *self.count(state) += 1;
    }

    fn clear(&mut self, index: u64, state: State) {
        let (word, bit) = (self.word_of(index), 1 << (index % WORD_BITS));
        match (state, word) {
            (State::Live, Some(at)) => self.recent[at].live &= !bit,
            (State::Live, None) => drop(self.old_live.remove(&index)),
            (_, Some(at)) => self.recent[at].gaps &= !bit,
            (_, None) => drop(self.old_gaps.remove(&index)),
        }
        *self.count(state) -= 1;
    }

    fn count(&mut self, state: State) -> &mut usize {
        if state == State::Live { &mut self.live } else { &mut self.gaps }
    }

    /// Raises the watermark; the ids on the way are gaps, or over.
    fn raise(&mut self, to: u64, gaps: bool) {
        while self.next < to {
            let at = self.word_of(self.next).expect("the watermark's word is never behind the recent ones");
            if at == self.recent.len() {
                self.grow();
                continue;
            }
            let bit = self.next % WORD_BITS;
            let ids = (WORD_BITS - bit).min(to - self.next);
            if gaps {
                self.recent[at].gaps |= span(bit, ids);
                self.gaps += ids as usize;
            }
            self.next += ids;
        }
    }

    /// Whatever lies between these indexes is over; both are at most the watermark.
    fn clear_between(&mut self, index: u64, end: u64, ended: &mut Vec<u64>) {
        if index >= end {
            return;
        }
        let old = |held: &BTreeSet<u64>| held.range(index..end).copied().collect::<Vec<_>>();
        let (live, gaps) = (old(&self.old_live), old(&self.old_gaps));
        gaps.into_iter().for_each(|gap| self.clear(gap, State::Gap));
        ended.extend(live.iter().map(|live| self.id(*live)));
        live.into_iter().for_each(|live| self.clear(live, State::Live));
        let mut at = index.max(self.first_word * WORD_BITS);
        while at < end {
            let (bit, base) = (at % WORD_BITS, at - at % WORD_BITS);
            let ids = (WORD_BITS - bit).min(end - at);
            let Some(word) = self.word_of(at).and_then(|word| self.recent.get_mut(word)) else { return };
            let (live, gaps) = (word.live & span(bit, ids), word.gaps & span(bit, ids));
            word.live &= !live;
            word.gaps &= !gaps;
            self.live -= live.count_ones() as usize;
            self.gaps -= gaps.count_ones() as usize;
            ended.extend(bits(live).map(|bit| self.id(base + bit)));
            at += ids;
        }
    }

    /// Closes so many of the oldest gaps.
    fn close_gaps(&mut self, mut many: usize) {
        many = many.min(self.gaps);
        self.gaps -= many;
        self.gaps_closed += many as u64;
        while many > 0 && self.old_gaps.pop_first().is_some() {
            many -= 1;
        }
        for word in &mut self.recent {
            while many > 0 && word.gaps != 0 {
                let all = word.gaps.count_ones() as usize;
                (word.gaps, many) = if all <= many { (0, many - all) } else { (word.gaps & (word.gaps - 1), many - 1) };
            }
        }
    }

    fn live_indexes(&self) -> Vec<u64> {
        self.indexes(&self.old_live, |word| word.live)
    }

    fn gap_indexes(&self) -> Vec<u64> {
        self.indexes(&self.old_gaps, |word| word.gaps)
    }

    fn indexes(&self, old: &BTreeSet<u64>, held: impl Fn(&Word) -> u64) -> Vec<u64> {
        let recent = (self.first_word..).zip(&self.recent);
        let recent = recent.flat_map(|(word, row)| bits(held(row)).map(move |bit| word * WORD_BITS + bit));
        old.iter().copied().chain(recent).collect()
    }
}

/// So many bits, from this one on; at least one.
fn span(bit: u64, ids: u64) -> u64 {
    (u64::MAX >> (WORD_BITS - ids)) << bit
}

/// The positions of the bits that are set, rising.
fn bits(mut word: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| u64::from(word.trailing_zeros()))?;
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_handed_out_once_and_by_parity() {
        let mut initiator = Allocator::new(Side::Initiator);
        let mut acceptor = Allocator::new(Side::Acceptor);
        assert_eq!([initiator.take(), initiator.take(), initiator.take()], [0, 2, 4]);
        assert_eq!([acceptor.take(), acceptor.take(), acceptor.next_id()], [1, 3, 5]);
        assert_eq!(Accepter::new(Side::Acceptor).accept(2), Err(IdError::WrongParity));
    }

    #[test]
    fn a_million_calls_beside_a_long_one_leave_one_id_behind() {
        let mut ids = Accepter::new(Side::Initiator);
        assert_eq!(ids.accept(0), Ok(Accepted::Fresh));
        for id in (2..2_000_000).step_by(2) {
            assert_eq!(ids.accept(id), Ok(Accepted::Fresh));
            assert!(ids.finished(id));
        }
        assert_eq!((ids.live(), ids.gaps(), ids.next_id()), (1, 0, 2_000_000));
        assert!(ids.recent.len() <= RECENT_WORDS && ids.old_live.len() <= 1);
        assert_eq!((ids.accept(0), ids.accept(4)), (Ok(Accepted::Live), Err(IdError::Closed)));
    }

    #[test]
    fn a_jump_beyond_the_bound_is_refused_and_changes_nothing() {
        let mut ids = Accepter::new(Side::Acceptor);
        assert_eq!(ids.accept(2 * AHEAD + 3), Err(IdError::TooFarAhead));
        assert_eq!(ids.accept(u64::MAX), Err(IdError::TooFarAhead));
        assert_eq!((ids.next_id(), ids.gaps()), (1, 0));
        assert_eq!(ids.accept(2 * AHEAD + 1), Ok(Accepted::Fresh));
        assert_eq!(ids.gaps() as u64, AHEAD);
    }

    #[test]
    fn the_oldest_gap_closes_when_there_are_too_many() {
        let mut ids = Accepter::new(Side::Initiator);
        for n in 0..GAPS as u64 + 100 {
            assert_eq!(ids.accept(4 * n + 2), Ok(Accepted::Fresh));
            ids.finished(4 * n + 2);
        }
        assert_eq!((ids.gaps(), ids.gaps_closed()), (GAPS, 100));
        assert_eq!((ids.accept(0), ids.accept(400)), (Err(IdError::Closed), Ok(Accepted::Fresh)));
    }

    #[test]
    fn live_streams_are_bounded_and_a_refused_id_can_come_again() {
        let mut ids = Accepter::new(Side::Initiator);
        let bound = 2 * limits::LIVE_STREAMS as u64;
        (0..bound).step_by(2).for_each(|id| assert_eq!(ids.accept(id), Ok(Accepted::Fresh)));
        assert_eq!(ids.accept(bound), Err(IdError::TooManyLive));
        ids.finished(10);
        assert_eq!(ids.accept(bound), Ok(Accepted::Fresh));
    }

    #[test]
    fn an_attach_ends_what_the_opener_does_not_list_and_expects_what_it_does() {
        let mut ids = Accepter::new(Side::Initiator);
        [0, 2, 6, 8].iter().for_each(|id| assert!(ids.accept(*id).is_ok())); // 4 is a gap
        ids.finished(8);
        assert_eq!(ids.attached(2_000_000, [0, 4, 8, 900_000]), Ok(vec![2, 6]));
        assert_eq!((ids.live_ids(), ids.gaps(), ids.next_id()), (vec![0], 2, 2_000_000));
        assert_eq!(ids.accept(0), Ok(Accepted::Live));
        assert_eq!([ids.accept(4), ids.accept(900_000)], [Ok(Accepted::Fresh); 2]);
        assert_eq!([ids.accept(8), ids.accept(6), ids.accept(1_000_000)], [Err(IdError::Closed); 3]);
        assert_eq!(ids.accept(2_000_000), Ok(Accepted::Fresh));
        // A list made before the last stream was opened says nothing of it.
        assert_eq!(ids.attached(2_000_000, [0]), Ok(vec![4, 900_000]));
        assert_eq!((ids.live_ids(), ids.next_id()), (vec![0, 2_000_000], 2_000_002));
        assert_eq!(ids.attached(2_000_002, [2_000_002]), Err(IdError::TooFarAhead));
    }

    /// The same rules, written down without a thought for speed.
    #[derive(Default)]
    struct Model {
        next: u64,
        live: HashSet<u64>,
        gaps: BTreeSet<u64>,
    }

    impl Model {
        fn accept(&mut self, index: u64) -> Result<Accepted, IdError> {
            if self.live.contains(&index) {
                return Ok(Accepted::Live);
            }
            if index < self.next && !self.gaps.contains(&index) {
                return Err(IdError::Closed);
            }
            if index > self.next + AHEAD {
                return Err(IdError::TooFarAhead);
            }
            if self.live.len() >= limits::LIVE_STREAMS {
                return Err(IdError::TooManyLive);
            }
            self.gaps.extend(self.next..index);
            self.gaps.remove(&index);
            self.live.insert(index);
            self.next = self.next.max(index + 1);
            while self.gaps.len() > GAPS {
                self.gaps.pop_first();
            }
            Ok(Accepted::Fresh)
        }

        fn over(&mut self, index: u64, count: u64) -> Vec<u64> {
            let farthest = self.next + AHEAD;
            let end = (index + count).min(farthest + 1);
            self.gaps.retain(|gap| !(index..end).contains(gap));
            let mut over: Vec<u64> = self.live.iter().copied().filter(|live| (index..end).contains(live)).collect();
            over.sort_unstable();
            self.live.retain(|live| !(index..end).contains(live));
            if index <= farthest && end > self.next {
                self.gaps.extend(self.next..index);
                self.next = end;
                while self.gaps.len() > GAPS {
                    self.gaps.pop_first();
                }
            }
            over
        }

        fn attached(&mut self, next: u64, listed: &HashSet<u64>) -> Vec<u64> {
            let stays = |index: &u64| *index >= next || listed.contains(index);
            let mut over: Vec<u64> = self.live.iter().copied().filter(|index| !stays(index)).collect();
            over.sort_unstable();
            let unseen = |index: &u64| *index >= self.next || self.gaps.contains(index);
            let mut gaps: BTreeSet<u64> = listed.iter().copied().filter(unseen).collect();
            gaps.extend(self.gaps.iter().filter(|index| **index >= next));
            self.gaps = gaps;
            self.live.retain(stays);
            self.next = self.next.max(next);
            over
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        InOrder(u8),
        Near(i16),
        Far(u16),
        Finish(u16),
        FinishAll,
        Over(i16, u64),
        Attach { skipped: i16, keep: u8, promised: u8 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u8..100).prop_map(Step::InOrder),
            12 => (-300i16..40).prop_map(Step::Near),
            1 => (0u16..4_200).prop_map(Step::Far),
            8 => any::<u16>().prop_map(Step::Finish),
            1 => Just(Step::FinishAll),
            2 => (-300i16..40, 1u64..100).prop_map(|(offset, count)| Step::Over(offset, count)),
            1 => (-300i16..4_200, 1u64..1 << 60).prop_map(|(offset, count)| Step::Over(offset, count)),
            1 => (-50i16..300, any::<u8>(), 0u8..5).prop_map(|(skipped, keep, promised)| Step::Attach { skipped, keep, promised }),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn the_record_is_what_plain_sets_would_be(steps in steps(), acceptor in any::<bool>()) {
            let side = if acceptor { Side::Acceptor } else { Side::Initiator };
            let id = |index: u64| index * 2 + side.parity();
            let (mut ids, mut model) = (Accepter::new(side), Model::default());
            for step in steps {
                match step {
                    Step::InOrder(count) => for _ in 0..count {
                        prop_assert_eq!(ids.accept(id(model.next)), model.accept(model.next));
                    },
                    Step::Near(offset) => {
                        let index = model.next.saturating_add_signed(offset.into());
                        prop_assert_eq!(ids.accept(id(index)), model.accept(index));
                    }
                    Step::Far(offset) => {
                        let index = model.next + u64::from(offset);
                        prop_assert_eq!(ids.accept(id(index)), model.accept(index));
                    }
                    Step::Finish(back) => {
                        let index = model.next.saturating_sub(u64::from(back % 600));
                        prop_assert_eq!(ids.finished(id(index)), model.live.remove(&index));
                    }
                    Step::FinishAll => for index in model.live.drain() {
                        prop_assert!(ids.finished(id(index)));
                    },
                    Step::Over(offset, count) => {
                        let index = model.next.saturating_add_signed(offset.into());
                        let over: Vec<u64> = model.over(index, count).into_iter().map(id).collect();
                        prop_assert_eq!(ids.over(id(index), count), over);
                    }
                    Step::Attach { skipped, keep, promised } => {
                        let next = model.next.saturating_add_signed(skipped.into());
                        let kept = |index: &u64| *index < next && index % 256 > u64::from(keep);
                        let known = model.live.iter().chain(&model.gaps).copied().filter(kept).take(limits::LIVE_STREAMS - 5);
                        let listed: HashSet<u64> = known.chain((model.next..next).take(promised.into())).collect();
                        let over = ids.attached(id(next), listed.iter().map(|index| id(*index))).unwrap();
                        let expected: Vec<u64> = model.attached(next, &listed).into_iter().map(id).collect();
                        prop_assert_eq!(over, expected);
                    }
                }
                prop_assert_eq!((ids.live(), ids.gaps()), (model.live.len(), model.gaps.len()));
                prop_assert_eq!(ids.next_id(), id(model.next));
            }
            let mut live: Vec<u64> = model.live.into_iter().map(id).collect();
            live.sort_unstable();
            prop_assert_eq!(ids.live_ids(), live);
        }
    }
}
