//! Strangers at the door: whom no rule lets in or keeps out. They are heard for a moment, a few at once, and then whoever knows the
//! owner's mind says what becomes of them.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use crate::id::{NodeId, Vouch};

/// What a stranger said of itself, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Its key.
    pub id: NodeId,
    /// What it calls itself: for display, escaped.
    pub name: String,
    /// Where it was seen.
    pub from: IpAddr,
    /// Whether others carried it here: then that is where a relay is.
    pub relayed: bool,
    /// Where it says it can be dialled, and where it was seen.
    pub addresses: Vec<SocketAddr>,
}

/// Whoever knows the owner's mind about strangers.
pub(crate) trait Porter: Send + Sync + 'static {
    /// Whether anything a stranger may say can help it: there are invitations, or somebody listens and, by the policy, is asked about it.
    fn hears(&self, asks: bool) -> bool;

    /// A stranger proves to have an invitation; whether that is good, once more. Then the rules it gives are in force. It is used also if
    /// nobody waits for the answer any more.
    fn invited(&self, stranger: Stranger, vouch: Vouch) -> Pin<Box<dyn Future<Output = bool> + Send>>;

    /// A stranger wants to connect; whether the owner is asked.
    fn ask(&self, stranger: Stranger) -> bool;
}
