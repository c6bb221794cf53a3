//! One large call, both ways at once, over paths that are lost: every byte arrives, in order, once.

use std::time::Duration;

use rand::RngExt;
use tokio::time::{sleep, timeout};
use voltmesh::proto::call::Shape;

use super::flow::{self, Manner, Plan};
use super::*;

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_partition_of_ten_seconds_within_a_large_call_loses_no_byte() {
    let took = rounds_of(4, SEEDS, |seed| async move {
        let bytes = if long() { 100_000_000 } else { 3_000_000 };
        let (network, mut random) = network(seed);
        let duo = Duo::new(&network, seed, clean(&mut random)).await;
        let (session, book) = duo.by(random.random_range(0..2));
        let started = Instant::now();
        let running = tokio::spawn({
            let (plan, book) = (Plan::new(seed, bytes, bytes), book.clone());
            async move { flow::call(&session, &book, Shape::Bidi, plan, Manner::default()).await }
        });
        // Not near the end: the handler is done as soon as all it has to say is on its way.
        let at = (2 * bytes) / 100 * random.random_range(2..60);
        until(DAY, || book.moved() >= at || running.is_finished()).await;
        assert!(!running.is_finished() && book.running() == 1, "the cut comes within the call");
        network.partition(ip(1), ip(2));
        sleep(Duration::from_secs(10)).await;
        network.heal_all();
        let healed = Instant::now();
        duo.joined_within(BACK).await;
        let back = healed.elapsed();
        timeout(DAY, running).await.expect("it ends").unwrap().assert_whole(&book);
        duo.assert_survived().await;
        for told in &duo.told {
            assert_eq!(told.all().len(), 3, "connected, disconnected, resumed: {:#?}", told.all());
        }
        (back, started.elapsed())
    });
    spread("back after healing", took.iter().map(|(back, _)| *back).collect());
    spread("the call", took.iter().map(|(_, call)| *call).collect());
}

#[test]
fn a_large_call_over_a_bad_link_that_is_cut_again_and_again_loses_no_byte() {
    let took = rounds_of(4, SEEDS, |seed| async move {
        let bytes = if long() { 8_000_000 } else { 400_000 };
        let (network, mut random) = network(seed);
        let link = rough(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        let (session, book) = duo.by(random.random_range(0..2));
        let running = tokio::spawn({
            let (plan, book) = (Plan::new(seed, bytes, bytes), book.clone());
            async move { flow::call(&session, &book, Shape::Bidi, plan, Manner::default()).await }
        });
        let mut at: Vec<u64> = (0..random.random_range(1..=4)).map(|_| random.random_range(0..2 * bytes)).collect();
        at.sort();
        let mut cuts = 0;
        for at in at {
            until(DAY, || book.moved() >= at || running.is_finished()).await;
            cuts += usize::from(!running.is_finished());
            let length = ms(&mut random, 300, 10_000);
            cut(&network, &mut random, length).await;
        }
        timeout(DAY, running).await.expect("it ends").unwrap().assert_whole(&book);
        duo.assert_survived().await;
        println!("loss {:.2}, {cuts} cuts within the call, {} connects", link.loss, duo.told[0].connected());
        cuts
    });
    assert!(took.iter().sum::<usize>() > 0, "some cuts come within the call");
}
