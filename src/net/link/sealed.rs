//! The halves of a circuit's relayed streams: what goes in is sealed, what comes out has verified.

use std::fmt;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::circuit::Circuit;
use super::direct::{PlainRecv, PlainSend};
use super::{LostReason, PathError};
use crate::proto::close::StreamCode;
use crate::seal::{OpenError, Opener, PLAIN_BYTES, SealError, Sealer};

type Ended = Option<Result<(), PathError>>;

/// What ties a half to its circuit, without keeping that: lanes have some as long as it lives. Whoever was given a stream of it has the circuit
/// too.
#[derive(Clone)]
pub struct Tie {
    circuit: Weak<Circuit>,
    lost: watch::Receiver<Option<LostReason>>,
}

impl Tie {
    pub(super) fn new(circuit: &Arc<Circuit>) -> Self {
        Self { circuit: Arc::downgrade(circuit), lost: circuit.watch() }
    }

    /// What comes of this, unless the circuit ends before; and what an error on the leg means for the circuit.
    async fn unless_over<T>(&mut self, done: impl Future<Output = Result<T, PathError>>) -> Result<T, PathError> {
        let done = tokio::select! {
            biased;
            done = done => done,
            lost = self.lost.wait_for(Option::is_some) => {
                let reason = lost.ok().and_then(|lost| lost.clone());
                return Err(PathError::Lost(reason.unwrap_or(LostReason::Here)));
            }
        };
        done.map_err(|error| self.on_leg(error))
    }

    fn on_leg(&self, error: PathError) -> PathError {
        match self.circuit.upgrade() {
            Some(circuit) => circuit.on_leg(error),
            None => error,
        }
    }
}

/// The sending half. What was sealed and found no room yet is kept here: less than one record.
pub struct SealedSend {
    inner: Inner,
    sealer: Sealer,
    pending: Bytes,
    tie: Tie,
}

enum Inner {
    Here(PlainSend),
    /// It was finished, and something writes what is left.
    Ending(watch::Receiver<Ended>),
    /// It was given up.
    Gone,
}

impl SealedSend {
    /// `head`: what goes before the first record, as it is.
    pub(super) fn new(inner: PlainSend, sealer: Sealer, tie: Tie, head: Vec<u8>) -> Self {
        Self { inner: Inner::Here(inner), sealer, pending: head.into(), tie }
    }

    /// The first record, which leaves with what is written next.
    pub(super) fn begin(&mut self, first: &[u8]) -> Result<(), PathError> {
        let before = std::mem::take(&mut self.pending);
        self.seal(first, false)?;
        self.pending = [before, std::mem::take(&mut self.pending)].concat().into();
        Ok(())
    }

    /// How many records can still be sealed.
    pub(super) fn left(&self) -> u32 {
        self.sealer.left()
    }

    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), PathError> {
        while !bytes.is_empty() {
            self.write_some(&mut bytes).await?;
        }
        Ok(())
    }

    pub async fn write_some(&mut self, bytes: &mut Bytes) -> Result<(), PathError> {
        self.flush().await?;
        let piece = bytes.split_to(bytes.len().min(PLAIN_BYTES));
        self.seal(&piece, false)?;
        self.flush().await
    }

    pub fn urgent(&mut self) {
        if let Inner::Here(inner) = &mut self.inner {
            inner.urgent();
        }
    }

    pub fn finish(&mut self) -> Result<(), PathError> {
        let before = std::mem::take(&mut self.pending);
        self.seal(&[], true)?;
        let Inner::Here(mut inner) = std::mem::replace(&mut self.inner, Inner::Gone) else { return Err(PathError::Closed) };
        let mut left = Bytes::from([before, std::mem::take(&mut self.pending)].concat());
        // Nearly always there is room.
        while !left.is_empty() && matches!(inner.write_some(&mut left).now_or_never(), Some(Ok(()))) {}
        if left.is_empty() {
            let finished = inner.finish();
            self.inner = Inner::Here(inner);
            return finished;
        }
        let (told, ended) = watch::channel(None);
        let Some(circuit) = self.tie.circuit.upgrade() else { return Err(PathError::Closed) };
        circuit.spawn(async move {
            let written = async {
                inner.write(left).await?;
                inner.finish()?;
                inner.stopped().await
            };
            told.send_replace(Some(written.await));
        });
        self.inner = Inner::Ending(ended);
        Ok(())
    }

    pub fn reset(&mut self, code: StreamCode) {
        match std::mem::replace(&mut self.inner, Inner::Gone) {
            Inner::Here(mut inner) => inner.reset(code),
            ending => self.inner = ending,
        }
    }

    pub fn stopped(&self) -> BoxFuture<'static, Result<(), PathError>> {
        match &self.inner {
            Inner::Here(inner) => {
                let (stopped, tie) = (inner.stopped(), self.tie.clone());
                stopped.map(move |stopped| stopped.map_err(|error| tie.on_leg(error))).boxed()
            }
            Inner::Ending(ended) => {
                let mut ended = ended.clone();
                let told = async move {
                    let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
                    ended.unwrap_or(Err(PathError::Closed))
                };
                told.boxed()
            }
            Inner::Gone => std::future::ready(Err(PathError::Closed)).boxed(),
        }
    }

    fn seal(&mut self, bytes: &[u8], last: bool) -> Result<(), PathError> {
        let mut out = Vec::new();
        match self.sealer.seal(bytes, last, &mut out) {
            Ok(()) => {
                self.pending = out.into();
                Ok(())
            }
            Err(SealError::Exhausted) => {
                // The session goes on with what is left of it on another path, or here under another number.
                self.reset(StreamCode::PathLeft);
                Err(PathError::Closed)
            }
            Err(_) => Err(PathError::Closed),
        }
    }

    async fn flush(&mut self) -> Result<(), PathError> {
        let Inner::Here(inner) = &mut self.inner else { return Err(PathError::Closed) };
        while !self.pending.is_empty() {
            self.tie.unless_over(inner.write_some(&mut self.pending)).await?;
        }
        Ok(())
    }
}

/// The receiving half.
pub struct SealedRecv {
    inner: PlainRecv,
    opener: Opener,
    tie: Tie,
}

impl SealedRecv {
    pub(super) fn new(inner: PlainRecv, opener: Opener, tie: Tie) -> Self {
        Self { inner, opener, tie }
    }

    pub async fn read(&mut self) -> Result<Option<Bytes>, PathError> {
        loop {
            match self.opener.next_record() {
                Ok(Some(record)) => {
                    if !record.bytes.is_empty() {
                        return Ok(Some(record.bytes));
                    }
                }
                Ok(None) => match self.tie.unless_over(self.inner.read()).await? {
                    Some(bytes) => {
                        self.tie.circuit.upgrade().into_iter().for_each(|circuit| circuit.received(bytes.len()));
                        self.opener.push(&bytes);
                    }
                    None => return self.opener.end().map(|()| None).map_err(|error| self.forged(error)),
                },
                Err(error) => return Err(self.forged(error)),
            }
        }
    }

    pub fn stop(&mut self, code: StreamCode) {
        self.inner.stop(code);
    }

    fn forged(&self, error: OpenError) -> PathError {
        let reason = self.tie.circuit.upgrade().map(|circuit| circuit.broken(&error.to_string()));
        PathError::Lost(reason.unwrap_or(LostReason::Here))
    }
}

impl fmt::Debug for SealedSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedSend").field("sealer", &self.sealer).field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for SealedRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedRecv").field("opener", &self.opener).finish_non_exhaustive()
    }
}
