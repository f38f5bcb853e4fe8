//! A block: cells of an sstable, in key order, in one row that fills a page. To write and to read many cells so takes a
//! fraction of what a row for each does.
//!
//!   length of the key (4 bytes, big-endian) · length of the cell (4 bytes) · key · cell, again and again
//!
//! Not here: the row, its checksum, and where it lies (`sstable`, `base`).

use std::ops::Range;

/// Bytes of a page that are neither the block's nor its first key's: SQLite keeps that many free in a row of its own
/// (<https://sqlite.org/fileformat2.html#b_tree_pages>), and the row has a header, a number and a checksum.
const PAGE_OVERHEAD: usize = 35 + 20;

const LENGTH_BYTES: usize = size_of::<u32>();

/// A block that is being filled.
pub(super) struct BlockBuilder {
    bytes: Vec<u8>,
    /// Bytes of the first cell's key.
    first: usize,
    page_bytes: usize,
}

impl BlockBuilder {
    /// An empty one, for pages of this size in bytes.
    pub fn new(page_bytes: usize) -> BlockBuilder {
        BlockBuilder { bytes: Vec::with_capacity(page_bytes), first: 0, page_bytes }
    }

    /// Adds a cell. False if there is no room: the block is to be taken first. An empty one has room for any.
    pub fn push(&mut self, key: &[u8], cell: &[u8]) -> bool {
        let first = if self.bytes.is_empty() { key.len() } else { self.first };
        let bytes = self.bytes.len() + 2 * LENGTH_BYTES + key.len() + cell.len();
        if !self.bytes.is_empty() && bytes + first + PAGE_OVERHEAD > self.page_bytes {
            return false;
        }
        self.first = first;
        for part in [key, cell] {
            let length = u32::try_from(part.len()).expect("keys and cells are far smaller");
            self.bytes.extend_from_slice(&length.to_be_bytes());
        }
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(cell);
        true
    }

    /// The first key and the block; `None` if it is empty.
    pub fn filled(&self) -> Option<(&[u8], &[u8])> {
        let first = entry(&self.bytes, 0)?;
        Some((&self.bytes[first.key], &self.bytes))
    }

    /// Begins the next block.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// Where in a block a key and its cell are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: Range<usize>,
    pub cell: Range<usize>,
}

/// The entry that begins there; `None` at the end, and where there cannot be one. The next begins where its cell ends.
pub(super) fn entry(block: &[u8], at: usize) -> Option<Entry> {
    let (key, rest) = block.get(at..)?.split_first_chunk::<LENGTH_BYTES>()?;
    let cell = rest.first_chunk::<LENGTH_BYTES>()?;
    let begin = at + 2 * LENGTH_BYTES;
    let middle = begin.checked_add(u32::from_be_bytes(*key) as usize)?;
    let end = middle.checked_add(u32::from_be_bytes(*cell) as usize)?;
    (end <= block.len()).then_some(Entry { key: begin..middle, cell: middle..end })
}

/// The keys and cells of a block.
pub(super) fn entries(block: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    let mut at = 0;
    std::iter::from_fn(move || {
        let entry = entry(block, at)?;
        at = entry.cell.end;
        Some((&block[entry.key], &block[entry.cell]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_fits_a_page_and_one_cell_of_any_length() {
        let mut builder = BlockBuilder::new(4096);
        assert_eq!(builder.filled(), None);
        let keys: Vec<[u8; 20]> = (0..=255).map(|number| [number; 20]).collect();
        let taken = keys.iter().take_while(|key| builder.push(&key[..], &[7; 109])).count();
        assert_eq!(taken, (4096 - 55 - 20) / (8 + 129));
        let (first, block) = builder.filled().unwrap();
        assert_eq!(first, keys[0]);
        assert!(entries(block).map(|(key, _)| key).eq(keys[..taken].iter()));
        assert!(entries(block).all(|(_, cell)| cell == [7; 109]));
        builder.clear();
        assert!(builder.push(b"long", &[1; 10_000]));
        assert!(!builder.push(b"more", b""));
        let (first, block) = builder.filled().unwrap();
        assert_eq!((first, entries(block).count()), (&b"long"[..], 1));
    }

    #[test]
    fn lengths_that_point_elsewhere_are_no_entry() {
        for block in
            [&[][..], &[0; 7], &[0, 0, 0, 1, 0, 0, 0, 0], &[255; 8], &[0, 0, 0, 0, 255, 255, 255, 255, 1]]
        {
            assert_eq!(entry(block, 0), None);
            assert_eq!(entry(block, usize::MAX), None);
        }
    }
}
