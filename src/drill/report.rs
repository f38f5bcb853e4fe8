//! What a drill came to, on one page of text; the same numbers are drawn on the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::scenario::{Checked, Seen, seconds};
use super::settle::{Agreement, By};
use super::story::failures;
use super::timeline::{Event, Gap, Mark, Outcome, Slice, longest_outage, outages, outcome, slices};
use crate::client::text;

/// Slices of a run, at most.
const SLICES_MAX: u64 = 180;

/// Least width of a slice (µs).
const SLICE_MIN_US: u64 = 100_000;

/// Least pause that is drawn as an outage (µs).
const OUTAGE_MIN_US: u64 = 500_000;

/// Findings that are told; all are in the history.
const FINDINGS_MAX: usize = 10;

/// How the drill was set up.
#[derive(Clone, Debug)]
pub struct Setting {
    /// In a line.
    pub title: String,
    /// What to type to see the same again.
    pub command: String,
    /// Drew faults and load.
    pub seed: u64,
    /// How long it lasted.
    pub seconds: u64,
    /// Servers.
    pub servers: usize,
    /// Copies of each key.
    pub copies: usize,
    /// Clients.
    pub clients: usize,
    /// Keys.
    pub keys: usize,
}

/// All there is to say of a drill.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it was set up.
    pub setting: Setting,
    /// When the clients stopped (µs).
    pub end_us: u64,
    /// Operations whose level was met.
    pub acknowledged: u64,
    /// Operations that were refused: nothing written, nothing read.
    pub refused: u64,
    /// Writes of which nobody was told the outcome.
    pub unknown: u64,
    /// What clients were told instead of an answer.
    pub failures: BTreeMap<String, u64>,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, usize>,
    /// Acknowledged writes that are gone.
    pub lost: usize,
    /// Reads that had to show something newer.
    pub stale: usize,
    /// Of the search for one order.
    pub linear: String,
    /// Broken promises, told.
    pub findings: Vec<String>,
    /// The longest time without a QUORUM success.
    pub outage: Gap,
    /// What had happened last before it, if it is worth a name.
    pub outage_after: Option<String>,
    /// Every such time long enough to be drawn.
    pub outages: Vec<Gap>,
    /// How replicas became equal.
    pub agreement: Agreement,
    /// A scenario's expectations.
    pub checked: Vec<Checked>,
    /// What was wrong with whom.
    pub marks: Vec<Mark>,
    /// What happened.
    pub events: Vec<Event>,
    /// Operations against time.
    pub slices: Vec<Slice>,
    /// Width of a slice (µs).
    pub slice_us: u64,
    /// Where the history was written, if something failed.
    pub history_file: Option<PathBuf>,
}

impl Report {
    /// Everything that is to be said of a run.
    pub fn of(
        seen: &Seen,
        checked: Vec<Checked>,
        faults: BTreeMap<&'static str, usize>,
        events: &[Event],
        setting: &Setting,
    ) -> Report {
        let operations = &seen.history.operations;
        let count =
            |which: Outcome| operations.iter().filter(|operation| outcome(operation) == which).count() as u64;
        let slices_wanted = (seen.end_us / SLICE_MIN_US).clamp(1, SLICES_MAX);
        let slice_us = seen.end_us.div_ceil(slices_wanted).max(1);
        let outage = longest_outage(seen.history, seen.end_us);
        let last = events.iter().rev().find(|event| event.at_us <= outage.from_us + SLICE_MIN_US);
        Report {
            setting: setting.clone(),
            end_us: seen.end_us,
            acknowledged: count(Outcome::Acknowledged),
            refused: count(Outcome::Refused),
            unknown: count(Outcome::Unknown),
            failures: failures(operations),
            faults,
            lost: seen.verdict.lost,
            stale: seen.verdict.stale,
            linear: seen.verdict.linear.clone(),
            findings: seen.verdict.findings.clone(),
            outage,
            outage_after: last.filter(|_| outage.len_us() >= OUTAGE_MIN_US).map(|event| event.text.clone()),
            outages: outages(seen.history, OUTAGE_MIN_US, seen.end_us),
            agreement: seen.agreement.clone(),
            checked,
            marks: seen.marks.to_vec(),
            events: events.to_vec(),
            slices: slices(seen.history, slice_us, seen.end_us),
            slice_us,
            history_file: None,
        }
    }

    /// Every promise was kept, replicas agree, and everything expected was seen.
    pub fn passed(&self) -> bool {
        self.lost == 0
            && self.stale == 0
            && self.findings.is_empty()
            && self.agreement.by != By::Nothing
            && self.checked.iter().all(|checked| checked.holds)
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.acknowledged + self.refused + self.unknown
    }

    /// "12 crash, 3 freeze".
    pub fn faults_in_words(&self) -> String {
        match self.faults.is_empty() {
            true => "none".to_owned(),
            false => self
                .faults
                .iter()
                .map(|(name, count)| format!("{count} {name}"))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// How long no QUORUM operation succeeded, at most.
    pub fn outage_in_words(&self) -> String {
        let mut words = format!(
            "{}, from {:.1} s to {:.1} s",
            seconds(self.outage.len_us()),
            self.outage.from_us as f64 / 1e6,
            self.outage.until_us as f64 / 1e6
        );
        if let Some(after) = &self.outage_after {
            write!(words, " ({after})").expect("writing to memory cannot fail");
        }
        words
    }

    /// When and how replicas became equal.
    pub fn agreement_in_words(&self) -> String {
        let Agreement { by, took_us, differed, differ } = &self.agreement;
        let after = format!("{} after the clients stopped", seconds(*took_us));
        match by {
            By::Themselves => format!("{after}, without a read"),
            By::Reads => {
                format!("{after}; {} had to be read for it", text::plural(*differed as u64, "key", "keys"))
            }
            By::Nothing => format!("never: {} differ", text::plural(*differ as u64, "key", "keys")),
        }
    }

    /// What clients were told instead of an answer.
    pub fn failures_in_words(&self) -> String {
        let failures = self.failures.iter().map(|(why, times)| format!("{} {why}", text::count(*times)));
        failures.collect::<Vec<_>>().join(", ")
    }

    /// As a person reads it.
    pub fn to_text(&self) -> String {
        let mut out = String::from("\n");
        let mut line = |name: &str, value: String| {
            writeln!(out, "{name:<22}{value}").expect("writing to memory cannot fail");
        };
        let rate = self.operations() * 1_000_000 / self.end_us.max(1);
        line("operations", format!("{} ({} a second)", text::count(self.operations()), text::count(rate)));
        line("  acknowledged", text::count(self.acknowledged));
        line("  refused", text::count(self.refused));
        line("  unknown", text::count(self.unknown));
        if !self.failures.is_empty() {
            line("  clients were told", self.failures_in_words());
        }
        line("faults", self.faults_in_words());
        line("lost", self.lost.to_string());
        line("stale", self.stale.to_string());
        line("linearizable", self.linear.clone());
        line("longest outage", self.outage_in_words());
        line("full agreement", self.agreement_in_words());
        line("repeat", self.setting.command.clone());
        if !self.checked.is_empty() {
            out.push_str("\nwas it seen?\n");
        }
        for Checked { text, holds, measured } in &self.checked {
            let tick = if *holds { "✓" } else { "✗" };
            writeln!(out, "  {tick} {text}\n      {measured}").expect("writing to memory cannot fail");
        }
        for finding in self.findings.iter().take(FINDINGS_MAX) {
            writeln!(out, "\nBROKEN PROMISE  {finding}").expect("writing to memory cannot fail");
        }
        if let Some(file) = &self.history_file {
            writeln!(out, "\nFAILED. Every operation: {}", file.display())
                .expect("writing to memory cannot fail");
        }
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::judge::Verdict;
    use super::super::timeline::Kind;
    use super::super::timeline::tests::{found, operation};
    use super::*;
    use crate::check::History;

    /// Of ten seconds with a crash and a cut.
    pub(crate) fn report() -> Report {
        let operations =
            vec![operation(1_000_000, 2_000_000, found()), operation(5_500_000, 6_000_000, found())];
        let mark = |server, kind, from_us, until_us, text: &str| Mark {
            server,
            kind,
            from_us,
            until_us: Some(until_us),
            text: text.to_owned(),
        };
        let seen = Seen {
            history: &History { operations },
            marks: &[
                mark(1, Kind::Down, 2_000_000, 4_000_000, ""),
                mark(2, Kind::Cut, 3_000_000, 4_000_000, "hears nothing from 1"),
            ],
            end_us: 10_000_000,
            agreement: &Agreement { by: By::Themselves, took_us: 50_000, differed: 0, differ: 0 },
            verdict: &Verdict { linear: "1 of 1 key".to_owned(), ..Verdict::default() },
            notes: &BTreeMap::new(),
        };
        let setting = Setting {
            title: "what a crash costs".to_owned(),
            command: "drill --seconds 10 --seed 7".to_owned(),
            seed: 7,
            seconds: 10,
            servers: 4,
            copies: 3,
            clients: 2,
            keys: 5,
        };
        let events = [Event { at_us: 2_000_000, text: "kill -9 server 1 <now>".to_owned() }];
        Report::of(&seen, Vec::new(), BTreeMap::from([("crash", 1)]), &events, &setting)
    }

    #[test]
    fn the_text_says_what_it_came_to() {
        let text = report().to_text();
        for line in [
            "operations            2 (0 a second)",
            "faults                1 crash",
            "lost                  0",
            "longest outage        4.00 s, from 2.0 s to 6.0 s (kill -9 server 1 <now>)",
            "full agreement        0.05 s after the clients stopped, without a read",
            "repeat                drill --seconds 10 --seed 7",
        ] {
            assert!(text.contains(line), "no {line:?} in {text}");
        }
    }
}
