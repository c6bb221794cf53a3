//! `services`: what is offered, here or at a peer.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use voltmesh::local::{Failure, ServiceLine, peers, services_at};
use voltmesh::policy::Pattern;

use crate::context::Context;
use crate::door::{Door, running};
use crate::output::{self, escape_line};
use crate::signals::Signals;

/// What this node serves, or what a peer lets this node call; --json adds the schemas
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt services\n  volt services bob\n  volt services bob 'greet*' --json | jq '.methods[].name'"
)]
pub struct Services {
    /// A ticket, an id (`did:key:…`) or a name; left out: this node
    peer: Option<String>,
    /// Only services with such a name; `*` stands for any text
    pattern: Option<String>,
    /// Go on and show changes
    #[arg(long)]
    watch: bool,
    /// Those that are offline too; there is nothing to add yet, as no node keeps a directory of others' services
    #[arg(long)]
    offline: bool,
}

/// Time between two looks of --watch.
const LOOK: Duration = Duration::from_secs(1);

impl Services {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let pattern: Pattern = self.pattern.as_deref().unwrap_or("*").parse().map_err(Failure::usage)?;
        if let Some(peer) = &self.peer {
            peers::parse(peer)?;
        }
        // Without a node there is nothing served here, and nothing to watch from.
        let door =
            if self.peer.is_none() || self.watch { Door::Node(running(context).await?) } else { Door::open(context).await? };
        let mut signals = Signals::new()?;
        let done = tokio::select! {
            done = self.show(context, &door, &pattern) => done,
            _ = signals.next() => Ok(()),
        };
        signals.or_exit(door.close()).await;
        done
    }

    async fn show(&self, context: &Context, door: &Door, pattern: &Pattern) -> Result<(), Failure> {
        let mut known = self.look(door, pattern).await?;
        print(context, known.values().cloned().collect());
        if !self.watch {
            return Ok(());
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let now = match self.look(door, pattern).await {
                Ok(now) => now,
                Err(failure) if failure.cause == voltmesh::local::Cause::Unreached => BTreeMap::new(),
                Err(failure) => return Err(failure),
            };
            let gone = known.iter().filter(|(name, _)| !now.contains_key(*name));
            let mut changes: Vec<_> = gone.map(|(_, line)| ServiceLine { online: false, ..line.clone() }).collect();
            changes.extend(now.iter().filter(|(name, line)| known.get(*name) != Some(*line)).map(|(_, line)| line.clone()));
            print(context, changes);
            known = now;
        }
    }

    async fn look(&self, door: &Door, pattern: &Pattern) -> Result<BTreeMap<String, ServiceLine>, Failure> {
        let lines: Vec<ServiceLine> = match (door, &self.peer) {
            (Door::Node(client), None) => client.get("/v1/services").await?,
            (Door::Node(client), Some(peer)) => client.get(&format!("/v1/services?peer={}", query(peer))).await?,
            (Door::Visitor(node, guests), peer) => services_at(node, guests, peer.as_deref(), Duration::from_secs(10)).await?,
        };
        Ok(lines.into_iter().filter(|line| pattern.matches(&line.name)).map(|line| (line.name.clone(), line)).collect())
    }
}

fn print(context: &Context, lines: Vec<ServiceLine>) {
    if context.json {
        lines.iter().for_each(output::json);
        return;
    }
    if lines.is_empty() {
        return;
    }
    let mut rows = Vec::new();
    for line in &lines {
        let state = if line.online { "online" } else { "offline" };
        for method in &line.methods {
            let name = format!("{}/{}", escape_line(&line.name), escape_line(&method.name));
            rows.push(vec![name, method.shape.name().to_owned(), state.to_owned(), escape_line(&method.description)]);
        }
    }
    output::table(&["METHOD", "SHAPE", "STATE", "DOES"], rows);
}

/// Text as part of a query.
pub fn query(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
