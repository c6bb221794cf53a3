//! Who gets in, and how a peer is put out: the command line, as processes with homes of their own, on real UDP.

mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::process::{Home, LONG, Running, connected, failure};

/// Until it is so; what is asked announces itself nowhere.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < until, "{what}");
    }
}

fn session(home: &Home, peer: &str) -> Option<Value> {
    let sessions = home.ok(&["sessions", "--json"]);
    let mut sessions = sessions.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    sessions.find(|session| session["peer"] == peer)
}

#[test]
fn a_stranger_waits_until_the_owner_lets_it_in() {
    let (a, b) = (Home::new(), Home::new());
    a.configure("name = \"the \\u001b[31mkitchen\"\n".replace("\\u001b[31m", "").as_str());
    let (up_a, up_b) = (a.up_here(), b.up_here());
    let _serving = b.serve("echo/one", "cat", &[]);
    let asked = a.json(&["connect", &b.ticket(), "--as", "bob"]);
    assert_eq!(
        (&asked["connected"], asked["reason"].as_str().unwrap().contains("owner is asked")),
        (&json!(false), true),
        "{asked}"
    );
    assert_eq!(up_a.event("waiting")["peer"], json!(b.id()));
    let request = up_b.event("request");
    assert_eq!((&request["peer"], &request["name"]), (&json!(a.id()), &json!("the kitchen")));
    assert_eq!(session(&a, &b.id()).unwrap()["state"], "waiting");
    // It says so to whoever calls, too.
    let (exit, error) = a.fails(&["call", "bob", "echo/one", "1", "--timeout", "200ms"]);
    assert_eq!((exit, &error["outcome"]), (4, &json!("not_sent")));
    assert!(error["message"].as_str().unwrap().contains("owner is asked"), "{error}");

    let waits = b.json(&["requests"]);
    assert_eq!((&waits["peer"], &waits["name"], &waits["relayed"]), (&json!(a.id()), &json!("the kitchen"), &json!(false)));
    assert_eq!(b.json(&["status"])["requests"], json!(1));
    let check = b.json(&["policy", "check", &a.id(), "connect"]);
    assert_eq!((&check["decision"], &check["rule"]), (&json!("prompt"), &Value::Null));
    assert_eq!(b.fails(&["requests", "approve", "z6MkNobody"]).0, 2);
    assert_eq!(b.fails(&["requests", "approve", "", "--may", "call echo/*"]).0, 2);
    assert_eq!(b.fails(&["requests", "approve", &a.id(), "--may", "sing loudly"]).0, 2);

    let short = &a.id()["did:key:".len()..][..12];
    let decided = b.json(&["requests", "approve", short, "--may", "call echo/*"]);
    assert_eq!((&decided["peer"], decided["rules"].as_array().unwrap().len()), (&json!(a.id()), 2));
    // It is dialled, so that it need not wait until it comes again.
    up_a.event("connected");
    assert_eq!(a.ok(&["call", "bob", "echo/one", "1"]), "1\n");
    assert!(b.ok(&["requests"]).is_empty());
    assert_eq!(b.json(&["policy", "check", &a.id(), "connect"])["decision"], json!("permit"));
    // Rules stay: after a restart nobody is asked again.
    up_b.signal(Signal::TERM);
    up_b.ended();
    let _up_b = b.up_here();
    let _serving = b.serve("echo/one", "cat", &[]);
    assert_eq!(a.ok(&["call", &b.ticket(), "echo/one", "2"]), "2\n");
}

#[test]
fn a_stranger_that_is_turned_away_is_refused_from_then_on() {
    let (a, b) = (Home::new(), Home::new());
    let (_up_a, up_b) = (a.up_here(), b.up_here());
    a.ok(&["connect", &b.ticket(), "--as", "bob"]);
    up_b.event("request");
    let decided = b.json(&["requests", "deny", &a.id()]);
    assert_eq!(decided["rules"][0]["effect"], json!("deny"));
    let (exit, error) = a.fails(&["connect", &b.ticket()]);
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")));
    assert!(b.ok(&["requests"]).is_empty());
}

#[test]
fn where_strangers_are_refused_nobody_is_asked() {
    let (a, b) = (Home::new(), Home::new());
    b.configure("strangers = \"refuse\"\n");
    let (_up_a, _up_b) = (a.up_here(), b.up_here());
    assert_eq!(a.fails(&["connect", &b.ticket()]).0, 5);
    assert!(b.ok(&["requests"]).is_empty());
    assert_eq!(b.json(&["policy", "check", &a.id(), "connect"])["decision"], json!("deny"));
}

#[test]
fn an_invitation_lets_in_as_many_as_it_says_and_then_nobody() {
    let (b, c) = (Home::new(), Home::new());
    b.configure("strangers = \"refuse\"\n");
    let (_up_b, _up_c) = (b.up_here(), c.up_here());
    let _serving = b.serve("echo/one", "cat", &[]);
    let invited = b.json(&["invite", "--uses", "3", "--ttl", "10m", "--may", "call echo/*"]);
    let ticket = invited["ticket"].as_str().unwrap();
    assert!(invited["expires"].as_str().unwrap().ends_with('Z'), "{invited}");

    // Six at once.
    let joined = thread::scope(|scope| {
        let joining = [(); 6].map(|()| {
            scope.spawn(|| {
                let home = Home::new();
                let up = home.up_here();
                let done = home.run(&["join", ticket, "--as", "office", "--json"]);
                let called = done.status.success().then(|| home.ok(&["call", "office", "echo/one", "1"]));
                let remembered = home.ok(&["peers"]).contains("office");
                drop(up);
                (done, called, remembered)
            })
        });
        joining.map(|joining| joining.join().unwrap())
    });
    for (done, called, remembered) in &joined {
        assert_eq!(*remembered, done.status.success(), "only what worked is remembered");
        match done.status.success() {
            true => assert_eq!(called.as_deref(), Some("1\n")),
            false => assert_eq!(failure(done, &["join"]).0, 5),
        }
    }
    assert_eq!(joined.iter().filter(|(done, ..)| done.status.success()).count(), 3);
    let (exit, error) = c.fails(&["join", ticket]);
    assert_eq!(exit, 5);
    assert!(error["hint"].as_str().unwrap().contains("used up"), "{error}");
    assert!(b.ok(&["invite", "--list"]).is_empty());
    // Used up it is not even looked at: there is nothing a stranger could say.
    assert!(b.json(&["status"])["refused_sessions"].as_u64().unwrap() >= 4);
}

#[test]
fn an_invitation_that_expired_or_was_taken_back_is_worthless() {
    let (a, b) = (Home::new(), Home::new());
    b.configure("strangers = \"refuse\"\n");
    let (_up_a, up_b) = (a.up_here(), b.up_here());
    let short = b.json(&["invite", "--ttl", "1s"]);
    let gone = Instant::now() + Duration::from_secs(1);
    let taken = b.json(&["invite"]);
    assert_eq!(b.json(&["invite", "--withdraw", taken["name"].as_str().unwrap()])["removed"], json!(true));
    assert_eq!(b.fails(&["invite", "--withdraw", "nothing"]).0, 2);
    assert_eq!(a.fails(&["join", taken["ticket"].as_str().unwrap()]).0, 5);
    until("the second passes", || Instant::now() > gone);
    assert_eq!(a.fails(&["join", short["ticket"].as_str().unwrap()]).0, 5);
    assert_eq!(a.fails(&["join", &b.ticket()]).0, 2, "that is no invitation");
    // Whom this node knows by name, and wants no session with, is not wanted because of that.
    assert_eq!(a.fails(&["connect", &b.ticket(), "--as", "bob"]).0, 5);
    a.ok(&["disconnect", "bob"]);
    assert_eq!(a.fails(&["join", taken["ticket"].as_str().unwrap()]).0, 5);
    assert_eq!(a.json(&["peers"])["wanted"], json!(false));
    for wrong in [&["invite", "--uses", "0"][..], &["invite", "--ttl", "0s"], &["invite", "--may", "sing"]] {
        assert_eq!(b.fails(wrong).0, 2, "{wrong:?}");
    }
    // Made on the files, used when the node is up; and the secret is in the ticket only.
    up_b.signal(Signal::TERM);
    up_b.ended();
    b.configure("strangers = \"refuse\"\nlisten = [\"127.0.0.1:0\"]\n");
    let made = b.json(&["invite"]);
    let _up_b = b.up(&[]);
    let now: voltmesh::id::Ticket = b.ticket().parse().unwrap();
    let with_secret: voltmesh::id::Ticket = made["ticket"].as_str().unwrap().parse().unwrap();
    let secret = with_secret.secret.clone().unwrap();
    let ticket = voltmesh::id::Ticket { secret: with_secret.secret, ..now };
    assert_eq!(a.json(&["join", &ticket.to_string()])["connected"], json!(true));
    for file in fs::read_dir(b.path("home")).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(16).any(|window| window == secret.as_bytes()), "{}", file.display());
    }
}

/// A call that never ends by itself, running at B.
fn running_call(a: &Home, b: &Home) -> (Running, std::process::Child) {
    let (pipe, began) = (b.pipe("never"), b.pipe("began"));
    let serving = b.serve("slow/one", &format!("echo > {began}; cat {pipe}"), &[]);
    let mut call = a.volt(&["call", "bob", "slow/one", "1", "--json"]);
    let call = call.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    support::process::read_to_end(began);
    (serving, call)
}

/// What the call fails with, and how soon.
fn fails(call: std::process::Child, since: Instant) -> (i32, Value, Duration) {
    let done = call.wait_with_output().unwrap();
    let took = since.elapsed();
    let (exit, error) = failure(&done, &["call"]);
    (exit, error, took)
}

#[test]
fn a_call_whose_leave_is_taken_away_ends_at_once_as_refused() {
    let (a, _up_a, b, _up_b) = connected();
    let (_serving, call) = running_call(&a, &b);
    let since = Instant::now();
    b.ok(&["policy", "deny", &a.id(), "call", "slow/*"]);
    let (exit, error, took) = fails(call, since);
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")));
    assert!(error["message"].as_str().unwrap().contains("refused by policy"), "{error}");
    println!("ended {took:?} after the command began");
    // The session goes on.
    assert_eq!(session(&a, &b.id()).unwrap()["state"], "connected");
}

#[test]
fn revoking_a_peer_ends_its_session_and_its_calls_and_refuses_it_from_then_on() {
    let (a, up_a, b, up_b) = connected();
    let registered = a.start(&["serve", "lamp/on", "--exec", "cat", "--at", "bob"]);
    b.ok(&["policy", "allow", &a.id(), "register", "*"]);
    drop(registered);
    let _registered = a.serve("lamp/on", "cat", &["--at", "bob"]);
    until("it is registered", || b.ok(&["services"]).contains("lamp"));
    let (_serving, call) = running_call(&a, &b);
    let since = Instant::now();
    let revoked = b.json(&["revoke", &a.id()]);
    let (exit, error, took) = fails(call, since);
    println!("ended {took:?} after the command began: {error}");
    assert_eq!((exit, &error["code"]), (5, &json!("permission_denied")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("refused by policy"), "{error}");
    assert_eq!((&revoked["rule"]["effect"], revoked["removed"].as_array().unwrap().len()), (&json!("deny"), 2));
    up_b.event("disconnected");
    up_a.event("disconnected");
    until("it is offline", || !b.ok(&["services"]).contains("lamp"));
    assert_eq!(a.fails(&["call", "bob", "echo/one", "1", "--timeout", "2s"]).0, 5);
    assert_eq!(a.fails(&["connect", &b.ticket()]).0, 5);
    // And back, when the owner wants that.
    b.ok(&["policy", "rm", &a.id(), "connect"]);
    b.ok(&["policy", "allow", &a.id(), "connect"]);
    assert_eq!(a.json(&["connect", &b.ticket()])["connected"], json!(true));
}

#[test]
fn of_two_live_nodes_with_one_key_the_newer_stays_and_the_older_is_told() {
    let (a, copy, b) = (Home::new(), Home::new(), Home::new());
    fs::copy(a.path("home/identity.pem"), copy.path("home/identity.pem")).unwrap();
    let (up_a, up_b) = (a.up_here(), b.up_here());
    b.ok(&["policy", "allow", &a.id(), "connect"]);
    a.ok(&["connect", &b.ticket()]);
    up_b.event("connected");
    let up_copy = copy.up_here();
    copy.ok(&["connect", &b.ticket()]);
    up_copy.event("connected");
    let told = up_a.line(|line| line.contains("\"disconnected\""));
    assert!(told.contains("another process with this node's key"), "{told}");
    let peers = || a.ok(&["peers", "--json"]);
    until("it says why it is not connected", || peers().contains("another process with this node's key"));
    // It goes on trying, ever more rarely, and never gets the place back while the other is there.
    assert_eq!(session(&copy, &b.id()).unwrap()["state"], "connected");
    a.fails(&["connect", &b.ticket()]);
    a.fails(&["connect", &b.ticket()]);
    let still = session(&copy, &b.id()).unwrap();
    assert_eq!(still["state"], "connected");
    assert_eq!(session(&b, &a.id()).unwrap()["session"], still["session"]);
    // When the newer one has gone, the older one is let back.
    up_copy.signal(Signal::TERM);
    up_copy.ended();
    assert_eq!(a.json(&["connect", &b.ticket()])["connected"], json!(true));
}
