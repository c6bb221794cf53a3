//! Services in the directory of another node, on real UDP: who is listed, who sees it, and what watchers are told when nodes come
//! and go.

mod support;

use std::time::Duration;

use futures_util::FutureExt;
use quinn::{RecvStream, SendStream};
use support::raw::{RawPeer, RawStreams, rest};
use support::{SOON, closed, connected, disconnected, open_node, soon, until};
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::node::Events;
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::close::StreamCode;
use voltmesh::proto::codec::{self, Decode, Message};
use voltmesh::proto::directory::{Answer, Ask, Listing, Query, Scope, Told};
use voltmesh::proto::frame::{Frames, put_message};
use voltmesh::proto::status::Code;
use voltmesh::proto::stream::Purpose;
use voltmesh::service::{DiscoverError, Found, Listed, Mirror, Mode, Presence, RegisterError, Registered, Watch};
use voltmesh::{Event, Node, Service, Session};

fn rule(effect: Effect, who: Subject, action: Action, resource: &str) -> Rule {
    let resource: Pattern = resource.parse().unwrap();
    Rule::new(effect, who, action, resource, Source::Store).unwrap()
}

fn allow(action: Action, resource: &str) -> Rule {
    rule(Effect::Permit, Subject::Anyone, action, resource)
}

fn only(who: NodeId, action: Action, resource: &str) -> Rule {
    rule(Effect::Permit, Subject::Node(who), action, resource)
}

/// A node at which everyone may register and discover everything.
async fn volt() -> Node {
    closed().rule(allow(Action::Register, "*")).rule(allow(Action::Discover, "*")).bind().await.unwrap()
}

/// A node, and its session with the volt.
async fn peer(volt: &Node) -> (Node, Session) {
    peer_as(volt, SecretKey::generate()).await
}

async fn peer_as(volt: &Node, key: SecretKey) -> (Node, Session) {
    let node = closed().key(key).bind().await.unwrap();
    let session = soon(node.connect(volt.ticket())).await.unwrap();
    (node, session)
}

fn camera() -> Service {
    service("camera")
}

fn service(name: &str) -> Service {
    Service::new(name).version("1.2").unary("snap", |_cx, which: String| async move { Ok(which.len() as u64) })
}

async fn register(session: &Session, name: &str) -> Registered {
    soon(session.register(service(name))).await.unwrap()
}

async fn names(session: &Session, pattern: &str) -> Vec<String> {
    soon(session.discover(pattern)).await.unwrap().into_iter().map(|found| found.name).collect()
}

async fn one(session: &Session, pattern: &str) -> Found {
    let mut found = soon(session.discover(pattern)).await.unwrap();
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// What a watch tells next, in short: `+` online, `-` offline, `~` changed, `x` withdrawn, `?` missed, and the name.
async fn next(watch: &mut Watch) -> String {
    short(&soon(watch.next()).await.expect("the node runs"))
}

fn short(presence: &Presence) -> String {
    match presence {
        Presence::Online(found) => format!("+{}", found.name),
        Presence::Offline(found) => format!("-{}", found.name),
        Presence::Changed(found) => format!("~{}", found.name),
        Presence::Withdrawn(found) => format!("x{}", found.name),
        Presence::Missed => "?".into(),
        other => format!("{other:?}"),
    }
}

/// The next event about a service.
async fn told(events: &mut Events) -> (String, NodeId, bool) {
    soon(async {
        loop {
            if let Event::Service { name, provider, online } = events.next().await.expect("the node runs") {
                return (name.to_string(), provider, online);
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_registered_service_is_found_with_all_that_is_said_of_it() {
    let volt = volt().await;
    let (a, at_volt) = peer(&volt).await;
    let announce = at_volt.announce("camera").service(camera()).metadata("room", "kitchen");
    let registered = soon(announce.start()).await.unwrap();
    assert_eq!((registered.name(), registered.state()), ("camera", Listed::Online));
    let (_b, from_b) = peer(&volt).await;
    let found = one(&from_b, "cam*").await;
    assert_eq!((&*found.name, found.provider, found.at, found.online), ("camera", a.id(), None, true));
    assert_eq!(found.value("room"), Some(&b"kitchen"[..]));
    assert_eq!(found.mode, None, "that is for its provider and the owner to know");
    assert!(found.addresses.contains(&a.listening()[0]), "{:?}", found.addresses);
    let described = found.service().unwrap();
    assert_eq!((&*described.version, &*described.methods[0].name), ("1.2", "snap"));
    assert_eq!(described.methods[0].request.as_value()["type"], "string");
    assert_eq!(one(&at_volt, "camera").await.mode, Some(Mode::Public));
    assert_eq!(volt.directory().discover("*").await.unwrap().len(), 1);
    assert!(names(&from_b, "lamp*").await.is_empty());
    assert!(matches!(soon(from_b.discover("a//b")).await, Err(DiscoverError::Pattern(_))));
    // It is served, too.
    let (c, _) = peer(&volt).await;
    assert!(c.services().is_empty() && a.services().len() == 1);
}

#[tokio::test]
async fn a_service_goes_offline_with_its_session_and_comes_back_with_it() {
    let volt = volt().await;
    let mut events = volt.events();
    let (a, at_volt) = peer(&volt).await;
    let mut of_a = a.events();
    let _registered = register(&at_volt, "camera").await;
    let (_b, from_b) = peer(&volt).await;
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    assert_eq!(next(&mut watch).await, "+camera");
    assert_eq!(told(&mut events).await, ("camera".into(), a.id(), true));
    for round in 0..3 {
        // The volt closes, and the provider dials again.
        volt.session(a.id()).unwrap().close();
        assert_eq!(next(&mut watch).await, "-camera", "round {round}");
        assert_eq!(next(&mut watch).await, "+camera", "round {round}");
        assert_eq!(told(&mut events).await, ("camera".into(), a.id(), false));
        assert_eq!(told(&mut events).await, ("camera".into(), a.id(), true));
        disconnected(&mut of_a, volt.id()).await;
        // Whoever hears that the session is up finds it restored.
        connected(&mut of_a, volt.id()).await;
        let here = volt.directory().discover("camera").now_or_never().unwrap().unwrap();
        assert!(here.len() == 1 && here[0].online);
    }
    a.release(volt.id());
    assert_eq!(next(&mut watch).await, "-camera");
    assert!(names(&from_b, "*").await.is_empty());
    let listed = soon(from_b.query("*").offline(true).discover()).await.unwrap();
    assert!(listed.len() == 1 && !listed[0].online);
    assert_eq!(watch.next().now_or_never(), None);
}

#[tokio::test]
async fn a_killed_provider_is_offline_and_the_next_process_of_it_is_online_again() {
    let volt = volt().await;
    let (_b, from_b) = peer(&volt).await;
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    let key = SecretKey::generate();
    let mut epoch = 0;
    for round in 0..10 {
        let (a, at_volt) = peer_as(&volt, key.clone()).await;
        let _registered = register(&at_volt, "camera").await;
        let found = one(&from_b, "*").await;
        assert!(found.online && found.epoch > epoch, "round {round}");
        epoch = found.epoch;
        assert_eq!(next(&mut watch).await, "+camera", "round {round}");
        drop((a, at_volt));
        assert_eq!(next(&mut watch).await, "-camera", "round {round}");
    }
}

#[tokio::test]
async fn another_node_with_the_same_key_takes_over_and_never_finds_its_name_taken() {
    let volt = volt().await;
    let (_b, from_b) = peer(&volt).await;
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    let key = SecretKey::generate();
    let (old, of_old) = peer_as(&volt, key.clone()).await;
    let left = register(&of_old, "camera").await;
    assert_eq!(next(&mut watch).await, "+camera");
    // It will not dial again when the new one takes its place.
    old.suspend();
    let (_new, of_new) = peer_as(&volt, key).await;
    let registered = register(&of_new, "camera").await;
    assert_eq!(registered.state(), Listed::Online);
    assert_eq!(next(&mut watch).await, "-camera");
    assert_eq!(next(&mut watch).await, "+camera");
    // What the old one still says changes nothing.
    drop((left, of_old, old));
    assert_eq!(names(&from_b, "*").await, ["camera"]);
    assert_eq!(watch.next().now_or_never(), None);
}

#[tokio::test]
async fn a_mode_says_who_of_those_that_may_discover_finds_it() {
    let (friend, named) = (SecretKey::generate(), SecretKey::generate());
    let rules = [allow(Action::Register, "*"), allow(Action::Discover, "*"), only(friend.id(), Action::Call, "x/y")];
    let volt = rules.into_iter().fold(closed(), |builder, rule| builder.rule(rule)).bind().await.unwrap();
    let (_a, at_volt) = peer(&volt).await;
    let announce = |name: &'static str, mode| at_volt.announce(name).service(service(name)).mode(mode).start();
    let mut kept = Vec::new();
    for (name, mode) in [("all", Mode::Public), ("few", Mode::Trusted), ("one", Mode::Private(vec![named.id()]))] {
        kept.push(soon(announce(name, mode)).await.unwrap());
    }
    let (_f, from_friend) = peer_as(&volt, friend).await;
    let (_n, from_named) = peer_as(&volt, named).await;
    let (_s, from_stranger) = peer(&volt).await;
    assert_eq!(names(&at_volt, "*").await, ["all", "few", "one"]);
    assert_eq!(names(&from_friend, "*").await, ["all", "few"]);
    assert_eq!(names(&from_named, "*").await, ["all", "one"]);
    assert_eq!(names(&from_stranger, "*").await, ["all"]);
    assert_eq!(volt.directory().discover("*").await.unwrap().len(), 3);
}

#[tokio::test]
async fn without_a_rule_nothing_is_registered_and_nothing_is_seen() {
    let key = SecretKey::generate();
    let volt = closed().rule(allow(Action::Connect, "*")).rule(only(key.id(), Action::Register, "camera")).bind().await.unwrap();
    let (_a, at_volt) = peer_as(&volt, key).await;
    let (_b, from_b) = peer(&volt).await;
    let _registered = register(&at_volt, "camera").await;
    let refused = |error: RegisterError| match error {
        RegisterError::Refused(status) => status.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(soon(at_volt.register(service("lamp"))).await.unwrap_err()), Code::PermissionDenied);
    assert_eq!(refused(soon(from_b.register(camera())).await.unwrap_err()), Code::PermissionDenied);
    assert!(names(&from_b, "*").await.is_empty());
    assert_eq!(names(&at_volt, "*").await, ["camera"], "what is one's own is seen");
    assert!(matches!(at_volt.announce("lamp").begin(), Err(RegisterError::NotServed(_))), "a refused one is not served");
    let long = at_volt.announce("camera").metadata("k", vec![0; 5_000]).begin();
    assert!(matches!(long, Err(RegisterError::Invalid(_))));
}

#[tokio::test]
async fn a_visitor_may_look_but_not_register() {
    let volt = volt().await;
    let (_a, at_volt) = peer(&volt).await;
    let _registered = register(&at_volt, "camera").await;
    let visitor = closed().visitor().bind().await.unwrap();
    let session = soon(visitor.connect(volt.ticket())).await.unwrap();
    assert_eq!(names(&session, "*").await, ["camera"]);
    match soon(session.register(camera())).await {
        Err(RegisterError::Refused(status)) => assert_eq!(status.code, Code::FailedPrecondition),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_watch_goes_on_over_a_change_of_the_watchers_own_session() {
    let volt = volt().await;
    let (a, at_volt) = peer(&volt).await;
    let mut of_a = a.events();
    let (stays, comes_back, _) = (register(&at_volt, "stays").await, register(&at_volt, "back").await, ());
    let goes = register(&at_volt, "goes").await;
    let (b, from_b) = peer(&volt).await;
    let mut of_b = b.events();
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    for name in ["+back", "+goes", "+stays"] {
        assert_eq!(next(&mut watch).await, name);
    }
    // Meanwhile the watcher is kept from hearing anything.
    b.suspend();
    volt.session(b.id()).unwrap().close();
    disconnected(&mut of_b, volt.id()).await;
    drop((goes, comes_back));
    until(|| volt.directory().discover("*").now_or_never().unwrap().unwrap().len() == 1).await;
    let _back = register(&at_volt, "back").await;
    let _new = register(&at_volt, "new").await;
    b.resume();
    connected(&mut of_b, volt.id()).await;
    for name in ["-back", "+back", "+new", "-goes"] {
        assert_eq!(next(&mut watch).await, name);
    }
    // And on the new session as on the old one.
    drop(stays);
    assert_eq!(next(&mut watch).await, "-stays");
    assert_eq!(next(&mut watch).await, "xstays");
    assert_eq!(watch.next().now_or_never(), None);
    assert_eq!(of_a.next().now_or_never(), None, "nothing happened to the provider");
}

#[tokio::test]
async fn a_dropped_registration_is_withdrawn_and_may_be_made_again_at_once() {
    let volt = volt().await;
    let (a, at_volt) = peer(&volt).await;
    let mut watch = soon(at_volt.query("*").offline(true).watch()).await.unwrap();
    for round in 0..20 {
        let registered = register(&at_volt, "camera").await;
        assert_eq!(next(&mut watch).await, "+camera", "round {round}");
        drop(registered);
        assert!(a.services().is_empty());
        assert_eq!(next(&mut watch).await, "-camera", "round {round}");
        assert_eq!(next(&mut watch).await, "xcamera", "round {round}");
    }
    assert!(soon(at_volt.query("*").offline(true).discover()).await.unwrap().is_empty());
}

/// Asks something of the directory on the stream with this number.
async fn ask(session: &RawStreams, stream: u64, ask: &Ask) -> (SendStream, RecvStream) {
    let mut bytes = session.head(stream);
    bytes.push(Purpose::Directory as u8);
    put_message(&mut bytes, ask);
    session.open(&bytes).await
}

/// The next message on a stream.
async fn message<M: Message + Decode<()>>(recv: &mut RecvStream) -> M {
    let mut frames = Frames::new(M::LIMIT);
    loop {
        if let Some(frame) = frames.next_frame().unwrap() {
            return codec::decode(&frame).unwrap();
        }
        // One byte at a time: what follows is for the next one who reads.
        let chunk = soon(recv.read_chunk(1, true)).await.unwrap().expect("the stream goes on");
        frames.push(chunk.bytes);
    }
}

fn listing(name: impl Into<String>) -> Listing {
    Listing { name: name.into(), mode: Mode::Public, metadata: Vec::new(), description: Vec::new() }
}

fn refusal(answer: Answer) -> Code {
    match answer {
        Answer::Refused(status) => status.code,
        Answer::Done => panic!("it is listed"),
    }
}

#[tokio::test]
async fn one_registration_or_watch_more_than_a_session_may_have_is_refused() {
    let volt = volt().await;
    let session = RawPeer::plain().greet(&volt).await.answering();
    let mut kept = Vec::new();
    let mut streams = (2u64..).step_by(2);
    for n in 0..256 {
        let (send, mut recv) = ask(&session, streams.next().unwrap(), &Ask::Register(listing(format!("s{n}")))).await;
        assert_eq!(message::<Answer>(&mut recv).await, Answer::Done);
        kept.push((send, recv));
    }
    let (_send, mut recv) = ask(&session, streams.next().unwrap(), &Ask::Register(listing("last"))).await;
    assert_eq!(refusal(message(&mut recv).await), Code::ResourceExhausted);
    // One of those there may say something else, and make room.
    let (mut send, mut recv) = kept.pop().unwrap();
    let mut other = Vec::new();
    put_message(&mut other, &Listing { metadata: vec![("k".into(), vec![1])], ..listing("s255") });
    send.write_all(&other).await.unwrap();
    assert_eq!(message::<Answer>(&mut recv).await, Answer::Done);
    assert_eq!(volt.directory().discover("s255").await.unwrap()[0].value("k"), Some(&[1][..]));
    send.finish().unwrap();
    until(|| volt.directory().discover("s255").now_or_never().unwrap().unwrap().is_empty()).await;
    let (_send, mut recv) = ask(&session, streams.next().unwrap(), &Ask::Register(listing("last"))).await;
    assert_eq!(message::<Answer>(&mut recv).await, Answer::Done);
    // And so with watches.
    let query = Query { pattern: "nothing".into(), offline: false, scope: Scope::All };
    let mut watches = Vec::new();
    for _ in 0..64 {
        let (send, mut recv) = ask(&session, streams.next().unwrap(), &Ask::Watch(query.clone())).await;
        assert_eq!(message::<Told>(&mut recv).await, Told::Current);
        watches.push((send, recv));
    }
    let (_send, mut recv) = ask(&session, streams.next().unwrap(), &Ask::Watch(query.clone())).await;
    assert!(matches!(message(&mut recv).await, Told::Refused(status) if status.code == Code::ResourceExhausted));
    let (_send, mut recv) = ask(&session, streams.next().unwrap(), &Ask::Discover(query)).await;
    assert_eq!(message::<Told>(&mut recv).await, Told::Current);
}

#[tokio::test]
async fn nonsense_on_a_stream_of_the_directory_ends_that_stream_only() {
    let volt = volt().await;
    let session = RawPeer::plain().greet(&volt).await.answering();
    for (stream, nonsense) in [(2, &b"\x01\xff"[..]), (4, b"\xff\xff\xff\xff\xff\xff\xff\xff"), (6, b"\x02\x00\x00")] {
        let mut bytes = session.head(stream);
        bytes.push(Purpose::Directory as u8);
        bytes.extend_from_slice(nonsense);
        let (_send, mut recv) = session.open(&bytes).await;
        assert_eq!(rest(&mut recv).await.unwrap_err(), (StreamCode::Protocol as u32).into());
    }
    let (mut send, mut recv) = ask(&session, 8, &Ask::Register(listing("camera"))).await;
    assert_eq!(message::<Answer>(&mut recv).await, Answer::Done);
    let mut renamed = Vec::new();
    put_message(&mut renamed, &listing("lamp"));
    send.write_all(&renamed).await.unwrap();
    assert_eq!(refusal(message(&mut recv).await), Code::InvalidArgument);
    assert!(volt.directory().discover("*").await.unwrap().is_empty());
    let (_send, mut recv) = ask(&session, 10, &Ask::Register(listing("volt"))).await;
    assert_eq!(refusal(message(&mut recv).await), Code::InvalidArgument);
    let (_send, mut recv) =
        ask(&session, 12, &Ask::Discover(Query { pattern: "a**".into(), offline: false, scope: Scope::All })).await;
    assert!(matches!(message(&mut recv).await, Told::Refused(status) if status.code == Code::InvalidArgument));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_so_and_then_what_is_right() {
    const CHANGES: usize = 700;
    let volt = volt().await;
    let (a, at_volt) = peer(&volt).await;
    let words = "x".repeat(60_000);
    let version = |n: usize| service("camera").version(format!("{n}")).describe(words.clone());
    let served = a.serve(version(0)).unwrap();
    let _registered = soon(at_volt.announce("camera").start()).await.unwrap();
    let (_b, from_b) = peer(&volt).await;
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    let described = |found: &Found| found.service().unwrap().version;
    for n in 1..=CHANGES {
        served.replace(version(n)).unwrap();
        let now = || volt.directory().discover("*").now_or_never().unwrap().unwrap();
        until(|| described(&now()[0]) == n.to_string()).await;
    }
    let (mut seen, mut missed) = (0, 0);
    while seen < CHANGES {
        match soon(watch.next()).await.unwrap() {
            Presence::Online(found) => assert_eq!(described(&found), "0"),
            Presence::Changed(found) => {
                let now: usize = described(&found).parse().unwrap();
                assert!(now == seen + 1 || (missed > 0 && now > seen), "{now} after {seen}");
                seen = now;
            }
            Presence::Missed => missed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(missed, 1);
}

#[tokio::test]
async fn what_policy_takes_back_is_withdrawn_and_hidden_at_once() {
    let volt = volt().await;
    let (a, at_volt) = peer(&volt).await;
    let mut registered = register(&at_volt, "camera").await;
    let _lamp = register(&at_volt, "lamp").await;
    let (b, from_b) = peer(&volt).await;
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("+camera".into(), "+lamp".into()));
    soon(volt.add_rule(rule(Effect::Deny, Subject::Node(a.id()), Action::Register, "camera"))).await.unwrap();
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("-camera".into(), "xcamera".into()));
    soon(async {
        while registered.state() == Listed::Online {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = soon(registered.listed(SOON)).await.unwrap_err();
    assert!(matches!(refused, RegisterError::Refused(status) if status.code == Code::PermissionDenied));
    let hide = rule(Effect::Deny, Subject::Node(b.id()), Action::Discover, "lamp");
    soon(volt.add_rule(hide.clone())).await.unwrap();
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("-lamp".into(), "xlamp".into()));
    soon(volt.remove_rule(hide.id())).await.unwrap();
    assert_eq!(next(&mut watch).await, "+lamp");
}

#[tokio::test]
async fn a_nodes_own_services_are_found_as_far_as_they_may_be_called() {
    let door =
        Service::new("door").unary("open", |_cx, _: ()| async move { Ok(()) }).unary("ring", |_cx, _: ()| async move { Ok(()) });
    let volt = closed().service(door).rule(allow(Action::Call, "door/ring")).bind().await.unwrap();
    let (b, from_b) = peer(&volt).await;
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    assert_eq!(next(&mut watch).await, "+door");
    let methods = |found: &Found| found.service().unwrap().methods.into_iter().map(|method| method.name).collect::<Vec<_>>();
    let found = one(&from_b, "*").await;
    assert_eq!((found.provider, methods(&found)), (volt.id(), vec!["ring".to_owned()]));
    soon(volt.add_rule(only(b.id(), Action::Call, "door/open"))).await.unwrap();
    assert_eq!(next(&mut watch).await, "~door");
    assert_eq!(methods(&one(&from_b, "*").await), ["open", "ring"]);
    // Served, served otherwise, and not any more.
    soon(volt.add_rule(allow(Action::Discover, "bell"))).await.unwrap();
    let bell = volt.serve(service("bell")).unwrap();
    assert_eq!(next(&mut watch).await, "+bell");
    bell.replace(service("bell").version("2")).unwrap();
    assert_eq!(next(&mut watch).await, "~bell");
    drop(bell);
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("-bell".into(), "xbell".into()));
}

#[tokio::test]
async fn what_is_served_otherwise_is_listed_otherwise() {
    let volt = volt().await;
    let (a, at_volt) = peer(&volt).await;
    let served = a.serve(camera()).unwrap();
    let registered = soon(at_volt.announce("camera").start()).await.unwrap();
    let mut watch = volt.directory().watch("*").await.unwrap();
    assert_eq!(next(&mut watch).await, "+camera");
    served.replace(camera().version("2")).unwrap();
    assert_eq!(next(&mut watch).await, "~camera");
    drop(served);
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("-camera".into(), "xcamera".into()));
    let _again = a.serve(camera()).unwrap();
    assert_eq!(next(&mut watch).await, "+camera");
    drop(registered);
    assert_eq!(next(&mut watch).await, "-camera");
}

#[tokio::test]
async fn what_is_registered_elsewhere_is_mirrored_one_hop_and_as_long_as_that_is_there() {
    let (first, second, third) = (volt().await, volt().await, volt().await);
    let (a, at_first) = peer(&first).await;
    let _camera = register(&at_first, "camera").await;
    let hidden = at_first.announce("hidden").service(service("hidden")).mode(Mode::Trusted).start();
    let _hidden = soon(hidden).await.unwrap();
    let own = first.serve(service("own")).unwrap();
    let to_first = soon(second.connect(first.ticket())).await.unwrap();
    let to_second = soon(third.connect(second.ticket())).await.unwrap();
    let mut of_second = second.events();
    let mirror = Mirror::of(&to_first).unwrap();
    let _further = Mirror::of(&to_second).unwrap();
    let (_b, from_b) = peer(&second).await;
    let mut watch = soon(from_b.watch("*")).await.unwrap();
    assert_eq!(next(&mut watch).await, "+camera");
    let found = one(&from_b, "*").await;
    assert_eq!((found.provider, found.at, found.online), (a.id(), Some(first.id()), true));
    assert_eq!(found.service().unwrap().version, "1.2");
    assert!(found.addresses.contains(&a.listening()[0]));
    // Comes and goes with its provider …
    first.session(a.id()).unwrap().close();
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("-camera".into(), "+camera".into()));
    let lamp = register(&at_first, "lamp").await;
    assert_eq!(next(&mut watch).await, "+lamp");
    drop(lamp);
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("-lamp".into(), "xlamp".into()));
    // … and with the session that tells of it, on the next one at once when it is up.
    first.session(second.id()).unwrap().close();
    disconnected(&mut of_second, first.id()).await;
    assert_eq!(next(&mut watch).await, "-camera");
    connected(&mut of_second, first.id()).await;
    assert_eq!(next(&mut watch).await, "+camera");
    assert_eq!(second.directory().discover("*").await.unwrap().len(), 1);
    // What was registered with the third's neighbour only passes on: what that one mirrors, not.
    let (_c, at_second) = peer(&second).await;
    let _direct = register(&at_second, "direct").await;
    let mut far = third.directory().watch("*").await.unwrap();
    assert_eq!(next(&mut far).await, "+direct");
    assert_eq!(far.next().now_or_never(), None);
    assert_eq!(next(&mut watch).await, "+direct");
    drop((mirror, own));
    assert_eq!((next(&mut watch).await, next(&mut watch).await), ("-camera".into(), "xcamera".into()));
}

#[tokio::test]
async fn a_registration_may_begin_before_the_peer_is_there() {
    let volt = volt().await;
    let a = closed().bind().await.unwrap();
    let nowhere = open_node(support::echo()).await;
    let session = a.hold(volt.id(), &[]);
    let mut registered = session.announce("camera").service(camera()).begin().unwrap();
    assert_eq!(registered.state(), Listed::Waiting);
    a.hold(volt.id(), &volt.listening());
    soon(registered.listed(SOON)).await.unwrap();
    let mut of_a = a.events();
    soon(volt.shutdown()).await;
    disconnected(&mut of_a, volt.id()).await;
    until(|| registered.state() == Listed::Waiting).await;
    let none = a.hold(nowhere.id(), &nowhere.listening());
    let short = soon(none.announce("camera").start()).await;
    assert!(matches!(short, Err(RegisterError::Refused(_))), "{short:?}");
    drop(a);
    let ended = soon(registered.listed(Duration::from_secs(1))).await;
    assert!(ended.is_err());
}
