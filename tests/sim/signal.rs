//! Something that happens once, and whoever waits for it, woken in the order in which they came. (tokio's `watch` wakes
//! its receivers in an order of its own, by chance: no two runs would be the same.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Clones are the same signal.
#[derive(Clone, Default)]
pub struct Signal {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    given: AtomicBool,
    waiting: Notify,
}

impl Signal {
    pub fn give(&self) {
        self.inner.given.store(true, Ordering::Relaxed);
        self.inner.waiting.notify_waiters();
    }

    pub fn is_given(&self) -> bool {
        self.inner.given.load(Ordering::Relaxed)
    }

    pub async fn given(&self) {
        let waiting = self.inner.waiting.notified();
        if !self.inner.given.load(Ordering::Relaxed) {
            waiting.await;
        }
    }
}
