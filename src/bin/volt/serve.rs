//! `serve`: makes a program a function that peers can call through the node that runs here.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use voltmesh::id::NodeId;
use voltmesh::local::{self, CallLine, Cause, Failure, Invocation, Offer, ServeLine};
use voltmesh::proto::status::{Code, Status};
use voltmesh::service::Mode;

use crate::client::Client;
use crate::context::Context;
use crate::door::running;
use crate::output;
use crate::program::{self, Recipe};
use crate::signals::Signals;

/// Serve a command as a function that peers can call
///
/// The command runs with `sh -c` once for each call, at most 64 at once. The message goes to its stdin as it came, its stdout is the
/// reply: JSON, or anything with --raw. With --stream each line of stdin and of stdout is a message. If it fails the caller gets
/// ABORTED with the end of its stderr; if the caller gives up, its process group gets SIGTERM, and SIGKILL a second later.
///
/// It learns of the call from VOLT_PEER, VOLT_METHOD, VOLT_DEADLINE_MS (milliseconds left) and VOLT_META_NAME for metadata `name`.
///
/// Who may call is up to `volt policy`. Several `serve` can serve methods of one service. Needs a running node (`volt up`).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt serve greeter/hello --exec 'jq \"hello \" + .'\n  volt serve disk/free --exec 'df -h /' --raw\n  volt serve camera/snap --exec ./snap --raw --at hub\n  volt serve text/upper --exec 'stdbuf -oL tr a-z A-Z' --stream"
)]
pub struct Serve {
    /// The function's name
    #[arg(value_name = "SERVICE/METHOD")]
    method: String,
    /// The command
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Replies need not be JSON
    #[arg(long)]
    raw: bool,
    /// Any number of messages each way, one per line
    #[arg(long)]
    stream: bool,
    /// What the function does, for `volt services`
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// List the service in this peer's directory for as long as it is served; may be given several times
    #[arg(long, value_name = "PEER")]
    at: Vec<String>,
    /// Who may find it there: `public` (whoever may discover), `trusted` (whom that node's owner knows) or ids
    #[arg(long, value_name = "public|trusted|ID,…", default_value = "public", value_parser = visible, requires = "at")]
    visible: Mode,
}

fn visible(text: &str) -> Result<Mode, String> {
    match text {
        "public" => Ok(Mode::Public),
        "trusted" => Ok(Mode::Trusted),
        ids => {
            let id = |text: &str| text.parse().map_err(|error| format!("{text:?} is no id: {error}"));
            ids.split(',').map(id).collect::<Result<Vec<NodeId>, String>>().map(Mode::Private)
        }
    }
}

/// Time that calls have to end in when the command is told to end.
const DRAIN: Duration = Duration::from_secs(10);

/// What became of one call.
struct Served {
    call: Invocation,
    took: Duration,
    status: Status,
}

impl Serve {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = running(context).await?;
        let mut signals = Signals::new()?;
        let offer = Offer {
            method: self.method,
            stream: self.stream,
            raw: self.raw,
            description: self.description,
            at: self.at,
            mode: self.visible,
        };
        let recipe = Recipe { command: self.exec, raw: self.raw, stream: self.stream };
        let (to_node, lines) = mpsc::channel(1);
        let _ = to_node.try_send(local::line(&offer));
        let mut told = client.stream("/v1/serve", lines).await?;
        let (mut calls, mut cancels) = (JoinSet::new(), HashMap::new());
        let ended = loop {
            tokio::select! {
                line = told.parse::<ServeLine>() => match line {
                    Ok(Some(ServeLine::Serving { method, at, .. })) => {
                        let listed: Vec<String> = at.iter().map(|at| format!(", listed at {at}")).collect();
                        Context::note(&format!("Serving {method}{}.", listed.concat()));
                    }
                    Ok(Some(ServeLine::Call(call))) => {
                        let (cancel, cancelled) = oneshot::channel();
                        cancels.insert(call.id, cancel);
                        calls.spawn(serve_one(client.clone(), recipe.clone(), call, cancelled));
                    }
                    Ok(Some(ServeLine::Cancelled(id))) => drop(cancels.remove(&id)),
                    Ok(Some(ServeLine::Error(failure))) => break Err(failure),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break Err(node_gone()),
                },
                Some(served) = calls.join_next() => {
                    if let Ok(served) = served {
                        cancels.remove(&served.call.id);
                        if !print(context, &served) {
                            break Ok(());
                        }
                    }
                }
                _ = signals.next() => break Ok(()),
            }
        };
        // No new calls from here on; those that run go on over their own connections.
        drop((to_node, told));
        let last = async {
            let rest = async {
                while let Some(served) = calls.join_next().await {
                    if let Ok(served) = served {
                        print(context, &served);
                    }
                }
            };
            let _ = tokio::time::timeout(DRAIN, rest).await;
            calls.shutdown().await;
            program::wait_for_all().await;
        };
        signals.or_exit(last).await;
        ended
    }
}

fn node_gone() -> Failure {
    Failure::new(Cause::Local, Code::Unavailable, "the node has gone down, so nothing is served any more")
}

/// Says what became of a call. False if nobody reads any more.
fn print(context: &Context, served: &Served) -> bool {
    let Served { call, took, status } = served;
    let ms = (took.as_secs_f64() * 1e4).round() / 10.0;
    let line = if context.json {
        json!({ "peer": call.peer, "method": call.method, "ms": ms, "status": status.code.name() }).to_string()
    } else {
        let why = if status.message.is_empty() { String::new() } else { format!(": {}", output::escape_line(&status.message)) };
        format!("{}  {}  {ms} ms  {}{why}", call.peer, call.method, status.code)
    };
    output::try_bytes(format!("{line}\n").as_bytes()).is_ok()
}

async fn serve_one(client: Client, recipe: Recipe, call: Invocation, cancelled: oneshot::Receiver<()>) -> Served {
    let began = Instant::now();
    let status = tokio::select! {
        status = carry(&client, &recipe, &call) => status.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "a call could not be carried");
            Status::new(Code::Unavailable, failure.message)
        }),
        _ = cancelled => Status::new(Code::Cancelled, "the caller gave up"),
    };
    Served { call, took: began.elapsed(), status }
}

/// Joins the program of a call with the stream of its messages.
async fn carry(client: &Client, recipe: &Recipe, call: &Invocation) -> Result<Status, Failure> {
    let (to_node, lines) = mpsc::channel(16);
    let mut from_node = client.stream(&format!("/v1/serve/calls/{}", call.id), lines).await?;
    let (to_program, requests) = mpsc::channel(16);
    let (from_program, mut replies) = mpsc::channel(16);
    let mut to_program = Some(to_program);
    let running = async {
        let status = recipe.run(call, requests, &from_program).await;
        drop(from_program);
        status
    };
    let forwarding = async {
        while let Some(body) = replies.recv().await {
            let line = local::line(&CallLine::message(&body));
            let _ = to_node.send(line).await;
        }
    };
    let listening = async {
        loop {
            match from_node.parse::<CallLine>().await {
                Ok(Some(CallLine::End(_))) => drop(to_program.take()),
                Ok(Some(message @ (CallLine::Message(_) | CallLine::Raw(_)))) => {
                    if let (Some(to_program), Ok(body)) = (&to_program, message.into_body()) {
                        let _ = to_program.send(body).await;
                    }
                }
                Ok(Some(_)) | Ok(None) | Err(_) => return,
            }
        }
    };
    let status = tokio::select! {
        (status, ()) = async { tokio::join!(running, forwarding) } => status,
        () = listening => return Ok(Status::new(Code::Cancelled, "the caller gave up")),
    };
    let _ = to_node.send(local::line(&CallLine::Status(status.clone().into()))).await;
    drop(to_node);
    // The node ends the stream when it has passed the answer on.
    while let Ok(Some(_)) = from_node.next().await {}
    Ok(status)
}
