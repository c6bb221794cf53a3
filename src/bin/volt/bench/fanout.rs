//! The yardstick for wires: the same feed on raw quinn, written for nothing else. A publisher's stream is copied to one stream for each
//! subscriber, by queues that push back; what is to be durable is appended to a file, synced, and then acknowledged, all that has
//! come together. Chunks have a length of two bytes before them. There are no names, no numbers, no rules, no late joiners.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};

use super::baseline::{self, Failure};
use super::process::ServerProcess;
use super::scratch::Scratch;
use super::{BenchError, Figures, Metric, Side, Workload, measure, report};

/// The name by which its server is started.
pub const NAME: &str = "baseline-feeds";

/// What a stream is for: its first byte.
const SUBSCRIBE: u8 = b's';
const PUBLISH: u8 = b'p';
const STORE: u8 = b'd';
/// About what is written at once.
const BATCH_BYTES: usize = 32 << 10;
/// Batches that wait for one subscriber.
const QUEUE: usize = 32;
/// Pieces that are read at once.
const PIECES: usize = 256;

/// Raw quinn, as a side.
pub struct Fanout {
    /// The binary that serves.
    pub program: PathBuf,
}

impl Side for Fanout {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, workload: &Workload, time: Duration) -> Result<Figures, BenchError> {
        let server = ServerProcess::start(&self.program, NAME)?;
        let failed = |why: Failure| BenchError::Failed { side: NAME, work: report::title(workload), why: why.to_string() };
        let at = server.at().parse().map_err(|error| failed(Box::new(error)))?;
        baseline::block_on(work(workload, time, at)).map_err(failed)
    }
}

/// The server, as [`baseline::serve`].
pub fn serve(ready: impl Write, until: impl Read + Send + 'static) -> Result<(), BenchError> {
    let scratch = Scratch::new()?;
    let file = Arc::new(File::create(scratch.path().join("feed"))?);
    let host = Host { subscribers: Arc::default(), file };
    baseline::serve_with(ready, until, async move |endpoint| {
        while let Some(incoming) = endpoint.accept().await {
            let host = host.clone();
            tokio::spawn(async move {
                // Whoever ends its work closes: nothing to report.
                if let Ok(connection) = incoming.await {
                    let _ = host.attend(connection).await;
                }
            });
        }
    })
}

#[derive(Clone)]
struct Host {
    subscribers: Arc<Mutex<Vec<mpsc::Sender<Bytes>>>>,
    file: Arc<File>,
}

impl Host {
    async fn attend(self, connection: Connection) -> Result<(), Failure> {
        baseline::welcome(&connection).await?;
        let (mut send, mut recv) = connection.accept_bi().await?;
        let mut purpose = [0];
        recv.read_exact(&mut purpose).await?;
        match purpose[0] {
            SUBSCRIBE => {
                let (queue, mut batches) = mpsc::channel::<Bytes>(QUEUE);
                self.subscribers.lock().expect("nothing panics while it is held").push(queue);
                send.write_all(&[SUBSCRIBE]).await?;
                while let Some(batch) = batches.recv().await {
                    send.write_chunk(batch).await?;
                }
            }
            PUBLISH => {
                let subscribers = self.subscribers.lock().expect("nothing panics while it is held").clone();
                while let Some(batch) = batch(&mut recv).await? {
                    for subscriber in &subscribers {
                        subscriber.send(batch.clone()).await?;
                    }
                }
            }
            _ => self.store(send, recv).await?,
        }
        Ok(())
    }

    /// What comes while the disk is busy is the next batch.
    async fn store(self, mut send: SendStream, mut recv: RecvStream) -> Result<(), Failure> {
        let mut cut = BytesMut::new();
        while let Some(batch) = batch(&mut recv).await? {
            cut.extend_from_slice(&batch);
            let mut count = 0u32;
            while next(&mut cut).is_some() {
                count += 1;
            }
            let file = self.file.clone();
            tokio::task::spawn_blocking(move || (&*file).write_all(&batch).and_then(|()| file.sync_data())).await??;
            send.write_all(&count.to_be_bytes()).await?;
        }
        Ok(())
    }
}

/// Everything that is here, as one piece.
async fn batch(recv: &mut RecvStream) -> Result<Option<Bytes>, Failure> {
    let mut pieces: Vec<Bytes> = vec![Bytes::new(); PIECES];
    Ok(recv.read_chunks(&mut pieces).await?.map(|count| pieces[..count].concat().into()))
}

/// The next chunk, if it is here whole.
fn next(from: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes(*from.first_chunk()?));
    if from.len() < 2 + length {
        return None;
    }
    from.advance(2);
    Some(from.split_to(length).freeze())
}

fn put(out: &mut Vec<u8>, chunk: &[u8]) {
    let length = u16::try_from(chunk.len()).expect("no chunk here is longer");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(chunk);
}

async fn work(workload: &Workload, time: Duration, at: SocketAddr) -> Result<Figures, Failure> {
    match *workload {
        Workload::Feed { body, subscribers } => feed(at, body, subscribers, time).await,
        Workload::FeedOne { body, subscribers } => feed_one(at, body, subscribers, time).await,
        Workload::Durable { body, in_flight } => durable(at, body, in_flight, time).await,
        _ => Err("this is no work with feeds".into()),
    }
}

/// A stream of this purpose, on an endpoint of its own.
async fn open(at: SocketAddr, purpose: u8) -> Result<(Endpoint, SendStream, RecvStream), Failure> {
    let endpoint = baseline::endpoint()?;
    let (mut send, recv) = baseline::dial(&endpoint, at).await?.open_bi().await?;
    send.write_all(&[purpose]).await?;
    Ok((endpoint, send, recv))
}

async fn subscribe(at: SocketAddr) -> Result<(Endpoint, SendStream, RecvStream), Failure> {
    let mut opened = open(at, SUBSCRIBE).await?;
    opened.2.read_exact(&mut [0]).await?;
    Ok(opened)
}

async fn feed(at: SocketAddr, body: usize, subscribers: usize, time: Duration) -> Result<Figures, Failure> {
    let delivered = Arc::<AtomicU64>::default();
    for _ in 0..subscribers {
        let ((endpoint, send, mut recv), delivered) = (subscribe(at).await?, delivered.clone());
        tokio::spawn(async move {
            let (_open, mut came) = ((endpoint, send), BytesMut::new());
            while let Ok(Some(piece)) = recv.read_chunk(usize::MAX, true).await {
                came.extend_from_slice(&piece.bytes);
                while next(&mut came).is_some() {
                    delivered.fetch_add(1, Relaxed);
                }
            }
        });
    }
    let (_open, mut send, _recv) = open(at, PUBLISH).await?;
    let stop = Arc::<AtomicBool>::default();
    let (stopped, chunk) = (stop.clone(), vec![0x5a; body]);
    let publishing = tokio::spawn(async move {
        while !stopped.load(Relaxed) {
            let mut batch = Vec::with_capacity(BATCH_BYTES + body + 2);
            while batch.len() < BATCH_BYTES {
                put(&mut batch, &chunk);
            }
            send.write_chunk(batch.into()).await?;
        }
        Ok::<_, Failure>(())
    });
    let rate = measure::growth(time, || delivered.load(Relaxed)).await;
    stop.store(true, Relaxed);
    publishing.await??;
    Ok(report::deliveries(rate, body))
}

async fn feed_one(at: SocketAddr, body: usize, subscribers: usize, time: Duration) -> Result<Figures, Failure> {
    let came = Arc::new(Semaphore::new(0));
    for _ in 0..subscribers {
        let ((endpoint, send, mut recv), came) = (subscribe(at).await?, came.clone());
        tokio::spawn(async move {
            let (_open, mut buf) = ((endpoint, send), BytesMut::new());
            while let Ok(Some(piece)) = recv.read_chunk(usize::MAX, true).await {
                buf.extend_from_slice(&piece.bytes);
                while next(&mut buf).is_some() {
                    came.add_permits(1);
                }
            }
        });
    }
    let (_open, send, _recv) = open(at, PUBLISH).await?;
    let mut one = Vec::new();
    put(&mut one, &vec![0x5a; body]);
    let (one, send) = (Bytes::from(one), Arc::new(tokio::sync::Mutex::new(send)));
    let all = u32::try_from(subscribers)?;
    measure::latencies(time, || async {
        send.lock().await.write_chunk(one.clone()).await?;
        came.acquire_many(all).await?.forget();
        Ok(())
    })
    .await
}

async fn durable(at: SocketAddr, body: usize, in_flight: usize, time: Duration) -> Result<Figures, Failure> {
    let (_open, send, mut recv) = open(at, STORE).await?;
    let mut one = Vec::new();
    put(&mut one, &vec![0x5a; body]);
    if in_flight == 1 {
        let streams = Arc::new(tokio::sync::Mutex::new((send, recv)));
        let one = Bytes::from(one);
        return measure::latencies(time, || async {
            let (send, recv) = &mut *streams.lock().await;
            send.write_chunk(one.clone()).await?;
            recv.read_exact(&mut [0; 4]).await?;
            Ok(())
        })
        .await;
    }
    let (room, acknowledged) = (Arc::new(Semaphore::new(in_flight)), Arc::<AtomicU64>::default());
    let (freed, counted) = (room.clone(), acknowledged.clone());
    tokio::spawn(async move {
        let mut count = [0; 4];
        while recv.read_exact(&mut count).await.is_ok() {
            let count = u32::from_be_bytes(count);
            counted.fetch_add(count.into(), Relaxed);
            freed.add_permits(count as usize);
        }
    });
    let publishing = tokio::spawn(publish(room, one, send));
    let rate = measure::growth(time, || acknowledged.load(Relaxed)).await;
    publishing.abort();
    Ok(vec![(Metric::AcksPerS, rate)])
}

/// Publishes as long as there is room.
async fn publish(room: Arc<Semaphore>, one: Vec<u8>, mut send: SendStream) -> Result<Infallible, Failure> {
    loop {
        room.acquire().await?.forget();
        let mut batch = one.clone();
        while let Ok(permit) = room.try_acquire() {
            permit.forget();
            batch.extend_from_slice(&one);
        }
        send.write_chunk(batch.into()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::process;
    use super::*;

    #[test]
    fn each_workload_gives_figures() {
        let workloads = [
            Workload::Feed { body: 256, subscribers: 3 },
            Workload::FeedOne { body: 256, subscribers: 3 },
            Workload::Durable { body: 256, in_flight: 1 },
            Workload::Durable { body: 256, in_flight: 16 },
        ];
        for workload in workloads {
            let (at, end, serving) = process::in_here(serve);
            let at = at.parse().unwrap();
            let work = async { work(&workload, Duration::from_millis(50), at).await };
            let figures = baseline::block_on(work).unwrap();
            assert!(!figures.is_empty() && figures.iter().all(|(_, figure)| *figure > 0.0), "{workload:?}: {figures:?}");
            drop(end);
            serving.join().unwrap().unwrap();
        }
    }
}
