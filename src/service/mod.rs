//! One method per call of the wire: check what came, hand it on, translate what comes back.
//!
//! Words of the wire (`constLevel`, `serverPut` …) end here; words of the design begin. Every check of a request's
//! content is here, so that what lies below may rely on it: keys of 1 to 65,535 bytes, values within their bound,
//! known levels, stamps that are not far in the future.
//!
//!   classic       KVStore: integer keys and text
//!   application   Tetrachord: binary keys and values
//!   inspect       what this server itself holds
//!   peer          requests of other servers
//!
//! Not here: bytes (`thrift`), how many replicas must answer (`coordinator`).

mod application;
mod classic;
mod inspect;
mod peer;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;

use crate::answer::NodeId;
use crate::cell::Stamp;
use crate::clock::Clock;
use crate::config::Config;
use crate::coordinator::{Admitted, Coordinator, Level, Refused};
use crate::cut::Cut;
use crate::handoff::Handoff;
use crate::key::{KV_TABLE, PARTITION_KEY_BYTES_MAX};
use crate::membership::Members;
use crate::nodes::Nodes;
use crate::peer::{Identity, Peers};
use crate::reconcile::Reconciler;
use crate::replica::Replicas;
use crate::ring::Ring;
use crate::slice::Slice;
use crate::stats::Stats;
use crate::store::Store;
use crate::thrift::chord::{Overloaded, SystemException};
use crate::thrift::connection::{Answering, Held, Session};
use crate::thrift::method::{Call, Refusal, Reply};
use peer::caller;

/// Answers every method of every service of `chord.thrift`.
pub struct Service {
    /// This server, as it presents itself to others.
    pub identity: Arc<Identity>,
    /// Every setting.
    pub config: Arc<Config>,
    /// Every server's address.
    pub nodes: Nodes,
    /// Who holds what.
    pub ring: Arc<Ring>,
    /// Who is up.
    pub members: Arc<Members>,
    /// This server's own cells and hints.
    pub store: Store,
    /// This server and the others.
    pub replicas: Replicas,
    /// The way to the others: a server that greets is there, and what waits is counted.
    pub peers: Arc<dyn Peers>,
    /// Hints.
    pub handoff: Arc<Handoff>,
    /// Keeps the replicas equal.
    pub reconciler: Arc<Reconciler>,
    /// Carries out clients' requests.
    pub coordinator: Arc<Coordinator>,
    /// Stamps and wall time.
    pub clock: Arc<Clock>,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// From which other servers nothing is heard.
    pub cut: Cut,
    /// True once each other server was reached, or found to be unreachable.
    pub looked_round: watch::Receiver<bool>,
    /// Why other servers were refused, as far as it was logged.
    pub refusals_said: Mutex<BTreeSet<String>>,
}

impl crate::thrift::connection::Service for Service {
    fn call(self: &Arc<Self>, session: &Arc<Session>, call: Call) -> Answering {
        if let Some(caller) = caller(session, &call).filter(|caller| self.cut.holds(*caller)) {
            let cut = self.cut.clone();
            return self.call_after(async move { cut.whole(caller).await }, session, call);
        }
        if needs_others(&call) && !self.has_looked_round() {
            // It would refuse what the others can well do.
            let waits = match self.coordinator.admit_waiting(brought_bytes(&call)) {
                Ok(waits) => waits,
                Err(refused) => return Answering::Now(refuse_waiting(&call, &refused)),
            };
            let mut looked = self.looked_round.clone();
            let wait = async move {
                drop(looked.wait_for(|looked| *looked).await); // or the start has failed
                drop(waits); // it takes its share itself now
            };
            return self.call_after(wait, session, call);
        }
        match call {
            Call::Apply(request) => self.peer_apply(session, request),
            Call::Read(request) => Answering::Now(Reply::Read(Ok(self.peer_read(session, request)))),
            Call::Reconcile(request) => {
                let session = session.clone();
                later(self, async move |service| {
                    (Reply::Reconcile(Ok(Box::new(service.peer_reconcile(&session, *request).await))), None)
                })
            }
            Call::Ping(request) => Answering::Now(Reply::Ping(Ok(self.peer_ping(session, request)))),
            Call::Greet(request) => Answering::Now(Reply::Greet(Ok(self.peer_hello(session, &request)))),

            Call::Get(request) => self.get(request),
            Call::Put(request) => {
                later(self, async move |service| (Reply::Put(service.put(request).await), None))
            }
            Call::Remove(request) => {
                later(self, async move |service| (Reply::Remove(service.remove(request).await), None))
            }
            Call::Batch(request) => {
                later(self, async move |service| holding(Reply::Batch, service.batch(request).await))
            }
            Call::Describe(()) => Answering::Heavy(Reply::Describe(Ok(self.describe())), None),
            Call::GetStats(()) => Answering::Heavy(Reply::GetStats(Ok(self.stats())), None),

            Call::ClientGet(request) => {
                later(self, async move |service| holding(Reply::ClientGet, service.client_get(request).await))
            }
            Call::ClientPut(request) => {
                later(self, async move |service| (Reply::ClientPut(service.client_put(request).await), None))
            }
            Call::ServerGet(kv) => heavy(holding(Reply::ServerGet, self.server_get(&kv))),
            Call::ServerPut(kv) => {
                later(self, async move |service| (Reply::ServerPut(service.server_put(kv).await), None))
            }
            Call::ServerDelete(kv) => {
                later(self, async move |service| (Reply::ServerDelete(service.server_delete(kv).await), None))
            }
            Call::ResendHints(id) => {
                later(self, async move |service| (Reply::ResendHints(service.resend_hints(id).await), None))
            }
            Call::Hello(()) => Answering::Now(Reply::Hello(Ok(self.identity.id.to_string()))),
            Call::GetServerId(()) => Answering::Now(Reply::GetServerId(Ok(self.identity.id.0 as i32))),
            Call::GetInfo(()) => {
                later(self, async move |service| holding(Reply::GetInfo, service.get_info().await))
            }

            Call::InspectDigest(request) => {
                Answering::Heavy(Reply::InspectDigest(self.inspect_digest(&request)), None)
            }
            Call::InspectPage(request) => heavy(holding(Reply::InspectPage, self.inspect_page(&request))),
        }
    }
}

/// Answers when `work` is done.
fn later<F>(service: &Arc<Service>, work: impl FnOnce(Arc<Service>) -> F) -> Answering
where
    F: Future<Output = (Reply, Held)> + Send + 'static,
{
    Answering::Later(Box::pin(work(service.clone())))
}

/// Answers at once, after work that took long.
fn heavy((reply, held): (Reply, Held)) -> Answering {
    Answering::Heavy(reply, held)
}

/// The reply, and what it holds until it has been sent.
fn holding<T, E>(reply: impl FnOnce(Result<T, E>) -> Reply, outcome: Result<(T, Held), E>) -> (Reply, Held) {
    match outcome {
        Ok((answer, held)) => (reply(Ok(answer)), held),
        Err(refused) => (reply(Err(refused)), None),
    }
}

fn held(share: Option<Admitted>) -> Held {
    Some(Box::new(share?))
}

/// What a server that has not yet seen any other would refuse for want of replicas.
fn needs_others(call: &Call) -> bool {
    matches!(
        call,
        Call::Get(_)
            | Call::Put(_)
            | Call::Remove(_)
            | Call::Batch(_)
            | Call::ClientGet(_)
            | Call::ClientPut(_)
    )
}

/// Bytes that a call which needs the others brought.
fn brought_bytes(call: &Call) -> usize {
    match call {
        Call::Put(put) => put.key.as_ref().map_or(0, Vec::len) + put.value.as_ref().map_or(0, Vec::len),
        Call::Batch(batch) => application::batch_bytes(batch.operations.as_deref().unwrap_or_default()),
        Call::ClientPut(request) => {
            request.kv.as_ref().and_then(|kv| kv.value.as_ref()).map_or(0, String::len)
        }
        _ => 0, // a key
    }
}

/// The reply to a call that needs the others, and for which there is no room while it waits for them.
fn refuse_waiting(call: &Call, refused: &Refused) -> Reply {
    let overloaded = || Refusal::Overloaded(Overloaded { message: Some(refused.to_string()) });
    let exception = || SystemException { message: Some(refused.to_string()) };
    match call {
        Call::Get(_) => Reply::Get(Err(overloaded())),
        Call::Put(_) => Reply::Put(Err(overloaded())),
        Call::Remove(_) => Reply::Remove(Err(overloaded())),
        Call::Batch(_) => Reply::Batch(Err(overloaded())),
        Call::ClientGet(_) => Reply::ClientGet(Err(exception())),
        Call::ClientPut(_) => Reply::ClientPut(Err(exception())),
        other => unreachable!("{other:?} does not need the others"),
    }
}

/// A request that is wrong, and why. Nothing was written.
struct Wrong(String);

impl Service {
    /// Each other server was reached, or found to be unreachable, since this one started; or the start has failed.
    fn has_looked_round(&self) -> bool {
        *self.looked_round.borrow() || self.looked_round.has_changed().is_err()
    }

    /// Carries out a call once `wait` is over.
    fn call_after(
        self: &Arc<Self>,
        wait: impl Future<Output = ()> + Send + 'static,
        session: &Arc<Session>,
        call: Call,
    ) -> Answering {
        use crate::thrift::connection::Service as _;
        let (service, session) = (self.clone(), session.clone());
        Answering::Later(Box::pin(async move {
            wait.await;
            match service.call(&session, call) {
                Answering::Now(reply) => (reply, None),
                Answering::Heavy(reply, held) => (reply, held),
                Answering::Later(reply) => reply.await,
            }
        }))
    }

    fn check_key(&self, key: Option<Vec<u8>>) -> Result<Bytes, Wrong> {
        let key = key.ok_or_else(|| Wrong("the key is missing".to_owned()))?;
        match key.len() {
            0 => Err(Wrong("the key is empty; keys have 1 to 65,535 bytes".to_owned())),
            1..=PARTITION_KEY_BYTES_MAX => Ok(Bytes::from(key)),
            long => Err(Wrong(format!("the key has {long} bytes; keys have 1 to 65,535 bytes"))),
        }
    }

    fn check_value(&self, value: Option<Vec<u8>>) -> Result<Bytes, Wrong> {
        let value = value.ok_or_else(|| Wrong("the value is missing".to_owned()))?;
        let most = self.config.value_bytes_max;
        if value.len() > most {
            return Err(Wrong(format!(
                "the value has {} bytes; this server takes at most {most}",
                value.len()
            )));
        }
        Ok(Bytes::from(value))
    }

    fn check_stamp(&self, stamp: i64) -> Result<Stamp, Wrong> {
        let ahead_max_us =
            self.config.client_stamp_ahead_max_ms.saturating_mul(1000).min(i64::MAX as u64) as i64;
        let newest = self.clock.wall_us().saturating_add(ahead_max_us);
        if stamp > newest {
            return Err(Wrong(format!(
                "the stamp {stamp} is too far ahead of this server's clock; it takes stamps up to {newest} \
                 (microseconds since 1970)"
            )));
        }
        if stamp < 1 {
            return Err(Wrong(format!(
                "the stamp {stamp} is not positive; stamps are microseconds since 1970"
            )));
        }
        Ok(Stamp(stamp))
    }

    fn wrong(&self, wrong: Wrong) -> String {
        self.stats.requests_invalid.count();
        wrong.0
    }

    fn is_replica(&self, partition: &[u8]) -> bool {
        self.ring.replicas(partition).contains(&self.identity.id)
    }

    fn node(&self, id: i32) -> Option<NodeId> {
        u32::try_from(id).ok().map(NodeId).filter(|node| self.nodes.address(*node).is_some())
    }
}

fn kv_slice(key: Bytes) -> Slice {
    Slice::single(KV_TABLE, key)
}

/// Reads are not done at ANY: a hint answers no question.
fn check_read_level(level: Level) -> Result<Level, Wrong> {
    match level {
        Level::Any => Err(Wrong("ANY is for writes only; read at ONE, TWO, THREE, QUORUM or ALL".to_owned())),
        level => Ok(level),
    }
}
