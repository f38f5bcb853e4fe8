//! What happened in a run, in order: always as one number, on request as lines that a person can read.

use std::sync::{Arc, Mutex};

use tetrachord::answer::NodeId;
use tokio::time::Instant;

/// Shared by everything in one simulation.
#[derive(Clone)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
    start: Instant,
    readable: bool,
}

struct Inner {
    sum: u64,
    events: u64,
    lines: Vec<String>,
}

impl Trace {
    /// Must be called on the runtime of the simulation, whose time it tells.
    pub fn new(readable: bool) -> Trace {
        let inner = Inner { sum: 0xcbf2_9ce4_8422_2325, events: 0, lines: Vec::new() };
        Trace { inner: Arc::new(Mutex::new(inner)), start: Instant::now(), readable }
    }

    /// Between two servers.
    pub fn note(&self, what: &str, from: NodeId, to: NodeId, more: u64, line: impl FnOnce() -> String) {
        self.add(what, u64::from(from.0) << 32 | u64::from(to.0), more, line);
    }

    /// Of a client; `more` stands for all that the line would tell.
    pub fn client(&self, client: u32, via: NodeId, more: u64, line: impl FnOnce() -> String) {
        self.add("client", u64::from(client) << 32 | u64::from(via.0), more, line);
    }

    /// Of anything else.
    pub fn say(&self, what: &str, line: impl FnOnce() -> String) {
        let line = line();
        let more = line.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        self.add(what, 0, more, || line);
    }

    fn add(&self, what: &str, who: u64, more: u64, line: impl FnOnce() -> String) {
        let at = self.start.elapsed();
        let mut inner = self.inner.lock().expect("one thread");
        inner.events += 1;
        let first = u64::from(what.as_bytes().first().copied().unwrap_or(0));
        for word in [at.as_micros() as u64, first, who, more] {
            inner.sum = (inner.sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        if self.readable {
            inner.lines.push(format!("{:>9.3} {}", at.as_secs_f64(), line()));
        }
    }

    /// Everything as one number: equal runs have equal numbers.
    pub fn sum(&self) -> u64 {
        self.inner.lock().expect("one thread").sum
    }

    /// The lines, if they were asked for.
    pub fn lines(&self) -> Vec<String> {
        self.inner.lock().expect("one thread").lines.clone()
    }
}
