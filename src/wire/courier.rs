//! Brings what a publisher has in flight to the wire's log: over the session there is, and the next, and the next; or straight into a
//! log of this node.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::error::{Fault, PublishError};
use super::handle::At;
use super::log::Publishing;
use super::publisher::Shared;
use super::stream::{Answers, Asked, Broken, TRIES, ask_on, pause};
use super::wires::Wires;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::proto::wire::{Answer, Ask};
use crate::session::{Session, StreamSend, WaitError};

/// What is in flight when the last handle is dropped has so long.
const GRACE: Duration = Duration::from_secs(10);
/// Why a stream ended.
enum End {
    /// There is nothing more to bring.
    Done,
    /// The session is over.
    Session,
    /// The host refuses what is in flight: nothing of it is stored.
    Refused(Status),
    /// The host does not take anything now. What was sent before may be stored.
    Closed(Status),
    /// The host broke off.
    Off(String),
    /// The host broke the protocol.
    Nonsense(String),
}

/// Brings what one publisher hands over. However it ends, nobody waits for it any more.
pub(super) struct Courier(pub Arc<Shared>);

impl Courier {
    /// Runs until there is nothing more to bring, and will not be.
    pub async fn run(self) {
        let shared = &*self.0;
        let bring = async {
            match shared.wire.at().clone() {
                At::Here(wires) => bring_here(shared, &wires).await,
                At::There(session) => bring_there(shared, &session).await,
            }
        };
        tokio::select! {
            biased;
            () = bring => {}
            () = overdue(shared) => shared.give_up(&PublishError::OutcomeUnknown("nobody waited for it any longer".into())),
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.0.end("the node has stopped");
    }
}

async fn overdue(shared: &Shared) {
    shared.closed.notified().await;
    sleep(GRACE).await;
}

async fn bring_there(shared: &Shared, session: &Session) {
    let (mut lost, mut tries) = (None, 0);
    loop {
        if !has_work(shared).await {
            return;
        }
        let attached = match session.attached_by(shared.wire.deadline(), lost.as_ref(), false).await {
            Ok(attached) => attached,
            Err(WaitError::Closed) => return shared.end("the session is closed"),
            Err(error) => {
                shared.give_up(&PublishError::OutcomeUnknown(error.to_string()));
                continue;
            }
        };
        let mut settled = false;
        let end = stream(shared, &attached, &mut settled).await;
        tries = if settled { 0 } else { tries + 1 };
        lost = None;
        match end {
            End::Done => return,
            End::Session => {
                tries = 0;
                lost = Some(attached);
            }
            End::Refused(status) => shared.outbox(&PublishError::Refused(status), |outbox, mut told| outbox.refused(&mut told)),
            // What was sent may be there: the host is asked until it knows.
            End::Closed(status) if status.code == Code::Unavailable && tries < TRIES && has_sent(shared) => pause(tries).await,
            End::Closed(status) => shared.give_up(&PublishError::Refused(status)),
            End::Off(_) if tries < TRIES => pause(tries).await,
            End::Off(why) => shared.give_up(&PublishError::OutcomeUnknown(why)),
            End::Nonsense(why) => shared.give_up(&PublishError::OutcomeUnknown(format!("the host broke the protocol: {why}"))),
        }
    }
}

fn has_sent(shared: &Shared) -> bool {
    shared.outbox(&nothing(), |outbox, _| outbox.sent_to().is_some())
}

/// Waits until there is something to bring; false if there never will be.
async fn has_work(shared: &Shared) -> bool {
    loop {
        if shared.is_done() {
            return false;
        }
        if shared.outbox(&nothing(), |outbox, _| !outbox.is_empty()) {
            return true;
        }
        shared.work.notified().await;
    }
}

/// Brings what there is over one stream, until that ends.
async fn stream(shared: &Shared, attached: &Arc<crate::session::Attached>, settled: &mut bool) -> End {
    let epoch = shared.outbox(&nothing(), |outbox, _| outbox.sent_to());
    let ask = Ask::Publish { name: shared.wire.name().to_owned(), publisher: shared.id, epoch };
    let Asked { mut send, mut answers, answer } = match ask_on(attached, &ask).await {
        Ok(asked) => asked,
        Err(Broken::Refused(status)) => return End::Closed(status),
        Err(broken) => return broken.into(),
    };
    let Answer::Ready { epoch, last, known } = answer else { return End::Nonsense(format!("{answer:?} is no answer to this")) };
    let why = PublishError::OutcomeUnknown("the log it was sent to is no more".into());
    shared.outbox(&why, |outbox, mut told| outbox.opened(epoch, last, known, &mut told));
    tokio::select! {
        biased;
        end = acknowledgements(shared, &mut answers, settled) => end,
        end = chunks(shared, &mut send) => end,
    }
}

async fn acknowledgements(shared: &Shared, answers: &mut Answers, settled: &mut bool) -> End {
    loop {
        match answers.next().await {
            Ok(Answer::Ack { count, first }) => {
                *settled = true;
                let acknowledged = shared.outbox(&nothing(), |outbox, mut told| outbox.acknowledged(count, first, &mut told));
                if let Err(nonsense) = acknowledged {
                    return End::Nonsense(nonsense.to_string());
                }
                if shared.is_done() {
                    return End::Done;
                }
            }
            Ok(answer) => return End::Nonsense(format!("{answer:?} is no acknowledgement")),
            Err(Broken::Refused(status)) => return End::Refused(status),
            Err(broken) => return broken.into(),
        }
    }
}

async fn chunks(shared: &Shared, send: &mut StreamSend) -> End {
    loop {
        while let Some(piece) = shared.outbox(&nothing(), |outbox, _| outbox.take()) {
            if let Err(error) = send.write(piece).await {
                // Why is for the other half to tell: the host's last words are on their way.
                match Broken::from(error) {
                    Broken::Session => return End::Session,
                    broken => {
                        sleep(limits::ANSWER_BOUND).await;
                        return broken.into();
                    }
                }
            }
        }
        if shared.is_done() {
            return End::Done;
        }
        shared.work.notified().await;
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Session => End::Session,
            Broken::Refused(status) => End::Refused(status),
            Broken::Off(why) => End::Off(why),
            Broken::Nonsense(why) => End::Nonsense(why),
        }
    }
}

/// Said where nothing can fail.
fn nothing() -> PublishError {
    PublishError::NotSent(String::new())
}

/// Stores what there is in a log of this node.
async fn bring_here(shared: &Shared, wires: &Wires) {
    let mut tries = 0;
    while has_work(shared).await {
        let opened = match wires.find_or_make(shared.wire.name(), || true) {
            Ok(log) => log.publish(shared.id).await,
            Err(status) => Err(status),
        };
        let publishing = match opened {
            Ok(publishing) => publishing,
            Err(status) if status.code == Code::Unavailable && tries < TRIES && has_sent(shared) => {
                tries += 1;
                pause(tries).await;
                continue;
            }
            Err(status) => {
                shared.give_up(&PublishError::Refused(status));
                continue;
            }
        };
        tries = 0;
        let known = publishing.known();
        let why = PublishError::OutcomeUnknown("the log it was sent to is no more".into());
        let epoch = publishing.log().epoch();
        shared.outbox(&why, |outbox, mut told| outbox.opened(epoch, known.unwrap_or_default(), known.is_some(), &mut told));
        match store(shared, &publishing).await {
            Ok(()) => return,
            Err(Fault::Refused(status)) => {
                shared.outbox(&PublishError::Refused(status), |outbox, mut told| outbox.refused(&mut told));
            }
            Err(Fault::Uncertain) => {}
        }
    }
}

async fn store(shared: &Shared, publishing: &Publishing) -> Result<(), Fault> {
    let mut stored = Vec::new();
    loop {
        let mut batch = Vec::new();
        while batch.len() < 1024 * 1024
            && let Some(piece) = shared.outbox(&nothing(), |outbox, _| outbox.take())
        {
            batch.extend_from_slice(&piece);
        }
        if batch.is_empty() {
            if shared.is_done() {
                return Ok(());
            }
            shared.work.notified().await;
            continue;
        }
        let ended = publishing.store(batch, &mut stored).await;
        for of in stored.drain(..) {
            let _ = shared.outbox(&nothing(), |outbox, mut told| outbox.acknowledged(of.count, of.first, &mut told));
        }
        ended?;
    }
}
