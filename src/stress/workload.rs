//! What a load does: kinds of operations, and how often each.
//!
//! Not here: with which keys (`keys`), how an operation travels (`target`).

/// One kind of operation, as reports name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A get.
    Read,
    /// A put of a key that may be there.
    Write,
    /// A put of a new key.
    Insert,
    /// A get and then a put of the same key; its latency is that of both.
    ReadModifyWrite,
    /// A removal of a key that may be there.
    Remove,
}

impl Kind {
    /// In the order of reports.
    pub const ALL: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Insert, Kind::ReadModifyWrite, Kind::Remove];

    /// In reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Insert => "insert",
            Kind::ReadModifyWrite => "read-modify-write",
            Kind::Remove => "remove",
        }
    }
}

/// Of 100 operations, how many are of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix([u8; 5]);

impl Mix {
    /// Removals, and nothing else.
    pub const REMOVES: Mix = Mix([0, 0, 0, 0, 100]);

    /// The four must be 100 in sum.
    pub fn new(reads: u8, writes: u8, inserts: u8, read_modify_writes: u8) -> Mix {
        let percents = [reads, writes, inserts, read_modify_writes, 0];
        assert_eq!(percents.iter().map(|&percent| u32::from(percent)).sum::<u32>(), 100);
        Mix(percents)
    }

    /// The kind of the next operation.
    pub fn draw(self, random: &mut fastrand::Rng) -> Kind {
        let mut left = random.u8(..100);
        for (kind, percent) in Kind::ALL.into_iter().zip(self.0) {
            match left.checked_sub(percent) {
                None => return kind,
                Some(rest) => left = rest,
            }
        }
        unreachable!("the percents are 100 in sum")
    }

    /// True if some operations read.
    pub fn reads(self) -> bool {
        self.0[0] > 0 || self.0[3] > 0
    }

    /// True if some operations write.
    pub fn writes(self) -> bool {
        self.0[1..].iter().any(|&percent| percent > 0)
    }

    /// True if some operations make new keys.
    pub fn inserts(self) -> bool {
        self.0[2] > 0
    }

    /// As reports say it: "95 % read, 5 % insert".
    pub fn text(self) -> String {
        let parts = Kind::ALL.into_iter().zip(self.0).filter(|(_, percent)| *percent > 0);
        parts.map(|(kind, percent)| format!("{percent} % {}", kind.name())).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_come_as_often_as_asked() {
        let mix = Mix::new(50, 30, 0, 20);
        let mut random = fastrand::Rng::with_seed(1);
        let drawn: Vec<Kind> = (0..100_000).map(|_| mix.draw(&mut random)).collect();
        for (kind, percent) in Kind::ALL.into_iter().zip(mix.0) {
            let share = drawn.iter().filter(|&&drawn| drawn == kind).count() as f64 / 1_000.0;
            assert!((share - f64::from(percent)).abs() < 1.0, "{kind:?} {share}");
        }
        assert_eq!(mix.text(), "50 % read, 30 % write, 20 % read-modify-write");
    }
}
