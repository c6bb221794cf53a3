//! Networks of the lab's own: namespaces, cables, routers and NAT, by way of `ip` and `nft`. Their names carry this process's id,
//! and they go when dropped; those of processes that were killed go with the next run. Nothing outside them is touched.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What all names of namespaces begin with; the process's id and a number follow.
const PREFIX: &str = "voltlab-";

/// Where `ip` keeps its namespaces.
const SPACES: &str = "/run/netns";

/// What this machine lacks for the lab; `None` if it is all there.
pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("not root: namespaces cannot be made".to_owned());
    }
    for (program, argument) in [("ip", "-V"), ("nft", "-v")] {
        if let Err(error) = Command::new(program).arg(argument).output() {
            return Some(format!("`{program}` cannot be run: {error}"));
        }
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".to_owned());
    }
    let name = format!("{PREFIX}{}-try", std::process::id());
    let made = run(Command::new("ip").args(["netns", "add", &name]), "");
    let tried = made.and_then(|()| run(Command::new("ip").args(["netns", "exec", &name, "nft", "list", "tables"]), ""));
    remove(&name);
    tried.err().map(|why| format!("namespaces do not work here: {why}"))
}

/// Removes what runs that were killed have left.
pub fn remove_stale() {
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(name);
        }
    }
}

/// One network. Its namespaces go with it, and what still runs in them.
pub struct Net {
    number: u32,
    spaces: Vec<Space>,
}

impl Net {
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        Self { number: MADE.fetch_add(1, Relaxed), spaces: Vec::new() }
    }

    /// A machine of its own.
    pub fn space(&mut self, role: &str) -> Space {
        let space = Space(format!("{PREFIX}{}-{}-{role}", std::process::id(), self.number));
        self.spaces.push(space.clone());
        must(Command::new("ip").args(["netns", "add", space.name()]), "");
        space.ip("link set lo up");
        space
    }

    /// The same, passing on packets of others.
    pub fn router(&mut self, role: &str) -> Space {
        let space = self.space(role);
        must(space.command("tee").arg("/proc/sys/net/ipv4/ip_forward"), "1");
        space
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|space| remove(space.name()));
    }
}

/// A network namespace: as far as the network goes, a machine.
#[derive(Clone, Debug)]
pub struct Space(String);

impl Space {
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Commands for `ip`, one a line, all at once.
    pub fn ip(&self, commands: &str) {
        must(Command::new("ip").args(["-n", self.name(), "-batch", "-"]), commands);
    }

    /// Whether the kernel sends and receives by a device: it is up, and so is what it is connected to.
    pub fn is_in_use(&self, device: &str) -> bool {
        let state = self.command("cat").arg(format!("/sys/class/net/{device}/operstate")).output().unwrap();
        state.stdout == b"up\n"
    }

    /// A program that runs there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(), program]);
        command
    }

    /// Does something on a thread of that machine. Sockets that are made there belong to it, whoever uses them afterwards.
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let space = File::open(Path::new(SPACES).join(self.name())).unwrap();
        let inside = || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            what()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Rules for `nft`.
    pub fn nft(&self, rules: &str) {
        must(self.command("nft").args(["-f", "-"]), rules);
    }

    /// A cable to another machine, with the address and the length of its prefix at either end. Both ends are up.
    pub fn cable(&self, device: &str, address: &str, other: &Space, theirs: &str, their_address: &str) {
        self.ip(&format!("link add {device} type veth peer name {theirs} netns {}", other.name()));
        self.ip(&format!("addr add {address} dev {device}\nlink set {device} up"));
        other.ip(&format!("addr add {their_address} dev {theirs}\nlink set {theirs} up"));
    }

    /// Hides what is behind this router: what leaves by this device gets its address, with a port of its own if they are random.
    pub fn masquerade(&self, device: &str, random_ports: bool) {
        let how = if random_ports { "masquerade fully-random" } else { "masquerade" };
        let chain = format!("type nat hook postrouting priority srcnat;\n oifname \"{device}\" counter {how}");
        self.nft(&format!("table ip lab {{\n chain out {{\n {chain}\n }}\n}}\n"));
    }

    /// How many mappings the masquerade has made: only what has none yet comes past its rule.
    pub fn mappings(&self) -> u64 {
        let listed = self.command("nft").args(["list", "chain", "ip", "lab", "out"]).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let count = text.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next());
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no counter in {text:?}"))
    }
}

/// Ends what runs in a namespace, and removes it.
fn remove(name: &str) {
    if let Ok(listed) = Command::new("ip").args(["netns", "pids", name]).stderr(Stdio::null()).output() {
        let pids =
            String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.trim().parse().ok()).collect::<Vec<i32>>();
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

fn must(command: &Command, stdin: &str) {
    run(command, stdin).unwrap_or_else(|why| panic!("{why}"));
}

fn run(command: &Command, stdin: &str) -> Result<(), String> {
    let failed = |why: String| format!("{} with {stdin:?}: {why}", command_text(command));
    let mut prepared = Command::new(command.get_program());
    prepared.args(command.get_args()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = prepared.spawn().map_err(|error| failed(error.to_string()))?;
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(stdin.as_bytes()));
    let done = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match written {
        _ if !done.status.success() => Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
        Some(Err(error)) => Err(failed(error.to_string())),
        _ => Ok(()),
    }
}

fn command_text(command: &Command) -> String {
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    format!("{} {}", command.get_program().to_string_lossy(), arguments.join(" "))
}
