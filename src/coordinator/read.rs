//! How a read is carried out: here if that is enough, else by asking; what a replica that answered lacks is written
//! back.
//!
//! Not here: which replica is asked next, and who is behind (`read_op`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::read_op::{Next, ReadOp};
use super::trace::{describe_apply, describe_read};
use super::{Admitted, Coordinator, Level, REDIAL_PAUSE, Refused, Trace, describe_failures, turn};
use crate::answer::{Answers, ApplyAnswer, Failure, NodeId, ReadAnswer};
use crate::cell::Cell;
use crate::membership::State;
use crate::mutation::Mutation;
use crate::replica::Outgoing;
use crate::slice::Slice;

/// A read asks the others again after each pause, so pauses double up to this.
const REDIAL_PAUSE_MAX: Duration = Duration::from_millis(80);

/// Reads that must have been made before the delay of speculative retries is renewed.
const SPECULATION_READS_MIN: u64 = 20;

/// A read that met its level.
pub struct Found {
    /// The newest version of each cell, in column order, tombstones and expired ones included.
    pub cells: Vec<(Bytes, Cell)>,
    /// False: the slice's bound cut it; there may be more cells behind the last one.
    pub complete: bool,
    /// Its share of what answers may take in memory, if it is large; to be kept until the answer has been sent.
    pub held: Option<Admitted>,
}

impl Coordinator {
    /// Reads `slice` at `level`.
    pub async fn read(
        self: &Arc<Self>,
        slice: Slice,
        level: Level,
        trace: &mut Trace,
    ) -> Result<Found, Refused> {
        turn::begin().await;
        match self.read_at_once(&slice, level, trace) {
            Some(found) => {
                turn::spend(value_bytes(&found.cells)).await;
                Ok(found)
            }
            None => self.read_by_asking(slice, level, trace).await,
        }
    }

    /// The short way: one answer suffices and this server can give it, without a timer or a task. The service tries
    /// it first, so that such a read is answered where its bytes arrived. `None`: others have to be asked.
    pub fn read_at_once(&self, slice: &Slice, level: Level, trace: &mut Trace) -> Option<Found> {
        let start = Instant::now();
        let found = self.read_here_if_enough(slice, level, trace)?;
        self.stats.read.record_time(start.elapsed());
        self.stats.reads_ok.count();
        Some(found)
    }

    /// As [`Coordinator::read`], of which [`Coordinator::read_at_once`] was tried.
    pub async fn read_by_asking(
        self: &Arc<Self>,
        slice: Slice,
        level: Level,
        trace: &mut Trace,
    ) -> Result<Found, Refused> {
        let start = Instant::now();
        turn::begin().await;
        let outcome = self.try_read(slice, level, start, trace).await;
        let took = start.elapsed();
        self.recent_reads.record_time(took);
        self.stats.read.record_time(took);
        match &outcome {
            Ok(_) => self.stats.reads_ok.count(),
            Err(Refused::Unavailable { .. }) => self.stats.reads_unavailable.count(),
            Err(Refused::Overloaded { .. }) => self.stats.reads_overloaded.count(),
            Err(Refused::ReadTimeout { .. } | Refused::WriteTimeout { .. } | Refused::TooOld { .. }) => {
                self.stats.reads_timeout.count()
            }
        }
        outcome
    }

    fn read_here_if_enough(&self, slice: &Slice, level: Level, trace: &mut Trace) -> Option<Found> {
        let replicas = self.ring.replicas(&slice.partition);
        if level.needed(replicas.len()) != 1
            || !replicas.contains(&self.me)
            || self.config.read_repair_chance > 0.0
        {
            return None;
        }
        match self.replicas.read_here(slice) {
            ReadAnswer::Cells { cells, complete } => {
                trace.note(|| format!("server {} answers from its own store, {level}", self.me));
                // A large answer takes its share of the memory for answers; if there is none, the long way says so.
                let held = self.admission.admit_answer(value_bytes(&cells))?;
                Some(Found { cells, complete, held })
            }
            ReadAnswer::Failed(failure) => {
                trace.note(|| format!("server {}: {failure}", self.me));
                None
            }
        }
    }

    async fn try_read(
        self: &Arc<Self>,
        slice: Slice,
        level: Level,
        start: Instant,
        trace: &mut Trace,
    ) -> Result<Found, Refused> {
        let mut admitted = self.admit(slice.partition.len(), "nothing was read")?;
        let replicas = self.ring.replicas(&slice.partition);
        let (mut alive, absent) = self.split_by_liveness(&slice.partition);
        self.check_available(level, &alive, &absent, "nothing was read")?;
        self.best_first(&mut alive);
        let needed = level.needed(replicas.len());
        trace.note(|| format!("server {} coordinates, {level}", self.me));
        let deadline = start + self.config.read_timeout();
        let mut pause = REDIAL_PAUSE;
        loop {
            admitted.shrink_to(slice.partition.len()); // the answers of an earlier attempt are gone
            let mut op = ReadOp::new(needed, alive.clone());
            self.await_answers(&mut op, &slice, &mut admitted, deadline, trace).await?;
            let answered = op.answered();
            if answered < needed && self.wait_for_redial(op.failures(), pause, deadline).await {
                pause = (pause * 2).min(REDIAL_PAUSE_MAX);
                (alive, _) = self.split_by_liveness(&slice.partition);
                let absent: Vec<NodeId> =
                    replicas.iter().copied().filter(|node| !alive.contains(node)).collect();
                self.check_available(level, &alive, &absent, "nothing was read")?;
                self.best_first(&mut alive);
                continue;
            }
            if answered < needed {
                let why = describe_failures(op.failures().iter().map(|(node, failure)| (*node, failure)));
                return Err(Refused::ReadTimeout { level, needed, answered, why });
            }
            if !level.is_strong(replicas.len()) {
                self.compare_by_chance(&op, &slice);
            }
            let resolved = op.resolve(slice.cells_max);
            let found = |admitted: Admitted| {
                let held = admitted.for_answer(value_bytes(&resolved.cells));
                Found { cells: resolved.cells, complete: resolved.complete, held }
            };
            if !self.config.read_repair || resolved.repairs.is_empty() {
                return Ok(found(admitted));
            }
            let current = answered - resolved.repairs.len();
            match self.repair(&slice, resolved.repairs, deadline, trace).await {
                Ok(()) => return Ok(found(admitted)),
                // A replica that cannot be mended (its disk is full, say) must not stop reads that the others can
                // answer.
                Err((unmended, _)) if alive.len() > needed => alive.retain(|node| *node != unmended),
                Err((unmended, failure)) => {
                    let why =
                        format!(" with the newest version (server {unmended} was not repaired: {failure})");
                    return Err(Refused::ReadTimeout { level, needed, answered: current, why });
                }
            }
        }
    }

    /// True if a server that could not be asked is being dialled again, after giving that a moment.
    async fn wait_for_redial(
        &self,
        failures: &[(NodeId, Failure)],
        pause: Duration,
        deadline: Instant,
    ) -> bool {
        let redialled = |(node, failure): &(NodeId, Failure)| {
            *failure == Failure::Unreachable && self.members.state(*node) == State::Suspect
        };
        let worth_it = failures.iter().any(redialled) && Instant::now() + pause < deadline;
        if worth_it {
            tokio::time::sleep(pause).await;
        }
        worth_it
    }

    /// Asks as many replicas as needed, one more where one fails or is slow, until enough answered or it is hopeless.
    async fn await_answers(
        &self,
        op: &mut ReadOp,
        slice: &Slice,
        admitted: &mut Admitted,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(), Refused> {
        let mut answers = Answers::default();
        for node in op.first() {
            trace.note(|| format!("to server {node}"));
            self.replicas.read(slice, answers.expect(*node));
        }
        let patience = Duration::from_micros(self.speculate_after_us.load(Ordering::Relaxed));
        let impatient_at = if self.config.speculative_retry { Instant::now() + patience } else { deadline };
        let timer = tokio::time::sleep_until(impatient_at.min(deadline));
        tokio::pin!(timer);
        loop {
            tokio::select! {
                biased; // an answer that is there counts, even at the deadline
                answer = answers.next() => {
                    let Some((node, answer)) = answer else { return Ok(()) };
                    let bytes = bytes_of(&answer);
                    let fits = admitted.grow(bytes);
                    if node == self.me {
                        turn::spend(bytes).await;
                    }
                    if !fits {
                        let why = "the answers of the requests under way here take too much memory".to_owned();
                        return Err(Refused::Overloaded { why, nothing: "nothing was read" });
                    }
                    trace.note(|| format!("server {node}: {}", describe_read(&answer)));
                    match op.note(node, answer) {
                        Next::Enough | Next::Impossible => return Ok(()),
                        Next::Ask(next) => {
                            trace.note(|| format!("to server {next} instead"));
                            self.replicas.read(slice, answers.expect(next));
                        }
                        Next::Wait => {}
                    }
                }
                () = &mut timer => {
                    if Instant::now() >= deadline {
                        trace.note(|| "the deadline has passed");
                        return Ok(());
                    }
                    timer.as_mut().reset(deadline);
                    if let Some(next) = op.slow() {
                        trace.note(|| format!("an answer is slow: to server {next} as well"));
                        self.stats.reads_speculated.count();
                        self.replicas.read(slice, answers.expect(next));
                    }
                }
            }
        }
    }

    /// Writes back what answering replicas lack, and waits until all of them have it: only then do as many replicas
    /// as the level needs have what the client is about to see.
    async fn repair(
        &self,
        slice: &Slice,
        repairs: Vec<(NodeId, Vec<(Bytes, Cell)>)>,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(), (NodeId, Failure)> {
        let mut answers = Answers::default();
        let mut last = self.me;
        for (node, cells) in repairs {
            last = node;
            trace.note(|| format!("server {node} is behind: repair"));
            self.stats.read_repairs.count();
            let mutation = Mutation { table: slice.table, partition: slice.partition.clone(), cells };
            self.replicas.apply(&Outgoing::repair(mutation), answers.expect(node));
        }
        loop {
            match tokio::time::timeout_at(deadline, answers.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some((node, ApplyAnswer::Failed(failure)))) => {
                    trace.note(|| format!("server {node} was not repaired: {failure}"));
                    self.stats.read_repairs_failed.count();
                    return Err((node, failure));
                }
                Ok(Some((node, answer))) => {
                    trace.note(|| format!("server {node}: {}", describe_apply(&answer)))
                }
                Err(_) => {
                    self.stats.read_repairs_failed.count();
                    return Err((last, Failure::TimedOut));
                }
            }
        }
    }

    /// Below a quorum: now and then compares with the replicas that were not asked, in the background.
    fn compare_by_chance(self: &Arc<Self>, op: &ReadOp, slice: &Slice) {
        if op.spared().is_empty() || !self.config.read_repair || !self.chance(self.config.read_repair_chance)
        {
            return;
        }
        let (alive, _) = self.split_by_liveness(&slice.partition);
        if alive.len() < 2 {
            return;
        }
        let (coordinator, slice) = (self.clone(), slice.clone());
        tokio::spawn(async move {
            let Some(mut admitted) = coordinator.admission.admit(slice.partition.len()) else { return };
            let deadline = Instant::now() + coordinator.config.read_timeout();
            let mut op = ReadOp::new(alive.len(), alive);
            let mut trace = Trace::new(false);
            if coordinator.await_answers(&mut op, &slice, &mut admitted, deadline, &mut trace).await.is_err()
            {
                return;
            }
            let repairs = op.resolve(slice.cells_max).repairs;
            if let Err((node, failure)) = coordinator.repair(&slice, repairs, deadline, &mut trace).await {
                log::debug!(
                    "server {}: server {node} was not repaired in the background: {failure}",
                    coordinator.me
                );
            }
        });
    }

    fn chance(&self, chance: f64) -> bool {
        self.random.lock().expect("no panic while it is held").f64() < chance
    }

    /// This server first if it is a replica, then the others by how fast they answered lately, Suspect ones last.
    fn best_first(&self, nodes: &mut [NodeId]) {
        // Cached: what it goes by may change meanwhile.
        nodes.sort_by_cached_key(|node| {
            let suspect = self.members.state(*node) != State::Up;
            (suspect, *node != self.me, self.replicas.latency_us(*node))
        });
    }

    /// Renews, from the reads since the last time, the delay after which a read asks one replica more: what 99 of 100
    /// stayed below. Called about once a second.
    pub fn renew_speculation(&self) {
        let least_us = self.config.speculative_retry_min_ms * 1000;
        let most_us = (self.config.read_timeout_ms * 1000 / 4).max(least_us);
        if let Some(p99_us) = self.recent_reads.take_percentile(99.0, SPECULATION_READS_MIN) {
            self.speculate_after_us.store(p99_us.clamp(least_us, most_us), Ordering::Relaxed);
        }
    }
}

/// Bytes of the values, which are nearly all of an answer that is large.
fn value_bytes(cells: &[(Bytes, Cell)]) -> usize {
    cells.iter().map(|(_, cell)| cell.value_bytes().len()).sum()
}

/// Memory that an answer takes, approximately.
fn bytes_of(answer: &ReadAnswer) -> usize {
    match answer {
        ReadAnswer::Cells { cells, .. } => {
            cells.iter().map(|(column, cell)| column.len() + cell.encoded_len()).sum()
        }
        ReadAnswer::Failed(_) => 0,
    }
}
