//! Whole nodes with real QUIC on a simulated network, under paused time: an hour passes in a moment, and every fault can be had.
//!
//! Every run draws new seeds and prints them; `VOLT_SEED=n` repeats a failure. `VOLT_LONG=1` runs the thousand rounds that the
//! short form takes samples of.

mod alive;
mod crossing;
mod partitions;
mod presence;
mod refusals;
mod relays;
mod resume;
mod slow;
mod support;
mod swarm;
mod traffic;
mod wires;
