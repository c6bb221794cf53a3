//! Letting a peer know that this node is there again, once: it was killed, and the peer may believe in a session that is no more.
//! The link says which process this is, which ends that session and begins the next. Whoever does not answer is left alone.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::hub::Hub;
use super::reach::{Tried, dial_all};
use crate::id::NodeId;
use crate::policy::Action;
use crate::proto::close::CloseCode;
use crate::proto::limits;

/// Most addresses of a peer that are dialled, the likeliest first.
pub const TOLD_AT: usize = 4;
/// A peer that takes longer to answer has noticed by itself before long.
const WITHIN: Duration = limits::ANSWER_BOUND;

impl Hub {
    /// Dials a peer once, unless it is wanted or here already, or policy keeps it out. The session that comes of it is as if the
    /// peer had dialled: this node does not dial again when it is lost. Ends when there is a session, or none will come of it.
    /// Cancel-safe: a dial under way is given up.
    pub async fn tell(&self, id: NodeId, addresses: &[SocketAddr]) {
        let permitted = self.policy().decide(&id, Action::Connect, "").is_permit();
        if !permitted || id == self.own().id || self.is_draining() || self.known_peer(id).is_some() {
            return;
        }
        let (addresses, mut tried) = (&addresses[..addresses.len().min(TOLD_AT)], Tried::default());
        let Ok(Ok(link)) = timeout(WITHIN, dial_all(self, id, addresses, &mut tried)).await else {
            return tracing::debug!(peer = %id.short(), "a peer from before was not there to be told");
        };
        let place = match self.has_room_for(&link) {
            Ok(place) => place,
            Err(error) => {
                tracing::debug!(peer = %id.short(), %error, "a peer from before is not told");
                return link.close(CloseCode::Goodbye);
            }
        };
        let at = link.remote();
        // It lets go of the link by itself when no session comes of it, and says why.
        if let Ok(greeted) = self.greet_dialled(link).await {
            self.deliver(greeted, place);
            if let Some(peer) = self.known_peer(id) {
                peer.learn([at]);
            }
        }
    }
}
