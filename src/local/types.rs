//! The JSON of the local API that is not a line of a call: requests, answers and events, both directions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::node::{JournalCounts, RelayCounts, ReloadError, Reloaded};
use crate::policy::{Effect, Rule, Verdict};
use crate::proto::control::SessionId;
use crate::service::{Found, MethodDescription, Mode, Presence};
use crate::session::{Event, PeerInfo, Unreached};

/// How a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who it is.
    pub id: NodeId,
    /// What it calls itself.
    pub name: Option<String>,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its home.
    pub home: String,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// How to reach it.
    pub ticket: String,
    /// Seconds since it was started.
    pub uptime_s: u64,
    /// Whether anyone may connect and call.
    pub open: bool,
    /// Sessions that are up.
    pub sessions: usize,
    /// Names of what it serves.
    pub services: Vec<String>,
    /// Calls that came in.
    pub calls: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Polls of handlers that held up the network.
    pub slow_polls: u64,
    /// Newcomers turned away before their handshake.
    pub refused_handshakes: u64,
    /// Newcomers whose handshake failed, or took too long.
    #[serde(default)]
    pub failed_handshakes: u64,
    /// Sessions refused by policy or a limit.
    pub refused_sessions: u64,
    /// Strangers whose request found no room.
    #[serde(default)]
    pub refused_requests: u64,
    /// Invitations that were no good.
    #[serde(default)]
    pub refused_invitations: u64,
    /// Strangers who wait for the owner to decide.
    #[serde(default)]
    pub requests: usize,
    /// Calls that policy denied.
    #[serde(default)]
    pub denied_calls: u64,
    /// Calls beyond a rate.
    #[serde(default)]
    pub rated_calls: u64,
    /// What peers asked for and policy denied, other than sessions and calls.
    #[serde(default)]
    pub denied_requests: u64,
    /// Calls with an idempotency key that were refused: the key was used for another request, or there was no room.
    #[serde(default)]
    pub refused_keys: u64,
    /// How often each limit turned something of a peer's away, or ended it.
    #[serde(default)]
    pub limits: BTreeMap<String, u64>,
    /// What became of entries of the journal.
    #[serde(default)]
    pub journal: JournalCounts,
    /// What it carried for others.
    #[serde(default)]
    pub relay: RelayCounts,
    /// Why `volt.toml` as it is now is not in force, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_error: Option<String>,
    /// What `volt.toml` says that waits for the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config_waiting: Vec<String>,
}

/// A session that is up or wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionLine {
    /// The other node.
    pub peer: NodeId,
    /// The name this node's owner gave it.
    pub name: Option<String>,
    /// The session, while it is up.
    pub session: Option<String>,
    /// `connected`, `visitor` (connected, by a short-lived command), `connecting` or `waiting` (the peer's owner is asked).
    pub state: String,
    /// What carries it.
    pub path: Option<String>,
    /// The round trip as QUIC measures it, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// How long it is up, in seconds.
    pub age_s: Option<u64>,
    /// Streams open now.
    pub streams: usize,
    /// Where the other end is.
    pub remote: Option<SocketAddr>,
}

impl SessionLine {
    /// `None` for a peer that is neither connected nor wanted.
    pub(super) fn of(info: &PeerInfo) -> Option<Self> {
        let state = match (&info.session, info.visitor, info.wanted) {
            (Some(_), true, _) => "visitor",
            (Some(_), false, _) => "connected",
            (None, _, true) if info.unreached == Some(Unreached::Asked) => "waiting",
            (None, _, true) => "connecting",
            (None, _, false) => return None,
        };
        let session = info.session.as_ref();
        Some(Self {
            peer: info.id,
            name: info.name.clone(),
            session: session.map(|session| session_text(&session.id)),
            state: state.to_owned(),
            path: session.map(|session| session.path.to_string()),
            rtt_ms: session.map(|session| millis(session.rtt)),
            age_s: session.map(|session| session.age.as_secs()),
            streams: session.map_or(0, |session| session.streams),
            remote: session.map(|session| session.remote),
        })
    }
}

/// A peer that is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerLine {
    /// Who it is.
    pub peer: NodeId,
    /// The name this node's owner gave it.
    pub name: Option<String>,
    /// What it calls itself: for display, escaped.
    pub own_name: Option<String>,
    /// Whether this node keeps a session with it.
    pub wanted: bool,
    /// Whether a session is up.
    pub connected: bool,
    /// Where it may be dialled.
    pub addresses: Vec<SocketAddr>,
    /// When it was last connected, in milliseconds since 1970 (UTC).
    pub last_seen_unix_ms: Option<u64>,
    /// Why it is not connected, if an attempt has failed.
    pub reason: Option<String>,
}

impl PeerLine {
    pub(super) fn of(info: &PeerInfo) -> Self {
        let seen = info.last_seen.and_then(|seen| seen.duration_since(UNIX_EPOCH).ok());
        Self {
            peer: info.id,
            name: info.name.clone(),
            own_name: info.own_name.clone().filter(|name| !name.is_empty()),
            wanted: info.wanted,
            connected: info.session.is_some(),
            addresses: info.addresses.clone(),
            last_seen_unix_ms: seen.and_then(|seen| u64::try_from(seen.as_millis()).ok()),
            reason: info.unreached.as_ref().filter(|_| info.session.is_none()).map(ToString::to_string),
        }
    }
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum EventLine {
    /// The node is up.
    Ready {
        /// Who it is.
        id: NodeId,
        /// Where it listens.
        listen: Vec<SocketAddr>,
        /// How to reach it.
        ticket: String,
    },
    /// A session is up.
    Connected {
        /// The other node.
        peer: NodeId,
        /// The session.
        session: String,
        /// Whether it is the one from before, with what was in flight.
        resumed: bool,
        /// What carries it.
        path: String,
    },
    /// A session is down.
    Disconnected {
        /// The other node.
        peer: NodeId,
        /// Why.
        reason: String,
    },
    /// A service came or went.
    Service {
        /// Its name.
        name: String,
        /// Who provides it.
        provider: NodeId,
        /// Whether it can be called.
        online: bool,
    },
    /// A session that is up goes on over another path, without a break.
    Path {
        /// The other node.
        peer: NodeId,
        /// What carries it now.
        path: String,
    },
    /// A stranger wants to connect, and waits for the owner to decide.
    Request {
        /// Its key.
        peer: NodeId,
        /// What it calls itself.
        name: String,
        /// Where it was seen: of one that came through a relay, where that is.
        from: String,
        /// Whether it came through a relay.
        #[serde(default)]
        relayed: bool,
    },
    /// A peer's owner is asked whether to let this node in.
    Waiting {
        /// The other node.
        peer: NodeId,
    },
    /// `volt.toml` was read again.
    Config {
        /// Whether it is in force, as far as a running node can change; else nothing has changed.
        ok: bool,
        /// If so, what waits for the next start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        waiting: Option<Vec<String>>,
        /// If not, why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// The reader was too slow: so many events are lost to it.
    Missed {
        /// How many.
        events: u64,
    },
}

impl EventLine {
    /// `None` for an event this version does not tell.
    pub fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Connected { peer, session, resumed, path } => {
                Some(Self::Connected { peer: *peer, session: session_text(session), resumed: *resumed, path: path.to_string() })
            }
            Event::PathChanged { peer, path } => Some(Self::Path { peer: *peer, path: path.to_string() }),
            Event::Disconnected { peer, reason } => Some(Self::Disconnected { peer: *peer, reason: reason.to_string() }),
            Event::Service { name, provider, online } => {
                Some(Self::Service { name: name.to_string(), provider: *provider, online: *online })
            }
            Event::Asked { peer, name, from, relayed } => {
                Some(Self::Request { peer: *peer, name: name.clone(), from: from.to_string(), relayed: *relayed })
            }
            Event::Waiting { peer } => Some(Self::Waiting { peer: *peer }),
            Event::Missed(events) => Some(Self::Missed { events: *events }),
        }
    }
}

impl From<Result<Reloaded, ReloadError>> for EventLine {
    fn from(outcome: Result<Reloaded, ReloadError>) -> Self {
        match outcome {
            Ok(reloaded) => Self::Config { ok: true, waiting: Some(names(&reloaded)), error: None },
            Err(error) => Self::Config { ok: false, waiting: None, error: Some(error.to_string()) },
        }
    }
}

/// The configuration was read again: the answer to `/v1/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadLine {
    /// Always true: what fails is answered with an error.
    pub ok: bool,
    /// What waits for the next start.
    pub waiting: Vec<String>,
}

impl From<Reloaded> for ReloadLine {
    fn from(reloaded: Reloaded) -> Self {
        Self { ok: true, waiting: names(&reloaded) }
    }
}

pub(super) fn names(reloaded: &Reloaded) -> Vec<String> {
    reloaded.waiting.iter().map(ToString::to_string).collect()
}

/// A service and who provides it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceLine {
    /// Its name.
    pub name: String,
    /// Who provides it.
    pub provider: NodeId,
    /// Whether it can be called now.
    pub online: bool,
    /// The node whose directory it is mirrored from, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<NodeId>,
    /// Its version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Names and values that its provider says of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<(String, String)>,
    /// It is not listed any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
    /// What it says it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its methods, with their JSON Schemas.
    pub methods: Vec<MethodDescription>,
}

impl ServiceLine {
    /// What is told of a service that was found.
    pub fn of(found: &Found) -> Self {
        let described = found.service();
        let text = |(name, value): &(String, Vec<u8>)| (name.clone(), String::from_utf8_lossy(value).into_owned());
        let (version, description, methods) =
            described.map(|service| (service.version, service.description, service.methods)).unwrap_or_default();
        Self {
            name: found.name.clone(),
            provider: found.provider,
            online: found.online,
            at: found.at,
            version,
            metadata: found.metadata.iter().map(text).collect(),
            withdrawn: false,
            description,
            methods,
        }
    }
}

/// What is told to who watches services.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WatchLine {
    /// How a service is now.
    Service(ServiceLine),
    /// Some changes were not told; what follows is right again.
    Missed(bool),
    /// Why there is nothing more.
    Error(super::Failure),
}

impl WatchLine {
    /// What is told of what happened.
    pub fn of(presence: &Presence) -> Self {
        match presence {
            Presence::Online(found) | Presence::Offline(found) | Presence::Changed(found) => {
                Self::Service(ServiceLine::of(found))
            }
            Presence::Withdrawn(found) => Self::Service(ServiceLine { withdrawn: true, ..ServiceLine::of(found) }),
            Presence::Missed => Self::Missed(true),
        }
    }
}

/// Which services are looked for, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServicesRequest {
    /// In whose directory: `did:key:…`, a ticket, or a name; this node's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Their names, with `*` for any text; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Those that are offline, too.
    #[serde(default)]
    pub offline: bool,
    /// How long it may take, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub timeout_ms: u64,
}

/// A rule to add, or a question: who, what, on which resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleRequest {
    /// `allow` or `deny`; not looked at by a question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// A `did:key:…`, a name this node's owner gave, `@group` or `*`.
    pub who: String,
    /// The action.
    pub action: String,
    /// The resource; everything if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
}

/// A rule that was added.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleAdded {
    /// The rule.
    pub rule: Rule,
    /// Whether it was not there before.
    pub new: bool,
}

/// What policy says, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// `permit` or `deny`.
    pub decision: String,
    /// The rule that said so; none if no rule fits.
    pub rule: Option<Rule>,
    /// The same as a sentence.
    pub explanation: String,
}

/// The word for a verdict.
pub fn verdict_text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Permit => "permit",
        Verdict::Deny => "deny",
        Verdict::Prompt => "prompt",
    }
}

/// A peer to connect to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// `did:key:…`, a ticket, or a name.
    pub peer: String,
    /// The name it is to have from now on.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether to remember it across restarts.
    #[serde(default = "yes")]
    pub remember: bool,
    /// How long to wait for the session, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub wait_ms: u64,
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connected {
    /// Who it is.
    pub peer: NodeId,
    /// Its name here.
    pub name: Option<String>,
    /// Whether the session is up; if not, the node goes on trying.
    pub connected: bool,
    /// Why it is not, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A peer that is meant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerRequest {
    /// `did:key:…`, a ticket, or a name.
    pub peer: String,
    /// How long it may take, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub timeout_ms: u64,
    /// Relays, one after the other, by which to reach the peer, if it is not connected yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
}

/// A round trip.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// How long it took, in milliseconds.
    pub rtt_ms: f64,
    /// What carried it.
    pub path: String,
}

/// A call to be made: the first line of its request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallHead {
    /// `did:key:…`, a ticket, or a name.
    pub peer: String,
    /// `service/method`.
    pub method: String,
    /// How long the whole call may take, in milliseconds: 30 s if left out, for ever for a method that streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Not to wait for a session that is down.
    #[serde(default)]
    pub fail_fast: bool,
    /// Any number of messages follow; else one.
    #[serde(default)]
    pub stream: bool,
    /// Messages are bytes, with the content type raw, and come as such even where they happen to be JSON.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
    /// For the handler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<(String, String)>,
    /// Calls with the same key are one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Relays, one after the other, by which to reach the peer, if it is not connected yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
}

/// A method to serve: the first line of its request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// `service/method`.
    pub method: String,
    /// Whether it takes and gives any number of messages.
    #[serde(default)]
    pub stream: bool,
    /// Whether its messages need not be JSON.
    #[serde(default)]
    pub raw: bool,
    /// What it does.
    #[serde(default)]
    pub description: String,
    /// Peers in whose directories the service is to be listed for as long as it is served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<String>,
    /// Who may find it there.
    #[serde(default)]
    pub mode: Mode,
}

/// What is told to who serves a method.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ServeLine {
    /// Calls come from now on.
    Serving {
        /// `service/method`.
        method: String,
        /// Who provides it.
        provider: NodeId,
        /// Where it is listed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        at: Vec<NodeId>,
    },
    /// A call, to be answered at `/v1/serve/calls/{id}` from within 10 s.
    Call(Invocation),
    /// The caller of this call gave up, or its deadline passed.
    Cancelled(u64),
    /// Why there is nothing more.
    Error(super::Failure),
}

/// A call that came in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invocation {
    /// Where to answer it.
    pub id: u64,
    /// Who calls.
    pub peer: NodeId,
    /// `service/method`.
    pub method: String,
    /// How long the caller still waits, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// `json` or `raw`.
    pub content: String,
    /// From the caller; values that are not UTF-8 are left out.
    #[serde(default)]
    pub metadata: Vec<(String, String)>,
}

pub(super) fn session_text(id: &SessionId) -> String {
    HEXLOWER.encode(&id.0)
}

pub(super) fn millis(duration: std::time::Duration) -> f64 {
    // Microseconds are what is measured; more digits would be noise.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn yes() -> bool {
    true
}

fn ten_seconds() -> u64 {
    10_000
}
