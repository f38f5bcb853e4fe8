//! What a checker found, told so that a person sees at once which operations contradict which promise.
//!
//! A store that is broken breaks its promises a million times: every finding is counted, and only the first ones of
//! each rule have their story told.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use super::history::{Asked, Operation, Told};
use crate::cell::Stamp;
use crate::client::text;

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// An acknowledged write that a read had to show was not shown, nor anything newer, by that read or any later one;
    /// or the replicas do not hold it in the end. Counted once for each write.
    LostWrite,
    /// A read did not show an acknowledged write that it had to show, nor anything newer; a later one did, or the write
    /// is counted as lost already.
    StaleRead,
    /// A read showed something older than an earlier read had shown.
    WentBack,
    /// A value, or a deletion, that nobody asked for, or not yet.
    NobodysValue,
    /// A write that was refused, so that nothing was written, was written.
    RefusedYetWritten,
    /// A write that began after another was acknowledged did not get the newer stamp.
    StampsOutOfOrder,
    /// Two writes have one stamp. Only if [`super::Promises::unique_stamps`].
    SharedStamp,
    /// No order of the operations explains every answer.
    NotLinearizable,
    /// The replicas of a key hold different versions in the end.
    ReplicasDiffer,
    /// A server holds a key that is not its own.
    StrayCopy,
}

impl Rule {
    /// A few words for it.
    pub fn name(self) -> &'static str {
        match self {
            Rule::LostWrite => "lost write",
            Rule::StaleRead => "stale read",
            Rule::WentBack => "went back",
            Rule::NobodysValue => "nobody's value",
            Rule::RefusedYetWritten => "refused, yet written",
            Rule::StampsOutOfOrder => "stamps out of order",
            Rule::SharedStamp => "shared stamp",
            Rule::NotLinearizable => "not linearizable",
            Rule::ReplicasDiffer => "replicas differ",
            Rule::StrayCopy => "stray copy",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A promise that was broken, by which operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The promise.
    pub rule: Rule,
    /// On which key.
    pub key: Bytes,
    /// A few lines: which operations, who, when, which stamps.
    pub story: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, key {}", self.rule, text::value(&self.key))?;
        self.story.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// How many findings of a rule have their story told.
pub(super) const STORIES_MAX: usize = 10;

/// Findings so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub told: Vec<Finding>,
    pub counts: BTreeMap<Rule, usize>,
}

impl Findings {
    /// Counts a finding; asks for its story only if that will be told.
    pub fn add(&mut self, rule: Rule, key: &Bytes, story: impl FnOnce() -> Vec<String>) {
        let count = self.counts.entry(rule).or_default();
        *count += 1;
        if *count <= STORIES_MAX {
            self.told.push(Finding { rule, key: key.clone(), story: story() });
        }
    }
}

/// Characters of a value or reason that a story shows.
const SHOWN_CHARS: usize = 40;

/// An operation as a line of a story: `1.000000 to 1.500000 s: client 3 put v12 at QUORUM: written, stamp 17`.
pub(super) fn tell(operation: &Operation) -> String {
    let when = format!("{} to {} s", seconds(operation.began_us), seconds(operation.ended_us));
    let asked = match &operation.asked {
        Asked::Put(value) => format!("put {}", shown(value)),
        Asked::Remove => "removed it".to_owned(),
        Asked::Get => "read".to_owned(),
    };
    let told = match &operation.told {
        Told::Written { .. } => "written".to_owned(),
        Told::Found { value, .. } => format!("found {}", shown_or_nothing(value.as_ref())),
        Told::Refused(why) => format!("refused ({})", text::cut(why, SHOWN_CHARS)),
        Told::Unknown(why) => format!("outcome unknown ({})", text::cut(why, SHOWN_CHARS)),
    };
    let stamp = operation.stamp().map(|stamp| format!(", stamp {stamp}")).unwrap_or_default();
    format!("{when}: client {} {asked} at {}: {told}{stamp}", operation.client, operation.level)
}

/// A version as a story shows it.
pub(super) fn tell_version(value: Option<&Bytes>, stamp: Stamp) -> String {
    format!("{}, stamp {stamp}", value.map_or_else(|| "a deletion".to_owned(), shown))
}

/// Microseconds as seconds.
pub(super) fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn shown_or_nothing(value: Option<&Bytes>) -> String {
    value.map_or_else(|| "nothing".to_owned(), shown)
}

fn shown(value: &Bytes) -> String {
    text::cut(&text::value(value), SHOWN_CHARS)
}
