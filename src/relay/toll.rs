//! What carrying costs whoever has it done: how many circuits, how fast, for how long; and what was counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::end::Counts;
use crate::id::NodeId;
use crate::proto::limits::Limits;
use crate::state::quota::{Most, Payer, Quota};
use crate::state::rate::Rate;

/// Bytes carried in one piece where there is a rate: so that many who share it take turns.
const PIECE_BYTES: usize = 16 * 1024;

/// What a relay counted since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RelayCounts {
    /// Circuits carried now.
    pub circuits: usize,
    /// Circuits carried so far, those now among them.
    pub circuits_ever: u64,
    /// Streams carried so far.
    pub streams_ever: u64,
    /// Bytes carried so far, both ways together.
    pub bytes: u64,
    /// Circuits refused by policy.
    pub refused_by_policy: u64,
    /// Circuits refused because there were too many.
    pub refused_by_quota: u64,
    /// Circuits refused because the next node is not attached here, or gave no answer.
    pub not_there: u64,
    /// Circuits that were given up because nothing had come back of them.
    pub half_open: u64,
}

/// Keeps the counts.
pub(super) struct Toll {
    limits: Limits,
    quota: Mutex<Quota>,
    rates: Mutex<HashMap<NodeId, Arc<Purse>>>,
    all: Option<tokio::sync::Mutex<Rate>>,
    pub counted: Counted,
    /// Circuits that lead here and have not come about yet.
    pub beginning: Counts,
}

/// Counters.
#[derive(Default)]
pub(super) struct Counted {
    pub circuits: AtomicU64,
    pub streams: AtomicU64,
    pub bytes: AtomicU64,
    pub by_policy: AtomicU64,
    pub by_quota: AtomicU64,
    pub not_there: AtomicU64,
    pub half_open: AtomicU64,
}

/// What all circuits of one neighbour share.
struct Purse {
    rate: Option<Mutex<Rate>>,
    /// One piece of a neighbour's at a time waits for its turn in the rate of all: so that who has many streams has no more turns.
    turn: tokio::sync::Mutex<()>,
}

/// One circuit that is carried, as far as its neighbour pays for it.
pub(super) struct Fare {
    toll: Arc<Toll>,
    payer: Payer,
    purse: Arc<Purse>,
}

impl Toll {
    pub fn new(limits: &Limits) -> Arc<Self> {
        let most = Most {
            per_identity: limits.relay_circuits_per_identity,
            per_address: limits.relay_circuits_per_address,
            all: limits.relay_circuits,
        };
        Arc::new(Self {
            quota: Mutex::new(Quota::new(most)),
            rates: Mutex::default(),
            all: rate(limits.relay_all_bytes_per_second).map(tokio::sync::Mutex::new),
            counted: Counted::default(),
            beginning: Counts::default(),
            limits: limits.clone(),
        })
    }

    /// One more circuit for this payer, until what is returned is dropped. `None`: it has too many.
    pub fn begin(self: &Arc<Self>, payer: Payer) -> Option<Fare> {
        if !lock(&self.quota).begin(&payer) {
            count(&self.counted.by_quota);
            return None;
        }
        count(&self.counted.circuits);
        let per_second = match payer.guest_from {
            Some(_) => self.limits.relay_guest_bytes_per_second,
            None => self.limits.relay_bytes_per_second,
        };
        let purse = lock(&self.rates).entry(payer.id).or_insert_with(|| Arc::new(Purse::new(per_second))).clone();
        Some(Fare { toll: self.clone(), payer, purse })
    }

    pub fn counts(&self) -> RelayCounts {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        RelayCounts {
            circuits: lock(&self.quota).all(),
            circuits_ever: read(&self.counted.circuits),
            streams_ever: read(&self.counted.streams),
            bytes: read(&self.counted.bytes),
            refused_by_policy: read(&self.counted.by_policy),
            refused_by_quota: read(&self.counted.by_quota),
            not_there: read(&self.counted.not_there),
            half_open: read(&self.counted.half_open),
        }
    }
}

/// A rate; without one things go as fast as they can.
fn rate(bytes_per_second: u64) -> Option<Rate> {
    (bytes_per_second > 0).then(|| Rate::new(bytes_per_second))
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Purse {
    fn new(bytes_per_second: u64) -> Self {
        Self { rate: rate(bytes_per_second).map(Mutex::new), turn: tokio::sync::Mutex::default() }
    }
}

impl Fare {
    /// How long a circuit may be half open.
    pub fn half_open(&self) -> Duration {
        self.toll.limits.relay_half_open
    }

    pub fn counted(&self) -> &Counted {
        &self.toll.counted
    }

    /// Most bytes of one piece.
    pub fn piece(&self) -> usize {
        if self.purse.rate.is_some() || self.toll.all.is_some() { PIECE_BYTES } else { usize::MAX }
    }

    /// Waits until so many bytes may go on.
    pub async fn pay(&self, bytes: usize) {
        self.toll.counted.bytes.fetch_add(bytes as u64, Relaxed);
        if let Some(rate) = &self.purse.rate {
            let time = lock(rate).take(bytes, now());
            wait(time).await;
        }
        if let Some(all) = &self.toll.all {
            // Both are fair to those who wait: neighbours take turns, whatever each has waiting.
            let _turn = self.purse.turn.lock().await;
            let mut all = all.lock().await;
            wait(all.take(bytes, now())).await;
        }
    }

    /// How long the circuit lasts, if it is not to last.
    pub fn time(&self) -> Option<Duration> {
        self.payer.guest_from.map(|_| self.toll.limits.relay_guest_time)
    }
}

impl Drop for Fare {
    fn drop(&mut self) {
        // One lock inside the other, as nowhere else: so that no new purse comes between.
        let mut quota = lock(&self.toll.quota);
        if quota.end(&self.payer) {
            lock(&self.toll.rates).remove(&self.payer.id);
        }
    }
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is held")
}
