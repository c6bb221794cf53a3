//! Nodes in the lab: the real binary, each with a home of its own and in a namespace, and what they print, with when.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::net::Space;

/// Longer than anything takes that is not measured.
pub const LONG: Duration = Duration::from_secs(30);

/// A directory with a node's home in it, on a machine of the lab.
pub struct Home {
    dir: TempDir,
    space: Space,
    id: String,
}

impl Home {
    pub fn new(space: &Space) -> Self {
        let mut home = Self { dir: tempfile::tempdir().unwrap(), space: space.clone(), id: String::new() };
        home.ok(&["init"]);
        let said: Value = serde_json::from_str(&home.ok(&["id", "--json"])).unwrap();
        said["id"].as_str().unwrap().clone_into(&mut home.id);
        home
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The socket of its local API.
    pub fn socket(&self) -> PathBuf {
        self.path("home").join("volt.sock")
    }

    pub fn volt(&self, arguments: &[&str]) -> Command {
        let mut command = self.space.command(env!("CARGO_BIN_EXE_volt"));
        command.args(arguments).env("VOLT_HOME", self.path("home")).env("NO_COLOR", "1").stdin(Stdio::null());
        command.env_remove("VOLT_PASSPHRASE").current_dir(self.dir.path());
        command
    }

    /// What a command prints that ends well.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.volt(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", text(&done));
        String::from_utf8(done.stdout).unwrap()
    }

    /// The node, once it is up.
    pub fn up(&self, arguments: &[&str]) -> Node {
        let node = Node { process: Process::start(self.volt(&[&["up", "--json"], arguments].concat())) };
        node.event(Mark::START, "ready", LONG);
        node
    }

    /// The same, with everything it logs in a file, and a variable of its environment that holds this mark.
    pub fn up_logging(&self, arguments: &[&str], log: File, mark: &str) -> Node {
        let mut command = self.volt(&[&["up", "--json", "-vv"], arguments].concat());
        command.env("VOLT_LOG", "trace").env("VOLT_LAB_MARK", mark);
        let node = Node { process: Process::start_with(command, log.into()) };
        node.event(Mark::START, "ready", LONG);
        node
    }

    /// What `volt.toml` says from the next start on.
    pub fn configure(&self, toml: &str) {
        fs::write(self.path("home").join("volt.toml"), toml).unwrap();
    }

    /// A program as a function, once it can be called.
    pub fn serve(&self, method: &str, program: &str, options: &[&str]) -> Process {
        let serving = Process::start(self.volt(&[&["serve", method, "--exec", program], options].concat()));
        serving.line(Mark::START, LONG, |line| line.contains("Serving").then_some(()));
        serving
    }
}

/// Both of what a command printed.
pub fn text(done: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

/// A place among the lines of a process.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl Mark {
    pub const START: Self = Self(0);
}

/// A process whose lines are kept as they come. Killed when dropped.
pub struct Process {
    child: Child,
    lines: Arc<Lines>,
}

#[derive(Default)]
struct Lines {
    seen: Mutex<Vec<(Instant, String)>>,
    more: Condvar,
}

impl Lines {
    fn keep(&self, from: impl Read) {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            self.seen.lock().unwrap().push((Instant::now(), line));
            self.more.notify_all();
        }
    }
}

impl Process {
    pub fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::piped())
    }

    /// The same, with another place for what it says on stderr.
    fn start_with(mut command: Command, stderr: Stdio) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let (lines, out, err) = (Arc::<Lines>::default(), child.stdout.take().unwrap(), child.stderr.take());
        let (for_out, for_err) = (lines.clone(), lines.clone());
        thread::spawn(move || for_out.keep(out));
        if let Some(err) = err {
            thread::spawn(move || for_err.keep(err));
        }
        Self { child, lines }
    }

    /// Its stdin, if it was started with one and nobody has it yet.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Asks it to end, and waits until it has.
    pub fn interrupt(mut self) {
        self.signal(Signal::INT);
        self.child.wait().unwrap();
    }

    /// After all lines so far.
    pub fn mark(&self) -> Mark {
        Mark(self.seen().len())
    }

    /// What is made of the first line after the mark of which something is made, and when it came.
    pub fn line<T>(&self, after: Mark, within: Duration, read: impl Fn(&str) -> Option<T>) -> (Instant, T) {
        let until = Instant::now() + within;
        let mut seen = self.seen();
        loop {
            let found = seen.iter().skip(after.0).find_map(|(at, line)| Some((*at, read(line)?)));
            if let Some(found) = found {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing like it within {within:?}; only {:#?}", &seen[after.0.min(seen.len())..]);
            seen = self.lines.more.wait_timeout(seen, left).unwrap().0;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Vec<(Instant, String)>> {
        self.lines.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node that is up, and its events.
pub struct Node {
    process: Process,
}

impl Node {
    pub fn mark(&self) -> Mark {
        self.process.mark()
    }

    /// The first event of this name after the mark.
    pub fn event(&self, after: Mark, name: &str, within: Duration) -> (Instant, Value) {
        self.process.line(after, within, |line| event(line).filter(|event| event["event"] == name))
    }

    /// How sessions came and went since the mark.
    pub fn sessions_since(&self, after: Mark) -> Vec<(Instant, Value)> {
        let seen = self.process.seen();
        let events = seen.iter().skip(after.0).filter_map(|(at, line)| Some((*at, event(line)?)));
        events.filter(|(_, event)| event["event"] == "connected" || event["event"] == "disconnected").collect()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Kills it, without a word to anybody.
    pub fn kill(mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
    }
}

fn event(line: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|value| value["event"].is_string())
}

/// Waits for a thing that nobody tells of.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let by = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < by, "not within {within:?}: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits for a time the scenario names, not for a thing.
pub fn at(time: Instant) {
    while let Some(left) = time.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}
