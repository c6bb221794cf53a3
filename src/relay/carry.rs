//! Being a relay: a circuit of others goes over two of this node's links, and each of its streams is spliced from one to the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::legs::Role;
use super::splice::OneWay;
use super::toll::{Fare, count};
use super::{Relays, refuse};
use crate::id::NodeId;
use crate::net::{OneMore, PathRecv, PathSend};
use crate::policy::Action;
use crate::proto::circuit::{Open, Refusal, StreamHead};
use crate::proto::close::StreamCode;
use crate::proto::frame::put_message;
use crate::proto::limits;
use crate::proto::stream::Kind;
use crate::session::{Attached, Hub};
use crate::state::admission::scope;
use crate::state::quota::Payer;

/// One of the two legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The neighbour that opened the circuit.
    Near = 0,
    /// The one it goes on to.
    Far = 1,
}

/// A circuit that is carried.
pub(super) struct Carried {
    /// Near and far: the link, and the circuit's number on it.
    legs: [(Arc<Attached>, u64); 2],
    fare: Fare,
    /// Streams open now, of both sides.
    streams: Semaphore,
    over: watch::Sender<bool>,
    _credit: [Option<OneMore>; 2],
}

/// Sees to it that a circuit's streams end with it, however that comes.
struct Ending(Arc<Carried>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.over.send_replace(true);
    }
}

impl Relays {
    /// Opens the next leg, and carries the circuit until it is over.
    pub(super) async fn carry(&self, on: Arc<Attached>, open: Open, (mut send, mut recv): (PathSend, PathRecv), first: Bytes) {
        if let Err(why) = self.carried(on, open, &mut send, &mut recv, first).await {
            refuse(&mut send, &mut recv, &self.refusal(why)).await;
        }
    }

    async fn carried(
        &self,
        on: Arc<Attached>,
        open: Open,
        send: &mut PathSend,
        recv: &mut PathRecv,
        first: Bytes,
    ) -> Result<(), Refusal> {
        let (toll, from) = (&self.0.toll, on.link().peer());
        let hub = self.hub().filter(|hub| !hub.is_draining()).ok_or(Refusal::NotHere)?;
        let (next, rest) = open.route.split_first().ok_or(Refusal::Route)?;
        if open.route.contains(&self.0.own) || open.route.contains(&from) {
            return Err(Refusal::Route);
        }
        if !on.core().uses(Action::Relay, &next.to_string()) {
            count(&toll.counted.by_policy);
            return Err(Refusal::NotAllowed);
        }
        let guest = !hub.policy().current().is_trusted(&from);
        let payer = Payer { id: from, guest_from: guest.then(|| scope(on.link().remote().ip())) };
        let fare = toll.begin(payer).ok_or(Refusal::TooMany)?;
        let not_there = || {
            count(&toll.counted.not_there);
            Refusal::NotHere
        };
        let far = hub.known_peer(*next).and_then(|peer| peer.attached()).filter(|far| !far.link().is_relayed());
        let far = far.ok_or_else(not_there)?;
        let opened = timeout(limits::ANSWER_BOUND, far.link().open()).await.map_err(|_| {
            count(&toll.counted.not_there);
            Refusal::NoAnswer
        })?;
        let (mut far_send, mut far_recv) = opened.map_err(|_| not_there())?;
        far_send.urgent();
        send.urgent();
        let number = self.0.legs.number(far.link());
        let circuit = Arc::new(Carried {
            _credit: [on.link().carries(), far.link().carries()],
            legs: [(on.clone(), open.leg), (far.clone(), number)],
            fare,
            streams: Semaphore::new(2 * limits::CIRCUIT_STREAMS as usize),
            over: watch::Sender::new(false),
        });
        let _ending = Ending(circuit.clone());
        let near_leg = self.0.legs.enter(on.link(), open.leg, Role::Carried(circuit.clone(), Side::Near));
        let far_leg = self.0.legs.enter(far.link(), number, Role::Carried(circuit.clone(), Side::Far));
        let (Some(_near_leg), Some(_far_leg)) = (near_leg, far_leg) else { return Err(Refusal::Route) };

        let mut buf = vec![Kind::CircuitControl as u8];
        put_message(&mut buf, &Open { leg: number, circuit: open.circuit, route: rest.to_vec() });
        buf.extend_from_slice(&first);
        far_send.write(buf.into()).await.map_err(|_| not_there())?;
        let control = ((&mut *send, &mut *recv), (&mut far_send, &mut far_recv));
        let done = tokio::select! {
            biased;
            () = not_any_more(&hub, from, *next) => false,
            () = lasts(circuit.fare.time()) => false,
            done = circuit.control(control) => done.inspect_err(|why| match why {
                Refusal::NoAnswer => count(&toll.counted.half_open),
                _ => count(&toll.counted.not_there),
            })?,
        };
        if !done {
            for half in [send, &mut far_send] {
                half.reset(StreamCode::PathLeft);
            }
            for half in [recv, &mut far_recv] {
                half.stop(StreamCode::PathLeft);
            }
        }
        Ok(())
    }
}

type Halves<'a> = (&'a mut PathSend, &'a mut PathRecv);

impl Carried {
    /// Carries the control stream: when that is over, the circuit is. One side that has ended gives the other some time to do the same. Says
    /// whether both did; or why the circuit has not come about.
    async fn control(&self, (near, far): (Halves<'_>, Halves<'_>)) -> Result<bool, Refusal> {
        let out = OneWay { from: near.1, to: far.0, on: &self.legs[0].0, fare: &self.fare }.run(Bytes::new());
        let mut out = std::pin::pin!(out);
        // Until something comes back it is half open. What comes is for the near side, and not looked at.
        let answer = tokio::select! {
            biased;
            answer = timeout(self.fare.half_open(), far.1.read()) => answer.map_err(|_| Refusal::NoAnswer)?,
            () = &mut out => return Ok(false),
        };
        let answer = answer.ok().flatten().ok_or(Refusal::NotHere)?;
        let back = OneWay { from: far.1, to: near.0, on: &self.legs[1].0, fare: &self.fare }.run(answer);
        let mut back = std::pin::pin!(back);
        Ok(tokio::select! {
            biased;
            () = &mut out => timeout(limits::CIRCUIT_ENDING, back).await.is_ok(),
            () = &mut back => timeout(limits::CIRCUIT_ENDING, out).await.is_ok(),
        })
    }

    /// Carries a stream that came from this side on to the other, until both directions have ended, or the circuit has.
    pub async fn stream(&self, from: Side, stream: u64, (mut send, mut recv): (PathSend, PathRecv), first: Bytes) {
        let ((on, _), (far, number)) = match from {
            Side::Near => (&self.legs[0], &self.legs[1]),
            Side::Far => (&self.legs[1], &self.legs[0]),
        };
        let mut over = self.over.subscribe();
        let opening = async {
            // A stream that has ended here may not have ended yet at whoever opens the next one: that one waits.
            let open = self.streams.acquire().await.ok()?;
            Some((open, far.link().open().await.ok()?))
        };
        let opened = tokio::select! {
            biased;
            _ = over.wait_for(|over| *over) => return give_up((&mut send, &mut recv), StreamCode::PathLeft),
            opened = timeout(limits::CIRCUIT_STREAM_CREDIT, opening) => opened,
        };
        let (_open, (mut far_send, mut far_recv)) = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => return give_up((&mut send, &mut recv), StreamCode::PathLeft),
            Err(_) => return give_up((&mut send, &mut recv), StreamCode::Busy),
        };
        count(&self.fare.counted().streams);
        let mut buf = Vec::with_capacity(17 + first.len());
        StreamHead { leg: *number, stream }.put(&mut buf);
        buf.extend_from_slice(&first);
        let carried = async {
            if far_send.write(buf.into()).await.is_err() {
                return false;
            }
            let out = OneWay { from: &mut recv, to: &mut far_send, on, fare: &self.fare }.run(Bytes::new());
            let back = OneWay { from: &mut far_recv, to: &mut send, on: far, fare: &self.fare }.run(Bytes::new());
            tokio::join!(out, back);
            true
        };
        let done = tokio::select! {
            biased;
            done = carried => done,
            _ = over.wait_for(|over| *over) => false,
        };
        if !done {
            give_up((&mut send, &mut recv), StreamCode::PathLeft);
            give_up((&mut far_send, &mut far_recv), StreamCode::PathLeft);
        }
    }
}

fn give_up((send, recv): Halves<'_>, code: StreamCode) {
    send.reset(code);
    recv.stop(code);
}

/// Whether this neighbour may have circuits carried to that one, by the policy in force now.
fn may(hub: &Hub, from: NodeId, to: NodeId) -> bool {
    hub.policy().decide(&from, Action::Relay, &to.to_string()).is_permit()
}

/// Waits until it may not any more.
async fn not_any_more(hub: &Hub, from: NodeId, to: NodeId) {
    let mut policy = hub.policy().watch();
    while may(hub, from, to) {
        policy.changed().await;
    }
}

async fn lasts(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
