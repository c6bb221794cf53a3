//! What the owners of both ends are told: connected and disconnected in turns, and whether it is the session from before.

use std::time::Duration;

use super::*;

/// The connects of each end after the first: resumed or not, and whether it is the session of the beginning.
fn returns(duo: &Duo) -> Vec<(bool, bool)> {
    let of = |told: &Told| {
        told.assert_alternates();
        let connects = told.connects();
        connects[1..].iter().map(|(_, session, resumed)| (*resumed, *session == connects[0].1)).collect::<Vec<_>>()
    };
    assert_eq!(of(&duo.told[0]), of(&duo.told[1]), "both ends see the same");
    of(&duo.told[0])
}

#[test]
fn a_session_that_comes_back_within_the_window_is_told_as_resumed_and_later_as_another() {
    rounds_of(8, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let link = clean(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        sleep(ms(&mut random, 0, 9_000)).await;
        for lasts in [10, 60, 10] {
            network.partition(ip(1), ip(2));
            let lost = duo.both_lost(Instant::now()).await;
            assert!(duo.to.iter().all(|session| session.id().is_none()), "it has no name while nothing carries it");
            tokio::time::sleep_until(lost[0] + Duration::from_secs(lasts)).await;
            network.heal_all();
            duo.joined_within(BACK).await;
            sleep(ms(&mut random, 1_000, 9_000)).await;
        }
        assert_eq!(returns(&duo), [(true, true); 3]);
        network.partition(ip(1), ip(2));
        sleep(Duration::from_secs(150)).await;
        network.heal_all();
        duo.joined_within(Duration::from_secs(42)).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(returns(&duo), [(true, true), (true, true), (true, true), (false, false)]);
    });
}

#[test]
fn without_a_window_at_either_end_a_session_that_comes_back_is_another_and_calls_in_flight_end_at_once() {
    rounds_of(4, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let none = Limits { resume_window: Duration::ZERO, ..Limits::default() };
        let limits = if random.random() { [none, Limits::default()] } else { [Limits::default(), none] };
        let link = clean(&mut random);
        let duo = Duo::within(&network, seed, link, limits).await;
        let held = super::window::hold(&duo.to[0], &duo.books[0], &mut random).await;
        network.partition(ip(1), ip(2));
        let lost = duo.both_lost(Instant::now()).await;
        for end in super::window::ends(held).await {
            assert!(end <= lost[0] + Duration::from_millis(100), "{:?} after it was lost", end - lost[0]);
        }
        until(Duration::from_millis(100), || duo.books[0].running() == 0).await;
        network.heal_all();
        duo.joined_within(Duration::from_secs(42)).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(returns(&duo), [(false, false)]);
    });
}
