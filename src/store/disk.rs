//! What the store's files are on: the operating system's file system, or one of a simulation.
//!
//! SQLite's files go through a SQLite VFS; the few bytes that are read and written beside SQLite (`wal_check`, `mark`)
//! go through [`PlainFile`].

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

/// Where files are.
#[derive(Clone, Default)]
pub struct Disk {
    /// `None`: in the operating system's file system.
    simulated: Option<Arc<dyn Files>>,
}

/// Files that are not the operating system's.
pub trait Files: Send + Sync {
    /// The name under which their SQLite VFS is registered. It must offer shared memory: a file has several
    /// connections.
    fn vfs(&self) -> &str;

    /// Opens a file that is there, to read it from its beginning.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>>;

    /// Opens a small file: to read and write, making it if there is none, or only to read.
    fn open_plain(&self, path: &Path, to_write: bool) -> io::Result<Box<dyn PlainFile>>;
}

/// A small file that is not SQLite's.
pub trait PlainFile: Send {
    /// Fills `out` from the beginning of the file; an error if the file is shorter.
    fn read(&self, out: &mut [u8]) -> io::Result<()>;

    /// Overwrites the beginning of the file. A power cut may leave any part of it, until it is synced.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Returns when what was written is on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

impl PlainFile for File {
    fn read(&self, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, 0)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, 0)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Disk {
    /// The operating system's files.
    pub fn real() -> Disk {
        Disk::default()
    }

    /// Other files.
    pub fn simulated(files: Arc<dyn Files>) -> Disk {
        Disk { simulated: Some(files) }
    }

    /// Opens a file that is there, to read it from its beginning.
    pub(super) fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        match &self.simulated {
            None => Ok(Box::new(File::open(path)?)),
            Some(files) => files.open(path),
        }
    }

    /// Opens a small file: to read and write, making it if there is none, or only to read.
    pub(super) fn open_plain(&self, path: &Path, to_write: bool) -> io::Result<Box<dyn PlainFile>> {
        match &self.simulated {
            None => {
                let mut how = File::options();
                let file = how.read(true).write(to_write).create(to_write).truncate(false).open(path)?;
                Ok(Box::new(file))
            }
            Some(files) => files.open_plain(path, to_write),
        }
    }

    /// A connection to a database, used by one thread at a time.
    pub(super) fn connect(&self, path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match &self.simulated {
            None => Connection::open_with_flags(path, flags),
            Some(files) => Connection::open_with_flags_and_vfs(path, flags, files.vfs()),
        }
    }
}
