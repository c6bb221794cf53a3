//! Who gets in: strangers who are asked about, and those who have an invitation. Real nodes on loopback, some with homes.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use support::raw::{RawPeer, close_code, hello, hello_bytes};
use support::{SOON, chain, closed, echo, node, soon, until};
use voltmesh::id::{InviteSecret, NodeId, SecretKey, Ticket, Vouch};
use voltmesh::node::config::Strangers;
use voltmesh::node::{ConnectError, InviteError, Request};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::close::CloseCode;
use voltmesh::proto::control::{Hello, Invited};
use voltmesh::session::{SessionState, Unreached};
use voltmesh::{Event, Node, Session};

/// A node whose owner listens, with a home.
async fn careful() -> (tempfile::TempDir, Node) {
    let home = tempfile::tempdir().unwrap();
    let node = closed().home(home.path().join("home")).service(echo()).bind().await.unwrap();
    (home, node)
}

async fn stranger(name: &str) -> Node {
    closed().name(name).bind().await.unwrap()
}

/// Holds a session with a node, until its owner is asked.
async fn asks(stranger: &Node, node: &Node) -> Session {
    let session = stranger.hold(node.id(), &node.listening());
    until(|| session.state() == SessionState::Waiting).await;
    session
}

fn ids(requests: &[Request]) -> BTreeSet<NodeId> {
    requests.iter().map(|request| request.peer).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_wait_are_told_so_and_get_what_the_owner_gives() {
    let (_home, node) = careful().await;
    let mut events = node.events();
    let (a, b) = (stranger("a").await, stranger("b\u{202e}").await);
    assert_eq!(soon(a.connect(node.ticket())).await.unwrap_err(), ConnectError::Refused, "nobody listens");
    let listening = node.listen();
    let (to_a, _to_b) = (asks(&a, &node).await, asks(&b, &node).await);
    assert_eq!(to_a.unreached(), Some(Unreached::Asked));
    let waiting = node.requests();
    assert_eq!(ids(&waiting), BTreeSet::from([a.id(), b.id()]));
    assert!(waiting.iter().all(|request| request.from.is_loopback() && !request.relayed));
    let mut told = BTreeSet::new();
    while told.len() < 2 {
        if let Event::Asked { peer, .. } = soon(events.next()).await.unwrap() {
            assert!(told.insert(peer), "each is told once, however often it comes");
        }
    }
    // A call waits with it.
    let call = tokio::spawn({
        let to_a = to_a.clone();
        async move { to_a.call::<_, String>("echo/one", "seven").await }
    });
    soon(node.admit(a.id(), &["call echo/*".parse().unwrap()])).await.unwrap();
    assert_eq!(soon(call).await.unwrap().unwrap(), "seven");
    assert!(node.admit(a.id(), &[]).await.is_err(), "it does not wait any more");
    assert_eq!(ids(&node.requests()), BTreeSet::from([b.id()]));
    // Turned away: the next time it comes it is refused.
    soon(node.turn_away(b.id())).await.unwrap();
    assert_eq!(soon(b.connect(node.ticket())).await.unwrap_err(), ConnectError::Refused);
    assert!(node.requests().is_empty());
    // When nobody listens any more, nobody is asked.
    drop(listening);
    let c = stranger("c").await;
    assert_eq!(soon(c.connect(node.ticket())).await.unwrap_err(), ConnectError::Refused);
    for node in [a, b, c, node] {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_decides_about_who_waits_and_a_denied_one_is_never_heard() {
    let (_home, node) = careful().await;
    let _listening = node.listen();
    let (a, b) = (stranger("a").await, stranger("b").await);
    let deny = Rule::new(Effect::Deny, Subject::Node(b.id()), Action::Connect, Pattern::everything(), Source::Store).unwrap();
    node.add_rule(deny).await.unwrap();
    assert_eq!(soon(b.connect(node.ticket())).await.unwrap_err(), ConnectError::Refused);
    let session = asks(&a, &node).await;
    let allow = Rule::new(Effect::Permit, Subject::Node(a.id()), Action::Connect, Pattern::everything(), Source::Store).unwrap();
    node.add_rule(allow).await.unwrap();
    assert!(node.requests().is_empty(), "a rule has decided");
    soon(session.connected(SOON)).await.unwrap();
    for node in [a, b, node] {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_strangers_than_may_wait_are_refused_and_counted() {
    let (_home, node) = careful().await;
    let _listening = node.listen();
    // Of one address eight may.
    let mut strangers = Vec::new();
    for _ in 0..8 {
        let stranger = stranger("one of many").await;
        asks(&stranger, &node).await;
        strangers.push(stranger);
    }
    let one_more = stranger("one more").await;
    assert_eq!(soon(one_more.connect(node.ticket())).await.unwrap_err(), ConnectError::Refused);
    assert_eq!((node.requests().len(), node.counts().refused_requests), (8, 1));
    for node in strangers.into_iter().chain([one_more, node]) {
        soon(node.shutdown()).await;
    }
}

fn with(node: &Node, secret: InviteSecret) -> Ticket {
    Ticket { secret: Some(secret), ..node.ticket() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_use_an_invitation_at_once_exactly_so_many_get_in() {
    let home = tempfile::tempdir().unwrap();
    let builder = closed().home(home.path().join("home")).service(echo()).strangers(Strangers::Refuse);
    let node = builder.bind().await.unwrap();
    let invited = node.invite(5, Duration::from_secs(600), &["call echo/one".parse().unwrap()]).await.unwrap();
    let mut joining = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let ticket = invited.ticket.clone();
        joining.spawn(async move {
            let node = stranger("a").await;
            let joined = node.connect(ticket).await;
            let called = match &joined {
                Ok(session) => Some(session.call::<_, String>("echo/one", "in").await.unwrap()),
                Err(error) => {
                    assert_eq!(*error, ConnectError::Refused);
                    None
                }
            };
            node.shutdown().await;
            called
        });
    }
    let got_in = soon(joining.join_all()).await.into_iter().flatten().count();
    assert_eq!(got_in, 5);
    assert!(node.invitations().await.unwrap().is_empty(), "it is good for nothing any more");
    // Each of the others was, whether its invitation was looked at or good for nothing by then.
    assert!(node.counts().refused_sessions >= 19);
    // Each has the two rules it gives, and no more.
    let rules = node.policy().current().rules().filter(|rule| rule.source() == Source::Store).count();
    assert_eq!(rules, 10);
    soon(node.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_let_in_by_an_invitation_and_put_out_again_cannot_use_it_once_more() {
    let (_home, node) = careful().await;
    let invited = node.invite(2, Duration::from_secs(600), &[]).await.unwrap();
    let a = stranger("a").await;
    soon(a.connect(&invited.ticket)).await.unwrap();
    // Again and again is one use: it is let in by its rule.
    a.release(node.id());
    soon(a.connect(&invited.ticket)).await.unwrap();
    assert_eq!(node.invitations().await.unwrap()[0].used, [a.id()]);
    a.release(node.id());
    let rule = node.policy().current().rules().find(|rule| *rule.subject() == Subject::Node(a.id())).unwrap().id().to_owned();
    node.remove_rule(&rule).await.unwrap();
    until(|| node.session(a.id()).is_none_or(|session| session.state() != SessionState::Connected)).await;
    assert_eq!(soon(a.connect(&invited.ticket)).await.unwrap_err(), ConnectError::Refused);
    assert_eq!(node.invitations().await.unwrap()[0].used.len(), 1);
    for node in [a, node] {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_connect_already_gets_what_an_invitation_gives_and_loses_nothing_by_a_bad_one() {
    let (_home, node) = careful().await;
    let a = stranger("a").await;
    let allow = Rule::new(Effect::Permit, Subject::Node(a.id()), Action::Connect, Pattern::everything(), Source::Store).unwrap();
    node.add_rule(allow).await.unwrap();
    let session = soon(a.connect(with(&node, InviteSecret::generate()))).await.unwrap();
    session.call::<_, String>("echo/one", "no").await.unwrap_err();
    a.release(node.id());
    let invited = node.invite(1, Duration::from_secs(600), &["call echo/*".parse().unwrap()]).await.unwrap();
    let session = soon(a.connect(&invited.ticket)).await.unwrap();
    assert_eq!(soon(session.call::<_, String>("echo/one", "yes")).await.unwrap(), "yes");
    assert!(node.invitations().await.unwrap().is_empty());
    for node in [a, node] {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_nobody_issued_let_nobody_in_and_are_looked_at_ten_times_a_second_at_most() {
    let (_home, node) = careful().await;
    let invited = node.invite(1, Duration::from_secs(600), &[]).await.unwrap();
    let secret = *invited.ticket.secret.as_ref().unwrap().as_bytes();
    let mut trying = tokio::task::JoinSet::new();
    let tries = if support::long() { 400 } else { 40 };
    for number in 0..tries {
        // One bit beside the right one, or any other.
        let mut wrong = if number % 2 == 0 { secret } else { rand::rng().random() };
        wrong[number % 16] ^= 1 << (number % 8);
        let ticket = with(&node, InviteSecret::from_bytes(wrong));
        trying.spawn(async move {
            let node = stranger("a").await;
            let tried = node.connect(ticket).await.map(drop);
            node.shutdown().await;
            tried
        });
    }
    for tried in soon(trying.join_all()).await {
        assert_eq!(tried.unwrap_err(), ConnectError::Refused);
    }
    assert!(node.counts().refused_invitations >= tries as u64);
    // The right one is still good for who has it, as soon as one is looked at again.
    let a = stranger("a").await;
    soon(async { while a.connect(&invited.ticket).await.is_err() {} }).await;
    for node in [a, node] {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_outlives_its_issuer_and_one_for_another_node_is_worthless() {
    let (home, node) = careful().await;
    let other = tempfile::tempdir().unwrap();
    let invited = node.invite(1, Duration::from_secs(600), &[]).await.unwrap();
    soon(node.shutdown()).await;
    drop(node);
    let node = closed().home(home.path().join("home")).bind().await.unwrap();
    let elsewhere = closed().home(other.path().join("home")).bind().await.unwrap();
    // So that invitations are looked at there.
    elsewhere.invite(1, Duration::from_secs(600), &[]).await.unwrap();
    let a = stranger("a").await;
    let secret = invited.ticket.secret.clone().unwrap();
    assert_eq!(soon(a.connect(with(&elsewhere, secret.clone()))).await.unwrap_err(), ConnectError::Refused);
    soon(a.connect(with(&node, secret))).await.unwrap();
    for node in [a, elsewhere, node] {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_asked_about_and_invited_through_relays_too() {
    let relays = chain(1).await;
    let home = tempfile::tempdir().unwrap();
    let behind = |builder: voltmesh::node::Builder| builder.home_relay(relays[0].ticket());
    let node = behind(closed().home(home.path().join("home")).service(echo())).bind().await.unwrap();
    until(|| node.session(relays[0].id()).is_some_and(|session| session.state() == SessionState::Connected)).await;
    let _listening = node.listen();
    let invited = node.invite(1, Duration::from_secs(600), &["call echo/*".parse().unwrap()]).await.unwrap();
    // No address of it is known: there is no other way.
    let through = |ticket: &Ticket| Ticket { addresses: Vec::new(), ..ticket.clone() };
    let (a, b) = (behind(closed()).bind().await.unwrap(), behind(closed()).bind().await.unwrap());
    let joined = soon(a.connect(through(&invited.ticket))).await.unwrap();
    assert_eq!(soon(joined.call::<_, String>("echo/one", "three")).await.unwrap(), "three");
    let asking = b.hold_at(node.id(), &voltmesh::session::Where::from(&through(&node.ticket())));
    until(|| asking.state() == SessionState::Waiting).await;
    let waiting = node.requests();
    assert_eq!((waiting[0].peer, waiting[0].relayed), (b.id(), true));
    soon(node.admit(b.id(), &["call echo/*".parse().unwrap()])).await.unwrap();
    soon(asking.connected(SOON)).await.unwrap();
    assert_eq!(soon(asking.call::<_, String>("echo/one", "four")).await.unwrap(), "four");
    for node in relays.into_iter().chain([a, b, node]) {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_that_would_be_good_for_nothing_or_too_much_is_not_issued() {
    let (_home, careful) = careful().await;
    let hour = Duration::from_secs(3_600);
    let grants: Vec<_> = (0..65).map(|number| format!("call s{number}/*").parse().unwrap()).collect();
    assert!(matches!(careful.invite(0, hour, &[]).await, Err(InviteError::Uses(0))));
    assert!(matches!(careful.invite(1_001, hour, &[]).await, Err(InviteError::Uses(1_001))));
    assert!(matches!(careful.invite(1, Duration::ZERO, &[]).await, Err(InviteError::Life(_))));
    assert!(matches!(careful.invite(1, Duration::MAX, &[]).await, Err(InviteError::Life(_))));
    assert!(matches!(careful.invite(1, hour, &grants).await, Err(InviteError::Rules(65))));
    let homeless = node().await;
    assert!(matches!(homeless.invite(1, hour, &[]).await, Err(InviteError::NoHome)));
    for node in [homeless, careful] {
        soon(node.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_with_one_key_the_later_one_keeps_its_session() {
    let key = SecretKey::generate();
    let node = node().await;
    let twin = || closed().key(key.clone()).bind();
    let (older, newer) = (twin().await.unwrap(), twin().await.unwrap());
    let to_older = soon(older.connect(node.ticket())).await.unwrap();
    let mut events = older.events();
    let to_newer = soon(newer.connect(node.ticket())).await.unwrap();
    let told = loop {
        if let Event::Disconnected { reason, .. } = soon(events.next()).await.unwrap() {
            break reason;
        }
    };
    assert_eq!(told, voltmesh::session::DisconnectReason::Replaced);
    until(|| to_older.unreached() == Some(Unreached::Replaced)).await;
    let session = to_newer.id();
    // However often it tries.
    for _ in 0..5 {
        older.connect_to(node.id(), &node.listening(), Duration::from_millis(300)).await.unwrap_err();
    }
    assert_eq!((to_newer.state(), to_newer.id()), (SessionState::Connected, session));
    assert_eq!(node.session(key.id()).unwrap().id(), session);
    // Until the other one has gone.
    soon(newer.shutdown()).await;
    soon(async { while older.connect_to(node.id(), &node.listening(), SOON).await.is_err() {} }).await;
    for node in [older, node] {
        soon(node.shutdown()).await;
    }
}

/// How the node closes on a stranger that says this.
async fn told(peer: &RawPeer, node: &Node, says: &[u8]) -> CloseCode {
    let connection = peer.connect(node).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let _ = send.write_all(says).await;
    soon(close_code(&connection)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_is_heard_and_says_nonsense_is_told_no_more_than_one_that_is_not_heard() {
    let (_home, node) = careful().await;
    let invited = node.invite(1, Duration::from_secs(600), &[]).await.unwrap();
    let secret = invited.ticket.secret.clone().unwrap();
    let (peer, other) = (RawPeer::plain(), SecretKey::generate());
    // What another one was vouched for, one for another node, a signature cut short, one of no key; and what is no hello.
    let extension = |vouch: Vouch| Invited::extension(&vouch);
    let (stolen, elsewhere) = (secret.vouch(&other.id(), &node.id()), secret.vouch(&peer.id, &other.id()));
    let cut = (Invited::NUMBER, extension(secret.vouch(&peer.id, &node.id())).1[..50].to_vec());
    let with = |extension| hello_bytes(&Hello { extensions: vec![extension], ..hello() });
    let says =
        [with(extension(stolen)), with(extension(elsewhere)), with(cut), with((Invited::NUMBER, vec![0; 96])), vec![0; 400]];
    for says in says {
        assert_eq!(told(&peer, &node, &says).await, CloseCode::Refused);
    }
    assert_eq!(told(&peer, &node, &hello_bytes(&hello())).await, CloseCode::Refused, "nobody listens");
    let _listening = node.listen();
    assert_eq!(told(&peer, &node, &hello_bytes(&hello())).await, CloseCode::Asked);
    assert_eq!(node.invitations().await.unwrap()[0].used, []);
    // Every bit of the right one changed: nobody is let in.
    let right = extension(secret.vouch(&peer.id, &node.id())).1;
    let (first, bits) = (rand::rng().random_range(0..8), right.len() * 8);
    let step = if support::long() { 1 } else { 37 };
    for bit in (first..bits).step_by(step) {
        let mut wrong = right.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(told(&peer, &node, &with((Invited::NUMBER, wrong))).await, CloseCode::Refused, "bit {bit}");
    }
    assert_eq!(node.invitations().await.unwrap()[0].used, []);
    soon(node.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_strangers_leaves_few_requests_and_others_unharmed() {
    let (_home, node) = careful().await;
    let _listening = node.listen();
    let friend = closed().bind().await.unwrap();
    let allow = |action, pattern: &str| {
        Rule::new(Effect::Permit, Subject::Node(friend.id()), action, pattern.parse().unwrap(), Source::Store).unwrap()
    };
    node.add_rule(allow(Action::Call, "echo/*")).await.unwrap();
    let session = soon(friend.connect(node.ticket())).await.unwrap();
    let strangers = if support::long() { 1_000 } else { 100 };
    let mut told_what = std::collections::BTreeMap::new();
    for _ in 0..strangers {
        let code = told(&RawPeer::plain(), &node, &hello_bytes(&hello())).await;
        *told_what.entry(code as u64).or_insert(0) += 1;
        assert_eq!(soon(session.call::<_, String>("echo/one", "honest")).await.unwrap(), "honest");
    }
    let (waiting, counts) = (node.requests().len(), node.counts());
    println!("{strangers} strangers: told {told_what:?}, {waiting} wait, {} found no room", counts.refused_requests);
    assert_eq!((waiting, counts.refused_requests), (8, strangers - 8));
    for node in [friend, node] {
        soon(node.shutdown()).await;
    }
}
