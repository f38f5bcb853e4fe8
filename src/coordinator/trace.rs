//! What happened to one request, step by step, for whoever asked to see it (`trace on` in the console).

use std::fmt::Display;

use tokio::time::Instant;

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
