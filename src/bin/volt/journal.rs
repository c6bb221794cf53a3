//! `journal`: what was decided here, as the node wrote it down. It reads the files of the home, with or without a node that runs.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use voltmesh::journal::Reader;
use voltmesh::local::Failure;

use crate::context::Context;
use crate::output::{self, escape_line};
use crate::signals::Signals;

/// How often a journal is looked at that is followed.
const LOOK: Duration = Duration::from_millis(200);

/// Who was let in or refused, by which rule, and what they called
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt journal\n  volt journal -n 100 --follow\n  volt journal -n 100000 --json | jq -c 'select(.event==\"refused\")'"
)]
pub struct Journal {
    /// How many of the last entries
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    lines: usize,
    /// Go on with what is added, until interrupted
    #[arg(short, long)]
    follow: bool,
}

impl Journal {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let home = context.home()?;
        let failed =
            |error: std::io::Error| Failure::local(format!("the journal in {} cannot be read: {error}", home.path().display()));
        // Before anything is shown: whoever sees it may interrupt.
        let signals = self.follow.then(Signals::new).transpose()?;
        let (last, mut reader) = Reader::last(home.path(), self.lines).map_err(failed)?;
        last.iter().for_each(|line| show(line, context.json));
        let Some(mut signals) = signals else { return Ok(()) };
        loop {
            tokio::select! {
                _ = signals.next() => return Ok(()),
                () = tokio::time::sleep(LOOK) => reader.more().map_err(failed)?.iter().for_each(|line| show(line, context.json)),
            }
        }
    }
}

/// One entry: as it is for programs, and for people when, what, who, and the rest by name. What a crash has cut off is left out.
fn show(line: &str, as_json: bool) {
    let Ok(Value::Object(mut entry)) = serde_json::from_str::<Value>(line) else { return };
    if as_json {
        return output::line(line);
    }
    let mut take = |name: &str| entry.remove(name).map(|value| text(&value)).unwrap_or_default();
    let (at, event, peer) = (take("at"), take("event"), take("peer"));
    let rest = entry.iter().map(|(name, value)| format!("  {name} {}", text(value))).collect::<String>();
    output::line(&format!("{at}  {event:<9} {peer}{rest}"));
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => escape_line(text),
        other => other.to_string(),
    }
}
