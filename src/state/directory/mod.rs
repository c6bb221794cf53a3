//! The directory as a machine: what is registered, by whom, and whether it is online. It knows which peers are here from being
//! told, judges nobody, and tells nobody: it writes down what changes, in order, for whoever reads on from where it was.
//!
//! An entry hangs on a session: that of its provider, or, if it is mirrored, that of the node it is mirrored from. It is online
//! while a path carries that session, and at no other time. When the session ends it stays, offline, for those who ask for
//! what is offline; only words of a provider's present session change anything.

mod entry;
mod log;
mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

pub use entry::{Entry, Key};
use entry::{Held, Hung, Said};
use log::Log;
pub use log::{Behind, Change};
pub use room::{Bounds, Refusal};

use crate::id::NodeId;
use crate::proto::control::SessionId;
use crate::proto::directory::Listing;

/// What an entry counts for besides its listing, in bytes: about what it takes in the tables here.
pub const ENTRY_BYTES: usize = 512;

/// What is listed at a node.
#[derive(Debug)]
pub struct Directory {
    own: NodeId,
    bounds: Bounds,
    entries: BTreeMap<Arc<Key>, Arc<Entry>>,
    /// The present session of each peer that has one.
    present: HashMap<NodeId, Present>,
    /// What hangs on the sessions of each peer, those that have ended too: what it provides, and what is mirrored from it.
    loads: HashMap<(NodeId, Kind), Load>,
    /// Entries whose session has ended, those that have been offline for longest first.
    left: BTreeSet<(Instant, Arc<Key>)>,
    left_bytes: usize,
    bytes: usize,
    /// The last number given: of an epoch, of a listing, of a holder. Never the same twice.
    numbers: u64,
    log: Log,
    turned: Vec<(Arc<Key>, bool)>,
}

#[derive(Debug)]
struct Present {
    session: SessionId,
    attached: bool,
    addresses: Arc<[SocketAddr]>,
}

/// Whose a service is that hangs on a peer's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Its,
    Mirrored,
}

#[derive(Debug, Default)]
struct Load {
    keys: BTreeSet<Arc<Key>>,
    bytes: usize,
    /// Of these, the ones that hang on the present session.
    present: usize,
    present_bytes: usize,
    /// The others, those that have been offline for longest first.
    behind: BTreeSet<(Instant, Arc<Key>)>,
}

impl Directory {
    /// An empty one. Epochs grow from `first`: the directory of a node's next process must begin above where this one ends.
    pub fn new(own: NodeId, first: u64, bounds: Bounds) -> Self {
        let log = Log::new(bounds.changes, bounds.changes_bytes);
        let (entries, present, loads, left) = Default::default();
        let turned = Vec::new();
        Self { own, bounds, entries, present, loads, left, left_bytes: 0, bytes: 0, numbers: first, log, turned }
    }

    /// A path carries this session of the peer, for the first time or again, or another one does. A new session ends the one before.
    pub fn attached(&mut self, peer: NodeId, session: SessionId, addresses: Arc<[SocketAddr]>, now: Instant) {
        if let Some(before) = self.present.get(&peer).map(|present| present.session).filter(|before| *before != session) {
            self.ended(peer, before, now);
        }
        self.present.insert(peer, Present { session, attached: true, addresses });
        self.turn(peer, now);
    }

    /// No path carries this session: what hangs on it goes offline.
    pub fn detached(&mut self, peer: NodeId, session: SessionId, now: Instant) {
        let on_a_path = |present: &&mut Present| present.session == session && present.attached;
        if let Some(present) = self.present.get_mut(&peer).filter(on_a_path) {
            present.attached = false;
            self.turn(peer, now);
        }
    }

    /// This session is over: what hangs on it is offline for good, unless it is registered anew.
    pub fn ended(&mut self, peer: NodeId, session: SessionId, now: Instant) {
        self.detached(peer, session, now);
        if self.present.get(&peer).is_none_or(|present| present.session != session) {
            return;
        }
        self.present.remove(&peer);
        for kind in [Kind::Its, Kind::Mirrored] {
            let Some(load) = self.loads.get_mut(&(peer, kind)) else { continue };
            for key in &load.keys {
                let entry = &self.entries[key];
                if entry.hangs_on(session) {
                    let since = entry.offline_since(now);
                    load.behind.insert((since, key.clone()));
                    self.left.insert((since, key.clone()));
                    self.left_bytes += entry.weight();
                }
            }
            (load.present, load.present_bytes) = (0, 0);
        }
        self.forget_beyond(self.bounds.offline);
    }

    /// The peer wants this listed, in place of what it had under that name. Gives the number by which it is withdrawn.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn register(&mut self, peer: NodeId, session: SessionId, listing: Arc<Listing>, now: Instant) -> Result<u64, Refusal> {
        let key = Key { name: listing.name.clone(), provider: peer, at: None };
        let addresses = self.present_on(peer, session)?.addresses.clone();
        self.hang(key, peer, session, listing, addresses, true, now)
    }

    /// The peer wants it listed no longer. Means only what was registered under that number.
    pub fn withdraw(&mut self, peer: NodeId, session: SessionId, name: &str, number: u64) {
        let key = Key { name: name.to_owned(), provider: peer, at: None };
        let is = |entry: &Arc<Entry>| entry.hangs_on(session) && entry.number() == number;
        if self.present_on(peer, session).is_ok() && self.entries.get(&key).is_some_and(is) {
            self.remove(&key);
        }
    }

    /// The directory of `at` lists this; it is online here while it is there, and a path carries the session with `at`.
    ///
    /// # Errors
    /// [`Refusal`].
    #[expect(clippy::too_many_arguments, reason = "what is mirrored, from where, and when")]
    pub fn mirrored(
        &mut self,
        at: NodeId,
        session: SessionId,
        provider: NodeId,
        listing: Arc<Listing>,
        addresses: Arc<[SocketAddr]>,
        online: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.present_on(at, session)?;
        let key = Key { name: listing.name.clone(), provider, at: Some(at) };
        self.hang(key, at, session, listing, addresses, online, now).map(drop)
    }

    /// The directory of `at` lists it no longer.
    pub fn unmirrored(&mut self, at: NodeId, session: SessionId, provider: NodeId, name: &str) {
        let key = Key { name: name.to_owned(), provider, at: Some(at) };
        if self.present_on(at, session).is_ok() && self.entries.get(&key).is_some_and(|entry| entry.hangs_on(session)) {
            self.remove(&key);
        }
    }

    /// Everything the directory of `at` lists has been said on this session: what was mirrored on others is not there any more.
    pub fn mirror_is_current(&mut self, at: NodeId, session: SessionId) {
        if self.present_on(at, session).is_ok() {
            self.remove_mirrored(at, |entry| !entry.hangs_on(session));
        }
    }

    /// The directory of `at` is not mirrored any more.
    pub fn mirror_ended(&mut self, at: NodeId) {
        self.remove_mirrored(at, |_| true);
    }

    /// This node itself serves this now, in place of what it served under that name. Never refused: there are only so many.
    pub fn served(&mut self, listing: Arc<Listing>) {
        let key = Arc::new(Key { name: listing.name.clone(), provider: self.own, at: None });
        self.put(key, Said { listing, addresses: Arc::new([]), online: true, held: Held::Here });
    }

    /// This node itself does not serve that any more.
    pub fn unserved(&mut self, name: &str) {
        let key = Key { name: name.to_owned(), provider: self.own, at: None };
        if self.entries.contains_key(&key) {
            self.remove(&key);
        }
    }

    /// Forgets what has been offline for too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some((since, key)) = self.left.first().cloned() {
            if now.saturating_duration_since(since) < self.bounds.offline_for {
                return;
            }
            self.remove(&key);
        }
    }

    /// When to [`expire`](Self::expire) next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.left.first().map(|(since, _)| *since + self.bounds.offline_for)
    }

    /// The entry of this key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    /// Entries in the order of their keys, from after this one on.
    pub fn after(&self, key: Option<&Key>) -> impl Iterator<Item = (&Arc<Key>, &Arc<Entry>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.entries.range::<Key, _>((key.map_or(Unbounded, Excluded), Unbounded))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of the next change.
    pub fn position(&self) -> u64 {
        self.log.next()
    }

    /// The changes from this one on.
    ///
    /// # Errors
    /// [`Behind`]: some of them are not kept any more.
    pub fn changes(&self, from: u64) -> Result<impl Iterator<Item = &Change>, Behind> {
        self.log.from(from)
    }

    /// What peers have registered that came online (true) or went offline since this was last asked, in order. To be asked after
    /// whatever was said.
    pub fn take_turns(&mut self) -> Vec<(Arc<Key>, bool)> {
        std::mem::take(&mut self.turned)
    }

    fn turned(&mut self, key: &Arc<Key>, was_online: bool, online: bool) {
        if was_online != online && key.at.is_none() && key.provider != self.own {
            self.turned.push((key.clone(), online));
        }
    }

    fn present_on(&self, peer: NodeId, session: SessionId) -> Result<&Present, Refusal> {
        self.present.get(&peer).filter(|present| present.session == session).ok_or(Refusal::NotPresent)
    }

    /// What hangs on sessions with this peer.
    fn hanging_on(&self, peer: NodeId) -> Vec<(Arc<Key>, Arc<Entry>)> {
        let loads = [Kind::Its, Kind::Mirrored].into_iter().filter_map(|kind| self.loads.get(&(peer, kind)));
        let keys = loads.flat_map(|load| &load.keys);
        keys.map(|key| (key.clone(), self.entries[key].clone())).collect()
    }

    /// The peer came or went, or is somewhere else: what hangs on its present session follows.
    fn turn(&mut self, peer: NodeId, now: Instant) {
        let Some(Present { session, attached, addresses }) = self.present.get(&peer) else { return };
        let (session, attached, addresses) = (*session, *attached, addresses.clone());
        let loads = [Kind::Its, Kind::Mirrored].into_iter().filter_map(|kind| self.loads.get(&(peer, kind)));
        let keys: Vec<_> = loads.filter(|load| load.present > 0).flat_map(|load| load.keys.iter().cloned()).collect();
        for key in keys {
            // What it counts for stays as it is.
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let Held::By(hung) = &entry.held else { continue };
            if hung.session != session {
                continue;
            }
            let online = attached && hung.claimed;
            let since = if online { None } else { hung.since.or(Some(now)) };
            let addresses = if key.at.is_none() && attached { addresses.clone() } else { entry.addresses.clone() };
            let said = Said { listing: entry.listing.clone(), addresses, online, held: Held::By(Hung { since, ..hung.clone() }) };
            let (next, news) = said.after(Some(entry), &mut self.numbers, self.log.next());
            let before = std::mem::replace(entry, next.clone());
            self.write(key, Some(&before), next, news);
        }
    }

    /// Lists something that hangs on a peer's present session.
    #[expect(clippy::too_many_arguments, reason = "what hangs there, on what, and when")]
    fn hang(
        &mut self,
        key: Key,
        on: NodeId,
        session: SessionId,
        listing: Arc<Listing>,
        addresses: Arc<[SocketAddr]>,
        claimed: bool,
        now: Instant,
    ) -> Result<u64, Refusal> {
        self.make_room(&key, on, session, listing.weight() + ENTRY_BYTES)?;
        let online = claimed && self.present_on(on, session)?.attached;
        let number = self.number();
        let since = (!online).then(|| self.entries.get(&key).map_or(now, |before| before.offline_since(now)));
        let held = Held::By(Hung { on, session, claimed, number, since });
        self.put(Arc::new(key), Said { listing, addresses, online, held });
        Ok(number)
    }

    /// Puts an entry in its place, and writes down what changes by it.
    fn put(&mut self, key: Arc<Key>, said: Said) {
        let before = self.entries.get(&key).cloned();
        if let Some(before) = &before {
            self.take_off(&key, before);
        }
        let (entry, news) = said.after(before.as_ref(), &mut self.numbers, self.log.next());
        if let Held::By(hung) = &entry.held {
            let load = self.loads.entry((hung.on, key.kind())).or_default();
            load.keys.insert(key.clone());
            load.bytes += entry.weight();
            // Nothing is ever put on a session that is not the present one.
            load.present += 1;
            load.present_bytes += entry.weight();
        }
        self.bytes += entry.weight();
        self.entries.insert(key.clone(), entry.clone());
        self.write(key, before.as_ref(), entry, news);
    }

    fn write(&mut self, key: Arc<Key>, before: Option<&Arc<Entry>>, now: Arc<Entry>, news: bool) {
        let was_online = before.is_some_and(|before| before.online);
        self.turned(&key, was_online, now.online);
        if news {
            self.log.push(key, was_online, Some(now));
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some((key, entry)) = self.entries.remove_entry(key) {
            self.take_off(&key, &entry);
            self.turned(&key, entry.online, false);
            self.log.push(key, entry.online, None);
        }
    }

    /// What an entry counts for is given back.
    fn take_off(&mut self, key: &Arc<Key>, entry: &Entry) {
        self.bytes -= entry.weight();
        let Held::By(hung) = &entry.held else { return };
        let present = self.present_on(hung.on, hung.session).is_ok();
        let of = (hung.on, key.kind());
        let Some(load) = self.loads.get_mut(&of) else { return };
        load.keys.remove(key);
        load.bytes -= entry.weight();
        if present {
            load.present -= 1;
            load.present_bytes -= entry.weight();
        } else if let Some(since) = hung.since {
            let place = (since, key.clone());
            load.behind.remove(&place);
            self.left.remove(&place);
            self.left_bytes -= entry.weight();
        }
        if load.keys.is_empty() {
            self.loads.remove(&of);
        }
    }

    fn remove_mirrored(&mut self, at: NodeId, which: impl Fn(&Entry) -> bool) {
        for (key, entry) in self.hanging_on(at) {
            if key.at == Some(at) && which(&entry) {
                self.remove(&key);
            }
        }
    }

    fn forget_beyond(&mut self, most: usize) {
        while self.left.len() > most
            && let Some((_, oldest)) = self.left.first().cloned()
        {
            self.remove(&oldest);
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

#[cfg(test)]
mod tests;
