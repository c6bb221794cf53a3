//! Each rule by itself; all of them together under any schedule in [`schedules`].

mod schedules;

use super::*;
use crate::id::SecretKey;
use crate::proto::limits;

const BOOT: BootId = BootId([1; 16]);
const REBOOT: BootId = BootId([2; 16]);

/// A roster whose own id is the smaller (true) or the larger one, and the peer's id.
fn roster(smaller: bool) -> (Roster, NodeId) {
    let mut ids = [SecretKey::generate().id(), SecretKey::generate().id()];
    ids.sort();
    let [low, high] = ids;
    let (own, peer) = if smaller { (low, high) } else { (high, low) };
    (Roster::new(own, limits::VISITORS), peer)
}

fn accepted(attach: u64, replaces: Option<LinkNumber>) -> Verdict {
    Verdict::Accept { attach, replaces }
}

#[test]
fn a_new_link_replaces_an_older_one_even_if_we_believe_in_that() {
    let (mut roster, peer) = roster(true);
    assert_eq!(roster.greeted(peer, 1, Role::Node, BOOT, 1), accepted(1, None));
    assert_eq!(roster.greeted(peer, 2, Role::Node, BOOT, 2), accepted(2, Some(1)));
    assert_eq!(roster.greeted(peer, 3, Role::Node, REBOOT, 1), accepted(1, Some(2)), "a new process starts from 1");
}

#[test]
fn a_process_is_replaced_when_another_one_has_its_session_and_not_by_a_hello() {
    let (mut roster, peer) = roster(true);
    roster.greeted(peer, 1, Role::Node, BOOT, 1);
    roster.holds(peer, BOOT);
    roster.greeted(peer, 2, Role::Node, REBOOT, 1);
    assert!(!roster.has_been_replaced(peer, BOOT), "that one may come to nothing");
    roster.greeted(peer, 3, Role::Node, BOOT, 1);
    roster.holds(peer, REBOOT);
    assert!(roster.has_been_replaced(peer, BOOT) && !roster.has_been_replaced(peer, REBOOT));
    assert!(roster.is_news(peer, BOOT) && !roster.is_news(peer, BOOT), "once");
    assert!(!roster.is_news(peer, REBOOT));
    // Let back when the later one has gone.
    roster.holds(peer, BOOT);
    assert!(!roster.has_been_replaced(peer, BOOT) && roster.has_been_replaced(peer, REBOOT));
    (3..20).for_each(|boot| roster.holds(peer, BootId([boot; 16])));
    assert!(!roster.has_been_replaced(peer, BOOT), "the last few are remembered");
}

#[test]
fn a_peer_is_greeted_beside_a_link_only_while_that_is_suspect() {
    let (mut roster, peer) = roster(true);
    roster.suspect(peer, true);
    roster.greeted(peer, 1, Role::Node, BOOT, 4);
    assert_eq!(roster.propose(peer, 2, false), None, "there was nothing to suspect yet");
    roster.suspect(peer, true);
    roster.suspect(peer, false);
    assert_eq!(roster.propose(peer, 2, false), None, "it answered again");
    roster.suspect(peer, true);
    assert_eq!(roster.propose(peer, 2, false), Some(5));
    assert_eq!(roster.propose(peer, 3, false), None, "one at a time");
    assert!(roster.is_greeting(peer));
    assert_eq!(roster.link(peer), Some(1), "the old one is still in use");
    assert_eq!(roster.answered(peer, 2, BOOT, 5), (accepted(5, Some(1)), None));
    assert!(!roster.is_greeting(peer));
    assert_eq!(roster.propose(peer, 3, false), None, "the new one is not suspect");
}

#[test]
fn a_suspicion_ends_with_its_link() {
    let (mut roster, peer) = roster(true);
    roster.greeted(peer, 1, Role::Node, BOOT, 1);
    roster.suspect(peer, true);
    roster.ended(peer, 1);
    roster.greeted(peer, 2, Role::Node, BOOT, 2);
    assert_eq!(roster.propose(peer, 3, false), None);
}

#[test]
fn an_old_link_that_answers_again_stays_if_the_dial_beside_it_fails() {
    let (mut roster, peer) = roster(true);
    roster.greeted(peer, 1, Role::Node, BOOT, 1);
    roster.suspect(peer, true);
    assert_eq!(roster.propose(peer, 2, false), Some(2));
    roster.suspect(peer, false);
    assert_eq!(roster.ended(peer, 2), None);
    assert_eq!(roster.link(peer), Some(1));
}

#[test]
fn of_two_dials_that_crossed_the_smaller_ids_stays() {
    let (mut roster, peer) = roster(true);
    assert_eq!(roster.propose(peer, 1, false), Some(1));
    assert_eq!(roster.greeted(peer, 2, Role::Node, BOOT, 1), Verdict::Park);
    assert_eq!(roster.answered(peer, 1, BOOT, 1), (accepted(1, None), Some(Parked::Close(2))));
    assert_eq!(roster.link(peer), Some(1));
}

#[test]
fn the_larger_id_answers_the_other_dial_and_gives_up_its_own() {
    let (mut roster, peer) = roster(false);
    assert_eq!(roster.propose(peer, 1, false), Some(1));
    assert_eq!(roster.greeted(peer, 2, Role::Node, BOOT, 1), accepted(1, None));
    assert_eq!(roster.ended(peer, 1), None);
    assert_eq!(roster.link(peer), Some(2));
}

#[test]
fn a_link_kept_aside_is_answered_when_our_own_dial_fails() {
    let (mut roster, peer) = roster(true);
    roster.propose(peer, 1, false);
    assert_eq!(roster.greeted(peer, 2, Role::Node, BOOT, 1), Verdict::Park);
    assert_eq!(roster.ended(peer, 1), Some(Parked::Accept(2, 1)));
    assert_eq!(roster.link(peer), Some(2));
}

#[test]
fn regression_a_link_kept_aside_is_closed_when_a_newer_one_overtook_both() {
    let (mut roster, peer) = roster(true);
    roster.propose(peer, 1, false);
    assert_eq!(roster.greeted(peer, 2, Role::Node, BOOT, 1), Verdict::Park);
    assert_eq!(roster.greeted(peer, 3, Role::Node, BOOT, 2), accepted(2, None), "the peer gave up and dialled again");
    assert_eq!(roster.answered(peer, 1, BOOT, 1), (Verdict::Stale(2), Some(Parked::Close(2))));
    assert_eq!(roster.link(peer), Some(3));
}

#[test]
fn regression_a_link_kept_aside_does_not_replace_a_newer_one() {
    let (mut roster, peer) = roster(true);
    roster.propose(peer, 1, false);
    assert_eq!(roster.greeted(peer, 2, Role::Node, BOOT, 1), Verdict::Park);
    assert_eq!(roster.greeted(peer, 3, Role::Node, BOOT, 2), accepted(2, None));
    assert_eq!(roster.ended(peer, 1), Some(Parked::Close(2)));
    assert_eq!(roster.link(peer), Some(3));
}

#[test]
fn a_hello_that_comes_too_late_is_told_the_number_that_is_current() {
    let (mut roster, peer) = roster(true);
    roster.greeted(peer, 1, Role::Node, BOOT, 3);
    assert_eq!(roster.greeted(peer, 2, Role::Node, BOOT, 2), Verdict::Stale(3));
    let (mut other, peer) = self::roster(true);
    assert_eq!(other.propose(peer, 9, false), Some(1));
    assert_eq!(other.outpaced(peer, 9, 3), Some(4), "on the same link");
    assert_eq!(other.outpaced(peer, 8, 7), None, "that dial is over");
    other.ended(peer, 9);
    assert_eq!(other.propose(peer, 10, false), Some(8));
    assert_eq!(other.outpaced(peer, 10, u64::MAX), None, "what a peer says overflows nothing");
}

#[test]
fn visitors_supersede_nobody_and_are_at_most_eight() {
    let (mut roster, peer) = roster(true);
    roster.greeted(peer, 1, Role::Node, BOOT, 1);
    for visitor in 0..limits::VISITORS {
        let verdict = roster.greeted(peer, 10 + visitor, Role::Visitor, BootId([visitor as u8; 16]), 1);
        assert_eq!(verdict, accepted(1, None));
    }
    assert_eq!(roster.greeted(peer, 99, Role::Visitor, BootId([99; 16]), 1), Verdict::TooMany);
    assert_eq!(roster.link(peer), Some(1));
    roster.ended(peer, 10);
    assert_eq!(roster.greeted(peer, 99, Role::Visitor, BootId([99; 16]), 1), accepted(1, None));
}
