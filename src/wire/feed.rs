//! Sends one subscriber what is on a wire. It has a place in the log and what is being written, and nothing else: a subscriber that
//! does not read holds up only itself.

use bytes::{Bytes, BytesMut};

use super::door::{answer, denied};
use super::log::{Next, Reader};
use crate::policy::Action;
use crate::proto::status::Status;
use crate::proto::wire::{Answer, put_end, put_gap};
use crate::session::{StreamError, StreamRecv, StreamSend};

/// About how much is taken at a time.
const BATCH_BYTES: usize = 64 * 1024;
/// Pieces smaller than this are joined: a write each would cost more than the copy.
const SMALL_BYTES: usize = 8 * 1024;

/// Sends until the subscriber wants no more, the wire is over for it, or policy says so; the policy of that generation lets it.
pub(super) async fn serve(mut reader: Reader, mut send: StreamSend, recv: StreamRecv, mut generation: u64) {
    let begin = Answer::Begin { epoch: reader.log().epoch(), next: reader.at() };
    let mut leaves = std::pin::pin!(leaves(recv));
    if answer(&mut send, &[begin]).await.is_err() {
        return;
    }
    loop {
        let next = tokio::select! {
            biased;
            () = &mut leaves => return,
            next = reader.next(BATCH_BYTES) => next,
        };
        let now = send.core().policy().generation();
        let revoked = now != generation && !send.core().may(Action::Subscribe, reader.log().name());
        generation = now;
        let sent = match next {
            _ if revoked => return end(send, &denied(Action::Subscribe)).await,
            Next::Over(status) => return end(send, &status).await,
            Next::Gap { from, to } => {
                let mut buf = Vec::with_capacity(32);
                put_gap(&mut buf, from, to);
                send.write(buf.into()).await
            }
            Next::Chunks(pieces, count) => {
                let sent = write(&mut send, pieces).await;
                reader.took(count);
                sent
            }
        };
        if sent.is_err() {
            return;
        }
        // Where there is always more to send nothing else would have its turn.
        tokio::task::coop::consume_budget().await;
    }
}

/// Writes pieces, small ones together.
async fn write(send: &mut StreamSend, pieces: Vec<Bytes>) -> Result<(), StreamError> {
    let mut joined = BytesMut::new();
    let alone = pieces.len() == 1;
    for piece in pieces {
        if piece.len() < SMALL_BYTES && !alone {
            joined.extend_from_slice(&piece);
            continue;
        }
        if !joined.is_empty() {
            send.write(joined.split().freeze()).await?;
        }
        send.write(piece).await?;
    }
    if joined.is_empty() { Ok(()) } else { send.write(joined.freeze()).await }
}

async fn end(mut send: StreamSend, status: &Status) {
    let mut buf = Vec::with_capacity(128);
    put_end(&mut buf, status);
    let _ = send.write_last(buf.into()).await;
}

/// Waits until the subscriber ends its side: it has nothing more to say, so that is all it can mean.
async fn leaves(mut recv: StreamRecv) {
    while let Ok(Some(_)) = recv.read().await {}
}
