//! Hands calls to programs over the local API: one stream tells of calls as they come, one stream per call carries its messages.
//! Which program runs, and how, is up to whoever reads them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::afar::Asker;
use super::failure::{Cause, Failure};
use super::lines::{CallLine, json};
use super::offers::{CALLS, Incoming, Offers};
use super::peers::Guests;
use super::types::{Invocation, Offer, ServeLine};
use crate::proto::body::ContentType;
use crate::proto::status::{Code, Status};
use crate::{Receiver, Sender};

/// A call that was told of is answered within this, or fails.
const CLAIM: Duration = Duration::from_secs(10);

/// Calls that were told of and not yet claimed. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Pending(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    calls: Mutex<HashMap<u64, Claimed>>,
}

/// A call, and whom to tell if its caller gives up.
#[derive(Debug)]
pub struct Claimed {
    id: u64,
    call: Incoming,
    told: mpsc::WeakSender<ServeLine>,
    /// Who serves it: nobody else is to take it.
    by: Asker,
}

impl Pending {
    /// Takes a call, for good.
    ///
    /// # Errors
    /// [`Failure`]: it was taken already, its caller gave up, or it was not taken in time.
    pub fn claim(&self, id: u64, by: Asker) -> Result<Claimed, Failure> {
        let gone = || Failure::new(Cause::Usage, Code::NotFound, format!("no call {id} waits to be answered"));
        let mut calls = self.lock();
        if calls.get(&id).is_some_and(|claimed| claimed.by != by) {
            return Err(gone());
        }
        calls.remove(&id).filter(|claimed| !claimed.call.done.is_closed()).ok_or_else(gone)
    }

    fn put(&self, call: Incoming, told: &mpsc::Sender<ServeLine>, by: Asker) -> Invocation {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let cx = &call.cx;
        let text = |value: &[u8]| std::str::from_utf8(value).ok().map(str::to_owned);
        let invocation = Invocation {
            id,
            peer: cx.peer(),
            method: cx.method().to_owned(),
            deadline_ms: cx.time_left().map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            content: cx.content_type().name().to_owned(),
            metadata: cx.metadata().filter_map(|(name, value)| Some((name.to_owned(), text(value)?))).collect(),
        };
        self.lock().insert(id, Claimed { id, call, told: told.downgrade(), by });
        invocation
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Claimed>> {
        self.0.calls.lock().expect("nothing panics while it is held")
    }
}

/// Offers a method and tells of its calls, until nobody listens or this is dropped.
///
/// # Errors
/// [`Failure`]: a name that cannot be one, or is taken.
pub async fn serve(
    offers: &Offers,
    pending: &Pending,
    guests: &Guests,
    offer: Offer,
    told: &mpsc::Sender<ServeLine>,
    by: Asker,
) -> Result<(), Failure> {
    let (to, mut calls) = mpsc::channel(CALLS);
    let offering = offers.add(offer.clone(), to)?;
    let announced = offering.announce(guests, &offer).await?;
    let at = announced.iter().map(|announced| announced.at()).collect();
    let mut mine = Mine { pending, waiting: Vec::new() };
    let _ = told.send(ServeLine::Serving { method: offer.method, provider: offers.provider(), at }).await;
    loop {
        let overdue = mine.waiting.first().map(|(until, _)| *until);
        tokio::select! {
            biased;
            () = told.closed() => return Ok(()),
            Some(call) = calls.recv() => {
                let invocation = pending.put(call, told, by);
                mine.waiting.push((Instant::now() + CLAIM, invocation.id));
                if told.send(ServeLine::Call(invocation)).await.is_err() {
                    return Ok(());
                }
            }
            () = tokio::time::sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                let (_, id) = mine.waiting.remove(0);
                pending.lock().remove(&id);
            }
        }
    }
}

/// Calls told of by one stream: those nobody has claimed end with it.
struct Mine<'a> {
    pending: &'a Pending,
    waiting: Vec<(Instant, u64)>,
}

impl Drop for Mine<'_> {
    fn drop(&mut self) {
        let mut calls = self.pending.lock();
        for (_, id) in &self.waiting {
            calls.remove(id);
        }
    }
}

/// Lines of whoever answers a call.
pub type Answers = mpsc::Receiver<Result<CallLine, Failure>>;

/// Carries the messages of one call, both ways, until it has ended.
pub async fn carry(claimed: Claimed, requests: mpsc::Sender<CallLine>, mut answers: Answers) {
    let Claimed { id, call, told, .. } = claimed;
    let Incoming { cx, offer, requests: mut from_caller, mut replies, mut done, .. } = call;
    let content = cx.content_type();
    let ended = {
        let forward = forward(content, &offer, &mut from_caller, &requests);
        let answer = answer(&offer, &mut answers, &mut replies);
        let (mut forward, mut answer) = (std::pin::pin!(forward), std::pin::pin!(answer));
        let mut forwarding = true;
        loop {
            tokio::select! {
                biased;
                () = done.closed() => break None,
                ended = &mut answer => break Some(ended),
                forwarded = &mut forward, if forwarding => match forwarded {
                    Ok(()) => forwarding = false,
                    Err(status) => break Some(Err(status)),
                },
            }
        }
    };
    match ended {
        None => {
            // Told twice: here behind the messages, and where nothing is in the way.
            let _ = requests.try_send(CallLine::Cancelled(true));
            if let Some(told) = told.upgrade() {
                let _ = told.send(ServeLine::Cancelled(id)).await;
            }
        }
        Some(ended) => {
            drop(replies);
            let _ = done.send(ended);
        }
    }
}

/// What the caller sends, on to the program.
async fn forward(
    content: ContentType,
    offer: &Offer,
    from: &mut Receiver<Bytes>,
    to: &mpsc::Sender<CallLine>,
) -> Result<(), Status> {
    while let Some(body) = from.next_raw().await? {
        let line =
            match content {
                ContentType::Json => CallLine::Message(json(&body).ok_or_else(|| {
                    Status::new(Code::InvalidArgument, "the body is not the JSON that its content type promises")
                })?),
                _ => CallLine::message(&body),
            };
        if to.send(line).await.is_err() {
            return Err(Status::new(Code::Unavailable, "the program that serves this method is gone"));
        }
        if !offer.stream {
            break;
        }
    }
    let _ = to.send(CallLine::End(true)).await;
    Ok(())
}

/// What the program answers, on to the caller, up to the status.
async fn answer(offer: &Offer, answers: &mut Answers, replies: &mut Sender<Bytes>) -> Result<(), Status> {
    let internal = |text: &str| Status::new(Code::Internal, text);
    let mut sent = 0;
    loop {
        let line = match answers.recv().await {
            Some(Ok(line)) => line,
            Some(Err(failure)) if failure.cause == Cause::Usage => {
                return Err(internal(&format!("what serves this method gave nonsense: {failure}")));
            }
            Some(Err(_)) | None => return Err(Status::new(Code::Unavailable, "the program that serves this method is gone")),
        };
        let message = match line {
            CallLine::Status(line) => {
                let status = Status::try_from(line).map_err(|failure| internal(&failure.message))?;
                return match (status.is_ok(), offer.stream || sent == 1) {
                    (false, _) => Err(status),
                    (true, true) => Ok(()),
                    (true, false) => Err(internal("the program gave no reply")),
                };
            }
            message => message,
        };
        if !offer.stream && sent == 1 {
            return Err(internal("the program gave more than one reply; `--stream` serves those"));
        }
        if !offer.raw && matches!(message, CallLine::Raw(_)) {
            return Err(internal("the program's reply is not JSON; `--raw` serves anything"));
        }
        let body = message.into_body().map_err(|failure| internal(&failure.message))?;
        replies.send_raw(body).await?;
        sent += 1;
    }
}
