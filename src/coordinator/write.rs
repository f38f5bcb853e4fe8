//! How a write is carried out: sent, counted, sent again with a newer stamp, and seen to after the client has its
//! answer.
//!
//! Not here: what the answers mean (`write_op`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::trace::{describe_apply, describe_hint};
use super::write_op::{Verdict, WriteOp};
use super::{Admitted, Coordinator, Level, REDIAL_PAUSE, Refused, Trace, describe_failures};
use crate::answer::{Answers, ApplyAnswer, Failure, Late, NodeId};
use crate::cell::Stamp;
use crate::membership::State;
use crate::mutation::Mutation;
use crate::reconcile::Unsettled;
use crate::replica::Outgoing;

/// How long to wait before a hint is offered again to a log whose queue was full.
const HINT_PAUSE: Duration = Duration::from_millis(50);

/// Where the stamp of a write comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamping {
    /// This server's clock.
    Clock,
    /// The client; kept as it is.
    Given(Stamp),
}

/// A write that met its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The stamp that won: of this write, or a newer one that was there.
    pub stamp: Stamp,
    /// How many replicas are known to have it by now.
    pub replicas: usize,
}

impl Coordinator {
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
