//! `events`: what happens at a node, as it happens.

use clap::Args;
use serde_json::Value;
use voltmesh::local::{EventLine, Failure, parse};

use crate::context::Context;
use crate::door::running;
use crate::output;
use crate::signals::Signals;
use crate::up;

/// Show what happens at the node that runs here, from now on: sessions, paths, services, its configuration
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt events\n  volt events --json | jq -r 'select(.event==\"connected\").peer'\n  volt --on bob events"
)]
pub struct Events {}

impl Events {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let showing = async {
            let mut told = running(context).await?.follow("/v1/events").await?;
            context.say("Waiting for what happens; ^C ends this.");
            loop {
                let mut line: Value = told.parse().await?.ok_or_else(|| Failure::local("the node has gone down"))?;
                if let Some(error) = line.get_mut("error").filter(|error| error.is_object()) {
                    return Err(parse(error.take().to_string().as_bytes())?);
                }
                show(context, &line);
            }
        };
        tokio::select! {
            done = showing => done,
            _ = signals.next() => Ok(()),
        }
    }
}

fn show(context: &Context, line: &Value) {
    if context.json {
        return output::json(line);
    }
    // One that a later version made is not shown.
    let Ok(event) = serde_json::from_value::<EventLine>(line.clone()) else { return };
    if let Some(text) = up::text(&event, line["peer"].as_str().unwrap_or_default()) {
        output::line(&output::escape(&text));
    }
}
