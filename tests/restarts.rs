//! A node that is killed and started again lets those know that it had sessions with. On real UDP; the nodes that die live on a
//! runtime of their own, which is taken from under them: not a word gets out.

mod support;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use support::{closed, connected, disconnected, echo, loopback, node, soon, until};
use tempfile::TempDir;
use tokio::sync::oneshot;
use voltmesh::Node;
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::node::Builder;
use voltmesh::proto::control::Profile;
use voltmesh::session::DisconnectReason;

/// Twice what is asked for on a machine that does nothing else.
const NOTICED: Duration = Duration::from_secs(3);
/// For how long a peer is given to answer.
const GIVEN: Duration = Duration::from_secs(3);
/// How many are told at once.
const AT_ONCE: u64 = 64;

/// A node with a home that can die.
struct Mortal {
    node: Node,
    kill: oneshot::Sender<()>,
    life: JoinHandle<()>,
}

impl Mortal {
    async fn born(builder: Builder) -> Self {
        let ((tell, told), (kill, killed)) = (oneshot::channel(), oneshot::channel());
        let life = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let node = runtime.block_on(async move {
                let node = builder.bind().await.unwrap();
                let _ = tell.send(node.clone());
                let _ = killed.await;
                node
            });
            // From here on nothing of it runs, so nothing is sent.
            drop(runtime);
            drop(node);
        });
        Self { node: soon(told).await.unwrap(), kill, life }
    }

    fn die(self) {
        drop(self.node);
        self.kill.send(()).unwrap();
        self.life.join().unwrap();
    }

    async fn shutdown(self) {
        soon(self.node.shutdown()).await;
        self.die();
    }

    async fn is_told(&self, peer: NodeId) {
        connected(&mut self.node.events(), peer).await;
    }
}

fn home() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

fn at_home(home: &TempDir, listen: SocketAddr) -> Builder {
    Node::builder().home(home.path()).listen(listen).service(echo()).watch_network(false)
}

fn list(home: &TempDir) -> PathBuf {
    home.path().join("volt.sessions")
}

fn lists(home: &TempDir, peer: NodeId) -> bool {
    fs::read_to_string(list(home)).is_ok_and(|text| text.contains(&peer.to_string()))
}

/// Puts these on the list, as if there had been sessions with them.
fn write_list(home: &TempDir, peers: &[(NodeId, SocketAddr)]) {
    let line = |(peer, address): &(NodeId, SocketAddr)| format!("{{\"peer\":\"{peer}\",\"addresses\":[\"{address}\"]}}\n");
    fs::write(list(home), peers.iter().map(line).collect::<String>()).unwrap();
}

/// So many peers at an address where nobody answers.
fn silent(count: usize) -> (UdpSocket, Vec<(NodeId, SocketAddr)>) {
    let socket = UdpSocket::bind(loopback()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, (0..count).map(|_| (SecretKey::generate().id(), address)).collect())
}

/// A node that asks an idle peer every 30 s only: what it knows sooner it was told.
async fn patient() -> Node {
    closed().open(true).service(echo()).profile(Profile::Battery).bind().await.unwrap()
}

/// A node is killed and started again, while the session with another one is idle. Either of them has dialled.
async fn an_idle_peer_is_told(it_dialled: bool) {
    let (dir, a) = (home(), patient().await);
    let b = Mortal::born(at_home(&dir, loopback()).open(true)).await;
    let (id, at) = (b.node.id(), b.node.listening()[0]);
    let (mut at_a, mut at_b) = (a.events(), b.node.events());
    match it_dialled {
        true => drop(soon(b.node.connect(a.ticket())).await.unwrap()),
        false => drop(soon(a.connect(b.node.ticket())).await.unwrap()),
    }
    connected(&mut at_a, id).await;
    connected(&mut at_b, a.id()).await;
    until(|| lists(&dir, a.id())).await;
    drop(at_b);
    b.die();

    let killed = Instant::now();
    let b = Mortal::born(at_home(&dir, at).open(true)).await;
    assert_eq!(disconnected(&mut at_a, id).await, DisconnectReason::Restarted);
    let noticed = killed.elapsed();
    connected(&mut at_a, id).await;
    println!("it had dialled: {it_dialled}; noticed after {noticed:?}, connected after {:?}", killed.elapsed());
    assert!(killed.elapsed() <= NOTICED);
    let to_b = a.session(id).unwrap();
    assert_eq!(soon(to_b.call::<_, String>("echo/one", "x")).await.unwrap(), "x");

    // As if the peer had dialled: when it goes, it is not dialled again.
    let mut at_b = b.node.events();
    let peers = b.node.peers().await.unwrap();
    assert!(peers.iter().any(|peer| peer.id == a.id() && !peer.wanted), "{peers:?}");
    let to_a = b.node.session(a.id()).unwrap();
    a.release(id);
    disconnected(&mut at_b, a.id()).await;
    until(|| b.node.session(a.id()).is_none()).await;
    drop(to_a);
    assert_eq!(b.node.counts().dials, 1);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn an_idle_peer_that_dialled_is_told_that_a_node_was_killed_and_is_back() {
    an_idle_peer_is_told(false).await;
}

#[tokio::test]
async fn an_idle_peer_that_was_dialled_is_told_that_a_node_was_killed_and_is_back() {
    an_idle_peer_is_told(true).await;
}

#[tokio::test]
async fn a_node_that_went_down_in_good_order_has_nobody_to_tell() {
    let (dir, a) = (home(), node().await);
    let b = Mortal::born(at_home(&dir, loopback()).open(true)).await;
    let (id, at) = (b.node.id(), b.node.listening()[0]);
    soon(a.connect(b.node.ticket())).await.unwrap();
    until(|| lists(&dir, a.id())).await;
    b.shutdown().await;
    assert!(!list(&dir).exists());
    let mut at_a = a.events();
    let b = Mortal::born(at_home(&dir, at).open(true)).await;
    connected(&mut at_a, id).await;
    assert_eq!(b.node.counts().dials, 0);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn whoever_said_goodbye_is_taken_off_the_list() {
    let (dir, a, c) = (home(), node().await, node().await);
    let b = Mortal::born(at_home(&dir, loopback()).open(true)).await;
    soon(a.connect(b.node.ticket())).await.unwrap();
    soon(c.connect(b.node.ticket())).await.unwrap();
    until(|| lists(&dir, a.id()) && lists(&dir, c.id())).await;
    a.release(b.node.id());
    until(|| !lists(&dir, a.id())).await;
    assert!(lists(&dir, c.id()));
    soon(c.shutdown()).await;
    until(|| !list(&dir).exists()).await;
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn visitors_are_not_on_the_list() {
    let (dir, own, a) = (home(), home(), node().await);
    let key = Node::builder().home(own.path()).listen(loopback()).bind().await.unwrap();
    let visitor = Node::builder().home(own.path()).visitor().bind().await.unwrap();
    let b = Mortal::born(at_home(&dir, loopback()).open(true)).await;
    soon(visitor.connect(b.node.ticket())).await.unwrap();
    soon(a.connect(b.node.ticket())).await.unwrap();
    until(|| lists(&dir, a.id())).await;
    assert!(!lists(&dir, visitor.id()));
    soon(async { tokio::join!(visitor.shutdown(), key.shutdown(), a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn a_node_that_is_killed_again_at_once_has_forgotten_nobody() {
    let (dir, a) = (home(), patient().await);
    let (_socket, mut peers) = silent(20);
    peers.push((a.id(), a.listening()[0]));
    write_list(&dir, &peers);
    for _ in 0..3 {
        Mortal::born(at_home(&dir, loopback()).open(true)).await.die();
        assert!(peers.iter().all(|(peer, _)| lists(&dir, *peer)));
    }
    soon(a.shutdown()).await;
}

#[tokio::test]
async fn peers_that_do_not_answer_hold_up_nobody_and_are_forgotten() {
    let (dir, a) = (home(), patient().await);
    let (_socket, mut peers) = silent(40);
    peers.push((a.id(), a.listening()[0]));
    write_list(&dir, &peers);
    let begun = Instant::now();
    let b = Mortal::born(at_home(&dir, loopback()).open(true)).await;
    b.is_told(a.id()).await;
    println!("told after {:?}, beside 40 that do not answer", begun.elapsed());
    assert!(begun.elapsed() <= NOTICED);
    until(|| lists(&dir, a.id()) && peers[..40].iter().all(|(peer, _)| !lists(&dir, *peer))).await;
    // Once each, and nothing is left of them.
    assert_eq!((b.node.counts().dials, b.node.counts().links), (41, 1));
    assert_eq!(b.node.peers().await.unwrap().len(), 1);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn only_so_many_are_told_at_once() {
    let dir = home();
    let (_socket, peers) = silent(80);
    write_list(&dir, &peers);
    let begun = Instant::now();
    let b = Mortal::born(at_home(&dir, loopback()).open(true)).await;
    until(|| b.node.counts().dials >= AT_ONCE).await;
    println!("{AT_ONCE} dials after {:?}", begun.elapsed());
    until(|| b.node.counts().dials > AT_ONCE).await;
    assert!(begun.elapsed() >= GIVEN, "{:?}", begun.elapsed());
    until(|| b.node.counts().dials == 80).await;
    b.shutdown().await;
}

#[tokio::test]
async fn whom_policy_keeps_out_is_not_dialled() {
    let (dir, a) = (home(), patient().await);
    write_list(&dir, &[(a.id(), a.listening()[0])]);
    let b = Mortal::born(at_home(&dir, loopback())).await;
    until(|| !list(&dir).exists()).await;
    assert_eq!((b.node.counts().dials, a.counts().links), (0, 0));
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn whoever_is_wanted_is_not_dialled_twice() {
    let (dir, a) = (home(), patient().await);
    write_list(&dir, &[(a.id(), a.listening()[0])]);
    let b = Mortal::born(at_home(&dir, loopback()).open(true).connect(a.ticket())).await;
    let to_a = b.node.session(a.id()).expect("it is wanted");
    soon(to_a.connected(GIVEN)).await.unwrap();
    until(|| lists(&dir, a.id())).await;
    assert_eq!(b.node.counts().dials, 1);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn a_list_that_cannot_be_read_keeps_no_node_from_starting() {
    let (dir, a) = (home(), node().await);
    fs::write(list(&dir), b"{\"peer\":\"did:key:z6Mk\xff").unwrap();
    let b = Mortal::born(at_home(&dir, loopback()).open(true)).await;
    soon(a.connect(b.node.ticket())).await.unwrap();
    until(|| lists(&dir, a.id())).await;
    assert_eq!(b.node.counts().dials, 0);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}
