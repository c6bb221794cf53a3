//! `volt.toml` edited under `volt up`: what changes at once, what is told of it, and what asks for it.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use support::process::Home;

/// Writes the file of a home as editors do: another one in its place.
fn replace(home: &Home, toml: &str) {
    let new = home.path("home/volt.toml~");
    fs::write(&new, toml).unwrap();
    fs::rename(new, home.path("home/volt.toml")).unwrap();
}

#[test]
fn a_deny_rule_written_into_the_file_ends_the_session_at_once() {
    let (a, b) = (Home::new(), Home::new());
    let (up_a, up_b) = (a.up_here(), b.up(&["--listen", "127.0.0.1:0", "--open"]));
    a.ok(&["connect", &b.ticket(), "--as", "bob"]);
    up_b.event("connected");

    let began = Instant::now();
    replace(&b, &format!("[[rule]]\ndeny = \"{}\"\naction = \"connect\"\n", a.id()));
    let event = up_b.event("disconnected");
    let took = began.elapsed();
    println!("from the change of the file to the end of the session: {took:?}");
    assert_eq!(event["peer"], json!(a.id()));
    assert!(took < Duration::from_secs(20));
    up_a.event("disconnected");
}

#[test]
fn an_edit_is_told_and_a_broken_one_changes_nothing() {
    let home = Home::new();
    fs::write(home.path("home/volt.toml"), "[groups]\npals = []\n").unwrap();
    let node = home.up_here();
    home.ok(&["policy", "allow", "@pals", "call", "greeter/*"]);

    replace(&home, "[groups]\npals = []\nopen = 1\n");
    let event = node.event("config");
    assert_eq!((&event["ok"], event.get("waiting")), (&json!(false), None));
    let error = event["error"].as_str().unwrap();
    assert!(error.contains("volt.toml:3:8: "), "{error}");
    assert_eq!(home.json(&["status"])["config_error"], event["error"]);
    let (exit, failure) = home.fails(&["reload"]);
    assert_eq!((exit, &failure["code"], &failure["message"]), (1, &json!("failed_precondition"), &event["error"]));
    assert!(failure["hint"].as_str().unwrap().contains("stays"));
    assert_eq!(node.event("config")["ok"], json!(false));
    assert!(home.ok(&["status"]).contains("not in force: "));

    // A rule that was made by a command names a group that would be gone.
    replace(&home, "# nothing\n");
    let error = node.event("config")["error"].as_str().unwrap().to_owned();
    assert!(error.contains("names a group that is not in volt.toml"), "{error}");

    fs::write(home.path("home/volt.toml"), "name = \"kitchen\"\nlisten = [\"127.0.0.1:1\"]\nopen = true\n[groups]\npals = []\n")
        .unwrap();
    assert_eq!(node.event("config"), json!({ "event": "config", "ok": true, "waiting": ["name"] }));
    let status = home.json(&["status"]);
    assert_eq!((&status["open"], status.get("config_error")), (&json!(true), None));
    assert_eq!(status["config_waiting"], json!(["name"]));

    assert_eq!(home.json(&["reload"]), json!({ "ok": true, "waiting": ["name"] }));
    node.event("config");
    node.signal(Signal::HUP);
    node.event("config");
    node.signal(Signal::TERM);
    assert!(node.ended().success());
    let (exit, error) = home.fails(&["reload"]);
    assert_eq!((exit, &error["code"]), (1, &json!("failed_precondition")));
}
