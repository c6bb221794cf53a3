//! Wires, measured as a program that uses this crate has them: one node hosts, one publishes, the others subscribe. Public API only.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use voltmesh::id::Ticket;
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::wire::{Delivery, From, Options, Publisher, Slow, Subscription, Wire};
use voltmesh::{Node, Session};

use super::process::ServerProcess;
use super::scratch::Scratch;
use super::volt::{self, Failure};
use super::{BenchError, Figures, Metric, Side, Workload, measure, report};

/// The name by which its server is started.
pub const NAME: &str = "volt-wires";

/// Nodes with wires, as a side.
pub struct Wires {
    /// The binary that serves.
    pub program: PathBuf,
}

impl Side for Wires {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, workload: &Workload, time: Duration) -> Result<Figures, BenchError> {
        let server = ServerProcess::start(&self.program, NAME)?;
        let failed = |why: Failure| BenchError::Failed { side: NAME, work: report::title(workload), why: why.to_string() };
        let at = server.at().parse().map_err(|error| failed(Box::new(error)))?;
        volt::block_on(work(workload, time, &at)).map_err(failed)
    }
}

/// The server, as [`volt::serve`].
pub fn serve(say: impl Write + Send + 'static, asked: impl Read + Send + 'static) -> Result<(), BenchError> {
    let scratch = Scratch::new()?;
    volt::serve_with(say, asked, async {
        let builder = Node::builder().home(scratch.path()).listen((Ipv4Addr::LOCALHOST, 0).into()).open(true);
        let actions = [Action::Create, Action::Publish, Action::Subscribe];
        let permit = |action| Rule::new(Effect::Permit, Subject::Anyone, action, Pattern::everything(), Source::Config);
        let builder = actions.into_iter().try_fold(builder, |builder, action| Ok::<_, Failure>(builder.rule(permit(action)?)))?;
        Ok(builder.bind().await?)
    })
}

async fn work(workload: &Workload, time: Duration, at: &Ticket) -> Result<Figures, Failure> {
    match *workload {
        Workload::Feed { body, subscribers } => feed(at, body, subscribers, time).await,
        Workload::FeedOne { body, subscribers } => feed_one(at, body, subscribers, time).await,
        Workload::Durable { body, in_flight } => durable(at, body, in_flight, time).await,
        _ => Err("this is no work with wires".into()),
    }
}

/// The wire, over a session of a node of its own.
async fn wire(at: &Ticket) -> Result<(Node, Wire), Failure> {
    let node = volt::node(true).await?;
    let session: Session = node.connect(at).await?;
    let wire = session.wire("bench")?;
    Ok((node, wire))
}

/// A wire on which nothing is lost, with its subscribers.
async fn subscribed(at: &Ticket, subscribers: usize) -> Result<(Node, Wire, Vec<(Node, Subscription)>), Failure> {
    let (node, host) = wire(at).await?;
    host.create(Options { slow: Slow::Block, ..Options::default() }).await?;
    let mut all = Vec::new();
    for _ in 0..subscribers {
        let (node, wire) = wire(at).await?;
        all.push((node, wire.subscribe(From::Live).await?));
    }
    Ok((node, host, all))
}

async fn feed(at: &Ticket, body: usize, subscribers: usize, time: Duration) -> Result<Figures, Failure> {
    let (_node, wire, subscribed) = subscribed(at, subscribers).await?;
    let delivered = Arc::<AtomicU64>::default();
    for (node, mut subscription) in subscribed {
        let delivered = delivered.clone();
        tokio::spawn(async move {
            let _node = node;
            while let Ok(Delivery::Chunk { .. }) = subscription.next().await {
                delivered.fetch_add(1, Relaxed);
            }
        });
    }
    let (publisher, stop, chunk) = (wire.publisher(), Arc::<AtomicBool>::default(), Bytes::from(vec![0x5a; body]));
    let stopped = stop.clone();
    let publishing = tokio::spawn(async move {
        while !stopped.load(Relaxed) {
            publisher.push(chunk.clone()).await?;
        }
        publisher.flush().await
    });
    let rate = measure::growth(time, || delivered.load(Relaxed)).await;
    stop.store(true, Relaxed);
    publishing.await??;
    Ok(report::deliveries(rate, body))
}

async fn feed_one(at: &Ticket, body: usize, subscribers: usize, time: Duration) -> Result<Figures, Failure> {
    let (_node, wire, subscribed) = subscribed(at, subscribers).await?;
    let came = Arc::new(Semaphore::new(0));
    for (node, mut subscription) in subscribed {
        let came = came.clone();
        tokio::spawn(async move {
            let _node = node;
            while let Ok(Delivery::Chunk { .. }) = subscription.next().await {
                came.add_permits(1);
            }
        });
    }
    let (publisher, chunk, all) = (wire.publisher(), Bytes::from(vec![0x5a; body]), u32::try_from(subscribers)?);
    measure::latencies(time, || async {
        publisher.push(chunk.clone()).await?;
        came.acquire_many(all).await?.forget();
        Ok(())
    })
    .await
}

async fn durable(at: &Ticket, body: usize, in_flight: usize, time: Duration) -> Result<Figures, Failure> {
    let (_node, wire) = wire(at).await?;
    wire.create(Options { persist: true, ..Options::default() }).await?;
    let (publisher, chunk) = (wire.publisher(), Bytes::from(vec![0x5a; body]));
    if in_flight == 1 {
        let publish = || async {
            publisher.publish(chunk.clone()).await?;
            Ok(())
        };
        return measure::latencies(time, publish).await;
    }
    Ok(vec![(Metric::AcksPerS, acks(publisher, chunk, in_flight, time).await?)])
}

/// Keeps so many in flight, and counts those that are acknowledged.
async fn acks(publisher: Publisher, chunk: Bytes, in_flight: usize, time: Duration) -> Result<f64, Failure> {
    let acknowledged = Arc::<AtomicU64>::default();
    let (counted, (hand_over, mut handed_over)) = (acknowledged.clone(), tokio::sync::mpsc::channel(in_flight));
    let publishing = tokio::spawn(async move {
        while let Ok(pending) = publisher.send(chunk.clone()).await {
            if hand_over.send(pending).await.is_err() {
                return;
            }
        }
    });
    let counting = tokio::spawn(async move {
        while let Some(pending) = handed_over.recv().await {
            if pending.await.is_err() {
                return;
            }
            counted.fetch_add(1, Relaxed);
        }
    });
    let rate = measure::growth(time, || acknowledged.load(Relaxed)).await;
    publishing.abort();
    if counting.is_finished() { Err("a chunk was not stored".into()) } else { Ok(rate) }
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
            let work = async { work(&workload, Duration::from_millis(50), &at).await };
            let figures = volt::block_on(work).unwrap();
            assert!(!figures.is_empty() && figures.iter().all(|(_, figure)| *figure > 0.0), "{workload:?}: {figures:?}");
            drop(end);
            serving.join().unwrap().unwrap();
        }
    }
}
