//! The judges are tried on stores that are correct by construction, where they must find nothing; on the same histories
//! with one answer falsified; and on answers made up by chance, where the search must agree with trying every order.
//!
//! Not here: the real coordinator. These stores do each operation at one moment, on replicas drawn by lot.

use fastrand::Rng;

use super::linear::{Outcome, search};
use super::*;
use crate::answer::NodeId;
use crate::cell::Stamp;
use crate::ring::Ring;

/// A run of a simulated store.
struct Run {
    replicas: usize,
    clients: u32,
    keys: usize,
    /// Of each client.
    operations: usize,
    /// Only QUORUM and ALL, so that every key is promised an order.
    strong: bool,
    /// Clients are told stamps.
    stamped: bool,
}

/// An operation before it is done.
struct Plan {
    operation: Operation,
    key: usize,
    /// When it takes effect; `None`: never.
    moment_us: Option<u64>,
}

/// The replicas of a key, and what is still to be brought to them.
#[derive(Clone, Default)]
struct Store {
    held: Vec<Option<Version>>,
    owed: Vec<(usize, Version)>,
}

impl Run {
    fn by_lot(rng: &mut Rng) -> Run {
        Run {
            replicas: rng.usize(1..6),
            clients: rng.u32(1..7),
            keys: rng.usize(1..4),
            operations: rng.usize(1..40),
            strong: rng.bool(),
            stamped: rng.u8(0..3) > 0,
        }
    }

    fn play(&self, rng: &mut Rng) -> (History, Settled) {
        let mut plans = self.plan(rng);
        plans.sort_by_key(|plan| plan.moment_us);
        let mut stores = vec![Store { held: vec![None; self.replicas], owed: Vec::new() }; self.keys];
        let skews: Vec<i64> = (0..3).map(|_| rng.i64(-40..40)).collect();
        for plan in &mut plans {
            let store = &mut stores[plan.key];
            store.deliver_some(rng);
            if let Some(moment) = plan.moment_us {
                let wall = Stamp(moment as i64 + skews[rng.usize(0..skews.len())]);
                store.carry_out(&mut plan.operation, wall, self, rng);
            }
        }
        let settled = Run::settle(stores, self.replicas);
        (History { operations: plans.into_iter().map(|plan| plan.operation).collect() }, settled)
    }

    fn plan(&self, rng: &mut Rng) -> Vec<Plan> {
        let mut plans = Vec::new();
        for client in 0..self.clients {
            let mut free_us = rng.u64(0..50);
            for number in 0..self.operations {
                let began_us = free_us + rng.u64(0..10);
                let ended_us = began_us + rng.u64(0..30);
                free_us = ended_us;
                let asked = match rng.u8(0..10) {
                    0..5 => Asked::Get,
                    5 => Asked::Remove,
                    _ => Asked::Put(Bytes::from(format!("v{client}-{number}"))),
                };
                let key = rng.usize(0..self.keys);
                let level = self.level(&asked, rng);
                let told = match rng.u8(0..12) {
                    0 => Told::Unknown("timeout".into()),
                    1 => Told::Refused("overloaded".into()),
                    _ if asked == Asked::Get => Told::Found { value: None, stamp: None },
                    _ => Told::Written { stamp: None },
                };
                let moment_us = match told {
                    Told::Refused(_) => None,
                    // It may happen long after the client gave it up, or never.
                    Told::Unknown(_) => rng.bool().then(|| rng.u64(began_us..ended_us + 300)),
                    Told::Written { .. } | Told::Found { .. } => Some(rng.u64(began_us..=ended_us)),
                };
                let name = Bytes::from(format!("k{key}"));
                let operation = Operation { client, key: name, level, asked, began_us, ended_us, told };
                plans.push(Plan { operation, key, moment_us });
            }
        }
        plans
    }

    fn level(&self, asked: &Asked, rng: &mut Rng) -> Level {
        let levels = [Level::Quorum, Level::All, Level::One, Level::Two, Level::Three, Level::Any];
        let usable: Vec<Level> = levels
            .into_iter()
            .filter(|level| level.needed(self.replicas) <= self.replicas)
            .filter(|level| !self.strong || matches!(level, Level::Quorum | Level::All))
            .filter(|level| *asked != Asked::Get || *level != Level::Any)
            .collect();
        usable[rng.usize(0..usable.len())]
    }

    fn settle(stores: Vec<Store>, replicas: usize) -> Settled {
        let mut settled = Settled::default();
        for (key, mut store) in stores.into_iter().enumerate() {
            store.deliver_all();
            let newest = store.held.iter().flatten().max().cloned();
            for node in 0..replicas {
                settled.note(Bytes::from(format!("k{key}")), NodeId(node as u32), newest.clone());
            }
        }
        settled
    }
}

impl Store {
    /// Does the operation, at one moment, and notes in it what the client is told.
    fn carry_out(&mut self, operation: &mut Operation, wall: Stamp, run: &Run, rng: &mut Rng) {
        let needed = Promises::of(run.replicas).needed(operation.level);
        let unknown = matches!(operation.told, Told::Unknown(_));
        let reached = match unknown {
            true => rng.usize(0..=run.replicas),
            false => rng.usize(needed..=run.replicas),
        };
        let mut order: Vec<usize> = (0..run.replicas).collect();
        rng.shuffle(&mut order);
        let (asked, missed) = order.split_at(reached);
        let told = |stamp| run.stamped.then_some(stamp);
        match operation.written().map(|value| value.cloned()) {
            Some(value) => {
                let strong = needed >= quorum(run.replicas);
                let version = self.stamped(value, wall, asked, strong, unknown && rng.bool());
                asked.iter().for_each(|node| self.apply(*node, &version));
                self.owed.extend(missed.iter().map(|node| (*node, version.clone())));
                if !unknown {
                    // Whoever answers tells what it holds, one that is ahead too.
                    let heard = missed.iter().filter(|_| rng.bool()).chain(asked);
                    let won = heard.filter_map(|node| self.held[*node].as_ref()).map(|held| held.stamp).max();
                    operation.told = Told::Written { stamp: told(won.unwrap_or(wall).max(version.stamp)) };
                }
            }
            None if unknown => {}
            None => {
                let newest = self.newest_of(asked);
                newest.iter().for_each(|newest| asked.iter().for_each(|node| self.apply(*node, newest)));
                let stamp = newest.as_ref().and_then(|newest| told(newest.stamp));
                operation.told = Told::Found { value: newest.and_then(|newest| newest.value), stamp };
            }
        }
    }

    /// The version as it is written: a strong write gets a stamp above what it meets, unless it ends before that.
    fn stamped(
        &self,
        value: Option<Bytes>,
        wall: Stamp,
        asked: &[usize],
        strong: bool,
        cut: bool,
    ) -> Version {
        let version = Version { stamp: wall, value };
        match self.newest_of(asked) {
            Some(newest) if strong && !cut && newest > version => {
                Version { stamp: Stamp(newest.stamp.0 + 1), ..version }
            }
            _ => version,
        }
    }

    fn newest_of(&self, nodes: &[usize]) -> Option<Version> {
        nodes.iter().filter_map(|node| self.held[*node].as_ref()).max().cloned()
    }

    fn apply(&mut self, node: usize, version: &Version) {
        let held = &mut self.held[node];
        *held = held.take().max(Some(version.clone()));
    }

    fn deliver_some(&mut self, rng: &mut Rng) {
        while !self.owed.is_empty() && rng.bool() {
            let (node, version) = self.owed.swap_remove(rng.usize(0..self.owed.len()));
            self.apply(node, &version);
        }
    }

    fn deliver_all(&mut self) {
        for (node, version) in std::mem::take(&mut self.owed) {
            self.apply(node, &version);
        }
    }
}

#[test]
fn a_correct_store_passes() {
    let (mut searched, mut mixed) = (0, 0);
    for seed in 0..1500 {
        let rng = &mut Rng::with_seed(seed);
        let run = Run::by_lot(rng);
        let (history, settled) = run.play(rng);
        let judged = judge(&history, &Promises::of(run.replicas), Some(&settled)).unwrap();
        assert!(judged.holds(), "seed {seed}, {} replicas\n{judged}", run.replicas);
        assert!(judged.linear.gave_up.is_empty(), "seed {seed}\n{judged}");
        searched += judged.linear.keys;
        mixed += judged.linear.left_out.get(&LeftOut::WeakWrites).unwrap_or(&0);
    }
    assert!(searched > 500, "{searched} keys searched");
    assert!(mixed > 500, "{mixed} keys with weak writes");
}

/// Not every falsified answer is wrong: it may be what another order would have shown. Which ones are, the search
/// against every order decides below.
#[test]
fn a_falsified_answer_is_found() {
    let (mut falsified, mut found, mut found_by_pairs) = (0, 0, 0);
    for seed in 0..400 {
        let rng = &mut Rng::with_seed(seed);
        let run = Run { strong: true, keys: 1, ..Run::by_lot(rng) };
        let (mut history, _) = run.play(rng);
        let puts: Vec<Bytes> = history.operations.iter().filter_map(|op| op.written()?.cloned()).collect();
        let mut reads: Vec<&mut Operation> =
            history.operations.iter_mut().filter(|op| matches!(op.found(), Some(Some(_)))).collect();
        if reads.is_empty() {
            continue;
        }
        let read = rng.usize(0..reads.len());
        let read = &mut reads[read];
        let other = puts[rng.usize(0..puts.len())].clone();
        if read.found() == Some(Some(&other)) {
            continue;
        }
        read.told = Told::Found { value: Some(other), stamp: None };
        let judged = judge(&history, &Promises::of(run.replicas), None).unwrap();
        falsified += 1;
        found += usize::from(judged.of_rule(Rule::NotLinearizable) > 0);
        found_by_pairs += usize::from(judged.found.keys().any(|rule| *rule != Rule::NotLinearizable));
    }
    assert!(falsified > 200, "{falsified}");
    assert!(found * 10 > falsified * 8, "{found} of {falsified}");
    assert!(found_by_pairs * 10 > falsified * 5, "{found_by_pairs} of {falsified}");
}

/// At most six operations on one key, all at QUORUM, with answers made up.
fn made_up(rng: &mut Rng) -> History {
    let count = rng.usize(1..=6);
    let removals = rng.bool();
    let lines = (0..count).map(|number| {
        let began = rng.u64(0..14);
        let ended = began + rng.u64(0..6);
        let head = format!("{began} {ended} {number} QUORUM");
        let kind = rng.u8(0..if removals { 6 } else { 5 });
        let told = ["written", "written", "written", "unknown timeout", "refused full"][rng.usize(0..5)];
        match kind {
            0 | 1 => format!("{head} put k v{number} {told}\n"),
            5 => format!("{head} remove k {told}\n"),
            _ => match rng.usize(0..count + 1) {
                shown if shown < count => format!("{head} get k found v{shown}\n"),
                _ => format!("{head} get k found nothing\n"),
            },
        }
    });
    History::parse(&lines.collect::<String>()).unwrap()
}

/// Tries every order.
fn some_order(operations: &[&Operation], value: Option<&Bytes>) -> bool {
    let certain = |op: &&&Operation| matches!(op.told, Told::Written { .. } | Told::Found { .. });
    if !operations.iter().any(|op| certain(&op)) {
        return true;
    }
    operations.iter().enumerate().any(|(index, next)| {
        let may_be_next = match &next.told {
            Told::Refused(_) => false,
            Told::Unknown(_) => next.written().is_some(),
            Told::Written { .. } | Told::Found { .. } => next.found().is_none_or(|found| found == value),
        };
        let first_ended = operations.iter().filter(certain).map(|op| op.ended_us).min();
        if !may_be_next || first_ended.is_some_and(|ended| ended < next.began_us) {
            return false;
        }
        let rest: Vec<&Operation> =
            operations.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, op)| *op).collect();
        some_order(&rest, next.written().unwrap_or(value))
    })
}

#[test]
fn the_search_agrees_with_trying_every_order() {
    let (mut ordered, mut not) = (0, 0);
    for seed in 0..20_000 {
        let history = made_up(&mut Rng::with_seed(seed));
        let operations: Vec<&Operation> = history.operations.iter().collect();
        let expected = some_order(&operations, None);
        match search(&operations, STATES_MAX) {
            Outcome::Linearizable { .. } => assert!(expected, "seed {seed}\n{history:#?}"),
            Outcome::Not { counterexample, .. } => {
                assert!(!expected, "seed {seed}\n{history:#?}");
                assert_smallest(&counterexample, seed);
            }
            Outcome::GaveUp { .. } => panic!("seed {seed}: gave up"),
        }
        *if expected { &mut ordered } else { &mut not } += 1;
    }
    assert!(ordered > 3_000 && not > 3_000, "{ordered} have an order, {not} have not");
}

/// No order explains it, and without any one read there is one.
fn assert_smallest(counterexample: &[Operation], seed: u64) {
    let operations: Vec<&Operation> = counterexample.iter().collect();
    assert!(!some_order(&operations, None), "seed {seed}\n{counterexample:#?}");
    for left_out in operations.iter().filter(|op| op.found().is_some()) {
        let rest: Vec<&Operation> = operations.iter().copied().filter(|op| op != left_out).collect();
        assert!(some_order(&rest, None), "seed {seed}: without {left_out}\n{counterexample:#?}");
    }
}

/// On strong operations without stamps the pairwise rules promise no more than an order does.
#[test]
fn whatever_the_pairwise_rules_find_has_no_order() {
    let mut found = 0;
    for seed in 0..20_000 {
        let history = made_up(&mut Rng::with_seed(seed));
        let operations: Vec<&Operation> = history.operations.iter().collect();
        let judged = judge(&history, &Promises::of(3), None).unwrap();
        if judged.found.keys().any(|rule| *rule != Rule::NotLinearizable) {
            found += 1;
            assert!(!some_order(&operations, None), "seed {seed}\n{judged}");
        }
    }
    assert!(found > 3_000, "{found}");
}

#[test]
fn a_long_history_is_judged() {
    let rng = &mut Rng::with_seed(7);
    let long = |keys, clients, operations, strong| Run {
        replicas: 3,
        clients,
        keys,
        operations: operations / clients as usize,
        strong,
        stamped: true,
    };
    // With weak writes only the pairs are judged; on one key the search has a long way.
    for run in [long(50, 8, 200_000, false), long(1, 8, 50_000, true)] {
        let (history, settled) = run.play(rng);
        let judged = judge(&history, &Promises::of(3), Some(&settled)).unwrap();
        assert!(judged.holds(), "{judged}");
        assert!(judged.linear.gave_up.is_empty(), "{judged}");
    }
}

#[test]
fn a_wrong_answer_late_in_a_long_history_is_told_by_few_operations() {
    let rng = &mut Rng::with_seed(11);
    let run = Run { replicas: 3, clients: 4, keys: 1, operations: 5_000, strong: true, stamped: false };
    let (mut history, _) = run.play(rng);
    let first = history.operations.iter().find_map(|op| op.written()?.cloned()).unwrap();
    let read = history.operations.iter_mut().rev().find(|op| op.found().is_some()).unwrap();
    read.told = Told::Found { value: Some(first), stamp: None };
    let operations = &history.by_key()[&Bytes::from_static(b"k0")];
    match search(operations, STATES_MAX) {
        Outcome::Not { begun, counterexample } => {
            assert!(begun > 10_000, "{begun}");
            assert!(counterexample.len() <= 3, "{counterexample:#?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_search_ends_at_its_bound() {
    // Everything at once: removals make every order of the puts as good as any other.
    let mut lines = String::new();
    for number in 0..20 {
        lines += &format!("0 100 {number} QUORUM put k v{number} written\n");
        lines += &format!("0 100 {} QUORUM remove k written\n", 100 + number);
        lines += &format!("0 100 {} QUORUM get k found v{number}\n", 200 + number);
        lines += &format!("0 100 {} QUORUM get k found nothing\n", 300 + number);
    }
    let history = History::parse(&lines).unwrap();
    let judged =
        judge(&history, &Promises { states_max: 10_000, ..Promises::of(3) }, None).expect("well-formed");
    assert_eq!(judged.linear.gave_up, [Bytes::from_static(b"k")]);
    assert!(judged.linear.states_most < 11_000, "{judged}");
    assert!(judged.to_string().contains("1 given up (first: k)"), "{judged}");
}

#[test]
fn a_ring_says_who_may_hold_the_keys() {
    let rng = &mut Rng::with_seed(3);
    let run = Run { replicas: 3, clients: 2, keys: 3, operations: 20, strong: true, stamped: true };
    let (history, mut settled) = run.play(rng);
    settled.ring = Some(Ring::even(3, 3));
    assert!(judge(&history, &Promises::of(3), Some(&settled)).unwrap().holds());
    settled.ring = Some(Ring::even(3, 2));
    let judged = judge(&history, &Promises::of(3), Some(&settled)).unwrap();
    assert_eq!(judged.of_rule(Rule::StrayCopy), 3);
}
