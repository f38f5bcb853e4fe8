//! A drill: real servers, real clients, real crashes, and what it cost; for people who want to see it and for classes.
//!
//!   plan (faults, or a scenario) ─► stage: servers (cluster), clients (load) ─► quiet, agreement (settle)
//!        ─► verdict (judge) ─► report, page
//!
//! The clients write down what they were told (`check::History`); the checkers say whether the store kept its promises.
//! While it runs, the story tells each event in a line. What must always be true: however a drill ends, it leaves no
//! server of its own behind, and freezes none of others; a drill that failed keeps its directory.
//!
//! Not here: what a promise is (`check`), how a link is cut inside a server (`cut`).

mod cluster;
mod faults;
pub mod guard;
mod judge;
mod load;
mod page;
mod report;
mod scenario;
mod settle;
mod stage;
mod story;
mod timeline;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::client::Client;
use crate::client::text;
use crate::clock::machine_wall_us;
use crate::nodes::NodesError;
use crate::ring::Ring;
use crate::thrift::chord::{Level, RemoveRequest};

use cluster::Cluster;
use faults::Abilities;
use load::Load;
use report::Report;
use scenario::{Scenario, Seen};
use stage::Stage;
use story::Story;

/// What a drill is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long clients and faults last; `None`: a minute, or a scenario's own time.
    pub seconds: Option<u64>,
    /// Draws faults and load.
    pub seed: u64,
    /// Clients at once.
    pub clients: usize,
    /// Keys they use.
    pub keys: usize,
    /// One lesson instead of faults of every kind.
    pub scenario: Option<String>,
    /// Where servers and evidence are written; `None`: a directory of its own among the system's temporary ones.
    pub directory: Option<PathBuf>,
    /// A running cluster's directory instead of servers of its own.
    pub cluster: Option<PathBuf>,
    /// Where the page is written.
    pub page: PathBuf,
    /// Servers.
    pub nodes: usize,
    /// Copies of each key.
    pub copies: usize,
    /// Keep the directory though all is well.
    pub keep: bool,
    /// The server program.
    pub program: PathBuf,
    /// The terminal shows bold and dim.
    pub colour: bool,
}

/// Clients unless told otherwise.
pub const CLIENTS: usize = 24;
/// Keys unless told otherwise.
pub const KEYS: usize = 100;
/// Servers unless told otherwise.
pub const NODES: usize = 4;
/// Copies unless told otherwise.
pub const COPIES: usize = 3;
/// Seconds of a drill that is no scenario, unless told otherwise.
pub const SECONDS: u64 = 60;

/// Why a drill came to no verdict.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// A file or directory cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory that was given is in use, or holds something else.
    #[error("{path} is not empty; name a directory that is, or that does not exist yet", path = path.display())]
    NotEmpty {
        /// Which.
        path: PathBuf,
    },
    /// There is no server program.
    #[error("there is no {path}; build it: cargo build --release --bins", path = path.display())]
    NoServerProgram {
        /// Where it should be.
        path: PathBuf,
    },
    /// No ports are free.
    #[error("{count} free ports were not found on this machine")]
    NoPorts {
        /// How many are needed.
        count: usize,
    },
    /// The running cluster's list cannot be used.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// Nobody answers there.
    #[error("no server of {directory} answers; start them: ./server.sh", directory = directory.display())]
    NobodyThere {
        /// Where the list is.
        directory: PathBuf,
    },
    /// The options do not go together.
    #[error("{0}")]
    WrongUse(String),
    /// A server ended that nobody had told to, or never became ready. That is a finding about the store.
    #[error("server {id} fell over or did not come back; the end of {log}:\n  {said}", log = log.display())]
    FellOver {
        /// Which.
        id: usize,
        /// The last lines of its log.
        said: String,
        /// Its log.
        log: PathBuf,
    },
    /// Two servers did not find each other again. That is a finding, too.
    #[error("server {observer} never saw server {other} {state}")]
    NotSeen {
        /// Who looked.
        observer: usize,
        /// At whom.
        other: usize,
        /// For what.
        state: String,
    },
    /// A server does not say what it holds.
    #[error("server {id} does not say what it holds: {why}")]
    NotInspected {
        /// Which.
        id: usize,
        /// What went wrong.
        why: String,
    },
}

impl DrillError {
    /// It says something about the store, not about how the drill was called.
    pub fn is_finding(&self) -> bool {
        matches!(
            self,
            DrillError::FellOver { .. } | DrillError::NotSeen { .. } | DrillError::NotInspected { .. }
        )
    }
}

/// Every scenario with what is to be seen in it.
pub fn list() -> String {
    let mut out = String::new();
    for scenario in &scenario::EVERY {
        out.push_str(&format!("{:<16}{}\n", scenario.name, scenario.title));
        for expectation in scenario.expectations {
            out.push_str(&format!("{:<16}  expect: {}\n", "", expectation.text));
        }
    }
    out
}

/// What a drill will do, all defaults filled in.
struct Task {
    options: Options,
    scenario: Option<&'static Scenario>,
    seconds: u64,
    /// Tells the keys of this run from those of another on the same cluster.
    run: u64,
}

/// Runs a drill and tells it. True: every promise was kept and everything expected was seen.
///
/// Dropping the future ends the servers at once. The directory is kept if something failed.
pub async fn run(options: Options) -> Result<bool, DrillError> {
    let task = Task::check(options)?;
    let mut scratch = Scratch::make(&task)?;
    let outcome = perform(&task, &scratch.path).await;
    let evidence = !matches!(&outcome, Ok(true)) && scratch.path.join("data").exists();
    if evidence || (task.options.keep && outcome.is_ok()) {
        scratch.keep = true;
        story::say(&format!("kept: {} (servers' data and logs)", scratch.path.display()));
    }
    outcome
}

async fn perform(task: &Task, directory: &Path) -> Result<bool, DrillError> {
    let story = Story::new(task.options.colour);
    let (cluster, abilities) = task.cluster(directory, &story).await?;
    let mut stage = Stage::new(cluster, story);
    let ring = task.ring(&stage).await?;

    let servers = stage.cluster.len();
    let plan = match task.scenario {
        Some(scenario) => scenario.plan(task.seconds),
        None => faults::draw(task.options.seed, task.seconds, servers, abilities),
    };
    let load = Load {
        clients: task.options.clients,
        keys: load::keys(task.options.keys, task.run),
        seed: task.options.seed,
    };
    if !stage.cluster.is_own() {
        stage.watch();
    }
    if let Some(scenario) = task.scenario {
        scenario.act_before(&mut stage).await?;
    }
    let clients = load.start(stage.cluster.nodes(), &stage.log);
    stage.carry_out(&plan, task.seconds * 1_000, task.scenario).await?;
    let end_us = stage.log.now_us();
    clients.stop().await;

    let mut keys: BTreeSet<Bytes> = load.keys.iter().cloned().collect();
    if let Some(scenario) = task.scenario {
        scenario.act_after(&mut stage, &keys).await?;
    }
    let quiet_from_us = stage.log.now_us();
    stage.event("the clients have stopped: wait until hints are delivered, and compare the replicas");
    settle::quiet(&mut stage).await?;
    keys.extend(stage.log.history().operations.into_iter().map(|operation| operation.key));
    let (agreement, contents) = settle::agree(&mut stage, &keys, quiet_from_us).await?;

    let history = stage.log.history();
    let verdict = judge::judge(&history, &ring, &contents);
    let (marks, notes) = (&stage.marks, &stage.notes);
    let seen = Seen { history: &history, marks, end_us, agreement: &agreement, verdict: &verdict, notes };
    let checked = task.scenario.map_or_else(Vec::new, |scenario| scenario.check(&seen));
    let faults = faults::count(&plan, servers);
    let mut report = Report::of(&seen, checked, faults, &stage.story.events, &task.setting(&stage, &ring));
    if !stage.cluster.is_own() {
        remove(&stage.client, &keys).await;
    }
    if !report.passed() {
        report.history_file = Some(task.keep_history(&history, directory)?);
    }
    let page = &task.options.page;
    fs::write(page, page::render(&report))
        .map_err(|source| DrillError::Unusable { path: page.clone(), source })?;
    stage.story.line(&report.to_text());
    stage.story.line(&format!("page: {}", page.display()));
    Ok(report.passed())
}

impl Task {
    fn check(options: Options) -> Result<Task, DrillError> {
        let wrong = |why: &str| Err(DrillError::WrongUse(why.to_owned()));
        let named = options.scenario.as_deref();
        let scenario = named.map(|name| {
            let unknown =
                || DrillError::WrongUse(format!("there is no scenario '{name}'; --list shows them"));
            scenario::find(name).ok_or_else(unknown)
        });
        let scenario = scenario.transpose()?;
        let usual = (options.nodes, options.copies) == (NODES, COPIES);
        if scenario.is_some() && (!usual || options.cluster.is_some()) {
            return wrong(
                "a scenario brings its own four servers with three copies: leave out --nodes, --rf and --cluster",
            );
        }
        if options.cluster.is_some() && (!usual || options.directory.is_some()) {
            return wrong("--cluster is about servers that run already: leave out --nodes, --rf and --dir");
        }
        let seconds = options.seconds.unwrap_or(if scenario.is_some() { scenario::SECONDS } else { SECONDS });
        if scenario.is_some() && seconds < scenario::SECONDS {
            return wrong("a scenario takes 15 seconds or more: what it shows needs its time");
        }
        let mut options = options;
        if let Some(keys) = scenario.and_then(|scenario| scenario.keys).filter(|_| options.keys == KEYS) {
            options.keys = keys;
        }
        let run = match options.cluster {
            Some(_) => machine_wall_us() as u64,
            None => options.seed,
        };
        Ok(Task { options, scenario, seconds, run })
    }

    /// The servers, running and in sight of each other, and what can be done to them; says what will happen.
    async fn cluster(&self, directory: &Path, story: &Story) -> Result<(Cluster, Abilities), DrillError> {
        let options = &self.options;
        if let Some(of_others) = &options.cluster {
            return attach(of_others, story);
        }
        let settings = format!(
            "replication_factor = {}\n{}",
            options.copies,
            self.scenario.map_or("", |scenario| scenario.settings)
        );
        let program = options.program.clone();
        let mut cluster = Cluster::prepare(directory.to_owned(), program, options.nodes, settings).await?;
        let mut disk = None;
        match self.scenario {
            Some(scenario) => {
                story.line(&format!("{}: {}", scenario.name, scenario.title));
                for expectation in scenario.expectations() {
                    story.line(&format!("  expect: {}", expectation.text));
                }
            }
            None => {
                let id = options.seed as usize % options.nodes;
                disk = cluster.give_small_disk(id).then_some(id);
                story.line(&format!("faults drawn from seed {}: {}", options.seed, self.kinds(disk)));
            }
        }
        let all: Vec<usize> = (0..options.nodes).collect();
        cluster.start(&all)?;
        cluster.all_ready().await?;
        story.line(&format!(
            "{}, {} of each key, in {}; {}, {}, {} s",
            text::plural(options.nodes as u64, "server", "servers"),
            text::plural(options.copies.min(options.nodes) as u64, "copy", "copies"),
            directory.display(),
            text::plural(options.clients as u64, "client", "clients"),
            text::plural(options.keys as u64, "key", "keys"),
            self.seconds
        ));
        story.line("");
        Ok((cluster, Abilities::All { disk }))
    }

    fn kinds(&self, disk: Option<usize>) -> String {
        let kinds =
            "crash, restart, freeze, cut and flapping links, split, wrong clocks, several and all at once";
        match disk {
            Some(id) => format!("{kinds}, a full disk (server {id}, on a small one of its own)"),
            None => format!("{kinds}. No full disk: a small disk cannot be mounted here, that takes root"),
        }
    }

    async fn ring(&self, stage: &Stage) -> Result<Ring, DrillError> {
        let nobody = || DrillError::NobodyThere { directory: stage.cluster.directory().to_owned() };
        let described = stage.client.describe().await.map_err(|_| nobody())?;
        let copies = usize::try_from(described.replication_factor.unwrap_or(0)).unwrap_or(0).max(1);
        Ok(Ring::even(stage.cluster.len(), copies))
    }

    fn setting(&self, stage: &Stage, ring: &Ring) -> report::Setting {
        report::Setting {
            title: self
                .scenario
                .map_or("What a crash costs".to_owned(), |scenario| scenario.title.to_owned()),
            command: self.command(),
            seed: self.options.seed,
            seconds: self.seconds,
            servers: stage.cluster.len(),
            copies: ring.replication_factor(),
            clients: self.options.clients,
            keys: self.options.keys,
        }
    }

    /// What to type to see the same again.
    fn command(&self) -> String {
        let options = &self.options;
        let mut command = format!("drill --seconds {} --seed {}", self.seconds, options.seed);
        if let Some(scenario) = self.scenario {
            command.push_str(&format!(" --scenario {}", scenario.name));
        }
        if let Some(cluster) = &options.cluster {
            command.push_str(&format!(" --cluster {}", cluster.display()));
        }
        let numbers = [
            ("clients", options.clients, CLIENTS),
            ("keys", options.keys, self.scenario.and_then(|scenario| scenario.keys).unwrap_or(KEYS)),
            ("nodes", options.nodes, NODES),
            ("rf", options.copies, COPIES),
        ];
        for (name, value, _) in numbers.iter().filter(|(_, value, usual)| value != usual) {
            command.push_str(&format!(" --{name} {value}"));
        }
        command
    }

    /// Into the drill's directory, which is kept; beside the page if the servers are somebody else's.
    fn keep_history(&self, history: &crate::check::History, directory: &Path) -> Result<PathBuf, DrillError> {
        let path = match self.options.cluster {
            Some(_) => self.options.page.with_extension("history.txt"),
            None => directory.join("history.txt"),
        };
        judge::write_history(history, &path)
            .map_err(|source| DrillError::Unusable { path: path.clone(), source })?;
        Ok(path)
    }
}

fn attach(directory: &Path, story: &Story) -> Result<(Cluster, Abilities), DrillError> {
    let cluster = Cluster::of_others(directory.to_owned())?;
    let freezable = (0..cluster.len()).any(|id| cluster.can_freeze(id));
    story.line("these servers are not the drill's own:");
    story.line(if freezable {
        "  those that are processes of this machine and user are frozen now and then; nothing else is done to them"
    } else {
        "  they are no processes of this machine and user, so nothing is done to them"
    });
    story.line("  crash some yourself, kill -9 PID, and start them again: it will be seen\n");
    Ok((cluster, if freezable { Abilities::FreezeOnly } else { Abilities::None }))
}

/// Takes the drill's keys away from a cluster of others. What fails is left behind.
async fn remove(client: &Client, keys: &BTreeSet<Bytes>) {
    for key in keys {
        let _ = client.remove(&RemoveRequest::new(key.to_vec(), Level::QUORUM, None, None)).await;
    }
}

/// A drill's directory; deleted when dropped, unless it is to be kept.
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn make(task: &Task) -> Result<Scratch, DrillError> {
        let path = match &task.options.directory {
            Some(path) => path.clone(),
            None => std::env::temp_dir().join(format!("tetrachord-drill-{}", std::process::id())),
        };
        let unusable = |source| DrillError::Unusable { path: path.clone(), source };
        if task.options.cluster.is_none() {
            fs::create_dir_all(&path).map_err(unusable)?;
            if fs::read_dir(&path).map_err(unusable)?.next().is_some() {
                return Err(DrillError::NotEmpty { path });
            }
        }
        Ok(Scratch { path, keep: task.options.cluster.is_some() })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path); // what cannot be deleted is left
        }
    }
}
