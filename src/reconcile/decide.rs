//! Two replicas list the versions of one stretch: who lacks what? Knows no store, no clock and no socket.
//!
//! What differs goes both ways through the one `merge`, with these exceptions:
//!
//!   - A cell that may still be on its way is left alone, unless it has overtaken one that counts: then it moves, for
//!     the side that has the older one could not say otherwise that it lacks nothing up to the cut. So two replicas can
//!     be settled while clients write.
//!   - With equal stamps and different contents both are sent: `merge` picks the same on both sides.
//!   - One side has collected further than the other, and lacks a cell up to there: it had it, or something newer, when
//!     it proved that all replicas were equal, and collected it since. The other side's files are older than that, so
//!     the cell is dropped there: it is covered by a tombstone of its own stamp. This is what keeps a copy restored
//!     from a backup from bringing deleted values back.
//!   - One side has collected further than the other, and has an older version of a cell up to there. The newer one was
//!     not collected, or the older one would have gone before it: it was taken since, by a server that did not know yet
//!     how far the others have collected. It came late, and is taken for what it is.

use crate::cell::Stamp;
use crate::store::leaves::Cut;

/// A cell without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// Its engine key.
    pub key: Vec<u8>,
    pub stamp: Stamp,
    /// [`crate::store::cell_hash`].
    pub hash: u128,
}

/// What makes two replicas equal. Indices are those of the lists that were compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Of theirs: cells that this side lacks.
    pub fetch: Vec<usize>,
    /// Of mine: cells that the other side lacks.
    pub give: Vec<usize>,
    /// Of mine: cells that are older than what the other side has collected.
    pub drop_mine: Vec<usize>,
    /// Of theirs: cells that are older than what this side has collected.
    pub drop_theirs: Vec<usize>,
    /// Of theirs, and of mine: cells that came late, which the other side takes if it is told that it may.
    pub fetch_late: Vec<usize>,
    pub give_late: Vec<usize>,
    /// How many of these moves are of cells on their way which the other side has not got yet: no difference, but
    /// haste.
    pub overtaken: usize,
}

impl Plan {
    /// True if nothing has to be done.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        *self == Plan::default()
    }
}

/// Compares two lists in key order, both without the cells that `cut.horizon` covers. `my_collected` and
/// `their_collected`: up to where each side has collected.
pub(super) fn plan(
    mine: &[Version],
    theirs: &[Version],
    cut: &Cut,
    my_collected: Stamp,
    their_collected: Stamp,
) -> Plan {
    let mut plan = Plan::default();
    let (mut i, mut j) = (0, 0);
    while i < mine.len() || j < theirs.len() {
        let (here, there) = (mine.get(i), theirs.get(j));
        let here = here.filter(|here| there.is_none_or(|there| here.key <= there.key));
        let there = there.filter(|there| here.is_none_or(|here| there.key <= here.key));
        match (here, there) {
            (Some(here), Some(there)) if here == there => {}
            (Some(here), Some(there)) if cut.in_flight(here.stamp) && cut.in_flight(there.stamp) => {}
            (Some(here), Some(there)) => {
                plan.overtaken += usize::from(cut.in_flight(here.stamp.max(there.stamp)));
                if here.stamp <= there.stamp {
                    let late = their_collected < my_collected && there.stamp <= my_collected;
                    if late { plan.fetch_late.push(j) } else { plan.fetch.push(j) }
                }
                if there.stamp <= here.stamp {
                    let late = my_collected < their_collected && here.stamp <= their_collected;
                    if late { plan.give_late.push(i) } else { plan.give.push(i) }
                }
            }
            (Some(here), None) if cut.in_flight(here.stamp) => {}
            (Some(here), None) if my_collected < their_collected && here.stamp <= their_collected => {
                plan.drop_mine.push(i);
            }
            (Some(_), None) => plan.give.push(i),
            (None, Some(there)) if cut.in_flight(there.stamp) => {}
            (None, Some(there)) if their_collected < my_collected && there.stamp <= my_collected => {
                plan.drop_theirs.push(j);
            }
            (None, Some(_)) => plan.fetch.push(j),
            (None, None) => unreachable!("one of the two is the next in order"),
        }
        i += usize::from(here.is_some());
        j += usize::from(there.is_some());
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Cell, Content, merge};
    use crate::store::cell_hash;
    use crate::store::leaves::Horizon;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Cells = BTreeMap<Vec<u8>, Cell>;

    fn any_cells() -> impl Strategy<Value = Cells> {
        let cell = (1i64..12, prop::option::of(0u8..3)).prop_map(|(stamp, value)| Cell {
            stamp: Stamp(stamp),
            content: value.map_or(Content::Tombstone, |value| Content::Value(Bytes::from(vec![value]))),
        });
        prop::collection::btree_map((0u8..8).prop_map(|key| vec![key]), cell, 0..8)
    }

    fn versions(cells: &Cells, cut: &Cut) -> Vec<Version> {
        let shown = cells.iter().filter(|(_, cell)| !cut.horizon.covers(cell));
        let version = |(key, cell): (&Vec<u8>, &Cell)| Version {
            key: key.clone(),
            stamp: cell.stamp,
            hash: cell_hash(key, cell),
        };
        shown.map(version).collect()
    }

    fn put(cells: &mut Cells, key: &[u8], cell: Cell) {
        let merged = match cells.remove(key) {
            Some(held) => merge(held, cell),
            None => cell,
        };
        cells.insert(key.to_vec(), merged);
    }

    fn counted(cells: &Cells, cut: &Cut) -> Cells {
        let counts = cells.iter().filter(|(_, cell)| cut.counts(cell));
        counts.map(|(key, cell)| (key.clone(), cell.clone())).collect()
    }

    proptest! {
        /// After the plan is carried out, what the cut counts is equal.
        #[test]
        fn a_plan_makes_equal(
            a in any_cells(), b in any_cells(), upto in 0i64..12, beyond in 0i64..12
        ) {
            let cut = Cut { upto: Stamp(upto), beyond: Stamp(beyond.max(upto)), horizon: Horizon::NONE };
            let (mut a, mut b) = (a, b);
            let (mine, theirs) = (versions(&a, &cut), versions(&b, &cut));
            let plan = plan(&mine, &theirs, &cut, Stamp(0), Stamp(0));
            let before = (a.clone(), b.clone());
            for &j in &plan.fetch {
                put(&mut a, &theirs[j].key, before.1[&theirs[j].key].clone());
            }
            for &i in &plan.give {
                put(&mut b, &mine[i].key, before.0[&mine[i].key].clone());
            }
            for &i in &plan.drop_mine {
                put(&mut a, &mine[i].key, Cell { stamp: mine[i].stamp, content: Content::Tombstone });
            }
            for &j in &plan.drop_theirs {
                put(&mut b, &theirs[j].key, Cell { stamp: theirs[j].stamp, content: Content::Tombstone });
            }
            prop_assert_eq!(counted(&a, &cut), counted(&b, &cut));
            for (key, cell) in &before.0 {
                // Nothing that counted is lost, unless it was collected elsewhere.
                let covered = plan.drop_mine.iter().any(|&i| mine[i].key == *key);
                prop_assert!(covered || a[key].order(cell).is_ge());
            }
        }
    }

    #[test]
    fn what_the_other_side_collected_does_not_come_back() {
        let cut =
            Cut { upto: Stamp(100), beyond: Stamp(100), horizon: Horizon { stamp: Stamp(10), expired_s: 0 } };
        let old = Version { key: vec![1], stamp: Stamp(5), hash: 1 };
        let new = Version { key: vec![2], stamp: Stamp(11), hash: 2 };
        let restored = [old, new];
        let mine = plan(&restored, &[], &cut, Stamp(3), Stamp(10));
        assert_eq!((mine.drop_mine, mine.give), (vec![0], vec![1]));
        let theirs = plan(&[], &restored, &cut, Stamp(10), Stamp(3));
        assert_eq!((theirs.drop_theirs, theirs.fetch), (vec![0], vec![1]));
        // Whoever has collected as far lost it by damage: it is given back.
        let damaged = plan(&restored, &[], &cut, Stamp(10), Stamp(10));
        assert_eq!(damaged.give, vec![0, 1]);
    }

    #[test]
    fn what_came_late_is_told_from_what_was_collected() {
        let cut = Cut { upto: Stamp(100), beyond: Stamp(100), horizon: Horizon::NONE };
        let version = |stamp, hash| vec![Version { key: vec![1], stamp: Stamp(stamp), hash }];
        let (old, late, new) = (version(3, 3), version(5, 5), version(11, 11));
        let fetched = |mine: &[Version], theirs: &[Version], collected: (i64, i64)| {
            let plan = plan(mine, theirs, &cut, Stamp(collected.0), Stamp(collected.1));
            (plan.fetch.len(), plan.fetch_late.len())
        };
        let given = |mine: &[Version], theirs: &[Version], collected: (i64, i64)| {
            let plan = plan(mine, theirs, &cut, Stamp(collected.0), Stamp(collected.1));
            (plan.give.len(), plan.give_late.len())
        };
        for (newer, collected, (plain, came_late)) in [
            (&late, (10, 0), (0, 1)),
            (&late, (10, 10), (1, 0)),
            (&late, (0, 10), (1, 0)),
            (&new, (10, 0), (1, 0)),
        ] {
            assert_eq!(fetched(&old, newer, collected), (plain, came_late), "{newer:?} {collected:?}");
            let other_way = (collected.1, collected.0);
            assert_eq!(given(newer, &old, other_way), (plain, came_late), "{newer:?} {collected:?}");
        }
    }

    #[test]
    fn what_is_on_its_way_moves_only_where_it_has_overtaken() {
        let cut = Cut { upto: Stamp(10), beyond: Stamp(20), horizon: Horizon::NONE };
        let version = |stamp| Version { key: vec![1], stamp: Stamp(stamp), hash: stamp as u128 };
        for (mine, theirs, overtaken, moves) in [
            (Some(15), None, 0, false),
            (Some(15), Some(12), 0, false),
            (Some(15), Some(9), 1, true),
            (Some(9), Some(15), 1, true),
            (Some(9), Some(8), 0, true),
            (Some(25), None, 0, true),
        ] {
            let list = |stamp: Option<i64>| stamp.map(version).into_iter().collect::<Vec<_>>();
            let plan = plan(&list(mine), &list(theirs), &cut, Stamp(0), Stamp(0));
            assert_eq!((plan.overtaken, !plan.is_empty()), (overtaken, moves), "{mine:?} {theirs:?}");
        }
    }
}
