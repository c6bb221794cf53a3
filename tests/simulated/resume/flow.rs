//! Calls that prove themselves: both ends hash what they send and what they get, and the callee keeps a book of every call.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use voltmesh::proto::call::Shape;
use voltmesh::proto::status::{Code, Status};
use voltmesh::service::{CallReceiver, CallSender};
use voltmesh::{CallError, Context, Receiver, Sender, Service, Session};

/// Every shape of a call.
pub const SHAPES: [Shape; 4] = [Shape::Unary, Shape::ClientStream, Shape::ServerStream, Shape::Bidi];

/// Longer than any answer is waited for.
const HOUR: Duration = Duration::from_secs(3_600);

/// How the callee ends a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ends {
    /// With all of its answer.
    Whole,
    /// With the status ABORTED, after this many bytes of the request.
    Fails(u64),
    /// Not at all.
    Never,
}

/// What one call is to carry.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its name in the books; also the seed of its bytes.
    pub number: u64,
    /// Bytes of the request.
    pub there: u64,
    /// Bytes of the answer.
    pub back: u64,
    /// Largest message. What has one message only is one message, whatever its size.
    pub chunk: u64,
    /// The callee waits this long before it answers.
    pub wait_ms: u64,
    /// Both ends wait up to this long before each message they send.
    pub pace_ms: u64,
    /// The caller waits this long before it reads.
    pub unread_ms: u64,
    pub ends: Ends,
}

impl Plan {
    /// A call of so many bytes each way, without delay.
    pub fn new(number: u64, there: u64, back: u64) -> Self {
        Self { number, there, back, chunk: 64 << 10, wait_ms: 0, pace_ms: 0, unread_ms: 0, ends: Ends::Whole }
    }

    fn encode(&self) -> Vec<u8> {
        let (ends, after) = match self.ends {
            Ends::Whole => (0, 0),
            Ends::Fails(after) => (1, after),
            Ends::Never => (2, 0),
        };
        let Self { number, there, back, chunk, wait_ms, pace_ms, unread_ms, .. } = *self;
        [number, there, back, chunk, wait_ms, pace_ms, unread_ms, ends, after].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    fn of(cx: &Context) -> Self {
        let bytes = cx.metadata_value("plan").expect("every call here has a plan");
        let at = |index: usize| u64::from_le_bytes(bytes[8 * index..][..8].try_into().unwrap());
        let ends = match at(7) {
            0 => Ends::Whole,
            1 => Ends::Fails(at(8)),
            _ => Ends::Never,
        };
        let [number, there, back, chunk, wait_ms, pace_ms, unread_ms] = std::array::from_fn(at);
        Self { number, there, back, chunk, wait_ms, pace_ms, unread_ms, ends }
    }

    /// The messages of one direction.
    fn chunks(&self, back: bool, one: bool) -> Chunks {
        let (left, tag) = if back { (self.back, 1) } else { (self.there, 0) };
        Chunks { random: StdRng::seed_from_u64(self.number * 2 + tag), left, largest: if one { left } else { self.chunk }, one }
    }

    fn pause(&self, random: &mut StdRng) -> Duration {
        Duration::from_millis(if self.pace_ms == 0 { 0 } else { random.random_range(0..=self.pace_ms) })
    }
}

/// Messages of random size, cut from random bytes.
struct Chunks {
    random: StdRng,
    left: u64,
    largest: u64,
    one: bool,
}

impl Iterator for Chunks {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        static POOL: OnceLock<Vec<u8>> = OnceLock::new();
        let pool = POOL.get_or_init(|| {
            let mut pool = vec![0; 1 << 20];
            StdRng::seed_from_u64(1).fill_bytes(&mut pool);
            pool
        });
        if self.left == 0 && !self.one {
            return None;
        }
        let size = if self.one { self.left } else { self.random.random_range(1..=self.largest).min(self.left) };
        (self.left, self.one) = (self.left - size, false);
        let from = self.random.random_range(0..=pool.len() - size as usize);
        Some(pool[from..][..size as usize].to_vec())
    }
}

/// A hash that runs along.
struct Running(digest::Context, u64);

impl Running {
    fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256), 0)
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
        self.1 += bytes.len() as u64;
    }

    fn sum(self) -> Sum {
        Sum { bytes: self.1, hash: self.0.finish().as_ref().to_vec() }
    }
}

/// So many bytes, and their hash.
#[derive(Clone, Debug, PartialEq)]
pub struct Sum {
    pub bytes: u64,
    pub hash: Vec<u8>,
}

/// What the callee knows of one call.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// How often it was executed.
    pub times: u32,
    /// How often its handler has ended, or was dropped.
    pub ends: u32,
    /// When that was, the last time.
    pub ended: Option<Instant>,
    /// All that was read, once that is all.
    pub received: Option<Sum>,
    /// All that was sent, once that is all.
    pub sent: Option<Sum>,
}

/// The callee's book.
#[derive(Clone, Debug, Default)]
pub struct Book {
    entries: Arc<Mutex<BTreeMap<u64, Entry>>>,
    moved: Arc<AtomicU64>,
}

impl Book {
    /// `flow/unary`, `flow/client-stream`, `flow/server-stream` and `flow/bidi`, which all do as the call's plan says.
    pub fn service(&self) -> Service {
        SHAPES.into_iter().fold(Service::new("flow"), |service, shape| {
            let book = self.clone();
            service.raw(shape.name(), shape, move |cx, receiver, sender| book.clone().serve(shape, cx, receiver, sender))
        })
    }

    /// What is known of a call.
    pub fn entry(&self, number: u64) -> Entry {
        self.entries.lock().unwrap().get(&number).cloned().unwrap_or_default()
    }

    /// How many calls are with their handlers.
    pub fn running(&self) -> usize {
        self.entries.lock().unwrap().values().filter(|entry| entry.times > entry.ends).count()
    }

    /// How many calls were begun.
    pub fn begun(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    /// The most often any call was executed.
    pub fn most(&self) -> u32 {
        self.entries.lock().unwrap().values().map(|entry| entry.times).max().unwrap_or_default()
    }

    /// Bytes of messages that have reached a reader, at both ends.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Entry)) {
        change(self.entries.lock().unwrap().entry(number).or_default());
    }

    async fn serve(self, shape: Shape, cx: Context, receiver: Receiver<Bytes>, sender: Sender<Bytes>) -> Result<(), Status> {
        let plan = Plan::of(&cx);
        let _open = Open::new(&self, plan.number);
        let (reading, writing) = (self.read(&plan, receiver), self.write(&plan, shape, sender));
        if shape == Shape::Bidi && plan.ends == Ends::Whole {
            let (read, written) = tokio::join!(biased; reading, writing);
            return read.and(written);
        }
        reading.await?;
        if plan.ends == Ends::Never {
            pending::<()>().await;
        }
        writing.await
    }

    async fn read(&self, plan: &Plan, mut receiver: Receiver<Bytes>) -> Result<(), Status> {
        let mut running = Running::new();
        let fail = |read: u64| match plan.ends {
            Ends::Fails(after) if read >= after => Err(Status::new(Code::Aborted, plan.number.to_string())),
            _ => Ok(()),
        };
        while let Some(bytes) = receiver.next_raw().await? {
            running.add(&bytes);
            self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            fail(running.1)?;
        }
        self.change(plan.number, |entry| entry.received = Some(running.sum()));
        fail(u64::MAX)
    }

    async fn write(&self, plan: &Plan, shape: Shape, mut sender: Sender<Bytes>) -> Result<(), Status> {
        sleep(Duration::from_millis(plan.wait_ms)).await;
        let (mut running, mut random) = (Running::new(), StdRng::seed_from_u64(plan.number));
        let one = matches!(shape, Shape::Unary | Shape::ClientStream);
        for chunk in plan.chunks(true, one) {
            sleep(plan.pause(&mut random)).await;
            running.add(&chunk);
            sender.send_raw(chunk).await?;
        }
        self.change(plan.number, |entry| entry.sent = Some(running.sum()));
        Ok(())
    }
}

/// A call in the book whose handler runs; dropped, it has ended.
struct Open(Book, u64);

impl Open {
    fn new(book: &Book, number: u64) -> Self {
        book.change(number, |entry| entry.times += 1);
        Self(book.clone(), number)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(self.1, |entry| (entry.ends, entry.ended) = (entry.ends + 1, Some(Instant::now())));
    }
}

/// What the caller knows of a call that has ended.
#[derive(Debug)]
pub struct Got {
    pub plan: Plan,
    pub shape: Shape,
    pub outcome: Result<(), CallError>,
    pub at: Instant,
    pub sent: Option<Sum>,
    pub received: Sum,
}

impl Got {
    /// It was answered in full, every byte is the one that was sent, and it was executed once.
    #[track_caller]
    pub fn assert_whole(&self, book: &Book) {
        let (Self { plan, shape, .. }, entry) = (self, book.entry(self.plan.number));
        assert_eq!(self.outcome, Ok(()), "{shape:?} {plan:?}");
        assert_eq!((entry.times, entry.ends), (1, 1), "{shape:?} {plan:?}");
        assert_eq!((self.received.bytes, self.sent.as_ref().unwrap().bytes), (plan.back, plan.there), "{shape:?} {plan:?}");
        assert_eq!((&self.sent, Some(&self.received)), (&entry.received, entry.sent.as_ref()), "{shape:?} {plan:?}");
    }
}

/// How the caller makes a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    pub timeout: Option<Duration>,
    pub fail_fast: bool,
    /// Drops its sender after this many bytes, with no word.
    pub break_off: Option<u64>,
}

/// Makes a call and sees to its end.
pub async fn call(session: &Session, book: &Book, shape: Shape, plan: Plan, manner: Manner) -> Got {
    let (mut sent, mut received) = (None, Running::new());
    let outcome = make(session, book, shape, &plan, manner, &mut sent, &mut received).await;
    Got { plan, shape, outcome, at: Instant::now(), sent, received: received.sum() }
}

async fn make(
    session: &Session,
    book: &Book,
    shape: Shape,
    plan: &Plan,
    manner: Manner,
    sent: &mut Option<Sum>,
    received: &mut Running,
) -> Result<(), CallError> {
    let (method, text) = (format!("flow/{}", shape.name()), plan.encode());
    let mut request = session.request(&method).metadata("plan", &text);
    let timeout = manner.timeout.or((shape == Shape::Unary).then_some(HOUR));
    if let Some(timeout) = timeout {
        request = request.timeout(timeout);
    }
    if manner.fail_fast {
        request = request.fail_fast();
    }
    let only = || {
        let body = plan.chunks(false, true).next().expect("there is one");
        let mut running = Running::new();
        running.add(&body);
        (body, running.sum())
    };
    match shape {
        Shape::Unary => {
            let (body, sum) = only();
            *sent = Some(sum);
            let answer = request.unary_raw(body).await?;
            book.moved.fetch_add(answer.len() as u64, Ordering::Relaxed);
            received.add(&answer);
            Ok(())
        }
        Shape::ServerStream => {
            let (body, sum) = only();
            *sent = Some(sum);
            read(plan, book, request.server_stream_raw(body).await?, received).await
        }
        Shape::ClientStream | Shape::Bidi => {
            let (sender, receiver) = if shape == Shape::Bidi { request.bidi().await? } else { request.client_stream().await? };
            let (mut writing, mut reading) =
                (pin!(write(plan, manner, sender, sent)), pin!(read(plan, book, receiver, received)));
            tokio::select! {
                biased;
                () = &mut writing => reading.await,
                outcome = &mut reading => {
                    // A call that has failed has nothing more to send.
                    if outcome.is_ok() {
                        writing.await;
                    }
                    outcome
                }
            }
        }
    }
}

/// Sends the request. Why it could not all be sent the receiver knows.
async fn write(plan: &Plan, manner: Manner, mut sender: CallSender<Bytes>, sent: &mut Option<Sum>) {
    let (mut running, mut random) = (Running::new(), StdRng::seed_from_u64(!plan.number));
    for chunk in plan.chunks(false, false) {
        sleep(plan.pause(&mut random)).await;
        running.add(&chunk);
        if manner.break_off.is_some_and(|after| running.1 > after) || sender.send_raw(chunk).await.is_err() {
            return;
        }
    }
    if manner.break_off.is_none() && sender.finish().is_ok() {
        *sent = Some(running.sum());
    }
}

async fn read(plan: &Plan, book: &Book, mut receiver: CallReceiver<Bytes>, received: &mut Running) -> Result<(), CallError> {
    sleep(Duration::from_millis(plan.unread_ms)).await;
    while let Some(bytes) = receiver.next_raw().await? {
        received.add(&bytes);
        book.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}
