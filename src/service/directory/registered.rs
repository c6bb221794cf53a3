//! Services of this node that are listed at a peer, for as long as their guards are kept. One task each: it opens the stream of the
//! registration, on each new session again, and says what has become of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::RegisterError;
use super::here::Dependent;
use super::own;
use super::talk::{Talk, TalkEnd, write};
use crate::proto::codec::Message;
use crate::proto::directory::{Answer, Ask, Listing, Mode};
use crate::proto::frame::put_message;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::proto::stream::Purpose;
use crate::service::serve::Server;
use crate::service::{Registration, Registry, Service};
use crate::session::{Attached, Session, Share, StreamError, StreamRecv, StreamSend, WaitError};

/// After a refusal the peer is asked again from time to time: its owner may have changed the policy.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// A service that is to be listed at a peer, and how. Nothing happens until [`start`](Self::start).
#[derive(Debug)]
#[must_use = "nothing is announced until it is started"]
pub struct Announce {
    session: Session,
    name: String,
    service: Option<Service>,
    mode: Mode,
    metadata: Vec<(String, Vec<u8>)>,
}

/// Where a registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Listed {
    /// The peer is not here, or has not answered yet.
    Waiting,
    /// The peer lists the service as online.
    Online,
    /// The peer does not list it. It is asked again every 30 s and on each new session.
    Refused(Status),
}

/// A service is listed at a peer for as long as this is kept, whatever becomes of sessions meanwhile: it is offline there while no path
/// carries the session, and online again at once when one does. Dropped, it is withdrawn.
#[derive(Debug)]
pub struct Registered {
    name: String,
    state: watch::Receiver<Listed>,
    task: AbortHandle,
    /// The service, if it is served for this.
    _served: Option<Registration>,
}

impl Announce {
    pub(in crate::service) fn new(session: &Session, name: String, service: Option<Service>) -> Self {
        Self { session: session.clone(), name, service, mode: Mode::Public, metadata: Vec::new() }
    }

    /// Who may find it, of those whom the peer's policy lets discover it: all of them, unless this says otherwise.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Adds a name and a value for whoever finds it; at most 32, of 4 KiB each.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// Serves this service under the name for as long as it is announced, instead of one that is served already.
    pub fn service(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    /// Registers it, and waits for the peer to list it, at most as long as a call (30 s). Cancel-safe: nothing is left of a dropped wait.
    ///
    /// # Errors
    /// [`RegisterError`]. Nothing is kept then.
    pub async fn start(self) -> Result<Registered, RegisterError> {
        let deadline = Instant::now() + self.session.limits().call_deadline;
        let session = self.session.clone();
        let mut registered = self.begin()?;
        session.attached_by(Some(deadline), None, false).await?;
        registered.listed_by(deadline).await?;
        Ok(registered)
    }

    /// Registers it as soon as the peer is here, without waiting for that: [`Registered::state`] says what has come of it.
    ///
    /// # Errors
    /// [`RegisterError`], of this node's own making.
    pub fn begin(self) -> Result<Registered, RegisterError> {
        let Self { session, name, service, mode, metadata } = self;
        let server = session.part::<Server>().ok_or(RegisterError::NotConnected(WaitError::Closed))?;
        let said = Listing { name: name.clone(), mode: mode.clone(), metadata: metadata.clone(), description: Vec::new() };
        said.check().map_err(RegisterError::Invalid)?;
        let served = service.map(|service| server.registry().add(service.named(&name))).transpose()?;
        let words = Words { registry: server.registry().clone(), name: name.clone(), mode, metadata };
        if words.listing().is_none() {
            return Err(RegisterError::NotServed(name));
        }
        let (state, states) = watch::channel(Listed::Waiting);
        let keeping = keep(server.peers().depend(session.peer()), words, state);
        let task = server.directory().runtime().spawn(keeping).abort_handle();
        Ok(Registered { name, state: states, task, _served: served })
    }
}

impl Registered {
    /// The service.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it stands now.
    pub fn state(&self) -> Listed {
        // With the node ends the task that would say so.
        if self.state.has_changed().is_err() { Listed::Waiting } else { self.state.borrow().clone() }
    }

    /// Waits until the peer lists it, at most so long. Cancel-safe.
    ///
    /// # Errors
    /// [`RegisterError::Refused`], or [`RegisterError::NoAnswer`] when the time has passed. It stays registered.
    pub async fn listed(&mut self, within: Duration) -> Result<(), RegisterError> {
        self.listed_by(Instant::now() + within).await
    }

    async fn listed_by(&mut self, deadline: Instant) -> Result<(), RegisterError> {
        let listed = self.state.wait_for(|state| *state != Listed::Waiting);
        match timeout_at(deadline, listed).await {
            Ok(Ok(state)) => match &*state {
                Listed::Refused(status) => Err(RegisterError::Refused(status.clone())),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(RegisterError::NotConnected(WaitError::Closed)),
            Err(_) => Err(RegisterError::NoAnswer),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is said of a service.
struct Words {
    registry: Registry,
    name: String,
    mode: Mode,
    metadata: Vec<(String, Vec<u8>)>,
}

impl Words {
    /// As it is served now, if it is.
    fn listing(&self) -> Option<Listing> {
        let description = own::json(&self.registry.describe_one(&self.name, |_| true)?);
        Some(Listing { name: self.name.clone(), mode: self.mode.clone(), metadata: self.metadata.clone(), description })
    }
}

/// Keeps a service listed for as long as it runs.
async fn keep(mut peer: Dependent, words: Words, state: watch::Sender<Listed>) {
    let mut registry = words.registry.changes();
    let mut done = None;
    loop {
        let Some(attached) = peer.session_other_than(done.take()).await else { return };
        let session = attached.session();
        let ended = on_session(&mut peer, &words, &mut registry, &state, attached).await;
        match ended {
            Ended::PathLost => {
                state.send_if_modified(|state| std::mem::replace(state, Listed::Waiting) != Listed::Waiting);
                // Whatever was lost, it is not tried again in a hurry.
                let _ = timeout(limits::ANSWER_BOUND, peer.changed()).await;
            }
            Ended::SessionOver => {
                state.send_replace(Listed::Waiting);
                done = Some(session);
            }
            Ended::NotServed => {
                state.send_replace(Listed::Waiting);
                peer.settle(session);
                if registry.changed().await.is_err() {
                    return;
                }
            }
            Ended::Refused(status) => {
                state.send_replace(Listed::Refused(status));
                peer.settle(session);
                let another = peer.session_other_than(Some(session));
                let _ = timeout(ASK_AGAIN, another).await;
            }
        }
    }
}

/// Why a registration has ended.
enum Ended {
    /// Before anything was said.
    PathLost,
    SessionOver,
    NotServed,
    Refused(Status),
}

/// Registers on this session, and follows what becomes of the service and of the session.
async fn on_session(
    peer: &mut Dependent,
    words: &Words,
    registry: &mut watch::Receiver<u64>,
    state: &watch::Sender<Listed>,
    attached: Arc<Attached>,
) -> Ended {
    let session = attached.session();
    registry.mark_unchanged();
    let Some(mut said) = words.listing() else { return Ended::NotServed };
    let opened = open(&attached, &Ask::Register(said.clone())).await;
    drop(attached);
    let (mut send, recv) = match opened {
        Ok(opened) => opened,
        Err(StreamError::Path(_)) => return Ended::PathLost,
        Err(error) => return over(&error),
    };
    let mut talk = Talk::new(recv, Answer::LIMIT, Share::Answers);
    let mut listed = false;
    loop {
        tokio::select! {
            biased;
            answer = talk.next::<Answer>() => match answer {
                Ok(Answer::Done) => {
                    listed = true;
                    state.send_replace(if peer.is_here(session) { Listed::Online } else { Listed::Waiting });
                    peer.settle(session);
                }
                Ok(Answer::Refused(status)) => return Ended::Refused(status),
                Err(TalkEnd::Session) => return Ended::SessionOver,
                Err(_) => return Ended::Refused(Status::new(Code::Unavailable, "the peer ended the registration")),
            },
            changed = peer.changed() => {
                if changed.is_none() {
                    return Ended::SessionOver;
                }
                let now = if listed && peer.is_here(session) { Listed::Online } else { Listed::Waiting };
                state.send_if_modified(|state| std::mem::replace(state, now.clone()) != now);
            },
            changed = registry.changed() => {
                if changed.is_err() {
                    return Ended::SessionOver;
                }
                let Some(now) = words.listing() else { return Ended::NotServed };
                if now != said {
                    if let Err(error) = write(&mut send, &now).await {
                        return over(&error);
                    }
                    said = now;
                }
            }
        }
    }
}

fn over(error: &StreamError) -> Ended {
    match error {
        StreamError::Session(_) => Ended::SessionOver,
        _ => Ended::Refused(Status::new(Code::Unavailable, "the peer takes no registrations now")),
    }
}

/// Opens a stream of the directory, and asks.
pub(super) async fn open(attached: &Arc<Attached>, ask: &Ask) -> Result<(StreamSend, StreamRecv), StreamError> {
    let (mut send, recv) = attached.open().await?;
    let mut buf = Vec::with_capacity(256);
    send.begin(&mut buf);
    buf.push(Purpose::Directory as u8);
    put_message(&mut buf, ask);
    send.write(buf.into()).await?;
    Ok((send, recv))
}
