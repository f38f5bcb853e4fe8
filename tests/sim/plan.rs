//! What a run will be: everything that a seed decides beforehand, as a value that can be read, cut down and run again.
//!
//! What is decided while it runs (each delay, each loss) comes from generators seeded by the same number.

use std::fmt;

use tetrachord::answer::NodeId;
use tetrachord::config::{Config, Durability};
use tetrachord::coordinator::Level;

use super::disk::{End, Trouble};
use super::network::Weather;

/// A run.
#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub config: Config,
    pub weather: Weather,
    /// Milliseconds before each piece of a disk's work: at most.
    pub disk_pause_ms: u64,
    /// Of each server's wall clock, in milliseconds.
    pub clock_offsets_ms: Vec<i64>,
    pub faults: Vec<(u64, Fault)>,
    pub clients: Vec<Vec<Step>>,
    /// An order of all operations on a key is asked for even where none is promised.
    pub strict: bool,
}

/// Something goes wrong, for a while.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// A process ends and is started again.
    End { node: NodeId, end: End, down_ms: u64 },
    /// The same in the middle of a write or sync, this many of them from now.
    Fuse { node: NodeId, operations: u32, end: End, down_ms: u64 },
    /// All at once.
    EndAll { end: End, down_ms: u64 },
    /// Bytes of the files of a server that was killed are flipped.
    Damage { node: NodeId, down_ms: u64 },
    /// Nothing gets from one to the other.
    Cut { from: NodeId, to: NodeId, ms: u64 },
    /// These do not hear the others, nor the others them.
    Split { group: Vec<NodeId>, ms: u64 },
    /// Cut and mended again and again.
    Flap { from: NodeId, to: NodeId, times: u32, ms: u64 },
    /// Neither hears nor speaks.
    Freeze { node: NodeId, ms: u64 },
    /// A wall clock is set.
    Clock { node: NodeId, by_ms: i64 },
    /// A disk is in trouble, until the server is started again.
    Disk { node: NodeId, trouble: Trouble, ms: u64 },
    /// A server's disk is lost: it starts again with an empty one.
    LoseDisk { node: NodeId, down_ms: u64 },
    /// A server's files are copied, and so long later put back.
    OldCopy { node: NodeId, ms: u64 },
    /// A disk takes its time: this many milliseconds for each piece of work.
    SlowDisk { node: NodeId, pause_ms: u64, ms: u64 },
}

impl Fault {
    /// With `process-crash` durability a power cut may take the end of the log, and nobody can tell that from damage
    /// there: that is what it says.
    fn without_power_loss(&mut self) {
        match self {
            Fault::End { end, .. } | Fault::Fuse { end, .. } | Fault::EndAll { end, .. } => *end = End::Kill,
            Fault::Damage { node, down_ms } => {
                *self = Fault::End { node: *node, end: End::Kill, down_ms: *down_ms }
            }
            _ => {}
        }
    }
}

/// One thing a client does.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Before it, in milliseconds.
    pub think_ms: u64,
    pub via: NodeId,
    pub key: u32,
    pub level: Level,
    pub what: What,
}

/// What a client does with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Writes a value of this many bytes.
    Put(usize),
    Remove,
    Get,
}

/// Phase 1 takes about this long.
const LONG_MS: u64 = 8_000;

impl Plan {
    /// What the seed decides.
    pub fn from_seed(seed: u64) -> Plan {
        let mut random = fastrand::Rng::with_seed(seed);
        let r = &mut random;
        let nodes = if r.u8(..3) > 0 { 4 } else { r.usize(3..=9) };
        let replication_factor = match r.u8(..8) {
            0 => r.usize(1..=nodes.min(5)),
            1 => nodes.min(5),
            _ => 3,
        };
        let config = config(r, replication_factor);
        let mut faults = faults(r, nodes);
        if config.durability == Durability::ProcessCrash {
            faults.iter_mut().for_each(|(_, fault)| fault.without_power_loss());
        }
        let mut plan = Plan {
            seed,
            nodes,
            config,
            weather: weather(r),
            disk_pause_ms: *pick(r, &[0, 0, 1, 3, 10]),
            clock_offsets_ms: clock_offsets(r, nodes),
            faults,
            clients: clients(r, nodes),
            strict: false,
        };
        if r.u8(..5) == 0 {
            // Of one server: two would be all copies of a write at QUORUM.
            plan.faults.push((r.u64(1_000..LONG_MS), lost_files(r, nodes)));
        }
        // Decided last, so that a seed says of all else what it always did.
        plan.config.commit_group_window_us = *pick(r, &[0, plan.config.commit_group_window_us, 50_000]);
        if r.u8(..4) == 0 {
            plan.config.commit_batch_mutations_max = 8; // of several, and filled by fewer than are enough
        }
        plan
    }

    /// Deletions are dropped once every replica has them.
    pub fn collects(&self) -> bool {
        self.config.reconciliation && self.config.collection
    }

    /// How many steps all clients make.
    pub fn steps(&self) -> usize {
        self.clients.iter().map(Vec::len).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, nodes, config, weather, .. } = self;
        writeln!(
            f,
            "seed {seed}: {nodes} servers, {} replicas, {}",
            config.replication_factor,
            config.durability.as_str()
        )?;
        writeln!(f, "  {weather:?}, disk pause up to {} ms", self.disk_pause_ms)?;
        writeln!(f, "  clocks off by {:?} ms", self.clock_offsets_ms)?;
        writeln!(
            f,
            "  reconciliation {}, collection {}, hints for {} s, memtable {} bytes",
            config.reconciliation, config.collection, config.hint_window_s, config.memtable_bytes_max
        )?;
        for (at_ms, fault) in &self.faults {
            writeln!(f, "  {:>9.3} {fault:?}", *at_ms as f64 / 1000.0)?;
        }
        write!(f, "  {} clients, {} steps", self.clients.len(), self.steps())
    }
}

fn config(r: &mut fastrand::Rng, replication_factor: usize) -> Config {
    let defaults = Config::default();
    let durability = if r.u8(..8) == 0 { Durability::ProcessCrash } else { Durability::PowerLoss };
    let memtable_bytes_max = *pick(r, &[4_000, 20_000, 100_000, defaults.memtable_bytes_max]);
    Config {
        replication_factor,
        durability,
        memtable_bytes_max,
        log_bytes_max: 2 * memtable_bytes_max,
        flush_transaction_cells: *pick(r, &[1, 70, 2_000]),
        wal_autocheckpoint_pages: *pick(r, &[10, 30, 1_000]),
        compaction_sstables: *pick(r, &[2, 4, 12]),
        commit_batch_mutations_max: *pick(r, &[1, 3, 4_096]),
        handoff_batch_mutations: *pick(r, &[1, 5, 512]),
        write_timeout_ms: *pick(r, &[300, 2_000]),
        read_timeout_ms: *pick(r, &[300, 2_000]),
        hint_window_s: if r.u8(..8) == 0 { 2 } else { defaults.hint_window_s },
        speculative_retry: r.bool(),
        reconciliation: r.u8(..4) > 0,
        reconcile_round_ms: *pick(r, &[100, 1_000, 1_000]),
        reconcile_lag_ms: *pick(r, &[0, 100, 1_000]),
        reconcile_list_cells: *pick(r, &[1, 3, 1_024]),
        reconcile_batch_cells: *pick(r, &[1, 256]),
        collection: r.u8(..4) > 0,
        collection_lag_ms: *pick(r, &[0, 200, 10_000]),
        collection_pause_ms: *pick(r, &[0, 100, 30_000]),
        base_cache_bytes: 100_000,
        cell_cache_bytes: 20_000,
        ..defaults
    }
}

fn weather(r: &mut fastrand::Rng) -> Weather {
    Weather {
        delay_ms: *pick(r, &[(0, 1), (0, 3), (1, 10), (0, 60)]),
        straggler_one_in: *pick(r, &[0, 20, 200]),
        straggler_ms: *pick(r, &[50, 500, 4_000]),
        lost_one_in: *pick(r, &[0, 0, 500, 50]),
        twice_one_in: *pick(r, &[0, 0, 20]),
    }
}

fn clock_offsets(r: &mut fastrand::Rng, nodes: usize) -> Vec<i64> {
    let most_ms = *pick(r, &[0, 5, 1_000, 3_600_000]);
    (0..nodes).map(|_| r.i64(-most_ms..=most_ms)).collect()
}

fn faults(r: &mut fastrand::Rng, nodes: usize) -> Vec<(u64, Fault)> {
    let count = *pick(r, &[0, 1, 2, 4, 8, 12]);
    let mut faults: Vec<(u64, Fault)> = (0..count).map(|_| (r.u64(..LONG_MS), fault(r, nodes))).collect();
    faults.sort_by_key(|(at_ms, _)| *at_ms);
    faults
}

fn fault(r: &mut fastrand::Rng, nodes: usize) -> Fault {
    let node = NodeId(r.u32(..nodes as u32));
    let other = NodeId((node.0 + r.u32(1..nodes as u32)) % nodes as u32);
    let end = if r.bool() { End::Kill } else { End::PowerLoss };
    let down_ms = *pick(r, &[1, 50, 500, 3_000]);
    let ms = *pick(r, &[20, 300, 1_500, 4_000]);
    match r.u8(..14) {
        0..=2 => Fault::End { node, end, down_ms },
        3..=5 => Fault::Fuse { node, operations: r.u32(1..60), end, down_ms },
        6 => Fault::EndAll { end, down_ms },
        7 => Fault::Damage { node, down_ms },
        8 => Fault::Cut { from: node, to: other, ms },
        9 => Fault::Split { group: (0..nodes as u32).map(NodeId).filter(|_| r.bool()).collect(), ms },
        10 => Fault::Flap { from: node, to: other, times: r.u32(2..8), ms },
        11 => Fault::Freeze { node, ms },
        12 => match r.u8(..3) {
            0 => Fault::Clock { node, by_ms: r.i64(-3_600_000..=3_600_000) },
            1 => Fault::Clock { node, by_ms: r.i64(-500..=500) },
            _ => Fault::SlowDisk { node, pause_ms: r.u64(10..800), ms },
        },
        _ => {
            let trouble = match r.u8(..3) {
                0 => Trouble { failing_writes: r.u32(1..100), ..Trouble::default() },
                1 => Trouble { failing_syncs: r.u32(1..40), ..Trouble::default() },
                _ => Trouble { full: true, ..Trouble::default() },
            };
            Fault::Disk { node, trouble, ms }
        }
    }
}

fn lost_files(r: &mut fastrand::Rng, nodes: usize) -> Fault {
    let node = NodeId(r.u32(..nodes as u32));
    match r.bool() {
        true => Fault::LoseDisk { node, down_ms: *pick(r, &[1, 500, 3_000]) },
        false => Fault::OldCopy { node, ms: *pick(r, &[100, 1_500, 7_000]) },
    }
}

fn clients(r: &mut fastrand::Rng, nodes: usize) -> Vec<Vec<Step>> {
    let clients = r.usize(2..=8);
    let steps = *pick(r, &[20, 40, 80]);
    let keys = *pick(r, &[1, 3, 10, 40]);
    let think_ms = (2 * LONG_MS) / steps as u64;
    let reads = r.u8(20..80);
    let removes = *pick(r, &[0, 5, 20]);
    let value_bytes = *pick(r, &[20, 20, 200, 3_000]);
    let levels: &[Level] = match r.u8(..6) {
        0..=2 => &[Level::Quorum],
        3 => &[Level::Quorum, Level::Quorum, Level::All],
        4 => &[Level::Quorum, Level::One, Level::Two, Level::Three, Level::All, Level::Any],
        _ => &[Level::One],
    };
    let client = |r: &mut fastrand::Rng| {
        let home = NodeId(r.u32(..nodes as u32));
        let roams = r.bool();
        let step = |r: &mut fastrand::Rng| {
            let percent = r.u8(..100);
            let what = match percent {
                _ if percent < reads => What::Get,
                _ if percent < reads + removes => What::Remove,
                _ => What::Put(value_bytes),
            };
            let level = match levels[r.usize(..levels.len())] {
                Level::Any if what == What::Get => Level::One,
                level => level,
            };
            // Squared: the first keys are asked for more often.
            let skewed = r.f64() * r.f64();
            Step {
                think_ms: if r.u8(..4) == 0 { 0 } else { r.u64(..=think_ms) },
                via: if roams { NodeId(r.u32(..nodes as u32)) } else { home },
                key: (skewed * f64::from(keys)) as u32,
                level,
                what,
            }
        };
        (0..steps).map(|_| step(r)).collect()
    };
    (0..clients).map(|_| client(r)).collect()
}

fn pick<'a, T>(r: &mut fastrand::Rng, from: &'a [T]) -> &'a T {
    &from[r.usize(..from.len())]
}
