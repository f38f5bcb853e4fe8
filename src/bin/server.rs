//! One server of a Tetrachord cluster.
#![allow(missing_docs)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use tetrachord::answer::NodeId;
use tetrachord::causes;
use tetrachord::config::Config;
use tetrachord::node::{Node, NodeOptions};
use tetrachord::nodes::Nodes;
use tetrachord::output;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves one line of nodes.txt until it is told to stop (SIGTERM or Ctrl-C).
///
/// Exit code 0 after a graceful stop, 2 when it could not start; the message says what to do.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Port of this server's line in nodes.txt
    port: Option<u16>,
    /// Number of this server's line, counted from 0, instead of the port
    #[arg(long, conflicts_with = "port")]
    id: Option<u32>,
    /// File that lists the servers of the cluster, one host:port per line
    #[arg(long, default_value = "nodes.txt")]
    nodes: PathBuf,
    /// Data directory [default: data/ID]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Configuration file (TOML)
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print every setting with its unit, default and reason, as a configuration file, and exit
    #[arg(long)]
    print_config: bool,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_timestamp_millis()
        .format_target(false)
        .init();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("server: {}", causes::text(&error));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = match &arguments.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if arguments.print_config {
        output::print(&config.to_toml())?;
        return Ok(());
    }
    let nodes = Nodes::load(&arguments.nodes)?;
    let id = pick(&arguments, &nodes)?;
    let data = arguments.data.unwrap_or_else(|| PathBuf::from(format!("data/{id}")));
    let runtime = match config.worker_threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    runtime.context("cannot start the runtime")?.block_on(serve(NodeOptions { config, nodes, id, data }))
}

async fn serve(options: NodeOptions) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let node = Node::start(options).await?;
    tokio::select! {
        biased; // either ends the server
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    node.stop().await;
    Ok(())
}

/// Which line of nodes.txt this server is.
fn pick(arguments: &Arguments, nodes: &Nodes) -> anyhow::Result<NodeId> {
    let file = arguments.nodes.display();
    match (arguments.port, arguments.id) {
        (None, None) => bail!("say which server: a port of {file} (`server 9000`) or --id"),
        (_, Some(id)) if nodes.address(NodeId(id)).is_some() => Ok(NodeId(id)),
        (_, Some(id)) => bail!("{file} names servers 0 to {}, not {id}", nodes.len() - 1),
        (Some(port), None) => match nodes.with_port(port).as_slice() {
            [id] => Ok(*id),
            [] => bail!("no line of {file} has port {port}; add one, or start a port that is there"),
            _ => bail!("several lines of {file} have port {port}; say which with --id"),
        },
    }
}
