//! Nodes that reach each other through relays, while networks and relays come and go.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};
use voltmesh::id::{SecretKey, Ticket};
use voltmesh::net::sim::{LinkProfile, SimNetwork};
use voltmesh::node::config::{Config, Limits, RelayMode};
use voltmesh::session::PathKind;
use voltmesh::{Event, Node, Session};

use crate::support::*;

const LONG: Duration = Duration::from_secs(30);

/// A relay that carries for anyone, on a host.
async fn relay(network: &SimNetwork, host: u8, key: &SecretKey) -> Node {
    bind(network, ip(host), key, Node::builder().open(true).relay(RelayMode::Open)).await
}

/// A node that serves, and is attached to these relays.
async fn behind(network: &SimNetwork, host: u8, key: &SecretKey, relays: &[Ticket]) -> (Node, Served) {
    let served = Served::default();
    let builder = Node::builder().open(true).service(served.service());
    let builder = relays.iter().fold(builder, |builder, relay| builder.home_relay(relay.clone()));
    let node = bind(network, ip(host), key, builder).await;
    for relay in relays {
        let session = node.session(relay.id).expect("it is wanted");
        until(LONG, || is_up(&session)).await;
    }
    (node, served)
}

/// Two nodes that cannot reach each other, on hosts 1 and 2, both attached to relays on the hosts from 3 on.
struct Apart {
    relays: Vec<Node>,
    a: Node,
    b: Node,
    to_b: Session,
    served: Served,
    told: Told,
}

impl Apart {
    async fn new(network: &SimNetwork, seed: u64, relays: u8) -> Self {
        network.partition(ip(1), ip(2));
        let mut there = Vec::new();
        for number in 0..relays {
            there.push(relay(network, 3 + number, &key(seed + u64::from(number))).await);
        }
        let tickets: Vec<Ticket> = there.iter().map(Node::ticket).collect();
        let (a, _) = behind(network, 1, &key(seed + 100), &tickets).await;
        let (b, served) = behind(network, 2, &key(seed + 101), &tickets).await;
        let told = Told::by(&a, b.id());
        let to_b = a.hold(b.id(), &[(ip(2), PORT).into()]);
        until(LONG, || joined(&a, &b)).await;
        Self { relays: there, a, b, to_b, served, told }
    }

    /// The host of the relay that carries the session now.
    fn carrier(&self) -> Option<u8> {
        let Some(PathKind::Relayed(by)) = self.to_b.path() else { return None };
        (3..).zip(&self.relays).find(|(_, relay)| relay.id() == by).map(|(host, _)| host)
    }
}

/// Calls all the time until it is told to stop; gives how long each answer took.
struct Calling {
    stop: Arc<Mutex<bool>>,
    took: tokio::task::JoinHandle<Vec<(Instant, Duration)>>,
}

impl Calling {
    /// So many a second.
    fn start(to: &Session, per_second: u64) -> Self {
        let (stop, to) = (Arc::new(Mutex::new(false)), to.clone());
        let stopped = stop.clone();
        let took = tokio::spawn(async move {
            let mut calls = tokio::task::JoinSet::new();
            while !*stopped.lock().unwrap() {
                let to = to.clone();
                calls.spawn(async move {
                    let began = Instant::now();
                    (began, echo(&to).await)
                });
                sleep(Duration::from_micros(1_000_000 / per_second)).await;
            }
            calls.join_all().await
        });
        Self { stop, took }
    }

    /// How long each took; none has failed.
    async fn end(self) -> Vec<(Instant, Duration)> {
        *self.stop.lock().unwrap() = true;
        timeout(LONG, self.took).await.expect("all are answered").expect("none failed")
    }
}

#[test]
fn no_call_fails_when_a_relay_dies_and_another_is_known() {
    let slowest = rounds_of(3, 100, |seed| async move {
        let (network, mut random) = network(seed);
        network.default_link(LinkProfile::perfect(ms(&mut random, 2, 40)));
        let apart = Apart::new(&network, seed, 2).await;
        let calling = Calling::start(&apart.to_b, 200);
        sleep(ms(&mut random, 500, 6_000)).await;
        let carrier = apart.carrier().expect("it is relayed");
        network.host(ip(carrier)).crash();
        let died = Instant::now();
        until(LONG, || apart.carrier().is_some_and(|now| now != carrier)).await;
        sleep(Duration::from_secs(1)).await;
        let took = calling.end().await;
        assert!(took.len() > 200 && apart.served.most() == 1);
        apart.told.assert_one_session();
        took.into_iter().filter(|(began, took)| *began + *took >= died).map(|(_, took)| took).max().unwrap_or_default()
    });
    let slowest = spread("the slowest answer after a relay died", slowest);
    assert!(slowest <= Duration::from_secs(8), "suspicion, two attempts and the last way's turn: {slowest:?}");
}

/// As one who calls it by its name does, each time, whether it is connected or not.
async fn asked_for_all_the_time<T>(a: &Node, b: &Node, until: impl Future<Output = T>) -> T {
    let asking = async {
        loop {
            a.hold(b.id(), &[(ip(2), PORT).into()]);
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = asking => unreachable!("it never ends"),
        done = until => done,
    }
}

#[test]
fn regression_a_peer_that_is_asked_for_all_the_time_is_reached_through_another_relay() {
    rounds(8, |seed| async move {
        let (network, mut random) = network(seed);
        network.default_link(LinkProfile::perfect(ms(&mut random, 1, 40)));
        let apart = Apart::new(&network, seed, 2).await;
        // Mostly so early that the session counts as one that did not last.
        sleep(ms(&mut random, 0, 4_000)).await;
        let carrier = apart.carrier().expect("it is relayed");
        network.host(ip(carrier)).crash();
        asked_for_all_the_time(&apart.a, &apart.b, until(LONG, || apart.carrier().is_some_and(|now| now != carrier))).await;
        apart.told.assert_one_session();
    });
}

#[test]
fn regression_a_peer_that_is_asked_for_all_the_time_is_reached_though_the_first_relay_knows_no_way_there() {
    rounds(2, |seed| async move {
        let (network, _) = network(seed);
        network.default_link(LinkProfile::perfect(Duration::from_millis(10)));
        network.partition(ip(1), ip(2));
        let relays = [relay(&network, 3, &key(seed)).await, relay(&network, 4, &key(seed + 1)).await];
        let tickets = [relays[0].ticket(), relays[1].ticket()];
        let (a, _) = behind(&network, 1, &key(seed + 100), &tickets).await;
        let (b, _) = behind(&network, 2, &key(seed + 101), &tickets[1..]).await;
        asked_for_all_the_time(&a, &b, until(LONG, || joined(&a, &b))).await;
    });
}

#[test]
fn regression_a_relay_is_asked_again_while_an_address_is_silent() {
    rounds(2, |seed| async move {
        let (network, _) = network(seed);
        network.default_link(LinkProfile::perfect(Duration::from_millis(10)));
        network.partition(ip(1), ip(2));
        let relay = relay(&network, 3, &key(seed)).await;
        let (a, _) = behind(&network, 1, &key(seed + 100), &[relay.ticket()]).await;
        // A dial into silence takes 10 s, and so does the first attempt: the relay knows of nobody yet.
        let to_b = a.hold(key(seed + 101).id(), &[(ip(2), PORT).into()]);
        sleep(Duration::from_secs(1)).await;
        let (b, _) = behind(&network, 2, &key(seed + 101), &[relay.ticket()]).await;
        let took = until(LONG, || is_up(&to_b)).await;
        assert!(took <= Duration::from_secs(3), "{took:?}");
        tokio::join!(a.shutdown(), b.shutdown(), relay.shutdown());
    });
}

#[test]
fn regression_a_peer_that_is_to_be_reached_one_way_only_is_not_dialled_when_that_way_is_lost() {
    rounds(2, |seed| async move {
        let (network, _) = network(seed);
        network.default_link(LinkProfile::perfect(Duration::from_millis(10)));
        let relay = relay(&network, 3, &key(seed)).await;
        let (b, _) = behind(&network, 2, &key(seed + 101), &[relay.ticket()]).await;
        let (a, _) = open(&network, 1, &key(seed + 100)).await;
        let to_b = a.connect_via(&[relay.ticket()], b.id(), LONG).await.unwrap();
        let relayed = Some(PathKind::Relayed(relay.id()));
        assert_eq!(to_b.path(), relayed);
        // The peer has said where it is, and nothing is in the way there.
        network.partition(ip(1), ip(3));
        until(LONG, || !is_up(&to_b)).await;
        sleep(Duration::from_secs(20)).await;
        assert_eq!(to_b.path(), None);
        network.heal(ip(1), ip(3));
        until(LONG, || is_up(&to_b)).await;
        assert_eq!(to_b.path(), relayed);
        tokio::join!(a.shutdown(), b.shutdown(), relay.shutdown());
    });
}

#[test]
fn a_session_moves_to_a_link_when_there_is_one_and_back_when_it_dies() {
    rounds(4, |seed| async move {
        let (network, mut random) = network(seed);
        network.default_link(LinkProfile::perfect(ms(&mut random, 2, 40)));
        let apart = Apart::new(&network, seed, 1).await;
        let mut events = apart.a.events();
        let paths = Arc::new(Mutex::new(Vec::new()));
        let (seen, b) = (paths.clone(), apart.b.id());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let Event::PathChanged { peer, path } = event
                    && peer == b
                {
                    seen.lock().unwrap().push(path);
                }
            }
        });
        let calling = Calling::start(&apart.to_b, 50);
        sleep(ms(&mut random, 500, 3_000)).await;
        network.heal(ip(1), ip(2));
        until(Duration::from_secs(400), || apart.to_b.path() == Some(PathKind::Direct)).await;
        sleep(ms(&mut random, 500, 3_000)).await;
        network.partition(ip(1), ip(2));
        until(LONG, || apart.carrier().is_some()).await;
        sleep(Duration::from_secs(1)).await;
        let took = calling.end().await;
        assert!(took.len() > 100 && apart.served.most() == 1);
        apart.told.assert_one_session();
        assert_eq!(paths.lock().unwrap().first(), Some(&PathKind::Direct), "nobody is told of a break that was none");
    });
}

#[test]
fn a_call_in_flight_outlives_an_outage_of_its_only_relay() {
    rounds(4, |seed| async move {
        let (network, mut random) = network(seed);
        network.default_link(LinkProfile::perfect(ms(&mut random, 2, 40)));
        let apart = Apart::new(&network, seed, 1).await;
        let to_b = apart.to_b.clone();
        let slow = tokio::spawn(async move { to_b.request("work/slow").timeout(LONG * 3).unary::<_, u64>(&7u64).await });
        until(LONG, || apart.served.times(7) == 1).await;
        network.isolate(ip(3));
        sleep(ms(&mut random, 10_000, 20_000)).await;
        network.rejoin(ip(3));
        assert_eq!(timeout(LONG * 2, slow).await.unwrap().unwrap().unwrap(), 7);
        assert_eq!(apart.served.times(7), 1);
        apart.told.assert_one_session();
    });
}

#[test]
fn circuits_of_which_nothing_comes_back_are_given_up_and_leave_nothing() {
    rounds(2, |seed| async move {
        let (network, _) = network(seed);
        network.default_link(LinkProfile::perfect(Duration::from_millis(10)));
        let apart = Apart::new(&network, seed, 1).await;
        let relay = &apart.relays[0];
        assert_eq!(relay.relay_counts().circuits, 1);
        // The relay does not know yet that nobody is there.
        network.host(ip(2)).crash();
        let (late, _) = behind(&network, 4, &key(seed + 102), &[relay.ticket()]).await;
        let _to_b = late.hold(apart.b.id(), &[]);
        let counted = until(LONG, || relay.relay_counts().circuits >= 2).await;
        until(Duration::from_secs(15), || relay.relay_counts().circuits == 0).await;
        println!("half open after {counted:?}; {:?}", relay.relay_counts());
    });
}

#[test]
fn a_node_is_reached_by_its_id_alone_through_a_relay_that_both_have() {
    rounds(2, |seed| async move {
        let (network, mut random) = network(seed);
        network.default_link(LinkProfile::perfect(ms(&mut random, 2, 40)));
        network.partition(ip(1), ip(2));
        let hub = relay(&network, 3, &key(seed)).await;
        let (a, _) = behind(&network, 1, &key(seed + 1), &[hub.ticket()]).await;
        let (b, _) = behind(&network, 2, &key(seed + 2), &[hub.ticket()]).await;
        let to_b = a.connect_to(b.id(), &[], LONG).await.unwrap();
        assert_eq!(to_b.path(), Some(PathKind::Relayed(hub.id())));
        echo(&to_b).await;
        let _: u64 = random.random();
    });
}

/// One with many streams, and one with a single one, share what a relay carries in all.
#[test]
fn neighbours_that_want_more_than_there_is_get_even_shares() {
    rounds(2, |seed| async move {
        let (network, _) = network(seed);
        network.default_link(LinkProfile::perfect(Duration::from_millis(5)));
        let limits = Limits { relay_all_bytes_per_second: 400_000, relay_guest_bytes_per_second: 0, ..Limits::default() };
        let config = Config { open: true, relay: Some(RelayMode::Open), limits, ..Config::default() };
        let relay = bind(&network, ip(3), &key(seed), Node::builder().config(config)).await;
        let (there, _) = behind(&network, 2, &key(seed + 1), &[relay.ticket()]).await;
        let mut tasks = Vec::new();
        for (host, streams) in [(10u8, 8u64), (11, 1)] {
            let here = bind(&network, ip(host), &key(seed + u64::from(host)), Node::builder()).await;
            let session = here.connect_via(&[relay.ticket()], there.id(), LONG).await.unwrap();
            let answered = Arc::new(Mutex::new(0u64));
            let mut calls = tokio::task::JoinSet::new();
            for stream in 0..streams {
                let (session, answered) = (session.clone(), answered.clone());
                calls.spawn(async move {
                    loop {
                        let sent = (stream, vec![7u8; 40_000]);
                        let call = session.request("work/echo").timeout(LONG * 10).unary::<_, (u64, Vec<u8>)>(&sent);
                        assert_eq!(call.await.unwrap(), sent);
                        *answered.lock().unwrap() += 1;
                    }
                });
            }
            tasks.push((here, answered, calls));
        }
        sleep(Duration::from_secs(60)).await;
        let shares: Vec<u64> = tasks.iter().map(|(_, answered, _)| *answered.lock().unwrap()).collect();
        println!("in 60 s {shares:?} calls of 80 kB were answered");
        let (most, least) = (shares[0].max(shares[1]) as f64, shares[0].min(shares[1]) as f64);
        assert!(least > 50.0 && most / least < 1.6, "{shares:?}");
    });
}
