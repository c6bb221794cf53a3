//! Peers that do not want us, and addresses where somebody else lives.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use voltmesh::Node;
use voltmesh::node::ConnectError;
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};

use crate::support::*;

#[test]
fn a_peer_that_refuses_is_told_at_once_and_dialled_ever_more_rarely() {
    simulate(async {
        let (network, _) = network(1);
        let (a, _) = open(&network, 1, &key(1)).await;
        let b = bind(&network, ip(2), &key(2), Node::builder()).await;
        let address = [(ip(2), PORT).into()];
        let started = Instant::now();
        let refused = a.connect_to(b.id(), &address, Duration::from_secs(30)).await;
        assert!(matches!(refused, Err(ConnectError::Refused)), "{refused:?}");
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(a.counts().dials, 1, "who asked once does not go on");

        let session = a.hold(b.id(), &address);
        let mut dials = Vec::new();
        for _ in 0..6 {
            let before = a.counts().dials;
            sleep(Duration::from_secs(600)).await;
            dials.push(a.counts().dials - before);
        }
        println!("dials in each of six times ten minutes: {dials:?}");
        // Drawn evenly from zero to five minutes: four in ten minutes, give or take.
        assert!(dials[1..].iter().all(|dials| (1..=20).contains(dials)), "{dials:?}");
        assert!(dials[1..].iter().sum::<u64>() <= 50, "{dials:?}");

        let connect = "*".parse().unwrap();
        b.add_rule(Rule::new(Effect::Permit, Subject::Node(a.id()), Action::Connect, connect, Source::Store).unwrap())
            .await
            .unwrap();
        until(Duration::from_secs(301), || is_up(&session)).await;
    });
}

#[test]
fn an_address_with_another_node_is_set_aside_and_the_other_address_is_used() {
    simulate(async {
        let (network, _) = network(1);
        let (a, _) = open(&network, 1, &key(1)).await;
        let (b, _) = open(&network, 2, &key(2)).await;
        let (c, _) = open(&network, 3, &key(3)).await;
        let told = Told::by(&c, a.id());
        let (wrong, right) = ((ip(3), PORT).into(), (ip(2), PORT).into());
        let session = a.hold(b.id(), &[wrong, right]);
        let took = until(Duration::from_secs(2), || is_up(&session)).await;
        println!("up after {took:?} and {} dials", a.counts().dials);

        assert_eq!(a.counts().dials, 2, "the first one first");

        // And again: now the wrong one is not even tried.
        network.partition(ip(1), ip(2));
        until(Duration::from_secs(9), || !is_up(&session)).await;
        let before = network.log().len();
        sleep(Duration::from_secs(20)).await;
        network.heal_all();
        until(Duration::from_secs(5), || is_up(&session)).await;
        let to_c = network.log()[before..].iter().filter(|event| event.to == wrong).count();
        assert_eq!(to_c, 0, "it is set aside for five minutes");
        assert!(told.all().is_empty() && c.session(a.id()).is_none(), "the other node never had a session of ours");
    });
}
