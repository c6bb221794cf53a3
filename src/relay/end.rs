//! Accepting a circuit that leads to this node: from whoever proves to be at its other end, as a link like any other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::begin::counting;
use super::legs::Role;
use super::toll::count;
use super::{Relays, refuse, refuse_stream};
use crate::id::NodeId;
use crate::net::{Circuit, Leg, Link, PathRecv, PathSend, Surroundings};
use crate::proto::circuit::{Open, Refusal};
use crate::proto::close::{CloseCode, StreamCode};
use crate::proto::limits;
use crate::seal::CircuitId;
use crate::session::Attached;

impl Relays {
    /// A circuit leads here.
    pub(super) async fn accept(&self, on: Arc<Attached>, open: Open, (mut send, mut recv): (PathSend, PathRecv), first: Bytes) {
        let Some(hub) = self.hub().filter(|hub| !hub.is_draining()) else {
            return refuse_stream(send, recv, StreamCode::PathLeft);
        };
        let neighbour = on.link().peer();
        let beginning = self.0.toll.beginning.one_more(neighbour, limits::CIRCUITS_BEGINNING);
        let (Some(beginning), Some(one_more)) = (beginning, on.link().carries()) else {
            count(&self.0.toll.counted.by_quota);
            return refuse(&mut send, &mut recv, &self.refusal(Refusal::TooMany)).await;
        };
        send.urgent();
        let kept = Arc::new(Mutex::new(None));
        let surroundings = Surroundings { received: counting(&on), kept: Box::new((one_more, kept.clone())) };
        let Some((leg, streams)) = Leg::new(on.link(), open.leg, (send, recv), first, surroundings) else { return };
        // A number that is taken: what comes with it belongs to the circuit that is there.
        let Some(entered) = self.0.legs.enter(on.link(), open.leg, Role::End(streams)) else { return };
        *kept.lock().expect("nothing panics while it is held") = Some(entered);
        let circuit = match Circuit::accept_one(&self.0.ends, CircuitId(open.circuit), self.0.own, leg).await {
            Ok(circuit) => circuit,
            Err(error) => return tracing::debug!(neighbour = %neighbour.short(), %error, "a circuit did not come about"),
        };
        drop(beginning);
        let link = Link::relayed(circuit);
        if link.peer() == self.0.own {
            return link.close(CloseCode::Refused);
        }
        hub.take_in(link).await;
    }
}

/// How many of something each neighbour has under way.
#[derive(Default)]
pub(super) struct Counts(Arc<Mutex<HashMap<NodeId, usize>>>);

/// One of them, until it is dropped.
pub(super) struct One(Arc<Mutex<HashMap<NodeId, usize>>>, NodeId);

impl Counts {
    /// One more of this neighbour's, if there are fewer than so many.
    pub fn one_more(&self, of: NodeId, most: usize) -> Option<One> {
        let mut counts = self.0.lock().expect("nothing panics while it is held");
        let count = counts.get(&of).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        counts.insert(of, count + 1);
        Some(One(self.0.clone(), of))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        let mut counts = self.0.lock().expect("nothing panics while it is held");
        match counts.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.1)),
        }
    }
}
