//! Where a node's network lives. QUIC is fast when everything that belongs to it runs on one thread: several small writes
//! then leave in one packet, where a work-stealing scheduler sends each by itself and loses two thirds of the throughput.
//! So a node started on a current-thread runtime lives there, and one started anywhere else gets a thread of its own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::turns::{Account, Turns};

/// The runtime a node's network tasks run on. Dropping the last clone of an own thread's stops that thread.
#[derive(Clone, Debug)]
pub struct Network {
    handle: Handle,
    turns: Turns,
    _thread: Option<Arc<Thread>>,
}

/// Turns that tasks get after the stop.
const LAST_TURNS: usize = 64;

#[derive(Debug)]
struct Thread {
    _stop: oneshot::Sender<()>,
}

impl Network {
    /// The caller's runtime if it has one thread, else a thread of our own.
    pub fn choose() -> io::Result<Self> {
        match Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::CurrentThread => Ok(Self::new(handle, None)),
            _ => Self::own_thread(),
        }
    }

    fn new(handle: Handle, thread: Option<Thread>) -> Self {
        Self { turns: Turns::new(handle.clone()), handle, _thread: thread.map(Arc::new) }
    }

    fn own_thread() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name("volt-network".into()).spawn(move || {
            runtime.block_on(async {
                let _ = stopped.await;
                // Whoever stops it has just closed links: that is still to be sent.
                for _ in 0..LAST_TURNS {
                    tokio::task::yield_now().await;
                }
            });
        })?;
        Ok(Self::new(handle, Some(Thread { _stop: stop })))
    }

    /// Runs a task there. Whoever starts it owns the handle.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(future)
    }

    /// Whose turn it is there.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// The runtime, for what must be made in its context.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// quinn's view of the network's runtime: whoever calls, drivers and timers belong to the network's thread.
#[derive(Debug)]
pub(super) struct Driver(pub(super) Handle);

impl quinn::Runtime for Driver {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _context = self.0.enter();
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        match Account::spawned() {
            Some(account) => drop(self.0.spawn(account.driving(future))),
            None => drop(self.0.spawn(future)),
        }
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _context = self.0.enter();
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn on_a_current_thread_runtime_the_network_lives_there() {
        let network = Network::choose().unwrap();
        let here = std::thread::current().id();
        let there = network.spawn(async { std::thread::current().id() }).await.unwrap();
        assert_eq!(here, there);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn on_any_other_runtime_it_gets_a_thread_of_its_own() {
        let network = Network::choose().unwrap();
        let name = network.spawn(async { std::thread::current().name().map(str::to_owned) }).await.unwrap();
        assert_eq!(name.as_deref(), Some("volt-network"));
    }
}
