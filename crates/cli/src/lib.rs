//! The client commands of `bowline`.
//!
//! ```text
//!   args.rs ─► lib.rs (dispatch) ─► pods, containers, images, run, logs, exec, stats ..   one file per family
//!                                      │            │
//!                                      ▼            ▼
//!                                  client.rs     render/ (tables, JSON, YAML)
//! ```
//!
//! They speak plain CRI and work against any runtime that does. Import, export, the progress of a pull, `ops`
//! and the daemon's part of `doctor` need Bowline's own admin service and say so where there is none.
//!
//! Data goes to stdout, talk to stderr. An error ends with what to try. A closed pipe is the reader's good right and
//! ends a command silently.

mod archive;
mod args;
mod client;
mod completion;
mod containers;
mod create;
mod doctor;
mod events;
mod exec;
mod failure;
#[cfg(test)]
mod fake;
mod images;
mod info;
mod install;
mod logs;
mod ops;
mod pods;
mod port_forward;
mod pull;
mod reflect;
mod render;
mod reset;
mod run;
mod select;
mod stats;
mod stream;
mod top;

use std::process::ExitCode;
use std::time::Duration;

pub use args::{ClientArgs, ClientCommand};
pub use completion::write_completion;

use client::Client;
use failure::{Done, Failure};

/// How long an ordinary call may take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a client command against `endpoint` (else `BOWLINE_ENDPOINT`, else the standard socket) and reports how it
/// went on stderr and in the exit code. Brings a runtime of its own: not to be called from within one.
pub fn run(endpoint: Option<String>, command: ClientCommand) -> ExitCode {
    run_args(ClientArgs { endpoint, timeout: None, command })
}

/// As [`run`], with all flags.
pub fn run_args(args: ClientArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(Err(Failure::io("start", error))),
    };
    let result = runtime.block_on(dispatch(args));
    // A thread may hang in a read of stdin; nobody waits for it.
    runtime.shutdown_background();
    report(result)
}

fn report(result: Done) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if let Some(text) = failure.text() {
                use std::io::Write as _;
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            ExitCode::from(failure.code())
        }
    }
}

async fn dispatch(args: ClientArgs) -> Done {
    let endpoint = client::endpoint(args.endpoint, std::env::var("BOWLINE_ENDPOINT").ok());
    let timeout = args.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs_f64);
    // These need no daemon.
    match args.command {
        ClientCommand::Completion { shell } => return completion::completion(shell),
        ClientCommand::Doctor(args) => return doctor::doctor(&endpoint, timeout, &args).await,
        ClientCommand::Install(args) => return install::install(&args),
        ClientCommand::Uninstall(args) => return install::uninstall(&endpoint, timeout, &args).await,
        ClientCommand::Reset(args) => return reset::reset(&args),
        _ => {}
    }
    let client = Client::connect(&endpoint, timeout).await?;
    match args.command {
        ClientCommand::Completion { .. }
        | ClientCommand::Doctor(_)
        | ClientCommand::Install(_)
        | ClientCommand::Uninstall(_)
        | ClientCommand::Reset(_) => Ok(0),
        ClientCommand::Version(args) => info::version(&client, &args).await,
        ClientCommand::Info(args) => info::info(&client, &args).await,
        ClientCommand::Pods(args) => pods::list(&client, &args).await,
        ClientCommand::Runp(args) => create::run_pod(&client, &args).await,
        ClientCommand::Stopp(args) => pods::stop(&client, &args).await,
        ClientCommand::Rmp(args) => pods::remove(&client, &args).await,
        ClientCommand::Inspectp(args) => pods::inspect(&client, &args).await,
        ClientCommand::Ps(args) => containers::list(&client, &args).await,
        ClientCommand::Run(args) => run::run(&client, *args).await,
        ClientCommand::Create(args) => create::create(&client, &args).await,
        ClientCommand::Start(args) => containers::start(&client, &args).await,
        ClientCommand::Stop(args) => containers::stop(&client, &args).await,
        ClientCommand::Checkpoint(args) => containers::checkpoint(&client, &args).await,
        ClientCommand::Rm(args) => containers::remove(&client, &args).await,
        ClientCommand::Inspect(args) => containers::inspect(&client, &args).await,
        ClientCommand::Exec(args) => exec::exec(&client, args).await,
        ClientCommand::Attach(args) => exec::attach(&client, args).await,
        ClientCommand::PortForward(args) => port_forward::port_forward(&client, args).await,
        ClientCommand::Logs(args) => logs::logs(&client, &args).await,
        ClientCommand::Stats(args) => stats::stats(&client, &args).await,
        ClientCommand::Top(args) => top::top(&client, &args).await,
        ClientCommand::Events(args) => events::events(&client, &args).await,
        ClientCommand::Ops(args) => ops::ops(&client, &args).await,
        ClientCommand::Images(args) => images::list(&client, &args).await,
        ClientCommand::Pull(args) => pull::command(&client, &args).await,
        ClientCommand::Rmi(args) => images::remove(&client, &args).await,
        ClientCommand::Inspecti(args) => images::inspect(&client, &args).await,
        ClientCommand::Image(args) => archive::archive(&client, args).await,
    }
}
