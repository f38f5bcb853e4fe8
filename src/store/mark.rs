//! `log.mark`: the sequence of a row that certainly was committed. A log that ends before it has lost its end.
//!
//! SQLite takes a write-ahead log up to its first bad frame; if the last commits are damaged or cut off, nothing in the
//! two files tells that from a power cut in the middle of a commit. This file does: it is written after each commit, in
//! one small write and without a sync. A killed server leaves it exact; after a power cut it may be older, which does no
//! harm, but never newer than what was synced before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::sqlite::OpenError;

const FILE: &str = "log.mark";

/// The file, open.
pub(super) struct Mark {
    file: File,
    /// A failed write was reported.
    failed: bool,
}

impl Mark {
    /// Opens the file of a data directory, making it if there is none.
    pub(super) fn open(dir: &Path) -> Result<Mark, OpenError> {
        let path = dir.join(FILE);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file =
            file.map_err(|error| OpenError::damaged(&path, format!("it cannot be opened: {error}")))?;
        Ok(Mark { file, failed: false })
    }

    /// The sequence it names; `None` if it names none or was torn by a power cut.
    pub(super) fn read(&self) -> Option<i64> {
        let mut bytes = [0; 12];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        let (sequence, sum) = bytes.split_first_chunk::<8>().expect("twelve bytes");
        (crc32fast::hash(sequence).to_be_bytes() == *sum).then(|| i64::from_be_bytes(*sequence))
    }

    /// Names a sequence that is committed.
    pub(super) fn write(&mut self, sequence: i64) {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&sequence.to_be_bytes());
        bytes[8..].copy_from_slice(&crc32fast::hash(&sequence.to_be_bytes()).to_be_bytes());
        if let Err(error) = self.file.write_all_at(&bytes, 0)
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("{FILE} cannot be written, so a log that is cut at its end may go unnoticed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_torn_mark_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = Mark::open(dir.path()).unwrap();
        assert_eq!(mark.read(), None);
        mark.write(7);
        mark.write(8);
        assert_eq!(Mark::open(dir.path()).unwrap().read(), Some(8));
        std::fs::write(dir.path().join(FILE), [1; 12]).unwrap();
        assert_eq!(mark.read(), None);
    }
}
