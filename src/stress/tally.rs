//! What callers saw: latencies by kind, and errors by kind and class.
//!
//! Each thread of the tool has one [`Window`], which its callers fill without lock or allocation and which is taken
//! away once a second; windows of all threads are merged, second by second, and then into the whole.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::workload::Kind;

/// Latencies in microseconds, to three digits.
pub type Latencies = Histogram<u64>;

/// Longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

/// An empty histogram. All have the same bounds, so any two can be added.
pub fn latencies() -> Latencies {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("constant bounds are possible")
}

/// Why an operation failed, as far as reports tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Too few replicas up; nothing was written.
    Unavailable,
    /// The cluster did not meet the level in time; of a write the outcome is unknown.
    Timeout,
    /// The cluster had too much to do; nothing was written.
    Overloaded,
    /// The request was wrong.
    Invalid,
    /// No connection.
    Unreachable,
    /// Sent, and no answer came; of a write the outcome is unknown.
    NoAnswer,
    /// The server does not know the method.
    Declined,
    /// An exception of the classic service.
    Classic,
}

impl Class {
    /// In reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Unavailable => "unavailable",
            Class::Timeout => "timeout",
            Class::Overloaded => "overloaded",
            Class::Invalid => "invalid request",
            Class::Unreachable => "unreachable",
            Class::NoAnswer => "no answer",
            Class::Declined => "declined",
            Class::Classic => "exception",
        }
    }
}

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// For counting.
    pub class: Class,
    /// What was said.
    pub text: String,
}

/// How often something failed, and what was said the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures {
    /// How often.
    pub times: u64,
    /// The first one's words.
    pub example: String,
}

/// What happened in a stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Window {
    kinds: [Option<Latencies>; Kind::ALL.len()],
    /// By kind and class.
    pub errors: BTreeMap<(Kind, Class), Failures>,
    /// Reads that found no value.
    pub found_nothing: u64,
    /// Operations that were due and never begun; their latencies are the time they had waited.
    pub never_begun: Option<Latencies>,
    /// Operations not counted above: warm-up.
    pub uncounted: u64,
}

impl Window {
    /// An operation succeeded; `found`: or was a write.
    pub fn succeeded(&mut self, kind: Kind, took: Duration, found: bool) {
        self.kinds[kind as usize].get_or_insert_with(latencies).saturating_record(micros(took));
        self.found_nothing += u64::from(!found);
    }

    /// An operation failed.
    pub fn failed(&mut self, kind: Kind, failed: Failed) {
        let first = || Failures { times: 0, example: failed.text };
        self.errors.entry((kind, failed.class)).or_insert_with(first).times += 1;
    }

    /// An operation was due and never begun.
    pub fn never_began(&mut self, waited: Duration) {
        self.never_begun.get_or_insert_with(latencies).saturating_record(micros(waited));
    }

    /// Latencies of a kind, if it was done at all.
    pub fn of(&self, kind: Kind) -> Option<&Latencies> {
        self.kinds[kind as usize].as_ref()
    }

    /// Latencies of all kinds together, those of operations never begun included.
    pub fn all(&self) -> Latencies {
        let mut all = latencies();
        for some in self.kinds.iter().chain([&self.never_begun]).flatten() {
            all.add(some).expect("equal bounds");
        }
        all
    }

    /// Operations that succeeded.
    pub fn operations(&self) -> u64 {
        self.kinds.iter().flatten().map(Histogram::len).sum()
    }

    /// Operations that failed.
    pub fn failures(&self) -> u64 {
        self.errors.values().map(|failures| failures.times).sum()
    }

    /// Adds what happened in another.
    pub fn add(&mut self, other: &Window) {
        let pairs = self.kinds.iter_mut().zip(&other.kinds);
        for (own, others) in pairs.chain([(&mut self.never_begun, &other.never_begun)]) {
            if let Some(others) = others {
                own.get_or_insert_with(latencies).add(others).expect("equal bounds");
            }
        }
        for (key, failures) in &other.errors {
            let first = || Failures { times: 0, example: failures.example.clone() };
            self.errors.entry(*key).or_insert_with(first).times += failures.times;
        }
        self.found_nothing += other.found_nothing;
        self.uncounted += other.uncounted;
    }
}

/// Rounded up: a latency is never shown shorter than it was.
fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_nanos().div_ceil(1_000)).unwrap_or(LATENCY_MAX_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_add_up() {
        let mut one = Window::default();
        one.succeeded(Kind::Read, Duration::from_micros(100), true);
        one.failed(Kind::Read, Failed { class: Class::Timeout, text: "first".to_owned() });
        let mut two = Window::default();
        two.succeeded(Kind::Read, Duration::from_micros(300), false);
        two.succeeded(Kind::Write, Duration::from_nanos(1), true);
        two.failed(Kind::Read, Failed { class: Class::Timeout, text: "second".to_owned() });
        two.never_began(Duration::from_secs(1));
        one.add(&two);
        assert_eq!((one.operations(), one.failures(), one.found_nothing), (3, 2, 1));
        assert_eq!(one.of(Kind::Read).unwrap().max(), 300);
        assert_eq!(one.of(Kind::Write).unwrap().min(), 1);
        assert_eq!(one.of(Kind::Insert), None);
        assert_eq!(one.errors[&(Kind::Read, Class::Timeout)], Failures { times: 2, example: "first".into() });
        assert_eq!(one.all().len(), 4);
    }
}
