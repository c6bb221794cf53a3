//! A machine moves from one network to another, as a phone does: its address and its route go, others come.

use std::time::{Duration, Instant};

use crate::caller::{Caller, failures};
use crate::net::{Net, Space};
use crate::node::{Home, LONG, at, until};
use crate::stage::{Times, connect, is_long, ticket};

const CALLS_PER_SECOND: u32 = 200;
/// Between one switch and the next, once everything flows again.
const QUIET: Duration = Duration::from_millis(700);

pub fn no_call_fails_when_the_diallers_uplink_moves() {
    no_call_fails_when_an_uplink_moves(true);
}

pub fn no_call_fails_when_the_accepters_uplink_moves() {
    no_call_fails_when_an_uplink_moves(false);
}

fn no_call_fails_when_an_uplink_moves(dialler_moves: bool) {
    let mut net = Net::new();
    let (mobile, router, fixed) = (net.space("mobile"), net.router("router"), net.space("fixed"));
    for n in [1, 2] {
        let (device, theirs) = (format!("up{n}"), format!("mobile{n}"));
        mobile.cable(&device, &format!("10.1.{n}.2/24"), &router, &theirs, &format!("10.1.{n}.1/24"));
    }
    fixed.cable("eth", "10.2.0.2/24", &router, "fixed", "10.2.0.1/24");
    fixed.ip("route add default via 10.2.0.1");
    mobile.ip("route add default via 10.1.1.1");
    withdraw(&mobile, 2);

    let (moving, staying) = (Home::new(&mobile), Home::new(&fixed));
    let (moving_up, staying_up) = (moving.up(&[]), staying.up(&[]));
    let (moving, staying) = ((&moving, &moving_up), (&staying, &staying_up));
    let (dialler, accepter) = if dialler_moves { (moving, staying) } else { (staying, moving) };
    connect(dialler, accepter, &ticket(accepter.1));

    let mark = dialler.1.mark();
    let caller = Caller::start(&dialler.0.socket(), "other", CALLS_PER_SECOND);
    caller.answered_since(Instant::now(), LONG);
    let switches = if is_long() { 100 } else { 3 };
    let mut unused = Vec::new();
    let times = Times::of((0..switches).map(|switch| {
        at(Instant::now() + QUIET);
        let (from, to) = if switch % 2 == 0 { (1, 2) } else { (2, 1) };
        withdraw(&mobile, from);
        let gone = Instant::now();
        mobile.ip(&format!("link set up{to} up\naddr add 10.1.{to}.2/24 dev up{to}\nroute add default via 10.1.{to}.1"));
        // The kernel takes up to a second until it uses a link that has come up.
        let ends = [(&mobile, format!("up{to}")), (&router, format!("mobile{to}"))];
        until("the link is used", LONG, || ends.iter().all(|(space, device)| space.is_in_use(device)).then_some(()));
        let back = Instant::now();
        unused.push(back - gone);
        let took = caller.answered_since(gone, LONG).ended.saturating_duration_since(back);
        caller.settled_before(Instant::now(), LONG);
        took
    }));
    let done = caller.end();
    let (who, failed) = (if dialler_moves { "dialler" } else { "accepter" }, failures(&done));
    println!("the {who}'s uplink moves: next answer after {times}; {} calls, failed: {failed:?}", done.len());
    let told = dialler.1.sessions_since(mark);
    let anew: Vec<_> = told.iter().filter(|(_, event)| event["resumed"] == false).collect();
    println!("the {who}'s uplink moves: without any network for {}", Times::of(unused));
    println!("the {who}'s uplink moves: {} events of the session at the dialler, for {switches} moves", told.len());
    assert!(failed.is_empty(), "calls failed");
    assert!(anew.is_empty(), "a session began anew: {anew:#?}");
    assert!(times.share(0.5) <= Duration::from_secs(1) && times.share(0.99) <= Duration::from_secs(3), "{times}");
}

/// The network is left: its address, and with the link every route.
fn withdraw(mobile: &Space, uplink: u32) {
    mobile.ip(&format!("addr flush dev up{uplink}\nlink set up{uplink} down"));
}
