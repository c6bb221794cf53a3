//! Single rules by example, then paths with traffic, lazy acknowledgements and black holes of all kinds; both ends of a path
//! together in [`pair`].

mod pair;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

struct Judge {
    liveness: Liveness,
    pulse: Pulse,
    start: Instant,
}

impl Judge {
    fn new(mine: Profile, theirs: Profile) -> Self {
        let start = Instant::now();
        Self { liveness: Liveness::new(mine, theirs, start), pulse: Pulse::default(), start }
    }

    fn tick(&mut self, at: Duration) -> Step {
        self.liveness.tick(self.start + at, &self.pulse)
    }

    fn wake(&self, step: Step) -> Duration {
        step.wake.expect("alive") - self.start
    }

    /// Follows the timer to the next ping.
    fn until_ping(&mut self, mut step: Step) -> u64 {
        while step.ping.is_none() {
            step = self.tick(self.wake(step));
        }
        step.ping.expect("the loop ended")
    }

    /// Follows the timer until the path is dead; says when that was, and how often it pinged.
    fn until_dead(&mut self, mut step: Step) -> (Duration, Dead, usize) {
        let (mut at, mut pings) = (Duration::ZERO, 0);
        loop {
            pings += usize::from(step.ping.is_some());
            if let Some(dead) = step.dead {
                return (at, dead, pings);
            }
            at = self.wake(step);
            step = self.tick(at);
        }
    }
}

#[test]
fn an_idle_path_without_answers_is_dead_after_its_interval_and_grace() {
    for (mine, theirs, expected) in [
        (Profile::Active, Profile::Active, 8 * S),
        (Profile::Battery, Profile::Active, 40 * S),
        (Profile::Active, Profile::Battery, 40 * S),
    ] {
        let mut judge = Judge::new(mine, theirs);
        let step = judge.tick(Duration::ZERO);
        assert_eq!(judge.until_dead(step), (expected, Dead::Unanswered, 1));
    }
}

#[test]
fn with_something_outstanding_a_path_is_dead_after_three_seconds_on_battery_too() {
    for profile in [Profile::Active, Profile::Battery] {
        let mut judge = Judge::new(profile, profile);
        judge.tick(Duration::ZERO);
        assert!(judge.pulse.sent(100), "the timer sleeps");
        assert!(!judge.pulse.sent(100), "it is woken once");
        let step = judge.tick(S);
        assert_eq!(judge.until_dead(step), (4 * S, Dead::Unacknowledged, 1));
        assert_eq!(judge.tick(9 * S), Step { dead: Some(Dead::Unacknowledged), ..Step::default() });
    }
}

#[test]
fn what_a_pong_came_after_waits_for_the_application_and_not_for_the_path() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    judge.tick(Duration::ZERO);
    assert!(judge.pulse.sent(1));
    let mut step = judge.tick(MS);
    let (mut at, mut pings) = (MS, 0);
    while at < 60 * S {
        at = judge.wake(step);
        step = judge.tick(at);
        assert_eq!(step.dead, None);
        if let Some(seq) = step.ping {
            pings += 1;
            judge.liveness.pong(seq, judge.start + at + 100 * MS);
        }
    }
    assert!(pings <= 13, "{pings}: one after a second, then as on an idle path");
    assert!(judge.pulse.sent(1), "a later send is waited for again");
    let step = judge.tick(at);
    assert_eq!(judge.until_dead(step).1, Dead::Unacknowledged);
}

#[test]
fn regression_an_acknowledgement_that_comes_while_the_timer_sleeps_does_not_put_off_the_next_ping() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    judge.tick(Duration::ZERO);
    assert!(judge.pulse.sent(1));
    let mut step = judge.tick(Duration::ZERO);
    while step.ping.is_none() {
        step = judge.tick(judge.wake(step));
    }
    judge.liveness.pong(0, judge.start + S + 100 * MS);
    while judge.wake(step) < 2 * S {
        step = judge.tick(judge.wake(step));
    }
    assert!(judge.wake(step) > 6 * S, "it sleeps");
    judge.pulse.acked(1);
    let mut at = 2 * S;
    while step.ping.is_none() {
        at = judge.wake(step);
        step = judge.tick(at);
    }
    assert!(at <= S + 100 * MS + 5 * S + TICK, "{at:?}");
}

#[test]
fn an_idle_path_that_answers_is_pinged_each_interval_and_sleeps_between() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    let (mut at, mut ticks, mut pings) = (Duration::ZERO, 0, 0);
    while at < 3_600 * S {
        let step = judge.tick(at);
        ticks += 1;
        match step.ping {
            Some(seq) => {
                pings += 1;
                at += 20 * MS;
                judge.liveness.pong(seq, judge.start + at);
            }
            None => at = judge.wake(step),
        }
    }
    assert!((700..=720).contains(&pings), "{pings}");
    assert!(ticks <= 2 * pings + 2, "{ticks}");
    assert_eq!(judge.liveness.rtt(), Some(20 * MS));
}

#[test]
fn what_was_given_up_is_not_waited_for() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    judge.tick(Duration::ZERO);
    assert!(judge.pulse.sent(10));
    judge.tick(Duration::ZERO);
    judge.pulse.forgotten(10);
    let step = judge.tick(TICK);
    assert_eq!(judge.wake(step), 5 * S);
}

#[test]
fn a_tick_that_comes_late_asks_again_before_it_judges() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    judge.tick(Duration::ZERO);
    assert!(judge.pulse.sent(10));
    judge.tick(Duration::ZERO);
    let step = judge.tick(600 * S);
    assert_eq!((step.dead, step.ping), (None, Some(0)));
    assert_eq!(judge.until_dead(step).0, 603 * S);
}

#[test]
fn a_probe_pings_at_once_and_has_three_seconds_on_battery_too() {
    let mut judge = Judge::new(Profile::Battery, Profile::Battery);
    judge.tick(Duration::ZERO);
    judge.liveness.probe();
    let step = judge.tick(S);
    assert_eq!(step.ping, Some(0));
    assert_eq!(judge.until_dead(step), (4 * S, Dead::Unanswered, 1));
}

#[test]
fn a_path_is_suspect_a_second_after_an_unanswered_ping_and_until_anything_answers() {
    for (sent, asked, dead) in [(0, 5 * S, 8 * S), (1, S, 3 * S)] {
        let mut judge = Judge::new(Profile::Active, Profile::Active);
        let _ = judge.pulse.sent(sent);
        let mut step = judge.tick(Duration::ZERO);
        let mut at = Duration::ZERO;
        while !step.suspect {
            assert_eq!(step.dead, None, "it is suspect before it is dead");
            at = judge.wake(step);
            step = judge.tick(at);
        }
        assert_eq!(at, asked + SUSPECT_AFTER);
        assert!(judge.liveness.is_suspect(judge.start + at));
        let mut other = Judge { liveness: Liveness { ..judge.liveness }, pulse: Pulse::default(), ..judge };
        let _ = other.pulse.sent(sent);
        other.liveness.pong(0, judge.start + at + MS);
        assert!(!other.liveness.is_suspect(judge.start + at + MS));
        assert!(!other.tick(at + 2 * MS).suspect);
        assert_eq!(judge.until_dead(step).0, dead);
        assert!(!judge.liveness.is_suspect(judge.start + 9 * S), "a dead path is not suspect");
    }
}

#[test]
fn a_path_in_steady_use_that_dies_is_suspect_after_two_seconds() {
    for died in (1..3_000).step_by(7).map(|after| after * MS) {
        let mut judge = Judge::new(Profile::Active, Profile::Active);
        let (mut step, mut at) = (judge.tick(Duration::ZERO), Duration::ZERO);
        while !step.suspect {
            at += MS;
            // A call each 5 ms, answered 2 ms later.
            let woken = at.as_millis() % 5 == 0 && judge.pulse.sent(1);
            if at.as_millis() % 5 == 2 && (5 * MS..died).contains(&at) {
                judge.pulse.acked(1);
            }
            if woken || at >= judge.wake(step) {
                step = judge.tick(at);
            }
        }
        assert!(at >= died + SUSPECT_AFTER, "{died:?}: {at:?}");
        assert!(at <= died + ASK_AFTER + SUSPECT_AFTER + 5 * MS, "{died:?}: {at:?}");
    }
}

#[test]
fn an_acknowledgement_clears_a_suspicion_too() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    let _ = judge.pulse.sent(2);
    let mut step = judge.tick(Duration::ZERO);
    while !step.suspect {
        step = judge.tick(judge.wake(step));
    }
    judge.pulse.acked(1);
    assert!(!judge.tick(2_100 * MS).suspect);
}

#[test]
fn a_path_that_is_always_slow_is_not_suspect_for_that() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    let mut at = Duration::ZERO;
    for round in 0..5 {
        let mut step = judge.tick(at);
        while step.ping.is_none() {
            at = judge.wake(step);
            step = judge.tick(at);
        }
        let (seq, back) = (step.ping.unwrap(), at + 1_500 * MS);
        while judge.wake(step) < back {
            step = judge.tick(judge.wake(step));
            assert!(!step.suspect || round == 0, "in round {round}");
        }
        judge.liveness.pong(seq, judge.start + back);
        at = back;
    }
}

#[test]
fn a_path_that_is_to_prove_itself_is_suspect_at_once_and_an_older_answer_does_not_do() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    let older = judge.liveness.ping(judge.start);
    judge.pulse.acked(1);
    judge.liveness.probe();
    assert!(judge.liveness.is_suspect(judge.start));
    let step = judge.tick(MS);
    assert!(step.suspect, "what was acknowledged before proves nothing");
    judge.liveness.pong(older, judge.start + 2 * MS);
    assert!(judge.tick(3 * MS).suspect);
    judge.liveness.pong(step.ping.unwrap(), judge.start + 4 * MS);
    assert!(!judge.tick(5 * MS).suspect);
}

#[test]
fn while_suspended_nothing_is_due_and_nothing_is_judged() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    judge.tick(Duration::ZERO);
    let _ = judge.pulse.sent(10);
    judge.tick(Duration::ZERO);
    judge.tick(S);
    judge.liveness.suspend();
    judge.liveness.suspend();
    for at in [2 * S, 3 * S, 3_600 * S, 7 * 86_400 * S] {
        assert_eq!(judge.tick(at), Step::default());
        assert!(judge.liveness.wake() > judge.start + at, "nor does a timer spin");
        assert!(!judge.liveness.pinged(judge.start + at));
        assert!(!judge.liveness.is_suspect(judge.start + at));
        let _ = judge.pulse.sent(1);
    }
}

#[test]
fn what_is_resumed_asks_before_it_judges() {
    let (mut judge, week) = (Judge::new(Profile::Battery, Profile::Active), 7 * 86_400 * S);
    let _ = judge.pulse.sent(10);
    let before = judge.tick(Duration::ZERO);
    judge.liveness.resume();
    assert_eq!(judge.tick(MS).ping, None, "it was not suspended");
    let asked = judge.until_ping(before);
    judge.liveness.suspend();
    judge.liveness.resume();
    assert!(judge.liveness.wake() <= judge.start + week, "a tick is due");
    let step = judge.tick(week);
    assert!(step.ping.is_some() && step.suspect && step.dead.is_none());
    judge.liveness.pong(asked, judge.start + week);
    assert_eq!(judge.liveness.rtt(), None, "the week is no round trip");
    let step = judge.tick(week + MS);
    assert!(judge.until_dead(step).0 <= week + 3 * S + TICK);
}

#[test]
fn a_pong_counts_once_and_only_for_a_ping_of_ours() {
    let mut judge = Judge::new(Profile::Active, Profile::Active);
    let step = judge.tick(5 * S);
    assert_eq!(step.ping, Some(0));
    judge.liveness.pong(7, judge.start + 6 * S);
    judge.liveness.pong(u64::MAX, judge.start + 6 * S);
    assert_eq!((judge.liveness.rtt(), judge.liveness.last_answer), (None, judge.start));
    judge.liveness.pong(0, judge.start + 6 * S);
    judge.liveness.pong(0, judge.start + 7 * S);
    assert_eq!((judge.liveness.rtt(), judge.liveness.last_answer), (Some(S), judge.start + 6 * S));
}

#[test]
fn a_send_while_the_timer_falls_asleep_is_not_missed() {
    let pulse = Pulse::default();
    let seen = pulse.read();
    assert!(!pulse.sent(1), "it does not sleep yet");
    assert!(!pulse.doze(seen), "and does not fall asleep now");
    assert!(!pulse.sent(1));
}

/// Which way a path swallows what is sent.
#[derive(Clone, Copy, Debug)]
enum Hole {
    Out,
    In,
    Both,
}

#[derive(Clone, Debug)]
struct World {
    profile: Profile,
    rtt: Duration,
    /// From a send's arrival to its acknowledgement; `None` for those that never get one.
    ack_delays: Vec<Option<Duration>>,
    sends: Vec<Duration>,
    hole: Option<(Duration, Hole)>,
}

#[derive(Clone, Copy)]
enum Arrival {
    Ack,
    Pong(u64),
}

#[derive(Default)]
struct Outcome {
    died: Option<Duration>,
    last_answer: Duration,
    first_lost: Option<Duration>,
    pings: usize,
}

const END: Duration = Duration::from_secs(300);

impl World {
    /// When something sent now is answered, if it is.
    fn answer(&self, sent: Duration, delay: Duration) -> Option<Duration> {
        let back = sent + self.rtt + delay;
        let swallowed = |(at, hole)| match hole {
            Hole::Out => sent >= at,
            Hole::In => back >= at,
            Hole::Both => sent >= at || back >= at,
        };
        (!self.hole.is_some_and(swallowed)).then_some(back)
    }

    fn run(&self) -> Outcome {
        let mut judge = Judge::new(self.profile, Profile::Active);
        let (mut outcome, mut arrivals, mut count) = (Outcome::default(), BTreeMap::new(), 0);
        let mut sends = self.sends.iter().copied().zip(self.ack_delays.iter().copied().cycle()).peekable();
        let mut timer = Duration::ZERO;
        loop {
            let (send, arrival) = (sends.peek().map(|(at, _)| *at), arrivals.first_key_value().map(|((at, _), _)| *at));
            let now = [Some(timer), send, arrival].into_iter().flatten().min().unwrap();
            count += 1;
            if now >= END {
                return outcome;
            } else if arrival == Some(now) {
                outcome.last_answer = now;
                match arrivals.pop_first().unwrap().1 {
                    Arrival::Ack => judge.pulse.acked(1),
                    Arrival::Pong(seq) => judge.liveness.pong(seq, judge.start + now),
                }
            } else if send == Some(now) {
                let (_, delay) = sends.next().unwrap();
                if let Some(back) = delay.and_then(|delay| self.answer(now, delay)) {
                    arrivals.insert((back, count), Arrival::Ack);
                }
                if self.answer(now, Duration::ZERO).is_none() {
                    outcome.first_lost.get_or_insert(now);
                }
                if judge.pulse.sent(1) {
                    timer = now;
                }
            } else {
                let step = judge.tick(now);
                if step.dead.is_some() {
                    outcome.died = Some(now);
                    return outcome;
                }
                timer = judge.wake(step);
                assert!(timer > now && timer <= now + judge.liveness.idle.max(judge.liveness.grace));
                if let Some(seq) = step.ping {
                    outcome.pings += 1;
                    if let Some(back) = self.answer(now, Duration::ZERO) {
                        arrivals.insert((back, count), Arrival::Pong(seq));
                    }
                }
            }
        }
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let ack_delay = prop_oneof![6 => (0u64..400).prop_map(|ms| Some(Duration::from_millis(ms))), 1 => Just(None)];
    let hole = prop_oneof![Just(Hole::Out), Just(Hole::In), Just(Hole::Both)];
    let hole = prop::option::of(((100u64..200_000).prop_map(Duration::from_millis), hole));
    let bursts = prop::collection::vec((0u64..300_000, 0usize..20, 1u64..700), 0..30);
    let sends = bursts.prop_map(|bursts| {
        let burst = |(at, count, gap)| (0..count as u64).map(move |n| Duration::from_millis(at + n * gap));
        let mut sends: Vec<Duration> = bursts.into_iter().flat_map(burst).collect();
        sends.sort_unstable();
        sends
    });
    let profile = prop_oneof![Just(Profile::Active), Just(Profile::Battery)];
    (profile, 1u64..1_500, prop::collection::vec(ack_delay, 1..20), sends, hole).prop_map(
        |(profile, rtt, ack_delays, sends, hole)| World { profile, rtt: Duration::from_millis(rtt), ack_delays, sends, hole },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_path_that_answers_is_never_judged_dead_and_a_black_hole_is_within_the_bounds(world in worlds()) {
        let outcome = world.run();
        let (idle, grace) = if world.profile == Profile::Active { (5 * S, 3 * S) } else { (30 * S, 10 * S) };
        match (world.hole, outcome.died) {
            (None, died) => prop_assert_eq!(died, None),
            (Some(_), None) => prop_assert!(false, "a black hole was not seen"),
            (Some((hole, _)), Some(died)) => {
                prop_assert!(died >= hole, "before there was a hole");
                prop_assert!(died >= outcome.last_answer + limits::ANSWER_BOUND, "{:?} after the last answer", died - outcome.last_answer);
                prop_assert!(died <= outcome.last_answer + idle + grace + TICK);
                if let Some(lost) = outcome.first_lost {
                    prop_assert!(died <= lost.max(outcome.last_answer) + limits::ANSWER_BOUND + TICK);
                }
            }
        }
    }

    #[test]
    fn pings_are_at_most_one_a_second_and_one_each_interval_when_idle(world in worlds()) {
        let world = World { hole: None, ..world };
        let outcome = world.run();
        prop_assert!(outcome.pings <= 300, "{}", outcome.pings);
        let idle = if world.profile == Profile::Active { 60 } else { 10 };
        prop_assert!(!world.sends.is_empty() || outcome.pings <= idle);
    }
}

#[test]
fn of_two_idle_ends_one_sets_the_pace_and_the_other_pings_with_its_pong() {
    let (pulse, start) = (Pulse::default(), Instant::now());
    let [mut leader, mut follower] = [(), ()].map(|()| Liveness::new(Profile::Battery, Profile::Active, start));
    let way = Duration::from_millis(20);
    let mut now = start;
    for round in 0..5 {
        now = leader.tick(now, &pulse).wake.unwrap();
        let ping = leader.tick(now, &pulse).ping.expect("it is due");
        let there = now + way;
        while round > 0 && follower.wake() <= there {
            assert_eq!(follower.tick(follower.wake(), &pulse).ping, None, "it waits, though its own is due just now");
        }
        assert!(follower.pinged(there), "in round {round}");
        let answer = follower.ping(there);
        let back = there + way;
        leader.pong(ping, back);
        assert!(!leader.pinged(back), "it has had its answer");
        follower.pong(answer, back + way);
        now = back + way;
    }
    // Left alone the follower pings by itself.
    let due = follower.tick(now, &pulse).wake.unwrap();
    assert_eq!(due, now + Duration::from_secs(30) + TICK);
    assert!(follower.tick(due, &pulse).ping.is_some());
}
