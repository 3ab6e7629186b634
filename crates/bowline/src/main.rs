//! `bowline`: the daemon (`bowline serve`), its helper for layers (`bowline unpack`), and the commands for people.
//!
//! One module per command. `main` parses, calls, and turns the outcome into an exit status:
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | it did not work |
//! | 2 | the command line or the configuration is wrong; nothing was touched |
//! | 3 | another daemon uses the same root, state folder or socket |

mod config;
mod listen;
mod log;
mod notify;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bowline", version, about = "A container runtime for Kubernetes nodes")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon: CRI on a unix socket
    Serve(serve::Args),
    /// Run our conformance cases against a CRI endpoint
    Check(bowline_check::check::CheckArgs),
    /// Measure a CRI endpoint, or several side by side
    Bench(bowline_check::bench::BenchArgs),
    /// Unpack one layer; started by the daemon
    #[command(hide = true)]
    Unpack,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::main(args),
        Command::Check(args) => bowline_check::check::run_check(args),
        Command::Bench(args) => bowline_check::bench::run_bench(args),
        Command::Unpack => bowline_image::unpack_worker_main(),
    }
}
