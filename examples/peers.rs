//! Puts and gets for stores of others, to hold Tetrachord against them on one machine: Redis (its own protocol) and
//! etcd (gRPC).
//!
//! One call at a time on each connection. Of each protocol there is what these calls need, by hand: a client library of
//! its own would be measured with the store. A put is as durable as Tetrachord's at QUORUM if the store is set up that
//! way, see `benches/peers.sh`, which runs this. Any answer but the wanted one ends the run: figures with errors in
//! them are none.
//!
//! ```text
//!   redis   SET key value; WAIT 1 0 ─► OK; how many replicas have it        GET key ─► value
//!   etcd    HTTP/2 stream: HEADERS, DATA (KV/Put, KV/Range) ─► HEADERS, DATA, HEADERS that end it
//! ```
#![allow(missing_docs)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, BytesMut};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc; // as in the other loads

/// Write to or read from Redis or etcd as fast as they answer
#[derive(Parser)]
struct Options {
    #[arg(long, value_enum)]
    store: Store,
    /// Connections are spread over them
    #[arg(long, value_delimiter = ',', required = true)]
    addresses: Vec<String>,
    #[arg(long, value_enum, default_value = "put")]
    what: What,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=16_000))]
    value_bytes: u32,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Store {
    Redis,
    Etcd,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    /// Put every key once, however long it takes
    Fill,
    Put,
    Get,
}

type Key = [u8; 16];

/// Longer ones count as this long.
const LATENCY_US_MAX: u64 = 60_000_000;

/// An answer that takes longer is none.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let from = Instant::now() + Duration::from_secs(options.warm_up);
    let load = Rc::new(Load {
        value: vec![b'x'; options.value_bytes as usize],
        from,
        until: from + Duration::from_secs(options.seconds),
        filled: Cell::new(0),
        latencies: RefCell::new(Histogram::new_with_max(LATENCY_US_MAX, 3)?),
        options,
    });
    LocalSet::new().block_on(&runtime, load.run())
}

struct Load {
    options: Options,
    value: Vec<u8>,
    from: Instant,
    until: Instant,
    /// Keys put by now, where each is put once.
    filled: Cell<u64>,
    /// In microseconds.
    latencies: RefCell<Histogram<u64>>,
}

impl Load {
    async fn run(self: Rc<Self>) -> anyhow::Result<()> {
        let connections = 0..self.options.connections;
        let each = |number| spawn_local(self.clone().connection(number));
        for connection in connections.map(each).collect::<Vec<_>>() {
            connection.await??;
        }
        let latencies = self.latencies.borrow();
        let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let per_second = latencies.len() as f64 / self.options.seconds.max(1) as f64;
        println!("{per_second:.0} a second; ms: p50 {:.3}, p99 {:.3}, max {:.3}", ms(0.5), ms(0.99), ms(1.0));
        Ok(())
    }

    async fn connection(self: Rc<Self>, number: usize) -> anyhow::Result<()> {
        let address = &self.options.addresses[number % self.options.addresses.len()];
        let mut stream = TcpStream::connect(address).await.with_context(|| address.clone())?;
        stream.set_nodelay(true)?;
        let mut random = fastrand::Rng::with_seed(number as u64);
        let (mut outbox, mut inbox) = (Vec::new(), BytesMut::new());
        let mut protocol: Box<dyn Protocol> = match self.options.store {
            Store::Redis => Box::new(Redis),
            Store::Etcd => Box::new(Etcd::begin(&mut outbox)),
        };
        while let Some(key) = self.next(&mut random) {
            let value = (self.options.what != What::Get).then_some(&self.value[..]);
            let began = Instant::now();
            protocol.call(&key, value, &mut outbox);
            loop {
                stream.write_all(&outbox).await?;
                outbox.clear();
                if protocol.answer(&key, value, &mut inbox, &mut outbox)? {
                    break;
                }
                let read = timeout(ANSWER_WITHIN, stream.read_buf(&mut inbox)).await;
                ensure!(read.context("no answer in time")?? > 0, "{address} closed the connection");
            }
            if began >= self.from && Instant::now() < self.until {
                self.latencies.borrow_mut().saturating_record(began.elapsed().as_micros() as u64);
            }
        }
        Ok(())
    }

    /// The key of the next call; `None` if that was all.
    fn next(&self, random: &mut fastrand::Rng) -> Option<Key> {
        let number = match self.options.what {
            What::Fill => self.filled.replace(self.filled.get() + 1),
            What::Put | What::Get => random.u64(..self.options.keys),
        };
        let goes_on = match self.options.what {
            What::Fill => number < self.options.keys,
            What::Put | What::Get => Instant::now() < self.until,
        };
        let hash = xxhash_rust::xxh3::xxh3_64(&number.to_be_bytes());
        goes_on.then(|| format!("{hash:016x}").into_bytes().try_into().expect("16 digits"))
    }
}

/// One connection's side of a protocol. With a value a call is a put, without one a get.
trait Protocol {
    fn call(&mut self, key: &Key, value: Option<&[u8]>, outbox: &mut Vec<u8>);

    /// Takes what there is of the answer. False if more is to be read, after what is in the outbox was sent.
    fn answer(
        &mut self,
        key: &Key,
        value: Option<&[u8]>,
        inbox: &mut BytesMut,
        outbox: &mut Vec<u8>,
    ) -> anyhow::Result<bool>;
}

// ------------------------------------------------------------------------------------------------ Redis

struct Redis;

impl Protocol for Redis {
    fn call(&mut self, key: &Key, value: Option<&[u8]>, outbox: &mut Vec<u8>) {
        match value {
            Some(value) => {
                command(&[b"SET", key, value], outbox);
                command(&[b"WAIT", b"1", b"0"], outbox);
            }
            None => command(&[b"GET", key], outbox),
        }
    }

    fn answer(
        &mut self,
        _: &Key,
        value: Option<&[u8]>,
        inbox: &mut BytesMut,
        _: &mut Vec<u8>,
    ) -> anyhow::Result<bool> {
        let Some(line_end) = inbox.windows(2).position(|bytes| bytes == b"\r\n") else { return Ok(false) };
        let line = String::from_utf8_lossy(&inbox[..line_end]).into_owned();
        let rest = &inbox[line_end + 2..];
        if value.is_none() {
            let bytes: usize = line.strip_prefix('$').and_then(|bytes| bytes.parse().ok()).context(line)?;
            let whole = rest.len() >= bytes + 2;
            if whole {
                inbox.clear();
            }
            return Ok(whole);
        }
        ensure!(line == "+OK", "SET was answered {line}");
        let Some(line_end) = rest.windows(2).position(|bytes| bytes == b"\r\n") else { return Ok(false) };
        let line = String::from_utf8_lossy(&rest[..line_end]);
        let copies: u32 = line.strip_prefix(':').and_then(|copies| copies.parse().ok()).unwrap_or(0);
        ensure!(copies >= 1, "WAIT was answered {line}");
        inbox.clear();
        Ok(true)
    }
}

fn command(words: &[&[u8]], outbox: &mut Vec<u8>) {
    outbox.put_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        outbox.put_slice(format!("${}\r\n", word.len()).as_bytes());
        outbox.put_slice(word);
        outbox.put_slice(b"\r\n");
    }
}

// ------------------------------------------------------------------------------------------------ etcd

struct Etcd {
    /// Of the next call.
    stream: u32,
    /// The answer's DATA came, and is what was asked for.
    answered: bool,
}

/// Types of frames (RFC 9113, 6): length (3 bytes), type, flags, stream (4 bytes), payload.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const FRAME_HEAD_BYTES: usize = 9;

/// Flags. An acknowledgement has the bit that ends a stream elsewhere.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The largest window: no run reads so much on one connection.
const WINDOW_MAX: u32 = 0x7fff_ffff;
const WINDOW_AT_FIRST: u32 = 65_535;
const INITIAL_WINDOW_SIZE: u16 = 4;

impl Etcd {
    fn begin(outbox: &mut Vec<u8>) -> Etcd {
        outbox.put_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        settings.put_u32(WINDOW_MAX);
        frame(SETTINGS, 0, 0, &settings, outbox);
        frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_AT_FIRST).to_be_bytes(), outbox);
        Etcd { stream: 1, answered: false }
    }
}

impl Protocol for Etcd {
    fn call(&mut self, key: &Key, value: Option<&[u8]>, outbox: &mut Vec<u8>) {
        let path = if value.is_some() { "/etcdserverpb.KV/Put" } else { "/etcdserverpb.KV/Range" };
        let mut headers = vec![0x83, 0x86]; // of HPACK's table: POST, http
        header(":path", path, &mut headers);
        header(":authority", "localhost", &mut headers);
        header("content-type", "application/grpc", &mut headers);
        header("te", "trailers", &mut headers);
        frame(HEADERS, END_HEADERS, self.stream, &headers, outbox);
        let mut message = Vec::new();
        field(1, key, &mut message);
        value.iter().for_each(|value| field(2, value, &mut message));
        let mut data = vec![0]; // not compressed
        data.put_u32(message.len() as u32);
        data.put_slice(&message);
        frame(DATA, END_STREAM, self.stream, &data, outbox);
        self.stream += 2;
        self.answered = false;
    }

    fn answer(
        &mut self,
        key: &Key,
        value: Option<&[u8]>,
        inbox: &mut BytesMut,
        outbox: &mut Vec<u8>,
    ) -> anyhow::Result<bool> {
        while inbox.len() >= FRAME_HEAD_BYTES {
            let bytes = u32::from_be_bytes([0, inbox[0], inbox[1], inbox[2]]) as usize;
            let (kind, flags) = (inbox[3], inbox[4]);
            if inbox.len() < FRAME_HEAD_BYTES + bytes {
                break;
            }
            inbox.advance(FRAME_HEAD_BYTES);
            let payload = inbox.split_to(bytes);
            match kind {
                // A value that is there comes with its key.
                DATA => {
                    self.answered |= value.is_some() || payload.windows(key.len()).any(|bytes| bytes == key)
                }
                HEADERS if flags & END_STREAM != 0 => {
                    ensure!(self.answered, "etcd answered an error, or found no key");
                    return Ok(true);
                }
                SETTINGS if flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[], outbox),
                PING if flags & ACK == 0 => frame(PING, ACK, 0, &payload, outbox),
                HEADERS | SETTINGS | PING | WINDOW_UPDATE => {}
                kind => bail!("etcd sent a frame of type {kind}"),
            }
        }
        Ok(false)
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], outbox: &mut Vec<u8>) {
    outbox.put_uint(payload.len() as u64, 3);
    outbox.put_slice(&[kind, flags]);
    outbox.put_u32(stream);
    outbox.put_slice(payload);
}

/// A header of HPACK that is not to be kept in a table.
fn header(name: &str, value: &str, headers: &mut Vec<u8>) {
    headers.put_u8(0);
    for text in [name, value] {
        headers.put_u8(text.len() as u8);
        headers.put_slice(text.as_bytes());
    }
}

/// Bytes as a field of a protocol buffer.
fn field(number: u8, bytes: &[u8], message: &mut Vec<u8>) {
    const LENGTH_DELIMITED: u8 = 2;
    message.put_u8(number << 3 | LENGTH_DELIMITED);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    message.put_u8(length as u8);
    message.put_slice(bytes);
}
