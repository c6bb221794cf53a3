//! A network for two ends, as far as a session sees one: paths with streams and a control queue, in which every stream is on its
//! own time, and of which everything that was not read is lost with the path. Handles behave like those of a link: a sending half
//! dropped unfinished is reset, a receiving one that is dropped is stopped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Buf, Bytes};

use crate::proto::control::Progress;
use crate::proto::stream::Head;

/// Bytes of one direction of a path stream that may be on their way.
const WINDOW: usize = 10_000;

/// The code of a half that was dropped.
pub const CANCELLED: u64 = 0;

pub type Net = Rc<RefCell<Vec<Path>>>;

#[derive(Debug, Default)]
pub struct Path {
    /// Which ends know that it is gone.
    pub closed: [bool; 2],
    /// Nothing gets through any more.
    pub dead: bool,
    /// On their way to each end.
    pub control: [VecDeque<Progress>; 2],
    streams: Vec<PathStream>,
}

#[derive(Debug)]
struct PathStream {
    opener: usize,
    accepted: bool,
    /// What is on its way to each end.
    to: [Way; 2],
}

#[derive(Debug, Default)]
struct Way {
    head: Option<Head>,
    bytes: VecDeque<Bytes>,
    len: usize,
    fin: bool,
    reset: Option<u64>,
    stop: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    Lost,
    Reset(u64),
    Stopped(u64),
}

impl Path {
    /// Nothing that is on its way arrives.
    pub fn die(&mut self) {
        self.dead = true;
        self.control.iter_mut().for_each(VecDeque::clear);
        for way in self.streams.iter_mut().flat_map(|stream| &mut stream.to) {
            way.bytes.clear();
            (way.head, way.fin, way.reset) = (None, false, None);
        }
    }

    /// Whether what is sent gets anywhere.
    pub fn carries(&self) -> bool {
        !self.dead && self.closed == [false; 2]
    }
}

/// A new path; its number.
pub fn dial(net: &Net) -> usize {
    net.borrow_mut().push(Path::default());
    net.borrow().len() - 1
}

#[derive(Debug)]
pub struct PathSend {
    net: Net,
    at: (usize, usize),
    end: usize,
    open: bool,
}

#[derive(Debug)]
pub struct PathRecv {
    net: Net,
    at: (usize, usize),
    end: usize,
}

fn halves(net: &Net, at: (usize, usize), end: usize) -> (PathSend, PathRecv) {
    (PathSend { net: net.clone(), at, end, open: true }, PathRecv { net: net.clone(), at, end })
}

/// Opens a path stream at this end.
pub fn open(net: &Net, path: usize, end: usize) -> Option<(PathSend, PathRecv)> {
    let nth = {
        let path = &mut net.borrow_mut()[path];
        if path.closed[end] {
            return None;
        }
        path.streams.push(PathStream { opener: end, accepted: false, to: Default::default() });
        path.streams.len() - 1
    };
    Some(halves(net, (path, nth), end))
}

/// What the other end opened: the n-th of those of which something has arrived. Without a head if it was reset before.
pub fn accept(net: &Net, path: usize, end: usize, nth: usize) -> Option<(Option<Head>, PathSend, PathRecv)> {
    let (at, head) = {
        let streams = &mut net.borrow_mut()[path];
        if streams.closed[end] {
            return None;
        }
        let here = |stream: &PathStream| {
            let way = &stream.to[end];
            stream.opener != end && !stream.accepted && (way.head.is_some() || way.reset.is_some() || way.fin)
        };
        let waiting: Vec<usize> = (0..streams.streams.len()).filter(|at| here(&streams.streams[*at])).collect();
        let at = *waiting.get(nth % waiting.len().max(1))?;
        streams.streams[at].accepted = true;
        (at, streams.streams[at].to[end].head.take())
    };
    let (send, recv) = halves(net, (path, at), end);
    Some((head, send, recv))
}

impl PathSend {
    fn way<T>(&self, with: impl FnOnce(&mut Way) -> T) -> Result<T, PathError> {
        let path = &mut self.net.borrow_mut()[self.at.0];
        if path.closed[self.end] {
            return Err(PathError::Lost);
        }
        let carries = path.carries();
        let way = &mut path.streams[self.at.1].to[1 - self.end];
        if carries {
            return Ok(with(way));
        }
        // Into the void.
        Ok(with(&mut Way { stop: way.stop, ..Way::default() }))
    }

    pub fn head(&mut self, head: Head) {
        let _ = self.way(|way| way.head = Some(head));
    }

    /// Takes as many as there is room for off the front.
    pub fn write(&mut self, bytes: &mut Bytes, most: usize) -> Result<usize, PathError> {
        self.way(|way| {
            if let Some(code) = way.stop {
                return Err(PathError::Stopped(code));
            }
            let room = WINDOW.saturating_sub(way.len).min(bytes.len()).min(most);
            if room > 0 {
                way.bytes.push_back(bytes.split_to(room));
                way.len += room;
            }
            Ok(room)
        })?
    }

    pub fn finish(&mut self) {
        self.open = false;
        let _ = self.way(|way| way.fin = true);
    }

    /// Of every other stream it overtakes the head.
    pub fn reset(&mut self, code: u64) {
        if std::mem::take(&mut self.open) {
            let overtakes = self.at.1 % 2 == 1;
            let _ = self.way(|way| {
                way.reset = Some(code);
                way.head = way.head.take().filter(|_| !overtakes);
            });
        }
    }
}

impl Drop for PathSend {
    fn drop(&mut self) {
        self.reset(CANCELLED);
    }
}

impl PathRecv {
    /// The next bytes, at most so many; `None` while there is nothing to say, and `Some(Ok(None))` at the end.
    pub fn read(&mut self, most: usize) -> Option<Result<Option<Bytes>, PathError>> {
        let path = &mut self.net.borrow_mut()[self.at.0];
        if path.closed[self.end] {
            return Some(Err(PathError::Lost));
        }
        let way = &mut path.streams[self.at.1].to[self.end];
        if let Some(code) = way.reset {
            return Some(Err(PathError::Reset(code)));
        }
        if let Some(mut bytes) = way.bytes.pop_front() {
            let taken = bytes.split_to(most.clamp(1, bytes.len()));
            way.len -= taken.len();
            if bytes.has_remaining() {
                way.bytes.push_front(bytes);
            }
            return Some(Ok(Some(taken)));
        }
        way.fin.then_some(Ok(None))
    }

    pub fn stop(&mut self, code: u64) {
        let path = &mut self.net.borrow_mut()[self.at.0];
        if path.carries() {
            path.streams[self.at.1].to[self.end].stop.get_or_insert(code);
        }
    }
}

impl Drop for PathRecv {
    fn drop(&mut self) {
        self.stop(CANCELLED);
    }
}
