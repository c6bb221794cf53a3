//! What came of it all: by deed, how it was seen.

use std::collections::BTreeMap;

use crate::plan::{Deed, Plan};

/// How one circuit went.
#[derive(Debug)]
pub struct Outcome {
    /// Something other than what was said has arrived, or not arrived.
    pub changed: bool,
    /// All that was said arrived, and the circuit was closed as it should be.
    pub whole: bool,
    /// Nothing moved until the carrier ended it all.
    pub waited: bool,
    /// Why it ended, at the end that saw it.
    pub reason: String,
    /// What an end has taken for the other's, and was not.
    pub accepted: Vec<String>,
}

#[derive(Default)]
struct Row {
    changed: u64,
    unchanged: u64,
    reasons: BTreeMap<String, u64>,
}

#[derive(Default)]
pub struct Table {
    rows: BTreeMap<Deed, Row>,
    pub accepted: Vec<String>,
    /// Changed, and nobody saw it though all was said: a piece of a record is waited for, and what is carried beside the streams' own bytes
    /// may be awaited by nobody. Whole streams that are not the other end's are always seen.
    pub unseen: Vec<String>,
}

impl Table {
    pub fn add(&mut self, plan: &Plan, outcome: Outcome) {
        let row = self.rows.entry(plan.deed).or_default();
        if !outcome.changed {
            row.unchanged += 1;
        } else {
            row.changed += 1;
            let how = match (outcome.whole, outcome.waited) {
                (true, _) => "no difference".into(),
                (_, true) => format!("waits until it is cut off: {}", outcome.reason),
                _ => outcome.reason.clone(),
            };
            *row.reasons.entry(how).or_default() += 1;
        }
        self.accepted.extend(outcome.accepted.iter().map(|what| format!("{what}: {plan:?}")));
        // A control stream has bytes that nobody reads: a version in the head of each record (RFC 8446, section 5.1), and what is said in
        // change_cipher_spec. What follows a good-bye is not read either.
        let may_be_unseen = plan.deed.is_honest() || plan.way.0 == 0 || plan.deed == Deed::Stop;
        if outcome.changed && outcome.whole && !may_be_unseen {
            assert!(plan.deed <= Deed::DropStream, "a stream that nobody has opened was taken for one: {outcome:?}: {plan:?}");
            self.unseen.push(format!("{outcome:?}: {plan:?}"));
        }
    }

    pub fn join(&mut self, other: Self) {
        for (deed, row) in other.rows {
            let mine = self.rows.entry(deed).or_default();
            mine.changed += row.changed;
            mine.unchanged += row.unchanged;
            row.reasons.into_iter().for_each(|(why, count)| *mine.reasons.entry(why).or_default() += count);
        }
        self.accepted.extend(other.accepted);
        self.unseen.extend(other.unseen);
    }

    pub fn all_changed(&self) -> u64 {
        self.rows.values().map(|row| row.changed).sum()
    }

    /// How many changes there were of this deed.
    pub fn changed(&self, deed: Deed) -> u64 {
        self.rows.get(&deed).map_or(0, |row| row.changed)
    }

    pub fn print(&self) {
        let (mut changed, mut unchanged) = (0, 0);
        for (deed, row) in &self.rows {
            println!("{deed}: {} ({} that changed nothing)", row.changed, row.unchanged);
            let mut reasons: Vec<_> = row.reasons.iter().collect();
            reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            reasons.iter().for_each(|(why, count)| println!("    {count:>7}  {why}"));
            changed += row.changed;
            unchanged += row.unchanged;
        }
        self.unseen.iter().take(5).for_each(|unseen| println!("unseen: {unseen}"));
        println!(
            "in all {changed}, and {unchanged} that changed nothing; accepted {}, unseen {}",
            self.accepted.len(),
            self.unseen.len()
        );
    }
}
