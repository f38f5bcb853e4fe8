//! Cells of data.db that were asked for lately. Keys that are asked for again and again then cost no search in the
//! file, wherever in it they lie.
//!
//! What is kept is what the file held at some moment since the cache was last forgotten. That is enough where it is
//! forgotten after a flush and before the flushed memtable is dropped: until then readers see the newer cells there.
//!
//! To forget is to begin a new generation. A cell that was read from the file in an older one, however late it arrives
//! here, is never shown.

use std::sync::atomic::{AtomicU64, Ordering as Atomic};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use crate::cell::Cell;

/// What an entry takes beside its key and its value, about: the entry itself, its place in the table, two allocations.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Bytes of an entry, to tell how many there will be, which the cache wants to know to keep track of what it dropped.
const ENTRY_BYTES: usize = 300;

/// Parts with a lock each. Fixed, for what is dropped first depends on it, and simulations are to be the same
/// everywhere.
const SHARDS: usize = 16;

type Kept = Cache<Box<[u8]>, Entry, EntryBytes, Xxh3DefaultBuilder>;

/// A bounded cache; with a bound of 0 it keeps nothing.
pub(super) struct CellCache {
    kept: Option<Kept>,
    generation: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    generation: Generation,
    /// `None`: the file holds nothing under the key.
    cell: Option<Cell>,
}

/// When something was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// Counts the bytes of an entry.
#[derive(Clone)]
struct EntryBytes;

impl Weighter<Box<[u8]>, Entry> for EntryBytes {
    fn weight(&self, key: &Box<[u8]>, entry: &Entry) -> u64 {
        let value = entry.cell.as_ref().map_or(0, |cell| cell.value_bytes().len());
        (ENTRY_OVERHEAD_BYTES + key.len() + value) as u64
    }
}

impl CellCache {
    /// An empty one that keeps at most this many bytes.
    pub fn new(bytes_max: usize) -> CellCache {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(bytes_max / ENTRY_BYTES)
            .weight_capacity(bytes_max as u64)
            .shards(SHARDS)
            .build()
            .expect("all that it needs is set");
        let kept = (bytes_max > 0).then(|| {
            Kept::with_options(options, EntryBytes, Xxh3DefaultBuilder::new(), DefaultLifecycle::default())
        });
        CellCache { kept, generation: AtomicU64::new(0), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// To be taken before the file is read.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Atomic::Acquire))
    }

    /// What the file holds under a key, if that is known.
    pub fn get(&self, key: &[u8]) -> Option<Option<Cell>> {
        let kept = self.kept.as_ref()?;
        let generation = self.generation();
        let known = kept.get(key).filter(|entry| entry.generation == generation);
        let count = if known.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Atomic::Relaxed);
        known.map(|entry| entry.cell)
    }

    /// Keeps what was read from the file since this generation was taken.
    pub fn keep(&self, key: &[u8], generation: Generation, cell: &Option<Cell>) {
        if let Some(kept) = &self.kept
            && generation == self.generation()
        {
            kept.insert(key.into(), Entry { generation, cell: cell.clone() });
        }
    }

    /// From now on nothing that was read before is shown.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Atomic::AcqRel);
    }

    /// How often a key was known, and how often it was not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Atomic::Relaxed), self.misses.load(Atomic::Relaxed))
    }

    /// Bytes kept, about, those of older generations included.
    pub fn bytes(&self) -> u64 {
        self.kept.as_ref().map_or(0, Cache::weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Content, Stamp};

    fn cell(stamp: i64, bytes: usize) -> Option<Cell> {
        Some(Cell { stamp: Stamp(stamp), content: Content::Value(vec![7; bytes].into()) })
    }

    #[test]
    fn what_was_read_before_it_was_forgotten_is_never_shown() {
        let cache = CellCache::new(100_000);
        let before = cache.generation();
        assert_eq!(cache.get(b"a"), None);
        cache.keep(b"a", before, &cell(1, 10));
        cache.keep(b"nothing", before, &None);
        assert_eq!(cache.get(b"a"), Some(cell(1, 10)));
        assert_eq!(cache.get(b"nothing"), Some(None), "that there is nothing is known as well");
        assert_eq!(cache.hits_and_misses(), (2, 1));
        cache.forget();
        assert_eq!(cache.get(b"a"), None);
        cache.keep(b"a", before, &cell(1, 10));
        assert_eq!(cache.get(b"a"), None, "read before, however late it comes");
        cache.keep(b"a", cache.generation(), &cell(2, 10));
        assert_eq!(cache.get(b"a"), Some(cell(2, 10)));
    }

    #[test]
    fn it_stays_within_its_bytes() {
        let cache = CellCache::new(100_000);
        for number in 0..10_000_u32 {
            cache.keep(&number.to_be_bytes(), cache.generation(), &cell(1, 100));
        }
        assert!(cache.bytes() <= 100_000 && cache.bytes() > 50_000, "{} bytes", cache.bytes());
        cache.keep(b"large", cache.generation(), &cell(1, 200_000));
        assert!(cache.bytes() <= 100_000, "{} bytes with one that is too large", cache.bytes());
        let none = CellCache::new(0);
        none.keep(b"a", none.generation(), &cell(1, 1));
        assert_eq!(none.get(b"a"), None);
    }
}
