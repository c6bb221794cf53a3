//! Whose turn it is on the network's thread. The runtime runs what is ready in the order in which it became so: a peer that keeps
//! the thread busy has very much ready all the time, and an answer of a few steps to somebody else waits for all of it at each step. So each
//! peer's tasks have turns: what they took is written down, and when it is a turn more than what others had meanwhile they wait until nobody
//! else has a step to make. A thread that has time left is given to whoever wants it, and who is alone never waits.
//!
//! This is start-time fair queueing (Goyal, Vin and Cheng, "Start-Time Fair Queueing", 1996) with the thread's time as the measure: whatever
//! a peer floods with, it takes its own time. There is a virtual time, at least where whoever was let in last began; who takes something
//! moves its own end on from there. So who was idle comes in at once but has saved up nothing, and those that always want more take turns.
//! Virtual time passes with the clock too, as fast as each would get on if all wanted more: who takes less than that never waits.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::task::coop::{consume_budget, has_budget_remaining};
use tokio::task::yield_now;
use tokio::time::Instant;

/// How long a turn is. Longer ones cost less, and others wait for them longer.
const TURN: Duration = Duration::from_micros(60);
/// Most tasks of one peer that are let in at a time. There may be a thousand that have next to nothing to do each.
const AT_A_TIME: usize = 32;
/// Looked at so often, somebody else always had something to do: then whoever waits is let in nevertheless.
const ROUNDS: usize = 16;
/// Who had no turn in two of these is not thought of.
const WINDOW: Duration = Duration::from_millis(500);
/// What a task may do at a time by the runtime's cooperative scheduling: so many messages read, or packets dealt with.
const BUDGET: usize = 128;
/// The same of what takes in packets, each of which takes some microseconds: after many that were quickly done may come as many that are not.
const PACKETS: usize = 16;
/// What a task begins with while others are there; each packet may be full of work.
const FIRST_BUDGET: usize = 8;

/// Gives out the turns of one thread.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    handle: Handle,
    began: Instant,
    active: Active,
    /// Steps made so far.
    steps: AtomicUsize,
    accounts: AtomicU64,
    /// The virtual time, in nanoseconds, and the clock when it was looked at last.
    time: AtomicU64,
    clock: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Who waits.
#[derive(Debug, Default)]
struct Waiting {
    /// By the numbers of their accounts.
    peers: HashMap<u64, Peer>,
    /// The end of what each of them took, and its number: the first is next. Not there is whose turn it is.
    order: BTreeSet<(u64, u64)>,
    /// Whose turn it is, if more of its tasks wait.
    inside: Option<u64>,
    /// Tasks that have waited so far.
    came: u64,
    /// Somebody is there to let them in.
    attended: bool,
}

/// Those of one peer, in the order in which they came.
#[derive(Debug)]
struct Peer {
    account: Account,
    end: u64,
    tasks: BTreeMap<u64, Waker>,
}

/// Accounts that had a turn in this window and in the last one, and which window it is.
#[derive(Debug, Default)]
struct Active {
    window: AtomicU64,
    now: AtomicUsize,
    before: AtomicUsize,
}

/// What one peer has taken. Clones are the same account.
#[derive(Clone, Debug)]
pub struct Account(Arc<Held>);

#[derive(Debug)]
struct Held {
    number: u64,
    turns: Turns,
    /// The virtual time at which what it took ends.
    end: AtomicU64,
    window: AtomicU64,
    /// Who pays instead.
    by: OnceLock<Account>,
}

thread_local! {
    /// By whose account that is which is spawned now.
    static SPAWNING: RefCell<Option<Account>> = const { RefCell::new(None) };
}

impl Turns {
    /// Those of this runtime's one thread.
    pub(super) fn new(handle: Handle) -> Self {
        let (active, steps, accounts, time, clock, waiting) = Default::default();
        Self(Arc::new(Shared { handle, began: Instant::now(), active, steps, accounts, time, clock, waiting }))
    }

    /// A new account, by which nothing was taken yet.
    pub fn account(&self) -> Account {
        let (end, window, by) = Default::default();
        let number = self.0.accounts.fetch_add(1, Relaxed);
        Account(Arc::new(Held { number, turns: self.clone(), end, window, by }))
    }

    fn window(&self, now: Instant) -> u64 {
        // Never 0, which is before the first.
        1 + (now.saturating_duration_since(self.0.began).as_nanos() / WINDOW.as_nanos()) as u64
    }

    /// Time has passed for so many.
    fn pass(&self, now: Instant, active: usize) {
        let nanos = now.saturating_duration_since(self.0.began).as_nanos() as u64;
        let before = self.0.clock.fetch_max(nanos, Relaxed);
        self.0.time.fetch_add(nanos.saturating_sub(before) / active as u64, Relaxed);
    }

    /// This task waits; if it has waited before, where it was. Gives its place.
    fn wait(&self, account: &Account, before: Option<u64>, waker: &Waker) -> u64 {
        let mut waiting = self.waiting();
        let place = waiting.enter(account, before, waker.clone());
        if !std::mem::replace(&mut waiting.attended, true) {
            self.0.handle.spawn(self.clone().let_in());
        }
        place
    }

    /// Lets in one peer after the other, each when nobody else has a step to make.
    async fn let_in(self) {
        loop {
            for _ in 0..ROUNDS {
                let before = self.0.steps.load(Relaxed);
                // Comes back when everything that was ready has been run, and the network was looked at.
                yield_now().await;
                if self.0.steps.load(Relaxed) == before {
                    break;
                }
            }
            let Some((end, tasks)) = self.waiting().next() else { return };
            self.0.time.fetch_max(end, Relaxed);
            tasks.into_iter().for_each(Waker::wake);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().expect("nothing panics while it is held")
    }
}

impl Waiting {
    fn enter(&mut self, account: &Account, before: Option<u64>, waker: Waker) -> u64 {
        self.came += u64::from(before.is_none());
        let (number, place) = (account.0.number, before.unwrap_or(self.came));
        let peer = self.peers.entry(number).or_insert_with(|| {
            let end = account.0.end.load(Relaxed);
            self.order.insert((end, number));
            Peer { account: account.clone(), end, tasks: BTreeMap::new() }
        });
        peer.tasks.insert(place, waker);
        place
    }

    /// Whether this one still waits; if so, this is whom to wake.
    fn waits_on(&mut self, account: &Account, place: u64, waker: &Waker) -> bool {
        let old = self.peers.get_mut(&account.0.number).and_then(|peer| peer.tasks.get_mut(&place));
        old.map(|old| old.clone_from(waker)).is_some()
    }

    fn leave(&mut self, account: &Account, place: u64) {
        let number = account.0.number;
        let Some(peer) = self.peers.get_mut(&number) else { return };
        peer.tasks.remove(&place);
        if peer.tasks.is_empty() {
            self.order.remove(&(peer.end, number));
            self.inside.take_if(|inside| *inside == number);
            self.peers.remove(&number);
        }
    }

    /// The tasks whose turn it is: all are of one peer; and where that one's turn begins. If there are none, nobody is there any more to
    /// ask again.
    fn next(&mut self) -> Option<(u64, Vec<Waker>)> {
        if let Some(number) = self.inside.take()
            && let Some(peer) = self.peers.get_mut(&number)
        {
            peer.end = peer.account.0.end.load(Relaxed);
            self.order.insert((peer.end, number));
        }
        while let Some((end, number)) = self.order.pop_first() {
            let Entry::Occupied(mut peer) = self.peers.entry(number) else { continue };
            let tasks = &mut peer.get_mut().tasks;
            let wakers = (0..AT_A_TIME).map_while(|_| Some(tasks.pop_first()?.1)).collect();
            match tasks.is_empty() {
                true => drop(peer.remove()),
                false => self.inside = Some(number),
            }
            return Some((end, wakers));
        }
        self.attended = false;
        None
    }
}

impl Active {
    fn one_more(&self, window: u64) {
        let last = self.window.swap(window, Relaxed);
        if last != window {
            let before = self.now.swap(0, Relaxed);
            self.before.store(if last + 1 == window { before } else { 0 }, Relaxed);
        }
        self.now.fetch_add(1, Relaxed);
    }

    /// At least so many.
    fn get(&self) -> usize {
        self.now.load(Relaxed).max(self.before.load(Relaxed))
    }
}

impl Account {
    /// A new one beside it, by which nothing was taken yet.
    pub fn another(&self) -> Account {
        self.0.turns.account()
    }

    /// From now on another account pays for what this one takes. Once.
    pub fn paid_by(&self, other: &Account) {
        if !Arc::ptr_eq(&self.0, &other.0) {
            let _ = self.0.by.set(other.clone());
        }
    }

    /// What this has QUIC spawn takes its turns by this account.
    pub(super) fn spawning<T>(&self, run: impl FnOnce() -> T) -> T {
        SPAWNING.set(Some(self.clone()));
        let done = run();
        SPAWNING.take();
        done
    }

    /// By whose account that is which is spawned now, if by anybody's.
    pub(super) fn spawned() -> Option<Account> {
        SPAWNING.take()
    }

    /// This future, with turns by this account. Cancel-safe if the future is.
    pub fn in_turn<F: Future>(&self, future: F) -> InTurn<F> {
        self.in_turns_of(BUDGET, future)
    }

    /// The same of a future that takes in packets.
    pub(super) fn driving<F: Future>(&self, driver: F) -> InTurn<F> {
        self.in_turns_of(PACKETS, driver)
    }

    fn in_turns_of<F: Future>(&self, most: usize, future: F) -> InTurn<F> {
        InTurn { future, place: Place { account: self.clone(), waits: None, budget: FIRST_BUDGET, most } }
    }

    fn payer(&self) -> &Account {
        self.0.by.get().map_or(self, Account::payer)
    }

    fn charge(&self, window: u64, took: Duration) {
        let nanos = took.as_nanos() as u64;
        let held = &self.0;
        let begin = held.end.load(Relaxed).max(held.turns.0.time.load(Relaxed));
        held.end.store(begin + nanos, Relaxed);
        if held.window.swap(window, Relaxed) != window {
            held.turns.0.active.one_more(window);
        }
    }

    /// Whether it has taken a turn more than others had meanwhile.
    fn had_its_turn(&self) -> bool {
        let ahead = self.0.end.load(Relaxed).saturating_sub(self.0.turns.0.time.load(Relaxed));
        ahead >= TURN.as_nanos() as u64
    }
}

pin_project! {
    /// A future that has turns on the network's thread.
    #[derive(Debug)]
    pub struct InTurn<F> {
        #[pin]
        future: F,
        place: Place,
    }
}

impl<F: Future> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.place.poll(cx, |cx| this.future.poll(cx))
    }
}

/// A task's place among those who have turns.
#[derive(Debug)]
struct Place {
    account: Account,
    /// Its place among those who wait.
    waits: Option<u64>,
    /// What it may do at a time while others are there: so much that it takes about a turn.
    budget: usize,
    most: usize,
}

impl Place {
    fn poll<T>(&mut self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let payer = self.account.payer();
        let (turns, now) = (&payer.0.turns, Instant::now());
        // Woken by something else it waits on: whoever lets it in takes it off the list.
        if self.waits.is_some_and(|place| turns.waiting().waits_on(payer, place, cx.waker())) {
            return Poll::Pending;
        }
        let active = turns.0.active.get();
        if active > 1 {
            turns.pass(now, active);
            if payer.had_its_turn() {
                self.waits = Some(turns.wait(payer, self.waits, cx.waker()));
                return Poll::Pending;
            }
            for _ in self.budget..BUDGET {
                let _ = pin!(consume_budget()).poll(cx);
            }
        }
        self.waits = None;
        turns.0.steps.fetch_add(1, Relaxed);
        let polled = poll(cx);
        let took = now.elapsed();
        payer.charge(turns.window(now), took);
        match took > TURN {
            true => self.budget = (self.budget / 2).max(1),
            false if took < TURN / 2 && !has_budget_remaining() => self.budget = (self.budget * 2).min(self.most),
            false => {}
        }
        polled
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(place) = self.waits {
            let payer = self.account.payer();
            payer.0.turns.waiting().leave(payer, place);
        }
    }
}

#[cfg(test)]
mod tests;
