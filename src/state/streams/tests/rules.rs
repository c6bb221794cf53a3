//! Single rules by example, and what the model found.

use bytes::Bytes;

use super::super::{Due, Ended, Next, Streams};
use crate::proto::control::{LiveStream, Progress};
use crate::proto::limits;
use crate::proto::stream::Head;
use crate::state::budget::Budget;
use crate::state::ids::{Accepted, Side};

type Plain = Streams<()>;

const BUDGET: usize = 1 << 20;

fn two() -> (Plain, Plain) {
    let end = |side| Plain::new(side, true, Budget::new(BUDGET));
    (end(Side::Initiator), end(Side::Acceptor))
}

fn standing(stream: u64) -> LiveStream {
    LiveStream { stream, received: 0, ended: false, reset: None, stop: None }
}

fn tell(from: &mut Plain, to: &mut Plain) {
    while let Some(progress) = from.progress() {
        to.told(&progress, &mut |()| {}).expect("both are honest");
    }
}

fn takes_over(number: u64, end: &mut Plain, said: &(u64, Vec<LiveStream>), theirs: &(u64, Vec<LiveStream>)) {
    end.attached(number, (said.0, &said.1), (theirs.0, &theirs.1), &mut |()| {}).expect("both are honest");
}

fn attach(number: u64, a: &mut Plain, b: &mut Plain) {
    let (of_a, of_b) = (a.standing(), b.standing());
    takes_over(number, a, &of_a, &of_b);
    takes_over(number, b, &of_b, &of_a);
}

#[test]
fn a_stop_and_a_reset_that_overtake_their_stream_are_known_when_it_comes() {
    let (mut opener, mut accepter) = two();
    let id = opener.open();
    let _ = (opener.stop(id, 3), opener.reset(id, 4));
    tell(&mut opener, &mut accepter);
    assert_eq!(accepter.accept(id), Ok(Accepted::Fresh));
    assert_eq!((accepter.sends(id), accepter.receives(id)), (Err(Ended::Stopped(3)), Err(Ended::Reset(4))));
}

#[test]
fn a_stream_given_up_before_anything_of_it_came_is_not_waited_for() {
    let (mut opener, mut accepter) = two();
    let id = opener.open();
    assert!(!accepter.is_given_up(id));
    let _ = opener.reset(id, 4);
    attach(1, &mut opener, &mut accepter);
    assert_eq!((opener.next(id, 0), accepter.is_given_up(id)), (Next::Nothing, true));
}

#[test]
fn what_was_said_early_of_a_stream_that_never_comes_is_forgotten() {
    let (mut opener, mut accepter) = two();
    let id = opener.open();
    let _ = opener.stop(id, 3);
    tell(&mut opener, &mut accepter);
    let _ = opener.over(id);
    tell(&mut opener, &mut accepter);
    assert!(accepter.early.is_empty());
    // Of streams that are none's to come nothing is remembered.
    let nobodys = [1, 2 * 20_000].map(|id| LiveStream { stop: Some(1), ..standing(id) });
    accepter.told(&Progress { over: Vec::new(), live: nobodys.into() }, &mut |()| {}).expect("it is nothing to us");
    assert!(accepter.early.is_empty());
}

#[test]
fn regression_a_stream_given_up_goes_on_where_the_peer_is() {
    for (reset, finished) in [(true, false), (false, false), (false, true)] {
        let (mut opener, mut accepter) = two();
        let id = opener.open();
        assert_eq!(opener.push(id, &Bytes::from_static(&[7; 100]), finished), Ok(100));
        assert_eq!(accepter.accept(id), Ok(Accepted::Fresh));
        let _ = accepter.received(id, 10);
        if reset {
            let _ = opener.reset(id, 2);
        } else {
            let _ = accepter.stop(id, 2);
        }
        attach(1, &mut opener, &mut accepter);
        let Some((Head::CarriedOn { offset, received, .. }, ())) = opener.carry(id) else { panic!("it is live") };
        assert_eq!(accepter.carried(id, offset, received).map(|(skip, ())| skip), Ok(0));
        assert_eq!(opener.next(id, offset), if reset { Next::Nothing } else { Next::Finish });
    }
}

#[test]
fn regression_what_was_told_after_the_attach_list_and_lost_with_the_path_is_told_again() {
    let (mut opener, mut accepter) = two();
    let [over, read, ended, stopped] = [0; 4].map(|_| opener.open());
    for id in [over, read, ended, stopped] {
        assert_eq!(opener.push(id, &Bytes::from_static(b"hello"), false), Ok(5));
        assert_eq!(accepter.accept(id), Ok(Accepted::Fresh));
    }
    let (of_opener, of_accepter) = (opener.standing(), accepter.standing());
    let _ = (opener.over(over), accepter.received(read, 5), accepter.ended(ended), accepter.stop(stopped, 1));
    // On the path before, whose end it does not reach.
    assert!(opener.progress().is_some() && accepter.progress().is_some());
    takes_over(1, &mut opener, &of_opener, &of_accepter);
    takes_over(1, &mut accepter, &of_accepter, &of_opener);
    tell(&mut opener, &mut accepter);
    tell(&mut accepter, &mut opener);
    assert_eq!((accepter.len(), accepter.accepted()), (3, 3));
    assert_eq!((opener.live[&read].acked, opener.sends(stopped)), (5, Err(Ended::Stopped(1))));
    assert!(!opener.has_news() && !accepter.has_news());
    // Nothing more to say, nothing is said.
    attach(2, &mut opener, &mut accepter);
    assert_eq!((opener.progress(), accepter.progress()), (None, None));
}

#[test]
fn regression_streams_that_are_over_do_not_hide_that_others_have_news() {
    let (mut opener, mut accepter) = two();
    let ids: Vec<u64> = (0..2_000).map(|_| opener.open()).collect();
    for id in &ids {
        assert_eq!(accepter.accept(*id), Ok(Accepted::Fresh));
        let _ = accepter.received(*id, 0);
    }
    for id in &ids[1..] {
        let _ = opener.over(*id);
    }
    tell(&mut opener, &mut accepter);
    assert_eq!(accepter.progress(), Some(Progress { over: Vec::new(), live: vec![standing(ids[0])] }));
    assert!(!accepter.has_news());
}

#[test]
fn what_nobody_lets_itself_be_told_is_not_remembered_without_end() {
    let (mut opener, mut accepter) = two();
    for _ in 0..5_000 {
        let id = opener.open();
        assert_eq!(accepter.accept(id), Ok(Accepted::Fresh));
        let _ = (accepter.received(id, 1), opener.over(id));
        tell(&mut opener, &mut accepter);
    }
    assert!(accepter.news.len() <= 1_100, "{} are remembered", accepter.news.len());
}

#[test]
fn regression_none_of_many_streams_that_are_over_runs_when_it_comes_late() {
    let (mut opener, mut accepter) = two();
    let ids: Vec<u64> = (0..4_000).map(|_| opener.open()).collect();
    for id in &ids {
        let _ = opener.over(*id);
    }
    tell(&mut opener, &mut accepter);
    assert!(ids.iter().all(|id| accepter.accept(*id).is_err()));
}

#[test]
fn that_the_peer_has_read_to_the_end_is_known_over_any_number_of_paths() {
    for by_attach in [false, true] {
        let (mut opener, mut accepter) = two();
        let id = opener.open();
        accepter.accept(id).unwrap();
        opener.push(id, &Bytes::from_static(b"all"), true).unwrap();
        let _ = accepter.received(id, 3).unwrap();
        tell(&mut accepter, &mut opener);
        assert_eq!(opener.is_read(id), Ok(false), "every byte, but not the end");
        let _ = accepter.ended(id);
        if by_attach {
            attach(1, &mut opener, &mut accepter);
        } else {
            tell(&mut accepter, &mut opener);
        }
        assert_eq!(opener.is_read(id), Ok(true));
        let _ = opener.over(id);
        assert_eq!(opener.is_read(id), Err(Ended::Closed));
    }
    // Who reads no more, or says so of a stream that is not finished, has not read to the end.
    let (mut opener, mut accepter) = two();
    let (stopped, open) = (opener.open(), opener.open());
    let said = LiveStream { ended: true, ..standing(open) };
    opener.told(&Progress { over: Vec::new(), live: vec![said] }, &mut |()| {}).unwrap();
    assert_eq!(opener.is_read(open), Ok(false));
    accepter.accept(stopped).unwrap();
    let _ = accepter.stop(stopped, 4);
    tell(&mut accepter, &mut opener);
    assert_eq!(opener.is_read(stopped), Err(Ended::Stopped(4)));
}

#[test]
fn without_resumption_nothing_is_kept_or_told_and_a_stream_goes_with_its_halves() {
    let end = |side| Plain::new(side, false, Budget::new(0));
    let (mut opener, mut accepter) = (end(Side::Initiator), end(Side::Acceptor));
    let id = opener.open();
    assert_eq!(accepter.accept(id), Ok(Accepted::Fresh));
    for end in [&mut opener, &mut accepter] {
        assert_eq!(end.push(id, &Bytes::from_static(&[1; 100_000]), false), Ok(100_000));
        assert_eq!(end.live[&id].sending.check(), 0);
        assert_eq!((end.live[&id].sending.base(), end.live[&id].sending.end()), (100_000, 100_000));
        assert_eq!(end.received(id, 100_000), Ok(Due::Nothing));
        assert_eq!((end.ended(id), end.reset(id, 1), end.stop(id, 1)), (Due::Nothing, Due::Nothing, Due::Nothing));
        assert_eq!((end.progress(), end.has_news()), (None, false));
    }
    accepter.dropped(id);
    assert_eq!((accepter.len(), accepter.accepted()), (1, 1));
    accepter.dropped(id);
    assert_eq!((accepter.len(), accepter.accepted()), (0, 0));
    assert!(accepter.accept(id).is_err());
    opener.dropped(id);
    assert_eq!((opener.over(id), opener.len(), opener.has_news()), (Due::Nothing, 0, false));
}

#[test]
fn whoever_has_to_tell_is_asked_once_and_once_more_when_it_is_urgent() {
    let (mut opener, _) = two();
    let [first, second] = [0; 2].map(|_| opener.open());
    assert_eq!(opener.received(first, 1), Ok(Due::Soon));
    assert_eq!(opener.received(second, 1), Ok(Due::Nothing));
    assert_eq!(opener.received(first, limits::PROGRESS_BYTES), Ok(Due::Now));
    assert_eq!(opener.received(second, limits::PROGRESS_BYTES), Ok(Due::Nothing));
    assert_eq!(opener.progress().map(|progress| progress.live.len()), Some(2));
    assert_eq!(opener.ended(first), Due::Soon);
}
