//! A request goes to a replica: to this server's own store, or over the link to another server.
//!
//! Here, and only here, is that difference made; whoever asks hands over the same request and awaits the same answer.
//!
//! Not here: which replicas to ask, and how many answers suffice (`coordinator`).

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::answer::{AnswerTo, ApplyAnswer, Failure, NodeId, ReadAnswer};
use crate::mutation::{Kind, Mutation};
use crate::peer::Peers;
use crate::reconcile::Standing;
use crate::slice::Slice;
use crate::store::{Origin, Store};

/// Every replica there is.
#[derive(Clone)]
pub struct Replicas {
    me: NodeId,
    store: Store,
    peers: Arc<dyn Peers>,
    standing: Arc<Standing>,
}

/// A mutation on its way to several replicas: encoded at most once, for all of them.
pub struct Outgoing {
    mutation: Arc<Mutation>,
    kind: Kind,
    encoded: OnceLock<Bytes>,
}

impl Outgoing {
    /// Not encoded until a replica elsewhere needs it.
    pub fn new(mutation: Mutation) -> Outgoing {
        Outgoing { mutation: Arc::new(mutation), kind: Kind::Write, encoded: OnceLock::new() }
    }

    /// What other replicas hold, for one that lacks it.
    pub fn repair(mutation: Mutation) -> Outgoing {
        Outgoing { kind: Kind::Repair, ..Outgoing::new(mutation) }
    }

    /// The mutation itself.
    pub fn mutation(&self) -> &Arc<Mutation> {
        &self.mutation
    }

    fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| self.mutation.encode_as(self.kind))
    }
}

impl Replicas {
    /// This server `me` with its store, and the links to the others. `standing`: which reads of its own count.
    pub fn new(me: NodeId, store: Store, peers: Arc<dyn Peers>, standing: Arc<Standing>) -> Replicas {
        Replicas { me, store, peers, standing }
    }

    /// Applies the mutation on the replica that `to` names.
    pub fn apply(&self, outgoing: &Outgoing, to: AnswerTo<ApplyAnswer>) {
        if to.node() == self.me {
            self.store.apply_from(Origin::of(outgoing.kind), outgoing.mutation.clone(), to);
        } else {
            self.peers.apply(outgoing.encoded(), to);
        }
    }

    /// Reads the slice on the replica that `to` names.
    pub fn read(&self, slice: &Slice, to: AnswerTo<ReadAnswer>) {
        if to.node() == self.me {
            to.send(self.read_here(slice));
        } else {
            self.peers.read(slice, to);
        }
    }

    /// Reads the slice from this server's own store.
    pub fn read_here(&self, slice: &Slice) -> ReadAnswer {
        if !self.standing.may_answer(&slice.partition) {
            let why = format!(
                "server {} is getting back what its directory lost, and answers no reads yet",
                self.me
            );
            return ReadAnswer::Failed(Failure::Refused(why.into()));
        }
        match self.store.read(slice) {
            Ok(read) => ReadAnswer::Cells { cells: read.cells, complete: read.complete },
            Err(error) => ReadAnswer::Failed(Failure::Refused(error.to_string().into())),
        }
    }

    /// How long that replica took to answer reads lately, in microseconds; 0 for this server and where not known.
    pub fn latency_us(&self, node: NodeId) -> u64 {
        if node == self.me { 0 } else { self.peers.latency_us(node) }
    }
}
