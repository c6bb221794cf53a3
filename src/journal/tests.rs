//! The journal as a whole, without a node.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::id::NodeId;

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, files: 2 };
const WHO: NodeId = NodeId::from_bytes([7; 32]);

fn read(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path(directory, 0)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn called(peer: NodeId, count: u64) -> Entry {
    let (method, by) = (Some("a/b".into()), None);
    Entry::Call(Called { peer, method, decision: Ruling::Permit, by, count, errors: 0 })
}

#[test]
fn what_is_noted_before_the_end_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), BOUNDS).unwrap();
    for count in 1..=100 {
        journal.note(called(WHO, count));
    }
    journal.close();
    let counts: Vec<_> = read(dir.path()).iter().map(|entry| entry["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, (1..=100).collect::<Vec<_>>());
    assert_eq!((journal.counts().written, journal.counts().missed), (100, 0));
    // Too late: counted, and nothing else.
    journal.note(Entry::Stopped);
    assert_eq!(journal.counts().missed, 1);
}

#[test]
fn a_queue_that_is_full_says_how_much_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, mut writer) = Journal::of(Files::open(dir.path(), BOUNDS).unwrap(), 4);
    for count in 1..=10 {
        assert_eq!(journal.has_room(), count <= 3);
        journal.note(called(WHO, count));
    }
    assert!(writer.turn() && journal.has_room());
    let entries = read(dir.path());
    assert_eq!(entries.len(), 5);
    assert_eq!((&entries[4]["event"], &entries[4]["count"]), (&"missed".into(), &6.into()));
    journal.note(Entry::Stopped);
    assert!(writer.turn());
    assert_eq!(read(dir.path())[5]["event"], "stopped");
}

#[test]
fn while_it_cannot_be_written_nothing_fails_and_what_is_missing_is_told_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { bytes: 600, files: 2 };
    let (journal, mut writer) = Journal::of(Files::open(dir.path(), bounds).unwrap(), 100);
    // What is in the way of the rotation.
    fs::create_dir_all(path(dir.path(), 1).join("full")).unwrap();
    for count in 0..10 {
        journal.note(called(WHO, count));
    }
    assert!(writer.turn());
    let kept = read(dir.path()).len() as u64;
    assert!((1..10).contains(&kept), "{kept}");
    assert_eq!((journal.counts().missed, journal.counts().failures), (10 - kept, 1));
    journal.note(called(WHO, 10));
    fs::remove_dir_all(path(dir.path(), 1)).unwrap();
    // The last attempt is made whatever the time.
    journal.0.as_ref().unwrap().0.end();
    assert!(!writer.turn());
    let text = [1, 0].map(|number| fs::read_to_string(path(dir.path(), number)).unwrap()).concat();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = &entries[entries.len() - 2..];
    assert_eq!((&last[0]["event"], &last[0]["count"]), (&"missed".into(), &(10 - kept).into()));
    assert_eq!(last[1]["count"], 10);
}

#[test]
fn ever_new_keys_push_nobody_out_and_hide_no_command() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, mut writer) = Journal::of(Files::open(dir.path(), Bounds { bytes: 8 << 20, files: 2 }).unwrap(), 100_000);
    journal.knows(|peer| *peer == WHO);
    let done = |peer, command: &str| {
        let (resource, by) = (Some(command.into()), None);
        Entry::Administer(Used { peer, resource, decision: Ruling::Permit, by, count: 1 })
    };
    for key in 0..40 {
        (0..1_000).for_each(|count| journal.note(called(NodeId::from_bytes([100 + key; 32]), count)));
    }
    journal.note(called(WHO, 1));
    (0..2_000).for_each(|count| journal.note(called(WHO, count)));
    journal.note(done(WHO, "policy/allow"));
    journal.note(done(NodeId::from_bytes([100; 32]), "down"));
    assert!(writer.turn());
    let entries = read(dir.path());
    let of_who = entries.iter().filter(|entry| entry["peer"] == WHO.to_string() && entry["event"] == "call").count();
    let of_others = entries.iter().filter(|entry| entry["event"] == "call").count() - of_who;
    assert_eq!((of_who, of_others), (1_024, 1_024));
    let commands: Vec<_> =
        entries.iter().filter(|entry| entry["event"] == "administer").map(|entry| &entry["resource"]).collect();
    assert_eq!(commands, ["policy/allow", "down"]);
}

#[test]
fn one_peer_cannot_push_out_what_is_about_others() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, mut writer) = Journal::of(Files::open(dir.path(), BOUNDS).unwrap(), 10_000);
    for count in 0..5_000 {
        journal.note(called(WHO, count));
    }
    journal.note(called(NodeId::from_bytes([8; 32]), 1));
    journal.0.as_ref().unwrap().0.end();
    assert!(!writer.turn());
    let entries = read(dir.path());
    assert!(entries.len() < 1_100, "{}", entries.len());
    assert!(entries.iter().any(|entry| entry["peer"] == NodeId::from_bytes([8; 32]).to_string()));
    let omitted = entries.iter().find(|entry| entry["event"] == "omitted").unwrap();
    assert_eq!(omitted["peer"], WHO.to_string());
    assert_eq!(omitted["count"].as_u64(), Some(journal.counts().omitted));
}

#[test]
fn dropped_it_still_writes_what_was_noted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), BOUNDS).unwrap();
    let queue = journal.0.as_ref().unwrap().0.clone();
    journal.note(Entry::Stopped);
    drop(journal);
    let over = queue.over.wait_timeout_while(queue.waiting(), Duration::from_secs(20), |waiting| !waiting.closed).unwrap();
    assert!(!over.1.timed_out());
    assert_eq!(read(dir.path())[0]["event"], "stopped");
}
