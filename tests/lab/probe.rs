//! Datagrams to measure a link with, without any node: this binary again, in a namespace, as who sends and as who answers.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::net::Space;
use crate::node::{LONG, Mark, Process};

/// The argument that makes this binary answer every datagram at an address.
pub const ECHO: &str = "--be-the-echo";
/// The argument that makes this binary send datagrams to an address and count what comes back.
pub const PROBE: &str = "--be-the-probe";

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// What came back.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// How many answers there were, copies counted.
    pub answers: u64,
    /// How many datagrams were answered.
    pub answered: u64,
    /// How many answers came after one to a later datagram.
    pub late: u64,
    /// The shortest and the median round trip.
    pub least: Duration,
    pub median: Duration,
}

/// Answers in a space, until dropped.
pub fn echo(space: &Space, at: &str) -> Process {
    let itself = std::env::current_exe().unwrap();
    let mut command = space.command(itself.to_str().unwrap());
    command.args([ECHO, at]);
    let echo = Process::start(command);
    echo.line(Mark::START, LONG, |line| (line == "ready").then_some(()));
    echo
}

/// Sends that many datagrams from a space, one each millisecond.
pub fn probe(space: &Space, to: &str, datagrams: u32) -> Heard {
    let itself = std::env::current_exe().unwrap();
    let done = space.command(itself.to_str().unwrap()).args([PROBE, to, &datagrams.to_string()]).output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [answers, answered, late, least, median] = numbers[..] else { panic!("{text:?} {done:?}", done = done.stderr) };
    Heard { answers, answered, late, least: Duration::from_micros(least), median: Duration::from_micros(median) }
}

/// The process that answers.
pub fn be_the_echo(arguments: &[String]) {
    let socket = UdpSocket::bind(&arguments[0]).unwrap();
    println!("ready");
    let mut datagram = [0; 2_048];
    while let Ok((bytes, from)) = socket.recv_from(&mut datagram) {
        let _ = socket.send_to(&datagram[..bytes], from);
    }
}

/// The process that asks.
pub fn be_the_probe(arguments: &[String]) {
    let datagrams: u32 = arguments[1].parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(&arguments[0]).unwrap();
    let began = Instant::now();
    let listening = socket.try_clone().unwrap();
    let listener = std::thread::spawn(move || listen(&listening, began));
    for number in 0..datagrams {
        crate::node::at(began + Duration::from_millis(number.into()));
        let mut datagram = [0; 100];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        datagram[4..12].copy_from_slice(&(began.elapsed().as_micros() as u64).to_be_bytes());
        let _ = socket.send(&datagram);
    }
    println!("{}", listener.join().unwrap());
}

/// Until nothing has come for a while.
fn listen(socket: &UdpSocket, began: Instant) -> String {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut seen, mut highest, mut late, mut took) = (BTreeSet::new(), 0, 0, Vec::new());
    let mut datagram = [0; 2_048];
    while socket.recv(&mut datagram).is_ok() {
        let number = u32::from_be_bytes(datagram[..4].try_into().unwrap());
        let sent = u64::from_be_bytes(datagram[4..12].try_into().unwrap());
        late += u64::from(number < highest);
        highest = highest.max(number);
        seen.insert(number);
        took.push(began.elapsed().as_micros() as u64 - sent);
    }
    took.sort_unstable();
    let (least, median) = (took.first().copied().unwrap_or(0), took.get(took.len() / 2).copied().unwrap_or(0));
    format!("{} {} {late} {least} {median}", took.len(), seen.len())
}
