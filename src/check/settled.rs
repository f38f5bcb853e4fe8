//! What the replicas hold once faults have ended and everything owed has been delivered: now even what was only
//! promised for later must be there.
//!
//!   - the replicas of a key hold the same version
//!   - it is not older than any acknowledged write, of whatever level; where deletions are collected, a key that nobody
//!     holds may have been deleted
//!   - somebody asked for it, and was not refused
//!   - no other server holds the key, if the ring is given
//!
//! Not here: how that was found out.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::finding::{Findings, Rule, tell, tell_version};
use super::ledger::{Ledger, Moment};
use crate::answer::NodeId;
use crate::cell::{Cell, Content, Stamp};
use crate::ring::Ring;

/// What a replica holds of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its stamp.
    pub stamp: Stamp,
    /// Its value; `None`: a tombstone, or expired.
    pub value: Option<Bytes>,
}

/// What each server holds of a key; `None`: nothing, not even a tombstone.
pub type Copies = BTreeMap<NodeId, Option<Version>>;

/// What all servers hold.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Which servers are a key's replicas; without it, those that `copies` names.
    pub ring: Option<Ring>,
    /// Of each key, what each server holds. A key that is not there is held by nobody.
    pub copies: BTreeMap<Bytes, Copies>,
}

impl Version {
    /// As `cell` orders versions: larger stamp; then a tombstone above a value; then the larger value.
    fn cell(&self) -> Cell<&[u8]> {
        let content = self.value.as_deref().map_or(Content::Tombstone, Content::Value);
        Cell { stamp: self.stamp, content }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Version) -> Ordering {
        self.cell().order(&other.cell())
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Version) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Settled {
    /// Notes what a server holds of a key.
    pub fn note(&mut self, key: Bytes, node: NodeId, held: Option<Version>) {
        self.copies.entry(key).or_default().insert(node, held);
    }

    /// The newest version of a key that any server holds.
    pub(super) fn newest(&self, key: &Bytes) -> Option<&Version> {
        self.copies.get(key)?.values().flatten().max()
    }

    /// Judges the copies of the ledger's key; `lost` are the writes already known to be lost.
    pub(super) fn check(&self, ledger: &Ledger, lost: &mut BTreeSet<usize>, findings: &mut Findings) {
        let none = Copies::new();
        let copies = self.copies.get(ledger.key).unwrap_or(&none);
        let collected = self.is_collected(ledger, copies);
        self.check_places(ledger.key, copies, collected, findings);
        for (value, stamp, nodes) in distinct(copies) {
            check_origin(ledger, value, stamp, &nodes, findings);
        }
        // What is left of a deletion that was collected may be an older one: files restored from an old copy had the
        // value from before it, which was dropped there.
        let newest = self.newest(ledger.key).filter(|_| !collected);
        check_not_older(ledger, newest, copies, lost, findings);
    }

    fn replicas(&self, key: &Bytes, copies: &Copies) -> Vec<NodeId> {
        match &self.ring {
            Some(ring) => ring.replicas(key).to_vec(),
            None => copies.keys().copied().collect(),
        }
    }

    /// True if nobody holds a value and some hold nothing: a deletion that all have is dropped by each in its own time.
    fn is_collected(&self, ledger: &Ledger, copies: &Copies) -> bool {
        let replicas = self.replicas(ledger.key, copies);
        ledger.promises.deletions_collected
            && replicas.iter().any(|node| held_by(copies, *node).is_none())
            && replicas.iter().all(|node| held_by(copies, *node).is_none_or(|held| held.value.is_none()))
    }

    fn check_places(&self, key: &Bytes, copies: &Copies, collected: bool, findings: &mut Findings) {
        let replicas = self.replicas(key, copies);
        let of_first = replicas.first().and_then(|node| held_by(copies, *node));
        if !collected && replicas.iter().any(|node| held_by(copies, *node) != of_first) {
            let line = |node: &NodeId| format!("server {node} holds {}", tell_held(held_by(copies, *node)));
            findings.add(Rule::ReplicasDiffer, key, || replicas.iter().map(line).collect());
        }
        for (node, held) in copies.iter().filter(|(node, held)| held.is_some() && !replicas.contains(node)) {
            findings.add(Rule::StrayCopy, key, || {
                vec![format!(
                    "server {node} holds {}, but the key's replicas are {}",
                    tell_held(held.as_ref()),
                    tell_nodes(&replicas)
                )]
            });
        }
    }
}

fn held_by(copies: &Copies, node: NodeId) -> Option<&Version> {
    copies.get(&node).and_then(Option::as_ref)
}

/// Each version that is held, and by whom.
fn distinct(copies: &Copies) -> Vec<(Option<&Bytes>, Stamp, Vec<NodeId>)> {
    let mut versions: BTreeMap<&Version, Vec<NodeId>> = BTreeMap::new();
    for (node, version) in copies.iter().filter_map(|(node, held)| Some((node, held.as_ref()?))) {
        versions.entry(version).or_default().push(*node);
    }
    versions.into_iter().map(|(version, nodes)| (version.value.as_ref(), version.stamp, nodes)).collect()
}

fn check_origin(
    ledger: &Ledger,
    value: Option<&Bytes>,
    stamp: Stamp,
    nodes: &[NodeId],
    findings: &mut Findings,
) {
    let held = format!("in the end servers {} hold {}", tell_nodes(nodes), tell_version(value, stamp));
    match value.map(|value| ledger.put_of(value)) {
        Some(Some(put)) if ledger.writes[put].refused() => {
            let story = || vec![tell(ledger.writes[put].operation), held];
            findings.add(Rule::RefusedYetWritten, ledger.key, story);
        }
        Some(Some(_)) => {}
        Some(None) => {
            findings
                .add(Rule::NobodysValue, ledger.key, || vec![held, "no put of this key wrote it".to_owned()]);
        }
        None if ledger.removals.explain(u64::MAX, |_| None) => {}
        None if ledger.removals.refused_from.is_some() => {
            let story = || vec![held, "every removal of this key was refused".to_owned()];
            findings.add(Rule::RefusedYetWritten, ledger.key, story);
        }
        None => {
            let story = || vec![held, "nobody removed this key".to_owned()];
            findings.add(Rule::NobodysValue, ledger.key, story);
        }
    }
}

fn check_not_older(
    ledger: &Ledger,
    newest: Option<&Version>,
    copies: &Copies,
    lost: &mut BTreeSet<usize>,
    findings: &mut Findings,
) {
    // Every write counts, one that was only hinted too.
    let at = Moment { us: u64::MAX, asked: ledger.promises.replicas + 1 };
    let missing = match newest {
        Some(newest) => ledger.missing(newest.value.as_ref(), Some(newest.stamp), at, u64::MAX),
        None if ledger.promises.deletions_collected => ledger.missing(None, None, at, u64::MAX),
        None => ledger.last_acknowledged(at),
    };
    let Some(missing) = missing else { return };
    if lost.insert(missing) {
        findings.add(Rule::LostWrite, ledger.key, || {
            let held = match newest {
                Some(newest) => format!(
                    "in the end the newest version that any of servers {} holds is {}",
                    tell_nodes(&copies.keys().copied().collect::<Vec<_>>()),
                    tell_held(Some(newest))
                ),
                None => "in the end no server holds the key".to_owned(),
            };
            let older = newest.and_then(|newest| ledger.put_of(newest.value.as_deref()?));
            let lines = [Some(missing), older].into_iter().flatten();
            lines.map(|write| tell(ledger.writes[write].operation)).chain([held]).collect()
        });
    }
}

fn tell_held(version: Option<&Version>) -> String {
    version
        .map_or_else(|| "nothing".to_owned(), |version| tell_version(version.value.as_ref(), version.stamp))
}

fn tell_nodes(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}
