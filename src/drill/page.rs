//! The report as one page of HTML: numbers, and the run drawn against time.
//!
//! What must always be true: the page needs nothing but itself. No script, no font, no picture from elsewhere. Colours
//! follow the reader's light or dark setting and are light in print; every colour has a word or a place beside it.

use std::fmt::Write as _;

use super::report::Report;
use super::timeline::{Gap, Kind, Mark, Slice};
use crate::client::text;

/// Of the drawing, in its own units.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 18.0;
const PANEL_HEIGHT: f64 = 150.0;
const RATE_TOP: f64 = 34.0;
const LATENCY_TOP: f64 = RATE_TOP + PANEL_HEIGHT + 46.0;
const LANES_TOP: f64 = LATENCY_TOP + PANEL_HEIGHT + 46.0;
const LANE_HEIGHT: f64 = 32.0;
const BAR_HEIGHT: f64 = 20.0;

/// Width of a letter in a bar, about.
const LETTER: f64 = 7.4;

const STYLE: &str = "
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1c2430; --soft: #5d6875; --line: #d8dee6; --card: #f4f6f9;
  --ack: #2f6fbf; --ack-fill: #2f6fbf33; --refused: #d9822b; --unknown: #a23bb0; --outage: #d6454522;
  --p50: #16857a; --p99: #1c2430; --down: #cf3b3b; --frozen: #3d8fd1; --cut: #d9822b; --disk: #8a6a4f; --skew: #7b52c7;
  --good: #1b7f4b; --bad: #c22f2f; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14181e; --ink: #e6eaf0; --soft: #9aa5b2; --line: #323a45; --card: #1d232b;
  --ack: #6da8f2; --ack-fill: #6da8f233; --refused: #f0a14f; --unknown: #d57be0; --outage: #ff6b6b26;
  --p50: #4fc4b5; --p99: #e6eaf0; --down: #e25b5b; --frozen: #5aaae8; --cut: #e79a45; --disk: #b08f72; --skew: #a584ea;
  --good: #4cc38a; --bad: #ff7b72; } }
@media print { :root {
  --paper: #ffffff; --ink: #000000; --soft: #444; --line: #ccc; --card: #f4f4f4;
  --ack: #2f6fbf; --ack-fill: #2f6fbf33; --refused: #d9822b; --unknown: #a23bb0; --outage: #d6454522;
  --p50: #16857a; --p99: #000000; --down: #cf3b3b; --frozen: #3d8fd1; --cut: #d9822b; --disk: #8a6a4f; --skew: #7b52c7;
  --good: #1b7f4b; --bad: #c22f2f; }
  body { padding: 0 !important; font-size: 11px !important; } h1 { font-size: 20px !important; }
  h2 { font-size: 14px !important; margin-top: 14px !important; } .card b { font-size: 17px !important; }
  .card span, .story { font-size: 10px !important; } .cards { grid-template-columns: repeat(6, 1fr) !important; }
  code { font-size: 10px !important; } ul.checks li { margin: 3px 0 !important; } h2, svg { break-inside: avoid; } }
@page { size: A4 portrait; margin: 12mm; }
* { box-sizing: border-box; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { margin: 0 auto; max-width: 1240px; padding: 28px 20px 40px; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; }
h1 { font-size: 30px; margin: 0; letter-spacing: -0.01em; } h2 { font-size: 19px; margin: 30px 0 8px; }
.setting { color: var(--soft); margin: 4px 0 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.card { background: var(--card); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 25px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 14px; }
.good b, .tick.good { color: var(--good); } .bad b, .tick.bad { color: var(--bad); }
svg { width: 100%; height: auto; display: block; margin-top: 14px; }
svg text { fill: var(--ink); font-size: 13px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg .soft { fill: var(--soft); } svg .name { font-weight: 600; font-size: 14px; } svg .bar { fill: #fff; font-weight: 600; font-size: 12px; }
svg .gap { fill: var(--bad); font-weight: 600; }
.grid { stroke: var(--line); stroke-width: 1; } .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; opacity: .45; }
ul.checks { list-style: none; padding: 0; margin: 0; } ul.checks li { margin: 8px 0; padding-left: 30px; position: relative; }
.tick { position: absolute; left: 2px; font-weight: 700; } .soft { color: var(--soft); }
table.facts td { padding: 2px 18px 2px 0; vertical-align: top; } table.facts td:first-child { color: var(--soft); white-space: nowrap; }
.story { columns: 2; column-gap: 40px; font-size: 14px; } .story div { break-inside: avoid; display: flex; gap: 12px; }
.story time { color: var(--soft); min-width: 58px; text-align: right; font-variant-numeric: tabular-nums; }
code { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--card); padding: 2px 6px; border-radius: 5px; }
@media (max-width: 700px) { .story { columns: 1; } }
";

/// The page.
pub fn render(report: &Report) -> String {
    let setting = &report.setting;
    let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    push(
        &mut out,
        format_args!("<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n", escaped(&setting.title)),
    );
    push(&mut out, format_args!("<h1>{}</h1>\n", escaped(&capitalised(&setting.title))));
    push(
        &mut out,
        format_args!(
            "<p class=\"setting\">{}, {} of each key · {} on {} · {} s · seed {}</p>\n",
            text::plural(setting.servers as u64, "server", "servers"),
            text::plural(setting.copies as u64, "copy", "copies"),
            text::plural(setting.clients as u64, "client", "clients"),
            text::plural(setting.keys as u64, "key", "keys"),
            setting.seconds,
            setting.seed
        ),
    );
    cards(&mut out, report);
    drawing(&mut out, report);
    checks(&mut out, report);
    facts(&mut out, report);
    story(&mut out, report);
    out.push_str("</body>\n</html>\n");
    out
}

fn cards(out: &mut String, report: &Report) {
    let must_be_none = |count: usize| if count == 0 { "good" } else { "bad" };
    let cards = [
        ("", text::count(report.acknowledged), "operations acknowledged"),
        ("", text::count(report.refused), "refused: nothing was done"),
        ("", text::count(report.unknown), "writes of unknown outcome"),
        (
            "",
            format!("{:.2} s", report.outage.len_us() as f64 / 1e6),
            "longest time without a QUORUM success",
        ),
        (must_be_none(report.lost), report.lost.to_string(), "acknowledged writes lost"),
        (must_be_none(report.stale), report.stale.to_string(), "stale reads"),
    ];
    out.push_str("<div class=\"cards\">\n");
    for (class, number, name) in cards {
        push(out, format_args!("<div class=\"card {class}\"><b>{number}</b><span>{name}</span></div>\n"));
    }
    out.push_str("</div>\n");
}

fn checks(out: &mut String, report: &Report) {
    if report.checked.is_empty() {
        return;
    }
    out.push_str("<h2>Expected, and seen</h2>\n<ul class=\"checks\">\n");
    for checked in &report.checked {
        let (class, tick) = if checked.holds { ("good", "✓") } else { ("bad", "✗") };
        push(
            out,
            format_args!(
                "<li><span class=\"tick {class}\">{tick}</span>{} <span class=\"soft\">· {}</span></li>\n",
                escaped(checked.text),
                escaped(&checked.measured)
            ),
        );
    }
    out.push_str("</ul>\n");
}

fn facts(out: &mut String, report: &Report) {
    out.push_str("<h2>In numbers</h2>\n<table class=\"facts\">\n");
    let operations = report.operations();
    let mut facts = vec![
        ("operations", text::count(operations)),
        ("faults", report.faults_in_words()),
        ("longest outage", report.outage_in_words()),
        ("full agreement", report.agreement_in_words()),
        ("linearizable", report.linear.clone()),
    ];
    if !report.failures.is_empty() {
        facts.insert(1, ("clients were told", report.failures_in_words()));
    }
    for (name, value) in facts {
        push(out, format_args!("<tr><td>{name}</td><td>{}</td></tr>\n", escaped(&value)));
    }
    push(
        out,
        format_args!(
            "<tr><td>repeat</td><td><code>{}</code></td></tr>\n</table>\n",
            escaped(&report.setting.command)
        ),
    );
    if !report.findings.is_empty() {
        out.push_str("<h2>Broken promises</h2>\n");
        for finding in &report.findings {
            push(out, format_args!("<pre>{}</pre>\n", escaped(finding)));
        }
    }
}

fn story(out: &mut String, report: &Report) {
    out.push_str("<h2>What happened</h2>\n<div class=\"story\">\n");
    for event in &report.events {
        let seconds = event.at_us as f64 / 1e6;
        push(
            out,
            format_args!("<div><time>{seconds:.1} s</time><span>{}</span></div>\n", escaped(&event.text)),
        );
    }
    out.push_str("</div>\n");
}

// ------------------------------------------------------------------------------------------------ the drawing

/// From time to place.
struct Scale {
    end_us: u64,
}

impl Scale {
    fn x(&self, us: u64) -> f64 {
        let share = us.min(self.end_us) as f64 / self.end_us.max(1) as f64;
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }
}

fn drawing(out: &mut String, report: &Report) {
    let scale = Scale { end_us: report.end_us };
    let lanes_end = LANES_TOP + report.setting.servers as f64 * LANE_HEIGHT;
    let height = lanes_end + 34.0;
    push(
        out,
        format_args!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"operations, latency and faults against time\">\n"
        ),
    );
    time_axis(out, &scale, lanes_end);
    outages(out, &scale, &report.outages);
    fault_lines(out, &scale, &report.marks, lanes_end);
    rates(out, &scale, report);
    latencies(out, &scale, report);
    lanes(out, &scale, report);
    out.push_str("</svg>\n");
}

fn time_axis(out: &mut String, scale: &Scale, lanes_end: f64) {
    let seconds = scale.end_us as f64 / 1e6;
    let step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600]
        .into_iter()
        .find(|step| seconds / f64::from(*step) <= 16.0);
    let step = step.unwrap_or(7_200) as usize;
    for second in (0..=seconds as usize).step_by(step) {
        let x = scale.x(second as u64 * 1_000_000);
        push(
            out,
            format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{RATE_TOP}\" y2=\"{lanes_end}\"/>\
                 <text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second} s</text>\n",
                lanes_end + 20.0
            ),
        );
    }
}

fn outages(out: &mut String, scale: &Scale, outages: &[Gap]) {
    for gap in outages {
        let (x, until) = (scale.x(gap.from_us), scale.x(gap.until_us));
        let height = LATENCY_TOP + PANEL_HEIGHT - RATE_TOP;
        let seconds = gap.len_us() as f64 / 1e6;
        push(
            out,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{RATE_TOP}\" width=\"{:.1}\" height=\"{height}\" fill=\"var(--outage)\">\
                 <title>no QUORUM success for {seconds:.2} s</title></rect>\n",
                until - x
            ),
        );
        let label = format!("{seconds:.1} s");
        if label.len() as f64 * LETTER < until - x {
            push(
                out,
                format_args!(
                    "<text class=\"gap\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
                    (x + until) / 2.0,
                    RATE_TOP + 16.0
                ),
            );
        }
    }
}

/// Where a fault begins, through every panel, so that the eye finds its price.
fn fault_lines(out: &mut String, scale: &Scale, marks: &[Mark], lanes_end: f64) {
    let mut at_us: Vec<u64> = marks.iter().map(|mark| mark.from_us / 50_000 * 50_000).collect();
    at_us.sort_unstable();
    at_us.dedup();
    for us in at_us.into_iter().filter(|us| *us < scale.end_us) {
        let x = scale.x(us);
        push(
            out,
            format_args!(
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{RATE_TOP}\" y2=\"{lanes_end}\"/>\n"
            ),
        );
    }
}

/// Operations a second: acknowledged as an area, refused and unknown on top of it.
fn rates(out: &mut String, scale: &Scale, report: &Report) {
    let rate = |count: u64, slice: &Slice| {
        let width_us = (slice.from_us + report.slice_us).min(report.end_us).saturating_sub(slice.from_us);
        count as f64 * 1e6 / width_us.max(report.slice_us / 4) as f64
    };
    let all = |slice: &Slice| rate(slice.acknowledged + slice.refused + slice.unknown, slice);
    let most = nice_above(report.slices.iter().map(all).fold(1.0, f64::max));
    let y = |rate: f64| RATE_TOP + PANEL_HEIGHT * (1.0 - rate / most);
    let legend = [
        ("acknowledged", "var(--ack)"),
        ("refused", "var(--refused)"),
        ("unknown outcome", "var(--unknown)"),
    ];
    head(out, RATE_TOP, "operations a second", &legend);
    for share in [0.0, 0.5, 1.0] {
        level(out, y(most * share), &text::count((most * share) as u64));
    }
    let mut area = format!("M{:.1} {:.1}", LEFT, y(0.0));
    let mut edge = String::new();
    for slice in &report.slices {
        let (x, until) = (scale.x(slice.from_us), scale.x(slice.from_us + report.slice_us));
        let top = y(rate(slice.acknowledged, slice));
        push(&mut area, format_args!("L{x:.1} {top:.1}L{until:.1} {top:.1}"));
        let pen = if edge.is_empty() { "M" } else { "L" };
        push(&mut edge, format_args!("{pen}{x:.1} {top:.1}L{until:.1} {top:.1}"));
    }
    push(&mut area, format_args!("L{:.1} {:.1}Z", scale.x(scale.end_us), y(0.0)));
    push(
        out,
        format_args!(
            "<path d=\"{area}\" fill=\"var(--ack-fill)\"/>\n<path d=\"{edge}\" fill=\"none\" stroke=\"var(--ack)\" stroke-width=\"1.6\"/>\n"
        ),
    );
    for slice in &report.slices {
        let (x, until) = (scale.x(slice.from_us), scale.x(slice.from_us + report.slice_us));
        let mut below = slice.acknowledged;
        for (count, colour) in [(slice.refused, "var(--refused)"), (slice.unknown, "var(--unknown)")] {
            if count > 0 {
                let (top, bottom) = (y(rate(below + count, slice)), y(rate(below, slice)));
                // One failure in a slice is a hair's breadth; it is to be seen all the same.
                let height = (bottom - top).max(2.0);
                push(
                    out,
                    format_args!(
                        "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>\n",
                        bottom - height,
                        until - x
                    ),
                );
            }
            below += count;
        }
    }
}

/// Median and 99th percentile of what was acknowledged, on a logarithmic scale.
fn latencies(out: &mut String, scale: &Scale, report: &Report) {
    let least = report.slices.iter().filter_map(|slice| slice.p50_us).min().unwrap_or(1_000).max(10) as f64;
    let most = report.slices.iter().filter_map(|slice| slice.p99_us).max().unwrap_or(10_000).max(100) as f64;
    let (low, high) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let y = |us: u64| {
        let share = ((us.max(1) as f64).log10() - low) / (high - low);
        LATENCY_TOP + PANEL_HEIGHT * (1.0 - share.clamp(0.0, 1.0))
    };
    let legend = [("median", "var(--p50)"), ("99 of 100 are faster", "var(--p99)")];
    head(out, LATENCY_TOP, "time to an answer", &legend);
    for exponent in low as i32..=high as i32 {
        let us = 10f64.powi(exponent);
        let name = if us >= 1e6 { format!("{} s", us / 1e6) } else { format!("{} ms", us / 1e3) };
        level(out, y(us as u64), &name);
    }
    type Percentile = fn(&Slice) -> Option<u64>;
    let lines: [(Percentile, &str, f64); 2] =
        [(|slice| slice.p99_us, "var(--p99)", 1.3), (|slice| slice.p50_us, "var(--p50)", 2.0)];
    for (value, colour, width) in lines {
        let mut path = String::new();
        let mut pen_up = true;
        for slice in &report.slices {
            match value(slice) {
                None => pen_up = true,
                Some(us) => {
                    let x = scale.x(slice.from_us + report.slice_us / 2);
                    push(&mut path, format_args!("{}{x:.1} {:.1}", if pen_up { "M" } else { "L" }, y(us)));
                    pen_up = false;
                }
            }
        }
        push(
            out,
            format_args!(
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" stroke-linecap=\"round\"/>\n"
            ),
        );
    }
}

/// What was wrong with each server.
fn lanes(out: &mut String, scale: &Scale, report: &Report) {
    let kinds: Vec<Kind> =
        Kind::EVERY.into_iter().filter(|kind| report.marks.iter().any(|mark| mark.kind == *kind)).collect();
    let legend: Vec<(&str, &str)> = kinds.iter().map(|kind| (kind.name(), colour(*kind))).collect();
    head(out, LANES_TOP, "faults", &legend);
    for server in 0..report.setting.servers {
        let middle = LANES_TOP + (server as f64 + 0.5) * LANE_HEIGHT;
        push(
            out,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">server {server}</text>\
                 <line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\n",
                LEFT - 10.0,
                middle + 4.5,
                WIDTH - RIGHT
            ),
        );
        // Long and thin ones first, so that what they overlap is not hidden.
        let mut marks: Vec<&Mark> = report.marks.iter().filter(|mark| mark.server == server).collect();
        marks.sort_by_key(|mark| (std::cmp::Reverse(mark.kind), mark.from_us));
        for mark in marks {
            bar(out, scale, mark, middle);
        }
    }
}

fn bar(out: &mut String, scale: &Scale, mark: &Mark, middle: f64) {
    if mark.from_us >= scale.end_us {
        return;
    }
    let until_us = mark.until_us.unwrap_or(scale.end_us);
    let (x, width) = (scale.x(mark.from_us), (scale.x(until_us) - scale.x(mark.from_us)).max(3.0));
    let name = mark.kind.name();
    let seconds = until_us.saturating_sub(mark.from_us) as f64 / 1e6;
    let words = if mark.text.is_empty() { name.to_owned() } else { format!("{name}: {}", mark.text) };
    push(
        out,
        format_args!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" rx=\"4\" fill=\"{}\">\
             <title>{}, {seconds:.2} s</title></rect>\n",
            middle - BAR_HEIGHT / 2.0,
            colour(mark.kind),
            escaped(&words)
        ),
    );
    let fits = |label: &&str| label.chars().count() as f64 * LETTER + 10.0 < width;
    let short = match mark.kind {
        Kind::Cut => mark.text.replace("hears nothing from ", "not from "),
        _ if mark.text == "no answer" => String::new(),
        _ => mark.text.clone(),
    };
    let labels = [words.as_str(), short.as_str(), name];
    if let Some(label) = labels.iter().find(|label| !label.is_empty() && fits(label)) {
        push(
            out,
            format_args!(
                "<text class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                x + width / 2.0,
                middle + 4.3,
                escaped(label)
            ),
        );
    }
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Down => "var(--down)",
        Kind::Frozen => "var(--frozen)",
        Kind::Cut => "var(--cut)",
        Kind::DiskFull => "var(--disk)",
        Kind::Skew => "var(--skew)",
    }
}

/// A panel's name and its legend.
fn head(out: &mut String, top: f64, name: &str, legend: &[(&str, &str)]) {
    let y = top - 12.0;
    push(out, format_args!("<text class=\"name\" x=\"{LEFT}\" y=\"{y}\">{name}</text>\n"));
    let mut x = LEFT + name.len() as f64 * 8.2 + 24.0;
    for (word, colour) in legend {
        push(
            out,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"3\" fill=\"{colour}\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{y}\">{word}</text>\n",
                y - 10.5,
                x + 17.0
            ),
        );
        x += 17.0 + word.len() as f64 * 7.2 + 20.0;
    }
}

/// A line across a panel, with its value.
fn level(out: &mut String, y: f64, name: &str) {
    push(
        out,
        format_args!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>\n",
            WIDTH - RIGHT,
            LEFT - 10.0,
            y + 4.5
        ),
    );
}

/// The next number above that a person would put at an axis.
fn nice_above(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|nice| *nice >= value).unwrap_or(value)
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_shows_the_numbers_the_faults_and_the_story() {
        let page = render(&report());
        for wanted in [
            "<h1>What a crash costs</h1>",
            "4 servers, 3 copies of each key · 2 clients on 5 keys · 10 s · seed 7",
            "<b>2</b><span>operations acknowledged</span>",
            "<b>0</b><span>acknowledged writes lost</span>",
            "<title>down, 2.00 s</title>",
            "<title>link cut: hears nothing from 1, 1.00 s</title>",
            "<title>no QUORUM success for 4.00 s</title>",
            ">server 3</text>",
            "kill -9 server 1 &lt;now&gt;",
            "drill --seconds 10 --seed 7",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(wanted), "no {wanted} in:\n{page}");
        }
        assert!(page.trim_end().ends_with("</html>"));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = render(&report());
        for foreign in ["http", "//", "<script", "<link", "<img", "@import", "url(", "src="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_broken_promise_is_on_the_page_in_red() {
        let mut report = report();
        assert!(report.passed());
        report.lost = 1;
        report.findings = vec!["lost write, key <a>".to_owned()];
        assert!(!report.passed());
        let page = render(&report);
        assert!(page.contains("<div class=\"card bad\"><b>1</b><span>acknowledged writes lost</span>"));
        assert!(page.contains("lost write, key &lt;a&gt;"));
        assert!(report.to_text().contains("BROKEN PROMISE  lost write"));
    }

    #[test]
    fn axes_end_at_numbers_that_people_use() {
        let nice: Vec<f64> = [0.0, 1.0, 11.0, 1_410.0, 999.0].into_iter().map(nice_above).collect();
        assert_eq!(nice, [1.0, 1.0, 12.0, 1_500.0, 1_000.0]);
    }

    #[test]
    fn an_empty_run_has_a_page_too() {
        let mut report = report();
        (report.end_us, report.slices, report.marks) = (0, Vec::new(), Vec::new());
        assert!(!render(&report).contains("NaN"));
    }
}
