//! Hands what a run showed to the checkers.

use std::collections::BTreeMap;

use tetrachord::answer::NodeId;
use tetrachord::cell::{Cell, Content};
use tetrachord::check::{self, FilesLost, History, Promises, Rule, Settled, Version};
use tetrachord::key;
use tetrachord::ring::Ring;

use super::plan::Plan;
use super::world::Finding;

/// States that a search for an order may visit, for each key: runs are short.
const STATES_MAX: usize = 300_000;

/// What each server holds: engine keys and cells.
pub type Contents = Vec<(NodeId, Vec<(Vec<u8>, Cell)>)>;

/// What a run showed.
pub struct Seen<'a> {
    pub history: &'a History,
    /// What each server holds in the end.
    pub contents: Contents,
    pub ring: &'a Ring,
    /// A write was sent again with a newer stamp. Such a write may take effect twice while it is under way, so that no
    /// order of the operations is promised (docs/correctness.md has an example).
    pub sent_again: bool,
    /// What was lost for good.
    pub files: FilesLost,
}

/// The first broken promise.
pub fn judge(plan: &Plan, seen: Seen) -> Option<Finding> {
    let promises = Promises {
        read_repair: plan.config.read_repair,
        deletions_collected: plan.collects(),
        files: seen.files,
        states_max: STATES_MAX,
        ..Promises::of(plan.config.replication_factor.min(plan.nodes))
    };
    let settled = settled(seen.contents, seen.ring);
    let judgement = match check::judge(seen.history, &promises, Some(&settled)) {
        Ok(judgement) => judgement,
        Err(malformed) => return Some(Finding::new("the history can be judged", malformed.to_string())),
    };
    let ordered = !seen.sent_again && seen.files == FilesLost::No;
    let promised =
        |finding: &&check::Finding| finding.rule != Rule::NotLinearizable || ordered || plan.strict;
    let first = judgement.findings.iter().find(promised)?;
    Some(Finding::new(first.rule.name(), first.to_string()))
}

/// True if the replicas of every key hold the same. Where deletions are collected, each drops one in its own time.
pub fn all_equal(contents: Contents, ring: &Ring, collects: bool) -> bool {
    let mut copies: BTreeMap<Vec<u8>, Vec<(NodeId, Cell)>> = BTreeMap::new();
    for (node, cells) in contents {
        for (engine_key, cell) in cells {
            copies.entry(engine_key).or_default().push((node, cell));
        }
    }
    copies.iter().all(|(engine_key, copies)| {
        let name = key::decode(engine_key).expect("the store checks its keys");
        let whole = copies.len() == ring.replicas(&name.partition).len();
        let deleted = |cell: &Cell| cell.content == Content::Tombstone;
        (whole && copies.iter().all(|(_, cell)| *cell == copies[0].1))
            || (collects && !whole && copies.iter().all(|(_, cell)| deleted(cell)))
    })
}

fn settled(contents: Contents, ring: &Ring) -> Settled {
    let mut settled = Settled { ring: Some(ring.clone()), ..Settled::default() };
    for (node, cells) in contents {
        for (engine_key, cell) in cells {
            let name = key::decode(&engine_key).expect("the store checks its keys");
            let value = match cell.content {
                Content::Value(value) | Content::Expiring { value, .. } => Some(value),
                Content::Tombstone => None,
            };
            settled.note(name.partition, node, Some(Version { stamp: cell.stamp, value }));
        }
    }
    settled
}
