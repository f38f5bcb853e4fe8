//! Which keys an sstable may have, in few bits, so that a get need not look into those without its key.
//!
//! A split block Bloom filter: a key has a bit in each of the eight words of one block, so that asking touches one line
//! of the processor's cache. <https://parquet.apache.org/docs/file-format/bloomfilter/>

use xxhash_rust::xxh3::xxh3_64;

/// Bits for each key: about one key in 200 is looked for in vain.
const KEY_BITS: usize = 12;

/// With more keys than this is for more are looked for in vain.
const BYTES_MAX: usize = 16 * 1024 * 1024;

const WORDS: usize = 8;
const BLOCK_BYTES: usize = WORDS * size_of::<u32>();

/// Odd factors, from the same source, that give each word its own bit.
const FACTORS: [u32; WORDS] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// A set of keys that has all that were noted, and a few more.
#[derive(Clone)]
pub(super) struct Filter {
    /// At least one.
    blocks: Box<[[u32; WORDS]]>,
}

/// A key as filters see it.
#[derive(Clone, Copy)]
pub(super) struct KeyHash(u64);

impl KeyHash {
    pub fn of(key: &[u8]) -> KeyHash {
        KeyHash(xxh3_64(key))
    }

    /// The bit of each word.
    fn bits(self) -> [u32; WORDS] {
        FACTORS.map(|factor| 1 << ((self.0 as u32).wrapping_mul(factor) >> 27))
    }

    fn block(self, blocks: usize) -> usize {
        (((self.0 >> 32) * blocks as u64) >> 32) as usize
    }
}

impl Filter {
    /// An empty one for about this many keys.
    pub fn new(keys: usize) -> Filter {
        let blocks = (keys.saturating_mul(KEY_BITS) / 8).min(BYTES_MAX) / BLOCK_BYTES + 1;
        Filter { blocks: vec![[0; WORDS]; blocks].into() }
    }

    pub fn note(&mut self, key: KeyHash) {
        let block = &mut self.blocks[key.block(self.blocks.len())];
        block.iter_mut().zip(key.bits()).for_each(|(word, bit)| *word |= bit);
    }

    /// False if the key was certainly not noted.
    pub fn may_have(&self, key: KeyHash) -> bool {
        let block = &self.blocks[key.block(self.blocks.len())];
        block.iter().zip(key.bits()).all(|(word, bit)| word & bit != 0)
    }

    /// As it is kept in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.blocks.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What [`Filter::to_bytes`] made; `None`: it did not.
    pub fn from_bytes(bytes: &[u8]) -> Option<Filter> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let word = |word: &[u8]| u32::from_le_bytes(word.try_into().expect("four bytes"));
        let block = |block: &[u8]| {
            let mut words = block.chunks_exact(size_of::<u32>()).map(word);
            std::array::from_fn(|_| words.next().expect("eight words"))
        };
        Some(Filter { blocks: bytes.chunks_exact(BLOCK_BYTES).map(block).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> KeyHash {
        KeyHash::of(&number.to_be_bytes())
    }

    #[test]
    fn it_has_what_was_noted_and_little_else() {
        for keys in [0, 1, 100, 20_000] {
            let mut filter = Filter::new(keys as usize);
            (0..keys).for_each(|number| filter.note(key(number)));
            let kept = Filter::from_bytes(&filter.to_bytes()).unwrap();
            assert!((0..keys).all(|number| kept.may_have(key(number))));
            let in_vain = (1_000_000..1_020_000).filter(|number| kept.may_have(key(*number))).count();
            assert!(in_vain < 400, "{in_vain} of 20,000 with {keys}");
        }
    }

    #[test]
    fn its_size_is_bounded() {
        assert!(Filter::new(usize::MAX).to_bytes().len() <= BYTES_MAX + BLOCK_BYTES);
    }

    #[test]
    fn what_is_no_filter_is_told() {
        assert!(Filter::from_bytes(&[]).is_none());
        assert!(Filter::from_bytes(&[0; BLOCK_BYTES + 1]).is_none());
    }
}
