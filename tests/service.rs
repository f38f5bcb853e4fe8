//! Calls to one server's service without sockets: what large answers and waiting calls take of the bound on memory, how
//! long they keep it, and which calls give way to other connections.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::stream::{FuturesUnordered, Stream as _};

use tetrachord::answer::NodeId;
use tetrachord::clock::Clock;
use tetrachord::config::Config;
use tetrachord::node::{Core, CoreOptions};
use tetrachord::nodes::Nodes;
use tetrachord::peer::Links;
use tetrachord::store::{Disk, Drive};
use tetrachord::thrift::chord::*;
use tetrachord::thrift::connection::{Answering, Held, Service as _, Session};
use tetrachord::thrift::method::{Call, Refusal, Reply};

/// From here on an answer is counted.
const LARGE: usize = 65_536;

struct Server {
    core: Core,
    session: Arc<Session>,
    _data: tempfile::TempDir,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Config)) -> Server {
        let mut config = Config::default();
        change(&mut config);
        let config = Arc::new(config);
        let nodes = Nodes::parse("127.0.0.1:1\n", Path::new("nodes.txt")).unwrap();
        let data = tempfile::tempdir().unwrap();
        let options = CoreOptions {
            config: config.clone(),
            nodes: nodes.clone(),
            id: NodeId(0),
            generation: 1,
            earlier_wall_us: 0,
            data: data.path().to_owned(),
            disk: Disk::real(),
            drive: Drive::task(),
            clock: Arc::new(Clock::machine(0)),
        };
        let (core, _) = Core::start(options, |point| Links::start(point, &nodes, &config)).unwrap();
        core.service.reconciler.introduced(config.connect_timeout()).await; // until then it answers no reads
        let session = Arc::new(Session::new("127.0.0.1:9".parse().unwrap()));
        Server { core, session, _data: data }
    }

    fn call(&self, call: Call) -> Answering {
        self.core.service.call(&self.session, call)
    }

    /// The answer to a call, and what it holds.
    async fn ask(&self, call: Call) -> (Reply, Held) {
        match self.call(call) {
            Answering::Now(reply) => (reply, None),
            Answering::Heavy(reply, held) => (reply, held),
            Answering::Later(reply) => reply.await,
        }
    }

    async fn put(&self, key: u8, value: Vec<u8>) {
        let (reply, _) = self.ask(Call::Put(put(key, value))).await;
        assert!(matches!(reply, Reply::Put(Ok(_))), "{reply:?}");
        self.until_only(0).await;
    }

    /// Requests under way, and their bytes.
    fn under_way(&self) -> (i64, usize) {
        let gauges = self.core.coordinator.gauges();
        let of = |name| gauges.iter().find(|(gauge, _)| *gauge == name).unwrap().1;
        (of("requests_under_way"), of("requests_under_way_bytes") as usize)
    }

    /// Waits until no more than this many requests are under way: a share may be given back after its answer.
    async fn until_only(&self, requests: i64) {
        while self.under_way().0 > requests {
            tokio::task::yield_now().await;
        }
    }
}

fn put(key: u8, value: Vec<u8>) -> PutRequest {
    PutRequest::new(vec![key], value, None, None, None, None)
}

fn get(key: u8) -> GetRequest {
    GetRequest::new(vec![key], None, None)
}

fn kv(key: u8) -> KV {
    KV::new(i32::from(key), None, None)
}

fn batch_of(operations: Vec<Operation>) -> Call {
    Call::Batch(BatchRequest { operations: Some(operations) })
}

fn gets(keys: impl Iterator<Item = u8>) -> Call {
    batch_of(keys.map(|key| Operation::new(None, get(key), None)).collect())
}

fn outcomes(reply: Reply) -> Vec<Outcome> {
    let Reply::Batch(Ok(result)) = reply else { panic!("{reply:?}") };
    result.outcomes.unwrap()
}

#[tokio::test]
async fn what_walks_the_store_or_may_be_long_gives_way() {
    let server = Server::start(|_| {}).await;
    server.put(1, vec![b'x'; LARGE]).await;
    for call in [
        Call::InspectDigest(DigestRequest::new(None, None, None)),
        Call::InspectPage(PageRequest::new(None, None, None, None)),
        Call::ServerGet(kv(1)),
        Call::GetStats(()),
        Call::Describe(()),
        Call::Get(get(1)),
    ] {
        let name = format!("{call:?}");
        assert!(matches!(server.call(call), Answering::Heavy(..)), "{name}");
    }
    assert!(matches!(server.call(Call::Get(get(2))), Answering::Now(_)), "the common case goes on");
}

/// How often it gives its thread back until it is done.
async fn pauses<F: Future>(work: F) -> usize {
    let mut work = pin!(work);
    let mut pauses = 0;
    std::future::poll_fn(|cx| {
        let done = work.as_mut().poll(cx).is_ready();
        pauses += usize::from(!done);
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    pauses
}

#[tokio::test]
async fn many_reads_of_one_call_give_way_now_and_then() {
    let server = Server::start(|_| {}).await;
    assert!(pauses(server.ask(gets((0..10_000).map(|_| 1)))).await >= 50);
    assert!(pauses(server.ask(Call::GetInfo(()))).await >= 1);
    server.put(1, vec![b'x'; 15_000_000]).await;
    assert!(pauses(server.ask(gets([1, 1].into_iter()))).await >= 2);
}

#[tokio::test]
async fn many_calls_that_read_large_values_are_not_done_in_one_turn() {
    let server = Server::start(|_| {}).await;
    server.put(1, vec![b'x'; 15_000_000]).await;
    let calls = FuturesUnordered::new();
    for _ in 0..10 {
        let classic = ClientRequest { const_level: Some("ONE".to_owned()), kv: Some(kv(1)) };
        let Answering::Later(call) = server.call(Call::ClientGet(classic)) else { panic!() };
        calls.push(call);
    }
    let mut calls = pin!(calls);
    let mut most = 0; // answers of one turn
    std::future::poll_fn(|cx| {
        for answers in 0.. {
            match calls.as_mut().poll_next(cx) {
                Poll::Ready(Some(_)) => most = most.max(answers + 1),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    })
    .await;
    assert!(most <= 2, "{most} in one turn");
}

#[tokio::test]
async fn large_answers_of_every_kind_are_counted_until_they_are_sent() {
    let server = Server::start(|config| config.requests_bytes_max = 2 * config.message_bytes_max).await;
    let length = 15_000_000;
    server.put(1, vec![b'x'; length]).await;
    let page = PageRequest::new(None, None, None, i32::MAX);
    let classic = ClientRequest { const_level: Some("ONE".to_owned()), kv: Some(kv(1)) };
    for call in [
        Call::Get(get(1)),
        Call::ClientGet(classic),
        Call::ServerGet(kv(1)),
        Call::InspectPage(page),
        gets([1].into_iter()),
    ] {
        let (first, held) = server.ask(call.clone()).await;
        assert!(server.under_way().1 >= length, "{call:?} holds {:?}", server.under_way());
        let (second, held_too) = server.ask(call.clone()).await;
        assert!(first == second, "{call:?} is answered alike");
        let (refused, nothing) = server.ask(call.clone()).await;
        assert!(format!("{refused:?}").contains("Overloaded"), "{:.200}", format!("{refused:?}"));
        assert!(nothing.is_none());
        drop((held, held_too));
        server.until_only(0).await;
        assert_eq!(server.under_way().1, 0, "{call:?}");
    }
}

#[tokio::test]
async fn short_answers_hold_nothing() {
    let server = Server::start(|_| {}).await;
    server.put(1, vec![b'x'; LARGE / 2]).await;
    for call in [Call::Get(get(1)), Call::ServerGet(kv(1)), Call::GetInfo(()), gets([1].into_iter())] {
        let (_, held) = server.ask(call).await;
        assert!(held.is_none());
        assert_eq!(server.under_way(), (0, 0));
    }
}

#[tokio::test]
async fn a_value_that_would_be_long_in_get_info_is_not_shown() {
    let server = Server::start(|_| {}).await;
    server.put(1, vec![1; 65_536]).await; // text, but each byte of it is \u0001 there
    server.put(2, vec![b'"'; 32_768]).await;
    server.put(3, vec![0xff; 32_769]).await;
    let (Reply::GetInfo(Ok(info)), held) = server.ask(Call::GetInfo(())).await else { panic!() };
    let shown: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(shown["kvMem"]["1"]["valueBytes"], 65_536);
    assert_eq!(shown["kvMem"]["2"]["value"].as_str().unwrap().len(), 32_768);
    assert_eq!(shown["kvMem"]["3"]["valueBytes"], 32_769);
    assert!(held.is_some());
    assert!(server.under_way().1 >= LARGE);
}

#[tokio::test]
async fn a_batch_is_charged_for_its_operations_and_for_every_value_it_gets() {
    let server = Server::start(|_| {}).await;
    let length = LARGE - 1;
    server.put(1, vec![7; length]).await;
    let (reply, held) = server.ask(gets((0..100).map(|_| 1))).await;
    assert_eq!(outcomes(reply).len(), 100);
    let (requests, bytes) = server.under_way();
    assert_eq!(requests, 1);
    assert_eq!(bytes, 100 * (length + size_of::<Outcome>()));
    drop(held);
    server.until_only(0).await;
}

#[tokio::test]
async fn values_that_a_batch_does_not_answer_are_not_kept() {
    let server = Server::start(|config| config.requests_bytes_max = config.message_bytes_max).await;
    let length = 6_000_000;
    server.put(1, vec![7; length]).await;
    let (reply, held) = server.ask(gets((0..20).map(|_| 1))).await;
    let outcomes = outcomes(reply);
    let got = outcomes.iter().filter(|outcome| outcome.got.is_some()).count();
    let refused = outcomes.iter().filter(|outcome| outcome.overloaded.is_some()).count();
    assert!((1..=3).contains(&got), "{got}");
    assert_eq!(got + refused, 20);
    assert_eq!(server.under_way(), (1, got * length + 20 * size_of::<Outcome>()));
    drop(held);
    assert_eq!(server.under_way(), (0, 0));
}

#[tokio::test]
async fn a_batch_of_many_short_operations_is_refused_while_there_is_no_room_for_it() {
    let server = Server::start(|config| config.requests_bytes_max = config.message_bytes_max).await;
    server.put(1, vec![b'x'; 16_000_000]).await;
    let (_, held) = server.ask(Call::Get(get(1))).await;
    let many = || gets((0..10_000).map(|_| 2));
    let (reply, _) = server.ask(many()).await;
    assert!(matches!(reply, Reply::Batch(Err(Refusal::Overloaded(_)))));
    drop(held);
    assert_eq!(outcomes(server.ask(many()).await.0).len(), 10_000);
}

#[tokio::test]
async fn calls_that_wait_for_the_others_are_counted_and_answered_when_the_wait_is_over() {
    let server = Server::start(|config| config.requests_bytes_max = config.message_bytes_max).await;
    server.core.look_round.send_replace(false);
    let long = || Call::Put(put(1, vec![7; 15_000_000]));
    let Answering::Later(first) = server.call(long()) else { panic!("it waits") };
    assert!(server.under_way().1 >= 15_000_000);
    let operations = vec![Operation::new(put(2, vec![7; 6_000_000]), None, None)];
    let text = KV { value: Some("x".repeat(6_000_000)), ..kv(3) };
    let classic = ClientRequest { const_level: None, kv: Some(text) };
    for call in [long(), batch_of(operations), Call::ClientPut(classic)] {
        let Answering::Now(refused) = server.call(call) else { panic!("there is no room for it") };
        assert!(format!("{refused:?}").contains("Overloaded"), "{refused:?}");
    }
    let Answering::Later(short) = server.call(Call::Get(get(1))) else { panic!("it waits") };
    server.core.look_round.send_replace(true);
    assert!(matches!(first.await.0, Reply::Put(Ok(_))));
    assert!(matches!(short.await.0, Reply::Get(Ok(_))));
    server.until_only(0).await;
    assert_eq!(server.under_way(), (0, 0));
}
