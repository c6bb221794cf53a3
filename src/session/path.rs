//! What the owner of a peer does with the path it has: reads control messages and notices, pings, and judges whether the
//! path still lives.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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
use crate::proto::close::CloseCode;
use crate::proto::codec;
use crate::proto::control::{Control, Goodbye};
use crate::proto::limits;
use crate::state::liveness::Liveness;

/// Pings under way at once.
const PINGS: usize = 64;
/// How often the path is looked at while streams are open.
const LOOK: Duration = Duration::from_millis(500);
/// A window that nothing used for this long shrinks back.
const REST: Duration = Duration::from_secs(10);

/// A goodbye gets this long to arrive before the link is closed; the code it is closed with says nearly the same.
const GOODBYE: Duration = Duration::from_millis(500);

/// What comes in on the path.
pub(super) enum Input {
    Message(Result<Control, ControlError>),
    /// The peer opened session stream 0.
    Notices(Notices),
    Notice(Option<Notice>),
    /// What waited to be sent is on its way, or never will be.
    Flushed(Result<(), ControlError>),
    /// A ping or pong beside the control stream.
    Datagram(Bytes),
    Closed(LostReason),
    /// Something was sent after a time of quiet: liveness looks again.
    Stirs,
}

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

/// A ping that is not answered yet.
struct Ping {
    seq: u64,
    at: Instant,
    /// Bytes sent before it.
    sent: u64,
    asked: Option<oneshot::Sender<Duration>>,
}

/// A path a session is on.
pub(super) struct Path {
    pub attached: Arc<Attached>,
    send: ControlSend,
    recv: ControlRecv,
    notices: Option<Notices>,
    incoming_notices: mpsc::Receiver<Notices>,
    liveness: Liveness,
    pings: VecDeque<Ping>,
    rest_at: Instant,
    /// When to look again although liveness needs it not: while streams are open one may stop the others.
    look_at: Option<Instant>,
    /// Streams opened when it was last looked.
    opened: u64,
    /// Whether we, and whether the peer, said that all answers are in.
    answered: (bool, bool),
    streams: JoinHandle<()>,
}

impl Drop for Path {
    /// A path that was given up is closed already, with the code that fits; one whose owner vanished is closed here.
    fn drop(&mut self) {
        self.streams.abort();
        self.attached.link().close(CloseCode::Goodbye);
    }
}

impl Path {
    /// Puts the session to work on a greeted link.
    pub async fn start(hub: &Hub, greeted: Greeted) -> Result<Self, ControlError> {
        let Greeted { agreement, send, recv } = greeted;
        let profiles = (hub.own().profile, agreement.hello.profile);
        let attached = Attached::new(agreement, &hub.own().limits, hub.policy().clone(), hub.budget().clone());
        let notices = if attached.link().dialled() {
            let opened = timeout(limits::ANSWER_BOUND, attached.open()).await;
            let mut notices = Notices::opened(opened.map_err(|_| ControlError::TimedOut("take the session's stream"))??);
            notices.start().await?;
            Some(notices)
        } else {
            None
        };
        let (to_notices, incoming_notices) = mpsc::channel(1);
        let streams = tokio::spawn(accept::streams(attached.clone(), hub.acceptor().clone(), to_notices));
        let now = Instant::now();
        Ok(Self {
            liveness: Liveness::new(profiles.0, profiles.1, now.into_std()),
            attached,
            send,
            recv,
            notices,
            incoming_notices,
            pings: VecDeque::new(),
            rest_at: now + REST,
            look_at: None,
            opened: 0,
            answered: (false, false),
            streams,
        })
    }

    /// When to [`Path::tick`].
    pub fn wake(&self) -> Instant {
        let wake = Instant::from_std(self.liveness.wake()).min(self.rest_at);
        self.look_at.map_or(wake, |look_at| wake.min(look_at))
    }

    /// The next thing that comes in: reads only, and is cancel-safe. [`Path::handle`] does what follows.
    pub async fn input(&mut self) -> Input {
        let attached = self.attached.clone();
        tokio::select! {
            biased;
            message = self.recv.next() => Input::Message(message),
            sent = self.send.flush(), if self.send.is_stuck() => Input::Flushed(sent),
            datagram = attached.link().read_datagram() => match datagram {
                Ok(datagram) => Input::Datagram(datagram),
                Err(_) => Input::Closed(attached.link().closed().await),
            },
            Some(notices) = self.incoming_notices.recv() => Input::Notices(notices),
            notice = next_notice(&mut self.notices) => Input::Notice(notice),
            reason = attached.link().closed() => Input::Closed(reason),
            () = attached.stirs() => Input::Stirs,
        }
    }

    /// Deals with what came in. Writes to the control stream, so it must not be dropped half-way.
    pub async fn handle(&mut self, input: Input) -> PathEvent {
        match input {
            Input::Message(Ok(message)) => self.message(message),
            Input::Message(Err(ControlError::Path(PathError::Lost(reason)))) | Input::Closed(reason) => PathEvent::Lost(reason),
            // A peer that closes ends its control stream too; the code it closed with says more.
            Input::Message(Err(error @ (ControlError::Ended | ControlError::Path(_)))) => {
                match timeout(GOODBYE, self.attached.link().closed()).await {
                    Ok(reason) => PathEvent::Lost(reason),
                    Err(_) => PathEvent::Broken(error),
                }
            }
            Input::Message(Err(error)) => PathEvent::Broken(error),
            Input::Notices(notices) => {
                self.notices.get_or_insert(notices);
                PathEvent::Nothing
            }
            Input::Notice(notice) => self.notice(notice),
            Input::Flushed(Ok(())) => PathEvent::Nothing,
            Input::Flushed(Err(error)) => PathEvent::Broken(error),
            Input::Datagram(datagram) => self.datagram(&datagram),
            Input::Stirs => self.tick().unwrap_or(PathEvent::Nothing),
        }
    }

    fn message(&mut self, message: Control) -> PathEvent {
        match message {
            Control::Ping { seq } => {
                let mut answer = vec![Control::Pong { seq }];
                let now = Instant::now().into_std();
                if self.liveness.pinged(now) {
                    let seq = self.liveness.ping(now);
                    self.note_ping(seq, None);
                    answer.push(Control::Ping { seq });
                }
                match self.send(&answer) {
                    Ok(()) => PathEvent::Nothing,
                    Err(error) => PathEvent::Broken(error),
                }
            }
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
                self.attached.close_to_calls();
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
        let now = Instant::now();
        self.liveness.pong(seq, now.into_std());
        while self.pings.front().is_some_and(|ping| ping.seq <= seq) {
            let Some(ping) = self.pings.pop_front() else { return };
            self.attached.pulse().acked_up_to(ping.sent);
            if let Some(asked) = ping.asked.filter(|_| ping.seq == seq) {
                let _ = asked.send(now - ping.at);
            }
        }
    }

    /// Sends control messages. If the peer's window has no room for them, because streams that nobody there reads have taken it
    /// all, pings and pongs go as datagrams too, which no window holds up: that nobody reads does not mean that nobody lives.
    ///
    /// The pongs pile up meanwhile, within the bound of what may wait: who asks without end and reads nothing loses the path.
    fn send(&mut self, messages: &[Control]) -> Result<(), ControlError> {
        self.send.queue(messages)?;
        if self.send.is_stuck() {
            for message in messages.iter().filter(|message| matches!(message, Control::Ping { .. } | Control::Pong { .. })) {
                self.attached.link().send_datagram(codec::encode(message).into());
            }
        }
        Ok(())
    }

    /// A ping is answered the way it came. What else comes this way, or is nonsense, is lost like a datagram.
    fn datagram(&mut self, datagram: &[u8]) -> PathEvent {
        match codec::decode(datagram) {
            Ok(Control::Ping { seq }) => self.attached.link().send_datagram(codec::encode(&Control::Pong { seq }).into()),
            Ok(Control::Pong { seq }) => self.pong(seq),
            _ => {}
        }
        PathEvent::Nothing
    }

    /// Sends a ping for somebody who asks. With too many under way it is not sent, and the asker's own deadline tells.
    pub fn ping(&mut self, asked: oneshot::Sender<Duration>) {
        if self.pings.len() < PINGS {
            let seq = self.liveness.ping(Instant::now().into_std());
            self.send_ping(seq, Some(asked));
        }
    }

    fn send_ping(&mut self, seq: u64, asked: Option<oneshot::Sender<Duration>>) {
        self.note_ping(seq, asked);
        // A send that fails is a path that is lost, which is seen where the path is read.
        let _ = self.send(&[Control::Ping { seq }]);
    }

    fn note_ping(&mut self, seq: u64, asked: Option<oneshot::Sender<Duration>>) {
        let sent = self.attached.pulse().sent_so_far();
        self.pings.push_back(Ping { seq, at: Instant::now(), sent, asked });
    }

    /// Has the path prove itself at the next tick: it may lead nowhere any more.
    pub fn probe(&mut self) {
        self.liveness.probe();
    }

    /// Looks at the time: pings, or finds the path dead.
    pub fn tick(&mut self) -> Option<PathEvent> {
        let now = Instant::now();
        if now >= self.rest_at {
            self.rest_at = now + REST;
            self.attached.rest();
        }
        self.attached.relieve();
        let before = std::mem::replace(&mut self.opened, self.attached.streams_ever());
        self.look_at = self.attached.is_busy(before).then(|| now + LOOK);
        if let Some(ping) = self.pings.back().filter(|ping| self.send.is_stuck() || now >= ping.at + LOOK) {
            // It, or its pong, waits for a window, or was lost and waits to be sent again: beside the stream, until one is answered.
            self.attached.link().send_datagram(codec::encode(&Control::Ping { seq: ping.seq }).into());
        }
        let step = self.liveness.tick(now.into_std(), self.attached.pulse());
        if step.dead.is_some() {
            return Some(PathEvent::NoAnswer);
        }
        if let Some(seq) = step.ping {
            self.send_ping(seq, None);
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
        if self.send.queue(&[Control::Goodbye(goodbye)]).is_ok() {
            let _ = timeout(GOODBYE, self.farewell()).await;
        }
    }

    /// Waits until the peer has closed, or says goodbye too: then neither need wait for the other.
    async fn farewell(&mut self) {
        while !matches!(self.recv.next().await, Ok(Control::Goodbye(_)) | Err(_)) {}
    }
}

async fn next_notice(notices: &mut Option<Notices>) -> Option<Notice> {
    match notices {
        Some(notices) => notices.next().await,
        None => std::future::pending().await,
    }
}
