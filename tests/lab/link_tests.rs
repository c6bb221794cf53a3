//! The link's decisions, in simulated time: these need no rights.

use std::time::Duration;

use crate::link::{Conditions, Counts, Direction, Loss};

const MS: Duration = Duration::from_millis(1);

/// One packet of 1,000 bytes each millisecond; when they arrive, in the order they were sent.
fn arrivals(conditions: Conditions, packets: u32) -> (Vec<Option<Duration>>, Counts) {
    let mut direction = Direction::new(7);
    direction.set(conditions);
    let arrived = (0..packets).map(|at| direction.admit(MS * at, 1_000)[0]).collect();
    (arrived, direction.counts())
}

fn is_near(measured: f64, expected: f64, share: f64) {
    assert!((measured - expected).abs() <= expected * share, "{measured} is not within {share} of {expected}");
}

pub fn an_untouched_link_passes_everything_on_at_once() {
    let (arrived, counts) = arrivals(Conditions::NONE, 100);
    assert!(arrived.iter().zip(0..).all(|(arrival, at)| *arrival == Some(MS * at)));
    assert_eq!(counts, Counts { seen: 100, ..Counts::default() });
}

pub fn jitter_spreads_arrivals_and_keeps_their_order() {
    let (arrived, _) = arrivals(Conditions { delay: MS * 20, jitter: MS * 10, ..Conditions::NONE }, 10_000);
    let took = |(arrival, at): (&Option<Duration>, u32)| (arrival.unwrap() - MS * at).as_secs_f64() * 1e3;
    let took: Vec<f64> = arrived.iter().zip(0..).map(took).collect();
    assert!(took.iter().all(|ms| (20.0..30.1).contains(ms)), "{took:?}");
    assert!(took.iter().any(|ms| *ms < 22.0) && took.iter().any(|ms| *ms > 29.0));
    assert!(arrived.is_sorted());
}

pub fn loss_comes_in_bursts_of_the_length_and_share_asked_for() {
    let (arrived, counts) = arrivals(Conditions { loss: Loss::in_bursts(0.05, 4.0), ..Conditions::NONE }, 200_000);
    is_near(counts.lost as f64 / 200_000.0, 0.05, 0.08);
    let bursts = arrived.windows(2).filter(|pair| pair[0].is_some() && pair[1].is_none()).count();
    is_near(counts.lost as f64 / bursts as f64, 4.0, 0.08);
    let (_, counts) = arrivals(Conditions { loss: Loss::even(0.12), ..Conditions::NONE }, 200_000);
    is_near(counts.lost as f64 / 200_000.0, 0.12, 0.05);
}

pub fn packets_held_back_are_overtaken_and_some_come_twice() {
    let conditions = Conditions { duplicated: 0.1, reordered: 0.2, held_back: MS * 5, ..Conditions::NONE };
    let (arrived, counts) = arrivals(conditions, 10_000);
    is_near(counts.duplicated as f64, 1_000.0, 0.15);
    is_near(counts.reordered as f64, 2_000.0, 0.15);
    let overtaken = arrived.iter().zip(0..).filter(|(arrival, at)| **arrival == Some(MS * (*at + 5))).count();
    assert_eq!(overtaken as u64, counts.reordered);
}

pub fn a_rate_queues_and_a_full_queue_drops() {
    let conditions = Conditions { rate: Some(500_000), queue_bytes: 20_000, ..Conditions::NONE };
    let (arrived, counts) = arrivals(conditions, 10_000);
    let through: Vec<Duration> = arrived.into_iter().flatten().collect();
    is_near(through.len() as f64 * 1_000.0 / 10.0, 500_000.0, 0.01);
    assert_eq!(counts.overflowed + through.len() as u64, 10_000);
    let (last, waited) = (through.last().unwrap(), Duration::from_secs(10));
    assert!(*last < waited + MS * 50, "the queue was {:?} long", last.saturating_sub(waited));
}

pub fn a_seed_decides_everything() {
    let conditions = Conditions { loss: Loss::in_bursts(0.3, 3.0), jitter: MS * 9, reordered: 0.1, ..Conditions::NONE };
    assert_eq!(arrivals(conditions, 1_000), arrivals(conditions, 1_000));
}
