//! `bowline bench`: how long things take, side by side.

use std::process::ExitCode;

/// What `bowline bench` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {}

/// Measures.
pub fn run_bench(_: BenchArgs) -> ExitCode {
    ExitCode::SUCCESS
}
