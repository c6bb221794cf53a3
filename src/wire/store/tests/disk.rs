//! A disk in memory: what was not synced may be lost in part at a cut, in any order, and one write torn anywhere.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;

#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    random: StdRng,
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Change>,
    /// Which of the backends is plugged in.
    plugged: u64,
    operations: u64,
    /// The power goes at this operation.
    cut_at: Option<u64>,
    /// Every so many syncs fail.
    sync_fails: Option<u32>,
    capacity: Option<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug)]
pub struct Backend {
    disk: Disk,
    number: u64,
}

impl Disk {
    pub fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let (synced, now, unsynced) = Default::default();
        let (operations, cut_at, sync_fails, capacity) = (0, None, None, None);
        Self(Arc::new(Mutex::new(Inner { random, synced, now, unsynced, plugged: 0, operations, cut_at, sync_fails, capacity })))
    }

    pub fn plugged_in(&self) -> Backend {
        let mut inner = self.lock();
        inner.plugged += 1;
        Backend { disk: self.clone(), number: inner.plugged }
    }

    /// The power goes after so many operations more.
    pub fn cut_after(&self, operations: u64) {
        let mut inner = self.lock();
        inner.cut_at = Some(inner.operations + operations);
    }

    /// One of so many syncs fails; what it was to sync may be on disk or not.
    pub fn fail_syncs(&self, one_of: Option<u32>) {
        self.lock().sync_fails = one_of;
    }

    /// There is room for so many bytes.
    pub fn capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    pub fn len(&self) -> u64 {
        self.lock().now.len() as u64
    }

    /// What is on disk now.
    pub fn image(&self) -> Vec<u8> {
        self.lock().synced.clone()
    }

    /// Puts that on disk.
    pub fn put_back(&self, image: Vec<u8>) {
        let mut inner = self.lock();
        inner.unsynced.clear();
        (inner.synced, inner.now) = (image.clone(), image);
    }

    /// Something changes a byte that is on disk.
    pub fn rot(&self, at: usize, flip: u8) {
        let mut inner = self.lock();
        inner.synced[at] ^= flip;
        inner.now = inner.synced.clone();
    }

    /// The power is back: of what was not synced, some is there.
    pub fn power_on(&self) {
        let mut inner = self.lock();
        inner.plugged += 1;
        inner.cut_at = None;
        let mut changes = std::mem::take(&mut inner.unsynced);
        let Inner { random, synced, .. } = &mut *inner;
        if random.random_bool(0.7) {
            changes.shuffle(random);
        }
        let chance = [0.0, 0.2, 0.5, 0.9, 1.0][random.random_range(0..5)];
        let torn = random.random_range(0..changes.len().max(1) * 2);
        for (number, change) in changes.into_iter().enumerate() {
            match change {
                Change::Length(length) if random.random_bool(chance) => synced.resize(length as usize, 0),
                Change::Write(at, mut bytes) if number == torn || random.random_bool(chance) => {
                    if number == torn {
                        let whole = bytes.len();
                        let kept = random.random_range(0..=whole);
                        let sectors = random.random_bool(0.5);
                        bytes.truncate(if sectors { kept / 512 * 512 } else { kept });
                    }
                    put(synced, at, &bytes);
                }
                Change::Length(_) | Change::Write(..) => {}
            }
        }
        inner.now = inner.synced.clone();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

fn put(disk: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let (at, end) = (at as usize, at as usize + bytes.len());
    if disk.len() < end {
        disk.resize(end, 0);
    }
    disk[at..end].copy_from_slice(bytes);
}

impl Backend {
    /// One more operation, if there is power.
    fn operate(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.disk.lock();
        inner.operations += 1;
        let cut = inner.cut_at.is_some_and(|at| inner.operations >= at);
        match cut || self.number != inner.plugged {
            true => Err(io::Error::other("no power")),
            false => Ok(inner),
        }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.operate()?.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let inner = self.operate()?;
        let offset = offset as usize;
        let from = inner.now.get(offset..offset + out.len()).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut inner = self.operate()?;
        if inner.capacity.is_some_and(|capacity| len > capacity && len > inner.now.len() as u64) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        inner.now.resize(len as usize, 0);
        inner.unsynced.push(Change::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut inner = self.operate()?;
        if let Some(one_of) = inner.sync_fails
            && inner.random.random_ratio(1, one_of)
        {
            return Err(io::Error::other("the disk did not sync"));
        }
        inner.synced = inner.now.clone();
        inner.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut inner = self.operate()?;
        put(&mut inner.now, offset, data);
        inner.unsynced.push(Change::Write(offset, data.to_vec()));
        Ok(())
    }
}
