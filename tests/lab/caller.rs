//! Calls at a steady rate through the local API of a running node, whether the ones before were answered or not, and what became
//! of each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// A function that every node has, and lets everyone call who may connect.
pub const DESCRIBE: &str = "volt/describe";

/// What became of one call.
#[derive(Clone, Debug)]
pub struct Done {
    pub began: Instant,
    pub ended: Instant,
    pub result: Result<(), String>,
}

/// Makes calls until it is ended or dropped.
pub struct Caller {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Calls>,
    more: Condvar,
    ending: AtomicBool,
}

#[derive(Default)]
struct Calls {
    begun: u64,
    done: Vec<Done>,
    /// When each call began that is not done.
    open: BTreeMap<u64, Instant>,
}

impl Caller {
    pub fn start(socket: &Path, peer: &str, per_second: u32) -> Self {
        let shared = Arc::<Shared>::default();
        let (sharing, call) = (shared.clone(), OneCall::new(socket, peer));
        let thread = thread::spawn(move || on_a_runtime(calls(&sharing, &call, per_second)));
        Self { shared, thread: Some(thread) }
    }

    /// The first call after others that began and was answered since, by when it was answered.
    pub fn answered_since(&self, since: Instant, within: Duration) -> Done {
        let until = Instant::now() + within;
        let mut calls = self.shared.calls.lock().unwrap();
        loop {
            let fits = |done: &&Done| done.began >= since && done.result.is_ok();
            if let Some(done) = calls.done.iter().filter(fits).min_by_key(|done| done.ended) {
                return done.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (waiting, last) = (calls.open.len(), calls.done.last().cloned());
                drop(calls);
                panic!("no call was answered within {within:?}; {waiting} wait; the last: {last:?}");
            }
            calls = self.shared.more.wait_timeout(calls, left).unwrap().0;
        }
    }

    /// Waits until all calls are done that began before.
    pub fn settled_before(&self, before: Instant, within: Duration) {
        let until = Instant::now() + within;
        let mut calls = self.shared.calls.lock().unwrap();
        loop {
            let waiting = calls.open.values().filter(|began| **began < before).count();
            if waiting == 0 {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(calls);
                panic!("{waiting} calls still wait after {within:?}");
            }
            calls = self.shared.more.wait_timeout(calls, left).unwrap().0;
        }
    }

    /// Makes no more calls, waits for those under way, and says what became of all.
    pub fn end(mut self) -> Vec<Done> {
        self.shared.ending.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.shared.calls.lock().unwrap().done)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.shared.ending.store(true, Relaxed);
    }
}

/// Those that failed, and why, the same reasons together.
pub fn failures(done: &[Done]) -> BTreeMap<String, usize> {
    let mut failures = BTreeMap::new();
    for why in done.iter().filter_map(|done| done.result.as_ref().err()) {
        *failures.entry(why.clone()).or_default() += 1;
    }
    failures
}

/// Calls with so many in flight at once, for so long: how many are answered per second.
pub fn rate(socket: &Path, peer: &str, in_flight: usize, time: Duration) -> Result<f64, String> {
    let call = Arc::new(OneCall::new(socket, peer));
    on_a_runtime(async move {
        let (until, mut workers) = (Instant::now() + time, JoinSet::new());
        for _ in 0..in_flight {
            let call = call.clone();
            workers.spawn(async move {
                let mut answered = 0u32;
                while Instant::now() < until {
                    call.make().await?;
                    answered += 1;
                }
                Ok::<_, String>(answered)
            });
        }
        let (began, mut answered) = (until - time, 0);
        while let Some(done) = workers.join_next().await {
            answered += done.unwrap()?;
        }
        Ok(f64::from(answered) / began.elapsed().as_secs_f64())
    })
}

/// One call with this body: whether it was answered with OK.
pub fn call(socket: &Path, peer: &str, method: &str, body: &Value) -> Result<(), String> {
    on_a_runtime(OneCall::of(socket, peer, method, body).make())
}

fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn calls(shared: &Arc<Shared>, call: &OneCall, per_second: u32) {
    let mut clock = tokio::time::interval(Duration::from_secs(1) / per_second);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = JoinSet::new();
    while !shared.ending.load(Relaxed) {
        clock.tick().await;
        let (shared, call, began) = (shared.clone(), call.clone(), Instant::now());
        let number = {
            let mut calls = shared.calls.lock().unwrap();
            calls.begun += 1;
            let number = calls.begun;
            calls.open.insert(number, began);
            number
        };
        under_way.spawn(async move {
            let result = call.make().await;
            let mut calls = shared.calls.lock().unwrap();
            calls.open.remove(&number);
            calls.done.push(Done { began, ended: Instant::now(), result });
            shared.more.notify_all();
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

/// A call to be made over and over.
#[derive(Clone)]
struct OneCall {
    socket: PathBuf,
    request: Arc<str>,
}

impl OneCall {
    fn new(socket: &Path, peer: &str) -> Self {
        Self::of(socket, peer, DESCRIBE, &Value::Null)
    }

    fn of(socket: &Path, peer: &str, method: &str, message: &Value) -> Self {
        let head = json!({ "peer": peer, "method": method, "timeout_ms": 30_000 });
        let body = format!("{head}\n{}\n", json!({ "message": message }));
        let request = format!(
            "POST /v1/call HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self { socket: socket.to_owned(), request: request.into() }
    }

    async fn make(&self) -> Result<(), String> {
        let answer = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(self.request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = answer.await.map_err(|error| error.to_string())?;
        if answer.contains(r#"{"status":{"code":"OK""#) {
            return Ok(());
        }
        let line = answer.lines().rfind(|line| line.starts_with('{'));
        Err(line.unwrap_or(&answer).to_owned())
    }
}
