//! Tunnels: TCP connections over the session's streams. A node exposes targets by name, and brings those of its peers to ports of its
//! own. A tunnel is one stream, so it survives the loss of paths and ends with its session. This room moves bytes and looks at none;
//! it decides nothing about who may: it asks.

mod door;
mod error;
mod events;
mod forward;
mod splice;
mod stream;
mod target;
mod targets;

pub use error::{ExposeError, ForwardError, TunnelBroken, TunnelError};
pub use events::{Carried, Served};
pub use forward::Forward;
pub use stream::{Tunnel, TunnelRecv, TunnelSend};
pub use target::{check_target, parse_listen};
pub use targets::Exposed;
pub(crate) use targets::Targets;

pub use crate::proto::tunnel::check_name;
