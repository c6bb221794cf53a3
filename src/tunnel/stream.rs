//! The opener's end of a tunnel.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::{TunnelBroken, TunnelError};
use super::splice::Far;
use crate::proto::close::StreamCode;
use crate::proto::codec::{self, Message};
use crate::proto::frame::{Frames, put_message};
use crate::proto::status::{Code, Status};
use crate::proto::stream::Purpose;
use crate::proto::tunnel::{Answer, Ask, check_name};
use crate::session::{Attached, Session, StreamError, StreamLife, StreamRecv, StreamSend};

/// A connection to something that a peer exposes: bytes both ways, each direction with an end of its own. It waits while no path carries
/// the session, and goes on with the byte at which it stopped.
///
/// ```no_run
/// # async fn example(session: voltmesh::Session) -> Result<(), Box<dyn std::error::Error>> {
/// let (mut send, mut recv) = session.tunnel("web").await?.split();
/// send.write("GET / HTTP/1.0\r\n\r\n").await?;
/// let all_sent = send.finish();
/// let page = async {
///     let mut page = Vec::new();
///     while let Some(bytes) = recv.read().await? {
///         page.extend_from_slice(&bytes);
///     }
///     Ok(page)
/// };
/// let ((), page) = tokio::try_join!(all_sent, page)?;
/// # drop(page);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Tunnel {
    send: TunnelSend,
    recv: TunnelRecv,
}

/// The sending half of a tunnel. Dropped without [`finish`](Self::finish), the far end sees a reset.
#[derive(Debug)]
pub struct TunnelSend {
    send: StreamSend,
    /// The stream is over when both halves are gone.
    _life: Arc<StreamLife>,
}

/// The receiving half of a tunnel. Dropped before its end, the far end is told that nobody reads.
#[derive(Debug)]
pub struct TunnelRecv {
    recv: StreamRecv,
    first: Bytes,
    _life: Arc<StreamLife>,
}

impl Session {
    /// Connects to what the peer exposes under this name. Waits for the session to come up, as long as it may; and then at most 10 s for
    /// what is exposed. Cancel-safe: nothing is left of a dropped wait.
    ///
    /// # Errors
    /// [`TunnelError`]: policy there does not allow it, there is no such name, it does not take connections, or there is no session.
    pub async fn tunnel(&self, name: &str) -> Result<Tunnel, TunnelError> {
        check_name(name).map_err(TunnelError::Name)?;
        open(self, &Ask::Open { name: name.to_owned() }, None).await
    }

    /// Whether the peer would take a tunnel to this name: policy there allows it, and something is exposed. Not whether that takes
    /// connections. Waits as [`Session::tunnel`] does. Cancel-safe.
    ///
    /// # Errors
    /// [`TunnelError`]: it would not, or there is no session.
    pub async fn may_tunnel(&self, name: &str) -> Result<(), TunnelError> {
        check_name(name).map_err(TunnelError::Name)?;
        open(self, &Ask::Probe { name: name.to_owned() }, None).await.map(drop)
    }
}

impl Tunnel {
    /// Its two halves, for two tasks.
    pub fn split(self) -> (TunnelSend, TunnelRecv) {
        (self.send, self.recv)
    }

    /// As it is joined with a connection.
    pub(super) fn far(&mut self) -> Far<'_> {
        let first = std::mem::take(&mut self.recv.first);
        Far { send: &mut self.send.send, recv: &mut self.recv.recv, first, opened_here: true }
    }
}

impl TunnelSend {
    /// Sends bytes; waits while there is no room for them. Not cancel-safe: after a write that was dropped the half can only be given up.
    ///
    /// # Errors
    /// [`TunnelBroken`]: nobody reads there any more, policy allows it no longer, or the session is over.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<(), TunnelBroken> {
        Ok(self.send.write(bytes.into()).await?)
    }

    /// No more bytes follow, which the far end sees after the last one. Waits until the peer has read them all; the receiving half can be
    /// read meanwhile, and after. Not cancel-safe: of a wait that is dropped together with the receiving half the last bytes may be lost.
    ///
    /// # Errors
    /// As [`TunnelSend::write`].
    pub async fn finish(mut self) -> Result<(), TunnelBroken> {
        self.send.finish()?;
        Ok(self.send.read_through().await?)
    }
}

impl TunnelRecv {
    /// The next bytes in order; `None` when the far end has said everything. Cancel-safe.
    ///
    /// # Errors
    /// [`TunnelBroken`]: the connection was reset there, policy allows it no longer, or the session is over.
    pub async fn read(&mut self) -> Result<Option<Bytes>, TunnelBroken> {
        if !self.first.is_empty() {
            return Ok(Some(std::mem::take(&mut self.first)));
        }
        Ok(self.recv.read().await?)
    }
}

/// Asks, over the session as soon as it is up, and waits for the answer.
pub(super) async fn open(session: &Session, ask: &Ask, deadline: Option<Instant>) -> Result<Tunnel, TunnelError> {
    let mut lost = None;
    loop {
        let attached =
            session.attached_by(deadline, lost.as_ref(), false).await.map_err(|error| TunnelError::NotSent(error.to_string()))?;
        match open_on(&attached, ask).await {
            Err(None) => lost = Some(attached),
            Err(Some(error)) => return Err(error),
            Ok(tunnel) => return Ok(tunnel),
        }
    }
}

/// Asks on this path. `None`: the session is over, or had no path when the stream was to be opened; another one may do.
async fn open_on(attached: &Arc<Attached>, ask: &Ask) -> Result<Tunnel, Option<TunnelError>> {
    let (mut send, mut recv) = attached.open().await.map_err(unanswered)?;
    let life = Arc::new(recv.set_apart());
    let mut buf = Vec::with_capacity(256);
    send.begin(&mut buf);
    buf.push(Purpose::Tunnel as u8);
    put_message(&mut buf, ask);
    send.write(buf.into()).await.map_err(unanswered)?;
    let mut frames = Frames::new(Answer::LIMIT);
    let nonsense = |error: &dyn std::fmt::Display| Some(TunnelError::Nonsense(error.to_string()));
    let frame = loop {
        if let Some(frame) = frames.next_frame().map_err(|error| nonsense(&error))? {
            break frame;
        }
        let bytes = recv.read().await.map_err(unanswered)?;
        frames.push(bytes.ok_or_else(|| Some(TunnelError::Unanswered("the peer ended the stream".into())))?);
    };
    match codec::decode(&frame) {
        Ok(Answer::Ready) => {}
        Ok(Answer::Refused(status)) => return Err(Some(TunnelError::Refused(status))),
        Err(error) => return Err(nonsense(&error)),
    }
    let recv = TunnelRecv { recv, first: frames.into_rest(), _life: life.clone() };
    Ok(Tunnel { send: TunnelSend { send, _life: life }, recv })
}

fn unanswered(error: StreamError) -> Option<TunnelError> {
    let refused = |code, text| Some(TunnelError::Refused(Status::new(code, text)));
    match error {
        StreamError::Session(_) | StreamError::Path(_) => None,
        StreamError::Reset(code) | StreamError::Stopped(code) if code == StreamCode::Limit as u64 => {
            refused(Code::ResourceExhausted, "this session has as many tunnels there as it may")
        }
        StreamError::Reset(code) | StreamError::Stopped(code) if code == StreamCode::Kind as u64 => {
            refused(Code::Unimplemented, "the peer exposes nothing")
        }
        other => Some(TunnelError::Unanswered(other.to_string())),
    }
}
