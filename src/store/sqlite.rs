//! How the store's two files are opened, and what an error of SQLite means for what was being done.
//!
//! A file of ours carries an application id and a schema version in its header, and its tables are spelled exactly as
//! we create them. Whatever differs is refused: a foreign file is never written to.
//!
//! SQLite never checkpoints on its own here (`wal_autocheckpoint=0`, no checkpoint on close): the owner of the file
//! does, after its answers have gone out, and sees the error if the fsync of a checkpoint fails. SQLite's automatic
//! checkpoint would hide it, try the fsync again and believe the second one.
//!
//! Not here: what is in the tables (`commit_log`, `hint_log`, `base`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, ffi};

use super::disk::Disk;

/// Why a store did not open. Nothing acknowledged was given up, and no write was taken.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, read or written.
    #[error("cannot open {path}: {source}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The system gave no thread to write the file.
    #[error("cannot start a thread to write {path}: {source}", path = path.display())]
    NoThread {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file cannot be read or written. That says nothing about what is in it.
    #[error("cannot open {path}: {source}; mend that and start again", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file belongs to something else. It was not touched.
    #[error("{path} is not a file of this server: {why}; move it away or choose another directory", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// A later release wrote the file. It was not touched.
    #[error("{path} has format {found}, this release knows {known}; start the release that wrote it", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Format of the file.
        found: i64,
        /// Latest format this release knows.
        known: i64,
    },
    /// The file is not as it was written. Nothing was skipped: the store does not open at all.
    #[error(
        "{path} is damaged: {what}. Nothing was skipped and nothing is served. Restore the whole directory from a copy, \
         or delete it and start empty: the other replicas still have what they acknowledged, and give it back \
         while this server already takes writes",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which rows, or what SQLite found.
        what: String,
    },
}

/// Why a read of the store failed. Nothing was changed; other reads may still work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not as it was written.
    #[error("{path} is damaged: {what}; ask another replica, stop this server and restore its directory from a copy", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which row, or what SQLite found.
        what: String,
    },
    /// The file cannot be read at the moment.
    #[error("cannot read {path}: {source}; ask another replica", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> OpenError {
        match error {
            StoreError::Damaged { path, what } => OpenError::Damaged { path, what },
            StoreError::Unreadable { path, source } => OpenError::Unusable { path, source },
        }
    }
}

impl StoreError {
    pub(super) fn reading(path: &Path, source: rusqlite::Error) -> StoreError {
        let path = path.to_owned();
        match fault(&source) {
            Fault::Damaged => StoreError::Damaged { path, what: source.to_string() },
            Fault::Full | Fault::Busy | Fault::Other => StoreError::Unreadable { path, source },
        }
    }
}

impl OpenError {
    pub(super) fn using(path: &Path, source: rusqlite::Error) -> OpenError {
        let path = path.to_owned();
        if source.sqlite_error_code() == Some(ErrorCode::NotADatabase) {
            let why = "it is no SQLite database, or its first bytes are damaged".to_owned();
            return OpenError::Foreign { path, why };
        }
        match fault(&source) {
            Fault::Damaged => OpenError::Damaged { path, what: source.to_string() },
            Fault::Full | Fault::Busy | Fault::Other => OpenError::Unusable { path, source },
        }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> OpenError {
        OpenError::Damaged { path: path.to_owned(), what: what.into() }
    }
}

/// What an error of SQLite means for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No space. The transaction is undone; the next may succeed.
    Full,
    /// Another program holds a lock. The transaction is undone; the next may succeed.
    Busy,
    /// The file is not as it was written.
    Damaged,
    /// I/O errors, failed fsyncs and all else: what the operating system holds of the file cannot be trusted.
    Other,
}

pub(super) fn fault(error: &rusqlite::Error) -> Fault {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Fault::Full,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Fault::Busy,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Fault::Damaged,
        _ => Fault::Other,
    }
}

/// What makes a file one of ours.
pub(super) struct Format {
    /// SQLite's `application_id` in the file's header.
    pub application_id: i64,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Free pages can be given back to the file system.
    pub gives_back: bool,
    /// The statements that create its tables, indexes and views, without `;`: those of format 1, what format 2 added,
    /// and so on, which may also be what takes the place of something earlier, and brings its content there. Those that
    /// begin with `CREATE` are word for word as SQLite keeps them. How many formats a file has is in the header's
    /// `user_version`.
    pub schema: &'static [&'static [&'static str]],
}

impl Format {
    /// The latest.
    fn version(&self) -> usize {
        self.schema.len()
    }

    /// The statements by which what is in a file of that format was created: of two for one name the later.
    fn creations(&self, version: usize) -> Vec<&'static str> {
        let mut names = BTreeSet::new();
        let mut creations = self.schema[..version].concat();
        creations.reverse();
        creations.retain(|statement| statement.starts_with("CREATE ") && names.insert(created(statement)));
        creations
    }
}

/// What a statement creates, and its name.
fn created(statement: &str) -> &str {
    statement.split_once('(').map_or(statement, |(created, _)| created)
}

/// How long a statement waits for another program (somebody's SQLite shell) to let go of a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Statements a connection keeps prepared.
const STATEMENTS_MAX: usize = 96;

/// Opens a file for its one writer, and says which format it has: the latest, if it was created just now; one of an
/// earlier release is to be [upgraded](upgrade) once it has been checked. Not `may_create`: it must be there.
pub(super) fn open_to_write(
    disk: &Disk,
    path: &Path,
    format: &Format,
    synchronous: &str,
    cache_bytes: usize,
    may_create: bool,
) -> Result<(Connection, usize), OpenError> {
    let using = |source| OpenError::using(path, source);
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, may_create);
    let connection = disk.connect(path, flags).map_err(|source| match source.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) if !may_create => {
            OpenError::damaged(path, format!("it is missing, though data was stored here ({source})"))
        }
        _ => using(source),
    })?;
    prepare(&connection, cache_bytes).map_err(using)?;
    // Broken pages are found before they spread. Who only reads has the checksums, and reads more pages.
    connection.pragma_update(None, "cell_size_check", true).map_err(using)?;
    let version = version(&connection, path, format)?;
    let new = version == NEW;
    if new && !may_create {
        return Err(OpenError::damaged(path, "it is empty, though data was stored here"));
    }
    if new {
        // Setting it while nothing is written yet; on a file with content this would be ignored.
        connection.pragma_update(None, "page_size", format.page_bytes).map_err(using)?;
        if format.gives_back {
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(using)?;
        }
    } else {
        check_schema(&connection, path, format, version)?;
    }
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))
        .map_err(using)?;
    connection.pragma_update(None, "synchronous", synchronous).map_err(using)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0).map_err(using)?;
    if new {
        create(&connection, format, NEW).map_err(using)?;
        return Ok((connection, format.version()));
    }
    Ok((connection, version))
}

/// Makes a file of that format one of the latest, in one transaction: after an error it is as it was.
pub(super) fn upgrade(
    connection: &Connection,
    path: &Path,
    format: &Format,
    version: usize,
) -> Result<(), OpenError> {
    let latest = format.version();
    if version == latest {
        return Ok(());
    }
    log::info!("{} is made a file of format {latest}; it has {version}", path.display());
    create(connection, format, version).map_err(|source| {
        roll_back(connection);
        // So that what did not fit the disk does not lie there. What went wrong is told, whether or not that works.
        let _ = checkpoint(connection, "TRUNCATE");
        OpenError::using(path, source)
    })
}

/// Opens a file that exists, to read it while its writer runs, or after it has stopped. It may be of an older format,
/// lack what came later, and have what was replaced.
pub(super) fn open_to_read(
    disk: &Disk,
    path: &Path,
    format: &Format,
    cache_bytes: usize,
    mmap_bytes: usize,
) -> Result<Connection, OpenError> {
    let using = |source| OpenError::using(path, source);
    let connection = disk.connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(using)?;
    prepare(&connection, cache_bytes).map_err(using)?;
    connection.pragma_update(None, "mmap_size", mmap_bytes as i64).map_err(using)?;
    let version = version(&connection, path, format)?;
    if version == NEW {
        return Err(OpenError::damaged(path, "it is empty"));
    }
    check_schema(&connection, path, format, version)?;
    Ok(connection)
}

/// Copies the write-ahead log into the database. `how`: PASSIVE (what no reader prevents) or TRUNCATE (all, or an
/// error).
pub(super) fn checkpoint(connection: &Connection, how: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({how})"))?;
    let blocked: bool = statement.query_row([], |row| row.get(0))?; // which SQLite does not call an error
    if blocked {
        let why = "another program uses it; end that and try again".to_owned();
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), Some(why)));
    }
    Ok(())
}

/// When a write-ahead log is to be copied into its database: by the pages it has, of which SQLite tells after each
/// commit.
pub(super) struct Checkpoints {
    /// Each time this many pages were written.
    every: usize,
    /// How many pages the write-ahead log has.
    pages: Arc<AtomicUsize>,
    /// How many it had when a checkpoint was last due: readers may have kept some from being copied.
    due_at: usize,
}

impl Checkpoints {
    /// Of the connection that alone writes its database, from [`open_to_write`]: to set `wal_autocheckpoint` after this
    /// would take the hook away.
    pub fn every(pages: usize, connection: &mut Connection) -> rusqlite::Result<Checkpoints> {
        let checkpoints = Checkpoints { every: pages, pages: Arc::default(), due_at: 0 };
        let noted = checkpoints.pages.clone();
        connection.wal_hook(Some(move |_: &mut Wal, pages: c_int| {
            noted.store(usize::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(checkpoints)
    }

    /// True once for every `every` pages.
    pub fn are_due(&mut self) -> bool {
        let pages = self.pages.load(Ordering::Relaxed);
        if pages < self.due_at {
            self.due_at = 0; // it began anew
        }
        let due = pages - self.due_at >= self.every;
        if due {
            self.due_at = pages;
        }
        due
    }
}

/// What a crash left in the write-ahead log may be in memory only, if its fsync had failed, and what is written after
/// it would be lost with it at a power cut. So all of it goes into the database, and the log is cut off on the disk as
/// well: its older part, brought back by a power cut, would undo what is in the database.
pub(super) fn settle(connection: &Connection, disk: &Disk, path: &Path) -> Result<(), OpenError> {
    checkpoint(connection, "TRUNCATE").map_err(|source| OpenError::using(path, source))?;
    let log = write_ahead_log(path);
    let synced = disk.open_plain(&log, true).and_then(|mut log| log.sync());
    synced.map_err(|source| OpenError::Unreadable { path: log, source })
}

/// The file in which SQLite keeps a database's write-ahead log.
pub(super) fn write_ahead_log(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// Runs a statement without parameters or rows that is needed again and again.
pub(super) fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

/// Undoes the transaction, if there is one. False if that failed, after which the connection is not to be used.
pub(super) fn roll_back(connection: &Connection) -> bool {
    // SQLite may have rolled back by itself, as it does when the disk is full.
    connection.is_autocommit() || run(connection, "ROLLBACK").is_ok()
}

/// Bytes of a page of the database.
pub(super) fn page_bytes(connection: &Connection) -> rusqlite::Result<usize> {
    connection.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0)).map(|bytes| bytes as usize)
}

/// How large the database is, without its write-ahead log. 0 if it cannot be told.
pub(super) fn database_bytes(connection: &Connection) -> i64 {
    let pages = connection.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
    pages.and_then(|pages| Ok(pages * page_bytes(connection)? as i64)).unwrap_or(0)
}

/// A blob of a row that may be damaged: `None` if it is no blob.
pub(super) fn blob<'a>(row: &'a Row<'_>, column: usize) -> Option<&'a [u8]> {
    match row.get_ref(column) {
        Ok(ValueRef::Blob(bytes)) => Some(bytes),
        _ => None,
    }
}

/// An integer of a row that may be damaged: `None` if it is no integer.
pub(super) fn integer(row: &Row<'_>, column: usize) -> Option<i64> {
    match row.get_ref(column) {
        Ok(ValueRef::Integer(number)) => Some(number),
        _ => None,
    }
}

/// The table of named numbers that each file has.
pub(super) const META: &str = "CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID";

/// Every named number.
pub(super) fn all_meta(connection: &Connection, path: &Path) -> Result<BTreeMap<String, i64>, OpenError> {
    let using = |source| OpenError::using(path, source);
    let mut statement = connection.prepare("SELECT name FROM meta ORDER BY name").map_err(using)?;
    let names = statement
        .query_map([], |row| row.get::<_, String>(0))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<String>>>)
        .map_err(using)?;
    let mut numbers = BTreeMap::new();
    for name in names {
        if let Some(value) = meta(connection, path, &name)? {
            numbers.insert(name, value);
        }
    }
    Ok(numbers)
}

/// Reads a named number; `None` if it was never set. A damaged one is an error: such numbers say what may be forgotten.
pub(super) fn meta(connection: &Connection, path: &Path, name: &str) -> Result<Option<i64>, OpenError> {
    let using = |source| OpenError::using(path, source);
    let mut statement =
        connection.prepare_cached("SELECT value, checksum FROM meta WHERE name = ?1").map_err(using)?;
    let mut rows = statement.query([name]).map_err(using)?;
    let Some(row) = rows.next().map_err(using)? else { return Ok(None) };
    let value = integer(row, 0);
    match value.filter(|value| integer(row, 1) == Some(meta_checksum(name, *value))) {
        Some(value) => Ok(Some(value)),
        None => Err(OpenError::damaged(path, format!("its number {name} fails its checksum"))),
    }
}

/// Sets a named number, inside whatever transaction is open.
pub(super) fn set_meta(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare_cached("REPLACE INTO meta(name, value, checksum) VALUES (?1, ?2, ?3)")?;
    statement.execute((name, value, meta_checksum(name, value))).map(|_| ())
}

fn meta_checksum(name: &str, value: i64) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(&value.to_be_bytes());
    i64::from(hasher.finalize())
}

fn prepare(connection: &Connection, cache_bytes: usize) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -((cache_bytes / 1024).max(64) as i64))
}

/// What [`version`] says of a file that has no content yet.
const NEW: usize = 0;

/// The number of the file's format, or [`NEW`]. Refuses what is not ours.
fn version(connection: &Connection, path: &Path, format: &Format) -> Result<usize, OpenError> {
    let foreign = |why: String| OpenError::Foreign { path: path.to_owned(), why };
    let using = |source| OpenError::using(path, source);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application_id = number("application_id").map_err(using)?;
    let version = number("user_version").map_err(using)?;
    let objects = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
        .map_err(using)?;
    if application_id == 0 && version == NEW as i64 && objects == 0 {
        return Ok(NEW);
    }
    if application_id != format.application_id {
        return Err(foreign(format!(
            "its application id is {application_id:#x}, not {:#x}",
            format.application_id
        )));
    }
    let known = format.version() as i64;
    if version > known {
        return Err(OpenError::Newer { path: path.to_owned(), found: version, known });
    }
    if version <= NEW as i64 {
        return Err(foreign(format!("it claims format {version}, which never was")));
    }
    Ok(version as usize)
}

/// Makes what a file of that format lacks, in one transaction.
fn create(connection: &Connection, format: &Format, version: usize) -> rusqlite::Result<()> {
    let mut script = String::from("BEGIN IMMEDIATE;\n");
    for statement in format.schema[version..].concat() {
        script.push_str(statement);
        script.push_str(";\n");
    }
    script.push_str(&format!("PRAGMA application_id={};\n", format.application_id));
    script.push_str(&format!("PRAGMA user_version={};\nCOMMIT;\n", format.version()));
    connection.execute_batch(&script)
}

fn check_schema(
    connection: &Connection,
    path: &Path,
    format: &Format,
    version: usize,
) -> Result<(), OpenError> {
    let using = |source| OpenError::using(path, source);
    let mut statement = connection
        .prepare("SELECT CAST(sql AS TEXT) FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")
        .map_err(using)?;
    let found = statement
        .query_map([], |row| row.get::<_, String>(0))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<String>>>)
        .map_err(using)?;
    for needed in format.creations(version) {
        if !found.iter().any(|statement| statement == needed) {
            return Err(OpenError::damaged(path, format!("it lacks what was made by: {needed}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_due_each_so_many_pages_copied_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut connection = Connection::open(&path).unwrap();
        let setup = "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t(x);";
        connection.execute_batch(setup).unwrap();
        let mut checkpoints = Checkpoints::every(50, &mut connection).unwrap();
        let reader = Connection::open(&path).unwrap();
        let written = || std::fs::metadata(write_ahead_log(&path)).unwrap().len() / 4120;
        let mut write_until_due = || {
            (0..100)
                .find(|_| {
                    connection.execute("INSERT INTO t VALUES (zeroblob(4000))", []).unwrap();
                    checkpoints.are_due()
                })
                .unwrap();
            checkpoint(&connection, "PASSIVE").unwrap();
            written()
        };
        assert!((50..55).contains(&write_until_due()));
        assert!((50..55).contains(&write_until_due()), "its pages were used again");
        reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        write_until_due();
        assert!((100..110).contains(&write_until_due()), "the reader still needs those before");
        reader.execute_batch("COMMIT").unwrap();
        write_until_due();
        assert!(written() < 160, "and now they were used again");
    }
}
