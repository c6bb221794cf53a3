//! Who is where, what is in flight, and the one task that delivers it. Everything is kept in ordered maps: nothing here may
//! depend on the order of a hash.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use quinn::udp::EcnCodepoint;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::link::{Direction, LinkProfile, Passage, derive_seed};
use super::log::{Event, Fate, Log, octets};
use super::socket::{Datagram, Inbox};

const FIRST_EPHEMERAL_PORT: u16 = 49_152;

#[derive(Debug)]
pub(super) struct Medium {
    state: Mutex<State>,
    start: Instant,
    /// There is something to deliver earlier than the delivery task knows.
    earlier: Notify,
}

/// Delivers until it is aborted.
pub(super) async fn deliver(medium: Arc<Medium>) {
    loop {
        let next = medium.deliver_due();
        let earlier = medium.earlier.notified();
        match next {
            None => earlier.await,
            Some(at) => tokio::select! { biased; () = earlier => {} () = sleep_until(at) => {} },
        }
    }
}

impl Medium {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: Mutex::new(State::new(seed)), start: Instant::now(), earlier: Notify::new() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn with_log<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.lock().log)
    }

    pub(super) fn host(&self, ip: IpAddr) -> usize {
        let hosts = &mut self.lock().hosts;
        hosts.iter().position(|host| *host == ip).unwrap_or_else(|| {
            hosts.push(ip);
            hosts.len() - 1
        })
    }

    pub(super) fn ip(&self, host: usize) -> IpAddr {
        self.lock().hosts[host]
    }

    pub(super) fn rng_seed(&self, host: usize) -> [u8; 32] {
        let state = self.lock();
        StdRng::seed_from_u64(derive_seed(state.seed, &[b"endpoint", &octets(state.hosts[host])])).random()
    }

    pub(super) fn set_default_profile(&self, profile: LinkProfile) {
        self.lock().default_profile = profile;
    }

    pub(super) fn set_profile(&self, from: IpAddr, to: IpAddr, profile: LinkProfile) {
        self.lock().direction(from, to).profile = profile;
    }

    pub(super) fn cut(&self, from: IpAddr, to: IpAddr) {
        self.lock().cuts.insert((from, to));
    }

    pub(super) fn join(&self, from: IpAddr, to: IpAddr) {
        self.lock().cuts.remove(&(from, to));
    }

    pub(super) fn isolate(&self, ip: IpAddr, isolated: bool) {
        let islands = &mut self.lock().islands;
        if isolated {
            islands.insert(ip)
        } else {
            islands.remove(&ip)
        };
    }

    pub(super) fn join_all(&self) {
        let mut state = self.lock();
        state.cuts.clear();
        state.islands.clear();
    }

    pub(super) fn plug(&self, host: usize, port: u16, inbox: Arc<Inbox>) -> u64 {
        self.lock().plug(host, port, inbox)
    }

    pub(super) fn addr(&self, socket: u64) -> SocketAddr {
        self.lock().sockets[&socket].addr
    }

    pub(super) fn close(&self, socket: u64) {
        let mut state = self.lock();
        if let Some(plug) = state.sockets.remove(&socket).filter(|plug| plug.live) {
            state.ports.remove(&plug.addr);
        }
    }

    pub(super) fn move_host(&self, host: usize, ip: IpAddr) {
        let mut state = self.lock();
        let state = &mut *state;
        assert!(!state.hosts.iter().enumerate().any(|(other, at)| other != host && *at == ip), "another host is at {ip}");
        state.hosts[host] = ip;
        for (id, plug) in state.sockets.iter_mut().filter(|(_, plug)| plug.live && plug.host == host) {
            state.ports.remove(&plug.addr);
            plug.addr.set_ip(ip);
            state.ports.insert(plug.addr, *id);
        }
    }

    pub(super) fn remap(&self, old: SocketAddr, new: SocketAddr) {
        let mut state = self.lock();
        assert!(!state.ports.contains_key(&new), "{new} is taken");
        let id = state.ports.remove(&old).unwrap_or_else(|| panic!("no socket at {old}"));
        state.ports.insert(new, id);
        state.sockets.get_mut(&id).expect("a port belongs to a socket").addr = new;
    }

    pub(super) fn unplug(&self, host: usize) {
        let mut state = self.lock();
        let state = &mut *state;
        for plug in state.sockets.values_mut().filter(|plug| plug.live && plug.host == host) {
            plug.live = false;
            state.ports.remove(&plug.addr);
        }
    }

    pub(super) fn send(&self, socket: u64, to: SocketAddr, contents: Bytes, ecn: Option<EcnCodepoint>) {
        let now = self.elapsed();
        let first = self.lock().send(now, socket, to, contents, ecn);
        if first {
            self.earlier.notify_one();
        }
    }

    /// Delivers what is due, and says when the next is.
    fn deliver_due(&self) -> Option<Instant> {
        let now = self.elapsed();
        let (readers, next) = {
            let mut state = self.lock();
            let readers = state.deliver_due(now);
            (readers, state.flights.peek().map(|Reverse(flight)| self.start + flight.at))
        };
        readers.into_iter().for_each(Waker::wake);
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    seed: u64,
    default_profile: LinkProfile,
    hosts: Vec<IpAddr>,
    sockets: BTreeMap<u64, Plug>,
    ports: BTreeMap<SocketAddr, u64>,
    directions: BTreeMap<(IpAddr, IpAddr), Direction>,
    cuts: BTreeSet<(IpAddr, IpAddr)>,
    islands: BTreeSet<IpAddr>,
    flights: BinaryHeap<Reverse<Flight>>,
    next_id: u64,
    log: Log,
}

/// A socket and where it is plugged in. After a crash it stays known, but is in no port.
#[derive(Debug)]
struct Plug {
    host: usize,
    addr: SocketAddr,
    inbox: Arc<Inbox>,
    live: bool,
}

impl State {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            default_profile: LinkProfile::default(),
            hosts: Vec::new(),
            sockets: BTreeMap::new(),
            ports: BTreeMap::new(),
            directions: BTreeMap::new(),
            cuts: BTreeSet::new(),
            islands: BTreeSet::new(),
            flights: BinaryHeap::new(),
            next_id: 0,
            log: Log::new(),
        }
    }

    fn direction(&mut self, from: IpAddr, to: IpAddr) -> &mut Direction {
        let (profile, seed) = (self.default_profile, self.seed);
        let new = || Direction::new(profile, derive_seed(seed, &[b"link", &octets(from), &octets(to)]));
        self.directions.entry((from, to)).or_insert_with(new)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn plug(&mut self, host: usize, port: u16, inbox: Arc<Inbox>) -> u64 {
        let ip = self.hosts[host];
        let free = |port: &u16| !self.ports.contains_key(&SocketAddr::new(ip, *port));
        let port = if port != 0 { Some(port).filter(free) } else { (FIRST_EPHEMERAL_PORT..=u16::MAX).find(free) };
        let addr = SocketAddr::new(ip, port.expect("the port is free"));
        let id = self.id();
        self.ports.insert(addr, id);
        self.sockets.insert(id, Plug { host, addr, inbox, live: true });
        id
    }

    /// Puts a datagram in flight. True when it became the first to arrive.
    fn send(&mut self, now: Duration, socket: u64, to: SocketAddr, contents: Bytes, ecn: Option<EcnCodepoint>) -> bool {
        self.log.sent();
        let (from, live) = (self.sockets[&socket].addr, self.sockets[&socket].live);
        let bytes = contents.len();
        let passage = self.direction(from.ip(), to.ip()).carry(now, bytes);
        let end = if !live { Some(Fate::Unplugged) } else { self.end_at_sender(from.ip(), to.ip(), passage) };
        if let Some(fate) = end {
            self.log.ended(Event { at: now, from, to, bytes, fate });
            return false;
        }
        let Passage::Arrives { at, copy_at, overtaken } = passage else { return false };
        self.log.passed(copy_at.is_some(), overtaken);
        let before = self.first_arrival();
        for at in [Some(at), copy_at].into_iter().flatten() {
            let id = self.id();
            self.flights.push(Reverse(Flight { at, id, to, datagram: Datagram { from, contents: contents.clone(), ecn } }));
        }
        self.first_arrival() != before
    }

    fn first_arrival(&self) -> Option<Duration> {
        self.flights.peek().map(|Reverse(flight)| flight.at)
    }

    fn end_at_sender(&self, from: IpAddr, to: IpAddr, passage: Passage) -> Option<Fate> {
        match passage {
            _ if self.is_cut(from, to) => Some(Fate::Cut),
            Passage::Arrives { .. } => None,
            Passage::Lost => Some(Fate::Lost),
            Passage::Overflow => Some(Fate::Overflow),
            Passage::TooLarge => Some(Fate::TooLarge),
        }
    }

    fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        self.cuts.contains(&(from, to)) || self.islands.contains(&from) || self.islands.contains(&to)
    }

    fn deliver_due(&mut self, now: Duration) -> Vec<Waker> {
        let mut readers = Vec::new();
        while self.flights.peek().is_some_and(|Reverse(flight)| flight.at <= now) {
            let Some(Reverse(Flight { to, datagram, .. })) = self.flights.pop() else { break };
            let (from, bytes) = (datagram.from, datagram.contents.len());
            let fate = self.arrive(to, datagram, &mut readers);
            self.log.ended(Event { at: now, from, to, bytes, fate });
        }
        readers
    }

    fn arrive(&self, to: SocketAddr, datagram: Datagram, readers: &mut Vec<Waker>) -> Fate {
        if self.is_cut(datagram.from.ip(), to.ip()) {
            return Fate::Cut;
        }
        let Some(plug) = self.ports.get(&to).and_then(|id| self.sockets.get(id)) else { return Fate::NoSocket };
        match plug.inbox.push(datagram) {
            Ok(reader) => {
                readers.extend(reader);
                Fate::Delivered
            }
            Err(()) => Fate::InboxFull,
        }
    }
}

/// A datagram on its way. Ordered by arrival, then by the order of sending.
#[derive(Debug)]
struct Flight {
    at: Duration,
    id: u64,
    to: SocketAddr,
    datagram: Datagram,
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.id).cmp(&(other.at, other.id))
    }
}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Flight {}
