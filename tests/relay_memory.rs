//! What circuits that nobody uses take of a relay's memory: the relay is a process, what meets over it are nodes of this one. Recorded.
#![cfg(all(target_os = "linux", feature = "cli"))]

mod support;

use std::fs;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::iter;
use support::process::Home;
use support::{SOON, closed, echo, long, soon};
use voltmesh::id::Ticket;
use voltmesh::session::PathKind;
use voltmesh::{Node, Session};

/// Circuits that are being opened at once.
const AT_ONCE: usize = 8;
/// All of it from one address, by peers that no rule names.
const LIMITS: &str = "[limits]
sessions_per_address = 1000
relay_circuits = 2000
relay_circuits_per_identity = 1000
relay_circuits_per_address = 2000
";

#[tokio::test]
async fn idle_circuits_of_many_nodes_go_through_one_relay() {
    let (from, to) = if long() { (32, 32) } else { (7, 8) };
    let home = Home::new();
    fs::write(home.path("home").join("volt.toml"), LIMITS).unwrap();
    let relay = home.up(&["--listen", "127.0.0.1:0", "--relay", "open", "--open"]);
    let ticket: Ticket = home.ticket().parse().unwrap();
    let nodes = join_all((0..from + to).map(|_| attached(&ticket))).await;
    let (from, to) = nodes.split_at(from);
    let before = resident_bytes(relay.pid());

    let pairs = from.iter().flat_map(|one| to.iter().map(move |other| (one, other)));
    let ticket = &ticket;
    let sessions: Vec<Session> = iter(pairs)
        .map(|(one, other)| async move { soon(one.connect_via(std::slice::from_ref(ticket), other.id(), SOON)).await.unwrap() })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for session in &sessions {
        assert_eq!(session.path(), Some(PathKind::Relayed(ticket.id)));
        let answer: String = soon(session.call("echo/one", "idle from now on")).await.unwrap();
        assert_eq!(answer, "idle from now on");
    }
    let after = resident_bytes(relay.pid());
    let each = (after.saturating_sub(before)) as f64 / sessions.len() as f64;
    println!(
        "{} circuits of {} nodes: the relay's memory went from {:.1} to {:.1} MB, {:.1} KiB for each",
        sessions.len(),
        nodes.len(),
        before as f64 / 1e6,
        after as f64 / 1e6,
        each / 1024.0
    );
    join_all(nodes.iter().map(Node::shutdown)).await;
}

/// A node that serves [`echo`] to everyone and has a session with the relay.
async fn attached(relay: &Ticket) -> Node {
    let node = closed().open(true).service(echo()).home_relay(relay.clone()).bind().await.unwrap();
    soon(node.session(relay.id).unwrap().connected(SOON)).await.unwrap();
    node
}

/// What a process has in memory now.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
