//! Calls and bulk over real UDP on loopback, both ends in this process on one current-thread runtime: two nodes, and raw quinn with
//! the same shape of work beside them in the same group.

use std::future::Future;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use voltmesh::proto::body::ContentType;
use voltmesh::{Node, Receiver, Service, Session};

use crate::raw::Raw;

/// Anything that goes wrong ends the measurement.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What one write of a transfer hands over.
pub const CHUNK_BYTES: usize = 64 << 10;

/// One thing to do, the same for both.
#[derive(Clone)]
enum Work {
    /// Calls with this body there and back, so many at any moment.
    Calls { body: Bytes, in_flight: u64 },
    /// So many bytes on one stream, and back how many arrived.
    Bulk { bytes: usize },
}

/// One who does it.
pub trait Side: Clone + Send + Sync + 'static {
    /// Sends a body; says how many bytes came back.
    fn call(&self, body: Bytes) -> impl Future<Output = Result<usize, Failure>> + Send;

    /// Sends so many bytes on one stream; says how many arrived.
    fn transfer(&self, bytes: usize) -> impl Future<Output = Result<u64, Failure>> + Send;
}

/// One call after the other.
pub fn one_at_a_time(c: &mut Criterion) {
    let mut group = c.benchmark_group("unary, one at a time");
    group.throughput(Throughput::Elements(1));
    beside(&mut group, "64 B", &Work::Calls { body: Bytes::from_static(&[7; 64]), in_flight: 1 });
    group.finish();
}

/// 64 calls under way at any moment.
pub fn in_flight(c: &mut Criterion) {
    let mut group = c.benchmark_group("unary, 64 in flight");
    group.throughput(Throughput::Elements(1));
    for (name, size) in [("64 B", 64), ("1 KiB", 1 << 10), ("16 KiB", 16 << 10)] {
        beside(&mut group, name, &Work::Calls { body: Bytes::from(vec![7; size]), in_flight: 64 });
    }
    group.finish();
}

/// One stream.
pub fn bulk(c: &mut Criterion) {
    const BYTES: usize = 16 << 20;
    let mut group = c.benchmark_group("bulk, one stream");
    group.throughput(Throughput::Bytes(BYTES as u64));
    beside(&mut group, "16 MiB", &Work::Bulk { bytes: BYTES });
    group.finish();
}

/// Measures both at the same work.
fn beside(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, work: &Work) {
    measure(group, BenchmarkId::new("volt", name), work, Volt::start());
    measure(group, BenchmarkId::new("raw quinn", name), work, Raw::start());
}

fn measure<S: Side>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    work: &Work,
    start: impl Future<Output = Result<S, Failure>>,
) {
    let runtime: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let side = runtime.block_on(start).expect("both ends come up");
    group.bench_function(id, |b| {
        b.to_async(&runtime).iter_custom(|times| {
            let (side, work) = (side.clone(), work.clone());
            async move { run(side, work, times).await.expect("the work succeeds") }
        });
    });
}

/// Does the work so many times.
async fn run<S: Side>(side: S, work: Work, times: u64) -> Result<Duration, Failure> {
    let began = Instant::now();
    match work {
        Work::Calls { body, in_flight: 1 } => calls(side, body, times).await?,
        Work::Calls { body, in_flight } => {
            let mut tasks = JoinSet::new();
            for task in 0..in_flight {
                let share = times / in_flight + u64::from(task < times % in_flight);
                tasks.spawn(calls(side.clone(), body.clone(), share));
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
        }
        Work::Bulk { bytes } => {
            for _ in 0..times {
                let arrived = side.transfer(bytes).await?;
                assert_eq!(arrived, bytes as u64);
            }
        }
    }
    Ok(began.elapsed())
}

async fn calls<S: Side>(side: S, body: Bytes, times: u64) -> Result<(), Failure> {
    for _ in 0..times {
        assert_eq!(side.call(body.clone()).await?, body.len());
    }
    Ok(())
}

/// Two nodes and their session, which ends with them.
#[derive(Clone)]
struct Volt {
    session: Session,
    _nodes: (Node, Node),
}

impl Volt {
    async fn start() -> Result<Self, Failure> {
        let bench = Service::new("bench").unary("echo", |_cx, body: Bytes| async move { Ok(body) }).client_stream(
            "discard",
            |_cx, mut chunks: Receiver<Bytes>| async move {
                let mut bytes = 0u64;
                while let Some(chunk) = chunks.next().await? {
                    bytes += chunk.len() as u64;
                }
                Ok(bytes.to_be_bytes().to_vec())
            },
        );
        let node = || Node::builder().listen((Ipv4Addr::LOCALHOST, 0).into());
        let server = node().open(true).service(bench).bind().await?;
        let client = node().bind().await?;
        let session = client.connect(server.ticket()).await?;
        Ok(Self { session, _nodes: (server, client) })
    }
}

impl Side for Volt {
    async fn call(&self, body: Bytes) -> Result<usize, Failure> {
        let answer: Bytes = self.session.request("bench/echo").content_type(ContentType::Raw).unary(&body).await?;
        Ok(answer.len())
    }

    async fn transfer(&self, bytes: usize) -> Result<u64, Failure> {
        let chunk = Bytes::from(vec![7; CHUNK_BYTES]);
        let request = self.session.request("bench/discard").content_type(ContentType::Raw);
        let (mut send, arrived) = request.client_stream::<Bytes, Vec<u8>>().await?;
        for _ in 0..bytes / CHUNK_BYTES {
            send.send(&chunk).await?;
        }
        send.finish()?;
        let arrived = arrived.only().await?;
        Ok(u64::from_be_bytes(arrived.as_slice().try_into()?))
    }
}
