//! The directory against a naive model, and what has to hold of it whatever is said to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::proto::directory::Mode;

const OWN: NodeId = NodeId::from_bytes([0; 32]);
const SECOND: Duration = Duration::from_secs(1);

fn peer(n: u8) -> NodeId {
    NodeId::from_bytes([n + 1; 32])
}

fn session(n: u8) -> SessionId {
    SessionId([n; 16])
}

fn listing(name: u8, words: u8) -> Arc<Listing> {
    let metadata = vec![("words".into(), vec![words])];
    Arc::new(Listing { name: format!("s{name}"), mode: Mode::Public, metadata, description: vec![0; 100] })
}

fn nowhere() -> Arc<[SocketAddr]> {
    Arc::new([])
}

fn key(peer: NodeId, name: u8) -> Key {
    Key { name: format!("s{name}"), provider: peer, at: None }
}

fn small() -> Bounds {
    Bounds {
        registrations: 3,
        mirrored: 2,
        provider_bytes: 4 * (ENTRY_BYTES + 400),
        mirrored_bytes: 4 * (ENTRY_BYTES + 400),
        bytes: 8 * (ENTRY_BYTES + 400),
        offline: 4,
        offline_for: 5 * SECOND,
        changes: 6,
        changes_bytes: 1 << 20,
    }
}

/// What is said to a directory: by which peer, on which of its sessions (0 the last, 1 the one before it…), about which service.
/// Late words of old sessions are as likely as any; only, none comes back after its end.
#[derive(Clone, Debug)]
enum Said {
    Attached(u8, u8, u8),
    Detached(u8, u8),
    Ended(u8, u8),
    Register(u8, u8, u8, u8),
    Withdraw(u8, u8, u8, bool),
    Mirrored(u8, u8, u8, u8, bool),
    Unmirrored(u8, u8, u8, u8),
    MirrorIsCurrent(u8, u8),
    MirrorEnded(u8),
    Served(u8, u8),
    Unserved(u8),
    Passes(u8),
}

fn said() -> impl Strategy<Value = Said> {
    let (p, e, n, w) = (0..3u8, 0..3u8, 0..5u8, 0..2u8);
    prop_oneof![
        4 => (p.clone(), e.clone(), w.clone()).prop_map(|(p, new, at)| Said::Attached(p, new, at)),
        2 => (p.clone(), e.clone()).prop_map(|(p, e)| Said::Detached(p, e)),
        2 => (p.clone(), e.clone()).prop_map(|(p, e)| Said::Ended(p, e)),
        8 => (p.clone(), e.clone(), n.clone(), w.clone()).prop_map(|(p, e, n, w)| Said::Register(p, e, n, w)),
        3 => (p.clone(), e.clone(), n.clone(), any::<bool>()).prop_map(|(p, e, n, last)| Said::Withdraw(p, e, n, last)),
        4 => (p.clone(), e.clone(), p.clone(), n.clone(), any::<bool>()).prop_map(|(at, e, p, n, on)| Said::Mirrored(at, e, p, n, on)),
        1 => (p.clone(), e.clone(), p.clone(), n.clone()).prop_map(|(at, e, p, n)| Said::Unmirrored(at, e, p, n)),
        1 => (p.clone(), e).prop_map(|(p, e)| Said::MirrorIsCurrent(p, e)),
        1 => p.prop_map(Said::MirrorEnded),
        1 => (n.clone(), w).prop_map(|(n, w)| Said::Served(n, w)),
        1 => n.prop_map(Said::Unserved),
        2 => (0..4u8).prop_map(Said::Passes),
    ]
}

/// What is there, told in the simplest way. It knows no bounds: what it is not sure of is what sessions left behind.
#[derive(Default)]
struct Model {
    /// The number of each peer's last session.
    last: HashMap<u8, u8>,
    present: HashMap<NodeId, (SessionId, bool)>,
    entries: BTreeMap<Key, Modelled>,
}

/// On what it hangs, whether it is claimed, its words, the number of its registration.
type Modelled = (Option<(NodeId, SessionId)>, bool, Arc<Listing>, u64);

impl Model {
    fn session(&self, peer: u8, before: u8) -> SessionId {
        session(self.last.get(&peer).map_or(0, |last| last.saturating_sub(before)))
    }

    /// The session that a path carries now: the last one, or a new one.
    fn attaches(&mut self, of: u8, new: bool) -> SessionId {
        let last = self.last.entry(of).or_insert(0);
        *last += u8::from(new || !self.present.contains_key(&peer(of)));
        session(*last)
    }

    fn is_present(&self, peer: NodeId, session: SessionId) -> bool {
        self.present.get(&peer).is_some_and(|(present, _)| *present == session)
    }

    fn online(&self, key: &Key) -> bool {
        let (on, claimed, ..) = &self.entries[key];
        on.is_none_or(|(on, session)| *claimed && self.present.get(&on) == Some(&(session, true)))
    }

    fn is_left(&self, key: &Key) -> bool {
        self.entries[key].0.is_some_and(|(on, session)| !self.is_present(on, session))
    }
}

/// Says it to both.
fn say(directory: &mut Directory, model: &mut Model, said: &Said, now: &mut Instant) {
    match *said {
        Said::Attached(p, e, at) => {
            let addresses = Arc::new([SocketAddr::from(([127, 0, 0, 1], 1 + u16::from(at)))]);
            let session = model.attaches(p, e == 0);
            directory.attached(peer(p), session, addresses, *now);
            model.present.insert(peer(p), (session, true));
        }
        Said::Detached(p, e) => {
            let e = model.session(p, e);
            directory.detached(peer(p), e, *now);
            model.present.entry(peer(p)).and_modify(|present| present.1 &= present.0 != e);
        }
        Said::Ended(p, e) => {
            let e = model.session(p, e);
            directory.ended(peer(p), e, *now);
            if model.is_present(peer(p), e) {
                model.present.remove(&peer(p));
            }
        }
        Said::Register(p, e, n, w) => {
            let e = model.session(p, e);
            let listed = directory.register(peer(p), e, listing(n, w), *now);
            assert_eq!(listed == Err(Refusal::NotPresent), !model.is_present(peer(p), e));
            if let Ok(number) = listed {
                model.entries.insert(key(peer(p), n), (Some((peer(p), e)), true, listing(n, w), number));
            }
        }
        Said::Withdraw(p, e, n, last) => {
            let e = model.session(p, e);
            let there = model.entries.get(&key(peer(p), n)).cloned();
            let number = there.as_ref().map_or(0, |there| there.3) - u64::from(!last && there.is_some());
            directory.withdraw(peer(p), e, &format!("s{n}"), number);
            let is = there.is_some_and(|there| there.0 == Some((peer(p), e)));
            if last && is && model.is_present(peer(p), e) {
                model.entries.remove(&key(peer(p), n));
            }
        }
        Said::Mirrored(at, e, p, n, online) => {
            let e = model.session(at, e);
            let key = Key { at: Some(peer(at)), ..key(peer(p), n) };
            let listed = directory.mirrored(peer(at), e, peer(p), listing(n, 0), nowhere(), online, *now);
            assert_eq!(listed == Err(Refusal::NotPresent), !model.is_present(peer(at), e));
            if listed.is_ok() {
                model.entries.insert(key, (Some((peer(at), e)), online, listing(n, 0), 0));
            }
        }
        Said::Unmirrored(at, e, p, n) => {
            let e = model.session(at, e);
            directory.unmirrored(peer(at), e, peer(p), &format!("s{n}"));
            let key = Key { at: Some(peer(at)), ..key(peer(p), n) };
            let is = model.entries.get(&key).is_some_and(|entry| entry.0 == Some((peer(at), e)));
            if is && model.is_present(peer(at), e) {
                model.entries.remove(&key);
            }
        }
        Said::MirrorIsCurrent(at, e) => {
            let e = model.session(at, e);
            directory.mirror_is_current(peer(at), e);
            if model.is_present(peer(at), e) {
                model.entries.retain(|key, entry| key.at != Some(peer(at)) || entry.0 == Some((peer(at), e)));
            }
        }
        Said::MirrorEnded(at) => {
            directory.mirror_ended(peer(at));
            model.entries.retain(|key, _| key.at != Some(peer(at)));
        }
        Said::Served(n, w) => {
            directory.served(listing(n, w));
            model.entries.insert(key(OWN, n), (None, true, listing(n, w), 0));
        }
        Said::Unserved(n) => {
            directory.unserved(&format!("s{n}"));
            model.entries.remove(&key(OWN, n));
        }
        Said::Passes(seconds) => {
            *now += SECOND * u32::from(seconds);
            directory.expire(*now);
            assert!(directory.next_expiry().is_none_or(|next| next > *now));
        }
    }
}

/// The same is there, but for what sessions left behind and was forgotten; and that is taken over.
fn agree(directory: &Directory, model: &mut Model) {
    let there: BTreeMap<_, _> = directory.after(None).collect();
    assert!(there.keys().all(|key| model.entries.contains_key(&***key)), "nobody said that it is there");
    let gone: Vec<_> = model.entries.keys().filter(|key| directory.get(key).is_none()).cloned().collect();
    for key in gone {
        assert!(model.is_left(&key), "{key:?} is not there any more");
        model.entries.remove(&key);
    }
    for (key, entry) in there {
        assert_eq!(entry.online, model.online(key), "{key:?}");
        assert_eq!(entry.listing, model.entries[&**key].2);
    }
}

/// What a reader has who was told everything.
#[derive(Default)]
struct Reader {
    at: u64,
    entries: BTreeMap<Key, Arc<Entry>>,
    /// The last epoch of each key, whether or not it is there.
    epochs: BTreeMap<Key, u64>,
}

impl Reader {
    /// Reads what is new: per entry online and offline alternate, and epochs grow.
    fn read(&mut self, directory: &Directory) {
        let Ok(changes) = directory.changes(self.at) else {
            self.entries = directory.after(None).map(|(key, entry)| ((**key).clone(), entry.clone())).collect();
            self.epochs.extend(self.entries.iter().map(|(key, entry)| (key.clone(), entry.epoch)));
            self.at = directory.position();
            return;
        };
        for change in changes {
            assert_eq!(change.number, self.at);
            self.at += 1;
            let key = (*change.key).clone();
            let before = self.entries.remove(&key);
            assert_eq!(change.was_online, before.as_ref().is_some_and(|before| before.online));
            let Some(now) = &change.now else {
                assert!(before.is_some(), "gone twice");
                continue;
            };
            assert_eq!(now.changed, change.number);
            assert!(before.as_ref().is_none_or(|before| !before.looks_like(now)), "no news");
            let epoch = self.epochs.entry(key.clone()).or_default();
            if before.is_none() && now.epoch == 0 && !now.online {
                self.entries.insert(key, now.clone());
                continue;
            }
            *epoch = before.map_or(*epoch, |before| before.epoch.max(*epoch));
            assert!(now.epoch == *epoch || now.epoch == 0 || (now.epoch > *epoch && now.online));
            assert!(now.epoch > *epoch || !now.online || change.was_online, "it came online, and the epoch is the same");
            *epoch = now.epoch.max(*epoch);
            self.entries.insert(key, now.clone());
        }
    }

    fn agrees(&self, directory: &Directory) {
        let there: BTreeMap<_, _> = directory.after(None).map(|(key, entry)| ((**key).clone(), entry.clone())).collect();
        assert!(self.entries.keys().eq(there.keys()));
        assert!(self.entries.iter().all(|(key, entry)| entry.looks_like(&there[key]) && entry.listing == there[key].listing));
    }
}

fn within_bounds(directory: &Directory, bounds: &Bounds) {
    let entries: Vec<_> = directory.after(None).collect();
    let weight =
        |of: &dyn Fn(&Key) -> bool| entries.iter().filter(|(key, _)| of(key)).map(|(_, entry)| entry.weight()).sum::<usize>();
    let count = |of: &dyn Fn(&Key) -> bool| entries.iter().filter(|(key, _)| of(key)).count();
    for peer in (0..3).map(peer) {
        let registered = |key: &Key| key.at.is_none() && key.provider == peer;
        let mirrored = |key: &Key| key.at == Some(peer);
        assert!(count(&registered) <= bounds.registrations && weight(&registered) <= bounds.provider_bytes);
        assert!(count(&mirrored) <= bounds.mirrored && weight(&mirrored) <= bounds.mirrored_bytes);
    }
    // What the node serves itself is never refused.
    assert!(weight(&|key| key.provider != OWN) <= bounds.bytes);
    assert!(directory.left.len() <= bounds.offline);
    assert_eq!(directory.bytes, weight(&|_| true));
    let hanging = directory.loads.values().map(|load| load.keys.len()).sum::<usize>();
    assert_eq!(hanging, count(&|key| key.provider != OWN));
    assert_eq!(directory.loads.values().map(|load| load.bytes).sum::<usize>(), weight(&|key| key.provider != OWN));
    let mut behind = BTreeSet::new();
    for ((peer, kind), load) in &directory.loads {
        let weight = |key: &Arc<Key>| directory.entries[key].weight();
        let present =
            |key: &&Arc<Key>| directory.present.get(peer).is_some_and(|now| directory.entries[*key].hangs_on(now.session));
        let (here, gone): (Vec<_>, Vec<_>) = load.keys.iter().partition(present);
        assert_eq!((load.present, load.present_bytes), (here.len(), here.into_iter().map(weight).sum()));
        assert!(load.keys.iter().all(|key| key.kind() == *kind) && !load.keys.is_empty());
        let places: BTreeSet<_> = gone.into_iter().map(|key| (directory.entries[key].since().unwrap(), key.clone())).collect();
        assert_eq!(load.behind, places);
        behind.extend(places);
    }
    assert_eq!(directory.left, behind);
    assert_eq!(directory.left_bytes, behind.iter().map(|(_, key)| directory.entries[key].weight()).sum::<usize>());
}

proptest! {
    #[test]
    fn whatever_is_said_the_directory_is_what_the_model_is(all in prop::collection::vec((said(), any::<bool>()), 0..80)) {
        let bounds = small();
        let mut directory = Directory::new(OWN, 0, bounds);
        let mut model = Model::default();
        let (mut often, mut rarely) = (Reader::default(), Reader::default());
        let mut now = Instant::now();
        for (said, reads) in &all {
            say(&mut directory, &mut model, said, &mut now);
            agree(&directory, &mut model);
            within_bounds(&directory, &bounds);
            often.read(&directory);
            often.agrees(&directory);
            if *reads {
                rarely.read(&directory);
                rarely.agrees(&directory);
            }
        }
    }

    #[test]
    fn without_small_bounds_only_time_forgets(all in prop::collection::vec(said(), 0..80)) {
        let mut directory = Directory::new(OWN, 0, Bounds { offline_for: SECOND * 1_000_000, ..Bounds::default() });
        let mut model = Model::default();
        let mut now = Instant::now();
        for said in &all {
            say(&mut directory, &mut model, said, &mut now);
            let there = directory.len();
            agree(&directory, &mut model);
            prop_assert_eq!(there, model.entries.len());
        }
    }
}

fn directory() -> Directory {
    Directory::new(OWN, 0, small())
}

#[test]
fn the_same_name_in_a_new_session_replaces_the_old_and_is_online_with_a_higher_epoch() {
    let (mut directory, now) = (directory(), Instant::now());
    directory.attached(peer(0), session(0), nowhere(), now);
    directory.register(peer(0), session(0), listing(0, 0), now).unwrap();
    let before = directory.get(&key(peer(0), 0)).unwrap().epoch;
    directory.attached(peer(0), session(1), nowhere(), now);
    assert!(!directory.get(&key(peer(0), 0)).unwrap().online);
    directory.register(peer(0), session(1), listing(0, 0), now).unwrap();
    let entry = directory.get(&key(peer(0), 0)).unwrap();
    assert!(entry.online && entry.epoch > before);
    assert_eq!(directory.register(peer(0), session(0), listing(0, 1), now), Err(Refusal::NotPresent));
    directory.detached(peer(0), session(0), now);
    assert!(directory.get(&key(peer(0), 0)).unwrap().online);
    let online: Vec<_> = directory.changes(0).unwrap().map(|change| change.now.as_ref().unwrap().online).collect();
    assert_eq!(online, [true, false, true]);
}

#[test]
fn one_more_than_a_session_may_have_is_refused_and_what_old_sessions_left_goes_for_it() {
    let (mut directory, now) = (directory(), Instant::now());
    for e in 0..2 {
        directory.attached(peer(0), session(e), nowhere(), now);
        for n in 0..3 {
            directory.register(peer(0), session(e), listing(3 * e + n, 0), now).unwrap();
        }
    }
    assert_eq!(directory.len(), 3);
    assert_eq!(directory.register(peer(0), session(1), listing(9, 0), now), Err(Refusal::TooMany(3)));
    // What is there already can be said anew.
    directory.register(peer(0), session(1), listing(3, 1), now).unwrap();
    let large = Listing { description: vec![0; 4_000], ..(*listing(3, 0)).clone() };
    let bytes = small().provider_bytes;
    assert_eq!(directory.register(peer(0), session(1), Arc::new(large), now), Err(Refusal::TooLarge(bytes)));
}

#[test]
fn what_a_registration_that_was_replaced_withdraws_is_not_what_replaced_it() {
    let (mut directory, now) = (directory(), Instant::now());
    directory.attached(peer(0), session(0), nowhere(), now);
    let first = directory.register(peer(0), session(0), listing(0, 0), now).unwrap();
    let second = directory.register(peer(0), session(0), listing(0, 0), now).unwrap();
    directory.withdraw(peer(0), session(0), "s0", first);
    assert_eq!(directory.len(), 1);
    directory.withdraw(peer(0), session(0), "s0", second);
    assert!(directory.is_empty());
}

#[test]
fn what_is_offline_is_forgotten_after_its_time() {
    let (mut directory, now) = (directory(), Instant::now());
    directory.attached(peer(0), session(0), nowhere(), now);
    directory.register(peer(0), session(0), listing(0, 0), now).unwrap();
    directory.detached(peer(0), session(0), now);
    directory.expire(now + 100 * SECOND);
    assert_eq!((directory.len(), directory.next_expiry()), (1, None), "its session may go on");
    directory.ended(peer(0), session(0), now + SECOND);
    assert_eq!(directory.next_expiry(), Some(now + small().offline_for));
    directory.expire(now + small().offline_for);
    assert!(directory.is_empty());
}
