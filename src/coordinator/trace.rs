//! What happened to one request, step by step, for whoever asked to see it (`trace on` in the console).

use std::fmt::Display;

use tokio::time::Instant;

use crate::answer::{ApplyAnswer, Failure, ReadAnswer};

/// The steps of a request so far; keeps nothing unless tracing was asked for.
pub struct Trace {
    steps: Option<(Instant, Vec<String>)>,
}

impl Trace {
    /// A trace that records, or one that does not.
    pub fn new(wanted: bool) -> Trace {
        Trace { steps: wanted.then(|| (Instant::now(), Vec::new())) }
    }

    /// True if it records, and when things happened matters.
    pub fn records(&self) -> bool {
        self.steps.is_some()
    }

    /// Records a step; `step` is called only if the trace records.
    pub fn note<T: Display>(&mut self, step: impl FnOnce() -> T) {
        if let Some((start, steps)) = &mut self.steps {
            let elapsed_us = start.elapsed().as_micros();
            steps.push(format!("{elapsed_us:>7} µs  {}", step()));
        }
    }

    /// The recorded steps, if the trace records.
    pub fn into_steps(self) -> Option<Vec<String>> {
        self.steps.map(|(_, steps)| steps)
    }
}

pub(super) fn describe_apply(answer: &ApplyAnswer) -> String {
    match answer {
        ApplyAnswer::Applied => "applied".to_owned(),
        ApplyAnswer::Behind(stamp) => format!("behind, has stamp {stamp}"),
        ApplyAnswer::Failed(failure) => failure.to_string(),
    }
}

pub(super) fn describe_hint(outcome: &Result<(), Failure>) -> String {
    match outcome {
        Ok(()) => "kept".to_owned(),
        Err(failure) => format!("not kept, {failure}"),
    }
}

pub(super) fn describe_read(answer: &ReadAnswer) -> String {
    match answer {
        ReadAnswer::Cells { cells, .. } => match cells.iter().map(|(_, cell)| cell.stamp).max() {
            Some(stamp) => format!("has stamp {stamp}"),
            None => "has nothing".to_owned(),
        },
        ReadAnswer::Failed(failure) => failure.to_string(),
    }
}
