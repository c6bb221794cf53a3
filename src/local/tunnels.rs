//! Tunnels for other processes: something exposed, or brought to a local port, for as long as the request lasts; and what happens to its
//! connections, line by line. The bytes do not come this way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::failure::{Cause, Failure};
use super::http::{Api, Sent, read};
use super::lines::line;
use super::peers::resolve;
use super::streams::{LINES, owned_lines};
use crate::id::NodeId;
use crate::proto::status::{Code, Status};
use crate::tunnel::{Carried, ExposeError, ForwardError, Served, TunnelBroken, TunnelError, parse_listen};

/// A peer that exposes something is to be reached, and to answer, within this.
const WITHIN: Duration = Duration::from_secs(30);

/// What is to be exposed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExposeRequest {
    /// Under which name.
    pub name: String,
    /// `HOST:PORT`.
    pub target: String,
}

/// What is to be brought where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// `PORT`, or `IP:PORT`.
    pub listen: String,
    /// Who exposes it: `did:key:…`, a ticket, or a name.
    pub peer: String,
    /// Under which name.
    pub name: String,
}

/// What is told to who exposes or forwards.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TunnelLine {
    /// Peers may reach it from now on, as far as policy lets them.
    Exposed(ExposeRequest),
    /// Connections are taken from now on.
    Forwarding {
        /// The name there.
        name: String,
        /// Who exposes it.
        peer: NodeId,
        /// Where they are taken.
        listen: SocketAddr,
    },
    /// A connection is carried.
    Began(Connection),
    /// It is over.
    Ended {
        /// Which one.
        #[serde(flatten)]
        connection: Connection,
        /// `finished`, if both sides had said everything; else `reset_here`, `reset_there`, `denied`, `withdrawn` or `session`.
        how: String,
        /// The same as a sentence, unless it finished.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
        /// Bytes to the other node.
        sent: u64,
        /// Bytes from there.
        received: u64,
    },
    /// A connection was not taken: by the far side, or by what is exposed here.
    Refused {
        /// Whose it was.
        #[serde(flatten)]
        connection: Connection,
        /// Why.
        error: Failure,
    },
    /// So many of these were not told: they came too quickly.
    Missed(u64),
    /// Why there is nothing more.
    Error(Failure),
}

/// Which connection, and whose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number: each has another one. None for one that was never made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// The peer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<NodeId>,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
}

impl Connection {
    fn of(connection: u64, peer: NodeId) -> Self {
        Self { connection: Some(connection), peer: Some(peer), from: None }
    }

    fn from(connection: u64, from: SocketAddr) -> Self {
        Self { connection: Some(connection), peer: None, from: Some(from) }
    }
}

impl From<Served> for TunnelLine {
    fn from(served: Served) -> Self {
        match served {
            Served::Began { connection, peer } => Self::Began(Connection::of(connection, peer)),
            Served::Ended { connection, peer, sent, received, end } => {
                ended(Connection::of(connection, peer), sent, received, end)
            }
            Served::Failed { peer, status, why } => {
                let connection = Connection { peer: Some(peer), ..Connection::default() };
                // Here the owner reads it, who may know where the target is.
                let message = why.map_or_else(|| status.message.clone(), |why| format!("{}: {why}", status.message));
                Self::Refused { connection, error: Failure::new(Cause::Local, status.code, message) }
            }
            Served::Missed(count) => Self::Missed(count),
        }
    }
}

impl From<Carried> for TunnelLine {
    fn from(carried: Carried) -> Self {
        match carried {
            Carried::Began { connection, from } => Self::Began(Connection::from(connection, from)),
            Carried::Ended { connection, from, sent, received, end } => {
                ended(Connection::from(connection, from), sent, received, end)
            }
            Carried::Refused { connection, from, error } => {
                Self::Refused { connection: Connection::from(connection, from), error: error.into() }
            }
            Carried::Missed(count) => Self::Missed(count),
        }
    }
}

fn ended(connection: Connection, sent: u64, received: u64, end: Result<(), TunnelBroken>) -> TunnelLine {
    let how = match &end {
        Ok(()) => "finished",
        Err(TunnelBroken::Here) => "reset_here",
        Err(TunnelBroken::There) => "reset_there",
        Err(TunnelBroken::Denied) => "denied",
        Err(TunnelBroken::Withdrawn) => "withdrawn",
        Err(TunnelBroken::Session(_)) => "session",
    };
    TunnelLine::Ended { connection, how: how.to_owned(), why: end.err().map(|why| why.to_string()), sent, received }
}

pub(super) async fn post_expose(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let (told, to_client) = mpsc::channel(LINES);
    let work = async move {
        let done: Result<(), Failure> = async {
            let request: ExposeRequest = read(body)?;
            let mut exposed = api.node.expose(&request.name, &request.target)?;
            let mut ended = api.ended.subscribe();
            let _ = told.send(TunnelLine::Exposed(request)).await;
            loop {
                let served = tokio::select! {
                    biased;
                    served = exposed.next() => served,
                    _ = ended.wait_for(|ended| *ended) => None,
                };
                if told.send(served.ok_or_else(node_gone)?.into()).await.is_err() {
                    return Ok(());
                }
            }
        }
        .await;
        if let Err(failure) = done {
            let _ = told.send(TunnelLine::Error(failure)).await;
        }
    };
    owned_lines(to_client, line, work)
}

pub(super) async fn post_forward(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let (told, to_client) = mpsc::channel(LINES);
    let work = async move {
        if let Err(failure) = forward(&api, body, &told).await {
            let _ = told.send(TunnelLine::Error(failure)).await;
        }
    };
    owned_lines(to_client, line, work)
}

/// A wrong name, and a rule that is missing, are told before anybody connects.
async fn forward(api: &Api, body: Sent, told: &mpsc::Sender<TunnelLine>) -> Result<(), Failure> {
    let request: ForwardRequest = read(body)?;
    let listen = parse_listen(&request.listen).map_err(Failure::usage)?;
    crate::tunnel::check_name(&request.name).map_err(Failure::usage)?;
    let target = resolve(&api.node, &request.peer).await?;
    let guest = api.guests.session(&api.node, &target, WITHIN, false).await?;
    let late = || Failure::new(Cause::Unreached, Code::DeadlineExceeded, "no answer in time");
    tokio::time::timeout(WITHIN, guest.session().may_tunnel(&request.name)).await.map_err(|_| late())??;
    let mut forward = guest.session().forward(listen, &request.name).await?;
    let mut ended = api.ended.subscribe();
    let _ = told.send(TunnelLine::Forwarding { name: request.name, peer: target.id, listen: forward.local() }).await;
    loop {
        let carried = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => return Err(node_gone()),
            carried = forward.next() => carried,
        };
        let released =
            || Failure::new(Cause::Local, Code::Unavailable, "the session with the peer was closed here, or the node goes down");
        if told.send(carried.ok_or_else(released)?.into()).await.is_err() {
            return Ok(());
        }
    }
}

fn node_gone() -> Failure {
    Failure::new(Cause::Local, Code::Unavailable, "the node has gone down")
}

impl From<ExposeError> for Failure {
    fn from(error: ExposeError) -> Self {
        match error {
            ExposeError::Taken(_) => Failure::new(Cause::Local, Code::AlreadyExists, error),
            ExposeError::TooMany => Failure::new(Cause::Local, Code::ResourceExhausted, error),
            other => Failure::usage(other),
        }
    }
}

impl From<ForwardError> for Failure {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Name(_) => Failure::usage(error),
            other => Failure::new(Cause::Local, Code::Unavailable, other),
        }
    }
}

impl From<TunnelError> for Failure {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Refused(status) => refused(status),
            TunnelError::Name(_) => Failure::usage(error),
            TunnelError::NotSent(_) => Failure::new(Cause::Unreached, Code::Unavailable, error).not_sent(),
            other => Failure::new(Cause::Unreached, Code::Unavailable, other),
        }
    }
}

fn refused(status: Status) -> Failure {
    let failure = Failure::from(status);
    match failure.cause {
        Cause::Refused => failure.hint(
            "ask the peer's owner to allow it there: `volt policy allow ID forward NAME`, with the id that `volt id` prints",
        ),
        Cause::Answered if failure.code == "not_found" => failure.hint("the peer exposes it with `volt expose NAME HOST:PORT`"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_a_tunnel_is_refused_has_its_exit_code() {
        let status = |code| TunnelError::Refused(Status::new(code, "why"));
        let cases = [
            (status(Code::PermissionDenied), 5),
            (status(Code::NotFound), 3),
            (status(Code::Unavailable), 3),
            (status(Code::ResourceExhausted), 3),
            (TunnelError::Name("no"), 2),
            (TunnelError::NotSent("down".into()), 4),
            (TunnelError::Unanswered("late".into()), 4),
        ];
        for (error, exit) in cases {
            assert_eq!(Failure::from(error.clone()).cause.exit_code(), exit, "{error:?}");
        }
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        let from = "127.0.0.1:5".parse().unwrap();
        let lines = [
            Carried::Ended { connection: 7, from, sent: 1, received: 2, end: Ok(()) }.into(),
            Carried::Refused { connection: 8, from, error: TunnelError::NotSent("down".into()) }.into(),
            TunnelLine::from(Served::Began { connection: 9, peer: NodeId::from_bytes([7; 32]) }),
        ];
        for line in lines {
            let json = serde_json::to_string(&line).unwrap();
            let back: TunnelLine = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), json);
        }
        let ended = TunnelLine::from(Carried::Ended { connection: 7, from, sent: 1, received: 2, end: Err(TunnelBroken::There) });
        let json = serde_json::to_value(&ended).unwrap();
        assert_eq!((&json["ended"]["connection"], &json["ended"]["how"]), (&7.into(), &"reset_there".into()), "{json}");
    }
}
