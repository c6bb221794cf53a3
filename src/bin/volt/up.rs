//! `up`: the node itself, until it is told to end. It owns the home, answers on the local socket, and prints what happens.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use clap::Args;
use tokio::sync::mpsc;
use voltmesh::Node;
use voltmesh::id::NodeId;
use voltmesh::local::{EventLine, Failure, Server, peers};
use voltmesh::node::config::{PeerRef, RelayMode};

use crate::context::Context;
use crate::door::unbound;
use crate::output;
use crate::signals::Signals;

/// Run the node until SIGTERM or SIGINT; then calls in flight are finished first
///
/// Makes the home and the identity if there are none. What volt.toml in the home says is used too. It is read again when it changes, on
/// SIGHUP and by `volt reload`: `rule`, `groups`, `open`, `strangers` and `relay` are in force at once, the rest after the next start; a file with a
/// mistake changes nothing. What is given here stays as it is.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt up\n  volt up --listen 0.0.0.0:9000 --connect bob\n  volt up --relay closed --connect volt1…\n  volt up --via volt1…\n  volt up --json | jq -r 'select(.event==\"ready\").ticket'"
)]
pub struct Up {
    /// Listen at this address; may be given several times (default: every address, port 8658, or a free one that is kept)
    #[arg(long, value_name = "IP:PORT")]
    listen: Vec<SocketAddr>,
    /// Hold a session with this peer during this run: a ticket, an id or a name
    #[arg(long, value_name = "PEER")]
    connect: Vec<String>,
    /// Let anyone connect, and call everything this node serves, unless a rule denies it
    #[arg(long)]
    open: bool,
    /// Carry circuits for others, who may not read what is on them: `closed`, between nodes that this one knows, or `open`, for anyone
    #[arg(long, value_name = "closed|open")]
    relay: Option<Relaying>,
    /// Keep a session with this relay: others reach this node through it, and it reaches others; may be given several times
    #[arg(long, value_name = "PEER")]
    via: Vec<String>,
}

/// For whom circuits are carried.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Relaying {
    /// Between nodes that this one knows
    Closed,
    /// For anyone
    Open,
}

/// Lines that may wait for a slow reader of stdout; more are lost to it.
const LINES: usize = 4_096;

impl Up {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let (mut signals, mut hangup) = (Signals::new()?, Signals::hangup()?);
        for peer in self.connect.iter().chain(&self.via) {
            peers::parse(peer)?;
        }
        let node = self.bind(context).await?;
        let server = match Server::start(node.clone()) {
            Ok(server) => server,
            Err(failure) => {
                node.shutdown().await;
                return Err(failure);
            }
        };
        let mut events = server.events();
        if let Err(failure) = self.connect(&node).await {
            node.shutdown().await;
            server.shutdown().await;
            return Err(failure);
        }
        let (lines, mut reader_gone) = printer();
        let narrator = Narrator { node: node.clone(), json: context.json, lines };
        narrator.ready(self.open).await;
        loop {
            tokio::select! {
                Some(event) = events.recv() => narrator.tell(&event).await,
                // What comes of it is told as an event, and logged.
                Some(()) = hangup.recv() => drop(node.reload().await),
                () = server.asked_down() => break,
                _ = signals.next() => break,
                _ = reader_gone.recv() => break,
            }
        }
        server.going_down();
        context.say("Going down: calls in flight are finished first; the same signal again ends at once.");
        let ending = async {
            let down = node.shutdown();
            tokio::pin!(down);
            // What happens while it ends is told too.
            loop {
                tokio::select! {
                    biased;
                    Some(event) = events.recv() => narrator.tell(&event).await,
                    () = &mut down => break,
                }
            }
            server.shutdown().await;
            while let Ok(event) = events.try_recv() {
                narrator.tell(&event).await;
            }
            narrator.end(reader_gone).await;
        };
        signals.or_exit(ending).await;
        Ok(())
    }

    async fn bind(&self, context: &Context) -> Result<Node, Failure> {
        let mut builder = Node::builder().home(context.home_path()?).open(self.open);
        if let Some(passphrase) = context.passphrase()? {
            builder = builder.passphrase(passphrase);
        }
        for address in &self.listen {
            builder = builder.listen(*address);
        }
        builder = match self.relay {
            Some(Relaying::Closed) => builder.relay(RelayMode::Closed),
            Some(Relaying::Open) => builder.relay(RelayMode::Open),
            None => builder,
        };
        for relay in &self.via {
            builder = builder.home_relay_at(peers::parse(relay)?);
        }
        builder.bind().await.map_err(unbound)
    }

    async fn connect(&self, node: &Node) -> Result<(), Failure> {
        for peer in &self.connect {
            let target = peers::resolve(node, peer).await?;
            let by_id = matches!(peers::parse(peer)?, PeerRef::Id(_));
            let relayed = !target.at.relays.is_empty() || !node.ticket().relays.is_empty();
            if by_id && target.at.addresses.is_empty() && !relayed {
                return Err(Failure::usage(format!("nothing is known of where {peer} is")).hint("use its ticket"));
            }
            node.hold_at(target.id, &target.at);
        }
        Ok(())
    }
}

/// A thread of its own writes to stdout: a reader that stalls must not stall the node. Says when the reader has gone.
fn printer() -> (mpsc::Sender<Vec<u8>>, mpsc::Receiver<()>) {
    let (lines, mut to_print) = mpsc::channel::<Vec<u8>>(LINES);
    let (gone, reader_gone) = mpsc::channel(1);
    std::thread::spawn(move || {
        while let Some(line) = to_print.blocking_recv() {
            if output::try_bytes(&line).is_err() {
                let _ = gone.blocking_send(());
                return;
            }
        }
        // Everything is printed; dropping this says so.
        drop(gone);
    });
    (lines, reader_gone)
}

/// Tells what happens, to programs or to people.
struct Narrator {
    node: Node,
    json: bool,
    lines: mpsc::Sender<Vec<u8>>,
}

impl Narrator {
    async fn ready(&self, open: bool) {
        let ticket = self.node.ticket().to_string();
        let event = EventLine::Ready { id: self.node.id(), listen: self.node.listening(), ticket };
        self.tell(&event).await;
        if open && !self.json {
            self.print("Open: anyone may connect and call everything this node serves, unless a rule denies it.");
        } else if open {
            tracing::warn!("open: anyone may connect and call everything this node serves, unless a rule denies it");
        }
    }

    async fn tell(&self, event: &EventLine) {
        if self.json {
            return self.send(voltmesh::local::line(event).to_vec());
        }
        let name = match event {
            EventLine::Connected { peer, .. }
            | EventLine::Path { peer, .. }
            | EventLine::Disconnected { peer, .. }
            | EventLine::Waiting { peer } => self.name(*peer).await,
            _ => String::new(),
        };
        if let Some(text) = text(event, &name) {
            self.print(&text);
        }
    }

    /// What its owner calls a peer, or the peer's id.
    async fn name(&self, peer: NodeId) -> String {
        let stored = self.node.stored_peers().await.unwrap_or_default();
        let name = stored.into_iter().find(|stored| stored.id == peer).and_then(|stored| stored.name);
        name.map_or_else(|| peer.to_string(), |name| output::escape_line(name.as_str()))
    }

    fn print(&self, text: &str) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let time = now.get(11..).unwrap_or_default();
        self.send(format!("{time}  {text}\n").into_bytes());
    }

    fn send(&self, line: Vec<u8>) {
        // Full or closed: there is nobody to tell.
        let _ = self.lines.try_send(line);
    }

    /// Waits until all is printed: the printer's end says so. Not for ever: a reader may have stalled.
    async fn end(self, mut printed: mpsc::Receiver<()>) {
        drop(self.lines);
        let _ = tokio::time::timeout(Duration::from_secs(1), printed.recv()).await;
    }
}

/// What happened, for people; `name` is what the peer is called that it is about. `None` for what this version does not know.
pub fn text(event: &EventLine, name: &str) -> Option<String> {
    Some(match event {
        EventLine::Ready { id, listen, ticket } => {
            let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
            format!("{id} is up at {}\nTicket for others: {ticket}", listen.join(", "))
        }
        EventLine::Connected { resumed, path, .. } => {
            let again = if *resumed { ", with what was in flight" } else { "" };
            format!("{name} connected ({path}{again})")
        }
        EventLine::Path { path, .. } => format!("{name} goes on, {path}"),
        EventLine::Disconnected { reason, .. } => {
            format!("{name} disconnected: {}", output::escape_line(reason))
        }
        EventLine::Service { name, online, .. } => {
            format!("service {name} is {}", if *online { "online" } else { "offline" })
        }
        EventLine::Request { peer, name, from, relayed } => {
            let name = if name.is_empty() { String::new() } else { format!(" (calls itself {})", output::escape_line(name)) };
            let from = if *relayed { format!("through a relay at {from}") } else { format!("at {from}") };
            format!("{peer}{name} {from} wants to connect: `volt requests approve {peer}` or `volt requests deny {peer}`")
        }
        EventLine::Waiting { .. } => format!("{name} asks its owner whether to let this node in"),
        EventLine::Config { error: Some(error), .. } => {
            format!("volt.toml cannot be used; what was in force before stays: {}", output::escape_line(error))
        }
        EventLine::Config { waiting, .. } => match waiting.as_deref().unwrap_or_default() {
            [] => "volt.toml was read again".to_owned(),
            waiting => format!("volt.toml was read again; in force after the next start only: {}", waiting.join(", ")),
        },
        EventLine::Missed { events } => format!("{events} events were not shown"),
        _ => return None,
    })
}
