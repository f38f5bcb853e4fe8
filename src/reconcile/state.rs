//! What is known of the ranges and of the other servers: plain values, fed by whoever compares and promises.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::lead::Follower;
use crate::answer::NodeId;
use crate::cell::Stamp;
use crate::key::TableId;
use crate::store::leaves::Horizon;

/// Samples of the clock that are kept, about, however long ago is meant.
const SAMPLES_KEPT: u32 = 128;

/// What is known of a range of which this server is a replica.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeKnown {
    /// All replicas are equal up to this stamp; the wall clock (µs since 1970) when that was proven.
    pub proven: Option<(Stamp, i64)>,
    /// Why it is not proven now; empty: it is.
    pub why: String,
    /// The servers that were up, each with its start, when nothing was found to differ between the replicas among them;
    /// `None`: something was, or this server does not lead the range.
    pub equal_among: Option<Vec<Follower>>,
    /// Cells were found to differ at this time and have not been proven equal since.
    pub diverged: Option<Instant>,
    /// Why dead cells were not collected when that was tried last.
    pub uncollected: String,
    /// When the last collection was begun.
    pub collected_at: Option<Instant>,
    /// Another replica has collected as far as this.
    pub told: Horizon,
}

impl RangeKnown {
    /// All replicas are, as far as is known.
    pub fn is_proven_equal(&self) -> bool {
        self.proven.is_some() && self.why.is_empty() && self.diverged.is_none()
    }

    /// The replicas among these were, and nothing was found since.
    pub fn was_equal_among(&self, present: &[Follower]) -> bool {
        self.equal_among.as_deref() == Some(present) && self.diverged.is_none()
    }
}

/// Who is up besides this server.
#[derive(Debug)]
pub(super) struct Present {
    /// Each with its start.
    pub servers: Vec<Follower>,
    /// What the clock had reached when this was noticed: writes of one that went down may be on their way up to there.
    pub since: Stamp,
}

/// What another server said last.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub at: Instant,
    /// Which start of it was asked, if that was known: another may have hints of other files.
    pub generation: Option<i64>,
    /// It sends no writes below this stamp any more.
    pub promise: Stamp,
    /// What holds the promise back; or empty.
    pub waits: String,
    /// Its wall clock (µs since 1970).
    pub wall_us: i64,
    pub tables: Vec<TableId>,
    /// It lacks nothing that it once had.
    pub whole: bool,
}

/// What the clock had reached a while ago.
#[derive(Debug)]
pub(super) struct Samples {
    lag: Duration,
    taken: VecDeque<(Instant, Stamp)>,
}

impl Samples {
    /// How long ago is `lag`.
    pub fn new(lag: Duration) -> Samples {
        Samples { lag, taken: VecDeque::new() }
    }

    /// The clock has reached this.
    pub fn take(&mut self, now: Instant, reached: Stamp) {
        let apart = self.lag / SAMPLES_KEPT;
        if self.taken.back().is_none_or(|(last, _)| now.duration_since(*last) >= apart) {
            self.taken.push_back((now, reached));
        }
        self.forget_old(now);
    }

    /// Keeps the last that is old enough, and what is newer.
    fn forget_old(&mut self, now: Instant) {
        let old = self.taken.partition_point(|(at, _)| *at + self.lag <= now);
        self.taken.drain(..old.saturating_sub(1));
    }

    /// What the clock had reached that long ago or a little longer; 0: that is not known.
    pub fn before(&mut self, now: Instant) -> Stamp {
        self.forget_old(now);
        match self.taken.front() {
            Some((at, reached)) if *at + self.lag <= now => *reached,
            _ => Stamp(0),
        }
    }
}

/// Up to where no server sends writes any more, and who or what stands in the way of more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Promised {
    /// All promised that much, if `missing` is empty.
    pub upto: Stamp,
    /// Who holds it back, if the least promise is held back.
    pub waits: String,
    /// Who has not promised anything lately; empty: all have.
    pub missing: String,
}

impl Promised {
    /// What was promised both times.
    pub fn and(self, later: Promised) -> Promised {
        let missing = !self.missing.is_empty();
        if missing || later.missing.is_empty() && self.upto <= later.upto { self } else { later }
    }
}

/// The least of the promises of all `nodes`, each with its present start, that are not older than `age_max`.
pub(super) fn promised(
    nodes: &[(NodeId, Option<i64>)],
    heard: &BTreeMap<NodeId, Heard>,
    now: Instant,
    age_max: Duration,
) -> Promised {
    let mut least = Promised { upto: Stamp(i64::MAX), waits: String::new(), missing: String::new() };
    for (node, generation) in nodes {
        match heard.get(node) {
            Some(heard) if heard.generation != *generation => {
                least.missing = format!("server {node} has started again and was not heard since");
            }
            Some(heard) if now <= heard.at + age_max => {
                if Stamp(heard.promise.0.saturating_sub(1)) < least.upto {
                    least.upto = Stamp(heard.promise.0.saturating_sub(1));
                    least.waits.clone_from(&heard.waits);
                }
            }
            Some(heard) => {
                least.missing = format!("server {node} not heard for {} s", (now - heard.at).as_secs());
            }
            None => least.missing = format!("server {node} not heard yet"),
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_tell_what_was_reached_a_while_ago() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut samples = Samples::new(Duration::from_secs(1));
        assert_eq!(samples.before(start), Stamp(0));
        samples.take(at(0), Stamp(10));
        samples.take(at(400), Stamp(20));
        samples.take(at(800), Stamp(30));
        assert_eq!(samples.before(at(900)), Stamp(0));
        assert_eq!(samples.before(at(1000)), Stamp(10));
        assert_eq!(samples.before(at(1500)), Stamp(20));
        assert_eq!(samples.before(at(9000)), Stamp(30));
    }

    #[test]
    fn few_samples_tell_what_was_reached_a_day_ago() {
        let start = Instant::now();
        let mut samples = Samples::new(Duration::from_secs(86_400));
        let mut told = Stamp(0);
        for second in 0..200_000 {
            let now = start + Duration::from_secs(second);
            samples.take(now, Stamp(second as i64));
            told = samples.before(now);
        }
        let ago = 199_999 - told.0;
        assert!((86_400..2 * 86_400).contains(&ago), "{ago}");
        assert!(samples.taken.len() as u32 <= SAMPLES_KEPT + 2, "{}", samples.taken.len());
    }

    #[test]
    fn what_was_promised_twice_is_the_less_of_both() {
        let promised = |upto, missing: &str| Promised {
            upto: Stamp(upto),
            waits: String::new(),
            missing: missing.to_owned(),
        };
        for (before, later, both) in [
            (promised(5, ""), promised(9, ""), promised(5, "")),
            (promised(9, ""), promised(5, ""), promised(5, "")),
            (promised(5, ""), promised(9, "later"), promised(9, "later")),
            (promised(9, "before"), promised(5, ""), promised(9, "before")),
        ] {
            assert_eq!(before.and(later), both);
        }
    }

    #[test]
    fn one_that_is_not_heard_stands_against_the_proof() {
        let now = Instant::now() + Duration::from_secs(100);
        let heard = |promise, ago| Heard {
            at: now - Duration::from_secs(ago),
            generation: Some(5),
            promise: Stamp(promise),
            waits: format!("waits {promise}"),
            wall_us: 0,
            tables: Vec::new(),
            whole: true,
        };
        let nodes = [(NodeId(1), Some(5)), (NodeId(2), Some(5))];
        let age = Duration::from_secs(3);
        let mut all = BTreeMap::from([(NodeId(1), heard(50, 1))]);
        assert_eq!(promised(&nodes, &all, now, age).missing, "server 2 not heard yet");
        all.insert(NodeId(2), heard(40, 70));
        assert_eq!(promised(&nodes, &all, now, age).missing, "server 2 not heard for 70 s");
        all.insert(NodeId(2), heard(40, 2));
        let least = promised(&nodes, &all, now, age);
        assert_eq!((least.upto, least.waits.as_str(), least.missing.as_str()), (Stamp(39), "waits 40", ""));
        let again = [(NodeId(1), Some(5)), (NodeId(2), Some(6))];
        let missing = promised(&again, &all, now, age).missing;
        assert_eq!(missing, "server 2 has started again and was not heard since");
    }
}
