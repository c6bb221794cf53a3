//! A service in a directory, and who watches it there, while paths come and go and nodes are killed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::net::sim::{LinkProfile, SimNetwork};
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::service::{Pick, Presence, Registered};
use voltmesh::{Event, Node, Service};

use crate::support::*;

const VOLT: u8 = 1;
const PROVIDER: u8 = 2;
const WATCHER: u8 = 3;

async fn node(network: &SimNetwork, host: u8, key: &SecretKey) -> Node {
    let rule = |action| Rule::new(Effect::Permit, Subject::Anyone, action, "*".parse().unwrap(), Source::Config).unwrap();
    let builder = Node::builder().rule(rule(Action::Register)).rule(rule(Action::Discover));
    bind(network, ip(host), key, builder).await
}

/// A provider and its registration, whether or not the volt is there.
async fn provider(network: &SimNetwork, key: &SecretKey, volt: NodeId) -> (Node, Registered) {
    let node = node(network, PROVIDER, key).await;
    let session = node.hold(volt, &[(ip(VOLT), PORT).into()]);
    let camera = Service::new("camera").unary("snap", |_cx, n: u64| async move { Ok(n) });
    let registered = session.announce("camera").service(camera).begin().unwrap();
    (node, registered)
}

/// The node's events about the service, and that it is offline whenever its provider is told to be gone.
fn check_events(node: &Node, provider: NodeId) -> tokio::task::JoinHandle<usize> {
    let mut events = node.events();
    tokio::spawn(async move {
        let (mut online, mut turns) = (false, 0);
        while let Some(event) = events.next().await {
            match event {
                Event::Service { online: now, .. } => {
                    assert_ne!(now, online, "it turned to what it was");
                    (online, turns) = (now, turns + 1);
                }
                Event::Disconnected { peer, .. } if peer == provider => assert!(!online, "its provider is gone"),
                Event::Missed(_) => panic!("events were missed"),
                _ => {}
            }
        }
        turns
    })
}

/// What was watched, in order.
type Seen = Arc<Mutex<Vec<(bool, u64)>>>;

fn is_online(seen: &Seen) -> bool {
    seen.lock().unwrap().last().is_some_and(|(online, _)| *online)
}

async fn listed(volt: &Node) -> bool {
    volt.directory().discover("camera").await.unwrap().len() == 1
}

/// Something goes wrong for a while.
async fn fault(network: &SimNetwork, random: &mut StdRng, which: u8) {
    let (from, to) = if which == 0 { (PROVIDER, VOLT) } else { (WATCHER, VOLT) };
    network.partition(ip(from), ip(to));
    // Now and then for longer than the session lives.
    let long = random.random_ratio(1, 4);
    sleep(if long { ms(random, 125_000, 140_000) } else { ms(random, 100, 20_000) }).await;
    network.heal(ip(from), ip(to));
}

#[test]
fn watchers_see_every_turn_once_and_in_order_whatever_happens_to_paths_and_nodes() {
    let turns = rounds(12, |seed| async move {
        let (network, mut random) = network(seed);
        network.default_link(LinkProfile { jitter: ms(&mut random, 0, 10), ..LinkProfile::perfect(ms(&mut random, 1, 40)) });
        let keys = [seed, seed + 1, seed + 2].map(key);
        let mut volt = node(&network, VOLT, &keys[0]).await;
        let (mut a, mut registered) = provider(&network, &keys[1], volt.id()).await;
        let watcher = node(&network, WATCHER, &keys[2]).await;
        let session = watcher.hold(volt.id(), &[(ip(VOLT), PORT).into()]);
        let mut checks = vec![check_events(&volt, a.id())];
        let mut watch = session.watch("*").await.unwrap();
        let seen = Seen::default();
        let log = seen.clone();
        let reading = tokio::spawn(async move {
            while let Some(presence) = watch.next().await {
                match presence {
                    Presence::Online(found) => log.lock().unwrap().push((true, found.epoch)),
                    Presence::Offline(found) => log.lock().unwrap().push((false, found.epoch)),
                    Presence::Changed(_) | Presence::Withdrawn(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        for _ in 0..8 {
            sleep(ms(&mut random, 0, 15_000)).await;
            match random.random_range(0..5u8) {
                0 | 1 => fault(&network, &mut random, 0).await,
                2 => fault(&network, &mut random, 1).await,
                3 => {
                    network.host(ip(PROVIDER)).crash();
                    drop((a, registered));
                    sleep(ms(&mut random, 0, 10_000)).await;
                    (a, registered) = provider(&network, &keys[1], volt.id()).await;
                }
                _ => {
                    network.host(ip(VOLT)).crash();
                    drop(volt);
                    sleep(ms(&mut random, 0, 10_000)).await;
                    volt = node(&network, VOLT, &keys[0]).await;
                    checks.push(check_events(&volt, a.id()));
                }
            }
        }
        until(Duration::from_secs(60), || joined(&a, &volt) && joined(&watcher, &volt) && is_online(&seen)).await;
        sleep(Duration::from_secs(15)).await;
        assert!(is_online(&seen) && listed(&volt).await, "{:?}", registered.state());
        let seen = seen.lock().unwrap().clone();
        assert!(seen.iter().zip([true, false].iter().cycle()).all(|((online, _), expected)| online == expected), "{seen:?}");
        let epochs: Vec<_> = seen.iter().filter(|(online, _)| *online).map(|(_, epoch)| *epoch).collect();
        assert!(epochs.is_sorted_by(|one, next| one < next), "{epochs:?}");
        reading.abort();
        drop((volt, a, watcher, registered, session));
        let mut turns = 0;
        for check in checks {
            turns += check.await.unwrap();
        }
        (turns, seen.len())
    });
    println!("turns at the volt, and as they were watched: {turns:?}");
}

/// A node that says which host it is on, listed at the volt.
async fn providing(network: &SimNetwork, host: u8, volt: NodeId) -> (Node, Registered) {
    let builder = Node::builder().open(true);
    let node = bind(network, ip(host), &key(u64::from(host)), builder).await;
    let session = node.hold(volt, &[(ip(VOLT), PORT).into()]);
    let service = Service::new("where").unary("are-you", move |_cx, ()| async move { Ok(host) });
    let registered = session.register(service).await.unwrap();
    (node, registered)
}

#[test]
fn of_several_providers_the_nearest_is_called_as_long_as_it_is_the_nearest() {
    simulate(async {
        let (network, _) = network(seed());
        let volt = node(&network, VOLT, &key(1)).await;
        let (near, far, caller) = (10, 11, 12);
        let distance = |host, delay| network.link(ip(host), ip(caller), LinkProfile::perfect(Duration::from_millis(delay)));
        distance(near, 5);
        distance(far, 60);
        let _providers = [providing(&network, near, volt.id()).await, providing(&network, far, volt.id()).await];
        let node = bind(&network, ip(caller), &key(12), Node::builder()).await;
        let session = node.hold(volt.id(), &[(ip(VOLT), PORT).into()]);
        let nearest = node.providers("where", &session).unwrap().pick(Pick::LeastLatency);
        let each = node.providers("where", &session).unwrap();
        until(Duration::from_secs(30), || nearest.reachable().len() == 2 && each.reachable().len() == 2).await;
        for _ in 0..10 {
            assert_eq!(nearest.call::<_, u8>("are-you", &()).await.unwrap(), near);
        }
        // Distances change, and calls in turn measure both.
        distance(near, 200);
        for _ in 0..40 {
            each.call::<_, u8>("are-you", &()).await.unwrap();
        }
        assert_eq!(nearest.call::<_, u8>("are-you", &()).await.unwrap(), far);
    });
}
