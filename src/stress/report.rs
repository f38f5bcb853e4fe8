//! What a run came to, as a value: made from what callers saw, written and read as JSON, printed as text.
//!
//! A figure never stands alone: each carries the durability at which the cluster acknowledged, because a number of
//! writes a second means nothing without it.
//!
//! Not here: what it cost (`costs`), pictures (`page`), two runs side by side (`compare`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::costs::{Costs, costs};
use super::options::{End, Fill, Plan};
use super::run::Stretch;
use super::servers::{Cluster, Process, State};
use super::tally::{Latencies, Window};
use super::workload::Kind;
use crate::client::text;
use crate::nodes::Nodes;

/// A run, with all that is published of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What it was called.
    pub name: String,
    /// When it began, UTC.
    pub began: String,
    /// Of this tool.
    pub version: String,
    /// What was asked for.
    pub load: Load,
    /// What an acknowledged write survives.
    pub durability: String,
    /// Somebody ended it early.
    pub interrupted: bool,
    /// From the end of the warm-up to the last answer.
    pub elapsed_s: f64,
    /// Every operation.
    pub all: Figures,
    /// The same by kind; empty kinds are left out.
    pub kinds: Vec<Figures>,
    /// Operations that failed.
    pub errors: Vec<ErrorCount>,
    /// Reads that found no value.
    pub found_nothing: u64,
    /// With a fixed rate: operations that were due, and could not be begun before the end.
    pub never_begun: u64,
    /// What it took.
    pub costs: Costs,
    /// Second by second.
    pub series: Vec<Second>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// "A", "write", "fill" …
    pub workload: String,
    /// "50 % read, 50 % write".
    pub mix: String,
    /// Which keys come how often.
    pub order: String,
    /// Different keys at the start.
    pub keys: u64,
    /// Of each key.
    pub key_bytes: usize,
    /// Of values: a number or a range.
    pub value_bytes: String,
    /// Of reads; empty if there are none.
    pub read_level: String,
    /// Of writes; empty if there are none.
    pub write_level: String,
    /// "tetrachord" or "classic".
    pub service: String,
    /// Servers that were talked to.
    pub servers: usize,
    /// How many servers hold each key, if known.
    pub copies: Option<i32>,
    /// Over all servers.
    pub connections: u32,
    /// On each connection.
    pub outstanding: u32,
    /// Threads of the tool.
    pub threads: u32,
    /// Operations a second, if they were due at a fixed rate.
    pub rate: Option<f64>,
    /// Not counted.
    pub warm_up_s: u64,
    /// Of the random numbers.
    pub seed: u64,
}

/// Operations of one kind, or of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The kind; "all" for all.
    pub kind: String,
    /// What an acknowledged write survives.
    pub durability: String,
    /// How many succeeded.
    pub operations: u64,
    /// The same, a second.
    pub per_second: f64,
    /// Latencies.
    pub mean_us: f64,
    /// Half took at most so long.
    pub p50_us: u64,
    /// 95 of 100.
    pub p95_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1000.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Parts of all operations (0 to 1) and how long they took at most.
    pub curve: Vec<(f64, u64)>,
    /// n and how many took from 10^(n/10) to 10^((n+1)/10) µs.
    pub bins: Vec<(i32, u64)>,
}

/// An error and how often it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorCount {
    /// Of which operations.
    pub kind: String,
    /// What kind of failure.
    pub class: String,
    /// How often.
    pub times: u64,
    /// The first one's words.
    pub example: String,
}

/// One second of a run; the last may be longer or shorter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Counted from the end of the warm-up.
    pub second: u64,
    /// Operations that succeeded, a second.
    pub per_second: f64,
    /// Operations that failed.
    pub errors: u64,
    /// Half took at most so long.
    pub p50_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1000.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// Bins of the histogram from 1 µs to 10 µs, from 10 µs to 100 µs, and so on.
pub const BINS_PER_DECADE: i32 = 10;

/// Points of the percentile curve for each further nine.
const POINTS_PER_NINE: i32 = 12;

/// A last stretch shorter than this is counted to the second before it.
const STRETCH_MIN: Duration = Duration::from_millis(500);

/// Everything that a report is made of.
pub struct Seen<'a> {
    /// What was asked for.
    pub plan: &'a Plan,
    /// The fill, not the workload.
    pub fill: bool,
    /// Servers that were talked to.
    pub nodes: &'a Nodes,
    /// Servers that were asked what it cost them.
    pub asked: &'a Nodes,
    /// What the cluster says of itself.
    pub cluster: &'a Cluster,
    /// What it was called.
    pub name: String,
    /// When it began, UTC.
    pub began: String,
    /// Somebody ended it early.
    pub interrupted: bool,
    /// From the end of the warm-up to the last answer.
    pub elapsed: Duration,
    /// Everything.
    pub total: &'a Window,
    /// By second, warm-up left out.
    pub series: Vec<Second>,
    /// The servers and this tool when counting began …
    pub before: (Vec<State>, Option<Process>),
    /// … and when it ended.
    pub after: (Vec<State>, Option<Process>),
}

impl Run {
    /// The report of a run.
    pub fn new(seen: Seen<'_>) -> Run {
        let durability = &seen.cluster.durability;
        let figures = |kind: &str, latencies: &Latencies, operations: u64| {
            Figures::new(kind, durability, latencies, operations, seen.elapsed)
        };
        let total = seen.total;
        let of_kind =
            |kind: Kind| total.of(kind).map(|latencies| figures(kind.name(), latencies, latencies.len()));
        let errors = total.errors.iter().map(|((kind, class), failures)| ErrorCount {
            kind: kind.name().to_owned(),
            class: class.name().to_owned(),
            times: failures.times,
            example: failures.example.clone(),
        });
        Run {
            load: Load::new(seen.plan, seen.fill, seen.nodes, seen.cluster),
            durability: durability.clone(),
            interrupted: seen.interrupted,
            elapsed_s: rounded(seen.elapsed.as_secs_f64()),
            all: figures("all", &total.all(), total.operations()),
            kinds: Kind::ALL.into_iter().filter_map(of_kind).collect(),
            errors: errors.collect(),
            found_nothing: total.found_nothing,
            never_begun: total.never_begun.as_ref().map_or(0, Latencies::len),
            costs: costs(&seen),
            name: seen.name,
            began: seen.began,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            series: seen.series,
        }
    }

    /// Operations that failed.
    pub fn failures(&self) -> u64 {
        self.errors.iter().map(|error| error.times).sum()
    }

    /// As `--json` writes it.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("a run is plain values");
        json.push('\n');
        json
    }

    /// Reads what [`Run::to_json`] wrote; the error is for people.
    pub fn from_json(json: &str) -> Result<Run, String> {
        serde_json::from_str(json).map_err(|error| format!("it is no run that --json wrote: {error}"))
    }

    /// As `--csv` writes it.
    pub fn to_csv(&self) -> String {
        let mut csv =
            "second,operations_per_second,errors,p50_us,p99_us,p999_us,max_us,durability\n".to_owned();
        for second in &self.series {
            let Second { second, per_second, errors, p50_us, p99_us, p999_us, max_us } = second;
            let durability = &self.durability;
            let line =
                format!("{second},{per_second},{errors},{p50_us},{p99_us},{p999_us},{max_us},{durability}\n");
            csv.push_str(&line);
        }
        csv
    }

    /// As a person reads it.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: &str| {
            out.push_str(text);
            out.push('\n');
        };
        self.load.sentences(&self.durability).iter().for_each(|sentence| line(sentence));
        line("");
        line(figures_table(&self.kinds, &self.all).trim_end());
        for remark in self.remarks() {
            line(&remark);
        }
        line("");
        line(&self.costs.table());
        out.pop();
        out
    }

    /// What is to be known beside the figures.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.interrupted {
            remarks.push(format!("ended early, after {:.1} s", self.elapsed_s));
        }
        if self.found_nothing > 0 {
            let reads = text::plural(self.found_nothing, "read", "reads");
            remarks.push(format!("{reads} found nothing (--load puts every key first)"));
        }
        if self.never_begun > 0 {
            let operations = text::plural(self.never_begun, "operation was", "operations were");
            remarks.push(format!(
                "{operations} due and could not be begun: the cluster does not keep up with this rate. \
                 Their wait is in the percentiles of \"all\""
            ));
        }
        remarks.extend(self.errors.iter().map(ErrorCount::to_string));
        remarks
    }
}

impl std::fmt::Display for ErrorCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ErrorCount { kind, class, times, example } = self;
        write!(f, "{} of {kind}s: {class}, first: {example}", text::plural(*times, "error", "errors"))
    }
}

impl Load {
    fn new(plan: &Plan, fill: bool, nodes: &Nodes, cluster: &Cluster) -> Load {
        let mix = if fill { "every key put once".to_owned() } else { plan.mix.text() };
        let writes = fill || plan.mix.writes();
        let level = |used: bool, level: crate::coordinator::Level| match used {
            true => level.name().to_owned(),
            false => String::new(),
        };
        Load {
            workload: if fill { "fill".to_owned() } else { plan.workload.clone() },
            mix,
            order: if fill { "sequential" } else { plan.order.name() }.to_owned(),
            keys: plan.keys,
            key_bytes: if plan.classic { 1 } else { plan.key_bytes },
            value_bytes: plan.value_bytes.to_string(),
            read_level: level(!fill && plan.mix.reads(), plan.read_level),
            write_level: level(writes, plan.write_level),
            service: if plan.classic { "classic" } else { "tetrachord" }.to_owned(),
            servers: nodes.len(),
            copies: cluster.copies,
            connections: plan.connections,
            outstanding: plan.outstanding,
            threads: plan.threads,
            rate: plan.rate,
            warm_up_s: if fill { 0 } else { plan.warm_up.as_secs() },
            seed: plan.seed,
        }
    }

    /// What was asked for, in words.
    pub fn sentences(&self, durability: &str) -> Vec<String> {
        let levels = [("reads", &self.read_level), ("writes", &self.write_level)];
        let levels = levels.iter().filter(|(_, level)| !level.is_empty());
        let levels: Vec<String> = levels.map(|(what, level)| format!("{what} {level}")).collect();
        let copies = self.copies.map_or(String::new(), |copies| format!(", {copies} copies of each key"));
        let pace = match self.rate {
            Some(rate) => format!("{} operations a second due", text::count(rate.round() as u64)),
            None => "as fast as it answers".to_owned(),
        };
        vec![
            format!("workload {}: {}; {}", self.workload, self.mix, levels.join(", ")),
            format!(
                "{} keys of {}, {} order; values of {} bytes; {} service",
                text::count(self.keys),
                text::plural(self.key_bytes as u64, "byte", "bytes"),
                self.order,
                self.value_bytes,
                self.service
            ),
            format!(
                "{} to {}, {} on each, {pace}; durability {durability}{copies}",
                text::plural(u64::from(self.connections), "connection", "connections"),
                text::plural(self.servers as u64, "server", "servers"),
                text::plural(u64::from(self.outstanding), "call", "calls"),
            ),
        ]
    }
}

impl Figures {
    fn new(kind: &str, durability: &str, seen: &Latencies, operations: u64, elapsed: Duration) -> Figures {
        let at = |quantile: f64| seen.value_at_quantile(quantile);
        Figures {
            kind: kind.to_owned(),
            durability: durability.to_owned(),
            operations,
            per_second: rounded(operations as f64 / elapsed.as_secs_f64().max(1e-6)),
            mean_us: rounded(seen.mean()),
            p50_us: at(0.5),
            p95_us: at(0.95),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: seen.max(),
            curve: curve(seen),
            bins: bins(seen),
        }
    }
}

/// As many points as the number of operations gives meaning to: the last is the first percentile that one operation
/// alone decides.
fn curve(seen: &Latencies) -> Vec<(f64, u64)> {
    if seen.is_empty() {
        return Vec::new();
    }
    let nines = (seen.len() as f64).log10();
    let points = (nines * f64::from(POINTS_PER_NINE)).floor() as i32;
    let quantile = |point: i32| 1.0 - 10f64.powf(-f64::from(point) / f64::from(POINTS_PER_NINE));
    (0..=points)
        .map(|point| {
            // Ten digits: enough for every nine there can be, and the same after a round trip through JSON.
            let quantile = (quantile(point) * 1e10).round() / 1e10;
            (quantile, seen.value_at_quantile(quantile))
        })
        .collect()
}

fn bins(seen: &Latencies) -> Vec<(i32, u64)> {
    let mut bins: Vec<(i32, u64)> = Vec::new();
    for step in seen.iter_recorded() {
        let value = step.value_iterated_to().max(1) as f64;
        let bin = (value.log10() * f64::from(BINS_PER_DECADE)).floor() as i32;
        match bins.last_mut() {
            Some((last, count)) if *last == bin => *count += step.count_since_last_iteration(),
            _ => bins.push((bin, step.count_since_last_iteration())),
        }
    }
    bins
}

/// Three digits behind the point: more is noise, and JSON gives them back unchanged.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Collects seconds as they pass.
#[derive(Debug, Default)]
pub struct Timeline {
    /// Everything so far.
    pub total: Window,
    /// The last one is kept back: what follows may be too short to stand alone.
    last: Option<Stretch>,
    seconds: Vec<Second>,
    warm_up_s: u64,
}

impl Timeline {
    /// Seconds before this one are warm-up.
    pub fn new(warm_up_s: u64) -> Timeline {
        Timeline { warm_up_s, ..Timeline::default() }
    }

    /// Takes the next second.
    pub fn add(&mut self, stretch: Stretch) {
        self.total.add(&stretch.window);
        if stretch.second < self.warm_up_s {
            return;
        }
        match &mut self.last {
            Some(last) if stretch.length < STRETCH_MIN => {
                last.window.add(&stretch.window);
                last.length += stretch.length;
            }
            _ => self.seconds.extend(self.last.replace(stretch).map(|last| second(&last, self.warm_up_s))),
        }
    }

    /// Everything, and the seconds.
    pub fn finish(mut self) -> (Window, Vec<Second>) {
        self.seconds.extend(self.last.map(|last| second(&last, self.warm_up_s)));
        (self.total, self.seconds)
    }
}

fn second(stretch: &Stretch, warm_up_s: u64) -> Second {
    let all = stretch.window.all();
    Second {
        second: stretch.second - warm_up_s,
        per_second: rounded(stretch.window.operations() as f64 / stretch.length.as_secs_f64().max(1e-6)),
        errors: stretch.window.failures(),
        p50_us: all.value_at_quantile(0.5),
        p99_us: all.value_at_quantile(0.99),
        p999_us: all.value_at_quantile(0.999),
        max_us: all.max(),
    }
}

/// One line while it runs.
pub fn progress(stretch: &Stretch, warm_up_s: u64) -> String {
    let Stretch { second, length, window } = stretch;
    let per_second = |count: u64| text::count((count as f64 / length.as_secs_f64().max(1e-6)) as u64);
    if *second < warm_up_s {
        return format!("{:>5} s  {:>9}/s  warm-up", second + 1, per_second(window.uncounted));
    }
    format!(
        "{:>5} s  {:>9}/s  p99 {:>8} ms  {}",
        second - warm_up_s + 1,
        per_second(window.operations()),
        ms(window.all().value_at_quantile(0.99)),
        text::plural(window.failures(), "error", "errors"),
    )
}

// ------------------------------------------------------------------------------------------------ text

impl Figures {
    /// A row of the table of latencies, which begins with `name`.
    pub(super) fn cells(&self, name: String) -> [String; 10] {
        [
            name,
            text::count(self.operations),
            text::count(self.per_second.round() as u64),
            ms_of(self.mean_us),
            ms(self.p50_us),
            ms(self.p95_us),
            ms(self.p99_us),
            ms(self.p999_us),
            ms(self.max_us),
            self.durability.clone(),
        ]
    }
}

fn figures_table(kinds: &[Figures], all: &Figures) -> String {
    let head = ["ms", "operations", "a second", "mean", "p50", "p95", "p99", "p99.9", "max", "durability"];
    let mut rows = vec![head.map(str::to_owned)];
    let several = if kinds.len() == 1 { None } else { Some(all) };
    rows.extend(kinds.iter().chain(several).map(|figures| figures.cells(figures.kind.clone())));
    text::columns(&rows)
}

/// Microseconds as milliseconds, with the digits that mean something.
pub fn ms(us: u64) -> String {
    ms_of(us as f64)
}

fn ms_of(us: f64) -> String {
    let ms = us / 1000.0;
    if ms < 10.0 {
        format!("{ms:.3}")
    } else if ms < 1000.0 {
        format!("{ms:.1}")
    } else {
        text::count(ms.round() as u64)
    }
}

/// Bytes as mebibytes.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// What a plan's end is in words.
pub fn end_text(plan: &Plan) -> String {
    match (plan.fill, plan.end) {
        (Fill::Only, _) => format!("{} keys", text::count(plan.keys)),
        (_, End::After(duration)) => format!("{} s", duration.as_secs()),
        (_, End::Operations(operations)) => format!("{} operations", text::count(operations)),
    }
}
