#![doc = include_str!("../guide/local-api.md")]
//!
//! # This room
//! It gives other processes of the same user what a program has that holds a [`Node`](crate::Node): nothing more. It decides
//! nothing, keeps nothing, and listens on no network. What the command line needs without a running node (calls as a visitor,
//! rules in files) it takes from here too.

mod afar;
mod call;
mod failure;
mod http;
mod lines;
mod offers;
pub mod peers;
mod pieces;
pub mod rules;
mod serve;
mod streams;
pub mod trust;
pub mod tunnels;
mod types;
pub mod wires;

pub use call::{Replies, Requests, call};
pub use failure::{Cause, Failure};
pub use http::{Server, services_at, status};
pub use lines::{CallLine, LINE_BYTES, Lines, StatusLine, json, line, parse};
pub use offers::CALLS;
pub use peers::{Guests, Target};
pub use pieces::{PIECE_BYTES, Pieces, put_piece};
pub use types::{
    Answer, CallHead, ConnectRequest, Connected, EventLine, Invocation, NodeStatus, Offer, PeerLine, PeerRequest, Pong,
    ReloadLine, RuleAdded, RuleRequest, ServeLine, ServiceLine, ServicesRequest, SessionLine, WatchLine, verdict_text,
};
