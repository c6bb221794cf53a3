//! Tunnels over paths that are lost: every byte arrives in its place, and each end after the last of them; when the session is over, both
//! sides learn it. What is exposed is a pipe in memory: there is no TCP here.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use voltmesh::net::sim::{LinkProfile, SimNetwork};
use voltmesh::node::config::{Config, Limits};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::tunnel::{Exposed, Served, Tunnel, TunnelBroken};
use voltmesh::{Node, Session};

use crate::support::*;

const DAY: Duration = Duration::from_secs(86_400);
/// In the long form each scenario runs with so many seeds.
const SEEDS: u64 = 200;

/// A host that lets everybody reach a pipe, and a node with a session to it.
struct Duo {
    host: Node,
    node: Node,
    session: Session,
    exposed: Exposed,
    taken: mpsc::Receiver<DuplexStream>,
    told: Told,
}

impl Duo {
    async fn new(network: &SimNetwork, seed: u64, link: LinkProfile, resume_window: Duration) -> Self {
        network.default_link(link);
        let rule = Rule::new(Effect::Permit, Subject::Anyone, Action::Forward, Pattern::everything(), Source::Config).unwrap();
        let config = || {
            let limits = Limits { resume_window, ..Limits::default() };
            Node::builder().config(Config { limits, ..Config::default() })
        };
        let host = bind(network, ip(1), &key(seed), config().rule(rule)).await;
        let node = bind(network, ip(2), &key(seed + 1), config()).await;
        let (give, taken) = mpsc::channel(8);
        let exposed = host.expose_memory("pipe", give).unwrap();
        let told = Told::by(&node, host.id());
        let session = node.hold(host.id(), &[(ip(1), PORT).into()]);
        until(Duration::from_secs(60), || joined(&node, &host)).await;
        Self { host, node, session, exposed, taken, told }
    }

    async fn tunnel(&mut self) -> (Tunnel, DuplexStream) {
        let (tunnel, taken) = tokio::join!(biased; self.session.tunnel("pipe"), self.taken.recv());
        (tunnel.unwrap(), taken.unwrap())
    }
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..length).map(|_| random.random()).collect()
}

/// Pieces of random sizes, with pauses that are mostly short.
fn pieces(seed: u64, bytes: &[u8]) -> Vec<(Duration, Vec<u8>)> {
    let (mut random, mut rest, mut pieces) = (StdRng::seed_from_u64(seed), bytes, Vec::new());
    while !rest.is_empty() {
        let length = random.random_range(1..=30_000).min(rest.len());
        let most = if random.random_bool(0.1) { 3_000 } else { 20 };
        pieces.push((ms(&mut random, 0, most), rest[..length].to_vec()));
        rest = &rest[length..];
    }
    pieces
}

/// Both sides say something of their own, each to its end; what each has heard.
async fn both_ways(tunnel: Tunnel, pipe: DuplexStream, seed: u64, [to, back]: [Vec<u8>; 2]) {
    let (mut send, mut recv) = tunnel.split();
    let (mut read, mut write) = tokio::io::split(pipe);
    let sending = async {
        for (pause, piece) in pieces(seed, &to) {
            sleep(pause).await;
            send.write(piece).await.unwrap();
        }
        send.finish().await.unwrap();
    };
    let answering = async {
        for (pause, piece) in pieces(seed + 1, &back) {
            sleep(pause).await;
            write.write_all(&piece).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let there = async {
        let mut heard = Vec::new();
        read.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let here = async {
        let mut heard = Vec::new();
        while let Some(bytes) = recv.read().await.unwrap() {
            heard.extend_from_slice(&bytes);
        }
        heard
    };
    let ((), (), there, here) = tokio::join!(biased; sending, answering, there, here);
    assert!(there == to, "{} of {} bytes there", there.len(), to.len());
    assert!(here == back, "{} of {} bytes here", here.len(), back.len());
}

#[test]
fn tunnels_over_a_path_that_is_cut_again_and_again_lose_no_byte_and_no_end() {
    let cuts = rounds_of(6, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let loss = if random.random_bool(0.5) { 0.0 } else { random.random_range(0.0..0.2) };
        let link = LinkProfile { loss, ..LinkProfile::perfect(ms(&mut random, 1, 60)) };
        let mut duo = Duo::new(&network, seed, link, Duration::from_secs(120)).await;
        let mut running = tokio::task::JoinSet::new();
        for n in 0..random.random_range(1..=4u64) {
            let (tunnel, pipe) = duo.tunnel().await;
            let sizes = [0, 1].map(|_| [0, 5, 100_000, 400_000][random.random_range(0..4)]);
            let said = [bytes(seed + n, sizes[0]), bytes(seed + 100 + n, sizes[1])];
            running.spawn(both_ways(tunnel, pipe, seed + n, said));
        }
        let mut cuts = 0;
        for _ in 0..random.random_range(1..=4) {
            sleep(ms(&mut random, 0, 4_000)).await;
            cuts += usize::from(!running.is_empty());
            network.partition(ip(1), ip(2));
            sleep(ms(&mut random, 300, 12_000)).await;
            network.heal_all();
        }
        while let Some(done) = timeout(DAY, running.join_next()).await.expect("it ends") {
            done.unwrap();
        }
        let ended = async {
            let mut open = 0;
            loop {
                match duo.exposed.next().await.unwrap() {
                    Served::Began { .. } => open += 1,
                    Served::Ended { end, .. } => {
                        assert_eq!(end, Ok(()));
                        open -= 1;
                        if open == 0 {
                            return;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        timeout(DAY, ended).await.expect("each is over at the host, too");
        // Nothing is left of them but the session itself.
        for node in [&duo.host, &duo.node] {
            let idle = async {
                loop {
                    let peers = node.peers().await.unwrap();
                    if peers.iter().filter_map(|peer| peer.session.as_ref()).any(|session| session.streams <= 1) {
                        return;
                    }
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(120), idle).await.expect("its streams are over");
        }
        duo.told.assert_one_session();
        cuts
    });
    assert!(cuts.iter().sum::<usize>() > 0, "some cuts come while bytes are on their way");
}

#[test]
fn a_tunnel_waits_for_the_path_and_ends_with_the_session() {
    rounds_of(3, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let window = Duration::from_secs(20);
        let mut duo = Duo::new(&network, seed, LinkProfile::perfect(ms(&mut random, 1, 60)), window).await;
        let (tunnel, mut pipe) = duo.tunnel().await;
        let (mut send, mut recv) = tunnel.split();
        network.partition(ip(1), ip(2));
        send.write("said while nobody hears").await.unwrap();
        pipe.write_all(b"and there").await.unwrap();
        sleep(Duration::from_secs(15)).await;
        network.heal_all();
        let mut heard = [0; 23];
        timeout(DAY, pipe.read_exact(&mut heard)).await.expect("it arrives").unwrap();
        assert_eq!(&heard, b"said while nobody hears");
        assert_eq!(timeout(DAY, recv.read()).await.expect("it arrives").unwrap().unwrap(), "and there");

        network.partition(ip(1), ip(2));
        let mut rest = Vec::new();
        let (here, there) = tokio::join!(biased; timeout(DAY, recv.read()), timeout(DAY, pipe.read_to_end(&mut rest)));
        assert!(matches!(here.expect("it is told"), Err(TunnelBroken::Session(_))));
        there.expect("it is told").unwrap();
        assert!(matches!(send.write("nobody").await, Err(TunnelBroken::Session(_))));
        // The next one goes over the next session.
        network.heal_all();
        let (_tunnel, _pipe) = timeout(DAY, duo.tunnel()).await.expect("it comes up");
    });
}

#[test]
fn without_resumption_a_tunnel_ends_with_its_path_and_is_whole_without_a_loss() {
    rounds_of(3, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let mut duo = Duo::new(&network, seed, LinkProfile::perfect(ms(&mut random, 1, 60)), Duration::ZERO).await;
        let (tunnel, pipe) = duo.tunnel().await;
        both_ways(tunnel, pipe, seed, [bytes(seed, 100_000), bytes(seed + 1, 100_000)]).await;
        let (tunnel, _pipe) = duo.tunnel().await;
        let (_send, mut recv) = tunnel.split();
        network.partition(ip(1), ip(2));
        assert!(matches!(timeout(DAY, recv.read()).await.expect("it is told"), Err(TunnelBroken::Session(_))));
    });
}
