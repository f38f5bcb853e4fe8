//! The way between simulated servers: calls that take their time, are lost, come twice, or overtake each other.
//!
//! It stands where links over TCP stand on a machine, and behaves as they do: a connection is greeted, belongs to one
//! process on each side, breaks when either ends, and is given up when it is silent; liveness hears of all that. Calls
//! themselves are treated worse than TCP would.
//!
//! Each direction of each pair draws from a generator of its own, so that taking something out of a run changes the
//! rest as little as may be.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use tetrachord::answer::{AnswerTo, ApplyAnswer, Failure, NodeId, ReadAnswer};
use tetrachord::cell::Stamp;
use tetrachord::config::Config;
use tetrachord::membership::{Event, State, liveness};
use tetrachord::peer::{Peers, Standpoint, apply_answers, check_welcome, read_answer, read_request};
use tetrachord::service::Service;
use tetrachord::slice::Slice;
use tetrachord::thrift::chord::{PeerApply, PeerPing, PeerReconcile, PeerReconciled};
use tetrachord::thrift::connection::{Answering, Service as _, Session};
use tetrachord::thrift::method::{Call, Reply};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::signal::Signal;
use super::trace::Trace;

/// How the network treats calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Weather {
    /// Delay of one direction, in milliseconds: from, to.
    pub delay_ms: (u64, u64),
    /// One call in this many takes up to this much longer (ms); 0: none.
    pub straggler_one_in: u32,
    pub straggler_ms: u64,
    /// One message in this many is lost; 0: none.
    pub lost_one_in: u32,
    /// One call in this many comes twice; 0: none.
    pub twice_one_in: u32,
}

impl Weather {
    pub fn calm() -> Weather {
        Weather { delay_ms: (0, 1), straggler_one_in: 0, straggler_ms: 0, lost_one_in: 0, twice_one_in: 0 }
    }
}

/// The network of one simulation.
pub struct Net {
    state: Mutex<NetState>,
    pub trace: Trace,
}

struct NetState {
    places: Vec<Place>,
    /// `cut[a][b]`: nothing gets from a to b.
    cut: Vec<Vec<bool>>,
    weather: Weather,
    /// For each direction of each pair.
    random: Vec<Vec<fastrand::Rng>>,
    messages: u64,
}

/// Where a server runs, or does not.
struct Place {
    service: Option<Arc<Service>>,
    /// Of the process that runs there, or ran last.
    process: u64,
    /// Given when that process ends.
    ended: Signal,
    /// It neither hears nor speaks until then.
    frozen_until: Instant,
}

impl Net {
    pub fn new(nodes: usize, seed: u64, weather: Weather, trace: Trace) -> Arc<Net> {
        let place =
            || Place { service: None, process: 0, ended: Signal::default(), frozen_until: Instant::now() };
        let random = |a: usize, b: usize| {
            fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add((a * 64 + b) as u64))
        };
        let state = NetState {
            places: (0..nodes).map(|_| place()).collect(),
            cut: vec![vec![false; nodes]; nodes],
            weather,
            random: (0..nodes).map(|a| (0..nodes).map(|b| random(a, b)).collect()).collect(),
            messages: 0,
        };
        Arc::new(Net { state: Mutex::new(state), trace })
    }

    /// A process of `node` answers from now on.
    pub fn open(&self, node: NodeId, process: u64, service: Arc<Service>) {
        let mut state = self.state();
        let place = &mut state.places[node.0 as usize];
        place.service = Some(service);
        place.process = process;
        place.ended = Signal::default();
    }

    /// The process of `node` has ended.
    pub fn close(&self, node: NodeId) {
        let mut state = self.state();
        let place = &mut state.places[node.0 as usize];
        place.service = None;
        place.ended.give();
    }

    /// True if that very process runs there.
    pub fn runs(&self, node: NodeId, process: u64) -> bool {
        self.service(node, process).is_some()
    }

    pub fn cut(&self, from: NodeId, to: NodeId, cut: bool) {
        self.state().cut[from.0 as usize][to.0 as usize] = cut;
    }

    pub fn freeze(&self, node: NodeId, until: Instant) {
        self.state().places[node.0 as usize].frozen_until = until;
    }

    /// Faults end: nothing is cut, nobody is frozen, the weather is calm.
    pub fn heal(&self) {
        let mut state = self.state();
        for row in &mut state.cut {
            row.fill(false);
        }
        for place in &mut state.places {
            place.frozen_until = Instant::now();
        }
        state.weather = Weather::calm();
    }

    pub fn messages(&self) -> u64 {
        self.state().messages
    }

    /// Until `node` is not frozen.
    pub async fn thawed(&self, node: NodeId) {
        loop {
            let until = self.state().places[node.0 as usize].frozen_until;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Brings something from one server to another. False: it is lost.
    async fn carry(&self, from: NodeId, to: NodeId) -> bool {
        self.thawed(from).await;
        let Some(delay) = self.delay(from, to) else { return false };
        sleep(delay).await;
        self.thawed(to).await;
        !self.is_cut(from, to)
    }

    /// `None`: it is lost on the way.
    fn delay(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let mut state = self.state();
        state.messages += 1;
        let weather = state.weather.clone();
        if state.cut[from.0 as usize][to.0 as usize] {
            return None;
        }
        let random = &mut state.random[from.0 as usize][to.0 as usize];
        if one_in(random, weather.lost_one_in) {
            return None;
        }
        let mut delay_ms = random.u64(weather.delay_ms.0..=weather.delay_ms.1);
        if one_in(random, weather.straggler_one_in) {
            delay_ms += random.u64(0..=weather.straggler_ms);
        }
        Some(Duration::from_millis(delay_ms))
    }

    fn comes_twice(&self, from: NodeId, to: NodeId) -> bool {
        let mut state = self.state();
        let one_in_so_many = state.weather.twice_one_in;
        one_in(&mut state.random[from.0 as usize][to.0 as usize], one_in_so_many)
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.state().cut[from.0 as usize][to.0 as usize]
    }

    /// The service of that very process, if it still runs.
    fn service(&self, node: NodeId, process: u64) -> Option<Arc<Service>> {
        let state = self.state();
        let place = &state.places[node.0 as usize];
        place.service.clone().filter(|_| place.process == process)
    }

    /// The process that runs there, and what tells of its end.
    fn process(&self, node: NodeId) -> Option<(u64, Signal)> {
        let state = self.state();
        let place = &state.places[node.0 as usize];
        place.service.as_ref().map(|_| (place.process, place.ended.clone()))
    }

    fn state(&self) -> MutexGuard<'_, NetState> {
        self.state.lock().expect("no panic while it is held")
    }
}

fn one_in(random: &mut fastrand::Rng, so_many: u32) -> bool {
    so_many > 0 && random.u32(..so_many) == 0
}

/// One server's way to the others.
pub struct SimPeers {
    me: NodeId,
    net: Arc<Net>,
    standpoint: Standpoint,
    config: Arc<Config>,
    /// By server; what is connected at the moment.
    connections: Mutex<BTreeMap<NodeId, Arc<Connection>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    closed: AtomicBool,
    /// Others that have not been tried yet.
    untried: AtomicUsize,
}

/// A connection to one process of another server.
struct Connection {
    process: u64,
    session: Arc<Session>,
    /// The other side's process has ended.
    gone: Signal,
    /// It is used no more.
    ended: Signal,
    under_way: AtomicUsize,
}

impl SimPeers {
    pub fn start(
        net: &Arc<Net>,
        standpoint: Standpoint,
        nodes: usize,
        config: &Arc<Config>,
    ) -> Arc<SimPeers> {
        let me = standpoint.identity.id;
        let peers = Arc::new(SimPeers {
            me,
            net: net.clone(),
            standpoint,
            config: config.clone(),
            connections: Mutex::default(),
            tasks: Mutex::default(),
            closed: AtomicBool::new(false),
            untried: AtomicUsize::new(nodes - 1),
        });
        let others = (0..nodes as u32).map(NodeId).filter(|node| *node != me);
        let link = |node| tokio::spawn(link(Arc::downgrade(&peers), net.clone(), me, node));
        *peers.tasks.lock().expect("one thread") = others.map(link).collect();
        peers
    }

    /// The process ends.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for task in self.tasks.lock().expect("one thread").drain(..) {
            task.abort();
        }
        for connection in std::mem::take(&mut *self.connections()).into_values() {
            connection.ended.give();
        }
    }

    /// As `peer::Links::first_attempts`.
    pub async fn first_attempts(&self, within: Duration) {
        let deadline = Instant::now() + within;
        while self.untried.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// True if it has a connection to the present process of every other server.
    pub fn reach_all(&self) -> bool {
        let others = self.net.state().places.len() - 1;
        let connections = self.connections();
        connections.len() == others && connections.values().all(|connection| !connection.gone.is_given())
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Connection>>> {
        self.connections.lock().expect("one thread")
    }

    /// Calls another server and gives its reply to `then`; or why there is none.
    fn call(
        &self,
        node: NodeId,
        call: Call,
        within: Duration,
        then: impl FnOnce(&SimPeersClock, Result<Reply, Failure>) + Send + 'static,
    ) {
        let clock = SimPeersClock { clock: self.standpoint.clock.clone() };
        let Some(connection) = self.connections().get(&node).cloned() else {
            return then(&clock, Err(Failure::Unreachable));
        };
        if connection.under_way.load(Ordering::Relaxed) >= self.config.peer_calls_max {
            return then(&clock, Err(Failure::Overloaded));
        }
        connection.under_way.fetch_add(1, Ordering::Relaxed);
        let reply = exchange(&self.net, self.me, node, &connection, call);
        let ended = connection.ended.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                biased;
                Ok(reply) = reply => Ok(reply),
                () = ended.given() => Err(Failure::ConnectionLost),
                () = sleep(within) => Err(Failure::TimedOut),
            };
            connection.under_way.fetch_sub(1, Ordering::Relaxed);
            then(&clock, outcome);
        });
    }
}

/// What a reply tells of the other server's clock goes here.
pub struct SimPeersClock {
    clock: Arc<tetrachord::clock::Clock>,
}

impl SimPeersClock {
    fn observe(&self, stamp: Option<i64>) {
        self.clock.observe_told(Stamp(stamp.unwrap_or(0)));
    }
}

/// Sends a call, which goes on even if nobody waits for its reply any more.
fn exchange(
    net: &Arc<Net>,
    from: NodeId,
    to: NodeId,
    connection: &Arc<Connection>,
    call: Call,
) -> oneshot::Receiver<Reply> {
    let (reply_to, reply) = oneshot::channel();
    let again = net.comes_twice(from, to).then(|| call.clone());
    let twice = again.is_some();
    tokio::spawn({
        let (net, connection) = (net.clone(), connection.clone());
        async move {
            // Where it is lost the sender is dropped, and the caller goes on waiting for something else.
            let Some(reply) = deliver(&net, from, to, &connection, call).await else { return };
            if twice && refuses(&reply) {
                return; // it may have been stored the other time: of a call that comes once nobody is told that
            }
            if net.carry(to, from).await {
                let _ = reply_to.send(reply); // the caller may have given up
            }
        }
    });
    if let Some(again) = again {
        let (net, connection) = (net.clone(), connection.clone());
        tokio::spawn(async move {
            deliver(&net, from, to, &connection, again).await;
        });
    }
    reply
}

/// True if it says of a mutation that nothing was stored.
fn refuses(reply: &Reply) -> bool {
    let Reply::Apply(Ok(applied)) = reply else { return false };
    let answers = apply_answers(applied.answers.clone().unwrap_or_default(), "");
    answers.iter().any(|answer| matches!(answer, ApplyAnswer::Failed(_)))
}

async fn deliver(
    net: &Arc<Net>,
    from: NodeId,
    to: NodeId,
    connection: &Connection,
    call: Call,
) -> Option<Reply> {
    if !net.carry(from, to).await {
        net.trace.note("lost", from, to, 0, || format!("{from} → {to} lost: {}", describe(&call)));
        return None;
    }
    let service = net.service(to, connection.process)?;
    net.trace.note("call", from, to, weight(&call), || format!("{from} → {to} {}", describe(&call)));
    let answering = service.call(&connection.session, call);
    drop(service);
    Some(match answering {
        Answering::Now(reply) | Answering::Heavy(reply, _) => reply,
        Answering::Later(reply) => reply.await.0,
    })
}

/// Keeps one connection to `node`, as `peer::link` does over TCP.
async fn link(peers: Weak<SimPeers>, net: Arc<Net>, me: NodeId, node: NodeId) {
    let (members, config) = match peers.upgrade() {
        Some(peers) => (peers.standpoint.members.clone(), peers.config.clone()),
        None => return,
    };
    let tick = liveness::Settings::of(&config).tick;
    let note = |event| members.note(node, event);
    let mut untried = true;
    loop {
        let dialled = {
            let dial = dial(&peers, &net, me, node, &config);
            ticking(dial, tick, || _ = note(Event::Tick)).await
        };
        let tried = |untried: &mut bool| {
            if std::mem::take(untried)
                && let Some(peers) = peers.upgrade()
            {
                peers.untried.fetch_sub(1, Ordering::Relaxed);
            }
        };
        let (connection, generation) = match dialled {
            Ok(connected) => connected,
            Err(why) => {
                note(Event::Refused { why });
                tried(&mut untried);
                let reconnect = sleep(Duration::from_millis(config.reconnect_ms));
                ticking(reconnect, tick, || _ = note(Event::Tick)).await;
                continue;
            }
        };
        match peers.upgrade() {
            Some(peers) => peers.connections().insert(node, connection.clone()),
            None => return,
        };
        note(Event::Connected { generation });
        tried(&mut untried);
        let ended = {
            let gone = async {
                connection.gone.given().await;
                // The other side's system says so, if that can come through.
                if net.carry(node, me).await { "connection reset" } else { pending().await }
            };
            let silent = converse(&peers, &net, me, node, &connection, &config, tick);
            tokio::select! {
                biased;
                why = gone => Some(why),
                () = silent => None,
            }
        };
        if let Some(peers) = peers.upgrade() {
            peers.connections().remove(&node);
        }
        connection.ended.give();
        if let Some(why) = ended {
            note(Event::Lost { why: why.to_owned() });
            let pause = sleep(Duration::from_millis(5));
            ticking(pause, tick, || _ = note(Event::Tick)).await;
        }
    }
}

/// Awaits `work` while time passes for liveness.
async fn ticking<T>(work: impl Future<Output = T>, tick: Duration, mut on_tick: impl FnMut()) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = sleep(tick) => on_tick(),
        }
    }
}

async fn dial(
    peers: &Weak<SimPeers>,
    net: &Arc<Net>,
    me: NodeId,
    node: NodeId,
    config: &Config,
) -> Result<(Arc<Connection>, i64), String> {
    let identity = peers.upgrade().map(|peers| peers.standpoint.identity.clone()).ok_or("gone")?;
    let attempt = async {
        if !net.carry(me, node).await {
            return pending().await;
        }
        let Some((process, gone)) = net.process(node) else {
            return match net.carry(node, me).await {
                true => Err("connection refused".to_owned()),
                false => pending().await,
            };
        };
        let session = Arc::new(Session::new(SocketAddr::from(([127, 0, 0, 1], 1 + me.0 as u16))));
        let connection = Arc::new(Connection {
            process,
            session,
            gone,
            ended: Signal::default(),
            under_way: AtomicUsize::new(0),
        });
        let hello = {
            let Some(peers) = peers.upgrade() else { return Err("gone".to_owned()) };
            Call::Greet(identity.hello(node, peers.standpoint.clock.latest()))
        };
        let Some(Reply::Greet(Ok(welcome))) = deliver(net, me, node, &connection, hello).await else {
            return pending().await;
        };
        if !net.carry(node, me).await {
            return pending().await;
        }
        let generation = check_welcome(&identity, node, &welcome)?;
        if let Some(peers) = peers.upgrade() {
            peers.standpoint.clock.observe_told(Stamp(welcome.clock.unwrap_or(0)));
        }
        Ok((connection, generation))
    };
    let within = Duration::from_millis(config.connect_timeout_ms);
    match tokio::time::timeout(within, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err("no connection in time".to_owned()),
    }
}

/// Heartbeats, until the other server is Down by its silence.
async fn converse(
    peers: &Weak<SimPeers>,
    net: &Arc<Net>,
    me: NodeId,
    node: NodeId,
    connection: &Arc<Connection>,
    config: &Config,
    tick: Duration,
) {
    let mut heartbeat_at = Instant::now();
    loop {
        let Some(peers) = peers.upgrade() else { return };
        if Instant::now() >= heartbeat_at {
            heartbeat_at = Instant::now() + config.heartbeat();
            let (clock, members) = (peers.standpoint.clock.clone(), peers.standpoint.members.clone());
            let ping = Call::Ping(PeerPing::new(clock.latest().0));
            let ended = connection.ended.clone();
            let pong = exchange(net, me, node, connection, ping);
            tokio::spawn(async move {
                let pong = tokio::select! {
                    biased;
                    () = ended.given() => return,
                    pong = pong => pong,
                };
                if let Ok(Reply::Ping(Ok(pong))) = pong {
                    members.note(node, Event::Heard);
                    clock.observe_told(Stamp(pong.clock.unwrap_or(0)));
                    members.note_writable(node, pong.not_writable.as_deref().unwrap_or_default());
                }
            });
        }
        if peers.standpoint.members.note(node, Event::Tick) == State::Down {
            return;
        }
        drop(peers);
        sleep(tick).await;
    }
}

impl Peers for SimPeers {
    fn apply(&self, mutation: &Bytes, to: AnswerTo<ApplyAnswer>) {
        let request = PeerApply::new(self.standpoint.identity.epoch as i64, vec![mutation.to_vec()]);
        self.call(to.node(), Call::Apply(request), self.config.write_timeout(), |clock, outcome| {
            to.send(match outcome {
                Ok(Reply::Apply(Ok(applied))) => {
                    clock.observe(applied.clock);
                    let refused = applied.refused.unwrap_or_default();
                    apply_answers(applied.answers.unwrap_or_default(), &refused)
                        .pop()
                        .expect("one mutation, one answer")
                }
                Ok(other) => panic!("{other:?} is no answer to an apply"),
                Err(failure) => ApplyAnswer::Failed(failure),
            });
        });
    }

    fn apply_batch(&self, mutations: Vec<Bytes>, to: AnswerTo<Result<Vec<ApplyAnswer>, Failure>>) {
        let mutations: Vec<Vec<u8>> = mutations.iter().map(|bytes| bytes.to_vec()).collect();
        let request = PeerApply::new(self.standpoint.identity.epoch as i64, mutations);
        self.call(to.node(), Call::Apply(request), self.config.write_timeout(), |clock, outcome| {
            to.send(match outcome {
                Ok(Reply::Apply(Ok(applied))) => {
                    clock.observe(applied.clock);
                    let refused = applied.refused.unwrap_or_default();
                    Ok(apply_answers(applied.answers.unwrap_or_default(), &refused))
                }
                Ok(other) => panic!("{other:?} is no answer to an apply"),
                Err(failure) => Err(failure),
            });
        });
    }

    fn read(&self, slice: &Slice, to: AnswerTo<ReadAnswer>) {
        let request = read_request(self.standpoint.identity.epoch, slice);
        self.call(to.node(), Call::Read(request), self.config.read_timeout(), |clock, outcome| {
            to.send(match outcome {
                Ok(Reply::Read(Ok(cells))) => {
                    clock.observe(cells.clock);
                    read_answer(cells)
                }
                Ok(other) => panic!("{other:?} is no answer to a read"),
                Err(failure) => ReadAnswer::Failed(failure),
            });
        });
    }

    fn reconcile(&self, request: PeerReconcile, to: AnswerTo<Result<PeerReconciled, Failure>>) {
        let call = Call::Reconcile(Box::new(request));
        self.call(to.node(), call, self.config.write_timeout(), |clock, outcome| {
            to.send(match outcome {
                Ok(Reply::Reconcile(Ok(reconciled))) => {
                    clock.observe(reconciled.clock);
                    Ok(*reconciled)
                }
                Ok(other) => panic!("{other:?} is no answer to that"),
                Err(failure) => Err(failure),
            });
        });
    }

    fn latency_us(&self, _node: NodeId) -> u64 {
        0
    }

    fn greeted_by(&self, _node: NodeId) {}

    fn gauges(&self) -> Vec<(String, i64)> {
        Vec::new()
    }
}

fn weight(call: &Call) -> u64 {
    match call {
        Call::Apply(request) => request.mutations.as_ref().map_or(0, |all| {
            all.iter().flatten().fold(1, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
        }),
        _ => 1,
    }
}

fn describe(call: &Call) -> String {
    match call {
        Call::Apply(request) => {
            let mutations: Vec<String> = request
                .mutations
                .iter()
                .flatten()
                .map(|bytes| match tetrachord::mutation::Mutation::decode(&Bytes::from(bytes.clone())) {
                    Ok(mutation) => {
                        format!("{}@{}", String::from_utf8_lossy(&mutation.partition), mutation.stamp())
                    }
                    Err(error) => error.to_string(),
                })
                .collect();
            format!("apply {}", mutations.join(" "))
        }
        Call::Read(request) => {
            format!("read {}", String::from_utf8_lossy(request.partition.as_deref().unwrap_or_default()))
        }
        Call::Greet(_) => "hello".to_owned(),
        Call::Ping(_) => "ping".to_owned(),
        Call::Reconcile(request) => {
            let (asks, range) = (request.asks.map_or(0, i32::from), request.range.unwrap_or(0));
            format!("reconcile {asks} of range {range}")
        }
        other => format!("{other:?}"),
    }
}
