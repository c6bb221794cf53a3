//! voltmesh: a peer-to-peer node over QUIC.
#![forbid(unsafe_code)]

pub mod id;
pub mod net;
pub mod policy;
pub mod proto;
pub mod state;
