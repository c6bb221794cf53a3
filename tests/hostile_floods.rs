//! One hostile peer with a valid key that does one thing as much as it can, and keeps what it has: what it pins of the node's memory while
//! it holds on, how many handlers live, and what somebody honest notices.
//!
//! The node is a process of its own, this binary again, with an allocator that counts what is held. What it holds when all has come to rest
//! is compared with what it held before.
//!
//! Calls of somebody honest are timed before and meanwhile. On a machine that others use those times are for reading, so they are printed
//! and not judged. So that they tell of the node, and not of who gets the processor, the node has one of its own, and the hostile peer's
//! threads run only when the honest one's have nothing to do, as if they were elsewhere. With `--release -- --test-threads 1 --nocapture`
//! they are worth reading. `VOLT_LONG=1` does more of everything; `VOLT_DEED=name` does one thing only.
#![cfg(target_os = "linux")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::fs;
use std::future::ready;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use quinn::{RecvStream, SendStream, TransportConfig};
use rcgen::KeyPair;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use support::raw::{RawPeer, RawStreams, header, message};
use support::{Alive, closed, echo, long, soon};
use tokio::runtime::{Builder, Runtime};
use voltmesh::id::{NodeId, Ticket};
use voltmesh::node::config::Config;
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::body::ContentType;
use voltmesh::proto::call::Shape;
use voltmesh::proto::control::{Control, Progress, Run};
use voltmesh::proto::directory::{self, Listing, Mode, Query, Scope};
use voltmesh::proto::frame::put_message;
use voltmesh::proto::status::Status;
use voltmesh::proto::stream::{Kind, Purpose};
use voltmesh::proto::wire::{self, Chunk, Options, PublisherId};
use voltmesh::proto::{limits, varint};
use voltmesh::{Node, Receiver, Service, Session};

/// What it does, and what it holds then.
type Deed = fn(At) -> BoxFuture<'static, Held>;
type Held = Box<dyn Any + Send>;

/// What one deed may pin, in MiB.
const MOST_MIB: i64 = 16;

/// Names of deeds, and the deeds. One more is a line here and a function below.
type Deeds = &'static [(&'static str, Deed)];

/// Whether handshakes are rated as if they came from elsewhere.
#[derive(Clone, Copy, Debug)]
enum Loopback {
    Exempt,
    Rated,
}

const LINKS: Deeds = &[
    ("links that say nothing", |at| links_that_say_nothing(at).boxed()),
    ("links that fill what they may before hello", |at| links_filled_before_hello(at).boxed()),
];

const HANDSHAKES: Deeds =
    &[("handshakes", |at| handshakes(at).boxed()), ("sessions, one after the other", |at| sessions(at).boxed())];

const STREAMS_AND_CALLS: Deeds = &[
    ("streams opened and reset", |at| streams_opened_and_reset(at).boxed()),
    ("streams with nothing on them", |at| empty_streams(at).boxed()),
    ("calls that never end", |at| calls_that_never_end(at).boxed()),
    ("slow bytes", |at| slow_bytes(at).boxed()),
    ("pings", |at| pings(at).boxed()),
    ("messages of a few bytes", |at| small_messages(at).boxed()),
    ("chunks of a few bytes", |at| small_chunks(at).boxed()),
    ("questions to the directory", |at| questions(at).boxed()),
];

const BYTES: Deeds = &[
    ("metadata", |at| metadata(at).boxed()),
    ("headers never finished", |at| headers_never_finished(at).boxed()),
    ("bodies never finished", |at| bodies_never_finished(at).boxed()),
    ("data that nobody reads", |at| data_that_nobody_reads(at).boxed()),
    ("answers never acknowledged", |at| answers_never_acknowledged(at).boxed()),
    ("calls to be remembered", |at| calls_to_be_remembered(at).boxed()),
];

const NAMES: Deeds = &[
    ("registrations", |at| registrations(at).boxed()),
    ("registrations, taken back and made again", |at| registrations_again(at).boxed()),
    ("watches", |at| watches(at).boxed()),
    ("wires made", |at| wires_made(at).boxed()),
    ("subscriptions never read", |at| subscriptions(at).boxed()),
];

/// Where the node is, and who the hostile peer is: it keeps its key when it begins anew.
#[derive(Clone)]
struct At {
    id: NodeId,
    address: SocketAddr,
    key: Arc<KeyPair>,
}

/// So many in the short form and in the long one.
fn many(short: usize, more: usize) -> usize {
    if long() { more } else { short }
}

impl At {
    fn peer(&self, tune: impl Fn(&mut TransportConfig)) -> RawPeer {
        RawPeer::with(&self.key, support::loopback(), tune)
    }

    /// A session with the node, and its pings answered. The peer takes what comes, and keeps little of what it sends itself.
    async fn session(self) -> (RawPeer, RawStreams) {
        let peer = self.peer(|transport| {
            transport.send_window(512 << 10);
        });
        // Who comes again and again is refused for a while.
        let streams = soon(async {
            loop {
                if let Ok(streams) = peer.try_to_greet(self.address).await {
                    return streams.answering();
                }
            }
        })
        .await;
        (peer, streams)
    }
}

/// The stream after so many others of the side that has dialled.
fn id(nth: usize) -> u64 {
    2 * nth as u64
}

async fn links_that_say_nothing(at: At) -> Held {
    let peer = at.peer(|_| {});
    let links = join_all((0..many(100, 250)).map(|_| peer.dial(at.address))).await;
    Box::new((peer, links))
}

async fn links_filled_before_hello(at: At) -> Held {
    let peer = at.peer(|_| {});
    let links = join_all((0..many(100, 250)).map(|_| async {
        let link = soon(peer.dial(at.address)).await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..limits::STRANGER_STREAMS {
            let Some(Ok((mut send, recv))) = link.open_bi().now_or_never() else { break };
            let mut bytes = vec![Kind::Control as u8];
            varint::put(&mut bytes, limits::CONTROL_MESSAGE_BYTES as u64);
            bytes.resize(limits::STRANGER_WINDOW_BYTES as usize, 0xff);
            let _ = tokio::time::timeout(Duration::from_millis(300), send.write_all(&bytes)).await;
            streams.push((send, recv));
        }
        (link, streams)
    }))
    .await;
    Box::new((peer, links))
}

async fn handshakes(at: At) -> Held {
    let peer = at.peer(|_| {});
    for _ in 0..many(5, 40) {
        join_all((0..32).map(|_| peer.dial(at.address))).await;
    }
    Box::new(peer)
}

async fn sessions(at: At) -> Held {
    let peer = at.peer(|_| {});
    let mut last = None;
    for _ in 0..many(50, 400) {
        last = soon(peer.try_to_greet(at.address)).await.ok();
    }
    Box::new((peer, last))
}

async fn streams_opened_and_reset(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let rounds = many(10_000, 200_000);
    for nth in 1..=rounds {
        let (mut send, mut recv) = streams.open(&stuck(&streams, nth)).await;
        if nth % 16 == 0 {
            tokio::task::yield_now().await;
        }
        let _ = send.reset(0u32.into());
        let _ = recv.stop(0u32.into());
        // Or it would have as many live as it may.
        if nth > 512 && nth % 128 == 0 {
            let over = vec![Run { first: id(nth - 512), count: 128 }];
            streams.tell(Control::Progress(Progress { over, live: Vec::new() }));
        }
    }
    Box::new((peer, streams))
}

async fn empty_streams(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let mut open = Vec::new();
    while let Ok(Ok((mut send, recv))) = tokio::time::timeout(Duration::from_millis(500), streams.connection.open_bi()).await {
        let _ = send.write_all(&[2]).await;
        open.push((send, recv));
    }
    Box::new((peer, streams, open))
}

/// As many calls as it may have streams, each of them with these bytes; those beyond wait and are given up.
async fn calls(streams: &RawStreams, calls: usize, bytes: impl Fn(usize) -> Vec<u8>) -> Vec<(SendStream, RecvStream)> {
    let mut open = Vec::new();
    for nth in 1..=calls {
        let opening = tokio::time::timeout(Duration::from_millis(500), streams.connection.open_bi());
        let Ok(Ok((mut send, recv))) = opening.await else { break };
        let written = tokio::time::timeout(Duration::from_millis(500), send.write_all(&bytes(nth))).await;
        open.push((send, recv));
        // The node takes no more.
        if written.is_err() {
            break;
        }
    }
    open
}

fn stuck(streams: &RawStreams, nth: usize) -> Vec<u8> {
    let mut bytes = streams.call(id(nth), &header("flood/stuck", Shape::Unary, ContentType::Bincode));
    bytes.extend(message(&[]));
    bytes
}

async fn calls_that_never_end(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let open = calls(&streams, limits::STREAMS as usize, |nth| stuck(&streams, nth)).await;
    Box::new((peer, streams, open))
}

async fn slow_bytes(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let begin = |nth| {
        let mut bytes = streams.head(id(nth));
        bytes.push(Purpose::Call as u8);
        varint::put(&mut bytes, limits::CALL_HEADER_BYTES as u64);
        bytes
    };
    let mut open = calls(&streams, limits::STREAMS as usize, begin).await;
    for _ in 0..many(20, 400) {
        for (send, _) in &mut open {
            let _ = send.write_all(&[0]).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Box::new((peer, streams, open))
}

async fn pings(at: At) -> Held {
    let (peer, streams) = at.session().await;
    for seq in 0..many(20_000, 1_000_000) as u64 {
        streams.tell(Control::Ping { seq });
        if seq % 256 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Box::new((peer, streams))
}

/// A stream that begins like this and goes on with the same bytes over and over.
async fn pour(streams: &RawStreams, begin: &[u8], again: &[u8], times: usize) -> (SendStream, RecvStream) {
    let (mut send, recv) = streams.open(begin).await;
    let many = again.repeat(4_096);
    for _ in 0..times {
        // For as long as the node takes it.
        match tokio::time::timeout(Duration::from_secs(2), send.write_all(&many)).await {
            Ok(Ok(())) => {}
            _ => break,
        }
    }
    (send, recv)
}

async fn small_messages(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let begin = streams.call(id(1), &header("echo/sum", Shape::ClientStream, ContentType::Bincode));
    let open = pour(&streams, &begin, &message(&[1]), many(50, 1_000)).await;
    Box::new((peer, streams, open))
}

async fn small_chunks(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let ask = wire::Ask::Publish { name: "few".into(), publisher: PublisherId([7; 16]), epoch: None };
    let mut chunk = Vec::new();
    wire::put_chunk(&mut chunk, &Chunk::from(vec![1])).unwrap();
    let open = pour(&streams, &asking_wires(&streams, 1, &ask), &chunk, many(10, 200)).await;
    Box::new((peer, streams, open))
}

async fn questions(at: At) -> Held {
    let (peer, streams) = at.session().await;
    for nth in 1..=many(1_000, 20_000) {
        let query = Query { pattern: "*".into(), offline: true, scope: Scope::All };
        let (mut send, mut recv) = streams.open(&asking(&streams, nth, &directory::Ask::Discover(query))).await;
        let _ = send.finish();
        let _ = soon(recv.read_to_end(1 << 20)).await;
        if nth % 16 == 0 {
            let over = vec![Run { first: id(nth - 15), count: 16 }];
            streams.tell(Control::Progress(Progress { over, live: Vec::new() }));
        }
    }
    Box::new((peer, streams))
}

async fn metadata(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let value = vec![7; limits::METADATA_ENTRY_BYTES - 8];
    let begin = |nth| {
        let mut header = header("flood/stuck", Shape::Unary, ContentType::Bincode);
        header.metadata = vec![("name", value.as_slice()); limits::METADATA_ENTRIES];
        let mut bytes = streams.call(id(nth), &header);
        bytes.extend(message(&[]));
        bytes
    };
    let open = calls(&streams, 300, begin).await;
    Box::new((peer, streams, open))
}

/// So many streams that begin like this, each with as many bytes after it as the node takes. They stay as they are when it takes no more.
fn fill(streams: &RawStreams, count: usize, each: usize, begin: impl Fn(usize) -> Vec<u8>) -> Vec<Writer> {
    let write = |nth| {
        let (streams, bytes) = (streams.clone(), begin(nth));
        Writer(tokio::spawn(async move {
            let Ok((mut send, recv)) = streams.connection.open_bi().await else { return };
            let _ = send.write_all(&bytes).await;
            let filler = [0; 8 << 10];
            let mut left = each;
            while left > 0 {
                let Ok(written) = send.write(&filler[..left.min(filler.len())]).await else { break };
                left -= written;
            }
            std::future::pending::<()>().await;
            drop((send, recv));
        }))
    };
    (1..=count).map(write).collect()
}

/// Ends with whoever holds it.
struct Writer(tokio::task::JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn headers_never_finished(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let writers = fill(&streams, 1_000, limits::CALL_HEADER_BYTES - 1, |nth| {
        let mut bytes = streams.head(id(nth));
        bytes.push(Purpose::Call as u8);
        varint::put(&mut bytes, limits::CALL_HEADER_BYTES as u64);
        bytes
    });
    Box::new((peer, streams, writers))
}

async fn bodies_never_finished(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let writers = fill(&streams, 100, limits::BODY_BYTES - 1, |nth| {
        let mut bytes = streams.call(id(nth), &header("echo/one", Shape::Unary, ContentType::Raw));
        varint::put(&mut bytes, limits::BODY_BYTES as u64 + 1);
        bytes
    });
    Box::new((peer, streams, writers))
}

async fn data_that_nobody_reads(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let writers = fill(&streams, 200, 4 << 20, |nth| {
        let mut bytes = streams.call(id(nth), &header("flood/deaf", Shape::ClientStream, ContentType::Bincode));
        varint::put(&mut bytes, limits::BODY_BYTES as u64 + 1);
        bytes
    });
    Box::new((peer, streams, writers))
}

async fn answers_never_acknowledged(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let open = calls(&streams, 200, |nth| {
        let mut bytes = streams.call(id(nth), &header("flood/large", Shape::Unary, ContentType::Raw));
        bytes.extend(message(&[]));
        bytes
    })
    .await;
    Box::new((peer, streams, open))
}

async fn calls_to_be_remembered(at: At) -> Held {
    let (peer, streams) = at.session().await;
    for nth in 1..=many(1_000, 20_000) {
        let key = format!("{nth:064}");
        let mut header = header("flood/middling", Shape::Unary, ContentType::Raw);
        header.idempotency_key = Some(key.as_bytes());
        let mut bytes = streams.call(id(nth), &header);
        bytes.extend(message(&[]));
        let (mut send, mut recv) = streams.open(&bytes).await;
        let _ = send.finish();
        let _ = soon(recv.read_to_end(1 << 20)).await;
        if nth % 16 == 0 {
            let over = vec![Run { first: id(nth - 15), count: 16 }];
            streams.tell(Control::Progress(Progress { over, live: Vec::new() }));
        }
    }
    Box::new((peer, streams))
}

fn asking(streams: &RawStreams, nth: usize, ask: &directory::Ask) -> Vec<u8> {
    let mut bytes = streams.head(id(nth));
    bytes.push(Purpose::Directory as u8);
    put_message(&mut bytes, ask);
    bytes
}

/// A service of which so many bytes are said.
fn listing(name: usize, bytes: usize) -> directory::Ask {
    let description = format!("{{\"x\":\"{}\"}}", "x".repeat(bytes)).into_bytes();
    directory::Ask::Register(Listing { name: format!("s{name}"), mode: Mode::Public, metadata: Vec::new(), description })
}

async fn registrations(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let open = calls(&streams, 500, |nth| asking(&streams, nth, &listing(nth, 15 << 10))).await;
    Box::new((peer, streams, open))
}

async fn registrations_again(at: At) -> Held {
    let (peer, streams) = at.session().await;
    for nth in 1..=many(500, 5_000) {
        let (mut send, mut recv) = streams.open(&asking(&streams, nth, &listing(nth, 60 << 10))).await;
        let mut first = [0; 1];
        let _ = soon(recv.read_exact(&mut first)).await;
        let _ = send.finish();
        if nth % 16 == 0 {
            let over = vec![Run { first: id(nth - 15), count: 16 }];
            streams.tell(Control::Progress(Progress { over, live: Vec::new() }));
        }
    }
    Box::new((peer, streams))
}

async fn watches(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let registered = calls(&streams, 250, |nth| asking(&streams, nth, &listing(nth, 15 << 10))).await;
    let query = || Query { pattern: "*".into(), offline: true, scope: Scope::All };
    let mut open = Vec::new();
    for nth in 251..=600 {
        let opening = tokio::time::timeout(Duration::from_millis(500), streams.connection.open_bi());
        let Ok(Ok((mut send, recv))) = opening.await else { break };
        let _ = send.write_all(&asking(&streams, nth, &directory::Ask::Watch(query()))).await;
        open.push((send, recv));
    }
    Box::new((peer, streams, registered, open))
}

fn asking_wires(streams: &RawStreams, nth: usize, ask: &wire::Ask) -> Vec<u8> {
    let mut bytes = streams.head(id(nth));
    bytes.push(Purpose::Wire as u8);
    put_message(&mut bytes, ask);
    bytes
}

async fn wires_made(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let options = Options { ring_chunks: limits::WIRE_RING_CHUNKS, ring_bytes: limits::WIRE_RING_BYTES, ..Options::default() };
    let open =
        calls(&streams, 1_200, |nth| asking_wires(&streams, nth, &wire::Ask::Create { name: format!("wire{nth}"), options }))
            .await;
    Box::new((peer, streams, open))
}

async fn subscriptions(at: At) -> Held {
    let (peer, streams) = at.session().await;
    let name = || "full".to_owned();
    let open =
        calls(&streams, 700, |nth| asking_wires(&streams, nth, &wire::Ask::Subscribe { name: name(), from: wire::From::Oldest }))
            .await;
    Box::new((peer, streams, open))
}

#[test]
fn one_hostile_peer_pins_little_before_it_has_a_session() {
    each_of(LINKS, Loopback::Exempt);
}

#[test]
fn one_hostile_peer_makes_no_more_handshakes_than_it_may() {
    each_of(HANDSHAKES, Loopback::Rated);
}

#[test]
fn one_hostile_peer_pins_little_with_streams_and_calls() {
    each_of(STREAMS_AND_CALLS, Loopback::Rated);
}

#[test]
fn one_hostile_peer_pins_no_more_than_its_shares_with_bytes() {
    each_of(BYTES, Loopback::Rated);
}

#[test]
fn one_hostile_peer_pins_no_more_than_its_shares_with_services_and_wires() {
    each_of(NAMES, Loopback::Rated);
}

fn each_of(deeds: Deeds, loopback: Loopback) {
    // Whoever is honest has a thread of its own, and does not wait for the hostile one's.
    let hostile = Builder::new_multi_thread().worker_threads(1).enable_all().on_thread_start(stand_back).build().unwrap();
    let honest = Builder::new_current_thread().enable_all().build().unwrap();
    let only = std::env::var("VOLT_DEED").ok();
    let mut wrong = Vec::new();
    for (name, deed) in deeds.iter().filter(|(name, ..)| only.as_deref().is_none_or(|only| name.contains(only))) {
        let began = Instant::now();
        let done = honest.block_on(do_it(*deed, loopback, &hostile));
        println!("{name}: {done}; {:.1} s", began.elapsed().as_secs_f64());
        wrong.extend(done.wrong().map(|what| format!("{name}: {what}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What one deed did.
struct Outcome {
    pinned: i64,
    resident: i64,
    most: usize,
    panics: u64,
    before: Vec<Duration>,
    meanwhile: Vec<Duration>,
}

async fn do_it(deed: Deed, loopback: Loopback, hostile: &Runtime) -> Outcome {
    let mut victim = Victim::start(loopback);
    let honest = closed().bind().await.unwrap();
    let session = soon(honest.connect(Ticket::new(victim.at.id).with_address(victim.at.address))).await.unwrap();
    let before = timed(&session, None).await;
    let idle = victim.at_rest().await;
    let (at, flood) = (victim.at.clone(), Arc::new(Flood::default()));
    let doing = hostile.spawn(flood.clone().go_on(at, deed));
    let meanwhile = timed(&session, Some(&flood)).await;
    let held = doing.await.unwrap();
    let after = victim.at_rest().await;
    drop(held);
    // Somebody honest is served as before.
    assert_eq!(soon(session.call::<_, String>("echo/one", "still")).await.unwrap(), "still");
    soon(honest.shutdown()).await;
    Outcome {
        pinned: after.held as i64 - idle.held as i64,
        resident: after.resident as i64 - idle.resident as i64,
        most: after.most,
        panics: after.panics,
        before,
        meanwhile,
    }
}

/// What the hostile peer does: its deed over and over, while somebody wants to know what that does to others.
#[derive(Default)]
struct Flood {
    enough: AtomicBool,
    done: AtomicBool,
}

impl Flood {
    async fn go_on(self: Arc<Self>, at: At, deed: Deed) -> Held {
        let _done = Done(&self.done);
        let mut held = deed(at.clone()).await;
        while !self.enough.load(Relaxed) {
            drop(held);
            held = deed(at.clone()).await;
        }
        held
    }
}

/// Done, or dead.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// How long calls take, one after the other: a few hundred, and all that are made while there is a flood.
async fn timed(session: &Session, flood: Option<&Flood>) -> Vec<Duration> {
    let mut times = Vec::new();
    loop {
        let enough = times.len() >= many(200, 20_000);
        if let Some(flood) = flood {
            flood.enough.fetch_or(enough, Relaxed);
        }
        if enough && flood.is_none_or(|flood| flood.done.load(Relaxed)) {
            return times;
        }
        let began = Instant::now();
        assert_eq!(soon(session.call::<_, String>("echo/one", "honest")).await.unwrap(), "honest");
        times.push(began.elapsed());
    }
}

/// Which of the processors that this process may use.
enum Processors {
    /// That of the node.
    First,
    /// Those of everybody else.
    Others,
}

/// Keeps this thread, and what it starts from now on, to some of the processors, if there are two at least.
fn keep_to(which: Processors) {
    static ALL: LazyLock<CpuSet> = LazyLock::new(|| sched_getaffinity(None).unwrap());
    let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| ALL.is_set(*cpu));
    let mut those = CpuSet::new();
    all.next().filter(|_| matches!(which, Processors::First)).into_iter().for_each(|first| those.set(first));
    all.filter(|_| matches!(which, Processors::Others)).for_each(|other| those.set(other));
    if ALL.count() > 1 {
        sched_setaffinity(None, &those).unwrap();
    }
}

/// Has this thread run where, and when, nobody else wants to. To be nice is not enough: a nice thread keeps the processor for most of a
/// millisecond once it has it, and who calls waits for that as much as for the node.
fn stand_back() {
    keep_to(Processors::Others);
    let idle = libc::sched_param { sched_priority: 0 };
    // SAFETY: what is pointed to lives on, and is only read.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &idle) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

impl Outcome {
    fn wrong(&self) -> impl Iterator<Item = String> {
        let pinned = (self.pinned > MOST_MIB << 20).then(|| format!("it pins {:.1} MiB", mib(self.pinned)));
        let handlers = (self.most > limits::CALLS_IN_FLIGHT).then(|| format!("{} handlers live", self.most));
        let panics = (self.panics > 0).then(|| format!("{} handlers panicked", self.panics));
        [pinned, handlers, panics].into_iter().flatten()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [before, meanwhile] = [&self.before, &self.meanwhile].map(|times| at(99, times).as_secs_f64() * 1e3);
        let [p50, p50_meanwhile] = [&self.before, &self.meanwhile].map(|times| at(50, times).as_secs_f64() * 1e3);
        let of = self.meanwhile.len();
        write!(f, "pins {:.1} MiB ({:.1} MiB resident), ", mib(self.pinned), mib(self.resident))?;
        write!(f, "{} handlers at most, p50 {p50:.2} ms before and {p50_meanwhile:.2} ms meanwhile, ", self.most)?;
        write!(f, "p99 {before:.2} and {meanwhile:.2} ms ({:.1}, of {of})", meanwhile / before)
    }
}

fn mib(bytes: i64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn at(percent: usize, times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[(times.len() * percent).div_ceil(100).clamp(1, times.len()) - 1]
}

/// What the node says of itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Report {
    /// Bytes that were allocated and not given back.
    held: usize,
    resident: u64,
    /// Handlers at once, at most.
    most: usize,
    panics: u64,
}

/// The node, as a process.
struct Victim {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    at: At,
}

const BE_THE_VICTIM: &str = "VOLT_BE_THE_VICTIM";

impl Victim {
    fn start(loopback: Loopback) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["the_victim", "--exact", "--nocapture"]).env(BE_THE_VICTIM, format!("{loopback:?}"));
        keep_to(Processors::First);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        keep_to(Processors::Others);
        let (stdin, stdout) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let key = Arc::new(RawPeer::key());
        let nowhere = At { id: NodeId::from_bytes([0; 32]), address: support::loopback(), key: key.clone() };
        let mut victim = Self { process, stdin, stdout, at: nowhere };
        let ticket: Ticket = victim.said("ticket ").parse().unwrap();
        victim.at = At { id: ticket.id, address: ticket.addresses[0], key };
        victim
    }

    /// What follows these words on the next line that begins with them.
    fn said(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the node has ended");
            // The test harness writes the name of the test before the first line.
            if let Some((_, rest)) = line.split_once(words) {
                return rest.trim().to_owned();
            }
        }
    }

    fn report(&mut self) -> Report {
        self.stdin.write_all(b"\n").unwrap();
        serde_json::from_str(&self.said("report ")).unwrap()
    }

    /// What it says when nothing changes any more.
    async fn at_rest(&mut self) -> Report {
        let mut still = 0;
        let mut last = self.report();
        let begun = Instant::now();
        // The window of who is stopped by it grows every 500 ms.
        while still < 4 && begun.elapsed() < support::SOON {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let now = self.report();
            still = if now.held.abs_diff(last.held) < 64 << 10 { still + 1 } else { 0 };
            last = now;
        }
        last
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// No test, but the process that is flooded: it reports on itself for each line it reads.
#[test]
fn the_victim() {
    let Some(rated) = std::env::var_os(BE_THE_VICTIM) else { return };
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (alive, _ends) = Alive::new();
        let node = open_to_all(&alive, rated == "Rated").await;
        println!("\nticket {}", node.ticket());
        let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || std::io::stdin().lock().lines().map_while(Result::ok).all(|_| asked.send(()).is_ok()));
        while asks.recv().await.is_some() {
            let report =
                Report { held: HELD.load(Relaxed), resident: resident_bytes(), most: alive.most(), panics: node.counts().panics };
            println!("report {}", serde_json::to_string(&report).unwrap());
        }
    });
}

/// A node that lets everyone do everything, and has a full wire.
async fn open_to_all(alive: &Alive, rated: bool) -> Node {
    let allow =
        |action: &Action| Rule::new(Effect::Permit, Subject::Anyone, *action, Pattern::everything(), Source::Config).unwrap();
    let rules = Action::ALL.iter().map(allow).collect();
    let mut config = Config { listen: vec![support::loopback()], rules, ..Config::default() };
    if rated {
        config.exempt.clear();
    }
    let node = Node::builder().config(config).service(echo()).service(flood(alive)).bind().await.unwrap();
    let full = node.wire("full").unwrap().publisher();
    for _ in 0..64 {
        full.publish(vec![7; 64 << 10]).await.unwrap();
    }
    node
}

fn flood(alive: &Alive) -> Service {
    let (stuck, deaf) = (alive.clone(), alive.clone());
    let (large, middling) = (vec![7; limits::BODY_BYTES], vec![7; limits::REPLAY_ANSWER_BYTES]);
    let (large, middling) = (Bytes::from(large), Bytes::from(middling));
    Service::new("flood")
        .unary("stuck", move |_cx, ()| {
            let life = stuck.begin();
            async move {
                let _life = life;
                std::future::pending::<Result<(), Status>>().await
            }
        })
        .client_stream("deaf", move |_cx, numbers: Receiver<u64>| {
            let life = deaf.begin();
            async move {
                let _kept = (life, numbers);
                std::future::pending::<Result<u64, Status>>().await
            }
        })
        .unary("large", move |_cx, _nothing: Bytes| ready(Ok(large.clone())))
        .unary("middling", move |_cx, _nothing: Bytes| ready(Ok(middling.clone())))
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What this process holds.
static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work; counting touches one number that needs no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
