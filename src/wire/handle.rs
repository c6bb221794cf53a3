//! [`Wire`]: what the rest of the program holds of a wire, of this node or of a peer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::{SubscribeError, WireError};
use super::publisher::Publisher;
use super::stream::{self, Asked, Broken};
use super::subscription::Subscription;
use super::wires::Wires;
use crate::policy::Pattern;
use crate::proto::limits;
use crate::proto::wire::{Answer, Ask, From, Options, PublisherId, WireInfo, check_name};
use crate::session::Session;

/// A wire: a named feed of chunks, hosted by this node or by a peer. Cheap to clone; nothing happens until something is done with it.
///
/// ```no_run
/// # async fn example(session: voltmesh::Session) -> Result<(), Box<dyn std::error::Error>> {
/// use voltmesh::wire::{Delivery, From};
///
/// let wire = session.wire("sensors/kitchen")?;
/// let mut readings = wire.subscribe(From::Live).await?;
/// wire.publisher().publish("21.5").await?;
/// match readings.next().await? {
///     Delivery::Chunk { seq, chunk } => println!("{seq}: {} bytes", chunk.body.len()),
///     Delivery::Gap { from, to, .. } => println!("{from} to {to:?} are lost"),
///     _ => {}
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Wire {
    name: Arc<str>,
    at: At,
    within: Option<Duration>,
}

/// Who hosts it.
#[derive(Clone, Debug)]
pub(super) enum At {
    Here(Wires),
    There(Session),
}

/// A wire was made, or was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Created {
    /// The wire's epoch.
    pub epoch: u64,
    /// Whether it was there before.
    pub existed: bool,
}

impl Wire {
    pub(crate) fn here(wires: Wires, name: &str) -> Result<Self, WireError> {
        Self::new(At::Here(wires), name)
    }

    fn new(at: At, name: &str) -> Result<Self, WireError> {
        check_name(name).map_err(WireError::Name)?;
        Ok(Self { name: name.into(), at, within: None })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits no longer than this for a session that is down, each time; for ever, unless chosen otherwise. What is published fails then,
    /// each chunk with what became of it; a subscription can be asked again.
    pub fn within(self, within: Duration) -> Self {
        Self { within: Some(within), ..self }
    }

    /// Until when the session is waited for, from now on.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.within.and_then(|within| Instant::now().checked_add(within))
    }

    pub(super) fn at(&self) -> &At {
        &self.at
    }

    /// Makes the wire, if it is not there already. Cancel-safe: dropped half-way it may have been made.
    ///
    /// # Errors
    /// [`WireError`]: it is there and was made in another way, policy does not allow it, or the host has no room for it.
    pub async fn create(&self, options: Options) -> Result<Created, WireError> {
        options.check().map_err(WireError::Options)?;
        match &self.at {
            At::Here(wires) => {
                let (log, existed) = wires.create(&self.name, options).await.map_err(WireError::Refused)?;
                Ok(Created { epoch: log.epoch(), existed })
            }
            At::There(session) => {
                let ask = Ask::Create { name: self.name.to_string(), options };
                match stream::ask(session, self.deadline(), &ask).await?.answer {
                    Answer::Created { epoch, existed } => Ok(Created { epoch, existed }),
                    answer => Err(WireError::Nonsense(format!("{answer:?} is no answer to this"))),
                }
            }
        }
    }

    /// Publishes to it, under a name of its own that nobody else has.
    pub fn publisher(&self) -> Publisher {
        self.publisher_named(PublisherId(rand::random()))
    }

    /// Publishes to it as this publisher, which may have published before, from another process: its chunks are numbered on. Two at
    /// a time get in each other's way: the one that came last wins.
    pub fn publisher_named(&self, id: PublisherId) -> Publisher {
        Publisher::new(self.clone(), id)
    }

    /// Subscribes to it. Waits for the session to come up.
    ///
    /// # Errors
    /// [`SubscribeError`]: policy does not allow it, there is no such wire, or no such place in it.
    pub async fn subscribe(&self, from: From) -> Result<Subscription, SubscribeError> {
        Subscription::begin(self.clone(), from).await
    }
}

impl Session {
    /// A wire that the peer hosts. It need not be there yet.
    ///
    /// # Errors
    /// [`WireError::Name`]: letters, digits, `.`, `_` and `-`, in segments joined by `/`, 200 bytes at most.
    pub fn wire(&self, name: &str) -> Result<Wire, WireError> {
        Wire::new(At::There(self.clone()), name)
    }

    /// The peer's wires whose names match this pattern, as far as this node may publish or subscribe to them. Cancel-safe.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn wires(&self, pattern: &str) -> Result<Vec<WireInfo>, WireError> {
        pattern.parse::<Pattern>().map_err(|error| WireError::Pattern(error.to_string()))?;
        let ask = Ask::List { pattern: pattern.to_owned() };
        loop {
            match list(stream::ask(self, None, &ask).await?).await {
                // Asking again does no harm.
                Err(Broken::Session) => {}
                listed => return Ok(listed?),
            }
        }
    }
}

async fn list(asked: Asked) -> Result<Vec<WireInfo>, Broken> {
    let Asked { send: _send, mut answers, mut answer } = asked;
    let mut wires = Vec::new();
    loop {
        match answer {
            Answer::Wire(info) if wires.len() < limits::WIRES => wires.push(info),
            Answer::Last => return Ok(wires),
            Answer::Wire(_) => return Err(Broken::Nonsense("more wires than a node can have".into())),
            other => return Err(Broken::Nonsense(format!("{other:?} is no answer to this"))),
        }
        answer = answers.next().await?;
    }
}
