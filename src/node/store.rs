//! What a node remembers between runs: the peers its owner wants or named, the rules made by command, and the invitations issued. It keeps no keys,
//! dials nobody and decides nothing.
//!
//! One redb file; its rows are JSON, so that a person can read them in an emergency and a later version can add to them. Every
//! change is one transaction that is on disk when the function returns. All functions block: from async code call them through
//! `tokio::task::spawn_blocking`.

mod error;
mod file;
mod invitation;
mod peer;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use error::StoreError;
use error::damaged;
pub use invitation::{Invitation, Revoked, Use};
pub use peer::{Peer, PeerName, PeerNameError};
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use crate::id::{InviteHash, NodeId};
use crate::policy::{Action, Rule, Source};
use crate::proto::limits::INVITATIONS;

/// Most peers a store keeps.
pub const PEERS: u64 = 10_000;
/// Most rules a store keeps.
pub const RULES: u64 = 4_096;
/// Of those, what invitations and answers to requests leave free: others must not use up the room in which the owner says no.
pub const RULES_LEFT: u64 = 512;

/// The layout of the tables. It changes only if an older version could misread what a newer one wrote.
const FORMAT: u64 = 1;

const META_TABLE: TableDefinition<&str, u64> = TableDefinition::new("meta");
const PEER_TABLE: TableDefinition<&[u8; 32], &str> = TableDefinition::new("peers");
/// Name to id: no two peers have the same name.
const NAME_TABLE: TableDefinition<&str, &[u8; 32]> = TableDefinition::new("names");
const RULE_TABLE: TableDefinition<&str, &str> = TableDefinition::new("rules");

/// By the hash of each. A store made by a version before this has no such table, which is as good as an empty one.
const INVITATION_TABLE: TableDefinition<&[u8; 32], &str> = TableDefinition::new("invitations");

/// The store of a node. See the [module](self) about blocking.
///
/// ```
/// # use voltmesh::{id::NodeId, node::store::{Peer, Store}};
/// # let dir = tempfile::tempdir()?;
/// # let id = NodeId::from_bytes([7; 32]);
/// let store = Store::open(dir.path().join("volt.redb"))?;
/// store.upsert_peer(&Peer { name: Some("bob".parse()?), wanted: true, ..Peer::new(id) })?;
/// assert_eq!(store.by_name("bob")?.unwrap().id, id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: PathBuf,
    read_only: bool,
}

impl Store {
    /// Opens the store, making it (mode 0600) if there is none. One process can have it open so; others get
    /// [`StoreError::Busy`]. Every checksum is verified first.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let database = file::open(&path, |new| fill(&path, new))?;
        Self { database, path, read_only: false }.checked()
    }

    /// Reads the store as it is now, also beside the node that has it open or after that node was killed. Writes nothing,
    /// locks nothing, and does not see later changes. No store at all is read as an empty one.
    pub fn open_read_only(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let database = file::snapshot(&path, |new| fill(&path, new))?;
        Self { database, path, read_only: true }.checked()
    }

    /// All peers, in the order of their ids.
    pub fn peers(&self) -> Result<Vec<Peer>, StoreError> {
        let table = self.read()?.open_table(PEER_TABLE).map_err(|e| self.failed(e))?;
        let rows = table.iter().map_err(|e| self.failed(e))?;
        rows.map(|row| {
            let (id, json) = row.map_err(|e| self.failed(e))?;
            self.parse_peer(NodeId::from_bytes(*id.value()), json.value())
        })
        .collect()
    }

    /// The peer with this id, if it is kept.
    pub fn peer(&self, id: &NodeId) -> Result<Option<Peer>, StoreError> {
        let table = self.read()?.open_table(PEER_TABLE).map_err(|e| self.failed(e))?;
        let row = table.get(id.as_bytes()).map_err(|e| self.failed(e))?;
        row.map(|json| self.parse_peer(*id, json.value())).transpose()
    }

    /// The peer this node's owner gave this name.
    pub fn by_name(&self, name: &str) -> Result<Option<Peer>, StoreError> {
        let table = self.read()?.open_table(NAME_TABLE).map_err(|e| self.failed(e))?;
        let id = table.get(name).map_err(|e| self.failed(e))?.map(|id| NodeId::from_bytes(*id.value()));
        id.map_or(Ok(None), |id| self.peer(&id))
    }

    /// Keeps a peer, in place of what was kept of it. Refuses a name another peer has.
    pub fn upsert_peer(&self, peer: &Peer) -> Result<(), StoreError> {
        self.write(|txn| self.put_peer(txn, peer))
    }

    /// Changes one peer, made anew if it is not kept, in one step that nobody comes between. Returns it as it is then.
    pub fn change_peer(&self, id: &NodeId, change: impl FnOnce(&mut Peer)) -> Result<Peer, StoreError> {
        self.write(|txn| {
            let mut peer = self.peer_in(txn, id)?.unwrap_or_else(|| Peer::new(*id));
            change(&mut peer);
            peer.id = *id;
            self.put_peer(txn, &peer)?;
            Ok(peer)
        })
    }

    /// Notes when a peer was connected (milliseconds since 1970, UTC) and where, unless it is not kept: strangers are not
    /// remembered. No addresses leaves those known as they are. Each call waits for the disk: once per session is enough.
    pub fn set_seen(&self, id: &NodeId, unix_ms: u64, addresses: &[std::net::SocketAddr]) -> Result<bool, StoreError> {
        self.write(|txn| {
            let Some(mut peer) = self.peer_in(txn, id)? else { return Ok(false) };
            peer.last_seen_unix_ms = Some(unix_ms);
            if !addresses.is_empty() {
                peer.addresses = addresses.to_vec();
            }
            self.put_peer(txn, &peer)?;
            Ok(true)
        })
    }

    /// Forgets a peer and its name. Returns what was kept.
    pub fn remove_peer(&self, id: &NodeId) -> Result<Option<Peer>, StoreError> {
        self.write(|txn| {
            let Some(peer) = self.peer_in(txn, id)? else { return Ok(None) };
            txn.open_table(PEER_TABLE).map_err(|e| self.failed(e))?.remove(id.as_bytes()).map_err(|e| self.failed(e))?;
            self.put_name(txn, id, peer.name.as_ref(), None)?;
            Ok(Some(peer))
        })
    }

    /// All rules made by command, in the order of their ids. Fails if one of them has parts this version does not know: without
    /// it the policy would not be what the owner wrote.
    pub fn rules(&self) -> Result<Vec<Rule>, StoreError> {
        let table = self.read()?.open_table(RULE_TABLE).map_err(|e| self.failed(e))?;
        let rows = table.iter().map_err(|e| self.failed(e))?;
        rows.map(|row| {
            let (id, json) = row.map_err(|e| self.failed(e))?;
            self.parse_rule(id.value(), json.value())
        })
        .collect()
    }

    /// Keeps a rule, as one of [`Source::Store`] whatever its source. Returns it, and whether it is new.
    pub fn add_rule(&self, rule: &Rule) -> Result<(Rule, bool), StoreError> {
        let kept = rule.clone().with_source(Source::Store);
        let is_new = self.write(|txn| {
            let mut table = txn.open_table(RULE_TABLE).map_err(|e| self.failed(e))?;
            self.put_rule(&mut table, &kept, RULES)
        })?;
        Ok((kept, is_new))
    }

    /// Keeps rules that somebody was given leave by: all of them or, if [`RULES_LEFT`] would not be left, none.
    pub fn add_rules(&self, rules: &[Rule]) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(RULE_TABLE).map_err(|e| self.failed(e))?;
            let mut kept = rules.iter().map(|rule| rule.clone().with_source(Source::Store));
            kept.try_for_each(|rule| self.put_rule(&mut table, &rule, RULES - RULES_LEFT).map(drop))
        })
    }

    /// Keeps a rule that denies in place of those that permit just this peer something, so that there is room for it however many others
    /// have filled; and takes back the invitations that the peer had made from afar. What this version cannot read stays.
    pub fn revoke(&self, peer: &NodeId, denial: &Rule) -> Result<Revoked, StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(RULE_TABLE).map_err(|e| self.failed(e))?;
            let mut removed = Vec::new();
            for row in table.iter().map_err(|e| self.failed(e))? {
                let (id, json) = row.map_err(|e| self.failed(e))?;
                removed.extend(self.parse_rule(id.value(), json.value()).ok().filter(|rule| rule.permits_just(peer)));
            }
            for rule in &removed {
                table.remove(rule.id()).map_err(|e| self.failed(e))?;
            }
            self.put_rule(&mut table, &denial.clone().with_source(Source::Store), RULES)?;
            let mut table = txn.open_table(INVITATION_TABLE).map_err(|e| self.failed(e))?;
            let its = self.read_invitations(&table)?.into_iter().filter(|invitation| invitation.by == Some(*peer));
            let withdrawn: Vec<_> = its.map(|invitation| invitation.hash).collect();
            for hash in &withdrawn {
                table.remove(hash.as_bytes()).map_err(|e| self.failed(e))?;
            }
            Ok(Revoked { removed, withdrawn })
        })
    }

    /// Says whether it is new.
    fn put_rule(
        &self,
        table: &mut redb::Table<'_, &'static str, &'static str>,
        rule: &Rule,
        most: u64,
    ) -> Result<bool, StoreError> {
        let there = table.get(rule.id()).map_err(|e| self.failed(e))?.map(|json| json.value().to_owned());
        if let Some(there) = there {
            let same = self.parse_rule(rule.id(), &there)? == *rule;
            return if same { Ok(false) } else { Err(StoreError::RuleClash(rule.id().to_owned())) };
        }
        self.room(table.len().map_err(|e| self.failed(e))?, "rules", most)?;
        let json = serde_json::to_string(rule).expect("a rule is text");
        table.insert(rule.id(), json.as_str()).map_err(|e| self.failed(e))?;
        Ok(true)
    }

    /// Removes the rule with this id, also one this version cannot read. Returns whether there was one.
    pub fn remove_rule(&self, id: &str) -> Result<bool, StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(RULE_TABLE).map_err(|e| self.failed(e))?;
            let removed = table.remove(id).map_err(|e| self.failed(e))?;
            Ok(removed.is_some())
        })
    }

    /// All invitations that are still good for something, the oldest first. `now` is in milliseconds since 1970 (UTC).
    pub fn invitations(&self, now_unix_ms: u64) -> Result<Vec<Invitation>, StoreError> {
        let table = match self.read()?.open_table(INVITATION_TABLE) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table.map_err(|e| self.failed(e))?,
        };
        let mut all = self.read_invitations(&table)?;
        all.retain(|invitation| invitation.is_good(now_unix_ms));
        all.sort_by_key(|invitation| invitation.made_unix_ms);
        Ok(all)
    }

    /// Keeps an invitation, and forgets those that are good for nothing any more.
    pub fn add_invitation(&self, invitation: &Invitation) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(INVITATION_TABLE).map_err(|e| self.failed(e))?;
            let over = self.read_invitations(&table)?.into_iter().filter(|other| !other.is_good(invitation.made_unix_ms));
            for over in over.collect::<Vec<_>>() {
                table.remove(over.hash.as_bytes()).map_err(|e| self.failed(e))?;
            }
            self.room(table.len().map_err(|e| self.failed(e))?, "invitations", INVITATIONS)?;
            table.insert(invitation.hash.as_bytes(), invitation.to_json().as_str()).map_err(|e| self.failed(e))?;
            Ok(())
        })
    }

    /// Takes back the invitation of this [name](InviteHash::short), also one that cannot be read. Says whether it was there.
    pub fn remove_invitation(&self, name: &str) -> Result<bool, StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(INVITATION_TABLE).map_err(|e| self.failed(e))?;
            let mut named = Vec::new();
            for row in table.iter().map_err(|e| self.failed(e))? {
                let hash = *row.map_err(|e| self.failed(e))?.0.value();
                named.extend(Some(hash).filter(|hash| InviteHash::from_bytes(*hash).short() == name));
            }
            for hash in &named {
                table.remove(hash).map_err(|e| self.failed(e))?;
            }
            Ok(!named.is_empty())
        })
    }

    /// A node uses an invitation: the rules that let it in are kept and returned; `None` if it is not good, or the node has used it
    /// before and was put out since. While it is still in by it, using it again gives what is left of the same rules, and costs no use.
    /// One step, which is on disk when this returns: however many come at once, it is good for as many as it says.
    pub fn use_invitation(&self, hash: &InviteHash, who: &NodeId, now_unix_ms: u64) -> Result<Option<Use>, StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(INVITATION_TABLE).map_err(|e| self.failed(e))?;
            let Some(mut found) = self.invitation_in(&table, hash)? else { return Ok(None) };
            let mut kept = txn.open_table(RULE_TABLE).map_err(|e| self.failed(e))?;
            let mut rules = found.rules(*who);
            if found.used.contains(who) {
                let mut there = Vec::new();
                for rule in rules.drain(..) {
                    if kept.get(rule.id()).map_err(|e| self.failed(e))?.is_some() {
                        there.push(rule);
                    }
                }
                let is_in = there.iter().any(|rule| rule.action() == Action::Connect);
                let again = Use { rules: there, new: false, good: found.is_good(now_unix_ms) };
                return Ok(is_in.then_some(again));
            }
            if !found.is_good(now_unix_ms) {
                return Ok(None);
            }
            found.used.push(*who);
            table.insert(hash.as_bytes(), found.to_json().as_str()).map_err(|e| self.failed(e))?;
            for rule in &rules {
                self.put_rule(&mut kept, rule, RULES - RULES_LEFT)?;
            }
            Ok(Some(Use { rules, new: true, good: found.is_good(now_unix_ms) }))
        })
    }

    fn invitation_in(
        &self,
        table: &impl ReadableTable<&'static [u8; 32], &'static str>,
        hash: &InviteHash,
    ) -> Result<Option<Invitation>, StoreError> {
        let row = table.get(hash.as_bytes()).map_err(|e| self.failed(e))?;
        row.map(|json| self.parse_invitation(*hash, json.value())).transpose()
    }

    fn parse_invitation(&self, hash: InviteHash, json: &str) -> Result<Invitation, StoreError> {
        let read = Invitation::from_json(hash, json);
        read.map_err(|error| damaged(&self.path, format!("invitation {}: {error}", hash.short())))
    }

    /// Those that can be read. One that cannot is good for nothing, and stops nobody: it is said, and can be taken back by its name.
    fn read_invitations(
        &self,
        table: &impl ReadableTable<&'static [u8; 32], &'static str>,
    ) -> Result<Vec<Invitation>, StoreError> {
        let mut all = Vec::new();
        for row in table.iter().map_err(|e| self.failed(e))? {
            let (hash, json) = row.map_err(|e| self.failed(e))?;
            let hash = InviteHash::from_bytes(*hash.value());
            match self.parse_invitation(hash, json.value()) {
                Ok(invitation) => all.push(invitation),
                Err(error) => {
                    tracing::warn!(%error, "it is good for nothing: `volt invite --withdraw {}` removes it", hash.short())
                }
            }
        }
        Ok(all)
    }

    fn checked(self) -> Result<Self, StoreError> {
        let format =
            self.read()?.open_table(META_TABLE).ok().and_then(|meta| meta.get("format").ok()?.map(|format| format.value()));
        match format {
            Some(FORMAT) => Ok(self),
            Some(format) => Err(StoreError::Format { path: self.path, format }),
            None => Err(damaged(&self.path, "it is no store of a node".to_owned())),
        }
    }

    fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.database.begin_read().map_err(|e| self.failed(e))
    }

    /// Runs one transaction: all of it is kept, or, if it fails, nothing.
    fn write<T>(&self, change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.read_only {
            return Err(StoreError::ReadOnly { path: self.path.clone() });
        }
        let txn = self.database.begin_write().map_err(|e| self.failed(e))?;
        let result = change(&txn)?;
        txn.commit().map_err(|e| self.failed(e))?;
        Ok(result)
    }

    fn peer_in(&self, txn: &WriteTransaction, id: &NodeId) -> Result<Option<Peer>, StoreError> {
        let table = txn.open_table(PEER_TABLE).map_err(|e| self.failed(e))?;
        let row = table.get(id.as_bytes()).map_err(|e| self.failed(e))?;
        row.map(|json| self.parse_peer(*id, json.value())).transpose()
    }

    fn put_peer(&self, txn: &WriteTransaction, peer: &Peer) -> Result<(), StoreError> {
        let before = self.peer_in(txn, &peer.id)?;
        self.put_name(txn, &peer.id, before.as_ref().and_then(|peer| peer.name.as_ref()), peer.name.as_ref())?;
        let mut table = txn.open_table(PEER_TABLE).map_err(|e| self.failed(e))?;
        if before.is_none() {
            self.room(table.len().map_err(|e| self.failed(e))?, "peers", PEERS)?;
        }
        table.insert(peer.id.as_bytes(), peer.to_json().as_str()).map_err(|e| self.failed(e))?;
        Ok(())
    }

    fn put_name(
        &self,
        txn: &WriteTransaction,
        id: &NodeId,
        old: Option<&PeerName>,
        new: Option<&PeerName>,
    ) -> Result<(), StoreError> {
        if old == new {
            return Ok(());
        }
        let mut table = txn.open_table(NAME_TABLE).map_err(|e| self.failed(e))?;
        if let Some(old) = old {
            table.remove(old.as_str()).map_err(|e| self.failed(e))?;
        }
        let Some(new) = new else { return Ok(()) };
        let holder =
            table.insert(new.as_str(), id.as_bytes()).map_err(|e| self.failed(e))?.map(|id| NodeId::from_bytes(*id.value()));
        match holder {
            Some(holder) if holder != *id => Err(StoreError::NameTaken { name: new.clone(), holder }),
            _ => Ok(()),
        }
    }

    fn room(&self, kept: u64, what: &'static str, most: u64) -> Result<(), StoreError> {
        if kept < most { Ok(()) } else { Err(StoreError::Full { what, most }) }
    }

    fn parse_peer(&self, id: NodeId, json: &str) -> Result<Peer, StoreError> {
        Peer::from_json(id, json).map_err(|error| damaged(&self.path, format!("peer {id}: {error}")))
    }

    fn parse_rule(&self, id: &str, json: &str) -> Result<Rule, StoreError> {
        let unknown = |detail: String| StoreError::Rule { path: self.path.clone(), id: id.to_owned(), detail };
        let rule: Rule = serde_json::from_str(json).map_err(|error| unknown(error.to_string()))?;
        if rule.id() == id { Ok(rule) } else { Err(unknown(format!("it reads as {}", rule.id()))) }
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        match error.into() {
            redb::Error::Io(source) => StoreError::Io { doing: "use", path: self.path.clone(), source },
            other => damaged(&self.path, other.to_string()),
        }
    }
}

/// Makes the tables of a new store.
fn fill(path: &Path, database: &Database) -> Result<(), StoreError> {
    let made = || -> Result<(), redb::Error> {
        let txn = database.begin_write()?;
        txn.open_table(META_TABLE)?.insert("format", FORMAT)?;
        txn.open_table(PEER_TABLE)?;
        txn.open_table(NAME_TABLE)?;
        txn.open_table(RULE_TABLE)?;
        Ok(txn.commit()?)
    };
    made().map_err(|error| damaged(path, error.to_string()))
}
