//! `log.mark`: the sequence of a row that certainly was committed. A log that ends before it has lost its end.
//!
//! SQLite takes a write-ahead log up to its first bad frame; if the last commits are damaged or cut off, nothing in the
//! two files tells that from a power cut in the middle of a commit. This file does: it is written after each commit, in
//! one small write and without a sync. A killed server leaves it exact. After a power cut it may be older, which does no
//! harm. It is never newer than what was synced, as long as every commit is: so it also says which durability was
//! promised when it was written, and a log that ends before a mark of `process-crash` is no damage.

use std::path::Path;

use super::disk::{Disk, PlainFile};
use crate::config::Durability;

const FILE: &str = "log.mark";

/// Sequence (8 bytes) · durability (1) · checksum (4).
const BYTES: usize = 13;

/// The file, open.
pub(super) struct Mark {
    file: Box<dyn PlainFile>,
    durability: Durability,
    /// A failed write was reported.
    failed: bool,
}

impl Mark {
    /// Opens the file of a data directory, making it if there is none. `None`, and a warning, if that cannot be done.
    pub(super) fn open(disk: &Disk, dir: &Path) -> Option<Mark> {
        match disk.open_plain(&dir.join(FILE)) {
            Ok(file) => Some(Mark { file, durability: Durability::PowerLoss, failed: false }),
            Err(error) => {
                log::warn!(
                    "{FILE} cannot be opened, so a log that is cut at its end may go unnoticed: {error}"
                );
                None
            }
        }
    }

    /// The sequence it names; `None` if it names none or was torn by a power cut.
    pub(super) fn read(&self) -> Option<i64> {
        self.read_all().map(|(sequence, _)| sequence)
    }

    /// The durability under which the log was last written; `otherwise` if that is not known.
    pub(super) fn promised(&self, otherwise: Durability) -> Durability {
        self.read_all().map_or(otherwise, |(_, durability)| durability)
    }

    /// From now on the log is written under `durability`, and has rows up to `sequence`. Synced, for what follows relies
    /// on it. `None`, and a warning, if that fails.
    pub(super) fn begin(mut self, sequence: i64, durability: Durability) -> Option<Mark> {
        self.durability = durability;
        self.write(sequence);
        match self.file.sync() {
            Ok(()) => Some(self),
            Err(error) => {
                log::warn!(
                    "{FILE} cannot be synced, so a log that is cut at its end may go unnoticed: {error}"
                );
                None
            }
        }
    }

    /// Names a sequence that is committed.
    pub(super) fn write(&mut self, sequence: i64) {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&sequence.to_be_bytes());
        bytes[8] = u8::from(self.durability == Durability::PowerLoss);
        let sum = crc32fast::hash(&bytes[..9]);
        bytes[9..].copy_from_slice(&sum.to_be_bytes());
        if let Err(error) = self.file.write(&bytes)
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("{FILE} cannot be written, so a log that is cut at its end may go unnoticed: {error}");
        }
    }

    fn read_all(&self) -> Option<(i64, Durability)> {
        let mut bytes = [0; BYTES];
        self.file.read(&mut bytes).ok()?;
        let (named, sum) = bytes.split_last_chunk::<4>().expect("thirteen bytes");
        if crc32fast::hash(named).to_be_bytes() != *sum {
            return None;
        }
        let (sequence, durability) = named.split_first_chunk::<8>().expect("nine bytes");
        let durability = if durability == [1] { Durability::PowerLoss } else { Durability::ProcessCrash };
        Some((i64::from_be_bytes(*sequence), durability))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_torn_mark_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::open(&Disk::real(), dir.path()).unwrap();
        assert_eq!(mark.read(), None);
        mark.write(7);
        mark.write(8);
        let mark = Mark::open(&Disk::real(), dir.path()).unwrap();
        assert_eq!(mark.read(), Some(8));
        assert_eq!(mark.promised(Durability::ProcessCrash), Durability::PowerLoss);
        let mark = mark.begin(9, Durability::ProcessCrash).unwrap();
        assert_eq!(mark.promised(Durability::PowerLoss), Durability::ProcessCrash);
        std::fs::write(dir.path().join(FILE), [1; BYTES]).unwrap();
        assert_eq!(mark.read(), None);
        assert_eq!(mark.promised(Durability::PowerLoss), Durability::PowerLoss);
    }
}
