//! How much of this server's time reconciliation takes: a small share while clients come, a larger one when they do
//! not.
//!
//! Work is done in steps of a millisecond or so and measured; after each, whoever works rests for as long as the share
//! asks. A server that is asked by another does not rest while that one waits: it says how long it wants to be left
//! alone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;

/// Requests in a second from which on clients count as coming.
const BUSY_REQUESTS_A_SECOND: f64 = 20.0;

/// Rests shorter than this are saved up: a timer has no finer ticks.
const REST_MIN: Duration = Duration::from_millis(2);

/// How often somebody who rests looks whether that is still right.
const REST_LOOK: Duration = Duration::from_millis(100);

/// The longest rest asked of another server at once; its calls have deadlines.
const REST_MAX: Duration = Duration::from_secs(1);

/// No share counts as smaller, or the work would never be done.
const SHARE_MIN: f64 = 0.001;

/// What work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// To find out whether replicas are equal.
    Look,
    /// To make them equal.
    Mend,
}

/// See the module head.
pub(super) struct Pace {
    look_busy: f64,
    mend_busy: f64,
    idle: f64,
    busy: AtomicBool,
    seen: Mutex<Option<(Instant, u64)>>,
    owed: Mutex<Duration>,
}

impl Pace {
    pub fn new(config: &Config) -> Pace {
        Pace {
            look_busy: config.reconcile_share_busy,
            mend_busy: config.reconcile_mend_share_busy,
            idle: config.reconcile_share_idle,
            busy: AtomicBool::new(false),
            seen: Mutex::default(),
            owed: Mutex::default(),
        }
    }

    /// Notes how many requests of clients were worked on so far. Called about once a second.
    pub fn note_requests(&self, requests: u64) {
        let now = Instant::now();
        let mut seen = self.seen.lock().expect("no panic while it is held");
        if let Some((at, before)) = seen.replace((now, requests)) {
            let seconds = (now - at).as_secs_f64().max(0.001);
            let rate = requests.saturating_sub(before) as f64 / seconds;
            self.busy.store(rate >= BUSY_REQUESTS_A_SECOND, Ordering::Relaxed);
        }
    }

    /// How long to rest after so much work.
    pub fn rest_after(&self, worked: Duration, work: Work) -> Duration {
        let share = match work {
            _ if !self.busy.load(Ordering::Relaxed) => self.idle,
            Work::Look => self.look_busy,
            Work::Mend => self.mend_busy,
        };
        worked.mul_f64((1.0 / share.max(SHARE_MIN) - 1.0).max(0.0))
    }

    /// Rests, once enough rest is owed, after so much work; what was spent waiting for others is no work. The rest ends
    /// early when the work turns out to be for something more urgent, or the last client goes.
    pub async fn rest_after_work(&self, worked: Duration, work: impl Fn() -> Work) {
        let rest = || self.rest_after(worked, work());
        let asked = rest();
        let due = {
            let mut owed = self.owed.lock().expect("no panic while it is held");
            *owed += asked;
            if *owed < REST_MIN { Duration::ZERO } else { std::mem::take(&mut *owed) }
        };
        if due.is_zero() {
            return tokio::task::yield_now().await;
        }
        let until = Instant::now() + due;
        while Instant::now() < until && rest() >= asked {
            tokio::time::sleep_until(until.min(Instant::now() + REST_LOOK)).await;
        }
    }

    /// How long another server should leave this one alone, in microseconds, after so much work.
    pub fn pause_us(&self, worked: Duration, work: Work) -> i64 {
        self.rest_after(worked, work).min(REST_MAX).as_micros() as i64
    }
}

/// The pause that another server asks for, as far as it is reasonable.
pub(super) fn pause(asked_us: Option<i64>) -> Duration {
    Duration::from_micros(asked_us.and_then(|us| u64::try_from(us).ok()).unwrap_or(0)).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_make_the_share_small() {
        let config = Config::default();
        let pace = Pace::new(&config);
        let worked = Duration::from_millis(10);
        let idle = pace.rest_after(worked, Work::Look);
        pace.note_requests(0);
        pace.note_requests(1_000);
        let busy = pace.rest_after(worked, Work::Look);
        assert!(busy > 5 * idle, "{busy:?} {idle:?}");
        assert!(pace.rest_after(worked, Work::Mend) < busy);
        tokio::time::sleep(Duration::from_millis(100)).await;
        pace.note_requests(1_001);
        assert_eq!(pace.rest_after(worked, Work::Look), idle);
        assert!(pace.pause_us(Duration::from_secs(1_000), Work::Look) <= 1_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_ends_when_the_work_is_for_something_more_urgent() {
        let pace = Pace::new(&Config::default());
        pace.note_requests(0);
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.note_requests(1_000_000);
        let (worked, began) = (Duration::from_millis(20), Instant::now());
        assert!(pace.rest_after(worked, Work::Look) > Duration::from_secs(5));
        let urgent = || if began.elapsed() < Duration::from_secs(1) { Work::Look } else { Work::Mend };
        pace.rest_after_work(worked, urgent).await;
        assert!(began.elapsed() <= Duration::from_secs(1) + REST_LOOK, "{:?}", began.elapsed());
    }
}
