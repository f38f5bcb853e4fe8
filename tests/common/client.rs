//! A blocking client over the library's codec only: framed binary, one call at a time. So that what a test asks depends
//! on as little as possible of what it tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use tetrachord::ring::Ring;
use tetrachord::thrift::chord::{self, *};
use tetrachord::thrift::codec::{Protocol, ReplyError, read_reply, write_call};
use tetrachord::thrift::method::{self, Method};

/// A connection to one server.
pub struct Client {
    stream: TcpStream,
    sequence: i32,
}

/// Why a call brought no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection broke: the outcome is unknown.
    #[error("connection: {0}")]
    Connection(#[from] io::Error),
    /// The reply cannot be read, or is Thrift's own exception.
    #[error("{0}")]
    Reply(#[from] ReplyError),
    /// The method threw what it declares.
    #[error("{0}")]
    Thrown(String),
}

impl CallError {
    /// The server itself said no, on a connection that lives on.
    pub fn is_refusal(&self) -> bool {
        matches!(self, CallError::Thrown(_))
    }
}

/// A put as the wire has it.
pub fn put_request(key: &[u8], value: &[u8], level: &str) -> PutRequest {
    PutRequest::new(key.to_vec(), value.to_vec(), self::level(level), None, None, None)
}

fn level(name: &str) -> chord::Level {
    match name {
        "ONE" => chord::Level::ONE,
        "TWO" => chord::Level::TWO,
        "THREE" => chord::Level::THREE,
        "QUORUM" => chord::Level::QUORUM,
        "ALL" => chord::Level::ALL,
        "ANY" => chord::Level::ANY,
        other => panic!("no level {other}"),
    }
}

impl Client {
    /// Connects to a port of this machine.
    pub fn connect(port: u16) -> io::Result<Client> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&address, super::DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(super::DEADLINE))?;
        stream.set_write_timeout(Some(super::DEADLINE))?;
        Ok(Client { stream, sequence: 0 })
    }

    /// Calls any method; the inner result is what the method returned or threw.
    pub fn call<M: Method>(
        &mut self,
        request: &M::Request,
    ) -> Result<Result<M::Response, M::Thrown>, CallError> {
        self.sequence += 1;
        let mut message = vec![0; 4];
        write_call::<M>(Protocol::Binary, self.sequence, request, &mut message);
        let len = u32::try_from(message.len() - 4).expect("test messages are small");
        message[..4].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&message)?;

        let mut len = [0; 4];
        self.stream.read_exact(&mut len)?;
        let mut reply = vec![0; u32::from_be_bytes(len) as usize];
        self.stream.read_exact(&mut reply)?;
        Ok(read_reply::<M>(Protocol::Binary, self.sequence, &reply)?)
    }

    // ---------------------------------------------------------------------------------------- classic service

    /// `clientPut`.
    pub fn classic_put(&mut self, key: u8, value: &str, level: &str) -> Result<(), CallError> {
        let request = ClientRequest::new(level.to_owned(), KV::new(i32::from(key), value.to_owned(), None));
        let response = self.call::<method::ClientPut>(&request)?.map_err(system)?;
        assert_eq!(response.status.as_deref(), Some("SUCCESS"));
        Ok(())
    }

    /// `clientGet`; `None`: no replica asked has the key.
    pub fn classic_get(&mut self, key: u8, level: &str) -> Result<Option<String>, CallError> {
        let request = ClientRequest::new(level.to_owned(), KV::new(i32::from(key), None, None));
        let response = self.call::<method::ClientGet>(&request)?.map_err(system)?;
        Ok(classic_value(response).map(|(value, _)| value))
    }

    /// `serverGet`: this server's own copy and its stamp.
    pub fn own_copy(&mut self, key: u8) -> Option<(String, i64)> {
        let response = self.call::<method::ServerGet>(&KV::new(i32::from(key), None, None));
        classic_value(response.expect("a running server answers").expect("its own copy can be read"))
    }

    // ---------------------------------------------------------------------------------------- our own service

    /// `put`.
    pub fn put(&mut self, key: &[u8], value: &[u8], level: &str) -> Result<WriteResult, CallError> {
        self.call::<method::Put>(&put_request(key, value, level))?.map_err(refused)
    }

    /// `get`; `None`: no replica asked has the key.
    pub fn get(&mut self, key: &[u8], level: &str) -> Result<Option<Vec<u8>>, CallError> {
        let request = GetRequest::new(key.to_vec(), self::level(level), None);
        Ok(self.call::<method::Get>(&request)?.map_err(refused)?.value)
    }

    /// `remove`.
    pub fn remove(&mut self, key: &[u8], level: &str) -> Result<WriteResult, CallError> {
        let request = RemoveRequest::new(key.to_vec(), self::level(level), None, None);
        self.call::<method::Remove>(&request)?.map_err(refused)
    }

    /// `batch` of puts at one level; how many were written.
    pub fn put_batch(&mut self, puts: Vec<PutRequest>) -> Result<usize, CallError> {
        let operations = puts.into_iter().map(|put| Operation::new(put, None, None)).collect::<Vec<_>>();
        let result = self.call::<method::Batch>(&BatchRequest::new(operations))?.map_err(refused)?;
        Ok(result.outcomes.into_iter().flatten().filter(|outcome| outcome.written.is_some()).count())
    }

    /// `batch` of removals at one level; how many were written.
    pub fn remove_batch(&mut self, keys: Vec<Vec<u8>>, level: &str) -> Result<usize, CallError> {
        let removal = |key| RemoveRequest::new(key, self::level(level), None, None);
        let operations =
            keys.into_iter().map(|key| Operation::new(None, None, removal(key))).collect::<Vec<_>>();
        let result = self.call::<method::Batch>(&BatchRequest::new(operations))?.map_err(refused)?;
        Ok(result.outcomes.into_iter().flatten().filter(|outcome| outcome.written.is_some()).count())
    }

    /// `describe`.
    pub fn describe(&mut self) -> Result<Description, CallError> {
        Ok(self.call::<method::Describe>(&())?.unwrap_or_else(|nothing| match nothing {}))
    }

    /// `stats`.
    pub fn stats(&mut self) -> Result<BTreeMap<String, i64>, CallError> {
        let stats = self.call::<method::GetStats>(&())?.unwrap_or_else(|nothing| match nothing {});
        Ok(stats.values.unwrap_or_default())
    }

    /// Everything this server itself holds, by pages of `inspectPage`; values left out.
    pub fn copies(&mut self) -> Copies {
        let mut copies = Copies::new();
        let mut after = Vec::new();
        loop {
            let request = PageRequest::new(after.clone(), Vec::new(), 1_000, 0);
            let page = self.call::<method::InspectPage>(&request).expect("a running server answers");
            let page = page.unwrap_or_else(|invalid| panic!("{invalid:?}"));
            for row in page.cells.into_iter().flatten() {
                let engine_key = row.engine_key.expect("a row has its key");
                let copy = Copy {
                    partition: row.partition.expect("a row has its partition"),
                    stamp: row.stamp.expect("a row has its stamp"),
                    hash: row.hash.expect("a row has its hash"),
                };
                assert!(engine_key > after, "pages go forward");
                copies.insert(engine_key, copy);
            }
            let upto = page.upto.unwrap_or_default();
            if page.complete == Some(true) {
                return copies;
            }
            assert!(upto > after, "pages go forward");
            after = upto;
        }
    }
}

fn classic_value(response: ServerResponse) -> Option<(String, i64)> {
    match response.status.as_deref() {
        Some("SUCCESS") => {
            let kv = response.kv.expect("a found key has its kv");
            Some((kv.value.expect("a found key has a value"), kv.time.expect("a found key has a time")))
        }
        Some("FAIL") => {
            assert_eq!(response.kv, None);
            None
        }
        other => panic!("status {other:?}"),
    }
}

fn system(thrown: SystemException) -> CallError {
    CallError::Thrown(thrown.message.unwrap_or_default())
}

fn refused(thrown: method::Refusal) -> CallError {
    CallError::Thrown(match thrown {
        method::Refusal::Unavailable(thrown) => thrown.message.unwrap_or_default(),
        method::Refusal::Timeout(thrown) => thrown.message.unwrap_or_default(),
        method::Refusal::Overloaded(thrown) => thrown.message.unwrap_or_default(),
        method::Refusal::InvalidRequest(thrown) => thrown.why.unwrap_or_default(),
    })
}

// -------------------------------------------------------------------------------------------- comparing replicas

/// What one server holds: engine key to copy.
pub type Copies = BTreeMap<Vec<u8>, Copy>;

/// One cell as one server holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Its partition key.
    pub partition: Vec<u8>,
    /// Microseconds since 1970.
    pub stamp: i64,
    /// Over everything replicas must agree on.
    pub hash: Vec<u8>,
}

/// For every key that any server holds: its replicas must hold the same, and nobody else may hold anything. Server i's
/// copies stand at index i; three replicas, or as many as there are servers.
pub fn differences(copies: &[Copies]) -> Vec<String> {
    let ring = Ring::even(copies.len(), 3);
    let keys: BTreeSet<&Vec<u8>> = copies.iter().flat_map(BTreeMap::keys).collect();
    let mut found = Vec::new();
    for key in keys {
        let newest = copies.iter().filter_map(|held| held.get(key)).max_by_key(|copy| copy.stamp);
        let newest = newest.expect("the key came from one of them");
        let partition = String::from_utf8_lossy(&newest.partition).into_owned();
        let replicas = ring.replicas(&newest.partition);
        for (id, held) in copies.iter().enumerate() {
            let belongs = replicas.iter().any(|replica| replica.0 as usize == id);
            match held.get(key) {
                Some(copy) if !belongs => {
                    found.push(format!(
                        "{partition:?} @{} is on server {id}, not a replica of it",
                        copy.stamp
                    ));
                }
                None if belongs => {
                    found.push(format!("{partition:?} @{} is not on server {id}", newest.stamp))
                }
                Some(copy) if copy.hash != newest.hash => {
                    found.push(format!(
                        "{partition:?}: server {id} has @{}, not @{}",
                        copy.stamp, newest.stamp
                    ));
                }
                _ => {}
            }
        }
    }
    found
}
