//! A process that is gone takes what it had in flight with it: the other end says so as soon as it is back, not a window later.

use std::time::Duration;

use rand::RngExt;

use super::window::{HELD, drops, ends, hold};
use super::*;

/// From the news that the peer is another process to the end of every call.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A pair of which one has crashed and is back: the same key at the same place.
struct Returned {
    back: Node,
    stays: Node,
}

impl Returned {
    async fn new(network: &SimNetwork, duo: Duo, node: usize, away: Duration) -> Self {
        let host = ip(node as u8 + 1);
        network.host(host).crash();
        let Duo { nodes: [a, b], keys, .. } = duo;
        let (gone, stays) = if node == 0 { (a, b) } else { (b, a) };
        drop(gone);
        sleep(away).await;
        let (back, _) = keeper(network, host, keys[node], Limits::default()).await;
        back.hold(stays.id(), &[(ip(2 - node as u8), PORT).into()]);
        Self { back, stays }
    }

    /// When the one that stayed was told that the other is back; not as the session from before.
    async fn connected(&self, told: &Told) -> Instant {
        until(Duration::from_secs(30), || told.connected() >= 2).await;
        told.assert_alternates();
        let connects = told.connects();
        assert!(!connects[1].2 && connects[0].1 != connects[1].1, "{:#?}", told.all());
        connects[1].0
    }
}

#[test]
fn calls_to_a_process_that_was_restarted_end_as_soon_as_it_is_back() {
    let took = rounds_of(8, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let link = clean(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        // Either the one who was dialled or the one who dialled.
        let callee = random.random_range(0..2);
        let (session, book) = duo.by(1 - callee);
        let calls = hold(&session, &book, &mut random).await;
        let (told, crashed) = (duo.told[1 - callee].clone(), Instant::now());
        let away = ms(&mut random, 100, 20_000);
        let pair = Returned::new(&network, duo, callee, away).await;
        let at = pair.connected(&told).await;
        for end in ends(calls).await {
            assert!(end <= at + AT_ONCE, "{:?} after it was back", end - at);
        }
        assert_eq!(book.most(), 1);
        until(Duration::from_secs(5), || joined(&pair.back, &pair.stays)).await;
        // One who was dialled need not keep the handle for another process.
        echo(&pair.stays.session(pair.back.id()).expect("it is connected")).await;
        at - crashed - away
    });
    spread("connected after its return", took);
}

#[test]
fn handlers_whose_caller_was_restarted_are_dropped_as_soon_as_it_is_back() {
    let took = rounds_of(8, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let link = clean(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        let caller = random.random_range(0..2);
        let (session, book) = duo.by(caller);
        let calls = hold(&session, &book, &mut random).await;
        let (told, crashed) = (duo.told[1 - caller].clone(), Instant::now());
        // The futures go with the process, and tell nobody.
        network.host(ip(caller as u8 + 1)).crash();
        drop((calls, session));
        sleep(Duration::from_millis(200)).await;
        assert_eq!(book.running() as u64, HELD);
        let away = ms(&mut random, 100, 20_000);
        let pair = Returned::new(&network, duo, caller, away).await;
        let at = pair.connected(&told).await;
        sleep(AT_ONCE).await;
        assert_eq!((book.running(), drops(&book).len() as u64), (0, HELD), "{:?} after it was back", at.elapsed());
        at - crashed - away
    });
    spread("connected after its return", took);
}
