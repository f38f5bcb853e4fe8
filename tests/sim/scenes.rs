//! Runs made by hand, each around one thing that once went wrong or that seeds meet too seldom. Seeds change their
//! meaning whenever a plan is drawn differently; these do not. All of them run every time.

use tetrachord::answer::NodeId;
use tetrachord::config::Config;
use tetrachord::coordinator::Level;

use super::disk::End;
use super::network::Weather;
use super::plan::{Fault, Plan, Step, What};

/// Every scene and its name.
pub fn all() -> Vec<(&'static str, Plan)> {
    vec![
        ("an old copy does not bring back what was deleted", old_copy_and_deletion()),
        ("a hint is kept until its replica has it", hint_and_slow_replica()),
        ("hints come no faster than a slow replica takes them", hints_for_a_slow_log()),
        ("a crash in the middle of a flush loses nothing", crashes_while_flushing()),
        ("an old copy that writes catch up with is recognised", old_copy_under_load()),
        ("an old copy stays known as one, however much is written to it", old_copy_restarted()),
        ("a server that lost its disk answers nobody before it has asked", empty_disk_under_reads()),
        ("a server that lost its disk lacks the last second of writes too", disk_lost_right_after_writes()),
        ("rows that are not as they were written are never passed over", damage_again_and_again()),
        ("writes at all levels of one key, made in the same microsecond", one_stamp_twice()),
    ]
}

/// Three servers that hold everything, and nothing wrong.
fn calm(seed: u64) -> Plan {
    Plan {
        seed,
        nodes: 3,
        config: Config { base_cache_bytes: 100_000, ..Config::default() },
        weather: Weather::calm(),
        disk_pause_ms: 0,
        clock_offsets_ms: vec![0; 3],
        faults: Vec::new(),
        clients: Vec::new(),
        strict: false,
    }
}

fn step(think_ms: u64, via: u32, key: u32, level: Level, what: What) -> Step {
    Step { think_ms, via: NodeId(via), key, level, what }
}

/// What a client waits before its step of this number: until it is time to begin, then a little each time.
fn pause(number: u32, first_ms: u64, ms: u64) -> u64 {
    if number == 0 { first_ms } else { ms }
}

/// The copy has a value whose deletion has been collected everywhere when the copy is put back.
fn old_copy_and_deletion() -> Plan {
    let plan = calm(1);
    let config = Config { collection_lag_ms: 0, collection_pause_ms: 0, reconcile_lag_ms: 0, ..plan.config };
    let quorum = Level::Quorum;
    let client = vec![
        step(1_000, 0, 1, quorum, What::Put(20)),
        step(3_000, 0, 1, quorum, What::Remove),
        step(12_000, 0, 1, quorum, What::Get),
    ];
    let faults = vec![(3_000, Fault::OldCopy { node: NodeId(1), ms: 10_000 })];
    Plan { config, faults, clients: vec![client], ..plan }
}

/// A server returns, gets its hints, takes its time over them, and ends before it has stored them.
fn hint_and_slow_replica() -> Plan {
    let plan = calm(2);
    let config = Config { reconciliation: false, read_repair: false, ..plan.config };
    let put = |key| step(pause(key, 1_500, 10), 0, key, Level::Quorum, What::Put(20));
    let node = NodeId(1);
    let faults = vec![
        (1_000, Fault::End { node, end: End::Kill, down_ms: 2_000 }),
        (2_900, Fault::SlowDisk { node, pause_ms: 60_000, ms: 1_000 }),
        (3_400, Fault::End { node, end: End::Kill, down_ms: 2_000 }),
    ];
    Plan { config, faults, clients: vec![(0..10).map(put).collect()], ..plan }
}

/// Two servers have many hints for a third whose log takes a hundred mutations a second.
fn hints_for_a_slow_log() -> Plan {
    let plan = calm(9);
    let config = Config {
        commit_batch_mutations_max: 1,
        write_timeout_ms: 300,
        reconciliation: false,
        read_repair: false,
        ..plan.config
    };
    let client = |via| {
        (0..200).map(|key| step(pause(key, 1_500, 25), via, key % 40, Level::Quorum, What::Put(20))).collect()
    };
    let faults = vec![(1_000, Fault::End { node: NodeId(1), end: End::Kill, down_ms: 6_000 })];
    Plan { config, disk_pause_ms: 20, faults, clients: vec![client(0), client(2)], ..plan }
}

/// data.db gets a memtable cell by cell, and each cell takes its time.
fn crashes_while_flushing() -> Plan {
    let plan = calm(3);
    let config = Config { memtable_bytes_max: 4_000, flush_transaction_cells: 1, ..plan.config };
    let put = |key| step(20, 0, key, Level::Quorum, What::Put(200));
    let crash = |number: u64| (400 + 370 * number, Fault::EndAll { end: End::PowerLoss, down_ms: 20 });
    let faults = (0..20).map(crash).collect();
    let clients = vec![(0..300).map(put).collect()];
    Plan { config, disk_pause_ms: 10, faults, clients, ..plan }
}

/// As many rows come as the copy lacks, before the others have been heard.
fn old_copy_under_load() -> Plan {
    let plan = calm(4);
    let weather = Weather { delay_ms: (0, 60), ..Weather::calm() };
    let client = |client: u32| {
        let put = move |key| step(3, client % 3, client * 100 + key, Level::Quorum, What::Put(20));
        (0..200).map(put).collect()
    };
    let faults = vec![(2_000, Fault::OldCopy { node: NodeId(1), ms: 60 })];
    Plan { weather, faults, clients: (0..8).map(client).collect(), ..plan }
}

/// Without the third server nothing can be proven, so the second is not whole again. It logs more rows than its copy
/// lacks, and ends.
fn old_copy_restarted() -> Plan {
    let plan = calm(10);
    let put = |key, think_ms, level| step(think_ms, 0, key, level, What::Put(20));
    let before = (0..100).map(|key| put(key, pause(key, 2_000, 10), Level::All)).collect();
    let after = (0..200).map(|key| put(100 + key, pause(key, 5_000, 5), Level::Quorum)).collect();
    let (second, third) = (NodeId(1), NodeId(2));
    let faults = vec![
        (2_500, Fault::OldCopy { node: second, ms: 1_500 }),
        (3_900, Fault::End { node: third, end: End::Kill, down_ms: 6_000 }),
        (7_000, Fault::End { node: second, end: End::Kill, down_ms: 100 }),
    ];
    Plan { faults, clients: vec![before, after], ..plan }
}

/// The first replica has the writes, the second loses them with its disk, and the third, which never had them, reads:
/// it hears only the second.
fn empty_disk_under_reads() -> Plan {
    let plan = calm(6);
    let config = Config { handoff: false, ..plan.config };
    let weather = Weather { delay_ms: (0, 20), straggler_one_in: 3, straggler_ms: 400, ..Weather::calm() };
    let writer = |key: u32| step(pause(key, 1_500, 5), 0, key, Level::Quorum, What::Put(20));
    let reader = |client: u32| {
        let read = move |number: u32| {
            step(pause(number, 3_900, 5), 2, (number * 5 + client) % 30, Level::Quorum, What::Get)
        };
        (0..100).map(read).collect()
    };
    let (first, second, third) = (NodeId(0), NodeId(1), NodeId(2));
    let faults = vec![
        (1_000, Fault::Cut { from: first, to: third, ms: 6_000 }),
        (1_000, Fault::Cut { from: third, to: first, ms: 6_000 }),
        (3_900, Fault::LoseDisk { node: second, down_ms: 1 }),
    ];
    let clients = std::iter::once((0..30).map(writer).collect()).chain((0..8).map(reader)).collect();
    Plan { config, weather, faults, clients, ..plan }
}

/// What was written last is left out when replicas are compared: a range may be equal up to a second ago, and lack
/// that.
fn disk_lost_right_after_writes() -> Plan {
    let plan = calm(8);
    let config = Config { reconcile_round_ms: 100, ..plan.config };
    let writer = |key: u32| step(pause(key, 1_500, 5), 0, key, Level::All, What::Put(20));
    let reader = |client: u32| {
        let read = move |number: u32| {
            step(pause(number, 2_600, 10), 1, (number * 7 + client) % 100, Level::One, What::Get)
        };
        (0..150).map(read).collect()
    };
    let faults = vec![(2_550, Fault::LoseDisk { node: NodeId(1), down_ms: 1 })];
    let clients = std::iter::once((0..100).map(writer).collect()).chain((0..6).map(reader)).collect();
    Plan { config, faults, clients, ..plan }
}

/// Bits are flipped again and again in files that hold rows which are nowhere else.
fn damage_again_and_again() -> Plan {
    let plan = calm(7);
    let config = Config { wal_autocheckpoint_pages: 10, ..plan.config };
    let put = |key| step(30, key % 3, key, Level::All, What::Put(200));
    let damage =
        |number: u64| (500 + 250 * number, Fault::Damage { node: NodeId(number as u32 % 3), down_ms: 1 });
    let faults = (0..30).map(damage).collect();
    Plan { config, faults, clients: vec![(0..250).map(put).collect()], ..plan }
}

/// Clocks agree to the microsecond, so that coordinators make the same stamps.
fn one_stamp_twice() -> Plan {
    let client = |client: u32| {
        let one = move |number: u32| {
            let level = [Level::One, Level::All, Level::Quorum][(number + client) as usize % 3];
            let what = if (number + client).is_multiple_of(2) { What::Remove } else { What::Put(20) };
            step(10, client % 3, 1, level, what)
        };
        (0..100).map(one).collect()
    };
    Plan { clients: (0..3).map(client).collect(), ..calm(5) }
}
