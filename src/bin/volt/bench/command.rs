//! `bench`: the command line of the measurement.

use std::time::Duration;

use clap::{Args, ValueEnum};
use voltmesh::local::Failure;

use super::{Group, Options};
use crate::context::Context;

/// Measure what calls, bytes and sessions cost here, beside raw quinn doing the same work in the same run
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt bench\n  volt bench unary --rounds 9\n  volt bench stream --json\n  volt bench wire\n  volt bench relay\n  \
volt bench resume\n\nEach side runs each workload in turn, in two processes of its own; with `relay` one or two more carry what those two \
say. A ratio is volt's figure to raw quinn's, the median of all rounds: for times and memory less is better, for rates more. `resume` \
compares volt with itself: as it is, and with resume_window = 0."
)]
pub struct Bench {
    /// What to measure; everything beside raw quinn if nothing is named
    #[arg(value_name = "WHAT")]
    only: Option<Only>,
    /// How often each side runs each workload [default: 5; 9 for resume]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: Option<u16>,
    /// How long one measurement takes
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = humantime::parse_duration)]
    time: Duration,
}

/// What can be named.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Only {
    /// Calls: one request, one reply
    Unary,
    /// Bytes on one stream
    Stream,
    /// Chunks on wires, to 1, 8 and 64 subscribers, and on disk
    Wire,
    /// Establishing sessions, and holding them
    Sessions,
    /// Calls and bytes over one relay, and over two in a row
    Relay,
    /// What it costs that sessions can be resumed: processor time per call and per MB
    Resume,
}

impl Bench {
    /// Runs it. Blocks, which nothing here minds.
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let only = self.only.map(|only| match only {
            Only::Unary => Group::Unary,
            Only::Stream => Group::Stream,
            Only::Wire => Group::Wire,
            Only::Sessions => Group::Sessions,
            Only::Relay => Group::Relay,
            Only::Resume => Group::Resume,
        });
        let rounds = self.rounds.unwrap_or(if only == Some(Group::Resume) { 9 } else { 5 });
        let options = Options { only, rounds: rounds.into(), time: self.time, json: context.json, server: None };
        super::run(&options, &mut std::io::stdout(), &mut std::io::stderr()).map_err(Failure::local)
    }
}

/// The server's process of a measurement; started by `bench` itself.
#[derive(Debug, Args)]
pub struct BenchServer {
    side: String,
    /// Where its neighbour in a chain of servers is
    neighbour: Option<String>,
}

impl BenchServer {
    pub fn run(&self) -> Result<(), Failure> {
        let (side, neighbour) = (self.side.clone(), self.neighbour.clone());
        // It makes a runtime of its own, which must not be within another.
        let served = std::thread::spawn(move || super::serve(&side, neighbour.as_deref())).join();
        served.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(Failure::local)
    }
}
