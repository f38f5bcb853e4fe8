//! Service `Peer`: what other servers ask of this one as a replica.
//!
//! A connection is another server's once it has greeted and was welcomed: same cluster, same ring, and it meant this
//! server. Until then nothing of this service is done for it. That keeps mistakes out, not intruders: nothing is
//! authenticated.

use std::sync::Arc;

use bytes::Bytes;

use crate::answer::{Answers, ApplyAnswer, Failure, NodeId, ReadAnswer};
use crate::cell::Stamp;
use crate::key::TableId;
use crate::mutation::{Kind, Mutation};
use crate::peer::{REFUSED, check_hello, number_of};
use crate::slice::Slice;
use crate::store::Origin;
use crate::thrift::chord::{
    PeerApplied, PeerApply, PeerCell, PeerCells, PeerHello, PeerPing, PeerPong, PeerRead, PeerReconcile,
    PeerReconciled, PeerWelcome,
};
use crate::thrift::connection::{Answering, Session};
use crate::thrift::method::{Call, Reply};

use super::Service;

/// Nothing of this service is done on such a connection.
const NOT_GREETED: &str = "this connection has not greeted as a member of the cluster";

/// Reasons of refusal that are remembered as said; further ones are only told to the caller.
const REFUSALS_SAID_MAX: usize = 100;

/// Most cells of one answer, whatever was asked for.
const READ_CELLS_MAX: usize = 10_000;

/// The other server that asks this; `None` for what clients ask.
pub(super) fn caller(session: &Session, call: &Call) -> Option<NodeId> {
    match call {
        Call::Greet(hello) => u32::try_from(hello.caller?).ok().map(NodeId),
        Call::Apply(_) | Call::Read(_) | Call::Ping(_) | Call::Reconcile(_) => session.peer(),
        _ => None,
    }
}

impl Service {
    pub(super) fn peer_hello(&self, session: &Arc<Session>, hello: &PeerHello) -> PeerWelcome {
        let refused = match check_hello(&self.identity, self.nodes.len(), hello) {
            Ok(caller) => {
                session.set_peer(caller);
                session.answer_out_of_order();
                self.peers.greeted_by(caller);
                self.observe(hello.clock);
                String::new()
            }
            Err(why) => {
                self.say_refused(session, &why);
                why
            }
        };
        self.identity.welcome(refused, self.clock.latest())
    }

    /// A refused server tries again every second; it is said once for each reason.
    fn say_refused(&self, session: &Session, why: &str) {
        let mut said = self.refusals_said.lock().expect("no panic while it is held");
        if said.len() < REFUSALS_SAID_MAX && said.insert(why.to_owned()) {
            log::warn!("server {}: refused a server at {}: {why}", self.identity.id, session.remote());
        }
    }

    pub(super) fn peer_ping(&self, session: &Session, ping: PeerPing) -> PeerPong {
        if session.peer().is_some() {
            self.observe(ping.clock);
        }
        let not_writable = self.store.not_writable().map_or(String::new(), |why| why.to_string());
        PeerPong::new(self.clock.latest().0, not_writable)
    }

    pub(super) fn peer_apply(self: &Arc<Self>, session: &Arc<Session>, request: PeerApply) -> Answering {
        let asked = request.mutations.as_ref().map_or(0, Vec::len);
        let mutations = match self.check_apply(session, request) {
            Ok(mutations) => mutations,
            Err(why) => {
                let refused = PeerApplied::new(vec![REFUSED; asked], why, self.clock.latest().0);
                return Answering::Now(Reply::Apply(Ok(refused)));
            }
        };
        let mut answers = Answers::default();
        for (index, (origin, mutation)) in mutations.into_iter().enumerate() {
            self.clock.observe_told(mutation.stamp());
            // The answers of one request come in the order of its mutations: the store has one queue.
            let to = answers.expect(NodeId(index as u32));
            self.store.apply_from(origin, Arc::new(mutation), to);
        }
        let service = self.clone();
        Answering::Later(Box::pin(async move { (Reply::Apply(Ok(service.applied(answers).await)), None) }))
    }

    async fn applied(&self, mut answers: Answers<ApplyAnswer>) -> PeerApplied {
        let mut codes = vec![REFUSED; answers.due()];
        // One reason is told for all: one that leaves open what happened is not to be taken for a refusal.
        let mut refused: Option<Failure> = None;
        while let Some((index, answer)) = answers.next().await {
            codes[index.0 as usize] = number_of(&answer);
            if let ApplyAnswer::Failed(failure) = answer
                && failure.may_pass() // what is too old has a number of its own
                && refused.as_ref().is_none_or(Failure::nothing_stored)
            {
                refused = Some(failure);
            }
        }
        let refused = refused.map_or_else(String::new, |failure| failure.to_string());
        PeerApplied::new(codes, refused, self.clock.latest().0)
    }

    /// The mutations of a request, if it comes from a member, under this ring, and for this replica.
    fn check_apply(
        &self,
        session: &Arc<Session>,
        request: PeerApply,
    ) -> Result<Vec<(Origin, Mutation)>, String> {
        self.check_peer(session, request.epoch)?;
        let encoded = request.mutations.ok_or("the mutations are missing")?;
        let mut mutations = Vec::with_capacity(encoded.len());
        for bytes in encoded {
            let kind = Kind::of(&bytes).unwrap_or(Kind::Write);
            let mutation = Mutation::decode(&Bytes::from(bytes)).map_err(|error| error.to_string())?;
            if !self.is_replica(&mutation.partition) {
                return Err(format!("server {} is no replica of that key", self.identity.id));
            }
            if mutation.stamp() < Stamp(1) {
                return Err("the mutation has no stamp".to_owned());
            }
            mutations.push((Origin::of(kind), mutation));
        }
        Ok(mutations)
    }

    pub(super) fn peer_read(&self, session: &Arc<Session>, request: PeerRead) -> PeerCells {
        let clock = self.clock.latest().0;
        let answer = match self.check_read(session, request) {
            Ok(slice) => self.replicas.read_here(&slice),
            Err(why) => ReadAnswer::Failed(Failure::Refused(why.into())),
        };
        match answer {
            ReadAnswer::Cells { cells, complete } => {
                let encode = |(column, cell): (Bytes, crate::cell::Cell)| {
                    let mut bytes = Vec::with_capacity(cell.encoded_len());
                    cell.encode(&mut bytes);
                    PeerCell::new(column.to_vec(), bytes)
                };
                PeerCells::new(
                    cells.into_iter().map(encode).collect::<Vec<_>>(),
                    String::new(),
                    clock,
                    complete,
                )
            }
            ReadAnswer::Failed(failure) => PeerCells::new(Vec::new(), failure.to_string(), clock, true),
        }
    }

    pub(super) async fn peer_reconcile(
        &self,
        session: &Arc<Session>,
        request: PeerReconcile,
    ) -> PeerReconciled {
        match session.peer() {
            Some(caller) => self.reconciler.answer(caller, request).await,
            None => PeerReconciled { refused: Some(NOT_GREETED.to_owned()), ..PeerReconciled::default() },
        }
    }

    fn check_read(&self, session: &Arc<Session>, request: PeerRead) -> Result<Slice, String> {
        self.check_peer(session, request.epoch)?;
        let table =
            request.table.and_then(|table| u16::try_from(table).ok()).ok_or("the table is missing")?;
        let partition = request.partition.ok_or("the partition key is missing")?;
        if !self.is_replica(&partition) {
            return Err(format!("server {} is no replica of that key", self.identity.id));
        }
        let last = request.last_column.unwrap_or_default();
        Ok(Slice {
            table: TableId(table),
            partition: Bytes::from(partition),
            first: Bytes::from(request.first_column.unwrap_or_default()),
            last: (request.bounded == Some(true)).then(|| Bytes::from(last)),
            cells_max: request.cells.map_or(1, |cells| cells.max(1) as usize).min(READ_CELLS_MAX),
        })
    }

    fn check_peer(&self, session: &Arc<Session>, epoch: Option<i64>) -> Result<(), String> {
        if session.peer().is_none() {
            return Err(NOT_GREETED.to_owned());
        }
        if epoch != Some(self.ring.epoch() as i64) {
            let own = self.ring.epoch();
            return Err(format!("the request was made under ring epoch {epoch:?}, this server has {own}"));
        }
        Ok(())
    }

    fn observe(&self, clock: Option<i64>) {
        self.clock.observe_told(Stamp(clock.unwrap_or(0)));
    }
}
