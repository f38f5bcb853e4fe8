//! Looking into the directory of a stopped server without changing its files.
//!
//! log.db and data.db and their write-ahead logs are only read; SQLite may leave an index (`-shm`) beside them. The
//! rows that are not flushed yet are held in memory, at most a few memtables of them. What a start would refuse as
//! damaged is refused here too: better nothing than an older state of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::RwLock;

use super::base::Base;
use super::commit_log;
use super::disk::Disk;
use super::hint_log::{self, HintTotals};
use super::mark::{Mark, Reached};
use super::memtable::{Memory, Memtable};
use super::replay::{self, WholeLog};
use super::sqlite::{self, OpenError, StoreError};
use super::view::{Digest, Page, View};
use crate::answer::NodeId;
use crate::config::{Config, Durability};

/// The store of a stopped server.
pub struct Offline {
    view: View,
    hints: BTreeMap<NodeId, HintTotals>,
    rows: u64,
}

impl Offline {
    /// Opens the directory to read it. Only the store's limits in `config` matter.
    pub fn open(dir: &Path, config: &Config, disk: &Disk) -> Result<Offline, OpenError> {
        let mark = Mark::look(disk, dir);
        let promised =
            mark.as_ref().map_or(Durability::ProcessCrash, |mark| mark.promised(Durability::ProcessCrash));
        super::check_write_ahead_logs(disk, dir, promised)?;
        let (base, held_upto) = Base::open_to_read(dir, config, disk)?;
        let path = dir.join(commit_log::FILE);
        let log = sqlite::open_to_read(disk, &path, &commit_log::FORMAT, config.base_cache_bytes, 0)?;
        let hints = hint_log::check_all(&log, &path)?;
        let WholeLog { cells, flushed_upto, upto } = replay::read_all(&log, &path, held_upto)?;
        super::check_base_is_not_older(base.path(), held_upto, flushed_upto)?;
        let rows = cells.len() as u64;
        let hinted_upto = sqlite::meta(&log, &path, commit_log::HINTED_UPTO)?.unwrap_or(0);
        let reached = Reached { row: upto, hint: hints.largest_sequence.max(hinted_upto) };
        super::check_log_reaches_its_mark(&mark, &path, reached, promised)?;
        let memory = Memory::new(Memtable::from_unsorted(cells), 0); // nothing is logged any more
        Ok(Offline {
            view: View { memory: RwLock::new(memory), base: base.into(), ranges: Default::default() },
            hints: hints.totals,
            rows,
        })
    }

    /// The cells after one engine key up to and including another (empty: from the first, to the last).
    pub fn page(&self, after: &[u8], upto: &[u8], cells_max: usize) -> Result<Page, StoreError> {
        self.view.page(after, upto, cells_max)
    }

    /// The digest of such a run, as a running server would answer that has collected nothing.
    pub fn digest(
        &self,
        after: &[u8],
        upto: &[u8],
        cells_max: usize,
        now_s: i64,
    ) -> Result<Digest, StoreError> {
        self.view.digest(after, upto, cells_max, now_s)
    }

    /// The hints kept for each server that has some.
    pub fn hint_totals(&self) -> &BTreeMap<NodeId, HintTotals> {
        &self.hints
    }

    /// Log rows that are not in data.db yet.
    pub fn log_rows(&self) -> u64 {
        self.rows
    }
}
