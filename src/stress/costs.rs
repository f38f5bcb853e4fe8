//! What an operation took: processor time, fsyncs, bytes written, memory.
//!
//! Sums over what the servers' counters and processes (`servers`) show before and after a run, divided by its
//! operations, failed ones included. What cannot be found out of one server is not known of the sum either.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::report::{Seen, mib, rounded};
use super::servers::State;
use crate::client::text;

/// What a run took, by operation. `None` is what could not be found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Processor time of all servers.
    pub cpu_us: Option<f64>,
    /// Processor time of this tool.
    pub tool_cpu_us: Option<f64>,
    /// Times that a server waited for its disk, in sum.
    pub fsyncs: Option<f64>,
    /// Bytes towards disks, in sum.
    pub written_bytes: Option<f64>,
    /// Mutations of one transaction of a commit log, on average.
    pub batch: Option<f64>,
    /// Server by server; shares of the sums above.
    pub servers: Vec<ServerCosts>,
}

/// One server's share, by operation of the whole cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerCosts {
    /// Its number in the list of servers.
    pub server: u32,
    /// Where it listens.
    pub address: String,
    /// Its process, if it runs on the tool's machine.
    pub pid: Option<u32>,
    /// Processor time.
    pub cpu_us: Option<f64>,
    /// Memory in use at the end.
    pub resident_bytes: Option<u64>,
    /// Times it waited for its disk.
    pub fsyncs: Option<f64>,
    /// Bytes towards its disk.
    pub written_bytes: Option<f64>,
}

/// What a run took.
pub(super) fn costs(seen: &Seen<'_>) -> Costs {
    let operations = seen.total.operations() + seen.total.failures();
    let share = |amount: Option<u64>| match (amount, operations) {
        (Some(amount), 1..) => Some(rounded(amount as f64 / operations as f64)),
        _ => None,
    };
    let durability = &seen.cluster.durability;
    let mut servers = Vec::new();
    for (index, (before, after)) in seen.before.0.iter().zip(&seen.after.0).enumerate() {
        let process = before.process.zip(after.process);
        servers.push(ServerCosts {
            server: index as u32,
            address: seen.asked.addresses()[index].to_string(),
            pid: after.process.map(|process| process.pid),
            cpu_us: share(process.and_then(|(before, after)| after.cpu_us.checked_sub(before.cpu_us))),
            resident_bytes: after.process.map(|process| process.resident_bytes).or(told_resident(after)),
            fsyncs: share(fsyncs(before, after, durability)),
            written_bytes: share(
                process.and_then(|(before, after)| after.written_bytes?.checked_sub(before.written_bytes?)),
            ),
        });
    }
    let sum = |of: fn(&ServerCosts) -> Option<f64>| {
        let each: Option<Vec<f64>> = servers.iter().map(of).collect();
        each.filter(|each| !each.is_empty()).map(|each| rounded(each.iter().sum()))
    };
    let tool = seen.before.1.zip(seen.after.1);
    let all_risen = |name: &str| -> Option<u64> {
        seen.before.0.iter().zip(&seen.after.0).map(|(before, after)| risen(before, after, name)).sum()
    };
    let batch = all_risen("mutations_applied").zip(all_risen("commits")).filter(|(_, commits)| *commits > 0);
    Costs {
        cpu_us: sum(|server| server.cpu_us),
        tool_cpu_us: share(tool.and_then(|(before, after)| after.cpu_us.checked_sub(before.cpu_us))),
        fsyncs: sum(|server| server.fsyncs),
        written_bytes: sum(|server| server.written_bytes),
        batch: batch.map(|(mutations, commits)| rounded(mutations as f64 / commits as f64)),
        servers,
    }
}

/// How much a counter has risen; `None` if it is not told, or the server was started again meanwhile.
fn risen(before: &State, after: &State, name: &str) -> Option<u64> {
    let (before, after) = (before.counters.as_ref()?, after.counters.as_ref()?);
    u64::try_from(after.get(name)? - before.get(name)?).ok()
}

/// How often a server has waited for its disk: once a commit where it must survive a power cut, once a transaction of a
/// flush, twice a checkpoint (the write-ahead log, then the database).
fn fsyncs(before: &State, after: &State, durability: &str) -> Option<u64> {
    let commits = match durability {
        "power-loss" => risen(before, after, "commits")?,
        "process-crash" => 0,
        _ => return None,
    };
    Some(commits + risen(before, after, "flush_commits")? + 2 * risen(before, after, "checkpoints")?)
}

fn told_resident(state: &State) -> Option<u64> {
    let told = *state.counters.as_ref()?.get("memory_resident_bytes")?;
    u64::try_from(told).ok().filter(|bytes| *bytes > 0)
}

impl Costs {
    /// As a person reads it.
    pub fn table(&self) -> String {
        let mut rows = vec![
            ["by operation", "CPU µs", "fsyncs", "bytes written", "memory (RSS)", "process"]
                .map(str::to_owned),
        ];
        for server in &self.servers {
            rows.push([
                format!("server {}", server.server),
                server.cpu_us.map_or("not local".to_owned(), |cpu_us| format!("{cpu_us:.1}")),
                server.fsyncs.map_or("not told".to_owned(), |fsyncs| format!("{fsyncs:.3}")),
                server.written_bytes.map_or("not local".to_owned(), |bytes| format!("{bytes:.0}")),
                server.resident_bytes.map_or("not local".to_owned(), mib),
                server.pid.map_or("not local".to_owned(), |pid| pid.to_string()),
            ]);
        }
        let number = |number: Option<f64>, digits: usize| match number {
            Some(number) => format!("{number:.digits$}"),
            None => String::new(),
        };
        rows.push([
            "all servers".to_owned(),
            number(self.cpu_us, 1),
            number(self.fsyncs, 3),
            number(self.written_bytes, 0),
            String::new(),
            String::new(),
        ]);
        let tool = number(self.tool_cpu_us, 1);
        rows.push(["this tool".to_owned(), tool, String::new(), String::new(), String::new(), String::new()]);
        let mut table = text::columns(&rows);
        if let Some(batch) = self.batch {
            writeln!(table, "{batch:.1} mutations in a transaction of a commit log, on average")
                .expect("writing to memory cannot fail");
        }
        table
    }
}
