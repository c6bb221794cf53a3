//! A link of two TUN devices with a process between them that treats packets as [`link`](crate::link) decides. The process is
//! this test binary again; it is told what to do over its stdin, and ends, with its devices, when that is closed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::link::{Conditions, Counts, Direction};
use crate::net::Space;

/// The argument that makes this binary the process between the devices.
pub const ARGUMENT: &str = "--be-the-link";

/// The largest packet a device hands over.
const PACKET_BYTES: usize = 65_536;

/// What the process is told, a line each; it answers each with its counts.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Forward(Conditions),
    Back(Conditions),
    Both(Conditions),
    Count,
}

/// An emulated link. Ends when dropped.
pub struct Emulator {
    process: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Emulator {
    /// A device of this name in either space; *forward* is from the first to the second.
    pub fn between(one: (&Space, &str), other: (&Space, &str), seed: u64) -> Self {
        println!("a link of {} and {} with seed {seed}", one.0.name(), other.0.name());
        let itself = std::env::current_exe().unwrap();
        let mut command = one.0.command(itself.to_str().unwrap());
        command.args([ARGUMENT, one.1, "lab-other", &seed.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let pipes = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let link = Self { process, pipes: Mutex::new(pipes) };
        // Its answer says that both devices are there.
        link.counts();
        one.0.ip(&format!("link set lab-other netns {}", other.0.name()));
        other.0.ip(&format!("link set lab-other name {}", other.1));
        for (space, device) in [one, other] {
            space.ip(&format!("link set dev {device} txqueuelen 4000 up"));
        }
        link
    }

    pub fn forward(&self, conditions: Conditions) {
        self.tell(&Told::Forward(conditions));
    }

    pub fn back(&self, conditions: Conditions) {
        self.tell(&Told::Back(conditions));
    }

    pub fn both(&self, conditions: Conditions) {
        self.tell(&Told::Both(conditions));
    }

    /// What became of packets so far: forward and back.
    pub fn counts(&self) -> [Counts; 2] {
        self.tell(&Told::Count)
    }

    /// When this returns, it is so.
    fn tell(&self, what: &Told) -> [Counts; 2] {
        let mut pipes = self.pipes.lock().unwrap();
        let mut line = serde_json::to_string(what).unwrap();
        line.push('\n');
        pipes.0.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        pipes.1.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("the emulator said {answer:?}: {error}"))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process itself: with the names of its devices and its seed.
pub fn run(arguments: &[String]) {
    let [one, other, seed] = arguments else { panic!("{ARGUMENT} ONE OTHER SEED") };
    let device = |name: &String| Arc::new(DeviceBuilder::new().name(name.as_str()).enable(false).build_sync().unwrap());
    let (one, other, seed) = (device(one), device(other), seed.parse::<u64>().unwrap());
    let forward = Lane::start(&one, &other, seed);
    let back = Lane::start(&other, &one, !seed);
    for line in io::stdin().lock().lines() {
        match serde_json::from_str(&line.unwrap()).unwrap() {
            Told::Forward(conditions) => forward.set(conditions),
            Told::Back(conditions) => back.set(conditions),
            Told::Both(conditions) => {
                forward.set(conditions);
                back.set(conditions);
            }
            Told::Count => {}
        }
        println!("{}", serde_json::to_string(&[forward.counts(), back.counts()]).unwrap());
    }
}

/// One direction: a thread that reads and decides, and one that waits and writes.
struct Lane {
    state: Mutex<State>,
    changed: Condvar,
    began: Instant,
}

struct State {
    direction: Direction,
    /// By time of arrival, and in the order they came for the same time.
    under_way: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
    next: u64,
}

impl Lane {
    fn start(from: &Arc<SyncDevice>, to: &Arc<SyncDevice>, seed: u64) -> Arc<Self> {
        let state = State { direction: Direction::new(seed), under_way: BinaryHeap::new(), next: 0 };
        let lane = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), began: Instant::now() });
        let (reading, from) = (lane.clone(), from.clone());
        thread::spawn(move || reading.read(&from));
        let (writing, to) = (lane.clone(), to.clone());
        thread::spawn(move || writing.write(&to));
        lane
    }

    fn set(&self, conditions: Conditions) {
        self.state.lock().unwrap().direction.set(conditions);
    }

    fn counts(&self) -> Counts {
        self.state.lock().unwrap().direction.counts()
    }

    fn read(&self, from: &SyncDevice) {
        let mut packet = vec![0; PACKET_BYTES];
        // It fails when its namespace is gone.
        while let Ok(bytes) = from.recv(&mut packet) {
            let mut state = self.state.lock().unwrap();
            let arrivals = state.direction.admit(self.began.elapsed(), bytes);
            for at in arrivals.into_iter().flatten() {
                let entry = (at, state.next, packet[..bytes].to_vec());
                state.next += 1;
                state.under_way.push(Reverse(entry));
            }
            drop(state);
            self.changed.notify_one();
        }
    }

    fn write(&self, to: &SyncDevice) {
        let mut state = self.state.lock().unwrap();
        loop {
            let now = self.began.elapsed();
            state = match state.under_way.peek() {
                None => self.changed.wait(state).unwrap(),
                Some(Reverse((at, ..))) if *at > now => {
                    let wait = *at - now;
                    self.changed.wait_timeout(state, wait).unwrap().0
                }
                Some(_) => {
                    let Some(Reverse((_, _, packet))) = state.under_way.pop() else { continue };
                    if state.direction.swallows() {
                        continue;
                    }
                    drop(state);
                    // A device that is down takes nothing: the packet is lost, as on a cable that was pulled.
                    let _ = to.send(&packet);
                    self.state.lock().unwrap()
                }
            };
        }
    }
}
