//! A router forgets where it sends what comes back, as they do after a while or a restart, and makes a new mapping.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::caller::{Caller, failures};
use crate::net::Net;
use crate::node::{Home, LONG, at, until};
use crate::stage::{connect, is_long, ticket};

const CALLS_PER_SECOND: u32 = 50;

pub fn nobody_notices_that_a_router_forgets_its_mapping() {
    nobody_notices(false);
}

pub fn nobody_notices_that_a_router_forgets_its_mapping_and_takes_another_port() {
    nobody_notices(true);
}

fn nobody_notices(random_ports: bool) {
    let mut net = Net::new();
    let (inside, router, outside) = (net.space("inside"), net.router("router"), net.space("outside"));
    inside.cable("eth", "10.3.0.2/24", &router, "in", "10.3.0.1/24");
    inside.ip("route add default via 10.3.0.1");
    router.cable("wan", "10.4.0.1/24", &outside, "eth", "10.4.0.2/24");
    router.masquerade("wan", random_ports);

    let (one, other) = (Home::new(&inside), Home::new(&outside));
    let (one_up, other_up) = (one.up(&[]), other.up(&[]));
    connect((&one, &one_up), (&other, &other_up), &ticket(&other_up));
    let (here, there) = (one_up.mark(), other_up.mark());
    let out = Caller::start(&one.socket(), "other", CALLS_PER_SECOND);
    let back = Caller::start(&other.socket(), one.id(), CALLS_PER_SECOND);

    for _ in 0..if is_long() { 20 } else { 3 } {
        let before = (router.mappings(), remote(&other));
        // The masquerade forgets what it knew of an address that goes.
        router.ip("addr del 10.4.0.1/24 dev wan\naddr add 10.4.0.1/24 dev wan");
        let forgotten = Instant::now();
        until("a new mapping", LONG, || (router.mappings() > before.0).then_some(()));
        if random_ports {
            until("the peer sees another port", LONG, || (remote(&other) != before.1).then_some(()));
        }
        out.answered_since(forgotten, LONG);
        back.answered_since(forgotten, LONG);
        at(forgotten + Duration::from_secs(1));
    }
    for (whose, caller) in [("from inside", out), ("from outside", back)] {
        let done = caller.end();
        let slowest = done.iter().map(|done| done.ended - done.began).max().unwrap_or_default();
        println!("forgotten mappings: {} calls {whose}, the slowest {slowest:?}, failed: {:?}", done.len(), failures(&done));
        assert!(failures(&done).is_empty(), "calls failed {whose}");
    }
    let noticed = [one_up.sessions_since(here), other_up.sessions_since(there)];
    assert!(noticed.iter().all(Vec::is_empty), "somebody noticed: {noticed:#?}");
}

/// Where a node sees its peer.
fn remote(node: &Home) -> String {
    let sessions = node.ok(&["sessions", "--json"]);
    let session: Value = serde_json::from_str(sessions.lines().next().unwrap()).unwrap();
    session["remote"].as_str().unwrap().to_owned()
}
