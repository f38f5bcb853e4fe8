//! Writing and reading, on every way a cell can take.

use super::super::group::{ENOUGH, SEVERAL};
use super::*;

#[tokio::test]
async fn what_is_applied_is_read() {
    let dir = directory();
    let (store, recovered) = open(dir.path(), &tiny());
    assert_eq!((recovered.rows_replayed, recovered.largest_stamp), (0, Stamp(0)));
    assert_eq!(get(&store, "a"), None);
    assert_eq!(apply(&store, kv("a", value(1, "one"))).await, ApplyAnswer::Applied);
    assert_eq!(get(&store, "a"), Some(value(1, "one")));
    assert_eq!(apply(&store, kv("a", tombstone(2))).await, ApplyAnswer::Applied);
    assert_eq!(get(&store, "a"), Some(tombstone(2)));
    assert_eq!(apply(&store, kv("a", expiring(3, 9, "three"))).await, ApplyAnswer::Applied);
    assert_eq!(get(&store, "a"), Some(expiring(3, 9, "three")));
    assert_eq!(apply(&store, kv("", value(4, ""))).await, ApplyAnswer::Applied);
    assert_eq!(get(&store, ""), Some(value(4, "")));
}

/// Whether the newer cell is in the memtable or already in data.db.
#[tokio::test]
async fn an_older_cell_is_behind_and_the_same_cell_is_not() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("a", value(10, "m"))]).await;
    for place in ["memtable", "data.db"] {
        if place == "data.db" {
            fill(&store, 1000, "filler").await;
            quiet(&store).await;
            assert!(store.shared().stats.flushes.get() > 0);
        }
        for (cell, answer) in [
            (value(9, "z"), ApplyAnswer::Behind(Stamp(10))),
            (value(10, "l"), ApplyAnswer::Behind(Stamp(10))),
            (value(10, "m"), ApplyAnswer::Applied),
            (tombstone(9), ApplyAnswer::Behind(Stamp(10))),
        ] {
            assert_eq!(apply(&store, kv("a", cell)).await, answer, "in {place}");
        }
        assert_eq!(get(&store, "a"), Some(value(10, "m")), "in {place}");
    }
    assert_eq!(apply(&store, kv("a", value(10, "n"))).await, ApplyAnswer::Applied);
    assert_eq!(apply(&store, kv("a", expiring(10, 1, "a"))).await, ApplyAnswer::Applied);
    assert_eq!(apply(&store, kv("a", value(10, "zzz"))).await, ApplyAnswer::Behind(Stamp(10)));
    assert_eq!(apply(&store, kv("a", tombstone(10))).await, ApplyAnswer::Applied);
    assert_eq!(apply(&store, kv("a", expiring(10, 99, "a"))).await, ApplyAnswer::Behind(Stamp(10)));
    assert_eq!(get(&store, "a"), Some(tombstone(10)));
    assert_eq!(store.shared().stats.mutations_behind.get(), 8);
}

#[tokio::test]
async fn behind_names_the_largest_stamp_of_a_mutation_of_several_cells() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    let row = |cells: &[(&'static str, i64)]| {
        let cells =
            cells.iter().map(|&(column, stamp)| (Bytes::from(column), value(stamp, column))).collect();
        Arc::new(Mutation { table: TableId(7), partition: Bytes::from("p"), cells })
    };
    assert_eq!(apply(&store, row(&[("a", 5), ("b", 8), ("c", 1)])).await, ApplyAnswer::Applied);
    assert_eq!(apply(&store, row(&[("a", 6), ("b", 6), ("c", 6)])).await, ApplyAnswer::Behind(Stamp(8)));
    assert_eq!(apply(&store, row(&[("a", 4), ("b", 7), ("d", 1)])).await, ApplyAnswer::Behind(Stamp(8)));
    let slice = Slice {
        table: TableId(7),
        partition: Bytes::from("p"),
        first: Bytes::new(),
        last: None,
        cells_max: 10,
    };
    let stamps: Vec<i64> = store.read(&slice).unwrap().cells.iter().map(|(_, cell)| cell.stamp.0).collect();
    assert_eq!(stamps, [6, 8, 6, 1]);
}

#[tokio::test]
async fn in_one_batch_mutations_count_in_their_order() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    let mut answers = Answers::default();
    for stamp in [5, 3, 6] {
        store.apply(kv("a", value(stamp, "v")), answers.expect(NodeId(stamp as u32)));
    }
    let mut given = BTreeMap::new();
    while let Some((node, answer)) = answers.next().await {
        given.insert(node.0, answer);
    }
    let expected = [(3, ApplyAnswer::Behind(Stamp(5))), (5, ApplyAnswer::Applied), (6, ApplyAnswer::Applied)];
    assert_eq!(given, BTreeMap::from(expected));
}

#[tokio::test(start_paused = true)]
async fn several_writes_at_once_are_committed_together_and_one_after_the_other_waits_for_nothing() {
    let window = Duration::from_millis(100);
    let config = Config { commit_group_window_us: window.as_micros() as u64, ..tiny() };
    let dir = directory();
    let (store, _) = try_open(dir.path(), &config, Drive::task()).unwrap();
    // How long, in virtual time, this many puts at once took.
    let took = async |puts: usize| {
        let began = Instant::now();
        let all = apply_all(&store, (0..puts).map(|key| kv([key as u8], value(1, "v"))));
        tokio::time::timeout(10 * window, all).await.expect("the writer is told of them");
        began.elapsed()
    };
    let a_window = window..2 * window;
    for _ in 0..3 {
        assert_eq!(took(1).await, Duration::ZERO, "nobody else writes");
    }
    assert_eq!(took(SEVERAL).await, Duration::ZERO, "nobody had before");
    assert!(a_window.contains(&took(1).await), "others may come");
    assert_eq!(took(1).await, Duration::ZERO, "none came");
    assert_eq!(took(ENOUGH).await, Duration::ZERO);
    assert_eq!(took(ENOUGH).await, Duration::ZERO, "they are enough");
    assert!(a_window.contains(&took(ENOUGH - 1).await), "they are not");
    let began = Instant::now();
    let (answer, ()) = tokio::join!(apply(&store, kv("last", value(1, "v"))), store.close());
    assert_eq!((answer, began.elapsed()), (ApplyAnswer::Applied, Duration::ZERO), "nobody else comes");

    let config = Config { durability: Durability::ProcessCrash, ..config };
    let dir = directory();
    let (store, _) = try_open(dir.path(), &config, Drive::task()).unwrap();
    let began = Instant::now();
    for keys in [0..SEVERAL, SEVERAL..SEVERAL + 1] {
        apply_all(&store, keys.map(|key| kv([key as u8], value(1, "v")))).await;
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "there is no fsync to be spared");
}

/// Columns 00 to 99, some rewritten, in data.db, frozen and memtable; beside them other tables and partitions.
#[tokio::test]
async fn slices_run_across_memtable_frozen_and_base() {
    let dir = directory();
    let (store, _) = try_open(dir.path(), &tiny(), Drive::task()).unwrap();
    let cell = |table: u16, partition: &'static str, column: usize, stamp: i64| {
        let cells = vec![(Bytes::from(format!("{column:02}")), value(stamp, vec![b'x'; 700]))];
        Arc::new(Mutation { table: TableId(table), partition: Bytes::from(partition), cells })
    };
    let mut expected = BTreeMap::new();
    let mut stamp = 0;
    // 100 cells of 700 bytes a round: every second round freezes a memtable; with tasks it stays frozen until we wait.
    for round in 0..5 {
        for column in (0..100).filter(|column| column % (round + 1) == 0) {
            stamp += 1;
            apply_all(&store, [cell(1, "p", column, stamp)]).await;
            expected.insert(format!("{column:02}"), stamp);
            apply_all(&store, [cell(1, "p\0", column, stamp), cell(2, "p", column, stamp)]).await;
        }
        let slice = |first: &'static str, last: Option<&'static str>, cells_max| Slice {
            table: TableId(1),
            partition: Bytes::from("p"),
            first: Bytes::from(first),
            last: last.map(Bytes::from),
            cells_max,
        };
        let read = |slice: &Slice| {
            let found = store.read(slice).unwrap();
            let stamps = found
                .cells
                .iter()
                .map(|(column, cell)| (String::from_utf8(column.to_vec()).unwrap(), cell.stamp.0));
            (stamps.collect::<Vec<_>>(), found.complete)
        };
        let part = |from: &str, to: &str| -> Vec<(String, i64)> {
            expected.range(from.to_owned()..to.to_owned()).map(|(c, s)| (c.clone(), *s)).collect()
        };
        assert_eq!(read(&slice("", None, 1000)), (part("", "~"), true));
        assert_eq!(read(&slice("", None, 100)), (part("", "~"), true));
        assert_eq!(read(&slice("", None, 99)), (part("", "99"), false));
        assert_eq!(read(&slice("20", Some("29"), 1000)), (part("20", "3"), true));
        assert_eq!(read(&slice("20", Some("20"), 1)), (part("20", "21"), true));
        assert_eq!(read(&slice("205", Some("2"), 5)), (vec![], true));
        assert_eq!(read(&slice("95", None, 3)), (part("95", "98"), false));
    }
    assert!(store.shared().stats.flushes.get() >= 2);
}

#[tokio::test]
async fn a_large_answer_is_cut_by_bytes_and_says_so() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..8u8 {
        apply_all(&store, [kv([number], value(1, vec![number; 1_500_000]))]).await;
    }
    let page = store.page(&[], &[], 100).unwrap();
    assert_eq!((page.cells.len(), page.complete), (2, false));
    assert_eq!(everything(&store, 100).len(), 8);
    apply_all(&store, [kv([0], value(2, vec![9; 6_000_000]))]).await;
    assert_eq!(store.page(&[], &[], 100).unwrap().cells.len(), 1, "a cell larger than an answer is one");
    assert_eq!(everything(&store, 100).len(), 8);
}

/// All cells of a mutation or none, while memtables are frozen and flushed under the readers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_is_seen_whole() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    let reader = store.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let looking = std::thread::spawn(move || {
        let slice = Slice {
            table: KV_TABLE,
            partition: Bytes::from("p"),
            first: Bytes::new(),
            last: None,
            cells_max: 100,
        };
        let mut looks = 0;
        while !stopped.load(Atomic::Relaxed) {
            let stamps: Vec<Stamp> =
                reader.read(&slice).unwrap().cells.iter().map(|(_, cell)| cell.stamp).collect();
            assert!(stamps.is_empty() || stamps.len() == 20);
            assert!(stamps.iter().all(|stamp| *stamp == stamps[0]), "half a mutation: {stamps:?}");
            looks += 1;
        }
        looks
    });
    for stamp in 1..400 {
        let cells = (0..20u8).map(|column| (Bytes::from(vec![column]), value(stamp, [0; 200]))).collect();
        let mutation = Mutation { table: KV_TABLE, partition: Bytes::from("p"), cells };
        apply_all(&store, [Arc::new(mutation)]).await;
        if stamp % 50 == 0 {
            fill(&store, 400, &format!("filler {stamp}")).await;
        }
    }
    stop.store(true, Atomic::Relaxed);
    assert!(looking.join().unwrap() > 0);
    assert!(store.shared().stats.flushes.get() > 0);
}

#[tokio::test]
async fn many_mutations_share_a_commit() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    apply_all(&store, (0..2000u32).map(|number| kv(number.to_be_bytes(), value(1, "v")))).await;
    let stats = &store.shared().stats;
    assert_eq!(stats.mutations_applied.get(), 2000);
    assert!(stats.commits.get() < 500, "{} commits", stats.commits.get());
}

/// Twenty times the memtable, and reads find everything, most of it in data.db.
#[tokio::test]
async fn data_may_be_much_larger_than_memory() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    let cells = 8000u32;
    for start in (0..cells).step_by(100) {
        let scattered = |number: u32| number.wrapping_mul(2_654_435_761).to_be_bytes();
        let put = |number| kv(scattered(number), value(i64::from(number) + 1, [0; 150]));
        apply_all(&store, (start..start + 100).map(put)).await;
        assert!(gauge(&store, "memtable_bytes") < 2 * 100_000 + 100_000);
    }
    quiet(&store).await;
    assert!(store.shared().stats.flushes.get() >= 10);
    assert!(gauge(&store, "log_rows") < 2000, "the log forgets what was flushed");
    let all = everything(&store, 700);
    assert_eq!(all.len(), cells as usize);
    assert!(all.is_sorted_by(|(a, _), (b, _)| a < b));
    let before = store.shared().stats.slices_read_base.get();
    let oldest = 5u32.wrapping_mul(2_654_435_761).to_be_bytes();
    assert_eq!(get(&store, oldest), Some(value(6, [0; 150])));
    assert_eq!(store.shared().stats.slices_read_base.get(), before + 1);
    let newest = (cells - 1).wrapping_mul(2_654_435_761).to_be_bytes();
    apply_all(&store, [kv(newest, value(1_000_000, "new"))]).await;
    assert_eq!(get(&store, newest), Some(value(1_000_000, "new")));
    assert_eq!(
        store.shared().stats.slices_read_base.get(),
        before + 1,
        "a fresh cell needs no look at the disk"
    );
}

/// A transaction that forgets many rows would hold up those who write. Each of them takes some along instead.
#[tokio::test(start_paused = true)]
async fn flushed_rows_are_forgotten_with_writes_or_once_there_are_none() {
    let dir = directory();
    let (store, _) = try_open(dir.path(), &tiny(), Drive::task()).unwrap();
    let fill = |stamp| (0..600).map(move |number: u32| kv(number.to_be_bytes(), value(stamp, [0; 150])));
    apply_all(&store, fill(1)).await;
    let mut stamp = 1;
    let mut write = async || {
        stamp += 1;
        apply_all(&store, [kv("again and again", value(stamp, ""))]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        gauge(&store, "log_rows_flushed")
    };
    let mut flushed = 0;
    while flushed == 0 && store.shared().stats.flushes.get() == 0 {
        flushed = write().await;
    }
    assert!(flushed > 300, "{flushed} rows of the memtable that was full");
    let mut writes = 0;
    while write().await > 0 {
        writes += 1;
        assert!(writes < flushed, "two rows are forgotten for each that is written");
    }
    assert!(writes > flushed / 4, "{flushed} rows were forgotten with {writes} writes");
    let long = |number: i64| kv("long", value(number, [0; 20_000]));
    apply_all(&store, fill(2)).await;
    write().await;
    let mut commits = 0;
    while gauge(&store, "frozen_cells") > 0 || gauge(&store, "log_rows_flushed") > 0 {
        apply_all(&store, [long(commits)]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        commits += 1;
        assert!(commits < 20, "short rows make room for long ones");
    }
    apply_all(&store, fill(3)).await;
    assert!(gauge(&store, "frozen_cells") > 300);
    quiet(&store).await;
}

/// SQLite puts a row that is longer than a quarter of its page on a page of its own, unless the table has row ids.
#[tokio::test]
async fn cells_of_any_length_take_little_more_than_twice_their_bytes() {
    for value_bytes in [20, 100, 900, 1_000, 1_300, 2_030, 3_000, 5_000, 20_000] {
        let empty = FilledBase::new(0, 0).writer.base().bytes() as usize;
        let base = FilledBase::new(1_000, value_bytes);
        base.writer.checkpoint_now().unwrap();
        let taken = base.writer.base().bytes() as usize - empty;
        // The most is a little more than half a page, which then holds one.
        assert!(taken < base.bytes * 21 / 10, "{taken} bytes for {} of values of {value_bytes}", base.bytes);
    }
}

/// However long a cell is and the one that was there before, that is what is read, and nothing is left of the other.
#[tokio::test]
async fn long_cells_and_short_ones_take_each_others_place() {
    let mut base = FilledBase::new(50, 100);
    for (stamp, value_bytes, long) in [(2, 3_000, 50), (3, 4_000, 50), (4, 10, 0), (5, 1_200, 50)] {
        base.write(stamp, value_bytes);
        base.compact();
        let expected = Some(value(stamp, vec![0; value_bytes]));
        for key in &base.keys {
            assert_eq!(base.writer.base().get(key).unwrap(), expected);
        }
        assert_eq!(base.long_cells(), long);
    }
    base.writer.drop_cells(&base.keys[10..]).unwrap();
    assert_eq!((base.writer.base().get(&base.keys[10]).unwrap(), base.long_cells()), (None, 10));
}

/// Long cells of two keys change places, by their numbers. Neither is served, and the one that is written anew takes
/// nothing from the other.
#[tokio::test]
async fn a_number_that_is_another_cells_is_not_followed() {
    let damaged = |base: &FilledBase, at: usize| {
        base.writer.base().get(&base.keys[at]).unwrap_err().to_string().contains("fails its checksum")
    };
    for to in ["SELECT 3 - cell", "SELECT 77"] {
        for (newer, left) in [(3_000, 3), (10, 2)] {
            let mut base = FilledBase::new(2, 3_000);
            base.writer.connection().execute_batch(&format!("UPDATE cells SET cell = ({to})")).unwrap();
            assert!(damaged(&base, 0) && damaged(&base, 1));
            let other = base.keys.pop().unwrap();
            base.write(2, newer);
            base.compact();
            assert_eq!(base.writer.base().get(&base.keys[0]).unwrap(), Some(value(2, vec![0; newer])));
            assert_eq!(base.long_cells(), left, "those that were there are nobody's, and stay");
            base.keys.push(other);
            assert!(damaged(&base, 1));
        }
    }
}

/// Readers keep their transactions between reads, but not so long that a write-ahead log cannot begin anew.
#[tokio::test]
async fn reading_lets_no_write_ahead_log_grow() {
    for reads_throughout in [false, true] {
        let dir = directory();
        let (store, _) = open(dir.path(), &Config { cell_cache_bytes: 0, ..tiny() });
        let ending = Arc::new(AtomicBool::new(false));
        let read = || {
            let (ending, reading) = (ending.clone(), store.clone());
            std::thread::spawn(move || {
                while !ending.load(Atomic::Acquire) {
                    everything(&reading, 100);
                }
            })
        };
        let readers: Vec<_> = (0..if reads_throughout { 3 } else { 0 }).map(|_| read()).collect();
        for round in 1..=20 {
            fill(&store, 600, &format!("round {round}")).await;
            quiet(&store).await;
            assert!(store.shared().stats.flushes.get() >= round);
            assert_eq!(get(&store, format!("round {round} 0")), Some(value(1, [0; 200])));
        }
        ending.store(true, Atomic::Release);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(store.shared().stats.slices_read_base.get() >= 10, "of data.db nothing was read");
        let bytes = std::fs::metadata(dir.path().join("data.db-wal")).unwrap().len();
        assert!(bytes < 3_000_000, "{bytes} of the twelve million that were written");
    }
}

/// Nobody writes any more, so there is time; what was written meanwhile may have made the first ones long.
#[tokio::test]
async fn a_flush_that_is_in_time_is_made_of_short_transactions() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    fill(&store, 400, "a memtable and a bit").await;
    quiet(&store).await;
    let stats = &store.shared().stats;
    assert_eq!(stats.flushes.get(), 1);
    let long = stats.flushed_cells.get() / tiny().flush_transaction_cells as u64;
    assert!(stats.flush_commits.get() > 3 * long, "{} transactions", stats.flush_commits.get());
}

/// Whoever brings a hint is content that it is here; to look for something newer in data.db would cost more than to
/// store it.
#[tokio::test]
async fn only_a_write_is_compared_with_what_was_flushed() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("key", value(10, "newer"))]).await;
    fill(&store, 1_000, "until it is flushed").await;
    quiet(&store).await;
    let looks = || gauge(&store, "cell_cache_hits") + gauge(&store, "cell_cache_misses");
    let before = looks();
    let old = || kv("key", value(5, "older"));
    let answer = ask_one(HERE, |to| store.apply_from(Origin::Hint, old(), to)).await;
    assert_eq!((answer, looks()), (ApplyAnswer::Applied, before));
    assert_eq!(apply(&store, old()).await, ApplyAnswer::Behind(Stamp(10)));
    assert_eq!(looks(), before + 1);
    assert_eq!(get(&store, "key"), Some(value(10, "newer")));
}

#[tokio::test]
async fn hints_are_kept_in_order_counted_and_forgotten() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    let mutation = |number: i64| kv("key", value(number, "hinted"));
    let bytes = mutation(0).encoded_len() as u64;
    for number in 1..=5 {
        hint(&store, 3, mutation(number), 100 + number).await.unwrap();
    }
    hint(&store, 2, mutation(9), 500).await.unwrap();
    let held = store.hint_total(NodeId(3));
    assert_eq!((held.count, held.bytes, held.oldest_s), (5, 5 * bytes, Some(101)));
    assert_eq!(store.hint_total(NodeId(1)), HintTotals::default());

    let hints = store.hints(NodeId(3), 10, 1_000_000).unwrap();
    let stamps: Vec<i64> =
        hints.iter().map(|hint| Mutation::decode(&hint.mutation).unwrap().stamp().0).collect();
    assert_eq!(stamps, [1, 2, 3, 4, 5]);
    assert_eq!(store.hints(NodeId(3), 2, 1_000_000).unwrap(), hints[..2]);
    assert_eq!(store.hints(NodeId(3), 10, 2 * bytes as usize).unwrap(), hints[..2]);
    assert_eq!(store.hints(NodeId(3), 10, 0).unwrap(), hints[..1], "at least one");
    assert_eq!(store.hints(NodeId(1), 10, 1_000_000).unwrap(), []);

    forget(&store, 3, vec![hints[0].sequence, hints[2].sequence, 77]).await;
    forget(&store, 3, vec![hints[0].sequence]).await;
    let held = store.hint_total(NodeId(3));
    assert_eq!((held.count, held.bytes, held.oldest_s), (3, 3 * bytes, Some(102)));
    let totals = store.hint_totals();
    store.close().await;
    drop(store);

    let (store, recovered) = open(dir.path(), &tiny());
    assert_eq!(recovered.hints, store.hint_totals());
    let plain = |totals: BTreeMap<NodeId, HintTotals>| -> Vec<_> {
        totals.into_iter().map(|(node, held)| (node, held.count, held.bytes, held.oldest_s)).collect()
    };
    assert_eq!(plain(recovered.hints), plain(totals.clone()));
    assert!(totals[&NodeId(3)].oldest_stamp <= Stamp(2), "the least of those that are kept");
    assert_eq!(recovered.largest_stamp, Stamp(9), "hints count for the largest stamp");
    let rest = store.hints(NodeId(3), 10, 1_000_000).unwrap();
    assert_eq!(rest, [hints[1].clone(), hints[3].clone(), hints[4].clone()]);
    hint(&store, 3, mutation(6), 900).await.unwrap();
    let again = store.hints(NodeId(3), 10, 1_000_000).unwrap();
    assert!(again[3].sequence > again[2].sequence, "new hints come after those from before the restart");
    forget(&store, 3, again.iter().map(|hint| hint.sequence).collect()).await;
    assert_eq!(store.hint_totals().into_keys().collect::<Vec<_>>(), [NodeId(2)]);
    assert_eq!(gauge(&store, "hints"), 1);
}

/// Writes `cells` cells of 200 bytes.
pub(super) async fn fill(store: &Store, cells: usize, prefix: &str) {
    apply_all(store, (0..cells).map(|number| kv(format!("{prefix} {number}"), value(1, [0; 200])))).await;
}

#[tokio::test]
async fn keys_written_over_and_over_do_not_make_the_log_grow() {
    let dir = directory();
    let config = Config { memtable_bytes_max: 10_000_000, log_bytes_max: 100_000, ..tiny() };
    let (store, _) = open(dir.path(), &config);
    apply_all(&store, (0..5_000).map(|number| kv("again", value(number, "and again")))).await;
    until("most of the log is flushed and forgotten", || gauge(&store, "log_rows") < 2_500).await;
    assert!(store.shared().stats.flushes.get() > 0);
    assert_eq!(get(&store, "again"), Some(value(4_999, "and again")));
}

#[tokio::test]
async fn what_was_logged_before_a_restart_counts() {
    let dir = directory();
    let config = Config { memtable_bytes_max: 10_000_000, log_bytes_max: 100_000, ..tiny() };
    let again = |stamps: std::ops::Range<i64>| stamps.map(|stamp| kv("again", value(stamp, [0; 200])));
    let (store, _) = open(dir.path(), &config);
    apply_all(&store, again(0..250)).await;
    assert_eq!(store.shared().stats.flushes.get(), 0, "the log is not full");
    drop(store);
    let (store, _) = open(dir.path(), &config);
    apply_all(&store, again(250..500)).await;
    until("the log is flushed", || store.shared().stats.flushes.get() > 0).await;
}

/// Readers on other threads, while memtables are flushed one after the other and cells of data.db are kept in memory.
#[tokio::test]
async fn no_reader_sees_an_older_cell_than_was_acknowledged_before() {
    const KEYS: usize = 8;
    let dir = directory();
    let (store, _) = open(dir.path(), &Config { cell_cache_bytes: 1_000_000, ..tiny() });
    let acknowledged = Arc::new(AtomicI64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let reader = |first: usize| {
        let (store, acknowledged, over) = (store.clone(), acknowledged.clone(), over.clone());
        std::thread::spawn(move || {
            for number in (first..).take_while(|_| !over.load(Atomic::Acquire)) {
                let least = acknowledged.load(Atomic::Acquire);
                let found = get(&store, format!("again {}", number % KEYS)).map_or(0, |cell| cell.stamp.0);
                assert!(found >= least, "{found} was read, {least} was acknowledged before");
            }
        })
    };
    let readers: Vec<_> = (0..3).map(reader).collect();
    for stamp in 1..=40 {
        let again = (0..KEYS).map(|key| kv(format!("again {key}"), value(stamp, "again")));
        apply_all(&store, again).await;
        acknowledged.store(stamp, Atomic::Release);
        fill(&store, 500, &format!("in between {stamp}")).await;
    }
    over.store(true, Atomic::Release);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    quiet(&store).await;
    assert!(store.shared().stats.flushes.get() > 10);
    assert!(gauge(&store, "cell_cache_hits") > 0);
    apply_all(&store, [kv("again 0", tombstone(41))]).await;
    fill(&store, 500, "at last").await;
    assert_eq!(get(&store, "again 0"), Some(tombstone(41)));
}
