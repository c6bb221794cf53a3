//! The log of a wire as machines: what is kept in memory, what each publisher has got stored, who has read how far. They hold bytes
//! and never look into them, except for where frames begin.

mod outbox;
mod publishers;
mod ring;
#[cfg(test)]
mod tests;

pub use outbox::{Fate, Nonsense, Outbox};
pub use publishers::{Known, Publishers};
pub use ring::{Append, Read, Ring, Segment, segments, skip_frames};
