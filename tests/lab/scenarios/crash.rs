//! A node is killed and started again, or stands still for a while.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::caller::Caller;
use crate::net::Net;
use crate::node::{Home, LONG, at};
use crate::stage::{Times, connect, is_long, linked, ticket};

const CALLS_PER_SECOND: u32 = 50;
/// Twice what is asked for on a machine that does nothing else.
const NOTICED: Duration = Duration::from_secs(3);
/// The same.
const BACK: Duration = Duration::from_secs(4);

pub fn a_killed_and_restarted_peer_is_noticed_at_once() {
    let mut net = Net::new();
    let (here, there, _link) = linked(&mut net);
    let (one, other) = (Home::new(&here), Home::new(&there));
    let (one_up, mut other_up) = (one.up(&[]), other.up(&[]));
    connect((&one, &one_up), (&other, &other_up), &ticket(&other_up));
    let caller = Caller::start(&one.socket(), "other", CALLS_PER_SECOND);
    let (mut noticed, mut back) = (Vec::new(), Vec::new());
    for _ in 0..if is_long() { 100 } else { 5 } {
        caller.answered_since(Instant::now(), LONG);
        let mark = one_up.mark();
        let killed = Instant::now();
        other_up.kill();
        other_up = other.up(&[]);
        noticed.push(one_up.event(mark, "disconnected", LONG).0 - killed);
        back.push(one_up.event(mark, "connected", LONG).0 - killed);
    }
    let (noticed, back) = (Times::of(noticed), Times::of(back));
    println!("killed and restarted: noticed after {noticed}; connected after {back}");
    assert!(noticed.share(0.99) <= NOTICED, "{noticed}");
}

pub fn an_accepter_that_was_frozen_is_back_at_once() {
    frozen(false);
}

pub fn a_dialler_that_was_frozen_is_back_at_once() {
    frozen(true);
}

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
    let who = if dialler { "dialler" } else { "accepter" };
    println!("the {who} was frozen: a call made after it woke is answered after {:.2} s", back.as_secs_f64());
    assert!(back <= BACK, "it took too long: {back:?}");
}
