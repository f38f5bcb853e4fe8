//! Finds damage in a write-ahead log that SQLite itself would take for its end.
//!
//! SQLite reads a WAL up to the first frame whose checksum does not fit, and forgets what follows: right after a power
//! cut, when the last transaction is half on the disk, but a flipped bit in the middle would silently take every later
//! commit with it. The two can be told apart: a transaction is written only after the one before it was synced, so a
//! power cut leaves at most one commit behind the first bad frame. More than one is damage.
//!
//! The format is <https://sqlite.org/fileformat2.html#walformat>. Frames of an earlier round of the same file have
//! other salts and are no part of the log.

use std::io::{self, BufReader, Read};
use std::path::Path;

use super::disk::Disk;
use super::sqlite::{self, OpenError};

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// Refuses a database whose write-ahead log is damaged. To be called before SQLite opens it. Only where every commit is
/// synced: elsewhere a power cut may tear several.
pub(super) fn refuse_damage(disk: &Disk, database: &Path) -> Result<(), OpenError> {
    let wal = sqlite::write_ahead_log(database);
    match commits_behind_damage(disk, &wal) {
        Ok(0) => Ok(()),
        Ok(lost) => Err(OpenError::damaged(
            &wal,
            format!("at least {lost} commits lie behind a frame that fails its checksum"),
        )),
        Err(source) => Err(OpenError::Unreadable { path: wal, source }),
    }
}

/// How many commits of the WAL lie behind a bad frame and would be lost; 0 if it is sound, torn at its end, or absent.
fn commits_behind_damage(disk: &Disk, wal: &Path) -> io::Result<u64> {
    let file = match disk.open(wal) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut input = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_BYTES];
    if !read_whole(&mut input, &mut header)? {
        return Ok(0); // nothing was ever committed to it
    }
    let big_endian = match u32_at(&header, 0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return commits_with_unreadable_header(&mut input),
    };
    let page_bytes = u32_at(&header, 8) as usize;
    if !(512..=65_536).contains(&page_bytes) {
        return commits_with_unreadable_header(&mut input);
    }
    let mut sum = checksum((0, 0), &header[..24], big_endian);
    if sum != (u32_at(&header, 24), u32_at(&header, 28)) {
        // SQLite syncs the header, which fits a disk's sector, before any frame: no power cut tears it.
        return commits_with_unreadable_header(&mut input);
    }
    let mut sound = true;
    let mut behind = 0;
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    while read_whole(&mut input, &mut frame)? {
        let same_round = frame[8..16] == header[16..24];
        if sound {
            let next =
                checksum(checksum(sum, &frame[..8], big_endian), &frame[FRAME_HEADER_BYTES..], big_endian);
            if same_round && next == (u32_at(&frame, 16), u32_at(&frame, 20)) {
                sum = next;
                continue;
            }
            sound = false;
        }
        let is_commit = u32_at(&frame, 4) != 0;
        behind += u64::from(same_round && is_commit);
    }
    // One may be the commit that a power cut tore.
    Ok(if behind > 1 { behind } else { 0 })
}

/// A header that is no header, with frames behind it: everything in the file would be lost.
fn commits_with_unreadable_header(input: &mut impl Read) -> io::Result<u64> {
    let mut rest = [0; FRAME_HEADER_BYTES];
    Ok(u64::from(read_whole(input, &mut rest)?))
}

fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    let word = |bytes: &[u8]| {
        let bytes = bytes.try_into().expect("four bytes");
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Fills `buffer`; false if the input ends before.
fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAL of `commits` one-row commits, as a crash leaves it.
    fn wal_image(commits: i64) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let connection = rusqlite::Connection::open(dir.path().join("x.db")).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE t(a)").unwrap();
        for row in 0..commits {
            connection.execute("INSERT INTO t VALUES(?1)", [row]).unwrap();
        }
        let image = dir.path().join("image-wal");
        std::fs::copy(dir.path().join("x.db-wal"), &image).unwrap();
        (dir, image)
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 0x40;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_sound_an_absent_and_an_empty_log_lose_nothing() {
        let (dir, image) = wal_image(10);
        assert_eq!(commits_behind_damage(&Disk::real(), &image).unwrap(), 0);
        assert_eq!(commits_behind_damage(&Disk::real(), &dir.path().join("none")).unwrap(), 0);
        std::fs::write(&image, b"").unwrap();
        assert_eq!(commits_behind_damage(&Disk::real(), &image).unwrap(), 0);
    }

    #[test]
    fn a_torn_end_is_no_damage() {
        let (_dir, image) = wal_image(10);
        let whole = std::fs::read(&image).unwrap();
        std::fs::write(&image, &whole[..whole.len() - 100]).unwrap();
        assert_eq!(commits_behind_damage(&Disk::real(), &image).unwrap(), 0);
        std::fs::write(&image, &whole).unwrap();
        flip(&image, whole.len() - 100);
        assert_eq!(commits_behind_damage(&Disk::real(), &image).unwrap(), 0);
    }

    #[test]
    fn a_flipped_byte_in_the_middle_is_found() {
        let (_dir, image) = wal_image(10);
        let middle = std::fs::metadata(&image).unwrap().len() as usize / 2;
        flip(&image, middle);
        assert!(commits_behind_damage(&Disk::real(), &image).unwrap() > 1);
    }

    #[test]
    fn a_broken_header_with_frames_behind_it_is_found() {
        for at in [0, 9, 17, 21, 26] {
            let (_dir, image) = wal_image(10);
            flip(&image, at);
            assert!(commits_behind_damage(&Disk::real(), &image).unwrap() > 0, "byte {at}");
        }
    }
}
