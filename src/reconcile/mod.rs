//! Replicas that end up equal by themselves: all the time, without reads, without an operator, without a clock.
//!
//! ```text
//!   leaves (store) ─► sums ─► the first replica of a range that is up compares them with those of the others
//!                               same: nothing moves │ a leaf differs: lists of versions ─► cells, both ways ─► merge
//!   promises (every server): "I send no writes below this stamp any more" (of stamps that my clock makes)
//!   all replicas the same up to T, and no promise below T  ⇒  proven equal up to T
//! ```
//!
//! Hints and read repair are quicker where they reach; what they leave (a coordinator that died with a write under way,
//! an absence longer than the hint window, a new disk, a key that nobody reads) is found here.
//!
//! What must always be true:
//!   - What moves goes through the store's one way in and its one `merge`.
//!   - A sum is believed only if nothing was written into its leaf since it was made (`store::leaves`).
//!   - *Proven* means: each replica said *the same* to one and the same sums. Any difference, anything not known, and
//!     any replica that was not asked stand against it.
//!   - Every message is bounded in spans, keys, cells and bytes; a leader has one question under way with one replica.
//!   - Clients come first: work is done in steps of a millisecond, and rests in between (`pace`).
//!
//! `decide`, `state`, `stretch` and the sums are plain values without await, clock or socket; `lead` asks and `follow`
//! answers. docs/reconciliation.md has the whole argument.
//!
//! Not here: hints (`handoff`), what a read mends (`coordinator`), which cells a leaf sums up (`store`).

mod decide;
mod follow;
mod lead;
mod outstanding;
mod pace;
mod standing;
mod state;
mod stretch;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::answer::{Answers, ApplyAnswer, Failure, NodeId, ask_one};
use crate::cell::{Cell, Stamp};
use crate::clock::Clock;
use crate::config::Config;
use crate::key::{self, TableId};
use crate::membership::{Members, State};
use crate::mutation::Mutation;
use crate::peer::Peers;
use crate::ring::Ring;
use crate::stats::Stats;
use crate::store::leaves::{Cut, Horizon, Sum, table_end, table_start};
use crate::store::{Origin, Store, StoreError};
use crate::thrift::chord::{PeerAsks, PeerMemory, PeerReconcile, PeerReconciled};

use lead::{Compared, Follower};
pub use outstanding::{Outstanding, Unsettled};
use pace::Pace;
use standing::Claim;
pub use standing::Standing;
use state::{Heard, Promised, RangeKnown, Samples};
use stretch::stretches;

/// How long cells wait to be offered again to a log whose queue was full, and how often.
const OVERLOADED_PAUSE: Duration = Duration::from_millis(50);
const OVERLOADED_ATTEMPTS: usize = 20;

/// Rounds for which a promise holds against *not heard*.
const PROMISE_ROUNDS: u32 = 5;

/// How often it is looked whether a server has come up that has not been heard.
const NEWCOMER_LOOK: Duration = Duration::from_millis(50);
const INTRODUCED_LOOK: Duration = Duration::from_millis(5);

/// How often it is looked whether a crash left cells that were to be dropped.
const LEFTOVERS_LOOK: Duration = Duration::from_secs(60);

/// How often a refill says how far it is.
const REFILL_SAID: Duration = Duration::from_secs(5);

/// Passes through one range in a row, as long as cells move, before the others have their turn: one that finds the same again
/// and again must not keep it. Two make equal what is not written to.
const PASSES_MAX: usize = 4;

/// How far ahead of the clock a stamp may be and still count as made by one: a pass takes a while, and clients write.
const PASS_MAX_US: i64 = 600 * 1_000_000;

/// What `status` and the log say then.
const FAILED: &str =
    "reconciliation has failed and goes on when this server is restarted; this is a bug, see the log";

/// How often it is written down what the others have logged: a copy of files older than this is recognised.
const MEMORY_KEPT: Duration = Duration::from_secs(5);

/// What the reconciler stands on.
pub struct Parts {
    /// This server.
    pub me: NodeId,
    /// All servers.
    pub nodes: Vec<NodeId>,
    /// Every setting.
    pub config: Arc<Config>,
    /// Who holds what.
    pub ring: Arc<Ring>,
    /// Who is up.
    pub members: Arc<Members>,
    /// This server's cells.
    pub store: Store,
    /// The way to the others.
    pub peers: Arc<dyn Peers>,
    /// Stamps and wall time.
    pub clock: Arc<Clock>,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// The writes that this server coordinates.
    pub outstanding: Arc<Outstanding>,
    /// The ranges whose reads this server may answer.
    pub standing: Arc<Standing>,
    /// Of this start; it rises with every one.
    pub generation: i64,
}

/// Compares this server with the other replicas of its ranges, and answers their comparisons.
pub struct Reconciler {
    me: NodeId,
    generation: i64,
    nodes: Vec<NodeId>,
    config: Arc<Config>,
    ring: Arc<Ring>,
    members: Arc<Members>,
    store: Store,
    peers: Arc<dyn Peers>,
    clock: Arc<Clock>,
    stats: Arc<Stats>,
    outstanding: Arc<Outstanding>,
    standing: Arc<Standing>,
    pace: Pace,
    known: Mutex<Known>,
    /// One of its tasks ended by a panic.
    failed: AtomicBool,
}

/// Held by a background task: nobody awaits those, and the server goes on without.
struct Watch(Arc<Reconciler>);

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
            log::error!("server {}: {FAILED}", self.0.me);
        }
    }
}

/// What was learnt since the start.
struct Known {
    /// By index in the ring's order; those of which this server is no replica stay empty.
    ranges: Vec<RangeKnown>,
    heard: BTreeMap<NodeId, Heard>,
    /// Until when the others want to be left alone.
    welcome: BTreeMap<NodeId, Instant>,
    /// What is compared is older than the one, what is collected older than the other.
    compared: Samples,
    collected: Samples,
    /// Of this server's own files.
    incarnation: i64,
    /// They are known to lack nothing.
    whole: bool,
    /// Since this process began it was told that they lack something.
    told: bool,
    /// Rows they had logged when this process began.
    logged_before: i64,
    /// What is remembered of the others' files.
    memory: BTreeMap<NodeId, Claim>,
    /// Of that, what is on the disk.
    kept: BTreeMap<NodeId, Claim>,
    kept_at: Option<Instant>,
    /// The largest incarnation that others remember of this server.
    remembered: i64,
    refilling: Option<Refilling>,
}

/// How far this server is with getting back what it lost.
struct Refilling {
    since: Instant,
    /// Cells and bytes received before.
    before: (u64, u64),
    said_at: Instant,
    /// See [`Reconciler::lost_upto`].
    lost_upto: Option<Stamp>,
    /// How many cells the leaders have, by range and by the stretches they begin.
    there: BTreeMap<usize, BTreeMap<Vec<u8>, u64>>,
    /// All is back, and that is being remembered.
    over: bool,
}

/// A range as this server, one of its replicas, sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeView {
    /// Its first replica.
    pub owner: NodeId,
    /// All replicas hold the same up to this stamp, proven at this time (µs since 1970).
    pub proven: Option<(Stamp, i64)>,
    /// Why that is not proven just now; empty: it is.
    pub why: String,
    /// Cells here, as far as leaves are summed up.
    pub cells: u64,
    /// Leaves to be summed up again.
    pub leaves_pending: u64,
    /// Tombstones and expiring cells here that are not collected.
    pub dead_cells: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// Why they stay; empty: there are none, or they are about to go.
    pub uncollected: String,
    /// Deletions up to this stamp were collected.
    pub collected: Stamp,
    /// How far this server is with getting back what it lost; empty: it lacks nothing.
    pub refilling: String,
}

/// How the store remembers this server's files.
fn self_numbers(incarnation: i64, whole: bool) -> Vec<(String, i64)> {
    let whole = if whole { incarnation } else { 0 };
    vec![(standing::INCARNATION.to_owned(), incarnation), (standing::WHOLE.to_owned(), whole)]
}

impl Reconciler {
    /// Cuts the store's leaves; nothing is compared yet.
    pub fn new(parts: Parts) -> Result<Arc<Reconciler>, StoreError> {
        let Parts { me, nodes, config, ring, members, store, peers, clock, stats, .. } = parts;
        let Parts { outstanding, standing, generation, .. } = parts;
        if config.reconciliation {
            store.cut_leaves(stretch::tokens(&ring))?;
        }
        let ranges = ring.ranges().iter().map(|_| RangeKnown::default()).collect();
        let pace = Pace::new(&config);
        // Files that say nothing of themselves are new, though they may have rows: writes are taken from the start, and it may
        // have been killed before this was written down. Or of an earlier release, of which nobody remembers anything.
        let earlier = store.remembered(standing::INCARNATION);
        let incarnation = earlier.unwrap_or(generation);
        let whole = earlier.is_some_and(|incarnation| store.remembered(standing::WHOLE) == Some(incarnation));
        let remembered = |node: &NodeId| {
            let incarnation = store.remembered(&format!("peer_{node}_incarnation"))?;
            let logged = store.remembered(&format!("peer_{node}_logged"))?;
            Some((*node, Claim { incarnation, logged }))
        };
        let memory: BTreeMap<NodeId, Claim> = nodes.iter().filter_map(remembered).collect();
        let kept = memory.clone();
        let logged_before = store.logged();
        let known = Known {
            ranges,
            heard: BTreeMap::new(),
            welcome: BTreeMap::new(),
            compared: Samples::new(Duration::from_millis(config.reconcile_lag_ms)),
            collected: Samples::new(Duration::from_millis(config.collection_lag_ms)),
            incarnation,
            whole,
            told: false,
            logged_before,
            memory,
            kept,
            kept_at: None,
            remembered: 0,
            refilling: None,
        };
        let known = Mutex::new(known);
        Ok(Arc::new(Reconciler {
            me,
            generation,
            nodes,
            config,
            ring,
            members,
            store,
            peers,
            clock,
            stats,
            outstanding,
            standing,
            pace,
            known,
            failed: AtomicBool::new(false),
        }))
    }

    /// Starts the background tasks on the current runtime.
    pub fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        if !self.config.reconciliation {
            return Vec::new();
        }
        let promises = self.clone().watched(self.clone().run_promises());
        let rounds = self.clone().watched(self.clone().run_rounds());
        vec![tokio::spawn(promises), tokio::spawn(rounds)]
    }

    async fn watched(self: Arc<Self>, task: impl Future<Output = ()>) {
        let _watch = Watch(self);
        task.await;
    }

    // ---------------------------------------------------------------------------------------- promises

    /// Every round: what did the clock reach, do clients come, what do the others promise and remember? At once when
    /// somebody comes up.
    async fn run_promises(self: Arc<Self>) {
        let (incarnation, whole) = {
            let known = self.known();
            (known.incarnation, known.whole)
        };
        self.remember_self(incarnation, whole).await;
        let mut leftovers_at = Instant::now() + LEFTOVERS_LOOK;
        loop {
            self.sample_clock();
            self.pace.note_requests(self.requests());
            self.gather_promises().await;
            self.look_after_refill().await;
            self.keep_memory().await;
            if Instant::now() >= leftovers_at {
                leftovers_at = Instant::now() + LEFTOVERS_LOOK;
                self.drop_leftovers();
            }
            let next = Instant::now() + self.round();
            while Instant::now() < next {
                tokio::time::sleep(NEWCOMER_LOOK.min(self.round())).await;
                if self.somebody_is_new() {
                    break;
                }
            }
        }
    }

    fn sample_clock(&self) {
        let (now, reached) = (Instant::now(), self.clock.latest());
        let mut known = self.known();
        known.compared.take(now, reached);
        known.collected.take(now, reached);
    }

    async fn gather_promises(&self) {
        let mut answers: Answers<Result<PeerReconciled, Failure>> = Answers::default();
        let mut asked = BTreeMap::new();
        for &node in self.nodes.iter().filter(|node| **node != self.me) {
            if self.members.state(node) != State::Down {
                let generation = self.members.generation(node);
                asked.insert(node, generation);
                let request = PeerReconcile {
                    epoch: Some(self.ring.epoch() as i64),
                    asks: Some(PeerAsks::PROMISE),
                    memory: Some(self.memory_of(node)),
                    claim: Some(self.own_claim(node)),
                    whole: Some(self.known().whole),
                    generation,
                    ..PeerReconcile::default()
                };
                self.peers.reconcile(request, answers.expect(node));
            }
        }
        while let Some((node, answer)) = answers.next().await {
            let Ok(answer) = answer else { continue };
            let refused = answer.refused.as_deref().unwrap_or_default();
            let Some(promise) = answer.promise.filter(|_| refused.is_empty()) else { continue };
            let tables = answer.tables.unwrap_or_default().into_iter();
            let tables = tables.filter_map(|table| u16::try_from(table).ok().map(TableId)).collect();
            self.note_claim(node, answer.claim.as_ref(), answer.whole);
            self.note_remembered(node, answer.memory.as_ref());
            let waits = answer.waits.unwrap_or_default();
            let wall_us = answer.wall.unwrap_or(0);
            let whole = answer.whole == Some(true);
            let (at, promise, generation) = (Instant::now(), Stamp(promise), asked[&node]);
            let heard = Heard { at, generation, promise, waits, wall_us, tables, whole };
            self.known().heard.insert(node, heard);
        }
    }

    fn answer_promise(&self, caller: NodeId, request: &PeerReconcile) -> PeerReconciled {
        self.note_claim(caller, request.claim.as_ref(), request.whole);
        self.note_remembered(caller, request.memory.as_ref());
        let (promise, waits) = self.promise();
        let tables = self.store.tables().into_iter().map(|table| i32::from(table.0));
        PeerReconciled {
            promise: Some(promise.0),
            waits: Some(waits),
            wall: Some(self.clock.wall_us()),
            memory: Some(self.memory_of(caller)),
            claim: Some(self.own_claim(caller)),
            whole: Some(self.known().whole),
            tables: Some(tables.collect()),
            ..follow::nothing()
        }
    }

    /// This server sends no writes below this stamp any more; and what holds that back.
    fn promise(&self) -> (Stamp, String) {
        let mut least = self.outstanding.oldest();
        let mut waits = String::new();
        for (node, totals) in self.store.hint_totals() {
            if totals.oldest_stamp < least {
                least = totals.oldest_stamp;
                waits = format!("server {} keeps hints for server {node}", self.me);
            }
        }
        (least, waits)
    }

    /// The least of all promises, this server's own included.
    fn promised(&self) -> Promised {
        let others = self.nodes.iter().filter(|node| **node != self.me);
        let others: Vec<_> = others.map(|node| (*node, self.members.generation(*node))).collect();
        let age_max = self.round() * PROMISE_ROUNDS + self.config.read_timeout();
        let mut least = state::promised(&others, &self.known().heard, Instant::now(), age_max);
        let (own, waits) = self.promise();
        if Stamp(own.0.saturating_sub(1)) < least.upto {
            least.upto = Stamp(own.0.saturating_sub(1));
            least.waits = waits;
        }
        least
    }

    /// Requests of clients worked on here so far, as coordinator or as replica.
    fn requests(&self) -> u64 {
        let stats = &self.stats;
        let served = stats.writes_ok.get()
            + stats.reads_ok.get()
            + stats.slices_read.get()
            + stats.mutations_applied.get();
        served.saturating_sub(stats.reconcile_cells_taken.get())
    }

    // ---------------------------------------------------------------------------------------- lost files

    fn own_claim(&self, to: NodeId) -> PeerMemory {
        let logged = self.logged_for(to);
        PeerMemory::new(self.known().incarnation, logged)
    }

    /// Rows logged. Until another server was heard, those logged since this process began do not count for it: they would
    /// make up in number for rows that an older copy lacks.
    fn logged_for(&self, node: NodeId) -> i64 {
        let known = self.known();
        if known.heard.contains_key(&node) { self.store.logged() } else { known.logged_before }
    }

    fn memory_of(&self, node: NodeId) -> PeerMemory {
        let claim = self.known().memory.get(&node).copied().unwrap_or_default();
        PeerMemory::new(claim.incarnation, claim.logged)
    }

    /// Another server says what its files have.
    fn note_claim(&self, node: NodeId, told: Option<&PeerMemory>, whole: Option<bool>) {
        if let Some(told) = told {
            let mut known = self.known();
            let memory = known.memory.entry(node).or_default();
            *memory = memory.updated(claim(told), whole == Some(true));
        }
    }

    /// Another server says what it remembers of this one's files.
    fn note_remembered(&self, node: NodeId, told: Option<&PeerMemory>) {
        let Some(remembered) = told.map(claim) else { return };
        let logged = self.logged_for(node);
        let own = Claim { incarnation: self.known().incarnation, logged };
        let mut known = self.known();
        known.remembered = known.remembered.max(remembered.incarnation);
        if known.refilling.is_some() || !own.lacks(known.whole, remembered) {
            return;
        }
        log::warn!(
            "server {}: this directory lacks what it once had: server {node} remembers {} rows logged (files of {}), here \
             are {} (files of {}). It takes writes, gets the rest from the other replicas, and answers no reads of a \
             range until that range is whole",
            self.me,
            remembered.logged,
            remembered.incarnation,
            own.logged,
            own.incarnation
        );
        self.standing.lose_all();
        (known.whole, known.told) = (false, true);
        // At once: with what it logs from now on it would look whole after a crash. `look_after_refill` sees whether it failed.
        self.store.remember(self_numbers(known.incarnation, false), Answers::default().expect(self.me));
        let before = (self.stats.reconcile_cells_received.get(), self.stats.reconcile_bytes_received.get());
        let now = Instant::now();
        known.refilling = Some(Refilling {
            since: now,
            before,
            said_at: now,
            lost_upto: None,
            there: BTreeMap::new(),
            over: false,
        });
    }

    /// Says now and then how far it is; and once nobody objects, that there is nothing to get back.
    async fn look_after_refill(&self) {
        let others = self.nodes.iter().filter(|node| **node != self.me);
        let (settled, lost) = {
            let mut known = self.known();
            let all_heard = others.clone().all(|node| known.heard.contains_key(node));
            if let Some(refilling) = known.refilling.as_mut().filter(|it| it.said_at.elapsed() >= REFILL_SAID)
            {
                refilling.said_at = Instant::now();
                let said = self.describe_refill(refilling);
                log::info!("server {}: {said}", self.me);
            }
            let lost = known.refilling.as_ref().is_some_and(|refilling| !refilling.over);
            (all_heard && !known.whole && known.refilling.is_none(), lost)
        };
        let incarnation = self.known().incarnation;
        if settled {
            // The others hear of it only once it is durable: what they then remember would be missed after a crash.
            let remembered = self.remember_self(incarnation, true).await;
            let mut known = self.known();
            known.whole = remembered && known.refilling.is_none();
        } else if lost && self.store.remembered(standing::WHOLE) != Some(0) {
            self.remember_self(incarnation, false).await;
        }
    }

    /// A range was proven equal up to this stamp: what this server lacked of it is back, if it had nothing newer.
    async fn regained(&self, index: usize, upto: Stamp) {
        if !self.standing.is_lacking(index) || self.lost_upto().is_none_or(|lost| upto < lost) {
            return;
        }
        let mine = |index: usize| self.ring.ranges()[index].replicas.contains(&self.me);
        if !self.standing.regained(index, mine) {
            return;
        }
        let incarnation = {
            let mut known = self.known();
            let said = known.refilling.as_mut().map_or(String::new(), |refilled| {
                refilled.over = true;
                self.describe_refill(refilled)
            });
            log::info!("server {}: it has got back all that it lost: {said}", self.me);
            self.clock.wall_us().max(known.remembered + 1).max(known.incarnation + 1)
        };
        self.remember_self(incarnation, true).await;
        let mut known = self.known();
        known.refilling = None;
        (known.incarnation, known.whole) = (incarnation, true);
    }

    /// What this server lost was stamped no later; `None`: not every server has been heard yet. It lost nothing that was
    /// made after it had begun again, so every clock as it was when first heard of, or later, is late enough.
    fn lost_upto(&self) -> Option<Stamp> {
        let latest = self.clock.latest();
        let mut known = self.known();
        let heard = |node: &NodeId| *node == self.me || known.heard.contains_key(node);
        let all_heard = self.nodes.iter().all(heard);
        let lost_upto = &mut known.refilling.as_mut()?.lost_upto;
        if all_heard { Some(*lost_upto.get_or_insert(latest)) } else { *lost_upto }
    }

    fn describe_refill(&self, refilling: &Refilling) -> String {
        let cells = self.stats.reconcile_cells_received.get() - refilling.before.0;
        let bytes = self.stats.reconcile_bytes_received.get() - refilling.before.1;
        let took = refilling.since.elapsed().as_secs_f64();
        // Of the ranges that no leader has told of yet, as much as of the others.
        let told = refilling.there.values().flat_map(BTreeMap::values).sum::<u64>();
        let mine = self.ring.ranges().iter().filter(|range| range.replicas.contains(&self.me)).count();
        let there = told * mine as u64 / refilling.there.len().max(1) as u64;
        let mut said = format!("{cells} cells, {bytes} bytes got back in {took:.1} s");
        if there > cells && cells > 0 {
            let left = (there - cells) as f64 * took / cells as f64;
            said += &format!("; about {there} are there, {left:.0} s to go");
        }
        said
    }

    /// The leader says how many cells it has in a stretch that this server is getting back.
    fn note_there(&self, index: usize, start: &[u8], cells: u64) {
        if let Some(refilling) = &mut self.known().refilling {
            refilling.there.entry(index).or_default().insert(start.to_vec(), cells);
        }
    }

    /// True if it is durable.
    async fn remember_self(&self, incarnation: i64, whole: bool) -> bool {
        let numbers = self_numbers(incarnation, whole);
        if numbers.iter().all(|(name, value)| self.store.remembered(name) == Some(*value)) {
            return true;
        }
        let remembered = ask_one(self.me, |to| self.store.remember(numbers, to)).await;
        if let Err(failure) = &remembered {
            log::warn!("server {}: its standing is not remembered: {failure}", self.me);
        }
        remembered.is_ok()
    }

    /// Writes down now and then what is remembered of the others.
    async fn keep_memory(&self) {
        let (numbers, memory) = {
            let mut known = self.known();
            let due = known.kept_at.is_none_or(|at| at.elapsed() >= MEMORY_KEPT);
            if !due || known.memory == known.kept {
                return;
            }
            known.kept_at = Some(Instant::now());
            let number = |(node, claim): (&NodeId, &Claim)| {
                [
                    (format!("peer_{node}_incarnation"), claim.incarnation),
                    (format!("peer_{node}_logged"), claim.logged),
                ]
            };
            (known.memory.iter().flat_map(number).collect(), known.memory.clone())
        };
        match ask_one(self.me, |to| self.store.remember(numbers, to)).await {
            Ok(()) => self.known().kept = memory,
            Err(failure) => {
                log::warn!("server {}: what it remembers of the others is not kept: {failure}", self.me)
            }
        }
    }

    fn somebody_is_new(&self) -> bool {
        let known = self.known();
        let new = |node: &&NodeId| !known.heard.contains_key(node) && self.is_up(**node);
        self.nodes.iter().filter(|node| **node != self.me).any(|node| new(&node))
    }

    /// Waits until every server that is up has said what it remembers of this one; no longer than `within`. Before that no
    /// read is answered, not even another server's: files that are older than they were must not count in a quorum.
    pub async fn introduced(&self, within: Duration) {
        let deadline = Instant::now() + within;
        while self.config.reconciliation && self.somebody_is_new() && Instant::now() < deadline {
            tokio::time::sleep(INTRODUCED_LOOK).await;
        }
        self.standing.asked();
    }

    /// True if this other server has said what it remembers.
    pub fn has_heard(&self, node: NodeId) -> bool {
        self.known().heard.contains_key(&node)
    }

    /// How many rows another server is remembered to have logged.
    pub fn remembers(&self, node: NodeId) -> i64 {
        self.memory_of(node).logged.unwrap_or(0)
    }

    /// True if it was told since it began that its files lack something, which they may have got back since.
    pub fn was_told(&self) -> bool {
        self.known().told
    }

    /// True if its files are known to lack something that they once had.
    pub fn lacks(&self) -> bool {
        self.known().refilling.is_some()
    }

    // ---------------------------------------------------------------------------------------- comparing

    /// Goes through the ranges that this server leads, again at once, a few times, through those where something differed; first
    /// through those of a server that gets back what it lost.
    async fn run_rounds(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.round()).await;
            let mut ranges: Vec<usize> = (0..self.ring.ranges().len()).collect();
            ranges.sort_by_cached_key(|index| {
                self.ring.ranges()[*index].replicas.iter().all(|node| self.is_whole(*node, *index))
            });
            for index in ranges {
                for _ in 0..PASSES_MAX {
                    if !self.leads(index) || self.lead(index).await == 0 {
                        break;
                    }
                }
            }
        }
    }

    /// True if this server is the first replica of the range that is up; of those that lost something only if all did,
    /// for whoever has the cells knows how many there are, and giving is quicker than asking key by key.
    fn leads(&self, index: usize) -> bool {
        let up = || self.ring.ranges()[index].replicas.iter().filter(|node| self.is_up(**node));
        up().find(|node| self.is_whole(**node, index)).or(up().next()) == Some(&self.me)
    }

    pub(super) fn is_whole(&self, node: NodeId, index: usize) -> bool {
        match node == self.me {
            true => !self.standing.is_lacking(index),
            false => self.known().heard.get(&node).is_none_or(|heard| heard.whole),
        }
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.members.state(node) != State::Down
    }

    /// One pass through a range. Returns how many cells moved.
    async fn lead(self: &Arc<Self>, index: usize) -> u64 {
        let replicas = &self.ring.ranges()[index].replicas;
        let others = || replicas.iter().copied().filter(|node| *node != self.me);
        let (up, absent): (Vec<NodeId>, Vec<NodeId>) = others().partition(|node| self.is_up(*node));
        let follower = |node| Follower { node, generation: self.members.generation(node).unwrap_or(0) };
        let followers: Vec<Follower> = up.into_iter().map(follower).collect();
        let promised = self.promised();
        let cut = self.cut(index);
        let compared = match self.pass(index, &followers, cut).await {
            Ok(compared) => compared,
            Err(stopped) => {
                self.stats.reconcile_stopped.count();
                log::debug!("server {}: comparing range {index} stopped: {stopped}", self.me);
                Compared { moved: 0, why: stopped.to_string() }
            }
        };
        let proven = self.proven(&compared, &absent, promised, cut.upto);
        let moved = compared.moved;
        if moved > 0 {
            log::info!("server {}: range {index}: {moved} cells moved between its replicas", self.me);
        }
        let equal = compared.why.is_empty() && moved == 0;
        let collected = match proven {
            Ok(_) => self.collect(index, &followers, cut.horizon).await,
            Err(_) => Ok(self.horizon(index)),
        };
        let collected = collected.unwrap_or_else(|why| {
            self.known().ranges[index].uncollected = why;
            self.horizon(index)
        });
        self.conclude(index, proven.clone(), equal).await;
        self.tell(index, &followers, proven, collected).await;
        moved
    }

    /// Up to where the pass proves all replicas equal, or why it does not. `before`: what was promised when it began; a write
    /// that was under way then may have come to one replica behind the comparison, and to no other.
    fn proven(
        &self,
        compared: &Compared,
        absent: &[NodeId],
        before: Promised,
        upto: Stamp,
    ) -> Result<Stamp, String> {
        if let Some(node) = absent.first() {
            let away_s = self.members.absent_for(*node).map_or(0, |away| away.as_secs());
            return Err(format!("server {node} is down, for {away_s} s"));
        }
        if !compared.why.is_empty() {
            return Err(compared.why.clone());
        }
        if compared.moved > 0 {
            return Err("differences were found and mended just now".to_owned());
        }
        let promised = before.and(self.promised());
        if !promised.missing.is_empty() {
            return Err(promised.missing);
        }
        match upto.min(promised.upto) {
            Stamp(..=0) => Err("the clock has not been watched for long enough".to_owned()),
            upto => Ok(upto),
        }
    }

    /// What is compared in a range now.
    fn cut(&self, index: usize) -> Cut {
        let upto = self.known().compared.before(Instant::now());
        let horizon = self.horizon(index).or(self.known().ranges[index].told);
        Cut { upto, beyond: self.beyond(upto), horizon }
    }

    /// What clocks make while a pass lasts is on its way; what no clock can have made is not.
    fn beyond(&self, upto: Stamp) -> Stamp {
        Stamp(self.clock.latest().max(upto).0.saturating_add(PASS_MAX_US))
    }

    /// Takes note of how a pass ended. `equal`: nothing differs among those that were asked.
    async fn conclude(&self, index: usize, proven: Result<Stamp, String>, equal: bool) {
        if let Ok(upto) = proven {
            self.regained(index, upto).await;
        }
        let at_us = self.clock.wall_us();
        let mut known = self.known();
        let range = &mut known.ranges[index];
        match proven {
            Ok(upto) => {
                range.proven = Some((upto, at_us));
                range.why.clear();
            }
            Err(why) => range.why = why,
        }
        if equal && let Some(since) = range.diverged.take() {
            self.stats.reconcile_heal.record_time(since.elapsed());
        }
    }

    /// Tells the other replicas how the pass ended.
    async fn tell(
        &self,
        index: usize,
        followers: &[Follower],
        proven: Result<Stamp, String>,
        collected: Horizon,
    ) {
        let (upto, why) = match proven {
            Ok(upto) => (upto, String::new()),
            Err(why) => (Stamp(0), why),
        };
        for &follower in followers {
            let request = PeerReconcile {
                asks: Some(PeerAsks::OUTCOME),
                range: Some(index as i32),
                cut: Some(wire::cut(&Cut { upto, beyond: upto, horizon: collected })),
                why: Some(why.clone()),
                ..PeerReconcile::default()
            };
            if let Err(stopped) = self.ask(follower, request).await {
                log::debug!("server {}: the outcome of range {index} was not taken: {stopped}", self.me);
            }
        }
    }

    async fn answer_outcome(&self, index: usize, request: &PeerReconcile) -> Result<PeerReconciled, String> {
        let cut = request.cut.as_ref().map(wire::read_cut).ok_or("the cut is missing")?;
        let why = request.why.clone().unwrap_or_default();
        if why.is_empty() {
            self.adopt(index, cut.horizon).await?;
        }
        let proven = if why.is_empty() { Ok(cut.upto) } else { Err(why) };
        self.conclude(index, proven, true).await;
        Ok(follow::nothing())
    }

    // ---------------------------------------------------------------------------------------- collecting

    /// All replicas are equal, and every server has promised: what is dead may go. Closes the range, compares once more,
    /// and has this server remember the new horizon; the others are told it with the outcome. Returns the horizon.
    async fn collect(
        self: &Arc<Self>,
        index: usize,
        followers: &[Follower],
        agreed: Horizon,
    ) -> Result<Horizon, String> {
        self.adopt(index, agreed).await?;
        let wanted = self.collectable(index).or(agreed);
        if !self.config.collection || !self.is_collection_due(index, wanted) {
            return Ok(agreed);
        }
        // Whatever older write arrives from now on is refused, or was counted before.
        self.close(index, wanted.stamp).await?;
        for &follower in followers {
            let request = PeerReconcile {
                asks: Some(PeerAsks::CLOSE),
                range: Some(index as i32),
                cut: Some(wire::of_horizon(wanted)),
                ..PeerReconcile::default()
            };
            self.ask(follower, request).await.map_err(|stopped| stopped.to_string())?;
        }
        let cut = Cut { upto: wanted.stamp, beyond: self.beyond(wanted.stamp), horizon: agreed };
        let compared = self.pass(index, followers, cut).await.map_err(|stopped| stopped.to_string())?;
        if compared.moved > 0 || !compared.why.is_empty() {
            return Err("differences came up while it was closed".to_owned());
        }
        self.adopt(index, wanted).await?;
        self.stats.reconcile_collections.count();
        Ok(wanted)
    }

    /// Takes no more writes up to this stamp in a range; returns when all that were taken before are visible.
    async fn close(&self, index: usize, upto: Stamp) -> Result<(), String> {
        let closed = ask_one(self.me, |to| self.store.close_range(index, upto, to)).await;
        closed.map_err(|failure| failure.to_string())
    }

    async fn answer_close(&self, index: usize, request: &PeerReconcile) -> Result<PeerReconciled, String> {
        let upto = request.cut.as_ref().map(wire::horizon).ok_or("the horizon is missing")?.stamp;
        if upto > self.clock.latest() {
            return Err("it is not to be closed in the future".to_owned());
        }
        self.close(index, upto).await?;
        Ok(follow::nothing())
    }

    /// Remembers that a range is collected so far; nothing to do if it was already.
    async fn adopt(&self, index: usize, horizon: Horizon) -> Result<(), String> {
        let own = self.horizon(index);
        if own.or(horizon) == own {
            return Ok(());
        }
        self.close(index, horizon.stamp).await?;
        let kept = ask_one(self.me, |to| self.store.collect_range(index, horizon, to)).await;
        kept.map_err(|failure| failure.to_string())
    }

    /// Up to where dead cells could go now, by the promises and clocks of all servers. A while behind the newest, so that
    /// stamps which clients choose by their own clocks are not refused.
    fn collectable(&self, index: usize) -> Horizon {
        let promised = self.promised();
        if !promised.missing.is_empty() {
            return self.horizon(index);
        }
        let mut known = self.known();
        let wall_us = known.heard.values().map(|heard| heard.wall_us).min().unwrap_or(i64::MAX);
        let expired_s = wall_us.min(self.clock.wall_us()).div_euclid(1_000_000);
        let stamp = known.collected.before(Instant::now());
        let proven = known.ranges[index].proven.map_or(stamp, |(upto, _)| stamp.min(upto));
        drop(known);
        Horizon { stamp: proven.min(promised.upto), expired_s }
    }

    /// True if something is dead behind the horizon and the last collection was a while ago.
    fn is_collection_due(&self, index: usize, wanted: Horizon) -> bool {
        let mut dead = false;
        for stretch in stretches(&self.ring, index, &self.store.tables()) {
            let find = |_: &[u8], sum: Option<&Sum>| dead |= sum.is_some_and(|sum| sum.has_dead(wanted));
            self.store.each_leaf(&stretch.start, &stretch.end, find);
        }
        let pause = Duration::from_millis(self.config.collection_pause_ms);
        let mut known = self.known();
        let range = &mut known.ranges[index];
        range.uncollected.clear();
        let due = dead && range.collected_at.is_none_or(|at| at.elapsed() >= pause);
        if due {
            range.collected_at = Some(Instant::now());
        }
        due
    }

    /// A crash in the middle of dropping leaves cells that count as gone: they are dropped now and then.
    fn drop_leftovers(&self) {
        let mut gone = 0;
        for table in self.store.tables() {
            let (start, end) = (table_start(table), table_end(table));
            self.store.each_leaf(&start, &end, |_, sum| gone += sum.map_or(0, |sum| sum.gone));
        }
        if gone > 0 {
            self.store.drop_collected();
        }
    }

    /// A replica has collected further than this server: the next comparison leaves out what it has collected.
    fn note_told(&self, index: usize, horizon: Horizon) {
        let mut known = self.known();
        known.ranges[index].told = known.ranges[index].told.or(horizon);
    }

    /// Cells that differ were found.
    fn note_divergence(&self, index: usize) {
        self.known().ranges[index].diverged.get_or_insert_with(Instant::now);
    }

    /// Up to where this server has collected in a range.
    fn horizon(&self, index: usize) -> Horizon {
        self.store.horizon(index)
    }

    /// The tables of which this server or one of the others has cells.
    fn tables_of(&self, others: &[Follower]) -> Vec<TableId> {
        let known = self.known();
        let heard = others.iter().filter_map(|other| known.heard.get(&other.node));
        let heard = heard.flat_map(|heard| &heard.tables);
        let mut tables: Vec<TableId> = heard.copied().chain(self.store.tables()).collect();
        tables.sort();
        tables.dedup();
        tables
    }

    // ---------------------------------------------------------------------------------------- cells

    /// Stores cells that come from another replica, read there `under` this horizon. Fails unless all were taken.
    async fn take_in(&self, cells: &[(Vec<u8>, Cell)], under: Horizon) -> Result<(), String> {
        let mut waiting = mutations(cells);
        for _ in 0..OVERLOADED_ATTEMPTS {
            let mut answers = Answers::default();
            for (index, mutation) in waiting.iter().enumerate() {
                self.clock.observe_told(mutation.stamp());
                let to = answers.expect(NodeId(index as u32));
                self.store.apply_from(Origin::Replica(under), mutation.clone(), to);
            }
            let mut again = Vec::new();
            while let Some((index, answer)) = answers.next().await {
                match answer {
                    ApplyAnswer::Applied | ApplyAnswer::Behind(_) => self.stats.reconcile_cells_taken.count(),
                    ApplyAnswer::Failed(Failure::Overloaded) => {
                        again.push(waiting[index.0 as usize].clone());
                    }
                    ApplyAnswer::Failed(failure) => return Err(failure.to_string()),
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            waiting = again;
            tokio::time::sleep(OVERLOADED_PAUSE).await;
        }
        Err(Failure::Overloaded.to_string())
    }

    /// How many of the cells go into one message; at least one.
    fn batch(&self, cells: &[(Vec<u8>, Cell)]) -> usize {
        let mut bytes = 0;
        let fits = |(key, cell): &&(Vec<u8>, Cell)| {
            bytes += key.len() + cell.encoded_len();
            bytes <= self.config.reconcile_batch_bytes
        };
        cells.iter().take(self.config.reconcile_batch_cells).take_while(fits).count().max(1)
    }

    // ---------------------------------------------------------------------------------------- for people

    /// The ranges of which this server is a replica.
    pub fn ranges(&self) -> Vec<RangeView> {
        let mine = self.ring.ranges().iter().enumerate();
        let mine = mine.filter(|(_, range)| range.replicas.contains(&self.me));
        mine.map(|(index, _)| self.range_view(index)).collect()
    }

    fn range_view(&self, index: usize) -> RangeView {
        let known = self.known().ranges[index].clone();
        let mut view = RangeView {
            owner: self.ring.ranges()[index].owner(),
            proven: known.proven,
            why: known.why,
            cells: 0,
            leaves_pending: 0,
            dead_cells: 0,
            dead_bytes: 0,
            uncollected: String::new(),
            collected: self.horizon(index).stamp,
            refilling: String::new(),
        };
        if self.standing.is_lacking(index) {
            view.refilling = match &self.known().refilling {
                Some(refilling) => self.describe_refill(refilling),
                None => "waits to hear what others remember".to_owned(),
            };
        }
        if !self.config.reconciliation {
            view.why = "reconciliation is switched off".to_owned();
            return view;
        }
        if self.failed.load(Ordering::Acquire) {
            view.why = FAILED.to_owned();
        }
        if view.why.is_empty() && view.proven.is_none() {
            view.why = "it was not compared yet".to_owned();
        }
        for stretch in stretches(&self.ring, index, &self.store.tables()) {
            self.store.each_leaf(&stretch.start, &stretch.end, |_, sum| match sum {
                None => view.leaves_pending += 1,
                Some(sum) => {
                    view.cells += sum.all.cells;
                    view.dead_cells += sum.tombstones + sum.expiring;
                    view.dead_bytes += sum.mortal_bytes;
                }
            });
        }
        if view.dead_cells > 0 {
            view.uncollected = match (self.config.collection, view.why.is_empty()) {
                (false, _) => "collection is switched off".to_owned(),
                (true, false) => view.why.clone(),
                (true, true) => known.uncollected,
            };
        }
        view
    }

    fn round(&self) -> Duration {
        Duration::from_millis(self.config.reconcile_round_ms)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic while it is held")
    }
}

fn claim(told: &PeerMemory) -> Claim {
    Claim { incarnation: told.incarnation.unwrap_or(0), logged: told.logged.unwrap_or(0) }
}

/// One mutation for the cells of each partition, which are consecutive.
fn mutations(cells: &[(Vec<u8>, Cell)]) -> Vec<Arc<Mutation>> {
    let mut found: Vec<Mutation> = Vec::new();
    for (engine_key, cell) in cells {
        let place = key::decode(engine_key).expect("the keys were checked");
        match found.last_mut() {
            Some(last) if last.table == place.table && last.partition == place.partition => {
                last.cells.push((place.column, cell.clone()));
            }
            _ => found.push(Mutation {
                table: place.table,
                partition: place.partition,
                cells: vec![(place.column, cell.clone())],
            }),
        }
    }
    found.into_iter().map(Arc::new).collect()
}
