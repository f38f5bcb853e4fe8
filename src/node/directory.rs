//! A data directory belongs to one running server at a time: `LOCK` is locked for as long as the server lives, by the
//! system, so that a killed server never leaves a lock behind. The file holds the process id for people and scripts;
//! `READY` holds it too, from the moment the server answers until it stops.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// A data directory, locked.
pub(super) struct Directory {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process has it.
    #[error("{path} is in use by the server with process id {pid}; stop that one first (./terminate_servers.sh)",
            path = path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// What that process wrote.
        pid: String,
    },
    /// It cannot be made, opened or locked.
    #[error("cannot use {path} as a data directory: {source}", path = path.display())]
    Unusable {
        /// The data directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Directory {
    /// Makes the directory if there is none, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Directory, DirectoryError> {
        let unusable = |source| DirectoryError::Unusable { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(unusable)?;
        keep_entry(path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("LOCK"))
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(unusable)?;
                return Err(DirectoryError::InUse { path: path.to_owned(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        let directory = Directory { path: path.to_owned(), _lock: file.try_clone().map_err(unusable)? };
        directory.not_ready();
        file.set_len(0).and_then(|()| file.rewind()).map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(directory)
    }

    /// The server answers now.
    pub(super) fn ready(&self) -> std::io::Result<()> {
        fs::write(self.path.join("READY"), format!("{}\n", std::process::id()))
    }

    fn not_ready(&self) {
        match fs::remove_file(self.path.join("READY")) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("cannot remove {}: {error}", self.path.join("READY").display()),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.not_ready();
    }
}

/// Syncs the directory's entry in its parent, and the parent's in its own: both may have been made just now, and what
/// is acknowledged must not vanish with them when the power is cut.
fn keep_entry(path: &Path) {
    let sync = |parent: &Path| File::open(parent)?.sync_all();
    let synced = path.canonicalize().and_then(|path| path.ancestors().skip(1).take(2).try_for_each(sync));
    if let Err(error) = synced {
        log::warn!("a power cut soon after {} was made may take it away: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_on_the_same_directory_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/0");
        let first = Directory::lock(&path).unwrap();
        first.ready().unwrap();
        let refused = Directory::lock(&path).err().expect("the lock is held").to_string();
        assert!(refused.contains(&format!("process id {}", std::process::id())), "{refused}");
        assert!(path.join("READY").exists());
        drop(first);
        assert!(!path.join("READY").exists());
        Directory::lock(&path).unwrap();
    }
}
