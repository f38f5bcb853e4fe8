//! What is done to the servers, and when: a plan drawn from a seed before anything happens.
//!
//! The same seed, length and cluster draw the same plan; what then comes of it is up to the machine. Faults come in
//! episodes with a pause between them, so that a person can tell what did what; an episode may hit several servers, and
//! all kinds take their turn before one comes again.
//!
//! Not here: how a fault is made (`cluster`).

use std::collections::BTreeMap;

/// Something bad that can be done to servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, all at once; at the end they are started again, all at once.
    Kill(Vec<usize>),
    /// SIGTERM, and started again as soon as it has ended.
    Restart(usize),
    /// SIGSTOP; at the end SIGCONT.
    Freeze(Vec<usize>),
    /// What the first of a pair sends does not reach the second.
    Cut {
        /// From, to.
        links: Vec<(usize, usize)>,
        /// In which shape.
        shape: Shape,
    },
    /// Killed and started with a clock that is wrong by this many milliseconds; at the end killed and started with a
    /// true one.
    Skew(Vec<(usize, i64)>),
    /// No byte more fits on its disk; at the end there is room again.
    DiskFull(usize),
}

/// What a set of cut links looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One link, one direction.
    OneWay,
    /// One link, both directions.
    BothWays,
    /// One server from all others.
    Alone,
    /// One half of the servers from the other.
    Halves,
    /// One link, again and again; told once.
    Flapping {
        /// The first of a series.
        first: bool,
    },
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// When it begins (ms since the run began).
    pub from_ms: u64,
    /// When it ends.
    pub until_ms: u64,
    /// What it is.
    pub fault: Fault,
}

/// What can be done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abilities {
    /// The servers are this program's own.
    All {
        /// The server whose disk can be filled, if there is one.
        disk: Option<usize>,
    },
    /// They are somebody else's and can be frozen, nothing else.
    FreezeOnly,
    /// Nothing.
    None,
}

/// A kind of episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Episode {
    Crash,
    Restart,
    Freeze,
    OneWay,
    BothWays,
    Alone,
    Halves,
    Flapping,
    Skew,
    DiskFull,
    MajorityCrash,
    AllCrash,
    AllFreeze,
    Several,
}

/// How a fault is named when faults are counted.
pub fn name(fault: &Fault, servers: usize) -> &'static str {
    match fault {
        Fault::Kill(hit) if hit.len() == servers && servers > 1 => "crash of all",
        Fault::Kill(hit) if hit.len() * 2 > servers && servers > 1 => "crash of a majority",
        Fault::Kill(_) => "crash",
        Fault::Restart(_) => "restart",
        Fault::Freeze(hit) if hit.len() == servers && servers > 1 => "freeze of all",
        Fault::Freeze(_) => "freeze",
        Fault::Cut { shape, .. } => match shape {
            Shape::OneWay => "link cut one way",
            Shape::BothWays => "link cut",
            Shape::Alone => "server cut off",
            Shape::Halves => "split in halves",
            Shape::Flapping { .. } => "flapping link",
        },
        Fault::Skew(_) => "wrong clock",
        Fault::DiskFull(_) => "full disk",
    }
}

/// How many faults of each name a plan has; a series counts once.
pub fn count(plan: &[Strike], servers: usize) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for strike in plan {
        if !matches!(strike.fault, Fault::Cut { shape: Shape::Flapping { first: false }, .. }) {
            *counts.entry(name(&strike.fault, servers)).or_default() += 1;
        }
    }
    counts
}

/// The faults of a run of `seconds` on `servers` servers, in the order in which they begin. The end is calm.
pub fn draw(seed: u64, seconds: u64, servers: usize, abilities: Abilities) -> Vec<Strike> {
    let mut plan = Vec::new();
    let kinds = kinds(servers, abilities);
    if kinds.is_empty() {
        return plan;
    }
    let mut drawing =
        Drawing { random: fastrand::Rng::with_seed(seed), servers, abilities, pace: pace(seconds) };
    let calm_from_ms = (seconds * 1_000).saturating_sub(drawing.paced(1_800));
    let mut bag = Vec::new();
    let mut at_ms = drawing.paced(1_500);
    loop {
        if bag.is_empty() {
            bag.clone_from(&kinds);
            drawing.random.shuffle(&mut bag);
        }
        let hold_ms = drawing.random.u64(1_200..4_000);
        let hold_ms = drawing.paced(hold_ms).max(300);
        let mut strikes = drawing.episode(bag.pop().expect("filled above"), at_ms, hold_ms);
        strikes.sort_by_key(|strike| strike.from_ms);
        let until_ms = strikes.iter().map(|strike| strike.until_ms).max().unwrap_or(at_ms);
        if until_ms > calm_from_ms {
            return plan;
        }
        plan.append(&mut strikes);
        let pause_ms = drawing.random.u64(900..2_200);
        at_ms = until_ms + drawing.paced(pause_ms).max(200);
    }
}

/// Short runs are quicker, in percent.
fn pace(seconds: u64) -> u64 {
    (seconds * 100 / 40).clamp(40, 130)
}

fn kinds(servers: usize, abilities: Abilities) -> Vec<Episode> {
    use Episode::{
        AllCrash, AllFreeze, Alone, BothWays, Crash, DiskFull, Flapping, Freeze, Halves, MajorityCrash,
        OneWay, Restart, Several, Skew,
    };
    match abilities {
        Abilities::None => Vec::new(),
        Abilities::FreezeOnly => vec![Freeze, Freeze, Freeze, AllFreeze],
        Abilities::All { disk } => {
            let mut kinds = vec![Crash, Restart, Freeze, Skew, AllCrash];
            if servers > 1 {
                kinds.extend([OneWay, BothWays, Alone, Flapping, MajorityCrash, AllFreeze]);
            }
            if servers > 2 {
                kinds.extend([Halves, Several]);
            }
            kinds.extend(disk.map(|_| DiskFull));
            kinds
        }
    }
}

struct Drawing {
    random: fastrand::Rng,
    servers: usize,
    abilities: Abilities,
    pace: u64,
}

impl Drawing {
    fn paced(&self, ms: u64) -> u64 {
        ms * self.pace / 100
    }

    fn episode(&mut self, kind: Episode, from_ms: u64, hold_ms: u64) -> Vec<Strike> {
        let until_ms = from_ms + hold_ms;
        let mut ids: Vec<usize> = (0..self.servers).collect();
        self.random.shuffle(&mut ids);
        let cut = |links: Vec<(usize, usize)>, shape| Fault::Cut { links, shape };
        let fault = match kind {
            Episode::Crash => Fault::Kill(vec![ids[0]]),
            Episode::Restart => Fault::Restart(ids[0]),
            Episode::Freeze => Fault::Freeze(vec![ids[0]]),
            Episode::OneWay => cut(vec![(ids[0], ids[1])], Shape::OneWay),
            Episode::BothWays => cut(both_ways(&ids[..1], &ids[1..2]), Shape::BothWays),
            Episode::Alone => cut(both_ways(&ids[..1], &ids[1..]), Shape::Alone),
            Episode::Halves => {
                let (left, right) = ids.split_at(self.servers / 2);
                cut(both_ways(left, right), Shape::Halves)
            }
            Episode::Flapping => return self.flapping((ids[0], ids[1]), from_ms, until_ms),
            Episode::Skew => Fault::Skew(vec![(ids[0], self.offset_ms())]),
            Episode::DiskFull => match self.abilities {
                Abilities::All { disk: Some(id) } => Fault::DiskFull(id),
                _ => return Vec::new(),
            },
            Episode::MajorityCrash => Fault::Kill(ids[..self.servers / 2 + 1].to_vec()),
            Episode::AllCrash => Fault::Kill(ids),
            Episode::AllFreeze => Fault::Freeze(ids),
            Episode::Several => return several(&ids, from_ms, hold_ms),
        };
        // Nothing goes on without anybody; a person has seen it after a moment.
        let long = matches!(kind, Episode::AllCrash | Episode::AllFreeze | Episode::MajorityCrash);
        let until_ms = match &fault {
            Fault::Restart(_) => from_ms + 100,
            _ if long => from_ms + hold_ms * 6 / 10,
            _ => until_ms,
        };
        vec![Strike { from_ms, until_ms, fault }]
    }

    fn flapping(&mut self, (a, b): (usize, usize), from_ms: u64, until_ms: u64) -> Vec<Strike> {
        let mut strikes = Vec::new();
        let mut at_ms = from_ms;
        while at_ms < until_ms {
            let end_ms = at_ms + self.random.u64(100..600);
            let shape = Shape::Flapping { first: strikes.is_empty() };
            let fault = Fault::Cut { links: both_ways(&[a], &[b]), shape };
            strikes.push(Strike { from_ms: at_ms, until_ms: end_ms, fault });
            at_ms = end_ms + self.random.u64(100..400);
        }
        strikes
    }

    /// Between half a second and an hour, fast or slow.
    fn offset_ms(&mut self) -> i64 {
        let ms = [500, 5_000, 60_000, 3_600_000][self.random.usize(..4)];
        if self.random.bool() { ms } else { -ms }
    }
}

/// A crash, in it a freeze, and a link cut between two servers.
fn several(ids: &[usize], from_ms: u64, hold_ms: u64) -> Vec<Strike> {
    let last = ids[ids.len() - 1];
    let links = both_ways(&[last], &ids[1..2]);
    vec![
        Strike { from_ms, until_ms: from_ms + hold_ms, fault: Fault::Kill(vec![ids[0]]) },
        Strike {
            from_ms: from_ms + hold_ms * 3 / 10,
            until_ms: from_ms + hold_ms * 7 / 10,
            fault: Fault::Freeze(vec![ids[1]]),
        },
        Strike {
            from_ms: from_ms + hold_ms / 2,
            until_ms: from_ms + hold_ms * 12 / 10,
            fault: Fault::Cut { links, shape: Shape::BothWays },
        },
    ]
}

/// Every link between the two sides, in both directions.
pub fn both_ways(left: &[usize], right: &[usize]) -> Vec<(usize, usize)> {
    let pairs = left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b)));
    pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities::All { disk: Some(2) };

    #[test]
    fn a_seed_draws_one_plan_and_another_seed_another() {
        assert_eq!(draw(7, 60, 4, ALL), draw(7, 60, 4, ALL));
        assert_ne!(draw(7, 60, 4, ALL), draw(8, 60, 4, ALL));
        let first = &draw(7, 60, 4, ALL)[0];
        assert_eq!((first.from_ms, first.until_ms > first.from_ms), (1_950, true));
    }

    #[test]
    fn a_minute_and_a_half_has_a_fault_of_every_name() {
        for seed in 0..20 {
            let counts = count(&draw(seed, 90, 4, ALL), 4);
            assert_eq!(counts.len(), 13, "{counts:?}");
        }
    }

    #[test]
    fn whatever_is_drawn_is_in_time_in_order_and_ends() {
        for seed in 0..200 {
            for (seconds, servers) in [(5, 4), (20, 1), (20, 2), (60, 3), (60, 7)] {
                let plan = draw(seed, seconds, servers, ALL);
                for strike in &plan {
                    assert!(strike.until_ms > strike.from_ms);
                    assert!(strike.until_ms < seconds * 1_000);
                    for id in ids(&strike.fault) {
                        assert!(id < servers.max(3), "{strike:?}");
                    }
                }
                assert!(plan.is_sorted_by_key(|strike| strike.from_ms), "{plan:?}");
                assert!(!plan.is_empty(), "{seconds} s are enough for one");
            }
        }
    }

    #[test]
    fn no_server_is_hit_again_by_a_process_fault_before_the_last_one_ended() {
        for seed in 0..200 {
            let plan = draw(seed, 60, 4, ALL);
            let process = |fault: &Fault| !matches!(fault, Fault::Cut { .. } | Fault::DiskFull(_));
            for (index, strike) in plan.iter().enumerate().filter(|(_, strike)| process(&strike.fault)) {
                for other in plan[..index].iter().filter(|other| process(&other.fault)) {
                    let shared = ids(&strike.fault).iter().any(|id| ids(&other.fault).contains(id));
                    assert!(!shared || other.until_ms <= strike.from_ms, "{other:?} {strike:?}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_done_is_not_drawn() {
        assert_eq!(draw(1, 60, 4, Abilities::None), []);
        let frozen = draw(1, 60, 4, Abilities::FreezeOnly);
        assert!(frozen.iter().all(|strike| matches!(strike.fault, Fault::Freeze(_))));
        let counts = count(&draw(1, 90, 4, Abilities::All { disk: None }), 4);
        assert!(!counts.contains_key("full disk"));
    }

    fn ids(fault: &Fault) -> Vec<usize> {
        match fault {
            Fault::Kill(ids) | Fault::Freeze(ids) => ids.clone(),
            Fault::Restart(id) | Fault::DiskFull(id) => vec![*id],
            Fault::Cut { links, .. } => links.iter().flat_map(|(a, b)| [*a, *b]).collect(),
            Fault::Skew(offsets) => offsets.iter().map(|(id, _)| *id).collect(),
        }
    }
}
