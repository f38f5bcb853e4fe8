//! What every server promises the others: "I send no writes below this stamp any more", of stamps that its clock makes.
//! What a promise waits for is a write under way or a hint that is kept.
//!
//! With them servers tell each other what they remember of each other's files (`refill`), and which tables they have.
//! The task that gathers them each round also looks after a refill, and after cells that a crash left.
//!
//! Not here: which writes are under way (`outstanding`), what a promise proves (the head of `reconcile`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::state::{self, Heard, Promised};
use super::{Reconciler, follow};
use crate::answer::{Answers, Failure, NodeId};
use crate::cell::Stamp;
use crate::key::TableId;
use crate::membership::State;
use crate::thrift::chord::{PeerAsks, PeerReconcile, PeerReconciled};

/// Rounds for which a promise holds against *not heard*.
const PROMISE_ROUNDS: u32 = 5;

/// How often it is looked whether a server has come up that has not been heard.
const NEWCOMER_LOOK: Duration = Duration::from_millis(50);

/// How often it is looked whether a crash left cells that were to be dropped.
const LEFTOVERS_LOOK: Duration = Duration::from_secs(60);

impl Reconciler {
    /// Every round: what did the clock reach, do clients come, what do the others promise and remember? At once when
    /// somebody comes up.
    pub(super) async fn run_promises(self: Arc<Self>) {
        let (incarnation, whole) = {
            let known = self.known();
            (known.files.incarnation, known.files.whole)
        };
        self.remember_self(incarnation, whole).await;
        let mut leftovers_at = Instant::now() + LEFTOVERS_LOOK;
        loop {
            self.sample_clock();
            self.pace.note_requests(self.requests());
            self.gather_promises().await;
            self.look_after_refill().await;
            self.keep_memory().await;
            if Instant::now() >= leftovers_at {
                leftovers_at = Instant::now() + LEFTOVERS_LOOK;
                self.drop_leftovers();
            }
            let next = Instant::now() + self.round();
            while Instant::now() < next {
                tokio::time::sleep(NEWCOMER_LOOK.min(self.round())).await;
                if self.somebody_is_new() {
                    break;
                }
            }
        }
    }

    pub(super) fn sample_clock(&self) {
        let (now, reached) = (Instant::now(), self.clock.latest());
        let mut known = self.known();
        known.compared.take(now, reached);
        known.collected.take(now, reached);
    }

    pub(super) async fn gather_promises(&self) {
        let mut answers: Answers<Result<PeerReconciled, Failure>> = Answers::default();
        let mut asked = BTreeMap::new();
        for &node in self.nodes.iter().filter(|node| **node != self.me) {
            if self.members.state(node) != State::Down {
                let generation = self.members.generation(node);
                asked.insert(node, generation);
                let request = PeerReconcile {
                    epoch: Some(self.ring.epoch() as i64),
                    asks: Some(PeerAsks::PROMISE),
                    memory: Some(self.memory_of(node)),
                    claim: Some(self.own_claim(node)),
                    whole: Some(self.known().files.whole),
                    generation,
                    ..PeerReconcile::default()
                };
                self.peers.reconcile(request, answers.expect(node));
            }
        }
        while let Some((node, answer)) = answers.next().await {
            let Ok(answer) = answer else { continue };
            let refused = answer.refused.as_deref().unwrap_or_default();
            let Some(promise) = answer.promise.filter(|_| refused.is_empty()) else { continue };
            let tables = answer.tables.unwrap_or_default().into_iter();
            let tables = tables.filter_map(|table| u16::try_from(table).ok().map(TableId)).collect();
            self.note_claim(node, answer.claim.as_ref(), answer.whole);
            self.note_remembered(node, answer.memory.as_ref());
            let waits = answer.waits.unwrap_or_default();
            let wall_us = answer.wall.unwrap_or(0);
            let whole = answer.whole == Some(true);
            let (at, promise, generation) = (Instant::now(), Stamp(promise), asked[&node]);
            let heard = Heard { at, generation, promise, waits, wall_us, tables, whole };
            self.known().heard.insert(node, heard);
        }
    }

    pub(super) fn answer_promise(&self, caller: NodeId, request: &PeerReconcile) -> PeerReconciled {
        self.note_claim(caller, request.claim.as_ref(), request.whole);
        self.note_remembered(caller, request.memory.as_ref());
        let (promise, waits) = self.promise();
        let tables = self.store.tables().into_iter().map(|table| i32::from(table.0));
        PeerReconciled {
            promise: Some(promise.0),
            waits: Some(waits),
            wall: Some(self.clock.wall_us()),
            memory: Some(self.memory_of(caller)),
            claim: Some(self.own_claim(caller)),
            whole: Some(self.known().files.whole),
            tables: Some(tables.collect()),
            ..follow::nothing()
        }
    }

    /// This server sends no writes below this stamp any more; and what holds that back.
    fn promise(&self) -> (Stamp, String) {
        let mut least = self.outstanding.oldest();
        let mut waits = String::new();
        for (node, totals) in self.store.hint_totals() {
            if totals.oldest_stamp < least {
                least = totals.oldest_stamp;
                waits = format!("server {} keeps hints for server {node}", self.me);
            }
        }
        (least, waits)
    }

    /// The least of all promises, this server's own included.
    pub(super) fn promised(&self) -> Promised {
        let others = self.nodes.iter().filter(|node| **node != self.me);
        let others: Vec<_> = others.map(|node| (*node, self.members.generation(*node))).collect();
        let age_max = self.round() * PROMISE_ROUNDS + self.config.read_timeout();
        let mut least = state::promised(&others, &self.known().heard, Instant::now(), age_max);
        let (own, waits) = self.promise();
        if Stamp(own.0.saturating_sub(1)) < least.upto {
            least.upto = Stamp(own.0.saturating_sub(1));
            least.waits = waits;
        }
        least
    }

    /// Requests of clients worked on here so far, as coordinator or as replica.
    fn requests(&self) -> u64 {
        let stats = &self.stats;
        let served = stats.writes_ok.get()
            + stats.reads_ok.get()
            + stats.slices_read.get()
            + stats.mutations_applied.get();
        served.saturating_sub(stats.reconcile_cells_taken.get())
    }
}
