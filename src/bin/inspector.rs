//! The inspector.

use std::process::ExitCode;

use clap::Parser;
use tetrachord::inspect;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ExitCode::from(inspect::run(&inspect::Options::parse()).await)
}
