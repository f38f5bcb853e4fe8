//! Builds a server from its parts, in the order in which they need each other, and takes it down in the reverse order.
//!
//!   directory (lock) ─► identity ─► core (store, the way to the others, coordinator, service) ─► serve
//!
//! A node has no global state: several live in one process (`examples/four_nodes.rs`).

mod core;
mod directory;
mod identity;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::answer::NodeId;
use crate::clock::Clock;
use crate::config::Config;
use crate::net::TcpListener;
use crate::nodes::{Address, Nodes};
use crate::peer::Links;
use crate::store::{Disk, Drive, OpenError};
use crate::thrift::connection::Limits;

pub use self::core::{Core, CoreOptions};
use directory::Directory;
pub use directory::DirectoryError;
pub use identity::IdentityError;

/// How often, and how far apart, a start tries to get its port and directory before it says that they are taken.
const PATIENCE_ATTEMPTS: u32 = 10;
const PATIENCE_PAUSE: Duration = Duration::from_millis(50);

/// What a node is started with.
pub struct NodeOptions {
    /// Every setting.
    pub config: Config,
    /// Every server's address.
    pub nodes: Nodes,
    /// Which of them this one is.
    pub id: NodeId,
    /// Its data directory; made if there is none.
    pub data: PathBuf,
}

/// What a node runs on, beside the network (`net`) and its directory.
pub struct Machine {
    /// Stamps and wall time.
    pub clock: Arc<Clock>,
    /// How its files are worked on.
    pub drive: Drive,
}

/// Why a node did not start. What it had stored before is untouched.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something else listens there.
    #[error(
        "cannot listen on {address}: {source}; stop what uses that port, or change this server's line in nodes.txt"
    )]
    Port {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The data directory is not this server's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What is stored cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
}

/// A running server.
pub struct Node {
    id: NodeId,
    core: Core,
    links: Arc<Links>,
    /// For what is under way when the server stops.
    stop_timeout: Duration,
    shutdown: watch::Sender<bool>,
    serving: JoinHandle<()>,
    /// Dropped last: the lock.
    _directory: Directory,
}

impl Node {
    /// Starts a server and returns when it answers. Must be called inside a tokio runtime; replay blocks its thread.
    pub async fn start(options: NodeOptions) -> Result<Node, StartError> {
        let clock = Arc::new(Clock::machine(options.config.test_clock_offset_ms));
        Node::start_on(Machine { clock, drive: Drive::Thread }, options).await
    }

    /// The same on a machine that may be simulated.
    pub async fn start_on(machine: Machine, options: NodeOptions) -> Result<Node, StartError> {
        let Machine { clock, drive } = machine;
        let NodeOptions { config, nodes, id, data } = options;
        let config = Arc::new(config);
        let own = nodes.address(id).expect("the caller picked a server of the list").clone();
        let address = listen_address(&config, &own);
        // Before any data is touched: is the port free, is the directory? A server that was killed a moment ago may
        // still hold both.
        let directory = patiently(async || {
            drop(bind(&address).await?);
            Ok(Directory::lock(&data)?)
        });
        let directory = directory.await?;
        let remembered = identity::claim(&data, &config, &nodes, id, clock.wall_us())?;
        let options = CoreOptions {
            config: config.clone(),
            nodes: nodes.clone(),
            id,
            generation: remembered.generation,
            earlier_wall_us: remembered.generation,
            data: data.clone(),
            disk: Disk::real(),
            drive,
            clock,
        };
        let (core, links) = Core::start(options, |standpoint| Links::start(standpoint, &nodes, &config))?;
        core.look_round.send_replace(false);
        let listener = bind(&address).await?;
        let (shutdown, stopping) = watch::channel(false);
        let limits = Arc::new(Limits::from(config.as_ref()));
        let (service, stats) = (core.service.clone(), core.service.stats.clone());
        let serving = tokio::spawn(crate::server::serve(listener, service, limits, stats, stopping));
        // Then a cluster whose last server is ready is one where all see each other.
        links.first_attempts(config.connect_timeout()).await;
        // And it knows whether its directory is what it was.
        core.service.reconciler.introduced(config.connect_timeout()).await;
        core.look_round.send_replace(true);
        directory.ready().map_err(|source| DirectoryError::Unusable { path: data.clone(), source })?;
        log::info!(
            "server {id}: ready at {address}, data in {}, durability {}",
            data.display(),
            config.durability.as_str()
        );
        let stop_timeout = 2 * config.write_timeout() + config.read_timeout();
        Ok(Node { id, core, links, stop_timeout, shutdown, serving, _directory: directory })
    }

    /// Stops a server: no new connections, calls under way are answered, what is queued is committed, files are closed.
    pub async fn stop(mut self) {
        log::info!("server {}: stopping", self.id);
        self.shutdown.send_replace(true);
        if let Err(error) = self.serving.await {
            log::error!("server {}: serving ended with {error}", self.id);
        }
        // Replicas that have not answered yet may still do so, or get their hint.
        if tokio::time::timeout(self.stop_timeout, self.core.coordinator.drained()).await.is_err() {
            log::warn!("server {}: stops with requests under way; slow replicas may miss them", self.id);
        }
        self.core.end_background();
        self.links.close();
        self.core.store.close().await;
        log::info!("server {}: stopped", self.id);
    }
}

/// The address to bind: the setting, or the host of this server's line.
fn listen_address(config: &Config, own: &Address) -> String {
    match config.listen_address.as_str() {
        "" => own.to_string(),
        listen => Address { host: listen.to_owned(), port: own.port }.to_string(),
    }
}

/// Tries again for a moment while it fails.
async fn patiently<T>(attempt: impl AsyncFn() -> Result<T, StartError>) -> Result<T, StartError> {
    for _ in 0..PATIENCE_ATTEMPTS {
        if let Ok(done) = attempt().await {
            return Ok(done);
        }
        tokio::time::sleep(PATIENCE_PAUSE).await;
    }
    attempt().await
}

async fn bind(address: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Port { address: address.to_owned(), source })
}
