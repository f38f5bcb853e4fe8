//! Recovery from damage: one file of a data directory is not as the store left it, anywhere and in any way. The store
//! refuses to open, or what it serves is what was acknowledged.
//!
//! An input names a directory, one of its files, and what becomes of that file: changed, moved, repeated, cut off. Only
//! one file: the others are how a loss is found out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tetrachord::answer::{ApplyAnswer, NodeId, ask_one};
use tetrachord::cell::{Cell, Content, Stamp};
use tetrachord::config::Config;
use tetrachord::key::{self, KV_TABLE};
use tetrachord::mutation::Mutation;
use tetrachord::slice::Slice;
use tetrachord::store::offline::Offline;
use tetrachord::store::{Disk, Drive, OpenError, Store, StoreError};

use super::{Input, Run, Seeds, Target, scratch};

pub const STORE: Target =
    Target { name: "store", start, input_bytes_max: 256, rounds: 400, seeds: store_seeds };

/// Changes of one input.
const CHANGES_MAX: usize = 8;
/// Cells of one page of the walk through a store.
const PAGE_CELLS: usize = 1_000;
/// Its cells have checksums, its pages have none: a changed key, or damage of the tree that leads to a cell, can hide
/// it. What is asked of this one file is that nothing else is ever served in its place.
const BASE: &str = "data.db";
const HINTED: NodeId = NodeId(2);

/// A data directory as the store left it.
struct Image {
    /// Sorted by name.
    files: Vec<(String, Vec<u8>)>,
    /// By engine key.
    cells: BTreeMap<Vec<u8>, Cell>,
    hints: u64,
}

fn start() -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let images = runtime.block_on(images());
    let directory = scratch();
    let mut count = 0u64;
    Box::new(move |data| {
        let mut input = Input(data);
        let image = &images[usize::from(input.byte()) % images.len()];
        let file = usize::from(input.byte()) % image.files.len();
        let look_offline = input.byte().is_multiple_of(8);
        let damaged = damage(&image.files[file].1, &mut input);

        count += 1;
        let path = directory.path().join(count.to_string());
        write(&path, image, file, damaged.as_deref());
        let whole = damaged.as_deref() == Some(&image.files[file].1[..]);
        if look_offline {
            check_offline(&path, image, whole);
        }
        runtime.block_on(check(&path, image, &image.files[file].0, whole));
        std::fs::remove_dir_all(&path).expect("what was made can be deleted");
    })
}

// ------------------------------------------------------------------------------------------------ what is checked

async fn check(path: &Path, image: &Image, file: &str, whole: bool) {
    let store = match open(path) {
        Ok(store) => store,
        Err(error) => {
            assert!(!whole, "nothing was changed: {error}");
            assert!(error.to_string().contains(&path.display().to_string()), "it says where: {error}");
            return;
        }
    };
    let mut missing: Vec<&[u8]> = Vec::new();
    match everything(&store) {
        Err(error) => refused_by_the_base(file, whole, &error),
        Ok(served) => {
            for (key, cell) in &served {
                assert_eq!(
                    image.cells.get(key),
                    Some(cell),
                    "{file} was changed: what was not written is served"
                );
            }
            missing =
                image.cells.keys().filter(|key| !served.contains_key(*key)).map(Vec::as_slice).collect();
        }
    }
    for (key, cell) in image.cells.iter().step_by(7) {
        let at = key::decode(key).expect("a key of ours");
        let slice = Slice {
            table: at.table,
            partition: at.partition,
            first: at.column.clone(),
            last: Some(at.column),
            cells_max: 1,
        };
        match store.read(&slice) {
            Err(error) => refused_by_the_base(file, whole, &error),
            Ok(read) => match read.cells.first() {
                Some((_, read)) => assert_eq!(read, cell, "{file} was changed: what was not written is read"),
                None => missing.push(key),
            },
        }
    }
    if file == BASE {
        missing.clear();
    }
    let lost = missing.first().map(|key| String::from_utf8_lossy(key).into_owned());
    assert_eq!(lost, None, "{file} was changed: {} cells are lost in silence", missing.len());
    assert_eq!(store.hint_total(HINTED).count, image.hints, "{file} was changed: hints are lost in silence");
    store.close().await;
}

/// Damage of data.db may be found when it is read.
fn refused_by_the_base(file: &str, whole: bool, error: &StoreError) {
    assert!(!whole && file.starts_with("data.db"), "{file} was changed: {error}");
}

/// A look at a stopped server's files finds what was written and nothing else, or damage.
fn check_offline(path: &Path, image: &Image, whole: bool) {
    match Offline::open(path, &config(), &Disk::real()) {
        Err(error) => assert!(!whole, "nothing was changed: {error}"),
        Ok(offline) => match offline.page(&[], &[], 100 * PAGE_CELLS) {
            Err(error) => assert!(!whole, "nothing was changed: {error}"),
            Ok(page) => {
                for (key, cell) in &page.cells {
                    assert_eq!(image.cells.get(key), Some(cell), "what was not written is shown");
                }
                assert!(!whole || page.cells.len() == image.cells.len());
            }
        },
    }
}

// ------------------------------------------------------------------------------------------------ what is damaged

/// The file as the input says it is now; `None`: it is gone.
fn damage(sound: &[u8], input: &mut Input) -> Option<Vec<u8>> {
    let mut file = sound.to_vec();
    for _ in 0..CHANGES_MAX {
        if input.0.is_empty() || file.is_empty() {
            break;
        }
        let (what, at) = (input.byte() % 8, input.number() as usize % file.len());
        let mut until = |most: usize| at + (usize::from(input.byte()) * most / 255).min(file.len() - at);
        match what {
            0 => file[at] ^= input.byte().max(1),
            1 => {
                let piece = input.piece();
                let end = (at + piece.len()).min(file.len());
                file[at..end].copy_from_slice(&piece[..end - at]);
            }
            2 => file.truncate(at),
            3 => {
                let end = until(10_000);
                file[at..end].fill(0);
            }
            4 => {
                // A write that went to another place.
                let end = until(10_000);
                let from = input.number() as usize % (file.len() - (end - at) + 1);
                file.copy_within(from..from + (end - at), at);
            }
            5 => {
                // Whole pages change places.
                let page = if input.byte().is_multiple_of(2) { 4096 } else { 8192 };
                let pages = file.len() / page;
                if pages > 0 {
                    let (a, b) = (at / page % pages, input.number() as usize % pages);
                    for offset in 0..page {
                        file.swap(a * page + offset, b * page + offset);
                    }
                }
            }
            6 => {
                let end = until(10_000);
                let piece = file[at..end].to_vec();
                file.extend_from_slice(&piece);
            }
            _ => return None,
        }
    }
    Some(file)
}

fn write(path: &Path, image: &Image, changed: usize, now: Option<&[u8]>) {
    std::fs::create_dir(path).expect("a directory can be made");
    for (index, (name, sound)) in image.files.iter().enumerate() {
        let bytes = if index == changed { now } else { Some(&sound[..]) };
        if let Some(bytes) = bytes {
            std::fs::write(path.join(name), bytes).expect("a file can be written");
        }
    }
}

// ------------------------------------------------------------------------------------------------ sound directories

/// Limits as small as they may be, so that a little data goes everywhere.
fn config() -> Config {
    Config {
        memtable_bytes_max: 100_000,
        flush_transaction_cells: 100,
        wal_autocheckpoint_pages: 20,
        compaction_sstables: 4,
        base_cache_bytes: 100_000,
        ..Config::default()
    }
}

fn open(path: &Path) -> Result<Store, OpenError> {
    let opened = Store::open(path, &config(), Disk::real(), Drive::task(), Arc::default(), |_| {});
    opened.map(|(store, _)| store)
}

/// Directories of one store at several times of its life.
async fn images() -> Vec<Image> {
    let directory = scratch();
    let mut images = Vec::new();
    let store = open(directory.path()).expect("an empty directory opens");
    let mut written = BTreeMap::new();
    for number in 0..12 {
        apply(&store, &mut written, format!("young {number}"), number).await;
    }
    images.push(image(directory.path(), &written, 0)); // killed; everything is in write-ahead logs

    for number in 0..600 {
        apply(&store, &mut written, format!("{number:03}"), 100 + number).await;
    }
    until_quiet(&store).await;
    for number in 0..12 {
        apply(&store, &mut written, format!("late {number}"), 1_000 + number).await;
        apply(&store, &mut written, format!("{:03}", 3 * number), 2_000 + number).await;
    }
    for number in 0..3 {
        let mutation = mutation(format!("hint {number}"), number);
        let hint = ask_one(HINTED, |to| store.hint(HINTED, Arc::new(mutation), 5, to)).await;
        hint.expect("a hint is taken");
    }
    images.push(image(directory.path(), &written, 3)); // killed in the middle of its life
    store.close().await;
    drop(store);
    images.push(image(directory.path(), &written, 3)); // stopped in good order
    images
}

fn image(directory: &Path, cells: &BTreeMap<Vec<u8>, Cell>, hints: u64) -> Image {
    let mut names: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    let file = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let mut bytes = std::fs::read(path).expect("a file");
        if name.ends_with("-wal") {
            forget_salts(&mut bytes);
        }
        (name, bytes)
    };
    let files = names.iter().filter(|path| !path.to_string_lossy().ends_with("-shm")).map(file);
    let files = files.filter(|(_, bytes)| !bytes.is_empty()).collect();
    Image { files, cells: cells.clone(), hints }
}

fn mutation(partition: String, number: i64) -> Mutation {
    let value = Bytes::from(format!("value {number} of {partition}"));
    let content = match number % 5 {
        3 => Content::Expiring { value, expires_at_s: 4_000_000_000 },
        4 => Content::Tombstone,
        _ => Content::Value(value),
    };
    let cell = Cell { stamp: Stamp(number + 1), content };
    let mut mutation = Mutation::single(KV_TABLE, Bytes::from(partition), cell.clone());
    if number % 2 == 0 {
        mutation.cells.push((Bytes::from_static(b"column"), cell));
    }
    mutation
}

async fn apply(store: &Store, written: &mut BTreeMap<Vec<u8>, Cell>, partition: String, number: i64) {
    let mutation = Arc::new(mutation(partition, number));
    for (column, cell) in &mutation.cells {
        written.insert(key::encode(mutation.table, &mutation.partition, column), cell.clone());
    }
    let answer = ask_one(NodeId(0), |to| store.apply(mutation, to)).await;
    assert_eq!(answer, ApplyAnswer::Applied);
}

/// Everything there is.
fn everything(store: &Store) -> Result<BTreeMap<Vec<u8>, Cell>, StoreError> {
    let mut cells = BTreeMap::new();
    let mut after = Vec::new();
    loop {
        let page = store.page(&after, &[], PAGE_CELLS)?;
        cells.extend(page.cells);
        if page.complete {
            return Ok(cells);
        }
        after = page.upto;
    }
}

/// Waits until nothing is being flushed and the log has forgotten what was.
async fn until_quiet(store: &Store) {
    let busy = |gauges: Vec<(&str, i64)>| {
        gauges.iter().any(|(name, count)| ["frozen_cells", "log_rows_flushed"].contains(name) && *count > 0)
    };
    while busy(store.gauges()) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// SQLite salts each write-ahead log by chance; with salts that are always the same, so is what an input does.
/// The format is <https://sqlite.org/fileformat2.html#walformat>.
fn forget_salts(wal: &mut [u8]) {
    const SALTS: [u8; 8] = *b"salt-ed!";
    const OLD_SALTS: [u8; 8] = *b"older...";
    if wal.len() < 32 {
        return;
    }
    let big_endian = wal[3] & 1 == 1;
    let page = u32::from_be_bytes(wal[8..12].try_into().expect("four bytes")) as usize;
    let salts: [u8; 8] = wal[16..24].try_into().expect("eight bytes");
    wal[16..24].copy_from_slice(&SALTS);
    let mut sum = checksum((0, 0), &wal[..24], big_endian);
    put(&mut wal[24..32], sum);
    for frame in wal[32..].chunks_exact_mut(24 + page) {
        if frame[8..16] == salts {
            frame[8..16].copy_from_slice(&SALTS);
            sum = checksum(checksum(sum, &frame[..8], big_endian), &frame[24..], big_endian);
            put(&mut frame[16..24], sum);
        } else {
            frame[8..16].copy_from_slice(&OLD_SALTS);
            frame[16..24].fill(0);
        }
    }
}

fn put(place: &mut [u8], (a, b): (u32, u32)) {
    place[..4].copy_from_slice(&a.to_be_bytes());
    place[4..].copy_from_slice(&b.to_be_bytes());
}

fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let word = |bytes: &[u8]| {
            let bytes = bytes.try_into().expect("four bytes");
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

fn store_seeds() -> Seeds {
    let mut seeds = Seeds::new();
    let change = |what: u8, at: u32, rest: &[u8]| [&[what], &at.to_be_bytes()[..], rest].concat();
    for image in 0..3u8 {
        for file in 0..5u8 {
            for (name, changes) in [
                ("sound", vec![]),
                ("flip", change(0, 9_000, &[0, 1])),
                ("header", change(0, 18, &[0, 3])),
                ("overwrite", change(1, 5_000, &[0, 4, 1, 2, 3, 4])),
                ("cut", change(2, 20_000, &[])),
                ("zeros", change(3, 8_192, &[100])),
                ("misplaced", change(4, 4_096, &[100, 0, 0, 32, 0])),
                ("pages", change(5, 8_192, &[0, 0, 0, 0, 0, 3])),
            ] {
                let input = [&[image, file, 0], &changes[..]].concat();
                seeds.push((format!("{image}-{file}-{name}"), input));
            }
        }
        seeds.push((format!("{image}-gone"), [&[image, 1, 1][..], &change(7, 0, &[])].concat()));
    }
    seeds
}
