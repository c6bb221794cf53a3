//! What is sent to an address before it has shown that it is there: never more than three times what came from it (RFC 9000,
//! section 8.1). QUIC sees to that itself, but quinn 0.11 finishes a datagram that it may begin: whoever forges addresses could have us
//! send four times as much. So what belongs to a handshake, and would be more, is not sent, as if it were lost on the way.
//!
//! Links are not affected, whatever somebody sends in their address's name: their packets have short headers, and pass. Nor are dials: an
//! address that we dial ourselves is sent what that takes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// So many times as much as came.
const TIMES: usize = 3;
/// The least that a handshake begins with (RFC 9000, section 14.1). What came of one before it is accepted is not known here.
const FIRST_BYTES: usize = 1_200;
/// Set aside for packets with short headers: a server announces its connection ids with the first answer, in some 50 bytes.
const SHORT_BYTES: usize = 128;
/// A handshake that has failed has a last word for so long.
const LAST_WORD: Duration = Duration::from_secs(3);
/// Addresses remembered after their handshakes have failed.
const ADDRESSES: usize = 4_096;
/// Set in the first byte of a packet that belongs to a handshake (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;

/// The addresses that have not proved themselves, with handshakes under way or just over.
#[derive(Debug, Default)]
pub(super) struct Unproved {
    /// How many there are, to be looked at with each datagram.
    count: AtomicUsize,
    credits: Mutex<HashMap<SocketAddr, Credit>>,
    /// Addresses that are dialled now, and how many times.
    dialled: Mutex<HashMap<SocketAddr, usize>>,
}

/// One dial of an address, until it is over.
#[derive(Debug)]
pub(super) struct Dialled {
    unproved: Arc<Unproved>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Credit {
    /// Bytes that may be sent.
    bytes: usize,
    handshakes: usize,
    /// When the last handshake failed.
    failed: Instant,
}

/// A handshake of one of them, until it has proved its address or failed.
#[derive(Debug)]
pub(super) struct Proving {
    unproved: Arc<Unproved>,
    address: SocketAddr,
}

impl Unproved {
    /// A handshake of this address begins.
    pub fn enter(self: &Arc<Self>, address: SocketAddr, now: Instant) -> Proving {
        let mut credits = self.lock();
        if credits.len() >= ADDRESSES {
            credits.retain(|_, credit| credit.handshakes > 0 || now < credit.failed + LAST_WORD);
        }
        if credits.len() >= ADDRESSES {
            credits.retain(|_, credit| credit.handshakes > 0);
        }
        let none = || Credit { bytes: 0, handshakes: 0, failed: now };
        let credit = credits.entry(address).or_insert_with(none);
        credit.handshakes += 1;
        credit.bytes += TIMES * FIRST_BYTES - SHORT_BYTES;
        self.count.store(credits.len(), Relaxed);
        Proving { unproved: self.clone(), address }
    }

    /// This address is dialled.
    pub fn dial(self: &Arc<Self>, address: SocketAddr) -> Dialled {
        *self.dialled().entry(address).or_default() += 1;
        Dialled { unproved: self.clone(), address }
    }

    /// The address has shown that it is there.
    fn prove(&self, address: SocketAddr) {
        let mut credits = self.lock();
        credits.remove(&address);
        self.count.store(credits.len(), Relaxed);
    }

    /// So much came from this address.
    fn received(&self, address: SocketAddr, bytes: usize) {
        if let Some(credit) = self.lock().get_mut(&address) {
            credit.bytes = credit.bytes.saturating_add(TIMES * bytes);
        }
    }

    /// How much of these datagrams, each of so many bytes, may be sent to this address: the first ones of them.
    fn take(&self, address: SocketAddr, datagrams: &[u8], each: usize) -> usize {
        let mut credits = self.lock();
        let Some(credit) = credits.get_mut(&address) else { return datagrams.len() };
        if credit.handshakes == 0 && tokio::time::Instant::now().into_std() >= credit.failed + LAST_WORD {
            credits.remove(&address);
            self.count.store(credits.len(), Relaxed);
            return datagrams.len();
        }
        if self.dialled().contains_key(&address) {
            return datagrams.len();
        }
        let mut taken = 0;
        for datagram in datagrams.chunks(each.max(1)) {
            if datagram.first().is_some_and(|first| first & LONG_HEADER != 0) {
                let Some(left) = credit.bytes.checked_sub(datagram.len()) else { break };
                credit.bytes = left;
            }
            taken += datagram.len();
        }
        taken
    }

    fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Credit>> {
        self.credits.lock().expect("nothing panics while it is held")
    }

    fn dialled(&self) -> MutexGuard<'_, HashMap<SocketAddr, usize>> {
        self.dialled.lock().expect("nothing panics while it is held")
    }
}

impl Dialled {
    /// It has answered: it is sent what there is to send.
    pub fn proved(self) {
        self.unproved.prove(self.address);
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        if let Entry::Occupied(mut dials) = self.unproved.dialled().entry(self.address) {
            *dials.get_mut() -= 1;
            if *dials.get() == 0 {
                dials.remove();
            }
        }
    }
}

impl Proving {
    /// The address has shown that it is there: it is sent what there is to send.
    pub fn proved(self) {
        self.unproved.prove(self.address);
    }
}

impl Drop for Proving {
    fn drop(&mut self) {
        let mut credits = self.unproved.lock();
        if let Some(credit) = credits.get_mut(&self.address) {
            credit.handshakes = credit.handshakes.saturating_sub(1);
            credit.failed = tokio::time::Instant::now().into_std();
        }
        self.unproved.count.store(credits.len(), Relaxed);
    }
}

/// A socket that keeps to it.
pub(super) struct Modest {
    inner: Arc<dyn AsyncUdpSocket>,
    unproved: Arc<Unproved>,
}

impl Modest {
    pub fn around(inner: Arc<dyn AsyncUdpSocket>, unproved: &Arc<Unproved>) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(Self { inner, unproved: unproved.clone() })
    }
}

impl fmt::Debug for Modest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for Modest {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.unproved.is_empty() {
            return self.inner.try_send(transmit);
        }
        let (whole, each) = (transmit.contents, transmit.segment_size.unwrap_or(transmit.contents.len()));
        match self.unproved.take(transmit.destination, whole, each) {
            taken if taken == whole.len() => self.inner.try_send(transmit),
            0 => Ok(()),
            taken => {
                let contents = &whole[..taken];
                let Transmit { destination, ecn, segment_size, src_ip, .. } = *transmit;
                self.inner.try_send(&Transmit { destination, ecn, contents, segment_size, src_ip })
            }
        }
    }

    fn poll_recv(&self, cx: &mut Context, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = received
            && !self.unproved.is_empty()
        {
            meta[..count].iter().for_each(|meta| self.unproved.received(meta.addr, meta.len));
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn datagrams(first: u8, each: usize, count: usize) -> Vec<u8> {
        [&[first][..], &vec![0; each - 1]].concat().repeat(count)
    }

    #[test]
    fn an_address_gets_no_more_than_three_times_what_came_until_it_has_proved_itself() {
        let (unproved, now) = (Arc::<Unproved>::default(), Instant::now());
        let proving = unproved.enter(address(1), now);
        assert_eq!(unproved.take(address(1), &datagrams(0xc0, 1_200, 1), 1_200), 1_200);
        // With what is set aside for others there is room for one more whole one, and not for two.
        assert_eq!(unproved.take(address(1), &datagrams(0xe0, 1_200, 2), 1_200), 1_200);
        assert_eq!(unproved.take(address(1), &datagrams(0xe0, 1_200, 1), 1_200), 0);
        assert_eq!(unproved.take(address(2), &datagrams(0xe0, 1_200, 9), 1_200), 9 * 1_200, "others are not affected");
        unproved.received(address(1), 1_200);
        assert_eq!(unproved.take(address(1), &datagrams(0xe0, 1_200, 9), 1_200), 3 * 1_200);
        proving.proved();
        assert_eq!(unproved.take(address(1), &datagrams(0xe0, 1_200, 9), 1_200), 9 * 1_200);
        assert!(unproved.is_empty());
    }

    #[test]
    fn a_link_from_an_address_that_somebody_forges_goes_on_as_it_was() {
        let unproved = Arc::<Unproved>::default();
        let _proving = unproved.enter(address(1), Instant::now());
        for _ in 0..100 {
            assert_eq!(unproved.take(address(1), &datagrams(0x40, 1_400, 10), 1_400), 14_000);
        }
        assert_eq!(unproved.take(address(1), &datagrams(0xc0, 1_200, 1), 1_200), 1_200, "and takes nothing from the handshake");
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_failed_is_no_reason_to_keep_anything_back_for_good() {
        let unproved = Arc::<Unproved>::default();
        drop(unproved.enter(address(1), tokio::time::Instant::now().into_std()));
        let first = datagrams(0xc0, 1_200, 1);
        while unproved.take(address(1), &first, 1_200) > 0 {}
        tokio::time::advance(LAST_WORD).await;
        assert_eq!(unproved.take(address(1), &first, 1_200), 1_200);
        assert!(unproved.is_empty());
    }

    #[test]
    fn whoever_is_dialled_is_sent_what_that_takes_whatever_is_forged_in_its_name() {
        let unproved = Arc::<Unproved>::default();
        let forged = unproved.enter(address(1), Instant::now());
        let first = datagrams(0xc0, 1_200, 2);
        while unproved.take(address(1), &first, 1_200) > 0 {}
        let dials = [unproved.dial(address(1)), unproved.dial(address(1))];
        assert_eq!(unproved.take(address(1), &first, 1_200), 2_400);
        let [one, other] = dials;
        drop(one);
        assert_eq!(unproved.take(address(1), &first, 1_200), 2_400);
        drop(other);
        assert_eq!(unproved.take(address(1), &first, 1_200), 0);
        unproved.dial(address(1)).proved();
        assert_eq!(unproved.take(address(1), &first, 1_200), 2_400);
        drop(forged);
        assert!(unproved.is_empty() && unproved.dialled().is_empty());
    }

    #[test]
    fn handshakes_that_failed_are_held_to_it_for_a_while_and_then_forgotten() {
        let (unproved, now) = (Arc::<Unproved>::default(), Instant::now());
        let under_way = unproved.enter(address(0), now);
        for port in 1..=2 * ADDRESSES as u16 {
            drop(unproved.enter(address(port), now));
            assert!(unproved.lock().len() <= ADDRESSES);
        }
        let last = address(2 * ADDRESSES as u16);
        assert_eq!(unproved.take(last, &datagrams(0xc0, 1_200, 3), 1_200), 2 * 1_200);
        assert_eq!(unproved.take(address(0), &datagrams(0xc0, 1_200, 3), 1_200), 2 * 1_200, "who is under way is not forgotten");
        drop(under_way);
    }
}
