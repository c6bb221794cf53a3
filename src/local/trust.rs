//! How somebody new gets in, and how somebody is put out: requests, invitations, revoking. It decides nothing: the owner does.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::failure::{Cause, Failure};
use super::peers::{self, Guests};
use super::rules;
use super::types::{ConnectRequest, Connected};
use crate::Node;
use crate::id::{InviteHash, NodeId};
use crate::node::config::PeerRef;
use crate::node::store::Invitation;
use crate::policy::{Grant, Rule, Subject};
use crate::proto::status::Code;

/// A stranger who waits for the owner to decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLine {
    /// Its key.
    pub peer: NodeId,
    /// What it calls itself: anybody can call themselves anything.
    pub name: Option<String>,
    /// Where it was seen.
    pub from: String,
    /// Whether it came through a relay, which `from` is then.
    pub relayed: bool,
    /// For how long it has been waiting.
    pub waiting_s: u64,
}

/// The owner's answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecideRequest {
    /// Whose: its id, or the beginning of it, if no other one that waits begins so.
    pub who: String,
    /// What it may do besides connecting, each an action and a resource.
    #[serde(default)]
    pub may: Vec<String>,
}

/// What was decided.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decided {
    /// About whom.
    pub peer: NodeId,
    /// By which rules.
    pub rules: Vec<Rule>,
}

/// An invitation that is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteRequest {
    /// How many nodes it lets in.
    pub uses: u32,
    /// For how long it is good, in milliseconds.
    pub ttl_ms: u64,
    /// What they may do besides connecting, each an action and a resource.
    #[serde(default)]
    pub may: Vec<String>,
}

/// An invitation that was issued.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InvitedLine {
    /// The ticket, with its secret.
    pub ticket: String,
    /// Names it.
    pub name: String,
    /// From when on it is no good, in milliseconds since 1970 (UTC).
    pub expires_unix_ms: u64,
}

/// An invitation, without its secret, which is in the ticket only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InvitationLine {
    /// Names it.
    pub name: String,
    /// How many nodes it lets in.
    pub uses: u32,
    /// Those it has let in.
    pub used: Vec<NodeId>,
    /// From when on it is no good, in milliseconds since 1970 (UTC).
    pub expires_unix_ms: u64,
    /// What they may do besides connecting.
    pub may: Vec<String>,
    /// The peer that had it made from afar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<NodeId>,
}

/// What revoking has done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Revoked {
    /// Who is refused from now on.
    pub peer: NodeId,
    /// The rule that says so.
    pub rule: Rule,
    /// Rules that permitted it something, and are gone.
    pub removed: Vec<Rule>,
    /// Names of invitations that it had made from afar, and are taken back.
    #[serde(default)]
    pub withdrawn: Vec<String>,
    /// Names of invitations that are still good: who has one of their tickets gets in with any key.
    #[serde(default)]
    pub open: Vec<String>,
}

impl InvitationLine {
    /// What can be told of it.
    pub fn of(invitation: &Invitation) -> Self {
        Self {
            name: invitation.hash.short(),
            uses: invitation.uses,
            used: invitation.used.clone(),
            expires_unix_ms: invitation.expires_unix_ms,
            may: invitation.may.iter().map(ToString::to_string).collect(),
            by: invitation.by,
        }
    }
}

/// Who waits.
pub fn requests(node: &Node) -> Vec<RequestLine> {
    let line = |request: crate::node::Request| RequestLine {
        peer: request.peer,
        name: Some(request.name).filter(|name| !name.is_empty()),
        from: request.from.to_string(),
        relayed: request.relayed,
        waiting_s: request.waiting.as_secs(),
    };
    node.requests().into_iter().map(line).collect()
}

/// Lets a stranger in.
///
/// # Errors
/// [`Failure`]: nobody is meant who waits, or the rules cannot be kept.
pub async fn admit(node: &Node, request: &DecideRequest) -> Result<Decided, Failure> {
    let may = grants(&request.may)?;
    let peer = who_waits(node, &request.who)?;
    Ok(Decided { peer, rules: node.admit(peer, &may).await? })
}

/// Turns a stranger away.
///
/// # Errors
/// As [`admit`].
pub async fn turn_away(node: &Node, request: &DecideRequest) -> Result<Decided, Failure> {
    let peer = who_waits(node, &request.who)?;
    Ok(Decided { peer, rules: vec![node.turn_away(peer).await?] })
}

fn who_waits(node: &Node, text: &str) -> Result<NodeId, Failure> {
    let waiting = node.requests();
    let begins = |id: &NodeId| {
        let id = id.to_string();
        id == text || id.starts_with(text) || id.strip_prefix("did:key:").is_some_and(|key| key.starts_with(text))
    };
    let meant: Vec<NodeId> = waiting.iter().map(|request| request.peer).filter(begins).collect();
    let failure = match meant[..] {
        [one] if !text.is_empty() => return Ok(one),
        [] => Failure::new(Cause::Usage, Code::NotFound, format!("nobody waits whose id begins with {text:?}")),
        _ => Failure::usage(format!("the ids of several who wait begin with {text:?}: give more of it")),
    };
    Err(failure.hint("`volt requests` lists who waits; `volt policy` makes rules about anybody"))
}

/// Issues an invitation, for the owner or for a peer that has it made from afar.
///
/// # Errors
/// [`Failure`]: it would be good for nothing, or cannot be kept.
pub async fn invite(node: &Node, by: Option<NodeId>, request: &InviteRequest) -> Result<InvitedLine, Failure> {
    let invited = node.invite_by(by, request.uses, Duration::from_millis(request.ttl_ms), &grants(&request.may)?).await?;
    let since = invited.expires.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let expires_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Ok(InvitedLine { ticket: invited.ticket.to_string(), name: invited.name, expires_unix_ms })
}

/// What texts give leave for.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`].
pub fn grants(texts: &[String]) -> Result<Vec<Grant>, Failure> {
    texts.iter().map(|text| text.parse().map_err(Failure::usage)).collect()
}

/// Uses an invitation: a session with who issued it is held from now on. One that is refused is not remembered.
///
/// # Errors
/// [`Failure`]: the text is no invitation, it was refused, or the name is taken.
pub async fn join(node: &Node, guests: &Guests, request: &ConnectRequest) -> Result<Connected, Failure> {
    let PeerRef::Ticket(ticket) = peers::parse(&request.peer)? else { return Err(no_invitation()) };
    if ticket.secret.is_none() {
        return Err(no_invitation());
    }
    let before = node.stored_peers().await?.into_iter().find(|peer| peer.id == ticket.id);
    let joined = peers::connect(node, guests, request).await;
    match joined {
        Err(failure) if failure.cause == Cause::Refused => {
            if !before.as_ref().is_some_and(|peer| peer.wanted) {
                peers::disconnect(node, guests, &ticket.id.to_string()).await?;
            }
            if before.is_none() {
                node.forget_all(ticket.id).await?;
            }
            Err(failure.hint("the invitation may be used up, expired or taken back: ask for another one"))
        }
        done => done,
    }
}

fn no_invitation() -> Failure {
    Failure::usage("this is no invitation")
        .hint("`volt invite` prints one at the node to join; other tickets are for `volt connect`")
}

/// Puts somebody out: whoever is meant may connect no more, whatever permitted it something by command is gone, and this node does not
/// dial it any more.
///
/// # Errors
/// [`Failure`]: no such peer, or the rules cannot be kept.
pub async fn revoke(node: &Node, guests: &Guests, who: &str) -> Result<Revoked, Failure> {
    let peer = meant(node, who).await?;
    let revoked = node.revoke(peer).await;
    // Whatever came of that.
    peers::disconnect(node, guests, &peer.to_string()).await?;
    let (rule, revoked) = revoked?;
    let withdrawn = revoked.withdrawn.iter().map(InviteHash::short).collect();
    let open = node.invitations().await?.iter().map(|invitation| invitation.hash.short()).collect();
    Ok(Revoked { peer, rule, removed: revoked.removed, withdrawn, open })
}

/// The rules that [`revoke`] takes from somebody.
///
/// # Errors
/// [`Failure`]: no such peer.
pub async fn would_lose(node: &Node, who: &str) -> Result<Vec<Rule>, Failure> {
    let peer = meant(node, who).await?;
    Ok(node.policy().current().rules().filter(|rule| rule.permits_just(&peer)).cloned().collect())
}

async fn meant(node: &Node, who: &str) -> Result<NodeId, Failure> {
    match rules::subject(who, &node.stored_peers().await?)? {
        Subject::Node(peer) if peer == node.id() => Err(Failure::usage("that is this node itself")),
        Subject::Node(peer) => Ok(peer),
        _ => Err(one_is_meant(who)),
    }
}

/// Who was meant is many.
pub fn one_is_meant(who: &str) -> Failure {
    Failure::usage(format!("`{who}` is many; revoking is about one peer"))
        .hint("name one: its id, its ticket, or the name you gave it; `volt policy deny` makes rules about many")
}
