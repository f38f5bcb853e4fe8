//! When the log's writer is woken it yields to threads that are ready to run, as long as that costs little.
//!
//! A thread that wakes up takes the processor from the one that runs, and on a busy machine that is the one about to
//! hand it more work: a server that reads a socket with twenty writes in it is stopped after the first. If the writer
//! goes after it, it finds all twenty and commits them together. Where no other thread is ready, yielding takes less
//! than a microsecond, so unlike a timer it never leaves a processor idle.
//!
//! It must not yield to a program that has nothing to do with the store and computes: that keeps the processor for
//! milliseconds, and each commit would wait for it. So once yields take long, there are none for a while. What a yield
//! does is up to the system (`sched_yield(2)`); this was measured with Linux 6.18 on two processors.

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

/// Three quarters of a millisecond for each of about 32 yields. Four servers and their load on two processors take 0.05
/// to 0.3; if programs that compute run beside them, one or two, it is 1.1 to 1.2.
const LATELY_MAX: Duration = Duration::from_millis(24);

/// A yield counts as no more than this: one may take long by chance.
const COUNTED_MAX: Duration = Duration::from_millis(4);

/// How long there are none then. Finding out again takes about 40 ms, and longer where a yield takes only a little too
/// long.
const PAUSE: Duration = Duration::from_secs(3);

/// Yields, unless that took long lately.
#[derive(Default)]
pub(super) struct Courtesy {
    /// The sum of what yields took, each weighing 31/32 of the next.
    lately: Duration,
    not_before: Option<Instant>,
}

impl Courtesy {
    /// Lets other threads have the processor, unless that took long lately.
    pub fn give_way(&mut self) {
        self.give_way_by(|| {
            let began = Instant::now();
            thread::yield_now();
            began.elapsed()
        });
    }

    /// `yield_now` tells how long it took.
    fn give_way_by(&mut self, yield_now: impl FnOnce() -> Duration) {
        if self.not_before.is_some_and(|then| Instant::now() < then) {
            return;
        }
        self.lately = self.lately * 31 / 32 + yield_now().min(COUNTED_MAX);
        if self.lately > LATELY_MAX {
            *self = Courtesy { lately: Duration::ZERO, not_before: Some(Instant::now() + PAUSE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of a thousand yields there are, if each takes so long.
    fn of_a_thousand(courtesy: &mut Courtesy, micros: u64) -> usize {
        let mut yields = 0;
        for _ in 0..1_000 {
            courtesy.give_way_by(|| {
                yields += 1;
                Duration::from_micros(micros)
            });
        }
        yields
    }

    #[tokio::test(start_paused = true)]
    async fn yields_go_on_while_they_are_short_and_one_may_be_long() {
        let mut courtesy = Courtesy::default();
        for _ in 0..10 {
            assert_eq!(of_a_thousand(&mut courtesy, 300), 1_000);
            courtesy.give_way_by(|| Duration::from_secs(1));
        }
        assert_eq!(of_a_thousand(&mut courtesy, 300), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn where_programs_compute_there_are_none_for_a_while() {
        let mut courtesy = Courtesy::default();
        assert_eq!(of_a_thousand(&mut courtesy, 1_100), 37);
        tokio::time::advance(PAUSE - Duration::from_millis(1)).await;
        assert_eq!(of_a_thousand(&mut courtesy, 0), 0, "not yet");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(of_a_thousand(&mut courtesy, 5_000), 7, "they still compute");
        tokio::time::advance(PAUSE).await;
        assert_eq!(of_a_thousand(&mut courtesy, 300), 1_000, "they have ended");
    }

    #[test]
    fn a_thread_yields() {
        let mut courtesy = Courtesy::default();
        (0..10).for_each(|_| courtesy.give_way());
        assert!(courtesy.lately > Duration::ZERO || courtesy.not_before.is_some(), "it was not counted");
    }
}
