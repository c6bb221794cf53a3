//! How far each publisher of a wire has got, so that a chunk sent twice is stored once.

use std::collections::{BTreeMap, HashMap};

use crate::proto::wire::PublisherId;

/// What is known of a publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The number of its last chunk that is stored; 0 if none is.
    pub last: u64,
    /// Its stream: only the one that was opened last counts.
    pub stream: u64,
    used: u64,
}

/// The publishers of a wire, so many at most: who was silent for longest is forgotten.
#[derive(Debug)]
pub struct Publishers {
    max: usize,
    known: HashMap<PublisherId, Known>,
    by_use: BTreeMap<u64, PublisherId>,
    uses: u64,
    streams: u64,
}

impl Publishers {
    /// Nobody yet.
    pub fn new(max: usize) -> Self {
        Self { max, known: HashMap::new(), by_use: BTreeMap::new(), uses: 0, streams: 0 }
    }

    /// What is known of this one.
    pub fn get(&self, id: &PublisherId) -> Option<Known> {
        self.known.get(id).copied()
    }

    /// It was stored before that this one has got so far.
    pub fn restore(&mut self, id: PublisherId, last: u64) {
        self.use_of(id).last = last;
    }

    /// Opens a stream: those it has opened before count no more. Says how far it has got, unless it may have been forgotten, and what the
    /// stream is called.
    pub fn open(&mut self, id: PublisherId) -> (Option<u64>, u64) {
        // As long as there are so few, nobody was ever forgotten, on disk neither.
        let few = self.known.len() < self.max * 7 / 8;
        let before = self.get(&id).map(|known| known.last).or(few.then_some(0));
        self.streams += 1;
        let stream = self.streams;
        self.use_of(id).stream = stream;
        (before, stream)
    }

    /// So many more are stored of what came on this stream.
    pub fn stored(&mut self, id: PublisherId, count: u64) {
        let known = self.use_of(id);
        known.last = known.last.saturating_add(count);
    }

    /// Whether this stream is the one that counts.
    pub fn is_current(&self, id: &PublisherId, stream: u64) -> bool {
        self.known.get(id).is_some_and(|known| known.stream == stream)
    }

    fn use_of(&mut self, id: PublisherId) -> &mut Known {
        self.uses += 1;
        let uses = self.uses;
        if !self.known.contains_key(&id)
            && self.known.len() >= self.max
            && let Some((_, silent)) = self.by_use.pop_first()
        {
            self.known.remove(&silent);
        }
        let known = self.known.entry(id).or_default();
        self.by_use.remove(&known.used);
        self.by_use.insert(uses, id);
        known.used = uses;
        known
    }
}
