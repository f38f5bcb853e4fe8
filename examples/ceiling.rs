//! How fast could it be? A bare replicated log with the same promise as a QUORUM write, reads of the same keys, and
//! nothing else.
//!
//! A process for each node, three copies, two of three acknowledge. Each mutation is a row in SQLite at
//! `synchronous=FULL`, and is acknowledged after the fsync of the transaction it is in; a transaction holds what
//! arrived during the last one. A read is answered from memory by one replica, or by two. With one node dead
//! (`--dead`) the coordinator logs what it would get. Frames over TCP; no Thrift, no stamps, no deadlines,
//! no repair, nothing handed over: whatever Tetrachord does beyond this costs something, and the ratio of the two says
//! how much.
//!
//! ```text
//!   client ─ PUT ─► coordinator ─ APPLY ─► replicas: log thread, one transaction for all that waited ─ ACK ─► 2 of 3 ─ ACK ─► client
//!   client ─ GET ─► coordinator ─ READ ──► one replica or two, this one first: memory ─ VALUE ─► client
//! ```
//!
//! `benches/ratio.sh` runs it beside a real cluster. By hand: `ceiling serve --id 0 --nodes nodes.txt --data DIR` for
//! each line of nodes.txt, then `ceiling load --nodes nodes.txt --connections 64`. It is no store: nodes do not
//! recover, and a lost connection ends the process.
#![allow(missing_docs)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use tetrachord::nodes::{Address, Nodes};
use tetrachord::stress::{End, Next, Pace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{LocalSet, spawn_local};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc; // as in the server

/// A bare replicated log, to hold Tetrachord against
#[derive(Parser)]
enum Command {
    /// Be one node, until killed
    Serve {
        #[arg(long)]
        id: usize,
        #[arg(long)]
        nodes: PathBuf,
        #[arg(long)]
        data: PathBuf,
        /// No fsync before an acknowledgement
        #[arg(long)]
        process_crash: bool,
        /// The node of this number is dead: each row it would get is a row more in the coordinator's log
        #[arg(long)]
        dead: Option<usize>,
    },
    /// Write or read as fast as the nodes answer
    Load {
        #[arg(long)]
        nodes: PathBuf,
        #[arg(long, value_enum, default_value = "put")]
        what: What,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 1)]
        outstanding: usize,
        #[arg(long, default_value_t = 1_000_000)]
        keys: u64,
        #[arg(long, default_value_t = 100)]
        value_bytes: usize,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        #[arg(long, default_value_t = 2)]
        warm_up: u64,
        /// So many operations a second, however late the answers (open loop, as in `stress`); one outstanding each
        #[arg(long)]
        rate: Option<f64>,
        /// Send nothing to the node of this number
        #[arg(long)]
        without: Option<usize>,
    },
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    /// Put every key once, however long it takes
    Fill,
    Put,
    /// Of one replica
    GetOne,
    /// Of two
    GetQuorum,
}

const COPIES: usize = 3;
const QUORUM: usize = 2;
const KEY_BYTES: usize = 16;

/// As in Tetrachord: the write-ahead log is copied into the database after so many pages.
const CHECKPOINT_PAGES: usize = 1_000;
const PAGE_BYTES: usize = 4_096;

/// Kinds of frames: length (4 bytes, of what follows), kind, number (8 bytes), key and value, or one of them.
const PUT: u8 = 1;
const APPLY: u8 = 2;
const ACK: u8 = 3;
const GET_ONE: u8 = 4;
const GET_QUORUM: u8 = 5;
const READ: u8 = 6;
const VALUE: u8 = 7;
const HEAD_BYTES: usize = 4 + 1 + 8;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    match Command::parse() {
        Command::Serve { id, nodes, data, process_crash, dead } => {
            local.block_on(&runtime, serve(id, &Nodes::load(&nodes)?, &data, process_crash, dead))
        }
        Command::Load {
            nodes,
            what,
            connections,
            outstanding,
            keys,
            value_bytes,
            seconds,
            warm_up,
            rate,
            without,
        } => {
            let (warm_up, seconds) = (Duration::from_secs(warm_up), Duration::from_secs(seconds));
            let load = Rc::new(Load {
                what,
                without,
                pace: rate.map(|rate| Pace::new(Some(rate), warm_up, End::After(seconds), connections)),
                filled: Cell::new(0),
                outstanding,
                keys,
                value: vec![b'v'; value_bytes],
                from: Instant::now() + warm_up,
                until: Instant::now() + warm_up + seconds,
                latencies: RefCell::new(Histogram::new_with_bounds(1, 600_000_000, 3)?),
            });
            local.block_on(&runtime, load.run(&Nodes::load(&nodes)?, connections))
        }
    }
}

// ------------------------------------------------------------------------------------------------ frames

fn frame(kind: u8, number: u64, body: &[&[u8]], out: &mut Vec<u8>) {
    let body_bytes: usize = body.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&((HEAD_BYTES - 4 + body_bytes) as u32).to_be_bytes());
    out.push(kind);
    out.extend_from_slice(&number.to_be_bytes());
    body.iter().for_each(|part| out.extend_from_slice(part));
}

/// Waits for bytes, then shows every whole frame among them.
async fn read_frames(
    reader: &mut OwnedReadHalf,
    inbox: &mut BytesMut,
    mut each: impl FnMut(u8, u64, Bytes),
) -> io::Result<()> {
    inbox.reserve(64 * 1024);
    if reader.read_buf(inbox).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    while let Some(len) = inbox.first_chunk::<4>().map(|len| u32::from_be_bytes(*len) as usize) {
        if inbox.len() < 4 + len {
            break;
        }
        inbox.advance(4);
        let (kind, number) = (inbox.get_u8(), inbox.get_u64());
        // A copy, for a row that is kept must not keep the whole read buffer.
        let body = Bytes::copy_from_slice(&inbox[..4 + len - HEAD_BYTES]);
        inbox.advance(body.len());
        each(kind, number, body);
    }
    Ok(())
}

/// Bytes on their way to one connection: all that gathered while other tasks had their turn leave in one write.
#[derive(Clone, Default)]
struct Outbox(Rc<(RefCell<Vec<u8>>, Notify)>);

impl Outbox {
    fn send(&self, kind: u8, number: u64, body: &[u8]) {
        frame(kind, number, &[body], &mut self.0.0.borrow_mut());
        self.0.1.notify_one();
    }

    async fn write_all(self, mut writer: OwnedWriteHalf) -> io::Result<()> {
        loop {
            self.0.1.notified().await;
            tokio::task::yield_now().await;
            let bytes = self.0.0.take();
            writer.write_all(&bytes).await?;
        }
    }
}

// ------------------------------------------------------------------------------------------------ the node

/// Who waits for a row: a write coordinated here, a frame on a connection, or nobody, for it is the dead node's.
#[derive(Clone, Copy)]
enum Origin {
    Here(u64),
    Connection(usize, u64),
    Nobody,
}

/// What waits for the log thread.
#[derive(Default)]
struct Queue {
    rows: Mutex<Vec<(Origin, Bytes)>>,
    ring: Condvar,
}

/// What the node keeps, written by its log thread.
type Memory = RwLock<BTreeMap<Bytes, Bytes>>;

/// A write under way.
struct Write {
    client: usize,
    number: u64,
    acknowledged: usize,
    /// Of how many replicas.
    asked: usize,
}

/// A read under way.
struct Read {
    client: usize,
    number: u64,
    missing: usize,
}

struct Node {
    id: usize,
    nodes: usize,
    dead: Option<usize>,
    memory: Arc<Memory>,
    queue: Arc<Queue>,
    /// Rows that came since the log thread was last given some.
    arrived: RefCell<Vec<(Origin, Bytes)>>,
    arrivals: Notify,
    peers: Vec<Outbox>,
    connections: RefCell<Vec<Outbox>>,
    writes: RefCell<HashMap<u64, Write>>,
    reads: RefCell<HashMap<u64, Read>>,
    next: Cell<u64>,
}

async fn serve(
    id: usize,
    nodes: &Nodes,
    data: &Path,
    process_crash: bool,
    dead: Option<usize>,
) -> anyhow::Result<()> {
    let address = nodes.addresses().get(id).expect("--id is a line of --nodes").clone();
    anyhow::ensure!(
        dead.is_none_or(|dead| dead != id && nodes.len() > QUORUM),
        "this node is dead, or too many are"
    );
    let listener = TcpListener::bind((address.host.as_str(), address.port)).await?;
    let (tell, mut committed) = mpsc::unbounded_channel();
    let queue = Arc::new(Queue::default());
    let memory = Arc::new(Memory::default());
    let log = open_log(data, process_crash)?;
    let thread = std::thread::Builder::new().name("log".to_owned());
    let (logged, kept) = (queue.clone(), memory.clone());
    thread.spawn(move || write_log(log, &logged, &kept, &tell))?;
    let node = Rc::new(Node {
        id,
        nodes: nodes.len(),
        dead,
        memory,
        queue,
        arrived: RefCell::default(),
        arrivals: Notify::new(),
        peers: vec![(); nodes.len()].into_iter().map(|()| Outbox::default()).collect(),
        connections: RefCell::default(),
        writes: RefCell::default(),
        reads: RefCell::default(),
        next: Cell::new(0),
    });
    let others = nodes.addresses().iter().enumerate().filter(|(peer, _)| *peer != id && Some(*peer) != dead);
    for (peer, address) in others {
        spawn_local(node.clone().link(peer, address.clone()));
    }
    spawn_local(node.clone().feed_log());
    println!("ready");
    loop {
        tokio::select! {
            biased;
            batch = committed.recv() => batch.expect("the log thread never ends").into_iter().for_each(|origin| node.logged(origin)),
            accepted = listener.accept() => { spawn_local(node.clone().connection(accepted?.0)); }
        }
    }
}

impl Node {
    /// The connection to another node: applies and reads go out, acknowledgements and values come in.
    async fn link(self: Rc<Self>, peer: usize, address: Address) {
        let stream = loop {
            match TcpStream::connect((address.host.as_str(), address.port)).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await, // it is not up yet
            }
        };
        stream.set_nodelay(true).expect("a fresh socket takes options");
        let (mut reader, writer) = stream.into_split();
        spawn_local(self.peers[peer].clone().write_all(writer));
        let mut inbox = BytesMut::new();
        let each = |kind, number, body: Bytes| match kind {
            ACK => self.acknowledged(number),
            _ => self.found(number, &body),
        };
        while read_frames(&mut reader, &mut inbox, each).await.is_ok() {}
        std::process::exit(1); // without its peers it is no node
    }

    /// A connection from a client or another node.
    async fn connection(self: Rc<Self>, stream: TcpStream) {
        stream.set_nodelay(true).expect("a fresh socket takes options");
        let (mut reader, writer) = stream.into_split();
        let outbox = Outbox::default();
        let own = self.connections.borrow().len();
        self.connections.borrow_mut().push(outbox.clone());
        let writing = spawn_local(outbox.clone().write_all(writer));
        let mut inbox = BytesMut::new();
        let mut each = |kind, number, body: Bytes| match kind {
            PUT => self.coordinate(own, number, &body),
            GET_ONE => self.coordinate_read(own, number, &body, 1),
            GET_QUORUM => self.coordinate_read(own, number, &body, QUORUM.min(self.nodes)),
            READ => outbox.send(VALUE, number, &self.value(&body)),
            _ => self.log(Origin::Connection(own, number), body),
        };
        while read_frames(&mut reader, &mut inbox, &mut each).await.is_ok() {}
        writing.abort();
    }

    fn coordinate(&self, client: usize, number: u64, body: &Bytes) {
        let write = self.next.get();
        self.next.set(write + 1);
        let asked = self.replicas(body).filter(|replica| Some(*replica) != self.dead).count();
        self.writes.borrow_mut().insert(write, Write { client, number, acknowledged: 0, asked });
        for replica in self.replicas(body) {
            if replica == self.id {
                self.log(Origin::Here(write), body.clone());
            } else if Some(replica) == self.dead {
                self.log(Origin::Nobody, body.clone());
            } else {
                self.peers[replica].send(APPLY, write, body);
            }
        }
    }

    fn replicas(&self, key: &[u8]) -> impl Iterator<Item = usize> + use<> {
        let (owner, nodes) = (usize::from(key[0]) * self.nodes / 256, self.nodes);
        (0..COPIES.min(nodes)).map(move |step| (owner + step) % nodes)
    }

    /// Asks as many replicas as `needed`, this node first, if it is one.
    fn coordinate_read(&self, client: usize, number: u64, key: &Bytes, needed: usize) {
        let here = self.replicas(key).any(|replica| replica == self.id);
        let missing = needed - usize::from(here);
        if missing == 0 {
            self.connections.borrow()[client].send(VALUE, number, &self.value(key));
            return;
        }
        let read = self.next.get();
        self.next.set(read + 1);
        self.reads.borrow_mut().insert(read, Read { client, number, missing });
        if here {
            self.value(key); // read as a replica does; of two the other's is told
        }
        let others = self.replicas(key).filter(|replica| *replica != self.id && Some(*replica) != self.dead);
        for replica in others.take(missing) {
            self.peers[replica].send(READ, read, key);
        }
    }

    fn value(&self, key: &[u8]) -> Bytes {
        self.memory.read().expect("no panic while it is held").get(key).cloned().unwrap_or_default()
    }

    /// A replica has answered; the last value is told.
    fn found(&self, number: u64, value: &[u8]) {
        let mut reads = self.reads.borrow_mut();
        let read = reads.get_mut(&number).expect("kept until all have answered");
        read.missing -= 1;
        if read.missing == 0 {
            self.connections.borrow()[read.client].send(VALUE, read.number, value);
            reads.remove(&number);
        }
    }

    fn log(&self, origin: Origin, body: Bytes) {
        self.arrived.borrow_mut().push((origin, body));
        self.arrivals.notify_one();
    }

    /// Hands the log thread what has come, once all sockets that are ready were read.
    async fn feed_log(self: Rc<Self>) {
        loop {
            self.arrivals.notified().await;
            tokio::task::yield_now().await;
            let mut arrived = self.arrived.borrow_mut();
            self.queue.rows.lock().expect("no panic while it is held").append(&mut arrived);
            self.queue.ring.notify_one();
        }
    }

    fn logged(&self, origin: Origin) {
        match origin {
            Origin::Here(write) => self.acknowledged(write),
            Origin::Connection(connection, number) => {
                self.connections.borrow()[connection].send(ACK, number, &[]);
            }
            Origin::Nobody => {}
        }
    }

    fn acknowledged(&self, number: u64) {
        let mut writes = self.writes.borrow_mut();
        let write = writes.get_mut(&number).expect("kept until every replica has acknowledged");
        write.acknowledged += 1;
        if write.acknowledged == QUORUM.min(self.nodes) {
            self.connections.borrow()[write.client].send(ACK, write.number, &[]);
        }
        if write.acknowledged == write.asked {
            writes.remove(&number);
        }
    }
}

fn open_log(data: &Path, process_crash: bool) -> anyhow::Result<rusqlite::Connection> {
    std::fs::create_dir_all(data)?;
    let log = rusqlite::Connection::open(data.join("ceiling.db"))?;
    log.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    log.pragma_update(None, "synchronous", if process_crash { "NORMAL" } else { "FULL" })?;
    log.pragma_update(None, "wal_autocheckpoint", 0)?; // nobody's acknowledgement waits for a checkpoint
    log.execute_batch("CREATE TABLE IF NOT EXISTS log(sequence INTEGER PRIMARY KEY, key BLOB, value BLOB)")?;
    Ok(log)
}

/// Commits all that waits in one transaction, keeps it in memory, and only then tells whom it came from.
fn write_log(
    log: rusqlite::Connection,
    queue: &Queue,
    memory: &Memory,
    tell: &mpsc::UnboundedSender<Vec<Origin>>,
) {
    let run = |sql: &str| log.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
    let mut pages = 0;
    loop {
        let rows = queue.rows.lock().expect("no panic while it is held");
        let mut rows =
            queue.ring.wait_while(rows, |rows| rows.is_empty()).expect("no panic while it is held");
        let batch = std::mem::take(&mut *rows);
        drop(rows);
        let write = || -> rusqlite::Result<()> {
            run("BEGIN IMMEDIATE")?;
            let mut insert = log.prepare_cached("INSERT INTO log(key, value) VALUES (?1, ?2)")?;
            for (_, body) in &batch {
                insert.execute((&body[..KEY_BYTES], &body[KEY_BYTES..]))?;
            }
            run("COMMIT").map(|_| ())
        };
        write().expect("the log takes a transaction");
        let bytes: usize = batch.iter().map(|(_, body)| body.len()).sum();
        let mut memory = memory.write().expect("no panic while it is held");
        let keep = |(origin, body): (Origin, Bytes)| {
            if !matches!(origin, Origin::Nobody) {
                memory.insert(body.slice(..KEY_BYTES), body.slice(KEY_BYTES..));
            }
            origin
        };
        let told = batch.into_iter().map(keep).collect();
        drop(memory);
        if tell.send(told).is_err() {
            return;
        }
        pages += 2 + bytes / PAGE_BYTES;
        if pages >= CHECKPOINT_PAGES {
            let checkpoint = log.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            checkpoint.expect("the log takes a checkpoint");
            pages = 0;
        }
    }
}

// ------------------------------------------------------------------------------------------------ the load

async fn dial(address: &Address) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream.into_split())
}

struct Load {
    what: What,
    without: Option<usize>,
    /// When operations are due, where that does not depend on the answers.
    pace: Option<Arc<Pace>>,
    /// Keys put by now, where each is put once.
    filled: Cell<u64>,
    outstanding: usize,
    keys: u64,
    value: Vec<u8>,
    from: Instant,
    until: Instant,
    latencies: RefCell<Histogram<u64>>,
}

impl Load {
    async fn run(self: Rc<Self>, nodes: &Nodes, connections: usize) -> anyhow::Result<()> {
        if let Some(pace) = &self.pace {
            pace.start_releasing()?;
        }
        let wanted = nodes.addresses().iter().enumerate().filter(|(node, _)| Some(*node) != self.without);
        let addresses: Vec<&Address> = wanted.map(|(_, address)| address).collect();
        anyhow::ensure!(!addresses.is_empty(), "no node is left");
        let each = |number: usize| {
            let address = addresses[number % addresses.len()].clone();
            let random = fastrand::Rng::with_seed(number as u64);
            let load = self.clone();
            spawn_local(async move {
                match load.pace.clone() {
                    Some(pace) => load.paced(address, random, &pace).await,
                    None => load.connection(address, random).await,
                }
            })
        };
        for connection in (0..connections).map(each).collect::<Vec<_>>() {
            connection.await??;
        }
        let latencies = self.latencies.borrow();
        let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "{:.0} a second; ms: mean {:.3}, p50 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3}",
            latencies.len() as f64 / (self.until - self.from).as_secs_f64(),
            latencies.mean() / 1000.0,
            ms(0.5),
            ms(0.99),
            ms(0.999),
            latencies.max() as f64 / 1000.0,
        );
        Ok(())
    }

    /// One connection: as many calls under way as asked for, each answer followed by the next call.
    async fn connection(self: Rc<Self>, address: Address, mut random: fastrand::Rng) -> io::Result<()> {
        let (mut reader, mut writer) = dial(&address).await?;
        let mut began = vec![Instant::now(); self.outstanding];
        let (mut outbox, mut inbox) = (Vec::new(), BytesMut::new());
        (0..self.outstanding as u64).for_each(|slot| self.call(slot, &mut random, &mut outbox));
        let mut under_way = self.outstanding;
        while under_way > 0 {
            writer.write_all(&outbox).await?;
            outbox.clear();
            read_frames(&mut reader, &mut inbox, |_, slot, _| {
                let now = Instant::now();
                if began[slot as usize] >= self.from && now < self.until {
                    let took = (now - began[slot as usize]).as_micros() as u64;
                    self.latencies.borrow_mut().saturating_record(took);
                }
                let goes_on = match self.what {
                    What::Fill => self.filled.get() < self.keys,
                    _ => now < self.until,
                };
                if goes_on {
                    began[slot as usize] = now;
                    self.call(slot, &mut random, &mut outbox);
                } else {
                    under_way -= 1;
                }
            })
            .await?;
        }
        Ok(())
    }

    /// One connection: a call whenever one is due and the last was answered. Its latency counts from when it was due.
    async fn paced(
        self: Rc<Self>,
        address: Address,
        mut random: fastrand::Rng,
        pace: &Pace,
    ) -> io::Result<()> {
        let (mut reader, mut writer) = dial(&address).await?;
        let (mut outbox, mut inbox) = (Vec::new(), BytesMut::new());
        loop {
            let (waited, counted) = match pace.next(tokio::time::Instant::now()).await {
                Next::Begin { due, counted } => {
                    self.call(0, &mut random, &mut outbox);
                    writer.write_all(&outbox).await?;
                    outbox.clear();
                    let mut answered = false;
                    while !answered {
                        read_frames(&mut reader, &mut inbox, |_, _, _| answered = true).await?;
                    }
                    (due.elapsed(), counted)
                }
                Next::NeverBegun { waited } => (waited, true),
                Next::Done => return Ok(()),
            };
            if counted {
                self.latencies.borrow_mut().saturating_record(waited.as_micros() as u64);
            }
        }
    }

    fn call(&self, slot: u64, random: &mut fastrand::Rng, outbox: &mut Vec<u8>) {
        let number = match self.what {
            What::Fill => self.filled.replace(self.filled.get() + 1),
            _ => random.u64(..self.keys),
        };
        let key = xxhash_rust::xxh3::xxh3_128(&number.to_be_bytes()).to_be_bytes();
        match self.what {
            What::Fill | What::Put => frame(PUT, slot, &[&key, &self.value], outbox),
            What::GetOne => frame(GET_ONE, slot, &[&key], outbox),
            What::GetQuorum => frame(GET_QUORUM, slot, &[&key], outbox),
        }
    }
}
