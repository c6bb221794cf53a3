//! `ping`: round trips to a peer, through the session there is or one made for it.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use voltmesh::local::{Failure, PeerRequest, Pong, peers};

use crate::context::Context;
use crate::door::Door;
use crate::output;
use crate::signals::Signals;

/// Measure round trips to a peer, and show the path they take
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt ping bob\n  volt ping bob -c 3 --json")]
pub struct Ping {
    /// A ticket, an id (`did:key:…`) or a name
    peer: String,
    /// How many
    #[arg(short = 'c', long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Time from one to the next
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// How long each may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Reach the peer by way of this relay, if it is not connected yet; given several times: of these, one after the other
    #[arg(long, value_name = "PEER")]
    via: Vec<String>,
}

impl Ping {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        self.via.iter().chain([&self.peer]).try_for_each(|peer| peers::parse(peer).map(drop))?;
        let mut signals = Signals::new()?;
        let door = Door::open(context).await?;
        let done = tokio::select! {
            done = self.rounds(context, &door) => done,
            _ = signals.next() => Ok(()),
        };
        signals.or_exit(door.close()).await;
        done
    }

    async fn rounds(&self, context: &Context, door: &Door) -> Result<(), Failure> {
        // Keeps the session of a visit between the rounds.
        let mut guest = None;
        if let Door::Visitor(node, guests) = door {
            let target = peers::resolve_via(node, &self.peer, &self.via).await?;
            guest = Some(guests.session(node, &target, self.timeout, false).await?);
        }
        for seq in 1..=self.count {
            let Pong { rtt_ms, path } = match door {
                Door::Node(client) => {
                    let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
                    let (peer, via) = (self.peer.clone(), self.via.clone());
                    client.post("/v1/ping", &PeerRequest { peer, timeout_ms, via }).await?
                }
                Door::Visitor(node, guests) => peers::ping(node, guests, &self.peer, &self.via, self.timeout).await?,
            };
            if context.json {
                output::json(&json!({ "seq": seq, "rtt_ms": rtt_ms, "path": path }));
            } else {
                output::line(&format!("{seq}: {rtt_ms:.3} ms, {}", output::escape_line(&path)));
            }
            if seq < self.count {
                tokio::time::sleep(self.interval).await;
            }
        }
        drop(guest);
        Ok(())
    }
}
