//! The way to the other servers: one connection to each, many calls under way on it, answered in any order.
//!
//!   apply, read (any thread) ──► calls (bounded, encoded) ──► link (one task) ──► net ──► the other server's service
//!                AnswerTo ◄────── reply ◄────────────────────────┘
//!
//! What must always be true: every call is answered exactly once and not later than its deadline (to a tick, see
//! `membership::liveness::Settings`); nothing is queued for a server that cannot be reached; queues are bounded, and
//! past the bound the answer is *overloaded* at once.
//!
//! Other servers are judged by what happens here, and `membership` keeps the judgement. Not here: what this server
//! answers when it is called (`service`), which servers to ask (`coordinator`).

mod calls;
mod frame;
#[doc(hidden)]
pub mod fuzzed;
mod greeting;
mod link;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::answer::{AnswerTo, ApplyAnswer, Failure, NodeId, ReadAnswer};
use crate::clock::Clock;
use crate::config::Config;
use crate::cut::Cut;
use crate::membership::Members;
use crate::nodes::Nodes;
use crate::slice::Slice;
use crate::stats::Stats;
use crate::thrift::chord::{PeerRead, PeerReconcile, PeerReconciled};
use crate::thrift::method::{Read, Reconcile};
use calls::Asked;
pub use greeting::{Identity, PEER_PROTOCOL_VERSION, check_hello, check_welcome};
use link::Link;
pub use reply::{REFUSED, apply_answers, number_of, read_answer};

/// Asking other servers. The seam that a simulator fills with its own.
pub trait Peers: Send + Sync + 'static {
    /// Asks server `to.node()` to apply a mutation, encoded by [`crate::mutation::Mutation::encode`].
    fn apply(&self, mutation: &Bytes, to: AnswerTo<ApplyAnswer>);

    /// Asks server `to.node()` to apply many at once; the answers come in the same order. Together they must fit one
    /// message (`message_bytes_max`), or they are refused.
    fn apply_batch(&self, mutations: Vec<Bytes>, to: AnswerTo<Result<Vec<ApplyAnswer>, Failure>>);

    /// Asks server `to.node()` for a slice.
    fn read(&self, slice: &Slice, to: AnswerTo<ReadAnswer>);

    /// Asks server `to.node()` something of reconciliation (`peerReconcile` of chord.thrift).
    fn reconcile(&self, request: PeerReconcile, to: AnswerTo<Result<PeerReconciled, Failure>>);

    /// How long server `node` lately took to answer a read, smoothed, in microseconds; 0: not known.
    fn latency_us(&self, node: NodeId) -> u64;

    /// `node` has greeted this server, so it is there: if there is no way to it, it is tried now.
    fn greeted_by(&self, node: NodeId);

    /// For each other server how many calls are waiting or under way, and how many bytes wait to be written.
    fn gauges(&self) -> Vec<(String, i64)>;
}

/// What the way to the other servers is built from.
pub struct Standpoint {
    /// This server, as it presents itself to others.
    pub identity: Arc<Identity>,
    /// To be told who can be reached.
    pub members: Arc<Members>,
    /// Hears of the others' clocks.
    pub clock: Arc<Clock>,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// Whom this server cannot hear.
    pub cut: Cut,
}

/// The links to all other servers.
pub struct Links {
    epoch: u64,
    /// By id; `None` for this server itself.
    links: Vec<Option<Arc<Link>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// How often a start looks whether the first attempts have ended.
const ATTEMPTS_LOOK: Duration = Duration::from_millis(1);

/// Bytes of a read frame beside the keys in it, at most.
const READ_OVERHEAD_BYTES: usize = 128;

/// Bytes of a reconcile frame beside the keys and lists in it, at most.
const RECONCILE_OVERHEAD_BYTES: usize = 512;

/// Bytes of one item of its lists beside the keys and cells in it, at most.
const RECONCILE_ITEM_BYTES: usize = 64;

impl Links {
    /// Starts to dial every other server on `nodes`. Must be called on the runtime whose threads are to do it.
    pub fn start(standpoint: Standpoint, nodes: &Nodes, config: &Config) -> Arc<Links> {
        let me = standpoint.identity.id;
        assert_eq!(me, standpoint.members.me());
        let link = |node: NodeId| {
            let address = nodes.address(node).expect("it is one of them").to_string();
            Link::new(&standpoint, node, address, config)
        };
        let links: Vec<Option<Arc<Link>>> =
            nodes.ids().map(|node| (node != me).then(|| Arc::new(link(node)))).collect();
        let tasks = links.iter().flatten().map(|link| tokio::spawn(link.clone().run())).collect();
        Arc::new(Links { epoch: standpoint.identity.epoch, links, tasks: Mutex::new(tasks) })
    }

    /// Waits until each server was reached, or found to be unreachable, once; no longer than `within`.
    pub async fn first_attempts(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let attempted = |link: &Arc<Link>| link.attempted.load(Ordering::Acquire);
        while !self.links.iter().flatten().all(attempted) && Instant::now() < deadline {
            tokio::time::sleep(ATTEMPTS_LOOK).await;
        }
    }

    /// Hangs up. Calls under way are answered *shutting down*, later ones *unreachable*.
    pub fn close(&self) {
        for task in self.tasks.lock().expect("no panic while it is held").drain(..) {
            task.abort();
        }
        for link in self.links.iter().flatten() {
            link.shut();
        }
    }

    /// `None`: there is no such server, or it is this one.
    fn link(&self, node: NodeId) -> Option<&Link> {
        self.links.get(node.0 as usize)?.as_deref()
    }

    fn ask(&self, node: NodeId, asked: Asked, bytes: usize, encode: impl FnOnce(i32, &mut Vec<u8>)) {
        match self.link(node) {
            Some(link) => link.ask(asked, bytes, encode),
            None => asked.fail(Failure::Unreachable),
        }
    }
}

impl Peers for Links {
    fn greeted_by(&self, node: NodeId) {
        if let Some(link) = self.link(node) {
            link.greeted.notify_one();
        }
    }

    fn gauges(&self) -> Vec<(String, i64)> {
        let mut gauges = Vec::new();
        for link in self.links.iter().flatten() {
            let calls = link.calls();
            gauges.push((format!("peer_{}_calls", link.node), calls.len() as i64));
            gauges.push((format!("peer_{}_queue_bytes", link.node), calls.unwritten() as i64));
        }
        gauges
    }

    fn latency_us(&self, node: NodeId) -> u64 {
        self.link(node).map_or(0, |link| link.latency_us.load(Ordering::Relaxed))
    }

    fn apply(&self, mutation: &Bytes, to: AnswerTo<ApplyAnswer>) {
        match self.link(to.node()) {
            Some(link) => link.ask_to_apply(to, self.epoch, mutation),
            None => to.send(ApplyAnswer::Failed(Failure::Unreachable)),
        }
    }

    fn apply_batch(&self, mutations: Vec<Bytes>, to: AnswerTo<Result<Vec<ApplyAnswer>, Failure>>) {
        if mutations.is_empty() {
            return to.send(Ok(Vec::new()));
        }
        let (node, asked) = (to.node(), Asked::ApplyBatch { mutations: mutations.len(), to });
        self.ask(node, asked, frame::apply_bytes(&mutations), |sequence, out| {
            frame::write_apply(sequence, self.epoch, &mutations, out);
        });
    }

    fn read(&self, slice: &Slice, to: AnswerTo<ReadAnswer>) {
        let last_bytes = slice.last.as_ref().map_or(0, Bytes::len);
        let bytes = READ_OVERHEAD_BYTES + slice.partition.len() + slice.first.len() + last_bytes;
        let (node, asked) = (to.node(), Asked::Read { at: Instant::now(), to });
        self.ask(node, asked, bytes, |sequence, out| {
            frame::write_call::<Read>(sequence, &read_request(self.epoch, slice), out);
        });
    }

    fn reconcile(&self, request: PeerReconcile, to: AnswerTo<Result<PeerReconciled, Failure>>) {
        let node = to.node();
        self.ask(node, Asked::Reconcile(to), reconcile_bytes(&request), |sequence, out| {
            frame::write_call::<Reconcile>(sequence, &Box::new(request), out);
        });
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.close();
    }
}

/// Bytes of a reconcile frame, at most.
fn reconcile_bytes(request: &PeerReconcile) -> usize {
    let of = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let spans = request.spans.iter().flatten().map(|span| RECONCILE_ITEM_BYTES + of(&span.before));
    let keys = request.keys.iter().flatten().map(|key| RECONCILE_ITEM_BYTES + key.len());
    let cells = request.cells.iter().flatten();
    let cells = cells.map(|held| RECONCILE_ITEM_BYTES + of(&held.engine_key) + of(&held.cell));
    let why = request.why.as_ref().map_or(0, String::len);
    let alone = RECONCILE_OVERHEAD_BYTES + of(&request.start) + of(&request.before) + why;
    alone + spans.chain(keys).chain(cells).sum::<usize>()
}

/// A slice as it is asked for on the wire.
pub fn read_request(epoch: u64, slice: &Slice) -> PeerRead {
    PeerRead {
        epoch: Some(epoch as i64),
        table: Some(i32::from(slice.table.0)),
        partition: Some(slice.partition.to_vec()),
        first_column: Some(slice.first.to_vec()),
        last_column: Some(slice.last.as_ref().map_or_else(Vec::new, |last| last.to_vec())),
        bounded: Some(slice.last.is_some()),
        cells: Some(i32::try_from(slice.cells_max).unwrap_or(i32::MAX)),
    }
}
