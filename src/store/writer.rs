//! The only writer of log.db: takes what is queued, commits it in one transaction, merges it into the memtable,
//! answers.
//!
//!   queue ─► log.db (one fsync for the whole batch) ─► memtable ─► answers, all with one wake-up ─► checkpoint, if due
//!
//! A cell is in the memtable only if the log has it, so replay after a crash returns every acknowledged cell. A batch
//! is what had arrived when the last fsync ended or, while several write at once, a little later (`group`, `courtesy`).
//! Rows that are flushed are forgotten along with others that are written, or, once nobody has written for a while, by
//! themselves, with rests in which somebody may.
//!
//! When the log fails:
//!   - no space, or somebody's lock: the transaction is undone, everybody in it hears *refused, nothing was stored*,
//!     and the next one tries again. Without requests one that leaves no trace tries once a second, so that the reason
//!     goes away.
//!   - anything else (I/O error, failed fsync, damage): no more writes until a restart. What the operating system holds
//!     of the file cannot be trusted any more. If it failed while committing, the answer is *unknown*.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::commit_log::{CommitFailed, CommitLog, Committed};
use super::drive::{Turn, Worker};
use super::group::{ENOUGH, Group};
use super::hint_log::HintChange;
use super::mark::Mark;
use super::memtable::{PackedCell, Prepared, pack_if_long};
use super::pace;
use super::queue::Request;
use super::ranges::{Admission, Origin};
use super::sorted_cells::Key;
use super::sqlite::{self, Fault};
use super::{Ending, Shared};
use crate::answer::{AnswerTo, ApplyAnswer, Failure};
use crate::cell::{Cell, Stamp};
use crate::config::Config;
use crate::key;
use crate::mutation::Mutation;

/// Cells merged under one hold of the memtable's lock, so that readers get in between.
const CELLS_PER_HOLD: usize = 256;

/// Rows are forgotten in a transaction of their own only once nothing was written for this long: what comes next would
/// wait for it.
const QUIET: Duration = Duration::from_millis(100);

/// How often a transaction that leaves no trace tries whether the disk has space again.
const PROBE: Duration = Duration::from_secs(1);

/// The only writer of log.db.
pub(super) struct Writer {
    shared: Arc<Shared>,
    log: CommitLog,
    group: Group,
    /// Names the last committed row; `None` if its file cannot be opened.
    mark: Option<Mark>,
    memtable_bytes_max: usize,
    log_bytes_max: usize,
    /// To the task that gives the answers. Unbounded, but never more than callers wait for, and what they wrote.
    answers: mpsc::UnboundedSender<Vec<Given>>,
    /// Not before this are rows forgotten by themselves.
    forget_at: Instant,
    /// The last transaction failed for lack of space or because of a lock.
    in_trouble: bool,
    /// In trouble, and has waited since the last attempt.
    probe_due: bool,
}

/// An answer on its way to who asked.
pub(super) enum Given {
    /// With what was applied: most of it was allocated over there, and freeing what another thread allocated costs
    /// more.
    Apply(AnswerTo<ApplyAnswer>, ApplyAnswer, Option<Arc<Mutation>>),
    Done(AnswerTo<Result<(), Failure>>, Result<(), Failure>),
}

impl Given {
    fn give(self) {
        match self {
            Given::Apply(to, answer, applied) => {
                to.send(answer);
                drop(applied);
            }
            Given::Done(to, answer) => to.send(answer),
        }
    }
}

/// Gives the answers of each batch, on the runtime of those who asked: one wake-up across threads a batch.
pub(super) async fn give_answers(mut batches: mpsc::UnboundedReceiver<Vec<Given>>) {
    while let Some(batch) = batches.recv().await {
        batch.into_iter().for_each(Given::give);
    }
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        log: CommitLog,
        mark: Option<Mark>,
        config: &Config,
        answers: mpsc::UnboundedSender<Vec<Given>>,
    ) -> Writer {
        let Config { memtable_bytes_max, log_bytes_max, .. } = *config;
        Writer {
            shared,
            log,
            group: Group::new(config.commit_window()),
            mark,
            memtable_bytes_max,
            log_bytes_max,
            answers,
            forget_at: Instant::now(),
            in_trouble: false,
            probe_due: false,
        }
    }

    /// Commits a batch, merges it, answers it. An empty one only forgets rows.
    fn commit(&mut self, batch: Vec<Request>) {
        let forgets = batch.is_empty();
        let batch = self.admit(batch);
        if batch.is_empty() && !forgets {
            return; // nothing of it is to be stored
        }
        let started = Instant::now();
        let flushed_upto = self.shared.flushed_upto.load(Atomic::Acquire);
        let committed = self.log.commit(&batch, flushed_upto);
        let stats = &self.shared.stats;
        match committed {
            Ok(committed) => {
                stats.commits.count();
                stats.commit.record_time(started.elapsed());
                if !batch.is_empty() {
                    stats.commit_batch.record(batch.len() as u64);
                }
                self.committed(batch, committed);
            }
            Err(failed) => {
                stats.commits_failed.count();
                self.failed(batch, failed);
            }
        }
    }

    /// Answers the mutations that are not to be stored, and leaves out the cells that are not.
    fn admit(&self, batch: Vec<Request>) -> Vec<Request> {
        let ranges = &self.shared.ranges;
        let suspect =
            |mutation: &Mutation| mutation.cells.iter().any(|(_, cell)| !ranges.is_above_all(cell.stamp));
        if !batch.iter().filter_map(mutation).any(suspect) {
            return batch;
        }
        let mut given = Vec::new();
        let mut admitted = Vec::with_capacity(batch.len());
        for request in batch {
            match request {
                Request::Apply { origin, mutation, to } if suspect(&mutation) => {
                    match self.admit_one(origin, mutation) {
                        Ok(mutation) => admitted.push(Request::Apply { origin, mutation, to }),
                        Err(answer) => given.push(Given::Apply(to, answer, None)),
                    }
                }
                request => admitted.push(request),
            }
        }
        self.hand_out(given);
        admitted
    }

    /// What of the mutation is to be stored; or, if nothing, the answer.
    fn admit_one(&self, origin: Origin, mutation: Arc<Mutation>) -> Result<Arc<Mutation>, ApplyAnswer> {
        let admit = |cell: &Cell| self.shared.ranges.admit(&mutation.partition, cell.stamp, origin);
        let mut covered = false;
        for (_, cell) in &mutation.cells {
            match admit(cell) {
                Admission::Take => {}
                Admission::Covered => covered = true,
                Admission::Above(above) => return Err(self.refuse_old(&mutation, above)),
            }
        }
        if !covered {
            return Ok(mutation);
        }
        self.shared.stats.mutations_covered.count();
        let rest = mutation.cells.iter().filter(|(_, cell)| admit(cell) == Admission::Take).cloned();
        let rest = Mutation { cells: rest.collect(), ..Mutation::clone(&mutation) };
        if rest.cells.is_empty() { Err(ApplyAnswer::Applied) } else { Ok(Arc::new(rest)) }
    }

    /// The answer to a write that comes too late: refused, unless it is there, or something newer.
    fn refuse_old(&self, mutation: &Mutation, above: Stamp) -> ApplyAnswer {
        let mut newest = None;
        for (column, cell) in &mutation.cells {
            let key = key::encode(mutation.table, &mutation.partition, column);
            match self.shared.view.get(&key, &AtomicBool::new(false)) {
                Ok(Some(held)) if held.order(cell).is_ge() => {
                    newest = newest.max(held.order(cell).is_gt().then_some(held.stamp));
                }
                _ => {
                    self.shared.stats.mutations_refused.count();
                    return ApplyAnswer::Failed(Failure::TooOld { above });
                }
            }
        }
        newest.map_or(ApplyAnswer::Applied, ApplyAnswer::Behind)
    }

    fn committed(&mut self, batch: Vec<Request>, committed: Committed) {
        if let Some(mark) = &mut self.mark {
            mark.write(self.log.reached());
        }
        self.shared.log_last.store(self.log.last(), Atomic::Relaxed);
        self.shared.log_first.store(self.log.first(), Atomic::Relaxed);
        if self.in_trouble {
            self.out_of_trouble();
        }
        self.note_hints(committed);
        let behind = self.merge(&batch);
        self.answer(batch, behind);
        self.freeze_if_full();
        match self.log.checkpoint_if_due() {
            Ok(done) => self.shared.stats.checkpoints.add(u64::from(done)),
            Err(source) => match sqlite::fault(&source) {
                Fault::Full | Fault::Busy => log::warn!("log.db keeps its write-ahead log for now: {source}"),
                Fault::Damaged | Fault::Other => {
                    self.shared.latch(&format!("a checkpoint of log.db failed: {source}"));
                }
            },
        }
    }

    fn note_hints(&self, committed: Committed) {
        if committed.hints.is_empty() {
            return;
        }
        let mut totals = self.shared.hint_totals.lock().expect("no panic while it is held");
        for change in &committed.hints {
            change.note(&mut totals);
        }
        let stored = committed.hints.iter().filter(|change| matches!(change, HintChange::Stored { .. }));
        self.shared.stats.hints_stored.add(stored.count() as u64);
    }

    /// Merges the batch into the memtable. For each mutation in order: the largest stamp that wins against it.
    fn merge(&self, batch: &[Request]) -> Vec<Option<Stamp>> {
        let mutations: Vec<&Mutation> = batch.iter().filter_map(mutation).collect();
        let mut behind = Vec::with_capacity(mutations.len());
        let mut rest = &mutations[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(one_hold(rest));
            let (keys, long) = prepare(now);
            let places = self.shared.view.memory.read().expect("no panic while it is held").find(&keys);
            let mut memory = self.shared.view.memory.write().expect("no panic while it is held");
            // Before the cells are there, but under this lock: who sees the leaf unwritten from now on, sees the cells.
            self.shared.leaves.written(&keys);
            let mut prepared = keys.into_iter().zip(places).zip(long);
            for mutation in now {
                // Takes as many as it has cells: `zip` asks for a cell first, and for no more once there is none.
                let cells = mutation.cells.iter().zip(prepared.by_ref());
                let cells =
                    cells.map(|((_, cell), ((key, place), packed))| Prepared { key, place, cell, packed });
                behind.push(cells.filter_map(|cell| memory.merge(cell)).max());
            }
            rest = later;
        }
        // After memory: what was frozen there may be in the base by now. Only a client's write has to know: whoever
        // brings what others have is content that it is here, and a read of the file for each hint is most of what it
        // costs.
        let base = &self.shared.view.base;
        for ((origin, mutation), behind) in batch.iter().filter_map(applied).zip(&mut behind) {
            if origin == Origin::Write && mutation.cells.iter().any(|(_, cell)| cell.stamp <= base.largest())
            {
                *behind = (*behind).max(self.behind_base(mutation));
            }
        }
        behind
    }

    /// The largest stamp in data.db that wins against a cell of the mutation.
    fn behind_base(&self, mutation: &Mutation) -> Option<Stamp> {
        let base = &self.shared.view.base;
        let wins = |(column, cell): &(Bytes, Cell)| {
            let key = key::encode(mutation.table, &mutation.partition, column);
            let held = base.get(&key)?;
            Ok(held.filter(|held| held.order(cell).is_gt()).map(|held| held.stamp))
        };
        let old = mutation.cells.iter().filter(|(_, cell)| cell.stamp <= base.largest());
        match old.map(wins).collect::<Result<Vec<_>, super::StoreError>>() {
            Ok(stamps) => stamps.into_iter().flatten().max(),
            Err(error) => {
                // It is in the log, but whether it is the newest here nobody can say: it may not be.
                match error {
                    super::StoreError::Damaged { .. } => self.shared.latch(&error.to_string()),
                    super::StoreError::Unreadable { .. } => log::warn!("{error}"), // out of files, say: it passes
                }
                Some(base.largest())
            }
        }
    }

    fn answer(&self, batch: Vec<Request>, behind: Vec<Option<Stamp>>) {
        let stats = &self.shared.stats;
        let mut behind = behind.into_iter();
        let mut given = Vec::with_capacity(batch.len());
        for request in batch {
            match request {
                Request::Apply { to, mutation, .. } => {
                    stats.mutations_applied.count();
                    let answer = match behind.next().expect("one entry a mutation") {
                        None => ApplyAnswer::Applied,
                        Some(stamp) => {
                            stats.mutations_behind.count();
                            ApplyAnswer::Behind(stamp)
                        }
                    };
                    given.push(Given::Apply(to, answer, Some(mutation)));
                }
                Request::Hint { to, .. } | Request::ForgetHints { to, .. } | Request::Barrier { to } => {
                    given.push(Given::Done(to, Ok(())))
                }
                #[cfg(test)]
                Request::Meddle(_) => {}
            }
        }
        self.hand_out(given);
    }

    fn failed(&mut self, batch: Vec<Request>, failed: CommitFailed) {
        let CommitFailed { source, fault, outcome_unknown } = failed;
        let reason = match fault {
            Fault::Full => format!("disk full: log.db cannot grow ({source})"),
            Fault::Busy => format!("another program has locked log.db ({source})"),
            Fault::Damaged | Fault::Other => format!("log.db failed: {source}; restart the server"),
        };
        match fault {
            Fault::Full | Fault::Busy => {
                if !self.in_trouble {
                    log::error!("{reason}; writes are refused until that has passed");
                }
                self.in_trouble = true;
                self.probe_due = false;
                self.shared.health.log_fails(&reason);
            }
            Fault::Damaged | Fault::Other => self.shared.latch(&reason),
        }
        if outcome_unknown {
            drop(batch); // which answers that it may or may not have been carried out
        } else {
            self.refuse(batch, &reason);
        }
    }

    fn refuse(&self, batch: Vec<Request>, reason: &str) {
        let failure = Failure::Refused(format!("{reason}; nothing was stored on this server").into());
        let refused = batch.iter().filter(|request| mutation(request).is_some()).count();
        self.shared.stats.mutations_refused.add(refused as u64);
        let hints = batch.iter().filter(|request| matches!(request, Request::Hint { .. })).count();
        self.shared.stats.hints_dropped.add(hints as u64);
        let refuse = |request| match request {
            Request::Apply { to, .. } => Some(Given::Apply(to, ApplyAnswer::Failed(failure.clone()), None)),
            Request::Hint { to, .. } | Request::ForgetHints { to, .. } | Request::Barrier { to } => {
                Some(Given::Done(to, Err(failure.clone())))
            }
            #[cfg(test)]
            Request::Meddle(_) => None,
        };
        self.hand_out(batch.into_iter().filter_map(refuse).collect());
    }

    fn hand_out(&self, given: Vec<Given>) {
        if !given.is_empty() {
            let _ = self.answers.send(given); // with the runtime gone nobody waits any more
        }
    }

    /// Hands a memtable that is full, or is to be flushed, to the flusher, if it has none. Even an empty one: rows
    /// whose cells lost against what is flushed are in the log and nowhere else, and only a flush says that they need
    /// not be replayed.
    fn freeze_if_full(&self) {
        let mut memory = self.shared.view.memory.write().expect("no panic while it is held");
        let wanted = self.shared.flush_wanted.load(Atomic::Acquire);
        let full = memory.is_full(self.memtable_bytes_max, self.log_bytes_max);
        if (full || wanted) && memory.frozen.is_none() {
            if self.log.last() > self.shared.flushed_upto.load(Atomic::Acquire) {
                memory.freeze(self.log.last());
            }
            self.shared.flush_wanted.store(false, Atomic::Release); // last: the flusher looks for what is frozen after it
            self.shared.flusher_bell.ring();
        }
    }

    fn has_room(&self) -> bool {
        let memory = self.shared.view.memory.read().expect("no panic while it is held");
        memory.has_room(self.memtable_bytes_max, self.log_bytes_max)
    }

    /// Both memtables are full. Callers wait and, once the queue is full, are refused; if the flush makes no progress,
    /// they are refused at once.
    fn wait_for_room(&mut self) -> Turn {
        let Some(reason) = self.shared.health.flush_trouble() else { return self.wait_or_end(None) };
        self.in_trouble = true;
        self.shared.health.log_fails(&reason);
        self.refuse_all(&reason)
    }

    fn refuse_all(&self, reason: &str) -> Turn {
        let batch = self.shared.queue.take();
        if batch.is_empty() {
            return self.wait_or_end(None);
        }
        self.refuse(batch, reason);
        Turn::Again
    }

    /// How long to wait for others to be committed with what is there.
    fn rest(&self) -> Option<Duration> {
        let rest = self.group.rest().filter(|_| self.shared.ending() == Ending::No);
        if rest.is_some() && !self.shared.queue.tell_of(ENOUGH) {
            return rest;
        }
        self.shared.queue.tell_of(1);
        None
    }

    /// Nothing to do.
    fn wait_or_end(&self, timeout: Option<Duration>) -> Turn {
        let drained = self.shared.ending() == Ending::Drain && self.shared.queue.depth().0 == 0;
        if !drained {
            return Turn::Wait(timeout);
        }
        let latched = self.shared.health.latched().is_some();
        if !latched && let Err(error) = self.log.checkpoint_to_close() {
            log::warn!("log.db keeps its write-ahead log: {error}"); // which is part of it: nothing is lost
        }
        Turn::Ended
    }

    /// Tries whether the log takes writes again, once some time has passed since it did not.
    fn probe_or_wait(&mut self) -> Turn {
        if self.probe_due {
            match self.log.probe() {
                Ok(()) => {
                    self.out_of_trouble();
                    return Turn::Again;
                }
                Err(source) => match sqlite::fault(&source) {
                    Fault::Full | Fault::Busy => {}
                    Fault::Damaged | Fault::Other => {
                        self.shared.latch(&format!("log.db failed: {source}; restart the server"));
                        return Turn::Again;
                    }
                },
            }
        }
        self.probe_due = true;
        self.wait_or_end(Some(PROBE))
    }

    /// Forgets some rows that are flushed, once nobody has written for a while.
    fn forget_or_wait(&mut self) -> Turn {
        let began = Instant::now();
        if began < self.forget_at {
            return Turn::Wait(Some(self.forget_at - began));
        }
        self.commit(Vec::new());
        self.forget_at = Instant::now() + pace::rest_after(began);
        Turn::Again
    }

    fn out_of_trouble(&mut self) {
        self.in_trouble = false;
        self.shared.health.log_works();
        log::info!("log.db takes writes again");
    }

    fn has_to_forget(&self) -> bool {
        self.log.has_flushed_rows()
            || self.shared.flushed_upto.load(Atomic::Acquire) > self.log.flushed_upto()
    }
}

impl Worker for Writer {
    fn turn(&mut self) -> Turn {
        if self.shared.ending() == Ending::Now {
            return Turn::Ended;
        }
        if let Some(rest) = self.rest() {
            return Turn::Wait(Some(rest));
        }
        if let Some(reason) = self.shared.health.latched() {
            return self.refuse_all(&reason);
        }
        self.freeze_if_full();
        if !self.has_room() {
            return self.wait_for_room();
        }
        let batch = self.shared.queue.take();
        if !batch.is_empty() {
            self.group.begins(batch.len());
            self.commit(batch);
            self.forget_at = Instant::now() + QUIET;
            return Turn::Again;
        }
        if self.in_trouble {
            return self.probe_or_wait();
        }
        if self.has_to_forget() && self.shared.ending() == Ending::No {
            return self.forget_or_wait();
        }
        self.wait_or_end(None)
    }

    fn gives_way(&self) -> bool {
        self.group.keeps_apart()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.close();
        if thread::panicking() {
            self.shared.latch("the writer of log.db failed; this is a bug, see the log");
        }
    }
}

fn mutation(request: &Request) -> Option<&Mutation> {
    applied(request).map(|(_, mutation)| mutation)
}

fn applied(request: &Request) -> Option<(Origin, &Mutation)> {
    match request {
        Request::Apply { origin, mutation, .. } => Some((*origin, mutation)),
        _ => None,
    }
}

/// The keys of the cells of all mutations, in order; and those cells packed that are long.
fn prepare(mutations: &[&Mutation]) -> (Vec<Key>, Vec<Option<PackedCell>>) {
    let cells = mutations.iter().map(|mutation| mutation.cells.len()).sum();
    let (mut keys, mut long) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
    let mut key = Vec::new();
    for mutation in mutations {
        for (column, cell) in &mutation.cells {
            key.clear();
            key::encode_into(&mut key, mutation.table, &mutation.partition, column);
            keys.push(Key::from(&key[..]));
            long.push(pack_if_long(cell));
        }
    }
    (keys, long)
}

/// How many of the mutations are merged under one hold of the lock: whole ones, at least one.
fn one_hold(mutations: &[&Mutation]) -> usize {
    let mut cells = 0;
    let fits = |mutation: &&&Mutation| {
        cells += mutation.cells.len();
        cells <= CELLS_PER_HOLD
    };
    mutations.iter().take_while(fits).count().max(1)
}
