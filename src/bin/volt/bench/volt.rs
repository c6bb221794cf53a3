//! The node's side of the measurement: what a program that uses this crate gets without asking for anything. Public API only.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use voltmesh::id::Ticket;
use voltmesh::node::Builder as NodeBuilder;
use voltmesh::node::config::{Config, Limits};
use voltmesh::proto::body::ContentType;
use voltmesh::{Node, Receiver, Service, Session};

use super::process::{self, ServerProcess};
use super::{BenchError, Figures, Metric, Side, Workload, measure, report};

/// The name of this side.
pub const NAME: &str = "volt";
/// The name of the side whose sessions are not resumed.
pub const WITHOUT_RESUMPTION: &str = "volt-without-resumption";

/// What one message of a transfer carries.
const CHUNK_BYTES: usize = 64 << 10;
/// Dials under way while idle sessions are made.
const IDLE_DIALS: usize = 16;
/// A session that is not up by then is a failure.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Whatever goes wrong here.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Nodes, as a side.
pub struct Volt {
    /// The binary that serves.
    pub program: PathBuf,
    /// Whether sessions can be resumed, as they can unless told otherwise; if not, nothing is kept for it at either end.
    pub resume: bool,
}

impl Side for Volt {
    fn name(&self) -> &'static str {
        if self.resume { NAME } else { WITHOUT_RESUMPTION }
    }

    fn run(&self, workload: &Workload, time: Duration) -> Result<Figures, BenchError> {
        let mut server = ServerProcess::start(&self.program, self.name())?;
        let failed = |why: Failure| BenchError::Failed { side: self.name(), work: report::title(workload), why: why.to_string() };
        let at = server.at().parse().map_err(|error| failed(Box::new(error)))?;
        block_on(work(workload, time, &at, &mut server, self.resume)).map_err(failed)
    }
}

/// The server: says on `say` where it is, answers what is asked on `asked`, and serves until that ends.
pub fn serve(resume: bool, say: impl Write + Send + 'static, asked: impl Read + Send + 'static) -> Result<(), BenchError> {
    serve_with(say, asked, node(resume))
}

/// The server, which is this node.
pub(super) fn serve_with(
    mut say: impl Write + Send + 'static,
    asked: impl Read + Send + 'static,
    node: impl Future<Output = Result<Node, Failure>>,
) -> Result<(), BenchError> {
    let failed = |why: Failure| BenchError::Failed { side: NAME, work: "serving".to_owned(), why: why.to_string() };
    let (end, ended) = oneshot::channel::<()>();
    let serving = async {
        let node = node.await?;
        writeln!(say, "{}", process::ready(&node.ticket().to_string()))?;
        say.flush()?;
        std::thread::spawn(move || {
            process::answer(asked, say);
            drop(end);
        });
        let _ = ended.await;
        Ok(())
    };
    block_on(serving).map_err(failed)
}

pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// A node that anyone may call.
pub(super) async fn node(resume: bool) -> Result<Node, Failure> {
    let builder = if resume {
        Node::builder()
    } else {
        let limits = Limits { resume_window: Duration::ZERO, ..Limits::default() };
        Node::builder().config(Config { limits, ..Config::default() })
    };
    Ok(for_anyone(builder).bind().await?)
}

/// The same, half-made.
pub(super) fn for_anyone(builder: NodeBuilder) -> NodeBuilder {
    let bench = Service::new("bench").unary("echo", |_cx, body: Bytes| async move { Ok(body.to_vec()) }).client_stream(
        "discard",
        |_cx, mut chunks: Receiver<Bytes>| async move {
            let mut bytes = 0u64;
            while let Some(chunk) = chunks.next().await? {
                bytes += chunk.len() as u64;
            }
            Ok(bytes.to_be_bytes().to_vec())
        },
    );
    builder.listen((Ipv4Addr::LOCALHOST, 0).into()).open(true).service(bench)
}

async fn work(
    workload: &Workload,
    time: Duration,
    at: &Ticket,
    server: &mut ServerProcess,
    resume: bool,
) -> Result<Figures, Failure> {
    let node = async || self::node(resume).await;
    Ok(match *workload {
        Workload::Calls { body, in_flight } => calls(node().await?.connect(at).await?, body, in_flight, time).await?,
        Workload::Bulk { bytes } => vec![(Metric::MbPerS, transfer(node().await?.connect(at).await?, bytes).await?)],
        Workload::CallCost { body, in_flight } => {
            vec![(Metric::CpuUsPerCall, call_cost(node().await?.connect(at).await?, body, in_flight, time, server).await?)]
        }
        Workload::BulkCost { bytes } => {
            vec![(Metric::CpuUsPerMb, bulk_cost(node().await?.connect(at).await?, bytes, server).await?)]
        }
        Workload::Dials { concurrency } => vec![(Metric::SessionsPerS, dials(at, concurrency, time).await?)],
        Workload::Idle { sessions } => vec![(Metric::KibPerSession, idle(at, sessions, server).await?)],
        Workload::Feed { .. } | Workload::FeedOne { .. } | Workload::Durable { .. } => {
            return Err("wires have a server of their own".into());
        }
        Workload::RelayedCalls { .. } | Workload::RelayedBulk { .. } => return Err("circuits have servers of their own".into()),
    })
}

pub(super) async fn calls(session: Session, body: usize, in_flight: usize, time: Duration) -> Result<Figures, Failure> {
    let body = Bytes::from(vec![0x5a; body]);
    let one = move || call(session.clone(), body.clone());
    match in_flight {
        1 => measure::latencies(time, one).await,
        many => Ok(vec![(Metric::CallsPerS, measure::rate(many, time, one).await?)]),
    }
}

async fn call(session: Session, body: Bytes) -> Result<(), Failure> {
    let sent = body.len();
    let reply: Bytes = session.request("bench/echo").content_type(ContentType::Raw).unary(&body).await?;
    if reply.len() == sent { Ok(()) } else { Err(format!("sent {sent} bytes, {} came back", reply.len()).into()) }
}

pub(super) async fn transfer(session: Session, bytes: u64) -> Result<f64, Failure> {
    send_all(&session, bytes / 8).await?; // warm-up: the congestion window opens
    let start = Instant::now();
    send_all(&session, bytes).await?;
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}

async fn send_all(session: &Session, bytes: u64) -> Result<(), Failure> {
    let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
    let request = session.request("bench/discard").content_type(ContentType::Raw);
    let (mut send, seen) = request.client_stream::<Bytes, Vec<u8>>().await?;
    let mut left = bytes;
    while left > 0 {
        let size = left.min(CHUNK_BYTES as u64);
        send.send(&chunk.slice(..size as usize)).await?;
        left -= size;
    }
    send.finish()?;
    if seen.only().await? == bytes.to_be_bytes() { Ok(()) } else { Err("the server did not see every byte".into()) }
}

/// Processor time of both processes per call, in microseconds.
async fn call_cost(
    session: Session,
    body: usize,
    in_flight: usize,
    time: Duration,
    server: &mut ServerProcess,
) -> Result<f64, Failure> {
    let body = Bytes::from(vec![0x5a; body]);
    let one = move || call(session.clone(), body.clone());
    measure::count(in_flight, time / 5, one.clone()).await?;
    let before = process::own_cpu() + server.cpu()?;
    let calls = measure::count(in_flight, time, one).await?;
    let used = process::own_cpu() + server.cpu()? - before;
    Ok(used.as_secs_f64() * 1e6 / calls as f64)
}

/// Processor time of both processes per million bytes, in microseconds.
async fn bulk_cost(session: Session, bytes: u64, server: &mut ServerProcess) -> Result<f64, Failure> {
    send_all(&session, bytes / 8).await?;
    let before = process::own_cpu() + server.cpu()?;
    send_all(&session, bytes).await?;
    let used = process::own_cpu() + server.cpu()? - before;
    Ok(used.as_secs_f64() * 1e6 / (bytes as f64 / 1e6))
}

/// Two nodes have one session, so each of those under way at once has a node of its own.
async fn dials(at: &Ticket, concurrency: usize, time: Duration) -> Result<f64, Failure> {
    let mut nodes = Vec::new();
    for _ in 0..concurrency {
        nodes.push(node(true).await?);
    }
    let (nodes, at) = (std::sync::Arc::new(std::sync::Mutex::new(nodes)), at.clone());
    let one = move || {
        let (nodes, at) = (nodes.clone(), at.clone());
        async move {
            let node = nodes.lock().expect("nothing panics while it is held").pop().ok_or("more dials than nodes")?;
            node.connect_to(at.id, &at.addresses, PATIENCE).await?.close();
            nodes.lock().expect("nothing panics while it is held").push(node);
            Ok(())
        }
    };
    measure::rate(concurrency, time, one).await
}

/// The first session pays for what all share, so it is not counted. A call on each makes sure that it is up at both ends.
async fn idle(at: &Ticket, sessions: usize, server: &ServerProcess) -> Result<f64, Failure> {
    let mut held = vec![used(at.clone()).await?];
    let before = server.resident_kib()?;
    let mut dialling = JoinSet::new();
    while held.len() <= sessions {
        while dialling.len() < IDLE_DIALS.min(sessions + 1 - held.len()) {
            dialling.spawn(used(at.clone()));
        }
        if let Some(dialled) = dialling.join_next().await {
            held.push(dialled??);
        }
    }
    Ok(server.resident_kib()?.saturating_sub(before) as f64 / sessions as f64)
}

async fn used(at: Ticket) -> Result<Node, Failure> {
    let node = node(true).await?;
    let session = node.connect_to(at.id, &at.addresses, PATIENCE).await?;
    call(session, Bytes::from_static(b"idle")).await?;
    Ok(node)
}
