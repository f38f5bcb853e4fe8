//! data.db against a map: flushed, compacted, collected and opened again in any order, it holds what the map does.

use proptest::prelude::*;

use super::super::sstable::SLOTS;
use super::*;
use crate::cell::merge;
use crate::key;

#[derive(Clone, Debug)]
enum Step {
    Flush(Vec<((u8, u8), Cell)>),
    /// So many steps of the compaction that is under way, or of one that is begun.
    Compact(usize),
    Drop(Vec<(u8, u8)>),
    Clear,
    Reopen,
}

/// Few keys and stamps, so that versions meet; some of them so long that they are kept apart.
fn cell() -> impl Strategy<Value = ((u8, u8), Cell)> {
    let content = (0..4u8, any::<u8>()).prop_map(|(kind, byte)| match kind {
        0 => Content::Tombstone,
        1 => Content::Value(vec![byte; 2_000].into()),
        _ => Content::Value(vec![byte].into()),
    });
    (place(), 0..20i64, content)
        .prop_map(|(place, stamp, content)| (place, Cell { stamp: Stamp(stamp), content }))
}

/// Partition and column.
fn place() -> impl Strategy<Value = (u8, u8)> {
    (0..4u8, 0..3u8)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(cell(), 1..10).prop_map(Step::Flush),
        4 => (1..6usize).prop_map(Step::Compact),
        1 => prop::collection::vec(place(), 1..4).prop_map(Step::Drop),
        1 => Just(Step::Clear),
        1 => Just(Step::Reopen),
    ]
}

fn at((partition, column): (u8, u8)) -> Vec<u8> {
    // A column without bytes makes a key that is its own partition.
    key::encode(KV_TABLE, &[partition], &[column][..usize::from(column > 0)])
}

pub(super) fn flush(writer: &mut BaseWriter, cells: impl IntoIterator<Item = (Vec<u8>, Cell)>, upto: i64) {
    let packed = cells.into_iter().map(|(key, cell)| (key[..].into(), super::super::memtable::pack(&cell)));
    let table = Memtable::from_unsorted(packed.collect());
    let mut flush = writer.begin_flush(&table, upto).unwrap();
    let half = table.len() / 2;
    writer.write(&mut flush, table.range(&[], None).take(half), false).unwrap();
    writer.write(&mut flush, table.range(&[], None).skip(half), true).unwrap();
    writer.show();
}

fn run(steps: Vec<Step>) {
    let dir = directory();
    let config = Config { compaction_sstables: 3, ..tiny() };
    let open = || base_writer::open(dir.path(), &config, &Disk::real()).unwrap();
    let mut writer = open();
    let mut model: BTreeMap<Vec<u8>, Cell> = BTreeMap::new();
    let mut compaction = None;
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Flush(cells) => {
                for (place, cell) in &cells {
                    let held = model.remove(&at(*place)).unwrap_or_else(|| cell.clone());
                    model.insert(at(*place), merge(held, cell.clone()));
                }
                flush(&mut writer, cells.into_iter().map(|(place, cell)| (at(place), cell)), number as i64);
            }
            Step::Compact(times) => {
                for _ in 0..times {
                    let mut under_way = compaction.take().unwrap_or_else(|| writer.begin_compaction());
                    let step = writer.compact(&mut under_way, (2, 3_000)).unwrap();
                    compaction = step.is_continue().then_some(under_way);
                }
            }
            Step::Drop(places) => {
                let keys: Vec<_> = places.into_iter().map(at).collect();
                model.retain(|key, _| !keys.contains(key));
                writer.drop_cells(&keys).unwrap();
            }
            Step::Clear => {
                writer.clear_one().unwrap();
            }
            Step::Reopen => {
                compaction = None;
                drop(writer);
                writer = open();
            }
        }
        check(writer.base(), &model);
    }
}

fn check(base: &base::Base, model: &BTreeMap<Vec<u8>, Cell>) {
    let range = |start: &[u8], end: Option<&[u8]>| {
        let mut held = Vec::new();
        base.range(start, end, |key, cell| {
            held.push((key.to_vec(), cell.to_owned()));
            true
        })
        .unwrap();
        held
    };
    let expected = |start: &[u8], end: &[u8]| {
        let cells = model.range(start.to_vec()..end.to_vec());
        cells.map(|(key, cell)| (key.clone(), cell.clone())).collect::<Vec<_>>()
    };
    assert_eq!(range(&[], None), expected(&[], &[255]));
    for partition in 0..4 {
        let (start, end) = (at((partition, 0)), key::after_partition(KV_TABLE, &[partition]));
        assert_eq!(range(&start, Some(&end)), expected(&start, &end));
        for column in 0..3 {
            let key = at((partition, column));
            assert_eq!(base.get(&key).unwrap(), model.get(&key).cloned());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn data_db_is_a_map(steps in prop::collection::vec(step(), 1..40)) {
        run(steps);
    }
}

pub(super) fn numbered(numbers: std::ops::Range<u32>, stamp: i64) -> Vec<(Vec<u8>, Cell)> {
    let cell = |number: u32| (key::encode(KV_TABLE, &number.to_be_bytes(), b""), value(stamp, [7; 50]));
    numbers.map(cell).collect()
}

pub(super) fn sstables(writer: &BaseWriter) -> usize {
    writer.base().readers().sstables()
}

#[test]
fn a_flush_is_an_sstable_only_where_it_is_small_against_what_is_there() {
    let dir = directory();
    let mut writer = base_writer::open(dir.path(), &tiny(), &Disk::real()).unwrap();
    flush(&mut writer, numbered(0..10_000, 1), 1);
    assert_eq!(sstables(&writer), 0);
    flush(&mut writer, numbered(0..5_000, 2), 2);
    assert_eq!(sstables(&writer), 0);
    for number in 0..SLOTS as i64 {
        assert_eq!((sstables(&writer), writer.has_slot()), (number as usize, true));
        flush(&mut writer, numbered(0..100, number), number);
    }
    assert_eq!((sstables(&writer), writer.has_slot()), (SLOTS, false));
    flush(&mut writer, numbered(0..200, 100), 100);
    assert_eq!(sstables(&writer), SLOTS, "all slots are taken");
    assert!(writer.compaction_is_due().unwrap());
    let key = &numbered(0..1, 0)[0].0;
    assert_eq!(writer.base().get(key).unwrap(), Some(value(100, [7; 50])), "though every sstable has it");

    let mut compaction = writer.begin_compaction();
    assert_eq!(compaction.slots_left, 1, "by 0 nothing can be divided");
    while writer.compact(&mut compaction, (1_000, 1_000_000)).unwrap().is_continue() {}
    assert_eq!(sstables(&writer), SLOTS - tiny().compaction_sstables, "no more than that at once");
    assert_eq!(writer.base().get(key).unwrap(), Some(value(100, [7; 50])));
}

/// Of four bytes, however it is put: else every other put of a cell of the same length would move its neighbours.
#[test]
fn checksums_of_rows_are_of_one_length() {
    let dir = directory();
    let mut writer = base_writer::open(dir.path(), &tiny(), &Disk::real()).unwrap();
    flush(&mut writer, numbered(0..3_000, 1), 1);
    flush(&mut writer, numbered(0..300, 2), 2);
    let long = |number: u32| (key::encode(KV_TABLE, &number.to_be_bytes(), b""), value(3, [7; 2_000]));
    flush(&mut writer, (0..100).map(long), 3);
    for (table, rows_min) in [("cells", 3_000), ("long_cells", 100), ("sstable_0", 1)] {
        let sql = format!("SELECT count(*), max(abs(checksum)) FROM {table}");
        let (rows, largest): (i64, i64) =
            writer.connection().query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert!(rows >= rows_min && largest <= 1 << 31, "{table}: {rows} rows, {largest}");
    }
}

/// A killed server leaves rows of a flush that was not done in a table that nobody reads.
#[test]
fn what_is_left_of_a_flush_that_did_not_end_is_cleared() {
    let dir = directory();
    let mut writer = base_writer::open(dir.path(), &tiny(), &Disk::real()).unwrap();
    flush(&mut writer, numbered(0..10_000, 1), 1);
    let packed = numbered(0..100, 2)
        .into_iter()
        .map(|(key, cell)| (key[..].into(), super::super::memtable::pack(&cell)));
    let table = Memtable::from_unsorted(packed.collect());
    let mut begun = writer.begin_flush(&table, 2).unwrap();
    writer.write(&mut begun, table.range(&[], None).take(50), false).unwrap();
    drop(writer);

    let mut writer = base_writer::open(dir.path(), &tiny(), &Disk::real()).unwrap();
    let rows = |writer: &BaseWriter| -> i64 {
        let sql = "SELECT count(*) FROM sstable_0"; // blocks
        writer.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((sstables(&writer), rows(&writer), writer.flushed_upto()), (0, 1, 1));
    let held = writer.base().get(&numbered(0..1, 0)[0].0).unwrap();
    assert_eq!(held, Some(value(1, [7; 50])), "its rows are in the log as well, and read from there");
    assert!(writer.clear_one().unwrap());
    assert!(!writer.clear_one().unwrap());
    assert_eq!(rows(&writer), 0);
}

#[test]
fn a_damaged_sstable_is_reported() {
    for (damage, when_opened) in [
        ("UPDATE sstables SET filter = zeroblob(length(filter))", true),
        ("UPDATE sstables SET slot = 77", true),
        ("UPDATE sstable_0 SET cells = x'00'", false),
    ] {
        let dir = directory();
        let mut writer = base_writer::open(dir.path(), &tiny(), &Disk::real()).unwrap();
        flush(&mut writer, numbered(0..10_000, 1), 1);
        flush(&mut writer, numbered(0..100, 2), 2);
        assert_eq!(sstables(&writer), 1);
        writer.connection().execute_batch(damage).unwrap();
        drop(writer);
        let opened = base_writer::open(dir.path(), &tiny(), &Disk::real());
        assert_eq!(opened.is_err(), when_opened, "{damage}");
        let said = match opened {
            Err(error) => error.to_string(),
            Ok(mut writer) => {
                let got = writer.base().get(&numbered(0..1, 0)[0].0).unwrap_err().to_string();
                let mut compaction = writer.begin_compaction();
                let compacted = writer.compact(&mut compaction, (10, 10_000)).unwrap_err().to_string();
                assert_eq!(got, compacted);
                got
            }
        };
        assert!(said.contains("data.db is damaged: ") && said.contains("checksum"), "{said}");
    }
}
