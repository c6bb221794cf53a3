//! `volt`: the command line of a node. It reads arguments, talks to the node that runs on the home (or is it, or visits as
//! itself), and prints what came of it. It uses the library's public API and decides nothing itself.

mod bench;
mod call;
mod client;
mod connect;
mod context;
mod demo;
mod door;
mod events;
mod far;
mod identity;
mod invite;
mod journal;
mod output;
mod ping;
mod policy;
mod program;
mod requests;
mod revoke;
mod serve;
mod services;
mod signals;
mod status;
mod tunnel;
mod up;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use voltmesh::local::{Failure, peers};

use context::Context;

/// A peer-to-peer node over QUIC: sessions that outlive their paths, calls in both directions, one key per node.
#[derive(Debug, Parser)]
#[command(name = "volt", version, after_help = EXAMPLES, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  volt init --name kitchen          make an identity
  volt up                           run the node; the ticket it prints is how others reach it
  volt connect volt1… --as bob      hold a session with somebody, by ticket, under a name
  volt requests                     who wants to connect here, and waits for your answer
  volt call bob greeter/hello '\"me\"'  call a function there
  volt serve greeter/hello --exec 'jq .'   serve one here
  volt expose ssh 127.0.0.1:22      let others reach a TCP target by name
  volt forward 2222 bob ssh         bring one of theirs to a local port
  volt --on bob status              administer another node, as far as it lets us

Exit codes: 0 done; 1 failed here; 2 bad arguments; 3 the far side answered with an error;
4 not reached, too late, or outcome unknown; 5 refused by identity or policy; 130 interrupted.";

/// What every command understands.
#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// The directory the node keeps everything in [default: the platform's data directory]
    #[arg(long, global = true, env = "VOLT_HOME", value_name = "DIR", hide_env_values = true)]
    home: Option<PathBuf>,
    /// Results as JSON, one per line; errors too
    #[arg(long, global = true)]
    json: bool,
    /// Say more on stderr; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Have the node of this peer do it, as far as its policy lets this one administer it: an id, a ticket or a name
    #[arg(long, global = true, value_name = "PEER")]
    on: Option<String>,
    /// Read the key's passphrase from the first line of this file (or set VOLT_PASSPHRASE)
    #[arg(long, global = true, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(identity::Init),
    Id(identity::Id),
    Up(up::Up),
    Down(status::Down),
    Reload(status::Reload),
    Status(status::Status),
    Sessions(status::Sessions),
    Peers(status::Peers),
    Events(events::Events),
    Connect(connect::Connect),
    Disconnect(connect::Disconnect),
    Call(call::CallArgs),
    Serve(serve::Serve),
    Services(services::Services),
    Ping(ping::Ping),
    #[command(subcommand)]
    Wire(wire::Wire),
    Expose(tunnel::Expose),
    Forward(tunnel::Forward),
    Invite(invite::Invite),
    Join(invite::Join),
    Requests(requests::Requests),
    #[command(subcommand)]
    Policy(policy::Policy),
    Revoke(revoke::Revoke),
    Journal(journal::Journal),
    Bench(bench::Bench),
    /// Serve a measurement
    #[command(name = bench::SERVER_COMMAND, hide = true)]
    BenchServer(bench::BenchServer),
    /// Show it all on one machine: three nodes, step by step, with timings
    #[command(after_help = "Example:\n  volt demo          takes about five seconds, and keeps nothing")]
    Demo,
    /// Print the completion script of a shell
    #[command(after_help = "Example:\n  volt completions bash > ~/.local/share/bash-completion/completions/volt")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    log(cli.global.verbose, matches!(cli.command, Command::Demo));
    let context = Context::new(cli.global);
    // The fast layout: the node lives on the one thread there is.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return context.failed(&Failure::local(format!("cannot start: {error}"))),
    };
    let done = runtime.block_on(async {
        let done = run(&context, cli.command).await;
        context.close().await;
        done
    });
    // A thread that still reads stdin would hold us up.
    runtime.shutdown_background();
    done.unwrap_or_else(|failure| context.failed(&failure))
}

impl Command {
    /// What another node cannot be asked to do, if it is that: `up`, `init`, ….
    fn only_here(&self) -> Option<&'static str> {
        match self {
            Self::Init(_) => Some("init"),
            Self::Join(_) => Some("join"),
            Self::Id(_) => Some("id"),
            Self::Up(_) => Some("up"),
            Self::Journal(_) => Some("journal"),
            Self::Bench(_) | Self::BenchServer(_) => Some("bench"),
            Self::Demo => Some("demo"),
            Self::Completions { .. } => Some("completions"),
            _ => None,
        }
    }
}

async fn run(context: &Context, command: Command) -> Result<ExitCode, Failure> {
    if let Some(peer) = &context.on {
        if let Some(name) = command.only_here() {
            let failure = Failure::usage(format!("`volt {name}` is for this machine: another node cannot be asked for it"));
            return Err(failure.hint("leave --on out"));
        }
        peers::parse(peer)?;
    }
    match command {
        Command::Init(command) => command.run(context).await?,
        Command::Id(command) => command.run(context).await?,
        Command::Up(command) => command.run(context).await?,
        Command::Down(command) => command.run(context).await?,
        Command::Reload(command) => command.run(context).await?,
        Command::Status(command) => command.run(context).await?,
        Command::Sessions(command) => command.run(context).await?,
        Command::Peers(command) => command.run(context).await?,
        Command::Events(command) => command.run(context).await?,
        Command::Connect(command) => command.run(context).await?,
        Command::Disconnect(command) => command.run(context).await?,
        Command::Call(command) => return command.run(context).await,
        Command::Serve(command) => command.run(context).await?,
        Command::Services(command) => command.run(context).await?,
        Command::Ping(command) => command.run(context).await?,
        Command::Wire(command) => command.run(context).await?,
        Command::Expose(command) => command.run(context).await?,
        Command::Forward(command) => command.run(context).await?,
        Command::Invite(command) => command.run(context).await?,
        Command::Join(command) => command.run(context).await?,
        Command::Requests(command) => command.run(context).await?,
        Command::Policy(command) => command.run(context).await?,
        Command::Revoke(command) => command.run(context).await?,
        Command::Journal(command) => command.run(context).await?,
        Command::Bench(command) => command.run(context)?,
        Command::BenchServer(command) => command.run()?,
        Command::Demo => match demo::run(context.json, &mut anstream::stdout()).await {
            // Nobody watches any more.
            Err(demo::DemoError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            done => done.map_err(|error| Failure::local(error.to_string()))?,
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "volt", &mut script);
            output::bytes(&script);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What clap has to say: help and version on stdout, everything else is the user's mistake.
fn unparsed(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if error.use_stderr() && json {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        output::failure(true, &Failure::usage(message).hint("`--help` shows what can be given"));
    } else {
        // Fails when nobody reads it; then nobody misses it.
        let _ = error.print();
    }
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// `staged`: what goes wrong is part of the show, and told there.
fn log(verbose: u8, staged: bool) {
    let level = match verbose {
        0 if staged => "off",
        0 => "error,voltmesh=warn",
        1 => "warn,voltmesh=info,volt=info",
        _ => "info,voltmesh=debug,volt=debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("VOLT_LOG").unwrap_or_else(|_| level.into());
    let ansi = output::colours(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_make_sense_to_clap() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_people_see_has_an_example() {
        let mut command = Cli::command();
        command.build();
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("volt "), "{}", command.get_name());
        }
    }
}
