//! What a run looked like against time: operations in equal slices of it, and who was hit by what from when to when.
//!
//! Pure arithmetic. Times are microseconds since the run began, the same for operations, marks and events.
//!
//! Not here: how it is drawn (`page`) or told (`story`).

use crate::check::{History, Operation, Told};
use crate::coordinator::Level;

/// What happened to a server for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// No process, or one that is not ready yet.
    Down,
    /// Stopped in the middle of whatever it did.
    Frozen,
    /// Hears nothing from some others.
    Cut,
    /// Its disk is full.
    DiskFull,
    /// Its clock is wrong.
    Skew,
}

impl Kind {
    /// Every kind, in the order of the legend.
    pub const EVERY: [Kind; 5] = [Kind::Down, Kind::Frozen, Kind::Cut, Kind::DiskFull, Kind::Skew];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Down => "down",
            Kind::Frozen => "frozen",
            Kind::Cut => "link cut",
            Kind::DiskFull => "disk full",
            Kind::Skew => "clock wrong",
        }
    }
}

/// A stretch of time in which something was wrong with a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which server.
    pub server: usize,
    /// What was wrong.
    pub kind: Kind,
    /// From (µs).
    pub from_us: u64,
    /// Until (µs); `None`: it still is.
    pub until_us: Option<u64>,
    /// In a few words.
    pub text: String,
}

/// One line of the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When (µs).
    pub at_us: u64,
    /// What.
    pub text: String,
}

/// What came of an operation, as far as availability is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its level was met.
    Acknowledged,
    /// Nothing was written, or nothing read.
    Refused,
    /// Perhaps.
    Unknown,
}

/// What came of `operation`.
pub fn outcome(operation: &Operation) -> Outcome {
    match operation.told {
        Told::Written { .. } | Told::Found { .. } => Outcome::Acknowledged,
        Told::Refused(_) => Outcome::Refused,
        Told::Unknown(_) => Outcome::Unknown,
    }
}

/// A slice of time, by the operations that ended in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Where it begins (µs).
    pub from_us: u64,
    /// Acknowledged operations.
    pub acknowledged: u64,
    /// Refused ones.
    pub refused: u64,
    /// Ones whose outcome is unknown.
    pub unknown: u64,
    /// Median time to an acknowledgement (µs); `None`: there was none.
    pub p50_us: Option<u64>,
    /// What 99 of 100 acknowledgements stayed within (µs).
    pub p99_us: Option<u64>,
}

/// The run from 0 to `end_us` in slices of `width_us`; what ended later counts for the last.
pub fn slices(history: &History, width_us: u64, end_us: u64) -> Vec<Slice> {
    assert!(width_us > 0);
    let count = end_us.div_ceil(width_us).max(1) as usize;
    let mut slices: Vec<Slice> =
        (0..count).map(|index| Slice { from_us: index as u64 * width_us, ..Slice::default() }).collect();
    let mut took_us: Vec<Vec<u64>> = vec![Vec::new(); count];
    for operation in &history.operations {
        let index = ((operation.ended_us / width_us) as usize).min(count - 1);
        match outcome(operation) {
            Outcome::Acknowledged => {
                slices[index].acknowledged += 1;
                took_us[index].push(operation.ended_us.saturating_sub(operation.began_us));
            }
            Outcome::Refused => slices[index].refused += 1,
            Outcome::Unknown => slices[index].unknown += 1,
        }
    }
    for (slice, mut took_us) in slices.iter_mut().zip(took_us) {
        took_us.sort_unstable();
        slice.p50_us = percentile(&took_us, 50);
        slice.p99_us = percentile(&took_us, 99);
    }
    slices
}

/// The smallest of `sorted` that `percent` of 100 do not exceed (the nearest rank).
pub fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    assert!((1..=100).contains(&percent));
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// A stretch of time, half open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// From (µs).
    pub from_us: u64,
    /// Until (µs).
    pub until_us: u64,
}

impl Gap {
    /// How long (µs).
    pub fn len_us(self) -> u64 {
        self.until_us - self.from_us
    }
}

/// Every stretch between 0 and `end_us`, of `least_us` and more, in which no QUORUM operation succeeded; in order.
pub fn outages(history: &History, least_us: u64, end_us: u64) -> Vec<Gap> {
    let succeeded = |operation: &&Operation| {
        operation.level == Level::Quorum && outcome(operation) == Outcome::Acknowledged
    };
    let mut at_us: Vec<u64> =
        history.operations.iter().filter(succeeded).map(|operation| operation.ended_us.min(end_us)).collect();
    at_us.push(end_us);
    at_us.sort_unstable();
    let mut from_us = 0;
    let mut found = Vec::new();
    for until_us in at_us {
        let gap = Gap { from_us, until_us };
        if gap.len_us() >= least_us.max(1) {
            found.push(gap);
        }
        from_us = until_us;
    }
    found
}

/// The longest of them; the first of equals.
pub fn longest_outage(history: &History, end_us: u64) -> Gap {
    let all = outages(history, 1, end_us);
    all.into_iter().rev().max_by_key(|gap| gap.len_us()).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::check::Asked;
    use bytes::Bytes;

    pub(crate) fn operation(began_us: u64, ended_us: u64, told: Told) -> Operation {
        let key = Bytes::from_static(b"k");
        Operation { client: 0, key, level: Level::Quorum, asked: Asked::Get, began_us, ended_us, told }
    }

    pub(crate) fn found() -> Told {
        Told::Found { value: None, stamp: None }
    }

    fn refused() -> Told {
        Told::Refused("unavailable".to_owned())
    }

    #[test]
    fn operations_count_in_the_slice_in_which_they_end() {
        let operations = vec![
            operation(0, 10, found()),
            operation(5, 99, found()),
            operation(90, 100, refused()),
            operation(0, 250, Told::Unknown("timeout".to_owned())),
            operation(0, 999, found()),
        ];
        let slices = slices(&History { operations }, 100, 300);
        let counts: Vec<_> =
            slices.iter().map(|s| (s.from_us, s.acknowledged, s.refused, s.unknown)).collect();
        assert_eq!(counts, [(0, 2, 0, 0), (100, 0, 1, 0), (200, 1, 0, 1)]);
        assert_eq!((slices[0].p50_us, slices[0].p99_us), (Some(10), Some(94)));
        assert_eq!(slices[1].p50_us, None);
        assert_eq!(super::slices(&History::default(), 100, 0).len(), 1);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!([50, 99, 100, 1].map(|p| percentile(&hundred, p)), [50, 99, 100, 1].map(Some));
        assert_eq!(percentile(&[7], 50), Some(7));
        assert_eq!(percentile(&[1, 2, 3], 99), Some(3));
        assert_eq!(percentile(&[], 99), None);
    }

    #[test]
    fn an_outage_lasts_from_one_success_to_the_next() {
        let mut operations = vec![
            operation(0, 100, found()),
            operation(0, 700, found()),
            operation(0, 400, refused()),
            operation(0, 710, found()),
        ];
        operations.push(Operation { level: Level::One, ..operation(0, 300, found()) });
        let history = History { operations };
        assert_eq!(
            outages(&history, 200, 1_000),
            [Gap { from_us: 100, until_us: 700 }, Gap { from_us: 710, until_us: 1_000 }]
        );
        assert_eq!(longest_outage(&history, 1_000), Gap { from_us: 100, until_us: 700 });
        assert_eq!(longest_outage(&history, 2_000), Gap { from_us: 710, until_us: 2_000 });
        assert_eq!(longest_outage(&History::default(), 50), Gap { from_us: 0, until_us: 50 });
    }
}
