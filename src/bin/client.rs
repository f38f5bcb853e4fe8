//! The console.

use std::process::ExitCode;

use clap::Parser;
use tetrachord::console;

fn main() -> ExitCode {
    ExitCode::from(console::run(&console::Options::parse()))
}
