//! Very many identities of one address: so many have sessions, the others are refused and counted, and nobody else notices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quinn::{ApplicationClose, ConnectionError};
use tokio::runtime;
use tokio::time::timeout;
use voltmesh::proto::limits;
use voltmesh::{Node as LibraryNode, Session};

use crate::net::{Net, Space};
use crate::node::{Home, Node};
use crate::stage::{Times, is_long};
use crate::support::raw::{RawPeer, RawStreams};

/// Where they are, where others are, and where the node is.
const CROWD: &str = "10.7.0.1";
const ELSEWHERE: &str = "10.7.0.3";
const NODE: &str = "10.7.0.2:8650";

const IDENTITIES: usize = 500;

/// A node that is open to all, and a machine with two addresses.
struct Stage {
    _net: Net,
    crowd: Space,
    home: Home,
    _up: Node,
}

impl Stage {
    fn new(toml: &str) -> Self {
        let mut net = Net::new();
        let (node, crowd) = (net.space("node"), net.space("crowd"));
        crowd.cable("eth", &format!("{CROWD}/24"), &node, "eth", "10.7.0.2/24");
        crowd.ip(&format!("addr add {ELSEWHERE}/24 dev eth"));
        let home = Home::new(&node);
        home.configure(toml);
        let up = home.up(&["--open", "--listen", NODE]);
        Self { _net: net, crowd, home, _up: up }
    }

    /// Does something at the machine with two addresses.
    fn at_the_crowd(&self, what: impl AsyncFnOnce(&Self) + Send) {
        self.crowd.within(|| runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what(self)));
    }

    /// A counter of the node.
    fn count(&self, name: &str) -> u64 {
        let status: serde_json::Value = serde_json::from_str(&self.home.ok(&["status", "--json"])).unwrap();
        status[name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// Somebody honest at this address whom the node's owner knows, or not.
    async fn honest(&self, address: &str, known: bool) -> LibraryNode {
        let honest = LibraryNode::builder().listen(format!("{address}:0").parse().unwrap()).bind().await.unwrap();
        if known {
            self.home.ok(&["policy", "allow", &honest.id().to_string(), "connect"]);
        }
        honest
    }

    fn ticket(&self) -> voltmesh::id::Ticket {
        voltmesh::id::Ticket::new(self.home.id().parse().unwrap()).with_address(NODE.parse().unwrap())
    }
}

/// What became of each.
#[derive(Default)]
struct Crowd {
    let_in: Vec<RawStreams>,
    /// How the others were turned away: code and reason, and how many.
    refused: BTreeMap<(u64, Vec<u8>), usize>,
    /// Those that nobody answered.
    silence: usize,
}

/// Dials with so many keys at once, each waiting for so long.
async fn crowd(identities: usize, patience: Duration) -> Crowd {
    let dials = (0..identities).map(|_| async {
        let peer = RawPeer::at(format!("{CROWD}:0").parse().unwrap(), |_| {});
        // The peer is kept with what it has.
        let met = timeout(patience, peer.try_to_greet(NODE.parse::<SocketAddr>().unwrap())).await;
        (peer, met)
    });
    let mut crowd = Crowd::default();
    for (_peer, met) in join_all(dials).await {
        match met {
            Ok(Ok(session)) => crowd.let_in.push(session.answering()),
            Ok(Err(ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }))) => {
                *crowd.refused.entry((error_code.into_inner(), reason.to_vec())).or_default() += 1;
            }
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => crowd.silence += 1,
            Ok(Err(other)) => panic!("{other}"),
        }
    }
    crowd
}

/// So many calls, one after the other.
async fn calls(session: &Session, calls: usize) -> Times {
    let mut times = Vec::new();
    for _ in 0..calls {
        let began = Instant::now();
        session.services().await.unwrap();
        times.push(began.elapsed());
    }
    Times::of(times)
}

/// The handshakes are not rated here, so that all of them come to where sessions are counted.
pub fn five_hundred_identities_of_one_address_keep_nobody_else_out() {
    let stage = Stage::new("exempt = [\"10.7.0.0/24\"]\n");
    stage.at_the_crowd(async |stage| {
        let friend = stage.honest(CROWD, true).await;
        let session = friend.connect(stage.ticket()).await.unwrap();
        let alone = calls(&session, 500).await;
        let began = Instant::now();
        let (crowd, meanwhile) = tokio::join!(crowd(IDENTITIES, limits::HANDSHAKE), calls(&session, 500));
        let took = began.elapsed();
        println!(
            "{IDENTITIES} identities of one address in {took:?}: {} let in, refused {:?}, {} not answered",
            crowd.let_in.len(),
            crowd.refused,
            crowd.silence
        );
        println!("calls of somebody who is there: {alone}; meanwhile {meanwhile}");
        assert_eq!(crowd.let_in.len(), limits::SESSIONS_PER_ADDRESS);
        let refused = IDENTITIES - limits::SESSIONS_PER_ADDRESS;
        // Code 1 and not a word: which limit it was is the node's own matter.
        assert_eq!(crowd.refused, BTreeMap::from([((1, Vec::new()), refused)]));
        assert_eq!(stage.count("refused_sessions"), refused as u64);

        // While they are there: one more is refused, whom a rule names is not, nor is anyone from elsewhere.
        let one_more = RawPeer::at(format!("{CROWD}:0").parse().unwrap(), |_| {});
        assert!(one_more.try_to_greet(NODE.parse().unwrap()).await.is_err());
        for (address, known) in [(CROWD, true), (ELSEWHERE, false)] {
            let honest = stage.honest(address, known).await;
            let began = Instant::now();
            let session = honest.connect(stage.ticket()).await.unwrap();
            println!("from {address} a session in {:?}, calls: {}", began.elapsed(), calls(&session, 100).await);
        }
        // And as soon as one of them goes there is room.
        crowd.let_in[0].connection.close(0u32.into(), b"");
        let began = Instant::now();
        while one_more.try_to_greet(NODE.parse().unwrap()).await.is_err() {
            assert!(began.elapsed() < crate::node::LONG, "the place of who has gone is not given away");
        }
    });
}

pub fn a_burst_of_dials_from_one_address_slows_that_address_only() {
    let stage = Stage::new("");
    stage.at_the_crowd(async |stage| {
        let patience = if is_long() { limits::HANDSHAKE } else { Duration::from_secs(3) };
        let began = Instant::now();
        let elsewhere = async {
            let mut times = Vec::new();
            while began.elapsed() < patience.mul_f64(0.8) {
                let honest = stage.honest(ELSEWHERE, false).await;
                let dialled = Instant::now();
                let session = honest.connect(stage.ticket()).await.unwrap();
                times.push(dialled.elapsed());
                calls(&session, 1).await;
                honest.shutdown().await;
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            Times::of(times)
        };
        let (crowd, elsewhere) = tokio::join!(crowd(IDENTITIES, patience), elsewhere);
        let answered = crowd.let_in.len() + crowd.refused.values().sum::<usize>();
        let turned_away = stage.count("refused_handshakes");
        println!(
            "{IDENTITIES} dials of one address within {patience:?}: {answered} answered, {} not; {turned_away} packets ignored",
            crowd.silence
        );
        println!("sessions from elsewhere meanwhile: {elsewhere}");
        let may = f64::from(limits::HANDSHAKE_BURST) + f64::from(limits::HANDSHAKES_PER_SECOND) * began.elapsed().as_secs_f64();
        assert!(answered as f64 <= may + 1.0, "{answered} handshakes, {may} are allowed");
        assert!(crowd.let_in.len() <= limits::SESSIONS_PER_ADDRESS);
        assert!(turned_away > 0 && crowd.silence > 0);
    });
}
