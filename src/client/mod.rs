//! An asynchronous client of the cluster: the console, the inspector, load tools and applications in Rust use it.
//!
//! A [`Client`] knows every server of `nodes.txt` and, from the first answer on, the ring; a request goes to a replica
//! of its key first, and to the others after it. It keeps one connection per server, with many calls under way on it
//! (`link`), so it is cheap to clone and meant to be shared by many tasks.
//!
//! What must always be true: a request is sent to a second server only if that cannot do harm. That is so when
//!
//!   it was never sent to the first      (its last byte did not leave this process)
//!   it only reads                       (get, describe, stats, a batch of gets)
//!   it is a write with a stamp          (the same cell twice is the same cell)
//!
//! Every other write that was sent and got no answer is [`ClientError::Unknown`]: it may or may not have happened. What
//! a server refuses is passed on and never tried elsewhere: the next coordinator sees the same replicas.
//!
//! Time: a connection is given up after `connect_timeout`, an answer after `call_timeout`, and a call takes at most
//! that for each server it was sent to. A server that could not be reached is left alone for a moment, longer each
//! time, and one that has not answered since is asked for a sign of life first: a frozen server takes connections like
//! any other.
//!
//! Not here: what the words of a request mean (`chord.thrift` says that), retries that an application wants beyond
//! these.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::answer::NodeId;
use crate::nodes::{Address, Nodes};
use crate::thrift::chord::{
    BatchRequest, BatchResult, Description, GetRequest, GetResult, InvalidRequest, PutRequest, RemoveRequest,
    Stats, SystemException, WriteResult,
};
use crate::thrift::method::{Batch, Describe, Get, GetStats, Method, Nothing, Put, Refusal, Remove, Thrown};

use link::{BackOff, Failed, Link};
use ring_view::SharedRing;

#[cfg(test)]
pub(crate) mod fake;
mod link;
mod ring_view;
pub mod text;

pub use ring_view::RingView;

/// Waits and bounds of a [`Client`].
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// For a connection to be opened.
    pub connect_timeout: Duration,
    /// From handing a request to a connection to its answer. Longer than the server's own deadlines (2 s by default),
    /// so that the server's word on the outcome arrives first.
    pub call_timeout: Duration,
    /// Calls under way at once on the connection to one server; further ones wait for their turn.
    pub calls_per_server_max: usize,
    /// Bytes of one answer; a longer one costs the connection. Well above one value, for answers to batches.
    pub reply_bytes_max: usize,
    /// How long a server is left alone after a first failed attempt to reach it.
    pub back_off_min: Duration,
    /// How long at most, after doubling with each failure.
    pub back_off_max: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(5),
            calls_per_server_max: 256, // a server reads no more than this many from one connection (config.rs)
            reply_bytes_max: 256 * 1024 * 1024,
            back_off_min: Duration::from_millis(20),
            back_off_max: Duration::from_secs(1),
        }
    }
}

impl ClientOptions {
    /// These with another `call_timeout`; a connection is not waited for any longer than an answer.
    pub fn with_call_timeout(self, call_timeout: Duration) -> ClientOptions {
        ClientOptions { call_timeout, connect_timeout: self.connect_timeout.min(call_timeout), ..self }
    }

    fn back_off(&self, failures: u32) -> Duration {
        self.back_off_min.saturating_mul(1 << failures.min(20)).min(self.back_off_max)
    }
}

/// A client of the cluster. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    /// The only server to ask, if there is one.
    pinned: Option<NodeId>,
}

struct Shared {
    nodes: Nodes,
    ring: Arc<SharedRing>,
    /// In the order of the ids.
    links: Vec<Link>,
}

/// A server that was asked, or was to be asked, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which server.
    pub node: NodeId,
    /// Where it should have been.
    pub address: Address,
    /// What went wrong.
    pub why: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {} at {}: {}", self.node, self.address, self.why)
    }
}

/// Why a request has no result. Each says what happened to the data.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The cluster answered no. What that means for the data is the exception's to say: of a timed-out write the
    /// outcome is unknown, the three others changed nothing.
    #[error("{}", text::refusal(.0))]
    Refused(Refusal),
    /// A method of the classic service threw. Its message says what happened; of a put the outcome may be unknown.
    #[error("{0}")]
    Classic(String),
    /// No server could be reached. Nothing was sent, so nothing changed; the request may be repeated.
    #[error("no server can be reached, nothing was sent: {}", list(.tried))]
    Unreachable {
        /// Every server that was tried, in order.
        tried: Vec<Attempt>,
    },
    /// A write was sent and got no answer that can be read. It may or may not have happened, and may yet happen.
    #[error("the write may or may not have happened: {}", list(.tried))]
    Unknown {
        /// Every server that was tried, in order; at least one was sent the write.
        tried: Vec<Attempt>,
    },
    /// A read was sent and got no answer that can be read, from any server that could be asked. It may be repeated.
    #[error("no answer: {}", list(.tried))]
    NoAnswer {
        /// Every server that was tried, in order.
        tried: Vec<Attempt>,
    },
    /// The server does not know the method, or cannot read the request: it is another version, or no such server at
    /// all. Nothing changed, and repeating does not help.
    #[error("{0}")]
    Declined(Attempt),
    /// There is no server of this number. Nothing was sent.
    #[error("there is no server {node}: the cluster has servers 0 to {last}")]
    NoSuchServer {
        /// The number.
        node: NodeId,
        /// The largest one there is.
        last: NodeId,
    },
}

fn list(tried: &[Attempt]) -> String {
    tried.iter().map(Attempt::to_string).collect::<Vec<_>>().join("; ")
}

/// An exception of a method, as this client reports it.
pub trait Exception: Thrown {
    /// The error that carries it.
    fn into_error(self) -> ClientError;
}

impl Exception for Refusal {
    fn into_error(self) -> ClientError {
        ClientError::Refused(self)
    }
}

impl Exception for InvalidRequest {
    fn into_error(self) -> ClientError {
        ClientError::Refused(Refusal::InvalidRequest(self))
    }
}

impl Exception for SystemException {
    fn into_error(self) -> ClientError {
        ClientError::Classic(self.message.unwrap_or_else(|| "refused without a reason".to_owned()))
    }
}

impl Exception for Nothing {
    fn into_error(self) -> ClientError {
        match self {}
    }
}

/// What sending a request once more could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// No harm.
    Harmless,
    /// Undo what somebody else wrote in between.
    Harmful,
}

impl Client {
    /// A client of these servers. Connects when it is first used, inside a tokio runtime.
    pub fn new(nodes: Nodes, options: ClientOptions) -> Client {
        assert!(options.calls_per_server_max > 0);
        let ring = Arc::new(SharedRing::new(RingView::guess(&nodes)));
        let link = |address: &Address| Link::new(address.clone(), options, ring.clone());
        let links = nodes.addresses().iter().map(link).collect();
        Client { shared: Arc::new(Shared { nodes, ring, links }), pinned: None }
    }

    /// The same client, asking only this server.
    pub fn pin(&self, node: NodeId) -> Client {
        Client { pinned: Some(node), ..self.clone() }
    }

    /// The servers it knows.
    pub fn nodes(&self) -> &Nodes {
        &self.shared.nodes
    }

    /// The ring as far as it is known: what the server connected to last said, a guess before.
    pub fn ring(&self) -> Arc<RingView> {
        self.shared.ring.get()
    }

    /// Writes a value. Errors: see [`ClientError`]; sent to a second server after a lost answer only if it has a stamp.
    pub async fn put(&self, request: &PutRequest) -> Result<WriteResult, ClientError> {
        let repeat = if request.stamp.is_some() { Repeat::Harmless } else { Repeat::Harmful };
        self.ask::<Put>(request.key.as_deref(), request, repeat).await.map_err(|error| error.of_write())
    }

    /// Reads a value: neither value nor stamp if no replica asked has one. Repeated on other servers until one answers.
    pub async fn get(&self, request: &GetRequest) -> Result<GetResult, ClientError> {
        self.ask::<Get>(request.key.as_deref(), request, Repeat::Harmless).await
    }

    /// Deletes a value. Errors and repetition as of [`Client::put`].
    pub async fn remove(&self, request: &RemoveRequest) -> Result<WriteResult, ClientError> {
        let repeat = if request.stamp.is_some() { Repeat::Harmless } else { Repeat::Harmful };
        self.ask::<Remove>(request.key.as_deref(), request, repeat).await.map_err(|error| error.of_write())
    }

    /// Several operations in one call, an outcome for each in order; not atomic across keys. Sent to a second server
    /// after a lost answer only if every write in it has a stamp; [`ClientError::Unknown`] then holds for each of them.
    pub async fn batch(&self, request: &BatchRequest) -> Result<BatchResult, ClientError> {
        let operations = request.operations.as_deref().unwrap_or_default();
        let unstamped = operations.iter().any(|operation| {
            operation.put.as_ref().is_some_and(|put| put.stamp.is_none())
                || operation.remove.as_ref().is_some_and(|remove| remove.stamp.is_none())
        });
        let reads_only = operations.iter().all(|operation| operation.get.is_some());
        let repeat = if unstamped { Repeat::Harmful } else { Repeat::Harmless };
        let first_key = operations.first().and_then(|operation| {
            let put = operation.put.as_ref().and_then(|put| put.key.as_deref());
            let get = operation.get.as_ref().and_then(|get| get.key.as_deref());
            let remove = operation.remove.as_ref().and_then(|remove| remove.key.as_deref());
            put.or(get).or(remove)
        });
        let result = self.ask::<Batch>(first_key, request, repeat).await;
        if reads_only { result } else { result.map_err(|error| error.of_write()) }
    }

    /// The cluster as one server sees it.
    pub async fn describe(&self) -> Result<Description, ClientError> {
        let description = self.ask::<Describe>(None, &(), Repeat::Harmless).await?;
        self.shared.ring.learn(&description);
        Ok(description)
    }

    /// What one server has counted.
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        self.ask::<GetStats>(None, &(), Repeat::Harmless).await
    }

    /// Any method, on this server and no other. A connection found closed before the request was sent is replaced;
    /// nothing is repeated after that. A request that was sent and got no answer is [`ClientError::Unknown`] whether
    /// or not it writes: this client does not know what the method does.
    pub async fn call_on<M: Method>(
        &self,
        node: NodeId,
        request: &M::Request,
    ) -> Result<M::Response, ClientError>
    where
        M::Thrown: Exception,
    {
        self.pin(node).ask::<M>(None, request, Repeat::Harmful).await
    }

    /// Asks one server after the other until one has an answer, replicas of `key` first. Servers that could not be
    /// reached a moment ago come last.
    async fn ask<M: Method>(
        &self,
        key: Option<&[u8]>,
        request: &M::Request,
        repeat: Repeat,
    ) -> Result<M::Response, ClientError>
    where
        M::Thrown: Exception,
    {
        let mut tried = Tried::default();
        let mut left_alone = Vec::new();
        if let Some(node) = self.pinned {
            self.link(node)?;
            left_alone.push(node);
        } else {
            let ring = self.ring();
            let replicas = key.map_or(&[][..], |key| ring.replicas(key));
            let known = |id: &NodeId| (id.0 as usize) < self.shared.links.len();
            let others = self.shared.nodes.ids().filter(|id| !replicas.contains(id));
            for node in replicas.iter().copied().filter(known).chain(others) {
                match self.ask_one::<M>(node, request, BackOff::Skip, repeat, &mut tried).await {
                    Asked::Answered(result) => return result,
                    Asked::Next => {}
                    Asked::LeftAlone => left_alone.push(node),
                }
            }
        }
        for node in left_alone {
            match self.ask_one::<M>(node, request, BackOff::Wait, repeat, &mut tried).await {
                Asked::Answered(result) => return result,
                Asked::Next | Asked::LeftAlone => {}
            }
        }
        Err(tried.into_error())
    }

    async fn ask_one<M: Method>(
        &self,
        node: NodeId,
        request: &M::Request,
        back_off: BackOff,
        repeat: Repeat,
        tried: &mut Tried,
    ) -> Asked<M::Response>
    where
        M::Thrown: Exception,
    {
        let link = &self.shared.links[node.0 as usize];
        let attempt = |why: &str| Attempt { node, address: link.address().clone(), why: why.to_owned() };
        let (attempt, sent) = match link.call::<M>(request, back_off).await {
            Ok(result) => return Asked::Answered(result.map_err(Exception::into_error)),
            Err(Failed::Declined(why)) => {
                return Asked::Answered(Err(ClientError::Declined(attempt(&why))));
            }
            Err(Failed::NotSent { backing_off: true, .. }) if back_off == BackOff::Skip => {
                return Asked::LeftAlone;
            }
            Err(Failed::NotSent { why, .. }) => (attempt(&why), false),
            Err(Failed::NoAnswer(why)) => (attempt(&why), true),
            Err(Failed::Garbled(why)) => (attempt(&why), true),
        };
        tried.sent |= sent;
        tried.attempts.push(attempt);
        if sent && repeat == Repeat::Harmful {
            let tried = std::mem::take(&mut tried.attempts);
            return Asked::Answered(Err(ClientError::Unknown { tried }));
        }
        Asked::Next
    }

    fn link(&self, node: NodeId) -> Result<&Link, ClientError> {
        let last = NodeId(self.shared.links.len() as u32 - 1);
        self.shared.links.get(node.0 as usize).ok_or(ClientError::NoSuchServer { node, last })
    }
}

enum Asked<T> {
    Answered(Result<T, ClientError>),
    /// Another server may be asked.
    Next,
    /// It was not tried, because the last attempt failed a moment ago.
    LeftAlone,
}

#[derive(Default)]
struct Tried {
    attempts: Vec<Attempt>,
    /// At least one server was sent the request.
    sent: bool,
}

impl Tried {
    fn into_error(self) -> ClientError {
        if self.sent {
            ClientError::NoAnswer { tried: self.attempts }
        } else {
            ClientError::Unreachable { tried: self.attempts }
        }
    }
}

impl ClientError {
    /// A write without an answer is unknown, also one that could harmlessly be repeated and was.
    fn of_write(self) -> ClientError {
        match self {
            ClientError::NoAnswer { tried } => ClientError::Unknown { tried },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
