//! Carries a client's request to the replicas of its key and says what came of it.
//!
//!   write:  ring ─► who is up? ─► stamp ─► send to all up, hint for all absent ─► count until it is met ─► answer
//!                                                                    └─► late ones are awaited; failed ones get a hint
//!   read:   ring ─► who is up? ─► ask as many as needed ─► merge ─► write back to those behind ─► answer
//!
//! What the answers promise:
//!
//!   - met: as many replicas as the level needs have the mutation durably, or something newer.
//!   - [`Refused::Unavailable`]: fewer replicas were up than the level needs; nothing was written, no hint either.
//!   - [`Refused::Overloaded`]: nothing was written.
//!   - [`Refused::TooOld`]: nothing was written, and would not be if it was sent again.
//!   - [`Refused::WriteTimeout`]: outcome unknown. The write may be on some replicas; it is not undone, and hints,
//!     reads and reconciliation may yet bring it to all of them.
//!
//! Deciding is apart from doing: `write_op` and `read_op` count answers and know no socket; `write` and `read` send and
//! await. Here is what both need: who is up, room for a request, and what is said if it is refused.
//!
//! Not here: what a method of the wire means (`service`), how a replica is reached (`replica`).

mod admission;
pub mod level;
mod read;
mod read_op;
#[cfg(test)]
mod script;
mod trace;
pub mod turn;
mod write;
mod write_op;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::answer::{Failure, NodeId};
use crate::cell::Stamp;
use crate::config::Config;
use crate::handoff::Handoff;
use crate::membership::Members;
use crate::reconcile::Outstanding;
use crate::replica::Replicas;
use crate::ring::Ring;
use crate::stats::{Distribution, Stats};

use admission::Admission;
pub use admission::Admitted;
pub use level::Level;
pub use read::Found;
pub use trace::Trace;
pub use write::{Stamping, Written};

/// Coordinates the requests of this server's clients.
pub struct Coordinator {
    me: NodeId,
    config: Arc<Config>,
    ring: Arc<Ring>,
    members: Arc<Members>,
    replicas: Replicas,
    handoff: Arc<Handoff>,
    outstanding: Arc<Outstanding>,
    stats: Arc<Stats>,
    admission: Arc<Admission>,
    /// Microseconds after which a read asks one replica more; renewed by [`Coordinator::renew_speculation`].
    speculate_after_us: AtomicU64,
    /// Times of reads that asked other servers, since the last renewal.
    recent_reads: Distribution,
    random: Mutex<fastrand::Rng>,
    /// Where what outlives a request is done: the last answer may be given on a thread of the store.
    runtime: Handle,
}

/// Why a request did not meet its level, and what happened to the data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Fewer replicas were up than the level needs. A promise: nothing was written anywhere, no hint either.
    #[error("Not enough replicas alive: {level} needs {needed}, {alive} up ({who}); {nothing}")]
    Unavailable {
        /// Of the request.
        level: Level,
        /// Replicas the level needs.
        needed: usize,
        /// Replicas that were up.
        alive: usize,
        /// Which were not.
        who: String,
        /// What did not happen: "nothing was written", "… read" or "… done".
        nothing: &'static str,
    },
    /// A write did not meet its level in time. It is on `acknowledged` replicas and perhaps on more; it is not undone
    /// and may yet surface.
    #[error(
        "Timeout: {level} needs {needed}, {acknowledged} acknowledged{why}; the outcome is unknown: \
         the write is not undone and may yet surface"
    )]
    WriteTimeout {
        /// Of the request.
        level: Level,
        /// Acknowledgements the level needs.
        needed: usize,
        /// Acknowledgements that came.
        acknowledged: usize,
        /// What the others said.
        why: String,
    },
    /// A read did not meet its level in time. Nothing was changed.
    #[error("Timeout: {level} needs {needed}, {answered} answered{why}; try again")]
    ReadTimeout {
        /// Of the request.
        level: Level,
        /// Answers the level needs.
        needed: usize,
        /// Answers that came.
        answered: usize,
        /// What the others said.
        why: String,
    },
    /// Too much is under way, or every replica refused. Nothing was written.
    #[error("Overloaded: {why}; {nothing}, try again later")]
    Overloaded {
        /// What is too much, or what the replicas said.
        why: String,
        /// What did not happen: "nothing was written", "… read" or "… done".
        nothing: &'static str,
    },
    /// A write's stamp, which the client chose, is older than deletions that were collected or are about to be.
    #[error("{}, or none; nothing was written", Failure::TooOld { above: *above })]
    TooOld {
        /// No stamp up to this one is taken.
        above: Stamp,
    },
}

/// A server whose connection broke is dialled again at once; its requests wait this long for the outcome.
const REDIAL_PAUSE: Duration = Duration::from_millis(5);

impl Coordinator {
    /// For server `me`; `seed` decides what is left to chance. Must be called on the runtime that is to do the work.
    #[allow(clippy::too_many_arguments)] // the parts it stands on, named once in `node`
    pub fn new(
        me: NodeId,
        config: Arc<Config>,
        ring: Arc<Ring>,
        members: Arc<Members>,
        replicas: Replicas,
        handoff: Arc<Handoff>,
        outstanding: Arc<Outstanding>,
        stats: Arc<Stats>,
        seed: u64,
    ) -> Coordinator {
        let admission = Admission::new(config.requests_in_flight_max, config.requests_bytes_max);
        let speculate_after_us = AtomicU64::new(config.speculative_retry_min_ms * 1000);
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Coordinator {
            me,
            config,
            ring,
            members,
            replicas,
            handoff,
            outstanding,
            stats,
            admission,
            speculate_after_us,
            recent_reads: Distribution::default(),
            random,
            runtime: Handle::current(),
        }
    }

    /// A share of the bounds for operations that wait until they can be begun; given back when it is dropped.
    pub fn admit_waiting(&self, bytes: usize) -> Result<Admitted, Refused> {
        self.admit(bytes, "nothing was done")
    }

    /// A share of the bound on memory for an answer that is not a read's; to be kept until it has been sent. A short
    /// one needs none.
    pub fn admit_answer(&self, bytes: usize) -> Result<Option<Admitted>, Refused> {
        self.admission.admit_answer(bytes).ok_or_else(|| self.overloaded("nothing was done"))
    }

    fn admit(&self, bytes: usize, nothing: &'static str) -> Result<Admitted, Refused> {
        self.admission.admit(bytes).ok_or_else(|| self.overloaded(nothing))
    }

    fn overloaded(&self, nothing: &'static str) -> Refused {
        let (requests, bytes) = self.admission.under_way();
        let why = format!("{requests} requests of {bytes} bytes are under way here");
        Refused::Overloaded { why, nothing }
    }

    /// The replicas of a key that are up (or only Suspect), and those that are Down.
    fn split_by_liveness(&self, partition: &[u8]) -> (Vec<NodeId>, Vec<NodeId>) {
        self.ring.replicas(partition).iter().partition(|node| self.members.is_alive(**node))
    }

    fn check_available(
        &self,
        level: Level,
        alive: &[NodeId],
        absent: &[NodeId],
        nothing: &'static str,
    ) -> Result<(), Refused> {
        let needed = level.needed(alive.len() + absent.len());
        let hint_suffices =
            level == Level::Any && absent.iter().any(|node| self.handoff.keeps_hints_for(*node).is_ok());
        if alive.len() >= needed || hint_suffices {
            return Ok(());
        }
        let names: Vec<String> = absent.iter().map(|node| format!("server {node}")).collect();
        let who = if names.is_empty() {
            format!("the key has only {} replicas", alive.len())
        } else {
            format!("{} down", names.join(", "))
        };
        Err(Refused::Unavailable { level, needed, alive: alive.len(), who, nothing })
    }

    /// Waits until nothing is under way, hints for late replicas included.
    pub async fn drained(&self) {
        self.admission.drained().await;
    }

    /// What is under way now, for `stats`.
    pub fn gauges(&self) -> Vec<(&'static str, i64)> {
        let (requests, bytes) = self.admission.under_way();
        vec![
            ("requests_under_way", requests as i64),
            ("requests_under_way_bytes", bytes as i64),
            ("speculate_after_us", self.speculate_after_us.load(Ordering::Relaxed) as i64),
        ]
    }
}

fn describe_failures<'a>(failures: impl Iterator<Item = (NodeId, &'a Failure)>) -> String {
    let texts: Vec<String> = failures.map(|(node, failure)| format!("server {node}: {failure}")).collect();
    if texts.is_empty() { String::new() } else { format!(" ({})", texts.join("; ")) }
}
