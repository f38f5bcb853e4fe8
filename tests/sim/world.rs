//! Runs a plan: servers, clients and faults on one thread, in simulated time; then judges what was seen.
//!
//! Phase 1: load and faults together. Phase 2: faults end, whoever is down is started, hints drain; then every replica
//! of every key must be equal, and fresh writes must succeed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tetrachord::answer::NodeId;
use tetrachord::cell::{Cell, Content, Stamp};
use tetrachord::check::{Asked, FilesLost, History, Operation, Told};
use tetrachord::clock::Clock;
use tetrachord::config::Config;
use tetrachord::coordinator::Level;
use tetrachord::key;
use tetrachord::mutation::Mutation;
use tetrachord::node::{Core, CoreOptions};
use tetrachord::nodes::{Address, Nodes};
use tetrachord::ring::Ring;
use tetrachord::service::Service;
use tetrachord::store::{Disk, Drive, Store};
use tetrachord::thrift::chord::{self, GetRequest, PutRequest, RemoveRequest};
use tetrachord::thrift::connection::{Answering, Service as _, Session};
use tetrachord::thrift::method::{Call, Refusal, Reply};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::{Instant, sleep};

use super::disk::{End, Image, SimDisk, Trouble};
use super::judge;
use super::network::{Net, SimPeers};
use super::plan::{Fault, Plan, Step, What};
use super::signal::Signal;
use super::trace::Trace;
use super::vfs::SimVfs;

/// What a run showed.
pub struct Outcome {
    /// The first thing that must not be; `None`: all is well.
    pub finding: Option<Finding>,
    /// Equal runs have equal sums.
    pub sum: u64,
    /// Requests of clients.
    pub requests: u64,
    /// Calls between servers.
    pub messages: u64,
    /// What the servers went through.
    pub met: Met,
    /// If they were asked for.
    pub lines: Vec<String>,
}

/// What servers went through: that a fault can be noticed at all, its place must be passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    /// Writes sent again with a newer stamp.
    pub sent_again: u64,
    pub hints_delivered: u64,
    pub read_repairs: u64,
    pub flushes: u64,
    pub compactions: u64,
    pub cells_reconciled: u64,
    pub cells_collected: u64,
    /// Ends of processes.
    pub ends: u64,
    /// Servers that lost files, and knew it before they answered a read.
    pub losses_known: u64,
    /// And did not know it.
    pub losses_unknown: u64,
}

impl Met {
    /// What did not happen.
    pub fn never(&self) -> Vec<&'static str> {
        let Met { sent_again, hints_delivered, read_repairs, flushes, compactions, .. } = self;
        let Met { cells_reconciled, cells_collected, ends, losses_known, losses_unknown, .. } = self;
        let all = [
            (sent_again, "writes sent again"),
            (hints_delivered, "hints delivered"),
            (read_repairs, "read repairs"),
            (flushes, "flushes"),
            (compactions, "compactions"),
            (cells_reconciled, "cells reconciled"),
            (cells_collected, "cells collected"),
            (ends, "ends of processes"),
            (losses_known, "losses known"),
            (losses_unknown, "losses unknown"),
        ];
        all.into_iter().filter(|(count, _)| **count == 0).map(|(_, what)| what).collect()
    }

    fn add(&mut self, service: &Service) {
        let stats = &service.stats;
        self.sent_again += stats.writes_restamped.get();
        self.hints_delivered += stats.hints_delivered.get();
        self.read_repairs += stats.read_repairs.get();
        self.flushes += stats.flushes.get();
        self.compactions += stats.compactions.get();
        self.cells_reconciled += stats.reconcile_cells_taken.get();
        self.cells_collected += stats.cells_collected.get();
        self.ends += 1;
    }
}

impl std::ops::AddAssign for Met {
    fn add_assign(&mut self, more: Met) {
        self.sent_again += more.sent_again;
        self.hints_delivered += more.hints_delivered;
        self.read_repairs += more.read_repairs;
        self.flushes += more.flushes;
        self.compactions += more.compactions;
        self.cells_reconciled += more.cells_reconciled;
        self.cells_collected += more.cells_collected;
        self.ends += more.ends;
        self.losses_known += more.losses_known;
        self.losses_unknown += more.losses_unknown;
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which promise is broken: runs that break the same one are cut down to each other.
    pub rule: String,
    pub story: String,
}

impl Finding {
    pub fn new(rule: impl Into<String>, story: impl Into<String>) -> Finding {
        Finding { rule: rule.into(), story: story.into() }
    }
}

/// What the names of a log and of its write-ahead file end with.
const LOG: &str = "log.db";
const LOG_WAL: &str = "log.db-wal";

/// Simulated wall clocks start here: 2026-01-01 in microseconds since 1970.
const WALL_START_US: i64 = 1_767_225_600_000_000;

/// For phase 2, in simulated time: no bound of the configuration is longer than a few seconds.
const QUIET_WITHIN: Duration = Duration::from_secs(60);

/// For reconciliation, in simulated time.
const EQUAL_WITHIN: Duration = Duration::from_secs(30);

/// So long nothing may change before it counts as quiet: a connection that lost its last messages is found out by then.
const QUIET_FOR: Duration = Duration::from_secs(3);

/// Time for every server to notice which of its connections are dead: eight heartbeats of the slowest weather, and
/// more.
const CONNECTED_WITHIN: Duration = Duration::from_secs(60);

/// What a request may take past its deadline, when nothing held its server up.
const DEADLINE_MARGIN: Duration = Duration::from_millis(500);

/// Numbers VFSes of this process.
static VFS_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Runs a plan.
pub fn run(plan: &Plan, readable: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime needs no more than memory");
    let (world, outcome) = runtime.block_on(async {
        let world = World::new(plan, readable);
        let local = LocalSet::new();
        let finding = local.run_until(world.clone().live()).await;
        world.end_all(End::Kill);
        let outcome = Outcome {
            finding,
            sum: world.net.trace.sum(),
            requests: world.history.borrow().operations.len() as u64,
            messages: world.net.messages(),
            met: *world.met.borrow(),
            lines: world.net.trace.lines(),
        };
        (world, outcome)
    });
    let vfses = std::mem::take(&mut *world.vfses.borrow_mut());
    drop(world);
    drop(runtime); // and with it every task that still holds a connection
    drop(vfses);
    outcome
}

struct World {
    plan: Plan,
    net: Arc<Net>,
    nodes: Nodes,
    ring: Ring,
    start: Instant,
    places: RefCell<Vec<Place>>,
    history: RefCell<History>,
    /// The largest time given to an operation: no two have the same.
    last_us: RefCell<u64>,
    findings: RefCell<Vec<Finding>>,
    /// Outlive every connection.
    vfses: RefCell<Vec<Arc<SimVfs>>>,
    met: RefCell<Met>,
    writes: RefCell<u64>,
    hinted: RefCell<Hinted>,
}

/// The newest cells that were seen as hints: from, to, engine key.
type Hinted = BTreeMap<(NodeId, NodeId, Vec<u8>), Cell>;

/// Where a server runs.
struct Place {
    disk: SimDisk,
    clock_offset_ms: Arc<AtomicI64>,
    disk_pause_ms: Arc<AtomicU64>,
    generation: i64,
    running: Option<Running>,
    /// What a reader saw when it was killed: it must be there when it is started again.
    seen: Option<Vec<(Vec<u8>, Cell)>>,
    /// Its files were lost, or put back from an older copy; what became of that.
    lost: Option<Lost>,
    /// Those that remember more of it than the files it got instead, until it is ready.
    witnesses: Vec<(NodeId, i64)>,
    /// A fault once held it up, so that its requests may have taken longer.
    held_up: bool,
    last_end: End,
}

struct Running {
    core: Core,
    peers: Arc<SimPeers>,
    ended: Signal,
    /// Clients are answered: it knows who is there, and whether its files are what they were.
    ready: bool,
}

/// What became of a server's lost files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It has not been ready since.
    Now,
    /// It was told that it lacks something before it answered a read.
    Known,
    /// It had all of it back.
    Regained,
    /// It answered reads without knowing.
    Unknown,
}

impl World {
    fn new(plan: &Plan, readable: bool) -> Rc<World> {
        let trace = Trace::new(readable);
        let net = Net::new(plan.nodes, plan.seed, plan.weather.clone(), trace);
        let address = |id| Address { host: "sim".to_owned(), port: 1 + id as u16 };
        let place = |id: usize| Place {
            disk: SimDisk::new(plan.seed.wrapping_mul(7_919).wrapping_add(id as u64)),
            clock_offset_ms: Arc::new(AtomicI64::new(plan.clock_offsets_ms[id])),
            disk_pause_ms: Arc::new(AtomicU64::new(plan.disk_pause_ms)),
            generation: 0,
            running: None,
            seen: None,
            lost: None,
            witnesses: Vec::new(),
            held_up: false,
            last_end: End::Kill,
        };
        Rc::new(World {
            plan: plan.clone(),
            net,
            nodes: Nodes::new((0..plan.nodes).map(address).collect()),
            ring: Ring::even(plan.nodes, plan.config.replication_factor),
            start: Instant::now(),
            places: RefCell::new((0..plan.nodes).map(place).collect()),
            history: RefCell::default(),
            last_us: RefCell::new(0),
            findings: RefCell::default(),
            vfses: RefCell::default(),
            met: RefCell::default(),
            writes: RefCell::new(0),
            hinted: RefCell::default(),
        })
    }

    /// The whole run.
    async fn live(self: Rc<Self>) -> Option<Finding> {
        for node in self.ids() {
            self.start_node(node).await;
        }
        let fuses: Vec<JoinHandle<()>> =
            self.ids().map(|node| tokio::task::spawn_local(self.clone().watch_fuse(node))).collect();
        let hints = tokio::task::spawn_local(self.clone().watch_hints());
        let faults = self.plan.faults.iter().cloned();
        let faults: Vec<JoinHandle<()>> =
            faults.map(|(at_ms, fault)| tokio::task::spawn_local(self.clone().fault(at_ms, fault))).collect();
        let clients = self.plan.clients.iter().cloned().enumerate();
        let clients: Vec<JoinHandle<()>> = clients
            .map(|(client, steps)| tokio::task::spawn_local(self.clone().client(client as u32, steps)))
            .collect();
        for task in clients.into_iter().chain(faults) {
            if let Err(panic) = task.await {
                self.find("panic", panic.to_string());
            }
        }
        self.heal().await;
        for watch in fuses.into_iter().chain([hints]) {
            watch.abort();
        }
        if self.findings.borrow().is_empty() {
            self.settle().await;
        }
        self.findings.borrow_mut().drain(..).next()
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.plan.nodes as u32).map(NodeId)
    }

    fn find(&self, rule: &str, story: String) {
        self.net.trace.say("finding", || format!("FOUND {rule}: {story}"));
        self.findings.borrow_mut().push(Finding::new(rule, story));
    }

    fn place<T>(&self, node: NodeId, look: impl FnOnce(&mut Place) -> T) -> T {
        look(&mut self.places.borrow_mut()[node.0 as usize])
    }

    fn service(&self, node: NodeId) -> Option<(Arc<Service>, Signal)> {
        self.place(node, |place| {
            let running = place.running.as_ref()?;
            Some((running.core.service.clone(), running.ended.clone()))
        })
    }

    fn peers(&self, node: NodeId) -> Option<Arc<SimPeers>> {
        self.place(node, |place| Some(place.running.as_ref()?.peers.clone()))
    }

    fn store(&self, node: NodeId) -> Option<Store> {
        self.place(node, |place| Some(place.running.as_ref()?.core.store.clone()))
    }

    // ------------------------------------------------------------------------------------------- servers

    /// Starts a server that is down. One that is refused by its own files is looked at, and left down if its disk is
    /// in trouble.
    async fn start_node(self: &Rc<Self>, node: NodeId) {
        if self.place(node, |place| place.running.is_some()) {
            return;
        }
        match self.try_start(node) {
            Ok(()) => self.must_still_be_seen(node),
            Err(why) => {
                let (burned, in_trouble) =
                    self.place(node, |place| (place.disk.take_burned(), place.disk.counts().failures > 0));
                self.place(node, |place| place.disk.end(burned.unwrap_or(End::Kill)));
                self.net.trace.say("not started", || format!("{node} does not start: {why}"));
                if burned.is_none() && !in_trouble {
                    self.find("a server starts on its own files", format!("server {node}: {why}"));
                }
            }
        }
    }

    fn try_start(self: &Rc<Self>, node: NodeId) -> Result<(), String> {
        let mut places = self.places.borrow_mut();
        let place = &mut places[node.0 as usize];
        let process = place.disk.begin();
        let name = format!("sim-{}", VFS_NUMBER.fetch_add(1, Ordering::Relaxed));
        let vfs = Arc::new(SimVfs::register(&place.disk, process, name));
        self.vfses.borrow_mut().push(vfs.clone());
        let (start, offset) = (self.start, place.clock_offset_ms.clone());
        let clock = Arc::new(Clock::with_wall(move || {
            let us = start.elapsed().as_micros() as i64 + offset.load(Ordering::Relaxed) * 1000;
            WALL_START_US + us
        }));
        let earlier_wall_us = place.generation;
        place.generation = clock.wall_us().max(place.generation + 1);
        let pause_ms = place.disk_pause_ms.clone();
        let random =
            std::sync::Mutex::new(fastrand::Rng::with_seed(self.plan.seed ^ place.generation as u64));
        let pace = move || {
            let most_ms = pause_ms.load(Ordering::Relaxed);
            Duration::from_millis(random.lock().expect("one thread").u64(..=most_ms))
        };
        let config = Arc::new(self.plan.config.clone());
        let options = CoreOptions {
            config: config.clone(),
            nodes: self.nodes.clone(),
            id: node,
            generation: place.generation,
            earlier_wall_us,
            data: PathBuf::from("/sim"),
            disk: Disk::simulated(vfs),
            drive: Drive::Task(Arc::new(pace)),
            clock,
        };
        let started =
            Core::start(options, |point| SimPeers::start(&self.net, point, self.plan.nodes, &config));
        let (core, peers) = started.map_err(|error| error.to_string())?;
        self.net.open(node, process, core.service.clone());
        self.net.trace.say("started", || format!("{node} started"));
        tokio::task::spawn_local(self.clone().make_ready(node, process, core.service.clone(), peers.clone()));
        place.running = Some(Running { core, peers, ended: Signal::default(), ready: false });
        Ok(())
    }

    /// As a node does before it answers clients.
    async fn make_ready(
        self: Rc<Self>,
        node: NodeId,
        process: u64,
        service: Arc<Service>,
        peers: Arc<SimPeers>,
    ) {
        let within = self.plan.config.connect_timeout();
        peers.first_attempts(within).await;
        service.reconciler.introduced(within).await;
        if !self.net.runs(node, process) {
            return;
        }
        self.must_know_what_it_lost(node, &service);
        self.place(node, |place| {
            place.running.as_mut().expect("it runs").ready = true;
            place.lost = match place.lost {
                Some(Lost::Now | Lost::Known) if service.reconciler.lacks() => Some(Lost::Known),
                Some(Lost::Now | Lost::Known) if service.reconciler.was_told() => Some(Lost::Regained),
                Some(Lost::Now | Lost::Known) => Some(Lost::Unknown),
                other => other,
            };
            if let Some(lost) = place.lost {
                self.net.trace.say("ready", || format!("{node} is ready; its files: {lost:?}"));
            }
        });
    }

    /// A server that was told how much it had logged knows whether its files have less.
    fn must_know_what_it_lost(&self, node: NodeId, service: &Service) {
        let witnesses = self.place(node, |place| std::mem::take(&mut place.witnesses));
        let told = |(other, generation): &&(NodeId, i64)| {
            service.reconciler.has_heard(*other)
                && self.place(*other, |place| place.generation == *generation)
        };
        if let Some((other, _)) = witnesses.iter().find(told)
            && !service.reconciler.was_told()
        {
            let story = format!("server {other} remembers more than {node} has, and {node} heard it");
            self.find("a server knows that it lost files", story);
        }
    }

    /// Processes of other servers that remember more rows of this one.
    fn witnesses(&self, node: NodeId, logged: i64) -> Vec<(NodeId, i64)> {
        let remembers = |other: &NodeId| {
            self.service(*other).is_some_and(|(service, _)| service.reconciler.remembers(node) > logged)
        };
        let others = self.ids().filter(|other| *other != node && self.plan.config.reconciliation);
        others.filter(remembers).map(|other| (other, self.place(other, |place| place.generation))).collect()
    }

    /// The files of a server that has just ended are gone, or others are in their place, in which `logged` rows were
    /// logged.
    fn replace_files(&self, node: NodeId, files: Image, generation: i64, logged: Option<i64>) {
        let witnesses = logged.map_or(Vec::new(), |logged| self.witnesses(node, logged));
        self.place(node, |place| {
            place.disk.restore(files);
            place.generation = generation;
            place.seen = None;
            place.lost = Some(Lost::Now);
            place.witnesses = witnesses;
        });
    }

    /// Ends a server's process, if it runs.
    fn end_node(&self, node: NodeId, end: End) {
        let running = self.place(node, |place| place.running.take());
        let Some(mut running) = running else { return };
        if running.ready && !running.core.service.reconciler.lacks() {
            self.place(node, |place| {
                if place.lost == Some(Lost::Known) {
                    place.lost = Some(Lost::Regained);
                }
            });
        }
        if self.place(node, |place| place.lost) == Some(Lost::Known)
            && running.core.store.remembered("whole") == Some(0)
        {
            // Whoever remembers anything of it will tell it again.
            let witnesses = self.witnesses(node, 0);
            self.place(node, |place| place.witnesses = witnesses);
        }
        // Before the disk is gone: what did its readers see?
        let seen = all_cells(&running.core.store).ok();
        self.met.borrow_mut().add(&running.core.service);
        self.note_hints(node, &running.core.store);
        self.net.trace.say("ended", || format!("{node} ended: {end:?}"));
        self.net.close(node);
        running.peers.close();
        running.core.end_background();
        running.ended.give();
        self.place(node, |place| {
            place.disk.end(end);
            place.last_end = end;
            place.seen = seen.or(place.seen.take());
        });
    }

    fn end_all(&self, end: End) {
        for node in self.ids() {
            self.end_node(node, end);
        }
    }

    /// A cell that a reader could see before the crash is there after it, or a newer one.
    fn must_still_be_seen(&self, node: NodeId) {
        let Some(seen) = self.place(node, |place| place.seen.take()) else { return };
        let Some(store) = self.store(node) else { return };
        let Ok(now) = all_cells(&store) else { return }; // its fuse burned meanwhile
        let now: BTreeMap<Vec<u8>, Cell> = now.into_iter().collect();
        for (engine_key, cell) in seen {
            let there = now.get(&engine_key);
            if there.is_none() && cell.content == Content::Tombstone && self.plan.collects() {
                continue; // it was collected, and that was on the disk, but not yet seen
            }
            if there.is_none_or(|there| there.order(&cell).is_lt()) {
                let story = format!(
                    "server {node} showed {} {cell:?} before it ended and {there:?} after its start",
                    name_of(&engine_key)
                );
                return self.find("what a reader saw survives a crash", story);
            }
        }
    }

    async fn watch_fuse(self: Rc<Self>, node: NodeId) {
        let burned = self.place(node, |place| place.disk.on_burned());
        loop {
            burned.notified().await;
            let Some(end) = self.place(node, |place| place.disk.take_burned()) else { continue };
            self.end_node(node, end);
            sleep(Duration::from_millis(20)).await;
            self.start_node(node).await;
        }
    }

    // -------------------------------------------------------------------------------------------- faults

    async fn fault(self: Rc<Self>, at_ms: u64, fault: Fault) {
        sleep(Duration::from_millis(at_ms)).await;
        self.net.trace.say("fault", || format!("FAULT {fault:?}"));
        let wait = |ms: u64| sleep(Duration::from_millis(ms));
        match fault {
            Fault::End { node, end, down_ms } => {
                self.end_node(node, end);
                wait(down_ms).await;
                self.start_node(node).await;
            }
            Fault::Fuse { node, operations, end, down_ms } => {
                self.place(node, |place| {
                    if place.running.is_some() {
                        place.disk.light_fuse(operations, end);
                    }
                });
                wait(down_ms).await;
            }
            Fault::EndAll { end, down_ms } => {
                self.end_all(end);
                wait(down_ms).await;
                for node in self.ids() {
                    self.start_node(node).await;
                }
            }
            Fault::Damage { node, down_ms } => {
                self.end_node(node, End::Kill);
                wait(down_ms).await;
                self.damage(node).await;
            }
            Fault::Cut { from, to, ms } => {
                self.net.cut(from, to, true);
                wait(ms).await;
                self.net.cut(from, to, false);
            }
            Fault::Split { group, ms } => {
                self.split(&group, true);
                wait(ms).await;
                self.split(&group, false);
            }
            Fault::Flap { from, to, times, ms } => {
                for _ in 0..times {
                    self.net.cut(from, to, true);
                    wait(ms / u64::from(times) / 2).await;
                    self.net.cut(from, to, false);
                    wait(ms / u64::from(times) / 2).await;
                }
            }
            Fault::Freeze { node, ms } => {
                self.place(node, |place| place.held_up = true);
                self.net.freeze(node, Instant::now() + Duration::from_millis(ms));
                wait(ms).await;
            }
            Fault::Clock { node, by_ms } => {
                self.place(node, |place| place.clock_offset_ms.fetch_add(by_ms, Ordering::Relaxed));
            }
            Fault::Disk { node, trouble, ms } => {
                self.place(node, |place| place.disk.set_trouble(trouble));
                wait(ms).await;
                self.place(node, |place| place.disk.set_trouble(Trouble::default()));
                // A disk that failed is not trusted until a restart.
                self.end_node(node, End::Kill);
                wait(10).await;
                self.start_node(node).await;
            }
            Fault::LoseDisk { node, down_ms } => {
                self.end_node(node, End::Kill);
                self.replace_files(node, Image::new(), 0, Some(0));
                wait(down_ms).await;
                self.start_node(node).await;
            }
            Fault::OldCopy { node, ms } => {
                let logged = self.store(node).map(|store| store.logged());
                self.end_node(node, End::Kill);
                let (copy, generation) = self.place(node, |place| (place.disk.image(), place.generation));
                self.start_node(node).await;
                // A commit whose outcome was unknown may be in the copy after all.
                let logged = logged.max(self.store(node).map(|store| store.logged()));
                wait(ms).await;
                self.end_node(node, End::Kill);
                self.replace_files(node, copy, generation, logged);
                self.start_node(node).await;
            }
            Fault::SlowDisk { node, pause_ms, ms } => {
                let former = self.place(node, |place| {
                    place.held_up = true;
                    place.disk_pause_ms.swap(pause_ms, Ordering::Relaxed)
                });
                wait(ms).await;
                self.place(node, |place| place.disk_pause_ms.store(former, Ordering::Relaxed));
            }
        }
    }

    fn split(&self, group: &[NodeId], cut: bool) {
        for from in self.ids() {
            for to in self.ids() {
                if group.contains(&from) != group.contains(&to) {
                    self.net.cut(from, to, cut);
                }
            }
        }
    }

    /// Flips bits in the files of a server that is down, or cuts off the end of its log: it must refuse them or not be
    /// harmed. Then it gets its own files back, as from a copy. Not its log after a power cut: then the end of that is
    /// known only after the next start (`store::mark`).
    async fn damage(self: &Rc<Self>, node: NodeId) {
        if self.place(node, |place| place.running.is_some()) {
            return;
        }
        let disk = self.place(node, |place| place.disk.clone());
        let (whole, seen) = (disk.image(), self.place(node, |place| place.seen.clone()));
        let mut damaged = whole.clone();
        let mut random = fastrand::Rng::with_seed(self.plan.seed ^ self.now_us());
        let powered = self.place(node, |place| place.last_end == End::Kill);
        let damageable = |name: &str| powered || !name.ends_with(LOG_WAL);
        let mut files: Vec<_> =
            damaged.iter_mut().filter(|(name, bytes)| !bytes.is_empty() && damageable(name)).collect();
        if files.is_empty() {
            return self.start_node(node).await;
        }
        // Where the rows are that may be nowhere else, more often than elsewhere.
        let wanted = random.choice([LOG_WAL, LOG, "any"]);
        let place = files.iter().position(|(name, _)| wanted.is_some_and(|wanted| name.ends_with(wanted)));
        let (name, bytes) = &mut files.swap_remove(place.unwrap_or_else(|| random.usize(..files.len())));
        if name.ends_with(LOG_WAL) && random.bool() {
            let left = random.usize(..bytes.len());
            self.net.trace.say("damaged", || format!("{name} ends after {left} of {} bytes", bytes.len()));
            bytes.truncate(left);
        } else {
            for _ in 0..random.u8(1..=3) {
                let at = random.usize(..bytes.len());
                bytes[at] ^= 1 << random.u8(..8);
                self.net.trace.say("damaged", || format!("a bit of byte {at} of {} in {name}", bytes.len()));
            }
        }
        disk.restore(damaged);
        match self.try_start(node) {
            Ok(()) => self.must_still_be_seen(node),
            Err(why) => self.net.trace.say("refused", || format!("{node} refuses its damaged files: {why}")),
        }
        self.end_node(node, End::Kill);
        disk.end(End::Kill);
        disk.restore(whole);
        self.place(node, |place| place.seen = seen);
        self.start_node(node).await;
    }

    /// Faults end.
    async fn heal(self: &Rc<Self>) {
        self.net.heal();
        for node in self.ids() {
            self.place(node, |place| {
                place.disk.set_trouble(Trouble::default());
                place.disk.put_out_fuse();
                place.disk_pause_ms.store(self.plan.disk_pause_ms, Ordering::Relaxed);
            });
            let refuses = self.store(node).is_some_and(|store| store.not_writable().is_some());
            if refuses {
                self.end_node(node, End::Kill);
            }
        }
        sleep(Duration::from_millis(50)).await; // what a fuse ended is started by its watch
        for node in self.ids() {
            self.start_node(node).await;
            if self.place(node, |place| place.running.is_none()) {
                // Its first start after trouble on the disk failed; there is none now.
                if let Err(why) = self.try_start(node) {
                    self.find("a server starts on its own files", format!("server {node}: {why}"));
                }
            }
        }
    }

    // ------------------------------------------------------------------------------------------- clients

    /// A time of the history, in microseconds: later calls get larger ones.
    fn now_us(&self) -> u64 {
        let mut last = self.last_us.borrow_mut();
        *last = (self.start.elapsed().as_micros() as u64).max(*last + 1);
        *last
    }

    async fn client(self: Rc<Self>, client: u32, steps: Vec<Step>) {
        let session = Arc::new(Session::new(([127, 0, 0, 1], 9).into()));
        for step in steps {
            sleep(Duration::from_millis(step.think_ms)).await;
            let Some(via) = self.reachable(step.via) else { continue };
            self.step(client, &session, via, &step).await;
        }
    }

    /// That server, or else another that runs.
    fn reachable(&self, wanted: NodeId) -> Option<NodeId> {
        let nodes = self.plan.nodes as u32;
        let ready =
            |node: &NodeId| self.place(*node, |place| place.running.as_ref().is_some_and(|it| it.ready));
        (0..nodes).map(|more| NodeId((wanted.0 + more) % nodes)).find(ready)
    }

    async fn step(&self, client: u32, session: &Arc<Session>, via: NodeId, step: &Step) -> Option<Told> {
        let (asked, call) = self.call_of(client, step);
        self.net.thawed(via).await;
        let (service, ended) = self.service(via)?;
        let began_us = self.now_us();
        let began = Instant::now();
        let answering = service.call(session, call);
        drop(service);
        let reply = match answering {
            Answering::Now(reply) | Answering::Heavy(reply, _) => Some(reply),
            Answering::Later(reply) => tokio::select! {
                biased;
                reply = reply => Some(reply.0),
                () = ended.given() => None,
            },
        };
        self.net.thawed(via).await;
        let told = reply.map_or_else(|| Told::Unknown("the server ended".to_owned()), told);
        self.check_deadline(via, step, began.elapsed());
        self.net.trace.client(client, via, weight(step, &told), || {
            let key = step.key;
            format!("client {client} via {via}: {:?} k{key} at {} → {told:?}", step.what, step.level)
        });
        let operation = Operation {
            client,
            key: key_of(step.key),
            level: step.level,
            asked,
            began_us,
            ended_us: self.now_us(),
            told: told.clone(),
        };
        self.history.borrow_mut().operations.push(operation);
        Some(told)
    }

    fn call_of(&self, client: u32, step: &Step) -> (Asked, Call) {
        let key = key_of(step.key).to_vec();
        let level = chord::Level(step.level.number());
        match step.what {
            What::Put(bytes) => {
                let mut writes = self.writes.borrow_mut();
                *writes += 1;
                let mut value = format!("c{client}w{writes}").into_bytes();
                value.resize(bytes.max(value.len()), b'.');
                let request = PutRequest::new(key, value.clone(), level, None, None, None);
                (Asked::Put(value.into()), Call::Put(request))
            }
            What::Remove => (Asked::Remove, Call::Remove(RemoveRequest::new(key, level, None, None))),
            What::Get => (Asked::Get, Call::Get(GetRequest::new(key, level, None))),
        }
    }

    fn check_deadline(&self, via: NodeId, step: &Step, took: Duration) {
        let config = &self.plan.config;
        let deadline = if step.what == What::Get { config.read_timeout() } else { config.write_timeout() };
        let held_up = self.place(via, |place| place.held_up);
        if took > deadline + DEADLINE_MARGIN && !held_up {
            self.find("no request outlives its deadline", format!("{step:?} via {via} took {took:?}"));
        }
    }

    // -------------------------------------------------------------------------------------------- phase 2

    async fn settle(self: &Rc<Self>) {
        self.net.trace.say("phase", || "faults are over".to_owned());
        if let Err(story) = self.until_quiet().await {
            return self.find("hints drain", story);
        }
        if let Some(story) = self.hint_not_delivered() {
            return self.find("a hint reaches its replica", story);
        }
        if self.hints_suffice() && !judge::all_equal(self.contents(), &self.ring, false) {
            return self.find("hints make replicas equal", self.how_they_differ());
        }
        let session = Arc::new(Session::new(([127, 0, 0, 1], 9).into()));
        let reader = self.plan.clients.len() as u32;
        if self.plan.config.reconciliation {
            self.until_equal().await;
        } else {
            self.read_all(&session, reader).await;
        }
        if !self.findings.borrow().is_empty() {
            return;
        }
        let mut met = *self.met.borrow();
        for node in self.ids() {
            met.add(&self.service(node).expect("it was started").0);
        }
        match self.files_lost() {
            FilesLost::No => {}
            FilesLost::Known => self.met.borrow_mut().losses_known += 1,
            FilesLost::Unknown => self.met.borrow_mut().losses_unknown += 1,
        }
        let found = judge::judge(
            &self.plan,
            judge::Seen {
                history: &self.history.borrow(),
                contents: self.contents(),
                ring: &self.ring,
                sent_again: met.sent_again > 0,
                files: self.files_lost(),
            },
        );
        if let Some(finding) = found {
            return self.find(&finding.rule, finding.story);
        }
        if let Err(story) = self.until_connected().await {
            return self.find("servers find each other again", story);
        }
        for key in [1_000_000, 1_000_001, 1_000_002] {
            let what = What::Put(20);
            let step =
                Step { think_ms: 0, via: NodeId(key % self.plan.nodes as u32), key, level: Level::All, what };
            match self.step(reader, &session, step.via, &step).await {
                Some(Told::Written { .. }) => {}
                other => {
                    return self.find("a healthy cluster answers", format!("put k{key} at ALL: {other:?}"));
                }
            }
        }
    }

    /// A connection whose end was not told is used until its silence tells, and writes at ALL time out meanwhile.
    async fn until_connected(&self) -> Result<(), String> {
        let until = Instant::now() + CONNECTED_WITHIN;
        loop {
            let alone = self.ids().find(|node| !self.peers(*node).is_some_and(|peers| peers.reach_all()));
            match alone {
                None => return Ok(()),
                Some(node) if Instant::now() >= until => {
                    return Err(format!("server {node} does not reach all others"));
                }
                Some(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Hints are looked at for as long as they are there, where nothing but they would bring a write.
    async fn watch_hints(self: Rc<Self>) {
        if self.plan.config.reconciliation {
            return;
        }
        loop {
            sleep(Duration::from_millis(50)).await;
            for node in self.ids() {
                if let Some(store) = self.store(node) {
                    self.note_hints(node, &store);
                }
            }
        }
    }

    fn note_hints(&self, from: NodeId, store: &Store) {
        if self.plan.config.reconciliation || store.not_writable().is_some() {
            return;
        }
        for to in store.hint_totals().into_keys() {
            let Ok(hints) = store.hints(to, usize::MAX, usize::MAX) else { return }; // its disk is gone
            for hint in hints {
                let mutation = Mutation::decode(&hint.mutation).expect("the store checks its hints");
                for (column, cell) in &mutation.cells {
                    let engine_key = key::encode(mutation.table, &mutation.partition, column);
                    let mut hinted = self.hinted.borrow_mut();
                    let newest = hinted.entry((from, to, engine_key)).or_insert_with(|| cell.clone());
                    if newest.order(cell).is_lt() {
                        *newest = cell.clone();
                    }
                }
            }
        }
    }

    /// All hints are said to be delivered: a hint that was there, and a replica that has nothing as new. Of files that
    /// were lost nothing is asked: a hint went with them, or what a hint had brought.
    fn hint_not_delivered(&self) -> Option<String> {
        let lost = |node: NodeId| self.place(node, |place| place.lost.is_some());
        self.hinted.borrow_mut().retain(|(from, to, _), _| !lost(*from) && !lost(*to));
        let held: BTreeMap<NodeId, BTreeMap<Vec<u8>, Cell>> =
            self.contents().into_iter().map(|(node, cells)| (node, cells.into_iter().collect())).collect();
        let hinted = self.hinted.borrow();
        let lost = hinted.iter().find(|((_, to, engine_key), cell)| {
            held[to].get(engine_key).is_none_or(|held| held.order(cell).is_lt())
        });
        lost.map(|((from, to, engine_key), cell)| {
            let held = held[to].get(engine_key);
            format!("server {from} had a hint for {to}: {} {cell:?}; there is {held:?}", name_of(engine_key))
        })
    }

    /// Nothing else makes replicas equal, and no server took a write with it that it had not yet seen through.
    fn hints_suffice(&self) -> bool {
        let config = &self.plan.config;
        let kept = config.handoff && config.hint_window_s == Config::default().hint_window_s;
        kept && !config.reconciliation && self.met.borrow().ends == 0
    }

    /// What is promised of files that were lost.
    fn files_lost(&self) -> FilesLost {
        let lost = self.ids().find_map(|node| self.place(node, |place| place.lost));
        match lost {
            None => FilesLost::No,
            Some(Lost::Known | Lost::Regained) => FilesLost::Known,
            Some(Lost::Now | Lost::Unknown) => FilesLost::Unknown,
        }
    }

    /// Without reconciliation, what nobody reads may stay different.
    async fn read_all(&self, session: &Arc<Session>, reader: u32) {
        for key in self.keys() {
            let step = Step { think_ms: 0, via: NodeId(0), key, level: Level::All, what: What::Get };
            match self.step(reader, session, NodeId(0), &step).await {
                Some(Told::Found { .. }) => {}
                other => {
                    return self.find("a healthy cluster answers", format!("get k{key} at ALL: {other:?}"));
                }
            }
        }
    }

    /// With it, all replicas become equal by themselves. If they do not, the judges say how they differ.
    async fn until_equal(&self) {
        let deadline = Instant::now() + EQUAL_WITHIN;
        while !judge::all_equal(self.contents(), &self.ring, self.plan.collects()) {
            if Instant::now() > deadline {
                return self.find("replicas become equal", self.how_they_differ());
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    fn how_they_differ(&self) -> String {
        let mut lines = Vec::new();
        for (node, cells) in self.contents() {
            for (engine_key, cell) in cells {
                lines.push(format!("{} on {node}: {:?} {:?}", name_of(&engine_key), cell.stamp, cell.kind()));
            }
        }
        lines.sort();
        for node in self.ids() {
            let Some((service, _)) = self.service(node) else { continue };
            for range in service.reconciler.ranges() {
                lines.push(format!("range of {} on {node}: {range:?}", range.owner));
            }
        }
        lines.join("\n")
    }

    /// Until everybody sees everybody up and no hint is left.
    async fn until_quiet(&self) -> Result<(), String> {
        let deadline = Instant::now() + QUIET_WITHIN;
        let mut quiet_since = Instant::now();
        loop {
            let mut waits = Vec::new();
            for node in self.ids() {
                let Some((service, _)) = self.service(node) else {
                    waits.push(format!("server {node} is down"));
                    continue;
                };
                let down = self.ids().filter(|other| !service.members.is_alive(*other));
                waits.extend(down.map(|other| format!("server {node} sees {other} down")));
                let hints = service.store.hint_totals().into_iter().filter(|(_, held)| held.count > 0);
                waits.extend(
                    hints.map(|(to, held)| format!("server {node} has {} hints for {to}", held.count)),
                );
            }
            if !waits.is_empty() {
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() > QUIET_FOR {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{QUIET_WITHIN:?} after the last fault: {}", waits.join(", ")));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every key that was written or asked for.
    fn keys(&self) -> Vec<u32> {
        let mut keys: Vec<u32> = self.plan.clients.iter().flatten().map(|step| step.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// What each server holds.
    fn contents(&self) -> judge::Contents {
        let cells = |node| {
            let store = self.store(node).expect("it was started");
            (node, all_cells(&store).expect("its disk is well"))
        };
        self.ids().map(cells).collect()
    }
}

/// The name of a key of a plan.
pub fn key_of(number: u32) -> Bytes {
    // Spread over the ring by the first byte.
    let spread = (number.wrapping_mul(0x9e37_79b9) >> 24) as u8;
    let mut key = vec![spread];
    key.extend_from_slice(format!("k{number}").as_bytes());
    key.into()
}

/// An engine key for people.
pub fn name_of(engine_key: &[u8]) -> String {
    match key::decode(engine_key) {
        Ok(cell) => String::from_utf8_lossy(&cell.partition).into_owned(),
        Err(error) => error.to_string(),
    }
}

fn all_cells(store: &Store) -> Result<Vec<(Vec<u8>, Cell)>, String> {
    let mut cells = Vec::new();
    let mut after = Vec::new();
    loop {
        let page = store.page(&after, &[], 1_000).map_err(|error| error.to_string())?;
        cells.extend(page.cells);
        if page.complete {
            return Ok(cells);
        }
        after = page.upto;
    }
}

/// What a client asked and was told, as one number.
fn weight(step: &Step, told: &Told) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (step.key, step.level.number()).hash(&mut hasher);
    match told {
        Told::Written { stamp } => (1, stamp.map(|stamp| stamp.0)).hash(&mut hasher),
        Told::Found { value, stamp } => (2, value, stamp.map(|stamp| stamp.0)).hash(&mut hasher),
        Told::Refused(why) => (3, why).hash(&mut hasher),
        Told::Unknown(why) => (4, why).hash(&mut hasher),
    }
    hasher.finish()
}

fn told(reply: Reply) -> Told {
    let refused = |refusal: Refusal| match refusal {
        Refusal::Timeout(timeout) => Told::Unknown(format!("{timeout:?}")),
        other => Told::Refused(format!("{other:?}")),
    };
    match reply {
        Reply::Put(Ok(written)) | Reply::Remove(Ok(written)) => {
            Told::Written { stamp: written.stamp.map(Stamp) }
        }
        Reply::Get(Ok(got)) => Told::Found {
            value: got.value.map(Bytes::from),
            stamp: got.stamp.filter(|stamp| *stamp > 0).map(Stamp),
        },
        Reply::Put(Err(refusal)) | Reply::Remove(Err(refusal)) | Reply::Get(Err(refusal)) => refused(refusal),
        other => panic!("{other:?} answers no request of these clients"),
    }
}
