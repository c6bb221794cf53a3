//! The network: endpoints, links and what proves who is at the other end. The only room that names quinn, rustls and rcgen.
//! Knows nothing of sessions or calls.

pub(crate) mod certificate;
mod endpoint;
pub mod ends;
mod link;
mod runtime;
#[doc(hidden)]
pub mod sim;
mod socket;
pub(crate) mod tls;
mod turns;
mod watch;

pub use endpoint::{BindError, Bounds, DialError, Endpoint, RestartKeys, Transport};
pub use link::{Circuit, CircuitError, Leg, LegStreams, Link, LostReason, OneMore, PathError, PathRecv, PathSend, Surroundings};
pub use runtime::Network;
pub use turns::{Account, InTurn, Turns};
pub use watch::{Change, Watch};
