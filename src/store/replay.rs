//! Reads the log back, and finds out if it is not as it was written.
//!
//! The whole log is looked through before damage is reported, so that the report says how much there is. See
//! `commit_log` for what must hold.
//!
//! Rows that data.db holds may still be there, for the log hears of a flush with its next commit. They are checked like
//! all others, but their cells are not taken: what shadows one of them may have been collected since.

use std::path::Path;

use rusqlite::{Connection, Row};

use super::commit_log::{FLUSHED_UPTO, WRITTEN_UPTO};
use super::memtable::{self, Packed};
use super::sqlite::{self, Fault, OpenError};
use crate::cell::{Cell, Content, KIND_EXPIRING, KIND_TOMBSTONE, KIND_VALUE, Stamp};
use crate::key::{self, TableId};

/// Rows between two calls of the progress function.
const PROGRESS_ROWS: u64 = 65_536;

/// Reading the log back, row by row.
pub(super) struct Replay {
    /// The last sequence read.
    pub upto: i64,
    /// Rows read.
    pub rows: u64,
    /// data.db holds the cells of the rows up to this sequence.
    held_upto: i64,
    damage: Damage,
}

/// A run of rows.
pub(super) struct Window {
    pub cells: Vec<Packed>,
    /// What they would take in a memtable if none were a newer version of another.
    pub bytes: usize,
    /// No rows follow.
    pub last: bool,
}

impl Replay {
    /// From after one sequence on; data.db holds the cells up to another.
    pub fn new(flushed_upto: i64, held_upto: i64) -> Replay {
        Replay { upto: flushed_upto, rows: 0, held_upto, damage: Damage::default() }
    }

    /// Reads on until the cells take `bytes_max` in a memtable. After the first damage it only counts what else is
    /// damaged, and fails at the end.
    pub fn window(
        &mut self,
        connection: &Connection,
        path: &Path,
        bytes_max: usize,
        progress: &mut impl FnMut(u64),
    ) -> Result<Window, OpenError> {
        let using = |source| OpenError::using(path, source);
        let mut cells = Vec::new();
        let mut bytes = 0;
        let mut statement = connection
            .prepare_cached(
                "SELECT sequence, tbl, partition, \"column\", stamp, kind, value, expires, checksum FROM log \
                 WHERE sequence > ?1 ORDER BY sequence",
            )
            .map_err(using)?;
        let mut rows = statement.query([self.upto]).map_err(using)?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(source) => return Err(self.unreadable(path, source)),
            };
            if let Some(packed) = self.take(row).filter(|_| self.upto > self.held_upto) {
                bytes += memtable::entry_bytes(&packed.0, packed.1.len());
                cells.push(packed);
            }
            if self.rows.is_multiple_of(PROGRESS_ROWS) {
                progress(self.rows);
            }
            if bytes >= bytes_max && self.damage.is_none() {
                return Ok(Window { cells, bytes, last: false });
            }
            if !self.damage.is_none() {
                cells.clear();
            }
        }
        match self.damage.report() {
            None => Ok(Window { cells, bytes, last: true }),
            Some(what) => Err(OpenError::damaged(path, what)),
        }
    }

    fn take(&mut self, row: &Row<'_>) -> Option<Packed> {
        let Some(sequence) = sqlite::integer(row, 0) else {
            self.damage.failed.note(self.upto + 1);
            return None;
        };
        self.rows += 1;
        if sequence <= self.upto {
            self.damage.out_of_order.note(sequence);
            return None;
        }
        if sequence > self.upto + 1 {
            self.damage.missing(self.upto + 1, sequence - 1);
        }
        self.upto = sequence;
        let packed = read_row(row, sequence);
        if packed.is_none() {
            self.damage.failed.note(sequence);
        }
        packed
    }

    fn unreadable(&self, path: &Path, source: rusqlite::Error) -> OpenError {
        match sqlite::fault(&source) {
            Fault::Damaged => {
                let found = self.damage.report().map(|what| format!("{what}; and ")).unwrap_or_default();
                let what = format!("{found}after sequence {} SQLite finds: {source}", self.upto);
                OpenError::damaged(path, what)
            }
            Fault::Full | Fault::Busy | Fault::Other => OpenError::using(path, source),
        }
    }
}

/// The log of a stopped server.
pub(super) struct WholeLog {
    /// Of the rows that are not in data.db.
    pub cells: Vec<Packed>,
    /// Rows up to this sequence are in data.db, and the log knows.
    pub flushed_upto: i64,
    /// The sequence of the last row.
    pub upto: i64,
}

/// Reads the log of a stopped server in one piece; data.db holds the cells up to a sequence.
pub(super) fn read_all(connection: &Connection, path: &Path, held_upto: i64) -> Result<WholeLog, OpenError> {
    let flushed_upto = sqlite::meta(connection, path, FLUSHED_UPTO)?.unwrap_or(0);
    let mut replay = Replay::new(flushed_upto, held_upto);
    let window = replay.window(connection, path, usize::MAX, &mut |_| {})?;
    check_end(connection, path, replay.upto)?;
    Ok(WholeLog { cells: window.cells, flushed_upto, upto: replay.upto })
}

/// The end of the log must be there.
pub(super) fn check_end(connection: &Connection, path: &Path, upto: i64) -> Result<(), OpenError> {
    let written_upto = sqlite::meta(connection, path, WRITTEN_UPTO)?.unwrap_or(0);
    if upto < written_upto {
        let what = format!("its rows end at sequence {upto}, but once went up to {written_upto}");
        return Err(OpenError::damaged(path, what));
    }
    Ok(())
}

/// The cell of a row; `None` if the row is not as it was written.
fn read_row(row: &Row<'_>, sequence: i64) -> Option<Packed> {
    let table = TableId(u16::try_from(sqlite::integer(row, 1)?).ok()?);
    let partition = sqlite::blob(row, 2)?;
    let column = sqlite::blob(row, 3)?;
    let content = match u8::try_from(sqlite::integer(row, 5)?).ok()? {
        KIND_VALUE => Content::Value(sqlite::blob(row, 6)?),
        KIND_EXPIRING => {
            Content::Expiring { value: sqlite::blob(row, 6)?, expires_at_s: sqlite::integer(row, 7)? }
        }
        KIND_TOMBSTONE => Content::Tombstone,
        _ => return None,
    };
    let cell = Cell { stamp: Stamp(sqlite::integer(row, 4)?), content };
    if sqlite::integer(row, 8)? != row_checksum(sequence, table, partition, column, &cell) {
        return None;
    }
    Some((key::encode(table, partition, column)[..].into(), memtable::pack(&cell)))
}

/// Over all that a row says.
pub(super) fn row_checksum<V: AsRef<[u8]>>(
    sequence: i64,
    table: TableId,
    partition: &[u8],
    column: &[u8],
    cell: &Cell<V>,
) -> i64 {
    let mut head = [0; 8 + 2 + 4 + 4 + 8 + 1 + 8];
    head[..8].copy_from_slice(&sequence.to_be_bytes());
    head[8..10].copy_from_slice(&table.0.to_be_bytes());
    head[10..14].copy_from_slice(&(partition.len() as u32).to_be_bytes());
    head[14..18].copy_from_slice(&(column.len() as u32).to_be_bytes());
    head[18..26].copy_from_slice(&cell.stamp.0.to_be_bytes());
    head[26] = cell.kind();
    head[27..].copy_from_slice(&cell.expires_at_s().unwrap_or_default().to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(partition);
    hasher.update(column);
    hasher.update(cell.value_bytes());
    i64::from(hasher.finalize())
}

/// What is wrong with the log.
#[derive(Default)]
struct Damage {
    failed: Rows,
    out_of_order: Rows,
    /// How many rows are missing, and the first few runs of them.
    missing: u64,
    missing_first: Vec<(i64, i64)>,
}

/// Rows that have something wrong in common: how many, and the first few.
#[derive(Default)]
struct Rows {
    count: u64,
    first: Vec<i64>,
}

/// How many examples a report names.
const EXAMPLES_MAX: usize = 10;

impl Damage {
    fn is_none(&self) -> bool {
        self.failed.count == 0 && self.out_of_order.count == 0 && self.missing == 0
    }

    /// `from` is at most `to`.
    fn missing(&mut self, from: i64, to: i64) {
        self.missing = self.missing.saturating_add(to.abs_diff(from).saturating_add(1));
        if self.missing_first.len() < EXAMPLES_MAX {
            self.missing_first.push((from, to));
        }
    }

    fn report(&self) -> Option<String> {
        let mut parts = Vec::new();
        parts.extend(self.failed.report("fail their checksum"));
        parts.extend(self.out_of_order.report("come after later ones"));
        if self.missing > 0 {
            let run = |&(from, to): &(i64, i64)| {
                if from == to { from.to_string() } else { format!("{from} to {to}") }
            };
            let first: Vec<String> = self.missing_first.iter().map(run).collect();
            parts.push(format!(
                "{} of its rows are missing (first sequences: {})",
                self.missing,
                first.join(", ")
            ));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

impl Rows {
    fn note(&mut self, sequence: i64) {
        self.count += 1;
        if self.first.len() < EXAMPLES_MAX {
            self.first.push(sequence);
        }
    }

    fn report(&self, wrong: &str) -> Option<String> {
        let first: Vec<String> = self.first.iter().map(i64::to_string).collect();
        let first = first.join(", ");
        (self.count > 0).then(|| format!("{} of its rows {wrong} (first sequences: {first})", self.count))
    }
}
