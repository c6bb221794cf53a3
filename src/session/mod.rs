//! Sessions: the relation of two nodes, whatever path carries it. One owner task per peer joins paths to the session, watches
//! them, and dials again when they are lost. This room knows streams and who opened them; it does not know what a call is.

mod accept;
mod attached;
#[cfg(feature = "cli")]
mod commands;
mod control;
mod core;
mod detached;
mod event;
mod greet;
mod handle;
mod hearing;
mod held;
mod hub;
mod info;
mod ledger;
mod notice;
mod owner;
mod path;
mod peer;
mod porter;
mod reach;
mod restoring;
mod room;
mod slot;
mod stream;
mod tally;
mod tell;
mod upgrade;
mod via;
mod window;

pub(crate) use accept::{Acceptor, Serving};
pub use attached::Attached;
pub use core::{Calling, Core, LateAnswer, SMALL_BODY_BYTES, SessionEnd, Share};
pub use event::{DisconnectReason, Event, PathKind};
pub use handle::{Session, SessionState, WaitError};
pub(crate) use hub::{Hub, HubTasks, Own, WeakHub};
pub use info::{PeerInfo, SessionInfo};
pub use ledger::{Ledger, Limit};
pub(crate) use peer::Peer;
pub use peer::Unreached;
pub(crate) use porter::Porter;
pub use porter::Stranger;
pub use stream::{StreamError, StreamLife, StreamRecv, StreamSend};
pub(crate) use tell::TOLD_AT;
pub(crate) use via::Dialler;
pub use via::{Via, Where};
