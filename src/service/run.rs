//! Runs a handler: where it is to run, until it ends, its caller gives up, or its time is over. A handler that panics fails its
//! own call and nothing else.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use super::context::Context;
use super::serve::Shared;
use crate::proto::status::{Code, Status};
use crate::session::{Core, Limit, StreamError};

/// Where a handler runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On the network's thread: fastest, for handlers that only wait or compute for microseconds.
    #[default]
    Network,
    /// As a task of the runtime the node was started on: for handlers that compute for longer.
    Spawned,
    /// On a thread of its own: for handlers that block.
    Blocking,
}

/// A poll on the network's thread that takes longer is counted, and warned about.
const SLOW_POLL: Duration = Duration::from_millis(1);

/// Runs a handler's future to its end, right here. `None`: the caller gave up. A handler that did not come to its end by itself leaves
/// its context cancelled.
///
/// `stopped` gives the future that ends when the caller gave up; it is asked for only if the handler is not done at once. The handler is
/// where it stays: taken by value it would be in each future on the way, and be moved from one to the next.
pub(super) async fn run<R, S: Future<Output = StreamError>>(
    shared: &Shared,
    cx: &Context,
    stopped: impl FnOnce() -> S,
    handler: Pin<&mut (impl Future<Output = Result<R, Status>> + Send)>,
) -> Option<Result<R, Status>> {
    let mut caught = AssertUnwindSafe(handler).catch_unwind();
    let ended = until(shared, cx, stopped, pin!(timed(shared, cx, Pin::new(&mut caught)))).await?;
    Some(outcome(shared, cx, ended))
}

/// The same off the network's thread: where it is to run.
pub(super) async fn run_off<R: Send + 'static, S: Future<Output = StreamError>>(
    shared: &Arc<Shared>,
    cx: &Context,
    place: Place,
    core: &Core,
    stopped: impl FnOnce() -> S,
    handler: Pin<Box<dyn Future<Output = Result<R, Status>> + Send>>,
) -> Option<Result<R, Status>> {
    let handler = AssertUnwindSafe(handler).catch_unwind();
    let task = match place {
        Place::Network | Place::Spawned => shared.offload().spawn(handler),
        Place::Blocking => {
            // Nothing ends a thread, so it holds a permit of its own until it ends by itself, also when its call is over long before.
            let Some(permit) = core.try_handler_permit() else {
                core.limited(Limit::Handlers);
                cx.cancel();
                return Some(Err(Status::new(Code::ResourceExhausted, "too many handlers of this caller are running")));
            };
            let runtime = shared.offload();
            let on = runtime.clone();
            runtime.spawn_blocking(move || {
                let ended = on.block_on(handler);
                drop(permit);
                ended
            })
        }
    };
    let ended = until(shared, cx, stopped, pin!(joined(task))).await?;
    Some(outcome(shared, cx, ended))
}

type Caught<R> = std::thread::Result<Result<R, Status>>;

fn outcome<R>(shared: &Shared, cx: &Context, ended: Result<Caught<R>, CutShort>) -> Result<R, Status> {
    match ended {
        Ok(Ok(ended)) => ended,
        Ok(Err(_)) => {
            cx.cancel();
            shared.count_panic(cx.method());
            Err(Status::new(Code::Internal, "the handler panicked"))
        }
        Err(cut_short) => Err(cut_short.into()),
    }
}

/// Why a handler was not let come to its end.
pub(super) enum CutShort {
    /// The deadline passed.
    Overdue,
    /// Policy does not allow the call any more.
    Revoked,
}

impl From<CutShort> for Status {
    fn from(cut_short: CutShort) -> Self {
        match cut_short {
            CutShort::Overdue => Status::new(Code::DeadlineExceeded, "the deadline passed"),
            CutShort::Revoked => Status::new(Code::PermissionDenied, "refused by policy: it does not allow this call any more"),
        }
    }
}

/// Runs to the end, unless the deadline passes, policy takes the leave for the call away or, `None`, the caller gives up.
pub(super) async fn until<F: Future, S: Future<Output = StreamError>>(
    shared: &Shared,
    cx: &Context,
    stopped: impl FnOnce() -> S,
    mut running: Pin<&mut F>,
) -> Option<Result<F::Output, CutShort>> {
    // Most handlers are done at once: no timer and no watch for them.
    if let Poll::Ready(ended) = poll_fn(|context| Poll::Ready(running.as_mut().poll(context))).await {
        return Some(Ok(ended));
    }
    let watched = async {
        let overdue = async {
            // It may have moved away meanwhile.
            while let Some(deadline) = cx.deadline().filter(|deadline| *deadline > tokio::time::Instant::now()) {
                sleep_until(deadline).await;
            }
            if cx.deadline().is_none() {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            ended = &mut running => return Some(Ok(ended)),
            _ = stopped() => cx.cancel(),
            () = overdue => {
                cx.cancel();
                return Some(Err(CutShort::Overdue));
            }
            () = shared.revoked(cx) => {
                cx.cancel();
                return Some(Err(CutShort::Revoked));
            }
        }
        None
    };
    Box::pin(watched).await
}

async fn timed<F: Future>(shared: &Shared, cx: &Context, mut future: Pin<&mut F>) -> F::Output {
    poll_fn(|context| {
        let began = Instant::now();
        let polled = future.as_mut().poll(context);
        let took = began.elapsed();
        if took > SLOW_POLL {
            shared.count_slow_poll(cx.method(), took);
        }
        polled
    })
    .await
}

/// What a task gave; a task that vanished counts as panicked. Dropped, it ends the task.
async fn joined<R>(task: JoinHandle<std::thread::Result<R>>) -> std::thread::Result<R> {
    struct Abort<R>(JoinHandle<R>);
    impl<R> Drop for Abort<R> {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let mut task = Abort(task);
    match (&mut task.0).await {
        Ok(ended) => ended,
        Err(error) => Err(Box::new(error)),
    }
}
