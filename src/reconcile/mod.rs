//! Replicas that end up equal by themselves: all the time, without reads, without an operator, without a clock.
//!
//! ```text
//!   leaves (store) ─► sums ─► the first replica of a range that is up compares them with those of the others
//!                               same: nothing moves │ a leaf differs: lists of versions ─► cells, both ways ─► merge
//!   promises (every server): "I send no writes below this stamp any more"
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
mod state;
mod stretch;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::answer::{Answers, ApplyAnswer, Failure, NodeId};
use crate::cell::{Cell, Stamp};
use crate::clock::Clock;
use crate::config::Config;
use crate::key::{self, TableId};
use crate::membership::{Members, State};
use crate::mutation::Mutation;
use crate::peer::Peers;
use crate::ring::Ring;
use crate::stats::Stats;
use crate::store::leaves::{Cut, Horizon};
use crate::store::{Store, StoreError};
use crate::thrift::chord::{PeerAsks, PeerReconcile, PeerReconciled};

use lead::Compared;
pub use outstanding::{Outstanding, Unsettled};
use pace::Pace;
use state::{Heard, Promised, RangeKnown, Samples};
use stretch::stretches;

/// How long cells wait to be offered again to a log whose queue was full, and how often.
const OVERLOADED_PAUSE: Duration = Duration::from_millis(50);
const OVERLOADED_ATTEMPTS: usize = 20;

/// Rounds for which a promise holds against *not heard*.
const PROMISE_ROUNDS: u32 = 5;

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
}

/// Compares this server with the other replicas of its ranges, and answers their comparisons.
pub struct Reconciler {
    me: NodeId,
    nodes: Vec<NodeId>,
    config: Arc<Config>,
    ring: Arc<Ring>,
    members: Arc<Members>,
    store: Store,
    peers: Arc<dyn Peers>,
    clock: Arc<Clock>,
    stats: Arc<Stats>,
    outstanding: Arc<Outstanding>,
    pace: Pace,
    known: Mutex<Known>,
}

/// What was learnt since the start.
#[derive(Default)]
struct Known {
    /// By index in the ring's order; those of which this server is no replica stay empty.
    ranges: Vec<RangeKnown>,
    heard: BTreeMap<NodeId, Heard>,
    samples: Samples,
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
}

impl Reconciler {
    /// Cuts the store's leaves; nothing is compared yet.
    pub fn new(parts: Parts) -> Result<Arc<Reconciler>, StoreError> {
        let Parts { me, nodes, config, ring, members, store, peers, clock, stats, outstanding } = parts;
        if config.reconciliation {
            store.cut_leaves(stretch::tokens(&ring))?;
        }
        let ranges = ring.ranges().iter().map(|_| RangeKnown::default()).collect();
        let pace = Pace::new(&config);
        let known = Mutex::new(Known { ranges, ..Known::default() });
        Ok(Arc::new(Reconciler {
            me,
            nodes,
            config,
            ring,
            members,
            store,
            peers,
            clock,
            stats,
            outstanding,
            pace,
            known,
        }))
    }

    /// Starts the background tasks on the current runtime.
    pub fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        if !self.config.reconciliation {
            return Vec::new();
        }
        vec![tokio::spawn(self.clone().run_promises()), tokio::spawn(self.clone().run_rounds())]
    }

    // ---------------------------------------------------------------------------------------- promises

    /// Every round: what did the clock reach, do clients come, what do the others promise?
    async fn run_promises(self: Arc<Self>) {
        loop {
            let reached = self.clock.latest();
            self.known().samples.take(Instant::now(), reached);
            self.pace.note_requests(self.requests());
            self.gather_promises().await;
            tokio::time::sleep(self.round()).await;
        }
    }

    async fn gather_promises(&self) {
        let mut answers: Answers<Result<PeerReconciled, Failure>> = Answers::default();
        for &node in self.nodes.iter().filter(|node| **node != self.me) {
            if self.members.state(node) != State::Down {
                let request = PeerReconcile {
                    epoch: Some(self.ring.epoch() as i64),
                    asks: Some(PeerAsks::PROMISE),
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
            let waits = answer.waits.unwrap_or_default();
            let heard = Heard { at: Instant::now(), promise: Stamp(promise), waits, tables };
            self.known().heard.insert(node, heard);
        }
    }

    fn answer_promise(&self, _caller: NodeId, _request: &PeerReconcile) -> PeerReconciled {
        let (promise, waits) = self.promise();
        let tables = self.store.tables().into_iter().map(|table| i32::from(table.0));
        PeerReconciled {
            promise: Some(promise.0),
            waits: Some(waits),
            wall: Some(self.clock.wall_us()),
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
        let others: Vec<NodeId> = self.nodes.iter().copied().filter(|node| *node != self.me).collect();
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

    // ---------------------------------------------------------------------------------------- comparing

    /// Goes through the ranges that this server leads, again at once through those where something differed.
    async fn run_rounds(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.round()).await;
            for index in 0..self.ring.ranges().len() {
                while self.leads(index) && self.lead(index).await > 0 {}
            }
        }
    }

    /// True if this server is the first replica of the range that is up.
    fn leads(&self, index: usize) -> bool {
        let replicas = &self.ring.ranges()[index].replicas;
        replicas.iter().find(|node| self.is_up(**node)) == Some(&self.me)
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.members.state(node) != State::Down
    }

    /// One pass through a range. Returns how many cells moved.
    async fn lead(self: &Arc<Self>, index: usize) -> u64 {
        let replicas = &self.ring.ranges()[index].replicas;
        let others = || replicas.iter().copied().filter(|node| *node != self.me);
        let followers: Vec<NodeId> = others().filter(|node| self.is_up(*node)).collect();
        let absent: Vec<NodeId> = others().filter(|node| !followers.contains(node)).collect();
        let cut = self.cut(index);
        let compared = match self.pass(index, &followers, cut).await {
            Ok(compared) => compared,
            Err(stopped) => {
                self.stats.reconcile_stopped.count();
                log::debug!("server {}: comparing range {index} stopped: {stopped}", self.me);
                Compared { moved: 0, why: stopped.to_string() }
            }
        };
        let proven = self.proven(&compared, &absent, cut.upto);
        let moved = compared.moved;
        if moved > 0 {
            log::info!("server {}: range {index}: {moved} cells moved between its replicas", self.me);
        }
        self.conclude(index, proven.clone(), compared.why.is_empty());
        self.tell(index, &followers, proven).await;
        moved
    }

    /// Up to where the pass proves all replicas equal, or why it does not.
    fn proven(&self, compared: &Compared, absent: &[NodeId], upto: Stamp) -> Result<Stamp, String> {
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
        let promised = self.promised();
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
        let lag = Duration::from_millis(self.config.reconcile_lag_ms);
        let upto = self.known().samples.before(Instant::now(), lag);
        Cut { upto, beyond: self.clock.latest().max(upto), horizon: self.horizon(index) }
    }

    /// Takes note of how a pass ended. `equal`: nothing differs among those that were asked.
    fn conclude(&self, index: usize, proven: Result<Stamp, String>, equal: bool) {
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
    async fn tell(&self, index: usize, followers: &[NodeId], proven: Result<Stamp, String>) {
        let (upto, why) = match proven {
            Ok(upto) => (upto, String::new()),
            Err(why) => (Stamp(0), why),
        };
        for &node in followers {
            let request = PeerReconcile {
                asks: Some(PeerAsks::OUTCOME),
                range: Some(index as i32),
                cut: Some(wire::cut(&Cut { upto, beyond: upto, horizon: self.horizon(index) })),
                why: Some(why.clone()),
                ..PeerReconcile::default()
            };
            if let Err(stopped) = self.ask(node, request).await {
                log::debug!("server {}: the outcome of range {index} was not taken: {stopped}", self.me);
            }
        }
    }

    async fn answer_outcome(&self, index: usize, request: &PeerReconcile) -> Result<PeerReconciled, String> {
        let cut = request.cut.as_ref().map(wire::read_cut).ok_or("the cut is missing")?;
        let why = request.why.clone().unwrap_or_default();
        let proven = if why.is_empty() { Ok(cut.upto) } else { Err(why) };
        self.conclude(index, proven, true);
        Ok(follow::nothing())
    }

    /// Cells that differ were found.
    fn note_divergence(&self, index: usize) {
        self.known().ranges[index].diverged.get_or_insert_with(Instant::now);
    }

    /// Up to where this server has collected in a range.
    fn horizon(&self, _index: usize) -> Horizon {
        Horizon::NONE
    }

    /// The tables of which this server or one of the others has cells.
    fn tables_of(&self, others: &[NodeId]) -> Vec<TableId> {
        let known = self.known();
        let heard = others.iter().filter_map(|node| known.heard.get(node)).flat_map(|heard| &heard.tables);
        let mut tables: Vec<TableId> = heard.copied().chain(self.store.tables()).collect();
        tables.sort();
        tables.dedup();
        tables
    }

    // ---------------------------------------------------------------------------------------- cells

    /// Stores cells that come from another replica, read there `under` this horizon. Fails unless all were taken.
    async fn take_in(&self, cells: &[(Vec<u8>, Cell)], _under: Horizon) -> Result<(), String> {
        let mut waiting = mutations(cells);
        for _ in 0..OVERLOADED_ATTEMPTS {
            let mut answers = Answers::default();
            for (index, mutation) in waiting.iter().enumerate() {
                self.clock.observe_told(mutation.stamp());
                self.store.apply(mutation.clone(), answers.expect(NodeId(index as u32)));
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
        };
        if !self.config.reconciliation {
            view.why = "reconciliation is switched off".to_owned();
            return view;
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
        view
    }

    fn round(&self) -> Duration {
        Duration::from_millis(self.config.reconcile_round_ms)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic while it is held")
    }
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
