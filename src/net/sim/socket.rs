//! A UDP socket that is a queue in memory. Always writable, as a real one nearly is; what the network cannot take is dropped
//! there and counted.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};

use super::medium::Medium;

const INBOX_DATAGRAMS: usize = 2_048;

/// What arrived and was not read yet.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<InboxState>);

#[derive(Debug, Default)]
struct InboxState {
    queue: VecDeque<Datagram>,
    reader: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) contents: Bytes,
    pub(super) ecn: Option<EcnCodepoint>,
}

impl Inbox {
    /// The reader to wake, or the datagram's end: the inbox is full.
    pub(super) fn push(&self, datagram: Datagram) -> Result<Option<Waker>, ()> {
        let mut state = self.lock();
        if state.queue.len() == INBOX_DATAGRAMS {
            return Err(());
        }
        state.queue.push_back(datagram);
        Ok(state.reader.take())
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct SimSocket {
    medium: Arc<Medium>,
    id: u64,
    inbox: Arc<Inbox>,
}

impl SimSocket {
    pub(super) fn open(medium: Arc<Medium>, host: usize, port: u16) -> Self {
        let inbox = Arc::new(Inbox::default());
        let id = medium.plug(host, port, inbox.clone());
        Self { medium, id, inbox }
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.medium.close(self.id);
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimSocket").field(&self.medium.addr(self.id)).finish()
    }
}

impl quinn::AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment_bytes = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for contents in transmit.contents.chunks(segment_bytes) {
            self.medium.send(self.id, transmit.destination, Bytes::copy_from_slice(contents), transmit.ecn);
        }
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let mut state = self.inbox.lock();
        if state.queue.is_empty() {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = state.queue.len().min(bufs.len()).min(meta.len());
        for ((datagram, buf), meta) in state.queue.drain(..count).zip(bufs).zip(meta) {
            let len = datagram.contents.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram.contents[..len]);
            // No `dst_ip`: quinn would go on sending from it after the host has moved.
            *meta = RecvMeta { addr: datagram.from, len, stride: len, ecn: datagram.ecn, dst_ip: None };
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.medium.addr(self.id))
    }

    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl quinn::UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
