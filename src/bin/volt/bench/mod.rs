//! `volt bench`: what a call, a byte and a session cost here, beside raw quinn doing the same work in the same run.
//! It measures and reports; it never judges, and it tunes neither side.
//!
//! One group compares volt with itself: what it costs that sessions can be resumed.
//!
//! Each [`Workload`] is run by each [`Side`] in turn, round after round (volt, baseline, volt, baseline …), so that whatever else
//! the machine does falls on both. Every run has a fresh server process and a fresh client thread.

mod baseline;
mod command;
mod fanout;
mod measure;
mod process;
mod relayed;
mod report;
mod scratch;
mod volt;
mod wires;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

pub use command::{Bench, BenchServer};
use report::Rounds;

/// The hidden subcommand by which `volt bench` starts its own binary as the server; see [`serve`].
pub const SERVER_COMMAND: &str = "bench-server";

/// What to measure and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only this group; all that have raw quinn beside them if none is named.
    pub only: Option<Group>,
    /// How often each side runs each workload. The median of the rounds is reported. At least 1; odd numbers make a real median.
    pub rounds: usize,
    /// How long one measurement takes, after a fifth of that to warm up. Transfers and idle sessions have a size instead.
    pub time: Duration,
    /// JSON Lines instead of a table.
    pub json: bool,
    /// The binary that serves, which must know [`SERVER_COMMAND`]. The running one if none is named.
    pub server: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { only: None, rounds: 5, time: Duration::from_millis(500), json: false, server: None }
    }
}

/// What `volt bench GROUP` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Calls: one request, one reply.
    Unary,
    /// Bytes on one stream.
    Stream,
    /// Chunks on wires.
    Wire,
    /// Establishing sessions and holding them.
    Sessions,
    /// Calls and bytes over one relay, and over two in a row.
    Relay,
    /// What resumption costs: volt as it is beside volt with `resume_window = 0`.
    Resume,
}

impl Group {
    /// As written on the command line and in `"bench"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Stream => "stream",
            Self::Wire => "wire",
            Self::Sessions => "sessions",
            Self::Relay => "relay",
            Self::Resume => "resume",
        }
    }
}

/// One thing to do, the same for both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Calls with request and reply of `body` bytes, `in_flight` at a time over one session. One at a time gives latencies,
    /// more give a rate.
    Calls {
        /// Bytes of the request, and of the reply.
        body: usize,
        /// Calls under way at any moment.
        in_flight: usize,
    },
    /// The client sends `bytes` on one stream; the server drops them and says when it has seen the end.
    Bulk {
        /// How many in all.
        bytes: u64,
    },
    /// New sessions, each from nothing to "both ends have proved themselves", then closed.
    Dials {
        /// Dials under way at any moment.
        concurrency: usize,
    },
    /// What the server's memory grows by for each session that does nothing.
    Idle {
        /// Sessions held.
        sessions: usize,
    },
    /// One publishes as fast as it can, and all subscribers get everything.
    Feed {
        /// Bytes of a chunk.
        body: usize,
        /// Each with a session of its own.
        subscribers: usize,
    },
    /// The same, one chunk at a time: until the last subscriber has it.
    FeedOne {
        /// Bytes of a chunk.
        body: usize,
        /// Each with a session of its own.
        subscribers: usize,
    },
    /// Chunks are published until they are acknowledged, which they are when they are on disk.
    Durable {
        /// Bytes of a chunk.
        body: usize,
        /// Chunks under way at any moment.
        in_flight: usize,
    },
    /// As [`Workload::Calls`], with relays between client and server, each a process of its own.
    RelayedCalls {
        /// In a row.
        relays: usize,
        /// Bytes of the request, and of the reply.
        body: usize,
        /// Calls under way at any moment.
        in_flight: usize,
    },
    /// As [`Workload::Bulk`], with relays between client and server, each a process of its own.
    RelayedBulk {
        /// In a row.
        relays: usize,
        /// How many in all.
        bytes: u64,
    },
    /// As [`Workload::Calls`], for the processor time a call takes at both ends.
    CallCost {
        /// Bytes of the request, and of the reply.
        body: usize,
        /// Calls under way at any moment.
        in_flight: usize,
    },
    /// As [`Workload::Bulk`], for the processor time a byte takes at both ends.
    BulkCost {
        /// How many in all.
        bytes: u64,
    },
}

impl Workload {
    /// Those of one group, or all that raw quinn can do too.
    fn list(only: Option<Group>) -> Vec<Self> {
        const MIB: u64 = 1 << 20;
        let all = [
            Self::Calls { body: 64, in_flight: 1 },
            Self::Calls { body: 64, in_flight: 64 },
            Self::Calls { body: 1 << 10, in_flight: 64 },
            Self::Calls { body: 16 << 10, in_flight: 64 },
            Self::Bulk { bytes: 256 * MIB },
            Self::Dials { concurrency: 16 },
            Self::Idle { sessions: 1_000 },
            Self::CallCost { body: 64, in_flight: 64 },
            Self::CallCost { body: 1 << 10, in_flight: 64 },
            Self::BulkCost { bytes: 256 * MIB },
        ];
        let feeds =
            [1, 8, 64].into_iter().flat_map(|subscribers| [16, 256, 16 << 10].map(|body| Self::Feed { body, subscribers }));
        let wires = [
            Self::FeedOne { body: 256, subscribers: 8 },
            Self::Durable { body: 256, in_flight: 1 },
            Self::Durable { body: 256, in_flight: 1_024 },
        ];
        let relayed = [1, 2].into_iter().flat_map(|relays| {
            [
                Self::RelayedCalls { relays, body: 64, in_flight: 1 },
                Self::RelayedCalls { relays, body: 64, in_flight: 64 },
                Self::RelayedBulk { relays, bytes: 256 * MIB },
            ]
        });
        let asked = |group| only.map_or(group != Group::Resume, |only| only == group);
        all.into_iter().chain(feeds).chain(wires).chain(relayed).filter(|workload| asked(workload.group())).collect()
    }

    fn group(&self) -> Group {
        match self {
            Self::Calls { .. } => Group::Unary,
            Self::Bulk { .. } => Group::Stream,
            Self::Dials { .. } | Self::Idle { .. } => Group::Sessions,
            Self::Feed { .. } | Self::FeedOne { .. } | Self::Durable { .. } => Group::Wire,
            Self::RelayedCalls { .. } | Self::RelayedBulk { .. } => Group::Relay,
            Self::CallCost { .. } | Self::BulkCost { .. } => Group::Resume,
        }
    }

    /// How many are between client and server.
    fn relays(&self) -> usize {
        match *self {
            Self::RelayedCalls { relays, .. } | Self::RelayedBulk { relays, .. } => relays,
            _ => 0,
        }
    }

    /// What makes it differ from others of its group, as (name, number).
    fn params(&self) -> Vec<(&'static str, u64)> {
        match *self {
            Self::Calls { body, in_flight } | Self::CallCost { body, in_flight } => {
                vec![("body", body as u64), ("in_flight", in_flight as u64)]
            }
            Self::Bulk { bytes } | Self::BulkCost { bytes } => vec![("bytes", bytes)],
            Self::RelayedCalls { relays, body, in_flight } => {
                vec![("relays", relays as u64), ("body", body as u64), ("in_flight", in_flight as u64)]
            }
            Self::RelayedBulk { relays, bytes } => vec![("relays", relays as u64), ("bytes", bytes)],
            Self::Dials { concurrency } => vec![("concurrency", concurrency as u64)],
            Self::Idle { sessions } => vec![("idle", sessions as u64)],
            Self::Feed { body, subscribers } => vec![("body", body as u64), ("subscribers", subscribers as u64)],
            Self::FeedOne { body, subscribers } => {
                vec![("body", body as u64), ("subscribers", subscribers as u64), ("in_flight", 1)]
            }
            Self::Durable { body, in_flight } => {
                vec![("body", body as u64), ("in_flight", in_flight as u64), ("persist", 1)]
            }
        }
    }
}

/// What can be measured. The unit is last in the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Half of the calls took at most this long. Lower is better, as for all but the rates.
    P50Us,
    /// 99 of 100 calls took at most this long.
    P99Us,
    /// Calls answered per second.
    CallsPerS,
    /// Millions of bytes per second.
    MbPerS,
    /// Chunks that came to subscribers per second, all of them together.
    DeliveriesPerS,
    /// Chunks acknowledged per second.
    AcksPerS,
    /// Sessions established per second.
    SessionsPerS,
    /// Resident memory of the server per idle session.
    KibPerSession,
    /// Processor time of both processes per call.
    CpuUsPerCall,
    /// Processor time of both processes per million bytes.
    CpuUsPerMb,
}

impl Metric {
    /// As written in `"metric"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::P50Us => "p50_us",
            Self::P99Us => "p99_us",
            Self::CallsPerS => "calls_per_s",
            Self::MbPerS => "mb_per_s",
            Self::DeliveriesPerS => "deliveries_per_s",
            Self::AcksPerS => "acks_per_s",
            Self::SessionsPerS => "sessions_per_s",
            Self::KibPerSession => "kib_per_session",
            Self::CpuUsPerCall => "cpu_us_per_call",
            Self::CpuUsPerMb => "cpu_us_per_mb",
        }
    }

    /// Whether more of it is better.
    pub fn higher_is_better(self) -> bool {
        matches!(self, Self::CallsPerS | Self::MbPerS | Self::DeliveriesPerS | Self::AcksPerS | Self::SessionsPerS)
    }
}

/// What one run of a workload gave. Both sides give the same metrics in the same order.
pub type Figures = Vec<(Metric, f64)>;

/// One of the two that do the work: volt, or raw quinn.
trait Side: Sync {
    /// The name by which [`serve`] knows its server.
    fn name(&self) -> &'static str;

    /// Does the work once, with a server process of its own, as a client on the calling thread, where no runtime runs yet.
    /// Calls and dials go on for `time`.
    fn run(&self, workload: &Workload, time: Duration) -> Result<Figures, BenchError>;
}

/// Who takes part.
struct Sides {
    volt: Box<dyn Side>,
    /// What volt is compared with.
    baseline: Box<dyn Side>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The server process could not be started, or said nothing that we understand.
    #[error("cannot start {program} as the {side} server: {error}; is it the volt binary of this version?")]
    Server {
        /// The binary.
        program: String,
        /// Which server.
        side: String,
        /// What the system says.
        error: io::Error,
    },
    /// A side failed at its work.
    #[error("the {side} side failed at {work}: {why}")]
    Failed {
        /// Which one.
        side: &'static str,
        /// At what.
        work: String,
        /// Its reason.
        why: String,
    },
    /// [`serve`] was asked for a server that does not exist.
    #[error("there is no {0:?} server; this command is started by `volt bench` only")]
    NoSuchSide(String),
    /// The figures could not be written.
    #[error("cannot write the figures: {0}")]
    Output(#[from] io::Error),
}

/// Runs the workloads and writes the figures to `out`: a JSON line per metric as soon as it is known, or one table at the
/// end. Says on `talk` what it is doing. Blocks, for about 6 s per round and side with the default time.
pub fn run(options: &Options, out: &mut dyn Write, talk: &mut dyn Write) -> Result<(), BenchError> {
    let mut done = Vec::new();
    for workload in Workload::list(options.only) {
        let sides = sides(options, workload.group())?;
        writeln!(talk, "{}", report::title(&workload))?;
        let rounds = interleave(&sides, &workload, options)?;
        if options.json {
            report::json_lines(&workload, &rounds, out)?;
        }
        done.push((workload, rounds));
    }
    if !options.json {
        report::table(&done, options.rounds.max(1), out)?;
    }
    Ok(())
}

/// The server's process: what runs under [`SERVER_COMMAND`]. Writes one line, `{"at": "…"}`, when it can be dialled, and ends when
/// stdin is closed, so that it never outlives whoever started it. `neighbour` is what another server of a chain wrote: a relay has to
/// know whom it is before.
pub fn serve(side: &str, neighbour: Option<&str>) -> Result<(), BenchError> {
    match side {
        baseline::relay::NAME => baseline::relay::serve(neighbour.unwrap_or_default(), io::stdout(), io::stdin()),
        baseline::NAME => baseline::serve(io::stdout(), io::stdin()),
        fanout::NAME => fanout::serve(io::stdout(), io::stdin()),
        wires::NAME => wires::serve(io::stdout(), io::stdin()),
        relayed::RELAY => relayed::relay(neighbour, io::stdout(), io::stdin()),
        relayed::NAME => relayed::serve(neighbour.unwrap_or_default(), io::stdout(), io::stdin()),
        volt::NAME => volt::serve(true, io::stdout(), io::stdin()),
        volt::WITHOUT_RESUMPTION => volt::serve(false, io::stdout(), io::stdin()),
        other => Err(BenchError::NoSuchSide(other.to_owned())),
    }
}

fn sides(options: &Options, group: Group) -> Result<Sides, BenchError> {
    let program = match &options.server {
        Some(program) => program.clone(),
        None => std::env::current_exe()?,
    };
    if group == Group::Wire {
        let volt = Box::new(wires::Wires { program: program.clone() });
        return Ok(Sides { volt, baseline: Box::new(fanout::Fanout { program }) });
    }
    let volt: Box<dyn Side> = match group {
        Group::Relay => Box::new(relayed::Relayed { program: program.clone() }),
        _ => Box::new(volt::Volt { program: program.clone(), resume: true }),
    };
    let baseline: Box<dyn Side> = match group {
        Group::Resume => Box::new(volt::Volt { program, resume: false }),
        _ => Box::new(baseline::Baseline { program }),
    };
    Ok(Sides { volt, baseline })
}

fn interleave(sides: &Sides, workload: &Workload, options: &Options) -> Result<Rounds, BenchError> {
    let mut rounds = Rounds::default();
    for _ in 0..options.rounds.max(1) {
        rounds.volt.push(on_fresh_thread(sides.volt.as_ref(), workload, options.time)?);
        rounds.baseline.push(on_fresh_thread(sides.baseline.as_ref(), workload, options.time)?);
    }
    Ok(rounds)
}

fn on_fresh_thread(side: &dyn Side, workload: &Workload, time: Duration) -> Result<Figures, BenchError> {
    let run = || side.run(workload, time);
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_selects_its_workloads_and_none_selects_all() {
        let unary = Workload::list(Some(Group::Unary));
        assert!(unary.iter().all(|workload| workload.group() == Group::Unary));
        assert_eq!(unary.len(), 4);
        assert_eq!(Workload::list(None).len(), 25);
        assert_eq!(Workload::list(Some(Group::Wire)).len(), 12);
        assert!(Workload::list(None).iter().all(|workload| workload.group() != Group::Resume));
        assert_eq!(Workload::list(Some(Group::Resume)).len(), 3);
    }

    #[test]
    fn what_goes_over_one_relay_goes_over_two_and_says_so() {
        let relayed = Workload::list(Some(Group::Relay));
        let relays: Vec<_> = relayed.iter().map(Workload::relays).collect();
        assert_eq!(relays, [1, 1, 1, 2, 2, 2]);
        assert!(relayed.iter().all(|workload| workload.params()[0] == ("relays", workload.relays() as u64)));
        assert_eq!(Workload::Bulk { bytes: 1 }.relays(), 0);
    }

    #[test]
    fn a_server_of_no_side_is_refused() {
        assert!(matches!(serve("nobody", None), Err(BenchError::NoSuchSide(_))));
    }
}
