//! The half that keeps the directory: serves the streams on which peers register, search and watch.

use std::sync::Arc;

use super::judge::Judge;
use super::shared::Directory;
use super::talk::{Talk, TalkEnd, write, write_last};
use super::tell::{Ear, Gone, Teller};
use crate::policy::Action;
use crate::proto::close::StreamCode;
use crate::proto::codec::Message;
use crate::proto::control::Role;
use crate::proto::directory::{Answer, Ask, Listing, Query, Told};
use crate::proto::frame::put_message;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::service::describe::OWN_SERVICE;
use crate::session::{Core, Limit, Serving, Share, StreamRecv, StreamSend};

/// Serves a stream to its end. The session's end drops it, and what was registered goes with the session.
pub(in crate::service) fn serve(directory: Directory, mut send: StreamSend, recv: StreamRecv) -> Serving {
    Box::pin(async move {
        let core = recv.core().clone();
        let mut talk = Talk::new(recv, Ask::LIMIT, Share::Headers);
        match talk.next().await {
            Ok(Ask::Register(listing)) => register(directory, &core, listing, send, talk).await,
            Ok(Ask::Discover(query)) => tell(directory, core, &query, send, talk, false).await,
            Ok(Ask::Watch(query)) => tell(directory, core, &query, send, talk, true).await,
            Err(TalkEnd::Nonsense(why)) => {
                let status = Status::new(Code::InvalidArgument, why);
                // Whatever was asked, it is answered alike.
                tracing::debug!(peer = %core.peer().short(), %status, "asked of the directory");
                send.reset(StreamCode::Protocol);
                talk.into_recv().stop(StreamCode::Protocol);
            }
            Err(_) => {}
        }
    })
}

/// Lists a service until its stream ends, or the policy changes its mind.
async fn register(directory: Directory, core: &Arc<Core>, listing: Listing, mut send: StreamSend, mut talk: Talk) {
    let mut policy = core.policy().watch();
    let name = listing.name.clone();
    let mut listing = Some(Arc::new(listing));
    let mut held = None;
    let refused = loop {
        if let Some(listing) = listing.take() {
            let listed = match may_register(core, &listing, &name) {
                Ok(()) => directory.register(core, &listing).await,
                Err(refused) => Err(refused),
            };
            match listed {
                Ok(number) => held = Some(number),
                Err(refused) => break Some(refused),
            }
            if write(&mut send, &Answer::Done).await.is_err() {
                break None;
            }
        }
        tokio::select! {
            biased;
            _ = policy.changed() => if let Err(refused) = is_permitted(core, &name) {
                break Some(refused);
            },
            next = talk.next::<Listing>() => match next {
                Ok(next) => listing = Some(Arc::new(next)),
                Err(TalkEnd::Nonsense(why)) => break Some(Status::new(Code::InvalidArgument, why)),
                Err(TalkEnd::There) => break None,
                // Its entry stays, offline, and that is not for us to say.
                Err(TalkEnd::Session) => return,
            },
        }
    };
    if let Some(number) = held
        && !core.has_ended()
    {
        directory.withdraw(core, &name, number);
    }
    if let Some(refused) = refused {
        let _ = write_last(&mut send, &Answer::Refused(refused)).await;
    }
}

fn may_register(core: &Core, listing: &Listing, name: &str) -> Result<(), Status> {
    if core.role() == Role::Visitor {
        let text = "a visitor registers nothing: it is nobody's presence; start a node";
        return Err(Status::new(Code::FailedPrecondition, text));
    }
    if !core.uses(Action::Register, name) {
        return Err(denied());
    }
    if listing.name != name {
        return Err(Status::new(Code::InvalidArgument, "a registration keeps its name"));
    }
    if name == OWN_SERVICE {
        return Err(Status::new(Code::InvalidArgument, format!("the name {OWN_SERVICE:?} is each node's own")));
    }
    Ok(())
}

fn is_permitted(core: &Core, name: &str) -> Result<(), Status> {
    core.may(Action::Register, name).then_some(()).ok_or_else(denied)
}

fn denied() -> Status {
    Status::new(Code::PermissionDenied, "policy does not allow this registration")
}

/// Tells what is there, and, of a watch, what changes.
async fn tell(directory: Directory, core: Arc<Core>, query: &Query, mut send: StreamSend, mut talk: Talk, watches: bool) {
    let permit = if watches { directory.watch_permit(&core) } else { None };
    let judge = match Judge::new(directory.clone(), Some(core.clone()), query) {
        Ok(_) if watches && permit.is_none() => {
            core.limited(Limit::Watches);
            let text = format!("this session has {} watches, and that is the most", limits::WATCHES);
            Err(Status::new(Code::ResourceExhausted, text))
        }
        judge => judge.map_err(|error| Status::new(Code::InvalidArgument, error.to_string())),
    };
    let judge = match judge {
        Ok(judge) => judge,
        Err(refused) => return drop(write_last(&mut send, &Told::Refused(refused)).await),
    };
    let unwanted = send.unwanted();
    // Taken before anything is looked at: what changes from here on is looked at again.
    let policy = core.policy().watch();
    let teller = Teller::new(directory, judge, ToPeer(send));
    let telling = async { if watches { teller.watch(Some(policy)).await } else { teller.discover().await } };
    tokio::select! {
        biased;
        told = telling => if let Ok(ToPeer(mut send)) = told {
            let _ = send.finish();
        },
        _ = unwanted => {}
        // Whoever ends its half has asked for something and waits for the answer.
        _ = ended_badly(&mut talk) => {}
    }
    drop(permit);
}

/// Waits until the other end says what it should not.
async fn ended_badly(talk: &mut Talk) -> TalkEnd {
    match talk.next::<Ask>().await {
        Err(TalkEnd::There) => std::future::pending().await,
        Err(end) => end,
        Ok(_) => TalkEnd::Nonsense("one thing is asked on a stream".into()),
    }
}

/// Tells a peer.
struct ToPeer(StreamSend);

impl Ear for ToPeer {
    async fn hear(&mut self, told: Vec<Told>) -> Result<(), Gone> {
        let mut buf = Vec::with_capacity(256);
        told.iter().for_each(|told| put_message(&mut buf, told));
        self.0.write(buf.into()).await.map_err(|_| Gone)
    }
}
