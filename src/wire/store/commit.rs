//! One commit: chunks, how far their publishers have got with them, and what goes because it is too old or too much, in one transaction.

use std::collections::BTreeMap;

use redb::{Database, ReadableTable, Table, WriteTransaction};

use super::Batch;
use super::block::{Block, Draft};
use super::error::Failure;
use super::tables::{self, BLOCKS, Extent, Held, PUBLISHERS};
use crate::proto::limits;
use crate::proto::wire::{Options, PublisherId};

/// The newest block takes in more up to this size, whatever comes: redb writes pages of 4 KiB anyway.
const JOIN_BYTES: usize = 4 * 1024;
/// Most blocks that go in one commit. Two that follow each other have more than `JOIN_BYTES` together, so this is more than one
/// commit brings, as it should be.
const GO_AT_ONCE: usize = 2_048;

/// What a commit has changed.
#[derive(Debug)]
pub(super) struct Change {
    extent: Extent,
    /// How far these publishers have got.
    known: BTreeMap<PublisherId, u64>,
    forgotten: Vec<PublisherId>,
}

impl Held {
    /// What is held after this change.
    pub(super) fn apply(&mut self, change: Change) {
        self.publishers.extend(change.known);
        for id in change.forgotten {
            self.publishers.remove(&id);
        }
        let Extent { first, next, bytes, commits, .. } = change.extent;
        (self.first, self.next, self.bytes, self.commits) = (first, next, bytes, commits);
    }
}

/// Stores chunks: they are on disk when this returns.
pub(super) fn commit(
    database: &Database,
    held: &Held,
    options: &Options,
    batches: &[Batch],
    now_ms: u64,
) -> Result<Change, Failure> {
    let mut change = Change { extent: held.extent(), known: BTreeMap::new(), forgotten: Vec::new() };
    change.extent.commits += 1;
    let transaction = tables::begin(database)?;
    put_blocks(&transaction, &mut change.extent, options, batches, now_ms)?;
    put_publishers(&transaction, &mut change, held, batches)?;
    let_go(&transaction, &mut change.extent, options, now_ms)?;
    tables::put(&transaction, &change.extent)?;
    transaction.commit()?;
    Ok(change)
}

fn put_blocks(
    transaction: &WriteTransaction,
    extent: &mut Extent,
    options: &Options,
    batches: &[Batch],
    now_ms: u64,
) -> Result<(), Failure> {
    let mut table = transaction.open_table(BLOCKS)?;
    let mut segments = batches.iter().map(|batch| &batch.segment).filter(|segment| segment.count > 0).peekable();
    let mut joins = true;
    while let Some(segment) = segments.next() {
        let mut draft = Draft::of(segment, now_ms);
        while let Some(more) = segments.next_if(|more| draft.has_room_for(more.frames.len())) {
            draft.add(more);
        }
        let mut first = extent.next;
        extent.next += u64::from(draft.count());
        if std::mem::take(&mut joins) {
            // What has waited for this long is too old before others are: it stays by itself.
            let since_ms = now_ms.saturating_sub(options.retain_ms / 16);
            first = join_newest(&mut table, extent, &mut draft, first, since_ms)?;
        }
        table.insert(first, &draft.write(first)[..])?;
        extent.bytes += draft.bytes() as u64;
    }
    Ok(())
}

/// Takes in the newest blocks as long as they are no larger than what is added to them: a chunk is written again each time its block
/// doubles, not each time a chunk is stored. Says which number the block has then.
fn join_newest(
    table: &mut Table<'_, u64, &'static [u8]>,
    extent: &mut Extent,
    draft: &mut Draft,
    mut first: u64,
    since_ms: u64,
) -> Result<u64, Failure> {
    loop {
        let key = {
            let Some((key, value)) = table.last()? else { return Ok(first) };
            let key = key.value();
            // Joined, what is damaged would have a good checksum.
            let block = Block::read(key, value.value()).filter(|block| key + u64::from(block.count) == first);
            let block = block.ok_or_else(|| damaged(key))?;
            let small = block.bytes() <= draft.bytes().max(JOIN_BYTES) && draft.has_room_for(block.frames.len());
            if !small || block.since_ms < since_ms {
                return Ok(first);
            }
            draft.join(&block);
            extent.bytes = extent.bytes.saturating_sub(block.bytes() as u64);
            key
        };
        table.pop_last()?;
        first = key;
    }
}

fn put_publishers(transaction: &WriteTransaction, change: &mut Change, held: &Held, batches: &[Batch]) -> Result<(), Failure> {
    let mut table = transaction.open_table(PUBLISHERS)?;
    for batch in batches.iter().filter(|batch| batch.segment.count > 0) {
        let before = || held.publishers.get(&batch.publisher).copied().unwrap_or_default();
        let last = change.known.entry(batch.publisher).or_insert_with(before);
        *last = last.saturating_add(batch.segment.count);
    }
    for (id, last) in &change.known {
        tables::put_publisher(&mut table, id.0, *last, change.extent.commits)?;
    }
    let new = change.known.keys().filter(|id| !held.publishers.contains_key(id)).count();
    let all = held.publishers.len() + new;
    change.extent.publishers = all as u64;
    if all <= limits::WIRE_PUBLISHERS {
        return Ok(());
    }
    // Rare: an eighth of them at once, those that were silent for longest.
    let mut by_use = Vec::with_capacity(all);
    for entry in table.iter()? {
        let (id, known) = entry?;
        let (_, commit) = tables::read_publisher(id.value(), known.value())?;
        by_use.push((commit, id.value()));
    }
    by_use.sort_unstable();
    for (_, id) in by_use.into_iter().take(all - limits::WIRE_PUBLISHERS * 7 / 8) {
        table.remove(id)?;
        change.extent.publishers -= 1;
        change.forgotten.push(PublisherId(id));
    }
    Ok(())
}

/// What is too old, or too much, goes: whole blocks, never the newest.
fn let_go(transaction: &WriteTransaction, extent: &mut Extent, options: &Options, now_ms: u64) -> Result<(), Failure> {
    let mut table = transaction.open_table(BLOCKS)?;
    for _ in 0..GO_AT_ONCE {
        let (bytes, end) = {
            let Some((key, value)) = table.first()? else { break };
            let block = Block::read(key.value(), value.value()).ok_or_else(|| damaged(key.value()))?;
            let end = key.value() + u64::from(block.count);
            let old = now_ms.saturating_sub(block.until_ms) > options.retain_ms;
            if end >= extent.next || !(old || extent.bytes > options.retain_bytes) {
                break;
            }
            (block.bytes() as u64, end)
        };
        table.pop_first()?;
        extent.bytes = extent.bytes.saturating_sub(bytes);
        extent.first = end;
    }
    Ok(())
}

fn damaged(first: u64) -> Failure {
    Failure::damaged(format_args!("the block that begins with chunk {first} is damaged"))
}
