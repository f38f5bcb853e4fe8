//! Which servers hold a key.
//!
//! The partitioner is byte-ordered: a key's token is the partition key itself, compared byte by byte, a shorter prefix
//! first (Cassandra's ByteOrderedPartitioner). A server owns the keys in (previous token, own token], wrapping; the
//! replicas of a key are its owner and the next servers clockwise. Neighbouring keys are together, which is what scans
//! want; the price is that keys which begin alike are not spread over the servers.
//!
//! ```text
//!   token 3fff…ff   7fff…ff   bfff…ff   ffff…ff
//!   ──────┤─────────┤─────────┤─────────┤          a key above the last token wraps to the first
//!    0..63    64..127  128..191  192..255          the classic one-byte keys
//!   server 0       1         2         3
//! ```
//!
//! A ring is a value: it has an epoch, and another ring is another value with another epoch.
//!
//! Not here: who is up (`membership`), how many must answer (`coordinator`).

use bytes::Bytes;

use crate::answer::NodeId;

/// Tokens, their owners, and the replicas of each range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    epoch: u64,
    replication_factor: usize,
    /// In rising order of tokens; never empty.
    ranges: Vec<Range>,
}

/// The keys in (previous token, token], and who holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The largest key of the range.
    pub token: Bytes,
    /// The owner first, then clockwise.
    pub replicas: Vec<NodeId>,
}

impl Range {
    /// The server whose token this is.
    pub fn owner(&self) -> NodeId {
        self.replicas[0]
    }
}

impl Ring {
    /// Servers 0 to `nodes` − 1 with evenly spaced tokens, the 16-byte numbers floor((i+1)·2^128/nodes) − 1. With
    /// fewer servers than `replication_factor` every server holds every key.
    pub fn even(nodes: usize, replication_factor: usize) -> Ring {
        assert!(nodes > 0);
        assert!(replication_factor > 0);
        let copies = replication_factor.min(nodes);
        let ranges = (0..nodes)
            .map(|i| Range {
                token: Bytes::copy_from_slice(&even_token(i as u128, nodes as u128).to_be_bytes()),
                replicas: (0..copies).map(|step| NodeId(((i + step) % nodes) as u32)).collect(),
            })
            .collect();
        Ring { epoch: 1, replication_factor: copies, ranges }
    }

    /// The ring's number; a request that was made under another one is refused.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many servers hold each key.
    pub fn replication_factor(&self) -> usize {
        self.replication_factor
    }

    /// Every range, in rising order of tokens.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The range a partition key belongs to.
    pub fn range_of(&self, partition: &[u8]) -> &Range {
        let index = self.ranges.partition_point(|range| range.token.as_ref() < partition);
        self.ranges.get(index).unwrap_or(&self.ranges[0])
    }

    /// The servers that hold a partition key: its owner first, then clockwise.
    pub fn replicas(&self, partition: &[u8]) -> &[NodeId] {
        &self.range_of(partition).replicas
    }

    /// 16 bytes that differ when tokens, owners or replication factor do: two servers compare them when they meet.
    pub fn digest(&self) -> [u8; 16] {
        let mut bytes = (self.replication_factor as u64).to_be_bytes().to_vec();
        for range in &self.ranges {
            bytes.extend_from_slice(&(range.token.len() as u64).to_be_bytes());
            bytes.extend_from_slice(&range.token);
            for replica in &range.replicas {
                bytes.extend_from_slice(&replica.0.to_be_bytes());
            }
        }
        xxhash_rust::xxh3::xxh3_128(&bytes).to_be_bytes()
    }
}

/// floor((i+1)·2^128/nodes) − 1, without leaving 128 bits.
fn even_token(i: u128, nodes: u128) -> u128 {
    // 2^128 = whole·nodes + part, so (i+1)·2^128/nodes = (i+1)·whole + (i+1)·part/nodes.
    let whole = u128::MAX / nodes;
    let part = u128::MAX % nodes + 1;
    let (whole, part) = if part == nodes { (whole.wrapping_add(1), 0) } else { (whole, part) };
    (i + 1).wrapping_mul(whole).wrapping_add((i + 1) * part / nodes).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn the_classic_keys_of_four_servers_start_at_their_quarter() {
        let ring = Ring::even(4, 3);
        for (key, replicas) in [
            (0u8, [0, 1, 2]),
            (63, [0, 1, 2]),
            (64, [1, 2, 3]),
            (127, [1, 2, 3]),
            (128, [2, 3, 0]),
            (137, [2, 3, 0]),
            (191, [2, 3, 0]),
            (192, [3, 0, 1]),
            (255, [3, 0, 1]),
        ] {
            assert_eq!(ring.replicas(&[key]), ids(&replicas), "key {key}");
        }
    }

    #[test]
    fn a_token_belongs_to_its_own_range_and_what_follows_to_the_next() {
        let ring = Ring::even(4, 3);
        let token = ring.ranges()[0].token.clone();
        assert_eq!(ring.range_of(&token).owner(), NodeId(0));
        let mut after = token.to_vec();
        after.push(0);
        assert_eq!(ring.range_of(&after).owner(), NodeId(1));
    }

    #[test]
    fn keys_above_the_last_token_wrap() {
        let ring = Ring::even(4, 3);
        assert_eq!(ring.replicas(&[0xff; 17]), ids(&[0, 1, 2]));
    }

    #[test]
    fn fewer_servers_than_copies_hold_everything() {
        let ring = Ring::even(2, 3);
        assert_eq!(ring.replicas(b"a"), ids(&[0, 1]));
        assert_eq!(Ring::even(1, 1).replicas(b""), ids(&[0]));
    }

    #[test]
    fn even_tokens_are_the_floor_of_the_exact_quotient() {
        // 2^128 / 3 = 0x5555…5 remainder 1; the last token is always 2^128 − 1.
        assert_eq!(even_token(0, 3), 0x5555_5555_5555_5555_5555_5555_5555_5554);
        assert_eq!(even_token(1, 3), 0xaaaa_aaaa_aaaa_aaaa_aaaa_aaaa_aaaa_aaa9);
        for nodes in 1..100 {
            assert_eq!(even_token(nodes - 1, nodes), u128::MAX, "{nodes}");
        }
        assert_eq!(even_token(0, 1 << 20), (1 << 108) - 1);
    }

    #[test]
    fn rings_that_place_keys_differently_have_different_digests() {
        let rings = [Ring::even(4, 3), Ring::even(4, 2), Ring::even(5, 3), Ring::even(3, 3)];
        for (i, a) in rings.iter().enumerate() {
            for (j, b) in rings.iter().enumerate() {
                assert_eq!(a.digest() == b.digest(), i == j);
            }
        }
    }

    proptest! {
        #[test]
        fn every_key_has_distinct_replicas_and_its_owner_is_the_first_token_at_or_after_it(
            nodes in 1usize..40, copies in 1usize..6, key in prop::collection::vec(any::<u8>(), 0..20)
        ) {
            let ring = Ring::even(nodes, copies);
            let mut replicas = ring.replicas(&key).to_vec();
            prop_assert_eq!(replicas.len(), copies.min(nodes));
            let owner = ring.ranges().iter().find(|range| range.token >= key).unwrap_or(&ring.ranges()[0]).owner();
            prop_assert_eq!(replicas[0], owner);
            replicas.sort();
            replicas.dedup();
            prop_assert_eq!(replicas.len(), copies.min(nodes));
        }

        #[test]
        fn tokens_rise(nodes in 1usize..300) {
            let ring = Ring::even(nodes, 3);
            prop_assert!(ring.ranges().windows(2).all(|pair| pair[0].token < pair[1].token));
        }
    }
}
