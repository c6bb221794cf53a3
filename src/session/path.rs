//! What the owner of a peer does with the path it has: reads control messages and notices, pings, and judges whether the
//! path still lives.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::accept;
use super::attached::Attached;
use super::control::{ControlError, ControlRecv, ControlSend};
use super::greet::Greeted;
use super::hub::Hub;
use super::notice::{Notice, Notices};
use crate::net::{LostReason, PathError};
use crate::proto::control::{Control, Goodbye, Profile};
use crate::state::liveness::{Liveness, Tick};

/// Pings an owner has under way for people who asked.
const PINGS: usize = 64;
/// A window that nothing used for this long shrinks back.
const REST: Duration = Duration::from_secs(10);

/// A goodbye gets this long to arrive before the link is closed; the code it is closed with says nearly the same.
const GOODBYE: Duration = Duration::from_millis(500);

/// Something happened on the path.
pub(super) enum PathEvent {
    /// The link has ended.
    Lost(LostReason),
    /// The control stream is of no more use.
    Broken(ControlError),
    /// Nothing answered for too long.
    NoAnswer,
    /// The peer ended the session.
    Goodbye(Goodbye),
    /// The peer can be dialled elsewhere.
    Addresses(Vec<SocketAddr>),
    /// The peer goes down and takes no new calls.
    Draining,
    /// The peer has all its answers.
    Drained,
    /// Dealt with here.
    Nothing,
}

/// A path a session is on.
pub(super) struct Path {
    pub attached: Arc<Attached>,
    send: ControlSend,
    recv: ControlRecv,
    notices: Option<Notices>,
    incoming_notices: mpsc::Receiver<Notices>,
    liveness: Liveness,
    /// Who asked for which ping, and when it left.
    pings: VecDeque<(u64, Instant, Option<oneshot::Sender<Duration>>)>,
    rest_at: Instant,
    /// Whether we, and whether the peer, said that all answers are in.
    answered: (bool, bool),
    streams: JoinHandle<()>,
}

impl Drop for Path {
    fn drop(&mut self) {
        self.streams.abort();
    }
}

impl Path {
    /// Puts the session to work on a greeted link.
    pub async fn start(hub: &Hub, greeted: Greeted) -> Result<Self, PathError> {
        let Greeted { agreement, send, recv } = greeted;
        let profile = slower(hub.own().profile, agreement.hello.profile);
        let attached = Attached::new(agreement, hub.policy().clone(), hub.budget().clone());
        let notices = if attached.link().dialled() {
            let mut notices = Notices::opened(attached.open().await?);
            notices.start().await?;
            Some(notices)
        } else {
            None
        };
        let (to_notices, incoming_notices) = mpsc::channel(1);
        let streams = tokio::spawn(accept::streams(attached.clone(), hub.acceptor().clone(), to_notices));
        let now = Instant::now();
        Ok(Self {
            liveness: Liveness::new(profile, now.into_std()),
            attached,
            send,
            recv,
            notices,
            incoming_notices,
            pings: VecDeque::new(),
            rest_at: now + REST,
            answered: (false, false),
            streams,
        })
    }

    /// When to [`Path::tick`].
    pub fn wake(&self) -> Instant {
        Instant::from_std(self.liveness.wake()).min(self.rest_at)
    }

    /// The next thing that happens. Cancel-safe.
    pub async fn event(&mut self) -> PathEvent {
        let link = self.attached.link().clone();
        tokio::select! {
            biased;
            message = self.recv.next() => match message {
                Ok(message) => self.message(message).await,
                Err(ControlError::Path(PathError::Lost(reason))) => PathEvent::Lost(reason),
                // A peer that closes ends its control stream too; the code it closed with says more.
                Err(ControlError::Ended | ControlError::Path(_)) => PathEvent::Lost(link.closed().await),
                Err(error) => PathEvent::Broken(error),
            },
            Some(notices) = self.incoming_notices.recv() => {
                self.notices.get_or_insert(notices);
                PathEvent::Nothing
            }
            notice = next_notice(&mut self.notices) => self.notice(notice),
            reason = link.closed() => PathEvent::Lost(reason),
        }
    }

    async fn message(&mut self, message: Control) -> PathEvent {
        match message {
            Control::Ping { seq } => match self.send.send(&[Control::Pong { seq }]).await {
                Ok(()) => PathEvent::Nothing,
                Err(error) => PathEvent::Broken(error),
            },
            Control::Pong { seq } => {
                self.pong(seq);
                PathEvent::Nothing
            }
            Control::Addresses(addresses) => PathEvent::Addresses(addresses),
            Control::Goodbye(goodbye) => PathEvent::Goodbye(goodbye),
            Control::Hello(_) => PathEvent::Broken(ControlError::Order("a second hello")),
            Control::Attach(_) => PathEvent::Broken(ControlError::Order("a second attach")),
        }
    }

    fn notice(&mut self, notice: Option<Notice>) -> PathEvent {
        match notice {
            Some(Notice::Draining) => {
                self.attached.drain();
                PathEvent::Draining
            }
            Some(Notice::Drained) => {
                self.answered.1 = true;
                PathEvent::Drained
            }
            None => {
                self.notices = None;
                PathEvent::Nothing
            }
        }
    }

    fn pong(&mut self, seq: u64) {
        while self.pings.front().is_some_and(|(sent, ..)| *sent <= seq) {
            let Some((sent, at, asked)) = self.pings.pop_front() else { return };
            if sent == seq {
                self.liveness.answered(seq, Instant::now().into_std());
                if let Some(asked) = asked {
                    let _ = asked.send(at.elapsed());
                }
            }
        }
    }

    /// Sends a ping now. With too many under way the asker is told nothing, and learns that by its own deadline.
    pub async fn ping(&mut self, asked: Option<oneshot::Sender<Duration>>) {
        if self.pings.len() >= PINGS {
            return;
        }
        let now = Instant::now();
        let seq = self.liveness.pinged(now.into_std());
        self.pings.push_back((seq, now, asked));
        // A send that fails is a path that is lost, which is seen where the path is read.
        let _ = self.send.send(&[Control::Ping { seq }]).await;
    }

    /// Looks at the time: pings, or finds the path dead.
    pub async fn tick(&mut self) -> Option<PathEvent> {
        let now = Instant::now();
        if now >= self.rest_at {
            self.rest_at = now + REST;
            self.attached.rest();
        }
        let outstanding = self.attached.streams() > 1;
        match self.liveness.tick(now.into_std(), outstanding) {
            Tick::Wait => {}
            Tick::Ping => self.ping(None).await,
            Tick::Dead => return Some(PathEvent::NoAnswer),
        }
        None
    }

    /// This node goes down: asks the peer to call no more.
    pub async fn drain(&mut self) {
        self.attached.drain();
        match &mut self.notices {
            Some(notices) => drop(notices.send(Notice::Draining).await),
            // The peer has not opened stream 0 yet, so it has not begun to call.
            None => self.answered.1 = true,
        }
    }

    /// All our calls are answered, while one of the nodes goes down: lets the peer know, once.
    pub async fn calls_answered(&mut self) {
        if !std::mem::replace(&mut self.answered.0, true)
            && let Some(notices) = &mut self.notices
        {
            let _ = notices.send(Notice::Drained).await;
        }
    }

    /// Whether neither side waits for an answer any more.
    pub fn both_answered(&self) -> bool {
        self.answered == (true, true)
    }

    /// Says goodbye, and gives it a moment to arrive.
    pub async fn goodbye(&mut self, goodbye: Goodbye) {
        if self.send.send(&[Control::Goodbye(goodbye)]).await.is_ok() {
            let _ = timeout(GOODBYE, self.attached.link().closed()).await;
        }
    }
}

async fn next_notice(notices: &mut Option<Notices>) -> Option<Notice> {
    match notices {
        Some(notices) => notices.next().await,
        None => std::future::pending().await,
    }
}

fn slower(a: Profile, b: Profile) -> Profile {
    if a == Profile::Battery || b == Profile::Battery { Profile::Battery } else { Profile::Active }
}
