//! A subscriber that never reads, among many that do: what it costs the others, and the host. The host is a process of its own, so that its
//! memory can be looked at.
#![cfg(feature = "cli")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use support::process::Home;
use support::{closed, long, soon, until};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{MissedTickBehavior, interval};
use voltmesh::id::Ticket;
use voltmesh::wire::{Delivery, From, Options, Subscription};
use voltmesh::{Node, Session};

const CHUNK_BYTES: usize = 8 * 1024;
async fn client(host: &Ticket) -> (Node, Session) {
    let node = closed().bind().await.unwrap();
    let session = soon(node.connect(host)).await.unwrap();
    (node, session)
}

/// What the wires are, and who listens to them.
struct Feed {
    name: &'static str,
    live: usize,
    /// How long each chunk took to each of the live ones, in nanoseconds.
    took: Vec<JoinHandle<Vec<u64>>>,
    heard: Arc<AtomicU64>,
    /// Reads nothing.
    frozen: Option<(Node, Subscription)>,
}

impl Feed {
    async fn new(name: &'static str, host: &Ticket, live: usize, frozen: bool, base: Instant) -> Self {
        let (_first, session) = client(host).await;
        soon(session.wire(name).unwrap().create(Options::default())).await.unwrap();
        let heard = Arc::<AtomicU64>::default();
        let mut took = Vec::new();
        for _ in 0..live {
            let ((node, session), heard) = (client(host).await, heard.clone());
            let subscription = soon(session.wire(name).unwrap().subscribe(From::Live)).await.unwrap();
            took.push(tokio::spawn(listen(node, subscription, base, heard)));
        }
        let frozen = match frozen {
            true => {
                let (node, session) = client(host).await;
                Some((node, soon(session.wire(name).unwrap().subscribe(From::Live)).await.unwrap()))
            }
            false => None,
        };
        Self { name, live, took, heard, frozen }
    }
}

/// Hears everything up to the empty chunk, and nothing may be missing.
async fn listen(node: Node, mut subscription: Subscription, base: Instant, heard: Arc<AtomicU64>) -> Vec<u64> {
    let (_node, mut took) = (node, Vec::new());
    loop {
        let Delivery::Chunk { chunk, .. } = subscription.next().await.unwrap() else { panic!("a live one lost something") };
        heard.fetch_add(1, SeqCst);
        if chunk.body.is_empty() {
            return took;
        }
        let sent = u64::from_be_bytes(std::array::from_fn(|at| chunk.body[at]));
        took.push(base.elapsed().as_nanos() as u64 - sent);
    }
}

fn percentile(took: &[u64], percent: usize) -> Duration {
    Duration::from_nanos(took[(took.len() - 1) * percent / 100])
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_that_never_reads_costs_the_others_nothing_and_the_host_little() {
    // How many listen, how many chunks there are, and how much time there is between two of them.
    let (all, chunks, every) = if long() { (100, 2_000, 40) } else { (12, 1_200, 5) };
    let home = Home::new();
    for action in ["publish", "subscribe", "create"] {
        home.ok(&["policy", "allow", "*", action, "*"]);
    }
    let host = block_in_place(|| home.up_here());
    let (ticket, base) = (home.ticket().parse::<Ticket>().unwrap(), Instant::now());
    // Chunk by chunk in turn, so that whatever else the machine does falls on both.
    let mut feeds =
        [Feed::new("all-live", &ticket, all, false, base).await, Feed::new("one-frozen", &ticket, all - 1, true, base).await];
    let (_node, session) = client(&ticket).await;
    let publishers = feeds.each_ref().map(|feed| session.wire(feed.name).unwrap().publisher());
    let before = resident_kib(host.pid());
    let mut ticks = interval(Duration::from_millis(every) / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..chunks {
        for publisher in &publishers {
            ticks.tick().await;
            let mut body = (base.elapsed().as_nanos() as u64).to_be_bytes().to_vec();
            body.resize(CHUNK_BYTES, 0);
            publisher.push(body).await.unwrap();
        }
    }
    for publisher in &publishers {
        soon(publisher.publish("")).await.unwrap();
    }
    for feed in &feeds {
        let all = (chunks + 1) * feed.live as u64;
        until(|| feed.heard.load(SeqCst) == all || feed.took.iter().all(JoinHandle::is_finished)).await;
    }
    let grown = resident_kib(host.pid()).saturating_sub(before);
    let mut p99 = Vec::new();
    for feed in &mut feeds {
        let mut took = Vec::new();
        for heard in feed.took.drain(..) {
            took.extend(heard.await.unwrap());
        }
        took.sort_unstable();
        p99.push(percentile(&took, 99));
        println!("{}: {} live, p50 {:?}, p99 {:?}", feed.name, feed.live, percentile(&took, 50), p99[p99.len() - 1]);
    }
    let published = chunks * CHUNK_BYTES as u64 / 1024;
    println!("p99 with a frozen one: {:.2} of that without", p99[1].as_secs_f64() / p99[0].as_secs_f64());
    println!("the host grew by {grown} KiB, {published} KiB were published on each wire");

    // What was kept for the frozen one is what its stream takes, and then it is told what it has lost.
    let (_node, mut frozen) = feeds[1].frozen.take().unwrap();
    let (mut kept, mut gap) = (0, None);
    while gap.is_none() {
        match soon(frozen.next()).await.unwrap() {
            Delivery::Chunk { chunk, .. } => kept += chunk.body.len() / 1024,
            Delivery::Gap { from, to, .. } => gap = Some((from, to)),
            other => panic!("{other:?}"),
        }
    }
    println!("the frozen one had {kept} KiB kept for it, and then a gap: {gap:?}");
    // Two rings of 4 MiB, a stream of 4 MiB, and what QUIC keeps of it at either end.
    assert!(kept <= 8 * 1024 && grown <= 48 * 1024, "{kept} KiB kept, grown by {grown} KiB");
}
