//! The callee's half: reads the header of a call, asks whether the caller may, finds the method, and sees to it that every call
//! gets an answer: a body and OK, or the status that says why not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Handle, Runtime};
use tokio::time::Instant;

use super::context::{Context, Parts};
use super::dedupe::{self, Dedupe};
use super::describe;
use super::directory::{self, Directory, Peers};
use super::item::{Charge, Items};
use super::method::Incoming;
use super::rate::{self, Rates};
use super::registry::{self, Lookup, Registry};
use super::reply::{self, Reply};
use super::run::Place;
use crate::id::NodeId;
use crate::policy::{Action, PolicyHandle};
use crate::proto::call::{Header, Shape};
use crate::proto::codec;
use crate::proto::frame::Frames;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::session::{Attached, Core, Limit, Serving, Share, StreamRecv, StreamSend};
use crate::state::replay;

/// Serves the calls of all peers, and keeps the directory.
pub(crate) struct Server {
    registry: Registry,
    directory: Directory,
    peers: Peers,
    shared: Arc<Shared>,
}

/// What all calls share.
pub(crate) struct Shared {
    /// The runtime of whoever started the node, if handlers can be moved there.
    runtime: Option<Handle>,
    own: OnceLock<Offload>,
    deadline_max: Duration,
    policy: PolicyHandle,
    pub(super) dedupe: Dedupe,
    rates: Rates,
    calls: AtomicU64,
    slow_polls: AtomicU64,
    panics: AtomicU64,
    denied: AtomicU64,
    rated: AtomicU64,
}

/// What bounds calls, besides what bounds messages.
#[derive(Debug)]
pub(crate) struct CallBounds {
    /// Longest deadline of a unary call.
    pub deadline_max: Duration,
    /// How often callers may call.
    pub rates: Rates,
    /// Services that one peer registers.
    pub registrations: usize,
}

/// A runtime made for handlers. Ends without waiting: its owner may be asynchronous itself.
struct Offload(Option<Runtime>);

impl Drop for Offload {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a server counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounts {
    /// Calls that came in.
    pub calls: u64,
    /// Polls of a handler that held up the network for more than a millisecond.
    pub slow_polls: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Calls that policy denied.
    pub denied: u64,
    /// Calls that were turned away by a rate.
    pub rated: u64,
    /// Calls with an idempotency key, and what came of those made again.
    pub replay: replay::Counts,
}

impl Server {
    /// Serves what is registered. `runtime`: where handlers go that are moved off the network's thread; without one, threads
    /// are made when they are first needed. `network`: the network's own.
    pub fn new(
        own: NodeId,
        registry: Registry,
        policy: PolicyHandle,
        (runtime, network): (Option<Handle>, Handle),
        bounds: CallBounds,
    ) -> Self {
        let CallBounds { deadline_max, rates, registrations } = bounds;
        let directory = Directory::new(own, registry.clone(), network, registrations);
        let counter = AtomicU64::default;
        let (calls, slow_polls, panics, denied, rated) = (counter(), counter(), counter(), counter(), counter());
        let (own, dedupe) = (OnceLock::new(), Dedupe::default());
        let shared = Shared { runtime, own, deadline_max, policy, dedupe, rates, calls, slow_polls, panics, denied, rated };
        Self { registry, directory, peers: Peers::default(), shared: Arc::new(shared) }
    }

    /// What is served here.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What is listed here.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Which peers are here.
    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// What was counted so far.
    pub fn counts(&self) -> ServerCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { dedupe, calls, slow_polls, panics, denied, rated, .. } = &*self.shared;
        ServerCounts {
            calls: read(calls),
            slow_polls: read(slow_polls),
            panics: read(panics),
            denied: read(denied),
            rated: read(rated),
            replay: dedupe.counts(),
        }
    }
}

impl Shared {
    /// Where handlers run that must not hold up the network.
    pub fn offload(&self) -> Handle {
        if let Some(runtime) = &self.runtime {
            return runtime.clone();
        }
        let own = self.own.get_or_init(|| {
            let threads = std::thread::available_parallelism().map_or(2, usize::from);
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(threads).thread_name("volt-handler").enable_all().build();
            if let Err(error) = &runtime {
                tracing::error!(%error, "no threads for handlers; they run on the network's");
            }
            Offload(runtime.ok())
        });
        own.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }

    /// Ends when policy does not allow this call any more.
    pub async fn revoked(&self, cx: &Context) {
        if registry::is_own(cx.method()) {
            return std::future::pending().await;
        }
        let mut watch = self.policy.watch();
        // It may have changed since the call was let in.
        let mut policy = watch.current();
        while policy.decide(&cx.peer(), Action::Call, cx.method()).is_permit() {
            policy = watch.changed().await;
        }
    }

    /// A call comes too early: counts it, and gives the answer.
    fn over_rate(&self, core: &Core, method: &str, wait: Duration) -> Status {
        self.rated.fetch_add(1, Ordering::Relaxed);
        core.call_rated(method);
        rate::refusal(wait)
    }

    pub fn count_panic(&self, method: &str) {
        self.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(method, "a handler panicked; its call failed with INTERNAL");
    }

    /// Warns the first time and then ever more rarely: a warning for each call would be a load of its own.
    pub fn count_slow_poll(&self, method: &str, took: Duration) {
        let count = self.slow_polls.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(method, ?took, count, "a handler held up the network; move it off with .spawned() or .blocking()");
        }
    }
}

impl Server {
    /// Serves a call.
    pub fn call(&self, mut send: StreamSend, mut recv: StreamRecv) -> Serving {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        let mut frames = Frames::new(limits::CALL_HEADER_BYTES);
        if let Some(first) = recv.take_first() {
            frames.push(first);
        }
        let (registry, shared) = (&self.registry, &self.shared);
        match frames.next_frame() {
            Ok(Some(header)) => dispatch(registry, shared, &header, send, recv, frames),
            Ok(None) => {
                let (registry, shared) = (registry.clone(), shared.clone());
                Box::pin(async move {
                    let mut charge = None;
                    match header(&mut recv, &mut frames, &mut charge).await {
                        Ok(Some(header)) => dispatch(&registry, &shared, &header, send, recv, frames).await,
                        Ok(None) => {}
                        Err(refused) => reply::status(&mut send, &refused).await,
                    }
                })
            }
            Err(error) => {
                let refused = invalid(recv.core(), &error);
                refuse(send, refused)
            }
        }
    }

    /// Serves a stream on which something is asked of the directory.
    pub fn feed(&self, send: StreamSend, recv: StreamRecv) -> Serving {
        directory::serve(self.directory.clone(), send, recv)
    }

    /// A path carries this session, for the first time or again. The future ends when all is back that depends on it.
    pub fn attached(&self, attached: &Arc<Attached>, resumed: bool) -> Option<Serving> {
        self.directory.attached(attached);
        self.peers.attached(attached, resumed)
    }

    /// No path carries this session.
    pub fn detached(&self, core: &Arc<Core>) {
        self.peers.detached(core);
        self.directory.detached(core);
    }

    /// This session is over.
    pub fn ended(&self, core: &Arc<Core>) {
        self.peers.detached(core);
        self.directory.ended(core);
    }
}

/// Finds what serves a call whose header is here.
fn dispatch(
    registry: &Registry,
    shared: &Arc<Shared>,
    header: &Bytes,
    send: StreamSend,
    recv: StreamRecv,
    frames: Frames,
) -> Serving {
    let (found, parts) = match prepare(registry, shared, header, &recv) {
        Ok(prepared) => prepared,
        Err(refused) => return refuse(send, refused),
    };
    let items = Box::new(Items::new(recv, frames, Share::Requests));
    let once = parts.idempotency_key.is_some();
    let (cx, shared) = (Context::new(parts), shared.clone());
    match found {
        Found::Method(lookup) if once && lookup.shape == Shape::Unary => {
            Box::pin(dedupe::serve(lookup.handler, lookup.place, cx, items, send, shared))
        }
        Found::Method(lookup) => {
            let send = Reply::to(send);
            lookup.handler.serve(Incoming { cx, items, send, place: lookup.place, shared })
        }
        Found::Describe => {
            let (send, place) = (Reply::to(send), Place::default());
            Box::pin(describe::serve(registry.clone(), Incoming { cx, items, send, place, shared }))
        }
    }
}

fn refuse(mut send: StreamSend, refused: Status) -> Serving {
    Box::pin(async move { reply::status(&mut send, &refused).await })
}

/// What is called.
enum Found {
    Method(Lookup),
    /// What every node answers: which of its methods the caller may call.
    Describe,
}

/// Reads the header's frame. Room for one that is not small is set aside before it is read; what it holds lives as long as the
/// handler, and so must the charge. `None`: the caller is gone.
async fn header(recv: &mut StreamRecv, frames: &mut Frames, charge: &mut Charge) -> Result<Option<Bytes>, Status> {
    loop {
        if let Some(frame) = frames.next_frame().map_err(|error| invalid(recv.core(), &error))? {
            return Ok(Some(frame));
        }
        if let Some(length) = frames.announced()
            && charge.is_none()
        {
            *charge = recv.core().reserve(Share::Headers, length).await;
        }
        match recv.read().await {
            Ok(Some(bytes)) => frames.push(bytes),
            Ok(None) => return Err(invalid(recv.core(), &"the call ended within its header")),
            Err(_) => return Ok(None),
        }
    }
}

/// A header that is too large, or none: counts it, and gives the answer.
fn invalid(core: &Core, error: &dyn std::fmt::Display) -> Status {
    core.limited(Limit::Messages);
    Status::new(Code::InvalidArgument, error.to_string())
}

/// Checks a call against policy, rates and registry. To whom policy allows nothing it says nothing of what there is.
fn prepare(registry: &Registry, shared: &Shared, header: &Bytes, recv: &StreamRecv) -> Result<(Found, Parts), Status> {
    let (core, deadline_max) = (recv.core(), shared.deadline_max);
    let read: Header<'_> = codec::decode_borrowed(header).map_err(|error| invalid(core, &error))?;
    if read.method == describe::DESCRIBE {
        check_shape(&read, Shape::Unary)?;
        return Ok((Found::Describe, parts(&read, describe::DESCRIBE.into(), header, recv, deadline_max)));
    }
    let own = registry::is_own(read.method);
    if !own && !core.calls(read.method) {
        shared.denied.fetch_add(1, Ordering::Relaxed);
        return Err(Status::new(Code::PermissionDenied, "policy does not allow this call"));
    }
    if !own && !shared.rates.is_empty() {
        let rated = shared.rates.check(&core.peer(), read.method, &shared.policy);
        rated.map_err(|wait| shared.over_rate(core, read.method, wait))?;
    }
    let failed = |refused: Status| {
        count_failed(core, read.method);
        refused
    };
    let lookup = registry.lookup(read.method).map_err(failed)?;
    if let Some(rate) = &lookup.rate {
        rate.check(&core.peer()).map_err(|wait| shared.over_rate(core, read.method, wait))?;
    }
    check_shape(&read, lookup.shape).map_err(failed)?;
    let parts = parts(&read, lookup.path.clone(), header, recv, deadline_max);
    Ok((Found::Method(lookup), parts))
}

/// A call is answered with an error. Those of the node's own methods are nobody's business.
pub(super) fn count_failed(core: &Core, method: &str) {
    if !registry::is_own(method) {
        core.call_failed(method);
    }
}

fn check_shape(read: &Header<'_>, shape: Shape) -> Result<(), Status> {
    if shape == read.shape {
        return Ok(());
    }
    let text = format!("{} is a {} call, not a {} one", read.method, shape.name(), read.shape.name());
    Err(Status::new(Code::Unimplemented, text))
}

fn parts(read: &Header<'_>, method: Arc<str>, header: &Bytes, recv: &StreamRecv, deadline_max: Duration) -> Parts {
    let longest = (read.shape == Shape::Unary).then_some(deadline_max);
    let left = read.deadline_us.map(Duration::from_micros);
    let left = match (left, longest) {
        (Some(left), Some(longest)) => Some(left.min(longest)),
        (left, longest) => left.or(longest),
    };
    Parts {
        peer: recv.core().peer(),
        method,
        content: read.content,
        deadline: left.and_then(|left| Instant::now().checked_add(left)),
        idempotency_key: read.idempotency_key.map(|key| header.slice_ref(key)),
        traceparent: read.traceparent.map(str::to_owned),
        metadata: read
            .metadata
            .iter()
            .map(|(name, value)| (header.slice_ref(name.as_bytes()), header.slice_ref(value)))
            .collect(),
    }
}
