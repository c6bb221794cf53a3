//! What is decided on every call: whether policy allows it, and whether its stream's id is new.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use voltmesh::id::NodeId;
use voltmesh::policy::{Action, Effect, Policy, PolicyInput, Rule, Source, Subject};
use voltmesh::state::ids::{Accepted, Accepter, Allocator, Side};

fn node(n: u64) -> NodeId {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    NodeId::from_bytes(bytes)
}

fn allow(subject: Subject, resource: &str) -> Rule {
    Rule::new(Effect::Permit, subject, Action::Call, resource.parse().unwrap(), Source::Config).unwrap()
}

/// A decision among few rules and among ten thousand about others.
pub fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy");
    for rules in [10, 10_000] {
        let mut input = PolicyInput::default();
        input.rules.extend((0..rules).map(|n| allow(Subject::Node(node(n)), "greeter/he*")));
        input.rules.push(allow(Subject::Anyone, "public/*"));
        let policy = Policy::new(input).unwrap();
        let decide = |who: NodeId, what: &str| policy.decide(&who, Action::Call, black_box(what)).is_permit();
        assert!(decide(node(3), "greeter/hello") && !decide(node(rules), "greeter/hello"));
        group.bench_function(format!("{rules} rules/permitted"), |b| b.iter(|| decide(black_box(node(3)), "greeter/hello")));
        group.bench_function(format!("{rules} rules/stranger"), |b| b.iter(|| decide(black_box(node(rules)), "greeter/hello")));
    }
    group.finish();
}

/// Ids as text, and ids of streams: handed out, judged and finished, 64 live at any time.
pub fn ids(c: &mut Criterion) {
    let mut group = c.benchmark_group("ids");
    let text = node(1).to_string();
    group.bench_function("node id/write", |b| b.iter(|| black_box(node(1)).to_string()));
    group.bench_function("node id/read", |b| b.iter(|| black_box(&text).parse::<NodeId>().unwrap()));
    group.throughput(Throughput::Elements(1));
    group.bench_function("stream id/take, accept, finish", |b| {
        let (mut ours, mut theirs) = (Allocator::new(Side::Initiator), Accepter::new(Side::Initiator));
        b.iter(|| {
            let id = ours.take();
            assert_eq!(theirs.accept(black_box(id)), Ok(Accepted::Fresh));
            if let Some(old) = id.checked_sub(128) {
                assert!(theirs.finished(old));
            }
        });
    });
    group.finish();
}
