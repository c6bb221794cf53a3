//! Single rules by example, then a wanted peer over simulated days, and a thousand of them at once.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

struct Peer {
    backoff: Backoff,
    rng: StdRng,
    now: Instant,
}

impl Peer {
    fn new(profile: Profile) -> Self {
        Self { backoff: Backoff::new(profile), rng: StdRng::seed_from_u64(1), now: Instant::now() }
    }

    /// A peer whose session of a minute was just lost.
    fn lost(profile: Profile) -> (Self, Todo) {
        let mut peer = Self::new(profile);
        peer.input(Input::Connected);
        peer.now += 60 * S;
        let todo = peer.input(Input::Lost);
        (peer, todo)
    }

    fn input(&mut self, input: Input) -> Todo {
        self.backoff.handle(input, self.now, &mut self.rng)
    }

    /// Sleeps until the wake-up, and ticks.
    fn tick(&mut self, todo: &Todo) -> Todo {
        self.now = self.now.max(todo.wake.expect("a next wake-up"));
        self.input(Input::Tick)
    }

    /// Ticks until another attempt starts.
    fn dial(&mut self, mut todo: Todo) -> (Dial, Todo) {
        loop {
            todo = self.tick(&todo);
            if let Some(dial) = todo.dial {
                return (dial, todo);
            }
        }
    }
}

#[test]
fn the_first_attempt_starts_at_once_and_is_retried_like_any_other() {
    let mut peer = Peer::new(Profile::Active);
    let mut todo = peer.input(Input::Tick);
    let mut ceilings = Vec::new();
    for _ in 0..12 {
        let dial = todo.dial.expect("an attempt");
        assert_eq!(dial.within, limits::HANDSHAKE);
        ceilings.push(peer.backoff.ceiling().as_millis());
        todo = peer.input(Input::Failed(dial.attempt));
        assert!(todo.wake.unwrap() <= peer.now + peer.backoff.ceiling());
        todo = peer.dial(todo).1;
    }
    assert_eq!(ceilings, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000]);
}

#[test]
fn within_the_resume_window_attempts_start_every_tenth_to_whole_second_at_most_three_alive() {
    let (mut peer, mut todo) = Peer::lost(Profile::Active);
    let (lost_at, mut starts) = (peer.now, Vec::new());
    while peer.now < lost_at + limits::RESUME_WINDOW - 10 * S {
        todo = peer.dial(todo).1;
        starts.push(peer.now);
        assert!(peer.backoff.alive() <= ATTEMPTS);
    }
    assert!(starts[0] <= lost_at + FIRST_AFTER_LOSS);
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= QUICK.0));
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] <= limits::ANSWER_BOUND), "in silence too");
    assert!(starts.len() > 60, "{}", starts.len());
}

#[test]
fn after_the_resume_window_one_attempt_at_a_time_backs_off() {
    let (mut peer, mut todo) = Peer::lost(Profile::Active);
    peer.now += limits::RESUME_WINDOW;
    todo.wake = Some(peer.now);
    for _ in 0..20 {
        todo = peer.dial(todo).1;
        assert_eq!(peer.backoff.alive(), 1);
    }
    assert_eq!(peer.backoff.ceiling(), limits::BACKOFF_MAX);
}

#[test]
fn a_session_ends_every_other_attempt_and_later_reports_of_them_are_ignored() {
    let (mut peer, todo) = Peer::lost(Profile::Active);
    let (first, todo) = peer.dial(todo);
    let (second, _) = peer.dial(todo);
    let todo = peer.input(Input::Connected);
    assert_eq!(todo, Todo { abandon: vec![first.attempt, second.attempt], dial: None, wake: None });
    assert_eq!(peer.input(Input::Failed(first.attempt)), Todo::default());
    assert_eq!(peer.input(Input::Refused(second.attempt)), Todo::default());
    peer.now += 3_600 * S;
    assert_eq!(peer.input(Input::NetworkChanged), Todo::default());
}

#[test]
fn a_network_change_dials_at_once_and_takes_the_oldest_attempts_place() {
    let (mut peer, mut todo) = Peer::lost(Profile::Active);
    let mut first = None;
    while peer.backoff.alive() < ATTEMPTS {
        let (dial, next) = peer.dial(todo);
        first.get_or_insert(dial.attempt);
        todo = next;
    }
    let todo = peer.input(Input::NetworkChanged);
    assert!(todo.dial.is_some());
    assert_eq!(todo.abandon, [first.unwrap()]);
    assert_eq!(peer.backoff.alive(), ATTEMPTS);
}

#[test]
fn a_storm_of_network_changes_dials_a_few_times_a_second_at_most() {
    let mut peer = Peer::new(Profile::Active);
    let mut dials = 0;
    for _ in 0..10_000 {
        let todo = peer.input(Input::NetworkChanged);
        if let Some(dial) = todo.dial {
            dials += 1;
            peer.input(Input::Failed(dial.attempt));
        }
        peer.now += MS;
    }
    assert!((10..=70).contains(&dials), "{dials}");
}

#[test]
fn a_late_wake_up_means_the_machine_slept_and_dials_at_once() {
    let mut peer = Peer::new(Profile::Active);
    let mut todo = peer.input(Input::Tick);
    for _ in 0..15 {
        todo = peer.dial(todo).1;
    }
    let wake = todo.wake.unwrap();
    peer.now = wake + SLEPT + MS;
    assert!(peer.input(Input::Tick).dial.is_some());
    assert_eq!(peer.backoff.ceiling(), limits::BACKOFF_FIRST);
}

#[test]
fn the_peer_dialling_brings_our_attempt_within_a_second() {
    let mut peer = Peer::new(Profile::Active);
    let mut todo = peer.input(Input::Tick);
    for _ in 0..15 {
        let dial = peer.dial(todo).0;
        todo = peer.input(Input::Failed(dial.attempt));
    }
    let todo = peer.input(Input::PeerDialled);
    assert_eq!(todo.dial, None, "theirs is on its way");
    assert!(todo.wake.unwrap() <= peer.now + QUICK.1);
}

#[test]
fn a_refusal_slows_down_to_five_minutes_and_a_reset_speeds_up_again() {
    let (mut peer, todo) = Peer::lost(Profile::Active);
    let (mut dial, mut todo) = peer.dial(todo);
    for _ in 0..15 {
        todo = peer.input(Input::Refused(dial.attempt));
        assert_eq!(todo.dial, None);
        (dial, todo) = peer.dial(todo);
        assert_eq!(peer.backoff.alive(), 1);
    }
    assert_eq!(peer.backoff.ceiling(), limits::REFUSED_BACKOFF_MAX);
    assert!(todo.wake.is_some());
    peer.input(Input::PeerDialled);
    assert_eq!(peer.backoff.ceiling(), QUICK.1);
}

#[test]
fn an_address_with_another_key_is_set_aside_for_five_minutes_or_until_the_network_changes() {
    let mut peer = Peer::new(Profile::Active);
    let addr = |n: u16| SocketAddr::from(([10, 0, 0, 1], n));
    peer.input(Input::WrongKey(addr(1)));
    assert!(peer.backoff.is_set_aside(addr(1), peer.now) && !peer.backoff.is_set_aside(addr(2), peer.now));
    peer.now += 300 * S;
    assert!(!peer.backoff.is_set_aside(addr(1), peer.now));
    for n in 0..1_000 {
        peer.input(Input::WrongKey(addr(n)));
    }
    assert_eq!(peer.backoff.set_aside.len(), SET_ASIDE);
    assert!(peer.backoff.is_set_aside(addr(999), peer.now));
    peer.input(Input::NetworkChanged);
    assert!(!peer.backoff.is_set_aside(addr(999), peer.now));
}

#[test]
fn nodes_that_keep_closing_each_others_links_slow_down() {
    let mut peer = Peer::new(Profile::Active);
    let (start, mut dials) = (peer.now, 0);
    let mut todo = peer.input(Input::Tick);
    while peer.now < start + 600 * S {
        peer.dial(todo);
        dials += 1;
        peer.input(Input::Connected);
        peer.now += 10 * MS;
        peer.input(Input::Lost);
        todo = peer.input(Input::PeerDialled);
    }
    assert!(dials < 80, "{dials}");
}

#[test]
fn a_battery_node_dials_an_absent_peer_about_once_a_minute() {
    let (mut peer, mut todo) = Peer::lost(Profile::Battery);
    let (start, mut dials) = (peer.now, 0);
    while peer.now < start + 3_600 * S {
        todo = peer.dial(todo).1;
        dials += 1;
        assert_eq!(peer.backoff.alive(), 1);
    }
    assert!((40..110).contains(&dials), "{dials}");
}

/// A path that is up and down by turns, up at first; what dials into the dark is either silent or told at once.
#[derive(Clone, Debug)]
struct World {
    profile: Profile,
    phases: Vec<Duration>,
    handshake: Duration,
    silent: bool,
    disturbances: Vec<(Duration, Input)>,
}

#[derive(Clone, Copy)]
enum Happening {
    Toggled,
    /// The attempt's handshake is over, if the path that it began on is still up.
    Answered(AttemptId, usize),
    Unreachable(AttemptId),
    LossSeen(usize),
    Disturbed(Input),
}

struct Run<'a> {
    world: &'a World,
    start: Instant,
    backoff: Backoff,
    rng: StdRng,
    agenda: BTreeMap<(Duration, u64), Happening>,
    count: u64,
    /// The path is up in even phases.
    phase: usize,
    /// When the path last changed, or a reset changed the ceiling.
    settled: Duration,
    connected: bool,
    running: Vec<AttemptId>,
    dials: Vec<Duration>,
    wake: Option<Duration>,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, seed: u64) -> Self {
        let backoff = Backoff::new(world.profile);
        let (agenda, rng) = (BTreeMap::new(), StdRng::seed_from_u64(seed));
        let (start, wake) = (Instant::now(), Some(Duration::ZERO));
        let (settled, running, dials) = (Duration::ZERO, Vec::new(), Vec::new());
        Self { world, start, backoff, rng, agenda, count: 0, phase: 0, settled, connected: false, running, dials, wake }
    }

    /// When each attempt started.
    fn dials(mut self) -> Vec<Duration> {
        let mut at = Duration::ZERO;
        for phase in &self.world.phases {
            at += *phase;
            self.put(at, Happening::Toggled);
        }
        let end = at;
        for (at, input) in &self.world.disturbances {
            self.put(*at, Happening::Disturbed(*input));
        }
        loop {
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let now = next.into_iter().chain(self.wake).min().unwrap_or(end);
            if now >= end {
                return self.dials;
            }
            match self.wake {
                Some(wake) if wake <= now => self.input(now, Input::Tick),
                _ => self.next_happening(now),
            }
            self.check(now);
        }
    }

    fn next_happening(&mut self, now: Duration) {
        let Some((_, happening)) = self.agenda.pop_first() else { return };
        match happening {
            Happening::Toggled => {
                (self.phase, self.settled) = (self.phase + 1, now);
                if !self.is_up() && self.connected {
                    self.put(now + limits::ANSWER_BOUND, Happening::LossSeen(self.phase));
                }
            }
            Happening::Answered(attempt, phase) if phase == self.phase && self.running.contains(&attempt) => {
                self.connected = true;
                self.input(now, Input::Connected);
            }
            Happening::Answered(..) => {}
            Happening::Unreachable(attempt) => {
                self.running.retain(|running| *running != attempt);
                self.input(now, Input::Failed(attempt));
            }
            Happening::LossSeen(phase) if phase == self.phase && self.connected => {
                self.connected = false;
                self.input(now, Input::Lost);
            }
            Happening::LossSeen(_) => {}
            Happening::Disturbed(input) => {
                self.settled = now;
                self.input(now, input);
            }
        }
    }

    fn input(&mut self, now: Duration, input: Input) {
        let todo = self.backoff.handle(input, self.start + now, &mut self.rng);
        self.wake = todo.wake.map(|wake| wake - self.start);
        self.running.retain(|attempt| !todo.abandon.contains(attempt));
        let Some(dial) = todo.dial else { return };
        assert!(!self.connected, "dialled a connected peer");
        self.dials.push(now);
        self.running.push(dial.attempt);
        if self.is_up() {
            self.put(now + self.world.handshake, Happening::Answered(dial.attempt, self.phase));
        } else if !self.world.silent {
            self.put(now + MS, Happening::Unreachable(dial.attempt));
        }
    }

    fn check(&self, now: Duration) {
        assert!(self.backoff.alive() <= ATTEMPTS);
        if self.connected {
            assert_eq!((self.backoff.alive(), self.wake), (0, None));
            return;
        }
        let wake = self.wake.expect("a next wake-up while there is no session");
        assert!(wake >= now && wake <= now + limits::BACKOFF_MAX.max(BATTERY.1));
        let bound = self.backoff.ceiling() + limits::HANDSHAKE + self.world.handshake;
        assert!(!self.is_up() || now - self.settled <= bound, "no session for {:?}", now - self.settled);
    }

    fn is_up(&self) -> bool {
        self.phase.is_multiple_of(2)
    }

    fn put(&mut self, at: Duration, happening: Happening) {
        self.count += 1;
        self.agenda.insert((at, self.count), happening);
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let millis = prop_oneof![100u64..10_000, 5_000u64..200_000, 100_000u64..20_000_000];
    let phases = prop::collection::vec(millis.prop_map(Duration::from_millis), 4..40);
    let input = prop_oneof![Just(Input::NetworkChanged), Just(Input::Slept), Just(Input::PeerDialled)];
    let disturbances = prop::collection::vec(((0u64..200_000_000).prop_map(Duration::from_millis), input), 0..60);
    let profile = prop_oneof![3 => Just(Profile::Active), 1 => Just(Profile::Battery)];
    (profile, phases, (10u64..2_000).prop_map(Duration::from_millis), any::<bool>(), disturbances)
        .prop_map(|(profile, phases, handshake, silent, disturbances)| World { profile, phases, handshake, silent, disturbances })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The check is in [`Run::check`].
    #[test]
    fn over_days_of_outages_a_path_up_for_longer_than_the_ceiling_and_a_handshake_carries_the_session(world in worlds(), seed: u64) {
        let dials = Run::new(&world, seed).dials();
        prop_assert!(!dials.is_empty());
    }
}

/// Most starts within any 100 ms, from `from` on.
fn busiest_tenth(mut dials: Vec<Duration>, from: Duration) -> usize {
    dials.retain(|at| *at >= from);
    dials.sort_unstable();
    let busy = |(n, at): (usize, &Duration)| dials[n..].partition_point(|later| *later < *at + 100 * MS);
    dials.iter().enumerate().map(busy).max().unwrap_or(0)
}

fn a_thousand_peers(outage: Duration) -> Vec<Duration> {
    let phases = vec![60 * S, outage, 300 * S];
    let world = World { profile: Profile::Active, phases, handshake: 50 * MS, silent: true, disturbances: vec![] };
    (0..1_000).flat_map(|seed| Run::new(&world, seed).dials()).collect()
}

#[test]
fn a_thousand_peers_whose_node_restarts_come_back_one_after_the_other() {
    // All lose it in the same instant and none is told apart by anything but its random numbers.
    let dials = a_thousand_peers(5 * S);
    let busiest = busiest_tenth(dials.clone(), 60 * S);
    assert!(busiest <= 350, "{busiest} attempts in 100 ms");
    let last = dials.into_iter().max().unwrap();
    assert!(last < 70 * S, "all are back within 5 s of the restart: {last:?}");
}

#[test]
fn a_thousand_peers_whose_node_was_gone_for_an_hour_come_back_one_after_the_other() {
    let back = 60 * S + 3_600 * S;
    let dials = a_thousand_peers(3_600 * S);
    let busiest = busiest_tenth(dials.clone(), back - 60 * S);
    assert!(busiest <= 25, "{busiest} attempts in 100 ms");
    assert!(dials.into_iter().max().unwrap() < back + limits::BACKOFF_MAX);
}
