//! quinn's view of time and tasks in the simulation: tokio's, which tests pause. It never wraps a real socket.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// A `quinn::Runtime` whose clock and timers follow tokio's paused time. Tasks go to the tokio runtime it is used in.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimRuntime;

impl quinn::Runtime for SimRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    /// Always an error: paused time and a real socket do not go together.
    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the simulated network has no real sockets: use SimHost::socket"))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
