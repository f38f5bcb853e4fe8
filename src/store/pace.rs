//! How fast the flusher works, and whoever else can wait: no faster than they have to.
//!
//! A flush is not urgent until the next memtable is nearly full, a compaction not until the slots of sstables are, and
//! those who answer need the processors and the disk. So transactions are short, and between two of them the flusher
//! rests, as long as it is faster than that room fills. Once it falls behind, it stops resting, and transactions are
//! long, which costs the least: writes that find all room taken wait for it.
//!
//! What counts is how fast each was lately: however much there is to do, nothing is urgent once nobody writes.

use std::time::Duration;

use tokio::time::Instant;

/// How many times as long as a transaction took the flusher rests after it, as long as there is time: no more than a
/// twentieth of a processor is taken from those who answer.
const REST: u32 = 19;

/// The shortest rest, so that simulations rest too: there a transaction takes no time.
const REST_MIN: Duration = Duration::from_millis(1);

/// The longest rest: what took long took it waiting, for the disk or because the whole process stood still.
const REST_MAX: Duration = Duration::from_secs(1);

/// How often a resting flusher looks whether there still is time.
const LOOK: Duration = Duration::from_millis(10);

/// How full the room may be when the work is done. The rest is for what comes in between, such as a disk that gets
/// slower.
const FULL_WHEN_DONE: f64 = 0.7;

/// How long both are watched before older measurements are forgotten.
const LATELY: Duration = Duration::from_secs(1);

/// The pace of a flush or of a compaction.
pub(super) struct Pace {
    /// How it stood a moment ago, and when that was.
    before: Standing,
    at: Instant,
    rests_until: Option<Instant>,
}

/// How far the work has come, and how full the room is in which there must be place for what is written meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    /// Which part of the work is done, 0 to 1.
    pub done: f64,
    /// From 0 to 1, where writes wait, and a little more.
    pub full: f64,
}

impl Pace {
    /// For work that begins.
    pub fn new() -> Pace {
        let before = Standing { done: 0.0, full: 0.0 };
        Pace { before, at: Instant::now(), rests_until: None }
    }

    /// True if the work advances faster than the room fills.
    pub fn is_in_time(&mut self, now: Standing) -> bool {
        let in_time = is_in_time(self.before, now);
        if self.at.elapsed() >= LATELY || now.full < self.before.full {
            (self.before, self.at) = (now, Instant::now());
        }
        in_time
    }

    /// How long to rest before the next step; `None` if that is due, unless somebody is in a hurry.
    pub fn rest(&self) -> Option<Duration> {
        let rest = self.rests_until?.saturating_duration_since(Instant::now());
        (!rest.is_zero()).then_some(rest.min(LOOK))
    }

    /// A step was done that began then.
    pub fn stepped(&mut self, began: Instant) {
        self.rests_until = Some(Instant::now() + rest_after(began));
    }
}

/// How long to rest after a step that began then.
pub(super) fn rest_after(began: Instant) -> Duration {
    (began.elapsed() * REST).clamp(REST_MIN, REST_MAX)
}

/// True if, both going on as they did since `before`, the work will be done before the room is too full. Where it is
/// full nothing is written because writes wait.
fn is_in_time(before: Standing, now: Standing) -> bool {
    if now.full >= 1.0 {
        return false;
    }
    let (left, room) = (1.0 - before.done, FULL_WHEN_DONE - before.full);
    (now.full - before.full).max(0.0) * left <= (now.done - before.done) * room.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(done: f64, full: f64) -> Standing {
        Standing { done, full }
    }

    #[test]
    fn it_rests_only_while_it_is_ahead_of_what_is_written_meanwhile() {
        assert!(is_in_time(at(0.0, 0.0), at(0.01, 0.0)), "nobody writes");
        assert!(is_in_time(at(0.0, 0.0), at(0.6, 0.4)));
        assert!(!is_in_time(at(0.0, 0.0), at(0.5, 0.4)), "it would be too full with an eighth left");
        assert!(is_in_time(at(0.3, 0.6), at(0.3, 0.6)), "nobody writes any more");
        assert!(is_in_time(at(0.9, 0.6), at(0.96, 0.65)));
        assert!(!is_in_time(at(0.9, 0.6), at(0.92, 0.65)));
        assert!(
            !is_in_time(at(0.99, FULL_WHEN_DONE), at(0.995, 0.71)),
            "from here on every write hurries it"
        );
        assert!(is_in_time(at(0.2, 0.95), at(0.3, 0.95)), "however full it is");
        assert!(!is_in_time(at(0.2, 1.0), at(0.3, 1.0)), "writes wait");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_is_forgotten() {
        let mut pace = Pace::new();
        assert!(!pace.is_in_time(at(0.1, 0.5)), "much was written");
        tokio::time::advance(LATELY).await;
        assert!(!pace.is_in_time(at(0.1, 0.5)));
        assert!(pace.is_in_time(at(0.1, 0.5)), "and since then nothing");
        assert!(!pace.is_in_time(at(0.2, 0.6)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_is_some_times_as_long_as_the_step_was() {
        let mut pace = Pace::new();
        assert_eq!(pace.rest(), None);
        let began = Instant::now();
        tokio::time::advance(Duration::from_millis(3)).await;
        pace.stepped(began);
        assert_eq!(pace.rest(), Some(LOOK));
        tokio::time::advance(Duration::from_millis(56)).await;
        assert_eq!(pace.rest(), Some(Duration::from_millis(1)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(pace.rest(), None);
    }
}
