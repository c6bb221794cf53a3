//! Tells one reader of a directory what it may see, and what becomes of it: each change once and in order, or, when the reader is too
//! far behind for that, everything anew.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::judge::{Judge, Sight};
use super::shared::{Directory, Watched};
use crate::policy::PolicyWatch;
use crate::proto::directory::{Found, Told};
use crate::proto::status::{Code, Status};
use crate::session::Limit;
use crate::state::directory::{Behind, Entry, Key};

/// Entries, or changes, that are looked at without letting go.
const PAGE: usize = 64;
/// What is told in one piece has about so many bytes.
const PIECE_BYTES: usize = 32 * 1024;

/// Whoever is told.
pub(super) trait Ear: Send {
    /// Takes this in; waits while there is no room.
    fn hear(&mut self, told: Vec<Told>) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Nobody listens any more.
#[derive(Debug)]
pub(super) struct Gone;

/// Tells one reader.
pub(super) struct Teller<E> {
    directory: Directory,
    judge: Judge,
    ear: E,
    /// What the reader knows, as it was told.
    known: BTreeMap<Arc<Key>, Known>,
    watched: Watched,
    /// The number of the next change to be told.
    at: u64,
    piece: Vec<Told>,
    piece_bytes: usize,
}

/// An entry as a reader knows it.
struct Known {
    changed: u64,
    online: bool,
    epoch: u64,
    version: u64,
    addresses: Arc<[SocketAddr]>,
    sight: Sight,
}

impl<E: Ear> Teller<E> {
    pub fn new(directory: Directory, judge: Judge, ear: E) -> Self {
        let watched = Watched::none(&directory);
        Self { directory, judge, ear, known: BTreeMap::new(), watched, at: 0, piece: Vec::new(), piece_bytes: 0 }
    }

    /// Tells what is there now. Gives back the reader.
    pub async fn discover(mut self) -> Result<E, Gone> {
        self.walk().await?;
        self.say(Told::Current);
        self.flush().await?;
        Ok(self.ear)
    }

    /// Tells what is there now, and then what changes, until the reader is gone.
    pub async fn watch(mut self, mut policy: Option<PolicyWatch>) -> Result<E, Gone> {
        let mut position = self.directory.position();
        'anew: loop {
            self.at = *position.borrow_and_update();
            self.known.clear();
            self.walk().await?;
            self.say(Told::Current);
            let mut judge_anew = false;
            loop {
                match self.catch_up().await {
                    Ok(()) => {}
                    Err(Stop::Gone) => return Err(Gone),
                    Err(Stop::Behind) => {
                        self.say(Told::Again);
                        continue 'anew;
                    }
                }
                if std::mem::take(&mut judge_anew) {
                    self.walk().await?;
                }
                if !self.watched.count(self.known.len()) {
                    self.judge.limited(Limit::Watched);
                    let text = "the watchers of this node were told of too much already";
                    self.say(Told::Refused(Status::new(Code::ResourceExhausted, text)));
                    self.flush().await?;
                    return Ok(self.ear);
                }
                self.flush().await?;
                let replaced = async {
                    match &mut policy {
                        Some(policy) => drop(policy.changed().await),
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    changed = position.changed() => if changed.is_err() {
                        return Err(Gone);
                    },
                    () = replaced => judge_anew = true,
                }
            }
        }
    }

    /// Looks at everything, and tells what the reader does not know, or must not know any more.
    async fn walk(&mut self) -> Result<(), Gone> {
        let mut after: Option<Arc<Key>> = None;
        loop {
            let page = self.directory.page(after.as_deref(), PAGE);
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (key, entry) in page {
                self.look(key, &entry);
                self.flush_if_full().await?;
            }
        }
    }

    /// Tells what has changed meanwhile.
    async fn catch_up(&mut self) -> Result<(), Stop> {
        loop {
            let changes = self.directory.changes(self.at, PAGE).map_err(|Behind| Stop::Behind)?;
            if changes.is_empty() {
                return Ok(());
            }
            for change in changes {
                self.at = change.number + 1;
                // A walk was faster.
                if self.known.get(&change.key).is_some_and(|known| known.changed >= change.number) {
                    continue;
                }
                match &change.now {
                    Some(entry) => self.look(change.key, entry),
                    None => self.gone(&change.key),
                }
                self.flush_if_full().await?;
            }
        }
    }

    /// An entry is like this: tells what is new in that.
    fn look(&mut self, key: Arc<Key>, entry: &Entry) {
        let Some(sight) = self.judge.sees(&key, entry) else { return self.gone(&key) };
        let before = self.known.get(&key);
        if before.is_none() && !entry.online && !self.judge.wants_offline() {
            return;
        }
        let known = Known {
            changed: entry.changed,
            online: entry.online,
            epoch: entry.epoch,
            version: entry.version,
            addresses: entry.addresses.clone(),
            sight,
        };
        let news = match before {
            Some(before) if before.says_the_same(&known) => {
                let turned = (before.online, before.epoch) != (known.online, known.epoch);
                turned.then(|| changed(&key, entry))
            }
            _ => Some(Told::Entry(self.judge.found(&key, entry, sight))),
        };
        self.known.insert(key, known);
        news.into_iter().for_each(|told| self.say(told));
    }

    /// The reader is not to know of it any more.
    fn gone(&mut self, key: &Key) {
        if self.known.remove(key).is_some() {
            let Key { name, provider, at } = key.clone();
            self.say(Told::Withdrawn { name, provider, at });
        }
    }

    fn say(&mut self, told: Told) {
        self.piece_bytes += if let Told::Entry(found) = &told { found.weight() } else { size_of::<Found>() };
        self.piece.push(told);
    }

    async fn flush_if_full(&mut self) -> Result<(), Gone> {
        if self.piece_bytes >= PIECE_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        self.piece_bytes = 0;
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() { Ok(()) } else { self.ear.hear(piece).await }
    }
}

/// Why there are no more changes to tell.
enum Stop {
    Behind,
    Gone,
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Stop::Gone
    }
}

impl Known {
    /// Whether all but online and epoch are the same.
    fn says_the_same(&self, other: &Known) -> bool {
        self.version == other.version && self.sight == other.sight && self.addresses == other.addresses
    }
}

fn changed(key: &Key, entry: &Entry) -> Told {
    let Key { name, provider, at } = key.clone();
    Told::Changed { name, provider, at, online: entry.online, epoch: entry.epoch }
}
