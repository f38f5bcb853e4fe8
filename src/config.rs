//! Every number a server runs by: unit, default, reason. `server --print-config` prints this table as the TOML file
//! it also reads; the texts below are the comments of that file.
//!
//! Every queue, buffer and count has its bound here, and every wait its deadline, except those that nobody would
//! change: they stand beside what they bound.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a write counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// The log is on the disk (SQLite `synchronous=FULL`) before a write is acknowledged.
    PowerLoss,
    /// The log is with the operating system (`synchronous=NORMAL`): a killed server loses nothing, a power cut may.
    ProcessCrash,
}

impl Durability {
    /// As in the configuration file.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::PowerLoss => "power-loss",
            Durability::ProcessCrash => "process-crash",
        }
    }
}

/// Why a configuration was refused. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key or a value of the wrong type; the message shows the line.
    #[error("{path}: {message}`server --print-config` lists every key", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        message: String,
    },
    /// A value that cannot be.
    #[error("{path} line {line}: {key} = {value} is refused: {why}", path = path.display())]
    Impossible {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What values are possible.
        why: String,
    },
}

/// A setting's least and largest value, or that it has none.
trait Bounded {
    fn out_of(&self, bounds: Option<(f64, f64)>) -> bool;
}

macro_rules! bounded {
    ($($number:ty),*) => { $(
        impl Bounded for $number {
            fn out_of(&self, bounds: Option<(f64, f64)>) -> bool {
                bounds.is_some_and(|(least, most)| !((least..=most).contains(&(*self as f64))))
            }
        }
    )* };
}
bounded!(u64, usize, i64, f64);

impl Bounded for bool {
    fn out_of(&self, _: Option<(f64, f64)>) -> bool {
        false
    }
}
impl Bounded for String {
    fn out_of(&self, bounds: Option<(f64, f64)>) -> bool {
        self.len().out_of(bounds)
    }
}
impl Bounded for Durability {
    fn out_of(&self, _: Option<(f64, f64)>) -> bool {
        false
    }
}

/// One table of settings: the struct, its defaults, its bounds and its printed form.
macro_rules! settings {
    ($( $heading:literal { $( $(#[doc = $doc:literal])+ $name:ident: $kind:ty = $default:expr $(, $least:literal to $most:literal)? ; )+ } )+) => {
        /// Every setting of a server. The field texts are what `server --print-config` prints.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config { $($( $(#[doc = $doc])+ pub $name: $kind, )+)+ }

        impl Default for Config {
            fn default() -> Config {
                Config { $($( $name: $default, )+)+ }
            }
        }

        impl Config {
            /// This configuration as a commented TOML file that [`Config::load`] reads back.
            pub fn to_toml(&self) -> String {
                let mut out = String::from("# Configuration of a Tetrachord server. What is left out has the value shown here.\n");
                $(
                    out.push_str(concat!("\n# ---- ", $heading, "\n"));
                    $(
                        out.push('\n');
                        $( out.push_str(concat!("#", $doc, "\n")); )+
                        out.push_str(stringify!($name));
                        out.push_str(" = ");
                        out.push_str(&serde_json::to_string(&self.$name).expect("settings are plain values"));
                        out.push('\n');
                    )+
                )+
                out
            }

            /// The first setting outside its bounds: name, value, and what is possible.
            fn out_of_bounds(&self) -> Option<(&'static str, String, String)> {
                $($(
                    let bounds: Option<(f64, f64)> = None $( .or(Some(($least as i64 as f64, $most as i64 as f64))) )?;
                    if self.$name.out_of(bounds) {
                        let (least, most) = bounds.expect("only what has bounds is out of them");
                        let value = serde_json::to_string(&self.$name).expect("settings are plain values");
                        return Some((stringify!($name), value, format!("it must be from {least} to {most}")));
                    }
                )+)+
                None
            }
        }
    };
}

settings! {
    "cluster" {
        /// Name of the cluster. Servers of clusters with different names refuse each other; fixed once there is data.
        cluster_name: String = "tetrachord".to_owned(), 1 to 200;
        /// How many servers hold each key; all of them if there are fewer. Fixed once there is data.
        replication_factor: usize = 3, 1 to 100;
    }
    "durability" {
        /// When a write is acknowledged. "power-loss": once it is on the disk of the replicas that counted (SQLite
        /// synchronous=FULL). "process-crash": once their operating systems have it: kill -9 loses nothing, a power cut
        /// may lose the last writes.
        durability: Durability = Durability::PowerLoss;
    }
    "listening" {
        /// IP address to listen on. Empty: the host of this server's line in nodes.txt (127.0.0.1 in the one that
        /// ./server.sh writes). There is no authentication: whoever reaches the address can read and write everything.
        listen_address: String = String::new(), 0 to 255;
        /// Threads that serve connections. 1 suits four servers on one small machine; raise it on a host of its own.
        worker_threads: usize = 1, 1 to 256;
        /// Open connections, of clients and servers together; further ones are closed, unless a server's.
        connections_max: usize = 10_000, 1 to 1_000_000;
        /// Further connections that only other servers may have, so that clients that hold connections_max do not keep
        /// one out; as many as there are other servers, at least. Whoever has not greeted as a server within
        /// connect_timeout_ms is refused.
        server_connections_max: usize = 64, 0 to 100_000;
        /// Calls under way at once on one client connection; further ones wait unread in the socket.
        calls_per_connection_max: usize = 256, 1 to 100_000;
        /// Bytes of one Thrift message. A longer one closes its connection before it is read, also one of another
        /// server: raise it on all servers before value_bytes_max on any, and do not lower it below what is stored.
        message_bytes_max: usize = 20_000_000, 1_000 to 1_000_000_000;
        /// Bytes of half-read messages and unsent answers on all connections together. Beyond it nothing more is read
        /// until answers have left.
        buffered_bytes_max: usize = 268_435_456, 1_000_000 to 1_000_000_000_000;
        /// Seconds without a message after which a connection is closed.
        idle_timeout_s: u64 = 3_600, 1 to 10_000_000;
        /// Seconds for a message to arrive from its first to its last byte, and for the client to take an answer; then
        /// the connection is closed.
        half_message_timeout_s: u64 = 30, 1 to 100_000;
        /// How deep structs and containers of one message may be nested.
        message_depth_max: usize = 64, 8 to 1_000;
    }
    "requests" {
        /// Bytes of one value; a longer one is refused.
        value_bytes_max: usize = 16_777_216, 1 to 500_000_000;
        /// Operations of one batch call; a longer batch is refused.
        batch_operations_max: usize = 10_000, 1 to 100_000;
        /// Milliseconds after which a write that has not met its level is answered "outcome unknown".
        write_timeout_ms: u64 = 2_000, 10 to 3_600_000;
        /// Milliseconds after which a read that has not met its level is given up.
        read_timeout_ms: u64 = 2_000, 10 to 3_600_000;
        /// Requests that this server coordinates at once; further ones are refused as overloaded.
        requests_in_flight_max: usize = 20_000, 1 to 10_000_000;
        /// Bytes of the requests that this server coordinates at once, until every replica has answered, and of answers
        /// of 64 KiB and more until they have been sent; an operation of a batch counts some 500 bytes besides. Beyond
        /// it requests are refused as overloaded.
        requests_bytes_max: usize = 268_435_456, 1_000_000 to 1_000_000_000_000;
        /// Milliseconds by which a stamp that a client chooses may be ahead of this server's clock; beyond it the write
        /// is refused, for a stamp far in the future would win over every later write of its key.
        client_stamp_ahead_max_ms: u64 = 60_000, 0 to 1_000_000_000_000;
    }
    "reads" {
        /// Before a read is answered, write the newest version back to those replicas of it that had an older one.
        /// Without it a later QUORUM read may show something older than an earlier one did.
        read_repair: bool = true;
        /// Share (0 to 1) of the reads below QUORUM that also compare, in the background, with the replicas that were
        /// not asked. 0: a read at ONE shows exactly what that replica has, and drills can be repeated.
        read_repair_chance: f64 = 0.0, 0 to 1;
        /// Ask one more replica when an answer takes longer than 99 of 100 did lately.
        speculative_retry: bool = true;
        /// Milliseconds to wait before that at the least, so that a fast cluster does not read everything twice.
        speculative_retry_min_ms: u64 = 5, 0 to 3_600_000;
    }
    "hints" {
        /// Keep hints for absent replicas and deliver them when they return. Without it reads and reconciliation mend
        /// them.
        handoff: bool = true;
        /// Seconds of absence after which no more hints are kept for a server (3 hours, as in Cassandra), counted from
        /// when this server last saw it, or started.
        hint_window_s: u64 = 10_800, 0 to 1_000_000_000;
        /// Bytes of hints for one server; beyond it no more are kept for it.
        hint_bytes_per_node_max: usize = 1_073_741_824, 0 to 1_000_000_000_000;
        /// Mutations in one handoff message.
        handoff_batch_mutations: usize = 512, 1 to 10_000;
        /// Bytes of one handoff message.
        handoff_batch_bytes: usize = 1_048_576, 1_000 to 100_000_000;
        /// Share (0 to 1) of the time for handing hints to a server while clients send this one 200 requests a second
        /// or more; between two messages it rests, at most 200 ms. A share below 0.01 counts as 0.01.
        handoff_share_busy: f64 = 0.25, 0 to 1;
        /// Milliseconds until handoff to a server that is up is tried again after a failure.
        handoff_retry_ms: u64 = 1_000, 10 to 3_600_000;
        /// Milliseconds that a call of `resendHints` waits for its delivery; then it says how many hints are left.
        handoff_call_ms: u64 = 60_000, 10 to 3_600_000;
    }
    "reconciliation" {
        /// Compare the replicas of every range all the time and make them equal, without waiting for reads. Without it
        /// replicas stay different where neither hints nor reads reach, and no deletion is ever collected.
        reconciliation: bool = true;
        /// Milliseconds between two comparisons of a range in which nothing differs.
        reconcile_round_ms: u64 = 1_000, 10 to 3_600_000;
        /// Cells younger than this many milliseconds are not compared yet: most are on their way to every replica
        /// anyway.
        reconcile_lag_ms: u64 = 1_000, 0 to 3_600_000;
        /// Drop deletions and expired values once every replica is proven to have them or something newer.
        collection: bool = true;
        /// Milliseconds for which deletions and expired values stay at least. Dropping them is safe without it; it
        /// gives that much room to clients that choose stamps, for a stamp older than a collected deletion is refused.
        collection_lag_ms: u64 = 10_000, 0 to 1_000_000_000_000;
        /// Milliseconds between two collections of a range at the least: each of them flushes the memtable.
        collection_pause_ms: u64 = 30_000, 0 to 1_000_000_000_000;
        /// Cells scanned in one step, about half a millisecond; clients' requests are served between two steps.
        reconcile_step_cells: usize = 512, 1 to 100_000;
        /// Cells in one list of versions.
        reconcile_list_cells: usize = 1_024, 1 to 10_000;
        /// Cells in one message that brings cells, and in one commit where they arrive.
        reconcile_batch_cells: usize = 1_024, 1 to 10_000;
        /// Bytes of one message that brings cells; a single cell may be larger.
        reconcile_batch_bytes: usize = 1_048_576, 1_000 to 100_000_000;
        /// Share (0 to 1) of a server's time for comparing one range while clients send 20 requests a second or more. A
        /// share below 0.001 counts as 0.001, here and in the next two.
        reconcile_share_busy: f64 = 0.002, 0 to 1;
        /// The same for a range that is not proven equal (while a server is down: not found equal on those that are
        /// up), and for sending and receiving what differs.
        reconcile_mend_share_busy: f64 = 0.1, 0 to 1;
        /// The same for all of that while fewer requests come.
        reconcile_share_idle: f64 = 0.25, 0 to 1;
    }
    "liveness" {
        /// Milliseconds between two heartbeats on the connection to each other server.
        heartbeat_ms: u64 = 200, 10 to 60_000;
        /// A server that was silent for this many heartbeat intervals (as measured lately) is Suspect: it is asked
        /// last.
        suspect_after_intervals: f64 = 4.0, 2 to 1_000;
        /// A server that was silent for this many is Down. With the defaults a frozen server is Down after 1.6 s.
        down_after_intervals: f64 = 8.0, 2 to 1_000;
        /// Milliseconds between two attempts to reach a server that is Down.
        reconnect_ms: u64 = 100, 1 to 60_000;
        /// Milliseconds for a connection to another server to be opened and greeted, and for one that only a server may
        /// have to greet here.
        connect_timeout_ms: u64 = 1_000, 10 to 600_000;
    }
    "links to other servers" {
        /// Requests under way at once to one other server; further ones fail at once and leave hints.
        peer_calls_max: usize = 16_384, 1 to 10_000_000;
        /// Bytes of requests to one other server that wait or are under way; beyond it further ones fail at once and
        /// leave hints.
        peer_queue_bytes_max: usize = 67_108_864, 1_000_000 to 100_000_000_000;
    }
    "store" {
        /// Bytes of the memtable (keys, cells and their overhead). A full one is frozen and flushed to data.db while
        /// the next fills, so memory holds up to two of them.
        memtable_bytes_max: usize = 134_217_728, 100_000 to 1_000_000_000_000;
        /// Bytes of cells logged since the last memtable was frozen, after which this one is flushed, however small it
        /// is. The log holds up to twice that, however often few keys are written over; that bounds recovery and, with
        /// the hints, its file.
        log_bytes_max: usize = 268_435_456, 100_000 to 1_000_000_000_000;
        /// Mutations waiting for the commit log; further ones are refused as overloaded.
        log_queue_mutations_max: usize = 65_536, 1 to 100_000_000;
        /// Bytes waiting for the commit log; beyond it mutations are refused as overloaded.
        log_queue_bytes_max: usize = 67_108_864, 1_000_000 to 1_000_000_000_000;
        /// After a commit of 6 or more requests, wait at least this many microseconds (from its start) before the next,
        /// unless 32 are queued: fewer fsyncs, higher throughput. A single sequential writer is not delayed. With
        /// "process-crash" there is no fsync, and so no wait. 0: commit as soon as the last commit has ended, and never
        /// let other threads go first.
        commit_group_window_us: u64 = 700, 0 to 100_000;
        /// Mutations in one transaction of the commit log. It takes what has arrived when it begins, up to this many.
        commit_batch_mutations_max: usize = 4_096, 1 to 1_000_000;
        /// Bytes of one transaction of the commit log.
        commit_batch_bytes_max: usize = 8_388_608, 1_000 to 1_000_000_000;
        /// Pages of SQLite's write-ahead log after which it is copied into the database. Above 1000, puts are no
        /// faster; far above, the file grows, which is up to twice as slow as overwriting it, and stalls get longer.
        wal_autocheckpoint_pages: usize = 1_000, 10 to 1_000_000;
        /// Cells in one transaction while a memtable is flushed to data.db, or sstables are compacted there; a tenth of
        /// that while flushing keeps ahead of incoming writes.
        flush_transaction_cells: usize = 2_000, 1 to 1_000_000;
        /// Compact once there are this many sstables, or once they hold a quarter of the large table's bytes. With
        /// more, the large table's pages are written less often, but gets have more to look into, and more filters are
        /// kept in memory (12 bits a key). As many again may be flushed while a compaction runs.
        compaction_sstables: usize = 12, 1 to 12;
        /// Bytes of data.db's cells that are kept in memory because they were read lately; 0: none.
        cell_cache_bytes: usize = 8_388_608, 0 to 100_000_000_000;
        /// Bytes of SQLite's page cache for each connection to data.db, and for the one that reads hints.
        base_cache_bytes: usize = 8_388_608, 100_000 to 100_000_000_000;
        /// Bytes of data.db that are mapped into memory instead of copied from the operating system's cache. They count
        /// as the server's memory (RSS), but the system takes them back when it needs to. Each flush remaps the file,
        /// which costs more the larger this is. 0: none.
        base_mmap_bytes: usize = 268_435_456, 0 to 100_000_000_000_000;
        /// Cells in one answer to the inspector, which walks a store in such steps.
        inspect_cells_max: usize = 1_024, 1 to 100_000;
    }    "drills only" {
        /// Milliseconds added to this server's wall clock: what if clocks disagree? 0 in production.
        test_clock_offset_ms: i64 = 0, -1_000_000_000_000 to 1_000_000_000_000;
        /// File with the numbers of servers from which this one hears nothing while they stand in it: what if a link is
        /// cut? Empty in production: then there is no such switch.
        test_fault_switch: String = String::new(), 0 to 4_096;
    }
}

impl Config {
    /// Reads a TOML file; what it leaves out has its default.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Config::parse(&text, path)
    }

    /// Reads the text of a file; `path` is for the messages.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|error| ConfigError::Malformed { path: path.to_owned(), message: error.to_string() })?;
        match config.impossible() {
            None => Ok(config),
            Some((key, value, why)) => Err(ConfigError::Impossible {
                path: path.to_owned(),
                line: line_of(text, key),
                key,
                value,
                why,
            }),
        }
    }

    /// The first setting that cannot be: outside its bounds, or at odds with another.
    fn impossible(&self) -> Option<(&'static str, String, String)> {
        if let Some(found) = self.out_of_bounds() {
            return Some(found);
        }
        if self.message_bytes_max < self.value_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES) {
            let why = format!(
                "it must be at least value_bytes_max + {MESSAGE_OVERHEAD_BYTES}, or the largest value could not be sent"
            );
            return Some(("message_bytes_max", self.message_bytes_max.to_string(), why));
        }
        if self.buffered_bytes_max < self.message_bytes_max {
            let why =
                "it must be at least message_bytes_max, or the largest message could not be read".to_owned();
            return Some(("buffered_bytes_max", self.buffered_bytes_max.to_string(), why));
        }
        let handoff_bytes = self.handoff_batch_bytes.saturating_add(8 * self.handoff_batch_mutations);
        if handoff_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES) > self.message_bytes_max {
            let why =
                "with handoff_batch_mutations it must fit message_bytes_max, or no hint could be delivered"
                    .to_owned();
            return Some(("handoff_batch_bytes", self.handoff_batch_bytes.to_string(), why));
        }
        let reconcile_bytes = self.reconcile_batch_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES);
        if reconcile_bytes > self.message_bytes_max {
            let why = "it must fit message_bytes_max, or no cell could be exchanged".to_owned();
            return Some(("reconcile_batch_bytes", self.reconcile_batch_bytes.to_string(), why));
        }
        if self.down_after_intervals <= self.suspect_after_intervals {
            let why = "it must be above suspect_after_intervals: Suspect comes before Down".to_owned();
            return Some(("down_after_intervals", self.down_after_intervals.to_string(), why));
        }
        for (key, bound) in [
            ("peer_queue_bytes_max", self.peer_queue_bytes_max),
            ("log_queue_bytes_max", self.log_queue_bytes_max),
            ("requests_bytes_max", self.requests_bytes_max),
        ] {
            if bound < self.message_bytes_max {
                let why =
                    "it must be at least message_bytes_max, or the largest value could never pass".to_owned();
                return Some((key, bound.to_string(), why));
            }
        }
        None
    }

    /// Deadline of a write.
    pub fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }

    /// Deadline of a read.
    pub fn read_timeout(&self) -> Duration {
        Duration::from_millis(self.read_timeout_ms)
    }

    /// Time between the beginnings of two commits while several requests are written at once.
    pub fn commit_window(&self) -> Duration {
        match self.durability {
            Durability::PowerLoss => Duration::from_micros(self.commit_group_window_us),
            Durability::ProcessCrash => Duration::ZERO,
        }
    }

    /// Time for a connection to another server to be opened and greeted, and to greet where only a server may.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// Time between two heartbeats.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }
}

/// Room for keys, field headers and framing beside the value in a message.
const MESSAGE_OVERHEAD_BYTES: usize = 200_000;

/// The line (counted from 1) that sets `key`; 1 if none does and its default is at odds with another line.
fn line_of(text: &str, key: &str) -> usize {
    let sets = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("tetrachord.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let mut config = Config { durability: Durability::ProcessCrash, ..Config::default() };
        config.cluster_name = "a \"quoted\" name \\ ü".to_owned();
        config.test_clock_offset_ms = -5;
        assert_eq!(parse(&config.to_toml()), Ok(config));
    }

    #[test]
    fn defaults_are_possible_and_an_empty_file_means_them() {
        assert_eq!(parse(""), Ok(Config::default()));
        assert_eq!(Config::default().impossible(), None);
    }

    #[test]
    fn every_setting_is_explained() {
        let text = Config::default().to_toml();
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(lines[index - 1].starts_with("# "), "{line} has no comment");
            }
        }
    }

    #[test]
    fn a_mistake_names_its_line() {
        for (text, said) in [
            ("\nwrite_timeout = 5", "line 2"),
            ("\n\nreplication_factor = \"three\"", "line 3"),
            (
                "handoff = true\nreplication_factor = 0",
                "line 2: replication_factor = 0 is refused: it must be from 1",
            ),
            ("read_repair_chance = 1.5", "line 1: read_repair_chance = 1.5 is refused"),
            ("durability = \"none\"", "power-loss"),
            ("handoff = true\nhandoff = false", "line 2"),
            ("x", "line 1"),
            (
                "\nmessage_bytes_max = 2000",
                "line 2: message_bytes_max = 2000 is refused: it must be at least",
            ),
            ("\n\nsuspect_after_intervals=20", "down_after_intervals"),
            ("read_repair_chance = nan", "refused"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text:?} gave {error}");
        }
    }
}
