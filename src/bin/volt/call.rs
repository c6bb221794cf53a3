//! `call`: invokes a function of a peer and prints what it answers. Through the node that runs here, or as a visitor.

use std::io::{self, BufRead, Read};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use voltmesh::Node;
use voltmesh::local::{self, CallHead, CallLine, Cause, Failure, Guests, Requests, peers};
use voltmesh::proto::limits::BODY_BYTES;
use voltmesh::proto::status::{Code, Status};

use crate::client::Client;
use crate::context::Context;
use crate::door::Door;
use crate::output;
use crate::signals::Signals;

/// Call a function of a peer and print the reply
///
/// Replies that are JSON are printed one per line, others as they are. With --stream each line of stdin is a message; a method that
/// takes one message is called once for each. Ctrl-C cancels the call at the peer too.
#[derive(Debug, Args)]
#[command(
    name = "call",
    after_help = "Examples:\n  volt call bob greeter/hello '\"world\"'\n  echo '{\"to\": 3}' | volt call bob math/count -\n  seq 10 | volt call bob math/sum --stream\n  volt call did:key:z6Mk… clock/now --via hub\n  volt call service:camera@hub camera/snap\n  volt call volt1aexample clock/now --timeout 2s --fail-fast"
)]
pub struct CallArgs {
    /// A ticket, an id (`did:key:…`), a name, or `service:NAME[@PEER]`: whoever provides it, by that peer's directory
    peer: String,
    /// The function
    #[arg(value_name = "SERVICE/METHOD")]
    method: String,
    /// The message; `-` reads it from stdin; left out: null
    #[arg(value_name = "JSON|-", allow_hyphen_values = true)]
    body: Option<String>,
    /// How long it may take in all [default: 30s; no limit for methods that stream]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Fail at once if the session is down
    #[arg(long)]
    fail_fast: bool,
    /// Each line of stdin is a message
    #[arg(long)]
    stream: bool,
    /// Metadata for the handler; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    meta: Vec<(String, String)>,
    /// A key that makes it one call however often it is made: executed once, sent again if the session ends
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Reach the peer by way of this relay, if it is not connected yet; given several times: of these, one after the other
    #[arg(long, value_name = "PEER")]
    via: Vec<String>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

impl CallArgs {
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        peers::check_callee(&self.peer)?;
        self.via.iter().try_for_each(|relay| peers::parse(relay).map(drop))?;
        let mut signals = Signals::new()?;
        let messages = self.messages()?;
        let head = CallHead {
            peer: self.peer,
            method: self.method,
            timeout_ms: self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            fail_fast: self.fail_fast,
            stream: self.stream,
            raw: false,
            metadata: self.meta,
            idempotency_key: self.idempotency_key,
            via: self.via,
        };
        let door = Door::open(context).await?;
        let work = async {
            match &door {
                Door::Node(client) => through_node(client, &head, messages).await,
                Door::Visitor(node, guests) => as_visitor(node, guests, &head, messages).await,
            }
        };
        let done = tokio::select! {
            done = work => done.map(|()| ExitCode::SUCCESS),
            code = signals.next() => Ok(ExitCode::from(code)),
        };
        signals.or_exit(door.close()).await;
        done
    }

    /// The messages to send, each checked to be JSON.
    fn messages(&self) -> Result<Requests, Failure> {
        let (send, messages) = mpsc::channel(16);
        match self.body.as_deref() {
            None | Some("-") if self.stream => drop(std::thread::spawn(move || stdin_lines(&send))),
            body => {
                // A mistake is told before anything is begun.
                let body = match body {
                    None => b"null".to_vec(),
                    Some("-") => stdin_whole()?,
                    Some(text) => checked(text.as_bytes().to_vec())?,
                };
                let _ = send.try_send(Ok(body));
            }
        }
        Ok(messages)
    }
}

fn checked(body: Vec<u8>) -> Result<Vec<u8>, Failure> {
    if body.len() > BODY_BYTES {
        return Err(Failure::usage(format!("a message has at most {BODY_BYTES} bytes")));
    }
    if local::json(&body).is_some() { Ok(body) } else { Err(no_json(&body)) }
}

fn no_json(body: &[u8]) -> Failure {
    let why = serde_json::from_slice::<serde_json::Value>(body).err().map(|error| format!(": {error}")).unwrap_or_default();
    Failure::usage(format!("the message is not JSON{why}")).hint("text is JSON in quotes: '\"hello\"'")
}

fn stdin_whole() -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let read = io::stdin().lock().take(BODY_BYTES as u64 + 1).read_to_end(&mut body);
    read.map_err(|error| Failure::local(format!("cannot read stdin: {error}")))?;
    checked(body)
}

/// Reads messages until the end, a mistake, or nobody wants more. On a thread of its own, which may never end.
fn stdin_lines(send: &mpsc::Sender<Result<Vec<u8>, Failure>>) {
    let mut stdin = io::stdin().lock();
    loop {
        let mut line = Vec::new();
        let message = match stdin.by_ref().take(BODY_BYTES as u64 + 2).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Ok(_) => {
                let end = line.trim_ascii_end().len();
                line.truncate(end);
                checked(line)
            }
            Err(error) => Err(Failure::local(format!("cannot read stdin: {error}"))),
        };
        let broken = message.is_err();
        if send.blocking_send(message).is_err() || broken {
            return;
        }
    }
}

async fn as_visitor(node: &Node, guests: &Guests, head: &CallHead, messages: Requests) -> Result<(), Failure> {
    let (replies, mut to_print) = mpsc::channel(16);
    let printing = async {
        while let Some(reply) = to_print.recv().await {
            if !print(reply)? {
                return Ok(());
            }
        }
        Ok(())
    };
    let calling = async {
        let ended = local::call(node, guests, head, messages, &replies).await;
        drop(replies);
        ended
    };
    tokio::pin!(printing);
    tokio::select! {
        biased;
        printed = &mut printing => return printed,
        ended = calling => ended?,
    }
    printing.await
}

async fn through_node(client: &Client, head: &CallHead, mut messages: Requests) -> Result<(), Failure> {
    let (send, lines) = mpsc::channel(16);
    let _ = send.try_send(local::line(head));
    let forwarding = async move {
        while let Some(message) = messages.recv().await {
            if send.send(local::line(&CallLine::message(&message?))).await.is_err() {
                break;
            }
        }
        Ok::<_, Failure>(())
    };
    let printing = async {
        let mut answers = client.stream("/v1/call", lines).await?;
        loop {
            match answers.parse::<CallLine>().await {
                Ok(Some(CallLine::Error(failure))) => return Err(failure),
                Ok(Some(CallLine::Status(status))) => {
                    let status = Status::try_from(status)?;
                    return if status.is_ok() { Ok(()) } else { Err(status.into()) };
                }
                Ok(Some(reply)) => {
                    if !print(reply)? {
                        return Ok(());
                    }
                }
                Ok(None) | Err(_) => return Err(node_gone()),
            }
        }
    };
    tokio::pin!(printing);
    tokio::select! {
        biased;
        printed = &mut printing => return printed,
        forwarded = forwarding => forwarded?,
    }
    printing.await
}

fn node_gone() -> Failure {
    let failure = Failure::new(Cause::Unreached, Code::Unavailable, "the node that made the call here is gone");
    Failure { outcome: Some("outcome_unknown".to_owned()), ..failure }
}

/// Prints a reply. Says whether anybody reads.
fn print(reply: CallLine) -> Result<bool, Failure> {
    let is_json = matches!(reply, CallLine::Message(_));
    let mut body = reply.into_body()?;
    if is_json {
        body.push(b'\n');
    }
    Ok(output::try_bytes(&body).is_ok())
}
