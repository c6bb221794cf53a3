//! Wires against a model: whatever is done to nodes and paths, what a subscriber gets is what was published, in order, each chunk
//! once, minus exactly what it is told it has lost; and what was acknowledged is there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::net::sim::{LinkProfile, SimNetwork};
use voltmesh::policy::{self, Action, Effect, Pattern, Rule, Subject};
use voltmesh::proto::status::Code;
use voltmesh::wire::{
    Cursor, Delivery, From, Options, PublishError, Publisher, PublisherId, Slow, SubscribeError, Subscription, Wire,
};
use voltmesh::{Node, Session};

use crate::support::*;

const HOST: u8 = 1;
const PUBLISHERS: [u8; 2] = [2, 3];
const SUBSCRIBERS: [u8; 2] = [4, 5];
const NAME: &str = "feed";
/// What a publisher says last of all.
const END: u8 = 0;

/// Whose chunk it is, and its number there.
type Body = (u8, u64);
/// Where a chunk is: the wire's epoch, and its number there.
type Place = (u64, u64);

/// What is known of all chunks.
#[derive(Default)]
struct World {
    at: HashMap<Place, Body>,
    of: HashMap<Body, Place>,
    /// Acknowledged, and under which number, if that was told.
    acknowledged: Vec<(Body, Option<u64>)>,
    /// Of which it was said that they are not there.
    not_sent: Vec<Body>,
    next: HashMap<u8, u64>,
    gaps: u64,
    renewals: u64,
}

impl World {
    /// Somebody got this. It was not anything else, and nowhere else.
    fn delivered(&mut self, place: Place, body: Body) {
        assert_eq!(*self.at.entry(place).or_insert(body), body, "two chunks at {place:?}");
        assert_eq!(*self.of.entry(body).or_insert(place), place, "{body:?} is there twice");
    }

    fn number(&mut self, of: u8) -> u64 {
        let next = self.next.entry(of).or_default();
        *next += 1;
        *next
    }

    /// Each publisher's chunks are in the order in which they were published.
    fn check_order(&self) {
        let mut all: Vec<_> = self.at.iter().map(|((epoch, seq), (of, number))| (*of, *epoch, *seq, *number)).collect();
        all.sort_unstable();
        for pair in all.windows(2) {
            let same = (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1);
            assert!(!same || pair[0].3 < pair[1].3, "{pair:?}");
        }
    }
}

type Shared = Arc<Mutex<World>>;

fn encode((of, number): Body, length: usize) -> Vec<u8> {
    let mut bytes = vec![of];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.resize(9 + length, of);
    bytes
}

fn decode(bytes: &[u8]) -> Body {
    assert!(bytes[9..].iter().all(|byte| *byte == bytes[0]));
    (bytes[0], u64::from_be_bytes(std::array::from_fn(|at| bytes[1 + at])))
}

async fn node(network: &SimNetwork, host: u8, key: &SecretKey, home: Option<&Path>) -> Node {
    let rule =
        |action| Rule::new(Effect::Permit, Subject::Anyone, action, Pattern::everything(), policy::Source::Config).unwrap();
    let actions = [Action::Create, Action::Publish, Action::Subscribe];
    let builder = actions.into_iter().fold(Node::builder(), |builder, action| builder.rule(rule(action)));
    let builder = match home {
        Some(home) => builder.home(home),
        None => builder,
    };
    bind(network, ip(host), key, builder).await
}

/// A node that has or gets a session with the host.
async fn client(network: &SimNetwork, host: u8, key: &SecretKey, of: NodeId) -> (Node, Session) {
    let node = node(network, host, key, None).await;
    let session = node.hold(of, &[(ip(HOST), PORT).into()]);
    (node, session)
}

/// What kind of wire it is.
#[derive(Clone, Copy, Debug)]
struct Kind {
    options: Options,
    /// Whether everything that is stored is kept.
    keeps_all: bool,
}

impl Kind {
    fn draw(random: &mut StdRng, persist: bool) -> Self {
        let slow = [Slow::DropOldest, Slow::Disconnect, Slow::Block][random.random_range(0..3)];
        let ring_chunks = [8, 64, 4_096][random.random_range(0..3)];
        let keeps_all = persist && random.random_bool(0.5);
        let retain_bytes = if keeps_all { 1 << 30 } else { 70_000 };
        let ring_bytes = 64 * 1024;
        Self { options: Options { persist, slow, ring_chunks, ring_bytes, retain_bytes, ..Options::default() }, keeps_all }
    }
}

/// A publisher of one node: publishes what it is told to, and notes what became of it.
struct Source {
    publisher: Publisher,
    of: u8,
    told: Vec<JoinHandle<()>>,
}

impl Source {
    fn new(session: &Session, of: u8) -> Self {
        let publisher = session.wire(NAME).unwrap().publisher_named(PublisherId([of; 16]));
        Self { publisher, of, told: Vec::new() }
    }

    async fn publish(&mut self, world: &Shared, count: usize, length: usize, kind: Kind) {
        for _ in 0..count {
            let body = (self.of, world.lock().unwrap().number(self.of));
            let Ok(pending) = self.publisher.send(encode(body, length)).await else { return };
            let world = world.clone();
            self.told.push(tokio::spawn(async move {
                match pending.await {
                    Ok(receipt) => world.lock().unwrap().acknowledged.push((body, receipt.seq)),
                    // Its own node went down, or the log that had it is no more.
                    Err(PublishError::OutcomeUnknown(why)) => {
                        assert!(
                            !kind.options.persist || why.contains("stopped") || why.contains("gone") || why.contains("closed"),
                            "{why}"
                        );
                    }
                    // Its own node went down before.
                    Err(PublishError::NotSent(_)) => world.lock().unwrap().not_sent.push(body),
                    Err(error) => panic!("{body:?}: {error}"),
                }
            }));
        }
    }

    async fn settled(self) {
        for told in self.told {
            told.await.unwrap();
        }
    }
}

/// One subscriber, as it reads, rests, leaves and comes back.
struct Listener {
    wire: Wire,
    world: Shared,
    random: StdRng,
    /// It is to hear everything there is, and then end.
    ending: Arc<AtomicBool>,
    kind: Kind,
    heard: u64,
}

impl Listener {
    async fn run(mut self) -> u64 {
        let mut cursor = Cursor { epoch: 0, seq: 0 };
        loop {
            let from = self.begin(cursor);
            let mut subscription = match self.wire.subscribe(from).await {
                Ok(subscription) => subscription,
                // That number is not there yet.
                Err(SubscribeError::Refused(status)) if status.code == Code::OutOfRange => continue,
                Err(error) => panic!("{error}"),
            };
            self.world.lock().unwrap().renewals += 1;
            let ended = self.listen(&mut subscription, from).await;
            cursor = subscription.cursor();
            if ended {
                return self.heard;
            }
        }
    }

    fn begin(&mut self, cursor: Cursor) -> From {
        let ending = self.ending.load(SeqCst);
        match self.random.random_range(0..6) {
            0 if !ending => From::Live,
            1 => From::Oldest,
            2 if !ending => From::Seq(self.random.random_range(1..200)),
            _ if cursor.epoch != 0 => From::After(cursor),
            _ => From::Oldest,
        }
    }

    /// Says whether it has heard the end of all.
    async fn listen(&mut self, subscription: &mut Subscription, from: From) -> bool {
        // The epoch, and the number that has to come next, where that is known.
        let mut expected = match from {
            From::After(cursor) => (cursor.epoch, cursor.seq.checked_add(1)),
            From::Seq(seq) => (0, Some(seq)),
            _ => (0, None),
        };
        loop {
            let delivery = match subscription.next().await {
                Ok(delivery) => delivery,
                Err(SubscribeError::Refused(status)) if status.code == Code::ResourceExhausted => {
                    assert_ne!(self.kind.options.slow, Slow::DropOldest, "{status}");
                    return false;
                }
                Err(error) => panic!("{error}"),
            };
            match delivery {
                Delivery::Chunk { seq, chunk } => {
                    let (epoch, body) = (subscription.cursor().epoch, decode(&chunk.body));
                    assert!(expected.0 == 0 || expected.0 == epoch, "an epoch changed without a word");
                    assert!(expected.1.is_none_or(|next| next == seq), "{seq} came where {expected:?} was due");
                    assert_eq!(subscription.cursor(), Cursor { epoch, seq });
                    self.world.lock().unwrap().delivered((epoch, seq), body);
                    self.heard += 1;
                    expected = (epoch, Some(seq + 1));
                    if body.0 == END && self.ending.load(SeqCst) {
                        return true;
                    }
                }
                Delivery::Gap { epoch, from, to } => {
                    assert!(expected.0 == 0 || expected.0 == epoch, "{epoch} instead of {expected:?}");
                    assert!(expected.1.is_none_or(|next| next == from), "a gap from {from} where {expected:?} was due");
                    assert!(!self.kind.keeps_all, "something was lost from {from} to {to:?}");
                    assert!(!self.kind.options.persist || to.is_some(), "a persistent wire was made anew");
                    self.world.lock().unwrap().gaps += 1;
                    // The next epoch is told by what comes then.
                    expected = to.map_or((0, Some(1)), |to| (epoch, Some(to + 1)));
                }
                other => panic!("{other:?}"),
            }
            match self.random.random_range(0..400) {
                0 => return false,
                1..20 => sleep(ms(&mut self.random, 0, 2_000)).await,
                _ => {}
            }
        }
    }
}

/// The host's process is killed, and is there again some time later.
async fn crash_host(network: &SimNetwork, random: &mut StdRng, key: &SecretKey, host: Node, home: &Path) -> Node {
    network.host(ip(HOST)).crash();
    drop(host);
    sleep(ms(random, 0, 5_000)).await;
    loop {
        let again = node(network, HOST, key, Some(home)).await;
        // What the old one was just writing it may still hold.
        if again.broken_wires().is_empty() {
            return again;
        }
        drop(again);
        sleep(Duration::from_millis(10)).await;
    }
}

async fn cut(network: &SimNetwork, random: &mut StdRng, host: u8) {
    network.partition(ip(host), ip(HOST));
    let long = random.random_ratio(1, 6);
    sleep(if long { ms(random, 125_000, 140_000) } else { ms(random, 100, 20_000) }).await;
    network.heal(ip(host), ip(HOST));
}

/// One round. Gives how many chunks there were, how many were heard, and how many gaps were told.
async fn round(seed: u64, persist: bool) -> (usize, u64, u64) {
    let (network, mut random) = network(seed);
    network.default_link(LinkProfile { jitter: ms(&mut random, 0, 10), ..LinkProfile::perfect(ms(&mut random, 1, 40)) });
    let home = tempfile::tempdir().unwrap();
    let home = home.path().join("home");
    let (host_key, kind, world) = (key(seed), Kind::draw(&mut random, persist), Shared::default());
    let mut host = node(&network, HOST, &host_key, Some(&home)).await;
    host.wire(NAME).unwrap().create(kind.options).await.unwrap();
    let ending = Arc::<AtomicBool>::default();

    let mut sources = Vec::new();
    for of in PUBLISHERS {
        let (node, session) = client(&network, of, &key(seed + u64::from(of)), host.id()).await;
        sources.push((node, Source::new(&session, of)));
    }
    let mut listening = Vec::new();
    for at in SUBSCRIBERS {
        let (node, session) = client(&network, at, &key(seed + u64::from(at)), host.id()).await;
        let random = StdRng::seed_from_u64(seed + u64::from(at));
        let (wire, world, ending) = (session.wire(NAME).unwrap(), world.clone(), ending.clone());
        listening.push((node, tokio::spawn(Listener { wire, world, random, ending, kind, heard: 0 }.run())));
    }

    for _ in 0..25 {
        match random.random_range(0..12u8) {
            0 => cut(&network, &mut random, PUBLISHERS[0]).await,
            1 => cut(&network, &mut random, SUBSCRIBERS[0]).await,
            2 => {
                host = crash_host(&network, &mut random, &host_key, host, &home).await;
                if !persist {
                    host.wire(NAME).unwrap().create(kind.options).await.unwrap();
                }
            }
            3 => {
                // A publisher's process is killed, and comes back as who it was.
                let (node, source) = sources.pop().unwrap();
                let of = source.of;
                network.host(ip(of)).crash();
                drop(node);
                drop(source.publisher);
                sleep(ms(&mut random, 0, 3_000)).await;
                let (node, session) = client(&network, of, &key(seed + u64::from(of)), host.id()).await;
                sources.insert(0, (node, Source::new(&session, of)));
            }
            4 => {
                // One end closes: the next session is another one.
                if let Some(session) = host.session(sources[0].0.id()) {
                    session.close();
                }
            }
            5 => sleep(ms(&mut random, 0, 4_000)).await,
            _ => {
                let (count, length) = (random.random_range(1..150), random.random_range(0..900));
                let which = random.random_range(0..sources.len());
                sources[which].1.publish(&world, count, length, kind).await;
            }
        }
    }

    for (_, source) in sources.iter_mut() {
        source.publisher.flush().await.ok();
    }
    ending.store(true, SeqCst);
    let (_node, session) = client(&network, 9, &key(seed + 9), host.id()).await;
    let end = session.wire(NAME).unwrap().publisher_named(PublisherId([END; 16]));
    let mut heard = 0;
    for (_node, listening) in listening {
        let mut listening = listening;
        let mut patience = 0;
        heard += loop {
            let body = (END, world.lock().unwrap().number(END));
            let receipt = end.publish(encode(body, 0)).await.unwrap();
            world.lock().unwrap().acknowledged.push((body, receipt.seq));
            tokio::select! {
                heard = &mut listening => break heard.unwrap(),
                () = sleep(Duration::from_secs(30)) => patience += 1,
            }
            assert!(patience < 100, "somebody does not hear the end: {kind:?}");
        };
    }
    for (_node, source) in sources {
        source.settled().await;
    }
    check_what_is_there(&host, &world, kind).await;
    let world = world.lock().unwrap();
    world.check_order();
    (world.of.len(), heard, world.gaps)
}

/// What the host has is what subscribers got, and what was acknowledged is there if nothing may go.
async fn check_what_is_there(host: &Node, world: &Shared, kind: Kind) {
    let info = host.wires().remove(0);
    let mut all = host.wire(NAME).unwrap().subscribe(From::Oldest).await.unwrap();
    while all.cursor().seq + 1 < info.next {
        match all.next().await.unwrap() {
            Delivery::Chunk { seq, chunk } => world.lock().unwrap().delivered((info.epoch, seq), decode(&chunk.body)),
            gap => panic!("{gap:?} of what is kept"),
        }
    }
    let world = world.lock().unwrap();
    for body in &world.not_sent {
        assert!(!world.of.contains_key(body), "{body:?} is there, and was said not to be");
    }
    for (body, seq) in &world.acknowledged {
        let place = world.of.get(body);
        assert!(place.is_some() || !kind.keeps_all, "{body:?} was acknowledged and is nowhere");
        if let (Some((_, at)), Some(seq)) = (place, seq) {
            assert_eq!(at, seq, "{body:?} was acknowledged under another number");
        }
    }
}

fn told(what: &str, rounds: &[(usize, u64, u64)]) {
    let sum = rounds.iter().fold((0, 0, 0), |sum, round| (sum.0 + round.0, sum.1 + round.1, sum.2 + round.2));
    println!("{what}, {} rounds: {} chunks, {} deliveries, {} gaps told", rounds.len(), sum.0, sum.1, sum.2);
}

#[test]
fn a_wire_in_memory_gives_what_was_published_minus_what_it_says_is_lost() {
    told("in memory", &rounds(8, |seed| round(seed, false)));
}

#[test]
fn a_persistent_wire_gives_what_was_published_minus_what_it_says_is_lost() {
    told("persistent", &rounds(8, |seed| round(seed, true)));
}
