//! The network's own rules with bare sockets, then real quinn on it.

use std::future::poll_fn;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tokio::time::{Instant, sleep};

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PORT: u16 = 8658;

#[tokio::test(start_paused = true)]
async fn a_datagram_takes_the_delay_of_its_link() {
    let (network, a, b) = bare(1, LinkProfile::perfect(Duration::from_millis(25)));
    let start = Instant::now();
    send(&a, network.host(B).addr(PORT), b"hello");
    let (from, contents) = receive(&b).await;
    assert_eq!((from, contents.as_slice()), (network.host(A).addr(PORT), b"hello".as_slice()));
    assert_eq!(start.elapsed(), Duration::from_millis(25));
    assert_eq!(network.counters(), Counters { sent: 1, delivered: 1, ..Counters::default() });
}

#[tokio::test(start_paused = true)]
async fn jitter_alone_keeps_the_order_and_reorder_breaks_it() {
    let jittery = LinkProfile { jitter: Duration::from_millis(50), ..LinkProfile::default() };
    let (network, a, b) = bare(2, jittery);
    assert!(numbers(&network, &a, &b).await.is_sorted());
    network.link(A, B, LinkProfile { reorder: 0.2, ..jittery });
    let overtaken = numbers(&network, &a, &b).await;
    assert!(!overtaken.is_sorted());
    assert_eq!(overtaken.len(), 200, "reordering loses nothing");
    assert!((20..60).contains(&network.counters().reordered));
}

#[tokio::test(start_paused = true)]
async fn loss_and_duplication_come_at_their_rates() {
    let (network, a, b) = bare(3, LinkProfile { loss: 0.2, duplicate: 0.1, ..LinkProfile::default() });
    for _ in 0..50 {
        numbers(&network, &a, &b).await;
    }
    let counters = network.counters();
    assert_eq!(counters.sent, 10_000);
    assert!((1_800..2_200).contains(&counters.lost), "{counters:?}");
    assert!((680..920).contains(&counters.duplicated), "{counters:?}");
    assert_eq!(counters.delivered + counters.lost, counters.sent + counters.duplicated);
}

#[tokio::test(start_paused = true)]
async fn a_rate_spreads_datagrams_and_its_backlog_is_bounded() {
    let slow = LinkProfile { rate_bps: Some(800_000), backlog_bytes: 10_000, ..LinkProfile::perfect(Duration::ZERO) };
    let (network, a, b) = bare(4, slow);
    let start = Instant::now();
    (0..100).for_each(|_| send(&a, network.host(B).addr(PORT), &[0; 1_000]));
    let carried = 100 - network.counters().overflowed;
    assert!((10..=12).contains(&carried), "{carried}");
    for _ in 0..carried {
        receive(&b).await;
    }
    assert_eq!(start.elapsed(), Duration::from_millis(10 * carried));
}

#[tokio::test(start_paused = true)]
async fn a_partition_has_two_directions_and_takes_what_is_in_flight() {
    let (network, a, b) = bare(5, LinkProfile::default());
    let (at_a, at_b) = (network.host(A).addr(PORT), network.host(B).addr(PORT));
    send(&a, at_b, b"in flight");
    network.partition_one_way(A, B);
    send(&a, at_b, b"into the hole");
    send(&b, at_a, b"the other way");
    assert_eq!(receive(&a).await.1, b"the other way");
    assert_eq!(network.counters().cut, 2);
    network.heal(A, B);
    send(&a, at_b, b"healed");
    assert_eq!(receive(&b).await.1, b"healed");
    network.isolate(B);
    send(&b, at_a, b"alone");
    network.rejoin(B);
    send(&b, at_a, b"back");
    assert_eq!(receive(&a).await.1, b"back");
    assert_eq!(network.counters().cut, 3);
}

#[tokio::test(start_paused = true)]
async fn too_large_nobody_there_and_nobody_reading_are_dropped_and_counted() {
    let (network, a, b) = bare(6, LinkProfile::default());
    send(&a, network.host(B).addr(PORT), &[0; 1_473]);
    send(&a, network.host(B).addr(1), b"nobody");
    (0..2_050).for_each(|_| send(&a, network.host(B).addr(PORT), b"unread"));
    sleep(Duration::from_secs(1)).await;
    let counters = network.counters();
    assert_eq!((counters.too_large, counters.no_socket, counters.inbox_full, counters.delivered), (1, 1, 2, 2_048));
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_moves_is_found_at_its_new_address_only() {
    let (network, a, b) = bare(7, LinkProfile::default());
    let (host, old) = (network.host(A), network.host(A).addr(PORT));
    host.move_to([10, 9, 9, 9]);
    host.remap(PORT, 4_242);
    assert_eq!(a.local_addr().unwrap(), "10.9.9.9:4242".parse().unwrap());
    send(&a, network.host(B).addr(PORT), b"from elsewhere");
    let (from, _) = receive(&b).await;
    assert_eq!(from, host.addr(4_242));
    send(&b, old, b"lost");
    send(&b, from, b"found");
    assert_eq!(receive(&a).await.1, b"found");
    assert_eq!(network.counters().no_socket, 1);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_host_is_mute_and_its_port_is_free() {
    let (network, a, b) = bare(8, LinkProfile::default());
    network.host(A).crash();
    send(&a, network.host(B).addr(PORT), b"from the grave");
    let reborn = network.host(A).socket(PORT);
    drop(a);
    send(&b, network.host(A).addr(PORT), b"to the new one");
    assert_eq!(receive(&reborn).await.1, b"to the new one");
    assert_eq!(network.counters().unplugged, 1);
}

#[tokio::test(start_paused = true)]
async fn port_zero_means_any_free_port_and_a_dropped_socket_frees_its_own() {
    let (network, a, _b) = bare(15, LinkProfile::default());
    let (one, two) = (network.host(A).socket(0), network.host(A).socket(0));
    assert_ne!(one.local_addr().unwrap(), two.local_addr().unwrap());
    drop(a);
    assert_eq!(network.host(A).socket(PORT).local_addr().unwrap(), network.host(A).addr(PORT));
}

#[tokio::test(start_paused = true)]
async fn a_stream_crosses_a_link_that_loses_a_tenth_of_all_datagrams() {
    let network = SimNetwork::new(9);
    network.default_link(LinkProfile { loss: 0.1, ..LinkProfile::default() });
    let pair = Pair::connect(&network).await;
    let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    assert_eq!(pair.echo(&sent).await, sent);
    assert!(network.counters().lost > 10);
}

#[tokio::test(start_paused = true)]
async fn a_stream_survives_a_partition_of_five_seconds_and_every_other_mishap() {
    let network = SimNetwork::new(10);
    network.default_link(LinkProfile { loss: 0.1, duplicate: 0.05, reorder: 0.05, ..LinkProfile::mobile() });
    let pair = Pair::connect(&network).await;
    let start = Instant::now();
    network.partition(A, B);
    let healer = tokio::spawn({
        let network = network.clone();
        async move {
            sleep(Duration::from_secs(5)).await;
            network.heal(A, B);
        }
    });
    let sent = vec![7; 50_000];
    assert_eq!(pair.echo(&sent).await, sent);
    assert!(start.elapsed() > Duration::from_secs(5));
    assert!(network.counters().cut > 0);
    healer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_follows_the_dialler_to_another_address() {
    let network = SimNetwork::new(11);
    let pair = Pair::connect(&network).await;
    network.host(A).move_to([172, 16, 0, 1]);
    assert_eq!(pair.echo(b"still here").await, b"still here");
    assert_eq!(pair.server.remote_address().ip(), IpAddr::from([172, 16, 0, 1]));
}

#[tokio::test(start_paused = true)]
async fn quinn_repeats_old_acknowledgements_so_counting_them_does_not_prove_a_path() {
    let network = SimNetwork::new(16);
    let pair = Pair::connect(&network).await;
    let server = pair.server.clone();
    let talk = tokio::spawn(async move {
        let (mut out, _back) = server.open_bi().await.unwrap();
        while out.write_all(&[1; 100]).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    sleep(Duration::from_secs(2)).await;
    network.partition_one_way(A, B);
    sleep(Duration::from_secs(1)).await;
    let before = pair.client.stats().frame_rx.acks;
    sleep(Duration::from_secs(2)).await;
    assert!(pair.client.stats().frame_rx.acks > before + 10, "they ride on what the server sends, until its window is full");
    talk.abort();
}

#[test]
fn an_hour_of_keep_alives_passes_in_a_moment() {
    let started = std::time::Instant::now();
    simulate(async {
        let network = SimNetwork::new(12);
        let pair = Pair::connect(&network).await;
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(pair.echo(b"awake").await, b"awake");
        assert!(network.counters().sent > 720, "{:?}", network.counters());
    });
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn the_same_seed_gives_the_same_log_and_another_seed_another() {
    let (first, second, other) = (simulate(eventful(13)), simulate(eventful(13)), simulate(eventful(14)));
    for (index, (one, two)) in first.0.iter().zip(&second.0).enumerate() {
        assert_eq!(one, two, "datagram {index}");
    }
    assert_eq!(first, second);
    assert!(first.0.len() > 500, "{}", first.0.len());
    assert_ne!(first.1, other.1);
}

/// A busy minute: six connections, all faults, a partition, a move.
async fn eventful(seed: u64) -> (Vec<Event>, u64) {
    let network = SimNetwork::new(seed);
    network.default_link(LinkProfile { loss: 0.05, duplicate: 0.05, reorder: 0.05, ..LinkProfile::mobile() });
    let server = endpoint(&network.host(B));
    let echoing = tokio::spawn(serve(server.clone()));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..6 {
        let client = endpoint(&network.host([10, 0, 1, n]));
        clients.spawn(async move {
            let connection = client.connect(([10, 0, 0, 2], PORT).into(), "peer").unwrap().await.unwrap();
            for size in [1, 1_000, 30_000] {
                let sent = vec![n; size];
                assert_eq!(echo(&connection, &sent).await, sent);
            }
            sleep(Duration::from_secs(30)).await;
            connection.close(0u8.into(), b"");
        });
    }
    sleep(Duration::from_millis(300)).await;
    network.partition([10, 0, 1, 0], B);
    sleep(Duration::from_secs(5)).await;
    network.host([10, 0, 1, 1]).move_to([10, 0, 2, 1]); // not earlier: QUIC migrates only after the handshake
    network.heal_all();
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    sleep(Duration::from_secs(20)).await;
    echoing.abort();
    (network.log(), network.digest())
}

fn simulate<T>(scenario: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(scenario)
}

fn bare(seed: u64, profile: LinkProfile) -> (SimNetwork, Arc<dyn AsyncUdpSocket>, Arc<dyn AsyncUdpSocket>) {
    let network = SimNetwork::new(seed);
    network.default_link(profile);
    let (a, b) = (network.host(A).socket(PORT), network.host(B).socket(PORT));
    (network, a, b)
}

fn send(socket: &Arc<dyn AsyncUdpSocket>, destination: SocketAddr, contents: &[u8]) {
    socket.try_send(&Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }).unwrap();
}

async fn receive(socket: &Arc<dyn AsyncUdpSocket>) -> (SocketAddr, Vec<u8>) {
    let (mut buf, mut meta) = ([0; 2_000], [RecvMeta::default()]);
    poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buf)], &mut meta)).await.unwrap();
    (meta[0].addr, buf[..meta[0].len].to_vec())
}

/// Sends 200 numbers, one each millisecond, and returns what arrived.
async fn numbers(network: &SimNetwork, a: &Arc<dyn AsyncUdpSocket>, b: &Arc<dyn AsyncUdpSocket>) -> Vec<u8> {
    let before = network.counters().delivered;
    for n in 0..200 {
        send(a, network.host(B).addr(PORT), &[n]);
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_secs(1)).await;
    let mut arrived = Vec::new();
    for _ in before..network.counters().delivered {
        arrived.push(receive(b).await.1[0]);
    }
    arrived
}

/// A dialler at `A` and an echoing accepter at `B`.
struct Pair {
    client: quinn::Connection,
    server: quinn::Connection,
    _endpoints: [quinn::Endpoint; 2],
}

impl Pair {
    async fn connect(network: &SimNetwork) -> Self {
        let endpoints = [endpoint(&network.host(A)), endpoint(&network.host(B))];
        let dialling = endpoints[0].connect(network.host(B).addr(PORT), "peer").unwrap();
        let (client, server) = tokio::join!(biased; dialling, async { endpoints[1].accept().await.unwrap().await });
        let (client, server) = (client.unwrap(), server.unwrap());
        tokio::spawn(echo_all(server.clone()));
        Self { client, server, _endpoints: endpoints }
    }

    async fn echo(&self, sent: &[u8]) -> Vec<u8> {
        echo(&self.client, sent).await
    }
}

async fn echo(connection: &quinn::Connection, sent: &[u8]) -> Vec<u8> {
    let (mut out, mut back) = connection.open_bi().await.unwrap();
    out.write_all(sent).await.unwrap();
    out.finish().unwrap();
    back.read_to_end(sent.len()).await.unwrap()
}

async fn serve(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move { echo_all(incoming.await.unwrap()).await });
    }
}

async fn echo_all(connection: quinn::Connection) {
    while let Ok((mut out, mut input)) = connection.accept_bi().await {
        let received = input.read_to_end(1 << 20).await.unwrap();
        out.write_all(&received).await.unwrap();
        out.finish().unwrap();
    }
}

fn endpoint(host: &SimHost) -> quinn::Endpoint {
    let (server, client) = throw_away_tls();
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(5)));
    let transport = Arc::new(transport);
    let mut config = quinn::EndpointConfig::default();
    config.rng_seed(Some(host.rng_seed()));
    let server = server.clone().transport_config(transport.clone()).to_owned();
    let mut endpoint =
        quinn::Endpoint::new_with_abstract_socket(config, Some(server), host.socket(PORT), Arc::new(SimRuntime)).unwrap();
    endpoint.set_default_client_config(client.clone().transport_config(transport).to_owned());
    endpoint
}

/// One certificate for all tests. Ed25519, because an ECDSA signature's length varies, and a fixed serial for the same reason.
fn throw_away_tls() -> &'static (quinn::ServerConfig, quinn::ClientConfig) {
    static TLS: OnceLock<(quinn::ServerConfig, quinn::ClientConfig)> = OnceLock::new();
    TLS.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["peer".into()]).unwrap();
        params.serial_number = Some(1u64.into());
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let server = quinn::ServerConfig::with_single_cert(vec![certificate.der().clone()], key).unwrap();
        (server, quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap())
    })
}
