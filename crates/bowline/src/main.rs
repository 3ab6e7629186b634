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

mod activation;
mod config;
mod listen;
mod log;
mod memory;
mod metrics;
mod notify;
mod serve;
mod traces;

use std::process::ExitCode;

use bowline_cli::{ClientArgs, ClientCommand};
use clap::{CommandFactory as _, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bowline", version, about = "A container runtime for Kubernetes nodes")]
struct Cli {
    /// Where the runtime listens [default: $BOWLINE_ENDPOINT, else unix:///run/bowline/bowline.sock]
    #[arg(long, short = 'r', value_name = "unix:///PATH")]
    endpoint: Option<String>,
    /// How long a call may take, in seconds [default: 30]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
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
    /// Run an OCI bundle, with the command line of runc
    Oci(bowline_oci_cli::OciArgs),
    /// Unpack one layer; started by the daemon
    #[command(hide = true)]
    Unpack,
    #[command(flatten)]
    Client(ClientCommand),
}

fn main() -> ExitCode {
    let Cli { endpoint, timeout, command } = Cli::parse();
    match command {
        Command::Serve(args) => serve::main(args),
        Command::Check(args) => bowline_check::check::run_check(args),
        Command::Bench(args) => bowline_check::bench::run_bench(args),
        Command::Oci(args) => bowline_oci_cli::run(args),
        Command::Unpack => bowline_image::unpack_worker_main(),
        Command::Client(ClientCommand::Completion { shell }) => {
            let mut script = Vec::new();
            bowline_cli::write_completion(shell, &mut Cli::command(), &mut script);
            match std::io::Write::write_all(&mut std::io::stdout(), &script) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Command::Client(command) => bowline_cli::run_args(ClientArgs { endpoint, timeout, command }),
    }
}
