//! Is there one order of all operations on a key that explains every answer? Each operation takes effect at one moment
//! between its beginning and its end, and a read finds what was written last (Herlihy and Wing, 1990).
//!
//! The history is walked moment by moment; what is kept is every state the register can be in (Wing and Gong's search
//! in Lowe's just-in-time form: "Testing for Linearizability", 2017):
//!
//! ```text
//!   state      the value, and which operations under way have taken effect already
//!   a call     is under way from now on
//!   an end     by now it has taken effect: a state in which it has not moves on, in every way in which writes
//!              under way can take effect until it has; a state that cannot is dropped
//!   no state   no order explains the answers
//! ```
//!
//! At a quiet moment nothing is under way and only values are left, so the search is as small as the busiest stretch of
//! the history. Every value has one put, which makes most choices for us, without losing an order:
//!
//!   - a read takes effect as soon as its value is there
//!   - a value is not overwritten while a read still needs it
//!   - a put whose value nobody reads takes effect right before another write, unseen
//!   - a put of unknown outcome has happened by the end of the first read that shows it, or need not happen at all
//!
//! Not here: which levels promise this much (`pick` asks [`super::Promises`]), how findings are told.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::Promises;
use super::history::{Asked, Operation, Told};

/// What came of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An order explains every answer.
    Linearizable {
        /// States visited.
        states: usize,
    },
    /// No order does.
    Not {
        /// How many operations had begun when the first ones that no order explains had ended.
        begun: usize,
        /// Some of them that no order explains, in the order in which they began.
        counterexample: Vec<Operation>,
    },
    /// The search visited as many states as it may, or more operations were under way at once than it can tell apart.
    GaveUp {
        /// States visited.
        states: usize,
    },
}

/// Why a key is not searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// Some write, perhaps one of unknown outcome, was below a quorum: reads may or may not show it, as often as they
    /// like.
    WeakWrites,
    /// No read at a quorum or above had an answer: every order will do.
    NoStrongReads,
    /// Reads do not write back what they show, so the next one may show something older.
    NoReadRepair,
}

/// The keys whose operations are promised to be linearizable.
#[derive(Clone, Debug, Default)]
pub struct Picked<'a> {
    /// Of each such key all writes, and the reads at a quorum or above, in the order in which they began.
    pub keys: BTreeMap<&'a Bytes, Vec<&'a Operation>>,
    /// How many other keys there are, and why.
    pub left_out: BTreeMap<LeftOut, usize>,
}

/// Picks from the operations of each key (`History::by_key`) those that linearizability is promised for.
pub fn pick<'a>(keys: &BTreeMap<&'a Bytes, Vec<&'a Operation>>, promises: &Promises) -> Picked<'a> {
    let mut picked = Picked::default();
    for (key, operations) in keys {
        match promised(operations, promises) {
            Ok(operations) => drop(picked.keys.insert(*key, operations)),
            Err(why) => *picked.left_out.entry(why).or_default() += 1,
        }
    }
    picked
}

fn promised<'a>(operations: &[&'a Operation], promises: &Promises) -> Result<Vec<&'a Operation>, LeftOut> {
    let strong = |operation: &Operation| promises.needed(operation.level) >= promises.quorum();
    let may_be_written =
        |operation: &Operation| operation.written().is_some() && !matches!(operation.told, Told::Refused(_));
    if !promises.read_repair && promises.replicas > 1 {
        return Err(LeftOut::NoReadRepair);
    }
    if operations.iter().any(|operation| may_be_written(operation) && !strong(operation)) {
        return Err(LeftOut::WeakWrites);
    }
    if !operations.iter().any(|operation| operation.found().is_some() && strong(operation)) {
        return Err(LeftOut::NoStrongReads);
    }
    let of_use = |operation: &&&Operation| operation.written().is_some() || strong(operation);
    Ok(operations.iter().filter(of_use).copied().collect())
}

/// Searches for an order of the operations of one key, which begins empty; visits at most `states_max` states.
pub fn search(operations: &[&Operation], states_max: usize) -> Outcome {
    let steps: Vec<Step> = operations.iter().enumerate().filter_map(|(at, op)| Step::of(at, op)).collect();
    match verdict(&steps, states_max) {
        Verdict::Yes(states) => Outcome::Linearizable { states },
        Verdict::GaveUp(states) => Outcome::GaveUp { states },
        Verdict::No => {
            let prefix = shortest_prefix(&steps, states_max);
            let begun = prefix.len();
            let mut enough = shrink(prefix);
            enough.sort_by_key(|step| step.at);
            let counterexample = enough.iter().map(|step| operations[step.at].clone()).collect();
            Outcome::Not { begun, counterexample }
        }
    }
}

// ------------------------------------------------------------------------------------------------ what is searched

/// An operation as the search needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step<'a> {
    /// Its place among the operations that were given.
    at: usize,
    writes: bool,
    /// What it writes or shows.
    value: Option<&'a Bytes>,
    began_us: u64,
    /// `None`: it is a write of unknown outcome.
    ended_us: Option<u64>,
}

enum Verdict {
    Yes(usize),
    No,
    GaveUp(usize),
}

impl<'a> Step<'a> {
    /// Refused writes did not happen; a read without an answer says nothing.
    fn of(at: usize, operation: &'a Operation) -> Option<Step<'a>> {
        let began_us = operation.began_us;
        let ended_us = match &operation.told {
            Told::Written { .. } | Told::Found { .. } => Some(operation.ended_us),
            Told::Unknown(_) if operation.asked != Asked::Get => None,
            Told::Unknown(_) | Told::Refused(_) => return None,
        };
        match (operation.written(), operation.found()) {
            (Some(value), _) => Some(Step { at, writes: true, value, began_us, ended_us }),
            (None, Some(value)) => Some(Step { at, writes: false, value, began_us, ended_us }),
            (None, None) => None,
        }
    }

    fn reads(&self) -> bool {
        !self.writes
    }
}

fn verdict(steps: &[Step], states_max: usize) -> Verdict {
    match Moves::of(steps) {
        Some(moves) => Search::new(&moves, states_max).run(),
        None => Verdict::No,
    }
}

/// A value as a small number.
type Code = u32;

/// There is no value.
const NOTHING: Code = 0;

/// Stands for every value that nobody reads.
const UNREAD: Code = 1;

/// The steps with values as numbers, and with the times that the values allow.
struct Moves {
    moves: Vec<Move>,
    /// Calls and ends in the order of time, calls first.
    events: Vec<Event>,
    /// How many values there are.
    codes: usize,
    /// How many reads show each value.
    readers: Vec<u32>,
    /// Something may be removed.
    removes: bool,
}

struct Move {
    writes: bool,
    value: Code,
    began_us: u64,
    /// `None`: a removal that may never happen.
    ended_us: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    us: u64,
    ends: bool,
    index: usize,
}

impl Moves {
    /// `None`: a read shows what nobody wrote, or wrote later.
    fn of(steps: &[Step]) -> Option<Moves> {
        // The first end of a read that shows each value: by then it is written.
        let mut first_shown: HashMap<Option<&Bytes>, u64> = HashMap::new();
        for step in steps.iter().filter(|step| step.reads()) {
            let ended = step.ended_us.expect("a read that has no end was left out");
            first_shown.entry(step.value).and_modify(|first| *first = ended.min(*first)).or_insert(ended);
        }
        // Of each value that is read: its number, and when its put began.
        let mut codes: HashMap<&Bytes, (Code, u64)> = HashMap::new();
        for step in steps.iter().filter(|step| step.writes && first_shown.contains_key(&step.value)) {
            if let Some(value) = step.value {
                let code = UNREAD + 1 + codes.len() as Code;
                codes.insert(value, (code, step.began_us));
            }
        }
        let mut moves = Vec::with_capacity(steps.len());
        for step in steps {
            moves.extend(match (step.writes, step.value) {
                (true, Some(value)) => Move::put(step, codes.get(value), first_shown.get(&step.value)),
                (true, None) if first_shown.contains_key(&None) => Some(Move::plain(step, NOTHING)),
                (true, None) => step.ended_us.map(|_| Move::plain(step, UNREAD)),
                (false, None) => Some(Move::plain(step, NOTHING)),
                (false, Some(value)) => {
                    let (code, put_began_us) = codes.get(value)?;
                    Some(Move { began_us: step.began_us.max(*put_began_us), ..Move::plain(step, *code) })
                }
            });
        }
        let backwards = |step: &Move| step.ended_us.is_some_and(|ended| ended < step.began_us);
        (!moves.iter().any(backwards)).then(|| Moves::in_order(moves, UNREAD as usize + 1 + codes.len()))
    }

    fn in_order(moves: Vec<Move>, codes: usize) -> Moves {
        let mut events = Vec::with_capacity(2 * moves.len());
        let mut readers = vec![0; codes];
        for (index, step) in moves.iter().enumerate() {
            events.push(Event { us: step.began_us, ends: false, index });
            events.extend(step.ended_us.map(|us| Event { us, ends: true, index }));
            readers[step.value as usize] += u32::from(!step.writes);
        }
        events.sort_unstable();
        let removes = moves.iter().any(|step| step.writes && step.value == NOTHING);
        Moves { moves, events, codes, readers, removes }
    }
}

impl Move {
    fn plain(step: &Step, value: Code) -> Move {
        Move { writes: step.writes, value, began_us: step.began_us, ended_us: step.ended_us }
    }

    /// `None`: nobody reads it, and it need not have happened.
    fn put(step: &Step, code: Option<&(Code, u64)>, first_shown_us: Option<&u64>) -> Option<Move> {
        let ended_us = [step.ended_us, first_shown_us.copied()].into_iter().flatten().min()?;
        let value = code.map_or(UNREAD, |(code, _)| *code);
        Some(Move { ended_us: Some(ended_us), ..Move::plain(step, value) })
    }
}

// ------------------------------------------------------------------------------------------------ the search

/// A set of operations under way, each a bit.
type Slots = u128;

/// What the register may be, and who may have made it so.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    value: Code,
    /// Of the operations under way, those that have taken effect.
    done: Slots,
}

/// States, each with the fewest removals of unknown outcome that lead to it: fewer leave more for later.
type States = BTreeMap<State, u32>;

struct Search<'a> {
    history: &'a Moves,
    /// Of each operation under way, its bit.
    slots: HashMap<usize, Slots>,
    /// Which bits are in use.
    taken: Slots,
    /// Writes under way whose value is read, and the value that each bit writes.
    writing: Slots,
    writes: [Code; Slots::BITS as usize],
    /// Writes under way whose value nobody reads.
    unread: Slots,
    /// Reads under way, by value.
    reading: Vec<Slots>,
    /// Reads that have not begun, by value.
    to_come: Vec<u32>,
    /// Removals of unknown outcome that have begun.
    removals: u32,
    states: States,
    visited: usize,
    visited_max: usize,
}

impl<'a> Search<'a> {
    fn new(history: &'a Moves, visited_max: usize) -> Search<'a> {
        Search {
            history,
            slots: HashMap::new(),
            taken: 0,
            writing: 0,
            writes: [NOTHING; Slots::BITS as usize],
            unread: 0,
            reading: vec![0; history.codes],
            to_come: history.readers.clone(),
            removals: 0,
            states: States::from([(State { value: NOTHING, done: 0 }, 0)]),
            visited: 0,
            visited_max,
        }
    }

    fn run(mut self) -> Verdict {
        for event in &self.history.events {
            let step = &self.history.moves[event.index];
            if event.ends {
                self.end(event.index, step);
            } else if !self.begin(event.index, step) {
                return Verdict::GaveUp(self.visited);
            }
            if self.states.is_empty() {
                return Verdict::No;
            }
            if self.visited > self.visited_max {
                return Verdict::GaveUp(self.visited);
            }
        }
        Verdict::Yes(self.visited)
    }

    /// False: more operations are under way than there are bits.
    fn begin(&mut self, index: usize, step: &Move) -> bool {
        if step.ended_us.is_none() {
            self.removals += 1;
            return true;
        }
        let slot = self.taken.trailing_ones();
        if slot == Slots::BITS {
            return false;
        }
        let bit = 1 << slot;
        self.slots.insert(index, bit);
        self.taken |= bit;
        match step {
            Move { writes: true, value: UNREAD, .. } => self.unread |= bit,
            Move { writes: true, value, .. } => {
                self.writing |= bit;
                self.writes[slot as usize] = *value;
            }
            Move { value, .. } => {
                self.reading[*value as usize] |= bit;
                self.to_come[*value as usize] -= 1;
                self.show_at_once(*value, bit);
            }
        }
        true
    }

    /// A read whose value is there takes effect as it begins.
    fn show_at_once(&mut self, value: Code, bit: Slots) {
        let shown = |state: State| State {
            done: if state.value == value { state.done | bit } else { state.done },
            ..state
        };
        self.states =
            std::mem::take(&mut self.states).into_iter().map(|(state, used)| (shown(state), used)).collect();
    }

    /// Every state moves on until the operation has taken effect.
    fn end(&mut self, index: usize, step: &Move) {
        let bit = self.slots.remove(&index).expect("it began before it ends");
        let mut open: Vec<(State, u32)> = std::mem::take(&mut self.states).into_iter().collect();
        let mut seen = States::new();
        let mut ended = States::new();
        while let Some((state, used)) = open.pop() {
            if state.done & bit != 0 {
                note_fewest(&mut ended, State { done: state.done & !bit, ..state }, used);
                continue;
            }
            for (next, used) in self.moves_from(state, used, bit) {
                if note_fewest(&mut seen, next, used) {
                    open.push((next, used));
                }
            }
            if self.visited + seen.len() + ended.len() > self.visited_max {
                break; // `run` gives up
            }
        }
        self.visited += seen.len() + ended.len();
        self.states = ended;
        self.forget(bit, step);
    }

    /// The states one write away. `ending`: the bit of the operation that must take effect now.
    fn moves_from(&self, state: State, used: u32, ending: Slots) -> Vec<(State, u32)> {
        let mut next = Vec::new();
        let mut rest = self.writing & !state.done;
        while rest != 0 {
            let slot = rest.trailing_zeros();
            rest &= rest - 1;
            next.extend(self.write(state, self.writes[slot as usize], 1 << slot).map(|state| (state, used)));
        }
        if self.unread & ending != 0 {
            next.extend(self.write(state, UNREAD, ending).map(|state| (state, used)));
        }
        let wanted = self.reading[NOTHING as usize] & !state.done != 0;
        if wanted && used < self.removals && state.value != NOTHING {
            next.extend(self.write(state, NOTHING, 0).map(|state| (state, used + 1)));
        }
        next
    }

    /// The state after a write takes effect; `None` if a read would never see the value that it overwrites.
    fn write(&self, state: State, value: Code, bit: Slots) -> Option<State> {
        let comes_back = state.value == NOTHING && self.history.removes;
        let old = state.value as usize;
        let needed = self.to_come[old] > 0 || self.reading[old] & !state.done != 0;
        if needed && !comes_back {
            return None;
        }
        let done = state.done | bit | self.unread | self.reading[value as usize];
        Some(State { value, done })
    }

    fn forget(&mut self, bit: Slots, step: &Move) {
        self.taken &= !bit;
        self.writing &= !bit;
        self.unread &= !bit;
        if !step.writes {
            self.reading[step.value as usize] &= !bit;
        }
    }
}

/// Adds a state; false if it was there with as few removals.
fn note_fewest(states: &mut States, state: State, used: u32) -> bool {
    match states.get_mut(&state) {
        Some(fewest) if *fewest <= used => false,
        Some(fewest) => {
            *fewest = used;
            true
        }
        None => {
            states.insert(state, used);
            true
        }
    }
}

// --------------------------------------------------------------------------------------------- a small counterexample

/// Operations that may be walked, all attempts together, to make a counterexample smaller.
const SHRINK_WORK_MAX: usize = 5_000_000;

/// States that an attempt to make a counterexample smaller may visit.
const SHRINK_STATES_MAX: usize = 100_000;

/// The history up to the first end at which no order is left.
fn shortest_prefix<'a>(steps: &[Step<'a>], states_max: usize) -> Vec<Step<'a>> {
    let mut ends: Vec<u64> = steps.iter().filter_map(|step| step.ended_us).collect();
    ends.sort_unstable();
    ends.dedup();
    // The last end is certainly too late; the first one that is gets found by halving.
    let (mut fine, mut late) = (0, ends.len() - 1);
    while fine < late {
        let middle = (fine + late) / 2;
        match verdict(&prefix(steps, ends[middle]), states_max) {
            Verdict::No => late = middle,
            Verdict::Yes(_) | Verdict::GaveUp(_) => fine = middle + 1,
        }
    }
    prefix(steps, ends[late])
}

/// What was known at a moment: of writes under way the outcome is open, and reads under way have shown nothing.
fn prefix<'a>(steps: &[Step<'a>], until_us: u64) -> Vec<Step<'a>> {
    let begun = steps.iter().filter(|step| step.began_us <= until_us);
    let ended = |step: &Step| step.ended_us.filter(|ended| *ended <= until_us);
    begun
        .filter(|step| step.writes || ended(step).is_some())
        .map(|step| Step { ended_us: ended(step), ..*step })
        .collect()
}

/// Leaves out what can be left out so that still no order explains the rest. Leaving out a read, a put with all its
/// reads, or a write that nobody reads, takes no order away; so what remains proves as much as the whole.
fn shrink(steps: Vec<Step>) -> Vec<Step> {
    let mut work = SHRINK_WORK_MAX;
    let mut hopeless = |steps: &[Step]| {
        let enough = work.checked_sub(steps.len());
        work = enough.unwrap_or(0);
        enough.is_some() && matches!(verdict(steps, SHRINK_STATES_MAX), Verdict::No)
    };
    let steps = drop_groups(
        steps,
        |step| (step.reads() || step.value.is_some()).then_some(step.value),
        &mut hopeless,
    );
    let steps = drop_groups(steps, |step| step.reads().then_some(step.at), &mut hopeless);
    let read: HashSet<Option<&Bytes>> =
        steps.iter().filter(|step| step.reads()).map(|step| step.value).collect();
    let unread = |step: &Step| step.writes && !read.contains(&step.value);
    drop_groups(steps, |step| unread(step).then_some(step.at), &mut hopeless)
}

/// Drops groups of steps, many at once and then fewer, as long as what remains is hopeless. Steps without a group stay.
fn drop_groups<'a, G: Ord + Copy>(
    mut steps: Vec<Step<'a>>,
    group: impl Fn(&Step<'a>) -> Option<G>,
    hopeless: &mut impl FnMut(&[Step]) -> bool,
) -> Vec<Step<'a>> {
    let mut seen = BTreeSet::new();
    let mut groups: Vec<G> = steps.iter().filter_map(&group).filter(|group| seen.insert(*group)).collect();
    let mut many = groups.len();
    while many > 0 {
        let mut from = 0;
        while from < groups.len() {
            let to = (from + many).min(groups.len());
            let dropped: BTreeSet<G> = groups[from..to].iter().copied().collect();
            let stays = |step: &&Step<'a>| group(step).is_none_or(|group| !dropped.contains(&group));
            let rest: Vec<Step> = steps.iter().filter(stays).copied().collect();
            if hopeless(&rest) {
                steps = rest;
                groups.drain(from..to);
            } else {
                from = to;
            }
        }
        many /= 2;
    }
    steps
}
