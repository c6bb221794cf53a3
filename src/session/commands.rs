//! What peers asked this node to do as its administrators, and the limits they met there: counted for each peer and command, whichever
//! session it came by, so that who comes again, or asks without end, has no more lines for it. The first of each is written at once, the
//! others each minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::ledger::Limit;
use crate::id::NodeId;
use crate::journal::{By, Entry, Journal, Ruling, Used};
use crate::policy::{Decision, Rule};

/// Kinds counted one by one: of what is permitted, and as many of what is not. It is more than peers and commands make within a minute.
const KINDS: usize = 1_024;

/// What one peer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// A command that policy permits.
    Permitted(&'static str),
    /// One that it does not; none: it permits this peer no command, so none was read.
    Denied(Option<&'static str>),
    /// More than a limit lets it ask.
    Limited(Limit),
}

/// The kinds, and how often each was asked for since it was written last.
#[derive(Debug, Default)]
pub(super) struct Commands(Mutex<HashMap<(NodeId, Kind), Asked>>);

#[derive(Debug)]
struct Asked {
    by: Option<Arc<Rule>>,
    count: u64,
}

impl Commands {
    /// One more; the first of its kind is written.
    pub fn count(&self, journal: &Journal, (peer, kind): (NodeId, Kind), decision: Option<&Decision>) {
        let by = decision.and_then(|decision| decision.rule.clone());
        let mut asked = self.0.lock().expect("nothing panics while it is held");
        if let Some(known) = asked.get_mut(&(peer, kind)) {
            if known.by == by {
                known.count += 1;
                return;
            }
            write(journal, peer, kind, known);
            known.by = by;
            return journal.note(entry(peer, kind, known.by.as_deref(), 1));
        }
        let is_permitted = |kind: &Kind| matches!(kind, Kind::Permitted(_));
        let kinds = asked.keys().filter(|(_, other)| is_permitted(other) == is_permitted(&kind)).count();
        if kinds < KINDS {
            journal.note(entry(peer, kind, by.as_deref(), 1));
            asked.insert((peer, kind), Asked { by, count: 0 });
        } else {
            // Without the command it takes the peer's own room in the journal.
            journal.note(used(peer, None, is_permitted(&kind), by.as_deref(), 1));
        }
    }

    /// Writes what was counted since that was done last, and forgets what was not asked for meanwhile.
    pub fn write(&self, journal: &Journal) {
        let mut asked = self.0.lock().expect("nothing panics while it is held");
        asked.retain(|(peer, kind), known| write(journal, *peer, *kind, known));
    }
}

/// Says whether there was something to write.
fn write(journal: &Journal, peer: NodeId, kind: Kind, known: &mut Asked) -> bool {
    let count = std::mem::take(&mut known.count);
    if count > 0 {
        journal.note(entry(peer, kind, known.by.as_deref(), count));
    }
    count > 0
}

fn entry(peer: NodeId, kind: Kind, by: Option<&Rule>, count: u64) -> Entry {
    match kind {
        Kind::Permitted(command) => used(peer, Some(command), true, by, count),
        Kind::Denied(command) => used(peer, command, false, by, count),
        Kind::Limited(limit) => Entry::Limit { peer, limit: limit.name(), count },
    }
}

fn used(peer: NodeId, command: Option<&str>, permitted: bool, by: Option<&Rule>, count: u64) -> Entry {
    let decision = if permitted { Ruling::Permit } else { Ruling::Deny };
    Entry::Administer(Used { peer, resource: command.map(Into::into), decision, by: by.map(By::from), count })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::journal::{Bounds, path};
    use crate::policy::Verdict;

    fn peer(n: u16) -> NodeId {
        let mut id = [7; 32];
        id[..2].copy_from_slice(&n.to_le_bytes());
        NodeId::from_bytes(id)
    }

    fn journal() -> (Journal, impl FnOnce() -> Vec<Value>) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), Bounds { bytes: 1 << 20, files: 2 }).unwrap();
        let written = journal.clone();
        let read = move || {
            written.close();
            let text = std::fs::read_to_string(path(dir.path(), 0)).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        (journal, read)
    }

    #[test]
    fn a_command_without_end_is_a_line_at_once_and_one_a_minute_and_hides_no_other() {
        let ((journal, read), commands) = (journal(), Commands::default());
        let permit = Decision { verdict: Verdict::Permit, rule: None };
        let count = |command| commands.count(&journal, (peer(1), Kind::Permitted(command)), Some(&permit));
        (0..5_000).for_each(|_| count("status"));
        count("policy/allow");
        (0..3).for_each(|_| commands.count(&journal, (peer(1), Kind::Limited(Limit::Administer)), None));
        commands.write(&journal);
        commands.write(&journal);
        assert!(commands.0.lock().unwrap().is_empty(), "what nobody asks for is forgotten");
        let lines = read();
        let told = |key: &str, of: &str| -> Vec<u64> {
            lines.iter().filter(|line| line[key] == of).map(|line| line["count"].as_u64().unwrap()).collect()
        };
        assert_eq!((told("resource", "status"), told("resource", "policy/allow")), (vec![1, 4_999], vec![1]));
        assert_eq!(told("limit", "administer"), [1, 2]);
    }

    #[test]
    fn those_without_leave_take_no_room_from_those_who_have_it() {
        let ((journal, read), commands) = (journal(), Commands::default());
        let deny = Decision { verdict: Verdict::Deny, rule: None };
        (0..2 * KINDS as u16).for_each(|n| commands.count(&journal, (peer(n), Kind::Denied(None)), Some(&deny)));
        assert_eq!(commands.0.lock().unwrap().len(), KINDS);
        let permit = Decision { verdict: Verdict::Permit, rule: None };
        (0..2).for_each(|_| commands.count(&journal, (peer(0), Kind::Permitted("down")), Some(&permit)));
        let lines = read();
        assert_eq!(lines.iter().filter(|line| line["resource"] == "down").count(), 1);
        assert_eq!(lines.iter().filter(|line| line["decision"] == "deny").count(), 2 * KINDS);
    }
}
