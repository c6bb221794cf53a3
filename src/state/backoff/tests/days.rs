//! A wanted peer over simulated days, and a thousand peers at once. Networks come and go, paths die while the network stays, peers
//! refuse, the machine sleeps and is suspended, addresses change; each at random times, drawn from a seed that is printed when the
//! promise is broken: **a network that has been up for longer than the ceiling and a handshake carries the session**.

use std::collections::BTreeMap;

use super::*;
use crate::state::tests::seeds;

/// From a ping to its pong.
const RTT: Duration = Duration::from_millis(30);

/// What the days bring. The network is up at first.
#[derive(Clone, Debug)]
struct World {
    profile: Profile,
    happenings: Vec<(Duration, Happening)>,
    end: Duration,
    /// Shortest and longest time an attempt takes on a network that is up.
    handshake: (Duration, Duration),
    /// Whether attempts into a network that is down are told at once, or wait.
    silent: bool,
    /// So many of 100 attempts are refused.
    refused: u32,
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Toggled,
    /// The session's path is dead although the network is up: a route that moved, a NAT that forgot.
    PathDied,
    /// One of the inputs that come from outside.
    Disturbed(Input),
    Sleeps(Duration),
    Woke,
    /// The attempt's handshake is over, if the network that it began on is still up.
    Greeted(AttemptId, u64),
    Refused(AttemptId),
    Unreachable(AttemptId),
    /// What liveness says of the silence with this number.
    SuspectSeen(u64),
    LossSeen(u64),
    AnswerSeen(u64),
}

struct Run<'a> {
    world: &'a World,
    start: Instant,
    backoff: Backoff,
    rng: StdRng,
    agenda: BTreeMap<(Duration, u64), Happening>,
    count: u64,
    up: bool,
    /// How often the network came or went.
    changes: u64,
    connected: bool,
    path_dead: bool,
    suspect: bool,
    /// Counts what makes an earlier word of liveness stale.
    silence: u64,
    suspended: bool,
    asleep_until: Duration,
    /// Since when nothing has changed that the promise does not cover.
    settled: Duration,
    disturbed: Duration,
    running: Vec<AttemptId>,
    dials: Vec<Duration>,
    losses: usize,
    wake: Option<Duration>,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, seed: u64) -> Self {
        let mut run = Self {
            world,
            start: Instant::now(),
            backoff: Backoff::new(world.profile),
            rng: StdRng::seed_from_u64(seed),
            agenda: BTreeMap::new(),
            count: 0,
            up: true,
            changes: 0,
            connected: false,
            path_dead: false,
            suspect: false,
            silence: 0,
            suspended: false,
            asleep_until: Duration::ZERO,
            settled: Duration::ZERO,
            disturbed: Duration::ZERO,
            running: Vec::new(),
            dials: Vec::new(),
            losses: 0,
            wake: Some(Duration::ZERO),
        };
        world.happenings.iter().for_each(|(at, happening)| run.put(*at, *happening));
        run
    }

    fn run(mut self) -> Self {
        loop {
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let wake = self.wake.map(|wake| wake.max(self.asleep_until));
            let now = next.into_iter().chain(wake).min().unwrap_or(self.world.end);
            if now >= self.world.end {
                return self;
            }
            match wake {
                // What happens at the very end of a sleep comes first.
                Some(wake) if wake <= now && next != Some(now) => self.input(now, Input::Tick),
                _ => {
                    let (_, happening) = self.agenda.pop_first().expect("it is due");
                    self.happens(now, happening);
                }
            }
            self.check(now);
        }
    }

    fn happens(&mut self, now: Duration, happening: Happening) {
        let outside = matches!(happening, Happening::Toggled | Happening::PathDied | Happening::Woke);
        if now < self.asleep_until && !outside {
            return self.put(self.asleep_until, happening);
        }
        match happening {
            Happening::Toggled => self.toggled(now),
            Happening::PathDied => self.path_died(now),
            Happening::Disturbed(input) => self.disturbed(now, input),
            Happening::Sleeps(time) => {
                self.asleep_until = now + time;
                self.put(self.asleep_until, Happening::Woke);
            }
            Happening::Woke => self.woke(now),
            Happening::Greeted(attempt, changes) => self.greeted(now, attempt, changes),
            Happening::Refused(attempt) => {
                if self.report(attempt) {
                    self.settled = self.settled.max(now);
                    self.input(now, Input::Refused(attempt));
                }
            }
            Happening::Unreachable(attempt) => {
                if self.report(attempt) {
                    self.input(now, Input::Failed(attempt));
                }
            }
            Happening::SuspectSeen(silence) if self.is_current(silence) => self.suspects(now),
            Happening::LossSeen(silence) if self.is_current(silence) => {
                (self.connected, self.suspect) = (false, false);
                self.losses += 1;
                self.input(now, Input::Lost);
            }
            Happening::AnswerSeen(silence) if self.is_current(silence) => {
                self.suspect = false;
                self.input(now, Input::Answered);
            }
            Happening::SuspectSeen(_) | Happening::LossSeen(_) | Happening::AnswerSeen(_) => {}
        }
    }

    fn toggled(&mut self, now: Duration) {
        (self.up, self.changes) = (!self.up, self.changes + 1);
        self.settled = self.settled.max(now);
        if self.path_dead {
            return;
        }
        self.silence += 1;
        if !self.up {
            self.falls_silent(now);
        } else if self.suspect {
            self.put(now + RTT, Happening::AnswerSeen(self.silence));
        }
    }

    fn path_died(&mut self, now: Duration) {
        if self.connected && self.is_path_alive() {
            self.path_dead = true;
            // Nobody can know before.
            self.settled = self.settled.max(now + limits::ANSWER_BOUND);
            self.silence += 1;
            self.falls_silent(now);
        }
    }

    fn falls_silent(&mut self, now: Duration) {
        self.put(now + 2 * S, Happening::SuspectSeen(self.silence));
        self.put(now + limits::ANSWER_BOUND, Happening::LossSeen(self.silence));
    }

    fn disturbed(&mut self, now: Duration, input: Input) {
        self.settled = self.settled.max(now);
        self.disturbed = now;
        match input {
            Input::Suspended => {
                self.suspended = true;
                self.silence += 1;
            }
            Input::Resumed => self.suspended = false,
            _ => {}
        }
        self.input(now, input);
        if matches!(input, Input::NetworkChanged | Input::Slept | Input::Resumed) {
            self.doubts(now);
        }
    }

    fn woke(&mut self, now: Duration) {
        self.settled = self.settled.max(now);
        if self.rng.random() {
            self.disturbed(now, Input::Slept);
        } else {
            self.doubts(now);
        }
    }

    /// The path is probed.
    fn doubts(&mut self, now: Duration) {
        if !self.connected || self.suspended {
            return;
        }
        self.silence += 1;
        let alive = self.is_path_alive();
        let seen = if alive { Happening::AnswerSeen } else { Happening::LossSeen };
        self.put(now + if alive { RTT } else { limits::ANSWER_BOUND }, seen(self.silence));
        self.suspects(now);
    }

    fn suspects(&mut self, now: Duration) {
        self.suspect = true;
        self.input(now, Input::Suspect);
    }

    fn greeted(&mut self, now: Duration, attempt: AttemptId, changes: u64) {
        if changes == self.changes && self.report(attempt) {
            (self.connected, self.path_dead, self.suspect) = (true, false, false);
            self.silence += 1;
            self.input(now, Input::Connected);
        }
    }

    fn input(&mut self, now: Duration, input: Input) {
        let todo = self.backoff.handle(input, self.start + now, &mut self.rng);
        self.wake = todo.wake.map(|wake| wake - self.start);
        self.running.retain(|attempt| !todo.abandon.contains(attempt));
        let Some(dial) = todo.dial else { return };
        let wanted = !self.connected || self.suspect || now <= self.disturbed.max(self.asleep_until) + RESET_SPACING;
        assert!(wanted && !self.suspended, "nobody needed that attempt");
        self.dials.push(now);
        self.running.push(dial.attempt);
        let (low, high) = self.world.handshake;
        let over = now + even(&mut self.rng, low, high);
        if self.up && self.rng.random_ratio(self.world.refused, 100) {
            self.put(over, Happening::Refused(dial.attempt));
        } else if self.up {
            self.put(over, Happening::Greeted(dial.attempt, self.changes));
        } else if !self.world.silent {
            self.put(now + MS, Happening::Unreachable(dial.attempt));
        }
    }

    fn check(&self, now: Duration) {
        assert!(self.backoff.alive() <= ATTEMPTS);
        if now < self.asleep_until {
            return;
        }
        if self.suspended {
            assert_eq!((self.backoff.alive(), self.wake), (0, None), "it sleeps");
            return;
        }
        if !self.connected || self.suspect {
            let wake = self.wake.expect("a next wake-up while something is to be tried");
            assert!(wake <= now + limits::REFUSED_BACKOFF_MAX);
        }
        let works = self.connected && self.is_path_alive();
        let waited = now.saturating_sub(self.settled);
        let bound = self.backoff.ceiling() + limits::HANDSHAKE + self.world.handshake.1;
        assert!(works || !self.up || waited <= bound, "no session for {waited:?}, since {:?}", self.settled);
    }

    fn report(&mut self, attempt: AttemptId) -> bool {
        let before = self.running.len();
        self.running.retain(|running| *running != attempt);
        self.running.len() < before
    }

    fn is_path_alive(&self) -> bool {
        self.up && !self.path_dead
    }

    fn is_current(&self, silence: u64) -> bool {
        self.connected && !self.suspended && silence == self.silence
    }

    fn put(&mut self, at: Duration, happening: Happening) {
        self.count += 1;
        self.agenda.insert((at, self.count), happening);
    }
}

impl World {
    /// An outage after each of these times by turns, and nothing else.
    fn with_phases(phases: &[Duration]) -> Self {
        let mut end = Duration::ZERO;
        let mut happenings = Vec::new();
        for phase in phases {
            end += *phase;
            happenings.push((end, Happening::Toggled));
        }
        Self { profile: Profile::Active, happenings, end, handshake: (50 * MS, 50 * MS), silent: true, refused: 0 }
    }

    /// A few days of everything.
    fn random(rng: &mut StdRng) -> Self {
        let phases: Vec<_> = (0..rng.random_range(4..40)).map(|_| phase(rng)).collect();
        let mut world = Self::with_phases(&phases);
        let shortest = even(rng, 10 * MS, S);
        let longest = [shortest, 2 * S, 8 * S][rng.random_range(0..3)].max(shortest);
        world.handshake = (shortest, longest);
        world.silent = rng.random();
        world.refused = [0, 0, 0, 10, 50][rng.random_range(0..5)];
        if rng.random_ratio(1, 4) {
            world.profile = Profile::Battery;
        }
        for _ in 0..rng.random_range(0..100) {
            world.add_happening(rng);
        }
        world
    }

    fn add_happening(&mut self, rng: &mut StdRng) {
        // Near a change, where it is hard, or anywhere.
        let near = self.happenings[rng.random_range(0..self.happenings.len())].0;
        let at = if rng.random() { near + even(rng, Duration::ZERO, 20 * S) } else { even(rng, Duration::ZERO, self.end) };
        let happening = match rng.random_range(0..8) {
            0 | 1 => Happening::PathDied,
            2 | 3 => Happening::Disturbed(Input::NetworkChanged),
            4 => Happening::Disturbed(Input::PeerDialled),
            5 => Happening::Disturbed(Input::Slept),
            6 => Happening::Sleeps(phase(rng)),
            _ => {
                self.happenings.push((at + phase(rng), Happening::Disturbed(Input::Resumed)));
                Happening::Disturbed(Input::Suspended)
            }
        };
        self.happenings.push((at, happening));
    }
}

/// Seconds, minutes or hours.
fn phase(rng: &mut StdRng) -> Duration {
    let (low, high) = [(100 * MS, 10 * S), (5 * S, 200 * S), (100 * S, 20_000 * S)][rng.random_range(0..3)];
    even(rng, low, high)
}

/// Says which seed it was when a test panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("VOLT_SEED={}", self.0);
        }
    }
}

/// The check is in [`Run::check`].
#[test]
fn over_days_of_outages_a_network_up_for_longer_than_the_ceiling_and_a_handshake_carries_the_session() {
    for seed in seeds(200) {
        let shown = Seed(seed);
        let world = World::random(&mut StdRng::seed_from_u64(seed));
        assert!(!Run::new(&world, seed).run().dials.is_empty());
        drop(shown);
    }
}

#[test]
fn a_path_that_dies_while_the_network_stays_is_replaced_before_it_is_given_up() {
    let world = World { happenings: vec![(60 * S, Happening::PathDied)], ..World::with_phases(&[70 * S]) };
    for seed in 0..100 {
        let run = Run::new(&world, seed).run();
        assert!(run.connected && run.is_path_alive());
        assert_eq!(run.losses, 0, "VOLT_SEED={seed}");
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
    let world = World::with_phases(&[60 * S, outage, 300 * S]);
    (0..1_000).flat_map(|seed| Run::new(&world, seed).run().dials).collect()
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
