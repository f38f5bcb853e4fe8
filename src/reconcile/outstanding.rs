//! The stamps of the writes that this server coordinates and has not settled: below the oldest of them, and below what
//! its clock makes next, it sends nothing any more, except with stamps that clients choose from now on.
//!
//! A stamp is made and noted under one lock, so that no promise falls between the two.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::cell::Stamp;
use crate::clock::Clock;

/// Shared by whoever coordinates and whoever promises.
pub struct Outstanding {
    clock: Arc<Clock>,
    /// How many writes carry each stamp.
    stamps: Mutex<BTreeMap<Stamp, u32>>,
}

/// A write that is not settled. Dropped when nothing of it is under way any more.
pub struct Unsettled {
    outstanding: Arc<Outstanding>,
    stamp: Stamp,
}

impl Outstanding {
    /// None yet.
    pub fn new(clock: Arc<Clock>) -> Arc<Outstanding> {
        Arc::new(Outstanding { clock, stamps: Mutex::default() })
    }

    /// Begins a write with a stamp of the clock.
    pub fn begin(self: &Arc<Self>) -> Unsettled {
        self.hold(|clock| clock.stamp())
    }

    /// Begins a write with a stamp of the clock above this one.
    pub fn begin_above(self: &Arc<Self>, above: Stamp) -> Unsettled {
        self.hold(|clock| clock.stamp_above(above))
    }

    /// Begins a write with a stamp that the client chose.
    pub fn begin_given(self: &Arc<Self>, stamp: Stamp) -> Unsettled {
        self.hold(|clock| {
            clock.observe(stamp);
            stamp
        })
    }

    /// No write with a smaller stamp of this server's clock is under way, or ever will be.
    pub fn oldest(&self) -> Stamp {
        let stamps = self.stamps.lock().expect("no panic while it is held");
        let next = Stamp(self.clock.latest().0.saturating_add(1));
        stamps.keys().next().copied().map_or(next, |oldest| oldest.min(next))
    }

    fn hold(self: &Arc<Self>, stamp: impl FnOnce(&Clock) -> Stamp) -> Unsettled {
        let mut stamps = self.stamps.lock().expect("no panic while it is held");
        let stamp = stamp(&self.clock);
        *stamps.entry(stamp).or_default() += 1;
        drop(stamps);
        Unsettled { outstanding: self.clone(), stamp }
    }
}

impl Unsettled {
    /// Of the write.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        let mut stamps = self.outstanding.stamps.lock().expect("no panic while it is held");
        let writes = stamps.get_mut(&self.stamp).expect("it was noted when it began");
        *writes -= 1;
        if *writes == 0 {
            stamps.remove(&self.stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_waits_for_the_oldest_write() {
        let clock = Arc::new(Clock::with_wall(|| 100));
        let outstanding = Outstanding::new(clock.clone());
        clock.observe(Stamp(100));
        assert_eq!(outstanding.oldest(), Stamp(101));
        let first = outstanding.begin();
        let given = outstanding.begin_given(Stamp(7));
        let again = outstanding.begin_given(Stamp(7));
        let later = outstanding.begin_above(Stamp(500));
        assert_eq!((first.stamp(), later.stamp()), (Stamp(101), Stamp(501)));
        assert_eq!(outstanding.oldest(), Stamp(7));
        drop(given);
        assert_eq!(outstanding.oldest(), Stamp(7));
        drop(again);
        assert_eq!(outstanding.oldest(), Stamp(101));
        drop(first);
        assert_eq!(outstanding.oldest(), Stamp(501));
        drop(later);
        assert_eq!(outstanding.oldest(), Stamp(502));
    }
}
