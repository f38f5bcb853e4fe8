//! Deletions that were collected, and older values of their keys that came late: they are not to come back.

use super::super::ranges::Origin;
use super::*;

async fn deleted(dir: &Path) -> Store {
    let (store, _) = open(dir, &tiny());
    store.cut_leaves(vec![vec![0xff]]).unwrap();
    apply_all(&store, [kv("k", tombstone(10))]).await;
    store
}

async fn comes_late(store: &Store) {
    let answer = ask_one(HERE, |to| store.apply_from(Origin::Hint, kv("k", value(5, "old")), to)).await;
    assert!(matches!(answer, ApplyAnswer::Applied | ApplyAnswer::Behind(Stamp(10))), "{answer:?}");
}

async fn collect(store: &Store) {
    ask_one(HERE, |to| store.close_range(0, Stamp(50), to)).await.unwrap();
    let horizon = Horizon { stamp: Stamp(50), expired_s: 0 };
    ask_one(HERE, |to| store.collect_range(0, horizon, to)).await.unwrap();
    until("the deletion is dropped", || store.shared().stats.cells_collected.get() == 1).await;
}

/// What a killed process leaves has no trace of the key.
fn is_gone(dir: &Path) {
    let image = copy_of(dir);
    let offline = offline::Offline::open(image.path(), &tiny(), &Disk::real()).unwrap();
    assert_eq!(offline.page(&[], &[], 10).unwrap().cells, []);
    drop(offline);
    let (again, _) = open(image.path(), &tiny());
    assert_eq!(get(&again, "k"), None);
}

#[tokio::test]
async fn one_that_lost_against_what_was_being_flushed() {
    let dir = directory();
    let store = deleted(dir.path()).await;
    let (go_on, held) = std::sync::mpsc::channel();
    meddle_with_base(&store, move |_| held.recv().unwrap());
    store.drop_collected(); // for its flush
    until("the deletion is frozen", || gauge(&store, "frozen_cells") == 1).await;
    comes_late(&store).await;
    assert_eq!(gauge(&store, "memtable_cells"), 0, "it lost, and is in the log alone");
    go_on.send(()).unwrap();
    quiet(&store).await;
    collect(&store).await;
    is_gone(dir.path());
}

/// The log hears of a flush with its next commit.
#[tokio::test]
async fn one_that_was_flushed_and_the_log_has_not_heard() {
    let dir = directory();
    let store = deleted(dir.path()).await;
    store.drop_collected();
    quiet(&store).await;
    comes_late(&store).await;
    collect(&store).await;
    is_gone(dir.path());
}
