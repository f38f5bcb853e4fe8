//! A server without its sockets and its directory's lock: everything between the calls of the wire and the disk, put
//! together in the order in which the parts need each other.
//!
//!   store (replay) ─► members, the way to the others ─► handoff, coordinator ─► service
//!
//! [`Node`](super::Node) builds one over the machine's disk, clock and network; a simulator builds the same over its
//! own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::answer::NodeId;
use crate::clock::Clock;
use crate::config::Config;
use crate::coordinator::Coordinator;
use crate::cut::Cut;
use crate::handoff::Handoff;
use crate::membership::Members;
use crate::nodes::Nodes;
use crate::peer::{Identity, Peers, Standpoint};
use crate::reconcile::{self, Outstanding, Reconciler, Standing};
use crate::replica::Replicas;
use crate::ring::Ring;
use crate::service::Service;
use crate::stats::Stats;
use crate::store::{Disk, Drive, HintTotals, OpenError, Store};

/// What a core is built from.
pub struct CoreOptions {
    /// Every setting.
    pub config: Arc<Config>,
    /// Every server's address.
    pub nodes: Nodes,
    /// Which of them this one is.
    pub id: NodeId,
    /// Rises with every start.
    pub generation: i64,
    /// The wall clock at an earlier start (µs since 1970); 0: there was none.
    pub earlier_wall_us: i64,
    /// Its data directory.
    pub data: PathBuf,
    /// Where that is.
    pub disk: Disk,
    /// How its files are worked on.
    pub drive: Drive,
    /// Stamps and wall time.
    pub clock: Arc<Clock>,
}

/// A server's parts, at work.
pub struct Core {
    /// Its cells and hints.
    pub store: Store,
    /// Carries out clients' requests.
    pub coordinator: Arc<Coordinator>,
    /// Answers every method of the wire.
    pub service: Arc<Service>,
    /// False keeps clients waiting: the way to the others has not been tried yet.
    pub look_round: watch::Sender<bool>,
    background: Vec<JoinHandle<()>>,
}

impl Core {
    /// Opens the store, which replays its log on this thread, and starts the background tasks on the current runtime.
    /// `way` makes the way to the other servers.
    pub fn start<P: Peers>(
        options: CoreOptions,
        way: impl FnOnce(Standpoint) -> Arc<P>,
    ) -> Result<(Core, Arc<P>), OpenError> {
        let CoreOptions { config, nodes, id, generation, clock, .. } = &options;
        let (config, nodes, id, generation) = (config.clone(), nodes.clone(), *id, *generation);
        let (clock, stats) = (clock.clone(), Arc::new(Stats::default()));
        let store = open_store(options, &clock, &stats)?;
        let ring = Arc::new(Ring::even(nodes.len(), config.replication_factor));
        let members = Arc::new(Members::new(id, nodes.len(), generation, &config));
        let identity = Arc::new(Identity {
            cluster: config.cluster_name.clone(),
            id,
            generation,
            epoch: ring.epoch(),
            ring_digest: ring.digest(),
        });
        let cut = Cut::start(&config);
        let way = way(Standpoint {
            identity: identity.clone(),
            members: members.clone(),
            clock: clock.clone(),
            stats: stats.clone(),
            cut: cut.clone(),
        });
        let peers: Arc<dyn Peers> = way.clone();
        let standing = Arc::new(Standing::new(ring.clone(), config.reconciliation));
        let replicas = Replicas::new(id, store.clone(), peers.clone(), standing.clone());
        let handoff = Arc::new(Handoff::new(
            id,
            nodes.ids().filter(|node| *node != id).collect(),
            config.clone(),
            store.clone(),
            members.clone(),
            peers.clone(),
            clock.clone(),
            stats.clone(),
        ));
        let outstanding = Outstanding::new(clock.clone());
        let reconciler = Reconciler::new(reconcile::Parts {
            me: id,
            nodes: nodes.ids().collect(),
            config: config.clone(),
            ring: ring.clone(),
            members: members.clone(),
            store: store.clone(),
            peers: peers.clone(),
            clock: clock.clone(),
            stats: stats.clone(),
            outstanding: outstanding.clone(),
            standing,
            generation,
        })?;
        let coordinator = Arc::new(Coordinator::new(
            id,
            config.clone(),
            ring.clone(),
            members.clone(),
            replicas.clone(),
            handoff.clone(),
            outstanding,
            stats.clone(),
            generation as u64,
        ));
        let mut background = vec![
            tokio::spawn(handoff.clone().run(members.take_returns())),
            tokio::spawn(renew_speculation(coordinator.clone())),
        ];
        background.extend(reconciler.start());
        let (look_round, looked_round) = watch::channel(true);
        let service = Arc::new(Service {
            identity,
            config,
            nodes,
            ring,
            members,
            store: store.clone(),
            replicas,
            peers,
            handoff,
            reconciler,
            coordinator: coordinator.clone(),
            clock,
            stats,
            cut,
            looked_round,
            refusals_said: Default::default(),
        });
        Ok((Core { store, coordinator, service, look_round, background }, way))
    }

    /// Ends the background tasks. The store stays open: requests may be under way.
    pub fn end_background(&mut self) {
        for task in self.background.drain(..) {
            task.abort();
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.end_background();
    }
}

/// Opens the store, saying what it recovers, and sets the clock past every stamp in it.
fn open_store(options: CoreOptions, clock: &Clock, stats: &Arc<Stats>) -> Result<Store, OpenError> {
    let CoreOptions { config, id, data, disk, drive, earlier_wall_us, .. } = options;
    let progress = |rows: u64| log::info!("server {id}: replaying the commit log, {rows} rows so far");
    let (store, recovered) = Store::open(&data, &config, disk, drive, stats.clone(), progress)?;
    if !clock.observe_stored(recovered.largest_stamp, earlier_wall_us) {
        let wild = recovered.largest_stamp;
        log::warn!(
            "server {id}: the stamp {wild} in its data is far ahead of every clock; new stamps do not follow it"
        );
    }
    log::info!(
        "server {id}: replayed {} rows of the commit log in {:.3} s; hints held: {}",
        recovered.rows_replayed,
        recovered.took.as_secs_f64(),
        describe_hints(&recovered.hints)
    );
    Ok(store)
}

fn describe_hints(hints: &BTreeMap<NodeId, HintTotals>) -> String {
    let texts: Vec<String> =
        hints.iter().map(|(node, held)| format!("{} for server {node}", held.count)).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

async fn renew_speculation(coordinator: Arc<Coordinator>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        coordinator.renew_speculation();
    }
}
