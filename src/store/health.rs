//! Why the store takes no writes at the moment, if it does not.

use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Mutex};

/// What is wrong, if anything.
#[derive(Default)]
pub(super) struct Health {
    reasons: Mutex<Reasons>,
    /// True once `reasons.latched` is there: asked for with every write.
    latched: AtomicBool,
}

#[derive(Default)]
struct Reasons {
    /// No more writes until a restart.
    latched: Option<Arc<str>>,
    /// Writes are refused until this has passed.
    log: Option<Arc<str>>,
    /// The flush is tried again and again; writes go on while the memtable has room.
    flush: Option<Arc<str>>,
}

impl Health {
    /// Why writes are refused.
    pub fn not_writable(&self) -> Option<Arc<str>> {
        let reasons = self.reasons.lock().expect("no panic while it is held");
        reasons.latched.clone().or_else(|| reasons.log.clone())
    }

    /// Why writes are refused until a restart.
    pub fn latched(&self) -> Option<Arc<str>> {
        if !self.latched.load(Atomic::Acquire) {
            return None;
        }
        self.reasons.lock().expect("no panic while it is held").latched.clone()
    }

    /// No more writes until a restart. True if that is news; the first reason stays.
    pub fn latch(&self, reason: &str) -> bool {
        let mut reasons = self.reasons.lock().expect("no panic while it is held");
        let news = reasons.latched.is_none();
        reasons.latched.get_or_insert_with(|| reason.into());
        self.latched.store(true, Atomic::Release);
        news
    }

    pub fn log_fails(&self, reason: &str) {
        self.reasons.lock().expect("no panic while it is held").log = Some(reason.into());
    }

    pub fn log_works(&self) {
        self.reasons.lock().expect("no panic while it is held").log = None;
    }

    /// True if that is news.
    pub fn flush_fails(&self, reason: &str) -> bool {
        self.reasons.lock().expect("no panic while it is held").flush.replace(reason.into()).is_none()
    }

    pub fn flush_works(&self) {
        self.reasons.lock().expect("no panic while it is held").flush = None;
    }

    /// Why the flush makes no progress.
    pub fn flush_trouble(&self) -> Option<Arc<str>> {
        self.reasons.lock().expect("no panic while it is held").flush.clone()
    }
}
