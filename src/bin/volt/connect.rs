//! `connect` and `disconnect`: whom the node that runs here holds sessions with.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use voltmesh::local::{ConnectRequest, Connected, Failure, PeerRequest, peers};

use crate::context::Context;
use crate::door::running;
use crate::output;

/// Hold a session with a peer from now on, also after restarts
///
/// Waits up to 10 s for it to come up. A peer that is not there now is remembered and dialled again and again. One that refuses
/// is remembered too, and the exit code is 5.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt connect volt1aexample --as bob\n  volt connect bob\nNeeds a running node (`volt up`).")]
pub struct Connect {
    /// A ticket, an id (`did:key:…`) or a name
    peer: String,
    /// The name you give it; used instead of its id from then on
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// How long to wait for the session
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Hold no session with a peer any more. The name it was given stays
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  volt disconnect bob\nNeeds a running node (`volt up`).")]
pub struct Disconnect {
    /// A ticket, an id (`did:key:…`) or a name
    peer: String,
}

impl Connect {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        peers::parse(&self.peer)?;
        let wait_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let request = ConnectRequest { peer: self.peer, name: self.name, remember: true, wait_ms };
        connected(context, running(context).await?.post("/v1/connect", &request).await?, "Connected");
        Ok(())
    }
}

/// Prints what came of it.
pub fn connected(context: &Context, done: Connected, word: &str) {
    if context.json {
        return output::json(&done);
    }
    let who = done.name.map_or_else(|| done.peer.to_string(), |name| format!("{} ({})", output::escape_line(&name), done.peer));
    if done.connected {
        output::line(&format!("{word}: {who}"));
    } else {
        let reason = done.reason.map(|reason| format!(" ({})", output::escape_line(&reason))).unwrap_or_default();
        output::line(&format!("Remembered: {who}. Not connected yet{reason}; the node goes on trying."));
    }
}

impl Disconnect {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        peers::parse(&self.peer)?;
        let client = running(context).await?;
        let done: Value = client.post("/v1/disconnect", &PeerRequest { peer: self.peer, timeout_ms: 0, via: Vec::new() }).await?;
        if context.json {
            output::json(&json!({ "peer": done["peer"], "connected": false }));
        } else {
            output::line(&format!(
                "No session is held with {} any more.",
                output::escape_line(done["peer"].as_str().unwrap_or_default())
            ));
        }
        Ok(())
    }
}
