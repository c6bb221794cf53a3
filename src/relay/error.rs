//! Why a circuit did not come about, for whoever wanted it.

use crate::net::CircuitError;
use crate::session::WaitError;

/// Why there is no circuit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// No session with the first relay.
    #[error("the relay is not reached: {0}")]
    Relay(#[from] WaitError),
    /// The relay is reached through another one, and circuits need a link.
    #[error("the relay itself is reached only through a relay")]
    NoLink,
    /// The route is too long, or names a node twice, or this one.
    #[error("the route is too long, or goes in a circle")]
    Route,
    /// The circuit failed.
    #[error(transparent)]
    Circuit(#[from] CircuitError),
    /// The node goes down.
    #[error("the node goes down")]
    Down,
}
