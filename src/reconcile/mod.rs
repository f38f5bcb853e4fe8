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
//! `decide`, `state`, `stretch` and the sums are plain values without await, clock or socket. `lead` asks, `follow`
//! answers; `promises` hears what may still come, `collecting` drops what is dead everywhere, `refill` gets back what
//! files lack. docs/reconciliation.md has the whole argument.
//!
//! Not here: hints (`handoff`), what a read mends (`coordinator`), which cells a leaf sums up (`store`).

mod collecting;
mod decide;
mod follow;
mod lead;
mod outstanding;
mod pace;
mod promises;
mod refill;
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
use crate::store::{Origin, Store, StoreError};
use crate::thrift::chord::{PeerAsks, PeerReconcile, PeerReconciled};

use lead::{Compared, Follower};
pub use outstanding::{Outstanding, Unsettled};
use pace::Pace;
use refill::Files;
pub use standing::Standing;
use state::{Heard, Present, Promised, RangeKnown, Samples};
use stretch::stretches;

/// How long cells wait to be offered again to a log whose queue was full, and how often.
const OVERLOADED_PAUSE: Duration = Duration::from_millis(50);
const OVERLOADED_ATTEMPTS: usize = 20;

/// Passes through one range in a row, as long as cells move, before the others have their turn: one that finds the same
/// again and again must not keep it. Two make equal what is not written to.
const PASSES_MAX: usize = 4;

/// How far ahead of the clock a stamp may be and still count as made by one: a pass takes a while, and clients write.
const PASS_MAX_US: i64 = 600 * 1_000_000;

/// What `status` and the log say then.
const FAILED: &str =
    "reconciliation has failed and goes on when this server is restarted; this is a bug, see the log";

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
    /// Who was up when a pass began last.
    present: Option<Present>,
    /// Until when the others want to be left alone.
    welcome: BTreeMap<NodeId, Instant>,
    /// What is compared is older than the one, what is collected older than the other.
    compared: Samples,
    collected: Samples,
    files: Files,
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
        let files = Files::new(&store, &nodes, generation);
        let known = Known {
            ranges,
            heard: BTreeMap::new(),
            present: None,
            welcome: BTreeMap::new(),
            compared: Samples::new(Duration::from_millis(config.reconcile_lag_ms)),
            collected: Samples::new(Duration::from_millis(config.collection_lag_ms)),
            files,
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

    // ---------------------------------------------------------------------------------------- comparing

    /// Goes through the ranges that this server leads, again at once, a few times, through those where something
    /// differed; first through those of a server that gets back what it lost.
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

    fn follower(&self, node: NodeId) -> Follower {
        Follower { node, generation: self.members.generation(node).unwrap_or(0) }
    }

    /// The other servers that are up.
    fn present(&self) -> Vec<Follower> {
        let others = self.nodes.iter().copied().filter(|node| *node != self.me && self.is_up(*node));
        others.map(|node| self.follower(node)).collect()
    }

    /// Takes note of who is up. `None`: what is compared up to this stamp need not have all that a server had sent
    /// before it went down.
    fn note_present(&self, upto: Stamp) -> Option<Vec<Follower>> {
        let servers = self.present();
        let mut known = self.known();
        if known.present.as_ref().is_none_or(|present| present.servers != servers) {
            known.present = Some(Present { servers: servers.clone(), since: self.clock.latest() });
        }
        known.present.as_ref().is_some_and(|present| upto >= present.since).then_some(servers)
    }

    /// One pass through a range. Returns how many cells moved.
    async fn lead(self: &Arc<Self>, index: usize) -> u64 {
        let replicas = &self.ring.ranges()[index].replicas;
        let others = || replicas.iter().copied().filter(|node| *node != self.me);
        let (up, absent): (Vec<NodeId>, Vec<NodeId>) = others().partition(|node| self.is_up(*node));
        let followers: Vec<Follower> = up.into_iter().map(|node| self.follower(node)).collect();
        let promised = self.promised();
        let cut = self.cut(index);
        let present = self.note_present(cut.upto);
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
        self.known().ranges[index].equal_among = present.filter(|_| equal);
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

    /// Up to where the pass proves all replicas equal, or why it does not. `before`: what was promised when it began; a
    /// write that was under way then may have come to one replica behind the comparison, and to no other.
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
            view.refilling = match &self.known().files.refilling {
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
