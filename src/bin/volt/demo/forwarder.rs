//! A network between two nodes that can be cut: a UDP forwarder on loopback which, on demand, swallows everything both ways
//! without a word. It looks at no byte it carries, and knows nothing of nodes.
//!
//! It is a network only if there is no way past it, and nodes tell each other where they are. So its two sides are of different
//! families: one node has IPv6 only, the other IPv4 only.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// Where a node listens that has nothing but IPv6.
pub const V6_ONLY: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

/// Larger than any datagram.
const DATAGRAM_BYTES: usize = 1 << 16;

/// The forwarder. It ends when it is dropped.
pub struct Forwarder {
    at: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Default)]
struct Shared {
    cut: AtomicBool,
    swallowed: AtomicU64,
}

impl Forwarder {
    /// From a port of `[::1]` to that address of 127.0.0.1 and back, for one node at a time: the one that was heard last.
    ///
    /// # Errors
    /// If this machine has no such addresses.
    pub async fn start(to: SocketAddr) -> io::Result<Self> {
        let front = UdpSocket::bind(V6_ONLY).await?;
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        back.connect(to).await?;
        let (at, shared) = (front.local_addr()?, Arc::<Shared>::default());
        let task = tokio::spawn(forward(front, back, shared.clone())).abort_handle();
        Ok(Self { at, shared, task })
    }

    /// Where to dial what is behind it.
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// From now on nothing gets through.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::Relaxed);
    }

    /// From now on everything gets through again. What was swallowed is lost.
    pub fn heal(&self) {
        self.shared.cut.store(false, Ordering::Relaxed);
    }

    /// How many datagrams it has swallowed.
    pub fn swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::Relaxed)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(front: UdpSocket, back: UdpSocket, shared: Arc<Shared>) {
    let (mut there, mut here) = (vec![0; DATAGRAM_BYTES], vec![0; DATAGRAM_BYTES]);
    let mut heard_last = None;
    // An error is a datagram that went nowhere, and datagrams may.
    loop {
        tokio::select! {
            received = front.recv_from(&mut there) => {
                let Ok((length, from)) = received else { continue };
                heard_last = Some(from);
                if shared.passes() {
                    let _ = back.send(&there[..length]).await;
                }
            }
            received = back.recv(&mut here) => {
                let (Ok(length), Some(to)) = (received, heard_last) else { continue };
                if shared.passes() {
                    let _ = front.send_to(&here[..length], to).await;
                }
            }
        }
    }
}

impl Shared {
    /// Whether a datagram gets through; counts it if not.
    fn passes(&self) -> bool {
        let cut = self.cut.load(Ordering::Relaxed);
        self.swallowed.fetch_add(cut.into(), Ordering::Relaxed);
        !cut
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What arrives, or nothing.
    async fn heard(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
        let mut bytes = vec![0; DATAGRAM_BYTES];
        let received = tokio::time::timeout(Duration::from_secs(5), socket.recv_from(&mut bytes)).await.ok()?;
        received.ok().map(|(length, from)| (bytes[..length].to_vec(), from))
    }

    #[tokio::test]
    async fn it_carries_both_ways_swallows_both_ways_and_carries_again() {
        let behind = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let forwarder = Forwarder::start(behind.local_addr().unwrap()).await.unwrap();
        let before = UdpSocket::bind(V6_ONLY).await.unwrap();
        let large = vec![7; 9_000];
        before.send_to(&large, forwarder.at()).await.unwrap();
        let (bytes, back) = heard(&behind).await.unwrap();
        assert_eq!(bytes, large);
        behind.send_to(b"back", back).await.unwrap();
        assert_eq!(heard(&before).await.unwrap(), (b"back".to_vec(), forwarder.at()));

        forwarder.cut();
        before.send_to(b"lost", forwarder.at()).await.unwrap();
        behind.send_to(b"lost", back).await.unwrap();
        while forwarder.swallowed() < 2 {
            tokio::task::yield_now().await;
        }

        forwarder.heal();
        before.send_to(b"again", forwarder.at()).await.unwrap();
        assert_eq!(heard(&behind).await.unwrap().0, b"again", "and nothing of what was swallowed");
        behind.send_to(b"again", back).await.unwrap();
        assert_eq!(heard(&before).await.unwrap().0, b"again");
        assert_eq!(forwarder.swallowed(), 2);
    }

    #[tokio::test]
    async fn there_is_no_way_past_it() {
        let four = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let six = UdpSocket::bind(V6_ONLY).await.unwrap();
        assert!(six.send_to(b"past", four.local_addr().unwrap()).await.is_err());
    }
}
