//! Which keys a load touches, how often each, and what their bytes are.
//!
//! Keys are numbers from 0 on; the orders draw numbers:
//!
//! ```text
//!   uniform      every key as often
//!   zipfian      key k about 1/(k+1)^0.99 as often as key 0: YCSB's ZipfianGenerator over the keys there are
//!   scrambled    the same, hashed over all keys: YCSB's ScrambledZipfianGenerator, what its workloads mean by zipfian
//!   latest       zipfian backwards from the newest key that was acknowledged
//!   sequential   0, 1, 2 … and from the start again
//! ```
//!
//! The constant, the approximation and the hash are YCSB's (Gray et al., "Quickly generating billion-record synthetic
//! databases"), so that figures can be held against others'.
//!
//! Not here: which operation is done with a key (`workload`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use clap::ValueEnum;

/// Which keys come how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Every key as often
    Uniform,
    /// The first keys most often (YCSB's constant 0.99)
    Zipfian,
    /// Some keys anywhere most often (YCSB's scrambled zipfian)
    Scrambled,
    /// The newest keys most often
    Latest,
    /// One after the other
    Sequential,
}

impl Order {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Order::Uniform => "uniform",
            Order::Zipfian => "zipfian",
            Order::Scrambled => "scrambled",
            Order::Latest => "latest",
            Order::Sequential => "sequential",
        }
    }
}

/// Shortest key: a number must fit.
pub const KEY_BYTES_MIN: usize = 8;

/// Longest key a load makes.
pub const KEY_BYTES_MAX: usize = 16_384;

/// Writes the bytes of key `number`: spread evenly over the ring, and no two numbers alike.
pub fn write_key(number: u64, out: &mut [u8]) {
    assert!(out.len() >= KEY_BYTES_MIN);
    let mut word = number;
    for chunk in out.chunks_mut(8) {
        word = mix(word);
        chunk.copy_from_slice(&word.to_be_bytes()[..chunk.len()]);
    }
}

/// One-to-one, so that keys are different; well mixed, so that they are spread (the finaliser of splitmix64).
fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The keys of a phase, for all threads: those there are, and those that are being inserted.
#[derive(Debug)]
pub struct KeySpace {
    first_count: u64,
    /// All keys below this one are there.
    known: AtomicU64,
    /// Of the sequential order.
    next: AtomicU64,
    inserts: Mutex<Inserts>,
}

#[derive(Debug)]
struct Inserts {
    next: u64,
    under_way: BTreeSet<u64>,
}

impl KeySpace {
    /// `count` keys that are there, or are to be put.
    pub fn new(count: u64) -> Arc<KeySpace> {
        let inserts = Mutex::new(Inserts { next: count, under_way: BTreeSet::new() });
        let (known, next) = (AtomicU64::new(count), AtomicU64::new(0));
        Arc::new(KeySpace { first_count: count, known, next, inserts })
    }

    /// The number of a new key. [`KeySpace::inserted`] must follow.
    pub fn insert(&self) -> u64 {
        let mut inserts = self.inserts.lock().expect("no panic while it is held");
        let number = inserts.next;
        inserts.next += 1;
        inserts.under_way.insert(number);
        number
    }

    /// The insert was answered, whatever the answer: the key may be read from now on.
    pub fn inserted(&self, number: u64) {
        let mut inserts = self.inserts.lock().expect("no panic while it is held");
        inserts.under_way.remove(&number);
        let known = inserts.under_way.first().copied().unwrap_or(inserts.next);
        self.known.store(known, Ordering::Relaxed);
    }

    /// How many keys there are for certain.
    pub fn known(&self) -> u64 {
        self.known.load(Ordering::Relaxed)
    }
}

/// Draws keys of a space in an order. One for each thread.
#[derive(Clone, Debug)]
pub struct Chooser {
    space: Arc<KeySpace>,
    order: Order,
    zipfian: Option<Zipfian>,
}

impl Chooser {
    /// For a million keys this takes some milliseconds (zipfian's sum); clone it for further threads.
    pub fn new(space: Arc<KeySpace>, order: Order) -> Chooser {
        let zipfian = match order {
            Order::Zipfian | Order::Latest => Some(Zipfian::new(space.first_count)),
            Order::Scrambled => Some(Zipfian::of_ycsb_scrambled()),
            Order::Uniform | Order::Sequential => None,
        };
        Chooser { space, order, zipfian }
    }

    /// The next key.
    pub fn draw(&mut self, random: &mut fastrand::Rng) -> u64 {
        let known = self.space.known();
        match (self.order, &mut self.zipfian) {
            (Order::Latest, Some(zipfian)) => {
                zipfian.grow(known);
                known - 1 - zipfian.draw(random).min(known - 1)
            }
            (Order::Scrambled, Some(zipfian)) => fnv(zipfian.draw(random)) % known,
            (_, Some(zipfian)) => zipfian.draw(random).min(known - 1),
            (Order::Sequential, None) => self.space.next.fetch_add(1, Ordering::Relaxed) % known,
            (_, None) => random.u64(..known),
        }
    }
}

/// YCSB's constant.
const THETA: f64 = 0.99;

/// Draws ranks from 0 on, rank r about 1/(r+1)^0.99 as often as rank 0.
#[derive(Clone, Debug)]
pub struct Zipfian {
    items: u64,
    /// The sum of 1/k^0.99 over all items.
    zeta: f64,
    eta: f64,
}

impl Zipfian {
    /// Over `items` items, at least 1.
    pub fn new(items: u64) -> Zipfian {
        assert!(items > 0);
        let mut zipfian = Zipfian { items: 0, zeta: 0.0, eta: 0.0 };
        zipfian.grow(items);
        zipfian
    }

    /// Over ten billion items, whose sum YCSB has computed once and for all.
    fn of_ycsb_scrambled() -> Zipfian {
        let (items, zeta) = (10_000_000_000, 26.469_028_201_783_02);
        Zipfian { items, zeta, eta: eta(items, zeta) }
    }

    /// Over more items, from now on. Costs what the additional ones cost.
    pub fn grow(&mut self, items: u64) {
        if items > self.items {
            self.zeta += (self.items + 1..=items).map(|k| (k as f64).powf(-THETA)).sum::<f64>();
            self.items = items;
            self.eta = eta(items, self.zeta);
        }
    }

    /// A rank below the number of items.
    pub fn draw(&self, random: &mut fastrand::Rng) -> u64 {
        let u = random.f64();
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(THETA) {
            return 1.min(self.items - 1);
        }
        let rank = self.items as f64 * (self.eta * u - self.eta + 1.0).powf(1.0 / (1.0 - THETA));
        (rank as u64).min(self.items - 1)
    }
}

fn eta(items: u64, zeta: f64) -> f64 {
    let zeta_of_2 = 1.0 + 0.5f64.powf(THETA);
    (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - zeta_of_2 / zeta)
}

/// YCSB's hash: 64-bit FNV-1a over the eight bytes, the lowest first, without the sign.
fn fnv(number: u64) -> u64 {
    let hash = number.to_le_bytes().iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
    });
    (hash as i64).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(order: Order, keys: u64, count: u64) -> Vec<u64> {
        let mut chooser = Chooser::new(KeySpace::new(keys), order);
        let mut random = fastrand::Rng::with_seed(7);
        (0..count).map(|_| chooser.draw(&mut random)).collect()
    }

    fn share(of: &[u64], key: u64) -> f64 {
        of.iter().filter(|&&drawn| drawn == key).count() as f64 / of.len() as f64
    }

    #[test]
    fn zipfians_head_has_its_share() {
        let drawn = draws(Order::Zipfian, 1_000, 200_000);
        let zipfian = Zipfian::new(1_000);
        let expected = 1.0 / zipfian.zeta;
        assert!((0.12..0.14).contains(&expected), "{expected}"); // 1 / (sum of k^-0.99 up to 1000)
        assert!((share(&drawn, 0) / expected - 1.0).abs() < 0.05);
        let second = expected * 0.5f64.powf(THETA);
        assert!((share(&drawn, 1) / second - 1.0).abs() < 0.05);
        let first_tenth = drawn.iter().filter(|&&key| key < 100).count() as f64 / drawn.len() as f64;
        assert!((0.6..0.8).contains(&first_tenth), "{first_tenth}");
        assert!(drawn.iter().all(|&key| key < 1_000));
    }

    #[test]
    fn scrambled_has_ycsbs_head_wherever_it_lies() {
        let drawn = draws(Order::Scrambled, 1_000, 200_000);
        let head = fnv(0) % 1_000;
        assert!(share(&drawn, head) > 1.0 / 26.47 * 0.95); // its own share and that of others hashed there
        assert!(share(&drawn, head) < 1.0 / 26.47 * 1.2);
        assert_ne!(head, 0);
        let different: BTreeSet<_> = drawn.iter().collect();
        assert!(different.len() > 990, "{}", different.len());
    }

    #[test]
    fn a_grown_zipfian_is_as_if_made_at_once() {
        let mut grown = Zipfian::new(10);
        grown.grow(500);
        let whole = Zipfian::new(500);
        assert!((grown.zeta - whole.zeta).abs() < 1e-9);
        assert!((grown.eta - whole.eta).abs() < 1e-9);
    }

    #[test]
    fn few_items_are_no_trouble() {
        for keys in 1..4 {
            for order in [Order::Uniform, Order::Zipfian, Order::Scrambled, Order::Latest, Order::Sequential]
            {
                assert!(draws(order, keys, 100).iter().all(|&key| key < keys), "{order:?} {keys}");
            }
        }
    }

    #[test]
    fn latest_follows_what_is_inserted_and_acknowledged() {
        let space = KeySpace::new(1_000);
        let mut chooser = Chooser::new(space.clone(), Order::Latest);
        let mut random = fastrand::Rng::with_seed(7);
        let mut newest = |chooser: &mut Chooser| {
            let drawn: Vec<u64> = (0..5_000).map(|_| chooser.draw(&mut random)).collect();
            let newest = *drawn.iter().max().unwrap();
            assert!(share(&drawn, newest) > 0.1, "the newest is drawn most");
            newest
        };
        assert_eq!(newest(&mut chooser), 999);
        let inserts: Vec<u64> = (0..10).map(|_| space.insert()).collect();
        assert_eq!(inserts, (1_000..1_010).collect::<Vec<_>>());
        assert_eq!(newest(&mut chooser), 999, "none of them is acknowledged");
        for number in [1_001, 1_000, 1_009] {
            space.inserted(number);
        }
        assert_eq!(newest(&mut chooser), 1_001, "1002 is still under way");
        inserts.iter().for_each(|&number| space.inserted(number));
        assert_eq!(newest(&mut chooser), 1_009);
    }

    #[test]
    fn sequential_covers_every_key_and_then_again() {
        let drawn = draws(Order::Sequential, 100, 250);
        assert_eq!(drawn[..100], (0..100).collect::<Vec<_>>());
        assert_eq!(drawn[100..200], drawn[..100]);
        assert_eq!(drawn[249], 49);
    }

    #[test]
    fn uniform_is() {
        let drawn = draws(Order::Uniform, 10, 100_000);
        for key in 0..10 {
            assert!((share(&drawn, key) - 0.1).abs() < 0.01);
        }
    }

    #[test]
    fn keys_of_any_length_are_different_and_spread_over_the_ring() {
        for len in [8, 9, 16, 100] {
            let mut keys = BTreeSet::new();
            let mut quarters = [0; 4];
            for number in 0..4_000 {
                let mut key = vec![0; len];
                write_key(number, &mut key);
                quarters[usize::from(key[0] >> 6)] += 1;
                assert!(keys.insert(key));
            }
            assert!(quarters.iter().all(|count| (900..1_100).contains(count)), "{quarters:?}");
        }
    }
}
