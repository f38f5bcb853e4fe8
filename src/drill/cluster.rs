//! The servers of a drill: real processes on free ports of this machine, and everything that can be done to them.
//!
//! ```text
//!   absent ──start──► starting ──READY──► ready ──terminate──► stopping ──► absent
//!      ▲                  └──────── kill ───┴─────────────────────┘
//!      └───────────────────────────────────                      frozen: any of them that has a process
//! ```
//!
//! Nothing here waits for a server but `all_ready`: [`Cluster::look`] says what has become of those that were started
//! or told to stop. Dropping the cluster kills every process that it started and lets go of those that it froze.
//!
//! Not here: when to do what (`faults`, `scenario`).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::{Instant, sleep};

use super::{DrillError, guard};
use crate::net::TcpListener;
use crate::nodes::{Address, Nodes};

/// How long a server may take to start: it decides between slow and never.
const START_MAX: Duration = Duration::from_secs(60);

/// How often somebody who waits looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Of the server program's processes.
const SERVER_NAME: &str = "server";

/// Ports that are tried, below those that the system gives to clients: a restarted server must find its port free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Room on the disk that can be filled. The write-ahead log alone takes some 4 MB.
const SMALL_DISK: &str = "size=64m";

/// The servers.
pub struct Cluster {
    directory: PathBuf,
    nodes: Nodes,
    /// The server program; `None`: the servers are somebody else's.
    program: Option<PathBuf>,
    /// Settings of every server, as TOML.
    settings: String,
    servers: Vec<Server>,
    disk: Option<SmallDisk>,
}

#[derive(Default)]
struct Server {
    child: Option<Child>,
    phase: Phase,
    frozen: bool,
    /// It is to be started again when it has stopped.
    to_return: bool,
    /// Of its clock.
    offset_ms: i64,
    /// From whom it hears nothing, and how many faults want that.
    unheard: BTreeMap<usize, usize>,
    /// Bytes of its log that were there when it was started last.
    logged: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Absent,
    Starting {
        since: Instant,
    },
    Ready,
    Stopping,
}

/// What has become of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It answers again.
    Ready {
        /// Which.
        id: usize,
        /// From its start.
        took: Duration,
        /// What it said of its log: "1,234 rows" and the like.
        replayed: String,
    },
    /// It has ended as it was told.
    Stopped {
        /// Which.
        id: usize,
    },
}

impl Cluster {
    /// Directory, ports and files for `servers` servers; no process yet.
    pub async fn prepare(
        directory: PathBuf,
        program: PathBuf,
        servers: usize,
        settings: String,
    ) -> Result<Cluster, DrillError> {
        if !program.is_file() {
            return Err(DrillError::NoServerProgram { path: program });
        }
        let nodes = Nodes::new(free_addresses(servers).await?);
        let lines: String = nodes.addresses().iter().map(|address| format!("{address}\n")).collect();
        fs::create_dir_all(directory.join("data")).map_err(|error| broken(&directory, error))?;
        let list = directory.join("nodes.txt");
        fs::write(&list, lines).map_err(|error| broken(&list, error))?;
        let servers = (0..servers).map(|_| Server::default()).collect();
        Ok(Cluster { directory, nodes, program: Some(program), settings, servers, disk: None })
    }

    /// Servers that run already, from the directory with their `nodes.txt`.
    pub fn of_others(directory: PathBuf) -> Result<Cluster, DrillError> {
        let nodes = Nodes::load(&directory.join("nodes.txt"))?;
        let servers = (0..nodes.len()).map(|_| Server { phase: Phase::Ready, ..Server::default() }).collect();
        Ok(Cluster { directory, nodes, program: None, settings: String::new(), servers, disk: None })
    }

    /// Puts the data of server `id` on a small disk of its own, which can be filled. Says whether that is possible: it
    /// takes the right to mount.
    pub fn give_small_disk(&mut self, id: usize) -> bool {
        self.disk = SmallDisk::mount(&self.data(id));
        self.disk.is_some()
    }

    /// Where they are.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Where everything is written.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The servers are this program's own.
    pub fn is_own(&self) -> bool {
        self.program.is_some()
    }

    /// One character for each server: its number, or why it does not answer.
    pub fn sketch(&self) -> String {
        let one = |(id, server): (usize, &Server)| match server {
            Server { frozen: true, .. } => "❄".to_owned(),
            Server { phase: Phase::Ready, unheard, .. } if !unheard.is_empty() => format!("{id}✂"),
            Server { phase: Phase::Ready, .. } => id.to_string(),
            _ => "✗".to_owned(),
        };
        self.servers.iter().enumerate().map(one).collect::<Vec<_>>().join(" ")
    }

    // ------------------------------------------------------------------------------------------ start and stop

    /// Starts servers that are absent.
    pub fn start(&mut self, ids: &[usize]) -> Result<(), DrillError> {
        for id in ids {
            match self.servers[*id].phase {
                Phase::Absent => self.spawn(*id).map_err(|error| broken(&self.directory, error))?,
                Phase::Stopping => self.servers[*id].to_return = true,
                Phase::Starting { .. } | Phase::Ready => {}
            }
        }
        Ok(())
    }

    /// Returns when every server answers.
    pub async fn all_ready(&mut self) -> Result<Vec<Change>, DrillError> {
        let mut changes = self.look()?;
        while self.servers.iter().any(|server| server.phase != Phase::Ready) {
            sleep(LOOK_EVERY).await;
            changes.append(&mut self.look()?);
        }
        Ok(changes)
    }

    /// SIGKILL, all before any is waited for.
    pub fn kill(&mut self, ids: &[usize]) {
        for id in ids {
            if let Some(child) = &mut self.servers[*id].child {
                let _ = child.kill(); // it may have ended by itself
            }
        }
        for id in ids {
            let server = &mut self.servers[*id];
            if let Some(mut child) = server.child.take() {
                let _ = child.wait();
            }
            (server.phase, server.frozen, server.to_return) = (Phase::Absent, false, false);
        }
    }

    /// SIGTERM; it is started again as soon as it has ended.
    pub fn restart(&mut self, id: usize) {
        self.signal(id, Signal::TERM);
        self.servers[id].phase = Phase::Stopping;
        self.servers[id].to_return = true;
    }

    /// What has happened since the last look.
    pub fn look(&mut self) -> Result<Vec<Change>, DrillError> {
        let mut changes = Vec::new();
        if !self.is_own() {
            return Ok(changes);
        }
        for id in 0..self.len() {
            let phase = self.servers[id].phase;
            match phase {
                Phase::Starting { since } => {
                    if let Some(change) = self.look_at_start(id, since)? {
                        changes.push(change);
                    }
                }
                Phase::Stopping if self.has_ended(id) => {
                    let server = &mut self.servers[id];
                    (server.child, server.phase) = (None, Phase::Absent);
                    changes.push(Change::Stopped { id });
                    if std::mem::take(&mut server.to_return) {
                        self.start(&[id])?;
                    }
                }
                Phase::Ready if self.has_ended(id) => return Err(self.fell_over(id)),
                _ => {}
            }
        }
        Ok(changes)
    }

    fn look_at_start(&mut self, id: usize, since: Instant) -> Result<Option<Change>, DrillError> {
        let pid = self.pid(id).map_or(0, |pid| pid.as_raw_nonzero().get());
        let ready = fs::read_to_string(self.data(id).join("READY")).unwrap_or_default();
        if ready.trim() == pid.to_string() {
            self.servers[id].phase = Phase::Ready;
            let replayed = replayed(&self.said(id));
            return Ok(Some(Change::Ready { id, took: since.elapsed(), replayed }));
        }
        if self.has_ended(id) || (since.elapsed() > START_MAX && !self.servers[id].frozen) {
            return Err(self.fell_over(id));
        }
        Ok(None)
    }

    fn has_ended(&mut self, id: usize) -> bool {
        let child = self.servers[id].child.as_mut();
        child.is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    fn fell_over(&self, id: usize) -> DrillError {
        let said = self.said(id);
        let lines: Vec<&str> = said.lines().collect();
        let said = lines[lines.len().saturating_sub(12)..].join("\n  ");
        DrillError::FellOver { id, said, log: self.log(id) }
    }

    fn spawn(&mut self, id: usize) -> io::Result<()> {
        let program = self.program.as_ref().expect("only own servers are started");
        let config = format!(
            "{}\ntest_fault_switch = \"{}\"\ntest_clock_offset_ms = {}\n",
            self.settings,
            switch(id),
            self.servers[id].offset_ms
        );
        let config_name = format!("config-{id}.toml");
        fs::write(self.directory.join(&config_name), config)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log(id))?;
        self.servers[id].logged = log.metadata()?.len();
        let mut command = guard::command(program)?;
        command.args(["--id", &id.to_string(), "--config", &config_name]);
        command.current_dir(&self.directory).env("RUST_LOG", "info").env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.servers[id].child = Some(command.spawn()?);
        self.servers[id].phase = Phase::Starting { since: Instant::now() };
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ other faults

    /// SIGSTOP: it keeps its sockets and says nothing. False: there is no process, or not one that can be told.
    pub fn freeze(&mut self, id: usize) -> bool {
        self.servers[id].frozen = self.signal(id, Signal::STOP);
        self.servers[id].frozen
    }

    /// SIGCONT, if it was frozen.
    pub fn thaw(&mut self, id: usize) {
        if std::mem::take(&mut self.servers[id].frozen) {
            self.signal(id, Signal::CONT);
        }
    }

    /// What server `from` sends no longer reaches server `to`.
    pub fn cut(&mut self, from: usize, to: usize) -> Result<(), DrillError> {
        *self.servers[to].unheard.entry(from).or_default() += 1;
        self.write_switch(to)
    }

    /// It does again, unless another fault has cut the same link.
    pub fn mend(&mut self, from: usize, to: usize) -> Result<(), DrillError> {
        let unheard = &mut self.servers[to].unheard;
        if let Some(times) = unheard.get_mut(&from) {
            *times -= 1;
        }
        unheard.retain(|_, times| *times > 0);
        self.write_switch(to)
    }

    fn write_switch(&self, id: usize) -> Result<(), DrillError> {
        let words: String = self.servers[id].unheard.keys().map(|from| format!("{from}\n")).collect();
        let (new, file) = (self.directory.join("unheard.new"), self.directory.join(switch(id)));
        // In one step: the server reads it all the time.
        fs::write(&new, words).and_then(|()| fs::rename(&new, &file)).map_err(|error| broken(&file, error))
    }

    /// The clock of the server's next process.
    pub fn set_clock(&mut self, id: usize, offset_ms: i64) {
        self.servers[id].offset_ms = offset_ms;
    }

    /// Fills the small disk.
    pub fn fill_disk(&self) {
        if let Some(disk) = &self.disk {
            disk.fill();
        }
    }

    /// Frees the small disk.
    pub fn free_disk(&self) {
        if let Some(disk) = &self.disk {
            disk.free();
        }
    }

    /// Server `id` has a process that this program may signal.
    pub fn can_freeze(&self, id: usize) -> bool {
        self.pid(id).is_some_and(|pid| test_kill_process(pid).is_ok())
    }

    fn signal(&self, id: usize, signal: Signal) -> bool {
        self.pid(id).is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Of a server of others: what it wrote down itself, if that still is a server. A killed one leaves its number
    /// behind, which by now may be anybody's.
    fn pid(&self, id: usize) -> Option<Pid> {
        if self.is_own() {
            return self.servers[id].child.as_ref().map(Pid::from_child);
        }
        let text = fs::read_to_string(self.data(id).join("READY")).ok()?;
        let name = fs::read_to_string(format!("/proc/{}/comm", text.trim())).ok()?;
        let pid = text.trim().parse().ok().filter(|pid| name.trim() == SERVER_NAME && *pid > 1)?;
        Pid::from_raw(pid)
    }

    fn data(&self, id: usize) -> PathBuf {
        self.directory.join(format!("data/{id}"))
    }

    fn log(&self, id: usize) -> PathBuf {
        self.directory.join(format!("server-{id}.log"))
    }

    /// What the server has logged since it was started last.
    fn said(&self, id: usize) -> String {
        let mut said = String::new();
        if let Ok(mut log) = File::open(self.log(id))
            && log.seek(SeekFrom::Start(self.servers[id].logged)).is_ok()
        {
            let _ = log.read_to_string(&mut said); // what cannot be read is not shown
        }
        said
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let all: Vec<usize> = (0..self.len()).collect();
        if self.is_own() {
            self.kill(&all);
        } else {
            for id in all {
                self.thaw(id);
            }
        }
    }
}

/// The file that says from whom a server hears nothing.
fn switch(id: usize) -> String {
    format!("unheard-{id}")
}

/// "1,234 rows" out of "replayed 1234 rows of the commit log in 0.010 s".
fn replayed(said: &str) -> String {
    let rows = said.split("replayed ").nth(1).and_then(|rest| rest.split(' ').next());
    let rows: u64 = rows.and_then(|rows| rows.parse().ok()).unwrap_or(0);
    crate::client::text::plural(rows, "row", "rows")
}

fn broken(path: &Path, source: io::Error) -> DrillError {
    DrillError::Unusable { path: path.to_owned(), source }
}

async fn free_addresses(count: usize) -> Result<Vec<Address>, DrillError> {
    let mut found = Vec::new();
    let span = PORTS.len() as u32;
    let start = std::process::id().wrapping_mul(157); // drills that run at once begin at different places
    for step in 0..span {
        let port = PORTS.start + (start.wrapping_add(step) % span) as u16;
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            found.push(Address { host: "127.0.0.1".to_owned(), port });
        }
        if found.len() == count {
            return Ok(found);
        }
    }
    Err(DrillError::NoPorts { count })
}

/// A small disk mounted on a directory; unmounted when dropped, or when this process ends in whatever way.
struct SmallDisk {
    path: PathBuf,
    /// A process that unmounts the disk once nobody holds the other end of its input.
    keeper: Child,
}

impl SmallDisk {
    fn mount(path: &Path) -> Option<SmallDisk> {
        fs::create_dir_all(path).ok()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(path);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            return None;
        }
        let mut keeper = Command::new("sh");
        // Lazily: a server may still be about to close its files.
        keeper.args(["-c", "read -r _; umount -l \"$1\"", "sh"]).arg(path);
        keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = keeper.spawn().ok()?;
        Some(SmallDisk { path: path.to_owned(), keeper })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Writes until nothing more fits.
    fn fill(&self) {
        let Ok(mut ballast) = File::create(self.ballast()) else { return };
        for size in [1 << 20, 1 << 16, 1 << 12] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        let _ = fs::remove_file(self.ballast()); // there is none if it was never filled
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait(); // it has nothing to say
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_its_log_is_found() {
        let said = "INFO server 1: replayed 1234 rows of the commit log in 0.010 s; hints held: none\n";
        assert_eq!(replayed(said), "1,234 rows");
        assert_eq!(replayed("nothing"), "0 rows");
    }
}
