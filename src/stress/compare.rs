//! Two runs side by side: ratios, and what keeps them from being alike.

use std::fmt::Write as _;

use super::report::{Figures, Load, Run, ms};
use crate::client::text;

/// Figures of this run divided by the other's. Above 1 is more: better for a rate, worse for a latency.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratio {
    /// The kind of operation, or "all".
    pub kind: String,
    /// Operations a second.
    pub per_second: f64,
    /// Half of the operations.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
}

/// This run by the other, for all operations and for each kind that both have.
pub fn ratios(this: &Run, other: &Run) -> Vec<Ratio> {
    pairs(this, other).map(|(this, other)| ratio(this, other)).collect()
}

fn pairs<'a>(this: &'a Run, other: &'a Run) -> impl Iterator<Item = (&'a Figures, &'a Figures)> {
    let kinds = if this.kinds.len() > 1 || other.kinds.len() > 1 { &this.kinds[..] } else { &[] };
    let of_kind =
        |mine: &'a Figures| Some((mine, other.kinds.iter().find(|theirs| theirs.kind == mine.kind)?));
    kinds.iter().filter_map(of_kind).chain([(&this.all, &other.all)])
}

fn ratio(this: &Figures, other: &Figures) -> Ratio {
    let latency = |this: u64, other: u64| this as f64 / other.max(1) as f64;
    Ratio {
        kind: this.kind.clone(),
        per_second: this.per_second / other.per_second.max(1e-3),
        p50: latency(this.p50_us, other.p50_us),
        p99: latency(this.p99_us, other.p99_us),
        p999: latency(this.p999_us, other.p999_us),
    }
}

/// What differs between the runs' conditions, in words: ratios are to be read with it in mind.
pub fn differences(this: &Run, other: &Run) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, this: String, other: String| {
        if this != other {
            found.push(format!("{what} {this} against {other}"));
        }
    };
    compare("durability", this.durability.clone(), other.durability.clone());
    for ((what, this), (_, other)) in conditions(&this.load).into_iter().zip(conditions(&other.load)) {
        compare(what, this, other);
    }
    found
}

fn conditions(load: &Load) -> Vec<(&'static str, String)> {
    let copies = load.copies.map_or("unknown".to_owned(), |copies| copies.to_string());
    let rate = load.rate.map_or("none".to_owned(), |rate| rate.to_string());
    vec![
        ("workload", load.workload.clone()),
        ("mix", load.mix.clone()),
        ("order", load.order.clone()),
        ("keys", text::count(load.keys)),
        ("key bytes", load.key_bytes.to_string()),
        ("value bytes", load.value_bytes.clone()),
        ("read level", load.read_level.clone()),
        ("write level", load.write_level.clone()),
        ("service", load.service.clone()),
        ("servers", load.servers.to_string()),
        ("copies", copies),
        ("connections", load.connections.to_string()),
        ("outstanding", load.outstanding.to_string()),
        ("rate", rate),
    ]
}

/// As a person reads it.
pub fn to_text(this: &Run, other: &Run) -> String {
    let mut out = format!("{} / {} (a second: more is better; latencies: less is)\n", this.name, other.name);
    for ((mine, theirs), ratio) in pairs(this, other).zip(ratios(this, other)) {
        let rate = |figures: &Figures| text::count(figures.per_second.round() as u64);
        writeln!(
            out,
            "{}: {} / {} a second = {:.2}; p50 {} / {} ms = {:.2}; p99 {} / {} ms = {:.2}; p99.9 {} / {} ms = {:.2}",
            ratio.kind,
            rate(mine),
            rate(theirs),
            ratio.per_second,
            ms(mine.p50_us),
            ms(theirs.p50_us),
            ratio.p50,
            ms(mine.p99_us),
            ms(theirs.p99_us),
            ratio.p99,
            ms(mine.p999_us),
            ms(theirs.p999_us),
            ratio.p999,
        )
        .expect("writing to memory cannot fail");
    }
    for difference in differences(this, other) {
        writeln!(out, "not alike: {difference}").expect("writing to memory cannot fail");
    }
    out
}
