//! Services in a directory and wires, from the shell: processes with homes of their own, on real UDP.

mod support;

use std::fs;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::process::{Home, Running, text};

/// Two nodes that have a session with a third, which they call `hub`; it lets them do all there is to do with a directory and wires.
struct Mesh {
    hub: Home,
    provider: Home,
    caller: Home,
    _up: [Running; 3],
}

impl Mesh {
    fn new() -> Self {
        let [hub, provider, caller] = [Home::new(), Home::new(), Home::new()];
        let up = [hub.up_here(), provider.up_here(), caller.up_here()];
        for action in ["register", "discover", "publish", "subscribe", "create"] {
            hub.ok(&["policy", "allow", "*", action, "*"]);
        }
        provider.ok(&["policy", "allow", "*", "call", "camera/*"]);
        for home in [&provider, &caller] {
            home.ok(&["connect", &hub.ticket(), "--as", "hub"]);
        }
        Self { hub, provider, caller, _up: up }
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_service_is_listed_at_a_peer_as_long_as_it_is_served_and_called_by_its_name() {
    let mesh = Mesh::new();
    let (caller, provider) = (&mesh.caller, &mesh.provider);
    let watch = caller.start(&["services", "hub", "cam*", "--watch", "--json"]);
    let serving = provider.serve("camera/snap", "echo \\\"picture\\\"", &["--at", "hub", "--description", "takes a picture"]);
    let told = |online: bool| {
        let line = watch.line(|line| line.contains("\"name\":\"camera\""));
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["online"], &line["provider"]), (&json!(online), &json!(provider.id())), "{line}");
        line
    };
    let methods = told(true)["methods"].clone();
    assert_eq!((&methods[0]["name"], &methods[0]["description"]), (&json!("snap"), &json!("takes a picture")));
    assert!(methods[0]["request"].is_object());
    assert!(caller.ok(&["services", "hub"]).contains("camera/snap"));
    assert_eq!(caller.ok(&["call", "service:camera@hub", "camera/snap"]), "\"picture\"\n");
    // The caller's own directory knows nothing of it.
    let (exit, error) = caller.fails(&["call", "service:camera", "camera/snap"]);
    assert_eq!((exit, &error["code"]), (4, &json!("unavailable")));

    serving.signal(Signal::KILL);
    serving.ended();
    told(false);
    assert_eq!(told(false)["withdrawn"], json!(true));
    assert_eq!(caller.ok(&["services", "hub", "--offline"]), "");
    let _serving = provider.serve("camera/snap", "echo 1", &["--at", "hub"]);
    told(true);
    assert_eq!(caller.ok(&["call", "service:camera@hub", "camera/snap"]), "1\n");
}

#[test]
fn a_service_may_be_shown_to_some_only() {
    let mesh = Mesh::new();
    let for_hub = mesh.hub.id();
    let _serving = mesh.provider.serve("camera/snap", "echo 1", &["--at", "hub", "--visible", &for_hub]);
    assert_eq!(mesh.caller.ok(&["services", "hub"]), "");
    assert!(mesh.hub.ok(&["services"]).contains("camera/snap"));
    let visible = ["serve", "camera/snap", "--exec", "true", "--at", "hub", "--visible", "nobody"];
    assert_eq!(mesh.provider.fails(&visible).0, 2);
}

#[test]
fn what_does_not_exist_as_a_service_is_told_before_anything_happens() {
    let mesh = Mesh::new();
    for (whom, method) in
        [("service:camera@hub", "other/snap"), ("service:c*@hub", "c*/snap"), ("service:camera@who", "camera/snap")]
    {
        assert_eq!(mesh.caller.fails(&["call", whom, method]).0, 2, "{whom} {method}");
    }
    assert_eq!(mesh.caller.fails(&["call", "service:camera@hub", "camera/snap", "--timeout", "1s"]).0, 4);
    let refused = ["serve", "camera/snap", "--exec", "true", "--at", "hub"];
    mesh.hub.ok(&["policy", "deny", "*", "register", "camera"]);
    let (exit, error) = mesh.provider.fails(&refused);
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")), "{error}");
}

#[test]
fn a_wire_takes_a_pipe_and_gives_it_back_byte_for_byte() {
    let mesh = Mesh::new();
    mesh.caller.ok(&["wire", "create", "tap@hub", "--persist"]);
    let bytes: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let file = mesh.provider.path("bytes");
    fs::write(&file, &bytes).unwrap();
    let mut publish = mesh.provider.volt(&["wire", "pub", "tap@hub"]);
    let done = publish.stdin(fs::File::open(file).unwrap()).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let listed = mesh.caller.json(&["wire", "ls", "@hub"]);
    assert_eq!(listed["name"], json!("tap"));
    let chunks = listed["next"].as_u64().unwrap() - 1;
    let done = mesh.caller.run(&["wire", "sub", "tap@hub", "--from", "start", "-n", &chunks.to_string()]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(done.stdout == bytes, "{} bytes of {}", done.stdout.len(), bytes.len());
}

#[test]
fn a_subscription_goes_on_from_its_cursor_file() {
    let mesh = Mesh::new();
    let cursor = mesh.caller.path("cursor");
    let cursor = cursor.to_str().unwrap();
    mesh.caller.ok(&["wire", "create", "log@hub", "--persist"]);
    let publish = |text: &str| mesh.provider.run_with(&["wire", "pub", "log@hub", "--lines"], text).status.success();
    let next = |count: &str| mesh.caller.ok(&["wire", "sub", "log@hub", "--lines", "--from", cursor, "-n", count]);
    assert!(publish("one\ntwo\nthree\n"));
    // There is no cursor yet: everything that is kept.
    assert_eq!(next("2"), "one\ntwo\n");
    assert!(publish("four\n"));
    assert_eq!(next("2"), "three\nfour\n");
    let told = lines(&mesh.caller.ok(&["wire", "sub", "log@hub", "--from", "4", "-n", "1", "--json"]));
    assert_eq!((&told[0]["seq"], &told[0]["chunk"]), (&json!(4), &json!("four")), "{told:?}");
    assert!(fs::read_to_string(cursor).unwrap().contains(":4"));
}

#[test]
fn what_a_ring_no_longer_has_is_told_as_a_gap() {
    let mesh = Mesh::new();
    let text: String = (0..6_000).map(|n| format!("{n}\n")).collect();
    assert!(mesh.provider.run_with(&["wire", "pub", "ring@hub", "--lines"], &text).status.success());
    let mut sub = mesh.caller.volt(&["wire", "sub", "ring@hub", "--from", "1", "-n", "1", "--json"]);
    let done = sub.stdin(Stdio::null()).output().unwrap();
    let told = lines(&self::text(&done.stdout));
    let (gap, chunk) = (&told[0], &told[1]);
    assert_eq!(gap["gap"][0], json!(1), "{told:?}");
    assert_eq!(chunk["seq"], json!(gap["gap"][1].as_u64().unwrap() + 1));
    let denied = mesh.caller.fails(&["wire", "sub", "other@hub", "--from", "nonsense:"]);
    assert_eq!(denied.0, 2, "{denied:?}");
}
