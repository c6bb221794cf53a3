//! Beginning a circuit: by way of a neighbour that is held for it, to a node that proves to be the one that was wanted.

use std::sync::Arc;

use tokio::time::Instant;

use super::legs::Role;
use super::{BeginError, Relays};
use crate::id::NodeId;
use crate::net::{Circuit, CircuitError, Leg, Link, Surroundings};
use crate::proto::circuit::{Open, repeats};
use crate::proto::frame::put_message;
use crate::proto::limits;
use crate::proto::stream::Kind;
use crate::seal::CircuitId;
use crate::session::{Attached, Dialler, Session, Via};

impl Relays {
    /// A circuit to this node, by way of these relays. Takes at most about [`limits::HANDSHAKE`] once the first relay is reached. Dropped
    /// before it ends, it leaves nothing behind.
    ///
    /// # Errors
    /// [`BeginError`].
    pub async fn begin(&self, via: &Via, to: NodeId) -> Result<Link, BeginError> {
        let mut route: Vec<NodeId> = via.hops().iter().map(|relay| relay.id).collect();
        route.push(to);
        if route.len() - 1 > limits::RELAYS_IN_A_ROW || repeats(&route) || route.contains(&self.0.own) {
            return Err(BeginError::Route);
        }
        let first = via.hops().first().ok_or(BeginError::Route)?;
        let node = self.node().clone().ok_or(BeginError::Down)?;
        let held = HeldRelay::new(&node.dialler, first).ok_or(BeginError::Route)?;
        let attached = held.session.attached_by(Some(Instant::now() + limits::HANDSHAKE), None, true).await?;
        let (link, number) = (attached.link(), self.0.legs.number(attached.link()));
        let one_more = link.carries().ok_or(BeginError::NoLink)?;
        let open = Open { leg: number, circuit: rand::random(), route: route.split_off(1) };
        let (mut send, recv) = link.open().await.map_err(CircuitError::from)?;
        send.urgent();
        let mut buf = vec![Kind::CircuitControl as u8];
        put_message(&mut buf, &open);
        send.write(buf.into()).await.map_err(CircuitError::from)?;
        let kept = Arc::new(std::sync::Mutex::new(None));
        let surroundings = Surroundings { received: counting(&attached), kept: Box::new((held, one_more, kept.clone())) };
        let (leg, streams) = Leg::new(link, number, (send, recv), bytes::Bytes::new(), surroundings).ok_or(BeginError::NoLink)?;
        let entered = self.0.legs.enter(link, number, Role::End(streams));
        *kept.lock().expect("nothing panics while it is held") = entered;
        let circuit = Circuit::begin(&self.0.ends, CircuitId(open.circuit), self.0.own, to, leg).await?;
        Ok(Link::relayed(circuit))
    }
}

/// Lets the link that a leg is on know of what came over it: its window grows with that.
pub(super) fn counting(on: &Arc<Attached>) -> Arc<dyn Fn(usize) + Send + Sync> {
    let on = Arc::downgrade(on);
    Arc::new(move |bytes| on.upgrade().into_iter().for_each(|on| on.received(bytes)))
}

/// A session with a relay, held until this is dropped.
struct HeldRelay {
    dialler: Arc<dyn Dialler>,
    session: Session,
}

impl HeldRelay {
    fn new(dialler: &Arc<dyn Dialler>, relay: &crate::id::Relay) -> Option<Self> {
        let session = dialler.hold_hop(relay.id, &relay.addresses)?;
        Some(Self { dialler: dialler.clone(), session })
    }
}

impl Drop for HeldRelay {
    fn drop(&mut self) {
        self.dialler.release(self.session.peer());
    }
}
