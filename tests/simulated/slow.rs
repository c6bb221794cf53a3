//! Streams that nobody reads, and more than there is room for: what stands still, and what does not.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use voltmesh::net::sim::{LinkProfile, SimNetwork};
use voltmesh::service::CallReceiver;
use voltmesh::{Node, Sender, Service, Session};

use crate::support::*;

/// `flood/send` sends messages of 1,000 bytes for as long as somebody takes them.
fn flood() -> Service {
    Service::new("flood").server_stream("send", |_cx, (): (), mut out: Sender<String>| async move {
        loop {
            out.send(&"x".repeat(1_000)).await?;
        }
    })
}

/// A flood of which nothing is read.
async fn unread(session: &Session) -> CallReceiver<String> {
    session.request("flood/send").server_stream::<_, String>(&()).await.unwrap()
}

/// Two nodes, the session of the first, and what it tells. The network goes with them: dropped, it delivers nothing.
async fn pair(seed: u64) -> (SimNetwork, [Node; 2], Session, Told) {
    let (network, _) = network(seed);
    network.default_link(LinkProfile { delay: Duration::from_millis(10), ..LinkProfile::default() });
    let served = Served::default();
    let (a, b) = (key(seed), key(seed + 1));
    let a = bind(&network, ip(1), &a, Node::builder()).await;
    let b = bind(&network, ip(2), &b, Node::builder().open(true).service(served.service()).service(flood())).await;
    let told = Told::by(&a, b.id());
    let session = a.connect(b.ticket()).await.unwrap();
    (network, [a, b], session, told)
}

#[test]
fn a_stream_that_nobody_reads_holds_up_no_other_call() {
    simulate(async {
        let (_network, _nodes, session, told) = pair(seed()).await;
        let mut flood = unread(&session).await;
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            let took = echo(&session).await;
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
        assert_eq!(told.connected(), 1);
        assert!(flood.next().await.unwrap().is_some(), "and goes on when it is read");
    });
}

#[test]
fn streams_that_nobody_reads_and_that_fill_the_whole_window_do_not_end_the_session() {
    simulate(async {
        let (_network, _nodes, session, told) = pair(seed()).await;
        let mut floods = Vec::new();
        for _ in 0..16 {
            floods.push(unread(&session).await);
        }
        sleep(Duration::from_secs(120)).await;
        assert_eq!(told.all().len(), 1, "{:?}", told.all());
        drop(floods);
        sleep(Duration::from_secs(1)).await;
        assert!(echo(&session).await < Duration::from_secs(1), "given up, they leave the room to others");
        assert_eq!(told.all().len(), 1, "{:?}", told.all());
    });
}

#[test]
fn more_large_requests_than_there_is_room_for_wait_their_turn_and_are_all_answered() {
    simulate(async {
        let (_network, _nodes, session, told) = pair(seed()).await;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..5u64 {
            let session = session.clone();
            calls.spawn(async move {
                let sent = (number, vec![number as u8; 4_000_000]);
                let call = session.request("work/echo").timeout(Duration::from_secs(600));
                let answer: (u64, Vec<u8>) = call.unary(&sent).await.unwrap();
                assert!(answer == sent);
            });
        }
        let all = timeout(Duration::from_secs(600), async { while calls.join_next().await.transpose().unwrap().is_some() {} });
        all.await.expect("nothing waits for ever");
        assert_eq!(told.all().len(), 1, "{:?}", told.all());
    });
}
