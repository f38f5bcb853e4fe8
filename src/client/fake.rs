//! A server for tests: cells in a map, answers by the contract, and a way to misbehave.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinHandle};

use crate::answer::NodeId;
use crate::cell::{Cell, Content, Stamp, merge};
use crate::key::{self, KV_TABLE};
use crate::net::{TcpListener, TcpStream};
use crate::nodes::{Address, Nodes};
use crate::ring::Ring;
use crate::thrift::chord::*;
use crate::thrift::codec::{Protocol, read_message, write_application_exception, write_reply};
use crate::thrift::method::{Call, Refusal, Reply};

/// What a fake does with a call other than `describe`.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// Answers it.
    Serve,
    /// Reads it and closes the connection.
    HangUp,
    /// Reads it and says nothing.
    Silent,
    /// Reads it and answers once there is a permit, which is given back. `stats` is answered at once.
    Hold(Arc<Semaphore>),
    /// Says nothing at all, to `describe` neither: stopped, its connections open.
    Frozen,
    /// Answers with another sequence number.
    OutOfSequence,
    /// Answers with bytes that are no message.
    Garbage,
    /// Throws.
    Refuse(Refusal),
    /// Knows no method.
    Declines,
}

/// One server of a test.
pub(crate) struct Fake {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    node: NodeId,
    address: Address,
    /// By engine key.
    cells: Mutex<BTreeMap<Vec<u8>, Cell>>,
    manner: Mutex<Manner>,
    description: Mutex<Description>,
    stats: Mutex<BTreeMap<String, i64>>,
    /// Names of the calls read, `describe` left out.
    calls: Mutex<Vec<&'static str>>,
    connections: Mutex<Vec<AbortHandle>>,
    accepted: AtomicUsize,
    /// Cells of one digest or page.
    cells_max: AtomicUsize,
    /// Deletions up to this stamp count as gone.
    collected_upto: AtomicI64,
}

/// A cluster of `count` fakes, none of which passes anything on.
pub(crate) async fn cluster(count: usize) -> (Vec<Fake>, Nodes) {
    let mut fakes = Vec::new();
    for node in 0..count as u32 {
        fakes.push(Fake::start(NodeId(node)).await);
    }
    let nodes = Nodes::new(fakes.iter().map(|fake| fake.address().clone()).collect());
    for fake in &fakes {
        *fake.shared.description.lock().unwrap() = describe(fake.shared.node, &nodes, 3);
    }
    (fakes, nodes)
}

/// What server `node` of a healthy ring of `count` says of it.
pub(crate) fn description(node: NodeId, count: usize, copies: usize) -> Description {
    let addresses = (0..count as u16).map(|id| Address { host: "127.0.0.1".to_owned(), port: 9000 + id });
    describe(node, &Nodes::new(addresses.collect()), copies)
}

fn describe(node: NodeId, nodes: &Nodes, copies: usize) -> Description {
    let ring = Ring::even(nodes.len(), copies);
    let members = nodes.ids().zip(ring.ranges()).map(|(id, range)| Member {
        id: Some(id.0 as i32),
        address: Some(nodes.address(id).unwrap().to_string()),
        state: Some("up".to_owned()),
        token: Some(range.token.to_vec()),
        detail: Some(String::new()),
        hints: Some(0),
        hint_bytes: Some(0),
        hinting: Some(true),
    });
    Description {
        cluster: Some("tetrachord".to_owned()),
        id: Some(node.0 as i32),
        replication_factor: Some(ring.replication_factor() as i32),
        epoch: Some(1),
        members: Some(members.collect()),
        version: Some("0.1.0".to_owned()),
        durability: Some("power-loss".to_owned()),
        ranges: Some(Vec::new()),
    }
}

/// A plain value.
pub(crate) fn value(stamp: i64, value: &str) -> Cell {
    Cell { stamp: Stamp(stamp), content: Content::Value(value.to_owned().into()) }
}

/// A deletion.
pub(crate) fn tombstone(stamp: i64) -> Cell {
    Cell { stamp: Stamp(stamp), content: Content::Tombstone }
}

impl Fake {
    pub(crate) async fn start(node: NodeId) -> Fake {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            node,
            address: Address { host: "127.0.0.1".to_owned(), port },
            cells: Mutex::default(),
            manner: Mutex::new(Manner::Serve),
            description: Mutex::new(description(node, node.0 as usize + 1, 3)),
            stats: Mutex::default(),
            calls: Mutex::default(),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            cells_max: AtomicUsize::new(1024),
            collected_upto: AtomicI64::new(i64::MIN),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Fake { shared, accepting }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.shared.address
    }

    pub(crate) fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    /// Changes what it says of the ring.
    pub(crate) fn describing(&self, change: impl FnOnce(&mut Description)) {
        change(&mut self.shared.description.lock().unwrap());
    }

    pub(crate) fn count_stat(&self, name: &str, value: i64) {
        self.shared.stats.lock().unwrap().insert(name.to_owned(), value);
    }

    pub(crate) fn limit_cells(&self, cells_max: usize) {
        self.shared.cells_max.store(cells_max, Ordering::Relaxed);
    }

    /// Looks at deletions up to this stamp and shows none of them, as a server that has not dropped them yet.
    pub(crate) fn collect_upto(&self, stamp: i64) {
        self.shared.collected_upto.store(stamp, Ordering::Relaxed);
    }

    /// Has a cell of the key-value table, whoever should.
    pub(crate) fn hold(&self, partition: &[u8], cell: Cell) {
        self.shared.cells.lock().unwrap().insert(key::encode(KV_TABLE, partition, b""), cell);
    }

    /// Has a cell of any table.
    pub(crate) fn hold_at(&self, table: u16, partition: &[u8], column: &[u8], cell: Cell) {
        let key = key::encode(key::TableId(table), partition, column);
        self.shared.cells.lock().unwrap().insert(key, cell);
    }

    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are served now.
    pub(crate) fn open_connections(&self) -> usize {
        self.shared.connections.lock().unwrap().iter().filter(|connection| !connection.is_finished()).count()
    }

    /// Closes every connection and accepts none.
    pub(crate) async fn stop(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await; // aborted: the listener is closed
        self.drop_connections();
        tokio::task::yield_now().await;
    }

    /// Closes every connection.
    pub(crate) fn drop_connections(&self) {
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    /// Listens again at the same address.
    pub(crate) async fn restart(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.shared.address.port)).await.unwrap();
        self.accepting = tokio::spawn(accept(listener, self.shared.clone()));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accepting.abort();
        self.drop_connections();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let connection = tokio::spawn(serve(stream, shared.clone()));
        shared.connections.lock().unwrap().push(connection.abort_handle());
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut out = Vec::new();
    while let Ok(frame_bytes) = stream.read_u32().await {
        let mut frame = vec![0; frame_bytes as usize];
        if stream.read_exact(&mut frame).await.is_err() {
            return;
        }
        let (header, call) = read_message(Protocol::Binary, &frame, 64, |header, input| {
            let call = Call::read(&header.name, input).unwrap().unwrap();
            (header, call)
        })
        .unwrap();
        let mut sequence = header.sequence_number;
        out.clear();
        out.extend_from_slice(&[0; 4]);
        if call == Call::Describe(()) {
            if matches!(*shared.manner.lock().unwrap(), Manner::Frozen) {
                continue;
            }
            write_reply(Protocol::Binary, sequence, &shared.answer(call), &mut out);
        } else {
            let manner = shared.manner.lock().unwrap().clone();
            shared.calls.lock().unwrap().push(shared_name(&header.name));
            match manner {
                Manner::Serve => {}
                Manner::HangUp => return,
                Manner::Silent | Manner::Frozen => continue,
                Manner::Hold(ref gate) if call != Call::GetStats(()) => {
                    drop(gate.acquire().await.unwrap());
                }
                Manner::Hold(_) => {}
                Manner::OutOfSequence => sequence += 1,
                Manner::Garbage => out.extend_from_slice(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
                Manner::Refuse(_) | Manner::Declines => {}
            }
            match manner {
                Manner::Garbage => {}
                Manner::Refuse(refusal) => {
                    let reply = match call {
                        Call::Put(_) => Reply::Put(Err(refusal)),
                        Call::Get(_) => Reply::Get(Err(refusal)),
                        Call::Remove(_) => Reply::Remove(Err(refusal)),
                        _ => Reply::Batch(Err(refusal)),
                    };
                    write_reply(Protocol::Binary, sequence, &reply, &mut out);
                }
                Manner::Declines => {
                    let kind = thrift::ApplicationErrorKind::UnknownMethod;
                    let why = "unknown method".to_owned();
                    write_application_exception(
                        Protocol::Binary,
                        &header.name,
                        sequence,
                        kind,
                        why,
                        &mut out,
                    );
                }
                _ => write_reply(Protocol::Binary, sequence, &shared.answer(call), &mut out),
            }
        }
        let frame_bytes = out.len() as u32 - 4;
        out[..4].copy_from_slice(&frame_bytes.to_be_bytes());
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

fn shared_name(name: &str) -> &'static str {
    match name {
        "put" => "put",
        "get" => "get",
        "remove" => "remove",
        "batch" => "batch",
        "stats" => "stats",
        "inspectDigest" => "inspectDigest",
        "inspectPage" => "inspectPage",
        _ => "another",
    }
}

/// Seconds since 1970 at which fakes live: values that expire before it have expired.
const NOW_S: i64 = 1_000_000_000;

impl Shared {
    fn answer(&self, call: Call) -> Reply {
        match call {
            Call::Describe(()) => Reply::Describe(Ok(self.description.lock().unwrap().clone())),
            Call::GetStats(()) => Reply::GetStats(Ok(Stats::new(self.stats.lock().unwrap().clone()))),
            Call::Put(put) => Reply::Put(Ok(self.put(put))),
            Call::Get(get) => Reply::Get(Ok(self.get(get))),
            Call::Remove(remove) => Reply::Remove(Ok(self.remove(remove))),
            Call::Batch(batch) => {
                let outcomes = batch.operations.unwrap().into_iter().map(|operation| {
                    let wrote = operation
                        .put
                        .map(|put| self.put(put))
                        .or(operation.remove.map(|remove| self.remove(remove)));
                    Outcome::new(wrote, operation.get.map(|get| self.get(get)), None, None, None, None)
                });
                Reply::Batch(Ok(BatchResult::new(outcomes.collect::<Vec<_>>())))
            }
            Call::InspectDigest(request) => Reply::InspectDigest(Ok(self.digest(request))),
            Call::InspectPage(request) => Reply::InspectPage(Ok(self.page(request))),
            Call::GetServerId(()) => Reply::GetServerId(Ok(self.node.0 as i32)),
            Call::ClientGet(_) => {
                let message = Some("Not enough replicas alive".to_owned());
                Reply::ClientGet(Err(SystemException { message }))
            }
            other => panic!("a fake has no answer to {other:?}"),
        }
    }

    fn put(&self, put: PutRequest) -> WriteResult {
        let value = put.value.unwrap().into();
        let content = match put.ttl {
            None => Content::Value(value),
            Some(ttl) => Content::Expiring { value, expires_at_s: NOW_S + i64::from(ttl) },
        };
        self.write(put.key.unwrap(), put.stamp, content, put.trace)
    }

    fn remove(&self, remove: RemoveRequest) -> WriteResult {
        self.write(remove.key.unwrap(), remove.stamp, Content::Tombstone, remove.trace)
    }

    fn write(&self, key: Vec<u8>, stamp: Option<i64>, content: Content, trace: Option<bool>) -> WriteResult {
        let mut cells = self.cells.lock().unwrap();
        let cell = Cell { stamp: Stamp(stamp.unwrap_or(1_795_227_328_999_280)), content };
        let key = key::encode(KV_TABLE, &key, b"");
        let merged = cells.get(&key).map_or(cell.clone(), |held| merge(held.clone(), cell));
        let stamp = merged.stamp.0;
        cells.insert(key, merged);
        WriteResult::new(stamp, 2, steps(trace))
    }

    fn get(&self, get: GetRequest) -> GetResult {
        let cells = self.cells.lock().unwrap();
        let cell = cells.get(&key::encode(KV_TABLE, &get.key.unwrap(), b""));
        match cell.and_then(|cell| Some((cell, cell.live_value(NOW_S)?))) {
            None => GetResult::new(None, None, None, steps(get.trace)),
            Some((cell, value)) => {
                GetResult::new(value.to_vec(), cell.stamp.0, cell.expires_at_s(), steps(get.trace))
            }
        }
    }

    /// The cells in (after, upto], of which at most `asked` are looked at.
    fn stretch(&self, after: Option<Vec<u8>>, upto: Option<Vec<u8>>, asked: Option<i32>) -> Found {
        let (after, upto) = (after.unwrap_or_default(), upto.unwrap_or_default());
        let most = self.cells_max.load(Ordering::Relaxed).min(asked.unwrap().max(1) as usize);
        let cells = self.cells.lock().unwrap();
        let within = cells.iter().filter(|(key, _)| **key > after && (upto.is_empty() || **key <= upto));
        let mut found: Vec<_> =
            within.take(most + 1).map(|(key, cell)| (key.clone(), cell.clone())).collect();
        let complete = found.len() <= most;
        found.truncate(most);
        let stopped = if complete { upto } else { found.last().unwrap().0.clone() };
        let collected_upto = self.collected_upto.load(Ordering::Relaxed);
        found.retain(|(_, cell)| cell.content != Content::Tombstone || cell.stamp.0 > collected_upto);
        (found, stopped, complete)
    }

    fn digest(&self, request: DigestRequest) -> DigestResult {
        let (found, stopped, complete) = self.stretch(request.after, request.upto, request.cells);
        let sum = found.iter().fold(0u128, |sum, (key, cell)| sum.wrapping_add(hash(key, cell)));
        let live = found.iter().filter(|(_, cell)| cell.live_value(NOW_S).is_some()).count();
        DigestResult::new(found.len() as i64, sum.to_be_bytes().to_vec(), stopped, complete, live as i64)
    }

    fn page(&self, request: PageRequest) -> PageResult {
        let value_bytes = request.value_bytes.unwrap() as usize;
        let (found, stopped, complete) = self.stretch(request.after, request.upto, request.cells);
        let rows = found.into_iter().map(|(engine_key, cell)| {
            let at = key::decode(&engine_key).unwrap();
            let value = cell.value_bytes();
            let kind = match cell.content {
                Content::Value(_) => "value",
                Content::Expiring { .. } => "expiring",
                Content::Tombstone => "tombstone",
            };
            CellRow {
                table: Some(i32::from(at.table.0)),
                partition: Some(at.partition.to_vec()),
                column: Some(at.column.to_vec()),
                stamp: Some(cell.stamp.0),
                kind: Some(kind.to_owned()),
                value: Some(value[..value.len().min(value_bytes)].to_vec()),
                value_size: Some(value.len() as i64),
                expires: Some(cell.expires_at_s().unwrap_or(0)),
                hash: Some(hash(&engine_key, &cell).to_be_bytes().to_vec()),
                engine_key: Some(engine_key),
            }
        });
        PageResult::new(rows.collect::<Vec<_>>(), stopped, complete)
    }
}

/// Cells, up to where they were looked for, and whether there are no more.
type Found = (Vec<(Vec<u8>, Cell)>, Vec<u8>, bool);

fn steps(trace: Option<bool>) -> Option<Vec<String>> {
    (trace == Some(true)).then(|| vec!["asked server 0".to_owned(), "server 0 applied".to_owned()])
}

fn hash(key: &[u8], cell: &Cell) -> u128 {
    let mut bytes = key.to_vec();
    cell.encode(&mut bytes);
    xxhash_rust::xxh3::xxh3_128(&bytes)
}
