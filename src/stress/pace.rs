//! When the next operation begins.
//!
//! Closed loop: a caller begins the next operation when it has the answer to the last. A cluster that stalls is then
//! asked less, and only the few operations under way see the stall.
//!
//! Open loop (`--rate`): operation n is due at a moment that was fixed before the first byte was sent, and its latency
//! counts from there. A stall delays every operation that falls due meanwhile, and each shows it ("coordinated
//! omission" is avoided). Due moments lie on a grid of [`TICK`]: a thread of its own releases all that are due at each
//! point, which is finer than the runtime's timers and costs little.
//!
//! Operations that were due but could not be begun by the end are counted apart ([`Next::NeverBegun`]), with the time
//! they had waited: leaving them out would hide the worst.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::options::End;

/// Distance of the moments at which operations fall due.
const TICK: Duration = Duration::from_micros(250);

/// How long after the end operations that were due before it are still begun.
const GRACE: Duration = Duration::from_secs(1);

/// The clockwork of one phase, for all callers.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    /// What begins, or is due, earlier is not counted.
    measure_from: Instant,
    until: Option<Instant>,
    /// Operations to count.
    operations: u64,
    tickets: AtomicU64,
    open: Option<OpenLoop>,
    stopped: AtomicBool,
}

#[derive(Debug)]
struct OpenLoop {
    rate: f64,
    /// Operations due before `measure_from`.
    warm_up: u64,
    /// A permit for each operation that is due and not begun.
    due: Semaphore,
    callers: usize,
}

/// What a caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One operation.
    Begin {
        /// From here its latency counts.
        due: Instant,
        /// False during warm-up.
        counted: bool,
    },
    /// None: it was due, and the end has come first.
    NeverBegun {
        /// How long it had been waiting by then, at least.
        waited: Duration,
    },
    /// None; this caller is done.
    Done,
}

impl Pace {
    /// A phase that starts now.
    pub fn new(rate: Option<f64>, warm_up: Duration, end: End, callers: usize) -> Arc<Pace> {
        let start = Instant::now();
        let measure_from = start + warm_up;
        let open = rate.map(|rate| OpenLoop {
            rate,
            warm_up: (warm_up.as_secs_f64() * rate).ceil() as u64,
            due: Semaphore::new(0),
            callers,
        });
        let (until, operations) = match end {
            End::After(duration) => (Some(measure_from + duration), u64::MAX),
            End::Operations(operations) => (None, operations),
        };
        Arc::new(Pace {
            start,
            measure_from,
            until,
            operations,
            tickets: AtomicU64::new(0),
            open,
            stopped: AtomicBool::new(false),
        })
    }

    /// When it began.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// When counting begins.
    pub fn measure_from(&self) -> Instant {
        self.measure_from
    }

    /// Callers begin nothing any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(open) = &self.open {
            open.due.add_permits(open.callers);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Waits until the caller's next operation may begin. `now` is the present, which the caller has just looked up.
    pub async fn next(&self, now: Instant) -> Next {
        match &self.open {
            None => self.next_closed(now),
            Some(open) => self.next_open(open).await,
        }
    }

    fn next_closed(&self, now: Instant) -> Next {
        let counted = now >= self.measure_from;
        if self.is_stopped() || self.until.is_some_and(|until| now >= until) {
            return Next::Done;
        }
        if counted
            && self.operations != u64::MAX
            && self.tickets.fetch_add(1, Ordering::Relaxed) >= self.operations
        {
            return Next::Done;
        }
        Next::Begin { due: now, counted }
    }

    async fn next_open(&self, open: &OpenLoop) -> Next {
        open.due.acquire().await.expect("the semaphore is never closed").forget();
        let number = self.tickets.fetch_add(1, Ordering::Relaxed);
        if self.is_stopped() || self.is_last(open, number) {
            return Next::Done;
        }
        let (due, counted) = (self.due(open, number), number >= open.warm_up);
        match self.until {
            Some(until) if Instant::now() >= until + GRACE => {
                Next::NeverBegun { waited: until + GRACE - due }
            }
            _ => Next::Begin { due, counted },
        }
    }

    /// When operation `number` is due: at the first point of the grid not before its share of the rate.
    fn due(&self, open: &OpenLoop, number: u64) -> Instant {
        let exact = Duration::from_secs_f64(number as f64 / open.rate);
        let ticks = exact.as_nanos().div_ceil(TICK.as_nanos());
        self.start + Duration::from_nanos((ticks * TICK.as_nanos()) as u64)
    }

    /// True for the first operation that is not to be done, and all after it.
    fn is_last(&self, open: &OpenLoop, number: u64) -> bool {
        number >= open.warm_up.saturating_add(self.operations)
            || self.until.is_some_and(|until| self.due(open, number) >= until)
    }

    /// Starts the thread that releases what falls due. It ends by itself, or soon after [`Pace::stop`].
    pub fn start_releasing(self: &Arc<Self>) -> std::io::Result<()> {
        if self.open.is_some() {
            let pace = self.clone();
            thread::Builder::new().name("pace".to_owned()).spawn(move || pace.release_all())?;
        }
        Ok(())
    }

    fn release_all(&self) {
        let Some(open) = &self.open else { return };
        let mut released = 0;
        while !self.is_stopped() && !self.is_last(open, released) {
            let (now, first) = (Instant::now(), released);
            while self.due(open, released) <= now && !self.is_last(open, released) {
                released += 1;
            }
            open.due.add_permits((released - first) as usize);
            let wait = self.due(open, released).saturating_duration_since(Instant::now());
            thread::sleep(wait.min(Duration::from_millis(100))); // so that a stop is soon seen
        }
        open.due.add_permits(open.callers); // each hears that it is done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn a_closed_loop_counts_after_the_warm_up_and_until_the_end() {
        let pace = Pace::new(None, seconds(2), End::After(seconds(3)), 1);
        for (after, next) in [(0, Some(false)), (1, Some(false)), (2, Some(true)), (4, Some(true)), (5, None)]
        {
            let now = pace.start() + seconds(after);
            let expected = next.map_or(Next::Done, |counted| Next::Begin { due: now, counted });
            assert_eq!(pace.next(now).await, expected);
        }
    }

    #[tokio::test]
    async fn a_number_of_operations_counts_only_those_after_the_warm_up() {
        let pace = Pace::new(None, seconds(1), End::Operations(2), 1);
        let mut counted = 0;
        for _ in 0..5 {
            assert!(matches!(pace.next(pace.start()).await, Next::Begin { counted: false, .. }));
        }
        while let Next::Begin { counted: true, .. } = pace.next(pace.measure_from()).await {
            counted += 1;
        }
        assert_eq!(counted, 2);
    }

    #[tokio::test]
    async fn due_moments_are_fixed_and_a_late_caller_is_told_the_one_it_missed() {
        let pace = Pace::new(Some(2_000.0), Duration::ZERO, End::Operations(100), 1);
        pace.start_releasing().unwrap();
        let mut all = Vec::new();
        while let Next::Begin { due, counted } = pace.next(Instant::now()).await {
            assert!(counted);
            assert!(due <= Instant::now(), "nothing begins before it is due");
            all.push(due - pace.start());
            if all.len() == 10 {
                tokio::time::sleep(Duration::from_millis(30)).await; // a stall moves no due moment
            }
        }
        let expected: Vec<Duration> = (0..100).map(|number| 2 * TICK * number).collect();
        assert_eq!(all, expected);
    }

    #[tokio::test]
    async fn what_could_not_begin_in_time_is_counted_with_its_wait() {
        let pace = Pace::new(Some(1_000.0), Duration::ZERO, End::After(Duration::from_millis(20)), 1);
        pace.start_releasing().unwrap();
        let grace_is_over = pace.until.unwrap() + GRACE;
        tokio::time::sleep_until(grace_is_over).await;
        let mut waits = Vec::new();
        while let Next::NeverBegun { waited } = pace.next(Instant::now()).await {
            waits.push(waited);
        }
        assert_eq!(waits.len(), 20);
        assert!(waits.windows(2).all(|pair| pair[0] > pair[1]));
        assert_eq!(waits[0], grace_is_over - pace.start());
    }
}
