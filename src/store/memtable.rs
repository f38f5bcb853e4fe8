//! The cells that are in the log and not yet in the base, sorted.
//!
//!   active   takes what was committed
//!   frozen   the one before, while it is written to the base
//!
//! A cell moves active → frozen → base and never back, so a reader that looks in this order misses none. All cells of
//! one mutation enter `active` under one hold of the lock, so a reader of the partition sees all of them or none.
//!
//! Not here: when to freeze (`writer`), how the frozen one gets into the base (`flush`).

use std::cmp::Ordering;
use std::sync::Arc;

use tokio::time::Instant;

use super::sorted_cells::{Key, Place, Remains, SortedCells};
use crate::cell::{Cell, Stamp};

/// Bytes one entry takes beyond its key and cell: its place in a node, of which a third are empty, and the allocator's
/// share. (A short key is counted here and by its length; a long one has its own allocation.)
const ENTRY_OVERHEAD_BYTES: usize = 65;

/// Encoded cells up to this length are copied into the memtable under its lock: those of one hold then take some tens
/// of microseconds.
const SHORT_CELL_BYTES: usize = 1024;

/// An encoded cell, as the memtable keeps it.
pub(super) type PackedCell = Box<[u8]>;

/// With its engine key.
pub(super) type Packed = (Key, PackedCell);

/// A committed cell on its way into the memtable.
pub(super) struct Prepared<'a, V> {
    pub key: Key,
    /// Where the key is looked for first ([`Memory::find`]).
    pub place: Place,
    pub cell: &'a Cell<V>,
    /// The same, if it was packed before ([`pack_if_long`]).
    pub packed: Option<PackedCell>,
}

/// Sorted cells, by engine key.
#[derive(Default)]
pub(super) struct Memtable {
    cells: SortedCells,
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
    /// With the cells of the log that are not in the base. `logged_bytes`: of all of them, those that others have
    /// overwritten included.
    pub fn new(active: Memtable, logged_bytes: usize) -> Memory {
        Memory { active, logged_bytes, ..Memory::default() }
    }

    /// True if it can take more: the active memtable is not full, or can be frozen.
    pub fn has_room(&self, memtable_bytes_max: usize, log_bytes_max: usize) -> bool {
        self.frozen.is_none() || !self.is_full(memtable_bytes_max, log_bytes_max)
    }

    /// True if what is active is to be flushed before it takes more.
    pub fn is_full(&self, memtable_bytes_max: usize, log_bytes_max: usize) -> bool {
        self.fullness(memtable_bytes_max, log_bytes_max) >= 1.0
    }

    /// How near it is to that: from 0, when nothing was written since the last freeze, to 1 and a little more.
    pub fn fullness(&self, memtable_bytes_max: usize, log_bytes_max: usize) -> f64 {
        let memtable = self.active.bytes as f64 / memtable_bytes_max as f64;
        memtable.max(self.logged_bytes as f64 / log_bytes_max as f64)
    }

    /// Where the active memtable may hold these keys. Also reads what merging cells under them will read, so that it is
    /// at hand once the lock is taken that keeps readers out.
    pub fn find(&self, keys: &[Key]) -> Vec<Place> {
        if let Some(frozen) = &self.frozen {
            frozen.table.cells.find(keys);
        }
        self.active.cells.find(keys)
    }

    /// Merges one committed cell. `Some` if a cell held in memory wins: the stamp of the newest.
    pub fn merge<V: AsRef<[u8]>>(&mut self, new: Prepared<'_, V>) -> Option<Stamp> {
        let Prepared { key, cell, .. } = &new;
        self.logged_bytes += entry_bytes(key, cell.encoded_len());
        if let Some(frozen) = &self.frozen
            && let Some(held) = frozen.table.get(key)
            && held.order(cell) != Ordering::Less
        {
            // It need not be kept beside the frozen one. A still newer one may be active.
            let newest = self.get(key).expect("the frozen one is there");
            return (newest.order(cell) == Ordering::Greater).then_some(newest.stamp);
        }
        self.active.merge(new)
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
        let bytes = cells.iter().map(|(key, cell)| entry_bytes(key, cell.len())).sum();
        let largest = cells.iter().map(|(_, cell)| unpack(cell).stamp).max();
        Memtable { cells: cells.into_iter().collect(), bytes, largest }
    }

    /// Merges one cell. `Some` if the cell held wins: its stamp.
    fn merge<V: AsRef<[u8]>>(&mut self, new: Prepared<'_, V>) -> Option<Stamp> {
        let Prepared { key, place, cell, packed } = new;
        match self.cells.get_mut(&key, place) {
            Ok(old) => {
                let held = unpack(old);
                match held.order(cell) {
                    Ordering::Greater => return Some(held.stamp),
                    Ordering::Equal => return None,
                    Ordering::Less => {
                        self.bytes = self.bytes - old.len() + cell.encoded_len();
                        match packed {
                            Some(packed) => *old = packed,
                            // As most are that are written again and again.
                            None if old.len() == cell.encoded_len() => cell.encode(&mut &mut old[..]),
                            None => *old = pack(cell),
                        }
                    }
                }
            }
            Err(place) => {
                self.bytes += entry_bytes(&key, cell.encoded_len());
                self.cells.insert(place, key, packed.unwrap_or_else(|| pack(cell)));
            }
        }
        self.largest = self.largest.max(Some(cell.stamp));
        None
    }

    /// The cell under a key.
    pub fn get(&self, key: &[u8]) -> Option<Cell<&[u8]>> {
        self.cells.get(key).map(unpack)
    }

    /// Keys and encoded cells from `start` on, up to but without `end`, in order.
    pub fn range<'a>(
        &'a self,
        start: &'a [u8],
        end: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.cells.range(start, end)
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
        self.cells.into_remains()
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

/// What an entry adds to [`Memtable::bytes`].
pub(super) fn entry_bytes(key: &[u8], cell_len: usize) -> usize {
    ENTRY_OVERHEAD_BYTES + key.len() + cell_len
}

/// As the memtable keeps a cell.
pub(super) fn pack<V: AsRef<[u8]>>(cell: &Cell<V>) -> PackedCell {
    let mut packed = Vec::with_capacity(cell.encoded_len());
    cell.encode(&mut packed);
    packed.into_boxed_slice()
}

/// The same of a cell that takes long to copy: to be done before the lock is taken.
pub(super) fn pack_if_long<V: AsRef<[u8]>>(cell: &Cell<V>) -> Option<PackedCell> {
    (cell.encoded_len() > SHORT_CELL_BYTES).then(|| pack(cell))
}

/// The cell that [`pack`] packed.
pub(super) fn unpack(packed: &[u8]) -> Cell<&[u8]> {
    Cell::decode(packed).expect("a memtable holds only what was encoded here")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Content;

    fn value(stamp: i64, value: &[u8]) -> Cell<&[u8]> {
        Cell { stamp: Stamp(stamp), content: Content::Value(value) }
    }

    impl Memory {
        fn put(&mut self, key: &[u8], stamp: i64, text: &[u8]) -> Option<Stamp> {
            let key = [Key::from(key)];
            let place = self.find(&key)[0];
            let [key] = key;
            let cell = &value(stamp, text);
            self.merge(Prepared { key, place, cell, packed: pack_if_long(cell) })
        }
    }

    #[test]
    fn the_winner_stays_in_whatever_order_cells_come() {
        let cells = [
            (b"a", 1, &b"old"[..]),
            (b"a", 2, b"newer"),
            (b"b", 5, b""),
            (b"a", 3, b"third"),
            (b"a", 4, b"4"),
            (b"a", 5, &[b'l'; SHORT_CELL_BYTES]),
            (b"c", 1, &[b'l'; SHORT_CELL_BYTES]),
        ];
        let mut merged = Memory::default();
        let mut put = |at: usize| merged.put(cells[at].0, cells[at].1, cells[at].2);
        assert_eq!(put(1), None);
        assert_eq!(put(0), Some(Stamp(2)));
        assert_eq!(put(1), None, "the same cell again is not behind");
        assert_eq!(put(2), None);
        assert_eq!((put(3), put(4)), (None, None), "as long, and shorter");
        assert_eq!((put(5), put(6)), (None, None), "packed before");
        let packed = cells.map(|(key, stamp, text)| (Key::from(&key[..]), pack(&value(stamp, text))));
        let built = Memtable::from_unsorted(packed.to_vec());
        assert!(built.range(b"", None).eq(merged.active.range(b"", None)));
        assert_eq!((built.bytes, built.largest), (merged.active.bytes, Some(Stamp(5))));
        assert_eq!(merged.active.largest, Some(Stamp(5)));
    }

    #[test]
    fn a_frozen_cell_is_seen_and_compared() {
        let mut memory = Memory::default();
        memory.put(b"a", 3, b"frozen");
        memory.freeze(7);
        assert_eq!(memory.put(b"a", 2, b"late"), Some(Stamp(3)));
        assert_eq!(memory.active.len(), 0);
        assert_eq!(memory.get(b"a").unwrap().stamp, Stamp(3));
        assert_eq!(memory.put(b"a", 4, b"newer"), None);
        assert_eq!(memory.get(b"a").unwrap().stamp, Stamp(4));
        assert_eq!(memory.active.bytes(), entry_bytes(b"a", value(4, b"newer").encoded_len()));
        assert_eq!(memory.put(b"a", 2, b"late"), Some(Stamp(4)), "the newest of those that win");
    }

    #[test]
    fn rows_of_which_nothing_stays_fill_the_log_as_well() {
        let mut memory = Memory::default();
        memory.put(b"a", 3, b"frozen");
        memory.freeze(7);
        for _ in 0..100 {
            memory.put(b"a", 2, b"late");
        }
        assert_eq!(memory.active.len(), 0);
        assert!(!memory.has_room(1_000_000, 1_000), "until the frozen ones are flushed");
        memory.frozen = None;
        assert!(memory.has_room(1_000_000, 1_000));
    }

    #[test]
    fn an_empty_range_is_empty_even_backwards() {
        let table = Memtable::from_unsorted(vec![(b"a"[..].into(), pack(&value(1, b"")))]);
        assert_eq!(table.range(b"b", Some(b"a")).count(), 0);
        assert_eq!(table.range(b"a", Some(b"a")).count(), 0);
        assert_eq!(table.range(b"", None).count(), 1);
    }
}
