//! Listens, and gives every connection its task.
//!
//! A connection past the bound is only for another server, which clients are not to keep out; one past that bound too
//! is closed at once. A failure to accept (most often: no file descriptor left) is waited out, for the connections that
//! are there are served meanwhile. On shutdown nothing more is accepted, calls under way are answered, and after a
//! bounded time the rest is dropped.
//!
//! Not here: what happens on a connection (`thrift::connection`), what a call means (`service`).

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::net::{TcpListener, TcpStream};
use crate::stats::Stats;
use crate::thrift::connection::{Admits, Limits, Service, serve_connection, stopped};

/// How long accepting rests after it failed: long enough not to spin, short enough that nobody notices.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Lines of one kind are logged at most this often.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// Serves until `shutdown` becomes true or its sender is gone; returns when every connection has ended, at most
/// `limits.stop_timeout` later.
pub async fn serve<S: Service>(
    listener: TcpListener,
    service: Arc<S>,
    limits: Arc<Limits>,
    stats: Arc<Stats>,
    shutdown: watch::Receiver<bool>,
) {
    let mut server = Server {
        service,
        limits,
        stats,
        shutdown,
        connections: JoinSet::new(),
        refusals: Seldom::default(),
        only_servers: Seldom::default(),
        failures: Seldom::default(),
    };
    server.accept_until_shutdown(&listener).await;
    drop(listener); // clients that connect now are refused, and can go to another server
    server.stop().await;
}

struct Server<S> {
    service: Arc<S>,
    limits: Arc<Limits>,
    stats: Arc<Stats>,
    shutdown: watch::Receiver<bool>,
    connections: JoinSet<()>,
    refusals: Seldom,
    only_servers: Seldom,
    failures: Seldom,
}

impl<S: Service> Server<S> {
    async fn accept_until_shutdown(&mut self, listener: &TcpListener) {
        let mut stopped = pin!(stopped(self.shutdown.clone()));
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => return,
                Some(ended) = self.connections.join_next() => note_end(ended),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.welcome(stream),
                    Err(error) => self.wait_out(&error).await,
                },
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream) {
        let (open, bound) = (self.connections.len(), self.limits.connections_max);
        let admits = if open < bound { Admits::Anybody } else { Admits::Servers };
        if open >= bound.saturating_add(self.limits.server_connections_max) {
            self.stats.connections_refused.count();
            self.refusals.warn(|| format!("connection refused: {open} are open, those for servers included"));
            return;
        }
        if admits == Admits::Servers {
            self.only_servers.warn(|| format!("connections_max = {bound} are open: only servers are let in"));
        }
        self.stats.connections_accepted.count();
        self.connections.spawn(serve_connection(
            stream,
            admits,
            self.service.clone(),
            self.limits.clone(),
            self.stats.clone(),
            self.shutdown.clone(),
        ));
    }

    async fn wait_out(&mut self, error: &io::Error) {
        self.failures.warn(|| format!("cannot accept connections for now: {error}"));
        sleep(ACCEPT_PAUSE).await;
    }

    /// The connections have the same signal, and end by themselves.
    async fn stop(mut self) {
        let all_ended = async {
            while let Some(ended) = self.connections.join_next().await {
                note_end(ended);
            }
        };
        if timeout(self.limits.stop_timeout, all_ended).await.is_err() {
            log::warn!("dropping {} connections whose calls did not end", self.connections.len());
            self.connections.shutdown().await;
        }
    }
}

/// A panic on a connection ends that connection; the panic hook has printed it.
fn note_end(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        log::error!("a connection failed: {error}");
    }
}

/// Logs the first of many equal lines, and later how many more there were.
#[derive(Default)]
struct Seldom {
    last: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    fn warn(&mut self, line: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now < last + LOG_PAUSE) {
            self.unsaid += 1;
            return;
        }
        match self.unsaid {
            0 => log::warn!("{}", line()),
            more => log::warn!("{} (and {more} times before)", line()),
        }
        *self = Seldom { last: Some(now), unsaid: 0 };
    }
}
