//! Service `Tetrachord`: binary keys and values, every level, time to live, batches, and the state of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use crate::cell::{Cell, Content, Stamp};
use crate::coordinator::{Admitted, Found, Level, Refused, Stamping, Trace, turn};
use crate::key::KV_TABLE;
use crate::mutation::Mutation;
use crate::reconcile::RangeView;
use crate::slice::Slice;
use crate::thrift::chord::{self, *};
use crate::thrift::connection::{Answering, Held};
use crate::thrift::method::{Refusal, Reply};

use tokio::time::Instant;

use super::{Service, Wrong, check_read_level, held, holding, kv_slice};

fn range_state(range: RangeView) -> RangeState {
    let (upto, at_us) = range.proven.unwrap_or_default();
    RangeState {
        owner: Some(range.owner.0 as i32),
        proven_upto: Some(upto.0),
        proven_at: Some(at_us),
        not_now: Some(range.why),
        cells: Some(range.cells as i64),
        leaves_pending: Some(range.leaves_pending as i64),
        dead_cells: Some(range.dead_cells as i64),
        dead_bytes: Some(range.dead_bytes as i64),
        uncollected: Some(range.uncollected),
        collected_upto: Some(range.collected.0),
        refilling: Some(range.refilling),
    }
}

/// Longest time to live, in seconds: 20 years, as in Cassandra.
const TTL_MAX_S: i32 = 20 * 365 * 24 * 3600;

/// Operations of a batch that are under way at once: enough to fill a commit, few enough to bound their memory.
const BATCH_UNDER_WAY_MAX: usize = 128;

impl Service {
    pub(super) async fn put(self: Arc<Self>, request: PutRequest) -> Result<WriteResult, Refusal> {
        let key = self.check_key(request.key).map_err(|wrong| self.invalid(wrong))?;
        let value = self.check_value(request.value).map_err(|wrong| self.invalid(wrong))?;
        let content = match request.ttl {
            None => Content::Value(value),
            Some(ttl_s @ 1..=TTL_MAX_S) => {
                Content::Expiring { value, expires_at_s: self.clock.wall_s() + i64::from(ttl_s) }
            }
            Some(ttl_s) => {
                let why = format!("the time to live is {ttl_s}; it is 1 to {TTL_MAX_S} seconds (20 years)");
                return Err(self.invalid(Wrong(why)));
            }
        };
        let mutation = Mutation::single(KV_TABLE, key, Cell { stamp: Stamp(0), content });
        self.write(mutation, request.level, request.stamp, request.trace).await
    }

    pub(super) async fn remove(self: Arc<Self>, request: RemoveRequest) -> Result<WriteResult, Refusal> {
        let key = self.check_key(request.key).map_err(|wrong| self.invalid(wrong))?;
        let mutation = Mutation::single(KV_TABLE, key, Cell { stamp: Stamp(0), content: Content::Tombstone });
        self.write(mutation, request.level, request.stamp, request.trace).await
    }

    async fn write(
        &self,
        mutation: Mutation,
        level: Option<chord::Level>,
        stamp: Option<i64>,
        trace: Option<bool>,
    ) -> Result<WriteResult, Refusal> {
        let level = self.check_level(level)?;
        let stamping = match stamp {
            None => Stamping::Clock,
            Some(stamp) => Stamping::Given(self.check_stamp(stamp).map_err(|wrong| self.invalid(wrong))?),
        };
        let mut trace = Trace::new(trace == Some(true));
        let written = self.coordinator.write(mutation, stamping, level, &mut trace).await.map_err(refusal)?;
        Ok(WriteResult::new(written.stamp.0, written.replicas as i32, trace.into_steps()))
    }

    /// A get that this server can answer from its own store is answered at once, where its bytes arrived.
    pub(super) fn get(self: &Arc<Self>, request: GetRequest) -> Answering {
        let mut get = match self.check_get(request) {
            Ok(get) => get,
            Err(refusal) => return Answering::Now(Reply::Get(Err(refusal))),
        };
        if let Some(found) = self.coordinator.read_at_once(&get.slice, get.level, &mut get.trace) {
            return match self.get_result(found, get.trace) {
                (result, None) => Answering::Now(Reply::Get(Ok(result))),
                (result, held) => Answering::Heavy(Reply::Get(Ok(result)), held),
            };
        }
        let service = self.clone();
        Answering::Later(Box::pin(async move {
            let CheckedGet { slice, level, mut trace } = get;
            let read = service.coordinator.read_by_asking(slice, level, &mut trace).await;
            holding(Reply::Get, service.got(read, trace))
        }))
    }

    fn check_get(&self, request: GetRequest) -> Result<CheckedGet, Refusal> {
        let key = self.check_key(request.key).map_err(|wrong| self.invalid(wrong))?;
        let level =
            check_read_level(self.check_level(request.level)?).map_err(|wrong| self.invalid(wrong))?;
        Ok(CheckedGet { slice: kv_slice(key), level, trace: Trace::new(request.trace == Some(true)) })
    }

    fn got(&self, read: Result<Found, Refused>, trace: Trace) -> Result<(GetResult, Held), Refusal> {
        read.map(|found| self.get_result(found, trace)).map_err(refusal)
    }

    fn get_result(&self, found: Found, trace: Trace) -> (GetResult, Held) {
        let now_s = self.clock.wall_s();
        let live = found.cells.into_iter().next().and_then(|(_, cell)| {
            let (stamp, expires_at_s) = (cell.stamp, cell.expires_at_s());
            Some((cell.into_live_value(now_s)?, stamp, expires_at_s))
        });
        let result = match live {
            Some((value, stamp, expires_at_s)) => {
                GetResult::new(Vec::from(value), stamp.0, expires_at_s, trace.into_steps())
            }
            None => GetResult::new(None, None, None, trace.into_steps()),
        };
        (result, held(found.held))
    }

    /// Carries out the operations, many at a time, and answers them in order. What a request brings is bounded by the
    /// size of a message; what its gets return is bounded by the same number: past it they are refused one by one. So
    /// are those whose values do not fit into memory, and operations that could not be begun in time.
    pub(super) async fn batch(
        self: Arc<Self>,
        request: BatchRequest,
    ) -> Result<(BatchResult, Held), Refusal> {
        let operations = self.check_batch(request).map_err(|wrong| self.invalid(wrong))?;
        let mut admitted = self.coordinator.admit_waiting(batch_bytes(&operations)).map_err(refusal)?;
        let (outcomes, value_bytes) = self.operate_all(operations, &mut admitted).await;
        let share = admitted.for_answer(outcomes.len() * size_of::<Outcome>() + value_bytes);
        Ok((BatchResult::new(outcomes), held(share)))
    }

    fn check_batch(&self, request: BatchRequest) -> Result<Vec<Operation>, Wrong> {
        let operations = request.operations.ok_or_else(|| Wrong("the operations are missing".to_owned()))?;
        let most = self.config.batch_operations_max;
        if operations.len() > most {
            let why =
                format!("the batch has {} operations; this server takes at most {most}", operations.len());
            return Err(Wrong(why));
        }
        Ok(operations)
    }

    /// The outcomes, and how many bytes of values are in them; `admitted` grows by as many.
    async fn operate_all(
        self: Arc<Self>,
        operations: Vec<Operation>,
        admitted: &mut Admitted,
    ) -> (Vec<Outcome>, usize) {
        let begin_until = Instant::now() + self.config.write_timeout() + self.config.read_timeout();
        let mut waiting = operations.into_iter();
        let mut under_way = FuturesOrdered::new();
        let mut outcomes = Vec::with_capacity(waiting.len());
        let mut value_bytes = 0;
        loop {
            while under_way.len() < BATCH_UNDER_WAY_MAX
                && Instant::now() < begin_until
                && let Some(operation) = waiting.next()
            {
                under_way.push_back(self.clone().operate(operation));
            }
            let Some((outcome, own_share)) = under_way.next().await else { break };
            drop(own_share); // the batch's takes its place
            let size = got_bytes(&outcome);
            outcomes.push(if value_bytes + size > self.config.message_bytes_max {
                overloaded(
                    "the values of this batch exceed the size of a message; get the rest in another call",
                )
            } else if size > 0 && !admitted.grow(size) {
                overloaded("the answers under way here take too much memory; get it in another call")
            } else {
                value_bytes += size;
                outcome
            });
        }
        outcomes
            .extend(waiting.map(|_| overloaded("this batch ran out of time before it; nothing was done")));
        (outcomes, value_bytes)
    }

    async fn operate(self: Arc<Self>, operation: Operation) -> (Outcome, Held) {
        let mut share = None;
        let mut outcome = Outcome::new(None, None, None, None, None, None);
        let refused = match (operation.put, operation.get, operation.remove) {
            (Some(put), None, None) => self.put(put).await.map(|written| outcome.written = Some(written)),
            (None, Some(get), None) => match self.check_get(get) {
                Ok(CheckedGet { slice, level, mut trace }) => {
                    turn::next_of_many().await;
                    let read = self.coordinator.read(slice, level, &mut trace).await;
                    self.got(read, trace).map(|(got, held)| (outcome.got, share) = (Some(got), held))
                }
                Err(refusal) => Err(refusal),
            },
            (None, None, Some(remove)) => {
                self.remove(remove).await.map(|written| outcome.written = Some(written))
            }
            _ => Err(self.invalid(Wrong("an operation is one put, one get or one remove".to_owned()))),
        };
        match refused {
            Ok(()) => {}
            Err(Refusal::Unavailable(unavailable)) => outcome.unavailable = Some(unavailable),
            Err(Refusal::Timeout(timeout)) => outcome.timeout = Some(timeout),
            Err(Refusal::Overloaded(overloaded)) => outcome.overloaded = Some(overloaded),
            Err(Refusal::InvalidRequest(invalid)) => outcome.invalid = Some(invalid),
        }
        (outcome, share)
    }

    pub(super) fn describe(&self) -> Description {
        let held = self.store.hint_totals();
        let members = self.members.view().into_iter().map(|member| {
            let hints = held.get(&member.id);
            let token = self
                .ring
                .ranges()
                .iter()
                .find(|range| range.owner() == member.id)
                .map(|range| range.token.to_vec());
            Member::new(
                member.id.0 as i32,
                self.nodes.address(member.id).map(ToString::to_string),
                member.state.to_string(),
                token,
                member.detail,
                hints.map_or(0, |hints| hints.count as i64),
                hints.map_or(0, |hints| hints.bytes as i64),
                member.id == self.identity.id || self.handoff.keeps_hints_for(member.id).is_ok(),
            )
        });
        Description::new(
            self.config.cluster_name.clone(),
            self.identity.id.0 as i32,
            self.ring.replication_factor() as i32,
            self.ring.epoch() as i64,
            members.collect::<Vec<_>>(),
            env!("CARGO_PKG_VERSION").to_owned(),
            self.config.durability.as_str().to_owned(),
            self.reconciler.ranges().into_iter().map(range_state).collect::<Vec<_>>(),
        )
    }

    pub(super) fn stats(&self) -> Stats {
        let mut values = self.stats.values();
        let owned = self.store.gauges().into_iter().chain(self.coordinator.gauges());
        values.extend(owned.map(|(name, value)| (name.to_owned(), value)));
        values.extend(self.peers.gauges());
        for (node, held) in self.store.hint_totals() {
            values.insert(format!("hints_held_for_{node}"), held.count as i64);
            values.insert(format!("hints_held_for_{node}_bytes"), held.bytes as i64);
        }
        values.insert("memory_resident_bytes".to_owned(), resident_bytes());
        Stats::new(values.into_iter().collect::<BTreeMap<_, _>>())
    }

    fn check_level(&self, level: Option<chord::Level>) -> Result<Level, Refusal> {
        let Some(chord::Level(number)) = level else { return Ok(Level::Quorum) };
        Level::from_number(number).ok_or_else(|| {
            let why =
                format!("unknown level {number}; known are ONE 1, QUORUM 2, ALL 5, ANY 6, TWO 7, THREE 8");
            self.invalid(Wrong(why))
        })
    }

    fn invalid(&self, wrong: Wrong) -> Refusal {
        Refusal::InvalidRequest(InvalidRequest { why: Some(self.wrong(wrong)) })
    }
}

struct CheckedGet {
    slice: Slice,
    level: Level,
    trace: Trace,
}

/// Bytes of the value that an operation got.
fn got_bytes(outcome: &Outcome) -> usize {
    outcome.got.as_ref().and_then(|got| got.value.as_ref()).map_or(0, Vec::len)
}

/// Memory that a batch takes until its answer is complete, without the values that it gets.
pub(super) fn batch_bytes(operations: &[Operation]) -> usize {
    let each = size_of::<Operation>() + size_of::<Outcome>();
    operations.len() * each + operations.iter().map(operation_bytes).sum::<usize>()
}

/// Bytes of an operation's key and value.
fn operation_bytes(operation: &Operation) -> usize {
    let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let put = operation.put.as_ref().map_or(0, |put| len(&put.key) + len(&put.value));
    let get = operation.get.as_ref().map_or(0, |get| len(&get.key));
    let remove = operation.remove.as_ref().map_or(0, |remove| len(&remove.key));
    put + get + remove
}

fn overloaded(message: &str) -> Outcome {
    Outcome::new(None, None, None, None, Overloaded { message: Some(message.to_owned()) }, None)
}

/// What a refusal of the coordinator is on the wire.
fn refusal(refused: Refused) -> Refusal {
    let message = Some(refused.to_string());
    let on_wire = |level: Level| Some(chord::Level(level.number()));
    match refused {
        Refused::Unavailable { level, needed, alive, .. } => Refusal::Unavailable(Unavailable {
            level: on_wire(level),
            needed: Some(needed as i32),
            alive: Some(alive as i32),
            message,
        }),
        Refused::WriteTimeout { level, needed, acknowledged: answers, .. }
        | Refused::ReadTimeout { level, needed, answered: answers, .. } => Refusal::Timeout(Timeout {
            level: on_wire(level),
            needed: Some(needed as i32),
            acknowledged: Some(answers as i32),
            message,
        }),
        Refused::Overloaded { .. } => Refusal::Overloaded(Overloaded { message }),
        Refused::TooOld { .. } => Refusal::InvalidRequest(InvalidRequest { why: message }),
    }
}

/// Memory of this process that is in use, in bytes; 0 where the system does not tell.
fn resident_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<i64>().ok());
    kib.unwrap_or(0) * 1024
}
