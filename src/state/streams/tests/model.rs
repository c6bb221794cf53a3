//! Two ends, any schedule: whatever happens to the paths between them, what is sent arrives once and in order, and both ends
//! come to know all there is to know.

use proptest::prelude::*;

use super::ends::{End, side};
use super::net::{self, Net};
use crate::proto::control::LiveStream;
use crate::state::streams::Ended;

/// So small that it runs out.
pub const BUDGET: usize = 700 * 1024;

/// One thing that happens. The numbers choose among what is there.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Open(usize),
    Write(usize, usize, usize),
    Finish(usize, usize),
    Reset(usize, usize, u8),
    Stop(usize, usize, u8),
    DropWriter(usize, usize),
    DropReader(usize, usize),
    Read(usize, usize, usize),
    Hand(usize, usize, usize),
    Accept(usize, usize),
    HearFirst(usize, usize),
    Carry(usize, usize),
    Task(usize, usize, usize),
    Tell(usize),
    Hear(usize),
    /// This end dials.
    Dial(usize),
    /// A greeting goes one step.
    Greet(usize, usize),
    Die(usize),
    Notice(usize),
    /// Everything goes on for so many rounds, but for the greetings.
    Run(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::*;
    let (e, k) = (0..2usize, 0..8usize);
    let n = prop_oneof![4 => 1..200usize, 2 => 1_000..9_000usize, 1 => 20_000..70_000usize];
    let code = 1..6u8;
    let step = prop_oneof![
        4 => e.clone().prop_map(Open),
        8 => (e.clone(), k.clone(), n.clone()).prop_map(|(e, k, n)| Write(e, k, n)),
        3 => (e.clone(), k.clone()).prop_map(|(e, k)| Finish(e, k)),
        1 => (e.clone(), k.clone(), code.clone()).prop_map(|(e, k, c)| Reset(e, k, c)),
        1 => (e.clone(), k.clone(), code).prop_map(|(e, k, c)| Stop(e, k, c)),
        1 => (e.clone(), k.clone()).prop_map(|(e, k)| DropWriter(e, k)),
        2 => (e.clone(), k.clone()).prop_map(|(e, k)| DropReader(e, k)),
        8 => (e.clone(), k.clone(), n.clone()).prop_map(|(e, k, n)| Read(e, k, n)),
        8 => (e.clone(), k.clone(), n.clone()).prop_map(|(e, k, n)| Hand(e, k, n)),
        5 => (e.clone(), k.clone()).prop_map(|(e, k)| Accept(e, k)),
        5 => (e.clone(), k.clone()).prop_map(|(e, k)| HearFirst(e, k)),
        5 => (e.clone(), k.clone()).prop_map(|(e, k)| Carry(e, k)),
        6 => (e.clone(), k.clone(), n).prop_map(|(e, k, n)| Task(e, k, n)),
        5 => e.clone().prop_map(Tell),
        5 => e.clone().prop_map(Hear),
        3 => e.clone().prop_map(Dial),
        10 => (k.clone(), 0..2usize).prop_map(|(k, e)| Greet(k, e)),
        2 => k.prop_map(Die),
        2 => e.prop_map(Notice),
        4 => (1..6usize).prop_map(Run),
    ];
    proptest::collection::vec(step, 1..250)
}

/// The exchange that attaches a session to a path.
struct Greeting {
    at: (usize, u64),
    dialler: usize,
    /// What each end said.
    said: [Option<(u64, Vec<LiveStream>)>; 2],
    attached: [bool; 2],
}

/// Both ends, and what is between them.
pub struct World {
    net: Net,
    pub ends: [End; 2],
    greetings: Vec<Greeting>,
    attach: u64,
}

impl World {
    pub fn new(keeps: bool) -> Self {
        let net = Net::default();
        let end = |end| End::new(end, &net, keeps, BUDGET);
        let mut world = Self { ends: [end(0), end(1)], net, greetings: Vec::new(), attach: 0 };
        world.connect(0);
        world
    }

    fn dial(&mut self, dialler: usize) {
        self.attach += 1;
        let at = (net::dial(&self.net), self.attach);
        self.greetings.push(Greeting { at, dialler, said: [None, None], attached: [false; 2] });
    }

    /// The accepting end speaks first, then the other, which attaches; `end` may do next what it can.
    fn greet(&mut self, nth: usize, end: usize) {
        if self.greetings.is_empty() {
            return;
        }
        let nth = nth % self.greetings.len();
        let greeting = &mut self.greetings[nth];
        let (dialler, acceptor) = (greeting.dialler, 1 - greeting.dialler);
        let carries = self.net.borrow()[greeting.at.0].carries();
        if greeting.said[acceptor].is_none() {
            greeting.said[acceptor] = Some(self.ends[acceptor].streams.standing());
        } else if greeting.said[dialler].is_none() && carries {
            greeting.said[dialler] = Some(self.ends[dialler].streams.standing());
        } else if greeting.said[dialler].is_some() && !greeting.attached[end] && (carries || end == dialler) {
            greeting.attached[end] = true;
            let [said, theirs] = [end, 1 - end].map(|end| greeting.said[end].clone().expect("both have spoken"));
            self.ends[end].attach(greeting.at, &said, &theirs);
        } else if !carries {
            // Whoever has not attached gives it up.
            for end in (0..2).filter(|end| !greeting.attached[*end]) {
                self.net.borrow_mut()[greeting.at.0].closed[end] = true;
            }
            greeting.attached = [true; 2];
        }
        if greeting.attached == [true; 2] {
            self.greetings.remove(nth);
        }
    }

    /// A path that both ends are on: the one they have or are about to, else one more.
    pub fn connect(&mut self, dialler: usize) {
        self.finish_greetings();
        self.ends.iter_mut().for_each(End::notice);
        if self.ends[0].path.is_none() || self.ends[0].path != self.ends[1].path {
            self.dial(dialler);
            self.finish_greetings();
        }
        assert!(self.ends[0].path.is_some() && self.ends[0].path == self.ends[1].path);
    }

    fn finish_greetings(&mut self) {
        while !self.greetings.is_empty() {
            self.greet(0, 0);
            self.greet(0, 1);
        }
    }

    pub fn step(&mut self, step: Step) {
        let id = |end: &End, nth: usize| {
            let ids = end.ids();
            ids.get(nth % ids.len().max(1)).copied().unwrap_or(u64::MAX)
        };
        let of = |end: usize, nth: usize| id(&self.ends[end], nth);
        match step {
            Step::Open(e) => drop(self.ends[e].open()),
            Step::Write(e, k, n) => {
                let id = of(e, k);
                self.ends[e].write(id, n, false);
            }
            Step::Finish(e, k) => {
                let id = of(e, k);
                self.finish(e, id);
            }
            Step::Reset(e, k, code) => {
                let id = of(e, k);
                self.ends[e].reset(id, code);
            }
            Step::Stop(e, k, code) => {
                let id = of(e, k);
                self.ends[e].stop(id, code);
            }
            Step::DropWriter(e, k) => {
                let id = of(e, k);
                self.ends[e].drop_writer(id);
            }
            Step::DropReader(e, k) => {
                let id = of(e, k);
                self.ends[e].drop_reader(id);
            }
            Step::Read(e, k, n) => {
                let id = of(e, k);
                self.ends[e].read(id, n);
            }
            Step::Hand(e, k, n) => {
                let id = of(e, k);
                self.ends[e].hand(id, n);
            }
            Step::Accept(e, k) => self.ends[e].accept(k),
            Step::HearFirst(e, k) => self.ends[e].hear_first(k),
            Step::Carry(e, k) => self.ends[e].carry(k),
            Step::Task(e, k, n) => self.ends[e].run_task(k, n),
            Step::Tell(e) => self.ends[e].tell(),
            Step::Hear(e) => self.ends[e].hear(),
            Step::Dial(e) => self.dial(e),
            Step::Greet(k, e) => self.greet(k, e),
            Step::Die(k) => {
                let mut net = self.net.borrow_mut();
                // One of the newest: the others are gone, mostly.
                let at = net.len().saturating_sub(1 + k % 3);
                net[at].die();
            }
            Step::Notice(e) => self.ends[e].notice(),
            Step::Run(rounds) => (0..rounds).for_each(|_| self.round()),
        }
        self.ends.iter().for_each(End::check);
    }

    /// A stream begins with a byte: without one nobody hears of it.
    fn finish(&mut self, end: usize, id: u64) {
        let begun = self.ends[end].writers.get(&id).is_some_and(|writer| writer.written > 0);
        self.ends[end].write(id, usize::from(!begun), true);
    }

    fn round(&mut self) {
        for end in &mut self.ends {
            for nth in 0..20 {
                end.accept(nth);
                end.hear_first(nth);
                end.carry(nth);
                end.run_task(nth, 9_000);
            }
            for id in end.ids() {
                end.hand(id, usize::MAX);
                end.read(id, usize::MAX);
            }
            if end.due {
                end.tell();
            }
            end.hear();
            end.notice();
        }
    }

    /// Everything settles on one more path: all that is sent arrives, and what is not to arrive is known.
    pub fn settle(&mut self) {
        self.connect(1);
        for _ in 0..400 {
            self.round();
            for end in 0..2 {
                for id in self.ends[end].ids() {
                    self.finish(end, id);
                }
            }
        }
        self.ends.iter().for_each(End::check);
        for end in 0..2 {
            for id in self.ends[end].ids() {
                self.check_direction(end, id);
            }
        }
        // Whose reader is dropped first says that the stream is over; all know.
        for end in 0..2 {
            for id in self.ends[end].ids() {
                self.ends[end].drop_reader(id);
                self.ends[end].drop_writer(id);
            }
        }
        (0..20).for_each(|_| self.round());
        for end in &self.ends {
            end.check();
            assert!(end.streams.is_empty(), "left over: {:?}", end.streams.live.keys());
            assert_eq!((end.streams.accepted(), end.budget.left()), (0, BUDGET));
        }
    }

    /// What this end sent on a stream, and the other one read.
    fn check_direction(&self, end: usize, id: u64) {
        let (sends, reads) = (&self.ends[end], &self.ends[1 - end]);
        let opener = usize::from(!side(0).opens(id));
        let over = self.ends[opener].over.contains(&id) || self.ends.iter().any(|end| end.torn.contains(&id));
        let heard = self.ends[1 - opener].executed.contains(&id);
        let Some(writer) = sends.writers.get(&id) else { return };
        if over {
            return;
        }
        if !heard {
            let (writer, reader) = (self.ends[opener].writers.get(&id), self.ends[opener].readers.get(&id));
            let given_up = writer.is_some_and(|writer| writer.reset.is_some());
            let waits = reader.is_some_and(|reader| reader.stopped.is_none() && reader.error.is_none());
            assert!(!(given_up && waits), "stream {id} was given up unheard, and an answer is waited for");
            return;
        }
        let Some(reader) = reads.readers.get(&id) else { return };
        let (written, read) = (writer.written, reader.read);
        assert!(read <= written, "stream {id} from end {end}: {read} of {written}");
        if let Some(code) = reader.stopped {
            let known = sends.streams.sends(id);
            // Without resumption only the path says it, to whoever still writes.
            let gone = writer.reset.is_some() || !sends.streams.keeps();
            assert!(gone || known == Err(Ended::Stopped(code.into())), "stop of stream {id} from end {end}: {known:?}");
        } else if let Some(code) = writer.reset {
            assert_eq!(reader.error, Some(Ended::Reset(code.into())), "reset of stream {id} from end {end}");
        } else {
            assert!(writer.finished, "stream {id} from end {end}: {writer:?}, {:?}", sends.streams.live[&id]);
            assert_eq!((read, reader.finished), (written, true), "stream {id} from end {end}: {reader:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_paths_all_arrives_once_and_all_is_known(steps in steps()) {
        let mut world = World::new(true);
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
    }

    #[test]
    fn without_resumption_all_arrives_on_the_one_path_and_nothing_is_left_of_it(steps in steps()) {
        let mut world = World::new(false);
        let of_paths = |step: &Step| matches!(step, Step::Dial(_) | Step::Greet(..) | Step::Die(_));
        for step in steps.into_iter().filter(|step| !of_paths(step)) {
            world.step(step);
            prop_assert!(world.ends.iter().all(|end| end.budget.left() == BUDGET && !end.streams.has_news()));
        }
        world.settle();
    }
}

#[test]
fn regression_a_stream_that_came_and_went_between_the_attach_list_and_the_next_path_is_over() {
    use Step::*;
    let mut world = World::new(true);
    let steps = [Dial(1), Greet(0, 0), Open(0), Write(0, 0, 1), Run(1), DropReader(0, 0), Greet(0, 0), Greet(0, 1), Tell(0)];
    steps.into_iter().for_each(|step| world.step(step));
    world.settle();
}
