//! The ring as a client knows it: a guess until the first server has described it, then what the last one said.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::answer::NodeId;
use crate::nodes::Nodes;
use crate::ring::{Range, Ring};
use crate::thrift::chord::Description;

/// Which servers hold a key, as far as a client knows. A server asked for a key it does not hold passes it on, so a
/// wrong guess costs time and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingView {
    /// In rising order of tokens; never empty.
    ranges: Vec<Range>,
    copies: usize,
}

/// The replication factor of a cluster that says nothing else.
const COPIES_GUESS: usize = 3;

/// The largest replication factor there can be (`config`). A view holds that many servers for each range, so it bounds
/// what a server may say.
const COPIES_MAX: usize = 100;

impl RingView {
    /// Evenly spaced tokens in the order of the ids and three copies: what a cluster has unless told otherwise.
    pub fn guess(nodes: &Nodes) -> RingView {
        let ring = Ring::even(nodes.len(), COPIES_GUESS);
        RingView { ranges: ring.ranges().to_vec(), copies: ring.replication_factor() }
    }

    /// The ring a server describes; `None` if the description makes no ring.
    pub fn of(description: &Description) -> Option<RingView> {
        let members = description.members.as_ref()?;
        let copies = usize::try_from(description.replication_factor?).ok()?.min(members.len());
        if copies == 0 || copies > COPIES_MAX {
            return None;
        }
        let mut owners = Vec::with_capacity(members.len());
        for member in members {
            let id = NodeId(u32::try_from(member.id?).ok()?);
            owners.push((Bytes::copy_from_slice(member.token.as_ref()?), id));
        }
        owners.sort();
        let clockwise = |from: usize| owners.iter().cycle().skip(from).map(|(_, id)| *id);
        let ranges = owners
            .iter()
            .enumerate()
            .map(|(i, (token, _))| Range {
                token: token.clone(),
                replicas: clockwise(i).take(copies).collect(),
            })
            .collect();
        Some(RingView { ranges, copies })
    }

    /// Every range, in rising order of tokens.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// How many servers hold each key.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// The servers that hold a partition key: its owner first, then clockwise.
    pub fn replicas(&self, partition: &[u8]) -> &[NodeId] {
        let index = self.ranges.partition_point(|range| range.token.as_ref() < partition);
        &self.ranges.get(index).unwrap_or(&self.ranges[0]).replicas
    }
}

/// The view that all links of a client share.
pub(super) struct SharedRing(Mutex<Arc<RingView>>);

impl SharedRing {
    pub(super) fn new(view: RingView) -> SharedRing {
        SharedRing(Mutex::new(Arc::new(view)))
    }

    pub(super) fn get(&self) -> Arc<RingView> {
        self.0.lock().expect("no panic while it is held").clone()
    }

    /// Takes over what a server says, if it is a ring.
    pub(super) fn learn(&self, description: &Description) {
        if let Some(view) = RingView::of(description) {
            *self.0.lock().expect("no panic while it is held") = Arc::new(view);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake;

    #[test]
    fn a_described_ring_places_keys_as_the_servers_do() {
        let ring = Ring::even(4, 3);
        let view = RingView::of(&fake::description(NodeId(2), 4, 3)).unwrap();
        assert_eq!(view.ranges(), ring.ranges());
        for key in 0..=255u8 {
            assert_eq!(view.replicas(&[key]), ring.replicas(&[key]));
        }
        assert_eq!(view.replicas(&[0xff; 17]), ring.replicas(&[0xff; 17]));
    }

    #[test]
    fn what_makes_no_ring_is_not_taken_over() {
        let described = fake::description(NodeId(0), 2, 3);
        assert_eq!(RingView::of(&described).unwrap().copies(), 2);
        assert_eq!(RingView::of(&Description { members: Some(Vec::new()), ..described.clone() }), None);
        assert_eq!(RingView::of(&Description { replication_factor: Some(-1), ..described.clone() }), None);
        assert_eq!(RingView::of(&Description { members: None, ..described }), None);
        assert_eq!(RingView::of(&fake::description(NodeId(0), 101, 101)), None); // more than any cluster has
    }
}
