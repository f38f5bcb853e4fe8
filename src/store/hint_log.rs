//! Hints in log.db: mutations kept for servers that were absent, in the same transactions as the log.
//!
//! A hint has a sequence of its own, rising over all targets, never used twice; handed over, hints of a target are in
//! that order. Delivered hints are deleted in any order, so gaps mean nothing here. Therefore a start has SQLite check
//! the structure of this table and its index, and checks every hint's checksum itself.
//!
//! The table is sorted by the sequence alone, so that a new hint comes last: SQLite then begins a new page where
//! another table's would be split, with its neighbours. An index says which hints are for whom; a page of it holds
//! hundreds.
//!
//! Not here: when to keep a hint and when to deliver it (`coordinator`, `handoff`).

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::sqlite::{self, OpenError, StoreError};
use crate::answer::NodeId;
use crate::cell::Stamp;
use crate::mutation::{Kind, Mutation};

/// Of format 1 of log.db.
pub(super) const SCHEMA: &str = "CREATE TABLE hints(target INTEGER NOT NULL, sequence INTEGER NOT NULL, \
     created_s INTEGER NOT NULL, mutation BLOB NOT NULL, checksum INTEGER NOT NULL, \
     PRIMARY KEY(target, sequence)) WITHOUT ROWID";

/// What format 2 has instead, and how hints of format 1 get there.
pub(super) const SORTED_BY_SEQUENCE: &[&str] = &[
    "ALTER TABLE hints RENAME TO hints_by_target",
    "CREATE TABLE hints(sequence INTEGER PRIMARY KEY, target INTEGER NOT NULL, created_s INTEGER NOT NULL, \
     mutation BLOB NOT NULL, checksum INTEGER NOT NULL)",
    // As it is there, without a sort, which would take all hints into memory.
    "CREATE INDEX hints_of_target ON hints(target)",
    "INSERT INTO hints(sequence, target, created_s, mutation, checksum) \
     SELECT sequence, target, created_s, mutation, checksum FROM hints_by_target",
    "DROP TABLE hints_by_target",
];

/// A mutation kept for an absent server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// By which it is forgotten.
    pub sequence: i64,
    /// As [`Mutation::encode`] wrote it.
    pub mutation: Bytes,
}

/// The hints kept for one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintTotals {
    /// How many.
    pub count: u64,
    /// Bytes of their mutations.
    pub bytes: u64,
    /// When the first of them was stored, in seconds since 1970.
    pub oldest_s: Option<i64>,
    /// None of their cells has a smaller stamp.
    pub oldest_stamp: Stamp,
}

impl Default for HintTotals {
    fn default() -> HintTotals {
        HintTotals { count: 0, bytes: 0, oldest_s: None, oldest_stamp: Stamp(i64::MAX) }
    }
}

/// What a transaction did to the hints of one server.
#[derive(Debug)]
pub(super) enum HintChange {
    Stored { target: NodeId, bytes: u64, created_s: i64, oldest_stamp: Stamp },
    Forgotten { target: NodeId, count: u64, bytes: u64, oldest_s: Option<i64> },
}

impl HintChange {
    /// Bytes of the mutations stored or forgotten.
    pub fn bytes(&self) -> u64 {
        match self {
            HintChange::Stored { bytes, .. } | HintChange::Forgotten { bytes, .. } => *bytes,
        }
    }

    /// Brings the totals up to date.
    pub fn note(&self, totals: &mut BTreeMap<NodeId, HintTotals>) {
        match *self {
            HintChange::Stored { target, bytes, created_s, oldest_stamp } => {
                let totals = totals.entry(target).or_default();
                totals.count += 1;
                totals.bytes += bytes;
                totals.oldest_s.get_or_insert(created_s);
                totals.oldest_stamp = totals.oldest_stamp.min(oldest_stamp);
            }
            HintChange::Forgotten { target, count, bytes, oldest_s } => {
                let of_target = totals.entry(target).or_default();
                of_target.count -= count;
                of_target.bytes -= bytes;
                of_target.oldest_s = oldest_s;
                if of_target.count == 0 {
                    totals.remove(&target);
                }
            }
        }
    }
}

/// Stores one hint, inside the open transaction.
pub(super) fn store(
    connection: &Connection,
    target: NodeId,
    sequence: i64,
    created_s: i64,
    mutation: &Mutation,
) -> rusqlite::Result<HintChange> {
    let oldest_stamp = mutation.oldest_stamp();
    let mutation = mutation.encode_as(Kind::Hint);
    let mut insert = connection.prepare_cached(
        "INSERT INTO hints(target, sequence, created_s, mutation, checksum) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    insert.raw_bind_parameter(1, target_number(target))?;
    insert.raw_bind_parameter(2, sequence)?;
    insert.raw_bind_parameter(3, created_s)?;
    insert.raw_bind_parameter(4, &mutation[..])?;
    insert.raw_bind_parameter(5, checksum(target_number(target), sequence, created_s, &mutation))?;
    insert.raw_execute()?;
    Ok(HintChange::Stored { target, bytes: mutation.len() as u64, created_s, oldest_stamp })
}

/// Forgets hints, named in rising order, inside the open transaction; those already forgotten do not matter.
pub(super) fn forget(
    connection: &Connection,
    target: NodeId,
    sequences: &[i64],
) -> rusqlite::Result<HintChange> {
    assert!(sequences.is_sorted());
    let ends = (sequences.first().copied().unwrap_or(0), sequences.last().copied().unwrap_or(-1));
    let held = lengths(connection, target, ends)?;
    let is_named = |sequence: i64| sequences.binary_search(&sequence).is_ok();
    let (named, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|(sequence, _)| is_named(*sequence));
    if others.is_empty() {
        // The rule: what was handed over is what comes first. One statement then costs half of one for each.
        let mut delete = connection
            .prepare_cached("DELETE FROM hints WHERE target = ?1 AND sequence BETWEEN ?2 AND ?3")?;
        delete.execute([target_number(target), ends.0, ends.1])?;
    } else {
        let mut delete =
            connection.prepare_cached("DELETE FROM hints WHERE target = ?1 AND sequence = ?2")?;
        for (sequence, _) in &named {
            delete.execute([target_number(target), *sequence])?;
        }
    }
    let bytes = named.iter().map(|(_, length)| *length as u64).sum();
    let oldest_s = connection
        .prepare_cached("SELECT created_s FROM hints WHERE target = ?1 ORDER BY sequence LIMIT 1")?
        .query_row([target_number(target)], |row| row.get(0))
        .optional()?;
    Ok(HintChange::Forgotten { target, count: named.len() as u64, bytes, oldest_s })
}

/// Sequences and bytes of the hints for a server from one sequence to another.
fn lengths(
    connection: &Connection,
    target: NodeId,
    (first, last): (i64, i64),
) -> rusqlite::Result<Vec<(i64, i64)>> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, length(mutation) FROM hints WHERE target = ?1 AND sequence BETWEEN ?2 AND ?3",
    )?;
    let rows =
        statement.query_map([target_number(target), first, last], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// The oldest hints for a server, at least one if there is any.
pub(super) fn oldest(
    connection: &Connection,
    path: &Path,
    target: NodeId,
    count_max: usize,
    bytes_max: usize,
) -> Result<Vec<Hint>, StoreError> {
    let reading = |source| StoreError::reading(path, source);
    let mut statement = connection
        .prepare_cached(
            "SELECT target, sequence, created_s, mutation, checksum FROM hints WHERE target = ?1 ORDER BY sequence",
        )
        .map_err(reading)?;
    let mut rows = statement.query([target_number(target)]).map_err(reading)?;
    let mut hints: Vec<Hint> = Vec::new();
    let mut bytes = 0;
    while hints.len() < count_max.max(1)
        && let Some(row) = rows.next().map_err(reading)?
    {
        let (_, hint, _) = read_row(row).ok_or_else(|| StoreError::Damaged {
            path: path.to_owned(),
            what: format!("a hint for server {target} fails its checksum"),
        })?;
        bytes += hint.mutation.len();
        if bytes > bytes_max && !hints.is_empty() {
            break;
        }
        hints.push(hint);
    }
    Ok(hints)
}

/// What the hints come to.
#[derive(Debug, Default)]
pub(super) struct AllHints {
    pub totals: BTreeMap<NodeId, HintTotals>,
    pub largest_sequence: i64,
    /// The largest stamp of their mutations.
    pub largest_stamp: Option<Stamp>,
}

/// Checks and counts all hints, also of a file of format 1.
pub(super) fn check_all(connection: &Connection, path: &Path) -> Result<AllHints, OpenError> {
    let using = |source| OpenError::using(path, source);
    let found: String =
        connection.query_row("PRAGMA integrity_check('hints')", [], |row| row.get(0)).map_err(using)?;
    if found != "ok" {
        return Err(OpenError::damaged(path, format!("the table of hints: {}", found.replace('\n', "; "))));
    }
    let mut all = AllHints::default();
    let mut failed = 0;
    let mut statement = connection
        .prepare(
            "SELECT target, sequence, created_s, mutation, checksum FROM hints ORDER BY target, sequence",
        )
        .map_err(using)?;
    let mut rows = statement.query([]).map_err(using)?;
    while let Some(row) = rows.next().map_err(using)? {
        let hint = read_row(row).and_then(|(target, hint, created_s)| {
            Some((target, Mutation::decode(&hint.mutation).ok()?, hint, created_s))
        });
        let Some((target, mutation, hint, created_s)) = hint else {
            failed += 1;
            continue;
        };
        let (bytes, oldest_stamp) = (hint.mutation.len() as u64, mutation.oldest_stamp());
        HintChange::Stored { target, bytes, created_s, oldest_stamp }.note(&mut all.totals);
        all.largest_sequence = all.largest_sequence.max(hint.sequence);
        all.largest_stamp = all.largest_stamp.max(Some(mutation.stamp()));
    }
    if failed > 0 {
        return Err(OpenError::damaged(path, format!("{failed} of its hints fail their checksum")));
    }
    Ok(all)
}

/// The hint of a row, for whom, and since when; `None` if the row is not as it was written.
fn read_row(row: &Row<'_>) -> Option<(NodeId, Hint, i64)> {
    let target = sqlite::integer(row, 0)?;
    let sequence = sqlite::integer(row, 1)?;
    let created_s = sqlite::integer(row, 2)?;
    let mutation = sqlite::blob(row, 3)?;
    if sqlite::integer(row, 4)? != checksum(target, sequence, created_s, mutation) {
        return None;
    }
    let hint = Hint { sequence, mutation: Bytes::copy_from_slice(mutation) };
    Some((NodeId(u32::try_from(target).ok()?), hint, created_s))
}

fn target_number(target: NodeId) -> i64 {
    i64::from(target.0)
}

fn checksum(target: i64, sequence: i64, created_s: i64, mutation: &[u8]) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    for number in [target, sequence, created_s] {
        hasher.update(&number.to_be_bytes());
    }
    hasher.update(mutation);
    i64::from(hasher.finalize())
}
