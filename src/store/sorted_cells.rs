//! Encoded cells in the order of their engine keys: a B+ tree of three levels that waits for memory as little as can
//! be.
//!
//!   top      where each branch begins
//!   branch   up to 256 nodes, and where each begins; with the top a hundredth of the data, mostly in the caches
//!   node     up to 31 cells, and their keys
//!
//! In a large tree a search is mostly waiting for memory: for the keys of a node, then for its cell. One search can do
//! nothing about that, but those of a batch can wait together: [`SortedCells::find`] makes the same step of many
//! searches before it makes the next of any, without a jump that depends on a key, so that the processor has many loads
//! under way. A place that it found may be out of date when it is used: whoever uses one looks whether the key is
//! there.
//!
//! Not here: which of two cells wins (`memtable`).

use std::array;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hint::{black_box, select_unpredictable};
use std::mem;
use std::ops::Deref;

/// Cells of a node: it then fits an allocation of 1,280 bytes.
const NODE_CELLS: usize = 31;

/// Nodes of a branch: putting one between them moves 4 kB on average.
const BRANCH_NODES: usize = 256;

/// Searches that wait for memory together: about as many loads as a processor's core has under way.
const TOGETHER: usize = 16;

/// Keys up to this length are kept in the nodes: those of partition keys of up to 18 bytes, fewer with zeros among
/// them.
const SHORT_KEY_BYTES: usize = 22;

/// An engine key. Short ones are kept in place, so that a search, which mostly waits for memory, has no pointer to
/// follow at each comparison.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Short { len: u8, bytes: [u8; SHORT_KEY_BYTES] },
    Long(Box<[u8]>),
}

impl Key {
    /// The least of all.
    const EMPTY: Key = Key::Short { len: 0, bytes: [0; SHORT_KEY_BYTES] };
}

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Key {
        let mut bytes = [0; SHORT_KEY_BYTES];
        match bytes.get_mut(..key.len()) {
            Some(start) => {
                start.copy_from_slice(key);
                Key::Short { len: key.len() as u8, bytes }
            }
            None => Key::Long(key.into()),
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Key::Short { len, bytes } => &bytes[..usize::from(*len)],
            Key::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}

/// The order of the bytes. Two short keys are compared as numbers: what lies behind a key is zeros, so only where one
/// goes on with zeros does the length decide.
impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        match (self, other) {
            (Key::Short { len, bytes }, Key::Short { len: other_len, bytes: other }) => {
                numbers(bytes, *len).cmp(&numbers(other, *other_len))
            }
            _ => (**self).cmp(&**other),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }

    /// Without a jump where both are short: see the head of the module.
    #[inline(always)]
    fn le(&self, other: &Key) -> bool {
        match (self, other) {
            (Key::Short { len, bytes }, Key::Short { len: other_len, bytes: other }) => {
                let (first, rest) = numbers(bytes, *len);
                let (other_first, other_rest) = numbers(other, *other_len);
                (first < other_first) | ((first == other_first) & (rest <= other_rest))
            }
            _ => self.cmp(other).is_le(),
        }
    }
}

/// The first 16 bytes of a short key, and the other 6 with its length, as numbers.
fn numbers(bytes: &[u8; SHORT_KEY_BYTES], len: u8) -> (u128, u64) {
    let first = bytes.first_chunk().expect("it is longer");
    let last = bytes.last_chunk().expect("it is longer");
    (u128::from_be_bytes(*first), u64::from_be_bytes(*last) << 16 | u64::from(len))
}

/// Encoded cells in the order of their engine keys. None is ever taken out.
#[derive(Default)]
pub(super) struct SortedCells {
    /// The first key of each branch; for the first one the empty key, before which there is none.
    least: Vec<Key>,
    branches: Vec<Branch>,
    len: usize,
}

struct Branch {
    /// The first key of each node; for the first one what the top has for the branch.
    least: Vec<Key>,
    /// None is empty.
    #[expect(clippy::vec_box, reason = "to put one between others moves those behind it, a kilobyte each")]
    nodes: Vec<Box<Node>>,
}

#[repr(C)] // the length and the first keys share a cache line
struct Node {
    len: usize,
    /// Those from `len` on are empty.
    keys: [Key; NODE_CELLS],
    cells: [Box<[u8]>; NODE_CELLS],
}

/// Where a cell is, or was.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    branch: usize,
    node: usize,
    cell: usize,
}

impl SortedCells {
    /// How many cells.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The cell under a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let place = if key.len() <= SHORT_KEY_BYTES {
            self.search(&Key::from(key)).ok()? // which compares faster
        } else {
            self.search(key).ok()?
        };
        Some(&self.branches[place.branch].nodes[place.node].cells[place.cell])
    }

    /// Where the cells under these keys may be. Reads what is to be read of each, so that it is at hand afterwards.
    pub fn find(&self, keys: &[Key]) -> Vec<Place> {
        if self.len == 0 {
            return vec![Place::default(); keys.len()];
        }
        let mut places = Vec::with_capacity(keys.len());
        for keys in keys.chunks(TOGETHER) {
            let key = array::from_fn(|n| &keys[n.min(keys.len() - 1)]);
            let branch = last_upto(key, [&self.least; TOGETHER]);
            let branches = branch.map(|at| &self.branches[at]);
            let node = last_upto(key, branches.map(|branch| &branch.least[..]));
            let nodes: [&Node; TOGETHER] = array::from_fn(|n| &*branches[n].nodes[node[n]]);
            let cell = last_upto(key, nodes.map(Node::keys));
            let first_byte = |n: usize| nodes[n].cells[cell[n]].first().copied().unwrap_or_default();
            black_box((0..TOGETHER).fold(0, |all, n| all ^ first_byte(n)));
            let place = |n: usize| Place { branch: branch[n], node: node[n], cell: cell[n] };
            places.extend((0..keys.len()).map(place));
        }
        places
    }

    /// The cell under a key, to be overwritten; it is looked for in `place` first. If there is none, before which place
    /// it belongs, or behind.
    pub fn get_mut(&mut self, key: &Key, place: Place) -> Result<&mut Box<[u8]>, Place> {
        let place = self.look(place, key).unwrap_or_else(|| self.search(key))?;
        Ok(&mut self.branches[place.branch].nodes[place.node].cells[place.cell])
    }

    /// Puts a cell into the node where its key belongs, as [`SortedCells::get_mut`] has just said.
    pub fn insert(&mut self, place: Place, key: Key, cell: Box<[u8]>) {
        self.len += 1;
        let Some(last) = self.branches.len().checked_sub(1) else {
            return self.push(Key::EMPTY, Node::new(key, cell));
        };
        let branch = &mut self.branches[place.branch];
        if let Some(right) = branch.insert(place.node, key, cell, place.branch == last) {
            self.least.insert(place.branch + 1, right.least[0].clone());
            self.branches.insert(place.branch + 1, right);
        }
    }

    /// Keys and cells from `start` on, up to but without `end`, in order.
    pub fn range<'a>(
        &'a self,
        start: &'a [u8],
        end: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let first = one_last_upto(&self.least, start);
        let nodes = self.branches.get(first).map(|branch| {
            let others = self.branches[first + 1..].iter().flat_map(|branch| &branch.nodes);
            branch.nodes[one_last_upto(&branch.least, start)..].iter().chain(others)
        });
        let cells = nodes.into_iter().flatten().flat_map(|node| node.iter());
        cells
            .skip_while(move |(key, _)| *key < start)
            .take_while(move |(key, _)| end.is_none_or(|end| *key < end))
    }

    /// To be freed bit by bit: at once a large tree takes a processor for tens of milliseconds.
    pub fn into_remains(self) -> Remains {
        Remains(self.branches)
    }

    /// Where the key is, or else where it belongs.
    fn search<Q: Ord + ?Sized>(&self, key: &Q) -> Result<Place, Place>
    where
        Key: Borrow<Q>,
    {
        let branch = one_last_upto(&self.least, key);
        let Some(Branch { least, nodes }) = self.branches.get(branch) else {
            return Err(Place::default());
        };
        fetch(least);
        let node = one_last_upto(least, key);
        nodes[node].fetch();
        let keys = nodes[node].keys();
        let cell = one_last_upto(keys, key);
        let place = Place { branch, node, cell };
        if keys[cell].borrow() == key { Ok(place) } else { Err(place) }
    }

    /// Whether the key is in this place, or belongs behind it; `None` if its node does not show that.
    fn look(&self, place: Place, key: &Key) -> Option<Result<Place, Place>> {
        let keys = self.branches.get(place.branch)?.nodes.get(place.node)?.keys();
        let held = keys.get(place.cell)?;
        if held == key {
            return Some(Ok(place));
        }
        let next = keys.get(place.cell + 1)?;
        (held < key && key < next).then_some(Err(place))
    }

    /// Adds a node behind all others.
    fn push(&mut self, least: Key, node: Box<Node>) {
        match self.branches.last_mut() {
            Some(branch) if branch.nodes.len() < BRANCH_NODES => {
                branch.least.push(least);
                branch.nodes.push(node);
            }
            _ => {
                self.least.push(least.clone());
                self.branches.push(Branch { least: vec![least], nodes: vec![node] });
            }
        }
    }
}

/// From cells in the order of their keys, each of which is there once.
impl FromIterator<(Key, Box<[u8]>)> for SortedCells {
    fn from_iter<I: IntoIterator<Item = (Key, Box<[u8]>)>>(cells: I) -> SortedCells {
        let mut sorted = SortedCells::default();
        let mut cells = cells.into_iter();
        while let Some((key, cell)) = cells.next() {
            let least = if sorted.len == 0 { Key::EMPTY } else { key.clone() };
            let mut node = Node::new(key, cell);
            for (key, cell) in cells.by_ref().take(NODE_CELLS - 1) {
                node.put(node.len, key, cell);
            }
            sorted.len += node.len;
            sorted.push(least, node);
        }
        sorted
    }
}

impl Branch {
    /// What has no room any more becomes a branch of its own. `last`: there is none behind this one.
    fn insert(&mut self, node: usize, key: Key, cell: Box<[u8]>, last: bool) -> Option<Branch> {
        let last = last && node + 1 == self.nodes.len();
        let right = self.nodes[node].insert(key, cell, last)?;
        self.least.insert(node + 1, right.keys[0].clone());
        self.nodes.insert(node + 1, right);
        if self.nodes.len() <= BRANCH_NODES {
            return None;
        }
        let left = if last { BRANCH_NODES } else { BRANCH_NODES / 2 };
        Some(Branch { least: self.least.split_off(left), nodes: self.nodes.split_off(left) })
    }
}

impl Node {
    fn new(key: Key, cell: Box<[u8]>) -> Box<Node> {
        let mut node = Box::new(Node::default());
        node.put(0, key, cell);
        node
    }

    /// As [`fetch`] does, but without waiting for the length.
    fn fetch(&self) {
        let keys = [5, 10, 15, 20, 25, 30].map(|n| matches!(self.keys[n], Key::Long(_)));
        let cells = [6, 14, 22, 30].map(|n| self.cells[n].is_empty());
        black_box((keys, cells));
    }

    fn keys(&self) -> &[Key] {
        &self.keys[..self.len]
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.keys().iter().zip(&self.cells).map(|(key, cell)| (&**key, &**cell))
    }

    /// What has no room any more becomes a node of its own: half of the cells, or, when appending to the last node,
    /// only the new one, which leaves that node full.
    fn insert(&mut self, key: Key, cell: Box<[u8]>, last: bool) -> Option<Box<Node>> {
        let at = self.keys().partition_point(|held| *held <= key);
        if self.len < NODE_CELLS {
            self.put(at, key, cell);
            return None;
        }
        if last && at == NODE_CELLS {
            return Some(Node::new(key, cell));
        }
        let left = NODE_CELLS.div_ceil(2);
        let mut right = Box::new(Node::default());
        for (to, from) in (left..self.len).enumerate() {
            right.keys[to] = mem::replace(&mut self.keys[from], Key::EMPTY);
            right.cells[to] = mem::take(&mut self.cells[from]);
        }
        (self.len, right.len) = (left, self.len - left);
        if at <= left {
            self.put(at, key, cell);
        } else {
            right.put(at - left, key, cell);
        }
        Some(right)
    }

    /// There must be room.
    fn put(&mut self, at: usize, key: Key, cell: Box<[u8]>) {
        self.keys[self.len] = key;
        self.cells[self.len] = cell;
        self.len += 1;
        self.keys[at..self.len].rotate_right(1);
        self.cells[at..self.len].rotate_right(1);
    }
}

/// Empty.
impl Default for Node {
    fn default() -> Node {
        Node { len: 0, keys: [Key::EMPTY; NODE_CELLS], cells: array::from_fn(|_| Box::default()) }
    }
}

/// Reads here and there, so that the processor fetches what a search may need at once, not one part after the other.
fn fetch(keys: &[Key]) {
    let part = keys.len().div_ceil(8);
    black_box([1, 2, 3, 4, 5, 6, 7].map(|n| matches!(keys.get(n * part), Some(Key::Long(_)))));
}

/// Which of the keys is the last up to this one; the first if none is.
fn one_last_upto<Q: Ord + ?Sized>(keys: &[Key], key: &Q) -> usize
where
    Key: Borrow<Q>,
{
    keys.partition_point(|held| held.borrow() <= key).saturating_sub(1)
}

/// The same of many keys, each among others, of which there must be some.
fn last_upto(keys: [&Key; TOGETHER], among: [&[Key]; TOGETHER]) -> [usize; TOGETHER] {
    let mut at = [0; TOGETHER];
    let mut left = among.map(<[Key]>::len);
    while left.iter().any(|&left| left > 1) {
        for n in 0..TOGETHER {
            let middle = at[n] + left[n] / 2;
            at[n] = select_unpredictable(among[n][middle] <= *keys[n], middle, at[n]);
            left[n] -= left[n] / 2;
        }
    }
    at
}

/// Cells that nobody needs any more.
pub(super) struct Remains(Vec<Branch>);

impl Remains {
    /// Gives the memory of about this many cells back. False if those were the last.
    pub fn free(&mut self, cells: usize) -> bool {
        for _ in 0..cells.div_ceil(NODE_CELLS) {
            let Some(branch) = self.0.last_mut() else { break };
            branch.nodes.pop();
            if branch.nodes.is_empty() {
                self.0.pop();
            }
        }
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn cell(number: u16) -> Box<[u8]> {
        number.to_be_bytes().into()
    }

    /// Of few different bytes, so that some share a beginning, or go on with zeros.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let short = prop::collection::vec(prop::sample::select(vec![0u8, 1, 0xff]), 0..6);
        let long = prop::collection::vec(
            prop::sample::select(vec![0u8, 7]),
            SHORT_KEY_BYTES - 2..SHORT_KEY_BYTES + 3,
        );
        prop_oneof![4 => short, 1 => long]
    }

    fn check(cells: &SortedCells, model: &BTreeMap<Vec<u8>, Box<[u8]>>, start: &[u8], end: &[u8]) {
        assert_eq!(cells.len(), model.len());
        let all: Vec<_> = cells.range(&[], None).collect();
        assert!(all.iter().copied().eq(model.iter().map(|(key, cell)| (&key[..], &cell[..]))));
        for (key, cell) in model {
            assert_eq!(cells.get(key), Some(&**cell));
        }
        assert_eq!(cells.get(end), model.get(end).map(|cell| &**cell));
        let keys: Vec<Key> = model.keys().map(|key| key[..].into()).collect();
        let mut found = cells.find(&keys).into_iter().zip(&keys).map(|(place, key)| cells.look(place, key));
        assert!(found.all(|found| matches!(found, Some(Ok(_)))));
        let part = cells.range(start, Some(end)).map(|(key, _)| key);
        let expected = model.keys().map(|key| &key[..]).filter(|key| (start..end).contains(key));
        assert!(part.eq(expected));
        assert!(cells.least.first().is_none_or(|least| least.is_empty()));
        assert_eq!(cells.least.len(), cells.branches.len());
        for (least, branch) in cells.least.iter().zip(&cells.branches) {
            assert_eq!((least, branch.least.len()), (&branch.least[0], branch.nodes.len()));
            assert!(branch.nodes.len() <= BRANCH_NODES);
            let said = branch.least.iter().zip(&branch.nodes);
            assert!(said.skip(1).all(|(least, node)| node.keys().first() == Some(least)));
        }
        let mut filled = cells.branches.iter().flat_map(|branch| &branch.nodes).map(|node| node.len).rev();
        assert!(filled.next().is_none_or(|last| last > 0) && filled.all(|cells| cells >= NODE_CELLS / 2));
        let mut filled = cells.branches.iter().map(|branch| branch.nodes.len()).rev();
        assert!(filled.next().is_none_or(|last| last > 0) && filled.all(|nodes| nodes >= BRANCH_NODES / 2));
    }

    /// As the log's writer does: places are found for some keys together, and out of date once some of those are put.
    fn put(cells: &mut SortedCells, model: &mut BTreeMap<Vec<u8>, Box<[u8]>>, keys: &[Vec<u8>]) {
        for (keys, number) in keys.chunks(100).zip(0..) {
            let keys: Vec<Key> = keys.iter().map(|key| key[..].into()).collect();
            for (key, place) in keys.iter().zip(cells.find(&keys)) {
                let before = match cells.get_mut(key, place) {
                    Ok(held) => Some(std::mem::replace(held, cell(number))),
                    Err(place) => {
                        cells.insert(place, key.clone(), cell(number));
                        None
                    }
                };
                assert_eq!(model.insert(key.to_vec(), cell(number)), before);
            }
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(
            keys in prop::collection::vec(key(), 0..400), sorted in 0..100_usize, start in key(), end in key(),
        ) {
            let sorted = keys.iter().take(sorted);
            let mut model: BTreeMap<_, _> = sorted.map(|key| (key.clone(), cell(1))).collect();
            let mut cells: SortedCells = model.iter().map(|(key, cell)| (key[..].into(), cell.clone())).collect();
            check(&cells, &model, &start, &end);
            put(&mut cells, &mut model, &keys);
            check(&cells, &model, &start, &end);
        }
    }

    /// Of short and long keys.
    fn of_many(numbers: impl Iterator<Item = u16>) -> SortedCells {
        let (mut cells, mut model) = (SortedCells::default(), BTreeMap::new());
        let long = |number: u16| usize::from(number % 2) * SHORT_KEY_BYTES;
        let keys = numbers.map(|number| [&number.to_be_bytes()[..], &vec![7; long(number)]].concat());
        put(&mut cells, &mut model, &keys.collect::<Vec<_>>());
        check(&cells, &model, &[60, 200], &[70]);
        cells
    }

    #[test]
    fn it_holds_many() {
        let cells = of_many((0..=u16::MAX).map(|number| number.wrapping_mul(40_503)));
        assert!(cells.branches.len() > 6);
        let key = Key::from(&[200, 0][..]);
        let place = cells.find(std::slice::from_ref(&key))[0];
        assert!(SortedCells::default().get_mut(&key, place).is_err(), "a place of another tree");
    }

    #[test]
    fn who_appends_leaves_it_full() {
        let cells = of_many(0..20_000);
        assert_eq!(cells.branches[0].nodes.len(), BRANCH_NODES);
        let nodes: Vec<_> = cells.branches.iter().flat_map(|branch| &branch.nodes).collect();
        assert_eq!(nodes.len(), 20_000_usize.div_ceil(NODE_CELLS));
    }

    #[test]
    fn behind_what_is_full_nothing_stays_nearly_empty() {
        for full in [NODE_CELLS, NODE_CELLS * BRANCH_NODES] {
            let full = full as u16;
            of_many((0..full).chain((full..30_000).rev()));
        }
    }

    #[test]
    fn it_is_freed_bit_by_bit() {
        let cells = of_many(0..20_000);
        let nodes: usize = cells.branches.iter().map(|branch| branch.nodes.len()).sum();
        let mut remains = cells.into_remains();
        assert_eq!((1..).find(|_| !remains.free(10 * NODE_CELLS)), Some(nodes.div_ceil(10)));
        assert!(!of_many(0..1).into_remains().free(1));
    }

    #[test]
    fn a_node_fits_its_allocation() {
        assert!(size_of::<Node>() <= 1280);
    }

    #[test]
    fn keys_of_every_length_keep_their_order() {
        let long = vec![7; SHORT_KEY_BYTES + 1];
        let zeros = [0; SHORT_KEY_BYTES];
        let short = &long[..SHORT_KEY_BYTES];
        let mut last = short.to_vec();
        last[SHORT_KEY_BYTES - 1] = 8;
        let keys: [&[u8]; 10] =
            [b"", b"\0", b"\0\0", &zeros, &zeros[1..], &long[..3], short, &last, &long, b"\x08"];
        for a in keys {
            assert_eq!(&*Key::from(a), a);
            for b in keys {
                assert_eq!(Key::from(a).cmp(&Key::from(b)), a.cmp(b));
                assert_eq!(Key::from(a) <= Key::from(b), a <= b);
                assert_eq!(Key::from(a) < Key::from(b), a < b);
                assert_eq!(Key::from(a) == Key::from(b), a == b);
            }
        }
    }
}
