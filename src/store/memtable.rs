//! The cells that are in the log and not yet in the base, sorted.
//!
//!   active   takes what was committed
//!   frozen   the one before, while it is written to the base
//!
//! A cell moves active → frozen → base and never back, so a reader that looks in this order misses none. All cells of
//! one mutation enter `active` under one hold of the lock, so a reader of the partition sees all of them or none.
//!
//! Not here: when to freeze (`writer`), how the frozen one gets into the base (`flush`).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, IntoIter};
use std::ops::{Bound, Deref};
use std::sync::Arc;

use tokio::time::Instant;

use crate::cell::{Cell, Stamp};

/// Bytes one entry takes beyond its key and cell: its place in a tree node, some of which are empty, and the
/// allocator's share.
const ENTRY_OVERHEAD_BYTES: usize = 76;

/// Keys up to this length are kept in the tree's nodes: those of partition keys of up to 18 bytes, fewer with zeros among
/// them. A node of 11 such keys fits an allocation of 512 bytes.
const SHORT_KEY_BYTES: usize = 22;

/// An engine key. Short ones are kept in place, so that a search through the tree, which mostly waits for memory, has no
/// pointer to follow at each comparison.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Short { len: u8, bytes: [u8; SHORT_KEY_BYTES] },
    Long(Box<[u8]>),
}

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Key {
        let mut bytes = [0; SHORT_KEY_BYTES];
        match bytes.get_mut(..key.len()) {
            Some(start) => {
                start.copy_from_slice(key);
                Key::Short { len: key.len() as u8, bytes }
            }
            None => Key::Long(key.into()),
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Key::Short { len, bytes } => &bytes[..usize::from(*len)],
            Key::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        **self == **other
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The order of the bytes. Two short keys are compared as numbers: what lies behind a key is zeros, so only where one
/// goes on with zeros does the length decide.
impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        match (self, other) {
            (Key::Short { len, bytes }, Key::Short { len: other_len, bytes: other }) => {
                words(bytes).cmp(&words(other)).then(len.cmp(other_len))
            }
            _ => (**self).cmp(&**other),
        }
    }
}

/// The first 16 and the last 8 bytes, of which a few are the same, as numbers.
fn words(bytes: &[u8; SHORT_KEY_BYTES]) -> (u128, u64) {
    let first = bytes.first_chunk().expect("it is longer");
    let last = bytes.last_chunk().expect("it is longer");
    (u128::from_be_bytes(*first), u64::from_be_bytes(*last))
}

/// An engine key and an encoded cell, as the memtable keeps them.
pub(super) type Packed = (Key, Box<[u8]>);

/// Sorted cells, by engine key.
#[derive(Default)]
pub(super) struct Memtable {
    cells: BTreeMap<Key, Box<[u8]>>,
    /// Keys, cells and their overhead.
    bytes: usize,
    /// The largest stamp of its cells.
    largest: Option<Stamp>,
}

/// A memtable that takes no more cells.
pub(super) struct Frozen {
    pub table: Memtable,
    /// The base holds every log row up to this sequence once it holds this memtable.
    pub upto: i64,
    /// When it was frozen.
    pub since: Instant,
}

/// The cells of a memtable that nobody needs any more.
pub(super) struct Remains(IntoIter<Key, Box<[u8]>>);

impl Remains {
    /// Gives the memory of so many cells back. False if those were the last.
    pub fn free(&mut self, cells: usize) -> bool {
        self.0.by_ref().take(cells).for_each(drop);
        self.0.len() > 0
    }
}

/// What is in memory.
#[derive(Default)]
pub(super) struct Memory {
    pub active: Memtable,
    pub frozen: Option<Arc<Frozen>>,
    /// Of the cells committed since the last freeze, those that others have overwritten included.
    logged_bytes: usize,
    /// How often a memtable was frozen: a reader that sees it move has to look again.
    pub freezes: u64,
}

impl Memory {
    /// With the cells of the log that are not in the base.
    pub fn new(active: Memtable) -> Memory {
        Memory { logged_bytes: active.bytes, active, ..Memory::default() }
    }

    /// True if it can take more: the active memtable is not full, or can be frozen.
    pub fn has_room(&self, memtable_bytes_max: usize, log_bytes_max: usize) -> bool {
        self.frozen.is_none() || self.fullness(memtable_bytes_max, log_bytes_max) < 1.0
    }

    /// True if what is active is to be flushed before it takes more.
    pub fn is_full(&self, memtable_bytes_max: usize, log_bytes_max: usize) -> bool {
        self.active.len() > 0 && self.fullness(memtable_bytes_max, log_bytes_max) >= 1.0
    }

    /// How near it is to that: from 0, when nothing was written since the last freeze, to 1 and a little more.
    pub fn fullness(&self, memtable_bytes_max: usize, log_bytes_max: usize) -> f64 {
        let memtable = self.active.bytes as f64 / memtable_bytes_max as f64;
        memtable.max(self.logged_bytes as f64 / log_bytes_max as f64)
    }

    /// Merges one committed cell. `Some` if a cell held in memory wins: the stamp of the newest.
    pub fn merge(&mut self, packed: Packed) -> Option<Stamp> {
        self.logged_bytes += entry_bytes(&packed);
        let (key, cell) = packed;
        if let Some(frozen) = &self.frozen
            && let Some(held) = frozen.table.get(&key)
            && held.order(&unpack(&cell)) != Ordering::Less
        {
            // It need not be kept beside the frozen one. A still newer one may be active.
            let newest = self.get(&key).expect("the frozen one is there");
            return (newest.order(&unpack(&cell)) == Ordering::Greater).then_some(newest.stamp);
        }
        self.active.merge((key, cell))
    }

    /// The newest version in memory.
    pub fn get(&self, key: &[u8]) -> Option<Cell<&[u8]>> {
        let active = self.active.get(key);
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.table.get(key));
        match (active, frozen) {
            (Some(active), Some(frozen)) if frozen.order(&active) == Ordering::Greater => Some(frozen),
            (active, frozen) => active.or(frozen),
        }
    }

    /// Freezes what is active, which holds the log's rows up to `upto`.
    pub fn freeze(&mut self, upto: i64) {
        assert!(self.frozen.is_none(), "only one memtable is flushed at a time");
        let table = std::mem::take(&mut self.active);
        self.frozen = Some(Arc::new(Frozen { table, upto, since: Instant::now() }));
        self.logged_bytes = 0;
        self.freezes += 1;
    }
}

impl Memtable {
    /// Builds one from cells in any order, several of one key among them. Faster than merging one by one.
    pub fn from_unsorted(cells: Vec<Packed>) -> Memtable {
        let mut cells = sorted_by_key(cells);
        cells.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same && unpack(&later.1).order(&unpack(&kept.1)) == Ordering::Greater {
                std::mem::swap(&mut later.1, &mut kept.1);
            }
            same
        });
        let bytes = cells.iter().map(entry_bytes).sum();
        let largest = cells.iter().map(|(_, cell)| unpack(cell).stamp).max();
        Memtable { cells: cells.into_iter().collect(), bytes, largest }
    }

    /// Merges one cell. `Some` if the cell held wins: its stamp.
    fn merge(&mut self, (key, cell): Packed) -> Option<Stamp> {
        let stamp = unpack(&cell).stamp;
        match self.cells.entry(key) {
            Entry::Vacant(entry) => {
                self.bytes += ENTRY_OVERHEAD_BYTES + entry.key().len() + cell.len();
                entry.insert(cell);
            }
            Entry::Occupied(mut entry) => {
                let held = unpack(entry.get());
                match held.order(&unpack(&cell)) {
                    Ordering::Greater => return Some(held.stamp),
                    Ordering::Equal => return None,
                    Ordering::Less => {
                        self.bytes = self.bytes - entry.get().len() + cell.len();
                        entry.insert(cell);
                    }
                }
            }
        }
        self.largest = self.largest.max(Some(stamp));
        None
    }

    /// The cell under a key.
    pub fn get(&self, key: &[u8]) -> Option<Cell<&[u8]>> {
        let cell = if key.len() <= SHORT_KEY_BYTES {
            self.cells.get(&Key::from(key)) // which compares faster
        } else {
            self.cells.get(key)
        };
        cell.map(|cell| unpack(cell))
    }

    /// Keys and encoded cells from `start` on, up to but without `end`, in order.
    pub fn range<'a>(
        &'a self,
        start: &'a [u8],
        end: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let end = match end {
            // BTreeMap panics on a range that ends before it starts.
            Some(end) => Bound::Excluded(end.max(start)),
            None => Bound::Unbounded,
        };
        let range = self.cells.range::<[u8], _>((Bound::Included(start), end));
        range.map(|(key, cell)| (&key[..], &cell[..]))
    }

    /// Keys, cells and their overhead.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many cells.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// The largest stamp; `None` if there are no cells.
    pub fn largest(&self) -> Option<Stamp> {
        self.largest
    }

    /// To be freed bit by bit: at once a large one takes a processor for tens of milliseconds.
    pub fn into_remains(self) -> Remains {
        Remains(self.cells.into_iter())
    }
}

/// Sorts with the first bytes of each key at hand: most comparisons then need not follow two pointers, which is what
/// replaying a large log mostly waits for.
fn sorted_by_key(cells: Vec<Packed>) -> Vec<Packed> {
    let mut headed: Vec<(u128, Packed)> = cells.into_iter().map(|cell| (head(&cell.0), cell)).collect();
    headed.sort_unstable_by(|(a, (key_a, _)), (b, (key_b, _))| a.cmp(b).then_with(|| key_a.cmp(key_b)));
    headed.into_iter().map(|(_, cell)| cell).collect()
}

/// The first 16 bytes of a key as a number, zeros after a shorter one: never the wrong way round.
fn head(key: &[u8]) -> u128 {
    let mut head = [0; 16];
    let len = key.len().min(head.len());
    head[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(head)
}

/// What an entry of these lengths adds to [`Memtable::bytes`].
pub(super) fn entry_bytes((key, cell): &Packed) -> usize {
    ENTRY_OVERHEAD_BYTES + key.len() + cell.len()
}

/// As the memtable keeps a cell.
pub(super) fn pack<V: AsRef<[u8]>>(cell: &Cell<V>) -> Box<[u8]> {
    let mut packed = Vec::with_capacity(cell.encoded_len());
    cell.encode(&mut packed);
    packed.into_boxed_slice()
}

/// The cell that [`pack`] packed.
pub(super) fn unpack(packed: &[u8]) -> Cell<&[u8]> {
    Cell::decode(packed).expect("a memtable holds only what was encoded here")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Content;

    fn packed(key: &[u8], stamp: i64, value: &[u8]) -> Packed {
        (Key::from(key), pack(&Cell { stamp: Stamp(stamp), content: Content::Value(value) }))
    }

    #[test]
    fn the_winner_stays_in_whatever_order_cells_come() {
        let cells = [packed(b"a", 1, b"old"), packed(b"a", 2, b"new"), packed(b"b", 5, b"")];
        let mut merged = Memory::default();
        assert_eq!(merged.merge(cells[1].clone()), None);
        assert_eq!(merged.merge(cells[0].clone()), Some(Stamp(2)));
        assert_eq!(merged.merge(cells[1].clone()), None, "the same cell again is not behind");
        assert_eq!(merged.merge(cells[2].clone()), None);
        let built = Memtable::from_unsorted(cells.to_vec());
        assert_eq!(built.cells, merged.active.cells);
        assert_eq!((built.bytes, built.largest), (merged.active.bytes, Some(Stamp(5))));
        assert_eq!(merged.active.largest, Some(Stamp(5)));
    }

    #[test]
    fn a_frozen_cell_is_seen_and_compared() {
        let mut memory = Memory::default();
        memory.merge(packed(b"a", 3, b"frozen"));
        memory.freeze(7);
        assert_eq!(memory.merge(packed(b"a", 2, b"late")), Some(Stamp(3)));
        assert_eq!(memory.active.len(), 0);
        assert_eq!(memory.get(b"a").unwrap().stamp, Stamp(3));
        assert_eq!(memory.merge(packed(b"a", 4, b"newer")), None);
        assert_eq!(memory.get(b"a").unwrap().stamp, Stamp(4));
        assert_eq!(memory.active.bytes(), entry_bytes(&packed(b"a", 4, b"newer")));
        assert_eq!(memory.merge(packed(b"a", 2, b"late")), Some(Stamp(4)), "the newest of those that win");
    }

    #[test]
    fn rows_of_which_nothing_stays_fill_the_log_as_well() {
        let mut memory = Memory::default();
        memory.merge(packed(b"a", 3, b"frozen"));
        memory.freeze(7);
        for _ in 0..100 {
            memory.merge(packed(b"a", 2, b"late"));
        }
        assert_eq!(memory.active.len(), 0);
        assert!(!memory.has_room(1_000_000, 1_000), "until the frozen ones are flushed");
        memory.frozen = None;
        assert!(memory.has_room(1_000_000, 1_000));
    }

    #[test]
    fn keys_of_every_length_keep_their_order() {
        let long = vec![7; SHORT_KEY_BYTES + 1];
        let zeros = [0; SHORT_KEY_BYTES];
        let short = &long[..SHORT_KEY_BYTES];
        let mut last = short.to_vec();
        last[SHORT_KEY_BYTES - 1] = 8;
        let keys: [&[u8]; 10] =
            [b"", b"\0", b"\0\0", &zeros, &zeros[1..], &long[..3], short, &last, &long, b"\x08"];
        for a in keys {
            assert_eq!(&*Key::from(a), a);
            for b in keys {
                assert_eq!(Key::from(a).cmp(&Key::from(b)), a.cmp(b));
            }
        }
    }

    #[test]
    fn an_empty_range_is_empty_even_backwards() {
        let table = Memtable::from_unsorted(vec![packed(b"a", 1, b"")]);
        assert_eq!(table.range(b"b", Some(b"a")).count(), 0);
        assert_eq!(table.range(b"a", Some(b"a")).count(), 0);
        assert_eq!(table.range(b"", None).count(), 1);
    }
}
