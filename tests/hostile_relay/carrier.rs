//! The carrier: it takes the streams of one circuit on, as its plan says.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use voltmesh::net::{PathError, PathRecv, PathSend};
use voltmesh::proto::close::StreamCode;

use crate::bench::{A, Arrival, B, Bench, Halves, Head, Old};
use crate::edit::{Edit, Next};
use crate::plan::{Deed, Plan, Way};

/// Nothing has moved in a circuit for so long: then what is held goes on, or all is cut off. Only the numbers in the table depend on it.
const QUIET: Duration = Duration::from_millis(300);

/// A stream that was carried, as it came.
#[derive(Clone, Debug, Default)]
pub struct Relayed {
    /// None of the control stream.
    pub number: Option<u64>,
    /// The site that opened it.
    pub from: usize,
    pub bytes: [Vec<u8>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// What was held goes on.
    Released,
    /// Everything is cut off.
    Cut,
}

/// One circuit's carriage.
pub struct Case {
    pub plan: Plan,
    pub bench: Arc<Bench>,
    /// The legs' numbers, at A and at B.
    pub legs: [u64; 2],
    old: Option<Old>,
    stage: watch::Sender<Stage>,
    progress: Notify,
    changed: AtomicBool,
    over: AtomicBool,
    said_again: AtomicBool,
    /// What was said again has been looked at.
    looked_at: watch::Sender<bool>,
    /// Something waits for all else to be done.
    held: AtomicBool,
    relayed: Mutex<Vec<Relayed>>,
    /// Whether all was cut off when an end first saw something.
    seen: OnceLock<bool>,
    exchange: Mutex<Option<(PathSend, oneshot::Sender<PathSend>)>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Case {
    pub fn new(bench: &Arc<Bench>, plan: Plan, legs: [u64; 2]) -> Arc<Self> {
        let wants_old = matches!(plan.deed, Deed::Old | Deed::ReplayOld);
        Arc::new(Self {
            old: wants_old.then(|| bench.old(plan.length)).flatten(),
            plan,
            bench: bench.clone(),
            legs,
            stage: watch::Sender::new(Stage::Running),
            progress: Notify::new(),
            changed: AtomicBool::new(false),
            over: AtomicBool::new(false),
            said_again: AtomicBool::new(false),
            looked_at: watch::Sender::new(false),
            held: AtomicBool::new(false),
            relayed: Mutex::default(),
            seen: OnceLock::new(),
            exchange: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// Something has moved.
    pub fn moved(&self) {
        self.progress.notify_one();
    }

    /// Something else arrives than was said. What comes after the ends have said good-bye counts on the control stream only, where that is said.
    pub fn change(&self) {
        if !self.over.load(Relaxed) || self.plan.way.0 == 0 {
            self.changed.store(true, Relaxed);
        }
    }

    /// The ends say good-bye.
    pub fn over(&self) {
        self.over.store(true, Relaxed);
    }

    pub fn is_changed(&self) -> bool {
        self.changed.load(Relaxed)
    }

    fn is_cut(&self) -> bool {
        *self.stage.borrow() == Stage::Cut
    }

    /// An end has seen something.
    pub fn seen(&self) {
        self.seen.get_or_init(|| self.is_cut());
    }

    /// Whether nothing was seen before all was cut off.
    pub fn has_waited(&self) -> bool {
        self.seen.get().copied().unwrap_or_else(|| self.is_cut())
    }

    /// What was carried.
    pub fn relayed(&self) -> Vec<Relayed> {
        self.relayed.lock().unwrap().clone()
    }

    /// It is over: nothing of it runs on.
    pub fn stop(&self) {
        let mut tasks = self.tasks.lock().unwrap();
        while let Some(ended) = tasks.try_join_next() {
            ended.unwrap_or_else(|error| panic!("the carrier failed, at {:?}: {error}", self.plan));
        }
        tasks.abort_all();
        self.bench.forget(self.legs);
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().spawn(task);
    }

    /// Ends when nothing has moved for a while.
    pub async fn quiet(&self) {
        while timeout(QUIET, self.progress.notified()).await.is_ok() {}
    }

    /// Waits for this, and when nothing moves lets go of what is held, and then of everything.
    pub async fn watched<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.quiet() => self.stage.send_modify(|stage| *stage = match stage {
                    Stage::Running if self.held.load(Relaxed) => Stage::Released,
                    _ => Stage::Cut,
                }),
            }
        }
    }

    async fn reached(&self, wanted: Stage) {
        self.held.fetch_or(wanted == Stage::Released, Relaxed);
        let _ = self.stage.subscribe().wait_for(|stage| *stage >= wanted).await;
    }

    pub async fn cut(&self) {
        self.reached(Stage::Cut).await;
    }

    /// Takes on what comes from both sides, until it is stopped.
    pub fn carry(self: &Arc<Self>) {
        for site in [A, B] {
            let (arrivals, mut arrived) = mpsc::unbounded_channel();
            self.bench.carries(site, self.legs[site], &arrivals);
            let case = self.clone();
            self.spawn(async move {
                let _arrivals = arrivals;
                while let Some(arrival) = arrived.recv().await {
                    case.moved();
                    // In the order they come.
                    let _ = case.clone().take_on(site, arrival).await;
                }
            });
        }
    }

    async fn take_on(self: Arc<Self>, from: usize, Arrival { head, halves, rest }: Arrival) -> Option<()> {
        let to = B - from;
        let index = self.note(head.number, from);
        let here = self.plan.way.0 == index && !head.is_control();
        if here && self.plan.deed == Deed::DropStream {
            self.change();
            self.spawn(async move {
                let _halves = halves;
                std::future::pending().await
            });
            return None;
        }
        let number = match head.number {
            Some(number) if here && self.plan.deed == Deed::Renumber => Some(self.other_number(number)),
            number => number,
        };
        if number != head.number {
            self.change();
        }
        let there = self.bench.open(to, Head { leg: self.legs[to], number, ..head }).await?;
        let also = match here && self.plan.deed == Deed::Twice {
            true => Some(self.bench.open(to, Head { leg: self.legs[to], ..head }).await?),
            false => None,
        };
        self.splice(index, halves, there, also, rest);
        Some(())
    }

    /// The control stream is the first.
    pub fn note_control(&self) {
        self.note(None, A);
    }

    fn note(&self, number: Option<u64>, from: usize) -> usize {
        let mut relayed = self.relayed.lock().unwrap();
        relayed.push(Relayed { number, from, bytes: Default::default() });
        relayed.len() - 1
    }

    /// Carries both directions of a stream.
    pub fn splice(self: &Arc<Self>, index: usize, near: Halves, far: Halves, also: Option<Halves>, rest: Bytes) {
        let (also_send, also_recv) = also.unzip();
        if also_send.is_some() {
            self.change();
        }
        let (forth, back) = (Pump::new(self, (index, false), near.1, far.0), Pump::new(self, (index, true), far.1, near.0));
        let case = self.clone();
        self.spawn(async move {
            Pump { also: also_send, ..forth }.run(rest).await;
            if case.plan.way.0 == index && case.plan.deed.adds() {
                case.say_again().await;
            }
        });
        self.spawn(back.run(Bytes::new()));
        also_recv.into_iter().for_each(|recv| self.spawn(drain(recv)));
    }

    /// A stream's opener has said everything, or all that it says for now: it can be said again. Once; ends when that has been looked at.
    pub async fn say_again(&self) {
        if self.plan.deed.adds() && !self.said_again.swap(true, Relaxed) {
            let _ = self.say_something_again().await;
            self.looked_at.send_replace(true);
        }
        let _ = self.looked_at.subscribe().wait_for(|looked_at| *looked_at).await;
    }

    async fn say_something_again(&self) -> Option<()> {
        let length = self.plan.length;
        let mut said = self.relayed.lock().unwrap().get(self.plan.way.0)?.clone();
        let number = said.number?;
        let (mut to, mut said_again) = (B - said.from, number);
        match self.plan.deed {
            Deed::ReplaySame => {}
            Deed::ReplayOther => said_again = self.other_number(number),
            Deed::TurnBack => (to, said_again) = (said.from, if length.is_multiple_of(2) { number } else { number ^ 1 }),
            Deed::Noise => {
                said.bytes[0] = self.plan.noise();
                said_again = self.other_number(number);
            }
            Deed::ReplayOld => {
                let (_, old) = &**self.old.as_ref()?;
                said = old.iter().skip(1).nth(length % old.len().saturating_sub(1).max(1))?.clone();
                (to, said_again) = (B - said.from, said.number?);
            }
            _ => return None,
        }
        self.change();
        let (mut send, recv) = self.bench.open(to, Head::stream(self.legs[to], said_again)).await?;
        let [forth, back] = said.bytes;
        send.write(if length.is_multiple_of(7) { back } else { forth }.into()).await.ok()?;
        send.finish().ok()?;
        self.moved();
        // Whoever has looked at it drops it.
        drain(recv).await;
        Some(())
    }

    /// Nearby, or anywhere.
    fn other_number(&self, number: u64) -> u64 {
        match self.plan.number {
            near if near < 9 => number + near,
            far => far,
        }
    }

    /// Gives this direction to another one, and gets that one's; its own back when the other does not come.
    async fn exchange(&self, mine: PathSend) -> (PathSend, bool) {
        let (back, mut got) = oneshot::channel();
        if let Some((theirs, back)) = self.exchange.lock().unwrap().take() {
            let _ = back.send(mine);
            return (theirs, true);
        }
        *self.exchange.lock().unwrap() = Some((mine, back));
        tokio::select! {
            biased;
            theirs = &mut got => return (theirs.unwrap(), true),
            () = self.reached(Stage::Released) => {}
        }
        let mine = self.exchange.lock().unwrap().take();
        match mine {
            Some((mine, _)) => (mine, false),
            None => (got.await.unwrap(), true),
        }
    }

    fn edit(&self, way: Way) -> Option<Edit> {
        let plan = &self.plan;
        let two = matches!(plan.deed, Deed::Swap | Deed::Reflect | Deed::Cross);
        let at = match way {
            _ if plan.deed > Deed::Cross => return None,
            way if way == plan.way => plan.at,
            way if two && way == plan.other.0 => plan.other.1,
            _ => return None,
        };
        let old = self.old.as_ref().and_then(|old| old.1.get(way.0)).map(|old| old.bytes[usize::from(way.1)].clone());
        let make = if plan.of_records { Edit::of_records } else { Edit::new };
        Some(make(plan, at, old.unwrap_or_default()))
    }
}

async fn drain(mut recv: PathRecv) {
    while let Ok(Some(_)) = recv.read().await {}
}

/// One direction of one stream.
struct Pump {
    case: Arc<Case>,
    way: Way,
    from: PathRecv,
    /// Nothing while it is exchanged.
    to: Option<PathSend>,
    also: Option<PathSend>,
    /// What it carries goes where another direction's should.
    exchanged: bool,
    edit: Option<Edit>,
}

impl Pump {
    fn new(case: &Arc<Case>, way: Way, from: PathRecv, to: PathSend) -> Self {
        Self { case: case.clone(), way, from, to: Some(to), also: None, exchanged: false, edit: case.edit(way) }
    }

    async fn run(mut self, first: Bytes) {
        if !self.take(first).await {
            return;
        }
        loop {
            let came = tokio::select! {
                biased;
                () = self.case.cut() => Ok(None),
                came = self.from.read() => came,
            };
            self.case.moved();
            match came {
                Ok(Some(bytes)) => {
                    if !self.take(bytes).await {
                        return;
                    }
                }
                Ok(None) => return self.end().await,
                Err(PathError::Reset(code)) => return self.reset(StreamCode::from_number(code).unwrap_or(StreamCode::Cancelled)),
                Err(_) => return,
            }
        }
    }

    /// False if the direction is over.
    async fn take(&mut self, mut came: Bytes) -> bool {
        self.case.relayed.lock().unwrap()[self.way.0].bytes[usize::from(self.way.1)].extend_from_slice(&came);
        loop {
            let (out, next, left) = match &mut self.edit {
                Some(edit) => edit.feed(&came),
                None => (came.to_vec(), Next::Go, Vec::new()),
            };
            self.tell();
            if !self.write(out).await {
                return false;
            }
            match next {
                Next::Go => return true,
                Next::Exchange => {
                    let Some(mine) = self.to.take() else { return false };
                    let (to, exchanged) = self.case.exchange(mine).await;
                    (self.to, self.exchanged) = (Some(to), exchanged);
                }
                Next::Hold => {
                    self.case.change();
                    self.case.reached(Stage::Released).await;
                }
                end => {
                    self.break_off(end).await;
                    return false;
                }
            }
            came = left.into();
        }
    }

    fn finish(&mut self) {
        self.to.as_mut().into_iter().for_each(|to| drop(to.finish()));
    }

    fn reset(&mut self, code: StreamCode) {
        self.to.as_mut().into_iter().for_each(|to| to.reset(code));
    }

    fn tell(&self) {
        if self.edit.as_ref().is_some_and(|edit| edit.changed) {
            self.case.change();
        }
    }

    async fn break_off(&mut self, how: Next) {
        self.case.change();
        match how {
            Next::Finish => self.finish(),
            Next::Reset => self.reset(code(&self.case.plan)),
            Next::Stop => self.from.stop(code(&self.case.plan)),
            _ => {}
        }
        let drained = async { while let Ok(Some(_)) = self.from.read().await {} };
        tokio::select! {
            biased;
            () = self.case.cut() => {}
            () = drained => self.case.cut().await,
        }
        self.finish();
    }

    async fn end(&mut self) {
        if let Some(edit) = &mut self.edit {
            let last = edit.end();
            self.tell();
            self.write(last).await;
        }
        self.finish();
        self.also.as_mut().into_iter().for_each(|also| drop(also.finish()));
    }

    async fn write(&mut self, bytes: Vec<u8>) -> bool {
        if bytes.is_empty() {
            return true;
        }
        if self.exchanged {
            self.case.change();
        }
        let bytes = Bytes::from(bytes);
        if let Some(also) = &mut self.also
            && also.write(bytes.clone()).await.is_err()
        {
            self.also = None;
        }
        let Some(to) = &mut self.to else { return false };
        match to.write(bytes).await {
            Ok(()) => true,
            Err(PathError::Stopped(code)) => {
                self.from.stop(StreamCode::from_number(code).unwrap_or(StreamCode::Cancelled));
                false
            }
            Err(_) => false,
        }
    }
}

fn code(plan: &Plan) -> StreamCode {
    StreamCode::from_number(plan.length as u64 % 6).expect("there are six")
}
