//! The network room.

#[doc(hidden)]
pub mod sim;
