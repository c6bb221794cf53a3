//! The path is gone for a while, in both directions or in one, and comes back.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::link::Conditions;
use crate::net::Net;
use crate::node::{Home, LONG, Mark, Node, at, text, until};
use crate::stage::{connect, linked, ticket};

const SECOND: Duration = Duration::from_secs(1);
const HOLE: Conditions = Conditions { black_hole: true, ..Conditions::NONE };

/// An idle session asks every 5 s and waits 3 s for the answer; the rest is the machine's.
const NOTICED: Duration = Duration::from_secs(10);
/// Attempts begin at most a second apart.
const BACK: Duration = Duration::from_secs(3);

pub fn a_call_through_the_node_outlives_eight_seconds_without_a_packet() {
    a_call_outlives_eight_seconds_without_a_packet(true);
}

pub fn a_visitors_call_outlives_eight_seconds_without_a_packet() {
    a_call_outlives_eight_seconds_without_a_packet(false);
}

fn a_call_outlives_eight_seconds_without_a_packet(through_a_node: bool) {
    let mut net = Net::new();
    let (here, there, link) = linked(&mut net);
    let (one, other) = (Home::new(&here), Home::new(&there));
    let other_up = other.up(&[]);
    let to = ticket(&other_up);
    let _serving = other.serve("work/slow", "echo run >> runs; sleep 5; echo '\"done\"'", &[]);
    let one_up = through_a_node.then(|| one.up(&[]));
    match &one_up {
        Some(one_up) => connect((&one, one_up), (&other, &other_up), &to),
        None => drop(other.ok(&["policy", "allow", one.id(), "call", "*"])),
    }
    let runs = || std::fs::read_to_string(other.path("runs")).unwrap_or_default().lines().count();

    let mut command = one.volt(&["call", &to, "work/slow", "--timeout", "60s", "--json"]);
    let call = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the function runs", LONG, || (runs() == 1).then_some(()));
    let began = Instant::now();
    let marks = (one_up.as_ref().map(Node::mark), other_up.mark());
    at(began + SECOND);
    link.both(HOLE);
    at(began + SECOND * 9);
    link.both(Conditions::NONE);
    let returned = Instant::now();
    let done = call.wait_with_output().unwrap();
    println!(
        "eight seconds without a packet: {} after the network's return: {}",
        seconds(returned.elapsed()),
        text(&done).trim()
    );
    assert!(done.status.success(), "the call failed: {}", text(&done));
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), r#""done""#);
    assert_eq!(runs(), 1, "the function ran so many times");

    if let (Some(one_up), Some(mark)) = (&one_up, marks.0) {
        lost_and_resumed_once(one_up, mark);
    }
    if through_a_node {
        lost_and_resumed_once(&other_up, marks.1);
    } else {
        let told = other_up.sessions_since(Mark::START);
        assert!(told.is_empty(), "of a visitor nothing is told: {told:#?}");
    }
}

/// One `disconnected` and one `connected` that resumes, and nothing else.
fn lost_and_resumed_once(node: &Node, since: Mark) {
    node.event(since, "connected", LONG);
    let events: Vec<_> = node.sessions_since(since).into_iter().map(|(_, event)| event).collect();
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["disconnected", "connected"], "{events:#?}");
    assert_eq!(events[1]["resumed"], true, "{events:#?}");
}

pub fn what_only_we_send_gets_lost_and_both_notice() {
    one_way(HOLE, Conditions::NONE);
}

pub fn what_only_they_send_gets_lost_and_both_notice() {
    one_way(Conditions::NONE, HOLE);
}

fn one_way(forward: Conditions, back: Conditions) {
    let mut net = Net::new();
    let (here, there, link) = linked(&mut net);
    let (one, other) = (Home::new(&here), Home::new(&there));
    let (one_up, other_up) = (one.up(&[]), other.up(&[]));
    connect((&one, &one_up), (&other, &other_up), &ticket(&other_up));
    let (here, there) = (one_up.mark(), other_up.mark());

    let cut = Instant::now();
    link.forward(forward);
    link.back(back);
    let noticed = [one_up.event(here, "disconnected", NOTICED), other_up.event(there, "disconnected", NOTICED)];
    println!(
        "one way lost: noticed after {} where it was dialled, {} at the other end",
        seconds(noticed[0].0 - cut),
        seconds(noticed[1].0 - cut)
    );

    let (here, there) = (one_up.mark(), other_up.mark());
    let healed = Instant::now();
    link.both(Conditions::NONE);
    let back = [one_up.event(here, "connected", LONG), other_up.event(there, "connected", LONG)];
    println!(
        "one way lost: back after {} where it was dialled, {} at the other end",
        seconds(back[0].0 - healed),
        seconds(back[1].0 - healed)
    );
    assert!(back.iter().all(|(when, _)| *when - healed <= BACK), "it took too long to come back");
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
