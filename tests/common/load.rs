//! Writers that never pause, and what they were told.
//!
//! Every write has a key of its own, so what must be there afterwards is simple: each acknowledged pair. A write that
//! was refused or whose connection broke may or may not be there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Client, wait_until};

/// Key to value of every write that was acknowledged.
pub type Acknowledged = BTreeMap<Vec<u8>, Vec<u8>>;

/// Writers under way. Stops them when dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    writers: Vec<JoinHandle<Report>>,
}

/// What happened to the writes of one writer, or of all.
#[derive(Debug, Default)]
pub struct Report {
    /// What was acknowledged.
    pub acknowledged: Acknowledged,
    /// What the server said of each write that it refused or gave up.
    pub refused: Vec<String>,
    /// Writes whose connection broke, and connections that were refused.
    pub disconnected: usize,
    /// The longest time a writer went without an acknowledgement.
    pub longest_gap: Duration,
}

impl Load {
    /// One writer for each of these ports, each writing through that server.
    pub fn start(ports: &[u16], level: &'static str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let writers = ports.iter().enumerate().map(|(writer, &port)| {
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            std::thread::spawn(move || write(writer, port, level, &stop, &acknowledged))
        });
        let writers = writers.collect();
        Load { stop, acknowledged, writers }
    }

    /// Waits until `count` more writes have been acknowledged.
    pub fn wait_for_more(&self, count: usize) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + count;
        wait_until("writes are acknowledged", || self.acknowledged.load(Ordering::Relaxed) >= enough);
    }

    /// Ends the writers and returns what they were told.
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        for writer in self.writers.drain(..) {
            let report = writer.join().expect("a writer does not panic");
            all.acknowledged.extend(report.acknowledged);
            all.refused.extend(report.refused);
            all.disconnected += report.disconnected;
            all.longest_gap = all.longest_gap.max(report.longest_gap);
        }
        println!(
            "{} writes acknowledged, {} refused, {} disconnected, longest gap {:?}",
            all.acknowledged.len(),
            all.refused.len(),
            all.disconnected,
            all.longest_gap
        );
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}

fn write(writer: usize, port: u16, level: &str, stop: &AtomicBool, acknowledged: &AtomicUsize) -> Report {
    let mut report = Report::default();
    let mut client = None;
    let mut last = Instant::now();
    for number in 0usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let Some(connected) = client.as_mut() else {
            match Client::connect(port) {
                Ok(connected) => client = Some(connected),
                Err(_) => {
                    report.disconnected += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            continue;
        };
        let (key, value) = pair(writer, number);
        match connected.put(&key, &value, level) {
            Ok(_) => {
                report.longest_gap = report.longest_gap.max(last.elapsed());
                last = Instant::now();
                report.acknowledged.insert(key, value);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_refusal() => report.refused.push(error.to_string()),
            Err(_) => {
                report.disconnected += 1;
                client = None;
            }
        }
    }
    report.longest_gap = report.longest_gap.max(last.elapsed());
    report
}

/// The writer's n-th key, whose first byte goes round the ring, and a value that names it.
fn pair(writer: usize, number: usize) -> (Vec<u8>, Vec<u8>) {
    let mut key = vec![(number * 67 + writer * 31) as u8];
    key.extend_from_slice(format!("w{writer}-{number}").as_bytes());
    (key, format!("value of write {number} by writer {writer}").into_bytes())
}
