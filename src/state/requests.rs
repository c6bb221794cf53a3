//! Strangers who want to connect, and wait for the owner to decide: how many, from where, and for how long. Asks nobody and lets
//! nobody in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::id::NodeId;

/// What became of a stranger's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is new: the owner is to hear of it.
    New,
    /// It waits already.
    Again,
    /// There are too many, or too many from there.
    Full,
}

/// Where a stranger came from, as far as that counts as one: see [`scope`](super::admission::scope); and whether through a relay, which
/// that is then.
pub type From = (IpAddr, bool);

/// A stranger who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<T> {
    /// When it came first.
    pub since: Instant,
    /// When it last came: those that do not come again are forgotten.
    pub last: Instant,
    /// Where it came from.
    pub from: From,
    /// What it said of itself.
    pub said: T,
}

/// Those who wait, one request for each identity.
#[derive(Debug)]
pub struct Requests<T> {
    waiting: BTreeMap<NodeId, Request<T>>,
    bounds: Bounds,
    refused: u64,
}

/// How many may wait, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In all.
    pub most: usize,
    /// From one address.
    pub from_one: usize,
    /// Through a relay at one address.
    pub relayed: usize,
    /// Who was not heard of for so long is forgotten…
    pub kept: Duration,
    /// … and for so long, gives way to a new one if there is no room else.
    pub silent: Duration,
}

impl<T> Requests<T> {
    /// Within these bounds.
    pub fn new(bounds: Bounds) -> Self {
        Self { waiting: BTreeMap::new(), bounds, refused: 0 }
    }

    /// A stranger asks. What it says now replaces what it said before. Where there is no room, those about whom a rule has decided
    /// (`open` is false of them) keep none, and one that is silent gives way.
    pub fn ask(&mut self, who: NodeId, from: From, said: T, now: Instant, open: impl Fn(&NodeId) -> bool) -> Asked {
        self.forget(now);
        if let Some(request) = self.waiting.get_mut(&who) {
            (request.last, request.said) = (now, said);
            return Asked::Again;
        }
        if !self.has_room(from) {
            self.waiting.retain(|who, _| open(who));
        }
        if !self.has_room(from) {
            self.give_way(from, now);
        }
        if !self.has_room(from) {
            self.refused += 1;
            return Asked::Full;
        }
        self.waiting.insert(who, Request { since: now, last: now, from, said });
        Asked::New
    }

    fn has_room(&self, from: From) -> bool {
        self.waiting.len() < self.bounds.most && self.has_share(from)
    }

    fn has_share(&self, from: From) -> bool {
        let share = if from.1 { self.bounds.relayed } else { self.bounds.from_one };
        self.waiting.values().filter(|request| request.from == from).count() < share
    }

    /// The one longest silent is forgotten, if that is long: of those from there if they are the reason.
    fn give_way(&mut self, from: From, now: Instant) {
        let (silent, any) = (self.bounds.silent, self.has_share(from));
        let longest =
            self.waiting.iter().filter(|(_, request)| any || request.from == from).min_by_key(|(_, request)| request.last);
        let longest = longest.filter(|(_, request)| now.saturating_duration_since(request.last) > silent).map(|(who, _)| *who);
        longest.iter().for_each(|who| drop(self.waiting.remove(who)));
    }

    /// Who waits, in the order of their ids.
    pub fn waiting(&mut self, now: Instant) -> impl Iterator<Item = (&NodeId, &Request<T>)> {
        self.forget(now);
        self.waiting.iter()
    }

    /// The owner has decided, or a rule has.
    pub fn decided(&mut self, who: &NodeId) -> Option<Request<T>> {
        self.waiting.remove(who)
    }

    /// How many were turned away because there was no room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn forget(&mut self, now: Instant) {
        let kept = self.bounds.kept;
        self.waiting.retain(|_, request| now.saturating_duration_since(request.last) < kept);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const KEPT: Duration = Duration::from_secs(600);
    const SILENT: Duration = Duration::from_secs(60);

    fn requests<T>(most: usize, from_one: usize) -> Requests<T> {
        Requests::new(Bounds { most, from_one, relayed: 4, kept: KEPT, silent: SILENT })
    }

    fn open(_: &NodeId) -> bool {
        true
    }

    fn who(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn from(last: u8) -> From {
        (Ipv4Addr::new(192, 0, 2, last).into(), false)
    }

    #[test]
    fn each_identity_waits_once_and_is_forgotten_when_it_stays_away() {
        let (mut requests, now) = (requests(8, 8), Instant::now());
        assert_eq!(requests.ask(who(1), from(1), "a", now, open), Asked::New);
        assert_eq!(requests.ask(who(1), from(2), "b", now + KEPT / 2, open), Asked::Again);
        let waiting: Vec<_> = requests.waiting(now + KEPT).map(|(id, request)| (*id, request.since, request.said)).collect();
        assert_eq!(waiting, [(who(1), now, "b")]);
        assert_eq!(requests.waiting(now + 2 * KEPT).count(), 0);
    }

    #[test]
    fn neither_one_address_nor_all_of_them_fill_more_than_their_room() {
        let (mut requests, now) = (requests(5, 2), Instant::now());
        let asked: Vec<_> = (0..4).map(|number| requests.ask(who(number), from(1), (), now, open)).collect();
        assert_eq!(asked, [Asked::New, Asked::New, Asked::Full, Asked::Full]);
        let asked: Vec<_> = (4..8).map(|number| requests.ask(who(number), from(number), (), now, open)).collect();
        assert_eq!(asked, [Asked::New, Asked::New, Asked::New, Asked::Full]);
        assert_eq!(requests.refused(), 3);
        assert!(requests.decided(&who(0)).is_some() && requests.decided(&who(0)).is_none());
        assert_eq!(requests.ask(who(2), from(1), (), now, open), Asked::New, "there is room again");
    }

    #[test]
    fn those_that_come_through_a_relay_have_a_larger_share_of_their_own() {
        let (mut requests, now) = (requests(20, 2), Instant::now());
        let through = |last| (from(last).0, true);
        let asked: Vec<_> = (0..5).map(|number| requests.ask(who(number), through(1), (), now, open)).collect();
        assert_eq!((&asked[..4], asked[4]), (&[Asked::New; 4][..], Asked::Full));
        assert_eq!(requests.ask(who(9), from(1), (), now, open), Asked::New, "the relay itself is another matter");
    }

    #[test]
    fn who_is_silent_or_decided_about_makes_room() {
        let (mut requests, now) = (requests(3, 2), Instant::now());
        for (number, at) in [(0, 1), (1, 1), (2, 2)] {
            assert_eq!(requests.ask(who(number), from(at), (), now, open), Asked::New);
        }
        assert_eq!(requests.ask(who(3), from(3), (), now + SILENT, open), Asked::Full, "none has been silent for long");
        assert_eq!(requests.ask(who(3), from(3), (), now + SILENT, |id| *id != who(2)), Asked::New);
        let later = now + SILENT + SILENT / 2;
        assert_eq!(requests.ask(who(1), from(1), (), later, open), Asked::Again);
        assert_eq!(requests.ask(who(4), from(4), (), later, open), Asked::New, "the one longest silent gives way");
        let waiting: Vec<_> = requests.waiting(later).map(|(id, _)| *id).collect();
        assert_eq!(waiting, [who(1), who(3), who(4)]);
        // One address takes nobody else's room, however silent.
        let later = later + SILENT / 4;
        requests.ask(who(5), from(4), (), later, open);
        assert_eq!(requests.waiting(later).count(), 3);
    }

    proptest! {
        #[test]
        fn whatever_comes_the_bounds_hold(steps in prop::collection::vec((0u8..40, 0u8..6, 0u64..300, any::<bool>()), 0..300)) {
            let (mut requests, mut now) = (requests(10, 3), Instant::now());
            for (id, at, pause, decide) in steps {
                now += Duration::from_secs(pause);
                match decide {
                    true => drop(requests.decided(&who(id))),
                    false => drop(requests.ask(who(id), from(at), (), now, open)),
                }
                let waiting: Vec<_> = requests.waiting(now).map(|(_, request)| request.clone()).collect();
                prop_assert!(waiting.len() <= 10 && waiting.iter().all(|request| now - request.last < KEPT));
                for at in 0..6 {
                    prop_assert!(waiting.iter().filter(|request| request.from == from(at)).count() <= 3);
                }
            }
        }
    }
}
