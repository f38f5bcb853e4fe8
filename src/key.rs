//! How (table, partition key, column) becomes one byte string whose byte order is the order of the three parts.
//!
//!   table (2 bytes, big-endian) · partition key, each 00 written as 00 01 · 00 00 · column
//!
//! A partition is a contiguous range of engine keys, and so are a prefix of its columns and a run of partition keys.
//! The terminator 00 00 sorts before every escaped continuation, so a shorter partition key sorts first, as in
//! Cassandra's ByteOrderedPartitioner.
//!
//! Not here: which node a partition key belongs to (`ring`).

use bytes::Bytes;

/// Which table a cell belongs to. A small number that never changes its meaning once cells are stored under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u16);

/// The plain key-value table, `kv`: one cell per partition, under the empty column.
pub const KV_TABLE: TableId = TableId(1);

/// Longest partition key, in bytes: Cassandra's bound for a row key.
pub const PARTITION_KEY_BYTES_MAX: usize = 65_535;

/// Longest column name, in bytes: Cassandra's bound for a column name.
pub const COLUMN_BYTES_MAX: usize = 65_535;

/// Where a cell is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellKey {
    /// The table.
    pub table: TableId,
    /// The partition (row) key, which decides placement.
    pub partition: Bytes,
    /// The cell's name inside its partition.
    pub column: Bytes,
}

/// Bytes that are no engine key. The data they came from is damaged; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes do not encode a key")]
pub struct MalformedKey {
    /// How many bytes there were.
    pub len: usize,
}

/// The engine key of a cell.
pub fn encode(table: TableId, partition: &[u8], column: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + partition.len() + 2 + column.len());
    encode_into(&mut key, table, partition, column);
    key
}

/// Appends the engine key of a cell to `key`.
pub fn encode_into(key: &mut Vec<u8>, table: TableId, partition: &[u8], column: &[u8]) {
    key.extend_from_slice(&table.0.to_be_bytes());
    let mut rest = partition;
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        key.extend_from_slice(&rest[..zero]);
        key.extend_from_slice(&[0, 1]);
        rest = &rest[zero + 1..];
    }
    key.extend_from_slice(rest);
    key.extend_from_slice(&[0, 0]);
    key.extend_from_slice(column);
}

/// Every engine key of the partition starts with this, and no other key does.
pub fn partition_prefix(table: TableId, partition: &[u8]) -> Vec<u8> {
    encode(table, partition, &[])
}

/// The least byte string that is larger than every engine key of `table` with a partition key up to and including
/// `partition`. Engine keys of partitions in (a, b] are those in [after_partition(a), after_partition(b)).
pub fn after_partition(table: TableId, partition: &[u8]) -> Vec<u8> {
    let mut key = encode(table, partition, &[]);
    let last = key.len() - 1;
    key[last] = 1; // 00 00 is the terminator, 00 01 an escaped zero byte: what follows is a longer partition key
    key
}

/// What all engine keys of this one's partition begin with, and no others; `None` if it ends before that.
pub fn partition_of(key: &[u8]) -> Option<&[u8]> {
    let mut at = size_of::<TableId>();
    loop {
        at += key.get(at..)?.iter().position(|&byte| byte == 0)? + 2; // 00 00 ends it, 00 01 is a zero byte
        if *key.get(at - 1)? == 0 {
            return Some(&key[..at]);
        }
    }
}

/// The same of all engine keys in [start, end), if they are of one partition.
pub fn only_partition<'a>(start: &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    let partition = partition_of(start)?;
    let (last, rest) = partition.split_last()?;
    let behind = end.len() == partition.len() && end.starts_with(rest) && end.last() == Some(&(last + 1));
    (end.starts_with(partition) || behind).then_some(partition)
}

/// Reads what [`encode`] wrote.
pub fn decode(key: &[u8]) -> Result<CellKey, MalformedKey> {
    let malformed = MalformedKey { len: key.len() };
    let (table, mut rest) = key.split_first_chunk::<2>().ok_or(malformed)?;
    let mut partition = Vec::with_capacity(rest.len());
    loop {
        let zero = rest.iter().position(|&byte| byte == 0).ok_or(malformed)?;
        partition.extend_from_slice(&rest[..zero]);
        let mark = *rest.get(zero + 1).ok_or(malformed)?;
        rest = &rest[zero + 2..];
        match mark {
            0 => break,
            1 => partition.push(0),
            _ => return Err(malformed),
        }
    }
    let table = TableId(u16::from_be_bytes(*table));
    Ok(CellKey { table, partition: Bytes::from(partition), column: Bytes::copy_from_slice(rest) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 0xfe, 0xff]), 0..5)
    }

    proptest! {
        #[test]
        fn byte_order_is_the_order_of_the_parts(
            a in (0u16..3, part(), part()), b in (0u16..3, part(), part())
        ) {
            let encoded = |k: &(u16, Vec<u8>, Vec<u8>)| encode(TableId(k.0), &k.1, &k.2);
            prop_assert_eq!(encoded(&a).cmp(&encoded(&b)), a.cmp(&b));
        }

        #[test]
        fn encoding_round_trips(table in any::<u16>(), partition in part(), column in part()) {
            let key = decode(&encode(TableId(table), &partition, &column)).unwrap();
            prop_assert_eq!(key.table, TableId(table));
            prop_assert_eq!(&key.partition[..], &partition[..]);
            prop_assert_eq!(&key.column[..], &column[..]);
        }

        #[test]
        fn a_partition_is_the_keys_with_its_prefix(a in part(), b in part(), column in part()) {
            let key = encode(KV_TABLE, &b, &column);
            prop_assert_eq!(key.starts_with(&partition_prefix(KV_TABLE, &a)), a == b);
        }

        #[test]
        fn after_partition_parts_the_keys(a in part(), b in part(), column in part()) {
            let key = encode(KV_TABLE, &b, &column);
            prop_assert_eq!(key < after_partition(KV_TABLE, &a), b <= a);
        }

        #[test]
        fn a_key_tells_its_partition(partition in part(), column in part(), cut in 0_usize..20) {
            let (key, prefix) = (encode(KV_TABLE, &partition, &column), partition_prefix(KV_TABLE, &partition));
            prop_assert_eq!(partition_of(&key), Some(&prefix[..]));
            prop_assert_eq!(partition_of(&prefix[..cut.min(prefix.len() - 1)]), None);
        }

        #[test]
        fn a_run_of_keys_tells_its_only_partition(a in part(), b in part(), columns in (part(), part())) {
            let [first, second] = [(&a, &columns.0), (&b, &columns.1)].map(|(p, c)| encode(KV_TABLE, p, c));
            let only = partition_prefix(KV_TABLE, &a);
            prop_assert_eq!(only_partition(&first, &after_partition(KV_TABLE, &a)), Some(&only[..]));
            prop_assert_eq!(only_partition(&first, &second), (a == b).then_some(&only[..]));
            prop_assert_eq!(only_partition(&first, &after_partition(KV_TABLE, &b)).is_some(), a == b);
        }

        #[test]
        fn decoding_garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode(&bytes);
        }
    }
}
