//! The routes of the local API: HTTP/JSON on a unix socket. Each reads its request, asks the rooms beside it, and writes what
//! they say. A stream ends when the client goes away, and what it stood for ends with it.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::call::call;
use super::failure::{Cause, Failure};
use super::lines::{CallLine, Lines, line, parse};
use super::offers::Offers;
use super::peers::{self, Guests, resolve};
use super::rules;
use super::serve::{self, Pending};
use super::types::{
    CallHead, EventLine, NodeStatus, Offer, PeerLine, PeerRequest, RuleAdded, RuleRequest, ServeLine, ServiceLine, SessionLine,
};
use crate::Node;
use crate::policy::Source;

/// Largest request that is no stream, in bytes.
const REQUEST_BYTES: usize = 64 * 1024;
/// Lines on their way to a client.
const LINES: usize = 16;

/// The local API of a running node. Ends with [`Server::shutdown`], or when it is dropped.
#[derive(Debug)]
pub struct Server {
    api: Arc<Api>,
    socket: PathBuf,
    task: JoinHandle<()>,
}

/// What the routes share.
#[derive(Debug)]
struct Api {
    node: Node,
    guests: Guests,
    offers: Offers,
    pending: Pending,
    began: Instant,
    /// Somebody wants the node to go down.
    down: watch::Sender<bool>,
    /// The node is down: streams end.
    ended: watch::Sender<bool>,
}

impl Server {
    /// Answers on the socket of the node's home (mode 0600) from now on.
    ///
    /// # Errors
    /// [`Failure`]: the node owns no home, or the socket cannot be made.
    pub fn start(node: Node) -> Result<Self, Failure> {
        let socket = node.local_socket()?.ok_or_else(|| Failure::local("this node owns no home, so it has no local API"))?;
        let listener =
            bind(&socket).map_err(|error| Failure::local(format!("cannot listen at {}: {error}", socket.display())))?;
        let api = Arc::new(Api {
            guests: Guests::default(),
            offers: Offers::new(node.clone()),
            pending: Pending::default(),
            began: Instant::now(),
            down: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            node,
        });
        let mut ended = api.ended.subscribe();
        let served = axum::serve(listener, router(api.clone()))
            .with_graceful_shutdown(async move { drop(ended.wait_for(|ended| *ended).await) });
        let task = tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the local API has failed");
            }
        });
        Ok(Self { api, socket, task })
    }

    /// Waits until somebody asks the node to go down. Cancel-safe.
    pub async fn asked_down(&self) {
        let _ = self.api.down.subscribe().wait_for(|down| *down).await;
    }

    /// Events of the node and of what other processes serve through it, from now on.
    pub fn events(&self) -> mpsc::Receiver<EventLine> {
        events(&self.api)
    }

    /// Ends all streams and waits, at most a second, until clients have read what is left. For after the node's own shutdown.
    pub async fn shutdown(mut self) {
        self.api.ended.send_replace(true);
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut self.task).await;
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.api.ended.send_replace(true);
        self.task.abort();
    }
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    // Its directory lets nobody else in, so nobody came before this.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/status", get(get_status))
        .route("/v1/sessions", get(get_sessions))
        .route("/v1/peers", get(get_peers))
        .route("/v1/events", get(get_events))
        .route("/v1/services", get(get_services))
        .route("/v1/connect", post(post_connect))
        .route("/v1/disconnect", post(post_disconnect))
        .route("/v1/ping", post(post_ping))
        .route("/v1/policy", get(get_policy).post(post_policy))
        .route("/v1/policy/check", post(post_policy_check))
        .route("/v1/policy/{id}", delete(delete_policy))
        .route("/v1/call", post(post_call))
        .route("/v1/serve", post(post_serve))
        .route("/v1/serve/calls/{id}", post(post_serve_call))
        .route("/v1/down", post(post_down))
        .fallback(|| async { Failure::new(Cause::Usage, crate::proto::status::Code::NotFound, "there is no such route") })
        .method_not_allowed_fallback(|| async { Failure::usage("this route takes another method") })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES))
        .with_state(api)
}

type Answered<T> = Result<Json<T>, Failure>;

async fn get_status(State(api): State<Arc<Api>>) -> Answered<NodeStatus> {
    status(&api.node, api.began.elapsed()).await.map(Json)
}

/// How a node is, that runs for this long.
///
/// # Errors
/// [`Failure`] if the store cannot be read.
pub async fn status(node: &Node, uptime: Duration) -> Result<NodeStatus, Failure> {
    let (peers, counts) = (node.peers().await?, node.counts());
    Ok(NodeStatus {
        id: node.id(),
        name: Some(node.name().to_owned()).filter(|name| !name.is_empty()),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        home: node.home().map(|home| home.path().display().to_string()).unwrap_or_default(),
        listen: node.listening(),
        ticket: node.ticket().to_string(),
        uptime_s: uptime.as_secs(),
        open: node.policy().current().rules().any(|rule| rule.source() == Source::Open),
        sessions: peers.iter().filter(|peer| peer.session.is_some()).count(),
        services: node.services().into_iter().map(|service| service.name).collect(),
        calls: counts.calls,
        panics: counts.panics,
        slow_polls: counts.slow_polls,
        refused_handshakes: counts.refused_handshakes,
        refused_sessions: counts.refused_sessions,
    })
}

async fn get_sessions(State(api): State<Arc<Api>>) -> Answered<Vec<SessionLine>> {
    Ok(Json(api.node.peers().await?.iter().filter_map(SessionLine::of).collect()))
}

async fn get_peers(State(api): State<Arc<Api>>) -> Answered<Vec<PeerLine>> {
    Ok(Json(api.node.peers().await?.iter().filter(|peer| !peer.visitor).map(PeerLine::of).collect()))
}

async fn get_events(State(api): State<Arc<Api>>) -> Response {
    lines(events(&api), line)
}

fn events(api: &Api) -> mpsc::Receiver<EventLine> {
    let (send, receive) = mpsc::channel(1_024);
    let (mut of_node, mut of_offers) = (api.node.events(), api.offers.events());
    let mut ended = api.ended.subscribe();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                biased;
                () = send.closed() => return,
                Some(event) = of_node.next() => EventLine::of(&event),
                Ok(event) = of_offers.recv() => Some(event),
                _ = ended.wait_for(|ended| *ended) => return,
            };
            if let Some(event) = event
                && send.send(event).await.is_err()
            {
                return;
            }
        }
    });
    receive
}

#[derive(Deserialize)]
struct ServicesQuery {
    peer: Option<String>,
    timeout_ms: Option<u64>,
}

async fn get_services(
    State(api): State<Arc<Api>>,
    query: Result<Query<ServicesQuery>, QueryRejection>,
) -> Answered<Vec<ServiceLine>> {
    let Query(query) = query.map_err(|error| Failure::usage(error.body_text()))?;
    let within = Duration::from_millis(query.timeout_ms.unwrap_or(10_000));
    services_at(&api.node, &api.guests, query.peer.as_deref(), within).await.map(Json)
}

/// What is offered by this node, or by a peer to this node.
///
/// # Errors
/// [`Failure`]: no such peer, refused, or no answer in time.
pub async fn services_at(
    node: &Node,
    guests: &Guests,
    peer: Option<&str>,
    within: Duration,
) -> Result<Vec<ServiceLine>, Failure> {
    let (provider, services) = match peer {
        None => (node.id(), node.services()),
        Some(peer) => {
            let target = resolve(node, peer).await?;
            let guest = guests.session(node, &target, within, false).await?;
            (target.id, guest.session().services().await?)
        }
    };
    let line = |service: crate::service::ServiceDescription| ServiceLine {
        name: service.name,
        provider,
        online: true,
        description: service.description,
        methods: service.methods,
    };
    Ok(services.into_iter().map(line).collect())
}

async fn post_connect(State(api): State<Arc<Api>>, body: Sent) -> Response {
    answer(async { peers::connect(&api.node, &api.guests, &read(body)?).await }.await)
}

async fn post_disconnect(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let done = async {
        let request: PeerRequest = read(body)?;
        let peer = peers::disconnect(&api.node, &api.guests, &request.peer).await?;
        Ok(serde_json::json!({ "peer": peer }))
    };
    answer(done.await)
}

async fn post_ping(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let done = async {
        let request: PeerRequest = read(body)?;
        peers::ping(&api.node, &api.guests, &request.peer, Duration::from_millis(request.timeout_ms)).await
    };
    answer(done.await)
}

async fn get_policy(State(api): State<Arc<Api>>) -> Json<Vec<crate::policy::Rule>> {
    Json(api.node.policy().current().rules().cloned().collect())
}

async fn post_policy(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let done = async {
        let rule = rules::rule(&read::<RuleRequest>(body)?, &api.node.stored_peers().await?)?;
        let new = api.node.add_rule(rule.clone()).await?;
        Ok(RuleAdded { rule, new })
    };
    answer(done.await)
}

async fn post_policy_check(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let done = async {
        let peers = api.node.stored_peers().await?;
        rules::check(&api.node.policy().current(), &read::<RuleRequest>(body)?, &peers)
    };
    answer(done.await)
}

async fn delete_policy(State(api): State<Arc<Api>>, UrlPath(id): UrlPath<String>) -> Response {
    let done = async {
        rules::removable(&api.node.policy().current(), &id)?;
        let removed = api.node.remove_rule(&id).await?;
        Ok(serde_json::json!({ "id": id, "removed": removed }))
    };
    answer(done.await)
}

async fn post_call(State(api): State<Arc<Api>>, body: Body) -> Response {
    let mut from_client = Lines::new(body.into_data_stream());
    let (replies, to_client) = mpsc::channel(LINES);
    let (send, requests) = mpsc::channel(LINES);
    let work = async move {
        let head = match from_client.parse::<CallHead>().await {
            Ok(Some(head)) => Ok(head),
            Ok(None) => Err(Failure::usage("a call begins with a line that names its peer and method")),
            Err(failure) => Err(failure),
        };
        let ended = match head {
            Err(failure) => Err(failure),
            Ok(head) => {
                let reading = async {
                    loop {
                        let next = from_client.parse::<CallLine>().await;
                        let next = match next {
                            Ok(None) => break,
                            Ok(Some(line)) => line.into_body(),
                            Err(failure) => Err(failure),
                        };
                        if send.send(next).await.is_err() {
                            break;
                        }
                    }
                    drop(send);
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    biased;
                    ended = call(&api.node, &api.guests, &head, requests, &replies) => ended,
                    () = reading => Ok(()),
                }
            }
        };
        let last = ended.map_or_else(CallLine::Error, |()| CallLine::ok());
        let _ = replies.send(last).await;
    };
    owned_lines(to_client, line, work)
}

async fn post_serve(State(api): State<Arc<Api>>, body: Body) -> Response {
    let mut from_client = Lines::new(body.into_data_stream());
    let (told, to_client) = mpsc::channel(LINES);
    let work = async move {
        let offer = match from_client.parse::<Offer>().await {
            Ok(Some(offer)) => offer,
            Ok(None) => return drop(told.send(ServeLine::Error(Failure::usage("the first line names the method"))).await),
            Err(failure) => return drop(told.send(ServeLine::Error(failure)).await),
        };
        let mut ended = api.ended.subscribe();
        let result = tokio::select! {
            biased;
            result = serve::serve(&api.offers, &api.pending, offer, &told) => result,
            // Whatever the client says, or its silence at the end, means that it serves no longer.
            _ = from_client.next() => Ok(()),
            _ = ended.wait_for(|ended| *ended) => {
                let gone = Failure::new(Cause::Local, crate::proto::status::Code::Unavailable, "the node has gone down");
                Err(gone)
            }
        };
        if let Err(failure) = result {
            let _ = told.send(ServeLine::Error(failure)).await;
        }
    };
    owned_lines(to_client, line, work)
}

async fn post_serve_call(State(api): State<Arc<Api>>, UrlPath(id): UrlPath<String>, body: Body) -> Response {
    let call = match id.parse().map_err(Failure::usage).and_then(|id| api.pending.claim(id)) {
        Ok(call) => call,
        Err(failure) => return failure.into_response(),
    };
    let mut from_client = Lines::new(body.into_data_stream());
    let (requests, to_client) = mpsc::channel(LINES);
    let (send, answers) = mpsc::channel(LINES);
    let work = async move {
        let reading = async {
            while let Some(next) = from_client.parse::<CallLine>().await.transpose() {
                let broken = next.is_err();
                if send.send(next).await.is_err() || broken {
                    break;
                }
            }
            drop(send);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = serve::carry(call, requests, answers) => {}
            () = reading => {}
        }
    };
    owned_lines(to_client, line, work)
}

async fn post_down(State(api): State<Arc<Api>>) -> Response {
    let (send, receive) = mpsc::channel(1);
    let mut ended = api.ended.subscribe();
    let _ = send.try_send(serde_json::json!({ "draining": true, "pid": std::process::id() }));
    api.down.send_replace(true);
    let work = async move {
        let _ = ended.wait_for(|ended| *ended).await;
        drop(send);
    };
    owned_lines(receive, line, work)
}

/// The body of a request that is no stream.
type Sent = Result<Bytes, BytesRejection>;

fn read<T: DeserializeOwned>(body: Sent) -> Result<T, Failure> {
    parse(&body.map_err(|error| Failure::usage(format!("a request has at most {REQUEST_BYTES} bytes: {error}")))?)
}

fn answer<T: Serialize>(result: Result<T, Failure>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(failure) => failure.into_response(),
    }
}

/// A body of lines, as they come.
fn lines<T: Send + 'static>(receive: mpsc::Receiver<T>, write: impl Fn(&T) -> Bytes + Clone + Send + 'static) -> Response {
    let stream = stream::unfold((receive, write), |(mut receive, write)| async {
        let next = receive.recv().await?;
        Some((Ok::<_, Infallible>(write(&next)), (receive, write)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// The same, made by work that ends when the client has gone.
fn owned_lines<T: Send + 'static>(
    receive: mpsc::Receiver<T>,
    write: impl Fn(&T) -> Bytes + Clone + Send + 'static,
    work: impl Future<Output = ()> + Send + 'static,
) -> Response {
    struct Owned<T>(mpsc::Receiver<T>, JoinHandle<()>);
    impl<T> Drop for Owned<T> {
        fn drop(&mut self) {
            self.1.abort();
        }
    }
    let owned = Owned(receive, tokio::spawn(work));
    let stream = stream::unfold((owned, write), |(mut owned, write)| async {
        let next = owned.0.recv().await?;
        Some((Ok::<_, Infallible>(write(&next)), (owned, write)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match (self.cause, self.code.as_str()) {
            (_, "not_found") => StatusCode::NOT_FOUND,
            (_, "already_exists" | "failed_precondition") => StatusCode::CONFLICT,
            (Cause::Usage, _) => StatusCode::BAD_REQUEST,
            (Cause::Refused, _) => StatusCode::FORBIDDEN,
            (Cause::Answered, _) => StatusCode::BAD_GATEWAY,
            (Cause::Unreached, _) => StatusCode::GATEWAY_TIMEOUT,
            (Cause::Local, _) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(serde_json::json!({ "error": self }))).into_response()
    }
}
