//! Bytes that change on disk: what is read is right, or it is an error that names the file.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

#[test]
fn damage_is_told_or_does_no_harm() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let disk = Disk::new(seed);
    let store = made_on(&disk, options());
    for round in 0..20 {
        store.append(&batches(1, 1 + round * 20, 20, 300), 1).unwrap();
    }
    let all = contents(&store).unwrap();
    drop(store);
    let (mut told, mut harmless) = (0, 0);
    for _ in 0..if std::env::var_os("VOLT_LONG").is_some() { 3_000 } else { 150 } {
        let (at, flip) = (random.random_range(0..disk.len() as usize), random.random_range(1..=255));
        let image = disk.image();
        disk.rot(at, flip);
        match again_on(&disk).and_then(|store| contents(&store)) {
            Ok(there) => {
                // redb may go back to an older commit if the root of the newest is what was hit: that shows as chunks missing at
                // the end, never as others.
                assert_eq!(there, all[..there.len()], "seed {seed}, byte {at}");
                harmless += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("a test's disk"), "{error}");
                told += 1;
            }
        }
        // Opening it may have changed more: it is put back as it was.
        disk.put_back(image);
    }
    println!("{told} told, {harmless} harmless");
    assert_eq!(contents(&again_on(&disk).unwrap()).unwrap(), all);
}

#[test]
fn files_that_are_no_stores_are_named_and_the_others_are_opened() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::create(directory.path(), "good", options(), 1).unwrap());
    let bad = [("empty.wire.redb", &b""[..]), ("text.wire.redb", b"not a database, but long enough to be looked at".as_slice())];
    for (name, bytes) in bad {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let opened = open_all(directory.path()).unwrap();
    assert_eq!(opened.len(), 3);
    for (path, result) in opened {
        match result {
            Ok(store) => assert_eq!(store.name(), "good"),
            Err(error) => assert!(error.to_string().contains(path.to_str().unwrap()), "{error}"),
        }
    }
}
