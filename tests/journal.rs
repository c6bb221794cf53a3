//! The journal of real nodes: who was let in or refused, by which rule, and what they called; and never what was said. Rates too, which it
//! tells of.
#![cfg(unix)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use serde_json::Value;
use support::{Pair, SOON, closed, connected, loopback, soon, until};
use voltmesh::node::config::{Config, Limits, Rate, RateRule};
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::proto::status::{Code, Status};
use voltmesh::{Node, Service};

/// What must not be found in a journal.
const CANARY: &str = "canary-7f3a";

fn rule(effect: Effect, who: Subject, action: Action, resource: &str) -> Rule {
    Rule::new(effect, who, action, resource.parse().unwrap(), Source::Config).unwrap()
}

fn everyone_may(action: Action, resource: &str) -> Rule {
    rule(Effect::Permit, Subject::Anyone, action, resource)
}

fn text(home: &Path) -> String {
    fs::read_to_string(home.join("journal.jsonl")).unwrap()
}

fn lines(home: &Path) -> Vec<Value> {
    text(home).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Those about this event, without when they were written.
fn of(lines: &[Value], event: &str) -> Vec<Value> {
    let mut of: Vec<Value> = lines.iter().filter(|line| line["event"] == event).cloned().collect();
    of.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("at")));
    of
}

fn echo() -> Service {
    Service::new("echo")
        .unary("one", |_cx, text: String| async move { Ok(text) })
        .unary("two", |_cx, text: String| async move { Ok(text) })
        .unary("fail", |_cx, text: String| async move { Err::<String, _>(Status::new(Code::Aborted, text)) })
}

/// A node with this home that serves [`echo`].
async fn journalled(home: &Path, rules: impl IntoIterator<Item = Rule>) -> Node {
    let node = rules.into_iter().fold(Node::builder().home(home), |node, rule| node.rule(rule));
    node.listen(loopback()).service(echo()).bind().await.unwrap()
}

async fn joined(a: Node, b: Node) -> Pair {
    support::join_directly(a, b).await
}

#[tokio::test]
async fn who_was_let_in_by_which_rule_and_what_was_called_is_written_and_nothing_of_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let permit = everyone_may(Action::Call, "echo/*");
    let deny = rule(Effect::Deny, Subject::Anyone, Action::Call, "echo/two");
    let a = closed().name("kit\u{202e}chen").bind().await.unwrap();
    let b = journalled(&home, [permit.clone(), deny.clone()]).await;
    let pair = joined(a, b).await;
    let call = |method: &'static str| {
        let request =
            pair.to_b.request(method).metadata("note", CANARY.as_bytes()).metadata(CANARY, b"x").idempotency_key(CANARY);
        async move { soon(request.unary::<_, String>(&CANARY.to_owned())).await }
    };
    for _ in 0..5 {
        assert_eq!(soon(pair.to_b.call::<_, String>("echo/one", &CANARY.to_owned())).await.unwrap(), CANARY);
    }
    assert!(call("echo/one").await.is_ok());
    for _ in 0..3 {
        assert_eq!(call("echo/two").await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(call("echo/fail").await.unwrap_err().code(), Code::Aborted);
    }
    // The first of each is there at once.
    until(|| of(&lines(&home), "call").len() == 3).await;
    let added =
        Rule::new(Effect::Permit, Subject::Node(pair.a.id()), Action::Publish, "news".parse().unwrap(), Source::Store).unwrap();
    assert!(pair.b.add_rule(added.clone()).await.unwrap());
    let denied = soon(pair.to_b.wire("secret").unwrap().create(Default::default())).await.unwrap_err();
    assert!(denied.to_string().contains("policy"), "{denied}");
    assert!(pair.b.remove_rule(added.id()).await.unwrap());
    let (a, counts) = (pair.a.id().to_string(), pair.b.counts());
    assert_eq!((counts.denied_calls, counts.denied_requests), (3, 1));
    pair.shutdown().await;

    assert_eq!(fs::metadata(home.join("journal.jsonl")).unwrap().mode() & 0o777, 0o600);
    let written = lines(&home);
    assert_eq!(written.first().unwrap()["event"], "started");
    assert_eq!(written.last().unwrap()["event"], "stopped");
    let admitted = of(&written, "admitted");
    assert_eq!(admitted.len(), 1);
    assert_eq!(
        (&admitted[0]["peer"], &admitted[0]["rule"], &admitted[0]["source"]),
        (&a.as_str().into(), &permit.id().into(), &"config".into())
    );
    assert_eq!(admitted[0]["name"], "kit\\u{202e}chen");
    assert_eq!(of(&written, "ended").len(), 1);
    let counted = |method: &str, decision: &str, key: &str| -> u64 {
        let of = of(&written, "call");
        let of = of.iter().filter(|line| line["method"] == method && line["decision"] == decision);
        of.map(|line| line[key].as_u64().unwrap_or(0)).sum()
    };
    assert_eq!((counted("echo/one", "permit", "count"), counted("echo/one", "permit", "errors")), (6, 0));
    assert_eq!((counted("echo/two", "deny", "count"), counted("echo/two", "permit", "count")), (3, 0));
    assert_eq!((counted("echo/fail", "permit", "count"), counted("echo/fail", "permit", "errors")), (3, 3));
    let denied = of(&written, "call").into_iter().find(|line| line["decision"] == "deny").unwrap();
    assert_eq!(denied["rule"], deny.id());
    let policy = of(&written, "policy");
    assert_eq!(policy.iter().map(|line| line["change"].as_str().unwrap()).collect::<Vec<_>>(), ["added", "removed"]);
    assert!(policy.iter().all(|line| line["rule"] == added.id() && line["says"] == added.to_string()), "{policy:?}");
    let create = of(&written, "create");
    assert_eq!((&create[0]["resource"], &create[0]["decision"]), (&"secret".into(), &"deny".into()));
    assert!(!text(&home).contains(CANARY), "{}", text(&home));
    assert!(!text(&home).contains('\u{202e}'));
}

#[tokio::test]
async fn a_rule_is_changed_as_a_whole_also_when_whoever_asked_goes_away() {
    use futures_util::FutureExt;
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let b = journalled(&home, []).await;
    let changes =
        || of(&lines(&home), "policy").iter().map(|line| line["change"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let rule = everyone_may(Action::Publish, "news");
    // Asked once, which begins it, and dropped.
    drop(b.add_rule(rule.clone()).now_or_never());
    until(|| changes() == ["added"]).await;
    assert!(!soon(b.add_rule(rule.clone())).await.unwrap());
    drop(b.remove_rule(rule.id()).now_or_never());
    until(|| changes() == ["added", "removed"]).await;

    // Added and removed at once, it is there in both places or in none, and the journal tells the last of it.
    let changed = (0..20).map(|n| {
        let (b, rule) = (b.clone(), rule.clone());
        tokio::spawn(async move { if n % 2 == 0 { b.add_rule(rule).await } else { b.remove_rule(rule.id()).await } })
    });
    for done in soon(futures_util::future::join_all(changed)).await {
        done.unwrap().unwrap();
    }
    let is_there = |node: &Node| node.policy().current().rules().any(|there| there.id() == rule.id());
    let before = is_there(&b);
    b.shutdown().await;
    drop(b);
    let changes = changes();
    assert!(changes.chunks(2).all(|pair| pair[0] == "added" && pair.get(1).is_none_or(|next| next == "removed")), "{changes:?}");
    assert_eq!(changes.len() % 2 == 1, before);
    let again = journalled(&home, []).await;
    assert_eq!(is_there(&again), before);
    again.shutdown().await;
}

#[tokio::test]
async fn strangers_and_those_who_are_denied_are_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let (stranger, denied) = (closed().bind().await.unwrap(), closed().bind().await.unwrap());
    let deny = rule(Effect::Deny, Subject::Node(denied.id()), Action::Connect, "*");
    let b = journalled(&home, [deny.clone()]).await;
    for node in [&stranger, &denied] {
        assert!(soon(node.connect(b.ticket())).await.is_err());
    }
    until(|| of(&lines(&home), "refused").len() >= 2).await;
    assert!(b.counts().refused_sessions >= 2);
    for node in [&stranger, &denied, &b] {
        node.shutdown().await;
    }
    let refused = of(&lines(&home), "refused");
    let find = |node: &Node| refused.iter().find(|line| line["peer"] == node.id().to_string()).unwrap();
    assert_eq!((find(&stranger)["reason"].as_str(), find(&stranger).get("rule")), (Some("policy"), None));
    assert_eq!((find(&denied)["reason"].as_str(), find(&denied)["rule"].as_str()), (Some("policy"), Some(deny.id())));
    assert!(of(&lines(&home), "admitted").is_empty());
}

#[tokio::test]
async fn a_node_that_cannot_keep_its_journal_does_not_start_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    journalled(&home, []).await.shutdown().await;
    let elsewhere = dir.path().join("elsewhere");
    fs::remove_file(home.join("journal.jsonl")).unwrap();
    symlink(&elsewhere, home.join("journal.jsonl")).unwrap();
    let error = Node::builder().home(&home).listen(loopback()).bind().await.unwrap_err().to_string();
    assert!(error.contains("journal.jsonl, which is a link: move it away, and start again"), "{error}");
    assert!(!elsewhere.exists());
    // The home is free again, and with the link gone all is well.
    fs::remove_file(home.join("journal.jsonl")).unwrap();
    journalled(&home, []).await.shutdown().await;
    assert_eq!(lines(&home).len(), 2);
}

#[tokio::test]
async fn the_next_process_goes_on_behind_what_a_killed_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    journalled(&home, []).await.shutdown().await;
    let before = text(&home);
    fs::write(home.join("journal.jsonl"), format!("{before}{{\"at\":\"20")).unwrap();
    journalled(&home, []).await.shutdown().await;
    let whole = text(&home);
    let torn: Vec<_> = whole.lines().filter(|line| serde_json::from_str::<Value>(line).is_err()).collect();
    assert_eq!(torn, ["{\"at\":\"20"]);
    assert_eq!(whole.lines().count(), 5);
}

#[tokio::test]
async fn what_limits_turn_away_is_counted_under_their_names_and_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let limits = Limits { tunnels: 0, wires: 0, registrations: 0, ..Limits::default() };
    let rules = [everyone_may(Action::Register, "*"), everyone_may(Action::Create, "*"), everyone_may(Action::Forward, "*")];
    let listen = vec![loopback()];
    let config = Config { home: Some(home.clone()), listen, open: true, limits, rules: rules.into(), ..Config::default() };
    let b = Node::builder().config(config).bind().await.unwrap();
    let pair = joined(closed().bind().await.unwrap(), b).await;
    for _ in 0..3 {
        assert!(soon(pair.to_b.tunnel("none")).await.is_err());
    }
    assert!(soon(pair.to_b.wire("news").unwrap().create(Default::default())).await.is_err());
    let hits = |name: &str| pair.b.limits_hit().find(|(limit, _)| limit.name() == name).unwrap().1;
    assert_eq!((hits("tunnels"), hits("wires"), hits("registrations")), (3, 1, 0));
    assert!(soon(pair.to_b.register(echo())).await.is_err());
    assert!(hits("registrations") > 0);
    pair.shutdown().await;
    let written = of(&lines(&home), "limit");
    let told =
        |name: &str| written.iter().filter(|line| line["limit"] == name).map(|line| line["count"].as_u64().unwrap()).sum::<u64>();
    assert_eq!((told("tunnels"), told("wires")), (3, 1));
    assert!(told("registrations") > 0);
}

#[tokio::test]
async fn calls_beyond_a_rate_are_answered_at_once_not_executed_counted_and_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    // So slow that nothing is added while the test runs, however slow that is.
    let slow = |burst| Rate::per_second(1).burst(burst);
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counting = {
        let runs = runs.clone();
        Service::new("door").unary("open", move |_cx, ()| {
            runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move { Ok(()) }
        })
    };
    let rates = vec![RateRule { method: "door/*".parse().unwrap(), who: Subject::Anyone, rate: slow(300) }];
    let config = Config { home: Some(home.clone()), listen: vec![loopback()], open: true, rates, ..Config::default() };
    let bell = Service::new("bell").unary("ring", |_cx, ()| async move { Ok(()) }).rate(slow(5));
    let b = Node::builder().config(config).service(counting).service(bell).service(echo()).bind().await.unwrap();
    let mut events = b.events();
    let (one, other) = (closed().bind().await.unwrap(), closed().bind().await.unwrap());
    let to_b = soon(one.connect(b.ticket())).await.unwrap();
    connected(&mut events, one.id()).await;
    let began = std::time::Instant::now();
    let mut passed = 0;
    let mut refused = 0;
    for _ in 0..600 {
        match soon(to_b.call::<_, ()>("door/open", &())).await {
            Ok(()) => passed += 1,
            Err(error) => {
                assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
                assert!(error.to_string().contains("try again in "), "{error}");
                refused += 1;
            }
        }
    }
    let added = began.elapsed().as_secs() + 1;
    assert!((300..=300 + added).contains(&passed), "{passed}");
    assert_eq!(runs.load(std::sync::atomic::Ordering::Relaxed), passed, "what is refused does not run");
    assert_eq!(b.counts().rated_calls, refused);
    // Another identity, and another method, have buckets of their own.
    let others = soon(other.connect(b.ticket())).await.unwrap();
    assert!(soon(others.call::<_, ()>("door/open", &())).await.is_ok());
    assert!(soon(to_b.call::<_, String>("echo/one", "hello")).await.is_ok());
    // A rate that a method has by itself.
    let mut rings = 0;
    while soon(to_b.call::<_, ()>("bell/ring", &())).await.is_ok() {
        rings += 1;
        assert!(began.elapsed() < SOON);
    }
    assert!(rings >= 5);
    for node in [&one, &other, &b] {
        node.shutdown().await;
    }
    let written = of(&lines(&home), "call");
    let rated = written.iter().filter(|line| line["decision"] == "rate" && line["method"] == "door/open");
    assert_eq!(rated.map(|line| line["count"].as_u64().unwrap()).sum::<u64>(), refused);
}
