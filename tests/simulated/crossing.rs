//! Two nodes that want each other: dials that cross, and ends that still believe in a dead link.

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};
use voltmesh::net::sim::LinkProfile;

use crate::support::*;

#[test]
fn dials_that_cross_end_in_one_link() {
    let took = rounds(40, |seed| async move {
        let (network, mut random) = network(seed);
        network.default_link(LinkProfile {
            delay: ms(&mut random, 1, 60),
            jitter: ms(&mut random, 0, 20),
            loss: random.random_range(0.0..0.1),
            duplicate: random.random_range(0.0..0.05),
            reorder: random.random_range(0.0..0.05),
            ..LinkProfile::default()
        });
        let ((a, _), (b, _)) = (open(&network, 1, &key(2 * seed)).await, open(&network, 2, &key(2 * seed + 1)).await);
        let told = [Told::by(&a, b.id()), Told::by(&b, a.id())];
        let (at_a, at_b) = (ms(&mut random, 0, 40), ms(&mut random, 0, 40));
        let started = Instant::now();
        let (to_b, to_a) = tokio::join!(
            biased;
            async { sleep(at_a).await; a.hold(b.id(), &[(ip(2), PORT).into()]) },
            async { sleep(at_b).await; b.hold(a.id(), &[(ip(1), PORT).into()]) },
        );
        let one_link = || joined(&a, &b) && a.counts().links == 1 && b.counts().links == 1;
        until(Duration::from_secs(30), || joined(&a, &b)).await;
        let took = started.elapsed();
        until(Duration::from_secs(30), one_link).await;
        sleep(Duration::from_secs(15)).await;
        assert!(one_link(), "{:?} {:?}", a.counts(), b.counts());
        assert_eq!(to_a.id(), to_b.id());
        tokio::join!(biased; echo(&to_a), echo(&to_b));
        told.iter().for_each(Told::assert_alternates);
        (took, told[0].connected() - 1, a.counts().dials + b.counts().dials)
    });
    println!("superseded in {} rounds", took.iter().filter(|(_, flaps, _)| *flaps > 0).count());
    println!("at most {} dials", took.iter().map(|(_, _, dials)| dials).max().unwrap());
    spread("to one session", took.iter().map(|(took, ..)| *took).collect());
}

/// What has happened to the link that one end still believes in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// The process was killed and is back at the same address.
    Killed,
    /// It is back at another address.
    Moved,
    /// Its owner released the peer while nothing got through: all is forgotten, and nobody was told.
    Forgotten,
    /// The end that dials knows that the way is gone; the other does not.
    Noticed,
}

#[test]
fn an_end_that_believes_a_dead_link_is_reached_within_one_dial() {
    let took = rounds(40, |seed| async move {
        let (network, mut random) = network(seed);
        let delay = ms(&mut random, 1, 60);
        let fates = [Fate::Killed, Fate::Moved, Fate::Forgotten, Fate::Noticed];
        let fate = fates[random.random_range(0..fates.len())];
        let keys = [key(2 * seed), key(2 * seed + 1)];
        let pair = Pair::new(&network, LinkProfile::perfect(delay), [&keys[0], &keys[1]]).await;
        // Either the one who dialled or the one who was dialled goes; the other believes.
        let goes = random.random_range(0..2u8);
        let (gone, stays, told) = if goes == 0 { (pair.a, pair.b, pair.told_b) } else { (pair.b, pair.a, pair.told_a) };
        sleep(ms(&mut random, 0, 6_000)).await;
        let before = stays.session(gone.id()).unwrap().id();
        let address = [(ip(2 - goes), PORT).into()];
        let (dials, started, session);
        let back;
        match fate {
            Fate::Killed | Fate::Moved => {
                network.host(ip(goes + 1)).crash();
                drop(gone);
                let host = if fate == Fate::Moved { [10, 9, 9, 9] } else { ip(goes + 1) };
                sleep(ms(&mut random, 0, 1_000)).await;
                let served = Served::default();
                let builder = voltmesh::Node::builder().open(true).service(served.service());
                back = bind(&network, host, &keys[goes as usize], builder).await;
                (dials, started) = (back.counts().dials, Instant::now());
                session = back.hold(stays.id(), &address);
            }
            Fate::Forgotten | Fate::Noticed => {
                network.partition(ip(1), ip(2));
                back = gone;
                if fate == Fate::Forgotten {
                    back.release(stays.id());
                    sleep(Duration::from_secs(1)).await;
                } else {
                    // Of the two, the one who goes has something outstanding, and so notices within 3.5 s.
                    let to_stays = back.session(stays.id()).unwrap();
                    back.hold(stays.id(), &address);
                    let _ = timeout(Duration::from_millis(10), to_stays.call::<_, u64>("work/slow", &1u64)).await;
                    until(Duration::from_secs(9), || !is_up(&to_stays)).await;
                }
                network.heal_all();
                (dials, started) = (back.counts().dials, Instant::now());
                session = back.hold(stays.id(), &address);
            }
        }
        until(Duration::from_secs(20), || joined(&back, &stays) && is_up(&session)).await;
        let (took, used) = (started.elapsed(), back.counts().dials - dials);
        // One who is the same process, and kept it, has the session from before.
        assert_eq!(session.id() == before, fate == Fate::Noticed, "{fate:?}");
        echo(&session).await;
        told.assert_alternates();
        (fate, took, took.saturating_sub(Duration::from_millis(5)).div_duration_f64(2 * delay), used)
    });
    for fate in [Fate::Killed, Fate::Moved, Fate::Forgotten, Fate::Noticed] {
        let of: Vec<_> = took.iter().filter(|(what, ..)| *what == fate).collect();
        if of.is_empty() {
            continue;
        }
        let dials = of.iter().map(|(.., dials)| *dials).max().unwrap();
        let trips = of.iter().map(|(_, _, trips, _)| *trips).fold(0.0, f64::max);
        println!("{fate:?}: at most {dials} dials, {trips:.1} round trips");
        spread("  took", of.iter().map(|(_, took, ..)| *took).collect());
        // Who noticed dials every 0.1 to 1 s beside what runs already; that one dial was enough is told by the time.
        assert!(dials <= 1 || fate == Fate::Noticed, "{fate:?} took {dials} dials");
        assert!(trips < 9.0, "{fate:?} took {trips} round trips");
    }
}
