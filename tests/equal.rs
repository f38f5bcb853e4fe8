//! Replicas end up equal by themselves: real server processes, holes that neither hints nor reads can mend, and no
//! reads.

mod common;

use common::{Client, Cluster, Load, put_request, wait_until};

/// Neither hints nor read repair: what becomes equal was made equal by reconciliation.
const ALONE: &str =
    "handoff = false\nread_repair = false\nreconcile_round_ms = 200\nreconcile_lag_ms = 200\n";

#[test]
fn what_a_server_missed_reaches_it_without_a_read() {
    let mut cluster = Cluster::start(4, ALONE);
    put_all(&cluster, 0..300, "old");
    cluster.kill(3);
    cluster.wait_seen(0, 3, "down");
    put_all(&cluster, 200..600, "new");
    remove_all(&cluster, 0..50);
    cluster.restart(3);
    cluster.wait_replicas_equal();
    wait_proven(&cluster);
    assert_eq!(cluster.client(0).get(&key(0), "ALL").unwrap(), None);
    assert_eq!(cluster.client(0).get(&key(250), "ALL").unwrap(), Some(b"new".to_vec()));
    assert!(stat(&cluster, "reconcile_cells_received") > 0 || stat(&cluster, "reconcile_cells_sent") > 0);
}

#[test]
fn coordinators_killed_with_writes_under_way_leave_no_holes() {
    let mut cluster = Cluster::start(4, "read_repair = false\nreconcile_round_ms = 200\n");
    let ports: Vec<u16> = (0..4).map(|id| cluster.port(id)).collect();
    let load = Load::start(&ports, "ONE");
    for id in 0..4 {
        load.wait_for_more(200);
        cluster.kill(id);
        load.wait_for_more(50);
        cluster.restart(id);
    }
    let report = load.stop();
    cluster.wait_all_up();
    cluster.wait_replicas_equal();
    wait_proven(&cluster);
    cluster.assert_read_back(&report.acknowledged);
}

#[test]
fn an_absence_longer_than_the_hint_window_and_past_the_cap_is_made_up_for() {
    for config in ["hint_window_s = 0\n", "hint_bytes_per_node_max = 100\n"] {
        let mut cluster =
            Cluster::start(4, &format!("{config}read_repair = false\nreconcile_round_ms = 200\n"));
        cluster.kill(2);
        cluster.wait_seen(0, 2, "down");
        std::thread::sleep(std::time::Duration::from_millis(1_100)); // the window counts whole seconds
        put_all(&cluster, 0..400, "missed");
        // 300 of the keys belong on server 2; a batch is under way before the cap is seen to be reached.
        assert!(cluster.hints() < 250, "{config}");
        cluster.restart(2);
        cluster.wait_replicas_equal();
        wait_proven(&cluster);
    }
}

#[test]
fn while_a_replica_is_away_the_others_become_equal_and_say_what_is_missing() {
    let mut cluster = Cluster::start(4, ALONE);
    cluster.kill(1);
    cluster.wait_seen(0, 1, "down");
    put_all(&cluster, 0..100, "value");
    wait_until("the range says who is missing", || {
        let ranges = cluster.client(0).describe().unwrap().ranges.unwrap();
        let of_owner = |owner: i32| ranges.iter().find(|range| range.owner == Some(owner)).unwrap();
        of_owner(0).not_now.as_deref().unwrap_or_default().contains("server 1 is down")
    });
    cluster.restart(1);
    wait_proven(&cluster);
    assert_eq!(cluster.differences(), Vec::<String>::new());
}

#[test]
fn columns_of_large_values_and_expiring_ones_travel_too() {
    let mut cluster = Cluster::start(3, ALONE);
    cluster.kill(0);
    cluster.wait_seen(1, 0, "down");
    let mut client = cluster.client(1);
    let large = vec![b'x'; 3_000_000];
    client.put(b"large", &large, "QUORUM").unwrap();
    let mut expiring = put_request(b"expiring", b"value", "QUORUM");
    expiring.ttl = Some(1_000);
    assert_eq!(client.put_batch(vec![expiring]).unwrap(), 1);
    cluster.restart(0);
    cluster.wait_replicas_equal();
    wait_until("the large value is there", || {
        cluster.client(0).get(b"large", "ONE").unwrap().as_deref() == Some(&large[..])
    });
}

fn key(n: usize) -> Vec<u8> {
    let mut key = vec![(n * 67) as u8];
    key.extend_from_slice(format!("key {n}").as_bytes());
    key
}

fn put_all(cluster: &Cluster, keys: std::ops::Range<usize>, value: &str) {
    let mut client: Client = cluster.client(0);
    let all: Vec<usize> = keys.collect();
    for some in all.chunks(200) {
        let puts = some.iter().map(|n| put_request(&key(*n), value.as_bytes(), "QUORUM")).collect();
        assert_eq!(client.put_batch(puts).unwrap(), some.len());
    }
}

fn remove_all(cluster: &Cluster, keys: std::ops::Range<usize>) {
    let mut client = cluster.client(0);
    for n in keys {
        client.remove(&key(n), "QUORUM").unwrap();
    }
}

/// Every replica of every range says that it is proven equal, from now on.
fn wait_proven(cluster: &Cluster) {
    let since = cluster.client(0).put(b"now", b"", "ALL").unwrap().stamp.unwrap();
    wait_until("every range is proven equal", || {
        (0..cluster.len()).all(|id| {
            let ranges = cluster.client(id).describe().unwrap().ranges.unwrap();
            ranges
                .iter()
                .all(|range| range.not_now.as_deref() == Some("") && range.proven_upto.unwrap_or(0) >= since)
        })
    });
}

fn stat(cluster: &Cluster, name: &str) -> i64 {
    (0..cluster.len()).map(|id| cluster.client(id).stats().unwrap()[name]).sum()
}
