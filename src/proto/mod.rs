//! Every byte on the network: messages, codec, framing, limits, status and close codes. This room does no input or output and
//! holds no state of a session; writing and reading of one thing stand in one file.

pub mod body;
pub mod call;
pub mod circuit;
pub mod close;
pub mod codec;
pub mod control;
pub mod directory;
pub mod duration;
pub mod escape;
pub mod frame;
pub mod limits;
pub mod status;
pub mod stream;
pub mod tunnel;
pub mod varint;
pub mod wire;

#[cfg(test)]
mod tests;
