//! Several nodes provide one service, and come and go: who is called, who is called next, and what becomes of calls in flight. And
//! services that are looked up at home, or mirrored.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use support::{SOON, closed, soon, until};
use tokio::sync::Notify;
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::service::{CallError, Outcome, Pick, Presence, Providers, Registered};
use voltmesh::{Node, Service, Session};

fn allow(action: Action) -> Rule {
    Rule::new(Effect::Permit, Subject::Anyone, action, Pattern::everything(), Source::Store).unwrap()
}

/// A node at which everyone may register and discover everything.
async fn hub() -> Node {
    closed().rule(allow(Action::Register)).rule(allow(Action::Discover)).bind().await.unwrap()
}

/// A node that says who it is, registered there until this is dropped. Dropped, it says no goodbye.
struct Provider {
    node: Node,
    _listed: Registered,
}

impl Provider {
    async fn new(hub: &Node) -> Self {
        Self::with_key(hub, SecretKey::generate()).await
    }

    async fn with_key(hub: &Node, key: SecretKey) -> Self {
        let id = key.id();
        Self::serving(hub, key, Service::new("who").unary("are-you", move |_cx, ()| async move { Ok(id.to_string()) })).await
    }

    async fn serving(hub: &Node, key: SecretKey, service: Service) -> Self {
        let node = closed().key(key).open(true).bind().await.unwrap();
        let session = soon(node.connect(hub.ticket())).await.unwrap();
        let listed = soon(session.register(service)).await.unwrap();
        Self { node, _listed: listed }
    }

    fn id(&self) -> NodeId {
        self.node.id()
    }
}

/// A node that calls whoever provides `who` by the hub's directory.
async fn caller(hub: &Node) -> (Node, Session, Providers) {
    let node = closed().bind().await.unwrap();
    let session = soon(node.connect(hub.ticket())).await.unwrap();
    let providers = node.providers("who", &session).unwrap();
    (node, session, providers)
}

async fn reachable(providers: &Providers, count: usize) {
    until(|| providers.reachable().len() == count).await;
}

async fn ask(providers: &Providers) -> Result<String, CallError> {
    soon(providers.call("are-you", &())).await
}

async fn ask_for(providers: &Providers, key: u32) -> String {
    let key = key.to_be_bytes();
    soon(providers.request("are-you").affinity(&key).unary(&())).await.unwrap()
}

#[tokio::test]
async fn all_have_their_turn() {
    let hub = hub().await;
    let all = [Provider::new(&hub).await, Provider::new(&hub).await, Provider::new(&hub).await];
    let (_node, _session, providers) = caller(&hub).await;
    reachable(&providers, 3).await;
    let mut asked: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..30 {
        *asked.entry(ask(&providers).await.unwrap()).or_default() += 1;
    }
    assert_eq!(asked, all.iter().map(|provider| (provider.id().to_string(), 10)).collect());
}

#[tokio::test]
async fn a_key_keeps_its_provider_and_only_those_of_the_dead_move() {
    let hub = hub().await;
    let mut all = vec![Provider::new(&hub).await, Provider::new(&hub).await, Provider::new(&hub).await];
    let (_node, _session, providers) = caller(&hub).await;
    let providers = providers.pick(Pick::Sticky);
    reachable(&providers, 3).await;
    let mut before = BTreeMap::new();
    for key in 0..60 {
        before.insert(key, ask_for(&providers, key).await);
        assert_eq!(ask_for(&providers, key).await, before[&key]);
    }
    let dead = all.pop().unwrap();
    let gone = dead.id().to_string();
    assert!(before.values().any(|who| *who == gone));
    drop(dead);
    reachable(&providers, 2).await;
    for (key, who) in before {
        let now = ask_for(&providers, key).await;
        assert!(now != gone && (now == who || who == gone), "{key} was moved from {who} to {now}");
    }
}

#[tokio::test]
async fn no_idempotent_call_fails_while_one_of_two_goes_and_comes() {
    let hub = hub().await;
    let (key, _stays) = (SecretKey::generate(), Provider::new(&hub).await);
    let mut comes = Provider::with_key(&hub, key.clone()).await;
    let (_node, _session, providers) = caller(&hub).await;
    reachable(&providers, 2).await;
    let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
    let (stopped, counted, called) = (stop.clone(), calls.clone(), providers.clone());
    let calling = tokio::spawn(async move {
        let mut slowest = Duration::ZERO;
        while !stopped.load(SeqCst) {
            let began = Instant::now();
            called.request("are-you").idempotent().unary::<_, String>(&()).await?;
            slowest = slowest.max(began.elapsed());
            counted.fetch_add(1, SeqCst);
        }
        Ok::<_, CallError>(slowest)
    });
    for _ in 0..5 {
        let goes_at = calls.load(SeqCst) + 20;
        until(|| calls.load(SeqCst) >= goes_at || calling.is_finished()).await;
        drop(comes);
        reachable(&providers, 1).await;
        comes = Provider::with_key(&hub, key.clone()).await;
        reachable(&providers, 2).await;
    }
    stop.store(true, SeqCst);
    let slowest = soon(calling).await.unwrap().unwrap();
    println!("{} calls, the slowest took {slowest:?}", calls.load(SeqCst));
}

#[tokio::test]
async fn a_call_that_may_have_been_executed_is_not_made_again_elsewhere_unless_it_may_be() {
    let hub = hub().await;
    let (began, executed) = (Arc::new(Notify::new()), Arc::<AtomicU32>::default());
    let stuck = || {
        let (began, executed) = (began.clone(), executed.clone());
        Service::new("who").unary("are-you", move |_cx, ()| {
            let (began, executed) = (began.clone(), executed.clone());
            async move {
                executed.fetch_add(1, SeqCst);
                began.notify_one();
                std::future::pending::<Result<String, _>>().await
            }
        })
    };
    let one = Provider::serving(&hub, SecretKey::generate(), stuck()).await;
    let (_node, _session, providers) = caller(&hub).await;
    reachable(&providers, 1).await;
    let plain = tokio::spawn({
        let providers = providers.clone();
        async move { providers.call::<_, String>("are-you", &()).await }
    });
    soon(began.notified()).await;
    let marked = tokio::spawn({
        let providers = providers.clone();
        async move { providers.request("are-you").idempotent().unary::<_, String>(&()).await }
    });
    soon(began.notified()).await;
    let other = Provider::new(&hub).await;
    reachable(&providers, 2).await;
    drop(one);
    assert_eq!(soon(marked).await.unwrap().unwrap(), other.id().to_string());
    // The node that was dropped may yet come back with its session: that it does not is known when the call's time is up.
    let plain = tokio::time::timeout(SOON + SOON, plain).await.unwrap().unwrap().unwrap_err();
    assert_eq!(plain.outcome(), Outcome::Unknown, "{plain:?}");
    assert_eq!(executed.load(SeqCst), 2);
}

#[tokio::test]
async fn nobody_there_is_told_at_once_and_somebody_away_is_waited_for() {
    let hub = hub().await;
    let (_node, _session, providers) = caller(&hub).await;
    let error = ask(&providers).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent, "{error:?}");
    let key = SecretKey::generate();
    let provider = Provider::with_key(&hub, key.clone()).await;
    reachable(&providers, 1).await;
    drop(provider);
    reachable(&providers, 0).await;
    // Offline, and known: a call waits for it, unless it is not to.
    let error = soon(providers.request("are-you").fail_fast().unary::<_, String>(&())).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotSent, "{error:?}");
    let waiting = tokio::spawn({
        let providers = providers.clone();
        async move { providers.call::<_, String>("are-you", &()).await }
    });
    let provider = Provider::with_key(&hub, key).await;
    assert_eq!(soon(waiting).await.unwrap().unwrap(), provider.id().to_string());
}

#[tokio::test]
async fn a_bare_name_is_looked_up_here_and_then_at_home() {
    let home = hub().await;
    let far = Provider::new(&home).await;
    let node = closed().home_volt(home.ticket()).rule(allow(Action::Register)).bind().await.unwrap();
    let providers = node.providers_of("who").unwrap();
    assert_eq!(ask(&providers).await.unwrap(), far.id().to_string());
    // What is registered here is preferred.
    let near = Provider::new(&node).await;
    until(|| providers.reachable() == [near.id()]).await;
    assert_eq!(ask(&providers).await.unwrap(), near.id().to_string());
    drop(near);
    until(|| providers.reachable() == [far.id()]).await;
    assert_eq!(ask(&providers).await.unwrap(), far.id().to_string());
}

#[tokio::test]
async fn what_is_registered_at_one_volt_is_found_at_another_and_no_farther() {
    let first = hub().await;
    let mirroring = |of: &Node| closed().mirror(of.ticket()).rule(allow(Action::Discover)).bind();
    let second = mirroring(&first).await.unwrap();
    let third = mirroring(&second).await.unwrap();
    let reader = closed().bind().await.unwrap();
    let (at_second, at_third) =
        (soon(reader.connect(second.ticket())).await.unwrap(), soon(reader.connect(third.ticket())).await.unwrap());
    let mut watch = soon(at_second.watch("who")).await.unwrap();
    for _ in 0..3 {
        let provider = Provider::new(&first).await;
        let began = Instant::now();
        let found = match soon(watch.next()).await {
            Some(Presence::Online(found)) => found,
            other => panic!("{other:?}"),
        };
        assert_eq!((found.provider, found.at), (provider.id(), Some(first.id())));
        let appeared = began.elapsed();
        assert!(soon(at_third.discover("who")).await.unwrap().is_empty());
        // By its name the service is called through the mirror's word alone.
        let providers = reader.providers("who", &at_second).unwrap();
        assert_eq!(ask(&providers).await.unwrap(), provider.id().to_string());
        let began = Instant::now();
        provider.node.shutdown().await;
        assert!(matches!(soon(watch.next()).await, Some(Presence::Offline(_) | Presence::Withdrawn(_))));
        println!("found after {appeared:?} of its registration, gone {:?} after it began to go", began.elapsed());
        drop(provider);
        while let Some(told) = futures_util::FutureExt::now_or_never(watch.next()) {
            assert!(matches!(told, Some(Presence::Withdrawn(_))), "{told:?}");
        }
    }
}

#[tokio::test]
async fn a_session_that_a_provider_keeps_outlives_those_who_called_it() {
    let hub = hub().await;
    let provider = Provider::new(&hub).await;
    let session = provider.node.session(hub.id()).unwrap();
    let before = session.id();
    let providers = hub.providers_of("who").unwrap();
    assert_eq!(ask(&providers).await.unwrap(), provider.id().to_string());
    drop(providers);
    // Whatever that made the hub do, it did before it answers this.
    soon(session.ping(SOON)).await.unwrap();
    assert_eq!(session.id(), before);
    assert!(before.is_some());
}
