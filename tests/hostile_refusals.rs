//! What a stranger is told: that it is refused, and nothing else. Whatever the reason is, what comes over the wire is the same.

mod support;

use std::collections::BTreeSet;

use quinn::{ApplicationClose, ConnectionError};
use support::raw::{RawPeer, hello, hello_bytes};
use support::{closed, echo, soon, until};
use voltmesh::Node;
use voltmesh::node::config::{Config, Limits};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};

/// Everything that a stranger can tell apart, but for how long it took and how packets were put together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    code: u64,
    reason: Vec<u8>,
    /// Frames of applications' data that came: of streams, resets, stops, datagrams, and leave to send more.
    frames: [u64; 6],
    /// Whether the stream it opened gave anything.
    answered: bool,
}

/// Who says this first, or nothing.
async fn told(peer: &RawPeer, node: &Node, first: Option<&[u8]>) -> Told {
    let link = peer.connect(node).await;
    let mut answered = false;
    if let Some(first) = first {
        // It may be closed by now.
        if let Ok((mut send, mut recv)) = link.open_bi().await {
            let _ = send.write_all(first).await;
            answered = matches!(soon(recv.read(&mut [0])).await, Ok(Some(_)));
        }
    }
    let ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) = soon(link.closed()).await else {
        panic!("not closed by the node");
    };
    let came = link.stats().frame_rx;
    let frames = [came.stream, came.reset_stream, came.stop_sending, came.datagram, came.max_data, came.max_streams_bidi];
    Told { code: error_code.into_inner(), reason: reason.to_vec(), frames, answered }
}

fn rule(effect: Effect, who: Subject, action: Action) -> Rule {
    Rule::new(effect, who, action, Pattern::everything(), Source::Config).unwrap()
}

#[tokio::test]
async fn a_stranger_is_told_that_it_is_refused_and_not_why() {
    let peer = RawPeer::plain();
    let stranger = Subject::Node(peer.id);
    let limits = Limits { sessions: 1, ..Limits::default() };
    let full = Node::builder().config(Config { listen: vec![support::loopback()], open: true, limits, ..Config::default() });
    let nodes = [
        ("no rule", closed()),
        ("rules about others only", closed().rule(rule(Effect::Permit, Subject::Node(RawPeer::plain().id), Action::Call))),
        ("a rule that denies it", closed().open(true).rule(rule(Effect::Deny, stranger, Action::Connect))),
        ("a rule that denies everyone", closed().open(true).rule(rule(Effect::Deny, Subject::Anyone, Action::Connect))),
        ("no room", full),
    ];
    let hello = hello_bytes(&hello());
    // Nothing; a whole hello; half of one; what is none. Nobody looks at it.
    let says = [None, Some(&hello[..]), Some(&hello[..hello.len() / 2]), Some(&[255; 64][..])];
    let mut all = BTreeSet::new();
    for (why, node) in nodes {
        let node = node.service(echo()).bind().await.unwrap();
        let inside = closed().bind().await.unwrap();
        if why == "no room" {
            soon(inside.connect(node.ticket())).await.unwrap();
        }
        for (nth, first) in says.iter().enumerate() {
            let told = told(&peer, &node, *first).await;
            println!("{why}: {told:?}");
            all.insert(told);
            // The node itself knows.
            until(|| node.counts().refused_sessions == nth as u64 + 1).await;
        }
        soon(async { tokio::join!(inside.shutdown(), node.shutdown()) }).await;
    }
    let refused = Told { code: 1, reason: Vec::new(), frames: [0; 6], answered: false };
    assert_eq!(all.into_iter().collect::<Vec<_>>(), [refused]);
}
