//! Two nodes behind routers that hide them, and take a port at random for each whom they speak to: they reach each other through relays.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::caller::{Caller, failures, rate};
use crate::emulator::Emulator;
use crate::link::{Conditions, Loss};
use crate::net::Net;
use crate::node::{Home, LONG, Mark, at, until};
use crate::sites::{Pair, RELAY, Sites, UNTHROTTLED, path, relay, relay_with};
use crate::stage::{Times, is_long, seed, ticket};

const CALLS_PER_SECOND: u32 = 200;
/// From when a relay is killed until a call is answered that was made afterwards.
const NEXT_ANSWER: Duration = Duration::from_secs(3);

pub fn two_nodes_behind_routers_call_each_other_through_a_relay() {
    let sites = Sites::new(1);
    let (relay_home, _relay, ticket) = relay(&sites.public[0]);
    let pair = Pair::new(&sites.inside, &[&ticket]);
    let relayed = format!("relayed by {}", relay_home.id());
    assert_eq!(path(&pair.homes[0], pair.homes[1].id()), Some(relayed.clone()));
    let pinged = pair.homes[0].ok(&["ping", "other", "-c", "2", "-i", "10ms", "--json"]);
    assert!(pinged.lines().all(|line| line.contains(&relayed)), "{pinged}");
    let _served = pair.homes[1].serve("greeter/hello", "cat", &[]);
    assert_eq!(pair.homes[0].ok(&["call", "other", "greeter/hello", "\"over there\""]), "\"over there\"\n");
    let _served = pair.homes[0].serve("greeter/back", "cat", &[]);
    assert_eq!(pair.homes[1].ok(&["call", pair.homes[0].id(), "greeter/back", "\"and back\""]), "\"and back\"\n");
}

pub fn no_call_fails_when_a_relay_is_killed_and_another_is_known() {
    let sites = Sites::new(2);
    let relays = [0, 1].map(|number| relay(&sites.public[number]));
    let tickets = [relays[0].2.clone(), relays[1].2.clone()];
    let mut relays = relays.map(Some);
    let pair = Pair::new(&sites.inside, &[&tickets[0], &tickets[1]]);
    let (mut times, mut calls, mut failed) = (Vec::new(), 0, Vec::new());
    for round in 0..if is_long() { 20 } else { 2 } {
        let now = path(&pair.homes[0], pair.homes[1].id()).expect("they are connected");
        let carrier = relays.iter().position(|relay| relay.as_ref().is_some_and(|relay| now.ends_with(relay.0.id()))).unwrap();
        let caller = Caller::start(&pair.homes[0].socket(), "other", CALLS_PER_SECOND);
        caller.answered_since(Instant::now(), LONG);
        let (home, node, _) = relays[carrier].take().unwrap();
        let killed = Instant::now();
        node.kill();
        let next = caller.answered_since(killed, LONG);
        times.push(next.ended - killed);
        let done = caller.end();
        calls += done.len();
        failed.extend(failures(&done));
        println!("round {round}: the next answer after {:?}, {} calls", next.ended - killed, done.len());
        // The same relay again: its address and its key.
        let up = home.up(&RELAY);
        until("all are attached again", LONG, || pair.homes.iter().all(|node| path(node, home.id()).is_some()).then_some(()));
        relays[carrier] = Some((home, up, tickets[carrier].clone()));
    }
    let times = Times::of(times);
    println!("a relay killed: next answer {times}; {calls} calls, failed: {failed:?}");
    assert!(failed.is_empty(), "calls failed");
    // Of two rounds each would be judged.
    assert!(!is_long() || times.share(0.99) <= NEXT_ANSWER, "{times}");
    drop(pair.up);
}

pub fn a_call_outlives_twenty_seconds_without_its_only_relay() {
    let sites = Sites::new(1);
    let (_relay_home, _relay, ticket) = relay(&sites.public[0]);
    let pair = Pair::new(&sites.inside, &[&ticket]);
    let _served = pair.homes[1].serve("slow/echo", "sleep 5; cat", &[]);
    let mut call = pair.homes[0].volt(&["call", "other", "slow/echo", "7", "--timeout", "60s"]);
    let call = call.stdout(Stdio::piped()).spawn().unwrap();
    let outage = Duration::from_secs(if is_long() { 20 } else { 6 });
    at(Instant::now() + Duration::from_millis(500));
    sites.unplug(0);
    at(Instant::now() + outage);
    sites.plug_in(0);
    let done = call.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "7\n");
}

/// With loss on both legs: each recovers by itself. Recorded, not judged.
pub fn relayed_and_direct_throughput_with_loss_on_each_leg() {
    let mut net = Net::new();
    let (one, middle, other) = (net.space("one"), net.router("middle"), net.space("other"));
    let legs = [
        Emulator::between((&one, "leg"), (&middle, "one"), seed()),
        Emulator::between((&other, "leg"), (&middle, "other"), seed() + 1),
    ];
    one.ip("addr add 10.8.1.1/24 dev leg\nroute add default via 10.8.1.2");
    other.ip("addr add 10.8.2.1/24 dev leg\nroute add default via 10.8.2.2");
    middle.ip("addr add 10.8.1.2/24 dev one\naddr add 10.8.2.2/24 dev other");
    let (_relay_home, _relay, relay_ticket) = relay_with(&middle, UNTHROTTLED);
    let time = Duration::from_millis(if is_long() { 10_000 } else { 1_000 });
    println!("25 ms and loss on each of two legs, 64 calls in flight, {time:?} each\n  loss   way      calls/s      MB/s");
    for percent in [0u32, 1] {
        for way in ["direct", "relayed"] {
            legs.iter().for_each(|leg| leg.both(Conditions::NONE));
            let homes = [Home::new(&one), Home::new(&other)];
            homes[1].ok(&["policy", "allow", homes[0].id(), "call", "*"]);
            homes[0].ok(&["policy", "allow", homes[1].id(), "call", "*"]);
            let up = [homes[0].up(&["--via", &relay_ticket]), homes[1].up(&["--via", &relay_ticket])];
            up.iter().for_each(|up| drop(up.event(Mark::START, "connected", LONG)));
            if way == "relayed" {
                // Neither reaches the other's port.
                for space in [&one, &other] {
                    space.nft("table ip lab {\n chain in {\n type filter hook input priority 0;\n ip saddr { 10.8.1.1, 10.8.2.1 } udp dport 1-65535 drop\n }\n}\n");
                }
            }
            homes[0].ok(&["connect", &ticket(&up[1]), "--as", "other"]);
            until("they are connected as is meant", LONG, || path(&homes[0], homes[1].id()).filter(|path| path.starts_with(way)));
            let _sink = homes[1].serve("bulk/sink", "cat > sink", &["--stream", "--raw"]);
            let loss = Loss::even(f64::from(percent) / 100.0);
            legs.iter().for_each(|leg| leg.both(Conditions { delay: Duration::from_millis(25), loss, ..Conditions::NONE }));
            let calls = rate(&homes[0].socket(), "other", 64, time);
            let bytes = super::lossy::bytes_per_second(&homes[0], &homes[1], "sink", time);
            let calls = calls.map_or_else(|why| why, |calls| format!("{calls:9.0}"));
            println!("  {percent:2} %  {way:8} {calls} {:9.2}", bytes / 1e6);
            if way == "relayed" {
                [&one, &other].into_iter().for_each(|space| space.nft("delete table ip lab\n"));
            }
            drop(up);
        }
    }
}
