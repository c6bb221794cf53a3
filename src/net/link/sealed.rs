//! The halves of a circuit's streams: what goes in is sealed, what comes out has verified.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::PathError;
use super::circuit::Circuit;
use super::direct::{PlainRecv, PlainSend};
use crate::proto::close::StreamCode;
use crate::seal::{OpenError, Opener, PLAIN_BYTES, SealError, Sealer};

type Ended = Option<Result<(), PathError>>;

/// The sending half. What was sealed and found no room yet is kept here: less than one record.
pub struct SealedSend {
    inner: Inner,
    sealer: Sealer,
    pending: Bytes,
    circuit: Arc<Circuit>,
}

enum Inner {
    Here(PlainSend),
    /// It was finished, and something writes what is left.
    Ending(watch::Receiver<Ended>),
    /// It was given up.
    Gone,
}

impl SealedSend {
    pub(super) fn new(inner: PlainSend, sealer: Sealer, circuit: Arc<Circuit>) -> Self {
        Self { inner: Inner::Here(inner), sealer, pending: Bytes::new(), circuit }
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
        self.circuit.spawn(async move {
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
                let (stopped, circuit) = (inner.stopped(), self.circuit.clone());
                stopped.map(move |stopped| stopped.map_err(|error| circuit.on_leg(error))).boxed()
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
            inner.write_some(&mut self.pending).await.map_err(|error| self.circuit.on_leg(error))?;
        }
        Ok(())
    }
}

/// The receiving half.
pub struct SealedRecv {
    inner: PlainRecv,
    opener: Opener,
    circuit: Arc<Circuit>,
    /// The number under which the peer has opened the stream, until a record has verified.
    unproved: Option<u64>,
}

impl SealedRecv {
    pub(super) fn new(inner: PlainRecv, opener: Opener, circuit: Arc<Circuit>, unproved: Option<u64>) -> Self {
        Self { inner, opener, circuit, unproved }
    }

    pub async fn read(&mut self) -> Result<Option<Bytes>, PathError> {
        loop {
            match self.opener.next_record() {
                Ok(Some(record)) => {
                    if let Some(number) = self.unproved.take() {
                        self.circuit.accepted(number)?;
                    }
                    if !record.bytes.is_empty() {
                        return Ok(Some(record.bytes));
                    }
                }
                Ok(None) => match self.inner.read().await.map_err(|error| self.circuit.on_leg(error))? {
                    Some(bytes) => {
                        self.circuit.received(bytes.len());
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
        PathError::Lost(self.circuit.broken(&error.to_string()))
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
