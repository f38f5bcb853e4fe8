//! One version of one value, and the only rule by which two versions become one.
//!
//! A cell is a value, a value that expires, or a tombstone, with the stamp that orders it. Everything that moves data
//! between replicas and files (writes, hints, read repair, reconciliation, flush, replay) meets in [`merge`], so
//! replicas that have seen the same cells, in whatever order and however often, hold the same cell:
//!
//!   commutative   merge(a, b) = merge(b, a)
//!   associative   merge(a, merge(b, c)) = merge(merge(a, b), c)
//!   idempotent    merge(a, a) = a
//!
//! `merge` knows no clock: an expired cell still shadows older ones. Whether a cell is visible is a question of the
//! reader, see [`Cell::live_value`].
//!
//! Not here: where cells are kept (`store`), who else holds them (`ring`).

use std::cmp::Ordering;
use std::fmt;

use bytes::{BufMut, Bytes};

/// Microseconds since 1970 (UTC) that order the versions of a cell. Higher wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub i64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One version of a value. `V` is how the value's bytes are held: shared ([`Bytes`]) or borrowed (`&[u8]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell<V = Bytes> {
    /// Orders this version among the others.
    pub stamp: Stamp,
    /// What it says.
    pub content: Content<V>,
}

/// What a cell says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<V = Bytes> {
    /// A value that stays.
    Value(V),
    /// A value that readers no longer see from `expires_at_s` on (seconds since 1970).
    Expiring {
        /// The value, until then.
        value: V,
        /// Seconds since 1970.
        expires_at_s: i64,
    },
    /// The value was deleted.
    Tombstone,
}

/// The later of two versions: larger stamp; on a tie a tombstone or an expiring cell beats a plain one, a tombstone
/// beats an expiring one, then the later expiry, then the larger value in unsigned byte order. (Cassandra's order
/// since CASSANDRA-14592.)
pub fn merge(a: Cell, b: Cell) -> Cell {
    if b.order(&a) == Ordering::Greater { b } else { a }
}

impl<V: AsRef<[u8]>> Cell<V> {
    /// `Greater` if this cell wins a [`merge`] against `other`, `Equal` only if the two are the same.
    pub fn order<W: AsRef<[u8]>>(&self, other: &Cell<W>) -> Ordering {
        fn rank<V>(content: &Content<V>) -> u8 {
            match content {
                Content::Value(_) => 0,
                Content::Expiring { .. } => 1,
                Content::Tombstone => 2,
            }
        }
        self.stamp
            .cmp(&other.stamp)
            .then_with(|| rank(&self.content).cmp(&rank(&other.content)))
            .then_with(|| self.expires_at_s().cmp(&other.expires_at_s()))
            .then_with(|| self.value_bytes().cmp(other.value_bytes()))
    }

    /// The value a reader sees at `now_s` (seconds since 1970), or nothing if the cell is deleted or expired.
    pub fn live_value(&self, now_s: i64) -> Option<&V> {
        match &self.content {
            Content::Value(value) => Some(value),
            Content::Expiring { value, expires_at_s } if now_s < *expires_at_s => Some(value),
            Content::Expiring { .. } | Content::Tombstone => None,
        }
    }

    /// [`Cell::live_value`] without a copy.
    pub fn into_live_value(self, now_s: i64) -> Option<V> {
        self.live_value(now_s)?;
        match self.content {
            Content::Value(value) | Content::Expiring { value, .. } => Some(value),
            Content::Tombstone => None,
        }
    }

    /// Seconds since 1970 from which on the value is not seen; `None` for a plain value and a tombstone.
    pub fn expires_at_s(&self) -> Option<i64> {
        match self.content {
            Content::Expiring { expires_at_s, .. } => Some(expires_at_s),
            Content::Value(_) | Content::Tombstone => None,
        }
    }

    /// The value's bytes whether or not a reader would still see them; empty for a tombstone.
    pub fn value_bytes(&self) -> &[u8] {
        match &self.content {
            Content::Value(value) | Content::Expiring { value, .. } => value.as_ref(),
            Content::Tombstone => &[],
        }
    }

    /// How many bytes [`Cell::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        1 + 8 + if self.expires_at_s().is_some() { 8 } else { 0 } + self.value_bytes().len()
    }

    /// Appends `kind (1 byte) · stamp (8, big-endian) · [expiry (8, big-endian)] · value` to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.kind());
        out.put_i64(self.stamp.0);
        if let Some(expires_at_s) = self.expires_at_s() {
            out.put_i64(expires_at_s);
        }
        out.put_slice(self.value_bytes());
    }

    /// The number by which the encoding, the commit log and the base name the kind of cell.
    pub fn kind(&self) -> u8 {
        match self.content {
            Content::Value(_) => KIND_VALUE,
            Content::Expiring { .. } => KIND_EXPIRING,
            Content::Tombstone => KIND_TOMBSTONE,
        }
    }
}

/// [`Cell::kind`] of a plain value.
pub const KIND_VALUE: u8 = 1;
/// [`Cell::kind`] of a value that expires.
pub const KIND_EXPIRING: u8 = 2;
/// [`Cell::kind`] of a deletion.
pub const KIND_TOMBSTONE: u8 = 3;

/// Bytes that are no cell. The data they came from is damaged; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes do not encode a cell")]
pub struct MalformedCell {
    /// How many bytes there were.
    pub len: usize,
}

impl<'a> Cell<&'a [u8]> {
    /// Reads what [`Cell::encode`] wrote, borrowing the value.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, MalformedCell> {
        let malformed = MalformedCell { len: bytes.len() };
        let (&kind, rest) = bytes.split_first().ok_or(malformed)?;
        let (stamp, rest) = split_i64(rest).ok_or(malformed)?;
        let content = match kind {
            KIND_VALUE => Content::Value(rest),
            KIND_EXPIRING => {
                let (expires_at_s, value) = split_i64(rest).ok_or(malformed)?;
                Content::Expiring { value, expires_at_s }
            }
            KIND_TOMBSTONE if rest.is_empty() => Content::Tombstone,
            _ => return Err(malformed),
        };
        Ok(Cell { stamp: Stamp(stamp), content })
    }

    /// The same cell with its value copied out of the borrowed bytes.
    pub fn to_owned(self) -> Cell {
        self.map(Bytes::copy_from_slice)
    }

    /// The same cell, its value a slice of `backing`, from which it was decoded: no copy.
    pub fn share(self, backing: &Bytes) -> Cell {
        self.map(|value| if value.is_empty() { Bytes::new() } else { backing.slice_ref(value) })
    }

    fn map(self, own: impl FnOnce(&'a [u8]) -> Bytes) -> Cell {
        let content = match self.content {
            Content::Value(value) => Content::Value(own(value)),
            Content::Expiring { value, expires_at_s } => {
                Content::Expiring { value: own(value), expires_at_s }
            }
            Content::Tombstone => Content::Tombstone,
        };
        Cell { stamp: self.stamp, content }
    }
}

fn split_i64(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*head), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct stamps, values and expiries, so that ties of every kind come up.
    pub(crate) fn any_cell() -> impl Strategy<Value = Cell> {
        let value = prop::collection::vec(prop::sample::select(vec![0u8, 1, 0x7f, 0x80, 0xff]), 0..3);
        (0i64..3, 0u8..3, value, 0i64..3).prop_map(|(stamp, kind, value, expires_at_s)| {
            let value = Bytes::from(value);
            let content = match kind {
                0 => Content::Value(value),
                1 => Content::Expiring { value, expires_at_s },
                _ => Content::Tombstone,
            };
            Cell { stamp: Stamp(stamp), content }
        })
    }

    proptest! {
        #[test]
        fn merge_is_commutative(a in any_cell(), b in any_cell()) {
            prop_assert_eq!(merge(a.clone(), b.clone()), merge(b, a));
        }

        #[test]
        fn merge_is_associative(a in any_cell(), b in any_cell(), c in any_cell()) {
            let left = merge(merge(a.clone(), b.clone()), c.clone());
            prop_assert_eq!(left, merge(a, merge(b, c)));
        }

        #[test]
        fn merge_is_idempotent_and_picks_one_of_the_two(a in any_cell(), b in any_cell()) {
            prop_assert_eq!(merge(a.clone(), a.clone()), a.clone());
            let winner = merge(a.clone(), b.clone());
            prop_assert!(winner == a || winner == b);
        }

        #[test]
        fn only_equal_cells_tie(a in any_cell(), b in any_cell()) {
            prop_assert_eq!(a.order(&b) == Ordering::Equal, a == b);
        }

        #[test]
        fn encoding_round_trips(a in any_cell()) {
            let mut bytes = Vec::new();
            a.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), a.encoded_len());
            prop_assert_eq!(Cell::decode(&bytes).unwrap().to_owned(), a.clone());
            let backing = Bytes::from(bytes);
            prop_assert_eq!(Cell::decode(&backing).unwrap().share(&backing), a);
        }

        #[test]
        fn decoding_garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Cell::decode(&bytes);
        }
    }

    fn value(stamp: i64, value: &'static [u8]) -> Cell {
        Cell { stamp: Stamp(stamp), content: Content::Value(Bytes::from_static(value)) }
    }

    fn expiring(stamp: i64, expires_at_s: i64, value: &'static [u8]) -> Cell {
        Cell {
            stamp: Stamp(stamp),
            content: Content::Expiring { value: Bytes::from_static(value), expires_at_s },
        }
    }

    fn tombstone(stamp: i64) -> Cell {
        Cell { stamp: Stamp(stamp), content: Content::Tombstone }
    }

    #[test]
    fn each_rule_of_merge_in_its_order() {
        let rising = [
            value(1, b"z"),
            value(2, b""),
            value(2, b"\x7f"),
            value(2, b"\x80"), // unsigned: 0x80 is larger than 0x7f
            value(2, b"\x80\x00"),
            expiring(2, 5, b"z"),
            expiring(2, 6, b"a"),
            expiring(2, 6, b"b"),
            tombstone(2),
            value(3, b""),
        ];
        for (i, lower) in rising.iter().enumerate() {
            for higher in &rising[i + 1..] {
                assert_eq!(merge(lower.clone(), higher.clone()), *higher);
            }
        }
    }

    #[test]
    fn a_reader_sees_an_expiring_value_until_its_second_comes() {
        let cell = expiring(1, 100, b"v");
        assert!(cell.live_value(99).is_some());
        assert!(cell.live_value(100).is_none());
        assert!(tombstone(1).live_value(0).is_none());
    }
}
