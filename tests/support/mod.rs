//! What the integration tests share: nodes on loopback, things to wait for, and a raw peer that speaks QUIC and nothing else.
//! Nothing here sleeps: every wait is for a thing, and has a generous bound so that a hang fails instead of hanging.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod mutations;
#[cfg(feature = "cli")]
pub mod process;
pub mod raw;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use voltmesh::id::NodeId;
use voltmesh::node::config::{Config, Limits, RelayMode};
use voltmesh::node::{Builder, Events};
use voltmesh::session::DisconnectReason;
use voltmesh::{Event, Node, Receiver, Sender, Service, Session};

/// Longest wait for anything that is to happen.
pub const SOON: Duration = Duration::from_secs(20);

/// Any free port of loopback.
pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Whether the long versions of the tests are asked for.
pub fn long() -> bool {
    std::env::var_os("VOLT_LONG").is_some()
}

/// What comes of this, which must come soon.
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let at = std::panic::Location::caller();
    async move { tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{at}: this did not happen in time")) }
}

/// Asks again and again, without sleeping long, until it is so: for what announces itself nowhere.
#[track_caller]
pub fn until(so: impl Fn() -> bool) -> impl Future<Output = ()> {
    soon(async move {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}

/// A node that serves [`echo`] to everyone.
pub async fn node() -> Node {
    open_node(echo()).await
}

/// A node that serves this to everyone.
pub async fn open_node(service: Service) -> Node {
    closed().open(true).service(service).bind().await.unwrap()
}

/// The beginning of a node on loopback that lets nobody in.
pub fn closed() -> Builder {
    Node::builder().listen(loopback())
}

/// How many relays are between two nodes that are [joined](join): `VOLT_RELAYS`, or none.
pub fn relays_between() -> usize {
    std::env::var("VOLT_RELAYS").map_or(0, |relays| relays.parse().expect("VOLT_RELAYS is a number"))
}

/// Relays that carry for anyone as fast as they can, each a neighbour of the next.
pub async fn chain(relays: usize) -> Vec<Node> {
    let mut chain: Vec<Node> = Vec::new();
    for _ in 0..relays {
        let limits = Limits { relay_guest_bytes_per_second: 0, ..Limits::default() };
        let config = Config { listen: vec![loopback()], open: true, relay: Some(RelayMode::Open), limits, ..Config::default() };
        let relay = Node::builder().config(config).bind().await.unwrap();
        if let Some(before) = chain.last() {
            soon(before.connect(relay.ticket())).await.unwrap();
        }
        chain.push(relay);
    }
    chain
}

/// A session of `a` with `b`, carried by as many relays as are asked for, which live as long as the test.
pub async fn reach(a: &Node, b: &Node) -> Session {
    let relays = chain(relays_between()).await;
    let Some(last) = relays.last() else { return soon(a.connect(b.ticket())).await.unwrap() };
    soon(b.connect(last.ticket())).await.unwrap();
    until(|| last.session(b.id()).is_some_and(|session| session.id().is_some())).await;
    let tickets: Vec<_> = relays.iter().map(Node::ticket).collect();
    let session = soon(a.connect_via(&tickets, b.id(), SOON)).await.unwrap();
    assert!(session.path().is_some_and(|path| path.is_relayed()));
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(relays);
    });
    session
}

/// Two nodes with a session, and that session as each of them holds it.
pub struct Pair {
    pub a: Node,
    pub b: Node,
    /// The session with `b`, held by `a`.
    pub to_b: Session,
    /// The session with `a`, held by `b`.
    pub to_a: Session,
}

/// Two nodes, each of which serves what it is given; `a` has dialled `b`.
pub async fn pair(at_a: Service, at_b: Service) -> Pair {
    join(open_node(at_a).await, open_node(at_b).await).await
}

/// Connects `a` to `b`, by as many relays as are asked for, and waits until both have it.
pub async fn join(a: Node, b: Node) -> Pair {
    let mut events = b.events();
    let to_b = reach(&a, &b).await;
    joined(&mut events, a, b, to_b).await
}

/// The same without relays, for those who leave the network in ways that only they themselves know.
pub async fn join_directly(a: Node, b: Node) -> Pair {
    let mut events = b.events();
    let to_b = soon(a.connect(b.ticket())).await.unwrap();
    joined(&mut events, a, b, to_b).await
}

async fn joined(events: &mut Events, a: Node, b: Node, to_b: Session) -> Pair {
    connected(events, a.id()).await;
    let to_a = b.session(a.id()).expect("it is connected");
    Pair { a, b, to_b, to_a }
}

impl Pair {
    /// Ends both nodes in good order.
    pub async fn shutdown(self) {
        soon(async { tokio::join!(self.a.shutdown(), self.b.shutdown()) }).await;
    }
}

/// Waits for the next event that tells of this peer's connection.
#[track_caller]
pub fn connected(events: &mut Events, peer: NodeId) -> impl Future<Output = ()> {
    soon(async move {
        loop {
            match events.next().await.expect("the node runs") {
                Event::Connected { peer: who, .. } if who == peer => return,
                _ => {}
            }
        }
    })
}

/// Waits for the next event that tells of this peer's loss, and gives its reason.
#[track_caller]
pub fn disconnected(events: &mut Events, peer: NodeId) -> impl Future<Output = DisconnectReason> {
    soon(async move {
        loop {
            match events.next().await.expect("the node runs") {
                Event::Disconnected { peer: who, reason } if who == peer => return reason,
                _ => {}
            }
        }
    })
}

/// One method of each shape.
pub fn echo() -> Service {
    Service::new("echo")
        .unary("one", |_cx, text: String| async move { Ok(text) })
        .client_stream("sum", |_cx, mut numbers: Receiver<u64>| async move {
            let mut sum = 0;
            while let Some(n) = numbers.next().await? {
                sum += n;
            }
            Ok(sum)
        })
        .server_stream("count", |_cx, to: u64, mut out: Sender<u64>| async move {
            for n in 1..=to {
                out.send(&n).await?;
            }
            Ok(())
        })
        .bidi("double", |_cx, mut numbers: Receiver<u64>, mut out: Sender<u64>| async move {
            while let Some(n) = numbers.next().await? {
                out.send(&(n * 2)).await?;
            }
            Ok(())
        })
}

/// Counts what is alive now and what was at most, and tells when one of them ends.
#[derive(Clone)]
pub struct Alive {
    counts: Arc<(AtomicUsize, AtomicUsize, AtomicUsize)>,
    ended: mpsc::UnboundedSender<()>,
}

/// One of what [`Alive`] counts.
pub struct Life(Alive);

impl Alive {
    /// A count, and where each end is told.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<()>) {
        let (ended, ends) = mpsc::unbounded_channel();
        (Self { counts: Arc::default(), ended }, ends)
    }

    /// One more, until it is dropped.
    pub fn begin(&self) -> Life {
        let (now, most, ever) = &*self.counts;
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        ever.fetch_add(1, Ordering::SeqCst);
        Life(self.clone())
    }

    pub fn now(&self) -> usize {
        self.counts.0.load(Ordering::SeqCst)
    }

    pub fn most(&self) -> usize {
        self.counts.1.load(Ordering::SeqCst)
    }

    pub fn ever(&self) -> usize {
        self.counts.2.load(Ordering::SeqCst)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.counts.0.fetch_sub(1, Ordering::SeqCst);
        let _ = self.0.ended.send(());
    }
}
