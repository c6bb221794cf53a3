//! `requests`: strangers who want to connect, and the owner's answer.

use std::time::Duration;

use clap::{Args, Subcommand};
use voltmesh::local::Failure;
use voltmesh::local::trust::{DecideRequest, Decided, RequestLine};

use crate::context::Context;
use crate::door::running;
use crate::output;

/// Strangers who want to connect, and wait for your answer
///
/// Whoever no rule is about waits here while the node runs, at most 64 at once, and is forgotten when it has not come again for ten
/// minutes. The answer is kept as rules (`volt policy ls`).
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  volt requests\n  volt requests approve z6Mkha --may 'call greeter/*'\n  volt requests deny z6Mkha\nNeeds a running node (`volt up`)."
)]
pub struct Requests {
    #[command(subcommand)]
    answer: Option<Answer>,
}

#[derive(Debug, Subcommand)]
enum Answer {
    /// Let a stranger in
    #[command(
        after_help = "Examples:\n  volt requests approve z6Mkha\n  volt requests approve z6Mkha --may 'call greeter/*' --may 'subscribe *'"
    )]
    Approve {
        /// Its id, or the beginning of it
        id: String,
        /// What it may do besides connecting: an action and a resource; may be given several times
        #[arg(long, value_name = "ACTION RESOURCE")]
        may: Vec<String>,
    },
    /// Refuse a stranger from now on
    #[command(after_help = "Example:\n  volt requests deny z6Mkha")]
    Deny {
        /// Its id, or the beginning of it
        id: String,
    },
}

impl Requests {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = running(context).await?;
        let (decided, what): (Decided, _) = match self.answer {
            None => {
                list(context, client.get("/v1/requests").await?);
                return Ok(());
            }
            Some(Answer::Approve { id, may }) => {
                (client.post("/v1/requests/approve", &DecideRequest { who: id, may }).await?, "Let in")
            }
            Some(Answer::Deny { id }) => {
                (client.post("/v1/requests/deny", &DecideRequest { who: id, may: Vec::new() }).await?, "Refused from now on")
            }
        };
        if context.json {
            output::json(&decided);
            return Ok(());
        }
        output::line(&format!("{what}: {}", decided.peer));
        decided.rules.iter().for_each(|rule| output::line(&format!("  {rule} ({})", rule.id())));
        Ok(())
    }
}

fn list(context: &Context, requests: Vec<RequestLine>) {
    if context.json {
        return requests.iter().for_each(output::json);
    }
    if requests.is_empty() {
        context.say("Nobody waits.");
    }
    let row = |request: RequestLine| {
        vec![
            request.peer.to_string(),
            request.name.map_or_else(|| "-".to_owned(), |name| output::escape_line(&name)),
            if request.relayed { format!("a relay at {}", request.from) } else { request.from },
            humantime::format_duration(Duration::from_secs(request.waiting_s)).to_string(),
        ]
    };
    output::table(&["ID", "CALLS ITSELF", "FROM", "WAITING"], requests.into_iter().map(row).collect());
}
