//! What an endpoint needs when the machine's addresses or routes change. Its sockets stay: bound to the wildcard address they send
//! from whatever address the route has now, so a dialled link moves by itself (RFC 9000, section 9), and one bound to an address
//! works again when that is back. But two things are to be done, and putting *another handle of the same socket* under quinn does both:
//!
//! - Every link sends a ping at once, under a new connection id, so that its peer learns of the new address now, and nobody on the
//!   way can tell by the id that it is the same link (`local_address_changed` in quinn-proto 0.11.19).
//! - Links that were accepted keep sending from the address they were accepted at. Once that is gone, Linux answers `EINVAL`
//!   to IPv6 (seen with 6.18, where IPv4 gets another error), from which quinn-udp 0.5 concludes that the machine cannot send several datagrams at once, and never does again: two thirds of
//!   the throughput, for all links and for good. A new handle begins anew. Dying links spoil that one too, until the last of them is
//!   given up, so for two minutes after a change it is looked at again and again, ever more rarely.

use std::future::pending;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::AsyncUdpSocket;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::super::runtime::Driver;
use super::super::socket;
use crate::proto::limits;

/// The first look after a change; each is twice as long after the one before.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// The sockets of an endpoint, from which more handles can be made.
#[derive(Debug)]
pub(super) struct Roaming {
    sockets: Vec<UdpSocket>,
    driver: Driver,
    /// The handle in use.
    current: Mutex<Arc<dyn AsyncUdpSocket>>,
    changed: Notify,
}

impl Roaming {
    /// Keeps these sockets, of which there is at least one.
    pub fn new(sockets: Vec<UdpSocket>, driver: Driver) -> io::Result<Self> {
        let current = Mutex::new(wrap(&sockets, &driver)?);
        Ok(Self { sockets, driver, current, changed: Notify::new() })
    }

    /// The addresses bound.
    pub fn local(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(UdpSocket::local_addr).collect()
    }

    /// The handle in use.
    pub fn current(&self) -> Arc<dyn AsyncUdpSocket> {
        self.current.lock().expect("nothing panics while it is held").clone()
    }

    /// Another handle, which is in use from now on.
    pub fn renew(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let fresh = wrap(&self.sockets, &self.driver)?;
        *self.current.lock().expect("nothing panics while it is held") = fresh.clone();
        Ok(fresh)
    }

    /// Whether the handle in use has lost what a new one could do.
    pub fn is_spoilt(&self) -> bool {
        let can = |socket: Arc<dyn AsyncUdpSocket>| socket.max_transmit_segments();
        wrap(&self.sockets, &self.driver).is_ok_and(|fresh| can(fresh) > can(self.current()))
    }

    /// Has the looks begin.
    pub fn begin(&self) {
        self.changed.notify_one();
    }

    /// Waits for [`begin`](Self::begin). Cancel-safe.
    pub async fn begun(&self) {
        self.changed.notified().await;
    }
}

/// Quinn's own part of a socket is new each time; the socket, its port and what waits in it are the same.
fn wrap(sockets: &[UdpSocket], driver: &Driver) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let wrap = |socket: &UdpSocket| quinn::Runtime::wrap_udp_socket(driver, socket.try_clone()?);
    let mut wrapped = sockets.iter().map(wrap).collect::<io::Result<Vec<_>>>()?;
    match wrapped.len() {
        1 => Ok(wrapped.remove(0)),
        _ => Ok(Arc::new(socket::Several::new(wrapped)?)),
    }
}

/// When to look after a change.
#[derive(Debug, Default)]
pub(super) struct Looks {
    next: Option<(Instant, Duration)>,
}

impl Looks {
    /// Begins anew.
    pub fn begin(&mut self) {
        self.next = Some((Instant::now() + FIRST_LOOK, FIRST_LOOK));
    }

    /// Waits for the time of the next look; for ever after the last. Cancel-safe.
    pub async fn due(&mut self) {
        let Some((at, waited)) = self.next else { return pending().await };
        sleep_until(at).await;
        // Then every link of before the change has been given up, by QUIC at the latest.
        self.next = (2 * waited <= limits::QUIC_IDLE).then(|| (at + 2 * waited, 2 * waited));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use quinn::udp::Transmit;
    use tokio::runtime::Handle;

    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_handle_that_sent_from_an_address_that_is_gone_is_spoilt_and_another_is_not() {
        // A machine without IPv6 has no such error.
        let Ok(socket) = socket::bind((Ipv6Addr::UNSPECIFIED, 0).into(), 65_536) else { return };
        let to = SocketAddr::from((Ipv6Addr::LOCALHOST, socket.local_addr().unwrap().port()));
        let nobody = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into();
        let roaming = Roaming::new(vec![socket], Driver(Handle::current())).unwrap();
        let before = roaming.current().max_transmit_segments();
        let gone = Transmit { destination: to, ecn: None, contents: b"hello", segment_size: None, src_ip: Some(nobody) };
        let mut writable = roaming.current().create_io_poller();
        std::future::poll_fn(|cx| writable.as_mut().poll_writable(cx)).await.unwrap();
        let _ = roaming.current().try_send(&gone);
        assert_eq!(roaming.current().max_transmit_segments(), 1);
        assert_eq!(roaming.is_spoilt(), before > 1, "where it was worth anything");
        assert_eq!(roaming.renew().unwrap().max_transmit_segments(), before);
        assert!(!roaming.is_spoilt());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_change_there_are_looks_for_two_minutes_and_then_none() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        looks.begin();
        let mut times = Vec::new();
        while tokio::time::timeout(Duration::from_secs(3_600), looks.due()).await.is_ok() {
            times.push(start.elapsed().as_secs());
        }
        assert_eq!(times, [1, 3, 7, 15, 31, 63, 127]);
    }
}
