//! `bowline check` and `bowline bench` by themselves.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Runs the conformance cases.
    Check(bowline_check::CheckArgs),
    /// Measures.
    Bench(bowline_check::BenchArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Check(args) => bowline_check::run_check(args),
        Command::Bench(args) => bowline_check::run_bench(args),
    }
}
