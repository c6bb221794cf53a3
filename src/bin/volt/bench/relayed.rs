//! Circuits, measured as a program that uses this crate has them: a server behind its home relay, and a client that goes by the relays it
//! names and by no other way. What goes over them is sealed between the two ends. Public API only.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use voltmesh::Node;
use voltmesh::id::{NodeId, Ticket};
use voltmesh::node::config::{Config, Limits, RelayMode};

use super::process::ServerProcess;
use super::volt::{self, Failure, PATIENCE};
use super::{BenchError, Figures, Metric, Side, Workload, report};

/// The name by which its server is started.
pub const NAME: &str = "volt-behind-relay";
/// The name by which a relay is started.
pub const RELAY: &str = "volt-relay";

/// Nodes with relays between them, as a side.
pub struct Relayed {
    /// The binary that serves, and that relays.
    pub program: PathBuf,
}

impl Side for Relayed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, workload: &Workload, time: Duration) -> Result<Figures, BenchError> {
        let chain = Chain::start(&self.program, workload.relays())?;
        let failed = |why: Failure| BenchError::Failed { side: NAME, work: report::title(workload), why: why.to_string() };
        volt::block_on(async { work(workload, time, &chain.route()?, chain.server()?.id).await }).map_err(failed)
    }
}

/// The processes of one run.
struct Chain {
    /// In the order in which the client comes through them.
    relays: Vec<ServerProcess>,
    server: ServerProcess,
}

impl Chain {
    /// From the last relay, which nothing is before, to the first and to the server, which both know another one.
    fn start(program: &Path, relays: usize) -> Result<Self, BenchError> {
        let last = ServerProcess::start(program, RELAY)?;
        let server = ServerProcess::start_beside(program, NAME, last.at())?;
        let mut relays = ServerProcess::start_chain(program, RELAY, relays.saturating_sub(1), last.at())?;
        relays.push(last);
        Ok(Self { relays, server })
    }

    fn route(&self) -> Result<Vec<Ticket>, Failure> {
        self.relays.iter().map(|relay| Ok(relay.at().parse()?)).collect()
    }

    fn server(&self) -> Result<Ticket, Failure> {
        Ok(self.server.at().parse()?)
    }
}

/// A relay, as [`volt::serve`]; with a session to the relay after it, if there is one.
pub fn relay(next: Option<&str>, say: impl Write + Send + 'static, asked: impl Read + Send + 'static) -> Result<(), BenchError> {
    let next = next.map(str::to_owned);
    volt::serve_with(say, asked, async {
        let node = node_that_relays().await?;
        if let Some(next) = next {
            node.connect(&next.parse()?).await?;
        }
        Ok(node)
    })
}

/// The server, as [`volt::serve`], once its home relay has it.
pub fn serve(relay: &str, say: impl Write + Send + 'static, asked: impl Read + Send + 'static) -> Result<(), BenchError> {
    let relay = relay.to_owned();
    volt::serve_with(say, asked, async {
        let relay: Ticket = relay.parse()?;
        let node = volt::for_anyone(Node::builder().home_relay(relay.clone())).bind().await?;
        node.connect(&relay).await?;
        Ok(node)
    })
}

/// A node that carries circuits for anyone. Who is known to nobody has a rate that is no measure of anything, so here it has none, as
/// those have who are known.
async fn node_that_relays() -> Result<Node, Failure> {
    let limits = Limits { relay_guest_bytes_per_second: 0, ..Limits::default() };
    let builder = Node::builder().config(Config { limits, ..Config::default() }).listen((Ipv4Addr::LOCALHOST, 0).into());
    Ok(builder.open(true).relay(RelayMode::Open).bind().await?)
}

async fn work(workload: &Workload, time: Duration, route: &[Ticket], to: NodeId) -> Result<Figures, Failure> {
    let node = volt::node(true).await?;
    let session = node.connect_via(route, to, PATIENCE).await?;
    match *workload {
        Workload::RelayedCalls { body, in_flight, .. } => volt::calls(session, body, in_flight, time).await,
        Workload::RelayedBulk { bytes, .. } => Ok(vec![(Metric::MbPerS, volt::transfer(session, bytes).await?)]),
        _ => Err("this is no work over relays".into()),
    }
}

#[cfg(test)]
mod tests {
    use voltmesh::session::PathKind;

    use super::super::process;
    use super::*;

    #[test]
    fn each_workload_gives_figures_over_one_relay_and_over_two() {
        let (last, last_end, last_serving) = process::in_here(|say, asked| relay(None, say, asked));
        let (next, home) = (last.clone(), last.clone());
        let (first, first_end, first_serving) = process::in_here(move |say, asked| relay(Some(&next), say, asked));
        let (server, end, serving) = process::in_here(move |say, asked| serve(&home, say, asked));
        let (first, last, server): (Ticket, Ticket, Ticket) =
            (first.parse().unwrap(), last.parse().unwrap(), server.parse().unwrap());
        assert_eq!(server.relays.iter().map(|relay| relay.id).collect::<Vec<_>>(), [last.id]);
        for route in [vec![last.clone()], vec![first, last]] {
            let relays = route.len();
            let workloads = [
                Workload::RelayedCalls { relays, body: 64, in_flight: 1 },
                Workload::RelayedCalls { relays, body: 64, in_flight: 8 },
                Workload::RelayedBulk { relays, bytes: 4 << 20 },
            ];
            for workload in workloads {
                let figures = volt::block_on(work(&workload, Duration::from_millis(50), &route, server.id)).unwrap();
                assert!(figures.iter().all(|(_, figure)| *figure > 0.0), "{workload:?}: {figures:?}");
            }
            volt::block_on(async {
                let node = volt::node(true).await?;
                let session = node.connect_via(&route, server.id, PATIENCE).await?;
                assert_eq!(session.path(), Some(PathKind::Relayed(route[0].id)));
                Ok(())
            })
            .unwrap();
        }
        drop((end, first_end, last_end));
        for served in [serving, first_serving, last_serving] {
            served.join().unwrap().unwrap();
        }
    }
}
