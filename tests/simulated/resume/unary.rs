//! Many small calls over paths that are lost: none is lost with them, none is executed twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use voltmesh::proto::call::Shape;

use super::flow::{self, Book, Got, Manner, Plan};
use super::*;

/// Calls under way at any moment.
const IN_FLIGHT: usize = 200;
const HOUR: Duration = Duration::from_secs(3_600);

/// Makes so many calls; counts those that have ended.
fn make(count: u64, session: Session, book: &Book, seed: u64) -> (JoinSet<Got>, Arc<AtomicU64>) {
    let (ended, free, mut random) = (Arc::default(), Arc::new(Semaphore::new(IN_FLIGHT)), StdRng::seed_from_u64(seed));
    let mut calls = JoinSet::new();
    for number in 0..count {
        let mut plan = Plan::new(number, random.random_range(0..3_000), random.random_range(0..3_000));
        plan.wait_ms = random.random_range(0..60);
        let (session, book, free, ended) = (session.clone(), book.clone(), free.clone(), Arc::<AtomicU64>::clone(&ended));
        calls.spawn(async move {
            let _leave = free.acquire().await.unwrap();
            let got = flow::call(&session, &book, Shape::Unary, plan, Manner::default()).await;
            ended.fetch_add(1, Ordering::Relaxed);
            got
        });
    }
    (calls, ended)
}

async fn all_whole(mut calls: JoinSet<Got>, book: &Book, count: u64) {
    while let Some(got) = calls.join_next().await {
        got.unwrap().assert_whole(book);
    }
    assert_eq!((book.begun() as u64, book.most(), book.running()), (count, 1, 0));
}

#[test]
fn a_partition_of_ten_seconds_amid_many_calls_loses_none_and_repeats_none() {
    let took = rounds_of(4, SEEDS, |seed| async move {
        let count = if long() { 10_000 } else { 500 };
        let (network, mut random) = network(seed);
        let duo = Duo::new(&network, seed, clean(&mut random)).await;
        let (session, book) = duo.by(random.random_range(0..2));
        let (calls, ended) = make(count, session, &book, seed);
        let at = random.random_range(count / 50..count - IN_FLIGHT as u64);
        until(HOUR, || ended.load(Ordering::Relaxed) >= at).await;
        let (ended_before, with_handlers) = (ended.load(Ordering::Relaxed), book.running());
        // Those that have ended at the callee and not at the caller have their answers under way.
        let answered = book.begun() as u64 - with_handlers as u64 - ended_before;
        network.partition(ip(1), ip(2));
        sleep(Duration::from_secs(10)).await;
        assert!(ended.load(Ordering::Relaxed) < count, "the cut comes amid the calls");
        network.heal_all();
        let healed = Instant::now();
        duo.joined_within(BACK).await;
        let back = healed.elapsed();
        all_whole(calls, &book, count).await;
        duo.assert_survived().await;
        (back, with_handlers, answered)
    });
    let sums = took.iter().fold((0, 0), |(one, two), (_, with_handlers, answered)| (one + with_handlers, two + answered));
    println!("at the cuts: {} calls with their handlers, {} answers under way", sums.0, sums.1);
    assert!(sums.0 > 0 && sums.1 > 0, "the cut comes at both kinds of moments");
    spread("back after healing", took.iter().map(|(back, ..)| *back).collect());
}

#[test]
fn over_a_bad_link_that_is_cut_again_and_again_no_call_is_lost_or_repeated() {
    rounds_of(4, SEEDS, |seed| async move {
        let count = if long() { 2_000 } else { 400 };
        let (network, mut random) = network(seed);
        let link = rough(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        let (session, book) = duo.by(random.random_range(0..2));
        let (calls, ended) = make(count, session, &book, seed);
        let mut within = 0;
        for _ in 0..random.random_range(1..=4) {
            sleep(ms(&mut random, 50, 1_500)).await;
            within += u32::from(ended.load(Ordering::Relaxed) < count);
            let length = ms(&mut random, 300, 10_000);
            cut(&network, &mut random, length).await;
        }
        all_whole(calls, &book, count).await;
        duo.assert_survived().await;
        println!("loss {:.2}, {within} cuts amid the calls, {} connects", link.loss, duo.told[0].connected());
    });
}
