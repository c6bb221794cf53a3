//! Unary calls with an idempotency key: each is executed once, however often it is made. Whoever makes it while it is executed
//! waits for that; whoever makes it afterwards gets the recorded answer. What is remembered, and for how long, is
//! [`Replay`]'s to say; nothing of it outlives the process.
//!
//! There is no task for a handler here: it is a future shared by all who wait for it. It goes on as long as one of them does,
//! and with the last one it is dropped, as a handler without a key is when its caller gives up; then the key is free.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::digest::{Context as Hash, SHA256};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Shared as SharedFuture, WeakShared};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::context::Context;
use super::item::{Charge, Item, Items};
use super::method::{Handler, Incoming};
use super::reply::{self, Reply};
use super::run::{Place, until};
use super::serve::{Shared, count_failed};
use crate::proto::body::ContentType;
use crate::proto::status::{Code, Status};
use crate::session::{Core, Serving, StreamSend};
use crate::state::replay::{Answer, Begin, Counts, Digest, Keyed, Replay, RunId};

type Handling = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Bytes hashed at a stretch: some tenths of a millisecond.
const HASHED_AT_ONCE: usize = 256 * 1024;

/// The calls with a key of all peers.
#[derive(Debug, Default)]
pub(super) struct Dedupe(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    replay: Replay,
    running: HashMap<RunId, Running>,
}

/// A handler that runs, for as long as somebody waits for it.
#[derive(Debug)]
struct Running {
    handling: WeakShared<Handling>,
    /// The handler's own: its deadline is the last of all who wait.
    cx: Context,
}

/// What becomes of a call.
enum Made {
    Handling(SharedFuture<Handling>),
    Answered(Answer),
}

impl Dedupe {
    pub fn counts(&self) -> Counts {
        self.table().replay.counts()
    }

    // Never drop a shared handling while this is held: with the last of them its `Run` goes, and locks this.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

/// Serves a call with a key, which policy has permitted. Ends early if its caller gives up.
pub(super) async fn serve(
    handler: Arc<dyn Handler>,
    place: Place,
    cx: Context,
    items: Box<Items>,
    mut send: StreamSend,
    shared: Arc<Shared>,
) {
    let waiting = once(handler, place, &cx, items, shared.clone());
    let Some(answer) = until(&shared, &cx, || send.unwanted(), pin!(waiting)).await else { return };
    let answer = answer.unwrap_or_else(|cut_short| Err(cut_short.into()));
    if answer.is_err() {
        count_failed(send.core(), cx.method());
    }
    reply::answer(&mut send, answer).await;
}

/// The outcome of a call, whoever executes it.
async fn once(handler: Arc<dyn Handler>, place: Place, cx: &Context, mut items: Box<Items>, shared: Arc<Shared>) -> Answer {
    let (body, charge) = match items.next().await {
        Ok(Item::Message(body, charge)) => (body, charge),
        Ok(Item::End) => return Err(Status::new(Code::InvalidArgument, "the call ended without its message")),
        Ok(Item::Status(_)) => return Err(Status::new(Code::InvalidArgument, "a caller sends no status")),
        Err(error) => return Err(error.status()),
    };
    let core = items.core().clone();
    drop(items);
    let digest = digest(cx.content_type(), &body).await;
    let work = Work { handler, place, core, body, charge };
    match make(&shared, cx, digest, work) {
        Made::Handling(handling) => handling.await,
        Made::Answered(answer) => answer,
    }
}

/// What it takes to execute a call.
struct Work {
    handler: Arc<dyn Handler>,
    place: Place,
    core: Arc<Core>,
    body: Bytes,
    charge: Charge,
}

fn make(shared: &Arc<Shared>, cx: &Context, digest: Digest, work: Work) -> Made {
    let key = cx.idempotency_key().unwrap_or_default();
    let deadline = cx.deadline().map(Instant::into_std);
    let call = Keyed { caller: cx.peer(), method: cx.path(), key, digest, deadline };
    let mut table = shared.dedupe.table();
    loop {
        let refused = match table.replay.begin(Instant::now().into_std(), call) {
            Begin::Fresh(run) => {
                let own = cx.fork();
                let handling = handle(Run { id: run, cx: own.clone(), shared: shared.clone(), ended: false }, work).shared();
                let weak = handling.downgrade().expect("it has not been polled yet");
                table.running.insert(run, Running { handling: weak, cx: own });
                return Made::Handling(handling);
            }
            Begin::Running(run) => match table.running.get(&run).and_then(|running| Some((running.handling.upgrade()?, running)))
            {
                Some((handling, running)) => {
                    running.cx.extend(cx.deadline());
                    return Made::Handling(handling);
                }
                // The last who waited left just now.
                None => {
                    table.abandoned(run);
                    continue;
                }
            },
            Begin::Done(answer) => return Made::Answered(answer),
            Begin::NotKept => (Code::AlreadyExists, "the call was done before, and its answer was too large to keep"),
            Begin::Conflict => (Code::FailedPrecondition, "the idempotency key was used for another request"),
            Begin::Full => (Code::ResourceExhausted, "too many calls with an idempotency key are running"),
        };
        return Made::Answered(Err(Status::new(refused.0, refused.1)));
    }
}

/// Executes a call, to its end or for as long as it is polled.
fn handle(run: Run, work: Work) -> Handling {
    let Work { handler, place, core, body, charge } = work;
    Box::pin(async move {
        let (send, answer) = Reply::whole();
        let items = Box::new(Items::read_before(core, body, charge));
        let (cx, shared) = (run.cx.clone(), run.shared.clone());
        let serving = handler.serve(Incoming { cx, items, send, place, shared });
        run.end(serving, answer).await
    })
}

/// The execution of a call. Dropped before its end, the call counts as not executed.
struct Run {
    id: RunId,
    cx: Context,
    shared: Arc<Shared>,
    ended: bool,
}

impl Run {
    async fn end(mut self, serving: Serving, mut answer: oneshot::Receiver<Answer>) -> Answer {
        serving.await;
        let silent = || Err(Status::new(Code::Internal, "the handler gave no answer"));
        let answer = answer.try_recv().unwrap_or_else(|_| silent());
        if !self.cx.was_cancelled() {
            self.ended = true;
            let mut table = self.shared.dedupe.table();
            table.running.remove(&self.id);
            table.replay.finished(Instant::now().into_std(), self.id, answer.clone());
        }
        answer
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            self.cx.cancel();
            self.shared.dedupe.table().abandoned(self.id);
        }
    }
}

impl Table {
    fn abandoned(&mut self, run: RunId) {
        self.running.remove(&run);
        self.replay.abandoned(run);
    }
}

/// The fingerprint of a request: how it is written, and the body. Metadata may differ from one attempt to the next.
async fn digest(content: ContentType, body: &[u8]) -> Digest {
    let mut hash = Hash::new(&SHA256);
    hash.update(content.name().as_bytes());
    hash.update(&[0]);
    for (number, piece) in body.chunks(HASHED_AT_ONCE).enumerate() {
        if number > 0 {
            tokio::task::yield_now().await;
        }
        hash.update(piece);
    }
    hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
