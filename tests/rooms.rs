//! The order of the rooms, held by reading the source: no room imports one above it, and only `net` names the network's
//! crates. Why: `src/guide/architecture.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up: a room may import those before it. The last one is the command line, which is another crate.
const ROOMS: &[&str] = &[
    "id", "proto", "policy", "state", "seal", "journal", "net", "session", "service", "wire", "tunnel", "relay", "node", "local",
];

/// Crates that only `net` names. The yardstick of `volt bench` measures raw quinn and is not looked at.
const OF_THE_NETWORK: &[&str] = &["quinn", "quinn_proto", "rustls", "rcgen", "socket2", "x509_parser"];

/// Crates of the command line and its local API.
const OF_THE_COMMAND: &[&str] = &["axum", "clap", "hyper", "anstream", "anstyle", "comfy_table"];

#[test]
fn no_room_imports_one_above_it() {
    let root = root_names();
    let mut wrong = Vec::new();
    for (room, file, code) in rooms() {
        let rank =
            rank(&room).unwrap_or_else(|| panic!("{} is in no known room: add it to ROOMS, and to the guide", file.display()));
        for name in names_after(&code, "crate::") {
            // A name that the crate's front page re-exports counts as the room it comes from.
            let imported = root.get(&name).unwrap_or(&name);
            match self::rank(imported) {
                Some(other) if other <= rank => {}
                Some(_) => wrong.push(format!("{}: {room} imports {imported}", file.display())),
                None => wrong.push(format!("{}: `crate::{name}` is no room", file.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "rooms import only rooms below them:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_net_room_names_the_crates_of_the_network() {
    assert_only_room_to_name("net", OF_THE_NETWORK);
}

#[test]
fn the_library_without_its_local_api_names_no_crate_of_the_command_line() {
    assert_only_room_to_name("local", OF_THE_COMMAND);
}

#[test]
fn the_state_room_awaits_nothing_and_asks_no_clock() {
    for (_, file, code) in rooms().into_iter().filter(|(room, file, _)| room == "state" && !is_test(file)) {
        for word in ["async ", ".await", "Instant::now", "SystemTime::now", "rand::rng()", "tokio::"] {
            assert!(!before_tests(&code).contains(word), "{}: {word}", file.display());
        }
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::id::{NodeId, self};\nuse crate::{net::Link, proto};\nlet x = crate::state::ids::Side::Initiator;";
    assert_eq!(names_after(code, "crate::"), ["id", "net", "proto", "state"]);
    assert!(uses_crate("let x = quinn::VarInt::MAX;", "quinn"));
    assert!(!uses_crate("use crate::net::quinn_like;", "quinn"));
}

fn assert_only_room_to_name(only: &str, crates: &[&str]) {
    for (room, file, code) in rooms().into_iter().filter(|(room, ..)| room != only) {
        let named = crates.iter().find(|name| uses_crate(&code, name));
        assert_eq!(named, None, "{}: {room} names a crate that only {only} may", file.display());
    }
}

fn rank(room: &str) -> Option<usize> {
    ROOMS.iter().position(|other| *other == room)
}

/// Every source file of a room: the room, the path, the code without comments.
fn rooms() -> Vec<(String, PathBuf, String)> {
    let source = source();
    let mut files = Vec::new();
    collect(&source, &mut files);
    files.sort();
    let in_rooms = files.into_iter().filter_map(|file| {
        let inside = file.strip_prefix(&source).ok()?;
        let first = inside.components().next()?.as_os_str().to_str()?;
        let room = first.strip_suffix(".rs").unwrap_or(first).to_owned();
        let code = without_comments(&fs::read_to_string(&file).ok()?);
        let shown = Path::new("src").join(inside);
        (!["bin", "lib", "guide"].contains(&room.as_str())).then_some((room, shown, code))
    });
    let found: Vec<_> = in_rooms.collect();
    assert!(found.len() > 30, "the source was not found");
    found
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the source can be read") {
        let path = entry.expect("the source can be read").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// What `lib.rs` re-exports, and from which room.
fn root_names() -> BTreeMap<String, String> {
    let front = without_comments(&fs::read_to_string(source().join("lib.rs")).expect("lib.rs can be read"));
    let mut names = BTreeMap::new();
    for statement in front.split(';').filter_map(|statement| statement.trim().strip_prefix("pub use ")) {
        let Some((room, items)) = statement.split_once("::") else { continue };
        for item in items.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|item| !item.is_empty()) {
            names.insert(item.to_owned(), room.to_owned());
        }
    }
    names
}

fn without_comments(code: &str) -> String {
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn is_test(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
}

fn before_tests(code: &str) -> &str {
    code.split("#[cfg(test)]").next().unwrap_or_default()
}

/// The first names of the paths that follow `prefix`: one, or each of those in braces.
fn names_after(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => names.push(identifier(rest)),
            Some(group) => {
                let (mut depth, mut due) = (0, true);
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => due = true,
                        c if due && (c.is_alphabetic() || c == '_') => {
                            names.push(identifier(&group[at..]));
                            due = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Whether a path begins with the name of this crate.
fn uses_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            && (after.starts_with("::") || (code[..at].ends_with("use ") && after.starts_with([';', ' '])))
    })
}
