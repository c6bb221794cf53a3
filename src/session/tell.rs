//! Letting a peer know that this node is there again, once: it was killed, and the peer may believe in a session that is no more.
//! The link says which process this is, which ends that session and begins the next. Whoever does not answer is left alone.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};

use super::hub::Hub;
use crate::id::NodeId;
use crate::net::Link;
use crate::policy::Action;
use crate::proto::close::CloseCode;
use crate::proto::limits;

/// Most addresses of a peer that are dialled, the likeliest first.
pub const TOLD_AT: usize = 4;
/// Each of them this much after the one before, so that one that leads nowhere costs little ("Happy Eyeballs", RFC 8305).
const STAGGER: Duration = Duration::from_millis(150);
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
        let Ok(Some(link)) = timeout(WITHIN, self.reach(id, addresses)).await else {
            return tracing::debug!(peer = %id.short(), "a peer from before was not there to be told");
        };
        if let Err(error) = self.has_room_for(&link) {
            tracing::debug!(peer = %id.short(), %error, "a peer from before is not told");
            return link.close(CloseCode::Goodbye);
        }
        let at = link.remote();
        // It lets go of the link by itself when no session comes of it, and says why.
        if let Ok(greeted) = self.greet_dialled(link).await {
            self.deliver(greeted);
            if let Some(peer) = self.known_peer(id) {
                peer.learn([at]);
            }
        }
    }

    /// A link to the peer, from the first address at which it answers.
    async fn reach(&self, id: NodeId, addresses: &[SocketAddr]) -> Option<Link> {
        let after = (0..).map(|before| STAGGER * before);
        let dial = |(address, after): (&SocketAddr, Duration)| {
            let address = *address;
            async move {
                sleep(after).await;
                self.endpoint().dial(address, id).await
            }
        };
        let mut dials: FuturesUnordered<_> = addresses.iter().take(TOLD_AT).zip(after).map(dial).collect();
        while let Some(dialled) = dials.next().await {
            match dialled {
                Ok(link) => return Some(link),
                Err(error) => tracing::debug!(peer = %id.short(), %error, "not there"),
            }
        }
        None
    }
}
