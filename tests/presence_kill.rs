//! A provider that is killed again and again while it is discovered and called: real processes, SIGKILL, and the same key each time.
#![cfg(feature = "cli")]

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::process::{Home, Running};
use support::{closed, long, loopback, soon, until};
use tokio::task::block_in_place;
use voltmesh::Node;
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::body::ContentType;
use voltmesh::service::{Presence, Providers, Watch};

/// What has happened to the provider's processes, which are numbered.
#[derive(Default)]
struct Lives {
    /// The last one that answered a call.
    answered: AtomicU64,
    /// The last one that was killed.
    killed: AtomicU64,
    calls: AtomicU64,
    discoveries: AtomicU64,
}

async fn hub() -> Node {
    let allow = |action| Rule::new(Effect::Permit, Subject::Anyone, action, Pattern::everything(), Source::Store).unwrap();
    closed().rule(allow(Action::Register)).rule(allow(Action::Discover)).bind().await.unwrap()
}

/// The provider's node and what it serves, which says which life of it this is.
fn provider(home: &Home, listen: &str, life: u64) -> (Running, Running) {
    let up = home.up(&["--listen", listen]);
    // Were its name taken, this would say so and not serve.
    let serving = home.serve("camera/snap", &format!("echo {life}"), &["--at", "hub"]);
    (up, serving)
}

/// Calls without end: no answer comes from a life that was over when the call began.
async fn call(providers: Providers, lives: Arc<Lives>) {
    loop {
        let dead = lives.killed.load(SeqCst);
        let call = providers.request("snap").content_type(ContentType::Json).idempotent();
        match call.timeout(Duration::from_secs(60)).unary::<_, u64>(&()).await {
            Ok(life) => {
                assert!(life > dead, "{life} answered, and {dead} was dead");
                lives.answered.fetch_max(life, SeqCst);
                lives.calls.fetch_add(1, SeqCst);
            }
            // Its node is up and what it serves is not there yet.
            Err(error) => {
                assert!(error.to_string().contains("UNIMPLEMENTED") || error.to_string().contains("NOT_FOUND"), "{error}")
            }
        }
    }
}

async fn discover(node: Node, hub: voltmesh::id::NodeId, lives: Arc<Lives>) {
    let session = node.session(hub).unwrap();
    let mut epoch = 0;
    loop {
        let found = session.query("camera").offline(true).discover().await.unwrap();
        assert!(found.len() <= 1, "{found:#?}");
        for found in found {
            assert!(found.epoch >= epoch, "{} after {epoch}", found.epoch);
            epoch = found.epoch;
        }
        lives.discoveries.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
    }
}

/// What a watch has told: each turn once, online and offline in turn, with epochs that grow. Gives how often it came online.
async fn turns(mut watch: Watch, rounds: u64) -> u64 {
    let (mut online, mut epoch, mut came) = (false, 0, 0);
    loop {
        match watch.next().await.expect("the node runs") {
            Presence::Online(found) => {
                assert!(!online && found.epoch > epoch, "online again: {found:?}");
                (online, epoch, came) = (true, found.epoch, came + 1);
                if came == rounds {
                    return came;
                }
            }
            Presence::Offline(found) => {
                assert!(online && found.epoch == epoch, "offline again: {found:?}");
                online = false;
            }
            Presence::Withdrawn(_) => assert!(!online),
            Presence::Changed(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_provider_is_never_stale_never_in_its_own_way_and_each_turn_is_told_once() {
    let rounds = if long() { 200 } else { 4 };
    let (hub, home) = (hub().await, Home::new());
    let caller = closed().bind().await.unwrap();
    let session = soon(caller.connect(hub.ticket())).await.unwrap();
    let watching = tokio::spawn(turns(soon(session.watch("camera")).await.unwrap(), rounds));
    home.ok(&["policy", "allow", "*", "call", "camera/*"]);
    let listen = UdpSocket::bind(loopback()).unwrap().local_addr().unwrap().to_string();
    block_in_place(|| {
        let _up = home.up(&["--listen", &listen]);
        home.ok(&["connect", &hub.ticket().to_string(), "--as", "hub"]);
    });

    let lives = Arc::<Lives>::default();
    let mut running = Some(block_in_place(|| provider(&home, &listen, 1)));
    let providers = caller.providers("camera", &session).unwrap();
    let mut busy = tokio::task::JoinSet::new();
    busy.spawn(call(providers, lives.clone()));
    busy.spawn(discover(caller.clone(), hub.id(), lives.clone()));
    let mut slowest = Duration::ZERO;
    for life in 1..=rounds {
        let began = Instant::now();
        tokio::select! {
            () = until(|| lives.answered.load(SeqCst) == life) => {}
            failed = busy.join_next() => panic!("{failed:?}"),
        }
        slowest = slowest.max(began.elapsed());
        // Killed in the middle of a call, or between two.
        let some = lives.calls.load(SeqCst) + rand::random_range(0..10);
        until(|| lives.calls.load(SeqCst) >= some).await;
        if life < rounds {
            let (up, serving) = running.take().unwrap();
            up.signal(Signal::KILL);
            serving.signal(Signal::KILL);
            block_in_place(|| drop((up, serving)));
            lives.killed.store(life, SeqCst);
            running = Some(block_in_place(|| provider(&home, &listen, life + 1)));
        }
    }
    assert_eq!(soon(watching).await.unwrap(), rounds);
    let (calls, discoveries) = (lives.calls.load(SeqCst), lives.discoveries.load(SeqCst));
    println!(
        "{rounds} lives, {calls} calls, {discoveries} discoveries; answered at the latest {slowest:?} after it served again"
    );
    busy.shutdown().await;
}
