//! A circuit as one of its ends has it: a stream that others carry for the two ends' own words, and further ones, sealed, that they open as
//! they like. It carries nothing for others.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::direct::{Direct, PlainRecv, PlainSend};
use super::lanes::Lanes;
use super::sealed::{SealedRecv, SealedSend, Tie};
use super::{Carrier, Link, LostReason, PathError, PathRecv, PathSend};
use crate::id::NodeId;
use crate::net::ends::{Ends, EndsConfig, EndsError};
use crate::net::tls::TlsError;
use crate::net::turns::Account;
use crate::proto::circuit::{Answer, Refused, StreamHead};
use crate::proto::close::{CloseCode, StreamCode};
use crate::proto::codec::{self, Message};
use crate::proto::frame::Frames;
use crate::proto::limits;
use crate::seal::{self, CircuitId, Direction, ExportError, Numbers, Opener, Place, Sealer, StreamKey};

/// What an end says when it has judged the other one, and when it closes the circuit; the latter with a code.
const WELCOME: u8 = 0;
const CLOSE: u8 = 1;
/// Streams of the peer that wait to be accepted.
const WAITING: usize = 16;

/// The first part of a circuit's way: streams on the link to its first relay.
pub struct Leg {
    link: Direct,
    number: u64,
    control: (PlainSend, PlainRecv),
    /// What came on the control stream together with what was for others.
    first: Bytes,
    streams: mpsc::Receiver<Carried>,
    lost: watch::Sender<Option<LostReason>>,
    surroundings: Surroundings,
}

/// What a circuit needs of whoever has the link that its leg is on.
pub struct Surroundings {
    /// Is told of the bytes that came over the leg: what is read makes room in the link's window.
    pub received: Arc<dyn Fn(usize) + Send + Sync>,
    /// Kept for as long as the circuit lives.
    pub kept: Box<dyn Any + Send + Sync>,
}

/// A stream of the circuit that came over the leg: its number, its halves, and what came with its head.
pub(super) type Carried = (u64, PlainSend, PlainRecv, Bytes);

/// The halves of a relayed stream, sealed.
pub(super) type Relayed = (SealedSend, SealedRecv);

/// Why a circuit did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CircuitError {
    /// The other end is not who it should be, or somebody meddled.
    #[error(transparent)]
    Ends(#[from] EndsError),
    /// The way to it is gone.
    #[error("the way there was lost: {0}")]
    Path(#[from] PathError),
    /// Somebody on the way did not open it.
    #[error("{0}")]
    Refused(Refused),
    /// What came first is no answer.
    #[error("somebody on the way broke the protocol")]
    Answer,
    /// The other end gave no answer in time.
    #[error("the other end gave no answer in time")]
    TimedOut,
    /// A fault of this program.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A circuit between this node and another one.
pub struct Circuit {
    place: seal::Circuit,
    began: bool,
    leg: Direct,
    number: u64,
    ends: Mutex<Ends>,
    /// What is to be sent on the control stream.
    words: mpsc::UnboundedSender<Bytes>,
    next: AtomicU64,
    numbers: Mutex<Numbers>,
    lanes: Arc<Lanes>,
    /// For relayed streams that carry one path stream each.
    own_streams: Arc<Semaphore>,
    lost: watch::Sender<Option<LostReason>>,
    received: Arc<dyn Fn(usize) + Send + Sync>,
    kept: Mutex<Option<Box<dyn Any + Send + Sync>>>,
    runtime: Handle,
    account: Account,
}

impl Leg {
    /// The leg of this number on this link, whose control stream is spliced to the other end's; `first` came with what of it was for
    /// others. Streams that come with that number are handed over by the second value. `None`: the link is a circuit itself.
    pub fn new(
        link: &Link,
        number: u64,
        (send, recv): (PathSend, PathRecv),
        first: Bytes,
        surroundings: Surroundings,
    ) -> Option<(Self, LegStreams)> {
        let (Carrier::Direct(link), PathSend::Plain(send), PathRecv::Plain(recv)) = (&link.0, send, recv) else { return None };
        let (hand_over, streams) = mpsc::channel(WAITING);
        let lost = watch::Sender::new(None);
        let told = lost.subscribe();
        let leg = Self { link: link.clone(), number, control: (send, recv), first, streams, lost, surroundings };
        Some((leg, LegStreams { hand_over, lost: told }))
    }
}

/// Takes the streams of one leg to its circuit.
#[derive(Clone, Debug)]
pub struct LegStreams {
    hand_over: mpsc::Sender<Carried>,
    lost: watch::Receiver<Option<LostReason>>,
}

impl LegStreams {
    /// A stream came, of this number on the circuit; `first` came with its head. Waits while too many wait to be accepted. False if
    /// the circuit is over. Cancel-safe.
    pub async fn hand_over(&self, stream: u64, send: PathSend, recv: PathRecv, first: Bytes) -> bool {
        let (PathSend::Plain(send), PathRecv::Plain(recv)) = (send, recv) else { return false };
        let mut lost = self.lost.clone();
        tokio::select! {
            biased;
            _ = lost.wait_for(Option::is_some) => false,
            handed = self.hand_over.send((stream, send, recv, first)) => handed.is_ok(),
        }
    }
}

impl Circuit {
    /// Begins a circuit to `wanted` and nobody else. Takes at most [`limits::HANDSHAKE`].
    ///
    /// # Errors
    /// [`CircuitError`]; the leg is given up.
    pub async fn begin(
        config: &EndsConfig,
        id: CircuitId,
        me: NodeId,
        wanted: NodeId,
        leg: Leg,
    ) -> Result<Arc<Self>, CircuitError> {
        let mut ends = Ends::dial(config, wanted)?;
        let mut leg = leg;
        let heard = Self::handshake(&mut ends, &mut leg, Answered::Due).await?;
        let place = seal::Circuit { id, initiator: me, responder: wanted };
        Ok(Self::start(place, true, ends, heard, leg))
    }

    /// Accepts a circuit from whoever proves to be at its other end. Takes at most [`limits::HANDSHAKE`].
    ///
    /// # Errors
    /// [`CircuitError`]; the leg is given up.
    pub async fn accept_one(config: &EndsConfig, id: CircuitId, me: NodeId, leg: Leg) -> Result<Arc<Self>, CircuitError> {
        let mut ends = Ends::accept(config)?;
        let mut leg = leg;
        let heard = Self::handshake(&mut ends, &mut leg, Answered::Ours).await?;
        let initiator = ends.peer().ok_or(EndsError::CutOff)?;
        let place = seal::Circuit { id, initiator, responder: me };
        Ok(Self::start(place, false, ends, heard, leg))
    }

    /// Until each has judged the other: who began has no other way to know that it was accepted.
    async fn handshake(ends: &mut Ends, leg: &mut Leg, mut answered: Answered) -> Result<Vec<u8>, CircuitError> {
        let ((send, recv), mut first) = (&mut leg.control, std::mem::take(&mut leg.first));
        let shake = async {
            let (mut heard, mut welcomed) = (Vec::new(), false);
            loop {
                if ends.peer().is_some() && !std::mem::replace(&mut welcomed, true) {
                    ends.say(&[WELCOME])?;
                }
                let mut out = Vec::new();
                ends.pull(&mut out);
                if !out.is_empty() {
                    // With the first that the accepting end has to say: until then no relay takes the circuit for open.
                    if matches!(answered, Answered::Ours) {
                        out.insert(0, Answer::Open as u8);
                        answered = Answered::Done;
                    }
                    send.write(out.into()).await?;
                }
                match heard.first() {
                    // What came with it is for whoever listens next.
                    Some(&WELCOME) if welcomed => return Ok(heard.split_off(1)),
                    // Else it could say other things, of any length, for as long as a handshake may take.
                    Some(word) if *word != WELCOME => {
                        return Err(EndsError::Tls("it does not begin with a welcome".into()).into());
                    }
                    _ => {}
                }
                let mut came = match first.is_empty() {
                    true => recv.read().await?.ok_or(EndsError::CutOff)?,
                    false => std::mem::take(&mut first),
                };
                if matches!(answered, Answered::Due) {
                    match came.split_to(1.min(came.len())).first().copied().and_then(Answer::from_byte) {
                        Some(Answer::Open) => answered = Answered::Done,
                        Some(Answer::Refused) => return Err(refused(recv, came).await?),
                        None => return Err(CircuitError::Answer),
                    }
                }
                let pushed = ends.push(&came, &mut heard);
                if pushed.is_err() {
                    // The other end is told why.
                    let mut alert = if matches!(answered, Answered::Ours) { vec![Answer::Open as u8] } else { Vec::new() };
                    ends.pull(&mut alert);
                    let _ = send.write(alert.into()).await;
                    // Not reset, which would overtake it.
                    let _ = send.finish();
                }
                pushed?;
            }
        };
        timeout(limits::HANDSHAKE, shake).await.unwrap_or(Err(CircuitError::TimedOut))
    }

    fn start(place: seal::Circuit, began: bool, ends: Ends, heard: Vec<u8>, leg: Leg) -> Arc<Self> {
        let Leg { link: leg, number, control: (send, recv), streams, lost, surroundings, .. } = leg;
        let (words, said) = mpsc::unbounded_channel();
        let circuit = Arc::new(Self {
            place,
            began,
            account: leg.account().another(),
            leg,
            number,
            ends: Mutex::new(ends),
            words,
            next: AtomicU64::new(0),
            numbers: Mutex::default(),
            lanes: Lanes::new(began),
            own_streams: Arc::new(Semaphore::new(limits::CIRCUIT_STREAMS as usize - limits::LANES_LIVE)),
            lost,
            received: surroundings.received,
            kept: Mutex::new(Some(surroundings.kept)),
            runtime: Handle::current(),
        });
        circuit.spawn(listen(Arc::downgrade(&circuit), recv, heard, circuit.lost.subscribe()));
        circuit.spawn(say(said, send, circuit.lost.subscribe()));
        circuit.spawn(circuit.lanes.clone().take_in(Arc::downgrade(&circuit), streams));
        circuit
    }

    /// Who is at its other end.
    pub fn peer(&self) -> NodeId {
        if self.began { self.place.responder } else { self.place.initiator }
    }

    /// Whether this end began it.
    pub fn began(&self) -> bool {
        self.began
    }

    /// The other end is let in.
    pub(super) fn permit(&self) {
        self.lanes.permit();
    }

    #[cfg(test)]
    pub(super) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    pub(super) fn leg(&self) -> &Direct {
        &self.leg
    }

    /// By which what is done for it here has its turns.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(self.account.in_turn(task));
    }

    /// How it has ended, once it has.
    pub(super) fn watch(&self) -> watch::Receiver<Option<LostReason>> {
        self.lost.subscribe()
    }

    /// Ends when the circuit does. Keeps nothing of it.
    pub(super) fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lost = self.lost.subscribe();
        async move { drop(lost.wait_for(Option::is_some).await) }
    }

    pub(super) async fn open(self: &Arc<Self>) -> Result<(PathSend, PathRecv), PathError> {
        self.alive()?;
        // Nearly always there is nothing to wait for.
        match self.lanes.open_now(self) {
            Some(opened) => opened,
            None => Box::pin(self.lanes.open(self)).await,
        }
    }

    pub(super) async fn accept(self: &Arc<Self>) -> Result<(PathSend, PathRecv), PathError> {
        self.alive()?;
        match self.lanes.accept_now(self) {
            Some(accepted) => Ok(accepted),
            None => Box::pin(self.lanes.accept(self)).await,
        }
    }

    /// Opens a stream on the leg, of which there is credit for so many. Cancel-safe.
    pub(super) async fn open_on_leg(&self) -> Result<(PlainSend, PlainRecv), PathError> {
        tokio::select! {
            biased;
            opened = self.leg.open() => opened.map_err(|error| self.on_leg(error)),
            () = self.over() => Err(PathError::Lost(self.lost().unwrap_or(LostReason::Here))),
        }
    }

    /// Leave to open one more relayed stream for a path stream that has moved off its lane; waits while there are too many. Cancel-safe.
    pub(super) async fn own_stream(&self) -> Result<OwnedSemaphorePermit, PathError> {
        tokio::select! {
            biased;
            permit = self.own_streams.clone().acquire_owned() => permit.map_err(|_| PathError::Closed),
            () = self.over() => Err(PathError::Lost(self.lost().unwrap_or(LostReason::Here))),
        }
    }

    /// A relayed stream of this end's, of a number of its own.
    pub(super) fn relayed(self: &Arc<Self>, (send, recv): (PlainSend, PlainRecv)) -> Result<Relayed, PathError> {
        let number = self.next.fetch_add(1, Relaxed);
        let stream = 2 * number + u64::from(!self.began);
        let mut head = Vec::new();
        StreamHead { leg: self.number, stream }.put(&mut head);
        self.halves(stream, send, recv, head, None)
    }

    /// A relayed stream that came over the leg.
    pub(super) fn carried(self: &Arc<Self>, (stream, send, recv, first): Carried) -> Result<Relayed, PathError> {
        let theirs = stream % 2 == u64::from(self.began);
        // Before there are keys, not when a record has verified: what this end says there is sealed with them from its first record on, so no
        // two may have the same. Whoever says a number that is not to come ends the circuit here or at that stream's first record.
        if !theirs || self.numbers().accept(stream / 2).is_err() {
            return Err(PathError::Lost(self.broken(&format!("stream {stream} cannot be"))));
        }
        self.halves(stream, send, recv, Vec::new(), Some(first))
    }

    /// `head` of one that this end has opened: what goes before its first record. `first` of one that the peer has: what came with that.
    fn halves(
        self: &Arc<Self>,
        stream: u64,
        send: PlainSend,
        recv: PlainRecv,
        head: Vec<u8>,
        first: Option<Bytes>,
    ) -> Result<Relayed, PathError> {
        let (ours, theirs) = match self.began {
            true => (Direction::FromInitiator, Direction::FromResponder),
            false => (Direction::FromResponder, Direction::FromInitiator),
        };
        let key = |direction| {
            let place = Place { circuit: self.place, stream, direction };
            StreamKey::derive(&*self.ends(), &place)
        };
        let no_keys = |error: ExportError| PathError::Lost(self.broken(&error.to_string()));
        let (sealer, mut opener) = (Sealer::new(key(ours).map_err(no_keys)?), Opener::new(key(theirs).map_err(no_keys)?));
        opener.push(&first.unwrap_or_default());
        let tie = Tie::new(self);
        Ok((SealedSend::new(send, sealer, tie.clone(), head), SealedRecv::new(recv, opener, tie)))
    }

    /// Somebody meddled: the circuit ends.
    pub(super) fn broken(&self, why: &str) -> LostReason {
        tracing::warn!(peer = %self.peer().short(), why, "a circuit is closed");
        self.end(LostReason::Transport(format!("the circuit was meddled with: {why}")), CloseCode::Protocol)
    }

    pub(super) fn close(&self, code: CloseCode) {
        self.end(LostReason::Here, code);
    }

    /// Ends it, once. Gives how it has ended.
    fn end(&self, why: LostReason, code: CloseCode) -> LostReason {
        let mut told = self.lost.borrow().clone();
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            told = Some(lost.get_or_insert_with(|| why.clone()).clone());
            if first {
                let mut out = Vec::new();
                let mut ends = self.ends();
                let _ = ends.say(&[CLOSE, u8::try_from(code as u32).unwrap_or(CloseCode::Lost as u8)]);
                ends.pull(&mut out);
                let _ = self.words.send(out.into());
            }
            first
        });
        drop(self.kept.lock().expect("nothing panics while it is held").take());
        told.unwrap_or(why)
    }

    /// Bytes came over the leg, and were read.
    pub(super) fn received(&self, bytes: usize) {
        (self.received)(bytes);
    }

    /// What an error of a stream on the leg means for one of the circuit's: that the leg is gone says nothing of how its other end is.
    pub(super) fn on_leg(&self, error: PathError) -> PathError {
        match error {
            PathError::Lost(reason) => PathError::Lost(self.end(way_lost(&reason), CloseCode::Lost)),
            PathError::Reset(code) | PathError::Stopped(code) if code == StreamCode::Busy as u64 => {
                let why = LostReason::Transport("a relay on the way takes no more streams".into());
                PathError::Lost(self.end(why, CloseCode::Lost))
            }
            other => other,
        }
    }

    pub(super) async fn closed(&self) -> LostReason {
        let mut lost = self.lost.subscribe();
        let ended = lost.wait_for(Option::is_some).await;
        ended.ok().and_then(|lost| lost.clone()).unwrap_or(LostReason::Here)
    }

    pub(super) fn lost(&self) -> Option<LostReason> {
        self.lost.borrow().clone()
    }

    pub(super) fn alive(&self) -> Result<(), PathError> {
        self.lost().map_or(Ok(()), |lost| Err(PathError::Lost(lost)))
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().expect("nothing panics while it is held")
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().expect("nothing panics while it is held")
    }
}

/// Where a handshake stands with the byte that says that the circuit is open.
enum Answered {
    /// It is to come.
    Due,
    /// It is ours to say.
    Ours,
    Done,
}

/// Why there is no circuit, from whoever on the way says so.
async fn refused(recv: &mut PlainRecv, came: Bytes) -> Result<CircuitError, CircuitError> {
    let mut frames = Frames::new(Refused::LIMIT);
    frames.push(came);
    loop {
        if let Some(frame) = frames.next_frame().map_err(|_| CircuitError::Answer)? {
            return codec::decode(&frame).map(CircuitError::Refused).map_err(|_| CircuitError::Answer);
        }
        frames.push(recv.read().await?.ok_or(CircuitError::Answer)?);
    }
}

/// The loss of the first part of the way, which the other end has not wanted.
fn way_lost(reason: &LostReason) -> LostReason {
    LostReason::Transport(format!("the way there was lost: {reason}"))
}

/// Hears what the other end says, until the circuit is over.
async fn listen(
    circuit: std::sync::Weak<Circuit>,
    mut recv: PlainRecv,
    mut heard: Vec<u8>,
    mut lost: watch::Receiver<Option<LostReason>>,
) {
    // What came with the welcome is looked at first.
    let mut before = Some(Bytes::new()).filter(|_| !heard.is_empty());
    loop {
        let came = match before.take() {
            Some(nothing) => Ok(Some(nothing)),
            None => tokio::select! {
                biased;
                _ = lost.wait_for(Option::is_some) => return,
                came = recv.read() => came,
            },
        };
        let Some(circuit) = circuit.upgrade() else { return };
        let ended = match came {
            Ok(Some(bytes)) => {
                circuit.ends().push(&bytes, &mut heard).err().map(|error| LostReason::Transport(error.to_string()))
            }
            Ok(None) => Some(LostReason::Transport("the circuit was cut off".into())),
            Err(PathError::Lost(reason)) => Some(way_lost(&reason)),
            Err(error) => Some(LostReason::Transport(format!("the circuit was cut off: {error}"))),
        };
        if let Some(reason) = ended {
            circuit.end(reason, CloseCode::Lost);
            return;
        }
        if let Some(at) = heard.iter().position(|word| *word == CLOSE) {
            let Some(code) = heard.get(at + 1) else { continue };
            let reason =
                CloseCode::from_number(u64::from(*code)).map_or(LostReason::ClosedUnknown(u64::from(*code)), LostReason::Closed);
            circuit.end(reason, CloseCode::Lost);
            return;
        }
        heard.clear();
    }
}

/// Sends what this end says, and at the circuit's end finishes the control stream, by which all legs know it.
async fn say(mut words: mpsc::UnboundedReceiver<Bytes>, mut send: PlainSend, mut lost: watch::Receiver<Option<LostReason>>) {
    let _ = lost.wait_for(Option::is_some).await;
    let goodbye = async {
        while let Ok(bytes) = words.try_recv() {
            send.write(bytes).await?;
        }
        send.finish()
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
}

impl Drop for Circuit {
    fn drop(&mut self) {
        self.close(CloseCode::Lost);
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit").field("place", &self.place).field("lost", &self.lost()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leg").field("number", &self.number).finish_non_exhaustive()
    }
}
