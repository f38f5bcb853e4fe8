//! What a person sees while a drill runs: one line for each event, and a line each second on how the clients fare.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use super::timeline::{Event, Outcome, outcome, percentile};
use crate::check::{Operation, Told};
use crate::client::text;
use crate::coordinator::Level;

/// Tells, and remembers the events.
pub struct Story {
    /// Bold and dim can be shown.
    colour: bool,
    /// What was told so far.
    pub events: Vec<Event>,
}

impl Story {
    /// One that uses bold and dim, or not.
    pub fn new(colour: bool) -> Story {
        Story { colour, events: Vec::new() }
    }

    /// Something was done, or was seen to happen.
    pub fn event(&mut self, at_us: u64, text: &str) {
        let (bold, plain) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        say(&format!("{:>6.1} s  {bold}● {text}{plain}", at_us as f64 / 1e6));
        self.events.push(Event { at_us, text: text.to_owned() });
    }

    /// How the last second went, in one line.
    pub fn status(&self, at_us: u64, last_second: &[Operation], servers: &str) {
        let (dim, plain) = if self.colour { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        say(&format!("{:>6} s  {dim}{}{plain}", (at_us + 500_000) / 1_000_000, status(last_second, servers)));
    }

    /// A line that belongs to no moment.
    pub fn line(&self, text: &str) {
        say(text);
    }
}

/// A reader that has gone away, `drill | head`, is no reason to stop half way with servers running.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn status(operations: &[Operation], servers: &str) -> String {
    let mut took_us: Vec<u64> = operations
        .iter()
        .filter(|operation| outcome(operation) == Outcome::Acknowledged)
        .map(|operation| operation.ended_us - operation.began_us)
        .collect();
    took_us.sort_unstable();
    let p99 =
        percentile(&took_us, 99).map_or("     –".to_owned(), |us| format!("{:>6.1}", us as f64 / 1e3));
    let mut line =
        format!("servers {servers:<12} {:>6} ops/s   p99 {p99} ms", text::count(took_us.len() as u64));
    for (why, times) in failures(operations) {
        write!(line, "   {} {why}", text::count(times)).expect("writing to memory cannot fail");
    }
    line
}

/// What clients were told instead of an answer, and how often; with the level if it was not QUORUM.
pub fn failures(operations: &[Operation]) -> BTreeMap<String, u64> {
    let mut failures = BTreeMap::new();
    for operation in operations {
        if let Told::Refused(why) | Told::Unknown(why) = &operation.told {
            let name = match operation.level {
                Level::Quorum => why.clone(),
                level => format!("{why} at {level}"),
            };
            *failures.entry(name).or_default() += 1;
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::{found, operation};
    use super::*;

    #[test]
    fn a_status_counts_answers_and_names_failures() {
        let operations = [
            operation(0, 2_000, found()),
            operation(0, 2_000, Told::Refused("unavailable".to_owned())),
            operation(0, 2_000, Told::Refused("unavailable".to_owned())),
        ];
        assert_eq!(
            status(&operations, "0 ✗ 2"),
            "servers 0 ✗ 2             1 ops/s   p99    2.0 ms   2 unavailable"
        );
        assert_eq!(status(&[], "0"), "servers 0                 0 ops/s   p99      – ms");
    }
}
