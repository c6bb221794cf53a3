//! The UDP sockets under an endpoint: bound with large buffers, and several of them bundled into what quinn takes for one.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

/// Binds a UDP socket with the buffers a burst of handshakes needs. An IPv6 wildcard takes IPv4 too.
pub(super) fn bind(address: SocketAddr, buffer_bytes: usize) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    // The kernel may grant less; that costs speed, not correctness.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Remote addresses whose socket is remembered.
const LEARNT: usize = 4_096;

/// Several sockets as one: what comes in on one is answered from it.
pub(super) struct Several {
    sockets: Vec<Arc<dyn AsyncUdpSocket>>,
    local: Vec<SocketAddr>,
    turn: AtomicUsize,
    learnt: Mutex<HashMap<SocketAddr, usize>>,
}

impl Several {
    /// Bundles sockets; there is at least one.
    pub(super) fn new(sockets: Vec<Arc<dyn AsyncUdpSocket>>) -> io::Result<Self> {
        let local = sockets.iter().map(|socket| socket.local_addr()).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { sockets, local, turn: AtomicUsize::new(0), learnt: Mutex::default() })
    }

    /// The socket that heard from there, else the one bound to the wanted source, else the first of the right family.
    fn pick(&self, transmit: &Transmit<'_>) -> usize {
        let learnt = self.learnt.lock().expect("nothing panics while it is held").get(&transmit.destination).copied();
        learnt
            .or_else(|| self.local.iter().position(|local| Some(local.ip()) == transmit.src_ip))
            .or_else(|| self.local.iter().position(|local| local.is_ipv6() == transmit.destination.is_ipv6()))
            .unwrap_or(0)
    }

    fn learn(&self, remote: SocketAddr, socket: usize) {
        let mut learnt = self.learnt.lock().expect("nothing panics while it is held");
        if learnt.len() >= LEARNT && !learnt.contains_key(&remote) {
            learnt.clear();
        }
        learnt.insert(remote, socket);
    }
}

impl fmt::Debug for Several {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Several").field(&self.local).finish()
    }
}

impl AsyncUdpSocket for Several {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AllWritable(self.sockets.iter().map(|socket| socket.clone().create_io_poller()).collect()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.sockets[self.pick(transmit)].try_send(transmit)
    }

    fn poll_recv(&self, cx: &mut Context, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for step in 0..self.sockets.len() {
            let index = (first + step) % self.sockets.len();
            if let Poll::Ready(result) = self.sockets[index].poll_recv(cx, bufs, meta) {
                if let Ok(count) = result {
                    meta[..count].iter().for_each(|meta| self.learn(meta.addr, index));
                }
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local[0])
    }

    fn max_transmit_segments(&self) -> usize {
        self.sockets.iter().map(|socket| socket.max_transmit_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.sockets.iter().map(|socket| socket.max_receive_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.sockets.iter().any(|socket| socket.may_fragment())
    }
}

/// Writable when all sockets are: which of them was full is not known here, and full ones are rare.
#[derive(Debug)]
struct AllWritable(Vec<Pin<Box<dyn UdpPoller>>>);

impl UdpPoller for AllWritable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        for poller in &mut self.0 {
            if let Poll::Ready(result) = poller.as_mut().poll_writable(cx) {
                result?;
            } else {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}
