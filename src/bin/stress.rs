//! A load tool for a Tetrachord cluster.
#![allow(missing_docs)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tetrachord::coordinator::Level;
use tetrachord::nodes::Nodes;
use tetrachord::stress::Load;
use tetrachord::thrift::chord;

/// Puts and gets as fast as the cluster answers, and what that came to.
///
/// Exit code 0 when every operation succeeded, 1 when some did not, 2 for wrong use.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// File that lists the servers of the cluster
    #[arg(long, default_value = "nodes.txt")]
    nodes: PathBuf,
    /// Connections, spread over the servers
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Calls under way at once on each connection
    #[arg(long, default_value_t = 1)]
    outstanding: usize,
    /// How long to measure
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Of 100 operations, how many are puts; the others are gets
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    put_percent: u8,
    /// ONE, TWO, THREE, QUORUM, ALL, or ANY (puts only)
    #[arg(long, default_value = "QUORUM")]
    level: String,
    /// How many different keys (16 bytes each)
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Put every key once instead of drawing keys at random for a time
    #[arg(long)]
    fill: bool,
    /// Another seed draws other keys and values
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("stress: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let nodes = Nodes::load(&arguments.nodes)?;
    let level =
        Level::parse(&arguments.level).with_context(|| format!("unknown level '{}'", arguments.level))?;
    let load = Load {
        connections: arguments.connections,
        outstanding: arguments.outstanding,
        duration: Duration::from_secs(arguments.seconds),
        put_percent: arguments.put_percent,
        level: chord::Level(level.number()),
        keys: arguments.keys,
        value_bytes: arguments.value_bytes,
        fill: arguments.fill,
        seed: arguments.seed,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let report = runtime.block_on(load.run(&nodes))?;
    print!("{}", report.to_text());
    Ok(report.is_clean())
}
