//! What is registered with another node, in this node's directory as well: public services, one hop, never passed on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::task::AbortHandle;

use super::follow::{Follower, News};
use super::found::{Found, Presence};
use super::shared::Directory;
use super::tell::Gone;
use super::watch::{Reader, follow};
use crate::id::NodeId;
use crate::proto::control::SessionId;
use crate::proto::directory::{Listing, Mode, Query, Scope};
use crate::service::serve::Server;
use crate::session::{Session, WaitError};

/// The public services registered with another node are listed here too, for as long as this is kept: online while they are online there
/// and the session with that node is up. Dropped, they are gone.
#[derive(Debug)]
pub struct Mirror {
    directory: Directory,
    at: NodeId,
    ended: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Mirror {
    /// Mirrors what is registered with this peer, in the directory of the session's own node, whenever the peer is there. Twice at a
    /// time is not more than once: the one that ends first ends it.
    ///
    /// # Errors
    /// [`WaitError::Closed`] if the session's node has ended.
    pub fn of(session: &Session) -> Result<Self, WaitError> {
        let server = session.part::<Server>().ok_or(WaitError::Closed)?;
        let (directory, at) = (server.directory().clone(), session.peer());
        let query = Query { pattern: "*".into(), offline: false, scope: Scope::Mirror };
        let ended = Arc::new(AtomicBool::new(false));
        let reader = ToDirectory { directory: directory.clone(), at, ended: ended.clone(), follower: Follower::new(false) };
        let following = follow(server.peers().depend(at), query, reader, None);
        let task = directory.runtime().spawn(following).abort_handle();
        Ok(Self { directory, at, ended, task })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
        // The task may be in the middle of something.
        self.ended.store(true, SeqCst);
        self.directory.change(|machine, _| machine.mirror_ended(self.at));
    }
}

/// Lists here what is listed there.
struct ToDirectory {
    directory: Directory,
    at: NodeId,
    /// Looked at where the directory is changed: once it is set nothing more is listed.
    ended: Arc<AtomicBool>,
    follower: Follower,
}

impl Reader for ToDirectory {
    fn follower(&mut self) -> &mut Follower {
        &mut self.follower
    }

    async fn tell(&mut self, session: SessionId, news: Vec<News>) -> Result<(), Gone> {
        for news in news {
            match news {
                News::Presence(presence) => match *presence {
                    Presence::Online(found) | Presence::Offline(found) | Presence::Changed(found) => self.list(session, &found),
                    Presence::Withdrawn(found) => {
                        self.directory.change(|machine, _| machine.unmirrored(self.at, session, found.provider, &found.name));
                    }
                    Presence::Missed => {}
                },
                News::Current => {
                    self.follower.known().for_each(|found| self.list(session, found));
                    self.directory.change(|machine, _| machine.mirror_is_current(self.at, session));
                }
            }
        }
        Ok(())
    }
}

impl ToDirectory {
    fn list(&self, session: SessionId, found: &Found) {
        // What this node itself provides, it need not be told; and what is mirrored there is not passed on, whatever is said.
        if found.provider == self.directory.own() || found.at.is_some() {
            return;
        }
        let (metadata, description) = (found.metadata.clone(), found.description.clone());
        let listing = Listing { name: found.name.clone(), mode: Mode::Public, metadata, description };
        let addresses = Arc::from(&*found.addresses);
        let listed = self.directory.change(|machine, now| {
            if self.ended.load(SeqCst) {
                return Ok(());
            }
            machine.mirrored(self.at, session, found.provider, Arc::new(listing), addresses, found.online, now)
        });
        if let Err(refusal) = listed {
            tracing::debug!(at = %self.at.short(), name = %found.name, %refusal, "a service is not mirrored");
        }
    }
}
