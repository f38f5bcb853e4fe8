//! Is a write done? Counts the answers of one write; knows no clock, no socket and no await.
//!
//! A replica answers *applied*, or *behind* when it already holds a newer version, or fails. Below a quorum, and for a
//! stamp the client chose, both *applied* and *behind* acknowledge. From a quorum up only *applied* does, at first:
//!
//!   a write that starts after another was acknowledged must win, whatever the wall clocks say. The earlier one is on a
//!   quorum, so if this write's stamp is too low, at least one replica of any quorum says *behind*. Once too few are
//!   left to say *applied*, the write is sent again with a stamp above every one it was told of ([`Verdict::Restamp`]).
//!   In that round a replica that is *behind* again, although it was asked before, got something newer after this
//!   write began: the two are concurrent, either may win, and *behind* acknowledges. A replica that did not answer
//!   before may hold something old and unknown, so its first *behind* does not.
//!
//!   And once a quorum has said *applied* in one round, no earlier acknowledged write is unknown any more: it would
//!   share a replica with that quorum, which would have said *behind*. What a further replica is *behind* of is
//!   concurrent or later, so above a quorum (ALL) *behind* acknowledges then. To send again would do harm: readers may
//!   have seen the write and others overwritten it, and it would come back over them.
//!
//! Each round hears from at least one replica more, so there are at most as many rounds as replicas; with clocks that
//! agree there is one.

use crate::answer::{ApplyAnswer, Failure, NodeId};
use crate::cell::Stamp;

use super::level::{Level, quorum};

/// The state of one write.
#[derive(Debug)]
pub struct WriteOp {
    level: Level,
    needed: usize,
    /// *Behind* acknowledges from the first.
    behind_acknowledges: bool,
    /// At ANY, the failed replicas were given up for hints.
    hinted_instead: bool,
    slots: Vec<Slot>,
}

/// What is known of one replica.
#[derive(Debug)]
struct Slot {
    node: NodeId,
    state: SlotState,
    /// It told its stamp, or took an earlier one, in an earlier round; or it failed in a way that leaves that open.
    heard_before: bool,
    /// It is only hinted.
    only_hinted: bool,
}

#[derive(Debug, PartialEq)]
enum SlotState {
    /// Asked; no answer yet.
    Waiting,
    Applied,
    Behind(Stamp),
    Failed(Failure),
    /// Absent from the start; a hint is under way.
    Absent,
    /// Absent, and its hint is durable.
    Hinted,
}

/// Where a write stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More answers are needed, and may come.
    Pending,
    /// The level is met.
    Met,
    /// Send again with a stamp above this one.
    Restamp(Stamp),
    /// The level can no longer be met.
    Failed,
}

impl WriteOp {
    /// A write to `alive` replicas, with `absent` ones only hinted. `stamp_given`: the client chose the stamp.
    pub fn new(level: Level, alive: &[NodeId], absent: &[NodeId], stamp_given: bool) -> WriteOp {
        let replicas = alive.len() + absent.len();
        let slot =
            |node: &NodeId, state, only_hinted| Slot { node: *node, state, heard_before: false, only_hinted };
        let waiting = alive.iter().map(|node| slot(node, SlotState::Waiting, false));
        let hinting = absent.iter().map(|node| slot(node, SlotState::Absent, true));
        WriteOp {
            level,
            needed: level.needed(replicas),
            behind_acknowledges: stamp_given || !level.is_strong(replicas),
            hinted_instead: false,
            slots: waiting.chain(hinting).collect(),
        }
    }

    /// Takes note of a replica's answer in this round. A second answer of the same replica changes nothing.
    pub fn note(&mut self, node: NodeId, answer: ApplyAnswer) {
        if let Some(slot) =
            self.slots.iter_mut().find(|slot| slot.node == node && slot.state == SlotState::Waiting)
        {
            slot.state = match answer {
                ApplyAnswer::Applied => SlotState::Applied,
                ApplyAnswer::Behind(stamp) => SlotState::Behind(stamp),
                ApplyAnswer::Failed(failure) => SlotState::Failed(failure),
            };
        }
    }

    /// Takes note of what became of the hint for an absent replica.
    pub fn note_hint(&mut self, node: NodeId, outcome: Result<(), Failure>) {
        if let Some(slot) =
            self.slots.iter_mut().find(|slot| slot.node == node && slot.state == SlotState::Absent)
        {
            slot.state = match outcome {
                Ok(()) => SlotState::Hinted,
                Err(failure) => SlotState::Failed(failure),
            };
        }
    }

    /// At ANY a hint is enough: the replicas that failed and are to be hinted instead, once. Empty at other levels. Not
    /// `me`, the coordinator: it keeps no hints for itself; nor those that would refuse the hint as well.
    pub fn hint_instead(&mut self, me: NodeId) -> Vec<NodeId> {
        if self.level != Level::Any || std::mem::replace(&mut self.hinted_instead, true) {
            return Vec::new();
        }
        let failed = self
            .slots
            .iter_mut()
            .filter(|slot| matches!(&slot.state, SlotState::Failed(failure) if failure.may_pass()))
            .filter(|slot| slot.node != me);
        let give_up = |slot: &mut Slot| {
            // It may have the mutation all the same: that is not to be forgotten with the failure.
            slot.heard_before |=
                matches!(&slot.state, SlotState::Failed(failure) if !failure.nothing_stored());
            slot.state = SlotState::Absent;
            slot.only_hinted = true;
            slot.node
        };
        failed.map(give_up).collect()
    }

    /// Where the write stands.
    pub fn verdict(&self) -> Verdict {
        let acknowledged = self.acknowledged();
        if acknowledged >= self.needed {
            return Verdict::Met;
        }
        let waiting = self.count(|slot| slot.may_yet_acknowledge(self.level));
        if acknowledged + waiting >= self.needed {
            return Verdict::Pending;
        }
        let behind = self.slots.iter().filter(|slot| !self.acknowledges(slot));
        let told: Vec<Stamp> = behind.filter_map(Slot::behind).collect();
        match told.iter().max() {
            Some(_) if acknowledged + waiting + told.len() < self.needed => Verdict::Failed,
            Some(_) if self.applied() + waiting >= quorum(self.slots.len()) => Verdict::Pending,
            Some(largest) => Verdict::Restamp(*largest),
            None => Verdict::Failed,
        }
    }

    /// The write is sent again with a stamp above all that was told: every replica that was asked is asked again.
    pub fn restamped(&mut self) {
        for slot in &mut self.slots {
            match slot.state {
                SlotState::Applied | SlotState::Behind(_) => {
                    slot.heard_before = true;
                    slot.state = SlotState::Waiting;
                }
                SlotState::Failed(_) | SlotState::Hinted if slot.only_hinted => {
                    slot.state = SlotState::Absent
                }
                SlotState::Waiting | SlotState::Failed(_) | SlotState::Absent | SlotState::Hinted => {}
            }
        }
    }

    /// The replicas that still owe an answer.
    pub fn waiting(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.slots.iter().filter(|slot| slot.state == SlotState::Waiting).map(|slot| slot.node)
    }

    /// How many acknowledgements the level needs.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// How many have acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.count(|slot| self.acknowledges(slot))
    }

    /// How many replicas have to apply it before anything follows from that. Once it failed and may be stored nowhere,
    /// one that applies it ends that doubt.
    pub fn wanted(&self) -> usize {
        match self.verdict() {
            Verdict::Failed => 1,
            _ => self.needed.saturating_sub(self.acknowledged()),
        }
    }

    /// How many are known to have the mutation or something newer.
    pub fn holding(&self) -> usize {
        self.count(|slot| matches!(slot.state, SlotState::Applied | SlotState::Behind(_)))
    }

    /// The largest stamp of a replica that holds something newer.
    pub fn newest_told(&self) -> Option<Stamp> {
        self.slots.iter().filter_map(Slot::behind).max()
    }

    /// The replicas that failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (NodeId, &Failure)> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            SlotState::Failed(failure) => Some((slot.node, failure)),
            _ => None,
        })
    }

    /// The replicas that may lack the mutation and are owed a hint: those that failed or are still silent, and those
    /// whose hint found this server's log too busy. What was refused for good is not owed.
    pub fn owed(&self) -> impl Iterator<Item = (NodeId, Option<&Failure>)> {
        self.slots.iter().filter_map(|slot| match &slot.state {
            SlotState::Waiting => Some((slot.node, None)),
            SlotState::Failed(failure) if !failure.may_pass() => None,
            SlotState::Failed(failure) if !slot.only_hinted || *failure == Failure::Overloaded => {
                Some((slot.node, Some(failure)))
            }
            _ => None,
        })
    }

    /// True if certainly no replica has the mutation and no hint of it exists, so that nothing was written.
    pub fn nothing_stored(&self) -> bool {
        self.may_be_unstored() && self.waiting().next().is_none()
    }

    /// True if it may still turn out that nothing was written: every answer so far was a refusal, and some are due.
    pub fn may_be_unstored(&self) -> bool {
        self.slots.iter().all(|slot| match &slot.state {
            SlotState::Failed(failure) => failure.nothing_stored() && !slot.heard_before,
            SlotState::Waiting => !slot.heard_before,
            _ => false,
        })
    }

    fn acknowledges(&self, slot: &Slot) -> bool {
        match slot.state {
            SlotState::Applied => true,
            SlotState::Behind(_) => {
                self.behind_acknowledges || slot.heard_before || self.applied() >= quorum(self.slots.len())
            }
            SlotState::Hinted => self.level == Level::Any,
            SlotState::Waiting | SlotState::Failed(_) | SlotState::Absent => false,
        }
    }

    fn applied(&self) -> usize {
        self.count(|slot| slot.state == SlotState::Applied)
    }

    fn count(&self, holds: impl Fn(&Slot) -> bool) -> usize {
        self.slots.iter().filter(|slot| holds(slot)).count()
    }
}

impl Slot {
    fn behind(&self) -> Option<Stamp> {
        match self.state {
            SlotState::Behind(stamp) => Some(stamp),
            _ => None,
        }
    }

    fn may_yet_acknowledge(&self, level: Level) -> bool {
        match self.state {
            SlotState::Waiting => true,
            SlotState::Absent => level == Level::Any,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::script;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scripts() {
        script::check("write", |lines| {
            let mut op: Option<WriteOp> = None;
            lines
                .iter()
                .map(|line| {
                    step(&mut op, line);
                    let op = op.as_ref().expect("a script starts with `write`");
                    format!("{line} -> {}", describe(op))
                })
                .collect()
        });
    }

    /// `write LEVEL alive IDS [absent IDS] [given]`, `ID applied|behind STAMP|lost|refused`, `hint ID ok|refused`,
    /// `restamped`, `instead` (hint the failed ones instead).
    fn step(op: &mut Option<WriteOp>, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let node = |word: &str| NodeId(word.parse().expect("an id"));
        match words[0] {
            "write" => {
                let ids = |after: &str| -> Vec<NodeId> {
                    let from = words.iter().position(|word| *word == after).map_or(words.len(), |at| at + 1);
                    words[from..].iter().map_while(|word| word.parse().ok().map(NodeId)).collect()
                };
                let level = Level::parse(words[1]).expect("a level");
                *op = Some(WriteOp::new(level, &ids("alive"), &ids("absent"), words.contains(&"given")));
            }
            "restamped" => op.as_mut().expect("a write").restamped(),
            "instead" => drop(op.as_mut().expect("a write").hint_instead(NodeId(0))),
            "hint" => {
                let refused = Err(Failure::Refused("disk full".into()));
                let outcome = if words[2] == "ok" { Ok(()) } else { refused };
                op.as_mut().expect("a write").note_hint(node(words[1]), outcome);
            }
            id => {
                let answer = match words[1] {
                    "applied" => ApplyAnswer::Applied,
                    "behind" => ApplyAnswer::Behind(Stamp(words[2].parse().expect("a stamp"))),
                    "lost" => ApplyAnswer::Failed(Failure::ConnectionLost),
                    "refused" => ApplyAnswer::Failed(Failure::Refused("disk full".into())),
                    other => panic!("{other}"),
                };
                op.as_mut().expect("a write").note(node(id), answer);
            }
        }
    }

    fn describe(op: &WriteOp) -> String {
        let verdict = match op.verdict() {
            Verdict::Pending => "pending".to_owned(),
            Verdict::Met => "met".to_owned(),
            Verdict::Restamp(stamp) => format!("restamp above {stamp}"),
            Verdict::Failed if op.nothing_stored() => "failed, nothing stored".to_owned(),
            Verdict::Failed => "failed".to_owned(),
        };
        format!("{} of {} {verdict}", op.acknowledged(), op.needed())
    }

    fn any_answer() -> impl Strategy<Value = ApplyAnswer> {
        prop_oneof![
            Just(ApplyAnswer::Applied),
            (0i64..5).prop_map(|stamp| ApplyAnswer::Behind(Stamp(stamp))),
            Just(ApplyAnswer::Failed(Failure::TimedOut)),
        ]
    }

    fn waits(op: &WriteOp) -> bool {
        match op.verdict() {
            Verdict::Pending => true,
            Verdict::Failed => op.may_be_unstored() && op.waiting().count() > 0,
            Verdict::Met | Verdict::Restamp(_) => false,
        }
    }

    proptest! {
        /// A write that waits goes on waiting until as many as it needs have applied it, or the last has answered.
        #[test]
        fn nothing_follows_from_fewer_than_are_wanted(
            replicas in 1u32..6, level in prop::sample::select(vec![Level::One, Level::Two, Level::Quorum, Level::All]),
            answers in prop::collection::vec(prop_oneof![
                any_answer(), Just(ApplyAnswer::Failed(Failure::Overloaded))
            ], 0..5),
            given in any::<bool>(),
        ) {
            let nodes: Vec<NodeId> = (0..replicas).map(NodeId).collect();
            let mut op = WriteOp::new(level, &nodes, &[], given);
            for (node, answer) in nodes.iter().zip(answers) {
                op.note(*node, answer);
            }
            let waiting: Vec<NodeId> = op.waiting().collect();
            let fewer = op.wanted().min(waiting.len()).saturating_sub(1);
            if waits(&op) {
                prop_assert!(op.wanted() > 0);
                for node in &waiting[..fewer] {
                    op.note(*node, ApplyAnswer::Applied);
                    prop_assert!(waits(&op), "decided, and nobody is woken");
                }
            }
        }

        /// However answers come, a write whose replicas all answered is decided, and met only with enough of them.
        #[test]
        fn a_fully_answered_write_is_decided(
            replicas in 1u32..6, level in prop::sample::select(vec![Level::One, Level::Quorum, Level::All]),
            rounds in prop::collection::vec(prop::collection::vec(any_answer(), 5), 6)
        ) {
            let nodes: Vec<NodeId> = (0..replicas).map(NodeId).collect();
            let mut op = WriteOp::new(level, &nodes, &[], false);
            for (round, answers) in rounds.iter().enumerate() {
                for (node, answer) in nodes.iter().zip(answers) {
                    op.note(*node, answer.clone());
                }
                match op.verdict() {
                    Verdict::Met => {
                        prop_assert!(op.acknowledged() >= op.needed());
                        if round == 0 && level.is_strong(nodes.len()) {
                            let applied = answers[..nodes.len()].iter().filter(|a| **a == ApplyAnswer::Applied).count();
                            prop_assert!(applied >= quorum(nodes.len()));
                        }
                        return Ok(());
                    }
                    Verdict::Failed => return Ok(()),
                    Verdict::Restamp(_) => op.restamped(),
                    Verdict::Pending => prop_assert!(false, "pending with every answer there"),
                }
            }
            prop_assert!(false, "more rounds than replicas");
        }
    }

    #[test]
    fn what_is_too_old_is_refused_and_not_hinted() {
        let replicas = [NodeId(0), NodeId(1), NodeId(2)];
        let mut op = WriteOp::new(Level::Any, &replicas, &[], true);
        for replica in replicas {
            op.note(replica, ApplyAnswer::Failed(Failure::TooOld { above: Stamp(9) }));
        }
        assert_eq!(op.hint_instead(NodeId(0)), []);
        assert_eq!((op.owed().count(), op.nothing_stored()), (0, true));
        assert_eq!(op.verdict(), Verdict::Failed);
    }
}
