//! The files of a stopped server, read without changing them.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{FIRST_ENTRIES, one_key};
use crate::answer::NodeId;
use crate::cell::Cell;
use crate::client::text;
use crate::config::Config;
use crate::key::{self, KV_TABLE};
use crate::store::offline::Offline;
use crate::store::{Disk, OpenError, StoreError};

/// What a stopped server's files hold.
pub struct Files {
    /// Cells in the order of their engine keys, a bounded page at a time.
    pub pages: Pages,
    /// For whom hints are kept, and how many mutations.
    pub hints: Vec<(NodeId, u64)>,
}

/// Cells of one page.
const PAGE_CELLS: usize = 1_000;

/// Pages of (engine key, cell); an error ends them.
pub type Pages = Box<dyn Iterator<Item = Result<Vec<(Bytes, Cell)>, OfflineError>>>;

/// Why a data directory cannot be read. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There are no files of a server, or they cannot be opened.
    #[error("{path}: {source}", path = path.display())]
    Closed {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The files are not as they should be.
    #[error(transparent)]
    Damaged(#[from] StoreError),
}

/// Opens the files of a stopped server for reading: all they hold, or one partition of the key-value table.
fn open(dir: &Path, key: Option<&[u8]>) -> Result<Files, OfflineError> {
    let closed = |source| OfflineError::Closed { path: dir.to_owned(), source };
    let store = Offline::open(dir, &Config::default(), &Disk::real()).map_err(closed)?;
    let hints = store.hint_totals().iter().map(|(node, held)| (*node, held.count)).collect();
    let (after, upto) = key.map_or_else(Default::default, one_key::bounds);
    let mut after = Some(after);
    let pages = std::iter::from_fn(move || {
        let page = store.page(&after.take()?, &upto, PAGE_CELLS);
        Some(page.map_err(OfflineError::from).map(|page| {
            after = (!page.complete).then_some(page.upto);
            page.cells.into_iter().map(|(key, cell)| (Bytes::from(key), cell)).collect()
        }))
    });
    Ok(Files { pages: Box::new(pages), hints })
}

/// What the files of a stopped server hold; with `key`, only that partition key, tombstones included.
pub fn offline(dir: &Path, key: Option<&[u8]>, now_s: i64) -> Result<OfflineReport, OfflineError> {
    summarise(open(dir, key)?, key.is_some(), now_s)
}

/// What a stopped server's files hold, in numbers and by its first entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OfflineReport {
    /// Cells a reader would see.
    pub live: u64,
    /// Deletions.
    pub tombstones: u64,
    /// Values past their time.
    pub expired: u64,
    /// The first live cells, or with a key all of its cells: key, what it says, stamp.
    pub entries: Vec<(String, String, i64)>,
    /// For whom hints are kept, and how many mutations.
    pub hints: Vec<(NodeId, u64)>,
}

/// `each`: shows every cell, and not only the first that a reader would see.
fn summarise(files: Files, each: bool, now_s: i64) -> Result<OfflineReport, OfflineError> {
    let mut report = OfflineReport { hints: files.hints, ..OfflineReport::default() };
    for page in files.pages {
        for (engine_key, cell) in page? {
            report.note(&engine_key, &cell, each, now_s);
        }
    }
    Ok(report)
}

impl OfflineReport {
    fn note(&mut self, engine_key: &[u8], cell: &Cell, each: bool, now_s: i64) {
        let label = match key::decode(engine_key) {
            Ok(at) if at.table == KV_TABLE && at.column.is_empty() => text::shown_key(&at.partition),
            Ok(at) => {
                format!("{}/{}/{}", at.table.0, text::shown_key(&at.partition), text::value(&at.column))
            }
            Err(_) => format!("damaged key {}", text::hex(engine_key)),
        };
        let says = match (cell.live_value(now_s), cell.expires_at_s()) {
            (Some(value), _) => {
                self.live += 1;
                text::cut(&text::value(value), 40)
            }
            (None, None) => {
                self.tombstones += 1;
                "deleted".to_owned()
            }
            (None, Some(expired)) => {
                self.expired += 1;
                format!("expired {}", text::second_utc(expired))
            }
        };
        let is_live = cell.live_value(now_s).is_some();
        if each || (is_live && self.entries.len() < FIRST_ENTRIES) {
            self.entries.push((label, says, cell.stamp.0));
        }
    }

    /// As a person reads it.
    pub fn text(&self, dir: &Path) -> String {
        let keys = text::plural(self.live, "key", "keys");
        let (deleted, expired) = (text::count(self.tombstones), text::count(self.expired));
        let mut out = format!("{}  {keys}, {deleted} deleted, {expired} expired\n", dir.display());
        for (key, says, stamp) in &self.entries {
            out += &format!("  {key} → {says} @{}\n", text::stamp(*stamp));
        }
        let live_shown = self.entries.len() as u64;
        if self.live > live_shown {
            out += &format!("  … and {} more\n", text::count(self.live - live_shown));
        }
        for (absent, count) in &self.hints {
            out += &format!("hints: {} for server {absent}\n", text::count(*count));
        }
        out
    }

    /// As a program reads it.
    pub fn json(&self) -> Value {
        let entry =
            |(key, says, stamp): &(String, String, i64)| json!({"key": key, "says": says, "stamp": stamp});
        let hints = |(absent, count): &(NodeId, u64)| json!({"for": absent.0, "count": count});
        json!({"keys": self.live, "tombstones": self.tombstones, "expired": self.expired,
            "entries": self.entries.iter().map(entry).collect::<Vec<_>>(),
            "hints": self.hints.iter().map(hints).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::answer::ask_one;
    use crate::cell::{Content, Stamp};
    use crate::client::fake;
    use crate::mutation::Mutation;
    use crate::store::{Drive, Store};

    fn files() -> Files {
        let at = |partition: &[u8]| Bytes::from(key::encode(KV_TABLE, partition, b""));
        let late = Content::Expiring { value: Bytes::from_static(b"v"), expires_at_s: 100 };
        let expired = Cell { stamp: Stamp(4), content: late };
        let pages = vec![
            Ok(vec![(at(&[0]), fake::value(1, "value0")), (at(&[1]), fake::tombstone(2))]),
            Ok(vec![(at(&[2]), expired), (at(b"text"), fake::value(3, "a b"))]),
        ];
        Files { pages: Box::new(pages.into_iter()), hints: vec![(NodeId(2), 7)] }
    }

    #[test]
    fn a_stopped_servers_files_are_counted_and_their_first_keys_shown() {
        let report = summarise(files(), false, 100).unwrap();
        assert_eq!(
            report.text(Path::new("data/0")),
            "data/0  2 keys, 1 deleted, 1 expired\n  0 → value0 @1\n  text → 'a b' @3\nhints: 7 for server 2\n"
        );
    }

    #[tokio::test]
    async fn one_key_is_shown_even_if_it_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        let (store, _) =
            Store::open(dir.path(), &config, Disk::real(), Drive::Thread, Default::default(), |_| {})
                .unwrap();
        for (partition, cell) in [
            (&[1][..], fake::tombstone(2)),
            (&[0, 0xff], fake::value(3, "before")),
            (&[1, 0], fake::value(4, "after")),
        ] {
            let mutation = Mutation::single(KV_TABLE, Bytes::copy_from_slice(partition), cell);
            ask_one(NodeId(0), |to| store.apply(Arc::new(mutation), to)).await;
        }
        store.close().await;
        drop(store);
        let report = offline(dir.path(), Some(&[1]), 100).unwrap();
        assert_eq!(report.entries, [("1".to_owned(), "deleted".to_owned(), 2)]);
        assert_eq!((report.live, report.tombstones), (0, 1));
        assert_eq!(offline(dir.path(), None, 100).unwrap().live, 2);
    }

    #[test]
    fn a_damaged_page_is_an_error_and_never_skipped() {
        let what = "row 7 fails its checksum".to_owned();
        let damaged = OfflineError::Damaged(StoreError::Damaged { path: "data/0/data.db".into(), what });
        let pages = Box::new(files().pages.chain([Err(damaged)]));
        let error = summarise(Files { pages, hints: Vec::new() }, false, 100).unwrap_err();
        assert!(error.to_string().contains("row 7 fails its checksum"), "{error}");
    }

    #[test]
    fn a_directory_without_a_store_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = offline(dir.path(), None, 0).unwrap_err().to_string();
        assert!(error.contains("cannot open"), "{error}");
    }
}
