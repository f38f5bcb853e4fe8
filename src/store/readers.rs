//! The connections that read data.db: a few, lent to whichever thread reads.
//!
//! Which sstables there are belongs to the state of the file that a read sees: both are taken together here, so that
//! none is looked for after its table was cleared for another.
//!
//! Not here: what is read (`base`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::Connection;

use super::disk::Disk;
use super::sqlite::{self, Format, OpenError, StoreError};
use super::sstable::SsTables;
use crate::config::Config;

/// How long a checkpoint waits for the reads that are under way. Most take microseconds; a page of a long walk some
/// milliseconds.
const LENT_MAX: Duration = Duration::from_millis(50);

/// Who reads data.db.
pub(super) struct Readers {
    path: PathBuf,
    disk: Disk,
    format: &'static Format,
    lending: Mutex<Lending>,
    /// Rung when a connection comes back.
    returned: Condvar,
    readers_max: usize,
    cache_bytes: usize,
    mmap_bytes: usize,
}

struct Lending {
    idle: Vec<Reader>,
    /// The states of those that are lent.
    lent: Vec<u64>,
    /// How many wait for one to come back.
    awaited: usize,
    /// How often all were to see the file anew.
    state: u64,
    /// Those of the state.
    sstables: Arc<SsTables>,
    /// No transaction is kept: somebody else may want the file for himself.
    keeps_none: bool,
}

/// A connection, and the read transaction it is in. To begin and to end one costs two locks of the file, more than to
/// look up a cell; so one is kept until a flush is done, or the file is checkpointed. Another program finds its locks:
/// it can read, but not cut the write-ahead log off.
struct Reader {
    connection: Connection,
    /// [`Lending::state`] when it was lent for the first read of it; `None`: it is in none.
    began: Option<u64>,
}

impl Readers {
    pub fn new(
        path: PathBuf,
        disk: Disk,
        format: &'static Format,
        config: &Config,
        sstables: SsTables,
    ) -> Readers {
        let lending = Lending {
            idle: Vec::new(),
            lent: Vec::new(),
            awaited: 0,
            state: 0,
            sstables: Arc::new(sstables),
            keeps_none: false,
        };
        Readers {
            path,
            disk,
            format,
            lending: Mutex::new(lending),
            returned: Condvar::new(),
            readers_max: config.worker_threads + 2, // the log's writer; whoever inspects or collects
            cache_bytes: config.base_cache_bytes,
            mmap_bytes: config.base_mmap_bytes,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lends a connection in a transaction that began since the file was last [shown anew](Readers::show), with the
    /// sstables of that state; waits for one if all are lent. Reads are short.
    pub fn read<T>(
        &self,
        read: impl FnOnce(&Connection, &SsTables) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            let (idle, state, sstables) = self.borrow();
            match self.begin(idle, state) {
                Ok((reader, true)) => {
                    let result = read(&reader.connection, &sstables);
                    self.give_back(Some(reader), state, result.is_ok());
                    return result;
                }
                Ok((reader, false)) => self.give_back(Some(reader), state, true),
                Err(error) => {
                    self.give_back(None, state, false);
                    return Err(error);
                }
            }
        }
    }

    /// Reads that begin from now on see the file as it is, with these sstables.
    pub fn show(&self, sstables: SsTables) {
        let mut lending = self.lock();
        lending.state += 1;
        lending.sstables = Arc::new(sstables);
    }

    /// How many sstables are read.
    pub fn sstables(&self) -> usize {
        self.lock().sstables.tables.len()
    }

    /// The right to use a connection, perhaps one that is open, and the state of the file that it has to show.
    fn borrow(&self) -> (Option<Reader>, u64, Arc<SsTables>) {
        let mut lending = self.lock();
        while lending.lent.len() == self.readers_max {
            lending.awaited += 1;
            lending = self.returned.wait(lending).expect("no panic while it is held");
            lending.awaited -= 1;
        }
        let state = lending.state;
        lending.lent.push(state);
        (lending.idle.pop(), state, lending.sstables.clone())
    }

    /// A connection in a transaction that began in that state: the idle one, if it is or can be, or a new one. False if
    /// it may have begun in a later one: it is not to be read with the sstables of that state.
    fn begin(&self, idle: Option<Reader>, state: u64) -> Result<(Reader, bool), StoreError> {
        let usable = idle.and_then(|mut reader| {
            let usable = reader.began == Some(state) || reader.end();
            usable.then_some(reader)
        });
        let mut reader = usable.map_or_else(|| self.open_reader(), Ok)?;
        if reader.began == Some(state) {
            return Ok((reader, true));
        }
        reader.begin(state).map_err(|source| StoreError::reading(&self.path, source))?;
        let is_current = self.lock().state == state;
        Ok((reader, is_current))
    }

    /// `well`: it was read with no error.
    fn give_back(&self, reader: Option<Reader>, state: u64, well: bool) {
        let mut lending = self.lock();
        let at = lending.lent.iter().position(|lent| *lent == state).expect("it was lent");
        lending.lent.swap_remove(at);
        let keep = well && state == lending.state && !lending.keeps_none;
        lending.idle.extend(reader.and_then(|mut reader| (keep || reader.end()).then_some(reader)));
        if lending.awaited > 0 {
            self.returned.notify_all();
        }
    }

    fn open_reader(&self) -> Result<Reader, StoreError> {
        match sqlite::open_to_read(&self.disk, &self.path, self.format, self.cache_bytes, self.mmap_bytes) {
            Ok(connection) => Ok(Reader { connection, began: None }),
            Err(OpenError::Unusable { path, source }) => Err(StoreError::Unreadable { path, source }),
            Err(damaged) => Err(StoreError::Damaged { path: self.path.clone(), what: damaged.to_string() }),
        }
    }

    /// Ends the transactions that are kept, and waits a moment for those of reads under way: a write-ahead log is
    /// copied into the file only as far as no reader needs what is there, and begins anew only when none reads it.
    pub fn let_go(&self) {
        let mut lending = self.lock();
        lending.state += 1; // so that those that are lent end theirs
        lending.idle.retain_mut(Reader::end);
        lending.awaited += 1;
        let earlier = |lending: &mut Lending| lending.lent.iter().any(|lent| *lent < lending.state);
        let waited = self.returned.wait_timeout_while(lending, LENT_MAX, earlier);
        waited.expect("no panic while it is held").0.awaited -= 1;
    }

    /// From now on no transaction is kept.
    pub fn keep_none(&self) {
        self.lock().keeps_none = true;
    }

    fn lock(&self) -> MutexGuard<'_, Lending> {
        self.lending.lock().expect("no panic while it is held")
    }
}

impl Reader {
    /// Begins a transaction. What it shows is settled when it first reads: here.
    fn begin(&mut self, state: u64) -> rusqlite::Result<()> {
        sqlite::run(&self.connection, "BEGIN")?;
        self.began = Some(state);
        self.connection.prepare_cached("SELECT EXISTS(SELECT 1 FROM meta)")?.query_row([], |_| Ok(()))
    }

    /// Ends its transaction. False if that failed, after which it is not to be used.
    fn end(&mut self) -> bool {
        self.began = None;
        sqlite::roll_back(&self.connection)
    }
}

#[cfg(test)]
mod tests {
    use super::super::base::{FILE, FORMAT};
    use super::super::base_writer;
    use super::*;
    use crate::cell::Stamp;

    /// A reader that learnt which sstables there are before it saw the file might find their tables cleared.
    #[test]
    fn a_file_is_not_read_with_the_sstables_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        drop(base_writer::open(dir.path(), &config, &Disk::real()).unwrap());
        let sstables = || SsTables::new(Vec::new(), Stamp(0));
        let readers = Readers::new(dir.path().join(FILE), Disk::real(), &FORMAT, &config, sstables());
        let (idle, state, _) = readers.borrow();
        let (reader, is_current) = readers.begin(idle, state).unwrap();
        assert!(is_current);
        readers.give_back(Some(reader), state, true);

        let (idle, state, _) = readers.borrow();
        readers.show(sstables());
        let (reader, is_current) = readers.begin(idle, state).unwrap();
        assert!(is_current, "it began before");
        readers.give_back(Some(reader), state, true);

        let (idle, state, _) = readers.borrow();
        assert!(idle.is_some());
        readers.show(sstables());
        let (reader, is_current) = readers.begin(idle, state).unwrap();
        assert!(!is_current);
        readers.give_back(Some(reader), state, true);
        assert_eq!(readers.read(|_, sstables| Ok(sstables.tables.len())).unwrap(), 0);
    }
}
