//! The server against everything that can come over a socket: every dress, single bytes, floods, bombs, silence,
//! garbage, readers that do not read. After each of them it must be alive, small, and right.
//!
//! The service behind it is a stub whose answers say what was asked. Nothing is asserted about absolute times: what
//! should come is waited for, with a deadline that only a hang can miss.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tetrachord::answer::NodeId;
use tetrachord::config::Config;
use tetrachord::server::serve;
use tetrachord::stats::Stats;
use tetrachord::thrift::chord::*;
use tetrachord::thrift::codec::{self, Protocol, ReplyError, read_reply, write_call};
use tetrachord::thrift::connection::{Answering, Budget, Limits, Service, Session};
use tetrachord::thrift::dress::{Dress, Split, Splitter, framed};
use tetrachord::thrift::method::*;
use tetrachord::thrift::scan::Bounds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);
const BOTH: [Protocol; 2] = [Protocol::Binary, Protocol::Compact];

// ------------------------------------------------------------------------------------------------------- the service

/// `get` is answered with its key as value, as the key says: "now …" at once, "later N …" after N milliseconds,
/// "gate …" when the test opens the gate, "busy …" the same while using up every turn of its task, "big N" at once with N
/// bytes, "heavy …" as what took long, "held N" with N bytes and something to hold.
struct Stub {
    gate: Semaphore,
    /// One permit less for each answer that holds something.
    holding: Arc<Semaphore>,
    under_way: AtomicUsize,
    under_way_most: AtomicUsize,
    ended: AtomicUsize,
    /// Answers that were heavy, or hold something.
    heavy: AtomicUsize,
}

/// Answers that may hold something at once.
const HOLDING_MAX: usize = 500;

impl Service for Stub {
    fn call(self: &Arc<Self>, session: &Arc<Session>, call: Call) -> Answering {
        match call {
            Call::Hello(()) => Answering::Now(Reply::Hello(Ok("0".to_owned()))),
            Call::GetServerId(()) => Answering::Now(Reply::GetServerId(Ok(7))),
            Call::Get(request) => self.get(request.key.unwrap_or_default()),
            Call::Put(request) => {
                let length = request.value.map_or(0, |value| value.len());
                Answering::Now(Reply::Put(Ok(WriteResult::new(length as i64, 1, None))))
            }
            Call::Greet(hello) => {
                session.answer_out_of_order();
                session.set_peer(NodeId(hello.caller.unwrap_or_default() as u32));
                Answering::Now(Reply::Greet(Ok(PeerWelcome::default())))
            }
            Call::Ping(_) => {
                assert_eq!(session.peer(), Some(NodeId(3)));
                Answering::Now(Reply::Ping(Ok(PeerPong::default())))
            }
            other => panic!("the stub does not know {other:?}"),
        }
    }
}

impl Stub {
    fn get(self: &Arc<Self>, key: Vec<u8>) -> Answering {
        let text = String::from_utf8(key.clone()).unwrap();
        let mut words = text.split(' ');
        let (how, number) = (words.next().unwrap(), words.next().and_then(|word| word.parse().ok()));
        match how {
            "big" => Answering::Now(got(vec![7; number.unwrap() as usize])),
            "heavy" => {
                self.heavy.fetch_add(1, Ordering::SeqCst);
                Answering::Heavy(got(key), None)
            }
            "held" => {
                let stub = self.clone();
                Answering::Later(Box::pin(async move {
                    stub.heavy.fetch_add(1, Ordering::SeqCst);
                    let held = stub.holding.clone().try_acquire_owned().unwrap();
                    (got(vec![7; number.unwrap() as usize]), Some(Box::new(held) as Box<_>))
                }))
            }
            "later" => self.later(key, sleep(Duration::from_millis(number.unwrap()))),
            "gate" => {
                let stub = self.clone();
                self.later(key, async move { stub.gate.acquire().await.unwrap().forget() })
            }
            "busy" => {
                let stub = self.clone();
                self.later(key, async move {
                    while stub.gate.available_permits() == 0 {
                        tokio::task::consume_budget().await;
                    }
                })
            }
            _ => Answering::Now(got(key)),
        }
    }

    fn later(self: &Arc<Self>, key: Vec<u8>, when: impl Future<Output = ()> + Send + 'static) -> Answering {
        let stub = self.clone();
        let under_way = stub.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        stub.under_way_most.fetch_max(under_way, Ordering::SeqCst);
        Answering::Later(Box::pin(async move {
            when.await;
            stub.under_way.fetch_sub(1, Ordering::SeqCst);
            stub.ended.fetch_add(1, Ordering::SeqCst);
            (got(key), None)
        }) as Pin<Box<_>>)
    }
}

fn got(value: Vec<u8>) -> Reply {
    Reply::Get(Ok(GetResult { value: Some(value), ..GetResult::default() }))
}

// -------------------------------------------------------------------------------------------------------- the server

struct Running {
    address: SocketAddr,
    stub: Arc<Stub>,
    limits: Arc<Limits>,
    stats: Arc<Stats>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

async fn start() -> Running {
    start_with(|_| {}).await
}

async fn start_with(change: impl FnOnce(&mut Limits)) -> Running {
    let mut limits = Limits::from(&Config::default());
    change(&mut limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stub = Arc::new(Stub {
        gate: Semaphore::new(0),
        holding: Arc::new(Semaphore::new(HOLDING_MAX)),
        under_way: AtomicUsize::new(0),
        under_way_most: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
        heavy: AtomicUsize::new(0),
    });
    let (limits, stats) = (Arc::new(limits), Arc::new(Stats::default()));
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(listener, stub.clone(), limits.clone(), stats.clone(), stopped));
    Running { address, stub, limits, stats, stop, task }
}

impl Running {
    async fn connect(&self, dress: Dress) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let bounds = Bounds { bytes_max: 100_000_000, depth_max: 64 };
        Client { stream, dress, splitter: Splitter::new(bounds), input: BytesMut::new() }
    }

    /// A client that speaks the classic dress.
    async fn classic(&self) -> Client {
        self.connect(Dress::unframed(Protocol::Binary)).await
    }

    async fn must_be_alive_and_small(&self) {
        let mut client = self.classic().await;
        assert_eq!(client.ask::<Hello>(1, &()).await, "0");
        let resident = resident_bytes();
        assert!(resident < 600_000_000, "{resident} bytes resident"); // of all tests of this process together
    }

    async fn until_broken(&self, connections: u64) {
        eventually(|| self.stats.connections_broken.get() == connections).await;
    }
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

async fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came");
        sleep(Duration::from_millis(2)).await;
    }
}

// -------------------------------------------------------------------------------------------------------- the client

struct Client {
    stream: TcpStream,
    dress: Dress,
    splitter: Splitter,
    input: BytesMut,
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends bytes that the server may refuse while they are still on their way.
    async fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next whole message; `None` at the end of the connection, however it ended.
    async fn next(&mut self) -> Option<Vec<u8>> {
        timeout(HANG, self.next_or_hang()).await.expect("an answer or the end")
    }

    async fn next_or_hang(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Split::Message { dress, body } = self.splitter.split(&self.input).unwrap() {
                assert_eq!(dress, self.dress, "an answer wears what its call wore");
                let message = self.input[body.clone()].to_vec();
                self.input.advance(body.end);
                return Some(message);
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(bytes) if bytes > 0 => {}
                _ => return None,
            }
        }
    }

    async fn reply<M: Method>(
        &mut self,
        sequence: i32,
    ) -> Result<Result<M::Response, M::Thrown>, ReplyError> {
        let message = self.next().await.expect("an answer");
        read_reply::<M>(self.dress.protocol, sequence, &message)
    }

    async fn ask<M: Method>(&mut self, sequence: i32, request: &M::Request) -> M::Response {
        let bytes = call::<M>(self.dress, sequence, request);
        self.send(&bytes).await;
        self.reply::<M>(sequence).await.unwrap().ok().expect("no exception")
    }

    /// The value that answers the `get` with this sequence number.
    async fn value(&mut self, sequence: i32) -> Vec<u8> {
        self.reply::<Get>(sequence).await.unwrap().unwrap().value.unwrap()
    }

    async fn must_be_closed(&mut self) {
        while self.next().await.is_some() {}
    }
}

fn call<M: Method>(dress: Dress, sequence: i32, request: &M::Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    dress.wrap(&mut bytes, |protocol, out| write_call::<M>(protocol, sequence, request, out));
    bytes
}

fn get(dress: Dress, sequence: i32, key: &str) -> Vec<u8> {
    let request = GetRequest { key: Some(key.as_bytes().to_vec()), ..GetRequest::default() };
    call::<Get>(dress, sequence, &request)
}

fn put(dress: Dress, sequence: i32, value_bytes: usize) -> Vec<u8> {
    let (key, value) = (Some(b"k".to_vec()), Some(vec![9; value_bytes]));
    call::<Put>(dress, sequence, &PutRequest { key, value, ..PutRequest::default() })
}

fn all_dresses() -> Vec<Dress> {
    BOTH.into_iter()
        .flat_map(|protocol| {
            [Dress::unframed(protocol), Dress::framed(protocol), Dress::header(protocol, 77)]
        })
        .collect()
}

const CLASSIC: Protocol = Protocol::Binary;

/// A call of `name` in the classic dress, up to its arguments: `arguments` are bytes of the wire.
fn raw_call(name: &str, arguments: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, 1, 0, 1];
    bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 1]);
    bytes.extend_from_slice(arguments);
    bytes
}

// ------------------------------------------------------------------------------------------------- calls and answers

#[tokio::test]
async fn every_dress_is_answered_in_kind() {
    let server = start().await;
    for dress in all_dresses() {
        let mut client = server.connect(dress).await;
        assert_eq!(client.ask::<Hello>(1, &()).await, "0");
        assert_eq!(client.ask::<GetServerId>(-2, &()).await, 7);
        for key in ["now x", "later 5 x"] {
            client.send(&get(dress, 3, key)).await;
            assert_eq!(client.value(3).await, key.as_bytes());
        }
        client.send(&put(dress, 4, 3_000_000)).await;
        let written = client.reply::<Put>(4).await.unwrap().unwrap();
        assert_eq!(written.stamp, Some(3_000_000));
        client.send(&get(dress, 5, "big 3000000")).await;
        assert_eq!(client.value(5).await.len(), 3_000_000);
    }
    assert_eq!(server.stats.connections_broken.get(), 0);
}

#[tokio::test]
async fn single_bytes_are_as_good_as_a_message() {
    let server = start().await;
    for dress in all_dresses() {
        let mut client = server.connect(dress).await;
        client.stream.set_nodelay(true).unwrap();
        for sequence in 0..2 {
            for byte in put(dress, sequence, 100) {
                client.send(&[byte]).await;
                tokio::task::yield_now().await;
            }
            assert_eq!(client.reply::<Put>(sequence).await.unwrap().unwrap().stamp, Some(100));
        }
    }
}

#[tokio::test]
async fn long_messages_in_pieces_and_back_to_back_are_read() {
    let server = start().await;
    for dress in all_dresses() {
        let mut client = server.connect(dress).await;
        let lengths = [70_000, 10, 20_000, 1_500_000, 0, 65_536, 16_300];
        let bytes: Vec<u8> =
            lengths.iter().zip(0..).flat_map(|(length, sequence)| put(dress, sequence, *length)).collect();
        for piece in bytes.chunks(9_973) {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
        for (length, sequence) in lengths.iter().zip(0..) {
            let written = client.reply::<Put>(sequence).await.unwrap().unwrap();
            assert_eq!(written.stamp, Some(*length as i64));
        }
    }
    eventually(|| server.limits.buffered.used() == 0).await;
}

#[tokio::test]
async fn a_thousand_pipelined_calls_are_answered_in_order() {
    let server = start().await;
    for dress in all_dresses() {
        let mut client = server.connect(dress).await;
        let keys: Vec<String> = (0..1000)
            .map(|index| match index % 10 {
                0 => format!("later {} {index}", (1000 - index) % 17), // so that they end out of order
                _ => format!("now {index}"),
            })
            .collect();
        let bytes: Vec<u8> =
            keys.iter().zip(0..).flat_map(|(key, sequence)| get(dress, sequence, key)).collect();
        client.send(&bytes).await;
        for (key, sequence) in keys.iter().zip(0..) {
            assert_eq!(client.value(sequence).await, key.as_bytes());
        }
    }
}

#[tokio::test]
async fn a_refusal_waits_for_its_turn_as_well() {
    let server = start().await;
    let mut client = server.classic().await;
    client.send(&get(client.dress, 1, "gate")).await;
    client.send(&raw_call("nope", &[0])).await;
    client.send(&get(client.dress, 3, "now")).await;
    eventually(|| server.stub.under_way.load(Ordering::SeqCst) == 1).await;
    server.stub.gate.add_permits(1);
    assert_eq!(client.value(1).await, b"gate");
    assert!(matches!(client.reply::<Get>(1).await, Err(ReplyError::Application(_))));
    assert_eq!(client.value(3).await, b"now");
}

#[tokio::test]
async fn calls_under_way_are_bounded_and_all_are_answered() {
    let server = start_with(|limits| limits.calls_per_connection_max = 4).await;
    let mut client = server.classic().await;
    let bytes: Vec<u8> = (0..300).flat_map(|sequence| get(client.dress, sequence, "later 1")).collect();
    client.send(&bytes).await;
    for sequence in 0..300 {
        client.value(sequence).await;
    }
    assert_eq!(server.stub.under_way_most.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn heavy_calls_of_one_connection_leave_the_others_their_turn() {
    for key in ["heavy", "held 1"] {
        let server = start().await;
        let (mut greedy, mut other) = (server.classic().await, server.classic().await);
        assert_eq!(greedy.ask::<Hello>(0, &()).await, "0");
        assert_eq!(other.ask::<Hello>(0, &()).await, "0");
        let calls: Vec<u8> = (0..500).flat_map(|sequence| get(greedy.dress, sequence, key)).collect();
        greedy.send(&calls).await;
        assert_eq!(other.ask::<Hello>(1, &()).await, "0");
        let answered = server.stub.heavy.load(Ordering::SeqCst);
        assert!(answered < 30, "'{key}' was answered {answered} times before another connection's turn");
        for sequence in 0..500 {
            greedy.value(sequence).await;
        }
    }
}

#[tokio::test]
async fn answers_leave_while_a_call_uses_up_every_turn() {
    let server = start().await;
    let mut client = server.classic().await;
    client.send(&[get(client.dress, 1, "now"), get(client.dress, 2, "busy")].concat()).await;
    assert_eq!(client.value(1).await, b"now");
    server.stub.gate.add_permits(1);
    assert_eq!(client.value(2).await, b"busy");
}

#[tokio::test]
async fn a_peer_is_answered_as_answers_come_and_has_its_own_bound() {
    let server = start_with(|limits| {
        limits.calls_per_connection_max = 1;
        limits.peer_calls_max = 3;
    })
    .await;
    let dress = Dress::framed(Protocol::Compact);
    let mut peer = server.connect(dress).await;
    peer.ask::<Greet>(1, &PeerHello { caller: Some(3), ..PeerHello::default() }).await;
    let calls = [get(dress, 2, "gate"), get(dress, 3, "later 20"), get(dress, 4, "now")].concat();
    peer.send(&calls).await;
    assert_eq!(peer.value(4).await, b"now");
    assert_eq!(peer.value(3).await, b"later 20");
    peer.ask::<Ping>(5, &PeerPing::default()).await;
    server.stub.gate.add_permits(1);
    assert_eq!(peer.value(2).await, b"gate");
}

#[tokio::test]
async fn oneway_calls_are_run_and_not_answered() {
    let server = start().await;
    let mut client = server.classic().await;
    for key in ["now", "later 1"] {
        let mut bytes = get(client.dress, 1, key);
        bytes[3] = 4; // the type of the message
        client.send(&bytes).await;
    }
    let mut unknown = raw_call("nope", &[0]);
    unknown[3] = 4;
    client.send(&unknown).await;
    assert_eq!(client.ask::<Hello>(9, &()).await, "0");
    assert_eq!(server.stub.ended.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn unknown_methods_and_unreadable_arguments_leave_the_connection_alive() {
    let server = start().await;
    for dress in all_dresses() {
        let mut client = server.connect(dress).await;
        let mut unknown = Vec::new();
        dress.wrap(&mut unknown, |protocol, out| {
            let start = out.len();
            write_call::<Hello>(protocol, 1, &(), out);
            let at = start + out[start..].windows(5).position(|window| window == b"hello").unwrap();
            out[at..at + 5].copy_from_slice(b"nello");
        });
        client.send(&unknown).await;
        match client.reply::<Hello>(1).await {
            Err(ReplyError::Application(why)) => assert!(why.contains("'nello'"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(client.ask::<Hello>(2, &()).await, "0");
    }
    let mut client = server.classic().await;
    for (name, arguments) in [
        ("serverGet", &[12, 0, 1, 10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0][..]), // key as i64
        ("serverGet", &[8, 0, 1, 0, 0, 0, 5, 0]),                               // kv as i32
        ("serverGet", &[0]),                                                    // no kv
        ("serverPut", &[12, 0, 1, 11, 0, 2, 0, 0, 0, 2, 0xff, 0xfe, 0, 0]),     // text that is none
    ] {
        client.send(&raw_call(name, arguments)).await;
        match client.next().await.map(|reply| read_reply::<ServerGet>(CLASSIC, 1, &reply)) {
            Some(Ok(Err(SystemException { message: Some(why) }))) => {
                assert!(why.starts_with("cannot read the request: "), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    client.send(&raw_call("peerPing", &[8, 0, 1, 0, 0, 0, 5, 0])).await; // declares no exception
    assert!(matches!(client.reply::<Ping>(1).await, Err(ReplyError::Application(_))));
    assert_eq!(client.ask::<Hello>(2, &()).await, "0");
    assert_eq!(server.stats.connections_broken.get(), 0);
}

#[tokio::test]
async fn half_a_close_is_answered_and_a_lost_client_stops_no_call() {
    let server = start().await;
    let mut client = server.classic().await;
    client.send(&get(client.dress, 1, "later 20")).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.value(1).await, b"later 20");
    client.must_be_closed().await;

    let mut lost = server.classic().await;
    lost.send(&get(lost.dress, 1, "gate")).await;
    eventually(|| server.stub.under_way.load(Ordering::SeqCst) == 1).await;
    lost.stream.set_zero_linger().unwrap();
    drop(lost);
    sleep(Duration::from_millis(20)).await;
    server.stub.gate.add_permits(1);
    eventually(|| server.stub.ended.load(Ordering::SeqCst) == 2).await;
}

// ------------------------------------------------------------------------------------------------------------ hostile

/// Starts of messages that must cost their connection, each with what it claims.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let compact = |rest: &[u8]| [&[0x82, 0x21, 1, 3, b'g', b'e', b't'], rest].concat();
    vec![
        ("a string of 2 GB", raw_call("get", &[11, 0, 1, 0x7f, 0xff, 0xff, 0xff])),
        ("a negative string", raw_call("get", &[11, 0, 1, 0xff, 0xff, 0xff, 0xff])),
        ("a list of 20 million", raw_call("get", &[15, 0, 1, 8, 0x01, 0x31, 0x2d, 0x00])),
        ("a list of 20 million structs", raw_call("batch", &[15, 0, 1, 12, 0x01, 0x31, 0x2d, 0x00])),
        ("a negative map", raw_call("get", &[13, 0, 1, 11, 11, 0x80, 0, 0, 0])),
        ("a name of 2 GB", vec![0x80, 1, 0, 1, 0x7f, 0xff, 0xff, 0xff]),
        ("a type that is none", raw_call("get", &[99, 0, 1])),
        ("a compact string of 2 GB", compact(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x07])),
        ("a compact list of 20 million", compact(&[0x19, 0xf5, 0x80, 0xda, 0xc4, 0x09])),
        (
            "an endless varint",
            compact(&[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ),
        ("10 million structs", raw_call("get", &[12, 0, 1].repeat(10_000_000))),
        ("10 million compact structs", compact(&vec![0x1c; 10_000_000])),
        ("a frame of 2 GB", vec![0x7f, 0xff, 0xff, 0xff]),
        ("a frame just past the bound", 20_000_001u32.to_be_bytes().to_vec()),
        ("a negative frame", vec![0xff; 4]),
        ("a frame of nothing", vec![0; 4]),
        ("a frame of text", b"\0\0\0\x05hello".to_vec()),
        ("a call cut short by its frame", framed_bytes(&raw_call("get", &[]))[..].to_vec()),
        ("a framed name of 2 GB", framed_bytes(&[0x80, 1, 0, 1, 0x7f, 0xff, 0xff, 0xff])),
        ("a name of 300 bytes", raw_call(&"n".repeat(300), &[0])),
        ("a reply", {
            let mut bytes = raw_call("get", &[0]);
            bytes[3] = 2;
            bytes
        }),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
    ]
}

fn framed_bytes(message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    framed(&mut bytes, |out| out.extend_from_slice(message));
    bytes
}

/// Messages that can be told to be wrong only when their arguments are read: they are answered.
const ONLY_UNREADABLE: [&str; 1] = ["a call cut short by its frame"];

#[tokio::test]
async fn bombs_cost_their_connection_and_nothing_else() {
    let server = start().await;
    let mut bystander = server.classic().await;
    for (broken, (what, bytes)) in
        bombs().into_iter().filter(|(what, _)| !ONLY_UNREADABLE.contains(what)).enumerate()
    {
        let mut client = server.classic().await;
        client.try_send(&bytes).await;
        let mut all = Vec::new();
        let end = timeout(HANG, client.stream.read_to_end(&mut all)).await;
        assert!(end.is_ok(), "{what} did not end its connection");
        server.until_broken(broken as u64 + 1).await;
        assert_eq!(bystander.ask::<Hello>(1, &()).await, "0", "after {what}");
    }
    server.must_be_alive_and_small().await;
}

#[tokio::test]
async fn what_a_frame_cuts_short_is_answered_and_the_connection_lives() {
    let server = start().await;
    let dress = Dress::framed(Protocol::Binary);
    let mut client = server.connect(dress).await;
    for arguments in [
        &[][..],
        &[11, 0, 1, 0x7f, 0xff, 0xff, 0xff],     // a string of 2 GB
        &[15, 0, 9, 12, 0x01, 0x31, 0x2d, 0x00], // an unknown list of 20 million structs
        &[12, 0, 1, 15, 0, 1, 12, 0x01, 0x31, 0x2d, 0x00], // and where a list is expected
        &[12, 0, 9].repeat(1_000_000),           // deep nesting in an unknown field
    ] {
        client.send(&framed_bytes(&raw_call("batch", arguments))).await;
        let refused = client.reply::<Batch>(1).await.unwrap().unwrap_err();
        assert!(matches!(refused, Refusal::InvalidRequest(_)), "{refused:?}");
    }
    assert_eq!(client.ask::<Hello>(2, &()).await, "0");
    server.must_be_alive_and_small().await;
}

#[tokio::test]
async fn calls_before_broken_bytes_are_answered_and_the_sender_is_told() {
    let server = start().await;
    let mut client = server.classic().await;
    let mut bytes = get(client.dress, 1, "later 5");
    bytes.extend_from_slice(&raw_call("get", &[99, 0, 1]));
    client.send(&bytes).await;
    assert_eq!(client.value(1).await, b"later 5");
    match client.reply::<Get>(0).await {
        Err(ReplyError::Application(why)) => assert_eq!(why, "the wire type 99 does not exist"),
        other => panic!("{other:?}"),
    }
    client.must_be_closed().await;
}

#[tokio::test]
async fn header_transforms_are_refused_in_words() {
    let server = start().await;
    let dress = Dress::header(Protocol::Compact, 5);
    let mut client = server.connect(dress).await;
    let mut bytes = call::<Hello>(dress, 1, &());
    bytes[4 + 11] = 1; // one transform
    bytes[4 + 12] = 1; // zlib
    client.send(&bytes).await;
    match client.reply::<Hello>(0).await {
        Err(ReplyError::Application(why)) => assert!(why.contains("zlib"), "{why}"),
        other => panic!("{other:?}"),
    }
    client.must_be_closed().await;
    server.until_broken(1).await;
}

#[tokio::test]
async fn garbage_never_kills_the_server() {
    let server = start_with(|limits| limits.half_message_timeout = Duration::from_millis(50)).await;
    let mut chance = fastrand::Rng::with_seed(4711);
    for round in 0..150 {
        let mut garbage: Vec<u8> = (0..chance.usize(1..2000)).map(|_| chance.u8(..)).collect();
        let start: &[u8] = match round % 5 {
            0 => &[0x80, 1, 0, 1, 0, 0, 0, 3, b'g', b'e', b't', 0, 0, 0, 1],
            1 => &[0x82, 0x21, 1, 3, b'g', b'e', b't'],
            2 => &[0, 0, 1, 0, 0x0f, 0xff],
            3 => &[0, 0, 1, 0, 0x80, 1, 0, 1],
            _ => &[],
        };
        garbage.splice(0..0, start.iter().copied());
        let mut client = server.classic().await;
        client.try_send(&garbage).await;
        let _ = client.stream.shutdown().await;
        let mut answers = Vec::new();
        timeout(HANG, client.stream.read_to_end(&mut answers)).await.expect("an end").ok();
    }
    server.must_be_alive_and_small().await;
}

#[tokio::test]
async fn a_valid_call_with_any_byte_broken_never_kills_the_server() {
    let server = start().await;
    for dress in all_dresses() {
        let bytes = get(dress, 1, "now and then");
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 0x55;
            let mut client = server.connect(dress).await;
            client.try_send(&broken).await;
            let _ = client.stream.shutdown().await;
            let mut answers = Vec::new();
            timeout(HANG, client.stream.read_to_end(&mut answers)).await.expect("an end").ok();
        }
    }
    server.must_be_alive_and_small().await;
}

#[tokio::test]
async fn half_a_message_and_then_silence_ends_the_connection() {
    let server = start_with(|limits| limits.half_message_timeout = Duration::from_millis(100)).await;
    for (broken, dress) in all_dresses().into_iter().enumerate() {
        let mut client = server.connect(dress).await;
        assert_eq!(client.ask::<Hello>(1, &()).await, "0");
        let bytes = put(dress, 2, 100_000);
        client.send(&bytes[..bytes.len() / (broken + 1) - 1]).await;
        client.must_be_closed().await;
        server.until_broken(broken as u64 + 1).await;
    }
    server.must_be_alive_and_small().await;
}

#[tokio::test]
async fn silence_between_messages_ends_an_idle_connection_and_no_call() {
    let server = start_with(|limits| limits.idle_timeout = Duration::from_millis(100)).await;
    let mut silent = server.classic().await;
    silent.must_be_closed().await;
    let mut waiting = server.classic().await;
    waiting.send(&get(waiting.dress, 1, "later 400")).await;
    assert_eq!(waiting.value(1).await, b"later 400");
    waiting.must_be_closed().await;
    server.until_broken(2).await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_bounded_and_then_closed() {
    let server = start_with(|limits| limits.half_message_timeout = Duration::from_millis(500)).await;
    let mut slow = server.classic().await;
    let calls: Vec<u8> = (0..200).flat_map(|sequence| get(slow.dress, sequence, "big 1000000")).collect();
    slow.send(&calls).await;
    let mut most = 0;
    let deadline = Instant::now() + HANG;
    while server.stats.connections_broken.get() == 0 {
        assert!(Instant::now() < deadline);
        most = most.max(server.limits.buffered.used());
        sleep(Duration::from_millis(1)).await;
    }
    assert!((500_000..8_000_000).contains(&most), "{most} bytes unsent"); // a megabyte, an answer, what a Vec has spare
    eventually(|| server.limits.buffered.used() == 0).await;
    server.must_be_alive_and_small().await;
}

#[tokio::test]
async fn answers_that_wait_for_an_earlier_one_are_bounded() {
    let server = start().await;
    let mut client = server.classic().await;
    let gate = get(client.dress, 0, "gate");
    let calls = (1..=200).flat_map(|sequence| get(client.dress, sequence, "big 1000000"));
    let calls: Vec<u8> = gate.into_iter().chain(calls).collect();
    client.send(&calls).await;
    let used = || server.limits.buffered.used();
    eventually(|| used() > 500_000).await;
    for _ in 0..100 {
        assert!(used() < 8_000_000, "{} bytes wait", used());
        sleep(Duration::from_millis(1)).await;
    }
    server.stub.gate.add_permits(1);
    assert_eq!(client.value(0).await, b"gate");
    for sequence in 1..=200 {
        assert_eq!(client.value(sequence).await.len(), 1_000_000);
    }
}

#[tokio::test]
async fn what_an_answer_holds_is_given_back_when_it_has_left() {
    let server = start().await;
    let mut slow = server.classic().await;
    slow.send(&get(slow.dress, 1, "held 20000000")).await;
    eventually(|| server.limits.buffered.used() > 10_000_000).await;
    assert_eq!(server.stub.holding.available_permits(), HOLDING_MAX - 1);
    assert_eq!(slow.value(1).await.len(), 20_000_000);
    eventually(|| server.stub.holding.available_permits() == HOLDING_MAX).await;
}

#[tokio::test]
async fn a_slow_reader_gets_every_answer() {
    let server = start().await;
    for dress in [Dress::unframed(Protocol::Binary), Dress::framed(Protocol::Compact)] {
        let mut slow = server.connect(dress).await;
        let keys = ["big 700000", "later 3", "big 1500000", "now"];
        let calls: Vec<u8> =
            (0..40).flat_map(|sequence| get(dress, sequence, keys[sequence as usize % 4])).collect();
        slow.send(&calls).await;
        for sequence in 0..40 {
            sleep(Duration::from_millis(3)).await;
            let value = slow.value(sequence).await;
            match sequence % 4 {
                0 => assert_eq!(value.len(), 700_000),
                2 => assert_eq!(value.len(), 1_500_000),
                other => assert_eq!(value, keys[other as usize].as_bytes()),
            }
        }
    }
    eventually(|| server.limits.buffered.used() == 0).await;
}

#[tokio::test]
async fn past_the_budget_short_calls_go_on_and_long_messages_take_turns() {
    let server = start_with(|limits| limits.buffered = Budget::new(1_000_000)).await;
    let dress = Dress::framed(Protocol::Binary);
    let long = put(dress, 1, 900_000);
    let mut hogs = Vec::new();
    for _ in 0..8 {
        let mut hog = server.connect(dress).await;
        hog.send(&long[..500_000]).await; // the sockets take what the server does not
        hogs.push(hog);
    }
    eventually(|| server.limits.buffered.used() > 900_000).await;
    let mut short = server.connect(dress).await;
    assert_eq!(short.ask::<Hello>(1, &()).await, "0");
    let used = server.limits.buffered.used();
    assert!(used <= 3_000_000, "{used} bytes held"); // the budget, one message over it, what buffers have spare
    for given_up in hogs.drain(..4) {
        drop(given_up);
    }
    let ends = hogs.iter_mut().map(|hog| async {
        hog.send(&long[500_000..]).await;
        assert_eq!(hog.reply::<Put>(1).await.unwrap().unwrap().stamp, Some(900_000));
    });
    futures_util::future::join_all(ends).await;
    eventually(|| server.limits.buffered.used() == 0).await;
}

#[tokio::test]
async fn past_the_budget_halves_of_short_messages_take_turns_as_well() {
    let server = start_with(|limits| limits.buffered = Budget::new(200_000)).await;
    let dress = Dress::framed(Protocol::Binary);
    let message = put(dress, 1, 60_000);
    let mut hogs = Vec::new();
    for _ in 0..40 {
        let mut hog = server.connect(dress).await;
        hog.send(&message[..59_000]).await;
        hogs.push(hog);
    }
    let used = || server.limits.buffered.used();
    eventually(|| used() > 500_000).await;
    for _ in 0..100 {
        // The budget, 16 KiB of each, one that overdraws. All of them together sent 2.3 MB.
        assert!(used() < 1_200_000, "{} bytes held", used());
        sleep(Duration::from_millis(1)).await;
    }
    for hog in &mut hogs {
        hog.send(&message[59_000..]).await;
    }
    for hog in &mut hogs {
        assert_eq!(hog.reply::<Put>(1).await.unwrap().unwrap().stamp, Some(60_000));
    }
    eventually(|| used() == 0).await;
}

#[tokio::test]
async fn idle_connections_hold_no_buffer() {
    let server = start().await;
    let mut clients = Vec::new();
    let before = resident_bytes();
    for _ in 0..300 {
        let mut client = server.classic().await;
        assert_eq!(client.ask::<Hello>(1, &()).await, "0");
        clients.push(client);
    }
    eventually(|| server.limits.buffered.used() == 0).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 300_000_000, "{grown} bytes for 300 connections"); // the other tests' growth is in it
}

#[tokio::test]
async fn past_the_bound_only_servers_are_let_in() {
    let server = start_with(|limits| {
        (limits.connections_max, limits.server_connections_max) = (1, 2);
        limits.greeting_timeout = HANG;
    })
    .await;
    let mut client = server.classic().await;
    client.ask::<Hello>(1, &()).await;
    let mut second = server.classic().await;
    second.try_send(&call::<Hello>(second.dress, 1, &())).await;
    second.must_be_closed().await;
    assert_eq!(server.stats.connections_refused.get(), 1);
    let mut peers = Vec::new();
    for sequence in 1..=2 {
        let mut peer = server.classic().await;
        peer.ask::<Greet>(sequence, &PeerHello { caller: Some(1), ..PeerHello::default() }).await;
        assert_eq!(peer.ask::<Hello>(sequence, &()).await, "0");
        peers.push(peer);
    }
    server.classic().await.must_be_closed().await; // at once: there is no place to greet from
    assert_eq!(client.ask::<Hello>(2, &()).await, "0");
    assert_eq!(peers[0].ask::<Hello>(3, &()).await, "0");
    assert_eq!(server.stats.connections_refused.get(), 2);
}

#[tokio::test]
async fn past_the_bound_whoever_says_nothing_is_refused() {
    let server = start_with(|limits| {
        limits.connections_max = 0;
        limits.greeting_timeout = Duration::from_millis(50);
    })
    .await;
    server.classic().await.must_be_closed().await;
    assert_eq!(server.stats.connections_refused.get(), 1);
}

#[tokio::test]
async fn a_server_that_greeted_past_the_bound_stays() {
    let limit = Duration::from_secs(5);
    let server = start_with(|limits| (limits.connections_max, limits.greeting_timeout) = (0, limit)).await;
    let mut peer = server.classic().await;
    peer.ask::<Greet>(1, &PeerHello { caller: Some(1), ..PeerHello::default() }).await;
    server.classic().await.must_be_closed().await; // it came later, and its time is up
    assert_eq!(peer.ask::<Hello>(2, &()).await, "0");
    assert_eq!(server.stats.connections_refused.get(), 1);
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once_and_room_is_found_again() {
    let server = start_with(|limits| (limits.connections_max, limits.server_connections_max) = (3, 0)).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = server.classic().await;
        client.ask::<Hello>(1, &()).await;
        clients.push(client);
    }
    for _ in 0..5 {
        server.classic().await.must_be_closed().await;
    }
    assert_eq!(server.stats.connections_refused.get(), 5);
    assert_eq!(clients[0].ask::<Hello>(2, &()).await, "0");
    clients.pop();
    let deadline = Instant::now() + HANG;
    loop {
        let mut client = server.classic().await;
        client.try_send(&call::<Hello>(client.dress, 1, &())).await;
        if client.next().await.is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "the room of a closed connection was never found");
    }
}

#[tokio::test]
async fn a_panic_of_the_service_costs_one_connection() {
    let server = start().await;
    let mut client = server.classic().await;
    client.send(&call::<Describe>(client.dress, 1, &())).await; // not known to the stub
    client.must_be_closed().await;
    server.must_be_alive_and_small().await;
}

// ----------------------------------------------------------------------------------------------------------- stopping

#[tokio::test]
async fn stopping_answers_what_is_under_way_and_takes_nothing_more() {
    let server = start().await;
    let mut idle = server.classic().await;
    idle.ask::<Hello>(1, &()).await;
    let mut busy = server.classic().await;
    busy.send(&get(busy.dress, 1, "gate")).await;
    eventually(|| server.stub.under_way.load(Ordering::SeqCst) == 1).await;
    server.stop.send(true).unwrap();
    idle.must_be_closed().await;
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens");
    server.stub.gate.add_permits(1);
    assert_eq!(busy.value(1).await, b"gate");
    busy.must_be_closed().await;
    timeout(HANG, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn stopping_waits_no_longer_than_it_may() {
    let server = start_with(|limits| limits.stop_timeout = Duration::from_millis(50)).await;
    let mut busy = server.classic().await;
    busy.send(&get(busy.dress, 1, "gate")).await;
    eventually(|| server.stub.under_way.load(Ordering::SeqCst) == 1).await;
    server.stop.send(true).unwrap();
    timeout(HANG, server.task).await.unwrap().unwrap();
    busy.must_be_closed().await;
}

#[tokio::test]
async fn the_sequence_number_comes_back_in_every_dress() {
    let server = start().await;
    for dress in all_dresses() {
        let mut client = server.connect(dress).await;
        for sequence in [0, 1, -1, i32::MAX, i32::MIN] {
            client.send(&call::<Hello>(dress, sequence, &())).await;
            let reply = client.next().await.unwrap();
            assert_eq!(codec::reply_sequence(dress.protocol, &reply).unwrap(), sequence);
        }
    }
}

// -------------------------------------------------------------------------------------------- no descriptors are left

/// Runs the test below in a process of its own that may open few files.
#[test]
fn a_server_out_of_descriptors_waits_and_serves_on() {
    let status = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 48 && exec \"$0\" --ignored --exact few_descriptors"])
        .arg(std::env::current_exe().unwrap())
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
#[ignore = "needs a process with few descriptors; the test above makes one"]
async fn few_descriptors() {
    let server = start().await;
    let mut first = server.classic().await;
    assert_eq!(first.ask::<Hello>(1, &()).await, "0");
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    files.pop(); // one descriptor: the client's own half of the connection takes it, the server's finds none
    let mut late = server.classic().await;
    sleep(Duration::from_millis(120)).await; // a few failures to accept
    assert_eq!(first.ask::<Hello>(2, &()).await, "0");
    assert_eq!(server.stats.connections_accepted.get(), 1, "there was no descriptor to accept with");
    drop(files);
    assert_eq!(late.ask::<Hello>(3, &()).await, "0");
}
