//! Whoever reads a wire: a place in its log, in memory or on disk, and no queue.

use std::sync::Arc;

use bytes::Bytes;

use super::{Log, State};
use crate::proto::status::{Code, Status};
use crate::proto::wire::Slow;
use crate::state::wire::Read;

/// Somebody reads, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(super) log: Arc<Log>,
    pub(super) id: u64,
    pub(super) at: u64,
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Next {
    /// Whole frames, of so many chunks.
    Chunks(Vec<Bytes>, u64),
    /// These are kept no more.
    Gap { from: u64, to: u64 },
    /// There is no more for this reader, and why.
    Over(Status),
}

impl Reader {
    /// The next chunk's number.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The wire.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The next there is, about so many bytes at most; waits while there is nothing. Cancel-safe: the same is there again until it
    /// was [taken](Self::took).
    pub async fn next(&mut self, bytes_max: usize) -> Next {
        loop {
            let log = self.log.clone();
            let news = log.news.notified();
            let oldest = {
                let mut state = log.state();
                if let Some(over) = &state.over {
                    return Next::Over(over.clone());
                }
                if !state.ring.has(self.id) {
                    return Next::Over(too_slow());
                }
                match state.ring.read(self.at, bytes_max) {
                    Read::Chunks(pieces, count) => return Next::Chunks(pieces, count),
                    Read::Behind(oldest) if log.committer.is_none() => {
                        return self.overrun(&mut state, oldest);
                    }
                    Read::Behind(oldest) => Some(oldest),
                    Read::Nothing => None,
                }
            };
            match (&log.committer, oldest) {
                (Some(committer), Some(_)) => match committer.read(self.at, bytes_max).await {
                    Ok(Read::Chunks(pieces, count)) => return Next::Chunks(pieces, count),
                    Ok(Read::Behind(oldest)) => return self.overrun(&mut log.state(), oldest),
                    Ok(Read::Nothing) => {}
                    Err(status) => return Next::Over(status),
                },
                _ => news.await,
            }
        }
    }

    /// So many of the chunks are with whoever reads.
    pub fn took(&mut self, count: u64) {
        self.at += count;
        self.log.state().ring.reached(self.id, self.at);
        if self.log.options.slow == Slow::Block {
            self.log.room.notify_waiters();
        }
    }

    fn overrun(&mut self, state: &mut State, oldest: u64) -> Next {
        if self.log.options.slow == Slow::Disconnect {
            return Next::Over(too_slow());
        }
        let from = std::mem::replace(&mut self.at, oldest);
        state.ring.reached(self.id, oldest);
        Next::Gap { from, to: oldest - 1 }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.log.left(|state| state.ring.leave(self.id));
        self.log.room.notify_waiters();
    }
}

fn too_slow() -> Status {
    Status::new(Code::ResourceExhausted, "the subscriber was too slow for this wire; subscribe again from its cursor")
}
