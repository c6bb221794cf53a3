//! What has to be put back on a new session before anybody is told that it is up: registrations, watches. What they are is not
//! known here.

use std::sync::Arc;

use tokio::time::Instant;

use super::accept::Serving;
use super::attached::Attached;
use crate::proto::limits;

/// A session that is up, or was, and of which nobody was told yet.
pub(super) struct Restoring {
    work: Serving,
    /// What carries it now.
    on: Option<(Arc<Attached>, Instant)>,
    resumed: bool,
}

impl Restoring {
    pub fn begin(work: Serving, attached: Arc<Attached>, resumed: bool) -> Self {
        let mut restoring = Self { work, on: None, resumed };
        restoring.goes_on(attached);
        restoring
    }

    /// Another path carries the session.
    pub fn goes_on(&mut self, attached: Arc<Attached>) {
        self.on = Some((attached, Instant::now() + limits::ANSWER_BOUND));
    }

    /// No path does. What was begun waits for the next one, as everything of the session.
    pub fn lost(&mut self) {
        self.on = None;
    }

    /// Until when whoever waits for the session is made to wait.
    pub fn until(&self) -> Option<Instant> {
        self.on.as_ref().map(|(_, until)| *until)
    }

    /// Waits until everything is back. Cancel-safe.
    pub async fn done(&mut self) {
        self.work.as_mut().await;
    }

    /// What may be told now, and whether the session is the one from before; what is not done yet is left to run beside.
    pub fn end(self, done: bool) -> Option<(Arc<Attached>, bool)> {
        let (attached, _) = self.on?;
        if !done {
            attached.core().serve(self.work);
        }
        Some((attached, self.resumed))
    }
}
