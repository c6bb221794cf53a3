//! The wires of this node, by name: made, found, listed, removed. Who may is asked elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::committer::Committer;
use super::log::{Log, Memory};
use super::store::{self, Store, StoreError};
use crate::net::Network;
use crate::proto::limits;
use crate::proto::status::{Code, Status};
use crate::proto::wire::{Options, WireInfo, check_name};

/// What an operator may bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Wires of the node.
    pub wires: usize,
    /// Free space on disk, in bytes, below which persistent wires take nothing.
    pub disk_free_bytes: u64,
}

/// The wires of a node. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Wires(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    network: Network,
    /// Where persistent ones are kept, if anywhere.
    directory: Option<PathBuf>,
    bounds: Bounds,
    memory: Arc<Memory>,
    wires: Mutex<BTreeMap<String, Hosted>>,
    /// Held while a wire's file is made or removed: one at a time.
    files: tokio::sync::Mutex<()>,
    /// Files that could not be opened, and why.
    broken: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
struct Hosted {
    log: Arc<Log>,
    /// Made because somebody used it: it goes when nobody does any more.
    by_use: bool,
}

impl Wires {
    /// Opens those that are kept in this directory. Reads files, so it is not for an asynchronous thread.
    ///
    /// # Errors
    /// The directory cannot be used. A file that cannot is no error: its wire is listed as broken.
    pub fn open(directory: Option<PathBuf>, network: Network, bounds: Bounds) -> Result<Self, StoreError> {
        let memory = Arc::<Memory>::default();
        let (mut wires, mut broken) = (BTreeMap::new(), Vec::new());
        for (path, opened) in
            directory.iter().map(|directory| store::open_all(directory)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten()
        {
            match opened {
                Ok(store) => {
                    let log = on_disk(store.leaving(bounds.disk_free_bytes), &network, &memory);
                    wires.insert(log.name().to_owned(), Hosted { log, by_use: false });
                }
                Err(error) => {
                    tracing::error!(%error, "a persistent wire cannot be opened; the others can");
                    broken.push((path, error.to_string()));
                }
            }
        }
        Ok(Self(Arc::new(Inner {
            network,
            directory,
            bounds,
            memory,
            wires: Mutex::new(wires),
            files: Default::default(),
            broken,
        })))
    }

    /// Where the node's tasks run.
    pub fn network(&self) -> &Network {
        &self.0.network
    }

    /// The wire of this name.
    pub fn find(&self, name: &str) -> Option<Arc<Log>> {
        self.wires().get(name).map(|hosted| hosted.log.clone())
    }

    /// Makes a wire; says whether it was there, made like this. One on disk takes a moment. Cancel-safe: dropped half-way, the wire is made
    /// or not, and can be made again.
    ///
    /// # Errors
    /// It is there and was made in another way; there are too many; or the disk does not do.
    pub async fn create(&self, name: &str, options: Options) -> Result<(Arc<Log>, bool), Status> {
        check_name(name).and_then(|()| options.check()).map_err(|why| Status::new(Code::InvalidArgument, why))?;
        if let Some(there) = self.there(name, options)? {
            return Ok((there, true));
        }
        if !options.persist {
            return self
                .insert(name, options, false, |memory| Log::in_memory(name.to_owned(), options, new_epoch(), memory.clone()));
        }
        let Some(directory) = self.0.directory.clone() else {
            return Err(Status::new(Code::FailedPrecondition, "this node keeps nothing on disk: it has no home"));
        };
        // Not dropped with this future: a file that is made and has no wire could not be made again.
        let (wires, owned) = (self.clone(), name.to_owned());
        let made = tokio::task::spawn_blocking(move || wires.make_on_disk(&directory, &owned, options)).await;
        made.unwrap_or_else(|_| Err(Status::new(Code::Internal, "making the wire's file has failed")))
    }

    fn make_on_disk(&self, directory: &Path, name: &str, options: Options) -> Result<(Arc<Log>, bool), Status> {
        let _one_at_a_time = self.0.files.blocking_lock();
        if let Some(there) = self.there(name, options)? {
            return Ok((there, true));
        }
        self.is_not_broken(directory, name)?;
        let store = Store::create(directory, name, options, new_epoch()).map_err(|error| {
            tracing::error!(%error, "a persistent wire cannot be made");
            Status::new(Code::Unavailable, "the host could not make the wire's file: it knows more")
        })?;
        let store = store.leaving(self.0.bounds.disk_free_bytes);
        let (path, network) = (store.path().to_owned(), self.0.network.clone());
        let made = self.insert(name, options, false, |memory| on_disk(store, &network, memory));
        // There are too many, or one in memory came in between.
        if made.is_err()
            && let Err(error) = store::remove(&path)
        {
            tracing::error!(%error, "the file of a wire that was not made is left");
        }
        made
    }

    /// The wire of this name, made in memory if there is none and it may be.
    ///
    /// # Errors
    /// There is none, or there are too many.
    pub fn find_or_make(&self, name: &str, may_make: impl FnOnce() -> bool) -> Result<Arc<Log>, Status> {
        if let Some(found) = self.find(name) {
            return Ok(found);
        }
        if let Some(directory) = &self.0.directory {
            self.is_not_broken(directory, name)?;
        }
        if !may_make() {
            return Err(Status::new(Code::NotFound, format!("there is no wire {name:?} here")));
        }
        let options = Options::default();
        let make = |memory: &Arc<Memory>| Log::in_memory(name.to_owned(), options, new_epoch(), memory.clone());
        // Made by somebody else meanwhile, it is as good however it was made.
        self.insert(name, options, true, make).map(|(log, _)| log).or_else(|status| self.find(name).ok_or(status))
    }

    /// Removes a wire, with what is kept of it on disk: whoever publishes or reads is told.
    ///
    /// # Errors
    /// Its file cannot be removed. It is not there any more until the next start.
    pub async fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let _one_at_a_time = self.0.files.lock().await;
        let Some(hosted) = self.wires().remove(name) else { return Ok(false) };
        hosted.log.end(Status::new(Code::NotFound, "the wire was removed"));
        if let (true, Some(directory)) = (hosted.log.options().persist, &self.0.directory) {
            store::remove(&directory.join(store::file_name(name)))?;
        }
        Ok(true)
    }

    /// The node goes down: whoever publishes or reads here is told, and files are closed. Waits for the disk, so it is not for an
    /// asynchronous thread.
    pub fn close(&self) {
        let wires = std::mem::take(&mut *self.wires());
        for hosted in wires.into_values() {
            hosted.log.end(Status::new(Code::Unavailable, "the host of the wire has gone down"));
            hosted.log.committer().into_iter().for_each(Committer::close);
        }
    }

    /// The wires whose names pass.
    pub fn list(&self, passes: impl Fn(&str) -> bool) -> Vec<WireInfo> {
        self.sweep();
        // Asking policy takes a while: nobody else waits for that.
        let all: Vec<Arc<Log>> = self.wires().values().map(|hosted| hosted.log.clone()).collect();
        all.iter().filter(|log| passes(log.name())).map(|log| log.info()).collect()
    }

    /// Files that hold wires and cannot be opened, and why. For this node's owner.
    pub fn broken(&self) -> &[(PathBuf, String)] {
        &self.0.broken
    }

    fn there(&self, name: &str, options: Options) -> Result<Option<Arc<Log>>, Status> {
        self.wires().get_mut(name).map(|hosted| hosted.made_again(options, false)).transpose()
    }

    fn insert(
        &self,
        name: &str,
        options: Options,
        by_use: bool,
        make: impl FnOnce(&Arc<Memory>) -> Arc<Log>,
    ) -> Result<(Arc<Log>, bool), Status> {
        self.sweep();
        let mut wires = self.wires();
        if let Some(hosted) = wires.get_mut(name) {
            return hosted.made_again(options, by_use).map(|log| (log, true));
        }
        if wires.len() >= self.0.bounds.wires {
            let text = format!("this node has {} wires, and that is the most", wires.len());
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        let log = make(&self.0.memory);
        wires.insert(name.to_owned(), Hosted { log: log.clone(), by_use });
        Ok((log, false))
    }

    /// Wires that were made by use, and that nobody has used for long, go.
    fn sweep(&self) {
        self.wires().retain(|_, hosted| !(hosted.by_use && hosted.log.end_if_unused(limits::WIRE_UNUSED)));
    }

    /// A wire whose file cannot be opened is not made anew beside it.
    fn is_not_broken(&self, directory: &Path, name: &str) -> Result<(), Status> {
        let path = directory.join(store::file_name(name));
        match self.0.broken.iter().any(|(broken, _)| *broken == path) {
            true => Err(Status::new(Code::DataLoss, "what is stored of this wire cannot be opened: its host knows more")),
            false => Ok(()),
        }
    }

    fn wires(&self) -> MutexGuard<'_, BTreeMap<String, Hosted>> {
        self.0.wires.lock().expect("nothing panics while it is held")
    }
}

impl Hosted {
    /// Made once more: fine if it is to be like it is.
    fn made_again(&mut self, options: Options, by_use: bool) -> Result<Arc<Log>, Status> {
        if self.log.options() != options {
            let name = self.log.name();
            return Err(Status::new(Code::AlreadyExists, format!("the wire {name:?} is there, made in another way")));
        }
        self.by_use &= by_use;
        Ok(self.log.clone())
    }
}

fn on_disk(store: Store, network: &Network, memory: &Arc<Memory>) -> Arc<Log> {
    let (name, options) = (store.name().to_owned(), store.options());
    Log::on_disk(name, options, Committer::new(store, network.clone()), memory.clone())
}

/// Another one than any before, as far as chance goes.
fn new_epoch() -> u64 {
    rand::random::<u64>().max(1)
}
