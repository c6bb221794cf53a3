//! The machines that hold everything hard about sessions: time, several events at once, two sides. Each takes inputs and the
//! present time, and returns what is to be done. None has a clock, a socket, a task or an await, and none draws a random number that
//! was not handed in; so each is tested in milliseconds, over simulated days.
//!
//! Time is `std::time::Instant`, from whatever clock the caller lives by; `tokio::time::Instant::now().into_std()` follows
//! tokio's paused time in tests.

pub mod admission;
pub mod backoff;
pub mod budget;
pub mod directory;
pub mod id_map;
pub mod ids;
pub mod liveness;
pub mod pick;
pub mod prefix;
pub mod quota;
pub mod rate;
pub mod replay;
pub mod requests;
pub mod roster;
pub mod streams;
pub mod unread;
pub mod wire;

#[cfg(test)]
mod tests;
