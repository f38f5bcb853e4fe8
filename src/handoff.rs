//! Hints: mutations kept for absent replicas, and their delivery when those return.
//!
//!   replica absent, failed or too late ──► keep ──► hint log (durable, in the same commits as everything else)
//!   replica turns Up, or is Up and hints wait ──► deliver: batches, oldest first ──► acknowledged ──► forgotten
//!
//! A hint is forgotten only once its replica has the mutation durably (or something newer), or says that it is older
//! than deletions that were collected. A mutation may be delivered twice, which `merge` makes harmless. Hints for one
//! server are bounded by how long it has been away and by bytes; past either, no more are kept, the server says so
//! once, and writes go on. While this server's clients send many requests, delivering rests between two batches: it
//! takes the same processors.
//!
//! Not here: the hint log itself (`store`), who is up (`membership`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::{AnswerTo, ApplyAnswer, Failure, NodeId, ask_one};
use crate::clock::Clock;
use crate::config::Config;
use crate::membership::{Members, State};
use crate::mutation::Mutation;
use crate::peer::Peers;
use crate::stats::Stats;
use crate::store::{Hint, Store};

/// Requests in a second from which on clients miss what a delivery takes of the processors.
const BUSY_REQUESTS_A_SECOND: f64 = 200.0;

/// No share is smaller, or hints would pile up for ever.
const SHARE_MIN: f64 = 0.01;

/// The longest rest: what took long took it waiting for the other server.
const REST_MAX: Duration = Duration::from_millis(200);

/// Keeps and delivers hints.
pub struct Handoff {
    me: NodeId,
    nodes: Vec<NodeId>,
    config: Arc<Config>,
    store: Store,
    members: Arc<Members>,
    peers: Arc<dyn Peers>,
    clock: Arc<Clock>,
    stats: Arc<Stats>,
    /// Servers to which a delivery is under way: at most one each.
    delivering: Mutex<BTreeSet<NodeId>>,
    /// How many hints at once a server took in time lately, if that is fewer than a message may have.
    taken_in_time: Mutex<BTreeMap<NodeId, usize>>,
    /// Servers for which it was said that no more hints are kept.
    said_full: Mutex<BTreeSet<NodeId>>,
    /// Why the last delivery to a server stopped, which was said: one that stops is tried again each second.
    said_stopped: Mutex<BTreeMap<NodeId, String>>,
}

/// Why hints were not all delivered. What was not acknowledged is kept.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The server cannot be reached.
    #[error("server {0} is not up; its hints are kept")]
    NotUp(NodeId),
    /// The server, or the way to it, failed.
    #[error("server {target} did not take the hints ({failure}); what it did not acknowledge is kept")]
    NotTaken {
        /// The server.
        target: NodeId,
        /// What it said.
        failure: Failure,
    },
    /// This server's own hint log failed.
    #[error("this server's hint log: {0}")]
    HintLog(String),
    /// There was not enough time.
    #[error(
        "hints for server {target} are left after {waited:?}, {left} of them; they are kept, and handing them \
         over goes on"
    )]
    NotDone {
        /// The server.
        target: NodeId,
        /// How many hints.
        left: u64,
        /// How long it was given.
        waited: Duration,
    },
}

impl Handoff {
    /// For server `me` among `nodes`.
    #[allow(clippy::too_many_arguments)] // the parts it stands between, named once in `node`
    pub fn new(
        me: NodeId,
        nodes: Vec<NodeId>,
        config: Arc<Config>,
        store: Store,
        members: Arc<Members>,
        peers: Arc<dyn Peers>,
        clock: Arc<Clock>,
        stats: Arc<Stats>,
    ) -> Handoff {
        Handoff {
            me,
            nodes,
            config,
            store,
            members,
            peers,
            clock,
            stats,
            delivering: Mutex::default(),
            taken_in_time: Mutex::default(),
            said_full: Mutex::default(),
            said_stopped: Mutex::default(),
        }
    }

    /// Keeps a mutation for the server that `to` names; answered when the hint is durable, or why none is kept.
    pub fn keep(&self, mutation: &Arc<Mutation>, to: AnswerTo<Result<(), Failure>>) {
        let target = to.node();
        if let Err(why) = self.keeps_hints_for(target) {
            self.stats.hints_dropped.count();
            self.say_full(target, &why);
            return to.send(Err(Failure::Refused(why.into())));
        }
        self.store.hint(target, mutation.clone(), self.clock.wall_s(), to);
    }

    /// Whether a hint for `target` would be kept now; if not, why.
    pub fn keeps_hints_for(&self, target: NodeId) -> Result<(), String> {
        if !self.config.handoff {
            return Err("hinted handoff is switched off".to_owned());
        }
        if target == self.me {
            return Err("a server keeps no hints for itself".to_owned());
        }
        let held = self.store.hint_total(target);
        if held.bytes >= self.config.hint_bytes_per_node_max as u64 {
            let max = self.config.hint_bytes_per_node_max;
            return Err(format!(
                "{} bytes of hints for server {target} are held, the most allowed is {max}",
                held.bytes
            ));
        }
        let window_s = self.config.hint_window_s;
        // Counted from when this server last saw it, or started; the bound on bytes holds across restarts.
        let away_s = self.members.absent_for(target).map_or(0, |absent| absent.as_secs());
        if away_s > window_s {
            return Err(format!(
                "server {target} has been away for {away_s} s, hints are kept for {window_s} s"
            ));
        }
        Ok(())
    }

    /// Delivers all hints for `target` now. Returns how many were acknowledged; 0 at once if a delivery is under way.
    async fn deliver(&self, target: NodeId) -> Result<u64, HandoffError> {
        let Some(_turn) = Turn::take(&self.delivering, target) else { return Ok(0) };
        let mut delivered = 0;
        loop {
            if self.members.state(target) != State::Up {
                return Err(HandoffError::NotUp(target));
            }
            let (began, requests) = (Instant::now(), self.requests());
            let most = self.batch_size(target);
            let batch = self
                .store
                .hints(target, most, self.config.handoff_batch_bytes)
                .map_err(|error| HandoffError::HintLog(error.to_string()))?;
            if batch.is_empty() {
                self.said_full.lock().expect("no panic while it is held").remove(&target);
                return Ok(delivered);
            }
            let sent = batch.len();
            match self.deliver_batch(target, batch).await {
                Ok(taken) => {
                    delivered += taken;
                    self.set_batch_size(target, most.saturating_mul(2));
                }
                Err(error @ HandoffError::NotTaken { failure: Failure::TimedOut, .. }) => {
                    self.set_batch_size(target, sent / 2);
                    if sent == 1 {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            let coming = (self.requests() - requests) as f64;
            if coming > BUSY_REQUESTS_A_SECOND * began.elapsed().as_secs_f64()
                && self.store.hint_total(target).count > 0
            {
                tokio::time::sleep(rest_after(began.elapsed(), self.config.handoff_share_busy)).await;
            }
        }
    }

    /// The same for somebody who waits no longer than `handoff_call_ms`; the delivery goes on.
    pub async fn deliver_in_time(self: &Arc<Self>, target: NodeId) -> Result<u64, HandoffError> {
        let waited = Duration::from_millis(self.config.handoff_call_ms);
        let delivery = tokio::spawn(self.clone().deliver_and_say(target));
        match tokio::time::timeout(waited, delivery).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(HandoffError::NotDone { target, left: self.store.hint_total(target).count, waited }),
        }
    }

    /// How many requests of clients this server has carried out.
    fn requests(&self) -> u64 {
        self.stats.writes_ok.get() + self.stats.reads_ok.get()
    }

    /// How many hints to send at once: half as many as timed out last. What a slow server does not take in time it is
    /// sent again and has to do again, so if each delivery began with as many as the one before, copies could come
    /// faster than it takes them.
    fn batch_size(&self, target: NodeId) -> usize {
        let known = self.taken_in_time.lock().expect("no panic while it is held");
        known.get(&target).copied().unwrap_or(self.config.handoff_batch_mutations)
    }

    fn set_batch_size(&self, target: NodeId, most: usize) {
        let mut known = self.taken_in_time.lock().expect("no panic while it is held");
        if most < self.config.handoff_batch_mutations {
            known.insert(target, most.max(1));
        } else {
            known.remove(&target);
        }
    }

    /// Sends one batch and forgets what was acknowledged, and what is too old to be taken ever; fails if anything else
    /// was not.
    async fn deliver_batch(&self, target: NodeId, batch: Vec<Hint>) -> Result<u64, HandoffError> {
        let mutations = batch.iter().map(|hint| hint.mutation.clone()).collect();
        let answers = ask_one(target, |to| self.peers.apply_batch(mutations, to))
            .await
            .map_err(|failure| HandoffError::NotTaken { target, failure })?;
        let mut done = Vec::with_capacity(batch.len());
        let (mut too_old, mut failed) = (0, None);
        for (hint, answer) in batch.iter().zip(answers) {
            match answer {
                ApplyAnswer::Applied | ApplyAnswer::Behind(_) => done.push(hint.sequence),
                ApplyAnswer::Failed(Failure::TooOld { .. }) => {
                    done.push(hint.sequence);
                    too_old += 1;
                }
                ApplyAnswer::Failed(failure) => failed = Some(failure),
            }
        }
        let delivered = done.len() as u64 - too_old;
        if !done.is_empty() {
            ask_one(target, |to| self.store.forget_hints(target, done, to))
                .await
                .map_err(|failure| HandoffError::HintLog(failure.to_string()))?;
            self.stats.hints_delivered.add(delivered);
            self.stats.hints_dropped.add(too_old);
        }
        match failed {
            Some(failure) => Err(HandoffError::NotTaken { target, failure }),
            None => Ok(delivered),
        }
    }

    /// Delivers to every server that returns, and again and again to servers that are up and have hints waiting.
    pub async fn run(self: Arc<Self>, mut returns: mpsc::Receiver<NodeId>) {
        let mut retry = tokio::time::interval(Duration::from_millis(self.config.handoff_retry_ms));
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due: Vec<NodeId> = tokio::select! {
                biased; // a return is more urgent than a retry
                returned = returns.recv() => match returned {
                    Some(node) => {
                        self.said_full.lock().expect("no panic while it is held").remove(&node);
                        vec![node]
                    }
                    None => return,
                },
                _ = retry.tick() => self.nodes.clone(),
            };
            if !self.config.handoff {
                continue;
            }
            for target in due {
                if self.members.state(target) == State::Up && self.store.hint_total(target).count > 0 {
                    tokio::spawn(self.clone().deliver_and_say(target));
                }
            }
        }
    }

    async fn deliver_and_say(self: Arc<Self>, target: NodeId) -> Result<u64, HandoffError> {
        let (me, outcome) = (self.me, self.deliver(target).await);
        let mut said = self.said_stopped.lock().expect("no panic while it is held");
        match &outcome {
            Ok(delivered) => {
                said.remove(&target);
                if *delivered > 0 {
                    log::info!(
                        "server {me}: handoff to server {target} is done: {delivered} hints delivered"
                    );
                }
            }
            Err(error) => {
                let error = error.to_string();
                if said.get(&target) != Some(&error) {
                    log::warn!("server {me}: handoff to server {target} stopped: {error}");
                    said.insert(target, error);
                }
            }
        }
        outcome
    }

    fn say_full(&self, target: NodeId, why: &str) {
        let first = self.said_full.lock().expect("no panic while it is held").insert(target);
        if first && self.config.handoff {
            log::warn!("server {}: no more hints are kept for server {target}: {why}", self.me);
        }
    }
}

/// How long clients have the processors to themselves after a batch that took so long.
fn rest_after(took: Duration, share: f64) -> Duration {
    took.mul_f64(1.0 / share.max(SHARE_MIN) - 1.0).min(REST_MAX)
}

/// The right to deliver to one server, given back on drop.
struct Turn<'a> {
    delivering: &'a Mutex<BTreeSet<NodeId>>,
    target: NodeId,
}

impl<'a> Turn<'a> {
    fn take(delivering: &'a Mutex<BTreeSet<NodeId>>, target: NodeId) -> Option<Turn<'a>> {
        let free = delivering.lock().expect("no panic while it is held").insert(target);
        // Made only if it is free: dropping one gives back the turn of whoever has it.
        free.then(|| Turn { delivering, target })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.delivering.lock().expect("no panic while it is held").remove(&self.target);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::answer::ReadAnswer;
    use crate::cell::{Cell, Content, Stamp};
    use crate::key::KV_TABLE;
    use crate::membership::Event;
    use crate::slice::Slice;
    use crate::store::{Disk, Drive};
    use crate::thrift::chord::{PeerReconcile, PeerReconciled};

    const OTHER: NodeId = NodeId(1);
    const ABOVE: Stamp = Stamp(10);

    type Unanswered = AnswerTo<Result<Vec<ApplyAnswer>, Failure>>;

    /// A server that takes no stamps up to [`ABOVE`], and nothing while its disk is full; or is silent.
    #[derive(Default)]
    struct Played {
        took: Mutex<Vec<Stamp>>,
        disk_full: bool,
        silent: bool,
        unanswered: Mutex<Vec<Unanswered>>,
    }

    impl Peers for Played {
        fn apply_batch(&self, mutations: Vec<Bytes>, to: AnswerTo<Result<Vec<ApplyAnswer>, Failure>>) {
            if self.silent {
                return self.unanswered.lock().unwrap().push(to);
            }
            let apply = |mutation: Bytes| {
                let stamp = Mutation::decode(&mutation).unwrap().stamp();
                if stamp <= ABOVE {
                    return ApplyAnswer::Failed(Failure::TooOld { above: ABOVE });
                }
                if self.disk_full {
                    return ApplyAnswer::Failed(Failure::Refused("disk full".into()));
                }
                self.took.lock().unwrap().push(stamp);
                ApplyAnswer::Applied
            };
            to.send(Ok(mutations.into_iter().map(apply).collect()));
        }

        fn apply(&self, _: &Bytes, _: AnswerTo<ApplyAnswer>) {
            unreachable!("hints go in batches")
        }
        fn read(&self, _: &Slice, _: AnswerTo<ReadAnswer>) {
            unreachable!("hints are not read")
        }
        fn reconcile(&self, _: PeerReconcile, _: AnswerTo<Result<PeerReconciled, Failure>>) {
            unreachable!("hints are not reconciled")
        }
        fn latency_us(&self, _: NodeId) -> u64 {
            0
        }
        fn greeted_by(&self, _: NodeId) {}
        fn gauges(&self) -> Vec<(String, i64)> {
            Vec::new()
        }
    }

    /// Server 0 with a hint of each stamp for the other, and what delivering them two at once came to.
    async fn delivered(stamps: &[i64], played: Arc<Played>) -> (Result<u64, String>, u64) {
        let dir = tempfile::tempdir().unwrap();
        // Of those who are silent it makes no difference how long they are waited for.
        let handoff_call_ms = if played.silent { 50 } else { 3_600_000 };
        let config = Arc::new(Config { handoff_batch_mutations: 2, handoff_call_ms, ..Config::default() });
        let stats = Arc::new(Stats::default());
        let (store, _) =
            Store::open(dir.path(), &config, Disk::real(), Drive::Thread, stats.clone(), |_| {}).unwrap();
        let members = Arc::new(Members::new(NodeId(0), 2, 1, &config));
        members.note(OTHER, Event::Connected { generation: 1 });
        let clock = Arc::new(Clock::machine(0));
        let handoff = Arc::new(Handoff::new(
            NodeId(0),
            vec![OTHER],
            config,
            store.clone(),
            members,
            played,
            clock,
            stats,
        ));
        for stamp in stamps {
            let cell = Cell { stamp: Stamp(*stamp), content: Content::Value(Bytes::from_static(b"v")) };
            let mutation = Arc::new(Mutation::single(KV_TABLE, Bytes::from_static(b"k"), cell));
            ask_one(OTHER, |to| handoff.keep(&mutation, to)).await.unwrap();
        }
        let outcome = handoff.deliver_in_time(OTHER).await.map_err(|error| error.to_string());
        (outcome, store.hint_total(OTHER).count)
    }

    #[tokio::test]
    async fn hints_that_will_never_be_taken_keep_no_others_waiting() {
        let played = Arc::new(Played::default());
        let (outcome, left) = delivered(&[1, 2, 3, 11, 12, 4, 13], played.clone()).await;
        assert_eq!(*played.took.lock().unwrap(), [11, 12, 13].map(Stamp));
        assert_eq!((outcome, left), (Ok(3), 0));
    }

    #[tokio::test]
    async fn a_server_that_cannot_store_is_not_sent_all_there_is() {
        let played = Arc::new(Played { disk_full: true, ..Played::default() });
        let (outcome, left) = delivered(&[1, 11, 12, 13], played).await;
        assert_eq!(left, 3);
        let said = outcome.unwrap_err();
        assert!(said.contains("disk full"), "{said}");
    }

    #[tokio::test]
    async fn who_waits_for_a_delivery_does_not_wait_for_ever() {
        let played = Arc::new(Played { silent: true, ..Played::default() });
        let (outcome, left) = delivered(&[11, 12, 13], played).await;
        assert_eq!(left, 3);
        let said = outcome.unwrap_err();
        assert!(said.starts_with("hints for server 1 are left after 50ms, 3 of them"), "{said}");
    }

    #[test]
    fn a_delivery_takes_its_share_of_the_time_and_never_rests_for_long() {
        let took = Duration::from_millis(10);
        assert_eq!(rest_after(took, 0.25), took * 3);
        assert_eq!(rest_after(took, 1.0), Duration::ZERO);
        assert_eq!(rest_after(took, 0.0), REST_MAX);
        assert_eq!(rest_after(took * 100, 0.25), REST_MAX);
    }

    #[test]
    fn one_delivery_at_a_time_to_each_server() {
        let delivering = Mutex::default();
        let turn = Turn::take(&delivering, NodeId(1));
        assert!(turn.is_some());
        for _ in 0..2 {
            assert!(Turn::take(&delivering, NodeId(1)).is_none(), "asking twice takes it from nobody");
        }
        assert!(Turn::take(&delivering, NodeId(2)).is_some());
        drop(turn);
        assert!(Turn::take(&delivering, NodeId(1)).is_some());
    }
}
