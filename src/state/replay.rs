//! What a callee remembers of calls that carry an idempotency key, so that one made again is not executed again: who called what
//! under which key, with which request, and how it ended. Runs no handler, waits for nothing, and keeps nothing on disk.
//!
//! What it holds is bounded in bytes, for each caller and in all. To make room, calls that have ended are forgotten, the one
//! due first before the others: first the caller's own, and another's only if that one holds no less than the caller. A call
//! that is running is never forgotten.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::id::NodeId;
use crate::proto::limits;
use crate::proto::status::Status;

/// One execution of a call. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(u64);

/// A fingerprint of a request: calls that differ in it are different calls.
pub type Digest = [u8; 32];

/// How a call ended: with its answer, or the handler's status.
pub type Answer = Result<Bytes, Status>;

/// A call with a key, as it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Keyed<'a> {
    /// Who calls. Keys of different callers have nothing to do with each other.
    pub caller: NodeId,
    /// `service/method`.
    pub method: &'a Arc<str>,
    /// The caller's key.
    pub key: &'a [u8],
    /// What it asks for.
    pub digest: Digest,
    /// When its caller gives up at the latest. Until then it may be made again, so until then it is remembered.
    pub deadline: Option<Instant>,
}

/// What to do with a call that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Execute it, and tell with [`Replay::finished`] or [`Replay::abandoned`] how that went.
    Fresh(RunId),
    /// It is being executed: wait for that.
    Running(RunId),
    /// It was executed, and this is how it ended.
    Done(Answer),
    /// It was executed; its answer was not kept.
    NotKept,
    /// The key was used for another request.
    Conflict,
    /// There is no room to remember it, so it must not be executed.
    Full,
}

/// How much is remembered. Starts from [`limits`].
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a call is remembered after it ended; longer if its deadline is further off.
    pub window: Duration,
    /// Bytes in all. A call counts for its answer, its key, and [`Bounds::entry_bytes`].
    pub bytes: usize,
    /// Bytes for one caller.
    pub caller_bytes: usize,
    /// Largest answer that is kept, in bytes.
    pub answer_bytes: usize,
    /// What a call counts for besides its answer and key. So `bytes / entry_bytes` calls are remembered at most.
    pub entry_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            window: limits::REPLAY_WINDOW,
            bytes: limits::REPLAY_BYTES,
            caller_bytes: limits::REPLAY_CALLER_BYTES,
            answer_bytes: limits::REPLAY_ANSWER_BYTES,
            entry_bytes: limits::REPLAY_ENTRY_BYTES,
        }
    }
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls made again while the first was running.
    pub joined: u64,
    /// Calls made again after the first had ended.
    pub repeated: u64,
    /// Keys used for another request.
    pub conflicts: u64,
    /// Calls forgotten before their time, to make room.
    pub evicted: u64,
    /// Answers too large to be kept.
    pub not_kept: u64,
    /// Calls refused because there was no room to remember them.
    pub refused: u64,
}

/// The calls remembered. See the [module](self).
#[derive(Debug, Default)]
pub struct Replay {
    bounds: Bounds,
    calls: HashMap<RunId, Call>,
    runs: HashMap<Name, RunId>,
    callers: HashMap<NodeId, Caller>,
    /// Callers of whom something can be forgotten, by what they hold.
    heaviest: BTreeSet<(usize, NodeId)>,
    /// Calls that have ended, by when they are forgotten.
    due: BTreeSet<(Instant, RunId)>,
    bytes: usize,
    next: u64,
    counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    caller: NodeId,
    method: Arc<str>,
    key: Box<[u8]>,
}

#[derive(Debug)]
struct Call {
    name: Name,
    digest: Digest,
    bytes: usize,
    /// The last deadline of those who made it.
    deadline: Option<Instant>,
    state: State,
}

#[derive(Debug)]
enum State {
    Running,
    /// Ended, and forgotten then. `None`: the answer is not kept.
    Ended(Instant, Option<Answer>),
}

/// What one caller holds.
#[derive(Debug, Default)]
struct Caller {
    bytes: usize,
    ended: BTreeSet<(Instant, RunId)>,
}

impl Replay {
    /// Remembers nothing yet, and never more than this.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// A call came in, and its caller may make it. `now` never goes back from one question to the next.
    pub fn begin(&mut self, now: Instant, call: Keyed<'_>) -> Begin {
        self.expire(now);
        let name = Name { caller: call.caller, method: call.method.clone(), key: call.key.into() };
        if let Some(run) = self.runs.get(&name).copied() {
            return self.again(run, call);
        }
        let bytes = self.bounds.entry_bytes + call.key.len();
        if !self.make_room(call.caller, bytes) {
            self.counts.refused += 1;
            return Begin::Full;
        }
        let run = RunId(self.next);
        self.next += 1;
        self.runs.insert(name.clone(), run);
        let state = State::Running;
        self.calls.insert(run, Call { name, digest: call.digest, bytes, deadline: call.deadline, state });
        self.hold(call.caller, |caller| caller.bytes += bytes);
        self.bytes += bytes;
        Begin::Fresh(run)
    }

    /// The handler ended the call with this. Remembered from now on for the window, or until its last deadline.
    pub fn finished(&mut self, now: Instant, run: RunId, answer: Answer) {
        let Some(call) = self.calls.get(&run) else { return };
        let (caller, deadline) = (call.name.caller, call.deadline);
        let more = match &answer {
            Ok(body) => body.len(),
            Err(status) => status.message.len() + status.details.len(),
        };
        let kept = (more <= self.bounds.answer_bytes && self.make_room(caller, more)).then_some(answer);
        let more = if kept.is_some() { more } else { 0 };
        self.counts.not_kept += u64::from(kept.is_none());
        let due = deadline.into_iter().fold(now + self.bounds.window, Instant::max);
        let call = self.calls.get_mut(&run).expect("only what has ended is forgotten to make room");
        call.bytes += more;
        call.state = State::Ended(due, kept);
        self.bytes += more;
        self.due.insert((due, run));
        self.hold(caller, |caller| {
            caller.bytes += more;
            caller.ended.insert((due, run));
        });
    }

    /// The handler did not come to an end: cancelled, panicked, out of time. The key is free again.
    pub fn abandoned(&mut self, run: RunId) {
        if self.calls.get(&run).is_some_and(|call| matches!(call.state, State::Running)) {
            self.forget(run);
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Calls remembered now.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes held for this caller.
    pub fn bytes_of(&self, caller: &NodeId) -> usize {
        self.callers.get(caller).map_or(0, |caller| caller.bytes)
    }

    fn again(&mut self, run: RunId, again: Keyed<'_>) -> Begin {
        let call = self.calls.get_mut(&run).expect("what has a name is there");
        if call.digest != again.digest {
            self.counts.conflicts += 1;
            return Begin::Conflict;
        }
        match &call.state {
            State::Running => {
                // Whoever may wait longest may also ask again latest.
                call.deadline = call.deadline.max(again.deadline);
                self.counts.joined += 1;
                Begin::Running(run)
            }
            State::Ended(_, answer) => {
                self.counts.repeated += 1;
                answer.clone().map_or(Begin::NotKept, Begin::Done)
            }
        }
    }

    /// Forgets what it takes for so many more bytes of this caller. Says whether there is room now.
    fn make_room(&mut self, caller: NodeId, more: usize) -> bool {
        while self.bytes_of(&caller) + more > self.bounds.caller_bytes {
            if !self.evict(caller) {
                return false;
            }
        }
        while self.bytes + more > self.bounds.bytes {
            let Some(&(held, heaviest)) = self.heaviest.last() else { return false };
            if held < self.bytes_of(&caller) || !self.evict(heaviest) {
                return false;
            }
        }
        true
    }

    /// Forgets what this caller would have forgotten next, if something of it has ended.
    fn evict(&mut self, caller: NodeId) -> bool {
        let Some((_, run)) = self.callers.get(&caller).and_then(|caller| caller.ended.first().copied()) else { return false };
        self.counts.evicted += 1;
        self.forget(run);
        true
    }

    fn expire(&mut self, now: Instant) {
        while let Some((_, run)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.forget(run);
        }
    }

    fn forget(&mut self, run: RunId) {
        let Some(call) = self.calls.remove(&run) else { return };
        self.runs.remove(&call.name);
        self.bytes -= call.bytes;
        let due = match call.state {
            State::Running => None,
            State::Ended(due, _) => Some((due, run)),
        };
        if let Some(due) = due {
            self.due.remove(&due);
        }
        self.hold(call.name.caller, |caller| {
            caller.bytes -= call.bytes;
            if let Some(due) = due {
                caller.ended.remove(&due);
            }
        });
    }

    /// Changes what a caller holds, and its place among the others.
    fn hold(&mut self, id: NodeId, change: impl FnOnce(&mut Caller)) {
        let caller = self.callers.entry(id).or_default();
        self.heaviest.remove(&(caller.bytes, id));
        change(caller);
        if !caller.ended.is_empty() {
            self.heaviest.insert((caller.bytes, id));
        } else if caller.bytes == 0 {
            self.callers.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests;
