//! Hands what a run showed to the checkers.

use tetrachord::answer::NodeId;
use tetrachord::cell::{Cell, Content};
use tetrachord::check::{self, History, Promises, Settled, Version};
use tetrachord::key;
use tetrachord::ring::Ring;

use super::plan::Plan;
use super::world::Finding;

/// States that a search for an order may visit, for each key: runs are short.
const STATES_MAX: usize = 300_000;

/// The first broken promise.
pub fn judge(
    plan: &Plan,
    history: &History,
    contents: Vec<(NodeId, Vec<(Vec<u8>, Cell)>)>,
    ring: &Ring,
) -> Option<Finding> {
    let promises = Promises {
        read_repair: plan.config.read_repair,
        states_max: STATES_MAX,
        ..Promises::of(plan.config.replication_factor.min(plan.nodes))
    };
    let settled = settled(contents, ring);
    let judgement = match check::judge(history, &promises, Some(&settled)) {
        Ok(judgement) => judgement,
        Err(malformed) => return Some(Finding::new("the history can be judged", malformed.to_string())),
    };
    let first = judgement.findings.first()?;
    Some(Finding::new(first.rule.name(), first.to_string()))
}

fn settled(contents: Vec<(NodeId, Vec<(Vec<u8>, Cell)>)>, ring: &Ring) -> Settled {
    let mut settled = Settled { ring: Some(ring.clone()), ..Settled::default() };
    for (node, cells) in contents {
        for (engine_key, cell) in cells {
            let name = key::decode(&engine_key).expect("the store checks its keys");
            let value = match cell.content {
                Content::Value(value) | Content::Expiring { value, .. } => Some(value),
                Content::Tombstone => None,
            };
            settled.note(name.partition.into(), node, Some(Version { stamp: cell.stamp, value }));
        }
    }
    settled
}
