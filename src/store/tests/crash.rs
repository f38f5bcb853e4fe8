//! A process that is killed at any moment loses nothing it acknowledged.

use super::ways::fill;
use super::*;

#[tokio::test]
async fn a_start_replays_exactly_what_was_applied() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    let cells =
        [value(3, "v"), tombstone(4), expiring(-5, i64::MAX, "e"), value(i64::MAX, ""), value(1, [0; 9000])];
    for (index, cell) in cells.iter().enumerate() {
        apply_all(&store, [kv([index as u8, 0], cell.clone())]).await;
    }
    let before = everything(&store, 100);
    drop(store); // without close
    let (store, recovered) = open(dir.path(), &Config::default());
    assert_eq!((recovered.rows_replayed, recovered.largest_stamp), (5, Stamp(i64::MAX)));
    assert_eq!(everything(&store, 100), before);
    store.close().await;
    drop(store);
    let (store, recovered) = open(dir.path(), &Config::default());
    assert_eq!(recovered.rows_replayed, 5);
    assert_eq!(everything(&store, 100), before);
}

#[tokio::test]
async fn after_close_writes_are_abandoned_and_reads_go_on() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    apply_all(&store, [kv("a", value(1, "v"))]).await;
    let mut answers = Answers::default();
    for number in 0..500u32 {
        store.apply(kv(number.to_be_bytes(), value(2, "v")), answers.expect(HERE));
    }
    store.close().await;
    store.close().await;
    while let Some((_, answer)) = answers.next().await {
        assert_eq!(answer, ApplyAnswer::Applied, "what was queued before close is stored");
    }
    assert_eq!(apply(&store, kv("b", value(1, "v"))).await, ApplyAnswer::Failed(Failure::Abandoned));
    assert_eq!(get(&store, "a"), Some(value(1, "v")));
    for name in ["log.db", "data.db"] {
        let wal = dir.path().join(format!("{name}-wal"));
        assert_eq!(wal.metadata().map_or(0, |wal| wal.len()), 0, "{name} alone is complete");
    }
}

/// With tasks for drivers nothing moves between two awaits, so a copy of the files is what a kill leaves.
#[tokio::test]
async fn a_kill_at_any_step_of_a_flush_loses_nothing() {
    let dir = directory();
    let config = Config { flush_transaction_cells: 15, ..tiny() };
    let (store, _) = try_open(dir.path(), &config, Drive::task()).unwrap();
    let mut acknowledged: BTreeMap<String, Cell> = BTreeMap::new();
    let mut images = 0;
    let mut images_in_flush = 0;
    for number in 0..800 {
        // Every third is a newer version of a cell that may be in data.db.
        let key = if number % 3 == 0 { format!("again {}", number % 100) } else { format!("once {number}") };
        let cell = value(number, [2; 300]);
        let (writing, put) = (store.clone(), kv(&key, cell.clone()));
        let answer = tokio::spawn(async move { apply(&writing, put).await });
        while !answer.is_finished() {
            tokio::task::yield_now().await;
            let in_flush = gauge(&store, "frozen_cells") > 0;
            if in_flush || gauge(&store, "log_rows_flushed") > 0 {
                images += 1;
                images_in_flush += u32::from(in_flush);
                let image = copy_of(dir.path());
                let (again, _) = try_open(image.path(), &tiny(), Drive::task()).unwrap();
                for (key, cell) in &acknowledged {
                    let held = get(&again, key).expect("an acknowledged cell is there");
                    assert!(held.order(cell).is_ge(), "{key} is older than acknowledged");
                }
            }
        }
        assert_eq!(answer.await.unwrap(), ApplyAnswer::Applied);
        acknowledged.insert(key, cell);
    }
    assert!(store.shared().stats.flushes.get() >= 2);
    assert!(images >= 20 && images_in_flush >= 10, "{images_in_flush} of {images} images fell into a flush");
}

#[tokio::test]
async fn copies_of_a_running_store_open_with_all_that_was_acknowledged() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    for round in 0..10 {
        fill(&store, 120, &format!("round {round}")).await;
        quiet(&store).await; // so that no file changes while it is copied
        let image = copy_of(dir.path());
        let (again, _) = open(image.path(), &tiny());
        assert_eq!(everything(&again, 1000), everything(&store, 1000), "round {round}");
    }
    assert!(store.shared().stats.flushes.get() > 0);
}

#[tokio::test]
async fn a_backlog_larger_than_the_memtable_is_replayed_in_bounded_memory() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    fill(&store, 3000, "key").await;
    let before = everything(&store, 1000);
    drop(store);
    let mut steps = Vec::new();
    let (store, recovered) =
        Store::open(dir.path(), &tiny(), Disk::real(), Drive::Thread, Arc::default(), |rows| {
            steps.push(rows)
        })
        .unwrap();
    assert_eq!(recovered.rows_replayed, 3000);
    assert!(gauge(&store, "memtable_bytes") <= 101_000);
    assert_eq!(everything(&store, 1000), before);
    quiet(&store).await;
    drop(store);
    let (store, recovered) = open(dir.path(), &tiny());
    assert!(recovered.rows_replayed < 1000, "most of it need not be replayed again");
    assert_eq!(everything(&store, 1000), before);
}

#[tokio::test]
async fn the_largest_stamp_survives_the_flush() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("far ahead", value(1_000_000, "v"))]).await;
    fill(&store, 1000, "key").await;
    quiet(&store).await;
    store.close().await;
    drop(store);
    let (store, recovered) = open(dir.path(), &tiny());
    assert_eq!(recovered.largest_stamp, Stamp(1_000_000));
    assert_eq!(apply(&store, kv("far ahead", value(7, "v"))).await, ApplyAnswer::Behind(Stamp(1_000_000)));
}

#[tokio::test]
async fn a_stopped_directory_is_read_without_changing_it() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    fill(&store, 700, "key").await;
    hint(&store, 3, kv("h", value(1, "v")), 5).await.unwrap();
    assert_eq!(store.shared().stats.hints_stored.get(), 1);
    quiet(&store).await;
    fill(&store, 5, "in the log only").await;
    let expected = everything(&store, 1000);
    let digest = store.digest(&[], &[], 10_000, 0).unwrap();
    let totals = store.hint_totals();
    drop(store); // without close: the write-ahead logs are full
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let files = ["log.db", "log.db-wal", "data.db", "data.db-wal"];
    let before = files.map(bytes);
    assert!(before.iter().all(|file| !file.is_empty()));
    let offline = offline::Offline::open(dir.path(), &tiny(), &Disk::real()).unwrap();
    assert_eq!(offline.page(&[], &[], 10_000).unwrap().cells, expected);
    assert_eq!(offline.digest(&[], &[], 10_000, 0).unwrap(), digest);
    assert_eq!(*offline.hint_totals(), totals);
    assert!(offline.log_rows() > 0);
    drop(offline);
    assert!(before == files.map(bytes), "looking changed a file");
    let (store, _) = open(dir.path(), &tiny());
    assert_eq!(everything(&store, 1000), expected);
}

#[tokio::test]
async fn the_log_is_readable_with_any_tool_while_the_server_runs() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("apple", value(1_700_000_000_123_456, "red")), kv("pear", tombstone(5))]).await;
    let tool = Connection::open(dir.path().join("log.db")).unwrap();
    let line =
        "SELECT partition || ' ' || stamp || ' ' || kind || ' ' || coalesce(value, '-') FROM log_readable";
    let lines: Vec<String> =
        tool.prepare(line).and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect()).unwrap();
    assert_eq!(
        lines,
        ["apple 2023-11-14T22:13:20.123456Z value red", "pear 1970-01-01T00:00:00.000005Z tombstone -"]
    );
    apply_all(&store, [kv("plum", value(1, "blue"))]).await;
}
