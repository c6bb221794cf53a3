//! The store against a disk that forgets, tears, fills up and rots.

mod cuts;
mod disk;
mod rot;

use bytes::Bytes;

pub use self::disk::Disk;
use super::file::Place;
use super::*;
use crate::proto::frame::{Frames, put_frame};
use crate::proto::limits;
use crate::state::wire::segments;

fn publisher(number: u8) -> PublisherId {
    PublisherId([number; 16])
}

/// Chunks of a publisher that say whose they are and which.
fn batches(of: u8, first: u64, count: u64, length: usize) -> Vec<Batch> {
    let mut out = Vec::new();
    for nonce in first..first + count {
        let mut body = vec![of];
        body.extend_from_slice(&nonce.to_be_bytes());
        body.resize(9 + length, of);
        put_frame(&mut out, &body);
    }
    let cut = segments(out.into(), 1 << 20).unwrap();
    cut.into_iter().map(|segment| Batch { publisher: publisher(of), segment }).collect()
}

/// Everything that is stored: whose, and which.
fn contents(store: &Store) -> Result<Vec<(u8, u64)>, StoreError> {
    let (mut all, mut at) = (Vec::new(), store.held().first);
    loop {
        match store.read(at, 100_000)? {
            Read::Nothing => return Ok(all),
            Read::Behind(oldest) => panic!("{at} is behind {oldest}, and was the oldest"),
            Read::Chunks(pieces, count) => {
                let before = all.len();
                for piece in pieces {
                    numbers(&piece, &mut all);
                }
                assert_eq!((all.len() - before) as u64, count);
                at += count;
            }
        }
    }
}

fn numbers(frames: &Bytes, into: &mut Vec<(u8, u64)>) {
    let mut cut = Frames::new(1 << 21);
    cut.push(frames.clone());
    while let Some(frame) = cut.next_frame().unwrap() {
        assert!(frame[9..].iter().all(|byte| *byte == frame[0]), "not what was stored");
        into.push((frame[0], u64::from_be_bytes(std::array::from_fn(|at| frame[1 + at]))));
    }
    cut.end().unwrap();
}

fn options() -> Options {
    Options { persist: true, ..Options::default() }
}

/// A store on this disk, made now.
fn made_on(disk: &Disk, options: Options) -> Store {
    let place = Place::Test("a test's disk".into(), disk.clone());
    let meta = Meta { format: FORMAT, name: "a/b".into(), options, epoch: 7 };
    tables::fill(&place.open().unwrap(), &meta).unwrap();
    Store::at(place).unwrap()
}

fn again_on(disk: &Disk) -> Result<Store, StoreError> {
    Store::at(Place::Test("a test's disk".into(), disk.clone()))
}

#[test]
fn what_is_stored_is_there_when_the_file_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), "sensors/kitchen", options(), 9).unwrap();
    assert_eq!(store.append(&batches(1, 1, 3, 100), 5).unwrap(), 1);
    let two = [batches(2, 1, 2, 70_000), batches(1, 4, 400, 300)].concat();
    assert_eq!(store.append(&two, 6).unwrap(), 4);
    let (held, all) = (store.held(), contents(&store).unwrap());
    assert_eq!(all.len(), 405);
    drop(store);
    let mut opened = open_all(directory.path()).unwrap();
    let store = opened.remove(0).1.unwrap();
    assert_eq!((store.name(), store.options(), store.epoch()), ("sensors/kitchen", options(), 9));
    assert_eq!(contents(&store).unwrap(), all);
    assert_eq!((store.held().next, &store.held().publishers), (406, &held.publishers));
    assert_eq!(store.held().publishers[&publisher(1)], 403);
    // In the middle of a block.
    assert!(
        matches!(store.read(200, 1).unwrap(), Read::Chunks(pieces, _) if { let mut n = Vec::new(); numbers(&pieces[0], &mut n); n[0] == all[199] })
    );
    assert!(matches!(Store::create(directory.path(), "sensors/kitchen", options(), 9), Err(StoreError::Io { .. })));
}

#[test]
fn names_make_different_files_everywhere() {
    let names = ["a/b", "a_b", "A/b", "a.b", "a-b", "ab"].map(|name| file_name(name).to_lowercase());
    let different: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(different.len(), names.len());
    assert!(file_name(&"x".repeat(200)).len() < 100);
}

#[test]
fn what_is_too_old_or_too_much_goes_by_whole_blocks_and_the_newest_stays() {
    let disk = Disk::new(1);
    let store = made_on(&disk, Options { retain_bytes: 200_000, retain_ms: 1_000, ..options() });
    for round in 0..40 {
        store.append(&batches(1, 1 + round * 10, 10, 2_000), 100 + round).unwrap();
        assert!(store.held().bytes <= 200_000 + 21_000);
    }
    let held = store.held();
    assert!(held.first > 250 && held.next == 401, "{held:?}");
    assert_eq!(contents(&store).unwrap().len() as u64, held.next - held.first);
    assert_eq!(store.read(1, 100).unwrap(), Read::Behind(held.first));
    store.append(&batches(1, 401, 1, 10), 5_000).unwrap();
    assert_eq!((store.held().first, store.held().next), (401, 402), "all others are too old");
    assert_eq!(again_on(&disk).unwrap().held().first, 401);
}

#[test]
fn publishers_that_were_silent_for_longest_are_forgotten() {
    let store = made_on(&Disk::new(2), options());
    let of = |number: u64| PublisherId(std::array::from_fn(|at| if at < 8 { number.to_be_bytes()[at] } else { 0 }));
    for round in 0..5u64 {
        let batches: Vec<Batch> = (0..1_000)
            .map(|n| Batch { publisher: of(round * 1_000 + n), segment: batches(1, 1, 1, 0).remove(0).segment })
            .collect();
        store.append(&batches, 1).unwrap();
    }
    let held = store.held();
    assert!(held.publishers.len() <= limits::WIRE_PUBLISHERS);
    assert!(held.publishers.contains_key(&of(4_999)) && !held.publishers.contains_key(&of(0)));
}

#[test]
fn chunks_that_come_one_by_one_are_kept_together() {
    let disk = Disk::new(3);
    let store = made_on(&disk, options());
    for nonce in 1..=2_000 {
        store.append(&batches(1, nonce, 1, 20), nonce).unwrap();
    }
    let frames: usize = batches(1, 1, 2_000, 20).iter().map(|batch| batch.segment.frames.len()).sum();
    let held = store.held();
    assert!(held.bytes < frames as u64 * 11 / 10, "{} for {frames}", held.bytes);
    let again = again_on(&disk).unwrap();
    assert_eq!(again.held(), held);
    assert_eq!(contents(&again).unwrap(), (1..=2_000).map(|nonce| (1, nonce)).collect::<Vec<_>>());
}

#[test]
fn a_file_under_another_wires_name_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::create(directory.path(), "a", options(), 9).unwrap());
    std::fs::copy(directory.path().join(file_name("a")), directory.path().join(file_name("b"))).unwrap();
    let opened = open_all(directory.path()).unwrap();
    let (right, wrong): (Vec<_>, Vec<_>) = opened.into_iter().partition(|(_, store)| store.is_ok());
    assert_eq!((right.len(), wrong.len()), (1, 1));
    match &wrong[0].1 {
        Err(StoreError::Misnamed { wire, path, .. }) => assert!(wire == "a" && path.ends_with(file_name("b"))),
        other => panic!("{other:?}"),
    }
}
