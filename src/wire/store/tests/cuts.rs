//! Power cuts: whatever was acknowledged is there, once and in order, and of what was not a commit is there or it is not.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// What one publisher knows.
#[derive(Default)]
struct Known {
    acknowledged: u64,
    sent: u64,
}

struct Run {
    random: StdRng,
    disk: Disk,
    publishers: BTreeMap<u8, Known>,
    /// In the order in which it was acknowledged.
    acknowledged: Vec<(u8, u64)>,
}

impl Run {
    /// One commit of one or more publishers. Says whether there is still power.
    fn publish(&mut self, store: &Store) -> bool {
        let mut all = Vec::new();
        for of in 0..self.random.random_range(1..4u8) {
            let (count, length) = match self.random.random_range(0..6) {
                0 => (1, 120_000),
                1 => (300, 200),
                _ => (self.random.random_range(1..40), self.random.random_range(0..400)),
            };
            let known = self.publishers.entry(of).or_default();
            all.extend(batches(of, known.acknowledged + 1, count, length));
            known.sent = known.acknowledged + count;
        }
        match store.append(&all, 1) {
            Ok(_) => {
                for (of, known) in &mut self.publishers {
                    for nonce in known.acknowledged + 1..=known.sent {
                        self.acknowledged.push((*of, nonce));
                    }
                    known.acknowledged = known.sent;
                }
                true
            }
            Err(AppendError::Full(_) | AppendError::Failed(_)) => {
                self.publishers.values_mut().for_each(|known| known.sent = known.acknowledged);
                true
            }
            Err(AppendError::Uncertain(_)) => false,
            Err(AppendError::Damaged(why)) => panic!("{why}"),
        }
    }

    /// What is there must be what was acknowledged, and perhaps the one commit that was under way.
    fn look(&mut self, store: &Store) {
        let there = contents(store).unwrap();
        let known = there.len().min(self.acknowledged.len());
        assert_eq!(there[..known], self.acknowledged[..known]);
        assert_eq!(known, self.acknowledged.len(), "what was acknowledged is lost");
        let under_way: u64 = self.publishers.values().map(|known| known.sent - known.acknowledged).sum();
        let more = (there.len() - known) as u64;
        assert!(more == 0 || more == under_way, "a part of a commit is there: {more} of {under_way}");
        for (of, known) in &mut self.publishers {
            let last = store.held().publishers.get(&publisher(*of)).copied().unwrap_or_default();
            assert_eq!(last, if more == 0 { known.acknowledged } else { known.sent });
            (known.acknowledged, known.sent) = (last, last);
        }
        self.acknowledged = there;
    }
}

fn cuts() -> u64 {
    if std::env::var_os("VOLT_LONG").is_some() { 1_000 } else { 60 }
}

/// Many disks, each cut several times while it is written to.
fn run(sync_fails: Option<u32>) {
    let seed: u64 = std::env::var("VOLT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed}");
    for number in 0..cuts() / 5 {
        let disk = Disk::new(seed.wrapping_add(number));
        let random = StdRng::seed_from_u64(seed.wrapping_add(number));
        let mut run = Run { random, disk, publishers: BTreeMap::new(), acknowledged: Vec::new() };
        let mut store = made_on(&run.disk, options());
        for _ in 0..5 {
            run.disk.fail_syncs(sync_fails);
            let until = run.random.random_range(1..250);
            run.disk.cut_after(until);
            while run.publish(&store) {}
            drop(store);
            run.disk.fail_syncs(None);
            run.disk.power_on();
            store = again_on(&run.disk).unwrap_or_else(|error| panic!("seed {seed}, disk {number}: {error}"));
            run.look(&store);
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    run(None);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes_and_syncs_fail() {
    run(Some(4));
}

#[test]
fn a_disk_that_fails_to_sync_is_asked_what_it_has() {
    let disk = Disk::new(3);
    let store = made_on(&disk, options());
    store.append(&batches(1, 1, 5, 10), 1).unwrap();
    disk.fail_syncs(Some(1));
    let error = store.append(&batches(1, 6, 5, 10), 1).unwrap_err();
    assert!(matches!(error, AppendError::Uncertain(_)), "{error:?}");
    disk.fail_syncs(None);
    let held = loop {
        if let Ok(held) = store.recover() {
            break held;
        }
        std::thread::yield_now();
    };
    let next = held.publishers[&publisher(1)] + 1;
    assert!(next == 6 || next == 11);
    store.append(&batches(1, next, 1, 10), 1).unwrap();
    assert_eq!(contents(&store).unwrap().len() as u64, next);
}

#[test]
fn a_full_disk_refuses_and_takes_more_when_there_is_room() {
    let disk = Disk::new(4);
    let store = made_on(&disk, options());
    disk.capacity(Some(disk.len() + 300_000));
    let (mut next, mut full) = (1, 0);
    while full < 3 {
        match store.append(&batches(1, next, 50, 1_000), 1) {
            Ok(_) => next += 50,
            Err(AppendError::Full(_)) => full += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(next > 1);
    assert_eq!(contents(&store).unwrap().len() as u64, next - 1, "what was stored can be read");
    disk.capacity(None);
    store.append(&batches(1, next, 50, 1_000), 1).unwrap();
    let there: Vec<u64> = contents(&store).unwrap().into_iter().map(|(_, nonce)| nonce).collect();
    assert_eq!(there, (1..next + 50).collect::<Vec<_>>());
}
