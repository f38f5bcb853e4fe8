//! The one place where a drill meets the checkers: a history and the replicas' contents in, a verdict out.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::settle::Contents;
use crate::answer::NodeId;
use crate::check::{self, History, Judgement, Promises, Settled};
use crate::client::text;
use crate::ring::Ring;

/// What the checkers said.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Acknowledged writes that are gone.
    pub lost: usize,
    /// Reads that had to show something newer.
    pub stale: usize,
    /// Whether one order of all operations explains every answer, in a sentence.
    pub linear: String,
    /// Everything that broke a promise, told; the first ones of each kind.
    pub findings: Vec<String>,
}

impl Verdict {
    /// Every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.stale == 0 && self.findings.is_empty()
    }
}

/// Judges a run.
pub fn judge(history: &History, ring: &Ring, contents: &Contents) -> Verdict {
    let promises = Promises::of(ring.replication_factor());
    match check::judge(history, &promises, Some(&settled(ring, contents))) {
        Ok(judgement) => Verdict {
            lost: judgement.lost(),
            stale: judgement.stale(),
            linear: linear(&judgement),
            findings: judgement.findings.iter().map(ToString::to_string).collect(),
        },
        // The drill wrote it down wrong: that is no verdict, and must not look like a good one.
        Err(malformed) => Verdict {
            linear: "not judged".to_owned(),
            findings: vec![format!("the history cannot be judged: {malformed}")],
            ..Verdict::default()
        },
    }
}

fn settled(ring: &Ring, contents: &Contents) -> Settled {
    let mut settled = Settled { ring: Some(ring.clone()), ..Settled::default() };
    for (id, held) in contents.iter().enumerate() {
        for (key, version) in held {
            settled.note(key.clone(), NodeId(id as u32), Some(version.clone()));
        }
    }
    settled
}

fn linear(judgement: &Judgement) -> String {
    let linear = &judgement.linear;
    let explained = linear.keys - linear.not - linear.gave_up.len();
    let mut sentence = format!(
        "{explained} of {}, by a search over {}",
        text::plural(linear.keys as u64, "key", "keys"),
        text::plural(linear.operations as u64, "operation", "operations")
    );
    if !linear.gave_up.is_empty() {
        sentence.push_str(&format!("; {} given up: too many at once", linear.gave_up.len()));
    }
    let left_out = linear.left_out.iter();
    let left_out = left_out.map(|(why, keys)| format!("{} {why}", text::plural(*keys as u64, "key", "keys")));
    match left_out.collect::<Vec<_>>().join(", ").as_str() {
        "" => sentence,
        left_out => format!("{sentence}; not searched: {left_out}"),
    }
}

/// Writes every operation down, one a line.
pub fn write_history(history: &History, path: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    history.write_to(&mut out)?;
    out.flush()
}
