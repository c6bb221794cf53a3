//! `status`, `sessions`, `peers`, `reload` and `down`: a look at the node that runs here, its configuration read again, and its end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;
use voltmesh::local::{Failure, NodeStatus, PeerLine, ReloadLine, SessionLine};
use voltmesh::node::home::{Home, HomeError, files};
use voltmesh::node::store::Store;

use crate::context::Context;
use crate::door::{node, running};
use crate::output::{self, escape_line, or_dash};

/// Stop the node that runs here: calls in flight are finished first
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  volt down")]
pub struct Down {}

/// Have the node that runs here read its volt.toml again
///
/// It does so by itself when the file changes, and on SIGHUP. Rules, groups, `open` and `relay` are in force at once, on live sessions too;
/// everything else waits for the next start, and is named. A file with a mistake changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt reload\n  volt reload --json | jq .waiting")]
pub struct Reload {}

/// How the node that runs here is
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt status\n  volt status --json | jq .sessions")]
pub struct Status {}

/// The sessions that are up or being brought up
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt sessions\n  volt sessions --json | jq -r 'select(.state==\"connected\").peer'")]
pub struct Sessions {}

/// The peers this node wants, knows by name, or is connected with
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt peers\n  volt peers --json | jq -r 'select(.name==\"bob\").peer'")]
pub struct Peers {}

impl Down {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = running(context).await?;
        let (_requests, none) = mpsc::channel(1);
        let mut answers = client.stream("/v1/down", none).await?;
        context.say("Going down: calls in flight are finished first.");
        // The stream ends with the node; elsewhere when it has begun to end, as a call is what a node waits for.
        while let Ok(Some(_)) = answers.next().await {}
        if context.on.is_none() {
            wait_until_free(&context.home()?).await?;
        }
        if context.json {
            output::json(&json!({ "down": true }));
        } else if context.on.is_some() {
            output::line("The node goes down.");
        } else {
            output::line("The node is down.");
        }
        Ok(())
    }
}

/// Waits until the home is free: the node gives it back as the last thing it does.
async fn wait_until_free(home: &Home) -> Result<(), Failure> {
    for _ in 0..1_000 {
        match home.lock() {
            Ok(_free) => return Ok(()),
            Err(HomeError::Held { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::local("the node has ended its work, but its process still holds the home"))
}

impl Reload {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let done: ReloadLine = running(context).await?.post("/v1/reload", &json!({})).await?;
        if context.json {
            output::json(&done);
            return Ok(());
        }
        output::line("volt.toml was read again.");
        if !done.waiting.is_empty() {
            output::line(&format!("In force after the next start only: {}", done.waiting.join(", ")));
        }
        Ok(())
    }
}

impl Status {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let status: NodeStatus = running(context).await?.get("/v1/status").await?;
        if context.json {
            output::json(&status);
            return Ok(());
        }
        let list = |items: Vec<String>| or_dash(Some(items.join(", ")));
        let limits = status.limits.iter().filter(|(_, count)| **count > 0);
        let rows = [
            ("id", status.id.to_string()),
            ("name", or_dash(status.name)),
            ("home", status.home),
            ("process", status.pid.to_string()),
            ("version", status.version),
            ("up for", humantime::format_duration(Duration::from_secs(status.uptime_s)).to_string()),
            ("listens at", list(status.listen.iter().map(ToString::to_string).collect())),
            ("ticket", status.ticket),
            ("open", if status.open { "yes: anyone may connect and call" } else { "no" }.to_owned()),
            ("sessions", status.sessions.to_string()),
            ("services", list(status.services)),
            ("calls", status.calls.to_string()),
            ("relayed", format!("{} circuits, {} bytes", status.relay.circuits, status.relay.bytes)),
            ("refused", format!("{} sessions, {} handshakes", status.refused_sessions, status.refused_handshakes)),
            (
                "strangers",
                format!(
                    "{} wait (`volt requests`); refused: {} for want of room, {} invitations",
                    status.requests, status.refused_requests, status.refused_invitations
                ),
            ),
            ("denied", format!("{} calls, {} other requests", status.denied_calls, status.denied_requests)),
            ("over rate", format!("{} calls", status.rated_calls)),
            ("limits", list(limits.map(|(name, count)| format!("{name} {count}")).collect())),
            (
                "journal",
                format!(
                    "{} entries, {} missed, {} omitted",
                    status.journal.written, status.journal.missed, status.journal.omitted
                ),
            ),
            ("handlers", format!("{} panics, {} slow polls", status.panics, status.slow_polls)),
        ];
        let config = match (status.config_error, status.config_waiting) {
            (Some(error), _) => Some(format!("not in force: {error}")),
            (None, waiting) if waiting.is_empty() => None,
            (None, waiting) => Some(format!("waits for the next start: {}", waiting.join(", "))),
        };
        let rows = rows.into_iter().chain(config.map(|config| ("volt.toml", config)));
        rows.for_each(|(name, value)| output::line(&format!("{name:<11} {}", escape_line(&value))));
        Ok(())
    }
}

impl Sessions {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let sessions: Vec<SessionLine> = running(context).await?.get("/v1/sessions").await?;
        if context.json {
            sessions.iter().for_each(output::json);
            return Ok(());
        }
        let row = |session: SessionLine| {
            vec![
                or_dash(session.name.map(|name| escape_line(&name))),
                session.peer.to_string(),
                escape_line(&session.state),
                or_dash(session.path.map(|path| escape_line(&path))),
                or_dash(session.rtt_ms.map(|rtt| format!("{rtt:.2} ms"))),
                or_dash(session.age_s.map(|age| humantime::format_duration(Duration::from_secs(age)).to_string())),
                session.streams.to_string(),
            ]
        };
        output::table(&["NAME", "PEER", "STATE", "PATH", "RTT", "AGE", "STREAMS"], sessions.into_iter().map(row).collect());
        Ok(())
    }
}

impl Peers {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let peers = match node(context).await? {
            Some(client) => client.get("/v1/peers").await?,
            None => remembered(&context.home()?)?,
        };
        if context.json {
            peers.iter().for_each(output::json);
            return Ok(());
        }
        let row = |peer: PeerLine| {
            let state = match (peer.connected, peer.wanted, peer.reason) {
                (true, ..) => "connected".to_owned(),
                (false, true, Some(reason)) => format!("wanted: {}", escape_line(&reason)),
                (false, true, None) => "wanted".to_owned(),
                (false, false, _) => "known".to_owned(),
            };
            vec![
                or_dash(peer.name.map(|name| escape_line(&name))),
                peer.peer.to_string(),
                state,
                or_dash(peer.last_seen_unix_ms.map(ago)),
                or_dash(peer.addresses.first().map(ToString::to_string)),
                or_dash(peer.own_name.map(|name| escape_line(&name))),
            ]
        };
        output::table(&["NAME", "PEER", "STATE", "SEEN", "AT", "CALLS ITSELF"], peers.into_iter().map(row).collect());
        Ok(())
    }
}

/// What the store says, when no node runs.
fn remembered(home: &Home) -> Result<Vec<PeerLine>, Failure> {
    let stored = Store::open_read_only(home.file(files::STORE))?.peers()?;
    let line = |peer: voltmesh::node::store::Peer| PeerLine {
        peer: peer.id,
        name: peer.name.map(|name| name.to_string()),
        own_name: None,
        wanted: peer.wanted,
        connected: false,
        addresses: peer.addresses,
        last_seen_unix_ms: peer.last_seen_unix_ms,
        reason: None,
    };
    Ok(stored.into_iter().map(line).collect())
}

fn ago(unix_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = now.saturating_sub(Duration::from_millis(unix_ms));
    format!("{} ago", humantime::format_duration(Duration::from_secs(since.as_secs())))
}
