//! voltmesh is a peer-to-peer node over QUIC. Two nodes hold a **session**, and over it each calls functions of the other. A
//! node is its key: there is no account, no authority and no server in the middle. Paths come and go; the session stays, and is
//! dialled again by itself.
//!
//! ```no_run
//! # async fn example(ticket: voltmesh::id::Ticket) -> Result<(), Box<dyn std::error::Error>> {
//! let node = voltmesh::Node::builder().home("/var/lib/volt").bind().await?;
//! let session = node.connect(ticket).await?;
//! let greeting: String = session.call("greeter/hello", "world").await?;
//! # Ok(()) }
//! ```
//!
//! # The other side
//!
//! A [`Service`] is a name and functions. Who may call them is a matter of [policy], and by default nobody may: here one
//! rule lets everyone say hello and do nothing else.
//!
//! ```
//! use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
//! use voltmesh::{Node, Service};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let greeter = Service::new("greeter").unary("hello", |_cx, name: String| async move { Ok(format!("hello {name}")) });
//! let greet = Rule::new(Effect::Permit, Subject::Anyone, Action::Call, "greeter/*".parse()?, Source::Config)?;
//! let here = Node::builder().listen("127.0.0.1:0".parse()?).service(greeter).rule(greet).bind().await?;
//!
//! let there = Node::builder().listen("127.0.0.1:0".parse()?).bind().await?;
//! let session = there.connect(here.ticket()).await?;
//! let greeting: String = session.call("greeter/hello", "world").await?;
//! assert_eq!(greeting, "hello world");
//! # here.shutdown().await;
//! # there.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # Words
//!
//! * [`Node`]: one running voltmesh. It listens and dials, on one UDP port, and is both server and client. With a
//!   [home](node::Builder::home) it keeps its key, its peers and its rules there; without one it is a new node each time.
//! * [`NodeId`](id::NodeId): the Ed25519 public key of a node, written `did:key:z6Mk…`. Whoever is at the other end of a session has
//!   proved to hold its key.
//! * [`Ticket`](id::Ticket): one line of text that says how to reach a node: its id and its addresses.
//! * [`Session`]: the relation of two nodes. [`Node::connect`] makes one and keeps it: when its path is lost the node dials again, at
//!   once and ever more rarely, and [`Event::Connected`] and [`Event::Disconnected`] alternate. The handle stays good all
//!   the while.
//! * [`Service`] and [calls](service::Call): named functions of four shapes (unary, client stream, server stream, both), called from
//!   either side of a session. Bodies are bincode, JSON or raw bytes, as the caller likes; the handler is the same. Dropping a call
//!   cancels it, down to the handler; deadlines travel along.
//! * [`Directory`](service::Directory): what is registered at a node, by itself and by its peers, and who of them is there. A service
//!   [registered](Session::register) with a peer is online as long as a path carries that session; others
//!   [discover](Session::discover) and [watch](Session::watch) it, and call it by its name through
//!   [`Providers`](service::Providers).
//! * [`Wire`](wire::Wire): a named feed of chunks, hosted by a node, in memory or on disk. Whoever may publishes and subscribes; both go on
//!   over any number of sessions, and what is lost is told.
//! * [`Tunnel`](tunnel::Tunnel): a TCP connection over the session. What a node [exposes](Node::expose) by name is reached by peers that may,
//!   from their programs or through a [local port](Session::forward).
//! * [`Outcome`]: what became of a call that failed. [`CallError::outcome`] tells *answered*, *not sent* (safe to make again) and
//!   *unknown* (the other side may have acted on it).
//! * [`Policy`](policy::Policy): who may do what. What no rule permits is denied; a deny always wins.
//! * [`Journal`](journal::Journal): what a node with a home decided and was asked for, written down; never what was said.
//!
//! # What this version does not do
//!
//! It does not punch through NATs: two nodes of which neither can be dialled speak through a relay. Sessions outlive their paths, not
//! their processes: when one of the two nodes is restarted, calls in flight end, each with its outcome.
//!
//! # Where to read on
//!
//! * [`guide::architecture`]: the way of a message through the code, the rooms of the code and what is absent from each.
//! * [`guide::protocol`]: every message byte by byte.
//! * [`guide::security`]: what is defended, what is not, and what a stranger costs.
//! * [`node::config`]: what can be configured, in code and in `volt.toml`; [`proto::limits`]: every bound.
//! * The `volt` command: `volt --help`, and the README for a first walk. The module `local`, with the feature `cli`: the HTTP API behind
//!   it.
//!
//! # Features and platforms
//!
//! * `cli` (on by default): the `volt` command and the local HTTP API. Without it this is the library alone:
//!   `default-features = false`.
//!
//! Linux and macOS. Any tokio runtime will do: on a current-thread runtime the node lives there, on any other its network gets
//! a thread of its own ([why](guide::architecture#threads)).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod guide;
pub mod id;
pub mod journal;
#[cfg(feature = "cli")]
pub mod local;
#[doc(hidden)]
pub mod net;
pub mod node;
pub mod policy;
pub mod proto;
pub(crate) mod relay;
#[doc(hidden)]
pub mod seal;
pub mod service;
pub mod session;
#[doc(hidden)]
pub mod state;
pub mod tunnel;
pub mod wire;

pub use node::Node;
pub use service::{CallError, Context, Outcome, Receiver, Sender, Service};
pub use session::{Event, Session};

/// The code of the README is compiled and run like any other.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
