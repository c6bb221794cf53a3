//! What is kept with each live stream of a session: which path carries it now, and who waits for something to change.

use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use super::attached::Attached;
use crate::net::{PathError, PathRecv, PathSend};
use crate::proto::close::StreamCode;
use crate::state::streams::Next;

/// Kept with a stream, under the lock of its session.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub sending: Sending,
    /// The receiving half goes on here: the reader takes this up.
    pub arrived: Option<Box<Arrived>>,
    pub writer: Option<Waker>,
    pub reader: Option<Waker>,
    pub watcher: Option<Waker>,
}

/// Who sends what is pushed.
#[derive(Debug, Default)]
pub(super) enum Sending {
    /// Whoever writes, on the path stream it has; or nobody, if that path is lost.
    #[default]
    Writer,
    /// A task that carries the stream on, until it has sent what is kept.
    Task,
    /// That task is done: the writer takes this up.
    Ready(Box<(PathSend, Arc<Attached>)>),
}

/// A receiving half on a new path.
#[derive(Debug)]
pub(super) struct Arrived {
    pub path: PathRecv,
    /// What came with the head.
    pub first: Bytes,
    /// So many bytes are here already.
    pub skip: u64,
    pub attached: Arc<Attached>,
}

impl Slot {
    /// Something changed: everybody looks.
    pub fn wake(&mut self) {
        [self.writer.take(), self.reader.take(), self.watcher.take()].into_iter().flatten().for_each(Waker::wake);
    }

    /// Both halves go on, on another path: the receiving one here, the sending one by a task.
    pub fn arrived(&mut self, path: PathRecv, first: Bytes, skip: u64, attached: Arc<Attached>) {
        self.arrived = Some(Box::new(Arrived { path, first, skip, attached }));
        self.sending = Sending::Task;
        self.wake();
    }

    /// What the task that carries a stream on sends at this offset; `None` when it is done. If there may be more, the path stream
    /// is left for the writer.
    pub fn next(attached: &Arc<Attached>, id: u64, at: u64, send: &mut Option<PathSend>) -> Option<Bytes> {
        let mut table = attached.core().table();
        if table.streams.attach() != attached.attach() {
            return None;
        }
        match table.streams.next(id, at) {
            Next::Bytes(bytes) => return Some(bytes),
            Next::Finish => {
                let _ = send.as_mut()?.finish();
            }
            Next::Nothing => {
                let path = send.take()?;
                if let Some(slot) = table.streams.slot(id) {
                    slot.sending = Sending::Ready(Box::new((path, attached.clone())));
                }
            }
            Next::Over => {}
        }
        None
    }

    /// A path stream of a stream failed while it sent. That the path is lost says nothing about the stream.
    pub fn failed(attached: &Attached, id: u64, error: &PathError) {
        if let PathError::Stopped(code) = error
            && *code != StreamCode::PathLeft as u64
        {
            let mut table = attached.core().table();
            if table.streams.attach() == attached.attach() {
                table.streams.stopped(id, *code);
                table.streams.slot(id).into_iter().for_each(Slot::wake);
            }
        }
    }
}
