//! The lanes of a circuit, all together: which of them takes a new path stream, what relayed streams that come are for, and the tasks that
//! send and hear what is on them. All of them end with the circuit, and none keeps it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::circuit::{Carried, Circuit, Relayed};
use super::halves::{CircuitRecv, CircuitSend};
use super::lane::{Broken, Head, Table};
use super::sealed::{SealedRecv, SealedSend};
use super::{LostReason, PathError, PathRecv, PathSend};
use crate::proto::limits;
use crate::seal::{Numbers, RECORDS};
use crate::state::id_map::IdMap;

/// With fewer records left than this in either direction, a lane takes no new streams.
const SPARE_RECORDS: u32 = 1 << 16;
/// A further lane is opened when each there is has so many live streams.
const BUSY: usize = 48;
/// How long a circuit may outlive one of its lanes.
const LAST_WORD: Duration = Duration::from_secs(1);

/// One lane.
pub(super) struct Lane {
    /// Twice its number, and one more if the end that accepted the circuit has opened it.
    id: u64,
    table: Mutex<Table<Box<SealedRecv>>>,
    /// As the table has it; if it takes no new streams, more than any has.
    load: AtomicUsize,
    permits: Arc<Semaphore>,
}

/// All lanes of a circuit.
pub(super) struct Lanes {
    began: bool,
    mine: Mutex<Mine>,
    theirs: Mutex<Theirs>,
    /// For path streams opened here.
    permits: Arc<Semaphore>,
    /// Path streams that the peer has opened. No more than may be live on all of its lanes.
    opened: mpsc::UnboundedSender<(Arc<Lane>, u64)>,
    waiting: tokio::sync::Mutex<mpsc::UnboundedReceiver<(Arc<Lane>, u64)>>,
    spare: AtomicU32,
    /// What the peer may still send before it is let in.
    early: Early,
}

/// What has come of a peer that is not let in yet: it has its control stream to say hello on, and no need of more.
#[derive(Default)]
struct Early {
    over: AtomicBool,
    streams: AtomicUsize,
    bytes: AtomicUsize,
}

impl Early {
    fn came(&self, streams: usize, bytes: usize) -> Result<(), Broken> {
        if self.over.load(Relaxed) {
            return Ok(());
        }
        let streams = self.streams.fetch_add(streams, Relaxed) + streams;
        let bytes = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        match streams > limits::STRANGER_STREAMS as usize || bytes > limits::STRANGER_WINDOW_BYTES as usize {
            true => Err(Broken::Early),
            false => Ok(()),
        }
    }
}

#[derive(Default)]
struct Mine {
    next: u64,
    live: Vec<Arc<Lane>>,
    over: bool,
}

#[derive(Default)]
struct Theirs {
    /// Lanes that have come.
    numbers: Numbers,
    live: IdMap<Arc<Lane>>,
    over: bool,
}

impl Lane {
    fn new(id: u64, opens: bool, permits: &Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { id, table: Mutex::new(Table::new(opens)), load: AtomicUsize::new(0), permits: permits.clone() })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Does something with its table, and then wakes whoever is concerned.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Table<Box<SealedRecv>>) -> T) -> T {
        let (done, (woken, freed)) = {
            let mut table = self.table.lock().expect("nothing panics while it is held");
            let done = act(&mut table);
            self.load.store(if table.is_retired() { usize::MAX } else { table.live() }, Relaxed);
            (done, table.news())
        };
        woken.into_iter().for_each(std::task::Waker::wake);
        if freed > 0 {
            self.permits.add_permits(freed);
        }
        done
    }

    fn open(&self) -> Option<u64> {
        self.with(|table| (!table.is_retired() && table.live() < limits::LANE_STREAMS).then(|| table.open()))
    }
}

impl Lanes {
    pub(super) fn new(began: bool) -> Arc<Self> {
        let (opened, waiting) = mpsc::unbounded_channel();
        Arc::new(Self {
            began,
            mine: Mutex::default(),
            theirs: Mutex::default(),
            permits: Arc::new(Semaphore::new(limits::STREAMS as usize)),
            opened,
            waiting: tokio::sync::Mutex::new(waiting),
            spare: AtomicU32::new(SPARE_RECORDS),
            early: Early::default(),
        })
    }

    /// The peer is let in: the bounds of a stranger are lifted.
    pub(super) fn permit(&self) {
        self.early.over.store(true, Relaxed);
    }

    /// Opens a path stream. Waits while too many are live. Cancel-safe.
    pub(super) async fn open(self: &Arc<Self>, circuit: &Arc<Circuit>) -> Result<(PathSend, PathRecv), PathError> {
        let Ok(permit) = self.permits.acquire().await else { return Err(gone(circuit)) };
        permit.forget();
        self.begin_on(circuit)
    }

    /// The same if nothing has to be waited for.
    pub(super) fn open_now(self: &Arc<Self>, circuit: &Arc<Circuit>) -> Option<Result<(PathSend, PathRecv), PathError>> {
        self.permits.try_acquire().ok()?.forget();
        Some(self.begin_on(circuit))
    }

    fn begin_on(self: &Arc<Self>, circuit: &Arc<Circuit>) -> Result<(PathSend, PathRecv), PathError> {
        let (lane, number) = self.begin(circuit)?;
        Ok(halves(lane, number, circuit))
    }

    /// On the lane with the fewest streams. A further one is opened when all are busy: fewer carry more in each record.
    fn begin(self: &Arc<Self>, circuit: &Arc<Circuit>) -> Result<(Arc<Lane>, u64), PathError> {
        let mut mine = self.mine();
        if mine.over {
            return Err(gone(circuit));
        }
        loop {
            let loads = mine.live.iter().map(|lane| (lane.load.load(Relaxed), lane)).filter(|(load, _)| *load != usize::MAX);
            let (count, least) = (loads.clone().count(), loads.min_by_key(|(load, _)| *load));
            if least.is_none_or(|(load, _)| load >= BUSY) && count < limits::LANES && mine.live.len() < limits::LANES_LIVE {
                self.open_lane(&mut mine, circuit);
                continue;
            }
            // There are fewer live streams than all lanes may have, so one has room; unless none that was retired ends.
            let roomy = least.filter(|(load, _)| *load < limits::LANE_STREAMS).map(|(_, lane)| lane.clone());
            let Some(lane) = roomy else { return Err(PathError::Lost(circuit.broken("its lanes do not end"))) };
            if let Some(number) = lane.open() {
                return Ok((lane, number));
            }
        }
    }

    fn open_lane(self: &Arc<Self>, mine: &mut Mine, circuit: &Arc<Circuit>) {
        let lane = Lane::new(2 * mine.next + u64::from(!self.began), true, &self.permits);
        let head = Head::Lane(mine.next).bytes();
        mine.next += 1;
        mine.live.push(lane.clone());
        let (leg, over, weak, lanes) = (circuit.leg().clone(), circuit.over(), Arc::downgrade(circuit), self.clone());
        circuit.spawn(async move {
            let carried = async {
                let halves = leg.open().await?;
                let opened = weak.upgrade().map(|circuit| circuit.relayed(halves));
                let (mut send, recv) = opened.unwrap_or(Err(PathError::Closed))?;
                send.begin(&head)?;
                lanes.carry(&lane, (send, recv)).await
            };
            end_with(over, carried, &weak).await;
            lanes.mine().live.retain(|other| !Arc::ptr_eq(other, &lane));
            // With the circuit all lanes are given up; not those that are in no list any more.
            lane.with(Table::give_up);
        });
    }

    /// The next path stream the peer has opened. Cancel-safe.
    pub(super) async fn accept(&self, circuit: &Arc<Circuit>) -> Result<(PathSend, PathRecv), PathError> {
        let (lane, number) = {
            let mut waiting = self.waiting.lock().await;
            tokio::select! {
                biased;
                () = circuit.over() => return Err(gone(circuit)),
                Some(opened) = waiting.recv() => opened,
            }
        };
        Ok(accepted(lane, number, circuit))
    }

    /// The same if one waits already.
    pub(super) fn accept_now(&self, circuit: &Arc<Circuit>) -> Option<(PathSend, PathRecv)> {
        let (lane, number) = self.waiting.try_lock().ok()?.try_recv().ok()?;
        Some(accepted(lane, number, circuit))
    }

    /// Takes in relayed streams until the circuit is over.
    pub(super) async fn take_in(self: Arc<Self>, circuit: Weak<Circuit>, mut streams: mpsc::Receiver<Carried>) {
        let Some(over) = circuit.upgrade().map(|circuit| circuit.over()) else { return };
        let sorted = async {
            let mut heads = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    Some(_) = heads.join_next() => {}
                    Some(carried) = streams.recv() => {
                        let halves = circuit.upgrade().map(|circuit| {
                            self.early.came(1, 0).map_err(|broken| PathError::Lost(circuit.broken(&broken.to_string())))?;
                            circuit.carried(carried)
                        });
                        // More than these are given up, as if there were no credit for them.
                        if let Some(Ok(halves)) = halves && heads.len() < limits::STREAMS as usize {
                            heads.spawn(self.clone().sort(circuit.clone(), halves));
                        }
                    }
                    else => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            biased;
            () = over => {}
            () = sorted => {}
        }
        self.give_up();
    }

    /// Learns what a relayed stream is for.
    async fn sort(self: Arc<Self>, circuit: Weak<Circuit>, (send, mut recv): Relayed) {
        let head = match recv.read().await {
            Ok(Some(record)) => Head::read(&record),
            Ok(None) => Err(Broken::Cut),
            // It came to nothing.
            Err(_) => return,
        };
        let sorted = match head {
            Ok(Head::Lane(number)) => self.lane_came(&circuit, number, (send, recv)),
            // The other direction of it carries nothing: it is given up when it is dropped.
            Ok(Head::Part { lane, stream }) => self.part_came(lane, stream, recv),
            Err(broken) => Err(broken),
        };
        if let (Err(broken), Some(circuit)) = (sorted, circuit.upgrade()) {
            circuit.broken(&broken.to_string());
        }
    }

    fn lane_came(self: &Arc<Self>, circuit: &Weak<Circuit>, number: u64, halves: Relayed) -> Result<(), Broken> {
        let lane = {
            let mut theirs = self.theirs();
            let lane = self.their_lane(&mut theirs, number)?.ok_or(Broken::Lane(number))?;
            theirs.numbers.accept(number).map_err(|_| Broken::Lane(number))?;
            lane
        };
        let Some(circuit) = circuit.upgrade() else { return Ok(()) };
        let (over, weak, lanes) = (circuit.over(), Arc::downgrade(&circuit), self.clone());
        circuit.spawn(async move {
            let carried = async { lanes.carry(&lane, halves).await };
            end_with(over, carried, &weak).await;
        });
        Ok(())
    }

    /// What carries all of one direction of a path stream may overtake what opens that, and its whole lane.
    fn part_came(&self, id: u64, number: u64, recv: SealedRecv) -> Result<(), Broken> {
        let lane = match id % 2 == u64::from(!self.began) {
            true => self.my_lane(id)?,
            false => self.their_lane(&mut self.theirs(), id / 2)?,
        };
        let Some(lane) = lane else { return Ok(()) };
        let unwanted = lane.with(|table| table.part(number, Box::new(recv)));
        let opened = lane.with(Table::opened);
        opened.into_iter().for_each(|number| drop(self.opened.send((lane.clone(), number))));
        unwanted.map(drop)
    }

    /// This end's lane of this id; `None` if it is gone.
    fn my_lane(&self, id: u64) -> Result<Option<Arc<Lane>>, Broken> {
        let mine = self.mine();
        if id / 2 >= mine.next { Err(Broken::Lane(id)) } else { Ok(mine.live.iter().find(|lane| lane.id == id).cloned()) }
    }

    /// The peer's lane of this number, made if it was not there yet; `None` if it is gone.
    fn their_lane(&self, theirs: &mut Theirs, number: u64) -> Result<Option<Arc<Lane>>, Broken> {
        if let Some(lane) = theirs.live.get(&number) {
            return Ok(Some(lane.clone()));
        }
        if theirs.over || theirs.numbers.check(number).is_err() {
            return Ok(None);
        }
        theirs.live.retain(|_, lane| !lane.with(|table| table.is_gone()));
        let live = theirs.live.values().filter(|lane| !lane.with(|table| table.has_ended())).count();
        if live >= limits::LANES_LIVE {
            return Err(Broken::Lane(number));
        }
        let lane = Lane::new(2 * number + u64::from(self.began), false, &self.permits);
        theirs.live.insert(number, lane.clone());
        Ok(Some(lane))
    }

    /// Sends and hears what is on a lane, until both directions have ended.
    async fn carry(&self, lane: &Arc<Lane>, (send, recv): Relayed) -> Result<(), Fault> {
        tokio::try_join!(self.say(lane, send), self.hear(lane, recv)).map(drop)
    }

    async fn say(&self, lane: &Lane, mut send: SealedSend) -> Result<(), Fault> {
        loop {
            let piece = poll_fn(|cx| lane.with(|table| table.take(cx.waker())).map_or(Poll::Pending, Poll::Ready)).await;
            let Some(piece) = piece else { return Ok(send.finish()?) };
            let length = piece.len();
            send.write(piece.into()).await?;
            let near = send.left() < self.spare.load(Relaxed);
            lane.with(|table| {
                table.handed(length);
                if near {
                    table.retire();
                }
            });
        }
    }

    async fn hear(&self, lane: &Arc<Lane>, mut recv: SealedRecv) -> Result<(), Fault> {
        let mut left = RECORDS;
        while let Some(record) = recv.read().await? {
            left -= 1;
            self.early.came(0, record.len())?;
            let near = left < self.spare.load(Relaxed);
            let (read, opened) = lane.with(|table| {
                if near {
                    table.retire();
                }
                (table.record(&record), table.opened())
            });
            opened.into_iter().for_each(|number| drop(self.opened.send((lane.clone(), number))));
            read?;
        }
        Ok(lane.with(Table::end)?)
    }

    /// The circuit is over.
    fn give_up(&self) {
        self.permits.close();
        let mine = {
            let mut mine = self.mine();
            mine.over = true;
            std::mem::take(&mut mine.live)
        };
        let theirs = {
            let mut theirs = self.theirs();
            theirs.over = true;
            std::mem::take(&mut theirs.live)
        };
        mine.iter().chain(theirs.values()).for_each(|lane| lane.with(Table::give_up));
    }

    /// How many lanes this end has.
    #[cfg(test)]
    pub(super) fn of_this_end(&self) -> usize {
        self.mine().live.len()
    }

    /// How many it has had.
    #[cfg(test)]
    pub(super) fn opened_for_test(&self) -> u64 {
        self.mine().next
    }

    /// Whether something on them is to be sent still.
    #[cfg(test)]
    pub(super) fn waits(&self) -> bool {
        self.mine().live.iter().any(|lane| lane.with(|table| table.waits()))
    }

    /// With how few records left they are to be replaced.
    #[cfg(test)]
    pub(super) fn spare_for_test(&self, records: u32) {
        self.spare.store(records, Relaxed);
    }

    fn mine(&self) -> MutexGuard<'_, Mine> {
        self.mine.lock().expect("nothing panics while it is held")
    }

    fn theirs(&self) -> MutexGuard<'_, Theirs> {
        self.theirs.lock().expect("nothing panics while it is held")
    }
}

/// Why a lane is no more.
enum Fault {
    Path(PathError),
    Broken(Broken),
}

impl From<PathError> for Fault {
    fn from(error: PathError) -> Self {
        Fault::Path(error)
    }
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Fault::Broken(broken)
    }
}

/// Carries a lane until the circuit is over. A lane that fails takes the circuit with it: nobody can say what was on it.
async fn end_with(over: impl Future<Output = ()>, carried: impl Future<Output = Result<(), Fault>>, circuit: &Weak<Circuit>) {
    let mut over = pin!(over);
    let carried = tokio::select! {
        biased;
        () = &mut over => return,
        carried = carried => carried,
    };
    let why = match carried {
        // Then the circuit is over, or will be in a moment.
        Ok(()) | Err(Fault::Path(PathError::Lost(_))) => return,
        Err(Fault::Path(_)) => {
            // When the other end closes the circuit, its lanes may be gone before its word comes.
            if timeout(LAST_WORD, over).await.is_ok() {
                return;
            }
            Broken::CutOff
        }
        Err(Fault::Broken(broken)) => broken,
    };
    if let Some(circuit) = circuit.upgrade() {
        circuit.broken(&why.to_string());
    }
}

fn accepted(lane: Arc<Lane>, number: u64, circuit: &Arc<Circuit>) -> (PathSend, PathRecv) {
    lane.with(|table| table.accepted(number));
    halves(lane, number, circuit)
}

fn halves(lane: Arc<Lane>, number: u64, circuit: &Arc<Circuit>) -> (PathSend, PathRecv) {
    let send = CircuitSend::new(lane.clone(), number, circuit.clone());
    let recv = CircuitRecv::new(lane, number, circuit.clone());
    (PathSend::Sealed(Box::new(send)), PathRecv::Sealed(Box::new(recv)))
}

/// How the circuit has ended.
pub(super) fn gone(circuit: &Circuit) -> PathError {
    PathError::Lost(circuit.lost().unwrap_or(LostReason::Here))
}
