//! SQLite's files on a [`SimDisk`]: the glue between its C interface and `disk`.
//!
//! Everything runs on one thread. Locks and the shared memory of the write-ahead log are those of one process with
//! several connections, as the store has them; each incarnation of a disk has its own.
#![allow(unsafe_code, non_snake_case)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{self, Read};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};

use rusqlite::ffi;
use tetrachord::store::{Files, PlainFile};

use super::disk::{DiskError, Handle, SimDisk};

const WAL_LOCKS: usize = ffi::SQLITE_SHM_NLOCK as usize;

/// A SQLite VFS for one incarnation of a disk.
pub struct SimVfs {
    name: CString,
    disk: SimDisk,
    incarnation: u64,
    registered: *mut ffi::sqlite3_vfs,
}

// One thread uses it; the store asks for these because on a machine its threads share the type.
unsafe impl Send for SimVfs {}
unsafe impl Sync for SimVfs {}

/// What the C side points to.
struct App {
    disk: SimDisk,
    incarnation: u64,
    /// By file: locks and shared memory.
    shared: Mutex<BTreeMap<String, Arc<Mutex<Shared>>>>,
}

#[derive(Default)]
struct Shared {
    /// Connections with at least SHARED.
    readers: usize,
    reserved: bool,
    pending: bool,
    exclusive: bool,
    /// Regions of the shared memory; never freed while a connection may point into them.
    regions: Vec<Box<[u64]>>,
    wal_shared: [usize; WAL_LOCKS],
    wal_exclusive: [bool; WAL_LOCKS],
}

/// An open file, as SQLite allocates it.
#[repr(C)]
struct OpenFile {
    base: ffi::sqlite3_file,
    open: *mut Open,
}

struct Open {
    handle: Handle,
    shared: Arc<Mutex<Shared>>,
    lock: c_int,
    wal_shared: [bool; WAL_LOCKS],
    wal_exclusive: [bool; WAL_LOCKS],
}

impl SimVfs {
    /// Registers a VFS under a name that nobody else has.
    pub fn register(disk: &SimDisk, incarnation: u64, name: String) -> SimVfs {
        let name = CString::new(name).expect("no zero in it");
        let app = App { disk: disk.clone(), incarnation, shared: Mutex::default() };
        let vfs = ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<OpenFile>() as c_int,
            mxPathname: 512,
            pNext: null_mut(),
            zName: name.as_ptr(),
            pAppData: Box::into_raw(Box::new(app)).cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: None,
            xCurrentTimeInt64: Some(current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        };
        let registered = Box::into_raw(Box::new(vfs));
        // SAFETY: the VFS and its name live until `drop`, which unregisters it.
        let code = unsafe { ffi::sqlite3_vfs_register(registered, 0) };
        assert_eq!(code, ffi::SQLITE_OK);
        SimVfs { name, disk: disk.clone(), incarnation, registered }
    }
}

impl Drop for SimVfs {
    /// Must come after the last connection is closed.
    fn drop(&mut self) {
        // SAFETY: both were made by `register`, and no connection uses them any more.
        unsafe {
            ffi::sqlite3_vfs_unregister(self.registered);
            let vfs = Box::from_raw(self.registered);
            drop(Box::from_raw(vfs.pAppData.cast::<App>()));
        }
    }
}

impl Files for SimVfs {
    fn vfs(&self) -> &str {
        self.name.to_str().expect("it came from a string")
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        self.disk.read_file(path)
    }

    fn open_plain(&self, path: &Path, to_write: bool) -> io::Result<Box<dyn PlainFile>> {
        let handle = self.disk.open(self.incarnation, &path.to_string_lossy(), to_write).map_err(in_words)?;
        Ok(Box::new(Plain(handle)))
    }
}

/// A file beside SQLite's.
struct Plain(Handle);

impl PlainFile for Plain {
    fn read(&self, out: &mut [u8]) -> io::Result<()> {
        match self.0.read(0, out).map_err(in_words)? {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write(0, bytes).map_err(in_words)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync().map_err(in_words)
    }
}

fn in_words(error: DiskError) -> io::Error {
    io::Error::other(format!("{error:?}"))
}

unsafe fn app<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a App {
    unsafe { &*(*vfs).pAppData.cast::<App>() }
}

unsafe fn file<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Open {
    unsafe { &mut *(*file.cast::<OpenFile>()).open }
}

unsafe fn text<'a>(name: *const c_char) -> &'a str {
    unsafe { CStr::from_ptr(name) }.to_str().expect("paths of the simulation are text")
}

fn code(error: DiskError, failed: c_int) -> c_int {
    match error {
        DiskError::Dead => ffi::SQLITE_IOERR,
        DiskError::Failed => failed,
        DiskError::Full => ffi::SQLITE_FULL,
    }
}

fn done(outcome: Result<(), DiskError>, failed: c_int) -> c_int {
    outcome.map_or_else(|error| code(error, failed), |()| ffi::SQLITE_OK)
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    out: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    unsafe {
        (*out).pMethods = std::ptr::null();
        let app = app(vfs);
        let name = if name.is_null() { "temporary" } else { text(name) };
        let handle = match app.disk.open(app.incarnation, name, flags & ffi::SQLITE_OPEN_CREATE != 0) {
            Ok(handle) => handle,
            Err(error) => return code(error, ffi::SQLITE_CANTOPEN),
        };
        let shared = app.shared.lock().expect("one thread").entry(name.to_owned()).or_default().clone();
        let open = Open {
            handle,
            shared,
            lock: ffi::SQLITE_LOCK_NONE,
            wal_shared: [false; WAL_LOCKS],
            wal_exclusive: [false; WAL_LOCKS],
        };
        (*out.cast::<OpenFile>()).open = Box::into_raw(Box::new(open));
        (*out).pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, _sync_dir: c_int) -> c_int {
    let (app, name) = unsafe { (app(vfs), text(name)) };
    done(app.disk.delete(app.incarnation, name), ffi::SQLITE_IOERR_DELETE)
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    let (app, name) = unsafe { (app(vfs), text(name)) };
    match app.disk.exists(app.incarnation, name) {
        Ok(exists) => {
            unsafe { *out = c_int::from(exists) };
            ffi::SQLITE_OK
        }
        Err(error) => code(error, ffi::SQLITE_IOERR_ACCESS),
    }
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if bytes.len() > room as usize {
        return ffi::SQLITE_CANTOPEN;
    }
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len()) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, bytes: c_int, out: *mut c_char) -> c_int {
    let (app, out) = unsafe { (app(vfs), std::slice::from_raw_parts_mut(out.cast::<u8>(), bytes as usize)) };
    app.disk.random_bytes(out);
    bytes
}

unsafe extern "C" fn sleep(_vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds // nobody else can run meanwhile, so there is nothing to wait for
}

unsafe extern "C" fn current_time(_vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    unsafe { *out = 2_460_000.5 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_vfs: *mut ffi::sqlite3_vfs, out: *mut i64) -> c_int {
    unsafe { *out = 2_460_000 * 86_400_000 };
    ffi::SQLITE_OK
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn close(out: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        unlock(out, ffi::SQLITE_LOCK_NONE);
        shm_unmap(out, 0);
        drop(Box::from_raw((*out.cast::<OpenFile>()).open));
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(out: *mut ffi::sqlite3_file, to: *mut c_void, bytes: c_int, at: i64) -> c_int {
    let (open, to) = unsafe { (file(out), std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes as usize)) };
    match open.handle.read(at as usize, to) {
        Ok(true) => ffi::SQLITE_OK,
        Ok(false) => ffi::SQLITE_IOERR_SHORT_READ,
        Err(error) => code(error, ffi::SQLITE_IOERR_READ),
    }
}

unsafe extern "C" fn write(out: *mut ffi::sqlite3_file, from: *const c_void, bytes: c_int, at: i64) -> c_int {
    let (open, from) = unsafe { (file(out), std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize)) };
    done(open.handle.write(at as usize, from), ffi::SQLITE_IOERR_WRITE)
}

unsafe extern "C" fn truncate(out: *mut ffi::sqlite3_file, len: i64) -> c_int {
    done(unsafe { file(out) }.handle.truncate(len as usize), ffi::SQLITE_IOERR_TRUNCATE)
}

unsafe extern "C" fn sync(out: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    done(unsafe { file(out) }.handle.sync(), ffi::SQLITE_IOERR_FSYNC)
}

unsafe extern "C" fn file_size(out: *mut ffi::sqlite3_file, len: *mut i64) -> c_int {
    match unsafe { file(out) }.handle.len() {
        Ok(bytes) => {
            unsafe { *len = bytes as i64 };
            ffi::SQLITE_OK
        }
        Err(error) => code(error, ffi::SQLITE_IOERR_FSTAT),
    }
}

unsafe extern "C" fn lock(out: *mut ffi::sqlite3_file, wanted: c_int) -> c_int {
    let open = unsafe { file(out) };
    if !open.handle.is_alive() {
        return ffi::SQLITE_IOERR;
    }
    if wanted <= open.lock {
        return ffi::SQLITE_OK;
    }
    let mut shared = open.shared.lock().expect("one thread");
    let others = shared.readers - usize::from(open.lock >= ffi::SQLITE_LOCK_SHARED);
    let free = match wanted {
        ffi::SQLITE_LOCK_SHARED => !shared.pending && !shared.exclusive,
        ffi::SQLITE_LOCK_RESERVED => !shared.reserved,
        _ => open.lock >= ffi::SQLITE_LOCK_RESERVED || !shared.reserved,
    };
    if !free {
        return ffi::SQLITE_BUSY;
    }
    match wanted {
        ffi::SQLITE_LOCK_SHARED => shared.readers += 1,
        ffi::SQLITE_LOCK_RESERVED => shared.reserved = true,
        _ => {
            shared.reserved = true;
            shared.pending = true;
            if others > 0 {
                open.lock = ffi::SQLITE_LOCK_PENDING;
                return ffi::SQLITE_BUSY;
            }
            shared.exclusive = true;
        }
    }
    open.lock = wanted;
    ffi::SQLITE_OK
}

unsafe extern "C" fn unlock(out: *mut ffi::sqlite3_file, wanted: c_int) -> c_int {
    let open = unsafe { file(out) };
    if open.lock <= wanted {
        return ffi::SQLITE_OK;
    }
    let mut shared = open.shared.lock().expect("one thread");
    if open.lock >= ffi::SQLITE_LOCK_RESERVED {
        shared.reserved = false;
        shared.pending = false;
        shared.exclusive = false;
    }
    if wanted == ffi::SQLITE_LOCK_NONE {
        shared.readers -= 1;
    }
    open.lock = wanted;
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(out: *mut ffi::sqlite3_file, reserved: *mut c_int) -> c_int {
    unsafe { *reserved = c_int::from(file(out).shared.lock().expect("one thread").reserved) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_out: *mut ffi::sqlite3_file, _what: c_int, _to: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_out: *mut ffi::sqlite3_file) -> c_int {
    4096
}

/// As the unix VFS: a write that is cut off harms no byte beside those written.
unsafe extern "C" fn device_characteristics(_out: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    out: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    to: *mut *mut c_void,
) -> c_int {
    let open = unsafe { file(out) };
    if !open.handle.is_alive() {
        return ffi::SQLITE_IOERR;
    }
    let mut shared = open.shared.lock().expect("one thread");
    let region = region as usize;
    if region >= shared.regions.len() && extend == 0 {
        unsafe { *to = null_mut() };
        return ffi::SQLITE_OK;
    }
    while shared.regions.len() <= region {
        shared.regions.push(vec![0; bytes as usize / size_of::<u64>()].into_boxed_slice());
    }
    unsafe { *to = shared.regions[region].as_mut_ptr().cast() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_lock(
    out: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    let open = unsafe { file(out) };
    let slots = first as usize..(first + count) as usize;
    let mut shared = open.shared.lock().expect("one thread");
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        for slot in slots {
            if std::mem::take(&mut open.wal_exclusive[slot]) {
                shared.wal_exclusive[slot] = false;
            }
            if std::mem::take(&mut open.wal_shared[slot]) {
                shared.wal_shared[slot] -= 1;
            }
        }
        return ffi::SQLITE_OK;
    }
    if !open.handle.is_alive() {
        return ffi::SQLITE_IOERR;
    }
    if flags & ffi::SQLITE_SHM_SHARED != 0 {
        if slots.clone().any(|slot| shared.wal_exclusive[slot] && !open.wal_exclusive[slot]) {
            return ffi::SQLITE_BUSY;
        }
        for slot in slots {
            if !std::mem::replace(&mut open.wal_shared[slot], true) {
                shared.wal_shared[slot] += 1;
            }
        }
    } else {
        let taken = |slot: usize| {
            let others = shared.wal_shared[slot] - usize::from(open.wal_shared[slot]);
            others > 0 || (shared.wal_exclusive[slot] && !open.wal_exclusive[slot])
        };
        if slots.clone().any(taken) {
            return ffi::SQLITE_BUSY;
        }
        for slot in slots {
            open.wal_exclusive[slot] = true;
            shared.wal_exclusive[slot] = true;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_barrier(_out: *mut ffi::sqlite3_file) {}

unsafe extern "C" fn shm_unmap(out: *mut ffi::sqlite3_file, _delete: c_int) -> c_int {
    unsafe { shm_lock(out, 0, WAL_LOCKS as c_int, ffi::SQLITE_SHM_UNLOCK) }
}
