//! How data.db is written: memtables into sstables, sstables into `cells`.
//!
//! A flush that has many cells for each page of `cells` is written there at once; another becomes an sstable
//! (`sstable`). Once those are large against `cells`, or many, they are compacted: merged, in key order, into `cells`.
//! Until that is done to the last cell readers look into them as well, so a crash or an error in between changes
//! nothing that anybody sees, and the next compaction begins from the first key again, where it finds most of its work
//! done. Long cells go to `cells` at once: there they bring a page anyway. Damage that a flush or a compaction meets
//! ends the writing: what could be lost must not be written over.
//!
//! Two promises are kept here for others:
//!   - What [`BaseWriter`] has committed is on the disk, whatever the configured durability: the log is forgotten
//!     because of it.
//!   - A table is cleared only when no read that begins looks for its old cells there ([`Base::show`]).
//!
//! Not here: which cells to write when (`flush`, `collect`).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection};

use super::base::{
    Base, CELLS_LARGEST_STAMP, FILE, FLUSHED_UPTO, FORMAT, Found, LARGEST_STAMP, Source, cell_checksum,
    id_checksum, is_stored, stored,
};
use super::block::{self, BlockBuilder};
use super::disk::Disk;
use super::filter::{Filter, KeyHash};
use super::memtable::{Memtable, unpack};
use super::sqlite::{self, Checkpoints, OpenError, StoreError};
use super::sstable::{BlockTable, SLOTS, SsTable, SsTables};
use crate::cell::{Cell, Stamp};
use crate::config::Config;
use crate::key;

/// 1 once log.db was created: from then on its absence is a loss.
const LOG_CREATED: &str = "log_created";

const READ_ID: &str = "SELECT cell, checksum FROM cells WHERE key = ?1 AND typeof(cell) = 'integer'";
const PUT: &str = "REPLACE INTO cells(key, cell, checksum) VALUES (?1, ?2, ?3)";
const DELETE: &str = "DELETE FROM cells WHERE key = ?1";
const PUT_LONG: &str = "INSERT INTO long_cells(cell, checksum) VALUES (?1, ?2)";
const REPLACE_LONG: &str = "UPDATE long_cells SET cell = ?1, checksum = ?2 WHERE id = ?3";
const DELETE_LONG: &str = "DELETE FROM long_cells WHERE id = ?1";

/// Write straight to `cells` if it is at most this many times larger than the flush: then there are some cells for each
/// of its pages.
const AT_ONCE_TIMES: u64 = 4;

/// The writing side.
pub(super) struct BaseWriter {
    connection: Connection,
    base: Arc<Base>,
    checkpoints: Checkpoints,
    flushed_upto: i64,
    /// Of the file's pages: an older file has larger ones.
    page_bytes: usize,
    /// The most bytes of a key and its cell that fit a row within its page.
    short_bytes_max: usize,
    /// Some cell may lie in long_cells.
    has_long: std::cell::Cell<bool>,
    /// Those that are whole, in no order.
    sstables: Vec<Arc<SsTable>>,
    /// Once there are this many they are compacted, however few cells they have for each page of `cells`.
    compacted_together: usize,
    /// Slots of none whose tables have rows.
    to_clear: Vec<usize>,
    /// No cell of `cells` has a larger stamp, except those that the compaction under way has put there, all of which
    /// are in its sstables as well.
    cells_largest: Stamp,
    /// No cell of those sstables has a larger stamp.
    compacted_largest: Stamp,
    /// No cell that got there since the compaction under way began, and not from it, has a larger stamp.
    put_beside: Stamp,
}

/// A memtable on its way to the file.
pub(super) struct Flush {
    /// The one that it becomes, without its long cells; `None`: all goes to `cells`.
    sstable: Option<SsTable>,
    /// No cell of the memtable has a larger stamp.
    largest: Stamp,
    /// No cell of `cells` had a larger stamp before.
    known: Stamp,
    /// Every log row up to this sequence is in the file once all of it is.
    upto: i64,
}

/// Sstables on their way to `cells`.
pub(super) struct Compaction {
    slots: Vec<usize>,
    /// How many memtables can become sstables until it is done; at least 1.
    pub slots_left: usize,
    /// No cell of `cells` had a larger stamp before.
    known: Stamp,
    /// Everything before this engine key is there.
    next: Vec<u8>,
    /// Cells of the sstables, and how many of them were dealt with, about.
    cells: u64,
    cells_done: u64,
}

impl Compaction {
    /// About which part of it will be done after `more` cells: 0 to 1.
    pub fn done(&self, more: u64) -> f64 {
        (self.cells_done + more) as f64 / self.cells.max(1) as f64
    }
}

/// Opens or creates data.db.
pub(super) fn open(dir: &Path, config: &Config, disk: &Disk) -> Result<BaseWriter, OpenError> {
    let path = dir.join(FILE);
    let (mut connection, format) =
        sqlite::open_to_write(disk, &path, &FORMAT, "FULL", config.base_cache_bytes, true)?;
    let found = Found::read(&connection, &path)?;
    sqlite::upgrade(&connection, &path, &FORMAT, format)?;
    sqlite::settle(&connection, disk, &path)?;
    let using = |source| OpenError::using(&path, source);
    let page_bytes = sqlite::page_bytes(&connection).map_err(using)?;
    let checkpoints = Checkpoints::every(config.wal_autocheckpoint_pages, &mut connection).map_err(using)?;
    let any = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, bool>(0)).map_err(using);
    let has_long = any("SELECT EXISTS(SELECT 1 FROM long_cells)")?;
    let SsTables { tables, cells_largest } = found.sstables.clone();
    let mut to_clear = Vec::new();
    for slot in (0..SLOTS).filter(|slot| tables.iter().all(|sstable| sstable.slot != *slot)) {
        if any(&BlockTable::of_slot(slot).any)? {
            to_clear.push(slot);
        }
    }
    let flushed_upto = found.flushed_upto;
    Ok(BaseWriter {
        connection,
        base: Arc::new(Base::new(path, disk.clone(), config, found)),
        checkpoints,
        flushed_upto,
        page_bytes,
        short_bytes_max: short_bytes_max(page_bytes),
        has_long: std::cell::Cell::new(has_long),
        sstables: tables,
        compacted_together: config.compaction_sstables,
        to_clear,
        cells_largest,
        compacted_largest: Stamp(i64::MIN),
        put_beside: Stamp(i64::MIN),
    })
}

impl BaseWriter {
    /// The reading side of the same file.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Every log row up to this sequence is in the file.
    pub fn flushed_upto(&self) -> i64 {
        self.flushed_upto
    }

    /// Whether a log.db was ever created beside this file.
    pub fn log_created(&self) -> Result<bool, OpenError> {
        Ok(sqlite::meta(&self.connection, self.base.path(), LOG_CREATED)?.is_some())
    }

    /// Remembers for good that log.db exists.
    pub fn note_log_created(&self) -> Result<(), OpenError> {
        sqlite::set_meta(&self.connection, LOG_CREATED, 1)
            .map_err(|source| OpenError::using(self.base.path(), source))
    }

    /// Every number that is remembered, by name.
    pub fn numbers(&self) -> Result<BTreeMap<String, i64>, OpenError> {
        sqlite::all_meta(&self.connection, self.base.path())
    }

    /// Remembers numbers, in one transaction.
    pub fn remember(&mut self, numbers: &[(String, i64)]) -> Result<(), StoreError> {
        let write = || -> rusqlite::Result<()> {
            sqlite::run(&self.connection, "BEGIN IMMEDIATE")?;
            for (name, value) in numbers {
                sqlite::set_meta(&self.connection, name, *value)?;
            }
            sqlite::run(&self.connection, "COMMIT")
        };
        write().map_err(|source| self.failed(source))
    }

    /// Drops all cells under these keys, in one transaction.
    pub fn drop_cells(&mut self, keys: &[Vec<u8>]) -> Result<(), StoreError> {
        self.drop_transaction(keys).map_err(|error| self.undone(error))?;
        self.show();
        Ok(())
    }

    fn drop_transaction(&self, keys: &[Vec<u8>]) -> Result<(), StoreError> {
        let reading = |source| self.reading(source);
        sqlite::run(&self.connection, "BEGIN IMMEDIATE").map_err(reading)?;
        for key in keys {
            self.delete_long(key).map_err(reading)?;
            self.connection
                .prepare_cached(DELETE)
                .and_then(|mut drop| drop.execute([&key[..]]))
                .map_err(reading)?;
            let hash = KeyHash::of(key);
            for sstable in self.sstables.iter().filter(|sstable| sstable.filter.may_have(hash)) {
                self.drop_from_sstable(sstable.table(), key)?;
            }
        }
        sqlite::run(&self.connection, "COMMIT").map_err(reading)
    }

    fn drop_from_sstable(&self, table: &BlockTable, key: &[u8]) -> Result<(), StoreError> {
        let rest = self.base.look_at_block(&self.connection, table, key, |block, id| {
            let mut rest = BlockBuilder::new(block.len() + self.page_bytes);
            let others = block::entries(block).filter(|(held, _)| *held != key);
            let all = others.clone().all(|(key, cell)| rest.push(key, cell));
            assert!(all, "what was in a block fits one that is larger");
            Ok((others.count() < block::entries(block).count()).then_some((rest, id)))
        })?;
        let Some((rest, id)) = rest.flatten() else { return Ok(()) };
        let written = match rest.filled() {
            Some((first, block)) => {
                let row = (first, block, stored(cell_checksum(first, block)), id);
                self.connection.prepare_cached(&table.replace).and_then(|mut replace| replace.execute(row))
            }
            None => self.connection.prepare_cached(&table.delete).and_then(|mut delete| delete.execute([id])),
        };
        written.map(|_| ()).map_err(|source| self.reading(source))
    }

    /// Lets reads that begin from now on see what was written. To be called before what was flushed is dropped from
    /// memory.
    pub fn show(&self) {
        self.base.show(SsTables::new(self.sstables.clone(), self.cells_largest));
    }

    /// Gives `pages` free pages back to the file system, if there are at least `free_min`, in one transaction. True if
    /// there may be more. A file that was made before pages could be given back only uses them again.
    pub fn give_back(&mut self, pages: usize, free_min: usize) -> Result<bool, StoreError> {
        let free = self.number("freelist_count")?;
        if free < free_min as u64 || self.number("auto_vacuum")? == 0 {
            return Ok(false);
        }
        let write = || -> rusqlite::Result<()> {
            sqlite::run(&self.connection, "BEGIN IMMEDIATE")?;
            let mut vacuum =
                self.connection.prepare_cached(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut steps = vacuum.query([])?;
            while steps.next()?.is_some() {} // a page each
            drop(steps);
            drop(vacuum);
            sqlite::run(&self.connection, "COMMIT")
        };
        write().map_err(|source| self.failed(source))?;
        Ok(self.number("freelist_count")? < free)
    }

    /// What SQLite says of the file.
    fn number(&self, pragma: &str) -> Result<u64, StoreError> {
        let number = self.connection.pragma_query_value(None, pragma, |row| row.get::<_, u32>(0));
        number.map(u64::from).map_err(|source| self.reading(source))
    }

    /// Copies the write-ahead log into the file, which then takes no more space than it needs.
    pub fn checkpoint_now(&self) -> Result<(), StoreError> {
        self.base.readers().let_go();
        sqlite::checkpoint(&self.connection, "PASSIVE").map_err(|source| self.reading(source))?;
        self.base.readers().let_go(); // of the log as it was, so that it can begin anew
        Ok(())
    }

    fn reading(&self, source: rusqlite::Error) -> StoreError {
        StoreError::reading(self.base.path(), source)
    }

    fn undone(&self, error: StoreError) -> StoreError {
        sqlite::roll_back(&self.connection);
        error
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        self.undone(self.reading(source))
    }

    /// Begins to write a memtable, after which all log rows up to `upto` are in the file.
    pub fn begin_flush(&mut self, table: &Memtable, upto: i64) -> Result<Flush, StoreError> {
        let known = self.cells_largest.max(self.compacted_largest);
        let largest = table.largest().unwrap_or(known);
        let (mut cells, mut bytes, mut noted, mut before) = (0, 0, 0, None);
        for (key, cell) in table.range(&[], None).filter(|(key, cell)| !self.is_long(key, cell)) {
            cells += 1;
            bytes += (key.len() + cell.len()) as u64;
            noted += filtered(key, &mut before).count();
        }
        // Without a slot only at a start: else a flush waits for one.
        let at_once = bytes * AT_ONCE_TIMES >= self.cells_bytes()? || !self.has_slot();
        let mut sstable = None;
        if cells > 0 && !at_once {
            sstable =
                Some(SsTable { slot: self.free_slot()?, cells, bytes, largest, filter: Filter::new(noted) });
        }
        Ok(Flush { sstable, largest, known, upto })
    }

    /// True if one more memtable can become an sstable.
    pub fn has_slot(&self) -> bool {
        self.sstables.len() < SLOTS
    }

    /// A slot whose table is empty. There must be one without an sstable.
    fn free_slot(&mut self) -> Result<usize, StoreError> {
        let taken = |slot: &usize| self.sstables.iter().any(|sstable| sstable.slot == *slot);
        let empty = (0..SLOTS).find(|slot| !taken(slot) && !self.to_clear.contains(slot));
        match empty {
            Some(slot) => Ok(slot),
            None => {
                let slot = *self.to_clear.last().expect("it has no sstable, and is not empty");
                self.clear_one()?;
                Ok(slot)
            }
        }
    }

    /// Clears the table of a slot without an sstable, in one transaction, which reads all its pages and writes few.
    /// False if all are clear.
    pub fn clear_one(&mut self) -> Result<bool, StoreError> {
        let Some(slot) = self.to_clear.last() else { return Ok(false) };
        sqlite::run(&self.connection, &BlockTable::of_slot(*slot).clear)
            .map_err(|source| self.failed(source))?;
        self.to_clear.pop();
        Ok(true)
    }

    /// Writes the next cells of a memtable, in key order, in one transaction. `last`: with these all of it is in the
    /// file. An error: nothing of this was written.
    pub fn write<'a>(
        &mut self,
        flush: &mut Flush,
        cells: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        last: bool,
    ) -> Result<(), StoreError> {
        // Before the cells are there for anybody to read.
        self.base.raise_largest(flush.largest);
        let written = self.write_transaction(flush, cells, last);
        written.map_err(|error| self.undone(error))?;
        if last {
            self.flushed_upto = flush.upto;
            self.sstables.extend(flush.sstable.take().map(Arc::new));
        }
        Ok(())
    }

    fn write_transaction<'a>(
        &mut self,
        flush: &mut Flush,
        cells: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        last: bool,
    ) -> Result<(), StoreError> {
        let path = self.base.path().to_owned();
        let reading = |source| StoreError::reading(&path, source);
        sqlite::run(&self.connection, "BEGIN IMMEDIATE").map_err(reading)?;
        let mut put = self.connection.prepare_cached(PUT).map_err(reading)?;
        let (mut block, mut before) = (BlockBuilder::new(self.page_bytes), None);
        let mut largest = Stamp(i64::MIN);
        for (key, cell) in cells {
            match &mut flush.sstable {
                Some(sstable) if !self.is_long(key, cell) => {
                    filtered(key, &mut before).for_each(|part| sstable.filter.note(KeyHash::of(part)));
                    if !block.push(key, cell) {
                        self.append(sstable, &mut block).map_err(reading)?;
                        block.push(key, cell);
                    }
                }
                _ => {
                    self.put_if_newer(&mut put, key, cell, flush.known)?;
                    largest = largest.max(unpack(cell).stamp);
                }
            }
        }
        self.cells_largest = self.cells_largest.max(largest);
        self.put_beside = self.put_beside.max(largest);
        if let Some(sstable) = &flush.sstable {
            self.append(sstable, &mut block).map_err(reading)?;
        }
        sqlite::set_meta(&self.connection, LARGEST_STAMP, self.base.largest().0).map_err(reading)?;
        self.note_cells_largest().map_err(reading)?;
        if last {
            sqlite::set_meta(&self.connection, FLUSHED_UPTO, flush.upto).map_err(reading)?;
            if let Some(sstable) = &flush.sstable {
                sstable.insert(&self.connection).map_err(reading)?;
            }
        }
        sqlite::run(&self.connection, "COMMIT").map_err(reading)
    }

    /// Writes a block, if there is something in it, and begins the next.
    fn append(&self, sstable: &SsTable, block: &mut BlockBuilder) -> rusqlite::Result<()> {
        if let Some((first, cells)) = block.filled() {
            let row = (first, cells, stored(cell_checksum(first, cells)));
            self.connection.prepare_cached(&sstable.table().append)?.execute(row)?;
            block.clear();
        }
        Ok(())
    }

    /// True if the sstables there are had better be compacted.
    pub fn compaction_is_due(&self) -> Result<bool, StoreError> {
        let bytes: u64 = self.sstables.iter().map(|sstable| sstable.bytes).sum();
        let large = || Ok(bytes * AT_ONCE_TIMES >= self.cells_bytes()?);
        Ok(self.sstables.len() >= self.compacted_together || !self.sstables.is_empty() && large()?)
    }

    /// Begins to compact the sstables there are, or as many as are compacted together: a server that was stopped again
    /// and again may have more. Not while a memtable is being written.
    pub fn begin_compaction(&mut self) -> Compaction {
        let compacted = &self.sstables[..self.sstables.len().min(self.compacted_together)];
        let compaction = Compaction {
            slots: compacted.iter().map(|sstable| sstable.slot).collect(),
            slots_left: (SLOTS - self.sstables.len()).max(1),
            known: self.cells_largest,
            next: Vec::new(),
            cells: compacted.iter().map(|sstable| sstable.cells).sum(),
            cells_done: 0,
        };
        self.compacted_largest =
            compacted.iter().map(|sstable| sstable.largest).fold(Stamp(i64::MIN), Stamp::max);
        self.put_beside = Stamp(i64::MIN);
        compaction
    }

    /// Writes the next cells of a compaction in one transaction: at least one, at most as many cells and bytes as
    /// given. With the last of them its sstables cease to be any. An error: nothing of this was written.
    pub fn compact(
        &mut self,
        compaction: &mut Compaction,
        most: (usize, usize),
    ) -> Result<ControlFlow<()>, StoreError> {
        let (cells, next) = self.next_of(compaction, most)?;
        let written = self.compact_transaction(compaction, &cells, next.is_none());
        written.map_err(|error| self.undone(error))?;
        if let Some(next) = next {
            compaction.next = next;
            return Ok(ControlFlow::Continue(()));
        }
        self.sstables.retain(|sstable| !compaction.slots.contains(&sstable.slot));
        self.to_clear.append(&mut compaction.slots);
        self.cells_largest = self.cells_largest.max(self.compacted_largest);
        self.show();
        Ok(ControlFlow::Break(()))
    }

    /// The next cells of a compaction, and where it goes on; `None` behind the last.
    #[expect(clippy::type_complexity, reason = "keys and cells as the memtable has them")]
    fn next_of(
        &self,
        compaction: &mut Compaction,
        (cells_max, bytes_max): (usize, usize),
    ) -> Result<(Vec<(Vec<u8>, Vec<u8>)>, Option<Vec<u8>>), StoreError> {
        let sources = compaction.slots.iter().map(|slot| Source::SsTable(*slot));
        let (mut cells, mut bytes, mut next) = (Vec::new(), 0, None);
        let passed = self.base.walk(&self.connection, sources, &compaction.next, None, |key, cell| {
            bytes += key.len() + cell.encoded_len();
            if !cells.is_empty() && (cells.len() == cells_max || bytes > bytes_max) {
                next = Some(key.to_vec());
                return false;
            }
            let mut packed = Vec::with_capacity(cell.encoded_len());
            cell.encode(&mut packed);
            cells.push((key.to_vec(), packed));
            true
        })?;
        compaction.cells_done += passed; // a step that fails is counted again, which does not matter
        Ok((cells, next))
    }

    fn compact_transaction(
        &mut self,
        compaction: &Compaction,
        cells: &[(Vec<u8>, Vec<u8>)],
        last: bool,
    ) -> Result<(), StoreError> {
        let path = self.base.path().to_owned();
        let reading = |source| StoreError::reading(&path, source);
        sqlite::run(&self.connection, "BEGIN IMMEDIATE").map_err(reading)?;
        self.note_cells_largest().map_err(reading)?;
        let mut put = self.connection.prepare_cached(PUT).map_err(reading)?;
        for (key, cell) in cells {
            self.put_if_newer(&mut put, key, cell, compaction.known.max(self.put_beside))?;
        }
        for slot in compaction.slots.iter().filter(|_| last) {
            SsTable::delete(*slot, &self.connection).map_err(reading)?;
        }
        sqlite::run(&self.connection, "COMMIT").map_err(reading)
    }

    fn note_cells_largest(&self) -> rusqlite::Result<()> {
        let largest = self.cells_largest.max(self.compacted_largest);
        sqlite::set_meta(&self.connection, CELLS_LARGEST_STAMP, largest.0)
    }

    /// Bytes of the file without its sstables, but with tables that wait to be cleared.
    fn cells_bytes(&self) -> Result<u64, StoreError> {
        let pages = self.number("page_count")?.saturating_sub(self.number("freelist_count")?);
        let sstables: u64 = self.sstables.iter().map(|sstable| sstable.bytes).sum();
        Ok((pages * self.page_bytes as u64).saturating_sub(sstables))
    }

    /// Writes a cell to `cells` by `put`, a prepared [`PUT`], unless that has it, or one that wins against it; `known`:
    /// no cell there that this could be has a larger stamp.
    fn put_if_newer(
        &self,
        put: &mut CachedStatement<'_>,
        key: &[u8],
        cell: &[u8],
        known: Stamp,
    ) -> Result<(), StoreError> {
        let newest = unpack(cell);
        if newest.stamp <= known && self.holds_as_new(key, &newest)? {
            return Ok(());
        }
        self.put(put, key, cell).map_err(|source| self.reading(source))
    }

    /// True if `cells` has that cell under the key, or one that wins against it.
    fn holds_as_new(&self, key: &[u8], newest: &Cell<&[u8]>) -> Result<bool, StoreError> {
        let wins = |held: Cell<&[u8]>| held.order(newest) != Ordering::Less;
        Ok(self.base.look_up(&self.connection, key, wins)?.unwrap_or(false))
    }

    /// Writes a cell in the place of what `cells` has under its key.
    fn put(&self, put: &mut CachedStatement<'_>, key: &[u8], cell: &[u8]) -> rusqlite::Result<()> {
        let checksum = stored(cell_checksum(key, cell));
        if !self.is_long(key, cell) {
            self.delete_long(key)?;
            return put.execute((key, cell, checksum)).map(|_| ());
        }
        let replaced = match self.long_id(key)? {
            Some(id) => self.connection.prepare_cached(REPLACE_LONG)?.execute((cell, checksum, id))? == 1,
            None => false,
        };
        if !replaced {
            self.has_long.set(true);
            self.connection.prepare_cached(PUT_LONG)?.execute((cell, checksum))?;
            let id = self.connection.last_insert_rowid();
            put.execute((key, id, stored(id_checksum(key, id))))?;
        }
        Ok(())
    }

    /// True if a row with that cell is too long for its page, and one with a number instead is not.
    fn is_long(&self, key: &[u8], cell: &[u8]) -> bool {
        const ID_BYTES: usize = 8;
        let fits = |bytes| key.len() + bytes <= self.short_bytes_max;
        !fits(cell.len()) && fits(ID_BYTES)
    }

    /// Where in long_cells the cell under a key lies, if it does. A number that fails its checksum is another's, or
    /// nobody's.
    fn long_id(&self, key: &[u8]) -> rusqlite::Result<Option<i64>> {
        if !self.has_long.get() {
            return Ok(None);
        }
        let mut statement = self.connection.prepare_cached(READ_ID)?;
        let mut rows = statement.query([key])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let id = sqlite::integer(row, 0);
        Ok(id.filter(|id| is_stored(sqlite::integer(row, 1), id_checksum(key, *id))))
    }

    /// Drops what long_cells has under a key.
    fn delete_long(&self, key: &[u8]) -> rusqlite::Result<()> {
        if let Some(id) = self.long_id(key)? {
            self.connection.prepare_cached(DELETE_LONG)?.execute([id])?;
        }
        Ok(())
    }

    /// Copies the write-ahead log into the file if it has grown long enough. True if it did.
    pub fn checkpoint_if_due(&mut self) -> Result<bool, StoreError> {
        let due = self.checkpoints.are_due();
        if due {
            self.checkpoint_now()?;
        }
        Ok(due)
    }

    /// Copies the write-ahead log into the file before it is closed, so that the file alone is complete.
    pub fn checkpoint_to_close(&self) -> rusqlite::Result<()> {
        self.base.readers().keep_none();
        self.base.readers().let_go();
        sqlite::checkpoint(&self.connection, "TRUNCATE")
    }

    #[cfg(test)]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// The most bytes of key and cell that SQLite keeps in one row within a page of a table without rowid, where it is an
/// index's: <https://sqlite.org/fileformat2.html#b_tree_pages>.
fn short_bytes_max(page_bytes: usize) -> usize {
    const HEADER_MAX: usize = 10;
    const CHECKSUM_MAX: usize = 6;
    (page_bytes - 12) * 64 / 255 - 23 - HEADER_MAX - CHECKSUM_MAX
}

/// What a filter has of a key: itself, and its partition, unless that of the key `before` was the same.
fn filtered<'a>(key: &'a [u8], before: &mut Option<&'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let partition = key::partition_of(key);
    let another = partition.filter(|partition| *before != Some(partition) && *partition != key);
    *before = partition;
    [Some(key), another].into_iter().flatten()
}
