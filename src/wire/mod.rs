//! Wires: named byte feeds that a node hosts, published to and subscribed to by any permitted peer. This room carries chunks
//! over the session's streams and keeps them; it knows nothing of calls, and decides nothing about who may: it asks.

mod committer;
mod door;
mod error;
mod feed;
mod intake;
mod log;
mod store;
mod wires;

pub(crate) use wires::Wires;
