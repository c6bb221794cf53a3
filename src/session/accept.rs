//! Takes in the streams a peer opens and hands them to whoever serves them. Each is polled once right here, on the network's
//! thread: a handler that has its answer ready needs no task of its own, and many answers leave in one packet.

use std::any::{Any, TypeId};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, poll};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::attached::{self, Attached, CarriedOn};
use super::core::Core;
use super::ledger::Limit;
use super::notice::Notices;
use super::stream::{StreamRecv, StreamSend};
use super::via::Via;
use crate::id::NodeId;
use crate::net::{Link, PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::proto::stream::{Head, Kind, Purpose};
use crate::state::ids::IdError;

/// How long answers may wait for what is done with the calls after them. Then they leave, and while this end goes on with the others, the
/// peer and relays work on them: all in one lump, each would wait for the others.
const TURN: Duration = Duration::from_micros(150);

/// A future that serves one stream to its end.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whoever serves the streams peers open, and wants to know which peers are there. The session room calls it and knows nothing of
/// calls, services, wires or tunnels.
pub trait Acceptor: Send + Sync + 'static {
    /// Serves a call. The purpose byte has been read. Dropping the future ends the call.
    fn call(&self, send: StreamSend, recv: StreamRecv) -> Serving;

    /// Serves a stream of the session that is no call and not its first. The purpose byte has been read. The session's end drops
    /// the future.
    fn stream(&self, purpose: Purpose, send: StreamSend, recv: StreamRecv) -> Serving;

    /// Serves a stream of a circuit, which came over this path and is none of the session's. The kind byte has been read, `first` came with
    /// it. The path's end drops the future.
    fn circuit(&self, on: Arc<Attached>, kind: Kind, send: PathSend, recv: PathRecv, first: Bytes) -> Serving;

    /// Opens a circuit to this node; says in words why there is none. Dropping the future gives it up.
    fn begin(&self, via: Via, to: NodeId) -> Pin<Box<dyn Future<Output = Result<Link, String>> + Send>>;

    /// A path carries this session, for the first time or again (`resumed`). Nobody was told yet: if a future is returned, that waits
    /// until it has ended, or for [`limits::ANSWER_BOUND`] and leaves the rest to run beside. Not asked about visitors.
    fn attached(&self, attached: &Arc<Attached>, resumed: bool) -> Option<Serving>;

    /// No path carries this session: from now on its peer is not here. Not told about visitors.
    fn detached(&self, core: &Arc<Core>);

    /// This session is over. Not told about visitors.
    fn ended(&self, core: &Arc<Core>);

    /// The part of whoever serves that is of this type, for handles on sessions that do more than open streams.
    fn part(&self, of: TypeId) -> Option<Arc<dyn Any + Send + Sync>>;
}

/// Accepts the streams of an attached session until its path is lost. What is being served goes on without it.
pub(super) async fn streams(attached: Arc<Attached>, acceptor: Arc<dyn Acceptor>, notices: mpsc::Sender<Notices>) {
    let core = attached.core().clone();
    let door = Door { attached, acceptor, notices };
    // Streams whose beginning is not here, or that wait for leave: as many as QUIC lets the peer have open.
    let mut waiting = JoinSet::new();
    let mut since = Instant::now();
    loop {
        tokio::task::coop::consume_budget().await;
        let mut accepting = pin!(door.attached.link().accept());
        let at_once = match since.elapsed() < TURN {
            true => poll!(accepting.as_mut()),
            false => {
                tokio::task::yield_now().await;
                Poll::Pending
            }
        };
        let accepted = match at_once {
            Poll::Ready(accepted) => accepted,
            Poll::Pending => {
                while let Some(ended) = waiting.try_join_next() {
                    super::hub::report(ended);
                }
                let accepted = accepting.await;
                since = Instant::now();
                accepted
            }
        };
        let Ok((send, mut recv)) = accepted else { return };
        let first = match recv.read().now_or_never() {
            Some(Ok(Some(first))) => first,
            _ => Bytes::new(),
        };
        if let Some(kind) = circuits(&first) {
            waiting.spawn(core.in_turn(door.acceptor.circuit(door.attached.clone(), kind, send, recv, first.slice(1..))));
            continue;
        }
        let Some((id, purpose)) = door.at_once(&first) else {
            // Begun right here too: stream 0 is to be known before the first call is served, which may end the node.
            let slowly = AssertUnwindSafe(door.clone().slowly(send, recv, first)).catch_unwind();
            let mut slowly = Box::pin(slowly.map(|done| super::hub::report_panic(done).unwrap_or_default()));
            if poll!(slowly.as_mut()).is_pending() {
                waiting.spawn(core.in_turn(slowly));
            }
            continue;
        };
        let halves = door.attached.halves(id, first.slice(purpose..), send, recv);
        // Without leave a new stream waits; one that goes on needs none, so it is no use to wait for that here.
        let Some(leave) = core.try_begin_permit() else {
            door.with_leave(halves);
            continue;
        };
        let mut stream = door.acceptor.call(halves.0, halves.1);
        // A panic ends this one stream: here it would take all the others with it.
        let once = poll_fn(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll(cx).is_ready()));
            Poll::Ready(super::hub::report_panic(polled).unwrap_or(true))
        });
        // The budget of cooperative scheduling is meant for one task's work, not for that of a hundred streams.
        if !tokio::task::unconstrained(once).await {
            core.serve(async move {
                stream.await;
                drop(leave);
            });
        }
    }
}

/// What it takes to let a stream in.
#[derive(Clone)]
struct Door {
    attached: Arc<Attached>,
    acceptor: Arc<dyn Acceptor>,
    notices: mpsc::Sender<Notices>,
}

impl Door {
    /// Lets in a call whose beginning is here already, as it is for nearly all: its id, and where its own bytes begin. The others,
    /// and those that must not be let in now, get a future.
    fn at_once(&self, first: &[u8]) -> Option<(u64, usize)> {
        let Parsed::Whole(head @ Head::Fresh { stream }, len) = parse(first) else { return None };
        let call = first.get(len).copied().and_then(Purpose::from_byte) == Some(Purpose::Call);
        (call && self.attached.admit(head.stream()).is_ok()).then_some((stream, len + 1))
    }

    /// Reads on until the beginning is here, and does what it says.
    async fn slowly(self, mut send: PathSend, mut recv: PathRecv, mut first: Bytes) {
        loop {
            if let Some(kind) = circuits(&first) {
                return self.acceptor.circuit(self.attached, kind, send, recv, first.slice(1..)).await;
            }
            match parse(&first) {
                Parsed::Part => {}
                Parsed::Whole(head @ Head::Fresh { .. }, len) if first.len() > len => {
                    return self.fresh(head, send, recv, first.slice(len..)).await;
                }
                Parsed::Whole(Head::Fresh { .. }, _) => {}
                Parsed::Whole(head, len) => return self.carried_on(head, send, recv, first.slice(len..)).await,
                Parsed::Nonsense => {
                    send.reset(StreamCode::Kind);
                    recv.stop(StreamCode::Kind);
                    return;
                }
            }
            match recv.read().await {
                Ok(Some(more)) => first = join(&first, &more),
                // Given up before any of it had left: no id will come, and none is missing.
                Ok(None) => {
                    self.attached.ended_unheard();
                    send.reset(StreamCode::Kind);
                    return;
                }
                Err(_) => return self.attached.ended_unheard(),
            }
        }
    }

    /// A stream goes on that was on another path before.
    async fn carried_on(self, head: Head, send: PathSend, recv: PathRecv, first: Bytes) {
        match self.attached.carried_on(head, first, send, recv) {
            CarriedOn::Here(send, at) => attached::send_on(self.attached, head.stream(), send, at).await,
            CarriedOn::Unseen(send, mut recv, mut first) => {
                while first.is_empty() {
                    tokio::select! {
                        biased;
                        read = recv.read() => match read {
                            Ok(Some(more)) => first = more,
                            _ => return,
                        },
                        // Its opener says so beside the path stream, and waits for an answer perhaps.
                        () = self.attached.core().given_up(head.stream()) => return,
                    }
                }
                self.fresh(head, send, recv, first).await;
            }
            CarriedOn::Closed(send, recv) => refuse(head, StreamCode::Closed, send, recv),
            CarriedOn::Violation(violation) => self.attached.violated(violation),
        }
    }

    /// A new stream: its first byte says what it is for.
    async fn fresh(self, head: Head, send: PathSend, recv: PathRecv, first: Bytes) {
        let id = head.stream();
        let purpose = match first.first().copied().and_then(Purpose::from_byte) {
            Some(Purpose::Session) if id != 0 => None,
            purpose => purpose,
        };
        let Some(purpose) = purpose else { return refuse(head, StreamCode::Kind, send, recv) };
        // What is told by a lower id is over may come late; one that finds no room waits for it.
        while let Err(error) = self.attached.admit(id) {
            if error != IdError::TooManyLive {
                return refuse(head, StreamCode::Closed, send, recv);
            }
            self.attached.core().has_room().await;
        }
        let (send, mut recv) = self.attached.halves(id, first.slice(1..), send, recv);
        if let Head::CarriedOn { .. } = head {
            recv.was_carried_on();
        }
        match purpose {
            Purpose::Call => self.with_leave((send, recv)),
            Purpose::Session => drop(self.notices.try_send(Notices::accepted((send, recv)))),
            Purpose::Directory | Purpose::Wire | Purpose::Tunnel => self.feed(purpose, send, recv),
        }
    }

    /// Serves a stream that may live for long, if there are not too many.
    fn feed(&self, purpose: Purpose, mut send: StreamSend, mut recv: StreamRecv) {
        let core = self.attached.core();
        let Some(permit) = core.try_feed_permit(purpose) else {
            core.limited(if purpose == Purpose::Tunnel { Limit::Tunnels } else { Limit::Feeds });
            send.reset(StreamCode::Limit);
            return recv.stop(StreamCode::Limit);
        };
        let stream = self.acceptor.stream(purpose, send, recv);
        core.serve(async move {
            stream.await;
            drop(permit);
        });
    }

    /// Serves a call as soon as fewer handlers run, on whatever path the session is then.
    fn with_leave(&self, (send, recv): (StreamSend, StreamRecv)) {
        let acceptor = self.acceptor.clone();
        let leave = self.attached.core().handler_permit();
        self.attached.core().serve(async move {
            let leave = leave.await;
            acceptor.call(send, recv).await;
            drop(leave);
        });
    }
}

/// A stream is not let in.
fn refuse(head: Head, code: StreamCode, mut send: PathSend, mut recv: PathRecv) {
    tracing::debug!(stream = head.stream(), ?code, "a stream is refused");
    send.reset(code);
    recv.stop(code);
}

/// What the first bytes of a path stream are.
enum Parsed {
    /// Kind and head, and how long they are.
    Whole(Head, usize),
    /// The beginning of that.
    Part,
    /// Nothing a session has.
    Nonsense,
}

/// The kind of a stream that is a circuit's.
fn circuits(first: &[u8]) -> Option<Kind> {
    let kind = first.first().copied().and_then(Kind::from_byte)?;
    matches!(kind, Kind::CircuitControl | Kind::CircuitStream).then_some(kind)
}

fn parse(bytes: &[u8]) -> Parsed {
    let Some((kind, rest)) = bytes.split_first() else { return Parsed::Part };
    let carried_on = match Kind::from_byte(*kind) {
        Some(Kind::Session) => false,
        Some(Kind::CarriedOn) => true,
        _ => return Parsed::Nonsense,
    };
    match Head::get(carried_on, rest) {
        Ok(Some((head, len))) => Parsed::Whole(head, 1 + len),
        Ok(None) => Parsed::Part,
        Err(_) => Parsed::Nonsense,
    }
}

fn join(a: &[u8], b: &[u8]) -> Bytes {
    [a, b].concat().into()
}
