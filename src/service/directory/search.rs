//! Looking for services, in a directory at a peer or in this node's own.

use std::fmt;

use tokio::time::{Instant, timeout_at};

use super::error::DiscoverError;
use super::found::Found;
use super::judge::Judge;
use super::registered::open;
use super::shared::Directory;
use super::talk::{Talk, TalkEnd};
use super::tell::{Ear, Gone, Teller};
use super::watch::{self, Watch};
use crate::policy::Pattern;
use crate::proto::codec::Message;
use crate::proto::directory::{Ask, Query, Scope, Told};
use crate::proto::limits;
use crate::service::serve::Server;
use crate::session::{Session, Share, WaitError};

/// What is looked for, and where. Nothing happens until [`discover`](Self::discover) or [`watch`](Self::watch).
#[derive(Clone)]
#[must_use = "nothing is asked until it is awaited"]
pub struct Search {
    place: Place,
    query: Query,
}

#[derive(Clone)]
enum Place {
    Peer(Session),
    Here(Directory),
}

impl Search {
    pub(super) fn here(directory: Directory, pattern: &str) -> Self {
        Self { place: Place::Here(directory), query: query(pattern) }
    }

    pub(in crate::service) fn at(session: &Session, pattern: &str) -> Self {
        Self { place: Place::Peer(session.clone()), query: query(pattern) }
    }

    /// Whether services that are offline are found too: those that were registered within the last day, and not withdrawn.
    pub fn offline(mut self, offline: bool) -> Self {
        self.query.offline = offline;
        self
    }

    /// What is there now, by name. At a peer it takes at most as long as a call (30 s). Cancel-safe.
    ///
    /// # Errors
    /// [`DiscoverError`].
    pub async fn discover(self) -> Result<Vec<Found>, DiscoverError> {
        self.query.pattern.parse::<Pattern>()?;
        match self.place {
            Place::Here(directory) => {
                let judge = Judge::new(directory.clone(), None, &self.query)?;
                let told = Teller::new(directory, judge, Collect::default()).discover().await;
                Ok(told.map(|collected| collected.found).unwrap_or_default())
            }
            Place::Peer(session) => {
                let deadline = Instant::now() + session.limits().call_deadline;
                let answer = timeout_at(deadline, discover_at(&session, self.query, deadline));
                answer.await.unwrap_or(Err(DiscoverError::NoAnswer))
            }
        }
    }

    /// What is there now, and what becomes of it; see [`Watch`]. Waits until what is there is known, at a peer at most as long as a call
    /// (30 s). Cancel-safe.
    ///
    /// # Errors
    /// [`DiscoverError`].
    pub async fn watch(self) -> Result<Watch, DiscoverError> {
        self.query.pattern.parse::<Pattern>()?;
        match self.place {
            Place::Here(directory) => watch::here(&directory, &self.query),
            Place::Peer(session) => {
                let server = session.part::<Server>().ok_or(WaitError::Closed)?;
                let deadline = Instant::now() + session.limits().call_deadline;
                session.attached_by(Some(deadline), None, false).await?;
                let begun = watch::at(server.peers().depend(session.peer()), server.directory(), self.query);
                timeout_at(deadline, begun).await.unwrap_or(Err(DiscoverError::NoAnswer))
            }
        }
    }

    /// Watches without waiting for the peer to be here: nothing comes until it is.
    pub(crate) fn begin_watch(self) -> Result<Watch, DiscoverError> {
        self.query.pattern.parse::<Pattern>()?;
        match self.place {
            Place::Here(directory) => watch::here(&directory, &self.query),
            Place::Peer(session) => {
                let server = session.part::<Server>().ok_or(WaitError::Closed)?;
                Ok(watch::begin(server.peers().depend(session.peer()), server.directory(), self.query).0)
            }
        }
    }
}

fn query(pattern: &str) -> Query {
    Query { pattern: pattern.to_owned(), offline: false, scope: Scope::All }
}

async fn discover_at(session: &Session, query: Query, deadline: Instant) -> Result<Vec<Found>, DiscoverError> {
    let attached = session.attached_by(Some(deadline), None, false).await?;
    let (_send, recv) = open(&attached, &Ask::Discover(query)).await.map_err(|_| DiscoverError::NoAnswer)?;
    let mut talk = Talk::new(recv, Told::LIMIT, Share::Answers);
    let (mut found, mut weight) = (Vec::new(), 0);
    loop {
        match talk.next().await {
            Ok(Told::Entry(entry)) => {
                weight += entry.weight();
                if weight > 2 * limits::DIRECTORY_BYTES {
                    return Err(DiscoverError::Answer("it told of more than is taken".into()));
                }
                found.push(entry);
            }
            Ok(Told::Current) => return Ok(found),
            Ok(Told::Refused(status)) => return Err(DiscoverError::Refused(status)),
            Ok(_) => return Err(DiscoverError::Answer("it told of changes, which nobody asked for".into())),
            Err(TalkEnd::Nonsense(why)) => return Err(DiscoverError::Answer(why)),
            Err(TalkEnd::There | TalkEnd::Session) => return Err(DiscoverError::NoAnswer),
        }
    }
}

/// Keeps what is found.
#[derive(Default)]
struct Collect {
    found: Vec<Found>,
}

impl Ear for Collect {
    async fn hear(&mut self, told: Vec<Told>) -> Result<(), Gone> {
        self.found.extend(told.into_iter().filter_map(|told| match told {
            Told::Entry(found) => Some(found),
            _ => None,
        }));
        Ok(())
    }
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search").field("query", &self.query).finish_non_exhaustive()
    }
}
