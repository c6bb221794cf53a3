//! Three honest nodes, each with a link to the carrier, over which all circuits of a run go.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::net::ends::EndsConfig;
use voltmesh::net::{Bounds, Endpoint, Leg, LegStreams, Link, Network, PathRecv, PathSend, RestartKeys, Surroundings, Transport};
use voltmesh::proto::stream::Kind;
use voltmesh::proto::varint;
use voltmesh::seal::CircuitId;

use crate::carrier::Relayed;

/// Both halves of a stream, as one end of it has them.
pub type Halves = (PathSend, PathRecv);

/// How a stream of a circuit begins on a leg.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub kind: u8,
    pub leg: u64,
    /// Of all but control streams.
    pub number: Option<u64>,
}

impl Head {
    pub fn control(leg: u64) -> Self {
        Self { kind: Kind::CircuitControl as u8, leg, number: None }
    }

    pub fn stream(leg: u64, number: u64) -> Self {
        Self { kind: Kind::CircuitStream as u8, leg, number: Some(number) }
    }

    pub fn is_control(&self) -> bool {
        self.number.is_none()
    }

    pub fn bytes(&self) -> Bytes {
        let mut bytes = vec![self.kind];
        varint::put(&mut bytes, self.leg);
        self.number.into_iter().for_each(|number| varint::put(&mut bytes, number));
        bytes.into()
    }

    fn get(bytes: &[u8]) -> Option<(Self, usize)> {
        let (kind, rest) = bytes.split_first()?;
        let (leg, length) = varint::get(rest).unwrap()?;
        let control = Self { kind: *kind, leg, number: None };
        if *kind == Kind::CircuitControl as u8 {
            return Some((control, 1 + length));
        }
        let (number, more) = varint::get(&rest[length..]).unwrap()?;
        Some((Self { number: Some(number), ..control }, 1 + length + more))
    }

    /// The head of a stream that came, and what came with it.
    async fn read(recv: &mut PathRecv) -> Option<(Self, Bytes)> {
        let mut came = Vec::new();
        loop {
            came.extend_from_slice(&recv.read().await.ok()??);
            if let Some((head, length)) = Self::get(&came) {
                return Some((head, Bytes::from(came).slice(length..)));
            }
        }
    }
}

/// A circuit that was: its leg's number, and its streams.
pub type Old = Arc<(u64, Vec<Relayed>)>;

/// A stream that came to the carrier.
pub struct Arrival {
    pub head: Head,
    pub halves: Halves,
    pub rest: Bytes,
}

/// A node, and its link to the carrier as both have it.
pub struct Site {
    pub id: NodeId,
    pub config: EndsConfig,
    pub link: Link,
    pub carrier: Link,
    legs: Mutex<HashMap<u64, LegStreams>>,
    controls: Mutex<HashMap<u64, oneshot::Sender<Halves>>>,
    _endpoint: Endpoint,
}

pub const A: usize = 0;
pub const B: usize = 1;
pub const C: usize = 2;

pub struct Bench {
    pub sites: Vec<Site>,
    pub carrier_id: NodeId,
    pub carrier_config: EndsConfig,
    /// Who carries what comes from a site with the number of a leg.
    cases: Mutex<HashMap<(usize, u64), mpsc::UnboundedSender<Arrival>>>,
    /// Circuits that were, with their legs' number.
    old: Mutex<VecDeque<Old>>,
    next_leg: AtomicU64,
}

const OLD: usize = 64;

impl Bench {
    /// It runs until what is returned with it is dropped.
    pub async fn new() -> (Arc<Self>, JoinSet<()>) {
        let carrier_key = SecretKey::generate();
        let carrier = endpoint(&carrier_key);
        let mut sites = Vec::new();
        for _ in [A, B, C] {
            let key = SecretKey::generate();
            let endpoint = endpoint(&key);
            let (link, at_carrier) = linked(&endpoint, &carrier, carrier_key.id()).await;
            sites.push(Site {
                id: key.id(),
                config: EndsConfig::new(&key).unwrap(),
                link,
                carrier: at_carrier,
                legs: Mutex::default(),
                controls: Mutex::default(),
                _endpoint: endpoint,
            });
        }
        let bench = Arc::new(Self {
            sites,
            carrier_id: carrier_key.id(),
            carrier_config: EndsConfig::new(&carrier_key).unwrap(),
            cases: Mutex::default(),
            old: Mutex::default(),
            next_leg: AtomicU64::new(1),
        });
        let mut tasks = JoinSet::new();
        for site in [A, B, C] {
            tasks.spawn(bench.clone().sort_at_node(site));
            tasks.spawn(bench.clone().sort_at_carrier(site));
        }
        tasks.spawn(async move {
            let _carrier = carrier;
            std::future::pending().await
        });
        (bench, tasks)
    }

    pub fn leg_number(&self) -> u64 {
        self.next_leg.fetch_add(1, Relaxed)
    }

    /// What the carrier gets from this site with this leg's number.
    pub fn carries(&self, site: usize, leg: u64, arrivals: &mpsc::UnboundedSender<Arrival>) {
        self.cases.lock().unwrap().insert((site, leg), arrivals.clone());
    }

    pub fn forget(&self, legs: [u64; 2]) {
        for (site, leg) in [A, B, C].into_iter().flat_map(|site| legs.map(|leg| (site, leg))) {
            self.cases.lock().unwrap().remove(&(site, leg));
            self.sites[site].legs.lock().unwrap().remove(&leg);
            self.sites[site].controls.lock().unwrap().remove(&leg);
        }
    }

    pub fn remember(&self, leg: u64, relayed: Vec<Relayed>) {
        let mut old = self.old.lock().unwrap();
        old.push_back(Arc::new((leg, relayed)));
        if old.len() > OLD {
            old.pop_front();
        }
    }

    /// How many bytes the control stream of the last circuit had, each way.
    pub fn control_lengths(&self) -> [usize; 2] {
        let old = self.old.lock().unwrap();
        let control = old.back().and_then(|old| old.1.first().cloned()).unwrap_or_default();
        control.bytes.map(|bytes| bytes.len())
    }

    /// One of the circuits that were.
    pub fn old(&self, which: usize) -> Option<Old> {
        let old = self.old.lock().unwrap();
        old.get(which % old.len().max(1)).cloned()
    }

    /// A circuit that was; each is given once.
    pub fn oldest(&self) -> Option<Old> {
        let mut old = self.old.lock().unwrap();
        if old.len() > 2 { old.pop_front() } else { None }
    }

    /// Opens a control stream from a node to the carrier.
    pub async fn begin(&self, site: usize, leg: u64) -> Option<Leg> {
        let (mut send, recv) = self.sites[site].link.open().await.ok()?;
        send.write(Head::control(leg).bytes()).await.ok()?;
        self.leg(site, leg, (send, recv))
    }

    /// Opens a control stream from the carrier to a node. Gives the carrier's halves, and the node's leg.
    pub async fn lead(&self, site: usize, leg: u64) -> Option<(Halves, Leg)> {
        let (told, came) = oneshot::channel();
        self.sites[site].controls.lock().unwrap().insert(leg, told);
        let halves = self.open(site, Head::control(leg)).await?;
        let leg = self.leg(site, leg, came.await.ok()?)?;
        Some((halves, leg))
    }

    /// Opens a stream from the carrier to a node.
    pub async fn open(&self, site: usize, head: Head) -> Option<Halves> {
        let (mut send, recv) = self.sites[site].carrier.open().await.ok()?;
        send.write(head.bytes()).await.ok()?;
        Some((send, recv))
    }

    fn leg(&self, site: usize, leg: u64, (send, recv): Halves) -> Option<Leg> {
        let (made, streams) = Leg::new(&self.sites[site].link, leg, (send, recv), Bytes::new(), alone())?;
        self.sites[site].legs.lock().unwrap().insert(leg, streams);
        Some(made)
    }

    /// Gives legs at a node the streams that come from the carrier.
    async fn sort_at_node(self: Arc<Self>, site: usize) {
        let mut tasks = JoinSet::new();
        while let Ok((send, mut recv)) = self.sites[site].link.accept().await {
            let bench = self.clone();
            tasks.spawn(async move {
                let Some((head, rest)) = Head::read(&mut recv).await else { return };
                let site = &bench.sites[site];
                match head.number {
                    None => {
                        let control = site.controls.lock().unwrap().remove(&head.leg);
                        assert!(rest.is_empty(), "a control stream waits until it has arrived");
                        if let Some(control) = control {
                            let _ = control.send((send, recv));
                        }
                    }
                    Some(number) => {
                        let leg = site.legs.lock().unwrap().get(&head.leg).cloned();
                        if let Some(leg) = leg {
                            leg.hand_over(number, send, recv, rest).await;
                        }
                    }
                }
            });
            while tasks.try_join_next().is_some() {}
        }
    }

    async fn sort_at_carrier(self: Arc<Self>, site: usize) {
        let mut tasks = JoinSet::new();
        while let Ok((send, mut recv)) = self.sites[site].carrier.accept().await {
            let bench = self.clone();
            tasks.spawn(async move {
                let Some((head, rest)) = Head::read(&mut recv).await else { return };
                let case = bench.cases.lock().unwrap().get(&(site, head.leg)).cloned();
                if let Some(case) = case {
                    let _ = case.send(Arrival { head, halves: (send, recv), rest });
                }
            });
            while tasks.try_join_next().is_some() {}
        }
    }
}

/// Nobody counts what comes over a leg.
pub fn alone() -> Surroundings {
    Surroundings { received: Arc::new(drop), kept: Box::new(()) }
}

/// What both ends call the circuit of a leg, if the carrier tells them the same.
pub fn circuit_id(leg: u64) -> CircuitId {
    let mut id = [0x5c; 16];
    id[8..].copy_from_slice(&leg.to_be_bytes());
    CircuitId(id)
}

fn endpoint(key: &SecretKey) -> Endpoint {
    let transport = Transport::Udp(vec!["127.0.0.1:0".parse().unwrap()]);
    Endpoint::bind(key, &RestartKeys::of(key), transport, &Bounds::default(), &Network::choose().unwrap(), None).unwrap()
}

async fn linked(from: &Endpoint, to: &Endpoint, id: NodeId) -> (Link, Link) {
    let (links, mut accepted) = mpsc::channel(1);
    let accepting = async {
        tokio::select! {
            biased;
            link = accepted.recv() => link.unwrap(),
            () = to.accept(links) => unreachable!("it accepts until it is closed"),
        }
    };
    let (dialled, accepted) = tokio::join!(from.dial(to.local()[0], id), accepting);
    let dialled = dialled.unwrap();
    dialled.permit();
    accepted.permit();
    (dialled, accepted)
}
