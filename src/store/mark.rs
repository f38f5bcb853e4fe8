//! `log.mark`: the sequences of a row and of a hint that certainly were committed. A log that ends before them has lost
//! its end.
//!
//! SQLite takes a write-ahead log up to its first bad frame; if the last commits are damaged or cut off, nothing in the
//! two files tells that from a power cut in the middle of a commit. This file does: it is written after each commit, in
//! one small write and without a sync. A killed server leaves it exact. After a power cut it may be older, which does
//! no harm. It is never newer than what was synced, as long as every commit is: so it also says which durability was
//! promised when it was written, and a log that ends before a mark of `process-crash` is no damage.

use std::io;
use std::path::Path;

use super::disk::{Disk, PlainFile};
use crate::config::Durability;

pub(super) const FILE: &str = "log.mark";

/// Sequence of the row (8 bytes) · of the hint (8) · durability (1) · checksum (4).
const BYTES: usize = 21;

/// How far a log certainly went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// The sequence of the last row that was ever committed.
    pub row: i64,
    /// Of the last hint that was ever committed, delivered or not.
    pub hint: i64,
}

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
        match disk.open_plain(&dir.join(FILE), true) {
            Ok(file) => Some(Mark { file, durability: Durability::PowerLoss, failed: false }),
            Err(error) => {
                log::warn!(
                    "{FILE} cannot be opened, so a log that is cut at its end may go unnoticed: {error}"
                );
                None
            }
        }
    }

    /// The file as it is, to be read; `None` if there is none.
    pub(super) fn look(disk: &Disk, dir: &Path) -> Option<Mark> {
        let file = disk.open_plain(&dir.join(FILE), false).ok()?;
        Some(Mark { file, durability: Durability::PowerLoss, failed: false })
    }

    /// What it names; `None` if it names nothing or was torn by a power cut.
    pub(super) fn read(&self) -> Option<Reached> {
        self.read_all().map(|(reached, _)| reached)
    }

    /// The durability under which the log was last written; `otherwise` if that is not known.
    pub(super) fn promised(&self, otherwise: Durability) -> Durability {
        self.read_all().map_or(otherwise, |(_, durability)| durability)
    }

    /// From now on the log is written under `durability`, and has come this far. Synced, for what follows relies on it;
    /// a disk that fails to is not to be written to.
    pub(super) fn begin(mut self, reached: Reached, durability: Durability) -> io::Result<Mark> {
        self.durability = durability;
        self.file.write(&self.naming(reached))?;
        self.file.sync()?;
        Ok(self)
    }

    /// Names what is committed.
    pub(super) fn write(&mut self, reached: Reached) {
        if let Err(error) = self.file.write(&self.naming(reached))
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("{FILE} cannot be written, so a log that is cut at its end may go unnoticed: {error}");
        }
    }

    fn naming(&self, reached: Reached) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&reached.row.to_be_bytes());
        bytes[8..16].copy_from_slice(&reached.hint.to_be_bytes());
        bytes[16] = u8::from(self.durability == Durability::PowerLoss);
        let sum = crc32fast::hash(&bytes[..17]);
        bytes[17..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn read_all(&self) -> Option<(Reached, Durability)> {
        let mut bytes = [0; BYTES];
        self.file.read(&mut bytes).ok()?;
        let (named, sum) = bytes.split_last_chunk::<4>().expect("twenty-one bytes");
        if crc32fast::hash(named).to_be_bytes() != *sum {
            return None;
        }
        let (row, rest) = named.split_first_chunk::<8>().expect("seventeen bytes");
        let (hint, durability) = rest.split_first_chunk::<8>().expect("nine bytes");
        let reached = Reached { row: i64::from_be_bytes(*row), hint: i64::from_be_bytes(*hint) };
        let durability = if durability == [1] { Durability::PowerLoss } else { Durability::ProcessCrash };
        Some((reached, durability))
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
        mark.write(Reached { row: 7, hint: 0 });
        mark.write(Reached { row: 8, hint: 3 });
        let mark = Mark::open(&Disk::real(), dir.path()).unwrap();
        assert_eq!(mark.read(), Some(Reached { row: 8, hint: 3 }));
        assert_eq!(mark.promised(Durability::ProcessCrash), Durability::PowerLoss);
        let mark = mark.begin(Reached { row: 9, hint: 3 }, Durability::ProcessCrash).unwrap();
        assert_eq!(mark.promised(Durability::PowerLoss), Durability::ProcessCrash);
        std::fs::write(dir.path().join(FILE), [1; BYTES]).unwrap();
        assert_eq!(mark.read(), None);
        assert_eq!(mark.promised(Durability::PowerLoss), Durability::PowerLoss);
    }
}
