//! Carries a client's request to the replicas of its key and says what came of it.
//!
//!   write:  ring ─► who is up? ─► stamp ─► send to all up, hint for all absent ─► count until it is met ─► answer
//!                                                                    └─► late ones are awaited; failed ones get a hint
//!   read:   ring ─► who is up? ─► ask as many as needed ─► merge ─► write back to those behind ─► answer
//!
//! What the answers promise:
//!
//!   - met: as many replicas as the level needs have the mutation durably, or something newer.
//!   - [`Refused::Unavailable`]: fewer replicas were up than the level needs; nothing was written, no hint either.
//!   - [`Refused::Overloaded`]: nothing was written.
//!   - [`Refused::TooOld`]: nothing was written, and would not be if it was sent again.
//!   - [`Refused::WriteTimeout`]: outcome unknown. The write may be on some replicas; it is not undone, and hints,
//!     reads and reconciliation may yet bring it to all of them.
//!
//! Deciding is apart from doing: `write` and `read` count answers and know no socket; this file only sends and awaits.
//!
//! Not here: what a method of the wire means (`service`), how a replica is reached (`replica`).

mod admission;
pub mod level;
pub mod read;
#[cfg(test)]
mod script;
mod trace;
pub mod turn;
pub mod write;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::answer::{Answers, ApplyAnswer, Failure, Late, NodeId, ReadAnswer};
use crate::cell::{Cell, Stamp};
use crate::config::Config;
use crate::handoff::Handoff;
use crate::membership::{Members, State};
use crate::mutation::Mutation;
use crate::reconcile::{Outstanding, Unsettled};
use crate::replica::{Outgoing, Replicas};
use crate::ring::Ring;
use crate::slice::Slice;
use crate::stats::{Distribution, Stats};

use admission::Admission;
pub use admission::Admitted;
pub use level::Level;
use read::{Next, ReadOp};
pub use trace::Trace;
use write::{Verdict, WriteOp};

/// Coordinates the requests of this server's clients.
pub struct Coordinator {
    me: NodeId,
    config: Arc<Config>,
    ring: Arc<Ring>,
    members: Arc<Members>,
    replicas: Replicas,
    handoff: Arc<Handoff>,
    outstanding: Arc<Outstanding>,
    stats: Arc<Stats>,
    admission: Arc<Admission>,
    /// Microseconds after which a read asks one replica more; renewed by [`Coordinator::renew_speculation`].
    speculate_after_us: AtomicU64,
    /// Times of reads that asked other servers, since the last renewal.
    recent_reads: Distribution,
    random: Mutex<fastrand::Rng>,
    /// Where what outlives a request is done: the last answer may be given on a thread of the store.
    runtime: Handle,
}

/// A write that met its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The stamp that won: of this write, or a newer one that was there.
    pub stamp: Stamp,
    /// How many replicas are known to have it by now.
    pub replicas: usize,
}

/// A read that met its level.
pub struct Found {
    /// The newest version of each cell, in column order, tombstones and expired ones included.
    pub cells: Vec<(Bytes, Cell)>,
    /// False: the slice's bound cut it; there may be more cells behind the last one.
    pub complete: bool,
    /// Its share of what answers may take in memory, if it is large; to be kept until the answer has been sent.
    pub held: Option<Admitted>,
}

/// Why a request did not meet its level, and what happened to the data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Fewer replicas were up than the level needs. A promise: nothing was written anywhere, no hint either.
    #[error("Not enough replicas alive: {level} needs {needed}, {alive} up ({who}); {nothing}")]
    Unavailable {
        /// Of the request.
        level: Level,
        /// Replicas the level needs.
        needed: usize,
        /// Replicas that were up.
        alive: usize,
        /// Which were not.
        who: String,
        /// What did not happen: "nothing was written", "… read" or "… done".
        nothing: &'static str,
    },
    /// A write did not meet its level in time. It is on `acknowledged` replicas and perhaps on more; it is not undone
    /// and may yet surface.
    #[error(
        "Timeout: {level} needs {needed}, {acknowledged} acknowledged{why}; the outcome is unknown: \
         the write is not undone and may yet surface"
    )]
    WriteTimeout {
        /// Of the request.
        level: Level,
        /// Acknowledgements the level needs.
        needed: usize,
        /// Acknowledgements that came.
        acknowledged: usize,
        /// What the others said.
        why: String,
    },
    /// A read did not meet its level in time. Nothing was changed.
    #[error("Timeout: {level} needs {needed}, {answered} answered{why}; try again")]
    ReadTimeout {
        /// Of the request.
        level: Level,
        /// Answers the level needs.
        needed: usize,
        /// Answers that came.
        answered: usize,
        /// What the others said.
        why: String,
    },
    /// Too much is under way, or every replica refused. Nothing was written.
    #[error("Overloaded: {why}; {nothing}, try again later")]
    Overloaded {
        /// What is too much, or what the replicas said.
        why: String,
        /// What did not happen: "nothing was written", "… read" or "… done".
        nothing: &'static str,
    },
    /// A write's stamp, which the client chose, is older than deletions that were collected or are about to be.
    #[error("{}, or none; nothing was written", Failure::TooOld { above: *above })]
    TooOld {
        /// No stamp up to this one is taken.
        above: Stamp,
    },
}

/// A server whose connection broke is dialled again at once; its requests wait this long for the outcome.
const REDIAL_PAUSE: Duration = Duration::from_millis(5);

/// A read asks the others again after each pause, so pauses double up to this.
const REDIAL_PAUSE_MAX: Duration = Duration::from_millis(80);

/// How long to wait before a hint is offered again to a log whose queue was full.
const HINT_PAUSE: Duration = Duration::from_millis(50);

/// Reads that must have been made before the delay of speculative retries is renewed.
const SPECULATION_READS_MIN: u64 = 20;

/// Where the stamp of a write comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamping {
    /// This server's clock.
    Clock,
    /// The client; kept as it is.
    Given(Stamp),
}

impl Coordinator {
    /// For server `me`; `seed` decides what is left to chance. Must be called on the runtime that is to do the work.
    #[allow(clippy::too_many_arguments)] // the parts it stands on, named once in `node`
    pub fn new(
        me: NodeId,
        config: Arc<Config>,
        ring: Arc<Ring>,
        members: Arc<Members>,
        replicas: Replicas,
        handoff: Arc<Handoff>,
        outstanding: Arc<Outstanding>,
        stats: Arc<Stats>,
        seed: u64,
    ) -> Coordinator {
        let admission = Admission::new(config.requests_in_flight_max, config.requests_bytes_max);
        let speculate_after_us = AtomicU64::new(config.speculative_retry_min_ms * 1000);
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Coordinator {
            me,
            config,
            ring,
            members,
            replicas,
            handoff,
            outstanding,
            stats,
            admission,
            speculate_after_us,
            recent_reads: Distribution::default(),
            random,
            runtime: Handle::current(),
        }
    }

    /// Writes `mutation`, whose cells are stamped here, at `level`.
    pub async fn write(
        self: &Arc<Self>,
        mutation: Mutation,
        stamping: Stamping,
        level: Level,
        trace: &mut Trace,
    ) -> Result<Written, Refused> {
        let start = Instant::now();
        let outcome = self.try_write(mutation, stamping, level, start, trace).await;
        self.stats.write.record_time(start.elapsed());
        match &outcome {
            Ok(_) => self.stats.writes_ok.count(),
            Err(Refused::Unavailable { .. }) => self.stats.writes_unavailable.count(),
            Err(Refused::Overloaded { .. }) => self.stats.writes_overloaded.count(),
            Err(Refused::TooOld { .. }) => self.stats.requests_invalid.count(),
            Err(Refused::WriteTimeout { .. } | Refused::ReadTimeout { .. }) => {
                self.stats.writes_timeout.count()
            }
        }
        outcome
    }

    async fn try_write(
        self: &Arc<Self>,
        mut mutation: Mutation,
        stamping: Stamping,
        level: Level,
        start: Instant,
        trace: &mut Trace,
    ) -> Result<Written, Refused> {
        let admitted = self.admit(mutation.encoded_len(), "nothing was written")?;
        let (alive, absent) = self.split_by_liveness(&mutation.partition);
        self.check_available(level, &alive, &absent, "nothing was written")?;
        let unsettled = match stamping {
            Stamping::Clock => self.outstanding.begin(),
            Stamping::Given(stamp) => self.outstanding.begin_given(stamp),
        };
        let stamp = unsettled.stamp();
        for (_, cell) in &mut mutation.cells {
            cell.stamp = stamp;
        }
        trace.note(|| format!("server {} coordinates, stamp {stamp}, {level}", self.me));
        let op = WriteOp::new(level, &alive, &absent, stamping != Stamping::Clock);
        let deadline = start + self.config.write_timeout();
        let round = Round { op, outgoing: Outgoing::new(mutation), unsettled, _admitted: admitted, deadline };
        self.run_rounds(round, level, &absent, trace).await
    }

    /// Sends, counts, and sends again with a newer stamp while replicas are ahead.
    async fn run_rounds(
        self: &Arc<Self>,
        mut round: Round,
        level: Level,
        absent: &[NodeId],
        trace: &mut Trace,
    ) -> Result<Written, Refused> {
        loop {
            let mut answers = self.send(&round, trace);
            let mut hints = self.hint(&round, absent, trace);
            match self.await_verdict(&mut round, &mut answers, &mut hints, trace).await {
                Verdict::Restamp(above) => {
                    round.unsettled = self.outstanding.begin_above(above);
                    let stamp = round.unsettled.stamp();
                    trace.note(|| format!("replicas are ahead: once more with stamp {stamp}"));
                    self.stats.writes_restamped.count();
                    round.outgoing = Outgoing::new(round.outgoing.mutation().restamped(stamp));
                    round.op.restamped(); // those that failed are not asked again: in the end they get a hint
                }
                Verdict::Met => {
                    let written = round.written();
                    self.settle(round, answers, hints);
                    return Ok(written);
                }
                Verdict::Failed | Verdict::Pending => {
                    let refused = round.refused(level);
                    if !matches!(refused, Refused::Overloaded { .. } | Refused::TooOld { .. }) {
                        self.settle(round, answers, hints);
                    }
                    return Err(refused);
                }
            }
        }
    }

    /// Sends the round's mutation to every replica that owes an answer.
    fn send(&self, round: &Round, trace: &mut Trace) -> Answers<ApplyAnswer> {
        let mut answers = Answers::default();
        // The other servers first: their fsyncs then run beside this server's own.
        let here = round.op.waiting().filter(|node| *node == self.me);
        for node in round.op.waiting().filter(|node| *node != self.me).chain(here) {
            trace.note(|| format!("to server {node}"));
            self.replicas.apply(&round.outgoing, answers.expect(node));
        }
        answers
    }

    /// Keeps the round's mutation for the absent replicas.
    fn hint(&self, round: &Round, absent: &[NodeId], trace: &mut Trace) -> Answers<Hinted> {
        let mut answers = Answers::default();
        for node in absent {
            trace.note(|| format!("server {node} is absent: hint"));
            self.handoff.keep(round.outgoing.mutation(), answers.expect(*node));
        }
        answers
    }

    /// Counts answers until the write is decided or its deadline passes (`Pending`).
    async fn await_verdict(
        &self,
        round: &mut Round,
        answers: &mut Answers<ApplyAnswer>,
        hints: &mut Answers<Hinted>,
        trace: &mut Trace,
    ) -> Verdict {
        let deadline = tokio::time::sleep_until(round.deadline);
        tokio::pin!(deadline);
        let mut again = Vec::new();
        loop {
            match round.op.verdict() {
                Verdict::Pending => {}
                Verdict::Failed if round.op.may_be_unstored() && answers.due() > 0 => {}
                Verdict::Failed => match round.op.hint_instead(self.me) {
                    failed if failed.is_empty() => return Verdict::Failed,
                    failed => {
                        failed.iter().for_each(|node| {
                            self.handoff.keep(round.outgoing.mutation(), hints.expect(*node))
                        });
                        continue;
                    }
                },
                verdict => return verdict,
            }
            let wanted = if trace.records() { 1 } else { round.op.wanted() };
            tokio::select! {
                biased; // an answer that is there counts, even at the deadline
                Some((node, answer)) = answers.next_of(wanted) => {
                    trace.note(|| format!("server {node}: {}", describe_apply(&answer)));
                    if self.is_being_redialled(node, &answer) {
                        again.push(node);
                    } else {
                        round.op.note(node, answer);
                    }
                }
                Some((node, outcome)) = hints.next() => {
                    trace.note(|| format!("hint for server {node}: {}", describe_hint(&outcome)));
                    round.op.note_hint(node, outcome);
                }
                () = &mut deadline => {
                    trace.note(|| "the deadline has passed");
                    return Verdict::Pending;
                }
                () = async { tokio::time::sleep(REDIAL_PAUSE).await }, if !again.is_empty() => {
                    for node in again.drain(..) {
                        if self.members.is_alive(node) {
                            self.replicas.apply(&round.outgoing, answers.expect(node));
                        } else {
                            round.op.note(node, ApplyAnswer::Failed(Failure::Unreachable));
                        }
                    }
                }
            }
        }
    }

    /// True if the request was certainly not sent, and a moment later it may be known whether that server is there.
    fn is_being_redialled(&self, node: NodeId, answer: &ApplyAnswer) -> bool {
        *answer == ApplyAnswer::Failed(Failure::Unreachable) && self.members.state(node) == State::Suspect
    }

    /// Sees to the answers that the client does not wait for. Whoever fails gets a hint.
    fn settle(self: &Arc<Self>, round: Round, answers: Answers<ApplyAnswer>, mut hints: Answers<Hinted>) {
        let mut late = Box::new(LateWrite { coordinator: self.clone(), round });
        if hints.due() == 0 {
            return answers.hand_over(late);
        }
        tokio::spawn(async move {
            while let Some((node, outcome)) = hints.next().await {
                late.round.op.note_hint(node, outcome);
            }
            answers.hand_over(late);
        });
    }

    /// Nobody owes the write an answer any more. A silent server has been given up by now and gets a hint too; it may
    /// have the mutation, which does no harm.
    fn settled(self: Arc<Self>, round: Round) {
        // This server keeps no hints for itself, but a full queue passes.
        let can_be_made_up = |(node, failure): &(NodeId, Option<&Failure>)| {
            *node != self.me || *failure == Some(&Failure::Overloaded)
        };
        let missing: Vec<NodeId> = round.op.owed().filter(can_be_made_up).map(|(node, _)| node).collect();
        if !missing.is_empty() {
            self.runtime.clone().spawn(async move {
                self.make_up(&round.outgoing, missing).await;
                drop(round); // now nothing of this request is under way
            });
        }
    }

    /// Keeps hints for the servers that miss the mutation, again and again while this server's own log is too busy.
    async fn make_up(&self, outgoing: &Outgoing, mut missing: Vec<NodeId>) {
        let until = Instant::now() + self.config.write_timeout();
        loop {
            let (mut hints, mut own) = (Answers::default(), Answers::default());
            for node in missing.drain(..) {
                if node == self.me {
                    self.replicas.apply(outgoing, own.expect(node));
                } else {
                    self.handoff.keep(outgoing.mutation(), hints.expect(node));
                }
            }
            while let Some((node, outcome)) = hints.next().await {
                missing.extend((outcome == Err(Failure::Overloaded)).then_some(node));
            }
            while let Some((node, answer)) = own.next().await {
                missing.extend((answer == ApplyAnswer::Failed(Failure::Overloaded)).then_some(node));
            }
            if missing.is_empty() {
                return;
            }
            if Instant::now() >= until {
                self.stats.hints_dropped.add(missing.len() as u64);
                return log::warn!(
                    "server {}: no hint for servers {missing:?}: the log is overloaded",
                    self.me
                );
            }
            tokio::time::sleep(HINT_PAUSE).await;
        }
    }

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

    /// A share of the bounds for operations that wait until they can be begun; given back when it is dropped.
    pub fn admit_waiting(&self, bytes: usize) -> Result<Admitted, Refused> {
        self.admit(bytes, "nothing was done")
    }

    /// A share of the bound on memory for an answer that is not a read's; to be kept until it has been sent. A short
    /// one needs none.
    pub fn admit_answer(&self, bytes: usize) -> Result<Option<Admitted>, Refused> {
        self.admission.admit_answer(bytes).ok_or_else(|| self.overloaded("nothing was done"))
    }

    fn admit(&self, bytes: usize, nothing: &'static str) -> Result<Admitted, Refused> {
        self.admission.admit(bytes).ok_or_else(|| self.overloaded(nothing))
    }

    fn overloaded(&self, nothing: &'static str) -> Refused {
        let (requests, bytes) = self.admission.under_way();
        let why = format!("{requests} requests of {bytes} bytes are under way here");
        Refused::Overloaded { why, nothing }
    }

    /// The replicas of a key that are up (or only Suspect), and those that are Down.
    fn split_by_liveness(&self, partition: &[u8]) -> (Vec<NodeId>, Vec<NodeId>) {
        self.ring.replicas(partition).iter().partition(|node| self.members.is_alive(**node))
    }

    fn check_available(
        &self,
        level: Level,
        alive: &[NodeId],
        absent: &[NodeId],
        nothing: &'static str,
    ) -> Result<(), Refused> {
        let needed = level.needed(alive.len() + absent.len());
        let hint_suffices =
            level == Level::Any && absent.iter().any(|node| self.handoff.keeps_hints_for(*node).is_ok());
        if alive.len() >= needed || hint_suffices {
            return Ok(());
        }
        let names: Vec<String> = absent.iter().map(|node| format!("server {node}")).collect();
        let who = if names.is_empty() {
            format!("the key has only {} replicas", alive.len())
        } else {
            format!("{} down", names.join(", "))
        };
        Err(Refused::Unavailable { level, needed, alive: alive.len(), who, nothing })
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

    /// Waits until nothing is under way, hints for late replicas included.
    pub async fn drained(&self) {
        self.admission.drained().await;
    }

    /// What is under way now, for `stats`.
    pub fn gauges(&self) -> Vec<(&'static str, i64)> {
        let (requests, bytes) = self.admission.under_way();
        vec![
            ("requests_under_way", requests as i64),
            ("requests_under_way_bytes", bytes as i64),
            ("speculate_after_us", self.speculate_after_us.load(Ordering::Relaxed) as i64),
        ]
    }
}

/// What became of a hint.
type Hinted = Result<(), Failure>;

/// A write on its way: what is sent, what came back, until when.
struct Round {
    op: WriteOp,
    outgoing: Outgoing,
    /// Its stamp; others are told that it is under way.
    unsettled: Unsettled,
    /// Given back when nothing of the request is under way any more.
    _admitted: Admitted,
    deadline: Instant,
}

/// A write whose client has its answer, or its refusal, while some replicas owe theirs.
struct LateWrite {
    coordinator: Arc<Coordinator>,
    round: Round,
}

impl Late<ApplyAnswer> for LateWrite {
    fn note(&mut self, node: NodeId, answer: ApplyAnswer) {
        self.round.op.note(node, answer);
    }

    fn end(self: Box<Self>) {
        self.coordinator.settled(self.round);
    }
}

impl Round {
    fn written(&self) -> Written {
        let stamp = self.unsettled.stamp();
        let newer = self.op.newest_told().filter(|told| *told > stamp);
        Written { stamp: newer.unwrap_or(stamp), replicas: self.op.holding() }
    }

    fn refused(&self, level: Level) -> Refused {
        let above = self.op.failures().filter_map(|(_, failure)| match failure {
            Failure::TooOld { above } => Some(*above),
            _ => None,
        });
        if self.op.nothing_stored()
            && let Some(above) = above.max()
        {
            return Refused::TooOld { above };
        }
        let why = describe_failures(self.op.failures());
        if self.op.nothing_stored() {
            let why = format!("no replica took it{why}");
            return Refused::Overloaded { why, nothing: "nothing was written" };
        }
        let (needed, acknowledged) = (self.op.needed(), self.op.acknowledged());
        Refused::WriteTimeout { level, needed, acknowledged, why }
    }
}

fn describe_failures<'a>(failures: impl Iterator<Item = (NodeId, &'a Failure)>) -> String {
    let texts: Vec<String> = failures.map(|(node, failure)| format!("server {node}: {failure}")).collect();
    if texts.is_empty() { String::new() } else { format!(" ({})", texts.join("; ")) }
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

fn describe_apply(answer: &ApplyAnswer) -> String {
    match answer {
        ApplyAnswer::Applied => "applied".to_owned(),
        ApplyAnswer::Behind(stamp) => format!("behind, has stamp {stamp}"),
        ApplyAnswer::Failed(failure) => failure.to_string(),
    }
}

fn describe_hint(outcome: &Result<(), Failure>) -> String {
    match outcome {
        Ok(()) => "kept".to_owned(),
        Err(failure) => format!("not kept, {failure}"),
    }
}

fn describe_read(answer: &ReadAnswer) -> String {
    match answer {
        ReadAnswer::Cells { cells, .. } => match cells.iter().map(|(_, cell)| cell.stamp).max() {
            Some(stamp) => format!("has stamp {stamp}"),
            None => "has nothing".to_owned(),
        },
        ReadAnswer::Failed(failure) => failure.to_string(),
    }
}
