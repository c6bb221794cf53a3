//! Wires: named byte feeds that a node hosts, published to and subscribed to by any permitted peer. This room carries chunks
//! over the session's streams and keeps them; it knows nothing of calls, and decides nothing about who may: it asks.

mod chunk;
mod committer;
mod courier;
mod door;
mod error;
mod feed;
mod handle;
mod intake;
mod log;
mod publisher;
mod store;
mod stream;
mod subscription;
#[cfg(test)]
mod tests;
mod wires;

pub use error::{PublishError, SubscribeError, WireError};
pub use handle::{Created, Wire};
pub use publisher::{Pending, Publisher, Receipt};
pub use store::StoreError as WireFileError;
pub use subscription::{Delivery, Subscription};
pub(crate) use wires::{Bounds as WireBounds, Wires};

pub use crate::proto::wire::{Chunk, Cursor, CursorError, From, Options, PublisherId, Slow, WireInfo};
