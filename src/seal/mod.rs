//! Sealed streams: what two ends say to each other through relays that carry it and cannot read it, change it, or pass one part of it
//! off as another.
//!
//! The two ends of a circuit have run TLS 1.3 with each other and each has checked the other's key. From that handshake's exporter every
//! stream gets a key of its own for each direction, made for exactly that place ([`Place`]): both ids, who began the circuit, the circuit, the
//! stream's number and the direction. What is said goes in records ([`Sealer`], [`Opener`]) whose nonces are their numbers and whether
//! they are the last: the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance", 2015). Stream numbers are accepted once ([`Numbers`]).
//!
//! So whoever carries the bytes can end a stream, and nothing else: a record that is changed, left out, repeated, moved, sent back, or put into another stream,
//! circuit or direction does not verify; nothing of it is released, and nothing after it is looked at. An end without a last record is not one.
//!
//! This room knows no network, no TLS library and no sessions; it has bytes, keys and numbers.

mod key;
mod numbers;
mod record;

pub use key::{Circuit, CircuitId, Direction, ExportError, Exporter, Place, StreamKey};
pub use numbers::{NumberError, Numbers};
pub use record::{HEAD_BYTES, OpenError, Opened, Opener, PLAIN_BYTES, RECORDS, SealError, Sealer, TAG_BYTES};
