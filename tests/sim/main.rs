//! The simulator: whole servers in one process, on simulated time, over a simulated network and disks that forget what
//! was not synced. One seed decides everything.
//!
//!   cargo test --test sim                          the seeds of the test run
//!   tests/sim.sh SEEDS [FIRST]                     as many as asked for, in parallel processes
//!   cargo test --test sim -- --seed N --script     one run, told event by event; `--scene NAME` one made by hand
//!
//!   scenes   runs made by hand, which are run every time
//!   plan     what the seed decides: servers, faults, load
//!   world    runs it: servers as `node::Core` builds them, clients, faults; then judges
//!   network  calls between servers
//!   disk     files that forget; `vfs`: SQLite on them
//!   judge    what must hold, by `tetrachord::check`
//!   shrink   cuts a failing run down

mod disk;
mod judge;
mod network;
mod plan;
mod scenes;
mod shrink;
mod signal;
mod trace;
mod vfs;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use plan::Plan;

/// As the server has it; a simulation does little but move bytes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds of a plain test run.
const TEST_SEEDS: u64 = 300;

/// By so many runs everything has happened once; a hundred do it by far.
const MET_BY: u64 = 300;

/// How many of them are run twice more, to see that the same seed gives the same run.
const REPEATED: u64 = 5;

/// Lines of a failing run that are shown.
const LINES_SHOWN: usize = 150;

#[derive(Parser)]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = TEST_SEEDS)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Run the scene alone whose name this is, or is part of.
    #[arg(long)]
    scene: Option<String>,
    /// Tell everything that happens in it.
    #[arg(long)]
    script: bool,
    /// Do not cut a failing run down.
    #[arg(long)]
    whole: bool,
    /// Ask for one order of all operations on a key even where none is promised (docs/correctness.md).
    #[arg(long)]
    strict: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Do not check that the same seed gives the same run.
    #[arg(long)]
    no_repeat: bool,
    /// Leave out the runs made by hand.
    #[arg(long)]
    no_scenes: bool,
    /// Names of tests, as `cargo test NAME` hands them to every test program: none are here.
    names: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(name) = options.names.first() {
        if name.parse::<u64>().is_ok() {
            println!("nothing was simulated: a seed is given by --seed {name}");
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    if let Some(seed) = options.seed {
        return one(&format!("seed {seed}"), Plan::from_seed(seed), &options);
    }
    if let Some(part) = &options.scene {
        let scene = scenes::all().into_iter().find(|(name, _)| name.contains(part));
        let Some((name, plan)) = scene else {
            println!("there is no scene '{part}'");
            return ExitCode::FAILURE;
        };
        return one(name, plan, &options);
    }
    let began = Instant::now();
    let mut total = Total::default();
    let scenes = scenes::all().into_iter().filter(|_| !options.no_scenes);
    let scenes = scenes.map(|(name, plan)| (format!("scene '{name}'"), format!("--scene '{name}'"), plan));
    let seeds = options.first..options.first + options.seeds;
    let seeds = seeds.map(|seed| (format!("seed {seed}"), format!("--seed {seed}"), Plan::from_seed(seed)));
    for (name, again, plan) in scenes.chain(seeds) {
        if !total.add(&name, &again, plan, &options) && !options.keep_going {
            break;
        }
    }
    if !options.no_repeat {
        for seed in options.first..options.first + REPEATED.min(options.seeds) {
            total.must_repeat(seed);
        }
    }
    total.say(began)
}

/// One run, told in full.
fn one(name: &str, plan: Plan, options: &Options) -> ExitCode {
    let plan = Plan { strict: options.strict, ..plan };
    println!("{plan}");
    let outcome = world::run(&plan, options.script);
    for line in &outcome.lines {
        println!("{line}");
    }
    match outcome.finding {
        None => {
            println!("{name}: {} requests, nothing found", outcome.requests);
            ExitCode::SUCCESS
        }
        Some(finding) => {
            println!("{name}: {}\n{}", finding.rule, finding.story);
            ExitCode::FAILURE
        }
    }
}

/// What all runs came to.
#[derive(Default)]
struct Total {
    seeds: u64,
    requests: u64,
    messages: u64,
    met: world::Met,
    failures: u64,
}

impl Total {
    /// Runs a plan; false if it failed.
    fn add(&mut self, name: &str, again: &str, plan: Plan, options: &Options) -> bool {
        let plan = Plan { strict: options.strict, ..plan };
        let outcome = world::run(&plan, false);
        self.seeds += 1;
        self.requests += outcome.requests;
        self.messages += outcome.messages;
        self.met += outcome.met;
        let Some(finding) = outcome.finding else { return true };
        self.failures += 1;
        println!("\nFAILED {name}: {}\n{}\n", finding.rule, finding.story);
        if options.whole {
            println!("again: cargo test --test sim -- {again} --script");
            return false;
        }
        let (smaller, found) = shrink::shrink(&plan, &finding);
        println!("cut down to:\n{smaller}");
        for (client, steps) in smaller.clients.iter().enumerate() {
            for step in steps {
                println!("  client {client}: {step:?}");
            }
        }
        let lines = world::run(&smaller, true).lines;
        let quiet = |line: &&String| !line.ends_with(" ping") && !line.contains(" reconcile ");
        let lines: Vec<&String> = lines.iter().filter(quiet).collect();
        println!("the last of {} events, without heartbeats and comparisons:", lines.len());
        for line in &lines[lines.len().saturating_sub(LINES_SHOWN)..] {
            println!("{line}");
        }
        println!("{}\n{}", found.rule, found.story);
        println!("the whole run again: cargo test --test sim -- {again} --script");
        false
    }

    /// The same seed is the same run.
    fn must_repeat(&mut self, seed: u64) {
        let plan = Plan::from_seed(seed);
        let (once, again) = (world::run(&plan, false), world::run(&plan, true));
        if (once.sum, once.requests, once.messages) != (again.sum, again.requests, again.messages) {
            self.failures += 1;
            println!("FAILED seed {seed}: the same seed gave two different runs");
        }
    }

    fn say(&self, began: Instant) -> ExitCode {
        let Total { seeds, requests, messages, met, failures } = self;
        println!("{met:?}");
        let took_s = began.elapsed().as_secs_f64();
        println!(
            "{seeds} seeds, {requests} requests, {messages} messages between servers, {failures} failures, {:.0} requests/s",
            *requests as f64 / took_s
        );
        let never = met.never();
        if *failures == 0 && *seeds >= MET_BY && !never.is_empty() {
            println!(
                "FAILED: not one of {}, so nothing is known of what follows from them",
                never.join(", ")
            );
            return ExitCode::FAILURE;
        }
        if *failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
