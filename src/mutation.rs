//! The unit of replication: cells of one partition in one table, applied together or not at all.
//!
//! A mutation has one encoding, used in frames between nodes and in hints:
//!
//!   version (1) · table (2) · partition length (2) · partition
//!     · for each cell: column length (2) · column · cell length (4) · cell
//!
//! All numbers are big-endian; the cell is as in `cell.rs`. The version also says where the mutation comes from, for
//! what a replica may take depends on it ([`Kind`]).

use bytes::{Buf, Bytes};

use crate::cell::{Cell, Stamp};
use crate::key::TableId;

/// Where an encoded mutation comes from: its first byte. Another encoding would be other numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Of a coordinator, on behalf of a client that waits.
    Write = 1,
    /// A write that a coordinator kept for an absent replica.
    Hint = 2,
    /// What another replica held, by way of a read.
    Repair = 3,
}

impl Kind {
    /// Of an encoded mutation; `None`: it is none.
    pub fn of(encoded: &[u8]) -> Option<Kind> {
        [Kind::Write, Kind::Hint, Kind::Repair]
            .into_iter()
            .find(|kind| encoded.first() == Some(&(*kind as u8)))
    }
}

/// Cells of one partition in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// The table of all the cells.
    pub table: TableId,
    /// The partition key of all the cells; at most [`crate::key::PARTITION_KEY_BYTES_MAX`] bytes.
    pub partition: Bytes,
    /// Column (at most [`crate::key::COLUMN_BYTES_MAX`] bytes) and cell. Never empty.
    pub cells: Vec<(Bytes, Cell)>,
}

/// Bytes that are no mutation. The frame or hint they came from is damaged; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes do not encode a mutation")]
pub struct MalformedMutation {
    /// How many bytes there were.
    pub len: usize,
}

impl Mutation {
    /// A mutation of one cell under the empty column: all that the plain key-value table needs.
    pub fn single(table: TableId, partition: Bytes, cell: Cell) -> Mutation {
        Mutation { table, partition, cells: vec![(Bytes::new(), cell)] }
    }

    /// The largest stamp of its cells.
    pub fn stamp(&self) -> Stamp {
        self.cells.iter().map(|(_, cell)| cell.stamp).max().expect("a mutation has cells")
    }

    /// The smallest stamp of its cells.
    pub fn oldest_stamp(&self) -> Stamp {
        self.cells.iter().map(|(_, cell)| cell.stamp).min().expect("a mutation has cells")
    }

    /// The same mutation with every cell stamped `stamp`.
    pub fn restamped(&self, stamp: Stamp) -> Mutation {
        let restamp = |(column, cell): &(Bytes, Cell)| (column.clone(), Cell { stamp, ..cell.clone() });
        Mutation { cells: self.cells.iter().map(restamp).collect(), ..self.clone() }
    }

    /// How many bytes [`Mutation::encode`] makes.
    pub fn encoded_len(&self) -> usize {
        let cells: usize =
            self.cells.iter().map(|(column, cell)| 6 + column.len() + cell.encoded_len()).sum();
        5 + self.partition.len() + cells
    }

    /// The one encoding, see the module head, of a write.
    pub fn encode(&self) -> Bytes {
        self.encode_as(Kind::Write)
    }

    /// The one encoding, see the module head.
    pub fn encode_as(&self, kind: Kind) -> Bytes {
        assert!(self.partition.len() <= crate::key::PARTITION_KEY_BYTES_MAX);
        let mut out = Vec::with_capacity(self.encoded_len());
        out.push(kind as u8);
        out.extend_from_slice(&self.table.0.to_be_bytes());
        out.extend_from_slice(&(self.partition.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.partition);
        for (column, cell) in &self.cells {
            assert!(column.len() <= crate::key::COLUMN_BYTES_MAX);
            out.extend_from_slice(&(column.len() as u16).to_be_bytes());
            out.extend_from_slice(column);
            out.extend_from_slice(&(cell.encoded_len() as u32).to_be_bytes());
            cell.encode(&mut out);
        }
        Bytes::from(out)
    }

    /// Reads what [`Mutation::encode_as`] wrote; keys and values are slices of `bytes`, not copies.
    pub fn decode(bytes: &Bytes) -> Result<Mutation, MalformedMutation> {
        let malformed = || MalformedMutation { len: bytes.len() };
        let mut rest = bytes.clone();
        Kind::of(bytes).ok_or_else(malformed)?;
        rest.advance(1);
        let table = TableId(rest.try_get_u16().map_err(|_| malformed())?);
        let partition_len = rest.try_get_u16().map_err(|_| malformed())? as usize;
        let partition = take(&mut rest, partition_len).ok_or_else(malformed)?;
        let mut cells = Vec::with_capacity(1);
        while rest.has_remaining() {
            let column_len = rest.try_get_u16().map_err(|_| malformed())? as usize;
            let column = take(&mut rest, column_len).ok_or_else(malformed)?;
            let cell_len = rest.try_get_u32().map_err(|_| malformed())? as usize;
            let cell = take(&mut rest, cell_len).ok_or_else(malformed)?;
            cells.push((column, Cell::decode(&cell).map_err(|_| malformed())?.share(&cell)));
        }
        if cells.is_empty() {
            return Err(malformed());
        }
        Ok(Mutation { table, partition, cells })
    }
}

fn take(rest: &mut Bytes, len: usize) -> Option<Bytes> {
    (len <= rest.len()).then(|| rest.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Content;
    use proptest::prelude::*;

    fn any_mutation() -> impl Strategy<Value = Mutation> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let cell =
            (any::<i64>(), 0u8..3, bytes(), any::<i64>()).prop_map(|(stamp, kind, value, expires_at_s)| {
                Cell {
                    stamp: Stamp(stamp),
                    content: match kind {
                        0 => Content::Value(value),
                        1 => Content::Expiring { value, expires_at_s },
                        _ => Content::Tombstone,
                    },
                }
            });
        let cells = prop::collection::vec((bytes(), cell), 1..4);
        (any::<u16>(), bytes(), cells).prop_map(|(table, partition, cells)| Mutation {
            table: TableId(table),
            partition,
            cells,
        })
    }

    proptest! {
        #[test]
        fn encoding_round_trips(mutation in any_mutation()) {
            let bytes = mutation.encode();
            prop_assert_eq!(bytes.len(), mutation.encoded_len());
            prop_assert_eq!(Mutation::decode(&bytes), Ok(mutation));
        }

        #[test]
        fn a_cut_or_flipped_encoding_is_refused_or_is_another_mutation(
            mutation in any_mutation(), at in any::<prop::sample::Index>(), flip in 1u8..
        ) {
            let bytes = mutation.encode();
            let at = at.index(bytes.len());
            let cut = bytes.slice(..at);
            prop_assert_ne!(Mutation::decode(&cut), Ok(mutation.clone()));
            let mut flipped = bytes.to_vec();
            flipped[at] ^= flip;
            if at > 0 {
                prop_assert_ne!(Mutation::decode(&Bytes::from(flipped)), Ok(mutation));
            }
        }
    }
}
