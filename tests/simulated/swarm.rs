//! Many nodes and one that restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;
use voltmesh::net::sim::LinkProfile;

use crate::support::*;

#[test]
fn a_hundred_nodes_come_back_to_one_that_restarts_without_a_stampede() {
    simulate(async {
        let (network, _) = network(seed());
        network.default_link(LinkProfile { jitter: Duration::from_millis(5), ..LinkProfile::default() });
        let (mut hub, _) = open(&network, 1, &key(1)).await;
        let mut nodes = Vec::new();
        for host in 2..102u8 {
            let (node, _) = open(&network, host, &key(host.into())).await;
            node.hold(hub.id(), &[(ip(1), PORT).into()]);
            nodes.push(node);
        }
        let id = hub.id();
        let all_up = |nodes: &[voltmesh::Node]| nodes.iter().all(|node| node.session(id).is_some_and(|session| is_up(&session)));
        let took = until(Duration::from_secs(30), || all_up(&nodes)).await;
        println!("all up after {took:?}");
        sleep(Duration::from_secs(20)).await;

        network.host(ip(1)).crash();
        drop(hub);
        sleep(Duration::from_secs(15)).await;
        assert!(nodes.iter().all(|node| !node.session(id).is_some_and(|session| is_up(&session))));
        let before: u64 = nodes.iter().map(|node| node.counts().dials).sum();
        let back_at = network.elapsed();
        (hub, _) = open(&network, 1, &key(1)).await;
        let took = until(Duration::from_secs(30), || all_up(&nodes)).await;
        sleep(Duration::from_secs(10)).await;
        assert!(all_up(&nodes));
        let dials: u64 = nodes.iter().map(|node| node.counts().dials).sum::<u64>() - before;
        let mut per_tenth: BTreeMap<u128, u32> = BTreeMap::new();
        for event in network.log().iter().filter(|event| event.at > back_at && event.to.ip() == hub.listening()[0].ip()) {
            // First packets are padded to 1,200 bytes, and no other of this size comes without one.
            if event.bytes == 1_200 {
                *per_tenth.entry((event.at - back_at).as_millis() / 100).or_default() += 1;
            }
        }
        println!(
            "all back after {took:?}, {dials} dials, initial packets per 100 ms: {:?}",
            per_tenth.values().collect::<Vec<_>>()
        );
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(dials <= 100 && per_tenth.values().all(|packets| *packets <= 300), "{dials} {per_tenth:?}");
        assert_eq!(hub.counts().refused_handshakes, 0);
        assert_eq!(hub.counts().links, 100);
    });
}
