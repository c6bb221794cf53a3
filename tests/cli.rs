//! The command line, as processes: two nodes with homes of their own, on real UDP, told what to do from the shell.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::process::{Home, connected, failure, read_to_end, text};

#[test]
fn the_journal_is_shown_beside_a_node_and_without_one() {
    let (a, _up_a, b, up_b) = connected();
    let follower = b.start(&["journal", "--json", "-n", "100", "--follow"]);
    let entries =
        |arguments: &[&str]| -> Vec<Value> { b.ok(arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    a.fails(&["call", "bob", "no/such", "1"]);
    let entry: Value = serde_json::from_str(&follower.line(|line| line.contains("no/such"))).unwrap();
    assert_eq!((&entry["event"], &entry["peer"], &entry["decision"]), (&json!("call"), &json!(a.id()), &json!("permit")));
    follower.signal(Signal::INT);
    assert!(follower.ended().success());
    let status = b.json(&["status"]);
    assert!(status["journal"]["written"].as_u64().unwrap() >= 4, "{status}");
    assert_eq!((&status["limits"]["feeds"], &status["rated_calls"]), (&json!(0), &json!(0)));
    up_b.signal(Signal::TERM);
    assert!(up_b.ended().success());
    let all = entries(&["journal", "--json", "-n", "1000"]);
    let events: Vec<_> = all.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    assert!(
        ["started", "policy", "admitted", "call", "ended", "stopped"].iter().all(|event| events.contains(event)),
        "{events:?}"
    );
    assert_eq!(entries(&["journal", "--json", "-n", "1"])[0]["event"], json!("stopped"));
    let told = b.ok(&["journal"]);
    assert!(told.lines().any(|line| line.contains("admitted") && line.contains(&a.id())), "{told}");
}

#[test]
fn two_nodes_call_each_other_and_find_each_other_again() {
    let (a, b) = (Home::new(), Home::new());
    let (up_a, up_b) = (a.up_here(), b.start(&["up", "--json", "--listen", "127.0.0.1:0"]));
    let ready = up_b.event("ready");
    let listen = ready["listen"][0].as_str().unwrap().to_owned();
    a.ok(&["policy", "allow", &b.id(), "call", "sum/*"]);
    b.ok(&["policy", "allow", &a.id(), "call", "greeter/hello"]);
    let greeting = r#"read name; printf '{"hello": %s}' "$name""#;
    let _hello = b.serve("greeter/hello", greeting, &[]);
    let _add = a.serve("sum/add", "tr -d '[]' | tr , ' ' | (read x y; echo $((x + y)))", &[]);

    let connected = a.json(&["connect", ready["ticket"].as_str().unwrap(), "--as", "bob"]);
    assert_eq!((&connected["peer"], &connected["name"], &connected["connected"]), (&json!(b.id()), &json!("bob"), &json!(true)));
    let event = up_a.event("connected");
    assert_eq!((&event["peer"], &event["path"], &event["resumed"]), (&json!(b.id()), &json!("direct"), &json!(false)));

    assert_eq!(a.ok(&["call", "bob", "greeter/hello", "\"ada\""]), "{\"hello\": \"ada\"}\n");
    assert_eq!(b.ok(&["call", &a.id(), "sum/add", "[40,2]"]), "42\n");

    up_b.signal(Signal::KILL);
    assert_eq!(up_a.event("disconnected")["peer"], json!(b.id()));
    assert!(!up_b.ended().success());
    let up_b = b.up(&["--listen", &listen]);
    assert_eq!(up_a.event("connected")["peer"], json!(b.id()));
    let _hello = b.serve("greeter/hello", greeting, &[]);
    assert_eq!(a.ok(&["call", "bob", "greeter/hello", "1"]), "{\"hello\": 1}\n");

    // Rules and wanted peers outlive a restart of the other one too.
    up_a.signal(Signal::TERM);
    assert!(up_a.ended().success());
    let up_a = a.up_here();
    up_a.event("connected");
    up_b.event("connected");
    a.ok(&["disconnect", "bob"]);
    up_a.event("disconnected");
    assert_eq!(a.json(&["peers"])["wanted"], json!(false));
}

#[test]
fn sigterm_lets_calls_in_flight_end_and_exits_0() {
    let (a, _up_a, b, up_b) = connected();
    let (began, go) = (b.pipe("began"), b.pipe("go"));
    let _serving = b.serve("slow/one", &format!("echo yes > {began}; cat {go}"), &[]);
    let _quick = b.serve("slow/not", "cat", &[]);
    let calling = a.start(&["call", "bob", "slow/one"]);
    assert_eq!(read_to_end(began), "yes\n");
    up_b.signal(Signal::TERM);
    // It is going down: no new call is taken.
    while a.run(&["call", "bob", "slow/not", "--fail-fast"]).status.success() {}
    fs::write(go, "\"done\"").unwrap();
    assert_eq!(calling.line(|_| true), "\"done\"");
    assert_eq!(calling.ended().code(), Some(0));
    assert_eq!(up_b.ended().code(), Some(0));
}

#[test]
fn down_returns_when_the_home_is_free_again() {
    let home = Home::new();
    let node = home.up_here();
    assert_eq!(home.json(&["down"]), json!({ "down": true }));
    assert_eq!(node.ended().code(), Some(0));
    assert!(!home.path("home/volt.sock").exists());
    let node = home.up_here();
    assert_eq!(home.fails(&["policy", "rm", "nosuch"]).0, 2);
    node.signal(Signal::INT);
    assert_eq!(node.ended().code(), Some(0));
    let (exit, error) = home.fails(&["down"]);
    assert_eq!((exit, &error["code"]), (1, &json!("failed_precondition")));
}

#[test]
fn a_second_up_says_who_holds_the_home() {
    let home = Home::new();
    let node = home.up_here();
    let (exit, error) = home.fails(&["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(exit, 1);
    let held = format!("process {}", node.pid());
    assert!(error["message"].as_str().unwrap().contains(&held), "{error}");
    assert_eq!(home.json(&["status"])["pid"], json!(node.pid()));
}

#[test]
fn the_socket_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let _node = home.up_here();
    assert_eq!(fs::metadata(home.path("home/volt.sock")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn every_cause_has_its_exit_code() {
    let (a, _up_a, b, up_b) = connected();
    let _fails = b.serve("x/fails", "exit 7", &[]);
    let pipe = b.pipe("never");
    let _hangs = b.serve("x/hangs", &format!("cat {pipe}"), &[]);

    let (exit, error) = a.fails(&["call", "bob", "x/fails"]);
    assert_eq!((exit, &error["code"], error.get("outcome")), (3, &json!("aborted"), None));
    let (exit, error) = a.fails(&["call", "bob", "none/here"]);
    assert_eq!((exit, &error["code"]), (3, &json!("not_found")));
    let (exit, error) = a.fails(&["call", "bob", "x/hangs", "--timeout", "200ms"]);
    assert_eq!((exit, &error["code"], &error["outcome"]), (4, &json!("deadline_exceeded"), &json!("outcome_unknown")));
    let (exit, error) = b.fails(&["call", &a.id(), "any/thing"]);
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")));

    // Nobody there, and somebody who does not want us.
    up_b.signal(Signal::TERM);
    up_b.ended();
    let (exit, error) = a.fails(&["call", "bob", "x/fails", "--timeout", "300ms"]);
    assert_eq!((exit, &error["outcome"]), (4, &json!("not_sent")), "{error}");
    let (exit, error) = a.fails(&["call", "bob", "x/fails", "--fail-fast"]);
    assert_eq!((exit, &error["outcome"]), (4, &json!("not_sent")), "{error}");
    let stranger = Home::new();
    stranger.configure("strangers = \"refuse\"\n");
    let _up = stranger.up_here();
    let (exit, error) = a.fails(&["connect", &stranger.ticket(), "--as", "stranger"]);
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")));
    let (exit, _) = a.fails(&["ping", &stranger.ticket(), "-c", "1", "--timeout", "2s"]);
    assert_eq!(exit, 5);
    // It is remembered nevertheless.
    assert!(
        a.ok(&["peers", "--json"]).lines().any(|line| line.contains("\"name\":\"stranger\"") && line.contains("\"wanted\":true"))
    );
}

#[test]
fn a_rule_acts_at_once_on_a_live_session() {
    let (a, b) = (Home::new(), Home::new());
    let (_up_a, _up_b) = (a.up_here(), b.up_here());
    let _serving = b.serve("echo/one", "cat", &[]);
    let id = a.id();
    b.ok(&["policy", "allow", &id, "connect"]);
    a.ok(&["connect", &b.ticket(), "--as", "bob"]);
    assert_eq!(a.fails(&["call", "bob", "echo/one", "1"]).0, 5);
    assert!(a.ok(&["services", "bob"]).is_empty(), "what may not be called is not shown");

    let allowed = b.json(&["policy", "allow", &id, "call", "echo/*"]);
    assert_eq!((&allowed["new"], &allowed["rule"]["source"]), (&json!(true), &json!("store")));
    assert_eq!(a.ok(&["call", "bob", "echo/one", "1"]), "1\n");
    assert_eq!(b.json(&["policy", "allow", &id, "call", "echo/*"])["new"], json!(false));

    b.ok(&["policy", "deny", "*", "call", "echo/one"]);
    assert_eq!(a.fails(&["call", "bob", "echo/one", "1"]).0, 5);
    let answer = b.json(&["policy", "check", &id, "call", "echo/one"]);
    assert_eq!((&answer["decision"], &answer["rule"]["effect"]), (&json!("deny"), &json!("deny")));
    assert!(b.ok(&["policy", "check", &id, "call", "echo/one"]).starts_with("deny: rule "));

    b.ok(&["policy", "rm", "*", "call", "echo/one"]);
    assert_eq!(a.ok(&["call", "bob", "echo/one", "2"]), "2\n");
    let rule = allowed["rule"]["id"].as_str().unwrap();
    b.ok(&["policy", "rm", rule]);
    assert_eq!(a.fails(&["call", "bob", "echo/one", "1"]).0, 5);
    assert_eq!(b.fails(&["policy", "rm", rule]).0, 2);
}

#[test]
fn rules_are_kept_and_those_of_the_file_stay_there() {
    let home = Home::new();
    let other = Home::new().id();
    fs::write(home.path("home/volt.toml"), format!("name = \"n\"\n[[rule]]\nallow = \"{other}\"\naction = \"call\"\n")).unwrap();
    home.ok(&["policy", "allow", "*", "connect"]);
    let listed = |home: &Home| -> Vec<Value> {
        home.ok(&["policy", "ls", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let without_node = listed(&home);
    let sources: Vec<_> = without_node.iter().map(|rule| rule["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["config", "store"]);
    let id = without_node[0]["id"].as_str().unwrap();
    let refused = |home: &Home| {
        let (exit, error) = home.fails(&["policy", "rm", id]);
        assert_eq!((exit, &error["code"]), (2, &json!("failed_precondition")));
        assert!(error["hint"].as_str().unwrap().contains("volt.toml"));
    };
    refused(&home);
    assert_eq!(home.json(&["policy", "check", &other, "call", "a/b"])["decision"], json!("permit"));
    let _node = home.up_here();
    assert_eq!(listed(&home), without_node);
    refused(&home);
    assert_eq!(home.json(&["policy", "check", &other, "call", "a/b"])["rule"]["source"], json!("config"));
}

#[test]
fn open_lets_anyone_in_and_says_so() {
    let (a, b) = (Home::new(), Home::new());
    let up_b = b.start(&["up", "--listen", "127.0.0.1:0", "--open"]);
    up_b.line(|line| line.contains("anyone may connect and call"));
    let _serving = b.serve("echo/one", "cat", &[]);
    assert_eq!(b.json(&["status"])["open"], json!(true));
    let ticket = b.ticket();
    let _up_a = a.up(&["--listen", "127.0.0.1:0", "--connect", &ticket]);
    assert_eq!(a.ok(&["call", &b.id(), "echo/one", "[1, 2]"]), "[1, 2]\n");
    assert_eq!(b.fails(&["policy", "rm", "open-call"]).0, 2);
}

#[test]
fn a_call_works_without_a_running_node() {
    let (a, b) = (Home::new(), Home::new());
    b.configure("strangers = \"refuse\"\n");
    let _up_b = b.up_here();
    let _serving = b.serve("echo/one", "cat", &[]);
    let ticket = b.ticket();
    let (exit, error) = a.fails(&["call", &ticket, "echo/one", "1", "--timeout", "5s"]);
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")));
    b.ok(&["policy", "allow", &a.id(), "call", "echo/*"]);
    assert_eq!(a.ok(&["call", &ticket, "echo/one", "{\"a\": 1.10}"]), "{\"a\": 1.10}\n");
    // It said goodbye: nobody waits until its silence is noticed.
    let began = Instant::now();
    while !b.ok(&["sessions"]).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(3));
    }
    let pong: Value = serde_json::from_str(&a.ok(&["ping", &ticket, "-c", "1", "--json"])).unwrap();
    assert_eq!((&pong["seq"], &pong["path"]), (&json!(1), &json!("direct")));
    assert!(pong["rtt_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(a.fails(&["serve", "x/y", "--exec", "cat"]).0, 1);
    assert_eq!(a.fails(&["connect", &ticket]).0, 1);
}

#[test]
fn a_program_learns_of_the_call_and_gets_the_body_as_it_came() {
    let (a, _up_a, b, _up_b) = connected();
    let program = r#"printf '["%s","%s","%s","%s",' "$VOLT_PEER" "$VOLT_METHOD" "$VOLT_META_TRACE_ID" "${VOLT_DEADLINE_MS:+set}"; cat; echo ']'"#;
    let serving = b.serve("env/all", program, &["--json"]);
    let reply =
        a.ok(&["call", "bob", "env/all", "{\"n\":  12345678901234567890123}", "--meta", "trace-id=t 1", "--timeout", "20s"]);
    assert_eq!(reply, format!("[\"{}\",\"env/all\",\"t 1\",\"set\",{{\"n\":  12345678901234567890123}}]\n", a.id()));
    let served: Value = serde_json::from_str(&serving.line(|line| line.contains("\"ms\""))).unwrap();
    assert_eq!((&served["peer"], &served["method"], &served["status"]), (&json!(a.id()), &json!("env/all"), &json!("OK")));
    assert!(served["ms"].as_f64().is_some());
    assert_eq!(text(&a.run_with(&["call", "bob", "env/all", "-"], "null\n").stdout).matches("null").count(), 1);
}

#[test]
fn a_program_that_fails_is_aborted_with_the_end_of_its_stderr() {
    let (a, _up_a, b, _up_b) = connected();
    let _fails = b.serve("x/fails", "seq 1000 >&2; echo the end >&2; exit 3", &[]);
    let (exit, error) = a.fails(&["call", "bob", "x/fails"]);
    let message = error["message"].as_str().unwrap();
    assert_eq!((exit, &error["code"]), (3, &json!("aborted")));
    assert!(message.contains("exit status: 3") && message.ends_with("the end") && message.len() < 1_200, "{message}");
    let _no_json = b.serve("x/text", "echo not json", &[]);
    let (exit, error) = a.fails(&["call", "bob", "x/text"]);
    assert_eq!((exit, &error["code"]), (3, &json!("internal")));
    assert!(error["message"].as_str().unwrap().contains("--raw"));
    let _silent = b.serve("x/deaf", "exec <&-; echo 1", &[]);
    assert_eq!(a.ok(&["call", "bob", "x/deaf", &format!("\"{}\"", "x".repeat(100_000))]), "1\n", "it need not read its stdin");
}

#[test]
fn raw_replies_are_printed_as_they_are() {
    let (a, _up_a, b, _up_b) = connected();
    let _raw = b.serve("raw/bytes", r"printf 'a\000\377'", &["--raw"]);
    assert_eq!(a.run(&["call", "bob", "raw/bytes"]).stdout, b"a\0\xff");
    let _lines = b.serve("raw/lines", "sed 's/^/got /'", &["--raw", "--stream"]);
    assert_eq!(text(&a.run_with(&["call", "bob", "raw/lines", "--stream"], "1\n2\n").stdout), "got 1got 2");
}

#[test]
fn with_stream_each_line_is_a_message_as_it_comes() {
    let (a, _up_a, b, _up_b) = connected();
    let _upper = b.serve("text/upper", "while read line; do echo \"[$line]\"; done", &["--stream"]);
    let mut command = a.volt(&["call", "bob", "text/upper", "--stream"]);
    let mut calling = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut replies) = (calling.stdin.take().unwrap(), BufReader::new(calling.stdout.take().unwrap()));
    for n in 1..=3 {
        writeln!(stdin, "{n}").unwrap();
        let mut reply = String::new();
        replies.read_line(&mut reply).unwrap();
        assert_eq!(reply, format!("[{n}]\n"));
    }
    drop(stdin);
    assert!(calling.wait().unwrap().success());
    // Without --stream there is one message; with it, a method that takes one is called for each.
    assert_eq!(a.ok(&["call", "bob", "text/upper", "7"]), "[7]\n");
    let _one = b.serve("text/one", "cat", &[]);
    assert_eq!(text(&a.run_with(&["call", "bob", "text/one", "--stream"], "1\n\"two\"\n").stdout), "1\n\"two\"\n");
    let done = a.run_with(&["call", "bob", "text/upper", "--stream", "--json"], "1\nno json\n");
    assert_eq!(failure(&done, &[]).0, 2);
}

#[test]
fn a_caller_that_gives_up_ends_the_whole_process_group() {
    let (a, _up_a, b, _up_b) = connected();
    let (began, alive) = (b.pipe("began"), b.pipe("alive"));
    // A shell and a child of it, both of which hold the pipe open; the shell does not heed SIGTERM.
    let program = format!("trap '' TERM; exec 3>{alive}; echo yes > {began}; sleep 1000 & cat {began}; sleep 1000");
    let serving = b.serve("x/hangs", &program, &[]);
    let calling = a.start(&["call", "bob", "x/hangs"]);
    let mut held = File::open(&alive).unwrap();
    assert_eq!(read_to_end(&began), "yes\n");
    calling.signal(Signal::INT);
    assert_eq!(calling.ended().code(), Some(130));
    let mut rest = String::new();
    held.read_to_string(&mut rest).unwrap();
    serving.line(|line| line.contains("CANCELLED"));
}

#[test]
fn a_method_is_gone_with_its_serve_and_others_of_the_service_stay() {
    let (a, up_a, b, up_b) = connected();
    let one = b.serve("x/one", "cat", &["--description", "gives it back"]);
    assert_eq!(up_b.event("service")["online"], json!(true));
    let _other = b.serve("x/other", "cat", &["--stream"]);
    let described = a.json(&["services", "bob"]);
    assert_eq!((&described["name"], &described["provider"], &described["online"]), (&json!("x"), &json!(b.id()), &json!(true)));
    let methods: Vec<_> =
        described["methods"].as_array().unwrap().iter().map(|method| (&method["name"], &method["shape"])).collect();
    assert_eq!(methods, [(&json!("one"), &json!("unary")), (&json!("other"), &json!("bidi"))]);
    assert!(described["methods"][0]["request"].is_object());
    assert!(a.ok(&["services", "bob", "y*"]).is_empty());
    let (exit, error) = b.fails(&["serve", "x/one", "--exec", "cat"]);
    assert_eq!((exit, &error["code"]), (1, &json!("already_exists")));

    let watching = a.start(&["services", "bob", "--watch", "--json"]);
    watching.line(|line| line.contains("\"one\""));
    one.signal(Signal::TERM);
    assert_eq!(one.ended().code(), Some(0));
    watching.line(|line| !line.contains("\"one\"") && line.contains("\"other\""));
    let (exit, error) = a.fails(&["call", "bob", "x/one"]);
    assert_eq!((exit, &error["code"]), (3, &json!("unimplemented")));
    drop(up_a);
    drop(up_b);
}

#[test]
fn a_serve_that_is_told_to_end_finishes_its_calls_and_one_that_is_killed_fails_them() {
    let (a, _up_a, b, up_b) = connected();
    let (began, go) = (b.pipe("began"), b.pipe("go"));
    let program = format!("echo yes > {began}; cat {go}");
    let serving = b.serve("x/y", &program, &[]);
    let calling = a.start(&["call", "bob", "x/y"]);
    assert_eq!(read_to_end(&began), "yes\n");
    serving.signal(Signal::TERM);
    up_b.line(|line| line.contains("\"online\":false"));
    fs::write(&go, "1").unwrap();
    assert_eq!(calling.line(|_| true), "1");
    assert_eq!(serving.ended().code(), Some(0));

    let serving = b.serve("x/y", &program, &[]);
    let calling = a.start(&["call", "bob", "x/y", "--json"]);
    assert_eq!(read_to_end(&began), "yes\n");
    serving.signal(Signal::KILL);
    calling.line(|line| line.contains("\"unavailable\""));
    assert_eq!(calling.ended().code(), Some(3));
    fs::write(&go, "1").unwrap();
}

/// A request to the local API by hand: the status code and the body.
fn ask(home: &Home, request: &str) -> (u16, Value) {
    let mut socket = std::os::unix::net::UnixStream::connect(home.path("home/volt.sock")).unwrap();
    socket.write_all(request.replace('\n', "\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}")))
}

#[test]
fn whatever_the_local_api_is_asked_it_answers_in_json() {
    let home = Home::new();
    let _node = home.up_here();
    let get = |path: &str| ask(&home, &format!("GET {path} HTTP/1.1\nhost: x\nconnection: close\n\n"));
    let post = |path: &str, body: &str| {
        let length = body.len();
        ask(&home, &format!("POST {path} HTTP/1.1\nhost: x\nconnection: close\ncontent-length: {length}\n\n{body}"))
    };
    assert_eq!(get("/v1/status").1["id"], json!(home.id()));
    assert_eq!(get("/v1/sessions"), (200, json!([])));
    assert_eq!(get("/v1/services"), (200, json!([])));
    let code = |(status, body): (u16, Value)| (status, body["error"]["cause"].as_str().unwrap().to_owned());
    let usage = |status: u16| (status, "usage".to_owned());
    assert_eq!(code(get("/v1/nothing")), usage(404));
    assert_eq!(code(post("/v1/status", "")), usage(400));
    assert_eq!(code(get("/v1/services?timeout_ms=x")), usage(400));
    assert_eq!(code(post("/v1/connect", "{")), usage(400));
    assert_eq!(code(post("/v1/connect", &format!("\"{}\"", "x".repeat(70_000)))), usage(400));
    assert_eq!(code(post("/v1/ping", r#"{"peer": "nobody"}"#)), usage(404));
    assert_eq!(code(post("/v1/serve/calls/7", "")), usage(404));
    assert_eq!(code(post("/v1/serve/calls/x", "")), usage(400));
}

#[test]
fn what_is_mistyped_is_told_before_anything_happens() {
    let home = Home::new();
    let ticket = home.ticket();
    let cut = &ticket[..ticket.len() - 1];
    let usage: &[&[&str]] = &[
        &["nonsense"],
        &["call"],
        &["call", "bob"],
        &["call", cut, "a/b"],
        &["call", "did:key:z6Mk", "a/b"],
        &["call", "nobody", "a/b"],
        &["call", "service:greeter", "a/b"],
        &["call", &ticket, "a/b"],
        &["call", "bob", "a/b", "{not json"],
        &["call", "bob", "a/b", "1", "--timeout", "soon"],
        &["call", "bob", "a/b", "1", "--meta", "novalue"],
        &["up", "--listen", "here"],
        &["up", "--connect", cut],
        &["up", "--listen", "127.0.0.1:0", "--connect", "nobody"],
        &["policy", "allow", "nobody", "call"],
        &["policy", "allow", "*", "dance"],
        &["policy", "allow", "*", "call", "greeter"],
        &["policy", "allow", "@nogroup", "call"],
        &["policy", "check", "*", "call", "a/b"],
        &["ping", "bob", "-c", "0"],
        &["completions", "cobol"],
    ];
    for arguments in usage {
        let (exit, error) = home.fails(arguments);
        assert_eq!(exit, 2, "{arguments:?}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{error}");
    }
    let _node = home.up_here();
    for arguments in [&["call", "nobody", "a/b"][..], &["call", &ticket, "a/b"], &["call", cut, "a/b"], &["connect", &ticket]] {
        assert_eq!(home.fails(arguments).0, 2, "{arguments:?}");
    }
    assert_eq!(home.fails(&["connect", &Home::new().ticket(), "--as", "a/b"]).0, 2);
    assert_eq!(home.fails(&["serve", "noslash", "--exec", "cat"]).0, 2);
    let nowhere = home.volt(&["id", "--json"]).env("VOLT_HOME", home.path("nowhere")).output().unwrap();
    let (exit, error) = failure(&nowhere, &["id"]);
    assert_eq!(exit, 1);
    assert!(error["message"].as_str().unwrap().contains("volt init"));
}

#[test]
fn a_name_means_one_peer() {
    let (a, b, c) = (Home::new(), Home::new(), Home::new());
    let _up = a.up_here();
    // Neither is up: they are remembered, and that is said.
    let (b, c) = (b.ticket(), c.ticket());
    let kept = a.json(&["connect", &b, "--as", "bob", "--timeout", "50ms"]);
    assert_eq!((&kept["connected"], &kept["name"]), (&json!(false), &json!("bob")));
    assert!(a.ok(&["connect", &b, "--timeout", "50ms"]).starts_with("Remembered: bob"));
    let (exit, error) = a.fails(&["connect", &c, "--as", "bob", "--timeout", "50ms"]);
    assert_eq!((exit, &error["code"]), (2, &json!("already_exists")));
    assert_eq!(a.json(&["sessions"])["state"], json!("connecting"));
}

#[test]
fn an_identity_is_made_once_and_can_be_sealed() {
    let home = Home::new();
    let id = home.id();
    assert_eq!(home.json(&["init"])["id"], json!(id));
    home.ok(&["init", "--name", "kitchen"]);
    assert_eq!(home.json(&["init"])["name"], json!("kitchen"));
    assert_eq!(home.fails(&["init", "--name", "cellar"]).0, 1);
    assert_eq!(home.json(&["id"])["name"], json!("kitchen"));

    let sealed = Home { dir: tempfile::tempdir().unwrap() };
    let done = sealed.run_with(&["init", "--passphrase"], "open sesame\n");
    assert!(done.status.success(), "{}", text(&done.stderr));
    let (exit, error) = sealed.fails(&["id"]);
    assert_eq!(exit, 1);
    assert!(error["hint"].as_str().unwrap().contains("VOLT_PASSPHRASE"));
    assert!(sealed.volt(&["id"]).env("VOLT_PASSPHRASE", "open sesame").output().unwrap().status.success());
    fs::write(sealed.path("secret"), "open sesame\n").unwrap();
    let secret = sealed.path("secret").to_str().unwrap().to_owned();
    let _up = sealed.up(&["--listen", "127.0.0.1:0", "--passphrase-file", &secret]);
    sealed.ok(&["id"]);
}

#[test]
fn help_and_version_are_results() {
    let home = Home { dir: tempfile::tempdir().unwrap() };
    assert!(home.ok(&["--version"]).starts_with("volt "));
    assert!(home.ok(&["--help"]).contains("Examples:"));
    assert!(home.ok(&["call", "--help"]).contains("Examples:"));
    assert!(home.ok(&["completions", "bash"]).contains("volt"));
    assert!(!home.path("home").exists(), "nothing was made");
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    let home = Home::new();
    let mut command = home.volt(&["completions", "zsh"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()));
}
