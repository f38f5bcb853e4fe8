//! How a server gets back what its files lack: a disk that was lost, or restored from an older copy (`standing` says
//! how that is known). It takes writes meanwhile, and answers reads of a range once that is proven equal again.
//!
//! Not here: which reads are refused meanwhile (`standing`), how cells come back (`lead`: as everything that differs).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Reconciler;
use super::standing::{self, Claim};
use crate::answer::{Answers, NodeId, ask_one};
use crate::cell::Stamp;
use crate::store::Store;
use crate::thrift::chord::PeerMemory;

/// How often a refill says how far it is.
const REFILL_SAID: Duration = Duration::from_secs(5);

/// How often it is written down what the others have logged: a copy of files older than this is recognised.
const MEMORY_KEPT: Duration = Duration::from_secs(5);

/// How often it is looked, at a start, whether all that are up have been heard.
const INTRODUCED_LOOK: Duration = Duration::from_millis(5);

/// What is known of this server's files, and remembered of the others'.
pub(super) struct Files {
    /// Of this server's own files.
    pub incarnation: i64,
    /// They are known to lack nothing.
    pub whole: bool,
    /// Since this process began it was told that they lack something.
    told: bool,
    /// Rows they had logged when this process began.
    logged_before: i64,
    /// What is remembered of the others' files.
    pub memory: BTreeMap<NodeId, Claim>,
    /// Of that, what is on the disk.
    kept: BTreeMap<NodeId, Claim>,
    kept_at: Option<Instant>,
    /// The largest incarnation that others remember of this server.
    remembered: i64,
    pub refilling: Option<Refilling>,
}

impl Files {
    /// As the store remembers them. `generation`: of this start.
    pub fn new(store: &Store, nodes: &[NodeId], generation: i64) -> Files {
        // Files that say nothing of themselves are new, though they may have rows: writes are taken from the start, and
        // it may have been killed before this was written down. Or of an earlier release, of which nobody remembers
        // anything.
        let earlier = store.remembered(standing::INCARNATION);
        let whole = earlier.is_some_and(|incarnation| store.remembered(standing::WHOLE) == Some(incarnation));
        let remembered = |node: &NodeId| {
            let [incarnation, logged] = memory_names(*node).map(|name| store.remembered(&name));
            Some((*node, Claim { incarnation: incarnation?, logged: logged? }))
        };
        let memory: BTreeMap<NodeId, Claim> = nodes.iter().filter_map(remembered).collect();
        Files {
            incarnation: earlier.unwrap_or(generation),
            whole,
            told: false,
            logged_before: store.logged(),
            kept: memory.clone(),
            memory,
            kept_at: None,
            remembered: 0,
            refilling: None,
        }
    }
}

/// How far this server is with getting back what it lost.
pub(super) struct Refilling {
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

impl Reconciler {
    pub(super) fn own_claim(&self, to: NodeId) -> PeerMemory {
        let logged = self.logged_for(to);
        PeerMemory::new(self.known().files.incarnation, logged)
    }

    /// Rows logged. Until another server was heard, those logged since this process began do not count for it: they
    /// would make up in number for rows that an older copy lacks.
    fn logged_for(&self, node: NodeId) -> i64 {
        let known = self.known();
        if known.heard.contains_key(&node) { self.store.logged() } else { known.files.logged_before }
    }

    pub(super) fn memory_of(&self, node: NodeId) -> PeerMemory {
        let claim = self.known().files.memory.get(&node).copied().unwrap_or_default();
        PeerMemory::new(claim.incarnation, claim.logged)
    }

    /// Another server says what its files have.
    pub(super) fn note_claim(&self, node: NodeId, told: Option<&PeerMemory>, whole: Option<bool>) {
        if let Some(told) = told {
            let mut known = self.known();
            let memory = known.files.memory.entry(node).or_default();
            *memory = memory.updated(claim(told), whole == Some(true));
        }
    }

    /// Another server says what it remembers of this one's files.
    pub(super) fn note_remembered(&self, node: NodeId, told: Option<&PeerMemory>) {
        let Some(remembered) = told.map(claim) else { return };
        let logged = self.logged_for(node);
        let own = Claim { incarnation: self.known().files.incarnation, logged };
        let mut known = self.known();
        known.files.remembered = known.files.remembered.max(remembered.incarnation);
        if known.files.refilling.is_some() || !own.lacks(known.files.whole, remembered) {
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
        (known.files.whole, known.files.told) = (false, true);
        // At once: with what it logs from now on it would look whole after a crash. `look_after_refill` sees whether it
        // failed.
        self.store.remember(self_numbers(known.files.incarnation, false), Answers::default().expect(self.me));
        let before = (self.stats.reconcile_cells_received.get(), self.stats.reconcile_bytes_received.get());
        let now = Instant::now();
        known.files.refilling = Some(Refilling {
            since: now,
            before,
            said_at: now,
            lost_upto: None,
            there: BTreeMap::new(),
            over: false,
        });
    }

    /// Says now and then how far it is; and once nobody objects, that there is nothing to get back.
    pub(super) async fn look_after_refill(&self) {
        let others = self.nodes.iter().filter(|node| **node != self.me);
        let (settled, lost) = {
            let mut known = self.known();
            let all_heard = others.clone().all(|node| known.heard.contains_key(node));
            if let Some(refilling) =
                known.files.refilling.as_mut().filter(|it| it.said_at.elapsed() >= REFILL_SAID)
            {
                refilling.said_at = Instant::now();
                let said = self.describe_refill(refilling);
                log::info!("server {}: {said}", self.me);
            }
            let lost = known.files.refilling.as_ref().is_some_and(|refilling| !refilling.over);
            (all_heard && !known.files.whole && known.files.refilling.is_none(), lost)
        };
        let incarnation = self.known().files.incarnation;
        if settled {
            // The others hear of it only once it is durable: what they then remember would be missed after a crash.
            let remembered = self.remember_self(incarnation, true).await;
            let mut known = self.known();
            known.files.whole = remembered && known.files.refilling.is_none();
        } else if lost && self.store.remembered(standing::WHOLE) != Some(0) {
            self.remember_self(incarnation, false).await;
        }
    }

    /// A range was proven equal up to this stamp: what this server lacked of it is back, if it had nothing newer.
    pub(super) async fn regained(&self, index: usize, upto: Stamp) {
        if !self.standing.is_lacking(index) || self.lost_upto().is_none_or(|lost| upto < lost) {
            return;
        }
        let mine = |index: usize| self.ring.ranges()[index].replicas.contains(&self.me);
        if !self.standing.regained(index, mine) {
            return;
        }
        let incarnation = {
            let mut known = self.known();
            let said = known.files.refilling.as_mut().map_or(String::new(), |refilled| {
                refilled.over = true;
                self.describe_refill(refilled)
            });
            log::info!("server {}: it has got back all that it lost: {said}", self.me);
            self.clock.wall_us().max(known.files.remembered + 1).max(known.files.incarnation + 1)
        };
        self.remember_self(incarnation, true).await;
        let mut known = self.known();
        known.files.refilling = None;
        (known.files.incarnation, known.files.whole) = (incarnation, true);
    }

    /// What this server lost was stamped no later; `None`: not every server has been heard yet. It lost nothing that
    /// was made after it had begun again, so every clock as it was when first heard of, or later, is late enough.
    fn lost_upto(&self) -> Option<Stamp> {
        let latest = self.clock.latest();
        let mut known = self.known();
        let heard = |node: &NodeId| *node == self.me || known.heard.contains_key(node);
        let all_heard = self.nodes.iter().all(heard);
        let lost_upto = &mut known.files.refilling.as_mut()?.lost_upto;
        if all_heard { Some(*lost_upto.get_or_insert(latest)) } else { *lost_upto }
    }

    pub(super) fn describe_refill(&self, refilling: &Refilling) -> String {
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
    pub(super) fn note_there(&self, index: usize, start: &[u8], cells: u64) {
        if let Some(refilling) = &mut self.known().files.refilling {
            refilling.there.entry(index).or_default().insert(start.to_vec(), cells);
        }
    }

    /// True if it is durable.
    pub(super) async fn remember_self(&self, incarnation: i64, whole: bool) -> bool {
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
    pub(super) async fn keep_memory(&self) {
        let (numbers, memory) = {
            let mut known = self.known();
            let due = known.files.kept_at.is_none_or(|at| at.elapsed() >= MEMORY_KEPT);
            if !due || known.files.memory == known.files.kept {
                return;
            }
            known.files.kept_at = Some(Instant::now());
            let number = |(node, claim): (&NodeId, &Claim)| {
                memory_names(*node).into_iter().zip([claim.incarnation, claim.logged])
            };
            (known.files.memory.iter().flat_map(number).collect(), known.files.memory.clone())
        };
        match ask_one(self.me, |to| self.store.remember(numbers, to)).await {
            Ok(()) => self.known().files.kept = memory,
            Err(failure) => {
                log::warn!("server {}: what it remembers of the others is not kept: {failure}", self.me)
            }
        }
    }

    pub(super) fn somebody_is_new(&self) -> bool {
        let known = self.known();
        let new = |node: &&NodeId| !known.heard.contains_key(node) && self.is_up(**node);
        self.nodes.iter().filter(|node| **node != self.me).any(|node| new(&node))
    }

    /// Waits until every server that is up has said what it remembers of this one; no longer than `within`. Before that
    /// no read is answered, not even another server's: files that are older than they were must not count in a quorum.
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
        self.known().files.told
    }

    /// True if its files are known to lack something that they once had.
    pub fn lacks(&self) -> bool {
        self.known().files.refilling.is_some()
    }
}

/// How the store remembers this server's files.
fn self_numbers(incarnation: i64, whole: bool) -> Vec<(String, i64)> {
    let whole = if whole { incarnation } else { 0 };
    vec![(standing::INCARNATION.to_owned(), incarnation), (standing::WHOLE.to_owned(), whole)]
}

/// How the store remembers another server's files: their incarnation, and the rows they had logged.
fn memory_names(node: NodeId) -> [String; 2] {
    [format!("peer_{node}_incarnation"), format!("peer_{node}_logged")]
}

fn claim(told: &PeerMemory) -> Claim {
    Claim { incarnation: told.incarnation.unwrap_or(0), logged: told.logged.unwrap_or(0) }
}
