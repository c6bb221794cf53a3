//! Takes in the streams a peer opens and hands them to whoever serves them. Each is polled once right here, on the network's
//! thread: a handler that has its answer ready needs no task of its own, and many answers leave in one packet.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::attached::Attached;
use super::notice::Notices;
use super::stream::{StreamRecv, StreamSend};
use crate::net::{PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::proto::stream::{Head, Kind, Purpose};

/// A future that serves one stream to its end.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whoever serves the streams peers open. The session room calls it and knows nothing of calls.
pub trait Acceptor: Send + Sync + 'static {
    /// Serves a call. The purpose byte has been read. Dropping the future ends the call.
    fn call(&self, send: StreamSend, recv: StreamRecv) -> Serving;
}

/// Accepts the streams of an attached session until its path is lost; then drops whatever is being served.
pub(super) async fn streams(attached: Arc<Attached>, acceptor: Arc<dyn Acceptor>, notices: mpsc::Sender<Notices>) {
    let mut serving = JoinSet::new();
    let mut permit = None;
    loop {
        while let Some(ended) = serving.try_join_next() {
            super::hub::report(ended);
        }
        // Kept from the last stream if that one was served at once.
        let leave = match permit.take() {
            Some(permit) => permit,
            None => attached.handler_permit().await,
        };
        let Ok((send, recv)) = attached.link().accept().await else { return };
        let Some(mut stream) = begin(&attached, &acceptor, &notices, send, recv) else {
            permit = Some(leave);
            continue;
        };
        // A panic ends this one stream: here it would take all the others with it.
        let once = poll_fn(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll(cx).is_ready()));
            Poll::Ready(super::hub::report_panic(polled).unwrap_or(true))
        });
        // The budget of cooperative scheduling is meant for one task's work, not for that of a hundred streams.
        if tokio::task::unconstrained(once).await {
            permit = Some(leave);
        } else {
            serving.spawn(async move {
                stream.await;
                drop(leave);
            });
        }
    }
}

/// Serves a stream whose beginning is here already, as it is for nearly all, without a future of its own; the others get one.
fn begin(
    attached: &Arc<Attached>,
    acceptor: &Arc<dyn Acceptor>,
    notices: &mpsc::Sender<Notices>,
    mut send: PathSend,
    mut recv: PathRecv,
) -> Option<Serving> {
    let Some(Ok(Some(mut first))) = recv.read().now_or_never() else {
        return Some(Box::pin(slowly(attached.clone(), acceptor.clone(), notices.clone(), send, recv, Bytes::new())));
    };
    match parse(&first) {
        Parsed::Whole(head, Purpose::Call, len) => {
            first.advance(len);
            let (send, recv) = attached.admit(head, first, send, recv)?;
            Some(acceptor.call(send, recv))
        }
        Parsed::Nonsense => {
            send.reset(StreamCode::Kind);
            recv.stop(StreamCode::Kind);
            None
        }
        _ => Some(Box::pin(slowly(attached.clone(), acceptor.clone(), notices.clone(), send, recv, first))),
    }
}

/// Reads on until the beginning is here.
async fn slowly(
    attached: Arc<Attached>,
    acceptor: Arc<dyn Acceptor>,
    notices: mpsc::Sender<Notices>,
    mut send: PathSend,
    mut recv: PathRecv,
    mut first: Bytes,
) {
    loop {
        match parse(&first) {
            Parsed::Part => match recv.read().await {
                Ok(Some(more)) => first = join(&first, &more),
                // Given up before any of it had left: no id will come, and none is missing.
                Ok(None) => {
                    attached.ended_unheard();
                    break;
                }
                Err(_) => return attached.ended_unheard(),
            },
            Parsed::Whole(head, purpose, len) if purpose == Purpose::Call || head.stream == 0 => {
                first.advance(len);
                let Some((send, recv)) = attached.admit(head, first, send, recv) else { return };
                match purpose {
                    Purpose::Call => acceptor.call(send, recv).await,
                    Purpose::Session => drop(notices.send(Notices::accepted((send, recv))).await),
                }
                return;
            }
            _ => break,
        }
    }
    send.reset(StreamCode::Kind);
    recv.stop(StreamCode::Kind);
}

/// What the first bytes of a path stream are.
enum Parsed {
    /// Kind, head and purpose, and how long they are.
    Whole(Head, Purpose, usize),
    /// The beginning of that.
    Part,
    /// Nothing a session has.
    Nonsense,
}

fn parse(bytes: &[u8]) -> Parsed {
    let Some((kind, rest)) = bytes.split_first() else { return Parsed::Part };
    if Kind::from_byte(*kind) != Some(Kind::Session) {
        return Parsed::Nonsense;
    }
    match Head::get(rest) {
        Ok(Some((head, len))) => match rest.get(len).map(|purpose| Purpose::from_byte(*purpose)) {
            Some(Some(purpose)) => Parsed::Whole(head, purpose, 1 + len + 1),
            Some(None) => Parsed::Nonsense,
            None => Parsed::Part,
        },
        Ok(None) => Parsed::Part,
        Err(_) => Parsed::Nonsense,
    }
}

fn join(a: &[u8], b: &[u8]) -> Bytes {
    [a, b].concat().into()
}
