//! A node is killed and started again, or stands still for a while.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::caller::{Caller, failures};
use crate::net::Net;
use crate::node::{Home, LONG, at};
use crate::stage::{Times, connect, is_long, linked, ticket};

const CALLS_PER_SECOND: u32 = 50;
/// Twice what is asked for on a machine that does nothing else.
const NOTICED: Duration = Duration::from_secs(3);
/// Until a path that has just come up has nothing more to find out, and the list of sessions is written.
const QUIET: Duration = Duration::from_secs(2);
/// Twice what is asked for.
const BACK: Duration = Duration::from_secs(4);

pub fn a_killed_and_restarted_peer_is_noticed_at_once() {
    let (noticed, back) = killed_and_restarted(Some(CALLS_PER_SECOND), if is_long() { 100 } else { 5 });
    println!("killed and restarted under calls: noticed after {noticed}; connected after {back}");
    assert!(noticed.share(0.99) <= NOTICED, "{noticed}");
}

pub fn a_killed_and_restarted_peer_is_noticed_though_nobody_calls() {
    let (noticed, back) = killed_and_restarted(None, if is_long() { 20 } else { 2 });
    println!("killed and restarted while idle: noticed after {noticed}; connected after {back}");
    assert!(noticed.share(0.99) <= NOTICED, "{noticed}");
}

/// How long after it was killed that is noticed, and how long until the session is up again.
fn killed_and_restarted(calls_per_second: Option<u32>, times: usize) -> (Times, Times) {
    let mut net = Net::new();
    let (here, there, _link) = linked(&mut net);
    let (one, other) = (Home::new(&here), Home::new(&there));
    let (one_up, mut other_up) = (one.up(&[]), other.up(&[]));
    connect((&one, &one_up), (&other, &other_up), &ticket(&other_up));
    let caller = calls_per_second.map(|rate| Caller::start(&one.socket(), "other", rate));
    let (mut noticed, mut back) = (Vec::new(), Vec::new());
    for _ in 0..times {
        match &caller {
            Some(caller) => drop(caller.answered_since(Instant::now(), LONG)),
            None => at(Instant::now() + QUIET),
        }
        let mark = one_up.mark();
        let killed = Instant::now();
        other_up.kill();
        other_up = other.up(&[]);
        let lost = one_up.event(mark, "disconnected", LONG);
        assert_eq!(lost.1["reason"], "the peer was restarted");
        noticed.push(lost.0 - killed);
        back.push(one_up.event(mark, "connected", LONG).0 - killed);
    }
    (Times::of(noticed), Times::of(back))
}

pub fn an_accepter_that_was_frozen_is_back_at_once() {
    frozen(false);
}

pub fn a_dialler_that_was_frozen_is_back_at_once() {
    frozen(true);
}

/// A call is given up after half a minute; less what it takes to wake up.
const CALL_TIME: Duration = Duration::from_secs(25);

fn frozen(dialler: bool) {
    let mut net = Net::new();
    let (here, there, _link) = linked(&mut net);
    let (one, other) = (Home::new(&here), Home::new(&there));
    let (one_up, other_up) = (one.up(&[]), other.up(&[]));
    connect((&one, &one_up), (&other, &other_up), &ticket(&other_up));
    let (still, awake, of) = if dialler { (&one_up, &other, &one) } else { (&other_up, &one, &other) };
    let caller = Caller::start(&awake.socket(), of.id(), CALLS_PER_SECOND / 5);
    caller.answered_since(Instant::now(), LONG);
    still.signal(Signal::STOP);
    at(Instant::now() + Duration::from_secs(if is_long() { 60 } else { 12 }));
    let woken = Instant::now();
    still.signal(Signal::CONT);
    let back = caller.answered_since(woken, LONG).ended - woken;
    let (who, done) = (if dialler { "dialler" } else { "accepter" }, caller.end());
    let failed = failures(&done);
    println!("the {who} was frozen: a call made after it woke is answered after {:.2} s; failed: {failed:?}", back.as_secs_f64());
    assert!(back <= BACK, "it took too long: {back:?}");
    // Those that began while no path was there too, if their time was not over before: the session was kept.
    let in_time: Vec<_> = done.into_iter().filter(|call| call.began + CALL_TIME > woken).collect();
    let failed = failures(&in_time);
    assert!(failed.is_empty(), "{failed:?}");
}
