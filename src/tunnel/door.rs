//! What peers ask of this node's targets: reads the question, asks policy, connects, and carries the connection as long as policy, the
//! target and the session let it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::error::TunnelBroken;
use super::events::{Counts, Report, Served};
use super::splice::{Far, Local};
use super::target::Target;
use super::targets::Targets;
use crate::policy::{Action, PolicyWatch};
use crate::proto::close::StreamCode;
use crate::proto::frame::put_message;
use crate::proto::status::{Code, Status};
use crate::proto::tunnel::{Answer, Ask};
use crate::session::{Core, Limit, Serving, StreamError, StreamRecv, StreamSend};

impl Targets {
    /// Serves a stream of a peer's. The purpose byte has been read. Dropping the future ends the tunnel.
    pub fn serve(&self, send: StreamSend, recv: StreamRecv) -> Serving {
        let targets = self.clone();
        Box::pin(async move { serve(&targets, send, recv).await })
    }
}

async fn serve(targets: &Targets, mut send: StreamSend, mut recv: StreamRecv) {
    let Some((ask, frames)) = recv.first_message::<Ask>().await else {
        send.reset(StreamCode::Protocol);
        return recv.stop(StreamCode::Protocol);
    };
    let core = send.core().clone();
    // Before policy is asked: what changes from here on is asked again.
    let policy = core.policy().watch();
    let (name, probe) = match ask {
        Ask::Open { name } => (name, false),
        Ask::Probe { name } => (name, true),
    };
    let (target, permit) = match admit(targets, &core, &name) {
        Ok(admitted) => admitted,
        Err(status) => return refuse(send, recv, status).await,
    };
    if probe {
        return answer_last(send, &Answer::Ready).await;
    }
    let leave = Leave { policy, core, name, target };
    let tunnel = Serve { targets, leave, first: frames.into_rest(), _permit: permit };
    tunnel.run(send, recv).await;
}

/// Whether the peer may, and only then whether there is such a target, and room.
fn admit(targets: &Targets, core: &Core, name: &str) -> Result<(Arc<Target>, OwnedSemaphorePermit), Status> {
    if !core.uses(Action::Forward, name) {
        return Err(denied());
    }
    let target = targets.find(name).ok_or_else(|| Status::new(Code::NotFound, "nothing is exposed here under that name"))?;
    let full = || Status::new(Code::ResourceExhausted, "the node carries as many tunnels as it may");
    let permit = targets.try_permit().ok_or_else(|| {
        failed(&target, core, &full(), None);
        core.limited(Limit::NodeTunnels);
        full()
    })?;
    Ok((target, permit))
}

/// What a peer is told that policy does not let: nothing of what there is.
fn denied() -> Status {
    Status::new(Code::PermissionDenied, format!("policy does not allow this: {}", Action::Forward))
}

/// Tells the owner that a peer that may was turned away.
fn failed(target: &Target, core: &Core, status: &Status, why: Option<String>) {
    tracing::info!(peer = %core.peer(), %status, why, "a tunnel was not opened");
    let _ = target.events.send(Served::Failed { peer: core.peer(), status: status.clone(), why });
}

/// A tunnel goes on as long as this lasts.
struct Leave {
    policy: PolicyWatch,
    core: Arc<Core>,
    name: String,
    target: Arc<Target>,
}

impl Leave {
    /// Waits until policy or the owner takes it away. Cancel-safe.
    async fn taken_away(&mut self) -> TunnelBroken {
        let Self { policy, core, name, target } = self;
        let denied = async {
            while core.may(Action::Forward, name) {
                policy.changed().await;
            }
        };
        tokio::select! {
            biased;
            () = denied => TunnelBroken::Denied,
            () = target.withdrawn() => TunnelBroken::Withdrawn,
        }
    }
}

/// One tunnel.
struct Serve<'a> {
    targets: &'a Targets,
    leave: Leave,
    /// What the peer has sent already.
    first: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl Serve<'_> {
    async fn run(mut self, mut send: StreamSend, mut recv: StreamRecv) {
        let target = self.leave.target.clone();
        let connected = tokio::select! {
            biased;
            _ = send.unwanted() => return,
            taken_away = self.leave.taken_away() => {
                let withdrawn = Status::new(Code::NotFound, "it is exposed here no longer");
                return refuse(send, recv, if taken_away == TunnelBroken::Denied { denied() } else { withdrawn }).await;
            }
            connected = target.connect() => connected,
        };
        match connected {
            Ok(local) => self.carry(local, &mut send, &mut recv).await,
            Err(unconnected) => {
                failed(&target, &self.leave.core, &unconnected.status, unconnected.why);
                refuse(send, recv, unconnected.status).await;
            }
        }
    }

    async fn carry(mut self, local: Local, send: &mut StreamSend, recv: &mut StreamRecv) {
        if answer(send, &Answer::Ready).await.is_err() {
            return;
        }
        let (connection, peer) = (self.targets.number(), self.leave.core.peer());
        let (counts, events) = (Arc::<Counts>::default(), self.leave.target.events.clone());
        let _ = events.send(Served::Began { connection, peer });
        let over = TunnelBroken::Session("the session ended".into());
        let report = Report::new(&counts, over, |sent, received, end| {
            let _ = events.send(Served::Ended { connection, peer, sent, received, end });
        });
        let far = Far { send, recv, first: std::mem::take(&mut self.first), opened_here: false };
        let end = tokio::select! {
            biased;
            taken_away = self.leave.taken_away() => Err(taken_away),
            spliced = local.splice(far, &counts) => spliced,
        };
        if let Err(TunnelBroken::Denied | TunnelBroken::Withdrawn) = end {
            let code = if end == Err(TunnelBroken::Denied) { StreamCode::Kind } else { StreamCode::Cancelled };
            send.reset(code);
            recv.stop(code);
        }
        report.ended(end);
    }
}

async fn answer(send: &mut StreamSend, answer: &Answer) -> Result<(), StreamError> {
    let mut buf = Vec::with_capacity(64);
    put_message(&mut buf, answer);
    send.write(buf.into()).await
}

async fn answer_last(mut send: StreamSend, answer: &Answer) {
    let mut buf = Vec::with_capacity(64);
    put_message(&mut buf, answer);
    let _ = send.write_last(buf.into()).await;
}

async fn refuse(send: StreamSend, mut recv: StreamRecv, status: Status) {
    answer_last(send, &Answer::Refused(status)).await;
    recv.stop(StreamCode::Closed);
}
