//! `wire sub`: writes what is published to stdout.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use data_encoding::BASE64;
use serde_json::json;
use voltmesh::local::wires::{FeedHead, SubscribeHead, feed, meant, parse_from};
use voltmesh::local::{Cause, Failure, Pieces};
use voltmesh::proto::status::Code;
use voltmesh::wire::{Cursor, From};

use super::cursor_file::CursorFile;
use crate::context::Context;
use crate::door::Door;
use crate::output;
use crate::signals::Signals;

/// Write what is published to stdout
///
/// Chunks follow one another as they are; with --lines each is a line. What is lost (the wire did not keep it) is told on stderr. With a
/// file for --from, it goes on where the last run with that file stopped; the first run begins with the oldest that is kept.
#[derive(Debug, Args)]
#[command(
    name = "sub",
    after_help = "Examples:\n  volt wire sub capture@bob | wireshark -k -i -\n  volt wire sub log --lines --from start\n  volt wire sub log@bob --from ./log.cursor >> log\n  volt wire sub sensors/kitchen --json | jq -r .chunk"
)]
pub struct Subscribe {
    /// WIRE of this node, or WIRE@PEER
    wire: String,
    /// `live`, `start` (the oldest kept), a chunk's number, a cursor, or a file that keeps one
    #[arg(long, value_name = "SEQ|start|CURSOR|FILE", default_value = "live")]
    from: String,
    /// Write each chunk as a line
    #[arg(long)]
    lines: bool,
    /// End after so many chunks
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
}

impl Subscribe {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let (from, file) = self.from()?;
        let door = Door::for_wire(context, &self.wire).await?;
        let mut printer = Printer { json: context.json, lines: self.lines, file, left: self.count, out: io::stdout() };
        let reading = async {
            match &door {
                Door::Node(client) => {
                    let head = SubscribeHead { wire: self.wire.clone(), from: text(from) };
                    let mut pieces = Pieces::new(client.pieces("/v1/wires/subscribe", &head).await?);
                    while let Some((head, body)) = pieces.next::<FeedHead>().await? {
                        if !printer.print(head, body)? {
                            return Ok(());
                        }
                    }
                    Err(Failure::new(Cause::Unreached, Code::Unavailable, "the node that subscribed here is gone"))
                }
                Door::Visitor(node, guests) => {
                    let meant = meant(node, guests, &self.wire).await?;
                    let mut subscription = meant.wire.subscribe(from).await?;
                    loop {
                        let (head, body) = feed(&mut subscription).await?;
                        if !printer.print(head, body)? {
                            return Ok(());
                        }
                    }
                }
            }
        };
        let done = tokio::select! {
            biased;
            _ = signals.next() => Ok(()),
            done = reading => done,
        };
        let kept = printer.end();
        signals.or_exit(door.close()).await;
        done.and(kept)
    }

    fn from(&self) -> Result<(From, Option<Kept>), Failure> {
        if let Ok(from) = parse_from(&self.from) {
            return Ok((from, None));
        }
        let digits = self.from.bytes().all(|byte| byte.is_ascii_digit());
        if self.from.is_empty() || digits || self.from.contains(':') {
            return parse_from(&self.from).map(|from| (from, None));
        }
        let (file, cursor) = CursorFile::open(PathBuf::from(&self.from))?;
        Ok((cursor.map_or(From::Oldest, From::After), Some((file, None))))
    }
}

/// The text that [`parse_from`] reads.
fn text(from: From) -> String {
    match from {
        From::Live => "live".to_owned(),
        From::Oldest => "start".to_owned(),
        From::Seq(seq) => seq.to_string(),
        From::After(cursor) => cursor.to_string(),
    }
}

/// Where the cursor is kept, and the one that is due.
type Kept = (CursorFile, Option<Cursor>);

/// Writes what comes.
struct Printer {
    json: bool,
    lines: bool,
    /// Where the cursor is kept, and the one that is due.
    file: Option<Kept>,
    left: Option<u64>,
    out: io::Stdout,
}

impl Printer {
    /// Says whether to go on: somebody reads, and wants more.
    fn print(&mut self, head: FeedHead, body: Bytes) -> Result<bool, Failure> {
        let (written, at) = match head {
            FeedHead::Error(failure) => return Err(failure),
            FeedHead::Gap { from, to, cursor } => {
                let last = to.map_or("an unknown number".to_owned(), |to| to.to_string());
                if !self.json {
                    let _ = writeln!(io::stderr(), "chunks {from} to {last} are lost: the wire did not keep them");
                    (Ok(()), cursor)
                } else {
                    (output::try_bytes(&voltmesh::local::line(&json!({ "gap": [from, to], "cursor": cursor }))), cursor)
                }
            }
            FeedHead::Chunk { seq, cursor, metadata } => {
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(1);
                }
                (self.chunk(seq, cursor, metadata, &body), cursor)
            }
        };
        if written.is_err() {
            return Ok(false);
        }
        if let Some((file, due)) = &mut self.file {
            file.reached(at)?;
            *due = Some(at);
        }
        Ok(self.left != Some(0))
    }

    fn chunk(&mut self, seq: u64, cursor: Cursor, metadata: Vec<(String, String)>, body: &[u8]) -> io::Result<()> {
        if !self.json {
            let mut out = self.out.lock();
            if self.out.is_terminal() && self.lines {
                out.write_all(output::escape(&String::from_utf8_lossy(body)).as_bytes())?;
            } else {
                out.write_all(body)?;
            }
            if self.lines {
                out.write_all(b"\n")?;
            }
            return out.flush();
        }
        let mut line = json!({ "seq": seq, "cursor": cursor });
        match std::str::from_utf8(body) {
            Ok(text) => line["chunk"] = text.into(),
            Err(_) => line["chunk_base64"] = BASE64.encode(body).into(),
        }
        if !metadata.is_empty() {
            line["metadata"] = json!(metadata);
        }
        output::try_bytes(&voltmesh::local::line(&line))
    }

    /// What was written out is remembered.
    fn end(&mut self) -> Result<(), Failure> {
        match &mut self.file {
            Some((file, Some(due))) => file.keep(*due),
            _ => Ok(()),
        }
    }
}
