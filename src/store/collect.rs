//! Drops the dead cells that count as gone from data.db, leaf by leaf, and gives their pages back.
//!
//! A cell is dropped only if memory has nothing under its key: an older version there, which it shadows, would come to
//! light. None can get there any more, for behind the horizon nothing is taken (`ranges`), and what was logged before
//! is flushed first: all of it, for a version that lost is in the log alone, and a replay would bring it back.
//!
//! Not here: what counts as gone, and since when (`reconcile`).

use std::ops::ControlFlow;

use super::Shared;
use super::base_writer::BaseWriter;
use super::leaves::{table_end, table_start};
use super::sorted_cells::Key;
use super::sqlite::StoreError;

/// Cells looked at in one step.
const STEP_CELLS: usize = 2_000;

/// Pages given back in one step, and free pages from which on that is worth the while.
const GIVE_BACK_PAGES: usize = 256;
const FREE_PAGES_MIN: usize = 64;

/// A walk through all tables.
#[derive(Default)]
pub(super) struct Collecting {
    /// Where it goes on; `None`: behind the last cell, where pages are given back.
    at: Option<Vec<u8>>,
    dropped: u64,
}

impl Collecting {
    /// From the first cell on.
    pub fn new() -> Collecting {
        Collecting { at: Some(Vec::new()), dropped: 0 }
    }

    /// One bounded step.
    pub fn step(&mut self, shared: &Shared, base: &mut BaseWriter) -> Result<ControlFlow<()>, StoreError> {
        if let Some(at) = self.at.take() {
            self.at = self.walk(at, shared, base)?;
            shared.stats.checkpoints.add(u64::from(base.checkpoint_if_due()?));
            return Ok(ControlFlow::Continue(()));
        }
        if base.give_back(GIVE_BACK_PAGES, FREE_PAGES_MIN)? {
            shared.stats.checkpoints.add(u64::from(base.checkpoint_if_due()?));
            return Ok(ControlFlow::Continue(()));
        }
        base.checkpoint_now()?;
        shared.stats.checkpoints.count();
        if self.dropped > 0 {
            log::info!("{} dead cells were collected and dropped from data.db", self.dropped);
        }
        Ok(ControlFlow::Break(()))
    }

    /// Drops what is to be dropped of the next leaf that has something. Returns where to go on.
    fn walk(
        &mut self,
        mut at: Vec<u8>,
        shared: &Shared,
        base: &mut BaseWriter,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            let tables = shared.leaves.tables();
            let Some(table) = tables.into_iter().find(|table| at < table_end(*table)) else {
                return Ok(None);
            };
            at = at.max(table_start(table));
            let leaf = shared.leaves.leaf_at(&at, &table_end(table));
            let horizon = shared.ranges.horizon_at(&at);
            if leaf.sum.is_some_and(|sum| !sum.has_dead(horizon) && sum.gone == 0) {
                at = leaf.end;
                continue;
            }
            let (mut gone, mut seen, mut next) = (Vec::new(), 0, leaf.end.clone());
            base.base().range(&at, Some(&leaf.end), |key, cell| {
                seen += 1;
                if seen > STEP_CELLS {
                    next = key.to_vec();
                    return false;
                }
                if horizon.covers(&cell) {
                    gone.push(key.to_vec());
                }
                true
            })?;
            {
                let memory = shared.view.memory.read().expect("no panic while it is held");
                gone.retain(|key| memory.get(key).is_none());
            }
            if !gone.is_empty() {
                base.drop_cells(&gone)?;
                self.dropped += gone.len() as u64;
                shared.stats.cells_collected.add(gone.len() as u64);
                // Their sums said how many were left.
                let gone: Vec<Key> = gone.iter().map(|key| Key::from(&key[..])).collect();
                shared.leaves.written(&gone);
            }
            return Ok(Some(next));
        }
    }
}
