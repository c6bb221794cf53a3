//! The command line as processes: homes in directories of their own, and what runs there.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes.
pub const LONG: Duration = Duration::from_secs(30);

/// A directory with a node's home in it.
pub struct Home {
    pub dir: TempDir,
}

impl Home {
    pub fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        home.ok(&["init"]);
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn volt(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volt"));
        command.args(arguments).env("VOLT_HOME", self.path("home")).stdin(Stdio::null());
        command.env_remove("VOLT_PASSPHRASE").env_remove("VOLT_LOG").env("NO_COLOR", "1").current_dir(self.dir.path());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.volt(arguments).output().unwrap()
    }

    /// The same with text on stdin.
    pub fn run_with(&self, arguments: &[&str], stdin: &str) -> Output {
        let mut command = self.volt(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What a command prints that ends well.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    /// The exit code of a command that fails, and its error as JSON.
    pub fn fails(&self, arguments: &[&str]) -> (i32, Value) {
        failure(&self.run(&[arguments, &["--json"]].concat()), arguments)
    }

    pub fn id(&self) -> String {
        self.json(&["id"])["id"].as_str().unwrap().to_owned()
    }

    pub fn ticket(&self) -> String {
        self.json(&["id"])["ticket"].as_str().unwrap().to_owned()
    }

    /// The one line of JSON a command prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// What `volt.toml` says from the next start on.
    pub fn configure(&self, toml: &str) {
        std::fs::write(self.path("home").join("volt.toml"), toml).unwrap();
    }

    pub fn start(&self, arguments: &[&str]) -> Running {
        Running::new(self.volt(arguments))
    }

    /// The node, once it is up.
    pub fn up(&self, arguments: &[&str]) -> Running {
        let node = self.start(&[&["up", "--json"], arguments].concat());
        node.event("ready");
        node
    }

    /// The node, on a port of this machine's own.
    pub fn up_here(&self) -> Running {
        self.up(&["--listen", "127.0.0.1:0"])
    }

    /// A program as a function, once it can be called.
    pub fn serve(&self, method: &str, program: &str, options: &[&str]) -> Running {
        let serving = self.start(&[&["serve", method, "--exec", program], options].concat());
        serving.line(|line| line.contains("Serving"));
        serving
    }

    /// A pipe with a name.
    pub fn pipe(&self, name: &str) -> String {
        let path = self.path(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path.to_str().unwrap().to_owned()
    }
}

/// A process whose lines are read as they come. Killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    pub fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] = [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let send = send.clone();
            thread::spawn(move || {
                BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| drop(send.send(line)));
            });
        }
        Self { child, lines }
    }

    /// The next line of which this is true.
    pub fn line(&self, is: impl Fn(&str) -> bool) -> String {
        let (until, mut seen) = (Instant::now() + LONG, Vec::new());
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if is(&line) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("{error}; only: {seen:#?}"),
            }
        }
    }

    /// The next event of this name.
    pub fn event(&self, name: &str) -> Value {
        let read = |line: &str| serde_json::from_str::<Value>(line).ok();
        read(&self.line(|line| read(line).is_some_and(|event| event["event"] == name))).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn ended(mut self) -> ExitStatus {
        // Its pipes end with it.
        while self.lines.recv_timeout(LONG).is_ok() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// B lets A call everything, and A is connected with it under the name `bob`.
pub fn connected() -> (Home, Running, Home, Running) {
    let (a, b) = (Home::new(), Home::new());
    let (up_a, up_b) = (a.up_here(), b.up_here());
    b.ok(&["policy", "allow", &a.id(), "call", "*"]);
    a.ok(&["connect", &b.ticket(), "--as", "bob"]);
    (a, up_a, b, up_b)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn failure(done: &Output, arguments: &[&str]) -> (i32, Value) {
    let stderr = text(&done.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{arguments:?}: {stderr} {}", text(&done.stdout)));
    (done.status.code().unwrap(), error["error"].clone())
}

/// Reads a pipe until everybody who had it open to write has closed it or ended.
pub fn read_to_end(path: impl AsRef<Path>) -> String {
    let mut content = String::new();
    File::open(path).unwrap().read_to_string(&mut content).unwrap();
    content
}
