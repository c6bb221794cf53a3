//! `expose` and `forward`: TCP targets by name, and a peer's brought to a local port. Both last as long as the command runs.

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use voltmesh::local::tunnels::{Connection, ExposeRequest, ForwardRequest, TunnelLine};
use voltmesh::local::{Cause, Failure, line, peers};
use voltmesh::proto::status::Code;
use voltmesh::tunnel::{check_name, check_target, parse_listen};

use crate::context::Context;
use crate::door::running;
use crate::output;
use crate::signals::Signals;

/// Let peers reach a TCP target under a name
///
/// The target is looked up and connected to from this machine, once for each connection of a peer's; peers choose among the names, never
/// an address. Who may is up to `volt policy`: the action is `forward`, the resource the name; by default nobody may. Runs until it is
/// interrupted; `[[expose]]` in volt.toml does it for good. Needs a running node (`volt up`).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt expose ssh 127.0.0.1:22\n  volt policy allow bob forward ssh      before bob can use it\n  volt expose printer printer.lan:631 --json"
)]
pub struct Expose {
    /// The name: letters, digits, `.`, `_`, `-`, in parts joined by `/`
    #[arg(value_parser = name)]
    name: String,
    /// Where it is, as seen from here
    #[arg(value_name = "HOST:PORT", value_parser = target)]
    target: String,
}

/// Bring what a peer exposes to a local port
///
/// Each connection to the port goes to that target of the peer's. It survives the loss of the path between the two nodes: bytes wait, and
/// go on where they stopped. Whether the peer would take a connection is asked at the start; a wrong name or a missing rule ends the
/// command. What is refused later is told, and the forward goes on. Runs until it is interrupted; `[[forward]]` in volt.toml does it for
/// good. Needs a running node (`volt up`).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt forward 2222 bob ssh              then: ssh -p 2222 localhost\n  volt forward 0 bob web --json          any free port; the first line tells which\n  volt forward 192.168.1.5:8080 bob web  for others in this network, too"
)]
pub struct Forward {
    /// PORT (of this machine only), or IP:PORT; port 0 is any that is free
    #[arg(value_name = "LISTEN", value_parser = listen)]
    listen: String,
    /// Who exposes it: an id, a ticket, or a name given with `volt connect`
    peer: String,
    /// Under which name
    #[arg(value_parser = name)]
    name: String,
}

fn name(text: &str) -> Result<String, &'static str> {
    check_name(text).map(|()| text.to_owned())
}

fn target(text: &str) -> Result<String, &'static str> {
    check_target(text).map(|()| text.to_owned())
}

fn listen(text: &str) -> Result<String, &'static str> {
    parse_listen(text).map(|_| text.to_owned())
}

impl Expose {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        follow(context, "/v1/expose", line(&ExposeRequest { name: self.name, target: self.target })).await
    }
}

impl Forward {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        peers::parse(&self.peer)?;
        let request = ForwardRequest { listen: self.listen, peer: self.peer, name: self.name };
        follow(context, "/v1/forward", line(&request)).await
    }
}

/// Asks for it, and prints what is told of it until a signal, or until it is over. The node ends it when this ends.
async fn follow(context: &Context, path: &str, request: Bytes) -> Result<(), Failure> {
    let client = running(context).await?;
    let mut signals = Signals::new()?;
    let (to_node, lines) = mpsc::channel(1);
    let _ = to_node.try_send(request);
    // The request is all there is to say.
    drop(to_node);
    let mut told = client.stream(path, lines).await?;
    loop {
        let line = tokio::select! {
            line = told.parse::<TunnelLine>() => line,
            _ = signals.next() => return Ok(()),
        };
        let gone = || Failure::new(Cause::Local, Code::Unavailable, "the node has gone down, and this with it");
        let printed = match line.ok().flatten().ok_or_else(gone)? {
            TunnelLine::Error(failure) => return Err(failure),
            TunnelLine::Refused { connection, error } => {
                let message = format!("a connection from {} was refused: {}", whose(&connection), error.message);
                output::failure(context.json, &Failure { message, ..error });
                Ok(())
            }
            TunnelLine::Missed(count) => {
                Context::note(&format!("{count} connections' beginnings and ends were not shown"));
                Ok(())
            }
            line => print(context, &line),
        };
        if printed.is_err() {
            return Ok(());
        }
    }
}

fn print(context: &Context, line: &TunnelLine) -> std::io::Result<()> {
    let text = if context.json { as_json(line).to_string() } else { as_text(line) };
    output::try_bytes(format!("{text}\n").as_bytes())
}

fn as_json(line: &TunnelLine) -> Value {
    match line {
        TunnelLine::Exposed(ExposeRequest { name, target }) => json!({ "expose": name, "target": target }),
        TunnelLine::Forwarding { name, peer, listen } => json!({ "forward": name, "peer": peer, "listen": listen }),
        TunnelLine::Began(connection) => {
            let mut value = json!(connection);
            value["event"] = "began".into();
            value
        }
        TunnelLine::Ended { .. } => {
            let mut value = json!(line)["ended"].take();
            value["event"] = "ended".into();
            value
        }
        other => json!(other),
    }
}

fn as_text(line: &TunnelLine) -> String {
    match line {
        TunnelLine::Exposed(ExposeRequest { name, target }) => format!("Exposed as {name}: {target}"),
        TunnelLine::Forwarding { name, peer, listen } => format!("Connections to {listen} go to {name} of {peer}"),
        TunnelLine::Began(connection) => format!("{}  connected", whose(connection)),
        TunnelLine::Ended { connection, why, sent, received, .. } => {
            let how = why.as_deref().map_or("ended".to_owned(), |why| format!("broke off: {}", output::escape_line(why)));
            format!("{}  {how}, {sent} bytes sent, {received} received", whose(connection))
        }
        other => format!("{other:?}"),
    }
}

fn whose(connection: &Connection) -> String {
    let number = connection.connection.map(|number| format!(" #{number}")).unwrap_or_default();
    match (connection.peer, connection.from) {
        (Some(peer), _) => format!("{peer}{number}"),
        (None, Some(from)) => format!("{from}{number}"),
        (None, None) => format!("somewhere{number}"),
    }
}
