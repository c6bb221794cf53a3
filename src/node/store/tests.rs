//! What the store keeps, refuses, and survives.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tempfile::TempDir;

use super::*;
use crate::node::home::HomeError;
use crate::policy::{Action, Effect, Subject};

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("volt.redb")).unwrap();
    (dir, store)
}

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn named(n: u8, name: &str) -> Peer {
    Peer { name: Some(name.parse().unwrap()), wanted: true, ..Peer::new(id(n)) }
}

fn rule(resource: &str) -> Rule {
    Rule::new(Effect::Permit, Subject::Anyone, Action::Call, resource.parse().unwrap(), Source::Store).unwrap()
}

/// Writes to the tables what the typed functions would not.
fn raw(store: &Store, change: impl FnOnce(&WriteTransaction)) {
    let written = store.write(|txn| {
        change(txn);
        Ok(())
    });
    written.unwrap();
}

#[test]
fn what_was_kept_is_there_after_a_restart() {
    let (_dir, store) = store();
    let path = store.path.clone();
    let peer = Peer { addresses: vec!["[::1]:8658".parse().unwrap()], ..named(1, "bob") };
    store.upsert_peer(&peer).unwrap();
    store.add_rule(&rule("a/*")).unwrap();
    drop(store);
    let store = Store::open(path).unwrap();
    assert_eq!(store.peers().unwrap(), [peer]);
    assert_eq!(store.rules().unwrap(), [rule("a/*")]);
}

#[test]
fn the_file_is_for_its_owner_only() {
    let (dir, store) = store();
    assert_eq!(store.path.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    fs::set_permissions(&store.path, fs::Permissions::from_mode(0o640)).unwrap();
    let path = store.path.clone();
    drop(store);
    assert!(matches!(Store::open(&path), Err(StoreError::Access(HomeError::TooOpen { .. }))));
    assert!(matches!(Store::open_read_only(&path), Err(StoreError::Access(HomeError::TooOpen { .. }))));
}

#[test]
fn a_name_leads_to_one_peer() {
    let (_dir, store) = store();
    store.upsert_peer(&named(1, "bob")).unwrap();
    let error = store.upsert_peer(&named(2, "bob")).unwrap_err();
    assert!(matches!(error, StoreError::NameTaken { holder, .. } if holder == id(1)));
    assert_eq!(store.peer(&id(2)).unwrap(), None, "a refused change leaves nothing behind");
    store.upsert_peer(&named(1, "rob")).unwrap();
    store.upsert_peer(&named(2, "bob")).unwrap();
    assert_eq!(store.by_name("bob").unwrap().unwrap().id, id(2));
    assert_eq!(store.by_name("rob").unwrap().unwrap().id, id(1));
    assert_eq!(store.remove_peer(&id(2)).unwrap(), Some(named(2, "bob")));
    assert_eq!((store.by_name("bob").unwrap(), store.remove_peer(&id(2)).unwrap()), (None, None));
}

#[test]
fn only_a_peer_that_is_kept_is_noted_as_seen() {
    let (_dir, store) = store();
    let address = "10.0.0.1:8658".parse().unwrap();
    assert!(!store.set_seen(&id(1), 5, &[address]).unwrap());
    store.change_peer(&id(1), |peer| peer.wanted = true).unwrap();
    assert!(store.set_seen(&id(1), 5, &[address]).unwrap());
    assert!(store.set_seen(&id(1), 6, &[]).unwrap());
    let peer = store.peer(&id(1)).unwrap().unwrap();
    assert_eq!((peer.last_seen_unix_ms, peer.addresses, peer.wanted), (Some(6), vec![address], true));
}

#[test]
fn a_rule_is_kept_once_and_removed_by_its_id() {
    let (_dir, store) = store();
    let from_config = rule("a/*").with_source(Source::Config);
    assert_eq!(store.add_rule(&from_config).unwrap(), (rule("a/*"), true));
    assert_eq!(store.add_rule(&rule("a/*")).unwrap(), (rule("a/*"), false));
    assert_eq!(store.rules().unwrap(), [rule("a/*")]);
    assert!(store.remove_rule(rule("a/*").id()).unwrap());
    assert!(!store.remove_rule(rule("a/*").id()).unwrap());
}

#[test]
fn a_rule_of_a_newer_version_is_named_not_skipped() {
    let (_dir, store) = store();
    let json = r#"{"effect":"deny","subject":"*","action":"call","resource":"*","source":"store","until":5}"#;
    raw(&store, |txn| {
        txn.open_table(RULE_TABLE).unwrap().insert("abc", json).unwrap();
    });
    let error = store.rules().unwrap_err().to_string();
    assert!(error.contains("rule abc") && error.contains("until") && error.contains("volt policy rm abc"), "{error}");
    assert!(store.remove_rule("abc").unwrap() && store.rules().unwrap().is_empty());
}

#[test]
fn a_full_store_refuses_more_and_keeps_what_it_has() {
    let (_dir, store) = store();
    raw(&store, |txn| {
        let mut peers = txn.open_table(PEER_TABLE).unwrap();
        let mut rules = txn.open_table(RULE_TABLE).unwrap();
        for n in 0..PEERS {
            let mut key = [0xff; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            peers.insert(&key, "{}").unwrap();
        }
        for n in 0..RULES {
            rules.insert(format!("{n:x}").as_str(), "{}").unwrap();
        }
    });
    assert!(matches!(store.upsert_peer(&named(1, "bob")), Err(StoreError::Full { what: "peers", most: PEERS })));
    assert!(matches!(store.add_rule(&rule("a/*")), Err(StoreError::Full { what: "rules", most: RULES })));
    assert_eq!((store.by_name("bob").unwrap(), store.peers().unwrap().len() as u64), (None, PEERS));
}

#[test]
fn a_second_writer_is_told_that_the_store_is_busy() {
    let (_dir, store) = store();
    assert!(matches!(Store::open(&store.path), Err(StoreError::Busy { .. })));
    let path = store.path.clone();
    drop(store);
    Store::open(path).unwrap();
}

#[test]
fn a_visitor_reads_beside_the_writer_and_never_writes() {
    let (_dir, store) = store();
    store.upsert_peer(&named(1, "bob")).unwrap();
    let before = fs::read(&store.path).unwrap();
    let visitor = Store::open_read_only(&store.path).unwrap();
    assert_eq!(visitor.by_name("bob").unwrap(), Some(named(1, "bob")));
    assert!(matches!(visitor.upsert_peer(&named(2, "eve")), Err(StoreError::ReadOnly { .. })));
    drop(visitor);
    assert_eq!(fs::read(&store.path).unwrap(), before);
    store.upsert_peer(&named(2, "eve")).unwrap();
    assert_eq!(Store::open_read_only(&store.path).unwrap().peers().unwrap().len(), 2);
}

#[test]
fn a_visitor_reads_what_a_killed_writer_left() {
    let (dir, store) = store();
    store.upsert_peer(&named(1, "bob")).unwrap();
    // A copy of the open file is what kill -9 leaves.
    let left = dir.path().join("left.redb");
    fs::copy(&store.path, &left).unwrap();
    let before = fs::read(&left).unwrap();
    assert!(Store::open_read_only(&left).unwrap().by_name("bob").unwrap().is_some());
    assert_eq!(fs::read(&left).unwrap(), before);
    assert!(Store::open(&left).unwrap().by_name("bob").unwrap().is_some());
}

#[test]
fn a_visitor_of_a_home_without_a_store_reads_an_empty_one_and_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let visitor = Store::open_read_only(dir.path().join("volt.redb")).unwrap();
    assert!(visitor.peers().unwrap().is_empty() && visitor.rules().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn visitors_see_whole_states_while_the_node_writes() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..200 {
                store.change_peer(&id(1), |peer| peer.last_seen_unix_ms = Some(n)).unwrap();
                store.change_peer(&id((n % 50) as u8 + 2), |peer| peer.wanted = !peer.wanted).unwrap();
            }
        });
        let mut last = None;
        while !writer.is_finished() {
            let seen = Store::open_read_only(&store.path).unwrap().peer(&id(1)).unwrap().and_then(|peer| peer.last_seen_unix_ms);
            assert!(seen >= last, "{seen:?} after {last:?}");
            last = seen;
        }
    });
}

#[test]
fn a_damaged_file_is_refused_by_name_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volt.redb");
    for bad in [&b""[..], b"x", &[0; 4096], &[0xff; 100_000]] {
        fs::write(&path, bad).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for error in [Store::open(&path).unwrap_err(), Store::open_read_only(&path).unwrap_err()] {
            assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
            assert!(error.to_string().contains(&format!("`mv {0} {0}.damaged`", path.display())), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), bad);
    }
}

#[test]
fn a_store_of_another_format_is_refused() {
    let (_dir, store) = store();
    raw(&store, |txn| {
        txn.open_table(META_TABLE).unwrap().insert("format", 2).unwrap();
    });
    let path = store.path.clone();
    drop(store);
    assert!(matches!(Store::open(&path), Err(StoreError::Format { format: 2, .. })));
}

#[test]
fn a_changed_byte_is_noticed_or_changes_nothing() {
    let (_dir, store) = store();
    let path = store.path.clone();
    (0..20).for_each(|n| store.upsert_peer(&named(n, &format!("peer {n}"))).unwrap());
    let peers = store.peers().unwrap();
    drop(store);
    let good = fs::read(&path).unwrap();
    let used: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let mut refused = 0;
    for at in used.iter().step_by(used.len() / 150 + 1) {
        let mut bad = good.clone();
        bad[*at] ^= 0x55;
        fs::write(&path, &bad).unwrap();
        match Store::open_read_only(&path) {
            Err(error) => {
                assert!(matches!(error, StoreError::Damaged { .. } | StoreError::Format { .. }), "at {at}: {error:?}");
                refused += 1;
            }
            // A byte of a page that is free, or of the commit before the last.
            Ok(store) => assert_eq!(store.peers().unwrap(), peers, "at {at}"),
        }
    }
    assert!(refused > 0);
}

fn invitation(uses: u32) -> Invitation {
    let hash = crate::id::InviteSecret::from_bytes([7; 16]).hash();
    let may = vec!["call a/*".parse().unwrap(), "call b/*".parse().unwrap()];
    Invitation { hash, uses, used: Vec::new(), made_unix_ms: 10, expires_unix_ms: 20, may, by: None }
}

#[test]
fn who_is_in_by_an_invitation_uses_it_again_for_nothing_new_and_who_was_put_out_does_not() {
    let (_dir, store) = store();
    let invitation = invitation(1);
    store.add_invitation(&invitation).unwrap();
    let by = |who: u8, now| store.use_invitation(&invitation.hash, &id(who), now).unwrap();
    assert_eq!(by(1, 20), None, "it has expired");
    let used = by(1, 19).unwrap();
    assert_eq!((used.rules.len(), used.new, used.good), (3, true, false));
    assert_eq!(store.rules().unwrap().len(), 3);
    assert_eq!(by(2, 19), None, "it is used up");
    assert_eq!(by(1, 19), Some(Use { new: false, ..used.clone() }));
    // What was taken from it meanwhile does not come back.
    let call = used.rules.iter().find(|rule| rule.action() == Action::Call).unwrap();
    store.remove_rule(call.id()).unwrap();
    assert_eq!(by(1, 19).unwrap().rules.len(), 2);
    let connect = used.rules.iter().find(|rule| rule.action() == Action::Connect).unwrap();
    store.remove_rule(connect.id()).unwrap();
    assert_eq!(by(1, 19), None, "it was put out");
    assert_eq!(store.rules().unwrap().len(), 1);
}

#[test]
fn others_never_fill_the_room_in_which_the_owner_says_no() {
    let (_dir, store) = store();
    let permits = |from: u64, to: u64| -> Vec<Rule> {
        let grant = |number: u64| format!("call s{number}/*").parse::<crate::policy::Grant>().unwrap().to(id(1));
        (from..to).map(grant).collect()
    };
    store.add_rules(&permits(0, RULES - RULES_LEFT)).unwrap();
    let invitation = invitation(5);
    store.add_invitation(&invitation).unwrap();
    let full = RULES - RULES_LEFT;
    assert!(
        matches!(store.use_invitation(&invitation.hash, &id(2), 15), Err(StoreError::Full { what: "rules", most }) if most == full)
    );
    assert!(store.invitations(15).unwrap()[0].used.is_empty(), "all of it or nothing");
    assert!(matches!(store.add_rules(&permits(RULES, RULES + 2)), Err(StoreError::Full { .. })));
    store.add_rule(&Rule::denies(id(2))).unwrap();
    // Even when the owner has filled the rest.
    raw(&store, |txn| {
        let mut table = txn.open_table(RULE_TABLE).unwrap();
        for rule in permits(RULES, RULES + RULES_LEFT - 1) {
            table.insert(rule.id(), serde_json::to_string(&rule).unwrap().as_str()).unwrap();
        }
    });
    assert!(matches!(store.add_rule(&Rule::denies(id(1))), Err(StoreError::Full { .. })));
    assert_eq!(store.revoke(&id(1), &Rule::denies(id(1))).unwrap().removed.len() as u64, RULES - 1);
    assert_eq!(store.rules().unwrap().len(), 2);
}

#[test]
fn what_somebody_had_made_from_afar_goes_with_its_leave() {
    let (_dir, store) = store();
    let (own, its) =
        (invitation(1), Invitation { by: Some(id(1)), hash: crate::id::InviteHash::from_bytes([9; 32]), ..invitation(1) });
    store.add_invitation(&own).unwrap();
    store.add_invitation(&its).unwrap();
    assert!(store.revoke(&id(2), &Rule::denies(id(2))).unwrap().withdrawn.is_empty());
    assert_eq!(store.revoke(&id(1), &Rule::denies(id(1))).unwrap().withdrawn, [its.hash]);
    assert_eq!(store.invitations(15).unwrap(), [own]);
}

#[test]
fn an_invitation_that_cannot_be_read_stops_nobody_and_can_be_taken_back() {
    let (_dir, store) = store();
    let (bad, good) = (crate::id::InviteHash::from_bytes([9; 32]), invitation(1));
    raw(&store, |txn| drop(txn.open_table(INVITATION_TABLE).unwrap().insert(bad.as_bytes(), "{\"uses\":").unwrap()));
    store.add_invitation(&good).unwrap();
    assert_eq!(store.invitations(15).unwrap(), std::slice::from_ref(&good));
    assert!(store.use_invitation(&bad, &id(1), 15).is_err());
    assert!(store.remove_invitation(&bad.short()).unwrap() && !store.remove_invitation(&bad.short()).unwrap());
    assert!(store.use_invitation(&good.hash, &id(1), 15).unwrap().is_some());
}
