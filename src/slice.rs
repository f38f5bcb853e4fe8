//! What a read asks a replica for: a run of columns of one partition.

use bytes::Bytes;

use crate::key::TableId;

/// A run of columns of one partition. A point read is the slice from a column to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The table.
    pub table: TableId,
    /// The partition key.
    pub partition: Bytes,
    /// The first column that belongs to the slice.
    pub first: Bytes,
    /// The last column that belongs to the slice; `None`: to the end of the partition.
    pub last: Option<Bytes>,
    /// How many cells at most, tombstones included. At least 1.
    pub cells_max: usize,
}

impl Slice {
    /// The one cell under the empty column: what the plain key-value table reads.
    pub fn single(table: TableId, partition: Bytes) -> Slice {
        Slice { table, partition, first: Bytes::new(), last: Some(Bytes::new()), cells_max: 1 }
    }

    /// The column, if the slice can hold no other.
    pub fn only_column(&self) -> Option<&Bytes> {
        self.last.as_ref().filter(|last| **last == self.first)
    }
}
