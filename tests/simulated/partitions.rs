//! Networks that fall apart for a while, and what becomes of calls.

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep};
use voltmesh::CallError;
use voltmesh::net::sim::LinkProfile;

use crate::support::*;

/// How long it lasts, and how long after it the session is up at the latest: the ceiling of the time, and two handshakes, one of
/// them into the silence before.
const PARTITIONS: [(u64, u64); 3] = [(10, 4), (60, 4), (600, 42)];

#[test]
fn after_a_partition_the_session_is_up_again_and_every_call_has_a_definite_outcome() {
    for (partition, bound) in PARTITIONS {
        let took = rounds(8, |seed| async move {
            let (network, mut random) = network(seed);
            let link = LinkProfile { jitter: ms(&mut random, 0, 10), ..LinkProfile::perfect(ms(&mut random, 1, 60)) };
            let pair = Pair::new(&network, link, [&key(seed), &key(seed + 1)]).await;
            if random.random() {
                pair.b.hold(pair.a.id(), &[(ip(1), PORT).into()]);
            }
            sleep(ms(&mut random, 3_000, 9_000)).await;
            let in_flight = tokio::spawn({
                let to_b = pair.to_b.clone();
                async move { to_b.request("work/held").timeout(Duration::from_secs(1_000)).unary::<_, u64>(&1u64).await }
            });
            sleep(Duration::from_millis(200)).await;
            network.partition(ip(1), ip(2));
            let started = Instant::now();
            until(Duration::from_secs(9), || !is_up(&pair.to_b) && !is_up(&pair.to_a)).await;
            assert!(!in_flight.is_finished() && pair.served_b.times(1) == 1, "it waits");
            let not_sent = pair.to_b.request("work/echo").fail_fast().unary::<_, (u64, Vec<u8>)>(&(2u64, vec![1u8])).await;
            assert!(matches!(not_sent, Err(CallError::NotSent(_))), "{not_sent:?}");
            let waiting: Vec<_> = (100..120u64)
                .map(|number| {
                    let to_b = pair.to_b.clone();
                    tokio::spawn(async move {
                        let call = to_b.request("work/echo").timeout(Duration::from_secs(1_000));
                        call.unary::<_, (u64, Vec<u8>)>(&(number, vec![9u8; 2_000])).await
                    })
                })
                .collect();
            let hasty = pair.to_b.request("work/echo").timeout(Duration::from_millis(50));
            let hasty = hasty.unary::<_, (u64, Vec<u8>)>(&(3u64, vec![0u8])).await.unwrap_err();
            assert_eq!(hasty.outcome(), voltmesh::Outcome::NotSent, "{hasty:?}");
            tokio::time::sleep_until(started + Duration::from_secs(partition)).await;
            network.heal_all();
            // Held, it has no answer: it goes on waiting for it, or has ended with the window.
            if partition > 120 {
                let outcome = in_flight.await.unwrap();
                assert!(matches!(outcome, Err(CallError::OutcomeUnknown(_))), "{outcome:?}");
            } else {
                assert!(!in_flight.is_finished());
                in_flight.abort();
            }
            let took = until(Duration::from_secs(bound), || joined(&pair.a, &pair.b)).await;
            for (number, call) in (100..).zip(waiting) {
                assert_eq!(call.await.unwrap().unwrap(), (number, vec![9; 2_000]));
                assert_eq!(pair.served_b.times(number), 1, "call {number}");
            }
            assert_eq!((pair.served_b.times(2), pair.served_b.times(3)), (0, 0));
            assert_eq!(pair.served_b.times(1), 1);
            // A node that was only dialled expects its peer back for two minutes; after that the session is another one.
            let to_a = if partition > 120 { pair.b.session(pair.a.id()).unwrap() } else { pair.to_a.clone() };
            tokio::join!(biased; echo(&to_a), echo(&pair.to_b));
            sleep(Duration::from_secs(20)).await;
            assert!(joined(&pair.a, &pair.b));
            assert_eq!((pair.a.counts().links, pair.b.counts().links), (1, 1));
            pair.assert_alternate();
            (took, pair.told_a.connected())
        });
        let flaps = took.iter().map(|(_, connected)| connected - 2).max().unwrap();
        spread(&format!("{partition} s; up after healing ({flaps} more connects)"), took.iter().map(|(took, _)| *took).collect());
    }
}

#[test]
fn a_call_is_never_executed_twice_whatever_falls_apart() {
    rounds(6, |seed| async move {
        let (network, mut random) = network(seed);
        let link = LinkProfile { loss: 0.02, ..LinkProfile::perfect(ms(&mut random, 1, 40)) };
        let pair = Pair::new(&network, link, [&key(seed), &key(seed + 1)]).await;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..300u64 {
            let (to_b, at) = (pair.to_b.clone(), ms(&mut random, 0, 60_000));
            let fail_fast = random.random();
            calls.spawn(async move {
                sleep(at).await;
                let mut call = to_b.request("work/echo").timeout(Duration::from_secs(100));
                if fail_fast {
                    call = call.fail_fast();
                }
                (number, call.unary::<_, (u64, Vec<u8>)>(&(number, vec![1u8; 100])).await)
            });
        }
        for _ in 0..4 {
            sleep(ms(&mut random, 1_000, 9_000)).await;
            let one_way: bool = random.random();
            if one_way {
                network.partition_one_way(ip(1), ip(2))
            } else {
                network.partition(ip(1), ip(2))
            };
            sleep(ms(&mut random, 500, 9_000)).await;
            network.heal_all();
        }
        let mut answered = 0;
        while let Some(call) = calls.join_next().await {
            let (number, outcome) = call.unwrap();
            let times = pair.served_b.times(number);
            match outcome {
                Ok(answer) => {
                    answered += 1;
                    assert_eq!((answer, times), ((number, vec![1; 100]), 1));
                }
                // No partition lasts for the window, so only a call that was not to wait has no answer.
                Err(error) => assert_eq!((error.outcome(), times), (voltmesh::Outcome::NotSent, 0), "{number}: {error}"),
            }
        }
        assert!(answered > 100, "{answered}");
        pair.assert_alternate();
    });
}
