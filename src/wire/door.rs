//! What peers ask of this node's wires: reads the question, asks policy, answers.

use bytes::Bytes;

use super::wires::Wires;
use super::{feed, intake};
use crate::policy::{Action, Pattern};
use crate::proto::close::StreamCode;
use crate::proto::frame::put_message;
use crate::proto::status::{Code, Status};
use crate::proto::wire::{Answer, Ask, Options};
use crate::session::{Core, Limit, Serving, StreamError, StreamRecv, StreamSend};

impl Wires {
    /// Serves a stream of a peer's. The purpose byte has been read. Dropping the future ends what was asked for.
    pub fn serve(&self, send: StreamSend, recv: StreamRecv) -> Serving {
        let wires = self.clone();
        Box::pin(async move { serve(&wires, send, recv).await })
    }
}

async fn serve(wires: &Wires, mut send: StreamSend, mut recv: StreamRecv) {
    let Some((ask, frames)) = recv.first_message::<Ask>().await else {
        send.reset(StreamCode::Protocol);
        return recv.stop(StreamCode::Protocol);
    };
    let core = send.core().clone();
    // Before policy is asked: what changes from here on is asked again.
    let generation = core.policy().generation();
    let ended = match ask {
        Ask::Create { name, options } => match create(wires, &core, &name, options).await {
            Ok(created) => answer(&mut send, &[created]).await,
            Err(status) => refuse(&mut send, status).await,
        },
        Ask::List { pattern } => match pattern.parse::<Pattern>() {
            Ok(pattern) => list(wires, &core, &pattern, &mut send).await,
            Err(error) => refuse(&mut send, Status::new(Code::InvalidArgument, error.to_string())).await,
        },
        Ask::Publish { name, publisher, epoch: _ } => match may_use(wires, &core, Action::Publish, &name) {
            Ok(log) => return intake::serve(log, publisher, send, recv, frames, generation).await,
            Err(status) => refuse(&mut send, status).await,
        },
        Ask::Subscribe { name, from } => match may_use(wires, &core, Action::Subscribe, &name).and_then(|log| log.read(from)) {
            Ok(reader) => return feed::serve(reader, send, recv, generation).await,
            Err(status) => refuse(&mut send, status).await,
        },
    };
    if ended.is_ok() {
        let _ = send.finish();
    }
}

async fn create(wires: &Wires, core: &Core, name: &str, options: Options) -> Result<Answer, Status> {
    if !core.uses(Action::Create, name) {
        return Err(denied(Action::Create));
    }
    let (log, existed) = wires.create(name, options).await.inspect_err(|refused| full(core, refused))?;
    Ok(Answer::Created { epoch: log.epoch(), existed })
}

/// The wires that the peer may publish or subscribe to.
async fn list(wires: &Wires, core: &Core, pattern: &Pattern, send: &mut StreamSend) -> Result<(), StreamError> {
    let may = |name: &str| core.may(Action::Subscribe, name) || core.may(Action::Publish, name);
    let mut answers: Vec<Answer> = wires.list(|name| pattern.matches(name) && may(name)).into_iter().map(Answer::Wire).collect();
    answers.push(Answer::Last);
    answer(send, &answers).await
}

fn may_use(wires: &Wires, core: &Core, action: Action, name: &str) -> Result<std::sync::Arc<super::log::Log>, Status> {
    if !core.uses(action, name) {
        return Err(denied(action));
    }
    wires.find_or_make(name, || core.uses(Action::Create, name)).inspect_err(|refused| full(core, refused))
}

/// Counts that there is no room for a wire, if that is why.
fn full(core: &Core, refused: &Status) {
    if refused.code == Code::ResourceExhausted {
        core.limited(Limit::Wires);
    }
}

/// What a peer is told that policy does not let: nothing of what there is.
pub(super) fn denied(action: Action) -> Status {
    Status::new(Code::PermissionDenied, format!("policy does not allow this: {action}"))
}

pub(super) async fn answer(send: &mut StreamSend, answers: &[Answer]) -> Result<(), StreamError> {
    let mut buf = Vec::with_capacity(64 * answers.len());
    answers.iter().for_each(|answer| put_message(&mut buf, answer));
    send.write(Bytes::from(buf)).await
}

pub(super) async fn refuse(send: &mut StreamSend, status: Status) -> Result<(), StreamError> {
    answer(send, &[Answer::Refused(status)]).await
}
