//! Calls to a service, whoever provides it: several nodes may, and come and go. Who they are is heard from directories; this holds
//! sessions with them, and goes on to the next when one cannot be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{AbortHandle as Ears, SelectAll, abortable};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::call::{Call, Opened, Progress};
use super::error::{CallError, Outcome};
use super::item::Charge;
use crate::id::NodeId;
use crate::proto::call::Shape;
use crate::proto::limits::Limits;
use crate::session::{Dialler, Session, SessionState, StreamRecv};
pub use crate::state::pick::Pick;
use crate::state::pick::{Candidate, Picker};

/// Most providers with which sessions are held at once. Of more, these are used.
const HELD: usize = 16;
/// A call that may be made again is made elsewhere when its provider is away for so long. One that only changes its network
/// is back sooner, and answers.
const AWAY: Duration = Duration::from_secs(1);

/// What a directory says of the providers of one service.
pub(crate) enum Heard {
    /// It can be called, there.
    Online(NodeId, Vec<SocketAddr>),
    /// It cannot be called now.
    Offline(NodeId),
    /// It provides the service no more.
    Gone(NodeId),
    /// All that were there at first have been named.
    Current,
}

/// A directory, as far as it is about one service. The first ones of several are preferred.
pub(crate) type Source = Pin<Box<dyn Stream<Item = Heard> + Send>>;

/// Something has changed in where a session stands.
type Changes = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// The nodes that provide one service. Clones share it: the sessions with them are held until the last one is dropped.
///
/// A call goes to one that is online, by its directory and by its session; if there is none it waits, within its deadline, for
/// one to come ([`Call::fail_fast`] does not). A provider that dies is left out at once. What was not sent goes to the next one; and so does what was sent
/// but not answered, if the call is marked as [idempotent](Call::idempotent): two providers may then both have acted on it, since
/// neither knows of the other. A status is an answer and is returned, whatever its code.
#[derive(Clone)]
pub struct Providers(Arc<Inner>);

struct Inner {
    name: String,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    known: Mutex<Known>,
    /// Told whenever there may be somebody else to call.
    changed: watch::Sender<u64>,
    dialler: Arc<dyn Dialler>,
}

struct Known {
    picker: Picker,
    there: BTreeMap<NodeId, There>,
    /// Sources that have not yet named all they know.
    silent: usize,
}

/// A provider.
struct There {
    session: Session,
    /// Listens to what becomes of the session.
    ears: Ears,
    /// The sources by which it is online, and those by which it is not.
    online: BTreeSet<usize>,
    offline: BTreeSet<usize>,
}

impl Providers {
    pub(crate) fn new(name: String, sources: Vec<Source>, dialler: Arc<dyn Dialler>) -> Self {
        let known = Known { picker: Picker::default(), there: BTreeMap::new(), silent: sources.len() };
        let shared = Arc::new(Shared { known: Mutex::new(known), changed: watch::Sender::new(0), dialler });
        let task = shared.dialler.spawn(Box::pin(listen(shared.clone(), sources))).abort_handle();
        Self(Arc::new(Inner { name, shared, task }))
    }

    /// How one of several is chosen: in turn, unless this says otherwise. Begins anew for all clones.
    pub fn pick(self, how: Pick) -> Self {
        self.known().picker = Picker::new(how);
        self
    }

    /// The service.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Those that can be called now.
    pub fn reachable(&self) -> Vec<NodeId> {
        let known = self.known();
        known.candidates().into_iter().map(|candidate| candidate.id).collect()
    }

    /// Calls a unary method of the service (its name alone) at one of its providers, at most 30 s; see [`Providers::request`].
    ///
    /// # Errors
    /// [`CallError`], which says whether a provider may have acted on the call.
    pub async fn call<Req, Res>(&self, method: &str, request: &Req) -> Result<Res, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        self.request(method).unary(request).await
    }

    /// Begins a call of any shape to one of the providers.
    ///
    /// ```no_run
    /// # async fn example(cameras: voltmesh::service::Providers) -> Result<(), voltmesh::CallError> {
    /// let picture: Vec<u8> = cameras.request("snap").idempotent().unary(&"front door").await?;
    /// # Ok(()) }
    /// ```
    pub fn request(&self, method: &str) -> Call<'_> {
        Call::to_one_of(self, format!("{}/{method}", self.0.name))
    }

    pub(super) fn limits(&self) -> &Limits {
        self.0.shared.dialler.limits()
    }

    /// Makes a unary call, at one after the other.
    pub(super) async fn unary(
        &self,
        call: &Call<'_>,
        body: Bytes,
        deadline: Instant,
        progress: &Progress,
    ) -> Result<(Bytes, Charge), CallError> {
        let mut round = Round::new(self, call);
        let mut before = None;
        loop {
            let (id, session) = match round.next().await {
                Ok(next) => next,
                // That no other one is there says nothing of those before.
                Err(error) => return Err(before.unwrap_or(error)),
            };
            let attempt = call.attempt(&session, true, body.clone(), deadline, progress);
            let ended = tokio::select! {
                biased;
                ended = attempt => ended,
                () = self.away(id), if call.is_idempotent() => {
                    Err(CallError::OutcomeUnknown("the provider went away".into()))
                }
            };
            match ended {
                Err(error) if error.outcome() == Outcome::NotSent => {}
                Err(error) if error.outcome() == Outcome::Unknown && call.is_idempotent() => before = Some(error),
                ended => {
                    self.known().picker.answered(id);
                    return ended;
                }
            }
            self.known().picker.failed(id, Instant::now().into_std());
        }
    }

    /// Begins a call that streams, at the first one that takes it.
    pub(super) async fn begin(
        &self,
        call: &Call<'_>,
        shape: Shape,
        body: Option<Bytes>,
        deadline: Option<Instant>,
        progress: &Progress,
    ) -> Result<(Opened, StreamRecv), CallError> {
        let mut round = Round::new(self, call);
        loop {
            let (id, session) = round.next().await?;
            match call.begin(&session, true, shape, body.clone(), deadline, progress).await {
                Err(error) if error.outcome() == Outcome::NotSent => {
                    self.known().picker.failed(id, Instant::now().into_std());
                }
                begun => return begun,
            }
        }
    }

    /// Waits until a provider is away, for good as far as one can tell.
    async fn away(&self, id: NodeId) {
        let mut changed = self.0.shared.changed.subscribe();
        let is_here = || self.known().is_here(id);
        loop {
            while is_here() {
                let _ = changed.changed().await;
            }
            tokio::select! {
                biased;
                () = sleep(AWAY) => return,
                () = async { while !is_here() { let _ = changed.changed().await; } } => {}
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.shared.known()
    }
}

/// Those a call has tried since somebody came or went.
struct Round<'a> {
    providers: &'a Providers,
    call: &'a Call<'a>,
    changed: watch::Receiver<u64>,
    order: Option<std::vec::IntoIter<NodeId>>,
}

impl<'a> Round<'a> {
    fn new(providers: &'a Providers, call: &'a Call<'a>) -> Self {
        Self { providers, call, changed: providers.0.shared.changed.subscribe(), order: None }
    }

    /// The next one to try; waits for one to come when all have been tried.
    async fn next(&mut self) -> Result<(NodeId, Session), CallError> {
        loop {
            if let Some(order) = &mut self.order {
                for id in order.by_ref() {
                    let known = self.providers.known();
                    if known.candidates().iter().any(|candidate| candidate.id == id) {
                        return Ok((id, known.there[&id].session.clone()));
                    }
                }
                let name = self.providers.name();
                if self.providers.known().is_unknown() {
                    return Err(CallError::NotSent(format!("nobody provides {name:?} there, or shows it to this node")));
                }
                if self.call.fails_fast() && self.providers.known().silent == 0 {
                    return Err(CallError::NotSent(format!("no provider of {name:?} can be reached")));
                }
                let stopped = |_| CallError::NotSent("the node has stopped".into());
                self.changed.changed().await.map_err(stopped)?;
            }
            self.changed.mark_unchanged();
            let mut known = self.providers.known();
            let candidates = known.candidates();
            let order = known.picker.order(candidates, self.call.affinity_key(), Instant::now().into_std());
            self.order = Some(order.into_iter());
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while it is held")
    }

    /// A source has said this. What becomes of a session that is new here is to be listened to.
    fn heard(&self, source: usize, heard: Heard) -> Option<Changes> {
        let mut known = self.known();
        let mut new = None;
        match heard {
            Heard::Current => known.silent = known.silent.saturating_sub(1),
            Heard::Online(id, addresses) => new = known.online(source, id, &addresses, &*self.dialler),
            Heard::Offline(id) => known.there.get_mut(&id).into_iter().for_each(|there| there.is_offline(source)),
            Heard::Gone(id) => {
                if known.gone(source, id) {
                    self.dialler.release(id);
                }
            }
        }
        drop(known);
        self.changed.send_modify(|changes| *changes += 1);
        new
    }
}

impl Known {
    fn online(&mut self, source: usize, id: NodeId, addresses: &[SocketAddr], dialler: &dyn Dialler) -> Option<Changes> {
        if let Some(there) = self.there.get_mut(&id) {
            there.online.insert(source);
            there.offline.remove(&source);
            dialler.found(id, addresses);
            // It is back: what failed before says nothing of it now.
            self.picker.answered(id);
            return None;
        }
        if self.there.len() >= HELD {
            return None;
        }
        let session = dialler.hold(id, addresses)?;
        let (changes, ears) = abortable(session.changes());
        self.there.insert(id, There { session, ears, online: [source].into(), offline: BTreeSet::new() });
        Some(Box::pin(changes))
    }

    /// Says whether nobody names it any more.
    fn gone(&mut self, source: usize, id: NodeId) -> bool {
        let Some(there) = self.there.get_mut(&id) else { return false };
        there.online.remove(&source);
        there.offline.remove(&source);
        let gone = there.online.is_empty() && there.offline.is_empty();
        if gone {
            self.there.remove(&id);
        }
        gone
    }

    /// Whether it is online by any source, and by its session.
    fn is_here(&self, id: NodeId) -> bool {
        self.there.get(&id).is_some_and(|there| !there.online.is_empty() && there.session.state() == SessionState::Connected)
    }

    /// Whether every source has said that it knows nobody.
    fn is_unknown(&self) -> bool {
        self.silent == 0 && self.there.is_empty()
    }

    /// Those that can be called now, by the first source that has any of them online.
    fn candidates(&self) -> Vec<Candidate> {
        let first = self.there.values().filter_map(|there| there.online.first()).min();
        let here = self.there.iter().filter(|(_, there)| there.online.first().is_some_and(|source| Some(source) == first));
        let attached = here.filter(|(_, there)| there.session.state() == SessionState::Connected);
        attached.map(|(id, there)| Candidate { id: *id, rtt: there.rtt() }).collect()
    }
}

impl There {
    fn is_offline(&mut self, source: usize) {
        self.online.remove(&source);
        self.offline.insert(source);
    }

    fn rtt(&self) -> Option<Duration> {
        self.session.owner().attached().map(|attached| attached.link().rtt())
    }
}

impl Drop for There {
    fn drop(&mut self) {
        self.ears.abort();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let known = self.known.get_mut().map(|known| std::mem::take(&mut known.there)).unwrap_or_default();
        known.into_keys().for_each(|id| self.dialler.release(id));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Providers").field("name", &self.0.name).field("reachable", &self.reachable()).finish_non_exhaustive()
    }
}

/// Hears from the sources who is there, and from the sessions which of them can be reached.
async fn listen(shared: Arc<Shared>, sources: Vec<Source>) {
    let mut sources: SelectAll<_> =
        sources.into_iter().enumerate().map(|(at, source)| source.map(move |heard| (at, heard)).boxed()).collect();
    let mut sessions: SelectAll<Changes> = SelectAll::new();
    loop {
        tokio::select! {
            biased;
            Some((source, heard)) = sources.next() => sessions.extend(shared.heard(source, heard)),
            Some(()) = sessions.next() => shared.changed.send_modify(|changes| *changes += 1),
            else => return,
        }
    }
}
