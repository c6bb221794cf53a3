//! What the owner of a peer does with the path it has: reads control messages, acknowledges, pings, and judges whether the path
//! still lives.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::accept;
use super::attached::{self, Attached};
use super::control::{ControlError, ControlRecv, ControlSend};
use super::hub::Hub;
use super::notice::Notices;
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
    /// Something has come that the peer wants to know of; whether at once.
    News(bool),
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
    liveness: Liveness,
    pings: VecDeque<Ping>,
    rest_at: Instant,
    /// When to look again although liveness needs it not: while streams are open one may stop the others.
    look_at: Option<Instant>,
    /// Streams opened when it was last looked.
    opened: u64,
    /// When the peer is to be told what has come.
    tell_at: Option<Instant>,
    streams: JoinHandle<()>,
    /// Puts our streams on this path.
    _carrying: JoinSet<()>,
}

impl Drop for Path {
    /// A path that was given up is closed already, with the code that fits; one whose owner vanished is closed here.
    fn drop(&mut self) {
        self.streams.abort();
        self.attached.link().close(CloseCode::Goodbye);
    }
}

impl Path {
    /// Puts the session to work on a greeted link. `ours`: our streams that were on another path before.
    pub fn start(
        hub: &Hub,
        attached: Arc<Attached>,
        (send, recv): (ControlSend, ControlRecv),
        notices: mpsc::Sender<Notices>,
        ours: Vec<u64>,
    ) -> Self {
        let core = attached.core();
        attached.link().paid_by(core.account());
        let streams = accept::streams(attached.clone(), hub.acceptor().clone(), notices);
        let streams = tokio::spawn(core.in_turn(streams));
        let mut carrying = JoinSet::new();
        for id in ours {
            carrying.spawn(core.in_turn(attached::carry_on(attached.clone(), id)));
        }
        let now = Instant::now();
        Self {
            liveness: Liveness::new(hub.own().profile, attached.hello().profile, now.into_std()),
            attached,
            send,
            recv,
            pings: VecDeque::new(),
            rest_at: now + REST,
            look_at: None,
            opened: 0,
            // What came on the path before may not have been told.
            tell_at: Some(now + limits::PROGRESS_WITHIN),
            streams,
            _carrying: carrying,
        }
    }

    /// When to [`Path::tick`].
    pub fn wake(&self) -> Instant {
        self.tell_at.map_or(self.look(), |tell_at| tell_at.min(self.look()))
    }

    /// When to look at the path again.
    fn look(&self) -> Instant {
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
            at_once = attached.core().has_news() => Input::News(at_once),
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
            Input::News(at_once) => {
                self.tell_at = Some(self.tell_at.unwrap_or_else(|| Instant::now() + limits::PROGRESS_WITHIN));
                if at_once { self.tell() } else { PathEvent::Nothing }
            }
            Input::Flushed(Ok(())) if self.tell_at.is_some() => self.tell(),
            Input::Flushed(Ok(())) => PathEvent::Nothing,
            Input::Flushed(Err(error)) => PathEvent::Broken(error),
            Input::Datagram(datagram) => self.datagram(&datagram),
            Input::Stirs => {
                self.look_at = Some(Instant::now());
                self.tick().unwrap_or(PathEvent::Nothing)
            }
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
            Control::Progress(progress) => match self.attached.core().told(&progress) {
                Ok(()) => PathEvent::Nothing,
                Err(violation) => PathEvent::Broken(violation.into()),
            },
            Control::Hello(_) => PathEvent::Broken(ControlError::Order("a second hello")),
            Control::Attach(_) => PathEvent::Broken(ControlError::Order("a second attach")),
        }
    }

    /// Tells the peer what has come, and what is over. While the control stream is stuck it waits: it grows no longer by waiting.
    fn tell(&mut self) -> PathEvent {
        self.tell_at = None;
        while !self.send.is_stuck() {
            let (progress, more) = {
                let mut table = self.attached.core().table();
                (table.streams.progress(), table.streams.has_news())
            };
            let Some(progress) = progress else { return PathEvent::Nothing };
            if let Err(error) = self.send.queue(&[Control::Progress(progress)]) {
                return PathEvent::Broken(error);
            }
            if !more {
                return PathEvent::Nothing;
            }
        }
        // Flushed, it goes on.
        self.tell_at = Some(Instant::now() + LOOK);
        PathEvent::Nothing
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

    /// Sends a ping, to know by its pong that the peer has the session on this path too.
    pub fn ask(&mut self) {
        let seq = self.liveness.ping(Instant::now().into_std());
        self.send_ping(seq, None);
    }

    /// Whether the peer has answered a ping here.
    pub fn has_answered(&self) -> bool {
        self.liveness.rtt().is_some()
    }

    /// Has the path prove itself at the next tick: it may lead nowhere any more.
    pub fn probe(&mut self) {
        self.liveness.probe();
        self.look_at = Some(Instant::now());
    }

    /// Whether the path does not answer, and another should be tried beside it.
    pub fn is_suspect(&self) -> bool {
        self.liveness.is_suspect(Instant::now().into_std())
    }

    /// The application stops running: nothing is asked of the path.
    pub fn suspend(&mut self) {
        self.liveness.suspend();
    }

    /// It runs again, and the path has to prove itself.
    pub fn resume(&mut self) {
        self.liveness.resume();
        self.look_at = Some(Instant::now());
    }

    /// Looks at the time: pings, or finds the path dead.
    pub fn tick(&mut self) -> Option<PathEvent> {
        let now = Instant::now();
        if self.tell_at.is_some_and(|tell_at| now >= tell_at) {
            match self.tell() {
                PathEvent::Nothing => {}
                event => return Some(event),
            }
        }
        if now < self.look() {
            return None;
        }
        if now >= self.rest_at {
            self.rest_at = now + REST;
            self.attached.rest();
        }
        self.attached.relieve();
        let before = std::mem::replace(&mut self.opened, self.attached.core().streams_ever());
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
