//! Writes a frozen memtable to data.db, in key order, a bounded transaction at a time, and then lets the log forget it.
//!
//! Order is everything: the cells are in data.db, on the disk, before the frozen memtable is dropped and before the
//! log hears that it may forget their rows. A crash at any point leaves each cell in the log, in data.db, or in both.
//!
//! When there is nothing to flush, sstables are compacted, and when there is nothing to compact, dead cells are
//! dropped. How fast: `pace`.
//!
//! If the disk is full the frozen memtable is kept and the flush tried again; if data.db fails otherwise, the store
//! takes no more writes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering as Atomic;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::base_writer::{BaseWriter, Compaction, Flush};
use super::collect::Collecting;
use super::drive::{Turn, Worker};
use super::memtable::{Frozen, Memtable};
use super::pace::{self, Pace, Standing};
use super::sorted_cells::Remains;
use super::sqlite::{self, Fault, OpenError, StoreError};
use super::{BaseJob, Ending, Remember, Shared, horizon_numbers};
use crate::answer::Failure;
use crate::config::Config;

/// Bytes of keys and cells of one transaction, so that large values do not make it long.
const TRANSACTION_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long to wait before a flush that failed for lack of space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How many times shorter than it may be a transaction is while there is time: what it keeps from the processors and
/// the disk, a millisecond or two, those who wait for an answer hardly notice.
const SHORTER: usize = 10;

/// Cells of a flushed memtable whose memory is given back at once: that takes half a millisecond or so.
const FREED_CELLS: usize = 4096;

/// The only writer of data.db.
pub(super) struct Flusher {
    shared: Arc<Shared>,
    base: BaseWriter,
    transaction_cells: usize,
    memtable_bytes_max: usize,
    log_bytes_max: usize,
    job: Option<Job>,
    /// Of the memtable that was flushed last.
    remains: Option<Remains>,
    compacting: Option<Compacting>,
    collecting: Option<Collecting>,
    /// Not before this is another table cleared.
    clear_at: Instant,
    /// Not before this are more dead cells dropped.
    collect_at: Instant,
}

/// A flush under way.
struct Job {
    frozen: Arc<Frozen>,
    flush: Flush,
    /// Everything before this engine key is written.
    next: Vec<u8>,
    cells: u64,
    pace: Pace,
}

/// A compaction under way.
struct Compacting {
    compaction: Compaction,
    /// How many flushes had been done when it began.
    flushes: u64,
    pace: Pace,
}

impl Flusher {
    pub fn new(shared: Arc<Shared>, base: BaseWriter, config: &Config) -> Flusher {
        Flusher {
            shared,
            base,
            transaction_cells: config.flush_transaction_cells,
            memtable_bytes_max: config.memtable_bytes_max,
            log_bytes_max: config.log_bytes_max,
            job: None,
            remains: None,
            compacting: None,
            collecting: None,
            clear_at: Instant::now(),
            collect_at: Instant::now(),
        }
    }

    /// Writes one transaction of the job.
    fn step(&mut self, job: &mut Job, in_time: bool) -> Result<ControlFlow<()>, StoreError> {
        let most = self.transaction(in_time);
        let step = write_step(&mut self.base, &mut job.flush, &job.frozen.table, &job.next, most)?;
        job.cells += step.cells;
        self.shared.stats.flush_commits.count();
        self.shared.health.flush_works();
        self.checkpoint_if_due()?;
        match step.next {
            Some(next) => {
                job.next = next;
                Ok(ControlFlow::Continue(()))
            }
            None => Ok(ControlFlow::Break(())),
        }
    }

    fn checkpoint_if_due(&mut self) -> Result<(), StoreError> {
        let checkpointed = self.base.checkpoint_if_due().or_else(|error| match fault_of(&error) {
            Fault::Full | Fault::Busy => Ok(false), // the write-ahead log keeps it until there is space
            Fault::Damaged | Fault::Other => Err(error),
        })?;
        self.shared.stats.checkpoints.add(u64::from(checkpointed));
        Ok(())
    }

    /// The most cells and bytes of a transaction.
    fn transaction(&self, in_time: bool) -> (usize, usize) {
        let shorter = if in_time { SHORTER } else { 1 };
        (self.transaction_cells.div_ceil(shorter), TRANSACTION_BYTES_MAX / shorter)
    }

    /// How a flush stands against the active memtable. The next transaction counts as written: none is behind from the
    /// first.
    fn standing(&self, job: &Job) -> Standing {
        let written = job.cells + self.transaction_cells as u64;
        Standing { done: written as f64 / job.frozen.table.len().max(1) as f64, full: self.fullness() }
    }

    /// How a compaction stands against what is flushed meanwhile.
    fn standing_of_compaction(&self, compacting: &Compacting) -> Standing {
        let flushed = self.shared.stats.flushes.get() - compacting.flushes;
        let slots = (flushed as f64 + self.fullness()) / compacting.compaction.slots_left as f64;
        let full = if self.is_frozen() { 1.0 } else { slots }; // then it waits for a slot
        Standing { done: compacting.compaction.done(self.transaction_cells as u64), full }
    }

    fn is_frozen(&self) -> bool {
        self.shared.view.memory.read().expect("no panic while it is held").frozen.is_some()
    }

    fn fullness(&self) -> f64 {
        let memory = self.shared.view.memory.read().expect("no panic while it is held");
        memory.fullness(self.memtable_bytes_max, self.log_bytes_max)
    }

    fn finish(&mut self, job: Job) {
        let Job { frozen, cells, .. } = job;
        let stats = &self.shared.stats;
        stats.flushes.count();
        stats.flushed_cells.add(cells);
        stats.flush.record_time(frozen.since.elapsed());
        self.base.show(); // before the newer ones are not in memory any more
        let dropped = self.shared.view.memory.write().expect("no panic while it is held").frozen.take();
        self.shared.flushed_upto.store(frozen.upto, Atomic::Release);
        self.shared.writer_bell.ring();
        drop(dropped); // the other handle to it
        self.remains = Arc::into_inner(frozen).map(|frozen| frozen.table.into_remains());
    }

    fn fail(&mut self, error: &StoreError) -> Turn {
        match fault_of(error) {
            Fault::Full | Fault::Busy => {
                let reason = format!("the memtable cannot be flushed to data.db: {}", said(error));
                if self.shared.health.flush_fails(&reason) {
                    log::error!("{reason}; trying again every {} s", RETRY.as_secs());
                }
                self.shared.writer_bell.ring(); // it may be waiting for room that does not come
                self.make_room();
                Turn::Wait(Some(RETRY))
            }
            Fault::Damaged | Fault::Other => {
                self.shared.latch(&format!("a flush to data.db failed: {}", said(error)));
                Turn::Wait(None)
            }
        }
    }
}

impl Worker for Flusher {
    fn turn(&mut self) -> Turn {
        #[cfg(test)]
        self.shared.meddle_with_base(self.base.connection());
        if self.shared.ending() >= Ending::FlusherEnds {
            if self.shared.ending() == Ending::FlusherEnds
                && self.shared.health.latched().is_none()
                && let Err(error) = self.base.checkpoint_to_close()
            {
                log::warn!("data.db keeps its write-ahead log: {error}"); // which is part of it: nothing is lost
            }
            return Turn::Ended;
        }
        if self.shared.health.latched().is_some() {
            self.shared.refuse_base_jobs();
            self.remains = None;
            return Turn::Wait(None);
        }
        if let Some(turn) = self.remember().or_else(|| self.free()) {
            return turn;
        }
        if self.job.is_none()
            && let Err(error) = self.begin()
        {
            return self.fail(&error);
        }
        let Some(mut job) = self.job.take() else { return self.compact() };
        let in_time = job.pace.is_in_time(self.standing(&job));
        if let Some(rest) = job.pace.rest().filter(|_| in_time) {
            self.job = Some(job);
            return Turn::Wait(Some(rest));
        }
        let began = Instant::now();
        match self.step(&mut job, in_time) {
            Ok(ControlFlow::Continue(())) => {
                job.pace.stepped(began);
                self.job = Some(job);
                Turn::Again
            }
            Ok(ControlFlow::Break(())) => {
                self.finish(job);
                Turn::Again
            }
            Err(error) => {
                self.job = Some(job);
                self.fail(&error)
            }
        }
    }
}

impl Flusher {
    /// Gives some of the memory back that a flushed memtable took.
    fn free(&mut self) -> Option<Turn> {
        let began = Instant::now();
        if !self.remains.as_mut()?.free(FREED_CELLS) {
            self.remains = None;
        }
        let rest = pace::rest_after(began);
        Some(if self.is_frozen() { Turn::Again } else { Turn::Wait(Some(rest)) })
    }

    /// Writes the numbers that somebody waits for.
    fn remember(&mut self) -> Option<Turn> {
        let BaseJob { what, to } =
            self.shared.base_jobs.lock().expect("no panic while it is held").pop_front()?;
        let (numbers, collected) = match what {
            Remember::Numbers(numbers) => (numbers, None),
            Remember::Collected(index, horizon) => {
                // Who asked may not have known of the last one.
                let horizon = self.shared.ranges.horizon(index).or(horizon);
                (horizon_numbers(index, horizon), Some((index, horizon)))
            }
        };
        if let Err(error) = self.base.remember(&numbers) {
            to.send(Err(Failure::Refused(said(&error).into())));
            return Some(self.fail_in_background("numbers are not remembered", &error));
        }
        if let Some((index, horizon)) = collected {
            self.shared.ranges.collected(index, horizon);
            self.shared.drop_collected();
        }
        self.shared.remembered.lock().expect("no panic while it is held").extend(numbers);
        to.send(Ok(()));
        Some(match self.checkpoint_if_due() {
            Ok(()) => Turn::Again,
            Err(error) => self.fail_in_background("its write-ahead log is kept", &error),
        })
    }

    /// One step of dropping what was collected, when all that was logged before is flushed.
    fn collect(&mut self) -> Turn {
        // In this order: what is wanted no more is frozen.
        if self.shared.flush_wanted.load(Atomic::Acquire) || self.is_frozen() {
            return Turn::Wait(None); // the bell rings once it is frozen
        }
        if self.collecting.is_none() && self.shared.collect_wanted.swap(false, Atomic::AcqRel) {
            self.collecting = Some(Collecting::new());
        }
        let Some(mut collecting) = self.collecting.take() else { return Turn::Wait(None) };
        let began = Instant::now();
        if began < self.collect_at {
            self.collecting = Some(collecting);
            return Turn::Wait(Some(self.collect_at - began));
        }
        match collecting.step(&self.shared, &mut self.base) {
            Ok(ControlFlow::Continue(())) => {
                self.collecting = Some(collecting);
                self.collect_at = Instant::now() + pace::rest_after(began);
                Turn::Again
            }
            Ok(ControlFlow::Break(())) => Turn::Again,
            Err(error) => self.fail_in_background("dead cells are not dropped", &error),
        }
    }

    /// Clears a table whose pages can be used instead of more of the disk, if there is one.
    fn make_room(&mut self) {
        if let Err(error) = self.base.clear_one() {
            log::warn!("data.db: a table that was compacted is not cleared for now: {}", said(&error));
        }
    }

    /// Something that no write waits for has failed: whoever wants it asks again, the next collection drops what this
    /// one did not, a compaction goes on where it was.
    fn fail_in_background(&mut self, what: &str, error: &StoreError) -> Turn {
        match fault_of(error) {
            Fault::Full | Fault::Busy => {
                log::warn!("data.db: {what} for now: {}", said(error));
                Turn::Wait(Some(RETRY))
            }
            Fault::Damaged | Fault::Other => {
                self.shared.latch(&format!("data.db cannot be written: {}", said(error)));
                Turn::Wait(None)
            }
        }
    }

    /// Begins to write what is frozen. Not while there is no slot for it: a compaction comes first.
    fn begin(&mut self) -> Result<(), StoreError> {
        let frozen = self.shared.view.memory.read().expect("no panic while it is held").frozen.clone();
        let Some(frozen) = frozen else { return Ok(()) };
        if !self.base.has_slot() {
            return Ok(());
        }
        let flush = self.base.begin_flush(&frozen.table, frozen.upto)?;
        self.job = Some(Job { frozen, flush, next: Vec::new(), cells: 0, pace: Pace::new() });
        Ok(())
    }

    /// One step of compacting sstables, or of clearing their tables, when there is nothing to flush.
    fn compact(&mut self) -> Turn {
        match self.compact_step() {
            // While it rests: under a load without end one compaction follows the other.
            Ok(Some(Turn::Wait(rest))) => match self.collect() {
                Turn::Wait(other) => Turn::Wait(rest.into_iter().chain(other).min()),
                turn => turn,
            },
            Ok(Some(turn)) => turn,
            Ok(None) => self.collect(),
            Err(error) if self.is_frozen() => self.fail(&error), // what is frozen waits for it
            Err(error) => self.fail_in_background("sstables are not compacted", &error),
        }
    }

    /// `None`: there was nothing to do.
    fn compact_step(&mut self) -> Result<Option<Turn>, StoreError> {
        let began = Instant::now();
        if let Some(mut compacting) = self.compacting.take() {
            let in_time = compacting.pace.is_in_time(self.standing_of_compaction(&compacting));
            if let Some(rest) = compacting.pace.rest().filter(|_| in_time) {
                self.compacting = Some(compacting);
                return Ok(Some(Turn::Wait(Some(rest))));
            }
            let step = self.base.compact(&mut compacting.compaction, self.transaction(in_time));
            if let Ok(ControlFlow::Break(())) = step {
                self.shared.stats.compactions.count();
            } else {
                compacting.pace.stepped(began);
                self.compacting = Some(compacting);
            }
            step.map(|_| ())?;
            self.shared.health.flush_works();
            self.shared.stats.flush_commits.count();
            self.checkpoint_if_due()?;
            Ok(Some(Turn::Again))
        } else if began < self.clear_at {
            Ok(Some(Turn::Wait(Some(self.clear_at - began))))
        } else if self.base.clear_one()? {
            self.clear_at = Instant::now() + pace::rest_after(began);
            self.shared.stats.flush_commits.count();
            self.checkpoint_if_due()?;
            Ok(Some(Turn::Again))
        } else if self.base.compaction_is_due()? {
            let (compaction, flushes) = (self.base.begin_compaction(), self.shared.stats.flushes.get());
            self.compacting = Some(Compacting { compaction, flushes, pace: Pace::new() });
            Ok(Some(Turn::Again))
        } else {
            Ok(None)
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.latch("the flusher failed; this is a bug, see the log");
        }
        self.shared.refuse_base_jobs();
    }
}

/// Writes a whole memtable while nobody reads yet.
pub(super) fn flush_at_start(
    base: &mut BaseWriter,
    table: &Memtable,
    transaction_cells: usize,
    upto: i64,
) -> Result<(), OpenError> {
    let mut flush = base.begin_flush(table, upto)?;
    let mut next = Some(Vec::new());
    while let Some(from) = next {
        let most = (transaction_cells, TRANSACTION_BYTES_MAX);
        let step = write_step(base, &mut flush, table, &from, most).and_then(|step| {
            base.checkpoint_if_due()?;
            Ok(step)
        });
        next = step?.next;
    }
    base.show();
    Ok(())
}

struct Step {
    cells: u64,
    /// Where to go on; `None` if that was the end.
    next: Option<Vec<u8>>,
}

/// Writes one transaction of cells from `from` on: at least one, at most as many cells and bytes as given.
fn write_step(
    base: &mut BaseWriter,
    flush: &mut Flush,
    table: &Memtable,
    from: &[u8],
    (cells_max, bytes_max): (usize, usize),
) -> Result<Step, StoreError> {
    let (mut cells, mut bytes) = (0, 0);
    let fits = |&(key, cell): &(&[u8], &[u8])| {
        cells += 1;
        bytes += key.len() + cell.len();
        cells == 1 || cells <= cells_max && bytes <= bytes_max
    };
    let count = table.range(from, None).take_while(fits).count();
    let next = table.range(from, None).nth(count).map(|(key, _)| key.to_vec());
    base.write(flush, table.range(from, None).take(count), next.is_none())?;
    Ok(Step { cells: count as u64, next })
}

fn fault_of(error: &StoreError) -> Fault {
    match error {
        StoreError::Damaged { .. } => Fault::Damaged,
        StoreError::Unreadable { source, .. } => sqlite::fault(source),
    }
}

/// What is wrong, without the advice for readers.
fn said(error: &StoreError) -> String {
    match error {
        StoreError::Damaged { what, .. } => what.clone(),
        StoreError::Unreadable { source, .. } => source.to_string(),
    }
}
