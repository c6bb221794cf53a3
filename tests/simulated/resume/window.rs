//! Partitions that outlast the resume window: whatever was in flight ends at its end, at both ends of the session.

use std::time::Duration;

use rand::RngExt;
use tokio::task::JoinSet;
use voltmesh::proto::call::Shape;
use voltmesh::{CallError, Outcome};

use super::flow::{self, Book, Ends, Got, Manner, Plan, SHAPES};
use super::*;

/// Calls in flight in each direction.
pub(super) const HELD: u64 = 16;
const HOUR: Duration = Duration::from_secs(3_600);
/// How late an end may be.
const LATE: Duration = Duration::from_secs(1);

/// Calls of all shapes that do not end by themselves: some are never answered, some have more to say than there is time for.
/// Waits until all are with their handlers.
pub(super) async fn hold(session: &Session, book: &Book, random: &mut StdRng) -> JoinSet<Got> {
    let mut calls = JoinSet::new();
    for number in 0..HELD {
        let shape = SHAPES[number as usize % SHAPES.len()];
        let mut plan = Plan::new(number, random.random_range(0..20_000), 0);
        plan.ends = Ends::Never;
        if random.random() && matches!(shape, Shape::ServerStream | Shape::Bidi) {
            plan = Plan { back: 1 << 40, chunk: 2_000, pace_ms: 100, ends: Ends::Whole, ..plan };
        } else if random.random() && matches!(shape, Shape::ClientStream | Shape::Bidi) {
            plan = Plan { there: 1 << 40, chunk: 2_000, pace_ms: 100, ..plan };
        }
        let (session, book) = (session.clone(), book.clone());
        calls.spawn(async move { flow::call(&session, &book, shape, plan, Manner::default()).await });
    }
    until(Duration::from_secs(10), || book.running() as u64 == HELD).await;
    sleep(ms(random, 0, 3_000)).await;
    assert_eq!((book.running() as u64, calls.try_join_next().is_none()), (HELD, true), "all are in flight");
    calls
}

/// All of them end, each with an unknown outcome; when.
pub(super) async fn ends(calls: JoinSet<Got>) -> Vec<Instant> {
    let got = tokio::time::timeout(HOUR, calls.join_all()).await.expect("they end");
    for Got { outcome, shape, plan, .. } in &got {
        assert!(matches!(outcome, Err(CallError::OutcomeUnknown(_))), "{shape:?} {plan:?}: {outcome:?}");
    }
    got.iter().map(|got| got.at).collect()
}

/// When the handlers of the held calls were dropped.
pub(super) fn drops(book: &Book) -> Vec<Instant> {
    (0..HELD).filter_map(|number| book.entry(number).ended).collect()
}

#[test]
fn past_the_window_every_call_ends_within_a_second_at_its_caller_and_at_its_callee() {
    let late = rounds_of(6, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let (smaller, larger) = (random.random_range(4..20u64), random.random_range(20..60u64));
        // The smaller of the two holds at both.
        let windows = if random.random() { [smaller, larger] } else { [larger, smaller] };
        let limits = windows.map(|seconds| Limits { resume_window: Duration::from_secs(seconds), ..Limits::default() });
        let window = Duration::from_secs(smaller);
        let link = clean(&mut random);
        let duo = Duo::within(&network, seed, link, limits).await;
        let mut held = Vec::new();
        for node in [0, 1] {
            held.push(hold(&duo.to[node], &duo.books[node], &mut random).await);
        }
        network.partition(ip(1), ip(2));
        let lost = duo.both_lost(Instant::now()).await;
        let fast = Manner { fail_fast: true, ..Manner::default() };
        let refused = flow::call(&duo.to[0], &duo.books[0], Shape::Unary, Plan::new(100, 9, 9), fast).await;
        assert!(matches!(refused.outcome, Err(CallError::NotSent(_))), "{:?}", refused.outcome);
        let mut waiting = JoinSet::new();
        for number in 200..220 {
            let (session, book) = duo.by(0);
            let shape = SHAPES[number as usize % SHAPES.len()];
            waiting
                .spawn(async move { flow::call(&session, &book, shape, Plan::new(number, 999, 999), Manner::default()).await });
        }
        let mut lateness = Vec::new();
        for (caller, calls) in held.into_iter().enumerate() {
            let mut on_time = |what: &str, node: usize, at: Vec<Instant>| {
                assert_eq!(at.len() as u64, HELD, "{what}");
                for at in at {
                    let after = at - lost[node];
                    assert!(
                        after + Duration::from_millis(10) >= window,
                        "{what}: {after:?}, before the window's end at {window:?}"
                    );
                    assert!(after <= window + LATE, "{what}: {after:?}, long after the window's end at {window:?}");
                    lateness.push(after.saturating_sub(window));
                }
            };
            on_time("at the caller", caller, ends(calls).await);
            // The callee may have noticed later.
            let book = &duo.books[caller];
            until(NOTICED, || book.running() == 0).await;
            on_time("at the callee", 1 - caller, drops(book));
        }
        sleep(ms(&mut random, 0, 30_000)).await;
        network.heal_all();
        duo.joined_within(Duration::from_secs(42)).await;
        for got in waiting.join_all().await {
            let times = duo.books[0].entry(got.plan.number).times;
            match &got.outcome {
                Ok(()) => got.assert_whole(&duo.books[0]),
                Err(error) => assert_eq!((error.outcome(), times), (Outcome::NotSent, 0), "{error}"),
            }
        }
        assert_eq!((duo.books[0].entry(100).times, duo.books[0].most(), duo.books[1].most()), (0, 1, 1));
        // The handle of the one that was dialled may have ended with the window.
        let to_a = duo.nodes[1].session(duo.nodes[0].id()).expect("it is connected");
        tokio::join!(biased; echo(&duo.to[0]), echo(&to_a));
        for told in &duo.told {
            told.assert_alternates();
            let connects = told.connects();
            assert!(connects.len() >= 2 && !connects[1].2 && connects[0].1 != connects[1].1, "{:#?}", told.all());
        }
        lateness
    });
    spread("after the window's end", late.into_iter().flatten().collect());
}
