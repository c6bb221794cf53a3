//! The record of calls, against a model that remembers everything.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::id::SecretKey;
use crate::proto::status::Code;

const BOUNDS: Bounds =
    Bounds { window: Duration::from_secs(600), bytes: 4_000, caller_bytes: 1_500, answer_bytes: 300, entry_bytes: 100 };

fn caller(number: u8) -> NodeId {
    SecretKey::from_seed(&[number; 32]).id()
}

fn method() -> Arc<str> {
    "bank/pay".into()
}

fn keyed<'a>(caller: NodeId, method: &'a Arc<str>, key: &'a [u8], digest: u8) -> Keyed<'a> {
    Keyed { caller, method, key, digest: [digest; 32], deadline: None }
}

fn fresh(begun: Begin) -> RunId {
    match begun {
        Begin::Fresh(run) => run,
        other => panic!("{other:?}"),
    }
}

fn body(bytes: usize) -> Answer {
    Ok(vec![1; bytes].into())
}

#[test]
fn a_call_made_again_waits_for_the_first_and_then_has_its_answer() {
    let (mut replay, now, pay, a) = (Replay::new(BOUNDS), Instant::now(), method(), caller(1));
    let run = fresh(replay.begin(now, keyed(a, &pay, b"k", 1)));
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 1)), Begin::Running(run));
    replay.finished(now, run, body(3));
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 1)), Begin::Done(body(3)));
    assert_eq!(replay.counts(), Counts { joined: 1, repeated: 1, ..Counts::default() });
}

#[test]
fn an_error_of_the_handler_is_an_answer_like_any_other() {
    let (mut replay, now, pay, a) = (Replay::new(BOUNDS), Instant::now(), method(), caller(1));
    let run = fresh(replay.begin(now, keyed(a, &pay, b"k", 1)));
    let refused = Err(Status::new(Code::Aborted, "no"));
    replay.finished(now, run, refused.clone());
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 1)), Begin::Done(refused));
}

#[test]
fn the_same_key_for_another_request_is_a_conflict_while_it_runs_and_afterwards() {
    let (mut replay, now, pay, a) = (Replay::new(BOUNDS), Instant::now(), method(), caller(1));
    let run = fresh(replay.begin(now, keyed(a, &pay, b"k", 1)));
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 2)), Begin::Conflict);
    replay.finished(now, run, body(1));
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 2)), Begin::Conflict);
}

#[test]
fn other_callers_methods_and_keys_are_other_calls() {
    let (mut replay, now, pay, a) = (Replay::new(BOUNDS), Instant::now(), method(), caller(1));
    let other: Arc<str> = "bank/refund".into();
    let calls = [keyed(a, &pay, b"k", 1), keyed(a, &pay, b"l", 1), keyed(a, &other, b"k", 1), keyed(caller(2), &pay, b"k", 1)];
    let runs: HashSet<RunId> = calls.into_iter().map(|call| fresh(replay.begin(now, call))).collect();
    assert_eq!(runs.len(), 4);
}

#[test]
fn an_abandoned_call_frees_its_key_and_a_late_word_of_it_changes_nothing() {
    let (mut replay, now, pay, a) = (Replay::new(BOUNDS), Instant::now(), method(), caller(1));
    let first = fresh(replay.begin(now, keyed(a, &pay, b"k", 1)));
    replay.abandoned(first);
    assert!(replay.is_empty() && replay.bytes() == 0);
    let second = fresh(replay.begin(now, keyed(a, &pay, b"k", 2)));
    replay.abandoned(first);
    replay.finished(now, first, body(1));
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 2)), Begin::Running(second));
    replay.finished(now, second, body(2));
    replay.abandoned(second);
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 2)), Begin::Done(body(2)));
}

#[test]
fn an_answer_too_large_is_not_kept_and_the_call_is_remembered_all_the_same() {
    let (mut replay, now, pay, a) = (Replay::new(BOUNDS), Instant::now(), method(), caller(1));
    let run = fresh(replay.begin(now, keyed(a, &pay, b"k", 1)));
    replay.finished(now, run, body(301));
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 1)), Begin::NotKept);
    assert_eq!((replay.bytes(), replay.counts().not_kept), (101, 1));
}

#[test]
fn it_is_remembered_for_the_window_or_until_the_last_deadline_if_that_is_later() {
    let (mut replay, now, pay, a) = (Replay::new(BOUNDS), Instant::now(), method(), caller(1));
    let hour = Duration::from_secs(3_600);
    let short = fresh(replay.begin(now, keyed(a, &pay, b"short", 1)));
    let long = fresh(replay.begin(now, keyed(a, &pay, b"long", 1)));
    let joined = Keyed { deadline: Some(now + hour), ..keyed(a, &pay, b"long", 1) };
    assert_eq!(replay.begin(now, joined), Begin::Running(long));
    replay.finished(now, short, body(1));
    replay.finished(now, long, body(1));
    let second = Duration::from_secs(1);
    let before = now + BOUNDS.window - second;
    assert_eq!(replay.begin(before, keyed(a, &pay, b"short", 1)), Begin::Done(body(1)));
    assert!(matches!(replay.begin(before + second, keyed(a, &pay, b"short", 1)), Begin::Fresh(_)));
    assert_eq!(replay.begin(now + hour - second, keyed(a, &pay, b"long", 1)), Begin::Done(body(1)));
    assert!(matches!(replay.begin(now + hour, keyed(a, &pay, b"long", 1)), Begin::Fresh(_)));
    assert_eq!(replay.counts().evicted, 0);
}

#[test]
fn one_caller_cannot_push_out_what_is_remembered_for_another() {
    let bounds = Bounds { caller_bytes: 4_000, ..BOUNDS };
    let (mut replay, now, pay, a) = (Replay::new(bounds), Instant::now(), method(), caller(1));
    let run = fresh(replay.begin(now, keyed(a, &pay, b"k", 1)));
    replay.finished(now, run, body(100));
    for number in 0..1_000u32 {
        let run = fresh(replay.begin(now, keyed(caller(2), &pay, &number.to_be_bytes(), 1)));
        replay.finished(now, run, body(50));
    }
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 1)), Begin::Done(body(100)));
    assert!(replay.counts().evicted > 900);
    // Nor with calls that never end: then there is no room for more of them.
    let begun = (0..1_000u32).map(|number| replay.begin(now, keyed(caller(2), &pay, &(number + 5_000).to_be_bytes(), 1)));
    assert!(begun.collect::<Vec<_>>().contains(&Begin::Full));
    assert_eq!(replay.begin(now, keyed(a, &pay, b"k", 1)), Begin::Done(body(100)));
}

#[test]
fn who_comes_new_finds_room_for_whoever_holds_most_gives_way() {
    let (mut replay, now, pay) = (Replay::new(Bounds { caller_bytes: 4_000, ..BOUNDS }), Instant::now(), method());
    for number in 0..100u8 {
        let run = fresh(replay.begin(now, keyed(caller(1), &pay, &[number], 1)));
        replay.finished(now, run, body(50));
    }
    assert!(replay.bytes() > 3_800);
    let run = fresh(replay.begin(now, keyed(caller(2), &pay, b"k", 1)));
    replay.finished(now, run, body(300));
    assert_eq!(replay.begin(now, keyed(caller(2), &pay, b"k", 1)), Begin::Done(body(300)));
    assert_eq!(replay.begin(now, keyed(caller(1), &pay, &[99], 1)), Begin::Done(body(50)), "the latest are forgotten last");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin { caller: u8, key: u8, digest: u8, deadline: u64 },
    Finish { which: usize, bytes: usize },
    Abandon { which: usize },
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4u8, 0..12u8, 0..2u8, 0..2_000u64)
            .prop_map(|(caller, key, digest, deadline)| Step::Begin { caller, key, digest, deadline }),
        4 => (any::<usize>(), 0..400usize).prop_map(|(which, bytes)| Step::Finish { which, bytes }),
        1 => any::<usize>().prop_map(|which| Step::Abandon { which }),
        1 => (0..400u64).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What the model knows of a call: its request, and when it has to be remembered until, once it has ended.
type Known = (u8, Option<(Instant, Option<Answer>)>);

proptest! {
    #[test]
    fn nothing_remembered_runs_twice_and_every_bound_holds(steps in prop::collection::vec(step(), 0..400)) {
        let (mut replay, mut now, pay) = (Replay::new(BOUNDS), Instant::now(), method());
        let callers: Vec<NodeId> = (0..4).map(caller).collect();
        let mut model: HashMap<(u8, u8), Known> = HashMap::new();
        let mut running: Vec<(RunId, (u8, u8))> = Vec::new();
        for step in steps {
            let held: Vec<usize> = callers.iter().map(|caller| replay.bytes_of(caller)).collect();
            let mut asker = None;
            match step {
                Step::Wait { seconds } => {
                    now += Duration::from_secs(seconds);
                    replay.expire(now);
                }
                Step::Begin { caller, key, digest, deadline } => {
                    asker = Some(caller);
                    let call = Keyed {
                        deadline: Some(now + Duration::from_secs(deadline)),
                        ..keyed(callers[usize::from(caller)], &pay, std::slice::from_ref(&key), digest)
                    };
                    let begun = replay.begin(now, call);
                    let known = model.get(&(caller, key)).cloned();
                    match (begun, known) {
                        (Begin::Fresh(run), known) => {
                            // Forgotten in time, or to make room; never while it runs.
                            prop_assert!(running.iter().all(|(_, name)| *name != (caller, key)));
                            if let Some((_, Some((until, _)))) = known {
                                prop_assert!(until <= now || replay.counts().evicted > 0);
                            }
                            model.insert((caller, key), (digest, None));
                            running.push((run, (caller, key)));
                        }
                        (Begin::Running(run), Some((first, None))) => {
                            prop_assert_eq!(first, digest);
                            prop_assert!(running.contains(&(run, (caller, key))));
                        }
                        (Begin::Done(answer), Some((first, Some((_, kept))))) => {
                            prop_assert_eq!(first, digest);
                            prop_assert_eq!(Some(answer), kept);
                        }
                        (Begin::NotKept, Some((first, Some(_)))) => prop_assert_eq!(first, digest),
                        (Begin::Conflict, Some((first, _))) => prop_assert_ne!(first, digest),
                        (Begin::Full, None | Some((_, Some(_)))) => {}
                        (begun, known) => prop_assert!(false, "{:?} though {:?}", begun, known),
                    }
                }
                Step::Finish { which, bytes } if !running.is_empty() => {
                    let (run, name) = running.swap_remove(which % running.len());
                    asker = Some(name.0);
                    replay.finished(now, run, body(bytes));
                    model.get_mut(&name).unwrap().1 = Some((now + BOUNDS.window, Some(body(bytes))));
                }
                Step::Abandon { which } if !running.is_empty() => {
                    let (run, name) = running.swap_remove(which % running.len());
                    replay.abandoned(run);
                    model.remove(&name);
                }
                Step::Finish { .. } | Step::Abandon { .. } => {}
            }
            prop_assert!(replay.bytes() <= BOUNDS.bytes && replay.len() <= BOUNDS.bytes / BOUNDS.entry_bytes);
            prop_assert!(callers.iter().all(|caller| replay.bytes_of(caller) <= BOUNDS.caller_bytes));
            prop_assert_eq!(callers.iter().map(|caller| replay.bytes_of(caller)).sum::<usize>(), replay.bytes());
            prop_assert!(running.iter().all(|(run, _)| replay.calls.contains_key(run)), "what runs is never forgotten");
            // Who lost something to another held no less than that one did.
            if let Some(asker) = asker {
                let added = BOUNDS.answer_bytes + BOUNDS.entry_bytes + 1;
                let asker_holds = replay.bytes_of(&callers[usize::from(asker)]);
                for (other, held) in held.iter().enumerate().filter(|(other, _)| *other != usize::from(asker)) {
                    let lost = replay.bytes_of(&callers[other]) < *held;
                    prop_assert!(!lost || *held + added >= asker_holds);
                }
            }
        }
        prop_assert_eq!(replay.due.len(), replay.calls.values().filter(|call| matches!(call.state, State::Ended(..))).count());
        prop_assert_eq!(replay.runs.len(), replay.calls.len());
    }
}
