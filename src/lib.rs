//! voltmesh: a peer-to-peer node over QUIC.
#![forbid(unsafe_code)]

pub mod id;
#[cfg(feature = "cli")]
pub mod local;
#[doc(hidden)]
pub mod net;
pub mod node;
pub mod policy;
pub mod proto;
pub mod service;
pub mod session;
#[doc(hidden)]
pub mod state;

pub use node::Node;
pub use service::{CallError, Context, Outcome, Receiver, Sender, Service};
pub use session::{Event, Session};
