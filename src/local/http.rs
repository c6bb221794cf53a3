//! The routes of the local API: HTTP/JSON on a unix socket. Each reads its request, asks the rooms beside it, and writes what
//! they say. A stream ends when the client goes away, and what it stood for ends with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::afar::{Asker, Far, RULES_ABOUT_IT};
use super::failure::{Cause, Failure};
use super::lines::parse;
use super::offers::Offers;
use super::peers::{self, Guests};
use super::rules;
use super::serve::Pending;
use super::streams::{events, get_events, post_call, post_down, post_serve, post_serve_call, post_watch};
use super::trust;
use super::tunnels::{post_expose, post_forward};
use super::types::{
    EventLine, NodeStatus, PeerLine, PeerRequest, ReloadLine, RuleAdded, RuleRequest, ServiceLine, ServicesRequest, SessionLine,
    names,
};
use super::wires;
use super::wires::{get_wires, post_publish, post_subscribe};
use crate::Node;
use crate::node::Listening;
use crate::policy::{Action, Effect, Rule, Source};

/// Largest request that is no stream, in bytes.
const REQUEST_BYTES: usize = 64 * 1024;

/// The local API of a running node. Ends with [`Server::shutdown`], or when it is dropped.
#[derive(Debug)]
pub struct Server {
    api: Arc<Api>,
    /// For peers, as long as it is there.
    _far: Arc<Far>,
    socket: PathBuf,
    task: JoinHandle<()>,
}

/// What the routes share.
#[derive(Debug)]
pub struct Api {
    pub node: Node,
    pub guests: Guests,
    pub offers: Offers,
    pub pending: Pending,
    began: Instant,
    /// Somebody wants the node to go down.
    pub down: watch::Sender<bool>,
    /// The node is down: streams end.
    pub ended: watch::Sender<bool>,
    /// The owner can be asked: here.
    _listening: Listening,
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
            _listening: node.listen(),
            node,
        });
        let far = Far::start(&api)?;
        let mut ended = api.ended.subscribe();
        let served = axum::serve(listener, router(api.clone()))
            .with_graceful_shutdown(async move { drop(ended.wait_for(|ended| *ended).await) });
        let task = tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the local API has failed");
            }
        });
        Ok(Self { api, _far: far, socket, task })
    }

    /// Waits until somebody asks the node to go down. Cancel-safe.
    pub async fn asked_down(&self) {
        let _ = self.api.down.subscribe().wait_for(|down| *down).await;
    }

    /// The node is about to go down: what peers administer here ends, which the node would wait for.
    pub fn going_down(&self) {
        self.api.down.send_replace(true);
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

/// Every route, for whoever asks. What a peer has to be permitted for it is in [`afar`].
pub(super) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/status", get(get_status))
        .route("/v1/sessions", get(get_sessions))
        .route("/v1/peers", get(get_peers))
        .route("/v1/events", get(get_events))
        .route("/v1/services", get(get_services))
        .route("/v1/services/watch", post(post_watch))
        .route("/v1/connect", post(post_connect))
        .route("/v1/disconnect", post(post_disconnect))
        .route("/v1/ping", post(post_ping))
        .route("/v1/policy", get(get_policy).post(post_policy))
        .route("/v1/policy/allow", post(post_policy_allow))
        .route("/v1/policy/deny", post(post_policy_deny))
        .route("/v1/policy/check", post(post_policy_check))
        .route("/v1/policy/{id}", delete(delete_policy))
        .route("/v1/requests", get(get_requests))
        .route("/v1/requests/approve", post(post_approve))
        .route("/v1/requests/deny", post(post_deny))
        .route("/v1/invitations", get(get_invitations).post(post_invitation))
        .route("/v1/invitations/{name}", delete(delete_invitation))
        .route("/v1/join", post(post_join))
        .route("/v1/revoke", post(post_revoke))
        .route("/v1/call", post(post_call))
        .route("/v1/serve", post(post_serve))
        .route("/v1/serve/calls/{id}", post(post_serve_call))
        .route("/v1/wires", get(get_wires).post(post_wires))
        .route("/v1/wires/publish", post(post_publish))
        .route("/v1/wires/subscribe", post(post_subscribe))
        .route("/v1/expose", post(post_expose))
        .route("/v1/forward", post(post_forward))
        .route("/v1/reload", post(post_reload))
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
    let (peers, counts, config) = (node.peers().await?, node.counts(), node.config_state());
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
        failed_handshakes: counts.failed_handshakes,
        refused_sessions: counts.refused_sessions,
        refused_requests: counts.refused_requests,
        refused_invitations: counts.refused_invitations,
        requests: node.requests().len(),
        denied_calls: counts.denied_calls,
        rated_calls: counts.rated_calls,
        denied_requests: counts.denied_requests,
        refused_keys: counts.refused_keys,
        limits: node.limits_hit().map(|(limit, count)| (limit.name().to_owned(), count)).collect(),
        journal: node.journal_counts(),
        relay: node.relay_counts(),
        config_waiting: config.as_ref().map(names).unwrap_or_default(),
        config_error: config.err().map(|error| error.to_string()),
    })
}

async fn get_sessions(State(api): State<Arc<Api>>) -> Answered<Vec<SessionLine>> {
    Ok(Json(api.node.peers().await?.iter().filter_map(SessionLine::of).collect()))
}

async fn get_peers(State(api): State<Arc<Api>>) -> Answered<Vec<PeerLine>> {
    Ok(Json(api.node.peers().await?.iter().filter(|peer| !peer.visitor).map(PeerLine::of).collect()))
}

async fn get_services(
    State(api): State<Arc<Api>>,
    query: Result<Query<ServicesRequest>, QueryRejection>,
) -> Answered<Vec<ServiceLine>> {
    let Query(request) = query.map_err(|error| Failure::usage(error.body_text()))?;
    services_at(&api.node, &api.guests, &request).await.map(Json)
}

/// The services in this node's directory, or in a peer's as far as it shows them to this node.
///
/// # Errors
/// [`Failure`]: no such peer, refused, or no answer in time.
pub async fn services_at(node: &Node, guests: &Guests, request: &ServicesRequest) -> Result<Vec<ServiceLine>, Failure> {
    let (search, _guest) = peers::search(node, guests, request).await?;
    let within = Duration::from_millis(request.timeout_ms);
    let late = || Failure::new(Cause::Unreached, crate::proto::status::Code::DeadlineExceeded, "no answer in time");
    let found = tokio::time::timeout(within, search.discover()).await.map_err(|_| late())??;
    Ok(found.iter().map(ServiceLine::of).collect())
}

async fn post_connect(State(api): State<Arc<Api>>, body: Sent) -> Response {
    answer(async { peers::connect(&api.node, &api.guests, &read(body)?).await }.await)
}

async fn post_wires(State(api): State<Arc<Api>>, body: Sent) -> Response {
    answer(async { wires::create(&api.node, &api.guests, &read(body)?).await }.await)
}

async fn post_disconnect(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let done = async {
        let request: PeerRequest = read(body)?;
        let peer = peers::disconnect(&api.node, &api.guests, &request.peer).await?;
        Ok(serde_json::json!({ "peer": peer }))
    };
    answer(done.await)
}

async fn post_reload(State(api): State<Arc<Api>>) -> Answered<ReloadLine> {
    Ok(Json(api.node.reload().await?.into()))
}

async fn post_ping(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let done = async {
        let request: PeerRequest = read(body)?;
        peers::ping(&api.node, &api.guests, &request.peer, &request.via, Duration::from_millis(request.timeout_ms)).await
    };
    answer(done.await)
}

async fn get_policy(State(api): State<Arc<Api>>) -> Json<Vec<crate::policy::Rule>> {
    Json(api.node.policy().current().rules().cloned().collect())
}

async fn post_policy(State(api): State<Arc<Api>>, asker: Asker, body: Sent) -> Response {
    answer(async { add_rule(&api, asker, read(body)?).await }.await)
}

async fn post_policy_allow(State(api): State<Arc<Api>>, asker: Asker, body: Sent) -> Response {
    answer(async { add_rule(&api, asker, RuleRequest { effect: Some(Effect::Permit), ..read(body)? }).await }.await)
}

async fn post_policy_deny(State(api): State<Arc<Api>>, asker: Asker, body: Sent) -> Response {
    answer(async { add_rule(&api, asker, RuleRequest { effect: Some(Effect::Deny), ..read(body)? }).await }.await)
}

async fn add_rule(api: &Api, asker: Asker, request: RuleRequest) -> Result<RuleAdded, Failure> {
    let rule = rules::rule(&request, &api.node.stored_peers().await?)?;
    if rule.action() == Action::Administer {
        asker.may(&api.node, RULES_ABOUT_IT)?;
    }
    let new = api.node.add_rule(rule.clone()).await?;
    Ok(RuleAdded { rule, new })
}

async fn post_policy_check(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let done = async {
        let peers = api.node.stored_peers().await?;
        rules::check(&api.node.policy().current(), &read::<RuleRequest>(body)?, &peers)
    };
    answer(done.await)
}

async fn delete_policy(State(api): State<Arc<Api>>, asker: Asker, UrlPath(id): UrlPath<String>) -> Response {
    let done = async {
        let policy = api.node.policy().current();
        rules::removable(&policy, &id)?;
        // Without a rule that shuts somebody out, one may be in force again that lets it administer.
        let is_about_it = |rule: &Rule| match rule.action() {
            Action::Administer => true,
            Action::Connect => rule.effect() == Effect::Deny,
            _ => false,
        };
        if policy.rules().any(|rule| rule.id() == id && is_about_it(rule)) {
            asker.may(&api.node, RULES_ABOUT_IT)?;
        }
        let removed = api.node.remove_rule(&id).await?;
        Ok(serde_json::json!({ "id": id, "removed": removed }))
    };
    answer(done.await)
}

async fn get_requests(State(api): State<Arc<Api>>) -> Json<Vec<trust::RequestLine>> {
    Json(trust::requests(&api.node))
}

async fn post_approve(State(api): State<Arc<Api>>, asker: Asker, body: Sent) -> Response {
    let done = async {
        let request: trust::DecideRequest = read(body)?;
        may_give(&api, asker, &request.may)?;
        trust::admit(&api.node, &request).await
    };
    answer(done.await)
}

/// Whether this may be given to others: leave to administer is no more easily given here than by a rule.
fn may_give(api: &Api, asker: Asker, may: &[String]) -> Result<(), Failure> {
    let gives = trust::grants(may)?.iter().any(|grant| grant.action() == Action::Administer);
    if gives { asker.may(&api.node, RULES_ABOUT_IT) } else { Ok(()) }
}

async fn post_deny(State(api): State<Arc<Api>>, body: Sent) -> Response {
    answer(async { trust::turn_away(&api.node, &read(body)?).await }.await)
}

async fn get_invitations(State(api): State<Arc<Api>>) -> Answered<Vec<trust::InvitationLine>> {
    Ok(Json(api.node.invitations().await?.iter().map(trust::InvitationLine::of).collect()))
}

async fn post_invitation(State(api): State<Arc<Api>>, asker: Asker, body: Sent) -> Response {
    let done = async {
        let request: trust::InviteRequest = read(body)?;
        may_give(&api, asker, &request.may)?;
        let by = match asker {
            Asker::Owner => None,
            Asker::Peer(peer) => Some(peer),
        };
        trust::invite(&api.node, by, &request).await
    };
    answer(done.await)
}

async fn delete_invitation(State(api): State<Arc<Api>>, UrlPath(name): UrlPath<String>) -> Response {
    let done = async {
        let removed = api.node.withdraw(&name).await?;
        Ok(serde_json::json!({ "name": name, "removed": removed }))
    };
    answer(done.await)
}

async fn post_join(State(api): State<Arc<Api>>, body: Sent) -> Response {
    answer(async { trust::join(&api.node, &api.guests, &read(body)?).await }.await)
}

async fn post_revoke(State(api): State<Arc<Api>>, asker: Asker, body: Sent) -> Response {
    let done = async {
        let request: PeerRequest = read(body)?;
        // Who may revoke is not thereby the one who says who administers.
        if trust::would_lose(&api.node, &request.peer).await?.iter().any(|rule| rule.action() == Action::Administer) {
            asker.may(&api.node, RULES_ABOUT_IT)?;
        }
        trust::revoke(&api.node, &api.guests, &request.peer).await
    };
    answer(done.await)
}

/// The body of a request that is no stream.
pub(super) type Sent = Result<Bytes, BytesRejection>;

pub(super) fn read<T: DeserializeOwned>(body: Sent) -> Result<T, Failure> {
    parse(&body.map_err(|error| Failure::usage(format!("a request has at most {REQUEST_BYTES} bytes: {error}")))?)
}

fn answer<T: Serialize>(result: Result<T, Failure>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(failure) => failure.into_response(),
    }
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
