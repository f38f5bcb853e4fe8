//! What the store promises, tried against the real thing on a real disk.

mod collected;
mod crash;
mod damage;
mod model;
mod speed;
mod sstables;
mod trouble;
mod ways;

use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::Instant;

use super::queue::{Meddle, Request};
use super::*;
use crate::answer::{Answers, ask_one};
use crate::cell::{Cell, Content};
use crate::key::{KV_TABLE, TableId};

/// The node a test asks.
const HERE: NodeId = NodeId(0);

/// Limits as small as they may be, so that little data does what much does in production.
fn tiny() -> Config {
    Config {
        memtable_bytes_max: 100_000,
        flush_transaction_cells: 50,
        wal_autocheckpoint_pages: 20,
        compaction_sstables: 6,
        base_cache_bytes: 100_000,
        cell_cache_bytes: 20_000,
        ..Config::default()
    }
}

fn open(dir: &Path, config: &Config) -> (Store, Recovered) {
    try_open(dir, config, Drive::Thread).unwrap()
}

fn try_open(dir: &Path, config: &Config, drive: Drive) -> Result<(Store, Recovered), OpenError> {
    Store::open(dir, config, Disk::real(), drive, Arc::default(), |_| {})
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A plain value.
fn value(stamp: i64, value: impl AsRef<[u8]>) -> Cell {
    Cell { stamp: Stamp(stamp), content: Content::Value(Bytes::copy_from_slice(value.as_ref())) }
}

fn tombstone(stamp: i64) -> Cell {
    Cell { stamp: Stamp(stamp), content: Content::Tombstone }
}

fn expiring(stamp: i64, expires_at_s: i64, value: &'static str) -> Cell {
    Cell { stamp: Stamp(stamp), content: Content::Expiring { value: Bytes::from(value), expires_at_s } }
}

/// A mutation of the key-value table.
fn kv(key: impl AsRef<[u8]>, cell: Cell) -> Arc<Mutation> {
    Arc::new(Mutation::single(KV_TABLE, Bytes::copy_from_slice(key.as_ref()), cell))
}

async fn apply(store: &Store, mutation: Arc<Mutation>) -> ApplyAnswer {
    ask_one(HERE, |to| store.apply(mutation, to)).await
}

async fn hint(store: &Store, target: u32, mutation: Arc<Mutation>, now_s: i64) -> Result<(), Failure> {
    ask_one(HERE, |to| store.hint(NodeId(target), mutation, now_s, to)).await
}

async fn forget(store: &Store, target: u32, sequences: Vec<i64>) {
    ask_one(HERE, |to| store.forget_hints(NodeId(target), sequences, to)).await.unwrap();
}

/// Applies all at once and expects every one to be taken.
async fn apply_all(store: &Store, mutations: impl IntoIterator<Item = Arc<Mutation>>) {
    let mut answers = Answers::default();
    for mutation in mutations {
        store.apply(mutation, answers.expect(HERE));
    }
    while let Some((_, answer)) = answers.next().await {
        assert_eq!(answer, ApplyAnswer::Applied);
    }
}

fn get(store: &Store, key: impl AsRef<[u8]>) -> Option<Cell> {
    let slice = Slice::single(KV_TABLE, Bytes::copy_from_slice(key.as_ref()));
    let found = store.read(&slice).unwrap();
    assert!(found.complete);
    found.cells.into_iter().next().map(|(_, cell)| cell)
}

/// Everything there is, by pages of `step` cells.
fn everything(store: &Store, step: usize) -> Vec<(Vec<u8>, Cell)> {
    let mut cells = Vec::new();
    let mut after = Vec::new();
    loop {
        let page = store.page(&after, &[], step).unwrap();
        cells.extend(page.cells);
        if page.complete {
            return cells;
        }
        after = page.upto;
    }
}

fn gauge(store: &Store, name: &str) -> i64 {
    store.gauges().into_iter().find(|(of, _)| *of == name).unwrap().1
}

/// Waits until nothing is frozen and the log has forgotten what was flushed.
async fn quiet(store: &Store) {
    until("the flush is over", || {
        let busy = ["log_queue_mutations", "frozen_cells", "log_rows_flushed"];
        busy.iter().all(|name| gauge(store, name) == 0)
    })
    .await;
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Does something to the connection that writes log.db, inside a transaction of its own or of what was queued before.
async fn meddle_with_log(store: &Store, meddle: impl FnOnce(&Connection) + Send + 'static) {
    let (done, meddled) = tokio::sync::oneshot::channel();
    let meddle: Meddle = Box::new(move |log| {
        meddle(log);
        done.send(()).unwrap();
    });
    assert!(!store.push(Request::Meddle(Mutex::new(Some(meddle)))));
    meddled.await.unwrap();
}

/// Does something to the connection that writes data.db, before the next turn of the flusher.
fn meddle_with_base(store: &Store, meddle: impl FnOnce(&Connection) + Send + 'static) {
    *store.shared().base_meddle.lock().unwrap() = Some(Box::new(meddle));
    store.shared().flusher_bell.ring();
}

/// A copy of the directory as a killed process would leave it.
fn copy_of(dir: &Path) -> TempDir {
    let copy = directory();
    // The write-ahead log first would be wrong: a checkpoint in between would be in neither. Nobody writes meanwhile.
    for entry in std::fs::read_dir(dir).unwrap() {
        let from = entry.unwrap().path();
        if !from.to_string_lossy().ends_with("-shm") {
            std::fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// data.db with some keys, all of which have values of one length.
struct FilledBase {
    _dir: TempDir,
    writer: BaseWriter,
    keys: Vec<Vec<u8>>,
    /// Of keys and cells, last written.
    bytes: usize,
}

impl FilledBase {
    fn new(keys: u32, value_bytes: usize) -> FilledBase {
        let dir = directory();
        let writer = base_writer::open(dir.path(), &Config::default(), &Disk::real()).unwrap();
        let keys = (0..keys).map(|number| crate::key::encode(KV_TABLE, &number.to_be_bytes(), b"")).collect();
        let mut base = FilledBase { _dir: dir, writer, keys, bytes: 0 };
        base.write(1, value_bytes);
        base
    }

    fn write(&mut self, stamp: i64, value_bytes: usize) {
        let mut cell = Vec::new();
        value(stamp, vec![0; value_bytes]).encode(&mut cell);
        let packed = self.keys.iter().map(|key| (key[..].into(), cell[..].into())).collect();
        let table = Memtable::from_unsorted(packed);
        let mut flush = self.writer.begin_flush(&table, stamp).unwrap();
        self.writer.write(&mut flush, table.range(&[], None), true).unwrap();
        self.writer.show();
        self.bytes = self.keys.iter().map(|key| key.len() + cell.len()).sum();
    }

    fn compact(&mut self) {
        let mut compaction = self.writer.begin_compaction();
        while self.writer.compact(&mut compaction, (20, 50_000)).unwrap().is_continue() {}
    }

    fn long_cells(&self) -> i64 {
        let count = "SELECT count(*) FROM long_cells";
        self.writer.connection().query_row(count, [], |row| row.get(0)).unwrap()
    }
}
