//! What is done to the bytes of one direction of one stream, in whatever pieces they come.

use std::mem::take;

use voltmesh::seal::{HEAD_BYTES, TAG_BYTES};

use crate::plan::{Deed, Plan};

/// What the carrier does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Go,
    /// Holds what is left until all else is done.
    Hold,
    /// Goes on as another direction.
    Exchange,
    /// Ends it here.
    Finish,
    Reset,
    Swallow,
    Stop,
}

pub struct Edit {
    deed: Deed,
    /// Whole records are counted, not bytes.
    records: Option<Records>,
    at: usize,
    left: usize,
    next_left: usize,
    bit: u8,
    noise: Vec<u8>,
    /// Of the same direction, in an older circuit.
    old: Vec<u8>,
    passed: usize,
    kept: Vec<u8>,
    second: Vec<u8>,
    done: bool,
    pub changed: bool,
}

/// A direction's records, of which the carrier can see how long they are.
#[derive(Default)]
struct Records {
    part: Vec<u8>,
    /// How many were whole.
    whole: usize,
    at: usize,
    length: usize,
    next_length: usize,
}

impl Records {
    /// The next one, if it is here whole.
    fn next(&mut self) -> Option<(usize, Vec<u8>)> {
        let length = HEAD_BYTES + usize::from(u16::from_be_bytes([*self.part.get(1)?, *self.part.get(2)?])) + TAG_BYTES;
        if self.part.len() < length {
            return None;
        }
        let rest = self.part.split_off(length);
        self.whole += 1;
        Some((self.whole - 1, std::mem::replace(&mut self.part, rest)))
    }
}

impl Edit {
    pub fn new(plan: &Plan, at: usize, old: Vec<u8>) -> Self {
        Self {
            deed: plan.deed,
            records: None,
            at,
            left: plan.length,
            next_left: plan.next_length,
            bit: (plan.seed % 8) as u8,
            noise: plan.noise(),
            old,
            passed: 0,
            kept: Vec::new(),
            second: Vec::new(),
            done: false,
            changed: false,
        }
    }

    /// Of whole records: `at` and the plan's lengths count those.
    pub fn of_records(plan: &Plan, at: usize, old: Vec<u8>) -> Self {
        let records = Records { at, length: plan.length, next_length: plan.next_length, ..Records::default() };
        Self { records: Some(records), ..Self::new(plan, if at == 0 { 0 } else { usize::MAX }, old) }
    }

    /// Takes bytes that came. Gives what goes on at once, what is to be done then, and what is to be given here again after that.
    pub fn feed(&mut self, came: &[u8]) -> (Vec<u8>, Next, Vec<u8>) {
        let Some(records) = &mut self.records else { return self.feed_bytes(came) };
        records.part.extend_from_slice(came);
        let mut out = Vec::new();
        if self.passed == 0 && self.at == 0 {
            let (_, next, _) = self.feed_bytes(&[]);
            if next != Next::Go {
                return (out, next, Vec::new());
            }
        }
        loop {
            let Some(records) = &mut self.records else { return (out, Next::Go, Vec::new()) };
            let Some((number, record)) = records.next() else { return (out, Next::Go, Vec::new()) };
            let (at, first) = (records.at, records.at.saturating_add(records.length));
            let second = first.saturating_add(records.next_length);
            match self.deed {
                Deed::Drop if (at..first).contains(&number) => self.changed = true,
                Deed::Repeat if (at..first).contains(&number) => {
                    self.kept.extend_from_slice(&record);
                    out.extend(record);
                }
                Deed::Reorder if (at..first).contains(&number) => self.kept.extend(record),
                Deed::Reorder if (first..second).contains(&number) => self.second.extend(record),
                Deed::Drop => out.extend(record),
                Deed::Repeat | Deed::Reorder => {
                    if number >= first {
                        self.flush(&mut out);
                    }
                    out.extend(record);
                }
                _ => {
                    if number == at {
                        self.at = self.passed;
                    }
                    let (more, next, left) = self.feed_bytes(&record);
                    out.extend(more);
                    if next != Next::Go {
                        // It comes again, with what is here after it.
                        let records = self.records.as_mut().expect("it is of records");
                        records.whole -= usize::from(!left.is_empty());
                        let rest = std::mem::take(&mut records.part);
                        return (out, next, [left, rest].concat());
                    }
                }
            }
        }
    }

    fn feed_bytes(&mut self, came: &[u8]) -> (Vec<u8>, Next, Vec<u8>) {
        let before = self.at.saturating_sub(self.passed).min(came.len());
        let (before, here) = came.split_at(before);
        let mut out = before.to_vec();
        let next = self.due(!here.is_empty());
        if next != Next::Go {
            self.passed += before.len();
            self.done = true;
            return (out, next, here.to_vec());
        }
        self.passed += came.len();
        match here.is_empty() || self.done {
            true => out.extend_from_slice(here),
            false => self.change(here, &mut out),
        }
        (out, Next::Go, Vec::new())
    }

    /// What is due before the first byte of what it is about, once.
    fn due(&self, here: bool) -> Next {
        match self.deed {
            _ if self.done => Next::Go,
            // Two directions meet where they are, though nothing may come.
            Deed::Swap | Deed::Reflect | Deed::Cross if here || self.at <= self.passed => Next::Exchange,
            _ if !here => Next::Go,
            Deed::Delay => Next::Hold,
            Deed::Swallow => Next::Swallow,
            Deed::Finish => Next::Finish,
            Deed::Reset => Next::Reset,
            Deed::Stop => Next::Stop,
            _ => Next::Go,
        }
    }

    fn change(&mut self, here: &[u8], out: &mut Vec<u8>) {
        match self.deed {
            Deed::Flip => {
                out.push(here[0] ^ (1 << self.bit));
                out.extend_from_slice(&here[1..]);
                (self.changed, self.done) = (true, true);
            }
            Deed::Insert => {
                out.append(&mut self.noise);
                out.extend_from_slice(here);
                (self.changed, self.done) = (true, true);
            }
            Deed::Old => {
                let start = self.passed - here.len();
                let end = self.old.len().min(self.passed);
                let old = &self.old[start.min(end)..end];
                self.changed |= old != here;
                out.extend_from_slice(old);
            }
            Deed::Drop => {
                let gone = self.left.min(here.len());
                self.left -= gone;
                self.changed = true;
                out.extend_from_slice(&here[gone..]);
                self.done = self.left == 0;
            }
            Deed::Repeat => {
                let again = self.left.min(here.len());
                self.left -= again;
                self.kept.extend_from_slice(&here[..again]);
                out.extend_from_slice(&here[..again]);
                if self.left == 0 {
                    self.flush(out);
                }
                out.extend_from_slice(&here[again..]);
            }
            Deed::Reorder => {
                let first = self.left.min(here.len());
                self.left -= first;
                self.kept.extend_from_slice(&here[..first]);
                let second = self.next_left.min(here.len() - first);
                self.next_left -= second;
                self.second.extend_from_slice(&here[first..first + second]);
                if self.left == 0 && self.next_left == 0 {
                    self.flush(out);
                }
                out.extend_from_slice(&here[first + second..]);
            }
            _ => out.extend_from_slice(here),
        }
    }

    /// What is held of it goes on.
    fn flush(&mut self, out: &mut Vec<u8>) {
        let (kept, second) = (take(&mut self.kept), take(&mut self.second));
        self.changed |=
            if self.deed == Deed::Reorder { [&*kept, &second].concat() != [&*second, &kept].concat() } else { !kept.is_empty() };
        out.extend(second);
        out.extend(kept);
        self.done = true;
    }

    /// The direction has ended: what still goes before the end.
    pub fn end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let part = self.records.as_mut().map(|records| take(&mut records.part)).unwrap_or_default();
        match self.deed {
            _ if self.done => {}
            Deed::Insert => {
                out.append(&mut self.noise);
                (self.changed, self.done) = (true, true);
            }
            Deed::Old if self.passed > self.at && self.old.len() > self.passed => {
                out.extend_from_slice(&self.old[self.passed..]);
                self.changed = true;
            }
            _ => self.flush(&mut out),
        }
        out.extend(part);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(deed: Deed, at: usize, lengths: [usize; 2], cut: usize) -> Vec<u8> {
        let plan = Plan { deed, length: lengths[0], next_length: lengths[1], ..Plan::draw(0, [1, 1]) };
        let mut edit = Edit::new(&plan, at, b"0123456789ABCDEF".to_vec());
        let mut out: Vec<u8> = b"abcdefghij".chunks(cut).flat_map(|piece| edit.feed(piece).0).collect();
        out.extend(edit.end());
        out
    }

    #[test]
    fn whole_records_are_changed_in_the_same_way_whatever_pieces_they_come_in() {
        let record = |byte: u8| [vec![0, 0, 1], vec![byte; 17]].concat();
        let all: Vec<u8> = (b'a'..=b'f').flat_map(record).collect();
        let edited = |deed, at, lengths: [usize; 2], cut| {
            let plan = Plan { deed, length: lengths[0], next_length: lengths[1], ..Plan::draw(0, [1, 1]) };
            let mut edit = Edit::of_records(&plan, at, Vec::new());
            let mut out: Vec<u8> = all.chunks(cut).flat_map(|piece| edit.feed(piece).0).collect();
            out.extend(edit.end());
            out.chunks(20).map(|record| char::from(record[3])).collect::<String>()
        };
        for cut in [1, 7, 20, 33, 200] {
            assert_eq!(edited(Deed::Drop, 1, [2, 0], cut), "adef");
            assert_eq!(edited(Deed::Repeat, 1, [2, 0], cut), "abcbcdef");
            assert_eq!(edited(Deed::Repeat, 5, [2, 0], cut), "abcdeff");
            assert_eq!(edited(Deed::Reorder, 1, [2, 1], cut), "adbcef");
        }
        for at in 0..6 {
            let plan = Plan { deed: Deed::Finish, ..Plan::draw(0, [1, 1]) };
            let mut edit = Edit::of_records(&plan, at, Vec::new());
            let (out, next, left) = edit.feed(&all);
            assert_eq!((out.len(), next, left.len()), (at * 20, Next::Finish, (6 - at) * 20));
        }
    }

    #[test]
    fn bytes_are_changed_in_the_same_way_whatever_pieces_they_come_in() {
        for cut in 1..11 {
            assert_eq!(edited(Deed::Drop, 2, [3, 0], cut), b"abfghij");
            assert_eq!(edited(Deed::Drop, 8, [9, 0], cut), b"abcdefgh");
            assert_eq!(edited(Deed::Repeat, 2, [3, 0], cut), b"abcdecdefghij");
            assert_eq!(edited(Deed::Reorder, 2, [3, 2], cut), b"abfgcdehij");
            assert_eq!(edited(Deed::Reorder, 2, [5, 90], cut), b"abhijcdefg");
            assert_eq!(edited(Deed::Flip, 9, [1, 1], cut), b"abcdefghik");
            assert_eq!(edited(Deed::Old, 7, [1, 1], cut), b"abcdefg789ABCDEF");
            assert_eq!(edited(Deed::Insert, 90, [6, 1], cut).len(), 16);
        }
    }
}
