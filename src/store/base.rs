//! data.db: the cells that were flushed, and how they are read.
//!
//! They lie in one large sorted table, `cells`, and in a few sstables that were flushed since and are not compacted yet
//! (`sstable`). What was written is seen once [`Base::show`] was called: until then it is in memory as well.
//! Each cell has a checksum over key and cell, so bytes that changed on the disk are reported and never served.
//!
//! Pages are small, for to change a cell is to write a whole one, and a read copies one. In a table sorted by key
//! SQLite puts a row longer than a quarter of its page on a page of its own, of which the rest is wasted. A cell that
//! would be in such a row is kept in a table sorted by number instead, whose rows may fill their page; its row has the
//! number. Files of earlier releases keep their larger pages, and long cells where they are until they are written
//! anew.
//!
//! A promise is kept here for others: [`Base::largest`] is at least the stamp of every cell in the file, and is so
//! before the cell gets there. A cell with a larger stamp needs no look at the file.
//!
//! Not here: how the file is written (`base_writer`), who reads it through which connection (`readers`).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering as Atomic};

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::{Connection, Row, Rows};

use super::block;
use super::cell_cache::CellCache;
use super::disk::Disk;
use super::filter::KeyHash;
use super::readers::Readers;
use super::sqlite::{self, Format, OpenError, StoreError};
use super::sstable::{self, BlockTable, SsTable, SsTables};
use crate::cell::{Cell, Stamp, merge};
use crate::config::Config;
use crate::key;

/// Its name in the data directory.
pub(super) const FILE: &str = "data.db";

pub(super) const FORMAT: Format = Format {
    application_id: 0x5443_4462, // "TCDb"
    page_bytes: 4096,
    gives_back: true,
    schema: &[
        &[
            sqlite::META,
            // `cell`: the cell, or the integer that is its `id` in long_cells; `checksum`: of the key and that.
            "CREATE TABLE cells(key BLOB PRIMARY KEY, cell BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
        ],
        &["CREATE TABLE long_cells(id INTEGER PRIMARY KEY, cell BLOB NOT NULL, checksum INTEGER NOT NULL)"],
        sstable::SCHEMA,
        sstable::MORE_SCHEMA,
    ],
};

/// At least the largest stamp in the file.
pub(super) const LARGEST_STAMP: &str = "largest_stamp";
/// At least the largest stamp in `cells`. A file of a format without sstables does not have it.
pub(super) const CELLS_LARGEST_STAMP: &str = "cells_largest_stamp";
/// Every log row up to this sequence is in the file.
pub(super) const FLUSHED_UPTO: &str = "flushed_upto";

const READ_ONE: &str = "SELECT key, cell, checksum FROM cells WHERE key = ?1";
const READ_RUN: &str = "SELECT key, cell, checksum FROM cells WHERE key >= ?1 AND key < ?2 ORDER BY key";
const READ_REST: &str = "SELECT key, cell, checksum FROM cells WHERE key >= ?1 ORDER BY key";
const READ_LONG: &str = "SELECT cell, checksum FROM long_cells WHERE id = ?1"; // a join costs gets of short cells a third

/// The reading side.
pub(super) struct Base {
    readers: Readers,
    largest: AtomicI64,
    cache: CellCache,
}

/// What data.db says of itself.
pub(super) struct Found {
    pub largest: Stamp,
    pub flushed_upto: i64,
    pub sstables: SsTables,
}

impl Found {
    pub fn read(connection: &Connection, path: &Path) -> Result<Found, OpenError> {
        let largest = sqlite::meta(connection, path, LARGEST_STAMP)?.unwrap_or(i64::MIN);
        let cells_largest = sqlite::meta(connection, path, CELLS_LARGEST_STAMP)?.unwrap_or(largest);
        Ok(Found {
            largest: Stamp(largest),
            flushed_upto: sqlite::meta(connection, path, FLUSHED_UPTO)?.unwrap_or(0),
            sstables: SsTables::new(SsTable::all(connection, path)?, Stamp(cells_largest)),
        })
    }
}

/// Where a run of keys is read from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// The one large table.
    Cells,
    /// The sstable of a slot.
    SsTable(usize),
}

/// The next cell of a source of a run that is being read.
struct Cursor<'a> {
    source: Source,
    rows: Rows<'a>,
    /// That of the cell; empty before the first.
    key: Vec<u8>,
    /// Where in the block of the row the cell is, if it is in an sstable.
    cell: Range<usize>,
}

impl Base {
    pub fn new(path: PathBuf, disk: Disk, config: &Config, found: Found) -> Base {
        Base {
            readers: Readers::new(path, disk, &FORMAT, config, found.sstables),
            largest: AtomicI64::new(found.largest.0),
            cache: CellCache::new(config.cell_cache_bytes),
        }
    }

    /// Opens a file nobody writes, and says up to which log row it holds everything.
    pub fn open_to_read(dir: &Path, config: &Config, disk: &Disk) -> Result<(Base, i64), OpenError> {
        let path = dir.join(FILE);
        let connection =
            sqlite::open_to_read(disk, &path, &FORMAT, config.base_cache_bytes, config.base_mmap_bytes)?;
        let mut found = Found::read(&connection, &path)?;
        drop(connection);
        // A server may be started meanwhile, and clear the tables of sstables that it compacted: `cells` is always
        // asked.
        found.sstables.cells_largest = Stamp(i64::MAX);
        let flushed_upto = found.flushed_upto;
        let base = Base::new(path, disk.clone(), config, found);
        base.readers.keep_none();
        Ok((base, flushed_upto))
    }

    /// No cell in the file has a larger stamp. The smallest of all stamps if the file has no cells.
    pub fn largest(&self) -> Stamp {
        Stamp(self.largest.load(Atomic::Acquire))
    }

    /// To be called before the file gets cells with stamps up to this one.
    pub fn raise_largest(&self, largest: Stamp) {
        self.largest.fetch_max(largest.0, Atomic::AcqRel);
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.readers.path()
    }

    /// Who reads it.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// The cell under a key, as it was at some moment since [`Base::show`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Cell>, StoreError> {
        if let Some(known) = self.cache.get(key) {
            return Ok(known);
        }
        let generation = self.cache.generation();
        let cell = self.readers.read(|connection, sstables| self.newest(connection, sstables, key))?;
        self.cache.keep(key, generation, &cell);
        Ok(cell)
    }

    /// From now on nobody is shown a cell as it was before. To be called once the file was changed, and before what was
    /// written to it is dropped from memory.
    pub fn show(&self, sstables: SsTables) {
        self.readers.show(sstables); // first: what is kept as of now is read as of now
        self.cache.forget();
    }

    /// The cells kept in memory.
    pub fn cache(&self) -> &CellCache {
        &self.cache
    }

    /// The newest cell that the file has under a key.
    fn newest(
        &self,
        connection: &Connection,
        sstables: &SsTables,
        key: &[u8],
    ) -> Result<Option<Cell>, StoreError> {
        let mut newest: Option<Cell> = None;
        let is_newer =
            |newest: &Option<Cell>, largest| newest.as_ref().is_some_and(|cell| cell.stamp > largest);
        if !sstables.tables.is_empty() {
            let hash = KeyHash::of(key);
            for sstable in sstables.tables.iter().filter(|sstable| sstable.filter.may_have(hash)) {
                if is_newer(&newest, sstable.largest) {
                    break; // nor do those that follow have a newer one
                }
                newest = newer(newest, self.get_from_sstable(connection, sstable.table(), key)?);
            }
        }
        if is_newer(&newest, sstables.cells_largest) {
            return Ok(newest);
        }
        let held = self.look_up(connection, key, |cell| cell.to_owned())?;
        Ok(newer(newest, held))
    }

    fn get_from_sstable(
        &self,
        connection: &Connection,
        table: &BlockTable,
        key: &[u8],
    ) -> Result<Option<Cell>, StoreError> {
        self.look_at_block(connection, table, key, |block, _| {
            let mut entries = block::entries(block).skip_while(|(held, _)| *held < key);
            let cell = entries.next().filter(|(held, _)| *held == key).map(|(_, cell)| cell);
            cell.map(|cell| self.decoded(key, cell).map(Cell::to_owned)).transpose()
        })
        .map(Option::flatten)
    }

    /// What `look` says of the block of a table, and its number, that has a key if any has it.
    pub fn look_at_block<T>(
        &self,
        connection: &Connection,
        table: &BlockTable,
        key: &[u8],
        look: impl FnOnce(&[u8], i64) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let reading = |source| StoreError::reading(self.path(), source);
        let mut statement = connection.prepare_cached(&table.read_one).map_err(reading)?;
        statement.raw_bind_parameter(1, key).map_err(reading)?;
        let mut rows = statement.raw_query();
        let Some(row) = rows.next().map_err(reading)? else { return Ok(None) };
        let block = self.block(row)?;
        if sqlite::blob(row, sstable::FIRST).is_none_or(|first| first > key) {
            return Err(self.damaged(format!("the blocks around key x'{}' are out of order", hex(key))));
        }
        look(block, sqlite::integer(row, sstable::ID).unwrap_or_default()).map(Some)
    }

    /// The block of a row.
    fn block<'a>(&self, row: &'a Row<'_>) -> Result<&'a [u8], StoreError> {
        let first = sqlite::blob(row, sstable::FIRST).unwrap_or_default();
        let block = sqlite::blob(row, sstable::CELLS).unwrap_or_default();
        if is_stored(sqlite::integer(row, sstable::CHECKSUM), cell_checksum(first, block)) {
            return Ok(block);
        }
        Err(self.damaged(format!("the cells from key x'{}' on fail their checksum", hex(first))))
    }

    fn decoded<'a>(&self, key: &[u8], cell: &'a [u8]) -> Result<Cell<&'a [u8]>, StoreError> {
        Cell::decode(cell).map_err(|error| self.damaged(format!("under key x'{}': {error}", hex(key))))
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.path().to_owned(), what }
    }

    /// What `look` says of the cell that the large table has under a key.
    pub fn look_up<T>(
        &self,
        connection: &Connection,
        key: &[u8],
        look: impl FnOnce(Cell<&[u8]>) -> T,
    ) -> Result<Option<T>, StoreError> {
        let reading = |source| StoreError::reading(self.path(), source);
        let mut statement = connection.prepare_cached(READ_ONE).map_err(reading)?;
        statement.raw_bind_parameter(1, key).map_err(reading)?;
        let mut rows = statement.raw_query();
        match rows.next().map_err(reading)? {
            Some(row) => self.look_at(connection, row, |_, cell| look(cell)).map(Some),
            None => Ok(None),
        }
    }

    /// Shows `each` the cells from `start` on, up to but without `end`, in order, while it returns true.
    pub fn range(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        each: impl FnMut(&[u8], Cell<&[u8]>) -> bool,
    ) -> Result<(), StoreError> {
        let partition = end.and_then(|end| key::only_partition(start, end)).map(KeyHash::of);
        self.readers.read(|connection, sstables| {
            let may_have = |sstable: &SsTable| partition.is_none_or(|hash| sstable.filter.may_have(hash));
            let sstables = sstables.tables.iter().filter(|sstable| may_have(sstable));
            let sources = sstables.map(|sstable| Source::SsTable(sstable.slot)).chain([Source::Cells]);
            self.walk(connection, sources, start, end, each).map(|_| ())
        })
    }

    /// Shows `each` the newest cells that some sources have in a run of keys, in order, while it returns true. Returns
    /// how many cells the sources have for those it was pleased with.
    pub fn walk(
        &self,
        connection: &Connection,
        sources: impl IntoIterator<Item = Source>,
        start: &[u8],
        end: Option<&[u8]>,
        mut each: impl FnMut(&[u8], Cell<&[u8]>) -> bool,
    ) -> Result<u64, StoreError> {
        let reading = |source| StoreError::reading(self.path(), source);
        let mut statements = Vec::new();
        for source in sources {
            let (sql, end) = match source {
                Source::Cells => (if end.is_some() { READ_RUN } else { READ_REST }, end),
                Source::SsTable(slot) => (&BlockTable::of_slot(slot).read_from[..], None),
            };
            let mut statement = connection.prepare_cached(sql).map_err(reading)?;
            statement.raw_bind_parameter(1, start).map_err(reading)?;
            if let Some(end) = end {
                statement.raw_bind_parameter(2, end).map_err(reading)?;
            }
            statements.push((source, statement));
        }
        let mut cursors = Vec::with_capacity(statements.len());
        for (source, statement) in &mut statements {
            let mut cursor =
                Cursor { source: *source, rows: statement.raw_query(), key: Vec::new(), cell: 0..0 };
            while self.advance(&mut cursor)? {
                if cursor.key[..] >= *start {
                    cursors.push(cursor); // an sstable begins with the block that may have the start
                    break;
                }
            }
        }
        let (mut least, mut passed) = (Vec::new(), 0);
        while let Some(first) = (0..cursors.len()).min_by(|a, b| cursors[*a].key.cmp(&cursors[*b].key)) {
            if end.is_some_and(|end| cursors[first].key[..] >= *end) {
                break;
            }
            least.clone_from(&cursors[first].key);
            let newest = self.newest_of(connection, &cursors, &least, first)?;
            let go_on = self.look_at_cell(connection, &cursors[newest], &mut each)?;
            if !go_on {
                break;
            }
            let mut at = 0;
            while at < cursors.len() {
                let there = cursors[at].key == least;
                passed += u64::from(there);
                if !there || self.advance(&mut cursors[at])? {
                    at += 1;
                } else {
                    cursors.remove(at);
                }
            }
        }
        Ok(passed)
    }

    /// Which of the cursors that are at a key has the newest cell. `first`: one of them.
    fn newest_of(
        &self,
        connection: &Connection,
        cursors: &[Cursor<'_>],
        key: &[u8],
        first: usize,
    ) -> Result<usize, StoreError> {
        let mut there = (0..cursors.len()).filter(|at| cursors[*at].key == key);
        if there.clone().nth(1).is_none() {
            return Ok(first);
        }
        let held = |at: usize| self.look_at_cell(connection, &cursors[at], |_, cell| cell.to_owned());
        let mut newest = (first, held(first)?);
        there.try_for_each(|at| {
            let cell = held(at)?;
            if cell.order(&newest.1).is_gt() {
                newest = (at, cell);
            }
            Ok(())
        })?;
        Ok(newest.0)
    }

    /// Shows `look` the cell that a cursor is at.
    fn look_at_cell<T>(
        &self,
        connection: &Connection,
        cursor: &Cursor<'_>,
        look: impl FnOnce(&[u8], Cell<&[u8]>) -> T,
    ) -> Result<T, StoreError> {
        let row = cursor.rows.get().expect("a cursor is at a row until it is dropped");
        match cursor.source {
            Source::Cells => self.look_at(connection, row, look),
            Source::SsTable(_) => {
                let block = sqlite::blob(row, sstable::CELLS).unwrap_or_default();
                Ok(look(&cursor.key, self.decoded(&cursor.key, &block[cursor.cell.clone()])?))
            }
        }
    }

    /// Goes to the next cell. False if there is none.
    fn advance(&self, cursor: &mut Cursor<'_>) -> Result<bool, StoreError> {
        let Cursor { source, rows, key: before, cell } = cursor;
        let reading = |source| StoreError::reading(self.path(), source);
        let key = match source {
            Source::Cells => {
                let Some(row) = rows.next().map_err(reading)? else { return Ok(false) };
                sqlite::blob(row, 0).unwrap_or_default()
            }
            Source::SsTable(_) => {
                let block = rows.get().and_then(|row| sqlite::blob(row, sstable::CELLS)).unwrap_or_default();
                if cell.end == block.len() {
                    let Some(row) = rows.next().map_err(reading)? else { return Ok(false) };
                    self.block(row)?;
                    *cell = 0..0;
                }
                let block = rows.get().and_then(|row| sqlite::blob(row, sstable::CELLS)).unwrap_or_default();
                let Some(entry) = block::entry(block, cell.end) else {
                    return Err(self.damaged(format!("the cells after key x'{}' are no block", hex(before))));
                };
                *cell = entry.cell;
                &block[entry.key]
            }
        };
        if key <= &before[..] {
            // Pages have no checksum: one that was written to another's place is all right in itself.
            let (before, key) = (hex(before), hex(key));
            return Err(
                self.damaged(format!("the cells under keys x'{before}' and x'{key}' are out of order"))
            );
        }
        before.clear();
        before.extend_from_slice(key);
        Ok(true)
    }

    /// How large the file is.
    pub fn bytes(&self) -> i64 {
        self.readers.read(|connection, _| Ok(sqlite::database_bytes(connection))).unwrap_or(0)
    }

    /// Shows `look` the key and the cell of a row of `cells`.
    fn look_at<T>(
        &self,
        connection: &Connection,
        row: &Row<'_>,
        look: impl FnOnce(&[u8], Cell<&[u8]>) -> T,
    ) -> Result<T, StoreError> {
        let reading = |source| StoreError::reading(self.path(), source);
        let key = sqlite::blob(row, 0).unwrap_or_default();
        let shown = match sqlite::integer(row, 1) {
            None => checked(key, sqlite::blob(row, 1), sqlite::integer(row, 2)).map(|cell| look(key, cell)),
            Some(id) if is_stored(sqlite::integer(row, 2), id_checksum(key, id)) => {
                let mut statement = connection.prepare_cached(READ_LONG).map_err(reading)?;
                let mut rows = statement.query([id]).map_err(reading)?;
                let row = rows.next().map_err(reading)?;
                let cell = row.and_then(|row| checked(key, sqlite::blob(row, 0), sqlite::integer(row, 1)));
                cell.map(|cell| look(key, cell))
            }
            Some(_) => None,
        };
        shown.ok_or_else(|| self.damaged(format!("the cell under key x'{}' fails its checksum", hex(key))))
    }
}

fn newer(a: Option<Cell>, b: Option<Cell>) -> Option<Cell> {
    match (a, b) {
        (Some(a), Some(b)) => Some(merge(a, b)),
        (a, b) => a.or(b),
    }
}

fn checked<'a>(key: &[u8], cell: Option<&'a [u8]>, checksum: Option<i64>) -> Option<Cell<&'a [u8]>> {
    let cell = cell.filter(|cell| is_stored(checksum, cell_checksum(key, cell)))?;
    Cell::decode(cell).ok()
}

pub(super) fn id_checksum(key: &[u8], id: i64) -> u32 {
    cell_checksum(key, &id.to_be_bytes())
}

pub(super) fn cell_checksum(key: &[u8], cell: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u32).to_be_bytes());
    hasher.update(key);
    hasher.update(cell);
    hasher.finalize()
}

/// A checksum as rows have it. With a sign it takes four bytes, so that a cell may be overwritten where it is by one of
/// the same length; without, every other one takes six.
pub(super) fn stored(checksum: u32) -> i64 {
    i64::from(checksum.cast_signed())
}

/// True if that is the checksum of a row. Rows that were written by releases of formats 1 to 3 have it without a sign.
pub(super) fn is_stored(found: Option<i64>, checksum: u32) -> bool {
    found.is_some_and(|found| found == stored(checksum) || found == i64::from(checksum))
}

/// The first bytes of a key as people read them.
fn hex(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 64;
    let mut out: String = bytes.iter().take(SHOWN_MAX).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > SHOWN_MAX {
        out.push('…');
    }
    out
}
