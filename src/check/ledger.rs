//! What is known of the writes of one key: which stamp each has, and which is certainly newer than which.
//!
//! A client is told the stamp that won, which need not be that of its own write. So of a write's last stamp there is
//!
//! ```text
//!   at least   a stamp under which its value was seen, or the one it was told where no other write can have made that
//!   at most    the stamp it was told
//! ```
//!
//! and two writes are compared by these bounds, with ties decided as `cell` does. Where bounds say nothing, time does:
//! a strong write that began after an acknowledged one had ended is newer, if that is on a replica of every quorum.
//!
//! Whether a replica is shared is arithmetic: `a` and `b` of `n` replicas share one if `a + b > n`. Where a server lost
//! its files, only bounds count, and only writes on two replicas.
//!
//! Not here: what a read must show (`register`), what replicas must hold (`settled`).

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::history::{Operation, Told};
use super::settled::{Copies, Version};
use super::{FilesLost, Promises};
use crate::cell::Stamp;

/// The operations of one key.
pub(super) struct Ledger<'a> {
    pub key: &'a Bytes,
    pub promises: &'a Promises,
    /// Puts and removals, in the order in which they began.
    pub writes: Vec<Write<'a>>,
    /// Reads that had an answer, in the order in which they began.
    pub reads: Vec<Read<'a>>,
    pub removals: Removals,
    acknowledged: Acknowledged,
    by_value: HashMap<&'a [u8], usize>,
}

/// A put or a removal.
pub(super) struct Write<'a> {
    pub operation: &'a Operation,
    /// `None`: a removal.
    pub value: Option<&'a Bytes>,
    /// How many replicas its level needs.
    pub needed: usize,
    /// Its last stamp is this or larger.
    pub at_least: Option<Stamp>,
}

/// A read that had an answer.
pub(super) struct Read<'a> {
    pub operation: &'a Operation,
    pub value: Option<&'a Bytes>,
    pub stamp: Option<Stamp>,
    /// How many replicas its level needs.
    pub needed: usize,
}

/// The acknowledged writes, by the moment at which they had ended.
struct Acknowledged {
    /// The newest version that is certainly written, and its write.
    versions: Running<(Version, usize)>,
    /// When the write that began last began, and that write.
    began: Running<(u64, usize)>,
}

/// The removals that may explain that there is no value, by the moment at which they had begun.
pub(super) struct Removals {
    /// There is one, whatever came of it.
    pub asked: bool,
    /// From this moment on one of unknown outcome may happen.
    unknown_from: Option<u64>,
    /// From this moment on one that was refused had been asked.
    pub refused_from: Option<u64>,
    /// When the acknowledged one that ended last ended.
    ended: Running<u64>,
}

/// What a question asks of a moment.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    /// Only what had ended before this counts (µs).
    pub us: u64,
    /// How many replicas are asked. More than there are: every write counts, even one that is only hinted.
    pub asked: usize,
}

impl<'a> Ledger<'a> {
    /// `operations` of one key, in the order in which they began, and what its replicas hold in the end.
    pub fn new(
        key: &'a Bytes,
        operations: &[&'a Operation],
        copies: Option<&Copies>,
        promises: &'a Promises,
    ) -> Ledger<'a> {
        let writes: Vec<Write<'a>> =
            operations.iter().filter_map(|operation| Write::of(operation, promises)).collect();
        let reads: Vec<Read<'a>> =
            operations.iter().filter_map(|operation| Read::of(operation, promises)).collect();
        let by_value = writes
            .iter()
            .enumerate()
            .filter_map(|(index, write)| Some((write.value?.as_ref(), index)))
            .collect();
        let removals = Removals::of(&writes);
        let acknowledged = Acknowledged::default();
        let mut ledger = Ledger { key, promises, writes, reads, removals, acknowledged, by_value };
        ledger.note_sightings(copies);
        ledger.note_stamps_told();
        ledger.acknowledged = Acknowledged::of(&ledger.writes);
        ledger
    }

    /// The put of this key that wrote the value.
    pub fn put_of(&self, value: &[u8]) -> Option<usize> {
        self.by_value.get(value).copied()
    }

    fn note_sightings(&mut self, copies: Option<&Copies>) {
        let read = self.reads.iter().filter_map(|read| Some((read.value?.clone(), read.stamp?)));
        let held = copies.into_iter().flat_map(|copies| copies.values().flatten());
        let held = held.filter_map(|version| Some((version.value.clone()?, version.stamp)));
        for (value, stamp) in read.chain(held).collect::<Vec<_>>() {
            if let Some(put) = self.put_of(&value) {
                let at_least = &mut self.writes[put].at_least;
                *at_least = (*at_least).max(Some(stamp));
            }
        }
    }

    /// A stamp that a write was told is its own if no other write that had begun by then can have made it.
    fn note_stamps_told(&mut self) {
        // By how many writes had begun: the two largest stamps that any of them can have, and whose the first is.
        let mut reach: Vec<(Option<(Stamp, usize)>, Stamp)> = vec![(None, Stamp(i64::MIN))];
        for (index, write) in self.writes.iter().enumerate() {
            let (first, second) = reach[index];
            reach.push(match (write.stamp_at_most(), first) {
                (None, _) => (first, second),
                (Some(stamp), Some((largest, whose))) if stamp <= largest => {
                    (Some((largest, whose)), second.max(stamp))
                }
                (Some(stamp), _) => (Some((stamp, index)), first.map_or(second, |(largest, _)| largest)),
            });
        }
        let own: Vec<(usize, Stamp)> = (0..self.writes.len())
            .filter_map(|index| {
                let write = &self.writes[index];
                let told = write.operation.stamp()?;
                let begun =
                    self.writes.partition_point(|other| other.operation.began_us <= write.operation.ended_us);
                let others = match reach[begun] {
                    (Some((largest, whose)), _) if whose != index => largest,
                    (_, second) => second,
                };
                (others < told).then_some((index, told))
            })
            .collect();
        for (index, told) in own {
            let at_least = &mut self.writes[index].at_least;
            *at_least = (*at_least).max(Some(told));
        }
    }

    /// The acknowledged write that an answer had to show and did not, if it showed something certainly older.
    /// `until_us`: when the answer was there.
    pub fn missing(
        &self,
        shown: Option<&Bytes>,
        stamp: Option<Stamp>,
        at: Moment,
        until_us: u64,
    ) -> Option<usize> {
        let put = shown.and_then(|value| self.put_of(value));
        if let Some((newest, write)) = self.newest_acknowledged(at)
            && self.at_most(put, shown, stamp).is_some_and(|shown| shown < *newest)
        {
            return Some(*write);
        }
        match put {
            Some(put) => self.newer_by_time(put, at),
            None if shown.is_none() => self.missing_from_nothing(at, until_us),
            None => None,
        }
    }

    /// The answer's version is at most this.
    pub fn at_most(
        &self,
        put: Option<usize>,
        shown: Option<&Bytes>,
        stamp: Option<Stamp>,
    ) -> Option<Version> {
        let told = || put.and_then(|put| self.writes[put].operation.stamp());
        stamp.or_else(told).map(|stamp| Version { stamp, value: shown.cloned() })
    }

    /// An acknowledged strong write, to be seen at `at`, that began after `older` was acknowledged.
    fn newer_by_time(&self, older: usize, at: Moment) -> Option<usize> {
        if self.promises.files != FilesLost::No {
            return None;
        }
        let older = &self.writes[older];
        let (began, write) = self.certainly_later(older.needed, at)?;
        (older.acknowledged() && older.operation.ended_us < *began).then_some(*write)
    }

    /// When the last acknowledged write began, and which it is, of those that are to be seen at `at` and newer than
    /// every write on `older` replicas that had ended before they began. A write is sent again while it meets something
    /// newer, until a quorum has taken it; what that quorum need not meet may still win.
    fn certainly_later(&self, older: usize, at: Moment) -> Option<&(u64, usize)> {
        let quorum = self.promises.quorum();
        if older < self.sharing(quorum) {
            return None;
        }
        self.acknowledged.began.best(at.us, self.sharing(at.asked).max(quorum))
    }

    /// Of the acknowledged writes to be seen at `at`, the one that began last.
    pub fn last_acknowledged(&self, at: Moment) -> Option<usize> {
        self.acknowledged.began.best(at.us, self.sharing(at.asked)).map(|(_, write)| *write)
    }

    /// There is no value: which acknowledged put contradicts that, if no removal explains it?
    fn missing_from_nothing(&self, at: Moment, until_us: u64) -> Option<usize> {
        let last = self.last_acknowledged(at)?;
        if self.promises.files != FilesLost::No {
            return (!self.removals.asked).then_some(last);
        }
        let newer_than_level = |needed: usize| self.certainly_later(needed, at).map(|(began, _)| *began);
        let explained = self.removals.explain(until_us, newer_than_level);
        (!explained).then_some(last)
    }

    /// The newest version that had certainly been written by an acknowledged write, to be seen by a write at `at`.
    pub fn newest_acknowledged(&self, at: Moment) -> Option<&(Version, usize)> {
        self.acknowledged.versions.best(at.us, self.sharing(at.asked))
    }

    /// How many replicas share one with any `asked`.
    pub fn sharing(&self, asked: usize) -> usize {
        self.promises.sharing(asked)
    }
}

impl<'a> Write<'a> {
    fn of(operation: &'a Operation, promises: &Promises) -> Option<Write<'a>> {
        let value = operation.written()?;
        Some(Write { operation, value, needed: promises.needed(operation.level), at_least: None })
    }

    pub fn acknowledged(&self) -> bool {
        matches!(self.operation.told, Told::Written { .. })
    }

    pub fn refused(&self) -> bool {
        matches!(self.operation.told, Told::Refused(_))
    }

    /// The largest stamp it can have; `None` if it has none because nothing was written.
    fn stamp_at_most(&self) -> Option<Stamp> {
        (!self.refused()).then(|| self.operation.stamp().unwrap_or(Stamp(i64::MAX)))
    }

    /// The version it wrote, or an older one.
    pub fn version_at_least(&self) -> Option<Version> {
        self.at_least.map(|stamp| Version { stamp, value: self.value.cloned() })
    }
}

impl<'a> Read<'a> {
    fn of(operation: &'a Operation, promises: &Promises) -> Option<Read<'a>> {
        let value = operation.found()?;
        Some(Read { operation, value, stamp: operation.stamp(), needed: promises.needed(operation.level) })
    }
}

impl Default for Acknowledged {
    fn default() -> Acknowledged {
        Acknowledged { versions: Running::new(Vec::new()), began: Running::new(Vec::new()) }
    }
}

impl Acknowledged {
    fn of(writes: &[Write]) -> Acknowledged {
        let acknowledged = || writes.iter().enumerate().filter(|(_, write)| write.acknowledged());
        let versions = acknowledged().filter_map(|(index, write)| {
            Some((write.needed, write.operation.ended_us, (write.version_at_least()?, index)))
        });
        let began = acknowledged().map(|(index, write)| {
            (write.needed, write.operation.ended_us, (write.operation.began_us, index))
        });
        Acknowledged { versions: Running::new(versions.collect()), began: Running::new(began.collect()) }
    }
}

impl Removals {
    fn of(writes: &[Write]) -> Removals {
        let removals = || writes.iter().filter(|write| write.value.is_none());
        // In the order in which they began: the first one found is the earliest.
        let unknown_from = removals().find(|write| !write.acknowledged() && !write.refused());
        let refused_from = removals().find(|write| write.refused());
        let ended = removals()
            .filter(|write| write.acknowledged())
            .map(|write| (write.needed, write.operation.began_us, write.operation.ended_us));
        Removals {
            asked: removals().next().is_some(),
            unknown_from: unknown_from.map(|write| write.operation.began_us),
            refused_from: refused_from.map(|write| write.operation.began_us),
            ended: Running::new(ended.collect()),
        }
    }

    /// True if some removal that had begun by `until_us` may be why there is no value. `newer`: by the number of
    /// replicas a removal needed, the moment from which on something newer was being written.
    pub fn explain(&self, until_us: u64, newer: impl Fn(usize) -> Option<u64>) -> bool {
        self.unknown_from.is_some_and(|from| from <= until_us)
            || self
                .ended
                .each(until_us.saturating_add(1))
                .any(|(needed, ended)| newer(needed).is_none_or(|began| *ended >= began))
    }
}

/// The largest of what had come to be before a moment, apart by the number of replicas that it concerns.
pub(super) struct Running<T> {
    /// In rising order of moments, each with the largest up to and including it.
    classes: BTreeMap<usize, Vec<(u64, T)>>,
}

impl<T: Ord + Clone> Running<T> {
    /// From (replicas, moment, what).
    pub fn new(mut items: Vec<(usize, u64, T)>) -> Running<T> {
        items.sort_by_key(|(_, moment, _)| *moment);
        let mut classes: BTreeMap<usize, Vec<(u64, T)>> = BTreeMap::new();
        for (needed, moment, item) in items {
            let class = classes.entry(needed).or_default();
            let largest = class.last().map_or(item.clone(), |(_, largest)| largest.clone().max(item));
            class.push((moment, largest));
        }
        Running { classes }
    }

    /// The largest before a moment that concerns at least `needed_min` replicas.
    pub fn best(&self, before_us: u64, needed_min: usize) -> Option<&T> {
        self.each(before_us).filter(|(needed, _)| *needed >= needed_min).map(|(_, item)| item).max()
    }

    /// The largest before a moment, of each number of replicas.
    fn each(&self, before_us: u64) -> impl Iterator<Item = (usize, &T)> {
        self.classes.iter().filter_map(move |(needed, class)| {
            let count = class.partition_point(|(moment, _)| *moment < before_us);
            Some((*needed, &class[count.checked_sub(1)?].1))
        })
    }
}
