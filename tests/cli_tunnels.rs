//! Tunnels from the shell: processes with homes of their own, and programs that know nothing of them at both ends: HTTP, ssh, PostgreSQL.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::process::{Home, LONG, Running, text};

/// A node that exposes things and lets everybody reach those called `open/…`, and one that has a session with it and calls it `bob`.
struct Mesh {
    bob: Home,
    alice: Home,
    _up: [Running; 2],
}

impl Mesh {
    fn new() -> Self {
        let [bob, alice] = [Home::new(), Home::new()];
        let up = [bob.up_here(), alice.up_here()];
        bob.ok(&["policy", "allow", "*", "forward", "open/*"]);
        alice.ok(&["connect", &bob.ticket(), "--as", "bob"]);
        Self { bob, alice, _up: up }
    }

    /// Brings a target of bob's to a port of alice's.
    fn joined(&self, name: &str, target: &str) -> (Running, Running, u16) {
        let exposing = expose(&self.bob, name, target);
        let (forwarding, port) = forward(&self.alice, name);
        (exposing, forwarding, port)
    }
}

fn expose(home: &Home, name: &str, target: &str) -> Running {
    let exposing = home.start(&["expose", name, target, "--json"]);
    let first = json_line(&exposing);
    assert_eq!(first, json!({ "expose": name, "target": target }));
    exposing
}

fn forward(home: &Home, name: &str) -> (Running, u16) {
    let forwarding = home.start(&["forward", "0", "bob", name, "--json"]);
    let first = json_line(&forwarding);
    assert_eq!(first["forward"], name, "{first}");
    let listen: SocketAddr = first["listen"].as_str().unwrap().parse().unwrap();
    assert!(listen.ip().is_loopback());
    (forwarding, listen.port())
}

fn json_line(running: &Running) -> Value {
    serde_json::from_str(&running.line(|_| true)).unwrap()
}

/// Bytes that compress badly and repeat nowhere.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// Answers each request with these bytes, for as long as the test runs.
fn http_server(body: Arc<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let body = body.clone();
            thread::spawn(move || answer(stream, &body));
        }
    });
    at
}

/// Whoever breaks off is not the server's to worry about.
fn answer(mut stream: TcpStream, body: &[u8]) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).ok()?;
    stream.write_all(body).ok()
}

/// Downloads with curl, or without where there is none.
fn download(port: u16) -> Vec<u8> {
    match program("curl") {
        Some(curl) => {
            let url = format!("http://127.0.0.1:{port}/");
            let done = Command::new(curl).args(["--silent", "--show-error", "--fail", "--noproxy", "*", &url]).output().unwrap();
            assert!(done.status.success(), "{}", text(&done.stderr));
            done.stdout
        }
        None => {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let body = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            answer.split_off(body)
        }
    }
}

/// Where a program is, if it is on this machine.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]).chain(versions);
    directories.map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// All of these programs, or a word on why the test is skipped.
fn programs<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let found = names.map(program);
    if let Some(at) = found.iter().position(Option::is_none) {
        println!("skipped: there is no {} on this machine", names[at]);
        return None;
    }
    Some(found.map(|path| path.expect("all are there")))
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until somebody takes connections there.
fn until_it_listens(port: u16) {
    let until = Instant::now() + LONG;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < until, "nobody listens at {port}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until nobody does.
fn until_it_is_closed(port: u16) {
    let until = Instant::now() + LONG;
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < until, "somebody still listens at {port}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What comes back through a port for one request of a server that answers once.
fn ask(port: u16) -> Result<Vec<u8>, ErrorKind> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut answer = Vec::new();
    let asked = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| stream.read_to_end(&mut answer));
    asked.map(|_| answer).map_err(|error| error.kind())
}

#[test]
fn fifty_megabytes_are_downloaded_as_they_are_and_both_sides_tell_of_it() {
    let mesh = Mesh::new();
    let body = Arc::new(bytes(50_000_000));
    let (exposing, forwarding, port) = mesh.joined("open/web", &http_server(body.clone()));
    assert!(download(port) == *body);
    for (running, most) in [(&exposing, "sent"), (&forwarding, "received")] {
        let (began, ended) = (json_line(running), json_line(running));
        assert_eq!((&began["event"], &ended["event"], &ended["how"]), (&json!("began"), &json!("ended"), &json!("finished")));
        assert_eq!(began["connection"], ended["connection"]);
        assert!(ended[most].as_u64().unwrap() > 50_000_000, "{ended}");
        let (whose, who) = if most == "sent" { ("peer", json!(mesh.alice.id())) } else { ("from", ended["from"].clone()) };
        assert_eq!((&began[whose], &ended[whose]), (&who, &who));
    }
}

#[test]
fn what_cannot_be_forwarded_is_told_at_once_with_its_exit_code() {
    let mesh = Mesh::new();
    let exposing = expose(&mesh.bob, "secret", "127.0.0.1:9");
    let fails = |arguments: &[&str]| {
        let (exit, error) = mesh.alice.fails(arguments);
        (exit, error["code"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
    };
    let (exit, code, denied) = fails(&["forward", "0", "bob", "secret"]);
    assert_eq!((exit, &code[..]), (5, "permission_denied"));
    assert_eq!(fails(&["forward", "0", "bob", "nothing"]), (5, code, denied), "whether it is there or not");
    let (exit, code, _) = fails(&["forward", "0", "bob", "open/nothing"]);
    assert_eq!((exit, &code[..]), (3, "not_found"));
    assert_eq!(fails(&["forward", "0", "carol", "open/x"]).0, 2);
    for wrong in [["forward", "x", "bob", "a"], ["forward", "0", "bob", "a b"], ["forward", "0", "did:key:zz", "a"]] {
        assert_eq!(fails(&wrong).0, 2, "{wrong:?}");
    }
    for wrong in [["expose", "a b", "127.0.0.1:9"], ["expose", "a", "127.0.0.1"], ["expose", "a", "127.0.0.1:0"]] {
        assert_eq!(fails(&wrong).0, 2, "{wrong:?}");
    }
    let (exit, error) = mesh.bob.fails(&["expose", "secret", "127.0.0.1:10"]);
    assert_eq!((exit, &error["code"]), (1, &json!("already_exists")));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let _open = expose(&mesh.bob, "open/x", "127.0.0.1:9");
    let (exit, _, message) = fails(&["forward", &taken.local_addr().unwrap().to_string(), "bob", "open/x"]);
    assert_eq!(exit, 1);
    assert!(message.contains("cannot listen at 127.0.0.1:"), "{message}");
    drop(exposing);
    let nobody = Home::new();
    for command in [["expose", "a", "127.0.0.1:9"].as_slice(), &["forward", "0", &mesh.bob.ticket(), "open/x"]] {
        let (exit, error) = nobody.fails(command);
        assert_eq!((exit, &error["code"]), (1, &json!("failed_precondition")), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("volt up"), "{error}");
    }
}

#[test]
fn what_is_refused_later_is_told_and_the_forward_goes_on_until_it_is_interrupted() {
    let mesh = Mesh::new();
    let target = http_server(Arc::new(b"hello".to_vec()));
    let (exposing, forwarding, port) = mesh.joined("open/web", &target);
    assert!(ask(port).unwrap().ends_with(b"hello"));
    let error = |code: &str| {
        let line = forwarding.line(|line| line.contains("\"error\""));
        let error: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(error["error"]["code"], code, "{error}");
    };
    // Killed, it exposes nothing any more, and says nothing.
    exposing.signal(Signal::KILL);
    exposing.ended();
    let refused = |answer: Result<Vec<u8>, ErrorKind>| assert_eq!(answer, Err(ErrorKind::ConnectionReset));
    let gone = Instant::now() + LONG;
    while ask(port).is_ok() {
        assert!(Instant::now() < gone, "it is still exposed");
    }
    error("not_found");
    let nobody = free_port();
    let exposing = expose(&mesh.bob, "open/web", &format!("127.0.0.1:{nobody}"));
    refused(ask(port));
    error("unavailable");
    // There the owner learns more than the peer.
    let told = exposing.line(|line| line.contains("\"error\""));
    assert!(told.contains("unavailable") && told.contains("refused"), "{told}");
    exposing.signal(Signal::INT);
    assert!(exposing.ended().success());
    let _exposing = expose(&mesh.bob, "open/web", &target);
    assert!(ask(port).unwrap().ends_with(b"hello"));
    mesh.bob.ok(&["policy", "deny", "*", "forward", "open/web"]);
    refused(ask(port));
    error("permission_denied");
    forwarding.signal(Signal::INT);
    assert!(forwarding.ended().success());
    until_it_is_closed(port);
}

#[test]
fn a_forward_that_is_killed_leaves_no_port_behind() {
    let mesh = Mesh::new();
    let (_exposing, forwarding, port) = mesh.joined("open/web", &http_server(Arc::new(b"hello".to_vec())));
    assert!(ask(port).unwrap().ends_with(b"hello"));
    forwarding.signal(Signal::KILL);
    forwarding.ended();
    until_it_is_closed(port);
    // It lives as long as the node of the other side, too.
    let (forwarding, port) = forward(&mesh.alice, "open/web");
    mesh.alice.ok(&["down"]);
    forwarding.line(|line| line.contains("the node goes down") || line.contains("the node has gone down"));
    assert_eq!(forwarding.ended().code(), Some(1));
    until_it_is_closed(port);
}

#[test]
fn people_are_told_in_words() {
    let mesh = Mesh::new();
    let target = http_server(Arc::new(b"hello".to_vec()));
    let exposing = mesh.bob.start(&["expose", "open/web", &target]);
    exposing.line(|line| line == format!("Exposed as open/web: {target}"));
    let port = free_port().to_string();
    let forwarding = mesh.alice.start(&["forward", &port, "bob", "open/web"]);
    forwarding.line(|line| line.starts_with(&format!("Connections to 127.0.0.1:{port} go to open/web of did:key:")));
    assert!(ask(port.parse().unwrap()).unwrap().ends_with(b"hello"));
    exposing.line(|line| line.contains("connected"));
    exposing.line(|line| line.contains("ended, ") && line.contains("18 received"));
    forwarding.line(|line| line.contains("ended, 18 bytes sent"));
}

#[test]
fn what_the_configuration_exposes_and_forwards_is_there_after_every_start() {
    let [bob, alice] = [Home::new(), Home::new()];
    let target = http_server(Arc::new(b"hello".to_vec()));
    let (at, port) = (free_port(), free_port());
    let rule = "[[rule]]\nallow = \"*\"\naction = \"forward\"\nresource = \"web\"\n";
    let exposed = format!("listen = [\"127.0.0.1:{at}\"]\n{rule}[[expose]]\nname = \"web\"\ntarget = \"{target}\"\n");
    fs::write(bob.path("home/volt.toml"), exposed).unwrap();
    let bobs = bob.up(&[]);
    let forwarded = format!(
        "listen = [\"127.0.0.1:0\"]\n[[forward]]\nlisten = \"{port}\"\npeer = \"{}\"\nname = \"web\"\n",
        bob.json(&["id"])["ticket"].as_str().unwrap()
    );
    fs::write(alice.path("home/volt.toml"), forwarded).unwrap();
    let mut alices = alice.up(&[]);
    assert!(ask(port).unwrap().ends_with(b"hello"));
    // A visitor is there for one command, and takes nobody's place.
    alice.ok(&["sessions"]);
    for _ in 0..2 {
        alices.signal(Signal::KILL);
        alices.ended();
        alices = alice.up(&[]);
        assert!(ask(port).unwrap().ends_with(b"hello"));
    }
    drop(bobs);
    let _bobs = bob.up(&[]);
    // It waits for the session.
    assert!(ask(port).unwrap().ends_with(b"hello"));
}

#[test]
fn ssh_works_through_it() {
    let Some([sshd, ssh, keygen]) = programs(["sshd", "ssh", "ssh-keygen"]) else { return };
    let mesh = Mesh::new();
    let server = Sshd::start(&mesh.bob, &sshd, &keygen);
    let (_exposing, _forwarding, port) = mesh.joined("open/ssh", &format!("127.0.0.1:{}", server.port));
    let ssh = |command: &str| {
        let mut ssh = Command::new(&ssh);
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "IdentitiesOnly=yes"]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-p", &port.to_string(), "-i"]);
        ssh.arg(&server.key).arg("127.0.0.1").arg(command);
        ssh
    };
    let done = ssh("echo it is $((40 + 2))").stdin(Stdio::null()).output().unwrap();
    assert_eq!(text(&done.stdout), "it is 42\n", "{}", text(&done.stderr));
    // Both ways at once, to an end that only the client says.
    let all = bytes(5_000_000);
    let mut cat = ssh("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, sent) = (cat.stdin.take().unwrap(), all.clone());
    let sending = thread::spawn(move || stdin.write_all(&sent).unwrap());
    let back = cat.wait_with_output().unwrap();
    sending.join().unwrap();
    assert!(back.status.success() && back.stdout == all, "{} bytes came back", back.stdout.len());
    let failed = ssh("exit 7").stdin(Stdio::null()).status().unwrap();
    assert_eq!(failed.code(), Some(7));
}

/// An sshd of the test's own, for whoever runs it, with keys of its own.
struct Sshd {
    port: u16,
    key: PathBuf,
    _running: Running,
}

impl Sshd {
    fn start(home: &Home, sshd: &Path, keygen: &Path) -> Self {
        let (host_key, key, config) = (home.path("host_key"), home.path("key"), home.path("sshd_config"));
        for path in [&host_key, &key] {
            let made = Command::new(keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status().unwrap();
            assert!(made.success());
        }
        if rustix::process::getuid().is_root() {
            // The one place outside: sshd wants it there when it is root, and distributions make it when they start theirs.
            fs::create_dir_all("/run/sshd").unwrap();
            fs::set_permissions("/run/sshd", fs::Permissions::from_mode(0o755)).unwrap();
        }
        let port = free_port();
        let lines = [
            format!("ListenAddress 127.0.0.1:{port}"),
            format!("HostKey {}", host_key.display()),
            format!("AuthorizedKeysFile {}", key.with_extension("pub").display()),
            "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n".to_owned(),
        ];
        fs::write(&config, lines.join("\n")).unwrap();
        let mut command = Command::new(sshd);
        command.args(["-D", "-e", "-f"]).arg(&config).stdin(Stdio::null());
        let running = Running::new(command);
        until_it_listens(port);
        Self { port, key, _running: running }
    }
}

#[test]
fn postgresql_works_through_it() {
    let Some([postgres, initdb, psql]) = programs(["postgres", "initdb", "psql"]) else { return };
    let Some(server) = Postgres::start(&postgres, &initdb) else { return };
    let mesh = Mesh::new();
    let (_exposing, _forwarding, port) = mesh.joined("open/postgres", &format!("127.0.0.1:{}", server.port));
    let query = |port: u16, query: &str| {
        let port = port.to_string();
        let mut command = Command::new(&psql);
        command.args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "volt", "-d", "postgres", "-At", "-v", "ON_ERROR_STOP=1"]);
        let done = command.args(["-c", query]).env("PGSSLMODE", "disable").env("PGCONNECT_TIMEOUT", "20").output().unwrap();
        assert!(done.status.success(), "{query}: {}", text(&done.stderr));
        text(&done.stdout)
    };
    assert_eq!(query(port, "select 40 + 2"), "42\n");
    query(port, "create table t as select i, md5(i::text) as m from generate_series(1, 60000) as i");
    let all = "copy (select * from t order by i) to stdout";
    thread::scope(|scope| {
        let here = scope.spawn(|| query(server.port, all));
        let through: Vec<_> = (0..4).map(|_| scope.spawn(|| query(port, all))).collect();
        let here = here.join().unwrap();
        assert_eq!(here.lines().count(), 60_000);
        for rows in through {
            assert!(rows.join().unwrap() == here);
        }
    });
}

/// A PostgreSQL of the test's own: as whoever runs it, or, since it refuses to run as root, as somebody who is not.
struct Postgres {
    port: u16,
    running: Running,
    _data: tempfile::TempDir,
}

impl Postgres {
    fn start(postgres: &Path, initdb: &Path) -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        let user = match rustix::process::getuid().is_root() {
            true => Some(ids("postgres").or_else(|| ids("nobody"))?),
            false => None,
        };
        if let Some((uid, gid)) = user {
            chown(data.path(), Some(uid), Some(gid)).unwrap();
        }
        let run = |program: &Path| {
            let Some((uid, gid)) = user else { return Command::new(program) };
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into(), "--".into()]);
            command.arg(program);
            command
        };
        let directory: &OsStr = data.path().as_os_str();
        let mut init = run(initdb);
        init.args(["-A", "trust", "-U", "volt", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(directory);
        let made = init.current_dir("/").output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let port = free_port();
        let mut command = run(postgres);
        command.arg("-D").arg(directory).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        command.args(["-c", "unix_socket_directories="]).current_dir("/").stdin(Stdio::null());
        let running = Running::new(command);
        running.line(|line| line.contains("ready to accept connections"));
        Some(Self { port, running, _data: data })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, and its children with it; killed it would leave them.
        self.running.signal(Signal::QUIT);
    }
}

/// The numbers of a user of this machine.
fn ids(user: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
