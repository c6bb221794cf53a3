//! Takes in the streams a peer opens and hands them to whoever serves them. Each is polled once right here, on the network's
//! thread: a handler that has its answer ready needs no task of its own, and many answers leave in one packet.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;

use super::attached::Attached;
use super::notice::Notices;
use super::stream::{StreamRecv, StreamSend};
use crate::net::{PathError, PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::proto::stream::{HEAD_BYTES_MAX, Head, Kind, Purpose};

/// A future that serves one stream to its end.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whoever serves the streams peers open. The session room calls it and knows nothing of calls.
pub trait Acceptor: Send + Sync + 'static {
    /// Serves a call. The purpose byte has been read. Dropping the future ends the call.
    fn call(&self, send: StreamSend, recv: StreamRecv) -> Serving;
}

/// Accepts the streams of an attached session until its path is lost; then drops whatever is being served.
pub(super) async fn streams(attached: Arc<Attached>, acceptor: Arc<dyn Acceptor>, notices: mpsc::Sender<Notices>) {
    let mut serving = JoinSet::new();
    loop {
        while let Some(ended) = serving.try_join_next() {
            super::hub::report(ended);
        }
        let permit = attached.handler_permit().await;
        let Ok((send, recv)) = attached.link().accept().await else { return };
        let stream = one(attached.clone(), acceptor.clone(), notices.clone(), send, recv, permit);
        let mut stream: Serving = Box::pin(stream);
        // The budget of cooperative scheduling is meant for one task's work, not for that of a hundred streams.
        let once = poll_fn(|cx| Poll::Ready(stream.as_mut().poll(cx).is_ready()));
        if !tokio::task::unconstrained(once).await {
            serving.spawn(stream);
        }
    }
}

async fn one(
    attached: Arc<Attached>,
    acceptor: Arc<dyn Acceptor>,
    notices: mpsc::Sender<Notices>,
    mut send: PathSend,
    mut recv: PathRecv,
    _permit: OwnedSemaphorePermit,
) {
    let (head, first) = match head(&mut recv).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            send.reset(StreamCode::Kind);
            return recv.stop(StreamCode::Kind);
        }
        Err(_) => return,
    };
    let Some((mut send, mut recv)) = attached.admit(head, first, send, recv) else { return };
    match purpose(&mut recv).await {
        Ok(Some(Purpose::Call)) => acceptor.call(send, recv).await,
        Ok(Some(Purpose::Session)) if head.stream == 0 => drop(notices.send(Notices::accepted((send, recv))).await),
        Ok(_) => {
            send.reset(StreamCode::Kind);
            recv.stop(StreamCode::Kind);
        }
        Err(_) => {}
    }
}

/// Reads kind and head. `None`: not a stream of the session, or nonsense.
async fn head(recv: &mut PathRecv) -> Result<Option<(Head, Bytes)>, PathError> {
    let Some(mut bytes) = recv.read().await? else { return Ok(None) };
    loop {
        if bytes.first().copied().and_then(Kind::from_byte) != Some(Kind::Session) {
            return Ok(None);
        }
        match Head::get(&bytes[1..]) {
            Ok(Some((head, len))) => return Ok(Some((head, bytes.split_off(1 + len)))),
            Ok(None) if bytes.len() <= HEAD_BYTES_MAX => {}
            _ => return Ok(None),
        }
        let Some(more) = recv.read().await? else { return Ok(None) };
        bytes = join(bytes, &more);
    }
}

async fn purpose(recv: &mut StreamRecv) -> Result<Option<Purpose>, PathError> {
    let Some(mut bytes) = recv.read().await? else { return Ok(None) };
    let purpose = bytes.split_to(1.min(bytes.len()));
    recv.unread(bytes);
    Ok(purpose.first().copied().and_then(Purpose::from_byte))
}

fn join(a: Bytes, b: &[u8]) -> Bytes {
    let mut both = BytesMut::with_capacity(a.len() + b.len());
    both.extend_from_slice(&a);
    both.extend_from_slice(b);
    both.freeze()
}
