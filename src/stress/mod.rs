//! The load tool: puts a cluster under load in the manner of YCSB and cassandra-stress, and says what that came to.
//!
//! ```text
//!   options ─► plan ─► run: pace (when?) · workload (what?) · keys (which?) ─► target: client or classic ─► servers
//!                       │ windows, second by second (tally)
//!                       ▼
//!                     report ─► text · json · csv · page (chart) · compare
//! ```
//!
//! What must always be true of a published number: no operation behind it failed (unless that was allowed), the warm-up
//! is not in it, with a fixed rate a stall is in it, and the durability at which writes were acknowledged stands beside
//! it.
//!
//! Not here: how a request travels (`client`).

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::causes;
use crate::client::text;
use crate::nodes::Nodes;
use crate::output;

mod chart;
mod classic;
mod compare;
mod costs;
mod keys;
mod options;
mod pace;
mod page;
mod report;
mod run;
mod servers;
mod tally;
mod target;
#[cfg(test)]
mod tests;
mod workload;

pub use compare::{Ratio, ratios};
pub use costs::{Costs, ServerCosts};
pub use keys::Order;
pub use options::{End, Fill, Options, Plan, Sizes, WorkloadName, WrongUse};
pub use pace::{Next, Pace};
pub use page::page;
pub use report::{ErrorCount, Figures, Load, Run, Second};
pub use workload::{Kind, Mix};

use report::{Seen, Timeline};
use run::Phase;
use servers::{Cluster, Servers};

/// Exit code of a run whose numbers are not published because operations failed.
const FAILED: u8 = 1;

/// Exit code of wrong use, and of a cluster that cannot be reached.
const WRONG_USE: u8 = 2;

/// Runs the tool to its end and returns the exit code.
pub async fn run(options: &Options) -> u8 {
    match run_to_end(options).await {
        Ok(exit_code) => exit_code,
        Err(error) => {
            eprintln!("stress: {}", causes::text(&error));
            WRONG_USE
        }
    }
}

async fn run_to_end(options: &Options) -> anyhow::Result<u8> {
    let mut other = options.compare.as_deref().map(read_run).transpose()?;
    let run = match &options.from {
        Some(path) => read_run(path)?,
        None => match measure(options).await? {
            Some(run) => run,
            None => return Ok(FAILED),
        },
    };
    if !may_publish(&run, options) {
        return Ok(FAILED);
    }
    if let Some(other) = other.as_mut().filter(|other| other.name == run.name) {
        other.name.push_str(" (the other)");
    }
    publish(&run, other.as_ref(), options)?;
    Ok(0)
}

fn read_run(path: &Path) -> anyhow::Result<Run> {
    let json = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Run::from_json(&json).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())
}

/// True if no operation failed, or that is allowed. If not, says why nothing is published.
fn may_publish(run: &Run, options: &Options) -> bool {
    let failures = run.failures();
    if failures == 0 || options.allow_errors {
        return true;
    }
    for error in &run.errors {
        eprintln!("{error}");
    }
    let all = text::count(run.all.operations + failures);
    eprintln!(
        "stress: {} of {all} operations failed, so no numbers are published; --allow-errors publishes them all the same",
        text::count(failures)
    );
    false
}

fn publish(run: &Run, other: Option<&Run>, options: &Options) -> anyhow::Result<()> {
    let write = |path: &Option<std::path::PathBuf>, content: &dyn Fn() -> String| match path {
        None => Ok(()),
        Some(path) => {
            std::fs::write(path, content()).with_context(|| format!("cannot write {}", path.display()))
        }
    };
    write(&options.json, &|| run.to_json())?;
    write(&options.csv, &|| run.to_csv())?;
    write(&options.plot, &|| page(run, other))?;
    let compared = other.map_or(String::new(), |other| format!("\n{}", compare::to_text(run, other)));
    output::print(&format!("{}{compared}", run.to_text()))?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------ measuring

/// Does what the options ask for. `None`: the fill failed, and that was said.
async fn measure(options: &Options) -> anyhow::Result<Option<Run>> {
    let plan = options.plan()?;
    let nodes = options.servers()?;
    let mut servers = Servers::new(&nodes, plan.foreign).await;
    let cluster = servers.describe().await;
    if let Some(all) = cluster.members.as_ref().filter(|all| all.len() > nodes.len()) {
        servers = Servers::new(all, plan.foreign).await; // those not talked to have work all the same
    }
    if !options.quiet {
        for (node, why) in &cluster.unreachable {
            eprintln!("server {node}: {why}");
        }
    }
    if cluster.unreachable.len() == nodes.len() {
        anyhow::bail!("no server answers; is the cluster started? (./server.sh)");
    }
    let ground = Ground { options, plan: &plan, nodes: &nodes, servers: &servers, cluster: &cluster };
    if plan.fill != Fill::No {
        let filled = ground.phase(true, || Phase::fill(&plan)).await?;
        if plan.fill == Fill::Only {
            return Ok(Some(filled));
        }
        if !may_publish(&filled, options) {
            return Ok(None);
        }
        let (keys, rate) = (text::count(filled.all.operations), filled.all.per_second.round() as u64);
        let durability = &filled.durability;
        output::print(&format!(
            "{keys} keys put in {:.1} s, {} a second, {durability}\n",
            filled.elapsed_s,
            text::count(rate)
        ))?;
        if filled.interrupted {
            anyhow::bail!("ended before the workload began");
        }
    }
    ground.phase(false, Phase::workload(&plan)).await.map(Some)
}

/// What a phase runs on.
struct Ground<'a> {
    options: &'a Options,
    plan: &'a Plan,
    nodes: &'a Nodes,
    servers: &'a Servers,
    cluster: &'a Cluster,
}

impl Ground<'_> {
    /// Runs one phase; `prepare` makes it, and its time begins when it is made.
    async fn phase(&self, fill: bool, prepare: impl FnOnce() -> Phase) -> anyhow::Result<Run> {
        let warm_up = if fill { Duration::ZERO } else { self.plan.warm_up };
        let early = if warm_up.is_zero() { Some(self.look().await) } else { None };
        let began = text::second_utc(crate::clock::machine_wall_us().div_euclid(1_000_000));
        let phase = prepare();
        let pace = phase.pace.clone();
        if !self.options.quiet {
            let end = if fill { "all keys once".to_owned() } else { report::end_text(self.plan) };
            eprintln!("{}: {end}", if fill { "fill" } else { "run" });
        }
        let mut timeline = Timeline::new(warm_up.as_secs());
        let mut show = |stretch: run::Stretch| {
            if !self.options.quiet && stretch.length >= Duration::from_millis(100) {
                eprintln!("{}", report::progress(&stretch, warm_up.as_secs()));
            }
            timeline.add(stretch);
        };
        let before = async {
            match early {
                Some(before) => before,
                None => {
                    tokio::time::sleep_until(pace.measure_from()).await;
                    self.look().await
                }
            }
        };
        let running = async { tokio::join!(run::run(self.plan, &phase, self.nodes, &mut show), before) };
        let ((end, before), interrupted) = until_told_to_stop(running, || pace.stop()).await;
        let end: Instant = end.context("the load could not be run")?;
        let after = self.look().await;
        let (total, series) = timeline.finish();
        Ok(Run::new(Seen {
            plan: self.plan,
            fill,
            nodes: self.nodes,
            asked: self.servers.nodes(),
            cluster: self.cluster,
            name: self.options.name.clone().unwrap_or_else(|| default_name(self.plan, fill)),
            began,
            interrupted,
            elapsed: end.saturating_duration_since(pace.measure_from()),
            total: &total,
            series,
            before,
            after,
        }))
    }

    async fn look(&self) -> (Vec<servers::State>, Option<servers::Process>) {
        (self.servers.look().await, servers::own_process())
    }
}

/// Runs to the end; at Ctrl-C calls `stop` and waits for what is under way. True if that happened.
async fn until_told_to_stop<T>(running: impl Future<Output = T>, stop: impl Fn()) -> (T, bool) {
    let mut running = std::pin::pin!(running);
    let mut told = std::pin::pin!(tokio::signal::ctrl_c());
    tokio::select! {
        biased;
        done = &mut running => return (done, false),
        _ = &mut told => stop(),
    }
    (running.await, true)
}

fn default_name(plan: &Plan, fill: bool) -> String {
    let workload = if fill { "fill" } else { &plan.workload };
    let rate =
        plan.rate.map_or(String::new(), |rate| format!(" at {} a second", text::count(rate.round() as u64)));
    format!("{workload}, {} × {}{rate}", plan.connections, plan.outstanding)
}
