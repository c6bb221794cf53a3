//! What a node keeps to itself, with the real command and in the memory of real processes: files that only their owner may read, whatever
//! the umask; links that lead nowhere else; keys and passphrases in no log, no message, and no memory once they are dropped.
#![cfg(all(target_os = "linux", feature = "cli"))]

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use aws_lc_rs::digest::{SHA512, digest};
use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use support::process::{Home, Running, text};
use support::{closed, echo, soon};
use voltmesh::Node;
use voltmesh::id::{SecretKey, Ticket, keyfile};
use zeroize::Zeroizing;

/// A home without a node in it.
fn nobody() -> Home {
    Home { dir: tempfile::tempdir().unwrap() }
}

const PASSPHRASE: &str = "correct horse battery staple, said nobody";

/// A home with this key, sealed.
fn sealed(key: &SecretKey) -> Home {
    let home = nobody();
    keyfile::create(&home.path("home").join("identity.pem"), key, Some(PASSPHRASE)).unwrap();
    home
}

/// Everything below a directory, itself first.
fn all_below(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if fs::symlink_metadata(path).unwrap().is_dir() {
        all.extend(fs::read_dir(path).unwrap().flat_map(|entry| all_below(&entry.unwrap().path())));
    }
    all
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// The command, with a umask that forbids nothing.
fn carelessly(home: &Home, arguments: &[&str]) -> Command {
    let volt = home.volt(arguments);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000; exec \"$0\" \"$@\""]).arg(volt.get_program()).args(volt.get_args());
    for (name, value) in volt.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).current_dir(home.dir.path());
    command
}

#[test]
fn whatever_the_umask_is_nobody_else_can_read_a_file_of_the_home() {
    let home = nobody();
    assert!(carelessly(&home, &["init"]).output().unwrap().status.success());
    let other = Home::new();
    let _other = other.up(&["--listen", "127.0.0.1:0", "--open"]);
    let up = Running::new(carelessly(&home, &["up", "--json", "--listen", "127.0.0.1:0", "--open"]));
    up.event("ready");
    for arguments in [&["connect", &other.ticket(), "--as", "other"][..], &["wire", "create", "a/wire", "--persist"]] {
        assert!(carelessly(&home, arguments).output().unwrap().status.success(), "{arguments:?}");
    }
    assert!(carelessly(&home, &["policy", "allow", "*", "publish", "*"]).output().unwrap().status.success());
    up.event("connected");
    let closed_to_others = || {
        let all = all_below(&home.path("home"));
        for path in &all {
            let wanted = if fs::symlink_metadata(path).unwrap().is_dir() { 0o700 } else { 0o600 };
            assert_eq!(format!("{:o}", mode(path)), format!("{wanted:o}"), "{}", path.display());
        }
        let mut names: Vec<_> = all.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let running = closed_to_others();
    println!("{running:?}");
    for name in ["identity.pem", "reset.key", "connection-id.key", "volt.lock", "volt.redb", "volt.sock", "wires"] {
        assert!(running.iter().any(|there| there == name), "there is no {name}");
    }
    home.ok(&["down"]);
    assert!(up.ended().success());
    closed_to_others();
}

/// Where the wire `a/wire` is kept.
const WIRE_FILE: &str = "wires/a_wire-c95a95f4418c30e3.wire.redb";

/// Names in a home that somebody has put a link for, and what the command does then: it does not go where the link leads.
#[test]
fn a_link_in_place_of_a_file_of_the_home_leads_nowhere() {
    let names = [
        "identity.pem",
        "reset.key",
        "connection-id.key",
        "volt.redb",
        "volt.sock",
        "volt.lock",
        "volt.port",
        "volt.sessions",
        "wires",
        WIRE_FILE,
    ];
    for (name, there) in names.into_iter().flat_map(|name| [(name, true), (name, false)]) {
        let home = Home::new();
        let outside = home.path("outside");
        if there && name == "wires" {
            fs::create_dir(&outside).unwrap();
        } else if there {
            fs::write(&outside, "not the node's\n").unwrap();
            fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let before = there.then(|| state(&outside));
        let link = home.path("home").join(name);
        if name == WIRE_FILE {
            fs::create_dir(home.path("home").join("wires")).unwrap();
        }
        let _ = fs::remove_file(&link);
        symlink(&outside, &link).unwrap();

        // It may refuse to run, or take the link away; what it must not do is write through it.
        let up = Running::new(home.volt(&["up", "--json", "--listen", "127.0.0.1:0"]));
        let ready = up.line(|line| line.contains("\"ready\"") || line.contains("\"error\"")).contains("\"ready\"");
        if ready {
            home.run(&["wire", "create", "a/wire", "--persist"]);
            home.ok(&["down"]);
        }
        let status = up.ended();
        println!(
            "{name}, a link to {}: {}",
            if there { "something" } else { "nothing" },
            if ready { "it runs" } else { "it refuses" }
        );
        assert_eq!(status.success(), ready, "{name}: {status}");
        assert_eq!(outside.exists().then(|| state(&outside)), before, "{name}: {} was changed", outside.display());
    }
}

/// What is in a file, or the names in a directory, and who may do what with it.
fn state(path: &Path) -> (u32, Vec<String>) {
    let content = match fs::read_dir(path) {
        Ok(names) => names.map(|name| name.unwrap().file_name().to_string_lossy().into_owned()).collect(),
        Err(_) => vec![fs::read_to_string(path).unwrap()],
    };
    (mode(path), content)
}

#[test]
fn a_key_file_that_was_cut_off_anywhere_gives_no_key() {
    let key = SecretKey::generate();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for passphrase in [None, Some(PASSPHRASE)] {
        let (whole, cut) = (dir.path().join(format!("whole{}", passphrase.is_some())), dir.path().join("cut"));
        keyfile::create(&whole, &key, passphrase).unwrap();
        let bytes = fs::read(&whole).unwrap();
        for length in 0..bytes.len() {
            fs::write(&cut, &bytes[..length]).unwrap();
            fs::set_permissions(&cut, fs::Permissions::from_mode(0o600)).unwrap();
            let loaded = keyfile::load(&cut, passphrase);
            // The line break at its end says nothing.
            let is_whole = bytes[length..] == *b"\n";
            assert_eq!(loaded.is_ok(), is_whole, "{length} of {} bytes", bytes.len());
            if let Err(error) = loaded {
                assert!(!error.to_string().contains(PASSPHRASE), "{error}");
            }
        }
    }
}

#[test]
fn a_wrong_passphrase_fails_with_1_and_is_repeated_nowhere() {
    let home = sealed(&SecretKey::generate());
    let wrong = "incorrect horse battery staple";
    fs::write(home.path("wrong"), format!("{wrong}\n")).unwrap();
    for arguments in [&["id"][..], &["up", "--listen", "127.0.0.1:0"], &["id", "--json"], &["id", "-vv"]] {
        let with_variable = home.volt(arguments).env("VOLT_PASSPHRASE", wrong).env("VOLT_LOG", "trace").output().unwrap();
        let file = home.path("wrong");
        let with_file = home.run(&[arguments, &["--passphrase-file", file.to_str().unwrap()]].concat());
        for done in [with_variable, with_file] {
            let said = text(&done.stdout) + &text(&done.stderr);
            assert_eq!(done.status.code(), Some(1), "{arguments:?}: {said}");
            assert!(said.contains("passphrase") && !said.contains(wrong), "{arguments:?}: {said}");
        }
    }
    // A line of it from a pipe is not shown either; it seals a new home, which is not opened without it.
    let other = nobody();
    let done = other.run_with(&["init", "--passphrase", "-vv"], &format!("{PASSPHRASE}\n"));
    assert!(done.status.success());
    assert!(!(text(&done.stdout) + &text(&done.stderr)).contains(PASSPHRASE));
    assert_eq!(other.run(&["id"]).status.code(), Some(1));
}

/// How a secret may have been written.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec(), HEXLOWER.encode(secret).into(), HEXUPPER.encode(secret).into()];
    for before in 0..3 {
        let bytes = [&[0; 2][..before], secret].concat();
        // Only the characters of which every bit is the secret's.
        let whole = (before * 8).div_ceil(6)..bytes.len() * 8 / 6;
        forms.push(BASE64.encode(&bytes)[whole].into());
    }
    forms.push(format!("{secret:?}").trim_matches(['[', ']']).into());
    forms
}

/// Everything that gives a key away: its seed, as it is and in PKCS#8, and what signatures are made with (RFC 8032, 5.1.5).
fn secrets(seed: &[u8; 32]) -> Vec<(&'static str, Vec<u8>)> {
    let expanded = digest(&SHA512, seed);
    let mut scalar: [u8; 32] = expanded.as_ref()[..32].try_into().unwrap();
    scalar[0] &= 248;
    scalar[31] = scalar[31] & 63 | 64;
    let seed = forms(seed).into_iter().map(|form| ("the seed", form));
    let passphrase = forms(PASSPHRASE.as_bytes()).into_iter().map(|form| ("the passphrase", form));
    let expanded = [("its hash", expanded.as_ref().to_vec()), ("its scalar", scalar.to_vec())];
    seed.chain(passphrase).chain(expanded).collect()
}

/// Which of these are there, and how often.
fn found(secrets: &[(&'static str, Vec<u8>)], bytes: &[u8]) -> Vec<&'static str> {
    let mut starts = vec![false; 1 << 16];
    let start = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
    secrets.iter().for_each(|(_, form)| starts[start(form)] = true);
    let mut found = Vec::new();
    for at in 0..bytes.len().saturating_sub(1) {
        if starts[start(&bytes[at..])] {
            found.extend(secrets.iter().filter(|(_, form)| bytes[at..].starts_with(form)).map(|(name, _)| *name));
        }
    }
    found
}

#[test]
fn the_log_of_a_node_has_neither_its_key_nor_the_passphrase() {
    let seed: [u8; 32] = rand::random();
    let (home, other) = (sealed(&SecretKey::from_seed(&seed)), Home::new());
    let log = home.path("log");
    let secret = home.path("passphrase");
    fs::write(&secret, format!("{PASSPHRASE}\n")).unwrap();
    let arguments = ["up", "--json", "-vv", "--listen", "127.0.0.1:0", "--open", "--passphrase-file", secret.to_str().unwrap()];
    let mut up = home.volt(&arguments);
    up.env("VOLT_LOG", "trace").stdout(File::create(home.path("said")).unwrap()).stderr(File::create(&log).unwrap());
    let mut up = Killed(up.spawn().unwrap());
    let begun = std::time::Instant::now();
    while !home.run(&["status"]).status.success() {
        assert!(begun.elapsed() < support::SOON, "the node does not come up");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _other = other.up(&["--listen", "127.0.0.1:0", "--open"]);
    home.ok(&["connect", &other.ticket(), "--as", "other"]);
    for arguments in [&["call", "other", "volt/describe", "null"][..], &["ping", "other", "-c", "3"], &["services", "other"]] {
        home.ok(arguments);
    }
    other.ok(&["call", &home.ticket(), "volt/describe", "null"]);
    home.ok(&["policy", "allow", "*", "call", "*"]);
    home.ok(&["down"]);
    assert!(up.0.wait().unwrap().success());

    let (log, said) = (fs::read(log).unwrap(), fs::read(home.path("said")).unwrap());
    let is_traced = log.windows(5).any(|word| word == b"TRACE");
    println!("{} bytes of log, {} of events", log.len(), said.len());
    assert!(is_traced && log.len() > 10_000, "nothing is traced");
    let secrets = secrets(&seed);
    // The search finds what is there.
    assert_eq!(found(&secrets, &[b"a log of ", &seed[..], b" and more"].concat()), ["the seed"]);
    assert_eq!(found(&secrets, &log), Vec::<&str>::new());
    assert_eq!(found(&secrets, &said), Vec::<&str>::new());
}

/// A process that is ended when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This binary again: it does one thing with the key of a home, and says when it has it and when it has let go of it.
struct Holder {
    process: Killed,
}

const BE_THE_HOLDER: &str = "VOLT_BE_THE_HOLDER";

impl Holder {
    fn start(what: &str, home: &Path, more: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["the_holder", "--exact", "--nocapture"]).env(BE_THE_HOLDER, what);
        command.env("VOLT_HOME", home).env("VOLT_HOLDER_PEER", more);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        process.stdin.as_mut().unwrap().write_all(PASSPHRASE.as_bytes()).unwrap();
        Self { process: Killed(process) }
    }

    /// Waits until it says this word, which it says as a line.
    fn says(&mut self, word: &str) {
        let stdout = self.process.0.stdout.as_mut().unwrap();
        let (mut said, mut byte) = (Vec::new(), [0]);
        while !said.ends_with(format!("{word}\n").as_bytes()) {
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "it ended: {}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
    }

    fn goes_on(&mut self) {
        self.process.0.stdin.as_mut().unwrap().write_all(b".").unwrap();
    }

    /// All its memory, as a core dump would have it.
    fn memory(&self) -> Vec<u8> {
        let pid = self.process.0.id();
        let (maps, memory) =
            (fs::read_to_string(format!("/proc/{pid}/maps")).unwrap(), File::open(format!("/proc/{pid}/mem")).unwrap());
        let mut all = Vec::new();
        for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
            let before = all.len();
            all.resize(before + (to - from) as usize, 0);
            if memory.read_exact_at(&mut all[before..], from).is_err() {
                all.truncate(before);
            }
        }
        all
    }
}

#[test]
fn a_key_and_a_passphrase_that_were_dropped_are_in_no_core_dump() {
    let seed: [u8; 32] = rand::random();
    let (home, secrets) = (sealed(&SecretKey::from_seed(&seed)), secrets(&seed));
    let mut holder = Holder::start("key", &home.path("home"), "");
    holder.says("has it");
    let before = found(&secrets, &holder.memory());
    holder.goes_on();
    holder.says("has dropped it");
    let memory = holder.memory();
    let after = found(&secrets, &memory);
    println!("in {:.1} MB: {before:?} before, {after:?} after", memory.len() as f64 / 1e6);
    assert!(before.contains(&"the seed") && before.contains(&"the passphrase"), "the search finds nothing: {before:?}");
    assert_eq!(after, Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_a_node_that_was_dropped_is_in_no_core_dump() {
    let seed: [u8; 32] = rand::random();
    let (home, secrets) = (sealed(&SecretKey::from_seed(&seed)), secrets(&seed));
    let peer = closed().open(true).service(echo()).bind().await.unwrap();
    let ticket = peer.ticket().to_string();
    let (before, after, bytes) = tokio::task::spawn_blocking(move || {
        let mut holder = Holder::start("node", &home.path("home"), &ticket);
        holder.says("has it");
        let before = found(&secrets, &holder.memory());
        holder.goes_on();
        holder.says("has dropped it");
        let memory = holder.memory();
        (before, found(&secrets, &memory), memory.len())
    })
    .await
    .unwrap();
    println!("in {:.1} MB: {before:?} before, {after:?} after", bytes as f64 / 1e6);
    assert!(before.contains(&"the seed"), "the search finds nothing: {before:?}");
    assert_eq!(after, Vec::<&str>::new());
    soon(peer.shutdown()).await;
}

/// No test, but the process whose memory is looked at.
#[test]
fn the_holder() {
    let Ok(what) = std::env::var(BE_THE_HOLDER) else { return };
    // Read without a buffer that would keep it.
    let mut stdin = File::open("/dev/stdin").unwrap();
    let mut passphrase = Zeroizing::new(vec![0; PASSPHRASE.len()]);
    stdin.read_exact(&mut passphrase).unwrap();
    let passphrase = Zeroizing::new(String::from_utf8(std::mem::take(&mut passphrase)).unwrap());
    let home = PathBuf::from(std::env::var_os("VOLT_HOME").unwrap());
    let wait = |said: &str| {
        println!("{said}");
        File::open("/dev/stdin").unwrap().read_exact(&mut [0]).unwrap();
    };
    if what == "key" {
        let key = keyfile::load(&home.join("identity.pem"), Some(&passphrase)).unwrap();
        let signature = key.sign(b"anything");
        assert!(key.id().verify(b"anything", &signature));
        wait("has it");
        drop((key, passphrase));
        return wait("has dropped it");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = voltmesh::node::config::Config { home: Some(home), listen: vec![support::loopback()], ..Default::default() };
        let node = Node::builder().config(config).passphrase(passphrase.as_str()).bind().await.unwrap();
        let ticket: Ticket = std::env::var("VOLT_HOLDER_PEER").unwrap().parse().unwrap();
        let session = soon(node.connect(ticket)).await.unwrap();
        assert_eq!(soon(session.call::<_, String>("echo/one", "hello")).await.unwrap(), "hello");
        println!("has it");
        tokio::task::spawn_blocking(|| File::open("/dev/stdin").unwrap().read_exact(&mut [0]).unwrap()).await.unwrap();
        soon(node.shutdown()).await;
        drop((session, node));
    });
    drop((runtime, passphrase));
    wait("has dropped it");
}
