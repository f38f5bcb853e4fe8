//! What may be asked of the load tool, and what that means: [`Options`] is what was typed, [`Plan`] what will be done.
//!
//! Everything that can be wrong with a request is found here, before a server is touched.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::keys::{KEY_BYTES_MAX, KEY_BYTES_MIN, Order};
use super::workload::Mix;
use crate::coordinator::Level;
use crate::nodes::{Nodes, NodesError};
use crate::thrift::chord;

/// Put a Tetrachord cluster under load, and say what it did and what that cost.
///
/// Workloads A, B, C, D and F are YCSB's; read, write, remove and mixed are plain ones over uniformly drawn keys.
/// Latencies are measured at this end of the wire. With --rate they count from the moment an operation was due, not
/// from when it could at last be sent, so that a stall shows in the percentiles.
///
/// Exit code: 0 every operation succeeded (or --allow-errors), 1 some did not and nothing was published, 2 wrong use or
/// no server.
#[derive(Clone, Debug, Parser)]
#[command(name = "stress", version, after_help = EXAMPLES)]
pub struct Options {
    /// Who is in the cluster, one host:port per line
    #[arg(long, value_name = "FILE", default_value = "nodes.txt", help_heading = "Where")]
    pub nodes: PathBuf,
    /// Only these servers, whatever --nodes says; several with commas. Connections are spread over them
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', help_heading = "Where")]
    pub server: Vec<String>,
    /// Speak the classic service (clientPut, clientGet; integer keys, text values; unframed, one call at a time)
    #[arg(long, help_heading = "Where")]
    pub classic: bool,
    /// With --classic: the servers know nothing else, so they are not asked for durability and counters
    #[arg(long, requires = "classic", help_heading = "Where")]
    pub foreign: bool,
    /// Milliseconds until an operation without an answer counts as failed
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000), help_heading = "Where")]
    pub timeout_ms: u64,

    /// A 50 % reads, B 95 %, C 100 %, D 95 % of the latest and inserts, F 50 % and read-modify-writes; or a plain one
    #[arg(long, value_name = "NAME", default_value = "write", ignore_case = true, help_heading = "What")]
    pub workload: WorkloadName,
    /// With --workload mixed: of 100 operations, how many are reads
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "What")]
    pub reads: Option<u8>,
    /// Which keys come how often [default: the workload's]
    #[arg(long, value_name = "ORDER", help_heading = "What")]
    pub order: Option<Order>,
    /// How many different keys [default: 1000000; classic: 256, the most there are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX), help_heading = "What")]
    pub keys: Option<u64>,
    /// Bytes of each key
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "What")]
    pub key_bytes: usize,
    /// Bytes of each value: a number, or FROM-TO for any size between
    #[arg(long, value_name = "N", default_value = "100", help_heading = "What")]
    pub value_bytes: Sizes,
    /// ONE, TWO, THREE, QUORUM, ALL, or ANY (writes only)
    #[arg(long, default_value = "QUORUM", help_heading = "What")]
    pub level: String,
    /// Level of reads [default: --level]
    #[arg(long, value_name = "LEVEL", help_heading = "What")]
    pub read_level: Option<String>,
    /// Level of writes [default: --level]
    #[arg(long, value_name = "LEVEL", help_heading = "What")]
    pub write_level: Option<String>,
    /// Put every key once before anything else, so that reads find something
    #[arg(long, conflicts_with = "fill", help_heading = "What")]
    pub load: bool,
    /// Put every key once, and nothing else
    #[arg(long, conflicts_with_all = ["workload", "operations", "seconds", "order"], help_heading = "What")]
    pub fill: bool,
    /// Another seed draws other keys, kinds and values
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "What")]
    pub seed: u64,

    /// Connections, spread over the servers
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "How much")]
    pub connections: u32,
    /// Calls under way at once on each connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), help_heading = "How much")]
    pub outstanding: u32,
    /// Operations a second, due at even intervals whatever the cluster does [default: as fast as it answers]
    #[arg(long, value_name = "N", value_parser = parse_rate, help_heading = "How much")]
    pub rate: Option<f64>,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX), help_heading = "How much")]
    pub seconds: u64,
    /// How many operations to measure, instead of how long
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..), help_heading = "How much")]
    pub operations: Option<u64>,
    /// Seconds under the same load before that, which are not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=SECONDS_MAX), help_heading = "How much")]
    pub warm_up: u64,
    /// Threads of this tool; one is enough for about 100,000 operations a second
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), help_heading = "How much")]
    pub threads: u32,

    /// Publish numbers even though operations failed
    #[arg(long, help_heading = "What is published")]
    pub allow_errors: bool,
    /// What to call this run in reports
    #[arg(long, value_name = "TEXT", help_heading = "What is published")]
    pub name: Option<String>,
    /// Write the run as JSON, which --compare and --from read
    #[arg(long, value_name = "FILE", help_heading = "What is published")]
    pub json: Option<PathBuf>,
    /// Write a line for each second
    #[arg(long, value_name = "FILE", help_heading = "What is published")]
    pub csv: Option<PathBuf>,
    /// Write one self-contained HTML page with pictures
    #[arg(long, value_name = "FILE", help_heading = "What is published")]
    pub plot: Option<PathBuf>,
    /// Beside this run, on the same pictures, show one that --json wrote, and print the ratios
    #[arg(long, value_name = "FILE", help_heading = "What is published")]
    pub compare: Option<PathBuf>,
    /// Run nothing: take a run that --json wrote, to print, plot or compare it
    #[arg(long, value_name = "FILE", help_heading = "What is published")]
    pub from: Option<PathBuf>,
    /// No line each second
    #[arg(long, help_heading = "What is published")]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  stress --fill                                              put 1,000,000 keys of 100 bytes
  stress                                                     QUORUM writes, 64 connections, 10 seconds
  stress --workload A --load --keys 100000 --seconds 60      YCSB A over keys it puts first
  stress --workload C --level ONE --order uniform            reads of one replica
  stress --rate 5000 --seconds 30 --plot run.html            5,000 writes a second: does it keep up?
  stress --connections 4 --outstanding 64 --json a.json      few connections, many calls on each
  stress --from b.json --compare a.json --plot both.html     two earlier runs on one page
  stress --classic --workload mixed --connections 16         through the classic Thrift service";

/// More keys than anybody waits for.
const KEYS_MAX: u64 = 1 << 40;

/// A line of the series for each second: a bound on memory, about 12 days.
const SECONDS_MAX: u64 = 1_000_000;

/// Callers at once, each with a buffer for its value.
const CALLERS_MAX: u64 = 100_000;

/// Bytes of all callers' values.
const VALUES_BYTES_MAX: u64 = 1 << 30;

/// Keys of the classic service.
const CLASSIC_KEYS: u64 = 256;

/// Workloads by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum WorkloadName {
    #[value(name = "A")]
    A,
    #[value(name = "B")]
    B,
    #[value(name = "C")]
    C,
    #[value(name = "D")]
    D,
    /// Refused: there are no scans yet
    #[value(name = "E", hide = true)]
    E,
    #[value(name = "F")]
    F,
    Read,
    Write,
    Remove,
    Mixed,
}

/// A range of sizes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The smallest.
    pub least: usize,
    /// The largest.
    pub most: usize,
}

impl std::str::FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| format!("'{text}' is no number"));
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        let sizes = Sizes { least: number(least)?, most: number(most)? };
        if sizes.least > sizes.most {
            return Err(format!("{} is more than {}", sizes.least, sizes.most));
        }
        Ok(sizes)
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Sizes { least, most } if least == most => write!(f, "{least}"),
            Sizes { least, most } => write!(f, "{least}-{most}"),
        }
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e7).contains(&rate) => Ok(rate),
        _ => Err("operations a second: a number from 0.001 to 10000000".to_owned()),
    }
}

/// Why a request cannot be carried out. No server was touched.
#[derive(Debug, thiserror::Error)]
pub enum WrongUse {
    /// There are no scans.
    #[error("workload E scans runs of keys, and there are no scans yet: A, B, C, D and F can be run")]
    NoScans,
    /// Not a level, or not one for this kind of operation.
    #[error("'{0}' is no level of {1}")]
    Level(String, &'static str),
    /// A number does not fit.
    #[error("{0}")]
    Bound(String),
    /// Two options exclude each other.
    #[error("{0}")]
    Clash(&'static str),
    /// Which servers cannot be told.
    #[error(transparent)]
    Nodes(#[from] NodesError),
}

/// When a phase ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// After this time.
    After(Duration),
    /// After this many operations.
    Operations(u64),
}

/// When every key is put once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Not at all.
    No,
    /// Before the workload.
    First,
    /// Instead of it.
    Only,
}

/// What will be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The workload's name.
    pub workload: String,
    /// Kinds of operations.
    pub mix: Mix,
    /// Which keys.
    pub order: Order,
    /// Different keys at the start.
    pub keys: u64,
    /// Of each.
    pub key_bytes: usize,
    /// Of values.
    pub value_bytes: Sizes,
    /// Of reads.
    pub read_level: Level,
    /// Of writes.
    pub write_level: Level,
    /// Over all servers.
    pub connections: u32,
    /// On each connection.
    pub outstanding: u32,
    /// Of this tool.
    pub threads: u32,
    /// Operations a second; `None`: the next when the last was answered.
    pub rate: Option<f64>,
    /// When to stop measuring.
    pub end: End,
    /// Before measuring.
    pub warm_up: Duration,
    /// Every key once.
    pub fill: Fill,
    /// Through the classic service.
    pub classic: bool,
    /// The servers know the classic service alone.
    pub foreign: bool,
    /// Of one operation.
    pub timeout: Duration,
    /// Decides keys, kinds and values.
    pub seed: u64,
}

impl Options {
    /// The servers to talk to.
    pub fn servers(&self) -> Result<Nodes, WrongUse> {
        if self.server.is_empty() {
            return Ok(Nodes::load(&self.nodes)?);
        }
        Ok(Nodes::parse(&self.server.join("\n"), std::path::Path::new("--server"))?)
    }

    /// What is asked for, if it can be done.
    pub fn plan(&self) -> Result<Plan, WrongUse> {
        let (mix, order) = self.mix()?;
        let level = |own: &Option<String>| own.clone().unwrap_or_else(|| self.level.clone());
        let plan = Plan {
            workload: self.workload.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned()),
            mix,
            order: self.order.unwrap_or(order),
            keys: self.keys.unwrap_or(if self.classic { CLASSIC_KEYS } else { 1_000_000 }),
            key_bytes: self.key_bytes,
            value_bytes: self.value_bytes,
            read_level: read_level(&level(&self.read_level), mix.reads())?,
            write_level: write_level(&level(&self.write_level))?,
            connections: self.connections,
            outstanding: self.outstanding,
            threads: self.threads.min(self.connections),
            rate: self.rate,
            end: self.operations.map_or(End::After(Duration::from_secs(self.seconds)), End::Operations),
            warm_up: Duration::from_secs(self.warm_up),
            fill: match (self.fill, self.load) {
                (true, _) => Fill::Only,
                (_, true) => Fill::First,
                _ => Fill::No,
            },
            classic: self.classic,
            foreign: self.foreign,
            timeout: Duration::from_millis(self.timeout_ms),
            seed: self.seed,
        };
        plan.check_bounds()?;
        plan.check_classic()?;
        Ok(plan)
    }

    fn mix(&self) -> Result<(Mix, Order), WrongUse> {
        if self.reads.is_some() && self.workload != WorkloadName::Mixed {
            return Err(WrongUse::Clash("--reads goes with --workload mixed"));
        }
        Ok(match self.workload {
            WorkloadName::A => (Mix::new(50, 50, 0, 0), Order::Scrambled),
            WorkloadName::B => (Mix::new(95, 5, 0, 0), Order::Scrambled),
            WorkloadName::C => (Mix::new(100, 0, 0, 0), Order::Scrambled),
            WorkloadName::D => (Mix::new(95, 0, 5, 0), Order::Latest),
            WorkloadName::E => return Err(WrongUse::NoScans),
            WorkloadName::F => (Mix::new(50, 0, 0, 50), Order::Scrambled),
            WorkloadName::Read => (Mix::new(100, 0, 0, 0), Order::Uniform),
            WorkloadName::Write => (Mix::new(0, 100, 0, 0), Order::Uniform),
            WorkloadName::Remove => (Mix::REMOVES, Order::Uniform),
            WorkloadName::Mixed => {
                let reads = self.reads.unwrap_or(50);
                (Mix::new(reads, 100 - reads, 0, 0), Order::Uniform)
            }
        })
    }
}

impl Plan {
    /// Operations that can be under way at once.
    pub fn callers(&self) -> u64 {
        u64::from(self.connections) * u64::from(self.outstanding)
    }

    fn check_bounds(&self) -> Result<(), WrongUse> {
        let (key, value) = (self.key_bytes, self.value_bytes.most);
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key) {
            let why = format!("--key-bytes {key}: keys are {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes here");
            return Err(WrongUse::Bound(why));
        }
        let callers = self.callers();
        if callers > CALLERS_MAX {
            let why = format!("{callers} operations at once: at most {CALLERS_MAX} can be under way");
            return Err(WrongUse::Bound(why));
        }
        if (value as u64).saturating_mul(callers) > VALUES_BYTES_MAX {
            let why = format!("{callers} values of {value} bytes at once: at most 1 GiB can be under way");
            return Err(WrongUse::Bound(why));
        }
        Ok(())
    }

    fn check_classic(&self) -> Result<(), WrongUse> {
        if !self.classic {
            return Ok(());
        }
        if self.outstanding > 1 {
            return Err(WrongUse::Clash(
                "a classic connection has one call under way at a time: raise --connections, not --outstanding",
            ));
        }
        if self.mix == Mix::REMOVES {
            return Err(WrongUse::Clash("the classic service has no removal"));
        }
        if self.keys > CLASSIC_KEYS || self.mix.inserts() {
            return Err(WrongUse::Clash(
                "the classic service has the keys 0 to 255 and no others: at most --keys 256, and no workload D",
            ));
        }
        Ok(())
    }
}

fn read_level(name: &str, reads: bool) -> Result<Level, WrongUse> {
    match Level::parse(name) {
        Some(Level::Any) if reads => Err(WrongUse::Level(name.to_owned(), "reads; give --read-level")),
        Some(level) => Ok(level),
        None => Err(WrongUse::Level(name.to_owned(), "reads")),
    }
}

fn write_level(name: &str) -> Result<Level, WrongUse> {
    Level::parse(name).ok_or_else(|| WrongUse::Level(name.to_owned(), "writes"))
}

/// A level as it goes over the wire.
pub(super) fn on_wire(level: Level) -> chord::Level {
    chord::Level(level.number())
}
