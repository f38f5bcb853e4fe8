//! Files that are not as they were written: reported with what and what to do, never skipped in silence.

use super::super::sstable::SLOTS;
use super::*;

/// A closed store with `rows` small cells in the log and nothing in data.db.
async fn closed(rows: usize) -> TempDir {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    apply_all(
        &store,
        (0..rows).map(|number| kv(format!("key {number:04}"), value(number as i64, "some value"))),
    )
    .await;
    store.close().await;
    dir
}

/// A closed store with everything in data.db but the last cell or few.
async fn closed_and_flushed() -> TempDir {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    super::ways::fill(&store, 700, "key").await;
    quiet(&store).await;
    store.close().await;
    dir
}

fn meddle(dir: &TempDir, file: &str, sql: &str) {
    Connection::open(dir.path().join(file)).unwrap().execute_batch(sql).unwrap();
}

fn refusal(dir: &TempDir) -> String {
    match try_open(dir.path(), &Config::default(), Drive::Thread) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_changed_row_is_named_and_nothing_is_served() {
    for change in [
        "value = x'00'",
        "value = NULL",
        "partition = x'00'",
        "\"column\" = x'00'",
        "stamp = stamp + 1",
        "kind = 3",
        "kind = 77",
        "tbl = 70000",
        "expires = 1, kind = 2",
        "checksum = 1",
        "sequence = 1000",
    ] {
        let dir = closed(20).await;
        meddle(&dir, "log.db", &format!("UPDATE log SET {change} WHERE sequence = 7"));
        let refusal = refusal(&dir);
        assert!(refusal.contains("log.db is damaged: "), "{change}: {refusal}");
        let named = if change.starts_with("sequence") {
            "missing (first sequences: 7, 21 to 999)"
        } else {
            "(first sequences: 7)"
        };
        assert!(refusal.contains(named), "{change}: {refusal}");
        assert!(refusal.contains("Nothing was skipped") && refusal.contains("Restore"), "{refusal}");
        assert!(offline::Offline::open(dir.path(), &tiny(), &Disk::real()).is_err());
    }
}

#[tokio::test]
async fn missing_rows_are_damage_wherever_they_were() {
    for (lost, said) in [
        ("sequence = 1", "1 of its rows are missing (first sequences: 1)"),
        ("sequence IN (5, 6, 9)", "3 of its rows are missing (first sequences: 5 to 6, 9)"),
        ("sequence > 15", "its rows end at sequence 15, but once went up to 20"),
        ("true", "its rows end at sequence 0, but once went up to 20"),
    ] {
        let dir = closed(20).await;
        meddle(&dir, "log.db", &format!("DELETE FROM log WHERE {lost}"));
        let refusal = refusal(&dir);
        assert!(refusal.contains(said), "{lost}: {refusal}");
    }
}

/// A checkpoint notes how far the log had come: from then on its end cannot go missing unnoticed.
#[tokio::test]
async fn the_end_of_the_log_is_noted_with_each_checkpoint() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config { memtable_bytes_max: 10_000_000, ..tiny() });
    let mut rows = 0;
    while store.shared().stats.checkpoints.get() < 2 {
        rows += 1;
        assert!(rows < 1000, "a page each, and a checkpoint for each 20 pages");
        apply_all(&store, [kv("a", value(rows, "v"))]).await;
    }
    let copy = directory();
    std::fs::copy(dir.path().join("log.db"), copy.path().join("log.db")).unwrap(); // without the write-ahead log
    let log = Connection::open(copy.path().join("log.db")).unwrap();
    let number = |sql: &str| log.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let noted = number("SELECT value FROM meta WHERE name = 'written_upto'");
    assert!(noted >= 40, "{noted}");
    assert_eq!(number("SELECT max(sequence) FROM log"), noted);
}

#[tokio::test]
async fn a_changed_number_or_hint_is_damage() {
    let dir = closed_and_flushed().await;
    meddle(&dir, "log.db", "UPDATE meta SET value = value + 1 WHERE name = 'flushed_upto'");
    assert!(refusal(&dir).contains("its number flushed_upto fails its checksum"));

    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    hint(&store, 2, kv("a", value(1, "v")), 5).await.unwrap();
    store.close().await;
    drop(store);
    meddle(&dir, "log.db", "UPDATE hints SET created_s = 6");
    assert!(refusal(&dir).contains("1 of its hints fail their checksum"));
}

#[tokio::test]
async fn files_that_are_gone_empty_or_of_another_time_are_refused() {
    let file = |dir: &TempDir, name: &str| dir.path().join(name);
    let dir = closed(20).await;
    std::fs::remove_file(file(&dir, "log.db")).unwrap();
    for _ in 0..2 {
        assert!(refusal(&dir).contains("log.db is damaged: it is missing"), "{}", refusal(&dir));
    }
    std::fs::write(file(&dir, "log.db"), "").unwrap();
    for _ in 0..2 {
        assert!(refusal(&dir).contains("log.db is damaged: it is empty"), "{}", refusal(&dir));
    }

    let dir = closed(20).await;
    std::fs::remove_file(file(&dir, "data.db")).unwrap();
    for _ in 0..2 {
        assert!(refusal(&dir).contains("data.db is damaged: it is new"), "{}", refusal(&dir));
    }
    let dir = closed_and_flushed().await;
    std::fs::remove_file(file(&dir, "data.db")).unwrap();
    for _ in 0..2 {
        assert!(refusal(&dir).contains("it is older than log.db, or was deleted"), "{}", refusal(&dir));
    }

    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    store.close().await;
    let old = copy_of(dir.path());
    drop(store);
    let (store, _) = open(dir.path(), &tiny());
    super::ways::fill(&store, 700, "key").await;
    quiet(&store).await;
    store.close().await;
    drop(store);
    std::fs::copy(file(&old, "log.db"), file(&dir, "log.db")).unwrap();
    assert!(refusal(&dir).contains("it is older than data.db"), "{}", refusal(&dir));
    // A power cut may do that if the log was not synced; then the base has it all, and the log goes on after it.
    std::fs::remove_file(file(&dir, "log.mark")).unwrap(); // which says that it was synced
    let config = Config { durability: Durability::ProcessCrash, ..tiny() };
    let (store, _) = open(dir.path(), &config);
    apply_all(&store, [kv("after", value(1, "v"))]).await;
    let before = everything(&store, 1000);
    store.close().await;
    drop(store);
    let (store, recovered) = open(dir.path(), &tiny());
    assert_eq!(recovered.rows_replayed, 1);
    assert_eq!(everything(&store, 1000), before);
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_not_touched() {
    for (name, known) in [("log.db", 2), ("data.db", 4)] {
        let dir = directory();
        let path = dir.path().join(name);
        std::fs::write(&path, "a letter, not a database; long enough to have a header of a hundred bytes, which is what SQLite reads").unwrap();
        let refusal = refusal(&dir);
        assert!(
            refusal.contains(&format!("{name} is not a file of this server: it is no SQLite database")),
            "{refusal}"
        );
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("a letter"));

        let dir = directory();
        meddle(&dir, name, "CREATE TABLE theirs(x)");
        let before = std::fs::read(dir.path().join(name)).unwrap();
        assert!(
            self::refusal(&dir).contains("not a file of this server: its application id"),
            "{}",
            self::refusal(&dir)
        );
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), before);

        let dir = closed(3).await;
        meddle(&dir, name, &format!("PRAGMA user_version = {}", known + 1));
        let newer = format!("has format {}, this release knows {known}", known + 1);
        assert!(self::refusal(&dir).contains(&newer));
    }
    let nowhere = directory().path().join("nowhere");
    let error = try_open(&nowhere, &tiny(), Drive::Thread).err().unwrap();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
}

/// Format 1 of data.db has no place of their own for long cells, format 2 no sstables, format 3 fewer of them, and
/// checksums without a sign.
#[tokio::test]
async fn a_data_db_of_an_earlier_release_is_read_and_written_on() {
    for format in [1, 2, 3] {
        let dir = closed_and_flushed().await;
        let mut writer = base_writer::open(dir.path(), &tiny(), &Disk::real()).unwrap();
        let mut compaction = writer.begin_compaction();
        while writer.compact(&mut compaction, (100, 100_000)).unwrap().is_continue() {}
        if format == 3 {
            let upto = writer.flushed_upto();
            super::sstables::flush(&mut writer, super::sstables::numbered(0..600, 1), upto);
            assert_eq!(super::sstables::sstables(&writer), 1);
        }
        drop(writer);
        as_of_format(&dir, format);
        read_and_write_on(&dir).await;
    }
}

fn as_of_format(dir: &TempDir, format: usize) {
    const SLOTS_OF_FORMAT_3: usize = 12;
    let kept = if format < 3 { 0 } else { SLOTS_OF_FORMAT_3 };
    let tables = (0..kept).map(|slot| format!("sstable_{slot}"));
    for table in tables.chain(["cells".to_owned(), "long_cells".to_owned()]) {
        meddle(dir, "data.db", &format!("UPDATE {table} SET checksum = checksum & 4294967295"));
    }
    let data = Connection::open(dir.path().join("data.db")).unwrap();
    for table in ["cells", "sstable_0"].into_iter().take(if format < 3 { 1 } else { 2 }) {
        let sql = format!("SELECT max(checksum) > 2147483648 FROM {table}");
        assert_eq!(data.query_row(&sql, [], |row| row.get(0)), Ok(true), "{table} has none that differ");
    }
    drop(data);
    for slot in kept..SLOTS {
        meddle(dir, "data.db", &format!("DROP TABLE sstable_{slot}"));
    }
    if format < 3 {
        meddle(dir, "data.db", "DROP TABLE sstables; DELETE FROM meta WHERE name = 'cells_largest_stamp'");
    }
    meddle(dir, "data.db", if format < 2 { "DROP TABLE long_cells" } else { "" });
    meddle(dir, "data.db", &format!("PRAGMA user_version = {format}"));
}

async fn read_and_write_on(dir: &TempDir) {
    let before = std::fs::read(dir.path().join("data.db")).unwrap();
    let held = offline::Offline::open(dir.path(), &tiny(), &Disk::real())
        .unwrap()
        .page(&[], &[], 10_000)
        .unwrap()
        .cells;
    assert!(held.len() > 100, "{}", held.len());
    assert_eq!(std::fs::read(dir.path().join("data.db")).unwrap(), before, "who only looks changes nothing");

    let (store, _) = open(dir.path(), &tiny());
    assert_eq!(everything(&store, 100), held);
    let long = value(1_000_000, vec![7; 5_000]);
    apply_all(&store, [kv("long", long.clone())]).await;
    super::ways::fill(&store, 700, "more").await;
    quiet(&store).await;
    assert_eq!(get(&store, "long"), Some(long));
    store.close().await;
    let data = Connection::open(dir.path().join("data.db")).unwrap();
    assert_eq!(data.query_row("SELECT count(*) FROM long_cells", [], |row| row.get(0)), Ok(1));
}

#[tokio::test]
async fn a_truncated_file_is_refused() {
    let dir = closed(500).await;
    let bytes = std::fs::read(dir.path().join("log.db")).unwrap();
    for keep in (0..bytes.len()).step_by(bytes.len() / 23) {
        std::fs::write(dir.path().join("log.db"), &bytes[..keep]).unwrap();
        let refusal = refusal(&dir);
        assert!(refusal.contains("log.db is"), "{keep} bytes: {refusal}");
    }
    let dir = closed_and_flushed().await;
    let bytes = std::fs::read(dir.path().join("data.db")).unwrap();
    for keep in (0..bytes.len()).step_by(bytes.len() / 23) {
        std::fs::write(dir.path().join("data.db"), &bytes[..keep]).unwrap();
        // A cut through the last page is found when that page is read.
        let error = match try_open(dir.path(), &tiny(), Drive::Thread) {
            Ok((store, _)) => store.page(&[], &[], 10_000).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("data.db is"), "{keep} bytes: {error}");
    }
}

/// The end of the write-ahead log may be torn by a crash: what was not committed never was, without a report.
#[tokio::test]
async fn a_torn_end_of_the_write_ahead_log_is_no_damage() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..40 {
        let cells = (0..3u8).map(|column| (Bytes::from(vec![column]), value(number, "v"))).collect();
        let partition = Bytes::from(format!("{number:03}"));
        apply_all(&store, [Arc::new(Mutation { table: KV_TABLE, partition, cells })]).await;
    }
    let all = everything(&store, 1000);
    let image = copy_of(dir.path());
    std::fs::remove_file(image.path().join("log.mark")).unwrap(); // as old as a power cut may leave it
    let wal = std::fs::read(image.path().join("log.db-wal")).unwrap();
    let mut found = Vec::new();
    for keep in (0..=wal.len()).rev().step_by(wal.len() / 40) {
        let image = copy_of(image.path());
        std::fs::write(image.path().join("log.db-wal"), &wal[..keep]).unwrap();
        let (store, _) = open(image.path(), &Config::default());
        let cells = everything(&store, 1000);
        assert_eq!(cells.len() % 3, 0, "half a mutation");
        assert_eq!(cells, all[..cells.len()]);
        found.push(cells.len());
    }
    assert_eq!(found[0], 120);
    assert!(found.is_sorted_by(|a, b| a >= b) && found.last() == Some(&0), "{found:?}");
}

/// With the mark that a killed server leaves, the same cut is found: those rows were acknowledged.
#[tokio::test]
async fn a_write_ahead_log_cut_behind_the_mark_is_refused() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..10 {
        let cell = value(number, "v");
        apply_all(&store, [Arc::new(Mutation::single(KV_TABLE, Bytes::from(vec![number as u8]), cell))])
            .await;
    }
    let image = copy_of(dir.path());
    let wal = image.path().join("log.db-wal");
    let len = std::fs::metadata(&wal).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&wal).unwrap().set_len(len - 100).unwrap();
    let refused =
        try_open(image.path(), &Config::default(), Drive::Thread).err().expect("the last row is gone");
    assert!(refused.to_string().contains("rows up to 10 were committed"), "{refused}");
}

/// The same for hints, of which nothing else tells how many there were.
#[tokio::test]
async fn hints_that_are_cut_off_the_write_ahead_log_are_missed() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..3 {
        hint(&store, 2, kv("key", value(number, "v")), 5).await.unwrap();
    }
    let sequences = store.hints(NodeId(2), 3, 10_000).unwrap().iter().map(|hint| hint.sequence).collect();
    forget(&store, 2, sequences).await;
    let image = copy_of(dir.path());
    let wal = image.path().join("log.db-wal");
    let bytes = std::fs::read(&wal).unwrap();
    let (whole, _) = open(image.path(), &Config::default()); // though all are delivered
    hint(&whole, 2, kv("key", value(3, "v")), 5).await.unwrap();
    assert_eq!(whole.hints(NodeId(2), 1, 10_000).unwrap()[0].sequence, 4);

    let cut = bytes.len() - bytes.len() / 2;
    let image = copy_of(dir.path());
    std::fs::write(image.path().join("log.db-wal"), &bytes[..cut]).unwrap();
    let refused = try_open(image.path(), &Config::default(), Drive::Thread).err().expect("hints are gone");
    assert!(refused.to_string().contains("hints up to 3 were committed"), "{refused}");
}

/// Hints are found by an index, which is checked as well: a hint that is missing there would never be handed over.
#[tokio::test]
async fn a_flipped_byte_among_hints_is_reported_or_does_not_matter() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..200 {
        hint(&store, number as u32 % 2 + 1, kv("key", value(number, "v")), 5).await.unwrap();
    }
    let held = |store: &Store| [1, 2].map(|target| store.hints(NodeId(target), 1_000, 1_000_000).unwrap());
    let all = held(&store);
    store.close().await;
    drop(store);
    let index = root_in_log(&dir, "hints_of_target");
    let good = std::fs::read(dir.path().join("log.db")).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for at in positions(good.len(), 100).into_iter().chain((index..index + 4096).step_by(13)) {
        let mut bad = good.clone();
        bad[at] ^= 0x54; // an even sequence stays even: that of another hint for the same server
        let image = copy_of(dir.path());
        std::fs::write(image.path().join("log.db"), &bad).unwrap();
        match try_open(image.path(), &Config::default(), Drive::Thread) {
            Err(error) => {
                let of_index = at >= index && at < index + 4096;
                let said = if of_index { "log.db is damaged: " } else { "log.db" };
                assert!(error.to_string().contains(said), "byte {at}: {error}");
                refused += usize::from(of_index);
            }
            Ok((store, _)) => {
                assert_eq!(held(&store), all, "byte {at}");
                harmless += 1;
            }
        }
    }
    assert!(refused > 50, "{refused} of the index, {harmless} harmless");
}

/// Where in log.db, with all of its write-ahead log, the first page of a table or an index is.
fn root_in_log(dir: &TempDir, name: &str) -> usize {
    let log = Connection::open(dir.path().join("log.db")).unwrap();
    log.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    (log.query_row(root, [name], |row| row.get::<_, i64>(0)).unwrap() as usize - 1) * 4096
}

/// As format 1 had it: hints in another order, and the last one's sequence noted with each.
fn log_as_of_format_1(dir: &TempDir, hinted_upto: i64) {
    let log = Connection::open(dir.path().join("log.db")).unwrap();
    sqlite::set_meta(&log, commit_log::HINTED_UPTO, hinted_upto).unwrap();
    log.execute_batch(&format!(
        "ALTER TABLE hints RENAME TO later; {}; INSERT INTO hints SELECT target, sequence, created_s, mutation, checksum \
         FROM later; DROP TABLE later; PRAGMA user_version = 1",
        hint_log::SCHEMA
    ))
    .unwrap();
}

fn format_of_log(dir: &TempDir) -> i64 {
    let log = Connection::open(dir.path().join("log.db")).unwrap();
    log.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_log_db_of_an_earlier_release_is_read_and_written_on() {
    let dir = closed(20).await;
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..300 {
        let target = number as u32 % 3 + 1;
        hint(&store, target, kv("key", value(number, vec![7; 2_000])), 5 + number).await.unwrap();
    }
    forget(&store, 3, vec![300]).await; // nothing but the number tells that it was there
    let held =
        |store: &Store| [1, 2, 3].map(|target| store.hints(NodeId(target), 1_000, 10_000_000).unwrap());
    let (all, totals) = (held(&store), store.hint_totals());
    let cells = everything(&store, 100);
    store.close().await;
    drop(store);
    log_as_of_format_1(&dir, 300);
    let before = std::fs::read(dir.path().join("log.db")).unwrap();
    let offline = offline::Offline::open(dir.path(), &tiny(), &Disk::real()).unwrap();
    assert_eq!(offline.hint_totals(), &totals);
    drop(offline);
    assert_eq!(std::fs::read(dir.path().join("log.db")).unwrap(), before, "who only looks changes nothing");

    for _ in 0..2 {
        let (store, _) = open(dir.path(), &Config::default());
        assert_eq!((held(&store), store.hint_totals()), (all.clone(), totals.clone()));
        assert_eq!(everything(&store, 100), cells);
        store.close().await;
        assert_eq!(format_of_log(&dir), 2);
    }
    let (store, _) = open(dir.path(), &Config::default());
    hint(&store, 2, kv("key", value(300, "v")), 500).await.unwrap();
    assert_eq!(held(&store)[1].last().unwrap().sequence, 301);
}

/// To make another format of it would leave no trace of the damage.
#[tokio::test]
async fn a_damaged_log_db_of_an_earlier_release_stays_what_it_is() {
    let dir = closed(5).await;
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..20 {
        hint(&store, 2, kv("key", value(number, "v")), 5).await.unwrap();
    }
    store.close().await;
    drop(store);
    log_as_of_format_1(&dir, 20);
    let leaf = root_in_log(&dir, "hints");
    let mut bytes = std::fs::read(dir.path().join("log.db")).unwrap();
    let count = leaf + 3; // of its rows, in two bytes
    assert_eq!(bytes[count..count + 2], [0, 20]);
    bytes[count + 1] = 19;
    std::fs::write(dir.path().join("log.db"), &bytes).unwrap();
    assert!(refusal(&dir).contains("log.db is damaged: the table of hints"), "{}", refusal(&dir));
    assert_eq!(format_of_log(&dir), 1);

    bytes[count + 1] = 20;
    std::fs::write(dir.path().join("log.db"), &bytes).unwrap();
    let (store, _) = open(dir.path(), &Config::default());
    assert_eq!(store.hints(NodeId(2), 100, 100_000).unwrap().len(), 20);
    assert_eq!(format_of_log(&dir), 2);
}

/// Somebody who looks at a stopped server's files is not shown an older state of them as if it were the last one.
#[tokio::test]
async fn a_look_at_a_write_ahead_log_that_is_cut_or_damaged_is_refused() {
    let dir = directory();
    let (store, _) = open(dir.path(), &Config::default());
    for number in 0..10 {
        apply_all(&store, [kv("key", value(number, "v"))]).await;
    }
    let image = copy_of(dir.path());
    let looked = |image: &TempDir| offline::Offline::open(image.path(), &Config::default(), &Disk::real());
    assert_eq!(looked(&image).unwrap().log_rows(), 10);

    let wal = std::fs::read(image.path().join("log.db-wal")).unwrap();
    std::fs::write(image.path().join("log.db-wal"), &wal[..wal.len() - 100]).unwrap();
    let refused = looked(&image).err().expect("the last row is gone").to_string();
    assert!(refused.contains("rows up to 10 were committed"), "{refused}");

    let mut flipped = wal.clone();
    flipped[wal.len() / 2] ^= 1;
    std::fs::write(image.path().join("log.db-wal"), flipped).unwrap();
    let refused = looked(&image).err().expect("half of the rows are gone").to_string();
    assert!(refused.contains("lie behind a frame that fails its checksum"), "{refused}");
}

/// What a power cut takes from a log of `process-crash` is no damage, even if the setting is changed afterwards.
#[tokio::test]
async fn a_log_of_process_crash_may_end_before_its_mark() {
    let dir = directory();
    let lazy = Config { durability: crate::config::Durability::ProcessCrash, ..Config::default() };
    let (store, _) = open(dir.path(), &lazy);
    for number in 0..10 {
        let cell = value(number, "v");
        apply_all(&store, [Arc::new(Mutation::single(KV_TABLE, Bytes::from(vec![number as u8]), cell))])
            .await;
    }
    let image = copy_of(dir.path());
    let wal = image.path().join("log.db-wal");
    let len = std::fs::metadata(&wal).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&wal).unwrap().set_len(len - 100).unwrap();
    let (store, _) = open(image.path(), &Config::default());
    assert_eq!(everything(&store, 1000).len(), 9);
    store.close().await;
    drop(store);
    open(image.path(), &Config::default()); // and the mark is right again
}

/// Whatever byte of log.db changes: either the store refuses, or all that was acknowledged is there.
#[tokio::test]
async fn a_flipped_byte_in_the_log_is_reported_or_does_not_matter() {
    let dir = closed(400).await;
    let (store, _) = open(dir.path(), &Config::default());
    let all = everything(&store, 1000);
    store.close().await;
    drop(store);
    let good = std::fs::read(dir.path().join("log.db")).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for at in positions(good.len(), 400) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        let image = copy_of(dir.path());
        std::fs::write(image.path().join("log.db"), &bad).unwrap();
        match try_open(image.path(), &Config::default(), Drive::Thread) {
            Err(error) => {
                assert!(error.to_string().contains("log.db"), "byte {at}: {error}");
                refused += 1;
            }
            Ok((store, _)) => {
                assert_eq!(everything(&store, 1000), all, "byte {at}");
                harmless += 1;
            }
        }
    }
    assert!(refused > harmless / 2, "{refused} refused, {harmless} harmless");
}

/// Whatever byte of data.db changes: no reader ever sees a cell that was not written.
#[tokio::test]
async fn a_flipped_byte_in_the_base_is_never_served() {
    let dir = directory();
    let (store, _) = open(dir.path(), &tiny());
    apply_all(&store, (0..60).map(|number| kv(format!("long {number}"), value(1, [0; 2_000])))).await;
    super::ways::fill(&store, 700, "key").await;
    quiet(&store).await;
    let all: BTreeMap<Vec<u8>, Cell> = everything(&store, 1000).into_iter().collect();
    store.close().await;
    drop(store);
    let good = std::fs::read(dir.path().join("data.db")).unwrap();
    let mut reported = 0;
    for at in positions(good.len(), 300) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        let image = copy_of(dir.path());
        std::fs::write(image.path().join("data.db"), &bad).unwrap();
        let Ok((store, _)) = try_open(image.path(), &tiny(), Drive::Thread) else {
            reported += 1;
            continue;
        };
        match store.page(&[], &[], 10_000) {
            Ok(page) => page.cells.iter().for_each(|(key, cell)| assert_eq!(all.get(key), Some(cell))),
            Err(error) => {
                assert!(error.to_string().contains("data.db is damaged"), "byte {at}: {error}");
                reported += 1;
            }
        }
    }
    assert!(reported > 150, "{reported} of 300 reported");
}

/// A page in another's place has good checksums, but its keys do not belong there: a walk through them says so.
#[tokio::test]
async fn pages_of_the_base_that_changed_places_are_refused() {
    const PAGE_BYTES: usize = 4096;
    const INDEX_LEAF: u8 = 0x0a; // https://sqlite.org/fileformat2.html#b_tree_pages
    let dir = closed_and_flushed().await;
    let good = std::fs::read(dir.path().join("data.db")).unwrap();
    let full_leaf = |page: &usize| {
        let header = &good[page * PAGE_BYTES..][..5];
        header[0] == INDEX_LEAF && u16::from_be_bytes([header[3], header[4]]) > 10
    };
    let leaves: Vec<usize> = (1..good.len() / PAGE_BYTES).filter(full_leaf).collect();
    let mut bad = good.clone();
    for (to, from) in [(leaves[0], leaves[1]), (leaves[1], leaves[0])] {
        let page = &good[from * PAGE_BYTES..][..PAGE_BYTES];
        bad[to * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(page);
    }
    std::fs::write(dir.path().join("data.db"), bad).unwrap();
    let (store, _) = open(dir.path(), &tiny());
    let error = store.page(&[], &[], 10_000).expect_err("it is out of order").to_string();
    assert!(error.contains("are out of order"), "{error}");
}

/// Places spread over the whole file, the header among them.
fn positions(len: usize, count: usize) -> Vec<usize> {
    let spread = (0..count).map(|index| (index * 2_654_435_761) % len);
    (0..100).chain(spread).collect()
}

/// Two pages of the log in each other's place: every row is as it was written, and none is missing.
#[tokio::test]
async fn rows_that_are_not_in_their_order_are_damage() {
    const ROWS: usize = 2_000;
    let dir = closed(ROWS).await;
    let path = dir.path().join("log.db");
    let root: u32 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'log'", [], |row| row.get(0))
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let page = &mut bytes[(root as usize - 1) * 4096..root as usize * 4096];
    assert_eq!(page[0], 5, "an interior page of a table");
    // <https://sqlite.org/fileformat2.html#b_tree_pages>: each cell begins with the number of a child.
    let child = |page: &[u8], at: usize| {
        let at = usize::from(u16::from_be_bytes([page[12 + 2 * at], page[13 + 2 * at]]));
        at..at + 4
    };
    let (one, other) = (child(page, 3), child(page, 9));
    let number: [u8; 4] = page[one.clone()].try_into().unwrap();
    page.copy_within(other.clone(), one.start);
    page[other].copy_from_slice(&number);
    std::fs::write(&path, bytes).unwrap();
    let refusal = refusal(&dir);
    assert!(refusal.contains("of its rows come after later ones (first sequences: "), "{refusal}");
    assert!(offline::Offline::open(dir.path(), &tiny(), &Disk::real()).is_err());
}
