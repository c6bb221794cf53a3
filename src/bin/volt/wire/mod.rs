//! `wire`: feeds of bytes. Made and listed here; publishing and subscribing have files of their own.

mod cursor_file;
mod publish;
mod subscribe;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use voltmesh::local::Failure;
use voltmesh::local::wires::{WireCreated, WireRequest, create, list};
use voltmesh::wire::{Options, Slow, WireInfo};

use crate::context::Context;
use crate::door::Door;
use crate::output::{self, escape_line};
use crate::services::query;
use crate::signals::Signals;

/// Publish and subscribe: named feeds of bytes, hosted by a node
///
/// WIRE is a wire of this node, WIRE@PEER one of a peer. Using a wire of a peer needs its leave: the actions `publish`, `subscribe`
/// and `create` of its policy.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  tcpdump -w - | volt wire pub capture@bob\n  volt wire sub log --lines --from start\n  volt wire create log --persist\n  volt wire ls @bob"
)]
pub enum Wire {
    Create(Create),
    Pub(publish::Publish),
    Sub(subscribe::Subscribe),
    Ls(List),
}

impl Wire {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Wire::Create(command) => command.run(context).await,
            Wire::Pub(command) => command.run(context).await,
            Wire::Sub(command) => command.run(context).await,
            Wire::Ls(command) => command.run(context).await,
        }
    }
}

/// Make a wire; one that is there already and was made the same way is fine
///
/// Publishing to a wire that is not there makes one too, in memory; make it yourself to have it on disk, or to say what it keeps.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt wire create log --persist\n  volt wire create video@bob --slow disconnect --keep-bytes 64MiB\n  volt wire create log --persist --retain-bytes 10GiB --retain-for 30days"
)]
pub struct Create {
    /// Its name, of letters, digits, `.`, `_`, `-` and `/`; with @PEER, at that peer
    wire: String,
    /// Keep chunks on disk: acknowledged only when they are there
    #[arg(long)]
    persist: bool,
    /// What becomes of subscribers that are too slow
    #[arg(long, value_name = "HOW", default_value = "drop-oldest")]
    slow: How,
    /// Most chunks kept in memory [default: 4096]
    #[arg(long, value_name = "N")]
    keep: Option<u32>,
    /// Most bytes kept in memory, 64KiB to 64MiB [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    keep_bytes: Option<u64>,
    /// Most bytes kept on disk [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "persist")]
    retain_bytes: Option<u64>,
    /// How long chunks are kept on disk [default: 7days]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "persist")]
    retain_for: Option<Duration>,
}

/// What becomes of slow subscribers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum How {
    /// Publishers wait for them, at most 30 s at a time; then they are disconnected
    Block,
    /// They lose the oldest chunks, and are told which
    DropOldest,
    /// They are disconnected
    Disconnect,
}

impl Create {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let request = WireRequest { wire: self.wire.clone(), options: self.options()? };
        let door = Door::for_wire(context, &self.wire).await?;
        let mut signals = Signals::new()?;
        let made = match &door {
            Door::Node(client) => client.post::<WireCreated>("/v1/wires", &request).await,
            Door::Visitor(node, guests) => create(node, guests, &request).await,
        };
        signals.or_exit(door.close()).await;
        let made = made?;
        match context.json {
            true => output::json(&made),
            false => output::line(&format!("{} {}", made.wire, if made.existed { "was there" } else { "is made" })),
        }
        Ok(())
    }

    fn options(&self) -> Result<Options, Failure> {
        let default = Options::default();
        let ring_bytes =
            self.keep_bytes.map(u32::try_from).transpose().map_err(|_| Failure::usage("at most 64MiB are kept in memory"))?;
        let retain_ms = self.retain_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let options = Options {
            persist: self.persist,
            slow: match self.slow {
                How::Block => Slow::Block,
                How::DropOldest => Slow::DropOldest,
                How::Disconnect => Slow::Disconnect,
            },
            ring_chunks: self.keep.unwrap_or(default.ring_chunks),
            ring_bytes: ring_bytes.unwrap_or(default.ring_bytes),
            retain_bytes: self.retain_bytes.unwrap_or(default.retain_bytes),
            retain_ms: retain_ms.unwrap_or(default.retain_ms),
        };
        options.check().map_err(Failure::usage)?;
        Ok(options)
    }
}

/// A number of bytes: `65536`, `64KiB`, `1.5GiB` are read.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(format!("{unit:?} is no unit: use KiB, MiB, GiB or TiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size: write 64KiB or 65536"))?;
    Ok((number * factor as f64) as u64)
}

/// List wires, of this node or of a peer
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt wire ls\n  volt wire ls 'sensors/*'\n  volt wire ls @bob --json | jq -r .name")]
pub struct List {
    /// Only those whose names match; with @PEER those of that peer that this node may use
    #[arg(value_name = "[PATTERN][@PEER]", default_value = "")]
    wires: String,
}

impl List {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let door = Door::for_wire(context, &self.wires).await?;
        let mut signals = Signals::new()?;
        let wires = match &door {
            Door::Node(client) => client.get::<Vec<WireInfo>>(&format!("/v1/wires?wires={}", query(&self.wires))).await,
            Door::Visitor(node, guests) => list(node, guests, &self.wires).await,
        };
        signals.or_exit(door.close()).await;
        let wires = wires?;
        if context.json {
            wires.iter().for_each(output::json);
            return Ok(());
        }
        let row = |wire: &WireInfo| {
            let state = match &wire.broken {
                Some(why) => format!("broken: {}", escape_line(why)),
                None => format!("{} publishing, {} subscribed", wire.publishers, wire.subscribers),
            };
            let slow = match wire.options.slow {
                Slow::DropOldest => "drop-oldest",
                Slow::Disconnect => "disconnect",
                Slow::Block => "block",
            };
            let kept = if wire.first == wire.next { "-".to_owned() } else { format!("{}-{}", wire.first, wire.next - 1) };
            let place = if wire.options.persist { "disk" } else { "memory" };
            vec![escape_line(&wire.name), place.to_owned(), kept, wire.bytes.to_string(), slow.to_owned(), state]
        };
        output::table(&["WIRE", "KEPT", "CHUNKS", "BYTES", "SLOW", "STATE"], wires.iter().map(row).collect());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("65536"), Ok(65_536));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1.5g"), Ok(3 << 29));
        for bad in ["", "x", "1x", "-1", "1 MiB x"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
