//! One end of a session: drives the machine as the session room does, step by step, so that anything can happen in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::super::{Due, Next, Streams};
use super::halves::{Carrier, Reader, Slot, Writer, byte};
use super::net::{self, Net, PathRecv, PathSend};
use crate::proto::control::LiveStream;
use crate::proto::stream::Head;
use crate::state::budget::Budget;
use crate::state::ids::{Accepted, Side};

/// A path and the number of the attachment to it.
pub type At = (usize, u64);

struct Task {
    id: u64,
    at: At,
    offset: u64,
    send: Option<PathSend>,
    /// Of a piece that is being written.
    rest: Bytes,
}

struct Unheard {
    send: PathSend,
    recv: PathRecv,
    head: Head,
}

pub struct End {
    pub(super) end: usize,
    pub(super) net: Net,
    pub streams: Streams<Slot>,
    pub budget: Arc<Budget>,
    pub path: Option<At>,
    pub writers: BTreeMap<u64, Writer>,
    pub readers: BTreeMap<u64, Reader>,
    tasks: Vec<Task>,
    carries: Vec<u64>,
    unheard: Vec<Unheard>,
    pub executed: BTreeSet<u64>,
    /// Given up in the middle of a write: what becomes of these depends on the path.
    pub torn: BTreeSet<u64>,
    /// Told to be over by the peer.
    pub known_over: BTreeSet<u64>,
    /// Told to be over to the machine.
    pub over: BTreeSet<u64>,
    /// The machine has asked for progress to be told.
    pub due: bool,
}

pub fn side(end: usize) -> Side {
    if end == 0 { Side::Initiator } else { Side::Acceptor }
}

impl End {
    pub fn new(end: usize, net: &Net, keeps: bool, budget: usize) -> Self {
        let budget = Budget::new(budget);
        Self {
            end,
            net: net.clone(),
            streams: Streams::new(side(end), keeps, budget.clone()),
            budget,
            path: None,
            writers: BTreeMap::new(),
            readers: BTreeMap::new(),
            tasks: Vec::new(),
            carries: Vec::new(),
            unheard: Vec::new(),
            executed: BTreeSet::new(),
            torn: BTreeSet::new(),
            known_over: BTreeSet::new(),
            over: BTreeSet::new(),
            due: false,
        }
    }

    pub(super) fn note(&mut self, due: Due) {
        self.due |= due != Due::Nothing;
    }

    pub fn ids(&self) -> Vec<u64> {
        let ids: BTreeSet<u64> = self.writers.keys().chain(self.readers.keys()).copied().collect();
        ids.into_iter().collect()
    }

    pub fn accept(&mut self, nth: usize) {
        let Some(at) = self.path else { return };
        match net::accept(&self.net, at.0, self.end, nth) {
            Some((None, ..)) => self.streams.ended_unheard(),
            Some((Some(head @ Head::Fresh { .. }), send, recv)) => self.unheard.push(Unheard { send, recv, head }),
            Some((Some(head), send, recv)) => self.carried_on(head, at, send, recv),
            None => {}
        }
    }

    fn carried_on(&mut self, head: Head, at: At, send: PathSend, recv: PathRecv) {
        let Head::CarriedOn { stream: id, offset, received } = head else { unreachable!("looked at before") };
        if self.streams.attach() != at.1 {
            return;
        }
        if self.streams.slot(id).is_none() {
            if (offset, received) == (0, 0) {
                self.unheard.push(Unheard { send, recv, head });
            }
            return;
        }
        let (skip, slot) = self.streams.carried(id, offset, received).expect("both are honest");
        slot.arrived = Some((recv, skip, at));
        slot.sending = Carrier::Task;
        slot.wake();
        self.tasks.push(Task { id, at, offset: received, send: Some(send), rest: Bytes::new() });
    }

    /// Looks whether the first byte of a stream is here that was accepted.
    pub fn hear_first(&mut self, nth: usize) {
        if self.unheard.is_empty() {
            return;
        }
        let mut unheard = self.unheard.remove(nth % self.unheard.len());
        let at = self.path.expect("none waits without a path");
        match unheard.recv.read(1) {
            None if matches!(unheard.head, Head::CarriedOn { .. }) && self.streams.is_given_up(unheard.head.stream()) => {}
            None => self.unheard.push(unheard),
            Some(Ok(Some(first))) => self.fresh(at, unheard, &first),
            Some(_) => {
                if matches!(unheard.head, Head::Fresh { .. }) {
                    self.streams.ended_unheard();
                }
            }
        }
    }

    fn fresh(&mut self, at: At, Unheard { send, recv, head }: Unheard, first: &Bytes) {
        let id = head.stream();
        if self.streams.attach() != at.1 || self.streams.accept(id) != Ok(Accepted::Fresh) {
            return;
        }
        assert!(self.executed.insert(id), "stream {id} runs twice");
        assert!(!self.known_over.contains(&id), "stream {id} runs and is over");
        assert_eq!(first[..], [byte(id, 1 - self.end, 0)]);
        let due = self.streams.received(id, 1).expect("live now");
        self.note(due);
        self.insert(id, at, send, recv, None, 1);
        self.reader(id).carried_on = matches!(head, Head::CarriedOn { .. });
    }

    /// One of the streams that are to be carried on is.
    pub fn carry(&mut self, nth: usize) {
        if self.carries.is_empty() {
            return;
        }
        let id = self.carries.remove(nth % self.carries.len());
        let at = self.path.expect("nothing is carried without a path");
        let Some((mut send, recv)) = net::open(&self.net, at.0, self.end) else { return };
        let Some((head, slot)) = self.streams.carry(id) else { return };
        slot.arrived = Some((recv, 0, at));
        slot.sending = Carrier::Task;
        slot.wake();
        let Head::CarriedOn { offset, .. } = head else { unreachable!("it is carried on") };
        send.head(head);
        self.tasks.push(Task { id, at, offset, send: Some(send), rest: Bytes::new() });
    }

    /// One of the tasks that carry streams on goes one step.
    pub fn run_task(&mut self, nth: usize, most: usize) {
        if self.tasks.is_empty() {
            return;
        }
        let mut task = self.tasks.remove(nth % self.tasks.len());
        if task.rest.is_empty() {
            assert_eq!(self.streams.attach(), task.at.1, "tasks of older paths are gone");
            let next = self.streams.next(task.id, task.offset);
            // As where the task runs: whoever waits for room looks again.
            match next {
                Next::Bytes(bytes) => task.rest = bytes,
                Next::Finish => return task.send.iter_mut().for_each(PathSend::finish),
                Next::Nothing => {
                    let send = task.send.take().expect("taken only here");
                    if let Some(slot) = self.streams.slot(task.id) {
                        slot.sending = Carrier::Ready(send, task.at);
                    }
                    return;
                }
                Next::Over => return,
            }
        }
        let send = task.send.as_mut().expect("taken only at the end");
        match send.write(&mut task.rest, most) {
            Ok(sent) => {
                task.offset += sent as u64;
                self.tasks.push(task);
            }
            Err(error) => self.failed(task.id, task.at, error),
        }
    }

    /// Tells the peer what has come.
    pub fn tell(&mut self) {
        let Some((path, _)) = self.path else { return };
        let mut net = self.net.borrow_mut();
        let path = &mut net[path];
        self.due = false;
        if let Some(progress) = self.streams.progress()
            && path.carries()
        {
            path.control[1 - self.end].push_back(progress);
        }
        self.due = self.streams.has_news();
    }

    /// Hears what the peer tells on the path it is on.
    pub fn hear(&mut self) {
        let Some((path, _)) = self.path else { return };
        let progress = {
            let path = &mut self.net.borrow_mut()[path];
            path.control[self.end].pop_front().filter(|_| !path.closed[self.end])
        };
        let Some(progress) = progress else { return };
        for run in &progress.over {
            self.known_over.extend((0..run.count).map(|nth| run.first + 2 * nth));
        }
        self.streams.told(&progress, &mut Slot::wake).expect("the peer is honest");
    }

    /// Another path takes over, unless a newer one has.
    pub fn attach(&mut self, at: At, said: &(u64, Vec<LiveStream>), theirs: &(u64, Vec<LiveStream>)) {
        if self.path.is_some_and(|(_, attach)| attach > at.1) {
            self.net.borrow_mut()[at.0].closed[self.end] = true;
            return;
        }
        self.leave();
        let peer = side(1 - self.end);
        let listed = |id: &u64| theirs.1.iter().any(|standing| standing.stream == *id);
        let over = (0..theirs.0).filter(|id| peer.opens(*id) && !listed(id));
        self.known_over.extend(over);
        self.carries =
            self.streams.attached(at.1, (said.0, &said.1), (theirs.0, &theirs.1), &mut Slot::wake).expect("the peer is honest");
        self.path = Some(at);
        // A path begins with telling.
        self.due = true;
    }

    /// The path carries the session no more.
    pub fn leave(&mut self) {
        if let Some((path, _)) = self.path.take() {
            self.net.borrow_mut()[path].closed[self.end] = true;
        }
        self.tasks.clear();
        self.carries.clear();
        self.unheard.clear();
    }

    /// Notices that the path is gone, if it is.
    pub fn notice(&mut self) {
        if let Some((path, _)) = self.path
            && !self.net.clone().borrow()[path].carries()
        {
            self.leave();
        }
    }

    /// What holds at any time.
    pub fn check(&self) {
        let taken: usize = self.streams.live.values().map(|stream| stream.sending.check()).sum();
        assert_eq!(taken + self.budget.left(), super::model::BUDGET, "the budget adds up");
        if !self.due && self.path.is_some() {
            assert!(!self.streams.has_news(), "nobody was told that there is news");
        }
    }
}
