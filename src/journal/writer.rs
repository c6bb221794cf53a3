//! The thread that writes the journal: takes what waits, writes it, and goes on when that fails. It alone touches the files.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use super::entry::{Entry, Payer};
use super::file::Files;
use super::share::Shares;
use super::{Queue, Waiting};

/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// What was left out is told after this, in one line for each peer.
const TELL: Duration = Duration::from_secs(60);

/// Writes what is noted.
pub(super) struct Writer {
    queue: Arc<Queue>,
    files: Files,
    shares: Shares,
    /// Entries that were lost and not told of yet.
    missed: u64,
    /// Since when the files cannot be written.
    failing: Option<Instant>,
    /// When to tell what was left out.
    tell_at: Option<Instant>,
}

impl Writer {
    pub fn new(queue: Arc<Queue>, files: Files) -> Self {
        Self { queue, files, shares: Shares::default(), missed: 0, failing: None, tell_at: None }
    }

    /// Until the journal is closed, and all that was noted before is written.
    pub fn run(mut self) {
        while self.turn() {}
        self.files.sync();
        self.queue.waiting().closed = true;
        self.queue.over.notify_all();
    }

    /// Waits for something to do, and does it. Says whether there may be more.
    pub(super) fn turn(&mut self) -> bool {
        let (entries, closing) = self.next();
        let now = Instant::now();
        let mut lines = Vec::with_capacity(entries.len());
        for (at, entry) in entries {
            if self.payer(&entry).is_none_or(|payer| self.shares.take(payer, now)) {
                lines.push(entry.line(at));
            } else {
                self.queue.counts.omitted.fetch_add(1, Relaxed);
            }
        }
        if self.shares.has_omitted() {
            let tell_at = *self.tell_at.get_or_insert(now + TELL);
            if tell_at <= now || closing {
                self.tell_at = None;
                let omitted = self.shares.omitted().into_iter();
                lines.extend(omitted.map(|(peer, count)| Entry::Omitted { peer, count }.line(SystemTime::now())));
            }
        }
        self.write(&lines, now, closing);
        !closing
    }

    /// Whose room it takes: whom the owner does not know has none of his own.
    fn payer(&self, entry: &Entry) -> Option<Payer> {
        let payer = entry.payer()?;
        let Payer::Peer(peer) = &payer else { return Some(payer) };
        let is_known = self.queue.knows.get().is_none_or(|knows| knows(peer));
        Some(if is_known { payer } else { Payer::Guests })
    }

    /// What waits, once there is something or it is time; and whether it is the last.
    fn next(&mut self) -> (VecDeque<(SystemTime, Entry)>, bool) {
        let now = Instant::now();
        let retry = (self.missed > 0).then(|| self.failing.map_or(now, |since| since + RETRY));
        let until = [retry, self.tell_at].into_iter().flatten().min();
        let idle = |waiting: &mut Waiting| waiting.entries.is_empty() && waiting.missed == 0 && !waiting.closing;
        let waiting = self.queue.waiting();
        let waited = match until {
            None => self.queue.news.wait_while(waiting, idle).ok(),
            Some(until) => {
                let left = until.saturating_duration_since(now);
                self.queue.news.wait_timeout_while(waiting, left, idle).ok().map(|(waiting, _)| waiting)
            }
        };
        let mut waiting = waited.expect("nothing panics while it is held");
        self.missed += std::mem::take(&mut waiting.missed);
        (std::mem::take(&mut waiting.entries), waiting.closing)
    }

    /// Writes these lines, and how many are missing before or after them. Lines that cannot be written are lost, and counted.
    fn write(&mut self, lines: &[Vec<u8>], now: Instant, closing: bool) {
        if self.failing.is_some_and(|since| now < since + RETRY) && !closing {
            return self.lose(lines.len());
        }
        // What was lost while the files could not be written was lost before these; what found the queue full, after them.
        let before = self.failing.is_some();
        if before && !self.tell_missed(now) {
            return self.lose(lines.len());
        }
        let (written, done) = self.files.append(lines);
        self.queue.counts.written.fetch_add(written as u64, Relaxed);
        match done {
            Ok(()) => drop(self.missed == 0 || self.tell_missed(now)),
            Err(error) => {
                self.failed(&error, now);
                self.lose(lines.len() - written);
            }
        }
    }

    /// Writes how many entries are missing here. Says whether that went well.
    fn tell_missed(&mut self, now: Instant) -> bool {
        let lines: Vec<_> =
            (self.missed > 0).then(|| Entry::Missed { count: self.missed }.line(SystemTime::now())).into_iter().collect();
        match self.files.append(&lines) {
            (written, Ok(())) => {
                self.queue.counts.written.fetch_add(written as u64, Relaxed);
                if self.failing.take().is_some() {
                    tracing::info!(missed = self.missed, "the journal can be written again");
                }
                self.missed = 0;
                true
            }
            (_, Err(error)) => {
                self.failed(&error, now);
                false
            }
        }
    }

    /// Said once, until it goes well again: a warning for each attempt would fill another disk.
    fn failed(&mut self, error: &dyn std::error::Error, now: Instant) {
        self.queue.counts.failures.fetch_add(1, Relaxed);
        if self.failing.replace(now).is_none() {
            tracing::warn!(error = %error, "the journal cannot be written; what is missed is counted, and it is tried again");
        }
    }

    fn lose(&mut self, lines: usize) {
        self.missed += lines as u64;
        self.queue.counts.missed.fetch_add(lines as u64, Relaxed);
    }
}
