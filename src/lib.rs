//! voltmesh: a peer-to-peer node over QUIC.
#![forbid(unsafe_code)]

pub mod id;
pub mod node;
pub mod policy;
pub mod proto;
