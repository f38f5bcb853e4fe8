//! Three servers' reconcilers over stores of their own, and no network between them: what one of them asks is answered
//! by the other at once; before the answer arrives, a test may do something else.

use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use super::pace::Work;
use super::standing::Claim;
use super::*;
use crate::answer::{AnswerTo, ReadAnswer};
use crate::cell::Content;
use crate::key::KV_TABLE;
use crate::membership::Event;
use crate::slice::Slice;
use crate::store::leaves::Horizon;
use crate::store::{Disk, Drive};
use crate::thrift::chord::PeerSpan;

/// Of every server's first and only start.
const GENERATION: i64 = 7;

/// What a test does when a server has answered and the answer is on its way.
type Meddle = Box<dyn Fn(NodeId, PeerReconcile) -> BoxFuture<'static, ()> + Send + Sync>;

/// The way of one server to the others.
#[derive(Default)]
struct Way {
    me: NodeId,
    servers: Arc<Servers>,
}

/// Where all meet.
#[derive(Default)]
struct Servers {
    all: OnceLock<Vec<Arc<Reconciler>>>,
    meddle: OnceLock<Meddle>,
}

impl Peers for Way {
    fn reconcile(&self, request: PeerReconcile, to: AnswerTo<Result<PeerReconciled, Failure>>) {
        let (me, servers) = (self.me, self.servers.clone());
        tokio::spawn(async move {
            let node = to.node();
            let other = &servers.all.get().expect("they were made before they ask")[node.0 as usize];
            let answer = other.answer(me, request.clone()).await;
            if let Some(meddle) = servers.meddle.get() {
                meddle(node, request).await;
            }
            to.send(Ok(answer));
        });
    }

    fn apply(&self, _: &Bytes, _: AnswerTo<ApplyAnswer>) {
        unreachable!("reconciliation does not ask that")
    }

    fn apply_batch(&self, _: Vec<Bytes>, _: AnswerTo<Result<Vec<ApplyAnswer>, Failure>>) {
        unreachable!("reconciliation does not ask that")
    }

    fn read(&self, _: &Slice, _: AnswerTo<ReadAnswer>) {
        unreachable!("reconciliation does not ask that")
    }

    fn latency_us(&self, _: NodeId) -> u64 {
        0
    }

    fn greeted_by(&self, _: NodeId) {}

    fn gauges(&self) -> Vec<(String, i64)> {
        Vec::new()
    }
}

/// Three servers, each a replica of everything.
struct Cluster {
    servers: Arc<Servers>,
    _files: Vec<TempDir>,
}

impl Cluster {
    /// Every server has heard every other one.
    async fn new() -> Cluster {
        let config = Config { reconcile_lag_ms: 0, collection_lag_ms: 0, ..Config::default() };
        let config = Arc::new(config);
        let servers = Arc::<Servers>::default();
        let files: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let made = files.iter().enumerate().map(|(node, files)| {
            let way = Way { me: NodeId(node as u32), servers: servers.clone() };
            reconciler(way, files, &config)
        });
        assert!(servers.all.set(made.collect()).is_ok());
        let cluster = Cluster { servers, _files: files };
        cluster.hear().await;
        cluster
    }

    /// Every server hears every other one once more.
    async fn hear(&self) {
        for server in self.servers.all.get().unwrap() {
            server.sample_clock();
            server.gather_promises().await;
        }
    }

    fn server(&self, node: usize) -> &Arc<Reconciler> {
        &self.servers.all.get().unwrap()[node]
    }

    /// Whatever is asked from now on, this comes between the answer and its arrival.
    fn meddle(
        &self,
        meddle: impl Fn(NodeId, PeerReconcile) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) {
        assert!(self.servers.meddle.set(Box::new(meddle)).is_ok(), "a test meddles in one way");
    }

    /// One server, and no other, gets this cell.
    async fn put(&self, node: usize, partition: u8, cell: Cell) {
        let mutation = Mutation {
            table: KV_TABLE,
            partition: vec![partition].into(),
            cells: vec![(Bytes::new(), cell)],
        };
        let store = &self.server(node).store;
        let answer = ask_one_apply(store, mutation).await;
        assert_eq!(answer, ApplyAnswer::Applied);
    }

    /// What a server has of a partition.
    fn get(&self, node: usize, partition: u8) -> Option<Cell> {
        let key = key::encode(KV_TABLE, &[partition], b"");
        let run = self.server(node).store.run(&key, &crate::store::leaves::behind(&key), 1);
        run.unwrap().0.pop().map(|(_, cell)| cell)
    }
}

async fn ask_one_apply(store: &Store, mutation: Mutation) -> ApplyAnswer {
    let mut answers = Answers::default();
    store.apply_from(Origin::Repair, Arc::new(mutation), answers.expect(NodeId(0)));
    answers.next().await.expect("one was asked").1
}

fn reconciler(way: Way, files: &TempDir, config: &Arc<Config>) -> Arc<Reconciler> {
    let opened =
        Store::open(files.path(), config, Disk::real(), Drive::task(), Arc::default(), |_| {}).unwrap();
    started(way, opened.0, config)
}

/// A start of a server on a store.
fn started(way: Way, store: Store, config: &Arc<Config>) -> Arc<Reconciler> {
    let me = way.me;
    let ring = Arc::new(Ring::even(3, 3));
    let members = Members::new(me, 3, GENERATION, config);
    for node in (0..3).map(NodeId).filter(|node| *node != me) {
        members.note(node, Event::Connected { generation: GENERATION });
    }
    let clock = Arc::new(Clock::with_wall(|| 1_000_000_000));
    clock.stamp();
    let parts = Parts {
        me,
        nodes: (0..3).map(NodeId).collect(),
        config: config.clone(),
        ring: ring.clone(),
        members: Arc::new(members),
        store,
        peers: Arc::new(way),
        clock: clock.clone(),
        stats: Arc::default(),
        outstanding: Outstanding::new(clock),
        standing: Arc::new(Standing::new(ring, false)),
        generation: GENERATION,
    };
    Reconciler::new(parts).unwrap()
}

fn value(stamp: i64) -> Cell {
    Cell { stamp: Stamp(stamp), content: Content::Value(Bytes::from_static(b"v")) }
}

fn is_asked(request: &PeerReconcile, asks: PeerAsks) -> bool {
    request.asks == Some(asks)
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_goes_where_it_is_missing() {
    let cluster = Cluster::new().await;
    cluster.put(0, 1, value(5)).await;
    cluster.put(2, 2, value(6)).await;
    assert_eq!(cluster.server(0).lead(0).await, 3, "one to server 1, one from server 2, one to server 2");
    assert_eq!(cluster.server(0).lead(0).await, 1, "what came from server 2 goes to server 1");
    assert_eq!(cluster.server(0).lead(0).await, 0);
    for node in 0..3 {
        assert_eq!((cluster.get(node, 1), cluster.get(node, 2)), (Some(value(5)), Some(value(6))));
    }
    let ranges = cluster.server(2).ranges();
    assert!(ranges[0].proven.is_some(), "{ranges:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_collection_is_not_given_as_read_after_it() {
    let cluster = Cluster::new().await;
    cluster.put(1, 1, value(5)).await;
    // Server 1 leads, for it cannot hear server 0. When it and server 2 have listed what they have, server 0 proves all
    // three equal, and what was deleted is collected.
    let collected = Horizon { stamp: Stamp(10), expired_s: 0 };
    let replicas = [cluster.server(1).clone(), cluster.server(2).clone()];
    cluster.meddle(move |_, request| {
        let replicas = replicas.clone();
        Box::pin(async move {
            if is_asked(&request, PeerAsks::VERSIONS) {
                for replica in replicas {
                    replica.adopt(0, collected).await.unwrap();
                }
            }
        })
    });
    let follower = Follower { node: NodeId(2), generation: GENERATION };
    let cut = cluster.server(1).cut(0);
    cluster.server(1).pass(0, &[follower], cut).await.unwrap();
    assert_eq!(cluster.server(2).horizon(0), collected);
    assert_eq!(cluster.get(2, 1), None, "it came back");
}

/// Killed after its first write was logged, and before it was written down that its files are new.
#[tokio::test(start_paused = true)]
async fn new_files_with_a_row_are_no_earlier_ones() {
    for remembered in [0, 50] {
        let cluster = Cluster::new().await;
        let first = cluster.server(0);
        cluster.put(0, 1, value(5)).await;
        assert_eq!((first.store.remembered(standing::INCARNATION), first.store.logged()), (None, 1));
        let memory = Claim { incarnation: 3, logged: remembered };
        cluster.server(1).known().files.memory.insert(NodeId(0), memory);
        let way = Way { me: NodeId(0), servers: cluster.servers.clone() };
        let again = started(way, first.store.clone(), &first.config);
        again.gather_promises().await;
        again.look_after_refill().await;
        assert_eq!(
            (again.lacks(), again.known().files.whole),
            (remembered > 0, remembered == 0),
            "{remembered}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_under_way_is_not_proven_to_be_everywhere() {
    let cluster = Cluster::new().await;
    let leader = cluster.server(0);
    for node in 0..3 {
        cluster.put(node, 1, value(5)).await;
    }
    let write = leader.outstanding.begin();
    let stamp = write.stamp();
    let later = leader.clock.stamp();
    (1..3).for_each(|node| cluster.server(node).clock.observe(later));
    cluster.hear().await;
    // It is given up while replicas are compared; what was summed up before that may lack it.
    let under_way = Mutex::new(Some(write));
    cluster.meddle(move |_, request| {
        if is_asked(&request, PeerAsks::COMPARE) {
            under_way.lock().unwrap().take();
        }
        Box::pin(async {})
    });
    assert!(leader.cut(0).upto > stamp);
    let mut proven = Vec::new();
    for _ in 0..2 {
        assert_eq!(leader.lead(0).await, 0);
        proven.push(leader.known().ranges[0].proven.expect("they are equal").0);
    }
    assert!(proven[0] < stamp, "{proven:?} {stamp}");
    assert!(proven[1] > stamp, "{proven:?} {stamp}");
}

#[tokio::test(start_paused = true)]
async fn a_comparison_scans_no_more_than_it_has_to() {
    const CELLS: u64 = 40_000;
    let cluster = Cluster::new().await;
    let follower = cluster.server(1);
    let cell = |column: u64| (Bytes::copy_from_slice(&column.to_be_bytes()), value(5));
    let cells = (0..CELLS).map(cell).collect();
    let mutation = Mutation { table: KV_TABLE, partition: vec![1].into(), cells };
    assert_eq!(ask_one_apply(&follower.store, mutation).await, ApplyAnswer::Applied);
    let stretch = &stretches(&follower.ring, 0, &[KV_TABLE])[0];
    let cut = follower.cut(0);
    for (theirs, summed) in [(10, 1..8 * 1024), (CELLS as i64, 8 * 1024..30 * 1024)] {
        let span = PeerSpan::new(stretch.end.clone(), theirs, vec![0; 16]);
        let request = PeerReconcile {
            epoch: Some(follower.ring.epoch() as i64),
            generation: Some(GENERATION),
            asks: Some(PeerAsks::COMPARE),
            range: Some(0),
            cut: Some(wire::cut(&cut)),
            start: Some(stretch.start.clone()),
            spans: Some(vec![span]),
            quick: Some(false),
            ..PeerReconcile::default()
        };
        let answer = follower.answer(NodeId(0), request).await;
        assert_eq!(answer.verdicts, Some(vec![1]), "it differs: {answer:?}");
        assert!(summed.contains(&follower.ranges()[0].cells), "{theirs}: {:?}", follower.ranges()[0]);
    }
}

/// A server that gets back what it lost does not know yet how far the others have collected.
async fn collected_but_by_server_1() -> Cluster {
    let cluster = Cluster::new().await;
    for node in [0, 2] {
        cluster.put(node, 1, value(3)).await;
        cluster.server(node).adopt(0, Horizon { stamp: Stamp(10), expired_s: 0 }).await.unwrap();
    }
    cluster
}

#[tokio::test(start_paused = true)]
async fn a_write_that_one_server_took_too_late_comes_to_all() {
    for leader in [0, 1] {
        let cluster = collected_but_by_server_1().await;
        cluster.put(1, 1, value(5)).await;
        let mut passes = 0;
        while cluster.server(leader).known().ranges[0].proven.is_none() {
            cluster.server(leader).lead(0).await;
            passes += 1;
            assert!(passes < 6, "{:?}", cluster.server(leader).ranges()[0]);
        }
        for node in 0..3 {
            assert_eq!(cluster.get(node, 1), Some(value(5)), "at {node}, led by {leader}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_stays_different_does_not_keep_others_waiting() {
    let cluster = collected_but_by_server_1().await;
    // Gone by the others' horizon, but not by its own: it gets what it deleted again and again.
    cluster.put(1, 1, Cell { stamp: Stamp(5), content: Content::Tombstone }).await;
    let leader = cluster.server(0);
    for event in [Event::Lost { why: String::new() }, Event::Refused { why: String::new() }] {
        leader.members.note(NodeId(2), event);
    }
    assert!(leader.leads(0) && leader.leads(2));
    // Time stands still while there is something to do: whoever never stops asking is kept waiting.
    let asked = AtomicUsize::new(0);
    cluster.meddle(move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
        0..500 => Box::pin(async {}),
        _ => Box::pin(std::future::pending()),
    });
    cluster.put(0, 200, value(7)).await;
    let rounds = tokio::spawn(leader.clone().run_rounds());
    let until = Instant::now() + Duration::from_secs(60);
    while cluster.get(1, 200).is_none() {
        assert!(Instant::now() < until, "range 2 has no turn");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(leader.lead(0).await > 0);
    rounds.abort();
}

#[tokio::test(start_paused = true)]
async fn replicas_that_are_equal_are_hardly_looked_at_while_another_is_away() {
    let cluster = Cluster::new().await;
    let leader = cluster.server(0);
    for node in 0..3 {
        cluster.server(node).look_after_refill().await;
    }
    cluster.hear().await;
    assert!((0..3).all(|node| leader.is_whole(NodeId(node), 0)));
    assert_eq!(leader.look_work(0), Work::Mend, "nothing is known yet");
    assert_eq!(leader.lead(0).await, 0);
    assert_eq!((leader.look_work(0), cluster.server(1).look_work(0)), (Work::Look, Work::Look));
    leader.known().heard.clear();
    assert_eq!(leader.lead(0).await, 0);
    assert_eq!(leader.look_work(0), Work::Mend, "equal, and not proven: the next pass may do it");

    for event in [Event::Lost { why: String::new() }, Event::Refused { why: String::new() }] {
        leader.members.note(NodeId(2), event);
    }
    cluster.put(0, 1, value(5)).await;
    leader.clock.stamp();
    for (range, moved, work, why) in [
        (0, 1, Work::Mend, "something differed"),
        (2, 0, Work::Mend, "what server 2 sent last may be on its way"),
        (0, 0, Work::Mend, "the same"),
        (0, 0, Work::Mend, "range 2 was not compared since"),
        (2, 0, Work::Look, "both were"),
    ] {
        assert_eq!(leader.lead(range).await, moved);
        assert!(leader.known().ranges[range].why.contains("server 2 is down"));
        assert_eq!([leader.look_work(0), leader.look_work(2)], [work; 2], "{why}");
        if why == "the same" {
            leader.sample_clock();
        }
    }

    leader.members.note(NodeId(2), Event::Connected { generation: GENERATION });
    cluster.hear().await;
    assert_eq!(leader.look_work(0), Work::Mend, "what it missed is not there yet");
    while leader.lead(0).await > 0 {}
    assert_eq!(leader.look_work(0), Work::Look);
    assert_eq!(cluster.get(2, 1), Some(value(5)));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_is_not_missed_in_silence() {
    let cluster = Cluster::new().await;
    let server = cluster.server(0);
    server.lead(0).await;
    assert_eq!(server.ranges()[0].why, "");
    let ended = tokio::spawn(server.clone().watched(async {}));
    ended.await.unwrap();
    assert_eq!(server.ranges()[0].why, "");
    let failing = tokio::spawn(server.clone().watched(async { panic!("on purpose") }));
    failing.await.unwrap_err();
    assert_eq!(server.ranges()[0].why, FAILED);
}
