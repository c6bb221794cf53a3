//! Takes in what one publisher sends: everything that has arrived is stored as one batch, then acknowledged.

use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;

use super::door::{answer, denied, refuse};
use super::error::Fault;
use super::log::{Log, Publishing, Stored};
use crate::policy::Action;
use crate::proto::close::StreamCode;
use crate::proto::frame::Frames;
use crate::proto::status::{Code, Status};
use crate::proto::varint;
use crate::proto::wire::{Answer, CHUNK_FRAME_BYTES, PublisherId, check_chunk};
use crate::session::{Limit, SMALL_BODY_BYTES, Share, StreamRecv, StreamSend};

/// About how much is stored at a time.
const BATCH_BYTES: usize = 1024 * 1024;
/// The same, where no room is set aside for more.
const SMALL_BATCH_BYTES: usize = 32 * 1024;

/// Most chunks that are stored at a time; then others have their turn. There may be very many of a few bytes.
const BATCH_CHUNKS: usize = 1024;
/// After so much has been read others have their turn.
const TURN_BYTES: usize = 64 * 1024;

/// Stores until the publisher has ended its side, or something is wrong; the policy of that generation lets it.
pub(super) async fn serve(
    log: std::sync::Arc<Log>,
    publisher: PublisherId,
    mut send: StreamSend,
    recv: StreamRecv,
    mut frames: Frames,
    generation: u64,
) {
    let publishing = match log.publish(publisher).await {
        Ok(publishing) => publishing,
        Err(status) => {
            if refuse(&mut send, status).await.is_ok() {
                let _ = send.finish();
            }
            return;
        }
    };
    let known = publishing.known();
    let ready = Answer::Ready { epoch: log.epoch(), last: known.unwrap_or_default(), known: known.is_some() };
    if answer(&mut send, &[ready]).await.is_err() {
        return;
    }
    frames.set_limit(CHUNK_FRAME_BYTES);
    let mut intake = Intake { recv, frames, ended: false, generation };
    let mut stored = Vec::new();
    loop {
        let taken = intake.next(&publishing).await;
        let ended = match taken {
            // The room that was set aside is needed until it is stored.
            Ok(Some((batch, _room))) => publishing.store(batch, &mut stored).await,
            Ok(None) => {
                let _ = send.finish();
                return;
            }
            Err(status) => Err(Fault::Refused(status)),
        };
        let mut answers = acks(&mut stored);
        if let Err(Fault::Refused(status)) = &ended {
            answers.push(Answer::Refused(status.clone()));
        }
        let told = answer(&mut send, &answers).await;
        match ended {
            Ok(()) if told.is_ok() => {}
            Ok(()) => return,
            Err(Fault::Refused(status)) => {
                match status.code {
                    Code::ResourceExhausted => send.core().limited(Limit::Disk),
                    Code::InvalidArgument => send.core().limited(Limit::Messages),
                    _ => {}
                }
                let _ = send.finish();
                return intake.recv.stop(StreamCode::Closed);
            }
            // The publisher comes back, and is told what there is.
            Err(Fault::Uncertain) => return send.reset(StreamCode::Cancelled),
        }
        tokio::task::coop::consume_budget().await;
    }
}

/// What was stored, in as few words as possible.
fn acks(stored: &mut Vec<Stored>) -> Vec<Answer> {
    let mut acks: Vec<Stored> = Vec::new();
    for next in stored.drain(..) {
        match acks.last_mut() {
            Some(last) if last.first + last.count == next.first => last.count += next.count,
            _ => acks.push(next),
        }
    }
    acks.into_iter().map(|Stored { first, count }| Answer::Ack { count, first }).collect()
}

/// What a publisher sends, as it comes.
struct Intake {
    recv: StreamRecv,
    frames: Frames,
    ended: bool,
    generation: u64,
}

impl Intake {
    /// Everything that is here, as whole frames; waits while there is nothing. With it, the room that was set aside for it. `None`: the
    /// publisher has ended.
    async fn next(&mut self, publishing: &Publishing) -> Result<Option<(Vec<u8>, Option<OwnedSemaphorePermit>)>, Status> {
        let (mut batch, mut chunks, mut room, mut since_others) = (Vec::new(), 0, None, 0);
        while !self.ended {
            chunks +=
                self.take(&mut batch, if room.is_some() { BATCH_BYTES } else { SMALL_BATCH_BYTES }, BATCH_CHUNKS - chunks)?;
            if chunks == BATCH_CHUNKS {
                tokio::task::yield_now().await;
                break;
            }
            if room.is_none() && (batch.len() >= SMALL_BATCH_BYTES || self.frames.announced() > Some(SMALL_BODY_BYTES)) {
                // What is here does not wait for room for more.
                let reserve = self.recv.core().reserve(Share::Requests, BATCH_BYTES);
                match if batch.is_empty() { Some(reserve.await) } else { reserve.now_or_never() } {
                    Some(reserved) => room = reserved,
                    None => break,
                }
                continue;
            }
            if batch.len() >= BATCH_BYTES {
                break;
            }
            let read = match self.recv.read().now_or_never() {
                Some(read) => read,
                None if !batch.is_empty() => break,
                None => self.recv.read().await,
            };
            match read {
                Ok(Some(bytes)) => {
                    since_others += bytes.len();
                    self.frames.push(bytes);
                    if since_others >= TURN_BYTES {
                        since_others = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Ok(None) => {
                    self.frames.end().map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))?;
                    self.ended = true;
                }
                Err(error) => return Err(Status::new(Code::Cancelled, error.to_string())),
            }
        }
        let core = self.recv.core();
        let generation = core.policy().generation();
        if generation != self.generation && !core.may(Action::Publish, publishing.log().name()) {
            return Err(denied(Action::Publish));
        }
        self.generation = generation;
        Ok((!batch.is_empty()).then_some((batch, room)))
    }

    /// Copies whole frames, at most so many: what came in packets is not held by what is kept of it. How many it were.
    fn take(&mut self, batch: &mut Vec<u8>, most_bytes: usize, most: usize) -> Result<usize, Status> {
        let invalid = |error: &dyn std::fmt::Display| Status::new(Code::InvalidArgument, error.to_string());
        let mut taken = 0;
        while batch.len() < most_bytes
            && taken < most
            && let Some(frame) = self.frames.next_frame().map_err(|error| invalid(&error))?
        {
            check_chunk(&frame).map_err(|error| invalid(&error))?;
            batch.reserve(varint::MAX_LEN + frame.len());
            varint::put(batch, frame.len() as u64);
            batch.extend_from_slice(&frame);
            taken += 1;
        }
        Ok(taken)
    }
}
