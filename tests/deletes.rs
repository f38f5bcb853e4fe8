//! Deleted keys stay deleted, and their space comes back: real server processes, absences of any length, a disk that
//! was lost and one that was restored from an old copy.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use tetrachord::thrift::method;

use common::{Client, Cluster, put_request, wait_until};

/// Everything that takes its time in production takes next to none, but what is collected lags behind what is compared,
/// as in life; no hints, so that nothing but reconciliation moves cells.
const QUICK: &str = "handoff = false\nread_repair = false\nreconcile_round_ms = 100\nreconcile_lag_ms = 100\n\
                     collection_lag_ms = 300\ncollection_pause_ms = 100\n";

#[test]
fn tombstones_go_when_all_have_them_and_stay_while_one_is_away() {
    let mut cluster = Cluster::start(4, QUICK);
    put_all(&cluster, 0..200);
    cluster.kill(2);
    cluster.wait_seen(0, 2, "down");
    cluster.wait_seen(1, 2, "down");
    cluster.wait_seen(3, 2, "down");
    remove_all(&cluster, 0..200);
    wait_until("who is away is the reason why deletions stay", || {
        let ranges = cluster.client(0).describe().unwrap().ranges.unwrap();
        let said =
            |range: &tetrachord::thrift::chord::RangeState| range.uncollected.clone().unwrap_or_default();
        ranges.iter().any(|range| said(range).contains("server 2"))
    });
    std::thread::sleep(Duration::from_millis(1_000)); // ten rounds in which nothing must go
    let left: usize = [0, 1, 3].iter().map(|id| cluster.client(*id).copies().len()).sum();
    assert_eq!(left, 200 * 3 - held_by(2, 0..200), "every tombstone is still there");

    cluster.restart(2);
    wait_gone(&cluster);
    assert_eq!(cluster.differences(), Vec::<String>::new());
    assert_none_back(&cluster, 0..200);
}

#[test]
fn a_disk_restored_from_an_old_copy_brings_nothing_back() {
    let mut cluster = Cluster::start(4, QUICK);
    put_all(&cluster, 0..200);
    put_all(&cluster, 1_000..1_050);
    cluster.wait_replicas_equal();
    cluster.kill(1);
    let backup = cluster.path().join("backup");
    copy_dir(&cluster.data(1), &backup);
    cluster.restart(1);
    cluster.wait_all_up();
    remove_all(&cluster, 0..200);
    put_all(&cluster, 2_000..2_050);
    wait_until("the tombstones are collected", || (0..4).all(|id| cluster.client(id).copies().len() < 100));

    cluster.kill(1);
    fs::remove_dir_all(cluster.data(1)).unwrap();
    copy_dir(&backup, &cluster.data(1));
    cluster.restart(1);
    cluster.wait_all_up();
    for round in 0..20 {
        for through in 0..4 {
            let mut client = cluster.client(through);
            for n in [0, 1, 2, 3] {
                let got = client.get(&key(n), "QUORUM").unwrap();
                assert_eq!(got, None, "key {n} through server {through}, round {round}");
            }
        }
    }
    cluster.wait_replicas_equal();
    wait_gone_but(&cluster, 100);
    assert_none_back(&cluster, 0..200);
    for n in (1_000..1_050).chain(2_000..2_050) {
        assert!(cluster.client(0).get(&key(n), "ALL").unwrap().is_some(), "key {n}");
    }
}

#[test]
fn a_lost_disk_is_refilled_and_deleted_keys_stay_deleted() {
    let mut cluster = Cluster::start(4, QUICK);
    put_all(&cluster, 0..300);
    remove_all(&cluster, 0..100);
    wait_gone_but(&cluster, 200);
    assert!(stat(&cluster, "reconcile_collections") > 0);
    cluster.kill(3);
    fs::remove_dir_all(cluster.data(3)).unwrap();
    cluster.restart(3);
    cluster.wait_all_up();
    // From the start it takes writes, and nobody is shown what it has not got back yet.
    put_all(&cluster, 300..310);
    for n in 100..300 {
        assert!(cluster.client(3).get(&key(n), "ONE").unwrap().is_some(), "key {n} at ONE through server 3");
    }
    wait_until("it says that it is whole again", || {
        let ranges = cluster.client(3).describe().unwrap().ranges.unwrap();
        ranges.iter().all(|range| range.refilling.as_deref() == Some(""))
    });
    cluster.wait_replicas_equal();
    wait_gone_but(&cluster, 210);
    assert_none_back(&cluster, 0..100);
    for n in 100..310 {
        assert!(cluster.client(0).get(&key(n), "ALL").unwrap().is_some(), "key {n}");
    }
    let log = cluster.log(3);
    assert!(log.contains("lacks what it once had"), "{log}");
}

#[test]
fn a_write_older_than_a_collected_deletion_is_refused() {
    let cluster = Cluster::start(3, QUICK);
    let mut client = cluster.client(0);
    let stamp = client.put(&key(1), b"value", "ALL").unwrap().stamp.unwrap();
    client.remove(&key(1), "ALL").unwrap();
    wait_gone(&cluster);
    let mut put = put_request(&key(1), b"old", "QUORUM");
    put.stamp = Some(stamp);
    assert_eq!(client.put_batch(vec![put.clone()]).unwrap(), 0, "it would come back");
    // Wrong, not overloaded: who tries again would do so for ever.
    let refused = client.call::<method::Put>(&put).unwrap();
    let Err(method::Refusal::InvalidRequest(refused)) = refused else { panic!("{refused:?}") };
    let why = refused.why.unwrap();
    assert!(why.contains("older than deletions") && why.contains("nothing was written"), "{why}");
    put.stamp = None;
    assert_eq!(client.put_batch(vec![put]).unwrap(), 1);
    assert_eq!(client.get(&key(1), "ALL").unwrap(), Some(b"old".to_vec()));
}

#[test]
fn the_space_of_what_was_deleted_is_given_back() {
    let cluster = Cluster::start(3, &format!("{QUICK}memtable_bytes_max = 1000000\n"));
    let mut client = cluster.client(0);
    for some in (0..20_000).collect::<Vec<usize>>().chunks(200) {
        let puts = some.iter().map(|n| put_request(&key(*n), &[7; 500], "QUORUM")).collect();
        assert_eq!(client.put_batch(puts).unwrap(), some.len());
    }
    let bytes = || fs::metadata(cluster.data(0).join("data.db")).map_or(0, |file| file.len());
    wait_until("most of it is flushed", || bytes() > 5_000_000);
    remove_all(&cluster, 0..20_000);
    wait_until("the file shrinks", || bytes() < 3_000_000);
    wait_gone(&cluster);
}

/// No server shows anything to the inspector any more.
fn wait_gone(cluster: &Cluster) {
    wait_gone_but(cluster, 0);
}

fn wait_gone_but(cluster: &Cluster, keys: usize) {
    wait_until("the tombstones are collected everywhere", || {
        let all: usize = (0..cluster.len()).map(|id| cluster.client(id).copies().len()).sum();
        all == keys * 3
    });
}

fn assert_none_back(cluster: &Cluster, keys: std::ops::Range<usize>) {
    for id in 0..cluster.len() {
        let copies = cluster.client(id).copies();
        for copy in copies.values() {
            let back = keys.clone().find(|n| key(*n) == copy.partition);
            assert_eq!(back, None, "server {id} holds a deleted key");
        }
    }
}

/// How many of the keys belong on this one of four servers.
fn held_by(server: usize, keys: std::ops::Range<usize>) -> usize {
    let ring = tetrachord::ring::Ring::even(4, 3);
    keys.filter(|n| ring.replicas(&key(*n)).iter().any(|node| node.0 as usize == server)).count()
}

fn key(n: usize) -> Vec<u8> {
    let mut key = vec![(n * 67) as u8];
    key.extend_from_slice(format!("key {n}").as_bytes());
    key
}

fn put_all(cluster: &Cluster, keys: std::ops::Range<usize>) {
    let mut client: Client = cluster.client(0);
    let all: Vec<usize> = keys.collect();
    for some in all.chunks(200) {
        let puts = some.iter().map(|n| put_request(&key(*n), b"value", "QUORUM")).collect();
        assert_eq!(client.put_batch(puts).unwrap(), some.len());
    }
}

fn remove_all(cluster: &Cluster, keys: std::ops::Range<usize>) {
    let mut client = cluster.client(0);
    let all: Vec<usize> = keys.collect();
    for some in all.chunks(200) {
        assert_eq!(
            client.remove_batch(some.iter().map(|n| key(*n)).collect(), "QUORUM").unwrap(),
            some.len()
        );
    }
}

fn stat(cluster: &Cluster, name: &str) -> i64 {
    (0..cluster.len()).map(|id| cluster.client(id).stats().unwrap()[name]).sum()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
