//! A peer that says anything: nothing panics, what is kept stays counted, and what cannot be is a violation, nothing else is.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Stream, Streams, Violation};
use crate::proto::codec::Message;
use crate::proto::control::{Attach, Control, LiveStream, Progress, Run, SessionId};
use crate::state::budget::Budget;
use crate::state::ids::{Accepted, IdError, Side};

const BUDGET: usize = 600_000;

/// What a peer may come up with, and what happens here in between.
#[derive(Clone, Debug)]
enum Say {
    Progress(Progress),
    Attach(u64, Vec<LiveStream>),
    CarriedOn(u64, u64, u64),
    Fresh(u64),
    Stopped(u64, u64),
    Open,
    Push(u64, usize, bool),
    Received(u64, usize),
    Reset(u64),
    Over(u64),
    Carry(u64),
    Next(u64, u64),
    Tell,
}

fn number(small: u64) -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..small, 1 => 0..200_000u64, 1 => any::<u64>(), 1 => (0..4u64).prop_map(|less| u64::MAX - less)]
}

fn live() -> impl Strategy<Value = Vec<LiveStream>> {
    let code = || proptest::option::weighted(0.2, any::<u8>());
    let one = (number(12), number(40_000), any::<bool>(), code(), code());
    let one = one.prop_map(|(stream, received, ended, reset, stop)| LiveStream { stream, received, ended, reset, stop });
    proptest::collection::vec(one, 0..6).prop_map(|mut live| {
        live.sort_by_key(|stream| stream.stream);
        live.dedup_by_key(|stream| stream.stream);
        live
    })
}

fn says() -> impl Strategy<Value = Vec<Say>> {
    let run = (number(12), number(9)).prop_map(|(first, count)| Run { first, count });
    let progress = (proptest::collection::vec(run, 0..3), live()).prop_map(|(over, live)| Progress { over, live });
    let say = prop_oneof![
        4 => progress.prop_map(Say::Progress),
        2 => (number(14), live()).prop_map(|(next, live)| Say::Attach(next, live)),
        4 => (number(12), number(40_000), number(40_000)).prop_map(|(id, at, received)| Say::CarriedOn(id, at, received)),
        4 => number(12).prop_map(Say::Fresh),
        1 => (number(12), number(9)).prop_map(|(id, code)| Say::Stopped(id, code)),
        3 => Just(Say::Open),
        6 => (0..12u64, 0..60_000usize, any::<bool>()).prop_map(|(id, bytes, last)| Say::Push(id, bytes, last)),
        3 => (0..12u64, 0..60_000usize).prop_map(|(id, bytes)| Say::Received(id, bytes)),
        1 => (0..12u64).prop_map(Say::Reset),
        1 => (0..12u64).prop_map(Say::Over),
        2 => (0..12u64).prop_map(Say::Carry),
        3 => (0..12u64, number(40_000)).prop_map(|(id, at)| Say::Next(id, at)),
        1 => Just(Say::Tell),
    ];
    proptest::collection::vec(say, 1..60)
}

struct Table {
    streams: Streams<()>,
    attach: u64,
}

impl Table {
    fn ours(id: u64) -> bool {
        Side::Initiator.opens(id)
    }

    fn stream(&self, id: u64) -> Option<&Stream<()>> {
        self.streams.live.get(&id)
    }

    /// Whether one of these, of the streams that are not over by then, has more than was sent.
    fn never_sent(&self, live: &[LiveStream], over: impl Fn(u64) -> bool) -> bool {
        let too_many = |said: &&LiveStream| self.stream(said.stream).is_some_and(|stream| said.received > stream.sending.end());
        live.iter().filter(|said| !over(said.stream)).any(|said| too_many(&said))
    }

    /// What is wrong with what was said; `None` if nothing is.
    fn judge(&self, say: &Say) -> Option<Violation> {
        match say {
            Say::Progress(progress) => {
                let within = |run: &Run, id: u64| id >= run.first && (id - run.first) / 2 < run.count && id % 2 == run.first % 2;
                let over = |id| progress.over.iter().any(|run| within(run, id));
                if progress.over.iter().any(|run| Self::ours(run.first)) {
                    return Some(IdError::WrongParity.into());
                }
                self.never_sent(&progress.live, over).then_some(Violation::NeverSent)
            }
            Say::Attach(next, live) => {
                if Self::ours(*next) {
                    return Some(IdError::WrongParity.into());
                }
                if live.iter().any(|said| !Self::ours(said.stream) && said.stream >= *next) {
                    return Some(IdError::TooFarAhead.into());
                }
                self.never_sent(live, |_| false).then_some(Violation::NeverSent)
            }
            Say::CarriedOn(id, ..) if Self::ours(*id) => Some(IdError::WrongParity.into()),
            Say::CarriedOn(id, offset, received) => {
                let Some(stream) = self.stream(*id) else { return Some(IdError::Closed.into()) };
                let given_up = self.streams.sends(*id).is_err();
                match () {
                    () if *received > stream.sending.end() => Some(Violation::NeverSent),
                    () if *received < stream.sending.base() && !given_up => Some(Violation::TakesBack),
                    () if *offset > stream.received => Some(Violation::LeavesOut),
                    () => None,
                }
            }
            _ => None,
        }
    }

    fn say(&mut self, say: &Say) -> Result<(), Violation> {
        let streams = &mut self.streams;
        match say {
            Say::Progress(progress) => streams.told(progress, &mut |()| {})?,
            Say::Attach(next, live) => {
                self.attach += 1;
                let said = streams.standing();
                streams.attached(self.attach, (said.0, &said.1), (*next, live), &mut |()| {})?;
            }
            Say::CarriedOn(id, offset, received) => {
                let here = streams.live.get(id).map_or(0, |stream| stream.received);
                let (skip, ()) = streams.carried(*id, *offset, *received)?;
                assert_eq!(offset + skip, here);
            }
            Say::Fresh(id) => {
                let (there, accepted) = (streams.live.contains_key(id), streams.accept(*id));
                assert_eq!(there && !Self::ours(*id), accepted == Ok(Accepted::Live));
            }
            Say::Stopped(id, code) => streams.stopped(*id, *code),
            Say::Open => drop(streams.open()),
            Say::Push(id, bytes, last) => drop(streams.push(*id, &vec![7; *bytes].into(), *last)),
            Say::Received(id, bytes) => drop(streams.received(*id, *bytes)),
            Say::Reset(id) => drop(streams.reset(*id, 1)),
            Say::Over(id) => {
                if Self::ours(*id) {
                    let _ = streams.over(*id);
                }
            }
            Say::Carry(id) => drop(streams.carry(*id).map(|(head, _)| head)),
            Say::Next(id, at) => drop(streams.next(*id, *at)),
            Say::Tell => {
                if let Some(progress) = streams.progress() {
                    assert_eq!(Control::Progress(progress).check(), Ok(()));
                }
            }
        }
        Ok(())
    }

    fn check(&self) {
        let taken: usize = self.streams.live.values().map(|stream| stream.sending.check()).sum();
        assert_eq!(taken + self.streams.budget.left(), BUDGET);
        let theirs = self.streams.live.keys().filter(|id| !Self::ours(**id)).count();
        assert_eq!(theirs, self.streams.accepted(), "those that are live are those that were let in");
    }
}

/// What comes this far was decoded: the codec lets nothing else through.
fn decodes(say: &Say) -> bool {
    match say {
        Say::Progress(progress) => Control::Progress(progress.clone()).check().is_ok(),
        Say::Attach(next_id, live) => {
            let (session, attach, next_id, live) = (SessionId([0; 16]), 1, *next_id, live.clone());
            Control::Attach(Attach { session, attach, next_id, live, more: false }).check().is_ok()
        }
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_peer_that_says_anything_breaks_nothing_but_the_protocol(says in says()) {
        let mut table = Table { streams: Streams::new(Side::Initiator, true, Budget::new(BUDGET)), attach: 0 };
        for say in says.iter().filter(|say| decodes(say)) {
            let wrong = table.judge(say);
            assert_eq!(table.say(say).err(), wrong, "{say:?}");
            table.check();
            // That an id is over is no lie; after any other violation the session ends.
            if wrong.is_some_and(|wrong| wrong != IdError::Closed.into()) {
                break;
            }
        }
        drop(table.streams.end());
        prop_assert_eq!((table.streams.len(), table.streams.budget.left()), (0, BUDGET));
    }
}

#[test]
fn nothing_that_is_asked_for_beside_what_is_kept_is_sent() {
    let mut streams: Streams<()> = Streams::new(Side::Initiator, true, Budget::new(BUDGET));
    let id = streams.open();
    assert_eq!(streams.push(id, &Bytes::from_static(b"abc"), false), Ok(3));
    for at in [3, 4, u64::MAX] {
        assert_eq!(streams.next(id, at), super::super::Next::Nothing, "at {at}");
    }
    let live = vec![LiveStream { stream: id, received: 2, ended: false, reset: None, stop: None }];
    streams.told(&Progress { over: Vec::new(), live }, &mut |()| {}).expect("it has two of three");
    assert_eq!(streams.next(id, 1), super::super::Next::Nothing);
}
