//! Wires for other processes: made, listed, published to, subscribed to. What is published and what comes are pieces of bytes, not
//! lines. The same for a visitor without a running node.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::failure::{Cause, Failure};
use super::http::{Api, Sent, read};
use super::lines::line;
use super::peers::{Guest, Guests, resolve};
use super::pieces::{Pieces, put_piece};
use super::streams::{owned, owned_lines};
use crate::Node;
use crate::policy::Pattern;
use crate::proto::status::Code;
use crate::wire::{
    Chunk, Cursor, Delivery, From, Options, PublishError, SubscribeError, Subscription, Wire, WireError, WireInfo,
};

/// A peer that hosts a wire is to be reached within this.
const WITHIN: Duration = Duration::from_secs(30);
/// Pieces on their way.
const PIECES: usize = 16;
/// Chunks are handed on together up to about this many bytes.
const BATCH_BYTES: usize = 64 * 1024;

/// A wire to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireRequest {
    /// `WIRE` of this node, or `WIRE@PEER`.
    pub wire: String,
    /// What it keeps.
    #[serde(default)]
    pub options: Options,
}

/// A wire that was made, or was there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireCreated {
    /// Its name.
    pub wire: String,
    /// Which incarnation of its log this is: 16 hexadecimal digits.
    pub epoch: String,
    /// Whether it was there before.
    pub existed: bool,
}

/// What comes before what is published: the first piece. The others have an empty head, `{}`, and a chunk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublishHead {
    /// `WIRE` of this node, or `WIRE@PEER`.
    pub wire: String,
}

/// What is said of a chunk that is published.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChunkHead {
    /// Names and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<(String, String)>,
}

/// A line of the answer to what is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishLine {
    /// So many more chunks are stored.
    Stored {
        /// How many.
        count: u64,
        /// The number of the last of them, if it is known.
        seq: Option<u64>,
    },
    /// All is stored.
    Done(bool),
    /// The first chunk that was not stored, or perhaps not: nothing follows.
    Error(Failure),
}

/// What is subscribed to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SubscribeHead {
    /// `WIRE` of this node, or `WIRE@PEER`.
    pub wire: String,
    /// From where on: `live`, `start`, a number or a cursor.
    pub from: String,
}

/// The head of a piece that comes from a wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedHead {
    /// A chunk: the bytes of the piece.
    Chunk {
        /// Its number.
        seq: u64,
        /// Where to go on after it.
        cursor: Cursor,
        /// What is said of it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        metadata: Vec<(String, String)>,
    },
    /// Chunks that are lost.
    Gap {
        /// The first.
        from: u64,
        /// The last; none if nobody knows.
        to: Option<u64>,
        /// Where to go on after it.
        cursor: Cursor,
    },
    /// It is over, and why.
    Error(Failure),
}

/// Reads from where on: `live`, `start`, a number or a cursor.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`].
pub fn parse_from(text: &str) -> Result<From, Failure> {
    match text {
        "live" => return Ok(From::Live),
        "start" => return Ok(From::Oldest),
        _ => {}
    }
    if let Ok(seq) = text.parse::<u64>() {
        return match seq {
            0 => Err(Failure::usage("chunks are numbered from 1 on")),
            seq => Ok(From::Seq(seq)),
        };
    }
    text.parse().map(From::After).map_err(Failure::usage)
}

/// A wire that is meant, and what keeps the session with its host.
pub struct Meant {
    /// The wire.
    pub wire: Wire,
    _guest: Option<Guest>,
}

/// Reads which wire a text means: `WIRE` of this node, or `WIRE@PEER`; in the latter case with a session that is up.
///
/// # Errors
/// [`Failure`]: no such name or peer, or nobody there.
pub async fn meant(node: &Node, guests: &Guests, text: &str) -> Result<Meant, Failure> {
    let Some((name, peer)) = text.split_once('@') else {
        return Ok(Meant { wire: node.wire(text)?, _guest: None });
    };
    crate::proto::wire::check_name(name).map_err(Failure::usage)?;
    let target = resolve(node, peer).await?;
    let guest = guests.session(node, &target, WITHIN, false).await?;
    Ok(Meant { wire: guest.session().wire(name)?, _guest: Some(guest) })
}

/// Makes a wire.
///
/// # Errors
/// [`Failure`].
pub async fn create(node: &Node, guests: &Guests, request: &WireRequest) -> Result<WireCreated, Failure> {
    let meant = meant(node, guests, &request.wire).await?;
    let created = meant.wire.create(request.options).await?;
    Ok(WireCreated { wire: request.wire.clone(), epoch: format!("{:016x}", created.epoch), existed: created.existed })
}

/// The wires whose names match a pattern: of this node, or (`PATTERN@PEER`, `@PEER`) of a peer, as far as this node may use them.
/// Files of this node that cannot be opened are among them, as broken wires without a name.
///
/// # Errors
/// [`Failure`].
pub async fn list(node: &Node, guests: &Guests, text: &str) -> Result<Vec<WireInfo>, Failure> {
    let (pattern, peer) = text.split_once('@').map_or((text, None), |(pattern, peer)| (pattern, Some(peer)));
    let pattern = if pattern.is_empty() { "*" } else { pattern };
    if let Some(peer) = peer {
        let target = resolve(node, peer).await?;
        let guest = guests.session(node, &target, WITHIN, false).await?;
        return Ok(guest.session().wires(pattern).await?);
    }
    let matches: Pattern = pattern.parse().map_err(Failure::usage)?;
    let mut wires = node.wires();
    wires.retain(|wire| matches.matches(&wire.name));
    if pattern == "*" {
        wires.extend(node.broken_wires().into_iter().map(|(path, why)| broken(&path, why)));
    }
    Ok(wires)
}

fn broken(path: &std::path::Path, why: String) -> WireInfo {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let options = Options { persist: true, ..Options::default() };
    WireInfo { name, options, epoch: 0, first: 0, next: 0, bytes: 0, publishers: 0, subscribers: 0, broken: Some(why) }
}

/// Publishes what comes, until it ends; tells of what is stored. In flight when something fails, chunks after it may be stored or
/// not.
///
/// # Errors
/// [`Failure`]: what came was wrong, or the first chunk that was not stored.
pub async fn publish(
    wire: &Wire,
    chunks: &mut mpsc::Receiver<Result<Chunk, Failure>>,
    told: &mpsc::Sender<PublishLine>,
) -> Result<(), Failure> {
    let publisher = wire.publisher();
    let mut pending = FuturesOrdered::new();
    let mut more = true;
    loop {
        tokio::select! {
            biased;
            Some(stored) = pending.next(), if !pending.is_empty() => {
                let receipt: Result<crate::wire::Receipt, PublishError> = stored;
                let mut seq = receipt?.seq;
                let mut count = 1;
                // What is stored together is told together.
                while let Some(Some(next)) = futures_util::FutureExt::now_or_never(pending.next()) {
                    seq = next?.seq;
                    count += 1;
                }
                let _ = told.send(PublishLine::Stored { count, seq }).await;
            }
            next = chunks.recv(), if more => match next {
                Some(chunk) => pending.push_back(publisher.send(chunk?).await?),
                None => more = false,
            },
            else => return Ok(()),
        }
    }
}

/// The next thing of a subscription, as a piece.
///
/// # Errors
/// [`Failure`]: it is over.
pub async fn feed(subscription: &mut Subscription) -> Result<(FeedHead, Bytes), Failure> {
    let delivery = subscription.next().await?;
    Ok(piece(delivery, subscription.cursor()))
}

fn piece(delivery: Delivery, cursor: Cursor) -> (FeedHead, Bytes) {
    match delivery {
        Delivery::Chunk { seq, chunk } => {
            let text = |(name, value): (String, Bytes)| (name, String::from_utf8_lossy(&value).into_owned());
            (FeedHead::Chunk { seq, cursor, metadata: chunk.metadata.into_iter().map(text).collect() }, chunk.body)
        }
        Delivery::Gap { from, to, .. } => (FeedHead::Gap { from, to, cursor }, Bytes::new()),
    }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    wires: String,
}

pub(super) async fn get_wires(
    State(api): State<Arc<Api>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<WireInfo>>, Failure> {
    let Query(query) = query.map_err(|error| Failure::usage(error.body_text()))?;
    list(&api.node, &api.guests, &query.wires).await.map(Json)
}

pub(super) async fn post_publish(State(api): State<Arc<Api>>, body: Body) -> Response {
    let mut from_client = Pieces::new(body.into_data_stream());
    let (told, to_client) = mpsc::channel(PIECES);
    let work = async move {
        let done = async {
            let (head, _) =
                from_client.next::<PublishHead>().await?.ok_or_else(|| Failure::usage("the first piece names the wire"))?;
            let meant = meant(&api.node, &api.guests, &head.wire).await?;
            let (send, mut chunks) = mpsc::channel(PIECES);
            let reading = async {
                while let Some(next) = from_client.next::<ChunkHead>().await.transpose() {
                    let broken = next.is_err();
                    if send.send(next.map(chunk)).await.is_err() || broken {
                        break;
                    }
                }
                drop(send);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                done = publish(&meant.wire, &mut chunks, &told) => done,
                () = reading => Ok(()),
            }
        };
        let last = done.await.map_or_else(PublishLine::Error, |()| PublishLine::Done(true));
        let _ = told.send(last).await;
    };
    owned_lines(to_client, line, work)
}

fn chunk((head, body): (ChunkHead, Bytes)) -> Chunk {
    head.metadata.into_iter().fold(Chunk::new(body), |chunk, (name, value)| chunk.with(name, value))
}

pub(super) async fn post_subscribe(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let (send, to_client) = mpsc::channel::<Bytes>(PIECES);
    let work = async move {
        let ended: Result<(), Failure> = async {
            let head: SubscribeHead = read(body)?;
            let meant = meant(&api.node, &api.guests, &head.wire).await?;
            let mut subscription = meant.wire.subscribe(parse_from(&head.from)?).await?;
            loop {
                let mut batch = Vec::new();
                let (head, body) = feed(&mut subscription).await?;
                put_piece(&mut batch, &head, &body);
                while batch.len() < BATCH_BYTES
                    && let Ok(Some(delivery)) = subscription.ready()
                {
                    let (head, body) = piece(delivery, subscription.cursor());
                    put_piece(&mut batch, &head, &body);
                }
                if send.send(batch.into()).await.is_err() {
                    return Ok(());
                }
            }
        }
        .await;
        if let Err(failure) = ended {
            let mut last = Vec::new();
            put_piece(&mut last, &FeedHead::Error(failure), &[]);
            let _ = send.send(last.into()).await;
        }
    };
    owned(to_client, "application/octet-stream", Bytes::clone, work)
}

impl std::convert::From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused(status) => status.into(),
            PublishError::NotSent(_) => Failure::new(Cause::Unreached, Code::Unavailable, error).not_sent(),
            other => Failure::new(Cause::Unreached, Code::Unavailable, other)
                .hint("the chunk may be stored or not: publish it again only if that does no harm")
                .outcome_unknown(),
        }
    }
}

impl std::convert::From<SubscribeError> for Failure {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Refused(status) => status.into(),
            other => Failure::new(Cause::Unreached, Code::Unavailable, other),
        }
    }
}

impl std::convert::From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Refused(status) => status.into(),
            WireError::Name(_) | WireError::Options(_) | WireError::Pattern(_) => Failure::usage(error),
            WireError::NotSent(_) => Failure::new(Cause::Unreached, Code::Unavailable, error).not_sent(),
            other => Failure::new(Cause::Unreached, Code::Unavailable, other),
        }
    }
}
