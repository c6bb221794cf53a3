//! Watches this machine: whether its interfaces, addresses or routes change, and whether it slept. Says only *that* something did;
//! looks at no path and decides nothing. Sends nothing beyond this machine, and wakes it for nothing while all is quiet (on Linux).
//!
//! On Linux the kernel tells ([`netlink`], and a timer that the end of a sleep cancels); elsewhere the addresses are looked at
//! every few seconds; on phones neither is allowed or wise, and the application, which the system tells, passes it on. Where
//! watching fails, that is logged once and nothing is ever reported: a dead path is still found, only later.
//!
//! Not the `netwatch` crate, although it knows more systems: it waits until all has been quiet for 250 ms before it says anything,
//! so that a flapping interface silences it; sees no cable; wakes every 15 s; and brings forty crates.

use std::io;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

#[cfg(any(test, not(target_os = "linux")))]
mod look;
#[cfg(target_os = "linux")]
mod netlink;
mod sleep;

#[cfg(not(target_os = "linux"))]
use self::look::Source;
#[cfg(target_os = "linux")]
use self::netlink::Source;

/// Least time between two reports of network changes: an interface that comes up is several.
pub const SPACING: Duration = Duration::from_millis(250);
/// The most that grows to while changes follow each other without end, as on a router: each report has every path prove itself.
pub const SPACING_MAX: Duration = Duration::from_secs(8);

/// What happened to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Interfaces, addresses or routes are not what they were. Loopback, and what reaches no further than one cable, does not count.
    Network,
    /// It slept for a second or more, and runs again.
    Slept,
}

/// A watch on this machine. It has no task: it listens while [`changed`](Self::changed) is awaited, and the kernel keeps what happens
/// between. Dropped, it is over.
#[derive(Debug)]
pub struct Watch {
    source: Option<Source>,
    spacing: Spacing,
}

impl Watch {
    /// Starts watching. Never fails: what cannot be watched is logged, and not reported.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn start() -> Self {
        let source = Source::open().inspect_err(Self::is_over).ok();
        Self { source, spacing: Spacing::default() }
    }

    /// Waits for the next change. The first is told at once; those that follow it closely are told together, as one. Never
    /// returns where nothing can be watched.
    ///
    /// Cancel-safe: what happened is told by the next call.
    pub async fn changed(&mut self) -> Change {
        loop {
            let due = self.spacing.due();
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    self.spacing.report(tokio::time::Instant::now().into_std());
                    return Change::Network;
                }
                seen = see(&mut self.source) => match seen {
                    Ok(Change::Network) => self.spacing.note(tokio::time::Instant::now().into_std()),
                    Ok(Change::Slept) => return Change::Slept,
                    Err(error) => {
                        Self::is_over(&error);
                        self.source = None;
                    }
                }
            }
        }
    }

    fn is_over(error: &io::Error) {
        tracing::warn!(%error, "cannot watch this machine's network: a change is noticed when paths stop answering");
    }
}

async fn see(source: &mut Option<Source>) -> io::Result<Change> {
    match source {
        Some(source) => source.see().await,
        None => std::future::pending().await,
    }
}

/// When changes are reported: the first at once, then no closer together than a gap, which doubles while they go on.
#[derive(Debug, Default)]
struct Spacing {
    due: Option<Instant>,
    last: Option<Instant>,
    gap: Duration,
}

impl Spacing {
    fn note(&mut self, now: Instant) {
        self.due.get_or_insert(self.last.map_or(now, |last| now.max(last + self.gap)));
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn report(&mut self, now: Instant) {
        let goes_on = self.last.is_some_and(|last| now < last + 2 * self.gap);
        self.gap = if goes_on { (2 * self.gap).min(SPACING_MAX) } else { SPACING };
        (self.last, self.due) = (Some(now), None);
    }
}

#[cfg(test)]
mod tests;
