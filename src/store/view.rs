//! Reading: memtable ∪ frozen ∪ base, merged.
//!
//! Memory is looked at first, under its lock, then the base. Cells move only in that direction, so none is missed.
//! What a mutation wrote is seen whole: if a memtable was frozen in between, the base may meanwhile hold a part of a
//! mutation that memory did not show, so the reader looks again.
//!
//! One answer is bounded in cells by the caller and in bytes by [`ANSWER_BYTES_MAX`]; cut short, it says so.

use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::base::Base;
use super::memtable::{Memory, unpack};
use super::ranges::Ranges;
use super::sqlite::StoreError;
use crate::cell::{Cell, merge};
use crate::key;
use crate::slice::Slice;

/// Bytes of keys and values of one answer; a single larger cell is an answer nonetheless.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes looked at after which a digest stops: it runs where requests are answered, and they must not wait for it.
const DIGEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Cells hashed between two looks at memory.
const DIGEST_STEP_CELLS: usize = 1024;

/// What a slice holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceCells {
    /// Columns and cells in column order, tombstones and expired ones included.
    pub cells: Vec<(Bytes, Cell)>,
    /// False if the slice goes on after the last cell: it was cut at `cells_max`, or because the answer got too large.
    pub complete: bool,
}

/// A run of cells by engine key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Engine keys and cells in key order, tombstones and expired ones included. None of them is no end: `complete` is.
    pub cells: Vec<(Vec<u8>, Cell)>,
    /// The page holds all there is up to and including this engine key; empty: up to the last.
    pub upto: Vec<u8>,
    /// False if the run goes on after `upto`.
    pub complete: bool,
}

/// The sum of a run of cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// How many cells, tombstones and expired ones included.
    pub cells: u64,
    /// How many of them a reader would see.
    pub live: u64,
    /// Wrapping sum of [`cell_hash`] of all the cells.
    pub digest: u128,
    /// All there is up to and including this engine key is counted; empty: up to the last.
    pub upto: Vec<u8>,
    /// False if the run goes on after `upto`.
    pub complete: bool,
}

/// 128 bits over an engine key and a cell (xxh3). Replicas compare wrapping sums of it, in which order plays no part.
pub fn cell_hash<V: AsRef<[u8]>>(engine_key: &[u8], cell: &Cell<V>) -> u128 {
    let mut head = [0; 4 + 1 + 8 + 8];
    head[..4].copy_from_slice(&(engine_key.len() as u32).to_be_bytes());
    head[4] = cell.kind();
    head[5..13].copy_from_slice(&cell.stamp.0.to_be_bytes());
    let expires_at_s = cell.expires_at_s();
    head[13..].copy_from_slice(&expires_at_s.unwrap_or_default().to_be_bytes());
    let used = if expires_at_s.is_some() { head.len() } else { 13 };
    // From the second part of the head on as Cell::encode writes it.
    hash_parts([&head[..4], engine_key, &head[4..used], cell.value_bytes()])
}

/// The hash of the parts, one after the other. Small ones are put together first: that takes a fifth of the time.
fn hash_parts(parts: [&[u8]; 4]) -> u128 {
    let mut together = [0; 512];
    let mut filled = 0;
    if parts.iter().map(|part| part.len()).sum::<usize>() <= together.len() {
        for part in parts {
            together[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        return xxh3_128(&together[..filled]);
    }
    let mut hasher = Xxh3::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.digest128()
}

/// Memory and base, as readers see them.
pub(super) struct View {
    pub memory: RwLock<Memory>,
    pub base: Arc<Base>,
    /// Which dead cells count as gone: a get does not show them, wherever they still lie.
    pub ranges: Arc<Ranges>,
}

/// The most cells, and the most bytes of keys and values, of one look; a single larger cell is looked at nonetheless.
type Most = (usize, usize);

/// What one source has of a range.
#[derive(Default)]
struct Run {
    cells: Vec<(Vec<u8>, Cell)>,
    bytes: usize,
    /// The source has more after the last cell.
    cut: bool,
}

impl Run {
    /// Takes one more cell, or notes that there is one. True if further ones are wanted.
    fn take(&mut self, key: &[u8], cell: Cell<&[u8]>, (cells_max, bytes_max): Most) -> bool {
        let bytes = key.len() + cell.value_bytes().len();
        let fits = self.cells.len() < cells_max && self.bytes + bytes <= bytes_max;
        if !fits && !self.cells.is_empty() {
            self.cut = true;
            return false;
        }
        self.bytes += bytes;
        self.cells.push((key.to_vec(), cell.to_owned()));
        true
    }
}

impl View {
    /// The cells of a slice. Sets `asked_base` if data.db was needed.
    pub fn read(&self, slice: &Slice, asked_base: &AtomicBool) -> Result<SliceCells, StoreError> {
        if let Some(column) = slice.only_column() {
            let key = key::encode(slice.table, &slice.partition, column);
            let cell = self.get(&key, asked_base)?;
            return Ok(SliceCells {
                cells: cell.map(|cell| (column.clone(), cell)).into_iter().collect(),
                complete: true,
            });
        }
        let start = key::encode(slice.table, &slice.partition, &slice.first);
        let end = match &slice.last {
            Some(last) => after(&key::encode(slice.table, &slice.partition, last)),
            None => key::after_partition(slice.table, &slice.partition),
        };
        asked_base.store(true, Atomic::Relaxed);
        let (cells, complete) = self.range(&start, Some(&end), slice.cells_max, ANSWER_BYTES_MAX)?;
        let prefix = start.len() - slice.first.len();
        let column = |key: Vec<u8>| Bytes::from(key).slice(prefix..);
        let cells = cells.into_iter().map(|(key, cell)| (column(key), cell)).collect();
        Ok(SliceCells { cells, complete })
    }

    /// The cells after one engine key up to and including another (empty: to the last). At most `cells_max` are looked
    /// at; those that count as gone are left out, so a page may be empty and the run go on.
    pub fn page(&self, after_key: &[u8], upto: &[u8], cells_max: usize) -> Result<Page, StoreError> {
        let mut page = self.stretch(after_key, upto, cells_max)?;
        page.cells.retain(|(key, cell)| !self.ranges.hides(key, cell));
        Ok(page)
    }

    /// Such a page with the cells that count as gone.
    fn stretch(&self, after_key: &[u8], upto: &[u8], cells_max: usize) -> Result<Page, StoreError> {
        let start = if after_key.is_empty() { Vec::new() } else { after(after_key) };
        let end = (!upto.is_empty()).then(|| after(upto));
        let (cells, complete) = self.range(&start, end.as_deref(), cells_max, ANSWER_BYTES_MAX)?;
        let upto = match cells.last() {
            Some((last, _)) if !complete => last.clone(),
            _ => upto.to_vec(),
        };
        Ok(Page { cells, upto, complete })
    }

    /// The digest of such a run. Both bounds count what is looked at, for that is the work.
    pub fn digest(
        &self,
        after_key: &[u8],
        upto: &[u8],
        cells_max: usize,
        now_s: i64,
    ) -> Result<Digest, StoreError> {
        let mut sum = Digest { cells: 0, live: 0, digest: 0, upto: after_key.to_vec(), complete: false };
        let (mut looked_at, mut bytes) = (0, 0);
        while !sum.complete && looked_at < cells_max && bytes < DIGEST_BYTES_MAX {
            let step = DIGEST_STEP_CELLS.min(cells_max - looked_at);
            let page = self.stretch(&sum.upto, upto, step)?;
            looked_at += page.cells.len();
            for (key, cell) in &page.cells {
                bytes += key.len() + cell.value_bytes().len();
                if self.ranges.hides(key, cell) {
                    continue;
                }
                sum.cells += 1;
                sum.live += u64::from(cell.live_value(now_s).is_some());
                sum.digest = sum.digest.wrapping_add(cell_hash(key, cell));
            }
            sum.upto = page.upto;
            sum.complete = page.complete;
        }
        Ok(sum)
    }

    /// The newest version under a key.
    pub fn get(&self, key: &[u8], asked_base: &AtomicBool) -> Result<Option<Cell>, StoreError> {
        let held = {
            let memory = self.memory.read().expect("no panic while it is held");
            memory.get(key).map(Cell::to_owned)
        };
        if held.as_ref().is_some_and(|cell| cell.stamp > self.base.largest()) {
            return Ok(held.filter(|cell| !self.ranges.hides(key, cell)));
        }
        asked_base.store(true, Atomic::Relaxed);
        let flushed = self.base.get(key)?;
        let newest = match (held, flushed) {
            (Some(held), Some(flushed)) => Some(merge(held, flushed)),
            (held, flushed) => held.or(flushed),
        };
        Ok(newest.filter(|cell| !self.ranges.hides(key, cell)))
    }

    /// The first cells of [start, end), and whether those are all. Dead ones that count as gone included.
    #[expect(clippy::type_complexity, reason = "the pair is taken apart at once by every caller")]
    pub fn range(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        cells_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<(Vec<u8>, Cell)>, bool), StoreError> {
        assert!(cells_max > 0, "no cells would be no progress");
        let most = (cells_max, bytes_max);
        loop {
            let (active, frozen, freezes) = self.range_in_memory(start, end, most);
            let mut flushed = Run::default();
            self.base.range(start, end, |key, cell| flushed.take(key, cell, most))?;
            if self.memory.read().expect("no panic while it is held").freezes == freezes {
                return Ok(merge_runs([active, frozen, flushed], cells_max));
            }
        }
    }

    fn range_in_memory(&self, start: &[u8], end: Option<&[u8]>, most: Most) -> (Run, Run, u64) {
        let mut active = Run::default();
        let mut frozen = Run::default();
        let memory = self.memory.read().expect("no panic while it is held");
        memory.active.range(start, end).all(|(key, cell)| active.take(key, unpack(cell), most));
        if let Some(held) = &memory.frozen {
            held.table.range(start, end).all(|(key, cell)| frozen.take(key, unpack(cell), most));
        }
        (active, frozen, memory.freezes)
    }
}

/// The least engine key after this one.
fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Merges what the sources have, as far as all of them were read, and says whether that is all.
fn merge_runs(runs: [Run; 3], cells_max: usize) -> (Vec<(Vec<u8>, Cell)>, bool) {
    // After its last cell a source that was cut may have anything.
    let known_upto = runs.iter().filter(|run| run.cut).filter_map(|run| run.cells.last()).map(|(key, _)| key);
    let known_upto = known_upto.min().cloned();
    let mut cells: Vec<(Vec<u8>, Cell)> = runs.into_iter().flat_map(|run| run.cells).collect();
    cells.sort_by(|(a, _), (b, _)| a.cmp(b));
    cells.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same && later.1.order(&kept.1).is_gt() {
            std::mem::swap(&mut later.1, &mut kept.1);
        }
        same
    });
    let mut complete = known_upto.is_none();
    if let Some(upto) = known_upto {
        cells.truncate(cells.partition_point(|(key, _)| *key <= upto));
    }
    let mut bytes = 0;
    let mut fits = |(key, cell): &(Vec<u8>, Cell)| {
        bytes += key.len() + cell.value_bytes().len();
        bytes <= ANSWER_BYTES_MAX
    };
    let keep = cells.iter().take(cells_max).take_while(|cell| fits(cell)).count().max(1);
    if keep < cells.len() {
        cells.truncate(keep);
        complete = false;
    }
    (cells, complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_parts_is_that_of_the_whole_however_large() {
        for bytes in [0, 1, 16, 240, 241, 488, 489, 5_000] {
            let value: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
            let parts = [&b"head"[..], b"a key", b"the rest of it", &value];
            assert_eq!(hash_parts(parts), xxh3_128(&parts.concat()), "{bytes}");
        }
    }
}
