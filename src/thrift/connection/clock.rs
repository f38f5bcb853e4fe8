//! For how long a connection may wait for what: plain values that are asked at a time.
//!
//! Not here: the timer, and what becomes of a connection that is late.

use std::time::Duration;

use tokio::time::Instant;

/// How soon a connection looks again whether the budget has room.
const BUDGET_RETRY: Duration = Duration::from_millis(20);

/// What a connection waits for, and since when. Noted once a turn; the timer is moved only to make it earlier, and
/// looks again when it goes off too early.
pub(super) struct Clock {
    idle_timeout: Duration,
    half_message_timeout: Duration,
    /// Another server is to have greeted by then; `None`: one has, or it may be anybody's connection.
    pub greet_by: Option<Instant>,
    /// When the timer goes off.
    pub armed: Instant,
    /// Nothing is under way since.
    idle_since: Option<Instant>,
    /// The first byte of a message came then, and the last has not.
    half_since: Option<Instant>,
    /// Bytes that have left, since the connection began.
    pub bytes_sent: u64,
    /// At this time there were answers unsent, and they will have left when `bytes_sent` is this.
    unsent_since: Option<(Instant, u64)>,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Late {
    #[error("no greeting of a server within connect_timeout_ms")]
    Ungreeted,
    #[error("no message for longer than idle_timeout_s")]
    Idle,
    #[error("half a message, and no more of it within half_message_timeout_s")]
    HalfMessage,
    #[error("its answers were not taken within half_message_timeout_s")]
    Unsent,
}

impl Clock {
    pub fn new(now: Instant, idle_timeout: Duration, half_message_timeout: Duration) -> Clock {
        Clock {
            idle_timeout,
            half_message_timeout,
            greet_by: None,
            armed: now,
            idle_since: Some(now),
            half_since: None,
            bytes_sent: 0,
            unsent_since: None,
        }
    }

    pub fn message_ended(&mut self) {
        self.half_since = None;
    }

    /// At the end of a turn: is half a message there that nothing but its sender holds up, how many bytes are unsent,
    /// is nothing else under way?
    pub fn note(&mut self, now: Instant, half: bool, unsent: usize, idle: bool) {
        self.idle_since = idle.then_some(now);
        self.half_since = half.then(|| self.half_since.unwrap_or(now));
        let all = self.bytes_sent + unsent as u64;
        let still = self.unsent_since.filter(|(_, until)| *until > self.bytes_sent);
        self.unsent_since = (unsent > 0).then(|| still.unwrap_or((now, all)));
    }

    pub fn deadlines(&self) -> [(Late, Option<Instant>); 4] {
        let unsent_since = self.unsent_since.map(|(since, _)| since);
        [
            (Late::Ungreeted, self.greet_by),
            (Late::HalfMessage, self.half_since.map(|since| since + self.half_message_timeout)),
            (Late::Unsent, unsent_since.map(|since| since + self.half_message_timeout)),
            (Late::Idle, self.idle_since.map(|since| since + self.idle_timeout)),
        ]
    }

    pub fn late(&self, now: Instant) -> Option<Late> {
        self.deadlines().into_iter().find(|(_, at)| at.is_some_and(|at| at <= now)).map(|(late, _)| late)
    }

    /// When there is something to look at next: a deadline, or whether the budget has room again.
    pub fn wake_at(&self, now: Instant, starved: bool) -> Instant {
        let deadline = self.deadlines().into_iter().filter_map(|(_, at)| at).min();
        let deadline = deadline.unwrap_or(now + self.idle_timeout); // nothing is due
        if starved { deadline.min(now + BUDGET_RETRY) } else { deadline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(100);
    const HALF: Duration = Duration::from_secs(10);

    #[test]
    fn a_clock_knows_what_is_late() {
        let start = Instant::now();
        let mut clock = Clock::new(start, IDLE, HALF);
        assert_eq!(clock.late(start + IDLE - HALF), None);
        assert_eq!(clock.late(start + IDLE), Some(Late::Idle));
        clock.note(start + IDLE, false, 0, false); // a call is under way: the service has its own deadline
        assert_eq!(clock.late(start + 5 * IDLE), None);
        assert_eq!(clock.wake_at(start + 5 * IDLE, false), start + 6 * IDLE, "the timer does not spin");
    }

    #[test]
    fn the_first_byte_of_a_message_starts_its_time_and_later_ones_do_not() {
        let start = Instant::now();
        let mut clock = Clock::new(start, IDLE, HALF);
        for dribble in 0..10 {
            clock.note(start + HALF * dribble / 10, true, 0, false);
        }
        assert_eq!(clock.late(start + HALF), Some(Late::HalfMessage));
        clock.message_ended();
        clock.note(start + HALF, true, 0, false); // the next one
        assert_eq!(clock.late(start + HALF), None);
    }

    #[test]
    fn answers_have_to_be_taken_within_their_time_and_more_of_them_do_not_prolong_it() {
        let start = Instant::now();
        let mut clock = Clock::new(start, IDLE, HALF);
        clock.note(start, false, 1_000, false);
        clock.bytes_sent += 999;
        clock.note(start + HALF / 2, false, 5_000, false);
        assert_eq!(clock.late(start + HALF), Some(Late::Unsent));
        clock.bytes_sent += 1; // the thousand have left: those after them have their own time
        clock.note(start + HALF, false, 4_999, false);
        assert_eq!(clock.late(start + HALF), None);
        assert_eq!(clock.late(start + 2 * HALF), Some(Late::Unsent));
    }
}
