//! Services and calls: named functions, offered by one node and called by another over their session. This room writes and
//! reads calls on the session's streams; it knows nothing of paths, and decides nothing about who may call: it asks.

mod call;
mod caller;
mod context;
mod dedupe;
mod describe;
mod directory;
mod error;
mod item;
mod message;
mod method;
mod providers;
mod rate;
mod registry;
mod reply;
mod run;
mod serve;

pub use call::{Call, CallReceiver, CallSender};
pub use context::Context;
pub use describe::{DESCRIBE, MethodDescription, ServiceDescription};
pub use directory::{
    Announce, Directory, DiscoverError, Found, Listed, Mirror, Mode, Presence, RegisterError, Registered, Search, Watch,
};
pub use error::{CallError, Outcome};
pub use message::{Receiver, Sender};
pub use method::Service;
pub use providers::{Pick, Providers};
pub(crate) use rate::Rates;
pub use rate::{RATE_MAX, Rate, RateRule};
pub use registry::{Registration, Registry, ServiceError};
pub(crate) use serve::{CallBounds, Server};
