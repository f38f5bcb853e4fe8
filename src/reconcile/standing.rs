//! Does this server hold all that it ever acknowledged? If not, its reads do not count until it has got it back.
//!
//! A quorum of reads meets a quorum of writes only while no replica forgets. A disk that was lost, or restored from an
//! older copy, forgets. So every server remembers of every other how much that one had logged, and tells it when they
//! meet: files that have logged less are older than they were. An empty directory of a server that others know is the
//! same case; a cluster that starts for the first time has nobody who remembers anything.
//!
//! Files have an incarnation, a number that rises whenever they were refilled, so that what was remembered of the files
//! before them is not held against them.
//!
//! New files are whole, and remembered by others, once their server has heard every other one: any of them might
//! remember more. So while one server of a new cluster was never started, nobody remembers anything, and a disk that is
//! lost then is not missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ring::Ring;

/// Names under which the store remembers.
pub(super) const INCARNATION: &str = "incarnation";
/// The incarnation that was known to lack nothing.
pub(super) const WHOLE: &str = "whole";

/// What files of a server have, or are remembered to have had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// 0: nothing is remembered.
    pub incarnation: i64,
    /// Rows logged.
    pub logged: i64,
}

impl Claim {
    /// True if files that claim this lack something of what others remember of them. `whole`: they were known to lack
    /// nothing.
    pub fn lacks(self, whole: bool, remembered: Claim) -> bool {
        if remembered.logged == 0 {
            return false; // there was nothing to lose
        }
        match remembered.incarnation.cmp(&self.incarnation) {
            std::cmp::Ordering::Greater => true,
            // Files that lacked something when they were last used may have logged more since than they lack.
            std::cmp::Ordering::Equal => !whole || remembered.logged > self.logged,
            std::cmp::Ordering::Less => !whole,
        }
    }

    /// What is remembered from now on of a server that claims `told`. Of one that is not whole nothing new: until it
    /// is, what it once had counts.
    pub fn updated(self, told: Claim, whole: bool) -> Claim {
        if whole { self.max(told) } else { self }
    }
}

/// The ranges whose reads this server may answer. Shared with whoever reads.
pub struct Standing {
    ring: Arc<Ring>,
    /// By index: it lacks something there.
    lacking: Vec<AtomicBool>,
    /// Nobody has been asked yet.
    unasked: AtomicBool,
    /// There is something to look at before a read is answered.
    any: AtomicBool,
}

impl Standing {
    /// It lacks nothing, as far as is known. `unasked`: that is not known before others have been asked.
    pub fn new(ring: Arc<Ring>, unasked: bool) -> Standing {
        let lacking = ring.ranges().iter().map(|_| AtomicBool::new(false)).collect();
        Standing { ring, lacking, unasked: AtomicBool::new(unasked), any: AtomicBool::new(unasked) }
    }

    /// True if this server holds all that it ever acknowledged of this partition's range.
    pub fn may_answer(&self, partition: &[u8]) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return true;
        }
        if self.unasked.load(Ordering::Acquire) {
            return false;
        }
        let range = self.ring.range_of(partition);
        let index = self.ring.ranges().iter().position(|each| each == range);
        index.is_none_or(|index| !self.is_lacking(index))
    }

    pub(super) fn is_lacking(&self, index: usize) -> bool {
        self.lacking[index].load(Ordering::Acquire)
    }

    /// Whoever is up has said what it remembers.
    pub(super) fn asked(&self) {
        self.unasked.store(false, Ordering::Release);
        self.look();
    }

    /// Whether there is something to look at before a read is answered.
    fn look(&self) {
        let lacks = || self.lacking.iter().any(|lacking| lacking.load(Ordering::Acquire));
        self.any.store(lacks() || self.unasked.load(Ordering::Acquire), Ordering::Release);
        if lacks() {
            self.any.store(true, Ordering::Release); // it was lost while this looked
        }
    }

    pub(super) fn lose_all(&self) {
        self.lacking.iter().for_each(|lacking| lacking.store(true, Ordering::Release));
        self.any.store(true, Ordering::Release);
    }

    /// It lacks nothing any more in a range. True if that was the last, of those that `mine` says are its own.
    pub(super) fn regained(&self, index: usize, mine: impl Fn(usize) -> bool) -> bool {
        if !self.lacking[index].swap(false, Ordering::AcqRel) {
            return false;
        }
        let left = (0..self.lacking.len()).any(|index| mine(index) && self.is_lacking(index));
        self.look();
        !left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(incarnation: i64, logged: i64) -> Claim {
        Claim { incarnation, logged }
    }

    #[test]
    fn older_files_are_recognised() {
        let remembered = claim(100, 50);
        for (told, whole, lacks) in [
            (claim(100, 50), true, false),
            (claim(100, 60), true, false),
            (claim(100, 49), true, true),  // restored from a copy
            (claim(100, 60), false, true), // from a copy, while it is being refilled
            (claim(90, 70), true, true),   // from a copy of files before these
            (claim(200, 0), false, true),  // an empty directory
            (claim(200, 70), false, true), // the same, while it is being refilled
            (claim(200, 70), true, false), // refilled
        ] {
            assert_eq!(told.lacks(whole, remembered), lacks, "{told:?} {whole}");
        }
        assert!(!claim(200, 0).lacks(false, Claim::default()), "the first start of a cluster");
        assert!(!claim(200, 0).lacks(false, claim(100, 0)), "it had nothing to lose");
    }

    #[test]
    fn what_is_remembered_does_not_shrink_until_all_is_back() {
        let remembered = claim(100, 50);
        assert_eq!(remembered.updated(claim(100, 40), true), remembered);
        assert_eq!(remembered.updated(claim(200, 40), false), remembered);
        assert_eq!(remembered.updated(claim(200, 40), true), claim(200, 40));
        assert_eq!(remembered.updated(claim(100, 60), true), claim(100, 60));
    }

    #[test]
    fn reads_count_again_range_by_range() {
        let standing = Standing::new(Arc::new(Ring::even(4, 3)), true);
        assert!(!standing.may_answer(&[137]), "the others may remember more than is here");
        standing.asked();
        assert!(standing.may_answer(&[137]));
        standing.lose_all();
        assert!(!standing.may_answer(&[137]));
        let mine = |index| index != 3;
        assert!(!standing.regained(2, mine));
        assert!(standing.may_answer(&[137]) && !standing.may_answer(&[0]));
        assert!(!standing.regained(0, mine));
        assert!(standing.regained(1, mine));
        assert!(standing.may_answer(&[0]));
    }
}
