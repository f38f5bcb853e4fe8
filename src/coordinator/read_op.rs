//! Is a read done, and who is behind? Counts and merges the answers of one read; knows no clock, no socket, no await.
//!
//! A read asks as many replicas as its level needs, in the order it was given. A failed one is replaced by the next,
//! and [`ReadOp::slow`] asks one more. With enough answers, [`ReadOp::resolve`] merges them and says what each of the
//! answering replicas lacks: writing that back before answering is what keeps a later quorum read from showing
//! something older (blocking read repair, as in Cassandra).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::answer::{Failure, NodeId, ReadAnswer};
use crate::cell::{Cell, merge};

/// The state of one read.
#[derive(Debug)]
pub struct ReadOp {
    needed: usize,
    /// The replicas in the order in which they are asked.
    order: Vec<NodeId>,
    /// How many of `order` were asked.
    asked: usize,
    answers: Vec<Answered>,
    failures: Vec<(NodeId, Failure)>,
}

/// One replica's answer.
#[derive(Debug)]
struct Answered {
    node: NodeId,
    cells: Vec<(Bytes, Cell)>,
    complete: bool,
}

/// What to do after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for another answer.
    Wait,
    /// Ask this replica too.
    Ask(NodeId),
    /// The level is met.
    Enough,
    /// The level can no longer be met.
    Impossible,
}

/// The merged answers of a read.
#[derive(Debug, PartialEq)]
pub struct Resolved {
    /// The newest version of each cell, in column order, tombstones and expired ones included.
    pub cells: Vec<(Bytes, Cell)>,
    /// False: there may be more cells behind the last one; ask from there on.
    pub complete: bool,
    /// What each answering replica lacks of `cells`; replicas that lack nothing are left out.
    pub repairs: Vec<(NodeId, Vec<(Bytes, Cell)>)>,
}

impl ReadOp {
    /// A read that needs `needed` answers and may ask the replicas of `order`, best first. There are at least `needed`.
    pub fn new(needed: usize, order: Vec<NodeId>) -> ReadOp {
        assert!(needed > 0);
        assert!(needed <= order.len());
        ReadOp { needed, order, asked: needed, answers: Vec::with_capacity(needed), failures: Vec::new() }
    }

    /// The replicas to ask at once.
    pub fn first(&self) -> &[NodeId] {
        &self.order[..self.needed]
    }

    /// The replicas that were not asked.
    pub fn spared(&self) -> &[NodeId] {
        &self.order[self.asked..]
    }

    /// Takes note of an answer.
    pub fn note(&mut self, node: NodeId, answer: ReadAnswer) -> Next {
        let known = self.answers.iter().any(|answered| answered.node == node);
        let failed = self.failures.iter().any(|(known, _)| *known == node);
        match answer {
            _ if known || failed => {}
            ReadAnswer::Cells { cells, complete } => self.answers.push(Answered { node, cells, complete }),
            ReadAnswer::Failed(failure) => {
                self.failures.push((node, failure));
                if self.answers.len() < self.needed && self.in_flight() + self.answers.len() < self.needed {
                    return self.slow().map_or(Next::Impossible, Next::Ask);
                }
            }
        }
        if self.answers.len() >= self.needed { Next::Enough } else { Next::Wait }
    }

    /// An answer is slow: the next replica to ask instead, if there is one.
    pub fn slow(&mut self) -> Option<NodeId> {
        let next = self.order.get(self.asked).copied();
        self.asked += usize::from(next.is_some());
        next
    }

    /// How many have answered.
    pub fn answered(&self) -> usize {
        self.answers.len()
    }

    /// The replicas that failed, and why.
    pub fn failures(&self) -> &[(NodeId, Failure)] {
        &self.failures
    }

    /// Merges the answers and finds who is behind. `cells_max` is the bound that the replicas were given.
    pub fn resolve(mut self, cells_max: usize) -> Resolved {
        if self.agree() {
            let Answered { mut cells, complete, .. } = self.answers.swap_remove(0);
            let truncated = cells.len() > cells_max;
            cells.truncate(cells_max);
            return Resolved { cells, complete: complete && !truncated, repairs: Vec::new() };
        }
        let complete = self.answers.iter().all(|answered| answered.complete);
        // An answer that was cut says nothing of what lies behind its last cell: neither may the merged one.
        let cuts = self.answers.iter().filter(|answered| !answered.complete);
        let cut = cuts.filter_map(|answered| answered.cells.last().map(|(column, _)| column.clone())).min();
        let mut newest: BTreeMap<Bytes, Cell> = BTreeMap::new();
        for (column, cell) in self.answers.iter().flat_map(|answered| &answered.cells) {
            if cut.as_ref().is_some_and(|cut| column > cut) {
                continue;
            }
            let merged = match newest.remove(column) {
                Some(known) => merge(known, cell.clone()),
                None => cell.clone(),
            };
            newest.insert(column.clone(), merged);
        }
        let truncated = newest.len() > cells_max;
        let cells: Vec<(Bytes, Cell)> = newest.into_iter().take(cells_max).collect();
        let repairs = self.answers.iter().map(|answered| (answered.node, lacking(&cells, &answered.cells)));
        let repairs = repairs.filter(|(_, lacks)| !lacks.is_empty()).collect();
        Resolved { cells, complete: complete && !truncated, repairs }
    }

    /// All answers are the same, as they mostly are: there is nothing to merge.
    fn agree(&self) -> bool {
        let same = |pair: &[Answered]| pair[0].complete == pair[1].complete && pair[0].cells == pair[1].cells;
        !self.answers.is_empty() && self.answers.windows(2).all(same)
    }

    fn in_flight(&self) -> usize {
        self.asked - self.answers.len() - self.failures.len()
    }
}

/// The cells of `newest` that are not in `had`. Both are in column order.
fn lacking(newest: &[(Bytes, Cell)], had: &[(Bytes, Cell)]) -> Vec<(Bytes, Cell)> {
    let has = |entry: &(Bytes, Cell)| {
        let at = had.binary_search_by(|(column, _)| column.cmp(&entry.0));
        at.is_ok_and(|at| had[at].1 == entry.1)
    };
    newest.iter().filter(|entry| !has(entry)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::script;
    use super::*;
    use crate::cell::{Content, Stamp};
    use proptest::prelude::*;

    #[test]
    fn scripts() {
        script::check("read", |lines| {
            let mut op: Option<ReadOp> = None;
            lines.iter().map(|line| format!("{line} -> {}", step(&mut op, line))).collect()
        });
    }

    /// `read NEEDED from IDS`, `ID has COLUMN=VALUE@STAMP … [cut]`, `ID lost`, `slow`, `resolve MAX`.
    fn step(op: &mut Option<ReadOp>, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let parse_id = |word: &&str| NodeId(word.parse().expect("an id"));
        if words[0] == "read" {
            let read =
                ReadOp::new(words[1].parse().expect("a number"), words[3..].iter().map(parse_id).collect());
            let asked: Vec<String> = read.first().iter().map(NodeId::to_string).collect();
            *op = Some(read);
            return format!("ask {}", asked.join(" "));
        }
        let read = op.as_mut().expect("a script starts with `read`");
        match words[0] {
            "slow" => read.slow().map_or("nobody left".to_owned(), |node| format!("ask {node}")),
            "resolve" => describe(op.take().expect("a read").resolve(words[1].parse().expect("a number"))),
            id => {
                let answer = match words[1] {
                    "lost" => ReadAnswer::Failed(Failure::ConnectionLost),
                    _ => ReadAnswer::Cells {
                        cells: words[2..]
                            .iter()
                            .filter(|word| **word != "cut")
                            .map(|word| cell(word))
                            .collect(),
                        complete: !words.contains(&"cut"),
                    },
                };
                format!("{:?}", read.note(parse_id(&id), answer)).to_lowercase()
            }
        }
    }

    /// `COLUMN=VALUE@STAMP`; the value `x` is a tombstone, the column `-` the empty one.
    fn cell(text: &str) -> (Bytes, Cell) {
        let (column, rest) = text.split_once('=').expect("column=value@stamp");
        let (value, stamp) = rest.split_once('@').expect("value@stamp");
        let value = Bytes::copy_from_slice(value.as_bytes());
        let content = if value == "x" { Content::Tombstone } else { Content::Value(value) };
        let column = if column == "-" { Bytes::new() } else { Bytes::copy_from_slice(column.as_bytes()) };
        (column, Cell { stamp: Stamp(stamp.parse().expect("a stamp")), content })
    }

    fn describe(resolved: Resolved) -> String {
        let text = |cells: &[(Bytes, Cell)]| -> String {
            let cells: Vec<String> = cells
                .iter()
                .map(|(column, cell)| {
                    let column = if column.is_empty() { "-".into() } else { String::from_utf8_lossy(column) };
                    let value = match &cell.content {
                        Content::Tombstone => "x".into(),
                        _ => String::from_utf8_lossy(cell.value_bytes()),
                    };
                    format!("{column}={value}@{}", cell.stamp)
                })
                .collect();
            if cells.is_empty() { "nothing".to_owned() } else { cells.join(" ") }
        };
        let mut said = text(&resolved.cells);
        if !resolved.complete {
            said.push_str(", more to come");
        }
        for (node, lacks) in &resolved.repairs {
            said.push_str(&format!("; repair {node} with {}", text(lacks)));
        }
        said
    }

    fn any_cells() -> impl Strategy<Value = Vec<(Bytes, Cell)>> {
        let cell = (0i64..4, prop::option::of(0u8..3)).prop_map(|(stamp, value)| Cell {
            stamp: Stamp(stamp),
            content: value.map_or(Content::Tombstone, |value| Content::Value(Bytes::from(vec![value]))),
        });
        prop::collection::btree_map(0u8..5, cell, 0..5).prop_map(|cells| {
            cells.into_iter().map(|(column, cell)| (Bytes::from(vec![column]), cell)).collect()
        })
    }

    proptest! {
        /// After the repairs every answering replica holds, of the columns read, just what the reader was shown.
        #[test]
        fn repairs_make_the_answering_replicas_equal(answers in prop::collection::vec(any_cells(), 1..4)) {
            let order: Vec<NodeId> = (0..answers.len() as u32).map(NodeId).collect();
            let mut op = ReadOp::new(answers.len(), order.clone());
            for (node, cells) in order.iter().zip(&answers) {
                op.note(*node, ReadAnswer::Cells { cells: cells.clone(), complete: true });
            }
            let resolved = op.resolve(100);
            for (node, had) in order.iter().zip(&answers) {
                let mut holds: BTreeMap<Bytes, Cell> = had.iter().cloned().collect();
                let lacks = resolved.repairs.iter().find(|(repaired, _)| repaired == node).map(|(_, lacks)| lacks);
                for (column, cell) in lacks.into_iter().flatten() {
                    let merged = holds.remove(column).map_or(cell.clone(), |known| merge(known, cell.clone()));
                    holds.insert(column.clone(), merged);
                }
                prop_assert_eq!(holds.into_iter().collect::<Vec<_>>(), resolved.cells.clone());
            }
        }
    }
}
