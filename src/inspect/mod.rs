//! The inspector: what every server itself holds, and what disagrees.
//!
//! ```text
//!   describe every server ─► who is up, the ring, hints
//!   walk: digests of every range, replica against replica ─► counts, differences, strays
//!   page: the first live keys of every server
//! ```
//!
//! It only reads, and it asks each server about its own store, never through a coordinator. Memory does not depend on
//! how much the servers hold (`walk`).
//!
//! Not here: mending what differs (handoff, read repair and reconciliation do).

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use futures_util::future::join_all;
use serde_json::Value;

use crate::answer::NodeId;
use crate::client::text::{self, Key};
use crate::client::{Client, ClientOptions, RingView};
use crate::nodes::Nodes;
use crate::output;
use crate::thrift::chord::{CellRow, Description};
use crate::thrift::method::{Describe, InspectPage};

mod offline;
mod one_key;
mod report;
mod stats_table;
#[cfg(test)]
mod tests;
mod walk;

pub use offline::{Files, OfflineError, OfflineReport, Pages, offline};
pub use one_key::KeyReport;
pub use report::{Difference, Entry, Hints, Range, Report, Server, Stray, Version};
pub use stats_table::StatsReport;

/// Show what every server of a Tetrachord cluster holds, and what disagrees.
///
/// Exit code: 0 all reachable replicas agree, 1 some do not, 2 a server could not be asked (or wrong use).
#[derive(Debug, Parser)]
#[command(name = "inspector", version)]
pub struct Options {
    /// Who is in the cluster, one host:port per line.
    #[arg(long, value_name = "FILE", default_value = "nodes.txt")]
    pub nodes: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Show each server's own copy of this key, deletions included. Written as in the console: 137, word, 0xHEX.
    #[arg(long, value_name = "KEY", conflicts_with = "stats")]
    pub key: Option<String>,
    /// Show what every server has counted, side by side.
    #[arg(long)]
    pub stats: bool,
    /// Look again every second, until Ctrl-C.
    #[arg(long)]
    pub watch: bool,
    /// Read a stopped server's data directory instead of asking servers.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["stats", "watch"])]
    pub offline: Option<PathBuf>,
    /// Milliseconds to wait for an answer.
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout_ms: u64,
}

/// Exit code of wrong use and broken set-up.
const WRONG_USE: u8 = 2;

/// Keys shown of each server.
const FIRST_ENTRIES: usize = 8;

/// Pages looked through for them: a store that begins with many deletions shows fewer.
const FIRST_PAGES_MAX: usize = 16;

/// Bytes of each value asked for: enough for what is shown of it.
const VALUE_BYTES: i32 = 256;

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The longest a server that was down is left alone: `--watch` shall see it return.
const BACK_OFF_MAX: Duration = Duration::from_millis(100);

/// Runs the inspector to its end and returns the exit code.
pub async fn run(options: &Options) -> u8 {
    match run_to_end(options).await {
        Ok(exit_code) => exit_code,
        Err(why) => {
            eprintln!("inspector: {why}");
            WRONG_USE
        }
    }
}

async fn run_to_end(options: &Options) -> Result<u8, String> {
    let key = options.key.as_deref().map(parse_key).transpose()?;
    if let Some(dir) = &options.offline {
        let partition = key.as_ref().map(|key| key.bytes.as_slice());
        let report = offline(dir, partition, now_s()).map_err(|error| error.to_string())?;
        let shown = Shown { text: report.text(dir), json: report.json(), exit_code: 0 };
        return shown.print(options.json).map(|_| shown.exit_code).map_err(|error| error.to_string());
    }
    let nodes = Nodes::load(&options.nodes).map_err(|error| error.to_string())?;
    let client_options = ClientOptions { back_off_max: BACK_OFF_MAX, ..ClientOptions::default() }
        .with_call_timeout(Duration::from_millis(options.timeout_ms));
    let client = Client::new(nodes, client_options);
    let exit_code = if options.watch {
        watch(&client, options, key.as_ref()).await
    } else {
        let shown = with_progress(&client, options, key.as_ref()).await;
        shown.print(options.json).map(|_| shown.exit_code)
    };
    exit_code.map_err(|error| error.to_string())
}

fn parse_key(typed: &str) -> Result<Key, String> {
    match text::words(typed)?.as_slice() {
        [word] => text::key(word),
        _ => Err(format!("--key takes one key, not '{typed}'; quotes within hold spaces: --key \"'a b'\"")),
    }
}

/// The outcome of one look, ready to be printed.
struct Shown {
    text: String,
    json: Value,
    exit_code: u8,
}

impl Shown {
    /// False if nobody reads any more, which is no failure.
    fn print(&self, json: bool) -> io::Result<bool> {
        if json { output::print(&format!("{}\n", self.json)) } else { output::print(&self.text) }
    }
}

/// One look at what the options ask for.
async fn look(client: &Client, options: &Options, key: Option<&Key>, progress: &AtomicU64) -> Shown {
    if options.stats {
        let report = stats_table::gather(client).await;
        return Shown { text: report.text(), json: report.json(), exit_code: report.exit_code() };
    }
    if let Some(key) = key {
        let report = inspect_key(client, key).await;
        return Shown { text: report.text(), json: report.json(), exit_code: report.exit_code() };
    }
    let report = inspect(client, progress).await;
    Shown { text: report.text(), json: report.json(), exit_code: report.exit_code() }
}

/// One look; if it takes long and a person waits, says every second how far it is.
async fn with_progress(client: &Client, options: &Options, key: Option<&Key>) -> Shown {
    let progress = AtomicU64::new(0);
    let mut looking = std::pin::pin!(look(client, options, key, &progress));
    let waited_for = io::stderr().is_terminal();
    let mut said = false;
    loop {
        tokio::select! {
            biased;
            shown = &mut looking => {
                if said {
                    eprint!("\r\x1b[K");
                }
                return shown;
            }
            () = tokio::time::sleep(WATCH_INTERVAL), if waited_for => {
                eprint!("\r\x1b[Kcompared {}…", text::plural(progress.load(Ordering::Relaxed), "key", "keys"));
                said = true;
            }
        }
    }
}

/// Looks again and again until Ctrl-C; the exit code is the last look's.
async fn watch(client: &Client, options: &Options, key: Option<&Key>) -> io::Result<u8> {
    let redraw = io::stdout().is_terminal() && !options.json;
    let mut exit_code = 0;
    let mut ended = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let progress = AtomicU64::new(0);
        tokio::select! {
            biased;
            _ = &mut ended => return Ok(exit_code),
            shown = look(client, options, key, &progress) => {
                exit_code = shown.exit_code;
                let cleared = !redraw || output::print("\x1b[H\x1b[2J")?;
                if !cleared || !shown.print(options.json)? {
                    return Ok(exit_code);
                }
            }
        }
        tokio::select! {
            biased;
            _ = &mut ended => return Ok(exit_code),
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

/// Who answers, what they say of the cluster, and why the others do not answer.
struct Roll {
    described: BTreeMap<NodeId, Description>,
    down: Vec<(NodeId, String)>,
    /// As the first that answers sees it.
    ring: RingView,
}

async fn call_roll(client: &Client) -> Roll {
    let ids = client.nodes().ids();
    let answers =
        join_all(ids.map(|node| async move { (node, client.call_on::<Describe>(node, &()).await) })).await;
    let mut described = BTreeMap::new();
    let mut down = Vec::new();
    for (node, answer) in answers {
        match answer {
            Ok(description) => match description.id {
                Some(id) if id != node.0 as i32 => {
                    down.push((node, format!("it says that it is server {id}: another nodes.txt?")));
                }
                _ => {
                    described.insert(node, description);
                }
            },
            Err(error) => down.push((node, walk::why(&error))),
        }
    }
    let ring = described.values().find_map(RingView::of).unwrap_or_else(|| RingView::guess(client.nodes()));
    Roll { described, down, ring }
}

/// Asks every server for its own copy of a key.
pub async fn inspect_key(client: &Client, key: &Key) -> KeyReport {
    let roll = call_roll(client).await;
    one_key::look(client, &roll.ring, &roll.down, key).await
}

/// Asks every server what it holds and compares the replicas of every range. `progress` rises with the keys compared.
pub async fn inspect(client: &Client, progress: &AtomicU64) -> Report {
    let roll = call_roll(client).await;
    let up: Vec<NodeId> = roll.described.keys().copied().collect();
    let walk = Box::pin(walk::Walk::new(client, &roll.ring, progress, up.clone()).run());
    let (findings, mut first) = tokio::join!(walk, first_entries(client, &up));
    let mut servers: Vec<Server> = Vec::new();
    for node in client.nodes().ids() {
        let refused = roll.down.iter().find(|(down, _)| *down == node).map(|(_, why)| why.clone());
        let lost = findings.lost.get(&node).map(|why| format!("went away while it was asked: {why}"));
        let held = findings.held.get(&node).copied().unwrap_or_default();
        let first = first.remove(&node).unwrap_or_default();
        servers.push(Server { node, down: refused.or(lost), cells: held.cells, live: held.live, first });
    }
    let other_ring = |(_, description): &(&NodeId, &Description)| {
        RingView::of(description).is_some_and(|seen| seen != roll.ring)
    };
    Report {
        servers,
        hints: hints(&roll.described),
        keys: findings.keys,
        agreeing: findings.agreeing,
        differences: findings.differences,
        differing: findings.differing,
        strays: findings.strays,
        uncompared: findings.uncompared.into_iter().collect(),
        ranges: ranges(&roll.described),
        other_rings: roll.described.iter().filter(other_ring).map(|(node, _)| *node).collect(),
    }
}

/// What the replicas of each range say of it: proven only as far as the replica that knows least says.
fn ranges(described: &BTreeMap<NodeId, Description>) -> Vec<Range> {
    let mut found: BTreeMap<NodeId, Range> = BTreeMap::new();
    for state in described.values().flat_map(|description| description.ranges.iter().flatten()) {
        let Some(owner) = state.owner.and_then(|id| u32::try_from(id).ok()).map(NodeId) else { continue };
        let told = Range {
            owner,
            proven_upto: state.proven_upto.unwrap_or(0),
            proven_at: state.proven_at.unwrap_or(0),
            why: state.not_now.clone().unwrap_or_default(),
        };
        let range = found.entry(owner).or_insert_with(|| told.clone());
        if told.proven_upto < range.proven_upto {
            (range.proven_upto, range.proven_at) = (told.proven_upto, told.proven_at);
        }
        if range.why.is_empty() {
            range.why = told.why;
        }
    }
    found.into_values().collect()
}

/// The hints that each server says it keeps, and for whom none are kept any more.
fn hints(described: &BTreeMap<NodeId, Description>) -> Vec<Hints> {
    let mut found = Vec::new();
    for (keeper, description) in described {
        for member in description.members.as_deref().unwrap_or_default() {
            let Some(absent) = member.id.and_then(|id| u32::try_from(id).ok()).map(NodeId) else { continue };
            let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
            let (count, bytes) = (number(member.hints), number(member.hint_bytes));
            let stopped = member.hinting == Some(false);
            if absent != *keeper && (count > 0 || stopped) {
                found.push(Hints { keeper: *keeper, absent, count, bytes, stopped });
            }
        }
    }
    found
}

async fn first_entries(client: &Client, up: &[NodeId]) -> BTreeMap<NodeId, Vec<Entry>> {
    let found =
        join_all(up.iter().map(|node| async { (*node, first_entries_of(client, *node).await) })).await;
    found.into_iter().collect()
}

/// The first live cells of one server. A server that goes away meanwhile shows what came before; the walk reports it.
async fn first_entries_of(client: &Client, node: NodeId) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut after = Vec::new();
    for _ in 0..FIRST_PAGES_MAX {
        let request = walk::page_request(&after, &[], 4 * FIRST_ENTRIES as i32, VALUE_BYTES);
        let Ok(page) = client.call_on::<InspectPage>(node, &request).await else { break };
        let live = page.cells.unwrap_or_default().into_iter().filter(|row| walk::is_live(row, now_s()));
        let entry = |row: CellRow| Entry {
            key: report::label(&row),
            value: report::value(&row),
            stamp: row.stamp.unwrap_or(0),
        };
        entries.extend(live.take(FIRST_ENTRIES - entries.len()).map(entry));
        after = page.upto.unwrap_or_default();
        if entries.len() == FIRST_ENTRIES || page.complete == Some(true) {
            break;
        }
    }
    entries
}

/// Seconds since 1970.
fn now_s() -> i64 {
    crate::clock::machine_wall_us().div_euclid(1_000_000)
}
