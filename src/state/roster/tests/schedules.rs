//! Two rosters and a network that orders, delays and loses as it likes. Each schedule first lets everything happen that can:
//! messages in any order across links, links that die in one or both directions, dials at any time, links that are suspected
//! rightly or wrongly, processes that restart and memories that are lost. Then nothing is lost any more, and whatever order things happen in, both ends must come to use one
//! link, the same one, with nothing left over.
//!
//! The steps of a greeting are those of `session::greet`, what becomes of its result those of the owner in `session::peer`.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::state::tests::seeds;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Message {
    Hello(BootId, u64),
    /// Hello and attach.
    Agreed(BootId, u64),
    /// Hello without a session: the number is past.
    Past(u64),
    Attach,
    Close,
}

/// Where one end of a link stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// The link is known to this end, and nothing was said.
    New,
    /// The dialler waits for the answer to its hello.
    Asked(u64),
    /// The accepter waits for the hello.
    Listening,
    /// The accepter keeps it aside.
    Parked,
    /// The accepter said that the number is past.
    Told,
    /// The accepter agreed and waits for the dialler's attach.
    Agreed(BootId, u64),
    /// Greeted; the owner does not know yet.
    Greeted(BootId, u64),
    /// The session is on it.
    Up(BootId, u64),
    Closed,
}

struct Wire {
    dialler: usize,
    /// By end.
    stage: [Stage; 2],
    /// By the end they go to.
    inbox: [VecDeque<Message>; 2],
    /// By the end that hears nothing any more.
    dead: [bool; 2],
}

struct Node {
    id: NodeId,
    boot: BootId,
    roster: Roster,
}

struct Schedule {
    nodes: [Node; 2],
    wires: Vec<Wire>,
    boots: u8,
    /// Dials that came to a hello.
    dials: u32,
    /// Whether a dial beside a link that answers again is given up even after its hello.
    abrupt: bool,
    trace: Vec<String>,
    random: StdRng,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Dial(usize),
    Deliver(LinkNumber, usize),
    /// An end has had enough of a link that says nothing.
    GiveUp(LinkNumber, usize),
    /// The owner learns of a greeted link.
    Adopt(LinkNumber, usize),
    Kill(LinkNumber, [bool; 2]),
    Restart(usize),
    Forget(usize),
    /// An end has doubts about the link its session is on.
    Suspect(usize),
    /// That link answered.
    Answered(usize),
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut ids = [ids()[0], ids()[1]];
        if random.random() {
            ids.reverse();
        }
        let node = |at: usize| Node { id: ids[at], boot: BootId([at as u8; 16]), roster: Roster::new(ids[at], 0) };
        let abrupt = random.random();
        Self { nodes: [node(0), node(1)], wires: Vec::new(), boots: 1, dials: 0, abrupt, trace: Vec::new(), random }
    }

    fn up(&self, end: usize) -> Option<LinkNumber> {
        self.wires.iter().position(|wire| matches!(wire.stage[end], Stage::Up(..)))
    }

    fn suspects(&self, end: usize) -> bool {
        self.nodes[end].roster.nodes.get(&self.nodes[1 - end].id).is_some_and(|entry| entry.suspect)
    }

    /// Everything that can happen now. While `calm`, nothing is lost that is not lost already.
    fn possible(&self, calm: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        for end in [0, 1] {
            let attempts = self.wires.iter().filter(|wire| wire.dialler == end && !is_settled(wire.stage[end])).count();
            if (self.up(end).is_none() || self.suspects(end)) && attempts < 3 {
                steps.push(Step::Dial(end));
            }
            if self.suspects(end) && self.up(end).is_some_and(|link| self.is_alive(link)) {
                steps.push(Step::Answered(end));
            }
            if self.up(end).is_some() && !self.suspects(end) && !calm {
                steps.push(Step::Suspect(end));
            }
            if !calm {
                steps.extend([Step::Restart(end), Step::Forget(end)]);
            }
        }
        for (link, wire) in self.wires.iter().enumerate() {
            for end in [0, 1] {
                // Whoever keeps a link aside reads nothing from it: only the roster's word ends that.
                if !wire.inbox[end].is_empty() && wire.stage[end] != Stage::Parked {
                    steps.push(Step::Deliver(link, end));
                }
                match wire.stage[end] {
                    Stage::Closed | Stage::Parked => {}
                    Stage::Greeted(..) => steps.push(Step::Adopt(link, end)),
                    _ if wire.dead != [false; 2] || wire.stage[1 - end] == Stage::Closed => steps.push(Step::GiveUp(link, end)),
                    Stage::Asked(_) | Stage::Listening | Stage::Told | Stage::Agreed(..) if !calm => {
                        steps.push(Step::GiveUp(link, end))
                    }
                    _ => {}
                }
            }
            if !calm && wire.dead == [false; 2] && wire.stage != [Stage::Closed; 2] {
                steps.extend([[true, true], [true, false], [false, true]].map(|dead| Step::Kill(link, dead)));
            }
        }
        steps
    }

    fn is_alive(&self, link: LinkNumber) -> bool {
        self.wires[link].dead == [false; 2] && !self.wires[link].stage.contains(&Stage::Closed)
    }

    /// In the wild phase most steps are useful ones, or nothing would ever come up.
    fn pick(&mut self, calm: bool) -> Option<Step> {
        let steps = self.possible(calm);
        let wild = |step: &Step| matches!(step, Step::Kill(..) | Step::Restart(_) | Step::Forget(_) | Step::GiveUp(..));
        let harmful = calm || self.random.random_ratio(1, 8);
        let mut chosen: Vec<_> = steps.iter().filter(|step| harmful || !wild(step)).collect();
        if chosen.is_empty() {
            chosen = steps.iter().collect();
        }
        (!chosen.is_empty()).then(|| *chosen[self.random.random_range(0..chosen.len())])
    }

    fn take(&mut self, step: Step) {
        self.trace.push(format!("{step:?}"));
        match step {
            Step::Dial(end) => self.dial(end),
            Step::Deliver(link, end) => {
                let message = self.wires[link].inbox[end].pop_front().expect("only full inboxes are delivered from");
                self.deliver(link, end, message);
            }
            Step::GiveUp(link, end) => self.close(link, end),
            Step::Adopt(link, end) => self.adopt(link, end),
            Step::Kill(link, dead) => {
                self.wires[link].dead = dead;
                for end in [0, 1].into_iter().filter(|end| dead[*end]) {
                    self.wires[link].inbox[end].clear();
                }
            }
            Step::Restart(end) => self.restart(end),
            Step::Suspect(end) => self.suspect(end, true),
            Step::Answered(end) => {
                self.suspect(end, false);
                if self.abrupt {
                    self.give_up_dials(end);
                }
            }
            Step::Forget(end) => {
                let peer = self.nodes[1 - end].id;
                // The owner goes only when it has no path and no attempt.
                if self.wires.iter().all(|wire| wire.stage[end] == Stage::Closed) {
                    self.nodes[end].roster.forget(peer);
                }
            }
        }
    }

    fn send(&mut self, link: LinkNumber, from: usize, message: Message) {
        let to = 1 - from;
        if !self.wires[link].dead[to] && self.wires[link].stage[to] != Stage::Closed {
            self.wires[link].inbox[to].push_back(message);
        }
    }

    /// The TLS handshake is done at both ends, and the dialler greets.
    fn dial(&mut self, end: usize) {
        let link = self.wires.len();
        let mut stage = [Stage::Listening; 2];
        stage[end] = Stage::New;
        self.wires.push(Wire { dialler: end, stage, inbox: Default::default(), dead: [false; 2] });
        let (peer, boot) = (self.nodes[1 - end].id, self.nodes[end].boot);
        match self.nodes[end].roster.propose(peer, link, false) {
            Some(attach) => {
                self.dials += 1;
                self.wires[link].stage[end] = Stage::Asked(attach);
                self.send(link, end, Message::Hello(boot, attach));
            }
            None => self.close(link, end),
        }
    }

    fn deliver(&mut self, link: LinkNumber, end: usize, message: Message) {
        let (peer, own) = (self.nodes[1 - end].id, self.nodes[end].boot);
        match (self.wires[link].stage[end], message) {
            (Stage::Closed, _) => {}
            (_, Message::Close) => self.close(link, end),
            (Stage::Listening | Stage::Told, Message::Hello(boot, attach)) => {
                match self.nodes[end].roster.greeted(peer, link, Role::Node, boot, attach) {
                    Verdict::Accept { attach, .. } => self.agree(link, end, boot, attach),
                    Verdict::Park => self.wires[link].stage[end] = Stage::Parked,
                    Verdict::Stale(attach) => {
                        self.wires[link].stage[end] = Stage::Told;
                        self.send(link, end, Message::Past(attach));
                    }
                    Verdict::TooMany => unreachable!("there are no visitors"),
                }
            }
            (Stage::Asked(_), Message::Past(attach)) => match self.nodes[end].roster.outpaced(peer, link, attach) {
                Some(attach) => {
                    self.wires[link].stage[end] = Stage::Asked(attach);
                    self.send(link, end, Message::Hello(own, attach));
                }
                None => self.close(link, end),
            },
            (Stage::Asked(asked), Message::Agreed(boot, attach)) if asked == attach => {
                let (verdict, parked) = self.nodes[end].roster.answered(peer, link, boot, attach);
                self.resolve(end, parked);
                if matches!(verdict, Verdict::Accept { .. }) {
                    self.wires[link].stage[end] = Stage::Greeted(boot, attach);
                    self.send(link, end, Message::Attach);
                } else {
                    self.close(link, end);
                }
            }
            (Stage::Agreed(boot, attach), Message::Attach) => self.wires[link].stage[end] = Stage::Greeted(boot, attach),
            (stage, message) => panic!("{message:?} while {stage:?} at {own:?}\n{}", self.trace.join("\n")),
        }
    }

    fn agree(&mut self, link: LinkNumber, end: usize, boot: BootId, attach: u64) {
        self.wires[link].stage[end] = Stage::Agreed(boot, attach);
        let own = self.nodes[end].boot;
        self.send(link, end, Message::Agreed(own, attach));
    }

    fn adopt(&mut self, link: LinkNumber, end: usize) {
        let Stage::Greeted(boot, attach) = self.wires[link].stage[end] else { return };
        if let Some(old) = self.up(end) {
            let Stage::Up(old_boot, old_attach) = self.wires[old].stage[end] else { return };
            if old_boot == boot && old_attach > attach {
                return self.close(link, end);
            }
            self.close(old, end);
        }
        self.wires[link].stage[end] = Stage::Up(boot, attach);
        self.give_up_dials(end);
    }

    fn suspect(&mut self, end: usize, suspect: bool) {
        let peer = self.nodes[1 - end].id;
        self.nodes[end].roster.suspect(peer, suspect);
    }

    fn give_up_dials(&mut self, end: usize) {
        for link in 0..self.wires.len() {
            if self.wires[link].dialler == end && matches!(self.wires[link].stage[end], Stage::Asked(_)) {
                self.close(link, end);
            }
        }
    }

    fn close(&mut self, link: LinkNumber, end: usize) {
        if std::mem::replace(&mut self.wires[link].stage[end], Stage::Closed) == Stage::Closed {
            return;
        }
        self.wires[link].inbox[end].clear();
        self.send(link, end, Message::Close);
        let peer = self.nodes[1 - end].id;
        let parked = self.nodes[end].roster.ended(peer, link);
        self.resolve(end, parked);
    }

    fn resolve(&mut self, end: usize, parked: Option<Parked>) {
        match parked {
            Some(Parked::Close(link)) => self.close(link, end),
            Some(Parked::Accept(link, attach)) if self.wires[link].stage[end] == Stage::Parked => {
                let boot = self.nodes[1 - end].boot;
                self.agree(link, end, boot, attach);
            }
            _ => {}
        }
    }

    fn restart(&mut self, end: usize) {
        self.boots += 1;
        let id = self.nodes[end].id;
        self.nodes[end] = Node { id, boot: BootId([self.boots; 16]), roster: Roster::new(id, 0) };
        for wire in &mut self.wires {
            wire.stage[end] = Stage::Closed;
            wire.inbox[end].clear();
            // What it had sent may still arrive, or not.
            wire.dead[1 - end] |= self.random.random::<bool>();
        }
    }

    /// Both ends are on one link, the same, and nothing else is left.
    fn is_settled(&self) -> bool {
        let ups = [self.up(0), self.up(1)];
        let left = |(link, wire): (LinkNumber, &Wire)| Some(link) != ups[0] && wire.stage != [Stage::Closed; 2];
        ups[0].is_some() && ups[0] == ups[1] && !self.wires.iter().enumerate().any(left) && self.rosters_agree(ups[0])
    }

    fn rosters_agree(&self, up: Option<LinkNumber>) -> bool {
        [0, 1].into_iter().all(|end| {
            let entry = &self.nodes[end].roster.nodes[&self.nodes[1 - end].id];
            // A late hello of a dial that was given up may have taken the place in the roster, and left it with its link.
            (entry.link == up || entry.link.is_none()) && entry.dial.is_none() && entry.parked.is_none()
        })
    }

    fn show(&self) -> String {
        let wires: Vec<_> = self.wires.iter().enumerate().map(|(link, wire)| format!("{link}: {:?}", wire.stage)).collect();
        format!("{}\n{}", self.trace.join("\n"), wires.join("\n"))
    }
}

fn is_settled(stage: Stage) -> bool {
    matches!(stage, Stage::Closed | Stage::Up(..))
}

fn ids() -> &'static [NodeId; 2] {
    static IDS: std::sync::OnceLock<[NodeId; 2]> = std::sync::OnceLock::new();
    IDS.get_or_init(|| [SecretKey::from_seed(&[1; 32]).id(), SecretKey::from_seed(&[2; 32]).id()])
}

/// Once nothing is lost any more this many dials of both ends together must do.
const DIALS_UNTIL_SETTLED: u32 = 8;

fn run(seed: u64) {
    let mut schedule = Schedule::new(seed);
    for _ in 0..schedule.random.random_range(0..40) {
        if let Some(step) = schedule.pick(false) {
            schedule.take(step);
        }
    }
    schedule.trace.push("calm".into());
    schedule.dials = 0;
    for _ in 0..400 {
        let Some(step) = schedule.pick(true) else { break };
        schedule.take(step);
    }
    assert!(schedule.is_settled(), "VOLT_SEED={seed}\n{}", schedule.show());
    assert!(schedule.dials <= DIALS_UNTIL_SETTLED, "VOLT_SEED={seed}: {} dials\n{}", schedule.dials, schedule.show());
}

#[test]
fn whatever_the_schedule_both_ends_come_to_use_the_same_one_link() {
    seeds(4_000).for_each(run);
}

/// The first dial after everything is calm is enough, if one end knows that its link is dead and the other still believes.
#[test]
fn an_end_that_believes_a_dead_link_does_not_keep_the_other_out() {
    for seed in seeds(2_000) {
        let mut schedule = Schedule::new(seed);
        while schedule.up(0).is_none() || schedule.up(0) != schedule.up(1) {
            let step = schedule.pick(true).expect("there is always a way on");
            schedule.take(step);
        }
        while let Some(step) = schedule.pick(true) {
            schedule.take(step);
        }
        let (link, end) = (schedule.up(0).expect("it is up"), schedule.random.random_range(0..2));
        schedule.take(Step::Kill(link, [true; 2]));
        if schedule.random.random() {
            schedule.take(Step::Restart(end));
        } else {
            schedule.take(Step::GiveUp(link, end));
        }
        schedule.dials = 0;
        schedule.take(Step::Dial(end));
        let new = schedule.wires.len() - 1;
        while schedule.up(end) != Some(new) || schedule.up(1 - end) != Some(new) {
            let on = |step: &Step| matches!(step, Step::Deliver(at, _) | Step::Adopt(at, _) if *at == new);
            let Some(step) = schedule.possible(true).into_iter().find(on) else {
                panic!("VOLT_SEED={seed}: stuck\n{}", schedule.show());
            };
            schedule.take(step);
        }
        assert_eq!(schedule.dials, 1);
    }
}

/// Both ends doubt a link that is dead or is not, and neither knows what the other does. Whoever dials, and whatever answers, they
/// stay connected or are so again after one dial each, and at the end there is one link.
#[test]
fn two_ends_that_suspect_their_link_at_the_same_time_do_not_replace_each_others_links_by_turns() {
    for seed in seeds(2_000) {
        let mut schedule = Schedule::new(seed);
        schedule.abrupt = false;
        while let Some(step) = schedule.pick(true) {
            schedule.take(step);
        }
        let old = schedule.up(0).expect("it is up");
        if schedule.random.random() {
            schedule.take(Step::Kill(old, [true; 2]));
        }
        schedule.dials = 0;
        let mut doubts = vec![0, 1];
        loop {
            if !doubts.is_empty() && schedule.random.random_ratio(1, 4) {
                let end = doubts.remove(schedule.random.random_range(0..doubts.len()));
                // Its link may have been replaced, or lost, already.
                if schedule.up(end) == Some(old) {
                    schedule.take(Step::Suspect(end));
                }
                continue;
            }
            match schedule.pick(true) {
                Some(step) => schedule.take(step),
                None if doubts.is_empty() => break,
                None => {}
            }
        }
        assert!(schedule.is_settled(), "VOLT_SEED={seed}\n{}", schedule.show());
        assert!(schedule.dials <= 4, "VOLT_SEED={seed}: {} dials\n{}", schedule.dials, schedule.show());
    }
}
