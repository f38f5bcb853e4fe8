//! The load tool.

use std::process::ExitCode;

use clap::Parser;
use tetrachord::stress;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ExitCode::from(stress::run(&stress::Options::parse()).await)
}
