//! The comparing side: the first replica of a range that is up goes through it with the others.
//!
//!   sums of my leaves, scanned where there are none ─► one total: the same? ─► groups of leaves ─► leaves
//!   a leaf that differs ─► lists of versions ─► cells, both ways ─► the same leaf again
//!
//! The sums sent to all the others are one and the same, made once: if each of them says *the same*, all replicas were
//! equal, even though they were asked one after the other.
//!
//! While clients write everywhere, sums do not last: leaves are scanned and compared a few at a time (`walk`), with
//! rests between them, not within. Writes that arrive in between are settled by exchanging lists: two replicas lack
//! nothing of each other up to the cut if each has every cell of the other's list, or a newer one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Reconciler;
use super::decide::{self, Version};
use super::pace::{self, Work};
use super::stretch::{Stretch, stretches};
use super::wire;
use crate::answer::{Failure, NodeId, ask_one};
use crate::cell::{Cell, Content, Stamp};
use crate::store::leaves::{Counted, Cut, Horizon, LEAF_CELLS, Scan};
use crate::store::{StoreError, cell_hash};
use crate::thrift::chord::{PeerAsks, PeerCut, PeerReconcile, PeerReconciled, PeerSpan};

/// Spans of one request: groups of leaves, or leaves.
pub(super) const SPANS_MAX: usize = 64;

/// How often a leaf is compared in one pass while cells of it are on their way.
const LEAF_ATTEMPTS: usize = 4;

/// Leaves to be summed up from which on a stretch is walked: their sums would be old before the last of them is made.
const DIRTY_LEAVES_MAX: usize = 64;

/// Groups that differ at once from which on a stretch is walked.
const GROUPS_MAX: usize = SPANS_MAX / 4;

/// Cells of one step of a walk, about; less than what one answer to `COMPARE` scans.
const WALK_CELLS: usize = 2048;

/// Cells that are scanned for one span of another server's question, about: of ten million leaves one has more by
/// chance. More is there only if the other server has less, or has dropped what counts as gone here.
const SPAN_CELLS_MAX: usize = 16 * LEAF_CELLS as usize;

/// How a pass through a range ended.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Cells that differed and moved, in either direction.
    pub moved: u64,
    /// What stands against calling all replicas asked equal; empty: nothing.
    pub why: String,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// A replica gave no answer, or said no.
    #[error("server {0}: {1}")]
    Other(NodeId, Failure),
    /// This server's own store cannot be read or written.
    #[error("this server: {0}")]
    Here(String),
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Stopped {
        Stopped::Here(error.to_string())
    }
}

/// A replica that is compared with this one, and the start of it that is meant: a server that starts again in the
/// middle may have other files than were compared, so nothing that was found out about one start is ever said to
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Follower {
    pub node: NodeId,
    pub generation: i64,
}

/// One pass through a range.
struct Pass<'a> {
    me: &'a Arc<Reconciler>,
    index: usize,
    followers: &'a [Follower],
    cut: Cut,
    moved: u64,
    unsettled: bool,
    /// A replica has collected further than the cut says.
    outdated: AtomicBool,
}

/// The leaves in which somebody differs, by their indices, and who that is.
type Suspects = BTreeMap<usize, Vec<Follower>>;

/// What scans have looked at, and how long that took without what happened in between.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scanned {
    pub cells: usize,
    pub took: Duration,
}

/// What an exchange with another replica moved.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    /// Cells that were missing on one side.
    differing: u64,
    /// Cells that came here, or went from here; replicas that were asked before do not know of them.
    changed_here: u64,
}

/// Up to where each side had collected before it read what it listed.
#[derive(Clone, Copy, Debug)]
struct Horizons {
    mine: Horizon,
    theirs: Horizon,
}

/// A leaf, or several, as counted here.
#[derive(Clone, Debug)]
struct Span {
    end: Vec<u8>,
    counted: Counted,
}

/// What another server says of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Differs,
    NotKnown,
}

impl Reconciler {
    /// Compares this server's cells of a range with those of the `followers`, and makes them equal.
    pub(super) async fn pass(
        self: &Arc<Self>,
        index: usize,
        followers: &[Follower],
        cut: Cut,
    ) -> Result<Compared, Stopped> {
        let outdated = AtomicBool::new(false);
        let mut pass = Pass { me: self, index, followers, cut, moved: 0, unsettled: false, outdated };
        let tables = self.tables_of(followers);
        for stretch in stretches(&self.ring, index, &tables) {
            pass.stretch(&stretch).await?;
        }
        let why = match (pass.unsettled, pass.outdated.into_inner()) {
            (_, true) => "a replica has collected further than this server knew".to_owned(),
            (true, false) => "cells are on their way".to_owned(),
            (false, false) => String::new(),
        };
        Ok(Compared { moved: pass.moved, why })
    }

    /// What the cut counts between two engine keys. Adds what it looked at to `scanned`.
    pub(super) async fn count(
        &self,
        start: &[u8],
        end: &[u8],
        cut: &Cut,
        how: Counting,
        scanned: &mut Scanned,
    ) -> Result<Tally, StoreError> {
        let mut at = start.to_vec();
        let mut total = Counted::default();
        let before = scanned.cells;
        while at[..] < *end {
            if let Counting::Within(cells) = how
                && (total.cells > cells || scanned.cells - before > SPAN_CELLS_MAX)
            {
                return Ok(Tally::More);
            }
            let leaf = self.store.leaf_at(&at, end);
            let whole = leaf.start == at && leaf.end[..] <= *end;
            if whole && let Some(counted) = leaf.sum.and_then(|sum| sum.counted(cut)) {
                total = total.and(counted);
                at = leaf.end;
                continue;
            }
            if how == Counting::Known {
                return Ok(Tally::NotKnown);
            }
            if leaf.start == at && leaf.sum.is_none() {
                // To its first cut, which may come before `end` although its known end does not.
                let scan = self.scan(&at, &leaf.end, cut, true, how, scanned).await?;
                self.store.note_leaf(&leaf, &scan);
                if scan.next[..] <= *end {
                    total = total.and(scan.counted);
                    at = scan.next;
                    continue;
                }
            }
            let upto = if leaf.end[..] < *end { &leaf.end } else { end };
            let scan = self.scan(&at, upto, cut, false, how, scanned).await?;
            total = total.and(scan.counted);
            at = scan.next;
        }
        Ok(Tally::All(total))
    }

    async fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        cut: &Cut,
        to_boundary: bool,
        how: Counting,
        scanned: &mut Scanned,
    ) -> Result<Scan, StoreError> {
        let horizon = self.store.horizon_at(start);
        let mut scan = Scan::new(start, end, *cut, horizon, to_boundary);
        while !scan.complete {
            let began = Instant::now();
            let before = scan.sum.all.cells + scan.sum.gone;
            self.store.scan(&mut scan, self.config.reconcile_step_cells)?;
            scanned.cells += (scan.sum.all.cells + scan.sum.gone - before) as usize;
            scanned.took += began.elapsed();
            match how {
                Counting::Resting(range) => self.rest(range, began.elapsed()).await,
                Counting::AtOnce | Counting::Within(_) | Counting::Known => tokio::task::yield_now().await,
            }
        }
        Ok(scan)
    }

    /// Asks another replica, once it wants to be asked again.
    pub(super) async fn ask(&self, to: Follower, request: PeerReconcile) -> Result<PeerReconciled, Stopped> {
        let node = to.node;
        self.until_welcome(node).await;
        let epoch = Some(self.ring.epoch() as i64);
        let request = PeerReconcile { epoch, generation: Some(to.generation), ..request };
        let answer = ask_one(node, |to| self.peers.reconcile(request, to)).await;
        let answer = answer.map_err(|failure| Stopped::Other(node, failure))?;
        if let Some(refused) = answer.refused.as_ref().filter(|refused| !refused.is_empty()) {
            return Err(Stopped::Other(node, Failure::Refused(refused.as_str().into())));
        }
        let welcome = Instant::now() + pace::pause(answer.pause);
        self.known().welcome.insert(node, welcome);
        Ok(answer)
    }

    /// Leaves another server alone for as long as it asked when it answered last.
    async fn until_welcome(&self, node: NodeId) {
        let welcome = self.known().welcome.get(&node).copied();
        if let Some(welcome) = welcome.filter(|welcome| *welcome > Instant::now()) {
            tokio::time::sleep_until(welcome).await;
        }
    }

    /// Looking at a range that is proven equal takes a smaller share than at one that may lack something; unless a
    /// server gets back what it lost, for its ranges wait behind this one.
    ///
    /// While a server is down nothing can be proven. It is enough then that every range which this server leads was
    /// found equal since it went down: one that was not would wait behind this one.
    pub(super) fn look_work(&self, index: usize) -> Work {
        let mut up = self.nodes.iter().filter(|node| self.is_up(**node));
        let whole = up.all(|node| self.is_whole(*node, index));
        let present = self.present();
        let led: Vec<usize> = (0..self.ring.ranges().len()).filter(|index| self.leads(*index)).collect();
        let known = self.known();
        let equal = if present.len() + 1 < self.nodes.len() && led.contains(&index) {
            led.iter().all(|index| known.ranges[*index].was_equal_among(&present))
        } else {
            known.ranges[index].is_proven_equal()
        };
        if whole && equal { Work::Look } else { Work::Mend }
    }

    /// Rests after so much work on a range.
    async fn rest(&self, index: usize, worked: Duration) {
        self.pace.rest_after_work(worked, || self.look_work(index)).await;
    }
}

/// How [`Reconciler::count`] gets at what it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// Not at all.
    Known,
    /// It scans and rests in between, as is due for the range of this index.
    Resting(usize),
    /// It scans: somebody waits, and will rest for both.
    AtOnce,
    /// The same, but it ends where that many cells are passed, or it has scanned too much for one answer.
    Within(u64),
}

/// What [`Reconciler::count`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tally {
    /// So much, and no more.
    All(Counted),
    /// More than it was to count, or so much that it did not go on.
    More,
    /// It would have had to scan.
    NotKnown,
}

impl Pass<'_> {
    async fn stretch(&mut self, stretch: &Stretch) -> Result<(), Stopped> {
        if self.dirty_leaves(stretch) > DIRTY_LEAVES_MAX {
            return self.walk(stretch).await;
        }
        let mut spans = None;
        let total = match self.known_total(stretch) {
            Some(total) => total,
            None => spans
                .insert(self.count_leaves(stretch).await?)
                .iter()
                .fold(Counted::default(), |total, span| total.and(span.counted)),
        };
        let mut suspects = Suspects::new();
        let whole = [Span { end: stretch.end.clone(), counted: total }];
        for &follower in self.followers {
            self.me.stats.reconcile_comparisons.count();
            if self.compare(follower, &stretch.start, &whole, true).await?[0] == Verdict::Same {
                continue;
            }
            if spans.is_none() {
                spans = Some(self.count_leaves(stretch).await?);
            }
            let spans = spans.as_deref().expect("they were counted just now");
            if !self.descend(follower, &stretch.start, spans, &mut suspects).await? {
                return self.walk(stretch).await;
            }
        }
        self.settle(&stretch.start, &spans.unwrap_or_default(), suspects).await
    }

    /// A few leaves at a time: counted, compared and settled before more is written into them.
    async fn walk(&mut self, stretch: &Stretch) -> Result<(), Stopped> {
        self.tell_size(stretch).await?;
        let mut at = stretch.start.clone();
        while at < stretch.end {
            self.until_all_welcome().await;
            let mut scanned = Scanned::default();
            let spans = self.count_some(&at, &stretch.end, Counting::AtOnce, &mut scanned).await?;
            let mut suspects = Suspects::new();
            for &follower in self.followers {
                self.me.stats.reconcile_comparisons.count();
                let verdicts = self.compare(follower, &at, &spans, false).await?;
                suspect(&mut suspects, follower, 0, &verdicts);
            }
            self.me.rest(self.index, scanned.took).await;
            self.settle(&at, &spans, suspects).await?;
            at.clone_from(&spans.last().expect("a stretch has a leaf").end);
        }
        Ok(())
    }

    /// About how many cells there are, for whoever gets them back: no answer is expected to such a sum.
    async fn tell_size(&self, stretch: &Stretch) -> Result<(), Stopped> {
        let mut cells = 0;
        self.me.store.each_leaf(&stretch.start, &stretch.end, |_, sum| {
            cells += sum.map_or(LEAF_CELLS, |sum| sum.all.cells);
        });
        let whole = [Span { end: stretch.end.clone(), counted: Counted { cells, digest: 0 } }];
        for &follower in self.followers {
            self.compare(follower, &stretch.start, &whole, true).await?;
        }
        Ok(())
    }

    async fn until_all_welcome(&self) {
        for follower in self.followers {
            self.me.until_welcome(follower.node).await;
        }
    }

    /// How many leaves have to be scanned for this cut.
    fn dirty_leaves(&self, stretch: &Stretch) -> usize {
        let mut dirty = 0;
        self.me.store.each_leaf(&stretch.start, &stretch.end, |_, sum| {
            dirty += usize::from(sum.and_then(|sum| sum.counted(&self.cut)).is_none());
        });
        dirty
    }

    /// The sum of all the leaves, if there is one of each.
    fn known_total(&self, stretch: &Stretch) -> Option<Counted> {
        let mut total = Some(Counted::default());
        let mut leaves = 0;
        self.me.store.each_leaf(&stretch.start, &stretch.end, |_, sum| {
            leaves += 1;
            let counted = sum.and_then(|sum| sum.counted(&self.cut));
            total = total.zip(counted).map(|(total, counted)| total.and(counted));
        });
        total.filter(|_| leaves > 0)
    }

    /// Every leaf with its count; what is not known is scanned.
    async fn count_leaves(&self, stretch: &Stretch) -> Result<Vec<Span>, Stopped> {
        let mut spans = Vec::new();
        let mut at = stretch.start.clone();
        while at < stretch.end {
            let how = Counting::Resting(self.index);
            spans.extend(self.count_some(&at, &stretch.end, how, &mut Scanned::default()).await?);
            at.clone_from(&spans.last().expect("a stretch has a leaf").end);
        }
        Ok(spans)
    }

    /// The next leaves with their counts: as many as one question takes, or one answer scans.
    async fn count_some(
        &self,
        start: &[u8],
        end: &[u8],
        how: Counting,
        scanned: &mut Scanned,
    ) -> Result<Vec<Span>, Stopped> {
        let mut spans: Vec<Span> = Vec::new();
        let (mut at, mut cells) = (start.to_vec(), 0);
        while at[..] < *end && spans.len() < SPANS_MAX && scanned.cells.max(cells) < WALK_CELLS {
            let leaf = self.me.store.leaf_at(&at, end);
            let known = leaf.sum.and_then(|sum| sum.counted(&self.cut)).filter(|_| leaf.start == at);
            let (end, counted) = match known {
                Some(counted) => (leaf.end, counted),
                None => {
                    let whole = leaf.start == at;
                    let scan = self.me.scan(&at, &leaf.end, &self.cut, whole, how, scanned).await?;
                    if whole {
                        self.me.store.note_leaf(&leaf, &scan);
                    }
                    (scan.next, scan.counted)
                }
            };
            at.clone_from(&end);
            cells += counted.cells as usize;
            spans.push(Span { end, counted });
        }
        Ok(spans)
    }

    /// Finds the leaves in which the other server differs: group by group, then leaf by leaf. False: there are too many
    /// of them, or it would have to scan too many, so that a walk is better.
    async fn descend(
        &self,
        follower: Follower,
        start: &[u8],
        spans: &[Span],
        suspects: &mut Suspects,
    ) -> Result<bool, Stopped> {
        let start_of = |index: usize| if index == 0 { start } else { &spans[index - 1].end[..] };
        let mut groups = vec![(0, spans.len())];
        while let Some((from, to)) = groups.pop() {
            if to - from <= SPANS_MAX {
                let verdicts = self.compare(follower, start_of(from), &spans[from..to], false).await?;
                suspect(suspects, follower, from, &verdicts);
                continue;
            }
            let size = (to - from).div_ceil(SPANS_MAX);
            let parts: Vec<(usize, usize)> =
                (from..to).step_by(size).map(|part| (part, to.min(part + size))).collect();
            let together = |&(from, to): &(usize, usize)| Span {
                end: spans[to - 1].end.clone(),
                counted: spans[from..to].iter().fold(Counted::default(), |sum, span| sum.and(span.counted)),
            };
            let sums: Vec<Span> = parts.iter().map(together).collect();
            let verdicts = self.compare(follower, start_of(from), &sums, true).await?;
            let differing = parts.into_iter().zip(verdicts).filter(|(_, verdict)| *verdict != Verdict::Same);
            groups.extend(differing.map(|(part, _)| part).rev());
            if groups.len() > GROUPS_MAX {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the other server says of each span. Not `quick`: it scans what it does not know, some at a time.
    async fn compare(
        &self,
        follower: Follower,
        start: &[u8],
        spans: &[Span],
        quick: bool,
    ) -> Result<Vec<Verdict>, Stopped> {
        let mut verdicts: Vec<Verdict> = Vec::with_capacity(spans.len());
        while verdicts.len() < spans.len() {
            let from = verdicts.len();
            let start = if from == 0 { start } else { &spans[from - 1].end };
            let request = PeerReconcile {
                asks: Some(PeerAsks::COMPARE),
                range: Some(self.index as i32),
                cut: Some(wire::cut(&self.cut)),
                start: Some(start.to_vec()),
                spans: Some(spans[from..].iter().map(peer_span).collect()),
                quick: Some(quick),
                ..PeerReconcile::default()
            };
            let answer = self.me.ask(follower, request).await?;
            self.note_horizon(answer.cut.as_ref());
            let said = answer.verdicts.unwrap_or_default();
            if said.len() != spans.len() - from {
                return Err(self.odd(follower, "a verdict for another number of spans"));
            }
            let said = said.into_iter().map(|verdict| match verdict {
                0 => Verdict::Same,
                1 => Verdict::Differs,
                _ => Verdict::NotKnown,
            });
            match quick {
                true => verdicts.extend(said),
                false => verdicts.extend(said.take_while(|verdict| *verdict != Verdict::NotKnown)),
            }
            if verdicts.len() == from {
                return Err(self.odd(follower, "no verdict"));
            }
        }
        Ok(verdicts)
    }

    /// Makes the leaves equal in which somebody was found to differ.
    async fn settle(&mut self, start: &[u8], spans: &[Span], suspects: Suspects) -> Result<(), Stopped> {
        for (index, nodes) in suspects {
            let start = if index == 0 { start } else { &spans[index - 1].end };
            self.settle_leaf(start, &spans[index].end, nodes).await?;
        }
        Ok(())
    }

    /// Makes one leaf equal on all replicas, `suspects` first. If something differed, the next pass has to confirm it.
    /// If only cells on their way came from one of them, all are asked again: whoever was asked before may lack them.
    async fn settle_leaf(
        &mut self,
        start: &[u8],
        end: &[u8],
        suspects: Vec<Follower>,
    ) -> Result<(), Stopped> {
        let mut suspects = suspects;
        for _ in 0..LEAF_ATTEMPTS {
            let mut moved = Moved::default();
            for &follower in &suspects {
                let with_one = self.mend(follower, start, end).await?;
                moved.differing += with_one.differing;
                moved.changed_here += with_one.changed_here;
            }
            if moved.differing > 0 {
                self.me.note_divergence(self.index);
                self.me.stats.reconcile_leaves_differing.count();
                self.moved += moved.differing;
                return Ok(());
            }
            if moved.changed_here == 0 {
                return Ok(());
            }
            suspects = self.differing(start, end).await?;
        }
        self.unsettled = true;
        Ok(())
    }

    /// Who differs in one leaf now.
    async fn differing(&self, start: &[u8], end: &[u8]) -> Result<Vec<Follower>, Stopped> {
        self.until_all_welcome().await;
        let mut scanned = Scanned::default();
        let counted = self.me.count(start, end, &self.cut, Counting::AtOnce, &mut scanned).await?;
        let Tally::All(counted) = counted else { unreachable!("it scans to the end") };
        let span = Span { end: end.to_vec(), counted };
        let mut differing = Vec::new();
        for &follower in self.followers {
            let verdicts = self.compare(follower, start, std::slice::from_ref(&span), false).await?;
            differing.extend((verdicts[0] != Verdict::Same).then_some(follower));
        }
        self.me.rest(self.index, scanned.took).await;
        Ok(differing)
    }

    /// Lists the versions on both sides and exchanges what differs.
    async fn mend(&self, follower: Follower, start: &[u8], end: &[u8]) -> Result<Moved, Stopped> {
        let mut moved = Moved::default();
        let mut at = start.to_vec();
        while at[..] < *end {
            self.me.until_welcome(follower.node).await;
            let began = Instant::now();
            // First: what is read now and sent much later must not pass for what was read after a collection in
            // between.
            let my_horizon = self.me.horizon(self.index);
            let (mut cells, all) = self.me.store.run(&at, end, self.me.config.reconcile_list_cells)?;
            let mut upto = match cells.last() {
                Some((key, _)) if !all => crate::store::leaves::behind(key),
                _ => end.to_vec(),
            };
            let worked = began.elapsed();
            let request = PeerReconcile {
                asks: Some(PeerAsks::VERSIONS),
                range: Some(self.index as i32),
                cut: Some(wire::cut(&self.cut)),
                start: Some(at.clone()),
                before: Some(upto.clone()),
                ..PeerReconcile::default()
            };
            let answer = self.me.ask(follower, request).await?;
            let theirs = wire::versions(answer.versions.unwrap_or_default());
            let theirs = theirs.ok_or_else(|| self.odd(follower, "a list that is no list"))?;
            let reached = answer.reached.unwrap_or_default();
            if reached <= at || reached > upto {
                return Err(self.odd(follower, "a list of another stretch"));
            }
            upto = reached;
            cells.truncate(cells.partition_point(|(key, _)| *key < upto));
            cells.retain(|(_, cell)| !self.cut.horizon.covers(cell));
            let mine: Vec<Version> = cells.iter().map(|(key, cell)| version(key, cell)).collect();
            let their_horizon = answer.cut.as_ref().map_or(Horizon::NONE, wire::horizon);
            self.note_horizon(answer.cut.as_ref());
            let plan = decide::plan(&mine, &theirs, &self.cut, my_horizon.stamp, their_horizon.stamp);
            self.me.pace.rest_after_work(worked, || Work::Mend).await;
            let horizons = Horizons { mine: my_horizon, theirs: their_horizon };
            let cells = self.carry_out(follower, &cells, &theirs, &plan, horizons).await?;
            moved.differing += cells.saturating_sub(plan.overtaken as u64);
            moved.changed_here += (plan.fetch.len() + plan.fetch_late.len() + plan.drop_mine.len()) as u64;
            at = upto;
        }
        Ok(moved)
    }

    async fn carry_out(
        &self,
        follower: Follower,
        mine: &[(Vec<u8>, Cell)],
        theirs: &[Version],
        plan: &decide::Plan,
        horizons: Horizons,
    ) -> Result<u64, Stopped> {
        let tombstone = |stamp: Stamp| Cell { stamp, content: Content::Tombstone };
        let keys =
            |indices: &[usize]| indices.iter().map(|&index| &theirs[index].key[..]).collect::<Vec<_>>();
        let mut fetched = self.fetch(follower, &keys(&plan.fetch), horizons.theirs).await?;
        fetched += self.fetch(follower, &keys(&plan.fetch_late), horizons.mine).await?;
        let drops =
            plan.drop_mine.iter().map(|&index| (mine[index].0.clone(), tombstone(mine[index].1.stamp)));
        let drops: Vec<(Vec<u8>, Cell)> = drops.collect();
        self.me.take_in(&drops, horizons.mine).await.map_err(Stopped::Here)?;
        let theirs_gone = plan.drop_theirs.iter().map(|&index| &theirs[index]);
        let theirs_gone = theirs_gone.map(|version| (version.key.clone(), tombstone(version.stamp)));
        let given = plan.give.iter().map(|&index| mine[index].clone()).chain(theirs_gone);
        let given: Vec<(Vec<u8>, Cell)> = given.collect();
        self.give(follower, &given, horizons.mine).await?;
        let late = plan.give_late.iter().map(|&index| mine[index].clone());
        let late: Vec<(Vec<u8>, Cell)> = late.filter(|(_, cell)| !horizons.theirs.covers(cell)).collect();
        self.give(follower, &late, horizons.theirs).await?;
        Ok(fetched + (drops.len() + given.len() + late.len()) as u64)
    }

    /// Gets cells from the other server and takes them in here, unless they count as gone `under` this horizon.
    async fn fetch(&self, follower: Follower, keys: &[&[u8]], under: Horizon) -> Result<u64, Stopped> {
        let mut rest = keys;
        let mut fetched = 0;
        while !rest.is_empty() {
            let now = &rest[..rest.len().min(self.me.config.reconcile_batch_cells)];
            let request = PeerReconcile {
                asks: Some(PeerAsks::FETCH),
                range: Some(self.index as i32),
                keys: Some(now.iter().map(|key| key.to_vec()).collect()),
                ..PeerReconcile::default()
            };
            let answer = self.me.ask(follower, request).await?;
            let began = Instant::now();
            let handled = answer.handled.and_then(|handled| usize::try_from(handled).ok()).unwrap_or(0);
            let cells = self.me.check_cells(self.index, answer.cells.unwrap_or_default());
            let mut cells = cells.map_err(|why| self.odd(follower, &why))?;
            if handled == 0 || handled > now.len() || cells.len() > handled {
                return Err(self.odd(follower, "cells that were not asked for"));
            }
            cells.retain(|(_, cell)| !under.covers(cell));
            let worked = began.elapsed();
            self.me.take_in(&cells, under).await.map_err(Stopped::Here)?;
            self.me.stats.reconcile_cells_received.add(cells.len() as u64);
            self.me.stats.reconcile_bytes_received.add(bytes_of(&cells));
            fetched += cells.len() as u64;
            rest = &rest[handled..];
            self.me.pace.rest_after_work(worked, || Work::Mend).await;
        }
        Ok(fetched)
    }

    /// Gives cells to the other server that were read `under` this horizon, or came late and met a live one there.
    async fn give(
        &self,
        follower: Follower,
        cells: &[(Vec<u8>, Cell)],
        under: Horizon,
    ) -> Result<(), Stopped> {
        let mut rest = cells;
        while !rest.is_empty() {
            let began = Instant::now();
            let count = self.me.batch(rest);
            let (now, later) = rest.split_at(count);
            let request = PeerReconcile {
                asks: Some(PeerAsks::GIVE),
                range: Some(self.index as i32),
                cut: Some(wire::of_horizon(under)),
                cells: Some(now.iter().map(|(key, cell)| wire::held(key, cell)).collect()),
                ..PeerReconcile::default()
            };
            let worked = began.elapsed();
            self.me.ask(follower, request).await?;
            self.me.stats.reconcile_cells_sent.add(count as u64);
            self.me.stats.reconcile_bytes_sent.add(bytes_of(now));
            rest = later;
            self.me.pace.rest_after_work(worked, || Work::Mend).await;
        }
        Ok(())
    }

    /// A replica that has collected further than was known: what was counted may include what is gone there.
    fn note_horizon(&self, told: Option<&PeerCut>) {
        let theirs = told.map_or(Horizon::NONE, wire::horizon);
        if self.cut.horizon.or(theirs) != self.cut.horizon {
            self.me.note_told(self.index, theirs);
            self.outdated.store(true, Ordering::Relaxed);
        }
    }

    fn odd(&self, follower: Follower, what: &str) -> Stopped {
        Stopped::Other(follower.node, Failure::Refused(format!("it answered with {what}").into()))
    }
}

/// Notes who differs in which of the leaves from this index on.
fn suspect(suspects: &mut Suspects, follower: Follower, from: usize, verdicts: &[Verdict]) {
    for (index, _) in verdicts.iter().enumerate().filter(|(_, verdict)| **verdict != Verdict::Same) {
        suspects.entry(from + index).or_default().push(follower);
    }
}

fn peer_span(span: &Span) -> PeerSpan {
    PeerSpan::new(span.end.clone(), span.counted.cells as i64, span.counted.digest.to_be_bytes().to_vec())
}

/// What identifies a cell without its content.
pub(super) fn version(key: &[u8], cell: &Cell) -> Version {
    Version { key: key.to_vec(), stamp: cell.stamp, hash: cell_hash(key, cell) }
}

pub(super) fn bytes_of(cells: &[(Vec<u8>, Cell)]) -> u64 {
    cells.iter().map(|(key, cell)| (key.len() + cell.encoded_len()) as u64).sum()
}
