//! Cuts a failing run down: leaves out faults, clients and steps for as long as the same promise is broken.

use super::plan::{Plan, Step};
use super::world::{self, Finding};

/// Runs that cutting down may take.
const RUNS_MAX: usize = 400;

/// The smallest run found that breaks the same promise, and what it finds.
pub fn shrink(plan: &Plan, finding: &Finding) -> (Plan, Finding) {
    let mut smallest = (plan.clone(), finding.clone());
    let mut runs = 0;
    while let Some(smaller) = candidates(&smallest.0).into_iter().find_map(|candidate| {
        runs += 1;
        let found = (runs <= RUNS_MAX).then(|| world::run(&candidate, false).finding)??;
        (found.rule == finding.rule).then_some((candidate, found))
    }) {
        smallest = smaller;
    }
    smallest
}

/// Plans with something left out, the largest pieces first.
fn candidates(plan: &Plan) -> Vec<Plan> {
    let mut candidates = Vec::new();
    for piece in pieces(plan.faults.len()) {
        let mut smaller = plan.clone();
        smaller.faults.drain(piece);
        candidates.push(smaller);
    }
    for client in 0..plan.clients.len() {
        if !plan.clients[client].is_empty() {
            let mut smaller = plan.clone();
            smaller.clients[client].clear(); // the others keep their numbers
            candidates.push(smaller);
        }
    }
    for client in 0..plan.clients.len() {
        for piece in pieces(plan.clients[client].len()) {
            let mut smaller = plan.clone();
            leave_out(&mut smaller.clients[client], piece);
            candidates.push(smaller);
        }
    }
    candidates
}

/// Halves, quarters … down to single ones.
fn pieces(len: usize) -> Vec<std::ops::Range<usize>> {
    let mut pieces = Vec::new();
    let mut size = len.div_ceil(2);
    while size > 0 {
        pieces.extend((0..len).step_by(size).map(|from| from..(from + size).min(len)));
        size /= 2;
    }
    pieces
}

/// What follows happens when it would have.
fn leave_out(steps: &mut Vec<Step>, piece: std::ops::Range<usize>) {
    let time_ms: u64 = steps[piece.clone()].iter().map(|step| step.think_ms).sum();
    if let Some(next) = steps.get_mut(piece.end) {
        next.think_ms += time_ms;
    }
    steps.drain(piece);
}
