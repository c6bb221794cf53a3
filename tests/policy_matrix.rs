//! The decision matrix, against an oracle: the guide of [`voltmesh::policy`] written down once more, as slowly and as plainly as it can be,
//! and asked the same questions as the policy itself. Whatever the rules, their order and their groups are, both say the same.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use voltmesh::id::NodeId;
use voltmesh::policy::{
    Action, Effect, GroupName, Groups, Pattern, Policy, PolicyInput, RESOURCE_BYTES, RelayMode, Rule, Source, Subject, Verdict,
};

/// How many nodes there are; the last is in no rule and no group.
const NODES: u8 = 6;
const GROUPS: [&str; 3] = ["friends", "family", "nobody"];

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n + 1; 32])
}

fn nodes() -> impl Iterator<Item = NodeId> {
    (0..NODES).map(node)
}

/// What the guide says, sentence by sentence.
struct Oracle<'a>(&'a PolicyInput);

impl Oracle<'_> {
    fn permits(&self, who: &NodeId, action: Action, resource: &str) -> bool {
        // Whoever is denied `connect` is denied everything.
        if self.is_banned(who) {
            return false;
        }
        if action == Action::Connect {
            // Being permitted anything at all permits `connect`, and so does having been dialled by this node's owner.
            let anything = self.rules().any(|rule| rule.effect() == Effect::Permit && self.is_about(&rule, who));
            return anything || self.0.dialled.contains(who);
        }
        // A longer resource is permitted to nobody.
        if resource.len() > RESOURCE_BYTES {
            return false;
        }
        let fits = |rule: &Rule| self.is_about(rule, who) && rule.action() == action && means(rule.resource().as_str(), resource);
        // If any rule that fits denies, it is denied; otherwise, if any rule that fits permits, it is permitted.
        if self.rules().any(|rule| rule.effect() == Effect::Deny && fits(&rule)) {
            return false;
        }
        if self.rules().any(|rule| rule.effect() == Effect::Permit && fits(&rule)) {
            return true;
        }
        // A closed relay: for nodes that its owner knows, to nodes that its owner knows.
        let known = || self.is_known(who) && nodes().any(|node| node.to_string() == resource && self.is_known(&node));
        action == Action::Relay && self.0.relay == Some(RelayMode::Closed) && known()
    }

    /// Those that were written, and those that `open` and an open relay stand for.
    fn rules(&self) -> impl Iterator<Item = Rule> {
        let anyone = |action| {
            Rule::new(Effect::Permit, Subject::Anyone, action, Pattern::everything(), Source::Config).expect("it is a rule")
        };
        let open = [Action::Connect, Action::Call].map(anyone).into_iter().filter(|_| self.0.open);
        let relay = (self.0.relay == Some(RelayMode::Open)).then(|| anyone(Action::Relay));
        self.0.rules.iter().cloned().chain(open).chain(relay)
    }

    fn is_about(&self, rule: &Rule, who: &NodeId) -> bool {
        match rule.subject() {
            Subject::Node(id) => id == who,
            Subject::Group(name) => self.0.groups[name].contains(who),
            Subject::Anyone => true,
            other => panic!("who is {other}?"),
        }
    }

    fn is_banned(&self, who: &NodeId) -> bool {
        self.rules().any(|rule| rule.effect() == Effect::Deny && rule.action() == Action::Connect && self.is_about(&rule, who))
    }

    /// A rule that permits something names it or its group, or this node dials it.
    fn is_known(&self, who: &NodeId) -> bool {
        let names =
            |rule: Rule| rule.effect() == Effect::Permit && *rule.subject() != Subject::Anyone && self.is_about(&rule, who);
        !self.is_banned(who) && (self.0.dialled.contains(who) || self.rules().any(names))
    }
}

/// Whether a pattern means this name: `*` alone means all; otherwise part for part.
fn means(pattern: &str, name: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let (patterns, names): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), name.split('/').collect());
    patterns.len() == names.len() && patterns.iter().zip(names).all(|(pattern, name)| part(pattern.as_bytes(), name.as_bytes()))
}

/// A star stands for nothing, or for one byte and whatever it stands for then.
fn part(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), None) => part(rest, name),
        (Some((b'*', rest)), Some((_, after))) => part(rest, name) || part(pattern, after),
        (Some((wanted, rest)), Some((found, after))) => wanted == found && part(rest, after),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

prop_compose! {
    fn any_rule()(
        permits: bool,
        subject in prop_oneof![
            (0..NODES - 1).prop_map(|n| Subject::Node(node(n))),
            select(GROUPS.to_vec()).prop_map(|name| Subject::Group(name.parse().expect("it is a name"))),
            Just(Subject::Anyone),
        ],
        action in select(Action::ALL.to_vec()),
        pattern in any_pattern(),
        source in select(vec![Source::Config, Source::Store]),
    ) -> Rule {
        let effect = if permits { Effect::Permit } else { Effect::Deny };
        let everything = action == Action::Connect || action == Action::Call && pattern.segments() < 2;
        let pattern = if everything { Pattern::everything() } else { pattern };
        Rule::new(effect, subject, action, pattern, source).expect("it is a rule")
    }
}

fn any_pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        2 => Just(Pattern::everything()),
        4 => "[ab]?\\*?[ab]?\\*?[ab]/[ab]{0,2}\\*?[ab]?|[ab]\\*?|\\*/\\*|[ab]/\\*/[ab]"
            .prop_filter_map("`**`, or nothing between two slashes", |text| text.parse().ok()),
        1 => (0..NODES).prop_map(|n| node(n).to_string().parse().expect("an id is a pattern")),
    ]
}

prop_compose! {
    fn any_input()(
        rules in prop::collection::vec(any_rule(), 0..14),
        members in prop::collection::vec(prop::collection::btree_set((0..NODES - 1).prop_map(node), 0..4), 2),
        dialled in prop::collection::btree_set((0..NODES).prop_map(node), 0..3),
        open in prop::bool::weighted(0.25),
        ask: bool,
        relay in select(vec![None, Some(RelayMode::Closed), Some(RelayMode::Open)]),
    ) -> PolicyInput {
        let members = members.into_iter().chain([BTreeSet::new()]);
        let groups: Groups = GROUPS.map(|name| name.parse::<GroupName>().expect("it is a name")).into_iter().zip(members).collect();
        PolicyInput { rules, groups, dialled, open, ask, relay }
    }
}

/// Names that patterns like these tell apart, ids of nodes, and one that is too long.
fn any_names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[ab]{0,3}(/[ab]{0,3}){0,2}", 4).prop_map(|mut names| {
        names.extend(["", "a/b", "*"].map(str::to_owned));
        names.extend([0, 2, NODES - 1].map(|n| node(n).to_string()));
        names.push("a".repeat(RESOURCE_BYTES + 1));
        names
    })
}

/// Everybody, every action, each of these names.
fn questions(names: &[String]) -> impl Iterator<Item = (NodeId, Action, &str)> {
    nodes().flat_map(move |who| {
        Action::ALL.iter().flat_map(move |action| names.iter().map(move |name| (who, *action, name.as_str())))
    })
}

fn policy(input: &PolicyInput) -> Policy {
    Policy::new(input.clone()).expect("it is a policy")
}

/// So many policies, each asked some hundreds of questions.
fn cases() -> ProptestConfig {
    ProptestConfig::with_cases(if std::env::var_os("VOLT_LONG").is_some() { 5_000 } else { 80 })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_policy_says_what_its_guide_says_in_whatever_order_the_rules_come(
        (input, shuffled) in any_input().prop_flat_map(|input| (Just(input.rules.clone()).prop_shuffle(), Just(input)))
            .prop_map(|(rules, input)| (input.clone(), PolicyInput { rules, ..input })),
        names in any_names(),
    ) {
        let (one, other, oracle) = (policy(&input), policy(&shuffled), Oracle(&input));
        for (who, action, name) in questions(&names) {
            let decision = one.decide(&who, action, name);
            let text = one.explain(&who, action, name);
            prop_assert_eq!(decision.is_permit(), oracle.permits(&who, action, name), "{} {} {:?}: {}", who, action, name, text);
            prop_assert_eq!(&decision, &other.decide(&who, action, name), "the order matters");
            prop_assert_eq!(text.starts_with("permit: "), decision.is_permit(), "{}", text);
            // The rule that is named is one that says so; nothing is permitted without one.
            match &decision.rule {
                Some(rule) => prop_assert_eq!(rule.effect() == Effect::Permit, decision.is_permit(), "{}", text),
                None => prop_assert!(!decision.is_permit(), "{}", text),
            }
            // The owner is asked about those who want to connect and of whom no rule says anything, and about nothing else.
            let asked = input.ask && action == Action::Connect && !oracle.permits(&who, action, name) && !oracle.is_banned(&who);
            prop_assert_eq!(decision.verdict == Verdict::Prompt, asked, "{}", text);
        }
    }

    #[test]
    fn one_more_allow_takes_nothing_away_and_one_more_deny_gives_nothing(
        input in any_input(), extra in any_rule(), at: Index, names in any_names(),
    ) {
        let mut more = input.clone();
        more.rules.insert(at.index(input.rules.len() + 1), extra.clone());
        let (before, after) = (policy(&input), policy(&more));
        for (who, action, name) in questions(&names) {
            let (was, is) = (before.decide(&who, action, name).is_permit(), after.decide(&who, action, name).is_permit());
            let holds = if extra.effect() == Effect::Permit { is || !was } else { was || !is };
            prop_assert!(holds, "{}: {} {} {:?} was {} and is {}", extra, who, action, name, was, is);
        }
    }

    #[test]
    fn who_is_in_no_rule_and_no_group_may_do_nothing_where_no_rule_is_about_everyone(mut input in any_input(), names in any_names()) {
        let stranger = node(NODES - 1);
        input.rules.retain(|rule| *rule.subject() != Subject::Anyone);
        input.dialled.remove(&stranger);
        let input = PolicyInput { open: false, relay: input.relay.filter(|mode| *mode == RelayMode::Closed), ..input };
        let policy = policy(&input);
        for (who, action, name) in questions(&names).filter(|(who, ..)| *who == stranger) {
            let decision = policy.decide(&who, action, name);
            prop_assert!(!decision.is_permit() && decision.rule.is_none(), "{} {:?}", action, name);
        }
    }
}
