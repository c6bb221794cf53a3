//! Who may do what: [`Policy::decide`] answers, and names the rule that said so. It reads no file, keeps no list of sessions
//! and enforces nothing: whoever asks acts on the answer.
//!
//! # How it decides
//! 1. Whoever is denied `connect` is denied everything.
//! 2. Otherwise, if any rule that fits denies, it is denied: **deny wins**, however exact the permits are.
//! 3. Otherwise, if any rule that fits permits, it is permitted. Being permitted anything at all permits `connect`,
//!    and so does having been dialled by this node's owner, which permits nothing else.
//! 4. Otherwise it is denied: **unknown is denied**. Only about `connect` the owner may be [asked](PolicyInput::ask) instead, and
//!    until there is an answer that permits nothing either.
//!
//! The order in which rules were written never matters, not even for which of several rules is named.
//!
//! # Rules
//! A rule is `allow|deny SUBJECT ACTION RESOURCE`. The subject is a `did:key:…`, a `@group` or `*`; the actions are those of
//! [`Action`]; the resource is a [`Pattern`]:
//!
//! ```text
//! pattern = "*" / segment *( "/" segment )        at most 511 bytes
//! segment = 1*( character / "*" )                 never "**"; no control characters
//! ```
//! `*` inside a segment stands for any characters but `/`, also for none. A pattern matches names with just as many segments:
//! `greeter/*` matches `greeter/hello`, not `greeter` nor `greeter/a/b`. The pattern `*` alone matches every name.

mod action;
mod grant;
mod handle;
mod pattern;
mod rule;
mod subject;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

pub use action::{Action, ActionError};
pub use grant::{Grant, GrantError};
pub use handle::{PolicyHandle, PolicyWatch};
pub use pattern::{Pattern, PatternError, RESOURCE_BYTES};
pub use rule::{Effect, Rule, RuleError, Source};
use serde::{Serialize, Serializer};
pub use subject::{GROUP_NAME_BYTES, GroupName, Subject, SubjectError};

use crate::id::NodeId;

/// Most rules of one policy, from all sources together.
pub const RULES: usize = 16_384;
/// Most groups of one policy.
pub const GROUPS: usize = 1_024;
/// Most members of all groups together; who is in two groups counts twice.
pub const GROUP_MEMBERS: usize = 100_000;

/// The members of each group.
pub type Groups = BTreeMap<GroupName, BTreeSet<NodeId>>;

/// What a policy is made of. Everything is empty by default, and an empty policy denies everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyInput {
    /// The rules of the configuration and of the store, in any order.
    pub rules: Vec<Rule>,
    /// The groups that rules may name.
    pub groups: Groups,
    /// The nodes this node's owner dials: they may connect, unless a rule denies it.
    pub dialled: BTreeSet<NodeId>,
    /// `--open`: anyone may connect and call what this node itself serves, unless a rule denies it. See [`Rule::open`].
    pub open: bool,
    /// Whether the owner is to be asked about those who want to connect and whom no rule is about.
    pub ask: bool,
    /// For whom this node carries circuits, besides those whom rules about `relay` permit it. See [`Rule::relay`].
    pub relay: Option<RelayMode>,
}

/// For whom a relay carries circuits, unless a rule denies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelayMode {
    /// For nodes that its owner knows, to nodes that its owner knows: a rule names each of them, or this node dials it.
    Closed,
    /// For anyone, to anyone who is attached. Whoever its owner does not know is a guest, and has less.
    Open,
}

/// Who may do what. It never changes: a change makes another one, which [`PolicyHandle`] puts in force.
///
/// ```
/// # use voltmesh::{id::NodeId, policy::*};
/// let who = NodeId::from_bytes([7; 32]);
/// let rule = Rule::new(Effect::Permit, Subject::Node(who), Action::Call, "greeter/*".parse()?, Source::Config)?;
/// let policy = Policy::new(PolicyInput { rules: vec![rule], ..Default::default() })?;
/// assert!(policy.decide(&who, Action::Call, "greeter/hello").is_permit());
/// assert!(policy.decide(&who, Action::Connect, "").is_permit());
/// assert!(!policy.decide(&who, Action::Call, "vault/open").is_permit());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// In the order of their rank, each once.
    rules: Vec<Arc<Rule>>,
    /// Where in `rules` those of one subject about one action are.
    index: HashMap<(Key, Action), Vec<usize>>,
    /// The numbers of the groups.
    groups: HashMap<GroupName, usize>,
    /// The groups each node is in, in the order of their names.
    groups_of: HashMap<NodeId, Vec<usize>>,
    dialled: HashSet<NodeId>,
    ask: bool,
    /// The rule that stands for all pairs of nodes that are known.
    relay_known: Option<Arc<Rule>>,
}

/// A subject, small enough to look up on every call. Groups are numbered in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Node(NodeId),
    Group(usize),
    Anyone,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Verdict {
    /// Go on.
    Permit,
    /// Refuse. Strangers are not told why.
    Deny,
    /// Ask this node's owner, who then makes a rule. Until there is one this permits nothing.
    Prompt,
}

/// An answer and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[must_use = "a decision does nothing by itself"]
pub struct Decision {
    /// The answer.
    #[serde(rename = "decision")]
    pub verdict: Verdict,
    /// The rule that said so; none if no rule fits.
    #[serde(serialize_with = "as_rule")]
    pub rule: Option<Arc<Rule>>,
}

/// Why a policy cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A rule names a group that is not there; if it denies, leaving it out would let somebody in.
    #[error("rule {id} ({rule}, in {source_}) names a group that is not in volt.toml: add it under [groups], or remove the rule", id = rule.id(), source_ = rule.source())]
    UnknownGroup {
        /// The rule.
        rule: Box<Rule>,
    },
    /// Over [`RULES`], [`GROUPS`] or [`GROUP_MEMBERS`].
    #[error("a policy has at most {most} {what}; this one has {got}: remove some, or let groups and wildcards stand for many")]
    TooMany {
        /// Rules, groups or members.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there may be.
        most: usize,
    },
}

impl Policy {
    /// Makes a policy. Refuses rules about groups that are not there, and more than [`RULES`], [`GROUPS`] or [`GROUP_MEMBERS`].
    pub fn new(input: PolicyInput) -> Result<Self, PolicyError> {
        let PolicyInput { mut rules, groups, dialled, open, ask, relay } = input;
        if open {
            rules.extend(Rule::open());
        }
        if relay == Some(RelayMode::Open) {
            rules.push(Rule::relay(RelayMode::Open));
        }
        bound("rules", rules.len(), RULES)?;
        bound("groups", groups.len(), GROUPS)?;
        bound("group members", groups.values().map(BTreeSet::len).sum(), GROUP_MEMBERS)?;
        rules.sort_by(|a, b| a.rank().cmp(&b.rank()));
        rules.dedup();
        let mut index: HashMap<_, Vec<usize>> = HashMap::new();
        let numbers: HashMap<GroupName, usize> = groups.keys().cloned().zip(0..).collect();
        for (at, rule) in rules.iter().enumerate() {
            let key = match rule.subject() {
                Subject::Node(id) => Key::Node(*id),
                Subject::Anyone => Key::Anyone,
                Subject::Group(name) => match numbers.get(name) {
                    Some(number) => Key::Group(*number),
                    None => return Err(PolicyError::UnknownGroup { rule: Box::new(rule.clone()) }),
                },
            };
            index.entry((key, rule.action())).or_default().push(at);
        }
        let mut groups_of: HashMap<NodeId, Vec<usize>> = HashMap::new();
        for (members, number) in groups.values().zip(0..) {
            members.iter().for_each(|member| groups_of.entry(*member).or_default().push(number));
        }
        let relay_known = relay.filter(|mode| *mode == RelayMode::Closed).map(|mode| Arc::new(Rule::relay(mode)));
        let (rules, dialled) = (rules.into_iter().map(Arc::new).collect(), dialled.into_iter().collect());
        Ok(Self { rules, index, groups: numbers, groups_of, dialled, ask, relay_known })
    }

    /// Whether `who` may do that, and which rule says so. `resource` may be text a peer chose; for [`Action::Connect`] it is
    /// not looked at.
    ///
    /// Takes time linear in the rules about `who`, its groups and everyone, and in the length of the resource.
    pub fn decide(&self, who: &NodeId, action: Action, resource: &str) -> Decision {
        if let Some(rule) = self.find(who, Action::Connect, Effect::Deny, None) {
            return Decision::by(Verdict::Deny, rule);
        }
        if action == Action::Connect {
            return self.decide_connect(who);
        }
        if resource.len() > RESOURCE_BYTES {
            return Decision::unknown();
        }
        if let Some(rule) = self.find(who, action, Effect::Deny, Some(resource)) {
            return Decision::by(Verdict::Deny, rule);
        }
        let permits = self.find(who, action, Effect::Permit, Some(resource));
        let permits = permits.or_else(|| self.relay_known.as_ref().filter(|_| self.is_between_known(who, action, resource)));
        permits.map_or_else(Decision::unknown, |rule| Decision::by(Verdict::Permit, rule))
    }

    /// Whether this is about a circuit from one node that is known to another.
    fn is_between_known(&self, who: &NodeId, action: Action, resource: &str) -> bool {
        action == Action::Relay && self.is_trusted(who) && resource.parse().is_ok_and(|to| self.is_trusted(&to))
    }

    /// Whether this node's owner knows `who`: a rule that permits something is about that node or a group it is in, or this node
    /// dials it. Rules about everyone make nobody trusted, and whoever is denied `connect` is not.
    pub fn is_trusted(&self, who: &NodeId) -> bool {
        if self.find(who, Action::Connect, Effect::Deny, None).is_some() {
            return false;
        }
        let groups = self.groups_of.get(who).into_iter().flatten().map(|group| Key::Group(*group));
        let mut keys = std::iter::once(Key::Node(*who)).chain(groups);
        let permits = |at: &usize| self.rules[*at].effect() == Effect::Permit;
        let named =
            |key| Action::ALL.iter().any(|action| self.index.get(&(key, *action)).is_some_and(|at| at.iter().any(permits)));
        self.dialled.contains(who) || keys.any(named)
    }

    /// Whether `who` is in that group. One that is not there has no members.
    pub fn is_member(&self, who: &NodeId, group: &GroupName) -> bool {
        let number = self.groups.get(group);
        number.is_some_and(|number| self.groups_of.get(who).is_some_and(|groups| groups.contains(number)))
    }

    /// Whether `who` may do this to some resource, whichever: what is asked before anything is read that would name one. Of a rule that
    /// denies only some resources it says nothing.
    pub fn permits_some(&self, who: &NodeId, action: Action) -> bool {
        self.find(who, Action::Connect, Effect::Deny, None).is_none() && self.find(who, action, Effect::Permit, None).is_some()
    }

    /// The rules, each once, in a fixed order: those about single nodes, about groups, about everyone.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(Arc::as_ref)
    }

    /// The answer and its reason as a sentence, for `policy check`. For this node's owner only.
    pub fn explain(&self, who: &NodeId, action: Action, resource: &str) -> String {
        let Decision { verdict, rule } = self.decide(who, action, resource);
        let Some(rule) = rule else {
            if verdict == Verdict::Prompt {
                return format!("prompt: no rule is about {who}, so this node's owner is asked whether it may connect");
            }
            let resource = if action == Action::Connect { String::new() } else { format!(" {resource:?}") };
            return format!("deny: no rule permits {who} to {action}{resource}");
        };
        let member = match rule.subject() {
            Subject::Group(name) => format!(" (it is in @{name})"),
            _ => String::new(),
        };
        let why = match (verdict, rule.source()) {
            (_, Source::Dialled) => ": this node dials it".to_owned(),
            (Verdict::Deny, _) if rule.action() != action => ": who may not connect may do nothing".to_owned(),
            (Verdict::Permit, _) if rule.action() != action => ": who may do something may connect".to_owned(),
            _ => String::new(),
        };
        let verdict = if verdict == Verdict::Permit { "permit" } else { "deny" };
        format!("{verdict}: rule {} ({}) says: {rule}{member}{why}", rule.id(), rule.source())
    }

    fn decide_connect(&self, who: &NodeId) -> Decision {
        // Connect itself comes first in the list, so it is named before what merely implies it.
        let implied = Action::ALL.iter().find_map(|action| self.find(who, *action, Effect::Permit, None));
        match implied {
            Some(rule) => Decision::by(Verdict::Permit, rule),
            None if self.dialled.contains(who) => {
                Decision { verdict: Verdict::Permit, rule: Some(Arc::new(Rule::dialled(*who))) }
            }
            None if self.ask => Decision { verdict: Verdict::Prompt, rule: None },
            None => Decision::unknown(),
        }
    }

    /// The first rule of this kind about `who`; without a resource, about any resource.
    fn find(&self, who: &NodeId, action: Action, effect: Effect, resource: Option<&str>) -> Option<&Arc<Rule>> {
        let groups = self.groups_of.get(who).into_iter().flatten().map(|group| Key::Group(*group));
        let keys = std::iter::once(Key::Node(*who)).chain(groups).chain(std::iter::once(Key::Anyone));
        let about = keys.filter_map(|key| self.index.get(&(key, action))).flatten().map(|at| &self.rules[*at]);
        about
            .into_iter()
            .find(|rule| rule.effect() == effect && resource.is_none_or(|resource| rule.resource().matches(resource)))
    }
}

impl Decision {
    /// Whether to go on.
    pub fn is_permit(&self) -> bool {
        self.verdict == Verdict::Permit
    }

    fn by(verdict: Verdict, rule: &Arc<Rule>) -> Self {
        Self { verdict, rule: Some(rule.clone()) }
    }

    fn unknown() -> Self {
        Self { verdict: Verdict::Deny, rule: None }
    }
}

fn as_rule<S: Serializer>(rule: &Option<Arc<Rule>>, serializer: S) -> Result<S::Ok, S::Error> {
    rule.as_deref().serialize(serializer)
}

fn bound(what: &'static str, got: usize, most: usize) -> Result<(), PolicyError> {
    if got > most { Err(PolicyError::TooMany { what, got, most }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
