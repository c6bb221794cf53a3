//! Many nodes and one that restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;
use voltmesh::Node;
use voltmesh::net::sim::LinkProfile;

use crate::support::*;

/// Its peers in the short and in the long form.
const PEERS: [u16; 2] = [100, 1_000];

#[test]
fn nodes_come_back_to_one_that_restarts_without_a_stampede() {
    // For how long it is away, and how long after its return the last one is back: before it was missed, at the next ping; within
    // the resume window all dial every 0.1 to 1 s; after it every 30 s at the latest.
    for (away, within) in [(2, 9), (15, 5), (200, 42)] {
        simulate(swarm(seed(), PEERS[usize::from(long())], Duration::from_secs(away), Duration::from_secs(within)));
    }
}

/// All peers hold a session with one node, which crashes, and is back after a while.
async fn swarm(seed: u64, peers: u16, away: Duration, within: Duration) {
    let (network, mut random) = network(seed);
    network.default_link(LinkProfile { jitter: Duration::from_millis(5), ..LinkProfile::default() });
    let (mut hub, _) = open(&network, 1, &key(1)).await;
    let mut nodes = Vec::new();
    for number in 0..peers {
        let [high, low] = number.to_be_bytes();
        let served = Served::default();
        let builder = Node::builder().open(true).service(served.service());
        let node = bind(&network, [10, 1, high, low], &key(100 + u64::from(number)), builder).await;
        node.hold(hub.id(), &[(ip(1), PORT).into()]);
        nodes.push(node);
    }
    let id = hub.id();
    let up = |node: &Node| node.session(id).is_some_and(|session| is_up(&session));
    let took = until(Duration::from_secs(30), || nodes.iter().all(up)).await;
    println!("{peers} peers are up after {took:?}");
    sleep(ms(&mut random, 15_000, 25_000)).await;

    network.host(ip(1)).crash();
    drop(hub);
    sleep(away).await;
    let before: Vec<u64> = nodes.iter().map(|node| node.counts().dials).collect();
    let back_at = network.elapsed();
    (hub, _) = open(&network, 1, &key(1)).await;
    let back = || nodes.iter().all(up) && hub.counts().links == nodes.len();
    let took = until(within, back).await;
    sleep(Duration::from_secs(10)).await;
    assert!(back(), "they stay");
    let dials: Vec<u64> = nodes.iter().zip(before).map(|(node, before)| node.counts().dials - before).collect();
    let mut per_tenth: BTreeMap<u128, u32> = BTreeMap::new();
    for event in network.log().iter().filter(|event| event.at > back_at && event.to == hub.listening()[0]) {
        // First packets are padded to 1,200 bytes, and no other of this size comes without one.
        if event.bytes == 1_200 {
            *per_tenth.entry((event.at - back_at).as_millis() / 100).or_default() += 1;
        }
    }
    let (all, most) = (dials.iter().sum::<u64>(), dials.iter().max().unwrap());
    println!("away for {away:?}: all back after {took:?}, {all} dials, at most {most} by one; initial packets per 100 ms:");
    println!("  {:?}", per_tenth.values().collect::<Vec<_>>());
    assert!(*most <= 3 && all <= 2 * u64::from(peers), "{all} dials, {most} by one");
    assert_eq!(hub.counts().refused_handshakes, 0);
    // A dial takes two or three, and each peer may have three under way as it returns.
    let packets: u32 = per_tenth.values().sum();
    assert!(packets <= 10 * u32::from(peers), "{packets} initial packets for {peers} peers");
}
