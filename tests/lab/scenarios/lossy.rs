//! What a pair of nodes does over 25 ms each way with loss: recorded, not judged.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::caller::rate;
use crate::link::{Conditions, Loss};
use crate::net::Net;
use crate::node::{Home, LONG, at, until};
use crate::stage::{connect, is_long, linked, ticket};

const IN_FLIGHT: usize = 64;
const CHUNK_BYTES: usize = 32 << 10;

pub fn calls_and_bytes_per_second_by_loss() {
    let mut net = Net::new();
    let (here, there, link) = linked(&mut net);
    let (one, other) = (Home::new(&here), Home::new(&there));
    let (one_up, other_up) = (one.up(&[]), other.up(&[]));
    connect((&one, &one_up), (&other, &other_up), &ticket(&other_up));
    let time = if is_long() { Duration::from_secs(10) } else { Duration::from_millis(1_500) };
    println!("25 ms each way, {IN_FLIGHT} calls in flight, {time:?} each\n  loss   calls/s      MB/s");
    for percent in [0, 1, 5, 12] {
        let _sink = other.serve(&format!("bulk/sink{percent}"), &format!("cat > sink{percent}"), &["--stream", "--raw"]);
        let loss = Loss::even(f64::from(percent) / 100.0);
        link.both(Conditions { delay: Duration::from_millis(25), loss, ..Conditions::NONE });
        let calls = rate(&one.socket(), "other", IN_FLIGHT, time);
        let bytes = bytes_per_second(&one, &other, &format!("sink{percent}"), time);
        let calls = calls.map_or_else(|why| why, |calls| format!("{calls:9.0}"));
        println!("  {percent:2} %  {calls} {:9.2}", bytes / 1e6);
    }
}

/// How fast a file of the peer grows with what a streaming call sends.
pub fn bytes_per_second(from: &Home, to: &Home, sink: &str, time: Duration) -> f64 {
    let mut command = from.volt(&["call", "other", &format!("bulk/{sink}"), "--stream"]);
    let mut call = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = call.stdin.take().unwrap();
    let line = format!("\"{}\"\n", "x".repeat(CHUNK_BYTES));
    // Ends when the call does.
    let feeding = std::thread::spawn(move || while stdin.write_all(line.as_bytes()).is_ok() {});
    let size = || std::fs::metadata(to.path(sink)).map_or(0, |file| file.len());
    until("the first bytes arrive", LONG, || (size() > 0).then_some(()));
    let (began, before) = (Instant::now(), size());
    at(began + time);
    let rate = (size() - before) as f64 / began.elapsed().as_secs_f64();
    call.kill().unwrap();
    call.wait().unwrap();
    feeding.join().unwrap();
    rate
}
