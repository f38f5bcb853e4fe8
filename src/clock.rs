//! The only wall clock, and the stamps made from it.
//!
//! A node's stamps come from a hybrid logical clock (Kulkarni et al., 2014, folded into one number):
//!
//!   stamp = max(wall microseconds, last stamp made or seen + 1)
//!
//! so no two mutations of one coordinator share a stamp, a wall clock that jumps back never moves stamps back, and a
//! node that hears of a newer stamp makes newer ones from then on. Two coordinators that never heard of each other
//! are not ordered by this; the *behind* answer is for that (`coordinator`).
//!
//! Timers and deadlines do not come from here but from `tokio::time`.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cell::Stamp;

/// Microseconds since 1970 (UTC) by the machine's clock.
pub fn machine_wall_us() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX)
}

/// How far ahead of the own wall clock another server's is still believed: a day. Clocks that are merely wrong differ
/// by less, and stamps that far ahead pass.
const TOLD_AHEAD_MAX_US: i64 = 24 * 3600 * 1_000_000;

/// A node's clock.
pub struct Clock {
    wall: Box<dyn Fn() -> i64 + Send + Sync>,
    /// The largest stamp made or seen.
    last: AtomicI64,
}

impl Clock {
    /// The machine's clock, shifted by `offset_ms` milliseconds (a setting for drills; 0 in production).
    pub fn machine(offset_ms: i64) -> Clock {
        Clock::with_wall(move || machine_wall_us().saturating_add(offset_ms.saturating_mul(1000)))
    }

    /// A clock over another source of wall microseconds since 1970, for simulations and tests.
    pub fn with_wall(wall: impl Fn() -> i64 + Send + Sync + 'static) -> Clock {
        Clock { wall: Box::new(wall), last: AtomicI64::new(0) }
    }

    /// Microseconds since 1970 by this node's wall clock. May jump; orders nothing.
    pub fn wall_us(&self) -> i64 {
        (self.wall)()
    }

    /// Seconds since 1970 by this node's wall clock: what decides whether a value has expired.
    pub fn wall_s(&self) -> i64 {
        self.wall_us().div_euclid(1_000_000)
    }

    /// A stamp larger than every stamp made or observed before.
    pub fn stamp(&self) -> Stamp {
        let wall = self.wall_us();
        let next = |last: i64| wall.max(last.saturating_add(1));
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(next(last)));
        Stamp(next(last.expect("the update always yields a value")))
    }

    /// Takes note of a stamp made elsewhere: later stamps are larger.
    pub fn observe(&self, stamp: Stamp) {
        self.last.fetch_max(stamp.0, Ordering::AcqRel);
    }

    /// Takes note of what another server says its clock is, if that is believable: one wild clock must not drag every
    /// other along for good.
    pub fn observe_told(&self, stamp: Stamp) {
        if stamp.0 <= self.wall_us().saturating_add(TOLD_AHEAD_MAX_US) {
            self.observe(stamp);
        }
    }

    /// Takes note of the largest stamp found on this server's own disk, unless it is wild: more than a day ahead of
    /// both the wall clock and `earlier_wall_us`, what that clock was at an earlier start. Says whether it did.
    pub fn observe_stored(&self, stamp: Stamp, earlier_wall_us: i64) -> bool {
        let believable = stamp.0 <= self.wall_us().max(earlier_wall_us).saturating_add(TOLD_AHEAD_MAX_US);
        if believable {
            self.observe(stamp);
        }
        believable
    }

    /// A stamp larger than every stamp made or observed before, and than `above`, which need not be believable.
    pub fn stamp_above(&self, above: Stamp) -> Stamp {
        self.observe_told(above);
        self.stamp().max(Stamp(above.0.saturating_add(1)))
    }

    /// The largest stamp made or seen so far; what a node tells others of its clock.
    pub fn latest(&self) -> Stamp {
        Stamp(self.last.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #[test]
        fn stamps_rise_whatever_the_wall_does_and_pass_all_that_was_seen(
            steps in prop::collection::vec((any::<i32>(), prop::option::of(any::<i32>())), 1..50)
        ) {
            let wall = Arc::new(AtomicI64::new(0));
            let source = wall.clone();
            let clock = Clock::with_wall(move || source.load(Ordering::Relaxed));
            let mut largest = Stamp(0);
            for (now, seen) in steps {
                wall.store(i64::from(now), Ordering::Relaxed);
                if let Some(seen) = seen {
                    clock.observe(Stamp(i64::from(seen)));
                    largest = largest.max(Stamp(i64::from(seen)));
                }
                let stamp = clock.stamp();
                prop_assert!(stamp > largest);
                prop_assert!(stamp.0 >= i64::from(now));
                largest = stamp;
            }
        }
    }

    #[test]
    fn stamps_of_many_threads_are_distinct() {
        let clock = Arc::new(Clock::machine(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let clock = clock.clone();
                std::thread::spawn(move || (0..5000).map(|_| clock.stamp()).collect::<Vec<_>>())
            })
            .collect();
        let mut all: Vec<Stamp> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let made = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), made);
    }

    #[test]
    fn a_wild_stamp_from_elsewhere_is_passed_but_does_not_drag_the_clock_along() {
        let clock = Clock::with_wall(|| 1_000);
        clock.observe_told(Stamp(i64::MAX));
        assert_eq!(clock.stamp(), Stamp(1_000));
        assert_eq!(clock.stamp_above(Stamp(i64::MAX - 5)), Stamp(i64::MAX - 4));
        assert_eq!(clock.stamp(), Stamp(1_002));
        clock.observe_told(Stamp(3_600_000_000));
        assert_eq!(clock.stamp(), Stamp(3_600_000_001));
    }

    #[test]
    fn an_offset_shifts_the_wall() {
        let ahead = Clock::machine(3_600_000).wall_us() - machine_wall_us();
        assert!((3_599_000_000..3_601_000_000).contains(&ahead));
    }
}
