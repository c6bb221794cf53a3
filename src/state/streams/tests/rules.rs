//! Single rules by example, and what the model found.

use super::super::{Ended, Streams};
use crate::proto::control::{LiveStream, Progress};
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
