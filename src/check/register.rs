//! The promises of the levels, pair by pair of operations on one key. Cheap: a history of a million operations is
//! sorted and walked, not searched.
//!
//!   - a read shows every write acknowledged before it began, or something newer, if their levels share a replica
//!   - a read shows nothing older than an earlier read had shown, if their levels share a replica; which is older,
//!     stamps say where both are told
//!   - what is shown was asked for, by a write that had begun and was not refused
//!   - a strong write has a newer stamp than every write acknowledged before it began that shares a replica with it; at
//!     ALL, after a write that one replica had, perhaps the same
//!
//! Every finding is a broken promise; a broken promise need not be found, for example where the writes overlap and no
//! stamp tells them apart (`ledger` says what is known, `linear` looks further). A write of unknown outcome may have
//! happened or not, at any later moment: it explains what is shown and demands nothing.
//!
//! Not here: which order of all operations would explain every answer (`linear`).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::FilesLost;
use super::finding::{Findings, Rule, seconds, tell, tell_version};
use super::ledger::{Ledger, Moment, Read, Running, Write};
use super::settled::{Copies, Version};
use crate::cell::Stamp;

/// Judges the reads and stamps of the ledger's key. `lost` are the writes already known to be lost; `newest`: the
/// newest version that a server holds in the end.
pub(super) fn check(
    ledger: &Ledger,
    newest: Option<&Version>,
    lost: &mut BTreeSet<usize>,
    findings: &mut Findings,
) {
    let mut key = Key { ledger, sound: Vec::new(), lost, findings };
    key.sound = ledger.reads.iter().map(|read| key.check_origin(read)).collect();
    let files = ledger.promises.files;
    if files != FilesLost::Unknown {
        key.check_order(newest);
    }
    if files == FilesLost::No {
        key.check_stamps();
    }
}

/// Counts two versions of one stamp, of a key whose reads and copies show them.
pub(super) fn check_shared_stamps(ledger: &Ledger, copies: Option<&Copies>, findings: &mut Findings) {
    let mut seen: BTreeMap<Stamp, (Option<Bytes>, String)> = BTreeMap::new();
    let read =
        ledger.reads.iter().filter_map(|read| Some((read.stamp?, read.value.cloned(), tell(read.operation))));
    let held = copies.into_iter().flatten().filter_map(|(node, held)| {
        let held = held.as_ref()?;
        let line = format!("server {node} holds {}", tell_version(held.value.as_ref(), held.stamp));
        Some((held.stamp, held.value.clone(), line))
    });
    for (stamp, value, line) in read.chain(held) {
        let (first, of_first) = seen.entry(stamp).or_insert_with(|| (value.clone(), line.clone()));
        if *first != value {
            findings.add(Rule::SharedStamp, ledger.key, || vec![of_first.clone(), line]);
        }
    }
}

struct Key<'a, 'b> {
    ledger: &'b Ledger<'a>,
    /// The reads that showed something that was asked for. The others are findings, and say nothing of order.
    sound: Vec<bool>,
    lost: &'b mut BTreeSet<usize>,
    findings: &'b mut Findings,
}

/// What reads have shown, by the moment at which they had ended.
struct Shown {
    /// The newest version shown, and by which read.
    versions: Running<(Version, usize)>,
    /// Puts that any read showed.
    puts: ShownPuts,
    /// Puts that reads showed without their stamps.
    unstamped: ShownPuts,
}

/// Puts that reads have shown, where stamps do not say which is newer.
struct ShownPuts {
    /// Strong ones that strong reads showed: when the one that began last began, and the read.
    began: Running<(u64, usize)>,
    /// A read that showed one.
    any: Running<usize>,
}

/// The most that any later read shows.
#[derive(Clone, Default)]
struct Later {
    version: Option<Version>,
    /// When the put that was shown and ended last ended; the end of time if that is open.
    ended_us: u64,
    /// The same, of reads that told no stamp.
    ended_unstamped_us: u64,
}

impl<'a> Key<'a, '_> {
    /// True if what the read showed was asked for.
    fn check_origin(&mut self, read: &Read<'a>) -> bool {
        let ledger = self.ledger;
        let until_us = read.operation.ended_us;
        let (rule, line) = match read.value.map(|value| ledger.put_of(value)) {
            None if read.stamp.is_none() || ledger.removals.explain(until_us, |_| None) => return true,
            None if ledger.removals.refused_from.is_some_and(|from| from <= until_us) => {
                (Rule::RefusedYetWritten, "every removal asked by then was refused".to_owned())
            }
            None => (Rule::NobodysValue, "nobody had removed it by then".to_owned()),
            Some(None) => (Rule::NobodysValue, "no put of this key wrote it".to_owned()),
            Some(Some(put)) => {
                let put = &ledger.writes[put];
                match put {
                    _ if put.refused() => (Rule::RefusedYetWritten, tell(put.operation)),
                    _ if put.operation.began_us > until_us => (Rule::NobodysValue, tell(put.operation)),
                    _ => return true,
                }
            }
        };
        self.findings.add(rule, ledger.key, || vec![line, tell(read.operation)]);
        false
    }

    fn check_order(&mut self, newest: Option<&Version>) {
        let shown = Shown::of(self.ledger, &self.sound);
        let later = self.later(newest);
        for (index, read) in self.ledger.reads.iter().enumerate().filter(|(index, _)| self.sound[*index]) {
            let at = Moment { us: read.operation.began_us, asked: read.needed };
            if let Some(write) = self.ledger.missing(read.value, read.stamp, at, read.operation.ended_us) {
                let again = later[index].shows(&self.ledger.writes[write]);
                let rule = if !again && self.lost.insert(write) { Rule::LostWrite } else { Rule::StaleRead };
                self.findings.add(rule, self.ledger.key, || self.ledger.tell_missing(index, write, again));
            } else if let Some(earlier) = shown.newer(self.ledger, index) {
                self.findings
                    .add(Rule::WentBack, self.ledger.key, || self.ledger.tell_went_back(index, earlier));
            }
        }
    }

    /// For each read, what is shown after it.
    fn later(&self, newest: Option<&Version>) -> Vec<Later> {
        let mut after = Later { version: newest.cloned(), ..Later::default() };
        let mut later = vec![Later::default(); self.ledger.reads.len()];
        for (index, read) in self.ledger.reads.iter().enumerate().rev() {
            later[index] = after.clone();
            if self.sound[index] {
                after.note(self.ledger, read);
            }
        }
        later
    }

    fn check_stamps(&mut self) {
        for write in self.ledger.writes.iter().filter(|write| write.acknowledged()) {
            let Some(stamp) = write.operation.stamp() else { continue };
            let at = Moment { us: write.operation.began_us, asked: write.needed };
            let strong = write.needed >= self.ledger.promises.quorum();
            // A replica that alone had the earlier one and answered behind did not stand against the quorum that
            // applied: the stamp told is then the earlier one's.
            let alone = |earlier: usize| {
                self.ledger.writes[earlier].needed < self.ledger.sharing(self.ledger.promises.quorum())
            };
            if let Some((newest, earlier)) = self.ledger.newest_acknowledged(at).filter(|_| strong)
                && (Version { stamp, value: write.value.cloned() }) < *newest
                && !(stamp == newest.stamp && alone(*earlier))
            {
                self.findings.add(Rule::StampsOutOfOrder, self.ledger.key, || {
                    let earlier = &self.ledger.writes[*earlier];
                    let mut story = vec![tell(earlier.operation)];
                    story.extend(self.ledger.tell_seen(earlier));
                    story.push(tell(write.operation));
                    story
                });
            }
        }
        for (index, read) in self.ledger.reads.iter().enumerate().filter(|(index, _)| self.sound[*index]) {
            let put = read.value.and_then(|value| self.ledger.put_of(value));
            let told = put.and_then(|put| self.ledger.writes[put].operation.stamp());
            if let (Some(put), Some(told), Some(stamp)) = (put, told, read.stamp)
                && stamp > told
            {
                self.findings.add(Rule::StampsOutOfOrder, self.ledger.key, || {
                    let put = tell(self.ledger.writes[put].operation);
                    vec![put, tell(self.ledger.reads[index].operation)]
                });
            }
        }
    }
}

impl Shown {
    fn of(ledger: &Ledger, sound: &[bool]) -> Shown {
        let reads = || ledger.reads.iter().enumerate().filter(|(index, _)| sound[*index]);
        let versions = reads().filter_map(|(index, read)| {
            let version = Version { stamp: read.stamp?, value: read.value.cloned() };
            Some((holding(ledger, read), read.operation.ended_us, (version, index)))
        });
        Shown {
            versions: Running::new(versions.collect()),
            puts: ShownPuts::of(ledger, reads()),
            unstamped: ShownPuts::of(ledger, reads().filter(|(_, read)| read.stamp.is_none())),
        }
    }

    /// An earlier read that showed something certainly newer: by its stamp, or by time if one of the two told no stamp.
    fn newer(&self, ledger: &Ledger, index: usize) -> Option<usize> {
        let read = &ledger.reads[index];
        let put = read.value.and_then(|value| ledger.put_of(value));
        let newest = self.versions.best(read.operation.began_us, ledger.sharing(read.needed));
        if let Some((newest, earlier)) = newest
            && ledger.at_most(put, read.value, read.stamp).is_some_and(|shown| shown < *newest)
        {
            return Some(*earlier);
        }
        match read.stamp {
            _ if ledger.promises.files != FilesLost::No => None,
            Some(_) => self.unstamped.newer(ledger, read, put),
            None => self.puts.newer(ledger, read, put),
        }
    }
}

/// How many replicas have what a read showed. Without repair it says only that one has it.
fn holding(ledger: &Ledger, read: &Read) -> usize {
    if ledger.promises.read_repair { read.needed } else { read.needed.min(1) }
}

impl ShownPuts {
    fn of<'a, 'b: 'a>(ledger: &Ledger, reads: impl Iterator<Item = (usize, &'a Read<'b>)>) -> ShownPuts {
        let (mut began, mut any) = (Vec::new(), Vec::new());
        for (index, read) in reads {
            let Some(put) = read.value.and_then(|value| ledger.put_of(value)) else { continue };
            let (put, holding, ended) = (&ledger.writes[put], holding(ledger, read), read.operation.ended_us);
            any.push((holding, ended, index));
            if put.needed >= ledger.promises.quorum() {
                began.push((holding, ended, (put.operation.began_us, index)));
            }
        }
        ShownPuts { began: Running::new(began), any: Running::new(any) }
    }

    /// Only if both reads and both writes are strong does time order what was read.
    fn newer(&self, ledger: &Ledger, read: &Read, put: Option<usize>) -> Option<usize> {
        let quorum = ledger.promises.quorum();
        let strong = |needed: usize| needed >= quorum;
        let before = read.operation.began_us;
        let last = self.began.best(before, quorum).filter(|_| strong(read.needed));
        match put.map(|put| &ledger.writes[put]) {
            Some(put) => {
                let ended = put.operation.ended_us;
                let ordered = put.acknowledged() && strong(put.needed);
                last.filter(|(began, _)| ordered && ended < *began).map(|(_, earlier)| *earlier)
            }
            None => {
                let any = self.any.best(before, ledger.sharing(read.needed))?;
                let newer = |needed: usize| last.filter(|_| strong(needed)).map(|(began, _)| *began);
                let explained = ledger.removals.explain(read.operation.ended_us, newer);
                (!explained).then_some(last.map_or(*any, |(_, earlier)| *earlier))
            }
        }
    }
}

impl Later {
    fn note(&mut self, ledger: &Ledger, read: &Read) {
        if let Some(stamp) = read.stamp {
            let version = Version { stamp, value: read.value.cloned() };
            self.version = self.version.take().max(Some(version));
        }
        let put = read.value.and_then(|value| ledger.put_of(value)).map(|put| &ledger.writes[put]);
        let ended_us = match put {
            Some(put) if put.acknowledged() => put.operation.ended_us,
            Some(_) => u64::MAX,
            // Which removal was shown is not known: perhaps a late one.
            None if ledger.removals.asked => u64::MAX,
            None => 0,
        };
        self.ended_us = self.ended_us.max(ended_us);
        if read.stamp.is_none() {
            self.ended_unstamped_us = self.ended_unstamped_us.max(ended_us);
        }
    }

    /// True if a later read showed the write, or something that may be newer.
    fn shows(&self, write: &Write) -> bool {
        let began_us = write.operation.began_us;
        match write.version_at_least() {
            Some(version) => self.version >= Some(version) || self.ended_unstamped_us >= began_us,
            None => self.ended_us >= began_us,
        }
    }
}

impl Ledger<'_> {
    fn tell_missing(&self, read: usize, write: usize, again: bool) -> Vec<String> {
        let read = &self.reads[read];
        let write = &self.writes[write];
        let shown = read.value.and_then(|value| self.put_of(value)).map(|put| &self.writes[put]);
        let mut story: Vec<String> = shown.map(|put| tell(put.operation)).into_iter().collect();
        if shown.is_none_or(|put| put.operation != write.operation) {
            story.push(tell(write.operation));
        }
        story.extend(self.tell_seen(write));
        story.push(tell(read.operation));
        let after = |later: &&Read| later.operation.began_us > read.operation.began_us;
        let shows_it = |later: &&Read| write.value.is_some() && later.value == write.value;
        story.push(match self.reads.iter().filter(after).find(shows_it) {
            Some(later) => format!("it is shown again at {} s", seconds(later.operation.ended_us)),
            None if again => "something newer may be shown later".to_owned(),
            None => "no later read shows it, nor anything newer".to_owned(),
        });
        story
    }

    fn tell_went_back(&self, read: usize, earlier: usize) -> Vec<String> {
        let put = |read: usize| self.reads[read].value.and_then(|value| self.put_of(value));
        let puts = [put(read), put(earlier)].into_iter().flatten().collect::<BTreeSet<usize>>();
        let puts = puts.into_iter().map(|put| tell(self.writes[put].operation));
        puts.chain([earlier, read].map(|read| tell(self.reads[read].operation))).collect()
    }

    /// Where a write's stamp was seen, if the client was told none or a larger one.
    fn tell_seen(&self, write: &Write) -> Option<String> {
        let stamp = write.at_least.filter(|stamp| write.operation.stamp() != Some(*stamp))?;
        Some(format!("  (it was seen under stamp {stamp})"))
    }
}
