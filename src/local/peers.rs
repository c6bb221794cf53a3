//! Which peer is meant, and a session with it: kept for good, or for as long as one call needs it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::failure::{Cause, Failure};
use super::types::{ConnectRequest, Connected, Pong, ServicesRequest, millis};
use crate::Node;
use crate::id::{NodeId, Relay};
use crate::node::ConnectError;
use crate::node::config::PeerRef;
use crate::node::store::PeerName;
use crate::proto::directory::is_name;
use crate::proto::limits::RELAYS_IN_A_ROW;
use crate::proto::status::Code;
use crate::service::Search;
use crate::session::{Session, SessionState, Unreached, Via, WaitError, Where};

/// A peer that is meant, and where it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who it is.
    pub id: NodeId,
    /// Where it may be, besides what the node knows.
    pub at: Where,
}

/// Reads which peer a text means: a `did:key:…`, a ticket, or a name this node's owner gave.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`] for text that means nobody.
pub async fn resolve(node: &Node, text: &str) -> Result<Target, Failure> {
    let target = match parse(text)? {
        PeerRef::Ticket(ticket) => Target { id: ticket.id, at: Where::from(&*ticket) },
        PeerRef::Id(id) => {
            let known = node.peers().await?.into_iter().find(|peer| peer.id == id && !peer.visitor);
            Target { id, at: Where::at(&known.map(|peer| peer.addresses).unwrap_or_default()) }
        }
        PeerRef::Name(name) => {
            let peer = node.named(name.as_str()).await?.ok_or_else(|| unknown_name(&name))?;
            Target { id: peer.id, at: peer.at() }
        }
    };
    if target.id == node.id() {
        return Err(Failure::usage("that is this node itself").hint("use the ticket, id or name of another one"));
    }
    Ok(target)
}

/// The same, to be reached by way of these relays, one after the other, if it is not connected yet.
///
/// # Errors
/// As [`resolve`], of the relays too.
pub async fn resolve_via(node: &Node, text: &str, via: &[String]) -> Result<Target, Failure> {
    let mut target = resolve(node, text).await?;
    if via.len() > RELAYS_IN_A_ROW {
        return Err(Failure::usage(format!("at most {RELAYS_IN_A_ROW} relays in a row, and these are {}", via.len())));
    }
    let mut hops = Vec::with_capacity(via.len());
    for relay in via {
        let Target { id, at } = resolve(node, relay).await?;
        if id == target.id || hops.iter().any(|hop: &Relay| hop.id == id) {
            return Err(Failure::usage(format!("the way to {text} goes in a circle: {relay} is on it twice")));
        }
        hops.push(Relay { id, addresses: at.addresses });
    }
    if !hops.is_empty() {
        target.at = Where { only: Some(Via::new(hops)), ..Where::default() };
    }
    Ok(target)
}

/// The ways to write which peer is meant.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`].
pub fn parse(text: &str) -> Result<PeerRef, Failure> {
    if text.starts_with("service:") {
        let failure =
            Failure::usage("a service is meant here where a peer is needed: it may have several providers, and other ones later");
        return Err(failure.hint("`volt services` lists them; `volt call service:NAME[@PEER]` calls one of them"));
    }
    text.parse().map_err(|error| Failure::usage(format!("{text:?} is no peer: {error}")))
}

/// Checks that a text means a peer or a service: whom a call can be made to.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`].
pub fn check_callee(text: &str) -> Result<(), Failure> {
    let peer = match service(text) {
        Some((name, _)) if !is_name(name) => {
            return Err(Failure::usage(format!("{name:?} is no name of a service")));
        }
        Some((_, None)) => return Ok(()),
        Some((_, Some(peer))) => peer,
        None => text,
    };
    parse(peer).map(drop)
}

/// The service that a text means, if it means one: `service:NAME`, or `service:NAME@PEER` as that peer's directory lists it.
pub fn service(text: &str) -> Option<(&str, Option<&str>)> {
    let service = text.strip_prefix("service:")?;
    Some(service.split_once('@').map_or((service, None), |(name, peer)| (name, Some(peer))))
}

/// Nobody has that name.
pub fn unknown_name(name: &PeerName) -> Failure {
    Failure::new(Cause::Usage, Code::NotFound, format!("no peer is named {:?}", name.as_str()))
        .hint(format!("give the name with `volt connect TICKET --as {name}`; `volt peers` lists the names there are"))
}

/// Where to look for services, and what keeps the session with whose directory it is.
///
/// # Errors
/// [`Failure`]: no such peer, refused, or nobody there in time.
pub async fn search(node: &Node, guests: &Guests, request: &ServicesRequest) -> Result<(Search, Option<Guest>), Failure> {
    let pattern = request.pattern.as_deref().unwrap_or("*");
    let Some(peer) = &request.peer else {
        return Ok((node.directory().query(pattern).offline(request.offline), None));
    };
    let target = resolve(node, peer).await?;
    let guest = guests.session(node, &target, Duration::from_millis(request.timeout_ms), false).await?;
    Ok((guest.session().query(pattern).offline(request.offline), Some(guest)))
}

/// Sessions held only while somebody uses them. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Guests(Arc<Mutex<HashMap<NodeId, usize>>>);

/// A session in use. If it was brought up for that use only, it ends with the last use.
#[derive(Debug)]
pub struct Guest {
    session: Session,
    held: Option<(Guests, Node)>,
}

impl Guest {
    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some((guests, node)) = self.held.take() else { return };
        let mut held = guests.lock();
        let id = self.session.peer();
        let Some(count) = held.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            held.remove(&id);
            node.let_go(id);
        }
    }
}

impl Guests {
    /// A session with this peer, up within this time. One that the owner wants, or that the peer keeps, is used as it is.
    ///
    /// # Errors
    /// [`Failure`]: refused, or nobody there.
    pub async fn session(&self, node: &Node, target: &Target, within: Duration, fail_fast: bool) -> Result<Guest, Failure> {
        let there = node.session(target.id).filter(|session| session.state() != SessionState::Idle);
        let (session, held) = match there {
            Some(session) if !self.holds(target.id) => {
                if session.state() == SessionState::Connecting && target.at != Where::default() {
                    // It is wanted already, and perhaps this is where it is.
                    node.hold_at(target.id, &target.at);
                }
                (session, None)
            }
            _ => (self.hold(node, target), Some((self.clone(), node.clone()))),
        };
        let own = held.is_some();
        let guest = Guest { session, held };
        match guest.session.state() {
            SessionState::Connected => {}
            _ if own => drop(node.connect_at(target.id, &target.at, within).await?),
            _ if fail_fast => {
                let failure = Failure::from(crate::CallError::NotSent("the peer is not connected".into()));
                return Err(failure);
            }
            _ => guest.session.connected(within).await?,
        }
        Ok(guest)
    }

    /// The owner decided about this peer: it is no longer up to those who use it.
    fn forget(&self, id: NodeId) {
        self.lock().remove(&id);
    }

    fn holds(&self, id: NodeId) -> bool {
        self.lock().contains_key(&id)
    }

    fn hold(&self, node: &Node, target: &Target) -> Session {
        *self.lock().entry(target.id).or_default() += 1;
        node.hold_at(target.id, &target.at)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, usize>> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

/// Keeps a session with a peer, and says whether it came up in the time asked for. A peer that is not there stays wanted, and so
/// does one that refuses; that is an error nevertheless.
///
/// # Errors
/// [`Failure`]: no such peer, a name that is taken, or a refusal.
pub async fn connect(node: &Node, guests: &Guests, request: &ConnectRequest) -> Result<Connected, Failure> {
    let target = resolve(node, &request.peer).await?;
    let name = request.name.as_deref().map(str::parse::<PeerName>).transpose().map_err(Failure::usage)?;
    if request.remember {
        node.remember(target.id, target.at.clone(), name).await?;
    }
    guests.forget(target.id);
    let before = node.session(target.id).map_or(0, |session| session.failures());
    let session = node.hold_at(target.id, &target.at);
    let came_up = tokio::select! {
        came_up = node.connect_at(target.id, &target.at, Duration::from_millis(request.wait_ms)) => came_up,
        // A person is asked, and may take long.
        asked = is_asked(&session, before) => Err(asked),
    };
    let known = node.peers().await?.into_iter().find(|peer| peer.id == target.id && !peer.visitor);
    let name = known.and_then(|peer| peer.name);
    let failure = match came_up {
        Ok(_) => return Ok(Connected { peer: target.id, name, connected: true, reason: None }),
        Err(error) => Failure::from(error),
    };
    if failure.cause == Cause::Refused {
        let hint = format!("{}; this node remembers it and goes on trying", failure.hint.clone().unwrap_or_default());
        return Err(failure.hint(hint));
    }
    Ok(Connected { peer: target.id, name, connected: false, reason: Some(failure.message) })
}

/// Ends when the peer's owner is asked whether to let this node in, after so many attempts before.
async fn is_asked(session: &Session, before: u64) -> ConnectError {
    let mut changes = std::pin::pin!(session.changes());
    while session.unreached() != Some(Unreached::Asked) || session.failures() <= before {
        if changes.next().await.is_none() {
            std::future::pending().await
        }
    }
    ConnectError::Unreached(WaitError::TimedOut(Some(Unreached::Asked)))
}

/// Keeps no session with a peer any more. Its name stays. Gives its id.
///
/// # Errors
/// [`Failure`]: no such peer, or the store cannot be written.
pub async fn disconnect(node: &Node, guests: &Guests, peer: &str) -> Result<NodeId, Failure> {
    let target = resolve(node, peer).await?;
    let forgotten = node.forget(target.id).await;
    guests.forget(target.id);
    node.release(target.id);
    forgotten?;
    Ok(target.id)
}

/// Measures a round trip to a peer.
///
/// # Errors
/// [`Failure`]: no such peer, refused, or no answer in time.
pub async fn ping(node: &Node, guests: &Guests, peer: &str, via: &[String], within: Duration) -> Result<Pong, Failure> {
    let until = Instant::now() + within;
    let target = resolve_via(node, peer, via).await?;
    let guest = guests.session(node, &target, within, false).await?;
    let round_trip = guest.session().ping(until.saturating_duration_since(Instant::now())).await?;
    let path = guest.session().path().map(|path| path.to_string()).unwrap_or_default();
    Ok(Pong { rtt_ms: millis(round_trip), path })
}
