//! What this server knows of the sums of its own cells, leaf by leaf, so that replicas can be compared without reading.
//!
//!   scan of the true state (memtable ∪ frozen ∪ base) ─► sum of one leaf, kept while nothing is written into it
//!   a committed cell ─► its leaf's sum is forgotten
//!
//! The engine's key order is cut into leaves. Cuts between ring ranges and tables are fixed; within a range a leaf ends
//! behind each key whose hash has `BOUNDARY_BITS` zero bits, so replicas with equal keys cut alike without talking
//! about it, and a key written in one place moves no cut elsewhere.
//!
//! What must always be true: a sum that is there is what a scan would say now, except for cells that were committed a
//! moment ago and not marked yet. Sums are never stored: after a start there are none, and a scan makes them again.
//!
//! Why not keep sums up to date with each write instead (XOR the old version out, the new one in)? The old version of
//! a flushed cell would have to be read from data.db on every put.
//!
//! Not here: who compares what with whom (`reconcile`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Mutex;

use crate::cell::{Cell, Content, Stamp};
use crate::key::{self, PARTITION_KEY_BYTES_MAX, TableId};

use super::sorted_cells::Key;
use super::view::cell_hash;

/// A leaf ends behind a key whose hash has this many low zero bits: 1,024 cells on average, a millisecond or two to
/// scan.
const BOUNDARY_BITS: u32 = 10;

/// Cells of a leaf, on average.
pub const LEAF_CELLS: u64 = 1 << BOUNDARY_BITS;

/// Up to where deletions and expired values were collected: dead cells it covers count as gone, wherever they still
/// lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Dead cells up to this stamp are gone.
    pub stamp: Stamp,
    /// A value that expires is dead if that is not after this second (since 1970).
    pub expired_s: i64,
}

impl Default for Horizon {
    fn default() -> Horizon {
        Horizon::NONE
    }
}

impl Horizon {
    /// Nothing was collected.
    pub const NONE: Horizon = Horizon { stamp: Stamp(0), expired_s: 0 };

    /// True if the cell counts as gone.
    pub fn covers<V>(&self, cell: &Cell<V>) -> bool {
        cell.stamp <= self.stamp
            && match cell.content {
                Content::Value(_) => false,
                Content::Expiring { expires_at_s, .. } => expires_at_s <= self.expired_s,
                Content::Tombstone => true,
            }
    }

    /// What covers all that either covers.
    pub fn or(self, other: Horizon) -> Horizon {
        Horizon { stamp: self.stamp.max(other.stamp), expired_s: self.expired_s.max(other.expired_s) }
    }
}

/// Which cells two replicas compare: not those that may still be on their way, and not those that count as gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Cells up to this stamp are compared ...
    pub upto: Stamp,
    /// ... and those beyond this one, which no clock can have made: nothing is waiting for them to arrive.
    pub beyond: Stamp,
    /// Dead cells that it covers are not.
    pub horizon: Horizon,
}

impl Cut {
    /// True if the cell is compared.
    pub fn counts<V>(&self, cell: &Cell<V>) -> bool {
        !self.in_flight(cell.stamp) && !self.horizon.covers(cell)
    }

    /// True if a cell with this stamp may still be on its way to some replica.
    pub fn in_flight(&self, stamp: Stamp) -> bool {
        self.upto < stamp && stamp <= self.beyond
    }
}

/// The cells of a stretch that a [`Cut`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub cells: u64,
    /// Wrapping sum of their hashes ([`cell_hash`]).
    pub digest: u128,
}

impl Counted {
    /// Both together.
    pub fn and(self, other: Counted) -> Counted {
        Counted { cells: self.cells + other.cells, digest: self.digest.wrapping_add(other.digest) }
    }

    fn add(&mut self, hash: u128) {
        self.cells += 1;
        self.digest = self.digest.wrapping_add(hash);
    }
}

/// All cells of a leaf, but those that count as gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// How many, and the sum of their hashes.
    pub all: Counted,
    /// What was not counted, because it counts as gone.
    pub horizon: Horizon,
    /// The largest stamp; of the smallest possible if there are no cells.
    pub largest: Stamp,
    /// Tombstones among them.
    pub tombstones: u64,
    /// Cells that expire among them, whether or not they have.
    pub expiring: u64,
    /// Bytes of keys and cells of both.
    pub mortal_bytes: u64,
    /// The smallest stamp of the tombstones.
    pub oldest_tombstone: Stamp,
    /// The smallest stamp of the cells that expire.
    pub oldest_expiring: Stamp,
    /// When the first of those expires (seconds since 1970).
    pub first_expiry_s: i64,
    /// Cells that count as gone and still lie in the files.
    pub gone: u64,
}

impl Sum {
    /// Of no cells.
    pub fn of_nothing(horizon: Horizon) -> Sum {
        Sum {
            all: Counted::default(),
            horizon,
            largest: Stamp(i64::MIN),
            tombstones: 0,
            expiring: 0,
            mortal_bytes: 0,
            oldest_tombstone: Stamp(i64::MAX),
            oldest_expiring: Stamp(i64::MAX),
            first_expiry_s: i64::MAX,
            gone: 0,
        }
    }

    /// What of the leaf a cut counts, if that can be told without scanning it.
    pub fn counted(&self, cut: &Cut) -> Option<Counted> {
        let none_left_out = self.largest <= cut.upto
            && !(self.oldest_tombstone <= cut.horizon.stamp
                || self.oldest_expiring <= cut.horizon.stamp && self.first_expiry_s <= cut.horizon.expired_s);
        let none_put_back = self.horizon.or(cut.horizon) == cut.horizon || self.gone == 0;
        (none_left_out && none_put_back).then_some(self.all)
    }

    /// True if the leaf has cells that would be gone with this horizon.
    pub fn has_dead(&self, horizon: Horizon) -> bool {
        self.oldest_tombstone <= horizon.stamp
            || self.oldest_expiring <= horizon.stamp && self.first_expiry_s <= horizon.expired_s
    }

    fn add(&mut self, key: &[u8], cell: &Cell, hash: u128) {
        if self.horizon.covers(cell) {
            self.gone += 1;
            return;
        }
        self.all.add(hash);
        self.largest = self.largest.max(cell.stamp);
        let bytes = (key.len() + cell.encoded_len()) as u64;
        match cell.content {
            Content::Value(_) => {}
            Content::Tombstone => {
                self.tombstones += 1;
                self.mortal_bytes += bytes;
                self.oldest_tombstone = self.oldest_tombstone.min(cell.stamp);
            }
            Content::Expiring { expires_at_s, .. } => {
                self.expiring += 1;
                self.mortal_bytes += bytes;
                self.oldest_expiring = self.oldest_expiring.min(cell.stamp);
                self.first_expiry_s = self.first_expiry_s.min(expires_at_s);
            }
        }
    }
}

/// A scan of a stretch under way: its sums so far.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Where it goes on; the stretch's end once it is complete.
    pub next: Vec<u8>,
    /// Nothing is left to scan.
    pub complete: bool,
    /// All cells so far.
    pub sum: Sum,
    /// Of them, those that the cut counts.
    pub counted: Counted,
    cut: Cut,
    end: Vec<u8>,
    /// Ends behind the first key at which leaves are cut, if there is one before `end`.
    to_boundary: bool,
    /// It has ended so.
    at_boundary: bool,
}

impl Scan {
    /// Of the engine keys from `start` up to but without `end`. `to_boundary`: of one leaf.
    pub fn new(start: &[u8], end: &[u8], cut: Cut, horizon: Horizon, to_boundary: bool) -> Scan {
        Scan {
            next: start.to_vec(),
            complete: start >= end,
            sum: Sum::of_nothing(horizon),
            counted: Counted::default(),
            cut,
            end: end.to_vec(),
            to_boundary,
            at_boundary: false,
        }
    }

    /// Where it must end at the latest.
    pub(super) fn end(&self) -> &[u8] {
        &self.end
    }

    /// Takes the cells from `next` on, in order; with `all`, no others are left before the end.
    pub(super) fn take(&mut self, cells: &[(Vec<u8>, Cell)], all: bool) {
        for (key, cell) in cells {
            let hash = cell_hash(key, cell);
            self.sum.add(key, cell, hash);
            if self.cut.counts(cell) {
                self.counted.add(hash);
            }
            if self.to_boundary && is_boundary(key) {
                self.next = behind(key);
                self.complete = true;
                self.at_boundary = true;
                return;
            }
        }
        self.complete = all;
        self.next = match cells.last() {
            Some((key, _)) if !all => behind(key),
            _ => self.end.clone(),
        };
    }
}

/// A leaf as it is known.
#[derive(Clone, Debug)]
pub struct LeafView {
    /// Its first possible key.
    pub start: Vec<u8>,
    /// Its keys are below this.
    pub end: Vec<u8>,
    /// Its sum; `None`: it has to be scanned.
    pub sum: Option<Sum>,
    /// By which [`Leaves::note`] tells whether it was written since.
    changed: u64,
}

/// All leaves.
#[derive(Default)]
pub(super) struct Leaves {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    /// By their ends: each holds the keys from the end before it on. Each cell that is committed looks for its leaf.
    by_end: BTreeMap<Key, Leaf>,
    /// Cuts that stay: between ranges and tables.
    fixed: BTreeSet<Vec<u8>>,
    /// Tables with cells.
    tables: BTreeSet<TableId>,
    /// The largest partition key of each ring range.
    tokens: Vec<Vec<u8>>,
    /// The last change of any leaf. One count for all: a leaf that is joined to its neighbour and cut off again, while
    /// somebody scans it, does not have the number that it had.
    changes: u64,
}

struct Leaf {
    /// The number of its last change.
    changed: u64,
    sum: Option<Sum>,
}

impl Leaves {
    /// Cuts `tables` at the ends of the ring's ranges. Until then nothing is known of any leaf.
    pub fn cut(&self, tokens: Vec<Vec<u8>>, tables: impl IntoIterator<Item = TableId>) {
        let mut index = self.index();
        index.tokens = tokens;
        for table in tables {
            index.add_table(table);
        }
    }

    /// The tables with cells.
    pub fn tables(&self) -> Vec<TableId> {
        self.index().tables.iter().copied().collect()
    }

    /// These cells were committed, and readers see them from now on: called under the lock under which they are merged.
    pub fn written<'a>(&self, cells: impl IntoIterator<Item = &'a Key>) {
        let mut index = self.index();
        if index.tokens.is_empty() {
            return;
        }
        for key in cells {
            index.written(key);
        }
    }

    /// The leaf in which this key is; of a table without cells an empty one up to `end`.
    pub fn leaf_at(&self, key: &[u8], end: &[u8]) -> LeafView {
        self.index().leaf_at(key, end)
    }

    /// A scan that began at the start of `leaf` came to its end, or to the end of the first of the leaves that it turns
    /// out to be. If it was written meanwhile, the cut is kept but not the sum; if others cut or joined it meanwhile,
    /// neither: two may scan one leaf at once.
    pub fn note(&self, leaf: &LeafView, scan: &Scan) {
        assert!(scan.complete, "only what was scanned whole has a sum");
        self.index().note(leaf, scan);
    }

    /// Shows the leaves of a stretch that begins and ends with fixed cuts.
    pub fn each(&self, start: &[u8], end: &[u8], mut show: impl FnMut(&[u8], Option<&Sum>)) {
        let index = self.index();
        let range = index.by_end.range::<[u8], _>((Bound::Excluded(start), Bound::Included(end)));
        range.for_each(|(end, leaf)| show(end, leaf.sum.as_ref()));
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().expect("no panic while it is held")
    }
}

impl Index {
    fn add_table(&mut self, table: TableId) {
        self.tables.insert(table);
        let tokens = std::mem::take(&mut self.tokens);
        let ends = tokens.iter().map(|token| key::after_partition(table, token));
        for cut in ends.chain([table_start(table), table_end(table)]) {
            if self.fixed.insert(cut.clone()) {
                // What lay in a leaf that is now two is summed again.
                let cut = Key::from(&cut[..]);
                self.change_behind(&cut);
                let changed = self.next_change();
                self.by_end.entry(cut).or_insert(Leaf { changed, sum: None });
            }
        }
        self.tokens = tokens;
    }

    fn written(&mut self, key: &Key) {
        let Some(table) = key.first_chunk::<2>().map(|table| TableId(u16::from_be_bytes(*table))) else {
            return;
        };
        if !self.tables.contains(&table) {
            self.add_table(table);
        }
        self.change_behind(key);
    }

    /// The leaf that has this key, or begins with it, has another content from now on.
    fn change_behind(&mut self, key: &Key) {
        let changed = self.next_change();
        if let Some((_, leaf)) =
            self.by_end.range_mut::<Key, _>((Bound::Excluded(key), Bound::Unbounded)).next()
        {
            *leaf = Leaf { changed, sum: None };
        }
    }

    fn next_change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    fn leaf_at(&self, key: &[u8], end: &[u8]) -> LeafView {
        let start = self.by_end.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let start = start.map_or(Vec::new(), |(end, _)| end.to_vec());
        match self.by_end.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).next() {
            Some((end, leaf)) => LeafView { start, end: end.to_vec(), sum: leaf.sum, changed: leaf.changed },
            None => LeafView { start, end: end.to_vec(), sum: None, changed: 0 },
        }
    }

    fn note(&mut self, seen: &LeafView, scan: &Scan) {
        let now = self.leaf_at(&seen.start, &seen.end);
        if (&now.start, &now.end) != (&seen.start, &seen.end) {
            return;
        }
        let end = &scan.next[..];
        let sum = (now.changed == seen.changed).then_some(scan.sum);
        if end != seen.end {
            let changed = self.next_change();
            self.by_end.insert(Key::from(end), Leaf { changed, sum });
            return;
        }
        let Some(leaf) = self.by_end.get_mut(end) else { return };
        leaf.sum = sum;
        if sum.is_some() && !scan.at_boundary && !self.fixed.contains(end) {
            self.join_next(end);
        }
    }

    /// The cut at `end` has lost its reason.
    fn join_next(&mut self, end: &[u8]) {
        let end = Key::from(end);
        self.by_end.remove(&end);
        self.change_behind(&end);
    }
}

/// The first possible engine key of a table.
pub fn table_start(table: TableId) -> Vec<u8> {
    table.0.to_be_bytes().to_vec()
}

/// Above every engine key of a table.
pub fn table_end(table: TableId) -> Vec<u8> {
    match table.0.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => vec![0xff; 2 + PARTITION_KEY_BYTES_MAX + 1],
    }
}

/// The least engine key after this one.
pub fn behind(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

fn is_boundary(key: &[u8]) -> bool {
    xxhash_rust::xxh3::xxh3_64(key).trailing_zeros() >= BOUNDARY_BITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    const TABLE: TableId = TableId(1);
    const STEP: usize = 70;
    const ALL: Cut = Cut { upto: Stamp(i64::MAX), beyond: Stamp(i64::MAX), horizon: Horizon::NONE };

    fn cell(stamp: i64, kind: u8) -> Cell {
        let value = Bytes::from_static(b"v");
        let content = match kind {
            0 => Content::Value(value),
            1 => Content::Expiring { value, expires_at_s: stamp * 2 },
            _ => Content::Tombstone,
        };
        Cell { stamp: Stamp(stamp), content }
    }

    /// A true state, and the leaves that are told of its changes.
    struct Model {
        cells: BTreeMap<Vec<u8>, Cell>,
        leaves: Leaves,
    }

    impl Model {
        fn new() -> Model {
            let leaves = Leaves::default();
            leaves.cut(vec![vec![0x3f], vec![0x7f], vec![0xff]], [TABLE]);
            Model { cells: BTreeMap::new(), leaves }
        }

        fn write(&mut self, partition: u16, cell: Cell) {
            let key = key::encode(TABLE, &partition.to_be_bytes(), b"");
            self.cells.insert(key.clone(), cell);
            self.leaves.written([&Key::from(&key[..])]);
        }

        fn remove(&mut self, partition: u16) {
            let key = key::encode(TABLE, &partition.to_be_bytes(), b"");
            self.cells.remove(&key);
            self.leaves.written([&Key::from(&key[..])]);
        }

        fn scan(&self, start: &[u8], end: &[u8], cut: Cut, horizon: Horizon, to_boundary: bool) -> Scan {
            let mut scan = Scan::new(start, end, cut, horizon, to_boundary);
            while !scan.complete {
                let next = scan.next.clone();
                let cells = self.cells.range(next..end.to_vec()).take(STEP + 1);
                let cells: Vec<_> = cells.map(|(key, cell)| (key.clone(), cell.clone())).collect();
                let all = cells.len() <= STEP;
                let now = &cells[..cells.len().min(STEP)];
                scan.take(now, all);
            }
            scan
        }

        /// Sums of the whole table by way of the leaves, scanning those that have none.
        fn counted(&self, cut: Cut, horizon: Horizon) -> Counted {
            let mut at = table_start(TABLE);
            let end = table_end(TABLE);
            let mut counted = Counted::default();
            while at < end {
                let leaf = self.leaves.leaf_at(&at, &end);
                let whole = leaf.start == at; // not if the cut before it was lost just now
                let known = leaf.sum.and_then(|sum| sum.counted(&cut)).filter(|_| whole);
                match known {
                    Some(known) => {
                        counted = counted.and(known);
                        at = leaf.end;
                    }
                    None => {
                        let scan = self.scan(&at, &leaf.end, cut, horizon, whole);
                        if whole {
                            self.leaves.note(&leaf, &scan);
                        }
                        counted = counted.and(scan.counted);
                        at = scan.next.clone();
                    }
                }
            }
            counted
        }

        fn truth(&self, cut: Cut) -> Counted {
            let mut counted = Counted::default();
            for (key, cell) in self.cells.iter().filter(|(_, cell)| cut.counts(cell)) {
                counted.add(cell_hash(key, cell));
            }
            counted
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        /// Whatever is written, removed and asked in between: the leaves say what a scan of everything says.
        #[test]
        fn leaves_say_what_is_there(
            steps in prop::collection::vec((any::<u16>(), 1i64..40, 0u8..4, 0i64..40, 0i64..40), 1..25)
        ) {
            let mut model = Model::new();
            for (base, stamp, kind, upto, gone) in steps {
                for partition in (0..200).map(|i: u16| base.wrapping_add(i.wrapping_mul(331))) {
                    match kind {
                        3 => model.remove(partition),
                        kind => model.write(partition, cell(stamp, kind)),
                    }
                }
                let horizon = Horizon { stamp: Stamp(gone), expired_s: 30 };
                for cut in [
                    ALL,
                    Cut { upto: Stamp(upto), beyond: Stamp(35), horizon: Horizon::NONE },
                    Cut { upto: Stamp(upto), beyond: Stamp(50), horizon },
                    Cut { horizon, ..ALL },
                ] {
                    prop_assert_eq!(model.counted(cut, Horizon::NONE), model.truth(cut));
                    let gone = Cut { horizon: cut.horizon.or(horizon), ..cut };
                    prop_assert_eq!(model.counted(gone, horizon), model.truth(gone));
                }
            }
        }
    }

    #[test]
    fn a_write_during_the_scan_is_not_forgotten() {
        let mut model = Model::new();
        model.write(5, cell(1, 0));
        let end = table_end(TABLE);
        let leaf = model.leaves.leaf_at(&table_start(TABLE), &end);
        let scan = model.scan(&leaf.start, &leaf.end, ALL, Horizon::NONE, true);
        model.write(6, cell(2, 0));
        model.leaves.note(&leaf, &scan);
        assert_eq!(model.leaves.leaf_at(&table_start(TABLE), &end).sum, None);
        assert_eq!(model.counted(ALL, Horizon::NONE), model.truth(ALL));
    }

    /// The first partition from this one on at which leaves are cut.
    fn boundary(from: u16) -> u16 {
        (from..).find(|partition| is_boundary(&key::encode(TABLE, &partition.to_be_bytes(), b""))).unwrap()
    }

    #[test]
    fn a_scan_that_saw_the_leaf_before_another_cut_it_is_not_believed() {
        let mut model = Model::new();
        let cut = boundary(0);
        model.write(cut, cell(1, 0));
        model.write(cut + 1, cell(1, 0));
        let end = table_end(TABLE);
        let leaf = model.leaves.leaf_at(&table_start(TABLE), &end);
        let scan = || model.scan(&leaf.start, &leaf.end, ALL, Horizon::NONE, true);
        let (first, second) = (scan(), scan());
        model.leaves.note(&leaf, &first);
        assert!(model.leaves.leaf_at(&leaf.start, &end).sum.is_some());
        model.write(cut, cell(2, 0));
        model.leaves.note(&leaf, &second);
        assert_eq!(model.leaves.leaf_at(&leaf.start, &end).sum, None);
        assert_eq!(model.counted(ALL, Horizon::NONE), model.truth(ALL));
    }

    #[test]
    fn a_leaf_that_is_joined_and_cut_again_is_another() {
        for writes in 1..5 {
            let mut model = Model::new();
            let (start, end, cut) = (table_start(TABLE), table_end(TABLE), boundary(0));
            let leaf = |model: &Model| model.leaves.leaf_at(&start, &end);
            let scan =
                |model: &Model, leaf: &LeafView| model.scan(&leaf.start, &leaf.end, ALL, Horizon::NONE, true);
            model.write(cut, cell(1, 0));
            model.counted(ALL, Horizon::NONE);
            (0..writes).for_each(|_| model.write(cut, cell(2, 0)));
            let seen = leaf(&model);
            let old = scan(&model, &seen);
            model.remove(cut);
            model.counted(ALL, Horizon::NONE);
            let joined = leaf(&model);
            assert_ne!(joined.end, seen.end, "joined to its neighbour");
            model.write(cut, cell(3, 0));
            model.counted(ALL, Horizon::NONE);
            assert_eq!(leaf(&model).end, seen.end, "cut off again");
            model.leaves.note(&seen, &old);
            assert_eq!(model.counted(ALL, Horizon::NONE), model.truth(ALL), "{writes}");
        }
    }

    #[test]
    fn many_keys_are_many_leaves_and_fewer_again_when_they_go() {
        let mut model = Model::new();
        let count = |model: &Model| {
            let mut leaves = 0;
            model.leaves.each(&table_start(TABLE), &table_end(TABLE), |_, _| leaves += 1);
            leaves
        };
        (0..20_000).for_each(|partition| model.write(partition, cell(1, 0)));
        model.counted(ALL, Horizon::NONE);
        let full = count(&model);
        assert!((15..40).contains(&full), "{full}");
        (0..20_000).for_each(|partition| model.remove(partition));
        for _ in 0..full {
            model.counted(ALL, Horizon::NONE);
        }
        assert_eq!(count(&model), 4, "one for each range, two for the one that wraps");
    }
}
