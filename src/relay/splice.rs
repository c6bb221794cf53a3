//! Carrying a stream on: bytes, ends, resets and stops, each way by itself, no faster than the other leg takes them. Nothing is looked
//! into.

use std::sync::Arc;

use bytes::Bytes;

use super::toll::Fare;
use crate::net::{PathError, PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::session::Attached;

/// One direction of a stream: from here to there.
pub(super) struct OneWay<'a> {
    pub from: &'a mut PathRecv,
    pub to: &'a mut PathSend,
    /// The leg that the bytes come over.
    pub on: &'a Arc<Attached>,
    pub fare: &'a Fare,
}

impl OneWay<'_> {
    /// Carries on until this direction has ended, or cannot go on: then both ends of it are told so, in words that say nothing of the
    /// stream if no end has said them. Dropped, both halves are still there to be reset.
    pub async fn run(self, first: Bytes) {
        let Self { from, to, on, fare } = self;
        if !first.is_empty() && !pass(first, from, to, on, fare).await {
            return;
        }
        loop {
            let stopped = to.stopped();
            let read = tokio::select! {
                biased;
                read = from.read_up_to(fare.piece()) => read,
                Err(stopped) = stopped => return stop(from, &stopped),
            };
            match read {
                Ok(Some(bytes)) => {
                    if !pass(bytes, from, to, on, fare).await {
                        return;
                    }
                }
                Ok(None) => return drop(to.finish()),
                Err(PathError::Reset(code)) => return to.reset_as(code),
                Err(_) => return to.reset(StreamCode::PathLeft),
            }
        }
    }
}

/// Says whether there may be more.
async fn pass(bytes: Bytes, from: &mut PathRecv, to: &mut PathSend, on: &Attached, fare: &Fare) -> bool {
    fare.pay(bytes.len()).await;
    on.received(bytes.len());
    let written = tokio::select! {
        biased;
        written = to.write(bytes) => written,
        // While the other leg takes nothing: that its sender gave up is heard nevertheless.
        code = from.given_up() => Err(PathError::Reset(code)),
    };
    match written {
        Ok(()) => return true,
        Err(PathError::Reset(code)) => to.reset_as(code),
        Err(error) => stop(from, &error),
    }
    false
}

fn stop(from: &mut PathRecv, error: &PathError) {
    match error {
        PathError::Stopped(code) => from.stop_as(*code),
        _ => from.stop(StreamCode::PathLeft),
    }
}
