//! The small parts of a request, one by one, each beside something everybody knows: `cargo bench --bench micro`.
//!
//! Absolute times differ from machine to machine and from day to day, so each part is measured by turns with a
//! yardstick that does the least work imaginable on the same bytes, keys or rows, and the table at the end gives the
//! median of their ratios. divan's table before it gives the times.
//!
//! Each part has a ratio that it must not exceed, about half as much again as was seen when it was set, for even ratios
//! are not the same on every machine. If one does, the table says FAIL and the exit code is 1.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::Bencher;
use tetrachord::answer::{Answers, NodeId};
use tetrachord::cell::{self, Cell, Content, Stamp};
use tetrachord::config::Config;
use tetrachord::key::{self, KV_TABLE};
use tetrachord::mutation::Mutation;
use tetrachord::ring::Ring;
use tetrachord::store::{Disk, Drive, Store};
use tetrachord::thrift::chord::{Level, PutRequest};
use tetrachord::thrift::codec::{Protocol, read_message, write_call};
use tetrachord::thrift::method::{Call, Put};
use tetrachord::thrift::scan::{Bounds, Scanner};

// The memtable is private to the store, and rightly so; its two files need nothing but `cell`.
#[allow(dead_code, missing_docs)]
#[path = "../src/store/memtable.rs"]
mod memtable;
#[allow(dead_code, missing_docs)]
#[path = "../src/store/sorted_cells.rs"]
mod sorted_cells;

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Something to be done again and again.
type Work = Box<dyn FnMut()>;

/// A part and its yardstick.
struct Pair {
    part: &'static str,
    yardstick: &'static str,
    /// Operations that one call of the work does.
    operations: u32,
    /// The ratio of their times that is not to be exceeded.
    most: f64,
    of_part: fn() -> Work,
    of_yardstick: fn() -> Work,
}

const PAIRS: &[Pair] = &[
    pair("scan a put", "copy its bytes", 1, 13.0, scan, copy_message),
    pair("read a put", "copy its strings", 1, 18.0, read, copy_strings),
    pair("write a put", "copy its bytes", 1, 15.0, write, copy_message),
    pair("encode an engine key", "copy its bytes", 1, 7.0, encode_key, copy_key),
    pair("merge two cells", "clone two cells", 1, 1.8, merge, clone_cells),
    pair("look up a key's replicas", "range of a BTreeMap", 1, 2.0, look_up, look_up_map),
    pair("insert into the memtable", "insert into a BTreeMap", KEYS, 0.9, insert, insert_map),
    pair("merge into the memtable", "insert into a BTreeMap", KEYS, 0.6, merge_in, merge_in_map),
    pair("commit log, batch of 1", "bare SQLite, BTreeMap", 1, 1.6, append::<1>, sqlite::<1>),
    pair("commit log, batch of 8", "bare SQLite, BTreeMap", 8, 1.6, append::<8>, sqlite::<8>),
    pair("commit log, batch of 64", "bare SQLite, BTreeMap", 64, 1.6, append::<64>, sqlite::<64>),
    pair("commit log, batch of 512", "bare SQLite, BTreeMap", 512, 2.0, append::<512>, sqlite::<512>),
];

const fn pair(
    part: &'static str,
    yardstick: &'static str,
    operations: u32,
    most: f64,
    of_part: fn() -> Work,
    of_yardstick: fn() -> Work,
) -> Pair {
    Pair { part, yardstick, operations, most, of_part, of_yardstick }
}

fn main() {
    divan::main();
    if std::env::args().skip(1).all(|argument| argument == "--bench") && !ratios() {
        std::process::exit(1);
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    PAIRS.iter().map(|pair| pair.part)
}

fn named(name: &str) -> &'static Pair {
    PAIRS.iter().find(|pair| pair.part == name).expect("names come from the table")
}

#[divan::bench(args = names(), max_time = 1)]
fn part(bencher: Bencher<'_, '_>, name: &str) {
    let pair = named(name);
    bencher.counter(divan::counter::ItemsCount::new(pair.operations)).bench_local((pair.of_part)());
}

#[divan::bench(args = names(), max_time = 1)]
fn yardstick(bencher: Bencher<'_, '_>, name: &str) {
    let pair = named(name);
    bencher.counter(divan::counter::ItemsCount::new(pair.operations)).bench_local((pair.of_yardstick)());
}

// ------------------------------------------------------------------------------------------------ ratios

/// How long one sample takes, about.
const SAMPLE: Duration = Duration::from_millis(5);
const SAMPLES: usize = 41;

/// False if one is exceeded.
fn ratios() -> bool {
    println!(
        "\n{:28} {:>12}   {:24} {:>12} {:>10} {:>10}",
        "part", "ns", "yardstick", "ns", "ratio", "at most"
    );
    let mut kept = true;
    for pair in PAIRS {
        let (mut part, mut yardstick) = ((pair.of_part)(), (pair.of_yardstick)());
        let (part_calls, yardstick_calls) = (calls(&mut part), calls(&mut yardstick));
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            let per_operation = |took: Duration, calls: u32| {
                took.as_secs_f64() * 1e9 / f64::from(calls) / f64::from(pair.operations)
            };
            let part_ns = per_operation(time(&mut part, part_calls), part_calls);
            let yardstick_ns = per_operation(time(&mut yardstick, yardstick_calls), yardstick_calls);
            samples.push((part_ns, yardstick_ns, part_ns / yardstick_ns));
        }
        let median = |of: fn(&(f64, f64, f64)) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let ratio = median(|sample| sample.2);
        kept &= ratio <= pair.most;
        println!(
            "{:28} {:>12.1}   {:24} {:>12.1} {:>10.2} {:>10.1}  {}",
            pair.part,
            median(|sample| sample.0),
            pair.yardstick,
            median(|sample| sample.1),
            ratio,
            pair.most,
            if ratio <= pair.most { "PASS" } else { "FAIL" },
        );
    }
    kept
}

fn time(work: &mut Work, calls: u32) -> Duration {
    let began = Instant::now();
    (0..calls).for_each(|_| work());
    began.elapsed()
}

/// How many calls fill a sample.
fn calls(work: &mut Work) -> u32 {
    let mut calls = 1;
    while calls < 1 << 24 && time(work, calls) < SAMPLE {
        calls *= 2;
    }
    calls
}

// ------------------------------------------------------------------------------------------------ messages

fn put_request() -> PutRequest {
    PutRequest::new(vec![7; 16], vec![8; 100], Level::QUORUM, None, None, None)
}

fn message() -> Vec<u8> {
    let mut message = Vec::new();
    write_call::<Put>(Protocol::Binary, 1, &put_request(), &mut message);
    message
}

fn scan() -> Work {
    let message = message();
    let mut scanner = Scanner::new(Protocol::Binary, Bounds { bytes_max: 1 << 20, depth_max: 64 });
    Box::new(move || {
        assert_eq!(scanner.end(black_box(&message)), Ok(Some(message.len())));
    })
}

fn read() -> Work {
    let message = message();
    Box::new(move || {
        let call = read_message(Protocol::Binary, black_box(&message), 64, |header, input| {
            Call::read(&header.name, input).map_err(|(error, _)| error)
        });
        assert!(matches!(call, Ok(Ok(Some(Call::Put(_))))));
    })
}

fn write() -> Work {
    let (request, mut out) = (put_request(), Vec::new());
    Box::new(move || {
        out.clear();
        write_call::<Put>(Protocol::Binary, 1, black_box(&request), &mut out);
        black_box(&out);
    })
}

/// What a request owns of its message: the method's name, the key and the value.
fn copy_strings() -> Work {
    let (name, key, value) = ("put", [7u8; 16], [8u8; 100]);
    Box::new(move || {
        black_box((black_box(name).to_owned(), black_box(&key).to_vec(), black_box(&value).to_vec()));
    })
}

fn copy_message() -> Work {
    let (message, mut out) = (message(), Vec::new());
    Box::new(move || {
        out.clear();
        out.extend_from_slice(black_box(&message));
        black_box(&out);
    })
}

// ------------------------------------------------------------------------------------------------ keys and cells

fn encode_key() -> Work {
    let partition = [7, 0, 7, 7, 7, 7, 7, 7, 0, 7, 7, 7, 7, 7, 7, 7];
    Box::new(move || {
        black_box(key::encode(KV_TABLE, black_box(&partition), b""));
    })
}

fn copy_key() -> Work {
    let engine_key = key::encode(KV_TABLE, &[7; 16], b"");
    Box::new(move || {
        black_box(black_box(&engine_key).to_vec());
    })
}

fn value_cell(stamp: i64) -> Cell {
    Cell { stamp: Stamp(stamp), content: Content::Value(Bytes::from(vec![8; 100])) }
}

fn merge() -> Work {
    let (older, newer) = (value_cell(1), value_cell(2));
    Box::new(move || {
        black_box(cell::merge(black_box(&older).clone(), black_box(&newer).clone()));
    })
}

fn clone_cells() -> Work {
    let (older, newer) = (value_cell(1), value_cell(2));
    Box::new(move || {
        black_box((black_box(&older).clone(), black_box(&newer).clone()));
    })
}

fn look_up() -> Work {
    let (ring, mut number) = (Ring::even(4, 3), 0);
    Box::new(move || {
        number += 1;
        black_box(ring.replicas(&scattered(number)));
    })
}

fn look_up_map() -> Work {
    let ring = Ring::even(4, 3);
    let ranges = ring.ranges().iter();
    let owners: BTreeMap<Vec<u8>, Vec<NodeId>> =
        ranges.map(|range| (range.token.to_vec(), range.replicas.clone())).collect();
    let mut number = 0;
    Box::new(move || {
        number += 1;
        let key = scattered(number);
        black_box(owners.range::<[u8], _>((Bound::Included(&key[..]), Bound::Unbounded)).next());
    })
}

// ------------------------------------------------------------------------------------------------ the memtable

const KEYS: u32 = 1_000;

fn scattered(number: u32) -> [u8; 16] {
    u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes()
}

fn boxed(number: u32, stamp: i64) -> (Box<[u8]>, Box<[u8]>) {
    let engine_key = key::encode(KV_TABLE, &scattered(number), b"");
    (engine_key.into_boxed_slice(), memtable::pack(&value_cell(stamp)))
}

/// Cells that are there before the first is measured, and up to which more come: as many as make a search wait for
/// memory.
const CELLS: Range<u32> = 200_000..1_000_000;

/// As the log's writer does with a batch.
fn merge_all(memory: &mut memtable::Memory, numbers: Range<u32>, stamp: i64) {
    let engine_key = |number: u32| key::encode(KV_TABLE, &scattered(number), b"")[..].into();
    let keys: Vec<sorted_cells::Key> = numbers.map(engine_key).collect();
    for keys in keys.chunks(250) {
        let places = memory.find(keys);
        for (key, place) in keys.iter().zip(places) {
            let new = memtable::Prepared { key: key.clone(), place, cell: &value_cell(stamp), packed: None };
            black_box(memory.merge(new));
        }
    }
}

fn memory_of_many() -> memtable::Memory {
    let mut memory = memtable::Memory::default();
    merge_all(&mut memory, 0..CELLS.start, 1);
    memory
}

fn map_of_many() -> BTreeMap<Box<[u8]>, Box<[u8]>> {
    (0..CELLS.start).map(|number| boxed(number, 1)).collect()
}

fn insert() -> Work {
    let (mut memory, mut cells) = (memory_of_many(), CELLS.start);
    Box::new(move || {
        if cells == CELLS.end {
            (memory, cells) = (memory_of_many(), CELLS.start);
        }
        merge_all(&mut memory, cells..cells + KEYS, 1);
        cells += KEYS;
    })
}

fn insert_map() -> Work {
    let (mut map, mut cells) = (map_of_many(), CELLS.start);
    Box::new(move || {
        if cells == CELLS.end {
            (map, cells) = (map_of_many(), CELLS.start);
        }
        map.extend((cells..cells + KEYS).map(|number| boxed(number, 1)));
        cells += KEYS;
    })
}

fn merge_in() -> Work {
    let (mut memory, mut stamp) = (memory_of_many(), 1);
    Box::new(move || {
        stamp += 1;
        let first = stamp as u32 * KEYS % CELLS.start;
        merge_all(&mut memory, first..first + KEYS, stamp);
    })
}

fn merge_in_map() -> Work {
    let (mut map, mut stamp) = (map_of_many(), 1);
    Box::new(move || {
        stamp += 1;
        let first = stamp as u32 * KEYS % CELLS.start;
        map.extend((first..first + KEYS).map(|number| boxed(number, stamp)));
    })
}

// ------------------------------------------------------------------------------------------------ the log

/// A batch of mutations through the store: queue, log thread, one fsync, memtable, answers.
fn append<const BATCH: u32>() -> Work {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    // Without a window: nobody else is to be waited for.
    let config = Config { memtable_bytes_max: 1 << 32, commit_group_window_us: 0, ..Config::default() };
    let entered = runtime.enter();
    let opened = Store::open(dir.path(), &config, Disk::real(), Drive::Thread, Arc::default(), |_| ());
    drop(entered);
    let (store, _) = opened.expect("a fresh directory opens");
    let mut number = 0;
    Box::new(move || {
        let _ = &dir; // kept until the last batch
        runtime.block_on(async {
            let mut answers = Answers::default();
            for _ in 0..BATCH {
                number += 1;
                let partition = Bytes::copy_from_slice(&scattered(number));
                let mutation = Mutation::single(KV_TABLE, partition, value_cell(i64::from(number)));
                store.apply(Arc::new(mutation), answers.expect(NodeId(0)));
            }
            while let Some(answer) = answers.next().await {
                black_box(answer);
            }
        });
    })
}

/// The same rows in one transaction and the same cells in a map, and nothing else.
fn sqlite<const BATCH: u32>() -> Work {
    let dir = tempfile::tempdir().expect("a directory");
    let connection = rusqlite::Connection::open(dir.path().join("bare.db")).expect("a fresh file opens");
    let set_up = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; \
                  CREATE TABLE log(sequence INTEGER PRIMARY KEY, key BLOB, value BLOB);";
    connection.execute_batch(set_up).expect("a fresh file takes a table");
    let (mut map, mut number) = (BTreeMap::new(), 0);
    Box::new(move || {
        let _ = &dir; // kept until the last batch
        let first = number + 1;
        let run = |sql: &str| connection.prepare_cached(sql)?.execute([]);
        let mut batch = || -> rusqlite::Result<usize> {
            run("BEGIN IMMEDIATE")?;
            let mut insert = connection.prepare_cached("INSERT INTO log(key, value) VALUES (?1, ?2)")?;
            for _ in 0..BATCH {
                number += 1;
                insert.execute((&scattered(number)[..], &[8u8; 100][..]))?;
            }
            run("COMMIT")
        };
        batch().expect("the file takes rows");
        map.extend((first..=number).map(|number| boxed(number, 1)));
    })
}
