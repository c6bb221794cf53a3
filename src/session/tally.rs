//! What the peer of one session was let do and what not: remembered, so that a call asks policy once, and counted, so that the journal
//! has a line for many calls. The first of each kind is noted at once; the others each minute, and when the session ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::ledger::{Ledger, Limit};
use crate::id::NodeId;
use crate::journal::{By, Called, Entry, Ruling, Used};
use crate::policy::{Action, Decision, PolicyHandle, Rule};

/// Methods remembered for one session. Only those that exist are asked for often, and there are fewer of those.
const METHODS: usize = 1_024;
/// Of these, those that are denied: their names are whatever the peer likes.
const DENIED: usize = 256;
/// Other things that are counted one by one for one session.
const USES: usize = 256;

/// What one peer asked for, and what was said to it.
#[derive(Debug)]
pub(super) struct Tally {
    peer: NodeId,
    policy: PolicyHandle,
    ledger: Arc<Ledger>,
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    methods: HashMap<Box<str>, Method>,
    /// Methods beyond those: denied, and permitted.
    others: [Method; 2],
    denied_known: usize,
    uses: HashMap<Action, HashMap<Box<str>, Use>>,
    uses_known: usize,
    other_uses: HashMap<(Action, Ruling), u64>,
    limits: [Option<u64>; Limit::ALL.len()],
    /// Something was counted that is not written yet, and whoever writes it knows.
    due: bool,
}

/// What policy says of a method, and what was counted since it was written last.
#[derive(Debug, Default)]
struct Method {
    generation: u64,
    permitted: bool,
    by: Option<Arc<Rule>>,
    noted: bool,
    calls: u64,
    errors: u64,
    /// Calls beyond a rate; none if there was no such call so far.
    rated: Option<u64>,
}

#[derive(Debug)]
struct Use {
    ruling: Ruling,
    by: Option<Arc<Rule>>,
    count: u64,
}

impl Default for Counts {
    fn default() -> Self {
        // Of those nothing is the first of its kind: they are only counted.
        let other = |permitted| Method { permitted, noted: true, rated: Some(0), ..Method::default() };
        Self {
            methods: HashMap::new(),
            others: [false, true].map(other),
            denied_known: 0,
            uses: HashMap::new(),
            uses_known: 0,
            other_uses: HashMap::new(),
            limits: Default::default(),
            due: false,
        }
    }
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(peer: NodeId, policy: PolicyHandle, ledger: Arc<Ledger>) -> Self {
        Self { peer, policy, ledger, counts: Mutex::default() }
    }

    /// The policy in force.
    pub fn policy(&self) -> &PolicyHandle {
        &self.policy
    }

    /// Whether the peer may call this method, by the policy in force now. Counts nothing.
    pub fn may_call(&self, method: &str) -> bool {
        self.with(&mut self.counts(), method, |known| known.permitted)
    }

    /// The same, of a call that the peer makes.
    pub fn call(&self, method: &str) -> bool {
        let mut counts = self.counts();
        let (permitted, later) = self.with(&mut counts, method, |known| {
            let later = std::mem::replace(&mut known.noted, true);
            if later {
                known.calls += 1;
            } else {
                self.note_call(Some(method), known, 1, 0);
            }
            (known.permitted, later)
        });
        self.due(&mut counts, later);
        permitted
    }

    /// A call of the peer's was answered with an error.
    pub fn failed(&self, method: &str) {
        let mut counts = self.counts();
        self.with(&mut counts, method, |known| known.errors += 1);
        self.due(&mut counts, true);
    }

    /// A call of the peer's that policy permits was turned away by a rate.
    pub fn rated(&self, method: &str) {
        let mut counts = self.counts();
        let later = self.with(&mut counts, method, |known| match &mut known.rated {
            Some(rated) => {
                *rated += 1;
                true
            }
            first => {
                *first = Some(0);
                self.note_rated(Some(method), 1);
                false
            }
        });
        self.due(&mut counts, later);
    }

    /// Whether the peer may do that, of something it asks for, by the policy in force now.
    pub fn uses(&self, action: Action, resource: &str) -> bool {
        let decision = self.policy.decide(&self.peer, action, resource);
        if !decision.is_permit() {
            self.ledger.count_denied();
        }
        if self.ledger.journal().is_kept() {
            let mut counts = self.counts();
            let later = self.used(&mut counts, action, resource, &decision);
            self.due(&mut counts, later);
        }
        decision.is_permit()
    }

    /// A limit turned something of the peer's away.
    pub fn limited(&self, limit: Limit) {
        self.ledger.count_limit(limit);
        let mut counts = self.counts();
        let later = match &mut counts.limits[limit as usize] {
            Some(count) => {
                *count += 1;
                true
            }
            first => {
                *first = Some(0);
                self.note_limit(limit, 1);
                false
            }
        };
        self.due(&mut counts, later);
    }

    /// Writes what was counted since it was written last.
    pub fn write(&self) {
        let mut counts = self.counts();
        counts.due = false;
        let Counts { methods, others, uses, other_uses, limits, .. } = &mut *counts;
        methods.iter_mut().for_each(|(method, known)| self.write_method(Some(method), known));
        others.iter_mut().for_each(|known| self.write_method(None, known));
        for (action, uses) in uses {
            uses.iter_mut().for_each(|(resource, known)| self.write_use(*action, resource, known));
        }
        for ((action, decision), count) in other_uses.drain() {
            self.ledger.note(Entry::used(action, Used { peer: self.peer, resource: None, decision, by: None, count }));
        }
        for (limit, count) in Limit::ALL.into_iter().zip(limits) {
            if let Some(count @ 1..) = count.as_mut().map(std::mem::take) {
                self.note_limit(limit, count);
            }
        }
    }

    /// Does this with what is known of a method, which is looked up once, and asked of policy if that has changed or there is nothing.
    fn with<R>(&self, counts: &mut Counts, method: &str, act: impl FnOnce(&mut Method) -> R) -> R {
        let generation = self.policy.generation();
        if let Some(known) = counts.methods.get_mut(method) {
            if known.generation != generation {
                self.renew(method, known, generation);
            }
            return act(known);
        }
        let fresh = self.decide(method, generation);
        if counts.methods.len() < METHODS && (fresh.permitted || counts.denied_known < DENIED) {
            counts.denied_known += usize::from(!fresh.permitted);
            return act(counts.methods.entry(method.into()).or_insert(fresh));
        }
        act(&mut counts.others[usize::from(fresh.permitted)])
    }

    fn decide(&self, method: &str, generation: u64) -> Method {
        let decision = self.policy.decide(&self.peer, Action::Call, method);
        Method { generation, permitted: decision.is_permit(), by: decision.rule, ..Method::default() }
    }

    /// Another policy is in force. Only where it says something else a new account begins.
    fn renew(&self, method: &str, known: &mut Method, generation: u64) {
        let fresh = self.decide(method, generation);
        if (known.permitted, &known.by) == (fresh.permitted, &fresh.by) {
            known.generation = generation;
            return;
        }
        self.write_method(Some(method), known);
        *known = fresh;
    }

    /// Counts something that was asked for; the first of its kind is noted. Says whether there is something to be written later.
    fn used(&self, counts: &mut Counts, action: Action, resource: &str, decision: &Decision) -> bool {
        let (ruling, by) = (Ruling::of(decision), decision.rule.clone());
        if let Some(known) = counts.uses.get_mut(&action).and_then(|uses| uses.get_mut(resource)) {
            if (known.ruling, &known.by) == (ruling, &by) {
                known.count += 1;
                return true;
            }
            self.write_use(action, resource, known);
            *known = Use { ruling, by, count: 1 };
            self.write_use(action, resource, known);
        } else if counts.uses_known < USES {
            let mut fresh = Use { ruling, by, count: 1 };
            self.write_use(action, resource, &mut fresh);
            counts.uses.entry(action).or_default().insert(resource.into(), fresh);
            counts.uses_known += 1;
        } else {
            *counts.other_uses.entry((action, ruling)).or_default() += 1;
            return true;
        }
        false
    }

    fn write_method(&self, method: Option<&str>, known: &mut Method) {
        let (calls, errors) = (std::mem::take(&mut known.calls), std::mem::take(&mut known.errors));
        if calls > 0 || errors > 0 {
            self.note_call(method, known, calls, errors);
        }
        if let Some(count @ 1..) = known.rated.as_mut().map(std::mem::take) {
            self.note_rated(method, count);
        }
    }

    fn write_use(&self, action: Action, resource: &str, known: &mut Use) {
        let count = std::mem::take(&mut known.count);
        if count > 0 {
            let (resource, by) = (Some(resource.into()), known.by.as_deref().map(By::from));
            self.ledger.note(Entry::used(action, Used { peer: self.peer, resource, decision: known.ruling, by, count }));
        }
    }

    fn note_call(&self, method: Option<&str>, known: &Method, count: u64, errors: u64) {
        if self.ledger.journal().is_kept() {
            let decision = if known.permitted { Ruling::Permit } else { Ruling::Deny };
            let (method, by) = (method.map(Into::into), known.by.as_deref().map(By::from));
            self.ledger.note(Entry::Call(Called { peer: self.peer, method, decision, by, count, errors }));
        }
    }

    fn note_rated(&self, method: Option<&str>, count: u64) {
        if self.ledger.journal().is_kept() {
            let (method, by) = (method.map(Into::into), None);
            self.ledger.note(Entry::Call(Called { peer: self.peer, method, decision: Ruling::Rate, by, count, errors: 0 }));
        }
    }

    fn note_limit(&self, limit: Limit, count: u64) {
        self.ledger.note(Entry::Limit { peer: self.peer, limit: limit.name(), count });
    }

    /// Lets whoever writes it know, once until it is written.
    fn due(&self, counts: &mut Counts, due: bool) {
        if due && !std::mem::replace(&mut counts.due, true) {
            self.ledger.is_due();
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("nothing panics while it is held")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::journal::{Bounds, Journal, path};
    use crate::policy::{Effect, Policy, PolicyInput, Source, Subject};

    const WHO: NodeId = NodeId::from_bytes([7; 32]);

    fn rule(effect: Effect, action: Action, resource: &str) -> Rule {
        Rule::new(effect, Subject::Anyone, action, resource.parse().unwrap(), Source::Config).unwrap()
    }

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy::new(PolicyInput { rules, ..PolicyInput::default() }).unwrap()
    }

    /// A tally, and what it has written when it is given back.
    fn tally(policy: Policy) -> (Tally, impl FnOnce(Tally) -> Vec<Value>) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), Bounds { bytes: 1 << 20, files: 2 }).unwrap();
        let tally = Tally::new(WHO, PolicyHandle::new(policy), Arc::new(Ledger::new(journal)));
        let read = move |tally: Tally| {
            tally.ledger.journal().close();
            let text = std::fs::read_to_string(path(dir.path(), 0)).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        (tally, read)
    }

    fn calls(lines: &[Value], method: &str) -> Vec<(String, u64, u64)> {
        let of = lines.iter().filter(|line| line["method"] == method);
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        of.map(|line| (line["decision"].as_str().unwrap().to_owned(), number(&line["count"]), number(&line["errors"]))).collect()
    }

    #[test]
    fn the_first_call_of_a_kind_is_a_line_and_the_others_together_another() {
        let permit = rule(Effect::Permit, Action::Call, "a/*");
        let (tally, read) = tally(policy(vec![permit.clone()]));
        for _ in 0..100 {
            assert!(tally.call("a/b"));
            assert!(!tally.call("c/d"));
        }
        tally.failed("a/b");
        tally.rated("a/b");
        tally.rated("a/b");
        tally.write();
        tally.write();
        let lines = read(tally);
        let line = |decision: &str, count, errors| (decision.to_owned(), count, errors);
        assert_eq!(calls(&lines, "a/b"), [line("permit", 1, 0), line("rate", 1, 0), line("permit", 99, 1), line("rate", 1, 0)]);
        assert_eq!(calls(&lines, "c/d"), [line("deny", 1, 0), line("deny", 99, 0)]);
        assert_eq!(lines[0]["rule"], permit.id());
        assert_eq!(lines[1].get("rule"), None, "no rule says so");
    }

    #[test]
    fn a_question_is_no_call() {
        let (tally, read) = tally(policy(vec![rule(Effect::Permit, Action::Call, "a/*")]));
        assert!(tally.may_call("a/b") && !tally.may_call("c/d"));
        assert!(tally.call("a/b"));
        tally.write();
        assert_eq!(read(tally).len(), 1);
    }

    #[test]
    fn another_policy_is_heard_at_once_and_begins_a_new_account_where_it_says_something_else() {
        let (tally, read) = tally(policy(vec![rule(Effect::Permit, Action::Call, "*")]));
        (0..5).for_each(|_| assert!(tally.call("a/b") && tally.call("c/d")));
        tally.policy.replace(policy(vec![rule(Effect::Permit, Action::Call, "*"), rule(Effect::Deny, Action::Call, "a/*")]));
        (0..3).for_each(|_| assert!(!tally.call("a/b") && tally.call("c/d")));
        tally.write();
        let lines = read(tally);
        let line = |decision: &str, count| (decision.to_owned(), count, 0);
        assert_eq!(calls(&lines, "a/b"), [line("permit", 1), line("permit", 4), line("deny", 1), line("deny", 2)]);
        assert_eq!(calls(&lines, "c/d"), [line("permit", 1), line("permit", 7)]);
    }

    #[test]
    fn methods_without_end_are_counted_together() {
        let (tally, read) = tally(policy(vec![rule(Effect::Permit, Action::Call, "a/*")]));
        for n in 0..DENIED + 50 {
            assert!(!tally.call(&format!("x/{n}")));
        }
        (0..METHODS).for_each(|n| assert!(tally.may_call(&format!("a/{n}"))));
        assert!(tally.call("a/late"));
        tally.write();
        let counts = tally.counts();
        assert_eq!(counts.methods.len(), METHODS);
        drop(counts);
        let lines = read(tally);
        let together: Vec<_> = lines.iter().filter(|line| line.get("method").is_none() && line["event"] == "call").collect();
        let told: Vec<_> =
            together.iter().map(|line| (line["decision"].as_str().unwrap(), line["count"].as_u64().unwrap())).collect();
        assert_eq!(told, [("deny", 50), ("permit", 1)]);
    }

    #[test]
    fn what_else_is_asked_for_is_counted_by_what_it_is_about() {
        let (tally, read) = tally(policy(vec![rule(Effect::Permit, Action::Publish, "news")]));
        (0..3).for_each(|_| assert!(tally.uses(Action::Publish, "news") && !tally.uses(Action::Subscribe, "news")));
        (0..2 * USES).for_each(|n| assert!(!tally.uses(Action::Forward, &n.to_string())));
        tally.limited(Limit::Tunnels);
        tally.limited(Limit::Tunnels);
        tally.write();
        assert_eq!(tally.ledger.denied(), 3 + 2 * USES as u64);
        let lines = read(tally);
        let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
        assert_eq!(of("publish").iter().map(|line| line["count"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(of("subscribe")[0]["decision"], "deny");
        assert_eq!(of("forward").len(), USES - 2 + 1);
        assert_eq!(of("forward").last().unwrap()["count"].as_u64(), Some(USES as u64 + 2));
        assert_eq!(of("limit").iter().map(|line| line["count"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 1]);
    }
}
