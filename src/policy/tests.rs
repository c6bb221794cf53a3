//! What must hold of every policy, whatever its rules are.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn rule(text: &str) -> Rule {
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap_or("*");
    let effect = if word() == "allow" { Effect::Permit } else { Effect::Deny };
    let subject = match word() {
        n if n.parse::<u8>().is_ok() => Subject::Node(node(n.parse().unwrap())),
        other => other.parse().unwrap(),
    };
    Rule::new(effect, subject, word().parse().unwrap(), word().parse().unwrap(), Source::Store).unwrap()
}

fn input(rules: &[&str]) -> PolicyInput {
    let friends = ("friends".parse().unwrap(), BTreeSet::from([node(1), node(2)]));
    PolicyInput { rules: rules.iter().map(|text| rule(text)).collect(), groups: Groups::from([friends]), ..Default::default() }
}

fn policy(rules: &[&str]) -> Policy {
    Policy::new(input(rules)).unwrap()
}

#[test]
fn nobody_may_do_anything_when_there_are_no_rules() {
    for action in Action::ALL {
        let decision = Policy::default().decide(&node(1), *action, "a/b");
        assert_eq!(decision, Decision { verdict: Verdict::Deny, rule: None });
    }
}

#[test]
fn a_permitted_call_permits_connecting_and_no_other_call() {
    let policy = policy(&["allow 1 call greeter/*"]);
    assert!(policy.decide(&node(1), Action::Call, "greeter/hello").is_permit());
    assert!(policy.decide(&node(1), Action::Connect, "").is_permit());
    assert!(!policy.decide(&node(1), Action::Call, "vault/open").is_permit());
    assert!(!policy.decide(&node(2), Action::Connect, "").is_permit());
}

#[test]
fn a_permitted_connect_permits_no_call() {
    let policy = policy(&["allow 1 connect"]);
    assert!(policy.decide(&node(1), Action::Connect, "").is_permit());
    assert!(!policy.decide(&node(1), Action::Call, "greeter/hello").is_permit());
}

#[test]
fn who_is_denied_connect_is_denied_everything() {
    let policy = policy(&["allow 1 call *", "allow * connect", "deny @friends connect"]);
    for action in Action::ALL {
        let decision = policy.decide(&node(1), *action, "a/b");
        assert_eq!(decision.verdict, Verdict::Deny);
        assert_eq!(decision.rule.unwrap().to_string(), "deny @friends connect");
    }
    assert!(policy.decide(&node(3), Action::Connect, "").is_permit());
}

#[test]
fn deny_wins_over_a_more_exact_permit() {
    let policy = policy(&["allow 1 call vault/open", "deny * call vault/*"]);
    assert!(!policy.decide(&node(1), Action::Call, "vault/open").is_permit());
}

#[test]
fn trusted_is_whom_a_permit_names_or_whom_the_node_dials_unless_denied() {
    let rules = ["allow @friends discover x", "allow 3 call a/b", "allow * connect", "deny 4 call *", "deny 2 connect"];
    let policy = Policy::new(PolicyInput { dialled: BTreeSet::from([node(5), node(2)]), ..input(&rules) }).unwrap();
    let trusted: Vec<_> = (1..7).filter(|n| policy.is_trusted(&node(*n))).collect();
    assert_eq!(trusted, [1, 3, 5]);
}

#[test]
fn a_group_means_its_members() {
    let policy = policy(&["allow @friends call *"]);
    assert!(policy.decide(&node(2), Action::Call, "a/b").is_permit());
    assert!(!policy.decide(&node(3), Action::Call, "a/b").is_permit());
}

#[test]
fn open_lets_anyone_connect_and_call_and_nothing_else() {
    let policy = Policy::new(PolicyInput { open: true, ..input(&["deny 1 call vault/*", "deny 2 connect"]) }).unwrap();
    for action in Action::ALL {
        let may = matches!(action, Action::Connect | Action::Call);
        assert_eq!(policy.decide(&node(3), *action, "a/b").is_permit(), may, "{action}");
    }
    assert!(!policy.decide(&node(1), Action::Call, "vault/open").is_permit());
    assert!(!policy.decide(&node(2), Action::Call, "a/b").is_permit());
    assert_eq!(policy.decide(&node(3), Action::Call, "a/b").rule.unwrap().source(), Source::Open);
}

#[test]
fn a_dialled_node_may_connect_and_call_nothing() {
    let policy = Policy::new(PolicyInput { dialled: [node(2), node(5)].into(), ..input(&["deny 2 connect"]) }).unwrap();
    assert_eq!(policy.decide(&node(5), Action::Connect, "").rule.unwrap().source(), Source::Dialled);
    assert!(!policy.decide(&node(5), Action::Call, "a/b").is_permit());
    assert!(!policy.decide(&node(2), Action::Connect, "").is_permit());
}

#[test]
fn a_resource_longer_than_any_name_is_denied() {
    let policy = policy(&["allow * call *"]);
    assert!(policy.decide(&node(1), Action::Call, &"x".repeat(RESOURCE_BYTES)).is_permit());
    assert!(!policy.decide(&node(1), Action::Call, &"x".repeat(RESOURCE_BYTES + 1)).is_permit());
}

#[test]
fn a_rule_about_an_unknown_group_is_refused_by_name() {
    let error = Policy::new(input(&["deny @fiends connect"])).unwrap_err();
    assert!(error.to_string().contains("deny @fiends connect"), "{error}");
}

#[test]
fn more_rules_than_the_bound_are_refused() {
    let rules = vec![rule("allow 1 connect"); RULES + 1];
    let error = Policy::new(PolicyInput { rules, ..Default::default() }).unwrap_err();
    assert!(matches!(error, PolicyError::TooMany { what: "rules", .. }));
}

#[test]
fn the_explanation_names_the_rule_and_the_reason() {
    let policy = policy(&["allow @friends call greeter/*", "deny 3 connect"]);
    let id = rule("allow @friends call greeter/*").id().to_owned();
    let says = format!("rule {id} (the store) says: allow @friends call greeter/* (it is in @friends)");
    assert_eq!(policy.explain(&node(1), Action::Call, "greeter/hello"), format!("permit: {says}"));
    assert_eq!(policy.explain(&node(1), Action::Connect, ""), format!("permit: {says}: who may do something may connect"));
    assert!(policy.explain(&node(3), Action::Call, "a/b").ends_with(": who may not connect may do nothing"));
    assert_eq!(
        policy.explain(&node(4), Action::Call, "a\u{1b}"),
        format!("deny: no rule permits {} to call \"a\\u{{1b}}\"", node(4))
    );
}

#[test]
fn a_decision_is_json_as_the_command_line_promises() {
    let unknown = serde_json::to_string(&Policy::default().decide(&node(1), Action::Connect, "")).unwrap();
    assert_eq!(unknown, r#"{"decision":"deny","rule":null}"#);
    let known = serde_json::to_value(policy(&["allow * call a/*"]).decide(&node(1), Action::Call, "a/b")).unwrap();
    assert_eq!((known["decision"].as_str(), known["rule"]["resource"].as_str()), (Some("permit"), Some("a/*")));
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let subjects = select(vec!["1", "2", "3", "@friends", "*"]);
    let abouts = select(vec!["connect", "call *", "call a/*", "call */b", "call a/b", "call c/b", "subscribe *", "relay *"]);
    (select(vec!["allow", "deny"]), subjects, abouts).prop_map(|(effect, who, about)| rule(&format!("{effect} {who} {about}")))
}

fn made(rules: Vec<Rule>, open: bool, dialled: bool) -> Policy {
    let dialled = if dialled { [node(1), node(3)].into() } else { BTreeSet::new() };
    Policy::new(PolicyInput { rules, open, dialled, ..input(&[]) }).unwrap()
}

/// Every question worth asking of these rules.
fn questions() -> impl Iterator<Item = (NodeId, Action, &'static str)> {
    let actions = [Action::Connect, Action::Call, Action::Subscribe, Action::Relay, Action::Administer];
    let about = actions.into_iter().flat_map(|action| ["a/b", "c/b", "d/d"].map(|resource| (action, resource)));
    about.flat_map(|(action, resource)| [1, 2, 3, 4].map(|n| (node(n), action, resource)))
}

/// The rules as the room's guide states them, with nothing made fast.
fn by_the_book(rules: &[Rule], dialled: bool, who: NodeId, action: Action, resource: &str) -> Verdict {
    let about = |rule: &&Rule| match rule.subject() {
        Subject::Node(id) => *id == who,
        Subject::Group(_) => [node(1), node(2)].contains(&who),
        Subject::Anyone => true,
    };
    let any = |effect: Effect, action: Option<Action>, resource: Option<&str>| {
        rules.iter().filter(about).any(|rule| {
            let fits = resource.is_none_or(|resource| rule.resource().matches(resource));
            rule.effect() == effect && action.is_none_or(|action| rule.action() == action) && fits
        })
    };
    let denied = any(Effect::Deny, Some(Action::Connect), None) || any(Effect::Deny, Some(action), Some(resource));
    let permitted = match action {
        Action::Connect => any(Effect::Permit, None, None) || dialled && [node(1), node(3)].contains(&who),
        _ => any(Effect::Permit, Some(action), Some(resource)),
    };
    if permitted && !denied { Verdict::Permit } else { Verdict::Deny }
}

proptest! {
    #[test]
    fn the_order_of_rules_never_matters(
        (rules, shuffled) in prop::collection::vec(any_rule(), 0..12).prop_flat_map(|r| (Just(r.clone()), Just(r).prop_shuffle())),
        open: bool,
    ) {
        let (one, other) = (made(rules, open, true), made(shuffled, open, true));
        for (who, action, resource) in questions() {
            prop_assert_eq!(one.decide(&who, action, resource), other.decide(&who, action, resource));
        }
    }

    #[test]
    fn deny_wins_and_unknown_is_deny(rules in prop::collection::vec(any_rule(), 0..12), open: bool, dialled: bool) {
        let policy = made(rules.clone(), open, dialled);
        let all: Vec<Rule> = rules.into_iter().chain(Rule::open().into_iter().filter(|_| open)).collect();
        for (who, action, resource) in questions() {
            let decision = policy.decide(&who, action, resource);
            prop_assert_eq!(decision.verdict, by_the_book(&all, dialled, who, action, resource));
            if let Some(rule) = &decision.rule {
                prop_assert_eq!(rule.effect() == Effect::Permit, decision.is_permit());
            } else {
                prop_assert_eq!(decision.verdict, Verdict::Deny);
            }
        }
    }

    #[test]
    fn one_more_rule_never_does_the_opposite_of_what_it_says(rules in prop::collection::vec(any_rule(), 0..12), extra in any_rule()) {
        let mut more = rules.clone();
        more.push(extra.clone());
        let (before, after) = (made(rules, false, true), made(more, false, true));
        for (who, action, resource) in questions() {
            let (was, is) = (before.decide(&who, action, resource).is_permit(), after.decide(&who, action, resource).is_permit());
            let holds = if extra.effect() == Effect::Deny { was || !is } else { is || !was };
            prop_assert!(holds, "{}", extra);
        }
    }
}
