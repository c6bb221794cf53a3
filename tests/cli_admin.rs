//! `volt --on PEER`: what the owner of a node lets another identity do at it, and what it does not; from the shell, and by a peer that sends
//! what no shell would.

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::process::{Home, Running};
use support::{closed, soon, until};
use voltmesh::id::Ticket;
use voltmesh::proto::body::ContentType;
use voltmesh::proto::status::Code;
use voltmesh::{Node, Session};

/// A knows B as `bob`, and may do these at it.
fn administered(commands: &[&str]) -> (Home, Running, Home, Running) {
    let (a, b) = (Home::new(), Home::new());
    let (up_a, up_b) = (a.up_here(), b.up_here());
    b.ok(&["policy", "allow", &a.id(), "connect"]);
    a.ok(&["connect", &b.ticket(), "--as", "bob"]);
    for command in commands {
        b.ok(&["policy", "allow", &a.id(), "administer", command]);
    }
    (a, up_a, b, up_b)
}

#[test]
fn without_a_rule_nothing_is_administered_and_open_is_no_leave() {
    let (a, b) = (Home::new(), Home::new());
    let (_up_a, _up_b) = (a.up_here(), b.up(&["--listen", "127.0.0.1:0", "--open"]));
    a.ok(&["connect", &b.ticket(), "--as", "bob"]);
    b.ok(&["policy", "allow", &a.id(), "call", "*"]);
    let commands: &[&[&str]] = &[&["status"], &["policy", "ls"], &["policy", "allow", "*", "call"], &["down"], &["events"]];
    for command in commands {
        let (exit, error) = a.fails(&[&["--on", "bob"], *command].concat());
        assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")), "{command:?}: {error}");
    }
    // One command is not another.
    b.ok(&["policy", "allow", &a.id(), "administer", "status"]);
    assert_eq!(a.json(&["--on", "bob", "status"])["id"], json!(b.id()));
    let (exit, error) = a.fails(&["sessions", "--on", "bob"]);
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")));
    assert!(error["hint"].as_str().unwrap().contains("administer sessions"), "{error}");
    assert_eq!(a.json(&["status"])["id"], json!(a.id()));
}

#[test]
fn what_is_permitted_is_done_there_with_the_names_there() {
    let (a, up_a, b, up_b) = administered(&["status", "sessions", "policy/*", "services", "reload", "ping"]);
    let c = Home::new();
    let up_c = c.up_here();
    b.ok(&["policy", "allow", &c.id(), "connect"]);
    c.ok(&["policy", "allow", &b.id(), "connect"]);
    b.ok(&["connect", &c.ticket(), "--as", "carol"]);

    let there: Vec<Value> = lines(&a.ok(&["--on", "bob", "sessions", "--json"]));
    assert!(there.iter().any(|line| line["peer"] == json!(c.id()) && line["name"] == "carol"), "{there:?}");
    let added = a.json(&["--on", "bob", "policy", "allow", "carol", "call", "greeter/*"]);
    assert_eq!((&added["rule"]["subject"], &added["new"]), (&json!(c.id()), &json!(true)));
    assert_eq!(b.json(&["policy", "check", "carol", "call", "greeter/x"])["decision"], json!("permit"));
    assert_eq!(a.ok(&["--on", "bob", "policy", "ls"]), b.ok(&["policy", "ls"]));
    let id = added["rule"]["id"].as_str().unwrap();
    assert_eq!(a.json(&["--on", "bob", "policy", "rm", id])["removed"], json!(true));
    assert_eq!(a.json(&["--on", "bob", "reload"])["ok"], json!(true));
    assert!(a.json(&["--on", "bob", "ping", "carol", "-c", "1"])["rtt_ms"].is_number());
    assert_eq!(a.ok(&["--on", "bob", "services"]), "");

    // Exit codes are those that the commands have at home.
    assert_eq!(a.fails(&["--on", "bob", "policy", "rm", "nosuchrule"]).0, 2);
    assert_eq!(a.fails(&["--on", "bob", "policy", "allow", "nobody", "call"]).0, 2);
    assert_eq!(a.fails(&["--on", "bob", "down"]).0, 5);
    assert_eq!(a.fails(&["--on", "bob", "connect", &c.id()]).0, 5);
    assert_eq!(a.fails(&["--on", "nobody", "status"]).0, 2);
    for here in [&["init"][..], &["join", "volt1x"], &["up"], &["id"], &["journal"], &["demo"], &["completions", "bash"]] {
        assert_eq!(a.fails(&[&["--on", "bob"], here].concat()).0, 2, "{here:?}");
    }
    // Who may make rules may not make one about this.
    for rule in [&["allow", &a.id(), "administer", "down"][..], &["deny", &c.id(), "administer"]] {
        assert_eq!(a.fails(&[&["--on", "bob", "policy"], rule].concat()).0, 5, "{rule:?}");
    }
    assert_eq!(a.fails(&["--on", "bob", "policy", "rm", &a.id(), "administer", "status"]).0, 5);
    // Nor give such a rule back to somebody who was shut out.
    let d = Home::new();
    d.ok(&["init"]);
    let deny = b.json(&["policy", "deny", &d.id(), "connect"])["rule"]["id"].as_str().unwrap().to_owned();
    assert_eq!(a.fails(&["--on", "bob", "policy", "rm", &deny]).0, 5);
    b.ok(&["policy", "allow", &a.id(), "administer", "policy/rules/administer"]);
    assert_eq!(a.json(&["--on", "bob", "policy", "rm", &deny])["removed"], json!(true));

    // Without a running node, as a visitor.
    up_a.signal(Signal::TERM);
    up_a.ended();
    assert_eq!(a.json(&["--on", "bob", "status"])["id"], json!(b.id()));
    assert_eq!(a.fails(&["--on", "bob", "down"]).0, 5);
    b.ok(&["policy", "allow", &a.id(), "administer", "down"]);
    assert_eq!(a.json(&["--on", "bob", "down"]), json!({ "down": true }));
    assert_eq!(up_b.ended().code(), Some(0));
    drop(up_c);
}

#[test]
fn a_node_goes_down_when_a_peer_that_may_says_so() {
    let (a, _up_a, _b, up_b) = administered(&["down", "events"]);
    let events = a.start(&["--on", "bob", "events"]);
    events.line(|line| line.starts_with("Waiting"));
    assert_eq!(a.ok(&["--on", "bob", "down"]), "The node goes down.\n");
    assert_eq!(up_b.ended().code(), Some(0));
    assert_eq!(events.ended().code(), Some(1));
}

#[test]
fn streams_go_on_from_afar_until_they_may_not() {
    let (a, up_a, b, _up_b) = administered(&["events", "call", "serve", "wires/*"]);
    a.ok(&["policy", "allow", &b.id(), "call", "*"]);
    let events = a.start(&["--on", "bob", "events"]);
    events.line(|line| line.starts_with("Waiting"));
    let _serving = a.start(&["--on", "bob", "serve", "far/upper", "--exec", "tr a-z A-Z"]);
    assert_eq!(events.line(|line| line.starts_with("service")), "service far is online");
    b.ok(&["policy", "allow", &a.id(), "call", "far/*"]);
    assert_eq!(a.ok(&["call", "bob", "far/upper", "\"ada\""]), "\"ADA\"\n");
    let _echo = a.serve("echo/it", "cat", &[]);
    assert_eq!(a.ok(&["--on", "bob", "call", &a.id(), "echo/it", "{\"n\":1}"]), "{\"n\":1}\n");
    // Two ways at once, and bytes as they are.
    let published = a.run_with(&["--on", "bob", "wire", "pub", "log", "--lines"], "one\n{\"two\": 2}\n");
    assert!(published.status.success(), "{}", support::process::text(&published.stderr));
    assert_eq!(a.ok(&["--on", "bob", "wire", "sub", "log", "--lines", "--from", "start", "--count", "2"]), "one\n{\"two\": 2}\n");

    let began = Instant::now();
    b.ok(&["policy", "rm", &a.id(), "administer", "events"]);
    assert_eq!(events.ended().code(), Some(5));
    println!("from the rule's end to the stream's: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(20));
    drop(up_a);
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the journal of this home says of commands by that node.
fn administered_lines(home: &Home, by: &Node) -> Vec<Value> {
    let mut all = lines(&std::fs::read_to_string(home.path("home/journal.jsonl")).unwrap());
    all.retain(|line| line["event"] == "administer" && line["peer"] == json!(by.id().to_string()));
    all
}

/// A node of our own, with its session to one that lets it do this.
async fn peer_of(b: &Home, command: &str) -> (Node, Session) {
    let node = closed().bind().await.unwrap();
    b.ok(&["policy", "allow", &node.id().to_string(), "connect"]);
    b.ok(&["policy", "allow", &node.id().to_string(), "administer", command]);
    let ticket: Ticket = b.ticket().parse().unwrap();
    let session = soon(node.connect(ticket)).await.unwrap();
    (node, session)
}

/// Sends these bytes and gives what comes back, up to the end, or the status that ends it.
async fn exchange(session: &Session, bytes: &[u8]) -> Result<String, Code> {
    exchange_with(session, bytes, false).await
}

/// The same; if told so, the side of whoever asks is ended before the answer is read.
async fn exchange_with(session: &Session, bytes: &[u8], ends: bool) -> Result<String, Code> {
    let call = session.request("volt/administer").content_type(ContentType::Raw).bidi::<Bytes, Bytes>();
    let (mut send, mut receive) = soon(call).await.map_err(|error| error.code())?;
    for piece in bytes.chunks(1 << 20) {
        // An answer may come before all is read.
        if send.send_raw(piece.to_vec()).await.is_err() {
            break;
        }
    }
    if ends {
        send.finish().unwrap();
    }
    let mut answer = Vec::new();
    loop {
        match soon(receive.next_raw()).await {
            Ok(Some(bytes)) => answer.extend_from_slice(&bytes),
            Ok(None) => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            Err(error) => return Err(error.code()),
        }
    }
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn whatever_a_peer_sends_the_node_is_fine() {
    let b = Home::new();
    let _up_b = b.up_here();
    let (node, session) = peer_of(&b, "status").await;
    let well = exchange(&session, &request("GET", "/v1/status", "")).await.unwrap();
    assert!(well.starts_with("HTTP/1.1 200"), "{well}");

    // Whoever has said all and ended its side is answered; half a request is not, and that is said.
    let ended = exchange_with(&session, &request("GET", "/v1/status", ""), true).await.unwrap();
    assert!(ended.starts_with("HTTP/1.1 200"), "{ended}");
    for half in [&b""[..], b"GET /v1/sta"] {
        assert_eq!(exchange_with(&session, half, true).await.unwrap_err(), Code::Unavailable);
    }

    // What is no HTTP, and what says it is longer than may be.
    let wrong = [
        b"\x00\x01\x02 nonsense\r\n\r\n".to_vec(),
        [b"GET /v1/status HTTP/1.1\r\nx: ".to_vec(), vec![b'x'; 1 << 20]].concat(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /v1/status HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello".to_vec(),
    ];
    for bytes in wrong {
        let answer = exchange(&session, &bytes).await.unwrap_or_default();
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // Other ways to write the path of what it may do are no way to do what it may not.
    let refused = [
        ("GET", "/v1/sessions"),
        ("HEAD", "/v1/sessions"),
        ("GET", "/v1/status/../sessions"),
        ("GET", "/v1/%73essions"),
        ("GET", "//v1/sessions"),
        ("GET", "http://status/v1/sessions"),
        ("POST", "/v1/policy"),
        ("POST", "/v1/down?/v1/status"),
        ("DELETE", "/v1/policy/check"),
        ("GET", "/nothing"),
        ("POST", "/v1/serve/calls/0"),
    ];
    for (method, path) in refused {
        let answer = exchange(&session, &request(method, path, "{}")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{method} {path}: {answer}");
    }
    // A second request on the same call is not looked at.
    let two = [request("GET", "/v1/status", ""), request("GET", "/v1/status", "")].concat();
    assert_eq!(exchange(&session, &two).await.unwrap().matches("HTTP/1.1").count(), 1);

    // Too large, for a route that it may use.
    b.ok(&["policy", "allow", &node.id().to_string(), "administer", "ping"]);
    let large = request("POST", "/v1/ping", &"x".repeat(8 << 20));
    let answer = exchange(&session, &large).await.unwrap_or_default();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");

    // Requests that are never finished take up what there is for this peer, and for no other.
    let mut held = Vec::new();
    for _ in 0..16 {
        let (mut send, receive) =
            soon(session.request("volt/administer").content_type(ContentType::Raw).bidi::<Bytes, Bytes>()).await.unwrap();
        send.send_raw(b"POST /v1/ping HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{".to_vec()).await.unwrap();
        held.push((send, receive));
    }
    let mut full = exchange(&session, &request("GET", "/v1/status", "")).await;
    while full.is_ok() {
        full = exchange(&session, &request("GET", "/v1/status", "")).await;
    }
    assert_eq!(full.unwrap_err(), Code::ResourceExhausted);
    let (other, to_b) = peer_of(&b, "status").await;
    assert!(exchange(&to_b, &request("GET", "/v1/status", "")).await.unwrap().starts_with("HTTP/1.1 200"));
    drop(held);
    while exchange(&session, &request("GET", "/v1/status", "")).await.is_err() {}

    // So many times, and one line at once: the others are counted.
    let done = administered_lines(&b, &node);
    assert_eq!(done.iter().filter(|line| line["resource"] == "status" && line["decision"] == "permit").count(), 1, "{done:?}");
    let status = b.json(&["status"]);
    assert!(status["limits"]["administer"].as_u64() >= Some(1), "{status}");
    assert_eq!((&status["panics"], &status["id"]), (&json!(0), &json!(b.id())));
    other.shutdown().await;
    node.shutdown().await;
}

#[tokio::test]
async fn who_may_no_longer_is_asked_at_every_request() {
    let b = Home::new();
    let _up_b = b.up_here();
    let (node, session) = peer_of(&b, "*").await;
    let may = async || exchange(&session, &request("GET", "/v1/peers", "")).await;
    assert!(may().await.unwrap().starts_with("HTTP/1.1 200"));
    // It may do everything: also what takes that from it.
    let rule = format!("{{\"who\":\"{}\",\"action\":\"administer\",\"resource\":\"peers\"}}", node.id());
    assert!(exchange(&session, &request("POST", "/v1/policy/deny", &rule)).await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(may().await.unwrap().starts_with("HTTP/1.1 403"));
    b.ok(&["policy", "rm", &node.id().to_string(), "administer", "*"]);
    assert_eq!(may().await.unwrap_err(), Code::PermissionDenied);
    let is_refused = |line: &Value| line["decision"] == "deny" && line.get("resource").is_none();
    until(|| administered_lines(&b, &node).iter().any(is_refused)).await;
    node.shutdown().await;
}
