//! A session as its owner holds it, with a path or without: its stream 0, how far going down has got, and until when it is kept.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::attached::Attached;
use super::core::Core;
use super::detached::Place;
use super::notice::{Notice, Notices};
use super::stream::StreamError;

/// A session.
pub(super) struct Held {
    pub core: Arc<Core>,
    /// Without a path: it is given up then.
    pub until: Option<Instant>,
    /// Without a path: its place among those that have none.
    pub place: Option<Place>,
    notices: Option<Notices>,
    incoming: mpsc::Receiver<Notices>,
    door: mpsc::Sender<Notices>,
    /// Whether we, and whether the peer, said that all answers are in.
    answered: (bool, bool),
}

impl Held {
    pub fn new(core: Arc<Core>) -> Self {
        let (door, incoming) = mpsc::channel(1);
        Self { core, until: None, place: None, notices: None, incoming, door, answered: (false, false) }
    }

    /// Where stream 0 comes in, if the peer opens it.
    pub fn door(&self) -> mpsc::Sender<Notices> {
        self.door.clone()
    }

    /// Opens stream 0, on the side that dialled.
    pub async fn begin(&mut self, attached: &Arc<Attached>) -> Result<(), StreamError> {
        let mut notices = Notices::opened(attached.open().await?);
        notices.start().await?;
        self.notices = Some(notices);
        Ok(())
    }

    /// The next notice of the peer. Cancel-safe.
    pub async fn next(&mut self) -> Notice {
        loop {
            let Some(notices) = &mut self.notices else {
                match self.incoming.recv().await {
                    Some(notices) => self.notices = Some(notices),
                    None => std::future::pending().await,
                }
                continue;
            };
            match notices.next().await {
                Some(notice) => return notice,
                // Of no more use, and there is no second one.
                None => self.notices = None,
            }
        }
    }

    /// The peer said this.
    pub fn heard(&mut self, notice: Notice) {
        match notice {
            Notice::Draining => self.core.close_to_calls(),
            Notice::Drained => self.answered.1 = true,
        }
    }

    /// This node goes down: asks the peer to call no more.
    pub async fn drain(&mut self) {
        self.core.drain();
        // It may be here, and not looked at.
        if self.notices.is_none() {
            self.notices = self.incoming.try_recv().ok();
        }
        match &mut self.notices {
            Some(notices) => drop(notices.send(Notice::Draining).await),
            // The peer has not opened stream 0 yet, so it has not begun to call.
            None => self.answered.1 = true,
        }
    }

    /// All our calls are answered, while one of the nodes goes down: lets the peer know, once.
    pub async fn calls_answered(&mut self) {
        if self.core.is_draining()
            && self.core.calling() == 0
            && !std::mem::replace(&mut self.answered.0, true)
            && let Some(notices) = &mut self.notices
        {
            let _ = notices.send(Notice::Drained).await;
        }
    }

    /// Whether neither side waits for an answer any more.
    pub fn both_answered(&self) -> bool {
        self.answered == (true, true)
    }
}
