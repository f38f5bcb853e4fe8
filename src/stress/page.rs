//! One HTML page for a run, or for two: figures, pictures, costs. It needs nothing beside itself, no script, no
//! network.

use super::chart::{Axis, Bars, Chart, Line, escape};
use super::compare;
use super::report::{BINS_PER_DECADE, Figures, Run, Second, mib, ms};
use crate::client::text;

/// Points of a line over time: more than there are pixels to show.
const POINTS_MAX: usize = 500;

/// The page of `run`, with `other` behind it on the same pictures.
pub fn page(run: &Run, other: Option<&Run>) -> String {
    let title = match other {
        None => escape(&run.name),
        Some(other) => format!("{} against {}", escape(&run.name), escape(&other.name)),
    };
    let mut body = format!("<h1>{title}</h1>\n");
    body.push_str(&conditions(run, other));
    body.push_str(&tiles(run, other));
    body.push_str(&pictures(run, other));
    body.push_str(&tables(run, other));
    body.push_str(&format!(
        "<footer>stress {} · began {} · latencies are measured by the tool{}</footer>\n",
        escape(&run.version),
        escape(&run.began),
        if run.load.rate.is_some() { ", from the moment an operation was due" } else { "" },
    ));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

fn conditions(run: &Run, other: Option<&Run>) -> String {
    let mut out = String::from("<p class=\"what\">");
    out.push_str(
        &run.load.sentences(&run.durability).iter().map(|line| escape(line)).collect::<Vec<_>>().join("<br>"),
    );
    out.push_str("</p>\n");
    for remark in run.remarks() {
        out.push_str(&format!("<p class=\"remark\">{}</p>\n", escape(&remark)));
    }
    for difference in other.map_or(Vec::new(), |other| compare::differences(run, other)) {
        out.push_str(&format!("<p class=\"remark\">not alike: {}</p>\n", escape(&difference)));
    }
    out
}

fn tiles(run: &Run, other: Option<&Run>) -> String {
    let ratios = other.and_then(|other| compare::ratios(run, other).pop());
    let times = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2} × the other"));
    let mut out = String::from("<section class=\"tiles\">\n");
    let mut tile = |value: String, what: &str, below: String| {
        out.push_str(&format!("<div><b>{value}</b><span>{what}</span><em>{below}</em></div>\n"));
    };
    let rate = text::count(run.all.per_second.round() as u64);
    tile(rate, "operations a second", times(ratios.as_ref().map(|ratio| ratio.per_second)));
    let latency = |us: u64| format!("{} <small>ms</small>", ms(us));
    tile(latency(run.all.p50_us), "p50", times(ratios.as_ref().map(|ratio| ratio.p50)));
    tile(latency(run.all.p99_us), "p99", times(ratios.as_ref().map(|ratio| ratio.p99)));
    tile(latency(run.all.p999_us), "p99.9", times(ratios.as_ref().map(|ratio| ratio.p999)));
    if let Some(cpu_us) = run.costs.cpu_us {
        let other_us = other.and_then(|other| other.costs.cpu_us);
        let ratio = other_us.map(|other_us| cpu_us / other_us.max(0.001));
        tile(format!("{cpu_us:.1} <small>µs</small>"), "CPU an operation", times(ratio));
    }
    let durability = escape(&run.durability);
    tile(format!("<small>{durability}</small>"), "durability", String::new());
    out.push_str("</section>\n");
    out
}

// ------------------------------------------------------------------------------------------------ pictures

fn pictures(run: &Run, other: Option<&Run>) -> String {
    let runs: Vec<&Run> = [Some(run), other].into_iter().flatten().collect();
    let mut out = String::from("<section class=\"pictures\">\n");
    let durability = escape(&durabilities(&runs));
    let figure = |title: &str, legend: String, chart: &Chart| {
        let head = format!("<h2>{title}<span>{durability}</span></h2>");
        format!("<figure>\n{head}\n{legend}{}</figure>\n", chart.svg(title))
    };
    if run.series.len() > 1 {
        out.push_str(&figure("Operations a second", legend(&runs, &[]), &throughput(&runs)));
        out.push_str(&figure("Latency, second by second", legend(&runs, &OVER_TIME), &over_time(&runs)));
    }
    let kinds = kinds(&runs);
    let named: Vec<(&str, &str)> = kinds.iter().map(|kind| (kind.as_str(), class_of(kind))).collect();
    let named = if named.len() > 1 { &named[..] } else { &[] };
    out.push_str(&figure("Latency by percentile", legend(&runs, named), &percentiles(&runs, &kinds)));
    out.push_str(&figure("How many took how long", legend(&runs, &[]), &histogram(&runs)));
    out.push_str("</section>\n");
    out
}

/// Percentiles over time, and their classes in the style sheet.
const OVER_TIME: [(&str, &str); 3] = [("p50", "c1"), ("p99", "c2"), ("p99.9", "c3")];

/// Which colour is what, which stroke is whose.
fn legend(runs: &[&Run], colours: &[(&str, &str)]) -> String {
    let mut out = String::from("<p class=\"legend\">");
    for (name, class) in colours {
        out.push_str(&format!("<span class=\"{class}\"><i></i>{name}</span>"));
    }
    if runs.len() > 1 {
        for (run, class) in runs.iter().zip(["mine", "other"]) {
            out.push_str(&format!("<span class=\"c0 {class}\"><i></i>{}</span>", escape(&run.name)));
        }
    }
    out.push_str("</p>\n");
    out
}

fn durabilities(runs: &[&Run]) -> String {
    let mut all: Vec<&str> = runs.iter().map(|run| run.durability.as_str()).collect();
    all.dedup();
    format!("durability {}", all.join(" against "))
}

fn class(colour: &str, run: usize) -> String {
    format!("{colour} {}", if run == 0 { "mine" } else { "other" })
}

/// Kinds that some run has, in order; "all" if none is shared out.
fn kinds(runs: &[&Run]) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    for figures in runs.iter().flat_map(|run| &run.kinds) {
        if !kinds.contains(&figures.kind) {
            kinds.push(figures.kind.clone());
        }
    }
    kinds
}

fn class_of(kind: &str) -> &'static str {
    match kind {
        "read" => "c1",
        "write" => "c2",
        "insert" => "c3",
        _ => "c4",
    }
}

fn throughput(runs: &[&Run]) -> Chart {
    let most = runs.iter().flat_map(|run| &run.series).map(|second| second.per_second).fold(1.0, f64::max);
    let lines = runs.iter().enumerate().map(|(index, run)| {
        let tooltip = |second: &Second| {
            format!("second {}: {} a second", second.second, text::count(second.per_second.round() as u64))
        };
        let value = |second: &Second| (second.per_second, tooltip(second));
        Line { class: class("c1", index), filled: index == 0, points: series(run, f64::min, value) }
    });
    let y = Axis::from_zero("operations a second", most, |value| text::count(value.round() as u64));
    Chart { x: time_axis(runs), y, bars: Vec::new(), lines: lines.collect() }
}

fn over_time(runs: &[&Run]) -> Chart {
    let picks: [fn(&Second) -> u64; 3] =
        [|second| second.p50_us, |second| second.p99_us, |second| second.p999_us];
    let mut lines = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        for ((name, colour), pick) in OVER_TIME.iter().zip(picks) {
            let value = |second: &Second| {
                let us = pick(second);
                (us.max(1) as f64, format!("second {}: {name} {} ms", second.second, ms(us)))
            };
            lines.push(Line {
                class: class(colour, index),
                filled: false,
                points: series(run, f64::max, value),
            });
        }
    }
    Chart { x: time_axis(runs), y: latency_axis(&lines), bars: Vec::new(), lines }
}

/// A value for each second; where there are too many, `worst` of each few.
fn series(
    run: &Run,
    worst: impl Fn(f64, f64) -> f64,
    value: impl Fn(&Second) -> (f64, String),
) -> Vec<(f64, f64, String)> {
    let each = run.series.len().div_ceil(POINTS_MAX).max(1);
    let point = |some: &[Second]| {
        let mut values = some.iter().map(&value);
        let first = values.next()?;
        let (shown, tooltip) =
            values.fold(first, |kept, next| if worst(kept.0, next.0) == kept.0 { kept } else { next });
        Some((some[0].second as f64 + 0.5, shown, tooltip))
    };
    run.series.chunks(each).filter_map(point).collect()
}

fn time_axis(runs: &[&Run]) -> Axis {
    let seconds =
        runs.iter().filter_map(|run| run.series.last()).map(|last| last.second + 1).max().unwrap_or(1);
    let mut axis = Axis::from_zero("seconds", seconds as f64, |value| text::count(value.round() as u64));
    axis.to = seconds as f64;
    axis.ticks.retain(|(value, _)| *value <= seconds as f64 && value.fract() == 0.0);
    axis
}

fn latency_axis(lines: &[Line]) -> Axis {
    let values = || lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(1.0, f64::max));
    Axis::logarithmic("", if least.is_finite() { least } else { 1.0 }, most, latency_label)
}

/// Microseconds on an axis.
fn latency_label(us: f64) -> String {
    let plain = |number: f64| {
        let rounded = (number * 1000.0).round() / 1000.0;
        format!("{rounded}")
    };
    match us {
        us if us < 1e3 => format!("{} µs", plain(us)),
        us if us < 1e6 => format!("{} ms", plain(us / 1e3)),
        _ => format!("{} s", plain(us / 1e6)),
    }
}

/// The axis of nines: 90 %, 99 %, 99.9 % at equal distances.
fn percentiles(runs: &[&Run], kinds: &[String]) -> Chart {
    let nines = |quantile: f64| 1.0 / (1.0 - quantile);
    let mut lines = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        for kind in kinds {
            let Some(figures) = run.kinds.iter().find(|figures| figures.kind == *kind) else { continue };
            // Without the fastest operation of all, which would squeeze the rest.
            let points = figures.curve.iter().skip(1).map(|(quantile, us)| {
                let tooltip = format!("{kind}: {} % took at most {} ms", percent(*quantile), ms(*us));
                (nines(*quantile), (*us).max(1) as f64, tooltip)
            });
            lines.push(Line { class: class(class_of(kind), index), filled: false, points: points.collect() });
        }
    }
    let most = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(100.0, f64::max);
    let mut ticks = vec![(1.0, "0 %".to_owned()), (2.0, "50 %".to_owned())];
    let mut power = 10.0;
    while power <= most * 1.001 {
        ticks.push((power, format!("{} %", percent(1.0 - 1.0 / power))));
        power *= 10.0;
    }
    let x = Axis {
        title: "part of the operations that took at most so long",
        from: 1.0,
        to: most,
        logarithmic: true,
        ticks,
    };
    Chart { x, y: latency_axis(&lines), bars: Vec::new(), lines }
}

/// A part as percent, with as many digits as it has nines.
fn percent(quantile: f64) -> String {
    let shown = format!("{:.5}", quantile * 100.0);
    shown.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn histogram(runs: &[&Run]) -> Chart {
    let edge = |bin: i32| 10f64.powf(f64::from(bin) / f64::from(BINS_PER_DECADE));
    let share = |figures: &Figures, count: u64| {
        100.0 * count as f64 / figures.bins.iter().map(|bin| bin.1).sum::<u64>().max(1) as f64
    };
    let tooltip = |bin: i32, count: u64, part: f64| {
        let (from, to) = (edge(bin), edge(bin + 1));
        format!("{:.3} to {:.3} ms: {} operations, {part:.2} %", from / 1e3, to / 1e3, text::count(count))
    };
    let bars = |figures: &Figures| {
        let bar = |&(bin, count): &(i32, u64)| {
            let part = share(figures, count);
            (edge(bin), edge(bin + 1), part, tooltip(bin, count, part))
        };
        figures.bins.iter().map(bar).collect::<Vec<_>>()
    };
    let all: Vec<Vec<_>> = runs.iter().map(|run| bars(&run.all)).collect();
    let values = || all.iter().flatten();
    let least = values().map(|bar| bar.0).fold(f64::INFINITY, f64::min);
    let most = values().map(|bar| bar.1).fold(10.0, f64::max);
    let highest = values().map(|bar| bar.2).fold(1.0, f64::max);
    let x = Axis::logarithmic("latency", if least.is_finite() { least } else { 1.0 }, most, latency_label);
    let y = Axis::from_zero("", highest, |value| format!("{} %", (value * 100.0).round() / 100.0));
    let mut all = all.into_iter();
    let bars = all.next().map(|bars| Bars { class: class("c1", 0), bars }).into_iter().collect();
    let lines = all.map(|bars| Line {
        class: class("c2", 1),
        filled: false,
        points: bars
            .into_iter()
            .map(|(from, to, part, tooltip)| ((from * to).sqrt(), part, tooltip))
            .collect(),
    });
    Chart { x, y, bars, lines: lines.collect() }
}

// ------------------------------------------------------------------------------------------------ tables

fn tables(run: &Run, other: Option<&Run>) -> String {
    let mut out = String::from("<section>\n<h2>Latencies in milliseconds</h2>\n");
    let mut rows = Vec::new();
    for run in [Some(run), other].into_iter().flatten() {
        let several = if run.kinds.len() == 1 { None } else { Some(&run.all) };
        for figures in run.kinds.iter().chain(several) {
            let name = if other.is_some() {
                format!("{}: {}", run.name, figures.kind)
            } else {
                figures.kind.clone()
            };
            rows.push(figures.cells(name).to_vec());
        }
    }
    let head = ["", "operations", "a second", "mean", "p50", "p95", "p99", "p99.9", "max", "durability"];
    out.push_str(&table(&head, &rows));
    out.push_str("<h2>What it took, by operation</h2>\n");
    out.push_str(&table(&["", "CPU µs", "fsyncs", "bytes written", "memory (RSS)"], &cost_rows(run, other)));
    out.push_str("</section>\n");
    out
}

fn cost_rows(run: &Run, other: Option<&Run>) -> Vec<Vec<String>> {
    let number = |number: Option<f64>, digits: usize, missing: &str| match number {
        Some(number) => format!("{number:.digits$}"),
        None => missing.to_owned(),
    };
    let mut rows = Vec::new();
    for run in [Some(run), other].into_iter().flatten() {
        let name =
            |what: &str| if other.is_some() { format!("{}: {what}", run.name) } else { what.to_owned() };
        for server in &run.costs.servers {
            rows.push(vec![
                name(&format!("server {} at {}", server.server, server.address)),
                number(server.cpu_us, 1, "not local"),
                number(server.fsyncs, 3, "not told"),
                number(server.written_bytes, 0, "not local"),
                server.resident_bytes.map_or("not local".to_owned(), mib),
            ]);
        }
        let costs = &run.costs;
        rows.push(vec![
            name("all servers"),
            number(costs.cpu_us, 1, ""),
            number(costs.fsyncs, 3, ""),
            number(costs.written_bytes, 0, ""),
            String::new(),
        ]);
        rows.push(vec![name("this tool"), number(costs.tool_cpu_us, 1, "")]);
    }
    rows
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"wide\"><table>\n<tr>");
    for cell in head {
        out.push_str(&format!("<th>{}</th>", escape(cell)));
    }
    out.push_str("</tr>\n");
    for row in rows {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        out.push_str(&format!("<tr>{cells}</tr>\n"));
    }
    out.push_str("</table></div>\n");
    out
}

const STYLE: &str = "\
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5c6675; --rule: #e3e6eb;
  --c1: #2563c9; --c2: #d9661f; --c3: #a03c9c; --c4: #128a6b; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --card: #1b212b; --ink: #e8ebf0; --soft: #9aa5b5;
  --rule: #2d3543; --c1: #6ea0f5; --c2: #f0935a; --c3: #d583d1; --c4: #4fc7a6; --warn: #e0b458; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, 'Segoe UI',
  Roboto, 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 40px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 15px; margin: 0 0 2px; }
figure h2 { display: flex; justify-content: space-between; gap: 12px; }
figure h2 span { color: var(--soft); font-size: 13px; font-weight: 400; }
.what { color: var(--soft); margin: 0 0 18px; }
.remark { color: var(--warn); margin: 0 0 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 0 0 16px; }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 16px; }
.tiles b { display: block; font-size: 25px; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.tiles small { font-size: 16px; font-weight: 500; }
.tiles span { color: var(--soft); font-size: 13px; }
.tiles em { display: block; font-style: normal; font-size: 13px; color: var(--c1); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 16px; margin: 0 0 24px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px 8px; }
svg { display: block; width: 100%; height: auto; }
.legend { min-height: 20px; margin: 0 0 4px; font-size: 13px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 0 16px; }
.legend i { display: inline-block; width: 18px; border-top: 3px solid var(--colour); margin: 0 6px 4px 0; vertical-align: middle; }
.legend .other i { border-top-style: dashed; border-top-width: 2px; }
.c0 { --colour: var(--soft); } .c1 { --colour: var(--c1); } .c2 { --colour: var(--c2); }
.c3 { --colour: var(--c3); } .c4 { --colour: var(--c4); }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.tick, .unit { fill: var(--soft); font-size: 11.5px; }
.line { fill: none; stroke: var(--colour); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.other .line { stroke-width: 1.6; stroke-dasharray: 5 4; opacity: 0.85; }
.fill { fill: var(--colour); opacity: 0.12; }
circle { fill: var(--colour); opacity: 0; } circle:hover { opacity: 0.7; }
rect { fill: var(--colour); opacity: 0.8; } rect:hover { opacity: 1; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; margin: 8px 0 22px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 520px) { .pictures { grid-template-columns: 1fr; } }
";
