//! `init` and `id`: who this node is. Both work on the files; `id` asks the node that runs, if one does, because it knows best
//! how it can be reached.

use std::fs::OpenOptions;
use std::io::{self, BufRead, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;

use clap::Args;
use serde_json::json;
use voltmesh::id::{Ticket, keyfile};
use voltmesh::local::{Failure, NodeStatus};
use voltmesh::node::config::{Config, DEFAULT_LISTEN};
use voltmesh::node::home::{Home, files};
use voltmesh::node::reachable;

use crate::client::Client;
use crate::context::Context;
use crate::door::unread;
use crate::output;

/// Make this node's identity, if there is none
///
/// Never overwrites anything. With --passphrase, VOLT_PASSPHRASE or --passphrase-file the key is sealed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt init\n  volt init --name kitchen --passphrase\n  volt --home /srv/volt init --json")]
pub struct Init {
    /// What the node calls itself, for display at its peers; kept in volt.toml
    #[arg(long)]
    name: Option<String>,
    /// Ask for a passphrase, to seal the key with
    #[arg(long)]
    passphrase: bool,
}

/// Who this node is, and the ticket by which others reach it
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  volt id\n  volt id --json | jq -r .ticket")]
pub struct Id {}

impl Init {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let home = Home::open(context.home_path()?)?;
        let path = home.file(files::IDENTITY);
        let known = path.exists();
        let passphrase = match context.passphrase()? {
            None if self.passphrase => Some(ask_passphrase(!known)?),
            given => given,
        };
        if let Some(name) = &self.name {
            keep_name(&home, name)?;
        }
        let config = Config::read(&home).map_err(Failure::local)?;
        let key = keyfile::load_or_create(&path, passphrase.as_deref()).map_err(unread)?;
        if context.json {
            output::json(&json!({ "id": key.id(), "name": config.name, "home": home.path() }));
        } else {
            let what = if known { "This node has an identity already" } else { "A new identity" };
            output::line(&format!("{what}: {}\nIt is kept in {}\nNext: `volt up`", key.id(), home.path().display()));
        }
        Ok(())
    }
}

impl Id {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let home = context.home()?;
        let (id, name, ticket, up) = match Client::find(&home).await? {
            Some(client) => {
                let status: NodeStatus = client.get("/v1/status").await?;
                (status.id, status.name, status.ticket, true)
            }
            None => {
                let (ticket, config) = would_be_reached(context, &home)?;
                (ticket.id, config.name, ticket.to_string(), false)
            }
        };
        if context.json {
            output::json(&json!({ "id": id, "name": name, "ticket": ticket }));
            return Ok(());
        }
        let name = name.map(|name| format!("name    {}\n", output::escape_line(&name))).unwrap_or_default();
        output::line(&format!("id      {id}\n{name}ticket  {ticket}"));
        if !up {
            context.say("The node is not running: the ticket is good once it is (`volt up`), with the addresses it has now.");
        }
        Ok(())
    }
}

/// The ticket of the node if it were up, and its configuration.
pub fn would_be_reached(context: &Context, home: &Home) -> Result<(Ticket, Config), Failure> {
    let passphrase = context.passphrase()?;
    let key = keyfile::load(&home.file(files::IDENTITY), passphrase.as_deref()).map_err(unread)?;
    let config = Config::read(home).map_err(Failure::local)?;
    let ticket = would_listen(home, &config)?.into_iter().fold(Ticket::new(key.id()), Ticket::with_address);
    Ok((ticket, config))
}

/// The addresses the node would be reached at if it were up.
fn would_listen(home: &Home, config: &Config) -> Result<Vec<SocketAddr>, Failure> {
    if !config.listen.is_empty() {
        let known = config.listen.iter().copied().filter(|address| address.port() != 0).collect::<Vec<_>>();
        return Ok(reachable(&known));
    }
    let port = home.port()?.unwrap_or(DEFAULT_LISTEN.port());
    Ok(reachable(&[SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]))
}

/// Writes the name into a volt.toml that is not there yet.
fn keep_name(home: &Home, name: &str) -> Result<(), Failure> {
    let config = Config { name: Some(name.to_owned()), ..Config::default() };
    config.check().map_err(Failure::usage)?;
    let path = home.file(files::CONFIG);
    let text = format!("# How this node behaves. What may stand here: `volt up --help`.\n\n{}", toml_name(name));
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let there = Config::read(home).map_err(Failure::local)?;
            if there.name.as_deref() == Some(name) {
                return Ok(());
            }
            Err(Failure::local(format!("{} is there already and is never overwritten", path.display()))
                .hint(format!("write `{}` into it", toml_name(name).trim())))
        }
        Err(error) => Err(Failure::local(format!("cannot write {}: {error}", path.display()))),
    }
}

/// A basic string of TOML is one of JSON, for text without control characters.
fn toml_name(name: &str) -> String {
    format!("name = {}\n", json!(name))
}

/// Reads a passphrase: without showing it, twice if it is a new one; from a pipe, one line of it.
fn ask_passphrase(new: bool) -> Result<String, Failure> {
    if !Context::is_interactive() {
        return read_line();
    }
    let first = ask("Passphrase: ")?;
    if new && ask("The same again: ")? != first {
        return Err(Failure::usage("the two passphrases differ").hint("run the command again"));
    }
    Ok(first)
}

fn ask(question: &str) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let failed = |error: rustix::io::Errno| Failure::local(format!("cannot ask for the passphrase: {error}"));
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let before = tcgetattr(&stdin).map_err(failed)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(failed)?;
    let line = read_line();
    tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(failed)?;
    let _ = writeln!(stderr);
    line
}

fn read_line() -> Result<String, Failure> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|error| Failure::local(format!("cannot read the passphrase: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
