//! Nodes on simulated hosts, what they tell, and the seeds of rounds.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::net::Transport;
use voltmesh::net::sim::{LinkProfile, SimNetwork, SimRuntime};
use voltmesh::node::Builder;
use voltmesh::proto::control::SessionId;
use voltmesh::session::{DisconnectReason, SessionState};
use voltmesh::{Event, Node, Service, Session};

/// Where every node listens.
pub const PORT: u16 = 8658;

/// Whether the long forms are asked for.
pub fn long() -> bool {
    std::env::var_os("VOLT_LONG").is_some()
}

/// Runs so many rounds (a thousand in the long form), each in a simulation of its own with a seed of its own. `round` gets the
/// seed and gives what it measured.
pub fn rounds<T, F: Future<Output = T>>(short: u64, round: impl Fn(u64) -> F) -> Vec<T> {
    rounds_of(short, 1_000, round)
}

/// The same, with so many rounds in the short and in the long form.
pub fn rounds_of<T, F: Future<Output = T>>(short: u64, long_form: u64, round: impl Fn(u64) -> F) -> Vec<T> {
    let (first, count) = match asked() {
        Some(seed) => (seed, 1),
        None => (rand::random::<u64>() >> 16, if long() { long_form } else { short }),
    };
    (first..first + count).map(|seed| simulate(round(told(seed)))).collect()
}

/// The seed that is asked for, or a new one.
pub fn seed() -> u64 {
    told(asked().unwrap_or_else(|| rand::random::<u64>() >> 16))
}

fn asked() -> Option<u64> {
    std::env::var("VOLT_SEED").ok().map(|seed| seed.parse().expect("VOLT_SEED is a number"))
}

fn told(seed: u64) -> u64 {
    println!("VOLT_SEED={seed}");
    seed
}

/// Runs this under paused time, in a runtime of its own.
pub fn simulate<T>(scenario: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(scenario)
}

/// A network, and the random numbers of a round.
pub fn network(seed: u64) -> (SimNetwork, StdRng) {
    (SimNetwork::new(seed), StdRng::seed_from_u64(seed))
}

/// Between these, evenly, in milliseconds.
pub fn ms(random: &mut StdRng, low: u64, high: u64) -> Duration {
    Duration::from_micros(random.random_range(low * 1_000..=high * 1_000))
}

/// The address of the host with this number.
pub fn ip(host: u8) -> [u8; 4] {
    [10, 0, 0, host]
}

/// The key with this number.
pub fn key(number: u64) -> SecretKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed(&seed)
}

/// Puts a node on a host.
pub async fn bind(network: &SimNetwork, host: impl Into<std::net::IpAddr>, key: &SecretKey, builder: Builder) -> Node {
    let host = network.host(host);
    let seed = u64::from_le_bytes(host.rng_seed()[..8].try_into().unwrap());
    let transport = Transport::Abstract(host.socket(PORT), Arc::new(SimRuntime));
    builder.key(key.clone()).seed(seed).transport(transport).bind().await.unwrap()
}

/// A node that lets everyone call it, with a service that counts.
pub async fn open(network: &SimNetwork, host: u8, key: &SecretKey) -> (Node, Served) {
    let served = Served::default();
    let node = bind(network, ip(host), key, Node::builder().open(true).service(served.service())).await;
    (node, served)
}

/// How often each call was executed.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Mutex<std::collections::BTreeMap<u64, u32>>>);

impl Served {
    /// `work/echo` gives back what it gets, `work/slow` after 5 s, `work/held` never.
    pub fn service(&self) -> Service {
        let (echo, slow, held) = (self.clone(), self.clone(), self.clone());
        Service::new("work")
            .unary("echo", move |_cx, (number, body): (u64, Vec<u8>)| {
                echo.count(number);
                async move { Ok((number, body)) }
            })
            .unary("slow", move |_cx, number: u64| {
                slow.count(number);
                async move {
                    sleep(Duration::from_secs(5)).await;
                    Ok(number)
                }
            })
            .unary("held", move |_cx, number: u64| {
                held.count(number);
                async move {
                    std::future::pending::<()>().await;
                    Ok(number)
                }
            })
    }

    fn count(&self, number: u64) {
        *self.0.lock().unwrap().entry(number).or_default() += 1;
    }

    /// How often this call was executed.
    pub fn times(&self, number: u64) -> u32 {
        self.0.lock().unwrap().get(&number).copied().unwrap_or_default()
    }

    /// The most often any call was executed.
    pub fn most(&self) -> u32 {
        self.0.lock().unwrap().values().copied().max().unwrap_or_default()
    }
}

/// Calls `work/echo` and checks the answer.
pub async fn echo(session: &Session) -> Duration {
    static NUMBER: AtomicU64 = AtomicU64::new(1 << 40);
    let sent = (NUMBER.fetch_add(1, Ordering::Relaxed), vec![1, 2, 3]);
    let started = Instant::now();
    let answer: (u64, Vec<u8>) = session.call("work/echo", &sent).await.unwrap();
    assert_eq!(answer, sent);
    started.elapsed()
}

/// What a node told of one peer, and when.
#[derive(Clone)]
pub struct Told(Arc<Mutex<Vec<(Instant, Event)>>>);

impl Told {
    /// From now on.
    pub fn by(node: &Node, peer: NodeId) -> Self {
        let (told, mut events) = (Self(Arc::default()), node.events());
        let list = told.0.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match &event {
                    Event::Connected { peer: who, .. } | Event::Disconnected { peer: who, .. } if *who == peer => {
                        list.lock().unwrap().push((Instant::now(), event));
                    }
                    Event::Missed(_) => panic!("events were missed"),
                    _ => {}
                }
            }
        });
        told
    }

    /// Forgets what was told before this session: on a bad link the first one may be agreed on by one end and never be heard of at the
    /// other.
    pub async fn begin(&self, session: SessionId) {
        let begins = |(_, event): &(Instant, Event)| matches!(event, Event::Connected { session: id, .. } if *id == session);
        until(Duration::from_secs(10), || self.all().iter().any(begins)).await;
        let mut told = self.0.lock().unwrap();
        let at = told.iter().position(begins).unwrap();
        told.drain(..at);
    }

    /// Everything told.
    pub fn all(&self) -> Vec<(Instant, Event)> {
        self.0.lock().unwrap().clone()
    }

    /// How often it was connected.
    pub fn connected(&self) -> usize {
        self.all().iter().filter(|(_, event)| matches!(event, Event::Connected { .. })).count()
    }

    /// The first loss at or after this, and why.
    pub fn lost_after(&self, from: Instant) -> Option<(Instant, DisconnectReason)> {
        self.all().into_iter().find_map(|(at, event)| match event {
            Event::Disconnected { reason, .. } if at >= from => Some((at, reason)),
            _ => None,
        })
    }

    /// Each time it was connected: which session, and whether it is the one from before.
    pub fn connects(&self) -> Vec<(Instant, SessionId, bool)> {
        let connect = |(at, event)| match event {
            Event::Connected { session, resumed, .. } => Some((at, session, resumed)),
            _ => None,
        };
        self.all().into_iter().filter_map(connect).collect()
    }

    /// One session all along: every connect but the first resumed it.
    pub fn assert_one_session(&self) {
        self.assert_alternates();
        let connects = self.connects();
        let one =
            |(at, (_, session, resumed)): (usize, &(Instant, SessionId, bool))| *session == connects[0].1 && *resumed == (at > 0);
        assert!(connects.iter().enumerate().all(one), "{:#?}", self.all());
    }

    /// Connected and disconnected, in turns, beginning with connected.
    pub fn assert_alternates(&self) {
        let all = self.all();
        for (at, (_, event)) in all.iter().enumerate() {
            assert_eq!(matches!(event, Event::Connected { .. }), at % 2 == 0, "{all:#?}");
        }
    }
}

/// Waits until it is so, asking every millisecond of simulated time; gives how long it took.
#[track_caller]
pub fn until(within: Duration, so: impl Fn() -> bool) -> impl Future<Output = Duration> {
    let at = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        let asking = async {
            while !so() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(within, asking).await.unwrap_or_else(|_| panic!("{at}: not within {within:?}"));
        started.elapsed()
    }
}

/// Whether two nodes have one and the same session.
pub fn joined(a: &Node, b: &Node) -> bool {
    let at = |node: &Node, peer: &Node| node.session(peer.id()).and_then(|session| session.id());
    at(a, b).is_some() && at(a, b) == at(b, a)
}

/// Two nodes with a session, `a` having dialled `b`; hosts 1 and 2.
pub struct Pair {
    pub a: Node,
    pub b: Node,
    pub to_b: Session,
    pub to_a: Session,
    pub told_a: Told,
    pub told_b: Told,
    pub served_b: Served,
}

impl Pair {
    /// On a network with this kind of link.
    pub async fn new(network: &SimNetwork, link: LinkProfile, keys: [&SecretKey; 2]) -> Self {
        network.default_link(link);
        let ((a, _), (b, served_b)) = (open(network, 1, keys[0]).await, open(network, 2, keys[1]).await);
        let (told_a, told_b) = (Told::by(&a, b.id()), Told::by(&b, a.id()));
        let to_b = a.hold(b.id(), &[(ip(2), PORT).into()]);
        until(Duration::from_secs(60), || joined(&a, &b)).await;
        let to_a = b.session(a.id()).expect("it is connected");
        Self { a, b, to_b, to_a, told_a, told_b, served_b }
    }

    pub fn assert_alternate(&self) {
        self.told_a.assert_alternates();
        self.told_b.assert_alternates();
    }
}

/// Whether the session is up.
pub fn is_up(session: &Session) -> bool {
    session.state() == SessionState::Connected
}

/// Least, middle and greatest of some times.
pub fn spread(name: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!("{name}: least {:?}, p50 {:?}, p99 {:?}, most {:?}, of {}", at(0), at(50), at(99), at(100), times.len());
    at(100)
}
