//! SIGTERM and SIGINT: the first asks to end in good order, a second one ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use voltmesh::local::Failure;

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::local(format!("cannot listen for signals: {error}")))
}

/// Signals that end a command.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on signals come here and kill nobody.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The next signal, as the exit code that a shell knows it by: 128 and its number. Cancel-safe.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }

    /// SIGHUP, from now on: it kills nobody either.
    pub fn hangup() -> Result<Signal, Failure> {
        listen(SignalKind::hangup())
    }

    /// Waits for this; a signal that comes meanwhile ends the process at once.
    pub async fn or_exit<T>(&mut self, last: impl Future<Output = T>) -> T {
        tokio::select! {
            done = last => done,
            code = self.next() => {
                crate::program::kill_all();
                std::process::exit(code.into())
            }
        }
    }
}
