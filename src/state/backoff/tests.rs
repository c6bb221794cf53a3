//! Single rules by example; a wanted peer over simulated days, and a thousand of them at once, in [`days`].

mod days;

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
    assert_eq!(peer.input(Input::PeerDialled), Todo::default());
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

/// A peer whose session has been up for a minute.
fn up(profile: Profile) -> Peer {
    let mut peer = Peer::new(profile);
    peer.input(Input::Connected);
    peer.now += 60 * S;
    peer
}

#[test]
fn beside_a_suspect_path_attempts_run_as_after_a_loss_on_battery_too() {
    for profile in [Profile::Active, Profile::Battery] {
        let mut peer = up(profile);
        let (suspect_at, mut todo) = (peer.now, peer.input(Input::Suspect));
        let mut starts = Vec::new();
        while peer.now < suspect_at + 10 * S {
            todo = peer.dial(todo).1;
            starts.push(peer.now);
            assert!(peer.backoff.alive() <= ATTEMPTS);
            let wake = todo.wake;
            assert_eq!(peer.input(Input::Suspect), Todo { wake, ..Todo::default() }, "again changes nothing");
        }
        assert!(starts[0] <= suspect_at + FIRST_AFTER_LOSS);
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= QUICK.0));
        assert!(starts.len() >= 4, "{}", starts.len());
    }
}

#[test]
fn when_the_old_path_answers_attempts_beside_it_are_abandoned() {
    let mut peer = up(Profile::Active);
    let todo = peer.input(Input::Suspect);
    let (dial, _) = peer.dial(todo);
    assert_eq!(peer.input(Input::Answered), Todo { abandon: vec![dial.attempt], ..Todo::default() });
    peer.now += 60 * S;
    assert_eq!(peer.input(Input::Tick), Todo::default());
}

#[test]
fn attempts_beside_a_suspect_path_go_on_when_it_is_lost() {
    let mut peer = up(Profile::Active);
    let todo = peer.input(Input::Suspect);
    peer.dial(todo);
    let todo = peer.input(Input::Lost);
    assert_eq!((todo.abandon.as_slice(), peer.backoff.alive()), (&[][..], 1));
    assert_eq!(peer.input(Input::Answered).abandon, [], "a late word from the old path changes nothing");
    assert_eq!(peer.backoff.alive(), 1);
}

#[test]
fn a_peer_that_is_not_connected_cannot_be_suspect() {
    let (mut peer, todo) = Peer::lost(Profile::Active);
    peer.input(Input::Suspect);
    peer.input(Input::Connected);
    peer.now = todo.wake.unwrap() + S;
    assert_eq!(peer.input(Input::Tick), Todo::default());
}

#[test]
fn a_network_change_and_a_sleep_dial_at_once_beside_a_session_that_is_up() {
    for input in [Input::NetworkChanged, Input::Slept, Input::Resumed] {
        let mut peer = up(Profile::Battery);
        let todo = peer.input(input);
        let dial = todo.dial.expect("at once");
        assert_eq!(todo.wake, Some(peer.now + dial.within), "one is enough unless the path is suspect");
        peer.input(Input::Suspect);
        assert_eq!(peer.backoff.alive(), 1, "the suspicion it brings does not dial twice at once");
        assert_eq!(peer.input(Input::Answered), Todo { abandon: vec![dial.attempt], ..Todo::default() });
    }
}

#[test]
fn an_attempt_beside_a_path_that_answers_is_given_up_in_time() {
    let mut peer = up(Profile::Active);
    let todo = peer.input(Input::NetworkChanged);
    let dial = todo.dial.unwrap();
    assert_eq!(peer.tick(&todo), Todo { abandon: vec![dial.attempt], ..Todo::default() });
}

#[test]
fn a_peer_that_refuses_attempts_beside_its_session_is_left_alone_until_that_is_lost() {
    let mut peer = up(Profile::Active);
    let todo = peer.input(Input::Suspect);
    let (mut dial, _) = peer.dial(todo);
    for _ in 0..8 {
        let todo = peer.input(Input::Refused(dial.attempt));
        (dial, _) = peer.dial(todo);
        assert_eq!(peer.backoff.alive(), 1);
    }
    assert!(peer.backoff.ceiling() > S);
    let todo = peer.input(Input::Lost);
    assert!(todo.wake.unwrap() <= peer.now + FIRST_AFTER_LOSS);
}

#[test]
fn while_the_peers_owner_decides_it_is_asked_every_few_seconds() {
    for (profile, (shortest, longest), first) in
        [(Profile::Active, ASKED, limits::BACKOFF_FIRST), (Profile::Battery, ASKED_ON_BATTERY, BATTERY.0)]
    {
        let mut peer = Peer::new(profile);
        let mut todo = peer.input(Input::Tick);
        for _ in 0..20 {
            let dial = todo.dial.expect("it is time");
            let waits = peer.input(Input::Asked(dial.attempt)).wake.unwrap() - peer.now;
            assert!((shortest..=longest).contains(&waits), "{waits:?}");
            peer.now += waits;
            todo = peer.input(Input::Tick);
        }
        // One that does not answer any more is another matter.
        let dial = todo.dial.expect("it is time");
        assert!(peer.input(Input::Failed(dial.attempt)).wake.unwrap() <= peer.now + first);
        assert_eq!(peer.input(Input::Asked(dial.attempt)).dial, None, "it has ended already");
    }
}

#[test]
fn while_suspended_nothing_is_dialled_and_afterwards_at_once() {
    let (mut peer, todo) = Peer::lost(Profile::Active);
    let (dial, _) = peer.dial(todo);
    assert_eq!(peer.input(Input::Suspended), Todo { abandon: vec![dial.attempt], ..Todo::default() });
    for input in [Input::Tick, Input::NetworkChanged, Input::Slept, Input::PeerDialled, Input::Suspended, Input::Suspect] {
        peer.now += 3_600 * S;
        assert_eq!(peer.input(input), Todo::default());
    }
    assert!(peer.input(Input::Resumed).dial.is_some());
    peer.input(Input::Connected);
    peer.input(Input::Suspended);
    peer.now += 60 * S;
    assert_eq!(peer.input(Input::Lost), Todo::default(), "nor after a loss meanwhile");
    assert!(peer.input(Input::Resumed).dial.is_some());
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
