//! The host of a persistent wire is killed again and again while chunks are published to it: real processes, SIGKILL, real files.
#![cfg(feature = "cli")]

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use support::process::Home;
use support::{closed, long, loopback};
use tokio::sync::Notify;
use voltmesh::wire::{Delivery, From, Options, Publisher, Subscription, Wire};

/// What is published, and what came of it.
#[derive(Default)]
struct Count {
    stored: AtomicU64,
    more: Notify,
    stop: AtomicBool,
}

fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(8 + (number as usize * 7_919) % 2_000, number as u8);
    body
}

/// Publishes until told to stop. Everything must be stored: says how much that is.
async fn publish(publisher: Publisher, count: Arc<Count>) -> u64 {
    let mut number = 0;
    while !count.stop.load(SeqCst) {
        number += 1;
        let pending = publisher.send(body(number)).await.unwrap();
        let count = count.clone();
        let told = tokio::spawn(async move {
            pending.await.unwrap_or_else(|error| panic!("{number}: {error}"));
            count.stored.fetch_add(1, SeqCst);
            count.more.notify_waiters();
        });
        // Some in flight, not all there can be.
        if number % 200 == 0 {
            told.await.unwrap();
        }
    }
    publisher.flush().await.unwrap();
    number
}

/// Reads so many chunks, which must be what was published: no gap, none twice, none out of order.
async fn read(mut subscription: Subscription, from: u64, count: u64) {
    for number in from..from + count {
        let next = tokio::time::timeout(Duration::from_secs(120), subscription.next()).await;
        match next.unwrap_or_else(|_| panic!("{number} does not come")).unwrap() {
            Delivery::Chunk { seq, chunk } => assert_eq!((seq, &chunk.body[..]), (number, &body(number)[..])),
            gap => panic!("{gap:?} instead of {number}"),
        }
    }
}

async fn everything(wire: &Wire, count: u64) {
    read(wire.subscribe(From::Oldest).await.unwrap(), 1, count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_loses_nothing_it_acknowledged_and_keeps_nothing_twice() {
    let rounds = if long() { 500 } else { 6 };
    let seed: u64 = std::env::var("VOLT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}, {rounds} rounds");
    let mut random = StdRng::seed_from_u64(seed);
    let home = Home::new();
    for action in ["publish", "subscribe", "create"] {
        home.ok(&["policy", "allow", "*", action, "*"]);
    }
    let port = UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
    let listen = port.to_string();
    let up = || home.up(&["--listen", &listen]);
    let mut host = up();
    let node = closed().bind().await.unwrap();
    let ticket = home.ticket().parse::<voltmesh::id::Ticket>().unwrap();
    let session = node.connect(ticket).await.unwrap();
    let wire = session.wire("feed").unwrap();
    let options = Options { persist: true, ring_chunks: 64, ..Options::default() };
    wire.create(options).await.unwrap();
    let live = wire.subscribe(From::Live).await.unwrap();

    let count = Arc::<Count>::default();
    let publishing = tokio::spawn(publish(wire.publisher(), count.clone()));
    for round in 0..rounds {
        let until = count.stored.load(SeqCst) + random.random_range(0..400);
        let reached = async {
            loop {
                let more = count.more.notified();
                if count.stored.load(SeqCst) >= until {
                    return;
                }
                more.await;
            }
        };
        let stuck = || panic!("round {round}: nothing is stored any more");
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap_or_else(|_| stuck());
        host.signal(Signal::KILL);
        drop(host);
        host = tokio::task::block_in_place(up);
        // A peer that never stays is dialled ever less often: this one is known to be there.
        node.network_changed();
        if round % 50 == 49 {
            println!("{} rounds, {} chunks", round + 1, count.stored.load(SeqCst));
        }
    }
    count.stop.store(true, SeqCst);
    let published = publishing.await.unwrap();
    println!("{published} chunks");
    everything(&wire, published).await;
    read(live, 1, published).await;
    assert_eq!(session.wires("feed").await.unwrap()[0].next, published + 1, "there is more than was published");
    node.shutdown().await;
    drop(host);
}
