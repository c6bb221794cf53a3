//! The endpoint: one UDP port on which a node both listens and dials. It turns addresses and packets into links whose other
//! end has proved its key, and lets nobody have more of the machine than the first budget grants.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::HmacKey;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::link::{Counted, Link, LostReason, canonical};
use super::runtime::{Driver, Network};
use super::turns::{Account, Turns};
use super::{socket, tls};
use crate::id::{NodeId, SecretKey};
use crate::proto::close::CloseCode;
use crate::proto::limits::{self, Limits};
use crate::state::admission::{Admission, Gate};
use crate::state::prefix::Prefix;

mod retries;
mod roaming;
mod unproved;

use self::retries::Retries;
use self::roaming::{Looks, Roaming};
use self::unproved::{Modest, Proving, Unproved};

/// The name dialled in TLS. Keys identify nodes, names do not: it is the same for all.
const SERVER_NAME: &str = "volt";

/// Largest datagram tried for. A path takes what it can: 1,452 bytes across the internet, this much over loopback and jumbo
/// frames, where it moves bulk data half again as fast. With 6,500 bulk is faster still, but 64 calls of 1 KiB then leave in one
/// burst, and the two ends wait for each other's: they are half as many. Above 8,900 black holes were found where there were none.
const DATAGRAM_BYTES: u16 = 4_000;

/// How often a link asks again whether its path takes larger datagrams by now. Each time costs up to a hundred packets, which
/// wake an idle phone; QUIC's usual 10 min would make them more than everything else an idle link sends.
const MTU_INTERVAL: Duration = Duration::from_secs(3_600);

/// Datagrams carry pings and pongs only, and the newest matter.
const DATAGRAM_BUFFER_BYTES: usize = 4 * 1_024;

/// The two secrets that let a restarted node tell its peers at once that their old links are dead. They must survive the
/// restart, and nobody else may know them.
#[derive(Clone)]
pub struct RestartKeys {
    /// Makes stateless reset tokens.
    pub reset: [u8; 64],
    /// Marks connection ids as ours.
    pub connection_id: u64,
}

impl RestartKeys {
    /// Fresh ones, for a process nobody waits for.
    pub fn random() -> Self {
        let mut reset = [0; 64];
        rand::Rng::fill_bytes(&mut rand::rng(), &mut reset);
        Self { reset, connection_id: rand::random() }
    }

    /// Those of a node that keeps nothing but its key: its next process makes the same ones. They are signatures that nobody
    /// ever sees.
    pub fn of(key: &SecretKey) -> Self {
        let connection_id = key.sign(b"volt: marks connection ids");
        let connection_id = u64::from_le_bytes(std::array::from_fn(|at| connection_id[at]));
        Self { reset: key.sign(b"volt: makes stateless reset tokens"), connection_id }
    }
}

/// What an endpoint lets others have of it.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The limits an operator may change.
    pub limits: Limits,
    /// Addresses whose handshakes have no rate.
    pub exempt: Vec<Prefix>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { limits: Limits::default(), exempt: Prefix::LOOPBACK.to_vec() }
    }
}

/// What an endpoint sends and receives with.
#[derive(Debug)]
pub enum Transport {
    /// UDP sockets on these addresses. Port 0 lets the kernel choose.
    Udp(Vec<SocketAddr>),
    /// Anything that behaves like a UDP socket, for example a simulated one.
    Abstract(Arc<dyn quinn::AsyncUdpSocket>, Arc<dyn quinn::Runtime>),
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A socket could not be bound.
    #[error("cannot listen on {address}: {error}; choose another address, or stop what uses this one")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The network's own thread or sockets could not be set up.
    #[error("cannot set up the network: {0}")]
    System(#[from] io::Error),
    /// The TLS configuration could not be made from the key.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Why a dial brought no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The address cannot be dialled from here at all.
    #[error("cannot dial {0}: {1}")]
    Address(SocketAddr, String),
    /// Nobody answered in time.
    #[error("no answer from {0}")]
    TimedOut(SocketAddr),
    /// Another node answered: nothing was sent to it.
    #[error("{address} answered with another key: {found} instead of the one dialled")]
    WrongKey {
        /// The address dialled.
        address: SocketAddr,
        /// Who is there.
        found: NodeId,
    },
    /// The handshake failed.
    #[error("handshake with {0} failed: {1}")]
    Handshake(SocketAddr, String),
}

/// Listens and dials on one port.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    client: Arc<rustls::ClientConfig>,
    transport: Arc<TransportConfig>,
    local: Arc<Vec<SocketAddr>>,
    turns: Turns,
    gate: Arc<Mutex<Gate>>,
    retries: Arc<Mutex<Retries>>,
    unproved: Arc<Unproved>,
    dials: Arc<AtomicU64>,
    /// Links alive, and dials under way.
    links: Arc<AtomicUsize>,
    dialling: Arc<AtomicUsize>,
    unfinished_max: usize,
    /// How long a newcomer's handshake may take.
    handshake: Duration,
    /// Newcomers' handshakes that failed, or took longer.
    failed: Arc<AtomicU64>,
    /// Of UDP sockets only.
    roaming: Option<Arc<Roaming>>,
}

impl Endpoint {
    /// Binds the sockets and makes the TLS configurations. Must be told where the network lives. With a seed QUIC's own choices
    /// are the same in every run; only simulations give one.
    pub fn bind(
        key: &SecretKey,
        restart: &RestartKeys,
        transport: Transport,
        bounds: &Bounds,
        network: &Network,
        seed: Option<u64>,
    ) -> Result<Self, BindError> {
        let transport_config = Arc::new(transport_config());
        let tls = |error: tls::TlsError| BindError::Tls(error.to_string());
        let mut server = quinn::ServerConfig::with_crypto(tls::quinn_server_crypto(key, tls::ALPN).map_err(tls)?);
        server.transport_config(transport_config.clone());
        let client = Arc::new(tls::client_config(key, tls::ALPN).map_err(tls)?);

        let Opened { socket, runtime, local, roaming } = open(transport, bounds.limits.socket_buffer_bytes, network)?;
        let gate = Gate::new(&bounds.limits, bounds.exempt.clone());
        let mut config = endpoint_config(restart);
        config.rng_seed(seed.map(|seed| StdRng::seed_from_u64(seed).random()));
        let _context = network.handle().enter();
        let unproved = Arc::<Unproved>::default();
        let socket = Modest::around(socket, &unproved);
        let inner = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?;
        Ok(Self {
            inner,
            client,
            transport: transport_config,
            local: Arc::new(local),
            turns: network.turns().clone(),
            gate: Arc::new(Mutex::new(gate)),
            retries: Arc::default(),
            unproved,
            dials: Arc::default(),
            links: Arc::default(),
            dialling: Arc::default(),
            unfinished_max: bounds.limits.pending_handshakes,
            handshake: bounds.limits.handshake,
            failed: Arc::default(),
            roaming,
        })
    }

    /// Addresses or routes of this machine changed, or it slept: every link sends a ping at once, so that peers see where it
    /// comes from now, and what the sockets could do before is tried again. Nothing breaks, whatever the sockets are bound to,
    /// and however often this is called; the port stays. What is not UDP is left alone.
    ///
    /// A link that was accepted cannot follow its own address: only the side that dialled may move in QUIC.
    pub fn network_changed(&self) {
        if let Some(roaming) = &self.roaming {
            self.renew(roaming);
            roaming.begin();
        }
    }

    fn renew(&self, roaming: &Roaming) {
        let modest = |socket| Modest::around(socket, &self.unproved);
        if let Err(error) = roaming.renew().and_then(|socket| self.inner.rebind_abstract(modest(socket))) {
            tracing::warn!(%error, "the sockets stay as they were, after a change of the network");
        }
    }

    /// Waits for a change of the network. Cancel-safe.
    async fn network_changes(&self) {
        match &self.roaming {
            Some(roaming) => roaming.begun().await,
            None => std::future::pending().await,
        }
    }

    fn look_at_sockets(&self) {
        if let Some(roaming) = self.roaming.as_ref().filter(|roaming| roaming.is_spoilt()) {
            self.renew(roaming);
        }
    }

    /// The addresses bound, with the ports the kernel chose.
    pub fn local(&self) -> &[SocketAddr] {
        &self.local
    }

    /// Whose turn it is on the network's thread.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Newcomers whose handshake failed, or took too long.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Newcomers turned away before their handshake.
    pub fn refused(&self) -> u64 {
        self.gate().refused()
    }

    /// Dials begun so far.
    pub fn dials(&self) -> u64 {
        self.dials.load(Relaxed)
    }

    /// Links that somebody still holds.
    pub fn links(&self) -> usize {
        self.links.load(Relaxed)
    }

    /// QUIC connections that came to nothing yet, or any more: handshakes of newcomers, and what was closed and is not forgotten.
    /// Among the latter are some that QUIC remembers for as long as [`limits::QUIC_IDLE`]: when a close is the first packet that
    /// arrives of a connection, quinn 0.11 begins one and sets no timer to end it.
    fn unfinished(&self) -> usize {
        self.inner.open_connections().saturating_sub(self.links() + self.dialling.load(Relaxed))
    }

    /// Dials an address and makes sure that the key we want answers: when another one does, the handshake fails before that
    /// node learns who we are. Takes at most [`limits::HANDSHAKE`]. Cancel-safe: a dropped dial leaves nothing behind.
    pub async fn dial(&self, address: SocketAddr, expected: NodeId) -> Result<Link, DialError> {
        let target = self.reachable(address);
        let failed = |error: tls::TlsError| DialError::Handshake(address, error.to_string());
        let mut config = quinn::ClientConfig::new(tls::quinn_wanting(&self.client, expected).map_err(failed)?);
        config.transport_config(self.transport.clone());
        self.dials.fetch_add(1, Relaxed);
        let _dialling = Counted::new(&self.dialling);
        let dialled = self.unproved.dial(target);
        let account = self.turns.account();
        let connecting = account
            .spawning(|| self.inner.connect_with(config, target, SERVER_NAME))
            .map_err(|error| DialError::Address(address, error.to_string()))?;
        let connection = match timeout(limits::HANDSHAKE, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => return Err(DialError::TimedOut(address)),
            Ok(Err(error)) => return Err(dial_error(address, error)),
        };
        dialled.proved();
        // The handshake has seen to it; what everything rests on is worth a second look.
        let found = peer(&connection).map_err(|text| DialError::Handshake(address, text))?;
        let link = Link::new(connection, found, true, Counted::new(&self.links), account);
        if found != expected {
            link.close(CloseCode::WrongKey);
            return Err(DialError::WrongKey { address, found });
        }
        Ok(link)
    }

    /// Accepts until the endpoint is closed, and sends each link on once its handshake is done. Owns the handshakes under
    /// way: dropping this drops them.
    pub async fn accept(&self, links: mpsc::Sender<Link>) {
        let (mut handshakes, mut looks) = (JoinSet::new(), Looks::default());
        loop {
            tokio::select! {
                biased;
                Some(_) = handshakes.join_next() => self.gate().ended(),
                () = self.network_changes() => looks.begin(),
                () = looks.due() => self.look_at_sockets(),
                incoming = self.inner.accept() => match incoming {
                    Some(incoming) => if let Some(handshake) = self.admit(incoming, &links) {
                        handshakes.spawn(handshake);
                    },
                    None => return,
                },
            }
        }
    }

    fn admit(&self, incoming: quinn::Incoming, links: &mpsc::Sender<Link>) -> Option<impl Future<Output = ()> + use<>> {
        let (address, proved) = (incoming.remote_address(), incoming.remote_address_validated());
        // What is left of failed handshakes takes memory too, and a sender that hides its address must not have it pile up. Not
        // sooner: a dialler that has given up answers each Retry with a close, until it forgets about the dial.
        if !proved && self.unfinished() >= self.unfinished_max {
            self.retry(incoming);
            return None;
        }
        let now = tokio::time::Instant::now().into_std();
        match self.gate().ask(address.ip(), proved, now) {
            Admission::Accept => {}
            Admission::Retry => {
                self.retry(incoming);
                return None;
            }
            Admission::Ignore => {
                incoming.ignore();
                return None;
            }
        }
        let (links, count, failed, within) = (links.clone(), self.links.clone(), self.failed.clone(), self.handshake);
        let account = self.turns.account();
        let proving = (!proved).then(|| self.unproved.enter(address, now));
        Some(async move {
            match timeout(within, handshake(incoming, &count, account)).await {
                Ok(Ok(link)) => {
                    proving.into_iter().for_each(Proving::proved);
                    return drop(links.send(link).await);
                }
                Ok(Err(error)) => tracing::debug!(%address, error, "handshake failed"),
                Err(_) => tracing::debug!(%address, "handshake timed out"),
            }
            failed.fetch_add(1, Relaxed);
        })
    }

    /// Has an address prove itself, a few times a second.
    fn retry(&self, incoming: quinn::Incoming) {
        let now = tokio::time::Instant::now().into_std();
        if self.retries.lock().expect("nothing panics while it is held").allow(incoming.remote_address(), now) {
            let _ = incoming.retry();
        } else {
            incoming.ignore();
        }
    }

    /// Closes every link with this code and takes no new ones; waits until the peers could hear of it.
    pub async fn close(&self, code: CloseCode) {
        self.end(code);
        let _ = timeout(Duration::from_secs(1), self.inner.wait_idle()).await;
    }

    /// The same, without waiting.
    pub fn end(&self, code: CloseCode) {
        self.inner.close(VarInt::from_u32(code as u32), b"");
    }

    /// An IPv4 address as our socket can send to it: a dual-stack socket wants it mapped.
    fn reachable(&self, address: SocketAddr) -> SocketAddr {
        let v6_only_sockets = self.local.iter().all(SocketAddr::is_ipv6);
        match canonical(address) {
            SocketAddr::V4(v4) if v6_only_sockets => SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port()),
            other => other,
        }
    }

    fn gate(&self) -> std::sync::MutexGuard<'_, Gate> {
        self.gate.lock().expect("nothing panics while it is held")
    }
}

async fn handshake(incoming: quinn::Incoming, links: &Arc<AtomicUsize>, account: Account) -> Result<Link, String> {
    let connecting = account.spawning(|| incoming.accept()).map_err(handshake_text)?;
    let connection = connecting.await.map_err(handshake_text)?;
    let peer = peer(&connection)?;
    Ok(Link::new(connection, peer, false, Counted::new(links), account))
}

fn dial_error(address: SocketAddr, error: quinn::ConnectionError) -> DialError {
    match tls::certificate_error(&error) {
        Some(tls::CertificateError::WrongKey { found }) => DialError::WrongKey { address, found },
        _ => DialError::Handshake(address, handshake_text(error)),
    }
}

fn handshake_text(error: quinn::ConnectionError) -> String {
    tls::certificate_error(&error).map_or_else(|| LostReason::from(error.clone()).to_string(), |error| error.to_string())
}

fn peer(connection: &quinn::Connection) -> Result<NodeId, String> {
    let identity = connection.peer_identity().ok_or("the peer presented no certificate")?;
    let certificates =
        identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| "the peer's identity is no certificate")?;
    tls::peer_id(&certificates).map_err(|error| error.to_string())
}

struct Opened {
    socket: Arc<dyn quinn::AsyncUdpSocket>,
    runtime: Arc<dyn quinn::Runtime>,
    local: Vec<SocketAddr>,
    roaming: Option<Arc<Roaming>>,
}

fn open(transport: Transport, socket_buffer_bytes: usize, network: &Network) -> Result<Opened, BindError> {
    let addresses = match transport {
        Transport::Udp(addresses) => addresses,
        Transport::Abstract(socket, runtime) => {
            let local = vec![socket.local_addr()?];
            return Ok(Opened { socket, runtime, local, roaming: None });
        }
    };
    let addresses = if addresses.is_empty() { vec![(Ipv4Addr::UNSPECIFIED, 0).into()] } else { addresses };
    let bind = |address| socket::bind(address, socket_buffer_bytes).map_err(|error| BindError::Socket { address, error });
    let sockets = addresses.into_iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let driver = || Driver(network.handle().clone());
    let roaming = Roaming::new(sockets, driver())?;
    let local = roaming.local()?;
    Ok(Opened { socket: roaming.current(), runtime: Arc::new(driver()), local, roaming: Some(Arc::new(roaming)) })
}

fn endpoint_config(restart: &RestartKeys) -> EndpointConfig {
    let reset: Arc<dyn HmacKey> = Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &restart.reset));
    let mut config = EndpointConfig::new(reset);
    let connection_id = restart.connection_id;
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_id)));
    config.min_reset_interval(Duration::from_millis(1));
    config.max_udp_payload_size(DATAGRAM_BYTES).expect("the size is one QUIC allows");
    config
}

/// How links behave until their peer is permitted: few streams and a small window; a peer we know gets more at once.
fn transport_config() -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_BYTES).interval(MTU_INTERVAL);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::STRANGER_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::STRANGER_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .initial_rtt(Duration::from_millis(100))
        .max_idle_timeout(Some(IdleTimeout::try_from(limits::QUIC_IDLE).expect("90 s fit a QUIC timeout")))
        .keep_alive_interval(None)
        .mtu_discovery_config(Some(mtu));
    config
}

#[cfg(test)]
mod tests;
