//! log.db: every mutation this server acknowledged and has not yet flushed, and the hints it keeps for others.
//!
//! One row per cell, in real columns, so that any SQLite tool can look into the log while the server runs (the view
//! `log_readable` is for people). Rows of one mutation are consecutive and in one transaction.
//!
//! What must always be true, and how a start finds out that it is not:
//!   - Sequences have no gap: a number is used up only when its transaction commits. A gap is a lost row.
//!   - Every row has a checksum over all of it, its sequence included. A row that fails it was changed on the disk.
//!   - `written_upto` (set before each checkpoint) is at most the last sequence. If rows end before it, the end is
//!     lost; rows after it are in the write-ahead log, whose frames SQLite checks itself.
//!   - The last hint's sequence is the larger of `hinted_upto`, which is set when hints are forgotten, and of those in
//!     the table.
//!   - `flushed_upto` is at most what data.db says it holds. Rows up to it are forgotten, some with each few commits,
//!     and by themselves once nobody writes.
//!
//! A torn end of the write-ahead log is no damage: SQLite drops a transaction that was not committed.
//!
//! Not here: when to commit (`writer`), how the log is read back and checked (`replay`).

use std::path::{Path, PathBuf};

use rusqlite::{CachedStatement, Connection};

use super::disk::Disk;
use super::hint_log::{self, HintChange};
use super::mark::Reached;
use super::memtable::{Memory, Memtable};
use super::queue::Request;
use super::replay::{Replay, check_end, row_checksum};
use super::sqlite::{self, Checkpoints, Fault, Format, OpenError};
use crate::cell::{Cell, Content};
use crate::config::{Config, Durability};
use crate::mutation::Mutation;

/// Its name in the data directory.
pub(super) const FILE: &str = "log.db";

pub(super) const FORMAT: Format = Format {
    application_id: 0x5443_4c67, // "TCLg"
    page_bytes: 4096,            // the smallest commit writes one page
    gives_back: false,           // rows come and go all the time: pages are used again
    schema: &[
        &[
            sqlite::META,
            "CREATE TABLE log(sequence INTEGER PRIMARY KEY, tbl INTEGER NOT NULL, partition BLOB NOT NULL, \
         \"column\" BLOB NOT NULL, stamp INTEGER NOT NULL, kind INTEGER NOT NULL, value BLOB, expires INTEGER, \
         checksum INTEGER NOT NULL)",
            hint_log::SCHEMA,
            "CREATE VIEW log_readable AS SELECT sequence, tbl, CAST(partition AS TEXT) AS partition, \
         hex(partition) AS partition_hex, CAST(\"column\" AS TEXT) AS \"column\", \
         strftime('%Y-%m-%dT%H:%M:%S', stamp / 1000000, 'unixepoch') || printf('.%06dZ', stamp % 1000000) AS stamp, \
         CASE kind WHEN 1 THEN 'value' WHEN 2 THEN 'expiring' WHEN 3 THEN 'tombstone' END AS kind, \
         CAST(value AS TEXT) AS value, strftime('%Y-%m-%dT%H:%M:%SZ', expires, 'unixepoch') AS expires FROM log",
        ],
        hint_log::SORTED_BY_SEQUENCE,
    ],
};

/// Rows up to this sequence are in data.db.
pub(super) const FLUSHED_UPTO: &str = "flushed_upto";
/// Rows up to this sequence were once written.
pub(super) const WRITTEN_UPTO: &str = "written_upto";

/// Hints up to this sequence were once written, and all that are in the table. Written whenever some are forgotten, for
/// then the table alone does not tell.
pub(super) const HINTED_UPTO: &str = "hinted_upto";

/// SQLite's page cache for the log: enough for the pages of one transaction; a larger one spills.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Rows of one INSERT: as many as still fit, largest first.
const INSERT_ROWS: [usize; 3] = [32, 8, 1];
const ROW_COLUMNS: usize = 9;

/// Rows forgotten for each that is written, so that forgetting keeps ahead of writing.
const FORGOTTEN_PER_ROW: usize = 2;
/// Also forget one row per 64 bytes written, so that the file does not grow when a few long rows follow many short
/// ones.
const BYTES_PER_FORGOTTEN: usize = 64;
/// The fewest rows forgotten together: with fewer the same page would be written again and again until it is empty.
const FORGOTTEN_TOGETHER: i64 = 128;
/// The most rows forgotten with a commit of few rows, however long they are; what is left waits for the next.
const FORGOTTEN_MAX: usize = 4096;
/// Rows forgotten in a transaction of their own, when there is nothing else to do.
const FORGOTTEN_IDLE: i64 = 1024;

/// The writing side.
pub(super) struct CommitLog {
    connection: Connection,
    path: PathBuf,
    /// The format of the file until it is settled.
    format: usize,
    /// The sequence of the next row.
    next: i64,
    /// Rows before this one are deleted.
    first: i64,
    /// Rows up to this one are flushed, and the file says so.
    flushed_upto: i64,
    /// How many flushed rows may be forgotten in return for what was written since the last were.
    forgettable: i64,
    next_hint: i64,
    checkpoints: Checkpoints,
    /// The next transaction notes the end of the log, and is followed by a checkpoint.
    checkpoint_due: bool,
    insert_sql: [String; 3],
}

/// What a transaction left behind.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// What became of hints, in order.
    pub hints: Vec<HintChange>,
}

/// A transaction that failed.
#[derive(Debug)]
pub(super) struct CommitFailed {
    pub source: rusqlite::Error,
    /// What to think of the file from now on.
    pub fault: Fault,
    /// The failure came while committing: the rows may be there after a restart.
    pub outcome_unknown: bool,
}

/// One cell on its way into the log.
struct LogRow<'a> {
    mutation: &'a Mutation,
    column: &'a [u8],
    cell: &'a Cell,
}

impl CommitLog {
    /// Opens or creates log.db. Not `may_create`: it must be there.
    pub fn open(dir: &Path, config: &Config, disk: &Disk, may_create: bool) -> Result<CommitLog, OpenError> {
        let path = dir.join(FILE);
        let synchronous = match config.durability {
            Durability::PowerLoss => "FULL",
            Durability::ProcessCrash => "NORMAL",
        };
        let (mut connection, format) =
            sqlite::open_to_write(disk, &path, &FORMAT, synchronous, CACHE_BYTES, may_create)?;
        let flushed_upto = sqlite::meta(&connection, &path, FLUSHED_UPTO)?.unwrap_or(0);
        let hinted_upto = sqlite::meta(&connection, &path, HINTED_UPTO)?.unwrap_or(0);
        let checkpoints = Checkpoints::every(config.wal_autocheckpoint_pages, &mut connection)
            .map_err(|source| OpenError::using(&path, source))?;
        Ok(CommitLog {
            connection,
            path,
            format,
            next: flushed_upto + 1,
            first: flushed_upto + 1,
            flushed_upto,
            forgettable: 0,
            next_hint: hinted_upto + 1,
            checkpoints,
            checkpoint_due: false,
            insert_sql: INSERT_ROWS.map(insert_sql),
        })
    }

    /// Replays what data.db, which holds the rows up to `held_upto`, does not have, and gets ready to write. Returns
    /// the cells and how many rows were read. Whenever they fill `window_bytes`, `flush` writes them to
    /// data.db, up to the given sequence.
    pub fn recover(
        &mut self,
        held_upto: i64,
        window_bytes: usize,
        progress: &mut impl FnMut(u64),
        mut flush: impl FnMut(Memtable, i64) -> Result<(), OpenError>,
    ) -> Result<(Memory, u64), OpenError> {
        let mut replay = Replay::new(self.flushed_upto, held_upto);
        let rest = loop {
            let window = replay.window(&self.connection, &self.path, window_bytes, progress)?;
            let table = Memtable::from_unsorted(window.cells);
            if window.last {
                break Memory::new(table, window.bytes);
            }
            flush(table, replay.upto)?;
            sqlite::set_meta(&self.connection, FLUSHED_UPTO, replay.upto).map_err(self.using())?;
            self.flushed_upto = replay.upto;
        };
        check_end(&self.connection, &self.path, replay.upto)?;
        self.next = replay.upto + 1;
        self.first = self.first_row().map_err(self.using())?.unwrap_or(self.next);
        Ok((rest, replay.rows))
    }

    /// Continues after what data.db has, if the log ends before it: a power cut took the log's end, not the base's.
    pub fn skip_to(&mut self, flushed_upto: i64) -> Result<(), OpenError> {
        assert!(flushed_upto >= self.next, "only what the log does not have is skipped");
        sqlite::set_meta(&self.connection, FLUSHED_UPTO, flushed_upto).map_err(self.using())?;
        self.flushed_upto = flushed_upto;
        self.next = flushed_upto + 1;
        Ok(())
    }

    /// Makes the file one of the latest format, and ends the write-ahead log before anything new is written; but not
    /// before every check for damage has passed.
    pub fn settle(&mut self, disk: &Disk) -> Result<(), OpenError> {
        sqlite::upgrade(&self.connection, &self.path, &FORMAT, self.format)?;
        sqlite::set_meta(&self.connection, WRITTEN_UPTO, self.next - 1).map_err(self.using())?;
        sqlite::settle(&self.connection, disk, &self.path)
    }

    /// Hints up to this sequence are in the table. The number in the file is as old as the last forgetting.
    pub fn note_hints(&mut self, upto: i64) {
        self.next_hint = self.next_hint.max(upto + 1);
    }

    /// How far it has come.
    pub fn reached(&self) -> Reached {
        Reached { row: self.last(), hint: self.next_hint - 1 }
    }

    /// The sequence of the last row.
    pub fn last(&self) -> i64 {
        self.next - 1
    }

    /// Rows up to this sequence are flushed, and the file says so.
    pub fn flushed_upto(&self) -> i64 {
        self.flushed_upto
    }

    /// The sequence of the first row in the file, flushed ones that wait to be forgotten included.
    pub fn first(&self) -> i64 {
        self.first
    }

    /// True if flushed rows wait to be forgotten.
    pub fn has_flushed_rows(&self) -> bool {
        self.first <= self.flushed_upto
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection, for reading hints at the start.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Stores a batch in one transaction. Rows up to `flushed_upto` are in data.db; some are forgotten on the way.
    pub fn commit(&mut self, batch: &[Request], flushed_upto: i64) -> Result<Committed, CommitFailed> {
        assert!(flushed_upto < self.next, "only what was logged can be flushed");
        let (next, first, next_hint) = (self.next, self.first, self.next_hint);
        let (marked, forgettable) = (self.flushed_upto, self.forgettable);
        let written = self.write(batch, flushed_upto);
        let failed = match written {
            Ok(committed) => match sqlite::run(&self.connection, "COMMIT") {
                Ok(()) => return Ok(committed),
                Err(source) => {
                    let fault = sqlite::fault(&source);
                    // Without space, or with a lock in the way, the frame that commits was not written.
                    let outcome_unknown = !matches!(fault, Fault::Full | Fault::Busy);
                    CommitFailed { fault, outcome_unknown, source }
                }
            },
            Err(source) => CommitFailed { fault: sqlite::fault(&source), outcome_unknown: false, source },
        };
        (self.next, self.first, self.next_hint) = (next, first, next_hint);
        (self.flushed_upto, self.forgettable) = (marked, forgettable);
        if sqlite::roll_back(&self.connection) {
            Err(failed)
        } else {
            Err(CommitFailed { fault: Fault::Other, ..failed })
        }
    }

    /// Copies the write-ahead log into the database if it had grown long enough before the last commit. True if it did.
    pub fn checkpoint_if_due(&mut self) -> rusqlite::Result<bool> {
        let due = std::mem::take(&mut self.checkpoint_due);
        if due {
            sqlite::checkpoint(&self.connection, "PASSIVE")?;
        } else {
            self.checkpoint_due = self.checkpoints.are_due();
        }
        Ok(due)
    }

    /// Notes the end of the log and copies the write-ahead log into the database, so that the file alone is complete.
    pub fn checkpoint_to_close(&self) -> rusqlite::Result<()> {
        sqlite::set_meta(&self.connection, WRITTEN_UPTO, self.last())?;
        sqlite::checkpoint(&self.connection, "TRUNCATE")
    }

    /// Tries whether the file takes a transaction that makes it grow, and leaves no trace of it.
    pub fn probe(&self) -> rusqlite::Result<()> {
        let probe = "BEGIN IMMEDIATE; \
             INSERT INTO hints(target, sequence, created_s, mutation, checksum) VALUES (-1, 0, 0, zeroblob(65536), 0); \
             DELETE FROM hints WHERE target = -1;";
        let probed = self
            .connection
            .execute_batch(probe)
            .and_then(|()| sqlite::set_meta(&self.connection, WRITTEN_UPTO, self.last()))
            .and_then(|()| sqlite::run(&self.connection, "COMMIT"));
        if probed.is_err() {
            sqlite::roll_back(&self.connection);
        }
        probed
    }

    fn write(&mut self, batch: &[Request], flushed_upto: i64) -> rusqlite::Result<Committed> {
        let mut committed = Committed::default();
        sqlite::run(&self.connection, "BEGIN IMMEDIATE")?;
        let first_new = self.next;
        let bytes = self.write_mutations(batch)? + self.write_hints(batch, &mut committed)?;
        self.note_flushed(flushed_upto)?;
        if batch.is_empty() {
            self.forget(FORGOTTEN_IDLE)?;
        } else {
            let rows = (self.next - first_new) as usize;
            self.forget_with(rows.max(batch.len()), bytes)?;
        }
        if self.checkpoint_due {
            sqlite::set_meta(&self.connection, WRITTEN_UPTO, self.last())?;
        }
        Ok(committed)
    }

    /// Returns about how many bytes that takes in the file.
    fn write_mutations(&mut self, batch: &[Request]) -> rusqlite::Result<usize> {
        let mutations = batch.iter().filter_map(|request| match request {
            Request::Apply { mutation, .. } => Some(&**mutation),
            _ => None,
        });
        let rows: Vec<LogRow> = mutations.flat_map(log_rows).collect();
        let bytes = rows.iter().map(LogRow::bytes).sum();
        let mut rest = &rows[..];
        for (rows_each, sql) in INSERT_ROWS.into_iter().zip(&self.insert_sql) {
            if rest.len() < rows_each {
                continue;
            }
            let mut statement = self.connection.prepare_cached(sql)?;
            while rest.len() >= rows_each {
                let (now, later) = rest.split_at(rows_each);
                for (index, row) in now.iter().enumerate() {
                    row.bind(&mut statement, index, self.next + index as i64)?;
                }
                statement.raw_execute()?;
                self.next += rows_each as i64;
                rest = later;
            }
        }
        Ok(bytes)
    }

    /// Returns about how many bytes that takes, or gives back, in the file.
    fn write_hints(&mut self, batch: &[Request], committed: &mut Committed) -> rusqlite::Result<usize> {
        let mut bytes = 0;
        for request in batch {
            let change = match request {
                Request::Apply { .. } | Request::Barrier { .. } => continue,
                Request::Hint { target, mutation, now_s, .. } => {
                    let sequence = self.next_hint;
                    self.next_hint += 1;
                    hint_log::store(&self.connection, *target, sequence, *now_s, mutation)?
                }
                Request::ForgetHints { target, sequences, .. } => {
                    // What the batch stores after this is in the table.
                    sqlite::set_meta(&self.connection, HINTED_UPTO, self.next_hint - 1)?;
                    hint_log::forget(&self.connection, *target, sequences)?
                }
                #[cfg(test)]
                Request::Meddle(meddle) => {
                    if let Some(meddle) = meddle.lock().expect("no panic while it is held").take() {
                        meddle(&self.connection);
                    }
                    continue;
                }
            };
            bytes += change.bytes() as usize;
            committed.hints.push(change);
        }
        Ok(bytes)
    }

    /// Notes how far the log is flushed.
    fn note_flushed(&mut self, flushed_upto: i64) -> rusqlite::Result<()> {
        if flushed_upto > self.flushed_upto {
            sqlite::set_meta(&self.connection, FLUSHED_UPTO, flushed_upto)?;
            self.flushed_upto = flushed_upto;
        }
        Ok(())
    }

    /// Forgets some rows with a commit of `rows` rows and hints and `bytes` bytes: only some, for a long deletion would
    /// hold up everybody.
    fn forget_with(&mut self, rows: usize, bytes: usize) -> rusqlite::Result<()> {
        let for_rows = FORGOTTEN_PER_ROW * rows;
        self.forgettable += for_rows.max(bytes / BYTES_PER_FORGOTTEN) as i64;
        if self.forgettable >= FORGOTTEN_TOGETHER {
            let now = self.forgettable.min(for_rows.max(FORGOTTEN_MAX) as i64);
            self.forget(now)?;
            self.forgettable = if self.has_flushed_rows() { self.forgettable - now } else { 0 };
        }
        Ok(())
    }

    /// Deletes `count` of the rows that are flushed, if there are any.
    fn forget(&mut self, count: i64) -> rusqlite::Result<()> {
        if !self.has_flushed_rows() {
            return Ok(());
        }
        let upto = self.flushed_upto.min(self.first.saturating_add(count - 1));
        let mut delete = self.connection.prepare_cached("DELETE FROM log WHERE sequence <= ?1")?;
        delete.execute([upto])?;
        self.first = upto + 1;
        Ok(())
    }

    fn first_row(&self) -> rusqlite::Result<Option<i64>> {
        self.connection.query_row("SELECT min(sequence) FROM log", [], |row| row.get(0))
    }

    fn using(&self) -> impl Fn(rusqlite::Error) -> OpenError {
        let path = self.path.clone();
        move |source| OpenError::using(&path, source)
    }
}

fn insert_sql(rows: usize) -> String {
    let row = format!("({})", ["?"; ROW_COLUMNS].join(","));
    let rows = vec![row; rows].join(",");
    format!(
        "INSERT INTO log(sequence, tbl, partition, \"column\", stamp, kind, value, expires, checksum) VALUES {rows}"
    )
}

fn log_rows(mutation: &Mutation) -> impl Iterator<Item = LogRow<'_>> {
    mutation.cells.iter().map(move |(column, cell)| LogRow { mutation, column, cell })
}

impl LogRow<'_> {
    /// How many bytes it takes in the file, about.
    fn bytes(&self) -> usize {
        const NUMBERS_BYTES: usize = 32;
        NUMBERS_BYTES + self.mutation.partition.len() + self.column.len() + self.cell.value_bytes().len()
    }

    /// Binds its columns as row `index` of the statement.
    fn bind(&self, statement: &mut CachedStatement<'_>, index: usize, sequence: i64) -> rusqlite::Result<()> {
        let (table, partition) = (self.mutation.table, &self.mutation.partition[..]);
        let cell = self.cell;
        let value = match cell.content {
            Content::Tombstone => None,
            Content::Value(_) | Content::Expiring { .. } => Some(cell.value_bytes()),
        };
        let checksum = row_checksum(sequence, table, partition, self.column, cell);
        let at = index * ROW_COLUMNS;
        statement.raw_bind_parameter(at + 1, sequence)?;
        statement.raw_bind_parameter(at + 2, table.0)?;
        statement.raw_bind_parameter(at + 3, partition)?;
        statement.raw_bind_parameter(at + 4, self.column)?;
        statement.raw_bind_parameter(at + 5, cell.stamp.0)?;
        statement.raw_bind_parameter(at + 6, cell.kind())?;
        statement.raw_bind_parameter(at + 7, value)?;
        statement.raw_bind_parameter(at + 8, cell.expires_at_s())?;
        statement.raw_bind_parameter(at + 9, checksum)
    }
}
