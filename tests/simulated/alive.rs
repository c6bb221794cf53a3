//! Paths that die without a word, and how soon each end knows.

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep};
use voltmesh::Node;
use voltmesh::net::sim::LinkProfile;
use voltmesh::proto::control::Profile;

use crate::support::*;

/// Ticks come every half second while there is traffic.
const TICK: Duration = Duration::from_millis(500);

#[test]
fn a_black_hole_with_a_call_in_flight_is_noticed_within_three_seconds_and_a_half() {
    let took = rounds(20, |seed| async move {
        let (network, mut random) = network(seed);
        let pair = Pair::new(&network, LinkProfile::perfect(ms(&mut random, 1, 60)), [&key(seed), &key(seed + 1)]).await;
        sleep(ms(&mut random, 0, 10_000)).await;
        network.partition(ip(1), ip(2));
        let started = Instant::now();
        let to_b = pair.to_b.clone();
        let call = tokio::spawn(async move { to_b.call::<_, u64>("work/slow", &1u64).await });
        until(Duration::from_secs(9), || pair.told_a.lost_after(started).is_some()).await;
        assert!(!call.is_finished() && pair.served_b.times(1) == 0, "it waits");
        network.heal_all();
        assert_eq!(call.await.unwrap(), Ok(1));
        assert_eq!(pair.served_b.times(1), 1);
        let noticed = pair.told_a.lost_after(started).unwrap().0 - started;
        assert!(noticed <= Duration::from_secs(3) + TICK + Duration::from_millis(2), "{noticed:?}");
        noticed
    });
    spread("noticed by the caller", took);
}

#[test]
fn a_one_way_black_hole_is_noticed_by_both_ends() {
    let took = rounds(20, |seed| async move {
        let (network, mut random) = network(seed);
        let pair = Pair::new(&network, LinkProfile::perfect(ms(&mut random, 1, 60)), [&key(seed), &key(seed + 1)]).await;
        let busy: bool = random.random();
        let work = busy.then(|| {
            let to_b = pair.to_b.clone();
            tokio::spawn(
                async move { while to_b.call::<_, (u64, Vec<u8>)>("work/echo", &(1u64, vec![0u8; 100])).await.is_ok() {} },
            )
        });
        sleep(ms(&mut random, 0, 10_000)).await;
        let (from, to) = if random.random() { (1, 2) } else { (2, 1) };
        network.partition_one_way(ip(from), ip(to));
        let started = Instant::now();
        let lost = || pair.told_a.lost_after(started).is_some() && pair.told_b.lost_after(started).is_some();
        until(Duration::from_secs(9), lost).await;
        let [a, b] = [&pair.told_a, &pair.told_b].map(|told| told.lost_after(started).unwrap().0 - started);
        let bound = Duration::from_secs(8) + TICK;
        assert!(a <= bound && b <= bound, "{a:?} {b:?}");
        if busy {
            assert!(a <= Duration::from_secs(3) + TICK + Duration::from_millis(150), "the caller: {a:?}");
        }
        work.inspect(|work| work.abort());
        a.max(b)
    });
    spread("noticed by both", took);
}

#[test]
fn an_idle_black_hole_is_noticed_within_eight_seconds() {
    let took = rounds(20, |seed| async move {
        let (network, mut random) = network(seed);
        let pair = Pair::new(&network, LinkProfile::perfect(ms(&mut random, 1, 60)), [&key(seed), &key(seed + 1)]).await;
        sleep(ms(&mut random, 0, 20_000)).await;
        network.partition(ip(1), ip(2));
        let started = Instant::now();
        let lost = || pair.told_a.lost_after(started).is_some() && pair.told_b.lost_after(started).is_some();
        until(Duration::from_secs(9), lost).await
    });
    let most = spread("noticed by both", took);
    assert!(most <= Duration::from_secs(8) + TICK, "{most:?}");
}

#[test]
fn on_battery_an_idle_session_sends_four_packets_a_minute_and_notices_within_forty_seconds() {
    simulate(async {
        let (network, _) = network(1);
        let node = |profile| Node::builder().open(true).profile(profile);
        let a = bind(&network, ip(1), &key(1), node(Profile::Battery)).await;
        let b = bind(&network, ip(2), &key(2), node(Profile::Active)).await;
        let told = [Told::by(&a, b.id()), Told::by(&b, a.id())];
        a.hold(b.id(), &[(ip(2), PORT).into()]);
        until(Duration::from_secs(5), || joined(&a, &b)).await;
        sleep(Duration::from_secs(60)).await;
        let from = network.elapsed();
        sleep(Duration::from_secs(600)).await;
        let log: Vec<_> = network.log().into_iter().filter(|event| event.at > from).collect();
        let sent = |host: u8| log.iter().filter(|event| event.from.ip() == std::net::IpAddr::from(ip(host))).count();
        println!("in 10 minutes: {} and {} packets", sent(1), sent(2));
        network.partition(ip(1), ip(2));
        let started = Instant::now();
        let took = until(Duration::from_secs(41), || told.iter().all(|told| told.lost_after(started).is_some())).await;
        println!("noticed after {took:?}");
        // The ten minutes may begin with the end of one exchange, and end with the beginning of another.
        assert!(sent(1) <= 42 && sent(2) <= 42, "{} {}", sent(1), sent(2));
        assert!(took <= Duration::from_millis(40_500), "{took:?}");
    });
}

#[test]
fn a_node_that_moved_and_knows_it_is_back_within_four_seconds() {
    let took = rounds(10, |seed| async move {
        let (network, mut random) = network(seed);
        let delay = ms(&mut random, 1, 60);
        let pair = Pair::new(&network, LinkProfile::perfect(delay), [&key(seed), &key(seed + 1)]).await;
        sleep(ms(&mut random, 2_000, 10_000)).await;
        // The one who was dialled moves: QUIC cannot follow that. Where to dial it knows from the hello.
        pair.b.hold(pair.a.id(), &[(ip(1), PORT).into()]);
        network.host(ip(2)).move_to([10, 7, 7, 7]);
        pair.b.network_changed();
        let started = Instant::now();
        echo(&pair.to_a).await;
        let back = started.elapsed();
        echo(&pair.to_b).await;
        assert!(joined(&pair.a, &pair.b));
        pair.assert_alternate();
        back
    });
    let most = spread("back", took);
    assert!(most <= Duration::from_millis(4_500), "{most:?}");
}
