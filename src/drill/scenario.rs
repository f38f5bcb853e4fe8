//! Drills for teaching: one kind of fault each, with what will be seen said beforehand and checked afterwards.
//!
//! A scenario is a plan of faults in the middle of its time, what is asked by hand during and after it, and a list of
//! expectations, each with the function that looks whether it came true. They are written for four servers and three
//! copies. The classic keys lie so: key 0 on servers 0, 1, 2; key 137 on servers 2, 3, 0.
//!
//! Expectations on times are generous: they tell a pause from an outage, and measure nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::DrillError;
use super::faults::{Fault, Shape, Strike, both_ways};
use super::judge::Verdict;
use super::settle::{self, Agreement, By};
use super::stage::Stage;
use super::timeline::{Kind, Mark, Outcome, longest_outage, outcome, percentile};
use crate::answer::NodeId;
use crate::check::{Asked, History, Operation, Told};
use crate::client::text;
use crate::clock::machine_wall_us;
use crate::coordinator::Level;
use crate::thrift::chord::{self, GetRequest};

/// A pause that a client's patience covers, and an outage does not (µs).
const PAUSE_MAX_US: u64 = 2_000_000;

/// How long a scenario takes unless told otherwise (s).
pub const SECONDS: u64 = 15;

/// One fault and what it teaches.
pub struct Scenario {
    /// As it is typed.
    pub name: &'static str,
    /// In a line.
    pub title: &'static str,
    /// Settings of the servers beyond the defaults, as TOML.
    pub settings: &'static str,
    /// Keys that the clients use, if a usual number would not show it.
    pub keys: Option<usize>,
    /// What is done, within the given milliseconds.
    plan: fn(u64) -> Vec<Strike>,
    script: Script,
    /// What will be seen.
    pub expectations: &'static [Expectation],
}

/// What is asked by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Nothing,
    CountHints,
    StaleReplica,
    HandoffOff,
    SplitBrain,
    ClockSkew,
}

/// Something that will be seen.
pub struct Expectation {
    /// In a sentence.
    pub text: &'static str,
    /// Whether it was, and what was measured.
    check: fn(&Seen) -> (bool, String),
}

/// What a run has shown.
pub struct Seen<'a> {
    /// What clients were told.
    pub history: &'a History,
    /// What was wrong with whom.
    pub marks: &'a [Mark],
    /// When the load ended (µs).
    pub end_us: u64,
    /// How replicas became equal.
    pub agreement: &'a Agreement,
    /// What the checkers say.
    pub verdict: &'a Verdict,
    /// What the scenario measured on its way.
    pub notes: &'a BTreeMap<&'static str, i64>,
}

/// What came of an expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What was expected.
    pub text: &'static str,
    /// It came true.
    pub holds: bool,
    /// What was measured.
    pub measured: String,
}

/// The scenario of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    EVERY.iter().find(|scenario| scenario.name == name)
}

/// Every scenario, in the order in which a course would show them.
pub static EVERY: [Scenario; 9] = [
    Scenario {
        name: "one-crash",
        title: "one of four servers is killed and comes back",
        settings: "",
        keys: None,
        plan: |ms| vec![strike(ms, 25, 60, Fault::Kill(vec![3]))],
        script: Script::CountHints,
        expectations: &[
            QUORUM_GOES_ON,
            Expectation {
                text: "while server 3 is away the others keep hints for it, and none are left in the end",
                check: |seen| {
                    let (during, left) = (seen.note("hints"), seen.note("hints left"));
                    (during > 0 && left == 0, format!("{} hints, {left} left", text::signed(during)))
                },
            },
            AGREES,
        ],
    },
    Scenario {
        name: "majority-crash",
        title: "two of four servers are killed: some keys lose their majority",
        settings: "",
        keys: None,
        plan: |ms| vec![strike(ms, 25, 60, Fault::Kill(vec![2, 3]))],
        script: Script::Nothing,
        expectations: &[
            Expectation {
                text: "keys with two of three replicas gone are refused at QUORUM: not enough replicas alive",
                check: |seen| {
                    let refused = seen.failures("unavailable");
                    (refused > 0, format!("{} operations refused", text::count(refused)))
                },
            },
            Expectation {
                text: "keys with two replicas left go on at QUORUM all the while",
                check: |seen| {
                    let went_on =
                        seen.in_the_fault(|operation| operation.level == Level::Quorum).len() as u64;
                    (went_on > 0, format!("{} operations acknowledged meanwhile", text::count(went_on)))
                },
            },
            Expectation {
                text: "what was refused was written nowhere: no read ever shows it",
                check: |seen| {
                    let shown = seen.refused_values_that_were_read();
                    (shown == 0, format!("{shown} seen"))
                },
            },
            AGREES,
        ],
    },
    Scenario {
        name: "all-crash",
        title: "all servers are killed at the same moment",
        settings: "",
        keys: None,
        plan: |ms| vec![strike(ms, 30, 50, Fault::Kill(vec![0, 1, 2, 3]))],
        script: Script::Nothing,
        expectations: &[
            Expectation {
                text: "while all are dead nobody is answered",
                check: |seen| {
                    let Some((from_us, until_us)) = seen.fault() else {
                        return (false, "no fault".to_owned());
                    };
                    // What was on its way when they died has a moment to arrive.
                    let dead = from_us + 50_000..until_us;
                    let answers = seen.acknowledged(|operation| dead.contains(&operation.ended_us)).len();
                    (answers == 0, format!("{answers} answers in {}", seconds(until_us - from_us)))
                },
            },
            Expectation {
                text: "each replays its log, and the service is back within seconds of the start",
                check: |seen| {
                    let outage_us = longest_outage(seen.history, seen.end_us).len_us();
                    let down_us = seen.fault().map_or(0, |(from_us, until_us)| until_us - from_us);
                    let measured =
                        format!("no answer for {}, {} of it down", seconds(outage_us), seconds(down_us));
                    (seen.note("returns") >= 4 && outage_us < down_us + 5_000_000, measured)
                },
            },
            AGREES,
        ],
    },
    Scenario {
        name: "rolling-restart",
        title: "every server is restarted in turn, as for an upgrade",
        settings: "",
        keys: None,
        plan: |ms| {
            let restart = |id: u64| strike(ms, 15 + id * 18, 16 + id * 18, Fault::Restart(id as usize));
            (0..4).map(restart).collect()
        },
        script: Script::Nothing,
        expectations: &[
            QUORUM_GOES_ON,
            Expectation {
                text: "each stops by itself when told, and comes back",
                check: |seen| (seen.note("returns") == 4, format!("{} came back", seen.note("returns"))),
            },
            Expectation {
                text: "with one away at a time no key loses its majority: nothing is refused at QUORUM",
                check: |seen| {
                    let refused = |operation: &&Operation| {
                        operation.level == Level::Quorum && told_is(operation, "unavailable")
                    };
                    let refused = seen.history.operations.iter().filter(refused).count();
                    (refused == 0, format!("{refused} refused"))
                },
            },
            AGREES,
        ],
    },
    Scenario {
        name: "freeze",
        title: "a server freezes: its connections stay open, and it says nothing",
        settings: "",
        keys: None,
        plan: |ms| vec![strike(ms, 25, 65, Fault::Freeze(vec![3]))],
        script: Script::CountHints,
        expectations: &[
            Expectation {
                text: "nobody is told that it is gone, so some operations wait: the slowest take far longer than before",
                check: |seen| {
                    let (before_us, during_us) = (seen.slowest_before(), seen.slowest_in_the_fault());
                    let measured =
                        format!("{} before, {} during", milliseconds(before_us), milliseconds(during_us));
                    (during_us > before_us.max(300_000), measured)
                },
            },
            Expectation {
                text: "its silence gives it away (1.6 s): then the median is what it was, and QUORUM goes on",
                check: |seen| {
                    let (before_us, late_us) = (seen.median_before(), seen.median_late_in_the_fault());
                    let measured = format!(
                        "median {} before, {} in the last third of the freeze",
                        milliseconds(before_us),
                        milliseconds(late_us)
                    );
                    (late_us > 0 && late_us < (before_us * 5).max(100_000), measured)
                },
            },
            AGREES,
        ],
    },
    Scenario {
        name: "split-brain",
        title: "the network splits the servers into halves: 0, 1 │ 2, 3",
        settings: "",
        keys: None,
        plan: |ms| {
            let fault = Fault::Cut { links: both_ways(&[0, 1], &[2, 3]), shape: Shape::Halves };
            vec![strike(ms, 20, 75, fault)]
        },
        script: Script::SplitBrain,
        expectations: &[
            Expectation {
                text: "at QUORUM a key can be written on one side only: the side with two of its replicas",
                check: |seen| {
                    let sides = [seen.note("key 0 left"), seen.note("key 0 right")];
                    let others = [seen.note("key 137 left"), seen.note("key 137 right")];
                    let said = |side: i64| if side == 1 { "taken" } else { "refused" };
                    let measured = format!(
                        "key 0: {} left, {} right; key 137: {} left, {} right",
                        said(sides[0]),
                        said(sides[1]),
                        said(others[0]),
                        said(others[1])
                    );
                    (sides == [1, 0] && others == [0, 1], measured)
                },
            },
            Expectation {
                text: "at ONE both sides take a write of the same key, and each shows its own: two truths",
                check: |seen| {
                    let two = seen.note("two truths") == 1;
                    (two, if two { "seen" } else { "not seen" }.to_owned())
                },
            },
            Expectation {
                text: "whole again, every replica has the later of the two",
                check: |seen| {
                    let healed = seen.note("later wins") == 1;
                    (healed, if healed { "the later one, everywhere" } else { "not so" }.to_owned())
                },
            },
            AGREES,
        ],
    },
    Scenario {
        name: "stale-replica",
        title: "a server misses a write and answers with what it has (handoff and reconciliation are off)",
        settings: "handoff = false\nreconciliation = false\n",
        keys: None,
        plan: |ms| vec![strike(ms, 25, 60, Fault::Kill(vec![3]))],
        script: Script::StaleReplica,
        expectations: &[
            Expectation {
                text: "back again, server 3 answers a read at ONE with its old value",
                check: |seen| value_note(seen, "at one before"),
            },
            Expectation {
                text: "a QUORUM read through the same server shows the new one",
                check: |seen| value_note(seen, "at quorum"),
            },
            Expectation {
                text: "and has mended server 3 on its way: now ONE shows it, too",
                check: |seen| value_note(seen, "at one after"),
            },
        ],
    },
    Scenario {
        name: "handoff-off",
        title: "without hints and reconciliation a returned server stays behind until somebody reads",
        settings: "handoff = false\nreconciliation = false\n",
        keys: Some(1_000),
        plan: |ms| vec![strike(ms, 25, 90, Fault::Kill(vec![3]))],
        script: Script::HandoffOff,
        expectations: &[
            QUORUM_GOES_ON,
            Expectation {
                text: "nobody keeps hints, so server 3 comes back behind on some keys",
                check: |seen| {
                    let (hints, behind) = (seen.note("hints"), seen.note("behind"));
                    (hints == 0 && behind > 0, format!("{hints} hints, {behind} keys behind"))
                },
            },
            Expectation {
                text: "a read at ONE from it shows old values",
                check: |seen| {
                    let (stale, of) = (seen.note("stale at one"), seen.note("behind"));
                    (stale > 0, format!("{stale} of those {of} keys"))
                },
            },
            Expectation {
                text: "reading each key once mends it",
                check: |seen| {
                    (seen.note("behind after") == 0, format!("{} keys behind", seen.note("behind after")))
                },
            },
        ],
    },
    Scenario {
        name: "clock-skew",
        title: "one server's clock is an hour fast, another's an hour slow",
        settings: "",
        keys: None,
        plan: |ms| vec![strike(ms, 15, 75, Fault::Skew(vec![(0, 3_600_000), (1, -3_600_000)]))],
        script: Script::ClockSkew,
        expectations: &[
            Expectation {
                text: "puts through servers with different clocks: each later QUORUM put wins, wherever it is read",
                check: |seen| {
                    let (right, of) = (seen.note("rounds right"), seen.note("rounds"));
                    (of > 0 && right == of, format!("{right} of {of} reads showed the latest put"))
                },
            },
            Expectation {
                text: "the stamps follow the fastest clock, for a server that hears of a later one passes it",
                check: |seen| {
                    let ahead_s = seen.note("stamp ahead s");
                    (
                        ahead_s > 3_000,
                        format!("the last stamp is {} s ahead of the true time", text::signed(ahead_s)),
                    )
                },
            },
            AGREES,
        ],
    },
];

const QUORUM_GOES_ON: Expectation = Expectation {
    text: "QUORUM goes on: the clients never wait as long as 2 s for a first success",
    check: |seen| {
        let outage_us = longest_outage(seen.history, seen.end_us).len_us();
        (outage_us < PAUSE_MAX_US, format!("longest pause {}", seconds(outage_us)))
    },
};

const AGREES: Expectation = Expectation {
    text: "in the end all replicas of every key are equal",
    check: |seen| {
        let after = seconds(seen.agreement.took_us);
        match seen.agreement.by {
            By::Themselves => (true, format!("{after} after the last fault, without a read")),
            By::Reads => {
                (true, format!("{after} after the last fault, {} keys by a read", seen.agreement.differed))
            }
            By::Nothing => (false, format!("{} keys still differ", seen.agreement.differ)),
        }
    },
};

/// Of every scenario.
const NOTHING_LOST: Expectation = Expectation {
    text: "nothing acknowledged is lost, no QUORUM read is stale",
    check: |seen| {
        (seen.verdict.is_clean(), format!("lost {}, stale {}", seen.verdict.lost, seen.verdict.stale))
    },
};

impl Scenario {
    /// What is done within `seconds`.
    pub fn plan(&self, seconds: u64) -> Vec<Strike> {
        (self.plan)(seconds * 1_000)
    }

    /// Everything that will be seen.
    pub fn expectations(&self) -> impl Iterator<Item = &Expectation> {
        self.expectations.iter().chain([&NOTHING_LOST])
    }

    /// Looks whether it was.
    pub fn check(&self, seen: &Seen) -> Vec<Checked> {
        let check = |expectation: &Expectation| {
            let (holds, measured) = (expectation.check)(seen);
            Checked { text: expectation.text, holds, measured }
        };
        self.expectations().map(check).collect()
    }

    // ------------------------------------------------------------------------------------------ by hand

    /// What is asked by hand before anything is wrong.
    pub async fn act_before(&self, stage: &mut Stage) -> Result<(), DrillError> {
        if self.script == Script::StaleReplica {
            stage.ask(2, 137, Level::All, put("old")).await;
        }
        Ok(())
    }

    /// What is asked by hand while something is wrong.
    pub async fn act_during(&self, stage: &mut Stage) -> Result<(), DrillError> {
        match self.script {
            Script::Nothing => {}
            Script::CountHints | Script::HandoffOff => {
                let hints = stage.hints().await;
                stage.notes.insert("hints", hints);
                let waiting = text::plural(hints.unsigned_abs(), "hint waits", "hints wait");
                stage.event(&format!("{waiting} on the other servers"));
            }
            Script::StaleReplica => {
                stage.wait_seen(2, 3, "down").await?;
                stage.ask(2, 137, Level::Quorum, put("new")).await;
            }
            Script::SplitBrain => split_brain(stage).await?,
            Script::ClockSkew => clock_skew(stage).await?,
        }
        Ok(())
    }

    /// What is asked by hand once nothing is wrong any more and the clients have stopped.
    pub async fn act_after(&self, stage: &mut Stage, keys: &BTreeSet<Bytes>) -> Result<(), DrillError> {
        match self.script {
            Script::Nothing | Script::ClockSkew => {}
            Script::CountHints => {
                settle::quiet(stage).await?;
                let hints = stage.hints().await;
                stage.notes.insert("hints left", hints);
            }
            Script::StaleReplica => {
                settle::quiet(stage).await?;
                for (note, level, expected) in [
                    ("at one before", Level::One, "old"),
                    ("at quorum", Level::Quorum, "new"),
                    ("at one after", Level::One, "new"),
                ] {
                    let told = stage.ask(3, 137, level, Asked::Get).await;
                    stage.notes.insert(note, i64::from(shows(&told, expected)));
                }
            }
            Script::HandoffOff => handoff_off(stage, keys).await?,
            Script::SplitBrain => {
                settle::quiet(stage).await?;
                let mut later_wins = true;
                for replica in [0, 1, 2] {
                    later_wins &= shows(&stage.ask(replica, 20, Level::One, Asked::Get).await, "right");
                }
                stage.notes.insert("later wins", i64::from(later_wins));
            }
        }
        Ok(())
    }
}

/// Key 0 has two replicas on the left side, key 137 two on the right; key 20 lies like key 0.
async fn split_brain(stage: &mut Stage) -> Result<(), DrillError> {
    for (observer, other) in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)] {
        stage.wait_seen(observer, other, "down").await?;
    }
    stage.event("each half sees the other one down");
    for (note, through, key, value) in [
        ("key 0 left", 0, 0, "by the left"),
        ("key 0 right", 2, 0, "by the right"),
        ("key 137 left", 0, 137, "by the left"),
        ("key 137 right", 2, 137, "by the right"),
    ] {
        let told = stage.ask(through, key, Level::Quorum, put(&format!("{value} ({key})"))).await;
        stage.notes.insert(note, i64::from(matches!(told, Told::Written { .. })));
    }
    stage.ask(0, 20, Level::One, put("left")).await;
    stage.ask(2, 20, Level::One, put("right")).await;
    let left = stage.ask(0, 20, Level::One, Asked::Get).await;
    let right = stage.ask(2, 20, Level::One, Asked::Get).await;
    stage.notes.insert("two truths", i64::from(shows(&left, "left") && shows(&right, "right")));
    Ok(())
}

/// Each put begins after the one before was acknowledged, through another server with another clock.
async fn clock_skew(stage: &mut Stage) -> Result<(), DrillError> {
    const ROUNDS: usize = 8;
    stage.all_ready().await?;
    for observer in 0..4 {
        for other in 0..4 {
            stage.wait_seen(observer, other, "up").await?;
        }
    }
    for round in 0..ROUNDS {
        let value = format!("round {round}");
        let told = stage.ask(round % 4, 137, Level::Quorum, put(&value)).await;
        if let Told::Written { stamp: Some(stamp) } = told {
            stage.notes.insert("stamp ahead s", (stamp.0 - machine_wall_us()) / 1_000_000);
        }
        let read = stage.ask((round + 1) % 4, 137, Level::Quorum, Asked::Get).await;
        *stage.notes.entry("rounds").or_default() += 1;
        *stage.notes.entry("rounds right").or_default() += i64::from(shows(&read, &value));
    }
    Ok(())
}

/// How far server 3 is behind, what it answers, and that reading mends it.
async fn handoff_off(stage: &mut Stage, keys: &BTreeSet<Bytes>) -> Result<(), DrillError> {
    settle::quiet(stage).await?;
    sleep(Duration::from_millis(300)).await; // for writes that replicas still exchange
    let before = settle::contents(&stage.client, stage.cluster.len(), keys).await?;
    let behind = settle::differing(&stage.client, keys, &before);
    stage.notes.insert("behind", behind.len() as i64);
    let client = stage.client.pin(NodeId(3));
    let mut stale = 0;
    for key in &behind {
        let newest = before.iter().filter_map(|held| held.get(key)).max_by_key(|held| held.stamp);
        let got = client.get(&GetRequest::new(key.to_vec(), chord::Level::ONE, None)).await;
        let got = got.ok().map(|got| got.value.map(Bytes::from));
        stale += i64::from(got != newest.map(|newest| newest.value.clone()));
    }
    stage.notes.insert("stale at one", stale);
    stage.event(&format!(
        "{} keys differ; read at ONE from server 3, {stale} of them show something old",
        behind.len()
    ));
    settle::read_each(&stage.client, keys).await;
    let after = settle::contents(&stage.client, stage.cluster.len(), keys).await?;
    let left = settle::differing(&stage.client, keys, &after).len();
    stage.notes.insert("behind after", left as i64);
    stage.event(&format!("each key read once at ALL: {left} keys differ"));
    Ok(())
}

fn strike(ms: u64, from_percent: u64, until_percent: u64, fault: Fault) -> Strike {
    Strike { from_ms: ms * from_percent / 100, until_ms: ms * until_percent / 100, fault }
}

fn put(value: &str) -> Asked {
    Asked::Put(Bytes::copy_from_slice(value.as_bytes()))
}

fn shows(told: &Told, expected: &str) -> bool {
    matches!(told, Told::Found { value: Some(value), .. } if value == expected.as_bytes())
}

fn told_is(operation: &Operation, word: &str) -> bool {
    matches!(&operation.told, Told::Refused(why) | Told::Unknown(why) if why == word)
}

fn value_note(seen: &Seen, note: &'static str) -> (bool, String) {
    let holds = seen.note(note) == 1;
    (holds, if holds { "so it did" } else { "it did not" }.to_owned())
}

/// Microseconds for people.
pub fn seconds(us: u64) -> String {
    format!("{:.2} s", us as f64 / 1e6)
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

impl Seen<'_> {
    fn note(&self, name: &'static str) -> i64 {
        self.notes.get(name).copied().unwrap_or(0)
    }

    fn failures(&self, word: &str) -> u64 {
        self.history.operations.iter().filter(|operation| told_is(operation, word)).count() as u64
    }

    fn acknowledged(&self, which: impl Fn(&Operation) -> bool) -> Vec<&Operation> {
        let operations = self.history.operations.iter();
        operations
            .filter(|operation| outcome(operation) == Outcome::Acknowledged && which(operation))
            .collect()
    }

    /// From when to when something was wrong, from the first mark to the first end.
    fn fault(&self) -> Option<(u64, u64)> {
        let from_us = self.marks.iter().map(|mark| mark.from_us).min()?;
        let ends = self.marks.iter().filter(|mark| mark.kind != Kind::Skew).filter_map(|mark| mark.until_us);
        Some((from_us, ends.min().unwrap_or(self.end_us)))
    }

    fn in_the_fault(&self, which: impl Fn(&Operation) -> bool) -> Vec<&Operation> {
        let (from_us, until_us) = self.fault().unwrap_or_default();
        self.acknowledged(|operation| {
            operation.began_us > from_us && operation.ended_us < until_us && which(operation)
        })
    }

    fn slowest_before(&self) -> u64 {
        let (from_us, _) = self.fault().unwrap_or_default();
        slowest(self.acknowledged(|operation| operation.ended_us < from_us))
    }

    fn slowest_in_the_fault(&self) -> u64 {
        let (from_us, until_us) = self.fault().unwrap_or_default();
        // Those that waited for the frozen server end when it goes on.
        slowest(self.acknowledged(|operation| operation.ended_us > from_us && operation.began_us < until_us))
    }

    fn median_before(&self) -> u64 {
        let (from_us, _) = self.fault().unwrap_or_default();
        median(self.acknowledged(|operation| operation.ended_us < from_us))
    }

    fn median_late_in_the_fault(&self) -> u64 {
        let (from_us, until_us) = self.fault().unwrap_or_default();
        let late_us = until_us - (until_us - from_us) / 3;
        median(self.in_the_fault(|operation| operation.ended_us > late_us))
    }

    fn refused_values_that_were_read(&self) -> usize {
        let refused = self.history.operations.iter().filter_map(|operation| {
            match (&operation.asked, &operation.told) {
                (Asked::Put(value), Told::Refused(_)) => Some(value),
                _ => None,
            }
        });
        let refused: HashSet<&Bytes> = refused.collect();
        let shown = |operation: &&Operation| matches!(&operation.told, Told::Found { value: Some(value), .. } if refused.contains(value));
        self.history.operations.iter().filter(shown).count()
    }
}

fn slowest(operations: Vec<&Operation>) -> u64 {
    operations.iter().map(|operation| operation.ended_us - operation.began_us).max().unwrap_or(0)
}

fn median(operations: Vec<&Operation>) -> u64 {
    let mut took_us: Vec<u64> =
        operations.iter().map(|operation| operation.ended_us - operation.began_us).collect();
    took_us.sort_unstable();
    percentile(&took_us, 50).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_faults_in_time_and_expectations() {
        for scenario in &EVERY {
            assert!(std::ptr::eq(find(scenario.name).unwrap(), scenario));
            let plan = scenario.plan(15);
            assert!(
                !plan.is_empty() && plan.iter().all(|strike| strike.until_ms < 14_000),
                "{}",
                scenario.name
            );
            assert!(scenario.expectations().count() >= 3);
        }
        assert!(find("no-such").is_none());
    }
}
