//! The legs of circuits that go over this node's links: who has them, by link and number.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::carry::{Carried, Side};
use crate::net::{LegStreams, Link};

/// What a leg is to this node.
#[derive(Clone)]
pub(super) enum Role {
    /// The circuit ends here.
    End(LegStreams),
    /// It is carried on, and this is that side of it.
    Carried(Arc<Carried>, Side),
}

/// Where a leg is.
type Key = (usize, u64);

/// All of them.
#[derive(Default)]
pub(super) struct Legs {
    there: Mutex<HashMap<Key, Role>>,
    next: AtomicU64,
}

/// A leg's entry, until this is dropped.
pub(super) struct Entered {
    legs: Arc<Legs>,
    key: Key,
}

impl Legs {
    /// A number for a leg that we open on this link, which none has had.
    pub fn number(&self, link: &Link) -> u64 {
        2 * self.next.fetch_add(1, Relaxed) + u64::from(!link.dialled())
    }

    /// Enters a leg. `None`: there is one of that number.
    pub fn enter(self: &Arc<Self>, link: &Link, number: u64, role: Role) -> Option<Entered> {
        let key = (link.number(), number);
        match self.there().entry(key) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(vacant) => drop(vacant.insert(role)),
        }
        Some(Entered { legs: self.clone(), key })
    }

    pub fn get(&self, link: usize, number: u64) -> Option<Role> {
        self.there().get(&(link, number)).cloned()
    }

    fn there(&self) -> MutexGuard<'_, HashMap<Key, Role>> {
        self.there.lock().expect("nothing panics while it is held")
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // What the entry holds is dropped when the lock is not held any more.
        let gone = self.legs.there().remove(&self.key);
        drop(gone);
    }
}
