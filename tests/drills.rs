//! The drills: real server processes, started, killed, frozen, starved and damaged, and what must still hold.
//!
//! Each drill is one that a person can do by hand with `server.sh`, `client`, `inspector` and `kill`. The classic keys
//! of four servers: key 0 lives on servers 0, 1, 2; key 137 on servers 2, 3, 0.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::{Client, Cluster, Load, free_ports, put_request, wait_until};

/// No acknowledgement for longer than this is an outage. Noticing takes 0.1 s (killed) to 2 s (frozen) on an idle
/// machine; the rest is for a busy one.
const OUTAGE: Duration = Duration::from_secs(10);

// ------------------------------------------------------------------------------------------------ placement

#[test]
fn a_key_lives_on_its_three_replicas_and_nowhere_else() {
    let cluster = Cluster::start(4, "");
    cluster.client(1).classic_put(0, "value0", "ONE").unwrap();
    cluster.client(1).classic_put(137, "value137", "QUORUM").unwrap();
    assert_eq!(cluster.client(3).classic_get(137, "QUORUM").unwrap().as_deref(), Some("value137"));

    for (key, replicas) in [(0, [0, 1, 2]), (137, [2, 3, 0])] {
        let expected = Some(format!("value{key}"));
        for id in replicas {
            // Beyond the level's count the others get it a moment later.
            wait_until(&format!("server {id} has key {key}"), || own_value(&cluster, id, key) == expected);
        }
        let other = (0..4).find(|id| !replicas.contains(id)).expect("one server is no replica");
        assert_eq!(own_value(&cluster, other, key), None);
    }
    assert_eq!(cluster.differences(), Vec::<String>::new());
    assert_eq!(cluster.client(0).classic_get(1, "QUORUM").unwrap(), None, "a key nobody has is not found");
}

#[test]
fn three_servers_or_one_work_like_four() {
    for n in [1, 3] {
        let cluster = Cluster::start(n, "");
        for id in 0..n {
            cluster.client(id).classic_put(id as u8 * 80, "x", "QUORUM").unwrap();
        }
        for id in 0..n {
            assert_eq!(cluster.client(0).classic_get(id as u8 * 80, "ALL").unwrap().as_deref(), Some("x"));
        }
        cluster.wait_replicas_equal();
    }
}

// ------------------------------------------------------------------------------------------------ crash

#[test]
fn quorum_writes_go_on_while_one_server_is_killed_and_it_catches_up() {
    let mut cluster = Cluster::start(4, "");
    let load = Load::start(&[cluster.port(0), cluster.port(1), cluster.port(2)], "QUORUM");
    load.wait_for_more(200);
    cluster.kill(3);
    load.wait_for_more(500);
    cluster.restart(3);
    load.wait_for_more(200);
    let report = load.stop();

    assert!(report.longest_gap < OUTAGE, "{:?}", report.longest_gap);
    assert_eq!(report.disconnected, 0, "the living servers keep their connections");
    cluster.wait_all_up();
    cluster.wait_replicas_equal();
    assert_eq!(cluster.hints(), 0);
    cluster.assert_read_back(&report.acknowledged);
}

#[test]
fn a_refused_put_leaves_nothing_anywhere() {
    let mut cluster = Cluster::start(4, "");
    cluster.client(0).classic_put(137, "old", "ALL").unwrap();
    let before = cluster.client(2).own_copy(137);

    cluster.kill_each(&[3, 0]);
    for observer in [1, 2] {
        cluster.wait_seen(observer, 3, "down");
        cluster.wait_seen(observer, 0, "down");
    }
    for through in [1, 2] {
        let mut client = cluster.client(through);
        for refusal in [
            client.classic_put(137, "refused", "QUORUM").unwrap_err(),
            client.classic_get(137, "QUORUM").unwrap_err(),
            client.put(&[137], b"refused", "QUORUM").map(drop).unwrap_err(),
            client.get(&[137], "ALL").unwrap_err(),
        ] {
            assert!(refusal.is_refusal(), "{refusal}");
            assert!(refusal.to_string().starts_with("Not enough replicas alive"), "{refusal}");
        }
        assert_eq!(client.classic_get(137, "ONE").unwrap().as_deref(), Some("old"));
        client.classic_put(138 + through as u8, "meanwhile", "ONE").unwrap();
        assert_eq!(client.classic_get(138 + through as u8, "ONE").unwrap().as_deref(), Some("meanwhile"));
    }

    cluster.restart_each(&[3, 0]);
    cluster.wait_all_up();
    for key in [139, 140] {
        for id in [2, 3, 0] {
            let arrived = || own_value(&cluster, id, key).as_deref() == Some("meanwhile");
            wait_until(&format!("what was put at ONE reaches server {id}"), arrived);
        }
    }
    wait_until("hints are delivered", || cluster.hints() == 0);
    for id in 0..4 {
        assert_eq!(
            cluster.client(id).classic_get(137, "ONE").unwrap().as_deref(),
            Some("old"),
            "through {id}"
        );
    }
    for id in [2, 3, 0] {
        assert_eq!(cluster.client(id).own_copy(137), before, "on server {id}");
    }
}

#[test]
fn with_every_replica_down_even_one_is_refused() {
    let mut cluster = Cluster::start(4, "");
    cluster.client(1).classic_put(137, "old", "ALL").unwrap();
    cluster.kill_each(&[2, 3, 0]);
    for other in [2, 3, 0] {
        cluster.wait_seen(1, other, "down");
    }
    let mut client = cluster.client(1);
    for refusal in
        [client.classic_put(137, "new", "ONE").unwrap_err(), client.classic_get(137, "ONE").unwrap_err()]
    {
        assert!(refusal.to_string().starts_with("Not enough replicas alive"), "{refusal}");
    }
    // A hint is enough for ANY, and it is a promise too.
    client.classic_put(138, "kept", "ANY").unwrap();

    cluster.restart_each(&[2, 3, 0]);
    cluster.wait_all_up();
    wait_until("the hint is delivered", || cluster.hints() == 0);
    assert_eq!(cluster.client(1).classic_get(137, "ALL").unwrap().as_deref(), Some("old"));
    assert_eq!(cluster.client(1).classic_get(138, "QUORUM").unwrap().as_deref(), Some("kept"));
}

#[test]
fn all_four_killed_at_once_under_load_lose_nothing_acknowledged() {
    let mut cluster = Cluster::start(4, "");
    let ports: Vec<u16> = (0..4).map(|id| cluster.port(id)).collect();
    let load = Load::start(&ports, "QUORUM");
    load.wait_for_more(500);
    cluster.kill_each(&[0, 1, 2, 3]);
    let report = load.stop();
    cluster.restart_each(&[0, 1, 2, 3]);
    cluster.wait_all_up();
    cluster.assert_read_back(&report.acknowledged);
}

#[test]
fn servers_killed_and_restarted_in_turn_lose_nothing_acknowledged() {
    let mut cluster = Cluster::start(4, "");
    let ports: Vec<u16> = (0..4).map(|id| cluster.port(id)).collect();
    let load = Load::start(&ports, "QUORUM");
    for id in 0..4 {
        load.wait_for_more(100);
        cluster.kill(id);
        load.wait_for_more(100);
        cluster.restart(id);
        cluster.wait_all_up();
    }
    let report = load.stop();
    cluster.assert_read_back(&report.acknowledged);
}

#[test]
fn a_frozen_server_delays_nobody_for_long_and_catches_up() {
    let cluster = Cluster::start(4, "");
    let load = Load::start(&[cluster.port(0), cluster.port(1), cluster.port(2)], "QUORUM");
    load.wait_for_more(200);
    cluster.freeze(3);
    cluster.wait_seen(0, 3, "down");
    load.wait_for_more(500);
    cluster.thaw(3);
    cluster.wait_all_up();
    load.wait_for_more(200);
    let report = load.stop();

    assert!(report.longest_gap < OUTAGE, "{:?}", report.longest_gap);
    cluster.wait_replicas_equal();
    cluster.assert_read_back(&report.acknowledged);
}

#[test]
fn a_graceful_stop_under_load_loses_nothing() {
    let mut cluster = Cluster::start(4, "");
    let ports: Vec<u16> = (0..4).map(|id| cluster.port(id)).collect();
    let load = Load::start(&ports, "QUORUM");
    load.wait_for_more(200);
    assert_eq!(cluster.stop(3).code(), Some(0), "{}", cluster.log(3));
    assert!(!cluster.data(3).join("READY").exists(), "a stopped server is not ready");
    load.wait_for_more(200);
    cluster.restart(3);
    load.wait_for_more(200);
    let report = load.stop();
    for id in 0..4 {
        assert_eq!(cluster.stop(id).code(), Some(0), "{}", cluster.log(id));
    }
    cluster.restart_each(&[0, 1, 2, 3]);
    cluster.wait_all_up();
    cluster.wait_replicas_equal();
    cluster.assert_read_back(&report.acknowledged);
}

// ------------------------------------------------------------------------------------------------ stale replicas

#[test]
fn without_handoff_a_quorum_read_mends_a_stale_replica() {
    let cluster = stale_server_3("handoff = false\nreconciliation = false\n");
    let mut client = cluster.client(3);
    assert_eq!(client.classic_get(137, "ONE").unwrap().as_deref(), Some("old"), "its own copy is stale");
    assert_eq!(client.classic_get(137, "QUORUM").unwrap().as_deref(), Some("new"));
    assert_eq!(own_value(&cluster, 3, 137).as_deref(), Some("new"), "mended before the answer");
    assert_eq!(client.classic_get(137, "ONE").unwrap().as_deref(), Some("new"));
}

#[test]
fn without_read_repair_a_stale_replica_stays_stale() {
    let cluster = stale_server_3("handoff = false\nread_repair = false\nreconciliation = false\n");
    let mut client = cluster.client(3);
    assert_eq!(client.classic_get(137, "QUORUM").unwrap().as_deref(), Some("new"));
    assert_eq!(client.classic_get(137, "ONE").unwrap().as_deref(), Some("old"));
    assert_eq!(own_value(&cluster, 3, 137).as_deref(), Some("old"));
}

#[test]
fn with_handoff_alone_a_recovered_server_is_mended_without_a_read() {
    let cluster = stale_server_3("read_repair = false\nreconciliation = false\n");
    wait_until("the hint arrives", || own_value(&cluster, 3, 137).as_deref() == Some("new"));
}

/// Server 3 was down while key 137 changed from "old" to "new".
fn stale_server_3(config: &str) -> Cluster {
    let mut cluster = Cluster::start(4, config);
    cluster.client(2).classic_put(137, "old", "ALL").unwrap();
    cluster.kill(3);
    cluster.wait_seen(2, 3, "down");
    cluster.client(2).classic_put(137, "new", "QUORUM").unwrap();
    cluster.restart(3);
    cluster.wait_all_up();
    cluster
}

// ------------------------------------------------------------------------------------------------ clocks

#[test]
fn a_later_quorum_put_wins_whatever_the_wall_clocks_say() {
    let offsets_ms = [3_600_000, -3_600_000, 0, 0];
    let cluster = Cluster::start_each(4, |id| format!("test_clock_offset_ms = {}\n", offsets_ms[id]), true);
    for round in 0..20 {
        // Fast, slow, true, true and so on: each put begins after the former was acknowledged.
        let value = format!("round {round}");
        cluster.client(round % 4).classic_put(137, &value, "QUORUM").unwrap();
        for through in 0..4 {
            let got = cluster.client(through).classic_get(137, "QUORUM").unwrap();
            assert_eq!(got.as_deref(), Some(value.as_str()), "through server {through}");
        }
    }
    cluster.wait_replicas_equal();
}

// ------------------------------------------------------------------------------------------------ large data

/// Small limits, so that little data is much.
const SMALL: &str = "memtable_bytes_max = 1000000\ncell_cache_bytes = 1000000\nbase_cache_bytes = 1000000\nbase_mmap_bytes = 0\n";

/// What a server of the small limits may take: two memtables, caches, buffers, what is being compared and the program
/// itself came to 26 to 32 MB. Less than the 90 MB that each of four servers holds of 120,000 keys.
const SMALL_RESIDENT_KB_MAX: u64 = 50_000;

#[test]
fn data_of_many_times_the_memory_budget_is_kept_within_bounds() {
    large_data(120_000, SMALL_RESIDENT_KB_MAX);
}

/// 2 million keys of 1 KB: a gigabyte and a half on each server. Half an hour on a small machine and 10 GB of disk:
/// `cargo test --release --test drills -- --ignored`.
#[test]
#[ignore = "half an hour and 10 GB of disk"]
fn two_million_keys_are_kept_within_bounds() {
    large_data(2_000_000, SMALL_RESIDENT_KB_MAX);
}

fn large_data(keys: usize, resident_kb_max: u64) {
    let mut cluster = Cluster::start(4, SMALL);
    fill(&cluster, keys);
    check_sample(&cluster, keys);
    for id in 0..4 {
        let peak = peak_resident_kb(cluster.pid(id));
        println!("server {id} took at most {peak} kB");
        assert!(peak < resident_kb_max, "server {id} took {peak} kB");
    }

    cluster.kill_each(&[0, 1, 2, 3]);
    let said: Vec<usize> = (0..4).map(|id| cluster.log(id).len()).collect();
    cluster.restart_each(&[0, 1, 2, 3]);
    cluster.wait_all_up();
    for (id, said) in said.into_iter().enumerate() {
        let log = cluster.log(id);
        let replayed = log[said..].lines().find(|line| line.contains("replayed"));
        println!(
            "{}",
            replayed.unwrap_or_else(|| panic!("server {id} does not say what it replayed: {log}"))
        );
    }
    check_sample(&cluster, keys);
    cluster.wait_replicas_equal();
    for id in 0..4 {
        let peak = peak_resident_kb(cluster.pid(id));
        assert!(peak < resident_kb_max, "after its restart server {id} took {peak} kB");
    }
}

/// Keys spread over the ring, in batches.
fn fill(cluster: &Cluster, keys: usize) {
    const BATCH: usize = 200;
    let mut clients: Vec<Client> = (0..4).map(|id| cluster.client(id)).collect();
    for start in (0..keys).step_by(BATCH) {
        let batch =
            (start..keys.min(start + BATCH)).map(|n| put_request(&large_key(n), &large_value(n), "QUORUM"));
        let batch: Vec<_> = batch.collect();
        let size = batch.len();
        assert_eq!(clients[start / BATCH % 4].put_batch(batch).unwrap(), size);
    }
}

fn check_sample(cluster: &Cluster, keys: usize) {
    let mut clients: Vec<Client> = (0..4).map(|id| cluster.client(id)).collect();
    for n in (0..keys).step_by(keys / 2_000) {
        let got = clients[n % 4].get(&large_key(n), "QUORUM").unwrap();
        assert_eq!(got, Some(large_value(n)), "key {n}");
    }
}

fn large_key(n: usize) -> Vec<u8> {
    let mut key = vec![(n * 67) as u8];
    key.extend_from_slice(format!("key {n}").as_bytes());
    key
}

fn large_value(n: usize) -> Vec<u8> {
    format!("value {n} ").into_bytes().into_iter().cycle().take(1_000).collect()
}

/// The most memory the process has had, as the system counts it.
fn peak_resident_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    match line {
        Some(line) => line.trim().trim_end_matches(" kB").parse().expect("a number of kB"),
        None => 0, // no /proc here: nothing to compare
    }
}

// ------------------------------------------------------------------------------------------------ damage

#[test]
fn flipped_bytes_in_the_middle_of_the_log_are_reported() {
    damaged("log.db", Hit::Sure, |path| {
        let len = len(path);
        // Something in every page of the middle third: some of it is stored rows.
        for page in (len / 3 / 4096)..(len * 2 / 3 / 4096) {
            overwrite(path, page * 4096 + 2_000, &[0x5a; 64]);
        }
    });
}

#[test]
fn a_log_cut_at_its_end_is_reported() {
    damaged("log.db", Hit::Sure, |path| cut(path, len(path) * 2 / 3));
}

#[test]
fn a_log_that_is_not_a_log_is_reported() {
    damaged("log.db", Hit::Sure, |path| overwrite(path, 0, &[0x5a; 8_192]));
}

/// SQLite itself takes a write-ahead log up to its first damaged frame and says nothing of the rest.
#[test]
fn flipped_bytes_in_the_write_ahead_log_are_reported() {
    damaged("log.db-wal", Hit::Perhaps, |path| overwrite(path, len(path) / 4, &[0x5a; 64]));
}

/// Does the damage hit something that counts? Much of a write-ahead log has been copied into its database already.
#[derive(PartialEq)]
enum Hit {
    Sure,
    Perhaps,
}

/// Fills one server, kills it, damages a file: started again it must refuse with a report that names the log, or (where
/// the damage hit nothing that counts) have everything.
fn damaged(file: &str, hit: Hit, damage: impl Fn(&Path)) {
    let mut cluster = Cluster::start(1, "");
    const KEYS: usize = 12_000;
    let mut client = cluster.client(0);
    for start in (0..KEYS).step_by(200) {
        let batch =
            (start..start + 200).map(|n| put_request(&large_key(n), &large_value(n), "ONE")).collect();
        assert_eq!(client.put_batch(batch).unwrap(), 200);
    }
    drop(client);
    cluster.kill(0);
    damage(&cluster.data(0).join(file));

    let before = cluster.log(0).len();
    match cluster.start_or_refusal(0) {
        Some(refusal) => {
            let said = cluster.log(0)[before..].to_owned();
            println!("{said}");
            assert!(refusal.contains("exit status: 2"), "{refusal}");
            assert!(said.contains("log.db"), "the report names the file: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
        None => {
            assert!(hit == Hit::Perhaps, "damage that must have hit rows was not noticed");
            let mut client = cluster.client(0);
            for n in 0..KEYS {
                let got = client.get(&large_key(n), "ONE").unwrap_or_else(|error| panic!("key {n}: {error}"));
                assert_eq!(got, Some(large_value(n)), "key {n} was skipped in silence");
            }
        }
    }
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len()
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("the file is there");
    file.seek(SeekFrom::Start(at)).expect("a file can be sought");
    file.write_all(bytes).expect("a file can be written");
}

fn cut(path: &Path, len: u64) {
    OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the file is there")
        .set_len(len)
        .expect("a file can be cut");
}

// ------------------------------------------------------------------------------------------------ disk full

#[test]
fn on_a_full_disk_writes_are_refused_reads_go_on_and_space_mends_it() {
    let mut cluster = Cluster::prepare(1, |_| String::new());
    let Some(disk) = SmallDisk::mount(&cluster.data(0)) else {
        println!("skipped: mounting a tmpfs is not permitted here");
        return;
    };
    cluster.restart(0);
    let mut client = cluster.client(0);
    let key = |n: usize| format!("key {n}").into_bytes();
    let value = |n: usize| vec![n as u8; 100_000];

    let mut acknowledged = 0;
    let refusal = loop {
        match client.put(&key(acknowledged), &value(acknowledged), "ONE") {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the small disk never fills");
    };
    println!("after {acknowledged} puts: {refusal}");
    assert!(refusal.is_refusal(), "{refusal}");
    let said = format!("{refusal} {}", cluster.log(0)).to_lowercase();
    assert!(said.contains("full") || said.contains("space"), "it says why: {said}");
    assert!(acknowledged > 5);

    for n in 0..acknowledged {
        assert_eq!(client.get(&key(n), "ONE").unwrap(), Some(value(n)), "reads go on");
    }
    disk.grow();
    wait_until("writes are taken again", || client.put(b"afterwards", b"x", "ONE").is_ok());

    cluster.kill(0);
    cluster.restart(0);
    let mut client = cluster.client(0);
    for n in 0..acknowledged {
        assert_eq!(
            client.get(&key(n), "ONE").unwrap(),
            Some(value(n)),
            "acknowledged before the disk was full"
        );
    }
    assert_eq!(client.get(b"afterwards", "ONE").unwrap().as_deref(), Some(&b"x"[..]));
}

/// A few megabytes mounted on a directory; unmounted when dropped, which must be before the directory is deleted.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Option<SmallDisk> {
        fs::create_dir_all(path).expect("a directory in the temporary directory");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(path));
        mounted.then(|| SmallDisk(path.to_owned()))
    }

    fn grow(&self) {
        assert!(run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(&self.0)));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0)); // lazily: a server may still have files open
    }
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

// ------------------------------------------------------------------------------------------------ the drill program

#[test]
fn a_drill_loses_nothing_draws_its_page_and_cleans_up() {
    let directory = tempfile::tempdir().unwrap();
    let (scratch, page) = (directory.path().join("scratch"), directory.path().join("page.html"));
    let output = drill(&scratch, &page).args(["--seconds", "3", "--clients", "8"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for line in ["lost                  0\n", "stale                 0\n", "repeat                drill"] {
        assert!(said.contains(line), "{said}");
    }
    assert!(fs::read_to_string(page).unwrap().contains("<svg"));
    assert!(!scratch.exists(), "a drill that found nothing leaves nothing");
}

#[test]
fn however_a_drill_ends_its_servers_end_with_it() {
    for signal in ["INT", "TERM", "KILL"] {
        let directory = tempfile::tempdir().unwrap();
        let scratch = directory.path().join("scratch");
        let mut drill = drill(&scratch, &directory.path().join("page.html")).spawn().unwrap();
        wait_until("the servers of the drill are ready", || {
            (0..4).all(|id| scratch.join(format!("data/{id}/READY")).exists())
        });
        let nodes = fs::read_to_string(scratch.join("nodes.txt")).unwrap();
        assert!(run(Command::new("sh").args(["-c", &format!("kill -{signal} {}", drill.id())])));
        let code = drill.wait().unwrap().code();
        for address in nodes.lines() {
            wait_until("nobody listens any more", || std::net::TcpStream::connect(address).is_err());
        }
        if signal != "KILL" {
            assert_eq!(code, Some(130));
            assert!(!scratch.exists());
        }
    }
}

fn drill(scratch: &Path, page: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drill"));
    command.arg("--dir").arg(scratch).arg("--report").arg(page);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

// ------------------------------------------------------------------------------------------------ refusals

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let cluster = Cluster::start(1, "");
    let other_port = free_ports(1)[0];
    cluster.write("moved.txt", &format!("127.0.0.1:{other_port}\n"));
    let pid = cluster.pid(0).to_string();
    cluster
        .refusal(&["--id", "0", "--nodes", "moved.txt", "--data", "data/0"])
        .assert_says(&["data/0", "in use", &pid]);
    assert!(cluster.data(0).join("READY").exists(), "the first one is not disturbed");
    cluster.client(0).classic_put(0, "still here", "ONE").unwrap();
}

#[test]
fn a_taken_port_is_refused() {
    let cluster = Cluster::prepare(2, |_| String::new());
    let _taker = TcpListener::bind(("127.0.0.1", cluster.port(1))).expect("a free port");
    let port = cluster.port(1).to_string();
    cluster.refusal(&[&port]).assert_says(&["cannot listen", &port, "nodes.txt"]);
}

#[test]
fn a_bad_nodes_file_or_wrong_use_is_refused() {
    let cluster = Cluster::prepare(2, |_| String::new());
    cluster.refusal(&["1"]).assert_says(&["nodes.txt", "port 1"]);
    cluster.refusal(&["--id", "7"]).assert_says(&["nodes.txt", "7"]);
    cluster.refusal(&[]).assert_says(&["port"]);
    cluster.refusal(&["--no-such-option"]).assert_says(&["--no-such-option"]);
    cluster.write("bad.txt", "127.0.0.1:9000\nno port here\n");
    cluster.refusal(&["9000", "--nodes", "bad.txt"]).assert_says(&["bad.txt", "line 2", "host:port"]);
    cluster.write("twice.txt", "127.0.0.1:9000\n127.0.0.1:9000\n");
    cluster.refusal(&["--id", "0", "--nodes", "twice.txt"]).assert_says(&["twice.txt", "line 2"]);
    cluster.refusal(&["9000", "--nodes", "absent.txt"]).assert_says(&["absent.txt", "./server.sh"]);
    cluster.write("bad.toml", "handoff = true\nreplication_factor = 0\n");
    let port = cluster.port(0).to_string();
    cluster.refusal(&[&port, "--config", "bad.toml"]).assert_says(&[
        "bad.toml",
        "line 2",
        "replication_factor",
    ]);
    cluster.write("typo.toml", "hand_off = true\n");
    cluster.refusal(&[&port, "--config", "typo.toml"]).assert_says(&["typo.toml", "hand_off"]);
    assert!(!cluster.path().join("data").exists(), "nothing was touched");
}

#[test]
fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let name = |id: usize| if id == 3 { "another" } else { "ours" };
    let cluster = Cluster::start_each(4, |id| format!("cluster_name = \"{}\"\n", name(id)), false);
    for (here, there) in [(0, 3), (3, 0)] {
        let said = || cluster.log(here).lines().any(|line| line.contains("another") && line.contains("ours"));
        wait_until(&format!("server {here} says that server {there} is of another cluster"), said);
        cluster.wait_seen(here, there, "down");
    }
    cluster.client(0).classic_put(137, "x", "QUORUM").unwrap();
    assert_eq!(cluster.client(3).own_copy(137), None, "it gets nothing of ours");
}

#[test]
fn a_data_directory_of_another_server_or_cluster_is_refused() {
    let mut cluster = Cluster::start(2, "");
    cluster.stop(0);
    cluster.stop(1);
    cluster.refusal(&["--id", "1", "--data", "data/0"]).assert_says(&["data/0", "server 0", "server 1"]);
    cluster.write("other.toml", "cluster_name = \"other\"\n");
    cluster.refusal(&["--id", "0", "--config", "other.toml"]).assert_says(&["data/0", "other", "cluster"]);
    cluster.write("fewer.toml", "replication_factor = 1\n");
    cluster.refusal(&["--id", "0", "--config", "fewer.toml"]).assert_says(&["data/0", "replication"]);
    cluster.restart_each(&[0, 1]);
}

#[test]
fn a_nodes_file_that_would_move_keys_is_refused_and_a_moved_address_is_not() {
    let mut cluster = Cluster::start(3, "");
    cluster.client(0).classic_put(0, "x", "ALL").unwrap();
    for id in 0..3 {
        cluster.stop(id);
    }
    let lines = |ports: &[u16]| ports.iter().map(|port| format!("127.0.0.1:{port}\n")).collect::<String>();
    let ports: Vec<u16> = (0..3).map(|id| cluster.port(id)).collect();
    let new = free_ports(2);

    cluster.write("more.txt", &lines(&[ports[0], ports[1], ports[2], new[0]]));
    cluster.refusal(&["--id", "0", "--nodes", "more.txt"]).assert_says(&["data/0", "3", "4"]);
    cluster.write("fewer.txt", &lines(&ports[..2]));
    cluster.refusal(&["--id", "0", "--nodes", "fewer.txt"]).assert_says(&["data/0", "3", "2"]);
    cluster.write("swapped.txt", &lines(&[ports[1], ports[0], ports[2]]));
    let port = ports[0].to_string();
    cluster
        .refusal(&[&port, "--nodes", "swapped.txt", "--data", "data/0"])
        .assert_says(&["data/0", "server 0"]);
    cluster.refusal(&["--id", "0", "--nodes", "swapped.txt"]).assert_says(&["data/0", "order"]);

    cluster.move_to(0, new[1]);
    cluster.restart_each(&[0, 1, 2]);
    cluster.wait_all_up();
    assert_eq!(cluster.client(1).classic_get(0, "ALL").unwrap().as_deref(), Some("x"));
}

// ------------------------------------------------------------------------------------------------ scripts

#[test]
fn the_scripts_start_and_stop_exactly_the_servers_of_their_directory() {
    let scripts = Scripts::prepare();
    let bystander = Cluster::start(1, "");

    let started = scripts.run("server.sh", &[]);
    assert_eq!(started.status.code(), Some(0), "{}", text(&started));
    let said = String::from_utf8_lossy(&started.stdout).into_owned();
    for id in 0..4 {
        let line =
            format!("server {id}  pid {}  port {}  data/{id}", scripts.pid(id), scripts.cluster.port(id));
        assert!(said.lines().any(|said| said == line), "no '{line}' in:\n{said}");
    }
    let last = said.lines().last().expect("it says something");
    assert!(last.starts_with("4 servers ready in "), "{last}");
    for part in [" s. Console: ", "/client   State: ", "/inspector   Stop: ./terminate_servers.sh"] {
        assert!(last.contains(part), "{last}");
    }

    let again = scripts.run("server.sh", &[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("all servers already run"), "{}", text(&again));

    // The drill by hand: crash server 0, bring it back by its port alone.
    assert!(run(Command::new("sh").args(["-c", &format!("kill -9 {}", scripts.pid(0))])));
    let mut by_hand = scripts.server(scripts.cluster.port(0));
    wait_until("server 0 is back", || {
        // A killed process may hold its files and its port a moment longer.
        if by_hand.try_wait().expect("a child can be asked").is_some() {
            by_hand = scripts.server(scripts.cluster.port(0));
        }
        let ready = fs::read_to_string(scripts.cluster.data(0).join("READY")).unwrap_or_default();
        ready.trim() == by_hand.id().to_string()
    });
    wait_until("it works", || {
        let put =
            Client::connect(scripts.cluster.port(0)).map(|mut client| client.classic_put(0, "kept", "ALL"));
        matches!(put, Ok(Ok(())))
    });

    let stopped = scripts.run("terminate_servers.sh", &[]);
    assert_eq!(stopped.status.code(), Some(0), "{}", text(&stopped));
    assert_eq!(text(&stopped).matches("stopped").count(), 4, "{}", text(&stopped));
    assert!(by_hand.wait().expect("a child ends").success(), "the one started by hand is stopped too");
    assert!(text(&scripts.run("terminate_servers.sh", &[])).contains("no server runs from here"));
    bystander.client(0).classic_put(0, "untouched", "ONE").unwrap();

    // The binaries as named where the script is called.
    let (folder, name) = (Scripts::bin().parent(), Scripts::bin().file_name());
    let (folder, name) = (folder.expect("not the root"), Path::new(name.expect("not the root")));
    let started = scripts.run_from(folder, name, "server.sh", &[]);
    assert_eq!(started.status.code(), Some(0), "{}", text(&started));
    wait_until("the data is there", || {
        let got = Client::connect(scripts.cluster.port(1)).map(|mut client| client.classic_get(0, "QUORUM"));
        matches!(got, Ok(Ok(Some(value))) if value == "kept")
    });
    let cleaned = scripts.run("terminate_servers.sh", &["--clean"]);
    assert_eq!(cleaned.status.code(), Some(0), "{}", text(&cleaned));
    assert!(!scripts.cluster.path().join("data").exists());
    bystander.client(0).classic_put(0, "still untouched", "ONE").unwrap();
}

#[test]
fn the_start_script_brings_back_what_does_not_run_and_leaves_the_others_alone() {
    let scripts = Scripts::prepare();
    let nodes = fs::read_to_string(scripts.cluster.path().join("nodes.txt")).expect("it is there");
    scripts.cluster.write("nodes.txt", &nodes.replace('\n', "\r\n"));
    scripts.cluster.write("some.toml", "read_repair = false\n");
    let started = scripts.run("server.sh", &["--config", "some.toml"]);
    assert_eq!(started.status.code(), Some(0), "{}", text(&started));
    let before: Vec<String> = (0..4).map(|id| scripts.pid(id)).collect();
    let killed = [&before[1], &before[3]];
    assert!(run(Command::new("kill").arg("-9").args(killed)));
    wait_until("both are gone", || {
        let listed = text(&scripts.run("terminate_servers.sh", &["--list"]));
        listed == format!("0 {}\n2 {}\n", before[0], before[2])
    });

    let again = scripts.run("server.sh", &["--config", "no-such.toml"]);
    assert_eq!(again.status.code(), Some(2), "{}", text(&again));
    let again = scripts.run("server.sh", &["--config", "some.toml"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again));
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    let after: Vec<String> = (0..4).map(|id| scripts.pid(id)).collect();
    for (id, running) in [(0, "  already runs"), (1, ""), (2, "  already runs"), (3, "")] {
        assert_eq!(after[id] == before[id], !running.is_empty(), "server {id}");
        let port = scripts.cluster.port(id);
        let line = format!("server {id}  pid {}  port {port}  data/{id}{running}", after[id]);
        assert!(said.lines().any(|said| said == line), "no '{line}' in:\n{said}");
    }
    let last = said.lines().last().expect("it says something");
    assert!(
        last.starts_with("2 servers ready in ") && last.contains(" s, beside 2 servers. Console: "),
        "{last}"
    );
    let log = fs::read_to_string(scripts.cluster.data(3).join("server.log")).expect("a log");
    assert_eq!(log.matches("replayed").count(), 2, "its log goes on where it was:\n{log}");

    // A line that is gone: what runs there is not what nodes.txt says.
    scripts.cluster.write_nodes(&[0, 1, 2]);
    let refused = scripts.run("server.sh", &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("no local line of nodes.txt is server 3"), "{}", text(&refused));
}

#[test]
fn a_process_that_only_has_the_number_and_the_name_of_a_server_is_none() {
    let scripts = Scripts::prepare();
    let mut command = Command::new("bash");
    command.args(["-c", "echo server >/proc/$$/comm; echo ready; read -r _"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let is_root = run(Command::new("sh").args(["-c", "[ $(id -u) = 0 ] && setpriv --version"]));
    if is_root {
        command.uid(65_534); // another user's: what it has open is nobody else's business
    }
    let mut other = command.spawn().expect("bash runs");
    let mut ready = [0; 6];
    other.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("it is ready");
    fs::create_dir_all(scripts.cluster.data(0)).expect("a directory can be made");
    scripts.cluster.write("data/0/LOCK", &format!("{}\n", other.id()));

    let script = scripts.cluster.path().join("terminate_servers.sh");
    let mut list = Command::new(if is_root { "setpriv" } else { "bash" });
    if is_root {
        list.args(["--bounding-set=-all", "--inh-caps=-all", "bash"]);
    }
    let listed = list.arg(script).arg("--list").output().expect("bash runs");
    assert_eq!((listed.status.code(), text(&listed)), (Some(0), String::new()));
    drop(other.stdin.take());
    other.wait().expect("a child ends");
}

#[test]
fn the_scripts_explain_themselves_from_anywhere() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let elsewhere = top.join("docs");
    for script in [
        "server.sh",
        "terminate_servers.sh",
        "tests/run.sh",
        "tests/faults.sh",
        "tests/fuzz.sh",
        "benches/ratio.sh",
    ] {
        let mut command = Command::new("bash");
        command.arg(Path::new("..").join(script)).arg("--help").current_dir(&elsewhere);
        let said = command.output().expect("bash runs");
        let file = fs::read_to_string(top.join(script)).expect("the script is there");
        let first = file.lines().nth(1).expect("it says what it does").trim_start_matches("# ").to_owned();
        assert_eq!(said.status.code(), Some(0), "{script}: {}", text(&said));
        assert!(text(&said).starts_with(&first), "{script}: {}", text(&said));
    }
}

#[test]
fn cleaning_empties_a_data_directory_that_lies_elsewhere() {
    let scripts = Scripts::prepare();
    for (id, file) in [(0, "LOCK"), (1, "server.log"), (2, "holiday.txt")] {
        let elsewhere = format!("elsewhere-{id}");
        fs::create_dir_all(scripts.cluster.path().join(&elsewhere).join("below")).expect("a directory");
        scripts.cluster.write(&format!("{elsewhere}/{file}"), "");
        fs::create_dir_all(scripts.cluster.path().join("data")).expect("a directory");
        std::os::unix::fs::symlink(format!("../{elsewhere}"), scripts.cluster.data(id)).expect("a link");
    }
    let cleaned = scripts.run("terminate_servers.sh", &["--clean"]);
    assert_eq!(cleaned.status.code(), Some(0), "{}", text(&cleaned));
    assert!(text(&cleaned).contains("data/0 emptied: it is a link to ../elsewhere-0"), "{}", text(&cleaned));
    for (id, left) in [(0, 0), (1, 0), (2, 2)] {
        assert_eq!(fs::read_dir(scripts.cluster.data(id)).expect("the link is there").count(), left, "{id}");
    }
}

#[test]
fn the_start_script_says_what_is_in_the_way_and_leaves_nothing_running() {
    let scripts = Scripts::prepare();
    let taker = TcpListener::bind(("127.0.0.1", scripts.cluster.port(2))).expect("a free port");
    let refused = scripts.run("server.sh", &[]);
    assert_eq!(refused.status.code(), Some(2));
    let port = scripts.cluster.port(2).to_string();
    assert!(text(&refused).contains(&format!("port {port} of server 2 is taken")), "{}", text(&refused));
    drop(taker);

    scripts.cluster.write("bad.toml", "\nno_such_key = 1\n");
    let refused = scripts.run("server.sh", &["--config", "bad.toml"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("no_such_key"), "{}", text(&refused));
    assert!(text(&scripts.run("terminate_servers.sh", &[])).contains("no server runs from here"));
}

#[test]
fn what_is_printed_may_be_read_in_part() {
    for (program, argument) in [
        (env!("CARGO_BIN_EXE_server"), "--print-config"),
        (env!("CARGO_BIN_EXE_server"), "--help"),
        (env!("CARGO_BIN_EXE_client"), "--help"),
        (env!("CARGO_BIN_EXE_inspector"), "--help"),
        (env!("CARGO_BIN_EXE_stress"), "--help"),
        (env!("CARGO_BIN_EXE_drill"), "--help"),
        (env!("CARGO_BIN_EXE_drill"), "--list"),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ended = Command::new(program).arg(argument).stdout(writer).output().expect("it runs");
        assert_eq!(ended.status.code(), Some(0), "{program} {argument}: {}", text(&ended));
    }
}

/// The two scripts in a directory of their own, with the binaries of this build.
struct Scripts {
    cluster: Cluster,
}

impl Scripts {
    fn prepare() -> Scripts {
        let cluster = Cluster::prepare(4, |_| String::new());
        for script in ["server.sh", "terminate_servers.sh"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
            fs::copy(from, cluster.path().join(script)).expect("the script is there");
        }
        Scripts { cluster }
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        self.run_from(self.cluster.path(), Scripts::bin(), script, arguments)
    }

    /// From this folder, with the binaries of a folder that is named as seen from there.
    fn run_from(&self, folder: &Path, bin: &Path, script: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("bash");
        command.arg(self.cluster.path().join(script)).args(arguments).current_dir(folder);
        command.env("TETRACHORD_BIN", bin).env("RUST_LOG", "info").output().expect("bash runs")
    }

    fn bin() -> &'static Path {
        Path::new(env!("CARGO_BIN_EXE_server")).parent().expect("a binary is in a folder")
    }

    /// A server as started by hand, with nothing but its port.
    fn server(&self, port: u16) -> std::process::Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        command.arg(port.to_string()).current_dir(self.cluster.path()).stderr(std::process::Stdio::null());
        command.spawn().expect("the server binary runs")
    }

    fn pid(&self, id: usize) -> String {
        let lock =
            fs::read_to_string(self.cluster.data(id).join("LOCK")).expect("a running server has its LOCK");
        lock.trim().to_owned()
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        let _ = self.run("terminate_servers.sh", &[]);
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

// ------------------------------------------------------------------------------------------------ helpers

/// The value of a classic key on one server itself.
fn own_value(cluster: &Cluster, id: usize, key: u8) -> Option<String> {
    cluster.client(id).own_copy(key).map(|(value, _)| value)
}
