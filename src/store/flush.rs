//! Writes a frozen memtable to data.db, in key order, a bounded transaction at a time, and then lets the log forget it.
//!
//! Order is everything: the cells are in data.db, on the disk, before the frozen memtable is dropped and before the
//! log hears that it may forget their rows. A crash at any point leaves each cell in the log, in data.db, or in both.
//!
//! A flush is not urgent until the next memtable is nearly full, and those who answer need the processors and the disk:
//! transactions are short, and between two of them the flusher rests, as long as it gets on faster than that one fills.
//! Once it is behind it does not rest, and transactions are long, which costs the least: writes that find both memtables
//! full wait for it.
//!
//! If the disk is full the frozen memtable is kept and the flush tried again; if data.db fails otherwise, the store
//! takes no more writes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering as Atomic;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::base::BaseWriter;
use super::collect::Collecting;
use super::drive::{Turn, Worker};
use super::memtable::{Frozen, Memtable};
use super::sqlite::{self, Fault, OpenError, StoreError};
use super::{BaseJob, Ending, Remember, Shared, horizon_numbers};
use crate::answer::Failure;
use crate::cell::Stamp;
use crate::config::Config;

/// Bytes of keys and cells of one transaction, so that large values do not make it long.
const TRANSACTION_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long to wait before a flush that failed for lack of space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How many times as long as a transaction took the flusher rests after it, as long as there is time: no more than a
/// fifth of a processor is taken from those who answer.
const REST_TIMES: u32 = 4;

/// The shortest rest, so that simulations rest too: there a transaction takes no time.
const REST_MIN: Duration = Duration::from_millis(1);

/// The longest rest: what took long took it waiting, for the disk or because the whole process stood still.
const REST_MAX: Duration = Duration::from_secs(1);

/// How often a resting flusher looks whether there still is time.
const LOOK: Duration = Duration::from_millis(10);

/// How full the active memtable may be when the frozen one is written. The rest is for what comes in between, such as a
/// disk that gets slower.
const FULL_WHEN_DONE: f64 = 0.7;

/// How many times shorter than it may be a transaction is while there is time: what it keeps from the processors and the
/// disk, a millisecond or two, those who wait for an answer hardly notice.
const SHORTER: usize = 10;

/// The one who writes data.db.
pub(super) struct Flusher {
    shared: Arc<Shared>,
    base: BaseWriter,
    transaction_cells: usize,
    memtable_bytes_max: usize,
    log_bytes_max: usize,
    job: Option<Job>,
    collecting: Option<Collecting>,
}

/// A flush under way.
struct Job {
    frozen: Arc<Frozen>,
    /// No cell in the base had a larger stamp before this flush.
    known: Stamp,
    /// Everything before this engine key is written.
    next: Vec<u8>,
    cells: u64,
    /// Until then no cells are written, if there is time.
    rests_until: Option<Instant>,
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
            collecting: None,
        }
    }

    /// Writes one transaction of the job.
    fn step(&mut self, job: &mut Job) -> Result<ControlFlow<()>, StoreError> {
        let shorter = if self.is_in_time(job) { SHORTER } else { 1 };
        let most = (self.transaction_cells.div_ceil(shorter), TRANSACTION_BYTES_MAX / shorter);
        let upto = Some(job.frozen.upto);
        let step = write_step(&mut self.base, &job.frozen.table, job.known, &job.next, most, upto)?;
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

    /// How long to rest before the next step of the job; `None` if it is due.
    fn rest(&self, job: &Job) -> Option<Duration> {
        let rest = job.rests_until?.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return None;
        }
        self.is_in_time(job).then_some(rest.min(LOOK))
    }

    /// True if the job gets on faster than the active memtable fills. The next transaction counts as written: none is
    /// behind from the first.
    fn is_in_time(&self, job: &Job) -> bool {
        let written = (job.cells + self.transaction_cells as u64) as f64 / job.frozen.table.len() as f64;
        let memory = self.shared.view.memory.read().expect("no panic while it is held");
        is_in_time(written, memory.fullness(self.memtable_bytes_max, self.log_bytes_max))
    }

    fn finish(&mut self, job: Job) {
        let Job { frozen, cells, .. } = job;
        let stats = &self.shared.stats;
        stats.flushes.count();
        stats.flushed_cells.add(cells);
        stats.flush.record_time(frozen.since.elapsed());
        self.base.base().forget_cells(); // before the newer ones are not in memory any more
        let dropped = self.shared.view.memory.write().expect("no panic while it is held").frozen.take();
        self.shared.flushed_upto.store(frozen.upto, Atomic::Release);
        self.shared.writer_bell.ring();
        drop((dropped, frozen)); // a large tree to take down, so not under the lock
    }

    fn fail(&mut self, error: &StoreError) -> Turn {
        match fault_of(error) {
            Fault::Full | Fault::Busy => {
                let reason = format!("the memtable cannot be flushed to data.db: {}", said(error));
                if self.shared.health.flush_fails(&reason) {
                    log::error!("{reason}; trying again every {} s", RETRY.as_secs());
                }
                self.shared.writer_bell.ring(); // it may be waiting for room that does not come
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
            return Turn::Wait(None);
        }
        if let Some(turn) = self.remember() {
            return turn;
        }
        let Some(mut job) = self.job.take().or_else(|| self.begin()) else {
            return self.collect();
        };
        if let Some(rest) = self.rest(&job) {
            self.job = Some(job);
            return Turn::Wait(Some(rest));
        }
        let began = Instant::now();
        match self.step(&mut job) {
            Ok(ControlFlow::Continue(())) => {
                job.rests_until =
                    Some(Instant::now() + (began.elapsed() * REST_TIMES).clamp(REST_MIN, REST_MAX));
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

    /// One step of dropping what was collected, when there is nothing to flush.
    fn collect(&mut self) -> Turn {
        if self.collecting.is_none() {
            let flushed = !self.shared.flush_wanted.load(Atomic::Acquire);
            if !flushed || !self.shared.collect_wanted.swap(false, Atomic::AcqRel) {
                return Turn::Wait(None);
            }
            self.collecting = Some(Collecting::new());
        }
        let mut collecting = self.collecting.take().expect("it was begun");
        match collecting.step(&self.shared, &mut self.base) {
            Ok(ControlFlow::Continue(())) => {
                self.collecting = Some(collecting);
                Turn::Again
            }
            Ok(ControlFlow::Break(())) => Turn::Again,
            Err(error) => self.fail_in_background("dead cells are not dropped", &error),
        }
    }

    /// What nobody's write waits for has failed: who wants it asks again, the next collection drops what this one did not.
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

    fn begin(&self) -> Option<Job> {
        let frozen = self.shared.view.memory.read().expect("no panic while it is held").frozen.clone()?;
        Some(Job { frozen, known: self.base.base().largest(), next: Vec::new(), cells: 0, rests_until: None })
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
    let known = base.base().largest();
    let mut next = Some(Vec::new());
    while let Some(from) = next {
        let most = (transaction_cells, TRANSACTION_BYTES_MAX);
        let step = write_step(base, table, known, &from, most, Some(upto)).and_then(|step| {
            base.checkpoint_if_due()?;
            Ok(step)
        });
        next = step?.next;
    }
    Ok(())
}

struct Step {
    cells: u64,
    /// Where to go on; `None` if that was the end.
    next: Option<Vec<u8>>,
}

/// Writes one transaction of cells from `from` on, so many and so many bytes at most, at least one; with the last of them,
/// that all log rows up to `upto` are there.
fn write_step(
    base: &mut BaseWriter,
    table: &Memtable,
    known: Stamp,
    from: &[u8],
    (cells_max, bytes_max): (usize, usize),
    upto: Option<i64>,
) -> Result<Step, StoreError> {
    let (mut cells, mut bytes) = (0, 0);
    let fits = |&(key, cell): &(&[u8], &[u8])| {
        cells += 1;
        bytes += key.len() + cell.len();
        cells == 1 || cells <= cells_max && bytes <= bytes_max
    };
    let count = table.range(from, None).take_while(fits).count();
    let next = table.range(from, None).nth(count).map(|(key, _)| key.to_vec());
    let largest = table.largest().unwrap_or(known);
    let done = if next.is_none() { upto } else { None };
    base.write(table.range(from, None).take(count), largest, known, done)?;
    Ok(Step { cells: count as u64, next })
}

/// True if a flush of which this part is written will be done before the active memtable is too full, where this part
/// of it is full already.
fn is_in_time(written: f64, full: f64) -> bool {
    written * FULL_WHEN_DONE > full
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_rests_only_while_it_is_ahead_of_what_is_written_meanwhile() {
        assert!(is_in_time(0.01, 0.0), "nobody writes");
        assert!(is_in_time(0.6, 0.4));
        assert!(!is_in_time(0.5, 0.4), "it would be too full with a flush of which an eighth is left");
        assert!(!is_in_time(0.99, FULL_WHEN_DONE), "from here on it hurries, however near the end is");
        assert!(!is_in_time(0.5, 1.0), "writes wait");
    }
}
