//! The one place where a drill meets the checkers: a history and the replicas' contents in, a verdict out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;

use super::settle::Contents;
use crate::check::{Asked, History, Told};
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
    /// Everything that broke a promise, told.
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
    // Stands in for `check::judge`.
    let mut last: BTreeMap<&Bytes, (i64, u64)> = BTreeMap::new();
    for operation in &history.operations {
        if let (Asked::Put(_) | Asked::Remove, Told::Written { stamp: Some(stamp) }) =
            (&operation.asked, &operation.told)
        {
            let known = last.entry(&operation.key).or_default();
            *known = (*known).max((stamp.0, operation.began_us));
        }
    }
    let mut verdict = Verdict { linear: "not judged".to_owned(), ..Verdict::default() };
    for (key, (stamp, _)) in last {
        for node in ring.replicas(key) {
            let held = contents[node.0 as usize].get(key).map_or(0, |held| held.stamp.0);
            if held < stamp {
                verdict.lost += 1;
                verdict.findings.push(format!("{key:?}: acknowledged {stamp}, server {node} has {held}"));
            }
        }
    }
    verdict
}

/// Writes every operation down, one a line.
pub fn write_history(history: &History, path: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for operation in &history.operations {
        writeln!(out, "{operation:?}")?;
    }
    out.flush()
}
