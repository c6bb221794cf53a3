//! `services`: what is offered, here or at a peer.

use clap::Args;
use tokio::sync::mpsc;
use voltmesh::local::{Failure, ServiceLine, ServicesRequest, WatchLine, peers, services_at};
use voltmesh::policy::Pattern;

use crate::client::Client;
use crate::context::Context;
use crate::door::{Door, running};
use crate::output::{self, escape_line};
use crate::signals::Signals;

/// What is offered at this node, or at a peer as far as it shows it; --json adds the schemas
///
/// What a node serves itself, and what its peers have registered with it. With --watch changes follow as they happen.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt services\n  volt services bob\n  volt services bob 'cam*' --watch\n  volt services bob 'greet*' --json | jq '.methods[].name'"
)]
pub struct Services {
    /// A ticket, an id (`did:key:…`) or a name; left out: this node
    peer: Option<String>,
    /// Only services with such a name; `*` stands for any text
    pattern: Option<String>,
    /// Go on and show changes
    #[arg(long)]
    watch: bool,
    /// Those that are offline too: registered within the last day, and not withdrawn
    #[arg(long)]
    offline: bool,
}

impl Services {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Some(pattern) = &self.pattern {
            pattern.parse::<Pattern>().map_err(Failure::usage)?;
        }
        if let Some(peer) = &self.peer {
            peers::parse(peer)?;
        }
        // Without a node there is no directory here, and nothing to watch from.
        let door =
            if self.peer.is_none() || self.watch { Door::Node(running(context).await?) } else { Door::open(context).await? };
        let mut signals = Signals::new()?;
        let done = tokio::select! {
            done = self.show(context, &door) => done,
            _ = signals.next() => Ok(()),
        };
        signals.or_exit(door.close()).await;
        done
    }

    async fn show(&self, context: &Context, door: &Door) -> Result<(), Failure> {
        let request =
            ServicesRequest { peer: self.peer.clone(), pattern: self.pattern.clone(), offline: self.offline, timeout_ms: 10_000 };
        if let (true, Door::Node(client)) = (self.watch, door) {
            return watch(context, client, &request).await;
        }
        let lines: Vec<ServiceLine> = match door {
            Door::Node(client) => {
                let peer = self.peer.as_ref().map(|peer| format!("&peer={}", query(peer))).unwrap_or_default();
                let pattern = self.pattern.as_ref().map(|pattern| format!("&pattern={}", query(pattern))).unwrap_or_default();
                client.get(&format!("/v1/services?offline={}{peer}{pattern}", self.offline)).await?
            }
            Door::Visitor(node, guests) => services_at(node, guests, &request).await?,
        };
        match context.json {
            true => lines.iter().for_each(output::json),
            false => output::table(HEAD, lines.iter().flat_map(rows).collect()),
        }
        Ok(())
    }
}

/// Shows what is there, and then what happens, until the node goes down.
async fn watch(context: &Context, client: &Client, request: &ServicesRequest) -> Result<(), Failure> {
    let (send, lines) = mpsc::channel(1);
    let _ = send.try_send(voltmesh::local::line(request));
    drop(send);
    let mut told = client.stream("/v1/services/watch", lines).await?;
    loop {
        match told.parse::<WatchLine>().await? {
            Some(WatchLine::Service(line)) if context.json => output::json(&line),
            Some(WatchLine::Service(line)) => rows(&line).iter().for_each(|row| output::line(&row.join("\t"))),
            Some(WatchLine::Missed(_)) => Context::note("Some changes were not shown."),
            Some(WatchLine::Error(failure)) => return Err(failure),
            Some(_) => {}
            None => return Err(Failure::local("the node has gone down")),
        }
    }
}

const HEAD: &[&str] = &["METHOD", "SHAPE", "STATE", "PROVIDER", "DOES"];

/// A row for each method; one for a service that shows none.
fn rows(line: &ServiceLine) -> Vec<Vec<String>> {
    let state = match (line.withdrawn, line.online) {
        (true, _) => "withdrawn",
        (false, true) => "online",
        (false, false) => "offline",
    };
    let name = match line.version.is_empty() {
        true => escape_line(&line.name),
        false => format!("{} {}", escape_line(&line.name), escape_line(&line.version)),
    };
    let row = |name: String, shape: &str, does: &str| {
        vec![name, shape.to_owned(), state.to_owned(), line.provider.to_string(), escape_line(does)]
    };
    let methods = line.methods.iter().map(|method| {
        let name = format!("{}/{}", escape_line(&line.name), escape_line(&method.name));
        row(name, method.shape.name(), &method.description)
    });
    let rows: Vec<_> = methods.collect();
    if rows.is_empty() { vec![row(name, "-", &line.description)] } else { rows }
}

/// Text as part of a query.
pub fn query(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
