//! A circuit as one of its ends has it: a stream that others carry for the two ends' own words, and further ones, sealed, that they open as
//! they like. It carries nothing for others.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::direct::{Direct, PlainRecv, PlainSend};
use super::lanes::Lanes;
use super::sealed::{SealedRecv, SealedSend};
use super::{Carrier, Link, LostReason, PathError, PathRecv, PathSend};
use crate::id::NodeId;
use crate::net::ends::{Ends, EndsConfig, EndsError};
use crate::net::tls::TlsError;
use crate::proto::close::CloseCode;
use crate::proto::limits;
use crate::proto::stream::Kind;
use crate::proto::varint;
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
    streams: mpsc::Receiver<Carried>,
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
    #[error(transparent)]
    Path(#[from] PathError),
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
    lost: watch::Sender<Option<LostReason>>,
    runtime: Handle,
}

impl Leg {
    /// The leg of this number on this link, whose control stream is spliced to the other end's. Streams that come with that number are
    /// handed over by the second value.
    pub fn new(link: &Link, number: u64, send: PathSend, recv: PathRecv) -> Option<(Self, LegStreams)> {
        let (Carrier::Direct(link), PathSend::Plain(send), PathRecv::Plain(recv)) = (&link.0, send, recv) else { return None };
        let (hand_over, streams) = mpsc::channel(WAITING);
        Some((Self { link: link.clone(), number, control: (send, recv), streams }, LegStreams(hand_over)))
    }
}

/// Takes the streams of one leg to its circuit.
#[derive(Clone, Debug)]
pub struct LegStreams(mpsc::Sender<Carried>);

impl LegStreams {
    /// A stream came, of this number on the circuit; `first` came with its head. False if the circuit is over. Cancel-safe.
    pub async fn hand_over(&self, stream: u64, send: PathSend, recv: PathRecv, first: Bytes) -> bool {
        match (send, recv) {
            (PathSend::Plain(send), PathRecv::Plain(recv)) => self.0.send((stream, send, recv, first)).await.is_ok(),
            _ => false,
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
        let (send, recv) = Self::handshake(&mut ends, leg.control).await?;
        let place = seal::Circuit { id, initiator: me, responder: wanted };
        Ok(Self::start(place, true, leg.link, leg.number, ends, (send, recv), leg.streams))
    }

    /// Accepts a circuit from whoever proves to be at its other end. Takes at most [`limits::HANDSHAKE`].
    ///
    /// # Errors
    /// [`CircuitError`]; the leg is given up.
    pub async fn accept_one(config: &EndsConfig, id: CircuitId, me: NodeId, leg: Leg) -> Result<Arc<Self>, CircuitError> {
        let mut ends = Ends::accept(config)?;
        let (send, recv) = Self::handshake(&mut ends, leg.control).await?;
        let initiator = ends.peer().ok_or(EndsError::CutOff)?;
        let place = seal::Circuit { id, initiator, responder: me };
        Ok(Self::start(place, false, leg.link, leg.number, ends, (send, recv), leg.streams))
    }

    /// Until each has judged the other: who began has no other way to know that it was accepted.
    async fn handshake(
        ends: &mut Ends,
        (mut send, mut recv): (PlainSend, PlainRecv),
    ) -> Result<(PlainSend, PlainRecv), CircuitError> {
        let shake = async {
            let (mut heard, mut welcomed) = (Vec::new(), false);
            loop {
                if ends.peer().is_some() && !std::mem::replace(&mut welcomed, true) {
                    ends.say(&[WELCOME])?;
                }
                let mut out = Vec::new();
                ends.pull(&mut out);
                if !out.is_empty() {
                    send.write(out.into()).await?;
                }
                if welcomed && heard.first() == Some(&WELCOME) {
                    return Ok(());
                }
                let came = recv.read().await?.ok_or(EndsError::CutOff)?;
                let pushed = ends.push(&came, &mut heard);
                if pushed.is_err() {
                    // The other end is told why.
                    let mut alert = Vec::new();
                    ends.pull(&mut alert);
                    let _ = send.write(alert.into()).await;
                }
                pushed?;
            }
        };
        match timeout(limits::HANDSHAKE, shake).await {
            Ok(Ok(())) => Ok((send, recv)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CircuitError::TimedOut),
        }
    }

    fn start(
        place: seal::Circuit,
        began: bool,
        leg: Direct,
        number: u64,
        ends: Ends,
        (send, recv): (PlainSend, PlainRecv),
        streams: mpsc::Receiver<Carried>,
    ) -> Arc<Self> {
        let (words, said) = mpsc::unbounded_channel();
        let circuit = Arc::new(Self {
            place,
            began,
            leg,
            number,
            ends: Mutex::new(ends),
            words,
            next: AtomicU64::new(0),
            numbers: Mutex::default(),
            lanes: Lanes::new(began),
            lost: watch::Sender::new(None),
            runtime: Handle::current(),
        });
        circuit.spawn(listen(Arc::downgrade(&circuit), recv, circuit.lost.subscribe()));
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

    #[cfg(test)]
    pub(super) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    pub(super) fn leg(&self) -> &Direct {
        &self.leg
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Ends when the circuit does. Keeps nothing of it.
    pub(super) fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lost = self.lost.subscribe();
        async move { drop(lost.wait_for(Option::is_some).await) }
    }

    pub(super) async fn open(self: &Arc<Self>) -> Result<(PathSend, PathRecv), PathError> {
        self.alive()?;
        self.lanes.open(self).await
    }

    pub(super) async fn accept(self: &Arc<Self>) -> Result<(PathSend, PathRecv), PathError> {
        self.alive()?;
        self.lanes.accept(self).await
    }

    /// A relayed stream of this end's, of a number of its own.
    pub(super) fn relayed(self: &Arc<Self>, (send, recv): (PlainSend, PlainRecv)) -> Result<Relayed, PathError> {
        let number = self.next.fetch_add(1, Relaxed);
        let stream = 2 * number + u64::from(!self.began);
        let mut head = vec![Kind::CircuitStream as u8];
        varint::put(&mut head, self.number);
        varint::put(&mut head, stream);
        self.halves(stream, send, recv, head, None)
    }

    /// A relayed stream that came over the leg.
    pub(super) fn carried(self: &Arc<Self>, (stream, send, recv, first): Carried) -> Result<Relayed, PathError> {
        let theirs = stream % 2 == u64::from(self.began);
        // Anybody on the way can say a number: it is accepted when a record has verified.
        if !theirs || self.numbers().check(stream / 2).is_err() {
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
        let unproved = first.is_some().then_some(stream / 2);
        opener.push(&first.unwrap_or_default());
        let circuit = Arc::downgrade(self);
        Ok((SealedSend::new(send, sealer, circuit.clone(), head), SealedRecv::new(recv, opener, circuit, unproved)))
    }

    /// A record of the peer's stream of this number has verified.
    pub(super) fn accepted(&self, number: u64) -> Result<(), PathError> {
        let accepted = self.numbers().accept(number);
        accepted.map_err(|error| PathError::Lost(self.broken(&error.to_string())))
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
                let _ = ends.say(&[CLOSE, code as u8]);
                ends.pull(&mut out);
                let _ = self.words.send(out.into());
            }
            first
        });
        told.unwrap_or(why)
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

/// Hears what the other end says, until the circuit is over.
async fn listen(circuit: std::sync::Weak<Circuit>, mut recv: PlainRecv, mut lost: watch::Receiver<Option<LostReason>>) {
    let mut heard = Vec::new();
    loop {
        let came = tokio::select! {
            biased;
            _ = lost.wait_for(Option::is_some) => return,
            came = recv.read() => came,
        };
        let Some(circuit) = circuit.upgrade() else { return };
        let ended = match came {
            Ok(Some(bytes)) => {
                circuit.ends().push(&bytes, &mut heard).err().map(|error| LostReason::Transport(error.to_string()))
            }
            Ok(None) => Some(LostReason::Transport("the circuit was cut off".into())),
            Err(PathError::Lost(reason)) => Some(reason),
            Err(error) => Some(LostReason::Transport(error.to_string())),
        };
        if let Some(reason) = ended {
            circuit.end(reason, CloseCode::Goodbye);
            return;
        }
        if let Some(at) = heard.iter().position(|word| *word == CLOSE) {
            let Some(code) = heard.get(at + 1) else { continue };
            let reason =
                CloseCode::from_number(u64::from(*code)).map_or(LostReason::ClosedUnknown(u64::from(*code)), LostReason::Closed);
            circuit.end(reason, CloseCode::Goodbye);
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
        self.close(CloseCode::Goodbye);
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
