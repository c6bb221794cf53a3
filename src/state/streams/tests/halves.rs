//! The two halves of the streams at one end, as the session room has them. What waits to be woken does nothing until it is.

use bytes::Bytes;

use super::super::Ended;
use super::ends::{At, End, side};
use super::net::{self, PathError, PathRecv, PathSend};
use crate::proto::stream::Head;

/// As the session's slot.
#[derive(Debug, Default)]
pub struct Slot {
    pub(super) sending: Carrier,
    pub(super) arrived: Option<(PathRecv, u64, At)>,
    writer_waits: bool,
    reader_waits: bool,
}

#[derive(Debug, Default)]
pub(super) enum Carrier {
    #[default]
    Writer,
    Task,
    Ready(PathSend, At),
}

impl Slot {
    pub fn wake(&mut self) {
        (self.writer_waits, self.reader_waits) = (false, false);
    }
}

#[derive(Debug)]
pub struct Writer {
    at: At,
    path: Option<PathSend>,
    head: Option<Head>,
    /// Taken into keeping and not handed to the path yet.
    hand: Bytes,
    pub(super) fin_due: bool,
    ended: bool,
    pub written: u64,
    pub finished: bool,
    pub reset: Option<u8>,
    pub error: Option<Ended>,
}

#[derive(Debug)]
pub struct Reader {
    at: At,
    path: Option<PathRecv>,
    skip: u64,
    pub(super) carried_on: bool,
    ended: bool,
    pub read: u64,
    pub finished: bool,
    pub stopped: Option<u8>,
    pub error: Option<Ended>,
}

/// The byte at this offset of one direction of a stream.
pub(super) fn byte(id: u64, from: usize, offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (id * 31) ^ (from as u64 * 101)) as u8
}

impl End {
    pub fn open(&mut self) -> Option<u64> {
        let at = self.path?;
        let (send, recv) = net::open(&self.net, at.0, self.end)?;
        let id = self.streams.open();
        self.insert(id, at, send, recv, Some(Head::Fresh { stream: id }), 0);
        Some(id)
    }

    pub(super) fn insert(&mut self, id: u64, at: At, send: PathSend, recv: PathRecv, head: Option<Head>, read: u64) {
        let (hand, path) = (Bytes::new(), Some(send));
        let (written, finished, reset, error) = (0, false, None, None);
        let writer = Writer { at, path, head, hand, fin_due: false, ended: false, written, finished, reset, error };
        let (path, skip, carried_on, stopped) = (Some(recv), 0, false, None);
        let reader = Reader { at, path, skip, carried_on, ended: false, read, finished, stopped, error };
        assert!(self.writers.insert(id, writer).is_none());
        assert!(self.readers.insert(id, reader).is_none());
    }

    /// Writes at most so many bytes; with `last` it also ends. Does nothing while a write is under way.
    pub fn write(&mut self, id: u64, bytes: usize, last: bool) {
        let end = self.end;
        let Some(writer) = self.writers.get_mut(&id) else { return };
        if writer.ended || !writer.hand.is_empty() || self.streams.slot(id).is_some_and(|slot| slot.writer_waits) {
            return;
        }
        let bytes: Bytes = (writer.written..writer.written + bytes as u64).map(|at| byte(id, end, at)).collect();
        let taken = match self.streams.push(id, &bytes, last) {
            Ok(taken) => taken,
            Err(error) => {
                (writer.ended, writer.error) = (true, Some(error));
                return;
            }
        };
        let slot = self.streams.slot(id).expect("live, as it took bytes");
        if taken == 0 && !bytes.is_empty() {
            slot.writer_waits = true;
            return;
        }
        match std::mem::take(&mut slot.sending) {
            Carrier::Writer => {}
            Carrier::Task => {
                slot.sending = Carrier::Task;
                (writer.path, writer.head) = (None, None);
            }
            Carrier::Ready(send, at) => {
                (writer.path, writer.head, writer.at) = (Some(send), None, at);
            }
        }
        writer.written += taken as u64;
        writer.hand = bytes.slice(..taken);
        if last && taken == bytes.len() {
            (writer.fin_due, writer.ended, writer.finished) = (true, true, true);
        }
        if bytes.is_empty() {
            self.hand(id, 0);
        }
    }

    /// Hands what was written to the path, as far as there is room.
    pub fn hand(&mut self, id: u64, most: usize) {
        let Some(writer) = self.writers.get_mut(&id) else { return };
        let Some(path) = &mut writer.path else {
            writer.hand.clear();
            return;
        };
        if let Some(head) = writer.head.take() {
            path.head(head);
        }
        match path.write(&mut writer.hand, most) {
            Ok(_) if writer.hand.is_empty() => {
                if std::mem::take(&mut writer.fin_due) {
                    path.finish();
                }
            }
            Ok(_) => {}
            Err(error) => {
                writer.path = None;
                writer.hand.clear();
                let at = writer.at;
                self.failed(id, at, error);
            }
        }
    }

    pub(super) fn failed(&mut self, id: u64, at: At, error: PathError) {
        if let PathError::Stopped(code) = error
            && self.streams.attach() == at.1
        {
            self.streams.stopped(id, code);
            self.streams.slot(id).into_iter().for_each(Slot::wake);
        }
    }

    pub fn reset(&mut self, id: u64, code: u8) {
        let Some(writer) = self.writers.get_mut(&id).filter(|writer| !writer.ended) else { return };
        writer.ended = true;
        // To a peer that reads no more there is nothing to give up.
        writer.reset = self.streams.sends(id).is_ok().then_some(code);
        let due = self.streams.reset(id, code);
        writer.hand.clear();
        if let Some(path) = &mut writer.path {
            path.reset(code.into());
        }
        self.note(due);
    }

    pub fn drop_writer(&mut self, id: u64) {
        if self.writers.get(&id).is_some_and(|writer| writer.fin_due) {
            self.torn.insert(id);
        }
        self.reset(id, net::CANCELLED as u8);
        if self.writers.remove(&id).is_some() && !self.streams.keeps() {
            self.streams.dropped(id);
        }
    }

    pub fn stop(&mut self, id: u64, code: u8) {
        let Some(reader) = self.readers.get_mut(&id).filter(|reader| !reader.ended) else { return };
        (reader.ended, reader.stopped) = (true, Some(code));
        let due = self.streams.stop(id, code);
        if let Some(path) = &mut reader.path {
            path.stop(code.into());
        }
        self.note(due);
    }

    pub fn drop_reader(&mut self, id: u64) {
        if side(self.end).opens(id) {
            if self.readers.contains_key(&id) {
                self.over.insert(id);
                let due = self.streams.over(id);
                self.note(due);
                self.readers.remove(&id);
            }
            return;
        }
        self.stop(id, net::CANCELLED as u8);
        if self.readers.remove(&id).is_some() && !self.streams.keeps() {
            self.streams.dropped(id);
        }
    }

    /// Reads once.
    pub fn read(&mut self, id: u64, most: usize) {
        let Some(reader) = self.readers.get_mut(&id).filter(|reader| !reader.ended) else { return };
        let Some(path) = &mut reader.path else { return self.arrived(id) };
        let read = match path.read(most) {
            Some(read) => read,
            None if reader.carried_on => match self.told(id) {
                Some(Some(error)) => return self.fail_reader(id, error),
                Some(None) => Err(PathError::Lost),
                None => return,
            },
            None => return,
        };
        match read {
            Ok(Some(bytes)) => self.count(id, bytes),
            Ok(None) => self.end(id, None),
            Err(PathError::Reset(code)) => self.end(id, Some(code)),
            Err(_) => self.reader(id).path = None,
        }
    }

    pub(super) fn reader(&mut self, id: u64) -> &mut Reader {
        self.readers.get_mut(&id).expect("looked up before")
    }

    fn fail_reader(&mut self, id: u64, error: Ended) {
        let reader = self.reader(id);
        (reader.ended, reader.error) = (true, Some(error));
    }

    fn told(&mut self, id: u64) -> Option<Option<Ended>> {
        if self.streams.slot(id).is_some_and(|slot| slot.reader_waits) {
            return None;
        }
        if let Err(ended) = self.streams.receives(id) {
            return Some(Some(ended));
        }
        let Some(slot) = self.streams.slot(id) else { return Some(Some(Ended::Closed)) };
        slot.reader_waits = slot.arrived.is_none();
        (!slot.reader_waits).then_some(None)
    }

    fn arrived(&mut self, id: u64) {
        match self.told(id) {
            Some(Some(error)) => self.fail_reader(id, error),
            Some(None) => {
                let arrived = self.streams.slot(id).and_then(|slot| slot.arrived.take());
                let (path, skip, at) = arrived.expect("told so");
                let reader = self.reader(id);
                (reader.path, reader.skip, reader.at, reader.carried_on) = (Some(path), skip, at, true);
            }
            None => {}
        }
    }

    fn moved_on(&mut self, id: u64) -> bool {
        let moved = self.streams.slot(id).is_some_and(|slot| slot.arrived.is_some());
        if moved {
            self.reader(id).path = None;
        }
        moved
    }

    fn count(&mut self, id: u64, mut bytes: Bytes) {
        let from = 1 - self.end;
        let reader = self.reader(id);
        let again = reader.skip.min(bytes.len() as u64);
        reader.skip -= again;
        bytes = bytes.split_off(again as usize);
        if self.moved_on(id) {
            return;
        }
        match self.streams.received(id, bytes.len()) {
            Ok(due) => self.note(due),
            Err(error) => return self.fail_reader(id, error),
        }
        let reader = self.reader(id);
        for (nth, got) in bytes.iter().enumerate() {
            let at = reader.read + nth as u64;
            assert_eq!(*got, byte(id, from, at), "byte {at} of stream {id} from end {from}");
        }
        reader.read += bytes.len() as u64;
    }

    fn end(&mut self, id: u64, reset: Option<u64>) {
        if self.moved_on(id) {
            return;
        }
        if self.readers[&id].carried_on
            && let Err(error) = self.streams.receives(id)
        {
            return self.fail_reader(id, error);
        }
        let due = self.streams.ended(id);
        self.note(due);
        let reader = self.reader(id);
        (reader.ended, reader.finished) = (true, reset.is_none());
        reader.error = reset.map(Ended::Reset);
    }
}
