//! That a node was killed and is back is noticed by its peers at once: it keeps a list of those it has sessions with, and a start
//! that finds one dials each of them, once. Peers that send something find out by a stateless reset; this is for those that wait.
//!
//! What came up or went down more than [`PAUSE`] before the process was killed is on the list. It decides nothing about sessions, and
//! whom the node wants is dialled by its owner, not from here.

mod list;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::list::LISTED;
pub(super) use self::list::{List, Listed};
use super::next;
use crate::id::NodeId;
use crate::session::{Event, Hub, Peer, TOLD_AT};

/// Changes are written together, this long after the first.
const PAUSE: Duration = Duration::from_secs(1);
/// What no event tells is found out this often: a session given up, an address that changed.
const REFRESH: Duration = Duration::from_secs(60);
/// Most peers that are being told at once.
const AT_ONCE: usize = 64;
/// The dials are spread over so much for each peer, and over so much at most.
const SPREAD: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(500));

/// The peers that are yet to be told: a node that is killed again before that has them still on its list.
#[derive(Clone, Debug)]
pub(super) struct Untold(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    peers: Mutex<BTreeMap<NodeId, Vec<SocketAddr>>>,
    fewer: Notify,
}

impl Untold {
    pub fn new(before: Vec<Listed>) -> Self {
        let peers = before.into_iter().map(|listed| (listed.peer, listed.addresses)).collect();
        Self(Arc::new(Shared { peers: Mutex::new(peers), fewer: Notify::new() }))
    }

    /// Tells each of them, once. Ends with the node, too.
    pub async fn tell(self, hub: Hub) {
        let mut events = hub.events();
        tokio::select! {
            () = self.tell_all(&hub) => {}
            () = async { while next(&mut events).await.is_some() {} } => {}
        }
    }

    async fn tell_all(&self, hub: &Hub) {
        let mut random = StdRng::seed_from_u64(hub.own().seed);
        let mut turns: Vec<_> = {
            let peers = self.peers();
            let spread = SPREAD.1.min(SPREAD.0 * peers.len() as u32);
            peers
                .iter()
                .map(|(peer, addresses)| (random.random_range(Duration::ZERO..=spread), *peer, addresses.clone()))
                .collect()
        };
        turns.sort();
        let start = Instant::now();
        let tell = |(after, peer, addresses): (Duration, NodeId, Vec<SocketAddr>)| async move {
            sleep_until(start + after).await;
            hub.tell(peer, &addresses).await;
            self.peers().remove(&peer);
            self.0.fewer.notify_one();
        };
        stream::iter(turns).for_each_concurrent(AT_ONCE, tell).await;
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Vec<SocketAddr>>> {
        self.0.peers.lock().expect("nothing panics while it is held")
    }
}

/// Keeps the list up to date until the node ends. One that goes down in good order has told everybody: then nobody is on it.
pub(super) async fn keep(mut list: List, hub: Hub, untold: Untold, mut events: broadcast::Receiver<Event>) {
    loop {
        let runs = tokio::select! {
            biased;
            event = next(&mut events) => event.is_some() && gather(&mut events).await,
            () = untold.0.fewer.notified() => gather(&mut events).await,
            () = sleep(REFRESH) => true,
        };
        if !runs && !hub.is_draining() {
            return;
        }
        let (hub, untold) = (hub.clone(), untold.clone());
        let put = tokio::task::spawn_blocking(move || {
            list.put(if runs { listed(&hub, &untold) } else { Vec::new() });
            list
        });
        match put.await {
            Ok(back) if runs => list = back,
            _ => return,
        }
    }
}

/// Waits for what comes together with a change. Says whether the node still runs.
async fn gather(events: &mut broadcast::Receiver<Event>) -> bool {
    let until = Instant::now() + PAUSE;
    loop {
        match timeout_at(until, next(events)).await {
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// Everybody this node has a session with, those it has had the longest left out if they are too many; and then who is yet to be told.
fn listed(hub: &Hub, untold: &Untold) -> Vec<Listed> {
    let mut peers = hub.peers();
    peers.retain(|peer| !peer.is_visitor() && peer.has_session());
    // Those connected last are the least likely to have anything to find out by themselves soon.
    peers.sort_by_key(|peer| std::cmp::Reverse(peer.last_seen()));
    let mut listed: Vec<_> =
        peers.iter().take(LISTED).map(|peer| Listed { peer: peer.id(), addresses: addresses(peer) }).collect();
    for (peer, addresses) in &*untold.peers() {
        if listed.len() < LISTED && listed.iter().all(|listed| listed.peer != *peer) {
            listed.push(Listed { peer: *peer, addresses: addresses.clone() });
        }
    }
    listed.sort_by_key(|listed| listed.peer);
    listed
}

/// Where it is, then where it says it can be dialled. Where a circuit comes from is where a relay is.
fn addresses(peer: &Peer) -> Vec<SocketAddr> {
    let attached = peer.attached().filter(|attached| !attached.link().is_relayed());
    let mut addresses: Vec<_> = attached.map(|attached| attached.link().remote()).into_iter().collect();
    for address in peer.addresses() {
        if addresses.len() < TOLD_AT && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}
