//! Circuits, measured as a program that uses this crate has them: a server behind its home relay, and a client that goes by the relays it
//! names and by no other way. What goes over them is sealed between the two ends. Public API only.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use voltmesh::id::{NodeId, Ticket};
use voltmesh::{Node, Session};

use super::process::ServerProcess;
use super::volt::{self, Failure};
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
        let node = node_behind(&relay).await?;
        node.connect(&relay).await?;
        Ok(node)
    })
}

/// A node that carries circuits for anyone.
async fn node_that_relays() -> Result<Node, Failure> {
    Err(NOT_YET.into())
}

/// A node that anyone may call, by way of this relay.
async fn node_behind(_relay: &Ticket) -> Result<Node, Failure> {
    Err(NOT_YET.into())
}

/// A session over a circuit through these relays.
async fn connect(_node: &Node, _route: &[Ticket], _to: NodeId) -> Result<Session, Failure> {
    Err(NOT_YET.into())
}

const NOT_YET: &str = "circuits are not there yet";

async fn work(workload: &Workload, time: Duration, route: &[Ticket], to: NodeId) -> Result<Figures, Failure> {
    let node = volt::node(true).await?;
    let session = connect(&node, route, to).await?;
    match *workload {
        Workload::RelayedCalls { body, in_flight, .. } => volt::calls(session, body, in_flight, time).await,
        Workload::RelayedBulk { bytes, .. } => Ok(vec![(Metric::MbPerS, volt::transfer(session, bytes).await?)]),
        _ => Err("this is no work over relays".into()),
    }
}
