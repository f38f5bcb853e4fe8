//! Compares what the servers hold, by digests, a bounded stretch of the engine's key order at a time.
//!
//! ```text
//!   each range of the ring, in each table     replicas of the range            everyone else
//!   (after, upto]                             digest, at most 1,000 cells      digest: must be empty
//!     the shortest stretch that one of them   equal: next stretch
//!     could digest in one go decides          different: page through it, keys and stamps only
//! ```
//!
//! Nothing larger than one such stretch is ever in memory. Servers are asked while they work, so two digests of the
//! same stretch may differ because a write is on its way. A difference counts only if a losing replica still holds the
//! very same version after a while; one that has moved on is not stuck.
//!
//! Not here: how the outcome looks (`report`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use super::report::{Difference, Stray, Version};
use crate::answer::NodeId;
use crate::client::{Client, ClientError, Exception, RingView};
use crate::key::{TableId, after_partition};
use crate::thrift::chord::{CellRow, DigestRequest, DigestResult, PageRequest, PageResult};
use crate::thrift::method::{InspectDigest, InspectPage, Method};

/// Cells of one step. Servers have a bound of their own (`inspect_cells_max`), which may be lower.
pub(super) const STEP_CELLS: i32 = 1_000;

/// Differences that are described; more are counted.
pub(super) const DIFFERENCES_MAX: usize = 20;

/// Waits before a stretch that differs is looked at again, in milliseconds.
const LOOK_AGAIN_AFTER_MS: [u64; 2] = [30, 120];

/// Stretches that are looked at again. In a store where more of them differ, a write on its way is not the reason.
const STRETCHES_LOOKED_AT_AGAIN_MAX: usize = 20;

/// What a walk over all stores has found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What each server that answered to the end holds.
    pub held: BTreeMap<NodeId, Held>,
    /// Servers that stopped answering, and why.
    pub lost: BTreeMap<NodeId, String>,
    /// Keys that at least one replica shows to a reader.
    pub keys: u64,
    /// Of those, the ones that all replicas asked hold alike.
    pub agreeing: u64,
    /// The first of the keys that differ, in key order.
    pub differences: Vec<Difference>,
    /// All of them.
    pub differing: u64,
    /// Cells where no cell should be.
    pub strays: Vec<Stray>,
    /// Owners of ranges that fewer than two replicas could be asked for, with the number that could.
    pub uncompared: BTreeMap<NodeId, usize>,
}

/// How much a server holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// All versions, tombstones and expired ones included.
    pub cells: u64,
    /// Of those, the ones a reader would see.
    pub live: u64,
}

/// (after, upto] in engine keys; an empty `upto` is the end of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    after: Vec<u8>,
    upto: Vec<u8>,
}

/// Walks all stores.
pub(super) struct Walk<'a> {
    client: &'a Client,
    ring: &'a RingView,
    /// Cells compared so far, for whoever waits.
    progress: &'a AtomicU64,
    /// Servers that answer.
    asked: Vec<NodeId>,
    looked_again: usize,
    findings: Findings,
}

impl<'a> Walk<'a> {
    /// A walk over the stores of `asked`, the servers known to answer.
    pub(super) fn new(
        client: &'a Client,
        ring: &'a RingView,
        progress: &'a AtomicU64,
        asked: Vec<NodeId>,
    ) -> Walk<'a> {
        let held = asked.iter().map(|node| (*node, Held::default())).collect();
        let findings = Findings { held, ..Findings::default() };
        Walk { client, ring, progress, asked, looked_again: 0, findings }
    }

    /// From the first table to the last.
    pub(super) async fn run(mut self) -> Findings {
        let mut from = Vec::new();
        while let Some(table) = self.next_table(&from).await {
            for (replicas, stretch) in stretches(self.ring, table) {
                let strangers = self.asked.iter().copied().filter(|node| !replicas.contains(node)).collect();
                self.compare(&replicas, stretch.clone()).await;
                self.look_for_strays(&replicas, strangers, stretch).await;
            }
            match table.0.checked_add(1) {
                Some(next) => from = next.to_be_bytes().to_vec(),
                None => break,
            }
        }
        for range in self.ring.ranges() {
            let reachable = range.replicas.iter().filter(|node| self.asked.contains(node)).count();
            if reachable < range.replicas.len().min(2) {
                self.findings.uncompared.insert(range.owner(), reachable);
            }
        }
        self.findings.held.retain(|node, _| self.asked.contains(node));
        self.findings
    }

    /// The first table that has a cell after `from`, on any server; perhaps nothing but cells that count as gone.
    async fn next_table(&mut self, from: &[u8]) -> Option<TableId> {
        let request = page_request(from, &[], 1, 0);
        let asked = self.asked.clone();
        let pages = self.ask_all::<InspectPage>(&asked, &request).await;
        pages.iter().filter_map(|(_, page)| table_of(page)).min()
    }

    async fn compare(&mut self, replicas: &[NodeId], mut stretch: Stretch) {
        loop {
            let replicas: Vec<NodeId> = self.asked_of(replicas);
            if replicas.is_empty() {
                return;
            }
            let Some((step, complete, digests)) = self.step(&replicas, &stretch).await else {
                continue; // a server was lost: without it, then
            };
            let (_, first) = &digests[0];
            let same = |result: &DigestResult| result.cells == first.cells && result.digest == first.digest;
            if digests.iter().all(|(_, result)| same(result)) {
                let live = count(first.live);
                self.findings.keys += live;
                self.findings.agreeing += live;
            } else {
                self.compare_rows(&replicas, &step).await;
            }
            for (node, result) in &digests {
                self.count_held(*node, result);
            }
            self.progress.fetch_add(count(first.cells), Ordering::Relaxed);
            if complete {
                return;
            }
            stretch.after = step.upto;
        }
    }

    /// The digests of all replicas over the same stretch: the longest from `stretch.after` on that each of them can
    /// digest in one go. `None`: a server was lost.
    async fn step(
        &mut self,
        replicas: &[NodeId],
        stretch: &Stretch,
    ) -> Option<(Stretch, bool, Vec<(NodeId, DigestResult)>)> {
        let request = digest_request(stretch);
        let mut digests = self.ask_all::<InspectDigest>(replicas, &request).await;
        if digests.len() < replicas.len() {
            return None;
        }
        let shortest =
            digests.iter().filter(|(_, result)| !complete(result)).min_by_key(|(_, result)| stop(result));
        let Some((slowest, upto)) = shortest.map(|(node, result)| (*node, stop(result))) else {
            return Some((stretch.clone(), true, digests));
        };
        if upto <= stretch.after {
            self.lose(slowest, "its digests do not get on".to_owned());
            return None;
        }
        let step = Stretch { after: stretch.after.clone(), upto };
        let further: Vec<NodeId> = digests
            .iter()
            .filter(|(_, result)| complete(result) || stop(result) != step.upto)
            .map(|(node, _)| *node)
            .collect();
        let shorter = self.ask_all::<InspectDigest>(&further, &digest_request(&step)).await;
        if shorter.len() < further.len() {
            return None;
        }
        for (node, result) in shorter {
            let digest = digests.iter_mut().find(|(asked, _)| *asked == node).expect("it was asked before");
            digest.1 = result;
        }
        Some((step, false, digests))
    }

    /// Finds the keys of a stretch whose versions differ, and looks again before it believes it.
    async fn compare_rows(&mut self, replicas: &[NodeId], step: &Stretch) {
        let mut versions = self.versions(replicas, step).await;
        let mut differing = differing(&versions);
        if self.looked_again < STRETCHES_LOOKED_AT_AGAIN_MAX {
            self.looked_again += 1;
            for wait_ms in LOOK_AGAIN_AFTER_MS {
                if differing.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                let before = std::mem::replace(&mut versions, self.versions(replicas, step).await);
                differing = self::differing(&versions)
                    .into_iter()
                    .filter(|key| before.get(key).is_some_and(|before| is_stuck(before, &versions[key])))
                    .collect();
            }
        }
        let live = versions.values().filter(|difference| difference.is_live()).count() as u64;
        let live_differing = differing.iter().filter(|key| versions[*key].is_live()).count() as u64;
        self.findings.keys += live;
        self.findings.agreeing += live - live_differing;
        self.findings.differing += differing.len() as u64;
        for key in differing {
            if self.findings.differences.len() < DIFFERENCES_MAX {
                self.findings.differences.push(versions.remove(&key).expect("it was found there"));
            }
        }
    }

    /// Every engine key of a stretch with the version each replica has.
    async fn versions(&mut self, replicas: &[NodeId], step: &Stretch) -> BTreeMap<Vec<u8>, Difference> {
        let mut versions: BTreeMap<Vec<u8>, Difference> = BTreeMap::new();
        let replicas = self.asked_of(replicas);
        let mut pending: Vec<(NodeId, Vec<u8>)> =
            replicas.iter().map(|node| (*node, step.after.clone())).collect();
        while !pending.is_empty() {
            let pages = join_all(pending.iter().map(|(node, after)| async {
                let request = page_request(after, &step.upto, STEP_CELLS, 0);
                self.client.call_on::<InspectPage>(*node, &request).await
            }))
            .await;
            let mut further = Vec::new();
            for ((node, after), page) in std::mem::take(&mut pending).into_iter().zip(pages) {
                let page = match page {
                    Ok(page) => page,
                    Err(error) => {
                        self.lose(node, why(&error));
                        continue;
                    }
                };
                for row in page.cells.unwrap_or_default() {
                    let Some(key) = row.engine_key.clone() else { continue };
                    let known = versions.entry(key).or_insert_with(|| Difference::of(&row, &replicas));
                    known.note(node, Version::of(&row));
                }
                let stopped = page.upto.unwrap_or_default();
                if page.complete != Some(true) {
                    if stopped <= after {
                        self.lose(node, "its pages do not get on".to_owned());
                        continue;
                    }
                    further.push((node, stopped));
                }
            }
            pending = further;
        }
        versions
    }

    /// Counts what servers hold of a range that is not theirs.
    async fn look_for_strays(&mut self, replicas: &[NodeId], strangers: Vec<NodeId>, stretch: Stretch) {
        let mut pending: Vec<(NodeId, Stretch)> =
            strangers.into_iter().map(|node| (node, stretch.clone())).collect();
        while !pending.is_empty() {
            let results = join_all(pending.iter().map(|(node, stretch)| async {
                self.client.call_on::<InspectDigest>(*node, &digest_request(stretch)).await
            }))
            .await;
            let mut further = Vec::new();
            for ((node, stretch), result) in std::mem::take(&mut pending).into_iter().zip(results) {
                let result = match result {
                    Ok(result) => result,
                    Err(error) => {
                        self.lose(node, why(&error));
                        continue;
                    }
                };
                self.count_held(node, &result);
                if count(result.cells) > 0 {
                    self.note_stray(replicas, node, &stretch, count(result.cells)).await;
                }
                if !complete(&result) {
                    if stop(&result) <= stretch.after {
                        self.lose(node, "its digests do not get on".to_owned());
                        continue;
                    }
                    further.push((node, Stretch { after: stop(&result), upto: stretch.upto }));
                }
            }
            pending = further;
        }
    }

    async fn note_stray(&mut self, replicas: &[NodeId], node: NodeId, stretch: &Stretch, cells: u64) {
        let known =
            self.findings.strays.iter_mut().find(|stray| stray.node == node && stray.belongs_on == replicas);
        if let Some(stray) = known {
            stray.cells += cells;
            return;
        }
        let first = self.first_row(node, stretch).await;
        let example = first.map_or_else(|| "?".to_owned(), |row| super::report::label(&row));
        self.findings.strays.push(Stray { node, cells, belongs_on: replicas.to_vec(), example });
    }

    /// The first cell that a server shows of a stretch.
    async fn first_row(&self, node: NodeId, stretch: &Stretch) -> Option<CellRow> {
        let mut after = stretch.after.clone();
        loop {
            let request = page_request(&after, &stretch.upto, STEP_CELLS, 0);
            let page = self.client.call_on::<InspectPage>(node, &request).await.ok()?;
            let first = page.cells.and_then(|rows| rows.into_iter().next());
            let stopped = page.upto.unwrap_or_default();
            if first.is_some() || page.complete == Some(true) || stopped <= after {
                return first;
            }
            after = stopped;
        }
    }

    /// Asks several servers at once; those that do not answer are lost and missing in the result.
    async fn ask_all<M: Method>(
        &mut self,
        nodes: &[NodeId],
        request: &M::Request,
    ) -> Vec<(NodeId, M::Response)>
    where
        M::Thrown: Exception,
    {
        let results = join_all(nodes.iter().map(|node| self.client.call_on::<M>(*node, request))).await;
        let mut answered = Vec::with_capacity(nodes.len());
        for (node, result) in nodes.iter().zip(results) {
            match result {
                Ok(result) => answered.push((*node, result)),
                Err(error) => self.lose(*node, why(&error)),
            }
        }
        answered
    }

    fn asked_of(&self, replicas: &[NodeId]) -> Vec<NodeId> {
        replicas.iter().copied().filter(|node| self.asked.contains(node)).collect()
    }

    fn count_held(&mut self, node: NodeId, result: &DigestResult) {
        let held = self.findings.held.entry(node).or_default();
        held.cells += count(result.cells);
        held.live += count(result.live);
    }

    fn lose(&mut self, node: NodeId, why: String) {
        self.asked.retain(|asked| *asked != node);
        self.findings.lost.entry(node).or_insert(why);
    }
}

/// What went wrong with one server, without its name.
pub(super) fn why(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { tried }
        | ClientError::Unknown { tried }
        | ClientError::NoAnswer { tried } => {
            tried.last().map_or_else(|| error.to_string(), |attempt| attempt.why.clone())
        }
        ClientError::Declined(attempt) => attempt.why.clone(),
        other => other.to_string(),
    }
}

/// The replicas and the engine keys of every range, in key order. The range that wraps past the last token is two.
fn stretches(ring: &RingView, table: TableId) -> Vec<(Vec<NodeId>, Stretch)> {
    let start = table.0.to_be_bytes().to_vec();
    let end = table.0.checked_add(1).map_or(Vec::new(), |next| next.to_be_bytes().to_vec());
    let mut after = start;
    let mut stretches = Vec::with_capacity(ring.ranges().len() + 1);
    for range in ring.ranges() {
        let upto = after_partition(table, &range.token);
        stretches.push((range.replicas.clone(), Stretch { after, upto: upto.clone() }));
        after = upto;
    }
    stretches.push((ring.ranges()[0].replicas.clone(), Stretch { after, upto: end }));
    stretches
}

/// The keys whose versions are not all the same.
fn differing(versions: &BTreeMap<Vec<u8>, Difference>) -> Vec<Vec<u8>> {
    versions.iter().filter(|(_, difference)| difference.differs()).map(|(key, _)| key.clone()).collect()
}

/// True if a replica that loses now held the very same a while ago.
fn is_stuck(before: &Difference, now: &Difference) -> bool {
    now.losers().iter().any(|(node, version)| {
        before.versions.iter().any(|(held_by, held)| held_by == node && held.as_ref() == *version)
    })
}

fn digest_request(stretch: &Stretch) -> DigestRequest {
    DigestRequest::new(stretch.after.clone(), stretch.upto.clone(), STEP_CELLS)
}

pub(super) fn page_request(after: &[u8], upto: &[u8], cells: i32, value_bytes: i32) -> PageRequest {
    PageRequest::new(after.to_vec(), upto.to_vec(), cells, value_bytes)
}

/// The table in which a page of one cell begins. A cell that counts as gone is not shown: then it is where the page
/// ends.
fn table_of(page: &PageResult) -> Option<TableId> {
    if let Some(row) = page.cells.as_ref().and_then(|rows| rows.first()) {
        return row.table.and_then(|table| u16::try_from(table).ok()).map(TableId);
    }
    let stopped = page.upto.as_ref().filter(|_| page.complete != Some(true))?;
    stopped.first_chunk().map(|table| TableId(u16::from_be_bytes(*table)))
}

fn complete(result: &DigestResult) -> bool {
    result.complete == Some(true)
}

fn stop(result: &DigestResult) -> Vec<u8> {
    result.upto.clone().unwrap_or_default()
}

fn count(number: Option<i64>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

/// True if a reader would see the row's cell at `now_s` (seconds since 1970).
pub(super) fn is_live(row: &CellRow, now_s: i64) -> bool {
    match row.kind.as_deref() {
        Some("value") => true,
        Some("expiring") => row.expires.is_some_and(|expires| now_s < expires),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake;
    use crate::key::{KV_TABLE, encode};

    #[test]
    fn the_stretches_of_a_table_follow_each_other_and_place_every_key_as_the_ring_does() {
        for (nodes, copies) in [(1, 1), (2, 3), (4, 3), (5, 2)] {
            let ring = RingView::of(&fake::description(NodeId(0), nodes, copies)).unwrap();
            let stretches = stretches(&ring, KV_TABLE);
            assert!(stretches.windows(2).all(|pair| pair[0].1.upto == pair[1].1.after));
            for partition in
                (0..=255u8).map(|key| vec![key]).chain([vec![0xff; 16], vec![0xff; 17], vec![0, 0]])
            {
                let key = encode(KV_TABLE, &partition, b"column");
                let of = |stretch: &Stretch| key > stretch.after && key <= stretch.upto;
                let holding: Vec<_> = stretches.iter().filter(|(_, stretch)| of(stretch)).collect();
                assert_eq!(holding.len(), 1, "{partition:?}");
                assert_eq!(holding[0].0, ring.replicas(&partition), "{partition:?}");
            }
        }
    }

    #[test]
    fn the_last_table_ends_with_everything() {
        let ring = RingView::of(&fake::description(NodeId(0), 2, 2)).unwrap();
        assert_eq!(stretches(&ring, TableId(u16::MAX)).last().unwrap().1.upto, Vec::<u8>::new());
    }
}
