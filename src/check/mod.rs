//! Judges a store by what its clients saw, and by what its replicas hold in the end. Whoever ran the load, a simulation
//! or clients of real servers, wrote down a [`History`]; nothing here knows where it came from.
//!
//!   history   what each client asked, when, and what it was told; `text`: the same as lines
//!   register  the promises of the levels, pair by pair of operations on one key (`ledger`: which write is newer)
//!   linear    is there one order of all operations on a key that explains every answer? (a search)
//!   settled   what the replicas hold once faults have ended
//!   finding   a promise that was broken, told by the operations that show it
//!
//! A finding is a broken promise, never a suspicion. The other way round the judges only do what they can: what no
//! client could have noticed is not found.
//!
//! Not here: making faults and load.

mod finding;
pub mod history;
mod ledger;
pub mod linear;
mod register;
pub mod settled;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

use crate::client::text::{count, plural, value};
use crate::coordinator::Level;
use crate::coordinator::level::quorum;

pub use finding::{Finding, Rule};
use finding::{Findings, tell};
pub use history::{Asked, History, Malformed, Operation, Recorder, Told};
use ledger::Ledger;
use linear::{LeftOut, Outcome, Picked};
pub use settled::{Copies, Settled, Version};
pub use text::ParseError;

/// What the store promised.
#[derive(Clone, Debug)]
pub struct Promises {
    /// How many replicas each key has.
    pub replicas: usize,
    /// Reads write back what they show before they answer. Without it no order is promised among reads.
    pub read_repair: bool,
    /// No two writes of a key share a stamp. Not promised by clocks of several servers: two that make a stamp in the
    /// same microsecond make the same, and the larger value wins.
    pub unique_stamps: bool,
    /// A deletion that every replica has is dropped some time later. Without it, it is there in the end.
    pub deletions_collected: bool,
    /// Files that were lost for good, or put back from an older copy.
    pub files: FilesLost,
    /// How many states the search for an order may visit, for each key.
    pub states_max: usize,
}

/// Whether a server lost files that it needed for what it had acknowledged; one server at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilesLost {
    /// None did.
    #[default]
    No,
    /// One did, and knew it before it answered a read: reads keep their promises for what was on two replicas, by
    /// stamp. Of stamps themselves no order is promised: the server no longer knows that it had something newer.
    Known,
    /// One did and did not know: what was on two replicas is there in the end, by stamp.
    Unknown,
}

impl Promises {
    /// Those of a cluster that keeps `replicas` copies and is otherwise set up as it comes.
    pub fn of(replicas: usize) -> Promises {
        assert!(replicas > 0);
        Promises {
            replicas,
            read_repair: true,
            unique_stamps: false,
            deletions_collected: true,
            files: FilesLost::No,
            states_max: STATES_MAX,
        }
    }

    /// How many replicas certainly have what was acknowledged at a level. At ANY perhaps none: a hint was enough.
    fn needed(&self, level: Level) -> usize {
        if level == Level::Any { 0 } else { level.needed(self.replicas).min(self.replicas) }
    }

    /// Any `asked` replicas share one with this many; and this many are more than can have lost their files.
    fn sharing(&self, asked: usize) -> usize {
        let left = if self.files == FilesLost::No { 0 } else { 2 };
        (self.replicas + 1).saturating_sub(asked).max(left)
    }

    fn quorum(&self) -> usize {
        quorum(self.replicas)
    }
}

/// With ten clients busy on one key the search visits about five states for each operation, so this is enough for a
/// million of them. Each takes some 50 bytes while it is needed.
const STATES_MAX: usize = 5_000_000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// How much was judged.
    pub counts: Counts,
    /// The first findings of each rule, in the order of keys.
    pub findings: Vec<Finding>,
    /// How many findings there are of each rule, also those that `findings` leaves out.
    pub found: BTreeMap<Rule, usize>,
    /// What the searches for an order came to.
    pub linear: LinearSummary,
    /// How many keys were compared on their replicas, if what they hold was given.
    pub settled_keys: Option<usize>,
}

/// How much was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Puts.
    pub puts: Kind,
    /// Removals.
    pub removals: Kind,
    /// Reads.
    pub reads: Kind,
    /// Different clients.
    pub clients: usize,
    /// Different keys.
    pub keys: usize,
    /// From the first beginning to the last end (µs).
    pub span_us: u64,
}

/// What came of the operations of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// The level was met.
    pub acknowledged: usize,
    /// Refused.
    pub refused: usize,
    /// Unknown.
    pub unknown: usize,
}

/// What the searches for an order came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinearSummary {
    /// Keys that were searched.
    pub keys: usize,
    /// Operations on them.
    pub operations: usize,
    /// Keys whose answers no order explains.
    pub not: usize,
    /// Keys whose search visited too many states: nothing is known of them.
    pub gave_up: Vec<Bytes>,
    /// Keys that were not searched, and why.
    pub left_out: BTreeMap<LeftOut, usize>,
    /// The most states that a search visited.
    pub states_most: usize,
}

/// Judges a history, and what the replicas hold in the end. A malformed history says nothing of the store.
pub fn judge(
    history: &History,
    promises: &Promises,
    settled: Option<&Settled>,
) -> Result<Judgement, Malformed> {
    history.check()?;
    let keys = history.by_key();
    let mut findings = Findings::default();
    let settled_keys = judge_registers(&keys, promises, settled, &mut findings);
    let linear = judge_order(linear::pick(&keys, promises), promises, &mut findings);
    let counts = Counts::of(history, keys.len());
    let Findings { mut told, counts: found } = findings;
    told.sort_by(|a, b| (&a.key, a.rule).cmp(&(&b.key, b.rule)));
    Ok(Judgement {
        counts,
        findings: told,
        found,
        linear,
        settled_keys: settled.is_some().then_some(settled_keys),
    })
}

/// Every key that was asked for or that somebody holds; says how many.
fn judge_registers(
    keys: &BTreeMap<&Bytes, Vec<&Operation>>,
    promises: &Promises,
    settled: Option<&Settled>,
    findings: &mut Findings,
) -> usize {
    let held = settled.into_iter().flat_map(|settled| settled.copies.keys());
    let all: BTreeSet<&Bytes> = keys.keys().copied().chain(held).collect();
    for key in &all {
        let copies = settled.and_then(|settled| settled.copies.get(*key));
        let operations = keys.get(key).map_or(&[][..], Vec::as_slice);
        let ledger = Ledger::new(key, operations, copies, promises);
        let mut lost = BTreeSet::new();
        if let Some(settled) = settled {
            settled.check(&ledger, &mut lost, findings);
        }
        let newest = settled.and_then(|settled| settled.newest(key));
        register::check(&ledger, newest, &mut lost, findings);
        if promises.unique_stamps {
            register::check_shared_stamps(&ledger, copies, findings);
        }
    }
    all.len()
}

fn judge_order(picked: Picked, promises: &Promises, findings: &mut Findings) -> LinearSummary {
    let mut summary = LinearSummary { left_out: picked.left_out, ..LinearSummary::default() };
    for (key, operations) in picked.keys {
        summary.keys += 1;
        summary.operations += operations.len();
        match linear::search(&operations, promises.states_max) {
            Outcome::Linearizable { states } => summary.states_most = summary.states_most.max(states),
            Outcome::GaveUp { states } => {
                summary.states_most = summary.states_most.max(states);
                summary.gave_up.push(key.clone());
            }
            Outcome::Not { begun, counterexample } => {
                summary.not += 1;
                findings.add(Rule::NotLinearizable, key, || tell_no_order(begun, &counterexample));
            }
        }
    }
    summary
}

fn tell_no_order(begun: usize, counterexample: &[Operation]) -> Vec<String> {
    let head = format!(
        "no order explains the first {} on this key; these {} are enough to see it:",
        plural(begun as u64, "operation", "operations"),
        count(counterexample.len() as u64)
    );
    let shown = counterexample.iter().take(COUNTEREXAMPLE_SHOWN).map(tell);
    let more = counterexample.len().saturating_sub(COUNTEREXAMPLE_SHOWN);
    let rest = (more > 0).then(|| format!("and {} more", count(more as u64)));
    std::iter::once(head).chain(shown).chain(rest).collect()
}

/// Operations of a counterexample that a story shows.
const COUNTEREXAMPLE_SHOWN: usize = 20;

impl Counts {
    fn of(history: &History, keys: usize) -> Counts {
        let mut counts = Counts { keys, ..Counts::default() };
        let mut clients = BTreeSet::new();
        for operation in &history.operations {
            clients.insert(operation.client);
            let kind = match operation.asked {
                Asked::Put(_) => &mut counts.puts,
                Asked::Remove => &mut counts.removals,
                Asked::Get => &mut counts.reads,
            };
            match operation.told {
                Told::Written { .. } | Told::Found { .. } => kind.acknowledged += 1,
                Told::Refused(_) => kind.refused += 1,
                Told::Unknown(_) => kind.unknown += 1,
            }
        }
        counts.clients = clients.len();
        let began = history.operations.iter().map(|operation| operation.began_us).min();
        let ended = history.operations.iter().map(|operation| operation.ended_us).max();
        counts.span_us = ended.unwrap_or(0) - began.unwrap_or(0);
        counts
    }

    /// All operations.
    pub fn operations(&self) -> usize {
        [&self.puts, &self.removals, &self.reads].into_iter().map(Kind::asked).sum()
    }
}

impl Kind {
    /// All of the kind.
    pub fn asked(&self) -> usize {
        self.acknowledged + self.refused + self.unknown
    }
}

impl Judgement {
    /// True if no promise was found broken. A search that gave up found nothing: see [`LinearSummary::gave_up`].
    pub fn holds(&self) -> bool {
        self.found.is_empty()
    }

    /// How many acknowledged writes are lost: a read that had to show them did not, no later one did, nor do the
    /// replicas.
    pub fn lost(&self) -> usize {
        self.of_rule(Rule::LostWrite)
    }

    /// How many reads showed something older than they had to.
    pub fn stale(&self) -> usize {
        self.of_rule(Rule::StaleRead) + self.of_rule(Rule::WentBack)
    }

    /// The first findings of each rule before the second ones: one broken rule must not hide the others.
    fn most_telling(&self, max: usize) -> Vec<&Finding> {
        let mut so_far: BTreeMap<Rule, usize> = BTreeMap::new();
        let mut ranked: Vec<((usize, Rule), &Finding)> = Vec::new();
        for finding in &self.findings {
            let nth = so_far.entry(finding.rule).or_default();
            *nth += 1;
            ranked.push(((*nth, finding.rule), finding));
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().take(max).map(|(_, finding)| finding).collect()
    }

    /// How many findings there are of a rule.
    pub fn of_rule(&self, rule: Rule) -> usize {
        self.found.get(&rule).copied().unwrap_or(0)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.counts)?;
        writeln!(f, "{}", self.linear)?;
        if let Some(keys) = self.settled_keys {
            writeln!(f, "replicas in the end: {} compared", plural(keys as u64, "key", "keys"))?;
        }
        writeln!(
            f,
            "lost writes: {}, stale reads: {}",
            count(self.lost() as u64),
            count(self.stale() as u64)
        )?;
        if self.holds() {
            return match self.linear.gave_up.is_empty() {
                true => write!(f, "every promise holds"),
                false => write!(f, "no broken promise was found; of the keys given up nothing is known"),
            };
        }
        let found = self.found.iter().map(|(rule, found)| format!("{rule} {}", count(*found as u64)));
        write!(f, "broken promises: {}", found.collect::<Vec<_>>().join(", "))?;
        let shown = self.most_telling(FINDINGS_SHOWN);
        shown.iter().try_for_each(|finding| write!(f, "\n  {finding}"))?;
        let all: usize = self.found.values().sum();
        match all - shown.len() {
            0 => Ok(()),
            more => write!(f, "\n  and {} more", count(more as u64)),
        }
    }
}

/// Findings on the page.
const FINDINGS_SHOWN: usize = 10;

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} on {} within {}.{:03} s\n{:>12}{:>14}{:>14}{:>14}",
            plural(self.operations() as u64, "operation", "operations"),
            plural(self.clients as u64, "client", "clients"),
            plural(self.keys as u64, "key", "keys"),
            count(self.span_us / 1_000_000),
            self.span_us / 1000 % 1000,
            "",
            "acknowledged",
            "refused",
            "unknown"
        )?;
        for (name, kind) in [("puts", &self.puts), ("removals", &self.removals), ("reads", &self.reads)] {
            let [acknowledged, refused, unknown] =
                [kind.acknowledged, kind.refused, kind.unknown].map(|number| count(number as u64));
            write!(f, "\n  {name:<10}{acknowledged:>14}{refused:>14}{unknown:>14}")?;
        }
        Ok(())
    }
}

impl fmt::Display for LinearSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "linearizability: {} with {} searched, {} without an order",
            plural(self.keys as u64, "key", "keys"),
            plural(self.operations as u64, "operation", "operations"),
            count(self.not as u64)
        )?;
        if let Some(first) = self.gave_up.first() {
            write!(f, ", {} given up (first: {})", count(self.gave_up.len() as u64), value(first))?;
        }
        for (why, keys) in &self.left_out {
            write!(f, "\n  not searched: {} {why}", plural(*keys as u64, "key", "keys"))?;
        }
        Ok(())
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LeftOut::WeakWrites => "with writes below a quorum",
            LeftOut::NoStrongReads => "that no read at a quorum showed",
            LeftOut::NoReadRepair => "whose reads repair nothing",
        })
    }
}
