//! A load of puts and gets, as many at once as asked for, and what it cost: operations a second and percentiles.
//!
//! Each connection is a client of its own that talks to one server; each has as many calls under way as asked for.
//! Keys are drawn at random from a fixed set, so gets find what an earlier run has put.
//!
//! Not here: how a request travels (`client`).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answer::NodeId;
use crate::client::{Client, ClientError, ClientOptions};
use crate::nodes::Nodes;
use crate::thrift::chord::{GetRequest, Level, PutRequest};

/// What to do to the cluster.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connections, spread over the servers.
    pub connections: usize,
    /// Calls under way at once on each.
    pub outstanding: usize,
    /// How long to measure.
    pub duration: Duration,
    /// Of 100 operations, how many are puts; the others are gets.
    pub put_percent: u8,
    /// Of every operation.
    pub level: Level,
    /// How many different keys, of 16 bytes each.
    pub keys: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Put every key once, in order, instead of drawing at random for a time.
    pub fill: bool,
    /// Decides keys and kinds.
    pub seed: u64,
}

/// What a load came to.
pub struct Report {
    elapsed: Duration,
    puts: Histogram<u64>,
    gets: Histogram<u64>,
    not_found: u64,
    errors: Vec<(String, u64)>,
    durability: String,
}

/// What one caller saw.
struct Tally {
    puts: Histogram<u64>,
    gets: Histogram<u64>,
    not_found: u64,
    errors: Vec<(String, u64)>,
}

/// Longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

/// Kinds of error told apart; further ones are counted together.
const ERROR_KINDS_MAX: usize = 10;

impl Load {
    /// Runs the load against the servers of `nodes` that can be reached.
    pub async fn run(self, nodes: &Nodes) -> anyhow::Result<Report> {
        let durability = Client::new(nodes.clone(), ClientOptions::default()).describe().await?.durability;
        let start = Instant::now();
        let load = Arc::new(self);
        let mut callers = JoinSet::new();
        for connection in 0..load.connections {
            let node = NodeId((connection % nodes.len()) as u32);
            let client = Client::new(nodes.clone(), ClientOptions::default()).pin(node);
            for caller in 0..load.outstanding {
                let number = (connection * load.outstanding + caller) as u64;
                callers.spawn(load.clone().call(client.clone(), number, start + load.duration));
            }
        }
        let mut all = Tally::new();
        while let Some(tally) = callers.join_next().await {
            all.add(&tally?);
        }
        Ok(Report {
            elapsed: start.elapsed(),
            puts: all.puts,
            gets: all.gets,
            not_found: all.not_found,
            errors: all.errors,
            durability: durability.unwrap_or_default(),
        })
    }

    /// One caller: one call after the other until the end.
    async fn call(self: Arc<Self>, client: Client, number: u64, end: Instant) -> Tally {
        let mut random = fastrand::Rng::with_seed(self.seed.wrapping_add(number));
        let mut tally = Tally::new();
        let callers = (self.connections * self.outstanding) as u64;
        let mut next = number;
        loop {
            let began = Instant::now();
            let done = if self.fill { next >= self.keys } else { began >= end };
            if done {
                return tally;
            }
            let key = if self.fill { next } else { random.u64(..self.keys) };
            next += callers;
            if self.fill || random.u8(..100) < self.put_percent {
                let outcome = self.put(&client, key, &mut random).await;
                tally.put(began.elapsed(), outcome);
            } else {
                let request = GetRequest::new(key_bytes(key), self.level, None);
                let outcome = client.get(&request).await.map(|got| got.value.is_some());
                tally.get(began.elapsed(), outcome);
            }
        }
    }

    async fn put(&self, client: &Client, key: u64, random: &mut fastrand::Rng) -> Result<(), ClientError> {
        let mut value = vec![0; self.value_bytes];
        random.fill(&mut value);
        client.put(&PutRequest::new(key_bytes(key), value, self.level, None, None, None)).await.map(|_| ())
    }
}

/// 16 bytes, spread over the whole ring: the bytes of a byte-ordered partitioner decide the server.
fn key_bytes(number: u64) -> Vec<u8> {
    xxhash_rust::xxh3::xxh3_128(&number.to_be_bytes()).to_be_bytes().to_vec()
}

impl Tally {
    fn new() -> Tally {
        let histogram =
            || Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("constant bounds are possible");
        Tally { puts: histogram(), gets: histogram(), not_found: 0, errors: Vec::new() }
    }

    fn put(&mut self, took: Duration, outcome: Result<(), ClientError>) {
        match outcome {
            Ok(()) => self.puts.saturating_record(took.as_micros() as u64),
            Err(error) => self.error(&error),
        }
    }

    fn get(&mut self, took: Duration, outcome: Result<bool, ClientError>) {
        match outcome {
            Ok(found) => {
                self.gets.saturating_record(took.as_micros() as u64);
                self.not_found += u64::from(!found);
            }
            Err(error) => self.error(&error),
        }
    }

    fn error(&mut self, error: &ClientError) {
        self.count_error(error.to_string(), 1);
    }

    fn count_error(&mut self, text: String, times: u64) {
        let kinds = self.errors.len();
        match self.errors.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += times,
            None if kinds < ERROR_KINDS_MAX => self.errors.push((text, times)),
            None => self.errors[ERROR_KINDS_MAX - 1].1 += times,
        }
    }

    fn add(&mut self, other: &Tally) {
        self.puts.add(&other.puts).expect("equal bounds");
        self.gets.add(&other.gets).expect("equal bounds");
        self.not_found += other.not_found;
        for (text, times) in &other.errors {
            self.count_error(text.clone(), *times);
        }
    }
}

impl Report {
    /// True if every operation succeeded.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// As a person reads it.
    pub fn to_text(&self) -> String {
        let mut text = format!("{:.1} s, durability {}\n", self.elapsed.as_secs_f64(), self.durability);
        for (kind, latencies) in [("put", &self.puts), ("get", &self.gets)] {
            if latencies.is_empty() {
                continue;
            }
            let rate = latencies.len() as f64 / self.elapsed.as_secs_f64();
            let ms = |percent: f64| latencies.value_at_percentile(percent) as f64 / 1000.0;
            writeln!(
                text,
                "{kind}: {} operations, {rate:.0} a second; ms: mean {:.2}, p50 {:.2}, p95 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
                latencies.len(),
                latencies.mean() / 1000.0,
                ms(50.0),
                ms(95.0),
                ms(99.0),
                ms(99.9),
                latencies.max() as f64 / 1000.0,
            )
            .expect("writing to memory cannot fail");
        }
        if self.not_found > 0 {
            writeln!(text, "gets that found nothing: {}", self.not_found)
                .expect("writing to memory cannot fail");
        }
        for (error, times) in &self.errors {
            writeln!(text, "{times} errors: {error}").expect("writing to memory cannot fail");
        }
        text
    }
}
