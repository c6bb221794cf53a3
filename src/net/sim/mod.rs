//! A network in memory for tests: real quinn over sockets that are queues, under tokio's paused time. Delay, jitter, loss,
//! duplication, reordering, rate limits, partitions and address changes are drawn from a seed, so the same seed gives the
//! same [log](SimNetwork::log), datagram by datagram. It never opens a socket, never reads the machine's clock and looks at
//! no byte it carries.
//!
//! Use it on a current-thread runtime with time paused from the start (`#[tokio::test(start_paused = true)]`). Time then
//! jumps from one timer to the next, and an hour of keep-alives takes milliseconds. Tokio's timers count in milliseconds, so
//! a datagram arrives at the end of the millisecond it is due in. Write `biased;` in every `select!`: without it tokio
//! picks branches by a random number of its own, and runs differ.
//!
//! ```
//! use std::sync::Arc;
//! use voltmesh::net::sim::{LinkProfile, SimNetwork, SimRuntime};
//!
//! # let paused = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
//! # paused.block_on(async {
//! let network = SimNetwork::new(7);
//! let (a, b) = (network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2]));
//! network.link(a.ip(), b.ip(), LinkProfile { loss: 0.1, ..LinkProfile::default() });
//!
//! let mut config = quinn::EndpointConfig::default();
//! config.rng_seed(Some(a.rng_seed()));
//! let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, a.socket(8658), Arc::new(SimRuntime))?;
//! assert_eq!(endpoint.local_addr()?, a.addr(8658));
//! # Ok::<_, std::io::Error>(()) })?;
//! # Ok::<_, std::io::Error>(())
//! ```

mod link;
mod log;
mod medium;
mod runtime;
mod socket;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use link::LinkProfile;
pub use log::{Counters, Event, Fate};
pub use runtime::SimRuntime;

use medium::Medium;

/// The network. Clones are handles to the same one; its delivery task ends when the last handle and the last [`SimHost`] are
/// dropped, and what is in flight then is gone.
#[derive(Clone, Debug)]
pub struct SimNetwork {
    medium: Arc<Medium>,
    _delivery: Arc<AbortOnDrop>,
}

impl SimNetwork {
    /// An empty network whose every link has the default [`LinkProfile`].
    ///
    /// # Panics
    /// Outside a tokio runtime: the delivery task is spawned here.
    pub fn new(seed: u64) -> Self {
        let medium = Arc::new(Medium::new(seed));
        let delivery = tokio::spawn(medium::deliver(medium.clone()));
        Self { medium, _delivery: Arc::new(AbortOnDrop(delivery.abort_handle())) }
    }

    /// The host at this address; the same one when asked twice.
    pub fn host(&self, ip: impl Into<IpAddr>) -> SimHost {
        SimHost { index: self.medium.host(ip.into()), network: self.clone() }
    }

    /// What links are like that [`link`](Self::link) did not set. Links that have carried a datagram keep what they had.
    pub fn default_link(&self, profile: LinkProfile) {
        self.medium.set_default_profile(profile);
    }

    /// Sets both directions of a link. What is in flight keeps the arrival it was given.
    pub fn link(&self, a: impl Into<IpAddr>, b: impl Into<IpAddr>, profile: LinkProfile) {
        let (a, b) = (a.into(), b.into());
        self.medium.set_profile(a, b, profile);
        self.medium.set_profile(b, a, profile);
    }

    /// Sets one direction of a link.
    pub fn link_one_way(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>, profile: LinkProfile) {
        self.medium.set_profile(from.into(), to.into(), profile);
    }

    /// Cuts both directions, until [`heal`](Self::heal). A datagram is lost when its direction is cut as it is sent or as it
    /// would arrive. The sender is not told.
    pub fn partition(&self, a: impl Into<IpAddr>, b: impl Into<IpAddr>) {
        let (a, b) = (a.into(), b.into());
        self.medium.cut(a, b);
        self.medium.cut(b, a);
    }

    /// Cuts one direction: a black hole that only one end can see.
    pub fn partition_one_way(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>) {
        self.medium.cut(from.into(), to.into());
    }

    /// Joins both directions again.
    pub fn heal(&self, a: impl Into<IpAddr>, b: impl Into<IpAddr>) {
        let (a, b) = (a.into(), b.into());
        self.medium.join(a, b);
        self.medium.join(b, a);
    }

    /// Cuts an address off from everybody, until [`rejoin`](Self::rejoin).
    pub fn isolate(&self, ip: impl Into<IpAddr>) {
        self.medium.isolate(ip.into(), true);
    }

    /// Undoes [`isolate`](Self::isolate).
    pub fn rejoin(&self, ip: impl Into<IpAddr>) {
        self.medium.isolate(ip.into(), false);
    }

    /// Undoes every partition and every isolation.
    pub fn heal_all(&self) {
        self.medium.join_all();
    }

    /// Time since the network was made.
    pub fn elapsed(&self) -> Duration {
        self.medium.elapsed()
    }

    /// What became of all datagrams, in numbers.
    pub fn counters(&self) -> Counters {
        self.medium.with_log(|log| log.counters())
    }

    /// What became of each datagram, in order of time: the newest 262,144.
    pub fn log(&self) -> Vec<Event> {
        self.medium.with_log(|log| log.events())
    }

    /// One number for all that ever happened, also what [`log`](Self::log) has forgotten: time, addresses, length and fate of
    /// every datagram. Contents are left out, for TLS draws its own random numbers.
    pub fn digest(&self) -> u64 {
        self.medium.with_log(|log| log.digest())
    }
}

/// A machine on the network: one address, any number of sockets.
#[derive(Clone, Debug)]
pub struct SimHost {
    network: SimNetwork,
    index: usize,
}

impl SimHost {
    /// Where the host is now.
    pub fn ip(&self) -> IpAddr {
        self.network.medium.ip(self.index)
    }

    /// The host's address with this port.
    pub fn addr(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// Opens a socket; port 0 means any free one. The port is free again when the last reference to the socket is dropped,
    /// or by [`crash`](Self::crash). It holds at most 2,048 datagrams unread; further ones are dropped and counted.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn socket(&self, port: u16) -> Arc<dyn quinn::AsyncUdpSocket> {
        Arc::new(socket::SimSocket::open(self.network.medium.clone(), self.index, port))
    }

    /// 32 bytes for `quinn::EndpointConfig::rng_seed`, from the network's seed and the host's address.
    pub fn rng_seed(&self) -> [u8; 32] {
        self.network.medium.rng_seed(self.index)
    }

    /// Moves the host to another address, its sockets with it, as a phone does between networks. Links and partitions belong
    /// to addresses, so it finds those of the new place. What is on its way to the old address is lost.
    ///
    /// # Panics
    /// When another host is at that address.
    pub fn move_to(&self, ip: impl Into<IpAddr>) {
        self.network.medium.move_host(self.index, ip.into());
    }

    /// Gives the socket at `port` another port, as a NAT does that forgot its mapping.
    ///
    /// # Panics
    /// When no socket is at `port` or one is at `new`.
    pub fn remap(&self, port: u16, new: u16) {
        self.network.medium.remap(self.addr(port), self.addr(new));
    }

    /// Unplugs every socket for good, without a word to anyone, as `kill -9` does: whoever still holds one sends and receives
    /// nothing any more, and the ports are free for a new process.
    pub fn crash(&self) {
        self.network.medium.unplug(self.index);
    }
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
