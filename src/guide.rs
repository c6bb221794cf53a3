//! Pages to read: how the whole works, what goes over the network, what is defended. They hold no code.

#[doc = include_str!("guide/architecture.md")]
pub mod architecture {}

#[doc = include_str!("guide/protocol.md")]
pub mod protocol {}

#[doc = include_str!("guide/security.md")]
pub mod security {}
