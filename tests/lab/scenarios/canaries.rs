//! What a relay gets to see of what it carries: nothing. Canaries go through it in calls, in a tunnel and on a wire, and are looked for in
//! its memory, in what it logs, and in its packets.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};

use crate::caller::call;
use crate::node::{Home, LONG, Mark, Node, Process, until};
use crate::search::{CANARY_BYTES, Canary, Search, canaries, forms};
use crate::sites::{Pair, RELAY, Sites};
use crate::stage::{is_long, seed, ticket};
use crate::tunnels::{Tunnel, echo, target};

/// Until all of them were on their way once, and programs are dumped that are large and logged about.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn a_relay_sees_nothing_of_what_it_carries() {
    for program in ["gcore", "tcpdump"] {
        if let Err(error) = Command::new(program).arg("--version").output() {
            return println!("left out: `{program}` cannot be run: {error}");
        }
    }
    // The last one is not sent: what is looked at has it in other ways, which shows that it would be found.
    let sent = if is_long() { 1_000 } else { 50 };
    let canaries = Arc::new(canaries(sent + 1, seed()));
    let shown = canaries[sent];
    let search = Search::new(&canaries);

    let sites = Sites::new(1);
    let home = Home::new(&sites.public[0]);
    let (log, packets) = (home.path("log"), home.path("packets"));
    let capture = capture(&sites, &packets);
    let relay = home.up_logging(&RELAY, File::create(&log).unwrap(), &HEXLOWER.encode(&shown));
    let pair = Pair::new(&sites.inside, &[&ticket(&relay)]);
    let traffic = Traffic::start(&sites, &pair, &canaries[..sent]);
    traffic.goes_on(sent);
    let memory = dump(&home, &relay);
    traffic.goes_on(1);
    let memory_of_an_end = dump(&pair.homes[0], &pair.up[0]);
    traffic.goes_on(1);
    let times = traffic.end();
    let socket = sites.public[0].within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    until("a datagram to nobody is captured", LONG, || {
        socket.send_to(&shown, "10.30.0.1:9").unwrap();
        search.file(&packets).0.contains(&sent).then_some(())
    });
    capture.interrupt();

    let of_an_end = found(&search, "an end's memory", &memory_of_an_end);
    println!("{sent} canaries, {times:?} of them sent in calls, in a tunnel and on a wire, one after the other and again");
    assert!(of_an_end.iter().any(|canary| *canary != sent), "the ends' memory has none: the search finds nothing");
    assert_eq!(found(&search, "a file of all forms", &all_forms(&home, &canaries)).len(), sent + 1);
    assert_eq!(found(&search, "the relay's memory", &memory), [sent]);
    assert_eq!(found(&search, "the relay's packets", &packets), [sent]);
    assert!(found(&search, "the relay's log", &log).is_empty());
    let log = fs::read(log).unwrap();
    assert!(log.windows(5).any(|word| word == b"TRACE"), "nothing is traced");
}

/// The numbers of those that are in a file, and a line about it.
fn found(search: &Search, what: &str, path: &Path) -> Vec<usize> {
    let (found, size) = search.file(path);
    println!("{what}: {} of them in {:.1} MB", found.len(), size as f64 / 1e6);
    found.into_iter().collect()
}

/// Everything that comes to the relay's machine, or leaves it, as it is.
fn capture(sites: &Sites, to: &Path) -> Process {
    let mut command = sites.public[0].command("tcpdump");
    command.args(["-Z", "root", "-U", "-s", "0", "-i", "eth", "-w"]).arg(to);
    let capture = Process::start(command);
    capture.line(Mark::START, LONG, |line| line.contains("listening on").then_some(()));
    capture
}

/// The memory of a node as it runs.
fn dump(home: &Home, node: &Node) -> PathBuf {
    let (to, pid) = (home.path("core"), node.pid().to_string());
    let done = Command::new("gcore").arg("-o").arg(&to).arg(&pid).output().unwrap();
    let core = home.path(&format!("core.{pid}"));
    assert!(core.exists(), "{}", crate::node::text(&done));
    core
}

/// A file in which they all are in each of their forms.
fn all_forms(home: &Home, canaries: &[Canary]) -> PathBuf {
    let path = home.path("forms");
    let forms: Vec<_> = canaries.iter().flat_map(forms).collect();
    fs::write(&path, forms.concat()).unwrap();
    path
}

/// Canaries on their way from the first node to the second and back, each in turn and over and over, in three ways.
struct Traffic {
    ways: [Way; 3],
    ending: Arc<AtomicBool>,
    _serving: Process,
}

/// One way, and how many went it.
struct Way {
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Traffic {
    fn start(sites: &Sites, pair: &Pair, canaries: &[Canary]) -> Self {
        let ending = Arc::<AtomicBool>::default();
        let serving = pair.homes[1].serve("canary/echo", "cat", &[]);
        let ways = [
            Way::start(canaries, &ending, in_calls(pair)),
            Way::start(canaries, &ending, in_a_tunnel(sites, pair)),
            Way::start(canaries, &ending, on_a_wire(pair)),
        ];
        Self { ways, ending, _serving: serving }
    }

    /// Waits until so many more have gone each way.
    fn goes_on(&self, more: usize) {
        let sent = || self.ways.each_ref().map(|way| way.sent.load(Relaxed));
        let before = sent();
        until("canaries go each way", PATIENCE, || {
            assert!(!self.ways.iter().any(|way| way.thread.is_finished()), "the traffic has ended");
            sent().iter().zip(before).all(|(now, before)| *now >= before + more).then_some(())
        });
    }

    /// How many went each way.
    fn end(self) -> [usize; 3] {
        self.ending.store(true, Relaxed);
        self.ways.map(|way| {
            way.thread.join().unwrap();
            way.sent.load(Relaxed)
        })
    }
}

impl Way {
    fn start(canaries: &[Canary], ending: &Arc<AtomicBool>, mut send: impl FnMut(&Canary) + Send + 'static) -> Self {
        let (canaries, ending, sent) = (canaries.to_vec(), ending.clone(), Arc::<AtomicUsize>::default());
        let counted = sent.clone();
        let thread = thread::spawn(move || {
            for canary in canaries.iter().cycle().take_while(|_| !ending.load(Relaxed)) {
                send(canary);
                counted.fetch_add(1, Relaxed);
            }
        });
        Self { sent, thread }
    }
}

/// In hex, since bodies of these calls are JSON.
fn in_calls(pair: &Pair) -> impl FnMut(&Canary) + Send + 'static {
    let socket = pair.homes[0].socket();
    move |canary| call(&socket, "other", "canary/echo", &HEXLOWER.encode(canary).into()).unwrap()
}

/// As they are.
fn in_a_tunnel(sites: &Sites, pair: &Pair) -> impl FnMut(&Canary) + Send + 'static {
    let tunnel = Tunnel::new(pair, &sites.inside, "canary", target(&sites.inside[1], echo));
    let mut stream = tunnel.connect();
    move |canary| {
        let _kept = &tunnel;
        stream.write_all(canary).unwrap();
        let mut back = [0; CANARY_BYTES];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, *canary);
    }
}

/// In base64, a line each, to a wire of the second node and back from there.
fn on_a_wire(pair: &Pair) -> impl FnMut(&Canary) + Send + 'static {
    for action in ["create", "publish", "subscribe"] {
        pair.homes[1].ok(&["policy", "allow", pair.homes[0].id(), action, "*"]);
    }
    pair.homes[0].ok(&["wire", "create", "canaries@other"]);
    let subscribed = Process::start(pair.homes[0].volt(&["wire", "sub", "canaries@other", "--lines", "--from", "start"]));
    let mut publish = pair.homes[0].volt(&["wire", "pub", "canaries@other", "--lines"]);
    publish.stdin(Stdio::piped());
    let mut publishing = Process::start(publish);
    let mut stdin = publishing.stdin();
    move |canary| {
        let _kept = &publishing;
        let (line, mark) = (BASE64.encode(canary), subscribed.mark());
        writeln!(stdin, "{line}").unwrap();
        subscribed.line(mark, LONG, |told| (told == line).then_some(()));
    }
}
