//! Two nodes behind routers that hide them, and take a port at random for each whom they speak to: they reach each other through relays.

use std::time::{Duration, Instant};

use crate::caller::{Caller, failures, rate};
use crate::emulator::Emulator;
use crate::link::{Conditions, Loss};
use crate::net::{Net, Space};
use crate::node::{Home, LONG, Mark, Node, at, until};
use crate::stage::{Times, is_long, seed, ticket};

const CALLS_PER_SECOND: u32 = 200;

/// Two sites, each behind a router, and machines that both can reach.
struct Sites {
    net: Net,
    inside: [Space; 2],
    public: Vec<Space>,
}

impl Sites {
    /// With so many machines in the open.
    fn new(public: usize) -> Self {
        let mut net = Net::new();
        let middle = net.router("middle");
        let inside = [1, 2].map(|site| {
            let (space, router) = (net.space(&format!("site{site}")), net.router(&format!("router{site}")));
            space.cable("eth", &format!("10.1{site}.0.2/24"), &router, "in", &format!("10.1{site}.0.1/24"));
            space.ip(&format!("route add default via 10.1{site}.0.1"));
            router.cable("wan", &format!("10.2{site}.0.1/24"), &middle, &format!("site{site}"), &format!("10.2{site}.0.2/24"));
            router.ip(&format!("route add default via 10.2{site}.0.2"));
            router.masquerade("wan", true);
            space
        });
        let public = (0..public).map(|number| {
            let space = net.space(&format!("public{number}"));
            space.cable(
                "eth",
                &format!("10.3{number}.0.2/24"),
                &middle,
                &format!("public{number}"),
                &format!("10.3{number}.0.1/24"),
            );
            space.ip(&format!("route add default via 10.3{number}.0.1"));
            space
        });
        let public = public.collect();
        Self { net, inside, public }
    }
}

/// A relay that carries for anyone, and its ticket.
fn relay(space: &Space) -> (Home, Node, String) {
    let home = Home::new(space);
    let up = home.up(&["--relay", "open", "--open"]);
    let ticket = ticket(&up);
    (home, up, ticket)
}

/// Two nodes in the sites, attached to these relays, one connected with the other by its id alone.
struct Pair {
    homes: [Home; 2],
    up: [Node; 2],
}

impl Pair {
    fn new(inside: &[Space; 2], relays: &[&str]) -> Self {
        let homes = [0, 1].map(|site| Home::new(&inside[site]));
        let via: Vec<&str> = relays.iter().flat_map(|relay| ["--via", *relay]).collect();
        homes[0].ok(&["policy", "allow", homes[1].id(), "call", "*"]);
        homes[1].ok(&["policy", "allow", homes[0].id(), "call", "*"]);
        let up = [0, 1].map(|site| homes[site].up(&via));
        for node in &up {
            for _ in relays {
                node.event(Mark::START, "connected", LONG);
            }
        }
        homes[0].ok(&["connect", homes[1].id(), "--as", "other"]);
        until("they are connected", LONG, || path(&homes[0], homes[1].id()));
        Self { homes, up }
    }
}

/// How a node reaches a peer, if it does.
fn path(home: &Home, peer: &str) -> Option<String> {
    let sessions = home.ok(&["sessions", "--json"]);
    let mut sessions = sessions.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let session = sessions.find(|session| session["peer"] == peer && session["state"] == "connected")?;
    session["path"].as_str().map(str::to_owned)
}

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
    drop(sites.net);
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
        let up = home.up(&["--relay", "open", "--open"]);
        until("all are attached again", LONG, || pair.homes.iter().all(|node| path(node, home.id()).is_some()).then_some(()));
        relays[carrier] = Some((home, up, tickets[carrier].clone()));
    }
    println!("a relay killed: next answer {}; {calls} calls, failed: {failed:?}", Times::of(times));
    assert!(failed.is_empty(), "calls failed");
    drop(pair.up);
}

pub fn a_call_outlives_twenty_seconds_without_its_only_relay() {
    let sites = Sites::new(1);
    let (_relay_home, _relay, ticket) = relay(&sites.public[0]);
    let pair = Pair::new(&sites.inside, &[&ticket]);
    let _served = pair.homes[1].serve("slow/echo", "sleep 5; cat", &[]);
    let call = pair.homes[0].volt(&["call", "other", "slow/echo", "7", "--timeout", "60s"]);
    let mut call = call;
    let call = call.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let outage = Duration::from_secs(if is_long() { 20 } else { 6 });
    at(Instant::now() + Duration::from_millis(500));
    sites.public[0].ip("link set eth down");
    at(Instant::now() + outage);
    sites.public[0].ip("link set eth up");
    sites.public[0].ip("route replace default via 10.30.0.1");
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
    let (_relay_home, _relay, relay_ticket) = relay(&middle);
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
