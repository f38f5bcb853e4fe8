//! Which engine keys belong to a ring range: one stretch for each table, two for the range that wraps.

use crate::key::{self, TableId};
use crate::ring::Ring;
use crate::store::leaves::{table_end, table_start};

/// The engine keys from `start` up to but without `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub start: Vec<u8>,
    pub end: Vec<u8>,
}

/// The largest partition key of each range, in rising order.
pub(super) fn tokens(ring: &Ring) -> Vec<Vec<u8>> {
    ring.ranges().iter().map(|range| range.token.to_vec()).collect()
}

/// The stretches of the range with this index, in rising order.
pub(super) fn stretches(ring: &Ring, index: usize, tables: &[TableId]) -> Vec<Stretch> {
    let ranges = ring.ranges();
    let behind = |table, index: usize| key::after_partition(table, &ranges[index].token);
    let mut found = Vec::new();
    for &table in tables {
        if index > 0 {
            found.push(Stretch { start: behind(table, index - 1), end: behind(table, index) });
        } else {
            found.push(Stretch { start: table_start(table), end: behind(table, 0) });
            found.push(Stretch { start: behind(table, ranges.len() - 1), end: table_end(table) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_key_lies_in_one_stretch_of_its_own_range(
            nodes in 1usize..9, table in prop::sample::select(vec![0u16, 1, 7, u16::MAX]),
            partition in prop::collection::vec(any::<u8>(), 1..20), column in prop::collection::vec(any::<u8>(), 0..3)
        ) {
            let ring = Ring::even(nodes, 3);
            let engine_key = key::encode(TableId(table), &partition, &column);
            let tables = [TableId(0), TableId(1), TableId(7), TableId(u16::MAX)];
            for (index, range) in ring.ranges().iter().enumerate() {
                let all = stretches(&ring, index, &tables);
                let within = all.iter().filter(|stretch| stretch.start <= engine_key && engine_key < stretch.end);
                let belongs = ring.range_of(&partition) == range;
                prop_assert_eq!(within.count(), usize::from(belongs));
            }
        }
    }
}
