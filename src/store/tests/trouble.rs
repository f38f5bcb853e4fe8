//! Full disks, failing files and overload: refused with a reason, never acknowledged, reads go on.

use super::ways::fill;
use super::*;
use crate::key;

/// What a write is answered if it was refused.
fn refused(answer: &ApplyAnswer) -> &str {
    match answer {
        ApplyAnswer::Failed(Failure::Refused(reason)) => reason,
        other => panic!("{other:?} is no refusal"),
    }
}

fn limit_pages(connection: &Connection, more: Option<i64>) {
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let max = more.map_or(1_000_000_000, |more| pages + more);
    connection.pragma_update_and_check(None, "max_page_count", max, |_| Ok(())).unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_passes() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("before", value(1, "v"))]).await;
    meddle_with_log(&store, |log| limit_pages(log, Some(1))).await;
    let answer = apply(&store, kv("large", value(1, [0; 50_000]))).await;
    assert!(refused(&answer).starts_with("disk full: log.db cannot grow"), "{answer:?}");
    assert!(refused(&answer).ends_with("nothing was stored on this server"));
    assert!(store.not_writable().unwrap().starts_with("disk full"));
    let answer = hint(&store, 1, kv("large", value(1, [0; 50_000])), 0).await;
    assert!(matches!(answer, Err(Failure::Refused(_))));
    assert_eq!(store.hint_totals(), BTreeMap::new());
    assert_eq!(get(&store, "before"), Some(value(1, "v")));
    assert_eq!(get(&store, "large"), None);
    assert_eq!(store.shared().stats.mutations_refused.get(), 1);

    // Space comes back. Nobody writes, and yet the reason goes away.
    meddle_with_log(&store, |log| limit_pages(log, None)).await;
    until("the store notices", || store.not_writable().is_none()).await;
    apply_all(&store, [kv("large", value(1, [0; 50_000]))]).await;
    let image = copy_of(dir.path());
    let (again, _) = open(image.path(), &tiny()); // without a gap in the sequences
    assert_eq!(everything(&again, 10), everything(&store, 10));
}

#[tokio::test]
async fn while_the_disk_stays_full_it_says_so() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    meddle_with_log(&store, |log| limit_pages(log, Some(1))).await;
    refused(&apply(&store, kv("large", value(1, [0; 50_000]))).await);
    tokio::time::sleep(Duration::from_millis(1300)).await; // longer than one probe
    assert!(store.not_writable().is_some());
    store.close().await;
    assert!(store.not_writable().is_some());
}

#[tokio::test]
async fn a_flush_without_space_keeps_the_memtable_and_succeeds_later() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    meddle_with_base(&store, |base| limit_pages(base, Some(2)));
    // As long as there is room in memory writes are taken; then they are refused, not left waiting.
    let mut taken = Vec::new();
    let reason = loop {
        let key = format!("key {}", taken.len());
        match apply(&store, kv(&key, value(1, [0; 500]))).await {
            ApplyAnswer::Applied => taken.push(key),
            answer => break refused(&answer).to_owned(),
        }
        assert!(taken.len() < 2000, "memory is bounded");
    };
    assert!(
        reason.starts_with("the memtable cannot be flushed to data.db: database or disk is full"),
        "{reason}"
    );
    assert!(store.not_writable().is_some());
    assert!(gauge(&store, "frozen_cells") > 0);
    for key in &taken {
        assert_eq!(get(&store, key), Some(value(1, [0; 500])));
    }
    meddle_with_base(&store, |base| limit_pages(base, None));
    until("the flush is done", || store.shared().stats.flushes.get() > 0).await;
    until("writes are taken", || store.not_writable().is_none()).await;
    fill(&store, 100, "after").await;
    assert_eq!(everything(&store, 1000).len(), taken.len() + 100);
}

#[tokio::test]
async fn a_log_that_fails_takes_no_more_writes_until_a_restart() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("before", value(1, "v"))]).await;
    meddle_with_log(&store, |log| log.execute_batch("ALTER TABLE log RENAME TO gone").unwrap()).await;
    let answer = apply(&store, kv("a", value(1, "v"))).await;
    assert!(refused(&answer).contains("log.db failed"), "{answer:?}");
    let answer = apply(&store, kv("b", value(1, "v"))).await;
    assert!(refused(&answer).contains("restart the server"), "{answer:?}");
    assert!(hint(&store, 1, kv("b", value(1, "v")), 0).await.is_err());
    assert!(store.not_writable().unwrap().contains("log.db failed"));
    assert_eq!(get(&store, "before"), Some(value(1, "v")));
    store.close().await;
}

#[tokio::test]
async fn somebodys_lock_on_the_log_refuses_writes_until_it_is_let_go() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    let tool = Connection::open(dir.path().join("log.db")).unwrap();
    tool.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = apply(&store, kv("a", value(1, "v"))).await;
    assert!(refused(&answer).contains("another program has locked log.db"), "{answer:?}");
    tool.execute_batch("ROLLBACK").unwrap();
    apply_all(&store, [kv("a", value(1, "v"))]).await;
    assert_eq!(store.not_writable(), None);
}

/// With a task for a writer nothing is taken from the queue before the test awaits.
#[tokio::test]
async fn past_the_bounds_of_the_queue_the_answer_is_overloaded_at_once() {
    for config in [
        Config { log_queue_mutations_max: 10, ..Config::default() },
        Config { log_queue_bytes_max: 10 * 1_000, ..Config::default() },
    ] {
        let dir = directory();
        let (store, _) = try_open(dir.path(), &config, Drive::task()).unwrap();
        let mut answers = Answers::default();
        for number in 0..30u8 {
            store.apply(kv([number], value(1, [0; 900])), answers.expect(HERE));
        }
        let (mut applied, mut overloaded) = (0, 0);
        while let Some((_, answer)) = answers.next().await {
            match answer {
                ApplyAnswer::Applied => applied += 1,
                ApplyAnswer::Failed(Failure::Overloaded) => overloaded += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!((9..=10).contains(&applied), "{applied}");
        assert_eq!(applied + overloaded, 30);
        assert_eq!(everything(&store, 100).len(), applied);
        assert_eq!(store.shared().stats.mutations_refused.get(), overloaded as u64);
    }
}

#[tokio::test]
async fn a_store_that_goes_abandons_what_waits() {
    let dir = directory();
    let (store, _) = try_open(dir.path(), &tiny(), Drive::task()).unwrap();
    let mut answers = Answers::default();
    store.apply(kv("a", value(1, "v")), answers.expect(HERE));
    drop(store);
    assert_eq!(answers.next().await.unwrap().1, ApplyAnswer::Failed(Failure::Abandoned));
}

fn number(value: i64) -> Vec<(String, i64)> {
    vec![("a number".to_owned(), value)]
}

/// The flusher is a task: what is asked before the test awaits, it finds when all has happened.
#[tokio::test]
async fn who_waits_for_a_number_to_be_remembered_is_answered_whatever_happens() {
    let dir = directory();
    let (store, _) = try_open(dir.path(), &tiny(), Drive::task()).unwrap();
    let mut answers = Answers::default();
    store.remember(number(1), answers.expect(HERE));
    store.shared().latch("a disk that cannot be trusted");
    store.remember(number(2), answers.expect(HERE));
    for _ in 0..2 {
        let (_, answer) = answers.next().await.unwrap();
        assert_eq!(answer, Err(Failure::Refused("a disk that cannot be trusted".into())));
    }
    drop(store);
    let (store, _) = try_open(dir.path(), &tiny(), Drive::task()).unwrap();
    assert_eq!(store.remembered("a number"), None);
    ask_one(HERE, |to| store.remember(number(3), to)).await.unwrap();
    store.close().await;
    let answer = ask_one(HERE, |to| store.remember(number(4), to)).await;
    assert_eq!(answer, Err(Failure::Refused("this server is stopping".into())));
}

#[tokio::test]
async fn an_older_horizon_that_comes_late_takes_nothing_back() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    store.cut_leaves(vec![vec![0xff]]).unwrap();
    for (stamp, expired_s) in [(100, 5), (60, 7)] {
        let horizon = Horizon { stamp: Stamp(stamp), expired_s };
        ask_one(HERE, |to| store.collect_range(0, horizon, to)).await.unwrap();
    }
    assert_eq!(store.horizon(0), Horizon { stamp: Stamp(100), expired_s: 7 });
    assert_eq!(store.remembered(&collected_name(0)), Some(100));
    assert_eq!(store.remembered(&expired_name(0)), Some(7));
}

/// Until they are dropped, collected cells are read like others, and only then left out: that is work, too.
#[tokio::test]
async fn collected_cells_count_against_the_bounds_of_pages_and_digests() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    store.cut_leaves(vec![vec![0xff]]).unwrap();
    let deleted = |number: i64| kv(number.to_be_bytes(), tombstone(1 + number));
    apply_all(&store, (0..3_000).map(deleted)).await;
    apply_all(&store, [kv("z", value(9_999, "live"))]).await;
    let horizon = Horizon { stamp: Stamp(3_000), expired_s: 0 };
    ask_one(HERE, |to| store.collect_range(0, horizon, to)).await.unwrap();

    let page = store.page(&[], &[], 10).unwrap();
    assert_eq!((page.cells.len(), page.complete), (0, false));
    let tenth = key::encode(KV_TABLE, &9i64.to_be_bytes(), b"");
    assert_eq!(page.upto, tenth);
    let digest = store.digest(&[], &[], 10, 0).unwrap();
    assert_eq!(digest, Digest { cells: 0, live: 0, digest: 0, upto: tenth, complete: false });

    let mut digests = vec![digest];
    while !digests.last().unwrap().complete {
        let stopped = digests.last().unwrap().upto.clone();
        digests.push(store.digest(&stopped, &[], 1_500, 0).unwrap());
    }
    assert_eq!(digests.iter().map(|digest| digest.cells).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(everything(&store, 700).len(), 1);
}

#[tokio::test]
async fn numbers_that_are_remembered_do_not_make_the_write_ahead_log_grow() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    for value in 0..300 {
        ask_one(HERE, |to| store.remember(number(value), to)).await.unwrap();
    }
    let bytes = std::fs::metadata(dir.path().join("data.db-wal")).unwrap().len();
    assert!(
        bytes < 300 * 4096 / 2,
        "{bytes} bytes are a page for each number: it was never copied into the file"
    );
}

/// A shell that reads the log while a server starts: the write-ahead log cannot be ended, and nothing may follow it.
#[tokio::test]
async fn a_log_that_another_program_holds_is_not_written_on() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("a", value(1, "v"))]).await;
    let image = copy_of(dir.path()); // as a kill leaves it
    let shell = Connection::open(image.path().join("log.db")).unwrap();
    shell.execute_batch("BEGIN; SELECT count(*) FROM log;").unwrap();
    let refused =
        try_open(image.path(), &tiny(), Drive::Thread).err().expect("the shell still reads").to_string();
    assert!(refused.contains("another program uses it"), "{refused}");
    drop(shell);
    let (again, _) = open(image.path(), &tiny());
    assert_eq!(get(&again, "a"), Some(value(1, "v")));
}

#[tokio::test]
async fn free_pages_are_given_back_many_in_one_transaction() {
    let FilledBase { writer: mut base, keys, _dir, .. } = FilledBase::new(4_000, 1_000);
    base.drop_cells(&keys).unwrap();
    let free = |base: &BaseWriter| -> i64 {
        base.connection().pragma_query_value(None, "freelist_count", |row| row.get(0)).unwrap()
    };
    let before = free(&base);
    assert!(before > 300, "{before}");
    assert!(base.give_back(100, 64).unwrap());
    assert_eq!(free(&base), before - 100);
    while base.give_back(100, 64).unwrap() {}
    assert!(free(&base) < 64);
}

/// What follows a start relies on the mark: on a disk that does not sync it a log that was cut would go unnoticed.
#[cfg(unix)]
#[tokio::test]
async fn a_mark_that_cannot_be_synced_refuses_the_start() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, [kv("a", value(1, "v"))]).await;
    store.close().await;
    drop(store);
    let mark = dir.path().join("log.mark");
    std::fs::rename(&mark, dir.path().join("kept")).unwrap();
    std::os::unix::fs::symlink("/dev/null", &mark).unwrap(); // which takes writes, and no sync
    let refused =
        try_open(dir.path(), &tiny(), Drive::Thread).err().expect("it cannot be synced").to_string();
    assert!(refused.contains("log.mark") && refused.contains("start again"), "{refused}");
    std::fs::rename(dir.path().join("kept"), &mark).unwrap();
    assert_eq!(get(&open(dir.path(), &tiny()).0, "a"), Some(value(1, "v")));
}
