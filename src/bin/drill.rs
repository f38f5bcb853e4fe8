//! Shows what a crash costs.
#![allow(missing_docs)]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tetrachord::causes;
use tetrachord::drill::{self, DrillError, Options};
use tetrachord::output;
use tokio::signal::unix::{SignalKind, signal};

/// Starts servers of its own, lets clients put, get and remove without end, and meanwhile kills servers, freezes them,
/// cuts their links, turns their clocks and fills a disk; then says what it cost and whether any promise was broken.
///
/// The servers run in a directory of their own on free ports of this machine, and end with the drill, however it ends.
/// Exit code 0 when nothing was lost or stale and everything expected was seen, 1 when not (the history and the
/// servers' files are kept), 2 for wrong use or a broken set-up, 130 when interrupted.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How long, in seconds [default: 60; a scenario: 15]
    #[arg(long, value_parser = clap::value_parser!(u64).range(3..=86_400))]
    seconds: Option<u64>,
    /// Draws faults and load; the same seed draws the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Clients at once
    #[arg(long, default_value_t = drill::CLIENTS, value_parser = between(1, 1_000))]
    clients: usize,
    /// Keys they use
    #[arg(long, default_value_t = drill::KEYS, value_parser = between(1, 100_000))]
    keys: usize,
    /// One lesson instead of faults of every kind
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Show the scenarios and what is to be seen in each
    #[arg(long)]
    list: bool,
    /// Directory for the servers; must be empty or not exist [default: a temporary one]
    #[arg(long, value_name = "SCRATCH")]
    dir: Option<PathBuf>,
    /// A running cluster's directory (with its nodes.txt) instead of servers of its own: they are frozen now and then
    /// if they are processes of this machine and user, and nothing else is done to them
    #[arg(long, value_name = "DIR")]
    cluster: Option<PathBuf>,
    /// Where the page with the drawing is written
    #[arg(long, value_name = "FILE", default_value = "drill-report.html")]
    report: PathBuf,
    /// Servers
    #[arg(long, default_value_t = drill::NODES, value_parser = between(1, 16))]
    nodes: usize,
    /// Copies of each key
    #[arg(long, default_value_t = drill::COPIES, value_parser = between(1, 16))]
    rf: usize,
    /// Keep the servers' directory though all is well
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    if let Some(error) = drill::guard::intercept(std::env::args_os().skip(1)) {
        eprintln!("drill: cannot start a server: {error}");
        return ExitCode::from(2);
    }
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("drill: {}", causes::text(&error));
            let finding = error.downcast_ref::<DrillError>().is_some_and(DrillError::is_finding);
            ExitCode::from(if finding { 1 } else { 2 })
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        output::print(&drill::list())?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = arguments.options()?;
    // One thread: the system ends the servers with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        tokio::select! {
            biased; // a wish to end has the last word
            _ = interrupt.recv() => Ok(interrupted()),
            _ = terminate.recv() => Ok(interrupted()),
            _ = hang_up.recv() => Ok(interrupted()), // the terminal is gone: what was frozen is to go on all the same
            passed = drill::run(options) => Ok(ExitCode::from(u8::from(!passed?))),
        }
    })
}

fn interrupted() -> ExitCode {
    eprintln!("\ndrill: interrupted; its servers are ended and nothing was judged");
    ExitCode::from(130)
}

impl Arguments {
    fn options(self) -> anyhow::Result<Options> {
        let own = std::env::current_exe().context("cannot find out where this program is")?;
        Ok(Options {
            seconds: self.seconds,
            seed: self.seed,
            clients: self.clients,
            keys: self.keys,
            scenario: self.scenario,
            directory: self.dir,
            cluster: self.cluster,
            page: self.report,
            nodes: self.nodes,
            copies: self.rf,
            keep: self.keep,
            program: own.parent().unwrap_or(Path::new(".")).join("server"),
            colour: std::io::stdout().is_terminal(),
        })
    }
}

/// A number within bounds.
fn between(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("a number from {least} to {most}")),
    }
}
