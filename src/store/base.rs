//! data.db: the sorted cells that were flushed, and how they are read.
//!
//! A few read-only connections are used by whichever thread reads; the flusher has the one connection that writes. What
//! was written is seen once [`Base::forget_cells`] was called: until then it is in memory as well.
//! Each cell has a checksum over key and cell, so bytes that changed on the disk are reported and never served.
//!
//! Pages are small, for a flush writes whole ones for a few cells each, and a read copies one. In a table sorted by key
//! SQLite puts a row longer than a quarter of its page on a page of its own, of which the rest is wasted. A cell that would
//! be in such a row is kept in a table sorted by number instead, whose rows may fill their page; its row has the number.
//! Files of earlier releases keep their larger pages, and long cells where they are until they are written anew.
//!
//! Two promises are kept here for others:
//!   - [`Base::largest`] is at least the stamp of every cell in the file, and is so before the cell gets there. A cell
//!     with a larger stamp needs no look at the file.
//!   - What [`BaseWriter`] has committed is on the disk, whatever the configured durability: the log is forgotten
//!     because of it.
//!
//! Not here: which cells to write when (`flush`).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering as Atomic};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, Row};

use super::cell_cache::CellCache;
use super::disk::Disk;
use super::memtable::unpack;
use super::sqlite::{self, Format, OpenError, StoreError};
use crate::cell::{Cell, Stamp};
use crate::config::Config;

/// Its name in the data directory.
pub(super) const FILE: &str = "data.db";

const FORMAT: Format = Format {
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
    ],
};

/// At least the largest stamp in the file.
const LARGEST_STAMP: &str = "largest_stamp";
/// Every log row up to this sequence is in the file.
const FLUSHED_UPTO: &str = "flushed_upto";
/// 1 once log.db was created: from then on its absence is a loss.
const LOG_CREATED: &str = "log_created";

const READ_ONE: &str = "SELECT key, cell, checksum FROM cells WHERE key = ?1";
const READ_RUN: &str = "SELECT key, cell, checksum FROM cells WHERE key >= ?1 AND key < ?2 ORDER BY key";
const READ_REST: &str = "SELECT key, cell, checksum FROM cells WHERE key >= ?1 ORDER BY key";
const READ_LONG: &str = "SELECT cell, checksum FROM long_cells WHERE id = ?1"; // a join costs gets of short cells a third
const READ_ID: &str = "SELECT cell, checksum FROM cells WHERE key = ?1 AND typeof(cell) = 'integer'";
const PUT: &str = "REPLACE INTO cells(key, cell, checksum) VALUES (?1, ?2, ?3)";
const PUT_LONG: &str = "INSERT INTO long_cells(cell, checksum) VALUES (?1, ?2)";
const REPLACE_LONG: &str = "UPDATE long_cells SET cell = ?1, checksum = ?2 WHERE id = ?3";
const DELETE_LONG: &str = "DELETE FROM long_cells WHERE id = ?1";
const DELETE: &str = "DELETE FROM cells WHERE key = ?1";

/// How long a checkpoint waits for the reads that are under way. Most take microseconds; a page of a long walk some
/// milliseconds.
const LENT_MAX: Duration = Duration::from_millis(50);

/// The reading side.
pub(super) struct Base {
    path: PathBuf,
    disk: Disk,
    readers: Mutex<Readers>,
    /// Rung when a reader comes back.
    returned: Condvar,
    readers_max: usize,
    cache_bytes: usize,
    mmap_bytes: usize,
    largest: AtomicI64,
    cache: CellCache,
}

#[derive(Default)]
struct Readers {
    idle: Vec<Reader>,
    /// The states of those that are lent.
    lent: Vec<u64>,
    /// How many wait for one to come back.
    awaited: usize,
    /// How often all were to see the file anew.
    state: u64,
    /// No transaction is kept: somebody else may want the file for himself.
    keeps_none: bool,
}

/// A connection, and the read transaction it is in. To begin and to end one costs two locks of the file, more than to
/// look up a cell; so one is kept until a flush is done, or the file is checkpointed. Another program finds its locks: it can
/// read, but not cut the write-ahead log off.
struct Reader {
    connection: Connection,
    /// [`Readers::state`] when it was lent for the first read of it; `None`: it is in none.
    began: Option<u64>,
}

/// The writing side.
pub(super) struct BaseWriter {
    connection: Connection,
    base: Arc<Base>,
    /// Bytes written since the last checkpoint.
    unchecked_bytes: usize,
    /// Checkpoint when as many bytes were written.
    checkpoint_bytes: usize,
    flushed_upto: i64,
    /// Of the file's pages: an older file has larger ones.
    page_bytes: usize,
    /// The most bytes of a key and its cell that fit a row within its page.
    short_bytes_max: usize,
    /// Some cell may lie in long_cells.
    has_long: bool,
}

/// Opens or creates data.db.
pub(super) fn open(dir: &Path, config: &Config, disk: &Disk) -> Result<BaseWriter, OpenError> {
    let path = dir.join(FILE);
    let (connection, _) = sqlite::open_to_write(disk, &path, &FORMAT, "FULL", config.base_cache_bytes, true)?;
    let largest = sqlite::meta(&connection, &path, LARGEST_STAMP)?.unwrap_or(i64::MIN);
    let flushed_upto = sqlite::meta(&connection, &path, FLUSHED_UPTO)?.unwrap_or(0);
    sqlite::settle(&connection, disk, &path)?;
    let page_bytes = sqlite::page_bytes(&connection).map_err(|source| OpenError::using(&path, source))?;
    let has_long = connection.query_row("SELECT EXISTS(SELECT 1 FROM long_cells)", [], |row| row.get(0));
    let has_long = has_long.map_err(|source| OpenError::using(&path, source))?;
    let base = Arc::new(Base::new(path, disk.clone(), config, largest));
    Ok(BaseWriter {
        connection,
        base,
        unchecked_bytes: 0,
        checkpoint_bytes: config.wal_autocheckpoint_pages * page_bytes,
        flushed_upto,
        page_bytes,
        short_bytes_max: short_bytes_max(page_bytes),
        has_long,
    })
}

impl Base {
    fn new(path: PathBuf, disk: Disk, config: &Config, largest: i64) -> Base {
        Base {
            path,
            disk,
            readers: Mutex::default(),
            returned: Condvar::new(),
            readers_max: config.worker_threads + 2, // the log's writer; whoever inspects or collects
            cache_bytes: config.base_cache_bytes,
            mmap_bytes: config.base_mmap_bytes,
            largest: AtomicI64::new(largest),
            cache: CellCache::new(config.cell_cache_bytes),
        }
    }

    /// Opens a file nobody writes, and says up to which log row it holds everything.
    pub fn open_to_read(dir: &Path, config: &Config, disk: &Disk) -> Result<(Base, i64), OpenError> {
        let path = dir.join(FILE);
        let connection =
            sqlite::open_to_read(disk, &path, &FORMAT, config.base_cache_bytes, config.base_mmap_bytes)?;
        let largest = sqlite::meta(&connection, &path, LARGEST_STAMP)?.unwrap_or(i64::MIN);
        let flushed_upto = sqlite::meta(&connection, &path, FLUSHED_UPTO)?.unwrap_or(0);
        drop(connection);
        let base = Base::new(path, disk.clone(), config, largest);
        base.keep_none(); // a server may be started meanwhile
        Ok((base, flushed_upto))
    }

    /// No cell in the file has a larger stamp. The smallest of all stamps if the file has no cells.
    pub fn largest(&self) -> Stamp {
        Stamp(self.largest.load(Atomic::Acquire))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cell under a key, as it was at some moment since [`Base::forget_cells`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Cell>, StoreError> {
        if let Some(known) = self.cache.get(key) {
            return Ok(known);
        }
        let generation = self.cache.generation();
        let cell = self.get_from_file(key)?;
        self.cache.keep(key, generation, &cell);
        Ok(cell)
    }

    /// From now on nobody is shown a cell as it was before. To be called once the file was changed, and before what was
    /// written to it is dropped from memory.
    pub fn forget_cells(&self) {
        self.lock_readers().state += 1; // first: what is kept as of now is read as of now
        self.cache.forget();
    }

    /// The cells kept in memory.
    pub fn cache(&self) -> &CellCache {
        &self.cache
    }

    fn get_from_file(&self, key: &[u8]) -> Result<Option<Cell>, StoreError> {
        self.with_reader(|connection| self.look_up(connection, key, |cell| cell.to_owned()))
    }

    /// What `look` says of the cell under a key.
    fn look_up<T>(
        &self,
        connection: &Connection,
        key: &[u8],
        look: impl FnOnce(Cell<&[u8]>) -> T,
    ) -> Result<Option<T>, StoreError> {
        let reading = |source| StoreError::reading(&self.path, source);
        let mut statement = connection.prepare_cached(READ_ONE).map_err(reading)?;
        statement.raw_bind_parameter(1, key).map_err(reading)?;
        let mut rows = statement.raw_query();
        match rows.next().map_err(reading)? {
            Some(row) => self.show(connection, row, |_, cell| look(cell)).map(Some),
            None => Ok(None),
        }
    }

    /// Shows `each` the cells from `start` on, up to but without `end`, in order, while it returns true.
    pub fn range(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        mut each: impl FnMut(&[u8], Cell<&[u8]>) -> bool,
    ) -> Result<(), StoreError> {
        self.with_reader(|connection| {
            let reading = |source| StoreError::reading(&self.path, source);
            let sql = if end.is_some() { READ_RUN } else { READ_REST };
            let mut statement = connection.prepare_cached(sql).map_err(reading)?;
            statement.raw_bind_parameter(1, start).map_err(reading)?;
            if let Some(end) = end {
                statement.raw_bind_parameter(2, end).map_err(reading)?;
            }
            let mut rows = statement.raw_query();
            let mut previous = Vec::new();
            while let Some(row) = rows.next().map_err(reading)? {
                let go_on = self.show(connection, row, |key, cell| {
                    if key <= &previous[..] {
                        // Pages have no checksum: one that was written to another's place is all right in itself.
                        let (before, key) = (hex(&previous), hex(key));
                        let what = format!("the cells under keys x'{before}' and x'{key}' are out of order");
                        return Err(StoreError::Damaged { path: self.path.clone(), what });
                    }
                    previous.clear();
                    previous.extend_from_slice(key);
                    Ok(each(key, cell))
                })??;
                if !go_on {
                    break;
                }
            }
            Ok(())
        })
    }

    /// How large the file is.
    pub fn bytes(&self) -> i64 {
        self.with_reader(|connection| Ok(sqlite::database_bytes(connection))).unwrap_or(0)
    }

    /// Shows `look` the key and the cell of a row of `cells`.
    fn show<T>(
        &self,
        connection: &Connection,
        row: &Row<'_>,
        look: impl FnOnce(&[u8], Cell<&[u8]>) -> T,
    ) -> Result<T, StoreError> {
        let reading = |source| StoreError::reading(&self.path, source);
        let key = sqlite::blob(row, 0).unwrap_or_default();
        let shown = match sqlite::integer(row, 1) {
            None => checked(key, sqlite::blob(row, 1), sqlite::integer(row, 2)).map(|cell| look(key, cell)),
            Some(id) if sqlite::integer(row, 2) == Some(id_checksum(key, id)) => {
                let mut statement = connection.prepare_cached(READ_LONG).map_err(reading)?;
                let mut rows = statement.query([id]).map_err(reading)?;
                let row = rows.next().map_err(reading)?;
                let cell = row.and_then(|row| checked(key, sqlite::blob(row, 0), sqlite::integer(row, 1)));
                cell.map(|cell| look(key, cell))
            }
            Some(_) => None,
        };
        shown.ok_or_else(|| {
            let what = format!("the cell under key x'{}' fails its checksum", hex(key));
            StoreError::Damaged { path: self.path.clone(), what }
        })
    }

    /// Lends a connection in a transaction that began since [`Base::forget_cells`]; waits for one if all are lent. Reads
    /// are short.
    fn with_reader<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (idle, state) = self.borrow();
        let (reader, result) = match self.begin(idle, state) {
            Ok(reader) => {
                let result = read(&reader.connection);
                (Some(reader), result)
            }
            Err(error) => (None, Err(error)),
        };
        self.give_back(reader, state, result.is_ok());
        result
    }

    /// The right to use a connection, perhaps one that is open, and the state of the file that it has to show.
    fn borrow(&self) -> (Option<Reader>, u64) {
        let mut readers = self.lock_readers();
        while readers.lent.len() == self.readers_max {
            readers.awaited += 1;
            readers = self.returned.wait(readers).expect("no panic while it is held");
            readers.awaited -= 1;
        }
        let state = readers.state;
        readers.lent.push(state);
        (readers.idle.pop(), state)
    }

    /// A connection in a transaction that began in that state: the idle one, if it is or can be, or a new one.
    fn begin(&self, idle: Option<Reader>, state: u64) -> Result<Reader, StoreError> {
        let usable = idle.and_then(|mut reader| {
            let usable = reader.began == Some(state) || reader.end();
            usable.then_some(reader)
        });
        let mut reader = usable.map_or_else(|| self.open_reader(), Ok)?;
        reader.begin(state).map_err(|source| StoreError::reading(&self.path, source))?;
        Ok(reader)
    }

    /// `well`: it was read with no error.
    fn give_back(&self, reader: Option<Reader>, state: u64, well: bool) {
        let mut readers = self.lock_readers();
        let at = readers.lent.iter().position(|lent| *lent == state).expect("it was lent");
        readers.lent.swap_remove(at);
        let keep = well && state == readers.state && !readers.keeps_none;
        readers.idle.extend(reader.and_then(|mut reader| (keep || reader.end()).then_some(reader)));
        if readers.awaited > 0 {
            self.returned.notify_all();
        }
    }

    fn open_reader(&self) -> Result<Reader, StoreError> {
        match sqlite::open_to_read(&self.disk, &self.path, &FORMAT, self.cache_bytes, self.mmap_bytes) {
            Ok(connection) => Ok(Reader { connection, began: None }),
            Err(OpenError::Unusable { path, source }) => Err(StoreError::Unreadable { path, source }),
            Err(damaged) => Err(StoreError::Damaged { path: self.path.clone(), what: damaged.to_string() }),
        }
    }

    /// Ends the transactions that are kept, and waits a moment for those of reads under way: a write-ahead log is
    /// copied into the file only as far as no reader needs what is there, and begins anew only when none reads it.
    fn let_go(&self) {
        let mut readers = self.lock_readers();
        readers.state += 1; // so that those that are lent end theirs
        readers.idle.retain_mut(Reader::end);
        readers.awaited += 1;
        let earlier = |readers: &mut Readers| readers.lent.iter().any(|lent| *lent < readers.state);
        let waited = self.returned.wait_timeout_while(readers, LENT_MAX, earlier);
        waited.expect("no panic while it is held").0.awaited -= 1;
    }

    fn keep_none(&self) {
        self.lock_readers().keeps_none = true;
    }

    fn lock_readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().expect("no panic while it is held")
    }
}

impl Reader {
    /// Begins a transaction, unless it is in one.
    fn begin(&mut self, state: u64) -> rusqlite::Result<()> {
        if self.began.is_none() {
            sqlite::run(&self.connection, "BEGIN")?; // what it shows is settled when it first reads
            self.began = Some(state);
        }
        Ok(())
    }

    /// Ends its transaction. False if that failed, after which it is not to be used.
    fn end(&mut self) -> bool {
        self.began = None;
        sqlite::roll_back(&self.connection)
    }
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
        Ok(sqlite::meta(&self.connection, &self.base.path, LOG_CREATED)?.is_some())
    }

    /// Remembers for good that log.db exists.
    pub fn note_log_created(&self) -> Result<(), OpenError> {
        sqlite::set_meta(&self.connection, LOG_CREATED, 1)
            .map_err(|source| OpenError::using(&self.base.path, source))
    }

    /// Every number that is remembered, by name.
    pub fn numbers(&self) -> Result<BTreeMap<String, i64>, OpenError> {
        sqlite::all_meta(&self.connection, &self.base.path)
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
        write().map_err(|source| self.failed(source))?;
        self.unchecked_bytes += self.page_bytes;
        Ok(())
    }

    /// Drops cells, in one transaction.
    pub fn drop_cells(&mut self, keys: &[Vec<u8>]) -> Result<(), StoreError> {
        let write = || -> rusqlite::Result<usize> {
            let mut bytes = 0;
            sqlite::run(&self.connection, "BEGIN IMMEDIATE")?;
            for key in keys {
                bytes += self.page_bytes / 8 + self.delete_long(key)?;
                self.connection.prepare_cached(DELETE)?.execute([&key[..]])?;
            }
            sqlite::run(&self.connection, "COMMIT")?;
            Ok(bytes)
        };
        let bytes = write().map_err(|source| self.failed(source))?;
        self.base.forget_cells();
        self.unchecked_bytes += bytes;
        Ok(())
    }

    /// Gives so many free pages back to the file system, if there are many, in one transaction. True if there may be more. A file that was made
    /// before pages could be given back only uses them again.
    pub fn give_back(&mut self, pages: usize, free_min: usize) -> Result<bool, StoreError> {
        let reading = |source| StoreError::reading(&self.base.path, source);
        let number = |name: &str| {
            self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(reading)
        };
        let free = number("freelist_count")?;
        if free < free_min as i64 || number("auto_vacuum")? == 0 {
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
        let freed = free - number("freelist_count")?;
        self.unchecked_bytes += freed.max(0) as usize * self.page_bytes;
        Ok(freed > 0)
    }

    /// Copies the write-ahead log into the file, which then takes no more space than it needs.
    pub fn checkpoint_now(&mut self) -> Result<bool, StoreError> {
        self.unchecked_bytes = self.checkpoint_bytes;
        self.checkpoint_if_due()
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        sqlite::roll_back(&self.connection);
        StoreError::reading(&self.base.path, source)
    }

    /// Writes cells, in key order, in one transaction, each merged with what the file holds. `largest` is at least
    /// the largest stamp of all the cells of this flush, `known` what [`Base::largest`] was before it; `done`: with
    /// these cells every log row up to that sequence is in the file. An error: nothing of this was written.
    pub fn write<'a>(
        &mut self,
        cells: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        largest: Stamp,
        known: Stamp,
        done: Option<i64>,
    ) -> Result<(), StoreError> {
        // Before the cells are there for anybody to read.
        self.base.largest.fetch_max(largest.0, Atomic::AcqRel);
        let written = self.write_transaction(cells, known, done);
        match written {
            Ok(bytes) => {
                self.unchecked_bytes += bytes;
                self.flushed_upto = done.unwrap_or(self.flushed_upto);
                Ok(())
            }
            Err(error) => {
                sqlite::roll_back(&self.connection);
                Err(error)
            }
        }
    }

    fn write_transaction<'a>(
        &mut self,
        cells: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        known: Stamp,
        done: Option<i64>,
    ) -> Result<usize, StoreError> {
        let path = self.base.path.clone();
        let reading = |source| StoreError::reading(&path, source);
        let mut bytes = 0;
        sqlite::run(&self.connection, "BEGIN IMMEDIATE").map_err(reading)?;
        for (key, cell) in cells {
            let newest = unpack(cell);
            if newest.stamp <= known && self.holds_as_new(key, &newest)? {
                continue;
            }
            bytes += self.put(key, cell).map_err(reading)?;
        }
        sqlite::set_meta(&self.connection, LARGEST_STAMP, self.base.largest().0).map_err(reading)?;
        if let Some(upto) = done {
            sqlite::set_meta(&self.connection, FLUSHED_UPTO, upto).map_err(reading)?;
        }
        sqlite::run(&self.connection, "COMMIT").map_err(reading)?;
        Ok(bytes)
    }

    /// True if the file has that cell under the key, or one that wins against it.
    fn holds_as_new(&self, key: &[u8], newest: &Cell<&[u8]>) -> Result<bool, StoreError> {
        let wins = |held: Cell<&[u8]>| held.order(newest) != Ordering::Less;
        Ok(self.base.look_up(&self.connection, key, wins)?.unwrap_or(false))
    }

    /// Writes a cell in the place of what the file has under its key. Returns about how many bytes of pages that changes.
    fn put(&mut self, key: &[u8], cell: &[u8]) -> rusqlite::Result<usize> {
        let checksum = cell_checksum(key, cell);
        // Scattered keys touch a page each.
        let bytes = self.page_bytes + key.len() + cell.len();
        if !self.is_long(key, cell) {
            let freed = self.delete_long(key)?;
            self.connection.prepare_cached(PUT)?.execute((key, cell, checksum))?;
            return Ok(bytes + freed);
        }
        let replaced = match self.long_id(key)? {
            Some(id) => self.connection.prepare_cached(REPLACE_LONG)?.execute((cell, checksum, id))? == 1,
            None => false,
        };
        if !replaced {
            self.has_long = true;
            self.connection.prepare_cached(PUT_LONG)?.execute((cell, checksum))?;
            let id = self.connection.last_insert_rowid();
            self.connection.prepare_cached(PUT)?.execute((key, id, id_checksum(key, id)))?;
        }
        Ok(bytes)
    }

    /// True if a row with that cell is too long for its page, and one with a number instead is not.
    fn is_long(&self, key: &[u8], cell: &[u8]) -> bool {
        const ID_BYTES: usize = 8;
        let fits = |bytes| key.len() + bytes <= self.short_bytes_max;
        !fits(cell.len()) && fits(ID_BYTES)
    }

    /// Where in long_cells the cell under a key lies, if it does. A number that fails its checksum is another's, or nobody's.
    fn long_id(&self, key: &[u8]) -> rusqlite::Result<Option<i64>> {
        if !self.has_long {
            return Ok(None);
        }
        let mut statement = self.connection.prepare_cached(READ_ID)?;
        let mut rows = statement.query([key])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let id = sqlite::integer(row, 0);
        Ok(id.filter(|id| sqlite::integer(row, 1) == Some(id_checksum(key, *id))))
    }

    /// Drops what long_cells has under a key. Returns about how many bytes of pages that changes.
    fn delete_long(&self, key: &[u8]) -> rusqlite::Result<usize> {
        let Some(id) = self.long_id(key)? else { return Ok(0) };
        self.connection.prepare_cached(DELETE_LONG)?.execute([id])?;
        Ok(3 * self.page_bytes) // with its neighbours, the list of free pages and their map
    }

    /// Copies the write-ahead log into the file if it has grown long enough. True if it did.
    pub fn checkpoint_if_due(&mut self) -> Result<bool, StoreError> {
        if self.unchecked_bytes < self.checkpoint_bytes {
            return Ok(false);
        }
        self.base.let_go();
        sqlite::checkpoint(&self.connection, "PASSIVE")
            .map_err(|source| StoreError::reading(&self.base.path, source))?;
        self.base.let_go(); // of the log as it was, so that it can begin anew
        self.unchecked_bytes = 0;
        Ok(true)
    }

    /// Copies the write-ahead log into the file before it is closed, so that the file alone is complete.
    pub fn checkpoint_to_close(&self) -> rusqlite::Result<()> {
        self.base.keep_none();
        self.base.let_go();
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

fn checked<'a>(key: &[u8], cell: Option<&'a [u8]>, checksum: Option<i64>) -> Option<Cell<&'a [u8]>> {
    let cell = cell.filter(|cell| checksum == Some(cell_checksum(key, cell)))?;
    Cell::decode(cell).ok()
}

fn id_checksum(key: &[u8], id: i64) -> i64 {
    cell_checksum(key, &id.to_be_bytes())
}

fn cell_checksum(key: &[u8], cell: &[u8]) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u32).to_be_bytes());
    hasher.update(key);
    hasher.update(cell);
    i64::from(hasher.finalize())
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
