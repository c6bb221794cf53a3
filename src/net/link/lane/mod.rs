//! Lanes: a circuit's path streams begin on a few sealed streams that all of them share, since a relayed stream for each small call costs far
//! more than the call. What becomes large moves to a stream of its own, at any byte, each direction by itself.
//!
//! Here is one lane as one of its ends sees it: what its frames say ([`frame`]), what that means for each path stream ([`table`]), what is to
//! be sent ([`out`]). It sends nothing itself, and waits for nothing.

mod frame;
mod out;
mod table;

pub use frame::Head;
pub use table::{Halted, Read, Table, Written};

/// What the other end says cannot be. The circuit is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// Flags of a frame that say what nobody says.
    #[error("a frame has the flags {0:#x}")]
    Flags(u8),
    /// A frame with none of the bytes it announces, or more than may be.
    #[error("a frame has {0} bytes")]
    Length(usize),
    /// Something is not whole, or not what it should be.
    #[error("a frame is cut off")]
    Cut,
    /// A relayed stream is of no kind we know.
    #[error("a stream is of the kind {0}")]
    Kind(u8),
    /// A frame of a path stream that was not opened.
    #[error("stream {0} of a lane was never opened")]
    NeverOpened(u64),
    /// Too many path streams are live.
    #[error("too many streams are live on a lane")]
    TooMany,
    /// More on the lane than one direction of a path stream may send there.
    #[error("stream {0} of a lane did not move off it in time")]
    NotMoved(u64),
    /// Something comes after an end.
    #[error("stream {0} of a lane goes on after its end")]
    AfterEnd(u64),
    /// It was said before.
    #[error("something is said twice of stream {0} of a lane")]
    Twice(u64),
    /// A path stream ended on the lane, or has less than was on the lane, where it came from its first byte on.
    #[error("stream {0} of a lane is not the same where it moved to")]
    Apart(u64),
    /// The lane ended before its streams.
    #[error("a lane was cut off")]
    CutOff,
    /// Too many lanes, or one that was there before.
    #[error("lane {0} cannot be")]
    Lane(u64),
}

#[cfg(test)]
mod tests;
