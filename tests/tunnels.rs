//! Tunnels between nodes on real UDP, and TCP at both ends: bytes arrive as they were sent, ends and resets too, and who may not have
//! them is told so.

mod support;

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use support::{closed, disconnected, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::proto::limits;
use voltmesh::proto::status::Code;
use voltmesh::tunnel::{Carried, ExposeError, Exposed, Forward, ForwardError, Served, TunnelBroken, TunnelError};
use voltmesh::{Node, Session};

fn rule(effect: Effect, resource: &str) -> Rule {
    Rule::new(effect, Subject::Anyone, Action::Forward, resource.parse().unwrap(), Source::Store).unwrap()
}

/// A host that lets everyone reach what it exposes, but for what is called `secret`; and a node with a session to it.
async fn pair() -> (Node, Node, Session) {
    let permit = closed().rule(rule(Effect::Permit, "*")).rule(rule(Effect::Deny, "secret/*"));
    let host = permit.bind().await.unwrap();
    let (node, session) = client(&host).await;
    (host, node, session)
}

async fn client(host: &Node) -> (Node, Session) {
    let node = closed().bind().await.unwrap();
    let session = support::reach(&node, host).await;
    (node, session)
}

/// A target that does this with each of its connections. It ends when this is dropped.
struct Target {
    at: String,
    task: JoinHandle<()>,
}

impl Target {
    async fn new<F, S>(serve: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream) -> F + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream));
            }
        });
        Self { at, task }
    }

    /// Gives back what it gets.
    async fn echo() -> Self {
        Self::new(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            // What is broken off is broken off.
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A target whose one connection the test has in hand.
async fn taken() -> (String, oneshot::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let (give, take) = oneshot::channel();
    tokio::spawn(async move { give.send(listener.accept().await.unwrap().0).unwrap() });
    (at, take)
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(length as u64).fill_bytes(&mut bytes);
    bytes
}

/// Sends this and ends, and gives what comes back.
async fn round_trip(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = soon(TcpStream::connect(to)).await.unwrap().into_split();
    let mut back = Vec::new();
    let sent = async {
        write.write_all(bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (got, ()) = soon(async { tokio::join!(read.read_to_end(&mut back), sent) }).await;
    got.unwrap();
    back
}

/// Both ends of a connection through a forward.
async fn through(forward: &Forward, taken: oneshot::Receiver<TcpStream>) -> (TcpStream, TcpStream) {
    let near = soon(TcpStream::connect(forward.local())).await.unwrap();
    (near, soon(taken).await.unwrap())
}

async fn forward(session: &Session, name: &str) -> Forward {
    soon(session.forward("127.0.0.1:0".parse().unwrap(), name)).await.unwrap()
}

/// A node with something exposed that the test has in hand, brought to a port, and both ends of a connection to it.
struct Joined {
    host: Node,
    node: Node,
    session: Session,
    exposed: Exposed,
    forward: Forward,
    near: TcpStream,
    far: TcpStream,
}

impl Joined {
    async fn new() -> Self {
        let (host, node, session) = pair().await;
        let (at, taken) = taken().await;
        let exposed = host.expose("it", &at).unwrap();
        let forward = forward(&session, "it").await;
        let (mut near, mut far) = through(&forward, taken).await;
        for (from, to) in [(&mut near, &mut far)] {
            from.write_all(b"hello").await.unwrap();
            let mut hello = [0; 5];
            soon(to.read_exact(&mut hello)).await.unwrap();
        }
        Self { host, node, session, exposed, forward, near, far }
    }

    async fn shutdown(self) {
        soon(async { tokio::join!(self.node.shutdown(), self.host.shutdown()) }).await;
    }
}

/// How the next connection ended that did.
async fn how_it_ended(forward: &mut Forward) -> (u64, u64, Result<(), TunnelBroken>) {
    loop {
        match soon(forward.next()).await.expect("the forward is there") {
            Carried::Ended { sent, received, end, .. } => return (sent, received, end),
            Carried::Began { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The same at the host.
async fn how_it_was_served(exposed: &mut Exposed) -> (u64, u64, Result<(), TunnelBroken>) {
    loop {
        match soon(exposed.next()).await.expect("it is exposed") {
            Served::Ended { sent, received, end, .. } => return (sent, received, end),
            Served::Began { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reads to the end, which is a reset.
async fn assert_reset(stream: &mut TcpStream) {
    let error = soon(stream.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn bytes_go_both_ways_as_they_are_whatever_their_number() {
    let (host, node, session) = pair().await;
    let target = Target::echo().await;
    let mut exposed = host.expose("echo", &target.at).unwrap();
    let mut forward = forward(&session, "echo").await;
    for length in [0, 1, 4_095, 8_192, 65_536, 65_537, 1_000_003, 6_000_000] {
        let bytes = random(length);
        assert!(round_trip(forward.local(), &bytes).await == bytes, "{length} bytes");
        assert_eq!(how_it_ended(&mut forward).await, (length as u64, length as u64, Ok(())));
        assert_eq!(how_it_was_served(&mut exposed).await, (length as u64, length as u64, Ok(())));
    }
    drop(forward);
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_runtime_of_many_threads_it_is_the_same() {
    let (host, node, session) = pair().await;
    let target = Target::echo().await;
    let _exposed = host.expose("echo", &target.at).unwrap();
    let forward = forward(&session, "echo").await;
    let bytes = random(3_000_000);
    assert!(round_trip(forward.local(), &bytes).await == bytes);
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_direction_that_has_ended_leaves_the_other_one_open() {
    let large = random(4_000_000);
    // The side that connects ends first, then the other one says all it has.
    let mut joined = Joined::new().await;
    let (near, far) = (&mut joined.near, &mut joined.far);
    near.shutdown().await.unwrap();
    assert_eq!(soon(far.read(&mut [0; 8])).await.unwrap(), 0);
    let said = async {
        far.write_all(&large).await.unwrap();
        far.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (got, ()) = soon(async { tokio::join!(near.read_to_end(&mut heard), said) }).await;
    got.unwrap();
    assert!(heard == large);
    assert_eq!(how_it_ended(&mut joined.forward).await, (5, large.len() as u64, Ok(())));
    joined.shutdown().await;
    // And the other way round.
    let mut joined = Joined::new().await;
    let (near, far) = (&mut joined.near, &mut joined.far);
    far.write_all(b"bye").await.unwrap();
    far.shutdown().await.unwrap();
    let mut bye = Vec::new();
    soon(near.read_to_end(&mut bye)).await.unwrap();
    assert_eq!(bye, b"bye");
    let said = async {
        near.write_all(&large).await.unwrap();
        near.shutdown().await.unwrap();
    };
    heard.clear();
    let (got, ()) = soon(async { tokio::join!(far.read_to_end(&mut heard), said) }).await;
    got.unwrap();
    assert!(heard == large);
    assert_eq!(how_it_was_served(&mut joined.exposed).await, (3, 5 + large.len() as u64, Ok(())));
    joined.shutdown().await;
}

#[tokio::test]
async fn the_halves_of_a_tunnel_are_each_others_strangers() {
    let (host, node, session) = pair().await;
    let (at, taken) = taken().await;
    let _exposed = host.expose("it", &at).unwrap();
    let (mut send, mut recv) = soon(session.tunnel("it")).await.unwrap().split();
    let mut far = soon(taken).await.unwrap();
    far.write_all(b"all there is").await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(soon(recv.read()).await.unwrap().unwrap(), "all there is");
    assert_eq!(soon(recv.read()).await, Ok(None));
    assert_eq!(soon(recv.read()).await, Ok(None));
    // Nobody listens here any more, but there somebody does.
    drop(recv);
    let large = random(2_000_000);
    let sent = async {
        send.write(large.clone()).await.unwrap();
        send.finish().await.unwrap();
    };
    let mut heard = Vec::new();
    let (got, ()) = soon(async { tokio::join!(far.read_to_end(&mut heard), sent) }).await;
    got.unwrap();
    assert!(heard == large);
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_connection_that_is_reset_is_reset_at_the_other_end_too() {
    let Joined { near, mut far, mut forward, mut exposed, host, node, .. } = Joined::new().await;
    near.set_zero_linger().unwrap();
    drop(near);
    assert_reset(&mut far).await;
    assert_eq!(how_it_ended(&mut forward).await.2, Err(TunnelBroken::Here));
    assert_eq!(how_it_was_served(&mut exposed).await.2, Err(TunnelBroken::There));
    node.shutdown().await;
    host.shutdown().await;

    let Joined { mut near, far, mut forward, mut exposed, host, node, .. } = Joined::new().await;
    far.set_zero_linger().unwrap();
    drop(far);
    assert_reset(&mut near).await;
    assert_eq!(how_it_ended(&mut forward).await.2, Err(TunnelBroken::There));
    assert_eq!(how_it_was_served(&mut exposed).await.2, Err(TunnelBroken::Here));
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn who_closes_without_listening_makes_the_other_end_stop() {
    let Joined { near, mut far, mut forward, host, node, exposed: _exposed, .. } = Joined::new().await;
    drop(near);
    // It has said all, and reads nothing: whoever goes on talking to it gets an error in the end.
    assert_eq!(soon(far.read(&mut [0; 8])).await.unwrap(), 0);
    let talk = async {
        let bytes = random(65_536);
        while far.write_all(&bytes).await.is_ok() {}
    };
    soon(talk).await;
    assert_eq!(how_it_ended(&mut forward).await.0, 5);
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn fifty_connections_at_once_do_not_mix() {
    let (host, node, session) = pair().await;
    let target = Target::echo().await;
    let _exposed = host.expose("echo", &target.at).unwrap();
    let forward = forward(&session, "echo").await;
    let all = (0..50).map(|n| {
        let at = forward.local();
        async move {
            let bytes = random(200_000 + n);
            round_trip(at, &bytes).await == bytes
        }
    });
    assert!(soon(join_all(all)).await.into_iter().all(|same| same));
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn who_may_not_learns_nothing_of_what_there_is_and_who_may_learns_what_is_wrong() {
    let (host, node, session) = pair().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let _exposed = [host.expose("secret/there", "127.0.0.1:9").unwrap(), host.expose("down", &nobody).unwrap()];
    let mut down = host.expose("gone", "nowhere.invalid:80").unwrap();
    let refused = |error| match error {
        TunnelError::Refused(status) => status,
        other => panic!("{other:?}"),
    };
    let status = async |name: &str| refused(soon(session.tunnel(name)).await.unwrap_err());
    let there = status("secret/there").await;
    assert_eq!((there.code, &there), (Code::PermissionDenied, &status("secret/not-there").await));
    assert_eq!(status("nothing").await.code, Code::NotFound);
    for (name, secret) in [("down", "127.0.0.1"), ("gone", "nowhere")] {
        let status = status(name).await;
        assert_eq!(status.code, Code::Unavailable);
        assert!(!status.message.contains(secret), "{status}");
    }
    // Its owner is told more.
    let Some(Served::Failed { peer, why: Some(_), .. }) = soon(down.next()).await else { panic!("the owner was told nothing") };
    assert_eq!(peer, node.id());
    for bad in ["", "a b", "127.0.0.1:22", "x/"] {
        assert!(matches!(session.tunnel(bad).await, Err(TunnelError::Name(_))), "{bad}");
        assert!(matches!(session.may_tunnel(bad).await, Err(TunnelError::Name(_))), "{bad}");
    }
    // Asked beforehand it is the same, but that nobody connects.
    let probed = async |name: &str| soon(session.may_tunnel(name)).await.map_err(|error| refused(error).code);
    assert_eq!(probed("secret/there").await, Err(Code::PermissionDenied));
    assert_eq!(probed("nothing").await, Err(Code::NotFound));
    assert_eq!(probed("down").await, Ok(()));
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_forward_says_what_is_refused_and_goes_on() {
    let (host, node, session) = pair().await;
    let mut forward = forward(&session, "later").await;
    let mut refused = soon(TcpStream::connect(forward.local())).await.unwrap();
    match soon(forward.next()).await {
        Some(Carried::Refused { from, error: TunnelError::Refused(status), .. }) => {
            assert_eq!((from, status.code), (refused.local_addr().unwrap(), Code::NotFound));
        }
        other => panic!("{other:?}"),
    }
    assert_reset(&mut refused).await;
    let target = Target::echo().await;
    let _exposed = host.expose("later", &target.at).unwrap();
    assert_eq!(round_trip(forward.local(), b"now").await, b"now");
    let there = forward.local();
    let taken = session.forward(there, "later").await.unwrap_err();
    assert!(matches!(&taken, ForwardError::Listen { address, .. } if *address == there), "{taken}");
    assert!(matches!(session.forward(there, "a b").await, Err(ForwardError::Name(_))));
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_policy_that_says_no_ends_what_is_open_and_nothing_else() {
    let mut joined = Joined::new().await;
    let target = Target::echo().await;
    let _other = joined.host.expose("other", &target.at).unwrap();
    let other = forward(&joined.session, "other").await;
    let mut kept = soon(TcpStream::connect(other.local())).await.unwrap();
    joined.host.add_rule(rule(Effect::Deny, "it")).await.unwrap();
    assert_reset(&mut joined.near).await;
    assert_reset(&mut joined.far).await;
    assert_eq!(how_it_ended(&mut joined.forward).await.2, Err(TunnelBroken::Denied));
    assert_eq!(how_it_was_served(&mut joined.exposed).await.2, Err(TunnelBroken::Denied));
    kept.write_all(b"still").await.unwrap();
    soon(kept.read_exact(&mut [0; 5])).await.unwrap();
    drop(kept);
    joined.shutdown().await;
}

#[tokio::test]
async fn what_is_exposed_no_longer_ends_and_its_name_is_free() {
    let mut joined = Joined::new().await;
    assert!(matches!(joined.host.expose("it", "127.0.0.1:9"), Err(ExposeError::Taken(_))));
    drop(joined.exposed);
    assert_reset(&mut joined.near).await;
    assert_reset(&mut joined.far).await;
    assert_eq!(how_it_ended(&mut joined.forward).await.2, Err(TunnelBroken::There));
    match soon(joined.session.tunnel("it")).await {
        Err(TunnelError::Refused(status)) => assert_eq!(status.code, Code::NotFound),
        other => panic!("{other:?}"),
    }
    let target = Target::echo().await;
    joined.exposed = joined.host.expose("it", &target.at).unwrap();
    assert_eq!(round_trip(joined.forward.local(), b"again").await, b"again");
    for (name, target) in [("a b", "127.0.0.1:9"), ("c", "127.0.0.1"), ("c", ":9"), ("c", "localhost:0")] {
        let error = joined.host.expose(name, target).unwrap_err();
        assert!(matches!(error, ExposeError::Name(_) | ExposeError::Target(_)), "{error:?}");
    }
    joined.shutdown().await;
}

#[tokio::test]
async fn a_forward_that_is_dropped_ends_its_connections_and_gives_its_port_back() {
    let Joined { mut near, mut far, forward, host, node, session, exposed: _exposed } = Joined::new().await;
    let at = forward.local();
    drop(forward);
    assert_reset(&mut near).await;
    assert_reset(&mut far).await;
    // Its task was told to end, and has ended a moment later.
    let again = soon(async {
        loop {
            match session.forward(at, "it").await {
                Ok(forward) => return forward,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    again.await.close().await;
    assert!(TcpStream::connect(at).await.is_err());
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_tunnel_ends_with_its_session_and_so_does_a_forward() {
    let mut joined = Joined::new().await;
    let mut events = joined.host.events();
    joined.session.close();
    disconnected(&mut events, joined.node.id()).await;
    assert_reset(&mut joined.far).await;
    let (.., end) = how_it_was_served(&mut joined.exposed).await;
    assert!(matches!(end, Err(TunnelBroken::Session(_))), "{end:?}");
    assert!(soon(joined.near.read(&mut [0; 8])).await.is_err());
    let last = async { while joined.forward.next().await.is_some() {} };
    soon(last).await;
    assert!(TcpStream::connect(joined.forward.local()).await.is_err());
    joined.host.shutdown().await;
    assert!(soon(joined.exposed.next()).await.is_none());
    joined.node.shutdown().await;
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_else() {
    let (host, node, session) = pair().await;
    let endless = Target::new(|mut stream| async move {
        let bytes = vec![7; 1 << 16];
        while stream.write_all(&bytes).await.is_ok() {}
    })
    .await;
    let echo = Target::echo().await;
    let _exposed = [host.expose("endless", &endless.at).unwrap(), host.expose("echo", &echo.at).unwrap()];
    let (slow, quick) = (forward(&session, "endless").await, forward(&session, "echo").await);
    let mut stuck = Vec::new();
    for _ in 0..24 {
        stuck.push(soon(TcpStream::connect(slow.local())).await.unwrap());
    }
    // Until all that is between them is full.
    for stream in &stuck {
        soon(stream.readable()).await.unwrap();
    }
    let bytes = random(1_000_000);
    for _ in 0..2 {
        assert!(round_trip(quick.local(), &bytes).await == bytes);
    }
    // They were not forgotten.
    for mut stream in stuck {
        soon(stream.read_exact(&mut vec![0; 1_500_000])).await.unwrap();
    }
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn no_more_tunnels_are_served_than_may_be_and_room_is_given_back() {
    let (host, node, session) = pair().await;
    let (give, mut take) = mpsc::channel::<DuplexStream>(limits::TUNNELS);
    let _exposed = host.expose_memory("memory", give).unwrap();
    let mut held = Vec::new();
    while held.len() < limits::TUNNELS {
        held.push((soon(session.tunnel("memory")).await.unwrap(), soon(take.recv()).await.unwrap()));
    }
    match soon(session.tunnel("memory")).await {
        Err(TunnelError::Refused(status)) => assert_eq!(status.code, Code::ResourceExhausted),
        other => panic!("{other:?}"),
    }
    // Another session has its own.
    let (another, other) = client(&host).await;
    let (tunnel, kept) = (soon(other.tunnel("memory")).await.unwrap(), soon(take.recv()).await.unwrap());
    drop((tunnel, kept));
    held.truncate(limits::TUNNELS - 1);
    let again = soon(async {
        loop {
            match session.tunnel("memory").await {
                Ok(tunnel) => return tunnel,
                Err(TunnelError::Refused(_)) => tokio::task::yield_now().await,
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    drop(again.await);
    for node in [another, node, host] {
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_slow_listener_to_events_is_told_how_many_it_missed() {
    let (host, node, session) = pair().await;
    let target = Target::echo().await;
    let mut exposed = host.expose("echo", &target.at).unwrap();
    let mut forward = forward(&session, "echo").await;
    for _ in 0..limits::TUNNEL_EVENTS {
        round_trip(forward.local(), b"x").await;
    }
    assert!(matches!(soon(exposed.next()).await, Some(Served::Missed(_))));
    assert!(matches!(soon(forward.next()).await, Some(Carried::Missed(_))));
    node.shutdown().await;
    host.shutdown().await;
}

#[tokio::test]
async fn nothing_is_lost_whatever_the_pace_of_both_ends() {
    let (host, node, session) = pair().await;
    let (give, mut take) = mpsc::channel::<DuplexStream>(8);
    let _exposed = host.expose_memory("memory", give).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..8 {
        let (mut send, mut recv) = soon(session.tunnel("memory")).await.unwrap().split();
        let (mut read, mut write) = tokio::io::split(soon(take.recv()).await.unwrap());
        let pieces: Arc<Vec<Vec<u8>>> = Arc::new((0..40).map(|_| self::random(random.random_range(0..60_000))).collect());
        let (out, back) = (pieces.clone(), pieces.clone());
        let sending = async {
            for piece in out.iter() {
                send.write(piece.clone()).await.unwrap();
            }
            send.finish().await.unwrap();
        };
        let answering = async {
            for piece in back.iter() {
                let mut got = vec![0; piece.len()];
                read.read_exact(&mut got).await.unwrap();
                assert!(got == *piece);
                write.write_all(&got).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
            write.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut all = Vec::new();
            while let Some(bytes) = recv.read().await.unwrap() {
                all.extend_from_slice(&bytes);
            }
            all
        };
        let ((), (), all) = soon(async { tokio::join!(sending, answering, receiving) }).await;
        assert!(all == pieces.concat());
    }
    node.shutdown().await;
    host.shutdown().await;
}
