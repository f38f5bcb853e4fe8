//! Links over real sockets, against another server that the test plays call by call.

use std::sync::atomic::AtomicBool;

use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::frame::Inbox;
use super::*;
use crate::answer::{Answers, ask_one};
use crate::cell::{Cell, Content, Stamp};
use crate::key::TableId;
use crate::membership::State;
use crate::mutation::Mutation;
use crate::net::{TcpListener, TcpStream};
use crate::nodes::Address;
use crate::thrift::chord::{PeerApplied, PeerCell, PeerCells, PeerPong, PeerWelcome};
use crate::thrift::codec::{self, Protocol};
use crate::thrift::method::{Call, Reply};

const ME: NodeId = NodeId(0);
const OTHER: NodeId = NodeId(1);

// ------------------------------------------------------------------------------------------- the other server

/// What the played server does.
enum Act {
    Reply(i32, Reply),
    Raw(Vec<u8>),
    HangUp,
}

/// A server played by a closure: (sequence, call) → acts. One connection at a time.
struct Played {
    address: Address,
    task: JoinHandle<()>,
}

impl Played {
    async fn start(act: impl FnMut(i32, Call) -> Vec<Act> + Send + 'static) -> Played {
        Played::start_at(0, act).await
    }

    async fn start_at(port: u16, act: impl FnMut(i32, Call) -> Vec<Act> + Send + 'static) -> Played {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = local(listener.local_addr().unwrap().port());
        Played { address, task: tokio::spawn(play(listener, act)) }
    }

    /// As `kill -9` would: the connection breaks, the port refuses.
    async fn kill(self) -> u16 {
        self.task.abort();
        let _ = self.task.await;
        self.address.port
    }
}

fn local(port: u16) -> Address {
    Address { host: "127.0.0.1".to_owned(), port }
}

async fn play(listener: TcpListener, mut act: impl FnMut(i32, Call) -> Vec<Act>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let _ = converse(&mut stream, &mut act).await; // broken by the link: the next one is awaited
    }
}

async fn converse(
    stream: &mut TcpStream,
    act: &mut impl FnMut(i32, Call) -> Vec<Act>,
) -> std::io::Result<()> {
    let mut inbox = Inbox::new(100_000_000);
    while inbox.fill(stream).await? > 0 {
        while let Some(message) = inbox.next().unwrap() {
            let (sequence, call) = codec::read_message(Protocol::Binary, &message, 64, |header, input| {
                (header.sequence_number, Call::read(&header.name, input).unwrap().unwrap())
            })
            .unwrap();
            for act in act(sequence, call) {
                match act {
                    Act::Reply(sequence, reply) => stream.write_all(&framed(sequence, &reply)).await?,
                    Act::Raw(bytes) => stream.write_all(&bytes).await?,
                    Act::HangUp => return Ok(()),
                }
            }
        }
    }
    Ok(())
}

fn framed(sequence: i32, reply: &Reply) -> Vec<u8> {
    let mut message = Vec::new();
    codec::write_reply(Protocol::Binary, sequence, reply, &mut message);
    let mut frame = (message.len() as u32).to_be_bytes().to_vec();
    frame.append(&mut message);
    frame
}

fn identity(id: NodeId) -> Identity {
    Identity { cluster: "test".to_owned(), id, generation: 1, epoch: 1, ring_digest: [3; 16] }
}

fn welcome() -> PeerWelcome {
    identity(OTHER).welcome(String::new(), Stamp(0))
}

/// What a good server replies: applies everything, has one cell.
fn polite(call: &Call) -> Reply {
    match call {
        Call::Greet(hello) => {
            assert_eq!(check_hello(&identity(OTHER), 2, hello), Ok(ME));
            Reply::Greet(Ok(welcome()))
        }
        Call::Ping(_) => Reply::Ping(Ok(PeerPong::new(0, String::new()))),
        Call::Apply(apply) => applied(vec![0; apply.mutations.as_ref().unwrap().len()]),
        Call::Read(read) => {
            let mut cell = Vec::new();
            Cell { stamp: Stamp(1), content: Content::Value(read.partition.as_deref().unwrap()) }
                .encode(&mut cell);
            let cells = vec![PeerCell::new(Vec::new(), cell)];
            Reply::Read(Ok(PeerCells::new(cells, String::new(), 0, true)))
        }
        other => panic!("{other:?} is not asked between servers"),
    }
}

fn applied(answers: Vec<i64>) -> Reply {
    Reply::Apply(Ok(PeerApplied::new(answers, String::new(), 0)))
}

fn politely(sequence: i32, call: Call) -> Vec<Act> {
    vec![Act::Reply(sequence, polite(&call))]
}

fn is_request(call: &Call) -> bool {
    matches!(call, Call::Apply(_) | Call::Read(_))
}

/// The numbers that the [`mutation`]s of a call were made with.
fn numbers(call: &Call) -> Vec<i64> {
    let Call::Apply(apply) = call else { return Vec::new() };
    let number = |encoded: &Vec<u8>| Mutation::decode(&Bytes::from(encoded.clone())).unwrap().stamp().0;
    apply.mutations.as_ref().unwrap().iter().map(number).collect()
}

// ------------------------------------------------------------------------------------------- this server

struct Here {
    links: Arc<Links>,
    members: Arc<Members>,
    clock: Arc<Clock>,
    stats: Arc<Stats>,
}

impl Here {
    /// This server's links to one other, at `address`.
    fn start(address: &Address, config: &Config) -> Here {
        let members = Arc::new(Members::new(ME, 2, 1, config));
        let clock = Arc::new(Clock::with_wall(|| 0));
        let stats = Arc::new(Stats::default());
        let nodes = Nodes::new(vec![local(1), address.clone()]);
        let identity = Arc::new(identity(ME));
        let standpoint = Standpoint {
            identity,
            members: members.clone(),
            clock: clock.clone(),
            stats: stats.clone(),
            cut: Cut::start(config),
        };
        let links = Links::start(standpoint, &nodes, config);
        Here { links, members, clock, stats }
    }

    async fn started(address: &Address, config: &Config) -> Here {
        let here = Here::start(address, config);
        here.becomes(State::Up).await;
        here
    }

    async fn becomes(&self, state: State) {
        until(|| self.members.state(OTHER) == state).await;
    }

    fn detail(&self) -> String {
        self.members.view()[1].detail.clone()
    }

    async fn apply(&self, number: i64) -> ApplyAnswer {
        ask_one(OTHER, |to| self.links.apply(&mutation(number), to)).await
    }

    async fn read(&self) -> ReadAnswer {
        ask_one(OTHER, |to| self.links.read(&slice(), to)).await
    }
}

/// Waits for what must come; only a failing test waits long.
async fn until(condition: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come");
}

fn mutation(number: i64) -> Bytes {
    let cell = Cell { stamp: Stamp(number), content: Content::Value(Bytes::from_static(b"value")) };
    Mutation::single(TableId(0), Bytes::from_static(b"key"), cell).encode()
}

fn slice() -> Slice {
    Slice::single(TableId(0), Bytes::from_static(b"key"))
}

/// Deadlines far away, so that a test meets only those it means.
fn patient() -> Config {
    Config { write_timeout_ms: 600_000, read_timeout_ms: 600_000, reconnect_ms: 10, ..Config::default() }
}

/// Heartbeats fast enough for a test to wait for silence.
fn hasty() -> Config {
    Config { heartbeat_ms: 20, connect_timeout_ms: 100, ..patient() }
}

fn failed(failure: Failure) -> ApplyAnswer {
    ApplyAnswer::Failed(failure)
}

// ------------------------------------------------------------------------------------------- answers

#[tokio::test]
async fn requests_are_carried_out_and_answered() {
    let other = Played::start(politely).await;
    let here = Here::started(&other.address, &patient()).await;
    assert_eq!(here.apply(7).await, ApplyAnswer::Applied);
    let cell = Cell { stamp: Stamp(1), content: Content::Value(Bytes::from_static(b"key")) };
    assert_eq!(here.read().await, ReadAnswer::Cells { cells: vec![(Bytes::new(), cell)], complete: true });
    let batch = (0..5).map(mutation).collect();
    let answers = ask_one(OTHER, |to| here.links.apply_batch(batch, to)).await;
    assert_eq!(answers, Ok(vec![ApplyAnswer::Applied; 5]));
    assert_eq!(ask_one(OTHER, |to| here.links.apply_batch(Vec::new(), to)).await, Ok(Vec::new()));
    assert!(here.links.latency_us(OTHER) > 0);
    assert_eq!(here.links.latency_us(ME), 0);
    assert_eq!((here.stats.peer_connections.get(), here.stats.peer_calls_failed.get()), (1, 0));
}

#[tokio::test]
async fn answers_find_their_calls_in_whatever_order_they_come() {
    let mut held = Vec::new();
    let mut calls = 0;
    let other = Played::start(move |sequence, call| {
        if !is_request(&call) {
            return politely(sequence, call);
        }
        calls += 1;
        match numbers(&call) {
            none if none.is_empty() => held.push(Act::Reply(sequence, polite(&call))),
            numbers => held.push(Act::Reply(sequence, applied(numbers))),
        }
        if calls < 40 {
            return Vec::new();
        }
        fastrand::Rng::with_seed(1).shuffle(&mut held);
        std::mem::take(&mut held)
    })
    .await;
    let here = Here::started(&other.address, &patient()).await;
    // Mutations that follow one another go out as one call, so there are 20, of five each; and 20 reads between them.
    let asked = (1..=100).map(async |number| {
        let answer = here.apply(number);
        let read = async { if number % 5 == 0 { Some(here.read().await) } else { None } };
        tokio::join!(answer, read)
    });
    let answers = futures_util::future::join_all(asked).await;
    for (number, (answer, read)) in (1..=100).zip(answers) {
        assert_eq!(answer, ApplyAnswer::Behind(Stamp(number)));
        assert!(!matches!(read, Some(ReadAnswer::Failed(_))), "{read:?}");
    }
}

#[tokio::test]
async fn a_call_without_answer_is_given_up_at_its_deadline_and_a_late_answer_is_ignored() {
    let mut unanswered = Vec::new();
    let other = Played::start(move |sequence, call| {
        if !is_request(&call) {
            return politely(sequence, call);
        }
        unanswered.push(sequence);
        if unanswered.len() < 3 {
            return Vec::new();
        }
        unanswered
            .drain(..)
            .map(|sequence| Act::Reply(sequence, applied(vec![i64::from(sequence)])))
            .collect()
    })
    .await;
    let config = Config { write_timeout_ms: 60, read_timeout_ms: 30, ..patient() };
    let here = Here::started(&other.address, &config).await;
    let (write, read) = tokio::join!(here.apply(1), here.read());
    assert_eq!(write, failed(Failure::TimedOut));
    assert_eq!(read, ReadAnswer::Failed(Failure::TimedOut));
    assert!(here.links.latency_us(OTHER) >= 30_000); // silence is not fast
    assert_eq!(here.apply(3).await, ApplyAnswer::Behind(Stamp(3)));
    assert_eq!(here.members.state(OTHER), State::Up);
    assert_eq!(here.stats.peer_calls_failed.get(), 2);
}

#[tokio::test]
async fn past_the_bound_of_calls_the_answer_is_overloaded_until_there_is_room() {
    let mut held = Vec::new();
    let released = Arc::new(AtomicBool::new(false));
    let release = released.clone();
    let other = Played::start(move |sequence, call| {
        if is_request(&call) {
            held.push(Act::Reply(sequence, polite(&call)));
            if release.load(Ordering::Relaxed) { std::mem::take(&mut held) } else { Vec::new() }
        } else {
            let mut acts = politely(sequence, call);
            if release.load(Ordering::Relaxed) {
                acts.append(&mut held);
            }
            acts
        }
    })
    .await;
    let config = Config { peer_calls_max: 4, heartbeat_ms: 20, ..patient() };
    let here = Here::started(&other.address, &config).await;
    let mut answers = Answers::default();
    for number in 0..7 {
        here.links.apply(&mutation(number), answers.expect(OTHER));
    }
    for _ in 0..3 {
        assert_eq!(answers.next().await, Some((OTHER, failed(Failure::Overloaded))));
    }
    assert_eq!(here.links.gauges()[0], ("peer_1_calls".to_owned(), 4));
    released.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        assert_eq!(answers.next().await, Some((OTHER, ApplyAnswer::Applied)));
    }
    assert_eq!(here.apply(1).await, ApplyAnswer::Applied);
    assert_eq!(here.links.gauges()[0], ("peer_1_calls".to_owned(), 0));
}

#[tokio::test]
async fn a_server_that_reads_nothing_fills_no_memory() {
    // The greeting is answered, then nothing is read any more.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = local(listener.local_addr().unwrap().port());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&framed(0, &Reply::Greet(Ok(welcome())))).await.unwrap();
        std::future::pending::<()>().await;
    });
    let config = Config { peer_queue_bytes_max: 20_000_000, down_after_intervals: 1_000.0, ..patient() };
    let here = Here::started(&address, &config).await;
    let big = Bytes::from(vec![0; 1_000_000]);
    let mut answers = Answers::default();
    for _ in 0..40 {
        here.links.apply(&big, answers.expect(OTHER));
        tokio::task::yield_now().await;
    }
    // 19 with their overhead are within 20 million bytes.
    for _ in 0..21 {
        assert_eq!(answers.next().await, Some((OTHER, failed(Failure::Overloaded))));
    }
    assert!(here.links.gauges()[1].1 <= 20_000_000);
    here.links.close();
    for _ in 0..19 {
        assert_eq!(answers.next().await, Some((OTHER, failed(Failure::Abandoned))));
    }
    assert_eq!(here.apply(1).await, failed(Failure::Unreachable));
    task.abort();
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_here() {
    let other = Played::start(politely).await;
    let config = Config { message_bytes_max: 1_000, ..patient() };
    let here = Here::started(&other.address, &config).await;
    let batch = vec![mutation(1); 50];
    match ask_one(OTHER, |to| here.links.apply_batch(batch, to)).await {
        Err(Failure::Refused(why)) => assert!(why.contains("message_bytes_max"), "{why}"),
        answer => panic!("{answer:?}"),
    }
    assert_eq!(here.apply(1).await, ApplyAnswer::Applied);
}

#[tokio::test]
async fn a_large_value_goes_there_and_back() {
    let other = Played::start(politely).await;
    let here = Here::started(&other.address, &patient()).await;
    let key = Bytes::from(vec![7; 5_000_000]); // the played server sends the key back as value
    let slice = Slice::single(TableId(0), key.clone());
    let ReadAnswer::Cells { cells, .. } = ask_one(OTHER, |to| here.links.read(&slice, to)).await else {
        panic!()
    };
    assert_eq!(cells[0].1.content, Content::Value(key));
}

// ------------------------------------------------------------------------------------------- connections

#[tokio::test]
async fn nothing_is_queued_for_a_server_that_is_not_there() {
    let port = Played::start(politely).await.kill().await;
    let here = Here::start(&local(port), &patient());
    assert_eq!(here.apply(1).await, failed(Failure::Unreachable));
    until(|| here.detail() == "connection refused").await;
    assert_eq!(here.read().await, ReadAnswer::Failed(Failure::Unreachable));
    assert_eq!(
        ask_one(ME, |to| here.links.read(&slice(), to)).await,
        ReadAnswer::Failed(Failure::Unreachable)
    );
    assert_eq!(
        ask_one(NodeId(9), |to| here.links.apply(&mutation(1), to)).await,
        failed(Failure::Unreachable)
    );
    assert_eq!(here.members.state(OTHER), State::Down);
}

#[tokio::test]
async fn a_killed_server_is_down_and_its_next_process_is_up_with_its_own_generation() {
    let other =
        Played::start(|sequence, call| if is_request(&call) { Vec::new() } else { politely(sequence, call) })
            .await;
    let here = Here::started(&other.address, &patient()).await;
    let mut returns = here.members.take_returns();
    assert_eq!(returns.recv().await, Some(OTHER));
    let mut answers = Answers::default();
    for number in 0..10 {
        here.links.apply(&mutation(number), answers.expect(OTHER));
    }
    let port = other.kill().await;
    for _ in 0..10 {
        assert_eq!(answers.next().await, Some((OTHER, failed(Failure::ConnectionLost))));
    }
    here.becomes(State::Down).await;
    assert_eq!(here.detail(), "connection refused");
    assert_eq!(here.apply(1).await, failed(Failure::Unreachable));

    let _other = Played::start_at(port, |sequence, call| match call {
        Call::Greet(_) => {
            let welcome = PeerWelcome { generation: Some(2), ..welcome() };
            vec![Act::Reply(sequence, Reply::Greet(Ok(welcome)))]
        }
        _ => politely(sequence, call),
    })
    .await;
    assert_eq!(returns.recv().await, Some(OTHER));
    assert_eq!(here.members.state(OTHER), State::Up);
    assert_eq!(here.members.view()[1].generation, Some(2));
    assert_eq!(here.apply(1).await, ApplyAnswer::Applied);
}

#[tokio::test]
async fn a_broken_connection_is_opened_again() {
    let mut left_to_break = 5;
    let other = Played::start(move |sequence, call| {
        if is_request(&call) && left_to_break > 0 {
            left_to_break -= 1;
            return vec![Act::HangUp];
        }
        politely(sequence, call)
    })
    .await;
    let here = Here::started(&other.address, &patient()).await;
    for _ in 0..5 {
        assert_eq!(here.apply(1).await, failed(Failure::ConnectionLost));
        here.becomes(State::Up).await;
    }
    assert_eq!(here.apply(1).await, ApplyAnswer::Applied);
    assert_eq!(here.stats.peer_connections.get(), 6);
}

#[tokio::test]
async fn a_frozen_server_is_down_until_it_answers_again() {
    let frozen = Arc::new(AtomicBool::new(false));
    let is_frozen = frozen.clone();
    let other =
        Played::start(
            move |sequence, call| {
                if is_frozen.load(Ordering::Relaxed) { Vec::new() } else { politely(sequence, call) }
            },
        )
        .await;
    let here = Here::started(&other.address, &hasty()).await;
    let mut returns = here.members.take_returns();
    assert_eq!(returns.recv().await, Some(OTHER));
    frozen.store(true, Ordering::Relaxed);
    // Its deadline is far away, yet it does not wait for it.
    assert_eq!(here.apply(1).await, failed(Failure::ConnectionLost));
    assert_eq!(here.members.state(OTHER), State::Down);
    assert_eq!(here.apply(1).await, failed(Failure::Unreachable));
    until(|| here.detail() == "no answer to the greeting within 100 ms").await;
    assert!(here.members.absent_for(OTHER).is_some());
    frozen.store(false, Ordering::Relaxed);
    assert_eq!(returns.recv().await, Some(OTHER));
    here.becomes(State::Up).await;
    assert_eq!(here.apply(1).await, ApplyAnswer::Applied);
}

#[tokio::test]
async fn behind_a_cut_link_a_server_is_down_by_its_silence_until_the_link_is_whole() {
    let other = Played::start(politely).await;
    let directory = tempfile::tempdir().unwrap();
    let switch = directory.path().join("unheard");
    let test_fault_switch = switch.to_str().unwrap().to_owned();
    let here = Here::started(&other.address, &Config { test_fault_switch, ..hasty() }).await;
    assert_eq!(here.apply(1).await, ApplyAnswer::Applied);
    std::fs::write(&switch, OTHER.to_string()).unwrap();
    here.becomes(State::Down).await;
    assert_eq!(here.apply(1).await, failed(Failure::Unreachable));
    until(|| here.detail() == "no answer to the greeting within 100 ms").await;
    std::fs::write(&switch, "").unwrap();
    here.becomes(State::Up).await;
    assert_eq!(here.apply(1).await, ApplyAnswer::Applied);
}

#[tokio::test]
async fn a_server_that_is_not_the_right_one_stays_down_and_says_why() {
    let reply = |welcome| vec![Act::Reply(0, Reply::Greet(Ok(welcome)))];
    for (acts, said) in [
        (
            reply(PeerWelcome { refused: Some("another cluster".to_owned()), ..welcome() }),
            "refused: another cluster",
        ),
        (reply(PeerWelcome { id: Some(3), ..welcome() }), "server 3 answers at the address of server 1"),
        (reply(PeerWelcome { version: Some(9), ..welcome() }), "server 1 speaks version 9"),
        (reply(PeerWelcome { epoch: Some(4), ..welcome() }), "have different rings"),
        (
            vec![Act::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())],
            "is no server of this kind (a frame of",
        ),
        (vec![Act::Raw(b"\0\0\0\x05hello".to_vec())], "is no server of this kind"),
        (vec![Act::HangUp], "connection closed instead of a welcome"),
    ] {
        let mut acts = Some(acts);
        let other = Played::start(move |_, _| acts.take().unwrap_or_default()).await;
        let here = Here::start(&other.address, &patient());
        until(|| here.detail().contains(said)).await;
        assert_eq!(here.members.state(OTHER), State::Down);
        assert_eq!(here.apply(1).await, failed(Failure::Unreachable));
        assert_eq!(here.stats.peer_connections.get(), 0);
    }
}

#[tokio::test]
async fn bytes_that_make_no_sense_end_the_connection_and_every_call_on_it() {
    for (bytes, said) in [
        (b"\0\0\0\x05hello".to_vec(), "damaged answer"),
        (u32::MAX.to_be_bytes().to_vec(), "a frame of 4294967295 bytes came"),
        (framed(3, &applied(vec![0, 0])), "damaged answer: 2 answers to 1 mutations"),
    ] {
        let other = Played::start(move |sequence, call| {
            if !is_request(&call) {
                return politely(sequence, call);
            }
            if sequence == 3 { vec![Act::Raw(bytes.clone())] } else { Vec::new() }
        })
        .await;
        let here = Here::started(&other.address, &patient()).await;
        let answers = tokio::join!(here.apply(1), here.read(), here.apply(2));
        let lost = failed(Failure::ConnectionLost);
        assert_eq!(answers, (lost.clone(), ReadAnswer::Failed(Failure::ConnectionLost), lost));
        assert_eq!(here.members.state(OTHER), State::Down);
        assert!(here.detail().contains(said), "{}", here.detail());
    }
}

#[tokio::test]
async fn clocks_and_writability_are_told_with_every_heartbeat() {
    let other = Played::start(|sequence, call| match call {
        Call::Greet(_) => {
            let welcome = PeerWelcome { clock: Some(1_000), ..welcome() };
            vec![Act::Reply(sequence, Reply::Greet(Ok(welcome)))]
        }
        Call::Ping(ping) => {
            let full = if ping.clock < Some(2_000) { "disk full" } else { "" };
            let pong = PeerPong::new(ping.clock.unwrap() + 500, full.to_owned());
            vec![Act::Reply(sequence, Reply::Ping(Ok(pong)))]
        }
        _ => politely(sequence, call),
    })
    .await;
    let here = Here::started(&other.address, &hasty()).await;
    assert!(here.clock.latest() >= Stamp(1_000));
    until(|| here.detail() == "takes no writes: disk full").await;
    until(|| here.detail().is_empty()).await;
    assert_eq!(here.members.state(OTHER), State::Up);
    assert!(here.clock.latest() >= Stamp(2_000));
}

/// Callers on four threads, a server that answers late, never, out of order, or hangs up: every call gets its own
/// answer or a failure, exactly once, and afterwards nothing is left over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered_once_whatever_the_other_server_does() {
    const CALLERS: i64 = 4;
    const CALLS: i64 = 500;
    let mut chance = fastrand::Rng::with_seed(7);
    let mut held = Vec::new();
    let other = Played::start(move |sequence, call| {
        if !is_request(&call) {
            held.clear();
            return politely(sequence, call);
        }
        let reply = Act::Reply(sequence, applied(numbers(&call)));
        match chance.u32(0..400) {
            0 => vec![Act::HangUp],
            1 => Vec::new(),
            2..100 => {
                held.push(reply);
                Vec::new()
            }
            _ => held.drain(..).chain([reply]).collect(),
        }
    })
    .await;
    let config =
        Config { write_timeout_ms: 100, peer_calls_max: 200, heartbeat_ms: 20, reconnect_ms: 1, ..patient() };
    let here = Here::started(&other.address, &config).await;
    let (results, mut outcomes) = mpsc::unbounded_channel();
    for caller in 0..CALLERS {
        let (links, results) = (here.links.clone(), results.clone());
        tokio::spawn(async move {
            for call in 0..CALLS {
                let number = 1 + caller * CALLS + call;
                let results = results.clone();
                let mut answers = Answers::default();
                links.apply(&mutation(number), answers.expect(OTHER));
                tokio::spawn(async move {
                    while let Some((_, answer)) = answers.next().await {
                        results.send((number, answer)).unwrap();
                    }
                });
                if call % 50 == 0 {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    drop(results);
    let mut seen = vec![0; (CALLERS * CALLS) as usize + 1];
    let mut behind = 0;
    while let Some((number, answer)) = outcomes.recv().await {
        seen[number as usize] += 1;
        match answer {
            ApplyAnswer::Behind(stamp) => {
                assert_eq!(stamp, Stamp(number));
                behind += 1;
            }
            ApplyAnswer::Failed(Failure::Abandoned) | ApplyAnswer::Applied => panic!("{number}: {answer:?}"),
            ApplyAnswer::Failed(_) => {}
        }
    }
    assert!(seen[1..].iter().all(|&times| times == 1));
    assert!(behind > 0);
    assert_eq!(here.links.gauges()[0].1, 0);
}
