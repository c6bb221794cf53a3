//! Circuits: both their ends, and being a relay between. A node opens a circuit by way of its neighbours, accepts those that lead to
//! it, and, where policy says so, carries those of others: stream by stream, in both directions, without reading them.
//!
//! This room knows neighbours, legs and routes. What the two ends say to each other is sealed in `net`; what a session does on a
//! circuit is the same as on any other link, and decided elsewhere.

mod begin;
mod carry;
mod end;
mod error;
mod legs;
mod splice;
mod toll;

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

pub use self::error::BeginError;
use self::legs::{Legs, Role};
pub use self::toll::RelayCounts;
use self::toll::Toll;
use crate::id::NodeId;
use crate::net::ends::EndsConfig;
use crate::net::{PathRecv, PathSend};
use crate::proto::circuit::{Answer, Open, Refusal, Refused, StreamHead};
use crate::proto::close::StreamCode;
use crate::proto::codec::{self, Message};
use crate::proto::frame::{Frames, put_message};
use crate::proto::limits::{self, Limits};
use crate::proto::stream::Kind;
use crate::session::{Attached, Dialler, Hub, Serving, WeakHub};

/// The circuits of a node. Clones share them.
#[derive(Clone)]
pub(crate) struct Relays(Arc<Inner>);

struct Inner {
    own: NodeId,
    ends: EndsConfig,
    legs: Arc<Legs>,
    toll: Arc<Toll>,
    /// From when the node has begun until it ends. It leads back to the node, which would never go with it.
    node: Mutex<Option<Joined>>,
}

/// What the circuits of a node need of it.
#[derive(Clone)]
struct Joined {
    hub: WeakHub,
    dialler: Arc<dyn Dialler>,
}

impl Relays {
    /// The circuits of the node with this id, which shows this at the ends of its own.
    pub fn new(own: NodeId, ends: EndsConfig, limits: &Limits) -> Self {
        Self(Arc::new(Inner { own, ends, legs: Arc::default(), toll: Toll::new(limits), node: Mutex::default() }))
    }

    /// The node has begun: from now on there can be circuits.
    pub fn join(&self, hub: &Hub, dialler: Arc<dyn Dialler>) {
        *self.node() = Some(Joined { hub: hub.downgrade(), dialler });
    }

    /// The node ends: from now on no circuits begin.
    pub fn leave(&self) {
        // Dropped when the lock is free again: more may go with it.
        let _left = self.node().take();
    }

    fn node(&self) -> MutexGuard<'_, Option<Joined>> {
        self.0.node.lock().expect("nothing panics while it is held")
    }

    /// What was counted since the start.
    pub fn counts(&self) -> RelayCounts {
        self.0.toll.counts()
    }

    fn hub(&self) -> Option<Hub> {
        self.node().as_ref()?.hub.upgrade()
    }

    /// Serves a stream of a circuit that came over this link; the kind byte has been read, `first` came with it. It ends when the link
    /// does, or is dropped with it.
    pub fn serve(&self, on: Arc<Attached>, kind: Kind, send: PathSend, recv: PathRecv, first: Bytes) -> Serving {
        let relays = self.clone();
        Box::pin(async move {
            match kind {
                _ if on.link().is_relayed() => refuse_stream(send, recv, StreamCode::Kind),
                Kind::CircuitControl => relays.opened(on, send, recv, first).await,
                Kind::CircuitStream => relays.stream(on, send, recv, first).await,
                _ => refuse_stream(send, recv, StreamCode::Kind),
            }
        })
    }

    /// A neighbour opens a circuit.
    async fn opened(&self, on: Arc<Attached>, send: PathSend, mut recv: PathRecv, first: Bytes) {
        let mut frames = Frames::new(Open::LIMIT);
        frames.push(first);
        let read = tokio::time::timeout(limits::HELLO, open(&mut recv, &mut frames)).await;
        // The side of the link that the number belongs to has to be the neighbour's.
        let theirs = u64::from(on.link().dialled());
        let open = match read {
            Ok(Some(open)) if open.leg % 2 == theirs => open,
            _ => return refuse_stream(send, recv, StreamCode::Protocol),
        };
        let (control, rest) = ((send, recv), frames.into_rest());
        match open.route.is_empty() {
            true => self.accept(on, open, control, rest).await,
            false => self.carry(on, open, control, rest).await,
        }
    }

    /// A stream of a circuit that is there.
    async fn stream(&self, on: Arc<Attached>, mut send: PathSend, mut recv: PathRecv, mut first: Bytes) {
        let (head, length) = loop {
            match StreamHead::get(&first) {
                Ok(Some(read)) => break read,
                Ok(None) => match recv.read().await {
                    Ok(Some(more)) => first = [first, more].concat().into(),
                    _ => return refuse_stream(send, recv, StreamCode::Protocol),
                },
                Err(_) => return refuse_stream(send, recv, StreamCode::Protocol),
            }
        };
        let rest = first.slice(length..);
        match self.0.legs.get(on.link().number(), head.leg) {
            Some(Role::End(streams)) => drop(streams.hand_over(head.stream, send, recv, rest).await),
            Some(Role::Carried(circuit, side)) => circuit.stream(side, head.stream, (send, recv), rest).await,
            // A circuit that is over: says nothing of what was on it.
            None => {
                send.reset(StreamCode::PathLeft);
                recv.stop(StreamCode::PathLeft);
            }
        }
    }

    fn refusal(&self, why: Refusal) -> Refused {
        Refused { by: self.0.own, why }
    }
}

async fn open(recv: &mut PathRecv, frames: &mut Frames) -> Option<Open> {
    loop {
        if let Some(frame) = frames.next_frame().ok()? {
            return codec::decode(&frame).ok();
        }
        frames.push(recv.read().await.ok()??);
    }
}

fn refuse_stream(mut send: PathSend, mut recv: PathRecv, code: StreamCode) {
    send.reset(code);
    recv.stop(code);
}

/// Tells whoever opened a circuit why there is none.
async fn refuse(send: &mut PathSend, recv: &mut PathRecv, refused: &Refused) {
    let mut buf = vec![Answer::Refused as u8];
    put_message(&mut buf, refused);
    recv.stop(StreamCode::Cancelled);
    if send.write(buf.into()).await.is_ok() {
        let _ = send.finish();
    }
}
