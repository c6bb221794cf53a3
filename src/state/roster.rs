//! Who is here, and which of two links between the same nodes stays. Kept by (id, role, boot id). Knows links by number only;
//! opens, reads and closes nothing: it answers what to do.
//!
//! The rule: **a new link replaces an older one.** Attach numbers say which is newer: both processes remember the highest they
//! have agreed on, and whoever dials proposes one more. So an end that still believes in a dead link never locks the other
//! out. Only when two dials really crossed, that is when both propose the same number, does a rule on ids decide: the dial of
//! the smaller id wins, and the other link is kept aside until the winner has carried a hello both ways.

use std::collections::HashMap;

use crate::id::NodeId;
use crate::proto::control::{BootId, Role};

/// Processes of one node that are remembered besides the last one.
const PROCESSES: usize = 4;

/// A link, as far as the roster knows it.
pub type LinkNumber = usize;

/// What to do with a link whose hello came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer: the session goes on this link under this attach number.
    Accept {
        /// The number agreed.
        attach: u64,
        /// The link that is over now, if there was one.
        replaces: Option<LinkNumber>,
    },
    /// Do not answer yet: our own dial crossed this one and goes first. Another output says what becomes of it.
    Park,
    /// The number proposed is past. The number to tell the peer, so that its next proposal is right.
    Stale(u64),
    /// Close it: too many visitors of this identity.
    TooMany,
}

/// What to do with a link kept aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    /// The other one won: close it as crossed.
    Close(LinkNumber),
    /// The other one failed: answer it after all, under this attach number.
    Accept(LinkNumber, u64),
}

/// A proposal under way on a link we dialled.
#[derive(Clone, Copy, Debug)]
struct Dial {
    link: LinkNumber,
    attach: u64,
}

/// A process that another one took the session from.
#[derive(Clone, Copy, Debug)]
struct Former {
    boot: BootId,
    /// The owner has heard that it is still there.
    said: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// The peer's process we last spoke with.
    boot: Option<BootId>,
    /// Its process that has the session, or had the last one.
    holder: Option<BootId>,
    /// Processes of it before that one, the last few.
    replaced: Vec<Former>,
    /// The highest number agreed with that process.
    attach: u64,
    /// The highest number we proposed to it.
    proposed: u64,
    /// The link its session is on.
    link: Option<LinkNumber>,
    /// That link does not answer: another may be greeted beside it.
    suspect: bool,
    /// Our own hello that is not answered yet.
    dial: Option<Dial>,
    /// The peer's link that waits for it.
    parked: Option<(LinkNumber, BootId, u64)>,
}

/// The peers of one node, and the links between.
#[derive(Debug)]
pub struct Roster {
    own: NodeId,
    visitors_max: usize,
    nodes: HashMap<NodeId, Entry>,
    visitors: HashMap<NodeId, Vec<(BootId, LinkNumber)>>,
}

impl Roster {
    /// The roster of the node with this id, which takes so many visitors of one identity.
    pub fn new(own: NodeId, visitors_max: usize) -> Self {
        Self { own, visitors_max, nodes: HashMap::new(), visitors: HashMap::new() }
    }

    /// We dialled this link and are about to say hello on it: the attach number to propose. `None` if the peer has a link
    /// that is not [suspect](Self::suspect), and this one is not `better`, or is being greeted already; then this one can be closed.
    pub fn propose(&mut self, peer: NodeId, link: LinkNumber, better: bool) -> Option<u64> {
        let entry = self.nodes.entry(peer).or_default();
        if (entry.link.is_some() && !entry.suspect && !better) || entry.dial.is_some() {
            return None;
        }
        let attach = entry.attach.max(entry.proposed).checked_add(1)?;
        entry.proposed = attach;
        entry.dial = Some(Dial { link, attach });
        Some(attach)
    }

    /// The link a node's session is on does not answer, or answers again. While it is suspect we may greet the peer on another,
    /// which then replaces it; a new link is not suspect, whatever the old one was. Nothing is marked of a node without a link.
    pub fn suspect(&mut self, peer: NodeId, suspect: bool) {
        if let Some(entry) = self.nodes.get_mut(&peer) {
            entry.suspect = suspect && entry.link.is_some();
        }
    }

    /// This process of a node has the session from now on: who had it before has been replaced. A hello alone replaces nobody: the
    /// sessions of two processes that greet at once begin in an order of their own.
    pub fn holds(&mut self, peer: NodeId, boot: BootId) {
        let entry = self.nodes.entry(peer).or_default();
        if entry.holder == Some(boot) {
            return;
        }
        entry.replaced.retain(|former| former.boot != boot);
        if let Some(before) = entry.holder.replace(boot) {
            entry.replaced.truncate(PROCESSES - 1);
            entry.replaced.insert(0, Former { boot: before, said: false });
        }
    }

    /// Whether another process of this node took the session from that one.
    pub fn has_been_replaced(&self, peer: NodeId, boot: BootId) -> bool {
        self.nodes.get(&peer).is_some_and(|entry| entry.replaced.iter().any(|former| former.boot == boot))
    }

    /// That process is still there. Says whether this is the first that is heard of it.
    pub fn is_news(&mut self, peer: NodeId, boot: BootId) -> bool {
        let former = self.nodes.get_mut(&peer).and_then(|entry| entry.replaced.iter_mut().find(|former| former.boot == boot));
        former.is_some_and(|former| !std::mem::replace(&mut former.said, true))
    }

    /// Whether the link of this node's session was said not to answer.
    pub fn is_suspect(&self, peer: NodeId) -> bool {
        self.nodes.get(&peer).is_some_and(|entry| entry.suspect)
    }

    /// Whether a hello of ours waits for this peer's answer. The peer may have left the older link for it already: to give it up
    /// now, because the older one answers again, would cost both.
    pub fn is_greeting(&self, peer: NodeId) -> bool {
        self.nodes.get(&peer).is_some_and(|entry| entry.dial.is_some())
    }

    /// A hello came in on a link the peer dialled.
    pub fn greeted(&mut self, peer: NodeId, link: LinkNumber, role: Role, boot: BootId, attach: u64) -> Verdict {
        if role == Role::Visitor {
            return self.visited(peer, link, boot, attach);
        }
        let own_dial_wins = self.own < peer;
        let entry = self.nodes.entry(peer).or_default();
        let same_process = entry.boot.is_none_or(|known| known == boot);
        if same_process && entry.boot.is_some() && attach <= entry.attach {
            return Verdict::Stale(entry.attach);
        }
        let crossed = same_process && entry.dial.is_some_and(|dial| dial.attach == attach);
        if crossed && own_dial_wins {
            if entry.parked.is_some() {
                return Verdict::Stale(attach);
            }
            entry.parked = Some((link, boot, attach));
            return Verdict::Park;
        }
        entry.take(link, boot, attach)
    }

    /// The answer to our hello came in on a link we dialled. Also says what becomes of a link kept aside for it.
    pub fn answered(&mut self, peer: NodeId, link: LinkNumber, boot: BootId, attach: u64) -> (Verdict, Option<Parked>) {
        let entry = self.nodes.entry(peer).or_default();
        entry.end_dial(link);
        let parked = entry.parked.take().map(|(parked, ..)| Parked::Close(parked));
        if entry.boot == Some(boot) && attach < entry.attach {
            return (Verdict::Stale(entry.attach), parked);
        }
        (entry.take(link, boot, attach), parked)
    }

    /// The peer told us that our proposal was past: `known` is the highest it knows of our two processes. The number to propose
    /// instead, on the same link; `None` if that dial is over.
    pub fn outpaced(&mut self, peer: NodeId, link: LinkNumber, known: u64) -> Option<u64> {
        let entry = self.nodes.entry(peer).or_default();
        entry.proposed = entry.proposed.max(known);
        let dial = entry.dial.as_mut().filter(|dial| dial.link == link)?;
        // A peer that says anything: past the last number there is none, and the dial fails.
        dial.attach = entry.attach.max(entry.proposed).checked_add(1)?;
        entry.proposed = dial.attach;
        Some(dial.attach)
    }

    /// A link ended, whatever it was. If another one waited for it, says what becomes of that.
    pub fn ended(&mut self, peer: NodeId, link: LinkNumber) -> Option<Parked> {
        if let Some(visitors) = self.visitors.get_mut(&peer) {
            visitors.retain(|(_, number)| *number != link);
            if visitors.is_empty() {
                self.visitors.remove(&peer);
            }
        }
        let entry = self.nodes.get_mut(&peer)?;
        if entry.link == Some(link) {
            (entry.link, entry.suspect) = (None, false);
        }
        if entry.parked.is_some_and(|(parked, ..)| parked == link) {
            entry.parked = None;
        }
        if !entry.end_dial(link) {
            return None;
        }
        let (parked, boot, attach) = entry.parked.take()?;
        // Meanwhile the peer may have dialled once more, and that link is newer.
        if entry.boot.is_some_and(|known| known != boot || attach <= entry.attach) {
            return Some(Parked::Close(parked));
        }
        entry.take(parked, boot, attach);
        Some(Parked::Accept(parked, attach))
    }

    /// The link a node's session is on.
    pub fn link(&self, peer: NodeId) -> Option<LinkNumber> {
        self.nodes.get(&peer)?.link
    }

    /// Forgets a node we neither want nor have a link with. What is lost is the memory of attach numbers, which the peer
    /// gives back when our proposal turns out to be past.
    pub fn forget(&mut self, peer: NodeId) {
        if self.nodes.get(&peer).is_some_and(|entry| entry.link.is_none() && entry.dial.is_none() && entry.parked.is_none()) {
            self.nodes.remove(&peer);
        }
    }

    /// How many nodes are remembered.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn visited(&mut self, peer: NodeId, link: LinkNumber, boot: BootId, attach: u64) -> Verdict {
        let visitors = self.visitors.entry(peer).or_default();
        if let Some(known) = visitors.iter_mut().find(|(known, _)| *known == boot) {
            let replaces = Some(std::mem::replace(&mut known.1, link));
            return Verdict::Accept { attach, replaces };
        }
        if visitors.len() >= self.visitors_max {
            return Verdict::TooMany;
        }
        visitors.push((boot, link));
        Verdict::Accept { attach, replaces: None }
    }
}

impl Entry {
    fn take(&mut self, link: LinkNumber, boot: BootId, attach: u64) -> Verdict {
        if self.boot != Some(boot) {
            self.boot = Some(boot);
            self.proposed = self.dial.map_or(0, |dial| dial.attach);
        }
        (self.attach, self.suspect) = (attach, false);
        Verdict::Accept { attach, replaces: self.link.replace(link).filter(|old| *old != link) }
    }

    fn end_dial(&mut self, link: LinkNumber) -> bool {
        let ours = self.dial.is_some_and(|dial| dial.link == link);
        if ours {
            self.dial = None;
        }
        ours
    }
}

#[cfg(test)]
mod tests;
