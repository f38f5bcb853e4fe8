//! Sstables: memtables as they were flushed, each in a table of data.db of its own, until they are compacted: merged
//! into the one large table, `cells`.
//!
//! A memtable has a cell or two for each page of a large table. Written there at once each would bring its page with
//! it, twice, for the write-ahead log and for the file. In a table of its own it fills pages from first to last, and
//! several together have as many cells for a page as make it worth while.
//!
//! Readers look into `cells` and into every sstable whose filter does not say no, and merge what they find. Sstables
//! have no order among themselves: the stamps of their cells decide.
//!
//! A table is an sstable once it has its row in `sstables`, written in the transaction with its last cells. Rows
//! of one that has none are what a crash left of a flush, or what was compacted; whoever needs the table clears it.
//!
//! The table has a row for each block of cells (`block`).
//!
//! Not here: when they are written, compacted and cleared (`base_writer`, `flush`).

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rusqlite::{Connection, params};

use super::filter::Filter;
use super::sqlite::{self, OpenError};
use crate::cell::Stamp;

/// How many there can be: twice the most that may be compacted together (`compaction_sstables`), for as many are
/// flushed while that goes on.
pub(super) const SLOTS: usize = 24;

macro_rules! block_table {
    ($name:literal) => {
        // `first`: the first key of the block `cells`; `checksum`: of both.
        concat!(
            "CREATE TABLE ",
            $name,
            "(id INTEGER PRIMARY KEY, first BLOB NOT NULL UNIQUE, cells BLOB NOT NULL, checksum INTEGER NOT NULL)"
        )
    };
}

/// What format 3 of data.db added.
pub(super) const SCHEMA: &[&str] = &[
    "CREATE TABLE sstables(slot INTEGER PRIMARY KEY, cells INTEGER NOT NULL, bytes INTEGER NOT NULL, \
     largest_stamp INTEGER NOT NULL, filter BLOB NOT NULL, checksum INTEGER NOT NULL)",
    block_table!("sstable_0"),
    block_table!("sstable_1"),
    block_table!("sstable_2"),
    block_table!("sstable_3"),
    block_table!("sstable_4"),
    block_table!("sstable_5"),
    block_table!("sstable_6"),
    block_table!("sstable_7"),
    block_table!("sstable_8"),
    block_table!("sstable_9"),
    block_table!("sstable_10"),
    block_table!("sstable_11"),
];

/// What format 4 added to data.db: as many more.
pub(super) const MORE_SCHEMA: &[&str] = &[
    block_table!("sstable_12"),
    block_table!("sstable_13"),
    block_table!("sstable_14"),
    block_table!("sstable_15"),
    block_table!("sstable_16"),
    block_table!("sstable_17"),
    block_table!("sstable_18"),
    block_table!("sstable_19"),
    block_table!("sstable_20"),
    block_table!("sstable_21"),
    block_table!("sstable_22"),
    block_table!("sstable_23"),
];

/// The statements on the table of a slot.
pub(super) struct BlockTable {
    /// The block that has a key, if any has it.
    pub read_one: String,
    /// That one and all that follow.
    pub read_from: String,
    pub append: String,
    pub replace: String,
    pub delete: String,
    pub clear: String,
    pub any: String,
}

/// Columns of what is read of a block.
pub(super) const FIRST: usize = 0;
pub(super) const CELLS: usize = 1;
pub(super) const CHECKSUM: usize = 2;
pub(super) const ID: usize = 3;

impl BlockTable {
    pub fn of_slot(slot: usize) -> &'static BlockTable {
        static TABLES: LazyLock<[BlockTable; SLOTS]> =
            LazyLock::new(|| std::array::from_fn(|slot| BlockTable::new(&format!("sstable_{slot}"))));
        &TABLES[slot]
    }

    fn new(name: &str) -> BlockTable {
        let read = format!("SELECT first, cells, checksum, id FROM {name} WHERE");
        let last = "first <= ?1 ORDER BY first DESC LIMIT 1";
        BlockTable {
            read_one: format!("{read} {last}"),
            read_from: format!("{read} id >= coalesce((SELECT id FROM {name} WHERE {last}), 0) ORDER BY id"),
            append: format!("INSERT INTO {name}(first, cells, checksum) VALUES (?1, ?2, ?3)"),
            replace: format!("UPDATE {name} SET first = ?1, cells = ?2, checksum = ?3 WHERE id = ?4"),
            delete: format!("DELETE FROM {name} WHERE id = ?1"),
            clear: format!("DELETE FROM {name}"),
            any: format!("SELECT EXISTS(SELECT 1 FROM {name})"),
        }
    }
}

/// What is known of an sstable without looking into it.
pub(super) struct SsTable {
    /// Below [`SLOTS`]; no other has the same.
    pub slot: usize,
    /// How many cells it had when it was flushed.
    pub cells: u64,
    /// Bytes of their keys and cells.
    pub bytes: u64,
    /// No cell in it has a larger stamp.
    pub largest: Stamp,
    /// Has its keys, and their partitions.
    pub filter: Filter,
}

/// Those that are to be looked into beside `cells`.
#[derive(Clone)]
pub(super) struct SsTables {
    /// Those with larger stamps first.
    pub tables: Vec<Arc<SsTable>>,
    /// A cell of `cells` with a larger stamp is in one of them as well, or in memory.
    pub cells_largest: Stamp,
}

impl SsTable {
    pub fn table(&self) -> &'static BlockTable {
        BlockTable::of_slot(self.slot)
    }

    /// Makes its table an sstable, for whoever opens the file after this transaction.
    pub fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO sstables(slot, cells, bytes, largest_stamp, filter, checksum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let numbers = [self.slot as i64, self.cells as i64, self.bytes as i64, self.largest.0];
        let filter = self.filter.to_bytes();
        let [slot, cells, bytes, largest] = numbers;
        let row = params![slot, cells, bytes, largest, filter, checksum(numbers, &filter)];
        connection.prepare_cached(sql)?.execute(row).map(|_| ())
    }

    /// Makes its table none any more, from the end of this transaction on.
    pub fn delete(slot: usize, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM sstables WHERE slot = ?1")?.execute([slot as i64]).map(|_| ())
    }

    /// All of a file. One of a format before there were any has none.
    pub fn all(connection: &Connection, path: &Path) -> Result<Vec<Arc<SsTable>>, OpenError> {
        let using = |source| OpenError::using(path, source);
        let known = "SELECT EXISTS(SELECT 1 FROM sqlite_schema WHERE name = 'sstables')";
        if !connection.query_row(known, [], |row| row.get(0)).map_err(using)? {
            return Ok(Vec::new());
        }
        let sql = "SELECT slot, cells, bytes, largest_stamp, filter, checksum FROM sstables ORDER BY slot";
        let mut statement = connection.prepare(sql).map_err(using)?;
        let mut rows = statement.query([]).map_err(using)?;
        let mut tables = Vec::new();
        while let Some(row) = rows.next().map_err(using)? {
            let table =
                read(row).ok_or_else(|| OpenError::damaged(path, "a row of sstables fails its checksum"))?;
            tables.push(Arc::new(table));
        }
        Ok(tables)
    }
}

impl SsTables {
    /// Of a file with these.
    pub fn new(mut tables: Vec<Arc<SsTable>>, cells_largest: Stamp) -> SsTables {
        tables.sort_by_key(|table| std::cmp::Reverse(table.largest));
        SsTables { tables, cells_largest }
    }
}

fn read(row: &rusqlite::Row<'_>) -> Option<SsTable> {
    let mut numbers = [0; 4];
    for (column, number) in numbers.iter_mut().enumerate() {
        *number = sqlite::integer(row, column)?;
    }
    let filter = sqlite::blob(row, 4)?;
    if sqlite::integer(row, 5) != Some(checksum(numbers, filter)) {
        return None;
    }
    let [slot, cells, bytes, largest] = numbers;
    let slot = usize::try_from(slot).ok().filter(|slot| *slot < SLOTS)?;
    let filter = Filter::from_bytes(filter)?;
    Some(SsTable { slot, cells: cells as u64, bytes: bytes as u64, largest: Stamp(largest), filter })
}

fn checksum(numbers: [i64; 4], filter: &[u8]) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    numbers.iter().for_each(|number| hasher.update(&number.to_be_bytes()));
    hasher.update(filter);
    i64::from(hasher.finalize())
}
