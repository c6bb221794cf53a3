//! A node that can be stopped like a machine that loses power: it lives in a runtime of its own, and when that is dropped
//! nothing says goodbye. What it needs to come back as the same node is in a home made for it, which goes when this goes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use voltmesh::Node;
use voltmesh::id::{NodeId, Ticket};

use super::Failure;
use super::stage::{ANYWHERE, Seen, allow, service};

/// The node, as others know it. It runs or it does not.
pub struct HardNode {
    /// How to reach it.
    pub ticket: Ticket,
    /// What its handlers let us know, since it was started last.
    pub seen: mpsc::UnboundedReceiver<Seen>,
    home: TemporaryHome,
    caller: NodeId,
    running: Option<Running>,
}

/// Dropped, it ends in the hard way, also in the midst of its goodbyes.
struct Running {
    /// Asks it to drain, to say goodbye, and to let us know.
    politely: Option<oneshot::Sender<oneshot::Sender<()>>>,
    alive: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a started node lets us know: how to reach it, or why it did not start.
type Started = Result<Ticket, String>;

impl HardNode {
    /// Starts it; that node may call it.
    pub async fn start(caller: NodeId) -> Result<Self, Failure> {
        let home = TemporaryHome::new()?;
        let (running, ticket, seen) = Running::start(home.path(), ANYWHERE, caller).await?;
        Ok(Self { ticket, seen, home, caller, running: Some(running) })
    }

    /// Stops it without a word to anybody.
    pub fn stop_hard(&mut self) {
        self.running = None;
    }

    /// Starts it again: the same key, the same port.
    pub async fn start_again(&mut self) -> Result<(), Failure> {
        let port = self.ticket.addresses.first().copied().ok_or("it was never there")?;
        let (running, ticket, seen) = Running::start(self.home.path(), port, self.caller).await?;
        if ticket != self.ticket {
            return Err(format!("it came back as {ticket}, not as {}", self.ticket).into());
        }
        (self.running, self.seen) = (Some(running), seen);
        Ok(())
    }

    /// Ends it in good order.
    pub async fn shutdown(&mut self) -> Result<(), Failure> {
        let mut running = self.running.take().ok_or("it does not run")?;
        let (done, ended) = oneshot::channel();
        let politely = running.politely.take().ok_or("it goes down already")?;
        // If it has ended before, nobody is left to say that it is done.
        let _ = politely.send(done);
        Ok(ended.await?)
    }
}

impl Running {
    async fn start(
        home: &Path,
        at: SocketAddr,
        caller: NodeId,
    ) -> Result<(Self, Ticket, mpsc::UnboundedReceiver<Seen>), Failure> {
        let (alive, stopped) = oneshot::channel();
        let (politely, asked) = oneshot::channel();
        let (started, starts) = oneshot::channel::<Started>();
        let (tell, seen) = mpsc::unbounded_channel();
        let home = home.to_owned();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("demo-c".into()).spawn(move || {
            let node = runtime.block_on(bind(&home, at, caller, tell));
            let _ = started.send(node.as_ref().map(Node::ticket).map_err(ToString::to_string));
            if let Ok(node) = node {
                runtime.block_on(run(&node, asked, stopped));
                // Before the node, which could still say something.
                drop(runtime);
            }
        })?;
        let running = Self { politely: Some(politely), alive: Some(alive), thread: Some(thread) };
        let ticket = starts.await??;
        Ok((running, ticket, seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            // The home is free, and may go, only when the thread is over. It ends at once; one that panicked has ended too.
            let _ = thread.join();
        }
    }
}

async fn bind(home: &Path, at: SocketAddr, caller: NodeId, tell: mpsc::UnboundedSender<Seen>) -> Result<Node, Failure> {
    let builder = Node::builder().home(home).name("c").listen(at).rule(allow(caller, "demo/*")?);
    Ok(builder.service(service(tell)).bind().await?)
}

/// Keeps the node running until it is asked to end, in the one way or the other.
async fn run(node: &Node, asked: oneshot::Receiver<oneshot::Sender<()>>, stopped: oneshot::Receiver<()>) {
    let politely = async {
        let Ok(done) = asked.await else { return std::future::pending().await };
        node.shutdown().await;
        let _ = done.send(());
    };
    tokio::select! {
        biased;
        _ = stopped => {}
        () = politely => {}
    }
}

/// A directory of its own, gone when this is.
struct TemporaryHome(PathBuf);

impl TemporaryHome {
    fn new() -> Result<Self, Failure> {
        // A fresh key's id is a name nobody can have taken, nor guess.
        let name = format!("volt-demo-{}", voltmesh::id::SecretKey::generate().id().short());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        let made = Self(path);
        std::fs::set_permissions(&made.0, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(made)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryHome {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
