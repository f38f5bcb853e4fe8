//! A disk in memory that forgets what was not synced.
//!
//! Every file has what a reader sees *now* and what would be left after a power cut: the bytes of the last sync, and of
//! each write since then all, a part, or nothing, as the seed decides. A killed process leaves all of *now*. Each start
//! of a node is an incarnation of its disk; what an earlier incarnation still has open can neither read nor write.
//!
//! Trouble is switched on by the world: writes and syncs that fail, a disk that is full, and a fuse, which ends the
//! node in the middle of the write or sync that burns it. After a failed sync the system forgets which pages were
//! unsynced, as Linux does: they are seen, but a power cut may take them, and no later sync saves them.
//!
//! Not here: SQLite (`vfs`).

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that a torn write keeps or loses together.
const SECTOR_BYTES: usize = 512;

/// The bytes of every file.
pub type Image = BTreeMap<String, Vec<u8>>;

/// One node's disk. It outlives its incarnations.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// kill -9: the system still has what was written.
    Kill,
    /// The machine loses its power: only what was synced is certain.
    PowerLoss,
}

/// What is wrong with a disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trouble {
    /// One write in this many fails; 0: none.
    pub failing_writes: u32,
    /// One sync in this many fails; 0: none.
    pub failing_syncs: u32,
    /// Files cannot grow.
    pub full: bool,
}

/// What happened to a disk, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub writes: u64,
    pub syncs: u64,
    pub failures: u64,
    pub lost_writes: u64,
}

struct State {
    files: BTreeMap<String, SimFile>,
    /// Handles of other incarnations are dead.
    incarnation: u64,
    alive: bool,
    trouble: Trouble,
    /// Writes and syncs until the node ends, and how.
    fuse: Option<(u32, End)>,
    /// Told once when the fuse has burned.
    burned: Option<End>,
    on_burned: Arc<tokio::sync::Notify>,
    random: fastrand::Rng,
    counts: Counts,
}

#[derive(Default)]
struct SimFile {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Since the last sync, in order.
    unsynced: Vec<Change>,
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

/// Why the disk did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The incarnation has ended.
    Dead,
    /// It failed.
    Failed,
    /// It is full.
    Full,
}

/// A file of one incarnation.
#[derive(Clone)]
pub struct Handle {
    disk: SimDisk,
    incarnation: u64,
    name: String,
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        let state = State {
            files: BTreeMap::new(),
            incarnation: 0,
            alive: false,
            trouble: Trouble::default(),
            fuse: None,
            burned: None,
            on_burned: Arc::default(),
            random: fastrand::Rng::with_seed(seed),
            counts: Counts::default(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// Begins an incarnation and returns its number.
    pub fn begin(&self) -> u64 {
        let mut state = self.state();
        state.incarnation += 1;
        state.alive = true;
        state.fuse = None;
        state.burned = None;
        state.incarnation
    }

    /// Ends the incarnation, if it has not ended by itself, and leaves on the disk what `end` leaves.
    pub fn end(&self, end: End) {
        let mut state = self.state();
        state.alive = false;
        state.fuse = None;
        if end == End::PowerLoss {
            state.lose_unsynced();
        }
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        self.state().trouble = trouble;
    }

    pub fn light_fuse(&self, operations: u32, end: End) {
        self.state().fuse = Some((operations.max(1), end));
    }

    pub fn put_out_fuse(&self) {
        self.state().fuse = None;
    }

    /// Notified when a fuse has burned; then [`SimDisk::take_burned`] says how the node is to end.
    pub fn on_burned(&self) -> Arc<tokio::sync::Notify> {
        self.state().on_burned.clone()
    }

    pub fn take_burned(&self) -> Option<End> {
        self.state().burned.take()
    }

    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// A copy of every file as a killed process leaves it.
    pub fn image(&self) -> Image {
        self.state().files.iter().map(|(name, file)| (name.clone(), file.now.clone())).collect()
    }

    /// Puts a copy in the place of all files, synced. Between incarnations.
    pub fn restore(&self, image: Image) {
        let mut state = self.state();
        assert!(!state.alive, "files are not changed under a running server");
        let file = |now: Vec<u8>| SimFile { synced: now.clone(), now, unsynced: Vec::new() };
        state.files = image.into_iter().map(|(name, now)| (name, file(now))).collect();
    }

    /// Opens a file, making it if it is not there and `create`.
    pub fn open(&self, incarnation: u64, name: &str, create: bool) -> Result<Handle, DiskError> {
        let mut state = self.state();
        state.check(incarnation)?;
        if !state.files.contains_key(name) {
            if !create {
                return Err(DiskError::Failed);
            }
            state.files.insert(name.to_owned(), SimFile::default());
        }
        Ok(Handle { disk: self.clone(), incarnation, name: name.to_owned() })
    }

    pub fn exists(&self, incarnation: u64, name: &str) -> Result<bool, DiskError> {
        let state = self.state();
        state.check(incarnation)?;
        Ok(state.files.contains_key(name))
    }

    pub fn delete(&self, incarnation: u64, name: &str) -> Result<(), DiskError> {
        let mut state = self.state();
        state.check(incarnation)?;
        state.files.remove(name);
        Ok(())
    }

    pub fn random_bytes(&self, out: &mut [u8]) {
        self.state().random.fill(out);
    }

    /// Reads a whole file beside SQLite.
    pub fn read_file(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let state = self.state();
        match state.files.get(&*path.to_string_lossy()) {
            Some(file) => Ok(Box::new(Cursor::new(file.now.clone()))),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }
}

impl Handle {
    /// Fills `out` from `at` on; where the file ends before, with zeros. False then.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<bool, DiskError> {
        self.with(|file, _| {
            let there = file.now.get(at..).unwrap_or_default();
            let whole = there.len().min(out.len());
            out[..whole].copy_from_slice(&there[..whole]);
            out[whole..].fill(0);
            whole == out.len()
        })
    }

    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<(), DiskError> {
        let mut state = self.disk.state();
        state.check(self.incarnation)?;
        state.counts.writes += 1;
        if state.burns() {
            let part = whole_sectors(at, state.random.usize(..=bytes.len()));
            state.file(&self.name)?.write(at, &bytes[..part]);
            return Err(DiskError::Dead);
        }
        let grows = at + bytes.len() > state.file(&self.name)?.now.len();
        if state.trouble.full && grows {
            state.counts.failures += 1;
            return Err(DiskError::Full);
        }
        let one_in = state.trouble.failing_writes;
        if state.fails(one_in) {
            let part = whole_sectors(at, state.random.usize(..=bytes.len()));
            state.file(&self.name)?.write(at, &bytes[..part]);
            return Err(DiskError::Failed);
        }
        state.file(&self.name)?.write(at, bytes);
        Ok(())
    }

    pub fn truncate(&self, len: usize) -> Result<(), DiskError> {
        self.with(|file, _| {
            file.now.truncate(len);
            file.unsynced.push(Change::Truncate(len));
        })
    }

    pub fn sync(&self) -> Result<(), DiskError> {
        let mut state = self.disk.state();
        state.check(self.incarnation)?;
        state.counts.syncs += 1;
        if state.burns() {
            if state.random.bool() {
                state.file(&self.name)?.sync(); // on the disk, but nobody was told
            }
            return Err(DiskError::Dead);
        }
        let one_in = state.trouble.failing_syncs;
        if state.fails(one_in) {
            state.file(&self.name)?.unsynced.clear(); // seen, but no sync will ever save it
            return Err(DiskError::Failed);
        }
        state.file(&self.name)?.sync();
        Ok(())
    }

    pub fn len(&self) -> Result<usize, DiskError> {
        self.with(|file, _| file.now.len())
    }

    pub fn is_alive(&self) -> bool {
        self.disk.state().check(self.incarnation).is_ok()
    }

    fn with<T>(&self, work: impl FnOnce(&mut SimFile, &mut fastrand::Rng) -> T) -> Result<T, DiskError> {
        let mut state = self.disk.state();
        state.check(self.incarnation)?;
        let State { files, random, .. } = &mut *state;
        files.get_mut(&self.name).map(|file| work(file, random)).ok_or(DiskError::Failed)
    }
}

impl State {
    fn check(&self, incarnation: u64) -> Result<(), DiskError> {
        if self.alive && self.incarnation == incarnation { Ok(()) } else { Err(DiskError::Dead) }
    }

    fn file(&mut self, name: &str) -> Result<&mut SimFile, DiskError> {
        self.files.get_mut(name).ok_or(DiskError::Failed)
    }

    /// Counts an operation; true if it is the node's last.
    fn burns(&mut self) -> bool {
        let Some((left, end)) = &mut self.fuse else { return false };
        *left -= 1;
        if *left > 0 {
            return false;
        }
        self.burned = Some(*end);
        self.fuse = None;
        self.alive = false;
        self.on_burned.notify_one();
        true
    }

    fn fails(&mut self, one_in: u32) -> bool {
        let fails = one_in > 0 && self.random.u32(..one_in) == 0;
        self.counts.failures += u64::from(fails);
        fails
    }

    fn lose_unsynced(&mut self) {
        for file in self.files.values_mut() {
            let mut left = std::mem::take(&mut file.synced);
            for change in file.unsynced.drain(..) {
                match change {
                    Change::Truncate(len) => {
                        if self.random.bool() {
                            left.truncate(len);
                        }
                    }
                    Change::Write { at, bytes } => {
                        self.counts.lost_writes += 1;
                        match self.random.u8(..4) {
                            0 => {}
                            1 => keep_sectors(&mut left, at, &bytes, &mut self.random),
                            _ => {
                                put(&mut left, at, &bytes);
                                self.counts.lost_writes -= 1;
                            }
                        }
                    }
                }
            }
            file.now.clone_from(&left);
            file.synced = left;
        }
    }
}

impl SimFile {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        put(&mut self.now, at, bytes);
        self.unsynced.push(Change::Write { at, bytes: bytes.to_vec() });
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Truncate(len) => self.synced.truncate(len),
                Change::Write { at, bytes } => put(&mut self.synced, at, &bytes),
            }
        }
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// How much of a write of `bytes` at `at` is done when it ends early: no sector is written in part.
fn whole_sectors(at: usize, bytes: usize) -> usize {
    ((at + bytes) / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(at)
}

/// Of a write that was under way some sectors are on the disk.
fn keep_sectors(file: &mut Vec<u8>, at: usize, bytes: &[u8], random: &mut fastrand::Rng) {
    let mut from = 0;
    while from < bytes.len() {
        let sector_end = ((at + from) / SECTOR_BYTES + 1) * SECTOR_BYTES - at;
        let to = sector_end.min(bytes.len());
        if random.bool() {
            put(file, at + from, &bytes[from..to]);
        }
        from = to;
    }
}
