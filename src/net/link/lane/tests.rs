//! Both ends of a lane without a network: whatever the halves do and however late things come, what is read is what was written; and what
//! nobody says is refused.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;
use proptest::prelude::*;

use super::frame::{End, Frame};
use super::*;
use crate::proto::limits::{LANE_FIRST_BYTES, LANE_QUEUE_BYTES, LANE_STREAM_BYTES, LANE_STREAMS};

/// What carries a direction that has moved.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    finished: bool,
}

type Part = Rc<RefCell<Pipe>>;

/// The halves of one path stream at one end.
#[derive(Debug, Default)]
struct Halves {
    written: Vec<u8>,
    own: Option<Part>,
    /// How it was ended: with a code if it was given up.
    sent: Option<Result<(), u64>>,
    read: Vec<u8>,
    there: Option<(Part, usize)>,
    got: Option<Result<(), u64>>,
    stopped: Option<u64>,
    /// Which halves are gone.
    gone: [bool; 2],
}

struct Side {
    table: Table<Part>,
    halves: BTreeMap<u64, Halves>,
    /// What is on its way to the other side.
    records: VecDeque<Vec<u8>>,
    parts: Vec<(u64, Part)>,
}

impl Side {
    fn new(opens: bool) -> Self {
        Self { table: Table::new(opens), halves: BTreeMap::new(), records: VecDeque::new(), parts: Vec::new() }
    }

    fn write(&mut self, number: u64, length: usize) -> Result<(), Halted> {
        let halves = self.halves.get_mut(&number).unwrap();
        let begins = halves.written.len();
        let bytes: Vec<u8> = (begins..begins + length).map(|at| (at as u64 * 31 + number) as u8).collect();
        if halves.own.is_none() {
            let mut left = Bytes::from(bytes.clone());
            match self.table.write(number, &mut left, false, Waker::noop())? {
                Written::Waits => return Ok(()),
                Written::All => assert!(left.is_empty()),
                Written::Moves => {
                    self.table.moved(number)?;
                    let part = Part::default();
                    part.borrow_mut().bytes.extend(&halves.written);
                    self.parts.push((number, part.clone()));
                    halves.own = Some(part);
                }
            }
        }
        if let Some(own) = &halves.own {
            own.borrow_mut().bytes.extend(&bytes);
        }
        halves.written.extend(bytes);
        Ok(())
    }

    fn finish(&mut self, number: u64) {
        let halves = self.halves.get_mut(&number).unwrap();
        if halves.sent.is_some() {
            return;
        }
        match &halves.own {
            Some(own) => {
                own.borrow_mut().finished = true;
                self.table.finished_there(number);
            }
            None => self.table.finish(number).unwrap(),
        }
        halves.sent = Some(Ok(()));
    }

    fn reset(&mut self, number: u64, code: u64) {
        let halves = self.halves.get_mut(&number).unwrap();
        if halves.sent.is_none() {
            halves.sent = Some(Err(code));
            self.table.reset(number, code);
            // With it may go what has not arrived.
            if let Some(own) = &halves.own {
                own.borrow_mut().bytes.clear();
            }
        }
    }

    fn stop(&mut self, number: u64, code: u64) {
        let halves = self.halves.get_mut(&number).unwrap();
        if halves.got.is_none() && halves.stopped.is_none() {
            halves.stopped = Some(code);
            self.table.stop(number, code);
        }
    }

    fn drop_half(&mut self, number: u64, which: usize) {
        if self.halves[&number].gone[which] {
            return;
        }
        match which {
            0 => {
                self.reset(number, 0);
                self.table.write_no_more(number);
            }
            _ => {
                self.stop(number, 0);
                self.table.read_no_more(number);
            }
        }
        self.halves.get_mut(&number).unwrap().gone[which] = true;
    }

    /// Reads once; whether something came.
    fn read(&mut self, number: u64) -> bool {
        let halves = self.halves.get_mut(&number).unwrap();
        if halves.got.is_some() || halves.stopped.is_some() || halves.gone[1] {
            return false;
        }
        if halves.there.is_none() {
            match self.table.read(number, Waker::noop()).unwrap() {
                Read::Bytes(bytes) => halves.read.extend_from_slice(&bytes),
                Read::End => halves.got = Some(Ok(())),
                Read::Reset(code) => halves.got = Some(Err(code)),
                Read::Part(part, skip) => halves.there = Some((part, skip)),
                Read::Nothing => return false,
            }
            return true;
        }
        if let Some(code) = self.table.was_reset(number, Waker::noop()) {
            halves.got = Some(Err(code));
            return true;
        }
        let Some((part, skip)) = &mut halves.there else { return false };
        let mut part = part.borrow_mut();
        let again = (*skip).min(part.bytes.len());
        part.bytes.drain(..again);
        *skip -= again;
        let came = !part.bytes.is_empty();
        halves.read.extend(part.bytes.drain(..));
        if part.finished {
            assert_eq!(*skip, 0);
            halves.got = Some(Ok(()));
        }
        came || halves.got.is_some()
    }

    /// Takes what this end says off it.
    fn say(&mut self) {
        while let Some(Some(record)) = self.table.take(Waker::noop()) {
            self.table.handed(record.len());
            self.records.push_back(record);
        }
    }

    fn accept(&mut self) {
        for number in self.table.opened() {
            self.table.accepted(number);
            assert!(self.halves.insert(number, Halves::default()).is_none(), "a stream is opened once");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Write(usize, usize),
    Finish(usize),
    Reset(usize, u64),
    Stop(usize, u64),
    Read(usize),
    Drop(usize, usize),
    Record,
    Part(usize),
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let length = prop_oneof![
        4 => 0usize..100,
        1 => Just(LANE_FIRST_BYTES),
        1 => Just(LANE_FIRST_BYTES + 1),
        1 => LANE_FIRST_BYTES - 5..LANE_STREAM_BYTES + 5,
    ];
    let which = 0usize..1_000;
    let step = prop_oneof![
        3 => Just(Step::Open),
        8 => (which.clone(), length).prop_map(|(which, length)| Step::Write(which, length)),
        3 => which.clone().prop_map(Step::Finish),
        1 => (which.clone(), 1u64..9).prop_map(|(which, code)| Step::Reset(which, code)),
        1 => (which.clone(), 1u64..9).prop_map(|(which, code)| Step::Stop(which, code)),
        6 => which.clone().prop_map(Step::Read),
        2 => (which.clone(), 0usize..2).prop_map(|(which, half)| Step::Drop(which, half)),
        6 => Just(Step::Record),
        3 => which.prop_map(Step::Part),
    ];
    prop::collection::vec((any::<bool>(), step), 0..200)
}

/// One step of one side; the other one gets what arrives.
fn take(step: Step, side: &mut Side, other: &mut Side) {
    side.say();
    let picked = |which: usize| side.halves.keys().nth(which % side.halves.len().max(1)).copied();
    match step {
        Step::Open if side.table.opens() => {
            let number = side.table.open();
            side.halves.insert(number, Halves::default());
        }
        Step::Open => {}
        Step::Record => {
            if let Some(record) = side.records.pop_front() {
                other.table.record(&record).expect("an honest end breaks nothing");
                other.accept();
            }
        }
        Step::Part(which) if !side.parts.is_empty() => {
            let (number, part) = side.parts.swap_remove(which % side.parts.len());
            other.table.part(number, part).expect("an honest end breaks nothing");
            other.accept();
        }
        Step::Part(_) => {}
        Step::Write(which, length) => {
            if let Some(number) = picked(which)
                && side.halves[&number].sent.is_none()
                && let Err(halted) = side.write(number, length)
            {
                assert_eq!(halted, Halted::Stopped(other.halves[&number].stopped.expect("the other end stopped it")));
            }
        }
        Step::Finish(which) => picked(which).into_iter().for_each(|number| side.finish(number)),
        Step::Reset(which, code) => picked(which).into_iter().for_each(|number| side.reset(number, code)),
        Step::Stop(which, code) => picked(which).into_iter().for_each(|number| side.stop(number, code)),
        Step::Read(which) => {
            if let Some(number) = picked(which) {
                side.read(number);
                agree(number, side, other);
            }
        }
        Step::Drop(which, half) => picked(which).into_iter().for_each(|number| side.drop_half(number, half)),
    }
}

/// What this end has read is what the other one has written.
fn agree(number: u64, reader: &Side, writer: &Side) {
    let read = &reader.halves[&number];
    // What was not heard of there has said nothing.
    let nothing = Halves::default();
    let written = writer.halves.get(&number).unwrap_or(&nothing);
    assert!(written.written.starts_with(&read.read));
    match read.got {
        None => {}
        Some(Ok(())) => assert_eq!((written.sent, read.read.len()), (Some(Ok(())), written.written.len())),
        Some(Err(code)) => assert_eq!(written.sent, Some(Err(code))),
    }
}

fn arrive(a: &mut Side, b: &mut Side, parts_first: bool) {
    loop {
        let (step, before) = (if parts_first { Step::Part(0) } else { Step::Record }, (a.parts.len(), b.parts.len()));
        take(step.clone(), a, b);
        take(step, b, a);
        if before == (a.parts.len(), b.parts.len()) {
            [Step::Record, Step::Part(1)].into_iter().for_each(|step| {
                take(step.clone(), a, b);
                take(step, b, a);
            });
        }
        a.say();
        b.say();
        if a.records.is_empty() && b.records.is_empty() && a.parts.is_empty() && b.parts.is_empty() {
            return;
        }
    }
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written_however_it_comes(steps in steps(), parts_first: bool) {
        let (mut a, mut b) = (Side::new(true), Side::new(false));
        for (at_a, step) in steps {
            if at_a { take(step, &mut a, &mut b) } else { take(step, &mut b, &mut a) }
        }
        // All that is on its way arrives, and is read.
        arrive(&mut a, &mut b, parts_first);
        for number in a.halves.keys().copied().collect::<Vec<_>>() {
            if !b.halves.contains_key(&number) {
                prop_assert!(a.halves[&number].written.is_empty(), "nothing was said of it");
                continue;
            }
            whole(number, &mut a, &b);
            whole(number, &mut b, &a);
        }
        // When both ends have let go of everything, nothing is left.
        for side in [&mut a, &mut b] {
            for number in side.halves.keys().copied().collect::<Vec<_>>() {
                side.drop_half(number, 0);
                side.drop_half(number, 1);
            }
        }
        arrive(&mut a, &mut b, parts_first);
        for number in b.halves.keys().copied().collect::<Vec<_>>() {
            b.drop_half(number, 0);
            b.drop_half(number, 1);
        }
        arrive(&mut a, &mut b, parts_first);
        prop_assert_eq!((a.table.live(), b.table.live()), (0, 0));
        prop_assert_eq!(a.table.news().1, a.halves.len());
        a.table.retire();
        prop_assert_eq!(a.table.take(Waker::noop()), Some(None), "the lane ends");
        prop_assert_eq!(b.table.end(), Ok(()));
        prop_assert!(b.table.is_gone());
        prop_assert_eq!(b.table.take(Waker::noop()), Some(None));
        prop_assert_eq!(a.table.end(), Ok(()));
        prop_assert!(a.table.is_gone());
    }

    #[test]
    fn noise_never_harms(noise in prop::collection::vec(any::<u8>(), 0..300), opens: bool) {
        let mut table = Table::<()>::new(opens);
        if opens {
            (0..3).for_each(|_| _ = table.open());
        }
        let _ = table.record(&noise);
        prop_assert!(table.live() <= LANE_STREAMS);
    }
}

/// Reads all there is.
fn whole(number: u64, reader: &mut Side, writer: &Side) {
    while reader.read(number) {}
    agree(number, reader, writer);
    let (read, written) = (&reader.halves[&number], &writer.halves[&number]);
    if read.stopped.is_none() && !read.gone[1] {
        match written.sent {
            None | Some(Ok(())) => assert_eq!(read.read, written.written),
            Some(Err(_)) => {}
        }
        assert_eq!(read.got, written.sent, "an end is heard");
    }
}

fn frames(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut record = Vec::new();
    frames.iter().for_each(|frame| frame.put(&mut record));
    record
}

fn frame(stream: u64) -> Frame<'static> {
    Frame { stream, ..Frame::default() }
}

fn hears(table: &mut Table<u8>, said: &[Frame<'_>]) -> Result<(), Broken> {
    table.record(&frames(said))
}

#[test]
fn what_nobody_says_is_refused() {
    let bytes = |stream, bytes| Frame { bytes, ..frame(stream) };
    let ends = |stream, end| Frame { end: Some(end), ..frame(stream) };
    let stops = |stream| Frame { stop: Some(1), ..frame(stream) };
    let theirs = |said: &[Frame<'_>]| hears(&mut Table::new(false), said);
    let large = vec![0; LANE_STREAM_BYTES];

    assert_eq!(theirs(&[bytes(0, &large)]), Ok(()));
    assert_eq!(theirs(&[bytes(0, &large), bytes(0, b"x")]), Err(Broken::NotMoved(0)));
    let more: Vec<u8> = [&[1, 0, 0x80, 0, 0x40, 1][..], &large, &[0]].concat();
    assert_eq!(Table::<u8>::new(false).record(&more), Err(Broken::Length(LANE_STREAM_BYTES + 1)));
    for end in [End::Finished, End::Reset(1), End::Moved] {
        assert_eq!(theirs(&[ends(0, end), bytes(0, b"x")]), Err(Broken::AfterEnd(0)));
        assert_eq!(theirs(&[ends(0, end), ends(0, End::Finished)]), Err(Broken::AfterEnd(0)));
        assert_eq!(theirs(&[ends(0, end), ends(0, End::Moved)]), Err(Broken::AfterEnd(0)));
    }
    assert_eq!(theirs(&[ends(0, End::Moved), ends(0, End::Reset(1))]), Ok(()));
    assert_eq!(theirs(&[ends(0, End::Moved), ends(0, End::Reset(1)), ends(0, End::Reset(1))]), Err(Broken::AfterEnd(0)));
    assert_eq!(theirs(&[ends(0, End::Finished), ends(0, End::Reset(1))]), Err(Broken::AfterEnd(0)));
    assert_eq!(theirs(&[stops(0), stops(0)]), Err(Broken::Twice(0)));
    let last = LANE_STREAMS as u64 - 1;
    assert_eq!(theirs(&[stops(last)]), Ok(()));
    assert_eq!(theirs(&[stops(last + 1)]), Err(Broken::TooMany));
    assert_eq!(theirs(&[stops(last), stops(last + 1)]), Err(Broken::TooMany));
    assert_eq!(theirs(&[stops(crate::proto::varint::MAX)]), Err(Broken::TooMany));

    // Of a lane that this end has opened.
    assert_eq!(hears(&mut Table::new(true), &[stops(0)]), Err(Broken::NeverOpened(0)));
    assert_eq!(Table::new(true).part(0, 0u8), Err(Broken::NeverOpened(0)));
    assert_eq!(Table::<u8>::new(true).end(), Err(Broken::CutOff), "the end that opened it says when it ends");
}

#[test]
fn a_stream_that_has_moved_must_agree_with_what_was_on_the_lane() {
    let mut table = Table::new(false);
    assert_eq!(table.part(LANE_STREAMS as u64, 0u8), Err(Broken::TooMany));
    assert_eq!(table.part(1, 1), Ok(None), "it may overtake what opens it");
    assert_eq!(table.part(1, 1), Err(Broken::Twice(1)));
    assert_eq!(hears(&mut table, &[Frame { end: Some(End::Finished), ..frame(1) }]), Err(Broken::Apart(1)));

    let mut table = Table::new(false);
    hears(&mut table, &[Frame { end: Some(End::Finished), ..frame(0) }]).unwrap();
    assert_eq!(table.part(0, 1), Err(Broken::Apart(0)));
    let mut table = Table::new(false);
    hears(&mut table, &[Frame { end: Some(End::Moved), ..frame(0) }, Frame { end: Some(End::Reset(1)), ..frame(0) }]).unwrap();
    assert_eq!(table.part(0, 1), Ok(Some(1)), "nobody wants it");
}

#[test]
fn a_stream_that_came_before_its_lane_had_opened_it_is_over_only_when_the_lane_has() {
    let mut table = Table::new(false);
    table.part(2, 7u8).unwrap();
    assert_eq!(table.opened(), [2]);
    table.accepted(2);
    assert_eq!(table.read(2, Waker::noop()), Ok(Read::Part(7, 0)));
    table.write(2, &mut Bytes::from_static(b"answer"), false, Waker::noop()).unwrap();
    table.finish(2).unwrap();
    assert_eq!(table.take(Waker::noop()), Some(Some(b"\x01\x02\x06answer".to_vec())), "its end waits");
    assert_eq!(table.live(), 0);
    hears(&mut table, &[Frame { end: Some(End::Moved), ..frame(2) }]).unwrap();
    assert_eq!(table.opened(), [0, 1]);
    assert_eq!(table.live(), 2);
    assert_eq!(table.take(Waker::noop()), Some(Some(b"\x02\x02".to_vec())));
}

#[test]
fn a_stream_that_waits_to_be_accepted_stays_live_though_it_was_stopped() {
    let mut table = Table::<u8>::new(false);
    hears(&mut table, &[Frame { end: Some(End::Finished), stop: Some(3), ..frame(0) }]).unwrap();
    assert_eq!((table.live(), table.take(Waker::noop())), (1, None));
    table.accepted(0);
    assert_eq!((table.live(), table.take(Waker::noop())), (0, Some(Some(b"\x04\x00\x03".to_vec()))));
    assert_eq!(table.write(0, &mut Bytes::from_static(b"x"), false, Waker::noop()), Err(Halted::Stopped(3)));
    assert_eq!(table.finish(0), Ok(()));
}

#[test]
fn writers_wait_when_the_lane_is_full_and_ends_do_not() {
    let mut table = Table::<u8>::new(true);
    let whole = Bytes::from(vec![0; LANE_FIRST_BYTES]);
    let mut taken = 0;
    let full = loop {
        let number = table.open();
        match table.write(number, &mut whole.clone(), false, Waker::noop()).unwrap() {
            Written::Waits => break number,
            written => assert_eq!(written, Written::All),
        }
        taken += whole.len();
    };
    assert!((LANE_QUEUE_BYTES..LANE_QUEUE_BYTES + 2 * LANE_FIRST_BYTES).contains(&taken), "{taken}");
    table.finish(full).unwrap();
    assert_eq!(table.stopped(full, Waker::noop()), None, "its end has not left");
    while let Some(Some(record)) = table.take(Waker::noop()) {
        assert!(record.len() <= crate::seal::PLAIN_BYTES);
        table.handed(record.len());
    }
    assert_eq!(table.stopped(full, Waker::noop()), Some(Ok(())));
    let next = table.open();
    assert_eq!(table.write(next, &mut whole.clone(), false, Waker::noop()), Ok(Written::All));
}

#[test]
fn what_is_large_or_comes_to_much_moves() {
    let mut table = Table::<u8>::new(true);
    let mut writes = |lengths: &[usize], alone: bool| {
        let number = table.open();
        let mut last = Ok(Written::All);
        for length in lengths {
            last = table.write(number, &mut vec![0; *length].into(), alone, Waker::noop());
            while let Some(Some(record)) = table.take(Waker::noop()) {
                table.handed(record.len());
            }
        }
        last
    };
    assert_eq!(writes(&[LANE_FIRST_BYTES], false), Ok(Written::All));
    assert_eq!(writes(&[LANE_FIRST_BYTES + 1], false), Ok(Written::Moves));
    assert_eq!(writes(&[1, LANE_STREAM_BYTES - 1], false), Ok(Written::All));
    assert_eq!(writes(&[1, LANE_STREAM_BYTES], false), Ok(Written::Moves));
    assert_eq!(writes(&[1], true), Ok(Written::Moves));
    table.retire();
    let number = table.open();
    assert_eq!(table.write(number, &mut Bytes::from_static(b"x"), false, Waker::noop()), Ok(Written::Moves));
}
