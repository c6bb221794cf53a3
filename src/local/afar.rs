//! The local API for peers: what the owner may do at the socket, a peer may do over its session, as far as rules about `administer`
//! permit. A call of `volt/administer` carries the bytes of one HTTP/1.1 request and of its answer, to the same routes; before a route
//! sees a request, policy is asked about the command it stands for, and again whenever the rules change while it is answered.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use super::failure::{Cause, Failure};
use super::http::{Api, router};
use super::lines::line;
use super::pieces::put_piece;
use super::wires::FeedHead;
use crate::id::NodeId;
use crate::policy::Action;
use crate::proto::call::Shape;
use crate::proto::limits::{ADMINISTER, ADMINISTER_HEAD, NODE_ADMINISTER};
use crate::proto::status::{Code, Status};
use crate::{Context, Node, Receiver, Sender, Service};

/// What is needed, besides `policy/allow`, `policy/deny` or `policy/rm`, for a rule about `administer` itself. It has three parts, so that
/// `policy/*` does not permit it: who may make rules may not thereby permit itself the rest.
pub(super) const RULES_ABOUT_IT: &str = "policy/rules/administer";
/// What only a rule about everything permits: what no command stands for.
const EVERYTHING: &str = "*";
/// Bytes between the call and the request, each way.
const BUFFER_BYTES: usize = 32 * 1024;
/// Longest head of a request, in bytes.
const HEAD_BYTES: usize = 64 * 1024;
/// What is still to be answered when the node goes down has so long.
const LAST: Duration = Duration::from_secs(1);

/// Who asks for something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asker {
    /// Whoever may open the socket: the node's owner, who may do everything.
    #[default]
    Owner,
    /// A peer, over its session.
    Peer(NodeId),
}

impl Asker {
    /// Whether this may be done, as the rules are now.
    ///
    /// # Errors
    /// [`Failure`] of the cause [`Cause::Refused`].
    pub fn may(&self, node: &Node, command: &str) -> Result<(), Failure> {
        match self {
            Self::Owner => Ok(()),
            Self::Peer(id) if node.policy().decide(id, Action::Administer, command).is_permit() => Ok(()),
            Self::Peer(_) => {
                let text = format!("this node's policy does not let you administer it: {command}");
                let hint = format!("its owner can allow it there: `volt policy allow ID administer {command}`");
                Err(Failure::new(Cause::Refused, Code::PermissionDenied, text).hint(hint))
            }
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    /// The owner, where nobody said otherwise: routes for peers let no request through that does not say whose it is.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or_default())
    }
}

/// The commands that a route stands for; all of them are needed.
fn commands(method: &Method, path: &str) -> &'static [&'static str] {
    let Some(route) = path.strip_prefix("/v1/") else { return &[EVERYTHING] };
    match (method.as_str(), route) {
        ("GET", "status") => &["status"],
        ("GET", "sessions") => &["sessions"],
        ("GET", "peers") => &["peers"],
        ("GET", "events") => &["events"],
        ("GET", "services") | ("POST", "services/watch") => &["services"],
        ("POST", "connect") => &["connect"],
        ("POST", "disconnect") => &["disconnect"],
        ("POST", "ping") => &["ping"],
        ("GET", "policy") => &["policy/ls"],
        // Which of them it is would be known only when it was read.
        ("POST", "policy") => &["policy/allow", "policy/deny"],
        ("POST", "policy/allow") => &["policy/allow"],
        ("POST", "policy/deny") => &["policy/deny"],
        ("POST", "policy/check") => &["policy/check"],
        ("DELETE", route) if route.strip_prefix("policy/").is_some_and(|id| !id.contains('/')) => &["policy/rm"],
        ("GET", "requests") => &["requests/ls"],
        ("POST", "requests/approve") => &["requests/approve"],
        ("POST", "requests/deny") => &["requests/deny"],
        ("GET", "invitations") => &["invite/ls"],
        ("POST", "invitations") => &["invite/make"],
        ("DELETE", route) if route.strip_prefix("invitations/").is_some_and(|name| !name.contains('/')) => &["invite/withdraw"],
        ("POST", "join") => &["join"],
        ("POST", "revoke") => &["revoke"],
        ("POST", "call") => &["call"],
        ("POST", "serve") => &["serve"],
        ("POST", route) if route.strip_prefix("serve/calls/").is_some_and(|id| !id.contains('/')) => &["serve"],
        ("GET", "wires") => &["wires/ls"],
        ("POST", "wires") => &["wires/create"],
        ("POST", "wires/publish") => &["wires/publish"],
        ("POST", "wires/subscribe") => &["wires/subscribe"],
        ("POST", "expose") => &["expose"],
        ("POST", "forward") => &["forward"],
        ("POST", "reload") => &["reload"],
        ("POST", "down") => &["down"],
        _ => &[EVERYTHING],
    }
}

/// Answers peers, as long as it is there.
#[derive(Debug)]
pub struct Far {
    api: Arc<Api>,
    routes: Router,
    /// Where requests are answered that come by the socket, too.
    runtime: tokio::runtime::Handle,
    busy: Mutex<HashMap<NodeId, usize>>,
}

/// A request is being answered.
struct Slot<'a>(&'a Far, NodeId);

/// A task that ends with whoever waits for it.
struct Answering(JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Far {
    /// Lets peers administer the node from now on.
    ///
    /// # Errors
    /// None, as long as the name of the method is one.
    pub fn start(api: &Arc<Api>) -> Result<Arc<Self>, Failure> {
        let routes = router(api.clone()).layer(middleware::from_fn_with_state(api.clone(), guard));
        let far = Self { api: api.clone(), routes, runtime: tokio::runtime::Handle::current(), busy: Mutex::default() };
        let far = Arc::new(far);
        // The node is not to keep what keeps the node.
        let weak = Arc::downgrade(&far);
        let service = Service::new("volt").raw("administer", Shape::Bidi, move |cx, requests, replies| {
            let far = Weak::upgrade(&weak);
            async move {
                let gone =
                    || Status::new(Code::Unimplemented, "this node has no local API at present, so it cannot be administered");
                far.ok_or_else(gone)?.carry(cx, requests, replies).await
            }
        });
        api.node.serve_own(service)?;
        Ok(far)
    }

    async fn carry(&self, cx: Context, mut requests: Receiver<Bytes>, mut replies: Sender<Bytes>) -> Result<(), Status> {
        let slot = self.admit(cx.peer())?;
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        let _answering = self.answer(theirs, slot.1);
        let (mut from_node, mut to_node) = tokio::io::split(ours);
        let incoming = async {
            while let Some(bytes) = requests.next_raw().await? {
                if to_node.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // What comes back still says how it ended.
            let _ = to_node.shutdown().await;
            std::future::pending().await
        };
        let outgoing = async {
            let (mut buffer, mut is_answered) = (vec![0; BUFFER_BYTES], false);
            while let Ok(read @ 1..) = from_node.read(&mut buffer).await {
                replies.send_raw(buffer[..read].to_vec()).await?;
                is_answered = true;
            }
            let broken = || Status::new(Code::Unavailable, "the request broke off, or is none, and there is no answer to it");
            is_answered.then_some(()).ok_or_else(broken)
        };
        tokio::select! {
            biased;
            ended = outgoing => ended,
            ended = incoming => ended,
            () = self.late() => Err(Status::new(Code::Unavailable, "the node goes down")),
        }
    }

    /// Whoever may administer nothing is told so before anything is read. The rest is bounded.
    fn admit(&self, peer: NodeId) -> Result<Slot<'_>, Status> {
        let (node, policy) = (&self.api.node, self.api.node.policy().current());
        if !policy.permits_some(&peer, Action::Administer) {
            node.note_administered(peer, None, &policy.decide(&peer, Action::Administer, EVERYTHING));
            return Err(Status::new(Code::PermissionDenied, "policy does not allow this: administer"));
        }
        let mut busy = self.busy();
        let (own, all) = (busy.get(&peer).copied().unwrap_or_default(), busy.values().sum::<usize>());
        if own >= ADMINISTER || all >= NODE_ADMINISTER {
            node.note_too_many_commands(peer);
            return Err(Status::new(Code::ResourceExhausted, "too many requests to administer this node; try again later"));
        }
        busy.insert(peer, own + 1);
        Ok(Slot(self, peer))
    }

    /// Answers one request, which comes this way.
    fn answer(&self, io: DuplexStream, peer: NodeId) -> Answering {
        let routes = self.routes.clone().layer(axum::Extension(Asker::Peer(peer)));
        let connection = http1::Builder::new()
            .keep_alive(false)
            // Whoever has said all of its request still waits for the answer.
            .half_close(true)
            .max_buf_size(HEAD_BYTES)
            .timer(TokioTimer::new())
            .header_read_timeout(ADMINISTER_HEAD)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(routes));
        Answering(self.runtime.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, %peer, "a request to administer this node broke off");
            }
        }))
    }

    /// The node goes down, and what it had time for is answered.
    async fn late(&self) {
        going_down(&self.api).await;
        tokio::time::sleep(LAST).await;
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<NodeId, usize>> {
        self.busy.lock().expect("nothing panics while it is held")
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy();
        match busy.get_mut(&self.1) {
            Some(count @ 2..) => *count -= 1,
            _ => drop(busy.remove(&self.1)),
        }
    }
}

/// Until the node goes down.
fn going_down(api: &Api) -> impl Future<Output = ()> + Send + use<> {
    let mut down = api.down.subscribe();
    async move { drop(down.wait_for(|down| *down).await) }
}

/// Asks policy before a route sees the request, and for as long as it is answered.
async fn guard(State(api): State<Arc<Api>>, asker: Option<Extension<Asker>>, request: Request, next: Next) -> Response {
    let Some(Extension(asker @ Asker::Peer(peer))) = asker else {
        return Failure::local("it is not known who asks").into_response();
    };
    let commands = commands(request.method(), request.uri().path());
    let may = {
        let node = api.node.clone();
        move || commands.iter().try_for_each(|command| asker.may(&node, command))
    };
    // From before it is asked: no change is missed.
    let mut watch = api.node.policy().watch();
    for command in commands {
        let decision = api.node.policy().decide(&peer, Action::Administer, command);
        api.node.note_administered(peer, Some(command), &decision);
    }
    if let Err(refused) = may() {
        tracing::info!(%peer, ?commands, "a peer may not administer this node");
        return refused.into_response();
    }
    tracing::info!(%peer, ?commands, "a peer administers this node");
    let mut revoked: Revoked = Box::pin(async move {
        loop {
            watch.changed().await;
            if let Err(refused) = may() {
                return refused;
            }
        }
    });
    tokio::select! {
        biased;
        response = next.run(request) => guarded(response, revoked, &api),
        refused = &mut revoked => refused.into_response(),
    }
}

type Revoked = Pin<Box<dyn Future<Output = Failure> + Send>>;

/// An answer that goes on ends when it may not, or when the node goes down.
fn guarded(response: Response, revoked: Revoked, api: &Api) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let is_lines = response.headers().get(header::CONTENT_TYPE).is_some_and(|is| is == "application/x-ndjson");
    let down = Box::pin(going_down(api));
    response.map(|inner| Body::new(Guarded { inner, is_lines, revoked, down, over: false }))
}

/// The body of an answer that goes on.
struct Guarded {
    inner: Body,
    is_lines: bool,
    revoked: Revoked,
    down: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
}

impl Guarded {
    /// Nothing comes any more, and what made it has ended.
    fn end(&mut self) {
        (self.inner, self.over) = (Body::empty(), true);
    }
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(refused) = this.revoked.as_mut().poll(cx) {
            this.end();
            return Poll::Ready(Some(Ok(Frame::data(last(this.is_lines, refused)))));
        }
        let next = Pin::new(&mut this.inner).poll_frame(cx);
        // What was said before it went down is told first.
        if next.is_pending() && this.down.as_mut().poll(cx).is_ready() {
            this.end();
            return Poll::Ready(None);
        }
        next
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Why there is nothing more, in the form of whatever came before.
fn last(is_lines: bool, failure: Failure) -> Bytes {
    if is_lines {
        return line(&serde_json::json!({ "error": failure }));
    }
    let mut piece = Vec::new();
    put_piece(&mut piece, &FeedHead::Error(failure), &[]);
    piece.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The routes as they are written where they are made.
    fn routes() -> Vec<(Method, String)> {
        let source = include_str!("http.rs");
        let mut routes = Vec::new();
        for written in source.split(".route(\"").skip(1) {
            let (path, methods) = written.split_once('"').unwrap();
            let methods = methods.lines().next().unwrap();
            for method in [Method::GET, Method::POST, Method::DELETE] {
                if methods.contains(&format!("{}(", method.as_str().to_lowercase())) {
                    routes.push((method, path.replace("{id}", "7")));
                }
            }
        }
        routes
    }

    #[test]
    fn every_route_stands_for_a_command() {
        let routes = routes();
        assert!(routes.len() > 20, "{routes:?}");
        for (method, path) in routes {
            let commands = commands(&method, &path);
            assert!(!commands.is_empty() && !commands.contains(&EVERYTHING), "{method} {path}");
        }
    }

    #[test]
    fn what_is_no_route_is_for_those_who_may_do_everything() {
        for path in
            ["/", "/v1/", "/v1", "/v2/status", "/v1/status/", "//v1/status", "/v1/%73tatus", "/v1/policy/7/8", "/v1/Status", "*"]
        {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                assert_eq!(commands(&method, path), [EVERYTHING], "{method} {path}");
            }
        }
        assert_eq!(commands(&Method::HEAD, "/v1/status"), [EVERYTHING]);
        assert_eq!(commands(&Method::OPTIONS, "/v1/down"), [EVERYTHING]);
    }

    #[test]
    fn whoever_may_use_all_of_policy_may_not_make_rules_about_administering() {
        let pattern: crate::policy::Pattern = "policy/*".parse().unwrap();
        for command in ["policy/ls", "policy/allow", "policy/rm"] {
            assert!(pattern.matches(command));
        }
        assert!(!pattern.matches(RULES_ABOUT_IT) && !pattern.matches(EVERYTHING));
    }
}
