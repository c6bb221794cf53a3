//! Watching services: one task each, which reads what a directory tells and says what happened. At a peer it asks again on each new
//! session, and goes on from what it knew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::error::DiscoverError;
use super::follow::{Follower, News};
use super::found::Presence;
use super::here::Dependent;
use super::judge::Judge;
use super::registered::open;
use super::shared::Directory;
use super::talk::{Talk, TalkEnd};
use super::tell::{Ear, Gone, Teller};
use crate::id::NodeId;
use crate::proto::codec::Message;
use crate::proto::control::SessionId;
use crate::proto::directory::{Ask, Query, Told};
use crate::proto::limits;
use crate::service::providers::{Heard, Source};
use crate::session::{Share, StreamError};

/// What happened and was not read yet. Beyond that the directory waits, and tells in the end that it did not tell all.
const NEWS: usize = 64;
/// A peer that broke off is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Services that are watched: first what is there, then what happens, each change once and in order.
///
/// It lives through any number of sessions: after a change of session it goes on from what was known. While the peer is away
/// nothing is told of its directory, and nothing is known: whether the peer is there say the events of the node.
#[derive(Debug)]
pub struct Watch {
    news: mpsc::Receiver<News>,
    task: AbortHandle,
}

impl Watch {
    /// What happened next; `None` when the node has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Presence> {
        loop {
            if let News::Presence(presence) = self.next_news().await? {
                return Some(*presence);
            }
        }
    }

    /// The same, and when all that was there at first has been told.
    pub(super) async fn next_news(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// As what [`Providers`](crate::service::Providers) hear.
    pub(crate) fn into_source(self) -> Source {
        let heard = stream::unfold((self, Ways::default()), |(mut watch, mut ways)| async move {
            let heard = match watch.next_news().await? {
                News::Current => vec![Heard::Current],
                News::Presence(presence) => ways.heard(*presence),
            };
            Some((stream::iter(heard), (watch, ways)))
        });
        heard.flatten().boxed()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Of each provider, the ways by which it is listed, and whether it is online by them: one is enough.
#[derive(Default)]
struct Ways(BTreeMap<NodeId, Way>);

#[derive(Default)]
struct Way {
    listed: BTreeSet<Option<NodeId>>,
    online: BTreeSet<Option<NodeId>>,
}

impl Ways {
    fn heard(&mut self, presence: Presence) -> Vec<Heard> {
        let (Presence::Online(found) | Presence::Offline(found) | Presence::Changed(found) | Presence::Withdrawn(found)) =
            &presence
        else {
            return Vec::new();
        };
        let (id, at) = (found.provider, found.at);
        let Way { listed, online } = self.0.entry(id).or_default();
        listed.insert(at);
        if found.online {
            online.insert(at)
        } else {
            online.remove(&at)
        };
        if let Presence::Withdrawn(_) = presence {
            listed.remove(&at);
        }
        match (listed.is_empty(), online.is_empty()) {
            (true, _) => {
                self.0.remove(&id);
                vec![Heard::Gone(id)]
            }
            (false, true) => vec![Heard::Offline(id)],
            (false, false) if found.online => vec![Heard::Online(id, found.addresses.clone())],
            (false, false) => Vec::new(),
        }
    }
}

/// Watches this node's own directory, for its owner.
pub(super) fn here(directory: &Directory, query: &Query) -> Result<Watch, DiscoverError> {
    let judge = Judge::new(directory.clone(), None, query)?;
    let (to, news) = mpsc::channel(NEWS);
    let mut follower = Follower::new(query.offline);
    follower.begin();
    let teller = Teller::new(directory.clone(), judge, ToReader { to, follower });
    let telling = async move { drop(teller.watch(None).await) };
    Ok(Watch { news, task: directory.runtime().spawn(telling).abort_handle() })
}

/// Watches a peer's directory, and waits until what is there is known.
pub(super) async fn at(peer: Dependent, directory: &Directory, query: Query) -> Result<Watch, DiscoverError> {
    let (watch, first) = begin(peer, directory, query);
    match first.await {
        Ok(Ok(())) => Ok(watch),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(DiscoverError::NoAnswer),
    }
}

/// Watches a peer's directory as soon as it is here. Also gives what comes of the first time it is asked.
pub(super) fn begin(
    peer: Dependent,
    directory: &Directory,
    query: Query,
) -> (Watch, oneshot::Receiver<Result<(), DiscoverError>>) {
    let (to, news) = mpsc::channel(NEWS);
    let (first, asked) = oneshot::channel();
    let reader = ToReader { to, follower: Follower::new(query.offline) };
    let task = directory.runtime().spawn(follow(peer, query, reader, Some(first))).abort_handle();
    (Watch { news, task }, asked)
}

/// Whoever follows a peer's directory.
pub(super) trait Reader: Send + 'static {
    /// What it knows.
    fn follower(&mut self) -> &mut Follower;
    /// Takes in what happened, as it was told on this session; waits while there is no room.
    fn tell(&mut self, session: SessionId, news: Vec<News>) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Whoever reads the watch.
struct ToReader {
    to: mpsc::Sender<News>,
    follower: Follower,
}

impl Reader for ToReader {
    fn follower(&mut self) -> &mut Follower {
        &mut self.follower
    }

    async fn tell(&mut self, _session: SessionId, news: Vec<News>) -> Result<(), Gone> {
        self.pass_on(news).await
    }
}

impl ToReader {
    async fn pass_on(&mut self, news: Vec<News>) -> Result<(), Gone> {
        for news in news {
            self.to.send(news).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}

impl Ear for ToReader {
    async fn hear(&mut self, told: Vec<Told>) -> Result<(), Gone> {
        for told in told {
            let news = self.follower.hear(told).map_err(|_| Gone)?;
            self.pass_on(news).await?;
        }
        Ok(())
    }
}

/// Why a session tells no more.
enum Ended {
    /// Before anything was asked.
    PathLost,
    SessionOver,
    /// The peer does not tell, or tells nonsense.
    Broken(DiscoverError),
}

/// Follows a peer's directory from session to session, until nobody reads.
pub(super) async fn follow(
    mut peer: Dependent,
    query: Query,
    mut reader: impl Reader,
    mut first: Option<oneshot::Sender<Result<(), DiscoverError>>>,
) {
    let mut done = None;
    loop {
        let Some(attached) = peer.session_other_than(done.take()).await else { return };
        let session = attached.session();
        let ended = async {
            let opened = open(&attached, &Ask::Watch(query.clone())).await;
            drop(attached);
            let (_send, recv) = match opened {
                Ok(opened) => opened,
                Err(StreamError::Path(_)) => return Ok(Ended::PathLost),
                Err(StreamError::Session(_)) => return Ok(Ended::SessionOver),
                Err(_) => return Ok(Ended::Broken(DiscoverError::NoAnswer)),
            };
            reader.follower().begin();
            let mut talk = Talk::new(recv, Told::LIMIT, Share::Answers);
            loop {
                let told = match talk.next().await {
                    Ok(Told::Refused(status)) => return Ok(Ended::Broken(DiscoverError::Refused(status))),
                    Ok(told) => told,
                    Err(TalkEnd::Session) => return Ok(Ended::SessionOver),
                    Err(TalkEnd::There) => return Ok(Ended::Broken(DiscoverError::NoAnswer)),
                    Err(TalkEnd::Nonsense(why)) => return Ok(Ended::Broken(DiscoverError::Answer(why))),
                };
                let news = match reader.follower().hear(told) {
                    Ok(news) => news,
                    Err(why) => return Ok(Ended::Broken(DiscoverError::Answer(why.into()))),
                };
                if news.last() == Some(&News::Current) {
                    peer.settle(session);
                    first.take().into_iter().for_each(|first| drop(first.send(Ok(()))));
                }
                reader.tell(session, news).await?;
            }
        };
        match ended.await {
            Err(Gone) => return,
            Ok(Ended::PathLost) => {
                let _ = timeout(limits::ANSWER_BOUND, peer.changed()).await;
            }
            Ok(Ended::SessionOver) => done = Some(session),
            Ok(Ended::Broken(error)) => {
                peer.settle(session);
                tracing::debug!(%error, "a watch of a peer's directory broke off");
                if let Some(first) = first.take() {
                    return drop(first.send(Err(error)));
                }
                if reader.tell(session, vec![Presence::Missed.into()]).await.is_err() {
                    return;
                }
                let _ = timeout(ASK_AGAIN, peer.session_other_than(Some(session))).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Found;

    #[test]
    fn a_provider_listed_in_two_ways_is_gone_when_it_is_in_neither() {
        let found = |at: Option<u8>, online| Found {
            name: "a".into(),
            provider: NodeId::from_bytes([1; 32]),
            at: at.map(|at| NodeId::from_bytes([at; 32])),
            online,
            epoch: 1,
            mode: None,
            addresses: Vec::new(),
            metadata: Vec::new(),
            description: Vec::new(),
        };
        let mut ways = Ways::default();
        let mut heard = |presence| match ways.heard(presence)[..] {
            [] => "",
            [Heard::Online(..)] => "online",
            [Heard::Offline(_)] => "offline",
            [Heard::Gone(_)] => "gone",
            _ => "other",
        };
        assert_eq!(heard(Presence::Online(found(None, true))), "online");
        assert_eq!(heard(Presence::Online(found(Some(9), true))), "online");
        assert_eq!(heard(Presence::Offline(found(None, false))), "");
        assert_eq!(heard(Presence::Withdrawn(found(None, false))), "");
        assert_eq!(heard(Presence::Offline(found(Some(9), false))), "offline");
        assert_eq!(heard(Presence::Missed), "");
        assert_eq!(heard(Presence::Withdrawn(found(Some(9), false))), "gone");
    }
}
