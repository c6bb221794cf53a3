//! What is in a wire's database, and reading it. Every row has a checksum of its own, and one row says what all the others add up to: redb
//! does not look at its checksums when it reads, and a row that damage hides must be missed.

use std::collections::HashMap;

use bincode::{Decode, Encode};
use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::block::Block;
use super::error::Failure;
use crate::proto::codec::{self, Message};
use crate::proto::wire::{Options, PublisherId};
use crate::state::wire::{Read, skip_frames};

pub(super) const BLOCKS: TableDefinition<u64, &[u8]> = TableDefinition::new("blocks");
/// How far each publisher has got, in which commit, and a checksum.
pub(super) const PUBLISHERS: TableDefinition<[u8; 16], (u64, u64, u32)> = TableDefinition::new("publishers");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// This version's format.
pub(super) const FORMAT: u32 = 1;

/// A row of the table that has few.
pub(super) trait Row: Message + Encode + Decode<()> {
    const KEY: &'static str;
}

/// What a wire is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Meta {
    pub format: u32,
    pub name: String,
    pub options: Options,
    pub epoch: u64,
}

impl Message for Meta {
    const NAME: &'static str = "description of a wire";
    const LIMIT: usize = 1_024;
}

impl Row for Meta {
    const KEY: &'static str = "wire";
}

/// What the other tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Extent {
    /// The oldest chunk; `next` if there is none.
    pub first: u64,
    pub next: u64,
    /// Of blocks.
    pub bytes: u64,
    pub publishers: u64,
    /// So far. A publisher that is used last has the highest.
    pub commits: u64,
}

impl Message for Extent {
    const NAME: &'static str = "extent of a wire";
    const LIMIT: usize = 64;
}

impl Row for Extent {
    const KEY: &'static str = "extent";
}

impl Extent {
    /// Of an empty wire.
    pub const NONE: Self = Self { first: 1, next: 1, bytes: 0, publishers: 0, commits: 0 };
}

/// What is stored of a wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The oldest chunk; `next` if there is none.
    pub first: u64,
    /// The number of the next chunk.
    pub next: u64,
    /// Bytes on disk, without redb's own.
    pub bytes: u64,
    /// How far each publisher has got.
    pub publishers: HashMap<PublisherId, u64>,
    pub(super) commits: u64,
}

/// Makes the tables.
pub(super) fn fill(database: &Database, meta: &Meta) -> Result<(), Failure> {
    let transaction = begin(database)?;
    put(&transaction, meta)?;
    put(&transaction, &Extent::NONE)?;
    transaction.open_table(BLOCKS)?;
    transaction.open_table(PUBLISHERS)?;
    Ok(transaction.commit()?)
}

/// Begins to write, with two phases: redb waits for the disk twice, before and after its root turns to what is new. It costs a tenth of a
/// millisecond on a good disk and buys two things. When the disk fails to sync, what it was given may be lost although it can still be
/// read (Linux keeps such pages and takes them for written). With one phase these may be any pages of a commit that shows as
/// whole when the file is opened again; with two only the root is in doubt, and it is written anew at that moment. And a commit that was
/// acknowledged and is damaged later is told: with one phase redb goes back to the one before it, and says nothing.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, Failure> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// Looks at what is there. That it is what it should be is checked as far as that is quick: the rows, and the newest block.
pub(super) fn look(database: &Database) -> Result<(Meta, Held), Failure> {
    let transaction = database.begin_read()?;
    let (meta, extent) = (get::<Meta>(&transaction)?, get::<Extent>(&transaction)?);
    if meta.format != FORMAT {
        return Err(Failure::Redb(redb::Error::UpgradeRequired(u8::try_from(meta.format).unwrap_or(u8::MAX))));
    }
    let blocks = transaction.open_table(BLOCKS)?;
    let first = blocks.first()?.map(|(first, _)| first.value());
    let last = blocks.last()?.map(|(key, block)| end_of(key.value(), block.value())).transpose()?;
    if (first.unwrap_or(extent.next), last.unwrap_or(extent.first)) != (extent.first, extent.next) {
        let Extent { first, next, .. } = extent;
        return Err(Failure::damaged(format_args!("chunks are missing of those from {first} up to {next}")));
    }
    let mut held = Held { publishers: HashMap::new(), ..Held::of(&extent) };
    for entry in transaction.open_table(PUBLISHERS)?.iter()? {
        let (id, known) = entry?;
        let (last, _) = read_publisher(id.value(), known.value())?;
        held.publishers.insert(PublisherId(id.value()), last);
    }
    match held.publishers.len() as u64 == extent.publishers {
        true => Ok((meta, held)),
        false => Err(Failure::damaged("publishers are missing")),
    }
}

/// Reads blocks from the one that holds this number on, about so many bytes.
pub(super) fn read(transaction: &ReadTransaction, at: u64, bytes_max: usize) -> Result<Read, Failure> {
    let extent = get::<Extent>(transaction)?;
    if at >= extent.next {
        return Ok(Read::Nothing);
    }
    if at < extent.first {
        return Ok(Read::Behind(extent.first));
    }
    let table = transaction.open_table(BLOCKS)?;
    let (mut pieces, mut bytes, mut next) = (Vec::new(), 0, at);
    let first = table.range(..=at)?.next_back().transpose()?;
    let mut key = first.map_or(at, |(first, _)| first.value());
    while next < extent.next && (bytes == 0 || bytes < bytes_max) {
        let value = table.get(key)?;
        let block = value.as_ref().and_then(|value| Block::read(key, value.value()));
        let missing = || Failure::damaged(format_args!("the block that should hold chunk {next} is damaged or missing"));
        let block = block.ok_or_else(missing)?;
        let end = key + u64::from(block.count);
        let frames = skip_frames(&Bytes::copy_from_slice(block.frames), next - key);
        let frames = frames.filter(|_| next < end && end <= extent.next).ok_or_else(missing)?;
        bytes += frames.len();
        pieces.push(frames);
        (key, next) = (end, end);
    }
    Ok(Read::Chunks(pieces, next - at))
}

/// The number after those of a block.
fn end_of(first: u64, block: &[u8]) -> Result<u64, Failure> {
    let damaged = || Failure::damaged(format_args!("the block that begins with chunk {first} is damaged"));
    Block::read(first, block).map(|block| first + u64::from(block.count)).ok_or_else(damaged)
}

/// What a publisher's row says: its last chunk, and in which commit.
pub(super) fn read_publisher(id: [u8; 16], (last, commit, checksum): (u64, u64, u32)) -> Result<(u64, u64), Failure> {
    match checksum == check_publisher(&id, last, commit) {
        true => Ok((last, commit)),
        false => Err(Failure::damaged("what is known of a publisher is damaged")),
    }
}

/// Notes how far a publisher has got.
pub(super) fn put_publisher(
    table: &mut Table<'_, [u8; 16], (u64, u64, u32)>,
    id: [u8; 16],
    last: u64,
    commit: u64,
) -> Result<(), Failure> {
    table.insert(id, (last, commit, check_publisher(&id, last, commit)))?;
    Ok(())
}

fn check_publisher(id: &[u8; 16], last: u64, commit: u64) -> u32 {
    check(&[id, &last.to_le_bytes(), &commit.to_le_bytes()])
}

fn check(parts: &[&[u8]]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    parts.iter().for_each(|part| checksum.update(part));
    checksum.finalize()
}

/// Writes this row.
pub(super) fn put<R: Row>(transaction: &WriteTransaction, row: &R) -> Result<(), Failure> {
    let row = codec::encode(row);
    let checksum = check(&[R::KEY.as_bytes(), &row]).to_le_bytes();
    transaction.open_table(META)?.insert(R::KEY, &[&checksum, &row[..]].concat()[..])?;
    Ok(())
}

fn get<R: Row>(transaction: &ReadTransaction) -> Result<R, Failure> {
    let damaged = || Failure::damaged(format_args!("the {} is damaged or missing", R::NAME));
    let table = transaction.open_table(META)?;
    let value = table.get(R::KEY)?.ok_or_else(damaged)?;
    let (checksum, row) = value.value().split_first_chunk::<4>().ok_or_else(damaged)?;
    if check(&[R::KEY.as_bytes(), row]).to_le_bytes() != *checksum {
        return Err(damaged());
    }
    codec::decode(row).map_err(|_| damaged())
}

impl Held {
    fn of(extent: &Extent) -> Self {
        let Extent { first, next, bytes, commits, .. } = *extent;
        Self { first, next, bytes, publishers: HashMap::new(), commits }
    }

    pub(super) fn extent(&self) -> Extent {
        let publishers = self.publishers.len() as u64;
        Extent { first: self.first, next: self.next, bytes: self.bytes, publishers, commits: self.commits }
    }
}
