//! Bad links: every call is answered once, with the right bytes. And the same seed gives the same run.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;
use voltmesh::Event;
use voltmesh::net::sim::LinkProfile;

use crate::support::*;

#[test]
fn over_a_link_that_loses_doubles_and_reorders_a_thousand_calls_are_answered_exactly_once() {
    for loss in if long() { vec![0.0, 0.05, 0.1, 0.2, 0.3] } else { vec![0.05, 0.15] } {
        for _ in 0..if long() { 10 } else { 1 } {
            let connected = simulate(bad_link(seed(), loss, 1_000));
            println!("loss {loss}: {connected} connects");
        }
    }
}

/// How often it was connected: only a link this bad may be silent for so long that it is taken for dead, now and then.
async fn bad_link(seed: u64, loss: f64, calls: u64) -> usize {
    let (network, mut random) = network(seed);
    let link = LinkProfile { loss, duplicate: 0.05, reorder: 0.05, jitter: ms(&mut random, 0, 10), ..LinkProfile::default() };
    let pair = Pair::new(&network, link, [&key(seed), &key(seed + 1)]).await;
    let mut running = tokio::task::JoinSet::new();
    for number in 0..calls {
        let to_b = pair.to_b.clone();
        let body: Vec<u8> = {
            let mut random = StdRng::seed_from_u64(seed ^ number);
            (0..random.random_range(0..3_000)).map(|_| random.random()).collect()
        };
        running.spawn(async move {
            let call = to_b.request("work/echo").timeout(Duration::from_secs(600));
            let answer = call.unary::<_, (u64, Vec<u8>)>(&(number, body.clone())).await;
            (number, answer.map(|answer| assert_eq!(answer, (number, body))))
        });
    }
    while let Some(done) = running.join_next().await {
        let (number, outcome) = done.unwrap();
        assert_eq!((outcome, pair.served_b.times(number)), (Ok(()), 1), "loss {loss}, call {number}");
    }
    assert_eq!(pair.served_b.most(), 1);
    pair.told_a.assert_one_session();
    pair.told_b.assert_one_session();
    pair.told_a.connected()
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2] {
        let (first, second) = (simulate(eventful(seed)), simulate(eventful(seed)));
        assert_eq!(first.1, second.1, "events");
        for (at, (one, two)) in first.2.iter().zip(&second.2).enumerate() {
            assert_eq!(one, two, "datagram {at} of {}", first.2.len());
        }
        assert_eq!(first.0, second.0, "digest");
        assert!(first.2.len() > 500);
    }
    assert_ne!(simulate(eventful(1)).0, simulate(eventful(2)).0);
}

type Run = (u64, Vec<String>, Vec<voltmesh::net::sim::Event>);

/// Five nodes, calls, a partition, a crash and a way back.
async fn eventful(seed: u64) -> Run {
    let (network, _) = network(seed);
    network.default_link(LinkProfile { loss: 0.03, duplicate: 0.02, reorder: 0.02, ..LinkProfile::mobile() });
    let mut nodes = Vec::new();
    for host in 1..=5u8 {
        nodes.push(open(&network, host, &key(host.into())).await.0);
    }
    let told: Vec<_> = nodes.iter().skip(1).map(|node| [Told::by(&nodes[0], node.id()), Told::by(node, nodes[0].id())]).collect();
    for node in &nodes[1..] {
        node.hold(nodes[0].id(), &[(ip(1), PORT).into()]);
    }
    nodes[0].hold(nodes[2].id(), &[(ip(3), PORT).into()]);
    sleep(Duration::from_secs(5)).await;
    for (number, node) in nodes[1..].iter().enumerate() {
        let session = node.session(nodes[0].id()).unwrap();
        let _: (u64, Vec<u8>) = session.call("work/echo", &(number as u64, vec![1u8; 5_000])).await.unwrap();
    }
    network.isolate(ip(2));
    sleep(Duration::from_secs(20)).await;
    network.rejoin(ip(2));
    nodes[0].network_changed();
    network.host(ip(5)).crash();
    nodes.pop();
    sleep(Duration::from_secs(20)).await;
    nodes.push(open(&network, 5, &key(5)).await.0);
    nodes[4].hold(nodes[0].id(), &[(ip(1), PORT).into()]);
    sleep(Duration::from_secs(20)).await;
    nodes[0].shutdown().await;
    sleep(Duration::from_secs(20)).await;
    let start = told[0][0].all()[0].0;
    let line = |(at, event): &(tokio::time::Instant, Event)| match event {
        Event::Connected { peer, .. } => format!("{:?} + {peer}", *at - start),
        Event::Disconnected { peer, reason } => format!("{:?} - {peer} {reason}", *at - start),
        other => format!("{other:?}"),
    };
    let events = told.iter().flatten().flat_map(|told| told.all().iter().map(line).collect::<Vec<_>>()).collect();
    (network.digest(), events, network.log())
}
