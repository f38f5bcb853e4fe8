//! What one connection, and all of them together, may take: the numbers, and the count of the bytes that they hold.
//!
//! Not here: what is done when a bound is met (the connection, `server`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::Config;

/// The bounds of all connections of one server, and the count of the bytes they hold.
#[derive(Debug)]
pub struct Limits {
    /// Connections at once, of anybody.
    pub connections_max: usize,
    /// Further ones at once, of other servers: whoever does not greet as one is refused. One more is closed at once.
    pub server_connections_max: usize,
    /// For a connection that only a server may have, to greet.
    pub greeting_timeout: Duration,
    /// Calls under way at once on a connection that is answered in order.
    pub calls_per_connection_max: usize,
    /// Calls under way at once on a connection that is not.
    pub peer_calls_max: usize,
    /// Bytes of one message.
    pub message_bytes_max: usize,
    /// Nested structs and containers of one message.
    pub message_depth_max: usize,
    /// Silence between two messages.
    pub idle_timeout: Duration,
    /// From the first to the last byte of a message, and for the other side to take an answer.
    pub half_message_timeout: Duration,
    /// For calls under way when the server stops; after it they are dropped.
    pub stop_timeout: Duration,
    /// What all connections hold together.
    pub buffered: Budget,
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Limits {
        Limits {
            connections_max: config.connections_max,
            server_connections_max: config.server_connections_max,
            greeting_timeout: config.connect_timeout(),
            calls_per_connection_max: config.calls_per_connection_max,
            peer_calls_max: config.peer_calls_max,
            message_bytes_max: config.message_bytes_max,
            message_depth_max: config.message_depth_max,
            idle_timeout: Duration::from_secs(config.idle_timeout_s),
            half_message_timeout: Duration::from_secs(config.half_message_timeout_s),
            stop_timeout: config.write_timeout().max(config.read_timeout()) + STOP_MARGIN,
            buffered: Budget::new(config.buffered_bytes_max),
        }
    }
}

/// What a call may take past its own deadline to be answered and sent.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// Bytes held by all connections: half-read messages and unsent answers.
///
/// Were it a plain bound, many halves of long messages could fill it, each waiting for another's room until all of
/// them time out. So one connection at a time may overdraw it, by one message, and then ends it; the next follows.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
    overdrawn: AtomicBool,
}

impl Budget {
    /// A budget of which nothing is used.
    pub fn new(bytes_max: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), bytes_max, overdrawn: AtomicBool::new(false) }
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A soft bound: connections of several threads may find the same room.
    pub(super) fn has_room_for(&self, more: usize) -> bool {
        self.used().saturating_add(more) <= self.bytes_max
    }
}

/// One connection's part of the budget; given back when it is dropped.
pub(super) struct Charge {
    pub(super) limits: Arc<Limits>,
    pub(super) bytes: usize,
    /// It is the one that may overdraw.
    pub(super) overdraws: bool,
}

impl Charge {
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes == self.bytes {
            return;
        }
        let used = &self.limits.buffered.used;
        used.fetch_add(bytes, Ordering::Relaxed);
        used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }

    pub(super) fn may_grow(&mut self, more: usize) -> bool {
        let budget = &self.limits.buffered;
        if !self.overdraws && !budget.has_room_for(more) {
            self.overdraws = !budget.overdrawn.swap(true, Ordering::Relaxed);
            return self.overdraws;
        }
        true
    }

    /// The long message has ended.
    pub(super) fn let_others_overdraw(&mut self) {
        if std::mem::take(&mut self.overdraws) {
            self.limits.buffered.overdrawn.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
        self.let_others_overdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_at_a_time_overdraws_the_budget() {
        let limits = Limits { buffered: Budget::new(100), ..Limits::from(&Config::default()) };
        let limits = Arc::new(limits);
        let charge = || Charge { limits: limits.clone(), bytes: 0, overdraws: false };
        let (mut first, mut second) = (charge(), charge());
        first.set(80);
        second.set(20);
        assert!(first.may_grow(50));
        assert!(first.may_grow(50), "and goes on with it");
        assert!(!second.may_grow(1));
        drop(first);
        assert_eq!(limits.buffered.used(), 20);
        assert!(second.may_grow(80), "there is room now");
        assert!(second.may_grow(81));
        second.let_others_overdraw();
        assert!(charge().may_grow(200));
    }
}
