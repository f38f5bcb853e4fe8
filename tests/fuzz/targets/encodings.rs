//! Engine keys, cells and mutations: what was encoded is decoded, only that is, and order and merge keep their laws.

use bytes::Bytes;
use tetrachord::cell::{self, Cell, Content, Stamp};
use tetrachord::key::{self, KV_TABLE, TableId};
use tetrachord::mutation::{Kind, Mutation};

use super::{Input, Seeds, Target, memory};

pub const KEY: Target =
    Target { name: "key", start: || Box::new(key), input_bytes_max: 600, rounds: 120_000, seeds: key_seeds };

pub const MUTATION: Target = Target {
    name: "mutation",
    start: || Box::new(mutation),
    input_bytes_max: 2_000,
    rounds: 80_000,
    seeds: mutation_seeds,
};

fn key(data: &[u8]) {
    if let Ok(decoded) = memory::bounded(data.len(), 3, || key::decode(data)) {
        assert_eq!(
            key::encode(decoded.table, &decoded.partition, &decoded.column),
            data,
            "one key, one encoding"
        );
    }

    let mut input = Input(data);
    let mut parts = || {
        let table = TableId(u16::from(input.byte()) << 8 | u16::from(input.byte()));
        (table, input.piece(), input.piece())
    };
    let (a, b) = (parts(), parts());
    let encoded = |(table, partition, column): (TableId, &[u8], &[u8])| key::encode(table, partition, column);
    assert_eq!(encoded(a).cmp(&encoded(b)), a.cmp(&b), "byte order is the order of the parts");
    for (table, partition, column) in [a, b] {
        let decoded = key::decode(&key::encode(table, partition, column)).expect("what was encoded is a key");
        assert_eq!((decoded.table, &decoded.partition[..], &decoded.column[..]), (table, partition, column));
    }
    let prefix = key::partition_prefix(a.0, a.1);
    assert_eq!(encoded(b).starts_with(&prefix), (a.0, a.1) == (b.0, b.1), "a partition is a prefix");
    let in_table = key::encode(a.0, b.1, b.2);
    assert_eq!(in_table < key::after_partition(a.0, a.1), b.1 <= a.1, "after_partition parts the keys");
}

fn mutation(data: &[u8]) {
    if let Ok(decoded) = Cell::decode(data) {
        let mut encoded = Vec::new();
        decoded.encode(&mut encoded);
        assert_eq!(encoded, data, "one cell, one encoding");
        assert_eq!(decoded.encoded_len(), data.len());
    }

    let bytes = Bytes::copy_from_slice(data);
    // A cell of 9 bytes in the encoding, with 6 before it, is a hundred in memory, and a vector doubles.
    let Ok(decoded) = memory::bounded(data.len(), 32, || Mutation::decode(&bytes)) else { return };
    let kind = Kind::of(&bytes).expect("it was decoded");
    assert_eq!(decoded.encode_as(kind), bytes, "one mutation of a kind, one encoding");
    assert_eq!(decoded.encoded_len(), data.len());
    assert!(decoded.cells.iter().all(|(_, cell)| cell.stamp <= decoded.stamp()));
    let restamped = decoded.restamped(Stamp(7));
    assert_eq!(Mutation::decode(&restamped.encode()), Ok(restamped));

    let cells: Vec<&Cell> = decoded.cells.iter().map(|(_, cell)| cell).take(4).collect();
    for a in &cells {
        assert_eq!(cell::merge((*a).clone(), (*a).clone()), **a, "merge is idempotent");
        for b in &cells {
            let merged = cell::merge((*a).clone(), (*b).clone());
            assert_eq!(merged, cell::merge((*b).clone(), (*a).clone()), "merge is commutative");
            for c in &cells {
                let right = cell::merge((*a).clone(), cell::merge((*b).clone(), (*c).clone()));
                assert_eq!(cell::merge(merged.clone(), (*c).clone()), right, "merge is associative");
            }
        }
    }
}

fn key_seeds() -> Seeds {
    let encoded = |partition: &[u8], column: &[u8]| key::encode(KV_TABLE, partition, column);
    let pair = |a: (&[u8], &[u8]), b: (&[u8], &[u8])| {
        let mut out = Vec::new();
        for (partition, column) in [a, b] {
            out.extend_from_slice(&KV_TABLE.0.to_be_bytes());
            for piece in [partition, column] {
                out.push(piece.len() as u8);
                out.extend_from_slice(piece);
            }
        }
        out
    };
    vec![
        ("classic".to_owned(), encoded(&[137], b"")),
        ("zeros".to_owned(), encoded(&[0, 0, 1, 0], &[0, 1])),
        ("text".to_owned(), encoded(b"do re mi fa", b"column")),
        ("pair-equal".to_owned(), pair((b"a", b"b"), (b"a", b"b"))),
        ("pair-prefix".to_owned(), pair((b"a\0", b""), (b"a", b"\x01"))),
        ("pair-zeros".to_owned(), pair((&[0, 0, 0], &[0]), (&[0, 1, 0], &[1, 1]))),
    ]
}

pub fn mutations() -> Vec<(&'static str, Mutation)> {
    let cell = |stamp, content| Cell { stamp: Stamp(stamp), content };
    let value = |bytes: &'static [u8]| Content::Value(Bytes::from_static(bytes));
    let expiring =
        Content::Expiring { value: Bytes::from_static(b"for a while"), expires_at_s: 1_800_000_000 };
    let single =
        |partition: &'static [u8], cell| Mutation::single(KV_TABLE, Bytes::from_static(partition), cell);
    let several = vec![
        (Bytes::new(), cell(3, value(b"x"))),
        (Bytes::from_static(b"b"), cell(3, expiring.clone())),
        (Bytes::from_static(b"c"), cell(-3, Content::Tombstone)),
    ];
    vec![
        ("value", single(&[137], cell(1_795_227_328_999_280, value(b"value137")))),
        ("empty-value", single(b"k", cell(1, value(b"")))),
        ("expiring", single(b"do re mi fa", cell(2, expiring))),
        ("tombstone", single(&[0, 1, 0], cell(i64::MAX, Content::Tombstone))),
        (
            "several",
            Mutation { table: TableId(0xff01), partition: Bytes::from_static(b"row"), cells: several },
        ),
    ]
}

fn mutation_seeds() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, mutation) in mutations() {
        seeds.push((name.to_owned(), mutation.encode().to_vec()));
        let mut cell = Vec::new();
        mutation.cells[0].1.encode(&mut cell);
        seeds.push((format!("cell-{name}"), cell));
    }
    seeds
}
