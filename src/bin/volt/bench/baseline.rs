//! The yardstick: the same work on raw quinn. Current-thread runtimes in two processes, no busy-polling, one bidirectional
//! stream per call, the socket buffers and the cryptography of a node. No framing, no policy, no session: what they cost is
//! the distance that `volt bench` shows. It uses nothing of this crate, so that it cannot be slowed or flattered by it.
//!
//! What goes over relays is the same work by the same client and the same server; between them is a chain of [`relay`]s.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream, TokioRuntime, TransportConfig};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::process::{self, ServerProcess};
use super::{BenchError, Figures, Metric, Side, Workload, measure, report};

pub mod relay;
mod tls;

/// The name of this side.
pub const NAME: &str = "baseline";

/// Of UDP sockets, as a node's.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Larger than any body measured.
const BODY_BYTES_MAX: usize = 1 << 20;
/// What one write of a transfer hands over.
const CHUNK_BYTES: usize = 64 << 10;
/// Dials under way while idle sessions are made.
const IDLE_DIALS: usize = 16;

/// Whatever goes wrong here.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Raw quinn, as a side.
pub struct Baseline {
    /// The binary that serves.
    pub program: PathBuf,
}

impl Side for Baseline {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, workload: &Workload, time: Duration) -> Result<Figures, BenchError> {
        let server = ServerProcess::start(&self.program, self.name())?;
        let relays = ServerProcess::start_chain(&self.program, relay::NAME, workload.relays(), server.at())?;
        let failed = |why: Failure| BenchError::Failed { side: NAME, work: report::title(workload), why: why.to_string() };
        let at = relays.first().unwrap_or(&server).at().parse().map_err(|error| failed(Box::new(error)))?;
        block_on(work(workload, time, at, &server)).map_err(failed)
    }
}

/// The server: says on `ready` where it is, and serves until `until` ends.
pub fn serve(ready: impl Write, until: impl Read + Send + 'static) -> Result<(), BenchError> {
    serve_with(ready, until, async |endpoint| accept(endpoint).await)
}

/// A server that accepts in its own way.
pub(super) fn serve_with(
    mut ready: impl Write,
    mut until: impl Read + Send + 'static,
    accept: impl AsyncFnOnce(&Endpoint),
) -> Result<(), BenchError> {
    let failed = |why: Failure| BenchError::Failed { side: NAME, work: "serving".to_owned(), why: why.to_string() };
    let (end, ended) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut until, &mut std::io::sink());
        drop(end);
    });
    let serving = async {
        let endpoint = endpoint()?;
        writeln!(ready, "{}", process::ready(&endpoint.local_addr()?.to_string()))?;
        ready.flush()?;
        tokio::select! {
            biased;
            _ = ended => endpoint.close(0u32.into(), b""),
            () = accept(&endpoint) => {}
        }
        Ok(())
    };
    block_on(serving).map_err(failed)
}

pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Listens and dials. Both ends present a certificate.
pub(super) fn endpoint() -> Result<Endpoint, Failure> {
    let identity = tls::Identity::generate()?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(1_024u32.into())
        .initial_rtt(Duration::from_millis(100))
        .max_idle_timeout(Some(IdleTimeout::try_from(Duration::from_secs(90))?));
    let transport = Arc::new(transport);
    let mut server = quinn::ServerConfig::with_crypto(identity.server()?);
    server.transport_config(transport.clone());
    let mut client = quinn::ClientConfig::new(identity.client()?);
    client.transport_config(transport);
    let mut endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket()?, Arc::new(TokioRuntime))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

fn socket() -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let options = socket2::SockRef::from(&socket);
    // A system may grant less; then a node gets less, too.
    let _ = options.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = options.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(socket)
}

async fn accept(endpoint: &Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            // A client that ends its work closes: nothing to report.
            if let Ok(connection) = incoming.await {
                let _ = attend(connection).await;
            }
        });
    }
}

/// Serves one connection. A stream in both directions is a call, answered with its own body; a stream in one is a transfer.
async fn attend(connection: Connection) -> Result<(), Failure> {
    welcome(&connection).await?;
    loop {
        tokio::select! {
            biased;
            call = connection.accept_bi() => {
                let (send, receive) = call?;
                tokio::spawn(answer(send, receive));
            }
            transfer = connection.accept_uni() => {
                tokio::spawn(discard(connection.clone(), transfer?));
            }
        }
    }
}

/// Tells a client that its certificate was judged.
pub(super) async fn welcome(connection: &Connection) -> Result<(), Failure> {
    let mut welcome = connection.open_uni().await?;
    welcome.write_all(b"w").await?;
    Ok(welcome.finish()?)
}

async fn answer(mut send: SendStream, mut receive: RecvStream) -> Result<(), Failure> {
    let body = receive.read_to_end(BODY_BYTES_MAX).await?;
    send.write_chunk(body.into()).await?;
    Ok(send.finish()?)
}

async fn discard(connection: Connection, mut receive: RecvStream) -> Result<(), Failure> {
    let mut bytes = 0u64;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        bytes += chunk.bytes.len() as u64;
    }
    let mut end = connection.open_uni().await?;
    end.write_all(&bytes.to_be_bytes()).await?;
    Ok(end.finish()?)
}

async fn work(workload: &Workload, time: Duration, at: SocketAddr, server: &ServerProcess) -> Result<Figures, Failure> {
    let endpoint = endpoint()?;
    let figures = match *workload {
        Workload::Calls { body, in_flight } | Workload::RelayedCalls { body, in_flight, .. } => {
            calls(dial(&endpoint, at).await?, body, in_flight, time).await?
        }
        Workload::Bulk { bytes } | Workload::RelayedBulk { bytes, .. } => {
            vec![(Metric::MbPerS, transfer(dial(&endpoint, at).await?, bytes).await?)]
        }
        Workload::Dials { concurrency } => vec![(Metric::SessionsPerS, dials(&endpoint, at, concurrency, time).await?)],
        Workload::Idle { sessions } => vec![(Metric::KibPerSession, idle(&endpoint, at, sessions, server).await?)],
        Workload::CallCost { .. } | Workload::BulkCost { .. } => return Err("raw quinn has no sessions to resume".into()),
        Workload::Feed { .. } | Workload::FeedOne { .. } | Workload::Durable { .. } => {
            return Err("feeds have a server of their own".into());
        }
    };
    endpoint.close(0u32.into(), b"");
    Ok(figures)
}

/// A connection on which both ends have proved themselves. TLS 1.3 lets a client go on before the server has judged its
/// certificate; the welcome shows that it has.
pub(super) async fn dial(endpoint: &Endpoint, at: SocketAddr) -> Result<Connection, Failure> {
    let connection = endpoint.connect(at, tls::SERVER_NAME)?.await?;
    connection.accept_uni().await?.read_to_end(1).await?;
    Ok(connection)
}

async fn calls(connection: Connection, body: usize, in_flight: usize, time: Duration) -> Result<Figures, Failure> {
    let body = Bytes::from(vec![0x5a; body]);
    let one = move || call(connection.clone(), body.clone());
    match in_flight {
        1 => measure::latencies(time, one).await,
        many => Ok(vec![(Metric::CallsPerS, measure::rate(many, time, one).await?)]),
    }
}

async fn call(connection: Connection, body: Bytes) -> Result<(), Failure> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let sent = body.len();
    send.write_chunk(body).await?;
    send.finish()?;
    let reply = receive.read_to_end(BODY_BYTES_MAX).await?;
    if reply.len() == sent { Ok(()) } else { Err(format!("sent {sent} bytes, {} came back", reply.len()).into()) }
}

async fn transfer(connection: Connection, bytes: u64) -> Result<f64, Failure> {
    send_all(&connection, bytes / 8).await?; // warm-up: the congestion window opens
    let start = Instant::now();
    send_all(&connection, bytes).await?;
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}

async fn send_all(connection: &Connection, bytes: u64) -> Result<(), Failure> {
    let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
    let mut send = connection.open_uni().await?;
    let mut left = bytes;
    while left > 0 {
        let size = left.min(CHUNK_BYTES as u64);
        send.write_chunk(chunk.slice(..size as usize)).await?;
        left -= size;
    }
    send.finish()?;
    let seen = connection.accept_uni().await?.read_to_end(8).await?;
    if seen == bytes.to_be_bytes() { Ok(()) } else { Err("the server did not see every byte".into()) }
}

async fn dials(endpoint: &Endpoint, at: SocketAddr, concurrency: usize, time: Duration) -> Result<f64, Failure> {
    let endpoint = endpoint.clone();
    let one = move || {
        let endpoint = endpoint.clone();
        async move {
            dial(&endpoint, at).await?.close(0u32.into(), b"");
            Ok(())
        }
    };
    measure::rate(concurrency, time, one).await
}

/// The first session pays for what all share, so it is not counted. A call on each makes sure that its handshake is over at
/// both ends.
async fn idle(endpoint: &Endpoint, at: SocketAddr, sessions: usize, server: &ServerProcess) -> Result<f64, Failure> {
    let mut held = vec![used(endpoint.clone(), at).await?];
    let before = server.resident_kib()?;
    let mut dialling = JoinSet::new();
    while held.len() <= sessions {
        while dialling.len() < IDLE_DIALS.min(sessions + 1 - held.len()) {
            dialling.spawn(used(endpoint.clone(), at));
        }
        if let Some(dialled) = dialling.join_next().await {
            held.push(dialled??);
        }
    }
    Ok(server.resident_kib()?.saturating_sub(before) as f64 / sessions as f64)
}

async fn used(endpoint: Endpoint, at: SocketAddr) -> Result<Connection, Failure> {
    let connection = dial(&endpoint, at).await?;
    call(connection.clone(), Bytes::from_static(b"idle")).await?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server in this process, and its end: dropping the writer.
    fn server() -> (SocketAddr, std::io::PipeWriter, std::thread::JoinHandle<Result<(), BenchError>>) {
        let (at, end, serving) = process::in_here(serve);
        (at.parse().unwrap(), end, serving)
    }

    #[test]
    fn the_server_answers_calls_counts_transfers_and_ends_with_its_input() {
        let (at, end, serving) = server();
        block_on(async {
            let endpoint = endpoint()?;
            let connection = dial(&endpoint, at).await?;
            call(connection.clone(), Bytes::from(vec![7; 16 << 10])).await?;
            send_all(&connection, 3 * CHUNK_BYTES as u64 + 1).await
        })
        .unwrap();
        drop(end);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn calls_and_dials_give_figures() {
        let (at, end, serving) = server();
        let time = Duration::from_millis(20);
        let (one, many, dialled) = block_on(async {
            let endpoint = endpoint()?;
            let connection = dial(&endpoint, at).await?;
            let one = calls(connection.clone(), 64, 1, time).await?;
            let many = calls(connection, 64, 8, time).await?;
            Ok((one, many, dials(&endpoint, at, 2, Duration::from_millis(200)).await?))
        })
        .unwrap();
        assert_eq!(one.iter().map(|(metric, _)| *metric).collect::<Vec<_>>(), [Metric::P50Us, Metric::P99Us]);
        assert!(many[0].1 > 0.0 && dialled > 0.0);
        drop(end);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_without_a_certificate_is_not_welcomed() {
        let (at, end, serving) = server();
        let refused: Result<(), Failure> = block_on(async {
            let mut endpoint = endpoint()?;
            endpoint.set_default_client_config(quinn::ClientConfig::new(tls::anonymous_client()?));
            dial(&endpoint, at).await.map(drop)
        });
        assert!(refused.is_err());
        drop(end);
        serving.join().unwrap().unwrap();
    }
}
