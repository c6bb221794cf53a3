//! Brings what a peer exposes to a TCP port of this machine: a tunnel for each connection that comes. One task owns the listener and
//! its connections, and ends them when it ends.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::error::{ForwardError, TunnelBroken, TunnelError};
use super::events::{self, Carried, Counts, Report};
use super::splice::{Connection, Local};
use super::stream;
use super::targets::Targets;
use crate::proto::limits;
use crate::proto::tunnel::{Ask, check_name};
use crate::session::Session;

/// The system may have no room for another connection: then there is a pause before the next try.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections to a local port go to what a peer exposes, as long as this is kept, and as long as the session is one that its node
/// keeps. Dropped, they end.
///
/// ```no_run
/// # async fn example(session: voltmesh::Session) -> Result<(), Box<dyn std::error::Error>> {
/// let mut forward = session.forward("127.0.0.1:0".parse()?, "ssh").await?;
/// println!("ssh -p {} localhost", forward.local().port());
/// while let Some(happened) = forward.next().await {
///     println!("{happened:?}");
/// }
/// # Ok(()) }
/// ```
pub struct Forward {
    local: SocketAddr,
    name: String,
    events: broadcast::Receiver<Carried>,
    task: JoinHandle<()>,
}

impl Session {
    /// Listens at this address (port 0: any that is free), and takes each connection that comes to what the peer exposes under this
    /// name. The session need not be up: a connection waits 30 s for it. What is refused there is told by [`Forward::next`], and its
    /// connection reset; [`Session::may_tunnel`] asks beforehand. Cancel-safe.
    ///
    /// # Errors
    /// [`ForwardError`]: the name cannot be one, or nobody can listen there.
    pub async fn forward(&self, listen: SocketAddr, name: &str) -> Result<Forward, ForwardError> {
        check_name(name).map_err(ForwardError::Name)?;
        let targets = self.part::<Targets>().ok_or(ForwardError::Ended)?;
        // Bound where it is served: sockets belong to the runtime they were made on.
        let bound = targets.network().spawn(TcpListener::bind(listen)).await.map_err(|_| ForwardError::Ended)?;
        let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (local, listener) = bound.map_err(|source| ForwardError::Listen { address: listen, source })?;
        let (tell, events) = broadcast::channel(limits::TUNNEL_EVENTS);
        let serving = Serving { session: self.clone(), targets: targets.clone(), name: name.into(), tell };
        let task = targets.network().spawn(serving.run(listener));
        Ok(Forward { local, name: name.to_owned(), events, task })
    }
}

impl Forward {
    /// Where it listens, with the port that the system chose.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The name at the peer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What happens next to connections; `None` when the session is one that its node does not keep any more, and the forward has ended.
    /// Whoever does not ask misses what is more than [256](limits::TUNNEL_EVENTS) events ago, and holds up nobody. Cancel-safe.
    pub async fn next(&mut self) -> Option<Carried> {
        events::next(&mut self.events, Carried::Missed).await
    }

    /// Ends it and its connections, and waits until that is done.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward").field("local", &self.local).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What its task and those of its connections share.
#[derive(Clone)]
struct Serving {
    session: Session,
    targets: Arc<Targets>,
    name: Arc<str>,
    tell: broadcast::Sender<Carried>,
}

impl Serving {
    async fn run(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(limits::FORWARD_CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut gone = std::pin::pin!(self.session.changes().for_each(|()| std::future::ready(())));
        loop {
            tokio::select! {
                biased;
                () = &mut gone => break,
                Some(ended) = connections.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        tracing::error!("a connection of a forward panicked; this is a bug");
                    }
                }
                (stream, from, permit) = accept(&listener, &room) => {
                    connections.spawn(self.clone().connection(stream, from, permit));
                }
            }
        }
        connections.shutdown().await;
    }

    async fn connection(self, stream: TcpStream, from: SocketAddr, _permit: OwnedSemaphorePermit) {
        let connection = self.targets.number();
        // Not taken by the far side, it ends with a reset.
        let local = Local::Tcp(Connection::new(stream));
        let mut tunnel = match self.open().await {
            Ok(tunnel) => tunnel,
            Err(error) => {
                tracing::info!(name = %self.name, %error, "a connection was not taken by the far side");
                return drop(self.tell.send(Carried::Refused { connection, from, error }));
            }
        };
        let counts = Arc::<Counts>::default();
        let _ = self.tell.send(Carried::Began { connection, from });
        let report = Report::new(&counts, TunnelBroken::Withdrawn, |sent, received, end| {
            let _ = self.tell.send(Carried::Ended { connection, from, sent, received, end });
        });
        let end = local.splice(tunnel.far(), &counts).await;
        report.ended(end);
    }

    async fn open(&self) -> Result<stream::Tunnel, TunnelError> {
        let deadline = Instant::now() + limits::TUNNEL_OPEN;
        let ask = Ask::Open { name: self.name.to_string() };
        match timeout_at(deadline, stream::open(&self.session, &ask, Some(deadline))).await {
            Ok(opened) => opened,
            Err(_) => Err(TunnelError::Unanswered(format!("nothing came within {} s", limits::TUNNEL_OPEN.as_secs()))),
        }
    }
}

/// The next connection, when there is room for it. Cancel-safe.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = room.clone().acquire_owned().await.expect("this semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, from)) => return (stream, from, permit),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
