//! Where a node keeps its cells.
//!
//!   apply ─► queue ─► writer: log.db (SQLite, one fsync for all that waited) ─► memtable (merge) ─► answers
//!   flush:  memtable, frozen ─► data.db (SQLite, sorted), in bounded transactions ─► the log forgets, bit by bit
//!   later:  sstables, which flushes have left in data.db ─► its one large table
//!   read:   memtable ∪ frozen ∪ data.db, merged, on the thread that asks
//!   start:  check both files ─► replay log.db over data.db ─► serve
//!
//! What holds at every moment, a crash included:
//!   - What was answered `Applied` or `Behind` is in log.db or in data.db, on the disk as far as `durability` says.
//!   - A cell is in memory only if a file has it: no reader sees a value that a crash then takes away.
//!   - Memory and data.db together are the fold (`cell::merge`) of all that was logged.
//!   - All cells of a mutation become visible at once.
//!   - Memory is bounded by configuration: the queue, two memtables (each with at most one batch more), page caches,
//!     the cells of data.db that are kept, a filter for each of up to 24 sstables (a hundredth of a memtable of cells
//!     of 100 bytes, more of shorter ones).
//!   - Damage is reported, never skipped: see `commit_log` for how it is found.
//!
//! data.db is written with `synchronous=FULL` whatever the durability: because of it the log forgets, so it must not
//! be the weaker of the two.
//!
//! Not here: who else holds a cell (`ring`), how many must (`coordinator`), that only one server uses the directory
//! (`node`).

mod base;
mod base_writer;
mod block;
mod cell_cache;
mod collect;
mod commit_log;
mod courtesy;
mod disk;
mod drive;
mod filter;
mod flush;
mod group;
mod health;
mod hint_log;
pub mod leaves;
mod mark;
mod memtable;
pub mod offline;
mod pace;
mod queue;
mod ranges;
mod readers;
mod replay;
mod sorted_cells;
mod sqlite;
mod sstable;
mod view;
mod wal_check;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering as Atomic};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::answer::{AnswerTo, ApplyAnswer, Failure, NodeId};
use crate::cell::{Cell, Stamp};
use crate::config::{Config, Durability};
use crate::key::TableId;
use crate::mutation::Mutation;
use crate::slice::Slice;
use crate::stats::Stats;

use base_writer::BaseWriter;
use commit_log::CommitLog;
use drive::{Arrivals, Bell, Driven};
use flush::Flusher;
use health::Health;
use leaves::{Horizon, LeafView, Leaves, Scan};
use mark::{Mark, Reached};
use memtable::{Memory, Memtable};
use queue::{Queue, Request};
use ranges::Ranges;
use view::View;
use writer::Writer;

pub use disk::{Disk, Files, PlainFile};
pub use drive::Drive;
pub use hint_log::{Hint, HintTotals};
pub use ranges::Origin;
pub use sqlite::{OpenError, StoreError};
pub use view::{Digest, Page, SliceCells, cell_hash};

/// A node's cells and hints. Clones are the same store; when the last is dropped, its threads end.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// What a start found.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Log rows that were not in data.db yet.
    pub rows_replayed: u64,
    /// How long opening took, checks included.
    pub took: Duration,
    /// The hints kept for each server that has some.
    pub hints: BTreeMap<NodeId, HintTotals>,
    /// No cell and no hint has a larger stamp; at least 0.
    pub largest_stamp: Stamp,
}

/// Bytes of keys and values of one step of a scan, and of one run: what is compared in the background must not take
/// memory that a server's budget does not have.
const SCAN_BYTES_MAX: usize = 131_072;
const RUN_BYTES_MAX: usize = 1_048_576;

/// Cells by engine key, in order, and whether those are all there are.
pub type Run = (Vec<(Vec<u8>, Cell)>, bool);

/// Ends the workers when the last clone of the store goes.
struct Inner {
    shared: Arc<Shared>,
    /// `None` once it was closed.
    workers: Mutex<Option<Workers>>,
}

struct Workers {
    /// Releases what has arrived, and rings for the writer.
    telling: JoinHandle<()>,
    writer: Driven,
    flusher: Driven,
}

/// What the store's callers, its writer and its flusher have in common.
struct Shared {
    queue: Arc<Queue>,
    view: View,
    leaves: Leaves,
    ranges: Arc<Ranges>,
    /// The memtable is to be flushed before it is full.
    flush_wanted: AtomicBool,
    /// Dead cells that count as gone are to be dropped from data.db.
    collect_wanted: AtomicBool,
    /// What the flusher is to do for others.
    base_jobs: Mutex<VecDeque<BaseJob>>,
    /// Numbers that data.db remembers, by name.
    remembered: Mutex<BTreeMap<String, i64>>,
    health: Health,
    stats: Arc<Stats>,
    writer_bell: Arc<Bell>,
    arrivals: Arc<Arrivals>,
    flusher_bell: Arc<Bell>,
    /// Log rows up to this sequence are in data.db and may be forgotten.
    flushed_upto: AtomicI64,
    /// The sequences of the first and the last row in the log.
    log_first: AtomicI64,
    log_last: AtomicI64,
    hint_totals: Mutex<BTreeMap<NodeId, HintTotals>>,
    /// Reads hints, beside the writer's own connection.
    log_reader: Mutex<Connection>,
    log_path: PathBuf,
    ending: AtomicU8,
    /// What a test wants done to data.db's connection.
    #[cfg(test)]
    base_meddle: Mutex<Option<queue::Meddle>>,
}

/// Something to be remembered in data.db, and who waits for it.
struct BaseJob {
    what: Remember,
    to: AnswerTo<Result<(), Failure>>,
}

enum Remember {
    Numbers(Vec<(String, i64)>),
    /// That a range is collected as far as this, if it was not farther already.
    Collected(usize, Horizon),
}

fn horizon_numbers(range: usize, horizon: Horizon) -> Vec<(String, i64)> {
    vec![(collected_name(range), horizon.stamp.0), (expired_name(range), horizon.expired_s)]
}

fn collected_name(range: usize) -> String {
    format!("collected_{range}")
}

fn expired_name(range: usize) -> String {
    format!("expired_{range}")
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Ending {
    No,
    /// The writer ends when the queue is empty.
    Drain,
    /// The writer has ended; now the flusher does.
    FlusherEnds,
    /// Both end at once.
    Now,
}

impl Store {
    /// Opens the store of a directory, which must exist, and replays its log. Must run inside a tokio runtime: there
    /// a task gives the answers of each commit. `progress` hears now and then how many rows were replayed.
    pub fn open(
        dir: &Path,
        config: &Config,
        disk: Disk,
        drive: Drive,
        stats: Arc<Stats>,
        mut progress: impl FnMut(u64),
    ) -> Result<(Store, Recovered), OpenError> {
        let started = Instant::now();
        let mark = Mark::open(&disk, dir);
        let promised = mark.as_ref().map_or(config.durability, |mark| mark.promised(config.durability));
        check_write_ahead_logs(&disk, dir, promised)?;
        let mut base = base_writer::open(dir, config, &disk)?;
        let log_created = base.log_created()?;
        let mut log = CommitLog::open(dir, config, &disk, !log_created)?;
        check_base_is_not_older(base.base().path(), base.flushed_upto(), log.flushed_upto())?;
        let hints = hint_log::check_all(log.connection(), log.path())?;
        log.note_hints(hints.largest_sequence);

        let held_upto = base.flushed_upto();
        let window_bytes = config.memtable_bytes_max.min(config.log_bytes_max);
        let (memory, rows_replayed) =
            log.recover(held_upto, window_bytes, &mut progress, |table, upto| {
                flush::flush_at_start(&mut base, &table, config.flush_transaction_cells, upto)
            })?;
        if !log_created {
            check_base_is_not_new(&base, &log)?;
        }
        check_log_is_not_older(&base, &mut log, promised)?;
        check_log_reaches_its_mark(&mark, log.path(), log.reached(), promised)?;
        log.settle(&disk)?;
        if !log_created {
            base.note_log_created()?; // once it is on the disk: from now on a log that is empty was lost
        }
        let mark = mark.map(|mark| mark.begin(log.reached(), config.durability)).transpose();
        let mark = mark.map_err(|source| OpenError::Unreadable { path: dir.join(mark::FILE), source })?;

        let flushed = base.base().largest();
        let largest = Some(flushed).max(memory.active.largest()).max(hints.largest_stamp);
        let recovered = Recovered {
            rows_replayed,
            took: started.elapsed(),
            hints: hints.totals.clone(),
            largest_stamp: largest.unwrap_or_default().max(Stamp(0)),
        };
        let shared = Arc::new(Shared::new(config, &disk, &base, &log, memory, hints.totals, stats)?);
        let workers = start_workers(config, drive, &shared, base, log, mark)?;
        let inner = Inner { shared, workers: Mutex::new(Some(workers)) };
        Ok((Store { inner: Arc::new(inner) }, recovered))
    }

    /// Stores a mutation of a client. Answers once it is durable, or certainly will not be.
    pub fn apply(&self, mutation: Arc<Mutation>, to: AnswerTo<ApplyAnswer>) {
        self.apply_from(Origin::Write, mutation, to);
    }

    /// Stores a mutation, or what of it may be stored, depending on where it comes from.
    pub fn apply_from(&self, origin: Origin, mutation: Arc<Mutation>, to: AnswerTo<ApplyAnswer>) {
        assert!(!mutation.cells.is_empty(), "a mutation has cells");
        let refused = self.push(Request::Apply { origin, mutation, to });
        self.shared().stats.mutations_refused.add(u64::from(refused));
    }

    /// Keeps a mutation for a server that is absent. Answers once it is durable, or certainly will not be.
    pub fn hint(
        &self,
        target: NodeId,
        mutation: Arc<Mutation>,
        now_s: i64,
        to: AnswerTo<Result<(), Failure>>,
    ) {
        self.push(Request::Hint { target, mutation, now_s, to });
    }

    /// Forgets hints that were delivered, named in rising order; those already forgotten do not matter.
    pub fn forget_hints(&self, target: NodeId, sequences: Vec<i64>, to: AnswerTo<Result<(), Failure>>) {
        self.push(Request::ForgetHints { target, sequences, to });
    }

    /// The cells of a slice. On the caller's thread: microseconds, unless the disk has to be read.
    pub fn read(&self, slice: &Slice) -> Result<SliceCells, StoreError> {
        let asked_base = AtomicBool::new(false);
        let cells = self.shared().view.read(slice, &asked_base);
        self.shared().stats.slices_read.count();
        self.shared().stats.slices_read_base.add(u64::from(asked_base.into_inner()));
        cells
    }

    /// The digest of the cells after one engine key (empty: from the first) up to and including another (empty: to
    /// the last), or of the first `cells_max` of them, those that count as gone and are not dropped yet counted in.
    /// `now_s` decides which are live.
    pub fn digest(
        &self,
        after: &[u8],
        upto: &[u8],
        cells_max: usize,
        now_s: i64,
    ) -> Result<Digest, StoreError> {
        self.shared().view.digest(after, upto, cells_max, now_s)
    }

    /// The cells of such a run. `cells_max` is at least 1; fewer come if they are large.
    pub fn page(&self, after: &[u8], upto: &[u8], cells_max: usize) -> Result<Page, StoreError> {
        self.shared().view.page(after, upto, cells_max)
    }

    /// Cuts the store's leaves at the ends of the ring's ranges, given by their tokens in rising order. Looks once
    /// which tables have cells.
    pub fn cut_leaves(&self, tokens: Vec<Vec<u8>>) -> Result<(), StoreError> {
        let mut tables = Vec::new();
        let mut after = Vec::new();
        loop {
            let page = self.page(&after, &[], 1)?;
            let Some((key, _)) = page.cells.first() else { break };
            let Some(table) = key.first_chunk::<2>() else { break };
            let table = TableId(u16::from_be_bytes(*table));
            tables.push(table);
            after = leaves::table_end(table);
        }
        let remembered = self.shared().remembered.lock().expect("no panic while it is held").clone();
        let number = |name: String| remembered.get(&name).copied().unwrap_or(0);
        let horizon = |index| Horizon {
            stamp: Stamp(number(collected_name(index))),
            expired_s: number(expired_name(index)),
        };
        self.shared().ranges.set(tokens.clone(), (0..tokens.len()).map(horizon).collect());
        self.leaves().cut(tokens, tables);
        Ok(())
    }

    /// From now on this range takes no writes up to this stamp; answered when all that were taken before are visible.
    pub fn close_range(&self, index: usize, upto: Stamp, to: AnswerTo<Result<(), Failure>>) {
        self.shared().ranges.close(index, upto);
        self.push(Request::Barrier { to });
    }

    /// Dead cells of this range that the horizon covers count as gone, for good; answered when that is durable. Their
    /// space is given back bit by bit.
    pub fn collect_range(&self, index: usize, horizon: Horizon, to: AnswerTo<Result<(), Failure>>) {
        self.push_base_job(BaseJob { what: Remember::Collected(index, horizon), to });
    }

    /// Drops dead cells that count as gone, in the background, and gives their space back.
    pub fn drop_collected(&self) {
        self.shared().drop_collected();
    }

    /// Up to where dead cells of a range were collected.
    pub fn horizon(&self, index: usize) -> Horizon {
        self.shared().ranges.horizon(index)
    }

    /// A number that was remembered under this name.
    pub fn remembered(&self, name: &str) -> Option<i64> {
        self.shared().remembered.lock().expect("no panic while it is held").get(name).copied()
    }

    /// Remembers numbers for good; answered when they are durable.
    pub fn remember(&self, numbers: Vec<(String, i64)>, to: AnswerTo<Result<(), Failure>>) {
        self.push_base_job(BaseJob { what: Remember::Numbers(numbers), to });
    }

    /// How many rows were ever logged here: those of the log and those it has forgotten.
    pub fn logged(&self) -> i64 {
        self.shared().log_last.load(Atomic::Acquire)
    }

    fn push_base_job(&self, job: BaseJob) {
        let shared = self.shared();
        shared.base_jobs.lock().expect("no panic while it is held").push_back(job);
        // Looked at only now: a flusher that ends in between refuses what it finds, and may have looked before.
        if shared.takes_no_base_jobs() {
            shared.refuse_base_jobs();
        }
        shared.flusher_bell.ring();
    }

    /// The tables of which there are cells, as far as was seen since [`Store::cut_leaves`].
    pub fn tables(&self) -> Vec<TableId> {
        self.leaves().tables()
    }

    /// The leaf that this engine key belongs to; of a table without cells an empty one up to `end`.
    pub fn leaf_at(&self, key: &[u8], end: &[u8]) -> LeafView {
        self.leaves().leaf_at(key, end)
    }

    /// Looks at up to `cells_max` more cells. On the caller's thread: a few microseconds each.
    pub fn scan(&self, scan: &mut Scan, cells_max: usize) -> Result<(), StoreError> {
        if scan.complete {
            return Ok(());
        }
        let (cells, all) =
            self.shared().view.range(&scan.next, Some(scan.end()), cells_max, SCAN_BYTES_MAX)?;
        scan.take(&cells, all);
        Ok(())
    }

    /// Up to where dead cells of the range of this engine key were collected.
    pub fn horizon_at(&self, key: &[u8]) -> Horizon {
        self.shared().ranges.horizon_at(key)
    }

    /// Takes note of the sum of a leaf, scanned from its start.
    pub fn note_leaf(&self, leaf: &LeafView, scan: &Scan) {
        self.leaves().note(leaf, scan);
    }

    /// Shows what is known of the leaves between two fixed cuts: their ends, and their sums where there are any.
    pub fn each_leaf(&self, start: &[u8], end: &[u8], show: impl FnMut(&[u8], Option<&leaves::Sum>)) {
        self.leaves().each(start, end, show);
    }

    /// The cells from one engine key up to but without another, at most `cells_max` and about a megabyte, and whether
    /// those are all.
    pub fn run(&self, start: &[u8], end: &[u8], cells_max: usize) -> Result<Run, StoreError> {
        self.shared().view.range(start, Some(end), cells_max, RUN_BYTES_MAX)
    }

    /// The oldest hints for a server: at most `count_max` and `bytes_max` bytes, but at least one if there is any.
    pub fn hints(&self, target: NodeId, count_max: usize, bytes_max: usize) -> Result<Vec<Hint>, StoreError> {
        let reader = self.shared().log_reader.lock().expect("no panic while it is held");
        hint_log::oldest(&reader, &self.shared().log_path, target, count_max, bytes_max)
    }

    /// The hints kept for each server that has some.
    pub fn hint_totals(&self) -> BTreeMap<NodeId, HintTotals> {
        self.shared().hint_totals.lock().expect("no panic while it is held").clone()
    }

    /// The hints kept for one server.
    pub fn hint_total(&self, target: NodeId) -> HintTotals {
        let totals = self.shared().hint_totals.lock().expect("no panic while it is held");
        totals.get(&target).copied().unwrap_or_default()
    }

    /// Why writes are refused at the moment; `None` if they are taken. Reads go on either way.
    pub fn not_writable(&self) -> Option<Arc<str>> {
        self.shared().health.not_writable()
    }

    /// What there is, by name, for `stats`.
    pub fn gauges(&self) -> Vec<(&'static str, i64)> {
        let shared = self.shared();
        let (queued, queued_bytes) = shared.queue.depth();
        let (active, frozen) = {
            let memory = shared.view.memory.read().expect("no panic while it is held");
            let size = |table: &Memtable| (table.len() as i64, table.bytes() as i64);
            let frozen = memory.frozen.as_ref().map(|frozen| size(&frozen.table));
            (size(&memory.active), frozen.unwrap_or_default())
        };
        let log_first = shared.log_first.load(Atomic::Relaxed);
        let flushed_upto = shared.flushed_upto.load(Atomic::Acquire);
        let hints = self.hint_totals();
        let cache = shared.view.base.cache();
        let (cache_hits, cache_misses) = cache.hits_and_misses();
        let log_bytes = sqlite::database_bytes(&shared.log_reader.lock().expect("no panic while it is held"));
        vec![
            ("log_queue_mutations", queued as i64),
            ("log_queue_bytes", queued_bytes as i64),
            ("memtable_cells", active.0),
            ("memtable_bytes", active.1),
            ("frozen_cells", frozen.0),
            ("frozen_bytes", frozen.1),
            ("log_rows", shared.log_last.load(Atomic::Relaxed) + 1 - log_first),
            ("log_rows_flushed", (flushed_upto + 1 - log_first).max(0)),
            ("log_file_bytes", log_bytes),
            ("base_file_bytes", shared.view.base.bytes()),
            ("sstables", shared.view.base.readers().sstables() as i64),
            ("cell_cache_bytes", cache.bytes() as i64),
            ("cell_cache_hits", cache_hits as i64),
            ("cell_cache_misses", cache_misses as i64),
            ("hints", hints.values().map(|totals| totals.count as i64).sum()),
            ("hint_bytes", hints.values().map(|totals| totals.bytes as i64).sum()),
        ]
    }

    /// Commits and answers what waits, then ends the threads. From then on writes are abandoned; reads go on. The
    /// memtable is not flushed: the next start replays the log.
    pub async fn close(&self) {
        let workers = self.inner.workers.lock().expect("no panic while it is held").take();
        let Some(mut workers) = workers else { return };
        self.shared().end(Ending::Drain);
        workers.writer.ended().await;
        workers.telling.abort();
        self.shared().end(Ending::FlusherEnds);
        workers.flusher.ended().await;
    }

    /// True if it was refused.
    fn push(&self, request: Request) -> bool {
        if let Some(reason) = self.shared().health.latched() {
            request.refuse(Failure::Refused(format!("{reason}; nothing was stored on this server").into()));
            return true;
        }
        match self.shared().queue.push(request) {
            Ok(()) => {
                self.shared().arrivals.note();
                false
            }
            Err(request) => {
                request.refuse(Failure::Overloaded);
                true
            }
        }
    }

    fn leaves(&self) -> &Leaves {
        &self.shared().leaves
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }
}

impl Shared {
    fn new(
        config: &Config,
        disk: &Disk,
        base: &BaseWriter,
        log: &CommitLog,
        memory: Memory,
        hint_totals: BTreeMap<NodeId, HintTotals>,
        stats: Arc<Stats>,
    ) -> Result<Shared, OpenError> {
        let log_reader =
            sqlite::open_to_read(disk, log.path(), &commit_log::FORMAT, config.base_cache_bytes, 0)?;
        let ranges = Arc::new(Ranges::default());
        Ok(Shared {
            queue: Arc::new(Queue::new(config)),
            view: View { memory: RwLock::new(memory), base: base.base().clone(), ranges: ranges.clone() },
            leaves: Leaves::default(),
            ranges: ranges.clone(),
            flush_wanted: AtomicBool::new(false),
            collect_wanted: AtomicBool::new(false),
            base_jobs: Mutex::default(),
            remembered: Mutex::new(base.numbers()?),
            health: Health::default(),
            stats,
            writer_bell: Arc::default(),
            arrivals: Arc::default(),
            flusher_bell: Arc::default(),
            flushed_upto: AtomicI64::new(base.flushed_upto()),
            log_first: AtomicI64::new(log.first()),
            log_last: AtomicI64::new(log.last()),
            hint_totals: Mutex::new(hint_totals),
            log_reader: Mutex::new(log_reader),
            log_path: log.path().to_owned(),
            ending: AtomicU8::new(Ending::No as u8),
            #[cfg(test)]
            base_meddle: Mutex::default(),
        })
    }

    fn drop_collected(&self) {
        self.collect_wanted.store(true, Atomic::Release);
        self.flush_wanted.store(true, Atomic::Release);
        self.writer_bell.ring();
    }

    /// True if the flusher carries out none any more.
    fn takes_no_base_jobs(&self) -> bool {
        self.health.latched().is_some() || self.ending() >= Ending::FlusherEnds
    }

    /// Answers all that wait for data.db to remember something: it will not.
    fn refuse_base_jobs(&self) {
        let jobs = std::mem::take(&mut *self.base_jobs.lock().expect("no panic while it is held"));
        for job in jobs {
            let reason = self.health.latched().unwrap_or_else(|| "this server is stopping".into());
            job.to.send(Err(Failure::Refused(reason.to_string().into())));
        }
    }

    fn ending(&self) -> Ending {
        let endings = [Ending::No, Ending::Drain, Ending::FlusherEnds, Ending::Now];
        endings[usize::from(self.ending.load(Atomic::Acquire))]
    }

    fn end(&self, ending: Ending) {
        self.ending.store(ending as u8, Atomic::Release);
        self.writer_bell.ring();
        self.flusher_bell.ring();
    }

    /// No more writes until a restart.
    fn latch(&self, reason: &str) {
        if self.health.latch(reason) {
            log::error!("{reason}; no more writes are taken until this server is restarted, reads go on");
        }
        self.writer_bell.ring(); // so that those who wait are answered
        self.flusher_bell.ring();
    }

    #[cfg(test)]
    fn meddle_with_base(&self, connection: &Connection) {
        if let Some(meddle) = self.base_meddle.lock().expect("no panic while it is held").take() {
            meddle(connection);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.end(Ending::Now);
        if let Some(workers) = self.workers.get_mut().expect("no panic while it is held") {
            workers.telling.abort();
            // So that whoever opens the directory next is alone; at most one transaction is waited for.
            workers.writer.join();
            workers.flusher.join();
        }
    }
}

fn start_workers(
    config: &Config,
    drive: Drive,
    shared: &Arc<Shared>,
    base: BaseWriter,
    log: CommitLog,
    mark: Option<Mark>,
) -> Result<Workers, OpenError> {
    let (answers, batches) = mpsc::unbounded_channel();
    tokio::spawn(writer::give_answers(batches));
    let (queue, bell) = (shared.queue.clone(), shared.writer_bell.clone());
    let telling = tokio::spawn(shared.arrivals.clone().tell_of_all(move || {
        if queue.release() {
            bell.ring();
        }
    }));
    let log_path = log.path().to_owned();
    let no_thread = |error: std::io::Error| OpenError::NoThread { path: log_path.clone(), source: error };
    let writer = Writer::new(shared.clone(), log, mark, config, answers);
    let flusher = Flusher::new(shared.clone(), base, config);
    Ok(Workers {
        telling,
        writer: drive::start("log writer", writer, shared.writer_bell.clone(), &drive).map_err(no_thread)?,
        flusher: drive::start("flusher", flusher, shared.flusher_bell.clone(), &drive).map_err(no_thread)?,
    })
}

/// Before SQLite opens them: what it would take for the end of a write-ahead log may be damage in the middle of it.
fn check_write_ahead_logs(disk: &Disk, dir: &Path, durability: Durability) -> Result<(), OpenError> {
    wal_check::refuse_damage(disk, &dir.join(base::FILE))?;
    match durability {
        Durability::PowerLoss => wal_check::refuse_damage(disk, &dir.join(commit_log::FILE)),
        Durability::ProcessCrash => Ok(()), // a power cut may tear several commits
    }
}

/// The log has forgotten what data.db held; an older data.db does not hold it.
fn check_base_is_not_older(base: &Path, held_upto: i64, forgotten_upto: i64) -> Result<(), OpenError> {
    if held_upto >= forgotten_upto {
        return Ok(());
    }
    let what = format!(
        "it holds the log's rows up to sequence {held_upto}, but the log counts on it for those up to {forgotten_upto}: \
         it is older than log.db, or was deleted"
    );
    Err(OpenError::damaged(base, what))
}

/// data.db is created before log.db, so a new one beside a log with content has replaced another.
fn check_base_is_not_new(base: &BaseWriter, log: &CommitLog) -> Result<(), OpenError> {
    if log.reached() == Reached::default() {
        return Ok(());
    }
    Err(OpenError::damaged(base.base().path(), "it is new, but log.db has been written to: it was deleted"))
}

/// A log that ends before its mark was cut off or damaged at its end.
fn check_log_reaches_its_mark(
    mark: &Option<Mark>,
    log: &Path,
    reached: Reached,
    durability: Durability,
) -> Result<(), OpenError> {
    let marked = mark.as_ref().and_then(Mark::read).unwrap_or_default();
    let what = if reached.row < marked.row {
        format!("it ends at sequence {}, but rows up to {} were committed to it", reached.row, marked.row)
    } else if reached.hint < marked.hint {
        format!("its hints end at {}, but hints up to {} were committed to it", reached.hint, marked.hint)
    } else {
        return Ok(());
    };
    match durability {
        Durability::PowerLoss => Err(OpenError::damaged(log, what)),
        Durability::ProcessCrash => {
            log::warn!("log.db: {what}; a power cut does that with durability = \"process-crash\"");
            Ok(())
        }
    }
}

/// data.db holds only what was logged before. A log that ends earlier has lost its end.
fn check_log_is_not_older(
    base: &BaseWriter,
    log: &mut CommitLog,
    durability: Durability,
) -> Result<(), OpenError> {
    let flushed_upto = base.flushed_upto();
    if log.last() >= flushed_upto {
        return Ok(());
    }
    let what = format!(
        "it ends at sequence {}, but data.db has rows up to {flushed_upto} from it: it is older than data.db",
        log.last()
    );
    match durability {
        Durability::PowerLoss => Err(OpenError::damaged(log.path(), what)),
        Durability::ProcessCrash => {
            log::warn!("log.db: {what}; a power cut does that with durability = \"process-crash\"");
            log.skip_to(flushed_upto)
        }
    }
}
