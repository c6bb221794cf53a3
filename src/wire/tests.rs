//! The host's side of wires without a network: logs, who may write to them, and making and losing them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use tokio::time::{Instant, advance};

use super::error::Fault;
use super::log::{Log, Memory, Next, Reader};
use super::wires::Wires;
use crate::net::Network;
use crate::proto::limits;
use crate::proto::status::Code;
use crate::proto::wire::{Chunk, From, Options, PublisherId, Slow, put_chunk};

const ONE: PublisherId = PublisherId([1; 16]);
const OTHER: PublisherId = PublisherId([2; 16]);

/// So many chunks of this length, as frames.
fn chunks(count: usize, length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let chunk = Chunk { body: vec![7; length].into(), metadata: Vec::new() };
    (0..count).for_each(|_| put_chunk(&mut out, &chunk).unwrap());
    out
}

fn in_memory(options: Options) -> Arc<Log> {
    Log::in_memory("a".into(), options, 1, Arc::<Memory>::default())
}

fn hosted(directory: Option<&std::path::Path>) -> Wires {
    let bounds = super::WireBounds { wires: limits::WIRES, disk_free_bytes: 0 };
    Wires::open(directory.map(Into::into), Network::choose().unwrap(), bounds).unwrap()
}

fn persistent() -> Options {
    Options { persist: true, ..Options::default() }
}

/// Reads all there is: how many chunks came, and how many it was told are lost.
async fn read_all(reader: &mut Reader) -> (u64, u64) {
    let (mut came, mut lost) = (0, 0);
    while reader.at() < reader.log().info().next {
        match reader.next(64 * 1024).await {
            Next::Chunks(_, count) => {
                came += count;
                reader.took(count);
            }
            Next::Gap { from, to } => lost += to - from + 1,
            Next::Over(status) => panic!("{status}"),
        }
    }
    (came, lost)
}

#[tokio::test(start_paused = true)]
async fn several_readers_that_stand_still_hold_up_a_publisher_for_one_stall_only() {
    let log = in_memory(Options { slow: Slow::Block, ring_chunks: 8, ..Options::default() });
    let frozen: Vec<Reader> = (0..20).map(|_| log.read(From::Live).unwrap()).collect();
    let mut live = log.read(From::Live).unwrap();
    let publishing = log.publish(ONE).await.unwrap();
    let (began, mut stored) = (Instant::now(), Vec::new());
    let (published, came) = tokio::join!(publishing.store(chunks(40, 10), &mut stored), async {
        let mut came = 0;
        while came < 40 {
            let Next::Chunks(_, count) = live.next(64 * 1024).await else { panic!("it keeps up") };
            live.took(count);
            came += count;
        }
        came
    });
    published.unwrap();
    assert_eq!(came, 40);
    assert!(began.elapsed() < limits::WIRE_STALL + Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(log.info().subscribers, 1);
    for mut reader in frozen {
        let Next::Over(status) = reader.next(1).await else { panic!("it was too slow") };
        assert_eq!(status.code, Code::ResourceExhausted);
    }
}

#[tokio::test]
async fn what_an_older_stream_of_a_publisher_brings_late_is_not_stored() {
    let home = tempfile::tempdir().unwrap();
    let wires = hosted(Some(home.path()));
    let (log, _) = wires.create("a", persistent()).await.unwrap();
    let (other, old) = (log.publish(OTHER).await.unwrap(), log.publish(ONE).await.unwrap());
    let (mut of_other, mut of_old) = (Vec::new(), Vec::new());
    // The queue is full, the older stream waits for room, and then the publisher comes back.
    let mut filling = Box::pin(other.store(chunks(4, 1024 * 1024 - 16), &mut of_other));
    assert!(poll!(&mut filling).is_pending());
    let mut late = Box::pin(old.store(chunks(1, 500_000), &mut of_old));
    assert!(poll!(&mut late).is_pending());
    let (new, filled, late) = tokio::join!(log.publish(ONE), filling, late);
    filled.unwrap();
    let new = new.unwrap();
    let covered = new.known().unwrap_or_default();
    match late {
        Ok(()) => assert_eq!(covered, 1, "it was stored, and the publisher was told that it was not"),
        Err(fault) => {
            assert!(matches!(fault, Fault::Refused(status) if status.code == Code::Aborted));
            assert_eq!((covered, log.info().next), (0, 5));
        }
    }
}

#[tokio::test]
async fn a_persistent_wire_that_many_make_at_once_is_made_once() {
    let home = tempfile::tempdir().unwrap();
    let wires = hosted(Some(home.path()));
    let made = futures_util::future::join_all((0..8).map(|_| wires.create("a/b", persistent()))).await;
    let made: Vec<_> = made.into_iter().map(|made| made.unwrap()).collect();
    assert_eq!(made.iter().filter(|(_, existed)| !existed).count(), 1);
    assert!(made.iter().all(|(log, _)| Arc::ptr_eq(log, &made[0].0)));
}

#[tokio::test]
async fn a_persistent_wire_whose_making_was_given_up_can_be_made() {
    let home = tempfile::tempdir().unwrap();
    let wires = hosted(Some(home.path()));
    let mut given_up = Box::pin(wires.create("a", persistent()));
    assert!(poll!(&mut given_up).is_pending());
    drop(given_up);
    // Wait for what was begun, whatever becomes of it.
    while std::fs::read_dir(home.path()).unwrap().all(|file| !file.unwrap().path().to_string_lossy().ends_with("wire.redb")) {
        tokio::task::yield_now().await;
    }
    wires.create("a", persistent()).await.unwrap();
}

#[tokio::test]
async fn a_persistent_wire_is_not_made_where_one_in_memory_is() {
    let home = tempfile::tempdir().unwrap();
    let wires = hosted(Some(home.path()));
    wires.find_or_make("a", || true).unwrap();
    assert_eq!(wires.create("a", persistent()).await.unwrap_err().code, Code::AlreadyExists);
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_wire_that_went_because_nobody_used_it_takes_nothing_more() {
    let wires = hosted(None);
    let found = wires.find_or_make("a", || true).unwrap();
    advance(limits::WIRE_UNUSED).await;
    assert_eq!(wires.list(|_| true), []);
    // Whoever found it before would store where nobody reads.
    assert!(found.publish(ONE).await.is_err());
    assert!(found.read(From::Live).is_err());
}

#[tokio::test]
async fn a_reader_from_the_start_gets_everything_that_is_kept() {
    let log = in_memory(Options { ring_chunks: 100, ..Options::default() });
    let publishing = log.publish(ONE).await.unwrap();
    let mut reader = log.read(From::Oldest).unwrap();
    let mut stored = Vec::new();
    publishing.store(chunks(250, 10), &mut stored).await.unwrap();
    assert_eq!(read_all(&mut reader).await, (100, 150));
    assert_eq!(stored.iter().map(|stored| stored.count).sum::<u64>(), 250);
}

#[tokio::test]
async fn all_rings_of_a_node_together_stay_within_its_bound_and_the_largest_give() {
    const MAX: usize = 4 * 1024 * 1024;
    let memory = Arc::new(Memory::new(MAX));
    let options = Options { ring_bytes: 3 * 1024 * 1024, ring_chunks: 1 << 20, ..Options::default() };
    let log = |name: &str| Log::in_memory(name.into(), options, 1, memory.clone());
    let (quiet, others) = (log("quiet"), ["a", "b", "c"].map(log));
    let mut stored = Vec::new();
    quiet.publish(ONE).await.unwrap().store(chunks(100, 100), &mut stored).await.unwrap();
    for _ in 0..10 {
        for log in &others {
            log.publish(ONE).await.unwrap().store(chunks(4_000, 100), &mut stored).await.unwrap();
            let held: u64 = others.iter().chain([&quiet]).map(|log| log.info().bytes).sum();
            assert!(held <= MAX as u64, "{held}");
        }
    }
    assert_eq!(quiet.info().first, 1, "it is not the one that has too much");
    assert!(others.iter().all(|log| log.info().first > 1 && log.info().bytes > MAX as u64 / 8));
}

#[tokio::test]
async fn what_persistent_wires_keep_in_memory_is_bounded_too_and_is_still_read_from_disk() {
    let home = tempfile::tempdir().unwrap();
    let store = super::store::Store::create(home.path(), "a", persistent(), 5).unwrap();
    let committer = super::committer::Committer::new(store, Network::choose().unwrap());
    let log = Log::on_disk("a".into(), persistent(), committer, Arc::new(Memory::new(100_000)));
    let (publishing, mut stored) = (log.publish(ONE).await.unwrap(), Vec::new());
    for _ in 0..8 {
        publishing.store(chunks(100, 500), &mut stored).await.unwrap();
    }
    let mut reader = log.read(From::Oldest).unwrap();
    assert_eq!(read_all(&mut reader).await, (800, 0));
    assert!(log.held() <= 100_000, "{}", log.held());
}
