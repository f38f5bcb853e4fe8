//! Real servers for tests: a cluster of processes in a temporary directory, and a small blocking client.
//!
//! Several clusters may run at once. Nothing sleeps for a fixed time; everything waits for what it waits for, up to
//! [`DEADLINE`]. Whatever a test does, dropping the [`Cluster`] kills every process and deletes the directory.
#![allow(dead_code, unused_imports)] // each test binary uses its own part

mod client;
mod load;

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use client::{Client, Copies, put_request};
pub use load::{Acknowledged, Load};

/// How long anything that must happen may take. Generous: it decides between slow and never, and measures nothing.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics with `what` when it does not within [`DEADLINE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Server processes with one `nodes.txt`.
pub struct Cluster {
    directory: tempfile::TempDir,
    ports: Vec<u16>,
    /// Text of each server's configuration file.
    configs: Vec<String>,
    /// `None`: not running.
    servers: Vec<Option<Child>>,
}

/// How a server that was to refuse ended.
#[derive(Debug)]
pub struct Refusal {
    /// Its exit code.
    pub code: Option<i32>,
    /// All it said on stderr.
    pub said: String,
}

impl Refusal {
    /// Broken set-up: exit code 2, and a message with every one of `words` in it (in any case).
    #[track_caller]
    pub fn assert_says(&self, words: &[&str]) {
        assert_eq!(self.code, Some(2), "{}", self.said);
        for word in words {
            assert!(self.said.to_lowercase().contains(&word.to_lowercase()), "no '{word}' in: {}", self.said);
        }
        assert!(!self.said.contains("panicked"), "{}", self.said);
    }
}

impl Cluster {
    /// Starts `n` servers with one configuration and returns when each sees all others Up.
    pub fn start(n: usize, config: &str) -> Cluster {
        Cluster::start_each(n, |_| config.to_owned(), true)
    }

    /// The same with a configuration for each. Without `meet` it returns when each is ready, whoever it sees.
    pub fn start_each(n: usize, config: impl Fn(usize) -> String, meet: bool) -> Cluster {
        const ATTEMPTS: usize = 10;
        for attempt in 1..=ATTEMPTS {
            let mut cluster = Cluster::prepare(n, &config);
            let ids: Vec<usize> = (0..n).collect();
            match cluster.try_start(&ids) {
                Ok(()) => {
                    if meet {
                        cluster.wait_all_up();
                    }
                    return cluster;
                }
                // Somebody took a port between our look and the server's bind: again with others.
                Err(said) if attempt < ATTEMPTS && said.contains("cannot listen") => {}
                Err(said) => panic!("{said}"),
            }
        }
        unreachable!("the last attempt returns or panics");
    }

    /// Directory, ports and files, no process yet.
    pub fn prepare(n: usize, config: impl Fn(usize) -> String) -> Cluster {
        let directory =
            tempfile::Builder::new().prefix("tetrachord-").tempdir().expect("a temporary directory");
        let ports = free_ports(n);
        let cluster = Cluster {
            directory,
            configs: (0..n).map(config).collect(),
            servers: (0..n).map(|_| None).collect(),
            ports,
        };
        cluster.write_nodes(&(0..n).collect::<Vec<_>>());
        cluster
    }

    /// Writes `nodes.txt` with the addresses of these servers, in this order.
    pub fn write_nodes(&self, order: &[usize]) {
        let lines: String = order.iter().map(|id| format!("127.0.0.1:{}\n", self.ports[*id])).collect();
        self.write("nodes.txt", &lines);
    }

    /// Gives a stopped server another port, in `nodes.txt` too.
    pub fn move_to(&mut self, id: usize, port: u16) {
        assert!(self.servers[id].is_none(), "server {id} runs");
        self.ports[id] = port;
        self.write_nodes(&(0..self.len()).collect::<Vec<_>>());
    }

    /// Writes a file into the cluster's directory.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).expect("a file in the temporary directory");
    }

    /// The cluster's directory: `nodes.txt`, `data/<id>`, `server-<id>.log`, `config-<id>.toml`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A server's data directory.
    pub fn data(&self, id: usize) -> PathBuf {
        self.path().join(format!("data/{id}"))
    }

    /// A server's port.
    pub fn port(&self, id: usize) -> u16 {
        self.ports[id]
    }

    /// How many servers there are, running or not.
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    /// The servers that run, as far as this harness started and stopped them.
    pub fn running(&self) -> Vec<usize> {
        (0..self.len()).filter(|id| self.servers[*id].is_some()).collect()
    }

    /// The process of a running server.
    pub fn pid(&self, id: usize) -> u32 {
        self.servers[id].as_ref().expect("the server runs").id()
    }

    /// All that a server has logged since it was first started.
    pub fn log(&self, id: usize) -> String {
        fs::read_to_string(self.log_path(id)).unwrap_or_default()
    }

    /// A connection to a running server.
    pub fn client(&self, id: usize) -> Client {
        Client::connect(self.ports[id]).unwrap_or_else(|error| panic!("server {id}: {error}"))
    }

    // ---------------------------------------------------------------------------------------- start and stop

    /// Starts a stopped server again and returns when it is ready.
    pub fn restart(&mut self, id: usize) {
        self.restart_each(&[id]);
    }

    /// Starts stopped servers again, all at once, and returns when each is ready.
    pub fn restart_each(&mut self, ids: &[usize]) {
        self.try_start(ids).unwrap_or_else(|said| panic!("{said}"));
    }

    /// Starts a stopped server with another configuration.
    pub fn restart_with(&mut self, id: usize, config: &str) {
        self.configs[id] = config.to_owned();
        self.restart(id);
    }

    /// `kill -9`.
    pub fn kill(&mut self, id: usize) {
        let mut child = self.servers[id].take().expect("the server runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a killed child ends");
    }

    /// `kill -9`, all before any is waited for.
    pub fn kill_each(&mut self, ids: &[usize]) {
        for id in ids {
            self.servers[*id].as_mut().expect("the server runs").kill().expect("a child can be killed");
        }
        for id in ids {
            self.servers[*id].take().expect("the server runs").wait().expect("a killed child ends");
        }
    }

    /// SIGTERM; returns how it ended.
    pub fn stop(&mut self, id: usize) -> ExitStatus {
        self.signal(id, "TERM");
        let mut child = self.servers[id].take().expect("the server runs");
        let mut status = None;
        wait_until(&format!("server {id} stops on SIGTERM"), || {
            status = child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        status.expect("it has stopped")
    }

    /// SIGSTOP: the process keeps its sockets and says nothing.
    pub fn freeze(&self, id: usize) {
        self.signal(id, "STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self, id: usize) {
        self.signal(id, "CONT");
    }

    /// Runs a server that has no other business than to refuse, with these arguments; returns what it said.
    pub fn refusal(&self, arguments: &[&str]) -> Refusal {
        let said_path = self.path().join("refusal.log");
        let said = File::create(&said_path).expect("a file in the temporary directory");
        let mut child = self.command(arguments, said).spawn().expect("the server binary runs");
        let began = Instant::now();
        let code = loop {
            match child.try_wait().expect("a child can be asked") {
                Some(status) => break status.code(),
                None if began.elapsed() > DEADLINE => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        Refusal { code, said: fs::read_to_string(said_path).unwrap_or_default() }
    }

    /// Starts a server that may refuse: its own refusal, or `None` when it is ready.
    pub fn start_or_refusal(&mut self, id: usize) -> Option<String> {
        self.try_start(&[id]).err()
    }

    fn try_start(&mut self, ids: &[usize]) -> Result<(), String> {
        for id in ids {
            assert!(self.servers[*id].is_none(), "server {id} runs already");
            self.servers[*id] = Some(self.spawn(*id));
        }
        for id in ids {
            self.wait_ready(*id)?;
        }
        Ok(())
    }

    fn spawn(&self, id: usize) -> Child {
        self.write(&format!("config-{id}.toml"), &self.configs[id]);
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(id)).expect("a log file");
        let (port, config) = (self.ports[id].to_string(), format!("config-{id}.toml"));
        self.command(&[&port, "--config", &config], log).spawn().expect("the server binary runs")
    }

    fn command(&self, arguments: &[&str], log: File) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        command
            .args(arguments)
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.env("RUST_LOG", "info").env_remove("RUST_BACKTRACE");
        // Memory is what is used of it, not what the system rounds it up to.
        command.env("MIMALLOC_ALLOW_THP", "0");
        command
    }

    fn wait_ready(&mut self, id: usize) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let child = self.servers[id].as_mut().expect("the server was started");
            if let Some(status) = child.try_wait().expect("a child can be asked") {
                self.servers[id] = None;
                return Err(format!("server {id} did not start ({status}):\n{}", tail(&self.log(id))));
            }
            let ready = fs::read_to_string(self.data(id).join("READY")).unwrap_or_default();
            if ready.trim() == self.pid(id).to_string() {
                return Ok(());
            }
            assert!(began.elapsed() < DEADLINE, "server {id} is not ready:\n{}", tail(&self.log(id)));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, id: usize, name: &str) {
        let command = format!("kill -{name} {}", self.pid(id));
        let status = Command::new("sh").args(["-c", &command]).status().expect("sh runs");
        assert!(status.success(), "{command}: {status}");
    }

    fn log_path(&self, id: usize) -> PathBuf {
        self.path().join(format!("server-{id}.log"))
    }

    // ---------------------------------------------------------------------------------------- what it looks like

    /// Waits until every running server sees every running server Up.
    pub fn wait_all_up(&self) {
        let running = self.running();
        for id in &running {
            for other in &running {
                self.wait_seen(*id, *other, "up");
            }
        }
    }

    /// Waits until server `observer` sees `other` in this state ("up", "suspect", "down").
    pub fn wait_seen(&self, observer: usize, other: usize, state: &str) {
        wait_until(&format!("server {observer} sees {other} {state}"), || {
            self.seen(observer, other).is_some_and(|seen| seen.eq_ignore_ascii_case(state))
        });
    }

    /// In which state server `observer` sees `other`; `None` when it does not answer.
    pub fn seen(&self, observer: usize, other: usize) -> Option<String> {
        let description = Client::connect(self.ports[observer]).ok()?.describe().ok()?;
        let members = description.members?;
        members.into_iter().find(|member| member.id == Some(other as i32))?.state
    }

    /// How many hints the running servers hold, for whomever.
    pub fn hints(&self) -> i64 {
        let held = |id: usize| {
            let members = self.client(id).describe().expect("a running server describes itself").members;
            members.into_iter().flatten().filter_map(|member| member.hints).sum::<i64>()
        };
        self.running().into_iter().map(held).sum()
    }

    /// What of the stored data is not as it should be: a replica that differs, a cell where it does not belong. Every
    /// server must run.
    pub fn differences(&self) -> Vec<String> {
        let copies: Vec<Copies> = (0..self.len()).map(|id| self.client(id).copies()).collect();
        client::differences(&copies)
    }

    /// Waits until all replicas of every key are equal.
    pub fn wait_replicas_equal(&self) {
        let mut last = Vec::new();
        let began = Instant::now();
        loop {
            let differences = self.differences();
            if differences.is_empty() {
                return;
            }
            last.clone_from(&differences);
            if began.elapsed() > DEADLINE {
                last.truncate(20);
                panic!("replicas differ in {} cells:\n  {}", differences.len(), last.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Every acknowledged value is what a QUORUM read shows, asked through every running server in turn.
    pub fn assert_read_back(&self, acknowledged: &Acknowledged) {
        let mut clients: Vec<Client> = self.running().into_iter().map(|id| self.client(id)).collect();
        for (index, (key, value)) in acknowledged.iter().enumerate() {
            let turn = index % clients.len();
            let got = clients[turn].get(key, "QUORUM").unwrap_or_else(|error| panic!("{key:?}: {error}"));
            assert_eq!(got.as_deref(), Some(value.as_slice()), "acknowledged and not there: {key:?}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for id in 0..self.len() {
                eprintln!("---- end of server {id}'s log\n{}", tail(&self.log(id)));
            }
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Ports nobody listens on, below the range from which the system gives ports to clients: a restarted server must find
/// its port free, whatever connections other tests have opened since.
pub fn free_ports(n: usize) -> Vec<u16> {
    const FIRST: usize = 10_000;
    const SPAN: usize = 20_000;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 157; // processes that run at once begin at different places
    let mut ports = Vec::new();
    for _ in 0..SPAN {
        let port = (FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % SPAN) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
        if ports.len() == n {
            return ports;
        }
    }
    panic!("no {n} free ports from {FIRST} to {}", FIRST + SPAN);
}
