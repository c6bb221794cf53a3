//! Who may see what of a directory: asked anew for each entry and whenever the policy changes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::own;
use super::shared::Directory;
use crate::policy::{Action, Pattern, PatternError};
use crate::proto::directory::{Found, Mode, Query, Scope};
use crate::session::{Core, Limit};
use crate::state::directory::{Entry, Key};

/// Looks at a directory for somebody who asked something.
pub(super) struct Judge {
    directory: Directory,
    /// For whom; none for the node's owner.
    eyes: Option<Arc<Core>>,
    pattern: Pattern,
    offline: bool,
    scope: Scope,
    /// The policy's generation, and whether it trusts the peer.
    trusted: Option<(u64, bool)>,
}

/// How much of an entry is seen. Equal ones look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    Whole,
    /// Some of the methods: this is what they hash to.
    Part(u64),
}

impl Judge {
    pub fn new(directory: Directory, eyes: Option<Arc<Core>>, query: &Query) -> Result<Self, PatternError> {
        let pattern = query.pattern.parse()?;
        Ok(Self { directory, eyes, pattern, offline: query.offline, scope: query.scope, trusted: None })
    }

    /// Whether what is offline is told of too.
    pub fn wants_offline(&self) -> bool {
        self.offline
    }

    /// Whether, and how much of it, this is seen.
    pub fn sees(&mut self, key: &Key, entry: &Entry) -> Option<Sight> {
        if !self.pattern.matches(&key.name) {
            return None;
        }
        let is_own = key.provider == self.directory.own() && key.at.is_none();
        if self.scope == Scope::Mirror && (is_own || key.at.is_some() || entry.listing.mode != Mode::Public) {
            return None;
        }
        let Some(core) = self.eyes.clone() else { return Some(Sight::Whole) };
        if key.provider == core.peer() {
            return Some(Sight::Whole);
        }
        if core.may(Action::Discover, &key.name) {
            return self.is_meant(&core, &entry.listing.mode).then_some(Sight::Whole);
        }
        if is_own { self.callable(&core, key) } else { None }
    }

    /// What is told of it.
    pub fn found(&self, key: &Key, entry: &Entry, sight: Sight) -> Found {
        let listing = &*entry.listing;
        let description = match (sight, &self.eyes) {
            (Sight::Part(_), Some(core)) => {
                let part = self.directory.registry().describe_one(&key.name, |path| core.may_call(path));
                part.as_ref().map(own::json).unwrap_or_default()
            }
            _ => listing.description.clone(),
        };
        let tells_mode = self.eyes.as_ref().is_none_or(|core| core.peer() == key.provider);
        Found {
            name: key.name.clone(),
            provider: key.provider,
            at: key.at,
            online: entry.online,
            epoch: entry.epoch,
            mode: tells_mode.then(|| listing.mode.clone()),
            addresses: entry.addresses.to_vec(),
            metadata: listing.metadata.clone(),
            description,
        }
    }

    /// Whether the provider means this peer to find it.
    /// A limit turns the reader away, if it is a peer.
    pub fn limited(&self, limit: Limit) {
        self.eyes.iter().for_each(|core| core.limited(limit));
    }

    fn is_meant(&mut self, core: &Core, mode: &Mode) -> bool {
        match mode {
            Mode::Public => true,
            Mode::Private(ids) => ids.contains(&core.peer()),
            Mode::Trusted => {
                let generation = core.policy().generation();
                let known = self.trusted.filter(|(known, _)| *known == generation);
                let (_, trusted) = known.unwrap_or_else(|| (generation, core.policy().current().is_trusted(&core.peer())));
                self.trusted = Some((generation, trusted));
                trusted
            }
        }
    }

    /// Of this node's own services: those methods the peer may call.
    fn callable(&self, core: &Core, key: &Key) -> Option<Sight> {
        let mut hasher = DefaultHasher::new();
        let all = self.directory.registry().methods(&key.name);
        let mut any = false;
        for path in all.iter().filter(|path| core.may_call(path)) {
            any = true;
            path.hash(&mut hasher);
        }
        any.then(|| Sight::Part(hasher.finish()))
    }
}
