//! The load tool.

use std::process::ExitCode;

use clap::Parser;
use tetrachord::stress;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc; // the load must not be what limits it

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ExitCode::from(stress::run(&stress::Options::parse()).await)
}
