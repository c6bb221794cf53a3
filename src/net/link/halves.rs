//! The halves of a circuit's path streams. Each begins on a lane; what becomes large, or is urgent, goes on on a relayed stream of its own.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use super::PathError;
use super::circuit::Circuit;
use super::lane::{Broken, Halted, Head, Read, Written};
use super::lanes::{Lane, gone};
use super::sealed::{SealedRecv, SealedSend};
use crate::proto::close::StreamCode;
use crate::proto::limits;

/// The sending half.
pub struct CircuitSend {
    circuit: Arc<Circuit>,
    lane: Arc<Lane>,
    number: u64,
    /// What went over the lane: where it moves to it goes again.
    kept: Vec<Bytes>,
    /// Where it goes on, once it has moved.
    own: Option<Box<Own>>,
    urgent: bool,
    open: bool,
    /// The lane knows already that this half is gone.
    gone: bool,
}

/// A relayed stream of its own, and leave to have one.
#[derive(Debug)]
struct Own {
    send: SealedSend,
    _leave: OwnedSemaphorePermit,
}

impl CircuitSend {
    pub(super) fn new(lane: Arc<Lane>, number: u64, circuit: Arc<Circuit>) -> Self {
        Self { circuit, lane, number, kept: Vec::new(), own: None, urgent: false, open: true, gone: false }
    }

    /// Writes all of it; `last`: and no more bytes follow.
    pub async fn write_all(&mut self, bytes: &mut Bytes, last: bool) -> Result<(), PathError> {
        match poll_fn(|cx| self.put(bytes, last, cx)).await? {
            Put::OnLane => Ok(()),
            Put::Elsewhere => Box::pin(self.write_there(bytes, last)).await,
        }
    }

    pub async fn write_some(&mut self, bytes: &mut Bytes) -> Result<(), PathError> {
        match poll_fn(|cx| self.put(bytes, false, cx)).await? {
            Put::OnLane => Ok(()),
            Put::Elsewhere => Box::pin(self.write_some_there(bytes)).await,
        }
    }

    async fn write_there(&mut self, bytes: &mut Bytes, last: bool) -> Result<(), PathError> {
        while !bytes.is_empty() {
            self.write_some_there(bytes).await?;
        }
        if last { self.finish() } else { Ok(()) }
    }

    async fn write_some_there(&mut self, bytes: &mut Bytes) -> Result<(), PathError> {
        if self.own.is_none() {
            self.move_on().await?;
        }
        if let Some(told) = self.told() {
            return Err(told);
        }
        let Some(own) = &mut self.own else { return Err(PathError::Closed) };
        match own.send.write_some(bytes).await {
            Ok(()) => Ok(()),
            Err(PathError::Stopped(_)) => {
                Err(stop_said(&self.circuit, &self.lane, self.number).await.unwrap_or(PathError::Closed))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Where it went on nothing more is taken.
    fn failed(&mut self, error: PathError) -> PathError {
        if error == PathError::Closed && self.open {
            // It has had all of its records: the session goes on with it on another path, or here under another number.
            self.reset(StreamCode::PathLeft);
        }
        self.told().unwrap_or(error)
    }

    /// What the peer itself has said of it.
    fn told(&self) -> Option<PathError> {
        let told = self.lane.with(|table| table.told(self.number));
        told.map(|halted| self.halted(halted))
    }

    /// Puts all of it on the lane, if that is where it goes; and if it is the last, lets go of the lane with it.
    fn put(&mut self, bytes: &mut Bytes, last: bool, cx: &Context<'_>) -> Poll<Result<Put, PathError>> {
        if self.own.is_some() {
            return Poll::Ready(Ok(Put::Elsewhere));
        }
        let before = (!last).then(|| bytes.clone());
        let written = self.lane.with(|table| {
            let written = table.write(self.number, bytes, self.urgent, cx.waker())?;
            if last && written == Written::All {
                table.finish(self.number)?;
                table.write_no_more(self.number);
            }
            Ok(written)
        });
        match written {
            Ok(Written::Waits) => Poll::Pending,
            Ok(Written::Moves) => Poll::Ready(Ok(Put::Elsewhere)),
            Ok(Written::All) => {
                (self.open, self.gone) = (!last, last);
                self.kept.extend(before);
                Poll::Ready(Ok(Put::OnLane))
            }
            Err(halted) => Poll::Ready(Err(self.halted(halted))),
        }
    }

    /// Goes on on a stream of its own, which carries it from its first byte on: it must not wait for the lane. Cancel-safe.
    async fn move_on(&mut self) -> Result<(), PathError> {
        let permit = self.circuit.own_stream().await?;
        let opened = self.circuit.open_on_leg().await?;
        // What comes back on it is nothing: the other direction moves by itself.
        let (mut own, _) = self.circuit.relayed(opened)?;
        own.begin(&Head::Part { lane: self.lane.id(), stream: self.number }.bytes())?;
        if !self.kept.is_empty() {
            own.begin(&std::mem::take(&mut self.kept).concat())?;
        }
        self.lane.with(|table| table.moved(self.number)).map_err(|halted| self.halted(halted))?;
        if self.urgent {
            own.urgent();
        }
        self.own = Some(Box::new(Own { send: own, _leave: permit }));
        Ok(())
    }

    pub fn urgent(&mut self) {
        self.urgent = true;
        if let Some(own) = &mut self.own {
            own.send.urgent();
        }
    }

    pub fn finish(&mut self) -> Result<(), PathError> {
        if !self.open {
            return Err(PathError::Closed);
        }
        let Some(own) = &mut self.own else {
            self.open = false;
            return self.lane.with(|table| table.finish(self.number)).map_err(|halted| self.halted(halted));
        };
        let (finished, stopped) = (own.send.finish(), own.send.stopped());
        finished.map_err(|error| self.failed(error))?;
        self.open = false;
        self.lane.with(|table| table.finished_there(self.number));
        // Whoever carries it may give it up still, and its reader would wait for ever.
        let (lane, number, circuit) = (self.lane.clone(), self.number, Arc::downgrade(&self.circuit));
        self.circuit.spawn(async move {
            if let (Err(PathError::Stopped(_)), Some(circuit)) = (stopped.await, circuit.upgrade()) {
                stop_said(&circuit, &lane, number).await;
            }
        });
        Ok(())
    }

    pub fn reset(&mut self, code: StreamCode) {
        if std::mem::take(&mut self.open) {
            // On the lane too: with what carries the rest the peer may lose what that is.
            self.lane.with(|table| table.reset(self.number, code as u64));
            if let Some(own) = &mut self.own {
                own.send.reset(code);
            }
        }
    }

    pub fn stopped(&self) -> BoxFuture<'static, Result<(), PathError>> {
        let (lane, number, circuit) = (self.lane.clone(), self.number, self.circuit.clone());
        let told = poll_fn(move |cx| match lane.with(|table| table.stopped(number, cx.waker())) {
            Some(stopped) => Poll::Ready(stopped.map_err(|halted| error(&circuit, halted))),
            None => Poll::Pending,
        });
        let Some(own) = &self.own else { return told.boxed() };
        let (left, lane, circuit) = (own.send.stopped(), self.lane.clone(), self.circuit.clone());
        async move {
            tokio::select! {
                biased;
                Err(error) = told => Err(error),
                left = left => match left {
                    Err(PathError::Stopped(_)) => stop_said(&circuit, &lane, number).await.map_or(Ok(()), Err),
                    left => left,
                },
            }
        }
        .boxed()
    }

    fn halted(&self, halted: Halted) -> PathError {
        error(&self.circuit, halted)
    }
}

impl Drop for CircuitSend {
    fn drop(&mut self) {
        self.reset(StreamCode::Cancelled);
        if !self.gone {
            self.lane.with(|table| table.write_no_more(self.number));
        }
    }
}

/// Where bytes went that were to be written.
enum Put {
    OnLane,
    /// Nowhere yet: they are for a stream of its own.
    Elsewhere,
}

/// The receiving half.
pub struct CircuitRecv {
    circuit: Arc<Circuit>,
    lane: Arc<Lane>,
    number: u64,
    /// Where it goes on, once it has moved.
    own: Option<Box<SealedRecv>>,
    /// Bytes that come there again.
    skip: usize,
    /// It was stopped here.
    stopped: bool,
    /// Where it went on it was reset, and the peer has not said so yet.
    unsaid: bool,
    /// After the end, or the code with which it was given up.
    ended: Option<Result<(), u64>>,
    /// The lane knows already that this half is gone.
    gone: bool,
}

impl CircuitRecv {
    pub(super) fn new(lane: Arc<Lane>, number: u64, circuit: Arc<Circuit>) -> Self {
        Self { circuit, lane, number, own: None, skip: 0, stopped: false, unsaid: false, ended: None, gone: false }
    }

    pub async fn read(&mut self) -> Result<Option<Bytes>, PathError> {
        match poll_fn(|cx| self.take(cx)).await {
            Some(read) => read,
            None => Box::pin(self.read_there()).await,
        }
    }

    /// Reads on where it has moved to.
    async fn read_there(&mut self) -> Result<Option<Bytes>, PathError> {
        if self.unsaid {
            return self.reset_said().await;
        }
        loop {
            let Some(own) = &mut self.own else { return Err(PathError::Closed) };
            let reset = |cx: &mut Context<'_>| {
                let reset = self.lane.with(|table| table.was_reset(self.number, cx.waker()));
                reset.map_or(Poll::Pending, Poll::Ready)
            };
            let read = tokio::select! {
                biased;
                code = poll_fn(reset) => return self.end(Err(code)),
                read = own.read() => read,
            };
            match read {
                Ok(Some(mut bytes)) => {
                    let again = self.skip.min(bytes.len());
                    bytes.advance(again);
                    self.skip -= again;
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
                Ok(None) if self.skip > 0 => {
                    let broken = Broken::Apart(self.number).to_string();
                    return Err(PathError::Lost(self.circuit.broken(&broken)));
                }
                Ok(None) => return self.end(Ok(())),
                // Whoever carries it can say that: it counts when the peer has said so too.
                Err(PathError::Reset(_)) => {
                    self.unsaid = true;
                    return self.reset_said().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the peer's own word that it gave the stream up; not for long.
    async fn reset_said(&mut self) -> Result<Option<Bytes>, PathError> {
        let said = poll_fn(|cx| {
            let reset = self.lane.with(|table| table.was_reset(self.number, cx.waker()));
            reset.map_or(Poll::Pending, Poll::Ready)
        });
        let code = tokio::select! {
            biased;
            code = said => code,
            () = self.circuit.over() => return Err(gone(&self.circuit)),
            () = sleep(limits::ANSWER_BOUND) => return Err(given_up_by_nobody(&self.circuit, self.number)),
        };
        self.end(Err(code))
    }

    /// Reads what has come on the lane; `None` if it has moved. With the last bytes it lets go of the lane.
    fn take(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Option<Bytes>, PathError>>> {
        if self.stopped {
            return Poll::Ready(Some(Err(PathError::Closed)));
        }
        if let Some(ended) = self.ended {
            return Poll::Ready(Some(ended.map(|()| None).map_err(PathError::Reset)));
        }
        if self.own.is_some() || self.unsaid {
            return Poll::Ready(None);
        }
        let (read, gone) = self.lane.with(|table| {
            let read = table.read(self.number, cx.waker());
            let gone = matches!(read, Ok(Read::Bytes(_))) && table.has_read_all(self.number);
            (read, gone && table.read_no_more(self.number).is_none())
        });
        Poll::Ready(Some(match read {
            Ok(Read::Nothing) => return Poll::Pending,
            Ok(Read::Part(own, skip)) => {
                (self.own, self.skip) = (Some(own), skip);
                return Poll::Ready(None);
            }
            Ok(Read::Bytes(bytes)) => {
                (self.ended, self.gone) = (gone.then_some(Ok(())), gone);
                Ok(Some(bytes))
            }
            Ok(Read::Reset(code)) => self.end(Err(code)),
            Ok(Read::End) => self.end(Ok(())),
            Err(halted) => Err(error(&self.circuit, halted)),
        }))
    }

    fn end(&mut self, ended: Result<(), u64>) -> Result<Option<Bytes>, PathError> {
        self.ended = Some(ended);
        self.own = None;
        ended.map(|()| None).map_err(PathError::Reset)
    }

    pub fn stop(&mut self, code: StreamCode) {
        if self.ended.is_some() || std::mem::replace(&mut self.stopped, true) {
            return;
        }
        self.lane.with(|table| table.stop(self.number, code as u64));
        if let Some(own) = &mut self.own {
            own.stop(code);
        }
    }
}

impl Drop for CircuitRecv {
    fn drop(&mut self) {
        self.stop(StreamCode::Cancelled);
        if !self.gone {
            // Dropped outside of the lane's lock.
            drop(self.lane.with(|table| table.read_no_more(self.number)));
        }
    }
}

/// Waits for the peer's own word that it reads no more of a stream that was stopped where it moved to: whoever carries it can do that too, and
/// has then meddled. `None`: the stream is no more.
async fn stop_said(circuit: &Arc<Circuit>, lane: &Arc<Lane>, number: u64) -> Option<PathError> {
    let said = poll_fn(|cx| lane.with(|table| table.stop_said(number, cx.waker())));
    tokio::select! {
        biased;
        said = said => said.map(|halted| error(circuit, halted)),
        () = circuit.over() => Some(gone(circuit)),
        () = sleep(limits::ANSWER_BOUND) => Some(given_up_by_nobody(circuit, number)),
    }
}

/// Neither end has given a stream up, and yet it was: somebody on the way did that.
fn given_up_by_nobody(circuit: &Circuit, number: u64) -> PathError {
    PathError::Lost(circuit.broken(&format!("stream {number} of a lane was given up by neither end")))
}

fn error(circuit: &Circuit, halted: Halted) -> PathError {
    match halted {
        Halted::Over => gone(circuit),
        Halted::Stopped(code) => PathError::Stopped(code),
        Halted::Closed => PathError::Closed,
    }
}

impl fmt::Debug for CircuitSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitSend").field("number", &self.number).field("own", &self.own).finish_non_exhaustive()
    }
}

impl fmt::Debug for CircuitRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitRecv").field("number", &self.number).field("own", &self.own).finish_non_exhaustive()
    }
}
