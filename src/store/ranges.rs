//! The ring's ranges as the store knows them: where they end, up to where each was collected, and up to where each
//! takes no more writes.
//!
//! What must always be true, and is decided by the log's writer alone, in the order in which it commits:
//!   - Behind the horizon of its range no write is taken that is not there already: the deletion that it may have lost
//!     to is no longer there to meet it.
//!   - What another replica held (read repair, reconciliation) is taken there only if it was read under the same
//!     horizon or a later one. What was read before may have been deleted and collected since; unless, under that
//!     horizon, there was a live cell of the same key and an older stamp.
//!
//! Not here: when a range is closed and collected (`reconcile`).

use std::sync::RwLock;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::cell::{Cell, Stamp};
use crate::key;
use crate::mutation::Kind;

use super::leaves::Horizon;

/// Where a mutation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A coordinator, on behalf of a client that waits.
    Write,
    /// A coordinator that kept it for this server.
    Hint,
    /// Another replica, by way of a read.
    Repair,
    /// Another replica that had collected as far as this when it was read there.
    Replica(Horizon),
}

impl Origin {
    /// As an encoded mutation says.
    pub fn of(kind: Kind) -> Origin {
        match kind {
            Kind::Write => Origin::Write,
            Kind::Hint => Origin::Hint,
            Kind::Repair => Origin::Repair,
        }
    }
}

/// What becomes of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is stored.
    Take,
    /// It is not stored, and that is right: it was there, or something newer, and was collected.
    Covered,
    /// It is refused, unless it is there already: writes must be above this stamp.
    Above(Stamp),
}

/// Without ranges nothing is closed or collected.
pub(super) struct Ranges {
    inner: RwLock<Inner>,
    /// No range is closed or collected beyond this stamp: most cells need no look at `inner`.
    highest: AtomicI64,
}

#[derive(Default)]
struct Inner {
    /// The largest partition key of each range, in rising order.
    tokens: Vec<Vec<u8>>,
    horizons: Vec<Horizon>,
    closed: Vec<Stamp>,
}

impl Default for Ranges {
    fn default() -> Ranges {
        Ranges { inner: RwLock::default(), highest: AtomicI64::new(i64::MIN) }
    }
}

impl Ranges {
    /// The ranges end at these tokens and were collected so far.
    pub fn set(&self, tokens: Vec<Vec<u8>>, horizons: Vec<Horizon>) {
        assert_eq!(tokens.len(), horizons.len());
        let highest = horizons.iter().map(|horizon| horizon.stamp.0).max().unwrap_or(i64::MIN);
        let closed = vec![Stamp(i64::MIN); tokens.len()];
        *self.inner.write().expect("no panic while it is held") = Inner { tokens, horizons, closed };
        self.highest.fetch_max(highest, Ordering::AcqRel);
    }

    /// From now on the range takes no writes up to this stamp, or up to a larger one if that was said before: two who
    /// lead it may ask at once.
    pub fn close(&self, index: usize, upto: Stamp) {
        self.highest.fetch_max(upto.0, Ordering::AcqRel);
        let closed = &mut self.inner.write().expect("no panic while it is held").closed[index];
        *closed = upto.max(*closed);
    }

    /// The range is collected so far, or farther if it was before.
    pub fn collected(&self, index: usize, horizon: Horizon) {
        self.highest.fetch_max(horizon.stamp.0, Ordering::AcqRel);
        let known = &mut self.inner.write().expect("no panic while it is held").horizons[index];
        *known = horizon.or(*known);
    }

    /// Up to where the range is collected.
    pub fn horizon(&self, index: usize) -> Horizon {
        let inner = self.inner.read().expect("no panic while it is held");
        inner.horizons.get(index).copied().unwrap_or(Horizon::NONE)
    }

    /// The same of the range of an engine key, or of the first key of a stretch that begins a range.
    pub fn horizon_at(&self, engine_key: &[u8]) -> Horizon {
        let inner = self.inner.read().expect("no panic while it is held");
        let Some(table) = engine_key.first_chunk::<2>().filter(|_| !inner.tokens.is_empty()) else {
            return Horizon::NONE;
        };
        let table = key::TableId(u16::from_be_bytes(*table));
        let index =
            inner.tokens.partition_point(|token| key::after_partition(table, token)[..] <= *engine_key);
        inner.horizons[if index == inner.tokens.len() { 0 } else { index }]
    }

    /// True if a cell with this stamp needs no further look.
    pub fn is_above_all(&self, stamp: Stamp) -> bool {
        stamp.0 > self.highest.load(Ordering::Acquire)
    }

    /// True if the cell counts as gone.
    pub fn hides<V>(&self, engine_key: &[u8], cell: &Cell<V>) -> bool {
        !self.is_above_all(cell.stamp) && self.horizon_at(engine_key).covers(cell)
    }

    /// What becomes of a cell of this partition.
    pub fn admit(&self, partition: &[u8], stamp: Stamp, origin: Origin) -> Admission {
        if self.is_above_all(stamp) {
            return Admission::Take;
        }
        let inner = self.inner.read().expect("no panic while it is held");
        if inner.tokens.is_empty() {
            return Admission::Take;
        }
        let index = inner.tokens.partition_point(|token| &token[..] < partition);
        let index = if index == inner.tokens.len() { 0 } else { index };
        let (horizon, closed) = (inner.horizons[index], inner.closed[index]);
        match origin {
            Origin::Replica(under) if under.stamp >= horizon.stamp => Admission::Take,
            Origin::Replica(_) | Origin::Repair | Origin::Hint if stamp <= horizon.stamp => {
                Admission::Covered
            }
            Origin::Replica(_) | Origin::Repair => Admission::Take,
            Origin::Write | Origin::Hint if stamp <= horizon.stamp.max(closed) => {
                Admission::Above(horizon.stamp.max(closed))
            }
            Origin::Write | Origin::Hint => Admission::Take,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Content;
    use crate::key::TableId;
    use crate::ring::Ring;

    fn ranges() -> Ranges {
        let ring = Ring::even(4, 3);
        let tokens: Vec<Vec<u8>> = ring.ranges().iter().map(|range| range.token.to_vec()).collect();
        let ranges = Ranges::default();
        ranges.set(tokens, vec![Horizon::NONE; 4]);
        ranges.collected(2, Horizon { stamp: Stamp(10), expired_s: 5 });
        ranges.close(2, Stamp(20));
        ranges
    }

    #[test]
    fn a_cell_is_admitted_by_where_it_comes_from() {
        let ranges = ranges();
        let old = Origin::Replica(Horizon { stamp: Stamp(9), expired_s: 0 });
        let same = Origin::Replica(Horizon { stamp: Stamp(10), expired_s: 0 });
        for (stamp, origin, admitted) in [
            (10, Origin::Write, Admission::Above(Stamp(20))),
            (20, Origin::Write, Admission::Above(Stamp(20))),
            (21, Origin::Write, Admission::Take),
            (10, Origin::Hint, Admission::Covered),
            (11, Origin::Hint, Admission::Above(Stamp(20))),
            (10, Origin::Repair, Admission::Covered),
            (11, Origin::Repair, Admission::Take),
            (10, old, Admission::Covered),
            (11, old, Admission::Take),
            (10, same, Admission::Take),
        ] {
            assert_eq!(ranges.admit(&[137], Stamp(stamp), origin), admitted, "{stamp} {origin:?}");
            assert_eq!(ranges.admit(&[0], Stamp(stamp), origin), Admission::Take, "another range");
        }
    }

    #[test]
    fn what_was_closed_and_collected_stays_so() {
        let ranges = ranges();
        ranges.close(2, Stamp(15));
        ranges.collected(2, Horizon { stamp: Stamp(8), expired_s: 6 });
        assert_eq!(ranges.admit(&[137], Stamp(20), Origin::Write), Admission::Above(Stamp(20)));
        assert_eq!(ranges.horizon(2), Horizon { stamp: Stamp(10), expired_s: 6 });
    }

    #[test]
    fn dead_cells_behind_the_horizon_of_their_own_range_are_hidden() {
        let ranges = ranges();
        let tombstone = |stamp| Cell::<bytes::Bytes> { stamp: Stamp(stamp), content: Content::Tombstone };
        for (partition, stamp, hidden) in
            [(137u8, 10, true), (137, 11, false), (127, 10, false), (192, 10, false), (191, 10, true)]
        {
            let key = key::encode(TableId(1), &[partition], b"");
            assert_eq!(ranges.hides(&key, &tombstone(stamp)), hidden, "{partition} {stamp}");
        }
        assert_eq!(Ranges::default().horizon_at(b"x"), Horizon::NONE);
    }
}
