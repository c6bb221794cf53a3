//! What the node turned away, counted for all its sessions, and the journal in which it is written. It judges nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

#[cfg(feature = "cli")]
use super::commands::{Commands, Kind};
#[cfg(feature = "cli")]
use crate::id::NodeId;
use crate::journal::{Entry, Journal};
#[cfg(feature = "cli")]
use crate::policy::Decision;

/// A limit that turns something away, or ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// A peer that this node let in said no hello in time.
    Hello,
    /// What a peer said of itself or of its streams breaks the protocol, or a bound of it.
    Protocol,
    /// Headers and bodies of calls that are too large, or none.
    Messages,
    /// Handlers that block, of one session.
    Handlers,
    /// Registrations, watches and feeds of one session together.
    Feeds,
    /// Tunnels of one session.
    Tunnels,
    /// Tunnels of the node.
    NodeTunnels,
    /// What one peer registers, and what the directory holds.
    Registrations,
    /// Watches of one session.
    Watches,
    /// What all watchers were told of.
    Watched,
    /// Wires of the node.
    Wires,
    /// Room on the disk for wires.
    Disk,
    /// Requests to administer this node, of one peer and of all.
    Administer,
}

impl Limit {
    /// Each of them.
    pub const ALL: [Limit; 13] = [
        Limit::Hello,
        Limit::Protocol,
        Limit::Messages,
        Limit::Handlers,
        Limit::Feeds,
        Limit::Tunnels,
        Limit::NodeTunnels,
        Limit::Registrations,
        Limit::Watches,
        Limit::Watched,
        Limit::Wires,
        Limit::Disk,
        Limit::Administer,
    ];

    /// Its name, as `volt status` and the journal have it.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Hello => "hello",
            Limit::Protocol => "protocol",
            Limit::Messages => "messages",
            Limit::Handlers => "handlers",
            Limit::Feeds => "feeds",
            Limit::Tunnels => "tunnels",
            Limit::NodeTunnels => "node_tunnels",
            Limit::Registrations => "registrations",
            Limit::Watches => "watches",
            Limit::Watched => "watched_entries",
            Limit::Wires => "wires",
            Limit::Disk => "disk",
            Limit::Administer => "administer",
        }
    }
}

/// The counts of all sessions, and the journal.
#[derive(Debug, Default)]
pub struct Ledger {
    journal: Journal,
    /// A session has counted something that is to be written before long.
    due: Notify,
    sessions: AtomicU64,
    denied: AtomicU64,
    #[cfg(feature = "cli")]
    commands: Commands,
    limits: [AtomicU64; Limit::ALL.len()],
}

impl Ledger {
    /// Nothing counted yet.
    pub fn new(journal: Journal) -> Self {
        Self { journal, ..Self::default() }
    }

    /// Where it is written.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Writes this down.
    pub fn note(&self, entry: Entry) {
        self.journal.note(entry);
    }

    /// Sessions refused by policy or a limit.
    pub fn refused(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    /// What peers asked for and policy denied, other than sessions and calls.
    pub fn denied(&self) -> u64 {
        self.denied.load(Relaxed)
    }

    /// How often each limit turned something away.
    pub fn limits(&self) -> impl Iterator<Item = (Limit, u64)> {
        Limit::ALL.into_iter().map(|limit| (limit, self.limits[limit as usize].load(Relaxed)))
    }

    pub(super) fn count_refused(&self) {
        self.sessions.fetch_add(1, Relaxed);
    }

    pub(super) fn count_denied(&self) {
        self.denied.fetch_add(1, Relaxed);
    }

    pub(super) fn count_limit(&self, limit: Limit) {
        self.limits[limit as usize].fetch_add(1, Relaxed);
    }

    /// A peer asked for a command; none: it has no leave for any, and nothing of it was read.
    #[cfg(feature = "cli")]
    pub fn administered(&self, peer: NodeId, command: Option<&'static str>, decision: &Decision) {
        let kind = match command.filter(|_| decision.is_permit()) {
            Some(command) => Kind::Permitted(command),
            None => Kind::Denied(command),
        };
        if matches!(kind, Kind::Denied(_)) {
            self.count_denied();
        }
        self.count_command(peer, kind, Some(decision));
    }

    /// A peer asked for more commands at once than it may.
    #[cfg(feature = "cli")]
    pub fn over_administered(&self, peer: NodeId) {
        self.count_limit(Limit::Administer);
        self.count_command(peer, Kind::Limited(Limit::Administer), None);
    }

    #[cfg(feature = "cli")]
    fn count_command(&self, peer: NodeId, kind: Kind, decision: Option<&Decision>) {
        if self.journal.is_kept() {
            self.commands.count(&self.journal, (peer, kind), decision);
            self.is_due();
        }
    }

    /// Writes what commands were counted since that was done last.
    pub fn write_commands(&self) {
        #[cfg(feature = "cli")]
        self.commands.write(&self.journal);
    }

    /// A session has counted something.
    pub(super) fn is_due(&self) {
        if self.journal.is_kept() {
            self.due.notify_one();
        }
    }

    /// Waits until a session has counted something. Cancel-safe.
    pub async fn due(&self) {
        self.due.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_counted_under_its_own_name() {
        let ledger = Ledger::default();
        for (times, limit) in Limit::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| ledger.count_limit(limit));
        }
        let mut names: Vec<_> = ledger.limits().map(|(limit, _)| limit.name()).collect();
        assert_eq!(ledger.limits().map(|(_, count)| count).collect::<Vec<_>>(), (0..13).collect::<Vec<_>>());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Limit::ALL.len());
    }
}
