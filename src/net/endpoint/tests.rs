//! Endpoints on loopback and on the simulated network: who gets a connection, and who gets nothing.

use std::net::Ipv4Addr;

use tokio::time::{Instant, sleep};

use super::*;
use crate::net::sim::{LinkProfile, SimNetwork, SimRuntime};

const PORT: u16 = 8658;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn endpoint(key: &SecretKey, transport: Transport, bounds: &Bounds) -> Endpoint {
    Endpoint::bind(key, &RestartKeys::of(key), transport, bounds, &Network::choose().unwrap(), Some(1)).unwrap()
}

fn on_loopback(key: &SecretKey) -> Endpoint {
    endpoint(key, Transport::Udp(vec![(Ipv4Addr::LOCALHOST, 0).into()]), &Bounds::default())
}

fn simulated(network: &SimNetwork, seed: u8) -> Endpoint {
    let transport = Transport::Abstract(network.host([10, 0, 0, seed]).socket(PORT), Arc::new(SimRuntime));
    endpoint(&key(seed), transport, &Bounds::default())
}

fn address(seed: u8) -> SocketAddr {
    ([10, 0, 0, seed], PORT).into()
}

#[tokio::test]
async fn dialling_one_node_and_reaching_another_fails_before_that_one_has_a_connection() {
    let (a, b) = (on_loopback(&key(1)), on_loopback(&key(2)));
    let (links, mut accepted) = mpsc::channel(8);
    let accepting = tokio::spawn({
        let b = b.clone();
        async move { b.accept(links).await }
    });
    let address = b.local()[0];
    let wrong = a.dial(address, key(3).id()).await.unwrap_err();
    assert_eq!(wrong, DialError::WrongKey { address, found: key(2).id() });

    let link = a.dial(address, key(2).id()).await.unwrap();
    assert_eq!(accepted.recv().await.unwrap().peer(), key(1).id());
    assert!(accepted.try_recv().is_err(), "the first dial brought it no link");
    assert_eq!((link.peer(), a.dials()), (key(2).id(), 2));
    accepting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_dial_into_silence_ends_after_ten_seconds() {
    let network = SimNetwork::new(1);
    let a = simulated(&network, 1);
    let started = Instant::now();
    assert_eq!(a.dial(address(2), key(2).id()).await.unwrap_err(), DialError::TimedOut(address(2)));
    assert_eq!(started.elapsed().as_secs(), limits::HANDSHAKE.as_secs());
}

/// Opens a raw connection whose handshake never ends: the client's packets after the first arrive nowhere.
fn stall(endpoint: &Endpoint, to: u8) -> quinn::Connecting {
    let client = quinn::ClientConfig::new(tls::quinn_wanting(&endpoint.client, key(to).id()).unwrap());
    endpoint.inner.connect_with(client, address(to), SERVER_NAME).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_is_begun_and_not_ended_is_given_up_after_ten_seconds() {
    let network = SimNetwork::new(2);
    let (a, b) = (simulated(&network, 1), simulated(&network, 2));
    let accepting = tokio::spawn({
        let b = b.clone();
        async move { b.accept(mpsc::channel(1).0).await }
    });
    // What the server answers is lost.
    network.partition_one_way([10, 0, 0, 2], [10, 0, 0, 1]);
    let _stalled = stall(&a, 2);
    sleep(Duration::from_millis(9_900)).await;
    assert_eq!(b.gate().pending(), 1);
    sleep(Duration::from_millis(600)).await;
    assert_eq!(b.gate().pending(), 0);
    accepting.abort();
}

#[tokio::test(start_paused = true)]
async fn with_many_handshakes_under_way_newcomers_prove_their_address_and_with_too_many_they_hear_nothing() {
    let network = SimNetwork::new(3);
    network.default_link(LinkProfile::perfect(Duration::from_millis(5)));
    let b = simulated(&network, 2);
    let accepting = tokio::spawn({
        let b = b.clone();
        async move { b.accept(mpsc::channel(1).0).await }
    });
    let dialler = |host: [u8; 4]| {
        let transport = Transport::Abstract(network.host(host).socket(PORT), Arc::new(SimRuntime));
        endpoint(&key(1), transport, &Bounds::default())
    };
    // Of these the server hears, but they do not hear the server.
    let mut stalled = Vec::new();
    for host in 0..limits::RETRY_ABOVE as u8 {
        let from = [10, 1, 0, host];
        network.partition_one_way([10, 0, 0, 2], from);
        let endpoint = dialler(from);
        stalled.push((stall(&endpoint, 2), endpoint));
    }
    sleep(Duration::from_millis(50)).await;
    assert_eq!(b.gate().pending(), limits::RETRY_ABOVE);

    let deaf = dialler([10, 2, 0, 1]);
    network.partition_one_way([10, 0, 0, 2], [10, 2, 0, 1]);
    let _deaf = stall(&deaf, 2);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(b.gate().pending(), limits::RETRY_ABOVE, "who does not hear the Retry costs nothing");
    let honest = dialler([10, 2, 0, 2]);
    honest.dial(address(2), key(2).id()).await.expect("it proves its address and is let in");

    // They prove their address, and stall then.
    for host in 0..(limits::PENDING_HANDSHAKES - limits::RETRY_ABOVE) as u8 {
        let from = [10, 3, 0, host];
        let endpoint = dialler(from);
        stalled.push((stall(&endpoint, 2), endpoint));
        let network = network.clone();
        tokio::spawn(async move {
            // The Retry gets through, 10 ms after the first packet; nothing after it does.
            sleep(Duration::from_millis(12)).await;
            network.partition_one_way([10, 0, 0, 2], from);
        });
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(b.gate().pending(), limits::PENDING_HANDSHAKES);
    let refused = b.refused();
    let late = dialler([10, 2, 0, 3]);
    assert!(timeout(Duration::from_secs(1), late.dial(address(2), key(2).id())).await.is_err(), "silence");
    assert!(b.refused() > refused);
    sleep(limits::HANDSHAKE).await;
    honest.dial(address(2), key(2).id()).await.expect("the stalled ones were given up");
    assert!(b.failed() > 0, "and counted");
    accepting.abort();
}

#[tokio::test(start_paused = true)]
async fn one_address_gets_a_burst_and_then_its_rate() {
    let network = SimNetwork::new(4);
    let b = simulated(&network, 2);
    let accepting = tokio::spawn({
        let b = b.clone();
        async move {
            let (links, mut accepted) = mpsc::channel(1);
            tokio::join!(biased; b.accept(links), async { while accepted.recv().await.is_some() {} });
        }
    });
    let a = simulated(&network, 1);
    let mut dials = JoinSet::new();
    for _ in 0..100 {
        let a = a.clone();
        dials.spawn(async move { timeout(Duration::from_millis(150), a.dial(address(2), key(2).id())).await.is_ok() });
    }
    let mut admitted = 0;
    while let Some(dialled) = dials.join_next().await {
        admitted += u32::from(dialled.unwrap());
    }
    // Nobody who was turned away has tried again yet: QUIC does so after 300 ms.
    assert_eq!(admitted, limits::HANDSHAKE_BURST);
    sleep(Duration::from_secs(10)).await;
    assert!(a.dial(address(2), key(2).id()).await.is_ok());
    accepting.abort();
}

/// quinn 0.11 keeps a connection whose first packet is a close until its idle timeout, without a word to us.
#[tokio::test(start_paused = true)]
async fn closes_without_a_beginning_make_newcomers_prove_their_address() {
    let network = SimNetwork::new(5);
    let b = simulated(&network, 2);
    let accepting = tokio::spawn({
        let b = b.clone();
        async move { b.accept(mpsc::channel(1).0).await }
    });
    for host in 0..300u16 {
        let [high, low] = host.to_be_bytes();
        let from = [10, 1, high, low];
        let transport = Transport::Abstract(network.host(from).socket(PORT), Arc::new(SimRuntime));
        let a = endpoint(&key(1), transport, &Bounds::default());
        network.isolate(from);
        let stalled = stall(&a, 2);
        sleep(Duration::from_millis(50)).await;
        network.rejoin(from);
        drop(stalled);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(b.inner.open_connections(), limits::PENDING_HANDSHAKES, "were it 0, quinn would have mended this");
    let honest = simulated(&network, 1);
    honest.dial(address(2), key(2).id()).await.expect("it proves its address");
    accepting.abort();
}

/// Sends a megabyte on a new stream, while the network changes at both ends, and waits until the other end has it all.
async fn carries(from: &Link, to: &Link, changing: [&Endpoint; 2]) {
    let (mut send, _recv) = from.open().await.unwrap();
    let sent = async {
        for round in 0..16 {
            send.write(vec![7; 65_536].into()).await.unwrap();
            changing[round % 2].network_changed();
        }
        send.finish().unwrap();
    };
    let received = async {
        let (_send, mut recv) = to.accept().await.unwrap();
        let mut bytes = 0;
        while let Some(chunk) = recv.read().await.unwrap() {
            bytes += chunk.len();
        }
        bytes
    };
    assert_eq!(tokio::join!(sent, received).1, 16 * 65_536);
}

#[tokio::test]
async fn links_do_not_notice_a_change_of_the_network_that_leaves_their_addresses() {
    let wildcard = (Ipv4Addr::UNSPECIFIED, 0).into();
    let loopback: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    for listen in [vec![loopback], vec![wildcard], vec![loopback, loopback]] {
        let [a, b] = [1, 2].map(|seed| endpoint(&key(seed), Transport::Udp(listen.clone()), &Bounds::default()));
        let (links, mut accepted) = mpsc::channel(8);
        let accepting = tokio::spawn({
            let b = b.clone();
            async move { b.accept(links).await }
        });
        let local = b.local().to_vec();
        for _ in 0..100 {
            b.network_changed();
        }
        let there = (Ipv4Addr::LOCALHOST, local[0].port()).into();
        let dialled = a.dial(there, key(2).id()).await.unwrap();
        let answered = accepted.recv().await.unwrap();
        dialled.permit();
        answered.permit();
        carries(&dialled, &answered, [&a, &b]).await;
        carries(&answered, &dialled, [&a, &b]).await;
        assert_eq!((dialled.lost(), answered.lost()), (None, None));
        assert_eq!(b.local(), local, "the port stays");
        accepting.abort();
    }
}
