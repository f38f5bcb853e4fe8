//! How many replicas must answer: Cassandra's consistency levels, under Cassandra's names and numbers.

use std::fmt;

/// A consistency level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One replica.
    One,
    /// More than half of the replicas. Any two quorums of a key share a replica.
    Quorum,
    /// Every replica.
    All,
    /// Writes only: one replica, or a durable hint if none is up.
    Any,
    /// Two replicas.
    Two,
    /// Three replicas.
    Three,
}

impl Level {
    const EVERY: [Level; 6] = [Level::One, Level::Quorum, Level::All, Level::Any, Level::Two, Level::Three];

    /// The level of this name, in any case.
    pub fn parse(name: &str) -> Option<Level> {
        Level::EVERY.into_iter().find(|level| level.name().eq_ignore_ascii_case(name))
    }

    /// The level with Cassandra's number.
    pub fn from_number(number: i32) -> Option<Level> {
        Level::EVERY.into_iter().find(|level| level.number() == number)
    }

    /// Cassandra's number.
    pub fn number(self) -> i32 {
        match self {
            Level::One => 1,
            Level::Quorum => 2,
            Level::All => 5,
            Level::Any => 6,
            Level::Two => 7,
            Level::Three => 8,
        }
    }

    /// In capitals, as Cassandra writes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::One => "ONE",
            Level::Quorum => "QUORUM",
            Level::All => "ALL",
            Level::Any => "ANY",
            Level::Two => "TWO",
            Level::Three => "THREE",
        }
    }

    /// How many of `replicas` must acknowledge. May be more than there are: then the level is never available.
    pub fn needed(self, replicas: usize) -> usize {
        match self {
            Level::One | Level::Any => 1,
            Level::Two => 2,
            Level::Three => 3,
            Level::Quorum => quorum(replicas),
            Level::All => replicas,
        }
    }

    /// True if any two sets of replicas that meet the level share a member, so that order can be promised.
    pub fn is_strong(self, replicas: usize) -> bool {
        self.needed(replicas) >= quorum(replicas)
    }
}

/// More than half.
pub fn quorum(replicas: usize) -> usize {
    replicas / 2 + 1
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_cassandras() {
        for (name, number) in [("ONE", 1), ("quorum", 2), ("All", 5), ("ANY", 6), ("two", 7), ("THREE", 8)] {
            assert_eq!(Level::parse(name), Level::from_number(number));
            assert_eq!(Level::parse(name).unwrap().number(), number);
        }
        assert_eq!(Level::parse("LOCAL_QUORUM"), None);
        assert_eq!(Level::from_number(3), None);
    }

    #[test]
    fn two_quorums_share_a_replica() {
        for replicas in 1..20 {
            assert!(2 * Level::Quorum.needed(replicas) > replicas);
            assert!(Level::Quorum.needed(replicas) <= replicas);
        }
        assert!(!Level::One.is_strong(3));
        assert!(Level::Two.is_strong(3));
        assert!(Level::One.is_strong(1));
    }
}
