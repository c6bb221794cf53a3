//! `wire pub`: publishes what comes on stdin, and ends when all of it is stored.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use voltmesh::local::wires::{ChunkHead, PublishHead, PublishLine, meant, publish};
use voltmesh::local::{Cause, Failure, put_piece};
use voltmesh::proto::limits::CHUNK_BYTES;
use voltmesh::proto::status::Code;
use voltmesh::wire::Chunk;

use crate::client::Client;
use crate::context::Context;
use crate::door::Door;
use crate::output;
use crate::signals::Signals;

/// Publish what comes on stdin
///
/// Each read of stdin is a chunk, of at most 64 KiB; with --lines each line is one. Ends when stdin does and everything is stored (on
/// disk, if the wire is kept there). Ctrl-C ends the input. A wire that is not there is made, in memory.
#[derive(Debug, Args)]
#[command(
    name = "pub",
    after_help = "Examples:\n  tcpdump -w - | volt wire pub capture@bob\n  tail -f app.log | volt wire pub log --lines\n  echo 21.5 | volt wire pub sensors/kitchen --lines"
)]
pub struct Publish {
    /// WIRE of this node, or WIRE@PEER
    wire: String,
    /// Each line is a chunk, without its end
    #[arg(long)]
    lines: bool,
}

/// Largest chunk of input that is not cut into lines, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// Chunks on their way from stdin.
const CHUNKS: usize = 64;

/// What was published.
#[derive(Debug, Default, Serialize)]
struct Published {
    chunks: u64,
    /// The number of the last one.
    seq: Option<u64>,
}

impl Publish {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let door = Door::for_wire(context, &self.wire).await?;
        let (read_in, from_stdin) = mpsc::channel(CHUNKS);
        let lines = self.lines;
        std::thread::spawn(move || read(lines, &read_in));
        let (send, mut chunks) = mpsc::channel(CHUNKS);
        let (end, ended) = oneshot::channel();
        let (told, to_show) = mpsc::channel(16);
        let (done, published) = {
            let bring = async {
                let done = match &door {
                    Door::Node(client) => through_node(client, &self.wire, &mut chunks, &told).await,
                    Door::Visitor(node, guests) => match meant(node, guests, &self.wire).await {
                        Ok(meant) => publish(&meant.wire, &mut chunks, &told).await,
                        Err(failure) => Err(failure),
                    },
                };
                drop((told, chunks));
                done
            };
            let all = async { tokio::join!(bring, show(context, to_show), pass_on(from_stdin, send, ended)) };
            tokio::pin!(all);
            let mut end = Some(end);
            loop {
                tokio::select! {
                    biased;
                    (done, published, ()) = &mut all => break (done, published),
                    // The first one ends the input: what was read is still stored. The second one ends it all.
                    code = signals.next() => match end.take() {
                        Some(end) => drop(end.send(())),
                        None => std::process::exit(code.into()),
                    },
                }
            }
        };
        signals.or_exit(door.close()).await;
        done?;
        if context.json {
            output::json(&published);
        }
        Ok(())
    }
}

/// Hands on what is read, until the input ends or is ended.
async fn pass_on(
    mut chunks: mpsc::Receiver<Result<Chunk, Failure>>,
    to: mpsc::Sender<Result<Chunk, Failure>>,
    ended: oneshot::Receiver<()>,
) {
    let passing = async {
        while let Some(chunk) = chunks.recv().await {
            if to.send(chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        Ok(()) = ended => {}
        () = passing => {}
    }
}

/// Reads chunks until the end, a mistake, or nobody wants more. On a thread of its own, which may never end.
fn read(lines: bool, send: &mpsc::Sender<Result<Chunk, Failure>>) {
    let mut stdin = io::stdin().lock();
    loop {
        let mut chunk = Vec::new();
        let read = match lines {
            true => stdin.by_ref().take(CHUNK_BYTES as u64 + 2).read_until(b'\n', &mut chunk),
            false => {
                chunk.resize(READ_BYTES, 0);
                stdin.read(&mut chunk).inspect(|read| chunk.truncate(*read))
            }
        };
        let next = match read {
            Ok(0) => return,
            Ok(_) => {
                if lines && chunk.last() == Some(&b'\n') {
                    chunk.pop();
                }
                match chunk.len() {
                    length if length > CHUNK_BYTES => Err(Failure::usage(format!("a line of more than {CHUNK_BYTES} bytes"))),
                    _ => Ok(Chunk::new(chunk)),
                }
            }
            Err(error) => Err(Failure::local(format!("cannot read stdin: {error}"))),
        };
        let broken = next.is_err();
        if send.blocking_send(next).is_err() || broken {
            return;
        }
    }
}

async fn through_node(
    client: &Client,
    wire: &str,
    chunks: &mut mpsc::Receiver<Result<Chunk, Failure>>,
    told: &mpsc::Sender<PublishLine>,
) -> Result<(), Failure> {
    let (send, pieces) = mpsc::channel::<Bytes>(16);
    let forwarding = async move {
        let mut first = Vec::new();
        put_piece(&mut first, &PublishHead { wire: wire.to_owned() }, &[]);
        let _ = send.send(first.into()).await;
        while let Some(chunk) = chunks.recv().await {
            let mut batch = Vec::new();
            put_piece(&mut batch, &ChunkHead::default(), &chunk?.body);
            while batch.len() < READ_BYTES
                && let Ok(chunk) = chunks.try_recv()
            {
                put_piece(&mut batch, &ChunkHead::default(), &chunk?.body);
            }
            if send.send(batch.into()).await.is_err() {
                break;
            }
        }
        Ok::<_, Failure>(())
    };
    let gone =
        || Failure::new(Cause::Unreached, Code::Unavailable, "the node that published here is gone: chunks may be stored or not");
    let listening = async {
        let mut answers = client.stream("/v1/wires/publish", pieces).await?;
        loop {
            match answers.parse::<PublishLine>().await {
                Ok(Some(PublishLine::Error(failure))) => return Err(failure),
                Ok(Some(PublishLine::Done(_))) => return Ok(()),
                Ok(Some(stored)) => drop(told.send(stored).await),
                Ok(None) | Err(_) => return Err(gone()),
            }
        }
    };
    tokio::pin!(listening);
    tokio::select! {
        biased;
        done = &mut listening => return done,
        forwarded = forwarding => forwarded?,
    }
    listening.await
}

/// Counts what is stored; on a terminal it shows how far it is.
async fn show(context: &Context, mut told: mpsc::Receiver<PublishLine>) -> Published {
    let show = !context.json && io::stderr().is_terminal() && !io::stdin().is_terminal();
    let (began, mut shown) = (Instant::now(), None::<Instant>);
    let mut published = Published::default();
    while let Some(line) = told.recv().await {
        let PublishLine::Stored { count, seq } = line else { continue };
        published.chunks += count;
        published.seq = seq.or(published.seq);
        if show && shown.is_none_or(|at| at.elapsed() >= Duration::from_millis(200)) {
            shown = Some(Instant::now());
            progress(&published, began);
        }
    }
    if shown.is_some() {
        progress(&published, began);
        let _ = writeln!(io::stderr());
    }
    published
}

fn progress(published: &Published, began: Instant) {
    let rate = published.chunks as f64 / began.elapsed().as_secs_f64().max(0.001);
    let _ = write!(io::stderr(), "\r{} chunks stored, {rate:.0} a second ", published.chunks);
}
