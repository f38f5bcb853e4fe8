//! What a server counts: requests by kind and outcome, hints, repairs, batches, latencies.
//!
//! Counters are written from anywhere without a lock; latencies go into small histograms behind a lock held for
//! nanoseconds. Names are what `stats` on the wire and in the inspector show: `_us` are microseconds; bytes
//! have it in their name.
//!
//! Not here: states that somebody owns (queue depths, memory, hints held); their owners report them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

/// A number that only rises.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.add(1);
    }

    /// `more` more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long, or how large, something was: count, mean, percentiles and maximum since the start.
pub struct Distribution(Mutex<Histogram<u64>>);

/// Largest value told apart: an hour in microseconds, or 3.6 GB.
const DISTRIBUTION_MAX: u64 = 3_600_000_000;

impl Default for Distribution {
    fn default() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, DISTRIBUTION_MAX, 2).expect("constant bounds are possible");
        Distribution(Mutex::new(histogram))
    }
}

impl Distribution {
    /// Takes note of one value.
    pub fn record(&self, value: u64) {
        self.0.lock().expect("no panic while it is held").saturating_record(value.min(DISTRIBUTION_MAX));
    }

    /// Takes note of one duration, in microseconds.
    pub fn record_time(&self, took: Duration) {
        self.record(u64::try_from(took.as_micros()).unwrap_or(DISTRIBUTION_MAX));
    }

    /// The value below which `percent` of all lie, and a fresh start; `None`, and no fresh start, below `least` values.
    pub fn take_percentile(&self, percent: f64, least: u64) -> Option<u64> {
        let mut histogram = self.0.lock().expect("no panic while it is held");
        if histogram.len() < least {
            return None;
        }
        let value = histogram.value_at_percentile(percent);
        histogram.reset();
        Some(value)
    }

    fn report(&self, name: &str, unit: &str, values: &mut BTreeMap<String, i64>) {
        let histogram = self.0.lock().expect("no panic while it is held");
        let mut put = |what: &str, value: u64| values.insert(format!("{name}_{what}{unit}"), value as i64);
        put("mean", histogram.mean() as u64);
        for (what, percent) in [("p50", 50.0), ("p99", 99.0), ("p999", 99.9)] {
            put(what, histogram.value_at_percentile(percent));
        }
        put("max", histogram.max());
        values.insert(format!("{name}_count"), histogram.len() as i64);
    }
}

macro_rules! stats {
    (counters { $( #[doc = $cdoc:literal] $counter:ident )+ } times { $( #[doc = $tdoc:literal] $time:ident )+ } sizes { $( #[doc = $sdoc:literal] $size:ident )+ }) => {
        /// All that a server counts.
        #[derive(Default)]
        pub struct Stats {
            $( #[doc = $cdoc] pub $counter: Counter, )+
            $( #[doc = $tdoc] pub $time: Distribution, )+
            $( #[doc = $sdoc] pub $size: Distribution, )+
        }

        impl Stats {
            /// Every name with its value now.
            pub fn values(&self) -> BTreeMap<String, i64> {
                let mut values = BTreeMap::new();
                $( values.insert(stringify!($counter).to_owned(), self.$counter.get() as i64); )+
                $( self.$time.report(stringify!($time), "_us", &mut values); )+
                $( self.$size.report(stringify!($size), "", &mut values); )+
                values
            }
        }
    };
}

stats! {
    counters {
        /// Coordinated writes that met their level.
        writes_ok
        /// Coordinated writes refused because too few replicas were up.
        writes_unavailable
        /// Coordinated writes whose outcome is unknown.
        writes_timeout
        /// Coordinated writes refused because of load, or refused by every replica.
        writes_overloaded
        /// Writes sent once more with a newer stamp because replicas were ahead.
        writes_restamped
        /// Coordinated reads that met their level.
        reads_ok
        /// Coordinated reads refused because too few replicas were up.
        reads_unavailable
        /// Coordinated reads given up at their deadline.
        reads_timeout
        /// Coordinated reads refused because of load.
        reads_overloaded
        /// Reads that asked one replica more because an answer was slow.
        reads_speculated
        /// Requests refused because they were wrong.
        requests_invalid
        /// Replicas that were sent a newer version by a read.
        read_repairs
        /// Repairs that a replica did not acknowledge.
        read_repairs_failed
        /// Hints stored for absent or slow replicas.
        hints_stored
        /// Hints not stored: past the window, over the cap, or the log refused them.
        hints_dropped
        /// Hints acknowledged by their replica.
        hints_delivered
        /// Times the sums of a range were compared with those of another replica.
        reconcile_comparisons
        /// Passes through a range that ended early, because a replica did not answer or a store failed.
        reconcile_stopped
        /// Leaves, about a thousand cells each, in which replicas differed.
        reconcile_leaves_differing
        /// Cells sent to other replicas because they lacked them.
        reconcile_cells_sent
        /// Cells got from other replicas because this server lacked them.
        reconcile_cells_received
        /// Bytes of the cells sent.
        reconcile_bytes_sent
        /// Bytes of the cells received.
        reconcile_bytes_received
        /// Mutations stored by this server because reconciliation brought them.
        reconcile_cells_taken
        /// Times dead cells of a range were collected, counted by the replica that led.
        reconcile_collections
        /// Mutations of which cells were left out because they, or what replaced them, had been collected.
        mutations_covered
        /// Dead cells dropped from data.db.
        cells_collected
        /// Mutations stored by this server as a replica.
        mutations_applied
        /// Of those, how many found a newer version here; of what is no client's write, only in memory.
        mutations_behind
        /// Mutations this server refused as a replica (disk full, queue full).
        mutations_refused
        /// Slices read from this server as a replica.
        slices_read
        /// Slices for which memory was not enough: data.db, or what is kept of its cells, had to be asked.
        slices_read_base
        /// Transactions of the commit log.
        commits
        /// Transactions of the commit log that failed.
        commits_failed
        /// Transactions in which flushes and compactions wrote to data.db.
        flush_commits
        /// Write-ahead logs copied into log.db or data.db, with an fsync of each of the two files.
        checkpoints
        /// Memtables written to data.db.
        flushes
        /// Cells written to data.db.
        flushed_cells
        /// Times that the sstables of data.db were merged into its large table.
        compactions
        /// Connections accepted.
        connections_accepted
        /// Connections refused because there were too many; some were accepted in case they were a server's.
        connections_refused
        /// Connections closed because of broken or hostile bytes, silence or a stalled reader.
        connections_broken
        /// Connections to other servers opened.
        peer_connections
        /// Requests to other servers that failed.
        peer_calls_failed
    }
    times {
        /// Coordinated writes, from request to answer.
        write
        /// Coordinated reads, from request to answer.
        read
        /// Transactions of the commit log, fsync included.
        commit
        /// Memtables written to data.db, from freeze to forgetting the log.
        flush
        /// From when replicas of a range were found to differ until they were equal.
        reconcile_heal
    }
    sizes {
        /// Mutations in one transaction of the commit log.
        commit_batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_name_counters_and_percentiles() {
        let stats = Stats::default();
        stats.writes_ok.add(2);
        stats.write.record_time(Duration::from_millis(3));
        stats.write.record_time(Duration::from_secs(100_000)); // past the largest: counted as the largest
        let values = stats.values();
        assert_eq!(values["writes_ok"], 2);
        assert_eq!(values["write_count"], 2);
        assert!((2_900..3_100).contains(&values["write_p50_us"]));
        assert!(values["write_max_us"] >= 3_600_000_000 * 99 / 100);
        assert_eq!(values["commit_batch_p50"], 0);
    }
}
